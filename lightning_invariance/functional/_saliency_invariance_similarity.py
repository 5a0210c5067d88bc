"""SI: how far a network looks at the same things over the orbit."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_invariance._checks import check_choice
from lightning_invariance.functional._orbit_values import (
    REDUCTIONS,
    OrbitValues,
    Reduction,
    at_least_float32,
    check_orbit,
    check_outputs,
    check_values_finite,
    flat_samples,
    mean_over_elements,
    reduce_values,
)


def saliency_invariance_values(saliency: Tensor, orbit_saliency: Tensor, include_identity: bool = False) -> OrbitValues:
    """Equation 3 for each pair (x, g); NaN where a map is 0 everywhere and has no direction."""
    base = _unit(flat_samples(at_least_float32(saliency)))
    moved = _unit(flat_samples(at_least_float32(orbit_saliency), before=2))
    # Eq. 3: cos(m(x), g⁻¹ m(gx))
    values = mean_over_elements((base * moved).sum(dim=-1).clamp(-1.0, 1.0))
    if not include_identity:
        return values
    others = len(values.per_element)
    return OrbitValues((others * values.per_sample + 1) / (others + 1), values.per_element)


def check_identity(include_identity: bool, reduction: Reduction) -> None:
    """Raises unless the identity can take part in this reduction."""
    check_choice("include_identity", include_identity, (False, True))
    if include_identity and reduction == "element":
        raise ValueError("Expected `reduction` to be 'mean' or 'none' with include_identity=True but got 'element'.")


def _unit(maps: Tensor) -> Tensor:
    # Divided by the largest entry first: the squares of saturated networks' tiny gradients underflow. 0 / 0 is NaN.
    scaled = maps / maps.abs().amax(dim=-1, keepdim=True)
    unit: Tensor = scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return unit


def saliency_invariance_similarity(
    saliency: Tensor, orbit_saliency: Tensor, *, include_identity: bool = False, reduction: Reduction = "mean"
) -> Tensor:
    r"""Saliency invariance similarity.

    .. math::
        SI(x, g) = \cos\big(m(x),\; g^{-1} m(gx)\big)

    Equation 3 of "On genuine invariance learning without weight-tying" (Moskalev et al., 2023), the maps brought
    back to the common pose. In :math:`[-1, 1]`, higher is more invariant. The identity, which would add a 1 to the
    mean, is left out.

    Args:
        saliency: :math:`m(x)`, shape ``(B, ...)``.
        orbit_saliency: :math:`g^{-1} m(gx)` for every element but the identity, shape ``(|G| - 1, B, ...)``, as
            `evaluate_orbit` gives it.
        include_identity: whether the identity's similarity, which is 1, counts in the mean over the group, as in
            RobustXAI (Crabbé and van der Schaar, 2023): to compare with its numbers, which this makes larger.
        reduction: ``"mean"`` over samples and elements, ``"element"`` for the mean over samples of each element
            ``(|G| - 1,)``, ``"none"`` for one value a sample ``(B,)``.

    Returns:
        The similarity, in float32 or better. NaN, with a warning, where a map is 0 everywhere.

    Raises:
        ValueError: if shapes do not match, an input is not finite, or an option is unknown.

    Example:
        >>> import torch
        >>> from lightning_invariance.functional import saliency_invariance_similarity
        >>> saliency = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
        >>> orbit_saliency = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]], [[[0.0, 0.0], [2.0, 0.0]]]])
        >>> saliency_invariance_similarity(saliency, orbit_saliency, reduction="element")
        tensor([0.7071, 0.0000])
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_identity(include_identity, reduction)
    check_orbit(saliency, orbit_saliency, "saliency")
    check_outputs(saliency, "saliency")
    check_values_finite(saliency, orbit_saliency, "saliency")
    values = saliency_invariance_values(saliency, orbit_saliency, include_identity)
    return reduce_values(values, reduction, "The saliency invariance similarity")
