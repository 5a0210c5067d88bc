"""What the measures share: checks of their inputs, and the reductions over samples and elements."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_invariance._checks import check_choice, check_finite, check_same_device
from lightning_invariance._containers import describe_value
from lightning_invariance._messages import warn

Reduction = Literal["mean", "element", "none"]
Activation = Literal["softmax", "sigmoid"]

#: A standard deviation of fewer steps of the outputs' own precision than this is rounding.
ROUNDING_STEPS = 2

REDUCTIONS: tuple[Reduction, ...] = ("mean", "element", "none")
ACTIVATIONS: tuple[Activation, ...] = ("softmax", "sigmoid")


class OrbitValues(NamedTuple):
    """A measure of one batch, before any mean over samples. NaN where it is undefined.

    Attributes:
        per_sample: one value a sample, the elements already averaged, shape ``(B,)``.
        per_element: one value for each element but the identity and each sample, shape ``(|G| - 1, B)``.
    """

    per_sample: Tensor
    per_element: Tensor


def mean_over_elements(pairs: Tensor, valid: Tensor | None = None) -> OrbitValues:
    """The values of a measure defined on pairs (x, g), shape ``(|G| - 1, B)``: the mean over g comes first.

    Where `valid` says that some places are out of sight, it is one over the elements that leave any in view.
    """
    return OrbitValues(pairs.mean(dim=0) if valid is None else pairs.nanmean(dim=0), pairs)


def reduce_values(values: OrbitValues, reduction: Reduction, measure: str) -> Tensor:
    """Reduces over samples: undefined ones are left out with a warning, and if none is left the result is NaN."""
    if reduction == "none":
        warn_undefined(measure, int(values.per_sample.isnan().sum()), len(values.per_sample))
        return values.per_sample
    defined = ~values.per_sample.isnan()
    kept = int(defined.sum())
    warn_undefined(measure, len(defined) - kept, len(defined))
    columns = values.per_sample[:, None] if reduction == "mean" else values.per_element.T
    total = torch.where(defined[:, None], columns, 0.0).double().sum(dim=0)
    mean = (total / kept if kept else total.fill_(torch.nan)).to(columns.dtype)
    return mean[0] if reduction == "mean" else mean


def warn_undefined(measure: str, undefined: int, samples: int) -> None:
    """Warns that samples have no value, or that there was no sample at all."""
    if samples == 0:
        warn(f"{measure} of no samples is undefined: NaN is returned.")
    elif undefined:
        warn(
            f"{measure} is undefined for {undefined} of {samples} samples (a norm is 0, or nothing is left to "
            "compare): means leave them out."
        )


def check_orbit(base: Tensor, orbit: Tensor, name: str = "logits") -> None:
    """Raises unless `base` is ``(B, ...)`` and `orbit` is ``(|G| - 1, B, ...)``, both floating point."""
    for argument, value in ((name, base), (f"orbit_{name}", orbit)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"Expected `{argument}` to be a floating-point tensor but got {describe_value(value)}.")
    if base.ndim < (1 if name == "logits" else 2):
        raise ValueError(f"Expected `{name}` to have the shape (B, ...) but got {tuple(base.shape)}.")
    if orbit.ndim != base.ndim + 1 or orbit.shape[1:] != base.shape or len(orbit) == 0:
        expected = ", ".join(["|G| - 1", *(str(size) for size in base.shape)])
        raise ValueError(
            f"Expected `orbit_{name}` to have the shape ({expected}), one row for each element but the identity, "
            f"but got {tuple(orbit.shape)}."
        )
    check_same_device(f"orbit_{name}", orbit, base.device, f"`{name}`")


def check_outputs(base: Tensor, name: str = "logits") -> None:
    """Raises where a sample has no value at all."""
    if base.ndim >= 2 and 0 in base.shape[1:]:
        raise ValueError(f"Expected `{name}` to have at least one value a sample but got shape {tuple(base.shape)}.")


def is_single(logits: Tensor) -> bool:
    """Whether there is one output a sample, ``(B,)`` or ``(B, 1)``, as in a regression."""
    return logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1)


def check_classes(logits: Tensor, minimum: int, remedy: str = "") -> None:
    """Raises unless `logits` is ``(B, C)``, or ``(B, C, H, W)``, with at least `minimum` classes.

    Three dimensions are refused: ``(B, C, T)`` is the custom of losses, ``(B, T, C)`` that of language models.
    """
    if logits.ndim in (0, 1, 3) or logits.shape[1] < minimum:
        if minimum > 1 and is_single(logits):
            remedy = f": this is a measure of classes, and the network gives one output a sample{remedy}"
        if logits.ndim > 3:
            remedy = ": scores of one class alone; of a binary mask give those of both, such as cat([-z, z], dim=1) / 2"
        if logits.ndim == 3:
            remedy = ": a sequence's classes are not known to be in dimension 1; move them there and add a dimension"
        raise ValueError(
            f"Expected `logits` to have the shape (B, C), or (B, C, H, W), with C of at least {minimum} "
            f"but got {tuple(logits.shape)}{remedy}."
        )


def check_valid(valid: Tensor | None, orbit: Tensor) -> None:
    """Raises unless `valid` is None, or bool and broadcastable to the orbit's outputs."""
    if valid is None:
        return
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        raise ValueError(f"Expected `valid` to be a bool tensor or None but got {describe_value(valid)}.")
    fits = valid.ndim == orbit.ndim and all(a in (1, b) for a, b in zip(valid.shape, orbit.shape, strict=True))
    if not fits or valid.device != orbit.device:
        raise ValueError(
            f"Expected `valid` to be broadcastable to the orbit's outputs {tuple(orbit.shape)} on {orbit.device} "
            f"but got {tuple(valid.shape)} on {valid.device}."
        )


def where_valid(valid: Tensor | None, orbit: Tensor) -> Tensor | None:
    """`valid` for each value of the orbit's outputs, flattened, shape ``(|G| - 1, B, D)``; None for all."""
    return None if valid is None else flat_samples(valid.expand(orbit.shape), before=2)


class ClassScores(NamedTuple):
    """Logits with their classes in the last dimension.

    Attributes:
        logits: shape ``(B, C)``, or ``(B, N, C)`` for each of N places.
        orbit_logits: shape ``(|G| - 1, B, C)`` or ``(|G| - 1, B, N, C)``.
        valid: which places are to be compared, ``(|G| - 1, B, N)``; None for all.
    """

    logits: Tensor
    orbit_logits: Tensor
    valid: Tensor | None


def class_scores(logits: Tensor, orbit_logits: Tensor, valid: Tensor | None) -> ClassScores:
    """The classes of ``(B, C)`` or, for each place, of ``(B, C, H, W)``."""
    if logits.ndim == 2:
        if valid is None:
            return ClassScores(logits, orbit_logits, None)
        logits, orbit_logits, valid = logits[..., None], orbit_logits[..., None], valid[..., None]
    seen = None if valid is None else valid.expand(orbit_logits.shape).all(dim=2).flatten(2)
    return ClassScores(logits.flatten(2).movedim(1, -1), orbit_logits.flatten(3).movedim(2, -1), seen)


def mean_over_places(pairs: Tensor, valid: Tensor | None) -> Tensor:
    """The mean over the places of values ``(..., B, N)``, NaN where none is valid; values ``(..., B)`` have none."""
    if valid is None:
        return pairs if pairs.ndim == 2 else pairs.mean(dim=-1)
    count = valid.sum(dim=-1)
    mean = torch.where(valid, pairs, 0.0).sum(dim=-1) / count.clamp_min(1)
    return mean.masked_fill(count == 0, torch.nan)


def check_activation(logits: Tensor, activation: Activation) -> None:
    """Raises where the activation gives no distribution: softmax of a single logit is 1 whatever the network does."""
    check_choice("activation", activation, ACTIVATIONS)
    if activation == "softmax":
        single = logits.ndim == 2 and logits.shape[1] == 1
        check_classes(logits, 2, " (a single logit is a probability under activation='sigmoid')" if single else "")
    else:
        check_classes(logits, 1, " (give a single logit the shape (B, 1))" if logits.ndim == 1 else "")


def check_values_finite(base: Tensor, orbit: Tensor, name: str = "logits") -> None:
    """Raises where either holds NaN or infinity."""
    check_finite(name, base)
    check_finite(f"orbit_{name}", orbit)


def finite_samples(base: Tensor, orbit: Tensor) -> Tensor:
    """Which samples are finite over their whole orbit, shape ``(B,)``, without waiting for the device."""
    finite: Tensor = flat_samples(base).isfinite().all(dim=1)
    return finite & flat_samples(orbit, before=2).isfinite().all(dim=2).all(dim=0)


def flat_samples(x: Tensor, before: int = 1) -> Tensor:
    """Everything behind the first `before` dimensions in one, which scalars get too."""
    return x.unsqueeze(-1).flatten(before)


def spread(outputs: Tensor) -> Tensor:
    """The population variance over samples, added up over outputs ``(B, D)``; NaN without samples."""
    # From one of the samples: where all are alike the deviations are 0 and not rounding.
    deviations = outputs - outputs[:1]
    return (deviations - deviations.mean(dim=0)).square().sum(dim=1).mean()


def rounding_variance(squares: Tensor, dtype: torch.dtype) -> Tensor:
    """How much of a variance may be rounding, from mean squares of outputs of this precision."""
    return squares * (ROUNDING_STEPS * torch.finfo(dtype).eps) ** 2


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision raised to float32: a difference of two nearly equal bfloat16 numbers says nothing."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def log_probabilities(logits: Tensor, activation: Activation) -> Tensor:
    """Log-probabilities of every outcome, shape ``(..., C)`` for softmax and ``(..., 2 C)`` for sigmoid.

    With sigmoid each of the C labels is a distribution of its own over yes and no; sums over the last dimension
    then add the labels up.
    """
    logits = at_least_float32(logits)
    if activation == "softmax":
        return logits.log_softmax(dim=-1)
    return torch.cat([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)
