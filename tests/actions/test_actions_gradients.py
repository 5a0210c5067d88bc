"""Gradients through every action, and inference mode around it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from actions_catalogue import (
    AFFINE,
    EVERY,
    LINEAR,
    PERMUTATIONS,
    Case,
    batch_for,
    each,
    indices_for,
    mixed_colours,
    signed_permutations,
)

from lightning_invariance.actions import SO3, Action, AffineAction, LinearAction, PermutationAction, Rotations


@each(EVERY)
@pytest.mark.parametrize("method", ["act", "invert"])
def test_gradcheck(case: Case, method: str) -> None:
    action = case.make()
    x = batch_for(case, torch.float64)[:2, ..., :].requires_grad_()
    apply = getattr(action, method)
    assert torch.autograd.gradcheck(lambda x: apply(x, len(action) - 1), x, fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: apply(x, torch.tensor([1, 0])), x, fast_mode=True)


@each(EVERY)
def test_gradcheck_of_the_orbit(case: Case) -> None:
    action = case.make()
    x = batch_for(case, torch.float64)[:2].requires_grad_()
    assert torch.autograd.gradcheck(action.orbit, x, fast_mode=True)


@pytest.mark.parametrize("make", [mixed_colours, lambda: Rotations(3) * mixed_colours()], ids=["linear", "product"])
def test_slow_gradcheck(make: Callable[[], Action]) -> None:
    x = torch.randn(2, 3, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    action = make()
    assert torch.autograd.gradcheck(lambda x: action.act(x, torch.tensor([2, 1])), x)
    assert torch.autograd.gradgradcheck(lambda x: action.act(x, torch.tensor([2, 1])).square(), x)


@each(PERMUTATIONS)
def test_the_adjoint_of_a_permutation_is_its_inverse(case: Case) -> None:
    action = case.make()
    x = batch_for(case).requires_grad_()
    y = batch_for(case, seed=1)
    for element in range(len(action)):
        (gradient,) = torch.autograd.grad((action.act(x, element) * y).sum(), x)
        assert torch.equal(gradient, action.invert(y, element))
    index = indices_for(action, x)
    (gradient,) = torch.autograd.grad((action.act(x, index) * y).sum(), x)
    assert torch.equal(gradient, action.invert(y, index))


@each(LINEAR, without=["LinearAction-dim-3"])
def test_the_adjoint_of_an_orthogonal_matrix_is_its_inverse(case: Case) -> None:
    action = case.make()
    x = batch_for(case, torch.float64).requires_grad_()
    y = batch_for(case, torch.float64, seed=1)
    for element in (*range(len(action)), indices_for(action, x)):
        (gradient,) = torch.autograd.grad((action.act(x, element) * y).sum(), x)
        torch.testing.assert_close(gradient, action.invert(y, element))


def test_the_adjoint_of_a_matrix_is_its_transpose() -> None:
    matrix = torch.tensor([[1.0, 2.0], [0.5, 3.0]], dtype=torch.float64)
    action = LinearAction(torch.stack([torch.eye(2, dtype=torch.float64), matrix]))
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[1.0, -1.0], [2.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((action.act(x, 1) * y).sum(), x)
    # (1, -1): (1·1 - 1·0.5, 1·2 - 1·3), and so on.
    torch.testing.assert_close(gradient, torch.tensor([[0.5, -1.0], [2.0, 4.0], [2.5, 15.0]], dtype=torch.float64))
    (gradient,) = torch.autograd.grad((action.act(x, torch.tensor([1, 0, 1])) * y).sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([[0.5, -1.0], [2.0, 0.0], [2.5, 15.0]], dtype=torch.float64))


@each(AFFINE, LINEAR)
def test_gradients_keep_half_precision(case: Case) -> None:
    action = case.make()
    x = batch_for(case, torch.bfloat16).requires_grad_()
    action.act(x, indices_for(action, x)).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def train_on(action: Action, case: Case) -> None:
    for dtype in (torch.float32, torch.float64):
        x = batch_for(case, dtype).requires_grad_()
        index = indices_for(action, x)
        for out in (action.act(x, 1), action.invert(x, 1), action.act(x, index), action.invert(x, index)):
            (gradient,) = torch.autograd.grad(out.square().sum(), x)
            assert bool(gradient.abs().sum() > 0)


@each(EVERY)
def test_training_after_use_in_inference_mode(case: Case) -> None:
    action = case.make()
    for dtype in (torch.float32, torch.float64):
        with torch.inference_mode():
            x = batch_for(case, dtype)
            index = indices_for(action, x)
            action.invert(action.act(x, 1), 1)
            action.invert(action.act(x, index), index)
            action.orbit(x)
    train_on(action, case)


@each(EVERY)
def test_training_after_making_in_inference_mode(case: Case) -> None:
    with torch.inference_mode():
        action = case.make()
    train_on(action, case)


def test_constants_carry_no_gradient() -> None:
    matrices = signed_permutations(2).requires_grad_()
    maps = torch.eye(2, 3).repeat(2, 1, 1).requires_grad_()
    assert not LinearAction(matrices).act(torch.ones(1, 2), 1).requires_grad
    assert not AffineAction(maps).act(torch.ones(1, 2, 2), 1).requires_grad
    assert not SO3(1).act(torch.ones(1, 3), 1).requires_grad
    assert not PermutationAction(torch.tensor([[0, 1], [1, 0]])).act(torch.ones(1, 2), 1).requires_grad
