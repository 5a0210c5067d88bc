"""The logit error relative to the variance between samples, accumulated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_invariance.functional._orbit_values import Reduction, check_orbit, check_outputs, finite_samples
from lightning_invariance.functional._relative_logit_invariance_error import (
    distances,
    sound_variance,
    warn_no_variance,
)
from lightning_invariance.metrics._base import Estimate, NanStrategy, concatenated
from lightning_invariance.metrics._folds import FOLDS, FoldedMetric, fold_sums, jackknife_error, others, variance_of


class RelativeLogitInvarianceError(FoldedMetric):
    r"""Logit invariance error relative to the variance of the outputs between samples.

    .. math::
        R = \frac{\mathbb{E}_x \, \tfrac{1}{|G| - 1} \sum_{g \ne e} \tfrac12 \, \| f(x) - f(gx) \|^2}
        {\sum_d \operatorname{Var}_x f_d(x)}

    with the population variance of the untransformed outputs over all samples seen. In :math:`[0, \infty)`, lower is
    more invariant: 0 is invariance, and at 1 two poses of one sample differ as two samples do; free of the outputs'
    scale and shift; see `lightning_invariance.functional.relative_logit_invariance_error`. It is a ratio of two means,
    so its standard error is a jackknife's, over 16 folds of the samples. The metric keeps the mean output of each fold:
    128 bytes for each value that the network gives a sample.

    As input to ``forward`` and ``update`` the metric takes

    - ``logits``: :math:`f(x)`, shape ``(B, ...)``: any output, so one number a sample ``(B,)`` too.
    - ``orbit_logits``: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, ...)``.

    Args:
        reduction: ``"mean"``, ``"element"`` (one value for each element but the identity) or ``"none"`` (one a sample).
        nan_strategy: what `compute` does about samples with NaN or infinite outputs: ``"error"``, ``"warn"`` (and leave
            them out) or ``"ignore"`` (leave them out).
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an option is unknown, or (in ``update``) shapes do not match.

    Example:
        >>> import torch
        >>> from lightning_invariance import RelativeLogitInvarianceError
        >>> metric = RelativeLogitInvarianceError()
        >>> metric.update(torch.tensor([1.0]), torch.tensor([[2.0], [1.0]]))
        >>> metric.update(torch.tensor([3.0]), torch.tensor([[3.0], [4.0]]))
        >>> metric.compute()  # the variance is 1 over both batches, and 0 in each
        tensor(0.2500)
    """

    higher_is_better: bool = False
    plot_lower_bound: float = 0.0
    _measure = "The relative logit invariance error"

    def __init__(self, *, reduction: Reduction = "mean", nan_strategy: NanStrategy = "warn", **kwargs: Any) -> None:
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, **kwargs)
        self._sums, self._values = f"{self._state_prefix}_sums", f"{self._state_prefix}_values"
        # For each fold three rows: the samples that are not finite, the variance that rounding may account for, the
        # errors. One column, which broadcasts, or one for each element.
        self.add_state(self._sums, torch.zeros(FOLDS, 3, 1, dtype=torch.float64), dist_reduce_fx="sum")
        if reduction == "none":
            self.add_state(self._values, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, orbit_logits: Tensor) -> None:
        """Adds a batch."""
        check_orbit(logits, orbit_logits)
        check_outputs(logits)
        self._check_batch(logits, len(orbit_logits), self._sums)
        self._check_outputs(logits.shape[1:].numel(), "values a sample")
        finite = finite_samples(logits, orbit_logits)
        errors, outputs, rounding = distances(logits, orbit_logits)
        fold = self._deal(finite)
        self._add_moments(outputs, finite, fold)
        by_sample = errors.mean(dim=0)
        columns = errors.T if self.reduction == "element" else by_sample[:, None]
        kept = torch.stack([rounding[:, None].expand_as(columns), columns], dim=1)
        kept = torch.where(finite[:, None, None], kept, 0.0)
        bad = (~finite).double()[:, None, None].expand(-1, 1, columns.shape[1])
        # Not in place: a state that was reset in inference mode could not be written outside of it.
        setattr(self, self._sums, getattr(self, self._sums) + fold_sums(torch.cat([bad, kept], dim=1), fold))
        if self.reduction == "none":
            getattr(self, self._values).append(torch.where(finite, by_sample, torch.nan).to(self.dtype))

    def _estimate(self) -> Estimate:
        sums, moments = getattr(self, self._sums), getattr(self, self._moments)
        samples = moments[:, 0].sum()
        self._report(samples, torch.zeros(()), sums[:, 0, 0].sum())
        value, variance = _ratio(sums, moments)
        if bool(variance.isnan()) and samples > 0:
            warn_no_variance()
        if self.reduction == "none":
            values = concatenated(getattr(self, self._values), sums.device)
            return Estimate((values / variance).float(), torch.full_like(values, torch.nan).float())
        without = [_ratio(sums[rest], moments[rest])[0] for rest in others(moments)]
        result = Estimate(value.float(), jackknife_error(without, value).float())
        return result if self.reduction == "element" else Estimate(result.value[0], result.standard_error[0])


def _ratio(sums: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """The ratio, one for each column, and the variance in it from some folds."""
    samples = moments[:, 0].sum()
    _, rounding, errors = sums.sum(dim=0) / samples
    variance = sound_variance(variance_of(moments), rounding[0])
    return errors / variance, variance
