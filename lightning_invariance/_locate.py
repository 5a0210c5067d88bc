"""Finds the input, the labels and the logits in whatever a user's step, batch or network passes about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_invariance._arguments import Arguments
from lightning_invariance._containers import (
    ARGUMENTS,
    Path,
    describe_call,
    describe_nested,
    describe_value,
    get,
    place_in_words,
)
from lightning_invariance.actions import Action
from lightning_invariance.actions._base import is_scaled
from lightning_invariance.actions._packing import Packing

#: Where a tensor is: a position, a key or a keyword, or several of these joined by dots (``"0.image"``).
Place = int | str

#: Where the tensors are that the group acts on; a list says that nothing else moves.
InputSpec = Place | Sequence[Place] | None

#: From a network's output to its logits.
LogitsOf = Callable[[Any], Tensor]

#: The names by which a mapping's entry is taken for labels.
LABEL_NAMES = ("label", "labels", "target", "targets", "y")


def check_place(name: str, place: object) -> None:
    """Raises a `ValueError` unless `place` is a position, a key or None."""
    if place is not None and (not isinstance(place, (int, str)) or isinstance(place, bool)):
        raise ValueError(f"Expected `{name}` to be a position, a key or None but got {place!r}.")


def check_input_spec(name: str, spec: object) -> None:
    """Raises a `ValueError` unless `spec` is a place, a list of distinct places or None."""
    if not isinstance(spec, (list, tuple)):
        check_place(name, spec)
        return
    for place in spec:
        check_place(f"each of {name}", place)
    if not spec or None in spec or len(set(spec)) != len(spec):
        raise ValueError(f"Expected `{name}` to name distinct tensors, at least one, but got {spec!r}.")


def check_logits_of(logits: object) -> None:
    """Raises a `ValueError` unless `logits` is a function or None."""
    if logits is not None and not callable(logits):
        raise ValueError(f"Expected `logits` to be a function of the network's output or None but got {logits!r}.")


def locate_in_call(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    spec: InputSpec,
    action: Action | None,
    names: Sequence[str] = (),
) -> Arguments:
    """Finds the tensors that the group acts on among the arguments of a network's call.

    Args:
        args: the call's positional arguments.
        kwargs: its keyword arguments.
        spec: where they are; None for the only tensor that can be meant: the only one that the group can act on.
        action: the group; None where no group acts, and the only tensor can be meant.
        names: what the network calls its positional arguments, which can be named so.

    Raises:
        ValueError: if a place holds no tensor, or no or several tensors can be meant.
    """
    where = ARGUMENTS
    if spec is not None:
        return _named(args, kwargs, spec, where, names)
    tensors = list(_candidates({"args": args, "kwargs": kwargs}, action))
    return Arguments(args, kwargs, (_the_only(tensors, action, args, kwargs, where),))


def locate_in_batch(batch: Any, spec: InputSpec, action: Action | None, besides: Sequence[Path] = ()) -> Arguments:
    """Finds the tensors that the group acts on in a batch, which becomes the only argument.

    By default the last part of a sequence is taken for its target, and so is what is named like labels in a mapping.

    Args:
        batch: what the data loader gave.
        spec: where they are; None for the only tensor that can be meant.
        action: the group; None where no group acts.
        besides: what is known to be something else.

    Raises:
        ValueError: if a place holds no tensor; if no or several tensors can be meant; if the batch is a list of
            samples, or the tensor has another number of rows than the target.
    """
    where = "the batch"
    args = (batch,)
    if spec is not None:
        return _named(args, {}, spec, where)
    refuse_list_of_samples(batch)
    target: Path | None = None
    tensors = [each for each in _candidates({"args": args, "kwargs": {}}, action) if each.path not in besides]
    if isinstance(batch, (list, tuple)) and len(batch) > 1 and not _are_alike(batch[0], batch[-1]):
        target = ("args", 0, len(batch) - 1)
        before = [each for each in tensors if each.path[:3] != target]
        if any(each.movable for each in before) or not any(each.movable for each in tensors):
            tensors = before or tensors
        else:
            target = None
    path = _the_only(tensors, action, args, {}, where)
    arguments = Arguments(args, {}, (path,))
    x = arguments.inputs[0]
    labels = None if target is None else get({"args": args}, target)
    if isinstance(labels, Tensor) and labels.ndim and len(labels) != len(x):
        raise ValueError(
            f"Expected the input to be a tensor of one row a sample but {place_in_words(path, 'the batch')} "
            f"has {len(x)} rows and {place_in_words(target or (), 'the batch')} has {len(labels)}: name the input with "
            "`input=`."
        )
    return arguments


def locate_targets(batch: Any, spec: Place | None, names: Sequence[str] | None) -> Arguments:
    """Finds the tensors of a batch's target, whatever they hold; the batch becomes the only argument.

    Args:
        batch: what the data loader gave.
        spec: where the target is; by default the last part of a sequence, or the entry that is named like labels.
        names: the entries of a target that is a mapping; None for one that is a tensor.

    Raises:
        ValueError: if there is no such tensor.
    """
    path: Path | None = None
    if spec is not None:
        path = next(iter(_paths_of((batch,), {}, spec)), None)
    elif isinstance(batch, Mapping):
        path = next((("args", 0, name) for name in LABEL_NAMES if name in batch), None)
    elif isinstance(batch, (list, tuple)) and len(batch) > 1:
        path = ("args", 0, len(batch) - 1)
    if path is None:
        raise ValueError(
            f"Expected to find the target in the batch, {describe_nested(batch)}, but found none: say with "
            "`target=` where it is."
        )
    target = get({"args": (batch,), "kwargs": {}}, path)
    paths = (path,) if names is None else tuple((*path, name) for name in names)
    whole = isinstance(target, Tensor) if names is None else isinstance(target, Mapping)
    lacking = [] if names is None or not whole else [name for name in names if not isinstance(target.get(name), Tensor)]
    if not whole or lacking:
        wanted = "a tensor" if names is None else f"a mapping with tensors called {list(names)}"
        raise ValueError(
            f"Expected the target at {place_in_words(path, 'the batch')} to be {wanted} but got "
            f"{describe_nested(target)}: name it with `target=`, or its parts in a dict, `target_action={{...}}`."
        )
    return Arguments((batch,), {}, paths)


def refuse_list_of_samples(batch: Any) -> None:
    """Raises a `ValueError` where a batch is a list of mappings, one a sample, or has one in it."""
    if not isinstance(batch, (list, tuple)):
        return
    for items in (batch, *batch):
        if isinstance(items, (list, tuple)) and items and all(isinstance(item, Mapping) for item in items):
            raise ValueError(
                f"Expected the input to be a tensor of one row a sample but the batch holds a list of "
                f"samples, {describe_nested(batch)}: collate them into one tensor (in `collate_fn`), or, if these are "
                "batches of several loaders, name the tensor with `input=` (such as '0.image')."
            )


@dataclass(frozen=True)
class Labels:
    """The labels of a batch, or where they were looked for.

    Attributes:
        tensor: one integer a sample, shape ``(B,)``, or a place, ``(B, ..., H, W)``; None where there are none.
        place: where they are; or where was looked and what is there, in words.
        found: what is there, labels or not: numbers, or a mapping of these by the names of a network's outputs.
    """

    tensor: Tensor | None
    place: str
    found: Any = None

    def of(self, logits: Tensor) -> Tensor | None:
        """The labels that belong to these logits: one a sample, or one for each place behind the classes."""
        target = self.tensor
        if target is None:
            return None
        if logits.ndim <= 2:
            return target if target.ndim == 1 else None
        places = (len(logits), *logits.shape[2:])
        if target.shape == (len(logits), 1, *logits.shape[2:]):  # masks with a channel
            return target[:, 0]
        return target if target.shape == places else None

    def for_logits(self, logits: Tensor) -> Labels:
        """The same, without labels where those that there are belong to no such logits."""
        target = self.of(logits)
        if target is None and self.tensor is not None:
            return replace(self, tensor=None, place=f"{self.place} is {describe_value(self.tensor)}")
        return replace(self, tensor=target)

    def first(self, samples: int) -> Labels:
        """Those of the first samples."""
        tensor = None if self.tensor is None else self.tensor[:samples]
        return replace(self, tensor=tensor, found=_cut(self.found, samples))

    def are_values(self, logits: Tensor) -> bool:
        """Whether what is there are the numbers that a regression of several outputs is to give, no probabilities."""
        found = self.found
        if not isinstance(found, Tensor) or not found.is_floating_point() or found.shape != logits.shape:
            return False
        rows = found.detach().double()
        shares = bool((rows >= 0).all()) and bool(((rows.sum(dim=1) - 1).abs() < 1e-3).all())
        return not shares

    def values_of(self, logits: Tensor) -> Tensor | None:
        """The numbers that these outputs are to be, of their shape; None where there are none."""
        found = self.found
        if not isinstance(found, Tensor) or not found.is_floating_point():
            return None
        if found.shape == logits.shape:
            return found
        shapes = ((len(logits),), (len(logits), 1))  # one number a sample
        return found.reshape(logits.shape) if found.shape in shapes and logits.shape in shapes else None

    def part(self, output: str | None) -> Labels:
        """Those of one of several outputs: the entry of its name, where what is there is a mapping with one."""
        value = self.found.get(output) if isinstance(self.found, Mapping) and self.tensor is None else None
        if not isinstance(value, Tensor) or value.ndim == 0:
            return self
        tensor = value if name_classes(value, len(value)) else None
        return Labels(tensor, f"the entry {output!r} of the target", value)

    def in_words(self) -> str:
        """Where they are, or that there are none."""
        return f"at {self.place}" if self.tensor is not None else f"none ({self.place}; `target=` names them)"


def _cut(found: Any, samples: int) -> Any:
    if isinstance(found, Mapping):
        return {key: _cut(value, samples) for key, value in found.items()}
    return found[:samples] if isinstance(found, Tensor) and found.ndim else found


def locate_target(
    batch: Any, spec: Place | None, samples: int, inputs: Sequence[Tensor] = (), last: bool = False
) -> Labels:
    """The labels of a batch.

    Args:
        batch: what the data loader gave.
        spec: where they are; if None, the second part of a pair, or an entry named like a label, that holds one
            integer a sample.
        samples: B.
        inputs: tensors that the network was called with: none of them is the labels.
        last: whether the last of more than two parts is the target, too.

    Raises:
        ValueError: if `spec` is given and names neither labels nor numbers to compare with, one row a sample.
    """
    if spec is None:
        return _labels_by_default(batch, samples, inputs, last)
    value = None
    for path in _paths_of((batch,), {}, spec):
        value = get({"args": (batch,), "kwargs": {}}, path)
        break
    if not name_classes(value, samples):
        given = value.values() if isinstance(value, Mapping) else [value]
        if any(_are_numbers(each, samples) and not any(each is one for one in inputs) for each in given):
            place = place_in_words(path, "the batch")
            return Labels(None, f"{place} is {describe_value(value)}", value)
        raise ValueError(
            f"Expected target={spec!r} to name {samples} integer labels in the batch but got "
            f"{describe_value(value)}: the batch is {describe_nested(batch)}."
        )
    return Labels(value, place_in_words(path, "the batch"), value)


def _are_numbers(value: Any, samples: int) -> bool:
    """Whether `value` holds floating-point numbers, one row a sample: what a regression is to give."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0 and len(value) == samples


def _labels_by_default(batch: Any, samples: int, inputs: Sequence[Tensor], last: bool) -> Labels:
    if isinstance(batch, Mapping):
        named = [key for key in LABEL_NAMES if key in batch]
        for key in named:
            if name_classes(batch[key], samples):
                return Labels(batch[key], f"the batch[{key!r}]", batch[key])
        if named:
            looked = "; ".join(f"the batch[{key!r}] is {describe_value(batch[key])}" for key in named)
            return Labels(None, looked, batch[named[0]])
        # What several outputs are to be may stand in the batch by their names.
        others = {key: value for key, value in batch.items() if not any(value is each for each in inputs)}
        return Labels(None, f"the batch has no entry called {', '.join(LABEL_NAMES)}", others)
    if isinstance(batch, (list, tuple)) and (len(batch) == 2 or (last and len(batch) > 2)):
        place = f"the batch[{len(batch) - 1}]"
        if any(batch[-1] is each for each in inputs):
            return Labels(None, f"{place} is an argument of the network")
        if name_classes(batch[-1], samples):
            return Labels(batch[-1], place, batch[-1])
        return Labels(None, f"{place} is {describe_value(batch[-1])}", batch[-1])
    return Labels(None, f"the batch is no pair and no mapping but {describe_value(batch)}")


def are_labels(value: Any, samples: int) -> bool:
    """Whether `value` holds one class a sample: integers of shape ``(samples,)``."""
    return (
        isinstance(value, Tensor)
        and value.shape == (samples,)
        and not value.is_floating_point()
        and not value.is_complex()
    )


def name_classes(value: Any, samples: int) -> bool:
    """Whether `value` holds one class a sample, or one for each of its places."""
    return are_labels(value, samples) or are_masks(value, samples)


def are_masks(value: Any, samples: int) -> bool:
    """Whether `value` holds one class for each place of each sample: integers ``(samples, ..., H, W)``."""
    return (
        isinstance(value, Tensor)
        and value.ndim >= 3
        and len(value) == samples
        and not value.is_floating_point()
        and not value.is_complex()
        and value.dtype != torch.bool
    )


def stray_labels(labels: Labels, logits: Tensor) -> list[str]:
    """What to warn of where labels name no class (this waits for the device)."""
    classes = logits.shape[1] if logits.ndim >= 2 else 0
    target = labels.of(logits)
    if target is None or classes < 2 or not target.numel():
        return []
    low, high = int(target.min()), int(target.max())
    if low >= 0 and high < classes:
        return []
    found = f"labels at {labels.place} go from {low} to {high}, but the network has the classes 0 to {classes - 1}: "
    if target.ndim > 1:
        # Places to be ignored are common; a mask of 0 and 255 is one of two classes that names one.
        named = target[(target >= 0) & (target < classes)].unique()
        if len(named) > 1:
            return []
        return [f"{found}places of others are ignored, and those that are left are of one class alone."]
    return [
        f"{found}those that name none count as wrong, and maps explain the predicted class instead. Other "
        "labels are named with `target=`."
    ]


class OutputReader:
    """Takes the logits out of a network's output; several outputs that are named are packed into one.

    Args:
        select: from the output to its logits (to a mapping or an object with those that are named); the output itself,
            or its ``logits``, if None.
        names: the outputs that are named, where there are several.
    """

    def __init__(self, select: LogitsOf | None, names: Sequence[str] | None = None) -> None:
        self._select = select
        self._names = names
        self._packing: Packing | None = None

    def read(self, output: Any, samples: int) -> Tensor:
        """The logits of so many samples.

        Raises:
            ValueError: if there are none, or they are not floating point, one row a sample.
        """
        found = self.tensors(output, samples)
        if self._names is None:
            return found[None]
        self._packing = Packing.of(tuple(found.values()))
        return self._packing.pack(found.values())

    def tensors(self, output: Any, samples: int) -> dict[str | None, Tensor]:
        """The logits by their names, or by None where there is one tensor; errors are those of `read`."""
        if self._names is None:
            logits = logits_of(output, self._select)
            check_rows(logits, samples)
            return {None: logits}
        entries = self.entries(output)
        for name, value in entries.items():
            check_rows(value, samples, f"the output {name!r} of the network")
        return dict(entries.items())

    def entries(self, output: Any) -> dict[str, Tensor]:
        """The tensors that are named, whatever they hold.

        Raises:
            ValueError: if one is none.
        """
        given = output if self._select is None else self._select(output)
        names = self._names or ()
        found: dict[str, Any] = {name: _entry(given, name) for name in names}
        lacking = [name for name, value in found.items() if not isinstance(value, Tensor)]
        if lacking:
            raise ValueError(
                f"Expected the network to return a mapping or an object with tensors called "
                f"{list(names)}, as `output_action` names them, but {lacking} are none in "
                f"{describe_value(given)}."
            )
        return found

    def in_words(self, logits: Tensor) -> str:
        """What the logits are; of several, each."""
        if self._packing is None or self._names is None:
            return describe_value(logits)
        parts = zip(self._names, self._packing.unpack(logits), strict=True)
        return ", ".join(f"{name} {describe_value(part)}" for name, part in parts)

    def packed(self) -> Packing | None:
        """How several outputs were packed, once some were read."""
        return self._packing


def _entry(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def logits_of(output: Any, select: LogitsOf | None) -> Tensor:
    """The logits in a network's output.

    Args:
        output: a tensor, or a mapping or an object with ``logits`` in it; anything that `select` takes.
        select: takes the logits out of the output.

    Raises:
        ValueError: if there are none.
    """
    if select is not None:
        selected = select(output)
        if not isinstance(selected, Tensor):
            raise ValueError(f"Expected `logits` to give a tensor but got {describe_value(selected)}.")
        return selected
    if isinstance(output, Tensor):
        return output
    logits = _entry(output, "logits")
    if isinstance(logits, Tensor):
        return logits
    raise ValueError(
        f"Expected the network to return logits (a tensor, or something with `logits` in it) but got "
        f"{describe_value(output)}: take them out with `logits=`, a function of the output, or name the submodule that "
        "gives them with `network=`."
    )


def check_rows(logits: Tensor, samples: int, whose: str = "the network") -> None:
    """Raises a `ValueError` unless the logits are floating point, one row a sample."""
    if not logits.is_floating_point():
        raise ValueError(
            f"Expected {whose} to give logits, floating point, but got {describe_value(logits)}: take "
            "them out with `logits=`, a function of the network's output."
        )
    if logits.ndim == 0 or len(logits) != samples:
        raise ValueError(
            f"Expected {whose} to give one row of logits for each of {samples} samples but got "
            f"{describe_value(logits)}: make them so with `logits=`, a function of the network's output."
        )


def resolve_network(module: nn.Module, name: str | None) -> nn.Module:
    """The submodule of that name, or the module itself.

    Raises:
        ValueError: if there is none of that name.
    """
    if name is None:
        return module
    try:
        return module.get_submodule(name)
    except AttributeError:
        children = ", ".join(repr(child) for child, _ in module.named_children())
        raise ValueError(
            f"Expected `network` to name a submodule of {type(module).__name__} (such as {children}) but got {name!r}."
        ) from None


#: How a tensor is moved that is not the input.
_HOW = {ARGUMENTS: "", "the batch": "a target moves by `target_action='same'`; otherwise "}


def what_stays(
    spec: InputSpec, action: Action, arguments: Arguments, logits: Tensor | None, where: str = ARGUMENTS
) -> list[str]:
    """What to warn of: tensors, or an output, with the places that the group moves in the input, that are not moved.

    Args:
        spec: where the input is; a list says that nothing else moves.
        action: the group.
        arguments: what was found.
        logits: the network's output, where it is known.
        where: what was searched.
    """
    x = arguments.inputs[0]
    places = action.places_in(x)
    said = []
    listed = isinstance(spec, (list, tuple))
    staying = [] if listed else [path for path, other in arguments.others if _is_left(action, x, other)]
    if staying:
        names = ", ".join([place_in_words(path, where) for path in staying[:4]] + ["..."] * (len(staying) > 4))
        moved = place_in_words(arguments.paths[0], where)
        said.append(
            f"{action!r} moves {moved}, but {names} of the same places stays as it is: {_HOW[where]}name all "
            "that move together in a list, `input=[...]`; a list of one says that nothing else moves."
        )
    if x.ndim == 3 and len(x) in (1, 3, 4) and min(x.shape[1:]) > 4 and set(places or ()) == {-2, -1}:
        said.append(
            f"each of the {len(x)} rows of {describe_value(x)} is taken for a sample, but it looks as if it "
            "were one image with its channels: samples come first in a batch, also where there is only one."
        )
    width = x.shape[-1] if x.ndim == 4 else 0
    if width in (1, 3, 4) and min(x.shape[1:3]) > 4 and places and set(places) <= {-2, -1}:
        said.append(
            f"{action!r} moves images in the last two dimensions, but {describe_value(x)} looks as if it had "
            "its channels last: move them in front of height and width."
        )
    if logits is not None and _has_the_places(action, x, logits):
        said.append(
            f"the network's output, {describe_value(logits)}, has the places that {action!r} moves in the "
            f"input, {describe_value(x)}, but is compared as it is: if it moves with the input, as a segmentation or "
            "forces do, say so with output_action='same', or it has an error however equivariant the network is."
        )
    return said


def _is_left(action: Action, x: Tensor, other: Tensor) -> bool:
    """Whether `other` has the places of `x` and would not stay as it is: a mask of padding does, which is not moved."""
    if not _has_the_places(action, x, other):
        return False
    try:
        reads = action.attached(x) is not action
        move = action.alongside(x, other)
        return not reads or any(not torch.equal(move.act(other, g), other) for g in range(1, min(len(action), 5)))
    except ValueError:
        return True


def _has_the_places(action: Action, x: Tensor, other: Tensor) -> bool:
    """Whether `other` has places, or vectors, that the group moves in `x`; it may have fewer, as a feature map has."""
    places = action.places_in(x)
    if places == () and other.shape == x.shape and x.ndim > 2:
        return other.is_floating_point()  # vectors at each of the points
    if other.ndim < 2 or other.ndim < x.ndim - 1 or len(other) != len(x):
        return False
    if places is None:  # a user's functions that do more than move values: images, most likely
        places = (-2, -1) if x.ndim >= 3 else (-1,)
    if not places or -min(places) > x.ndim - 1:
        return False
    try:
        moved = action.alongside(x, other).places_in(other)
    except ValueError:
        return False
    moved = places if moved is None else moved
    if not moved or -min(moved) > other.ndim - 1:
        return False
    whole = not (other.is_floating_point() or other.is_complex())  # labels of each place
    if x.ndim >= 4 and other.ndim >= 3 and set(places) <= {-2, -1} and moved == places:
        # An image, whichever of its dimensions are moved. Small matrices of numbers are poses, features, attention.
        if other.ndim < x.ndim and not whole:
            return x.shape[-2:] == other.shape[-2:]
        return is_scaled(x.shape[-2:], other.shape[-2:])
    if len(places) == 1 and other.ndim < x.ndim and moved == places and not whole:
        return False  # a size in common by chance, as many classes as time steps
    return [other.shape[dim] for dim in moved] == [x.shape[dim] for dim in places]


# Paths ----------------------------------------------------------------------------------------------------------------


def _named(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    spec: InputSpec,
    where: str,
    names: Sequence[str] = (),
) -> Arguments:
    root = {"args": args, "kwargs": kwargs}
    paths = []
    for place in spec if isinstance(spec, (list, tuple)) else [spec]:
        found = [path for path in _paths_of(args, kwargs, place) if isinstance(get(root, path), Tensor)]
        if not found and place in names[: len(args)]:
            path = ("args", list(names).index(str(place)))
            found = [path] if isinstance(get(root, path), Tensor) else []
        if not found:
            raise ValueError(
                f"Expected input={spec!r} to name a tensor in {where} but {place!r} is none: "
                f"it holds {describe_call(args, kwargs)}."
            )
        paths.append(found[0])
    arguments = Arguments(args, kwargs, tuple(paths))
    rows = {len(tensor) if tensor.ndim else 0 for tensor in arguments.inputs}
    if len(rows) > 1 or (rows == {0} and not arguments.inputs[0].ndim):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in arguments.inputs)
        raise ValueError(f"Expected input={spec!r} to name tensors of one row a sample but got the shapes {shapes}.")
    return arguments


def _paths_of(args: tuple[Any, ...], kwargs: dict[str, Any], place: Any) -> list[Path]:
    """The paths that a place can mean: a keyword or a key; a position among the arguments or in the only one."""
    root = {"args": args, "kwargs": kwargs}
    starts: list[Path] = [("args", position) for position in range(len(args))]
    if isinstance(place, str):
        found = [("kwargs", place)] if place in kwargs else []
        found += [path for start in starts for path in _steps_into(get(root, start), start, place)]
        if found or "." not in place:
            return found or (_paths_of(args, kwargs, int(place)) if place.isdigit() else [])
        head, rest = place.split(".", 1)
        is_position = head.lstrip("-").isdigit()
        firsts: list[Any] = [head, *([int(head)] if is_position else [])]
        heads = [start for first in firsts for start in _paths_of(args, kwargs, first)]
        heads += starts[int(head) : int(head) + 1] if is_position and int(head) >= 0 else []
        return [path for start in heads for path in _descend(get(root, start), start, rest)]
    only = args[0] if len(args) == 1 else None
    if isinstance(only, (list, tuple)):
        return [("args", 0, place)] if -len(only) <= place < len(only) else []
    return [("args", place)] if -len(args) <= place < len(args) else []


def _steps_into(value: Any, start: Path, step: str) -> list[Path]:
    """One step into a container, by a key or by a position written as a string."""
    if isinstance(value, Mapping) and step in value:
        return [(*start, step)]
    if isinstance(value, (list, tuple)) and step.lstrip("-").isdigit() and -len(value) <= int(step) < len(value):
        return [(*start, int(step))]
    return []


def _descend(value: Any, start: Path, rest: str) -> list[Path]:
    whole = _steps_into(value, start, rest)
    if whole or "." not in rest:
        return whole
    head, tail = rest.split(".", 1)
    return [path for step in _steps_into(value, start, head) for path in _descend(value[step[-1]], step, tail)]


@dataclass(frozen=True)
class _Candidate:
    path: Path
    tensor: Tensor
    movable: bool


def _candidates(root: dict[str, Any], action: Action | None) -> Iterator[_Candidate]:
    """The tensors that could be meant: all of a sequence; of a mapping, the floating-point ones that are no labels."""
    for path, tensor in _walk_candidates(root["args"], ("args",), top=True):
        yield _Candidate(path, tensor, _can_act(action, tensor))
    for path, tensor in _walk_candidates(root["kwargs"], ("kwargs",), top=False):
        yield _Candidate(path, tensor, _can_act(action, tensor))


def _walk_candidates(value: Any, path: Path, top: bool) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        tensors = {key: item for key, item in value.items() if isinstance(item, Tensor) and key not in LABEL_NAMES}
        floating = {key: item for key, item in tensors.items() if item.is_floating_point()}
        for key, item in (floating or tensors).items():
            yield (*path, key), item
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from _walk_candidates(item, (*path, place), top=False)


def _can_act(action: Action | None, tensor: Tensor) -> bool:
    if action is None:
        return tensor.ndim > 0
    try:
        action.check(tensor)
    except ValueError:
        return False
    return True


def _the_only(
    tensors: list[_Candidate],
    action: Action | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    where: str,
) -> Path:
    movable = [each for each in tensors if each.movable]
    if len(movable) == 1:
        return movable[0].path
    if not movable and tensors:
        # None can be moved. The first of a sequence, or the only one of a mapping, is most likely meant: what is wrong
        # with it is for the action to say.
        first = tensors[0].path
        if len(tensors) == 1 or (isinstance(first[-1], int) and first[0] == "args"):
            return first
        movable = tensors
    if not movable:
        raise ValueError(
            f"Expected to find the input in {where}, which holds {describe_call(args, kwargs)}, but there is "
            "no tensor in lists, tuples and mappings that could be one: name one further in with `input=` (such as "
            "'data.image'), or with `network=` a submodule that is called with tensors."
        )
    else:
        places = [f"{place_in_words(each.path, where)} {tuple(each.tensor.shape)}" for each in movable]
        listed = ", ".join([*places[:4], "..."] if len(places) > 4 else places)
        problem = f"several tensors could be meant ({listed})"
    raise ValueError(
        f"Expected to find the input in {where}, which holds {describe_call(args, kwargs)}, but {problem}: "
        "name it with `input=` (a key, a keyword or a position), or all that move together in a list."
    )


def _are_alike(first: Any, last: Any) -> bool:
    """Whether both are batches: of two loaders, say."""
    kinds: tuple[type, ...] = (Mapping, list, tuple)
    return any(isinstance(first, kind) and isinstance(last, kind) for kind in kinds)
