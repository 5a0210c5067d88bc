"""A module that notes what it sees of the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import mlp
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F


class Classifier(LightningModule):
    """An ordinary module that knows nothing of the package, and notes its losses."""

    def __init__(self, network: Callable[[], nn.Module] = mlp) -> None:
        super().__init__()
        self.model = network()
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)
