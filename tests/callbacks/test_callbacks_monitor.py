"""The monitor against the measures written out by hand over the whole data set."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks_helpers import MaxOverPixels, gradient_map, measures_by_hand, paper_map
from helpers import CLASSES, SIDE, Classifier, loader, trainer_for
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from lightning_utilities.core import rank_zero
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import (
    C4,
    Gradient,
    HorizontalFlip,
    InputXGradient,
    InvarianceMonitor,
    LogitInvarianceError,
    OrbitAccuracy,
    OrbitShare,
    PaperSaliency,
    PredictionConsistency,
)

ALL = {
    "logit_invariance_error",
    "normalized_logit_invariance_error",
    "relative_logit_invariance_error",
    "distribution_invariance_error",
    "jensen_shannon_invariance_error",
    "saliency_invariance_similarity",
    "orbit_share",
    "prediction_consistency",
    "orbit_accuracy",
    "worst_case_orbit_accuracy",
}
#: No means over samples.
RATIOS = {"relative_logit_invariance_error", "orbit_share"}


def logged(trainer: Any) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def assert_logged(trainer: Any, expected: dict[str, float], prefix: str = "val/", suffix: str = "") -> None:
    got = {name: value for name, value in logged(trainer).items() if name.endswith(suffix) or not suffix}
    wanted = {f"{prefix}{name}{suffix}": value for name, value in expected.items()}
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value, rel=2e-5, abs=1e-7), name


def classifier(network: Callable[[], nn.Module] | None = None) -> Classifier:
    torch.manual_seed(1)
    return Classifier() if network is None else Classifier(network)


# Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "prefix"), [("validate", "val/"), ("test", "test/")])
@pytest.mark.parametrize("inference_mode", [True, False])
def test_what_is_logged_are_the_formulas_over_the_whole_data_set(
    method: str, prefix: str, inference_mode: bool
) -> None:
    module, data = classifier(), loader(11)
    trainer = trainer_for([InvarianceMonitor(C4(), saliency=PaperSaliency())], inference_mode=inference_mode)
    getattr(trainer, method)(module, data, verbose=False)
    expected = measures_by_hand(module.model, data.dataset.x, data.dataset.y, paper_map)
    assert expected.keys() == ALL
    assert_logged(trainer, expected, prefix)


@pytest.mark.parametrize(
    "options",
    [
        {"saliency_samples": 6},
        {"saliency_samples": 4},
        {"network": "model"},
        {"max_batch": 3},
        {"max_batch": 1, "saliency_samples": 7},
        {"target": 1, "input": 0},
    ],
    ids=str,
)
def test_options_that_change_the_cost_do_not_change_the_values(options: dict[str, Any]) -> None:
    module, data = classifier(), loader(11)
    trainer = trainer_for([InvarianceMonitor(C4(), saliency=Gradient(), **options)])
    trainer.validate(module, data, verbose=False)
    samples = options.get("saliency_samples")
    assert_logged(
        trainer, measures_by_hand(module.model, data.dataset.x, data.dataset.y, gradient_map, saliency_samples=samples)
    )


def test_each_validation_epoch_of_a_training_is_measured_with_the_weights_of_its_end() -> None:
    data, val = loader(), loader(7, seed=2)
    expected: list[dict[str, float]] = []

    class Measured(Classifier):
        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                with torch.inference_mode(False), torch.enable_grad():
                    expected.append(measures_by_hand(self.model, val.dataset.x, val.dataset.y, gradient_map))

    torch.manual_seed(1)
    monitor = InvarianceMonitor(C4(), saliency=Gradient())
    trainer = trainer_for([monitor], max_epochs=3)
    trainer.fit(Measured(), data, val)
    assert [(record.stage, record.epoch, record.dataloader_idx) for record in monitor.history] == [
        ("val", epoch, 0) for epoch in range(3)
    ]
    for record, by_hand in zip(monitor.history, expected, strict=True):
        got = {name: float(estimate.value) for name, estimate in record.measures.items()}
        assert got == pytest.approx(by_hand, rel=2e-5, abs=1e-7)
    assert len({float(record.measures["logit_invariance_error"].value) for record in monitor.history}) == 3
    assert_logged(trainer, expected[-1])


def test_history_holds_standard_errors_over_samples() -> None:
    module, data = classifier(), loader(9)
    monitor = InvarianceMonitor(C4(), measures=["logit_invariance_error"])
    trainer_for([monitor]).validate(module, data, verbose=False)
    with torch.no_grad():
        fx = module.model(data.dataset.x)
        fgx = torch.stack([module.model(torch.rot90(data.dataset.x, k, (2, 3))) for k in (1, 2, 3)])
    per_sample = (0.5 * (fgx - fx).square().sum(2)).mean(0)
    ((record,),) = (monitor.history,)
    torch.testing.assert_close(
        record.measures["logit_invariance_error"].standard_error, per_sample.std() / 3, rtol=1e-4, atol=0.0
    )


def test_the_network_runs_in_the_precision_of_its_own_step() -> None:
    module = classifier(MaxOverPixels)
    trainer = trainer_for([InvarianceMonitor(C4(), measures=["logit_invariance_error"])], precision="bf16-mixed")
    trainer.validate(module, loader(), verbose=False)
    assert logged(trainer) == {"val/logit_invariance_error": 0.0}


def test_the_network_runs_on_the_batch_once_and_once_for_each_element() -> None:
    rows: list[int] = []

    class Counting(nn.Flatten):
        def forward(self, x: Tensor) -> Tensor:
            rows.append(len(x))
            return super().forward(x)

    module = classifier(lambda: nn.Sequential(Counting(), nn.Linear(SIDE * SIDE, CLASSES)))
    trainer_for([InvarianceMonitor(C4(), saliency_samples=0)]).validate(module, loader(8), verbose=False)
    # Never more samples at a time than the step itself has; in the first batch x once more, to see that it repeats.
    assert rows == [4] * 9


# When it measures ------------------------------------------------------------------------------------------------


def test_the_sanity_check_does_not_leak() -> None:
    histories = []
    for sanity in (0, 2):
        torch.manual_seed(1)
        monitor = InvarianceMonitor(C4())
        trainer = trainer_for([monitor], num_sanity_val_steps=sanity)
        trainer.fit(Classifier(), loader(), loader(11, seed=2))
        histories.append((monitor.history, logged(trainer)))
    (with_none, logged_with_none), (with_two, logged_with_two) = histories
    assert logged_with_none == logged_with_two
    assert len(with_none) == len(with_two) == 2
    for one, other in zip(with_none, with_two, strict=True):
        assert (one.stage, one.epoch) == (other.stage, other.epoch)
        assert one.measures == other.measures


@pytest.mark.parametrize(("every", "epochs"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), (5, [])])
def test_only_every_nth_epoch_of_a_training_is_measured(every: int, epochs: list[int]) -> None:
    monitor = InvarianceMonitor(C4(), every_n_epochs=every, saliency_samples=0)
    trainer = trainer_for([monitor], max_epochs=4)
    trainer.fit(Classifier(), loader(), loader(8))
    assert [record.epoch for record in monitor.history] == epochs


def test_validation_and_test_outside_of_a_training_are_always_measured() -> None:
    monitor = InvarianceMonitor(C4(), every_n_epochs=5, saliency_samples=0)
    trainer = trainer_for([monitor])
    module = Classifier()
    trainer.validate(module, loader(8), verbose=False)
    trainer.test(module, loader(8), verbose=False)
    assert [record.stage for record in monitor.history] == ["val", "test"]


def test_validation_in_the_middle_of_an_epoch_is_measured_too() -> None:
    monitor = InvarianceMonitor(C4(), saliency_samples=0)
    trainer_for([monitor], val_check_interval=0.5, max_epochs=2).fit(Classifier(), loader(16), loader(8))
    assert [record.epoch for record in monitor.history] == [0, 0, 1, 1]


class Twice(Classifier):
    """Calls the network on the images, and on their mirror images."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1]) + self(batch[0].flip(-1)).sum()


def test_a_network_that_the_step_calls_several_times_asks_which_call_is_meant() -> None:
    message = (
        r"expected one call of the forward of Twice .* there were 2 \(call 0 with a tensor \(4, 1, 4, 4\); .*`call="
    )
    with pytest.raises(ValueError, match=message):
        trainer_for([InvarianceMonitor(C4(), saliency_samples=0)]).validate(Twice(), loader(8), verbose=False)
    with pytest.raises(ValueError, match="expected call=2 to name one of the calls"):
        trainer_for([InvarianceMonitor(C4(), saliency_samples=0, call=2)]).validate(Twice(), loader(8), verbose=False)


@pytest.mark.parametrize("call", [0, 1, "last", "all"])
def test_the_call_that_is_named_is_measured(call: Any) -> None:
    torch.manual_seed(1)
    module, data = Twice(), loader(8)
    trainer = trainer_for([InvarianceMonitor(C4(), saliency=Gradient(), saliency_samples=6, call=call)])
    trainer.validate(module, data, verbose=False)
    x, y = data.dataset.x, data.dataset.y
    if call == "all":
        parts = [(x[:6], y[:6]), (x.flip(-1)[:6], y[:6]), (x[6:], y[6:]), (x.flip(-1)[6:], y[6:])]
        x, y = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    elif call != 0:
        x = x.flip(-1)
    explained = 12 if call == "all" else 6
    assert_logged(trainer, measures_by_hand(module.model, x, y, gradient_map, saliency_samples=explained))


# Several data loaders, loggers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("as_dict", [False, True])
def test_several_data_loaders_are_measured_apart(as_dict: bool) -> None:
    module = classifier()
    loaders = [loader(7, seed=2), loader(10, seed=3)]
    monitor = InvarianceMonitor(C4(), saliency=Gradient(), saliency_samples=5)
    trainer = trainer_for([monitor])
    trainer.validate(module, {"a": loaders[0], "b": loaders[1]} if as_dict else loaders, verbose=False)
    for index, each in enumerate(loaders):
        expected = measures_by_hand(module.model, each.dataset.x, each.dataset.y, gradient_map, saliency_samples=5)
        assert_logged(trainer, expected, suffix=f"/dataloader_idx_{index}")
    assert len(logged(trainer)) == 2 * len(ALL)
    assert [record.dataloader_idx for record in monitor.history] == [0, 1]


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")
def test_several_test_loaders_and_an_empty_one() -> None:
    module, last = classifier(), loader(4, seed=3)
    monitor = InvarianceMonitor(C4(), saliency_samples=0)
    trainer = trainer_for([monitor])
    trainer.test(module, [loader(4, seed=2), loader(0), last], verbose=False)
    assert [len(record.measures) for record in monitor.history] == [9, 0, 9]
    assert {name.rsplit("/", 1)[1] for name in logged(trainer)} == {"dataloader_idx_0", "dataloader_idx_2"}
    expected = measures_by_hand(module.model, last.dataset.x, last.dataset.y)
    measured = {name: float(each.value) for name, each in monitor.history[2].measures.items()}
    assert measured == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_a_logger_gets_the_values(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    monitor = InvarianceMonitor(C4(), measures=["logit_invariance_error", "orbit_share"])
    trainer_for([monitor], logger=logger, max_epochs=3).fit(Classifier(), loader(), loader(8, seed=2))
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["val/orbit_share"]]
    assert len(rows) == 3
    for row, record in zip(rows, monitor.history, strict=True):
        for name in ("logit_invariance_error", "orbit_share"):
            assert float(row[f"val/{name}"]) == pytest.approx(float(record.measures[name].value), rel=1e-6)


def test_two_monitors_are_told_apart_by_a_prefix() -> None:
    names = ["logit_invariance_error"]
    monitors = [InvarianceMonitor(C4(), measures=names), InvarianceMonitor(HorizontalFlip(), names, prefix="flip")]
    trainer = trainer_for(monitors)
    module = classifier()
    trainer.validate(module, loader(8), verbose=False)
    x = loader(8).dataset.x
    with torch.no_grad():
        fx = module.model(x)
        turned = torch.stack([module.model(torch.rot90(x, k, (-2, -1))) for k in (1, 2, 3)])
        flipped = module.model(x.flip(-1))
    assert logged(trainer) == pytest.approx(
        {
            "val/logit_invariance_error": float((turned - fx).square().sum(-1).mean() / 2),
            "val/flip/logit_invariance_error": float((flipped - fx).square().sum(-1).mean() / 2),
        },
        rel=1e-5,
    )
    assert [monitor.history[0].action for monitor in monitors] == [C4(), HorizontalFlip()]
    assert [monitor.history[0].prefix for monitor in monitors] == [None, "flip"]


def test_monitors_that_would_log_by_one_name_are_refused() -> None:
    both = [
        InvarianceMonitor(C4(), ["orbit_share", "logit_invariance_error"]),
        InvarianceMonitor(C4(), ["orbit_share"]),
    ]
    with pytest.raises(ValueError, match=r"another InvarianceMonitor logs \['orbit_share'\] too: .*`prefix="):
        trainer_for(both).validate(classifier(), loader(8), verbose=False)
    apart = [InvarianceMonitor(C4(), ["orbit_share"]), InvarianceMonitor(C4(), ["logit_invariance_error"])]
    trainer = trainer_for(apart)
    trainer.validate(classifier(), loader(8), verbose=False)
    assert logged(trainer).keys() == {"val/orbit_share", "val/logit_invariance_error"}


# Saliency --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [0, 1, 4, 6, 11, 100])
def test_exactly_so_many_samples_get_maps(samples: int) -> None:
    rows: list[int] = []

    def saliency(network: Any, x: Tensor, target: Tensor) -> Tensor:
        rows.append(len(x))
        assert x.requires_grad
        assert target.shape == (len(x),)
        return x.detach().abs()

    trainer = trainer_for([InvarianceMonitor(C4(), saliency=saliency, saliency_samples=samples)])
    trainer.validate(classifier(), loader(11), verbose=False)
    assert sum(rows) == 4 * min(samples, 11)
    assert ("val/saliency_invariance_similarity" in logged(trainer)) == (samples > 0)
    if samples:
        assert logged(trainer)["val/saliency_invariance_similarity"] == pytest.approx(1.0)


def test_a_training_epoch_starts_the_count_of_maps_anew() -> None:
    rows: list[int] = []

    def saliency(network: Any, x: Tensor, target: Tensor) -> Tensor:
        rows.append(len(x))
        return x.detach()

    trainer_for([InvarianceMonitor(C4(), saliency=saliency, saliency_samples=3)], num_sanity_val_steps=0).fit(
        Classifier(), loader(), loader(8)
    )
    assert rows == [3] * 8  # three samples, four elements, two epochs


def test_measures_that_need_no_maps_cost_none() -> None:
    def saliency(network: Any, x: Tensor, target: Tensor) -> Tensor:
        raise AssertionError("no map is wanted")

    trainer = trainer_for([InvarianceMonitor(C4(), measures=["orbit_share"], saliency=saliency)])
    trainer.validate(classifier(), loader(8), verbose=False)
    assert logged(trainer).keys() == {"val/orbit_share"}


# Labels ----------------------------------------------------------------------------------------------------------


class Unlabelled(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch).sum()


def test_without_labels_the_accuracies_are_left_out_and_it_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(1)
    module, data = Unlabelled(), loader(8, pack=lambda x, y: x)
    monitor = InvarianceMonitor(C4(), saliency=Gradient())
    trainer = trainer_for([monitor])
    rank_zero.log.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, rank_zero.log.name):
            trainer.validate(module, data, verbose=False)
            trainer.validate(module, data, verbose=False)
    finally:
        rank_zero.log.removeHandler(caplog.handler)
    said = [record.getMessage() for record in caplog.records if record.name == rank_zero.log.name]
    said = [message for message in said if message.startswith("InvarianceMonitor found")]
    assert len(set(said)) == 1
    assert len(said) in (2, 4)  # once a run; a handler of the root logger may hear it too
    for part in (
        "network the forward of Unlabelled",
        "input a tensor (4, 1, 4, 4) of float32 at argument 0",
        "logits a tensor (4, 3) of float32",
        "labels none (the batch is no pair and no mapping but a tensor (4, 1, 4, 4)",
        "without orbit_accuracy, worst_case_orbit_accuracy",
    ):
        assert part in said[0]
    # The maps explain the class predicted on the untransformed input.
    expected = measures_by_hand(module.model, data.dataset.x, None, gradient_map)
    assert expected.keys() == ALL - {"orbit_accuracy", "worst_case_orbit_accuracy"}
    assert_logged(trainer, expected)


def test_a_label_that_names_no_class_has_the_predicted_class_explained() -> None:
    class Ignoring(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0]), batch[1], ignore_index=-100)

    torch.manual_seed(1)
    module = Ignoring()
    data = loader(7, pack=lambda x, y: (x, torch.tensor(-100)))
    trainer = trainer_for([InvarianceMonitor(C4(), saliency=Gradient(), saliency_samples=6)])
    with pytest.warns(UserWarning, match=r"labels at the batch\[1\] go from -100 to -100, .* 0 to 2"):
        trainer.validate(module, data, verbose=False)
    expected = measures_by_hand(module.model, data.dataset.x, None, gradient_map, saliency_samples=6)
    assert_logged(trainer, {**expected, "orbit_accuracy": 0.0, "worst_case_orbit_accuracy": 0.0})


class TakesDict(Classifier):
    """The network is called with the whole batch."""

    def forward(self, batch: Any) -> Any:
        return {"logits": self.model(batch["image"]), "features": None}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch)["logits"].sum()


@pytest.mark.parametrize(
    ("key", "target"), [("label", None), ("labels", None), ("target", None), ("targets", None), ("y", None), ("c", "c")]
)
@pytest.mark.parametrize("input", [None, "image"])
def test_a_network_that_takes_the_whole_dict(key: str, target: str | None, input: str | None) -> None:
    torch.manual_seed(1)
    module, data = TakesDict(), loader(7, pack=lambda x, y: {key: y, "image": x})
    trainer = trainer_for([InvarianceMonitor(C4(), saliency=Gradient(), input=input, target=target)])
    trainer.validate(module, data, verbose=False)
    assert_logged(trainer, measures_by_hand(module.model, data.dataset.x, data.dataset.y, gradient_map))


def test_labels_at_a_position() -> None:
    module, data = classifier(), loader(7, pack=lambda x, y: (x, x.sum(), y))
    trainer = trainer_for([InvarianceMonitor(C4(), saliency=Gradient(), target=2)])

    class Steps(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0]).sum()

    torch.manual_seed(1)
    module = Steps()
    trainer.validate(module, data, verbose=False)
    assert_logged(trainer, measures_by_hand(module.model, data.dataset.x, data.dataset.y, gradient_map))


class TakesMask(Classifier):
    """The network takes another tensor besides the image, which the group does not act on."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.model(x * mask)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        (x, mask), y = batch
        return F.cross_entropy(self(x, mask), y)


@pytest.mark.parametrize("samples", [0, 1, 2, 3, 4, 7])
@pytest.mark.parametrize("inference_mode", [True, False])
def test_another_tensor_goes_along_with_its_own_sample(samples: int, inference_mode: bool) -> None:
    """Sample by sample, on networks that know the sample's mask."""
    torch.manual_seed(1)
    module = TakesMask()
    data = loader(7, pack=lambda x, y: ((x, (x.flip(-1) > 0).float()), y))
    monitor = InvarianceMonitor(C4(), saliency=Gradient(), saliency_samples=samples, input=[0])
    trainer = trainer_for([monitor], inference_mode=inference_mode)
    trainer.validate(module, data, verbose=False)

    by_sample = []
    for i, (image, label) in enumerate(zip(data.dataset.x, data.dataset.y, strict=True)):
        masked = _Masked(module.model, (image.flip(-1) > 0).float())
        by_sample.append(measures_by_hand(masked, image[None], label[None], gradient_map if i < samples else None))
    got = logged(trainer)
    names = ALL - RATIOS - (set() if samples else {"saliency_invariance_similarity"})
    for name in names:
        values = [each[name] for each in by_sample if name in each]
        assert got[f"val/{name}"] == pytest.approx(sum(values) / len(values), rel=2e-5, abs=1e-7), name


class _Masked(nn.Module):
    def __init__(self, network: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self.network = network
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x * self.mask)


def test_max_batch_is_refused_with_several_tensors() -> None:
    data = loader(4, pack=lambda x, y: ((x, (x > 0).float()), y))
    with pytest.raises(ValueError, match="`max_batch` to be None for a network that takes several tensors but got 2"):
        trainer_for([InvarianceMonitor(C4(), max_batch=2, input=[0])]).validate(TakesMask(), data, verbose=False)


# Measures of one's own, and outputs that are no logits -----------------------------------------------------------


def test_metrics_under_names_of_ones_own() -> None:
    measures = {
        "li": LogitInvarianceError(reduction="element"),
        "share": OrbitShare(),
        "agrees": PredictionConsistency(),
        "worst": OrbitAccuracy(worst_case=True),
        "by_sample": LogitInvarianceError(reduction="none"),
    }
    module, data = classifier(), loader(7)
    monitor = InvarianceMonitor(C4(), measures=measures)
    trainer = trainer_for([monitor])
    trainer.validate(module, data, verbose=False)
    with torch.no_grad():
        fx = module.model(data.dataset.x)
        expected = {
            f"val/li/{label}": float(
                0.5 * (fx - module.model(torch.rot90(data.dataset.x, k, (2, 3)))).square().sum() / 7
            )
            for k, label in ((1, "rot90"), (2, "rot180"), (3, "rot270"))
        }
    by_hand = measures_by_hand(module.model, data.dataset.x, data.dataset.y)
    expected |= {
        "val/share": by_hand["orbit_share"],
        "val/agrees": by_hand["prediction_consistency"],
        "val/worst": by_hand["worst_case_orbit_accuracy"],
    }
    assert logged(trainer) == pytest.approx(expected, rel=2e-5)
    assert monitor.history[0].measures["by_sample"].value.shape == (7,)
    assert all(metric.update_count == 0 for metric in measures.values())  # they are copied, not used up


class Regressor(Classifier):
    shape: tuple[int, ...] = (1,)

    def __init__(self) -> None:
        size = torch.Size(self.shape).numel()
        super().__init__(lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, size), nn.Unflatten(1, self.shape)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0]).square().mean()


class DenseRegressor(Regressor):
    shape = (3, 3)


@pytest.mark.parametrize("make", [Regressor, DenseRegressor])
def test_outputs_that_are_no_logits_get_the_logit_errors_and_one_alone_a_share(make: type[Regressor]) -> None:
    torch.manual_seed(1)
    module, data = make(), loader(7, pack=lambda x, y: (x, x.mean()))
    trainer = trainer_for([InvarianceMonitor(C4(), saliency_samples=0)])
    trainer.validate(module, data, verbose=False)
    x = data.dataset.x
    with torch.no_grad():
        orbit = torch.stack([module.model(torch.rot90(x, k, (2, 3))).flatten(1) for k in range(4)]).double()
    fx = orbit[0]
    gaps = (orbit[1:] - fx).square().sum(2)
    expected = {
        "val/logit_invariance_error": float(gaps.mean() / 2),
        "val/normalized_logit_invariance_error": float((gaps / fx.square().sum(1)).mean()),
    }
    if make is Regressor:
        expected["val/relative_logit_invariance_error"] = float(gaps.mean() / 2 / fx.var(unbiased=False))
        expected["val/orbit_share"] = float(orbit.var(dim=0, unbiased=False).mean() / orbit.var(unbiased=False))
    assert logged(trainer) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("make", [Regressor, DenseRegressor])
@pytest.mark.parametrize("labels", ["float", "integer"])
def test_outputs_that_are_no_logits_do_not_break_the_maps(make: type[Regressor], labels: str) -> None:
    """One output (a regression, or a binary classifier whose labels are 0 and 1) has one map; dense ones have none."""
    torch.manual_seed(1)
    module = make()
    data = loader(7, pack=lambda x, y: (x, x.mean() if labels == "float" else (y > 0).long()))
    trainer = trainer_for([InvarianceMonitor(C4(), saliency=Gradient())])
    trainer.validate(module, data, verbose=False)
    kinds = ("", "normalized_", "relative_") if make is Regressor else ("", "normalized_")
    errors = {f"val/{kind}logit_invariance_error" for kind in kinds}
    maps = {"val/saliency_invariance_similarity"} if make is Regressor else set()
    share = {"val/orbit_share"} if make is Regressor else set()
    assert logged(trainer).keys() == errors | maps | share
    if maps:  # a linear network: the map of one image is its weights, turned for none
        w = module.model[1].weight.detach().reshape(SIDE, SIDE)
        cosines = [float((w * torch.rot90(w, -k)).sum() / w.square().sum()) for k in (1, 2, 3)]
        assert logged(trainer)["val/saliency_invariance_similarity"] == pytest.approx(sum(cosines) / 3, rel=1e-5)


def test_one_number_a_sample_has_the_logit_errors_and_a_share() -> None:
    class Squeezed(Regressor):
        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)[:, 0]

    module, data = Squeezed(), loader(4)
    trainer = trainer_for([InvarianceMonitor(C4())])
    trainer.validate(module, data, verbose=False)
    w = module.model[1].weight.detach().reshape(SIDE, SIDE)  # the map of every image, turned for none
    cosines = [float((w * torch.rot90(w, -k)).sum() / w.square().sum()) for k in (1, 2, 3)]
    assert logged(trainer)["val/saliency_invariance_similarity"] == pytest.approx(sum(cosines) / 3, rel=1e-5)
    x = torch.cat([batch[0] for batch in data])
    with torch.no_grad():
        moved = [(module(x) - module(torch.rot90(x, turns, (-2, -1)))).square() / 2 for turns in (1, 2, 3)]
    names = {name for name in logged(trainer) if "invariance" in name or "orbit" in name}
    errors = {f"val/{kind}logit_invariance_error" for kind in ("", "normalized_", "relative_")}
    assert names == {*errors, "val/orbit_share", "val/saliency_invariance_similarity"}
    assert logged(trainer)["val/logit_invariance_error"] == pytest.approx(float(torch.stack(moved).mean()), rel=1e-5)


def test_an_output_without_logits_is_refused() -> None:
    class Pair(Classifier):
        def forward(self, x: Tensor) -> Any:
            return self.model(x), x

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self(batch[0])

    with pytest.raises(
        ValueError, match=r"network to return logits .* got \[a tensor .*\]: take them out with `logits=`"
    ):
        trainer_for([InvarianceMonitor(C4())]).validate(Pair(), loader(4), verbose=False)
    for options in ({"network": "model"}, {"logits": lambda output: output[0]}):
        torch.manual_seed(1)
        module, data = Pair(), loader(8)
        trainer = trainer_for([InvarianceMonitor(C4(), saliency_samples=0, **options)])
        trainer.validate(module, data, verbose=False)
        assert_logged(trainer, measures_by_hand(module.model, data.dataset.x, data.dataset.y))


# Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": "C4"}, "`action`"),
        ({"measures": ["nope"]}, "`measures` to be among .* but got .*'nope'"),
        ({"measures": []}, "`measures` to name at least one measure"),
        ({"measures": "orbit_share"}, "`measures` to name at least one measure in a list"),
        ({"measures": {"a": 1}}, "`measures` to hold torchmetrics metrics"),
        ({"saliency": 3}, "`saliency`"),
        ({"saliency_samples": -1}, "`saliency_samples`"),
        ({"every_n_epochs": 0}, "`every_n_epochs`"),
        ({"input": 1.5}, "`input`"),
        ({"target": True}, "`target`"),
        ({"max_batch": 0}, "`max_batch`"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InvarianceMonitor(**{"action": C4(), **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "nope"}, r"`network` to name a submodule of Classifier .*'model'.* but got 'nope'"),
        ({"input": "nope"}, "input='nope' to name a tensor in the network's arguments"),
        ({"input": 2}, "input=2 to name a tensor in the network's arguments"),
        ({"target": "nope"}, "target='nope' to name 4 integer labels in the batch but got NoneType"),
        ({"target": 0}, r"target=0 to name 4 integer labels in the batch but got a tensor \(4, 1, 4, 4\)"),
    ],
)
@pytest.mark.parametrize("method", ["validate", "test", "fit"])
def test_what_cannot_be_found_is_named(options: dict[str, Any], message: str, method: str) -> None:
    trainer = trainer_for([InvarianceMonitor(C4(), **options)])
    data = (loader(4), loader(4)) if method == "fit" else (loader(4),)
    with pytest.raises(ValueError, match=message):
        getattr(trainer, method)(Classifier(), *data)


def test_a_step_that_does_not_call_the_network_is_told_what_to_name() -> None:
    class CallsSubmodule(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return self.model(batch[0]).sum()

    module: LightningModule = CallsSubmodule()
    with pytest.raises(ValueError, match=r"call the forward of CallsSubmodule.*network=.*'model'"):
        trainer_for([InvarianceMonitor(C4())]).validate(module, loader(4), verbose=False)
    trainer = trainer_for([InvarianceMonitor(C4(), network="model")])
    trainer.validate(module, loader(8), verbose=False)
    assert len(logged(trainer)) == len(ALL)


def test_a_group_that_cannot_act_on_the_input_is_refused() -> None:
    data = loader(4, pack=lambda x, y: (x.reshape(1, 2, 8), y))
    with pytest.raises(ValueError, match="square"):
        trainer_for([InvarianceMonitor(C4())]).validate(Classifier(), data, verbose=False)


@pytest.mark.filterwarnings("ignore:.*backward hooks:UserWarning")
def test_an_attribution_that_needs_a_module_gets_one() -> None:
    """DeepLift hooks into the layers; on a network of a single linear layer it is the input times the weights."""
    attribution = pytest.importorskip("captum.attr").DeepLift

    def linear() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))

    values = []
    for saliency in (attribution, InputXGradient()):
        torch.manual_seed(0)
        trainer = trainer_for([InvarianceMonitor(C4(), saliency=saliency)])
        trainer.validate(Classifier(linear), loader(4), verbose=False)
        values.append(logged(trainer)["val/saliency_invariance_similarity"])
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_integers_beside_the_input_are_no_labels_unless_named() -> None:
    data = loader(8, pack=lambda x, y: (x, torch.tensor(7), y))

    class ThreeParts(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])

    torch.manual_seed(0)
    module = ThreeParts()
    trainer = trainer_for([InvarianceMonitor(C4())])
    trainer.validate(module, data, verbose=False)
    assert "val/orbit_accuracy" not in logged(trainer)
    trainer = trainer_for([InvarianceMonitor(C4(), target=2)])
    trainer.validate(module, data, verbose=False)
    right = [
        (module(torch.rot90(x, turns, (-2, -1))).argmax(dim=1) == y).float() for x, _, y in data for turns in (1, 2, 3)
    ]
    assert logged(trainer)["val/orbit_accuracy"] == pytest.approx(float(torch.cat(right).mean()))
