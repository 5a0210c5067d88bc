r"""How a group acts on a tensor: each dimension is a product of *factors*, and each factor has a representation.

A factor is `Trivial` (it stays), an axis of a grid (`Places`, or `Listed` for a grid that is permuted at will),
channels whose representation is yet to be found (`Channels`), or several dimensions one behind the other (`Joined`). A
dimension that was flattened has several factors, the slowest first. `Solver` makes dimensions equal, as a sum or a
product with weights asks for, by finding out what their channels are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lightning_invariance.symmetry._fields import FieldKinds
from lightning_invariance.symmetry._group import SpatialGroup


class Refusal(ValueError):
    """Something that cannot be made invariant; the message says why, and what to change.

    Args:
        message: for people.
        of_size: whether an input of another size might do.
    """

    def __init__(self, message: str, of_size: bool = False) -> None:
        super().__init__(message)
        self.of_size = of_size


@dataclass(frozen=True)
class Trivial:
    """Entries that stay where they are."""

    size: int


@dataclass(frozen=True)
class Places:
    """An axis of a grid.

    Attributes:
        axis: which of the group's.
        size: how many places.
        shifts: whether the group's shifts move it; they do not move a kernel, or the places inside of a patch.
        wrapped: how many of the places repeat those of the other end, in front and behind.
    """

    axis: int
    size: int
    shifts: bool
    wrapped: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Listed:
    """An axis of a grid of one size, whose places are permuted at will.

    Attributes:
        axis: which of the grid's.
        size: how many places.
        group: how they are permuted, element by element.
    """

    axis: int
    size: int
    group: SpatialGroup


class Channels:
    """Channels whose representation is not known yet.

    Args:
        size: how many.
        still: whether they are trivial if nothing else is found: those of constants are.

    Attributes:
        found: what they were found to be.
        kernel: the elements that leave them where they are, if nothing else is found; the identity at least.
        summed: whether they are of a dimension of a weight that an operation sums over.
        made: whether they are of one that an operation makes its output's channels of.
        inherited: whether they are the part of these that an operation has from its input: the groups of a convolution.
    """

    def __init__(self, size: int, still: bool = False) -> None:
        self.size = size
        self.still = still
        self.found: Dim | None = None
        self.kernel = frozenset({0})
        self.summed = False
        self.made = False
        self.inherited = False

    def __repr__(self) -> str:
        return f"Channels({self.size})" if self.found is None else repr(self.found)


@dataclass(frozen=True)
class Joined:
    """Dimensions one behind the other."""

    parts: tuple[Dim, ...]

    @property
    def size(self) -> int:
        """The sum of theirs."""
        return sum(size_of(part) for part in self.parts)


Factor = Trivial | Places | Listed | Channels | Joined
Dim = tuple[Factor, ...]
Dims = tuple[Dim, ...]


def size_of(dim: Iterable[Factor]) -> int:
    """How many entries a dimension has."""
    return prod(factor.size for factor in dim)


def trivial(size: int) -> Dim:
    """A dimension that stays."""
    return () if size == 1 else (Trivial(size),)


def channels(size: int, still: bool = False) -> Dim:
    """A dimension of which nothing is known."""
    return () if size == 1 else (Channels(size, still),)


def resolve(dim: Iterable[Factor]) -> Dim:
    """What is known of a dimension by now: no factors of size 1, neighbours that stay or belong together merged."""
    found: list[Factor] = []
    for factor in dim:
        parts: Iterable[Factor] = (factor,)
        if isinstance(factor, Channels) and factor.found is not None:
            parts = resolve(factor.found)
        elif isinstance(factor, Joined):
            parts = _resolve_joined(factor)
        for part in parts:
            if part.size != 1:
                found.append(part)
    return _merged(found)


def _resolve_joined(joined: Joined) -> Dim:
    parts: list[Dim] = []
    for part in joined.parts:
        resolved = resolve(part)
        if len(resolved) == 1 and isinstance(resolved[0], Joined):
            parts += resolved[0].parts
        elif size_of(resolved):
            parts.append(resolved)
    if all(all(isinstance(factor, Trivial) for factor in part) for part in parts):
        return trivial(sum(size_of(part) for part in parts))
    return parts[0] if len(parts) == 1 else (Joined(tuple(parts)),)


def _merged(factors: Sequence[Factor]) -> Dim:
    merged: list[Factor] = []
    for factor in factors:
        last = merged[-1] if merged else None
        if isinstance(last, Trivial) and isinstance(factor, Trivial):
            merged[-1] = Trivial(last.size * factor.size)
        elif (
            isinstance(last, Places)
            and isinstance(factor, Places)
            and last.axis == factor.axis
            and not factor.shifts
            and not any((*last.wrapped, *factor.wrapped))
        ):  # patches and the places in them
            merged[-1] = Places(last.axis, last.size * factor.size, last.shifts)
        else:
            merged.append(factor)
    return tuple(merged)


class Solver:
    """Makes dimensions equal by finding what their channels are.

    Args:
        group: how the grid is moved.
    """

    def __init__(self, group: SpatialGroup) -> None:
        self.group = group
        self.names_dimensions = True  # of places, in words
        self._kinds: dict[frozenset[int], FieldKinds] = {}

    # Equations ------------------------------------------------------------------------------------------------------

    def equate(self, first: Dim, second: Dim) -> None:
        """Makes two dimensions of one size transform alike.

        Raises:
            Refusal: if they cannot.
        """
        left, right = list(resolve(first)), list(resolve(second))
        if size_of(left) != size_of(right):
            raise Refusal(f"{self.in_words(first)} and {self.in_words(second)} have other sizes")
        while left and right:
            a, b = left[0], right[0]
            if (a == b and not isinstance(a, Channels)) or a is b:
                del left[0], right[0]
                continue
            if isinstance(b, Channels) and not isinstance(a, Channels):
                left, right, a, b = right, left, b, a
            if isinstance(a, Channels) and self._bind_to_front(a, right):
                del left[0]
            elif a.size == b.size:
                self._equate_factors(a, b)
                del left[0], right[0]
            else:
                # The sizes have a common front, or the larger is cut into one of the smaller's size and a rest.
                small, large = (left, right) if a.size < b.size else (right, left)
                try:
                    large[:1] = self.cut_factor(large[0], small[0].size)
                except Refusal:  # no structure in common but that of entries that stay
                    self.settle(tuple(left))
                    self.settle(tuple(right))
                    return
                continue  # what was cut would be merged again
            left, right = list(resolve(left)), list(resolve(right))

    def _bind_to_front(self, unknown: Channels, other: list[Factor]) -> bool:
        """Binds channels to the first few factors of another dimension where these are as many; and takes them off."""
        for count in range(1, len(other) + 1):
            front = tuple(other[:count])
            size = size_of(front)
            if size == unknown.size:
                if not any(unknown is each for each in front):
                    self._bind(unknown, front)
                del other[:count]
                return True
            if size > unknown.size:
                return False
        return False

    def _bind(self, unknown: Channels, found: Dim) -> None:
        if _contains(found, unknown):
            self.settle(found)
            return
        if len(found) == 1 and isinstance(found[0], Channels):
            found[0].still = found[0].still and unknown.still
        unknown.found = found

    def _equate_factors(self, a: Factor, b: Factor) -> None:
        if isinstance(a, Trivial) or isinstance(b, Trivial):
            self.settle((b if isinstance(a, Trivial) else a,))
        elif isinstance(a, Joined) and isinstance(b, Joined):
            self._equate_joined(a, b)
        elif isinstance(a, Joined) or isinstance(b, Joined):
            self.settle((a,))
            self.settle((b,))
        else:
            raise Refusal(f"{self.in_words((a,))} would have to move as {self.in_words((b,))} does")

    def _equate_joined(self, a: Joined, b: Joined) -> None:
        left, right = list(a.parts), list(b.parts)
        while left and right:
            small, large = (left, right) if size_of(left[0]) <= size_of(right[0]) else (right, left)
            size = size_of(small[0])
            if size_of(large[0]) > size:
                large[:1] = self.cut(large[0], [size, size_of(large[0]) - size])
            self.equate(left.pop(0), right.pop(0))

    def settle(self, dim: Dim) -> None:
        """Makes a dimension trivial.

        Raises:
            Refusal: if it has places, which move.
        """
        for factor in resolve(dim):
            if isinstance(factor, Channels):
                factor.found = trivial(factor.size)
            elif isinstance(factor, Joined):
                for part in factor.parts:
                    self.settle(part)
            elif not isinstance(factor, Trivial):
                raise Refusal(f"{self.in_words((factor,))}, which the group moves, would have to stay")

    # Cuts -----------------------------------------------------------------------------------------------------------

    def cut_factor(self, factor: Factor, front: int) -> list[Factor]:
        """A factor as a product whose first factor has size `front`.

        Raises:
            Refusal: if it is none.
        """
        rest, left_over = divmod(factor.size, front)
        if left_over:
            raise Refusal(f"{self.in_words((factor,))} cannot be split into {front} equal parts")
        if isinstance(factor, Trivial):
            return [Trivial(front), Trivial(rest)]
        if isinstance(factor, Channels):
            pair: list[Factor] = [Channels(front, factor.still), Channels(rest, factor.still)]
            factor.found = tuple(pair)
            return pair
        if isinstance(factor, Joined):  # equal pieces, one behind the other
            first, *others = self.cut((factor,), [rest] * front)
            for other in others:
                self.equate(first, other)
            return [Trivial(front), *resolve(first)]
        if isinstance(factor, Places) and not any(factor.wrapped):
            if factor.shifts and not self.group.fits(factor.axis, front):
                raise Refusal(
                    f"{front} patches of {rest} places cannot be shifted as {self.in_words((factor,))} are: their "
                    f"number has to be a multiple of {self.group.smallest(factor.axis)}"
                )
            return [Places(factor.axis, front, factor.shifts), Places(factor.axis, rest, False)]
        raise Refusal(f"{self.in_words((factor,))} cannot be split into {front} × {rest}")

    def view(self, dims: Dims, sizes: Sequence[int]) -> Dims:
        """The dimensions of a tensor that is viewed in other sizes."""
        factors = [factor for dim in dims for factor in resolve(dim)]
        new: list[Dim] = []
        for size in sizes:
            taken: list[Factor] = []
            while size_of(taken) < size:
                missing = size // size_of(taken)
                if factors[0].size > missing:
                    factors[:1] = self.cut_factor(factors[0], missing)
                taken.append(factors.pop(0))
            if size_of(taken) != size:
                raise Refusal(f"{self.in_words(tuple(taken))} cannot be viewed as a dimension of {size}")
            new.append(tuple(taken))
        return tuple(new)

    def cut(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """A dimension in pieces, one behind the other.

        Raises:
            Refusal: if a piece takes some of the places of a grid.
        """
        factors = resolve(dim)
        sizes = list(sizes)
        kept = [size for size in sizes if size]
        if len(kept) <= 1:
            return [factors if size else (Trivial(0),) for size in sizes]
        head, rest = factors[0], factors[1:]
        inside = size_of(rest)
        if any(size % inside for size in sizes):
            raise Refusal(f"a piece of {self.in_words(dim)} is taken that the group does not keep together")
        counts = [size // inside for size in sizes]
        if isinstance(head, Channels):
            pieces = [channels(count, head.still) if count else (Trivial(0),) for count in counts]
            head.found = (Joined(tuple(piece for piece, count in zip(pieces, counts, strict=True) if count)),)
        elif isinstance(head, Trivial):
            pieces = [trivial(count) if count else (Trivial(0),) for count in counts]
        elif isinstance(head, Joined):
            pieces = self._cut_joined(head, counts)
        else:
            raise Refusal(f"some of {self.in_words((head,))} are taken, which the group exchanges with the others")
        return [(*piece, *rest) if size else (Trivial(0),) for piece, size in zip(pieces, sizes, strict=True)]

    def _cut_joined(self, joined: Joined, counts: Sequence[int]) -> list[Dim]:
        left = list(joined.parts)
        pieces: list[Dim] = []
        for count in counts:
            taken: list[Dim] = []
            missing = count
            while missing:
                size = size_of(left[0])
                if size > missing:
                    left[:1] = self.cut(left[0], [missing, size - missing])
                    size = missing
                taken.append(left.pop(0))
                missing -= size
            pieces.append((Joined(tuple(taken)),) if taken else (Trivial(0),))
        return pieces

    # What is found --------------------------------------------------------------------------------------------------

    def kinds_of(self, channels: Channels) -> FieldKinds:
        """The fields that some channels can be given."""
        if channels.kernel not in self._kinds:
            self._kinds[channels.kernel] = FieldKinds(self.group.cayley, channels.kernel)
        return self._kinds[channels.kernel]

    def stays(self, factor: Factor) -> bool:
        """Whether no element moves a factor that is trivial or channels."""
        if isinstance(factor, Channels):
            return factor.still or len(factor.kernel) == len(self.group)
        return isinstance(factor, Trivial)

    def check_closed(self, dims: Iterable[Dim], what: str) -> None:
        """Raises a `Refusal` where an axis of a grid is there without the one that the group exchanges it with."""
        lacking = self.unpaired(dims)
        if lacking:
            raise Refusal(f"{what} {self.in_words((lacking,))} without the axis that the group exchanges it with")

    def unpaired(self, dims: Iterable[Dim]) -> Factor | None:
        """An axis of a grid whose partner is not there, or has another size; None where there is none."""
        factors = [factor for dim in dims for factor in resolve(dim)]
        try:
            self._blocks(factors)
        except _UnpairedError as error:
            return error.factor
        return None

    def table(self, dims: Dims, element: int) -> Tensor:
        """Where the entries of a moved tensor are read from, flat: element g moves v to ``v.flatten()[table]``."""
        factors = [factor for dim in dims for factor in resolve(dim)]
        sizes = [factor.size for factor in factors]
        strides = [prod(sizes[place + 1 :]) for place in range(len(sizes))]
        index = torch.zeros([1] * len(sizes), dtype=torch.int64, device="cpu")
        for block in self._blocks(factors):
            shape = [size if place in block else 1 for place, size in enumerate(sizes)]
            order = sorted(block)
            for place, read in zip(block, self._read(tuple(factors[each] for each in block), element), strict=True):
                placed = read.permute([block.index(each) for each in order]).reshape(shape)
                index = index + strides[place] * placed
        return index.expand(sizes).flatten()

    def rearrangement(self, dims: Dims, channels: Channels, order: Tensor) -> Tensor:
        """Where the entries of a tensor are read from, flat, whose channels are put in another order."""
        index = torch.zeros(1, dtype=torch.int64, device="cpu")
        for factor in (each for dim in dims for each in resolve(dim)):
            if factor is channels:
                place = order
            elif isinstance(factor, Joined):
                parts, start = [], 0
                for part in factor.parts:
                    parts.append(self.rearrangement((part,), channels, order) + start)
                    start += size_of(part)
                place = torch.cat(parts)
            else:
                place = torch.arange(factor.size, device="cpu")
            index = (index[:, None] * factor.size + place).flatten()
        return index

    def _read(self, block: tuple[Factor, ...], element: int) -> list[Tensor]:
        first = block[0]
        if isinstance(first, Listed):
            return first.group.listed(element)
        if isinstance(first, Places):
            axes = tuple(factor.axis for factor in block if isinstance(factor, Places))
            return self.group.coordinates(element, axes, tuple(factor.size for factor in block), first.shifts)
        if isinstance(first, Joined):
            parts, start = [], 0
            for part in first.parts:
                parts.append(self.table((part,), element) + start)
                start += size_of(part)
            return [torch.cat(parts)]
        if isinstance(first, Channels) and not first.still:
            return [self.kinds_of(first).of(first.size).table[element]]
        return [torch.arange(first.size, device="cpu")]

    def _blocks(self, factors: Sequence[Factor]) -> list[list[int]]:
        """The positions of factors that move together; of several equal grids, the first with the first."""
        blocks: list[list[int]] = []
        taken: set[int] = set()
        for place, factor in enumerate(factors):
            if place in taken:
                continue
            block = [place]
            if isinstance(factor, (Places, Listed)):
                block = self._block_of(factor, factors, taken)
            taken.update(block)
            blocks.append(block)
        return blocks

    def _block_of(self, factor: Places | Listed, factors: Sequence[Factor], taken: set[int]) -> list[int]:
        block: list[int] = []
        axes = range(factor.group.axes) if isinstance(factor, Listed) else self.group.partners[factor.axis]
        for axis in axes:
            for place, other in enumerate(factors):
                if place in taken or place in block:
                    continue
                if (
                    isinstance(factor, Listed)
                    and isinstance(other, Listed)
                    and (other.axis, other.group) == (axis, factor.group)
                ):
                    break
                if (
                    isinstance(factor, Places)
                    and isinstance(other, Places)
                    and (other.axis, other.size, other.shifts) == (axis, factor.size, factor.shifts)
                ):
                    break
            else:
                raise _UnpairedError(factor)
            block.append(place)
        return block

    def trivial_throughout(self, dims: Dims) -> bool:
        """Whether nothing of a tensor moves."""
        return all(self.stays(factor) for dim in dims for factor in resolve(dim))

    # Words ----------------------------------------------------------------------------------------------------------

    def in_words(self, dim: Dim) -> str:
        """What a dimension is."""
        return " × ".join(self._factor_in_words(factor) for factor in resolve(dim)) or "1"

    def _factor_in_words(self, factor: Factor) -> str:
        if isinstance(factor, Trivial) or self.stays(factor):
            return f"{factor.size} trivial"
        if isinstance(factor, Channels):
            fields = self.kinds_of(factor).of(factor.size)
            order = len(self.group)
            counted = [(size, fields.count(size)) for size in sorted(set(fields.sizes), reverse=True)]
            names = {order: "regular", 1: "trivial"}
            return " + ".join(f"{count} {names.get(size, f'quotient of {size}')}" for size, count in counted)
        if isinstance(factor, Joined):
            return "(" + ", ".join(self.in_words(part) for part in factor.parts) + ")"
        group = factor.group if isinstance(factor, Listed) else self.group
        return f"{factor.size} places" + (f" of dimension {group.dims[factor.axis]}" if self.names_dimensions else "")


class _UnpairedError(Exception):
    def __init__(self, factor: Factor) -> None:
        super().__init__()
        self.factor = factor


def _contains(dim: Dim, unknown: Channels) -> bool:
    for factor in resolve(dim):
        if factor is unknown:
            return True
        if isinstance(factor, Joined) and any(_contains(part, unknown) for part in factor.parts):
            return True
    return False
