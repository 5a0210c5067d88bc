"""One of two processes of a Trainer; run as a script, it trains and validates and writes down what came out.

``python distributed_worker.py FOLDER`` with the environment that Lightning reads (``LOCAL_RANK`` and others). Each
scenario's result goes to ``FOLDER/<scenario>-<rank>.pt`` as soon as it is there.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_invariance import (
    C4,
    Gradient,
    InvarianceMonitor,
    InvarianceRegularizer,
    LogitInvarianceError,
    OrbitAugmentation,
)

SIDE, CLASSES, WEIGHT = 4, 3, 0.3


def images(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, SIDE, SIDE, generator=generator)
    return TensorDataset(x, torch.randint(CLASSES, (count,), generator=generator))


def loader(count: int, batch_size: int = 4, seed: int = 0) -> DataLoader[Any]:
    return DataLoader(images(count, seed), batch_size=batch_size)


class Classifier(LightningModule):
    """An ordinary module, with running statistics."""

    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Dropout(p),
            nn.Flatten(),
            nn.Linear(4 * SIDE * SIDE, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class WithTerm(Classifier):
    """The term, written into the step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        fx = self(x)
        gaps = []
        for k in (1, 2, 3):
            hidden = torch.rot90(x, k, (2, 3))
            for layer in self.model:
                if isinstance(layer, nn.BatchNorm2d):
                    hidden = F.batch_norm(hidden, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
                else:
                    hidden = layer(hidden)
            gaps.append(0.5 * (fx - hidden).square().sum(1).mean())
        return F.cross_entropy(fx, y) + WEIGHT * sum(gaps) / 3


class OnlyOnTheFirst(IterableDataset[Any]):
    """Samples on the first process, none on the second; its length is not known beforehand."""

    def __iter__(self) -> Iterator[Any]:
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        yield from (images(6, 4) if rank == 0 else [])


def made(make: type[Classifier] = Classifier, p: float = 0.0) -> Classifier:
    torch.manual_seed(1)
    return make(p)


def trainer(callbacks: list[Callback], processes: int, **options: Any) -> Trainer:
    settings: dict[str, Any] = {"strategy": "ddp"} if processes > 1 else {}
    return Trainer(
        accelerator="cpu",
        devices=processes,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=2,
        callbacks=callbacks,
        **{**settings, **options},
    )


def measured(processes: int, data: Any, method: str = "validate", **options: Any) -> dict[str, Any]:
    """What the monitor logs and records of untrained weights."""
    monitor = InvarianceMonitor(C4(), saliency=Gradient(), **options)
    runner = trainer([monitor], processes)
    getattr(runner, method)(made(), data, verbose=False)
    return {
        "logged": {name: float(value) for name, value in runner.callback_metrics.items()},
        "records": [
            {name: (float(each.value), float(each.standard_error)) for name, each in record.measures.items()}
            for record in monitor.history
        ],
    }


def trained(processes: int, make: type[Classifier], callbacks: list[Callback], p: float = 0.0) -> dict[str, Any]:
    module = made(make, p)
    runner = trainer(callbacks, processes)
    runner.fit(module, loader(24), loader(8, seed=2))
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "logged": {name: float(value) for name, value in runner.callback_metrics.items()},
        "left": sorted({"training_step", "validation_step", "test_step", "manual_backward"} & set(module.__dict__)),
    }


def by_element(processes: int) -> dict[str, Any]:
    monitor = InvarianceMonitor(C4(), measures={"li": LogitInvarianceError(reduction="element")})
    runner = trainer([monitor], processes)
    runner.validate(made(), loader(21), verbose=False)
    return {"logged": {name: float(value) for name, value in runner.callback_metrics.items()}}


def scenarios(processes: int) -> Iterator[tuple[str, Any]]:
    """Names, and functions that give what came out."""
    yield "validated", lambda: measured(processes, loader(21))
    yield "few maps", lambda: measured(processes, loader(21), saliency_samples=9)
    yield "few maps in the first batch", lambda: measured(processes, loader(21), saliency_samples=3)
    yield "no maps", lambda: measured(processes, loader(21), saliency_samples=0)
    yield "tested", lambda: measured(processes, loader(21), "test", saliency_samples=9)
    yield "several loaders", lambda: measured(processes, [loader(21), loader(7, seed=3)], saliency_samples=5)
    yield "by element", lambda: by_element(processes)
    yield "one sample", lambda: measured(processes, loader(1))
    yield "monitored", lambda: trained(processes, Classifier, [InvarianceMonitor(C4(), saliency=Gradient())], 0.5)
    yield "unmonitored", lambda: trained(processes, Classifier, [], 0.5)
    yield "plain", lambda: trained(processes, Classifier, [])
    yield "regularized", lambda: trained(processes, Classifier, [InvarianceRegularizer(C4(), WEIGHT)])
    yield "by hand", lambda: trained(processes, WithTerm, [])
    yield (
        "drawn",
        lambda: trained(processes, Classifier, [OrbitAugmentation(C4()), InvarianceRegularizer(C4(), 1.0, elements=1)]),
    )
    yield (
        "empty on the second",
        lambda: measured(processes, [DataLoader(OnlyOnTheFirst(), batch_size=4), loader(8)], saliency_samples=5),
    )
    yield "alone and empty on the second", lambda: measured(processes, DataLoader(OnlyOnTheFirst(), batch_size=4))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rank = int(os.environ["LOCAL_RANK"])
    for name, run in scenarios(processes=2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = run()
        result["warnings"] = [str(each.message) for each in caught]
        torch.save(result, folder / f"{name}-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
