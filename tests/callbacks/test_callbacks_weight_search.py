"""The search finds the smallest weight of its grid that meets the target, which a monotone score lets one know."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_invariance import search_weight


@pytest.mark.parametrize("start", [0.5, 8.0, 512.0])
def test_the_smallest_weight_of_the_grid_from_below_and_above(start: float) -> None:
    def saturating(weight: float) -> torch.Tensor:
        """Meets 0.95 from 19 on."""
        return torch.tensor(weight / (1 + weight), dtype=torch.float64)

    search = search_weight(saturating, start=start, factor=2, max_trials=20)
    assert search.reached
    assert search.weight == 32.0  # 2^k with 2^k >= 19
    assert all(trial.score == trial.weight / (1 + trial.weight) for trial in search.trials)
    assert len({trial.weight for trial in search.trials}) == len(search.trials)


def test_no_more_trainings_than_allowed() -> None:
    weights = []

    def train(weight: float) -> float:
        weights.append(weight)
        return 1.0

    search = search_weight(train, start=8.0, factor=2, max_trials=3)
    assert weights == [8.0, 4.0, 2.0]
    assert (search.weight, search.reached) == (2.0, True)


def test_a_target_that_is_missed_gives_the_best_and_a_warning() -> None:
    scores = {1.0: 0.2, 10.0: 0.7, 100.0: math.nan, 1000.0: 0.4}
    with pytest.warns(UserWarning, match=r"none of 4 trainings met the target of 0.95; the best score was 0.7"):
        search = search_weight(scores.__getitem__, factor=10, max_trials=4)
    assert (search.weight, search.reached) == (10.0, False)
