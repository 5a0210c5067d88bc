"""What an audit finds of one group, and the work that finds it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import isnan
from typing import Any, TypeVar

import torch
from torch import nn

from lightning_invariance._arguments import Arguments
from lightning_invariance._call import without_fabric
from lightning_invariance._isolation import undisturbed
from lightning_invariance._messages import errors_of
from lightning_invariance.actions import Action
from lightning_invariance.actions._motion_sizes import MotionSizes
from lightning_invariance.auditing._check_setup import check_setup
from lightning_invariance.auditing._findings import SetupReport
from lightning_invariance.evaluation import KeptSamples, LayerResults, Measure
from lightning_invariance.evaluation._batches import LocatedBatches
from lightning_invariance.evaluation._group import GroupEvaluation, InvarianceResults
from lightning_invariance.evaluation._layers import LayerEvaluator
from lightning_invariance.metrics import Estimate, LogitInvarianceError, OrbitAccuracy, PredictionConsistency
from lightning_invariance.metrics._base import SampleCounts
from lightning_invariance.metrics._per_class import once_each

_SUFFIX = "_by_element"

#: What is measured of each element besides: the errors over the size of the motion.
BY_ELEMENT = {
    each.name: replace(each, unasked=each.kinds)
    for each in (
        Measure(
            f"normalized_logit_invariance_error{_SUFFIX}",
            partial(LogitInvarianceError, normalize="logits", reduction="element"),
            "normalized LI",
        ),
        Measure(
            f"prediction_consistency{_SUFFIX}",
            partial(PredictionConsistency, reduction="element"),
            "consistency",
            kinds=("classes", "pixels"),
        ),
        Measure(
            f"orbit_accuracy{_SUFFIX}",
            partial(OrbitAccuracy, reduction="element"),
            "accuracy",
            kinds=("classes", "pixels"),
        ),
    )
}

Result = TypeVar("Result")


@dataclass(frozen=True)
class GroupAudit:
    """What an audit found of one group.

    Attributes:
        name: what the group is called.
        action: the group, with the elements that were measured.
        samples: how many samples were measured.
        measures: the measures, each with its standard error over samples.
        found: what was found in the first batch, as `evaluate_invariance` says it.
        by_element: measures of each element, ``(|G| - 1,)``, the identity left out.
        motion: how far each element moves, the identity included; None where that is no single number.
        per_class: measures of each class, ``(C,)``.
        classes: what the classes are called.
        worst: the samples that one element moves the output of farthest.
        setup: whether the numbers can be trusted: what `check_setup` found on the first samples.
        layers: where it breaks: what `evaluate_layers` found on the first samples.
        left_out: what could not be computed (``"classes"``, ``"maps"``, ``"worst"``, ``"setup"``, ``"layers"``,
            ``"measures"``), and why, in a sentence.
        counts: how many samples each measure rests on, and how many it left out, where it knows. Saliency maps,
            ``"selectivity"``, ``"jacobian_spectral_norm"`` and ``"lie_derivative_error"`` are of the first few.
    """

    name: str
    action: Action
    samples: int
    measures: Mapping[str, Estimate]
    found: Mapping[str, str]
    by_element: Mapping[str, Estimate]
    motion: MotionSizes | None
    per_class: Mapping[str, Estimate]
    classes: tuple[str, ...]
    worst: KeptSamples | None
    setup: SetupReport | None
    layers: LayerResults | None
    left_out: Mapping[str, str]
    counts: Mapping[str, SampleCounts]

    @property
    def values(self) -> dict[str, float]:
        """The measures as numbers."""
        return {name: float(estimate.value) for name, estimate in self.measures.items() if estimate.value.numel() == 1}

    @property
    def not_finite(self) -> dict[str, str]:
        """The measures that left samples out as these are not finite in some pose, and how many, in words."""
        return {
            name: f"{each.not_finite:,} of {each.total:,} samples have NaN or infinite values and were not measured"
            for name, each in self.counts.items()
            if each.not_finite
        }


@dataclass
class GroupWork:
    """Measures one group while batches go by, and looks closer at the first samples afterwards.

    Args:
        name: what the group is called.
        module: the network.
        action: the group, as it was given.
        device: where batches are moved.
        options: of `GroupEvaluation`.
        samples: how many samples are looked at closer.
        free_classes: whether values by class may be left out where there are no classes.
        free_maps: whether saliency maps may be left out where there are none.
    """

    name: str
    module: nn.Module
    action: Action
    device: torch.device | None
    options: Mapping[str, Any]
    samples: int
    free_classes: bool
    free_maps: bool
    left_out: dict[str, str] = field(default_factory=dict)
    motion: MotionSizes | None = None
    setup: SetupReport | None = None
    layers: LayerResults | None = None

    def __post_init__(self) -> None:
        with errors_of(self.owner):
            self._evaluation = self._evaluate()  # what is wrong with the options is an error before any work
        places = {"input": self.options["input"], "target": self.options["target"]}
        self._located = LocatedBatches(
            self.owner,
            self.module,
            (),
            self._evaluation.action,
            self.device,
            input=places["input"],
            target=places["target"],
        )
        if not self.samples:
            reason = "Nothing was looked at closer, as `samples` is 0."
            self.left_out |= dict.fromkeys(("maps", "setup", "layers"), reason)
        if self.options["keep"] is None:
            self.left_out["worst"] = "Several outputs have units of their own, in which no sample is the worst of all."

    @property
    def owner(self) -> str:
        """Who asks, for messages."""
        return f"audit of {self.name}"

    def _evaluate(self, **changes: Any) -> GroupEvaluation:
        return GroupEvaluation(self.owner, self.module, self.action, **{**self.options, **changes})

    @property
    def samples_measured(self) -> int:
        """How many samples have been measured."""
        return self._evaluation.samples

    # While batches go by ----------------------------------------------------------------------------------------------

    def check(self, batch: Any) -> None:
        """Raises a `ValueError` where the group cannot act on a batch."""
        with self._in_our_words():
            _, arguments = self._located.located(batch)
            if len(arguments.inputs[0]):
                with errors_of(self.owner):
                    arguments.acting(self._evaluation.action).verify(arguments.x)

    def update(self, batch: Any) -> int:
        """Measures a batch; gives how many samples it has."""
        with self._in_our_words():
            batch, arguments = self._located.located(batch)
            count = len(arguments.inputs[0])
            if count and self._evaluation.samples:
                self._evaluation.update(batch, arguments)
            elif count:
                self._begin(batch, arguments)
        return count

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        """Other ways in have other arguments, and nobody asked for classes in these words."""
        try:
            yield
        except ValueError as error:
            message = str(error).replace("`network=`", "`module=`")
            if self.free_classes:
                message = message.replace(" for per_class=True", " in each batch, as in the first one,")
            error.args = (message,)
            raise

    def _begin(self, batch: Any, arguments: Arguments) -> None:
        """The first batch: values by class and maps are left out where they cannot be had."""
        refusals: dict[tuple[bool, bool], Exception] = {}
        for maps in (True, False) if self.free_maps and self.samples else (True,):
            for classes in (True, False) if self.free_classes else (True,):
                changes: dict[str, Any] = {} if maps else {"saliency_samples": 0}
                changes |= {} if classes else {"per_class": False}
                evaluation = self._evaluate(**changes)
                try:
                    evaluation.update(batch, arguments)
                except (ValueError, RuntimeError) as error:
                    refusals[maps, classes] = error
                    continue
                self._evaluation = evaluation
                self.motion = evaluation.action.motion_sizes(arguments.inputs[0])
                if not classes:
                    self.left_out["classes"] = reason(refusals[maps, True], self.owner)
                if not maps:
                    self.left_out["maps"] = reason(refusals[True, classes], self.owner)
                return
        raise list(refusals.values())[-1]

    # Afterwards, on the first samples ---------------------------------------------------------------------------------

    def look_closer(self, part: str, batches: Sequence[Any]) -> None:
        """Checks the setup, or measures the layers, on the first samples; what cannot be done is left out.

        Args:
            part: ``"setup"`` or ``"layers"``.
            batches: the first batches.
        """
        work: Callable[[Sequence[Any]], Any] = self._setup if part == "setup" else self._layers
        try:
            setattr(self, part, work(batches))
        except (ValueError, RuntimeError, TypeError, ModuleNotFoundError) as error:
            self.left_out[part] = reason(error, self.owner)

    def _setup(self, batches: Sequence[Any]) -> SetupReport:
        passed = {key: self.options[key] for key in ("output_action", "saliency", "input", "target", "logits")}
        return check_setup(self.module, batches, self.action, samples=self.samples, **passed)

    def _layers(self, batches: Sequence[Any]) -> LayerResults:
        evaluator = LayerEvaluator(
            self.module, self.action, layers=None, layer_actions=None, floor=None, max_channels=1024
        )
        function = without_fabric(self.module)
        with undisturbed(self.module, self.device or torch.device("cpu")):
            for batch in batches:
                _, arguments = self._located.located(batch)
                left = self.samples - evaluator.samples
                if left <= 0:
                    break
                if arguments.is_divisible and left < len(arguments.inputs[0]):
                    arguments = arguments.first(left)
                evaluator.update(function, arguments, max_batch=self.options["max_batch"])
        return evaluator.results()

    # Results ----------------------------------------------------------------------------------------------------------

    def result(self, stopped: str) -> GroupAudit:
        """What was found.

        Args:
            stopped: why parts that were not come to are missing, if so.
        """
        with once_each(self.owner):
            results = self._evaluation.results()
        if stopped:
            for part in ("setup", "layers"):
                if getattr(self, part) is None:
                    self.left_out.setdefault(part, stopped)
        said = self._not_measured() + _undefined(results)
        if said:
            self.left_out["measures"] = " ".join(said)
        return GroupAudit(
            name=self.name,
            action=results.action,
            samples=self._evaluation.samples,
            measures={name: each for name, each in results.items() if not name.endswith(_SUFFIX)},
            found=results.found,
            by_element={name.removesuffix(_SUFFIX): each for name, each in results.items() if name.endswith(_SUFFIX)},
            motion=self.motion,
            per_class=results.per_class,
            classes=results.classes,
            worst=results.kept,
            setup=self.setup,
            layers=self.layers,
            left_out=self.left_out,
            counts={name: each for name, each in results.counts.items() if not name.endswith(_SUFFIX)},
        )

    def _not_measured(self) -> list[str]:
        """The measures that are not there, by the reasons."""
        by_reason: dict[str, list[str]] = {}
        for name, why in self._evaluation.why_missing.items():
            # The argument has another name here; with maps that cannot be had it is 0 too.
            for argument in ("saliency_samples", "sensitivity_samples"):
                why = why.replace(argument, "samples") if not self.samples else why
            why = "there are no saliency maps" if why == "`saliency_samples` is 0" else why
            by_reason.setdefault(why, []).append(name.replace("/", "."))
        return [f"Not measured: {', '.join(names)}, as {why}." for why, names in by_reason.items()]


def _undefined(results: InvarianceResults) -> list[str]:
    """The measures that are NaN, by the reasons."""
    by_reason: dict[str, list[str]] = {}
    for name, each in results.items():
        if name.endswith(_SUFFIX) or each.value.numel() != 1 or not isnan(float(each.value)):
            continue
        counts = results.counts.get(name)
        all_of_them = counts is not None and counts.not_finite == counts.total
        why = ": all samples have NaN or infinite values" if all_of_them else ""
        by_reason.setdefault(why, []).append(name.replace("/", "."))
    return [f"Undefined, NaN: {', '.join(names)}{why}." for why, names in by_reason.items()]


def reason(error: Exception, owner: str) -> str:
    """Why something could not be done, a sentence."""
    said = " ".join(str(error).split()) or type(error).__name__
    for name in (owner, "check_setup", "evaluate_layers"):
        said = said.removeprefix(f"{name}: ")
    said = said.replace(" for per_class=True", " for values by class")  # which nobody asked for in these words
    said = textwrap.shorten(said, 300, placeholder=" …")
    return said[:1].upper() + said[1:] + ("" if said.endswith((".", "…")) else ".")
