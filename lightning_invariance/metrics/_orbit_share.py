"""The orbit share, accumulated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_invariance.functional._orbit_share import orbit_moments, total_variance, warn_degenerate
from lightning_invariance.functional._orbit_values import Reduction, check_classes, check_orbit, finite_samples
from lightning_invariance.metrics._base import Estimate, InvarianceMetric, NanStrategy, concatenated

#: Samples are dealt out to this many folds in turn; the standard error is the jackknife's over the folds.
FOLDS = 16


class OrbitShare(InvarianceMetric):
    r"""Share of the logits' variance that lies within orbits.

    .. math::
        S = \frac{W}{W + V}, \qquad
        W = \mathbb{E}_x \tfrac{1}{|G|} \sum_g \| z_{gx} - \bar z_x \|^2, \qquad
        V = \mathbb{E}_x \| \bar z_x - \bar z \|^2

    with :math:`z` the logits less their mean over classes. In [0, 1], lower is more invariant; free of the logits'
    scale and shift; see `lightning_invariance.functional.orbit_share`. The share is a ratio, so its standard error is
    a jackknife's, over 16 folds of the samples.

    As input to ``forward`` and ``update`` the metric takes

    - ``logits``: :math:`f(x)`, shape ``(B, C)``.
    - ``orbit_logits``: :math:`f(gx)` for every element but the identity, shape ``(G, B, C)``.

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
        # The next sample's fold. No state: `forward` starts each batch from empty states, and small batches would all
        # land in the first folds. A reset need not set it back, since a rotation of the folds changes nothing.
        self._next_fold = 0
        names = [f"{self._state_prefix}_{part}" for part in ("sums", "means", "within", "values")]
        self._sums, self._means, self._within, self._values = names
        # A row for each fold. Columns: samples, samples not finite, squared norms of the orbits' means, mean squares.
        self.add_state(self._sums, torch.zeros(FOLDS, 4, dtype=torch.float64), dist_reduce_fx="sum")
        # One column broadcasts, so that a process that has seen nothing can be added to others: the classes, and the
        # orbit's variance (or each element's part of it).
        self.add_state(self._means, torch.zeros(FOLDS, 1, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state(self._within, torch.zeros(FOLDS, 2, 1, dtype=torch.float64), dist_reduce_fx="sum")
        if reduction == "none":
            self.add_state(self._values, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, orbit_logits: Tensor) -> None:
        """Adds a batch."""
        check_orbit(logits, orbit_logits)
        check_classes(logits, 2)
        self._check_batch(logits, len(orbit_logits), self._sums)
        seen = getattr(self, self._means).shape[1]
        if seen not in (1, logits.shape[1]):  # 1 before the first batch
            raise ValueError(f"Expected `logits` to have {seen} classes, as those before, but got {logits.shape[1]}.")
        finite = finite_samples(logits, orbit_logits)
        kept = finite.double()
        moments = orbit_moments(
            torch.where(finite[:, None], logits, 0.0), torch.where(finite[:, None], orbit_logits, 0.0)
        )
        fold = (torch.arange(len(logits), device=logits.device) + self._next_fold) % FOLDS
        self._next_fold = (self._next_fold + len(logits)) % FOLDS

        def add(name: str, rows: Tensor) -> None:
            """Adds each sample's row to its fold. Not in place: the state may be an inference tensor."""
            folded = torch.zeros(FOLDS, *rows.shape[1:], dtype=torch.float64, device=rows.device)
            setattr(self, name, getattr(self, name) + folded.index_add(0, fold, rows))

        columns = moments.deviations.T if self.reduction == "element" else moments.within[:, None]
        norms = moments.means.square().sum(dim=1)
        add(self._sums, torch.stack([kept, 1 - kept, norms, moments.squares], dim=1))
        add(self._means, moments.means)
        add(self._within, torch.stack([moments.within[:, None].expand_as(columns), columns], dim=1))
        if self.reduction == "none":
            getattr(self, self._values).append(torch.where(finite, moments.within, torch.nan).to(self.dtype))

    def _estimate(self) -> Estimate:
        sums, means, within = (getattr(self, name) for name in (self._sums, self._means, self._within))
        samples = sums[:, 0].sum()
        self._report(samples, torch.zeros(()), sums[:, 1].sum())
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
        without = rest_within[:, 1] / rest[:, :1] / _total(rest, rest_means, rest_within)[:, None]
        folds = len(without)
        spread = (without - without.mean(dim=0)).square().sum(dim=0) if folds > 1 else torch.full_like(share, torch.nan)
        error = ((folds - 1) / max(folds, 1) * spread).sqrt()
        result = Estimate(share.float(), error.float())
        return result if self.reduction == "element" else Estimate(result.value[0], result.standard_error[0])


def _total(sums: Tensor, means: Tensor, within: Tensor) -> Tensor:
    """Within- plus between-orbit variance from sums over samples: ``(..., 4)``, ``(..., C)`` and ``(..., 2, k)``."""
    samples = sums[..., 0]
    return total_variance(
        within[..., 0, 0] / samples, sums[..., 2] / samples, means / samples[..., None], sums[..., 3] / samples
    )
