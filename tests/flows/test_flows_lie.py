"""Lie derivatives against closed forms, differences, torch's own derivatives, and two backward passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flows_functions import Half, Sine
from oracles import noisy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from lightning_invariance import (
    ContrastFlow,
    Flow,
    PointRotationFlow,
    PointTranslationFlow,
    RotationFlow,
    ScalingFlow,
    TranslationFlow,
    evaluate_lie_derivative,
)
from lightning_invariance.functional import lie_derivative_error
from lightning_invariance.lie import DirectionalDerivative, Way, lie_derivatives

# Torch's own, when it loads its rules.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval()


class Attention(nn.Module):
    """Points as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.up(x)).mean(dim=1))


class Recomputed(nn.Module):
    """With activations that the backward computes again, which differentiating forwards does not survive."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.inner, x, use_reentrant=False))


class OnceSine(Sine):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * x.cos()


def convolutional() -> nn.Module:
    """Most kinds of layers that a network for images has, ReLUs in place among them."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(4, 4, 2, stride=2, bias=False),
        nn.ReLU(),
        nn.GroupNorm(2, 4),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Flow, tuple[int, ...]]] = {
    "convolutional": (convolutional, TranslationFlow(), (6, 1, 8, 8)),
    "attention": (Attention, PointRotationFlow(), (4, 5, 3)),
    "recomputed": (Recomputed, RotationFlow(), (4, 1, 8, 8)),
}
each = pytest.mark.parametrize(("make", "flow", "shape"), NETWORKS.values(), ids=NETWORKS)


def by(way: Way, network: Any, x: Tensor, flow: Flow, differentiable: bool = False) -> Tensor:
    derivative = DirectionalDerivative(way)
    return lie_derivatives(network, x, flow, range(len(flow)), None, derivative, differentiable=differentiable)[1]


# The number ------------------------------------------------------------------------------------------------------


@each
def test_torch_differences_and_two_backwards_say_the_same(
    make: Callable[[], nn.Module], flow: Flow, shape: tuple[int, ...]
) -> None:
    network, x = made(make), noise(*shape)
    with torch.no_grad():
        got = evaluate_lie_derivative(network, x, flow)
        chunked = evaluate_lie_derivative(network, x, flow, max_batch=3)
    assert not got.requires_grad
    twice = by("double_backward", network, x, flow)
    for generator, slopes in enumerate(got):
        step = 1e-5
        ends = [network(flow.move(x, generator, t)) for t in (step, -step)]
        torch.testing.assert_close(slopes, ((ends[0] - ends[1]) / (2 * step)).detach(), rtol=1e-5, atol=1e-6)
        with sdpa_kernel(SDPBackend.MATH):
            by_torch = torch.func.jvp(network, (x,), (flow.tangent(x, generator),))[1].detach()
        torch.testing.assert_close(slopes, by_torch, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got, twice, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got, chunked, rtol=1e-9, atol=1e-9)
    single = evaluate_lie_derivative(network.float(), x.float(), flow).detach()
    torch.testing.assert_close(single.double(), got, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by("double_backward", network, x.float(), flow), single, rtol=1e-5, atol=1e-6)


@each
def test_gradients_flow_alike_both_ways(make: Callable[[], nn.Module], flow: Flow, shape: tuple[int, ...]) -> None:
    network, x = made(make), noise(*shape).requires_grad_()
    leaves = [x, *network.parameters()]

    def gradients(slopes: Tensor) -> list[Tensor | None]:
        return [*torch.autograd.grad(slopes.square().sum(), leaves, allow_unused=True)]

    forwards = gradients(evaluate_lie_derivative(network, x, flow))
    backwards = gradients(by("double_backward", network, x, flow, differentiable=True))
    assert sum(float(each.abs().sum()) for each in forwards if each is not None) > 1e-3
    for one, other, leaf in zip(forwards, backwards, leaves, strict=True):
        # What has no influence (a bias behind all else) has no gradient, or one of zeros.
        full = [torch.zeros_like(leaf) if each is None else each for each in (one, other)]
        torch.testing.assert_close(*full, rtol=1e-8, atol=1e-9)


def test_a_linear_network() -> None:
    weight, x = noise(3, 64), noise(5, 1, 8, 8, seed=1)
    flow = TranslationFlow()
    got = evaluate_lie_derivative(lambda x: x.flatten(1) @ weight.T, x, flow)
    for generator, slopes in enumerate(got):
        torch.testing.assert_close(slopes, flow.tangent(x, generator).flatten(1) @ weight.T)


def test_what_is_known_to_be_invariant_and_what_is_not() -> None:
    points = noise(4, 6, 3)

    def distances(r: Tensor) -> Tensor:
        return (r[:, :, None] - r[:, None]).square().sum(-1).exp().mean((1, 2))[:, None]

    for flow in (PointRotationFlow(), PointTranslationFlow()):
        assert float(evaluate_lie_derivative(distances, points, flow).abs().max()) < 1e-9
    radii = evaluate_lie_derivative(lambda r: r.square().sum((1, 2)), points, PointTranslationFlow())
    torch.testing.assert_close(radii, 2 * points.sum(dim=1).T)
    total = evaluate_lie_derivative(lambda x: x.sum((1, 2, 3)), noise(4, 1, 6, 6), TranslationFlow(window=None))
    assert float(total.abs().max()) < 1e-9
    contrast = evaluate_lie_derivative(lambda x: x.var((2, 3), correction=0), noise(4, 1, 6, 6), ContrastFlow())
    torch.testing.assert_close(contrast[0], 2 * noise(4, 1, 6, 6).var((2, 3), correction=0))


def test_outputs_that_move() -> None:
    """A convolution of images that go on periodically moves with them; as vectors, neighbours do."""
    flow = TranslationFlow(window=None)
    layer = made(lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"))
    x = noise(3, 1, 8, 8)
    still, moving = (evaluate_lie_derivative(layer, x, flow, output_flow=each) for each in (None, "same"))
    assert float(still.detach().abs().max()) > 0.1
    assert float(moving.detach().abs().max()) < 1e-9
    points = noise(3, 5, 3)

    def towards_middle(r: Tensor) -> Tensor:
        return r.mean(dim=1, keepdim=True) - r

    turning, moved = PointRotationFlow(), PointTranslationFlow()
    assert float(evaluate_lie_derivative(towards_middle, points, turning, output_flow="same").abs().max()) < 1e-12
    assert float(evaluate_lie_derivative(towards_middle, points, moved).abs().max()) < 1e-12
    columns = evaluate_lie_derivative(lambda r: -r.mT, points, turning, output_flow=PointRotationFlow(dim=-2))
    assert float(columns.abs().max()) < 1e-12


def test_the_derivative_of_an_energy_is_the_net_torque() -> None:
    positions = noise(4, 6, 3)
    weight = noise(3)

    def energy(r: Tensor) -> Tensor:
        """Pairs, and a field that points somewhere."""
        pairs = (r[:, :, None] - r[:, None]).square().sum(-1).neg().exp().sum((1, 2))
        return pairs + (r.square() @ weight).sin().sum(1)

    r = positions.clone().requires_grad_()
    forces = -torch.autograd.grad(energy(r).sum(), r)[0]
    torque = torch.linalg.cross(positions, forces).sum(dim=1)
    got = evaluate_lie_derivative(energy, positions, PointRotationFlow())
    torch.testing.assert_close(got, -torque.T)
    torch.testing.assert_close(got.square().sum(dim=0), torque.square().sum(dim=1))


def test_forces_that_a_network_differentiates_itself() -> None:
    network = made(lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)))

    def forces(r: Tensor) -> Tensor:
        with torch.enable_grad():
            r = r if r.requires_grad else r.requires_grad_()
            return -torch.autograd.grad(network(r).sum(), r, create_graph=True)[0]

    x, flow = noise(2, 4, 3), PointRotationFlow()
    with torch.no_grad():
        got = evaluate_lie_derivative(forces, x, flow, output_flow="same")
    for generator, slopes in enumerate(got):
        step = 1e-5
        ends = [flow.move(forces(flow.move(x, generator, t)), generator, -t).detach() for t in (step, -step)]
        torch.testing.assert_close(slopes, (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-7)


def norms() -> dict[str, nn.Module]:
    return {
        "batch": nn.BatchNorm2d(4),
        "batch, in eval": nn.BatchNorm2d(4).eval(),
        "instance": nn.InstanceNorm2d(4, affine=True),
        "instance, running": nn.InstanceNorm2d(4, track_running_stats=True).eval(),
        "layer": nn.LayerNorm([4, 4, 4]),
        "layer, last dimension": nn.LayerNorm(4, bias=False),
        "group": nn.GroupNorm(2, 4),
        "root mean square": nn.RMSNorm([4, 4, 4]),
    }


@pytest.mark.parametrize("way", ["forward", "double_backward"])
@pytest.mark.parametrize("name", norms())
def test_gradients_through_normalisations_are_those_of_differences(name: str, way: Way) -> None:
    """Torch's own rules for most of them are wrong at this depth, whichever way."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), norms()[name], nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)
    network, x = nn.Sequential(*layers).double(), noise(4, 1, 4, 4)
    weight = layers[0].weight
    direction = noise(*weight.shape, seed=5)

    def objective() -> Tensor:
        return by(way, network, x, RotationFlow(window=None), differentiable=True).square().sum()

    slope = float((torch.autograd.grad(objective(), weight)[0] * direction).sum())
    step, ends = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * step * direction
        ends.append(float(objective().detach()))
        with torch.no_grad():
            weight -= sign * step * direction
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)
    network(x)  # as it does without derivatives
    torch.testing.assert_close(
        DirectionalDerivative(way).of(network, x, [x], differentiable=False)[0], network(x).detach()
    )


def test_gradients_that_differ_are_refused() -> None:
    def run(x: Tensor) -> Tensor:
        return Half.apply(x.square()).sum((1, 2))

    with pytest.raises(ValueError, match="Expected the gradients of the Lie derivative to be the same whether"):
        evaluate_lie_derivative(run, noise(2, 4, 3), ContrastFlow(centre=1.0))
    with torch.no_grad():
        assert evaluate_lie_derivative(run, noise(2, 4, 3), ContrastFlow(centre=1.0)).shape == (1, 2)


# How it is had ---------------------------------------------------------------------------------------------------


def test_operations_without_a_rule_are_differentiated_backwards() -> None:
    x = noise(3, 4, 3)

    def of(function: Callable[[Tensor], Tensor]) -> Tensor:
        return evaluate_lie_derivative(lambda r: function(r).sum((1, 2)), x, PointRotationFlow()).detach()

    torch.testing.assert_close(of(Sine.apply), of(torch.sin))
    with pytest.raises(ValueError, match="differentiable forwards or backwards twice but it is neither"):
        of(OnceSine.apply)

    class Wrong(Sine):
        """Whose first derivative is right, and says nothing of having no second."""

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return (gradient * x.cos()).detach()

    with pytest.raises(ValueError, match="differentiable forwards or backwards twice but it is neither"):
        of(lambda r: Wrong.apply(r) + r)


def test_one_output_has_the_derivatives_in_all_directions_from_one_gradient() -> None:
    x, flow = noise(3, 4, 3), PointRotationFlow()

    def of_distances(r: Tensor) -> Tensor:
        return torch.cdist(r, r).square().sum((1, 2)) + r[..., 0].sum(1)

    with torch.no_grad():  # its distances have first derivatives alone
        got = evaluate_lie_derivative(of_distances, x, flow)
    torch.testing.assert_close(got, torch.stack([flow.tangent(x, axis)[..., 0].sum(1) for axis in range(3)]))
    with pytest.raises(ValueError, match="differentiable forwards or backwards twice but it is neither"):
        evaluate_lie_derivative(of_distances, x, flow)
    # Samples that depend on each other: the gradient of their sum is not what each changes by.
    for coupled in (lambda r: r[..., 0].sum(1).softmax(0), lambda r: r[..., 0].sum(1) - r[..., 0].sum(1).mean()):
        slopes = evaluate_lie_derivative(coupled, x, flow)
        for axis, each in enumerate(slopes):
            ends = [coupled(flow.move(x, axis, t)) for t in (1e-5, -1e-5)]
            torch.testing.assert_close(each, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-7)


def test_an_error_of_the_network_itself_is_raised() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        evaluate_lie_derivative(nn.Linear(7, 2), torch.randn(2, 3, 3), PointRotationFlow())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", ["forward", "double_backward"])
def test_no_trace_is_left_and_masks_are_the_same(training: bool, way: Way) -> None:
    torch.manual_seed(0)
    network = noisy(0.5, nn.Tanh).train(training)
    x = torch.randn(6, 1, 4, 4)
    before, state = {name: value.clone() for name, value in network.state_dict().items()}, torch.get_rng_state()
    flow = ScalingFlow(window=None)
    slopes = evaluate_lie_derivative(network, x, flow)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training == training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())

    def again(x: Tensor) -> Tensor:
        torch.set_rng_state(state)
        return network(x)

    torch.testing.assert_close(by(way, again, x, flow), slopes.detach(), rtol=1e-5, atol=1e-6)
    torch.set_rng_state(state)


def test_in_inference_mode_and_under_autocast() -> None:
    network, x = made(convolutional).float(), noise(3, 1, 8, 8).float()
    expected = evaluate_lie_derivative(network, x, RotationFlow()).detach()
    with torch.inference_mode():
        torch.testing.assert_close(evaluate_lie_derivative(network, x.clone(), RotationFlow()), expected)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(evaluate_lie_derivative(network, x, RotationFlow()), expected)


def test_rules_of_our_own_give_what_those_of_torch_do() -> None:
    """With weights that move too, keywords, and what is no tensor of the network's."""
    x, v = noise(2, 3, 8), noise(2, 3, 8, seed=1)
    kernel, bias, weight = noise(4, 3, 3, seed=2), noise(4, seed=3), noise(5, 8, seed=4)

    def function(x: Tensor) -> Tensor:
        moving = F.conv1d(x, kernel * x.mean(), bias, padding=1)
        keywords = F.conv1d(x, kernel, bias=bias, stride=1, padding=1)
        added = F.linear(x, weight, bias=x.sum((0, 1))[:5])
        plain = F.relu(x - 0.5) + torch.relu(x).square() + x.relu() + F.relu(input=x) + F.relu(x.clone(), inplace=True)
        return torch.cat([moving.flatten(1), keywords.flatten(1), added.flatten(1), plain.flatten(1)], dim=1)

    outputs, slopes = DirectionalDerivative("forward").of(function, x, [v], differentiable=False)
    expected = torch.func.jvp(function, (x,), (v,))
    torch.testing.assert_close(outputs, expected[0])
    torch.testing.assert_close(slopes[0], expected[1])


# The error -------------------------------------------------------------------------------------------------------


def test_published_numbers_by_the_published_formula() -> None:
    """lie-deriv: the mean over classes of |d softmax(f(ρ(t) x)) / dt|, here with the flow's own interpolation."""
    network, x = made(convolutional), noise(6, 1, 8, 8)
    flow = TranslationFlow(pixels=3.5)
    zero = torch.zeros((), dtype=torch.float64)
    by_hand = []
    for generator in flow.generators:
        probabilities = torch.func.jvp(
            lambda t, g=generator: network(flow.move(x, g, t)).softmax(-1), (zero,), (torch.ones_like(zero),)
        )
        by_hand.append(probabilities[1].abs().mean(-1).mean().detach())
    with torch.no_grad():
        logits, slopes = network(x), evaluate_lie_derivative(network, x, flow)
    got = lie_derivative_error(logits, slopes, activation="softmax", norm="absolute", reduction="element")
    torch.testing.assert_close(got, torch.stack(by_hand))
    single = evaluate_lie_derivative(network, x, TranslationFlow())
    torch.testing.assert_close(slopes, 3.5 * single.detach())


def test_probabilities_of_labels_and_of_pixels() -> None:
    z, dz = noise(2, 3, 4, 5), noise(2, 2, 3, 4, 5, seed=1)
    for activation, function in (("softmax", lambda z: z.softmax(1)), ("sigmoid", torch.sigmoid)):
        slopes = torch.stack([torch.func.jvp(function, (z,), (each,))[1] for each in dz])
        expected = slopes.square().flatten(2).mean(-1).mean(0)
        got = lie_derivative_error(z, dz, activation=activation, reduction="none")  # type: ignore[arg-type]
        torch.testing.assert_close(got, expected)
    huge = torch.tensor([[1e4, -1e4]])
    with warnings.catch_warnings():
        assert float(lie_derivative_error(huge, torch.ones(1, 1, 2) * 1e3, activation="softmax")) == 0.0
