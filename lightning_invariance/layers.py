"""Watches a network's layers while it runs over an orbit: forward hooks, and sums for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_invariance._channel_matching import best_permutation
from lightning_invariance._containers import Path, describe_value, get, walk
from lightning_invariance._layer_shares import OrbitMean, Share, ShareSums
from lightning_invariance._output_action import OutputMotion
from lightning_invariance.actions import Action, PermutationAction
from lightning_invariance.orbit import orbit_of

#: For the permutations of channels so many places of each channel are looked at, or half of the first samples.
_PLACES = 1024

#: What bringing activations back costs where the action interpolates is measured on so many samples.
_NULL_SAMPLES = 8


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
        invariance: the share as it is.
        equivariance: the share brought back, with why it is NaN.
        permuted: the share after the best permutation of channels.
        null: the share that moving there and back gives the mean over the orbit, where that is not exact.
        note: why something is NaN.
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
    invariance: Share | None = None
    equivariance: Share | None = None
    permuted: Share | None = None
    null: float = 0.0
    note: str = ""


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
        self._cells: dict[Key, _Cell] = {}
        self._probes: dict[tuple[str, int], list[Key]] = {}
        self._late: set[Key] = set()  # inputs that are measured after their call
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
            self.null = _null_share(self._action, x)
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
            for key, cell in self._cells.items():
                note = cell.finish(len(action))
                if note and not self.tensors[key].note:
                    self.tensors[key].note = note
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
        found = []
        for key, tensor in self.tensors.items():
            cell = self._cells.get(key)
            if cell is not None:
                cell.write(tensor)
            found.append(tensor)
        for tensor in found:
            if tensor.view_of is not None:
                other = self.tensors[tensor.view_of]
                tensor.invariance, tensor.equivariance = other.invariance, other.equivariance
                tensor.permuted, tensor.null = other.permuted, other.null
        return found

    def _start(self, element: int) -> None:
        self._element = element
        self._calls.clear()
        self._stack.clear()
        self._known.clear()
        if element == 0 and not self._planned:
            self.tensors.clear()
            self._cells.clear()
            self._probes.clear()
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
            for module in self._modules:
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
                    self._see(key, get(root, key.path))
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
                self._see(key, get(frame.root, key.path))
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
            note = f"gives no tensor but {describe_value(output)}"
            self.tensors[key] = LayerShares(key, kind, frame.name, leaves=self.leaves, note=note)
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
        if tensor.layout is not torch.strided or tensor.is_nested:
            shares.note = f"gives a tensor of layout {tensor.layout}"
        elif not tensor.is_floating_point():
            shares.note = f"gives {str(tensor.dtype).removeprefix('torch.')}, no real numbers"
        elif not tensor.ndim or len(tensor) != self._rows:
            shares.note = f"gives {describe_value(tensor)}, not one row for each of {self._rows} samples"
        elif not tensor.numel():
            shares.note = "gives no values"
        else:
            known = self._lookup(tensor) if key.name not in self._said else None
            if known is not None and known.key is not None:
                shares.view_of = known.key
                self._know(tensor, known.key)
                return
            self._cells[key] = _Cell(key, self._max_channels)
            self._see(key, tensor)
        self._know(tensor, key)

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
            cell.add(tensor, self._element)

    def _motion(self, key: Key, tensor: Tensor) -> _Motion:
        assert self._action is not None
        assert self._x is not None
        assert self._first is not None
        if key.role == "output" and key.name in self._said:
            assert self._layer_actions is not None
            action = self._layer_actions.of_output(key.name, self._action, self._x, tensor)
            return _Motion(action, note="" if action is not None else "stays, as `layer_actions` says")
        return _motion_of(self._action, self._x, self._first, tensor)

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
            if _motion_of(self._action, self._x, self._first, tensor[: len(self._x)]).action is None:
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


# How a layer's output moves -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Motion:
    """How activations are brought back.

    Attributes:
        action: the action on them; None where they cannot be moved.
        channels_last: whether their channels come last although places are in the last dimensions of the input.
        note: why they cannot.
    """

    action: Action | None
    channels_last: bool = False
    note: str = ""


def _motion_of(action: Action, x: Tensor, first: Tensor, tensor: Tensor) -> _Motion:
    """The same action at the layer's own resolution, where it can act."""
    places = action.places if action.places is not None else None
    if tensor.ndim < 2 or (places is None and tensor.ndim < first.ndim):
        return _Motion(None, note="the group cannot act on it")
    reason = ""
    for channels_last in (False, True):
        candidate = tensor
        if channels_last:
            if first.ndim != 4 or tensor.ndim != 4 or places is None or not set(places) <= {-2, -1}:
                break
            candidate = tensor.movedim(-1, 1)
        try:
            move = action.on_output(x, candidate)
            some = candidate[:1]
            if move.act(some, 1).shape != some.shape:
                continue
        except (ValueError, RuntimeError, IndexError) as error:
            reason = reason or str(error)
            continue
        moved = move.places
        if moved and all(candidate.shape[dim] == 1 for dim in moved):
            return _Motion(None, note="has a single place")
        return _Motion(move, channels_last)
    return _Motion(None, note="the group cannot act on it")


def _null_share(action: Action, values: Tensor) -> float:
    """The share of values that were moved and brought back; 0 where it is not defined."""
    few = values[:_NULL_SAMPLES].detach()
    if not few.is_floating_point():
        return 0.0
    seen = _seen_by_all(action, few)
    orbit = OrbitMean(few if seen is None else torch.where(seen, few, 0.0))
    for element in range(1, len(action)):
        back = action.invert(action.act(few, element), element)
        orbit.add(back if seen is None else torch.where(seen, back, 0.0))
    sums = ShareSums()
    sums.add(orbit)
    value = sums.share().value
    return value if value == value else 0.0


def _seen_by_all(action: Action, values: Tensor) -> Tensor | None:
    """The places that every element leaves in view; None for all."""
    seen = [action.in_view(values, element) for element in range(1, len(action))]
    masks = [mask for mask in seen if mask is not None]
    return torch.stack([mask.expand_as(values[:1]) for mask in masks]).all(dim=0) if masks else None


def _channel_dim(action: Action, values: Tensor) -> int | None:
    """The dimension of channels beside the places that the action moves."""
    if action.dims is None or action.places is None:
        return 1 if values.ndim > 2 else None
    if set(action.dims) - set(action.places):
        return None  # it mixes values, as those of vectors
    moved = {dim % values.ndim for dim in action.dims}
    return next((dim for dim in (1, values.ndim - 1) if 0 < dim < values.ndim and dim not in moved), None)


# One tensor -----------------------------------------------------------------------------------------------------------


class _Cell:
    """The sums of one tensor."""

    def __init__(self, key: Key, max_channels: int) -> None:
        self.key = key
        self._max_channels = max_channels
        self._sums = {"invariance": ShareSums(), "equivariance": ShareSums(), "permuted": ShareSums()}
        self._orbits: dict[str, OrbitMean] = {}
        self._spare: dict[str, OrbitMean] = {}
        self._fitted = False
        self._tables: dict[int, Tensor | None] = {}
        self._base: Tensor | None = None  # channels of the samples that permutations are fitted on
        self._fit = 0
        self._permute: Callable[[Tensor], Tensor] | None = None  # to (C, n)
        self._channels: int | None = None
        self._moves: bool | None = None
        self._motion = _Motion(None)
        self._seen: Tensor | None = None
        self._sources: dict[tuple[int, torch.Size], Tensor | None] = {}
        self.problem = ""
        self.null = 0.0
        self.channel_note = ""

    def spoil(self, problem: str) -> None:
        """Nothing can be said of it any more."""
        self.problem = self.problem or problem

    def begin(self, values: Tensor, motion: _Motion) -> None:
        """The activations of the batch as it is."""
        if self._moves is not None and (motion.action is not None) != self._moves:
            self.spoil("the group can act on its output in some batches alone")
        self._motion, self._moves = motion, motion.action is not None
        values = self._arranged(values)
        shape = self._sums["invariance"].shape
        if shape is not None and shape != values.shape[1:]:
            self.spoil(f"its output changes shape, from {tuple(shape)} to {tuple(values.shape[1:])}")
        if self.problem:
            return
        self._orbits = {"invariance": self._orbit("invariance", values)}
        base = values
        if motion.action is not None:
            self._seen = _seen_by_all(motion.action, values)
            base = values if self._seen is None else torch.where(self._seen, values, 0.0)
            self._orbits["equivariance"] = self._orbit("equivariance", base)
        if not self._fitted:
            self._begin_fit(base)

    def _orbit(self, name: str, first: Tensor) -> OrbitMean:
        """In the memory that a batch before had."""
        spare = self._spare.get(name)
        self._spare[name] = OrbitMean(first) if spare is None else spare.restart(first)
        return self._spare[name]

    def _arranged(self, values: Tensor) -> Tensor:
        values = values[:, None] if values.ndim == 1 else values
        return values.movedim(-1, 1) if self._motion.channels_last else values

    def _begin_fit(self, base: Tensor) -> None:
        action = self._motion.action
        if action is None:
            self._channels, channels = 1, base[0].numel()
            what = "features"
        else:
            dim = _channel_dim(action, base)
            self._channels, channels, what = dim, 0 if dim is None else base.shape[dim], "channels"
        if self._channels is None or not 1 < channels <= self._max_channels:
            if channels > self._max_channels:
                self.channel_note = f"{channels:,} {what} are not matched (`max_channels`)"
            self._channels = None
            return
        places = base[0].numel() // channels
        self._fit = max(1, min(len(base) // 2, -(-_PLACES // places)))
        self._base = self._as_channels(base[: self._fit]).clone()

    def _as_channels(self, values: Tensor) -> Tensor:
        """Shape ``(C, n)``."""
        assert self._channels is not None
        if self._motion.action is None:
            return values.flatten(1).T
        return values.movedim(self._channels, 0).flatten(1)

    def add(self, values: Tensor, element: int) -> None:
        """The activations of the batch moved by an element."""
        if self.problem or not self._orbits:
            return
        values = self._arranged(values)
        invariance = self._orbits["invariance"]
        if values.shape != invariance.mean.shape:
            self.spoil("its output has another shape for a moved input")
            return
        move = self._motion.action
        plain = self._orbits.get("equivariance", invariance)
        if not self._fitted:
            back = values if move is None else self._brought_back(move, values, element)
            if self._channels is not None:
                self._fit_channels(back, element)
            self._add_rows(values, element, plain, lambda rows: back[rows])
        elif move is None or isinstance(move, PermutationAction):
            # Block by block: what is brought back stays in the cache.
            self._add_rows(values, element, plain, lambda rows: self._back_of(move, values[rows], element))
        else:  # its motion may be that of these very samples
            back = self._brought_back(move, values, element)
            self._add_rows(values, element, plain, lambda rows: back[rows])

    def _back_of(self, move: Action | None, values: Tensor, element: int) -> Tensor:
        return values if move is None else self._brought_back(move, values, element)

    def _fit_channels(self, back: Tensor, element: int) -> None:
        assert self._base is not None
        channels = self._as_channels(back[: self._fit])
        self._tables[element], found = best_permutation(self._base, channels)
        if not found:
            self.channel_note = "no permutation of channels brings it near"

    def _add_rows(self, values: Tensor, element: int, plain: OrbitMean, back_of: Callable[[slice], Tensor]) -> None:
        table, rest = self._tables.get(element), 0 if self._fitted else self._fit
        if table is not None and "permuted" not in self._orbits:
            # As long as nothing is permuted, both are the same.
            self._orbits["permuted"] = plain.copy_rows(rest)
        invariance, permuted = self._orbits["invariance"], self._orbits.get("permuted")
        orbits = [each for each in (invariance, plain if plain is not invariance else None) if each is not None]
        for orbit in orbits:
            orbit.begin()
        whole = rest == 0
        if permuted is not None and whole:
            permuted.begin()
        for number, (rows, *_) in enumerate(invariance.blocks):
            back = back_of(rows)
            if permuted is not None and whole:
                permuted.add_block(number, back if table is None else self._permuted(back, table))
            invariance.add_block(number, values[rows])
            if plain is not invariance:
                plain.add_block(number, back)
        for orbit in orbits:
            orbit.end()
        if permuted is not None and whole:
            permuted.end()
        elif permuted is not None:
            back = back_of(slice(rest, len(values)))
            permuted.add(back if table is None else self._permuted(back, table))

    def _permuted(self, values: Tensor, table: Tensor) -> Tensor:
        assert self._channels is not None
        if self._motion.action is None:
            return values.flatten(1).index_select(1, table).view(values.shape)
        return values.index_select(self._channels, table)

    def _brought_back(self, action: Action, values: Tensor, element: int) -> Tensor:
        source = self._source(action, values, element)
        if source is None:
            back = action.invert(values, element)
        else:
            back = values.reshape(-1, len(source)).index_select(1, source).view(values.shape)
        return back if self._seen is None else torch.where(self._seen, back, 0.0)

    def _source(self, action: Action, values: Tensor, element: int) -> Tensor | None:
        """Where each place's value comes from, if a gather is faster: several times, than a copy of a turned view."""
        if not isinstance(action, PermutationAction) or values.device.type != "cpu":
            return None
        sizes = values.shape[-action._trailing :]
        if (element, sizes) not in self._sources:
            back = action.invert(torch.arange(sizes.numel()).view(1, *sizes), element)
            self._sources[element, sizes] = None if back.is_contiguous() else back.reshape(-1)
        return self._sources[element, sizes]

    def finish(self, elements: int) -> str:
        """After the last element of a batch; what is wrong, if anything."""
        if self._orbits and any(orbit.count != elements for orbit in self._orbits.values()):
            self.spoil("is not called alike for all elements")
        if not self.problem and self._orbits:
            move, moved = self._motion.action, self._orbits.get("equivariance")
            if not self._fitted and move is not None and moved is not None and not move.exact:
                # Of what is equivariant in it: a break is not to excuse itself.
                self.null = _null_share(move, moved.mean.to(moved.dtype))
            for name, orbit in self._orbits.items():
                self._sums[name].add(orbit)
            self._fitted = True
        return self.problem

    def forget(self) -> None:
        """Lets go of a batch."""
        self._orbits = {}
        self._base = self._seen = None

    def write(self, tensor: LayerShares) -> None:
        """The shares of all batches."""
        tensor.note = tensor.note or self.problem
        if self.problem:
            return
        tensor.null = self.null
        tensor.invariance = self._sums["invariance"].share()
        if self._motion.action is not None:
            tensor.equivariance = self._sums["equivariance"].share()
        if self._channels is not None:
            matched = any(table is not None for table in self._tables.values())
            tensor.permuted = self._sums["permuted"].share() if matched else tensor.equivariance or tensor.invariance
        notes = [tensor.invariance.note, self._motion.note, self.channel_note]
        tensor.note = "; ".join(note for note in notes if note)
