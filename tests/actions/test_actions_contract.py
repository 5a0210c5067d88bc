"""What every action promises alike: `act`, `invert` and `orbit`, types and layouts, gradients, copies and names."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from actions_catalogue import (
    AFFINE,
    EVERY,
    FUNCTIONS,
    LINEAR,
    PADDED,
    PERMUTATIONS,
    PRODUCTS,
    Case,
    batch_for,
    each,
    indices_for,
    mixed_colours,
    signed_permutations,
)
from torch import Tensor, nn

from lightning_invariance import actions
from lightning_invariance.actions import SO3, Action, AffineAction, LinearAction, PermutationAction, Rotations


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def every_index(action: Action, x: Tensor) -> list[Tensor]:
    """One element a sample, so that each sample meets each element."""
    return [(indices_for(action, x) + shift) % len(action) for shift in range(len(action))]


def outcomes(action: Action, x: Tensor, index: Tensor | None = None) -> list[Tensor]:
    index = indices_for(action, x) if index is None else index
    last = len(action) - 1
    one_for_all, one_each = (
        [action.act(x, last), action.invert(x, last)],
        [action.act(x, index), action.invert(x, index)],
    )
    return [*one_for_all, *one_each, action.orbit(x)]


# act, invert and orbit -------------------------------------------------------------------------------------------


@each(EVERY)
def test_act_invert_and_orbit_agree(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    before = x.clone()
    moved = torch.stack([action.act(x, element) for element in range(len(action))])
    assert [element for element in range(len(action)) if torch.equal(moved[element], x)] == [0]
    orbit, chosen = action.orbit(x), [len(action) - 1, 0, 1, 0]
    some = action.orbit(x, elements=chosen)
    close(orbit, moved)
    close(some, moved[chosen])
    unmoved = torch.zeros(len(x), dtype=torch.int64)
    still = [orbit[0], some[1], some[3], action.orbit(x, elements=(0,))[0], action.invert(x, 0)]
    for got in (*still, action.act(x, unmoved), action.invert(x, unmoved)):
        assert torch.equal(got, x)
    for apply in (action.act, action.invert):
        for index in every_index(action, x):
            got = apply(x, index)
            close(got, torch.cat([apply(x[i : i + 1], int(index[i])) for i in range(len(x))]))
            assert torch.equal(got[index == 0], x[index == 0])  # the identity is exact among others too
    assert torch.equal(x, before)
    infinite = torch.full_like(x, torch.inf)  # times 0 it would be NaN
    assert torch.equal(action.act(infinite, torch.tensor([0, 1, 0]))[0], infinite[0])


@each(EVERY)
def test_round_trips(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    assert action.exact == case.exact
    for index in (*range(len(action)), *every_index(action, x)):
        there_and_back = action.invert(action.act(x, index), index)
        if action.exact:
            assert torch.equal(there_and_back, x)
            assert torch.equal(action.act(action.invert(x, index), index), x)
        elif case in LINEAR.values():  # the others lose detail
            close(there_and_back, x)


@each(EVERY, without=["FunctionAction"])
def test_the_other_dimensions_go_along(case: Case) -> None:
    """Every slice of the dimensions not acted on is moved as it would be alone."""
    action, x = case.make(), batch_for(case)
    assert action.dims is not None
    assert x.ndim >= 1 - min(action.dims)
    close(action.act(torch.stack([x, 2 * x], dim=1), 1), torch.stack([action.act(x, 1), action.act(2 * x, 1)], dim=1))


@each(EVERY)
def test_batches_of_one_and_of_none(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    last = len(action) - 1
    close(action.act(x[:1], torch.tensor([last])), action.act(x, last)[:1])
    close(action.orbit(x[:1]), action.orbit(x)[:, :1])
    none = torch.zeros(0, *case.shape[1:])
    for got in outcomes(action, none, torch.zeros(0, dtype=torch.int64))[:-1]:
        assert got.shape == none.shape
    assert action.orbit(none).shape == (len(action), *none.shape)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_indices_of_any_integer_type(dtype: torch.dtype) -> None:
    x, index = torch.arange(12.0).reshape(3, 2, 2), torch.tensor([0, 3, 1])
    assert torch.equal(actions.C4().act(x, index.to(dtype)), actions.C4().act(x, index))
    assert torch.equal(actions.C4().act(x, index.to(dtype)[2]), actions.C4().act(x, 1))  # one for all


# Precisions and memory -------------------------------------------------------------------------------------------


@each(PERMUTATIONS, PADDED)
def test_permutations_move_values_of_any_type(case: Case) -> None:
    """Moving the places of a batch tells where its values go."""
    action = case.make()
    places = torch.arange(torch.Size(case.shape).numel()).reshape(case.shape)
    where = outcomes(action, places)
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.bool, torch.complex64):
        x = batch_for(case, dtype)
        for out, source in zip(outcomes(action, x), where, strict=True):
            assert out.dtype == dtype
            assert torch.equal(out, x.flatten()[source])


@each(AFFINE, LINEAR, {"D4*LinearAction": PRODUCTS["D4*LinearAction"]})
def test_computed_in_float32_or_better(case: Case) -> None:
    action, x = case.make(), batch_for(case, torch.float64)
    for dtype in (torch.float16, torch.bfloat16):
        # The double-precision result, rounded once: at most one unit in the last place away.
        half, unit = x.to(dtype), torch.finfo(dtype).eps
        for out, precise in zip(outcomes(action, half), outcomes(action, half.double()), strict=True):
            assert out.dtype == dtype
            torch.testing.assert_close(out.double(), precise.to(dtype).double(), rtol=2 * unit, atol=1e-5)
    for single, double in zip(outcomes(action, x.float()), outcomes(action, x), strict=True):
        assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)
    assert not torch.equal(single.double(), double)


def strided(x: Tensor) -> Tensor:
    """The same values with gaps between them in memory."""
    wide = x.new_zeros(*(2 * size for size in x.shape))
    wide[tuple(slice(None, None, 2) for _ in x.shape)] = x
    return wide[tuple(slice(None, None, 2) for _ in x.shape)]


def transposed(x: Tensor) -> Tensor:
    """The same values with the dimensions stored the other way round."""
    return x.permute(*range(x.ndim - 1, -1, -1)).contiguous().permute(*range(x.ndim - 1, -1, -1))


@each(EVERY)
def test_layout_and_autocast_change_nothing(case: Case) -> None:
    x = batch_for(case)
    expected = outcomes(case.make(), x)
    stored = [strided(x), transposed(x), x[:1].expand(x.shape)]
    if x.ndim > 3:
        stored.append(x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d))
    for other in stored:
        assert not other.is_contiguous()
        reference = expected if torch.equal(other, x) else outcomes(case.make(), other.contiguous())
        for out, value in zip(outcomes(case.make(), other), reference, strict=True):
            torch.testing.assert_close(out, value, rtol=1e-6, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        got = outcomes(case.make(), x)
    assert all(torch.equal(out, value) for out, value in zip(got, expected, strict=True))


# Elsewhere the default device also makes the tensors that the test passes in.
OWN_TENSORS = [name for name in EVERY if any(own in name for own in ("PermutationAction", "Linear", "Affine"))]


@each(EVERY, without=OWN_TENSORS)
def test_a_default_device_does_not_matter(case: Case) -> None:
    """Models are built, and may run, under ``torch.device(...)``: the constants go to the batch's device."""
    x = batch_for(case)
    index = indices_for(case.make(), x)
    with torch.device("meta"):
        made = case.make()
        inside = outcomes(case.make(), x, index)
    for out, later, reference in zip(inside, outcomes(made, x), outcomes(case.make(), x), strict=True):
        assert torch.equal(out, reference)
        assert torch.equal(later, reference)


def test_a_default_device_does_not_matter_for_ones_own_tensors() -> None:
    table, matrices = torch.tensor([[0, 1, 2], [1, 2, 0]]), signed_permutations(2)
    maps = torch.cat([matrices, matrices.new_zeros(8, 2, 1)], dim=2)
    with torch.device("meta"):
        own = [PermutationAction(table), LinearAction(matrices), AffineAction(maps)]
    for action, x in zip(own, (torch.ones(2, 3), torch.ones(2, 2), torch.ones(2, 4, 4)), strict=True):
        assert action.act(x, 1).shape == x.shape
        assert action.cayley_table is None or action.cayley_table.device.type == "cpu"


# Gradients -------------------------------------------------------------------------------------------------------


@each(EVERY)
def test_gradients_are_those_of_differences(case: Case) -> None:
    action, x = case.make(), batch_for(case, torch.float64)[:2].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(outcomes(action, x, torch.tensor([1, 0]))), x, fast_mode=True)


@pytest.mark.parametrize("make", [mixed_colours, lambda: Rotations(3) * mixed_colours()], ids=["linear", "product"])
def test_second_gradients(make: Callable[[], Action]) -> None:
    x = torch.randn(2, 3, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    action, index = make(), torch.tensor([2, 1])
    assert torch.autograd.gradgradcheck(lambda x: action.act(x, index).square(), x, fast_mode=True)


@each(EVERY)
@pytest.mark.parametrize("made_inside", [False, True])
def test_training_after_inference_mode(case: Case, made_inside: bool) -> None:
    action = case.make()
    with torch.inference_mode():
        action = case.make() if made_inside else action
        for dtype in (torch.float32, torch.float64):
            outcomes(action, batch_for(case, dtype))
    x = batch_for(case).requires_grad_()
    for out in outcomes(action, x):
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
        assert bool(gradient.abs().sum() > 0)


def test_constants_carry_no_gradient() -> None:
    matrices = signed_permutations(2).requires_grad_()
    maps = torch.eye(2, 3).repeat(2, 1, 1).requires_grad_()
    assert not LinearAction(matrices).act(torch.ones(1, 2), 1).requires_grad
    assert not AffineAction(maps).act(torch.ones(1, 2, 2), 1).requires_grad
    assert not SO3(1).act(torch.ones(1, 3), 1).requires_grad


# Values ----------------------------------------------------------------------------------------------------------


def use(action: Action, case: Case) -> None:
    """Whatever fills a cache."""
    for dtype in (torch.float32, torch.float64):
        outcomes(action, batch_for(case, dtype))
    _ = action.cayley_table, action.dims, action.labels


@each(EVERY)
def test_a_value_that_travels_without_its_caches(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    before = len(pickle.dumps(action))
    use(action, case)
    assert len(pickle.dumps(action)) == before
    assert len(set(action.labels)) == len(action.labels) == len(action)
    assert action.labels[0] == "identity"
    twins = [pickle.loads(pickle.dumps(action)), copy.deepcopy(action), copy.copy(action)]
    for twin in twins if case in FUNCTIONS.values() else [*twins, case.make()]:
        assert twin == action
        assert hash(twin) == hash(action)
        assert twin.labels == action.labels
        assert all(torch.equal(one, other) for one, other in zip(outcomes(twin, x), outcomes(action, x), strict=True))
    if type(action).__name__ not in ("PermutationAction", "AffineAction", "LinearAction", "FunctionAction"):
        of_matrices = "LinearAction(" in repr(action)  # which says how many, and not which
        assert case in PRODUCTS.values() or of_matrices or eval(repr(action), vars(actions)) == action


def test_no_two_cases_are_equal() -> None:
    assert len({case.make() for case in EVERY.values()}) == len(EVERY)


class Network(nn.Module):
    def __init__(self, action: Action) -> None:
        super().__init__()
        self.action = action
        self.layer = nn.Linear(2, 2)


@each({name: EVERY[name] for name in ("SO2", "SO3", "C4*CyclicTranslations", "FunctionAction")})
def test_a_module_that_holds_an_action(case: Case) -> None:
    network = Network(case.make())
    use(network.action, case)
    assert set(network.state_dict()) == {"layer.weight", "layer.bias"}
    assert not list(network.buffers())
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    for twin in (torch.load(file, weights_only=False), copy.deepcopy(network)):
        assert twin.action == network.action
        assert torch.equal(twin.layer.weight, network.layer.weight)
