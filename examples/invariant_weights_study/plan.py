"""Which trainings the study needs, what matters most first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from examples.invariant_weights_study.methods import FROM_DA, METHODS
from examples.invariant_weights_study.runs import Run
from examples.invariant_weights_study.settings import (
    CHOSEN,
    DATA,
    GROUPS,
    MAIN,
    NETWORKS,
    RATES_TRIED,
    SAMPLE_SIZES,
    Settings,
)

#: Runs that one process does one after the other, since they begin with what the first has trained.
Job = tuple[Run, ...]

#: What is compared with few training images, besides invariant weights.
FEW_IMAGES = ("escnn, as many parameters", "pooled")


def heart(network: str) -> tuple[str, ...]:
    """What there is of every cell: DA and the two ways to invariant weights."""
    return ("DA", *CHOSEN[network])


def is_there(data: str, network: str, group: str, method: str) -> bool:
    """Whether the study has this."""
    return (data, network, group) == MAIN or method in (*heart(network), "DA, projected")


def cells(settings: Settings) -> list[tuple[str, str, str]]:
    """Data set, network and group; the first is `MAIN`."""
    there = [data for data in DATA if data == "MNIST" or settings.fashion is not None]
    every = [(data, network, group) for data in there for group in GROUPS for network in NETWORKS]
    # Fashion-MNIST has one group with all networks.
    return [cell for cell in every if cell[0] == "MNIST" or cell[2] == "C4"]


def jobs(settings: Settings) -> list[Job]:
    """The main cell, seed by seed; all other cells, seed by seed, MNIST first; few images."""
    seeds, (main, *others) = range(settings.seeds), cells(settings)
    first = heart(main[1])
    rest = [name for name in METHODS if name not in FROM_DA and name not in first]
    planned = [job for seed in seeds for job in _jobs(main, first, seed)]
    planned += [job for seed in seeds for job in _jobs(main, rest, seed)]
    for data in dict.fromkeys(data for data, _, _ in others):
        same = [cell for cell in others if cell[0] == data]
        planned += [job for seed in seeds for cell in same for job in _jobs(cell, heart(cell[1]), seed)]
    planned += [
        (replace(job[0], train_size=size),)
        for seed in seeds[: settings.few_images_seeds]
        for size in SAMPLE_SIZES
        for job in _jobs(main, (*first, *FEW_IMAGES), seed)
    ]
    return planned


def _jobs(cell: tuple[str, str, str], methods: Iterable[str], seed: int) -> list[Job]:
    made: list[Job] = []
    for method in methods:
        following = [name for name in FROM_DA if is_there(*cell, name)] if method == "DA" else []
        made.append(tuple(Run(*cell, name, seed) for name in (method, *following)))
    return made


#: The methods that a rate is searched for; the others have the rate of one of these.
SEARCHED = ("DA", "project + DA", "merge", "merge, late")


def search() -> list[Job]:
    """DA and the ways to invariant weights, with every rate; measured on validation images alone."""
    return [
        (Run("MNIST", network, "C4", method, 0, rate=rate),)
        for network in NETWORKS
        for method in SEARCHED
        for rate in RATES_TRIED
    ]
