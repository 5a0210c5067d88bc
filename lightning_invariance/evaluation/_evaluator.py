"""Measures a network batch by batch: runs the sources that the chosen measures read, and feeds the measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_invariance._checks import check_count
from lightning_invariance._isolation import (
    module_of,
    ordinary,
    preserved_buffers,
    preserved_random_state,
)
from lightning_invariance._locate import Labels
from lightning_invariance._output_action import OutputMotion, PackedAction, mixed_dims, unless_whole
from lightning_invariance.actions import Action
from lightning_invariance.actions._packing import Packing
from lightning_invariance.evaluation._classes import Classes, PerClassOption
from lightning_invariance.evaluation._measures import Kind, Measure, MeasureCollection, Measures
from lightning_invariance.evaluation._sources import (
    OrbitSource,
    SaliencySource,
    Samples,
    Source,
    chosen_sources,
    first_samples,
    sources_with,
    with_outputs,
)
from lightning_invariance.functional._orbit_values import is_single
from lightning_invariance.metrics._base import Estimate, SampleCounts
from lightning_invariance.metrics._per_class import once_each
from lightning_invariance.orbit import doubted, run_network
from lightning_invariance.saliency import Network, SaliencyLike, as_saliency, default_saliency


@dataclass(frozen=True)
class Setting:
    """The network and the group for the first samples of a batch: one that takes more than `x` needs the rest of these.

    Attributes:
        network: from inputs to logits, run as the step runs it.
        calm: the same in eval mode, in its own precision.
        action: the group as it acts on the input.
    """

    network: Network
    calm: Network
    action: Action | None


@dataclass(frozen=True)
class Dealt:
    """Which samples of a data set a batch holds.

    Attributes:
        positions: the samples' positions in the data set.
        kept: how many samples, from the first, count. The network runs on the others for nothing.
        processes: how many processes have to run the network as often as this one, their positions dealt in turn.
        divisible: whether the network can be run on part of the samples.
    """

    positions: range
    kept: int
    processes: int = 1
    divisible: bool = True

    def counted(self, limit: int | None) -> int:
        """How many samples, from the first, are among the first `limit` of the data set, and count."""
        if limit is None:
            return self.kept
        return sum(position < limit for position in self.positions[: self.kept])

    def needed(self, limit: int | None) -> int:
        """How many samples to run the network on for that: as many on all processes, what the first of them needs."""
        if limit is None:
            return len(self.positions)
        count = sum(position - position % self.processes < limit for position in self.positions)
        return len(self.positions) if count and not self.divisible else count


class Evaluator:
    """Runs the sources that measures read, and feeds the measures.

    Args:
        action: the group; None where no measure reads anything of its orbit.
        measures: names, metrics, or None for all that make sense.
        output: how the output moves when the input does; it stays by default.
        saliency: how saliency maps are computed, for the measures that need them; by `default_saliency` if None.
        limits: how many samples, from the first, each source is run on, by its name; its own number by default.
        max_batch: the most samples in one forward; as many as the batch has if None: the forwards then need no more
            memory than the user's own, and stay in the caches that theirs fits into.
        demanding: whether a measure that was asked for, by name or as a metric, and cannot be computed is an error.
        per_class: whether each class is to have values of its own besides.
        on_orbit: is given the outputs over the orbit of each batch, by the names that `OrbitSource` gives them.
        more: where `measures` is None, others that are taken too if they can be.
        on_maps: is given each batch, and the maps of its first samples by the names that `SaliencySource` gives them.
        besides: measures that are taken of each output too; see `MeasureCollection`.

    Raises:
        ValueError: if an argument has a wrong type or value.
    """

    def __init__(
        self,
        action: Action | None,
        measures: Measures | None = None,
        *,
        output: OutputMotion | None = None,
        saliency: SaliencyLike | None = None,
        limits: Mapping[str, int] | None = None,
        max_batch: int | None = None,
        demanding: bool = True,
        per_class: PerClassOption = False,
        on_orbit: Callable[[Mapping[str, Tensor]], None] | None = None,
        more: Sequence[Measure] = (),
        on_maps: Callable[[Tensor, Mapping[str, Tensor]], None] | None = None,
        besides: Mapping[str, Measure] | None = None,
    ) -> None:
        if max_batch is not None:
            check_count("max_batch", max_batch)
        self.classes = Classes.of(per_class)
        self.action = action
        self.output = output
        names = None if output is None else output.names
        self.saliency = default_saliency() if saliency is None else as_saliency(saliency)
        sources = sources_with(self.saliency)
        dims = {name: dim for source in sources for name, dim in source.gives.items()}
        self.collections = {
            name: MeasureCollection(wanted, name, demanding, None if self.classes is None else dims, more, besides)
            for name, wanted in _by_output(measures, names).items()
        }
        self.max_batch = max_batch
        self.samples = 0
        self._restricted = measures is None
        self._demanding = demanding and not self._restricted
        self._several = names is not None
        self._stays = output is None or output.stays
        self._on_orbit = on_orbit
        self._on_maps = on_maps
        self._limits = {source.name: source.samples for source in sources} | dict(limits or {})
        self._kinds: dict[str | None, Kind] = {}
        given = {name for source in sources for name in source.gives}
        self._feeding: dict[str, list[Source]] = {}
        for collection in self.collections.values():
            for name in collection.names:
                inputs = collection.needed[name]
                strange = [argument for argument in inputs if argument not in given | {"target"}]
                if strange:
                    raise ValueError(
                        f"Expected the update of {name!r} to name inputs among {sorted(given | {'target'})} but got "
                        f"{strange}."
                    )
                self._feeding[name] = chosen_sources(sources, inputs)
        watched = [] if on_orbit is None else [source for source in sources if source.name == OrbitSource.name]
        fed = [source for each in self._feeding.values() for source in each]
        self._sources = [source for source in sources if source in [*watched, *fed]]
        self._check_limits()

    def _check_limits(self) -> None:
        for source in self._sources:
            limit = self._limits[source.name]
            if self.action is None and source.needs_action:
                raise ValueError(f"Expected `action` to be an Action for {self._fed_by(source)} but got None.")
            if source.needs_flow and not (self._restricted and self.action is not None and self.action.flow is None):
                self._check_flow(source)
            if limit == 0 and self._demanding:
                raise ValueError(
                    f"Expected `{limit_name(source.name)}` to be at least 1 for {self._fed_by(source)}, which need "
                    f"{_CONTENTS.get(source.name, source.name)}, but got 0."
                )
            if self._several and not source.of_several and self._demanding:
                raise ValueError(
                    f"Expected `output_action` to be no dict for {self._fed_by(source)}, of one output alone: name "
                    "that one with `logits=`."
                )
            if not source.of_moving and not self._stays and self._demanding:
                raise ValueError(
                    f"Expected `output_action` to be None for {self._fed_by(source)}, as maps explain a class's logit, "
                    f"which the group would move, but got {self.output!r}."
                )
        flowing = self.action is not None and self.action.flow is not None
        self._sources = [
            source for source in self._sources if self._limits[source.name] != 0 and (flowing or not source.needs_flow)
        ]

    def _check_flow(self, source: Source) -> None:
        if self.action is not None and self.action.flow is None:
            raise ValueError(
                f"Expected `action` to be a Flow, or an action that has one (SO2, SO3, ScalingRange), for "
                f"{self._fed_by(source)} but got {self.action!r}."
            )
        if self.output is not None and self.output.names is None:
            self.output.flow()

    def _fed_by(self, source: Source) -> list[str]:
        return [name for name, sources in self._feeding.items() if source in sources]

    @property
    def names(self) -> tuple[str, ...]:
        """The measures' names; an output's, where there are several, is put before them."""
        return tuple(_full(output, name) for output, each in self.collections.items() for name in each.names)

    def reading(self, argument: str) -> tuple[str, ...]:
        """The measures whose update needs this input."""
        pairs = ((output, name) for output, each in self.collections.items() for name in each.needing(argument))
        return tuple(_full(output, name) for output, name in pairs)

    @property
    def needs_whole_parameters(self) -> list[str]:
        """The measures that need each process to hold all parameters."""
        return [name for source in self._sources if source.needs_whole_parameters for name in self._fed_by(source)]

    def update(
        self,
        at: Callable[[int], Setting],
        x: Tensor,
        *,
        base_logits: Tensor | None = None,
        packing: Callable[[], Packing | None] = lambda: None,
        labels: Labels,
        dealt: Dealt | None = None,
        module: nn.Module | None = None,
    ) -> Tensor:
        """Adds a batch. Random streams, buffers and gradients stay as they were; modes are the caller's.

        Args:
            at: gives the network and the group for the first n samples of the batch.
            x: the batch, shape ``(B, ...)``.
            base_logits: the network's logits of `x` where they are known.
            packing: says how several outputs are packed, once the network has run.
            labels: the labels, or where they were looked for.
            dealt: which samples of the data set these are; the next ones if None.
            module: the module behind the network, whose buffers are kept from changing.

        Returns:
            The network's logits of `x`.

        Raises:
            ValueError: if a measure that was asked for needs labels and there are none, or would mean nothing.
        """
        self.check_labels(labels)
        dealt = Dealt(range(self.samples, self.samples + len(x)), len(x)) if dealt is None else dealt
        self.samples += len(x)
        # `Trainer.validate` makes inference tensors, which no gradient can pass. Out here copies are ordinary tensors,
        # those of the buffers (a filter cached by `.eval()`, say) included.
        with torch.inference_mode(False), torch.no_grad(), preserved_random_state(x.device):
            x = ordinary(x)
            base_logits = None if base_logits is None else ordinary(base_logits)
            labels = replace(labels, tensor=None if labels.tensor is None else ordinary(labels.tensor))
            with preserved_buffers(module_of(module)):
                return self._measure(_Batch(at, x, labels, packing, dealt), base_logits)

    def _measure(self, batch: _Batch, base_logits: Tensor | None) -> Tensor:
        samples = self._samples(batch, len(batch.x), base_logits)
        given: dict[Source, dict[str, Tensor]] = {}
        if base_logits is not None:
            self._find_kinds(samples, batch)
        for source in self._sources:
            count = batch.dealt.needed(self._limits[source.name])
            if not count or source in given or not self._is_read(source):
                continue
            if source.name == "orbit":
                maps = self._in_one_pass(batch, samples)
                given[source] = source.run(samples) if maps is None else maps.run_with_orbit(samples)
                if maps is not None:
                    given[maps] = given[source]
                samples = with_outputs(samples, given[source])
                self._find_kinds(samples, batch)
                if self._on_orbit is not None:
                    self._on_orbit(given[source])
                continue
            samples = self._with_logits(samples, batch)
            assert samples.logits is not None
            if not self._is_read(source) or (self._restricted and not source.can_explain(samples.logits, batch.x)):
                continue
            part = samples if count == len(batch.x) else self._first(batch, samples, count)
            given[source] = _checked(source, source.run(part), count)
        for source, values in given.items():
            if self._on_maps is not None and isinstance(source, SaliencySource):
                self._on_maps(batch.x, values)
        samples = self._with_logits(samples, batch)
        assert samples.logits is not None
        self._feed(given, samples.logits, batch)
        return samples.logits

    def _with_logits(self, samples: Samples, batch: _Batch) -> Samples:
        if samples.logits is None:
            samples = replace(samples, logits=run_network(samples.network, batch.x, samples.max_batch))
        self._find_kinds(samples, batch)
        return samples

    def _is_read(self, source: Source) -> bool:
        """Whether a measure that is taken for what the outputs are, as far as that is known, reads it."""
        if self._on_orbit is not None and isinstance(source, OrbitSource):
            return True
        fed = set(self._fed_by(source))
        if (self._several and not source.of_several) or not (self._stays or source.of_moving):
            return False
        return any(
            fed & set(collection.suiting(self._kinds.get(output))) for output, collection in self.collections.items()
        )

    def _in_one_pass(self, batch: _Batch, samples: Samples) -> SaliencySource | None:
        """The maps, if they are wanted for all samples, and it is known what they explain."""
        for source in self._sources:
            if not isinstance(source, SaliencySource) or batch.dealt.needed(self._limits["saliency"]) < len(batch.x):
                continue
            # Without the logits it is not known whether a label names a class.
            known = samples.logits is not None or (bool(self._kinds) and batch.labels.tensor is None)
            explained = self._kinds.get(None) in ("classes", "single") and batch.x.is_floating_point()
            if known and explained and samples.output is None and self._is_read(source):
                return source
        return None

    def _samples(self, batch: _Batch, count: int, logits: Tensor | None) -> Samples:
        setting = batch.at(count)
        return Samples(
            x=batch.x[:count],
            network=setting.network,
            calm=setting.calm,
            action=setting.action,
            output=None if self._stays else self.output,
            packing=batch.packing,
            positions=tuple(batch.dealt.positions[:count]),
            max_batch=self.max_batch or max(count, 1),
            target=None if batch.labels.tensor is None else batch.labels.tensor[:count],
            logits=logits,
        )

    def _first(self, batch: _Batch, samples: Samples, count: int) -> Samples:
        assert samples.logits is not None
        first = self._samples(batch, count, samples.logits[:count])
        orbit_logits = samples.orbit_logits
        return replace(first, orbit_logits=None if orbit_logits is None else orbit_logits[:, :count])

    def _feed(self, given: Mapping[Source, dict[str, Tensor]], logits: Tensor, batch: _Batch) -> None:
        for place, (output, collection) in enumerate(self.collections.items()):
            own = {source: self._of_output(values, source.gives, place, batch) for source, values in given.items()}
            base = self._of_output({"logits": logits}, {"logits": 0}, place, batch)
            labels = batch.labels.part(output)
            classes = None if self.classes is None else self.classes.labels_of(labels)
            num_classes = 0
            if self.classes is not None:
                num_classes = self.classes.number(base["logits"], self._kinds[output] == "classes")
            for name in collection.suiting(self._kinds[output]):
                sources = self._feeding[name]
                if any(source not in given for source in sources):
                    continue
                counts = (batch.dealt.counted(self._limits[source.name]) for source in sources)
                count = min(counts, default=batch.dealt.kept)
                if not count:
                    continue
                dims = {"logits": 0} | {each: dim for source in sources for each, dim in source.gives.items()}
                values = dict(base)
                for source in sources:  # what is run for a measure's own sake comes before what is there anyway
                    values |= own[source]
                first = {each: first_samples(value, dims[each], count) for each, value in values.items()}
                target = collection.target(name, labels, base["logits"])
                collection.update(
                    name,
                    {**first, "target": None if target is None else target[:count]},
                    None if classes is None else classes[:count],
                    num_classes,
                )

    def _of_output(
        self, values: Mapping[str, Tensor], dims: Mapping[str, int], place: int, batch: _Batch
    ) -> dict[str, Tensor]:
        """What a source gives of one output."""
        values = {name: value for name, value in values.items() if name in dims}
        if not self._several:
            return values
        packing = batch.packing()
        assert packing is not None
        parts = {name: _unpacked(name, value, dims[name], packing, place) for name, value in values.items()}
        return {name: value for name, value in parts.items() if value is not None}

    # What the outputs are ---------------------------------------------------------------------------------------------

    def _find_kinds(self, samples: Samples, batch: _Batch) -> None:
        if self._kinds:
            return
        logits, packing = samples.logits, batch.packing()
        assert logits is not None
        moves = samples.on_output(logits)
        tensors: Sequence[Tensor] = [logits]
        actions: Sequence[Action | None] = [moves]
        if self._several:
            assert packing is not None
            tensors = packing.unpack(logits)
            actions = moves.moves if isinstance(moves, PackedAction) else [None] * len(tensors)
        for output, tensor, action in zip(self.collections, tensors, actions, strict=True):
            same = self.output is not None and self.output.is_same(output)
            labels = batch.labels.part(output)
            self._kinds[output] = kind = kind_of(tensor, action, labels, same)
            self.collections[output].suiting(kind)
            self._refuse_lack_of_labels(output, labels.for_logits(tensor), tensor)

    def check_labels(self, labels: Labels) -> None:
        """Raises a `ValueError` where a measure that was asked for needs labels and there are none."""
        for output in self.collections:
            self._refuse_lack_of_labels(output, labels.part(output))
            if self.classes is not None:
                self.classes.labels_of(labels.part(output))

    def _refuse_lack_of_labels(self, output: str | None, labels: Labels, logits: Tensor | None = None) -> None:
        lacking = self.collections[output].lacking_target(labels, logits) if self._demanding else []
        if lacking:
            raise ValueError(
                f"Expected labels for {lacking} but found none: {labels.place}. Say with "
                "`target=` where they are: one integer a sample, or a place of each sample's mask."
            )

    def check_inputs(self, inputs: Sequence[Tensor]) -> None:
        """Raises a `ValueError` where a measure that was asked for needs floating-point input and there is other."""
        for source in self._sources:
            wrong = [each.dtype for each in inputs if source.needs_floating and not each.is_floating_point()]
            if wrong and self._demanding:
                raise ValueError(
                    f"Expected the input to be floating point, to have a gradient or to be perturbed, "
                    f"for {self._fed_by(source)} but got {wrong[0]}."
                )

    def left_out(self, x: Tensor, labels: Labels) -> tuple[str, ...]:
        """The measures of classes that are left out where all that make sense are wanted."""
        given = {name for source in self._sources for name in source.gives}
        given |= {"target"} if labels.tensor is not None else set()
        if not x.is_floating_point():
            given -= {"saliency", "orbit_saliency"}
        return tuple(
            _full(output, name)
            for output, collection in self.collections.items()
            for name in collection.left_out(self._kinds.get(output), given)
        )

    def why_missing(self, x: Tensor, labels: Labels) -> dict[str, str]:
        """Why measures were not taken, where all that make sense are wanted; for the first batch, measured before."""
        return {
            _full(output, name): self._why(output, measure, x, labels.part(output))
            for output, collection in self.collections.items()
            for name, measure in collection.missing().items()
        }

    def _why(self, output: str | None, measure: Measure, x: Tensor, labels: Labels) -> str:
        if self._kinds.get(output) not in measure.unasked:
            single = " or one number a sample" if "single" in measure.unasked else ""
            return _WANTED.get(measure.unasked, f"the outputs are no scores of classes{single}")
        for source in self._feeding[measure.name]:
            if source.needs_flow and (self.action is None or self.action.flow is None):
                return "the group has no generator: a Flow has"
            if self._limits[source.name] == 0:
                return f"`{limit_name(source.name)}` is 0"
            if self._several and not source.of_several:
                return "it is one of a single output"
            if not self._stays and not source.of_moving:
                return "the output moves"
            if source.needs_floating and not x.is_floating_point():
                return f"the input is {x.dtype}, no floating point"
        if "target" in self.collections[output].needed[measure.name] and labels.tensor is None:
            return f"there are no labels ({labels.place})"
        return "there is not what it reads, or some places of the output are carried out of the frame"

    def saliency_in_words(self) -> str:
        """The saliency map that is used; nothing where none is."""
        source = next((each for each in self._sources if isinstance(each, SaliencySource)), None)
        return repr(self.saliency) if source is not None and self._is_read(source) else ""

    def doubts(
        self,
        at: Callable[[int], Setting],
        x: Tensor,
        logits: Tensor,
        packing: Packing | None,
        module: nn.Module | None = None,
        divisible: bool = True,
    ) -> list[str]:
        """What to warn of: outputs that agree better if they move the other way, or stay, than as was said."""
        if self.output is None or self._stays or self.action is None or not len(x):
            return []
        count = min(len(x), 8) if divisible else len(x)
        setting = at(count)
        assert setting.action is not None
        with torch.inference_mode(False), torch.no_grad(), preserved_random_state(x.device):
            first, base = ordinary(x)[:count], ordinary(logits)[:count]
            move = self.output.on(setting.action, first, base, packing)
            with preserved_buffers(module_of(module)):
                said = None if move is None else doubted(setting.network, first, base, setting.action, move)
        return [] if said is None else [said]

    # Results ----------------------------------------------------------------------------------------------------------

    def to(self, device: torch.device) -> None:
        """Moves the measures' states."""
        for collection in self.collections.values():
            collection.to(device)

    def updated(self) -> Tensor:
        """Which measures have seen a batch: 1 or 0 for each, to be added up over processes."""
        return torch.cat([collection.updated() for collection in self.collections.values()])

    def compute(self, wanted: Tensor | None = None) -> dict[str, Estimate]:
        """The measures with their standard errors; see `MeasureCollection.compute`."""
        return self._computed(MeasureCollection.compute, wanted)

    def compute_per_class(self, wanted: Tensor | None = None) -> dict[str, Estimate]:
        """The same of each class, where they were wanted."""
        # What the measure of all samples says of them is not said for each class again.
        with once_each(unless="held NaN or infinite values|is undefined for |of no samples is undefined"):
            return self._computed(MeasureCollection.compute_per_class, wanted)

    @property
    def counts(self) -> dict[str, SampleCounts]:
        """How many samples each measure that was computed rests on, where it knows."""
        return {
            _full(output, name): counts
            for output, collection in self.collections.items()
            for name, counts in collection.counts.items()
        }

    def class_names(self, computed: Mapping[str, Estimate]) -> tuple[str, ...]:
        """What the classes are called that these values are of."""
        if self.classes is None or not computed:
            return ()
        return self.classes.named(max(len(estimate.value) for estimate in computed.values()))

    def _computed(
        self, compute: Callable[[MeasureCollection, Tensor], dict[str, Estimate]], wanted: Tensor | None
    ) -> dict[str, Estimate]:
        wanted = self.updated() if wanted is None else wanted
        parts = wanted.split([len(each.names) for each in self.collections.values()])
        return {
            _full(output, name): estimate
            for (output, collection), part in zip(self.collections.items(), parts, strict=True)
            for name, estimate in compute(collection, part).items()
        }


@dataclass(frozen=True)
class _Batch:
    at: Callable[[int], Setting]
    x: Tensor
    labels: Labels
    packing: Callable[[], Packing | None]
    dealt: Dealt


#: What the outputs are not, where a measure is taken of these kinds alone.
_WANTED: dict[tuple[Kind, ...], str] = {
    ("pixels",): "the outputs are no scores of classes at each place, with labels of places",
    ("vectors",): "the outputs are no vectors that `output_action` turns",
}

#: What sources are for, and the arguments that say for how many samples they are run.
_CONTENTS = {"saliency": "maps", "perturbations": "perturbations", "jacobian": "Jacobians", "lie": "Lie derivatives"}
_LIMITS = {
    "saliency": "saliency_samples",
    "perturbations": "sensitivity_samples",
    "jacobian": "sensitivity_samples",
    "lie": "sensitivity_samples",
}


def limit_name(source: str) -> str:
    """The argument that says for how many samples a source is run."""
    return _LIMITS.get(source, f"samples of {source}")


def limits_of(saliency_samples: int, sensitivity_samples: int) -> dict[str, int]:
    """For how many samples, from the first, each source is run."""
    check_count("saliency_samples", saliency_samples, minimum=0)
    check_count("sensitivity_samples", sensitivity_samples, minimum=0)
    given = {"saliency_samples": saliency_samples, "sensitivity_samples": sensitivity_samples}
    return {source: given[argument] for source, argument in _LIMITS.items()}


def kind_of(logits: Tensor, action: Action | None, labels: Labels, same: bool = False) -> Kind:
    """What the outputs are: that of an action which changes them, of labels, or of their shape."""
    mixed = mixed_dims(action, logits)
    if mixed != set():
        return "vectors" if mixed == {-1} else "tensors"
    if is_single(logits):
        return "single"
    if logits.ndim == 2:
        # What moves as the input's places do is no list of classes.
        return "values" if same or labels.are_values(logits) else "classes"
    return "pixels" if logits.ndim > 3 and logits.shape[1] >= 2 and labels.of(logits) is not None else "field"


def _by_output(measures: Measures | None, names: Sequence[str] | None) -> dict[str | None, Measures | None]:
    """The measures of each output: ``"forces/..."`` is one of the forces alone, any other name one of all outputs."""
    if names is None:
        return {None: measures}
    if measures is None or isinstance(measures, str) or not isinstance(measures, Iterable):
        return dict.fromkeys(names, measures)
    wanted: dict[str | None, Measures | None] = {}
    listed = list(measures)
    for output in names:
        own = {of_it: name for name in listed if (of_it := _of_one(name, output)) is not None}
        wanted[output] = {key: measures[name] for key, name in own.items()} if isinstance(measures, Mapping) else [*own]
    strange = [name for name in listed if isinstance(name, str) and "/" in name and name.split("/")[0] not in names]
    if strange:
        raise ValueError(f"Expected `measures` to name outputs among {list(names)} but got {strange}.")
    lacking = [output for output, measures_of_it in wanted.items() if not measures_of_it]
    if lacking and listed:
        raise ValueError(
            f"Expected `measures` to name a measure of each output but got none of {lacking}: leave these out of "
            "`output_action`."
        )
    return wanted


def _of_one(name: str, output: str) -> str | None:
    """A measure's name for an output; None where it is one of another output."""
    if not isinstance(name, str) or "/" not in name:
        return name
    of, _, measure = name.partition("/")
    return measure if of == output else None


def _full(output: str | None, name: str) -> str:
    return name if output is None else f"{output}/{name}"


def _checked(source: Source, values: dict[str, Tensor], samples: int) -> dict[str, Tensor]:
    """What a source gave of so many samples, if it is what it said."""
    strange = sorted(set(values) - set(source.gives))
    lacking = sorted(set(source.gives) - set(values) - {"valid"})
    if strange or lacking:
        raise ValueError(
            f"Expected the source {source.name!r} to give {sorted(source.gives)} but got {sorted(values)}."
        )
    for name, value in values.items():
        dim = source.gives[name]
        if value.ndim <= dim or value.shape[dim] not in (samples, 1):
            raise ValueError(
                f"Expected {name!r} of the source {source.name!r} to have {samples} samples in dimension {dim} but got "
                f"{tuple(value.shape)}."
            )
    return values


def _unpacked(name: str, value: Tensor, dim: int, packing: Packing, place: int) -> Tensor | None:
    """One of several outputs; what is no output stays as it is."""
    if value.ndim != dim + 2 or value.shape[-1] != sum(packing.sizes):
        return value
    if name == "valid":
        return unless_whole(packing.parts(value, before=dim + 1)[place])
    return packing.unpack(value, before=dim + 1)[place]
