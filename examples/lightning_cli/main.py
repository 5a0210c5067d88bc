"""A classifier of digits whose training is said in a file, with all callbacks of the package.

There is nothing here about invariance but the import, which makes the names known that the file uses.

    python examples/lightning_cli/main.py fit --config examples/lightning_cli/config.yaml
"""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_invariance  # noqa: F401  # the file's names


class Digits(LightningDataModule):
    """Scikit-learn's 8×8 digits.

    Args:
        batch_size: how many are in a batch.
    """

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size
        images, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        self.labels = torch.tensor(labels)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(self.images[:1200], self.labels[:1200]), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(self.images[1200:], self.labels[1200:]), self.batch_size)


class Classifier(LightningModule):
    """A perceptron with one hidden layer.

    Args:
        width: how many hidden units it has.
        lr: the learning rate.
    """

    def __init__(self, width: int = 64, lr: float = 3e-3) -> None:
        super().__init__()
        self.lr = lr
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val/accuracy", (self(x).argmax(dim=1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


def main() -> LightningCLI:
    """Does what the command line says."""
    return LightningCLI(Classifier, Digits, seed_everything_default=0)


if __name__ == "__main__":
    main()
