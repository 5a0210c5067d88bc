"""The loss share, accumulated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_invariance.functional._loss_share import (
    Loss,
    check_loss,
    check_loss_inputs,
    loss_for,
    orbit_losses,
    share_of,
    warn_no_loss,
)
from lightning_invariance.functional._orbit_values import Reduction, check_orbit, finite_samples, flat_samples
from lightning_invariance.metrics._base import Estimate, NanStrategy, concatenated
from lightning_invariance.metrics._folds import FOLDS, DealtMetric, fold_sums, jackknife_error


class LossShare(DealtMetric):
    r"""The part of the task's loss that is due to broken symmetry, in per cent.

    .. math::
        S = 100 \, \frac{\mathbb{E}_x \big[ \tfrac{1}{|G|} \sum_{g \in G} L(\rho(g)^{-1} f(gx), y)
        - L(\bar f(x), y) \big]}{\mathbb{E}_x \tfrac{1}{|G|} \sum_{g \in G} L(\rho(g)^{-1} f(gx), y)}, \qquad
        \bar f(x) = \frac{1}{|G|} \sum_{g \in G} \rho(g)^{-1} f(gx)

    In [0, 100] for a convex loss, lower is more invariant; see `lightning_invariance.functional.loss_share`. It is a
    ratio of two means, so its standard error is a jackknife's, over 16 folds of the samples.

    As input to ``forward`` and ``update`` the metric takes

    - ``logits``: :math:`f(x)`, shape ``(B, ...)``: any output.
    - ``orbit_logits``: :math:`\rho(g)^{-1} f(gx)` for every element but the identity, shape ``(|G| - 1, B, ...)``.
    - ``target``: :math:`y`: classes ``(B,)`` or ``(B, H, W)``, those that name none left out, or numbers of the
      logits' shape.
    - ``valid``: which places both poses see, bool, broadcastable to ``orbit_logits``; see `OrbitOutputs`.
      None for all.

    Args:
        loss: ``"cross_entropy"``, ``"mse"``, ``"mae"``, or a function ``(outputs, target)`` that gives one value a
            sample; by default cross-entropy of integer targets, squared error of floating-point ones.
        reduction: ``"mean"``, ``"element"`` (how much more than the averaged output's the loss of each pose but x is)
            or ``"none"`` (one a sample: its own part over the mean loss).
        nan_strategy: what `compute` does about samples with NaN or infinite values: ``"error"``, ``"warn"`` (and leave
            them out) or ``"ignore"`` (leave them out).
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an option is unknown, or (in ``update``) shapes do not match or several losses could be meant.

    Example:
        >>> import torch
        >>> from lightning_invariance import LossShare
        >>> metric = LossShare()
        >>> metric.update(torch.tensor([1.0]), torch.tensor([[3.0]]), torch.tensor([2.0]))
        >>> metric.update(torch.tensor([3.0]), torch.tensor([[3.0]]), torch.tensor([2.0]))
        >>> metric.compute()  # the first sample's loss is its orbit's variance, the second one's is error alone
        tensor(50.)
    """

    higher_is_better: bool = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 100.0
    takes_values: bool = True
    """Whether `target` may be numbers: where there are no labels, the evaluator gives those."""
    _measure = "The loss share"

    def __init__(
        self,
        *,
        loss: Loss | None = None,
        reduction: Reduction = "mean",
        nan_strategy: NanStrategy = "warn",
        **kwargs: Any,
    ) -> None:
        check_loss(loss)
        variant = loss if isinstance(loss, str) else "" if loss is None else getattr(loss, "__name__", "function")
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, variant=variant, **kwargs)
        self.loss = loss
        self._chosen: Loss | None = loss  # by the first batch, for all
        self._sums, self._values = f"{self._state_prefix}_sums", f"{self._state_prefix}_values"
        # For each fold five rows: samples, undefined ones, those not finite, their losses, the excess in these. One
        # column, which broadcasts, or one for each element.
        self.add_state(self._sums, torch.zeros(FOLDS, 5, 1, dtype=torch.float64), dist_reduce_fx="sum")
        if reduction == "none":
            self.add_state(self._values, [], dist_reduce_fx="cat")

    def reset(self) -> None:
        """Forgets everything seen."""
        super().reset()
        if not self._in_forward:
            self._chosen = self.loss

    def update(self, logits: Tensor, orbit_logits: Tensor, target: Tensor, valid: Tensor | None = None) -> None:
        """Adds a batch."""
        check_orbit(logits, orbit_logits)
        self._check_batch(logits, len(orbit_logits), self._sums)
        loss = self._chosen = loss_for(logits, target, self._chosen)
        target = check_loss_inputs(logits, orbit_logits, target, loss, valid)
        finite = finite_samples(logits, orbit_logits)
        if target.is_floating_point():
            finite = finite & flat_samples(target).isfinite().all(dim=1)
        poses, excess, by_element = orbit_losses(logits, orbit_logits, target, loss, valid)
        finite = finite & ~poses.isinf()
        defined = ~poses.isnan()
        kept = finite & defined
        columns = by_element.T.nan_to_num() if self.reduction == "element" else excess[:, None]
        counts = [kept.double(), (finite & ~defined).double(), (~finite).double(), torch.where(kept, poses, 0.0)]
        sums = [*(each[:, None].expand_as(columns) for each in counts), torch.where(kept[:, None], columns, 0.0)]
        # Not in place: a state that was reset in inference mode could not be written outside of it.
        rows = fold_sums(torch.stack(sums, dim=1), self._deal(kept))
        setattr(self, self._sums, getattr(self, self._sums) + rows)
        if self.reduction == "none":
            getattr(self, self._values).append(torch.where(kept, excess, torch.nan).to(self.dtype))

    def _estimate(self) -> Estimate:
        sums: Tensor = getattr(self, self._sums)
        samples, undefined, nonfinite, poses, excess = sums.sum(dim=0)
        self._report(samples[0], undefined[0], nonfinite[0])
        if samples[0] > 0 and not poses[0] > 0:
            warn_no_loss()
        if self.reduction == "none":
            values = concatenated(getattr(self, self._values), sums.device)
            shares = share_of(values.double(), (poses / samples).expand(len(values)))
            return Estimate(shares.float(), torch.full_like(values, torch.nan).float())
        rest = (sums.sum(dim=0) - sums)[sums[:, 0, 0] > 0]
        value = share_of(excess, poses)
        result = Estimate(value.float(), jackknife_error(share_of(rest[:, 4], rest[:, 3]), value).float())
        return result if self.reduction == "element" else Estimate(result.value[0], result.standard_error[0])
