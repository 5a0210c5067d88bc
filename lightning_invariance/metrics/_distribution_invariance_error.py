"""DI, accumulated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_invariance._checks import check_choice
from lightning_invariance.functional._distribution_invariance_error import distribution_invariance_values
from lightning_invariance.functional._orbit_values import (
    ACTIVATIONS,
    Activation,
    Reduction,
    check_activation,
    check_orbit,
    check_valid,
    finite_samples,
)
from lightning_invariance.metrics._base import NanStrategy, SampleMeanMetric


class DistributionInvarianceError(SampleMeanMetric):
    r"""Predictive distribution invariance error, in nats.

    .. math::
        DI = \mathbb{E}_x \, \tfrac{1}{|G| - 1} \sum_{g \ne e} KL\big(\mathrm{softmax} f(x) \,\|\, \mathrm{softmax}
        f(gx)\big)

    Equation 1 of "On genuine invariance learning without weight-tying" (Moskalev et al., 2023). In
    :math:`[0, \infty)`, lower is more invariant; see `lightning_invariance.functional.distribution_invariance_error`.

    As input to ``forward`` and ``update`` the metric takes

    - ``logits``: :math:`f(x)`, shape ``(B, C)``.
    - ``orbit_logits``: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, C)``.
    - ``valid``: which places both poses see, bool, broadcastable to ``orbit_logits``; see `OrbitOutputs`.
      None for all.

    Args:
        activation: ``"softmax"``, or ``"sigmoid"`` for multi-label logits.
        reduction: ``"mean"``, ``"element"`` (one value for each element but the identity) or ``"none"`` (one a sample).
        nan_strategy: what `compute` does about samples with NaN or infinite logits: ``"error"``, ``"warn"`` (and leave
            them out) or ``"ignore"`` (leave them out).
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an option is unknown, or (in ``update``) shapes do not match.

    Example:
        >>> import torch
        >>> from lightning_invariance import DistributionInvarianceError
        >>> metric = DistributionInvarianceError()
        >>> metric.update(torch.tensor([[2.0, 0.0]]), torch.tensor([[[0.0, 0.0]]]))
        >>> metric.compute()
        tensor(0.3278)
    """

    higher_is_better: bool = False
    plot_lower_bound: float = 0.0
    _measure = "The distribution invariance error"

    def __init__(
        self,
        *,
        activation: Activation = "softmax",
        reduction: Reduction = "mean",
        nan_strategy: NanStrategy = "warn",
        **kwargs: Any,
    ) -> None:
        check_choice("activation", activation, ACTIVATIONS)
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, variant=activation, **kwargs)
        self.activation: Activation = activation

    def update(self, logits: Tensor, orbit_logits: Tensor, valid: Tensor | None = None) -> None:
        """Adds a batch."""
        check_orbit(logits, orbit_logits)
        check_activation(logits, self.activation)
        check_valid(valid, orbit_logits)
        values = distribution_invariance_values(logits, orbit_logits, self.activation, valid)
        self._add(values, finite_samples(logits, orbit_logits))
