"""Accuracy over the orbit: on average, and where it is worst."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_invariance._checks import check_choice, check_classes_named, check_same_device, check_target
from lightning_invariance._containers import describe_value
from lightning_invariance.functional._orbit_values import (
    REDUCTIONS,
    OrbitValues,
    Reduction,
    check_classes,
    check_orbit,
    check_valid,
    check_values_finite,
    class_scores,
    mean_over_elements,
    mean_over_places,
    reduce_values,
)


def orbit_accuracy_values(
    logits: Tensor, orbit_logits: Tensor, target: Tensor, worst_case: bool, valid: Tensor | None = None
) -> OrbitValues:
    """1 where the prediction is right, 0 where it is not; of places, those that a class is named for."""
    scores = class_scores(logits, orbit_logits, valid)
    seen = scores.valid
    if logits.ndim > 2:
        target = target.flatten(1)
        named = (target >= 0) & (target < logits.shape[1])
        seen = named.expand(scores.orbit_logits.shape[:-1]) if seen is None else seen & named
    elif scores.logits.ndim > 2:
        target = target[:, None]
    right = scores.orbit_logits.argmax(dim=-1) == target
    if not worst_case:
        return mean_over_elements(mean_over_places(right.float(), seen), seen)
    everywhere = (right if seen is None else right | ~seen).all(dim=0) & (scores.logits.argmax(dim=-1) == target)
    kept = None if seen is None else (named if logits.ndim > 2 else torch.ones_like(everywhere))
    pairs = mean_over_places(right.float(), seen)
    if kept is None:
        return OrbitValues(everywhere.float(), pairs)
    return OrbitValues(mean_over_places(everywhere.float(), kept), pairs)


def check_accuracy_inputs(
    logits: Tensor, orbit_logits: Tensor, target: Tensor, worst_case: bool, reduction: Reduction
) -> None:
    """Raises where shapes, types or options do not match."""
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("worst_case", worst_case, (False, True))
    if worst_case and reduction == "element":
        raise ValueError("Expected `reduction` to be 'mean' or 'none' with worst_case=True but got 'element'.")
    check_orbit(logits, orbit_logits)
    check_classes(logits, 2)
    check_labels_of(target, logits)
    check_same_device("target", target, logits.device, "`logits`")


def check_labels_of(target: Tensor, logits: Tensor) -> None:
    """Raises unless there is one class index a sample ``(B,)``, or one a place ``(B, H, W)``."""
    if logits.ndim == 2:
        check_target(target, len(logits), "class indices")
        return
    expected = (len(logits), *logits.shape[2:])
    whole = isinstance(target, Tensor) and not target.is_floating_point() and not target.is_complex()
    if not whole or target.shape != expected:
        raise ValueError(
            f"Expected `target` to hold class indices of the shape {expected}, one a place, but got "
            f"{describe_value(target)}."
        )


def orbit_accuracy(
    logits: Tensor,
    orbit_logits: Tensor,
    target: Tensor,
    *,
    worst_case: bool = False,
    valid: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Accuracy on the transformed inputs, or on whole orbits.

    .. math::
        A(x, g) = \mathbb{1}\big[\arg\max f(gx) = y\big], \qquad
        A_{\text{worst}}(x) = \min_{g \in G} A(x, g)

    In [0, 1], higher is better. The mean leaves the identity out, so that it can be held against the ordinary
    accuracy; the worst case takes it in: it is the share of orbits that are classified correctly as a whole.

    Args:
        logits: :math:`f(x)`, shape ``(B, C)``; or ``(B, C, H, W)``, of whose places the accuracy is taken.
        orbit_logits: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, C)``.
        target: the right class of each sample, integers, shape ``(B,)``; or of each place, ``(B, H, W)``, where a
            number that names no class is to be ignored.
        worst_case: whether a sample, or a place, counts only if it is right over its whole orbit.
        valid: which places both poses see, bool, broadcastable to `orbit_logits`; see `OrbitOutputs`.
        reduction: ``"mean"`` over samples and elements, ``"element"`` for the mean over samples of each element
            ``(|G| - 1,)``, ``"none"`` for one value a sample ``(B,)``.

    Returns:
        The accuracy, float32.

    Raises:
        ValueError: if shapes do not match, a target is no class, an input is not finite, or an option is unknown.

    Example:
        >>> import torch
        >>> from lightning_invariance.functional import orbit_accuracy
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> orbit_logits = torch.tensor([[[1.0, 0.0], [3.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> target = torch.tensor([0, 1])
        >>> orbit_accuracy(logits, orbit_logits, target), orbit_accuracy(logits, orbit_logits, target, worst_case=True)
        (tensor(0.7500), tensor(0.5000))
    """
    check_accuracy_inputs(logits, orbit_logits, target, worst_case, reduction)
    check_valid(valid, orbit_logits)
    check_values_finite(logits, orbit_logits)
    if logits.ndim == 2:
        check_classes_named(target, logits.shape[1])
    values = orbit_accuracy_values(logits, orbit_logits, target, worst_case, valid)
    return reduce_values(values, reduction, "The orbit accuracy")
