"""The networks, and the LightningModule that trains them: an ordinary one, which knows nothing of groups."""

from __future__ import annotations

from itertools import pairwise

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from examples.paper.data import CLASSES, SIDE
from lightning_invariance import Action, CyclicTranslations

IN_SHAPE = (1, SIDE, SIDE)


class Classifier(L.LightningModule):
    """Adam with the cross-entropy as its loss.

    Args:
        network: what is trained.
        rate: the learning rate; the paper's by default.
        annealed: whether it rises to `rate` and falls to 0 again (one-cycle), and does not stay as it is.
        noise: the deviation of Gaussian noise that is added to the inputs in training.
    """

    def __init__(self, network: nn.Module, rate: float = 8e-4, annealed: bool = False, noise: float = 0.0) -> None:
        super().__init__()
        self.network = network
        self.rate = rate
        self.annealed = annealed
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        if self.noise:
            x = x + self.noise * torch.randn_like(x)
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._log_accuracy("val", batch)

    def test_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._log_accuracy("test", batch)

    def _log_accuracy(self, stage: str, batch: list[Tensor]) -> None:
        x, y = batch
        self.log(f"{stage}/accuracy", (self(x).argmax(dim=1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.rate)
        if not self.annealed:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def perceptron() -> nn.Sequential:
    """The paper's network: five hidden layers of 128 with ReLU, 233,225 parameters."""
    widths = [SIDE * SIDE, *[128] * 5]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES))


def convolutional(action: Action) -> nn.Sequential:
    """An ordinary convolutional network in the perceptron's place, which ends with a linear layer on 3×3 places.

    Two things are chosen with the group in mind, as they have to be where a network is to be made invariant by its
    weights: sizes are divided by windows that tile them (36, 18, 9, 3), and translations, which are cyclic, have cyclic
    padding. A mean over all places in place of the last layer would be invariant to them before training.
    """
    padding = "circular" if isinstance(action, CyclicTranslations) else "zeros"
    layers: list[nn.Module] = []
    for before, after in pairwise([1, 8, 16, 32]):
        layers.append(nn.Conv2d(before, after, 3, padding=1, padding_mode=padding))
        layers += [nn.BatchNorm2d(after), nn.ReLU(), nn.AvgPool2d(3) if after == 32 else nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(9 * 32, CLASSES))
    # Max-pooling takes a fraction of the time then.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
