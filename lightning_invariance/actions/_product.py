"""Two actions, one after the other."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from lightning_invariance._random import seed_of
from lightning_invariance.actions._base import Action


class ProductAction(Action):
    r"""Every pair of elements of two actions: :math:`(g, h)\, x = g\,(h\, x)`; made with ``first * second``.

    The second acts first. Element ``i * len(second) + j`` is the pair ``(i, j)``. Where the two act on different
    dimensions they commute, and the pairs form the direct product of the groups; elsewhere they need not form a group
    (rotations by 90° turn shifts along x into shifts along y), and `cayley_table` is None.

    Example:
        >>> import torch
        >>> from lightning_invariance import C4, CyclicTranslations
        >>> action = C4() * CyclicTranslations(3)
        >>> len(action), action.labels[4]
        (12, 'rot90*shift1of3')
        >>> x = torch.randn(2, 1, 36, 36)
        >>> torch.equal(action.invert(action.act(x, 7), 7), x)
        True
    """

    def __init__(self, first: Action, second: Action) -> None:
        for name, factor in (("first", first), ("second", second)):
            if not isinstance(factor, Action):
                raise ValueError(f"Expected `{name}` to be an Action, such as C4(), but got {factor!r}.")
        self.first = first
        self.second = second

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.first.exact and self.second.exact

    def __len__(self) -> int:
        return len(self.first) * len(self.second)

    @property
    def labels(self) -> tuple[str, ...]:
        pairs = [(left, right) for left in self.first.labels for right in self.second.labels]
        short = tuple("*".join(part for part in pair if part != "identity") or "identity" for pair in pairs)
        if len(set(short)) == len(short):
            return short
        return ("identity", *(f"{left}*{right}" for left, right in pairs[1:]))

    @property
    def dims(self) -> tuple[int, ...] | None:
        if self.first.dims is None or self.second.dims is None:
            return None
        return tuple(sorted({*self.first.dims, *self.second.dims}))

    @property
    def places(self) -> tuple[int, ...] | None:
        if self.first.places is None or self.second.places is None:
            return None
        return tuple(sorted({*self.first.places, *self.second.places}))

    @cached_property
    def cayley_table(self) -> Tensor | None:
        first, second = self.first.cayley_table, self.second.cayley_table
        if first is None or second is None or self.first.dims is None or self.second.dims is None:
            return None
        if set(self.first.dims) & set(self.second.dims):
            return None
        pairs = first[:, None, :, None] * len(self.second) + second[None, :, None, :]
        return pairs.reshape(len(self), len(self))

    @property
    def drawn(self) -> bool:
        return self.first.drawn or self.second.drawn

    def _redraw(self, seed: int, samples: int | None) -> Action:
        # From one seed, two equal factors would draw alike.
        return ProductAction(
            self.first.redrawn(seed_of(seed, "first"), samples),
            self.second.redrawn(seed_of(seed, "second"), samples),
        )

    def fresh(self, n: int, generator: torch.Generator | None = None) -> tuple[Action, Tensor]:
        """Fresh elements of both actions, paired; see `Action.fresh`."""
        if not self.drawn:
            return super().fresh(n, generator)
        first, left = self.first.fresh(n, generator)
        second, right = self.second.fresh(n, generator)
        return ProductAction(first, second), left * len(second) + right

    def attached(self, x: Tensor) -> Action:
        """Both actions as they act on what is attached to `x`; see `Action.attached`."""
        return self._of(self.first.attached(x), self.second.attached(x))

    def alongside(self, x: Tensor, other: Tensor) -> Action:
        """Both actions as they move `other` together with `x`; see `Action.alongside`."""
        return self._of(self.first.alongside(x, other), self.second.alongside(x, other))

    def for_whole_numbers(self) -> Action:
        """Both actions on whole numbers; see `Action.for_whole_numbers`."""
        return self._of(self.first.for_whole_numbers(), self.second.for_whole_numbers())

    def _of(self, first: Action, second: Action) -> Action:
        return self if first is self.first and second is self.second else ProductAction(first, second)

    def places_in(self, x: Tensor) -> tuple[int, ...] | None:
        first, second = self.first.places_in(x), self.second.places_in(x)
        return None if first is None or second is None else tuple(sorted({*first, *second}))

    def in_view(self, x: Tensor, element: int) -> Tensor | None:
        """The places that both leave in view, one after the other; see `Action.in_view`."""
        left, right = element // len(self.second), element % len(self.second)
        second, first = self.second.in_view(x, right), self.first.in_view(x, left)
        if first is None:
            return second
        # What the first one sees, it sees after the second has acted.
        seen = first.expand(1, *x.shape[1:]).to(torch.float64)
        back = self.second.invert(seen, right) > 1 - 1e-6
        return back if second is None else back & second

    def on_output(self, x: Tensor, output: Tensor) -> Action:
        """Both actions on a network's output; see `Action.on_output`."""
        return self._of(self.first.on_output(x, output), self.second.on_output(x, output))

    def check(self, x: Tensor) -> None:
        self.second.check(x)
        self.first.check(x)

    def verify(self, x: Tensor) -> None:
        """Verifies both actions, each on its own and beside the other; see `Action.verify`.

        Each has to leave the padding of the other alone, and no pair may undo itself: it would count as a motion.
        """
        self.second.verify(x)
        self.first.verify(x)
        self._check_pairs_move(x)
        _check_padding_stays(self.first, self.second, x)
        _check_padding_stays(self.second, self.first, x)

    def _check_pairs_move(self, x: Tensor) -> None:
        if not self.exact or self.drawn or not set(self.first.dims or ()) & set(self.second.dims or ()):
            return
        sizes = x.shape[1:]
        places = torch.arange(sizes.numel(), device=x.device).reshape(1, *sizes)
        for element, label in enumerate(self.labels):
            if element and torch.equal(self.act(places, element), places):
                raise ValueError(
                    f"Expected every pair but the first of {self!r} to move {tuple(sizes)} but {label!r} does not: the "
                    "two have elements in common, which would count as motions without an error."
                )

    def _act_one(self, x: Tensor, element: int) -> Tensor:
        left, right = element // len(self.second), element % len(self.second)
        return self.first.act(self.second.act(x, right), left)

    def _invert_one(self, x: Tensor, element: int) -> Tensor:
        left, right = element // len(self.second), element % len(self.second)
        return self.second.invert(self.first.invert(x, left), right)

    def _act_each(self, x: Tensor, index: Tensor) -> Tensor:
        order = len(self.second)
        moved = self.second.act(x, index % order)
        return self.first.act(moved, torch.div(index, order, rounding_mode="floor"))

    def _invert_each(self, x: Tensor, index: Tensor) -> Tensor:
        order = len(self.second)
        moved = self.first.invert(x, torch.div(index, order, rounding_mode="floor"))
        return self.second.invert(moved, index % order)

    def _arguments(self) -> dict[str, object]:
        return {"first": self.first, "second": self.second}

    def __repr__(self) -> str:
        return f"{self.first!r} * {self.second!r}"


@torch.no_grad()
def _check_padding_stays(action: Action, other: Action, x: Tensor) -> None:
    """Raises where `action` moves or changes what `other` is read from in `x`: the padding of its sets."""
    held = other.attached(x)
    if held is other:
        return
    for element, label in enumerate(action.labels):
        if other.attached(action.act(x, element)) != held:
            raise ValueError(
                f"Expected {label!r} of {action!r} to leave the padding in `x` that {other!r} goes by as it is, but it "
                "does not: pad with a number that it keeps, such as 0 for rotations."
            )
