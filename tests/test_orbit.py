"""`evaluate_orbit` against loops of single forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import InputXGradient as InputXGradientByCaptum
from oracles import Symmetrised
from torch import Tensor, nn

from lightning_invariance import (
    C4,
    CyclicTranslations,
    Gradient,
    HorizontalFlip,
    InputXGradient,
    IntegratedGradients,
    PaperSaliency,
    evaluate_orbit,
)
from lightning_invariance.functional import logit_invariance_error, saliency_invariance_similarity

SAMPLES, SIDE, CLASSES = 5, 6, 4


class Counting(nn.Module):
    """Keeps the number of rows of each forward."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.network(x)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * (SIDE - 2) ** 2, CLASSES)
    ).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(SAMPLES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def rotated(x: Tensor, k: int) -> Tensor:
    return torch.rot90(x, k, (-2, -1))


def gradient_map(network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf)[torch.arange(len(x)), target].sum(), leaf)
    return gradient


def assert_same(actual: Any, expected: Any, **tolerance: float) -> None:
    for name in ("logits", "orbit_logits", "saliency", "orbit_saliency"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), **tolerance)


def test_outputs_are_those_of_single_forwards(network: nn.Module, x: Tensor) -> None:
    counting = Counting(network)
    outputs = evaluate_orbit(counting, x, C4())
    assert counting.rows == [4 * SAMPLES]
    torch.testing.assert_close(outputs.logits, network(x))
    assert outputs.orbit_logits.shape == (3, SAMPLES, CLASSES)
    for k in (1, 2, 3):
        for sample in range(SAMPLES):
            alone = network(rotated(x[sample : sample + 1], k))[0]
            torch.testing.assert_close(outputs.orbit_logits[k - 1, sample], alone)
    assert outputs.saliency is None
    assert outputs.orbit_saliency is None


def test_the_identity_is_left_out(network: nn.Module, x: Tensor) -> None:
    """Half the squared distance to the flipped image alone, not its mean with 0."""
    outputs = evaluate_orbit(network, x, HorizontalFlip())
    assert len(outputs.orbit_logits) == 1
    expected = 0.5 * (network(x) - network(x.flip(-1))).square().sum(dim=1).mean()
    torch.testing.assert_close(logit_invariance_error(outputs.logits, outputs.orbit_logits), expected)


@pytest.mark.parametrize(("max_batch", "given"), [(1, True), (3, False), (7, True), (7, False), (1000, True)])
@pytest.mark.parametrize("saliency", [None, Gradient(), IntegratedGradients(steps=6)])
def test_chunks_give_the_same(network: nn.Module, x: Tensor, max_batch: int, saliency: Any, given: bool) -> None:
    options = {"saliency": saliency, **({"base_logits": network(x).detach()} if given else {})}
    counting = Counting(network)
    parts = evaluate_orbit(counting, x, C4(), max_batch=max_batch, **options)
    assert_same(parts, evaluate_orbit(network, x, C4(), **options))
    assert max(counting.rows) <= max_batch


def test_known_logits_are_not_computed_again(network: nn.Module, x: Tensor) -> None:
    counting, known = Counting(network), network(x)
    outputs = evaluate_orbit(counting, x, C4(), base_logits=known)
    assert counting.rows == [3 * SAMPLES]
    assert outputs.logits is known
    torch.testing.assert_close(outputs.orbit_logits[1], network(rotated(x, 2)))
    # Gradients flow through them.
    (gradient,) = torch.autograd.grad(logit_invariance_error(outputs.logits, outputs.orbit_logits), known)
    expected = (3 * known - sum(network(rotated(x, k)) for k in (1, 2, 3))) / 3 / SAMPLES
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("elements", "saliency"), [([2], None), ([3, 1], Gradient()), ([1, 1, 2], None), ([1, 1, 2], Gradient())]
)
def test_some_elements_in_the_order_asked_for(
    network: nn.Module, x: Tensor, elements: list[int], saliency: Any
) -> None:
    counting = Counting(network)
    outputs = evaluate_orbit(counting, x, C4(), elements=elements, saliency=saliency)
    assert sum(counting.rows) == (len(elements) + 1) * SAMPLES
    target = network(x).argmax(dim=1)
    for row, k in enumerate(elements):
        torch.testing.assert_close(outputs.orbit_logits[row], network(rotated(x, k)))
        if saliency is not None:
            expected = rotated(gradient_map(network, rotated(x, k), target), -k)
            torch.testing.assert_close(outputs.orbit_saliency[row], expected)


def test_networks_of_dense_outputs_and_functions(x: Tensor) -> None:
    dense = nn.Conv2d(1, 2, 3, padding=1).double()
    outputs = evaluate_orbit(dense, x, C4(), max_batch=4)
    for k in (1, 2, 3):
        torch.testing.assert_close(outputs.orbit_logits[k - 1], dense(rotated(x, k)))
    outputs = evaluate_orbit(lambda batch: batch.flatten(1)[:, :3], x, CyclicTranslations(3))
    assert len(outputs.orbit_logits) == 2
    torch.testing.assert_close(outputs.orbit_logits[0], x.roll(2, dims=-1).flatten(1)[:, :3])


def test_gradients_flow_to_parameters_where_they_are_recorded(network: nn.Module, x: Tensor) -> None:
    outputs = evaluate_orbit(network, x, C4(), max_batch=3)
    actual = torch.autograd.grad(
        logit_invariance_error(outputs.logits, outputs.orbit_logits), list(network.parameters())
    )
    base = network(x)
    by_hand = sum(0.5 * (base - network(rotated(x, k))).square().sum(dim=1).mean() for k in (1, 2, 3)) / 3
    torch.testing.assert_close(actual, torch.autograd.grad(by_hand, list(network.parameters())))
    assert all(gradient.abs().max() > 0 for gradient in actual)
    with torch.no_grad():
        assert not evaluate_orbit(network, x, C4()).orbit_logits.requires_grad


# Saliency --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labelled", "given"), [(False, False), (False, True), (True, True)])
def test_maps_are_brought_back_and_explain_one_class(
    network: nn.Module, x: Tensor, labelled: bool, given: bool
) -> None:
    prediction = network(x).argmax(dim=1)
    target = (prediction + 1) % CLASSES if labelled else prediction
    # Otherwise "the prediction on x" and "the prediction on gx" would be the same.
    assert any(not torch.equal(network(rotated(x, k)).argmax(dim=1), prediction) for k in (1, 2, 3))
    options = {"target": target if labelled else None, "base_logits": network(x).detach() if given else None}
    outputs = evaluate_orbit(network, x, C4(), saliency=Gradient(), **options)
    torch.testing.assert_close(outputs.saliency, gradient_map(network, x, target))
    torch.testing.assert_close(outputs.logits, network(x))
    for k in (1, 2, 3):
        expected = rotated(gradient_map(network, rotated(x, k), target), -k)
        torch.testing.assert_close(outputs.orbit_saliency[k - 1], expected)
        torch.testing.assert_close(outputs.orbit_logits[k - 1], network(rotated(x, k)))
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("saliency", [Gradient(), InputXGradient(), IntegratedGradients(), PaperSaliency()], ids=repr)
def test_an_invariant_network_looks_at_the_same_things(network: nn.Module, x: Tensor, saliency: Any) -> None:
    outputs = evaluate_orbit(Symmetrised(network), x, C4(), saliency=saliency)
    similarity = saliency_invariance_similarity(outputs.saliency, outputs.orbit_saliency, reduction="element")
    torch.testing.assert_close(similarity, torch.ones(3, dtype=torch.float64), atol=1e-10, rtol=0)
    assert logit_invariance_error(outputs.logits, outputs.orbit_logits) < 1e-24


def half_squares(x: Tensor) -> Tensor:
    """The gradient of the first logit is the input itself: a map shows what the network was given."""
    return torch.stack([x.square().flatten(1).sum(dim=1) / 2, x.flatten(1).sum(dim=1)], dim=1)


@pytest.mark.parametrize("max_batch", [None, 3, 7])
def test_a_batch_is_prepared_once_before_it_is_moved(x: Tensor, max_batch: int | None) -> None:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(7), dtype=x.dtype)
    calls: list[Tensor] = []

    class Noisy(Gradient):
        def prepare(self, x: Tensor) -> Tensor:
            calls.append(x)
            return x + noise

    target = torch.zeros(SAMPLES, dtype=torch.int64)
    outputs = evaluate_orbit(half_squares, x, C4(), saliency=Noisy(), target=target, max_batch=max_batch)
    assert all(torch.equal(call, x) for call in calls)
    torch.testing.assert_close(outputs.saliency, x + noise)
    torch.testing.assert_close(outputs.orbit_saliency, (x + noise).expand(3, *x.shape))
    torch.testing.assert_close(outputs.orbit_logits, torch.stack([half_squares(rotated(x, k)) for k in (1, 2, 3)]))


@pytest.mark.parametrize(("max_batch", "given"), [(None, True), (3, False), (7, True), (7, False)])
def test_dither_changes_no_logits(network: nn.Module, x: Tensor, max_batch: int | None, given: bool) -> None:
    with torch.no_grad():
        base = network(x) if given else None
        plain = evaluate_orbit(network, x, C4(), base_logits=base, max_batch=max_batch)
    state, saliency = torch.get_rng_state(), Gradient(dither=0.5)
    options = {"base_logits": base, "saliency": saliency, "max_batch": max_batch, "elements": [1, 2, 3]}
    dithered = evaluate_orbit(network, x, C4(), **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(dithered.logits, plain.logits)
    assert torch.equal(dithered.orbit_logits, plain.orbit_logits)
    assert not dithered.orbit_logits.requires_grad
    # The class is that predicted on x, not on x with noise.
    chosen = evaluate_orbit(network, x, C4(), saliency=saliency, target=network(x).argmax(dim=1))
    torch.testing.assert_close(dithered.orbit_saliency, chosen.orbit_saliency)


class PooledByMaximum(nn.Module):
    """Exactly invariant to C4 in its own weights: symmetric kernels, even sizes, a mean over all pixels."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        kernels = [
            torch.randn(*shape, 3, 3, generator=generator) / scale for shape, scale in (((8, 1), 1), ((16, 8), 3))
        ]
        self.kernels = nn.ParameterList(
            sum(torch.rot90(kernel.double(), k, (-2, -1)) for k in range(4)) / 4 for kernel in kernels
        )
        self.head = nn.Linear(16, CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        for kernel in self.kernels:
            x = nn.functional.max_pool2d(nn.functional.conv2d(x, kernel, padding=1).relu(), 2)
        return self.head(x.mean(dim=(-2, -1)))


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, 1e-9), (torch.float64, 1e-25)])
def test_dither_breaks_the_ties_of_max_pooling(dtype: torch.dtype, exact: float) -> None:
    """An invariant network looks at the same places in each pose; where two pixels tie, which of them is position."""
    torch.manual_seed(0)
    network = PooledByMaximum().to(dtype)
    on_flat_backgrounds = torch.full((20, 1, 16, 16), -0.5, dtype=dtype)
    on_flat_backgrounds[..., 5:11, 4:12] = torch.randn(20, 1, 6, 8, generator=torch.Generator().manual_seed(1))

    def similarity(saliency: Gradient) -> float:
        outputs = evaluate_orbit(network, on_flat_backgrounds, C4(), saliency=saliency)
        assert logit_invariance_error(outputs.logits, outputs.orbit_logits) < exact
        return float(saliency_invariance_similarity(outputs.saliency, outputs.orbit_saliency))

    assert similarity(Gradient()) < 0.9
    assert similarity(Gradient(dither=1e-3)) >= 0.999


@pytest.mark.parametrize("dither", [0.0, 0.1])
def test_one_output_a_sample_over_an_orbit(x: Tensor, dither: float) -> None:
    torch.manual_seed(0)
    column = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    saliency = Gradient(dither)
    expected = evaluate_orbit(column, x, C4(), saliency=saliency)
    for base in (None, column(x)[:, 0].detach()):
        row = evaluate_orbit(lambda x: column(x)[:, 0], x, C4(), saliency=saliency, base_logits=base)
        assert row.logits.shape == (SAMPLES,)
        assert row.orbit_logits.shape == (3, SAMPLES)
        torch.testing.assert_close(row.orbit_logits, expected.orbit_logits[..., 0])
        torch.testing.assert_close(row.saliency, expected.saliency, rtol=0, atol=1e-14)
        torch.testing.assert_close(row.orbit_saliency, expected.orbit_saliency, rtol=0, atol=1e-14)


@pytest.mark.parametrize("saliency", [Gradient(), IntegratedGradients(steps=3), InputXGradientByCaptum])
@pytest.mark.parametrize(("context", "labelled"), [(torch.no_grad, True), (torch.inference_mode, False)])
def test_maps_where_no_gradient_is_recorded(
    network: nn.Module, x: Tensor, saliency: Any, context: Any, labelled: bool
) -> None:
    target = torch.tensor([0, 1, 2, 3, 0]) if labelled else None
    expected = evaluate_orbit(network, x, C4(), saliency=saliency, target=target)
    with context():
        assert_same(evaluate_orbit(network, x.clone(), C4(), saliency=saliency, target=target), expected)
    if saliency is InputXGradientByCaptum:
        assert_same(evaluate_orbit(network, x, C4(), saliency=InputXGradient(), target=target), expected)


def test_dense_outputs_have_no_class_to_explain(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"`network` to give logits of shape \(5, classes\) or \(5,\) for saliency"):
        evaluate_orbit(lambda x: x, x, C4(), saliency=Gradient())
