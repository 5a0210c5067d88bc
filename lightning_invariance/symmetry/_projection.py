r"""The mean of a tensor over a group, :math:`P w = \frac{1}{|G|} \sum_g g w`: the Reynolds operator.

Elements permute the entries, so that the mean over the group is, for each entry, the mean over its orbit. Two tables of
the tensor's size are kept: the entries of each orbit, and the orbit of each entry.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor


class Projection:
    """The mean over the group for tensors that move alike.

    Args:
        tables: for each element, where the entries of the moved tensor are read from, ``(entries,)`` int64.
    """

    def __init__(self, tables: Sequence[Tensor]) -> None:
        self.entries = len(tables[0])
        first = tables[0]  # an entry's orbit is known by the first entry in it
        for table in tables[1:]:
            first = torch.minimum(first, table)
        is_first = first == torch.arange(self.entries, device="cpu")
        own = is_first.nonzero()[:, 0]
        orbit = (is_first.cumsum(0) - 1)[first]
        self.orbits = len(own)
        # One column an orbit, one row an element: an orbit that is smaller than the group has its entries repeatedly.
        self._members = torch.stack([table[own] for table in tables]).to(torch.int32)
        self._orbit = orbit.to(torch.int32)
        self._placed: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing: no entry moves."""
        return self.orbits == self.entries

    @property
    def free(self) -> float:
        """The share of the entries that can be chosen: one of each orbit."""
        return self.orbits / max(self.entries, 1)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._placed:
            with torch.inference_mode(False):
                self._placed[device] = (self._members.to(device), self._orbit.to(device))
        return self._placed[device]

    @torch.no_grad()
    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over the group."""
        if self.is_identity:
            return tensor.clone()
        members, orbit = self._on(tensor.device)
        values = tensor.reshape(-1).index_select(0, members.view(-1)).view(members.shape)
        return _mean(values).index_select(0, orbit).view(tensor.shape)

    @torch.no_grad()
    def mean_(self, tensor: Tensor, strength: float = 1.0) -> None:
        """Draws a tensor towards its mean over the group, in place: `w - a (w - P w)`, all the way by default."""
        if self.is_identity or not strength:
            return
        mean = self.mean(tensor)
        if strength == 1.0:
            tensor.copy_(mean)
        else:
            tensor.lerp_(mean, strength)


def joined(projections: Sequence[Projection]) -> Projection:
    """The projection of several tensors, one behind the other, under one group."""
    whole = copy.copy(projections[0])
    starts = [sum(each.entries for each in projections[:place]) for place in range(len(projections))]
    orbits = [sum(each.orbits for each in projections[:place]) for place in range(len(projections))]
    order = max(len(each._members) for each in projections)
    members = [each._members.expand(order, -1) if len(each._members) == 1 else each._members for each in projections]
    whole._members = torch.cat([each + start for each, start in zip(members, starts, strict=True)], dim=1)
    whole._orbit = torch.cat([each._orbit + start for each, start in zip(projections, orbits, strict=True)])
    whole.entries, whole.orbits = len(whole._orbit), whole._members.shape[1]
    whole._placed = {}
    return whole


def _mean(values: Tensor) -> Tensor:
    """The mean of rows: by halves, so that equal ones give themselves, bit for bit."""
    count = len(values)
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    while len(wide) % 2 == 0:
        half = len(wide) // 2
        wide = wide[:half] + wide[half:]
    mean = wide[0] * (len(wide) / count)
    if len(wide) > 1:  # differences, as three equal numbers need not add up to three times one
        mean = mean + (wide - wide[0]).sum(dim=0) / count
    return mean.to(values.dtype)
