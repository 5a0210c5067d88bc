"""The samples that a network is least invariant on, to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_invariance._arguments import Arguments
from lightning_invariance._isolation import RandomState, ordinary, preserved_buffers, preserved_random_state
from lightning_invariance._locate import Labels, OutputReader
from lightning_invariance.actions import Action
from lightning_invariance.actions._joint import JointAction
from lightning_invariance.evaluation._network import NetworkOfInput
from lightning_invariance.evaluation._sources import SaliencySource, Samples
from lightning_invariance.functional._logit_invariance_error import logit_invariance_values
from lightning_invariance.saliency import Saliency

#: One row a sample, stacked; a tuple where the rows have several shapes, or a sample is several tensors.
Rows = Tensor | tuple[Any, ...]


@dataclass(frozen=True)
class KeptSamples:
    r"""The n samples whose outputs move farthest under one element, the worst first.

    Attributes:
        inputs: the samples, shape ``(n, ...)``; a tuple where their shapes differ, or the group moves several tensors
            of each.
        moved: the same, each moved by its `element`.
        index: their positions in the data set, ``(n,)``.
        element: the element that moves each one's output most, its index in the group, ``(n,)``.
        labels: what those elements are called.
        errors: :math:`\tfrac12 \| \rho(g)^{-1} f(gx) - f(x) \|^2` of that element, ``(n,)``.
        logits: :math:`f(x)`, ``(n, ...)``.
        moved_logits: :math:`\rho(g)^{-1} f(gx)` of that element, ``(n, ...)``.
        target: their labels, ``(n,)``; None where there are none.
        saliency: saliency maps, ``(n, ...)``; None where there are none: of outputs that are no scores of classes or
            that move, and of inputs that are several tensors or no floating-point numbers.
        orbit_saliency: those over the orbit, the identity left out, brought back to the pose of `inputs`, shape
            ``(|G| - 1, n, ...)``, or None.
        elements: what the group's elements are called, the identity first.
    """

    inputs: Rows
    moved: Rows
    index: Tensor
    element: Tensor
    labels: tuple[str, ...]
    errors: Tensor
    logits: Tensor
    moved_logits: Tensor
    target: Tensor | None
    saliency: Rows | None
    orbit_saliency: Rows | None
    elements: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.errors)


@dataclass(frozen=True)
class _Kept:
    error: float
    element: int
    index: int
    arguments: Arguments | None
    inputs: tuple[Tensor, ...]
    moved: tuple[Tensor, ...]
    logits: Tensor
    moved_logits: Tensor
    target: Tensor | None
    start: RandomState


class WorstSamples:
    """The worst samples so far.

    Args:
        n: how many are kept.
        action: the group.
        saliency: how maps are computed; None for none.
        network: what is called.
        reader: takes the logits out of its output.
        module: the module behind it.
        stays: whether the output is to stay when the input moves.
        max_batch: the most samples in one forward.
    """

    def __init__(
        self,
        n: int,
        action: Action,
        saliency: Saliency | None,
        network: Callable[..., Any],
        reader: OutputReader,
        module: nn.Module,
        stays: bool,
        max_batch: int | None,
    ) -> None:
        self._n = n
        self._action = action
        self._saliency = saliency
        self._network = network
        self._reader = reader
        self._module = module
        self._stays = stays
        self._max_batch = max_batch
        self._kept: list[_Kept] = []

    @torch.no_grad()
    def add(
        self, given: Mapping[str, Tensor], arguments: Arguments, labels: Labels, first: int, start: RandomState
    ) -> None:
        """Adds a batch: its outputs over the orbit, what the network was called with, its first sample's position."""
        with torch.inference_mode(False):
            logits, orbit_logits = given["logits"], given["orbit_logits"]
            errors = logit_invariance_values(logits, orbit_logits, None, given.get("valid")).per_element
            # What is not finite is left out, as the measures do.
            worst, place = torch.where(errors.isfinite(), errors.double(), -1.0).max(dim=0)
            order = worst.argsort(descending=True, stable=True)[: self._n]
            for row, error in zip(order.tolist(), worst[order].tolist(), strict=True):
                full = len(self._kept) == self._n
                if error < 0 or (full and error <= self._kept[-1].error):
                    break
                element = int(place[row]) + 1
                target = labels.for_logits(logits).tensor
                kept = self._one(
                    row,
                    arguments,
                    error=error,
                    element=element,
                    index=first + row,
                    logits=ordinary(logits[row]).clone(),
                    moved_logits=ordinary(orbit_logits[element - 1, row]).clone(),
                    target=None if target is None else ordinary(target[row]).clone(),
                    start=start,
                )
                self._kept = sorted([*self._kept, kept], key=lambda each: -each.error)[: self._n]

    def _one(self, row: int, arguments: Arguments, *, element: int, **values: Any) -> _Kept:
        own = arguments.row(row) if arguments.is_divisible else None
        if own is None:
            x = tuple(ordinary(each[row : row + 1]).clone() for each in arguments.inputs)
            action = self._action if len(x) == 1 else JointAction(self._action, x)
            packed = action.pack(x) if isinstance(action, JointAction) else x[0]
        else:
            x, action, packed = own.inputs, own.acting(self._action), own.x
        moved = action.attached(packed).act(packed, element)
        parts = action.unpack(moved) if isinstance(action, JointAction) else (moved,)
        return _Kept(element=element, arguments=own, inputs=x, moved=parts, **values)

    def check_maps(self) -> None:
        """Raises a `ValueError` where the network has no maps, before much work is done."""
        for kept in self._kept[:1]:
            self._maps(kept)

    def result(self) -> KeptSamples:
        """What was kept."""
        kept = self._kept
        maps = [self._maps(each) for each in kept]
        there = [each for each in maps if each is not None]
        whole = bool(there) and len(there) == len(kept)
        targets = [each.target for each in kept if each.target is not None]
        elements = self._action.labels
        return KeptSamples(
            inputs=_rows([each.inputs for each in kept]),
            moved=_rows([each.moved for each in kept]),
            index=torch.tensor([each.index for each in kept], dtype=torch.int64),
            element=torch.tensor([each.element for each in kept], dtype=torch.int64),
            labels=tuple(elements[each.element] for each in kept),
            errors=torch.tensor([each.error for each in kept]),
            logits=_stacked([each.logits for each in kept]),
            moved_logits=_stacked([each.moved_logits for each in kept]),
            target=torch.stack(targets) if targets and len(targets) == len(kept) else None,
            saliency=_rows([(base,) for base, _ in there]) if whole else None,
            orbit_saliency=_rows([(orbit,) for _, orbit in there], dim=1) if whole else None,
            elements=elements,
        )

    def _maps(self, kept: _Kept) -> tuple[Tensor, Tensor] | None:
        """A sample's map and those over its orbit, ``(1, ...)`` and ``(|G| - 1, 1, ...)``."""
        if self._saliency is None or not self._stays or kept.arguments is None or len(kept.inputs) > 1:
            return None
        source = SaliencySource(self._saliency)
        x, logits = kept.inputs[0], kept.logits[None]
        if not source.can_explain(logits, x):
            return None
        network = NetworkOfInput(self._network, kept.arguments, self._reader, start=kept.start)
        samples = Samples(
            x=x,
            network=network,
            calm=network,
            action=self._action,
            output=None,
            packing=lambda: None,
            positions=(kept.index,),
            max_batch=self._max_batch or 1,
            target=None if kept.target is None else kept.target[None],
            logits=logits,
        )
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            preserved_random_state(x.device),
            preserved_buffers(self._module),
        ):
            given = source.run(samples)
        return given["saliency"], given["orbit_saliency"]


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(rows)) if rows else torch.empty(0)


def _rows(samples: Sequence[tuple[Tensor, ...]], dim: int = 0) -> Rows:
    """Rows that each have one sample in a dimension, as one tensor if they can be."""
    single = all(len(each) == 1 for each in samples)
    if single and len({each[0].shape for each in samples}) == 1:
        return torch.cat([each[0] for each in samples], dim=dim)
    rows = [tuple(part.squeeze(dim) for part in each) for each in samples]
    return tuple(each[0] for each in rows) if single else tuple(rows)
