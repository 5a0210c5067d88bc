"""Flows of images: they move the plane, or change the grey values."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod

import torch
from torch import Tensor

from lightning_invariance._checks import check_number, format_sizes
from lightning_invariance.actions._affine import SO2, ScalingRange
from lightning_invariance.actions._base import Action
from lightning_invariance.actions._flow import Flow, check_extent, check_flowing, of_flow
from lightning_invariance.actions._spectral import derivative, round_window, shift_change, window, zoom_change

#: The furthest that one rotation by three shears goes.
_STEP = math.pi / 8


class _PlaneFlow(Flow):
    """Moves the plane; values come from the band-limited interpolation of the image.

    Lengths are in pixels of the network's input, of which an output that it makes may have fewer: see `alongside`.
    """

    #: How many places (down, to the right) there are for each pixel of the input.
    _ratios: tuple[float, float] = (1.0, 1.0)

    #: Whether it moves all by the same length, so that it matters how long an output's places are.
    _is_length = False

    def __init__(self, window: float | None, extent: float) -> None:
        if window is not None:
            check_number("window", window, above=0)
            if window > 0.5:
                raise ValueError(f"Expected `window` to be a share of the side, at most 0.5, but got {window!r}.")
        self.window = None if window is None else float(window)
        self.extent = check_extent("extent", extent)

    @abstractmethod
    def _velocity(self, generator: int, right: Tensor, down: Tensor) -> dict[int, Tensor | float]:
        """How fast the plane moves along -1 (to the right) and -2 (down), in pixels per unit of t.

        Args:
            generator: along which generator.
            right: how far places lie to the right of the centre.
            down: how far they lie below it.
        """

    @abstractmethod
    def _change(self, x: Tensor, generator: int, t: Tensor) -> Tensor:
        """What changes in images that go on periodically: exactly 0 where t is 0."""

    def _inside(self, x: Tensor, share: float) -> Tensor:
        """1 where the motion is whole, 0 where there is none, ``(H, W)``."""
        return window(x.shape[-2], x.shape[-1], share, x, self._ratios)

    def _places(self, x: Tensor) -> tuple[Tensor, Tensor]:
        right, down = places_from_centre(x)
        return right / self._ratios[1], down / self._ratios[0]

    def _shift_change(self, x: Tensor, shift: Tensor, dim: int) -> Tensor:
        return shift_change(x, self._ratios[dim] * shift, dim)

    def alongside(self, x: Tensor, output: Tensor) -> Flow:
        """In proportion to the sides, where these are smaller; see `Flow.alongside`."""
        self.check(x)
        self.check(output)
        sides, others = x.shape[-2:], output.shape[-2:]
        if sides == others or not x.numel() or not output.numel():
            return self
        down, right = (self._ratios[dim] * others[dim] / sides[dim] for dim in (-2, -1))
        if (self._is_length or down != right) and not all(map(_is_whole, sides, others)):
            raise ValueError(
                f"Expected an output of {format_sizes(sides)} places, as the input has, or of a whole fraction of "
                f"them along each side, to move as the input does, but got {format_sizes(others)}, which does not tell "
                f"how long a place is: give it a flow of its own ({type(self).__name__}, of the pixels that t = 1 "
                "moves it by if it was only cropped or padded)."
            )
        scaled = copy.copy(self)
        scaled._ratios = (down, right)
        return scaled

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and isinstance(other, _PlaneFlow) and self._ratios == other._ratios

    __hash__ = Flow.__hash__

    @property
    def dims(self) -> tuple[int, ...]:
        return (-2, -1)

    @property
    def places(self) -> tuple[int, ...]:
        return self.dims

    def check(self, x: Tensor) -> None:
        check_flowing(self, x, 2)

    def _move(self, x: Tensor, generator: int, t: Tensor) -> Tensor:
        if not x.numel():
            return x
        if self.window is None:
            return x + self._change(x, generator, t)
        inside = self._inside(x, self.window)
        # Where the window is 1 all moves, where it is 0 nothing does, and between the two it is a blend.
        return x + self._change(inside * x, generator, t) - x * self._change(inside, generator, t)

    def _tangent(self, x: Tensor, generator: int) -> Tensor:
        if not x.numel():
            return x
        if self.window is None:
            return self._transport(x, generator)
        inside = self._inside(x, self.window)
        # w ∇x, from the product's derivative: what is windowed has no edge that would ring.
        return self._transport(inside * x, generator) - x * self._transport(inside, generator)

    def _transport(self, x: Tensor, generator: int) -> Tensor:
        """What the velocity carries along: minus velocity times gradient."""
        velocity = self._velocity(generator, *self._places(x))
        first, *others = (self._ratios[dim] * speed * derivative(x, dim) for dim, speed in velocity.items())
        return -sum(others, first)


class TranslationFlow(_PlaneFlow):
    r"""Translations of an image: :math:`(\rho(t) x)(p) = x(p - t u)`, to the right or down.

    Between its pixels an image is the trigonometric polynomial through them, which the FFT gives. It holds where the
    image is band-limited and goes on periodically (``window=None``: what leaves on one side enters on the other), or,
    with a `window`, inside of it. The derivative of a Gaussian blob with a standard deviation of 2 pixels or more is
    then right to 0.1 % or better (with a window from 64 pixels a side on; of 28×28 to 0.8 %).
    Bilinear interpolation has a one-sided derivative there, 8 to 30 % wrong.

    Args:
        pixels: how many pixels t = 1 moves by. lie-deriv's unit is half the side, ``(side - 1) / 2``.
        window: over which share of the side, at each edge, the motion falls smoothly to none, so that edges do not
            matter (over 8 pixels at least, or half of the side where that is less); None for images that go on
            periodically, or are constant along their edges, such as digits on black.
        extent: how far `sampled` draws t to either side.

    Raises:
        ValueError: if `pixels` or `extent` is no finite number above 0, or `window` none above 0 and at most 0.5.

    Example:
        >>> import torch
        >>> from lightning_invariance import TranslationFlow
        >>> wave = torch.linspace(0, 2 * torch.pi, 9)[:8].sin().expand(1, 1, 8, 8)
        >>> moved = TranslationFlow(window=None).move(wave, "right", 2)  # a quarter of its length
        >>> torch.allclose(moved, wave.roll(2, -1), atol=1e-6)
        True
    """

    _is_length = True

    def __init__(self, *, pixels: float = 1.0, window: float | None = 0.125, extent: float = 2.0) -> None:
        check_number("pixels", pixels, above=0)
        self.pixels = float(pixels)
        super().__init__(window, extent)

    @property
    def generators(self) -> tuple[str, ...]:
        return ("right", "down")

    def _velocity(self, generator: int, right: Tensor, down: Tensor) -> dict[int, Tensor | float]:
        return {-1 if generator == 0 else -2: self.pixels}

    def _change(self, x: Tensor, generator: int, t: Tensor) -> Tensor:
        return self._shift_change(x, self.pixels * t, -1 if generator == 0 else -2)

    def _arguments(self) -> dict[str, object]:
        return {"pixels": self.pixels, "window": self.window, "extent": self.extent}


class RotationFlow(_PlaneFlow):
    r"""Rotations of an image about its centre, by t radians, counter-clockwise as seen.

    With places :math:`p` from the centre, to the right and down, :math:`X x = p_1 \partial_2 x - p_2 \partial_1 x`, the
    derivatives those of the band-limited interpolation: see `TranslationFlow` for where it holds. Rotating does not
    leave an image periodic, so that ``window=None`` is for images that are constant outside of a disc. For t other than
    0 it rotates by three shears, in steps of at most 22.5°, which carry what lies in the largest disc about the
    centre to where it belongs, and wrap what lies outside of it.

    Args:
        window: over which share of the side, at the edge of that disc, the motion falls smoothly to none; see
            `TranslationFlow`.

    Raises:
        ValueError: if `window` is no finite number above 0 and at most 0.5.

    Example:
        A blob that is the same from all sides does not change:

        >>> import torch
        >>> from lightning_invariance import RotationFlow
        >>> side = torch.arange(28.0) - 13.5
        >>> blob = torch.exp(-(side[:, None].square() + side.square()) / 8).expand(1, 1, 28, 28)
        >>> bool(RotationFlow(window=None).tangent(blob, "rotation").abs().max() < 1e-5)
        True
    """

    def __init__(self, *, window: float | None = 0.125) -> None:
        super().__init__(window, math.pi)

    @property
    def generators(self) -> tuple[str, ...]:
        return ("rotation",)

    def _sampled(self, n: int, seed: int) -> Action:
        return of_flow(SO2(n, seed), self)

    def _inside(self, x: Tensor, share: float) -> Tensor:
        return round_window(x.shape[-2], x.shape[-1], share, x, self._ratios)

    def _velocity(self, generator: int, right: Tensor, down: Tensor) -> dict[int, Tensor | float]:
        return {-1: down, -2: -right}

    def _change(self, x: Tensor, generator: int, t: Tensor) -> Tensor:
        angle = float(t.detach())
        turns = 2 * math.pi * round(angle / (2 * math.pi))
        steps = max(1, math.ceil(abs(angle - turns) / _STEP))
        right, down = self._places(x)
        part = (t - turns) / steps
        rows, columns = ((part / 2).tan(), down, -1), (-part.sin(), right, -2)
        moved = x
        for _ in range(steps):
            for slope, places, dim in (rows, columns, rows):
                moved = moved + self._shift_change(moved, slope * places, dim)
        return moved - x

    def _arguments(self) -> dict[str, object]:
        return {"window": self.window}


class ScalingFlow(_PlaneFlow):
    r"""Scalings of an image about its centre by :math:`e^t`: above 0 it enlarges.

    :math:`X x = -p \cdot \nabla x`, the gradient that of the band-limited interpolation: see `TranslationFlow` for
    where it holds. Scaling does not leave an image periodic, so that ``window=None`` is for images that are constant
    along their edges.

    Args:
        window: over which share of the side, at each edge, the motion falls smoothly to none; see `TranslationFlow`.
        extent: how far `sampled` draws t to either side: its factors lie between ``exp(-extent)`` and ``exp(extent)``.

    Raises:
        ValueError: if `window` is no finite number above 0 and at most 0.5, or `extent` none above 0 and at most 10.

    Example:
        Where a blob of standard deviation 2 grows, at r pixels from its middle, :math:`r^2 / 4 \, e^{-r^2 / 8}`:

        >>> import torch
        >>> from lightning_invariance import ScalingFlow
        >>> side = torch.arange(29.0) - 14
        >>> blob = torch.exp(-(side[:, None].square() + side.square()) / 8).expand(1, 1, 29, 29)
        >>> ScalingFlow(window=None).tangent(blob, "scaling")[0, 0, 14, 15:19]
        tensor([0.2206, 0.6065, 0.7305, 0.5413])
    """

    def __init__(self, *, window: float | None = 0.125, extent: float = 0.3) -> None:
        super().__init__(window, extent)
        if extent > 10:
            raise ValueError(f"Expected `extent` to be at most 10 (a factor of 22026) but got {extent!r}.")

    @property
    def generators(self) -> tuple[str, ...]:
        return ("scaling",)

    def _sampled(self, n: int, seed: int) -> Action:
        return of_flow(ScalingRange(math.exp(-self.extent), math.exp(self.extent), n, seed), self)

    def _velocity(self, generator: int, right: Tensor, down: Tensor) -> dict[int, Tensor | float]:
        return {-1: right, -2: down}

    def _change(self, x: Tensor, generator: int, t: Tensor) -> Tensor:
        wider = x + zoom_change(x, t, -1)
        return (wider - x) + zoom_change(wider, t, -2)

    def _arguments(self) -> dict[str, object]:
        return {"window": self.window, "extent": self.extent}


class ShearFlow(_PlaneFlow):
    r"""Shears of an image about its centre.

    ``"horizontal"`` moves each row to the right by t times how far it lies below the centre,
    :math:`X x = -p_2 \partial_1 x`; ``"vertical"`` moves each column down by t times how far it lies to the right,
    :math:`X x = -p_1 \partial_2 x`. The derivatives are those of the band-limited interpolation: see `TranslationFlow`
    for where it holds.

    Args:
        window: over which share of the side, at each edge, the motion falls smoothly to none; see `TranslationFlow`.
        extent: how far `sampled` draws t to either side.

    Raises:
        ValueError: if `window` is no finite number above 0 and at most 0.5, or `extent` none above 0.

    Example:
        >>> import torch
        >>> from lightning_invariance import ShearFlow
        >>> column = torch.zeros(1, 1, 5, 5)
        >>> column[..., 2] = 1
        >>> ShearFlow(window=None).move(column, "horizontal", 1)[0, 0].round().abs()
        tensor([[1., 0., 0., 0., 0.],
                [0., 1., 0., 0., 0.],
                [0., 0., 1., 0., 0.],
                [0., 0., 0., 1., 0.],
                [0., 0., 0., 0., 1.]])
    """

    def __init__(self, *, window: float | None = 0.125, extent: float = 0.2) -> None:
        super().__init__(window, extent)

    @property
    def generators(self) -> tuple[str, ...]:
        return ("horizontal", "vertical")

    def _velocity(self, generator: int, right: Tensor, down: Tensor) -> dict[int, Tensor | float]:
        return {-1: down} if generator == 0 else {-2: right}

    def _change(self, x: Tensor, generator: int, t: Tensor) -> Tensor:
        right, down = self._places(x)
        return self._shift_change(x, t * down, -1) if generator == 0 else self._shift_change(x, t * right, -2)

    def _arguments(self) -> dict[str, object]:
        return {"window": self.window, "extent": self.extent}


class _ValueFlow(Flow):
    """Changes the values of images where they are."""

    def __init__(self, extent: float) -> None:
        self.extent = check_extent("extent", extent)

    @property
    def dims(self) -> tuple[int, ...]:
        return (-2, -1)

    @property
    def places(self) -> tuple[int, ...]:
        return ()

    def check(self, x: Tensor) -> None:
        check_flowing(self, x, 2)

    def _arguments(self) -> dict[str, object]:
        return {"extent": self.extent}


class BrightnessFlow(_ValueFlow):
    r"""Adds t to every value of an image: :math:`X x = 1`.

    Args:
        extent: how far `sampled` draws t to either side.

    Raises:
        ValueError: if `extent` is no finite number above 0.

    Example:
        >>> import torch
        >>> from lightning_invariance import BrightnessFlow
        >>> BrightnessFlow().move(torch.tensor([[[0.0, 0.5]]]), "brightness", 0.25)
        tensor([[[0.2500, 0.7500]]])
    """

    def __init__(self, *, extent: float = 0.2) -> None:
        super().__init__(extent)

    @property
    def generators(self) -> tuple[str, ...]:
        return ("brightness",)

    def _move(self, x: Tensor, generator: int, t: Tensor) -> Tensor:
        return x + t.to(x.dtype)

    def _tangent(self, x: Tensor, generator: int) -> Tensor:
        return torch.ones_like(x)


class ContrastFlow(_ValueFlow):
    r"""Multiplies an image's deviations from a grey value by :math:`e^t`: :math:`X x = x - c`.

    Args:
        centre: the value :math:`c` that stays; the mean of each channel of each image if None.
        extent: how far `sampled` draws t to either side.

    Raises:
        ValueError: if `centre` is no finite number, or `extent` none above 0.

    Example:
        >>> import torch
        >>> from lightning_invariance import ContrastFlow
        >>> ContrastFlow().tangent(torch.tensor([[[0.0, 1.0]]]), "contrast")
        tensor([[[-0.5000,  0.5000]]])
    """

    def __init__(self, *, centre: float | None = None, extent: float = 0.3) -> None:
        if centre is not None:
            check_number("centre", centre)
        self.centre = None if centre is None else float(centre)
        super().__init__(extent)

    @property
    def generators(self) -> tuple[str, ...]:
        return ("contrast",)

    def _move(self, x: Tensor, generator: int, t: Tensor) -> Tensor:
        return x + t.expm1() * self._tangent(x, generator)

    def _tangent(self, x: Tensor, generator: int) -> Tensor:
        return x - (x.mean(dim=(-2, -1), keepdim=True) if self.centre is None else self.centre)

    def _arguments(self) -> dict[str, object]:
        return {"centre": self.centre, "extent": self.extent}


def _is_whole(side: int, other: int) -> bool:
    return side % other == 0 or other % side == 0


def places_from_centre(x: Tensor) -> tuple[Tensor, Tensor]:
    """How far pixels lie to the right of the centre, ``(1, W)``, and below it, ``(H, 1)``."""
    height, width = x.shape[-2:]
    right = torch.arange(width, dtype=x.dtype, device=x.device) - (width - 1) / 2
    down = torch.arange(height, dtype=x.dtype, device=x.device) - (height - 1) / 2
    return right[None, :], down[:, None]
