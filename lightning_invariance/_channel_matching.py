"""The best permutation of channels between two lots of activations."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_invariance._requirements import require

#: Up to so many channels the best permutation is found whatever it is worth.
FEW = 16

#: With more, none is looked for where even each channel's nearest one, taken by several, leaves this part of the
#: variance: a permutation leaves more.
HOPELESS = 0.1

#: Of fewer values a channel than that, their variance says little.
ENOUGH = 8


def best_permutation(base: Tensor, moved: Tensor, likely: Tensor | None = None) -> tuple[Tensor | None, bool]:
    r"""The permutation of channels that brings `moved` nearest to `base`, by least squares.

    .. math::
        \pi = \arg\min_\pi \sum_c \| b_{\pi(c)} - a_c \|^2

    a linear assignment. Where each channel's nearest one is another, that is the optimum; only else scipy is asked.

    Args:
        base: the channels :math:`a_c`, shape ``(C, n)``.
        moved: the channels :math:`b_c`, shape ``(C, n)``.
        likely: a permutation that is taken where nothing is nearer, ``(C,)``; the identity if None. Features that a
            rectifier keeps at 0 in these samples are not told apart by them, but by the layer before.

    Returns:
        int64 indices ``(C,)`` into the channels of `moved`, None for the identity; and whether that is the best one.

    Raises:
        ModuleNotFoundError: if scipy is needed and not installed.
    """
    places = torch.arange(len(base), device=base.device)
    likely = places if likely is None else likely
    base, moved = base.float(), moved.float()
    costs, sizes, others = _costs(base, moved)
    if (
        len(base) > FEW
        and base.shape[1] >= ENOUGH
        and float(costs.min(dim=1).values.sum()) > HOPELESS * _variance(base)
    ):
        return None, False
    chosen, sure = _nearest(costs, sizes, others, likely, 1e-5)
    if not sure:  # channels that are nearly alike are told apart in float64 alone
        costs, sizes, others = _costs(base.double(), moved.double())
        chosen, _ = _nearest(costs, sizes, others, likely, 1e-12)
    if len(chosen.unique()) < len(chosen):
        solve = require("scipy.optimize", "Matching channels").linear_sum_assignment
        chosen = torch.as_tensor(solve(costs.cpu().numpy())[1], device=base.device)
    return (None if torch.equal(chosen, places) else chosen), True


def _variance(values: Tensor) -> float:
    """Of the channels ``(C, n)`` around their means, added up."""
    return float((values - values.mean(dim=1, keepdim=True)).square().sum())


def _costs(base: Tensor, moved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The squared distances of all pairs of channels, and the squared norms of the channels of both."""
    sizes, others = base.square().sum(dim=1), moved.square().sum(dim=1)
    return (sizes[:, None] + others - 2 * base @ moved.T).nan_to_num(0.0, 0.0, 0.0), sizes, others


def _nearest(costs: Tensor, sizes: Tensor, others: Tensor, likely: Tensor, rounding: float) -> tuple[Tensor, bool]:
    """Each channel's nearest one, the likely one where nothing is nearer; and whether rounding left no doubt."""
    least, chosen = costs.min(dim=1)
    near = costs <= least[:, None] + rounding * (sizes[:, None] + others)
    chosen = torch.where(near.gather(1, likely[:, None])[:, 0], likely, chosen)
    # Channels that are 0 throughout are all alike: those of one lot go to those of the other, whichever they are.
    dead, other_dead = sizes == 0, others == 0
    if int(dead.sum()) == int(other_dead.sum()):
        kept = dead & other_dead[likely]
        free = other_dead.clone()
        free[likely[kept]] = False
        chosen[dead & ~kept] = free.nonzero()[:, 0]
    return chosen, bool((near[~dead].sum(dim=1) == 1).all())
