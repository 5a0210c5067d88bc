"""Several tensors of one row a sample as a single one, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod

import torch
from torch import Tensor

_EXACT_IN_DOUBLE = 2**53


@dataclass(frozen=True)
class Packing:
    """How tensors of one row a sample are laid out side by side in rows ``(B, n)``.

    Attributes:
        shapes: of each tensor's rows.
        dtypes: of each tensor.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Packing:
        """The layout of these tensors."""
        return cls(tuple(tuple(each.shape[1:]) for each in tensors), tuple(each.dtype for each in tensors))

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds them all exactly."""
        return common_dtype(self.dtypes)

    @property
    def sizes(self) -> list[int]:
        """How many columns each tensor takes."""
        return [prod(shape) for shape in self.shapes]

    def pack(self, tensors: Iterable[Tensor]) -> Tensor:
        """Tensors of this layout, of as many rows as they like, as one.

        Raises:
            ValueError: if a tensor is not laid out so, or holds an integer beyond 2**53 beside floating point.
        """
        tensors = tuple(tensors)
        if Packing.of(tensors) != self:
            got = [(tuple(each.shape[1:]), each.dtype) for each in tensors]
            raise ValueError(
                f"Expected `tensors` to have the shapes {list(self.shapes)} a row and the dtypes {list(self.dtypes)} "
                f"but got {got}."
            )
        if self.dtype.is_floating_point:
            for place, tensor in enumerate(tensors):
                _check_exact(place, tensor)
        return self.joined(tensors)

    def joined(self, tensors: Iterable[Tensor]) -> Tensor:
        """The same, of tensors that are known to be right."""
        sizes = zip(tensors, self.sizes, strict=True)
        return torch.cat([tensor.reshape(len(tensor), size).to(self.dtype) for tensor, size in sizes], dim=1)

    def unpack(self, packed: Tensor, before: int = 1) -> tuple[Tensor, ...]:
        """The tensors again, of their own shapes and dtypes; those of floating point differentiable.

        Args:
            packed: shape ``(rows, n)``, or more dimensions in front.
            before: how many dimensions stand in front of the columns.
        """
        parts = zip(self.parts(packed, before), self.dtypes, strict=True)
        return tuple(part.to(dtype) for part, dtype in parts)

    def parts(self, packed: Tensor, before: int = 1) -> list[Tensor]:
        """The tensors in the dtype of `packed`."""
        parts = packed.split(self.sizes, dim=before)
        front = packed.shape[:before]
        return [part.reshape(*front, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def each(self, packed: Tensor, moves: Iterable[Callable[[Tensor], Tensor]]) -> Tensor:
        """Packed rows with something done to each tensor in them; those of floating point have their own dtype."""
        parts = zip(self.parts(packed), self.dtypes, strict=True)
        tensors = [part.to(dtype) if dtype.is_floating_point else part for part, dtype in parts]
        return self.joined(move(tensor) for move, tensor in zip(moves, tensors, strict=True))


def common_dtype(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The narrowest dtype that holds values of all `dtypes` exactly, integers beyond 2**53 beside floats excepted."""
    common = reduce(torch.promote_types, dtypes)
    if not common.is_floating_point:
        return common
    whole = [dtype for dtype in dtypes if not dtype.is_floating_point and dtype != torch.bool]
    bits = max((torch.iinfo(dtype).max.bit_length() for dtype in whole), default=1)
    wide_enough = (dtype for dtype in (common, torch.float32) if 2**bits * torch.finfo(dtype).eps <= 2)
    return next(wide_enough, torch.float64)


def _check_exact(place: int, tensor: Tensor) -> None:
    """Raises where a float64 would round a whole number (this waits for the device)."""
    wide = not tensor.is_floating_point() and tensor.element_size() == 8
    if wide and bool(((tensor > _EXACT_IN_DOUBLE) | (tensor < -_EXACT_IN_DOUBLE)).any()):
        raise ValueError(
            f"Expected input {place}, beside one of floating point, to hold no integer beyond 2**53 but got "
            f"{int(tensor.min())} to {int(tensor.max())}."
        )
