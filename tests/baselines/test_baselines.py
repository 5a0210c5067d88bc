"""Networks tied over a group are invariant, and are what they say they are."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from lightning_invariance import C4, D4, SO2, CyclicTranslations, evaluate_invariance
from lightning_invariance.baselines import OrbitPooled, TiedFirstLayerMLP


def perceptron(features: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, 5))


def tied(action, pool: str = "max"):
    return TiedFirstLayerMLP(action, (2, 12, 12), num_classes=4, hidden=(32, 16), pool=pool).double()


@pytest.mark.parametrize(
    ("action", "pool"),
    [(C4(), "max"), (D4(), "mean"), (CyclicTranslations(4, dim=-2), "max")],
)
def test_over_the_orbit_nothing_moves(action, pool):
    torch.manual_seed(0)
    inner = perceptron(288).double()
    x = torch.randn(3, 2, 12, 12, dtype=torch.float64)
    for network in (OrbitPooled(inner, action, pool), tied(action, pool)):
        reference = network(x)
        assert reference.std() > 1e-3
        for element in range(1, len(action)):
            torch.testing.assert_close(network(action.act(x, element)), reference, atol=1e-12, rtol=0)
    assert (inner(x) - inner(action.act(x, 1))).abs().max() > 1e-3


def test_orbit_pooling_is_the_mean_of_single_forwards():
    inner = perceptron(64).double()
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    turned = [inner(torch.from_numpy(np.rot90(x.numpy(), k, axes=(-2, -1)).copy())) for k in range(4)]
    torch.testing.assert_close(OrbitPooled(inner, C4())(x), sum(turned) / 4)
    torch.testing.assert_close(OrbitPooled(inner, C4(), pool="max")(x), torch.stack(turned).max(dim=0).values)


def test_tied_first_layer_is_a_perceptron_with_rotated_rows():
    """The rows of an explicit first layer: every row of the tied weight in every pose, the maximum over poses taken."""
    network = TiedFirstLayerMLP(C4(), (1, 6, 6), num_classes=3, hidden=(8, 8)).double()
    x = torch.randn(5, 1, 6, 6, dtype=torch.float64)
    weight, bias = network.tied.weight.detach().numpy().reshape(8, 6, 6), network.tied.bias.detach().numpy()
    responses = [np.einsum("bij,kij->bk", x.numpy()[:, 0], np.rot90(weight, -k, axes=(1, 2))) + bias for k in range(4)]
    pooled = np.maximum(np.stack(responses), 0).max(axis=0)
    torch.testing.assert_close(network(x), network.head(torch.from_numpy(pooled)))


def test_tied_first_layer_has_the_paper_s_parameter_count():
    network = TiedFirstLayerMLP(CyclicTranslations(3), (1, 36, 36), num_classes=9)
    widths = [36 * 36, 128, 128, 128, 128, 128, 9]
    expected = sum(a * b + b for a, b in itertools.pairwise(widths))
    assert sum(parameter.numel() for parameter in network.parameters()) == expected == 233225


@pytest.mark.parametrize(
    "build", [lambda: OrbitPooled(perceptron(64), C4()), lambda: TiedFirstLayerMLP(C4(), (1, 8, 8), 5)]
)
def test_state_pickle_and_copy(build):
    network, x = build(), torch.randn(2, 1, 8, 8)
    expected = network(x)
    assert all(isinstance(value, torch.Tensor) for value in network.state_dict().values())
    other = build()
    other.load_state_dict(network.state_dict())
    for same in (other, pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(same(x), expected)


def test_every_measure_knows_an_invariant_network():
    network = OrbitPooled(perceptron(64).double(), C4())
    results = evaluate_invariance(
        network, torch.randn(40, 1, 8, 8, dtype=torch.float64).split(16), C4(), progress=False
    )
    for name in (
        "logit_invariance_error",
        "distribution_invariance_error",
        "jensen_shannon_invariance_error",
        "orbit_share",
    ):
        assert results[name].value < 1e-12, name
    assert results["prediction_consistency"].value == 1
    assert results["saliency_invariance_similarity"].value == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OrbitPooled(perceptron(64), SO2(4)), "list all elements of a group"),
        (lambda: OrbitPooled(perceptron(64), C4() * CyclicTranslations(2)), "list all elements of a group"),
        (lambda: OrbitPooled(perceptron(64), C4(), pool="sum"), "`pool` to be one of"),
        (lambda: TiedFirstLayerMLP(CyclicTranslations(3), (1, 8, 8), 5), "6 or 9 would work"),
        (lambda: TiedFirstLayerMLP(C4(), (1, 8, 8), 5, pool="sum"), "`pool` to be one of"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
