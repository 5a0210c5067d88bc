"""The relative equivariance error, accumulated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_invariance.functional._orbit_values import (
    Reduction,
    check_orbit,
    check_outputs,
    check_valid,
    finite_samples,
)
from lightning_invariance.functional._relative_equivariance_error import relative_equivariance_values
from lightning_invariance.metrics._base import NanStrategy, SampleMeanMetric


class RelativeEquivarianceError(SampleMeanMetric):
    r"""Relative equivariance error of any output.

    .. math::
        E = \mathbb{E}_x \, \tfrac{1}{|G| - 1} \sum_{g \ne e} \frac{\| \rho(g)^{-1} f(gx) - f(x) \|}{\| f(x) \|}

    In :math:`[0, \infty)`, lower is more equivariant; free of the output's unit; see
    `lightning_invariance.functional.relative_equivariance_error`.

    As input to ``forward`` and ``update`` the metric takes

    - ``logits``: :math:`f(x)`, shape ``(B, ...)``: any output.
    - ``orbit_logits``: :math:`\rho(g)^{-1} f(gx)` for every element but the identity, shape ``(|G| - 1, B, ...)``.
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
        >>> from lightning_invariance import RelativeEquivarianceError
        >>> metric = RelativeEquivarianceError()
        >>> metric.update(torch.tensor([[3.0, 4.0]]), torch.tensor([[[3.0, 3.0]]]))
        >>> metric.compute()
        tensor(0.2000)
    """

    higher_is_better: bool = False
    plot_lower_bound: float = 0.0
    _measure = "The relative equivariance error"

    def __init__(self, *, reduction: Reduction = "mean", nan_strategy: NanStrategy = "warn", **kwargs: Any) -> None:
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, **kwargs)

    def update(self, logits: Tensor, orbit_logits: Tensor, valid: Tensor | None = None) -> None:
        """Adds a batch."""
        check_orbit(logits, orbit_logits)
        check_outputs(logits)
        check_valid(valid, orbit_logits)
        values = relative_equivariance_values(logits, orbit_logits, valid)
        self._add(values, finite_samples(logits, orbit_logits))
