"""Actions made from escnn's gspaces and field types move what escnn moves, element by element."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from lightning_invariance import C4, D4, SO2, HorizontalFlip, Rotations, VerticalFlip, evaluate_invariance

pytest.importorskip("escnn.nn", exc_type=ImportError)

from escnn import gspaces
from escnn import nn as enn

from lightning_invariance.baselines import action_of

PI = math.pi
NAMED = [
    (gspaces.rot2dOnR2(4), C4()),
    (gspaces.flipRot2dOnR2(4), D4()),
    (gspaces.flip2dOnR2(), HorizontalFlip()),
    (gspaces.flip2dOnR2(axis=0.0), VerticalFlip()),
    (gspaces.rot2dOnR2(8), Rotations(8)),
    (gspaces.rot2dOnR2(3), Rotations(3)),
    (gspaces.rot2dOnR2(-1), SO2(16)),
]
ON_THE_LATTICE = {
    "C4": gspaces.rot2dOnR2(4),
    "D2": gspaces.flipRot2dOnR2(2),
    "D4": gspaces.flipRot2dOnR2(4),
    "D4 about a diagonal": gspaces.flipRot2dOnR2(4, axis=PI / 4),
    "flip about a diagonal": gspaces.flip2dOnR2(axis=PI / 4),
    "flip about the other": gspaces.flip2dOnR2(axis=3 * PI / 4),
}
OFF_THE_LATTICE = {
    "C8": gspaces.rot2dOnR2(8),
    "D4 about 20 degrees": gspaces.flipRot2dOnR2(4, axis=PI / 9),
    "flip about 30 degrees": gspaces.flip2dOnR2(axis=PI / 6),
    "SO2": gspaces.rot2dOnR2(-1),
    "O2": gspaces.flipRot2dOnR2(-1),
}


SO2_SPACE, O2_SPACE = gspaces.rot2dOnR2(-1), gspaces.flipRot2dOnR2(-1, axis=0.3)


def elements_of(gspace, action):
    """Escnn's elements, from the labels of the drawn ones where there is no list."""
    group = gspace.fibergroup
    if group.order() > 0:
        return list(group.elements)
    angles = [math.radians(degrees) for degrees in SO2(len(action) - 1).degrees]
    pairs = [(index % 2, angle) for index, angle in enumerate(angles)]
    return [group.element(pair if gspace.flips_order else pair[1]) for pair in pairs]


def smooth_image(channels: int, size: int = 41) -> torch.Tensor:
    """No symmetry, nothing at the border, and little that interpolation could lose."""
    torch.manual_seed(0)
    steps = torch.linspace(-1, 1, size, dtype=torch.float64)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    centres = 0.9 * torch.rand(channels, 3, 2, dtype=torch.float64) - 0.45
    blobs = torch.exp(-((x - centres[..., 0, None, None]) ** 2 + (y - centres[..., 1, None, None]) ** 2) / 0.03)
    return (torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)[:, None, None] * blobs).sum(1)[None]


@pytest.mark.parametrize(("gspace", "action"), NAMED, ids=lambda value: repr(value).split("_on")[0])
def test_the_package_s_own_action_where_there_is_one(gspace, action):
    assert action_of(gspace) == action
    assert action_of(enn.FieldType(gspace, 3 * [gspace.trivial_repr])) == action


@pytest.mark.parametrize("gspace", ON_THE_LATTICE.values(), ids=ON_THE_LATTICE)
def test_on_the_lattice_it_is_escnn_s_transform_bit_for_bit(gspace):
    action = action_of(gspace)
    x = torch.randn(2, 3, 7, 7)
    field = enn.FieldType(gspace, 3 * [gspace.trivial_repr])(x)
    elements = elements_of(gspace, action)
    assert action.exact
    assert len(action) == len(elements) == gspace.fibergroup.order()
    assert len(set(action.labels)) == len(action)
    for index, element in enumerate(elements):
        assert torch.equal(action.act(x, index), field.transform(element).tensor)
        assert torch.equal(action.invert(action.act(x, index), index), x)
    table = [[elements.index(left @ right) for right in elements] for left in elements]
    assert action.cayley_table.tolist() == table


@pytest.mark.parametrize("gspace", OFF_THE_LATTICE.values(), ids=OFF_THE_LATTICE)
def test_off_the_lattice_it_is_escnn_s_transform_up_to_interpolation(gspace):
    action = action_of(gspace)
    x = smooth_image(channels=2)
    field = enn.FieldType(gspace, 2 * [gspace.trivial_repr])(x)
    elements = elements_of(gspace, action)
    assert len(action) == len(elements)
    assert not action.exact
    expected = torch.stack([field.transform(element).tensor for element in elements])
    errors = torch.cdist(action.orbit(x).flatten(1), expected.flatten(1)) / x.norm()
    assert errors.diagonal().max() < 0.06
    if gspace.fibergroup.order() > 0:  # drawn angles may be neighbours
        assert (errors + torch.eye(len(action))).min() > 0.3


@pytest.mark.parametrize("gspace", ON_THE_LATTICE.values(), ids=ON_THE_LATTICE)
def test_feature_fields_have_their_channels_moved_along(gspace):
    field_type = enn.FieldType(gspace, [*gspace.fibergroup.irreps(), gspace.regular_repr])
    action = action_of(field_type)
    x = torch.randn(4, field_type.size, 6, 6, dtype=torch.float64)
    elements = elements_of(gspace, action)
    drawn = torch.tensor([1, 0, len(action) - 1, 1])
    moved = torch.stack([field_type(x).transform(element).tensor for element in elements])
    torch.testing.assert_close(action.orbit(x), moved, atol=1e-12, rtol=0)
    torch.testing.assert_close(action.act(x, drawn), moved[drawn, torch.arange(4)], atol=1e-12, rtol=0)
    for index in range(len(action)):
        torch.testing.assert_close(action.invert(action.act(x, index), index), x, atol=1e-12, rtol=0)
    torch.testing.assert_close(action.invert(action.act(x, drawn), drawn), x, atol=1e-12, rtol=0)
    action.verify(x)
    assert pickle.loads(pickle.dumps(action)) == copy.deepcopy(action) == action
    assert action.cayley_table.tolist() == action_of(gspace).cayley_table.tolist()
    assert action.redrawn(3) is action


@pytest.mark.parametrize(
    ("gspace", "name"),
    [(SO2_SPACE, "image"), (SO2_SPACE, "mixed"), (O2_SPACE, "image"), (O2_SPACE, "vectors"), (O2_SPACE, "mixed")],
    ids=["SO2-image", "SO2-mixed", "O2-image", "O2-vectors", "O2-mixed"],
)
def test_points_and_channels_are_drawn_again_together(gspace, name):
    one, three = (gspace.irrep(1, k) if gspace.flips_order else gspace.irrep(k) for k in (1, 3))
    kinds = {"image": [gspace.trivial_repr], "vectors": [one], "mixed": [gspace.trivial_repr, three, one]}
    field_type = enn.FieldType(gspace, kinds[name])
    action = action_of(field_type, samples=3)
    assert action.drawn
    assert len(action.redrawn(7)) == 4
    assert action == action_of(field_type, samples=3, seed=0)
    again = action.redrawn(7, samples=5)
    assert again == action_of(field_type, samples=5, seed=7) != action_of(field_type, samples=5, seed=8)
    x, columns = (
        smooth_image(channels=field_type.size),
        torch.eye(field_type.size, dtype=torch.float64)[..., None, None],
    )
    for index, degrees in enumerate(SO2(5, seed=7).degrees):
        angle = math.radians(degrees)
        element = gspace.fibergroup.element((index % 2, angle) if gspace.flips_order else angle)
        expected = field_type(x).transform(element).tensor
        assert (again.act(x, index) - expected).norm() < 0.06 * x.norm()
        assert (again.invert(expected, index) - x).norm() < 0.1 * x.norm()
        if name == "mixed":  # of one point only channels move, without interpolation
            matrix = field_type.fiber_representation(element).double()
            torch.testing.assert_close(again.act(columns, index)[..., 0, 0].T, matrix, atol=1e-12, rtol=0)
    again.verify(x)
    assert pickle.loads(pickle.dumps(again)) == copy.deepcopy(again) == again
    assert hash(copy.deepcopy(again)) == hash(again)


@pytest.mark.parametrize("kind", ["image", "vectors"])
def test_fresh_elements_of_o2_are_reflections_by_chance(kind):
    gspace = O2_SPACE
    field_type = enn.FieldType(gspace, [gspace.trivial_repr if kind == "image" else gspace.irrep(1, 1)])
    action = action_of(field_type, samples=3)
    fresh, index = action.fresh(600, torch.Generator().manual_seed(0))
    assert index.shape == (600,)
    assert len(set(index.tolist())) == 600
    reflected = index % 2 == 1
    # Mean 300, deviation 12.2; and as many neighbours that are alike as are not.
    assert abs(int(reflected.sum()) - 300) < 49
    assert abs(int((reflected[1:] == reflected[:-1]).sum()) - 300) < 49
    x = smooth_image(channels=field_type.size, size=5)
    assert fresh.act(x.expand(600, -1, -1, -1), index).shape == (600, *x.shape[1:])
    assert len(action.fresh(0)[0]) == 4
    assert action.fresh(0)[1].shape == (0,)
    with pytest.raises(ValueError, match="Expected `n` to be an integer of at least 0"):
        action.fresh(-1)
    turns = action_of(enn.FieldType(SO2_SPACE, [SO2_SPACE.irrep(1)]), samples=3)
    assert turns.fresh(5, torch.Generator().manual_seed(0))[1].tolist() == [1, 2, 3, 4, 5]


def test_an_escnn_network_on_vectors_is_measured_as_invariant():
    """One that takes two-dimensional vectors, which turn with the image: turning pixels alone moves its output."""
    gspace = gspaces.rot2dOnR2(4)
    field_type = enn.FieldType(gspace, [gspace.irrep(1)])

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = enn.R2Conv(field_type, enn.FieldType(gspace, 3 * [gspace.regular_repr]), 3, padding=1)

        def forward(self, x):
            return self.conv(field_type(x)).tensor.relu().unflatten(1, (3, 4)).amax(2).mean((-2, -1))

    torch.manual_seed(0)
    network, x = Tied().eval(), torch.randn(12, 2, 8, 8)
    measured = evaluate_invariance(network, [x], action_of(field_type), progress=False)
    assert measured["normalized_logit_invariance_error"].value < 1e-9
    assert measured["saliency_invariance_similarity"].value == pytest.approx(1, abs=1e-5)
    assert evaluate_invariance(network, [x], C4(), progress=False)["normalized_logit_invariance_error"].value > 1e-3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: action_of(gspaces.invOnR3()), "Expected `space` to be a gspace of the plane"),
        (lambda: action_of(gspaces.trivialOnR2()), "symmetry besides the identity"),
        (lambda: action_of(SO2_SPACE, samples=0), "Expected `samples`"),
        (lambda: action_of(SO2_SPACE, seed=0.5), "Expected `seed`"),
        (lambda: action_of(ON_THE_LATTICE["flip about a diagonal"]).act(torch.randn(1, 1, 4, 5), 1), "square images"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_half_turns_and_flips_take_any_image():
    x = torch.randn(2, 1, 4, 5)
    action = action_of(ON_THE_LATTICE["D2"])
    assert [action.labels[index] for index in range(4)] == ["identity", "rot180", "flip", "flip_rot180"]
    assert torch.equal(action.act(x, 1), x.flip(-1, -2))
    assert torch.equal(action.act(x, 3), x.flip(-2))
    assert torch.equal(action.act(x, torch.tensor([3, 2]))[1], x[1].flip(-1))
