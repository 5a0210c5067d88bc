"""The Jacobian's spectral norm, accumulated."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_invariance._checks import check_choice, check_tensor
from lightning_invariance.functional._orbit_values import OrbitValues
from lightning_invariance.metrics._base import NanStrategy, SampleMeanMetric


class JacobianSpectralNorm(SampleMeanMetric):
    r"""Mean over samples of the largest singular value of the network's Jacobian.

    .. math::
        \mathbb{E}_x \Big\| \frac{\partial f(x)}{\partial x} \Big\|_2

    How strongly the network answers to any change of its input, whichever way; figure 5 of "On genuine invariance
    learning without weight-tying" (Moskalev et al., 2023). In :math:`[0, \infty)`; see
    `lightning_invariance.jacobian_spectral_norm`.

    As input to ``forward`` and ``update`` the metric takes

    - ``spectral_norms``: one value a sample, shape ``(B,)``, as `lightning_invariance.jacobian_spectral_norm` gives
      them.

    Args:
        reduction: ``"mean"`` or ``"none"`` (one a sample).
        nan_strategy: what `compute` does about samples whose norm is not finite: ``"error"``, ``"warn"`` (and leave
            them out) or ``"ignore"`` (leave them out).
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an option is unknown, or (in ``update``) the norms have another shape.

    Example:
        >>> import torch
        >>> from lightning_invariance import JacobianSpectralNorm, jacobian_spectral_norm
        >>> metric = JacobianSpectralNorm()
        >>> metric.update(jacobian_spectral_norm(torch.nn.Identity(), torch.randn(8, 3)))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better: bool = False
    plot_lower_bound: float = 0.0
    _measure = "The Jacobian's spectral norm"

    def __init__(
        self, *, reduction: Literal["mean", "none"] = "mean", nan_strategy: NanStrategy = "warn", **kwargs: Any
    ) -> None:
        check_choice("reduction", reduction, ("mean", "none"))
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, **kwargs)

    def update(self, spectral_norms: Tensor) -> None:
        """Adds a batch."""
        check_tensor("spectral_norms", spectral_norms)
        if spectral_norms.ndim != 1 or not spectral_norms.is_floating_point():
            raise ValueError(
                f"Expected `spectral_norms` to have the shape (B,), floating point, but got "
                f"{tuple(spectral_norms.shape)} of {spectral_norms.dtype}."
            )
        finite = spectral_norms.isfinite()
        self._add(OrbitValues(torch.where(finite, spectral_norms, 0.0), spectral_norms[None]), finite)
