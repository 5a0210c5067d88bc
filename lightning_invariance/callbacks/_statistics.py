"""Running statistics of batch normalisation, estimated anew for weights that have changed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_invariance._containers import Path, get, map_tensors, replace_at, walk
from lightning_invariance._isolation import preserved_random_state
from lightning_invariance.symmetry._weights import WeightSymmetry

#: The most batches that are looked at.
_MOST_BATCHES = 1000


@dataclass(frozen=True)
class CallOfBatch:
    """How a step calls its network: which of the arguments are which tensors of the batch.

    Attributes:
        args: the positional arguments, their tensors left out.
        kwargs: the keyword arguments, likewise.
        sources: for each tensor among them, its place, and its place in the batch.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sources: tuple[tuple[Path, Path], ...]

    @classmethod
    def found(cls, batch: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallOfBatch | None:
        """The call; None where an argument is no tensor of the batch, but made of some."""
        places = {id(tensor): path for path, tensor in walk(batch)}
        given = list(walk({"args": args, "kwargs": kwargs}))
        if not given or any(id(tensor) not in places for _, tensor in given):
            return None
        sources = tuple((path, places[id(tensor)]) for path, tensor in given)
        return cls(map_tensors(_nothing, args), map_tensors(_nothing, kwargs), sources)

    def of(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for another batch."""
        root: Any = {"args": self.args, "kwargs": self.kwargs}
        for path, source in self.sources:
            root = replace_at(root, path, get(batch, source))
        return root["args"], root["kwargs"]


#: After so many times 1 / momentum batches running statistics are those of the data.
_SETTLED = 3.0

_LEFT = "the running statistics of batch normalisation are the projected ones of the last steps; they could not be"

#: Why statistics are left as they were.
_OTHERS = "as what the network sees in a step has other statistics than what the loaders give it"


def _buffers(norm: nn.Module) -> tuple[Any, ...]:
    return norm.running_mean, norm.running_var, norm.num_batches_tracked


def _are_others(norm: nn.Module, before: list[Tensor]) -> bool:
    """Whether the first statistics of the network are far from those of the last steps: its input is another."""
    mean, var = before[0].double(), before[1].double().clamp_min(1e-12)
    apart = (norm.running_mean.double() - mean).abs() / var.sqrt()  # type: ignore[operator]
    ratio = (norm.running_var.double().clamp_min(1e-12) / var).log().abs()  # type: ignore[operator]
    return bool(apart.median() > 1) or bool(ratio.median() > log(4))


def _nothing(tensor: Tensor) -> Any:
    return None


@torch.no_grad()
def estimate_statistics(
    trainer: Trainer,
    module: LightningModule,
    network: nn.Module,
    symmetry: WeightSymmetry,
    calls: Sequence[CallOfBatch] | None,
    most: int,
) -> str | None:
    """Estimates the running statistics of a network's batch normalisations anew, by a pass over the training data.

    Args:
        trainer: which has the data.
        module: the user's module.
        network: the network.
        symmetry: the symmetry of its weights; the statistics are made invariant.
        calls: how a step calls the network; None if that is not known.
        most: how many batches are looked at, at the most.

    Returns:
        What was done, in words; None where the network has no such statistics.
    """
    norms = [
        each
        for each in network.modules()
        if isinstance(each, nn.modules.batchnorm._BatchNorm) and each.training and each.running_mean is not None
    ]
    if not norms:
        return None
    loader: Any = trainer.fit_loop._combined_loader
    known = calls is not None and loader is not None
    if trainer.world_size > 1:  # all processes have to decide alike
        own = torch.tensor(int(known), device=module.device)
        known = bool(trainer.strategy.reduce(own, reduce_op="min"))
    if not known or calls is None:
        return f"{_LEFT} estimated anew, as steps make the network's input of the batch, or call it in different ways"
    modes = [(each, each.training) for each in network.modules()]
    momenta = [each.momentum for each in norms]
    batches = 0
    before = [[each.clone() for each in _buffers(norm)] for norm in norms]
    with preserved_random_state(module.device):
        try:
            for each, _ in modes:
                each.training = False
            for norm in norms:
                norm.training, norm.momentum = True, None  # the mean over all batches
                norm.reset_running_stats()
            limit = int(min(trainer.num_training_batches, most, _MOST_BATCHES))
            for batch, _, _ in itertools.islice(loader, limit):
                moved = module._on_before_batch_transfer(
                    trainer.precision_plugin.convert_input(batch), dataloader_idx=0
                )
                moved = trainer.strategy.batch_to_device(moved, module.device)
                for call in calls:
                    args, kwargs = call.of(moved)
                    with trainer.precision_plugin.forward_context():
                        network(*args, **kwargs)
                batches += 1
        finally:
            for each, training in modes:
                each.training = training
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    settled = most * len(calls) * (0.1 if momenta[0] is None else momenta[0]) >= _SETTLED
    fewest, others = batches, batches > 0 and settled and _are_others(norms[0], before[0])
    if trainer.world_size > 1:
        own = torch.tensor([batches, -int(others)], device=module.device)
        fewest, others = trainer.strategy.reduce(own, reduce_op="min").tolist()
    if not fewest or others:
        for norm, values in zip(norms, before, strict=True):
            for each, value in zip(_buffers(norm), values, strict=True):
                each.copy_(value)
        return f"{_LEFT} estimated anew, " + (_OTHERS if fewest else "as the training data can be read once only")
    for norm in norms:
        for statistic in (norm.running_mean, norm.running_var):
            assert statistic is not None
            statistic.copy_(trainer.strategy.reduce(statistic, reduce_op="mean"))
    symmetry.project_statistics_()
    return f"the running statistics of batch normalisation were estimated anew on {batches} training batches"
