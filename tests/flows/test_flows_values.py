"""Flows as values, points, and the actions that are drawn from flows."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_invariance as li
from lightning_invariance import actions

MADE: list[li.Flow] = [
    li.TranslationFlow(),
    li.TranslationFlow(pixels=2.0),
    li.TranslationFlow(window=None),
    li.RotationFlow(),
    li.RotationFlow(window=0.3),
    li.ScalingFlow(),
    li.ScalingFlow(extent=1.0),
    li.ShearFlow(),
    li.BrightnessFlow(),
    li.ContrastFlow(),
    li.ContrastFlow(centre=0.0),
    li.PointRotationFlow(),
    li.PointRotationFlow(dim=-2),
    li.PointTranslationFlow(),
    li.PointTranslationFlow(2),
]


@pytest.mark.parametrize("flow", MADE, ids=repr)
def test_small_immutable_values(flow: li.Flow) -> None:
    assert [other for other in MADE if other == flow] == [flow]
    for twin in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), eval(repr(flow), vars(actions))):
        assert twin == flow
        assert hash(twin) == hash(flow)
    assert len(flow) == len(flow.generators) == len(set(flow.generators))
    action = flow.sampled(3, seed=5)
    assert action.flow == flow
    assert len(action) == 4
    assert action == flow.sampled(3, seed=5) != flow.sampled(3, seed=6)
    again = action.redrawn(7, samples=2)
    assert (len(again), again.flow, again.drawn) == (3, flow, True)
    assert pickle.loads(pickle.dumps(action)).flow == flow


def test_actions_know_their_flow() -> None:
    assert li.SO2(2).flow == li.RotationFlow()
    assert li.SO3(2, dim=-2).flow == li.PointRotationFlow(-2)
    assert li.ScalingRange(0.5, 2.0, 2).flow == li.ScalingFlow()
    for action in (li.C4(), li.O3(2), li.Rotations(8), li.SO3(2) * li.SO3(2, seed=1)):
        assert action.flow is None


def test_elements_are_drawn_from_the_range_of_the_flow() -> None:
    flow = li.BrightnessFlow(extent=0.5)
    x = torch.zeros(1, 1, 2, 2)
    levels = flow.sampled(200).orbit(x)[1:, 0, 0, 0, 0]
    assert -0.5 <= float(levels.min()) < -0.4
    assert 0.4 < float(levels.max()) <= 0.5
    factors = li.ScalingFlow(extent=0.5).sampled(200).factors  # type: ignore[attr-defined]
    assert math.exp(-0.5) <= min(factors) < 0.65
    assert 1.55 < max(factors) <= math.exp(0.5)


def test_an_element_moves_along_all_generators_and_back() -> None:
    wave = torch.linspace(0, 2 * math.pi, 17, dtype=torch.float64)[:16]
    x = (wave.sin() * (2 * wave).cos()[:, None])[None, None]
    action = li.TranslationFlow(window=None, extent=3.0).sampled(4)
    for element in range(1, 5):
        moved = action.act(x, element)
        assert float((moved - x).abs().max()) > 0.1
        torch.testing.assert_close(action.invert(moved, element), x)
    fresh, index = action.fresh(6, torch.Generator().manual_seed(0))
    assert len({tuple(row) for row in fresh._times}) == len(index) == 6  # type: ignore[attr-defined]


def test_points_turn_by_the_right_hand() -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flow = li.PointRotationFlow()
    for axis, generator in enumerate(flow.generators):
        cross = torch.linalg.cross(torch.eye(3, dtype=torch.float64)[axis].expand_as(x), x)
        torch.testing.assert_close(flow.tangent(x, generator), cross)
        matrix = torch.linalg.matrix_exp(
            0.8
            * torch.linalg.cross(
                torch.eye(3, dtype=torch.float64)[axis].expand(3, 3), torch.eye(3, dtype=torch.float64)
            ).T
        )
        torch.testing.assert_close(flow.move(x, generator, 0.8), x @ matrix.T)
        columns = li.PointRotationFlow(dim=-2).move(x.mT, generator, 0.8).mT
        torch.testing.assert_close(columns, x @ matrix.T)


# Functions of t --------------------------------------------------------------------------------------------------


def gain(x: Tensor, t: Tensor) -> Tensor:
    return x * t.exp()


def test_a_function_of_ones_own() -> None:
    flow = li.FunctionFlow({"gain": gain})
    assert flow == li.FunctionFlow({"gain": gain}) != li.FunctionFlow({"level": gain})
    action = pickle.loads(pickle.dumps(flow.sampled(3)))
    assert action == flow.sampled(3)
    x = torch.randn(4, 6)
    action.verify(x)
    torch.testing.assert_close(action.invert(action.act(x, 1), 1), x)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(flow.tangent(x, "gain").square().sum(), x)
    torch.testing.assert_close(gradient, 2 * x)
    assert not flow.tangent(x.detach(), "gain").requires_grad
    with torch.inference_mode():
        inside = flow.move(x, "gain", 0.0)
        assert torch.equal(flow.tangent(x.clone(), "gain"), x)
    assert torch.equal(inside, x)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x, t: x[:1] * t.exp(), "to keep the shape"),
        (lambda x, t: x.double() * t.exp(), "to keep the shape .* and torch.float32"),
        (lambda x, t: x + 0.1 + t, "to give the batch back for t = 0, but for rounding"),
        (lambda x, t: x * 1.0, "to be differentiable in t"),
        (lambda x, t: x * float(t.detach().exp()), "to be differentiable in t"),
    ],
)
def test_functions_that_cannot_be_meant(function: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        li.FunctionFlow({"strange": function}).tangent(torch.ones(2, 3), "strange")


def test_a_function_whose_inverse_is_not_that_of_minus_t_is_found() -> None:
    flow = li.FunctionFlow({"strange": lambda x, t: x.roll(1, -1) * t.abs() + x * (1 - t.abs())})
    with pytest.raises(ValueError, match="to undo it, but it does not"):
        flow.sampled(3).verify(torch.randn(4, 8))
