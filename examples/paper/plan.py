"""Which trainings the experiments need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from examples.paper.runs import GROUPS, PENALTIES, Result, Run, Settings

TABLE_1 = ("WT", "DA", "IR")
FIGURE_5 = ("DA", "IR KL", "IR normalised L2", "IR")
#: What the paper does not have: convolutional networks, and those tied over the group layer by layer.
CNN_TABLE = {
    "R4": ("escnn C4", "escnn D4", "CNN pooled", "CNN DA", "CNN IR"),
    "T3": ("CNN pooled", "CNN DA", "CNN IR"),
}


def searches(settings: Settings) -> list[Run]:
    """The first runs of each regularised model, whose weight is to be found."""
    return [Run(group, model, 0, _epochs(model, settings)) for group in GROUPS for model in PENALTIES]


def runs_without_search(settings: Settings) -> list[Run]:
    """The models that have no weight, all seeds; and those that explain differences from the paper."""
    runs = [
        Run(group, model, seed, _epochs(model, settings))
        for group in GROUPS
        for model in (*TABLE_1, *CNN_TABLE[group])
        if model not in PENALTIES
        for seed in range(_seeds(model, settings))
    ]
    return runs + explaining_runs(settings)


def runs_with_weight(settings: Settings, found: Sequence[Run]) -> list[Run]:
    """The other seeds of the regularised models of the tables, with the weights found on the first seed."""
    return [
        Run(first.group, first.model, seed, first.epochs, first.weight)
        for first in found
        if first.model in ("IR", "CNN IR")
        for seed in range(1, _seeds(first.model, settings))
    ]


def explaining_runs(settings: Settings) -> list[Run]:
    """DA with as many steps as the paper's, and with a half and a quarter of the images: what the differences are."""
    train = (settings.sizes or settings.data(GROUPS["R4"]).sizes)[0]
    more_epochs = round(settings.epochs * 10_000 / train)
    runs = []
    for group in GROUPS:
        if train < 10_000:
            runs.append(Run(group, "DA", 0, more_epochs))
        runs += [Run(group, "DA", 0, settings.epochs * part, train_size=train // part) for part in (2, 4)]
    return runs


def _epochs(model: str, settings: Settings) -> int:
    return settings.cnn_epochs if model.startswith(("CNN", "escnn")) else settings.epochs


def _seeds(model: str, settings: Settings) -> int:
    return settings.cnn_seeds if model.startswith(("CNN", "escnn")) else settings.seeds


@dataclass
class Experiments:
    """All results, and the trials of the searches (the one that was found first)."""

    results: list[Result]
    searched: list[list[Result]]

    def of(self, group: str, model: str, epochs: int) -> list[Result]:
        """The results of a model over the seeds."""
        return sorted(
            (
                result
                for result in self.results
                if (result.run.group, result.run.model, result.run.epochs) == (group, model, epochs)
                and result.run.train_size is None
            ),
            key=lambda result: result.run.seed,
        )


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds; the latter NaN with a single one."""
    return mean(values), stdev(values) if len(values) > 1 else float("nan")
