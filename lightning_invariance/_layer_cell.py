"""The sums of one tensor of a network, over the orbits of batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_invariance._channel_matching import best_permutation
from lightning_invariance._layer_motion import Motion, channel_dim, null_share, seen_by_all
from lightning_invariance._layer_shares import OrbitMean, Share, ShareSums
from lightning_invariance.actions import Action, PermutationAction

#: For the permutations of channels so many places of each channel are looked at, or half of the first samples.
_PLACES = 1024


@dataclass(frozen=True)
class Measured:
    """What was measured of a tensor; None where it was not.

    Attributes:
        invariance: the share as it is.
        equivariance: the share brought back.
        permuted: the share after the best permutation of channels besides.
        null: the share that moving there and back gives the mean over the orbit, where that is not exact.
        note: why something was not.
    """

    invariance: Share | None
    equivariance: Share | None
    permuted: Share | None
    null: float = 0.0
    note: str = ""


class LayerCell:
    """The sums of one tensor.

    Of an element's activations nothing is kept but what is added to sums, so that memory does not grow with the group.

    Args:
        max_channels: the most channels, or flat features, whose permutation is looked for.
    """

    def __init__(self, max_channels: int) -> None:
        self._max_channels = max_channels
        self._sums = {"invariance": ShareSums(), "equivariance": ShareSums(), "permuted": ShareSums()}
        self._orbits: dict[str, OrbitMean] = {}
        self._spare: dict[str, OrbitMean] = {}
        self._fitted = False
        self._tables: dict[int, Tensor | None] = {}
        self._base: Tensor | None = None  # channels of the samples that permutations are fitted on
        self._fit = 0
        self._channels: int | None = None
        self._moves: bool | None = None
        self._motion = Motion(None)
        self._seen: Tensor | None = None
        self._sources: dict[tuple[int, torch.Size], Tensor | None] = {}
        self.problem = ""
        self.null = 0.0
        self.channel_note = ""

    def spoil(self, problem: str) -> None:
        """Nothing can be said of it any more."""
        self.problem = self.problem or problem

    def begin(self, values: Tensor, motion: Motion) -> None:
        """The activations of the batch as it is."""
        if self._moves is not None and (motion.action is not None) != self._moves:
            self.spoil("the group can act on its output in some batches alone")
        self._motion, self._moves = motion, motion.action is not None
        values = self._arranged(values)
        shape = self._sums["invariance"].shape
        if shape is not None and shape != values.shape[1:]:
            self.spoil(f"its output changes shape, from {tuple(shape)} to {tuple(values.shape[1:])}")
        if self.problem:
            return
        self._orbits = {"invariance": self._orbit("invariance", values)}
        base = values
        if motion.action is not None:
            self._seen = seen_by_all(motion.action, values)
            base = values if self._seen is None else torch.where(self._seen, values, 0.0)
            self._orbits["equivariance"] = self._orbit("equivariance", base)
        if not self._fitted:
            self._begin_fit(base)

    def _orbit(self, name: str, first: Tensor) -> OrbitMean:
        """In the memory that a batch before had."""
        spare = self._spare.get(name)
        self._spare[name] = OrbitMean(first) if spare is None else spare.restart(first)
        return self._spare[name]

    def _arranged(self, values: Tensor) -> Tensor:
        values = values[:, None] if values.ndim == 1 else values
        values = values.movedim(-1, 1) if self._motion.channels_last else values
        return values.flatten(1, self._motion.fields) if self._motion.fields > 1 else values

    def _begin_fit(self, base: Tensor) -> None:
        action = self._motion.action
        if action is None:
            self._channels, channels = 1, base[0].numel()
            what = "features"
        else:
            dim = channel_dim(action, base)
            self._channels, channels, what = dim, 0 if dim is None else base.shape[dim], "channels"
        if self._channels is None or not 1 < channels <= self._max_channels:
            if channels > self._max_channels:
                self.channel_note = f"{channels:,} {what} are not matched (`max_channels`)"
            self._channels = None
            return
        places = base[0].numel() // channels
        self._fit = max(1, min(len(base) // 2, -(-_PLACES // places)))
        self._base = self._as_channels(base[: self._fit]).clone()

    def _as_channels(self, values: Tensor) -> Tensor:
        """Shape ``(C, n)``."""
        assert self._channels is not None
        if self._motion.action is None:
            return values.flatten(1).T
        return values.movedim(self._channels, 0).flatten(1)

    def add(self, values: Tensor, element: int, likely: Tensor | None = None) -> None:
        """The activations of the batch moved by an element, and the permutation of those before it."""
        if self.problem or not self._orbits:
            return
        values = self._arranged(values)
        invariance = self._orbits["invariance"]
        if values.shape != invariance.mean.shape:
            self.spoil("its output has another shape for a moved input")
            return
        move = self._motion.action
        plain = self._orbits.get("equivariance", invariance)
        if not self._fitted:
            back = values if move is None else self._brought_back(move, values, element)
            if self._channels is not None:
                self._fit_channels(back, element, likely)
            self._add_rows(values, element, plain, lambda rows: back[rows])
        elif move is None or isinstance(move, PermutationAction):
            # Block by block: what is brought back stays in the cache.
            self._add_rows(values, element, plain, lambda rows: self._back_of(move, values[rows], element))
        else:  # its motion may be that of these very samples
            back = self._brought_back(move, values, element)
            self._add_rows(values, element, plain, lambda rows: back[rows])

    @property
    def channels(self) -> int:
        """How many channels are matched; 0 where none are, or they have been."""
        return 0 if self._base is None else len(self._base)

    def permutation(self, element: int) -> Tensor | None:
        """The permutation of an element; None for the identity, or one that is not known."""
        return self._tables.get(element)

    def _back_of(self, move: Action | None, values: Tensor, element: int) -> Tensor:
        return values if move is None else self._brought_back(move, values, element)

    def _fit_channels(self, back: Tensor, element: int, likely: Tensor | None) -> None:
        assert self._base is not None
        channels = self._as_channels(back[: self._fit])
        self._tables[element], found = best_permutation(self._base, channels, likely)
        if not found:
            self.channel_note = "no permutation of channels brings it near"

    def _add_rows(self, values: Tensor, element: int, plain: OrbitMean, back_of: Callable[[slice], Tensor]) -> None:
        table, rest = self._tables.get(element), 0 if self._fitted else self._fit
        if table is not None and "permuted" not in self._orbits:
            # As long as nothing is permuted, both are the same.
            self._orbits["permuted"] = plain.copy_rows(rest)
        invariance, permuted = self._orbits["invariance"], self._orbits.get("permuted")
        orbits = [each for each in (invariance, plain if plain is not invariance else None) if each is not None]
        for orbit in orbits:
            orbit.begin()
        whole = rest == 0
        if permuted is not None and whole:
            permuted.begin()
        for number, (rows, *_) in enumerate(invariance.blocks):
            back = back_of(rows)
            if permuted is not None and whole:
                permuted.add_block(number, back if table is None else self._permuted(back, table))
            invariance.add_block(number, values[rows])
            if plain is not invariance:
                plain.add_block(number, back)
        for orbit in orbits:
            orbit.end()
        if permuted is not None and whole:
            permuted.end()
        elif permuted is not None:
            back = back_of(slice(rest, len(values)))
            permuted.add(back if table is None else self._permuted(back, table))

    def _permuted(self, values: Tensor, table: Tensor) -> Tensor:
        assert self._channels is not None
        if self._motion.action is None:
            return values.flatten(1).index_select(1, table).view(values.shape)
        return values.index_select(self._channels, table)

    def _brought_back(self, action: Action, values: Tensor, element: int) -> Tensor:
        source = self._source(action, values, element)
        if source is None:
            back = action.invert(values, element)
        else:
            back = values.reshape(-1, len(source)).index_select(1, source).view(values.shape)
        return back if self._seen is None else torch.where(self._seen, back, 0.0)

    def _source(self, action: Action, values: Tensor, element: int) -> Tensor | None:
        """Where each place's value comes from, if a gather is faster: several times, than a copy of a turned view."""
        if not isinstance(action, PermutationAction) or values.device.type != "cpu":
            return None
        sizes = values.shape[-action._trailing :]
        if (element, sizes) not in self._sources:
            back = action.invert(torch.arange(sizes.numel()).view(1, *sizes), element)
            self._sources[element, sizes] = None if back.is_contiguous() else back.reshape(-1)
        return self._sources[element, sizes]

    def finish(self, elements: int) -> None:
        """After the last element of a batch."""
        if not self._orbits:
            self.spoil("is not called in all batches")
        if any(orbit.count != elements for orbit in self._orbits.values()):
            self.spoil("is not called alike for all elements")
        if not self.problem and self._orbits:
            move, moved = self._motion.action, self._orbits.get("equivariance")
            if not self._fitted and move is not None and moved is not None and not move.exact:
                # Of what is equivariant in it: a break is not to excuse itself.
                self.null = null_share(move, moved.mean.to(moved.dtype))
            for name, orbit in self._orbits.items():
                self._sums[name].add(orbit)
            self._fitted = True

    def forget(self) -> None:
        """Lets go of a batch."""
        self._orbits = {}
        self._base = self._seen = None

    def measured(self) -> Measured:
        """The shares of all batches."""
        if self.problem:
            return Measured(None, None, None, note=self.problem)
        invariance, permuted = self._sums["invariance"].share(), None
        equivariance = None if self._motion.action is None else self._sums["equivariance"].share()
        if self._channels is not None:
            matched = any(table is not None for table in self._tables.values())
            permuted = self._sums["permuted"].share() if matched else equivariance or invariance
        notes = [invariance.note, self._motion.note, self.channel_note]
        if permuted is not None and permuted.value != permuted.value:
            notes.append("no samples are left to measure the permutation of channels on")
        note = "; ".join(note for note in notes if note)
        return Measured(invariance, equivariance, permuted, self.null, note)
