"""How a network is called on a batch where there is no step that calls it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_invariance._arguments import Arguments
from lightning_invariance._containers import describe_value
from lightning_invariance._locate import (
    LABEL_NAMES,
    InputSpec,
    Place,
    locate_in_batch,
    locate_in_call,
    refuse_list_of_samples,
)
from lightning_invariance.actions import Action


def arguments_of(
    network: Callable[..., Any], batch: Any, input: InputSpec, target: Place | None, action: Action
) -> Arguments:
    """What the network is called with on a batch, and which of it the group acts on.

    Args:
        network: a module or a function.
        batch: what the data loader gave.
        input: where the network's arguments hold the input.
        target: where the batch holds the labels.
        action: the group.

    Raises:
        ValueError: if the network does not take what the batch holds, or the input cannot be found.
    """
    refuse_list_of_samples(batch)
    takes = _Parameters(network)
    if isinstance(batch, Mapping):
        given: dict[Any, Any] = {
            key: value for key, value in batch.items() if takes.needs(key) or not _is_label(key, target)
        }
        if takes.accepts(given):
            return locate_in_call((), given, input, action)
        if takes.accepts_some_of(given):
            return locate_in_call((), {key: given[key] for key in given if takes.knows(key)}, input, action)
        if takes.whole:
            return locate_in_call((given,), {}, input, action)
        # It has no keywords of these names: the input is its only argument.
        return Arguments.positional(locate_in_batch(given, input, action).inputs)
    args = tuple(batch) if isinstance(batch, (list, tuple)) else (batch,)
    pair = len(args) == 2 and isinstance(args[0], (list, tuple)) and not isinstance(args[1], (list, tuple))
    if pair and takes.least in (1, len(args[0])):  # ((x, ...), target)
        args = args[:1]
    elif isinstance(target, int) and len(args) > 1 and -len(args) <= target < len(args):
        args = tuple(part for place, part in enumerate(args) if place != target % len(args))
    elif len(args) > 1 and takes.least < len(args):
        args = args[:-1]
    if len(args) == 1 and isinstance(args[0], (list, tuple)) and (len(args[0]) == 1 or takes.least == len(args[0])):
        args = tuple(args[0])
    named = input if isinstance(input, (list, tuple)) else [input]
    positions = [place for place in named if isinstance(place, int) and -len(args) <= place < len(args)]
    if len(args) > takes.most >= len(named) == len(positions):
        return Arguments.positional(tuple(args[place] for place in positions))
    if not takes.least <= len(args) <= takes.most or not any(isinstance(each, (Tensor, Mapping)) for each in args):
        raise ValueError(
            f"Expected `batches` to give tensors x, pairs (x, target), or as many parts as `network` takes "
            f"({takes}), and a target, but got {describe_value(batch)}: say where the labels are with `target=` "
            "and the input with `input=`, or pass a function of the parts that are there."
        )
    return locate_in_call(args, {}, input, action)


def without_fabric(network: Callable[..., Any]) -> Callable[..., Any]:
    """The network, or what is inside one that Fabric has set up, run in its precision.

    Fabric lets no gradient pass its wrapper but by ``fabric.backward``.
    """
    # By name: only the callbacks know Lightning.
    if type(network).__name__ != "_FabricModule":
        return network
    wrapper: Any = network
    precision = wrapper._strategy.precision
    inner = wrapper._forward_module
    if type(inner).__name__ != "FullyShardedDataParallel":
        inner = wrapper.module

    def run(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = precision.convert_input((args, kwargs))
        with precision.forward_context():
            output = inner(*args, **kwargs)
        return precision.convert_output(output)

    return run


def _is_label(key: Any, target: Place | None) -> bool:
    return key == target if target is not None else key in LABEL_NAMES


class _Parameters:
    """The parameters of a network's forward, or of a function."""

    def __init__(self, network: Callable[..., Any]) -> None:
        function = network
        # What Fabric, DDP and torch.compile put around a network takes anything.
        while type(function).__name__ in ("_FabricModule", "DistributedDataParallel", "OptimizedModule"):
            inner: Any = function
            function = inner._orig_mod if hasattr(inner, "_orig_mod") else inner.module
        try:
            parameters = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
        except (TypeError, ValueError):  # written in C, say
            self._named: set[str] = set()
            self._needed: set[str] = set()
            self.least, self.most, self._any_keyword = 1, float("inf"), False
            self.whole = False
            return
        kinds = inspect.Parameter
        positional = [
            each for each in parameters.values() if each.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        ]
        named = [each for each in parameters.values() if each.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
        several = any(each.kind is kinds.VAR_POSITIONAL for each in parameters.values())
        self._any_keyword = any(each.kind is kinds.VAR_KEYWORD for each in parameters.values())
        self._named = {each.name for each in named}
        self._needed = {each.name for each in named if each.default is kinds.empty}
        self.least = sum(each.default is kinds.empty for each in positional)
        self.most = float("inf") if several else len(positional)
        # Whether its only parameter is for a batch as it is, going by its name or annotation.
        self.whole = len(positional) == 1 and any(
            word in f"{positional[0].name} {positional[0].annotation}" for word in ("batch", "dict", "Dict", "Mapping")
        )

    def knows(self, name: Any) -> bool:
        """Whether there is a parameter of that name."""
        return name in self._named

    def needs(self, name: Any) -> bool:
        """Whether there is one that has no default."""
        return name in self._needed

    def accepts(self, given: Mapping[Any, Any]) -> bool:
        """Whether it can be called with these keywords."""
        return (self._any_keyword or set(given) <= self._named) and self._needed <= set(given)

    def accepts_some_of(self, given: Mapping[Any, Any]) -> bool:
        """Whether it can be called with some of them."""
        return bool(self._named & set(given)) and self._needed <= set(given)

    def __str__(self) -> str:
        most = "any number" if self.most == float("inf") else f"{self.most}"
        return most if self.most == self.least else f"{self.least} to {most}"
