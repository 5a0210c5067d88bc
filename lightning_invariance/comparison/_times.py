"""How long a module's steps take, measured in turns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from statistics import median
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

WARM_UP = 3
"""Steps of each turn that are left out: the first ones make optimiser states, fill caches, choose algorithms."""

MakeTrainer = Callable[..., Trainer]


class StepTimer(Callback):
    """Times steps of a fit or a test, the optimiser's included, and what comes between them left out.

    First among the callbacks, it sees a step begin before what the others do, and end before what they do after it.

    Args:
        steps: how many, after the warm-up, until a fit ends.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._began = 0.0
        self.seconds: list[float] = []

    def median(self) -> float:
        """Of the steps after the warm-up; of all steps where there were no more."""
        return median(self.seconds[WARM_UP:] or self.seconds)

    def _begin(self, module: LightningModule) -> None:
        self._began = now(module.device)

    def _end(self, module: LightningModule) -> None:
        self.seconds.append(now(module.device) - self._began)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._begin(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._end(pl_module)
        trainer.should_stop = len(self.seconds) >= WARM_UP + self._steps

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._begin(pl_module)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._end(pl_module)


def training_step_seconds(
    module: LightningModule,
    callbacks: Sequence[Callback],
    datamodule: LightningDataModule,
    make_trainer: MakeTrainer,
    steps: int,
) -> float:
    """The median time of a training step; the module is trained a little."""
    timer = StepTimer(steps)
    module.train()  # a checkpoint that was loaded is in eval mode
    # Epochs without end, since one may hold few batches: the timer ends the fit. A schedule may want their number.
    trainer = make_trainer([timer, *deepcopy(list(callbacks))], max_epochs=WARM_UP + steps, limit_val_batches=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*training ended when the strength of the merge")  # it is cut short
        trainer.fit(module, datamodule=datamodule)
    if not timer.seconds:
        raise ValueError("Expected `datamodule` to give batches to train on but got none.")
    return timer.median()


def inference_seconds(
    module: LightningModule, datamodule: LightningDataModule, make_trainer: MakeTrainer, steps: int
) -> float:
    """The median time of a test step."""
    timer = StepTimer(steps)
    trainer = make_trainer([timer], limit_test_batches=WARM_UP + steps)
    trainer.test(module, datamodule=datamodule, verbose=False)
    return timer.median()


def now(device: torch.device) -> float:
    """The clock, once the device has done what it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return perf_counter()
