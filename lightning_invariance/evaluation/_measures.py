"""The measures by name, and several of them accumulated together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_invariance._checks import check_callable
from lightning_invariance._locate import Labels
from lightning_invariance.metrics import (
    BaseAccuracy,
    DistributionInvarianceError,
    Estimate,
    JacobianSpectralNorm,
    JensenShannonInvarianceError,
    LieDerivativeError,
    LogitInvarianceError,
    LossShare,
    OrbitAccuracy,
    OrbitMeanIoU,
    OrbitShare,
    PerClass,
    PredictionConsistency,
    RelativeEquivarianceError,
    RelativeLogitInvarianceError,
    SaliencyInvarianceSimilarity,
    Selectivity,
    VectorCosineSimilarity,
)
from lightning_invariance.metrics._base import InvarianceMetric, SampleCounts

#: What a network's outputs are: scores of classes ``(B, C)``; such scores at each place ``(B, C, H, W)``; one number a
#: sample; several numbers ``(B, D)``, or more dimensions of them, that are no classes; vectors ``(B, ..., d)``, whose
#: components an output action mixes; other outputs whose values it changes (vector fields on images, tensors).
Kind = Literal["classes", "pixels", "single", "values", "field", "vectors", "tensors"]

_ALL: tuple[Kind, ...] = ("classes", "pixels", "single", "values", "field", "vectors", "tensors")


@dataclass(frozen=True)
class Measure:
    """A measure that has a name.

    Attributes:
        name: what it is asked for and logged by.
        make: makes its metric. What the metric reads are the arguments of its ``update``, each of which a source gives;
            one with a default may be missing. Its ``target`` are labels; where there are none, one whose class says
            ``takes_values = True`` gets the floating-point numbers that the outputs are to be.
        heading: its heading in tables and figures.
        kinds: the kinds of outputs that it makes sense for.
        unasked: those of which it is taken where no measures are named.
        logarithmic: whether figures have a logarithmic axis for it.
    """

    name: str
    make: Callable[[], Metric]
    heading: str
    kinds: tuple[Kind, ...] = _ALL
    unasked: tuple[Kind, ...] = ()
    logarithmic: bool = False


MEASURES: dict[str, Measure] = {}
"""All measures by name, in the order of tables and logs."""


def register_measure(measure: Measure) -> None:
    """Makes a measure known by its name: to `evaluate_invariance`, `InvarianceMonitor` and `compare`.

    Args:
        measure: the measure; one of the same name is exchanged for it.

    Raises:
        ValueError: if it is no `Measure`, its name is no plain word, or its `make` cannot be called.

    Example:
        >>> import torch
        >>> from torchmetrics import MeanMetric
        >>> from lightning_invariance import C4, evaluate_invariance
        >>> from lightning_invariance.evaluation import Measure, register_measure
        >>> class LargestLogit(MeanMetric):
        ...     def update(self, logits):
        ...         super().update(logits.amax(dim=1))
        >>> register_measure(Measure("largest_logit", LargestLogit, heading="largest logit"))
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.Softmax(dim=1))
        >>> batches = torch.randn(40, 1, 8, 8).split(20)
        >>> results = evaluate_invariance(network, batches, C4(), measures=["largest_logit"], progress=False)
        >>> bool(results["largest_logit"].value > 0.1)
        True
    """
    if not isinstance(measure, Measure):
        raise ValueError(f"Expected `measure` to be a Measure but got {measure!r}.")
    if not isinstance(measure.name, str) or not measure.name.isidentifier():
        raise ValueError(f"Expected the measure's `name` to be letters, digits and _ but got {measure.name!r}.")
    check_callable("make", measure.make, "a class of metrics, or a function that makes one")
    MEASURES[measure.name] = measure


_SCORES: tuple[Kind, ...] = ("classes", "pixels")

for _measure in (
    Measure("accuracy", BaseAccuracy, "accuracy", kinds=_SCORES),
    Measure("logit_invariance_error", LogitInvarianceError, "LI", unasked=_ALL, logarithmic=True),
    Measure(
        "normalized_logit_invariance_error",
        partial(LogitInvarianceError, normalize="logits"),
        "normalized LI",
        unasked=_ALL,
        logarithmic=True,
    ),
    Measure(
        # Its state has 128 bytes for each output: too much to be taken unasked for maps of pixels.
        "relative_logit_invariance_error",
        RelativeLogitInvarianceError,
        "relative LI",
        unasked=("classes", "single", "values"),
        logarithmic=True,
    ),
    Measure(
        "distribution_invariance_error",
        DistributionInvarianceError,
        "DI",
        kinds=_SCORES,
        unasked=_SCORES,
        logarithmic=True,
    ),
    Measure(
        "jensen_shannon_invariance_error",
        JensenShannonInvarianceError,
        "JS",
        kinds=_SCORES,
        unasked=_SCORES,
        logarithmic=True,
    ),
    Measure(
        "saliency_invariance_similarity",
        SaliencyInvarianceSimilarity,
        "SI",
        kinds=("classes", "single"),
        unasked=("classes", "single"),
    ),
    Measure(
        "orbit_share",
        OrbitShare,
        "orbit share",
        kinds=("classes", "single"),
        unasked=("classes", "single"),
        logarithmic=True,
    ),
    Measure(
        "prediction_consistency",
        PredictionConsistency,
        "consistency",
        kinds=_SCORES,
        unasked=_SCORES,
    ),
    Measure("orbit_accuracy", OrbitAccuracy, "orbit accuracy", kinds=_SCORES, unasked=_SCORES),
    Measure(
        "worst_case_orbit_accuracy",
        partial(OrbitAccuracy, worst_case=True),
        "worst-case orbit accuracy",
        kinds=_SCORES,
        unasked=_SCORES,
    ),
    Measure("orbit_mean_iou", OrbitMeanIoU, "orbit mIoU", kinds=("pixels",), unasked=("pixels",)),
    Measure(
        "relative_equivariance_error",
        RelativeEquivarianceError,
        "relative error",
        unasked=("pixels", "values", "field", "vectors", "tensors"),
        logarithmic=True,
    ),
    Measure("vector_cosine_similarity", VectorCosineSimilarity, "cosine", kinds=("vectors",), unasked=("vectors",)),
    Measure("loss_share", LossShare, "loss share, %"),
    Measure("selectivity", Selectivity, "selectivity", logarithmic=True),
    Measure("jacobian_spectral_norm", JacobianSpectralNorm, "σ_max"),
    Measure("lie_derivative_error", LieDerivativeError, "Lie", logarithmic=True),
):
    register_measure(_measure)

#: The error of each element, of any outputs: what figures of it are drawn from, besides the measures that are wanted.
ERROR_BY_ELEMENT = {
    "orbit share of each element": Measure(
        "orbit_share", partial(OrbitShare, reduction="element"), "orbit share", unasked=("classes", "single")
    ),
    "relative error of each element": Measure(
        "relative_equivariance_error",
        partial(RelativeEquivarianceError, reduction="element"),
        "relative error",
        unasked=("pixels", "values", "field", "vectors", "tensors"),
    ),
}

Measures = Sequence[str] | Mapping[str, Metric]


def inputs_of(metric: Metric) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a metric's ``update`` needs, and what it takes besides where it is there."""
    if isinstance(metric, PerClass):
        return metric.inputs
    parameters = inspect.signature(metric.update).parameters.values()
    needed = tuple(each.name for each in parameters if each.default is inspect.Parameter.empty)
    return needed, tuple(each.name for each in parameters if each.name not in needed)


def _takes_values(metric: Metric) -> bool:
    """Whether its target may be floating-point numbers; it says so itself."""
    return bool(getattr(metric, "takes_values", False))


class MeasureCollection:
    """Several measures of one output of a network.

    Each metric takes what its ``update`` names. One that names what a batch does not have (labels) is not updated by
    it.

    Args:
        measures: names of measures; metrics under names of their own; or None for all measures that make sense for the
            outputs.
        output: the output's name, where a network has several, for messages.
        demanding: whether a measure that was asked for by name and makes no sense is an error.
        dims: the dimension of the samples, by the names of inputs, where each class is to have values of its own; None
            for those of all samples alone.
        more: where all that make sense are wanted, others that are taken too if they can be.
        besides: measures by names of their own that are taken too, for the kinds that they are taken for unasked, and
            that have no values by class.

    Raises:
        ValueError: if a name is unknown, or there is no measure at all.
    """

    def __init__(
        self,
        measures: Measures | None = None,
        output: str | None = None,
        demanding: bool = True,
        dims: Mapping[str, int] | None = None,
        more: Sequence[Measure] = (),
        besides: Mapping[str, Measure] | None = None,
    ) -> None:
        self.restricted = measures is None
        self._output = output
        self._more = {each.name for each in more}
        self._demanding = demanding
        if measures is None:
            measures = tuple(name for name, measure in MEASURES.items() if measure.unasked)
        if isinstance(measures, Iterator):
            measures = tuple(measures)
        if isinstance(measures, str) or not isinstance(measures, Iterable) or not len(measures):
            raise ValueError(f"Expected `measures` to name at least one measure in a list but got {measures!r}.")
        self._named: Mapping[str, Measure] = {}
        if isinstance(measures, Mapping):
            wrong = [name for name, metric in measures.items() if not isinstance(metric, Metric)]
            if wrong:
                raise ValueError(f"Expected `measures` to hold torchmetrics metrics but {wrong} are none.")
            self.metrics: dict[str, Metric] = {name: metric.clone() for name, metric in measures.items()}
        else:
            unknown = [name for name in measures if not isinstance(name, str) or name not in MEASURES]
            if unknown:
                raise ValueError(f"Expected `measures` to be among {list(MEASURES)} but got {unknown}.")
            self._named = {name: MEASURES[name] for name in measures}
            if self.restricted:
                others = {each.name: replace(each, unasked=each.kinds) for each in more}
                # In the order of tables and logs.
                order = [*MEASURES, *others]
                self._named = dict(sorted((self._named | others).items(), key=lambda pair: order.index(pair[0])))
            self.metrics = {name: measure.make() for name, measure in self._named.items()}
        self._besides = dict(besides or {})
        wanted = list(self.metrics)
        self.metrics |= {name: measure.make() for name, measure in self._besides.items()}
        self.needed: dict[str, tuple[str, ...]] = {}
        self.optional: dict[str, tuple[str, ...]] = {}
        for name, metric in self.metrics.items():
            self.needed[name], self.optional[name] = inputs_of(metric)
        self.by_class: dict[str, PerClass] = {}
        if dims is not None:
            self.by_class = {
                name: PerClass(metric, dims=dims)
                for name, metric in ((name, self.metrics[name]) for name in wanted)
                if not isinstance(metric, PerClass) and getattr(metric, "reduction", None) != "none"
            }
        self._updated: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """The measures' names, in order."""
        return tuple(self.metrics)

    def needing(self, argument: str) -> tuple[str, ...]:
        """The measures whose update needs this input."""
        return tuple(name for name, inputs in self.needed.items() if argument in inputs)

    def target(self, name: str, labels: Labels, logits: Tensor) -> Tensor | None:
        """What a measure is given as its target: labels, or numbers where it takes them and there are no labels."""
        target = labels.of(logits)
        return labels.values_of(logits) if target is None and _takes_values(self.metrics[name]) else target

    def lacking_target(self, labels: Labels, logits: Tensor | None = None) -> list[str]:
        """The measures that need a target, and have none in these labels of these logits, as far as those are known."""
        if labels.tensor is not None:
            return []
        numbers = isinstance(labels.found, Tensor) if logits is None else labels.values_of(logits) is not None
        return [name for name in self.needing("target") if not (numbers and _takes_values(self.metrics[name]))]

    def suiting(self, kind: Kind | None) -> tuple[str, ...]:
        """The measures that are taken for outputs of this kind; all that could be where it is not known.

        Raises:
            ValueError: where a measure that was asked for by name would mean nothing.
        """
        besides = tuple(name for name, each in self._besides.items() if kind is None or kind in each.unasked)
        if self.restricted:
            return tuple(name for name, each in self._named.items() if kind is None or kind in each.unasked) + besides
        wrong = [name for name, each in self._named.items() if kind is not None and kind not in each.kinds]
        if not self._demanding:
            return tuple(name for name in self.names if name not in (*wrong, *self._besides)) + besides
        if kind == "tensors":  # it takes a metric that knows where the components are
            wrong = [name for name in wrong if name != "vector_cosine_similarity"]
        if wrong and kind in ("vectors", "tensors"):
            whose = "the network's output" if self._output is None else f"the output {self._output!r}"
            raise ValueError(
                f"Expected {whose} to be scores of classes for {wrong}, but `output_action` changes its values as "
                "those of vectors: name 'relative_equivariance_error' or 'vector_cosine_similarity' for these."
            )
        # Of other outputs the metrics themselves say what is wrong.
        return tuple(name for name in self.names if name not in self._besides) + besides

    def left_out(self, kind: Kind | None, given: Iterable[str]) -> tuple[str, ...]:
        """The measures of classes that are not taken, where all that make sense are wanted.

        Args:
            kind: what the outputs are.
            given: the inputs that there are.
        """
        if not self.restricted:
            return ()
        suiting, given = self.suiting(kind), set(given)
        return tuple(
            name
            for name, measure in self._named.items()
            if "classes" in measure.unasked and not (name in suiting and set(self.needed[name]) <= given)
        )

    def update(
        self,
        name: str,
        given: Mapping[str, Tensor | None],
        classes: Tensor | None = None,
        num_classes: int = 0,
    ) -> None:
        """Adds a batch to a measure, unless something that it needs is missing.

        Args:
            name: the measure's name.
            given: what there is.
            classes: the class of each sample, where each is to have a value of its own.
            num_classes: how many classes there are then.

        Raises:
            ValueError: if some places of the outputs are not valid and the measure does not take that into account.
        """
        if any(given.get(argument) is None for argument in self.needed[name]):
            return
        wanted = (*self.needed[name], *self.optional[name])
        if given.get("valid") is not None and "valid" not in wanted and "orbit_logits" in wanted:
            if self.restricted:
                return
            raise ValueError(
                f"Expected {name!r} to take `valid` in its update, as the group carries some places of the output out "
                f"of the frame, but it takes {list(wanted)}: choose other measures."
            )
        values: dict[str, Any] = {argument: given.get(argument) for argument in wanted if argument in given}
        metric = self.metrics[name]
        device = next(value.device for value in values.values() if value is not None)
        if metric.device != device:
            metric.to(device)
        metric.update(**values)
        if classes is not None and name in self.by_class:
            by_class = self.by_class[name]
            by_class.to(device)
            by_class.begin(num_classes)
            by_class.update(**values, classes=classes)
        self._updated.add(name)

    def updated(self) -> Tensor:
        """Which measures have seen a batch: 1 or 0 for each, to be added up over processes."""
        return torch.tensor([float(name in self._updated) for name in self.metrics])

    def compute_per_class(self, wanted: Tensor | None = None) -> dict[str, Estimate]:
        """The measures of each class, where they were wanted; `wanted` as for `compute`."""
        chosen = self.updated() if wanted is None else wanted
        return {
            name: self.by_class[name].compute_with_error()
            for name, use in zip(self.metrics, chosen.tolist(), strict=True)
            if use and name in self.by_class
        }

    def compute(self, wanted: Tensor | None = None) -> dict[str, Estimate]:
        """The measures that have seen a batch, with their standard errors.

        Args:
            wanted: which measures to compute, one number each, as `updated` gives them: the same on all processes,
                since computing synchronises.
        """
        chosen = self.updated() if wanted is None else wanted
        results = {}
        for (name, metric), use in zip(self.metrics.items(), chosen.tolist(), strict=True):
            if not use:
                continue
            if isinstance(metric, PerClass) or (isinstance(metric, InvarianceMetric) and metric.reduction != "none"):
                results[name] = metric.compute_with_error()
            else:
                value = metric.compute()
                results[name] = Estimate(value, torch.full_like(value, torch.nan))
        return results

    @property
    def counts(self) -> dict[str, SampleCounts]:
        """How many samples each measure that was computed rests on, where it knows."""
        counted = {name: self.metrics[name] for name in self.metrics if name in self._updated}
        return {
            name: metric.counts
            for name, metric in counted.items()
            if isinstance(metric, InvarianceMetric) and metric.counts is not None
        }

    def missing(self) -> dict[str, Measure]:
        """The measures that would have been taken of scores of classes, or were asked for besides, and were not."""
        return {
            name: measure
            for name, measure in self._named.items()
            if name not in self._updated and (name in self._more or "classes" in measure.unasked)
        }

    def to(self, device: torch.device) -> None:
        """Moves the states."""
        for metric in (*self.metrics.values(), *self.by_class.values()):
            metric.to(device)
