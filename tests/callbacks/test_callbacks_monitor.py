"""The monitor against the measures written out by hand over the whole data set."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLASSES, SIDE, fit, loader, made
from lightning.pytorch.loggers import CSVLogger
from lightning_utilities.core import rank_zero
from oracles import (
    OF_LABELS,
    OF_LOGITS,
    Classifier,
    MaxOverPixels,
    gradient_map,
    logit_term,
    measures_by_hand,
    paper_map,
    rotated,
)
from steps import Direct, logged, validated
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import (
    C4,
    DistributionInvarianceError,
    Gradient,
    HorizontalFlip,
    InputXGradient,
    InvarianceMonitor,
    LogitInvarianceError,
    OrbitAccuracy,
    OrbitShare,
    PaperSaliency,
    PredictionConsistency,
    SensitivityMonitor,
    TimeReversal,
)

SIMILARITY = "saliency_invariance_similarity"
ALL = {*OF_LOGITS, *OF_LABELS, SIMILARITY}
LI = "logit_invariance_error"


def values(record: Any) -> dict[str, float]:
    return {name: float(each.value) for name, each in record.measures.items()}


def assert_logged(trainer: Any, expected: dict[str, float], prefix: str = "val/", suffix: str = "") -> None:
    got = {name: value for name, value in logged(trainer).items() if name.endswith(suffix) or not suffix}
    wanted = {f"{prefix}{name}{suffix}": value for name, value in expected.items()}
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value, rel=2e-5, abs=1e-7), name


def by_hand(module: Any, data: Any, saliency: Any = gradient_map, **options: Any) -> dict[str, float]:
    return measures_by_hand(module.model, data.dataset.x, data.dataset.y, saliency, **options)


# Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "prefix", "inference_mode"), [("validate", "val/", True), ("test", "test/", False)])
def test_what_is_logged_are_the_formulas_over_the_whole_data_set(
    method: str, prefix: str, inference_mode: bool
) -> None:
    module, data = made(Classifier), loader(11)
    monitor = InvarianceMonitor(C4(), saliency=PaperSaliency())
    trainer = validated(monitor, module, data, method, inference_mode=inference_mode)
    expected = by_hand(module, data, paper_map)
    assert expected.keys() == ALL
    assert_logged(trainer, expected, prefix)


@pytest.mark.parametrize(
    "options",
    [
        {"saliency_samples": 4, "network": "model"},
        {"max_batch": 3},
        {"max_batch": 1, "saliency_samples": 6},
        {"target": 1, "input": 0},
    ],
    ids=str,
)
def test_options_that_change_the_cost_do_not_change_the_values(options: dict[str, Any]) -> None:
    module, data = made(Classifier), loader(11)
    trainer = validated(InvarianceMonitor(C4(), saliency=Gradient(), **options), module, data)
    assert_logged(trainer, by_hand(module, data, saliency_samples=options.get("saliency_samples")))


def test_each_validation_epoch_of_a_training_is_measured_with_the_weights_of_its_end() -> None:
    val = loader(7, seed=2)
    expected: list[dict[str, float]] = []

    class Measured(Classifier):
        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                with torch.inference_mode(False), torch.enable_grad():
                    expected.append(by_hand(self, val))

    monitor = InvarianceMonitor(C4(), saliency=Gradient())
    module = fit(Measured, [monitor], val=val)
    assert [(record.stage, record.epoch, record.dataloader_idx) for record in monitor.history] == [
        ("val", 0, 0),
        ("val", 1, 0),
    ]
    for record, each in zip(monitor.history, expected, strict=True):
        assert values(record) == pytest.approx(each, rel=2e-5, abs=1e-7)
    assert values(monitor.history[0])[LI] != values(monitor.history[1])[LI]
    assert_logged(module.trainer, expected[-1])


def test_the_network_runs_in_the_precision_of_its_own_step() -> None:
    module = made(lambda: Classifier(MaxOverPixels))
    trainer = validated(InvarianceMonitor(C4(), measures=[LI]), module, loader(), precision="bf16-mixed")
    assert logged(trainer) == {f"val/{LI}": 0.0}


def test_the_network_runs_on_the_batch_once_and_once_for_each_element() -> None:
    rows: list[int] = []

    class Counting(nn.Flatten):
        def forward(self, x: Tensor) -> Tensor:
            rows.append(len(x))
            return super().forward(x)

    module = Classifier(lambda: nn.Sequential(Counting(), nn.Linear(SIDE * SIDE, CLASSES)))
    validated(InvarianceMonitor(C4(), saliency_samples=0), module, loader(8))
    # Never more samples at a time than the step itself has; in the first batch x once more, to see that it repeats.
    assert rows == [4] * 9


# When it measures ------------------------------------------------------------------------------------------------


def test_the_sanity_check_does_not_leak() -> None:
    runs = []
    for sanity in (0, 2):
        monitor = InvarianceMonitor(C4())
        module = fit(Classifier, [monitor], val=loader(11, seed=2), num_sanity_val_steps=sanity)
        runs.append((logged(module.trainer), [(each.stage, each.epoch, each.measures) for each in monitor.history]))
    assert runs[0] == runs[1]
    assert len(runs[0][1]) == 2


def test_only_every_nth_epoch_of_a_training_is_measured() -> None:
    monitors = [InvarianceMonitor(C4(), [LI], every_n_epochs=n, prefix=f"{n}") for n in (1, 2, 3, 5)]
    fit(Classifier, monitors, data=loader(8), val=loader(8), max_epochs=4, val_check_interval=0.5)
    epochs = [[record.epoch for record in monitor.history] for monitor in monitors]
    assert epochs == [[0, 0, 1, 1, 2, 2, 3, 3], [1, 1, 3, 3], [2, 2], []]  # in the middle of an epoch too
    module, outside = Classifier(), InvarianceMonitor(C4(), [LI], every_n_epochs=5)
    trainer = validated(outside, module, loader(8))
    trainer.test(module, loader(8), verbose=False)
    assert [record.stage for record in outside.history] == ["val", "test"]


class Twice(Classifier):
    """Calls the network on the images, and on their mirror images."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1]) + self(batch[0].flip(-1)).sum()


@pytest.mark.parametrize("call", [0, "last", "all"])
def test_the_call_that_is_named_is_measured(call: Any) -> None:
    module, data = made(Twice), loader(8)
    trainer = validated(InvarianceMonitor(C4(), saliency=Gradient(), saliency_samples=6, call=call), module, data)
    x, y = data.dataset.x, data.dataset.y
    if call == "all":
        parts = [(x[:6], y[:6]), (x.flip(-1)[:6], y[:6]), (x[6:], y[6:]), (x.flip(-1)[6:], y[6:])]
        x, y = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    elif call != 0:
        x = x.flip(-1)
    explained = 12 if call == "all" else 6
    assert_logged(trainer, measures_by_hand(module.model, x, y, gradient_map, saliency_samples=explained))
    asks = r"expected one call of the forward of Twice .* there were 2 \(call 0 with a tensor \(4, 1, 4, 4\); .*`call="
    with pytest.raises(ValueError, match=asks):
        validated(InvarianceMonitor(C4(), saliency_samples=0), module, data)


# Several data loaders, loggers, monitors -------------------------------------------------------------------------


def test_several_data_loaders_are_measured_apart() -> None:
    module, loaders = made(Classifier), [loader(7, seed=2), loader(10, seed=3)]
    monitor = InvarianceMonitor(C4(), saliency=Gradient(), saliency_samples=5)
    trainer = validated(monitor, module, {"a": loaders[0], "b": loaders[1]})
    for index, each in enumerate(loaders):
        assert_logged(trainer, by_hand(module, each, saliency_samples=5), suffix=f"/dataloader_idx_{index}")
    assert len(logged(trainer)) == 2 * len(ALL)
    assert [record.dataloader_idx for record in monitor.history] == [0, 1]


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")
def test_several_test_loaders_and_an_empty_one() -> None:
    module, last = made(Classifier), loader(4, seed=3)
    monitor = InvarianceMonitor(C4(), saliency_samples=0)
    trainer = validated(monitor, module, [loader(4, seed=2), loader(0), last], "test")
    assert [len(record.measures) for record in monitor.history] == [9, 0, 9]
    assert {name.rsplit("/", 1)[1] for name in logged(trainer)} == {"dataloader_idx_0", "dataloader_idx_2"}
    assert values(monitor.history[2]) == pytest.approx(by_hand(module, last, None), rel=1e-5, abs=1e-7)


def test_a_logger_gets_the_values(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    monitor = InvarianceMonitor(C4(), measures=[LI, "orbit_share"])
    fit(Classifier, [monitor], val=loader(8, seed=2), logger=logger)
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["val/orbit_share"]]
    for row, record in zip(rows, monitor.history, strict=True):
        for name, value in values(record).items():
            assert float(row[f"val/{name}"]) == pytest.approx(value, rel=1e-6)


def test_monitors_are_told_apart_by_a_prefix_and_refused_where_they_would_log_by_one_name() -> None:
    monitors = [InvarianceMonitor(C4(), [LI]), InvarianceMonitor(HorizontalFlip(), [LI], prefix="flip")]
    module, x = made(Classifier), loader(8).dataset.x
    trainer = validated([*monitors, InvarianceMonitor(C4(), ["orbit_share"])], module, loader(8))
    with torch.no_grad():
        fx = module.model(x)
        expected = {
            f"val/{LI}": float(logit_term(fx, [module.model(each) for each in rotated(x)])),
            f"val/flip/{LI}": float(logit_term(fx, [module.model(x.flip(-1))])),
            "val/orbit_share": by_hand(module, loader(8), None)["orbit_share"],
        }
    assert logged(trainer) == pytest.approx(expected, rel=1e-5)
    assert [monitor.history[0].action for monitor in monitors] == [C4(), HorizontalFlip()]
    assert [monitor.history[0].prefix for monitor in monitors] == [None, "flip"]
    same = InvarianceMonitor(C4(), [LI, "orbit_share"])
    with pytest.raises(ValueError, match=r"another InvarianceMonitor logs \['orbit_share'\] too: .*`prefix="):
        validated([same, InvarianceMonitor(C4(), ["orbit_share"])], module, loader(8))
    mine = InvarianceMonitor(C4(), measures={"selectivity": DistributionInvarianceError()})
    with pytest.raises(ValueError, match=r"another InvarianceMonitor logs \['selectivity'\] too"):
        validated([mine, SensitivityMonitor(C4())], module, loader(8))


# Saliency --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [0, 4, 6, 100])
def test_exactly_so_many_samples_get_maps(samples: int) -> None:
    rows: list[int] = []

    def saliency(network: Any, x: Tensor, target: Tensor) -> Tensor:
        rows.append(len(x))
        assert x.requires_grad
        assert target.shape == (len(x),)
        return x.detach().abs()

    monitor = InvarianceMonitor(C4(), saliency=saliency, saliency_samples=samples)
    trainer = validated(monitor, made(Classifier), loader(11))
    assert sum(rows) == 4 * min(samples, 11)
    assert logged(trainer).get(f"val/{SIMILARITY}") == (pytest.approx(1.0) if samples else None)


def test_a_training_epoch_starts_the_count_of_maps_anew_and_measures_that_need_none_cost_none() -> None:
    rows: list[int] = []

    def saliency(network: Any, x: Tensor, target: Tensor) -> Tensor:
        rows.append(len(x))
        return x.detach()

    monitor = InvarianceMonitor(C4(), saliency=saliency, saliency_samples=3)
    fit(Classifier, [monitor], val=loader(8), num_sanity_val_steps=0)
    assert rows == [3] * 8  # three samples, four elements, two epochs
    trainer = validated(InvarianceMonitor(C4(), ["orbit_share"], saliency=saliency), made(Classifier), loader(8))
    assert logged(trainer).keys() == {"val/orbit_share"}
    assert len(rows) == 8


@pytest.mark.filterwarnings("ignore:.*backward hooks:UserWarning")
def test_an_attribution_that_needs_a_module_gets_one() -> None:
    """DeepLift hooks into the layers; on a network of a single linear layer it is the input times the weights."""
    attribution = pytest.importorskip("captum.attr").DeepLift
    module = made(lambda: Classifier(lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))))
    found = [
        logged(validated(InvarianceMonitor(C4(), saliency=each), module, loader(4)))[f"val/{SIMILARITY}"]
        for each in (attribution, InputXGradient())
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-5)


# Labels ----------------------------------------------------------------------------------------------------------


class Steps(Classifier):
    """Needs no labels; the image stands under a name, in front or alone."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self(batch["image"] if isinstance(batch, dict) else batch if isinstance(batch, Tensor) else batch[0])


def test_without_labels_the_accuracies_are_left_out_and_it_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    module, data = made(Steps), loader(8, pack=lambda x, y: x)
    monitor = InvarianceMonitor(C4(), saliency=Gradient())
    rank_zero.log.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, rank_zero.log.name):
            trainer = validated(monitor, module, data)
            trainer.validate(module, data, verbose=False)
    finally:
        rank_zero.log.removeHandler(caplog.handler)
    said = [message for message in caplog.messages if message.startswith("InvarianceMonitor found")]
    assert len(set(said)) == 1
    assert len(said) in (2, 4)  # once a run; a handler of the root logger may hear it too
    for part in (
        "network the forward of Steps",
        "input a tensor (4, 1, 4, 4) of float32 at argument 0",
        "logits a tensor (4, 3) of float32",
        "labels none (the batch is no pair and no mapping but a tensor (4, 1, 4, 4)",
        "without orbit_accuracy, worst_case_orbit_accuracy",
    ):
        assert part in said[0]
    # The maps explain the class predicted on the untransformed input.
    assert_logged(trainer, measures_by_hand(module.model, data.dataset.x, None, gradient_map))


@pytest.mark.parametrize("label", [-100, 7])
def test_a_label_that_names_no_class_has_the_predicted_class_explained(label: int) -> None:
    class Ignoring(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0]), batch[1], ignore_index=label)

    module, data = made(Ignoring), loader(7, pack=lambda x, y: (x, torch.tensor(label)))
    monitor = InvarianceMonitor(C4(), saliency=Gradient(), saliency_samples=6)
    with pytest.warns(UserWarning, match=rf"labels at the batch\[1\] go from {label} to {label}, .* 0 to 2"):
        trainer = validated(monitor, module, data)
    expected = measures_by_hand(module.model, data.dataset.x, None, gradient_map, saliency_samples=6)
    assert_logged(trainer, {**expected, "orbit_accuracy": 0.0, "worst_case_orbit_accuracy": 0.0})


class TakesDict(Classifier):
    """The network is called with the whole batch."""

    def forward(self, batch: Any) -> Any:
        return {"logits": self.model(batch["image"]), "features": None}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch)["logits"].sum()


@pytest.mark.parametrize(
    ("key", "target", "input"),
    [
        ("label", None, None),
        ("labels", None, "image"),
        ("target", None, None),
        ("targets", None, "image"),
        ("y", None, None),
        ("c", "c", "image"),
    ],
)
def test_a_network_that_takes_the_whole_dict(key: str, target: str | None, input: str | None) -> None:
    module, data = made(TakesDict), loader(7, pack=lambda x, y: {key: y, "image": x})
    monitor = InvarianceMonitor(C4(), saliency=Gradient(), input=input, target=target)
    assert_logged(validated(monitor, module, data), by_hand(module, data))


def test_integers_beside_the_input_are_no_labels_unless_named() -> None:
    module, data = made(Steps), loader(8, pack=lambda x, y: (x, torch.tensor(7), y))
    trainer = validated(InvarianceMonitor(C4(), saliency=Gradient()), module, data)
    assert_logged(trainer, measures_by_hand(module.model, data.dataset.x, None, gradient_map))
    trainer = validated(InvarianceMonitor(C4(), saliency=Gradient(), target=2), module, data)
    assert_logged(trainer, by_hand(module, data))


def test_an_argument_of_the_network_is_not_taken_for_its_labels() -> None:
    """The second part of the batch is one integer a sample, and goes into the network."""

    class Conditional(Classifier):
        def forward(self, x: Tensor, kind: Tensor) -> Tensor:
            return self.model(x) + kind[:, None]

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return self(*batch).sum()

    for target in (None, 1):
        monitor = InvarianceMonitor(C4(), saliency_samples=0, target=target)
        validated(monitor, Conditional(), loader(8))
        assert ("orbit_accuracy" in monitor.history[0].measures) == (target is not None)


UNLABELLED: dict[str, tuple[Any, str]] = {
    "another name": (lambda x, y: {"image": x, "cls": y}, "the batch has no entry called label, labels, target"),
    "one-hot": (lambda x, y: (x, F.one_hot(y, 3)), r"the batch\[1\] is a tensor \(4, 3\) of int64"),
    "float": (lambda x, y: (x, y.float()), r"the batch\[1\] is a tensor \(4,\) of float32"),
    "a mask": (lambda x, y: {"image": x, "target": x[0].long()}, r"the batch\['target'\] is a tensor \(4, 4, 4\)"),
    "three parts": (lambda x, y: (x, y, y), "the batch is no pair and no mapping"),
}


@pytest.mark.parametrize(("pack", "where"), UNLABELLED.values(), ids=UNLABELLED)
def test_accuracies_that_were_asked_for_without_labels_are_an_error(pack: Any, where: str) -> None:
    calls: list[int] = []

    class Counting(Steps):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return self.model(x)

    for measures in (["worst_case_orbit_accuracy"], {"mine": OrbitAccuracy()}):
        with pytest.raises(ValueError, match=f"expected labels for .* but found none: {where}.*`target=`"):
            validated(InvarianceMonitor(C4(), measures=measures), Counting(), loader(8, pack=pack))
    assert calls == [4, 4]  # before the orbit is run
    assert torch.is_grad_enabled()


# Other inputs, metrics and outputs -------------------------------------------------------------------------------


class TakesMask(Classifier):
    """The network takes another tensor besides the image, which the group does not act on."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.model(x * mask)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        (x, mask), y = batch
        return F.cross_entropy(self(x, mask), y)


class Masked(nn.Module):
    """The network that knows the mask of one sample."""

    def __init__(self, network: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self.network = network
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x * self.mask)


@pytest.mark.parametrize(("samples", "inference_mode"), [(0, True), (3, False), (3, True), (7, True)])
def test_another_tensor_goes_along_with_its_own_sample(samples: int, inference_mode: bool) -> None:
    module, data = made(TakesMask), loader(7, pack=lambda x, y: ((x, (x.flip(-1) > 0).float()), y))
    monitor = InvarianceMonitor(C4(), saliency=Gradient(), saliency_samples=samples, input=[0])
    got = logged(validated(monitor, module, data, inference_mode=inference_mode))
    by_sample = []
    for i, (image, label) in enumerate(zip(data.dataset.x, data.dataset.y, strict=True)):
        masked = Masked(module.model, (image.flip(-1) > 0).float())
        by_sample.append(measures_by_hand(masked, image[None], label[None], gradient_map if i < samples else None))
    ratios = {"relative_logit_invariance_error", "orbit_share"}  # no means over samples
    for name in ALL - ratios - (set() if samples else {SIMILARITY}):
        each = [found[name] for found in by_sample if name in found]
        assert got[f"val/{name}"] == pytest.approx(sum(each) / len(each), rel=2e-5, abs=1e-7), name
    with pytest.raises(ValueError, match="`max_batch` to be None for a network that takes several tensors but got 2"):
        validated(InvarianceMonitor(C4(), max_batch=2, input=[0]), module, data)


def test_metrics_under_names_of_ones_own() -> None:
    measures = {
        "li": LogitInvarianceError(reduction="element"),
        "share": OrbitShare(),
        "agrees": PredictionConsistency(),
        "worst": OrbitAccuracy(worst_case=True),
        "by_sample": LogitInvarianceError(reduction="none"),
    }
    module, data = made(Classifier), loader(7)
    monitor = InvarianceMonitor(C4(), measures=measures)
    trainer = validated(monitor, module, data)
    expected = by_hand(module, data, None)
    with torch.no_grad():
        fx, *fgx = [module.model(torch.rot90(data.dataset.x, k, (2, 3))) for k in range(4)]
        labels = ("rot90", "rot180", "rot270")
        wanted = {f"val/li/{label}": float(logit_term(fx, [each])) for label, each in zip(labels, fgx, strict=True)}
    wanted |= {
        "val/share": expected["orbit_share"],
        "val/agrees": expected["prediction_consistency"],
        "val/worst": expected["worst_case_orbit_accuracy"],
    }
    assert logged(trainer) == pytest.approx(wanted, rel=2e-5)
    assert monitor.history[0].measures["by_sample"].value.shape == (7,)
    assert all(metric.update_count == 0 for metric in measures.values())  # they are copied, not used up
    # One for other labels may be there beside unlabelled ones.
    monitor = InvarianceMonitor(C4(), measures={"multi": DistributionInvarianceError(activation="sigmoid")})
    validated(monitor, Steps(), loader(8, pack=lambda x, y: (x, F.one_hot(y, 3).float())))
    assert set(monitor.history[0].measures) == {"multi"}


class Regressor(Classifier):
    shape: tuple[int, ...] = (1,)

    def __init__(self) -> None:
        size = torch.Size(self.shape).numel()
        super().__init__(lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, size), nn.Unflatten(1, self.shape)))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0]).square().mean()


class DenseRegressor(Regressor):
    shape = (3, 3)


class Squeezed(Regressor):
    """One number a sample."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, 0]


@pytest.mark.parametrize("labels", ["float", "integer"])
@pytest.mark.parametrize("make", [Regressor, DenseRegressor, Squeezed])
def test_outputs_that_are_no_logits_get_the_logit_errors_and_one_alone_a_share_and_maps(
    make: type[Regressor], labels: str
) -> None:
    """One output may be a regression, or a binary classifier whose labels are 0 and 1."""
    module = made(make)
    data = loader(7, pack=lambda x, y: (x, x.mean() if labels == "float" else (y > 0).long()))
    trainer = validated(InvarianceMonitor(C4(), saliency=Gradient()), module, data)
    with torch.no_grad():
        orbit = torch.stack([module(torch.rot90(data.dataset.x, k, (2, 3))).reshape(7, -1) for k in range(4)]).double()
    fx, gaps = orbit[0], (orbit[1:] - orbit[0]).square().sum(2)
    expected = {LI: float(gaps.mean() / 2), f"normalized_{LI}": float((gaps / fx.square().sum(1)).mean())}
    if make is DenseRegressor:
        expected["relative_equivariance_error"] = float((gaps.sqrt() / fx.norm(dim=1)).mean())
    else:
        expected[f"relative_{LI}"] = float(gaps.mean() / 2 / fx.var(unbiased=False))
        expected["orbit_share"] = float(orbit.var(dim=0, unbiased=False).mean() / orbit.var(unbiased=False))
        w = module.model[1].weight.detach().reshape(SIDE, SIDE)  # the map of every image, turned for none
        cosines = [float((w * torch.rot90(w, -k)).sum() / w.square().sum()) for k in (1, 2, 3)]
        expected[SIMILARITY] = sum(cosines) / 3
    assert_logged(trainer, expected)


def test_an_output_without_logits_is_refused() -> None:
    class Pair(Steps):
        def forward(self, x: Tensor) -> Any:
            return self.model(x), x

    with pytest.raises(
        ValueError, match=r"network to return logits .* got \[a tensor .*\]: take them out with `logits=`"
    ):
        validated(InvarianceMonitor(C4()), Pair(), loader(4))
    module, data = made(Pair), loader(8)
    for options in ({"network": "model"}, {"logits": lambda output: output[0]}):
        trainer = validated(InvarianceMonitor(C4(), saliency_samples=0, **options), module, data)
        assert_logged(trainer, by_hand(module, data, None))


# Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plain", "options", "message"),
    [
        (Classifier, {"target": "nope"}, "target='nope' to name 4 integer labels in the batch but got NoneType"),
        (Classifier, {"target": 0}, r"target=0 to name 4 integer labels in the batch but got a tensor \(4, 1, 4, 4\)"),
        (Direct, {}, r"call the forward of Direct.*network=.*'model'"),
    ],
)
def test_what_cannot_be_found_is_named(plain: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validated(InvarianceMonitor(C4(), **options), plain(), loader(4))


def tokens() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.filterwarnings("ignore:.*moves in the input")
@pytest.mark.parametrize(
    ("measure", "network", "pack", "message"),
    [
        (
            SIMILARITY,
            lambda: nn.Conv1d(1, 2, 1),
            lambda x: x.flatten()[None],
            r"logits of shape \(4, classes\) or \(4,\) for saliency",
        ),
        (
            SIMILARITY,
            tokens,
            lambda x: x.flatten().argsort().clamp_max(8),
            r"`x` to be floating point, to have a gradient, but got torch\.int64",
        ),
        (
            "prediction_consistency",
            lambda: nn.Linear(SIDE * SIDE, 1),
            torch.flatten,
            "this is a measure of classes, and the network gives one output a sample",
        ),
    ],
)
def test_measures_that_were_asked_for_and_cannot_be_computed_are_an_error(
    measure: str, network: Callable[[], nn.Module], pack: Any, message: str
) -> None:
    monitor = InvarianceMonitor(TimeReversal(), measures=[measure])
    with pytest.raises(ValueError, match=message):
        validated(monitor, Steps(network), loader(8, pack=lambda x, y: (pack(x), y)))
