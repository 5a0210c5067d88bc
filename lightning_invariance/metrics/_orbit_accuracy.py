"""Accuracy over the orbit, accumulated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_invariance._checks import check_choice
from lightning_invariance.functional._orbit_accuracy import check_accuracy_inputs, orbit_accuracy_values
from lightning_invariance.functional._orbit_values import (
    Reduction,
    check_valid,
    finite_samples,
)
from lightning_invariance.metrics._base import NanStrategy, SampleMeanMetric


class OrbitAccuracy(SampleMeanMetric):
    r"""Accuracy on the transformed inputs, or on whole orbits.

    .. math::
        A = \mathbb{E}_x \, \tfrac{1}{|G| - 1} \sum_{g \ne e} \mathbb{1}\big[\arg\max f(gx) = y\big], \qquad
        A_{\text{worst}} = \mathbb{E}_x \, \min_{g \in G} \mathbb{1}\big[\arg\max f(gx) = y\big]

    In [0, 1], higher is better; see `lightning_invariance.functional.orbit_accuracy`.

    As input to ``forward`` and ``update`` the metric takes

    - ``logits``: :math:`f(x)`, shape ``(B, C)``.
    - ``orbit_logits``: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, C)``.
    - ``target``: the right class of each sample, integers, shape ``(B,)``; one that is no class counts as wrong.
    - ``valid``: which places both poses see, bool, broadcastable to ``orbit_logits``; see `OrbitOutputs`.
      None for all.

    Args:
        worst_case: whether a sample counts only if it is right over its whole orbit, the identity included.
        reduction: ``"mean"``, ``"element"`` (one value for each element but the identity) or ``"none"`` (one a sample).
        nan_strategy: what `compute` does about samples with NaN or infinite logits: ``"error"``, ``"warn"`` (and leave
            them out) or ``"ignore"`` (leave them out).
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an option is unknown, ``worst_case`` goes with ``reduction="element"``, or (in ``update``)
            shapes do not match.

    Example:
        >>> import torch
        >>> from lightning_invariance import OrbitAccuracy
        >>> metric = OrbitAccuracy(worst_case=True)
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> metric.update(logits, torch.tensor([[[1.0, 0.0], [3.0, 1.0]]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better: bool = True
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    _measure = "The orbit accuracy"

    def __init__(
        self,
        *,
        worst_case: bool = False,
        reduction: Reduction = "mean",
        nan_strategy: NanStrategy = "warn",
        **kwargs: Any,
    ) -> None:
        check_choice("worst_case", worst_case, (False, True))
        if worst_case and reduction == "element":
            raise ValueError("Expected `reduction` to be 'mean' or 'none' with worst_case=True but got 'element'.")
        variant = "worst_case" if worst_case else ""
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, variant=variant, **kwargs)
        self.worst_case = worst_case

    def update(self, logits: Tensor, orbit_logits: Tensor, target: Tensor, valid: Tensor | None = None) -> None:
        """Adds a batch."""
        check_accuracy_inputs(logits, orbit_logits, target, self.worst_case, self.reduction)
        check_valid(valid, orbit_logits)
        values = orbit_accuracy_values(logits, orbit_logits, target, self.worst_case, valid)
        self._add(values, finite_samples(logits, orbit_logits))
