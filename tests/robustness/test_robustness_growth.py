"""Memory: what is alive after many steps is what was alive after a few."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Images, seed_all, trainer_for
from lightning.pytorch import Callback, LightningModule, Trainer
from robustness_helpers import Classifier
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_invariance import C4, Gradient, InvarianceMonitor, InvarianceRegularizer, OrbitAugmentation


def tensors() -> list[Tensor]:
    gc.collect()
    return [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]


class Counter(Callback):
    """Counts what came alive since it was made, after every so many steps or epochs, less what may grow."""

    def __init__(self, every: int, may_grow: Callable[[], list[Tensor]] = list) -> None:
        self.every, self.may_grow = every, may_grow
        self.old = {id(each): weakref.ref(each) for each in tensors()}  # other tests' leavings, which may go
        self.counts: list[tuple[int, int]] = []

    def count(self, place: int) -> None:
        if place % self.every == 0:
            new = [each for each in tensors() if id(each) not in self.old or self.old[id(each)]() is not each]
            grown = self.may_grow()
            values = sum(each.numel() for each in new) - sum(each.numel() for each in grown)
            self.counts.append((len(new) - len(grown), values))


class StepCounter(Counter):
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.count(trainer.global_step)


class EpochCounter(Counter):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.count(trainer.current_epoch + 1)


class Quiet(Classifier):
    """Notes no losses, which would grow."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


def data(count: int) -> DataLoader[Any]:
    return DataLoader(Images(count, side=2), batch_size=2)


class Leaking(Callback):
    """Keeps what it should not."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.kept.append(torch.zeros(3))


def test_the_counter_sees_a_leak() -> None:
    counter = StepCounter(every=10)
    trainer_for([Leaking(), counter], max_epochs=4).fit(Quiet(), data(20))
    first, *rest = counter.counts
    assert [(count[0] - first[0], count[1] - first[1]) for count in rest] == [(10, 30), (20, 60), (30, 90)]


def test_two_thousand_steps_with_a_saliency_penalty_leave_no_tensor_behind() -> None:
    seed_all()
    counter = StepCounter(every=200)
    callbacks = [
        OrbitAugmentation(C4()),
        InvarianceRegularizer(C4(), 0.1, "saliency"),
        InvarianceRegularizer(C4(), 0.1, elements_per_step=1, prefix="logits"),
        counter,
    ]
    trainer_for(callbacks, max_epochs=20).fit(Quiet(), data(200))
    assert len(counter.counts) == 10
    assert len(set(counter.counts)) == 1, counter.counts


@pytest.mark.filterwarnings("ignore:.*[Ss]aliency invariance similarity is undefined")
def test_three_hundred_epochs_of_a_monitor_keep_its_records_alone() -> None:
    seed_all()
    monitor = InvarianceMonitor(C4(), saliency=Gradient())

    def records() -> list[Tensor]:
        parts = [part for record in monitor.history for estimate in record.measures.values() for part in estimate]
        return [*parts, *(part._base for part in parts if part._base is not None)]

    counter = EpochCounter(every=30, may_grow=records)
    trainer_for([monitor, counter], max_epochs=300).fit(Quiet(), data(2), data(4))
    assert len(monitor.history) == 300
    assert [len(record.measures) for record in monitor.history] == [10] * 300
    assert len(counter.counts) == 10
    assert len(set(counter.counts)) == 1, counter.counts
