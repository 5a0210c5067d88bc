"""Several inputs of one network, moved by the same element."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from lightning_invariance.actions import C4, SO3, Rotations, SetPermutations
from lightning_invariance.actions._joint import JointAction


def molecules() -> tuple[Tensor, Tensor, Tensor]:
    """Positions, charges and a mask of molecules of 4, 6 and 1 atoms."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.randn(3, 6, 3, generator=generator)
    charges = torch.randint(1, 90, (3, 6), generator=generator)
    mask = torch.arange(6) < torch.tensor([4, 6, 1])[:, None]
    return positions * mask[..., None], charges * mask, mask


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 2, 4, 4, generator=generator), torch.randn(3, 4, 4, generator=generator)


def same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(got, expected, strict=True))


INDICES = [3, torch.tensor([3, 0, 2])]


@pytest.mark.parametrize(("padding", "index"), [(None, INDICES[1]), (0, INDICES[0]), (0, INDICES[1])], ids=repr)
def test_atoms_keep_their_charges(padding: int | None, index: int | Tensor) -> None:
    inputs, action = molecules(), SetPermutations(3, padding=padding)
    joint = JointAction(action, inputs)
    packed = joint.pack(inputs)
    positions, charges, mask = joint.unpack(joint.act(packed, index))
    assert same((positions, charges, mask), (positions.float(), charges.long(), mask.bool()))
    for sample in range(3):
        before = zip(inputs[0][sample].tolist(), inputs[1][sample].tolist(), strict=True)
        assert sorted(before) == sorted(zip(positions[sample].tolist(), charges[sample].tolist(), strict=True))
    assert torch.equal(mask, charges > 0)
    assert padding is None or torch.equal(mask, inputs[2])
    assert torch.equal(positions, action.act(inputs[0], index))
    assert torch.equal(joint.invert(joint.act(packed, index), index), packed)
    joint.verify(packed)


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_depth_turns_with_the_image(index: int | Tensor) -> None:
    image, depth = images()
    joint = JointAction(C4(), (image, depth))
    packed = joint.pack((image, depth))
    assert (packed.shape, packed.dtype) == ((3, 2 * 16 + 16), torch.float32)
    together = C4().act(torch.cat([image, depth[:, None]], dim=1), index)
    assert same(joint.unpack(joint.act(packed, index)), (together[:, :2], together[:, 2]))
    assert torch.equal(joint.invert(joint.act(packed, index), index), packed)
    joint.verify(packed)
    # As a network runs an orbit: all elements stacked.
    of_image, of_depth = joint.unpack(joint.orbit(packed).flatten(0, 1))
    assert torch.equal(of_image, C4().orbit(image).flatten(0, 1))
    assert torch.equal(of_depth, C4().orbit(depth).flatten(0, 1))


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.float32, torch.float64), torch.float64),
        ((torch.float32, torch.int64), torch.float64),
        ((torch.float32, torch.int16), torch.float32),
        ((torch.float32, torch.uint8, torch.bool), torch.float32),
        ((torch.float16, torch.uint8), torch.float16),
        ((torch.bfloat16, torch.int16), torch.float32),
        ((torch.int64, torch.int32, torch.bool), torch.int64),
        ((torch.uint8, torch.int8), torch.int16),
    ],
    ids=str,
)
def test_every_dtype_comes_back_bit_for_bit(dtypes: tuple[torch.dtype, ...], expected: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for dtype in dtypes:
        x = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
        if dtype == torch.bool:
            x = x > 0
        elif not dtype.is_floating_point:
            x = torch.randint(-9, 9, (2, 3, 3), generator=generator)
            x[0, 0, 0], x[0, 0, 1] = max(torch.iinfo(dtype).min, -(2**53)), min(torch.iinfo(dtype).max, 2**53)
        inputs.append(x.to(dtype))
    joint = JointAction(C4(), tuple(inputs))
    packed = joint.pack(inputs)
    assert packed.dtype == expected
    assert same(joint.unpack(packed), tuple(inputs))
    assert same(joint.unpack(joint.act(packed, 1)), tuple(torch.rot90(x, 1, (-2, -1)) for x in inputs))


def test_whole_numbers_that_a_float_would_round_are_refused() -> None:
    inputs = (torch.zeros(2, 3, 3), torch.full((2, 3, 3), 2**53 + 1))
    with pytest.raises(ValueError, match=r"Expected input 1, beside one of floating point, to hold no integer beyond"):
        JointAction(C4(), inputs).pack(inputs)
    whole = (inputs[1], inputs[1] < 0)
    joint = JointAction(C4(), whole)
    assert same(joint.unpack(joint.pack(whole)), whole)


def test_gradients_flow_to_the_floats() -> None:
    positions, charges, mask = molecules()
    joint = JointAction(SetPermutations(3, padding=0), (positions, charges, mask))
    packed = joint.pack((positions, charges, mask)).requires_grad_()
    moved, numbers, _ = joint.unpack(joint.act(packed, torch.tensor([1, 2, 3])))
    weights = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(5))
    assert not numbers.requires_grad
    (gradient,) = torch.autograd.grad((moved * weights).sum(), packed)
    held = SetPermutations(3, padding=0).attached(positions)
    expected = held.invert(weights, torch.tensor([1, 2, 3]))
    assert torch.equal(gradient[:, :18], expected.flatten(1).double())
    assert not gradient[:, 18:].any()


def test_a_map_is_brought_back_with_fractions_where_the_inputs_are_whole() -> None:
    inputs = molecules()
    joint = JointAction(SetPermutations(3, padding=0), inputs)
    packed = joint.pack(inputs)
    maps = torch.rand(packed.shape, generator=torch.Generator().manual_seed(2)).double()  # of float32's precision
    on_charges = SetPermutations(3, padding=0).alongside(inputs[0], inputs[1])
    back = joint.attached(packed).invert(maps, 2)
    assert torch.equal(back[:, 18:24], on_charges.invert(maps[:, 18:24], 2))


def test_a_product_moves_all_inputs() -> None:
    positions, charges, mask = molecules()
    velocities = positions.flip(0) * mask[..., None]
    product = SO3(2) * SetPermutations(3, padding=0)
    joint = JointAction(product, (positions, velocities))
    packed = joint.pack((positions, velocities))
    for element in range(len(product)):
        turn, order = divmod(element, 4)
        held = SetPermutations(3, padding=0).attached(positions)
        expected = tuple(SO3(2).act(held.act(x, order), turn) for x in (positions, velocities))
        assert same(joint.unpack(joint.act(packed, element)), expected)
        torch.testing.assert_close(joint.invert(joint.act(packed, element), element), packed)
    joint.verify(packed)
    with pytest.raises(ValueError, match=r"but got input 1 of shape \(3, 6\) and torch.int64: Expected `x`"):
        JointAction(product, (positions, charges))


def test_what_an_action_says_is_said_for_all_inputs() -> None:
    inputs = images()
    joint = JointAction(C4(), inputs)
    assert len(joint) == 4
    assert joint.labels == C4().labels
    assert joint.exact
    assert not JointAction(Rotations(3), inputs).exact
    table = joint.cayley_table
    assert table is not None
    assert table.tolist() == [[(i + j) % 4 for j in range(4)] for i in range(4)]
    assert repr(joint) == "C4() on 2 inputs"
    assert joint == JointAction(C4(), images()) == pickle.loads(pickle.dumps(joint)) == copy.deepcopy(joint)
    assert hash(joint) == hash(JointAction(C4(), images()))
    assert joint != JointAction(C4(), inputs[:1])
    assert not joint.drawn
    assert joint.fresh(5, torch.Generator().manual_seed(0))[0] is joint


def test_draws_are_those_of_the_action() -> None:
    inputs = molecules()
    action = SetPermutations(3, padding=0)
    joint = JointAction(action, inputs)
    assert joint.drawn
    assert joint.redrawn(5, 2) == JointAction(action.redrawn(5, 2), inputs)
    fresh, index = joint.fresh(3, torch.Generator().manual_seed(0))
    alone, same_index = action.fresh(3, torch.Generator().manual_seed(0))
    assert torch.equal(index, same_index)
    moved = joint.unpack(fresh.act(joint.pack(inputs), index))
    assert torch.equal(moved[0], alone.act(inputs[0], index))


IMAGE, DEPTH = images()
REFUSED = [
    (3, images(), "Expected `action` to be an Action"),
    (C4(), (), "Expected `inputs` to hold tensors, at least one"),
    (C4(), IMAGE, "Expected `inputs` to hold tensors, at least one"),
    (C4(), (IMAGE, 3), "Expected input 1 to be a tensor of one row a sample but got int"),
    (C4(), (IMAGE, torch.tensor(1.0)), "Expected input 1 to be a tensor of one row a sample but got a tensor .. of"),
    (C4(), (IMAGE, DEPTH[:2]), "Expected input 1 to have 3 rows, as input 0, but got 2"),
    (C4(), (IMAGE, DEPTH.cfloat()), "Expected input 1 to be real but got torch.complex64"),
    (C4(), (IMAGE[..., :3], DEPTH), r"2 inputs but got input 0 of shape \(3, 2, 4, 3\) and torch.float32: .* square"),
    (C4(), (IMAGE, DEPTH, torch.zeros(3, 5)), r"input 2 of shape \(3, 5\) and torch.float32: .* at least 2 more"),
    (SetPermutations(2), (torch.zeros(3, 5, 2), torch.zeros(3, 4)), "input 1 .* `other` to have 3 samples, and 5"),
    (SO3(3), (torch.zeros(3, 6, 3), torch.zeros(3, 6)), "input 1 .* Expected the size of `x` in dimension -1 to be 3"),
]


def test_inputs_that_cannot_be_moved_together_and_other_rows_are_refused() -> None:
    for action, inputs, says in REFUSED:
        with pytest.raises(ValueError, match=says):
            JointAction(action, inputs)
    inputs = images()
    joint = JointAction(C4(), inputs)
    for call in (joint.unpack, lambda x: joint.act(x, 1), joint.verify):
        with pytest.raises(ValueError, match=r"Expected `x` to have the shape \(B, 48\), packed, .* but got \(3, 47\)"):
            call(torch.zeros(3, 47))
    with pytest.raises(ValueError, match=r"Expected `tensors` to have the shapes .* but got"):
        joint.pack(inputs[:1])
    with pytest.raises(ValueError, match=r"Expected `tensors` to have the shapes .* but got"):
        joint.pack((inputs[0], inputs[1].double()))


def test_verify_names_the_input() -> None:
    positions, _, _ = molecules()
    padded = torch.where(positions == 0, -1.0, positions)
    joint = JointAction(SO3(2) * SetPermutations(2, padding=-1), (padded, padded))
    with pytest.raises(ValueError, match=r"got input 0 of shape .*: Expected 'rotation1' of .* to leave the padding"):
        joint.verify(joint.pack((padded, padded)))
