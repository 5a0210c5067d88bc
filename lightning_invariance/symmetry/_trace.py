"""Runs a network once and works out, operation by operation, how each tensor moves when the input does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_invariance._containers import describe_value
from lightning_invariance.symmetry import _rules
from lightning_invariance.symmetry._factors import Channels, Dim, Dims, Refusal, Solver, channels


@dataclass
class Weight:
    """A parameter, or a buffer of running statistics, with its representation.

    Attributes:
        name: in the network.
        tensor: itself.
        dims: how it moves.
        is_statistic: whether it is a buffer of running statistics.
        used_by: the modules that use it, by name.
    """

    name: str
    tensor: Tensor
    dims: Dims
    is_statistic: bool = False
    used_by: list[str] = field(default_factory=list)


@dataclass
class Constant:
    """A tensor that depends neither on the input nor on parameters."""

    name: str
    tensor: Tensor
    dims: Dims
    where: str = ""


class Trace:
    """What a run of a network has shown.

    Args:
        network: the network.
        solver: works out how tensors move.
        known: weights that runs before have shown, by their names.
    """

    def __init__(self, network: nn.Module, solver: Solver, known: Mapping[str, Weight] | None = None) -> None:
        known = known or {}
        self.solver = solver
        self.group = solver.group
        self.weights: dict[int, Weight] = {}
        self.constants: dict[int, Constant] = {}
        self.unpaired: dict[int, str] = {}  # tensors that have one axis of a grid without the other, and why
        self.outputs: dict[str | None, Tensor] = {}
        self.sees_all = True  # whether the network has no other outputs
        self.partial: dict[int, str] = {}  # those of them that were summed over the other, and how
        self.steps: list[Step] = []
        self.place = _ModuleStack(network)
        self._fixed: set[int] = set()  # tensors that are made of parameters and constants alone
        self._put_off: dict[int, tuple[Dim, Dim]] = {}  # what is to be equal if a tensor is used
        self._dims: dict[int, Dims | None] = {}
        self._kept: list[Tensor] = []  # so that no other tensor gets the number of one that is gone
        self._names: dict[int, str] = {}
        for name, parameter in network.named_parameters():
            self._add_weight(name, parameter, known)
        for name, buffer in network.named_buffers():
            self._names[id(buffer)] = f"the buffer {name!r}"
        for path, module in network.named_modules():
            if isinstance(module, _NormBase):
                for name in ("running_mean", "running_var"):
                    buffer = getattr(module, name)
                    if buffer is not None:
                        self._add_weight(f"{path}.{name}" if path else name, buffer, known, is_statistic=True)

    def know(self, tensor: Tensor, dims: Dims | None) -> None:
        """Notes how a tensor moves; None for one of which nothing can be said, such as positions of maxima."""
        self._dims[id(tensor)] = dims
        self._kept.append(tensor)
        self.constants.pop(id(tensor), None)

    def of(self, tensor: Tensor) -> Dims:
        """How a tensor moves.

        Raises:
            Refusal: if that is not known.
        """
        if id(tensor) not in self._dims:
            self._add_constant(tensor, self._names.get(id(tensor), "a tensor that the network holds"))
        dims = self._dims[id(tensor)]
        if dims is None:
            raise Refusal("it takes positions (of maxima, say), which move in a way of their own")
        return dims

    def known(self, tensor: Tensor) -> Dims | None:
        """How a tensor moves, as far as that is known."""
        return self._dims.get(id(tensor))

    def is_unknown(self, tensor: Tensor) -> bool:
        """Whether nothing can be said of a tensor."""
        return id(tensor) in self._dims and self._dims[id(tensor)] is None

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor depends neither on the input nor on parameters."""
        return id(tensor) not in self._dims or id(tensor) in self.constants

    def is_fixed(self, tensor: Tensor) -> bool:
        """Whether a tensor does not depend on the input."""
        return id(tensor) in self.weights or id(tensor) in self._fixed or self.is_constant(tensor)

    def fix(self, tensors: Sequence[Tensor]) -> None:
        """Notes that tensors do not depend on the input."""
        self._fixed.update(id(tensor) for tensor in tensors)

    def note_sum(self, tensor: Tensor, place: int) -> None:
        """Notes that an operation sums over a dimension of a weight, and makes its output's channels of the others."""
        dims = self.of(tensor)
        for other, dim in enumerate(dims):
            for factor in dim:
                if isinstance(factor, Channels) and other == place % len(dims):
                    factor.summed = True
                elif isinstance(factor, Channels):
                    factor.made = True

    def is_of_power_iteration(self, name: str, tensors: Sequence[Tensor], output: Tensor) -> bool:
        """Whether an operation is part of spectral normalisation, σ = uᵀ W v with vectors that the network holds.

        σ is one number for all inputs, whatever u and v are: they need not move as W does. So what W v asks for is put
        off until it is used for something else.
        """
        operation = name.split(".")[1]
        if operation == "mv" and self.is_constant(tensors[1]) and not self.is_constant(tensors[0]):
            matrix, vector = self.of(tensors[0]), self.of(tensors[1])
            self._put_off[id(output)] = (matrix[1], vector[0])
            self.know(output, matrix[:1])
            return True
        if operation in ("dot", "vdot") and any(id(tensor) in self._put_off for tensor in tensors):
            self.know(output, ())
            return True
        return False

    def catch_up(self, tensors: Sequence[Tensor]) -> None:
        """Makes equal what was put off for these tensors."""
        for tensor in tensors:
            pair = self._put_off.pop(id(tensor), None)
            if pair is not None:
                self.solver.equate(*pair)

    def _add_weight(self, name: str, tensor: Tensor, known: Mapping[str, Weight], is_statistic: bool = False) -> None:
        before = known.get(name)
        dims = tuple(channels(size) for size in tensor.shape) if before is None else before.dims
        used_by = [] if before is None else [*before.used_by]
        self.weights[id(tensor)] = Weight(name, tensor, dims, is_statistic, used_by)
        self.know(tensor, dims)

    def _add_constant(self, tensor: Tensor, name: str) -> None:
        dims = tuple(channels(size, still=True) for size in tensor.shape)
        self.know(tensor, dims)
        self.constants[id(tensor)] = Constant(name, tensor.detach().clone(), dims, self.place.in_words())

    def record(self, operation: str, rule: Callable[[], Any], tensors: Sequence[Tensor], output: Any) -> None:
        """Works out the output of an operation.

        Args:
            operation: its name.
            rule: gives the dimensions of the output, or of several.
            tensors: those that it takes.
            output: what it gave.
        """
        for tensor in tensors:
            weight = self.weights.get(id(tensor))
            if weight is not None and self.place.name not in weight.used_by:
                weight.used_by.append(self.place.name)
        try:
            found = rule()
        except Refusal as refusal:
            raise Refusal(f"{self.place.in_words()} ({operation}): {refusal}", refusal.of_size) from None
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        several = found if isinstance(output, (tuple, list)) else [found]
        for tensor, dims in zip(outputs, several, strict=False):
            if dims is not None and [_size(dim) for dim in dims] != list(tensor.shape):
                raise Refusal(f"{self.place.in_words()} ({operation}): its rule gives dimensions of another size")
            self.know(tensor, dims)

    def record_constant(self, operation: str, output: Any) -> None:
        """Notes what an operation on constants gave."""
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._add_constant(tensor, f"a constant that {operation} makes")


@dataclass
class Step:
    """An operation of a run: its name, where it is, and how its outputs move; None where nothing is said of one."""

    operation: str
    place: str
    dims: list[Dims | None]


def _size(dim: Any) -> int:
    size = 1
    for factor in dim:
        size *= factor.size
    return size


class _ModuleStack:
    """Which submodule runs."""

    def __init__(self, network: nn.Module) -> None:
        self._names = {id(module): name for name, module in reversed(list(network.named_modules()))}
        self._modules = dict(network.named_modules())
        self._stack: list[nn.Module] = []

    @property
    def name(self) -> str:
        """The innermost submodule's name; empty for the network itself."""
        return next((self._names[id(module)] for module in reversed(self._stack) if id(module) in self._names), "")

    def in_words(self) -> str:
        """The innermost submodule, as people write it."""
        if not self.name:
            return "the network's own forward"
        return f"{self.name!r}, {type(self._modules[self.name]).__name__}"

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follows the calls of modules in the block."""

        def enter(module: nn.Module, _: Any) -> None:
            self._stack.append(module)

        def leave(module: nn.Module, *_: Any) -> None:
            if self._stack:
                self._stack.pop()

        before = nn.modules.module.register_module_forward_pre_hook(enter)
        after = nn.modules.module.register_module_forward_hook(leave, always_call=True)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there are global hooks")
                yield
        finally:
            before.remove()
            after.remove()
            self._stack.clear()


class Watch:
    """Passes what operations take and give to a listener; nothing else changes.

    Circular padding is seen as a whole, and so is attention as its products and sums.
    """

    def __init__(self, listen: Callable[[str, Any, dict[str, Any], Sequence[Tensor], Any], None]) -> None:
        self._listen = listen
        self._paused = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watches the block."""
        # One algorithm on all devices: no fused kernels, no libraries' own layers.
        fast_path = torch.backends.mha.get_fastpath_enabled()
        onednn = torch._C._get_mkldnn_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        torch._C._set_mkldnn_enabled(False)  # by its own context manager it warns
        try:
            with (
                torch.no_grad(),
                torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
                torch.backends.cudnn.flags(enabled=False),
                _Functions(self),
                _Operations(self),
            ):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            torch._C._set_mkldnn_enabled(onednn)

    def seen(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """An operation has run."""
        if self._paused:
            return
        bound = _bound(function, args, kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._tell(_name(function), function, bound, tensors, output)

    def _tell(self, *seen: Any) -> None:
        self._paused = True  # what the listener does with tensors is not the network's
        try:
            self._listen(*seen)
        finally:
            self._paused = False

    def seen_whole(self, name: str, arguments: dict[str, Any], run: Callable[[], Any]) -> Any:
        """Runs something and takes it for one operation."""
        paused, self._paused = self._paused, True
        try:
            output = run()
        finally:
            self._paused = paused
        if not paused:
            tensors = [each for each in arguments.values() if isinstance(each, Tensor)]
            self._tell(name, None, arguments, tensors, output)
        return output


class _Operations(TorchDispatchMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self._watch.seen(func, args, kwargs or {}, output)
        return output


class _Functions(TorchFunctionMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch._C._nn.pad, torch.nn.functional.pad):
            arguments = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
            if arguments.get("mode") == "circular":
                return self._watch.seen_whole("circular_pad", arguments, lambda: func(*args, **kwargs))
        return func(*args, **kwargs)


def _name(function: Any) -> str:
    return f"{function._schema.name.replace('::', '.')}.{function._schema.overload_name or 'default'}"


def _bound(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by their names, with what is there by default."""
    bound = {}
    for place, argument in enumerate(function._schema.arguments):
        if place < len(args):
            bound[argument.name] = args[place]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


def listen_to(trace: Trace) -> Callable[[str, Any, dict[str, Any], Sequence[Tensor], Any], None]:
    """What a trace does with each operation that is seen."""

    def listen(name: str, function: Any, arguments: dict[str, Any], tensors: Sequence[Tensor], output: Any) -> None:
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        step = Step(name, trace.place.in_words(), [None] * len(outputs))
        trace.steps.append(step)
        if not outputs:
            return  # a question about a tensor
        if all(trace.is_constant(tensor) for tensor in tensors):
            trace.record_constant(name, output)
            return
        if all(trace.is_fixed(tensor) for tensor in tensors):
            trace.fix(outputs)
            if trace.is_of_power_iteration(name, tensors, outputs[0]):
                return
        trace.catch_up(tensors)
        rule = _rules.rule_for(name, function)
        if rule is None:
            given = ", ".join(describe_value(tensor) for tensor in tensors)
            raise Refusal(
                f"{trace.place.in_words()} uses {name} on {given}, and there is no rule how its output moves: "
                f"write one with `register_rule({name.rsplit('.', 1)[0]!r})`, or use other operations. "
                f"There are rules for {_rules.in_words()}"
            )
        if rule.takes_parts and any(trace.is_unknown(tensor) for tensor in tensors):
            for tensor in outputs:
                trace.know(tensor, None)
            return
        for tensor in tensors:
            if id(tensor) in trace.unpaired and not rule.takes_parts:
                raise Refusal(f"{trace.place.in_words()} ({name}): {trace.unpaired[id(tensor)]}")
        trace.record(name, lambda: rule.function(trace, output, **arguments), tensors, output)
        _note_unpaired(trace, outputs)
        step.dims = [trace.known(each) for each in outputs]

    return listen


def _note_unpaired(trace: Trace, outputs: Sequence[Tensor]) -> None:
    """Marks outputs that have one axis of a grid without its partner: half of what is yet to be summed or cropped."""
    for tensor in outputs:
        dims = trace.known(tensor)
        lacking = None if dims is None else trace.solver.unpaired(dims)
        if lacking is None:
            trace.unpaired.pop(id(tensor), None)
        else:
            trace.unpaired[id(tensor)] = (
                f"its input has {trace.solver.in_words((lacking,))} without the axis that the group exchanges it with"
            )
