"""Extra forwards that leave no trace: buffers, random streams, modes, hooks of a network stay as they were."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
    """The state of torch's random streams on the CPU and on one device, to be gone back to."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._accelerator = _accelerator_state(device)

    def restore(self) -> None:
        """Sets the streams to this state."""
        torch.set_rng_state(self._cpu)
        if self._accelerator is not None:
            getattr(torch, self._device.type).set_rng_state(self._accelerator, self._device)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RandomState):
            return NotImplemented
        if self._accelerator is None or other._accelerator is None:
            return torch.equal(self._cpu, other._cpu)
        return torch.equal(self._cpu, other._cpu) and torch.equal(self._accelerator, other._accelerator)

    __hash__ = None  # type: ignore[assignment]


def _accelerator_state(device: torch.device) -> Tensor | None:
    if device.type == "cpu":
        return None
    backend: Any = getattr(torch, device.type, None)
    return backend.get_rng_state(device) if hasattr(backend, "get_rng_state") else None


@contextmanager
def preserved_random_state(device: torch.device) -> Iterator[None]:
    """Puts torch's random streams (the CPU's and the device's) back after the block, also after an exception."""
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
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    # Modules already in eval are left alone: some rebuild caches whenever they are told.
    if any(training for _, training in modes):
        module.eval()
    try:
        yield
    finally:
        # Parents come before their children, so a child whose mode differs from its parent's is set last. `train`
        # is called instead of writing the flag because some modules keep caches that follow their mode.
        for submodule, training in modes:
            if submodule.training != training:
                submodule.train(training)


def is_batch_coupled(module: nn.Module) -> bool:
    """Whether a sample's output depends on the others in its batch (batch normalisation in train mode)."""
    return any(
        submodule.training and isinstance(submodule, nn.modules.batchnorm._BatchNorm) for submodule in module.modules()
    )


def module_of(network: object) -> nn.Module:
    """The network, the module whose method it is, or, for a function, a module without anything to preserve."""
    owner = getattr(network, "__self__", network)
    return owner if isinstance(owner, nn.Module) else nn.Module()


@contextmanager
def undisturbed(network: object, device: torch.device) -> Iterator[None]:
    """Runs the block outside of inference mode, autocast and compiled code, the module in eval mode.

    Modes, buffers and torch's random streams come back as they were. What is compiled runs as it was written: its graph
    can be gone through neither twice nor by a second derivative.
    """
    module = module_of(network)
    stance: AbstractContextManager[Any] = nullcontext()
    if "torch._dynamo" in sys.modules:  # or nothing has been compiled yet
        stance = torch.compiler.set_stance("force_eager")
    with (
        torch.inference_mode(False),  # first: buffers are copied outside of it
        full_precision(device),
        evaluation_mode(module),
        preserved_random_state(device),
        preserved_buffers(module),
        stance,
    ):
        yield
