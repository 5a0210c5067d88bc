"""What invariant weights should reach beside random group elements in training (DA), and what of it they miss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isinf, sqrt
from statistics import mean, stdev


@dataclass(frozen=True)
class Aim:
    """What is asked for, beside DA with the same seeds."""

    accuracy: float = -0.5  # points above DA's
    similarity: float = 0.95  # SI, at least
    error: float = 0.02  # LI, at most
    sensitivity: float = 0.6  # σ_max over DA's, at least
    cost: float = inf  # of a training step and of inference over DA's, at most

    def missed(
        self,
        accuracy: float,
        similarity: float,
        error: float,
        sensitivity: float,
        step: float | None = None,
        inference: float | None = None,
    ) -> str:
        """What is not reached; costs that were not timed (None) are not asked for."""
        reached = {
            "accuracy": accuracy >= self.accuracy,
            "SI": similarity >= self.similarity,
            "LI": error <= self.error,
            "σ_max": sensitivity >= self.sensitivity,
            "step": step is None or step <= self.cost,
            "inference": inference is None or inference <= self.cost,
        }
        return ", ".join(name for name, is_reached in reached.items() if not is_reached) or "nothing"

    def __str__(self) -> str:
        cost = "" if isinf(self.cost) else f"; a step and inference cost at most {self.cost:g} times DA's"
        return (
            f"Accuracy at least DA's {self.accuracy:+g} points, SI at least {self.similarity:g}, LI at most "
            f"{self.error:g}, σ_max at least {self.sensitivity:g} of DA's{cost}. ± is the standard error over seeds of "
            "the difference from DA with the same seed."
        ).replace("-", "−")


def gain_in_points(gains: Sequence[float]) -> str:
    """Points of accuracy over DA's, seed by seed, as their mean and its standard error."""
    error = f" ± {stdev(gains) / sqrt(len(gains)):.1f}" if len(gains) > 1 else ""
    return f"{mean(gains):+.1f}{error}".replace("-", "−")
