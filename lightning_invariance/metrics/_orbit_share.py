"""The orbit share, accumulated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_invariance.functional._orbit_share import (
    check_scores,
    orbit_moments,
    single_total_variance,
    total_variance,
    warn_degenerate,
)
from lightning_invariance.functional._orbit_values import (
    Reduction,
    check_orbit,
    finite_samples,
    is_single,
    rounding_variance,
)
from lightning_invariance.metrics._base import Estimate, NanStrategy, concatenated
from lightning_invariance.metrics._folds import FOLDS, FoldedMetric, fold_sums, jackknife_error, others, variance_of


class OrbitShare(FoldedMetric):
    r"""Share of the logits' variance that lies within orbits.

    .. math::
        S = \frac{W}{W + V}, \qquad
        W = \mathbb{E}_x \tfrac{1}{|G|} \sum_g \| z_{gx} - \bar z_x \|^2, \qquad
        V = \mathbb{E}_x \| \bar z_x - \bar z \|^2

    with :math:`z` the logits less their mean over classes, or the output itself where there is one a sample (a
    regression). In [0, 1], lower is more invariant; free of the logits' scale and shift; see
    `lightning_invariance.functional.orbit_share`. The share is a ratio, so its standard error is a jackknife's, over 16
    folds of the samples.

    As input to ``forward`` and ``update`` the metric takes

    - ``logits``: :math:`f(x)`, shape ``(B, C)``, or ``(B,)`` for one output a sample.
    - ``orbit_logits``: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, C)`` or ``(|G| - 1, B)``.

    Args:
        reduction: ``"mean"``, ``"element"`` (one value for each element but the identity) or ``"none"`` (one a sample).
        nan_strategy: what `compute` does about samples with NaN or infinite logits: ``"error"``, ``"warn"`` (and leave
            them out) or ``"ignore"`` (leave them out).
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an option is unknown, or (in ``update``) shapes do not match.

    Example:
        >>> import torch
        >>> from lightning_invariance import OrbitShare
        >>> metric = OrbitShare()
        >>> logits = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> metric.update(logits, 0.5 * logits[None])
        >>> metric.compute()
        tensor(0.1000)
    """

    higher_is_better: bool = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    _measure = "The orbit share"

    def __init__(self, *, reduction: Reduction = "mean", nan_strategy: NanStrategy = "warn", **kwargs: Any) -> None:
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, **kwargs)
        names = [f"{self._state_prefix}_{part}" for part in ("sums", "means", "within", "values")]
        self._sums, self._means, self._within, self._values = names
        # A row for each fold. Columns: samples, samples not finite, squared norms of the orbits' means, mean squares
        # (of a single output, what rounding may account for).
        self.add_state(self._sums, torch.zeros(FOLDS, 4, dtype=torch.float64), dist_reduce_fx="sum")
        # One column broadcasts, so that a process that has seen nothing can be added to others: the classes (a single
        # output has the moments of the base class instead), and the orbit's variance (or each element's part of it).
        self.add_state(self._means, torch.zeros(FOLDS, 1, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state(self._within, torch.zeros(FOLDS, 2, 1, dtype=torch.float64), dist_reduce_fx="sum")
        if reduction == "none":
            self.add_state(self._values, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, orbit_logits: Tensor) -> None:
        """Adds a batch."""
        check_orbit(logits, orbit_logits)
        check_scores(logits)
        self._check_batch(logits, len(orbit_logits), self._sums)
        self._check_outputs(logits.shape[1:].numel(), "classes")
        finite = finite_samples(logits, orbit_logits)
        kept = finite.double()
        usable = finite if logits.ndim == 1 else finite[:, None]
        moments = orbit_moments(torch.where(usable, logits, 0.0), torch.where(usable, orbit_logits, 0.0))
        fold = self._deal(finite)

        def add(name: str, rows: Tensor) -> None:
            """Adds each sample's row to its fold. Not in place: the state may be an inference tensor."""
            setattr(self, name, getattr(self, name) + fold_sums(rows, fold))

        columns = moments.deviations.T if self.reduction == "element" else moments.within[:, None]
        norms = moments.means.square().sum(dim=1)
        single = is_single(logits)
        squares = rounding_variance(moments.squares, logits.dtype) if single else moments.squares
        add(self._sums, torch.stack([kept, 1 - kept, norms, squares], dim=1))
        if single:
            self._add_moments(moments.means, finite, fold)
        else:
            add(self._means, moments.means)
        add(self._within, torch.stack([moments.within[:, None].expand_as(columns), columns], dim=1))
        if self.reduction == "none":
            getattr(self, self._values).append(torch.where(finite, moments.within, torch.nan).to(self.dtype))

    def _estimate(self) -> Estimate:
        sums, means, within = (getattr(self, name) for name in (self._sums, self._means, self._within))
        moments = getattr(self, self._moments)
        single = moments.shape[1] > 1
        samples = sums[:, 0].sum()
        self._report(samples, torch.zeros(()), sums[:, 1].sum())
        if single:
            total = _single_total(sums, within, moments)
        else:
            total = _total(sums.sum(dim=0), means.sum(dim=0), within.sum(dim=0))
        if bool(total.isnan()) and samples > 0:
            warn_degenerate()
        if self.reduction == "none":
            values = concatenated(getattr(self, self._values), sums.device)
            return Estimate((values / total).float(), torch.full_like(values, torch.nan).float())
        share = within[:, 1].sum(dim=0) / samples / total

        # Jackknife: the share without each fold that holds samples.
        used = sums[:, 0] > 0
        rest = (sums.sum(dim=0) - sums)[used]
        rest_means, rest_within = (means.sum(dim=0) - means)[used], (within.sum(dim=0) - within)[used]
        if single:
            totals = [_single_total(sums[other], within[other], moments[other]) for other in others(sums)]
            rest_total = torch.stack(totals) if totals else sums.new_zeros(0)
        else:
            rest_total = _total(rest, rest_means, rest_within)
        without = rest_within[:, 1] / rest[:, :1] / rest_total[:, None]
        result = Estimate(share.float(), jackknife_error(without, share).float())
        return result if self.reduction == "element" else Estimate(result.value[0], result.standard_error[0])


def _total(sums: Tensor, means: Tensor, within: Tensor) -> Tensor:
    """Within- plus between-orbit variance from sums over samples: ``(..., 4)``, ``(..., C)`` and ``(..., 2, k)``."""
    samples = sums[..., 0]
    return total_variance(
        within[..., 0, 0] / samples, sums[..., 2] / samples, means / samples[..., None], sums[..., 3] / samples
    )


def _single_total(sums: Tensor, within: Tensor, moments: Tensor) -> Tensor:
    """The same of a single output from the rows of some folds."""
    samples = sums[:, 0].sum()
    return single_total_variance(within[:, 0, 0].sum() / samples, variance_of(moments), sums[:, 3].sum() / samples)
