"""How far the masks over the orbit overlap with the base mask."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_invariance._checks import check_choice
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
    reduce_values,
)


def orbit_mean_iou_values(logits: Tensor, orbit_logits: Tensor, valid: Tensor | None = None) -> OrbitValues:
    """The mean over classes of the intersection over the union of both masks, for each pair (x, g)."""
    scores = class_scores(logits, orbit_logits, valid)
    base, moved = scores.logits.argmax(dim=-1), scores.orbit_logits.argmax(dim=-1)
    seen = torch.ones_like(moved, dtype=torch.bool) if scores.valid is None else scores.valid
    total = torch.zeros(moved.shape[:2], device=logits.device)
    present = torch.zeros_like(total)
    for label in range(logits.shape[1]):  # one at a time: masks of all classes together would be large
        one, other = (base == label) & seen, (moved == label) & seen
        union = (one | other).sum(dim=-1)
        total += (one & other).sum(dim=-1) / union.clamp_min(1)
        present += union > 0
    return mean_over_elements(total / present, scores.valid)  # 0 / 0 is NaN: no place is valid


def check_masks(logits: Tensor) -> None:
    """Raises unless each place has scores of at least two classes."""
    check_classes(logits, 2)
    if logits.ndim < 3:
        raise ValueError(
            f"Expected `logits` to have the shape (B, C, H, W), a score for each class and place, but got "
            f"{tuple(logits.shape)}."
        )


def orbit_mean_iou(
    logits: Tensor, orbit_logits: Tensor, *, valid: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    r"""Mean intersection over union of the predicted mask with those over the orbit, brought back.

    .. math::
        I(x, g) = \frac{1}{|K|} \sum_{k \in K} \frac{|M_k(x) \cap g^{-1} M_k(gx)|}{|M_k(x) \cup g^{-1} M_k(gx)|}

    with :math:`M_k` the places where class k has the largest score, and K the classes that are in one of both masks. In
    [0, 1], higher is more equivariant; right or wrong plays no part.

    Args:
        logits: :math:`f(x)`, shape ``(B, C, H, W)``, or other dimensions behind the classes.
        orbit_logits: :math:`\rho(g)^{-1} f(gx)` for every element but the identity, shape ``(|G| - 1, B, C, H, W)``, as
            `evaluate_orbit` gives it.
        valid: which places both poses see, bool, broadcastable to `orbit_logits`; see `OrbitOutputs`.
        reduction: ``"mean"`` over samples and elements, ``"element"`` for the mean over samples of each element
            ``(|G| - 1,)``, ``"none"`` for one value a sample ``(B,)``.

    Returns:
        The mean IoU, float32.

    Raises:
        ValueError: if shapes do not match, an input is not finite, or an option is unknown.

    Example:
        >>> import torch
        >>> from lightning_invariance.functional import orbit_mean_iou
        >>> mask = torch.tensor([[[0, 0], [1, 1]]])
        >>> other = torch.tensor([[[0, 1], [1, 1]]])
        >>> scores = [torch.nn.functional.one_hot(each, 2).movedim(-1, 1).float() for each in (mask, other)]
        >>> orbit_mean_iou(scores[0], scores[1][None])  # (1/2 + 2/3) / 2
        tensor(0.5833)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_orbit(logits, orbit_logits)
    check_masks(logits)
    check_valid(valid, orbit_logits)
    check_values_finite(logits, orbit_logits)
    return reduce_values(orbit_mean_iou_values(logits, orbit_logits, valid), reduction, "The orbit's mean IoU")
