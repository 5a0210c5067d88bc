"""How far the outputs move over the orbit, against how far samples lie apart: a measure for regression too."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_invariance._checks import check_choice
from lightning_invariance._messages import warn
from lightning_invariance.functional._orbit_values import (
    REDUCTIONS,
    Reduction,
    check_orbit,
    check_outputs,
    check_values_finite,
    flat_samples,
    rounding_variance,
    spread,
)


class Distances(NamedTuple):
    r"""What the relative error of a batch rests on, float64.

    Attributes:
        errors: :math:`\tfrac12 \|f(gx) - f(x)\|^2`, shape ``(|G| - 1, B)``.
        outputs: :math:`f(x)`, shape ``(B, D)``.
        rounding: the variance that rounding may account for, shape ``(B,)``.
    """

    errors: Tensor
    outputs: Tensor
    rounding: Tensor


def distances(logits: Tensor, orbit_logits: Tensor) -> Distances:
    """Halved squared distances from the outputs of the untransformed input, and those outputs."""
    outputs = flat_samples(logits).double()
    moved = flat_samples(orbit_logits, before=2).double()
    rounding = rounding_variance(outputs.square().sum(dim=1), logits.dtype)
    return Distances((moved - outputs).square().sum(dim=-1) / 2, outputs, rounding)


def sound_variance(variance: Tensor, rounding: Tensor) -> Tensor:
    """The variance to divide by; NaN where it is 0 up to rounding, or of no sample at all."""
    return torch.where(variance > rounding, variance, torch.nan)


def warn_no_variance() -> None:
    """Warns that the relative error is undefined."""
    warn(
        "The relative logit invariance error is undefined: the variance between samples is 0 up to rounding (a "
        "constant output, or fewer than two samples), so NaN is returned."
    )


def relative_logit_invariance_error(logits: Tensor, orbit_logits: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Logit invariance error relative to the variance of the outputs between samples.

    .. math::
        R = \frac{\mathbb{E}_{x, g} \, \tfrac12 \, \| f(x) - f(gx) \|^2}
        {\sum_d \operatorname{Var}_x f_d(x)}

    The numerator is equation 2 of "On genuine invariance learning without weight-tying" (Moskalev et al., 2023), the
    identity left out; the denominator is the population variance of the untransformed outputs. Two independent samples
    have :math:`\mathbb{E} \, \tfrac12 \| f(x) - f(x') \|^2 = \sum_d \operatorname{Var}_x f_d(x)`, so 0 is invariance,
    and at 1 two poses of one sample differ as two samples do. In :math:`[0, \infty)`, lower is more invariant. Scaling
    the outputs, or adding a constant to them, leaves it as it is. For a regression it is the invariance error in units
    of the predictions' own variance.

    Args:
        logits: :math:`f(x)`, shape ``(B, ...)``: any output, so one number a sample ``(B,)`` too.
        orbit_logits: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, ...)``.
        reduction: ``"mean"`` for the ratio; ``"element"`` for that of each element but the identity ``(|G| - 1,)``;
            ``"none"`` for one value a sample ``(B,)``, with that sample's own error over the batch's variance.

    Returns:
        The ratio, in float32 or better. NaN, with a warning, where the variance is 0 up to rounding: a constant network
        is no invariant one.

    Raises:
        ValueError: if shapes do not match, an input is not finite, or an option is unknown.

    Example:
        >>> import torch
        >>> from lightning_invariance.functional import relative_logit_invariance_error
        >>> energies = torch.tensor([1.0, 3.0])  # their variance is 1
        >>> relative_logit_invariance_error(energies, energies[None])
        tensor(0.)
        >>> relative_logit_invariance_error(energies, torch.tensor([[2.0, 3.0], [1.0, 4.0]]))
        tensor(0.2500)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_orbit(logits, orbit_logits)
    check_outputs(logits)
    check_values_finite(logits, orbit_logits)
    errors, outputs, rounding = distances(logits, orbit_logits)
    variance = sound_variance(spread(outputs), rounding.mean())
    if bool(variance.isnan()):
        warn_no_variance()
    by_sample = errors.mean(dim=0)
    numerator = {"mean": by_sample.mean(), "element": errors.mean(dim=1), "none": by_sample}[reduction]
    precision = torch.promote_types(logits.dtype, orbit_logits.dtype)
    return (numerator / variance).to(torch.promote_types(precision, torch.float32))
