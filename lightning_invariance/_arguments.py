"""What a network is called with, and which of it a group acts on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lightning_invariance._containers import (
    ARGUMENTS,
    Path,
    cut_rows,
    describe_value,
    get,
    map_tensors,
    place_in_words,
    repeat_rows,
    replace_at,
    take_row,
    walk,
)
from lightning_invariance.actions import Action
from lightning_invariance.actions._joint import JointAction


@dataclass(frozen=True)
class Arguments:
    """The arguments of a call, with the paths to the tensors that the group acts on.

    Attributes:
        args: the positional arguments.
        kwargs: the keyword arguments.
        paths: where the tensors are.
        joint: the action on several of them at once, packed; None for a single one.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    paths: tuple[Path, ...]
    joint: JointAction | None = None

    @classmethod
    def positional(cls, args: tuple[Any, ...]) -> Arguments:
        """Positional arguments alone, all of which the group acts on."""
        return cls(args, {}, tuple(("args", place) for place in range(len(args))))

    def joined(self, action: Action | None) -> Arguments:
        """The same, with the action on all tensors at once where there are several.

        Raises:
            ValueError: if the group cannot act on one of several.
        """
        if len(self.paths) == 1 or action is None:
            return self
        return replace(self, joint=JointAction(action, self.inputs))

    def acting(self, action: Action) -> Action:
        """The action on `x`."""
        return action if self.joint is None else self.joint

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors that the group acts on, as they are."""
        return tuple(get(self._root, path) for path in self.paths)

    @property
    def x(self) -> Tensor:
        """The tensor that the group acts on; of several, all of them packed, ``(B, n)``."""
        return self.inputs[0] if self.joint is None else self.joint.pack(self.inputs)

    @property
    def others(self) -> list[tuple[Path, Tensor]]:
        """The tensors besides, with their paths."""
        return [(path, tensor) for path, tensor in walk(self._root) if path not in self.paths]

    @property
    def has_other_tensors(self) -> bool:
        """Whether the call takes tensors that the group does not act on."""
        return bool(self.others)

    @property
    def is_divisible(self) -> bool:
        """Whether every tensor has one row a sample: a graph's edges, say, point at rows that must all be there."""
        samples = len(self.inputs[0])
        return all(len(tensor) == samples for _, tensor in self.others if tensor.ndim > 0)

    def first(self, samples: int) -> Arguments:
        """The arguments of the first few samples alone, as ordinary tensors where they are inference tensors."""
        return self.part(slice(samples))

    def part(self, samples: slice) -> Arguments:
        """The arguments of some samples alone; see `first`."""
        args, kwargs = cut_rows((self.args, self.kwargs), len(self.inputs[0]), samples)
        part = Arguments(args, kwargs, self.paths)
        return part if self.joint is None else part.joined(self.joint.action)

    def row(self, index: int) -> Arguments:
        """The arguments of one sample alone, in memory of their own."""
        args, kwargs = take_row((self.args, self.kwargs), len(self.inputs[0]), index)
        one = Arguments(args, kwargs, self.paths)
        return one if self.joint is None else one.joined(self.joint.action)

    def with_input(self, x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with another `x` in its place.

        Where `x` holds the samples n times over, the other tensors of one row a sample are repeated likewise.
        """
        samples = len(self.inputs[0])
        root: Any = self._root
        if len(x) != samples:
            root = repeat_rows(root, samples, len(x) // max(samples, 1))
        root = self._put(root, (x,) if self.joint is None else self.joint.unpack(x))
        return root["args"], root["kwargs"]

    def in_words(self, where: str = ARGUMENTS) -> str:
        """The tensors that the group acts on: shape, precision, place."""
        return " and ".join(
            f"{describe_value(tensor)} at {place_in_words(path, where)}"
            for path, tensor in zip(self.paths, self.inputs, strict=True)
        )

    def exchanged(self, moved: Sequence[Tensor]) -> Any:
        """The first argument, a batch, with other tensors in the places of `inputs`."""
        return self._put(self._root, moved)["args"][0]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Arguments:
        """The same with each tensor changed."""
        changed = Arguments(map_tensors(change, self.args), map_tensors(change, self.kwargs), self.paths)
        return changed if self.joint is None else changed.joined(self.joint.action)

    def check_max_batch(self, max_batch: int | None) -> None:
        """Raises a `ValueError` where rows cannot be run in parts, as the call takes tensors besides the input."""
        if max_batch is not None and self.has_other_tensors:
            raise ValueError(
                f"Expected `max_batch` to be None for a network that takes several tensors but got {max_batch}."
            )

    def _put(self, root: Any, tensors: Sequence[Tensor]) -> Any:
        for path, tensor in zip(self.paths, tensors, strict=True):
            root = replace_at(root, path, tensor)
        return root

    @property
    def _root(self) -> dict[str, Any]:
        return {"args": self.args, "kwargs": self.kwargs}
