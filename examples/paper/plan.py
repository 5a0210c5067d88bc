"""Which trainings the experiments need, what matters most first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

from examples.paper.data import PAPER_SIZES
from examples.paper.methods import METHODS, REGULARISED
from examples.paper.paper_numbers import SI
from examples.paper.runs import (
    GROUPS,
    PERCEPTRON_RATES_TRIED,
    RATES_TRIED,
    TARGET_SI,
    Result,
    Run,
    Settings,
    read_result,
)

TABLE_1 = ("WT", "DA", "IR")
FIGURE_5 = ("DA", "IR KL", "IR normalised L2", "IR")
CNN_TABLE = {
    "R4": ("CNN DA", "CNN IR", "CNN pooled", "escnn C4", "CNN IW"),
    "T3": ("CNN DA", "CNN IR", "CNN pooled", "CNN IW"),
}
#: ν of the convolutional network's row; where it stands among others is the front's matter.
CNN_WEIGHT = 1.0
#: escnn's other groups, all of them measured on rotations by 90°.
OTHER_GROUPS = ("escnn D4", "escnn C8", "escnn SO2")
FEW_IMAGES = ("CNN DA", "CNN pooled", "escnn C4", "CNN IW")
TRAIN_SIZES = (100, 300, 1000, 3000)
#: The regularizer's options and their weights: between accuracy and SI.
FRONT: dict[str, tuple[float, ...]] = {
    "CNN IR": (0.01, 0.1, 1.0, 10.0),
    "CNN IR ramp": (1.0, 10.0),
    "CNN IR one element": (1.0,),
    "CNN IR noise": (1.0,),
    "CNN IR KL": (1.0, 10.0),
    "CNN IR normalised L2": (10.0, 100.0),
    "CNN IR saliency": (0.1, 1.0, 10.0),
    "CNN IR logit and saliency": (1.0, 10.0),
    "CNN IW pull": (1e-4, 1e-3, 1e-2),
}
#: Of these, what the other group has: the figure needs them.
FRONT_OF_T3 = {"CNN IR": (0.1, 1.0, 10.0), "CNN IR saliency": (1.0,), "CNN IW pull": (1e-3, 1e-2)}
#: Seeds where many settings are tried.
FEW_SEEDS = 2

Part = Literal["table 1", "invariant weights", "figure 5", "front", "few images", "other groups"]
PARTS: tuple[Part, ...] = ("table 1", "invariant weights", "figure 5", "front", "few images", "other groups")
#: What there is of Fashion-MNIST, as of the paper's own appendix: the tables.
FASHION_PARTS: tuple[Part, ...] = ("table 1", "invariant weights")


def searches(part: Part, settings: Settings) -> list[Run]:
    """The first runs of the part's regularised perceptrons, whose weight is to be found."""
    models = {"table 1": ("IR",), "figure 5": REGULARISED[1:]}.get(part, ())
    return [Run(group, model, 0, settings.epochs) for group in GROUPS for model in models]


def runs_without_search(part: Part, settings: Settings) -> list[Run]:
    """The part's runs whose weight is given, or that have none."""
    seeds, few = range(settings.seeds), range(min(settings.seeds, FEW_SEEDS))
    if part == "table 1":
        runs = [
            Run(group, model, seed, settings.epochs) for seed in seeds for group in GROUPS for model in ("DA", "WT")
        ]
        if settings.dataset == "mnist":
            # Of DA also the last epoch, and that after twice as many, which speak to a difference from the paper.
            runs += [
                Run(group, "DA", 0, epochs * settings.epochs, keep="last") for group in GROUPS for epochs in (1, 2)
            ]
        return runs
    if part == "invariant weights":
        perceptrons = [Run(group, "IW", seed, settings.epochs) for seed in seeds for group in GROUPS]
        if settings.dataset == "mnist":
            # Invariant weights want a rate that is annealed: what it gives DA, and what they are with the paper's rate.
            perceptrons += [Run(group, "DA annealed", seed, settings.epochs) for seed in few for group in GROUPS]
            perceptrons += [Run(group, "IW constant rate", 0, settings.epochs) for group in GROUPS]
        return perceptrons + [
            Run(group, model, seed, settings.cnn_epochs, CNN_WEIGHT if METHODS[model].penalties else 0.0)
            for seed in seeds
            for group, models in CNN_TABLE.items()
            for model in models
        ]
    if part == "front":
        return [
            Run(group, model, seed, settings.cnn_epochs, weight)
            for seed in few
            for group, tried in (("R4", FRONT), ("T3", FRONT_OF_T3 if not settings.quick else {}))
            for model, weights in tried.items()
            for weight in (weights[:1] if settings.quick else weights)
        ]
    if part == "few images":
        return [
            Run("R4", model, seed, settings.cnn_epochs, train_size=size)
            for seed in seeds
            for size in TRAIN_SIZES
            if size < settings.split[0]
            for model in FEW_IMAGES
        ]
    if part == "other groups" and not settings.quick:
        return [Run("R4", model, seed, settings.cnn_epochs) for seed in few for model in OTHER_GROUPS]
    return []


def runs_with_weight(found: Run, settings: Settings) -> list[Run]:
    """The other seeds of a regularised perceptron, with the weight that was found on the first one."""
    # Of the penalties that only figure 5 has, few seeds.
    seeds = settings.seeds if found.model == "IR" else min(settings.seeds, FEW_SEEDS)
    return [replace(found, seed=seed) for seed in range(1, seeds)]


def rate_search(settings: Settings) -> list[Run]:
    """What `CNN_RATES` and `ANNEALED_RATE` were chosen by: validation images alone."""
    models = ("CNN DA", "CNN pooled", "escnn C4", "CNN IW", "CNN IW project")
    convolutional = [Run("R4", model, 0, settings.cnn_epochs, rate=rate) for model in models for rate in RATES_TRIED]
    return convolutional + [
        Run("R4", model, 0, settings.epochs, rate=rate)
        for model in ("DA annealed", "IW")
        for rate in PERCEPTRON_RATES_TRIED
    ]


@dataclass
class Experiments:
    """All results of a data set, and the trials of the searches (the one that was found first)."""

    results: list[Result]
    searched: list[list[Result]]

    def of(self, group: str, model: str, weight: float | None = None, train_size: int | None = None) -> list[Result]:
        """The results of a model over the seeds; with the weight that was found or given if None."""
        if weight is None:
            weight = self._weight(group, model)
        found = {
            result.run.seed: result
            for result in self.results
            if (result.run.group, result.run.model, result.run.weight) == (group, model, weight)
            and result.run.train_size == train_size
            and (result.run.keep, result.run.rate) == ("best", None)
        }
        return [found[seed] for seed in sorted(found)]

    def trials(self, group: str, model: str) -> list[Result]:
        """The first seed's results with every weight that was tried, in the order of the weights."""
        found = {
            result.run.weight: result
            for result in [*self.results, *(trial for trials in self.searched for trial in trials)]
            if (result.run.group, result.run.model, result.run.seed) == (group, model, 0)
            and result.run.train_size is None
            and (result.run.keep, result.run.rate) == ("best", None)
        }
        return [found[weight] for weight in sorted(found)]

    def _weight(self, group: str, model: str) -> float:
        for trials in self.searched:
            if (trials[0].run.group, trials[0].run.model) == (group, model):
                return trials[0].run.weight
        return CNN_WEIGHT if METHODS[model].penalties else 0.0


def collected(folder: Path) -> Experiments:
    """All results that lie in a folder, in an order that does not depend on which was done first."""
    results = [read_result(path) for path in sorted((folder / "runs").glob("*.json"))]
    searched = []
    for group in GROUPS:
        for model in REGULARISED:
            trials = Experiments(results, []).trials(group, model)
            if trials:
                similarities = {trial.run.weight: trial.val[SI][0] for trial in trials}
                enough = [weight for weight, similarity in similarities.items() if similarity >= TARGET_SI]
                found = min(enough) if enough else max(similarities, key=lambda weight: similarities[weight])
                # The one that was found comes first.
                searched.append(sorted(trials, key=lambda trial: (trial.run.weight != found, trial.run.weight)))
    return Experiments(results, searched)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds; NaN with none, the latter also with a single one."""
    if not values:
        return float("nan"), float("nan")
    return mean(values), stdev(values) if len(values) > 1 else float("nan")


def has_fewer_images(settings: Settings) -> bool:
    """Whether fewer images train than in the paper."""
    return settings.split[0] < PAPER_SIZES[0]
