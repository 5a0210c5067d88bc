r"""Which elements leave hidden channels where they are: those that nothing in the weights before them tells apart.

A weight makes channels from all else that it has: its kernel's places, the channels that it sums over. In a regular
field, the filters of a field are one filter, moved. An element n that leaves all else where it is moves no filter, and
the channels r and n r of a field would be copies of each other: shifts do so to convolutions. The elements that do so
to every weight that makes some channels are a normal subgroup N, and the channels are given fields of G / N, which are
as good and :math:`|N|` times as many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lightning_invariance.symmetry._factors import Channels, Dim, Dims, Factor, Joined, Listed, Places, resolve
from lightning_invariance.symmetry._group import SpatialGroup


def find_kernels(weights: Sequence[Dims], group: SpatialGroup) -> None:
    """Notes with all channels of some weights which elements leave them where they are.

    The largest such subgroups are found: at first all elements do, and each round takes those away that a weight tells
    apart by what was found in the round before.

    Args:
        weights: how each of them moves.
        group: the group.
    """
    everything = frozenset(range(len(group)))
    kept: dict[Factor, frozenset[int]] = {}
    makers = []
    for channels, beside in (made for dims in weights for made in _makers(dims)):
        channels.kernel = everything
        leaves = list(_leaves(beside))
        others = [each for each in leaves if isinstance(each, Channels) and not each.still]
        for each in leaves:
            if isinstance(each, (Places, Listed)) and each not in kept:
                kept[each] = _kept(each, group)
        makers.append((channels, everything.intersection(*(kept[each] for each in leaves if each in kept)), others))
    changed = True
    while changed:
        changed = False
        for channels, at_most, others in makers:
            kernel = (channels.kernel & at_most).intersection(*(each.kernel for each in others))
            changed = changed or kernel != channels.kernel
            channels.kernel = kernel


def _makers(dims: Dims) -> Iterator[tuple[Channels, list[Factor]]]:
    """The channels that a weight has a part in making, with the factors beside them."""
    for place, dim in enumerate(dims):
        if _is_summed(dim):
            continue
        others = [factor for other, each in enumerate(dims) if other != place for factor in resolve(each)]
        inherited = {id(factor) for factor in _inherited(dim)}
        for channels, beside in _beside(dim):
            if id(channels) not in inherited:
                yield channels, [*beside, *others]


def _is_summed(dim: Dim) -> bool:
    """Whether operations only sum over a dimension."""
    return bool(dim) and all(isinstance(each, Channels) and each.summed and not each.made for each in dim)


def _inherited(dim: Iterable[Factor]) -> Iterator[Factor]:
    """The channels in a dimension that an operation has from its input."""
    for factor in dim:
        if isinstance(factor, Channels) and factor.found is not None:
            yield from resolve(factor.found) if factor.inherited else _inherited(factor.found)
        elif isinstance(factor, Channels) and factor.inherited:
            yield factor


def _beside(dim: Iterable[Factor]) -> Iterator[tuple[Channels, list[Factor]]]:
    """The channels in a dimension, each with the factors that it is a product with and that are no channels."""
    factors = resolve(dim)
    for place, factor in enumerate(factors):
        rest: list[Factor] = [
            each for other, each in enumerate(factors) if other != place and not isinstance(each, Channels)
        ]
        if isinstance(factor, Channels):
            yield factor, rest
        elif isinstance(factor, Joined):
            for part in factor.parts:
                for channels, beside in _beside(part):
                    yield channels, [*rest, *beside]


def _leaves(factors: Iterable[Factor]) -> Iterator[Factor]:
    """The factors, with those of dimensions that are joined in their place."""
    for factor in factors:
        if isinstance(factor, Joined):
            yield from (leaf for part in factor.parts for leaf in _leaves(resolve(part)))
        else:
            yield factor


def _kept(factor: Places | Listed, group: SpatialGroup) -> frozenset[int]:
    """The elements that leave an axis where it is."""
    if isinstance(factor, Listed):
        return frozenset(each for each in range(len(group)) if factor.group.keeps_listed(each, factor.axis))
    return frozenset(each for each in range(len(group)) if group.keeps(each, factor.axis, factor.size, factor.shifts))
