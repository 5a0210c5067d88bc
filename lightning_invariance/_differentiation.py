"""What torch's own rules of differentiation get wrong, or do for nothing, done otherwise.

A penalty on a directional derivative takes the gradient of it, forwards and back or three times back. Torch's rules for
normalisations by statistics of the input (batch normalisation in train mode, instance and layer normalisation) take
these for constants at that depth and give another gradient without a word; here they are written out in operations
whose rules are right.

Of a layer that is linear in its input torch's rule for differentiating forwards also runs the layer on the derivative
of its weight, zeros where the weight is not moved, and sends gradients back through it; that of a ReLU sends zeros back
through all that came before. Here neither is done; the results are the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@contextmanager
def forwards(*, keeping: bool = False) -> Iterator[None]:
    """Runs the block with dual tensors, which `forward_ad.make_dual` makes.

    Args:
        keeping: whether what a checkpoint would compute again, without these rules, is kept.
    """
    _load()
    with forward_ad.dual_level(), _Rules(forwards=True, keeping=keeping):
        yield


@contextmanager
def backwards(*, keeping: bool = False) -> Iterator[None]:
    """Runs the block so that it can be differentiated three times."""
    with _Rules(forwards=False, keeping=keeping):
        yield


#: Linear in the first argument, with a weight and a bias behind it.
_LINEAR = {
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
}
_RELU = {F.relu, torch.relu, Tensor.relu}


class _Rules(TorchFunctionMode):
    """Differentiates some functions by hand, and leaves the rest to torch."""

    def __init__(self, *, forwards: bool, keeping: bool) -> None:
        super().__init__()
        self._forwards = forwards
        self._keeping = keeping

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._keeping:
            return self._run(func, args, kwargs)
        # The innermost hooks are what counts, and a checkpoint's are around this.
        with torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
            return self._run(func, args, kwargs)

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _NORMALISATIONS:
            normalised = _NORMALISATIONS[func](*args, **kwargs)
            return func(*args, **kwargs) if normalised is None else normalised
        if not self._forwards:
            return func(*args, **kwargs)
        if func in _LINEAR and len(args) >= 2:
            return _linear(func, args, kwargs)
        if func in _RELU and len(args) == 1 and not kwargs.get("inplace"):
            primal, tangent = _parts(args[0])
            if tangent is not None:
                # Where the input is above 0 has no derivative, so that none goes back to what it was made of.
                slope = torch.ops.aten.threshold_backward(tangent, primal.detach(), 0)
                return forward_ad.make_dual(primal.relu(), slope)
        return func(*args, **kwargs)


def _as_it_is(saved: Tensor) -> Tensor:
    return saved


def _linear(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, weight, *others = args
    bias = others[0] if others else kwargs.get("bias")
    primal, tangent = _parts(x)
    if tangent is None or any(_parts(each)[1] is not None for each in (weight, bias)):
        return func(*args, **kwargs)
    without = {name: value for name, value in kwargs.items() if name != "bias"}
    slope = func(tangent, weight, None, *others[1:], **without)
    return forward_ad.make_dual(func(primal, *args[1:], **kwargs), slope)


def _parts(x: Any) -> tuple[Any, Tensor | None]:
    if not isinstance(x, Tensor):
        return x, None
    primal, tangent = forward_ad.unpack_dual(x)
    return primal, tangent


# Normalisations: running statistics are not updated, as no extra run is to add to them ------------------------------


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """None where the statistics are not those of the batch."""
    if not training:
        return None
    return _normalised(input, (0, *range(2, input.ndim)), weight, bias, eps, (-1, *(1,) * (input.ndim - 2)))


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if not use_input_stats:
        return None
    return _normalised(input, range(2, input.ndim), weight, bias, eps, (-1, *(1,) * (input.ndim - 2)))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return _normalised(input, range(-len(normalized_shape), 0), weight, bias, eps, tuple(normalized_shape))


def _normalised(
    x: Tensor, dims: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float, shape: tuple[int, ...]
) -> Tensor:
    raised = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = raised - raised.mean([*dims], keepdim=True)
    normalised = centred * (centred.square().mean([*dims], keepdim=True) + eps).rsqrt()
    if weight is not None:
        normalised = normalised * weight.reshape(shape)
    if bias is not None:
        normalised = normalised + bias.reshape(shape)
    return normalised.to(x.dtype)


_NORMALISATIONS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
}


@cache
def _load() -> None:
    """What torch loads when it is first used, which it warns of itself, as of something deprecated."""
    with warnings.catch_warnings(), torch.inference_mode(False), forward_ad.dual_level():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        zero = torch.zeros(1, device="cpu")
        forward_ad.make_dual(zero, zero)
