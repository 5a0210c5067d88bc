"""Several inputs of one network, moved by the same element: packed into rows, as one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from lightning_invariance._containers import describe_value
from lightning_invariance.actions._base import Action, check_batch
from lightning_invariance.actions._packing import Packing


class JointAction(Action):
    r"""An action on several tensors at once, each a row a sample: :math:`g (x_1, ..., x_k) = (g x_1, ..., g x_k)`.

    It acts on packed rows ``(B, n)``. How each tensor moves is what ``action.alongside(inputs[0], tensor)`` says, so
    what the action reads from its input, such as padding, it reads from the first.

    Args:
        action: the group.
        inputs: the tensors of one batch, ``B`` rows each, real.

    Raises:
        ValueError: if there are none, their rows differ, or the group cannot act on one; the message says on which.

    Example:
        >>> import torch
        >>> from lightning_invariance import C4
        >>> from lightning_invariance.actions._joint import JointAction
        >>> image, depth = torch.randn(2, 3, 8, 8), torch.arange(128).reshape(2, 8, 8)
        >>> action = JointAction(C4(), (image, depth))
        >>> packed = action.pack((image, depth))
        >>> packed.shape, packed.dtype
        (torch.Size([2, 256]), torch.float64)
        >>> turned_image, turned_depth = action.unpack(action.act(packed, 1))
        >>> torch.equal(turned_image, C4().act(image, 1)), torch.equal(turned_depth, C4().act(depth, 1))
        (True, True)
        >>> torch.equal(action.invert(action.act(packed, 1), 1), packed)
        True
    """

    def __init__(self, action: Action, inputs: tuple[Tensor, ...]) -> None:
        if not isinstance(action, Action):
            raise ValueError(f"Expected `action` to be an Action, such as C4(), but got {action!r}.")
        if not isinstance(inputs, Sequence) or not inputs:
            raise ValueError(f"Expected `inputs` to hold tensors, at least one, but got {inputs!r}.")
        for place, tensor in enumerate(inputs):
            _check_input(place, tensor, inputs[0])
        self.action = action
        self.inputs = tuple(inputs)
        self._moves = tuple(self._move_of(place) for place in range(len(inputs)))
        self.packing = Packing.of(self.inputs)

    def _move_of(self, place: int) -> Action:
        first, tensor = self.inputs[0], self.inputs[place]
        with self._naming(place):
            move = self.action.alongside(first, tensor) if place else self.action.attached(first)
            move.check(tensor)
        return move

    @contextmanager
    def _naming(self, place: int) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise ValueError(
                f"Expected {self.action!r} to be able to act on all {len(self.inputs)} inputs but got input {place} of "
                f"shape {tuple(self.inputs[place].shape)} and {self.inputs[place].dtype}: {error}"
            ) from error

    # Packed rows ----------------------------------------------------------------------------------------------------

    def pack(self, tensors: Iterable[Tensor]) -> Tensor:
        """Tensors like the inputs, of as many rows as they like, as one.

        Args:
            tensors: one for each input, of its shape but for the rows, and of its dtype.

        Returns:
            Shape ``(rows, n)``, in the narrowest dtype that holds them all exactly.

        Raises:
            ValueError: if a tensor is not like its input, or holds an integer beyond 2**53 beside floating point.
        """
        return self.packing.pack(tensors)

    def unpack(self, packed: Tensor) -> tuple[Tensor, ...]:
        """The tensors again, of their own shapes and dtypes; those of floating point differentiable.

        Args:
            packed: shape ``(rows, n)``.

        Returns:
            One tensor for each input, of as many rows as `packed`.

        Raises:
            ValueError: if `packed` has another shape.
        """
        self.check(packed)
        return self.packing.unpack(packed)

    # What the action says -------------------------------------------------------------------------------------------

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.action.exact

    def __len__(self) -> int:
        return len(self.action)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.action.labels

    @property
    def cayley_table(self) -> Tensor | None:
        return self.action.cayley_table

    @property
    def drawn(self) -> bool:
        return self.action.drawn

    def _redraw(self, seed: int, samples: int | None) -> Action:
        return JointAction(self.action.redrawn(seed, samples), self.inputs)

    def fresh(self, n: int, generator: torch.Generator | None = None) -> tuple[Action, Tensor]:
        """Fresh elements of the action; see `Action.fresh`."""
        action, index = self.action.fresh(n, generator)
        return (self if action is self.action else JointAction(action, self.inputs)), index

    def check(self, x: Tensor) -> None:
        check_batch(self, x, 1)
        if x.ndim != 2 or x.shape[1] != sum(self.packing.sizes):
            raise ValueError(
                f"Expected `x` to have the shape (B, {sum(self.packing.sizes)}), packed, for {self!r} "
                f"but got {tuple(x.shape)}."
            )

    def verify(self, x: Tensor) -> None:
        """Verifies the action on every input; see `Action.verify`."""
        for place, tensor in enumerate(self.unpack(x)):
            # Held by the padding of the first input, the action would not see an element change that padding.
            move = self._moves[place] if place else self.action
            with self._naming(place):
                move.verify(tensor)

    def on_output(self, x: Tensor, output: Tensor) -> Action:
        """The action of the first input on a network's output; see `Action.on_output`."""
        return self.action.on_output(self.inputs[0][: len(output)], output)

    def _act_one(self, x: Tensor, element: int) -> Tensor:
        return self._each(x, lambda move, tensor: move.act(tensor, element))

    def _act_each(self, x: Tensor, index: Tensor) -> Tensor:
        return self._each(x, lambda move, tensor: move.act(tensor, index))

    def _invert_one(self, x: Tensor, element: int) -> Tensor:
        return self._maps(x, lambda move, tensor: move.invert(tensor, element))

    def _invert_each(self, x: Tensor, index: Tensor) -> Tensor:
        return self._maps(x, lambda move, tensor: move.invert(tensor, index))

    def _each(self, x: Tensor, moved: Callable[[Action, Tensor], Tensor]) -> Tensor:
        pairs = zip(self._moves, self.unpack(x), strict=True)
        return self.packing.joined(moved(move, tensor) for move, tensor in pairs)

    def _maps(self, x: Tensor, moved: Callable[[Action, Tensor], Tensor]) -> Tensor:
        """What is brought back may be a map of the rows: where the inputs are whole numbers, it need not be."""
        return self.packing.each(x, (partial(moved, move) for move in self._moves))

    def _arguments(self) -> dict[str, object]:
        return {"action": self.action, "moves": self._moves, "packing": self.packing}

    def __repr__(self) -> str:
        return f"{self.action!r} on {len(self.inputs)} inputs"


def _check_input(place: int, tensor: object, first: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.ndim == 0:
        raise ValueError(f"Expected input {place} to be a tensor of one row a sample but got {describe_value(tensor)}.")
    if len(tensor) != len(first):
        raise ValueError(f"Expected input {place} to have {len(first)} rows, as input 0, but got {len(tensor)}.")
    if tensor.is_complex():
        raise ValueError(f"Expected input {place} to be real but got {tensor.dtype}.")
