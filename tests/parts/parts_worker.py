"""One of two processes of a Trainer; run as a script, it measures by class and writes down what came out.

``python parts_worker.py FOLDER`` with the environment that Lightning reads. The result goes to
``FOLDER/measured-<rank>.pt``.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from helpers import made, trainer_for
from oracles import Classifier
from torch.utils.data import DataLoader, TensorDataset

from lightning_invariance import InvarianceMonitor, Rotations

MEASURES = ["logit_invariance_error", "orbit_accuracy", "saliency_invariance_similarity", "orbit_share", "loss_share"]


def measured(processes: int) -> dict[str, Any]:
    """21 samples do not divide by two: a sampler repeats one, which must not count. Odd ones are all of class 1."""
    x = torch.randn(21, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 1] * 6)[:21]
    monitor = InvarianceMonitor(Rotations(8), MEASURES, per_class=True)
    trainer = trainer_for([monitor], devices=processes, **({"strategy": "ddp"} if processes > 1 else {}))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer.validate(made(Classifier), DataLoader(TensorDataset(x, y), batch_size=4), verbose=False)
    record = monitor.history[-1]
    found = {name: estimate.value for name, estimate in record.per_class.items()}
    logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return {**found, "classes": record.classes, "logged": logged}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.save(measured(processes=2), folder / f"measured-{os.environ['LOCAL_RANK']}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
