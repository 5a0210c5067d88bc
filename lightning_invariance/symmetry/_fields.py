r"""What the channels of a hidden layer are given: regular fields, and quotient fields where these do not fit.

The regular representation permutes :math:`|G|` channels as the group permutes itself, :math:`(g v)[r] = v[g^{-1} r]`; a
quotient field permutes the :math:`|G| / |H|` cosets of a subgroup (Weiler and Cesa, 2019). A trivial field is a channel
that stays. Where elements of a normal subgroup N leave channels where they are, the fields are those of G / N.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fields:
    """How some channels are shared out.

    Attributes:
        sizes: of each field, in the order of the channels; those of size ``|G / N|`` are regular, of size 1 trivial.
        table: ``(|G|, channels)``: element g moves v to ``v[table[g]]``.
    """

    sizes: tuple[int, ...]
    table: Tensor

    def count(self, size: int) -> int:
        """How many fields have this size."""
        return self.sizes.count(size)


class FieldKinds:
    """The fields that a group has, the largest first.

    Args:
        cayley: the multiplication table, ``(|G|, |G|)``.
        kernel: the elements that leave channels where they are: a normal subgroup N.

    Attributes:
        order: the size of a regular field, ``|G / N|``.
        representatives: one element of each coset of N, the identity first; as the channels of a regular field.
    """

    def __init__(self, cayley: Tensor, kernel: frozenset[int] = frozenset({0})) -> None:
        members = torch.tensor(sorted(kernel))
        representatives, coset = cayley[:, members].amin(dim=1).unique(return_inverse=True)
        cayley = coset[cayley[representatives][:, representatives]]
        inverse = (cayley == 0).int().argmax(dim=1)
        self.order = len(representatives)
        self.representatives: list[int] = representatives.tolist()
        self._tables = {size: table[coset] for size, table in _quotients(cayley, inverse).items()}
        self._kept: dict[int, Fields] = {}

    def of(self, channels: int) -> Fields:
        """Regular fields for as many channels as they fill; what is left over has the largest quotients that fit."""
        if channels not in self._kept:
            sizes: list[int] = []
            parts: list[Tensor] = []
            start = 0
            for size in sorted(self._tables, reverse=True):
                while channels - start >= size:
                    parts.append(self._tables[size] + start)
                    sizes.append(size)
                    start += size
            self._kept[channels] = Fields(tuple(sizes), torch.cat(parts, dim=1))
        return self._kept[channels]


def _quotients(cayley: Tensor, inverse: Tensor) -> dict[int, Tensor]:
    """For each number of cosets the field that moves most: of the subgroups of this index, the least normal one."""
    order = len(cayley)
    best: dict[int, tuple[int, Tensor]] = {}
    for subgroup in _subgroups(cayley.tolist()):
        members = torch.tensor(sorted(subgroup))
        first = cayley[:, members].amin(dim=1)  # a coset g H is known by its least member
        representatives, where = first.unique(return_inverse=True)
        # (g v)[c] = v[g^-1 c]
        table = where[cayley[inverse][:, representatives]]
        different = len(table.unique(dim=0))
        cosets = len(representatives)
        if cosets not in best or different > best[cosets][0]:
            best[cosets] = (different, table)
    regular = cayley[inverse]  # in the order of the elements, not of cosets
    tables = {size: table for size, (_, table) in best.items()}
    tables[order] = regular
    tables[1] = torch.zeros(order, 1, dtype=torch.int64)
    return tables


def _subgroups(cayley: list[list[int]]) -> list[frozenset[int]]:
    """The subgroups that one or two elements generate, in an order that depends on the group alone."""
    cyclic = dict.fromkeys(_generated(cayley, (element,)) for element in range(len(cayley)))
    generators = {subgroup: min(g for g in subgroup if _generated(cayley, (g,)) == subgroup) for subgroup in cyclic}
    found = dict(cyclic)
    for one, other in combinations(cyclic, 2):
        if not (one <= other or other <= one):
            found.setdefault(_generated(cayley, (generators[one], generators[other])))
    return list(found)


def _generated(cayley: list[list[int]], generators: tuple[int, ...]) -> frozenset[int]:
    members = {0}
    front = [0]
    while front:
        element = front.pop()
        for generator in generators:
            product = cayley[element][generator]
            if product not in members:
                members.add(product)
                front.append(product)
    return frozenset(members)
