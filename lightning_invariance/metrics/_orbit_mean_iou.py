"""The mean IoU over the orbit, accumulated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_invariance.functional._orbit_mean_iou import check_masks, orbit_mean_iou_values
from lightning_invariance.functional._orbit_values import Reduction, check_orbit, check_valid, finite_samples
from lightning_invariance.metrics._base import NanStrategy, SampleMeanMetric


class OrbitMeanIoU(SampleMeanMetric):
    r"""Mean intersection over union of the predicted mask with those over the orbit, brought back.

    .. math::
        I = \mathbb{E}_x \, \tfrac{1}{|G| - 1} \sum_{g \ne e} \frac{1}{|K|} \sum_{k \in K}
        \frac{|M_k(x) \cap g^{-1} M_k(gx)|}{|M_k(x) \cup g^{-1} M_k(gx)|}

    In [0, 1], higher is more equivariant; see `lightning_invariance.functional.orbit_mean_iou`.

    As input to ``forward`` and ``update`` the metric takes

    - ``logits``: :math:`f(x)`, shape ``(B, C, H, W)``.
    - ``orbit_logits``: :math:`\rho(g)^{-1} f(gx)` for every element but the identity, shape
      ``(|G| - 1, B, C, H, W)``.
    - ``valid``: which places both poses see, bool, broadcastable to ``orbit_logits``; see `OrbitOutputs`.
      None for all.

    Args:
        reduction: ``"mean"``, ``"element"`` (one value for each element but the identity) or ``"none"`` (one a sample).
        nan_strategy: what `compute` does about samples with NaN or infinite outputs: ``"error"``, ``"warn"`` (and leave
            them out) or ``"ignore"`` (leave them out).
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an option is unknown, or (in ``update``) shapes do not match.

    Example:
        >>> import torch
        >>> from lightning_invariance import OrbitMeanIoU
        >>> metric, scores = OrbitMeanIoU(), torch.randn(2, 3, 8, 8)
        >>> metric.update(scores, 2.0 * scores[None])  # the same masks
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better: bool = True
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    _measure = "The orbit's mean IoU"

    def __init__(self, *, reduction: Reduction = "mean", nan_strategy: NanStrategy = "warn", **kwargs: Any) -> None:
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, **kwargs)

    def update(self, logits: Tensor, orbit_logits: Tensor, valid: Tensor | None = None) -> None:
        """Adds a batch."""
        check_orbit(logits, orbit_logits)
        check_masks(logits)
        check_valid(valid, orbit_logits)
        self._add(orbit_mean_iou_values(logits, orbit_logits, valid), finite_samples(logits, orbit_logits))
