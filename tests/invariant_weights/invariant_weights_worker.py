"""One of two processes of a Trainer with `InvariantWeights`; run as a script, it trains in one way after another.

``python invariant_weights_worker.py FOLDER`` with the environment that Lightning reads. Each result goes to
``FOLDER/<name>-<rank>.pt``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from helpers import Images, fit, loader
from invariant_weights_by_hand import SIDE, ByHand, adam, matched, mlp, ramp
from invariant_weights_networks import InDomains
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader, Subset

from lightning_invariance import C4, InvariantWeights

#: Held to these; each process has half of the samples.
HELD: dict[str, tuple[ByHand, dict[str, Any]]] = {
    "ddp, project": (
        ByHand(count=24, processes=2, clip=partial(torch.nn.utils.clip_grad_norm_, max_norm=0.05)),
        {"gradient_clip_val": 0.05},
    ),
    "ddp, merge": (
        ByHand(mlp, adam, "merge", ramp(4), matched, count=24, processes=2),
        {"strategy": DDPStrategy(static_graph=True)},
    ),
}


class ShardedOnCPU(FSDPStrategy):
    """Lightning has FSDP itself on accelerators alone."""


REFUSED: dict[str, Callable[[], Any]] = {"fsdp": ShardedOnCPU, "fsdp2": ModelParallelStrategy}


IN_OTHER_DOMAINS = "ddp, other domains"


def refused(strategy: Any) -> str | None:
    try:
        ByHand().by_trainer([InvariantWeights(C4())], devices=2, strategy=strategy)
    except ValueError as refusal:
        return str(refusal)
    return None


def in_other_domains(rank: int) -> str | None:
    """In its first step each process goes through another branch."""
    strategy = DDPStrategy(find_unused_parameters=True)
    options = {"devices": 2, "strategy": strategy, "use_distributed_sampler": False, "max_epochs": 1}
    callback = InvariantWeights(C4(), network="model")
    try:
        fit(lambda: InDomains(first=rank), [callback], data=loader(side=SIDE), **options)
    except ValueError as refusal:
        return str(refusal)
    return None


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rank = int(os.environ["LOCAL_RANK"])
    for name, (hand, options) in HELD.items():
        samples = Subset(Images(hand.count, side=SIDE), range(rank, hand.count, 2))
        several = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
        callback, data = InvariantWeights(C4(), mode=hand.mode), DataLoader(samples, batch_size=4)
        module = hand.by_trainer([callback], data=data, **{**several, **options})
        torch.save(module.model.state_dict(), folder / f"{name}-{rank}.pt")
    for name, strategy in REFUSED.items():
        torch.save({"error": refused(strategy())}, folder / f"{name}-{rank}.pt")
    torch.save({"error": in_other_domains(rank)}, folder / f"{IN_OTHER_DOMAINS}-{rank}.pt")
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
