"""DI: how far the predictive distribution moves over the orbit."""

from __future__ import annotations

from torch import Tensor

from lightning_invariance._checks import check_choice
from lightning_invariance.functional._orbit_values import (
    REDUCTIONS,
    Activation,
    OrbitValues,
    Reduction,
    check_activation,
    check_orbit,
    check_valid,
    check_values_finite,
    class_scores,
    log_probabilities,
    mean_over_elements,
    mean_over_places,
    reduce_values,
)


def distribution_invariance_values(
    logits: Tensor, orbit_logits: Tensor, activation: Activation, valid: Tensor | None = None
) -> OrbitValues:
    """Equation 1 for each pair (x, g), from log-probabilities; rounding below 0 is clamped."""
    scores = class_scores(logits, orbit_logits, valid)
    log_u = log_probabilities(scores.logits, activation)
    log_q = log_probabilities(scores.orbit_logits, activation)
    # Eq. 1: KL(u_x ‖ q_gx) = Σ_c u_c (log u_c − log q_c)
    divergences = (log_u.exp() * (log_u - log_q)).sum(dim=-1).clamp_min(0.0)
    return mean_over_elements(mean_over_places(divergences, scores.valid), scores.valid)


def distribution_invariance_error(
    logits: Tensor,
    orbit_logits: Tensor,
    *,
    activation: Activation = "softmax",
    valid: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Predictive distribution invariance error, in nats.

    .. math::
        DI(x, g) = KL\big(\mathrm{softmax} f(x) \,\|\, \mathrm{softmax} f(gx)\big)

    Equation 1 of "On genuine invariance learning without weight-tying" (Moskalev et al., 2023): the untransformed input
    is the first argument. In :math:`[0, \infty)`, lower is more invariant. Shrinking the logits fakes it; see
    `orbit_share` for a measure that they cannot.

    Args:
        logits: :math:`f(x)`, shape ``(B, C)``; or ``(B, C, H, W)``, of whose places the mean is taken.
        orbit_logits: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, C)``.
        activation: ``"softmax"``, or ``"sigmoid"`` for multi-label logits, whose divergences are added up.
        valid: which places both poses see, bool, broadcastable to `orbit_logits`; see `OrbitOutputs`.
        reduction: ``"mean"`` over samples and elements, ``"element"`` for the mean over samples of each element
            ``(|G| - 1,)``, ``"none"`` for one value a sample ``(B,)``.

    Returns:
        The error, in float32 or better.

    Raises:
        ValueError: if shapes do not match, an input is not finite, or an option is unknown.

    Example:
        >>> import torch
        >>> from lightning_invariance.functional import distribution_invariance_error
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> distribution_invariance_error(logits, torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]]]), reduction="element")
        tensor([0.3278, 0.0000])
        >>> distribution_invariance_error(logits, logits[None] + 100.0)  # softmax ignores an added number
        tensor(0.)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_orbit(logits, orbit_logits)
    check_activation(logits, activation)
    check_valid(valid, orbit_logits)
    check_values_finite(logits, orbit_logits)
    values = distribution_invariance_values(logits, orbit_logits, activation, valid)
    return reduce_values(values, reduction, "The distribution invariance error")
