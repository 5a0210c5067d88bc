"""How a layer's activations move when the input does, at the layer's own resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_invariance._layer_shares import OrbitMean, ShareSums
from lightning_invariance.actions import Action

#: What bringing activations back costs where the action interpolates is measured on so many samples.
_NULL_SAMPLES = 8


@dataclass(frozen=True)
class Motion:
    """How activations are brought back.

    Attributes:
        action: the action on them; None where they cannot be moved.
        channels_last: whether their channels come last although places are in the last dimensions of the input.
        fields: how many dimensions between samples and places are channels: two where fields have one of their own,
            ``(B, fields, |G|, ...)``.
        note: why they cannot.
    """

    action: Action | None
    channels_last: bool = False
    fields: int = 1
    note: str = ""


def motion_of(action: Action, x: Tensor, first: Tensor, tensor: Tensor) -> Motion:
    """The same action at the layer's own resolution, where it can act."""
    places = action.places
    if tensor.ndim < 2 or (places is None and tensor.ndim < first.ndim):
        return Motion(None, note="the group cannot act on it")
    if places and tensor.ndim < first.ndim and any(tensor.shape[dim] != first.shape[dim] for dim in places):
        return Motion(None, note="the group cannot act on it")  # tokens, say, whose places are not the input's
    for channels_last in (False, True):
        candidate = tensor
        if channels_last:
            if places is None or first.ndim != tensor.ndim or first.ndim not in (3, 4):
                break
            if not set(places) <= set(range(2 - first.ndim, 0)):
                break
            candidate = tensor.movedim(-1, 1)
        elif places == (-1,) and first.ndim == tensor.ndim == 3 and _has_steps_first(first, tensor):
            continue
        try:
            move = action.on_output(x, candidate)
            if places is None:  # a function says by failing what it cannot act on
                move.act(candidate, 1)
        except (ValueError, RuntimeError, IndexError):
            continue
        moved = move.places
        if moved and all(candidate.shape[dim] == 1 for dim in moved):
            return Motion(None, note="has a single place")
        extra = tensor.ndim - first.ndim if places and moved == places else 0
        return Motion(move, channels_last, fields=1 + max(extra, 0))
    return Motion(None, note="the group cannot act on it")


def _has_steps_first(first: Tensor, tensor: Tensor) -> bool:
    """Whether what stands in place of a signal's channels are its steps: ``(B, T, C)``."""
    return tensor.shape[1] == first.shape[2] != tensor.shape[2]


def null_share(action: Action, values: Tensor) -> float:
    """The share of values that were moved and brought back; 0 where it is not defined."""
    few = values[:_NULL_SAMPLES].detach()
    if not few.is_floating_point():
        return 0.0
    try:
        action.check(few)
    except ValueError:  # its motion is that of all samples
        few = values.detach()
    seen = seen_by_all(action, few)
    orbit = OrbitMean(few if seen is None else torch.where(seen, few, 0.0))
    for element in range(1, len(action)):
        back = action.invert(action.act(few, element), element)
        orbit.add(back if seen is None else torch.where(seen, back, 0.0))
    sums = ShareSums()
    sums.add(orbit)
    value = sums.share().value
    return value if value == value else 0.0


def seen_by_all(action: Action, values: Tensor) -> Tensor | None:
    """The places that every element leaves in view; None for all."""
    seen = [action.in_view(values, element) for element in range(1, len(action))]
    masks = [mask for mask in seen if mask is not None]
    return torch.stack([mask.expand_as(values[:1]) for mask in masks]).all(dim=0) if masks else None


def channel_dim(action: Action, values: Tensor) -> int | None:
    """The dimension of channels beside the places that the action moves."""
    if action.dims is None or action.places is None:
        return 1 if values.ndim > 2 else None
    if set(action.dims) - set(action.places):
        return None  # it mixes values, as those of vectors
    moved = {dim % values.ndim for dim in action.dims}
    return next((dim for dim in (1, values.ndim - 1) if 0 < dim < values.ndim and dim not in moved), None)
