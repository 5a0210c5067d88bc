"""Each check finds what is wrong where the truth is known, and finds nothing where nothing is."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_invariance import (
    C4,
    SO2,
    SO3,
    CyclicTranslations,
    FunctionAction,
    Gradient,
    HorizontalFlip,
    IntegratedGradients,
    LinearAction,
    Rotations,
    SetupReport,
    TimeReversal,
    check_setup,
    symmetrize,
)
from lightning_invariance.baselines import OrbitPooled


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Y = normal(24, 1, 9, 9), torch.arange(24) % 3


def perceptron(*layers: nn.Module, pixels: int = 81) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 16), nn.Tanh(), *layers, nn.Linear(16, 3))


def severity(report: SetupReport, name: str) -> str:
    return report[name].severity if name in report else "skipped"


# Errors ----------------------------------------------------------------------------------------------------------


def test_an_error_is_a_multiple_of_that_of_an_invariant_network() -> None:
    plain, pooled = perceptron(), OrbitPooled(perceptron(), C4())
    reports = {
        name: check_setup(each, [X], C4())["noise_floor"] for name, each in (("plain", plain), ("pooled", pooled))
    }
    assert all(each.severity == "fine" for each in reports.values())
    with torch.no_grad():
        gaps = torch.stack([plain(X.rot90(g, (2, 3))) - plain(X) for g in range(1, 4)])
        error = float((gaps.square().mean(0).sum() / plain(X).square().sum()).sqrt())
    measured = reports["plain"].measured
    assert measured["relative_error"] == pytest.approx(error, rel=1e-4)
    assert measured["there_and_back"] == 0
    assert measured["relative_error_floor"] < 1e-6
    assert measured["multiple"] == pytest.approx(error / measured["relative_error_floor"], rel=1e-3)
    assert measured["logit_invariance_error"] > 1e6 * measured["logit_invariance_error_floor"]
    assert reports["pooled"].measured["relative_error"] < 1e-6
    assert "as symmetric as can be measured" in reports["pooled"].said


class Rings(nn.Module):
    """Sums over rings, which no rotation of the plane changes: what it shows is interpolation."""

    def forward(self, x: Tensor) -> Tensor:
        side = torch.arange(x.shape[-1]) - (x.shape[-1] - 1) / 2
        radius = (side[:, None].square() + side.square()).sqrt()
        return torch.stack([(x * torch.exp(-(radius - r).square())).sum(dim=(1, 2, 3)) for r in (0, 2)], dim=1)


@pytest.mark.parametrize("action", [SO2(6), Rotations(8)])
def test_errors_of_interpolation_are_told(action: Any) -> None:
    finding = check_setup(Rings(), [X], action)["noise_floor"]
    assert finding.severity == "problem"
    assert "Interpolation" in finding.remedy
    used = check_setup(Rings(), [X], action).action
    back = [Rings()(used.invert(used.act(X, g), g)) for g in range(1, len(used))]
    expected = [float((each - Rings()(X)).norm() / Rings()(X).norm()) for each in back]
    assert finding.measured["there_and_back"] == pytest.approx(sum(expected) / len(expected), rel=1e-3)
    # Smooth images lose little, and a network that turns with them much more.
    grid = torch.linspace(-2, 2, 33)
    smooth = torch.exp(-((grid[:, None] - normal(9, 1, 1)) ** 2) - (grid - normal(9, 1, 1, seed=1)) ** 2)[:, None]
    half = check_setup(lambda x: x[..., :16].sum(dim=(2, 3)), [smooth], action)["noise_floor"]
    assert half.severity == "note"
    assert half.measured["multiple"] > 2


class RowsFirst(nn.Module):
    """The mean over pixels, of which rows are rounded before columns."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=3).mean(dim=2)


def test_rounding_is_told_from_the_networks_error() -> None:
    pooled = check_setup(OrbitPooled(perceptron(), C4()), [X], C4())["precision"]
    assert pooled.severity == "fine"
    assert "rounding" in pooled.said
    assert pooled.measured["relative_error_float64"] < 1e-14 < 1e-9 < pooled.measured["relative_error"] < 1e-6
    plain = check_setup(perceptron(), [X], C4())["precision"]
    assert plain.severity == "fine"
    assert plain.measured["relative_error"] == pytest.approx(plain.measured["relative_error_float64"], rel=1e-4)
    half = check_setup(RowsFirst(), [X.bfloat16()], C4())["precision"]
    assert half.severity == "note"
    assert half.measured["relative_error_float64"] < 1e-14 < 1e-4 < half.measured["relative_error"]
    assert "precision" in check_setup(perceptron().double(), [X.double()], C4()).skipped
    assert "no module" in check_setup(lambda x: x.mean((2, 3)), [X], C4()).skipped["precision"]
    assert "precision" in check_setup(perceptron().forward, [X], C4())  # a method is run of a copy of its module


class Cancels(nn.Module):
    """The mean over pixels, as a small difference of large numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return ((x + 1e5).mean(dim=(2, 3)) - 1e5) * torch.tensor([1, 2, -1]).to(x)


def test_an_error_that_is_rounding_is_not_said_to_be_the_networks() -> None:
    report = check_setup(Cancels(), [X], C4())
    precision, floor = report["precision"], report["noise_floor"]
    assert precision.measured["relative_error_float64"] < 1e-6 < 1e-3 < precision.measured["relative_error"]
    assert precision.severity == "problem"
    assert "above rounding" not in floor.said
    assert "rounding" in floor.said
    assert "above rounding" in check_setup(perceptron(), [X], C4())["noise_floor"].said


class WithinBatch(nn.Module):
    """Less the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        outputs = x.flatten(1)[:, :3]
        return outputs - outputs.mean(dim=0)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(1, track_running_stats=False), WithinBatch()])
def test_samples_that_hang_on_each_other(layer: nn.Module) -> None:
    finding = check_setup(nn.Sequential(layer, nn.Flatten()), [X], C4())["samples"]
    assert finding.severity == "problem"
    assert finding.measured["gap"] > 1e-3
    assert severity(check_setup(perceptron(nn.BatchNorm1d(16)), [X], C4()), "samples") == "fine"
    assert "samples" in check_setup(perceptron(), [X[:1]], C4()).skipped


def test_modes_that_matter() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=(2, 3))

    torch.manual_seed(0)
    dropped = nn.Sequential(Mean(), nn.Linear(1, 50), nn.Dropout(0.5), nn.Linear(50, 3))
    # Its outputs differ, but the masks are the same in each pose: it is invariant in both.
    finding = check_setup(dropped, [X], C4())["modes"]
    assert finding.severity == "fine"
    assert finding.measured["gap"] > 0.1
    assert finding.measured["relative_error_train"] < 1e-5

    class Trained(nn.Module):
        """Invariant in eval mode alone."""

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, 0, :3].flatten(1) if self.training else x.mean(dim=(2, 3)).expand(-1, 3)

    finding = check_setup(Trained(), [X], C4())["modes"]
    assert finding.severity == "note"
    assert finding.measured["relative_error"] < 1e-5 < 0.1 < finding.measured["relative_error_train"]
    assert check_setup(perceptron(), [X], C4())["modes"].measured["gap"] == 0
    assert "modes" in check_setup(lambda x: x.mean((2, 3)), [X], C4()).skipped


class Counts(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.mean(dim=(2, 3)) + 0.1 * self.calls


@pytest.mark.parametrize(
    "network",
    [
        lambda x: x.mean((2, 3)) + 0.1 * torch.randn(len(x), 1),
        lambda x: x.mean((2, 3)) + 0.1 * random.random(),
        Counts(),
    ],
)
def test_networks_that_do_not_repeat(network: Any) -> None:
    finding = check_setup(network, [X], C4())["repeats"]
    assert finding.severity == "problem"
    assert finding.measured["gap"] > 0.01


def test_networks_that_do() -> None:
    finding = check_setup(perceptron(nn.Dropout(0.5)).train(), [X], C4())["repeats"]
    assert (finding.severity, finding.measured["gap"]) == ("fine", 0)
    zero = check_setup(lambda x: 0 * x[:, 0, 0, :3], [X], C4())
    assert severity(zero, "repeats") == "fine"
    assert zero["repeats"].measured["gap"] == 0


# The action ------------------------------------------------------------------------------------------------------


def masked(x: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([(x * mask).mean(dim=(1, 2, 3)), mask.mean(dim=(1, 2, 3))], dim=1)


@pytest.mark.filterwarnings("ignore:check_setup")
def test_a_mask_that_stays_is_found_and_named() -> None:
    batch = {"x": X, "mask": (normal(24, 1, 9, 9, seed=1) > 0.5).float()}
    finding = check_setup(masked, [batch], C4(), input="x")["unmoved_inputs"]
    assert finding.severity == "problem"
    assert "'mask'" in finding.said
    assert "input=[" in finding.remedy
    assert finding.measured["relative_error_moving_keyword 'mask'"] < 1e-5 < 0.1 < finding.measured["relative_error"]
    both = check_setup(masked, [batch], C4(), input=["x", "mask"])
    assert severity(both, "unmoved_inputs") == "fine"
    # One that moves by itself, or has other places, is none.
    whole = {"x": X, "mask": torch.ones(24, 1, 9, 9)}
    assert severity(check_setup(masked, [whole], C4(), input="x"), "unmoved_inputs") == "fine"
    # A network that is not invariant either way does not decide it.
    halves = lambda x, mask: (x * mask)[..., :4].mean(dim=(2, 3))  # noqa: E731
    assert severity(check_setup(halves, [batch], C4(), input="x"), "unmoved_inputs") == "note"


def test_samples_that_no_element_changes() -> None:
    flat = torch.ones(6, 1, 9, 9)
    finding = check_setup(perceptron(), [flat], C4())["unmoved_inputs"]
    assert finding.severity == "problem"
    assert "No element" in finding.said
    some = check_setup(perceptron(), [torch.cat([flat[:3], X[:9]])], C4())["unmoved_inputs"]
    assert (some.severity, some.measured["unmoved_samples"]) == ("note", 0.25)
    assert severity(check_setup(perceptron(), [X], C4()), "unmoved_inputs") == "fine"


def turned(times: int) -> tuple[Any, Any]:
    return lambda x: x.rot90(times, (-2, -1)), lambda x: x.rot90(-times, (-2, -1))


def test_an_output_that_moves_the_other_way() -> None:
    """Of a network that blurs, and so turns with its input."""
    blur = nn.AvgPool2d(3, 1, 1)
    ways = [FunctionAction([turned(sign * g) for g in (1, 2, 3)], places=(-2, -1)) for sign in (1, -1)]
    severities = {severity(check_setup(blur, [X], ways[0], output_action=each), "output_action") for each in ways}
    assert severities == {"problem", "fine"}
    wrong = check_setup(blur, [X], ways[0], output_action=ways[1])["output_action"]
    assert "the other way" in wrong.said
    assert wrong.measured["moving_inversely"] < 1e-5 < 0.1 < wrong.measured["moving"]
    staying = check_setup(blur, [X], C4())["output_action"]
    assert staying.severity == "problem"
    assert "output_action='same'" in staying.remedy
    assert severity(check_setup(blur, [X], C4(), output_action="same"), "output_action") == "fine"
    invariant = check_setup(lambda x: x.mean((2, 3), True) * X[:1], [X], C4(), output_action="same")
    assert "stays" in invariant["output_action"].said
    assert severity(invariant, "output_action") == "problem"


def test_several_outputs_are_looked_at_one_by_one() -> None:
    points = normal(10, 4, 3)

    def network(x: Tensor) -> dict[str, Tensor]:
        return {"energy": 1e4 + x.square().sum(dim=(1, 2)), "forces": -x}

    right = {"energy": None, "forces": "same"}
    assert severity(check_setup(network, [points], SO3(3), output_action=right), "output_action") == "fine"
    wrong = check_setup(network, [points], SO3(3), output_action={"energy": None, "forces": None})["output_action"]
    assert wrong.severity == "problem"
    assert "'forces'" in wrong.said
    assert wrong.measured["forces/moving"] < 1e-5
    # The outputs of a few classes, in a dimension that time is in too, are left alone where there are labels.
    series = normal(12, 3).abs()
    report = check_setup(nn.Identity(), [(series, torch.arange(12) % 3)], TimeReversal())
    assert severity(report, "output_action") == "fine"


class Nearest(nn.Module):
    """The class of the nearest template."""

    def __init__(self, templates: Tensor) -> None:
        super().__init__()
        self.register_buffer("templates", templates)

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None] - self.templates).square().sum(dim=(2, 3, 4))


def samples_of(templates: Tensor, each: int = 12) -> tuple[Tensor, Tensor]:
    target = torch.arange(len(templates)).repeat(each)
    return templates[target] + 0.1 * normal(len(target), *templates.shape[1:], seed=2), target


HALF_TURN = FunctionAction([(lambda x: x.rot90(2, (-2, -1)),) * 2], labels=["half_turn"])


def test_labels_that_the_motion_changes() -> None:
    """Six and nine are each other's half turn; the others look the same in both poses."""
    six, ring, cross, bar = normal(4, 1, 8, 8)
    templates = torch.stack([six, six.rot90(2, (1, 2)), *((t + t.rot90(2, (1, 2))) / 2 for t in (ring, cross, bar))])
    finding = check_setup(Nearest(templates), [samples_of(templates)], HALF_TURN)["changed_labels"]
    assert finding.severity == "problem"
    exchanged = {key: value for key, value in finding.measured.items() if "→" in key}
    pairs = ("half_turn: 0 → 1", "half_turn: 1 → 0")
    assert exchanged == {**dict.fromkeys(pairs, 1.0), **{f"{pair}, and back": 1.0 for pair in pairs}}
    assert "0 → 1 (100 %, and 100 % back)" in finding.said
    flipped = templates + templates.flip(-1)
    assert severity(check_setup(Nearest(flipped), [samples_of(flipped)], HorizontalFlip()), "changed_labels") == "fine"


def test_labels_that_move_as_a_whole() -> None:
    """Arrows that point up, left, down and right: every class is taken for another one, and none is lost."""
    arrow = normal(1, 8, 8)
    templates = torch.stack([arrow.rot90(g, (1, 2)) for g in range(4)])
    finding = check_setup(Nearest(templates), [samples_of(templates)], C4())["changed_labels"]
    assert finding.severity == "problem"
    assert sum("→" in key for key in finding.measured) == 24


class OneOf(nn.Module):
    """The class is written on the image; turned, 0 is taken for what a second mark says."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        label, mark, turned = x.amax((1, 2, 3)).long() - 1, -x.amin((1, 2, 3)).long(), x[:, 0, 0, 0] < 0.75
        return 5 * nn.functional.one_hot(torch.where((label == 0) & turned, mark, label), self.classes).float()


def written(marks: Tensor, target: Tensor) -> Tensor:
    x = torch.rand(len(target), 1, 4, 4, generator=torch.Generator().manual_seed(0)) / 2
    x[:, 0, 0, 0], x[:, 0, 2, 1], x[:, 0, 1, 2] = 0.9, target + 1.0, -marks.float()
    return x


def test_a_class_that_falls_to_pieces_is_not_changed_into_another() -> None:
    """Shares are those of the class that is named, and what does not come back is a hint."""
    target = torch.arange(120) % 4
    for marks, expected in ((torch.arange(120) // 4 % 3 + 1, "fine"), (0 * target + 3, "note")):
        finding = check_setup(OneOf(4), [(written(marks, target), target)], C4())["changed_labels"]
        assert finding.severity == expected
        taken = {key: value for key, value in finding.measured.items() if "→" in key}
        assert bool(taken) is (expected == "note")
    assert (taken["rot90: 0 → 3"], taken["rot90: 0 → 3, and back"]) == (1, 0)
    mostly = torch.where(torch.arange(120) % 20 == 0, 1, 3)  # 1 of 5 is taken for another class
    share = check_setup(OneOf(4), [(written(mostly, target), target)], C4())["changed_labels"].measured
    assert share["rot90: 0 → 3"] == pytest.approx(0.8)
    few = check_setup(OneOf(4), [(written(mostly, target), target)], C4(), samples=24)
    assert "samples" in few.skipped["changed_labels"]
    wrong = check_setup(OneOf(4), [(written(mostly, target), (target + 1) % 4)], C4())
    assert "accuracy" in wrong.skipped["changed_labels"]


def test_digits_whose_six_and_nine_were_never_turned() -> None:
    """Of a network that knows the other digits in each pose, and of one that was trained upright and fails on most."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    half, fixed = x.rot90(2, (2, 3)), (y == 6) | (y == 9)

    def trained(inputs: Tensor, target: Tensor) -> nn.Module:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), target).backward()
            optimizer.step()
        return network

    batches = [(x[:400], y[:400])]
    knowing = trained(torch.cat([x, half[~fixed]]), torch.cat([y, y[~fixed]]))
    finding = check_setup(knowing, batches, HALF_TURN, samples=400)["changed_labels"]
    assert finding.severity == "problem"
    assert "half_turn: 6 → 9" in finding.said
    upright = check_setup(trained(x, y), batches, HALF_TURN, samples=400)["changed_labels"]
    assert upright.severity == "problem"
    assert upright.said.split(": ")[-1].startswith("6 → 9")
    assert upright.measured["orbit_accuracy"] < 0.7 * upright.measured["accuracy"]
    # Of one that fails on moved samples as well, but on no class for that reason.
    rest = ~fixed
    without = check_setup(trained(x[rest], y[rest]), [(x[rest], y[rest])], HALF_TURN, samples=1000)["changed_labels"]
    assert without.severity != "problem"
    assert without.measured["orbit_accuracy"] < 0.7 * without.measured["accuracy"]


@pytest.mark.parametrize(
    ("layer", "fitting", "other", "to_blame"),
    [(nn.MaxPool2d(2), 12, 11, "problem"), (nn.Conv2d(1, 4, 3, stride=2), 13, 12, "note")],
)
def test_sizes_that_a_stride_or_a_pool_cannot_be_symmetric_on(
    layer: nn.Module, fitting: int, other: int, to_blame: str
) -> None:
    """The pool is invariant on sizes that fit; the convolution, of random weights, on none."""
    network = nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert severity(check_setup(network, [normal(4, 1, fitting, fitting)], C4()), "sizes") == "fine"
    finding = check_setup(network, [normal(4, 1, other, other)], C4())["sizes"]
    assert finding.severity == to_blame
    fits = finding.measured[f"relative_error_at_{fitting}×{fitting}"]
    assert fits < 1e-6 if to_blame == "problem" else fits > 0.01
    assert finding.measured["relative_error"] > 0.01
    assert type(layer).__name__ in finding.said
    assert f"{fitting}×{fitting}" in finding.remedy
    # Shifts by thirds need a multiple of the stride and of three.
    circular = nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert severity(check_setup(circular, [normal(4, 1, 9, 9)], CyclicTranslations(3)), "sizes") == "problem"
    assert severity(check_setup(circular, [normal(4, 1, 12, 12)], CyclicTranslations(3)), "sizes") == "fine"
    assert "sizes" in check_setup(network, [normal(4, 1, other, other)], SO2(3)).skipped


@pytest.mark.parametrize(
    ("layer", "action", "remedy"),
    [
        (nn.Conv2d(1, 4, 3, padding=1), CyclicTranslations(12, dim=-1), "Use padding_mode='circular'."),
        (nn.ZeroPad2d((1, 0, 1, 0)), C4(), "Make them equal."),
        (nn.ConvTranspose2d(1, 4, 3, stride=2, output_padding=1), C4(), "Use a kernel whose size"),
    ],
)
def test_a_layer_that_stands_in_the_way_whatever_the_size(layer: nn.Module, action: Any, remedy: str) -> None:
    network = nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    finding = check_setup(network, [normal(4, 1, 12, 12)], action)["sizes"]
    assert finding.severity == "note"
    assert f"in '0', {type(layer).__name__}" in finding.said
    assert finding.remedy.startswith(remedy)
    with torch.no_grad():
        x = normal(4, 1, 12, 12)
        elements = range(1, len(action))
        gaps = torch.stack([network(action.act(x, g)) - network(x) for g in elements])
        error = float((gaps.square().mean(0).sum() / network(x).square().sum()).sqrt())
    assert finding.measured["relative_error"] == pytest.approx(error, rel=1e-3, abs=1e-6)


# Outputs and maps ------------------------------------------------------------------------------------------------


def test_ties_of_a_flat_background() -> None:
    """A network that is invariant by its weights, whose maps are not, where max-pooling picks one of equal values."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(32, 3),
    ).double()  # fmt: skip
    x = torch.zeros(12, 1, 14, 14, dtype=torch.float64)
    x[:, :, 5:9, 5:9] = normal(12, 1, 4, 4).double()
    symmetrize(network, C4(), x).project_(keep_norms=True)
    plain = check_setup(network, [x], C4(), saliency=Gradient())
    assert plain["noise_floor"].measured["relative_error"] < 1e-12
    assert plain["ties"].severity == "problem"
    assert plain["ties"].measured["similarity"] < 0.95
    assert plain["ties"].measured["similarity_with_noise"] == pytest.approx(1, abs=1e-6)
    assert "dither=1e-3" in plain["ties"].remedy
    default = check_setup(network, [x], C4())["ties"]
    assert default.severity == "note"
    assert default.measured == plain["ties"].measured
    # Where the input is 0, times the gradient it is 0 whoever wins.
    assert severity(check_setup(network, [x], C4(), saliency=IntegratedGradients(4)), "ties") == "fine"
    busy = check_setup(network, [normal(12, 1, 14, 14).double()], C4(), saliency=Gradient())["ties"]
    assert busy.severity == "fine"
    assert busy.measured["similarity"] == pytest.approx(1, abs=1e-6)
    assert "ties" in check_setup(nn.AvgPool2d(3), [x], C4(), output_action="same").skipped


def test_a_network_that_takes_only_some_values_has_no_ties() -> None:
    class Levels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not torch.equal(x, x.round()):
                raise RuntimeError("levels are whole numbers")
            return x.flatten(1)[:, :3] ** 2

    assert "whole numbers" in check_setup(Levels(), [X.round()], C4()).skipped["ties"]


def test_a_pair_that_is_in_no_list_is_refused() -> None:
    with pytest.raises(ValueError, match=r"into a list, \[\(x, target\)\]"):
        check_setup(perceptron(), (X, Y), C4())
    assert check_setup(perceptron(), X.split(12), C4()).samples == 24


def scaled(scale: float, bias: Any = 0.0) -> nn.Module:
    """Logits of the size 1 or so, times a number."""
    network = perceptron()
    with torch.no_grad():
        outputs = network(X)
        network[-1].weight.mul_(scale / outputs.std())
        network[-1].bias.mul_(0).add_(torch.as_tensor(bias))
    return network


def test_outputs_that_fake_a_number() -> None:
    names = "constant_output", "collapsed_logits", "saturated_softmax"

    def severities(network: nn.Module) -> tuple[str, ...]:
        report = check_setup(network, [(X, Y)], C4())
        return tuple(severity(report, name) for name in names)

    assert severities(scaled(1.0)) == ("fine", "fine", "fine")
    assert severities(scaled(0.0, [1.0, 2.0, 3.0])) == ("problem", "problem", "fine")
    assert severities(scaled(1.0, 1000.0)) == ("note", "fine", "fine")
    assert severities(scaled(1e-3)) == ("fine", "problem", "fine")
    assert severities(scaled(1.0, [8.0, 0.0, 0.0])) == ("fine", "problem", "fine")
    assert severities(scaled(200.0)) == ("fine", "fine", "note")
    one_class = check_setup(scaled(1.0, [8.0, 0.0, 0.0]), [(X, 0 * Y)], C4())
    assert severity(one_class, "collapsed_logits") == "fine"
    regression = check_setup(lambda x: x.sum((1, 2, 3)), [X], C4())
    assert {"collapsed_logits", "saturated_softmax"} <= set(regression.skipped)
    spoilt = check_setup(perceptron(), [torch.where(X > 2.5, torch.inf, X)], C4())
    assert [each.name for each in spoilt.problems] == ["finite_outputs"]
    assert "noise_floor" in spoilt.skipped
    probabilities = scaled(1e-3)(X).detach().double().softmax(dim=1).amax(dim=1).mean()
    found = check_setup(scaled(1e-3), [X], C4())["collapsed_logits"].measured["largest_probability"]
    assert found == pytest.approx(float(probabilities), rel=1e-6)


# The whole -------------------------------------------------------------------------------------------------------


def test_a_sound_setup_is_fine_and_says_so() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 3))
    x = normal(200, 1, 8, 8)
    report = check_setup(network, [(x, network(x).argmax(dim=1))], C4())
    assert report.ok
    assert report.problems == ()
    assert not report.skipped
    text = str(report)
    assert text.startswith("C4() on 200 samples: 0 problem")
    assert all(name in text for name in ("noise_floor", "sizes", "saturated_softmax"))
    with pytest.raises(KeyError, match="nothing is no check"):
        report["nothing"]
    broken = check_setup(lambda x: x[:, 0, 0] + torch.rand(len(x), 1), [x], C4())
    assert not broken.ok
    assert [each.name for each in broken.problems] == ["repeats"]
    assert str(broken).index("repeats") < str(broken).index("noise_floor")
    with pytest.raises(KeyError, match="sizes: the network is no module"):
        broken["sizes"]


def test_it_leaves_no_trace() -> None:
    network = perceptron(nn.BatchNorm1d(16), nn.Dropout(0.5)).train()
    network[0].eval()
    parameters = [parameter.clone() for parameter in network.state_dict().values()]
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    data = DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True)
    torch_state, state = torch.get_rng_state(), random.getstate()
    check_setup(network, data, C4())
    with pytest.raises(RuntimeError):
        check_setup(lambda x: network(x[..., 1:]), data, C4())
    assert all(torch.equal(a, b) for a, b in zip(parameters, network.state_dict().values(), strict=True))
    assert all((parameter.grad == 1).all() for parameter in network.parameters())
    assert [module.training for module in network] == [False, *[True] * (len(network) - 1)]
    assert torch.equal(torch_state, torch.get_rng_state())
    assert random.getstate() == state


def test_batches_are_taken_together_as_far_as_they_go() -> None:
    seen: list[int] = []

    def batches() -> Any:
        for part in X.split(5):
            seen.append(len(part))
            yield {"x": part, "scale": torch.ones(()), "label": Y[: len(part)]}

    def network(x: Tensor, scale: Tensor) -> Tensor:
        return scale * x[:, 0, 0, :3]

    assert check_setup(network, batches(), C4(), samples=12).samples == 12
    assert seen == [5, 5, 5]
    series = [normal(4, 6), normal(4, 8)]  # of two lengths: one of them is used
    assert check_setup(lambda x: x[:, :3], series, TimeReversal()).samples == 4
    two = LinearAction(torch.stack([torch.eye(9), torch.eye(9).flip(0)]))
    assert check_setup(lambda x: x.flatten(1)[:, :3], [X], two).samples == 24


def test_the_layer_that_breaks_is_named() -> None:
    """Of a network with symmetric weights, and of the same when one layer has been exchanged."""
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    symmetrize(network, C4(), X[:2], output_action=None).project_()
    assert severity(check_setup(network, [X], C4()), "layers") == "fine"
    network[2] = nn.Conv2d(12, 12, 3, padding=1)
    finding = check_setup(network, [{"x": X, "kind": Y}], C4(), input="x", target="kind")["layers"]
    assert (finding.severity, "'2', Conv2d" in finding.said) == ("note", True)
    assert finding.measured["orbit_share"] > 1e3 * finding.measured["floor"]
    assert "no layers" in check_setup(lambda x: x.flatten(1)[:, :3], [X], C4()).skipped["layers"]


class CommonPart(nn.Module):
    """Two numbers, both of which the pose moves alike."""

    def forward(self, x: Tensor) -> Tensor:
        pose, content = x[:, 0, :4].mean((1, 2)) - x[:, 0, 5:].mean((1, 2)), x.mean((1, 2, 3))
        return torch.stack([pose + content, pose - content], dim=1)


def test_a_part_that_is_common_to_all_outputs_is_told_where_no_labels_say_that_they_are_logits() -> None:
    found = check_setup(CommonPart(), [X], C4())["common_part"]
    assert found.severity == "problem"
    assert "relative_logit_invariance_error" in found.remedy
    with torch.no_grad():
        outputs = torch.stack([CommonPart()(X.rot90(turn, (2, 3))) for turn in range(4)]).double()
    means = outputs.mean(0)
    within, between = (outputs - means).square().sum(-1).mean(), (means - means.mean(0)).square().sum(-1).mean()
    share = float(within / (within + between))
    assert found.measured["orbit_share_with_common_part"] == pytest.approx(share, rel=1e-4)
    assert found.measured["orbit_share"] < 1e-6 < share
    assert severity(check_setup(CommonPart(), [(X, Y % 2)], C4()), "common_part") == "fine"
    assert severity(check_setup(perceptron(), [X], C4()), "common_part") == "note"


def test_one_output_beside_labels_of_two_classes_is_told() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(81, 1))
    found = check_setup(network, [(X, Y % 2)], C4())["single_output"]
    assert found.severity == "note"
    assert "torch.cat([torch.zeros_like(o), o], dim=1)" in found.remedy
    as_said = check_setup(network, [(X, Y % 2)], C4(), logits=lambda o: torch.cat([torch.zeros_like(o), o], dim=1))
    assert as_said["single_output"].severity == "fine"
    assert severity(check_setup(network, [(X, Y.float())], C4()), "single_output") == "skipped"
