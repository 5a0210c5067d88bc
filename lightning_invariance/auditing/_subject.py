"""What is checked: a network, a few samples, and the group that acts on them."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_invariance._arguments import Arguments
from lightning_invariance._isolation import RandomState, set_modes
from lightning_invariance._locate import InputSpec, Labels, LogitsOf, OutputReader, Place
from lightning_invariance._output_action import OutputMotion
from lightning_invariance.actions import Action
from lightning_invariance.baselines._orbit_pooled import pooled_outputs
from lightning_invariance.evaluation._evaluator import kind_of
from lightning_invariance.evaluation._measures import Kind
from lightning_invariance.evaluation._network import NetworkOfInput
from lightning_invariance.functional._orbit_values import flat_samples
from lightning_invariance.orbit import orbit_of, run_network
from lightning_invariance.outputs import OrbitOutputs
from lightning_invariance.saliency import Network, Saliency

#: The most elements that are looked at, spread over the group.
_ELEMENTS = 16

#: An error of fewer roundings than this, relative to the outputs, is rounding.
ROUNDINGS = 1000


class Skip(Exception):
    """A check does not apply, or cannot be made; the message says why."""

    @classmethod
    def because(cls, reason: str, failure: Exception) -> Skip:
        """With what stood in the way, cut short."""
        lines = str(failure).splitlines() or [type(failure).__name__]
        return cls(f"{reason} ({textwrap.shorten(lines[0], 240, placeholder='...')}).")


@dataclass(frozen=True)
class Subject:
    """A network with a few samples.

    Attributes:
        function: what is called.
        module: the modules behind it.
        arguments: what it is called with.
        action: the group.
        motion: how the output moves.
        select: takes the logits out of the output.
        batch: the batch that these were taken from.
        input: where the input was said to be.
        target: where the labels were said to be.
        labels: the labels.
        saliency: how saliency maps are going to be computed.
        start: the random streams that each call begins with.
    """

    function: Callable[..., Any]
    module: nn.Module
    arguments: Arguments
    action: Action
    motion: OutputMotion
    select: LogitsOf | None
    batch: Any
    input: InputSpec
    target: Place | None
    labels: Labels
    saliency: Saliency
    start: RandomState

    @property
    def x(self) -> Tensor:
        """The samples; of several inputs, packed."""
        return self.arguments.x

    @property
    def acting(self) -> Action:
        """The group as it acts on `x`."""
        return self.arguments.acting(self.action)

    @property
    def elements(self) -> list[int]:
        """Elements besides the identity, spread over the group."""
        return spread_over(len(self.action), _ELEMENTS)

    def run(self, x: Tensor | None = None) -> Tensor:
        """The logits of x."""
        network, _ = self.network()
        return run_network(network, self.x if x is None else x, None)

    def network(self) -> tuple[NetworkOfInput, OutputReader]:
        """From `x` to logits, and what knows how several are packed once it has run."""
        reader = OutputReader(self.select, self.motion.names)
        return NetworkOfInput(self.function, self.arguments, reader, start=self.start), reader

    def orbit(self, elements: Sequence[int] | None = None) -> OrbitOutputs:
        """The outputs over the orbit, brought back, an element at a time: random numbers are the same in each pose."""
        network, reader = self.network()
        return self._orbit(network, reader, self.x, self.elements if elements is None else elements)

    def reference(self, elements: Sequence[int]) -> OrbitOutputs:
        """The same of the network averaged over the orbit of its input, which is exactly symmetric if the group is."""
        network, reader = self.network()
        everything = range(1, len(self.action))

        def pooled(x: Tensor) -> Tensor:
            return pooled_outputs(self._orbit(network, reader, x, everything))

        return self._orbit(pooled, reader, self.x, elements)

    def _orbit(self, network: Network, reader: OutputReader, x: Tensor, elements: Sequence[int]) -> OrbitOutputs:
        acting = self.acting
        return orbit_of(
            network,
            x,
            acting,
            list(elements),
            on_output=None if self.motion.stays else lambda logits: self.motion.on(acting, x, logits, reader.packed()),
            max_batch=len(x),
        )

    def only(self, name: str) -> Subject:
        """The same with one of several outputs alone."""
        specs = self.motion.spec
        assert isinstance(specs, Mapping)
        reader = OutputReader(self.select, (name,))

        def select(output: Any) -> Tensor:
            return reader.entries(output)[name]

        motion = OutputMotion(specs[name], self.action)
        return replace(self, motion=motion, select=select, labels=self.labels.part(name))

    def kind(self, logits: Tensor) -> Kind | None:
        """What the outputs are; None of several."""
        if self.motion.names is not None:
            return None
        action = None if self.motion.stays else self.motion.on(self.acting, self.x, logits, None)
        return kind_of(logits, action, self.labels, self.motion.is_same(None))

    def first(self, samples: int) -> Subject:
        """The same with fewer samples, where they can be taken apart."""
        if not self.arguments.is_divisible or samples >= len(self.x):
            return self
        return replace(self, arguments=self.arguments.first(samples), labels=self.labels.first(samples))

    def with_arguments(self, arguments: Arguments) -> Subject:
        """The same, called with something else."""
        return replace(self, arguments=arguments)

    def doubled(self) -> Subject:
        """The same in float64.

        Raises:
            Skip: if the network cannot be copied.
        """
        function: Any = self.function
        owner = getattr(function, "__self__", None)
        whole = isinstance(function, nn.Module)
        if not whole and not isinstance(owner, nn.Module):
            raise Skip("the network is no module, of which a copy in float64 could be run.")
        try:
            copy: Any = deepcopy(function if whole else owner)
            module: nn.Module = copy.double()
        except Exception as error:
            raise Skip.because("the network cannot be copied", error) from error
        run = module if whole else MethodType(function.__func__, module)

        def double(tensor: Tensor) -> Tensor:
            return tensor.double() if tensor.is_floating_point() else tensor

        return replace(self, function=run, module=module, arguments=self.arguments.mapped(double))


def spread_over(count: int, most: int) -> list[int]:
    """Up to so many of the indices from 1 to count - 1, evenly spread."""
    wanted = min(count - 1, most)
    return sorted({1 + round(place * (count - 2) / max(wanted - 1, 1)) for place in range(wanted)})


def relative_error(outputs: OrbitOutputs) -> float:
    r"""The root of the mean :math:`\|\rho(g)^{-1} f(gx) - f(x)\|^2` over that of :math:`\|f(x)\|^2`, where valid."""
    base, orbit = flat_samples(outputs.logits).double(), flat_samples(outputs.orbit_logits, before=2).double()
    squares, sizes = (orbit - base).square(), base.square().expand(orbit.shape)
    if outputs.valid is not None:
        seen = flat_samples(outputs.valid.expand(outputs.orbit_logits.shape), before=2)
        squares, sizes = torch.where(seen, squares, 0.0), torch.where(seen, sizes, 0.0)
    return float((squares.sum() / sizes.sum()).sqrt())


def relative_gap(one: Tensor, other: Tensor) -> float:
    """How far two outputs are apart, relative to the first; 0 if they are the same, also where they are 0."""
    if torch.equal(one, other):
        return 0.0
    return float(((other.double() - one.double()).square().sum() / one.double().square().sum()).sqrt())


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of measures that are undefined: other checks say why."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def rounding(logits: Tensor) -> float:
    """An error that is no more than this, relative to the outputs, may be rounding."""
    return ROUNDINGS * torch.finfo(logits.dtype).eps


@contextmanager
def training_mode(module: nn.Module) -> Iterator[None]:
    """Puts the module in train mode and gives every submodule its own mode back afterwards."""
    submodules = list(module.modules())
    modes = [each.training for each in submodules]
    module.train()
    try:
        yield
    finally:
        set_modes(submodules, modes)
