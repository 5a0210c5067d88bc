"""Memory: what is alive after many steps is what was alive after a few."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import Images, seed_all, trainer_for
from lightning.pytorch import Callback
from oracles import Classifier
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_invariance import C4, Gradient, InvarianceMonitor, InvarianceRegularizer, OrbitAugmentation


@pytest.fixture(autouse=True)
def _new_objects_alone() -> Iterator[None]:
    """Other tests' leavings are not looked at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Counter(Callback):
    """Counts the tensors that came alive, after every so many steps or epochs, less what may grow."""

    def __init__(self, steps: int = 0, epochs: int = 0, may_grow: Callable[[], list[Tensor]] = list) -> None:
        self.steps, self.epochs, self.may_grow = steps, epochs, may_grow
        self.counts: list[tuple[int, int]] = []

    def count(self) -> None:
        gc.collect()
        new = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]
        grown = self.may_grow()
        values = sum(each.numel() for each in new) - sum(each.numel() for each in grown)
        self.counts.append((len(new) - len(grown), values))

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if self.steps and trainer.global_step % self.steps == 0:
            self.count()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.epochs and (trainer.current_epoch + 1) % self.epochs == 0:
            self.count()


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))


def fit(callbacks: list[Callback], epochs: int, count: int, val: Any = None) -> None:
    seed_all()
    trainer = trainer_for(callbacks, max_epochs=epochs)
    trainer.fit(Classifier(small), DataLoader(Images(count, side=2), batch_size=2), val)


class Leaking(Callback):
    """Keeps what it should not."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.kept.append(torch.zeros(3))


def test_the_counter_sees_a_leak() -> None:
    counter = Counter(steps=10)
    fit([Leaking(), counter], 4, 20)
    first, *rest = counter.counts
    assert [(count[0] - first[0], count[1] - first[1]) for count in rest] == [(10, 30), (20, 60), (30, 90)]


def test_hundreds_of_steps_with_a_saliency_penalty_leave_no_tensor_behind() -> None:
    counter = Counter(steps=60)
    callbacks = [
        OrbitAugmentation(C4()),
        InvarianceRegularizer(C4(), 0.1, "saliency"),
        InvarianceRegularizer(C4(), 0.1, elements_per_step=1, prefix="logits"),
        counter,
    ]
    fit(callbacks, 8, 60)
    assert len(counter.counts) == 4
    assert len(set(counter.counts)) == 1, counter.counts


@pytest.mark.filterwarnings("ignore:.*[Ss]aliency invariance similarity is undefined")
def test_many_epochs_of_a_monitor_keep_its_records_alone() -> None:
    monitor = InvarianceMonitor(C4(), saliency=Gradient())

    def records() -> list[Tensor]:
        parts = [part for record in monitor.history for estimate in record.measures.values() for part in estimate]
        return [*parts, *(part._base for part in parts if part._base is not None)]

    counter = Counter(epochs=8, may_grow=records)
    fit([monitor, counter], 40, 2, DataLoader(Images(4, side=2), batch_size=2))
    assert [len(record.measures) for record in monitor.history] == [10] * 40
    assert len(counter.counts) == 5
    assert len(set(counter.counts)) == 1, counter.counts
