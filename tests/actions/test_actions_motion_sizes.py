"""How far each element moves is read off what it does to places whose way is known."""

from __future__ import annotations

from math import acos, degrees

import pytest
import torch

from lightning_invariance import (
    C4,
    D4,
    O3,
    SO3,
    Action,
    AffineAction,
    BrightnessFlow,
    CyclicTranslations,
    FieldAction,
    HorizontalFlip,
    LinearAction,
    Rotations,
    Scalings,
    TranslationFlow,
)

X = torch.zeros(1, 1, 8, 12)


def test_rotations_of_space_turn_by_the_angle_between_a_matrix_and_the_identity() -> None:
    action = SO3(samples=20, seed=3)
    found = action.motion_sizes(torch.zeros(1, 5, 3))
    assert found is not None
    assert found.heading == "angle, degrees"
    for element, angle in enumerate(found.values):
        matrix = action.act(torch.eye(3, dtype=torch.float64)[None], element)[0].T
        assert angle == pytest.approx(degrees(acos((float(matrix.trace()) - 1) / 2)), abs=1e-4)


def test_a_small_angle_is_not_lost() -> None:
    turn = torch.tensor(1e-7, dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 0] = matrix[1, 1] = turn.cos()
    matrix[1, 0], matrix[0, 1] = turn.sin(), -turn.sin()
    found = LinearAction(torch.stack([torch.eye(3, dtype=torch.float64), matrix])).motion_sizes(X)
    assert found is not None
    assert found.values == pytest.approx((0.0, degrees(1e-7)), rel=1e-6)


def test_shifts_go_as_many_places_as_the_first_one_does() -> None:
    for dim in (-1, -2):
        action = CyclicTranslations(4, dim)
        found = action.motion_sizes(X)
        assert found is not None
        spot = torch.zeros(1, 1, 8, 12)
        spot[..., 0, 0] = 1
        ways = [float(action.act(spot, element).amax(dim=-3 - dim).squeeze().argmax()) for element in range(4)]
        assert list(found.values) == ways


@pytest.mark.parametrize(
    ("action", "values"),
    [
        (Rotations(8), (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)),
        (C4(), (0.0, 90.0, 180.0, 270.0)),
        (Scalings([0.5, 2.0]), (1.0, 0.5, 2.0)),
        (FieldAction(C4(), LinearAction(torch.eye(2).expand(4, 2, 2), dim=-3)), (0.0, 90.0, 180.0, 270.0)),
    ],
)
def test_sizes_are_in_the_order_of_the_elements(action: Action, values: tuple[float, ...]) -> None:
    found = action.motion_sizes(X)
    assert found is not None
    assert found.values == pytest.approx(values)


@pytest.mark.parametrize(
    "action",
    [
        D4(),
        HorizontalFlip(),
        O3(samples=8),  # with reflections
        C4() * CyclicTranslations(2),
        TranslationFlow().sampled(3),  # two ways at once
        LinearAction(torch.stack([torch.eye(3), torch.eye(3).flip(0)])),
        LinearAction(torch.stack([torch.eye(3), 2 * torch.eye(3)])),
        AffineAction(torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[1.0, 0, 1.0], [0, 1, 0]]])),
    ],
)
def test_what_is_no_single_number_has_no_size(action: Action) -> None:
    assert action.motion_sizes(X) is None


def test_a_flow_of_one_generator_has_its_times() -> None:
    action = BrightnessFlow().sampled(3)
    found = action.motion_sizes(X)
    assert found is not None
    assert found.heading == "t of brightness"
    assert found.values == pytest.approx([float(action.act(X, element).mean()) for element in range(4)])
