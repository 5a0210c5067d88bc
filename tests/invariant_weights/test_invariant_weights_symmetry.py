"""Which weights a group fixes: held to the networks themselves in double precision, and to closed forms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import permutations, product
from typing import Any

import pytest
import torch
from invariant_weights_networks import (
    IMAGE_NETWORKS,
    MAP_NETWORKS,
    Residual,
    Segmenting,
    circular,
    perceptron,
    sensors,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lightning_invariance import (
    C4,
    D4,
    SO3,
    Action,
    CyclicTranslations,
    FunctionAction,
    HorizontalFlip,
    LinearAction,
    PermutationAction,
    Rotations,
    SetPermutations,
    TimeReversal,
    symmetrize,
)
from lightning_invariance.symmetry import _rules, register_rule

pytestmark = pytest.mark.filterwarnings("ignore:Few fields")

C3 = PermutationAction(torch.tensor([[0, 1, 2, 3, 4, 5], [2, 0, 1, 5, 3, 4], [1, 2, 0, 4, 5, 3]]))
C3_CLASSES = PermutationAction(torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0]]))


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """A network whose normalisations are not those of a fresh one, in which all channels are alike."""
    torch.manual_seed(0)
    network = make().eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


def noise(*sizes: int) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def error(network: nn.Module, x: Tensor, act: Any, back: Any = None) -> float:
    """max |back f(gx) - f(x)| over max |f(x)|, in double precision."""
    network, x = network.double(), x.double()
    base = network(x)
    moved = network(act(x))
    return float(((moved if back is None else back(moved)) - base).abs().max() / base.abs().max())


def quarter(x: Tensor) -> Tensor:
    return torch.rot90(x, 1, (-2, -1))


def flipped(x: Tensor) -> Tensor:
    return x.flip(-1)


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_projected_networks_are_invariant_and_other_ones_are_not(name: str) -> None:
    network, x = made(IMAGE_NETWORKS[name]), noise(3, 3, 16, 16)
    symmetry = symmetrize(network, D4(), x)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert error(made(IMAGE_NETWORKS[name]), x, quarter) > 1e-4
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    symmetry.project_(keep_norms=True)
    assert symmetry.asymmetry() < 1e-7
    assert symmetry.check() is None
    for key, parameter in network.named_parameters():
        assert float(parameter.detach().norm()) == pytest.approx(float(before[key].norm()), rel=1e-5)
    assert error(network, x, quarter) < 1e-12
    assert error(network, x, flipped) < 1e-12
    # Not by having lost everything: samples differ as much as before.
    with torch.no_grad():
        spread = network(x.double()).std(dim=0).mean()
        assert spread > 0.05 * made(IMAGE_NETWORKS[name])(x).std(dim=0).mean()


@pytest.mark.parametrize("name", MAP_NETWORKS)
def test_maps_move_with_the_input(name: str) -> None:
    network, x = made(MAP_NETWORKS[name]), noise(2, 3, 16, 16)
    symmetrize(network, C4(), x, output_action="same").project_()
    assert error(network, x, quarter, lambda y: torch.rot90(y, -1, (-2, -1))) < 1e-12
    assert error(network, x, quarter) > 1e-3


@pytest.mark.parametrize(
    ("make", "action", "x", "act", "back"),
    [
        pytest.param(sensors, TimeReversal(), noise(3, 4, 32), flipped, None, id="reversed sensors"),
        pytest.param(circular, CyclicTranslations(4), noise(3, 1, 16, 16), lambda x: x.roll(4, -1), None, id="shifted"),
        pytest.param(
            circular,
            CyclicTranslations(4) * HorizontalFlip(),
            noise(3, 1, 16, 16),
            lambda x: x.flip(-1).roll(8, -1),
            None,
            id="shifted and flipped",
        ),
        pytest.param(
            circular,
            CyclicTranslations(2, dim=-2) * CyclicTranslations(4),
            noise(3, 1, 16, 16),
            lambda x: x.roll((8, 4), (-2, -1)),
            None,
            id="shifted both ways",
        ),
        pytest.param(
            lambda: perceptron(64),
            CyclicTranslations(4),
            noise(3, 1, 8, 8),
            lambda x: x.roll(2, -1),
            None,
            id="shifted perceptron",
        ),
        pytest.param(lambda: perceptron(6), C3, noise(3, 6), lambda x: x[:, [2, 0, 1, 5, 3, 4]], None, id="listed"),
        pytest.param(
            lambda: perceptron(6, 3),
            C3,
            noise(3, 6),
            lambda x: x[:, [2, 0, 1, 5, 3, 4]],
            lambda y: y[:, [1, 2, 0]],
            id="classes exchanged",
        ),
        pytest.param(
            lambda: perceptron(64),
            FunctionAction([(lambda x: x.transpose(-2, -1), lambda x: x.transpose(-2, -1))], places=(-2, -1)),
            noise(3, 1, 8, 8),
            lambda x: x.transpose(-2, -1),
            None,
            id="transposed by a function",
        ),
        pytest.param(lambda: perceptron(64), Rotations(4), noise(3, 1, 8, 8), quarter, None, id="exact rotations"),
    ],
)
def test_other_groups(make: Any, action: Action, x: Tensor, act: Any, back: Any) -> None:
    network = made(make)
    output_action = C3_CLASSES if back is not None else None
    symmetrize(network, action, x, output_action=output_action).project_()
    assert error(network, x, act, back) < 1e-12
    with torch.no_grad():
        assert float(network(x.double()).std(dim=0).min()) > 1e-5


def test_kernels_move_as_the_equation_says() -> None:
    # (gK)[o, r; i, s] = rot_g K[o, r - g; i, s - g], and the mean over g, written out.
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 12, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(*network, nn.Linear(12, 2))
    first, second, head = (network[place].weight.detach().clone() for place in (0, 1, 4))
    bias = network[1].bias.detach().clone()
    symmetrize(network, C4(), noise(2, 1, 9, 9)).project_()
    for o, r, i, s in product(range(3), range(4), range(2), range(4)):
        turned = [torch.rot90(second[4 * o + (r - g) % 4, 4 * i + (s - g) % 4], g) for g in range(4)]
        assert torch.allclose(network[1].weight[4 * o + r, 4 * i + s], sum(turned) / 4, atol=1e-7)
    for o, r in product(range(2), range(4)):
        turned = [torch.rot90(first[4 * o + (r - g) % 4, 0], g) for g in range(4)]
        assert torch.allclose(network[0].weight[4 * o + r, 0], sum(turned) / 4, atol=1e-7)
    assert torch.allclose(network[1].bias, bias.view(3, 4).mean(1).repeat_interleave(4), atol=1e-7)
    assert torch.allclose(network[4].weight, head.view(2, 3, 4).mean(2).repeat_interleave(4, 1), atol=1e-7)


def shifted_reader() -> nn.Sequential:
    """Reads its outputs off each of 4×4 places."""
    first, second = (nn.Conv2d(*pair, 3, padding=1, padding_mode="circular") for pair in ((1, 8), (8, 12)))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12 * 16, 2))


def test_shifts_leave_convolutions_and_what_they_make_as_they_are() -> None:
    # A convolution commutes with shifts whatever its kernel is: what has to change is the layer that reads off places.
    network, x = shifted_reader(), noise(3, 1, 8, 8)
    kept = {key: value.clone() for key, value in network.state_dict().items()}
    symmetry = symmetrize(network, CyclicTranslations(4), x)
    symmetry.project_()
    for key in ("0.weight", "0.bias", "2.weight", "2.bias"):
        assert torch.equal(network.state_dict()[key], kept[key])
    means = kept["6.weight"].view(2, 12, 4, 4).mean(3, keepdim=True).expand(2, 12, 4, 4)
    torch.testing.assert_close(network[6].weight.view(2, 12, 4, 4), means)
    assert error(network, x, lambda y: y.roll(2, -1)) < 1e-12
    assert error(network, x, lambda y: y.roll(2, -2)) > 1e-3
    assert symmetry.fields_in_words() == "8 channels are 8 trivial, 12 channels are 12 trivial"


def test_of_shifts_and_flips_channels_need_the_poses_that_flips_make() -> None:
    network, x = shifted_reader(), noise(3, 1, 8, 8)
    kernel = network[2].weight.detach().clone()
    symmetrize(network, CyclicTranslations(4) * HorizontalFlip(), x).project_()
    # Fields of two: K[2o + r, 2i + s] and, flipped, K[2o + 1 - r, 2i + 1 - s] are one.
    for o, r, i, s in product(range(6), range(2), range(4), range(2)):
        mean = (kernel[2 * o + r, 2 * i + s] + kernel[2 * o + 1 - r, 2 * i + 1 - s].flip(-1)) / 2
        torch.testing.assert_close(network[2].weight[2 * o + r, 2 * i + s], mean)
    assert error(network, x, lambda y: y.flip(-1).roll(4, -1)) < 1e-12


def test_points_that_are_exchanged_share_their_layers_as_they_are() -> None:
    network = nn.Sequential(nn.Conv1d(5, 16, 1), nn.ReLU(), nn.Conv1d(16, 7, 1), nn.Flatten(), nn.Linear(42, 3))
    symmetry = symmetrize(network, C3, noise(2, 5, 6))
    free = {row.weight: row.free for row in symmetry.report().rows}
    assert free["0.weight"] == free["2.weight"] == 1.0
    assert free["4.weight"] == pytest.approx(1 / 3)


S4 = [list(each) for each in permutations(range(4))]


def exchanged(x: Tensor) -> Tensor:
    return x[:, [2, 0, 3, 1]]


@pytest.mark.parametrize(
    ("layers", "sizes"),
    [
        ([nn.Linear(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)], (4, 2)),
        ([nn.Unflatten(1, (1, 4)), nn.Conv2d(1, 8, (1, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)], (4, 6)),
    ],
    ids=["points", "sensors"],
)
def test_an_axis_along_which_nothing_moves_is_none_of_the_grid(layers: list[nn.Module], sizes: tuple[int, int]) -> None:
    # Points with all that they have, sensors with their whole signals: in tables of both axes.
    places = torch.arange(sizes[0] * sizes[1]).view(sizes)
    network, x = nn.Sequential(*layers), noise(3, *sizes)
    symmetry = symmetrize(network, PermutationAction(torch.stack([places[each] for each in S4])), x)
    symmetry.project_()
    assert error(network, x, exchanged) < 1e-12
    free = [row.free for row in symmetry.report().rows if row.weight.endswith("weight")]
    assert free == pytest.approx([1.0, 1 / 4])  # of the last one, a number for each place is free


def test_an_axis_along_which_the_exchange_differs_is_one_of_the_grid() -> None:
    # The first feature of two points is exchanged, the second one is not.
    action = PermutationAction([[0, 1, 2, 3], [2, 1, 0, 3]])
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), noise(3, 4)
    symmetrize(network, action, x).project_()
    assert error(network, x, lambda y: y[:, [2, 1, 0, 3]]) < 1e-12


def test_layers_that_take_all_places_at_once() -> None:
    network, x = nn.Sequential(nn.Conv1d(3, 8, 1), nn.AdaptiveMaxPool1d(1), nn.Flatten()), noise(3, 3, 4)
    symmetrize(network, PermutationAction(S4), x).project_()
    assert error(network, x, lambda y: y[..., [2, 0, 3, 1]]) < 1e-12
    # A kernel over all sensors, which are shifted, is a linear layer.
    network, x = nn.Sequential(nn.Conv2d(1, 12, (6, 1)), nn.ReLU(), nn.Flatten(), nn.Linear(60, 2)), noise(3, 1, 6, 5)
    kernel = network[0].weight.detach().clone()
    symmetrize(network, CyclicTranslations(6, dim=-2), x).project_()
    assert error(network, x, lambda y: y.roll(2, -2)) < 1e-12
    rolled = [kernel[:6].roll((shift, shift), dims=(0, 2)) for shift in range(6)]
    torch.testing.assert_close(network[0].weight[:6].float(), torch.stack(rolled).mean(0))


@pytest.mark.parametrize(("width", "said"), [(64, "16 trivial × 1 regular"), (32, "4 regular × 1 quotient of 2")])
def test_groups_of_a_convolution_have_no_poses_where_there_is_room_inside(width: int, said: str) -> None:
    layers = [nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, width, 3, padding=1, groups=16), nn.ReLU()]
    network, x = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)), noise(3, 3, 8, 8)
    symmetry = symmetrize(network, C4(), x)
    symmetry.project_()
    rows = {row.weight: row for row in symmetry.report().rows}
    assert rows["2.weight"].representation[0] == said
    assert rows["0.weight"].free == (1.0 if width == 64 else 0.25)
    assert error(network, x, quarter) < 1e-12


class Masked(nn.Module):
    """Half of the channels have a layer of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(*pair, 3, padding=1) for pair in ((3, 16), (16, 16)))
        self.head = nn.Linear(16, 4)
        self.register_buffer("mask", (torch.arange(16) < 8).float()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head((x + self.mask * self.second(x)).relu().mean((2, 3)))


def test_channels_that_a_mask_tells_apart_are_not_paired() -> None:
    network, x = made(Masked), noise(3, 3, 8, 8)
    symmetry = symmetrize(network, C4(), x)
    kept = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.warns(UserWarning, match="cannot be paired, as something besides parameters"):
        symmetry.match_()
    assert all(torch.equal(kept[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("normalised", [parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated")
def test_spectral_norms_are_those_of_projected_weights(normalised: Any) -> None:
    network = made(lambda: nn.Sequential(nn.Flatten(), normalised(nn.Linear(64, 16)), nn.ReLU(), nn.Linear(16, 2)))
    x = noise(3, 1, 8, 8)
    symmetrize(network, C4(), x).project_(keep_norms=True)
    network(x)
    assert float(torch.linalg.matrix_norm(network[1].weight.detach(), 2)) == pytest.approx(1, abs=0.01)
    assert not any(module.training for module in network.modules())


def test_a_filter_whose_mean_over_the_group_is_zero_is_warned_of() -> None:
    layers = [nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2)]
    network = nn.Sequential(*layers)
    with torch.no_grad():  # Sobel's, for edges in one direction
        network[0].weight.copy_(torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])[None, None])
    symmetry = symmetrize(network, C4(), noise(2, 1, 8, 8))
    with pytest.warns(UserWarning, match=r"Nothing of '0.weight' is left"):
        symmetry.project_(keep_norms=True)


class Positioned(nn.Module):
    """A learned number for each place and channel, or none."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(1, 16, 2, 2), nn.Linear(16, 2)
        self.positions = nn.Parameter(noise(16, 4, 4)) if learned else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.patches(x) + self.positions).relu().mean((2, 3)))


class Mirrored(nn.Module):
    """An autoencoder whose second layer is its first one, turned over."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias, self.head = nn.Parameter(noise(16, 64)), nn.Parameter(noise(16)), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x.flatten(1), self.weight, self.bias).relu()
        return self.head(F.linear(hidden, self.weight.t()))


@pytest.mark.parametrize(
    ("make", "action", "said"),
    [
        # Learned positions tell shifts apart, and so does a layer that reads off places.
        (lambda: Positioned(learned=True), CyclicTranslations(4), "16 channels are 4 regular"),
        (lambda: Positioned(learned=False), CyclicTranslations(4), "16 channels are 16 trivial"),
        (Mirrored, C4(), "16 channels are 4 regular"),
    ],
)
def test_channels_have_poses_where_something_tells_these_apart(make: Any, action: Action, said: str) -> None:
    network, x = made(make), noise(3, 1, 8, 8)
    symmetry = symmetrize(network, action, x)
    symmetry.project_()
    assert symmetry.fields_in_words() == said
    assert error(network, x, quarter if action == C4() else lambda y: y.roll(2, -1)) < 1e-12


def test_gradients_become_those_of_the_mean_over_the_orbit() -> None:
    network, x = made(Residual).double(), noise(4, 3, 16, 16).double()
    y = torch.tensor([0, 1, 2, 3])
    symmetry = symmetrize(network, D4(), x)
    symmetry.project_()
    F.cross_entropy(network(x), y).backward()
    symmetry.project_gradients_()
    projected = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    torch.stack([F.cross_entropy(network(D4().act(x, g)), y) for g in range(8)]).mean().backward()
    for ours, parameter in zip(projected, network.parameters(), strict=True):
        assert (ours - parameter.grad).abs().max() <= 1e-12 * parameter.grad.abs().max()


def test_free_entries_are_as_many_as_burnside_counts() -> None:
    # Orbits are as many as the mean number of entries that an element leaves in place.
    network = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 16))
    report = symmetrize(network, C4(), noise(2, 3, 8, 8)).report()
    rows = {row.weight: row for row in report.rows}
    assert rows["0.weight"].free == pytest.approx((12 * 27 + 0 + 0 + 0) / 4 / (12 * 27))
    assert rows["3.weight"].free == pytest.approx(1 / 4)
    assert rows["3.bias"].free == 1.0
    narrow = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    rows = {row.weight: row for row in symmetrize(narrow, C4(), noise(2, 1, 8, 8)).report().rows}
    # A field of two cosets, which quarter turns exchange, and a trivial one: kernels have 9, 1, 1, 1 places that stay.
    assert rows["0.weight"].free == pytest.approx(((2 * 9 + 2 * 1) + (9 + 3 * 1)) / 4 / 27)


def test_merging_goes_a_part_of_the_way() -> None:
    network, x = made(Residual), noise(2, 3, 16, 16)
    symmetry = symmetrize(network, C4(), x)
    before = symmetry.asymmetry()
    for _ in range(3):
        symmetry.merge_(0.5)
    # w - P w is halved each time; P w stays.
    rest = before * 0.125
    assert symmetry.asymmetry() == pytest.approx(rest / (1 - before**2 + rest**2) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("action", [C4(), CyclicTranslations(4) * HorizontalFlip()], ids=["turns", "shifts and flips"])
def test_channels_of_a_trained_network_are_paired(action: Action) -> None:
    torch.manual_seed(0)
    padding_mode = "zeros" if action == C4() else "circular"
    convolutions = (nn.Conv2d(*pair, 3, padding=1, padding_mode=padding_mode) for pair in ((1, 16), (16, 8)))
    network = nn.Sequential(next(convolutions), nn.ReLU(), next(convolutions), nn.ReLU())
    network = nn.Sequential(*network, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    x = noise(3, 1, 8, 8)
    symmetry = symmetrize(network, action, x)
    symmetry.project_(keep_norms=True)
    order, later = torch.randperm(16), torch.randperm(8)
    with torch.no_grad():  # the same function, its channels in disorder
        network[0].weight.copy_(network[0].weight[order])
        network[0].bias.copy_(network[0].bias[order])
        network[2].weight.copy_(network[2].weight[later][:, order])
        network[2].bias.copy_(network[2].bias[later])
        network[6].weight.copy_(network[6].weight[:, later])
        outputs = network(x)
    assert symmetry.asymmetry() > 0.5
    symmetry.match_()
    assert torch.allclose(network(x), outputs, atol=1e-6)
    assert symmetry.asymmetry() < 1e-6


def test_check_names_the_first_place_that_breaks() -> None:
    network, x = made(Residual), noise(2, 3, 16, 16)
    symmetry = symmetrize(network, C4(), x)
    symmetry.project_()
    with torch.no_grad():
        network.blocks[1].second.weight[:, :, 0, 1] += 0.5
    broken = symmetry.check()
    assert broken is not None
    assert "blocks.1.second" in str(broken)
    assert broken.deviation > 1e-4
    assert broken.element in C4().labels[1:]


SIZED = [
    (nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)), 9, ("'1'", "8 or 10")),
    (nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.AdaptiveAvgPool2d(1)), 32, ("'0'", "31 or 33")),
    (nn.Sequential(nn.Conv2d(1, 16, 2, padding="same"), nn.AdaptiveAvgPool2d(1)), 8, ("'0'", "0 places in front")),
    (nn.Sequential(nn.Upsample(size=12), nn.Conv2d(1, 16, 3), nn.AdaptiveAvgPool2d(1)), 8, ("'0'", "bilinear")),
    (nn.Sequential(nn.ConvTranspose2d(1, 16, 3, 2, 1, 1), nn.AdaptiveAvgPool2d(1)), 8, ("'0'", "output_padding")),
    (
        nn.Sequential(nn.Conv2d(1, 16, (3, 1), padding=(1, 0)), nn.AdaptiveAvgPool2d(1)),
        8,
        ("'0'", "windows, steps or padding differ along axes"),
    ),
]


@pytest.mark.parametrize(("layers", "size", "said"), SIZED, ids=range(len(SIZED)))
def test_layers_that_break_are_named_with_the_remedy(layers: nn.Module, size: int, said: tuple[str, str]) -> None:
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ValueError, match="allow invariant weights under C4") as caught:
        symmetrize(network, C4(), noise(2, 1, size, size))
    assert all(part in str(caught.value) for part in said)


def test_a_size_for_the_whole_network_is_proposed() -> None:
    network = nn.Sequential(*(nn.Conv2d(c, 16, 3, 2, 1) for c in (1, 16, 16)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="Inputs of 25×25 or 33×33 would do for the whole network"):
        symmetrize(network, C4(), noise(2, 1, 32, 32))
    symmetrize(network, C4(), noise(2, 1, 33, 33))


class Positions(nn.Module):
    def __init__(self, learned: bool) -> None:
        super().__init__()
        values = noise(1, 16, 4, 4)
        if learned:
            self.positions = nn.Parameter(values)
        else:
            self.register_buffer("positions", values)
        self.patches, self.head = nn.Conv2d(1, 16, 2, 2), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.patches(x) + self.positions).relu().mean((2, 3)))


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.fft.fft2(x).abs().mean((2, 3)))


class FirstPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.head = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(x)[:, :, 0, 0])


class HalfSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.head = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(x).sum(-1).relu().sum(-1))


@pytest.mark.parametrize(
    ("make", "action", "x", "said"),
    [
        (lambda: perceptron(30), SO3(samples=3), noise(2, 10, 3), "draws from a larger one"),
        (lambda: perceptron(30), SetPermutations(samples=3), noise(2, 10, 3), "draws from a larger one"),
        (lambda: perceptron(64), Rotations(8), noise(2, 1, 8, 8), "interpolates or changes"),
        (
            lambda: perceptron(30),
            LinearAction(torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]])),
            noise(2, 10, 3),
            "changes values where they are",
        ),
        (circular, C4() * CyclicTranslations(2), noise(2, 1, 16, 16), "a group in which no element occurs twice"),
        (Residual, CyclicTranslations(4), noise(2, 3, 16, 16), "padding_mode='circular'"),
        (Segmenting, C4(), noise(2, 3, 16, 16), "output_action='same'"),
        (lambda: Positions(learned=False), C4(), noise(2, 1, 8, 8), "the buffer 'positions'"),
        (Spectrum, C4(), noise(2, 1, 8, 8), "register_rule('aten._fft_"),
        (FirstPlace, C4(), noise(2, 1, 8, 8), "are taken, which the group exchanges"),
        (HalfSum, C4(), noise(2, 1, 8, 8), "without the axis"),
    ],
    ids=range(11),
)
def test_what_cannot_be_is_refused_with_the_reason(make: Any, action: Action, x: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match="Expected") as caught:
        symmetrize(made(make), action, x)
    assert said in str(caught.value)


def test_learned_positions_are_made_invariant() -> None:
    network = made(lambda: Positions(learned=True))
    symmetrize(network, C4(), noise(2, 1, 8, 8)).project_()
    assert error(network, noise(2, 1, 8, 8), quarter) < 1e-12


def test_rules_can_be_added_and_what_is_found_with_them_is_verified() -> None:
    network = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), Magnitudes(), nn.AdaptiveMaxPool2d(4), nn.Flatten())
    network = nn.Sequential(*network, nn.Linear(16 * 16, 2))

    @register_rule("aten._fft_r2c", "aten._fft_c2c")
    def _(trace: Any, output: Tensor, self: Tensor, **_: Any) -> Any:
        return trace.of(self)

    try:
        # Frequencies do not move as places do: the zeroth stays in its corner.
        with pytest.raises(ValueError, match=r"changes the output by .*first after .*_fft_"):
            symmetrize(network, C4(), noise(2, 1, 8, 8))
    finally:
        for name in ("aten._fft_r2c", "aten._fft_c2c"):
            del _rules._RULES[name]


class Magnitudes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x).abs()


def test_tensors_are_found_by_name() -> None:
    # Casts, copies and loading put other tensors in place of those that were there.
    network, x = made(Residual), noise(2, 3, 16, 16)
    symmetry = symmetrize(network, C4(), x)
    copied = copy.deepcopy(symmetry)
    network.double()
    outputs = network(x.double())
    symmetry.match_()
    assert torch.allclose(network(x.double()), outputs, rtol=1e-10)
    network.load_state_dict({key: value.clone() for key, value in network.state_dict().items()}, assign=True)
    symmetry.project_()
    assert error(network, x, quarter) < 1e-12
    assert symmetry.check(x.double()) is None
    copied.project_()
    assert error(copied.network, x, quarter) < 1e-12
    network.blocks[0] = nn.Identity()
    with pytest.raises(ValueError, match=r"a weight 'blocks.0.first.weight' of shape \(16, 16, 3, 3\) still"):
        symmetry.project_()


class Decoding(nn.Module):
    """Latents that are made maps, a gate that is spread over places, halves that change places."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.latent = nn.Conv2d(1, 16, 4, 4), nn.Linear(64, 16)
        self.spread, self.decode = nn.Linear(16, 64), nn.ConvTranspose2d(16, 16, 4, 4)
        self.gate, self.shuffle, self.head = nn.Linear(16, 16), nn.ChannelShuffle(2), nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        latent = F.hardswish(self.latent(F.relu(self.encode(x)).flatten(1)))
        maps = self.decode(self.spread(latent).view(-1, 16, 2, 2))
        gate = self.gate(latent)[:, :, None, None]
        return self.head(self.shuffle(maps * gate.expand_as(maps) + F.interpolate(gate, size=maps.shape[2:])))


def test_decoders_make_maps_that_move_with_the_input() -> None:
    network, x = made(Decoding), noise(3, 1, 8, 8)
    symmetrize(network, C4(), x, output_action="same").project_()
    assert error(network, x, quarter, lambda y: torch.rot90(y, -1, (-2, -1))) < 1e-12


def test_statistics_of_instances_are_kept_too() -> None:
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.InstanceNorm2d(16, track_running_stats=True), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)).eval()
    nn.init.normal_(network[1].running_mean)
    symmetrize(network, C4(), noise(3, 1, 8, 8)).project_()
    assert error(network, noise(3, 1, 8, 8), quarter) < 1e-12


def test_filters_that_are_the_same_in_all_poses_are_warned_of() -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(1)

    network = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), Sorted(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.warns(UserWarning, match="'0.weight' has no fields but trivial ones"):
        symmetrize(nn.Sequential(*network, nn.Linear(16, 2)), C4(), noise(2, 1, 8, 8))


def test_narrow_layers_are_warned_of() -> None:
    network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    with pytest.warns(UserWarning, match=r"6 channels of '0.weight' are 1 quotient of 4 \+ 1 quotient of 2"):
        symmetrize(network, D4(), noise(2, 1, 8, 8))
    wide = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    with pytest.warns(UserWarning, match=r"10 outputs of '3.weight' are made of 8 fields: .* 40 wide"):
        symmetrize(wide, C4(), noise(2, 1, 8, 8))
