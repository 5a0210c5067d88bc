"""The Trainer, and what is kept of a training."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import lightning as L
from torch import Tensor


class Keeper(L.Callback):
    """Accuracies on validation images, and the weights of the best epoch."""

    def __init__(self) -> None:
        self.accuracies: list[float] = []
        self.best: dict[str, Tensor] = {}

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.accuracies.append(float(trainer.callback_metrics["val/accuracy"]))
        if self.accuracies[-1] == max(self.accuracies):
            self.best = deepcopy(pl_module.get_submodule("network").state_dict())


def make_trainer(callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    """A Trainer that leaves no files."""
    return L.Trainer(
        callbacks=callbacks,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
