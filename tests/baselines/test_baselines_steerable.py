"""Convolutional networks tied over a group of the plane are exactly invariant to the part that a pixel grid has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_invariance import C4, D4

pytest.importorskip("escnn.nn", exc_type=ImportError)

from lightning_invariance.baselines import SteerableClassifier

GROUPS = ["C4", "D4", "C8", "SO2"]
LATTICE = {"C4": C4(), "D4": D4(), "C8": C4(), "SO2": C4()}
SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 27, 28, 29, 30, 31, 32, 33]


def build(group: str, size: int = 12, dtype: torch.dtype = torch.float32, seed: int = 0, **options: int) -> nn.Module:
    """A network whose running statistics are no longer those it was made with."""
    torch.manual_seed(seed)
    network = SteerableClassifier(group, in_channels=2, num_classes=5, image_size=size, **{"width": 2, **options})
    network = network.to(dtype)
    with torch.no_grad():
        for _ in range(2):
            network(1 + torch.randn(16, 2, size, size, dtype=dtype))
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("group", GROUPS)
def test_turned_images_have_the_same_logits_at_every_size(group, training, dtype, tolerance):
    action = LATTICE[group]
    for size in SIZES:
        network = build(group, size, dtype).train(training)
        x = torch.randn(6, 2, size, size, dtype=dtype)
        with torch.no_grad():
            logits = network(x)
            assert logits.std() > 1e-3
            for element in range(1, len(action)):
                error = (network(action.act(x, element)) - logits).abs().max()
                assert error < tolerance * logits.std(), (size, element)


@pytest.mark.parametrize("group", ["C4", "C8", "SO2"])
def test_a_group_without_flips_sees_them(group):
    network, x = build(group).eval(), torch.randn(6, 2, 12, 12)
    with torch.no_grad():
        assert (network(x.flip(-1)) - network(x)).abs().max() > 0.01 * network(x).std()


@pytest.mark.parametrize("group", GROUPS)
def test_it_learns(group):
    """Two textures that no turn takes to one another."""
    torch.manual_seed(0)
    x = torch.randn(64, 1, 12, 12)
    y = torch.arange(64) % 2
    x[y == 1] = nn.functional.avg_pool2d(x[y == 1], 3, stride=1, padding=1)
    network = SteerableClassifier(group, 1, 2, 12, width=2, depth=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        optimizer.step()
    assert (network.eval()(x).argmax(1) == y).float().mean() > 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": "C3"}, "Expected `group` to be one of"),
        ({"group": C4()}, "Expected `group` to be one of"),
        ({"in_channels": 0}, "Expected `in_channels` to be an integer"),
        ({"num_classes": 2.0}, "Expected `num_classes` to be an integer"),
        ({"image_size": (28, 28)}, "Expected `image_size` to be an integer"),
        ({"width": 0}, "Expected `width` to be an integer"),
        ({"depth": True}, "Expected `depth` to be an integer"),
    ],
)
def test_errors_when_built(arguments, message):
    with pytest.raises(ValueError, match=message):
        SteerableClassifier(**{"group": "C4", "in_channels": 1, "num_classes": 2, "image_size": 8, **arguments})


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 2, 12, 13),
        torch.randn(2, 2, 13, 13),
        torch.randn(2, 1, 12, 12),
        torch.randn(2, 12, 12),
        torch.zeros(2, 2, 12, 12, dtype=torch.uint8),
        "x",
    ],
)
def test_errors_when_called(x):
    with pytest.raises(ValueError, match=r"Expected `x` to be floating point of shape \(B, 2, 12, 12\) but got"):
        build("C4")(x)
