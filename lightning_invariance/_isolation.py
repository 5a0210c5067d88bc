"""Extra forwards that leave no trace: buffers, random streams, modes, hooks of a network stay as they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def ordinary(value: Tensor) -> Tensor:
    """The tensor itself, or a copy of an inference tensor, which no graph takes; called outside of inference mode."""
    return value.clone() if value.is_inference() else value


@contextmanager
def preserved_buffers(module: nn.Module) -> Iterator[None]:
    """Runs the block on copies of the module's buffers, then puts the originals back.

    Whatever a forward writes in place (running statistics, counters, power-iteration vectors) goes to the copies,
    so that the originals stay bit-identical and tensors already saved for a backward keep their version. Entered
    outside inference mode, the copies are ordinary tensors even where the originals are inference tensors (a filter
    cached by ``.eval()`` inside ``Trainer.validate``), so that gradients can flow past them.
    """
    originals: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    for submodule in module.modules():
        for name, buffer in submodule._buffers.items():
            if buffer is not None:
                originals.append((submodule._buffers, name, buffer))
    try:
        copies: dict[int, Tensor] = {}  # a buffer that two modules share stays shared
        for buffers, name, buffer in originals:
            if id(buffer) not in copies:
                copies[id(buffer)] = buffer.detach().clone()
            buffers[name] = copies[id(buffer)]
        yield
    finally:
        for buffers, name, buffer in originals:
            buffers[name] = buffer


class RandomState:
    """The state of torch's random streams on the CPU and on one device, and of Python's and numpy's, to go back to."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._accelerator = _accelerator_state(device)
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")  # a network that never imported it does not draw from it
        self._numpy: Any = None if numpy is None else numpy.random.get_state()

    def restore(self) -> None:
        """Sets the streams to this state."""
        torch.set_rng_state(self._cpu)
        if self._accelerator is not None:
            getattr(torch, self._device.type).set_rng_state(self._accelerator, self._device)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RandomState):
            return NotImplemented
        return (
            torch.equal(self._cpu, other._cpu)
            and _equal(self._accelerator, other._accelerator)
            and self._python == other._python
            and _equal_numpy(self._numpy, other._numpy)
        )

    __hash__ = None  # type: ignore[assignment]


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is None or other is None or torch.equal(one, other)


def _equal_numpy(one: Any, other: Any) -> bool:
    # (name, keys, position, has_gauss, cached_gaussian)
    return one is None or other is None or (one[2:] == other[2:] and bool((one[1] == other[1]).all()))


def _accelerator_state(device: torch.device) -> Tensor | None:
    if device.type == "cpu":
        return None
    backend: Any = getattr(torch, device.type, None)
    return backend.get_rng_state(device) if hasattr(backend, "get_rng_state") else None


@contextmanager
def preserved_random_state(device: torch.device) -> Iterator[None]:
    """Puts the random streams (torch's, Python's, numpy's) back after the block, also after an exception."""
    state = RandomState(device)
    try:
        yield
    finally:
        state.restore()


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Keeps autocast from computing the block in half precision; the meta device, which computes nothing, has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Puts the module in eval mode and gives every submodule its own mode back afterwards."""
    submodules = list(module.modules())
    modes = [submodule.training for submodule in submodules]
    # Modules already in eval are left alone: some rebuild caches whenever they are told.
    if any(modes):
        module.eval()
    try:
        yield
    finally:
        set_modes(submodules, modes)


def set_modes(submodules: Sequence[nn.Module], modes: Sequence[bool]) -> None:
    """Gives each submodule its mode; parents come before their children.

    `train` is called instead of writing the flag because some modules keep caches that follow their mode.
    """
    for submodule, training in zip(submodules, modes, strict=True):
        if submodule.training != training:
            submodule.train(training)


def is_batch_coupled(module: nn.Module) -> bool:
    """Whether a sample's output depends on the others in its batch (batch normalisation in train mode)."""
    return any(
        submodule.training and isinstance(submodule, nn.modules.batchnorm._BatchNorm) for submodule in module.modules()
    )


def module_of(network: object) -> nn.Module:
    """The network; for a function or a method, the modules that it is made of, as far as they can be seen.

    These are the module whose method it is, or, one step away, what the object, the closure, the arguments of a partial
    function or the names in it refer to.
    """
    if isinstance(network, nn.Module):
        return network
    owner = getattr(network, "__self__", None)
    if isinstance(owner, nn.Module):
        return owner
    function: Any = getattr(network, "__func__", network)
    values: list[object] = [*vars(owner).values()] if hasattr(owner, "__dict__") else []
    if isinstance(network, partial):
        values += [network.func, *network.args, *network.keywords.values()]
    values += [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _is_filled(cell)]
    values += [
        *(getattr(function, "__defaults__", None) or ()),
        *(getattr(function, "__kwdefaults__", None) or {}).values(),
    ]
    names = getattr(getattr(function, "__code__", None), "co_names", ())
    values += [function.__globals__[name] for name in names if name in getattr(function, "__globals__", ())]
    values += [value.__self__ for value in values if hasattr(value, "__self__")]
    modules = {id(value): value for value in values if isinstance(value, nn.Module)}
    return nn.ModuleList(modules.values())


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a variable that has no value yet
        return False


@contextmanager
def undisturbed(network: object, device: torch.device, *, training: bool = False) -> Iterator[None]:
    """Runs the block outside of inference mode, autocast and compiled code, the module in eval mode.

    With `training` it keeps its modes. Modes, buffers and torch's random streams come back as they were. What is
    compiled runs as it was written: its graph can be gone through neither twice nor by a second derivative.
    """
    module = module_of(network)
    stance: AbstractContextManager[Any] = nullcontext()
    if "torch._dynamo" in sys.modules:  # or nothing has been compiled yet
        stance = torch.compiler.set_stance("force_eager")
    with (
        torch.inference_mode(False),  # first: buffers are copied outside of it
        full_precision(device),
        nullcontext() if training else evaluation_mode(module),
        preserved_random_state(device),
        preserved_buffers(module),
        stance,
    ):
        yield
