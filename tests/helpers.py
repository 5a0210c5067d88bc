"""What the tests share: small data and trainers. What they are held against is in `oracles`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 3
SIDE = 4


class Images(TensorDataset):
    """Random images with random labels, packed into samples as a test wants them."""

    def __init__(
        self,
        count: int = 12,
        seed: int = 0,
        side: int = SIDE,
        pack: Callable[[Tensor, Tensor], Any] = lambda x, y: (x, y),
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 1, side, side, generator=generator)
        self.y = torch.randint(CLASSES, (count,), generator=generator)
        self.pack = pack
        super().__init__(self.x, self.y)

    def __getitem__(self, index: int) -> Any:
        return self.pack(self.x[index], self.y[index])


def loader(
    count: int = 12,
    batch_size: int = 4,
    *,
    seed: int = 0,
    shuffle: bool = False,
    **packed: Any,
) -> DataLoader[Any]:
    return DataLoader(Images(count, seed, **packed), batch_size=batch_size, shuffle=shuffle)


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


def made(make: Callable[[], Any]) -> Any:
    seed_all()
    return make()


def fit(
    make: Callable[[], LightningModule],
    callbacks: Sequence[Callback] = (),
    *,
    data: Iterable[Any] | None = None,
    val: Any = None,
    **options: Any,
) -> LightningModule:
    """Trains a module, from the same start every time."""
    module = made(make)
    trainer_for(callbacks, **options).fit(module, loader() if data is None else data, val)
    return module
