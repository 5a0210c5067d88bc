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
every = pytest.mark.parametrize("saliency", [*EVERY, Gradient(dither=0.1)], ids=repr)


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


# Values ----------------------------------------------------------------------------------------------------------


def test_a_linear_network_in_closed_form(target: Tensor) -> None:
    torch.manual_seed(2)
    linear, x = nn.Linear(6, CLASSES).double(), torch.randn(SAMPLES, 6, dtype=torch.float64)
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


@pytest.mark.parametrize("steps", [1, 2, 16])
def test_the_quadrature_is_exact_for_polynomials(steps: int) -> None:
    """n points integrate degree 2 n - 1 exactly: the gradient of sum x^(2 n)."""
    x = torch.tensor([[0.5, -1.0, 1.25]], dtype=torch.float64)

    def network(x: Tensor) -> Tensor:
        return torch.stack([(x ** (2 * steps)).sum(dim=1), x.sum(dim=1)], dim=1)

    _, maps = IntegratedGradients(steps=steps)(network, x, torch.tensor([0]))
    torch.testing.assert_close(maps, x ** (2 * steps), rtol=1e-10, atol=1e-12)


def test_maps_agree_with_captum(network: nn.Module, x: Tensor, target: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    signed = captum.attr.Saliency(network).attribute(leaf, target=target, abs=False)
    torch.testing.assert_close(Gradient()(network, x, target)[1], signed)
    times = captum.attr.InputXGradient(network).attribute(leaf, target=target).detach()
    torch.testing.assert_close(InputXGradient()(network, x, target)[1], times)
    for steps, baseline in ((1, 0.0), (7, -0.7), (32, 0.0)):
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


# A single output -------------------------------------------------------------------------------------------------


def gradient_function(network: Any, x: Tensor, target: Tensor) -> Tensor:
    return torch.autograd.grad(network(x)[torch.arange(len(x)), target].sum(), x)[0]


def times_input(network: Any, x: Tensor, target: Tensor) -> Tensor:
    return x * gradient_function(network, x, target)


#: Ways to give one's own, and to make an instance for a network.
GIVEN = {
    "class": lambda network: captum.attr.InputXGradient,
    "instance": captum.attr.InputXGradient,
    "function": lambda network: times_input,
}


@pytest.fixture
def single() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * SIDE**2, 4), nn.Tanh(), nn.Linear(4, 1)).double()


@pytest.mark.parametrize(("labelled", "max_batch"), [(False, 3), (True, None)])
@pytest.mark.parametrize("way", [*EVERY, *GIVEN], ids=str)
def test_one_output_a_sample_is_explained_as_one_class(
    way: Any, single: nn.Module, x: Tensor, labelled: bool, max_batch: int | None
) -> None:
    chosen = torch.zeros(SAMPLES, dtype=torch.int64) if labelled else None
    column, row = (
        as_saliency(GIVEN[way](network) if isinstance(way, str) else way)(network, x, chosen, max_batch)
        for network in (single, lambda x: single(x)[:, 0])
    )
    assert row[0].shape == (SAMPLES,)
    torch.testing.assert_close(row[0], column[0][:, 0])
    torch.testing.assert_close(row[1], column[1], rtol=0, atol=0)


def test_the_gradient_of_one_output_a_sample(single: nn.Module, x: Tensor) -> None:
    """W2 diag(1 - tanh²(W1 x + b1)) W1."""
    _, maps = Gradient()(lambda x: single(x)[:, 0], x)
    first, last = single[1], single[3]
    slopes = 1 - first(x.flatten(1)).tanh() ** 2
    torch.testing.assert_close(maps.flatten(1), ((last.weight * slopes) @ first.weight).detach())
    with pytest.raises(ValueError, match="`target` to hold classes from 0 to 0 but got values from 1 to 1"):
        Gradient()(lambda x: single(x)[:, 0], x, torch.ones(SAMPLES, dtype=torch.int64))


# Noise on the input ----------------------------------------------------------------------------------------------


def half_squares(x: Tensor) -> Tensor:
    """The gradient of the first logit is the input itself: a map shows what the network was given."""
    return torch.stack([x.square().flatten(1).sum(dim=1) / 2, x.flatten(1).sum(dim=1)], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dither_is_normal_noise_as_large_as_the_samples_own_deviation_times_it(dtype: torch.dtype) -> None:
    x = torch.randn(3, 2, 80, 80, generator=torch.Generator().manual_seed(5)).to(dtype)
    x = x * torch.tensor([1.0, 7.0, 0.01], dtype=dtype).view(3, 1, 1, 1) + 3
    _, maps = Gradient(dither=0.1)(half_squares, x, torch.zeros(3, dtype=torch.int64))
    noise = ((maps - x).double().flatten(1) / x.double().flatten(1).std(dim=1, correction=0)[:, None]) / 0.1
    torch.testing.assert_close(noise, noise[:1].expand(3, -1), rtol=1e-2, atol=1e-2 if dtype == torch.float32 else 1e-9)
    entries = noise[0].sort().values
    assert entries.mean().item() == pytest.approx(0, abs=4 / 12800**0.5)
    assert entries.std().item() == pytest.approx(1, abs=4 / (2 * 12800) ** 0.5)
    cumulated = torch.distributions.Normal(0.0, 1.0).cdf(entries)
    gap = (cumulated - torch.linspace(0, 1, len(entries), dtype=torch.float64)).abs().max()
    assert gap < 1.95 / 12800**0.5  # Kolmogorov and Smirnov's bound, at one in a thousand


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
def test_the_dither_of_a_flat_sample_is_as_large_as_that_of_deviation_one(value: float) -> None:
    flat = torch.full((1, 2, 6, 6), value)
    unit = torch.tensor([-1.0, 1.0]).repeat(36).reshape(1, 2, 6, 6)
    zeros = torch.zeros(1, dtype=torch.int64)
    noise = [Gradient(dither=0.5)(half_squares, x, zeros)[1] - x for x in (flat, unit)]
    torch.testing.assert_close(*noise, rtol=0, atol=2e-6)
    assert noise[0].std() > 0.3


@pytest.mark.parametrize("kind", [Gradient, InputXGradient])
def test_dithered_maps_are_those_of_the_noisy_input(kind: Any, network: nn.Module, x: Tensor, target: Tensor) -> None:
    before, state = x.clone(), torch.get_rng_state()
    noisy = Gradient(dither=0.3)(half_squares, x, torch.zeros_like(target))[1]
    logits, maps = kind(dither=0.3)(network, x, target)
    torch.testing.assert_close(maps, kind()(network, noisy, target)[1])
    assert torch.equal(logits, network(x))
    assert not torch.allclose(maps, kind()(network, x, target)[1])
    # A sample's noise depends on nothing but itself.
    again = kind(dither=0.3)(network, x, target)[1]
    alone = torch.cat([kind(dither=0.3)(network, x[i : i + 1], target[i : i + 1])[1] for i in reversed(range(SAMPLES))])
    assert torch.equal(maps, again)
    for parts in (alone.flip(0), kind(dither=0.3)(network, x, target, 3)[1]):
        torch.testing.assert_close(parts, maps, rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, before)


def test_the_dithered_maps_explain_the_class_predicted_without_noise() -> None:
    """The noise turns the prediction of either 0.01 or −0.01; the sign of the map is that of the class."""
    x = torch.tensor([[0.01], [-0.01]])
    _, maps = Gradient(dither=1.0)(lambda x: torch.cat([x, -x], dim=1), x)
    assert maps.tolist() == [[1.0], [-1.0]]


@pytest.mark.parametrize(
    ("prepared", "got"),
    [(lambda x: x[1:], r"\(3, 2, 6, 6\) of float64"), (lambda x: x.float(), "of float32"), (len, "int")],
)
def test_a_batch_is_prepared_for_the_same_shape(network: nn.Module, x: Tensor, prepared: Any, got: str) -> None:
    class Prepared(Gradient):
        def prepare(self, x: Tensor) -> Any:
            return prepared(x)

    pattern = rf"`prepare` of Prepared\(\) to give a tensor \(4, 2, 6, 6\) of torch.float64, as `x`, but got .*{got}"
    with pytest.raises(ValueError, match=pattern):
        Prepared()(network, x)
    with pytest.raises(ValueError, match=pattern):
        evaluate_orbit(network, x, C4(), saliency=Prepared())


# Conditions ------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize(("labelled", "max_batch"), [(False, 1), (True, 3), (False, 9), (True, 100)])
def test_chunks_give_the_same(
    saliency: Saliency, network: nn.Module, x: Tensor, target: Tensor, max_batch: int, labelled: bool
) -> None:
    """Without a target, the class is that predicted on x."""
    sizes: list[int] = []

    def counting(x: Tensor) -> Tensor:
        sizes.append(len(x))
        output: Tensor = network(x)
        return output

    whole = saliency(network, x, target if labelled else network(x).argmax(dim=1))
    torch.testing.assert_close(saliency(counting, x, target if labelled else None, max_batch), whole)
    assert max(sizes) <= max_batch


@every
@pytest.mark.parametrize(
    ("context", "max_batch"), [(torch.no_grad, 3), (torch.inference_mode, None), (torch.inference_mode, 3)]
)
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


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize(
    ("context", "max_batch", "labelled"),
    [(nullcontext, 3, True), (torch.no_grad, None, True), (torch.inference_mode, 3, False)],
)
def test_captum_and_functions(
    network: nn.Module, x: Tensor, target: Tensor, kind: str, context: Any, max_batch: int | None, labelled: bool
) -> None:
    chosen = target if labelled else None
    expected = InputXGradient()(network, x, chosen)
    with context():
        actual = as_saliency(GIVEN[kind](network))(network, x.clone(), chosen, max_batch)
    torch.testing.assert_close(actual, expected)
    assert not actual[1].requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


@every
def test_the_input_and_its_gradient_are_left_alone(saliency: Saliency, network: nn.Module, x: Tensor) -> None:
    before = x.clone()
    leaf = x.clone().requires_grad_()
    maps = saliency(network, leaf)[1]
    assert not maps.requires_grad
    assert leaf.grad is None
    assert torch.equal(leaf.detach(), before)
    network.requires_grad_(False)
    torch.testing.assert_close(saliency(network, x)[1], maps)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_is_kept(saliency: Saliency, network: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    logits, maps = saliency(network.to(dtype), x.to(dtype))
    assert maps.dtype == logits.dtype == dtype
    assert maps.shape == x.shape
    assert maps.isfinite().all()


def test_saliencies_stay_and_say_what_they_are() -> None:
    gradient = Gradient()
    assert as_saliency(gradient) is gradient
    assert isinstance(as_saliency(PaperSaliency), PaperSaliency)
    dithered = [kind(dither=0.01) for kind in (Gradient, InputXGradient)]
    assert [repr(saliency) for saliency in (*EVERY, *dithered)] == [
        "Gradient()",
        "InputXGradient()",
        "IntegratedGradients(steps=9, baseline=0.0)",
        "PaperSaliency(steps=5, baseline=0.0)",
        "Gradient(dither=0.01)",
        "InputXGradient(dither=0.01)",
    ]
