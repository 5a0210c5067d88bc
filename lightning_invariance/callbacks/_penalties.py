"""The penalties by name: invariance errors as terms of a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from lightning_invariance.functional._distribution_invariance_error import distribution_invariance_values
from lightning_invariance.functional._jensen_shannon_invariance_error import jensen_shannon_values
from lightning_invariance.functional._logit_invariance_error import logit_invariance_values
from lightning_invariance.functional._orbit_values import at_least_float32, check_activation, flat_samples

PenaltyName = Literal["logit", "normalized_logit", "distribution", "jensen_shannon", "saliency"]

#: From ``logits`` ``(B, ...)`` and ``orbit_logits`` ``(G, B, ...)`` to a scalar; or, for saliency, from maps likewise.
Penalty = Callable[[Tensor, Tensor], Tensor]


def _logit(logits: Tensor, orbit_logits: Tensor) -> Tensor:
    return logit_invariance_values(logits, orbit_logits, None).per_sample.mean()


def _normalized_logit(logits: Tensor, orbit_logits: Tensor) -> Tensor:
    """The mean over the samples whose logits are not all 0: a head may begin at 0, and NaN would end the training."""
    norm = flat_samples(at_least_float32(logits)).square().sum(dim=1)
    distance = 2 * logit_invariance_values(logits, orbit_logits, None).per_sample
    defined = norm > 0
    ratios = distance / torch.where(defined, norm, 1.0)
    return torch.where(defined, ratios, 0.0).sum() / defined.sum().clamp_min(1)


def _distribution(logits: Tensor, orbit_logits: Tensor) -> Tensor:
    check_activation(logits, "softmax")
    return distribution_invariance_values(logits, orbit_logits, "softmax").per_sample.mean()


def _jensen_shannon(logits: Tensor, orbit_logits: Tensor) -> Tensor:
    check_activation(logits, "softmax")
    return jensen_shannon_values(logits, orbit_logits, "softmax").per_sample.mean()


def _saliency(saliency: Tensor, orbit_saliency: Tensor) -> Tensor:
    """1 − cos(m(x), g⁻¹ m(gx)) (eq. 3), the mean over the pairs whose maps are not 0.

    The measure itself is NaN for a map of zeros, and NaN in one sample would be the end of the training.
    """
    base, base_defined = _directions(flat_samples(at_least_float32(saliency)))
    moved, moved_defined = _directions(flat_samples(at_least_float32(orbit_saliency), before=2))
    defined = base_defined & moved_defined
    distances = 1 - (base * moved).sum(dim=-1)
    return torch.where(defined, distances, 0.0).sum() / defined.sum().clamp_min(1)


def _directions(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors along the last dimension, and where there are any; elsewhere their gradients are 0, not NaN."""
    # Divided by the largest entry first: the squares of a saturated network's tiny gradients underflow.
    scale = maps.detach().abs().amax(dim=-1, keepdim=True)
    defined = scale > 0
    scaled = torch.where(defined, maps / torch.where(defined, scale, 1.0), 1.0)
    return scaled / scaled.square().sum(dim=-1, keepdim=True).sqrt(), defined[..., 0]


PENALTIES: Mapping[PenaltyName, Penalty] = {
    "logit": _logit,
    "normalized_logit": _normalized_logit,
    "distribution": _distribution,
    "jensen_shannon": _jensen_shannon,
    "saliency": _saliency,
}
