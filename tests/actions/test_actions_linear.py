"""Matrices on one dimension against numpy, and what the drawn ones are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_invariance.actions import O3, SO3, LinearAction

MATRICES = torch.cat(
    [
        torch.eye(3, dtype=torch.float64)[None],
        torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64),
    ]
)
SHAPES = [
    pytest.param(-1, (4, 5, 3), id="points"),
    pytest.param(-2, (4, 3, 5), id="coordinates-first"),
    pytest.param(-3, (4, 3, 2, 5), id="colours"),
    pytest.param(-4, (4, 3, 2, 2, 3), id="colours-of-a-volume"),
]


def multiplied(x: Tensor, matrix: Tensor, dim: int) -> Tensor:
    moved = np.apply_along_axis(lambda vector: matrix.numpy() @ vector, dim, x.numpy())
    return torch.from_numpy(moved)


def batch(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def close(got: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("dim", "shape"), SHAPES)
def test_multiplied_by_the_matrix_or_by_its_inverse(dim: int, shape: tuple[int, ...]) -> None:
    action, x = LinearAction(MATRICES, dim=dim), batch(shape)
    moved = torch.stack([multiplied(x, matrix, dim) for matrix in MATRICES])
    back = torch.stack([multiplied(x, torch.from_numpy(np.linalg.inv(matrix.numpy())), dim) for matrix in MATRICES])
    close(action.orbit(x), moved)
    for element in range(5):
        close(action.act(x, element), moved[element])
        close(action.invert(x, element), back[element])
    index, samples = torch.tensor([4, 0, 2, 1]), torch.arange(4)
    close(action.act(x, index), moved[index, samples])
    close(action.invert(x, index), back[index, samples])


def drawn_matrices(action: SO3 | O3) -> Tensor:
    """Read off the basis vectors' images; shape ``(|G|, 3, 3)``."""
    basis = torch.eye(3, dtype=torch.float64)[None]
    return action.orbit(basis)[:, 0].mT


@pytest.mark.parametrize("kind", [SO3, O3])
def test_drawn_matrices_are_orthogonal_and_go_by_their_seed(kind: type[SO3 | O3]) -> None:
    before = torch.get_rng_state()
    first, again, other = (drawn_matrices(kind(64, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    close(first @ first.mT, torch.eye(3, dtype=torch.float64).expand(65, 3, 3))
    assert torch.equal(first[0], torch.eye(3, dtype=torch.float64))
    determinants = torch.linalg.det(first)
    close(determinants.abs(), torch.ones(65, dtype=torch.float64))
    assert 16 <= int((determinants[1:] > 0).sum()) <= 48 if kind is O3 else bool((determinants > 0).all())
    assert torch.equal(first, again)
    assert len(torch.cat([first, other[1:]]).flatten(1).unique(dim=0)) == 129


def test_coordinates_in_any_dimension() -> None:
    points = batch((2, 6, 3))
    close(SO3(3, dim=-2).act(points.mT, 2).mT, SO3(3).act(points, 2))


def test_the_matrices_are_copied() -> None:
    matrices = MATRICES.clone()
    action = LinearAction(matrices)
    matrices.zero_()
    x = batch((2, 3))
    close(action.act(x, 1), multiplied(x, MATRICES[1], -1))
