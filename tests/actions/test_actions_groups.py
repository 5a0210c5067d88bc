"""Multiplication tables say what acting twice does."""

from __future__ import annotations

import pytest
import torch
from actions_catalogue import Case, each, mixed_colours, signed_permutations, three_cycle_alone
from torch import Tensor

import lightning_invariance as li

GROUPS: dict[str, Case] = {
    "C4": Case(li.C4, (1, 12, 12)),
    "D4": Case(li.D4, (1, 12, 12)),
    "TimeReversal": Case(li.TimeReversal, (1, 7)),
    **{f"CyclicTranslations({n})": Case(lambda n=n: li.CyclicTranslations(n), (1, 3 * n)) for n in (1, 5)},
    **{f"Rotations({n})": Case(lambda n=n: li.Rotations(n), (1, 24, 24)) for n in (1, 4, 7)},
    "flips": Case(lambda: li.HorizontalFlip() * li.VerticalFlip(), (1, 4, 5)),
    "signed permutations of 3": Case(lambda: li.LinearAction(signed_permutations(3)), (1, 5, 3)),
    "shifts both ways": Case(lambda: li.CyclicTranslations(3) * li.CyclicTranslations(2, dim=-2), (1, 4, 6)),
}


def bump(shape: tuple[int, ...]) -> Tensor:
    """A smooth blob off the centre of an image (rotations keep it inside); elsewhere distinct values."""
    if shape[-2:] != (24, 24):
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.meshgrid(torch.arange(24.0) - 11.5, torch.arange(24.0) - 11.5, indexing="ij")
    return torch.exp(-((rows + 2) ** 2 + (columns - 6) ** 2) / 6)[None]


@each(GROUPS)
def test_acting_twice_is_acting_with_the_product(case: Case) -> None:
    action, x = case.make(), bump(case.shape)
    table = action.cayley_table
    assert table is not None
    assert (table.dtype, table.shape) == (torch.int64, (len(action), len(action)))
    orbit = action.orbit(x).flatten(1)
    step = max(1, len(action) // 12)
    for i in range(0, len(action), step):
        for j in range(0, len(action), step):
            twice = action.act(action.act(x, j), i).flatten()
            distances = (orbit - twice).norm(dim=1)
            assert int(distances.argmin()) == int(table[i, j])


def rotation_by(degrees: float) -> Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_group_of_matrices_is_found_in_either_precision(dtype: torch.dtype) -> None:
    turns = torch.stack([torch.eye(2, dtype=torch.float64), rotation_by(120), rotation_by(240)]).to(dtype)
    for action in (li.LinearAction(turns), li.AffineAction(torch.cat([turns, turns.new_zeros(3, 2, 1)], dim=2))):
        assert action.cayley_table is not None
        assert action.cayley_table.tolist() == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]


UNKNOWN: list[li.Action] = [
    li.SetPermutations(1, dim=-1, padding=0),
    li.ScalingRange(0.5, 2.0, 3),
    li.SO2(3),
    li.SO3(3),
    li.Scalings([0.5, 2.0]),
    li.C4() * li.CyclicTranslations(3),
    li.C4() * li.SetPermutations(2),
    li.SO3(2) * li.HorizontalFlip(),
    li.HorizontalFlip() * li.TimeReversal(),
    three_cycle_alone(),
    mixed_colours(),
    li.FunctionAction([(torch.neg, torch.neg)]) * li.C4(),
    # Where an element is listed twice.
    li.Scalings([1.0]),
    li.PermutationAction(torch.tensor([[0, 1], [0, 1]])),
    li.LinearAction(torch.eye(2).expand(3, 2, 2)),
]


@pytest.mark.parametrize("action", UNKNOWN, ids=repr)
def test_no_table_where_the_elements_are_no_known_group(action: li.Action) -> None:
    assert action.cayley_table is None
