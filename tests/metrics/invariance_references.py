"""Every metric with data to feed it and a formula in double precision to hold it against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_invariance.metrics import (
    DistributionInvarianceError,
    JensenShannonInvarianceError,
    LogitInvarianceError,
    OrbitAccuracy,
    OrbitShare,
    PredictionConsistency,
    RelativeLogitInvarianceError,
    SaliencyInvarianceSimilarity,
    Selectivity,
)

Batch = dict[str, Tensor]
Arrays = dict[str, np.ndarray]


class Values(NamedTuple):
    per_sample: np.ndarray
    per_element: np.ndarray


class Case(NamedTuple):
    make: Callable[..., Any]
    inputs: tuple[str, ...]
    values: Callable[[Arrays], Values]
    by_element: bool = True
    influences: Callable[[Arrays], Values] | None = None
    """Values of the same spread over samples as the measure's, where it is no mean over samples."""

    @property
    def reductions(self) -> list[str]:
        return ["mean", "element", "none"] if self.by_element else ["mean", "none"]

    def feed(self, metric: Any, batches: Iterable[Batch]) -> Any:
        for batch in batches:
            metric.update(**self.pick(batch))
        return metric

    def pick(self, batch: Batch) -> Batch:
        return {name: batch[name] for name in self.inputs}

    def expected(self, batch: Batch, reduction: str) -> np.ndarray:
        values = self.values({name: tensor.double().numpy() for name, tensor in batch.items()})
        if reduction == "none":
            return values.per_sample
        return values.per_sample.mean() if reduction == "mean" else values.per_element.mean(axis=1)

    def standard_error(self, batch: Batch, reduction: str) -> np.ndarray:
        values = (self.influences or self.values)({name: tensor.double().numpy() for name, tensor in batch.items()})
        columns = values.per_sample[None] if reduction == "mean" else values.per_element
        errors: np.ndarray = columns.std(axis=1, ddof=1) / np.sqrt(columns.shape[1])
        return errors[0] if reduction == "mean" else errors


def _of_pairs(pairs: np.ndarray) -> Values:
    return Values(pairs.mean(axis=0), pairs)


def _outcomes(z: np.ndarray, activation: str) -> np.ndarray:
    """Probabilities, shape (..., distributions, outcomes)."""
    if activation == "softmax":
        exponentials = np.exp(z - z.max(axis=-1, keepdims=True))
        return (exponentials / exponentials.sum(axis=-1, keepdims=True))[..., None, :]
    yes = 1 / (1 + np.exp(-z))
    return np.stack([yes, 1 - yes], axis=-1)


def _distribution(activation: str) -> Callable[[Arrays], Values]:
    def values(data: Arrays) -> Values:
        u, q = _outcomes(data["logits"], activation), _outcomes(data["orbit_logits"], activation)
        return _of_pairs((u * np.log(u / q)).sum(axis=(-1, -2)))

    return values


def _jensen_shannon(activation: str) -> Callable[[Arrays], Values]:
    def values(data: Arrays) -> Values:
        p = _outcomes(np.concatenate([data["logits"][None], data["orbit_logits"]]), activation)
        mean = p.mean(axis=0)
        entropies = -(p * np.log(p)).sum(axis=(-1, -2))
        divergence = -(mean * np.log(mean)).sum(axis=(-1, -2)) - entropies.mean(axis=0)
        return Values(divergence, (p * np.log(p / mean)).sum(axis=(-1, -2))[1:])

    return values


def _logit(data: Arrays) -> Values:
    return _of_pairs(0.5 * ((data["logits"] - data["orbit_logits"]) ** 2).sum(axis=-1))


def _normalized_logit(data: Arrays) -> Values:
    distance = ((data["logits"] - data["orbit_logits"]) ** 2).sum(axis=-1)
    return _of_pairs(distance / (data["logits"] ** 2).sum(axis=-1))


def _cosine(data: Arrays) -> Values:
    x, gx = data["saliency"], data["orbit_saliency"]
    return _of_pairs((x * gx).sum(axis=-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(gx, axis=-1))


def _consistency(data: Arrays) -> Values:
    return _of_pairs((data["logits"].argmax(-1) == data["orbit_logits"].argmax(-1)).astype(float))


def _accuracy(data: Arrays) -> Values:
    return _of_pairs((data["orbit_logits"].argmax(-1) == data["target"]).astype(float))


def _worst_accuracy(data: Arrays) -> Values:
    right = (data["orbit_logits"].argmax(-1) == data["target"]).astype(float)
    return Values(right.min(axis=0) * (data["logits"].argmax(-1) == data["target"]), right)


def _share(data: Arrays) -> Values:
    z = np.concatenate([data["logits"][None], data["orbit_logits"]])
    z = z - z.mean(axis=-1, keepdims=True)
    deviations = ((z - z.mean(axis=0)) ** 2).sum(axis=-1)
    # With orbits of one size, the variance within and between them adds up to the variance of all points.
    total = z.reshape(-1, z.shape[-1]).var(axis=0).sum()
    return Values(deviations.mean(axis=0) / total, deviations[1:] / total)


def _single_share(data: Arrays) -> Values:
    z = np.concatenate([data["logits"][None], data["orbit_logits"]]).sum(axis=-1)
    deviations = (z - z.mean(axis=0)) ** 2
    return Values(deviations.mean(axis=0) / z.var(), deviations[1:] / z.var())


def _relative_logit(data: Arrays) -> Values:
    errors = 0.5 * ((data["logits"] - data["orbit_logits"]) ** 2).sum(axis=-1)
    return _of_pairs(errors / data["logits"].var(axis=0).sum())


def _movements(data: Arrays) -> tuple[np.ndarray, np.ndarray]:
    by_group = ((data["orbit_logits"] - data["logits"]) ** 2).sum(axis=-1)
    return by_group, ((data["perturbed_logits"] - data["logits"]) ** 2).sum(axis=-1)


def _selectivity(data: Arrays) -> Values:
    a, b = _movements(data)
    return Values(a.mean(axis=0) / b.mean(), a / b.mean(axis=1, keepdims=True))


def _selectivity_influences(data: Arrays) -> Values:
    """How much each sample moves the ratio, whose standard deviation gives its error."""

    def influences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        ratio = a.mean(axis=-1, keepdims=True) / b.mean(axis=-1, keepdims=True)
        return (a - ratio * b) / b.mean(axis=-1, keepdims=True)

    a, b = _movements(data)
    return Values(influences(a.mean(axis=0), b.mean(axis=0)), influences(a, b))


LOGITS = ("logits", "orbit_logits")
MAPS = ("saliency", "orbit_saliency")
PERTURBED = ("logits", "orbit_logits", "perturbed_logits")
LABELLED = ("logits", "orbit_logits", "target")


def normalized_logit_error(**options: Any) -> LogitInvarianceError:
    return LogitInvarianceError(normalize="logits", **options)


class SingleShare(OrbitShare):
    """The share of a network with one output a sample: the sum of the logits."""

    def update(self, logits: Tensor, orbit_logits: Tensor) -> None:
        super().update(*(x.sum(-1, dtype=torch.float32 if x.itemsize == 2 else None) for x in (logits, orbit_logits)))


def sigmoid_distribution_error(**options: Any) -> DistributionInvarianceError:
    return DistributionInvarianceError(activation="sigmoid", **options)


def sigmoid_jensen_shannon(**options: Any) -> JensenShannonInvarianceError:
    return JensenShannonInvarianceError(activation="sigmoid", **options)


def worst_accuracy(**options: Any) -> OrbitAccuracy:
    return OrbitAccuracy(worst_case=True, **options)


CASES: dict[str, Case] = {
    "logit": Case(LogitInvarianceError, LOGITS, _logit),
    "normalized_logit": Case(normalized_logit_error, LOGITS, _normalized_logit),
    "distribution": Case(DistributionInvarianceError, LOGITS, _distribution("softmax")),
    "sigmoid_distribution": Case(sigmoid_distribution_error, LOGITS, _distribution("sigmoid")),
    "jensen_shannon": Case(JensenShannonInvarianceError, LOGITS, _jensen_shannon("softmax")),
    "sigmoid_jensen_shannon": Case(sigmoid_jensen_shannon, LOGITS, _jensen_shannon("sigmoid")),
    "saliency": Case(SaliencyInvarianceSimilarity, MAPS, _cosine),
    "share": Case(OrbitShare, LOGITS, _share),
    "single_share": Case(SingleShare, LOGITS, _single_share),
    "relative_logit": Case(RelativeLogitInvarianceError, LOGITS, _relative_logit),
    "selectivity": Case(Selectivity, PERTURBED, _selectivity, influences=_selectivity_influences),
    "consistency": Case(PredictionConsistency, LOGITS, _consistency),
    "accuracy": Case(OrbitAccuracy, LABELLED, _accuracy),
    "worst_accuracy": Case(worst_accuracy, LABELLED, _worst_accuracy, by_element=False),
}
#: Their standard error is a jackknife's.
JACKKNIFED = ["share", "single_share", "relative_logit"]
MEANS = [name for name in CASES if name not in JACKKNIFED]
NAMES_AND_REDUCTIONS = [(name, reduction) for name, case in CASES.items() for reduction in case.reductions]


def make_data(
    samples: int, *, elements: int = 2, classes: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)

    logits, maps = 2 * normal(samples, classes), normal(samples, 4)
    return {
        "logits": logits,
        "orbit_logits": logits + normal(elements, samples, classes),
        "saliency": maps,
        "orbit_saliency": maps + normal(elements, samples, 4),
        "target": torch.randint(classes, (samples,), generator=generator),
        "perturbed_logits": logits + 2 * normal(elements, samples, classes),
    }


#: What comes for each element and each sample.
BY_ELEMENT = ("orbit_", "perturbed_")


def take(batch: Batch, index: Any) -> Batch:
    return {name: tensor[:, index] if name.startswith(BY_ELEMENT) else tensor[index] for name, tensor in batch.items()}


def split(batch: Batch, sizes: Iterable[int]) -> Iterator[Batch]:
    first = 0
    for size in sizes:
        yield take(batch, slice(first, first + size))
        first += size
