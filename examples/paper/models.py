"""The networks, and the LightningModule that trains them: an ordinary one, which knows nothing of groups."""

from __future__ import annotations

from itertools import pairwise

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.paper.data import CLASSES, SIDE
from lightning_invariance import Action
from lightning_invariance.baselines import OrbitPooled, SteerableClassifier, TiedFirstLayerMLP

IN_SHAPE = (1, SIDE, SIDE)
#: Feature fields of escnn's first block: 16 channels for C4 and D4, and for C8 and SO2 about as many parameters as C4.
WIDTHS = {"C4": 4, "D4": 2, "C8": 3, "SO2": 3}


class Classifier(L.LightningModule):
    """Adam at the paper's learning rate; the loss is the cross-entropy."""

    def __init__(self, network: nn.Module, lr: float = 8e-4) -> None:
        super().__init__()
        self.network = network
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._log_accuracy("val", batch)

    def test_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._log_accuracy("test", batch)

    def _log_accuracy(self, stage: str, batch: list[Tensor]) -> None:
        x, y = batch
        self.log(f"{stage}/accuracy", (self(x).argmax(dim=1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def perceptron() -> nn.Sequential:
    """The paper's network: five hidden layers of 128 with ReLU, 233,225 parameters."""
    widths = [SIDE * SIDE, *[128] * 5]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES))


def convolutional() -> nn.Sequential:
    """A small convolutional network in the perceptron's place."""
    layers: list[nn.Module] = []
    for before, after in pairwise([1, 8, 16, 32]):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 32, CLASSES))


def build(model: str, action: Action) -> nn.Module:
    """A network by the name that the tables give it; DA, IR and their like share one and differ in callbacks."""
    if model.startswith("CNN pooled"):
        return OrbitPooled(convolutional(), action)
    if model.startswith("CNN"):
        return convolutional()
    if model.startswith("escnn"):
        group = model.split()[1]
        return SteerableClassifier(group, 1, CLASSES, SIDE, width=WIDTHS[group])
    if model == "WT":
        return TiedFirstLayerMLP(action, IN_SHAPE, CLASSES)
    return perceptron()


def is_convolutional(model: str) -> bool:
    """Whether a model of that name is trained for fewer epochs and explained on fewer images: it takes longer."""
    return model.startswith(("CNN", "escnn"))
