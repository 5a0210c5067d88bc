"""One group's measures, batch by batch: what `evaluate_invariance` runs, and an audit for several groups at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from lightning_invariance._arguments import Arguments
from lightning_invariance._call import without_fabric
from lightning_invariance._checks import check_callable, check_choice, check_count
from lightning_invariance._isolation import RandomState, module_of
from lightning_invariance._locate import (
    InputSpec,
    LogitsOf,
    OutputReader,
    Place,
    check_input_spec,
    check_logits_of,
    check_place,
    locate_target,
    stray_labels,
    what_stays,
)
from lightning_invariance._messages import errors_of, warn
from lightning_invariance._output_action import OutputActions
from lightning_invariance.actions import Action, Flow
from lightning_invariance.actions._flow import as_action
from lightning_invariance.evaluation._classes import PerClassOption
from lightning_invariance.evaluation._draws import for_measuring, output_for_measuring
from lightning_invariance.evaluation._evaluator import Dealt, Evaluator, Setting, limits_of
from lightning_invariance.evaluation._keep import KeptSamples, WorstSamples
from lightning_invariance.evaluation._measures import Measure, Measures
from lightning_invariance.evaluation._network import NetworkOfInput
from lightning_invariance.metrics._base import Estimate, SampleCounts
from lightning_invariance.saliency import SaliencyLike


class InvarianceResults(dict[str, Estimate]):
    """What `evaluate_invariance` measured: an `Estimate` (value and standard error over samples) by measure.

    Attributes:
        action: the group, with the elements that were measured; its `repr` says how many were drawn and with which
            seed.
        per_class: the same of each class, where that was asked for, `Estimate`s of shape ``(C,)``, or ``(C, |G| - 1)``
            by element; NaN for classes without samples.
        classes: what the classes are called then.
        kept: the samples that were kept, where some were asked for.
        found: what was found in the first batch, in words: ``"input"``, ``"logits"``, ``"labels"``, ``"saliency"``, the
            map that was used where one was, and ``"without"``, the measures that are left out for want of labels,
            classes or maps.
        counts: how many samples each measure rests on, and how many it left out, where it knows.
    """

    def __init__(
        self,
        measures: Mapping[str, Estimate],
        action: Action,
        found: Mapping[str, str],
        per_class: Mapping[str, Estimate] | None = None,
        classes: Sequence[str] = (),
        kept: KeptSamples | None = None,
        counts: Mapping[str, SampleCounts] | None = None,
    ) -> None:
        super().__init__(measures)
        self.action = action
        self.found = dict(found)
        self.per_class = dict(per_class or {})
        self.classes = tuple(classes)
        self.kept = kept
        self.counts = dict(counts or {})

    def _repr_html_(self) -> str:
        """A table, as notebooks show it."""
        from lightning_invariance.report._notebook import results_html  # a room further right, which imports this one

        return results_html(self)


class GroupEvaluation:
    """Measures a network's invariance to one group; the caller puts the network in eval mode.

    Args:
        owner: who asks, for messages.
        network: as for `evaluate_invariance`, and so are all options but `more` and `besides`.
        action: the group.
        more: where `measures` is None, others that are taken too if they can be.
        besides: others that are taken too, by names of their own, and that have no values by class.

    Raises:
        ValueError: if an argument is none of what is expected.
    """

    def __init__(
        self,
        owner: str,
        network: Callable[..., Any],
        action: Action | Flow,
        *,
        output_action: OutputActions = None,
        measures: Measures | None = None,
        saliency: SaliencyLike | None = None,
        saliency_samples: int = 64,
        sensitivity_samples: int = 64,
        input: InputSpec = None,
        target: Place | None = None,
        logits: LogitsOf | None = None,
        max_batch: int | None = None,
        per_class: PerClassOption = False,
        keep: Literal["worst"] | None = None,
        n: int = 16,
        more: Sequence[Measure] = (),
        besides: Mapping[str, Measure] | None = None,
    ) -> None:
        check_callable("network", network, "a module or a function")
        action = as_action(action)
        check_input_spec("input", input)
        check_place("target", target)
        check_logits_of(logits)
        check_choice("keep", keep, (None, "worst"))
        check_count("n", n)
        output = output_for_measuring(output_action, action)
        action = for_measuring(action)
        if keep is not None and output.names is not None:
            raise ValueError(
                f"Expected `keep` to be None with several outputs, {list(output.names)}, whose errors have units of "
                f"their own, but got {keep!r}: name one of them with `logits=`."
            )
        self._seen: dict[str, Tensor] = {}
        self._evaluator = Evaluator(
            action,
            measures,
            output=output,
            saliency=saliency,
            limits=limits_of(saliency_samples, sensitivity_samples),
            max_batch=max_batch,
            per_class=per_class,
            on_orbit=None if keep is None else self._seen.update,
            more=more,
            besides=besides,
        )
        self.action = action
        self._owner = owner
        self._output = output
        self._input = input
        self._target = target
        self._logits = logits
        self._max_batch = max_batch
        self._module = module_of(network)
        self._function = without_fabric(network)
        self._found: dict[str, str] = {}
        self.why_missing: dict[str, str] = {}  # by the first batch, of the measures that are not taken
        self._worst: WorstSamples | None = None
        if keep is not None:
            maps = self._evaluator.saliency if saliency_samples else None
            reader = OutputReader(logits, output.names)
            self._worst = WorstSamples(n, action, maps, self._function, reader, self._module, output.stays, max_batch)

    @property
    def samples(self) -> int:
        """How many samples have been measured."""
        return self._evaluator.samples

    def update(self, batch: Any, arguments: Arguments) -> None:
        """Adds a batch, as `LocatedBatches` gives it.

        Raises:
            ValueError: if the group cannot act on it, or a measure that was asked for cannot be computed.
        """
        with errors_of(self._owner):
            self._update(batch, arguments)

    def _update(self, batch: Any, arguments: Arguments) -> None:
        if not len(arguments.inputs[0]):
            return
        arguments.check_max_batch(self._max_batch)
        x, evaluator, action = arguments.x, self._evaluator, self.action
        tensors = [*arguments.inputs, *(tensor for _, tensor in arguments.others)]
        labels = locate_target(batch, self._target, len(x), tensors, last=True)
        first_batch = not evaluator.samples
        if first_batch:
            evaluator.check_inputs(arguments.inputs)
            arguments.acting(action).verify(x)

        # Random numbers, where the network draws some, are the same for all elements.
        start = RandomState(x.device)
        reader = OutputReader(self._logits, self._output.names)

        def at(samples: int) -> Setting:
            first = arguments.first(samples)
            run = NetworkOfInput(self._function, first, reader, start=start)
            return Setting(run, run, first.acting(action))

        positions = range(evaluator.samples, evaluator.samples + len(x))
        outputs = evaluator.update(
            at,
            x,
            packing=reader.packed,
            labels=labels,
            dealt=Dealt(positions, len(x), divisible=arguments.is_divisible),
            module=self._module,
        )
        if self._worst is not None:
            self._worst.add(self._seen, arguments, labels, positions.start, start)
            self._seen.clear()
            if first_batch:
                self._worst.check_maps()
        if first_batch:
            said = what_stays(self._input, action, arguments, outputs if self._output.stays else None)
            said += stray_labels(labels, outputs)
            said += evaluator.doubts(at, x, outputs, reader.packed(), self._module)
            for message in said:
                warn(f"{self._owner}: {message}")
            self.why_missing = evaluator.why_missing(x, labels)
            self._found = {
                "input": arguments.in_words(),
                "logits": reader.in_words(outputs),
                "labels": (labels if self._output.names else labels.for_logits(outputs)).in_words(),
                "saliency": evaluator.saliency_in_words(),
                "without": ", ".join(evaluator.left_out(x, labels)),
            }

    def results(self) -> InvarianceResults:
        """The measures of all samples so far; of the worst, the saliency maps too.

        Raises:
            ValueError: if there were no samples.
        """
        kept = None if self._worst is None else self._worst.result()
        evaluator = self._evaluator
        if not evaluator.samples:
            raise ValueError("Expected `batches` to hold at least one sample but got none.")
        of_classes = evaluator.compute_per_class()
        names = evaluator.class_names(of_classes)
        measured = evaluator.compute()
        return InvarianceResults(measured, self.action, self._found, of_classes, names, kept, evaluator.counts)
