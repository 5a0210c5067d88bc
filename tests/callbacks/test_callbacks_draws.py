"""Which elements a step draws and how often it runs the network; and that what is measured was never trained."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from typing import Any

import pytest
import torch
from helpers import fit, loader, seed_all, trainer_for
from lightning.pytorch import LightningModule
from oracles import WEIGHT, Classifier, mlp, noisy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.growth import peak_memory
from benchmarks.pairs import Setting
from lightning_invariance import (
    C4,
    D4,
    O3,
    SO2,
    SO3,
    Action,
    InvarianceMonitor,
    InvarianceRegularizer,
    OrbitAugmentation,
    Rotations,
    ScalingRange,
    SensitivityMonitor,
    SetPermutations,
    evaluate_invariance,
)
from lightning_invariance.callbacks import WeightRamp

LI = "logit_invariance_error"

# A list of elements ----------------------------------------------------------------------------------------------

IMAGES = loader(2, 2).dataset.x


class Recording(nn.Module):
    """Keeps the rows that it is called with."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(x.detach().clone())
        return self.network(x)


def record(
    regularizer: InvarianceRegularizer, batches: int = 1, epochs: int = 1, seed: int = 1, network: Any = mlp
) -> list[Tensor]:
    """All calls of the network in a training on so many batches of the same two images.

    But for the one in which the first step with a term looks whether the network, run again, gives the same.
    """
    seed_all(seed)
    module = Classifier(lambda: Recording(network()), lr=0.01)
    data = TensorDataset(IMAGES.repeat(batches, 1, 1, 1), torch.zeros(2 * batches, dtype=torch.int64))
    trainer_for([regularizer], max_epochs=epochs).fit(module, DataLoader(data, batch_size=2))
    calls = module.model.calls
    looks = 1 if not callable(regularizer.weight) else 2
    assert torch.equal(calls[looks][:2], calls[looks - 1])
    return [*calls[:looks], *calls[looks + 1 :]]


def drawn(*args: Any, **options: Any) -> list[tuple[int, ...]]:
    """The rotations that each step ran besides the batch itself."""
    steps: list[list[int]] = []
    for rows in record(*args, **options):
        for pair in rows.split(2):
            (k,) = [k for k in range(4) if torch.equal(pair, torch.rot90(IMAGES, k, (2, 3)))]
            if k == 0:
                steps.append([])
            else:
                steps[-1].append(k)
    return [tuple(sorted(step)) for step in steps]


@pytest.mark.parametrize(
    ("network", "elements", "rows"),
    [(mlp, None, [2, 6]), (mlp, 1, [2, 2]), (noisy, None, [2, 2, 2, 2]), (noisy, 2, [2, 2, 2])],
)
def test_a_step_costs_as_many_extra_rows_as_there_are_elements(
    network: Any, elements: int | None, rows: list[int]
) -> None:
    """In one forward, but for networks whose samples depend on each other."""
    calls = record(InvarianceRegularizer(C4(), 0.1, elements_per_step=elements), 3, network=network)
    assert [len(each) for each in calls] == 3 * rows
    assert torch.equal(calls[0], IMAGES)


def test_a_weight_of_zero_costs_nothing() -> None:
    calls = record(InvarianceRegularizer(C4(), WeightRamp(0.0, 1.0, steps=2)), 3)
    assert [len(rows) for rows in calls] == [2, 2, 6, 2, 6]


def test_max_batch_bounds_the_rows_of_each_extra_forward() -> None:
    calls = record(InvarianceRegularizer(C4(), 0.1, max_batch=4))
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
        module, data = Classifier(wide), loader(64, 64)
        setting = Setting(torch.device("cpu"), quick=True)
        return peak_memory(lambda: trainer_for([regularizer], max_epochs=1).fit(module, data), setting)

    growth = peak(16, None) - peak(4, None)
    assert peak(16, 64) - peak(4, 64) < 0.05 * growth


@pytest.mark.parametrize("elements", [1, 2])
def test_every_set_of_elements_is_drawn_equally_often(elements: int) -> None:
    steps = 120
    counts = Counter(drawn(InvarianceRegularizer(C4(), 0.1, elements_per_step=elements), steps // 2, 2))
    assert set(counts) == set(combinations((1, 2, 3), elements))
    # Five standard deviations of a binomial with p = 1/3.
    assert all(abs(count - steps / 3) < 5 * (steps * 2 / 9) ** 0.5 for count in counts.values())


def test_all_but_one_of_many_elements_are_drawn_without_repetition() -> None:
    calls = record(InvarianceRegularizer(D4(), 0.1, elements_per_step=6), 20)
    images = torch.cat(
        [torch.rot90(IMAGES.flip(-1) if flip else IMAGES, k, (2, 3)) for flip in (0, 1) for k in range(4)]
    )
    for rows in calls[1::2]:
        places = [int((images == row).flatten(1).all(1).nonzero()) // 2 for row in rows[::2]]
        assert len(set(places)) == 6
        assert 0 not in places


def test_draws_follow_the_seed_and_leave_torchs_streams_alone() -> None:
    def draws(seed: int, own: int | None = None, batches: int = 1, epochs: int = 12) -> list[tuple[int, ...]]:
        return drawn(InvarianceRegularizer(C4(), 0.1, elements_per_step=1, seed=own), batches, epochs, seed)

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert draws(1, own=5) == draws(2, own=5)
    assert draws(1, own=5) != draws(1, own=6)
    assert len(set(draws(1))) == len(set(draws(1, batches=12, epochs=1))) == 3  # epochs and batches differ
    states = []
    for callbacks in ([], [InvarianceRegularizer(C4(), 0.1, elements_per_step=1), OrbitAugmentation(C4())]):
        fit(lambda: Classifier(noisy), callbacks, data=loader(shuffle=True))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


# Groups that go on for ever --------------------------------------------------------------------------------------


class Cloud(LightningModule):
    """A perceptron on five points in space; what its step was given, and what its network was."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.rate = rate
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(15, 16), nn.Tanh(), nn.Linear(16, 3))
        self.seen: list[Tensor] = []
        self.given: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.given.append(x.detach().clone())
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch.clone())
        return (self(batch) - batch.square().sum((1, 2))[:, None] / 15).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def clouds(count: int = 12, batch_size: int = 4, seed: int = 0) -> DataLoader[Any]:
    points = torch.randn(count, 5, 3, generator=torch.Generator().manual_seed(seed))
    return DataLoader(list(points), batch_size=batch_size)


def test_every_sample_of_every_step_gets_a_rotation_of_its_own() -> None:
    module = fit(Cloud, [OrbitAugmentation(SO3(2))], data=clouds(), max_epochs=3)
    x = torch.cat(list(clouds())).repeat(3, 1, 1)
    # The matrix that took each cloud's points to where they are, by least squares.
    found = torch.linalg.lstsq(x.double(), torch.cat(module.seen).double()).solution.mT
    identity = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(found @ found.mT, identity.expand_as(found), atol=1e-4)
    assert torch.allclose(torch.linalg.det(found), torch.ones(len(found), dtype=torch.float64), atol=1e-4)
    assert len({tuple(row) for row in found.flatten(1).mul(1e4).round().tolist()}) == len(found) == 36
    assert not torch.isclose(found, identity, atol=1e-3).flatten(1).all(1).any()
    # Uniform: the trace of a rotation of space has mean 0 and variance 1.
    traces = found.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(float(traces.mean())) < 4 / math.sqrt(len(traces))


def test_draws_go_on_after_a_checkpoint(tmp_path: Any) -> None:
    def draws(epochs: int, resume: Any = None, save: bool = False) -> list[Tensor]:
        seed_all()
        module = Cloud()
        trainer = trainer_for([OrbitAugmentation(SO3(2))], max_epochs=epochs)
        trainer.fit(module, clouds(), ckpt_path=resume)
        if save:
            trainer.save_checkpoint(tmp_path / "half.ckpt")
        return module.seen

    first = draws(1, save=True)
    assert torch.equal(torch.cat(draws(2)), torch.cat(first + draws(2, resume=tmp_path / "half.ckpt")))


@pytest.mark.parametrize("action", [O3(2), SO3(2) * SetPermutations(2)], ids=repr)
def test_the_penalty_is_of_elements_drawn_in_this_step(action: Action) -> None:
    module = fit(Cloud, [InvarianceRegularizer(action, WEIGHT)], data=clouds(4), max_epochs=3)
    # In each step the network's own call on x, and one on all elements but the identity.
    x = next(iter(clouds(4)))
    moved = [each for each in module.given if len(each) > 4]
    assert torch.equal(moved[0][:4], x)  # the first step looks whether x, run again, gives the same
    moved = moved[1:]
    assert len(moved) == 3
    assert all(len(each) == 4 * (len(action) - 1) for each in moved)
    for one, other in combinations([*moved, action.orbit(x)[1:].flatten(0, 1)], 2):
        assert not torch.allclose(one, other, atol=1e-3)


def test_a_group_that_is_no_draw_is_used_as_it_is() -> None:
    assert not Rotations(8).drawn
    for action in (C4(), Rotations(8)):
        assert InvarianceRegularizer(action, WEIGHT).action == InvarianceMonitor(action).action == action


@pytest.mark.parametrize(
    "action", [SO3(3), O3(3), SO2(3), ScalingRange(0.5, 2.0, 3), SetPermutations(3), C4() * SO2(3)], ids=repr
)
def test_monitors_measure_one_list_that_no_training_draws(action: Action) -> None:
    measured = InvarianceMonitor(action).action
    assert type(measured) is type(action)
    assert len(measured) == len(action)
    assert measured != action
    assert measured == InvarianceMonitor(action).action == SensitivityMonitor(action).action
    # Other seeds, other lists.
    assert InvarianceMonitor(action.redrawn(1)).action != measured


def test_records_say_which_elements_were_measured() -> None:
    seed_all(0)
    module, data = Cloud(), clouds(8)
    monitor = InvarianceMonitor(SO3(4), measures=[LI])
    trainer_for([monitor], max_epochs=2).fit(module, clouds(), data)
    first, last = monitor.history
    assert first.action == last.action == monitor.action
    assert f"SO3(samples=4, seed={last.action.seed}, dim=-1)" == repr(last.action)
    with torch.no_grad():
        orbit = module(SO3(4, seed=last.action.seed).orbit(torch.cat(list(data))).flatten(0, 1)).unflatten(0, (-1, 8))
    expected = pytest.approx(float((orbit[1:] - orbit[0]).square().sum(-1).mean() / 2), rel=1e-5)
    results = evaluate_invariance(module, data, SO3(4), measures=[LI], progress=False)
    assert results.action == last.action
    for measures in (last.measures, results):
        assert float(measures[LI].value) == expected


def test_a_network_trained_on_one_rotation_a_step_is_measured_as_fresh_rotations_measure_it() -> None:
    """With a fixed list the trained rotation has a lower error than the others: the monitor must not be fooled."""
    val = next(iter(clouds(64, 64, seed=5)))

    def train(action: Action) -> tuple[Cloud, InvarianceMonitor]:
        seed_all(3)
        module = Cloud(rate=0.05)
        monitor = InvarianceMonitor(SO3(24), measures=[LI], every_n_epochs=10)
        trainer = trainer_for([InvarianceRegularizer(action, 3.0), monitor], max_epochs=10, num_sanity_val_steps=0)
        trainer.fit(module, clouds(256, 16, seed=4), clouds(64, 64, seed=5))
        return module, monitor

    def independent(module: Cloud) -> tuple[float, float]:
        """LI on 200 rotations from another generator, and its standard error over them."""
        q = torch.linalg.qr(torch.randn(200, 3, 3, generator=torch.Generator().manual_seed(77)).double())[0]
        q = q * torch.linalg.det(q)[:, None, None]
        with torch.no_grad():
            fx = module(val)
            errors = torch.stack([(module((val.double() @ r.mT).float()) - fx).square().sum(1).mean() / 2 for r in q])
        return float(errors.mean()), float(errors.std() / math.sqrt(len(errors)))

    module, monitor = train(SO3(1))
    value, error = monitor.history[-1].measures[LI]
    expected, spread = independent(module)
    # 24 rotations spread the measured value over draws of the group as the independent ones tell.
    over_rotations = spread * math.sqrt(200 / 24)
    assert abs(float(value) - expected) < 3 * math.hypot(float(error), spread, over_rotations)

    # What the test would miss otherwise: a single rotation, trained throughout and measured too.
    class Fixed(SO3):
        @property
        def drawn(self) -> bool:
            return False

    memorised, _ = train(Fixed(1))
    with torch.no_grad():
        trained = float((memorised(Fixed(1).act(val, 1)) - memorised(val)).square().sum(1).mean() / 2)
    assert trained < 0.7 * independent(memorised)[0]
