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
    check_valid,
    check_values_finite,
    class_scores,
    log_probabilities,
    mean_over_places,
    reduce_values,
)


def jensen_shannon_values(
    logits: Tensor, orbit_logits: Tensor, activation: Activation, valid: Tensor | None = None
) -> OrbitValues:
    """The divergence of each orbit, and the share of it that each element brings."""
    scores = class_scores(logits, orbit_logits, valid)
    log_p = log_probabilities(torch.cat([scores.logits[None], scores.orbit_logits]), activation)
    if scores.valid is None:
        log_mean = log_p.logsumexp(dim=0) - log(len(log_p))
        # H(mean p) − mean H(p) is the mean over the orbit of KL(p_g ‖ mean p).
        divergences = mean_over_places((log_p.exp() * (log_p - log_mean)).sum(dim=-1).clamp_min(0.0), None)
        return OrbitValues(divergences.mean(dim=0), divergences[1:])
    # At each place the orbit is what sees it; a place that x alone sees says nothing.
    seen = torch.cat([torch.ones_like(scores.valid[:1]), scores.valid])
    members = seen.sum(dim=0)
    log_mean = log_p.masked_fill(~seen[..., None], -torch.inf).logsumexp(dim=0) - members.log()[..., None]
    divergences = (log_p.exp() * (log_p - log_mean)).sum(dim=-1).clamp_min(0.0)
    by_place = torch.where(seen, divergences, 0.0).sum(dim=0) / members
    return OrbitValues(mean_over_places(by_place, members > 1), mean_over_places(divergences[1:], scores.valid))


def jensen_shannon_invariance_error(
    logits: Tensor,
    orbit_logits: Tensor,
    *,
    activation: Activation = "softmax",
    valid: Tensor | None = None,
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
        logits: :math:`f(x)`, shape ``(B, C)``; or ``(B, C, H, W)``, of whose places the mean is taken.
        orbit_logits: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, C)``.
        activation: ``"softmax"``, or ``"sigmoid"`` for multi-label logits, whose divergences are added up.
        valid: which places both poses see, bool, broadcastable to `orbit_logits`; see `OrbitOutputs`.
        reduction: ``"mean"`` over samples; ``"element"`` for :math:`KL(p_{gx} \| \tfrac{1}{|G|} \sum_h p_{hx})` of
            each element but the identity, averaged over samples, ``(|G| - 1,)``; ``"none"`` for one value a sample
            ``(B,)``.

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
    check_valid(valid, orbit_logits)
    check_values_finite(logits, orbit_logits)
    values = jensen_shannon_values(logits, orbit_logits, activation, valid)
    return reduce_values(values, reduction, "The Jensen-Shannon invariance error")
