"""The Jensen-Shannon invariance error, accumulated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_invariance._checks import check_choice
from lightning_invariance.functional._jensen_shannon_invariance_error import jensen_shannon_values
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


class JensenShannonInvarianceError(SampleMeanMetric):
    r"""Jensen-Shannon divergence of the predictive distributions on an orbit, in nats.

    .. math::
        JS = \mathbb{E}_x \Big[ H\Big(\tfrac{1}{|G|} \sum_g p_{gx}\Big) - \tfrac{1}{|G|} \sum_g H(p_{gx}) \Big]

    (Lin, 1991). In :math:`[0, \log |G|]` for softmax, lower is more invariant; see
    `lightning_invariance.functional.jensen_shannon_invariance_error`.

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
        >>> from lightning_invariance import JensenShannonInvarianceError
        >>> metric = JensenShannonInvarianceError()
        >>> metric.update(torch.tensor([[1e4, 0.0]]), torch.tensor([[[0.0, 1e4]]]))
        >>> metric.compute()
        tensor(0.6931)
    """

    higher_is_better: bool = False
    plot_lower_bound: float = 0.0
    _measure = "The Jensen-Shannon invariance error"

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
        self._add(
            jensen_shannon_values(logits, orbit_logits, self.activation, valid), finite_samples(logits, orbit_logits)
        )
