"""The named groups that act exactly on sampled data: rotations by 90°, flips, shifts."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from lightning_invariance._checks import check_count, format_sizes
from lightning_invariance.actions._motion_sizes import MotionSizes
from lightning_invariance.actions._permutation import PermutationAction


class _PlanarSymmetries(PermutationAction):
    """Rotations by 90° and flips of the last two dimensions: ``4·f + r`` flips ``f`` times, then turns ``r``."""

    _flips = 1

    def __init__(self) -> None:
        pass

    def __len__(self) -> int:
        return 4 * self._flips

    @property
    def labels(self) -> tuple[str, ...]:
        turns = ("identity", "rot90", "rot180", "rot270")
        return turns if self._flips == 1 else (*turns, "flip", *(f"flip_{turn}" for turn in turns[1:]))

    def index_table(self, sizes: tuple[int, ...]) -> Tensor:
        height, width = sizes
        # Twice the coordinates, from the centre, so that the centre of an even image is an integer too.
        rows, columns = torch.meshgrid(
            2 * torch.arange(height, device="cpu") - (height - 1),
            2 * torch.arange(width, device="cpu") - (width - 1),
            indexing="ij",
        )
        tables = []
        for element in range(len(self)):
            flips, turns = divmod(element, 4)
            row, column = rows, columns
            for _ in range(turns):  # a turn by 90° reads row r, column c at row c, column -r
                row, column = column, -row
            if flips:
                column = -column
            tables.append((row + height - 1) // 2 * width + (column + width - 1) // 2)
        return torch.stack(tables).flatten(1)

    @property
    def _faithful_sizes(self) -> tuple[int, ...]:
        return (2, 2)

    def _check_sizes(self, sizes: tuple[int, ...]) -> None:
        height, width = sizes
        if height != width:
            small, large = min(sizes), max(sizes)
            # Three colours behind the pixels are no image 3 wide.
            channels = " (or move channels in front, if the last dimension has these)" if small in (1, 3, 4) else ""
            raise ValueError(
                f"Expected `x` to have square images in its last two dimensions for {self!r} "
                f"but got {format_sizes(sizes)}: crop them to {small}×{small} or pad them to {large}×{large}{channels}."
            )

    def _permute(self, x: Tensor, element: int) -> Tensor:
        flips, turns = element // 4, element % 4
        return torch.rot90(x.flip(-1) if flips else x, turns, (-2, -1))

    def _arguments(self) -> dict[str, object]:
        return {}


class C4(_PlanarSymmetries):
    r"""The four rotations of an image by 90°, counter-clockwise: the paper's :math:`R^2_4`.

    Acts on the last two dimensions, which must be square; any others (channels, depth, time) go along. Exact bit for
    bit.

    Example:
        >>> import torch
        >>> from lightning_invariance import C4
        >>> len(C4()), C4().labels
        (4, ('identity', 'rot90', 'rot180', 'rot270'))
        >>> x = torch.randn(2, 3, 8, 8)
        >>> torch.equal(C4().act(x, 1), torch.rot90(x, 1, (-2, -1)))
        True
        >>> C4().act(torch.randn(2, 3, 28, 30), 1)
        Traceback (most recent call last):
            ...
        ValueError: Expected `x` to have square images in its last two dimensions for C4() but got 28×30: crop them to
            28×28 or pad them to 30×30.
    """

    def motion_sizes(self, x: Tensor) -> MotionSizes:
        """The angles; see `Action.motion_sizes`."""
        return MotionSizes("angle", "degrees", (0.0, 90.0, 180.0, 270.0))


class D4(_PlanarSymmetries):
    r"""The eight symmetries of the square: elements 0 to 3 are those of `C4`, 4 to 7 flip left and right first.

    Acts on the last two dimensions, which must be square. Exact bit for bit.

    Example:
        >>> from lightning_invariance import D4
        >>> len(D4()), D4().cayley_table[1, 4].item(), D4().cayley_table[4, 1].item()  # they do not commute
        (8, 5, 7)
    """

    _flips = 2


class _Reversal(PermutationAction):
    """One dimension, read backwards."""

    _dim = -1
    _name = "flip"

    def __init__(self) -> None:
        pass

    def __len__(self) -> int:
        return 2

    @property
    def labels(self) -> tuple[str, ...]:
        return ("identity", self._name)

    @property
    def dims(self) -> tuple[int, ...]:
        return (self._dim,)

    def index_table(self, sizes: tuple[int, ...]) -> Tensor:
        index = torch.arange(prod(sizes), device="cpu").reshape(sizes)
        backwards = torch.arange(sizes[self._dim] - 1, -1, -1, device="cpu")
        return torch.stack([index, index.index_select(self._dim, backwards)]).flatten(1)

    @property
    def _faithful_sizes(self) -> tuple[int, ...]:
        return (2,) * -self._dim

    def _check_sizes(self, sizes: tuple[int, ...]) -> None:
        pass

    def _permute(self, x: Tensor, element: int) -> Tensor:
        return x.flip(self._dim)

    def _arguments(self) -> dict[str, object]:
        return {}


class HorizontalFlip(_Reversal):
    """Left and right exchanged: the last dimension reversed. Exact bit for bit.

    Example:
        >>> import torch
        >>> from lightning_invariance import HorizontalFlip
        >>> HorizontalFlip().act(torch.tensor([[[1, 2], [3, 4]]]), 1)
        tensor([[[2, 1],
                 [4, 3]]])
    """


class VerticalFlip(_Reversal):
    """Top and bottom exchanged: the last dimension but one reversed. Exact bit for bit.

    Example:
        >>> import torch
        >>> from lightning_invariance import VerticalFlip
        >>> VerticalFlip().act(torch.tensor([[[1, 2], [3, 4]]]), 1)
        tensor([[[3, 4],
                 [1, 2]]])
    """

    _dim = -2


class TimeReversal(_Reversal):
    """A time series read backwards, shape ``(B, ..., time)``. Exact bit for bit.

    Example:
        >>> import torch
        >>> from lightning_invariance import TimeReversal
        >>> TimeReversal().act(torch.tensor([[1, 2, 3]]), 1)
        tensor([[3, 2, 1]])
    """

    _name = "reversed"


class CyclicTranslations(PermutationAction):
    r"""Cyclic shifts of one dimension by multiples of its size over `order`.

    ``CyclicTranslations(3)`` on images 36 pixels wide is the paper's :math:`T^2_3`: shifts by 0, 12 and 24 pixels.
    What leaves on one side enters on the other. Exact bit for bit.

    Args:
        order: the number of shifts, the identity included; it must divide the dimension's size.
        dim: the dimension that is shifted, counted from the end (negative).

    Raises:
        ValueError: if `order` is no integer of at least 1, or `dim` is not negative.

    Example:
        >>> import torch
        >>> from lightning_invariance import CyclicTranslations
        >>> CyclicTranslations(2).act(torch.tensor([[1, 2, 3, 4]]), 1)
        tensor([[3, 4, 1, 2]])
    """

    def __init__(self, order: int, dim: int = -1) -> None:
        check_count("order", order)
        if not isinstance(dim, int) or dim >= 0:
            raise ValueError(f"Expected `dim` to be negative (counted from the end) but got {dim!r}.")
        self.order = order
        self.dim = dim

    def __len__(self) -> int:
        return self.order

    @property
    def labels(self) -> tuple[str, ...]:
        return ("identity", *(f"shift{step}of{self.order}" for step in range(1, self.order)))

    @property
    def dims(self) -> tuple[int, ...]:
        return (self.dim,)

    def motion_sizes(self, x: Tensor) -> MotionSizes:
        """How many places each shift goes; see `Action.motion_sizes`."""
        step = x.shape[self.dim] // self.order
        return MotionSizes("shift", "places", tuple(float(step * element) for element in range(self.order)))

    def index_table(self, sizes: tuple[int, ...]) -> Tensor:
        index = torch.arange(prod(sizes), device="cpu").reshape(sizes)
        size = sizes[self.dim]
        shifted = [
            index.index_select(self.dim, (torch.arange(size, device="cpu") - size // self.order * step) % size)
            for step in range(self.order)
        ]
        return torch.stack(shifted).flatten(1)

    @property
    def _faithful_sizes(self) -> tuple[int, ...]:
        return (self.order, *(1,) * (-self.dim - 1))

    def _check_sizes(self, sizes: tuple[int, ...]) -> None:
        size = sizes[self.dim]
        if size % self.order or size == 0:
            below, above = size // self.order * self.order, (size // self.order + 1) * self.order
            works = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"Expected the size of `x` in dimension {self.dim} to be a multiple of {self.order} for {self!r} "
                f"but got {size}: {works} would work."
            )

    def _permute(self, x: Tensor, element: int) -> Tensor:
        return x.roll(x.shape[self.dim] // self.order * element, self.dim)

    def _arguments(self) -> dict[str, object]:
        return {"order": self.order, "dim": self.dim}
