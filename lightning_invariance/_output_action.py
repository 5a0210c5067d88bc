"""How a network's output moves when its input does, and how it is brought back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_invariance._containers import describe_value
from lightning_invariance.actions import Action, Flow
from lightning_invariance.actions._base import check_batch, check_drawn_together, check_paired
from lightning_invariance.actions._packing import Packing
from lightning_invariance.outputs import OrbitOutputs

#: None: the output stays. "same": it moves as the input does. An action: it moves by that one's elements.
OutputAction = Action | Literal["same"] | None

#: The same for each of several tensors, by their names in the output.
OutputActions = OutputAction | Mapping[str, OutputAction]


class OutputMotion:
    """What `output_action` says, for an input that is moved by `action`.

    Args:
        spec: what the user gave.
        action: the group.
        name: the argument's name, for messages.

    Raises:
        ValueError: if `spec` has a wrong type or value, or its elements are not those of `action`.
    """

    def __init__(self, spec: OutputActions, action: Action | None, name: str = "output_action") -> None:
        self.names: tuple[str, ...] | None = None
        self._name = name
        if isinstance(spec, Mapping):
            if not spec or not all(isinstance(key, str) for key in spec):
                raise ValueError(f"Expected `{name}` to map names of outputs to actions but got {spec!r}.")
            self.names = tuple(spec)
        self.spec = spec
        self.action = action
        self._specs: tuple[OutputAction, ...] = tuple(spec.values()) if isinstance(spec, Mapping) else (spec,)
        for each in self._specs:
            if isinstance(each, Action):
                if action is None:
                    raise ValueError(f"Expected `{name}` to be None where no group acts on the input but got {each!r}.")
                check_paired(name, each, action, "action")
            elif each is not None and each != "same":
                raise ValueError(
                    f"Expected `{name}` to be None (the output stays), 'same' (it moves as the input does), an Action, "
                    f"or a dict of these by the output's names, but got {each!r}."
                )

    @property
    def stays(self) -> bool:
        """Whether there is one output, and it is not to move."""
        return self.names is None and self._specs == (None,)

    def flow(self) -> Flow | Literal["same"] | None:
        """How the only output moves, by its generators; None where it stays, "same" where it does as the input.

        Raises:
            ValueError: if it is moved by an action that has no flow, or one of another number of generators.
        """
        spec = self._spec_of(None)
        if spec is None or self.action is None:
            return None
        of_input = self.action.flow
        of_output = of_input if spec == "same" else spec.flow if isinstance(spec, Action) else None
        if of_output is None or of_input is None or len(of_output) != len(of_input):
            raise ValueError(
                f"Expected `{self._name}` to be None, 'same' or an action that has a flow of as many generators as "
                f"{self.action!r} (SO3 for vectors, say), for Lie derivatives, but got {spec!r}."
            )
        return "same" if spec == "same" else of_output

    def is_same(self, name: str | None) -> bool:
        """Whether the output of this name moves as the input does."""
        return self._spec_of(name) == "same"

    def _spec_of(self, name: str | None) -> OutputAction:
        return self._specs[0 if self.names is None or name is None else self.names.index(name)]

    def _with(self, specs: Sequence[OutputAction], action: Action) -> OutputMotion:
        spec = specs[0] if self.names is None else dict(zip(self.names, specs, strict=True))
        return OutputMotion(spec, action, self._name)

    @property
    def changes_values(self) -> bool:
        """Whether an action is known to change values, and not only to move them from place to place."""
        actions = [self.action if spec == "same" else spec for spec in self._specs]
        return any(
            isinstance(each, Action) and each.places is not None and bool(set(each.dims or ()) - set(each.places))
            for each in actions
        )

    def redrawn(self, seed: int, action: Action) -> OutputMotion:
        """The same for `action`, which was drawn anew with this seed.

        Raises:
            ValueError: if the elements of one are drawn, and those of the other are not.
        """
        if not action.drawn and not any(isinstance(each, Action) and each.drawn for each in self._specs):
            return self if action is self.action else self._with(self._specs, action)
        return self._with([self._redrawn(each, seed, action) for each in self._specs], action)

    def _redrawn(self, spec: OutputAction, seed: int, action: Action) -> OutputAction:
        if not isinstance(spec, Action):
            return spec
        check_drawn_together(self._name, spec, action)
        return spec.redrawn(seed)

    def fresh(self, n: int, generator: torch.Generator, action: Action) -> OutputMotion:
        """The same for `action`, which `Action.fresh` gave for the same stream.

        Raises:
            ValueError: if the elements of one are drawn, and those of the other are not.
        """
        if self.action is None or not self.action.drawn:
            return self if action is self.action else self._with(self._specs, action)
        state = generator.get_state()
        specs: list[OutputAction] = []
        for spec in self._specs:
            if isinstance(spec, Action):
                check_drawn_together(self._name, spec, self.action)
                generator.set_state(state)
                spec, _ = spec.fresh(n, generator)
            specs.append(spec)
        return self._with(specs, action)

    def of_target(self, name: str | None, action: Action, x: Tensor, target: Tensor) -> Action | None:
        """The action on a target that belongs to `x`; None where it stays.

        Raises:
            ValueError: if it cannot act on it.
        """
        return self._on_one(self._spec_of(name), action, x, target, "" if name is None else f" {name!r}", "the target")

    def of_output(self, name: str | None, action: Action, x: Tensor, output: Tensor) -> Action | None:
        """The action on the network's output of this name; None where it stays.

        Raises:
            ValueError: if it cannot act on it.
        """
        return self._on_one(self._spec_of(name), action, x, output, "" if name is None else f" {name!r}")

    def on(self, action: Action, x: Tensor, logits: Tensor, packing: Packing | None) -> Action | None:
        """The action on the logits of `x`; None where they stay.

        Args:
            action: the group as it acts on `x`.
            x: the batch.
            logits: the network's, several packed.
            packing: how they are packed.

        Raises:
            ValueError: if it cannot act on them; the message says on which.
        """
        if packing is None:
            return self._on_one(self._specs[0], action, x, logits, "")
        tensors = packing.unpack(logits)
        names = self.names or ()
        moves = [
            self._on_one(spec, action, x, tensor, f" {name!r}")
            for name, spec, tensor in zip(names, self._specs, tensors, strict=True)
        ]
        return None if moves == [None] * len(moves) else PackedAction(action, moves, packing)

    def _on_one(
        self,
        spec: OutputAction,
        action: Action,
        x: Tensor,
        logits: Tensor,
        which: str,
        what: str = "the network's output",
    ) -> Action | None:
        if spec is None:
            return None
        try:
            if isinstance(spec, Action):
                spec = spec if logits.is_floating_point() else spec.for_whole_numbers()
                spec.check(logits)
                if spec.attached(logits) is not spec:
                    raise ValueError(
                        f"{spec!r} would read from it which places are padding: 'same' takes them from the input."
                    )
                return spec
            return action.on_output(x, logits)
        except ValueError as error:
            raise ValueError(
                f"Expected `{self._name}` to be able to act on {what}{which}, {describe_value(logits)}, "
                f"but {spec!r} is not: {error}"
            ) from error

    def __repr__(self) -> str:
        return repr(self.spec)


def mixed_dims(action: Action | None, x: Tensor) -> set[int] | None:
    """The dimensions along which an action changes values, and does not only move them from place to place.

    What it acts on are no scores of classes where there are some, but vectors, say. None where they are not known.
    """
    if action is None:
        return set()
    places = action.places_in(x)
    if places is None or (action.dims is None and not places):
        return None
    return set() if action.dims is None else set(action.dims) - set(places)


class PackedAction(Action):
    """Several outputs of one network, each moved by an action of its own, packed into rows.

    Args:
        action: the group, whose elements they all have.
        moves: how each output moves; None where it stays.
        packing: how they are packed.
    """

    def __init__(self, action: Action, moves: Sequence[Action | None], packing: Packing) -> None:
        self.action = action
        self.moves = tuple(moves)
        self.packing = packing

    def __len__(self) -> int:
        return len(self.action)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.action.labels

    def check(self, x: Tensor) -> None:
        check_batch(self, x, 1)

    def in_view(self, x: Tensor, element: int) -> Tensor | None:
        """The places of each output, packed as they are; see `Action.in_view`."""
        tensors = self.packing.parts(x[:1])
        seen = [
            None if move is None else move.in_view(tensor, element)
            for move, tensor in zip(self.moves, tensors, strict=True)
        ]
        if seen == [None] * len(seen):
            return None
        masks = [
            torch.ones_like(tensor, dtype=torch.bool) if mask is None else mask.expand(tensor.shape)
            for mask, tensor in zip(seen, tensors, strict=True)
        ]
        return torch.cat([mask.reshape(1, -1) for mask in masks], dim=1)

    def _act_one(self, x: Tensor, element: int) -> Tensor:
        return self.packing.each(x, (_moved(move, element, back=False) for move in self.moves))

    def _invert_one(self, x: Tensor, element: int) -> Tensor:
        return self.packing.each(x, (_moved(move, element, back=True) for move in self.moves))

    def _arguments(self) -> dict[str, object]:
        return {"action": self.action, "moves": self.moves, "packing": self.packing}

    def __repr__(self) -> str:
        return f"({', '.join(map(repr, self.moves))})"  # of each output in turn, as users know it


def _moved(move: Action | None, element: int, back: bool) -> Any:
    if move is None:
        return lambda tensor: tensor
    return (lambda tensor: move.invert(tensor, element)) if back else (lambda tensor: move.act(tensor, element))


def bring_back(output_action: Action | None, rows: Tensor, elements: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    r""":math:`\rho(g)^{-1} f(gx)` from :math:`f(gx)`, ``(n, B, ...)``, for n elements, and which places are valid."""
    if output_action is None:
        return rows, None
    back = torch.stack([output_action.invert(row, element) for row, element in zip(rows, elements, strict=True)])
    seen = [output_action.in_view(rows[0], element) for element in elements]
    if all(mask is None for mask in seen):
        return back, None
    shape = next(mask.shape for mask in seen if mask is not None)
    whole = torch.ones(shape, dtype=torch.bool, device=rows.device)
    return back, torch.stack([whole if mask is None else mask for mask in seen])


def split_outputs(outputs: OrbitOutputs, packing: Packing, names: Sequence[str]) -> dict[str, OrbitOutputs]:
    """Packed outputs, by their names."""
    base, orbit = packing.unpack(outputs.logits), packing.unpack(outputs.orbit_logits, before=2)
    valid: Sequence[Tensor | None] = [None] * len(names)
    if outputs.valid is not None:
        valid = packing.parts(outputs.valid, before=2)
    parts = zip(names, base, orbit, valid, strict=True)
    return {name: OrbitOutputs(logits, moved, valid=unless_whole(seen)) for name, logits, moved, seen in parts}


def unless_whole(valid: Tensor | None) -> Tensor | None:
    """None where all places are valid: of several outputs only some may lose places."""
    return None if valid is None or bool(valid.all()) else valid
