"""The penalties: invariance errors as terms of a loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_invariance._checks import check_callable, check_choice
from lightning_invariance.functional._distribution_invariance_error import distribution_invariance_values
from lightning_invariance.functional._jensen_shannon_invariance_error import jensen_shannon_values
from lightning_invariance.functional._logit_invariance_error import logit_invariance_values
from lightning_invariance.functional._orbit_values import (
    OrbitValues,
    at_least_float32,
    check_activation,
    flat_samples,
    where_valid,
)
from lightning_invariance.outputs import OrbitOutputs

PenaltyName = Literal["logit", "normalized_logit", "distribution", "jensen_shannon", "saliency"]


@dataclass(frozen=True)
class Penalty:
    r"""An invariance error :math:`I_f` to be added to a loss.

    Attributes:
        function: from what it `reads`, ``(B, ...)`` and ``(|G| - 1, B, ...)``, to a scalar. If it takes ``valid`` too,
            it gets which places both poses see (see `OrbitOutputs`); if not, the others have no difference.
        reads: ``("logits", "orbit_logits")``, or the gradients ``("saliency", "orbit_saliency")`` of the class that is
            predicted on x, which take second derivatives.
        needs_whole_orbit: whether part of the orbit does not estimate it.

    Raises:
        ValueError: if `function` cannot be called, or `reads` is neither pair.

    Example:
        >>> from lightning_invariance import C4, InvarianceRegularizer, Penalty
        >>> absolute = Penalty(lambda logits, orbit_logits: (orbit_logits - logits).abs().mean())
        >>> regularizer = InvarianceRegularizer(C4(), penalty=absolute)
    """

    function: Callable[..., Tensor]
    reads: tuple[str, str] = ("logits", "orbit_logits")
    needs_whole_orbit: bool = False

    def __post_init__(self) -> None:
        check_callable("function", self.function, "a function of what the penalty reads")
        check_choice("reads", self.reads, (("logits", "orbit_logits"), ("saliency", "orbit_saliency")))

    @property
    def is_of_saliency(self) -> bool:
        """Whether it is a penalty of gradients."""
        return self.reads == ("saliency", "orbit_saliency")

    def _takes_valid(self) -> bool:
        try:
            return "valid" in inspect.signature(self.function).parameters
        except (TypeError, ValueError):  # written in C, say
            return False

    def of(self, outputs: OrbitOutputs) -> Tensor:
        """The penalty of a batch."""
        base, orbit = (getattr(outputs, name) for name in self.reads)
        if outputs.valid is None:
            return self.function(base, orbit)
        if self._takes_valid():
            return self.function(base, orbit, valid=outputs.valid)
        return self.function(base, torch.where(outputs.valid, orbit, base))


def _logit(logits: Tensor, orbit_logits: Tensor, valid: Tensor | None = None) -> Tensor:
    return _mean(logit_invariance_values(logits, orbit_logits, None, valid), valid)


def _normalized_logit(logits: Tensor, orbit_logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean over the pairs whose logits are not all 0: a head may begin at 0, and NaN would end the training."""
    distance = 2 * logit_invariance_values(logits, orbit_logits, None, valid).per_element.nan_to_num(0.0)
    squares = flat_samples(at_least_float32(logits)).square()
    seen = where_valid(valid, orbit_logits)
    norm = (squares if seen is None else torch.where(seen, squares, 0.0)).sum(dim=-1).expand(distance.shape)
    defined = norm > 0
    ratios = distance / torch.where(defined, norm, 1.0)
    return torch.where(defined, ratios, 0.0).sum() / defined.sum().clamp_min(1)


def _distribution(logits: Tensor, orbit_logits: Tensor, valid: Tensor | None = None) -> Tensor:
    check_activation(logits, "softmax")
    return _mean(distribution_invariance_values(logits, orbit_logits, "softmax", valid), valid)


def _jensen_shannon(logits: Tensor, orbit_logits: Tensor, valid: Tensor | None = None) -> Tensor:
    check_activation(logits, "softmax")
    return _mean(jensen_shannon_values(logits, orbit_logits, "softmax", valid), valid)


def _mean(values: OrbitValues, valid: Tensor | None) -> Tensor:
    """The mean over samples; over those that have a place in view, as NaN would end the training."""
    if valid is None:
        return values.per_sample.mean()
    defined = ~values.per_sample.isnan()
    return torch.where(defined, values.per_sample, 0.0).sum() / defined.sum().clamp_min(1)


def _saliency(saliency: Tensor, orbit_saliency: Tensor) -> Tensor:
    """1 − cos(m(x), g⁻¹ m(gx)) (eq. 3), the mean over the pairs whose maps are not 0.

    The measure itself is NaN for a map of zeros, and NaN in one sample would be the end of the training.
    """
    base, base_defined = _directions(flat_samples(at_least_float32(saliency)))
    moved, moved_defined = _directions(flat_samples(at_least_float32(orbit_saliency), before=2))
    defined = base_defined & moved_defined
    distances = 1 - (base * moved).sum(dim=-1)
    return torch.where(defined, distances, 0.0).sum() / defined.sum().clamp_min(1)


def lie_penalty(slopes: Tensor, generators: int) -> Tensor:
    """The mean over samples of Σ_k ‖L_k f‖², from some of so many generators, ``(k, B, ...)``."""
    squares = flat_samples(at_least_float32(slopes), before=2).square().sum(dim=-1)
    return squares.mean(dim=1).sum() * (generators / len(slopes))


def _directions(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors along the last dimension, and where there are any; elsewhere their gradients are 0, not NaN."""
    # Divided by the largest entry first: the squares of a saturated network's tiny gradients underflow.
    scale = maps.detach().abs().amax(dim=-1, keepdim=True)
    defined = scale > 0
    scaled = torch.where(defined, maps / torch.where(defined, scale, 1.0), 1.0)
    return scaled / scaled.square().sum(dim=-1, keepdim=True).sqrt(), defined[..., 0]


PENALTIES: Mapping[PenaltyName, Penalty] = {
    "logit": Penalty(_logit),
    "normalized_logit": Penalty(_normalized_logit),
    "distribution": Penalty(_distribution),
    "jensen_shannon": Penalty(_jensen_shannon, needs_whole_orbit=True),
    "saliency": Penalty(_saliency, reads=("saliency", "orbit_saliency")),
}


def as_penalty(penalty: PenaltyName | Penalty | Callable[..., Tensor]) -> Penalty:
    """A `Penalty` from its name, or from a function of ``logits`` and ``orbit_logits``.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(penalty, Penalty):
        return penalty
    if callable(penalty):
        return Penalty(penalty)
    check_choice("penalty", penalty, tuple(PENALTIES))
    return PENALTIES[penalty]
