"""`evaluate_invariance`: the values of the functional on the whole data, and a network left as it was."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from oracles import assert_identical, gradient_map, measures_by_hand
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


def by_hand(
    network: nn.Module, x: Tensor, target: Tensor | None = None, explained: int | None = None
) -> dict[str, float]:
    return measures_by_hand(network, x, target, gradient_map, explained)


def assert_values(results: dict[str, Estimate], expected: dict[str, float]) -> None:
    assert set(results) == set(expected)
    for name, estimate in results.items():
        assert estimate.value.item() == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
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
    assert_values(results, by_hand(network, x, target if labelled else None))
    with torch.no_grad():
        fx, *fgx = [network(torch.rot90(x, k, (-2, -1))) for k in range(4)]
    values = 0.5 * (torch.stack(fgx) - fx).square().sum(dim=2).mean(dim=0)
    assert results[LI].standard_error.item() == pytest.approx((values.std() / SAMPLES**0.5).item(), rel=1e-5)


@pytest.mark.parametrize("explained", [0, 4, 11, 40])
def test_the_first_samples_get_maps(network: nn.Module, x: Tensor, explained: int) -> None:
    results = evaluated(network, x.split(SIZES), C4(), saliency=Gradient(), saliency_samples=explained)
    assert_values(results, by_hand(network, x, None, explained))


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
    expected = by_hand(network, x, target) | {SIMILARITY: by_hand(network, noisy, target)[SIMILARITY]}
    assert_values(results, expected)
    assert expected[SIMILARITY] < 0.9


def test_by_default_64_samples_get_maps(network: nn.Module) -> None:
    x = torch.randn(70, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for batch_size in (70, 30):
        results = evaluated(network, x.split(batch_size), C4(), saliency=Gradient())
        assert_values(results, by_hand(network, x, None, 64))


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


def test_targets_that_are_no_labels(x: Tensor) -> None:
    """Those of a regression leave its own measures; probabilities leave all but accuracies."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3)).double()
    results = evaluated(network, pairs(x, x.flatten(1)[:, :3]), C4(), saliency=Gradient())
    with torch.no_grad():
        fx, *fgx = [network(torch.rot90(x, k, (-2, -1))) for k in range(4)]
    relative = (torch.stack(fgx) - fx).norm(dim=2) / fx.norm(dim=1)
    expected = {name: value for name, value in by_hand(network, x).items() if "logit" in name}
    assert_values(results, expected | {"relative_equivariance_error": float(relative.mean())})
    results = evaluated(network, pairs(x, x.flatten(1)[:, :3].softmax(dim=1)), C4(), saliency=Gradient())
    assert_values(results, by_hand(network, x))


def test_where_no_gradient_is_recorded(network: nn.Module, x: Tensor, target: Tensor) -> None:
    with torch.inference_mode():
        results = evaluated(network, [(x.clone(), target.clone())], C4(), saliency=Gradient())
    assert_values(results, by_hand(network, x, target))


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
    assert_values(results, by_hand(network, x))
