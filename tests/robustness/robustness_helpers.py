"""Small data, modules and trainers, and comparisons bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

CLASSES, SIDE = 3, 4


def images(count: int = 12, seed: int = 0, side: int = SIDE) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, side, side, generator=generator)
    return TensorDataset(x, torch.randint(CLASSES, (count,), generator=generator))


def loader(count: int = 12, batch_size: int = 4, seed: int = 0, **options: Any) -> DataLoader[Any]:
    return DataLoader(images(count, seed), batch_size=batch_size, **options)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def noisy() -> nn.Module:
    """With running statistics and random numbers."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4 * SIDE * SIDE, CLASSES),
    )


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


def trainer_for(callbacks: Sequence[Callback] = (), **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 2,
        **options,
    }
    return Trainer(callbacks=list(callbacks), **settings)


def seed_all(seed: int = 1) -> None:
    """Torch's, numpy's and Python's streams, without a word in the environment."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def fit(
    make: Callable[[], LightningModule],
    callbacks: Sequence[Callback] = (),
    data: Iterable[Any] | None = None,
    val: Any = None,
    **options: Any,
) -> LightningModule:
    seed_all()
    module = make()
    trainer_for(callbacks, **options).fit(module, loader() if data is None else data, val)
    return module


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested containers with every leaf under its path."""
    if isinstance(value, dict):
        pairs: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    else:
        return {path: value}
    return {place: leaf for key, item in pairs for place, leaf in flat(item, f"{path}/{key}").items()}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    return bool(one == other)


def assert_identical(one: Any, other: Any) -> None:
    """Bit for bit."""
    left, right = flat(one), flat(other)
    assert left.keys() == right.keys()
    different = [place for place, leaf in left.items() if not same(leaf, right[place])]
    assert different == []
