"""Multiplication tables: those of the books, and that they say what acting twice does."""

from __future__ import annotations

from functools import cache

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


@cache
def table_of(name: str) -> list[list[int]]:
    action = GROUPS[name].make()
    table = action.cayley_table
    assert table is not None
    assert table.dtype == torch.int64
    assert table.shape == (len(action), len(action))
    return table.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["C4", *(name for name in GROUPS if name.startswith(("Cyclic", "Rotations")))])
def test_cyclic_groups_add_modulo_their_order(name: str) -> None:
    order = len(table_of(name))
    assert table_of(name) == [[(i + j) % order for j in range(order)] for i in range(order)]


def test_the_dihedral_group_multiplies_as_in_the_books() -> None:
    # Element 4·f + r is r turns after f flips, and a flip turns the sense of a turn: F R = R^-1 F.
    def times(i: int, j: int) -> int:
        (f, r), (e, s) = divmod(i, 4), divmod(j, 4)
        return 4 * ((f + e) % 2) + (r + (-s if f else s)) % 4

    assert table_of("D4") == [[times(i, j) for j in range(8)] for i in range(8)]


def test_products_of_groups() -> None:
    assert table_of("flips") == [[i ^ j for j in range(4)] for i in range(4)]  # Klein's group
    both = [[2 * ((i // 2 + j // 2) % 3) + (i + j) % 2 for j in range(6)] for i in range(6)]
    assert table_of("shifts both ways") == both


def test_matrices_multiply_as_matrices() -> None:
    matrices = signed_permutations(3)
    table = table_of("signed permutations of 3")
    for i in range(0, 48, 5):
        for j in range(48):
            assert torch.equal(matrices[table[i][j]], matrices[i] @ matrices[j])


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
    orbit = action.orbit(x).flatten(1)
    step = max(1, len(action) // 8)
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
