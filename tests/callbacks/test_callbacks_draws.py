"""Groups that go on for ever: training draws their elements anew, and what is measured was never trained."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import assert_trained_alike, fit, trainer_for
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_invariance import (
    C4,
    O3,
    SO2,
    SO3,
    Action,
    InvarianceMonitor,
    InvarianceRegularizer,
    LogitInvarianceError,
    OrbitAugmentation,
    Rotations,
    ScalingRange,
    SensitivityMonitor,
    SetPermutations,
    evaluate_invariance,
    evaluate_orbit,
)
from lightning_invariance.callbacks._base import step_generator

WEIGHT = 0.3


class Cloud(LightningModule):
    """A perceptron on five points in space, and what its step was given."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.rate = rate
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(15, 16), nn.Tanh(), nn.Linear(16, 3))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch.clone())
        return (self(batch) - batch.square().sum((1, 2))[:, None] / 15).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def clouds(count: int = 12, batch_size: int = 4, seed: int = 0) -> DataLoader[Any]:
    points = torch.randn(count, 5, 3, generator=torch.Generator().manual_seed(seed))
    return DataLoader(list(points), batch_size=batch_size)


def matrices_of(moved: Tensor, x: Tensor) -> Tensor:
    """The matrix that took each cloud's points to where they are, by least squares."""
    return torch.linalg.lstsq(x.double(), moved.double()).solution.mT


def rotations_of(module: Cloud, epochs: int) -> Tensor:
    x = torch.cat(list(clouds())).repeat(epochs, 1, 1)
    return matrices_of(torch.cat(module.seen), x)


def distinct(matrices: Tensor) -> int:
    """How many of them differ."""
    return len({tuple(row) for row in matrices.flatten(1).mul(1e4).round().tolist()})


# Augmentation -----------------------------------------------------------------------------------------------------


def test_every_sample_of_every_step_gets_a_rotation_of_its_own() -> None:
    module = fit(Cloud, [OrbitAugmentation(SO3(2))], data=clouds(), max_epochs=3)
    found = rotations_of(module, 3)
    identity = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(found @ found.mT, identity.expand_as(found), atol=1e-4)
    assert torch.allclose(torch.linalg.det(found), torch.ones(len(found), dtype=torch.float64), atol=1e-4)
    assert distinct(found) == len(found) == 36
    assert not torch.isclose(found, identity, atol=1e-3).flatten(1).all(1).any()
    # Uniform: the trace of a rotation of space has mean 0 and variance 1.
    traces = found.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(float(traces.mean())) < 4 / math.sqrt(len(traces))


def test_draws_follow_the_seed_and_go_on_after_a_checkpoint(tmp_path: Any) -> None:
    def draws(epochs: int, seed: int | None = None, resume: Any = None, save: bool = False) -> list[Tensor]:
        torch.manual_seed(1)
        module = Cloud()
        trainer = trainer_for([OrbitAugmentation(SO3(2), seed=seed)], max_epochs=epochs)
        trainer.fit(module, clouds(), ckpt_path=resume)
        if save:
            trainer.save_checkpoint(tmp_path / "half.ckpt")
        return module.seen

    whole, first = draws(2), draws(1, save=True)
    resumed = draws(2, resume=tmp_path / "half.ckpt")
    assert torch.equal(torch.cat(whole), torch.cat(first + resumed))
    assert not torch.equal(torch.cat(whole), torch.cat(draws(2, seed=9)))
    assert torch.equal(torch.cat(draws(1, seed=9)), torch.cat(draws(1, seed=9)))


def test_each_process_draws_elements_of_its_own() -> None:
    drawn = []
    for rank in (0, 1, 0):
        augmentation, regularizer = OrbitAugmentation(SO3(2)), InvarianceRegularizer(SO3(2))
        trainer = trainer_for([augmentation, regularizer])
        trainer.strategy.global_rank = rank
        assert trainer.global_rank == rank
        torch.manual_seed(1)
        regularizer.on_train_batch_start(trainer, Cloud(), None, 0)
        generator = step_generator("augmentation", trainer, augmentation, None, 0)
        drawn.append((augmentation.action.fresh(4, generator)[0], regularizer._present_action))
    assert drawn[0] == drawn[2]
    assert all(one != other for one, other in zip(drawn[0], drawn[1], strict=True))


# Regularizer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [SO3(2), O3(2), SetPermutations(2), SO3(2) * SetPermutations(2)], ids=repr)
def test_the_penalty_is_of_elements_drawn_in_this_step(action: Action) -> None:
    given: list[Tensor] = []

    class Records(Cloud):
        def forward(self, x: Tensor) -> Tensor:
            given.append(x.detach().clone())
            return self.model(x)

    fit(Records, [InvarianceRegularizer(action, WEIGHT)], data=clouds(4), max_epochs=3)
    # In each step the network's own call on x, and one on all elements but the identity.
    x = next(iter(clouds(4)))
    moved = [each for each in given if len(each) > 4]
    assert torch.equal(moved[0][:4], x)  # the first step looks whether x, run again, gives the same
    moved = moved[1:]
    assert len(moved) == 3
    assert all(len(each) == 4 * (len(action) - 1) for each in moved)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert not torch.allclose(moved[one], moved[other], atol=1e-3)
    fixed = action.orbit(x)[1:].flatten(0, 1)
    assert not any(torch.allclose(each, fixed, atol=1e-3) for each in moved)


def test_a_group_that_is_no_draw_is_used_as_it_is() -> None:
    regularizer = InvarianceRegularizer(C4(), WEIGHT)
    assert regularizer.action == C4()
    assert InvarianceMonitor(C4()).action == C4()


# Monitors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action", [SO3(3), O3(3), SO2(3), ScalingRange(0.5, 2.0, 3), SetPermutations(3), C4() * SO2(3)], ids=repr
)
def test_monitors_measure_one_list_that_no_training_draws(action: Action) -> None:
    measured = InvarianceMonitor(action).action
    assert type(measured) is type(action)
    assert len(measured) == len(action)
    assert measured != action
    assert measured == InvarianceMonitor(action).action == SensitivityMonitor(action).action
    # Other seeds, other lists.
    other = action.redrawn(1)
    assert InvarianceMonitor(other).action != measured


def test_records_say_which_elements_were_measured() -> None:
    torch.manual_seed(0)
    module, data = Cloud(), clouds(8)
    monitor = InvarianceMonitor(SO3(4), measures=["logit_invariance_error"])
    trainer_for([monitor], max_epochs=2).fit(module, clouds(), data)
    first, last = monitor.history
    assert first.action == last.action == monitor.action
    assert isinstance(last.action, SO3)
    assert last.action.samples == 4
    assert f"SO3(samples=4, seed={last.action.seed}, dim=-1)" == repr(last.action)
    x = torch.cat(list(data))
    with torch.no_grad():
        outputs = evaluate_orbit(module, x, SO3(4, seed=last.action.seed))
    metric = LogitInvarianceError()
    metric.update(outputs.logits, outputs.orbit_logits)
    assert float(last.measures["logit_invariance_error"].value) == pytest.approx(float(metric.compute()), rel=1e-5)
    results = evaluate_invariance(module, data, SO3(4), measures=["logit_invariance_error"], progress=False)
    assert results.action == last.action
    assert float(results["logit_invariance_error"].value) == pytest.approx(float(metric.compute()), rel=1e-5)


def test_a_network_trained_on_one_rotation_a_step_is_measured_as_fresh_rotations_measure_it() -> None:
    """With a fixed list the trained rotation has a lower error than the others: the monitor must not be fooled."""

    def train(regularizer: list[Any]) -> tuple[Cloud, InvarianceMonitor]:
        torch.manual_seed(3)
        module = Cloud(rate=0.05)
        monitor = InvarianceMonitor(SO3(24), measures=["logit_invariance_error"])
        val = clouds(64, 64, seed=5)
        trainer_for([*regularizer, monitor], max_epochs=40).fit(module, clouds(64, 16, seed=4), val)
        return module, monitor

    def independent(module: Cloud) -> tuple[float, float]:
        """LI on 200 rotations from another generator, and its standard error over them."""
        q = torch.linalg.qr(torch.randn(200, 3, 3, generator=torch.Generator().manual_seed(77)).double())[0]
        q = q * torch.linalg.det(q)[:, None, None]
        x = next(iter(clouds(64, 64, seed=5)))
        with torch.no_grad():
            fx = module(x)
            errors = torch.stack([(module((x.double() @ r.mT).float()) - fx).square().sum(1).mean() / 2 for r in q])
        return float(errors.mean()), float(errors.std() / math.sqrt(len(errors)))

    module, monitor = train([InvarianceRegularizer(SO3(1), 3.0)])
    value, error = monitor.history[-1].measures["logit_invariance_error"]
    expected, spread = independent(module)
    # 24 rotations spread the measured value over draws of the group as the independent ones tell.
    over_rotations = spread * math.sqrt(200 / 24)
    assert abs(float(value) - expected) < 3 * math.hypot(float(error), spread, over_rotations)

    # What the test would miss otherwise: a single rotation, trained throughout and measured too.
    class Fixed(SO3):
        @property
        def drawn(self) -> bool:
            return False

    memorised, _ = train([InvarianceRegularizer(Fixed(1), 3.0)])
    x = next(iter(clouds(64, 64, seed=5)))
    with torch.no_grad():
        trained = float((memorised(Fixed(1).act(x, 1)) - memorised(x)).square().sum(1).mean() / 2)
    assert trained < 0.7 * independent(memorised)[0]


def test_augmentation_by_interpolated_rotations_of_a_list_stays_a_list() -> None:
    """Rotations(8) is a finite group: nothing of it is drawn anew."""
    assert not Rotations(8).drawn
    got = fit(Cloud, [InvarianceRegularizer(SO3(2), 0.0)], data=clouds())
    assert_trained_alike(got, fit(Cloud, data=clouds()), fit(lambda: Cloud(0.2), data=clouds()))
