"""An audit: the numbers of the functions that it joins, by one pass over the data, and what it leaves out."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from math import isnan
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_invariance import (
    C4,
    Audit,
    CyclicTranslations,
    HorizontalFlip,
    Scalings,
    audit,
    evaluate_invariance,
    evaluate_layers,
)
from lightning_invariance.auditing import SCHEMA

CLASSES = 3
X = torch.randn(24, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % CLASSES
BATCHES = [(X[start : start + 8], Y[start : start + 8]) for start in range(0, 24, 8)]
GROUPS = {"turns": C4(), "shifts": CyclicTranslations(6)}


def perceptron(outputs: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, outputs))


class Counted:
    """Batches that count how often they are read."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches, self.passes, self.read = batches, 0, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for batch in self.batches:
            self.read += 1
            yield batch


@pytest.fixture(scope="module")
def audited() -> tuple[Audit, Counted, nn.Module]:
    network, batches = perceptron(), Counted(BATCHES)
    conditions = ["orbit_share < 2", "turns: worst_case_orbit_accuracy > 1.1 * accuracy"]
    return audit(network, batches, GROUPS, conditions=conditions, samples=12, progress=False), batches, network


def test_all_groups_are_measured_in_one_pass(audited: tuple[Audit, Counted, nn.Module]) -> None:
    result, batches, _ = audited
    assert (batches.passes, batches.read) == (1, 3)
    assert list(result.groups) == ["turns", "shifts"]
    assert result.samples == 24
    assert result.parameters == 36 * 8 + 8 + 8 * 3 + 3


def test_the_numbers_are_those_of_the_functions_that_measure(audited: tuple[Audit, Counted, nn.Module]) -> None:
    result, _, network = audited
    for name, action in GROUPS.items():
        group = result.groups[name]
        alone = evaluate_invariance(
            network, BATCHES, action, per_class=True, keep="worst", n=4, saliency_samples=12, progress=False
        )
        assert set(group.measures) == {*alone, "accuracy"}
        for measure, expected in alone.items():
            torch.testing.assert_close(group.measures[measure], expected, rtol=0, atol=0)
            torch.testing.assert_close(group.per_class[measure], alone.per_class[measure], rtol=0, atol=0)
        assert alone.kept is not None
        assert group.worst is not None
        assert torch.equal(group.worst.index, alone.kept.index)
        first = [(X[:8], Y[:8]), (X[8:12], Y[8:12])]
        layers = evaluate_layers(network, first, action, progress=False)
        assert group.layers is not None
        assert group.layers.samples == 12
        assert [row.label for row in group.layers.rows] == [row.label for row in layers.rows]
        for own, other in zip(group.layers.rows, layers.rows, strict=True):
            torch.testing.assert_close(own.error, other.error, equal_nan=True)
        assert group.setup is not None
        assert group.setup.samples == 12
        assert dict(group.left_out) == {}
    accuracy = (network(X).argmax(dim=1) == Y).double().mean()
    assert float(result.groups["turns"].measures["accuracy"].value) == pytest.approx(float(accuracy))


def test_errors_by_element_are_those_of_a_loop(audited: tuple[Audit, Counted, nn.Module]) -> None:
    result, _, network = audited
    moves = {
        "turns": ([X.rot90(turn, (2, 3)) for turn in (1, 2, 3)], [0.0, 90.0, 180.0, 270.0]),
        "shifts": ([X.roll(step, 3) for step in range(1, 6)], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
    }
    with torch.no_grad():
        base = network(X).double()
        for name, (moved, sizes) in moves.items():
            group = result.groups[name]
            assert group.motion is not None
            assert list(group.motion.values) == sizes
            for place, each in enumerate(moved):
                logits = network(each).double()
                errors = (logits - base).square().sum(dim=1) / base.square().sum(dim=1)
                same = (logits.argmax(dim=1) == base.argmax(dim=1)).double()
                right = (logits.argmax(dim=1) == Y).double()
                values = {measure: estimate.value[place] for measure, estimate in group.by_element.items()}
                bands = {measure: estimate.standard_error[place] for measure, estimate in group.by_element.items()}
                assert float(values["normalized_logit_invariance_error"]) == pytest.approx(
                    float(errors.mean()), rel=1e-5
                )
                assert float(values["prediction_consistency"]) == pytest.approx(float(same.mean()))
                assert float(values["orbit_accuracy"]) == pytest.approx(float(right.mean()))
                assert float(bands["prediction_consistency"]) == pytest.approx(float(same.std() / 24**0.5), rel=1e-6)


def test_conditions_are_judged_of_each_group(audited: tuple[Audit, Counted, nn.Module]) -> None:
    result, _, _ = audited
    assert [(each.group, each.passed) for each in result.conditions] == [
        ("turns", True),
        ("shifts", True),
        ("turns", False),
    ]
    assert result.complete
    assert not result.passed
    with pytest.raises(AttributeError):
        result.stopped = "no"  # type: ignore[misc]


# What is written -------------------------------------------------------------------------------------------------


def complaints(value: Any, schema: Mapping[str, Any], place: str = "$") -> list[str]:
    """What of a value does not follow a schema: the keywords that ours uses, and an error for any other."""
    unknown = set(schema) - {"$schema", "title", "type", "required", "properties", "additionalProperties", "items"}
    assert not unknown - {"enum", "const", "anyOf", "minimum"}, unknown
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "null": type(None),
        "number": (int, float),
        "integer": int,
    }
    found = []
    if "type" in schema:
        types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        allowed = any(isinstance(value, kinds[each]) for each in types)
        if not allowed or (isinstance(value, bool) and "boolean" not in types):
            return [f"{place} is {value!r} and no {types}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{place} is {value!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{place} is {value!r}")
    if "minimum" in schema and value < schema["minimum"]:
        found.append(f"{place} is {value!r}")
    if "anyOf" in schema:
        each = [complaints(value, one, place) for one in schema["anyOf"]]
        found += [] if [] in each else each[-1]
    if isinstance(value, dict) and schema.get("type") == "object":
        found += [f"{place} lacks {name}" for name in schema.get("required", []) if name not in value]
        for name, part in value.items():
            of_it = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            found += [f"{place} has {name}"] if of_it is None else complaints(part, of_it, f"{place}.{name}")
    if isinstance(value, list) and "items" in schema:
        found += [text for i, part in enumerate(value) for text in complaints(part, schema["items"], f"{place}[{i}]")]
    return found


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_the_json_follows_its_schema(audited: tuple[Audit, Counted, nn.Module]) -> None:
    result, _, _ = audited
    content = json.loads(result.to_json(), parse_constant=refuse_constant)
    assert complaints(content, SCHEMA) == []
    assert content["schema_version"] == 1
    (turns, _) = content["groups"]
    value = turns["measures"]["orbit_share"]["value"]
    assert value == float(result.groups["turns"].measures["orbit_share"].value)
    assert turns["layers"]["breaks_at"] == "1"
    del content["groups"][0]["measures"]
    content["samples"] = "many"
    assert complaints(content, SCHEMA) == ["$.groups[0] lacks measures", "$ has samples"]


def test_a_page_and_json_are_saved(audited: tuple[Audit, Counted, nn.Module], tmp_path: Path) -> None:
    result, _, _ = audited
    page = result.save(tmp_path / "audit.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2 * 4  # for each group the motions, the layers, the classes and the worst samples
    for text in (
        "Audit of Sequential",
        "1 of 3 conditions does not hold",
        "turns",
        "shifts",
        "breaks at",
        "noise floor",
    ):
        assert text in page
    assert json.loads(result.save(str(tmp_path / "audit.json")).read_text(encoding="utf-8"))["passed"] is False
    for wrong in ("audit.txt", "audit", 3, None):
        with pytest.raises(ValueError, match=r"`path` to end in .html or .json but got"):
            result.save(wrong)  # type: ignore[arg-type]
    frame = result.to_dataframe()
    row = frame[(frame.group == "shifts") & (frame.measure == "orbit_share")].iloc[0]
    assert row.value == float(result.groups["shifts"].measures["orbit_share"].value)
    assert "<table" in result._repr_html_()
    assert "Sequential: 1 of 3 conditions does not hold." in result._repr_html_()
    assert "FAIL  turns: worst_case_orbit_accuracy" in str(result)


def test_without_matplotlib_the_page_has_its_tables(
    audited: tuple[Audit, Counted, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _, _ = audited
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    page = result.to_html()
    assert page.count("<img ") == 0
    assert page.count("There is no picture. Drawing figures needs matplotlib: pip install") == 2 * 4
    assert page.count("<table") == 1 + 2 * 5  # of the groups; of measures, motions, layers, classes, the worst of each


def test_of_many_motions_and_classes_the_page_shows_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # the tables are what is looked at
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(30, 40))
    x, y = torch.randn(80, 1, 30), torch.arange(80) % 40
    page = audit(network, [(x, y)], CyclicTranslations(30), samples=0, progress=False).to_html()
    with torch.no_grad():
        base = network(x)
        logits = [network(x.roll(step, 2)) for step in range(1, 30)]
    errors = [float(((each - base).square().sum(1) / base.square().sum(1)).mean()) for each in logits]
    worst = sorted(range(29), key=lambda element: -errors[element])[:24]
    section = page[page.index("By motion") : page.index("Which classes")]
    assert sorted(re.findall(r">(shift\d+of30)<", section)) == sorted(f"shift{each + 1}of30" for each in worst)
    same = torch.stack([each.argmax(1) == base.argmax(1) for each in logits]).double().mean(0)
    by_class = [float(same[y == label].mean()) for label in range(40)]
    bound = sorted(by_class)[19]
    section = page[page.index("By class") : page.index("The worst samples")]
    shown = [int(label) for label in re.findall(r'<th scope="row"[^>]*>(\d+)</th>', section)]
    assert len(shown) == 20
    assert all(by_class[label] <= bound + 1e-9 for label in shown)


def test_what_comes_from_data_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    network = type(evil, (nn.Sequential,), {})(*perceptron())
    names = [evil, "a & b", "'\"><img src=x onerror=alert(1)>"]
    result = audit(
        network,
        BATCHES,
        {evil: HorizontalFlip()},
        conditions=["accuracy > 0"],
        per_class=names,
        samples=4,
        progress=False,
    )
    page = result.to_html()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 5
    assert "<script>alert" not in result._repr_html_()


# What cannot be computed -----------------------------------------------------------------------------------------


def test_what_there_is_not_is_left_out_with_the_reason() -> None:
    result = audit(
        perceptron(1), [X], Scalings([0.5, 2.0]), measures=["lie_derivative_error"], samples=8, progress=False
    )
    group = result.groups["Scalings"]
    assert set(group.left_out) == {"classes", "measures"}
    assert "there are none" in group.left_out["classes"]
    assert "accuracy" in group.left_out["measures"]
    assert "lie_derivative_error" in group.left_out["measures"]  # scalings by two factors have no generator
    assert "accuracy" not in group.measures
    assert list(group.by_element) == ["normalized_logit_invariance_error"]
    assert group.per_class == {}
    page = result.to_html()
    assert "Expected one label a sample for values by class" in page
    assert "Which classes" in page
    assert complaints(json.loads(result.to_json()), SCHEMA) == []


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.detach())


def test_maps_are_left_out_where_there_is_no_gradient() -> None:
    group = audit(Detached(), BATCHES, C4(), samples=4, progress=False).groups["C4"]
    assert "gradient" in group.left_out["maps"]
    assert group.worst is not None
    assert group.worst.saliency is None
    assert "saliency_invariance_similarity" not in group.measures
    assert group.per_class != {}


def test_nothing_is_looked_at_closer_with_no_samples() -> None:
    result = audit(perceptron(), BATCHES, C4(), samples=0, progress=False)
    group = result.groups["C4"]
    assert set(group.left_out) == {"maps", "setup", "layers", "measures"}
    assert group.setup is group.layers is None
    assert "Nothing was looked at closer" in result.to_html()


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.energy = perceptron(1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"energy": self.energy(x), "map": x * self.energy(x)[:, :, None, None]}


def test_several_outputs_have_names_of_their_own() -> None:
    condition = "map.relative_equivariance_error < 10"
    moves = {"energy": None, "map": "same"}
    result = audit(TwoOutputs(), [X], C4(), conditions=[condition], output_action=moves, samples=8, progress=False)
    expected = evaluate_invariance(TwoOutputs(), [X], C4(), output_action=moves, progress=False)
    name = "map/relative_equivariance_error"
    assert result.conditions[0].values == {name: float(expected[name].value)}
    assert result.passed
    assert "worst" in result.groups["C4"].left_out
    assert "map: relative error" in result.to_html()


def test_an_error_names_the_group() -> None:
    with pytest.raises(ValueError, match="audit of turns: expected `x` to have square images"):
        audit(perceptron(), [X[..., :4]], {"turns": C4()}, progress=False)


# What it leaves behind -------------------------------------------------------------------------------------------


def test_the_network_and_the_random_streams_are_left_as_they_were() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), *perceptron()).train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    audit(network, DataLoader(TensorDataset(X, Y), 8, shuffle=True), C4(), samples=8, progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network[:2]] == [True, False]
    assert all(parameter.grad is None for parameter in network.parameters())


class Digits(L.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.did: list[str] = []

    def prepare_data(self) -> None:
        self.did.append("prepare")

    def setup(self, stage: str) -> None:
        self.did.append(f"set up to {stage}")

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(X, Y), 8)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] + 1, batch[1]

    def teardown(self, stage: str) -> None:
        self.did.append(f"tear down from {stage}")


def test_a_data_module_is_set_up_and_torn_down_and_its_hooks_prepare_the_batches() -> None:
    data, network = Digits(), perceptron()
    result = audit(network, data, C4(), samples=0, progress=False)
    assert data.did == ["prepare", "set up to validate", "tear down from validate"]
    assert result.data == "val_dataloader of Digits"
    expected = evaluate_invariance(network, [(X + 1, Y)], C4(), measures=["orbit_share"], progress=False)
    torch.testing.assert_close(result.groups["C4"].measures["orbit_share"].value, expected["orbit_share"].value)
    with pytest.raises(ValueError, match=r"to have a test_dataloader or a val_dataloader but LightningDataModule"):
        audit(network, L.LightningDataModule(), C4(), progress=False)


# Ctrl-C ----------------------------------------------------------------------------------------------------------


def interrupted_after(count: int) -> Iterator[Any]:
    for number, batch in enumerate(BATCHES):
        if number == count:
            os.kill(os.getpid(), signal.SIGINT)
        yield batch


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_what_is_done_and_no_condition_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # pictures cost most
    before = signal.getsignal(signal.SIGINT)
    network = perceptron()
    with pytest.warns(UserWarning, match="audit: the audit was stopped before all batches were measured"):
        result = audit(network, interrupted_after(1), GROUPS, conditions=["orbit_share < 2"], progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    assert not result.complete
    assert not result.passed
    assert [each.passed for each in result.conditions] == [False, False]
    # The signal comes while the second batch is on its way, which is still measured, by all groups.
    for name, action in GROUPS.items():
        group = result.groups[name]
        assert group.samples == 16
        alone = evaluate_invariance(network, BATCHES[:2], action, measures=["orbit_share"], progress=False)
        torch.testing.assert_close(group.measures["orbit_share"], alone["orbit_share"], rtol=0, atol=0)
        assert set(group.left_out) == {"setup", "layers"}
        assert not isnan(result.conditions[0].values["orbit_share"])
    page = result.to_html()
    assert "The audit is incomplete." in page
    content = json.loads(result.to_json())
    assert complaints(content, SCHEMA) == []
    assert (content["complete"], content["passed"]) == (False, False)


@pytest.mark.usefixtures("interruptible")
def test_a_second_ctrl_c_stops_at_once() -> None:
    def twice() -> Iterator[Any]:
        yield BATCHES[0]
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        yield BATCHES[1]

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        audit(perceptron(), twice(), C4(), progress=False)
    assert signal.getsignal(signal.SIGINT) is before


# What is not finite, and what a measure rests on -----------------------------------------------------------------


class SilentWhenTurned(nn.Module):
    """Right in the pose of the data; NaN once a bright corner has left its place."""

    def forward(self, x: Tensor) -> Tensor:
        logits = nn.functional.one_hot(x[:, 0, 2, 2].long() % CLASSES, CLASSES).float()
        return torch.where((x[:, 0, 0, 0] < x[:, 0, 5, 5])[:, None], torch.nan, logits)


@pytest.mark.filterwarnings("ignore:audit of")
def test_no_condition_holds_on_a_measure_that_left_samples_out() -> None:
    x = torch.zeros(10, 1, 6, 6)
    x[:, 0, 2, 2] = x[:, 0, 3, 3] = x[:, 0, 2, 3] = x[:, 0, 3, 2] = torch.arange(10) % CLASSES  # stays when turned
    x[:7, 0, 0, 0] = 5.0  # two corners alike in three samples, in which nothing is NaN
    conditions = ["worst_case_orbit_accuracy > 0.9 * accuracy", "accuracy > 0.9", "orbit_share < 2 or accuracy > 0"]
    result = audit(
        SilentWhenTurned(), [(x, torch.arange(10) % CLASSES)], C4(), conditions=conditions, samples=0, progress=False
    )
    assert [each.passed for each in result.conditions] == [False, True, False]
    said = "7 of 10 samples have NaN or infinite values and were not measured"
    assert result.conditions[0].why == f"worst_case_orbit_accuracy: {said}"
    counts = result.groups["C4"].counts
    assert counts["accuracy"] == (10, 0, 0)
    assert counts["worst_case_orbit_accuracy"] == (3, 7, 0)
    assert said in result.to_html()
    assert "not all samples are finite" in result.to_html()
    measures = json.loads(result.to_json())["groups"][0]["measures"]
    assert (measures["orbit_share"]["samples"], measures["orbit_share"]["not_finite"]) == (3, 7)
    everything = audit(nn.Flatten(), [(x * torch.nan, torch.arange(10))], C4(), samples=0, progress=False)
    assert "Undefined, NaN:" in everything.groups["C4"].left_out["measures"]
    assert "all samples have NaN" in everything.groups["C4"].left_out["measures"]


def test_warnings_name_the_group_and_are_not_repeated_for_each_class() -> None:
    x = X.clone()
    x[1] = torch.nan
    with pytest.warns(UserWarning, match="held NaN or infinite values") as caught:
        audit(perceptron(), [(x, Y)], {"turns": C4()}, samples=0, progress=False)
    said = [str(each.message) for each in caught if "orbit share" in str(each.message).lower()]
    assert said == ["audit of turns: The orbit share: 1 of 24 samples held NaN or infinite values and are left out."]


def test_a_measure_says_on_how_many_samples_it_rests() -> None:
    result = audit(perceptron(), BATCHES, C4(), measures=["selectivity"], samples=4, progress=False)
    measures = json.loads(result.to_json())["groups"][0]["measures"]
    assert {name: measures[name]["samples"] for name in ("orbit_share", "selectivity")} == {
        "orbit_share": 24,
        "selectivity": 4,
    }
    assert measures["saliency_invariance_similarity"]["samples"] == 4
    assert audit(perceptron(), BATCHES, C4(), samples=999, progress=False).looked_at == 24


def test_each_measure_that_is_left_out_has_its_own_reason() -> None:
    wanted = ["selectivity", "lie_derivative_error", "orbit_mean_iou"]
    none = audit(perceptron(), BATCHES, C4(), measures=wanted, samples=0, progress=False)
    said = none.groups["C4"].left_out["measures"]
    assert "selectivity, as `samples` is 0." in said
    assert "Not measured: lie_derivative_error, as the group has no generator" in said
    assert "Not measured: orbit_mean_iou, as the outputs are no scores of classes at each place" in said
    labelless = audit(perceptron(), [X], C4(), samples=4, measures=["lie_derivative_error"], progress=False)
    said = labelless.groups["C4"].left_out["measures"]
    assert re.search(r"accuracy, .*worst_case_orbit_accuracy, as there are no labels", said)
    assert "lie_derivative_error, as the group has no generator" in said


# Batches and names -----------------------------------------------------------------------------------------------


def test_empty_batches_are_passed_over() -> None:
    empty = (X[:0], Y[:0])
    network = perceptron()
    with_empty = audit(network, [empty, *BATCHES, empty], C4(), samples=0, progress=False)
    without = audit(network, BATCHES, C4(), samples=0, progress=False)
    assert with_empty.samples == 24
    assert with_empty.groups["C4"].values == without.groups["C4"].values
    with pytest.raises(ValueError, match="expected `batches` to hold at least one sample"):
        audit(network, [empty], C4(), progress=False)
    kept = evaluate_invariance(network, [*BATCHES, empty], C4(), keep="worst", progress=False).kept
    assert kept is not None


def test_labels_that_are_missing_later_are_told_without_what_nobody_asked_for() -> None:
    with pytest.raises(ValueError, match="audit of C4: expected one label a sample in each batch, as in the first one"):
        audit(perceptron(), [BATCHES[0], X[:8]], C4(), samples=0, progress=False)


@pytest.mark.parametrize("name", [" turns", "turns ", "quarter\nturns"])
def test_names_of_groups_have_no_blanks_at_their_ends(name: str) -> None:
    with pytest.raises(ValueError, match="names without blanks at their ends"):
        audit(perceptron(), BATCHES, {name: C4()}, progress=False)


def test_names_of_outputs_are_written_as_they_are_typed() -> None:
    moves = {"energy": None, "map": "same"}
    with pytest.raises(ValueError, match=r"'map.orbit_share'.* but got \['maps.orbit_share'\]"):
        audit(TwoOutputs(), [X], C4(), conditions=["maps.orbit_share < 1"], output_action=moves, progress=False)


def test_a_class_that_is_named_twice_is_refused_as_that() -> None:
    with pytest.raises(ValueError, match=r"to name each class once but got \['b'\]"):
        audit(perceptron(), BATCHES, C4(), per_class=["a", "b", "b"], progress=False)


@pytest.mark.parametrize("wrapped", [lambda each: [each], lambda each: {"test": each}])
def test_a_single_loader_in_a_list_is_taken_and_several_are_refused(wrapped: Any) -> None:
    class Listed(L.LightningDataModule):
        several = False

        def test_dataloader(self) -> Any:
            loader = DataLoader(TensorDataset(X, Y), 8)
            return [loader, loader] if self.several else wrapped(loader)

    data = Listed()
    assert audit(perceptron(), data, C4(), samples=0, progress=False).samples == 24
    data.several = True
    with pytest.raises(ValueError, match="to give one DataLoader but got 2 in a list: pass the one that is meant"):
        audit(perceptron(), data, C4(), samples=0, progress=False)


def test_a_group_that_cannot_act_is_found_before_another_has_worked() -> None:
    class Untouched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("work was begun")

    with pytest.raises(ValueError, match="audit of shifts: expected"):
        audit(Untouched(), BATCHES, {"turns": C4(), "shifts": CyclicTranslations(5)}, progress=False)


def test_an_error_names_the_arguments_of_audit() -> None:
    class Listing(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x]

    with pytest.raises(ValueError, match="that gives them with `module=`"):
        audit(Listing(), [X], C4(), progress=False)
