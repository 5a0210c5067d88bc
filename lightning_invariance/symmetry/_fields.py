r"""What the channels of a hidden layer are given: regular fields, and quotient fields where these do not fit.

The regular representation permutes :math:`|G|` channels as the group permutes itself, :math:`(g v)[r] = v[g^{-1} r]`; a
quotient field permutes the :math:`|G| / |H|` cosets of a subgroup (Weiler and Cesa, 2019). A trivial field is a channel
that stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fields:
    """How some channels are shared out.

    Attributes:
        sizes: of each field, in the order of the channels; those of size ``|G|`` are regular, of size 1 trivial.
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
    """

    def __init__(self, cayley: Tensor) -> None:
        self._order = len(cayley)
        inverse = (cayley == 0).int().argmax(dim=1)
        self._tables = _quotients(cayley, inverse)
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
    for pair in combinations_with_replacement(range(order), 2):
        subgroup = _generated(cayley, pair)
        cosets = sorted({tuple(sorted(cayley[g, list(subgroup)].tolist())) for g in range(order)})
        where = {member: number for number, coset in enumerate(cosets) for member in coset}
        # (g v)[c] = v[g^-1 c]
        table = torch.tensor([[where[int(cayley[inverse[g], coset[0]])] for coset in cosets] for g in range(order)])
        different = len({tuple(row) for row in table.tolist()})
        if len(cosets) not in best or different > best[len(cosets)][0]:
            best[len(cosets)] = (different, table)
    regular = cayley[inverse]  # in the order of the elements, not of cosets
    tables = {size: table for size, (_, table) in best.items()}
    tables[order] = regular
    tables[1] = torch.zeros(order, 1, dtype=torch.int64)
    return tables


def _generated(cayley: Tensor, generators: tuple[int, ...]) -> tuple[int, ...]:
    members = {0}
    front = [0]
    while front:
        element = front.pop()
        for generator in generators:
            product = int(cayley[element, generator])
            if product not in members:
                members.add(product)
                front.append(product)
    return tuple(sorted(members))
