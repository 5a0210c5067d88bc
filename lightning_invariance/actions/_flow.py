"""Continuous groups, given by their generators."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_invariance._checks import check_count, check_number, check_seed
from lightning_invariance._containers import describe_value
from lightning_invariance._isolation import full_precision, ordinary
from lightning_invariance.actions._base import Action, check_action
from lightning_invariance.actions._motion_sizes import MotionSizes
from lightning_invariance.actions._value import Value

#: How many elements are drawn where a flow stands for an action.
DEFAULT_SAMPLES = 8

#: How many times the precision of the largest value a function of t may be off for t = 0, as interpolation is.
_ROUNDING = 64

Motion = Callable[[Tensor, Tensor], Tensor]


class Flow(Value):
    r"""A continuous group acting on a batch, given by its one-parameter subgroups.

    For each generator :math:`k` there is a motion :math:`\rho_k(t)` with :math:`\rho_k(0) = 1`, and its derivative

    .. math::
        X_k x = \frac{d}{dt} \Big|_{t = 0} \rho_k(t) x

    which `tangent` gives. It is all that `evaluate_lie_derivative` needs: nothing is drawn.

    A flow is a small immutable value: equal arguments make equal flows, and it can be copied and pickled. Computed in
    float32 or better, whatever the input's precision.

    A subclass writes `generators`, `check`, `_move`, `_tangent` and `_arguments`.
    """

    #: How far `sampled` draws t to either side.
    extent: float = 1.0

    @property
    @abstractmethod
    def generators(self) -> tuple[str, ...]:
        """A short name for each generator; used in tables and log keys."""

    @abstractmethod
    def check(self, x: Tensor) -> None:
        """Raises a `ValueError`, which says what would work, where the flow cannot move `x`."""

    @abstractmethod
    def _move(self, x: Tensor, generator: int, t: Tensor) -> Tensor:
        """The batch, moved, for a float64 scalar t; at 0 the batch itself, bit for bit."""

    @abstractmethod
    def _tangent(self, x: Tensor, generator: int) -> Tensor:
        """The derivative of `_move` at 0."""

    # What a subclass may know better --------------------------------------------------------------------------------

    @property
    def dims(self) -> tuple[int, ...] | None:
        """The (negative) dimensions acted on, or None where they are not known."""
        return None

    @property
    def places(self) -> tuple[int, ...] | None:
        """The (negative) dimensions along which values move; see `Action.places`."""
        return None

    def _sampled(self, n: int, seed: int) -> Action:
        return FlowAction(self, n, seed)

    def alongside(self, x: Tensor, output: Tensor) -> Flow:
        """The flow that moves what a network makes of `x`, in the same dimensions, as this one moves `x`.

        Args:
            x: a batch, shape ``(B, ...)``.
            output: what is made of it, shape ``(B, ...)``.

        Returns:
            A flow of batches of the shape of `output`: the flow itself, but for those that move the plane, which move
            a feature map that is smaller than the image in proportion to its sides.

        Raises:
            ValueError: if the flow cannot move `output`, or it is not known how far.

        Example:
            >>> import torch
            >>> from lightning_invariance import TranslationFlow
            >>> x = torch.zeros(1, 1, 16, 16)
            >>> wave = (torch.arange(8) * torch.pi / 4).sin().expand(1, 1, 8, 8)
            >>> moved = TranslationFlow(window=None).alongside(x, wave).move(wave, "right", 2.0)  # one of its places
            >>> torch.allclose(moved, wave.roll(1, -1), atol=1e-6)
            True
        """
        self.check(output)
        return self

    # What users call ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.generators)

    def move(self, x: Tensor, generator: int | str, t: float | Tensor) -> Tensor:
        r"""Moves a batch along one generator: :math:`\rho_k(t) x`.

        Args:
            x: a batch, shape ``(B, ...)``, floating point.
            generator: its index or name.
            t: how far, a number or a tensor of one; at 0 the result is `x`, bit for bit (up to rounding, of a
                `FunctionFlow`).

        Returns:
            Of the shape and dtype of `x`; differentiable in `x` and in `t`.

        Raises:
            ValueError: if the flow cannot move `x`, has no such generator, or `t` is no finite number.

        Example:
            >>> import torch
            >>> from lightning_invariance import TranslationFlow
            >>> row = torch.tensor([[[0.0, 1.0, 0.0, 0.0]]])
            >>> TranslationFlow(window=None).move(row, "right", 1.0).round(decimals=4).abs()
            tensor([[[0., 0., 1., 0.]]])
        """
        self.check(x)
        index = self.index(generator)
        if isinstance(t, Tensor):
            if t.ndim or not t.is_floating_point():
                raise ValueError(f"Expected `t` to be a number or a floating-point scalar but got {describe_value(t)}.")
        else:
            check_number("t", t)
        # A number stays on the CPU: how far it goes may decide how, which is not to wait for the device.
        time = t.double() if isinstance(t, Tensor) else torch.tensor(float(t), dtype=torch.float64, device="cpu")
        with full_precision(x.device):
            return self._move(x.to(_precision(x)), index, time).to(x.dtype)

    def tangent(self, x: Tensor, generator: int | str) -> Tensor:
        r"""The derivative of `move` at 0: :math:`X_k x = d/dt \, \rho_k(t) x`.

        Args:
            x: a batch, shape ``(B, ...)``, floating point.
            generator: its index or name.

        Returns:
            Of the shape and dtype of `x`, per unit of t.

        Raises:
            ValueError: if the flow cannot move `x`, or has no such generator.

        Example:
            Points turn about the third axis:

            >>> import torch
            >>> from lightning_invariance import PointRotationFlow
            >>> PointRotationFlow().tangent(torch.tensor([[[1.0, 0.5, 0.0]]]), "rotation_z")
            tensor([[[-0.5000,  1.0000,  0.0000]]])
        """
        self.check(x)
        index = self.index(generator)
        with full_precision(x.device):
            return self._tangent(x.to(_precision(x)), index).to(x.dtype)

    def sampled(self, n: int = DEFAULT_SAMPLES, seed: int = 0) -> Action:
        """An action of the identity and `n` elements drawn from the group.

        Args:
            n: how many are drawn besides the identity.
            seed: of the draw: equal seeds give equal elements.

        Returns:
            The action, whose `flow` this is. Each element moves along all generators, one after the other, each by a t
            that is uniform between -`extent` and `extent`; where the package has an action of its own for the group
            (`SO2`, `SO3`, `ScalingRange`), it is that one.

        Raises:
            ValueError: if `n` is no integer of at least 1, or `seed` none of at most 64 bits.

        Example:
            >>> from lightning_invariance import RotationFlow, ShearFlow
            >>> RotationFlow().sampled(4)
            SO2(samples=4, seed=0, interpolation='bilinear', padding='zeros')
            >>> len(ShearFlow().sampled(4))
            5
        """
        check_count("n", n)
        check_seed("seed", seed)
        return self._sampled(n, seed)

    def index(self, generator: int | str) -> int:
        """A generator's index, from its index or its name.

        Raises:
            ValueError: if there is none.
        """
        names = self.generators
        if isinstance(generator, str) and generator in names:
            return names.index(generator)
        if isinstance(generator, int) and not isinstance(generator, bool) and 0 <= generator < len(names):
            return generator
        raise ValueError(
            f"Expected `generator` to be one of {list(names)} or an index of one for {self!r} but got {generator!r}."
        )


class FunctionFlow(Flow):
    r"""A continuous group from functions of t.

    The derivative at 0 is that of the function, by differentiating it: what it interpolates with matters (bilinear
    sampling has one-sided derivatives at the places of pixels).

    Args:
        functions: for each generator's name, a function ``(x, t) -> moved x`` of a batch ``(B, ...)`` and a scalar
            tensor, differentiable in t, which gives the batch back for t = 0 (up to rounding), and
            whose inverse is that of -t.
        extent: how far `sampled` draws t to either side.

    Raises:
        ValueError: if `functions` is no mapping of names to functions, at least one, or `extent` is no finite number
            above 0; in use, if a function changes the batch's shape or precision, moves it for t = 0, or does not
            depend on t.

    Example:
        >>> import torch
        >>> from lightning_invariance import FunctionFlow
        >>> flow = FunctionFlow({"gain": lambda x, t: x * t.exp()})
        >>> flow.tangent(torch.tensor([[1.0, -2.0]]), "gain")
        tensor([[ 1., -2.]])
    """

    def __init__(self, functions: Mapping[str, Motion], *, extent: float = 1.0) -> None:
        named = isinstance(functions, Mapping) and all(isinstance(name, str) and name for name in functions)
        if not named or not functions or not all(map(callable, functions.values())):
            raise ValueError(
                f"Expected `functions` to map names to functions of x and t, at least one, but got {functions!r}."
            )
        self._functions = tuple(functions.items())
        self.extent = check_extent("extent", extent)

    @property
    def generators(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self._functions)

    def check(self, x: Tensor) -> None:
        check_flowing(self, x, 0)

    def _move(self, x: Tensor, generator: int, t: Tensor) -> Tensor:
        name, function = self._functions[generator]
        moved = function(x, t.to(x))
        if not isinstance(moved, Tensor) or moved.shape != x.shape or moved.dtype != x.dtype:
            raise ValueError(
                f"Expected {name!r} of {self!r} to keep the shape {tuple(x.shape)} and {x.dtype} but got "
                f"{describe_value(moved)}."
            )
        return moved

    def _tangent(self, x: Tensor, generator: int) -> Tensor:
        """By differentiating a weighted sum of the moved batch in t, and that in the weights: backward alone."""
        with torch.inference_mode(False), torch.enable_grad():
            x = ordinary(x)
            t = torch.zeros((), dtype=x.dtype, device=x.device, requires_grad=True)
            moved = self._move(x, generator, t)
            weights = torch.ones_like(moved, requires_grad=True)
            slope = None
            if moved.requires_grad:
                (slope,) = torch.autograd.grad(moved, t, weights, create_graph=True, allow_unused=True)
            if slope is None or not slope.requires_grad:
                raise ValueError(f"Expected {self.generators[generator]!r} of {self!r} to be differentiable in t.")
            (tangent,) = torch.autograd.grad(slope, weights, create_graph=x.requires_grad)
        apart, largest = (float(each.detach().abs().max()) if each.numel() else 0.0 for each in (moved - x, x))
        if apart > _ROUNDING * torch.finfo(x.dtype).eps * largest:
            raise ValueError(
                f"Expected {self.generators[generator]!r} of {self!r} to give the batch back for t = 0, but for "
                f"rounding, but got values that differ by up to {apart:.3g}."
            )
        return tangent if x.requires_grad else tangent.detach()

    def _arguments(self) -> dict[str, object]:
        return {"functions": self._functions, "extent": self.extent}

    def __repr__(self) -> str:
        return f"FunctionFlow({', '.join(map(repr, self.generators))})"


class FlowAction(Action):
    """The identity and elements drawn from a flow's group: what `Flow.sampled` gives.

    Args:
        flow: the flow.
        samples: how many are drawn besides the identity.
        seed: of the draw.
    """

    def __init__(self, flow: Flow, samples: int, seed: int = 0) -> None:
        self._flow = flow
        self.samples = samples
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(samples, len(flow), generator=generator, dtype=torch.float64, device="cpu")
        self._times: list[list[float]] = (flow.extent * (2 * drawn - 1)).tolist()

    @property
    def flow(self) -> Flow:
        """The flow that the elements are drawn from."""
        return self._flow

    @property
    def dims(self) -> tuple[int, ...] | None:
        return self._flow.dims

    @property
    def places(self) -> tuple[int, ...] | None:
        return self._flow.places

    def __len__(self) -> int:
        return self.samples + 1

    @property
    def drawn(self) -> bool:
        return True

    def motion_sizes(self, x: Tensor) -> MotionSizes | None:
        """How far t goes, where there is one generator; see `Action.motion_sizes`."""
        if len(self._flow) > 1:
            return None
        return MotionSizes(f"t of {self._flow.generators[0]}", "", (0.0, *(times[0] for times in self._times)))

    def _redraw(self, seed: int, samples: int | None) -> Action:
        return FlowAction(self._flow, samples or self.samples, seed)

    def check(self, x: Tensor) -> None:
        self._flow.check(x)

    def verify(self, x: Tensor) -> None:
        """Checks functions of the user's own; the package's have inverses that follow; see `Action.verify`."""
        if isinstance(self._flow, FunctionFlow):
            super().verify(x)
        else:
            self.check(x)

    def _act_one(self, x: Tensor, element: int) -> Tensor:
        for generator, t in enumerate(self._times[element - 1]):
            x = self._flow.move(x, generator, t)
        return x

    def _invert_one(self, x: Tensor, element: int) -> Tensor:
        for generator, t in reversed([*enumerate(self._times[element - 1])]):
            x = self._flow.move(x, generator, -t)
        return x

    def _arguments(self) -> dict[str, object]:
        return {"flow": self._flow, "samples": self.samples, "seed": self.seed}

    def __repr__(self) -> str:
        return f"{self._flow!r}.sampled({self.samples}, seed={self.seed})"


def as_action(action: object) -> Action:
    """The action itself, or what `Flow.sampled` gives of a flow.

    Raises:
        ValueError: if it is neither, or has no element besides the identity.
    """
    given: Any = action.sampled() if isinstance(action, Flow) else action
    check_action(given)
    checked: Action = given
    return checked


def check_flow(name: str, flow: object) -> None:
    """Raises unless `flow` is a `Flow`."""
    if not isinstance(flow, Flow):
        raise ValueError(f"Expected `{name}` to be a Flow, such as RotationFlow(), but got {flow!r}.")


def of_flow(action: Action, flow: Flow) -> Action:
    """The action, which is to know the flow that it was made from."""
    action.__dict__["_of_flow"] = flow
    return action


def check_flowing(flow: Flow, x: object, trailing: int) -> None:
    """Raises unless `x` is a floating-point tensor with a batch dimension and at least `trailing` more."""
    if not isinstance(x, Tensor):
        raise ValueError(f"Expected `x` to be a tensor for {flow!r} but got {describe_value(x)}.")
    if x.ndim < trailing + 1:
        raise ValueError(
            f"Expected `x` to have a batch dimension and at least {trailing} more for {flow!r} "
            f"but got shape {tuple(x.shape)}."
        )
    if not x.is_floating_point():
        raise ValueError(f"Expected `x` to be floating point for {flow!r} but got {x.dtype}.")


def check_extent(name: str, value: Any) -> float:
    """A finite number above 0, as a float."""
    check_number(name, value, above=0)
    return float(value)


def _precision(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
