"""`evaluate_invariance`: the values of the functional on the whole data, and a network left as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_invariance import (
    C4,
    SO3,
    Action,
    CyclicTranslations,
    DistributionInvarianceError,
    FunctionAction,
    Gradient,
    LinearAction,
    LogitInvarianceError,
    PaperSaliency,
    SetPermutations,
    TimeReversal,
    evaluate_invariance,
)
from lightning_invariance import functional as f
from lightning_invariance.baselines import OrbitPooled
from lightning_invariance.metrics import Estimate, OrbitShare

SAMPLES, SIDE, CLASSES = 23, 6, 4
SIZES = [10, 1, 12]


class Symmetrised(nn.Module):
    """The mean of a network over the four rotations: invariant to them by construction."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.network(torch.rot90(x, k, (-2, -1))) for k in range(4)]).mean(dim=0)


class Failing(nn.Module):
    """Gives up on the third forward."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("out of patience")
        return self.network(x)


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


LABELLED = ["orbit_accuracy", "worst_case_orbit_accuracy"]
UNLABELLED = [
    "logit_invariance_error",
    "normalized_logit_invariance_error",
    "relative_logit_invariance_error",
    "distribution_invariance_error",
    "jensen_shannon_invariance_error",
    "saliency_invariance_similarity",
    "orbit_share",
    "prediction_consistency",
]


def expected_values(network: nn.Module, x: Tensor, target: Tensor | None, explained: int = 256) -> dict[str, Tensor]:
    base, orbit = orbit_of(network, x)
    maps, orbit_maps = maps_of(network, x[:explained], (base.argmax(1) if target is None else target)[:explained])
    values = {
        "logit_invariance_error": f.logit_invariance_error(base, orbit),
        "normalized_logit_invariance_error": f.logit_invariance_error(base, orbit, normalize="logits"),
        "relative_logit_invariance_error": f.relative_logit_invariance_error(base, orbit),
        "distribution_invariance_error": f.distribution_invariance_error(base, orbit),
        "jensen_shannon_invariance_error": f.jensen_shannon_invariance_error(base, orbit),
        "saliency_invariance_similarity": f.saliency_invariance_similarity(maps, orbit_maps),
        "orbit_share": f.orbit_share(base, orbit),
        "prediction_consistency": f.prediction_consistency(base, orbit),
    }
    if target is not None:
        values["orbit_accuracy"] = f.orbit_accuracy(base, orbit, target)
        values["worst_case_orbit_accuracy"] = f.orbit_accuracy(base, orbit, target, worst_case=True)
    return values


def assert_values(results: dict[str, Estimate], expected: dict[str, Tensor]) -> None:
    assert set(results) == set(expected)
    for name, estimate in results.items():
        assert estimate.value.item() == pytest.approx(expected[name].item(), rel=1e-5, abs=1e-7), name
        assert estimate.standard_error.item() >= 0, name


@pytest.mark.parametrize("max_batch", [None, 7])
@pytest.mark.parametrize("labelled", [False, True])
def test_values_are_those_of_the_whole_data(
    network: nn.Module, x: Tensor, target: Tensor, labelled: bool, max_batch: int | None
) -> None:
    batches: Any = x.split(SIZES)
    if labelled:
        batches = list(zip(x.split(SIZES), target.split(SIZES), strict=True))
    results = evaluate_invariance(network, batches, C4(), saliency=Gradient(), max_batch=max_batch, progress=False)
    assert_values(results, expected_values(network, x, target if labelled else None))


@pytest.mark.parametrize("explained", [0, 4, 10, 11, 15, 23, 40])
def test_the_first_samples_get_maps(network: nn.Module, x: Tensor, explained: int) -> None:
    results = evaluate_invariance(
        network, x.split(SIZES), C4(), saliency=Gradient(), saliency_samples=explained, progress=False
    )
    expected = expected_values(network, x, None, max(explained, 1))
    if explained == 0:
        del expected["saliency_invariance_similarity"]
    assert_values(results, expected)


def test_standard_errors_are_over_samples(network: nn.Module, x: Tensor) -> None:
    results = evaluate_invariance(network, x.split(SIZES), C4(), measures=["logit_invariance_error"], progress=False)
    base, orbit = orbit_of(network, x)
    values = 0.5 * (orbit - base).square().sum(dim=2).mean(dim=0)
    error = results["logit_invariance_error"].standard_error.item()
    assert error == pytest.approx((values.std() / SAMPLES**0.5).item(), rel=1e-5)


QUARTER_TURNS = FunctionAction(
    [(partial(torch.rot90, k=k, dims=(-2, -1)), partial(torch.rot90, k=-k, dims=(-2, -1))) for k in (1, 2, 3)]
)


@pytest.mark.parametrize("action", [C4(), QUARTER_TURNS], ids=["C4", "functions"])
def test_by_default_the_maps_are_gradients_at_dithered_inputs_whatever_the_action(
    network: nn.Module, x: Tensor, target: Tensor, action: Action
) -> None:
    batches = list(zip(x.split(SIZES), target.split(SIZES), strict=True))
    results = evaluate_invariance(network, batches, action, progress=False)
    pattern = torch.randn(1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).double()
    noisy = x + 1e-3 * x.std(dim=(1, 2, 3), correction=0, keepdim=True) * pattern
    expected = expected_values(network, x, target)
    expected["saliency_invariance_similarity"] = f.saliency_invariance_similarity(*maps_of(network, noisy, target))
    assert_values(results, expected)
    assert expected["saliency_invariance_similarity"].item() < 0.9


def test_by_default_64_samples_get_maps(network: nn.Module) -> None:
    x = torch.randn(70, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for batch_size in (70, 64, 30):
        results = evaluate_invariance(network, x.split(batch_size), C4(), saliency=Gradient(), progress=False)
        assert_values(results, expected_values(network, x, None, explained=64))


def test_the_other_measures_do_not_depend_on_the_map(network: nn.Module, x: Tensor, target: Tensor) -> None:
    batches = list(zip(x.split(SIZES), target.split(SIZES), strict=True))
    without, *others = (
        evaluate_invariance(network, batches, C4(), progress=False, **options)
        for options in ({"saliency_samples": 0}, {}, {"saliency_samples": 7}, {"saliency": Gradient(dither=0.5)})
    )
    for results in others:
        del results["saliency_invariance_similarity"]
        assert {name: each.value.item() for name, each in results.items()} == {
            name: each.value.item() for name, each in without.items()
        }


def test_one_output_a_sample_has_maps_as_one_class_has(x: Tensor) -> None:
    torch.manual_seed(4)
    column = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    labels = torch.arange(SAMPLES) % 2
    for batches in (x.split(SIZES), list(zip(x.split(SIZES), labels.split(SIZES), strict=True))):
        one, other = (
            evaluate_invariance(network, batches, C4(), saliency=Gradient(), progress=False)
            for network in (column, nn.Sequential(column, nn.Flatten(0)))
        )
        assert set(one) == set(other)
        maps, orbit_maps = maps_of(column, x, torch.zeros(SAMPLES, dtype=torch.int64))
        expected = f.saliency_invariance_similarity(maps, orbit_maps).item()
        for results in (one, other):
            found = results["saliency_invariance_similarity"].value.item()
            assert found == pytest.approx(expected, rel=1e-5)


def test_a_network_that_is_invariant_by_construction(network: nn.Module, x: Tensor) -> None:
    results = evaluate_invariance(
        Symmetrised(network), x.split(SIZES), C4(), saliency=PaperSaliency(steps=4), progress=False
    )
    assert results["logit_invariance_error"].value < 1e-20
    assert results["normalized_logit_invariance_error"].value < 1e-20
    assert results["relative_logit_invariance_error"].value < 1e-20
    assert results["distribution_invariance_error"].value < 1e-12
    assert results["jensen_shannon_invariance_error"].value < 1e-12
    assert results["orbit_share"].value < 1e-20
    assert results["saliency_invariance_similarity"].value.item() == pytest.approx(1, abs=1e-6)
    assert results["prediction_consistency"].value == 1


def test_an_ordinary_network_is_not_invariant(network: nn.Module, x: Tensor) -> None:
    results = evaluate_invariance(network, x.split(SIZES), C4(), progress=False)
    assert results["logit_invariance_error"].value > 1e-3
    assert results["orbit_share"].value > 0.1
    assert results["saliency_invariance_similarity"].value < 0.9


# What comes in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [False, True])
def test_loaders(network: nn.Module, x: Tensor, target: Tensor, labelled: bool) -> None:
    data = TensorDataset(x, target) if labelled else TensorDataset(x)
    results = evaluate_invariance(network, DataLoader(data, batch_size=10), C4(), saliency=Gradient(), progress=False)
    assert_values(results, expected_values(network, x, target if labelled else None))


def test_a_function_is_a_network(network: nn.Module, x: Tensor) -> None:
    network.eval()
    results = evaluate_invariance(lambda x: network(x), [x], C4(), saliency=Gradient(), progress=False)
    assert_values(results, expected_values(network, x, None))


def test_metrics_under_names_of_ones_own(network: nn.Module, x: Tensor) -> None:
    mine = {"share of each": OrbitShare(reduction="element"), "each": LogitInvarianceError(reduction="none")}
    results = evaluate_invariance(network, x.split(SIZES), C4(), measures=mine, progress=False)
    base, orbit = orbit_of(network, x)
    np.testing.assert_allclose(
        results["share of each"].value, f.orbit_share(base, orbit, reduction="element"), rtol=1e-5
    )
    np.testing.assert_allclose(
        results["each"].value, f.logit_invariance_error(base, orbit, reduction="none"), rtol=1e-5
    )
    assert results["each"].standard_error.isnan().all()
    assert mine["each"].update_called is False


def test_dense_outputs_have_logit_errors_alone_and_a_warning(x: Tensor) -> None:
    network = nn.Conv2d(1, 2, 3, padding=1).double()
    with pytest.warns(UserWarning, match="has the places that C4\\(\\) moves in the input") as warned:
        results = evaluate_invariance(network, x.split(SIZES), C4(), progress=False)
    assert len(warned) == 1
    base, orbit = orbit_of(network, x)
    assert set(results) == {"logit_invariance_error", "normalized_logit_invariance_error"}
    expected = f.logit_invariance_error(base, orbit)
    assert results["logit_invariance_error"].value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_inputs_that_are_no_images(x: Tensor) -> None:
    """The paper's maps need images; all other measures do not."""
    torch.manual_seed(3)
    network, vectors = nn.Linear(3, CLASSES).double(), x.flatten()[: 3 * 20].reshape(20, 3)
    swap = LinearAction(torch.stack([torch.eye(3), torch.eye(3).flip(0)]))
    results = evaluate_invariance(network, vectors.split(8), swap, progress=False)
    base, orbit = network(vectors), network(vectors.flip(1))[None]
    expected = f.logit_invariance_error(base, orbit).item()
    assert results["logit_invariance_error"].value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("outputs", [1, 3])
def test_targets_that_are_no_labels(x: Tensor, outputs: int) -> None:
    """A regression's targets allow no accuracy; the other measures remain."""
    torch.manual_seed(4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, outputs)).double()
    wanted = x.flatten(1)[:, :outputs]
    batches = list(zip(x.split(SIZES), wanted.split(SIZES), strict=True))
    results = evaluate_invariance(network, batches, C4(), progress=False)
    base, orbit = orbit_of(network, x)
    expected = f.logit_invariance_error(base, orbit).item()
    assert results["logit_invariance_error"].value.item() == pytest.approx(expected, rel=1e-5)
    assert not set(results) & set(LABELLED)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_one_output_a_sample(x: Tensor, target: Tensor, flat: bool, labelled: bool) -> None:
    """A regression has an orbit share, and no measure of classes, even where whole numbers come with it."""
    torch.manual_seed(4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 1), nn.Flatten(0) if flat else nn.Identity()).double()
    batches: Any = list(zip(x.split(SIZES), target.split(SIZES), strict=True)) if labelled else x.split(SIZES)
    results = evaluate_invariance(network, batches, C4(), saliency=Gradient(), progress=False)
    z = torch.stack([network(torch.rot90(x, k, (-2, -1))).detach().flatten() for k in range(4)]).numpy()
    half = ((z[1:] - z[0]) ** 2).mean() / 2
    expected = {
        "logit_invariance_error": half,
        "normalized_logit_invariance_error": ((z[1:] - z[0]) ** 2 / z[0] ** 2).mean(),
        "relative_logit_invariance_error": half / z[0].var(),
        "orbit_share": z.var(axis=0).mean() / z.var(),
    }
    assert set(results) == {*expected, "saliency_invariance_similarity"}
    for name, value in expected.items():
        assert results[name].value.item() == pytest.approx(value, rel=1e-5), name
        assert results[name].standard_error.item() > 0, name


def test_a_single_logit_is_a_probability_under_sigmoid(x: Tensor) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 1)).double()
    mine = {"probability": DistributionInvarianceError(activation="sigmoid")}
    results = evaluate_invariance(network, x.split(SIZES), C4(), measures=mine, progress=False)
    p = torch.stack([network(torch.rot90(x, k, (-2, -1))).detach().sigmoid().flatten() for k in range(4)])
    divergences = p[0] * (p[0] / p[1:]).log() + (1 - p[0]) * ((1 - p[0]) / (1 - p[1:])).log()
    assert results["probability"].value.item() == pytest.approx(divergences.mean().item(), rel=1e-5)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_where_no_gradient_is_recorded(network: nn.Module, x: Tensor, target: Tensor, context: Any) -> None:
    with context():
        batches = [(x.clone(), target.clone())]
        results = evaluate_invariance(network, batches, C4(), saliency=Gradient(), progress=False)
    assert_values(results, expected_values(network, x, target))


def test_progress_is_shown_on_demand(network: nn.Module, x: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_invariance(network, [x], C4(), measures=["orbit_share"], progress=False)
    assert capsys.readouterr().err == ""
    evaluate_invariance(network, [x], C4(), measures=["orbit_share"])
    assert "Invariance" in capsys.readouterr().err


# A network left as it was ----------------------------------------------------------------------------------------


def mixed(network: nn.Sequential) -> list[bool]:
    """Some submodules in train mode, some in eval mode, children unlike their parents."""
    network.train()
    network[1].eval()
    network[3].eval()
    network[3][0].train()
    return [module.training for module in network.modules()]


@pytest.fixture(params=["mixed", "train", "eval"])
def modes(request: pytest.FixtureRequest, network: nn.Sequential) -> list[bool]:
    if request.param == "mixed":
        return mixed(network)
    network.train(request.param == "train")
    return [module.training for module in network.modules()]


def test_modes_are_given_back(network: nn.Module, modes: list[bool], x: Tensor) -> None:
    results = evaluate_invariance(network, x.split(SIZES), C4(), saliency=Gradient(), progress=False)
    assert [module.training for module in network.modules()] == modes
    assert_values(results, expected_values(network, x, None))  # in eval mode all the same


def test_modes_are_given_back_after_an_exception(network: nn.Sequential, x: Tensor) -> None:
    failing = Failing(network)
    modes = [True, *mixed(network)]
    state = {name: tensor.clone() for name, tensor in failing.state_dict().items()}
    random_state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="out of patience"):
        evaluate_invariance(failing, x.split(SIZES), C4(), progress=False)
    assert [module.training for module in failing.modules()] == modes
    torch.testing.assert_close(dict(failing.state_dict()), state, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state)


class Counter(nn.Module):
    """Draws noise and writes to a buffer, whatever its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return x + 0.1 * torch.randn_like(x)


def test_buffers_random_streams_and_gradients_are_as_before(network: nn.Sequential, x: Tensor, target: Tensor) -> None:
    network.append(Counter())
    nn.functional.cross_entropy(network(x), target).backward()
    identities = [id(tensor) for tensor in (*network.parameters(), *network.buffers())]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(network.parameters()))
    streams = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    evaluate_invariance(network, x.split(SIZES), C4(), saliency=PaperSaliency(steps=3), progress=False)
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert np.random.get_state()[1].tolist() == streams[1]
    assert random.getstate() == streams[2]
    torch.testing.assert_close(dict(network.state_dict()), state, rtol=0, atol=0)
    assert [id(tensor) for tensor in (*network.parameters(), *network.buffers())] == identities
    torch.testing.assert_close([parameter.grad for parameter in network.parameters()], gradients, rtol=0, atol=0)


@pytest.mark.parametrize("shuffle", [False, True])
def test_random_streams_are_as_before_with_a_loader(network: nn.Module, x: Tensor, shuffle: bool) -> None:
    """A loader draws from torch's stream whenever it is run through."""
    loader = DataLoader(TensorDataset(x), batch_size=10, shuffle=shuffle)
    before = torch.get_rng_state()
    evaluate_invariance(network, loader, C4(), measures=["logit_invariance_error"], progress=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_parameters_get_no_gradient(network: nn.Module, x: Tensor) -> None:
    evaluate_invariance(network, [x], C4(), progress=False)
    assert all(parameter.grad is None for parameter in network.parameters())


# Errors ----------------------------------------------------------------------------------------------------------


def nothing() -> Iterator[Tensor]:
    return iter(())


@pytest.mark.parametrize("batches", [[], nothing(), [torch.zeros(0, 1, SIDE, SIDE).double()]])
def test_no_batch_is_an_error(network: nn.Module, batches: Any) -> None:
    with pytest.raises(ValueError, match="`batches` to hold at least one sample but got none"):
        evaluate_invariance(network, batches, C4(), progress=False)
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": []}, r"`measures` to name at least one measure in a list but got \[\]"),
        ({"measures": "orbit_share"}, "`measures` to name at least one measure in a list but got 'orbit_share'"),
        ({"measures": ["share"]}, r"`measures` to be among .* but got \['share'\]"),
        ({"measures": {"mine": 3}}, r"`measures` to hold torchmetrics metrics but \['mine'\] are none"),
        ({"saliency": "gradient"}, "`saliency` to be a Saliency, a captum attribution or a function"),
        ({"saliency_samples": -1}, "`saliency_samples` to be an integer of at least 0"),
        ({"max_batch": 0}, "`max_batch` to be an integer of at least 1"),
    ],
)
def test_wrong_arguments_are_refused(network: nn.Module, x: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_invariance(network, [x], C4(), progress=False, **options)


def test_a_group_is_needed(network: nn.Module, x: Tensor) -> None:
    with pytest.raises(ValueError, match="`action` to be an Action, such as C4"):
        evaluate_invariance(network, [x], C4, progress=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`action` to have an element besides the identity"):
        evaluate_invariance(network, [x], LinearAction(torch.eye(SIDE)[None]), progress=False)


@pytest.mark.parametrize("batch", [{"x": 1}, "x", (1, 2), 3.0])
def test_batches_must_be_tensors(network: nn.Module, batch: Any) -> None:
    with pytest.raises(ValueError, match=r"`batches` to give tensors x, pairs|expected to find the input in the batch"):
        evaluate_invariance(network, [batch], C4(), progress=False)


def test_a_metric_of_other_inputs_is_refused(network: nn.Module, x: Tensor) -> None:
    from torchmetrics import MeanMetric

    with pytest.raises(ValueError, match=r"update of 'mean' to name inputs among .* but got \['value', 'weight'\]"):
        evaluate_invariance(network, [x], C4(), measures={"mean": MeanMetric()}, progress=False)


class DeepSets(nn.Module):
    """Invariant to the order of a set, not to anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(x).tanh().mean(dim=-2))


class OfDistances(nn.Module):
    """Depends on the distances of points from the origin alone."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(x.norm(dim=-1).tanh())


@pytest.mark.parametrize(
    ("network", "action", "shape"),
    [
        (
            OrbitPooled(nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.Tanh(), nn.Linear(8, 4)), C4()),
            C4(),
            (1, 12, 12),
        ),
        (
            OrbitPooled(
                nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.Tanh(), nn.Linear(8, 4)), CyclicTranslations(3)
            ),
            CyclicTranslations(3),
            (1, 12, 12),
        ),
        (
            OrbitPooled(nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)), TimeReversal()),
            TimeReversal(),
            (12,),
        ),
        (DeepSets(), SetPermutations(4), (10, 3)),
        (OfDistances(), SO3(4), (10, 3)),
    ],
    ids=["C4", "translations", "time", "sets", "points"],
)
def test_by_default_the_maps_of_an_invariant_network_agree(
    network: nn.Module, action: Action, shape: tuple[int, ...]
) -> None:
    """No border, order or sign of the maps may make a network look at different things when it does not."""
    torch.manual_seed(0)
    x = torch.randn(16, *shape, dtype=torch.float64)
    results = evaluate_invariance(network.double(), [x], action, progress=False)
    assert results["logit_invariance_error"].value < 1e-20
    assert results["saliency_invariance_similarity"].value == pytest.approx(1, abs=1e-6)


def test_a_measure_asked_for_by_name_that_saw_nothing_is_an_error() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(ValueError, match="'orbit_accuracy'"):
        evaluate_invariance(network, [torch.randn(2, 1, 4, 4)], C4(), measures=["orbit_accuracy"], progress=False)


def test_maps_explain_the_prediction_where_the_targets_are_no_classes() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x, labels = torch.randn(5, 1, 4, 4), torch.rand(5, 3)
    name = "saliency_invariance_similarity"
    with_labels = evaluate_invariance(network, [(x, labels)], C4(), measures=[name], progress=False)
    without = evaluate_invariance(network, [x], C4(), measures=[name], progress=False)
    assert with_labels[name].value == without[name].value
