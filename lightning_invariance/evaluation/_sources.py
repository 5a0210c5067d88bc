"""What measures can read of a network, and how it is had."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_invariance._isolation import undisturbed
from lightning_invariance._locate import are_labels
from lightning_invariance._output_action import OutputMotion
from lightning_invariance._random import generator_for
from lightning_invariance.actions import Action
from lightning_invariance.actions._joint import JointAction
from lightning_invariance.actions._packing import Packing
from lightning_invariance.lie import DirectionalDerivative, lie_derivatives
from lightning_invariance.orbit import add_saliency, evaluate_perturbations, orbit_of
from lightning_invariance.outputs import OrbitOutputs
from lightning_invariance.saliency import Network, PreparedOtherwise, Saliency, by_class, predicted_class, prepared_by
from lightning_invariance.sensitivity import jacobian_spectral_norm


@dataclass(frozen=True)
class Samples:
    """Samples of a batch, and all that a source may want to know of them.

    Attributes:
        x: the input, shape ``(B, ...)``.
        network: from inputs to logits, run as the step runs it: in its precision and modes.
        calm: the same in eval mode and in its own precision, without autocast: for differences of nearly equal outputs.
        action: the group as it acts on `x`.
        output: how the output moves when the input does.
        packing: says how several outputs are packed into one, once the network has run; None for a single one.
        positions: the samples' positions in the data set.
        max_batch: the most samples in one forward.
        target: the labels; None where there are none.
        logits: the network's logits of `x`, where they are known.
        orbit_logits: those over the orbit, where they are known, brought back.
    """

    x: Tensor
    network: Network
    calm: Network
    action: Action | None
    output: OutputMotion | None
    packing: Callable[[], Packing | None]
    positions: tuple[int, ...]
    max_batch: int
    target: Tensor | None = None
    logits: Tensor | None = None
    orbit_logits: Tensor | None = None

    @property
    def elements(self) -> list[int]:
        """All elements but the identity, by their indices."""
        return list(range(1, len(self.acting)))

    @property
    def acting(self) -> Action:
        """The group, where one acts."""
        assert self.action is not None, "a source that needs the group says so"
        return self.action

    def on_output(self, logits: Tensor) -> Action | None:
        """The action on logits; None where they stay."""
        return None if self.output is None else self.output.on(self.acting, self.x, logits, self.packing())


class Source(ABC):
    """A way to get something of a network that measures read.

    A subclass says what it gives, and writes `run`; `register_source` makes it known. It is run only where a measure
    that was chosen needs what it gives.
    """

    #: Its name, by which the number of samples is said.
    name: str

    #: What it gives: the name, which is that of an argument of an ``update``, and the dimension of the samples, 0 or 1.
    gives: ClassVar[Mapping[str, int]]

    #: For how many samples, from the first, it is run unless something else is said; None for all.
    samples: int | None = None

    #: Whether what it gives of several packed outputs can be taken apart again.
    of_several: bool = False

    #: Whether it means something of outputs that move with the input.
    of_moving: bool = True

    #: Whether it needs a group.
    needs_action: bool = True

    #: Whether it needs the group, and where it moves the output that motion too, to be known by its generators.
    needs_flow: bool = False

    #: Whether it needs the input to be floating point.
    needs_floating: bool = False

    #: Whether it needs each process to hold all parameters, as several gradients of one graph do.
    needs_whole_parameters: bool = False

    def can_explain(self, logits: Tensor, x: Tensor) -> bool:
        """Whether it can be had of such outputs; where measures are chosen for the user it is left out if not."""
        return True

    @abstractmethod
    def run(self, samples: Samples) -> dict[str, Tensor]:
        """What it gives. Random streams, buffers and gradients are kept by the caller, and no graph is recorded."""


class OrbitSource(Source):
    """Outputs over the orbit."""

    name = "orbit"
    of_several = True
    gives: ClassVar[Mapping[str, int]] = {"logits": 0, "orbit_logits": 1, "valid": 1}

    def run(self, samples: Samples) -> dict[str, Tensor]:
        outputs = orbit_of(
            samples.network,
            samples.x,
            samples.acting,
            samples.elements,
            on_output=samples.on_output,
            base_logits=samples.logits,
            max_batch=samples.max_batch,
        )
        return given_by(outputs)


class SaliencySource(Source):
    """Saliency maps over the orbit."""

    name = "saliency"
    gives: ClassVar[Mapping[str, int]] = {"saliency": 0, "orbit_saliency": 1}
    samples = 64
    of_moving = False  # maps explain a class's logit, and the group would move it

    def __init__(self, saliency: Saliency) -> None:
        self.saliency = saliency

    def can_explain(self, logits: Tensor, x: Tensor) -> bool:
        """Each class has to have a logit (a single output is the only class's), and the input a gradient."""
        return logits.ndim in (1, 2) and x.is_floating_point()

    def run(self, samples: Samples) -> dict[str, Tensor]:
        assert samples.logits is not None
        outputs = add_saliency(
            OrbitOutputs(samples.logits, samples.logits[None]),
            samples.network,
            samples.x,
            samples.acting,
            samples.elements,
            _on(self.saliency, samples.action),
            explained_class(samples.target, samples.logits, samples.x),
            samples.max_batch,
        )
        return {name: value for name, value in given_by(outputs).items() if name in self.gives}

    def run_with_orbit(self, samples: Samples) -> dict[str, Tensor]:
        """The orbit's outputs too, in one pass where that is possible."""
        outputs = orbit_of(
            samples.network,
            samples.x,
            samples.acting,
            samples.elements,
            on_output=samples.on_output,
            base_logits=samples.logits,
            saliency=_on(self.saliency, samples.action),
            target=explained_class(samples.target, samples.logits, samples.x),
            max_batch=samples.max_batch,
        )
        return given_by(outputs)


class PerturbationSource(Source):
    """Outputs of random perturbations as large as the group's, beside those of the orbit, in full precision."""

    name = "perturbations"
    of_several = True
    gives: ClassVar[Mapping[str, int]] = {"logits": 0, "orbit_logits": 1, "valid": 1, "perturbed_logits": 1}
    samples = 64
    needs_floating = True

    def run(self, samples: Samples) -> dict[str, Tensor]:
        x, action = samples.x, samples.acting
        with undisturbed(samples.calm, x.device):
            outputs = orbit_of(
                samples.calm, x, action, samples.elements, on_output=samples.on_output, max_batch=samples.max_batch
            )
            perturbed = evaluate_perturbations(
                samples.calm,
                x,
                action,
                directions=_directions(x, len(action) - 1, samples.positions),
                max_batch=samples.max_batch,
            )
        return {**given_by(outputs), "perturbed_logits": perturbed}


class JacobianSource(Source):
    """The largest singular value of the network's Jacobian."""

    name = "jacobian"
    gives: ClassVar[Mapping[str, int]] = {"spectral_norms": 0}
    samples = 64
    needs_action = False
    needs_floating = True
    needs_whole_parameters = True

    def run(self, samples: Samples) -> dict[str, Tensor]:
        return {"spectral_norms": jacobian_spectral_norm(samples.calm, samples.x, max_batch=samples.max_batch)}


class LieSource(Source):
    """The Lie derivatives along the generators of a continuous group."""

    name = "lie"
    gives: ClassVar[Mapping[str, int]] = {"lie_derivative": 1}
    samples = 64
    needs_flow = True
    needs_floating = True
    needs_whole_parameters = True

    def run(self, samples: Samples) -> dict[str, Tensor]:
        if isinstance(samples.action, JointAction):
            raise ValueError(
                f"Expected one input for Lie derivatives but got {len(samples.action.inputs)} that move together: name "
                "one with `input=`, or measure by elements."
            )
        flow = samples.acting.flow
        assert flow is not None
        moves = None if samples.output is None else samples.output.flow()
        derivative, parts = DirectionalDerivative(alone=True), []
        with undisturbed(samples.calm, samples.x.device):
            for chunk in samples.x.split(samples.max_batch):
                _, part = lie_derivatives(
                    samples.calm, chunk, flow, range(len(flow)), moves, derivative, differentiable=False
                )
                parts.append(part)
        return {"lie_derivative": torch.cat(parts, dim=1)}


#: Sources that were registered from outside, by name.
SOURCES: dict[str, Source] = {}


def register_source(source: Source) -> None:
    """Makes a source known, so that metrics may name what it gives as arguments of their ``update``.

    Args:
        source: the source; one of the same name is exchanged for it.

    Raises:
        ValueError: if it is no `Source`, or it gives something that another one gives.

    Example:
        How far each sample's pixels are spread, as something to measure:

        >>> import torch
        >>> from lightning_invariance.evaluation import Source, register_source
        >>> class PixelSpread(Source):
        ...     name = "pixel_spread"
        ...     gives = {"pixel_spread": 0}
        ...     def run(self, samples):
        ...         return {"pixel_spread": samples.x.flatten(1).std(dim=1)}
        >>> register_source(PixelSpread())
    """
    if not isinstance(source, Source):
        raise ValueError(f"Expected `source` to be a Source but got {source!r}.")
    others: list[Source | type[Source]] = [*_BUILT_IN, *(each for each in SOURCES.values() if each.name != source.name)]
    taken = {name: each.name for each in others for name in each.gives}
    both = sorted(set(source.gives) & set(taken))
    if both:
        raise ValueError(f"Expected `source` to give what no other does but {both} come from {taken[both[0]]!r} too.")
    if not source.gives or not all(dim in (0, 1) for dim in source.gives.values()):
        raise ValueError(
            f"Expected `gives` of {source.name!r} to map names to the dimension of the samples, 0 or 1, but got "
            f"{source.gives!r}."
        )
    if source.name in {each.name for each in _BUILT_IN}:
        raise ValueError(f"Expected `source` to have a name of its own but got {source.name!r}.")
    SOURCES[source.name] = source


_BUILT_IN: tuple[type[Source], ...] = (OrbitSource, SaliencySource, PerturbationSource, JacobianSource, LieSource)


def sources_with(saliency: Saliency) -> list[Source]:
    """All sources, the cheapest that gives something first."""
    own = [OrbitSource(), SaliencySource(saliency), PerturbationSource(), JacobianSource(), LieSource()]
    return [*own, *SOURCES.values()]


def chosen_sources(sources: Iterable[Source], inputs: Iterable[str]) -> list[Source]:
    """The sources that give these inputs; what several give comes from one that is needed anyway, or from the first.

    Labels come from no source, and the logits of x are always there.
    """
    inputs = [name for name in inputs if name not in ("logits", "target")]
    giving = {name: [source for source in sources if name in source.gives] for name in inputs}
    chosen: list[Source] = []
    for name in sorted(inputs, key=lambda name: len(giving[name])):
        if giving[name] and not any(source in chosen for source in giving[name]):
            chosen.append(giving[name][0])
    return chosen


def given_by(outputs: OrbitOutputs) -> dict[str, Tensor]:
    """What there is, by the names of an update's arguments."""
    values = {
        "logits": outputs.logits,
        "orbit_logits": outputs.orbit_logits,
        "saliency": outputs.saliency,
        "orbit_saliency": outputs.orbit_saliency,
        "valid": outputs.valid,
    }
    return {name: value for name, value in values.items() if value is not None}


def first_samples(value: Tensor, dim: int, samples: int) -> Tensor:
    """The first samples of what a source gave; a mask may be the same for all."""
    return value if value.shape[dim] == 1 else value.narrow(dim, 0, min(samples, value.shape[dim]))


def explained_class(target: Tensor | None, logits: Tensor | None, x: Tensor) -> Tensor | None:
    """The labels where they name outputs; None, or the class predicted, where they do not."""
    if target is None or not are_labels(target, len(x)):
        return None
    if logits is None or logits.ndim > 2:  # of these there are no maps, which is for the saliency to say
        return target
    # A label that names no output (to be ignored, or 1 beside a single logit) explains nothing.
    named = (target >= 0) & (target < by_class(logits).shape[1])
    return torch.where(named, target, predicted_class(logits))


def _on(saliency: Saliency, action: Action | None) -> Saliency:
    return _OfPacked(saliency, action) if isinstance(action, JointAction) else saliency


class _OfPacked(PreparedOtherwise):
    """Maps of several inputs in one tensor: only those that are floating point are prepared."""

    def __init__(self, saliency: Saliency, action: JointAction) -> None:
        super().__init__(saliency)
        self._action = action

    def prepare(self, x: Tensor) -> Tensor:
        parts = self._action.unpack(x)
        prepared = [prepared_by(self._saliency, each) if each.is_floating_point() else each for each in parts]
        if all(after is before for after, before in zip(prepared, parts, strict=True)):
            return x
        return self._action.pack(prepared)


#: Names the random stream of the perturbations; another name would give other directions.
_STREAM = "SensitivityMonitor"


def _directions(x: Tensor, count: int, positions: Iterable[int]) -> Tensor:
    """Standard normal numbers, ``(count, B, ...)``, that depend on the samples' positions in the data set alone."""
    precision = torch.promote_types(x.dtype, torch.float32)
    shape = (count, *x.shape[1:])
    drawn = [torch.randn(shape, dtype=precision, generator=generator_for(_STREAM, each)) for each in positions]
    return torch.stack(drawn, dim=1).to(x.device)


def with_outputs(samples: Samples, given: Mapping[str, Tensor]) -> Samples:
    """The samples with what has become known of them."""
    logits, orbit_logits = given.get("logits", samples.logits), given.get("orbit_logits", samples.orbit_logits)
    return replace(samples, logits=logits, orbit_logits=orbit_logits)
