"""Ratios of means over samples: samples are dealt out to folds, and a jackknife over those gives the standard error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_invariance.functional._orbit_values import Reduction
from lightning_invariance.metrics._base import InvarianceMetric, NanStrategy

#: Samples are dealt out to this many folds in turn; the standard error is the jackknife's over the folds.
FOLDS = 16


class DealtMetric(InvarianceMetric):
    """A measure whose samples are dealt out to folds."""

    def __init__(self, *, reduction: Reduction, nan_strategy: NanStrategy, variant: str = "", **kwargs: Any) -> None:
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, variant=variant, **kwargs)
        # The next sample's fold. No state: `forward` starts each batch from empty states, and small batches would all
        # land in the first folds. A reset need not set it back, since a rotation of the folds changes nothing.
        self._next_fold = 0

    def _deal(self, samples: Tensor) -> Tensor:
        """The fold of each sample of a batch, shape ``(B,)``."""
        fold = (torch.arange(len(samples), device=samples.device) + self._next_fold) % FOLDS
        self._next_fold = (self._next_fold + len(samples)) % FOLDS
        return fold


class FoldedMetric(DealtMetric):
    """A measure with a variance between samples in it.

    One state holds each fold's moments: the number of samples, their squared deviations from the fold's mean, summed,
    and that mean. Deviations lose nothing where the mean is large, as sums of squares would. It starts as a single
    column of zeros, which broadcasts: a process that has seen nothing can be merged with others.
    """

    def __init__(self, *, reduction: Reduction, nan_strategy: NanStrategy, **kwargs: Any) -> None:
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, **kwargs)
        self._outputs: int | None = None
        self._moments = f"{self._state_prefix}_moments"
        self.add_state(self._moments, torch.zeros(FOLDS, 1, dtype=torch.float64), dist_reduce_fx=merge_moments)

    def reset(self) -> None:
        """Forgets everything seen."""
        super().reset()
        if not self._in_forward:
            self._outputs = None

    def _check_outputs(self, outputs: int, what: str) -> None:
        """Raises where a batch has another number of outputs than those before (one would broadcast)."""
        if self._outputs not in (None, outputs):
            seen = "one output a sample" if self._outputs == 1 else f"{self._outputs} {what}"
            raise ValueError(f"Expected `logits` to have {seen}, as those before, but got {outputs}.")
        self._outputs = outputs

    def _add_moments(self, values: Tensor, kept: Tensor, fold: Tensor) -> None:
        """Adds the moments of the samples that are `kept`: `values` are ``(B, D)``, the others ``(B,)``."""
        if len(values):
            both = torch.broadcast_tensors(getattr(self, self._moments).double(), batch_moments(values, kept, fold))
            setattr(self, self._moments, merge_moments(torch.stack(both)))

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        """`forward` and `merge_state` stack the states of both, whose widths differ while one has seen nothing."""
        both = torch.broadcast_tensors(incoming_state[self._moments], getattr(self, self._moments))
        setattr(self, self._moments, both[1])
        super()._reduce_states({**incoming_state, self._moments: both[0]})


def batch_moments(values: Tensor, kept: Tensor, fold: Tensor) -> Tensor:
    """Each fold's moments of a batch, shape ``(FOLDS, 2 + D)``; see `FoldedMetric`."""
    # Deviations from one of the samples: where all are alike they are 0 and not rounding.
    values = torch.where(kept[:, None], values, 0.0)
    origin = values[kept.int().argmax()]
    values = torch.where(kept[:, None], values - origin, 0.0)
    samples = fold_sums(kept.double()[:, None], fold)
    means = fold_sums(values, fold) / samples.clamp_min(1.0)
    squares = torch.where(kept, (values - means[fold]).square().sum(dim=1), 0.0)
    means = torch.where(samples > 0, means + origin, 0.0)
    return torch.cat([samples, fold_sums(squares[:, None], fold), means], dim=1)


def merge_moments(parts: Tensor) -> Tensor:
    """Moments of the union of several parts, shape ``(parts, ..., 2 + D)``, by the formula of Chan et al. (1979)."""
    samples, squares, means = parts[..., :1], parts[..., 1:2], parts[..., 2:]
    total = samples.sum(dim=0)
    fullest = samples.argmax(dim=0, keepdim=True)
    origin = means.gather(0, fullest.expand(1, *means.shape[1:]))
    distances = torch.where(samples > 0, means - origin, 0.0)
    centre = (samples * distances).sum(dim=0) / total.clamp_min(1.0)
    between = (samples * (distances - centre).square().sum(dim=-1, keepdim=True)).sum(dim=0)
    return torch.cat([total, squares.sum(dim=0) + between, origin[0] + centre], dim=-1)


def variance_of(moments: Tensor) -> Tensor:
    """The population variance over the samples of all folds, added up over outputs; NaN without samples."""
    if moments.shape[1] == 1:  # no sample was ever seen
        return moments.new_full((), torch.nan)
    union = merge_moments(moments)
    return union[1] / union[0]


def fold_sums(rows: Tensor, fold: Tensor) -> Tensor:
    """Adds each sample's row to its fold: from ``(B, ...)`` to ``(FOLDS, ...)``."""
    sums = torch.zeros(FOLDS, *rows.shape[1:], dtype=torch.float64, device=rows.device)
    return sums.index_add(0, fold, rows)


def others(moments: Tensor) -> Iterator[Tensor]:
    """For each fold that holds samples, which folds are the others."""
    used = moments[:, 0] > 0
    for number in used.nonzero().flatten():
        yield torch.arange(len(moments), device=moments.device) != number


def jackknife_error(without: Tensor | Sequence[Tensor], value: Tensor) -> Tensor:
    """The standard error of a value from what it is without each fold; NaN with fewer than two folds."""
    folds = len(without)
    if folds < 2:
        return torch.full_like(value, torch.nan)
    each = without if isinstance(without, Tensor) else torch.stack(list(without))
    return ((folds - 1) / folds * (each - each.mean(dim=0)).square().sum(dim=0)).sqrt()
