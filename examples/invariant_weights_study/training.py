"""The LightningModule, which knows nothing of groups either, and its Trainer."""

from __future__ import annotations

import logging
import warnings
from copy import deepcopy
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F


class Classifier(L.LightningModule):
    """Adam with a one-cycle rate; the loss is the cross-entropy."""

    def __init__(self, network: nn.Module, rate: float) -> None:
        super().__init__()
        self.network = network
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val/accuracy", (self(x).argmax(dim=1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


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


def quiet() -> None:
    """One thread a process, and none of Lightning's remarks: the runs go side by side under one progress bar."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
