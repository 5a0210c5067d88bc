"""How often the regularizer runs the network, and which elements it draws."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import pytest
import torch
from helpers import Classifier, fit, loader, mlp, noisy, trainer_for
from lightning.pytorch import seed_everything
from torch import Tensor, nn

from benchmarks.growth import peak_memory
from benchmarks.pairs import Setting
from lightning_invariance import C4, D4, InvarianceRegularizer, OrbitAugmentation, Rotations
from lightning_invariance.callbacks import WeightRamp


class Recording(nn.Module):
    """Keeps the rows that it is called with."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(x.detach().clone())
        return self.network(x)


def record(regularizer: InvarianceRegularizer, seed: int = 1, network: Any = mlp, **options: Any) -> list[Tensor]:
    """All calls of the network in a training with one batch of 2 images an epoch.

    But for the one in which the first step with a term looks whether the network, run again, gives the same.
    """
    seed_everything(seed, verbose=False)
    module = Classifier(lambda: Recording(network()), lr=0.01)
    trainer_for([regularizer], **options).fit(module, loader(2, 2))
    calls = module.model.calls
    looks = 1 if not callable(regularizer.weight) else 2
    assert torch.equal(calls[looks][:2], calls[looks - 1])
    return [*calls[:looks], *calls[looks + 1 :]]


def drawn(calls: list[Tensor], images: Tensor) -> list[tuple[int, ...]]:
    """The rotations that each step ran besides the batch itself."""
    steps: list[list[int]] = []
    for rows in calls:
        for pair in rows.split(len(images)):
            (k,) = [k for k in range(4) if torch.equal(pair, torch.rot90(images, k, (2, 3)))]
            if k == 0:
                steps.append([])
            else:
                steps[-1].append(k)
    return [tuple(sorted(step)) for step in steps]


IMAGES = loader(2, 2).dataset.x


@pytest.mark.parametrize("network", [mlp, noisy], ids=["stacked", "apart"])
@pytest.mark.parametrize("elements", [None, 1, 2, 3])
def test_a_step_costs_as_many_extra_rows_as_there_are_elements(network: Any, elements: int | None) -> None:
    calls = record(InvarianceRegularizer(C4(), 0.1, elements_per_step=elements), network=network, max_epochs=3)
    extra = 3 if elements is None else elements
    assert sum(len(rows) for rows in calls) == 3 * (2 + 2 * extra)
    if network is mlp:
        assert len(calls) == 3 * 2
        assert torch.equal(calls[0], IMAGES)


def test_a_weight_of_zero_costs_nothing() -> None:
    regularizer = InvarianceRegularizer(C4(), WeightRamp(0.0, 1.0, steps=2))
    calls = record(regularizer, max_epochs=3)
    assert [len(rows) for rows in calls] == [2, 2, 6, 2, 6]


def test_max_batch_bounds_the_rows_of_each_extra_forward() -> None:
    calls = record(InvarianceRegularizer(C4(), 0.1, max_batch=4), max_epochs=1)
    rows = [len(each) for each in calls]
    assert rows[:3] == [2, 4, 2]
    assert sorted(rows[3:]) == [2, 4]  # once more in the backward
    assert {float(each.sum()) for each in calls[3:]} == {float(each.sum()) for each in calls[1:3]}


@pytest.mark.parametrize("network", [mlp, noisy], ids=["stacked", "apart"])
def test_with_max_batch_memory_does_not_grow_with_the_group(network: Any) -> None:
    def peak(order: int, max_batch: int | None) -> float:
        def wide() -> nn.Module:
            return nn.Sequential(nn.Conv2d(1, 64, 1), nn.Tanh(), nn.Conv2d(64, 1, 1), network())

        regularizer = InvarianceRegularizer(Rotations(order), 0.1, max_batch=max_batch)
        module = Classifier(wide)
        setting = Setting(torch.device("cpu"), quick=True)
        data = loader(64, 64)
        return peak_memory(lambda: trainer_for([regularizer], max_epochs=1).fit(module, data), setting)

    growth = peak(16, None) - peak(4, None)
    assert peak(16, 64) - peak(4, 64) < 0.05 * growth


@pytest.mark.parametrize("elements", [1, 2])
def test_every_set_of_elements_is_drawn_equally_often(elements: int) -> None:
    steps = 300
    calls = record(InvarianceRegularizer(C4(), 0.1, elements_per_step=elements), max_epochs=steps)
    counts = Counter(drawn(calls, IMAGES))
    assert set(counts) == set(combinations((1, 2, 3), elements))
    # Five standard deviations of a binomial with p = 1/3.
    assert all(abs(count - steps / 3) < 5 * (steps * 2 / 9) ** 0.5 for count in counts.values())


def test_all_but_one_of_many_elements_are_drawn_without_repetition() -> None:
    calls = record(InvarianceRegularizer(D4(), 0.1, elements_per_step=6), max_epochs=20)
    images = torch.cat(
        [torch.rot90(IMAGES.flip(-1) if flip else IMAGES, k, (2, 3)) for flip in (0, 1) for k in range(4)]
    )
    for rows in calls[1::2]:
        places = [int((images == row).flatten(1).all(1).nonzero()) // 2 for row in rows[::2]]
        assert len(set(places)) == 6
        assert 0 not in places


def test_draws_follow_the_seed() -> None:
    def draws(seed: int, own: int | None = None) -> list[tuple[int, ...]]:
        calls = record(InvarianceRegularizer(C4(), 0.1, elements_per_step=1, seed=own), seed, max_epochs=12)
        return drawn(calls, IMAGES)

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert draws(1, own=5) == draws(2, own=5)
    assert draws(1, own=5) != draws(1, own=6)
    assert len(set(draws(1))) == 3  # epochs differ


def test_batches_of_an_epoch_draw_different_elements() -> None:
    seed_everything(1, verbose=False)
    module = Classifier(lambda: Recording(mlp()))
    trainer_for([InvarianceRegularizer(C4(), 0.1, elements_per_step=1)], max_epochs=1).fit(module, loader(24, 2))
    images = loader(24, 2).dataset.x.split(2)
    calls = [module.model.calls[0], *module.model.calls[2:]]  # but the look at x, run again, in the first step
    found = [drawn(calls[2 * i : 2 * i + 2], images[i])[0] for i in range(12)]
    assert len(set(found)) == 3


def test_draws_of_elements_leave_torchs_streams_alone() -> None:
    states = []
    for callbacks in ([], [InvarianceRegularizer(C4(), 0.1, elements_per_step=1), OrbitAugmentation(C4())]):
        fit(lambda: Classifier(noisy), callbacks, data=loader(shuffle=True))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
