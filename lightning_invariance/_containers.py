"""Nested containers of tensors: batches and arguments, as people pass them about; and what to call what is in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

#: The steps from a container to a value inside it: keys and positions.
Path = tuple[Any, ...]

ARGUMENTS = "the network's arguments"


def walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in nested containers, with the path to it."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from walk(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from walk(item, (*path, place))


def get(root: Any, path: Path) -> Any:
    """The value at the end of a path."""
    for step in path:
        root = root[step]
    return root


def replace_at(value: Any, path: Path, new: Any) -> Any:
    """A copy of nested containers with one place exchanged; what lies elsewhere is shared."""
    if not path:
        return new
    step, rest = path[0], path[1:]
    if isinstance(value, Mapping):
        changed = dict(value)
        changed[step] = replace_at(value[step], rest, new)
        return changed if type(value) is dict else _like(value, changed)
    items = list(value)
    items[step] = replace_at(items[step], rest, new)
    return _like(value, items)


def _like(value: Any, items: Any) -> Any:
    """A container of the same class."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*items)
    return type(value)(items)


def repeat_rows(value: Any, samples: int, times: int) -> Any:
    """A copy in which the tensors of one row a sample hold the samples so many times over."""

    def repeat(rows: Any) -> Any:
        return rows.repeat(times, *(1,) * (rows.ndim - 1)) if isinstance(rows, Tensor) else rows * times

    return _map_rows(repeat, value, samples)


def cut_rows(value: Any, samples: int, kept: slice) -> Any:
    """A copy in which the tensors of one row a sample hold some of the samples alone, as ordinary tensors."""

    def ordinary(tensor: Tensor) -> Tensor:
        # Outside of inference mode no gradient can pass an inference tensor, nor a view of one.
        return tensor.clone() if tensor.is_inference() else tensor

    return map_tensors(ordinary, _map_rows(lambda rows: rows[kept], value, samples))


def take_row(value: Any, samples: int, index: int) -> Any:
    """A copy in which the tensors of one row a sample hold one of them alone, and share no memory."""
    return map_tensors(Tensor.clone, _map_rows(lambda rows: rows[index : index + 1], value, samples))


def _map_rows(function: Callable[[Any], Any], value: Any, samples: int) -> Any:
    """A copy of nested containers in which what has one row a sample is exchanged: tensors, and lists of mappings."""
    if isinstance(value, list) and len(value) == samples and all(isinstance(item, Mapping) for item in value):
        return function(value)
    if isinstance(value, Tensor):
        return function(value) if value.ndim > 0 and len(value) == samples else value
    if isinstance(value, Mapping):
        items = {key: _map_rows(function, item, samples) for key, item in value.items()}
        return items if type(value) is dict else _like(value, items)
    if isinstance(value, (list, tuple)):
        return _like(value, [_map_rows(function, item, samples) for item in value])
    return value


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A copy of nested containers with every tensor in them exchanged."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        items = {key: map_tensors(function, item) for key, item in value.items()}
        return items if type(value) is dict else _like(value, items)
    if isinstance(value, (list, tuple)):
        return _like(value, [map_tensors(function, item) for item in value])
    return value


# Words ----------------------------------------------------------------------------------------------------------------


def place_in_words(path: Path, where: str = ARGUMENTS) -> str:
    """A path as people write it: ``argument 0['image']``, ``the batch[1]``."""
    inside = "".join(f"[{step!r}]" for step in path[2:])
    if path[:1] == ("kwargs",):
        return f"keyword {path[1]!r}{inside}"
    return f"the batch{inside}" if where == "the batch" else f"argument {path[1]}{inside}"


def describe_value(value: Any) -> str:
    """What a value is, for messages: a tensor's shape and precision, what a container holds, or a class."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return describe_nested(value)


def describe_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What a call's arguments are, for messages."""
    parts = [describe_nested(value) for value in args] + [
        f"{key}={describe_nested(value)}" for key, value in kwargs.items()
    ]
    return ", ".join(parts) or "nothing"


def describe_nested(value: Any) -> str:
    """What a value is, or what a container holds, without precisions."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + _some(f"{key!r}: {describe_nested(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + _some(describe_nested(item) for item in value) + "]"
    return type(value).__name__


def _some(parts: Iterator[str], most: int = 8) -> str:
    """The first few: a list of samples can be long."""
    listed = list(parts)
    return ", ".join(listed[:most] + ["..."] * (len(listed) > most))
