"""Watches a network's layers while it runs over an orbit: forward hooks, and sums for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_invariance._containers import Path, describe_value, get, walk
from lightning_invariance._layer_cell import LayerCell, Measured
from lightning_invariance._layer_motion import Motion, motion_of, null_share
from lightning_invariance._output_action import OutputMotion
from lightning_invariance.actions import Action
from lightning_invariance.orbit import orbit_of


@dataclass(frozen=True, order=True)
class Key:
    """A tensor that is measured.

    Attributes:
        role: an output, or an input that no layer gave.
        name: the module's name.
        call: which of the module's calls in a forward.
        path: where in the output or the arguments.
    """

    role: Literal["output", "input"]
    name: str
    call: int
    path: Path = ()


@dataclass
class LayerShares:
    """What was measured of one tensor.

    Attributes:
        key: which.
        kind: the class of the module.
        owner: the module in whose forward the tensor was made; of an output that is the module itself.
        shape: of one sample.
        leaves: how many calls of modules without others inside were over.
        sources: the tensors that went into the call, as far as they are measured; None is the network's input.
        unknown: whether other tensors, that cannot be measured, went into it.
        view_of: the tensor whose values it shows, if it is a view of one.
        dtype: of the values.
        device: where they are.
        measured: the shares.
    """

    key: Key
    kind: str
    owner: str
    shape: tuple[int, ...] = ()
    leaves: int = 0
    sources: list[Key | None] = field(default_factory=list)
    unknown: bool = False
    view_of: Key | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    measured: Measured = field(default_factory=lambda: Measured(None, None, None))


class LayerObserver:
    """Measures every layer of a network over the orbits of batches.

    Args:
        modules: the modules that are watched, with their names.
        chosen: the names of those that are measured; None for every call in which no other module is called.
        layer_actions: how the outputs of some layers move, by their names; None where nothing is said.
        max_channels: the most channels (or features) whose permutation is looked for.
    """

    def __init__(
        self,
        modules: Mapping[nn.Module, str],
        chosen: frozenset[str] | None,
        layer_actions: OutputMotion | None,
        max_channels: int,
    ) -> None:
        self._modules = modules
        self._chosen = chosen
        self._layer_actions = layer_actions
        self._said = frozenset((layer_actions and layer_actions.names) or ())
        self._max_channels = max_channels
        self.tensors: dict[Key, LayerShares] = {}
        self.null = 0.0
        self.leaves = 0
        self.samples = 0
        self._cells: dict[Key, LayerCell] = {}
        self._probes: dict[tuple[str, int], list[Key]] = {}
        self._late: set[Key] = set()  # inputs that are measured after their call
        self._matched: dict[int, LayerCell] = {}  # the last one of so many channels in this forward
        self._stack: list[_Frame] = []
        self._calls: dict[str, int] = {}
        self._planned = False
        self._known: dict[tuple[torch.device, int], list[_Known]] = {}
        self._made_in: dict[tuple[Any, int | None], str] = {}
        self._element = -1
        self._action: Action | None = None
        self._x: Tensor | None = None
        self._first: Tensor | None = None
        self._rows = 0

    # A batch ----------------------------------------------------------------------------------------------------------

    def observe(
        self,
        network: Callable[[Tensor], Any],
        x: Tensor,
        action: Action,
        *,
        first: Tensor,
        company: int = 0,
    ) -> None:
        """Runs the network over the orbit of a batch, one element at a time, and adds what its layers do.

        Args:
            network: from a moved batch to anything.
            x: the batch.
            action: the group as it acts on `x`.
            first: the tensor that the group acts on, before any packing; its first rows are those of `x`.
            company: how many more samples the network runs on, which stay as they are.
        """
        self._action, self._x, self._first = action.attached(x), x, first
        self._rows = len(x) + company
        if not self._planned and not action.exact:
            self.null = null_share(self._action, x)
        elements = iter([0, *range(1, len(action))])
        grad = False

        def run(moved: Tensor) -> Tensor:
            nonlocal grad
            element = next(elements)

            def forward() -> None:
                self._start(element)
                network(moved)

            try:
                with torch.set_grad_enabled(grad):
                    forward()
            except RuntimeError as error:
                # Networks that differentiate inside (forces from energies) need a graph where nobody else does.
                if grad or element or "does not require grad" not in str(error):
                    raise
                grad = True
                with torch.enable_grad():
                    forward()
            if element == 0:
                self._plan()
            return moved.new_zeros(len(moved), dtype=torch.float32)

        try:
            with self._watching():
                orbit_of(run, x, action, list(range(1, len(action))), max_batch=len(x))
            for cell in self._cells.values():
                cell.finish(len(action))
            self.samples += len(x)
        finally:
            self._known.clear()
            self._stack.clear()
            self._action = self._x = self._first = None
            for cell in self._cells.values():
                cell.forget()

    def given(self, arguments: Any) -> None:
        """What the network is about to be called with, in nested containers: that is no layer's."""
        if self._planning:
            for _, tensor in walk(arguments):
                self._know(tensor, None)

    def results(self) -> list[LayerShares]:
        """What was measured, in order of execution."""
        for key, cell in self._cells.items():
            self.tensors[key].measured = cell.measured()
        for tensor in self.tensors.values():
            if tensor.view_of is not None:
                tensor.measured = self.tensors[tensor.view_of].measured
        return [*self.tensors.values()]

    def _start(self, element: int) -> None:
        self._element = element
        self._calls.clear()
        self._stack.clear()
        self._known.clear()
        self._matched.clear()
        if element == 0 and not self._planned:
            self.tensors.clear()
            self._cells.clear()
            self._probes.clear()
            self._made_in.clear()
            self._late.clear()
            self.leaves = 0

    def _plan(self) -> None:
        self._planned = True
        self._known.clear()
        self._made_in.clear()

    @property
    def _planning(self) -> bool:
        return self._element == 0 and not self._planned

    # Hooks ------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _watching(self) -> Iterator[None]:
        handles = []
        try:
            for module, name in self._modules.items():
                if isinstance(module, torch.jit._script.RecursiveScriptModule):
                    raise ValueError(
                        f"Expected modules that Python runs, since hooks can be put on no others, but got {name!r}, "
                        "which is scripted: measure the network before it is."
                    )
                handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
                handles.append(module.register_forward_hook(self._after, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = self._modules[module]
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        frame = _Frame(name, call)
        if self._stack:
            self._stack[-1].calls_others = True
        root = {"args": args, "kwargs": kwargs}
        if self._planning:
            has_children = any(child in self._modules for child in module.children())
            if name in self._chosen if self._chosen is not None else not has_children:
                self._look_at_inputs(frame, root, [(path, tensor, None) for path, tensor in walk(root)])
            elif self._chosen is None:
                for _, tensor in walk(root):
                    if tensor.is_floating_point() and self._lookup(tensor) is None:
                        # Handed down: the code that made it is the caller's.
                        self._made_in.setdefault((_place(tensor), _version(tensor)), self._owner(frame))
                # Whether other modules are called inside is only known afterwards.
                frame.given = [(path, tensor, _version(tensor)) for path, tensor in walk(root)]
        else:
            frame.root = root
            for key in self._probes.get((name, call), ()):
                if key not in self._late:
                    self._see_input(key, root)
        self._stack.append(frame)

    @torch.no_grad()
    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        name = self._modules[module]
        frame = self._stack.pop()
        while frame.name != name:  # a call that an exception ended, which the network has caught
            frame = self._stack.pop()
        if self._planning:
            self._after_planning(module, frame, args, kwargs, output)
            return
        for key in self._probes.get((name, frame.call), ()):
            if key in self._late:
                self._see_input(key, frame.root)
        for path, tensor in _tensors_in(output):
            key = Key("output", name, frame.call, path)
            if key in self._cells:
                self._see(key, tensor)

    def _after_planning(
        self, module: nn.Module, frame: _Frame, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if not frame.calls_others:
            self.leaves += 1
        found = list(_tensors_in(output))
        chosen = frame.name in self._chosen if self._chosen is not None else not frame.calls_others
        if not chosen:
            if self._chosen is None:
                self._look_at_result(frame, found)
            return
        if frame.given:
            self._look_at_inputs(frame, {"args": args, "kwargs": kwargs}, frame.given)
        kind = type(module).__name__
        if not found:
            key = Key("output", frame.name, frame.call)
            nothing = Measured(None, None, None, note=f"gives no tensor but {describe_value(output)}")
            self.tensors[key] = LayerShares(key, kind, frame.name, leaves=self.leaves, measured=nothing)
        for path, tensor in found:
            key = Key("output", frame.name, frame.call, path)
            self._meet(key, tensor, kind, frame.name, frame.sources, frame.unknown)

    def _look_at_inputs(
        self, frame: _Frame, root: dict[str, Any], given: list[tuple[Path, Tensor, int | None]]
    ) -> None:
        """Finds out which measured tensors go into a call; others are measured, unless they hold nothing of `x`."""
        for path, tensor, version in given:
            late = version is not None
            if isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
                continue
            if late and version != _version(tensor):
                frame.unknown = True
                continue
            known = self._lookup(tensor)
            if known is not None:
                frame.sources.append(known.key)
                continue
            if not tensor.ndim or len(tensor) != self._rows:
                frame.unknown |= bool(tensor.ndim) and len(tensor) % self._rows == 0
                continue
            key = Key("input", frame.name, frame.call, path)
            owner = self._made_in.get((_place(tensor), _version(tensor)), self._owner(frame))
            self._meet(key, tensor, "", owner, [], True)
            self._probes.setdefault((frame.name, frame.call), []).append(key)
            if late:
                self._late.add(key)
            frame.sources.append(key)

    def _owner(self, frame: _Frame) -> str:
        """The module that makes a call."""
        return self._stack[-1].name if self._stack else frame.name

    def _look_at_result(self, frame: _Frame, found: list[tuple[Path, Tensor]]) -> None:
        """What a module with layers in it returns, if none of these gave it."""
        for path, tensor in found:
            measurable = tensor.is_floating_point() and tensor.ndim and len(tensor) == self._rows
            if measurable and self._lookup(tensor) is None:
                self._meet(Key("output", frame.name, frame.call, path), tensor, "", frame.name, [], True)

    # Tensors ----------------------------------------------------------------------------------------------------------

    def _meet(self, key: Key, tensor: Tensor, kind: str, owner: str, sources: list[Key | None], unknown: bool) -> None:
        """Begins to measure a tensor."""
        shares = LayerShares(key, kind, owner, tuple(tensor.shape[1:]), self.leaves, list(sources), unknown)
        shares.dtype, shares.device = tensor.dtype, tensor.device
        self.tensors[key] = shares
        note = ""
        if tensor.layout is not torch.strided or tensor.is_nested:
            note = f"gives a tensor of layout {tensor.layout}"
        elif not tensor.is_floating_point():
            note = f"gives {str(tensor.dtype).removeprefix('torch.')}, no real numbers"
        elif not tensor.ndim or len(tensor) != self._rows:
            note = f"gives {describe_value(tensor)}, not one row for each of {self._rows} samples"
        elif not tensor.numel():
            note = "gives no values"
        else:
            known = self._lookup(tensor) if key.name not in self._said else None
            if known is not None and known.key is not None:
                shares.view_of = known.key
                self._know(tensor, known.key)
                return
            self._cells[key] = LayerCell(self._max_channels)
            self._see(key, tensor)
        shares.measured = Measured(None, None, None, note=note)
        self._know(tensor, key)

    def _see_input(self, key: Key, root: dict[str, Any]) -> None:
        try:
            tensor = get(root, key.path)
        except (KeyError, IndexError, TypeError):
            self._cells[key].spoil("is not passed on alike in all calls")
            return
        self._see(key, tensor)

    def _see(self, key: Key, tensor: Tensor) -> None:
        cell = self._cells[key]
        assert self._action is not None
        assert self._x is not None
        assert self._first is not None
        if len(tensor) != self._rows:
            cell.spoil(f"gives {len(tensor)} rows for {self._rows} samples")
            return
        tensor = tensor.detach()[: len(self._x)]
        if self._element == 0:
            cell.begin(tensor, self._motion(key, tensor))
        else:
            before = self._matched.get(cell.channels)
            cell.add(tensor, self._element, None if before is None else before.permutation(self._element))
            if cell.channels:
                self._matched[cell.channels] = cell

    def _motion(self, key: Key, tensor: Tensor) -> Motion:
        assert self._action is not None
        assert self._x is not None
        assert self._first is not None
        if key.role == "output" and key.name in self._said:
            assert self._layer_actions is not None
            action = self._layer_actions.of_output(key.name, self._action, self._x, tensor)
            return Motion(action, note="" if action is not None else "stays, as `layer_actions` says")
        return motion_of(self._action, self._x, self._first, tensor)

    def _know(self, tensor: Tensor, key: Key | None) -> None:
        place, version = _place(tensor), _version(tensor)
        if place is not None and version is not None and not tensor.is_meta:
            entry = _Known(tensor, version, key)
            self._known.setdefault(place, []).insert(0, entry)

    def _lookup(self, tensor: Tensor) -> _Known | None:
        """The measured tensor whose values these are: itself, or a view of all of it whose places are gone."""
        place, version = _place(tensor), _version(tensor)
        if place is None or version is None:
            return None
        for known in self._known.get(place, ()):
            if known.version != version or known.tensor.numel() != tensor.numel():
                continue
            if known.tensor.shape == tensor.shape and known.tensor.stride() == tensor.stride():
                return known
            if len(known.tensor) != len(tensor) or len(tensor) != self._rows or 0 in tensor.stride():
                continue
            assert self._x is not None
            assert self._first is not None
            assert self._action is not None
            if _is_transposed(tensor, known.tensor, self._action.places):
                return known
            if motion_of(self._action, self._x, self._first, tensor[: len(self._x)]).action is None:
                return known
        return None


@dataclass
class _Frame:
    """A call of a module that is under way."""

    name: str
    call: int
    calls_others: bool = False
    sources: list[Key | None] = field(default_factory=list)
    unknown: bool = False
    given: list[tuple[Path, Tensor, int | None]] = field(default_factory=list)
    root: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Known:
    """A tensor that has been seen; it is held, so that no other one gets its memory."""

    tensor: Tensor
    version: int
    key: Key | None


def _is_transposed(tensor: Tensor, known: Tensor, places: tuple[int, ...] | None) -> bool:
    """Whether a view has the same dimensions in another order, those of places in the order that they had."""
    own, theirs = [*zip(tensor.stride(), tensor.shape, strict=True)], [*zip(known.stride(), known.shape, strict=True)]
    if not places or own[0] != theirs[0] or own == theirs or sorted(own) != sorted(theirs) or len(set(own)) < len(own):
        return False
    moved = sorted({dim % len(theirs) for dim in places if -dim < len(theirs)})
    order = [own.index(theirs[dim]) for dim in moved]
    return order == sorted(order)


def _place(tensor: Tensor) -> tuple[torch.device, int] | None:
    try:
        return tensor.device, tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # one without a storage of its own
        return None


def _version(tensor: Tensor) -> int | None:
    try:
        return tensor._version
    except RuntimeError:  # an inference tensor
        return None


def _tensors_in(output: Any) -> Iterator[tuple[Path, Tensor]]:
    """The tensors in a layer's output; fields of escnn hold theirs as `tensor`."""
    inner = getattr(output, "tensor", None)
    if not isinstance(output, Tensor) and isinstance(inner, Tensor):
        yield (), inner
    else:
        yield from walk(output)
