"""The selectivity of networks whose invariance is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_invariance import C4, HorizontalFlip, Selectivity, evaluate_orbit, evaluate_perturbations
from lightning_invariance.baselines import OrbitPooled
from lightning_invariance.functional import selectivity
from lightning_invariance.metrics import Estimate


def images(samples: int = 200, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(samples, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def linear(outputs: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, outputs)).to(dtype)


def estimated(network: Any, x: Tensor, action: Any = None, **options: Any) -> Estimate:
    """In batches, each with directions of its own."""
    action = C4() if action is None else action
    metric, generator = Selectivity(**options), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for part in x.split(70):
            outputs = evaluate_orbit(network, part, action)
            directions = torch.randn(len(action) - 1, *part.shape, generator=generator, dtype=part.dtype)
            perturbed = evaluate_perturbations(network, part, action, directions=directions)
            metric.update(outputs.logits, outputs.orbit_logits, perturbed)
    return metric.compute_with_error()


def test_an_average_over_the_group_has_a_selectivity_of_0() -> None:
    value, error = estimated(OrbitPooled(linear(10), C4()), images())
    assert value < 1e-10
    assert error < 1e-10


@pytest.mark.parametrize("action", [C4(), HorizontalFlip()], ids=repr)
def test_a_network_that_knows_nothing_of_the_group_has_one_near_1(action: Any) -> None:
    """With many outputs a random map is as long in every direction, but for 1 / √outputs."""
    value, error = estimated(linear(1000), images(), action)
    assert 0 < error < 0.05
    assert abs(value - 1) < 4 * error


def test_a_network_that_sees_the_pose_alone_has_one_above_1() -> None:
    def pose(x: Tensor) -> Tensor:
        return torch.stack([x[..., :3].mean(dim=(1, 2, 3)), x[..., 3:].mean(dim=(1, 2, 3))], dim=1)

    ramp = torch.linspace(-1, 1, 6).expand(50, 1, 6, 6)
    assert estimated(pose, ramp + 0.01 * images(50), HorizontalFlip()).value > 5


@pytest.mark.parametrize("constant", [0.0, 3.7])
def test_a_constant_output_has_none(constant: float) -> None:
    with pytest.warns(UserWarning, match="selectivity is undefined"):
        assert estimated(lambda z: z.flatten(1)[:, :3] * 0 + constant, images()).value.isnan()
    with pytest.warns(UserWarning, match="selectivity is undefined"):
        # Rounding of two nearly equal numbers.
        assert estimated(lambda z: z.flatten(1)[:, :3] * 1e-7 + 1.0, images()).value.isnan()


def test_inputs_that_the_group_leaves_as_they_are_do_not_count() -> None:
    network, x = linear(10), images(60)
    still = torch.ones(40, 1, 6, 6)
    expected = estimated(network, x)
    value, _ = estimated(network, torch.cat([x, still]))
    assert value == pytest.approx(float(expected.value), rel=0.1)  # other directions are drawn
    with pytest.warns(UserWarning, match="selectivity is undefined"):
        assert estimated(network, still).value.isnan()


def test_an_element_that_moves_nothing_has_none() -> None:
    base, orbit = torch.zeros(2, 3), torch.ones(2, 2, 3)
    perturbed = torch.stack([torch.zeros(2, 3), 2 * torch.ones(2, 3)])
    with pytest.warns(UserWarning, match="selectivity is undefined"):
        values = selectivity(base, orbit, perturbed, reduction="element")
    assert values[0].isnan()
    assert values[1] == 0.25


# Perturbations ----------------------------------------------------------------------------------------------------


def test_perturbations_are_as_large_as_what_the_group_does() -> None:
    x = images(5, torch.float64)
    x[3] = 1.0  # which no element moves
    perturbed = evaluate_perturbations(nn.Identity(), x, C4())
    for k in (1, 2, 3):
        sizes = (torch.rot90(x, k, (2, 3)) - x).flatten(1).norm(dim=1)
        torch.testing.assert_close((perturbed[k - 1] - x).flatten(1).norm(dim=1), sizes)
        assert torch.equal(perturbed[k - 1, 3], x[3])


def test_directions_are_given_or_drawn_without_a_trace() -> None:
    x = images(5)
    stream = torch.get_rng_state()
    drawn = evaluate_perturbations(nn.Identity(), x, C4())
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(drawn, evaluate_perturbations(nn.Identity(), x, C4(), max_batch=4))
    directions = torch.randn(3, *x.shape)
    given = evaluate_perturbations(nn.Identity(), x, C4(), directions=directions) - x
    cosines = torch.cosine_similarity(given.flatten(2), directions.flatten(2), dim=2)
    torch.testing.assert_close(cosines, torch.ones(3, 5))


def test_directions_are_uniform() -> None:
    moved = (evaluate_perturbations(nn.Identity(), images(2000), C4()) - images(2000)).flatten(2)
    units = (moved / moved.norm(dim=2, keepdim=True)).flatten(0, 1)
    assert units.mean(dim=0).norm() < 0.05
    torch.testing.assert_close(36 * units.T @ units / len(units), torch.eye(36), rtol=0.0, atol=0.1)


def test_half_precision_and_gradients() -> None:
    network, x = linear(4), images(3).requires_grad_()
    evaluate_perturbations(network, x, C4()).sum().backward()
    assert x.grad is not None
    perturbed = evaluate_perturbations(nn.Identity(), images(3).bfloat16(), C4())
    assert perturbed.dtype == torch.bfloat16
