"""How much of the logits' variance lies within orbits: a measure that neither scale nor shift can fake."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_invariance._checks import check_choice
from lightning_invariance._messages import warn
from lightning_invariance.functional._orbit_values import (
    REDUCTIONS,
    Reduction,
    at_least_float32,
    check_orbit,
    check_outputs,
    check_values_finite,
    is_single,
    rounding_variance,
    spread,
)

#: Between-orbit variance under this part of the logits' mean square is rounding: the network tells no two inputs apart.
DEGENERATE = 1e-10


class OrbitMoments(NamedTuple):
    """What the share of a batch rests on, float64.

    Attributes:
        within: each sample's variance within its orbit, shape ``(B,)``.
        deviations: each element's squared distance from the orbit's mean, shape ``(|G| - 1, B)``.
        means: each orbit's mean of z, shape ``(B, C)``.
        squares: each orbit's mean square of z, shape ``(B,)``.
    """

    within: Tensor
    deviations: Tensor
    means: Tensor
    squares: Tensor


def orbit_moments(logits: Tensor, orbit_logits: Tensor) -> OrbitMoments:
    """Moments of z: the class-centred logits, since softmax ignores a number added to all, or a single output."""
    z = torch.cat([at_least_float32(logits)[None], at_least_float32(orbit_logits)]).double()
    z = z.reshape(*z.shape[:2], 1) if is_single(logits) else z - z.mean(dim=-1, keepdim=True)
    means = z.mean(dim=0)
    deviations = (z - means).square().sum(dim=-1)
    return OrbitMoments(deviations.mean(dim=0), deviations[1:], means, z.square().sum(dim=-1).mean(dim=0))


def total_variance(within: Tensor, mean_norm: Tensor, mean: Tensor, square: Tensor) -> Tensor:
    """Within- plus between-orbit variance from means over samples; NaN where the latter is degenerate.

    Args:
        within: mean variance within orbits, shape ``(...)``.
        mean_norm: mean squared norm of the orbits' means, shape ``(...)``.
        mean: mean of the orbits' means, shape ``(..., C)``.
        square: mean square of all logits, shape ``(...)``.
    """
    between = mean_norm - mean.square().sum(dim=-1)
    # Written so that NaN (no sample at all) is degenerate too.
    sound = between > DEGENERATE * square
    return torch.where(sound, within + between, torch.nan)


def single_total_variance(within: Tensor, between: Tensor, rounding: Tensor) -> Tensor:
    """Within- plus between-orbit variance of a single output; NaN where the latter is rounding.

    A single output may lie far from 0, with no mean over classes to take that out: the variance comes from deviations,
    and is held against the output's own precision.
    """
    return torch.where(between > rounding, within + between, torch.nan)


def check_scores(logits: Tensor) -> None:
    """Raises unless `logits` has classes, ``(B, C)``, or one output a sample, ``(B,)`` or ``(B, 1)``."""
    check_outputs(logits)
    if logits.ndim > 2:
        raise ValueError(
            f"Expected `logits` to have the shape (B, C), or (B,) for one output a sample, but got "
            f"{tuple(logits.shape)}."
        )


def warn_degenerate() -> None:
    """Warns that the share is undefined."""
    warn(
        "The orbit share is undefined: the variance between orbits is 0 up to rounding (a constant output, "
        "fewer than two samples, or orbits whose means are alike), so NaN is returned."
    )


def orbit_share(logits: Tensor, orbit_logits: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Share of the logits' variance that lies within orbits.

    .. math::
        S = \frac{W}{W + V}, \qquad
        W = \mathbb{E}_x \tfrac{1}{|G|} \sum_g \| z_{gx} - \bar z_x \|^2, \qquad
        V = \mathbb{E}_x \| \bar z_x - \bar z \|^2

    with :math:`z` the logits less their mean over classes, or the output itself where there is one a sample (a
    regression), and :math:`\bar z_x` the mean over the orbit of :math:`x`: the correlation ratio of a one-way analysis
    of variance with the orbits as groups. In [0, 1], lower is more invariant: 0 where the output depends on the orbit
    alone, near 1 where it depends on the pose alone. Scaling the logits, or adding a number to them, leaves it as it
    is. All elements are members of the orbit and none is compared with itself, so the identity takes part.

    Args:
        logits: :math:`f(x)`, shape ``(B, C)``, or ``(B,)`` for one output a sample.
        orbit_logits: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, C)`` or ``(|G| - 1, B)``.
        reduction: ``"mean"`` for the share; ``"element"`` for :math:`\mathbb{E}_x \|z_{gx} - \bar z_x\|^2 / (W + V)`
            of each element but the identity ``(|G| - 1,)``; ``"none"`` for one value a sample ``(B,)``, with that
            sample's own variance within its orbit over the batch's :math:`W + V`.

    Returns:
        The share, float32. NaN, with a warning, where :math:`V` is 0 up to rounding: a constant network is no
        invariant one.

    Raises:
        ValueError: if shapes do not match, an input is not finite, or an option is unknown.

    Example:
        >>> import torch
        >>> from lightning_invariance.functional import orbit_share
        >>> logits = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> orbit_share(logits, logits[None])  # depends on the orbit alone
        tensor(0.)
        >>> orbit_share(logits, 0.5 * logits[None])
        tensor(0.1000)
        >>> orbit_share(torch.tensor([3.0, 1.0]), torch.tensor([[1.0, -1.0]]))  # a regression
        tensor(0.5000)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_orbit(logits, orbit_logits)
    check_scores(logits)
    check_values_finite(logits, orbit_logits)
    moments = orbit_moments(logits, orbit_logits)
    if is_single(logits):
        rounding = rounding_variance(moments.squares.mean(), logits.dtype)
        total = single_total_variance(moments.within.mean(), spread(moments.means), rounding)
    else:
        total = total_variance(
            moments.within.mean(),
            moments.means.square().sum(dim=1).mean(),
            moments.means.mean(dim=0),
            moments.squares.mean(),
        )
    if bool(total.isnan()):
        warn_degenerate()
    shares = {
        "mean": moments.within.mean(),
        "element": moments.deviations.mean(dim=1),
        "none": moments.within,
    }
    return (shares[reduction] / total).float()
