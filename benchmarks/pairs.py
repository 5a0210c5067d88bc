"""Two things timed side by side."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from lightning_invariance.comparison._times import now

Timed = Callable[[], float]
"""Does a piece of work, and says how many seconds it took."""


@dataclass(frozen=True)
class Setting:
    """Under what a benchmark runs.

    Attributes:
        device: where.
        quick: sizes as small as can be, to see that everything runs: its times mean nothing.
    """

    device: torch.device
    quick: bool

    def size(self, full: int, quick: int) -> int:
        """A size that depends on it."""
        return quick if self.quick else full

    def rand(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers, the same every time."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(self.device)

    def labels(self, count: int, classes: int) -> torch.Tensor:
        """Labels, the same every time."""
        return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(1)).to(self.device)


@dataclass(frozen=True)
class Pair:
    """What the package does, and what it is held against.

    Attributes:
        name: what is timed.
        against: what it is held against.
        ours: does the former.
        theirs: does the latter.
        at_most: what the ratio of their times must not exceed; None where it is only reported.
        difference: how far the results are apart, relative to their size; NaN where there is nothing to compare.
        tolerance: what they may differ by.
    """

    name: str
    against: str
    ours: Timed
    theirs: Timed
    at_most: float | None
    difference: Callable[[], float]
    tolerance: float = 1e-5


@dataclass(frozen=True)
class Result:
    """What was measured of a pair.

    Attributes:
        pair: the pair.
        ours: seconds, a round each.
        theirs: seconds, in the same rounds.
        difference: how far the results are apart.
    """

    pair: Pair
    ours: list[float]
    theirs: list[float]
    difference: float

    @property
    def ratios(self) -> list[float]:
        """Our time over theirs, of each round."""
        return [own / other for own, other in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios."""
        return median(self.ratios)

    @property
    def agrees(self) -> bool:
        """Whether the results are the same up to the tolerance, or there was nothing to compare."""
        return not self.difference > self.pair.tolerance

    @property
    def reached(self) -> bool | None:
        """Whether the ratio is what it must be; None where nothing is asked."""
        return None if self.pair.at_most is None else self.ratio <= self.pair.at_most


def measure(pair: Pair, rounds: int) -> Result:
    """Compares the results, warms up, and times both in turns, each first in every other round."""
    difference = pair.difference()
    pair.ours(), pair.theirs()
    ours, theirs = [], []
    for number in range(rounds):
        gc.collect()
        if number % 2:
            theirs.append(pair.theirs())
            ours.append(pair.ours())
        else:
            ours.append(pair.ours())
            theirs.append(pair.theirs())
    return Result(pair, ours, theirs, difference)


def clocked(work: Callable[[], Any], setting: Setting, at_least: float = 0.3) -> Timed:
    """Seconds that one go of `work` takes, from as many goes as last `at_least` seconds."""
    goes = 0

    def seconds(count: int) -> float:
        start = now(setting.device)
        for _ in range(count):
            work()
        return now(setting.device) - start

    def timed() -> float:
        nonlocal goes
        if not goes:
            work()
            once = seconds(1)
            goes = 1 if setting.quick else max(1, round(at_least / once))
        return seconds(goes) / goes

    return timed


def relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference over the largest value; infinite for other shapes."""
    if one.shape != other.shape:
        return float("inf")
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).abs().max() / other.abs().max())
