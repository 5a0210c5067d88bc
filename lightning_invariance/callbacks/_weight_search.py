"""The search for the regularizer's weight that meets a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_invariance._checks import check_callable, check_count, check_number, is_number
from lightning_invariance._messages import warn


@dataclass(frozen=True)
class WeightTrial:
    """A weight that was trained with.

    Attributes:
        weight: ν.
        score: what the training reached with it.
    """

    weight: float
    score: float


@dataclass(frozen=True)
class WeightSearch:
    """What a search for a weight found.

    Attributes:
        weight: the smallest weight tried that meets the target; where none does, the one with the best score.
        reached: whether it meets the target.
        trials: every training, in order.
    """

    weight: float
    reached: bool
    trials: tuple[WeightTrial, ...]


def search_weight(
    train: Callable[[float], float],
    *,
    target: float = 0.95,
    start: float = 1.0,
    factor: float = 10**0.5,
    max_trials: int = 8,
) -> WeightSearch:
    r"""The smallest weight, on a geometric grid, with which training meets a target.

    The paper (Moskalev et al., 2023, section 4.1) raises :math:`\nu` until the saliency invariance similarity is 0.95.
    So does this: from `start`, the weight is multiplied by `factor` until a training meets the target. Where `start`
    meets it already, the weight is divided by `factor` as long as the target is met, since more weight than needed
    costs accuracy.

    Args:
        train: trains anew with the weight that it is given, and returns a score, higher is better, measured on
            validation data: the last ``saliency_invariance_similarity`` of an `InvarianceMonitor`, say.
        target: the score to meet.
        start: the first weight, above 0.
        factor: from one weight to the next, above 1.
        max_trials: the most trainings.

    Returns:
        The weight, whether it meets the target, and all trials. A score of NaN meets no target.

    Raises:
        ValueError: if an argument is out of its range, or `train` returns no number.

    Warns:
        UserWarning: if no training met the target.

    Example:
        >>> from lightning_invariance import search_weight
        >>> search = search_weight(lambda weight: weight / (1 + weight), target=0.95, factor=10)
        >>> search.weight, search.reached, [trial.weight for trial in search.trials]
        (100.0, True, [1.0, 10.0, 100.0])
    """
    check_callable("train", train, "a function from a weight to a score")
    check_count("max_trials", max_trials)
    check_number("target", target)
    check_number("start", start, above=0)
    check_number("factor", factor, above=1)
    trials: list[WeightTrial] = []

    def meets_target(exponent: int) -> bool:
        weight = float(start * factor**exponent)
        trials.append(WeightTrial(weight, _score(train(weight))))
        return trials[-1].score >= target

    met_at_start = meets_target(0)
    step = -1 if met_at_start else 1
    exponent = step
    while len(trials) < max_trials and meets_target(exponent) == met_at_start:
        exponent += step
    met = [trial for trial in trials if trial.score >= target]
    if met:
        return WeightSearch(min(trial.weight for trial in met), True, tuple(trials))
    best = max(trials, key=lambda trial: trial.score if trial.score == trial.score else -float("inf"))
    warn(
        f"search_weight: none of {len(trials)} trainings met the target of {target}; the best score was "
        f"{best.score:.4g}, with a weight of {best.weight:.4g}."
    )
    return WeightSearch(best.weight, False, tuple(trials))


def _score(value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not is_number(value):
        raise ValueError(f"Expected `train` to return a number but got {value!r}.")
    return float(value)
