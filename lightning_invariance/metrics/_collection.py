"""The measures by name, and several of them accumulated together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_invariance.functional._orbit_values import is_single
from lightning_invariance.metrics._base import Estimate, InvarianceMetric
from lightning_invariance.metrics._distribution_invariance_error import DistributionInvarianceError
from lightning_invariance.metrics._jensen_shannon_invariance_error import JensenShannonInvarianceError
from lightning_invariance.metrics._logit_invariance_error import LogitInvarianceError
from lightning_invariance.metrics._orbit_accuracy import OrbitAccuracy
from lightning_invariance.metrics._orbit_share import OrbitShare
from lightning_invariance.metrics._prediction_consistency import PredictionConsistency
from lightning_invariance.metrics._relative_logit_invariance_error import RelativeLogitInvarianceError
from lightning_invariance.metrics._saliency_invariance_similarity import SaliencyInvarianceSimilarity
from lightning_invariance.orbit import OrbitOutputs

#: The measures that have a name: a new one is added here to be known to the callbacks.
MEASURES: Mapping[str, Callable[[], InvarianceMetric]] = {
    "logit_invariance_error": LogitInvarianceError,
    "normalized_logit_invariance_error": partial(LogitInvarianceError, normalize="logits"),
    "relative_logit_invariance_error": RelativeLogitInvarianceError,
    "distribution_invariance_error": DistributionInvarianceError,
    "jensen_shannon_invariance_error": JensenShannonInvarianceError,
    "saliency_invariance_similarity": SaliencyInvarianceSimilarity,
    "orbit_share": OrbitShare,
    "prediction_consistency": PredictionConsistency,
    "orbit_accuracy": OrbitAccuracy,
    "worst_case_orbit_accuracy": partial(OrbitAccuracy, worst_case=True),
}

Measures = Sequence[str] | Mapping[str, Metric]

_INPUTS = ("logits", "orbit_logits", "saliency", "orbit_saliency", "target")

#: The measures that take outputs of any shape, and those that take one output a sample, (B,) or (B, 1), besides logits
#: (B, C); the others need classes.
_ANY_OUTPUT = (
    "logit_invariance_error",
    "normalized_logit_invariance_error",
    "relative_logit_invariance_error",
    "saliency_invariance_similarity",
)
_SINGLE_OUTPUT = (*_ANY_OUTPUT, "orbit_share")


class MeasureCollection:
    """Several measures of one network, fed with `OrbitOutputs`.

    Each metric takes from the outputs what its ``update`` names: ``logits``, ``orbit_logits``, ``saliency``,
    ``orbit_saliency``, ``target``. One that names what a batch does not have (labels) is not updated by it.

    Args:
        measures: names from `MEASURES`; metrics under names of their own; or None for all named measures that the
            outputs allow.

    Raises:
        ValueError: if a name is unknown, or there is no measure at all.
    """

    def __init__(self, measures: Measures | None = None) -> None:
        self.restricted = measures is None
        if measures is None:
            measures = tuple(MEASURES)
        if isinstance(measures, Iterator):
            measures = tuple(measures)
        if isinstance(measures, str) or not isinstance(measures, Iterable) or not len(measures):
            raise ValueError(f"Expected `measures` to name at least one measure in a list but got {measures!r}.")
        if isinstance(measures, Mapping):
            wrong = [name for name, metric in measures.items() if not isinstance(metric, Metric)]
            if wrong:
                raise ValueError(f"Expected `measures` to hold torchmetrics metrics but {wrong} are none.")
            self._metrics: dict[str, Metric] = {name: metric.clone() for name, metric in measures.items()}
        else:
            unknown = [name for name in measures if not isinstance(name, str) or name not in MEASURES]
            if unknown:
                raise ValueError(f"Expected `measures` to be among {list(MEASURES)} but got {unknown}.")
            self._metrics = {name: MEASURES[name]() for name in measures}
        self._inputs: dict[str, tuple[str, ...]] = {}
        for name, metric in self._metrics.items():
            self._inputs[name] = tuple(inspect.signature(metric.update).parameters)
            strange = [argument for argument in self._inputs[name] if argument not in _INPUTS]
            if strange:
                raise ValueError(f"Expected the update of {name!r} to name inputs among {_INPUTS} but got {strange}.")
        self._updated: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """The measures' names, in order."""
        return tuple(self._metrics)

    def needing(self, argument: str) -> tuple[str, ...]:
        """The measures whose update names this input."""
        return tuple(name for name, inputs in self._inputs.items() if argument in inputs)

    def left_out(self, logits: Tensor | None, labelled: bool, explained: bool) -> tuple[str, ...]:
        """The named measures that the outputs do not allow, where all that they allow are wanted.

        Args:
            logits: the network's, where they are known.
            labelled: whether there are labels.
            explained: whether there are saliency maps.
        """
        if not self.restricted:
            return ()
        suitable = tuple(MEASURES) if logits is None else _suitable(logits)
        lacking = {"target": labelled, "saliency": explained}
        return tuple(
            name
            for name, inputs in self._inputs.items()
            if name not in suitable or any(argument in inputs and not given for argument, given in lacking.items())
        )

    def update(self, outputs: OrbitOutputs, target: Tensor | None = None) -> None:
        """Adds a batch's logits to the measures of logits, or its maps to those of saliency.

        Args:
            outputs: with saliency maps, only the measures that need maps are updated; without, only the others: maps
                are usually computed for part of the samples.
            target: the labels, shape ``(B,)``, where there are some.
        """
        given = {
            "logits": outputs.logits,
            "orbit_logits": outputs.orbit_logits,
            "saliency": outputs.saliency,
            "orbit_saliency": outputs.orbit_saliency,
            "target": target,
        }
        suitable = _suitable(outputs.logits)
        for name, metric in self._metrics.items():
            wanted = self._inputs[name]
            if ("saliency" in wanted) != (outputs.saliency is not None):
                continue
            if any(given[argument] is None for argument in wanted):
                continue
            if self.restricted and name not in suitable:
                continue
            if metric.device != outputs.logits.device:
                metric.to(outputs.logits.device)
            metric.update(**{argument: given[argument] for argument in wanted})
            self._updated.add(name)

    def updated(self) -> Tensor:
        """Which measures have seen a batch: 1 or 0 for each, to be added up over processes."""
        return torch.tensor([float(name in self._updated) for name in self._metrics])

    def compute(self, wanted: Tensor | None = None) -> dict[str, Estimate]:
        """The measures that have seen a batch, with their standard errors.

        Args:
            wanted: which measures to compute, one number each, as `updated` gives them: the same on all processes,
                since computing synchronises.
        """
        chosen = self.updated() if wanted is None else wanted
        results = {}
        for (name, metric), use in zip(self._metrics.items(), chosen.tolist(), strict=True):
            if not use:
                continue
            if isinstance(metric, InvarianceMetric) and metric.reduction != "none":
                results[name] = metric.compute_with_error()
            else:
                value = metric.compute()
                results[name] = Estimate(value, torch.full_like(value, torch.nan))
        return results

    def to(self, device: torch.device) -> None:
        """Moves the states."""
        for metric in self._metrics.values():
            metric.to(device)


def _suitable(logits: Tensor) -> tuple[str, ...]:
    """The named measures that outputs of this shape allow."""
    if logits.ndim == 2 and logits.shape[1] >= 2:
        return tuple(MEASURES)
    if is_single(logits):
        return _SINGLE_OUTPUT
    # Its state has 128 bytes for each output: too much to be taken unasked for maps of pixels.
    dense = logits.ndim > 2
    return tuple(name for name in _ANY_OUTPUT if not (dense and name == "relative_logit_invariance_error"))
