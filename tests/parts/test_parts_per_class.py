"""Values by class: those of each class's samples alone, whatever the measure, on one process and on two."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import traceback
import warnings
from pathlib import Path
from typing import Any

import parts_worker
import pytest
import torch
import torchmetrics
from helpers import loader, trainer_for
from measures import CASES, Batch, make_data, split, take
from oracles import Classifier
from processes import Launch
from torch import Tensor, distributed, multiprocessing, nn

from lightning_invariance import C4, InvarianceMonitor, LogitInvarianceError, OrbitShare, PerClass, evaluate_invariance
from lightning_invariance.report import per_class_table, plot_per_class

EMPTY = "ignore:Values by class are NaN where there are no samples"
LEFT_OUT = "ignore:Labels of .* name none of"
SIZES = [5, 1, 16, 2, 30, 1, 8]
CLASSES = 4


def labelled(samples: int, seed: int = 0) -> Batch:
    """Samples of the classes 0, 1 and 3 of four, and some to be ignored."""
    data = make_data(samples, classes=CLASSES, seed=seed)
    labels = torch.tensor([0, 1, 3, 1, -100])
    return {**data, "target": labels[torch.arange(samples) * 7 % 5]}


def fed(metric: PerClass, name: str, batches: list[Batch]) -> PerClass:
    for batch in batches:
        metric.update(**{**CASES[name].pick(batch), "target": batch["target"]})
    return metric


def alone(name: str, data: Batch, number: int, reduction: str) -> Any:
    """The measure of the samples of one class."""
    metric = CASES[name].make(reduction=reduction)
    metric.update(**CASES[name].pick(take(data, data["target"] == number)))
    return metric.compute_with_error()


@pytest.mark.filterwarnings(EMPTY, LEFT_OUT)
@pytest.mark.parametrize("name", CASES)
def test_each_class_has_the_value_of_its_samples(name: str) -> None:
    case, data = CASES[name], labelled(sum(SIZES))
    for reduction in case.reductions:
        if reduction == "none":
            continue
        metric = fed(PerClass(case.make(reduction=reduction), CLASSES), name, list(split(data, SIZES)))
        estimate = metric.compute_with_error()
        shape = (CLASSES, 2) if reduction == "element" else (CLASSES,)
        assert estimate.value.shape == estimate.standard_error.shape == shape
        for number in (0, 1, 3):
            expected = alone(name, data, number, reduction)
            torch.testing.assert_close(estimate.value[number], expected.value, rtol=1e-5, atol=1e-6)
            if "share" not in name and "relative" not in name:  # their folds are dealt out by batches
                torch.testing.assert_close(
                    estimate.standard_error[number], expected.standard_error, rtol=1e-4, atol=1e-6
                )
        assert estimate.value[2].isnan().all()
        assert torch.equal(metric.samples, torch.bincount(data["target"].clamp_min(-1) + 1, minlength=5)[1:])
        assert metric.left_out == int((data["target"] == -100).sum()) > 0
        metric.reset()
        assert metric.samples.sum() == 0


def test_it_warns_once_of_classes_without_samples() -> None:
    metric = fed(PerClass(OrbitShare(), 7), "share", [labelled(40)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert metric.compute().isnan().tolist() == [False, False, True, False, True, True, True]
    texts = sorted(str(each.message) for each in caught)
    assert len(texts) == 2
    assert "Labels of 8 of 40 samples name none of 7 classes" in texts[0]
    assert "of the classes [2, 4, 5, 6]" in texts[1]


@pytest.mark.filterwarnings(EMPTY, LEFT_OUT)
def test_it_is_a_metric_like_others() -> None:
    data = labelled(40)
    metric = PerClass(LogitInvarianceError())  # as many classes as there are logits
    first, second = split(data, [15, 25])
    of_batch = metric(first["logits"], first["orbit_logits"], target=first["target"])
    torch.testing.assert_close(
        of_batch, fed(PerClass(LogitInvarianceError(), 4), "logit", [first]).compute(), equal_nan=True
    )
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone(), metric):
        fed(other, "logit", [second])
        whole = fed(PerClass(LogitInvarianceError(), 4), "logit", [data]).compute()
        torch.testing.assert_close(other.compute(), whole, equal_nan=True)
    # Two of them in a collection never take each other's values.
    both = torchmetrics.MetricCollection({"a": PerClass(LogitInvarianceError()), "b": PerClass(OrbitShare())})
    for batch in (first, second):
        both.update(**batch)  # each takes what it knows
    values = both.compute()
    assert values["a"][0] == pytest.approx(whole[0])
    assert values["b"][0] == pytest.approx(float(alone("share", data, 0, "mean").value))


def test_any_torchmetrics_metric() -> None:
    metric = PerClass(torchmetrics.classification.MulticlassAccuracy(3, average="micro"), 3)
    preds, target = torch.tensor([0, 1, 2, 2, 0]), torch.tensor([0, 0, 2, 2, 1])
    metric.update(preds=preds[:3], target=target[:3])
    metric.update(preds=preds[3:], target=target[3:])
    assert metric.compute().tolist() == [0.5, 0.0, 1.0]
    assert metric.compute_with_error().standard_error.isnan().all()


# By name -----------------------------------------------------------------------------------------------------------


class TurnsOne(nn.Module):
    """Its logits move with the pose of the samples of class 1 alone, which are bright."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(1, 2, 3))
        corner = torch.where(mean > 5, x[:, 0, 0, 0], 0.0)
        return torch.stack([corner, mean, -mean], dim=1)


def bright(samples: int = 30) -> tuple[Tensor, Tensor]:
    target = torch.arange(samples) % 3
    return torch.randn(samples, 1, 4, 4) + 10.0 * (target == 1)[:, None, None, None], target


def test_the_class_that_a_network_turns_is_found() -> None:
    x, y = bright()
    batches = list(zip(x.split(7), y.split(7), strict=True))
    options: dict[str, Any] = {"saliency_samples": 0, "progress": False}
    results = evaluate_invariance(TurnsOne(), batches, C4(), per_class=["dark", "bright", "dim"], **options)
    assert results.classes == ("dark", "bright", "dim")
    assert set(results.per_class) == set(results)
    dark, light, dim = results.per_class["logit_invariance_error"].value.tolist()
    assert max(dark, dim) < 1e-10 < 0.1 < light
    overall = float(results["logit_invariance_error"].value)
    assert overall == pytest.approx((dark + light + dim) / 3, rel=1e-5)
    assert results["logit_invariance_error"].value.ndim == 0
    table = per_class_table(results).splitlines()
    assert [line.split("|")[1].strip() for line in table] == ["class", "---", "dark", "bright", "dim", "all"]
    assert "| LI |" in table[0]
    pytest.importorskip("matplotlib")
    panel = next(axes for axes in plot_per_class(results).axes if axes.get_title() == "LI")
    assert [bar.get_width() for bar in panel.patches] == pytest.approx([dark, light, dim])
    by_element = {"LI": LogitInvarianceError(reduction="element")}
    each = evaluate_invariance(TurnsOne(), batches, C4(), measures=by_element, per_class=True, progress=False)
    assert each.per_class["LI"].value.shape == (3, 3)
    with pytest.raises(ValueError, match="'LI' have one for each element"):
        per_class_table(each)
    with pytest.raises(ValueError, match="values by class"):
        per_class_table(evaluate_invariance(TurnsOne(), batches, C4(), **options))


def test_missing_classes_are_warned_of_once_for_all_measures() -> None:
    x, y = bright()
    names = ["logit_invariance_error", "orbit_share", "orbit_accuracy"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluate_invariance(TurnsOne(), [(x[y != 1], y[y != 1])], C4(), measures=names, per_class=True, progress=False)
    assert sum("Values by class are NaN" in str(each.message) for each in caught) == 1


def test_classes_of_outputs_that_are_no_scores() -> None:
    """Their number is said; classes are labels, also where the target of a measure is something else."""
    x, y = bright()
    batch = {"image": x, "target": y, "level": x.mean(dim=(1, 2, 3))}

    def network(image: Tensor) -> Tensor:
        return image[:, 0, 0, 0]

    options: dict[str, Any] = {"measures": ["logit_invariance_error", "relative_logit_invariance_error"]}
    results = evaluate_invariance(network, [batch], C4(), per_class=3, progress=False, **options)
    own = [x[y == number] for number in range(3)]
    expected = [evaluate_invariance(network, [each], C4(), progress=False, **options) for each in own]
    for name, estimate in results.per_class.items():
        torch.testing.assert_close(estimate.value, torch.stack([each[name].value for each in expected]))


@pytest.mark.parametrize("loaders", [1, 2])
def test_the_monitor_logs_and_records_them(loaders: int) -> None:
    measures = {"LI": LogitInvarianceError(), "by": LogitInvarianceError(reduction="element")}
    monitor = InvarianceMonitor(C4(), measures, per_class=["a", "b", "c"], prefix="p")
    trainer = trainer_for([monitor])
    torch.manual_seed(0)
    module = Classifier()
    trainer.validate(module, [loader()] * loaders, verbose=False)
    record = monitor.history[0]
    data = loader().dataset
    expected = evaluate_invariance(module, [(data.x, data.y)], C4(), per_class=3, progress=False)
    value = expected.per_class["logit_invariance_error"].value
    torch.testing.assert_close(record.per_class["LI"].value, value)
    assert record.classes == ("a", "b", "c")
    assert record.per_class["by"].value.shape == (3, 3)
    end = "/dataloader_idx_0" if loaders == 2 else ""
    logged = trainer.callback_metrics
    assert [float(logged[f"val/p/LI{end}/{label}"]) for label in "abc"] == pytest.approx(value.tolist())
    assert f"val/p/by{end}/c/rot90" in logged
    assert f"val/p/LI{end}" in logged
    assert "| a |" in per_class_table(record)


# Two processes -----------------------------------------------------------------------------------------------------

NAMES = ["logit", "share", "selectivity", "relative_logit"]
#: What each process sees: rows of the whole.
PARTS = {
    "uneven": (range(33), range(33, 40)),
    "one class each": ("target == 1", "target != 1"),
    "one has seen nothing": (range(0), range(40)),
}


def part_of(scenario: str, rank: int, data: Batch) -> Batch:
    chosen = PARTS[scenario][rank]
    if isinstance(chosen, range):
        return take(data, list(chosen))
    return take(data, (data["target"] == 1) == (rank == 0))


class RowsOfRanks(torchmetrics.Metric):
    """Keeps rows of integers; the median of all."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, reduction: str | None = "cat") -> None:
        super().__init__()
        self.add_state("rows", [], reduction)

    def update(self, logits: Tensor) -> None:
        self.rows.append(logits.argsort(dim=1))

    def compute(self) -> Tensor:
        return torchmetrics.utilities.dim_zero_cat(self.rows).median()


def work(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {}
    try:
        for scenario in PARTS:
            own = part_of(scenario, rank, labelled(40))
            for name in NAMES:
                metric = PerClass(CASES[name].make())
                results[f"{scenario}/{name}/nothing"] = metric.compute()  # everywhere, of no class at all
                if len(own["target"]):
                    fed(metric, name, [own])
                first, again = metric.compute_with_error(), metric.compute()
                results[f"{scenario}/{name}"] = (*first, again, metric.samples)
            rows = PerClass(RowsOfRanks(), CLASSES)
            for each in split(own, [9, len(own["target"]) - 9] if len(own["target"]) > 9 else [len(own["target"])]):
                if len(each["target"]):
                    rows.update(logits=each["logits"], target=each["target"])
            results[f"{scenario}/rows"] = rows.compute(), rows.compute()
            cached = PerClass(torchmetrics.MeanMetric(), 4, dims={"value": 0})
            for number in range(2):  # computed, then updated by one process alone
                if rank == number:
                    cached.update(value=torch.tensor([1.0 + number]), target=torch.tensor([number]))
                results[f"{scenario}/mean/{number}"] = cached.compute()
        apart = PerClass(RowsOfRanks(None), CLASSES)
        if rank:
            apart.update(logits=torch.randn(5, CLASSES), target=torch.zeros(5).long())
        with pytest.raises(ValueError, match="as many entries on all processes"):
            apart.compute()
    except Exception:
        results["error"] = traceback.format_exc()
    torch.save(results, os.path.join(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed support")
@pytest.mark.filterwarnings(EMPTY, LEFT_OUT)
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    with contextlib.suppress(multiprocessing.ProcessExitedException):  # then files are missing
        multiprocessing.set_forkserver_preload(["torch", "torchmetrics", "lightning.pytorch"])
        multiprocessing.start_processes(work, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    data = labelled(40)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert "error" not in found, found["error"]
        for scenario in PARTS:
            own = part_of(scenario, rank, data)
            for name in NAMES:
                expected = fed(PerClass(CASES[name].make()), name, [data]).compute_with_error()
                value, error, again, samples = found[f"{scenario}/{name}"]
                torch.testing.assert_close(value, expected.value, rtol=1e-5, atol=1e-6, equal_nan=True)
                torch.testing.assert_close(again, value, equal_nan=True)
                if name in ("logit", "selectivity"):
                    torch.testing.assert_close(error, expected.standard_error, rtol=1e-4, atol=1e-6, equal_nan=True)
                assert found[f"{scenario}/{name}/nothing"].isnan().all()
                # Synchronising has not left the union behind.
                assert int(samples.sum()) == int((own["target"] >= 0).sum())
            rows = PerClass(RowsOfRanks(), CLASSES)
            rows.update(logits=data["logits"], target=data["target"])
            for value in found[f"{scenario}/rows"]:
                torch.testing.assert_close(value, rows.compute(), equal_nan=True)
            assert found[f"{scenario}/mean/0"].isnan().tolist() == [False, True, True, True]
            assert found[f"{scenario}/mean/1"].tolist()[:2] == [1.0, 2.0]


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed support")
def test_a_trainer_of_two_processes_logs_what_one_logs(tmp_path: Path) -> None:
    """One of them sees the samples of one class alone, the other those of the others."""
    expected = parts_worker.measured(processes=1)
    assert expected["classes"] == ("0", "1", "2")
    assert "val/loss_share/2" in expected["logged"]
    for found in Launch(parts_worker.__file__, tmp_path).results("measured"):
        assert found["classes"] == expected["classes"]
        for name in parts_worker.MEASURES:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)
        assert {name: float(value) for name, value in found["logged"].items()} == pytest.approx(
            {name: float(value) for name, value in expected["logged"].items()}, rel=1e-4, abs=1e-6
        )
