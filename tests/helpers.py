"""What the tests share: small data and trainers. What they are held against is in `oracles`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
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


class Batches:
    """Shuffled anew in each epoch; knows where it was, which Lightning asks of a loader resumed within an epoch."""

    def __init__(self, batches: int, batch_size: int = 4, **packed: Any) -> None:
        self.data = Images(batches * batch_size, **packed).tensors
        self.batches, self.batch_size = batches, batch_size
        self.epoch = self.next = 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Tensor]]:
        if self.next == self.batches:
            self.epoch, self.next = self.epoch + 1, 0
        order = torch.randperm(len(self.data[0]), generator=torch.Generator().manual_seed(self.epoch))
        for rows in order.split(self.batch_size)[self.next :]:
            self.next += 1
            yield [part[rows] for part in self.data]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.next = state["epoch"], state["next"]


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
