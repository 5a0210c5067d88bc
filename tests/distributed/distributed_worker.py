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
from helpers import Classifier, Images, loader, made, noisy, trainer_for
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lightning_invariance import (
    C4,
    Gradient,
    InvarianceMonitor,
    InvarianceRegularizer,
    LogitInvarianceError,
    OrbitAugmentation,
    SensitivityMonitor,
)

WEIGHT = 0.3


def normalised(p: float) -> nn.Module:
    """With running statistics, and smooth."""
    return noisy(p, nn.Tanh)


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
        yield from (Images(6, 4) if rank == 0 else [])


def classifier(make: type[Classifier] = Classifier, p: float = 0.0) -> Classifier:
    module: Classifier = made(lambda: make(lambda: normalised(p)))
    return module


def trainer(callbacks: list[Callback], processes: int) -> Trainer:
    return trainer_for(callbacks, devices=processes, **({"strategy": "ddp"} if processes > 1 else {}))


def measured(processes: int, data: Any, method: str = "validate", **options: Any) -> dict[str, Any]:
    """What the monitor logs and records of untrained weights."""
    return seen_by(InvarianceMonitor(C4(), saliency=Gradient(), **options), processes, data, method)


def seen_by(
    monitor: InvarianceMonitor | SensitivityMonitor, processes: int, data: Any, method: str = "validate"
) -> dict[str, Any]:
    runner = trainer([monitor], processes)
    getattr(runner, method)(classifier(), data, verbose=False)
    return {
        "logged": {name: float(value) for name, value in runner.callback_metrics.items()},
        "records": [
            {name: (float(each.value), float(each.standard_error)) for name, each in record.measures.items()}
            for record in monitor.history
        ],
    }


def trained(processes: int, make: type[Classifier], callbacks: list[Callback], p: float = 0.0) -> dict[str, Any]:
    module = classifier(make, p)
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
    runner.validate(classifier(), loader(21), verbose=False)
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
    yield "sensitivity", lambda: seen_by(SensitivityMonitor(C4(), layers=True), processes, loader(21))
    yield "sensitivity of few", lambda: seen_by(SensitivityMonitor(C4(), samples=9), processes, loader(21), "test")
    yield "sensitivity of one", lambda: seen_by(SensitivityMonitor(C4(), samples=1), processes, loader(21))
    yield (
        "sensitivity, empty on the second",
        lambda: seen_by(SensitivityMonitor(C4()), processes, [DataLoader(OnlyOnTheFirst(), batch_size=4), loader(8)]),
    )
    yield "sensitivity of a training", lambda: trained(processes, Classifier, [SensitivityMonitor(C4())], 0.5)
    yield "monitored", lambda: trained(processes, Classifier, [InvarianceMonitor(C4(), saliency=Gradient())], 0.5)
    yield "unmonitored", lambda: trained(processes, Classifier, [], 0.5)
    yield "plain", lambda: trained(processes, Classifier, [])
    yield "regularized", lambda: trained(processes, Classifier, [InvarianceRegularizer(C4(), WEIGHT)])
    yield "by hand", lambda: trained(processes, WithTerm, [])
    yield (
        "drawn",
        lambda: trained(processes, Classifier, [OrbitAugmentation(C4()), InvarianceRegularizer(C4(), 1.0, elements_per_step=1)]),
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
