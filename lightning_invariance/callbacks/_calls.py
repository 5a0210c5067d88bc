"""The calls of a network in a step: recorded as they are made, and the one that is meant chosen from them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_invariance._containers import describe_call
from lightning_invariance._isolation import RandomState

#: Which of several calls: an index, the last one, or all of them; None for the only one.
CallSpec = int | Literal["last", "all"] | None


def check_call_spec(call: object) -> None:
    """Raises a `ValueError` unless `call` says which calls are meant."""
    if call in ("last", "all") or call is None:
        return
    if not isinstance(call, int) or isinstance(call, bool) or call < 0:
        raise ValueError(
            f"Expected `call` to be an index of at least 0, 'last', 'all' or None (the only one) but got {call!r}."
        )


@dataclass(frozen=True)
class NetworkCall:
    """A call of a network in a step.

    Attributes:
        args: its positional arguments, tensors copied before it ran.
        kwargs: its keyword arguments, likewise.
        given: the tensors among them, as the step holds them.
        output: what it returned.
        nodes: the nodes of the graph that give its output; empty where it recorded none.
        weights: the network's parameters at the time.
        random_state: torch's random streams just before.
        drew_random_numbers: whether the call moved them (dropout).
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: tuple[Tensor, ...]
    output: Any
    nodes: frozenset[Any]
    weights: tuple[Tensor, ...]
    random_state: RandomState
    drew_random_numbers: bool

    def __str__(self) -> str:
        return describe_call(self.args, self.kwargs)


class CallLog:
    """The calls of a network in one step.

    Attributes:
        kept: those that can be asked for, by their index among the calls that count.
        inputs: what each call that counts was made with, in words.
        others: how many calls were made that do not count.
        paused: whether calls are not the step's own at present.
    """

    def __init__(self) -> None:
        self.kept: dict[int, NetworkCall] = {}
        self.inputs: list[str] = []
        self.others = 0
        self.paused = False

    def wants(self, network: nn.Module) -> bool:
        """Whether the call that is about to be made can be asked for, and is to be copied."""
        return True

    def add(self, call: NetworkCall) -> None:
        """Adds a call that was copied."""
        self.kept[len(self.inputs)] = call
        self.inputs.append(describe_call(call.args, call.kwargs))

    def skip(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Counts a call that was not copied."""
        self.others += 1


class TrainingLog(CallLog):
    """The calls that train a network: those that record a graph which leads to its parameters."""

    def wants(self, network: nn.Module) -> bool:
        if not torch.is_grad_enabled():
            return False
        parameters = list(network.parameters())
        return not parameters or any(parameter.requires_grad for parameter in parameters)

    def add(self, call: NetworkCall) -> None:
        if call.nodes:
            super().add(call)
        else:
            self.others += 1


class EvaluationLog(CallLog):
    """All calls, of which only those are kept that `call` names: each holds a batch of activations."""

    def __init__(self, call: CallSpec) -> None:
        super().__init__()
        self._call = call

    def wants(self, network: nn.Module) -> bool:
        return self._call in ("last", "all") or len(self.inputs) == (self._call or 0)

    def add(self, call: NetworkCall) -> None:
        if self._call == "last":
            self.kept.clear()
        super().add(call)

    def skip(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.inputs.append(describe_call(args, kwargs))


@contextmanager
def recorded_calls(network: nn.Module, log: CallLog) -> Iterator[CallLog]:
    """Records the calls of `network` in the block, but not those that it makes of itself or that a backward repeats."""
    # Not a hook: steps often call `self.forward(x)`, which hooks do not see, and a hook added to a network that has
    # been compiled in place does not fire.
    compiled = network.__dict__.get("_compiled_call_impl") is not None
    name = "_compiled_call_impl" if compiled else "forward"
    was_instance_attribute = name in network.__dict__
    original = getattr(network, name)
    running = False

    @functools.wraps(original)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        nonlocal running
        # Gradient checkpointing calls the network again in the midst of a backward.
        if running or log.paused or torch._C._current_graph_task_id() != -1:
            return original(*args, **kwargs)
        running = True
        try:
            if log.wants(network):
                return _record(original, args, kwargs, network, log)
            log.skip(args, kwargs)
            return original(*args, **kwargs)
        finally:
            running = False

    network.__dict__[name] = recorded
    try:
        yield log
    finally:
        if was_instance_attribute:
            network.__dict__[name] = original
        else:
            network.__dict__.pop(name, None)


def _record(
    original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], network: nn.Module, log: CallLog
) -> Any:
    given = tuple(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    device = given[0].device if given else torch.device("cpu")
    before = RandomState(device)
    weights = tuple(network.parameters())
    # Copies: a network may change its input in place (an in-place ReLU in front is enough).
    kept_args, kept_kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
    output = original(*args, **kwargs)
    drew = before != RandomState(device)
    log.add(NetworkCall(kept_args, kept_kwargs, given, output, _nodes(output), weights, before, drew))
    return output


def chosen_calls(
    log: CallLog, among: Sequence[int], call: CallSpec, network: str, owner: str, hint: str = ""
) -> list[NetworkCall]:
    """The calls that are meant.

    Args:
        log: the calls of a step.
        among: the indices of those that can be meant, at least one.
        call: which of these.
        network: the network, for messages.
        owner: the callback, for messages.
        hint: what else could be done, for messages.

    Raises:
        ValueError: if there are several and `call` chooses none, or fewer than it names.
    """
    if call == "all":
        return [log.kept[index] for index in among]
    if call == "last":
        return [log.kept[among[-1]]]
    if (call or 0) < len(among) and (call is not None or len(among) == 1):
        return [log.kept[among[call or 0]]]
    made = "; ".join(f"call {place} with {log.inputs[index]}" for place, index in enumerate(among[:8]))
    made += "; ..." if len(among) > 8 else ""
    if call is None:
        raise ValueError(
            f"{owner}: expected one call of {network} in a step but there were {len(among)} ({made}): say with "
            f"`call=` which is meant, an index, 'last' or 'all' (the mean over all of them){hint}."
        )
    raise ValueError(f"{owner}: expected call={call} to name one of the calls of {network} but there were {made}.")


def reached(loss: Tensor, log: CallLog) -> list[int]:
    """The indices of the calls whose output the loss depends on."""
    sought = {node: index for index, call in log.kept.items() for node in call.nodes}
    found: set[int] = set()
    wanted = set(sought.values())
    front = [node for node in (_node(loss),) if node is not None]
    seen = set(front)
    # Breadth first: a network's output is near the loss.
    while front and found != wanted:
        following = []
        for node in front:
            if node in sought:
                found.add(sought[node])
            for before, _ in node.next_functions:
                if before is not None and before not in seen:
                    seen.add(before)
                    following.append(before)
        front = following
    return sorted(found)


def _nodes(output: Any) -> frozenset[Any]:
    nodes = (_node(tensor) for tensor in _tensors(output))
    return frozenset(node for node in nodes if node is not None)


def _node(tensor: Tensor) -> Any:
    """The node of the graph that gives a tensor, or None where there is no graph."""
    if not tensor.requires_grad:
        return None
    if tensor.grad_fn is not None:
        return tensor.grad_fn
    with torch.enable_grad():  # a leaf: its node is the one before that of a view
        view = tensor.view_as(tensor)
    assert view.grad_fn is not None
    return view.grad_fn.next_functions[0][0]


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in a network's output, in those of its attributes too that is an object of the user's."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__"):
            yield from (value for value in vars(leaf).values() if isinstance(value, Tensor))
