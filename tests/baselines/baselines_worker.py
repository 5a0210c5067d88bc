"""One of two processes that train a `SteerableClassifier`; run as a script, it writes down what came out.

``python baselines_worker.py FOLDER`` with the environment that Lightning reads (``LOCAL_RANK`` and others).
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_invariance.baselines import SteerableClassifier

BATCH, RATE = 4, 0.1


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(16) % 3


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.model = SteerableClassifier("D4", 1, 3, 8, width=2, depth=2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=RATE)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    (folder,) = sys.argv[1:]
    rank = int(os.environ["LOCAL_RANK"])
    module = Module()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "use_distributed_sampler": False}
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, **quiet)
    mine = TensorDataset(*(tensor[rank::2] for tensor in data()))
    trainer.fit(module, DataLoader(mine, batch_size=BATCH))
    torch.save(module.model.state_dict(), Path(folder, f"state-{rank}.pt"))
