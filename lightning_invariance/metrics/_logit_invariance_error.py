"""LI, accumulated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_invariance._checks import check_choice
from lightning_invariance.functional._logit_invariance_error import (
    NORMALIZATIONS,
    Normalization,
    logit_invariance_values,
)
from lightning_invariance.functional._orbit_values import (
    Reduction,
    check_orbit,
    check_outputs,
    check_valid,
    finite_samples,
)
from lightning_invariance.metrics._base import NanStrategy, SampleMeanMetric


class LogitInvarianceError(SampleMeanMetric):
    r"""Logit invariance error, in squared units of the logits.

    .. math::
        LI = \mathbb{E}_x \, \tfrac{1}{|G| - 1} \sum_{g \ne e} \tfrac12 \, \| f(x) - f(gx) \|_2^2

    Equation 2 of "On genuine invariance learning without weight-tying" (Moskalev et al., 2023); with
    ``normalize="logits"`` the relative error of its section 4.4. In :math:`[0, \infty)`, lower is more invariant; see
    `lightning_invariance.functional.logit_invariance_error`.

    As input to ``forward`` and ``update`` the metric takes

    - ``logits``: :math:`f(x)`, shape ``(B, ...)``: any output, so regression too.
    - ``orbit_logits``: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, ...)``.
    - ``valid``: which places both poses see, bool, broadcastable to ``orbit_logits``; see `OrbitOutputs`.
      None for all.

    Args:
        normalize: None, or ``"logits"`` to divide by the squared norm of :math:`f(x)`.
        reduction: ``"mean"``, ``"element"`` (one value for each element but the identity) or ``"none"`` (one a sample).
        nan_strategy: what `compute` does about samples with NaN or infinite logits: ``"error"``, ``"warn"`` (and leave
            them out) or ``"ignore"`` (leave them out).
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an option is unknown, or (in ``update``) shapes do not match.

    Example:
        >>> import torch
        >>> from lightning_invariance import LogitInvarianceError
        >>> metric = LogitInvarianceError()
        >>> metric.update(torch.tensor([[3.0, 4.0]]), torch.tensor([[[3.0, 2.0]]]))
        >>> metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0]]]))
        >>> metric.compute_with_error()
        Estimate(value=tensor(1.), standard_error=tensor(1.))
    """

    higher_is_better: bool = False
    plot_lower_bound: float = 0.0
    _measure = "The logit invariance error"

    def __init__(
        self,
        *,
        normalize: Normalization | None = None,
        reduction: Reduction = "mean",
        nan_strategy: NanStrategy = "warn",
        **kwargs: Any,
    ) -> None:
        check_choice("normalize", normalize, NORMALIZATIONS)
        variant = "normalized" if normalize else ""
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, variant=variant, **kwargs)
        self.normalize: Normalization | None = normalize

    def update(self, logits: Tensor, orbit_logits: Tensor, valid: Tensor | None = None) -> None:
        """Adds a batch."""
        check_orbit(logits, orbit_logits)
        check_outputs(logits)
        check_valid(valid, orbit_logits)
        values = logit_invariance_values(logits, orbit_logits, self.normalize, valid)
        self._add(values, finite_samples(logits, orbit_logits))
