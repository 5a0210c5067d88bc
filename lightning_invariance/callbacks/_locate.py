"""Finds the input, the labels and the logits in whatever a user's step passes about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

InputSpec = int | str | None


@dataclass(frozen=True)
class Arguments:
    """The arguments of a call, with the path to the tensor that the group acts on."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    path: tuple[Any, ...]

    @property
    def x(self) -> Tensor:
        """The tensor that the group acts on."""
        value: Any = {"args": self.args, "kwargs": self.kwargs}
        for step in self.path:
            value = value[step]
        assert isinstance(value, Tensor)
        return value

    def first(self, samples: int) -> Arguments:
        """The arguments of the first few samples alone, as ordinary tensors where they are inference tensors."""
        args, kwargs = _cut_rows((self.args, self.kwargs), len(self.x), samples)
        return Arguments(args, kwargs, self.path)

    def with_input(self, x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with another tensor in its place.

        Where `x` holds the samples n times over, the other tensors of one row a sample are repeated likewise.
        """
        samples = len(self.x)
        if len(x) != samples:
            args, kwargs = _repeat_rows((self.args, self.kwargs), samples, len(x) // samples)
        else:
            args, kwargs = self.args, self.kwargs
        replaced = _replace({"args": args, "kwargs": kwargs}, self.path, x)
        return replaced["args"], replaced["kwargs"]

    @property
    def has_other_tensors(self) -> bool:
        """Whether the call takes tensors besides `x`."""
        return len(_tensors((self.args, self.kwargs))) > 1


def locate_input(args: tuple[Any, ...], kwargs: dict[str, Any], spec: InputSpec, owner: str, where: str) -> Arguments:
    """Finds the tensor that the group acts on.

    Args:
        args: a call's positional arguments (or a batch alone).
        kwargs: its keyword arguments.
        spec: where it is: a position, a key or a keyword; None for the only place that it can be.
        owner: the callback, for messages.
        where: what is searched, for messages.

    Raises:
        ValueError: if it is not there, or not the only one that could be meant.
    """
    root = {"args": args, "kwargs": kwargs}
    if spec is not None:
        for path in _named(args, kwargs, spec):
            if isinstance(_get(root, path), Tensor):
                return Arguments(args, kwargs, path)
        raise ValueError(
            f"{owner}: expected input={spec!r} to name a tensor in {where} but it holds {_describe(args, kwargs)}."
        )
    found = _first_tensors(args) or [("kwargs", *path[1:]) for path in _first_tensors((kwargs,))]
    if len(found) == 1:
        return Arguments(args, kwargs, found[0] if found[0][0] == "kwargs" else ("args", *found[0]))
    problem = "several tensors could be meant" if found else "there is no tensor (in a mapping: no float one)"
    raise ValueError(
        f"{owner}: expected to find the input in {where}, which holds {_describe(args, kwargs)}, but {problem}: "
        "name it with `input=` (a key, a keyword or a position)."
    )


def locate_target(batch: Any, spec: InputSpec, samples: int, owner: str) -> Tensor | None:
    """The labels of a batch, shape ``(B,)``, or None where there are none.

    Args:
        batch: what the data loader gave.
        spec: where they are; if None, the second part of a pair, or an entry named like a label, that holds one
            integer a sample.
        samples: B.
        owner: the callback, for messages.

    Raises:
        ValueError: if `spec` is given and names no labels.
    """
    if spec is None:
        if isinstance(batch, Mapping):
            values = [batch[key] for key in ("label", "labels", "target", "targets", "y") if key in batch]
        elif isinstance(batch, Sequence) and len(batch) == 2:
            values = [batch[1]]
        else:
            values = []
        return next((value for value in values if _are_labels(value, samples)), None)
    try:
        value = batch[spec]
    except (KeyError, IndexError, TypeError):
        value = None
    if not _are_labels(value, samples):
        got = f"shape {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{owner}: expected target={spec!r} to name {samples} integer labels in the batch but got {got}."
        )
    assert isinstance(value, Tensor)
    return value


def logits_of(output: Any, owner: str) -> Tensor:
    """The logits in a network's output: a tensor, or what is called ``logits`` in a mapping or an object.

    Raises:
        ValueError: if there are none.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise ValueError(
        f"{owner}: expected the network to return logits (a tensor, or something with `logits` in it) but got "
        f"{type(output).__name__}: name the submodule that gives the logits with `network=`."
    )


def resolve_network(module: nn.Module, name: str | None, owner: str) -> nn.Module:
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
            f"{owner}: expected `network` to name a submodule of {type(module).__name__} (such as {children}) "
            f"but got {name!r}."
        ) from None


def _named(args: tuple[Any, ...], kwargs: dict[str, Any], spec: int | str) -> list[tuple[Any, ...]]:
    """The paths that a name can mean: a keyword or a key; a position among the arguments or in the only one."""
    if isinstance(spec, str):
        inside = [
            ("args", place, spec) for place, value in enumerate(args) if isinstance(value, Mapping) and spec in value
        ]
        return [("kwargs", spec), *inside] if spec in kwargs else list(inside)
    only = args[0] if len(args) == 1 else None
    if isinstance(only, (list, tuple)):
        return [("args", 0, spec)] if -len(only) <= spec < len(only) else []
    return [("args", spec)] if -len(args) <= spec < len(args) else []


def _first_tensors(value: Any) -> list[tuple[Any, ...]]:
    """The path to the first tensor of a sequence, or, as order says nothing there, to each float one of a mapping."""
    if isinstance(value, Tensor):
        return [()]
    if isinstance(value, Mapping):
        return [(key,) for key, item in value.items() if isinstance(item, Tensor) and item.is_floating_point()]
    if isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            found = _first_tensors(item)
            if found:
                return [(place, *path) for path in found]
    return []


def _get(root: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        root = root[step]
    return root


def _replace(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of nested containers with one place exchanged; what lies elsewhere is shared."""
    if not path:
        return new
    step, rest = path[0], path[1:]
    if isinstance(value, Mapping):
        changed = dict(value)
        changed[step] = _replace(value[step], rest, new)
        return changed if type(value) is dict else _like(value, changed)
    items = list(value)
    items[step] = _replace(items[step], rest, new)
    return _like(value, items)


def _like(value: Any, items: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*items)
    return type(value)(items)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _repeat_rows(value: Any, samples: int, times: int) -> Any:
    def repeat(tensor: Tensor) -> Tensor:
        return tensor.repeat(times, *(1,) * (tensor.ndim - 1)) if _has_rows(tensor, samples) else tensor

    return _map_tensors(repeat, value)


def _cut_rows(value: Any, samples: int, kept: int) -> Any:
    def cut(tensor: Tensor) -> Tensor:
        part = tensor[:kept] if _has_rows(tensor, samples) else tensor
        # Outside of inference mode no gradient can pass an inference tensor, nor a view of one.
        return part.clone() if part.is_inference() else part

    return _map_tensors(cut, value)


def _has_rows(tensor: Tensor, samples: int) -> bool:
    return tensor.ndim > 0 and len(tensor) == samples


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        items = {key: _map_tensors(function, item) for key, item in value.items()}
        return items if type(value) is dict else _like(value, items)
    if isinstance(value, (list, tuple)):
        return _like(value, [_map_tensors(function, item) for item in value])
    return value


def _are_labels(value: Any, samples: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.shape == (samples,)
        and not value.is_floating_point()
        and not value.is_complex()
    )


def _describe(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    def kind(value: Any) -> str:
        if isinstance(value, Tensor):
            return f"a tensor {tuple(value.shape)}"
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{key!r}: {kind(item)}" for key, item in value.items()) + "}"
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(kind(item) for item in value) + "]"
        return type(value).__name__

    parts = [kind(value) for value in args] + [f"{key}={kind(value)}" for key, value in kwargs.items()]
    return ", ".join(parts) or "nothing"
