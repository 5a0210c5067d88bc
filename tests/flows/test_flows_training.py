"""The penalty by Lie derivatives, against steps that have the term written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flows_functions import Sine
from helpers import SIDE, fit, loader, made, trainer_for
from lightning.pytorch import LightningModule
from oracles import WEIGHT, Classifier, Lie, compare, convnet, distance, dropping, lie_term, noisy
from steps import Manual, regularised, with_term
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_invariance as li

FLOW = li.RotationFlow(window=None)


def of(network: Callable[[], nn.Module]) -> type[Classifier]:
    class Plain(Classifier):
        def __init__(self) -> None:
            super().__init__(network)

    return Plain


def by_flow(plain: type[Any], oracle: Any = None, **options: Any) -> LightningModule:
    return regularised(plain, oracle or with_term(plain, Lie), **{"action": FLOW, **options})


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (lambda: noisy(0.5, nn.Tanh), {"accumulate_grad_batches": 3, "gradient_clip_val": 0.2, "max_epochs": 4}),
        (noisy, {"max_epochs": 1}),
        (convnet, {"precision": "64-true"}),
        (dropping, {"overfit_batches": 1}),
    ],
    ids=["accumulated", "ReLUs", "double", "dropout"],
)
def test_as_by_hand(network: Callable[[], nn.Module], options: dict[str, Any]) -> None:
    by_flow(of(network), options=options)


def test_with_manual_optimisation_and_a_named_network() -> None:
    class Plain(Manual, Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return self.model.forward(x)

    by_flow(Plain, network="model")


def test_in_half_precision() -> None:
    """The derivative is computed in the step's own precision, which rounds both ways of differentiating otherwise."""
    options = {"precision": "bf16-mixed"}
    got = fit(Classifier, [li.InvarianceRegularizer(FLOW, WEIGHT)], **options)
    oracle, plain = fit(with_term(Classifier, Lie), **options), fit(Classifier, **options)
    assert distance(got, oracle) < 0.05 * distance(oracle, plain)
    module = fit(Classifier, [li.InvarianceRegularizer(FLOW, WEIGHT)], precision="bf16-true")
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())


def test_an_operation_without_a_rule_trains_by_two_backwards() -> None:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(SIDE * SIDE, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(Sine.apply(self.first(x.flatten(1))))

    by_flow(of(Waves))


def test_generators_that_are_drawn_estimate_the_sum_over_all() -> None:
    """Over many steps at a learning rate of 0, the mean of what is logged."""
    flow = li.TranslationFlow()
    logged = []
    for elements in (None, 1):
        module = made(lambda: Classifier(lr=0.0))
        trainer = trainer_for([li.InvarianceRegularizer(flow, 1.0, elements_per_step=elements)], max_epochs=1)
        trainer.fit(module, loader(160, batch_size=1))
        logged.append(float(trainer.callback_metrics["train/invariance_penalty"]))
    x = torch.cat([x for x, _ in loader(160)])
    exact = li.evaluate_lie_derivative(module.model, x, flow).detach().square().sum(-1).mean(1).sum()
    assert logged[0] == pytest.approx(float(exact), rel=1e-5)
    assert logged[1] != pytest.approx(logged[0], rel=1e-4)
    assert logged[1] == pytest.approx(logged[0], rel=0.2)


# Points ----------------------------------------------------------------------------------------------------------


class Energies(LightningModule):
    """An energy of points, which nothing makes invariant, and its forces in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, r: Tensor) -> Tensor:
        return self.model(r).sum((1, 2))

    def term(self, r: Tensor) -> Tensor | float:
        return 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (r,) = batch
        return F.mse_loss(self(r), r.square().sum((1, 2))) + self.term(r)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Torque(Energies):
    """The squared norm of the net torque, by the forces."""

    def term(self, r: Tensor) -> Tensor:
        leaf = r.detach().clone().requires_grad_()
        forces = -torch.autograd.grad(self(leaf).sum(), leaf, create_graph=True)[0]
        return WEIGHT * torch.linalg.cross(r, forces).sum(1).square().sum(1).mean()


def clouds() -> DataLoader[Any]:
    r = torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(r), batch_size=4)


def test_of_an_energy_it_is_the_squared_norm_of_the_net_torque() -> None:
    regularizer = li.InvarianceRegularizer(li.PointRotationFlow(), WEIGHT)
    compare(Energies, Torque, [regularizer], data=clouds())


def test_energies_of_samples_that_depend_on_each_other() -> None:
    """By the statistics of their batch."""

    class Coupled(Energies):
        def forward(self, r: Tensor) -> Tensor:
            energies = super().forward(r)
            return energies / (1 + energies.square().mean())

    class ByHand(Coupled):
        def term(self, r: Tensor) -> Tensor:
            axes = [torch.linalg.cross(axis.expand_as(r), r) for axis in torch.eye(3)]
            return WEIGHT * lie_term(self, r, axes)

    compare(Coupled, ByHand, [li.InvarianceRegularizer(li.PointRotationFlow(), WEIGHT)], data=clouds())


class Vectors(Energies):
    """One vector for each point."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, r: Tensor) -> Tensor:
        return self.model(r)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (r,) = batch
        return F.mse_loss(self(r), r.square()) + self.term(r)


class TurningVectors(Vectors):
    def term(self, r: Tensor) -> Tensor:
        axes = torch.eye(3)
        total: Any = 0.0
        for axis in axes:
            moved = torch.linalg.cross(axis.expand_as(r), r)
            by_output = torch.linalg.cross(axis.expand_as(r), self(r))
            total = total + lie_term_of(self, r, moved, by_output)
        return WEIGHT * total


def lie_term_of(run: Callable[[Tensor], Tensor], x: Tensor, tangent: Tensor, by_output: Tensor) -> Tensor:
    slope = torch.autograd.functional.jvp(run, x, tangent, create_graph=True)[1]
    return (slope - by_output).square().sum((1, 2)).mean()


@pytest.mark.parametrize("output", ["same", li.PointRotationFlow()], ids=["same", "a flow"])
def test_vectors_are_to_turn_with_their_points(output: Any) -> None:
    regularizer = li.InvarianceRegularizer(li.PointRotationFlow(), WEIGHT, output_action=output)
    compare(Vectors, TurningVectors, [regularizer], data=clouds())


def test_the_term_of_several_directions_by_hand_is_that_of_each() -> None:
    """The oracle's own: a sum over directions."""
    network, x = made(lambda: of(convnet)()).eval(), torch.randn(3, 1, SIDE, SIDE)
    both = lie_term(network, x, [x, x.flip(-1)])
    one_by_one = lie_term(network, x, [x]) + lie_term(network, x, [x.flip(-1)])
    torch.testing.assert_close(both, one_by_one)


# Refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"penalty": "distribution"}, "`penalty` to be 'logit' with RotationFlow"),
        ({"penalty": lambda logits, orbit_logits: logits.sum()}, "`penalty` to be 'logit' with RotationFlow"),
        ({"max_batch": 4}, "`max_batch` to be None with RotationFlow"),
        ({"elements_per_step": 2}, "`elements_per_step` to be at most 1, the generators of RotationFlow"),
        ({"output_action": li.C4()}, r"`output_action` to be None .*, 'same' .* or a Flow but got C4\(\)"),
        ({"output_action": li.ShearFlow()}, "`output_action` to have as many generators as RotationFlow"),
        ({"output_action": {"a": "same"}}, r"`output_action` to be None .*, 'same' .* or a Flow but got \{"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        li.InvarianceRegularizer(li.RotationFlow(), 1.0, **options)


def test_compiled_networks_are_refused_before_the_first_step() -> None:
    class Compiled(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.model.compile(backend="eager")

    with pytest.raises(ValueError, match="a network that is not compiled for the Lie derivatives of RotationFlow"):
        fit(Compiled, [li.InvarianceRegularizer(li.RotationFlow())])


def test_several_inputs_are_refused() -> None:
    class Pairs(Energies):
        def forward(self, r: Tensor, v: Tensor) -> Tensor:
            return self.model(r + v).sum((1, 2))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0], batch[0].clone()).square().mean()

    regularizer = li.InvarianceRegularizer(li.PointRotationFlow(), input=[0, 1])
    with pytest.raises(ValueError, match=r"one input for the Lie derivatives of .* but got 2 that move together"):
        fit(Pairs, [regularizer], data=clouds())
