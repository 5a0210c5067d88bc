"""How a finite group moves the places of a grid: read off an action, so that it holds for grids of any size."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from lightning_invariance._checks import format_sizes
from lightning_invariance.actions import Action
from lightning_invariance.actions._base import permutation_group_table

_HAS = "those that move places exactly: C4, D4, flips, CyclicTranslations, TimeReversal, PermutationAction, products"


@dataclass(frozen=True)
class AxisMap:
    """Where one axis of a moved grid reads from: axis `source`, backwards if `flipped`, shifted by a share of it."""

    source: int
    flipped: bool
    shift: Fraction


class SpatialGroup:
    r"""A finite group that moves the places of a grid, :math:`(g x)[p] = x[\pi_g(p)]`.

    Where each :math:`\pi_g` is an affine map of the grid (a turn, a flip, a shift), it is known for feature maps and
    kernels of any size; where it is another permutation, for the grid of the input alone.

    Args:
        action: the group.
        x: a batch that it acts on, shape ``(B, ...)``.

    Raises:
        ValueError: if the action is drawn, interpolates, changes values, or its elements are no group.
    """

    def __init__(self, action: Action, x: Tensor) -> None:
        refuse_drawn(action)
        action.check(x)
        self.action = action
        self.dims = _moved_dims(action, x)
        self.sizes = tuple(x.shape[dim] for dim in self.dims)
        self.table = _place_table(action, x, self.dims, self.sizes)
        cayley = permutation_group_table(self.table)
        if cayley is None:
            raise ValueError(
                f"Expected `action` to be a group in which no element occurs twice, but {action!r} is none on places "
                f"of {format_sizes(self.sizes)}: a product of two of its elements is not listed, or two act alike."
            )
        self.cayley = cayley
        self.maps = _affine_maps(self.table, self.sizes)
        if self.maps is None:
            self.dims, self.sizes, self.table = _without_axes_that_stay(self.dims, self.sizes, self.table)
            self.maps = _affine_maps(self.table, self.sizes)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def inverse(self) -> Tensor:
        """The index of each element's inverse."""
        return (self.cayley == 0).int().argmax(dim=1)

    @property
    def axes(self) -> int:
        """How many axes the grid has."""
        return len(self.dims)

    @cached_property
    def partners(self) -> tuple[tuple[int, ...], ...]:
        """For each axis, the axes that elements exchange it with, itself among them."""
        if self.maps is None:
            return (tuple(range(self.axes)),) * self.axes
        groups = [{axis} for axis in range(self.axes)]
        for element in self.maps:
            for axis, one in enumerate(element):
                merged = groups[axis] | groups[one.source]
                for member in merged:
                    groups[member] = merged
        return tuple(tuple(sorted(group)) for group in groups)

    def flips(self, axis: int) -> bool:
        """Whether an element reads the axis, or one that it is exchanged with, backwards."""
        return self.maps is not None and any(
            element[each].flipped for element in self.maps for each in self.partners[axis]
        )

    def shifts(self, axis: int) -> bool:
        """Whether an element shifts the axis, or one that it is exchanged with."""
        return self.maps is not None and any(
            element[each].shift for element in self.maps for each in self.partners[axis]
        )

    def fits(self, axis: int, size: int) -> bool:
        """Whether the shifts of an axis are whole numbers of places where it has this size."""
        return self.maps is None or all((element[axis].shift * size).denominator == 1 for element in self.maps)

    def smallest(self, axis: int) -> int:
        """The size of which an axis has to be a multiple."""
        if self.maps is None:
            return 1
        denominators = [element[axis].shift.denominator for element in self.maps]
        return max(denominators, default=1)

    def coordinates(self, element: int, axes: tuple[int, ...], sizes: tuple[int, ...], shifts: bool) -> list[Tensor]:
        r"""Where the moved grid reads from: for each of some axes, a tensor of their sizes.

        Args:
            element: g.
            axes: axes that are exchanged among themselves alone.
            sizes: theirs.
            shifts: whether shifts move it; they do not move kernels.
        """
        assert self.maps is not None
        grid = torch.meshgrid(*(torch.arange(size, device="cpu") for size in sizes), indexing="ij")
        read = []
        for axis, size in zip(axes, sizes, strict=True):
            one = self.maps[element][axis]
            place = grid[axes.index(one.source)]
            place = size - 1 - place if one.flipped else place
            read.append((place + int(one.shift * size)) % size if shifts else place)
        return read

    def listed(self, element: int) -> list[Tensor]:
        """Where the moved grid reads from, for the grid of the input alone."""
        return list(torch.unravel_index(self.table[element].reshape(self.sizes), self.sizes))

    def keeps(self, element: int, axis: int, size: int, shifts: bool) -> bool:
        """Whether an element leaves an axis of this size as it is."""
        assert self.maps is not None
        one = self.maps[element][axis]
        shifted = shifts and int(one.shift * size) % size
        return one.source == axis and not one.flipped and not shifted

    def keeps_listed(self, element: int, axis: int) -> bool:
        """Whether an element leaves an axis of the grid of the input as it is."""
        return _is_own(self.listed(element)[axis], axis, self.sizes)

    def same_motion(self, other: SpatialGroup) -> bool:
        """Whether another grid is moved by the same maps."""
        if self.maps is None or other.maps is None:
            return self.sizes == other.sizes and torch.equal(self.table, other.table)
        return self.maps == other.maps


def refuse_drawn(action: Action) -> None:
    """Raises a `ValueError` where the elements of an action are draws from a larger group."""
    if action.drawn:
        raise ValueError(
            f"Expected `action` to be a finite group but {action!r} lists draws from a larger one: weights are kept "
            f"invariant to {_HAS}."
        )


def _moved_dims(action: Action, x: Tensor) -> tuple[int, ...]:
    """The (negative) dimensions whose places are moved."""
    dims = action.places_in(x)
    if dims is None:
        dims = action.dims
    if dims is None:
        dims = tuple(range(1 - x.ndim, 0))
    if not dims:
        raise ValueError(
            f"Expected `action` to move places but {action!r} changes values where they are: weights are kept "
            f"invariant to {_HAS}."
        )
    return tuple(sorted(dims))


def _place_table(action: Action, x: Tensor, dims: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
    """The permutations of the places, shape ``(|G|, places)``: found by moving their numbers."""
    shape = [x.shape[dim] if dim in dims else 1 for dim in range(1 - x.ndim, 0)]
    places = torch.arange(prod(sizes), dtype=torch.float64, device="cpu").reshape(1, *shape)
    whole = places.expand(1, *x.shape[1:]).contiguous()
    first = (slice(None), *(slice(None) if dim in dims else slice(0, 1) for dim in range(1 - x.ndim, 0)))
    rows = []
    for element in range(len(action)):
        moved = action.act(whole, element)
        row = moved[first]
        whole_numbers = row.round()
        ordered = whole_numbers.flatten().sort().values
        is_permutation = torch.equal(ordered, places.flatten()) and bool((row - whole_numbers).abs().max() < 1e-6)
        if not is_permutation or not torch.equal(moved, row.expand(moved.shape)):
            raise ValueError(
                f"Expected `action` to move values from place to place but {action.labels[element]!r} of {action!r} "
                f"interpolates or changes them: weights are kept invariant to {_HAS}."
            )
        rows.append(whole_numbers.flatten().long())
    return torch.stack(rows)


def _without_axes_that_stay(
    dims: tuple[int, ...], sizes: tuple[int, ...], table: Tensor
) -> tuple[tuple[int, ...], tuple[int, ...], Tensor]:
    """The dimensions, their sizes and the permutations, without axes along which nothing moves or differs.

    Points that are exchanged with all that they have are an axis of points; what they have is none of the grid's.
    """
    for axis in reversed(range(len(sizes))):
        others = [each for each in range(len(sizes)) if each != axis]
        read = torch.unravel_index(table.reshape(-1, *sizes), sizes)
        moves = not _is_own(read[axis], axis, sizes)
        if moves or any(not torch.equal(read[each], read[each].roll(1, 1 + axis)) for each in others) or not others:
            continue
        rest = tuple(sizes[each] for each in others)
        places = (read[each].select(1 + axis, 0).flatten(1) for each in others)
        table = torch.stack([place * prod(rest[order + 1 :]) for order, place in enumerate(places)]).sum(dim=0)
        dims, sizes = tuple(dims[each] for each in others), rest
    return dims, sizes, table


def _is_own(read: Tensor, axis: int, sizes: tuple[int, ...]) -> bool:
    """Whether the places of an axis, shape ``(..., *sizes)``, are read from where they are."""
    own = torch.arange(sizes[axis], device="cpu").view([-1 if each == axis else 1 for each in range(len(sizes))])
    return torch.equal(read, own.expand_as(read))


def _affine_maps(table: Tensor, sizes: tuple[int, ...]) -> tuple[tuple[AxisMap, ...], ...] | None:
    """The maps of each element, axis by axis; None where one is no turn, flip or shift of the grid."""
    elements = [_affine_map(row.reshape(sizes), sizes) for row in table]
    return None if any(each is None for each in elements) else tuple(each for each in elements if each is not None)


def _affine_map(row: Tensor, sizes: tuple[int, ...]) -> tuple[AxisMap, ...] | None:
    read = torch.unravel_index(row, sizes)  # for each axis that is read, where
    axes = range(len(sizes))
    origin = [int(each.flatten()[0]) for each in read]
    found: list[AxisMap | None] = [None] * len(sizes)
    for source in axes:  # one step along an axis of the moved grid is a step along one axis of the grid
        if sizes[source] == 1:
            continue
        step = [slice(0, 1)] * len(sizes)
        step[source] = slice(1, 2)
        difference = [(int(read[axis][tuple(step)]) - origin[axis]) % sizes[axis] for axis in axes]
        moved = [axis for axis in axes if difference[axis]]
        if len(moved) != 1 or difference[moved[0]] not in (1, sizes[moved[0]] - 1):
            return None
        axis = moved[0]
        flipped = difference[axis] != 1 or (sizes[axis] == 2 and origin[axis] == 1)
        start = (origin[axis] - (sizes[axis] - 1 if flipped else 0)) % sizes[axis]
        if found[axis] is not None or sizes[axis] != sizes[source]:
            return None
        found[axis] = AxisMap(source, flipped, Fraction(start, sizes[axis]))
    maps = tuple(AxisMap(axis, False, Fraction(0)) if one is None else one for axis, one in enumerate(found))
    grid = torch.meshgrid(*(torch.arange(size, device="cpu") for size in sizes), indexing="ij")
    for axis, one in enumerate(maps):
        place = sizes[axis] - 1 - grid[one.source] if one.flipped else grid[one.source]
        if not torch.equal((place + int(one.shift * sizes[axis])) % sizes[axis], read[axis]):
            return None
    return maps
