"""Networks that write into what they are given, change their mode or their buffers, begin at 0, or compute again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flows_functions import Half
from helpers import trainer_for
from lightning.pytorch import Callback, LightningModule
from oracles import WEIGHT
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import lightning_invariance as li
from lightning_invariance import Flow, evaluate_lie_derivative

# Torch's own, when it loads its rules.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

POINTS = li.PointRotationFlow()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def differences(network: Callable[[Tensor], Tensor], x: Tensor, flow: Flow, step: float = 1e-3) -> Tensor:
    """By six points, whose error is of the sixth order; differentiable in the network's parameters."""
    slopes = []
    for generator in range(len(flow)):

        def at(t: float, generator: int = generator) -> Tensor:
            return network(flow.move(x, generator, t))

        terms = (weight * (at(n * step) - at(-n * step)) for n, weight in ((1, 45), (2, -9), (3, 1)))
        slopes.append(sum(terms, start=torch.zeros(())) / (60 * step))
    return torch.stack(slopes)


def penalty(slopes: Tensor) -> Tensor:
    return slopes.flatten(2).square().sum(-1).sum(0).mean()


class Fitted(LightningModule):
    """Trains any network by squares; as the oracle, with the term by differences."""

    def __init__(self, network: nn.Module, flow: Flow | None = None) -> None:
        super().__init__()
        self.model, self.flow = network, flow

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.mse_loss(self(x), y)
        if self.flow is None:
            return loss
        before = {name: buffer.clone() for name, buffer in self.named_buffers()}
        loss = loss + WEIGHT * penalty(differences(self.model, x, self.flow))
        for name, buffer in self.named_buffers():
            buffer.data.copy_(before[name])
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def assert_trained_alike(
    make: Callable[[], nn.Module], flow: Flow, data: list[tuple[Tensor, Tensor]], callback: Callback | None = None
) -> None:
    networks = []
    for term in (False, True):
        torch.manual_seed(0)
        module = Fitted(make().double(), flow if term else None)
        callbacks = [] if callback is None else [callback]
        if not term:
            callbacks.append(li.InvarianceRegularizer(flow, WEIGHT))
        trainer_for(callbacks, max_epochs=1).fit(module, DataLoader(data, batch_size=None))  # type: ignore[arg-type]
        networks.append(module.model.state_dict())
    for name, value in networks[0].items():
        torch.testing.assert_close(value, networks[1][name], rtol=1e-6, atol=1e-8, msg=name)


def test_a_network_may_write_into_its_input() -> None:
    class Standardising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x.sub_(0.5).div_(0.25))

    torch.manual_seed(0)
    network, x, flow = Standardising().double(), noise(3, 1, 8, 8), li.TranslationFlow(window=0.5)
    expected = differences(lambda moved: network(moved.clone()), x, flow)
    with torch.no_grad():
        got = evaluate_lie_derivative(network, x, flow)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(evaluate_lie_derivative(network, x, flow), expected, rtol=1e-6, atol=1e-8)


class FromSecondStep(Callback):
    """Batch statistics only from then on."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.model[2].train(batch_idx >= 1)


def clouds(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    return [(noise(size, 6, 3, seed=seed), noise(size, 1, seed=9 + seed)) for seed, size in enumerate(sizes)]


def test_samples_that_depend_on_each_other_from_the_second_step() -> None:
    def make() -> nn.Module:
        layers = nn.Flatten(), nn.Linear(18, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)
        return nn.Sequential(*layers)

    assert_trained_alike(make, POINTS, clouds(5, 5, 5), FromSecondStep())


# Outputs that are smaller ------------------------------------------------------------------------------------------


def blob(height: int, width: int, down: float, right: float, spread: float) -> Tensor:
    rows, columns = (
        torch.arange(float(size), dtype=torch.float64) - (size - 1) / 2 - middle
        for size, middle in ((height, down), (width, right))
    )
    return torch.exp(-(rows[:, None].square() + columns.square()) / (2 * spread**2)).expand(1, 1, height, width)


@pytest.mark.parametrize("window", [None, 0.25])
@pytest.mark.parametrize("flow", [li.TranslationFlow, li.RotationFlow, li.ScalingFlow, li.ShearFlow])
@pytest.mark.parametrize("pool", [(2, 2), (4, 2)], ids=str)
def test_a_pooled_output_moves_in_proportion(flow: Any, window: float | None, pool: tuple[int, int]) -> None:
    """Pooling by means is equivariant, for what is smooth, to all that moves the plane."""
    x, moving = blob(64, 64, 4.0, -6.0, 6.0), flow(window=window)

    def pooled(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, pool)

    still, moved = (
        evaluate_lie_derivative(pooled, x, moving, output_flow=each).flatten(1).norm(dim=1) for each in (None, "same")
    )
    # Means over squares are a smoothing, whose width rotating, scaling and shearing change by a little.
    tolerance = 0.01 if flow is li.TranslationFlow else 0.05
    assert bool((moved < tolerance * still).all()), (moved / still).tolist()
    beside = moving.alongside(x, pooled(x))
    for name in moving.generators:
        step = 1e-4
        ends = [beside.move(pooled(x), name, t) for t in (step, -step)]
        torch.testing.assert_close(
            (ends[0] - ends[1]) / (2 * step), beside.tangent(pooled(x), name), rtol=1e-5, atol=1e-6
        )
    assert beside != moving
    assert moving.alongside(x, x) == moving


def test_an_output_whose_places_have_no_known_length_is_refused() -> None:
    x = noise(2, 1, 8, 8)
    cropping = nn.Conv2d(1, 1, 3).double()
    with pytest.raises(
        ValueError, match="a whole fraction of them along each side, to move as the input does, but got 6×6"
    ):
        evaluate_lie_derivative(cropping, x, li.TranslationFlow(), output_flow="same")
    assert evaluate_lie_derivative(cropping, x, li.RotationFlow(), output_flow="same").shape == (1, 2, 1, 6, 6)


@pytest.mark.filterwarnings("ignore:.*(if it moves with the input|moves in the input)")
def test_what_is_measured_and_regularised_moves_in_proportion() -> None:
    x, flow = blob(64, 64, 4.0, -6.0, 6.0).float(), li.TranslationFlow(window=None)
    pool = nn.AvgPool2d(4)
    options: dict[str, Any] = {"measures": ["lie_derivative_error"], "progress": False}
    still, moved = (
        float(li.evaluate_invariance(pool, [x], flow, output_action=each, **options)["lie_derivative_error"].value)
        for each in (None, "same")
    )
    assert moved < 1e-4 * still

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return pool(self.scale * x)

    logged = []
    for output in (None, "same"):
        regularizer = li.InvarianceRegularizer(flow, WEIGHT, output_action=output)
        trainer = trainer_for([regularizer], max_epochs=1)
        trainer.fit(Fitted(Pooled()), DataLoader([(x, pool(x))], batch_size=None))  # type: ignore[arg-type]
        logged.append(float(trainer.callback_metrics["train/invariance_penalty"]))
    assert logged[1] < 1e-4 * logged[0]


# What begins at 0 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["head", "batch"])
def test_gradients_that_differ_are_refused_once_there_are_some(what: str) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(18, 4), nn.Tanh())
            self.head = nn.Linear(4, 2)
            if what == "head":
                nn.init.zeros_(self.head.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(Half.apply(self.layers(x).square()))

    data = [(noise(4, 6, 3, seed=seed), noise(4, 2, seed=9)) for seed in range(3)]
    if what == "batch":
        data[0] = (torch.zeros_like(data[0][0]), data[0][1])
    with pytest.raises(ValueError, match="xpected the gradients of the Lie derivative to be the same whether"):
        assert_trained_alike(Network, POINTS, data)


def test_the_one_gradient_is_not_trusted_for_a_first_batch_of_one_sample() -> None:
    """Which depends on no other, as those of the next batch do."""

    class Coupled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(18, 1)

        def forward(self, x: Tensor) -> Tensor:
            v = self.layer(x.flatten(1))
            return (v - v.mean(0) + v.square().mean(0)).tanh()

    assert_trained_alike(Coupled, POINTS, clouds(1, 5, 5))


# Buffers -----------------------------------------------------------------------------------------------------------


def test_all_runs_begin_with_the_same_buffers() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(18, 8), nn.Linear(8, 3)
            self.register_buffer("centre", torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.layer(x.flatten(1))
            self.centre.mul_(0.5).add_(0.5 * hidden.detach().mean(0))
            return self.head((hidden - self.centre).tanh())

    def normalised() -> nn.Module:
        spectral = nn.utils.parametrizations.spectral_norm
        return nn.Sequential(nn.Flatten(), spectral(nn.Linear(18, 16)), nn.Tanh(), spectral(nn.Linear(16, 3)))

    for make in (Centred, normalised):
        torch.manual_seed(0)
        network, x = make().double(), noise(4, 6, 3)
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}

        def run(x: Tensor, network: nn.Module = network, before: dict[str, Tensor] = before) -> Tensor:
            return torch.func.functional_call(network, {name: value.clone() for name, value in before.items()}, x)

        slopes = evaluate_lie_derivative(network, x, POINTS)
        if make is Centred:  # its buffer is given no gradient, but follows x
            slopes = slopes.detach()
            for generator in range(3):
                by_torch = torch.func.jvp(run, (x,), (POINTS.tangent(x, generator),))[1]
                torch.testing.assert_close(slopes[generator], by_torch.detach())
        else:
            torch.testing.assert_close(slopes, differences(run, x, POINTS), rtol=1e-6, atol=1e-8)
        assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())


# What is computed again --------------------------------------------------------------------------------------------


class Recomputed(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


@pytest.mark.parametrize("make", [lambda: nn.LayerNorm(8), nn.Tanh])
def test_checkpointed_layers(make: Callable[[], nn.Module]) -> None:
    def network() -> nn.Module:
        inner = Recomputed(nn.Linear(3, 8), make(), nn.Linear(8, 8))
        return nn.Sequential(inner, nn.Tanh(), nn.Flatten(), nn.Linear(48, 3))

    data = [(noise(4, 6, 3, seed=seed), noise(4, 3, seed=9 + seed)) for seed in range(2)]
    assert_trained_alike(network, POINTS, data)


def test_checkpointed_functions_of_the_users_own_are_refused_in_the_first_step() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return 2 * x * gradient

    class Squares(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Square.apply(x)

    network = Recomputed(nn.Linear(3, 8), nn.LayerNorm(8), Squares(), nn.Linear(8, 3)).double()
    with pytest.raises(ValueError, match=r"compute nothing again in its backward \(torch.utils.checkpoint\)"):
        evaluate_lie_derivative(network, noise(4, 6, 3), POINTS)


# Functions and forces ----------------------------------------------------------------------------------------------


def test_a_function_may_round_for_t_0() -> None:
    def rolled(x: Tensor, t: Tensor) -> Tensor:
        frequencies = 2 * torch.pi * torch.fft.rfftfreq(x.shape[-1], dtype=x.dtype)
        return torch.fft.irfft(torch.fft.rfft(x) * torch.exp(-1j * frequencies * t), n=x.shape[-1])

    places = torch.arange(15) * 2 * torch.pi / 15
    waves = torch.stack([(n * places).sin() for n in (1, 2, 3)])
    tangent = li.FunctionFlow({"shift": rolled}).tangent(waves, "shift")
    expected = torch.stack([-n * 2 * torch.pi / 15 * (n * places).cos() for n in (1, 2, 3)])
    torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"give the batch back for t = 0, but for rounding, but got .* up to 0.00"):
        li.FunctionFlow({"shift": lambda x, t: x * (1.001 + t)}).tangent(waves, "shift")


def test_forces_of_a_network_that_asks_for_its_inputs_gradient() -> None:
    class Forces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

        def forward(self, r: Tensor) -> Tensor:
            r.requires_grad_()
            return -torch.autograd.grad(self.energy(r).sum(), r, create_graph=True)[0]

    regularizer = li.InvarianceRegularizer(POINTS, WEIGHT, output_action="same")
    module, r = Fitted(Forces().double()), noise(4, 6, 3)
    x = r.clone().requires_grad_()

    def brought_back(t: float) -> Tensor:
        return torch.stack([POINTS.move(module.model(POINTS.move(x, k, t)), k, -t) for k in range(3)])

    step = 1e-5
    expected = penalty((brought_back(step) - brought_back(-step)) / (2 * step)).detach()
    trainer = trainer_for([regularizer], max_epochs=1)
    trainer.fit(module, DataLoader([(r.clone(), r)], batch_size=None))  # type: ignore[arg-type]
    assert float(trainer.callback_metrics["train/invariance_penalty"]) == pytest.approx(float(expected), rel=1e-5)
