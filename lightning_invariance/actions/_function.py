"""An action from the user's own functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from lightning_invariance._checks import check_iterable
from lightning_invariance._containers import describe_value
from lightning_invariance.actions._base import Action, check_batch

Transform = Callable[[Tensor], Tensor]


class FunctionAction(Action):
    r"""A group given by pairs of functions: what an element does to a batch, and what its inverse does.

    Args:
        pairs: ``(act, invert)`` for each element **but the identity**, which is added in front. Both take a batch
            ``(B, ...)`` to one of the same shape.
        labels: a short name for each pair.
        exact: whether ``invert(act(x))`` gives ``x`` back bit for bit.
        places: the (negative) dimensions along which values move from place to place, ``(-2, -1)`` for images; empty
            where values change and stay where they are. If None, it is found out on a batch wherever the functions do
            nothing but move its values about.

    Raises:
        ValueError: if there is no pair, one is no pair of callables, the labels do not match the pairs, or `places` are
            no negative dimensions.

    Example:
        >>> import torch
        >>> from lightning_invariance import FunctionAction
        >>> signs = FunctionAction([(torch.neg, torch.neg)], labels=["negated"], exact=True)
        >>> signs.act(torch.tensor([[1.0, -2.0]]), 1)
        tensor([[-1.,  2.]])
        >>> signs
        FunctionAction('negated')
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Transform, Transform]],
        *,
        labels: Sequence[str] | None = None,
        exact: bool = False,
        places: Sequence[int] | None = None,
    ) -> None:
        check_iterable("pairs", pairs, "pairs of functions (act, invert)")
        pairs = tuple(tuple(pair) if isinstance(pair, Sequence) else (pair,) for pair in pairs)  # type: ignore[misc]
        if not pairs or not all(len(pair) == 2 and callable(pair[0]) and callable(pair[1]) for pair in pairs):
            raise ValueError("Expected `pairs` to hold pairs of functions (act, invert), at least one.")
        if labels is not None:
            check_iterable("labels", labels, "a name for each pair")
            labels = tuple(labels)
            # They are keys of what is logged: one of two equal ones would be lost.
            if not all(isinstance(label, str) for label in labels) or len({"identity", *labels}) != len(labels) + 1:
                raise ValueError(f"Expected `labels` to hold distinct names, none 'identity', but got {list(labels)}.")
        if labels is not None and len(labels) != len(pairs):
            raise ValueError(f"Expected `labels` to hold {len(pairs)} names, one a pair, but got {len(labels)}.")
        self._pairs = pairs
        self._labels = tuple(labels) if labels is not None else tuple(f"element{i + 1}" for i in range(len(pairs)))
        if places is not None:
            check_iterable("places", places, "negative dimensions")
            places = tuple(places)
            if not all(isinstance(dim, int) and not isinstance(dim, bool) and dim < 0 for dim in places):
                raise ValueError(f"Expected `places` to hold negative dimensions but got {list(places)}.")
        self.exact = exact
        self._places = None if places is None else tuple(sorted(set(places)))

    def __len__(self) -> int:
        return len(self._pairs) + 1

    @property
    def labels(self) -> tuple[str, ...]:
        return ("identity", *self._labels)

    @property
    def places(self) -> tuple[int, ...] | None:
        return self._places

    def places_in(self, x: Tensor) -> tuple[int, ...] | None:
        """The dimensions along which the functions move the values of a batch like `x`; see `Action.places_in`.

        Returns:
            None where they are not known: the functions do more than move values about, or they cannot act on
            numbers that count the places.
        """
        sizes = tuple(x.shape[1:])
        if self._places is not None or not sizes or not prod(sizes):
            return self._places
        dtype = torch.float64 if x.is_floating_point() else torch.int64
        return self._keep(("places", sizes, dtype, x.device), lambda: self._found_places(sizes, dtype, x.device))

    @torch.no_grad()
    def _found_places(self, sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[int, ...] | None:
        # Every place holds its own number: where the functions only move values, these say what has gone where.
        numbers = torch.arange(prod(sizes), dtype=dtype, device=device).reshape(1, *sizes)
        moved: set[int] = set()
        for act, _ in self._pairs:
            try:
                sources = act(numbers)
            except (RuntimeError, ValueError, TypeError, IndexError):
                return None
            if not isinstance(sources, Tensor) or sources.shape != numbers.shape:
                return None
            if not torch.equal(sources.flatten().sort().values, numbers.flatten()):
                return None
            came_from = torch.unravel_index(sources[0].long(), sizes)
            stood_at = torch.unravel_index(numbers[0].long(), sizes)
            pairs = zip(came_from, stood_at, strict=True)
            moved |= {dim - len(sizes) for dim, (a, b) in enumerate(pairs) if not torch.equal(a, b)}
        return tuple(sorted(moved))

    def check(self, x: Tensor) -> None:
        check_batch(self, x, 0)

    def _act_one(self, x: Tensor, element: int) -> Tensor:
        return self._call(self._pairs[element - 1][0], x, element)

    def _invert_one(self, x: Tensor, element: int) -> Tensor:
        return self._call(self._pairs[element - 1][1], x, element)

    def _call(self, function: Transform, x: Tensor, element: int) -> Tensor:
        try:
            out = function(x)
        except (RuntimeError, TypeError) as error:
            if x.is_floating_point():
                raise
            raise ValueError(
                f"Expected {self.labels[element]!r} of {self!r} to be able to act on {describe_value(x)} but it raised "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = describe_value(out)
            raise ValueError(
                f"Expected {self.labels[element]!r} of {self!r} to keep the shape {tuple(x.shape)} but got {got}."
            )
        if out.dtype != x.dtype:
            raise ValueError(
                f"Expected element {self.labels[element]!r} in {self!r} to keep {x.dtype} but got {out.dtype}."
            )
        return out

    def _arguments(self) -> dict[str, object]:
        return {"pairs": self._pairs, "labels": self._labels, "exact": self.exact, "places": self._places}

    def __repr__(self) -> str:
        return f"FunctionAction({', '.join(repr(label) for label in self._labels)})"
