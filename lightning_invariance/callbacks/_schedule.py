"""Weights of the regularizer that change during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from lightning_invariance._checks import check_choice, check_count, is_number


class WeightRamp:
    r"""A weight that goes from `start` to `end` in `steps` optimiser steps and stays there.

    .. math::
        \nu(t) = \nu_0 + (\nu_1 - \nu_0)\, r \quad\text{(linear)}, \qquad
        \nu(t) = \nu_0 (\nu_1 / \nu_0)^{\,r} \quad\text{(exponential)}, \qquad r = \min(t / T, 1)

    A small weight at first lets the network learn the task before its orbits are drawn together.

    Args:
        start: :math:`\nu_0`, at least 0; above 0 for an exponential ramp.
        end: :math:`\nu_1`, likewise.
        steps: :math:`T`, in optimiser steps (``trainer.global_step``).
        shape: ``"linear"`` or ``"exponential"``.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> from lightning_invariance import WeightRamp
        >>> ramp = WeightRamp(0.01, 10.0, steps=300, shape="exponential")
        >>> [round(ramp(step), 4) for step in (0, 100, 200, 300, 1000)]
        [0.01, 0.1, 1.0, 10.0, 10.0]
    """

    def __init__(
        self, start: float, end: float, steps: int, shape: Literal["linear", "exponential"] = "linear"
    ) -> None:
        check_choice("shape", shape, ("linear", "exponential"))
        check_count("steps", steps)
        for name, value in (("start", start), ("end", end)):
            if not is_number(value):
                raise ValueError(f"Expected `{name}` to be a number but got {value!r}.")
            if not 0 <= value < float("inf") or (shape == "exponential" and value == 0):
                bound = "above 0 for an exponential ramp" if shape == "exponential" else "at least 0"
                raise ValueError(f"Expected `{name}` to be {bound} and finite but got {value!r}.")
        self.start = start
        self.end = end
        self.steps = steps
        self.shape = shape

    def __call__(self, step: int) -> float:
        """The weight after so many optimiser steps."""
        reached = min(step / self.steps, 1.0)
        if self.shape == "exponential":
            return float(self.start * (self.end / self.start) ** reached)
        return float(self.start + (self.end - self.start) * reached)

    def __repr__(self) -> str:
        return f"WeightRamp({self.start}, {self.end}, steps={self.steps}, shape={self.shape!r})"


#: From the number of optimiser steps taken so far to the weight. The ramp is named for configuration files, which then
#: know it by its name alone.
WeightSchedule = WeightRamp | Callable[[int], float]
