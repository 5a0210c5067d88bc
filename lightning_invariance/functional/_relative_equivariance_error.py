"""How far an output moves over the orbit, as a part of its own size."""

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
    check_valid,
    check_values_finite,
    flat_samples,
    mean_over_elements,
    reduce_values,
    where_valid,
)


def relative_equivariance_values(logits: Tensor, orbit_logits: Tensor, valid: Tensor | None = None) -> OrbitValues:
    """The relative error of each pair (x, g); NaN where the output has the norm 0."""
    base = flat_samples(at_least_float32(logits))
    moved = flat_samples(at_least_float32(orbit_logits), before=2)
    seen = where_valid(valid, orbit_logits)
    if seen is not None:
        base, moved = torch.where(seen, base, 0.0), torch.where(seen, moved, 0.0)
    norm = torch.linalg.vector_norm(base, dim=-1)
    distance = torch.linalg.vector_norm(moved - base, dim=-1)
    # ‖ρ(g)⁻¹ f(gx) − f(x)‖ / ‖f(x)‖
    return mean_over_elements((distance / norm).masked_fill(norm == 0, torch.nan), valid)


def relative_equivariance_error(
    logits: Tensor, orbit_logits: Tensor, *, valid: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    r"""Relative equivariance error of any output.

    .. math::
        E(x, g) = \frac{\| \rho(g)^{-1} f(gx) - f(x) \|}{\| f(x) \|}

    with the norm over all that the network gives a sample. In :math:`[0, \infty)`, lower is more equivariant; free of
    the output's unit. Not squared, unlike ``logit_invariance_error(normalize="logits")``: 0.01 is an error of one per
    cent.

    Args:
        logits: :math:`f(x)`, shape ``(B, ...)``: any output.
        orbit_logits: :math:`\rho(g)^{-1} f(gx)` for every element but the identity, shape ``(|G| - 1, B, ...)``, as
            `evaluate_orbit` gives it.
        valid: which places both poses see, bool, broadcastable to `orbit_logits`; see `OrbitOutputs`. Both norms are of
            what is valid.
        reduction: ``"mean"`` over samples and elements, ``"element"`` for the mean over samples of each element
            ``(|G| - 1,)``, ``"none"`` for one value a sample ``(B,)``.

    Returns:
        The error, in float32 or better. NaN, with a warning, where the output's norm is 0.

    Raises:
        ValueError: if shapes do not match, an input is not finite, or an option is unknown.

    Example:
        >>> import torch
        >>> from lightning_invariance.functional import relative_equivariance_error
        >>> forces = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]])
        >>> relative_equivariance_error(forces, forces[None] + torch.tensor([0.0, 0.0, 0.5]))
        tensor(0.1414)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_orbit(logits, orbit_logits)
    check_outputs(logits)
    check_valid(valid, orbit_logits)
    check_values_finite(logits, orbit_logits)
    values = relative_equivariance_values(logits, orbit_logits, valid)
    return reduce_values(values, reduction, "The relative equivariance error")
