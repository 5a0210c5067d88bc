"""Networks whose break is known by construction: the layer is named."""

from __future__ import annotations

import pytest
import torch
from layers_networks import (
    BROKEN,
    C4,
    Block,
    Lifting,
    OverPoses,
    PlaceBias,
    Regular,
    S,
    Twice,
    head,
    images,
    symmetric,
)
from torch import nn

import lightning_invariance as li
from lightning_invariance import evaluate_layers


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(1)


@pytest.mark.parametrize("name", BROKEN)
def test_the_layer_that_breaks_is_named(name):
    network, x, action, expected = BROKEN[name]()
    results = evaluate_layers(network.eval(), x.split(12), action, progress=False)
    assert results.breaks_at == expected
    before = [row for row in (*results.rows, *results.between) if row.depth < results.break_row.depth]
    assert not any(row.is_broken for row in before)
    assert results.break_row.error.value > 1e-3


EXACT = {
    "plain channels": lambda: S(symmetric(2, 8), nn.ReLU(), nn.MaxPool2d(2), symmetric(8, 8), *head(8)),
    "poses": lambda: S(Lifting(2, 3), nn.ReLU(), Regular(3, 3), nn.ReLU(inplace=True), OverPoses(), nn.Linear(3, 5)),
    "branches": lambda: S(symmetric(2, 4), Block(4), Block(4), nn.AvgPool2d(2), *head(4)),
    "pixels": lambda: S(nn.Flatten(), nn.Tanh(), nn.Unflatten(1, (2, 8, 8)), symmetric(2, 4)),
    "a norm with channels last": lambda: S(symmetric(2, 4), Permuted(nn.LayerNorm(4)), symmetric(4, 4), *head(4)),
}


class Permuted(nn.Module):
    """Channels last and back, as ConvNeXt has them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", EXACT)
def test_an_exact_network_does_not_break(name, dtype):
    network = EXACT[name]().to(dtype).eval()
    results = evaluate_layers(network, images().to(dtype).split(12), C4, progress=False)
    assert results.breaks_at is None
    assert not any(row.error.value.isnan() for row in results.rows)
    if dtype is not torch.bfloat16:
        assert all(row.error.value < 1e-10 for row in results.rows)


def test_every_layer_of_a_stack_is_named_when_it_is_the_one_that_breaks():
    for place in (0, 2, 4):
        layers = [symmetric(2, 4), nn.ReLU(), symmetric(4, 4), nn.ReLU(), symmetric(4, 4), *head(4)]
        layers[place] = nn.Conv2d(2 if place == 0 else 4, 4, 3, padding=1)
        assert evaluate_layers(S(*layers).eval(), [images()], C4, progress=False).breaks_at == str(place)


class TestTraining:
    """Half of each batch is moved, and the others keep it company."""

    def test_batch_normalisation_of_pixels_couples_samples(self):
        network = S(nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(128))
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        assert evaluate_layers(network, [images()], C4, progress=False).breaks_at is None
        results = evaluate_layers(network, [images()], C4, training=True, progress=False)
        assert results.breaks_at == "2"
        assert results.samples == 12
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in network.named_buffers())

    def test_batch_normalisation_of_maps_sees_the_same_values_wherever_they_are(self):
        network = S(symmetric(2, 4), nn.BatchNorm2d(4), nn.ReLU(), *head(4))
        assert evaluate_layers(network, [images()], C4, training=True, progress=False).breaks_at is None

    def test_batch_normalisation_undoes_a_change_of_contrast(self):
        double = li.FunctionAction([(lambda x: 2 * x, lambda x: x / 2)])
        network = S(nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4))
        assert evaluate_layers(network, [images()], double, progress=False).breaks_at is None
        assert evaluate_layers(network, [images()], double, training=True, progress=False).breaks_at == "1"

    @pytest.mark.parametrize("make", [lambda: nn.Dropout2d(0.5), lambda: nn.Dropout(0.5)])
    def test_dropout_is_random(self, make):
        network = S(symmetric(2, 8), nn.AdaptiveAvgPool2d(4), make(), *head(8))
        assert evaluate_layers(network, [images()], C4, progress=False).breaks_at is None
        state = torch.get_rng_state()
        assert evaluate_layers(network, [images()], C4, training=True, progress=False).breaks_at == "2"
        assert torch.equal(torch.get_rng_state(), state)


class TestInterpolation:
    def test_the_floor_is_what_moving_there_and_back_does(self):
        smooth = torch.nn.functional.interpolate(images(4), size=(16, 16), mode="bilinear")
        action = li.Rotations(8)
        network = S(nn.Conv2d(2, 4, 1), nn.Tanh(), PlaceBias(4, 16, 16))
        results = evaluate_layers(network, [smooth], action, progress=False)
        assert results.breaks_at == "2"
        assert results.rows[0].floor > 1e-4
        # A 1 × 1 convolution commutes with a linear interpolation: brought back, it is the input there and back.
        assert 0 < results.rows[0].error.value < results.rows[0].floor

    def test_places_out_of_sight_are_left_out(self):
        """An enlarged image loses its border: what is inside comes back."""
        ramp = torch.linspace(-1, 1, 16)
        x = torch.randn(12, 1, 1, 1) + torch.randn(12, 1, 1, 1) * ramp[:, None] + torch.randn(12, 1, 1, 1) * ramp
        results = evaluate_layers(nn.Identity(), [x], li.Scalings([2.0]), layer_actions={"": "same"}, progress=False)
        assert results.rows[0].equivariance.value < 1e-10
        assert results.rows[0].invariance.value > 1e-2


def test_a_layer_of_its_own_resolution_and_one_that_is_told_how_it_moves():
    """Tokens of a 4 × 4 grid: the network is equivariant, which is to be said for each layer of tokens."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.mix = nn.Conv2d(2, 70, 2, 2), nn.Linear(70, 70)
            average = sum(torch.rot90(self.patches.weight.detach(), turns, (-2, -1)) for turns in range(4)) / 4
            self.patches.weight.data = average

        def forward(self, x):
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            return self.mix(tokens).mean(dim=1)

    network = Tokens()
    plain = evaluate_layers(network, [images()], C4, progress=False)
    assert plain.rows[1].error.value.isnan()  # 16 tokens of 70 values are too many to be matched
    assert "1,120 features are not matched" in plain.rows[1].note
    assert plain.breaks_at is None
    grid = torch.arange(16).reshape(1, 4, 4)
    tables = torch.stack([torch.rot90(grid, turns, (-2, -1)).flatten() for turns in range(4)])
    turned = li.FunctionAction(
        [(lambda x, t=t: x[:, t], lambda x, t=t: x[:, t.argsort()]) for t in tables[1:]], labels=C4.labels[1:]
    )
    told = evaluate_layers(network, [images()], C4, layer_actions={"mix": turned}, progress=False)
    assert told.rows[1].equivariance.value < 1e-11
    assert told.breaks_at is None
    wrong = evaluate_layers(network, [images()], C4, layer_actions={"mix": None}, max_channels=0, progress=False)
    assert wrong.rows[1].equivariance.value.isnan()


def test_the_second_call_of_a_layer_is_a_row_of_its_own():
    network = S(Twice(nn.MaxPool2d(2), symmetric(2, 2)), *head(2))
    results = evaluate_layers(network, [images(10)], C4, progress=False)
    assert [(row.name, row.call) for row in results.rows[:3]] == [("0.layer", 0), ("0.between", 0), ("0.layer", 1)]
    assert (results.break_row.name, results.break_row.call) == ("0.layer", 1)
    assert results.break_row.inputs == results.rows[1].error.value


def test_code_between_layers_is_said_to_be_that():
    network, x, action, _ = BROKEN["code between layers"]()
    results = evaluate_layers(network, [x], action, progress=False)
    assert results.break_row in results.between
    assert "before '1.after'" in results.break_row.note
    assert "The code of 1, before '1.after', breaks" in results.in_words()
    assert "1 (before '1.after') ← breaks" in str(results)
