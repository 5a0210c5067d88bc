"""A bounded alternative to DI: the Jensen-Shannon divergence of the predictions on one orbit."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from lightning_invariance._checks import check_choice
from lightning_invariance.functional._orbit_values import (
    REDUCTIONS,
    Activation,
    OrbitValues,
    Reduction,
    check_activation,
    check_orbit,
    check_values_finite,
    log_probabilities,
    reduce_values,
)


def jensen_shannon_values(logits: Tensor, orbit_logits: Tensor, activation: Activation) -> OrbitValues:
    """The divergence of each orbit, and the share of it that each element brings."""
    log_p = log_probabilities(torch.cat([logits[None], orbit_logits]), activation)
    log_mean = log_p.logsumexp(dim=0) - log(len(log_p))
    # H(mean p) − mean H(p) is the mean over the orbit of KL(p_g ‖ mean p).
    divergences = (log_p.exp() * (log_p - log_mean)).sum(dim=-1).clamp_min(0.0)
    return OrbitValues(divergences.mean(dim=0), divergences[1:])


def jensen_shannon_invariance_error(
    logits: Tensor,
    orbit_logits: Tensor,
    *,
    activation: Activation = "softmax",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Jensen-Shannon divergence of the predictive distributions on an orbit, in nats.

    .. math::
        JS(x) = H\Big(\tfrac{1}{|G|} \sum_g p_{gx}\Big) - \tfrac{1}{|G|} \sum_g H(p_{gx}),
        \qquad p_{gx} = \mathrm{softmax} f(gx)

    (Lin, 1991). In :math:`[0, \log |G|]` for softmax, where the Kullback-Leibler divergence of saturated logits runs
    into the thousands; lower is more invariant. All elements are members of the orbit here and none is compared with
    itself, so the identity takes part.

    Args:
        logits: :math:`f(x)`, shape ``(B, C)``.
        orbit_logits: :math:`f(gx)` for every element but the identity, shape ``(G, B, C)``, so :math:`|G|` is ``G +
            1``.
        activation: ``"softmax"``, or ``"sigmoid"`` for multi-label logits, whose divergences are added up.
        reduction: ``"mean"`` over samples; ``"element"`` for :math:`KL(p_{gx} \| \tfrac{1}{|G|} \sum_h p_{hx})` of
            each element but the identity, averaged over samples, ``(G,)``; ``"none"`` for one value a sample ``(B,)``.

    Returns:
        The error, in float32 or better.

    Raises:
        ValueError: if shapes do not match, an input is not finite, or an option is unknown.

    Example:
        Two confident predictions that disagree lie at the upper bound, log 2:

        >>> import torch
        >>> from lightning_invariance.functional import jensen_shannon_invariance_error
        >>> jensen_shannon_invariance_error(torch.tensor([[1e4, 0.0]]), torch.tensor([[[0.0, 1e4]]]))
        tensor(0.6931)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_orbit(logits, orbit_logits)
    check_activation(logits, activation)
    check_values_finite(logits, orbit_logits)
    values = jensen_shannon_values(logits, orbit_logits, activation)
    return reduce_values(values, reduction, "The Jensen-Shannon invariance error")
