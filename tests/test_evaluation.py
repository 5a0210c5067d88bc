"""`evaluate_invariance`: the values of the functional on the whole data, and a network left as it was."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from oracles import Symmetrised, assert_identical
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_invariance import (
    C4,
    SO3,
    Action,
    CyclicTranslations,
    FunctionAction,
    Gradient,
    PaperSaliency,
    SetPermutations,
    TimeReversal,
    evaluate_invariance,
)
from lightning_invariance import functional as f
from lightning_invariance.baselines import OrbitPooled
from lightning_invariance.metrics import Estimate

SAMPLES, SIDE, CLASSES = 23, 6, 4
SIZES = [10, 1, 12]
LI = "logit_invariance_error"
SIMILARITY = "saliency_invariance_similarity"

evaluated = partial(evaluate_invariance, progress=False)


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Softplus(),
        nn.Sequential(nn.Dropout(0.5), nn.Flatten()),
        nn.Linear(4 * (SIDE - 2) ** 2, CLASSES),
    ).double()
    network(torch.randn(16, 1, SIDE, SIDE, dtype=torch.float64))  # statistics to be kept
    return network


@pytest.fixture
def x() -> Tensor:
    return torch.randn(SAMPLES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def target() -> Tensor:
    return torch.randint(CLASSES, (SAMPLES,), generator=torch.Generator().manual_seed(2))


def pairs(x: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(SIZES), target.split(SIZES), strict=True))


def orbit_of(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    network.eval()
    with torch.no_grad():
        return network(x), torch.stack([network(torch.rot90(x, k, (-2, -1))) for k in (1, 2, 3)])


def maps_of(network: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Realigned gradients, shapes (B, ...) and (3, B, ...)."""
    maps = []
    for k in range(4):
        leaf = torch.rot90(x, k, (-2, -1)).clone().requires_grad_()
        chosen = network(leaf).gather(1, target[:, None]).sum()
        maps.append(torch.rot90(torch.autograd.grad(chosen, leaf)[0], -k, (-2, -1)))
    return maps[0], torch.stack(maps[1:])


def expected_values(network: nn.Module, x: Tensor, target: Tensor | None, explained: int = 256) -> dict[str, Tensor]:
    base, orbit = orbit_of(network, x)
    maps, orbit_maps = maps_of(network, x[:explained], (base.argmax(1) if target is None else target)[:explained])
    values = {
        LI: f.logit_invariance_error(base, orbit),
        f"normalized_{LI}": f.logit_invariance_error(base, orbit, normalize="logits"),
        f"relative_{LI}": f.relative_logit_invariance_error(base, orbit),
        "distribution_invariance_error": f.distribution_invariance_error(base, orbit),
        "jensen_shannon_invariance_error": f.jensen_shannon_invariance_error(base, orbit),
        SIMILARITY: f.saliency_invariance_similarity(maps, orbit_maps),
        "orbit_share": f.orbit_share(base, orbit),
        "prediction_consistency": f.prediction_consistency(base, orbit),
    }
    if target is not None:
        values["orbit_accuracy"] = f.orbit_accuracy(base, orbit, target)
        values["worst_case_orbit_accuracy"] = f.orbit_accuracy(base, orbit, target, worst_case=True)
    return values


def assert_values(results: dict[str, Estimate], expected: dict[str, Any]) -> None:
    assert set(results) == set(expected)
    for name, estimate in results.items():
        assert estimate.value.item() == pytest.approx(float(expected[name]), rel=1e-5, abs=1e-7), name
        assert estimate.standard_error.item() >= 0, name


@pytest.mark.parametrize(
    ("labelled", "max_batch", "way"),
    [(False, 7, "batches"), (True, None, "batches"), (True, 7, "loader"), (False, None, "loader")],
)
def test_values_are_those_of_the_whole_data(
    network: nn.Module, x: Tensor, target: Tensor, labelled: bool, max_batch: int | None, way: str
) -> None:
    if way == "loader":
        batches: Any = DataLoader(TensorDataset(*((x, target) if labelled else (x,))), batch_size=10)
    else:
        batches = pairs(x, target) if labelled else x.split(SIZES)
    results = evaluated(network, batches, C4(), saliency=Gradient(), max_batch=max_batch)
    assert_values(results, expected_values(network, x, target if labelled else None))
    base, orbit = orbit_of(network, x)
    values = 0.5 * (orbit - base).square().sum(dim=2).mean(dim=0)
    assert results[LI].standard_error.item() == pytest.approx((values.std() / SAMPLES**0.5).item(), rel=1e-5)


@pytest.mark.parametrize("explained", [0, 4, 11, 40])
def test_the_first_samples_get_maps(network: nn.Module, x: Tensor, explained: int) -> None:
    results = evaluated(network, x.split(SIZES), C4(), saliency=Gradient(), saliency_samples=explained)
    expected = expected_values(network, x, None, max(explained, 1))
    if explained == 0:
        del expected[SIMILARITY]
    assert_values(results, expected)


QUARTER_TURNS = FunctionAction(
    [(partial(torch.rot90, k=k, dims=(-2, -1)), partial(torch.rot90, k=-k, dims=(-2, -1))) for k in (1, 2, 3)]
)


@pytest.mark.parametrize("action", [C4(), QUARTER_TURNS], ids=["C4", "functions"])
def test_by_default_the_maps_are_gradients_at_dithered_inputs_whatever_the_action(
    network: nn.Module, x: Tensor, target: Tensor, action: Action
) -> None:
    results = evaluated(network, pairs(x, target), action)
    pattern = torch.randn(1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).double()
    noisy = x + 1e-3 * x.std(dim=(1, 2, 3), correction=0, keepdim=True) * pattern
    expected = expected_values(network, x, target)
    expected[SIMILARITY] = f.saliency_invariance_similarity(*maps_of(network, noisy, target))
    assert_values(results, expected)
    assert expected[SIMILARITY].item() < 0.9


def test_by_default_64_samples_get_maps(network: nn.Module) -> None:
    x = torch.randn(70, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for batch_size in (70, 30):
        results = evaluated(network, x.split(batch_size), C4(), saliency=Gradient())
        assert_values(results, expected_values(network, x, None, explained=64))


def test_the_other_measures_do_not_depend_on_the_map(network: nn.Module, x: Tensor, target: Tensor) -> None:
    options = ({"saliency_samples": 0}, {}, {"saliency_samples": 7}, {"saliency": Gradient(dither=0.5)})
    found = [evaluated(network, pairs(x, target), C4(), **each) for each in options]
    values = [{name: each.value.item() for name, each in results.items() if name != SIMILARITY} for results in found]
    assert values == [values[0]] * 4


def test_a_network_that_is_invariant_by_construction(network: nn.Module, x: Tensor) -> None:
    results = evaluated(Symmetrised(network), x.split(SIZES), C4(), saliency=PaperSaliency(steps=4))
    for name, largest in (
        (LI, 1e-20),
        (f"normalized_{LI}", 1e-20),
        (f"relative_{LI}", 1e-20),
        ("distribution_invariance_error", 1e-12),
        ("jensen_shannon_invariance_error", 1e-12),
        ("orbit_share", 1e-20),
    ):
        assert results[name].value < largest, name
    assert results[SIMILARITY].value.item() == pytest.approx(1, abs=1e-6)
    assert results["prediction_consistency"].value == 1


class DeepSets(nn.Module):
    """Invariant to the order of a set, not to anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).tanh().mean(dim=-2))


class OfDistances(nn.Module):
    """Depends on the distances of points from the origin alone."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(x.norm(dim=-1).tanh())


def perceptron(size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("make", "action", "shape"),
    [
        (lambda: OrbitPooled(perceptron(144), C4()), C4(), (1, 12, 12)),
        (lambda: OrbitPooled(perceptron(144), CyclicTranslations(3)), CyclicTranslations(3), (1, 12, 12)),
        (lambda: OrbitPooled(perceptron(12), TimeReversal()), TimeReversal(), (12,)),
        (DeepSets, SetPermutations(4), (10, 3)),
        (OfDistances, SO3(4), (10, 3)),
    ],
    ids=["C4", "translations", "time", "sets", "points"],
)
def test_by_default_the_maps_of_an_invariant_network_agree(make: Any, action: Action, shape: tuple[int, ...]) -> None:
    """No border, order or sign of the maps may make a network look at different things when it does not."""
    torch.manual_seed(0)
    results = evaluated(make().double(), [torch.randn(16, *shape, dtype=torch.float64)], action)
    assert results[LI].value < 1e-20
    assert results[SIMILARITY].value == pytest.approx(1, abs=1e-6)


# What comes in ---------------------------------------------------------------------------------------------------


def test_dense_outputs_have_logit_errors_alone_and_a_warning(x: Tensor) -> None:
    network = nn.Conv2d(1, 2, 3, padding=1).double()
    with pytest.warns(UserWarning, match="has the places that C4\\(\\) moves in the input") as warned:
        results = evaluated(network, x.split(SIZES), C4())
    assert len(warned) == 1
    base, orbit = orbit_of(network, x)
    assert_values(
        results,
        {
            LI: f.logit_invariance_error(base, orbit),
            f"normalized_{LI}": f.logit_invariance_error(base, orbit, normalize="logits"),
        },
    )


def test_targets_that_are_no_labels(x: Tensor) -> None:
    """A regression's targets allow no accuracy; the maps explain the prediction, and the other measures remain."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3)).double()
    results = evaluated(network, pairs(x, x.flatten(1)[:, :3]), C4(), saliency=Gradient())
    assert_values(results, expected_values(network, x, None))


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_where_no_gradient_is_recorded(network: nn.Module, x: Tensor, target: Tensor, context: Any) -> None:
    with context():
        results = evaluated(network, [(x.clone(), target.clone())], C4(), saliency=Gradient())
    assert_values(results, expected_values(network, x, target))


def test_progress_is_shown_on_demand(network: nn.Module, x: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_invariance(network, [x], C4(), measures=["orbit_share"], progress=False)
    assert capsys.readouterr().err == ""
    evaluate_invariance(network, [x], C4(), measures=["orbit_share"])
    assert "Invariance" in capsys.readouterr().err


# A network left as it was ----------------------------------------------------------------------------------------


class Counter(nn.Module):
    """Draws noise and writes to a buffer, whatever its mode; gives up on the third forward if it is told to."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.fails, self.calls = fails, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.fails and self.calls == 3:
            raise RuntimeError("out of patience")
        self.seen += len(x)
        return x + 0.1 * torch.randn_like(x)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("shuffle", [None, False, True])
def test_modes_buffers_streams_and_gradients_are_as_before(
    network: nn.Sequential, x: Tensor, target: Tensor, fails: bool, shuffle: bool | None
) -> None:
    """Also after an exception, and where a loader draws from torch's stream."""
    network.append(Counter(fails))
    nn.functional.cross_entropy(network(x), target).backward()
    # Some submodules in train mode, some in eval mode, children unlike their parents.
    network[1].eval()
    network[3].eval()
    network[3][0].train()

    def everything() -> dict[str, Any]:
        return {
            "modes": [module.training for module in network.modules()],
            "identities": [id(tensor) for tensor in (*network.parameters(), *network.buffers())],
            "state": {name: tensor.clone() for name, tensor in network.state_dict().items()},
            "gradients": [parameter.grad.clone() for parameter in network.parameters()],
            "streams": [torch.get_rng_state(), np.random.get_state()[1], random.getstate()],
        }

    before = everything()
    batches = x.split(SIZES) if shuffle is None else DataLoader(TensorDataset(x), batch_size=10, shuffle=shuffle)
    if fails:
        with pytest.raises(RuntimeError, match="out of patience"):
            evaluated(network, batches, C4())
    else:
        evaluated(network, batches, C4(), saliency=PaperSaliency(steps=3))
    assert_identical(everything(), before)


@pytest.mark.parametrize("mode", [False, True])
def test_the_values_are_those_of_eval_mode_and_parameters_get_no_gradient(
    network: nn.Module, x: Tensor, mode: bool
) -> None:
    network.train(mode)
    results = evaluated(network, x.split(SIZES), C4(), saliency=Gradient())
    assert all(module.training is mode for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert_values(results, expected_values(network, x, None))
