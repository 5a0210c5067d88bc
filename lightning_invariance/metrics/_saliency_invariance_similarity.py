"""SI, accumulated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_invariance.functional._orbit_values import Reduction, check_orbit, check_outputs, finite_samples
from lightning_invariance.functional._saliency_invariance_similarity import (
    check_identity,
    saliency_invariance_values,
)
from lightning_invariance.metrics._base import NanStrategy, SampleMeanMetric


class SaliencyInvarianceSimilarity(SampleMeanMetric):
    r"""Saliency invariance similarity.

    .. math::
        SI = \mathbb{E}_x \, \tfrac{1}{|G| - 1} \sum_{g \ne e} \cos\big(m(x),\; g^{-1} m(gx)\big)

    Equation 3 of "On genuine invariance learning without weight-tying" (Moskalev et al., 2023). In :math:`[-1, 1]`,
    higher is more invariant; see `lightning_invariance.functional.saliency_invariance_similarity`.

    As input to ``forward`` and ``update`` the metric takes

    - ``saliency``: :math:`m(x)`, shape ``(B, ...)``.
    - ``orbit_saliency``: :math:`g^{-1} m(gx)` for every element but the identity, shape ``(|G| - 1, B, ...)``.

    Args:
        include_identity: whether the identity's similarity, which is 1, counts in the mean over the group, as in
            RobustXAI (Crabbé and van der Schaar, 2023): to compare with its numbers, which this makes larger.
        reduction: ``"mean"``, ``"element"`` (one value for each element but the identity) or ``"none"`` (one a sample).
        nan_strategy: what `compute` does about samples with NaN or infinite maps: ``"error"``, ``"warn"`` (and leave
            them out) or ``"ignore"`` (leave them out).
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an option is unknown, ``include_identity`` goes with ``reduction="element"``, or (in ``update``)
            shapes do not match.

    Example:
        >>> import torch
        >>> from lightning_invariance import SaliencyInvarianceSimilarity
        >>> metric = SaliencyInvarianceSimilarity()
        >>> metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 1.0]]]))
        >>> metric.compute()
        tensor(0.7071)
    """

    higher_is_better: bool = True
    plot_lower_bound: float = -1.0
    plot_upper_bound: float = 1.0
    _measure = "The saliency invariance similarity"

    def __init__(
        self,
        *,
        include_identity: bool = False,
        reduction: Reduction = "mean",
        nan_strategy: NanStrategy = "warn",
        **kwargs: Any,
    ) -> None:
        check_identity(include_identity, reduction)
        variant = "with_identity" if include_identity else ""
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, variant=variant, **kwargs)
        self.include_identity = include_identity

    def update(self, saliency: Tensor, orbit_saliency: Tensor) -> None:
        """Adds a batch."""
        check_orbit(saliency, orbit_saliency, "saliency")
        check_outputs(saliency, "saliency")
        values = saliency_invariance_values(saliency, orbit_saliency, self.include_identity)
        self._add(values, finite_samples(saliency, orbit_saliency))
