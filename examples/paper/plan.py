"""Which trainings the experiments need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev

from examples.paper.data import PAPER_SIZES
from examples.paper.models import is_convolutional
from examples.paper.runs import GROUPS, PENALTIES, Result, Run, Settings

TABLE_1 = ("WT", "DA", "IR")
FIGURE_5 = ("DA", "IR KL", "IR normalised L2", "IR")
#: What the paper does not have: convolutional networks, and those tied over the group layer by layer.
CNN_TABLE = {
    "R4": ("escnn C4", "escnn D4", "escnn C8", "escnn SO2", "CNN pooled", "CNN DA", "CNN IR"),
    "T3": ("CNN pooled", "CNN DA", "CNN IR"),
}


def searches(settings: Settings) -> list[Run]:
    """The first runs of the regularised models, whose weight is to be found."""
    models = ("IR",) if settings.table_1_only else tuple(PENALTIES)
    return [
        Run(group, model, 0, settings.cnn_epochs if is_convolutional(model) else settings.epochs)
        for group in reversed(GROUPS)
        for model in models
    ]


def runs_without_search(settings: Settings) -> list[Run]:
    """The models that have no weight, all seeds; and those that explain differences from the paper."""
    runs = [
        Run(group, model, seed, settings.epochs)
        for group in GROUPS
        for model in ("WT", "DA")
        for seed in range(settings.seeds)
    ]
    if settings.table_1_only:
        return runs
    runs += [
        Run(group, model, seed, settings.cnn_epochs)
        for group, models in CNN_TABLE.items()
        for model in models
        if model not in PENALTIES
        for seed in range(settings.cnn_seeds)
    ]
    # DA's last epoch, also after as many steps as the paper's: the best epoch is the same in both. And half of the
    # images, with as many steps as all of them give.
    train = _fewer_images(settings)
    if train is not None:
        runs += [
            Run(group, "DA", 0, epochs, keep="last")
            for group in GROUPS
            for epochs in (settings.epochs, round(settings.epochs * PAPER_SIZES[0] / train))
        ]
        runs += [
            Run(group, model, 0, 2 * settings.epochs, train_size=train // 2)
            for group in GROUPS
            for model in ("DA", "WT")
        ]
    return runs


def runs_with_weight(settings: Settings, found: Sequence[Run]) -> list[Run]:
    """The other seeds of IR and CNN IR, and IR with half of the images, with the weight found on the first seed."""
    train = _fewer_images(settings)
    runs = [
        replace(first, seed=seed) for first in found if first.model == "CNN IR" for seed in range(1, settings.cnn_seeds)
    ]
    for first in (run for run in found if run.model == "IR"):
        group, weight = first.group, first.weight
        runs += [Run(group, "IR", seed, settings.epochs, weight) for seed in range(1, settings.seeds)]
        if train is not None and not settings.table_1_only:
            runs.append(Run(group, "IR", 0, 2 * settings.epochs, weight, train_size=train // 2))
    return runs


def _fewer_images(settings: Settings) -> int | None:
    """How many images train, where they are fewer than the paper's."""
    train = settings.split[0]
    return train if train < PAPER_SIZES[0] else None


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
                and result.run.keep == "best"
            ),
            key=lambda result: result.run.seed,
        )


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds; the latter NaN with a single one."""
    return mean(values), stdev(values) if len(values) > 1 else float("nan")
