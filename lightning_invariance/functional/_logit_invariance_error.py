"""LI: how far the logits move over the orbit."""

from __future__ import annotations

from typing import Literal

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
    check_valid,
    check_values_finite,
    flat_samples,
    mean_over_elements,
    reduce_values,
    where_valid,
)

Normalization = Literal["logits"]

NORMALIZATIONS: tuple[Normalization | None, ...] = (None, "logits")


def logit_invariance_values(
    logits: Tensor, orbit_logits: Tensor, normalize: Normalization | None, valid: Tensor | None = None
) -> OrbitValues:
    """Equation 2 for each pair (x, g), or the normalised error of section 4.4."""
    base = flat_samples(at_least_float32(logits))
    moved = flat_samples(at_least_float32(orbit_logits), before=2)
    seen = where_valid(valid, orbit_logits)
    squares = (base - moved).square()
    distance = (squares if seen is None else torch.where(seen, squares, 0.0)).sum(dim=-1)
    if normalize is None:
        if seen is not None:
            distance = distance.masked_fill(~seen.any(dim=-1), torch.nan)  # of no place there is no error
        return mean_over_elements(distance / 2, seen)  # eq. 2: ½ ‖f(x) − f(gx)‖²
    # Section 4.4: ‖f(x) − f(gx)‖² / ‖f(x)‖². Without logits to compare with (norm 0) it is undefined.
    norm = (base.square() if seen is None else torch.where(seen, base.square(), 0.0)).sum(dim=-1)
    return mean_over_elements((distance / norm).masked_fill(norm == 0, float("nan")), seen)


def logit_invariance_error(
    logits: Tensor,
    orbit_logits: Tensor,
    *,
    normalize: Normalization | None = None,
    valid: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Logit invariance error, in squared units of the logits.

    .. math::
        LI(x, g) = \tfrac12 \, \| f(x) - f(gx) \|_2^2

    Equation 2 of "On genuine invariance learning without weight-tying" (Moskalev et al., 2023); with
    ``normalize="logits"`` the relative error of its section 4.4, :math:`\|f(x) - f(gx)\|^2 / \|f(x)\|^2`. In
    :math:`[0, \infty)`, lower is more invariant. An error of 0 implies a distribution invariance error of 0, not the
    reverse.

    Args:
        logits: :math:`f(x)`, shape ``(B, ...)``: any output, so regression too.
        orbit_logits: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, ...)``.
        normalize: None, or ``"logits"`` to divide by the squared norm of :math:`f(x)`.
        valid: which places both poses see, bool, broadcastable to `orbit_logits`; see `OrbitOutputs`. Both
            norms are of what is valid.
        reduction: ``"mean"`` over samples and elements, ``"element"`` for the mean over samples of each element
            ``(|G| - 1,)``, ``"none"`` for one value a sample ``(B,)``.

    Returns:
        The error, in float32 or better. NaN, with a warning, where the norm divided by is 0.

    Raises:
        ValueError: if shapes do not match, an input is not finite, or an option is unknown.

    Example:
        >>> import torch
        >>> from lightning_invariance.functional import logit_invariance_error
        >>> logits = torch.tensor([[3.0, 4.0]])
        >>> orbit_logits = torch.tensor([[[3.0, 2.0]], [[3.0, 4.0]]])
        >>> logit_invariance_error(logits, orbit_logits)
        tensor(1.)
        >>> logit_invariance_error(logits, orbit_logits, normalize="logits", reduction="element")
        tensor([0.1600, 0.0000])
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("normalize", normalize, NORMALIZATIONS)
    check_orbit(logits, orbit_logits)
    check_outputs(logits)
    check_valid(valid, orbit_logits)
    check_values_finite(logits, orbit_logits)
    values = logit_invariance_values(logits, orbit_logits, normalize, valid)
    return reduce_values(values, reduction, "The logit invariance error")
