"""The Lie derivative error, accumulated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_invariance.functional._lie_derivative_error import (
    Norm,
    check_lie_derivative,
    check_lie_options,
    lie_derivative_values,
)
from lightning_invariance.functional._orbit_values import Activation, Reduction, check_activation, finite_samples
from lightning_invariance.metrics._base import NanStrategy, SampleMeanMetric


class LieDerivativeError(SampleMeanMetric):
    r"""Local equivariance error: how fast the output changes along the generators of a continuous group.

    .. math::
        LEE = \mathbb{E}_x \, \tfrac{1}{K} \sum_k \frac{\| L_k f(x) \|^2}{D}

    The definition of "The Lie Derivative for Measuring Learned Equivariance" (Gruver et al., 2022); its code's numbers
    are those of ``activation="softmax", norm="absolute"``. In :math:`[0, \infty)`, lower is more equivariant; see
    `lightning_invariance.functional.lie_derivative_error`.

    As input to ``forward`` and ``update`` the metric takes

    - ``logits``: :math:`f(x)`, shape ``(B, ...)``: any output.
    - ``lie_derivative``: :math:`L_k f(x)`, shape ``(K, B, ...)``, as `lightning_invariance.evaluate_lie_derivative`
      gives it.

    Args:
        activation: None, for the output itself; ``"softmax"`` or ``"sigmoid"`` for the probabilities of classes.
        norm: ``"squared"`` or ``"absolute"``.
        reduction: ``"mean"``, ``"element"`` (one value for each generator) or ``"none"`` (one a sample).
        nan_strategy: what `compute` does about samples with NaN or infinite values: ``"error"``, ``"warn"`` (and leave
            them out) or ``"ignore"`` (leave them out).
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an option is unknown, or (in ``update``) shapes do not match.

    Example:
        >>> import torch
        >>> from lightning_invariance import LieDerivativeError, PointTranslationFlow, evaluate_lie_derivative
        >>> points = torch.randn(8, 5, 3)
        >>> network = lambda points: 2 * points.mean(dim=1)
        >>> metric = LieDerivativeError(reduction="element")
        >>> metric.update(network(points), evaluate_lie_derivative(network, points, PointTranslationFlow()))
        >>> metric.compute()  # along each axis one of three outputs changes, by 2
        tensor([1.3333, 1.3333, 1.3333])
    """

    higher_is_better: bool = False
    plot_lower_bound: float = 0.0
    _measure = "The Lie derivative error"

    def __init__(
        self,
        *,
        activation: Activation | None = None,
        norm: Norm = "squared",
        reduction: Reduction = "mean",
        nan_strategy: NanStrategy = "warn",
        **kwargs: Any,
    ) -> None:
        check_lie_options(activation, norm)
        variant = norm if activation is None else f"{activation}_{norm}"
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, variant=variant, **kwargs)
        self.activation = activation
        self.norm: Norm = norm

    def update(self, logits: Tensor, lie_derivative: Tensor) -> None:
        """Adds a batch."""
        check_lie_derivative(logits, lie_derivative)
        if self.activation is not None:
            check_activation(logits, self.activation)
        values = lie_derivative_values(logits, lie_derivative, self.activation, self.norm)
        self._add(values, finite_samples(logits, lie_derivative))
