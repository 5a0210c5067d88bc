"""Forward-mode differentiation, without work on zeros.

Of a layer that is linear in its input torch's own rule also runs the layer on the derivative of its weight, zeros where
the weight is not moved, and sends gradients back through it; that of a ReLU sends zeros back through all that came
before. Here neither is done; the results are the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@contextmanager
def forward_mode() -> Iterator[None]:
    """Runs the block with dual tensors, which `forward_ad.make_dual` makes."""
    _load()
    with forward_ad.dual_level(), _Shorter():
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


class _Shorter(TorchFunctionMode):
    """Differentiates what is in these sets by hand, and leaves the rest to torch."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LINEAR and len(args) >= 2:
            return _linear(func, args, kwargs)
        if func in _RELU and len(args) == 1 and not kwargs.get("inplace"):
            primal, tangent = _parts(args[0])
            if tangent is not None:
                # Where the input is above 0 has no derivative, so that none goes back to what it was made of.
                slope = torch.ops.aten.threshold_backward(tangent, primal.detach(), 0)
                return forward_ad.make_dual(primal.relu(), slope)
        return func(*args, **kwargs)


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


@cache
def _load() -> None:
    """What torch loads when it is first used, which it warns of itself, as of something deprecated."""
    with warnings.catch_warnings(), torch.inference_mode(False), forward_ad.dual_level():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        zero = torch.zeros(1, device="cpu")
        forward_ad.make_dual(zero, zero)
