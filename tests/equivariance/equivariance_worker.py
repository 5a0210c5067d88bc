"""One of two processes of a Trainer; run as a script, it measures a segmentation and writes down what came out.

``python equivariance_worker.py FOLDER`` with the environment that Lightning reads. The result goes to
``FOLDER/measured-<rank>.pt``.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from equivariance_helpers import IGNORED, Module, batches, masks
from helpers import made, trainer_for
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lightning_invariance import InvarianceMonitor, Rotations


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh())
        self.mask = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x)
        return {"mask": self.mask(hidden), "level": hidden.mean((1, 2, 3))}


def measured(processes: int) -> dict[str, Any]:
    """21 samples do not divide by two: a sampler repeats one, which must not count. One has no label at all."""
    x, y = masks(21, side=7).tensors
    y[8] = IGNORED
    monitor = InvarianceMonitor(Rotations(8), output_action={"mask": "same", "level": None})
    trainer = trainer_for([monitor], devices=processes, **({"strategy": "ddp"} if processes > 1 else {}))
    module = made(lambda: Module(Heads(), lambda output, y: F.cross_entropy(output["mask"], y)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*accuracy is undefined for 1 of 21 samples")
        trainer.validate(module, batches(TensorDataset(x, y)), verbose=False)
    return {
        name: (float(estimate.value), float(estimate.standard_error))
        for name, estimate in monitor.history[-1].measures.items()
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.save(measured(processes=2), folder / f"measured-{os.environ['LOCAL_RANK']}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
