"""What the benchmarks run on: ordinary networks and an ordinary LightningModule."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.pairs import Setting

CLASSES = 10


def convolutional(channels: int = 3, widths: tuple[int, ...] = (16, 32), classes: int = CLASSES) -> nn.Sequential:
    """A small convolutional network; without batch normalisation, so that samples do not depend on each other."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in pairwise((channels, *widths)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], classes))


class Block(nn.Module):
    """Two convolutions beside what they are given."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        same = before == after and stride == 1
        self.beside = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.beside(x))


def residual(channels: int = 3, widths: tuple[int, ...] = (16, 32, 64), classes: int = CLASSES) -> nn.Sequential:
    """A small residual network with max-pooling behind its first layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, widths[0], 3, padding=1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    for before, after in pairwise((widths[0], *widths)):
        layers.append(Block(before, after, 1 if before == after else 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


def residual18(channels: int = 3, width: int = 64, classes: int = CLASSES) -> nn.Sequential:
    """ResNet-18 (He et al., 2016); its strides fit odd sizes: 65, not 64."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 7, 2, padding=3, bias=False), nn.BatchNorm2d(width)]
    layers += [nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), Block(width, width, 1), Block(width, width, 1)]
    for before, after in pairwise((width, 2 * width, 4 * width, 8 * width)):
        layers += [Block(before, after, 2), Block(after, after, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, classes))


def perceptron(inputs: int, classes: int, hidden: int = 5) -> nn.Sequential:
    """The paper's network: hidden layers of 128."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise([inputs, *[128] * hidden]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, classes))


def poses(x: Tensor) -> Tensor:
    """The images turned by 0, 90, 180 and 270 degrees, ``(4, B, ...)``."""
    return torch.stack([torch.rot90(x, turns, (-2, -1)) for turns in range(4)])


def logits_and_gradient(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and the gradient of the label's: what an explanation costs at the least."""
    x = x.clone().requires_grad_()
    logits = network(x)
    (gradient,) = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), x)
    return logits.detach(), gradient


class Classifier(LightningModule):
    """It knows nothing of groups."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Batches(LightningDataModule):
    """A few batches of random images."""

    def __init__(self, setting: Setting, batch_size: int, shape: tuple[int, ...], batches: int = 4) -> None:
        super().__init__()
        count = batches * batch_size
        self.data = TensorDataset(setting.rand(count, *shape).cpu(), setting.labels(count, CLASSES).cpu())
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.data, batch_size=self.batch_size)

    val_dataloader = train_dataloader


def trainer_on(setting: Setting, callbacks: list[Callback], **options: Any) -> Trainer:
    """A Trainer that says and leaves nothing."""
    return Trainer(
        callbacks=callbacks,
        accelerator="gpu" if setting.device.type == "cuda" else setting.device.type,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
