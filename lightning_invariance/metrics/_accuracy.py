"""The accuracy on untransformed inputs, accumulated."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lightning_invariance._checks import check_choice
from lightning_invariance.functional._orbit_accuracy import check_labels_of, orbit_accuracy_values
from lightning_invariance.functional._orbit_values import check_classes, check_outputs, finite_samples
from lightning_invariance.metrics._base import NanStrategy, SampleMeanMetric


class BaseAccuracy(SampleMeanMetric):
    r"""Accuracy on the untransformed inputs, with a standard error: what accuracies over the orbit are held against.

    .. math::
        A = \mathbb{E}_x \, \mathbb{1}\big[\arg\max f(x) = y\big]

    In [0, 1], higher is better; see `OrbitAccuracy`.

    As input to ``forward`` and ``update`` the metric takes

    - ``logits``: :math:`f(x)`, shape ``(B, C)``, or ``(B, C, H, W)``, of whose places the accuracy is taken.
    - ``target``: the right class of each sample, integers, shape ``(B,)``; one that is no class counts as wrong. Or of
      each place, ``(B, H, W)``, where one that is no class is left out.

    Args:
        reduction: ``"mean"`` or ``"none"`` (one a sample).
        nan_strategy: what `compute` does about samples with NaN or infinite logits: ``"error"``, ``"warn"`` (and leave
            them out) or ``"ignore"`` (leave them out).
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an option is unknown, or (in ``update``) shapes do not match.

    Example:
        >>> import torch
        >>> from lightning_invariance.metrics import BaseAccuracy
        >>> metric = BaseAccuracy()
        >>> metric.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better: bool = True
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    _measure = "The accuracy"

    def __init__(
        self, *, reduction: Literal["mean", "none"] = "mean", nan_strategy: NanStrategy = "warn", **kwargs: Any
    ) -> None:
        check_choice("reduction", reduction, ("mean", "none"))
        super().__init__(reduction=reduction, nan_strategy=nan_strategy, **kwargs)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Adds a batch."""
        check_outputs(logits)
        check_classes(logits, 2)
        check_labels_of(target, logits)
        # On an orbit of nothing but x itself.
        values = orbit_accuracy_values(logits, logits[None], target, worst_case=False)
        self._add(values, finite_samples(logits, logits[None]))
