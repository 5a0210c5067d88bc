"""Every measure, as a function and as a metric, with data to feed it and the formula to hold it against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import oracles
import torch
from oracles import Arrays, Values, in_double
from torch import Tensor

from lightning_invariance import functional as f
from lightning_invariance import metrics as m

Batch = dict[str, Tensor]
REDUCTIONS = ["mean", "element", "none"]


class Case(NamedTuple):
    function: Callable[..., Tensor]
    make: Callable[..., Any]
    inputs: tuple[str, ...]
    values: Callable[[Arrays], Values]
    bounds: tuple[float, float] = (0.0, np.inf)
    keeps_double: bool = False
    """Whether the function gives float64 where it is given that."""
    reductions: list[str] = REDUCTIONS
    influences: Callable[[Arrays], Values] | None = None
    """Values of the same spread over samples as the measure's, where it is no mean over samples."""

    def feed(self, metric: Any, batches: Iterable[Batch]) -> Any:
        for batch in batches:
            metric.update(**self.pick(batch))
        return metric

    def pick(self, batch: Batch) -> Batch:
        return {name: batch[name] for name in self.inputs}

    def given(self, batch: Batch, **options: Any) -> Tensor:
        return self.function(**self.pick(batch), **options)

    def expected(self, batch: Batch, reduction: str) -> np.ndarray:
        return self.values(in_double(batch)).reduced(reduction)

    def standard_error(self, batch: Batch, reduction: str) -> np.ndarray:
        values = (self.influences or self.values)(in_double(batch))
        columns = values.per_sample[None] if reduction == "mean" else values.per_element
        errors: np.ndarray = columns.std(axis=1, ddof=1) / np.sqrt(columns.shape[1])
        return errors[0] if reduction == "mean" else errors

    def jackknife(self, batch: Batch, reduction: str) -> np.ndarray:
        """The error over 16 folds, each left out once."""
        samples = len(batch["logits"])
        folds = [[i for i in range(samples) if i % 16 != k] for k in range(16)]
        without = np.array([self.expected(take(batch, fold), reduction) for fold in folds])
        return np.sqrt(15 / 16 * ((without - without.mean(axis=0)) ** 2).sum(axis=0))

    def bootstrap(self, batch: Batch, reduction: str, draws: int = 200) -> np.ndarray:
        arrays, samples = in_double(batch), len(batch["logits"])
        values = [
            self.values({name: array[(slice(None),) * by_element(name) + (rows,)] for name, array in arrays.items()})
            for rows in np.random.default_rng(0).integers(samples, size=(draws, samples))
        ]
        return np.std([value.reduced(reduction) for value in values], axis=0, ddof=1)


LOGITS = ("logits", "orbit_logits")
MAPS = ("saliency", "orbit_saliency")
PERTURBED = (*LOGITS, "perturbed_logits")
SLOPES = ("logits", "lie_derivative")
LABELLED = (*LOGITS, "target")


def added_up(logits: Tensor, orbit_logits: Tensor) -> list[Tensor]:
    """The one output of a network that adds up its logits."""
    return [x.sum(-1, dtype=torch.float32 if x.itemsize == 2 else None) for x in (logits, orbit_logits)]


class SingleShare(m.OrbitShare):
    def update(self, logits: Tensor, orbit_logits: Tensor) -> None:
        super().update(*added_up(logits, orbit_logits))


def single_share(logits: Tensor, orbit_logits: Tensor, **options: Any) -> Tensor:
    return f.orbit_share(*added_up(logits, orbit_logits), **options)


def single_share_values(data: Arrays) -> Values:
    return oracles.share_values({name: data[name].sum(axis=-1, keepdims=True) for name in LOGITS})


def with_option(function: Callable[..., Any], metric: Callable[..., Any], **option: Any) -> tuple[Any, Any]:
    return partial(function, **option), partial(metric, **option)


DISTRIBUTION = f.distribution_invariance_error, m.DistributionInvarianceError
JENSEN_SHANNON = f.jensen_shannon_invariance_error, m.JensenShannonInvarianceError
LOGIT = f.logit_invariance_error, m.LogitInvarianceError
ACCURACY = f.orbit_accuracy, m.OrbitAccuracy
LIE = f.lie_derivative_error, m.LieDerivativeError
PUBLISHED = {"activation": "softmax", "norm": "absolute"}
SIGMOID = {"activation": "sigmoid"}
DOUBLE = {"keeps_double": True}
SHARE = {"bounds": (0.0, 1.0)}

CASES: dict[str, Case] = {
    "logit": Case(*LOGIT, LOGITS, oracles.logit_values, **DOUBLE),
    "normalized_logit": Case(
        *with_option(*LOGIT, normalize="logits"), LOGITS, oracles.normalized_logit_values, **DOUBLE
    ),
    "relative_logit": Case(
        f.relative_logit_invariance_error,
        m.RelativeLogitInvarianceError,
        LOGITS,
        oracles.relative_logit_values,
        **DOUBLE,
    ),
    "distribution": Case(*DISTRIBUTION, LOGITS, oracles.distribution_values, **DOUBLE),
    "sigmoid_distribution": Case(
        *with_option(*DISTRIBUTION, **SIGMOID), LOGITS, partial(oracles.distribution_values, **SIGMOID), **DOUBLE
    ),
    "jensen_shannon": Case(*JENSEN_SHANNON, LOGITS, oracles.jensen_shannon_values, **DOUBLE),
    "sigmoid_jensen_shannon": Case(
        *with_option(*JENSEN_SHANNON, **SIGMOID), LOGITS, partial(oracles.jensen_shannon_values, **SIGMOID), **DOUBLE
    ),
    "saliency": Case(
        f.saliency_invariance_similarity,
        m.SaliencyInvarianceSimilarity,
        MAPS,
        oracles.saliency_values,
        (-1.0, 1.0),
        **DOUBLE,
    ),
    "share": Case(f.orbit_share, m.OrbitShare, LOGITS, oracles.share_values, **SHARE),
    "single_share": Case(single_share, SingleShare, LOGITS, single_share_values, **SHARE),
    "selectivity": Case(
        f.selectivity,
        m.Selectivity,
        PERTURBED,
        oracles.selectivity_values,
        influences=oracles.selectivity_influences,
    ),
    "lie": Case(*LIE, SLOPES, oracles.lie_values, **DOUBLE),
    "published_lie": Case(*with_option(*LIE, **PUBLISHED), SLOPES, partial(oracles.lie_values, **PUBLISHED), **DOUBLE),
    "consistency": Case(f.prediction_consistency, m.PredictionConsistency, LOGITS, oracles.consistency_values, **SHARE),
    "accuracy": Case(*ACCURACY, LABELLED, oracles.accuracy_values, **SHARE),
    "worst_accuracy": Case(
        *with_option(*ACCURACY, worst_case=True),
        LABELLED,
        oracles.worst_accuracy_values,
        reductions=["mean", "none"],
        **SHARE,
    ),
    "loss_share": Case(
        f.loss_share,
        m.LossShare,
        LABELLED,
        oracles.loss_share_values,
        (0.0, 100.0),
        **DOUBLE,
    ),
}
#: Their standard error is a jackknife's.
JACKKNIFED = ["share", "single_share", "relative_logit", "loss_share"]
MEANS = [name for name in CASES if name not in JACKKNIFED]
NAMES_AND_REDUCTIONS = [(name, reduction) for name, case in CASES.items() for reduction in case.reductions]


def make_data(
    samples: int,
    *,
    elements: int = 2,
    classes: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    spread: float = 2.0,
    moved: float = 0.5,
) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)

    logits, maps = spread * normal(samples, classes), normal(samples, 4)
    return {
        "logits": logits,
        "orbit_logits": logits + moved * spread * normal(elements, samples, classes),
        "saliency": maps,
        "orbit_saliency": maps + 2 * moved * normal(elements, samples, 4),
        "target": torch.randint(classes, (samples,), generator=generator),
        "perturbed_logits": logits + spread * normal(elements, samples, classes),
        "lie_derivative": 6 * moved * normal(elements, samples, classes),
    }


def by_element(name: str) -> int:
    """Whether it comes for each element and each sample."""
    return int(name.startswith(("orbit_", "perturbed_", "lie_")))


def take(batch: Batch, index: Any) -> Batch:
    return {name: tensor[(slice(None),) * by_element(name) + (index,)] for name, tensor in batch.items()}


def split(batch: Batch, sizes: Iterable[int]) -> Iterator[Batch]:
    first = 0
    for size in sizes:
        yield take(batch, slice(first, first + size))
        first += size


def joined(batches: Iterable[Batch]) -> Batch:
    batches = list(batches)
    return {name: torch.cat([batch[name] for batch in batches], dim=by_element(name)) for name in batches[0]}
