"""A network as a function of its input alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_invariance._arguments import Arguments
from lightning_invariance._isolation import RandomState, module_of
from lightning_invariance._locate import OutputReader


class NetworkOfInput(nn.Module):
    """A network as a function of the input alone: a module, as some attributions ask for one.

    Args:
        network: what is called.
        arguments: with what, but for the input.
        reader: takes the logits out of the network's output.
        context: entered around each call.
        run: how the network is called; as it is by default.
        start: the random streams that each call begins with; those that there are by default.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        arguments: Arguments,
        reader: OutputReader,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        run: Callable[..., Any] | None = None,
        start: RandomState | None = None,
    ) -> None:
        super().__init__()
        self.training = module_of(network).training
        self.network = network
        self._arguments = arguments
        self._reader = reader
        self._context = context
        self._run = network if run is None else run
        self._start = start

    def started_nowhere(self) -> NetworkOfInput:
        """The same with the random streams as they are at each call."""
        return NetworkOfInput(self.network, self._arguments, self._reader, self._context, self._run)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self._logits(x)
        except RuntimeError as error:
            # Networks that differentiate inside (forces from energies) need a graph where nobody else does.
            if torch.is_grad_enabled() or "does not require grad" not in str(error):
                raise
            with torch.enable_grad():
                return self._logits(x).detach()

    def _logits(self, x: Tensor) -> Tensor:
        args, kwargs = self._arguments.with_input(x)
        if self._start is not None:
            self._start.restore()
        with self._context():
            return self._reader.read(self._run(*args, **kwargs), len(x))
