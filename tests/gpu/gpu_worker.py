"""One process of a run on several devices: fits with the callback or with the term written by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_invariance import C4, InvarianceMonitor, InvarianceRegularizer


class Classifier(L.LightningModule):
    """`weight` above 0: with the term written by hand."""

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5)
        )
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        if not self.weight:
            return loss
        moved = torch.stack([self(torch.rot90(x, turns, (-2, -1))) for turns in (1, 2, 3)])
        return loss + self.weight * 0.5 * (logits.float() - moved.float()).square().sum(dim=-1).mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fit(
    weight: float, by_hand: bool, max_batch: int | None = None, **options: object
) -> tuple[Classifier, dict[str, float]]:
    """Trains for an epoch; the weights on the CPU and what was logged."""
    L.seed_everything(0, verbose=False)
    module = Classifier(weight if by_hand else 0.0)
    callbacks = [InvarianceMonitor(C4(), saliency_samples=10)]
    if not by_hand:
        callbacks.append(InvarianceRegularizer(C4(), weight, max_batch=max_batch))
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(42, 1, 12, 12, generator=generator), torch.randint(5, (42,), generator=generator))
    trainer = L.Trainer(
        accelerator="gpu",
        max_epochs=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(data, batch_size=7), DataLoader(data, batch_size=5))
    return module.cpu(), {name: float(value) for name, value in trainer.callback_metrics.items()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    outcomes = {}
    for by_hand in (True, False):
        module, logged = fit(0.5, by_hand, strategy="ddp", devices=2)
        outcomes[by_hand] = (module.state_dict(), logged)
    if module.global_rank == 0:
        torch.save(outcomes, folder / "outcomes.pt")
