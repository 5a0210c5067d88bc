"""Saliency maps against closed forms, captum, and the paper's recipe written out in numpy."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import leggauss
from scipy.ndimage import correlate
from torch import Tensor, nn

from lightning_invariance import (
    C4,
    Gradient,
    InputXGradient,
    IntegratedGradients,
    PaperSaliency,
    Saliency,
    evaluate_orbit,
)
from lightning_invariance.saliency import as_saliency

SAMPLES, SIDE, CLASSES = 4, 6, 3
EVERY: list[Saliency] = [Gradient(), InputXGradient(), IntegratedGradients(steps=9), PaperSaliency(steps=5)]
every = pytest.mark.parametrize("saliency", EVERY, ids=repr)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(5 * SIDE * SIDE, CLASSES), nn.Softplus()
    ).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(SAMPLES, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def target() -> Tensor:
    return torch.tensor([0, 2, 1, 1])


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(6, CLASSES).double()


# Values ----------------------------------------------------------------------------------------------------------


def test_a_linear_network_in_closed_form(linear: nn.Linear, target: Tensor) -> None:
    x = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = linear.weight.detach()[target]
    for saliency, expected in (
        (Gradient(), weights),
        (InputXGradient(), x * weights),
        (IntegratedGradients(steps=3), x * weights),
        (IntegratedGradients(steps=1, baseline=0.5), (x - 0.5) * weights),
    ):
        logits, maps = saliency(linear, x, target)
        torch.testing.assert_close(logits, linear(x).detach())
        torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_the_quadrature_is_exact_for_polynomials(steps: int) -> None:
    """n points integrate degree 2 n - 1 exactly: the gradient of sum x^(2 n)."""
    x = torch.tensor([[0.5, -1.0, 1.25]], dtype=torch.float64)

    def network(x: Tensor) -> Tensor:
        return torch.stack([(x ** (2 * steps)).sum(dim=1), x.sum(dim=1)], dim=1)

    _, maps = IntegratedGradients(steps=steps)(network, x, torch.tensor([0]))
    torch.testing.assert_close(maps, x ** (2 * steps), rtol=1e-10, atol=1e-12)


def test_gradients_agree_with_captum(network: nn.Module, x: Tensor, target: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    signed = captum.attr.Saliency(network).attribute(leaf, target=target, abs=False)
    torch.testing.assert_close(Gradient()(network, x, target)[1], signed)
    torch.testing.assert_close(
        InputXGradient()(network, x, target)[1],
        captum.attr.InputXGradient(network).attribute(leaf, target=target).detach(),
    )


@pytest.mark.parametrize("steps", [1, 2, 7, 32, 50])
@pytest.mark.parametrize("baseline", [0.0, -0.7])
def test_integrated_gradients_agree_with_captum(
    network: nn.Module, x: Tensor, target: Tensor, steps: int, baseline: float
) -> None:
    expected = captum.attr.IntegratedGradients(network).attribute(
        x, baselines=baseline, target=target, n_steps=steps, method="gausslegendre"
    )
    _, maps = IntegratedGradients(steps=steps, baseline=baseline)(network, x, target)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("baseline", [0.0, 1.5])
def test_integrated_gradients_add_up_to_the_gain_in_the_logit(
    network: nn.Module, x: Tensor, target: Tensor, baseline: float
) -> None:
    logits, maps = IntegratedGradients(steps=40, baseline=baseline)(network, x, target)
    gain = (logits - network(torch.full_like(x, baseline)))[torch.arange(SAMPLES), target]
    torch.testing.assert_close(maps.flatten(1).sum(dim=1), gain.detach(), rtol=1e-6, atol=1e-8)


def paper_maps(network: nn.Module, x: Tensor, target: Tensor, steps: int, baseline: float) -> np.ndarray:
    """Section 4.1 step by step."""
    nodes, weights = leggauss(steps)
    integrated = np.zeros(x.shape)
    for node, weight in zip(nodes, weights, strict=True):
        point = (baseline + (node + 1) / 2 * (x - baseline)).requires_grad_()
        chosen = network(point)[torch.arange(len(x)), target].sum()
        integrated += weight / 2 * torch.autograd.grad(chosen, point)[0].numpy()
    maps = np.abs((x.numpy() - baseline) * integrated)
    kernel = np.exp(-(np.arange(-1, 2)[:, None] ** 2 + np.arange(-1, 2) ** 2) / 2)
    kernel /= kernel.sum()
    for sample in maps:
        sample[sample < 0.9 * sample.max()] = 0
        for channel in sample:
            channel[:] = correlate(channel.copy(), kernel, mode="constant", cval=0.0)
    return maps


@pytest.mark.parametrize(("steps", "baseline"), [(5, 0.0), (8, 1.0)])
def test_the_papers_maps_step_by_step(
    network: nn.Module, x: Tensor, target: Tensor, steps: int, baseline: float
) -> None:
    expected = paper_maps(network, x, target, steps, baseline)
    _, maps = PaperSaliency(steps=steps, baseline=baseline)(network, x, target)
    np.testing.assert_allclose(maps.numpy(), expected, rtol=1e-8, atol=1e-12)
    peaks = [np.count_nonzero(sample) for sample in expected]
    assert all(0 < count < expected[0].size for count in peaks)


def test_the_papers_maps_of_a_peak_at_the_border_lose_what_falls_outside() -> None:
    def network(x: Tensor) -> Tensor:
        return torch.stack([10 * x[:, 0, 0], x.sum(dim=(1, 2))], dim=1)

    _, maps = PaperSaliency()(network, torch.ones(1, 4, 4), torch.tensor([0]))
    side = np.exp(-np.array([0.0, 1.0]) / 2) / (1 + 2 * np.exp(-0.5))
    np.testing.assert_allclose(maps[0, :2, :2].numpy(), 10 * np.outer(side, side), rtol=1e-5)
    assert maps[0, 2:].abs().max() == 0


def test_the_predicted_class_is_explained_without_a_target(network: nn.Module, x: Tensor) -> None:
    predicted = network(x).argmax(dim=1)
    for saliency in EVERY:
        torch.testing.assert_close(saliency(network, x)[1], saliency(network, x, predicted)[1])


# Conditions ------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("max_batch", [1, 3, 4, 9, 100])
def test_chunks_give_the_same(
    saliency: Saliency, network: nn.Module, x: Tensor, target: Tensor, max_batch: int, labelled: bool
) -> None:
    sizes: list[int] = []

    def counting(x: Tensor) -> Tensor:
        sizes.append(len(x))
        output: Tensor = network(x)
        return output

    chosen = target if labelled else None
    whole = saliency(network, x, chosen)
    parts = saliency(counting, x, chosen, max_batch)
    torch.testing.assert_close(parts, whole)
    assert max(sizes) <= max_batch


@every
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, nullcontext])
@pytest.mark.parametrize("max_batch", [None, 3])
def test_maps_in_every_mode(
    saliency: Saliency, network: nn.Module, x: Tensor, target: Tensor, context: Any, max_batch: int | None
) -> None:
    expected = saliency(network, x, target)
    with context():
        # Made in here, as the batches of `Trainer.validate` are.
        logits, maps = saliency(network, x.clone(), target.clone(), max_batch)
    torch.testing.assert_close((logits, maps), expected)
    assert maps.abs().max() > 0
    assert not maps.requires_grad
    assert not logits.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def gradient_function(network: Any, x: Tensor, target: Tensor) -> Tensor:
    return torch.autograd.grad(network(x)[torch.arange(len(x)), target].sum(), x)[0]


@pytest.mark.parametrize("kind", ["class", "instance", "function"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, nullcontext])
@pytest.mark.parametrize("max_batch", [None, 3])
@pytest.mark.parametrize("labelled", [False, True])
def test_captum_and_functions(
    network: nn.Module, x: Tensor, target: Tensor, kind: str, context: Any, max_batch: int | None, labelled: bool
) -> None:
    given: Any = {
        "class": captum.attr.InputXGradient,
        "instance": captum.attr.InputXGradient(network),
        "function": lambda network, x, target: x * gradient_function(network, x, target),
    }[kind]
    chosen = target if labelled else None
    expected = InputXGradient()(network, x, chosen)
    with context():
        actual = as_saliency(given)(network, x.clone(), chosen, max_batch)
    torch.testing.assert_close(actual, expected)
    assert not actual[1].requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def test_captum_over_an_orbit(network: nn.Module, x: Tensor) -> None:
    outputs = evaluate_orbit(network, x, C4(), saliency=captum.attr.InputXGradient)
    expected = evaluate_orbit(network, x, C4(), saliency=InputXGradient())
    torch.testing.assert_close(outputs.orbit_saliency, expected.orbit_saliency)


@every
def test_the_input_and_its_gradient_are_left_alone(saliency: Saliency, network: nn.Module, x: Tensor) -> None:
    before = x.clone()
    leaf = x.clone().requires_grad_()
    saliency(network, leaf)
    assert leaf.grad is None
    assert torch.equal(leaf.detach(), before)
    network.requires_grad_(False)
    torch.testing.assert_close(saliency(network, x), saliency(network.requires_grad_(True), x))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_is_kept(saliency: Saliency, network: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    logits, maps = saliency(network.to(dtype), x.to(dtype))
    assert maps.dtype == logits.dtype == dtype
    assert maps.shape == x.shape
    assert maps.isfinite().all()


# Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saliency", [Gradient(), InputXGradient(), IntegratedGradients(), PaperSaliency()], ids=repr)
def test_integers_have_no_gradient(saliency: Saliency) -> None:
    with pytest.raises(ValueError, match=r"`x` to be floating point, to have a gradient, but got torch\.int64"):
        saliency(lambda x: x.flatten(1), torch.ones(2, 4, 4, dtype=torch.int64))


@every
def test_outputs_that_are_no_logits_are_refused(saliency: Saliency, x: Tensor) -> None:
    for output, got in (
        (lambda x: x, r"shape \(4, 2, 6, 6\)"),
        (lambda x: x.mean(), r"shape \(\)"),
        (lambda x: [x.flatten(1)], "list"),
    ):
        with pytest.raises(ValueError, match=rf"logits of shape \(4, classes\) for saliency but got {got}"):
            saliency(output, x)


@pytest.mark.parametrize("kind", [IntegratedGradients, PaperSaliency])
@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_steps_are_counted(kind: Any, steps: Any) -> None:
    with pytest.raises(ValueError, match="`steps` to be an integer of at least 1"):
        kind(steps=steps)


def test_the_papers_filter_needs_images(linear: nn.Linear) -> None:
    with pytest.raises(
        ValueError, match=r"`x` to be images \(B, ..., H, W\) for PaperSaliency.* but got shape \(4, 6\)"
    ):
        PaperSaliency()(linear, torch.zeros(4, 6, dtype=torch.float64))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "`saliency` to be a Saliency, a captum attribution or a function .* but got NoneType"),
        ("gradient", "but got str"),
        (dict, "`saliency` to have a method `attribute` but got the class dict"),
    ],
)
def test_what_computes_no_maps_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_saliency(wrong)


@pytest.mark.parametrize("maps", [None, torch.zeros(3, 2)])
def test_functions_must_give_a_map_a_sample(network: nn.Module, x: Tensor, maps: Any) -> None:
    with pytest.raises(ValueError, match="`saliency` to give 4 maps, one a sample, but got"):
        as_saliency(lambda network, x, target: maps)(network, x)


def test_a_saliency_stays_what_it_is() -> None:
    gradient = Gradient()
    assert as_saliency(gradient) is gradient
    assert isinstance(as_saliency(PaperSaliency), PaperSaliency)


def test_saliencies_say_what_they_are() -> None:
    assert [repr(saliency) for saliency in EVERY] == [
        "Gradient()",
        "InputXGradient()",
        "IntegratedGradients(steps=9, baseline=0.0)",
        "PaperSaliency(steps=5, baseline=0.0)",
    ]
