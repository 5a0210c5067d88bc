"""What the tests of the callbacks share: small data, modules and trainers, terms by hand, comparisons."""

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

CLASSES = 3
SIDE = 4


# Data and trainers -----------------------------------------------------------------------------------------------


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


# Modules ---------------------------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def noisy(p: float = 0.5, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """With running statistics and random numbers."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        activation(),
        nn.Dropout(p),
        nn.Flatten(),
        nn.Linear(4 * SIDE * SIDE, CLASSES),
    )


class Classifier(LightningModule):
    """An ordinary module that knows nothing of the package."""

    def __init__(self, network: Callable[[], nn.Module] = mlp, lr: float = 0.1) -> None:
        super().__init__()
        self.model = network()
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


# Terms by hand ---------------------------------------------------------------------------------------------------


def rotated(x: Tensor) -> list[Tensor]:
    # Contiguous: a dropout mask is drawn in the order of memory.
    return [torch.rot90(x, k, (2, 3)).contiguous() for k in (1, 2, 3)]


def logit_term(fx: Tensor, fgx: Sequence[Tensor]) -> Tensor:
    # Half precision is raised to float32: differences of nearly equal numbers would say nothing.
    fx, *fgx = (z.float() if z.dtype in (torch.float16, torch.bfloat16) else z for z in (fx, *fgx))
    return sum(0.5 * ((fx - each) ** 2).sum(1).mean() for each in fgx) / len(fgx)


def distribution_term(fx: Tensor, fgx: Sequence[Tensor]) -> Tensor:
    p = fx.softmax(1)
    return sum((p * (p.log() - each.softmax(1).log())).sum(1).mean() for each in fgx) / len(fgx)


# Comparisons -----------------------------------------------------------------------------------------------------


def distance(one: nn.Module, other: nn.Module) -> float:
    """The largest difference between two modules' parameters."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a.detach().double() - b.detach().double()).abs().max()) for a, b in pairs)


def assert_trained_alike(got: nn.Module, oracle: nn.Module, unlike: nn.Module, tolerance: float = 1e-6) -> None:
    """The two took the same steps, which are not those of the third, and kept the same statistics."""
    assert distance(got, oracle) < tolerance
    assert distance(oracle, unlike) > 1000 * tolerance
    for (name, buffer), (_, expected) in zip(got.named_buffers(), oracle.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, atol=tolerance, rtol=0.0, msg=name)


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
    assert [place for place, leaf in left.items() if not same(leaf, right[place])] == []
