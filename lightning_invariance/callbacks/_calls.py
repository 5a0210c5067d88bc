"""The calls of a network in a step: recorded as they are made, and the one that is meant chosen from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_invariance._containers import describe_call
from lightning_invariance._isolation import RandomState, set_modes
from lightning_invariance.callbacks._intercept import intercepted

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
        place: its index among the calls of the step that count.
        args: its positional arguments, tensors copied before it ran.
        kwargs: its keyword arguments, likewise.
        given: the tensors among them, as the step holds them.
        output: what it returned.
        versions: how often each tensor of the output had been written to.
        whole: whether the network was called, with its hooks, or its ``forward`` alone.
        nodes: the nodes of the graph that give its output; empty where it recorded none.
        made: the numbers of the first node that was made in the call and of the first one after it.
        weights: the network's parameters at the time.
        conditions: modes and autocast at the time.
        random_state: the random streams just before.
        drew_random_numbers: whether the call moved them (dropout).
    """

    place: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: tuple[Tensor, ...]
    output: Any
    versions: tuple[int, ...]
    whole: bool
    nodes: frozenset[Any]
    made: tuple[int, int]
    weights: tuple[Tensor, ...]
    conditions: Conditions
    random_state: RandomState
    drew_random_numbers: bool

    def in_words(self) -> str:
        """Which call it is."""
        return f"{self.place} of those of a step, counted from 0"

    def is_written_to(self) -> bool:
        """Whether the step has changed the output in place, so that it is not what the network gave any more."""
        return _versions(self.output) != self.versions

    def repeat(self, network: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        """Runs the network on other arguments as it was run here."""
        with self.conditions.restored(network):
            return network(*args, **kwargs) if self.whole else network.forward(*args, **kwargs)


class Conditions:
    """What a network's output depends on besides its arguments, weights and random numbers: modes and autocast."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._modes = [each.training for each in network.modules()]
        self._device = device.type
        self._autocast = _autocast(self._device)

    @contextmanager
    def restored(self, network: nn.Module) -> Iterator[None]:
        """Runs the block under these conditions and goes back to those that are."""
        modules = list(network.modules())
        present = [each.training for each in modules]
        with ExitStack() as stack:
            if _autocast(self._device) != self._autocast:
                enabled, dtype = self._autocast
                stack.enter_context(torch.autocast(self._device, dtype=dtype, enabled=enabled))
            set_modes(modules, self._modes)
            try:
                yield
            finally:
                set_modes(modules, present)


def _autocast(device: str) -> tuple[bool, torch.dtype | None]:
    if device == "meta":
        return False, None
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


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
    running = False

    def record(original: Callable[..., Any], whole: bool, *args: Any, **kwargs: Any) -> Any:
        nonlocal running
        # Gradient checkpointing calls the network again in the midst of a backward.
        if running or log.paused or torch._C._current_graph_task_id() != -1:
            return original(*args, **kwargs)
        running = True
        try:
            if log.wants(network):
                return _record(original, whole, args, kwargs, network, log)
            log.skip(args, kwargs)
            return original(*args, **kwargs)
        finally:
            running = False

    with intercepted(network, record):
        yield log


def _record(
    original: Callable[..., Any],
    whole: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    network: nn.Module,
    log: CallLog,
) -> Any:
    given = tuple(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    device = given[0].device if given else torch.device("cpu")
    before = RandomState(device)
    weights = tuple(network.parameters())
    conditions = Conditions(network, device)
    # Copies: a network may change its input in place (an in-place ReLU in front is enough).
    kept_args, kept_kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
    first = torch._C._autograd._get_sequence_nr()
    output = original(*args, **kwargs)
    made = (first, torch._C._autograd._get_sequence_nr())
    drew = before != RandomState(device)
    # Inference tensors do not tell whether they are written to.
    kept = tree_map_only(Tensor, lambda each: each.clone() if each.is_inference() else each, output)
    log.add(
        NetworkCall(
            len(log.inputs),
            kept_args,
            kept_kwargs,
            given,
            kept,
            _versions(kept),
            whole,
            _nodes(output),
            made,
            weights,
            conditions,
            before,
            drew,
        )
    )
    return output


def _versions(output: Any) -> tuple[int, ...]:
    return tuple(0 if each.is_inference() else each._version for each in _tensors(output))


def are_close(again: Tensor, logits: Tensor) -> bool:
    """Whether two runs of a network gave the same but for rounding."""
    if again.shape != logits.shape:
        return False
    again, logits = again.detach(), logits.detach()
    size = logits.abs().amax() if logits.numel() else logits.sum()
    # Another size of batch is another algorithm, and on accelerators float32 products are rounded more.
    usual = 1e-4 if logits.device.type == "cpu" else 5e-3
    tolerance = {torch.float64: 1e-8, torch.float32: usual}.get(logits.dtype, 3e-2)
    gap = (again - logits).abs()
    return bool((gap.nan_to_num(0.0) <= tolerance * size.nan_to_num(0.0)).all())


def chosen_calls(log: CallLog, among: Sequence[int], call: CallSpec, network: str, hint: str = "") -> list[NetworkCall]:
    """The calls that are meant.

    Args:
        log: the calls of a step.
        among: the indices of those that can be meant, at least one.
        call: which of these.
        network: the network, for messages.
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
            f"Expected one call of {network} in a step but there were {len(among)} ({made}): say with "
            f"`call=` which is meant, an index, 'last' or 'all' (the mean over all of them){hint}."
        )
    raise ValueError(f"Expected call={call} to name one of the calls of {network} but there were {made}.")


def reached(loss: Tensor, log: CallLog) -> list[int]:
    """The indices of the calls that the loss depends on."""
    calls = log.kept
    found = _found_from(loss, {node: index for index, call in calls.items() for node in call.nodes}, len(calls))
    if len(found) < len(calls):
        # Through derivatives of an output (a gradient penalty, the residual of an equation) the loss depends on what
        # was made inside a call, and not on the output.
        missing = {index: call for index, call in calls.items() if index not in found}
        inside = {node: index for index, call in missing.items() for node in _nodes_inside(call)}
        found |= _found_from(loss, inside, len(missing))
    return sorted(found)


def _found_from(loss: Tensor, sought: dict[Any, int], wanted: int) -> set[int]:
    """Which of the nodes the loss depends on; breadth first, as a network's output is near the loss."""
    found: set[int] = set()
    front = [node for node in (_node(loss),) if node is not None]
    seen = set(front)
    while front and len(found) < wanted:
        found |= {sought[node] for node in front if node in sought}
        front = [before for node in front for before, _ in node.next_functions if before is not None]
        front = [node for node in dict.fromkeys(front) if node not in seen]
        seen.update(front)
    return found


def _nodes_inside(call: NetworkCall) -> set[Any]:
    """The nodes that were made in a call."""
    first, after = call.made
    front = list(call.nodes)
    inside = set(front)
    while front:
        front = [before for node in front for before, _ in node.next_functions if before is not None]
        front = [node for node in front if node not in inside and first <= node._sequence_nr() < after]
        inside.update(front)
    return inside


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


def leaves_of(output: Any) -> set[int]:
    """The leaves of the graph, parameters among them, that an output depends on, by their `id`."""
    front = list(_nodes(output))
    seen = set(front)
    leaves: set[int] = set()
    while front:
        leaves |= {id(node.variable) for node in front if hasattr(node, "variable")}
        following = dict.fromkeys(before for node in front for before, _ in node.next_functions if before is not None)
        front = [node for node in following if node not in seen]
        seen.update(front)
    return leaves


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in a network's output, in those of its attributes too that is an object of the user's."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__"):
            yield from (value for value in vars(leaf).values() if isinstance(value, Tensor))
