"""Prediction consistency, accumulated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_invariance.functional._orbit_values import (
    Reduction,
    check_classes,
    check_orbit,
    check_valid,
    finite_samples,
)
from lightning_invariance.functional._prediction_consistency import prediction_consistency_values
from lightning_invariance.metrics._base import NanStrategy, SampleMeanMetric


class PredictionConsistency(SampleMeanMetric):
    r"""Share of pairs whose predicted class is that of the untransformed input.

    .. math::
        C = \mathbb{E}_x \, \tfrac{1}{|G| - 1} \sum_{g \ne e} \mathbb{1}\big[\arg\max f(gx) = \arg\max f(x)\big]

    In [0, 1], higher is more invariant; see `lightning_invariance.functional.prediction_consistency`.

    As input to ``forward`` and ``update`` the metric takes

    - ``logits``: :math:`f(x)`, shape ``(B, C)``.
    - ``orbit_logits``: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, C)``.
    - ``valid``: which places both poses see, bool, broadcastable to ``orbit_logits``; see `OrbitOutputs`.
      None for all.

    Args:
        reduction: ``"mean"``, ``"element"`` (one value for each element but the identity) or ``"none"`` (one a sample).
        nan_strategy: what `compute` does about samples with NaN or infinite logits: ``"error"``, ``"warn"`` (and leave
            them out) or ``"ignore"`` (leave them out).
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an option is unknown, or (in ``update``) shapes do not match.

    Example:
        >>> import torch
        >>> from lightning_invariance import PredictionConsistency
        >>> metric = PredictionConsistency()
        >>> metric.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[[1.0, 0.0], [3.0, 1.0]]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better: bool = True
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    _measure = "The prediction consistency"

    def __init__(self, *, reduction: Reduction = "mean", nan_strategy: NanStrategy = "warn", **kwargs: Any) -> None:
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, **kwargs)

    def update(self, logits: Tensor, orbit_logits: Tensor, valid: Tensor | None = None) -> None:
        """Adds a batch."""
        check_orbit(logits, orbit_logits)
        check_classes(logits, 2)
        check_valid(valid, orbit_logits)
        self._add(prediction_consistency_values(logits, orbit_logits, valid), finite_samples(logits, orbit_logits))
