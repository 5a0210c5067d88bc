"""How often the predicted class survives the transformation."""

from __future__ import annotations

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
    mean_over_places,
    reduce_values,
)


def prediction_consistency_values(logits: Tensor, orbit_logits: Tensor, valid: Tensor | None = None) -> OrbitValues:
    """1 where the predicted class is the same, 0 where it is not, for each pair (x, g)."""
    scores = class_scores(logits, orbit_logits, valid)
    same = (scores.logits.argmax(dim=-1) == scores.orbit_logits.argmax(dim=-1)).float()
    return mean_over_elements(mean_over_places(same, scores.valid), scores.valid)


def prediction_consistency(
    logits: Tensor, orbit_logits: Tensor, *, valid: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    r"""Share of pairs whose predicted class is that of the untransformed input.

    .. math::
        C(x, g) = \mathbb{1}\big[\arg\max f(gx) = \arg\max f(x)\big]

    In [0, 1], higher is more invariant; right or wrong plays no part (see `orbit_accuracy`).

    Args:
        logits: :math:`f(x)`, shape ``(B, C)``; or ``(B, C, H, W)``, of whose places the share is taken.
        orbit_logits: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, C)``.
        valid: which places both poses see, bool, broadcastable to `orbit_logits`; see `OrbitOutputs`.
        reduction: ``"mean"`` over samples and elements, ``"element"`` for the mean over samples of each element
            ``(|G| - 1,)``, ``"none"`` for one value a sample ``(B,)``.

    Returns:
        The share, float32.

    Raises:
        ValueError: if shapes do not match, an input is not finite, or an option is unknown.

    Example:
        >>> import torch
        >>> from lightning_invariance.functional import prediction_consistency
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> prediction_consistency(logits, torch.tensor([[[1.0, 0.0], [3.0, 1.0]]]))
        tensor(0.5000)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_orbit(logits, orbit_logits)
    check_classes(logits, 2)
    check_valid(valid, orbit_logits)
    check_values_finite(logits, orbit_logits)
    values = prediction_consistency_values(logits, orbit_logits, valid)
    return reduce_values(values, reduction, "The prediction consistency")
