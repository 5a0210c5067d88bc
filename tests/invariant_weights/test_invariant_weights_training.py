"""`InvariantWeights` against trainings written by hand: what is projected and pulled when, and what is left."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import loader, made, trainer_for
from invariant_weights_by_hand import (
    LAYOUTS,
    SIDE,
    ByHand,
    Trained,
    adam,
    adamw,
    apart,
    assert_as_by_hand,
    asymmetry,
    cnn,
    lbfgs,
    maps,
    matched,
    mlp,
    moved,
    pull,
    ramp,
    sgd,
    start,
    variation,
    weights_of,
)
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_invariance import C4, InvariantWeights, WeightRamp, symmetrize

# The mean over the group -----------------------------------------------------------------------------------------


def turned_back(fx: Tensor, turns: int) -> Tensor:
    return torch.rot90(fx, -turns, (-2, -1))


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_the_mean_by_hand_is_that_of_the_package_and_makes_networks_invariant(make: Callable[[], nn.Module]) -> None:
    layout, back = LAYOUTS[make], {"back": turned_back} if make is maps else {}
    network = made(make).double().eval()
    for name, value in weights_of(network).items():
        if "running" in name:  # those of a fresh network are alike
            value.uniform_(0.5, 2)
    x = torch.randn(4, 1, SIDE, SIDE, dtype=torch.float64)
    fx, twin = network(x), copy.deepcopy(network)
    for turns in (1, 2, 3):  # f_{gw}(gx) = f_w(x)
        given = {
            name: moved(value, layout[name], turns) for name, value in weights_of(network).items() if name in layout
        }
        fgx = torch.func.functional_call(network, given, torch.rot90(x, turns, (-2, -1)))
        torch.testing.assert_close(turned_back(fgx, turns) if make is maps else fgx, fx, rtol=0.0, atol=1e-12)
    assert variation(network, **back) > 0.1
    pull(network, layout, 1.0)
    assert variation(network, **back) < 1e-12
    symmetrize(twin, C4(), x, output_action="same" if make is maps else None).project_()
    assert apart(twin, network) < 1e-15


def test_running_statistics_are_found_after_the_network_has_moved() -> None:
    network = made(cnn)
    symmetry = symmetrize(network, C4(), torch.randn(4, 1, SIDE, SIDE))
    network.double()  # its buffers are other tensors now
    network[1].running_mean.normal_()
    symmetry.project_()
    assert variation(network) < 1e-12


# Training --------------------------------------------------------------------------------------------------------


def constant(value: float) -> Callable[[int], float]:
    return lambda step: value


MERGE = {"mode": "merge", "begin": matched, "strength": ramp(4)}  # by 80 % of 6 steps
DOUBLE = {"precision": "64-true"}
TRAININGS: dict[str, tuple[ByHand, dict[str, Any]]] = {
    "project": (ByHand(), {}),
    "project, 64-true": (ByHand(**DOUBLE), {}),
    "project, Adam": (ByHand(optimizer=adam), {}),
    "project, AdamW": (ByHand(mlp, adamw), {}),
    "project, LBFGS, 64-true": (ByHand(mlp, lbfgs, **DOUBLE), {}),
    "project, pulled": (ByHand(strength=constant(0.3)), {"strength": 0.3}),
    "project, pulled all the way": (ByHand(mlp, adam, strength=constant(1.0)), {"strength": 1}),
    "project, ramp": (ByHand(strength=ramp(5)), {"strength": WeightRamp(0.0, 1.0, steps=5)}),
    "merge": (ByHand(**MERGE), {}),
    "merge, AdamW, 64-true": (ByHand(optimizer=adamw, **MERGE, **DOUBLE), {}),
    "merge, LBFGS, 64-true": (ByHand(mlp, lbfgs, **MERGE, **DOUBLE), {}),
    "merge, constant": (ByHand(mlp, **{**MERGE, "strength": constant(0.3)}), {"strength": 0.3}),
    "merge, ramp": (ByHand(mlp, adam, **{**MERGE, "strength": ramp(6)}), {"strength": WeightRamp(0.0, 1.0, steps=6)}),
}


@pytest.mark.parametrize(("hand", "arguments"), TRAININGS.values(), ids=TRAININGS)
def test_trained_as_by_hand(hand: ByHand, arguments: dict[str, Any]) -> None:
    callback = InvariantWeights(C4(), mode=hand.mode, **arguments)
    module = hand.by_trainer([callback])
    ends_invariant = hand.strength is None or hand.strength(6) == 1.0
    tolerance = 1e-12 if hand.precision == "64-true" else 1e-6
    assert_as_by_hand(module.model, hand, tolerance, ends_invariant)


# Matching --------------------------------------------------------------------------------------------------------


def shuffled(network: nn.Module) -> None:
    """Invariant, its channels in disorder."""
    start(network, LAYOUTS[cnn])
    first, second = torch.randperm(8), torch.randperm(8)
    with torch.no_grad():
        for each in (network[0].weight, network[0].bias):
            each.copy_(each[first])
        network[4].weight.copy_(network[4].weight[second][:, first])
        network[4].bias.copy_(network[4].bias[second])
        network[6].weight.copy_(network[6].weight.view(-1, 8, 4)[:, second].flatten(1))


class Standing(Trained):
    """Its statistics alone change, and the network is given a start."""

    begin: Callable[[nn.Module], None]

    def __init__(self, network: Any, optimizer: Any) -> None:
        super().__init__(network, optimizer)
        type(self).begin(self.model)


def standing(parameters: Any) -> torch.optim.Optimizer:
    return sgd(parameters, lr=0.0)


@pytest.mark.parametrize(
    ("make", "begin", "left"),
    [(cnn, shuffled, 1e-6), (cnn, None, 0.99), (mlp, None, 0.99)],
    ids=["shuffled", "cnn", "mlp"],
)
def test_matching(make: Any, begin: Any, left: float) -> None:
    """A merge without strength leaves the function as it is; its channels are nearer to regular fields than before."""
    kind = type("Begun", (Standing,), {"begin": staticmethod(begin or (lambda network: None))})
    hand = ByHand(make, standing)
    before = hand.by_trainer([], kind).model.eval()
    after = hand.by_trainer([InvariantWeights(C4(), mode="merge", strength=0.0)], kind).model.eval()
    x = torch.randn(6, 1, SIDE, SIDE)
    torch.testing.assert_close(after(x), before(x), rtol=0.0, atol=1e-6)
    assert apart(after, before) > 0.01
    assert asymmetry(before, LAYOUTS[make]) > 0.3
    assert asymmetry(after, LAYOUTS[make]) < left * asymmetry(before, LAYOUTS[make])


# What is left ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["project", "merge"])
def test_the_network_stays_an_ordinary_one(mode: Any) -> None:
    module, untrained = ByHand().by_trainer([InvariantWeights(C4(), mode=mode)]), made(Trained)
    untrained.load_state_dict(module.state_dict())
    x = torch.randn(6, 1, SIDE, SIDE)
    assert torch.equal(untrained.eval()(x), module.eval()(x))
    assert asymmetry(untrained.model, LAYOUTS[cnn]) == 0.0
    assert type(module) is Trained
    for each, other in zip(module.model.modules(), untrained.model.modules(), strict=True):
        assert type(each) is type(other)
        assert each.__dict__.keys() == other.__dict__.keys()
    saved = io.BytesIO()
    torch.save(module.model, saved)
    assert b"lightning_invariance" not in saved.getvalue()


class Noting(Callback):
    """What was logged in each epoch."""

    def __init__(self) -> None:
        self.logged: list[tuple[float, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch:
            self.on_fit_end(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names = ("train/weight_asymmetry", "train/symmetry_strength")
        self.logged.append(tuple(float(trainer.callback_metrics[name]) for name in names))


@pytest.mark.parametrize(
    ("mode", "strength", "logged"),
    [("project", None, (1.0, 1.0)), ("merge", None, (0.75, 1.0)), ("merge", 0.2, (0.2, 0.2))],
)
def test_logged(mode: Any, strength: Any, logged: tuple[float, float]) -> None:
    expected: list[float] = []
    pulled = ramp(4) if strength is None else constant(strength)
    options = {"strength": pulled, "begin": matched} if mode == "merge" else {}
    hand = ByHand(mlp, mode=mode, after=lambda network: expected.append(asymmetry(network, LAYOUTS[mlp])), **options)
    hand.run()
    noting = Noting()
    trainer = trainer_for([InvariantWeights(C4(), mode=mode, strength=strength), noting])
    trainer.fit(made(lambda: Trained(mlp)), loader(side=SIDE))
    by_hand = [(expected[step], value) for step, value in zip((2, 5), logged, strict=True)]
    assert noting.logged == [pytest.approx(values, rel=1e-4, abs=1e-6) for values in by_hand]
    assert (expected[2] > 0.1) == (mode == "merge")
