"""Whether the group moves the logits less than any change of the input of the same size does."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_invariance._checks import check_choice, check_finite
from lightning_invariance._containers import describe_value
from lightning_invariance._messages import warn
from lightning_invariance.functional._orbit_values import (
    REDUCTIONS,
    Reduction,
    at_least_float32,
    check_orbit,
    check_outputs,
    check_valid,
    check_values_finite,
    flat_samples,
    where_valid,
)

#: Where perturbations move the logits by less than this part of their mean square, they move them by rounding alone.
DEGENERATE = 1e-12


class Movements(NamedTuple):
    r"""How far the logits of a batch move, float64.

    Attributes:
        by_group: :math:`\|f(gx) - f(x)\|^2`, shape ``(|G| - 1, B)``.
        by_noise: :math:`\|f(x + \epsilon_g) - f(x)\|^2`, shape ``(|G| - 1, B)``.
        squares: :math:`\|f(x)\|^2`, shape ``(B,)``.
    """

    by_group: Tensor
    by_noise: Tensor
    squares: Tensor


def movements(logits: Tensor, orbit_logits: Tensor, perturbed_logits: Tensor, valid: Tensor | None = None) -> Movements:
    """Squared distances from the logits of the untransformed input."""
    base = flat_samples(at_least_float32(logits)).double()
    moved = flat_samples(at_least_float32(orbit_logits), before=2).double()
    perturbed = flat_samples(at_least_float32(perturbed_logits), before=2).double()
    seen = where_valid(valid, orbit_logits)

    def length(differences: Tensor) -> Tensor:
        squares = differences.square()
        return (squares if seen is None else torch.where(seen, squares, 0.0)).sum(dim=-1)

    return Movements(length(moved - base), length(perturbed - base), base.square().sum(dim=-1))


def ratio(by_group: Tensor, by_noise: Tensor, square: Tensor) -> Tensor:
    """The ratio of two means over samples; NaN where the second is 0 up to the rounding of logits so large."""
    # Written so that NaN (no sample at all) is degenerate too.
    sound = by_noise > DEGENERATE * square
    return torch.where(sound, by_group / by_noise, torch.nan)


def warn_insensitive() -> None:
    """Warns that the selectivity is undefined."""
    warn(
        "The selectivity is undefined: perturbations as large as the group's do not move the logits but by rounding "
        "(a constant output, or elements that leave every input as it is), so NaN is returned."
    )


def check_perturbed(orbit_logits: Tensor, perturbed_logits: Tensor) -> None:
    """Raises unless there is a perturbation for each pair of a sample and an element."""
    if not isinstance(perturbed_logits, Tensor) or not perturbed_logits.is_floating_point():
        got = describe_value(perturbed_logits)
        raise ValueError(f"Expected `perturbed_logits` to be a floating-point tensor but got {got}.")
    if perturbed_logits.shape != orbit_logits.shape or perturbed_logits.device != orbit_logits.device:
        raise ValueError(
            f"Expected `perturbed_logits` to have the shape {tuple(orbit_logits.shape)} of `orbit_logits`, and to be "
            f"on {orbit_logits.device}, but got {tuple(perturbed_logits.shape)} on {perturbed_logits.device}."
        )


def selectivity(
    logits: Tensor,
    orbit_logits: Tensor,
    perturbed_logits: Tensor,
    *,
    valid: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""How far the group moves the logits, against random perturbations of the same size.

    .. math::
        R = \frac{\mathbb{E}_{x, g} \, \| f(gx) - f(x) \|^2}
        {\mathbb{E}_{x, g} \, \| f(x + \epsilon_{x, g}) - f(x) \|^2},
        \qquad \| \epsilon_{x, g} \| = \| gx - x \|

    with :math:`\epsilon_{x, g}` of random direction, the identity left out of both means. In :math:`[0, \infty)`, lower
    is more invariant: far below 1 for invariance to the group in particular, near 1 for a network that the group moves
    as much as anything else does, however small the movement: there invariance errors are small only because the
    network became less sensitive to its input altogether. Scaling the logits, or adding a constant to them, leaves it
    as it is.

    Where :math:`gx = x` both parts are 0 and such a pair does not count. Perturbed inputs may lie off the data: a
    network can be more sensitive there.

    Args:
        logits: :math:`f(x)`, shape ``(B, ...)``: any output.
        orbit_logits: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, ...)``.
        perturbed_logits: :math:`f(x + \epsilon_{x, g})`, shape ``(|G| - 1, B, ...)``, as
            `lightning_invariance.evaluate_perturbations` gives them.
        valid: which places both poses see, bool, broadcastable to `orbit_logits`; see `OrbitOutputs`. Both
            movements are of what is valid.
        reduction: ``"mean"`` for the ratio; ``"element"`` for that of each element but the identity ``(|G| - 1,)``;
            ``"none"`` for one value a sample ``(B,)``, with that sample's own numerator over the batch's denominator.

    Returns:
        The ratio, float32. NaN, with a warning, where perturbations move the logits by no more than rounding.

    Raises:
        ValueError: if shapes do not match, an input is not finite, or an option is unknown.

    Example:
        >>> import torch
        >>> from lightning_invariance.functional import selectivity
        >>> logits, orbit_logits = torch.tensor([[0.0, 0.0]]), torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
        >>> selectivity(logits, orbit_logits, torch.tensor([[[0.0, 2.0]], [[2.0, 0.0]]]))
        tensor(0.1250)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_orbit(logits, orbit_logits)
    check_outputs(logits)
    check_perturbed(orbit_logits, perturbed_logits)
    check_valid(valid, orbit_logits)
    check_values_finite(logits, orbit_logits)
    check_finite("perturbed_logits", perturbed_logits)
    moved = movements(logits, orbit_logits, perturbed_logits, valid)
    elementwise = reduction == "element"
    by_noise = moved.by_noise.mean(dim=1) if elementwise else moved.by_noise.mean(dim=0).mean()
    by_group = {
        "mean": moved.by_group.mean(dim=0).mean(),
        "element": moved.by_group.mean(dim=1),
        "none": moved.by_group.mean(dim=0),
    }[reduction]
    result = ratio(by_group, by_noise, moved.squares.mean())
    if bool(result.isnan().any()) or len(logits) == 0:
        warn_insensitive()
    return result.float()
