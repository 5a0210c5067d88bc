"""The cosine of vectors, accumulated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_invariance._checks import check_choice
from lightning_invariance.functional._orbit_values import (
    Reduction,
    check_orbit,
    check_outputs,
    check_valid,
    finite_samples,
)
from lightning_invariance.functional._vector_cosine_similarity import (
    BOTH_ZERO,
    BothZero,
    check_vector_dim,
    check_vectors,
    vector_cosine_values,
)
from lightning_invariance.metrics._base import NanStrategy, SampleMeanMetric


class VectorCosineSimilarity(SampleMeanMetric):
    r"""Cosine of vectors with themselves over the orbit, brought back.

    .. math::
        C = \mathbb{E}_x \, \tfrac{1}{|G| - 1} \sum_{g \ne e} \tfrac1N \sum_{n=1}^N
        \cos\big(f_n(x),\; \rho(g)^{-1} f_n(gx)\big)

    In :math:`[-1, 1]`, higher is more equivariant; 1 where both vectors are 0, -1 where one is; see
    `lightning_invariance.functional.vector_cosine_similarity`.

    As input to ``forward`` and ``update`` the metric takes

    - ``logits``: :math:`f(x)`, shape ``(B, ..., d)``.
    - ``orbit_logits``: :math:`\rho(g)^{-1} f(gx)` for every element but the identity, shape ``(|G| - 1, B, ..., d)``.
    - ``valid``: which places both poses see, bool, broadcastable to ``orbit_logits``; see `OrbitOutputs`.
      None for all.

    Args:
        dim: the dimension of the vectors' components, counted from the end; the last one if None, which is refused
            where there are more than two behind the samples.
        both_zero: what becomes of a vector that is 0 in both poses: ``"one"``, its cosine counts as 1; ``"ignore"``, it
            is left out, as the padding of molecules of different sizes must be, and a sample without others is
            undefined.
        reduction: ``"mean"``, ``"element"`` (one value for each element but the identity) or ``"none"`` (one a sample).
        nan_strategy: what `compute` does about samples with NaN or infinite outputs: ``"error"``, ``"warn"`` (and leave
            them out) or ``"ignore"`` (leave them out).
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an option is unknown, or (in ``update``) shapes do not match.

    Example:
        >>> import torch
        >>> from lightning_invariance import VectorCosineSimilarity
        >>> metric = VectorCosineSimilarity()
        >>> metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([[[3.0, 0.0]], [[0.0, 2.0]]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better: bool = True
    plot_lower_bound: float = -1.0
    plot_upper_bound: float = 1.0
    _measure = "The vector cosine similarity"

    def __init__(
        self,
        *,
        dim: int | None = None,
        both_zero: BothZero = "one",
        reduction: Reduction = "mean",
        nan_strategy: NanStrategy = "warn",
        **kwargs: Any,
    ) -> None:
        check_vector_dim(dim)
        check_choice("both_zero", both_zero, BOTH_ZERO)
        variants = ["" if dim is None else f"dim{-dim}", "" if both_zero == "one" else "without_zeros"]
        super().__init__(
            reduction=reduction, nan_strategy=nan_strategy, variant="_".join(filter(None, variants)), **kwargs
        )
        self.dim = dim
        self.both_zero = both_zero

    def update(self, logits: Tensor, orbit_logits: Tensor, valid: Tensor | None = None) -> None:
        """Adds a batch."""
        check_orbit(logits, orbit_logits)
        check_outputs(logits)
        check_vectors(logits, self.dim)
        check_valid(valid, orbit_logits)
        values = vector_cosine_values(logits, orbit_logits, self.dim, valid, self.both_zero)
        self._add(values, finite_samples(logits, orbit_logits))
