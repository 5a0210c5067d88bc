"""An action from the user's own functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lightning_invariance._checks import check_iterable
from lightning_invariance.actions._base import Action, check_batch

Transform = Callable[[Tensor], Tensor]


class FunctionAction(Action):
    r"""A group given by pairs of functions: what an element does to a batch, and what its inverse does.

    Args:
        pairs: ``(act, invert)`` for each element **but the identity**, which is added in front. Both take a batch
            ``(B, ...)`` to one of the same shape.
        labels: a short name for each pair.
        exact: whether ``invert(act(x))`` gives ``x`` back bit for bit.

    Raises:
        ValueError: if there is no pair, one is no pair of callables, or the labels do not match the pairs.

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
        self, pairs: Sequence[tuple[Transform, Transform]], *, labels: Sequence[str] | None = None, exact: bool = False
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
        self.exact = exact

    def __len__(self) -> int:
        return len(self._pairs) + 1

    @property
    def labels(self) -> tuple[str, ...]:
        return ("identity", *self._labels)

    def check(self, x: Tensor) -> None:
        check_batch(self, x, 0)

    def _act_one(self, x: Tensor, element: int) -> Tensor:
        return self._call(self._pairs[element - 1][0], x, element)

    def _invert_one(self, x: Tensor, element: int) -> Tensor:
        return self._call(self._pairs[element - 1][1], x, element)

    def _call(self, function: Transform, x: Tensor, element: int) -> Tensor:
        out = function(x)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"Expected {self.labels[element]!r} of {self!r} to keep the shape {tuple(x.shape)} but got {got}."
            )
        if out.dtype != x.dtype:
            raise ValueError(
                f"Expected element {self.labels[element]!r} in {self!r} to keep {x.dtype} but got {out.dtype}."
            )
        return out

    def _arguments(self) -> dict[str, object]:
        return {"pairs": self._pairs, "labels": self._labels, "exact": self.exact}

    def __repr__(self) -> str:
        return f"FunctionAction({', '.join(repr(label) for label in self._labels)})"
