"""Matrices on one dimension against numpy, and what the drawn ones are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from actions_catalogue import signed_permutations
from torch import Tensor

from lightning_invariance.actions import O3, SO3, LinearAction

MATRICES = torch.cat(
    [
        torch.eye(3, dtype=torch.float64)[None],
        torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64),
    ]
)
SHAPES = [
    pytest.param(-1, (4, 3), id="vectors"),
    pytest.param(-1, (4, 5, 3), id="points"),
    pytest.param(-1, (4, 2, 5, 3), id="sets-of-points"),
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
def test_act_multiplies_by_the_matrix(dim: int, shape: tuple[int, ...]) -> None:
    action, x = LinearAction(MATRICES, dim=dim), batch(shape)
    for element in range(5):
        close(action.act(x, element), multiplied(x, MATRICES[element], dim))


@pytest.mark.parametrize(("dim", "shape"), SHAPES)
def test_invert_multiplies_by_the_inverse(dim: int, shape: tuple[int, ...]) -> None:
    action, x = LinearAction(MATRICES, dim=dim), batch(shape)
    for element in range(5):
        inverse = torch.from_numpy(np.linalg.inv(MATRICES[element].numpy()))
        close(action.invert(x, element), multiplied(x, inverse, dim))


@pytest.mark.parametrize(("dim", "shape"), SHAPES)
def test_one_matrix_a_sample(dim: int, shape: tuple[int, ...]) -> None:
    action, x = LinearAction(MATRICES, dim=dim), batch(shape)
    index = torch.tensor([4, 0, 2, 1])
    moved, back = action.act(x, index), action.invert(x, index)
    for sample, element in enumerate(index.tolist()):
        inverse = torch.from_numpy(np.linalg.inv(MATRICES[element].numpy()))
        close(moved[sample], multiplied(x[sample : sample + 1], MATRICES[element], dim)[0])
        close(back[sample], multiplied(x[sample : sample + 1], inverse, dim)[0])


@pytest.mark.parametrize(("dim", "shape"), SHAPES)
def test_orbit_multiplies_by_every_matrix(dim: int, shape: tuple[int, ...]) -> None:
    action, x = LinearAction(MATRICES, dim=dim), batch(shape)
    orbit = action.orbit(x)
    for element in range(5):
        close(orbit[element], multiplied(x, MATRICES[element], dim))


def test_signed_permutations_only_move_and_negate() -> None:
    matrices = signed_permutations(3)
    action = LinearAction(matrices)
    x = batch((2, 4, 3)).float()
    for element in range(48):
        order = matrices[element].abs().argmax(dim=1)
        signs = matrices[element].sum(dim=1)
        assert torch.equal(action.act(x, element), signs * x[..., order])


def drawn_matrices(action: SO3 | O3) -> Tensor:
    """Read off the basis vectors' images; shape ``(|G|, 3, 3)``."""
    basis = torch.eye(3, dtype=torch.float64)[None]
    return action.orbit(basis)[:, 0].mT


@pytest.mark.parametrize("kind", [SO3, O3])
def test_drawn_matrices_are_orthogonal(kind: type[SO3 | O3]) -> None:
    matrices = drawn_matrices(kind(32))
    assert matrices.shape == (33, 3, 3)
    close(matrices @ matrices.mT, torch.eye(3, dtype=torch.float64).expand(33, 3, 3))
    assert torch.equal(matrices[0], torch.eye(3, dtype=torch.float64))


def test_rotations_have_determinant_1() -> None:
    close(torch.linalg.det(drawn_matrices(SO3(32))), torch.ones(33, dtype=torch.float64))


def test_reflections_are_drawn_too() -> None:
    determinants = torch.linalg.det(drawn_matrices(O3(64)))[1:]
    close(determinants.abs(), torch.ones(64, dtype=torch.float64))
    assert 16 <= int((determinants > 0).sum()) <= 48


@pytest.mark.parametrize("kind", [SO3, O3])
def test_draws_by_the_seed(kind: type[SO3 | O3]) -> None:
    first, again, other = (drawn_matrices(kind(4, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert float((first[1:] - other[1:]).abs().amax(dim=(1, 2)).min()) > 1e-3
    assert len(first.flatten(1).unique(dim=0)) == 5


@pytest.mark.parametrize("kind", [SO3, O3])
def test_drawing_leaves_the_random_stream_alone(kind: type[SO3 | O3]) -> None:
    before = torch.get_rng_state()
    kind(4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [SO3, O3])
def test_distances_stay(kind: type[SO3 | O3]) -> None:
    points = batch((2, 6, 3))
    between = torch.cdist(points, points)
    for moved in kind(3).orbit(points):
        close(torch.cdist(moved, moved), between, atol=1e-6)


def test_coordinates_in_any_dimension() -> None:
    points = batch((2, 6, 3))
    close(SO3(3, dim=-2).act(points.mT, 2).mT, SO3(3).act(points, 2))


def test_the_matrices_are_copied() -> None:
    matrices = MATRICES.clone()
    action = LinearAction(matrices)
    matrices.zero_()
    x = batch((2, 3))
    close(action.act(x, 1), multiplied(x, MATRICES[1], -1))
