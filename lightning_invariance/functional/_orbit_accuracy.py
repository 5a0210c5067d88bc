"""Accuracy over the orbit: on average, and where it is worst."""

from __future__ import annotations

from torch import Tensor

from lightning_invariance._checks import check_choice, check_classes_named, check_same_device, check_target
from lightning_invariance.functional._orbit_values import (
    REDUCTIONS,
    OrbitValues,
    Reduction,
    check_classes,
    check_orbit,
    check_values_finite,
    mean_over_elements,
    reduce_values,
)


def orbit_accuracy_values(logits: Tensor, orbit_logits: Tensor, target: Tensor, worst_case: bool) -> OrbitValues:
    """1 where the prediction is right, 0 where it is not."""
    right = (orbit_logits.argmax(dim=-1) == target).float()
    if worst_case:
        everywhere = right.amin(dim=0) * (logits.argmax(dim=-1) == target)
        return OrbitValues(everywhere, right)
    return mean_over_elements(right)


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
    check_target(target, len(logits), "class indices")
    check_same_device("target", target, logits.device, "`logits`")


def orbit_accuracy(
    logits: Tensor,
    orbit_logits: Tensor,
    target: Tensor,
    *,
    worst_case: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Accuracy on the transformed inputs, or on whole orbits.

    .. math::
        A(x, g) = \mathbb{1}\big[\arg\max f(gx) = y\big], \qquad
        A_{\text{worst}}(x) = \min_{g \in G} A(x, g)

    In [0, 1], higher is better. The mean leaves the identity out, so that it can be held against the ordinary
    accuracy; the worst case takes it in: it is the share of orbits that are classified correctly as a whole.

    Args:
        logits: :math:`f(x)`, shape ``(B, C)``.
        orbit_logits: :math:`f(gx)` for every element but the identity, shape ``(G, B, C)``.
        target: the right class of each sample, integers, shape ``(B,)``.
        worst_case: whether a sample counts only if it is right over its whole orbit.
        reduction: ``"mean"`` over samples and elements, ``"element"`` for the mean over samples of each element
            ``(G,)``, ``"none"`` for one value a sample ``(B,)``.

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
    check_values_finite(logits, orbit_logits)
    check_classes_named(target, logits.shape[1])
    values = orbit_accuracy_values(logits, orbit_logits, target, worst_case)
    return reduce_values(values, reduction, "The orbit accuracy")
