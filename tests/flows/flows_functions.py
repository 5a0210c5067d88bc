"""Operations whose rules of differentiation lack something."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Sine(torch.autograd.Function):
    """Without a rule for differentiating forwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * x.cos()


class Half(torch.autograd.Function):
    """The identity; of the two ways to differentiate, one has a gradient of half the size."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.detach() / 2 + tangent / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient
