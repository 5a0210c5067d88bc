"""One process of a run on several devices: fits with the callback or with the term written by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from helpers import made, trainer_for
from oracles import WEIGHT, Classifier
from steps import logged, with_term
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_invariance import C4, InvarianceMonitor, InvarianceRegularizer


class Plain(Classifier):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5)
    )


def fit(by_hand: bool, max_batch: int | None = None, **options: object) -> tuple[Classifier, dict[str, float]]:
    """Trains for an epoch; the weights on the CPU and what was logged."""
    module = made(lambda: (with_term(Plain) if by_hand else Plain)(network))
    callbacks = [InvarianceMonitor(C4(), saliency_samples=10)]
    if not by_hand:
        callbacks.append(InvarianceRegularizer(C4(), WEIGHT, max_batch=max_batch))
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(42, 1, 12, 12, generator=generator), torch.randint(5, (42,), generator=generator))
    trainer = trainer_for(callbacks, **{"accelerator": "gpu", "max_epochs": 1, **options})
    trainer.fit(module, DataLoader(data, batch_size=7), DataLoader(data, batch_size=5))
    return module.cpu(), logged(trainer)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    outcomes = {}
    for by_hand in (True, False):
        module, values = fit(by_hand, strategy="ddp", devices=2)
        outcomes[by_hand] = (module.state_dict(), values)
    if module.global_rank == 0:
        torch.save(outcomes, folder / "outcomes.pt")
