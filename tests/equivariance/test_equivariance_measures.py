"""Measures from outside, measures by name, and which are taken where none is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from equivariance_helpers import (
    Module,
    PairPotential,
    batches,
    conv_net,
    masks,
    monitored,
    placed,
    points,
    replaced,
    symmetric_conv,
    values,
)
from helpers import made
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchmetrics import MeanMetric

from lightning_invariance import (
    C4,
    SO3,
    Gradient,
    InvarianceMonitor,
    LogitInvarianceError,
    MonitorRecord,
    SaliencyInvarianceSimilarity,
    VectorCosineSimilarity,
    compare,
    evaluate_invariance,
    functional,
    jacobian_spectral_norm,
)
from lightning_invariance.evaluation import (
    MEASURES,
    Measure,
    Samples,
    Source,
    _sources,
    register_measure,
    register_source,
)

Measured = dict[str, float]


def by_evaluation(network: nn.Module, data: TensorDataset, loss: Any, size: int = 4, **options: Any) -> Measured:
    return values(evaluate_invariance(network, batches(data, size), C4(), progress=False, **options))


def by_monitor(network: nn.Module, data: TensorDataset, loss: Any, size: int = 4, **options: Any) -> Measured:
    return values(monitored(network, InvarianceMonitor(C4(), **options), data, loss, size).measures)


def by_comparison(network: nn.Module, data: TensorDataset, loss: Any, size: int = 4, **options: Any) -> Measured:
    return values(compared(network, data, loss, size, **options).models["one"].measures)


def compared(network: nn.Module, data: TensorDataset, loss: Any, size: int = 4, **options: Any) -> Any:
    datamodule = LightningDataModule.from_datasets(test_dataset=data, batch_size=size)
    module = Module(network, loss)
    return compare({"one": module}, datamodule, C4(), rounds=0, progress=False, accelerator="cpu", **options)


WAYS = pytest.mark.parametrize("way", [by_evaluation, by_monitor, by_comparison])

Way = Callable[..., Measured]


class Curves(Source):
    """Something that nothing else gives: the logits between two poses, for the first samples only."""

    name = "curves"
    gives: ClassVar = {"halfway": 1, "places": 0}
    samples = 5
    runs: ClassVar[list[int]] = []

    def run(self, samples: Samples) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled()
        self.runs.append(len(samples.x))
        moved = samples.acting.orbit(samples.x, samples.elements)
        halfway = torch.stack([samples.network((samples.x + each) / 2) for each in moved])
        return {"halfway": halfway, "places": torch.tensor(samples.positions)}


class Halfway(MeanMetric):
    def update(self, logits: Tensor, halfway: Tensor, places: Tensor, target: Tensor | None = None) -> None:
        assert target is not None
        super().update((halfway - logits).square().flatten(2).sum(2) * (1 + places))


@pytest.fixture
def _halfway() -> Iterator[None]:
    before = dict(MEASURES), dict(_sources.SOURCES)
    register_source(Curves())
    register_measure(Measure("halfway_gap", Halfway, heading="gap halfway"))
    Curves.runs.clear()
    yield
    MEASURES.pop("halfway_gap")
    _sources.SOURCES.pop("curves")
    assert before == (MEASURES, _sources.SOURCES)


@WAYS
@pytest.mark.usefixtures("_halfway")
def test_a_measure_from_outside_is_known_everywhere(way: Way):
    network, data = made(conv_net), masks(9)
    x = data.tensors[0][:5]
    with torch.no_grad():
        gaps = [(network((x + placed(x, g)) / 2) - network(x)).square().sum((1, 2, 3)) for g in (1, 2, 3)]
    expected = float((torch.stack(gaps) * torch.arange(1.0, 6)).mean())
    measures = ["halfway_gap", "logit_invariance_error"]
    found = way(network, data, None, measures=measures, output_action="same")
    assert list(found) == measures
    assert found["halfway_gap"] == pytest.approx(expected, rel=1e-5)
    assert Curves.runs == [4, 1]
    assert "halfway_gap" not in way(network, data, None, output_action="same")
    assert Curves.runs == [4, 1]
    if way is by_comparison:
        table = compared(network, data, None, measures=measures, output_action="same").to_markdown()
        assert table.splitlines()[0].startswith("|  | gap halfway | LI |")


def test_a_source_that_gives_what_another_gives_is_refused():
    class Double(Curves):
        name = "double"
        gives: ClassVar = {"orbit_logits": 1}

    with pytest.raises(ValueError, match=r"\['orbit_logits'\] come from"):
        register_source(Double())


# Selectivity and the Jacobian by name ---------------------------------------------------------------------------------


@WAYS
def test_sensitivities_by_name_are_those_by_hand(way: Way):
    """A linear network at random is moved by the group as by anything else, one that is invariant is not moved.

    A linear network's Jacobian is its weight.
    """
    x, y = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(16, dtype=torch.int64)
    data, names = TensorDataset(x, y), ["selectivity", "jacobian_spectral_norm"]
    linear = made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 400)))
    found = way(linear, data, None, measures=names)
    weight = linear[1].weight.detach().double()
    assert list(found) == names
    assert found["selectivity"] == pytest.approx(1.0, abs=0.05)
    assert found["jacobian_spectral_norm"] == pytest.approx(float(torch.linalg.svdvals(weight)[0]), rel=2e-3)

    # Directions go by the samples' positions: other batches change nothing.
    few = way(linear, TensorDataset(x[:6], y[:6]), None, measures=names, sensitivity_samples=6)
    of_more = way(linear, data, None, 5, measures=names, sensitivity_samples=6)
    assert few == pytest.approx(of_more)

    invariant = made(lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3)))
    assert way(invariant, data, None, measures=names)["selectivity"] < 1e-10

    curved = made(lambda: nn.Sequential(conv_net(), nn.Flatten(), nn.Linear(108, 3)))
    expected = float(jacobian_spectral_norm(curved, x[:6]).mean())
    by_rows = [torch.autograd.functional.jacobian(lambda z: curved(z[None])[0], each) for each in x[:6]]
    assert expected == pytest.approx(sum(float(torch.linalg.svdvals(j.flatten(1))[0]) for j in by_rows) / 6, rel=1e-5)
    found = way(curved, data, None, measures=names, sensitivity_samples=6)
    assert found["jacobian_spectral_norm"] == pytest.approx(expected, rel=1e-5)


def test_the_selectivity_of_an_output_that_moves():
    """The other directions are of no equivariant network's; the same perturbations divide both errors."""
    data = masks(6)
    asked = {"measures": ["selectivity"], "output_action": "same"}
    network = made(lambda: nn.Sequential(symmetric_conv(1, 4), nn.Tanh(), symmetric_conv(4, 3)))
    assert by_evaluation(network, data, None, **asked)["selectivity"] < 1e-10
    broken, x = made(conv_net), data.tensors[0]
    with pytest.warns(UserWarning, match="output_action='same'"):
        still = by_evaluation(broken, data, None, measures=["selectivity"])["selectivity"]
    found = by_evaluation(broken, data, None, **asked)["selectivity"]
    with torch.no_grad():
        said = torch.stack([replaced(broken(placed(x, g)), g) - broken(x) for g in (1, 2, 3)]).square().sum()
        stays = torch.stack([broken(placed(x, g)) - broken(x) for g in (1, 2, 3)]).square().sum()
    assert found / still == pytest.approx(float(said / stays), rel=1e-5)


# Unasked --------------------------------------------------------------------------------------------------------------

ERRORS = {"logit_invariance_error", "normalized_logit_invariance_error"}
DIVERGENCES = {"distribution_invariance_error", "jensen_shannon_invariance_error", "prediction_consistency"}
ACCURACIES = {"orbit_accuracy", "worst_case_orbit_accuracy"}
SINGLE = ERRORS | {"relative_logit_invariance_error", "saliency_invariance_similarity", "orbit_share"}
VALUES = ERRORS | {"relative_logit_invariance_error", "relative_equivariance_error"}
CLASSES = SINGLE | DIVERGENCES | ACCURACIES
PIXELS = ERRORS | DIVERGENCES | ACCURACIES | {"relative_equivariance_error", "orbit_mean_iou"}
FIELD = ERRORS | {"relative_equivariance_error"}

images = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
probabilities = torch.rand(8, 3, generator=torch.Generator().manual_seed(0)).softmax(1)


def flat_net(out: int = 3) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, out))


def dense(output: Tensor, y: Tensor) -> Tensor:
    return output.square().mean()


KINDS = [
    ("classes", flat_net(), torch.arange(8) % 3, None, None, CLASSES),
    ("no labels", flat_net(), torch.randn(8, 2), dense, None, CLASSES - ACCURACIES),
    ("probabilities", flat_net(), probabilities, None, None, CLASSES - ACCURACIES),
    ("regression", flat_net(), torch.randn(8, 3), F.mse_loss, None, VALUES),
    ("a positive regression", flat_net(), 3 * probabilities, F.mse_loss, None, VALUES),
    ("single", flat_net(1), torch.randn(8, 1), F.mse_loss, None, SINGLE),
    ("pixels", conv_net, masks(8).tensors[1], None, "same", PIXELS),
    ("pixels, channel", conv_net, masks(8).tensors[1].clamp_min(0)[:, None], dense, "same", PIXELS),
    ("field", conv_net, torch.randn(8, 3, 6, 6), F.mse_loss, "same", FIELD),
    ("field, no labels", conv_net, torch.arange(8), dense, "same", FIELD),
]


@pytest.mark.parametrize("way", [by_evaluation, by_monitor])
@pytest.mark.parametrize(
    ("network", "y", "loss", "moves", "expected"), [each[1:] for each in KINDS], ids=[each[0] for each in KINDS]
)
def test_measures_that_are_taken_unasked(way: Way, network, y, loss, moves, expected):
    found = way(made(network), TensorDataset(images, y), loss, output_action=moves)
    assert set(found) == expected


def test_vectors_have_measures_of_vectors():
    moves = {"energy": None, "forces": "same"}
    network, data = PairPotential(), TensorDataset(points(8).float(), torch.zeros(8, dtype=torch.int64))

    def loss(output: Any, y: Tensor) -> Tensor:
        return output["energy"].mean()

    def record(
        measures: Any, output_action: Any = "same", logits: Any = lambda output: output["forces"]
    ) -> MonitorRecord:
        monitor = InvarianceMonitor(SO3(3), measures, output_action=output_action, logits=logits)
        return monitored(network, monitor, data, loss)

    found = record(None)
    assert set(found.measures) == FIELD | {"vector_cosine_similarity"}
    assert (found.output_action, found.saliency) == ("same", None)
    several = record(None, moves, None)
    forces = {name.removeprefix("forces/") for name in several.measures if name.startswith("forces/")}
    energy = {name.removeprefix("energy/") for name in several.measures if name.startswith("energy/")}
    assert forces == FIELD | {"vector_cosine_similarity"}
    assert energy == SINGLE - {"saliency_invariance_similarity"}
    assert several.output_action == moves
    for measures in (["distribution_invariance_error"], ["relative_equivariance_error", "orbit_share"]):
        with pytest.raises(ValueError, match=r"to be scores of classes for \['(distribution|orbit)_\w+'\]"):
            record(measures)
    with pytest.raises(ValueError, match="the output 'forces' to be scores of classes"):
        record(["distribution_invariance_error"], {"forces": "same"}, None)


def test_records_say_how_outputs_moved_and_what_explained_them():
    data = TensorDataset(images, torch.arange(8) % 3)
    mapped = Gradient(dither=0.1)
    record = monitored(made(flat_net()), InvarianceMonitor(C4(), saliency=mapped), data)
    assert (record.saliency, record.output_action) == (mapped, None)
    assert record.saliency is mapped or repr(record.saliency) == repr(mapped)
    record = monitored(made(flat_net()), InvarianceMonitor(C4(), ["orbit_share"], saliency=mapped), data)
    assert record.saliency is None
    record = monitored(made(conv_net), InvarianceMonitor(C4(), output_action="same"), masks(8))
    assert (record.saliency, record.output_action) == (None, "same")


def test_a_measure_can_be_named_for_one_output_alone() -> None:
    results = evaluate_invariance(
        PairPotential(),
        [points()],
        SO3(2),
        output_action={"energy": None, "forces": "same"},
        measures=["logit_invariance_error", "forces/vector_cosine_similarity"],
        progress=False,
    )
    assert set(results) == {
        "energy/logit_invariance_error",
        "forces/logit_invariance_error",
        "forces/vector_cosine_similarity",
    }
    for measures, says in ((["charge/orbit_share"], "outputs among"), (["energy/orbit_share"], "a measure of each")):
        with pytest.raises(ValueError, match=f"Expected `measures` to name {says}"):
            InvarianceMonitor(SO3(2), measures, output_action={"energy": None, "forces": "same"})


def test_a_metric_can_be_named_for_one_output_alone() -> None:
    measures = {"size": LogitInvarianceError(), "forces/cosine": VectorCosineSimilarity()}
    moves = {"energy": None, "forces": "same"}
    results = evaluate_invariance(
        PairPotential(), [points()], SO3(2), output_action=moves, measures=measures, progress=False
    )
    assert set(results) == {"energy/size", "forces/size", "forces/cosine"}
    with pytest.raises(ValueError, match="Expected `measures` to name outputs among"):
        InvarianceMonitor(SO3(2), {"charge/cosine": VectorCosineSimilarity()}, output_action=moves)


def test_what_several_outputs_were_said_to_do_is_told_in_the_words_of_the_user() -> None:
    def stuck(positions: Tensor) -> dict[str, Tensor]:
        return {"energy": positions.square().sum(dim=(1, 2)), "forces": torch.ones_like(positions)}

    moves = {"energy": None, "forces": "same"}
    with pytest.warns(UserWarning, match=r"as `output_action` says, \(None, SO3\(samples=2, [^)]*\)\), but it stays"):
        evaluate_invariance(stuck, [points()], SO3(2), output_action=moves, progress=False)


def test_with_the_identity_the_similarity_is_one_of_all_poses() -> None:
    maps, orbit = torch.randn(5, 1, 4, 4), torch.randn(3, 5, 1, 4, 4)
    cosines = F.cosine_similarity(maps.flatten(1)[None], orbit.flatten(2), dim=2)
    metric = SaliencyInvarianceSimilarity(include_identity=True)
    metric.update(maps, orbit)
    expected = float(torch.cat([torch.ones(1, 5), cosines]).mean())
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)
    function = functional.saliency_invariance_similarity(maps, orbit, include_identity=True)
    assert float(function) == pytest.approx(expected, abs=1e-6)


def test_tables_name_the_saliency_map() -> None:
    data = TensorDataset(torch.randn(8, 1, 6, 6), torch.randint(3, (8,)))
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    table = compared(network, data, F.cross_entropy, saliency=Gradient(dither=0.5)).to_markdown()
    assert "| SI, Gradient(dither=0.5) |" in table.splitlines()[0]


def test_a_mask_whose_second_class_is_no_class_is_warned_of() -> None:
    data = masks()
    x, y = data.tensors
    network = nn.Conv2d(x.shape[1], 2, 1)
    with pytest.warns(UserWarning, match="go from 0 to 255, .* those that are left are of one class alone"):
        evaluate_invariance(network, [(x, 255 * (y > 0))], C4(), output_action="same", progress=False)
