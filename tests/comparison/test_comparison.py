"""The table of several models holds what separate tests give, times that a clock was told, and leaves no trace."""

from __future__ import annotations

import importlib
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLASSES, SIDE, Images, trainer_for
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning_utilities.core import rank_zero
from oracles import Classifier, assert_identical, flat, gradient_map, measures_by_hand, mlp
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_invariance as li
from lightning_invariance.baselines import OrbitPooled
from lightning_invariance.comparison import _times


class Data(LightningDataModule):
    """Ordered test images, so that the saliency maps are those of the first of them."""

    def __init__(self, train: int = 12, test: int = 10, loaders: int = 1) -> None:
        super().__init__()
        self.sizes = (train, test, loaders)
        self.teardowns = 0

    def train_dataloader(self) -> Any:
        return DataLoader(Images(self.sizes[0], seed=1), batch_size=4, shuffle=True)

    def test_dataloader(self) -> Any:
        made = [DataLoader(Images(self.sizes[1], seed=2), batch_size=4) for _ in range(self.sizes[2])]
        return made if self.sizes[2] > 1 else made[0]

    def teardown(self, stage: str) -> None:
        self.teardowns += 1


def pooled() -> nn.Module:
    return OrbitPooled(mlp(), li.C4())


def compared(models: Any, datamodule: Any = None, action: Any = None, **options: Any) -> li.Comparison:
    options = {"rounds": 0, "progress": False, "accelerator": "cpu", "saliency": li.Gradient(), **options}
    return li.compare(models, datamodule or Data(), action or li.C4(), **options)


def seeded(network: Any = mlp, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(network)


# What is measured ------------------------------------------------------------------------------------------------


def test_the_measures_are_those_of_the_formulas() -> None:
    module = seeded()
    models = compared({"net": module, "pooled": seeded(pooled)}, saliency_samples=6).models
    assert models["pooled"].measures["logit_invariance_error"].value < 1e-12
    assert models["pooled"].measures["saliency_invariance_similarity"].value == pytest.approx(1.0, abs=1e-6)
    assert models["pooled"].parameters == SIDE * SIDE * 8 + 8 + 8 * CLASSES + CLASSES
    found = models["net"].measures
    x, y = Images(10, seed=2).x, Images(10, seed=2).y
    right = (module(x).argmax(dim=1) == y).double()
    expected = {"accuracy": float(right.mean()), **measures_by_hand(module, x, y, gradient_map, 6)}
    assert list(found) == [
        "accuracy",
        "worst_case_orbit_accuracy",
        "logit_invariance_error",
        "distribution_invariance_error",
        "saliency_invariance_similarity",
        "orbit_share",
    ]
    for name, estimate in found.items():
        assert float(estimate.value) == pytest.approx(expected[name], rel=1e-4), name
    assert float(found["accuracy"].standard_error) == pytest.approx(float(right.std() / math.sqrt(10)), rel=1e-6)


def test_a_submodule_may_be_the_network() -> None:
    class Halved(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return self.model(x) / 2

    module = Halved()
    whole, part = (compared({"net": module}, network=name).models["net"].measures for name in (None, "model"))
    error = "logit_invariance_error"
    assert float(part[error].value) == pytest.approx(4 * float(whole[error].value), rel=1e-5)


def test_without_labels_there_are_no_accuracies() -> None:
    class Unlabelled(Classifier):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self(batch)

    class Inputs(Data):
        def test_dataloader(self) -> Any:
            return DataLoader(Images(8, seed=2, pack=lambda x, y: x), batch_size=4)

    found = compared({"net": Unlabelled(), "other": Unlabelled()}, Inputs())
    assert "accuracy" not in found.models["net"].measures
    assert "logit_invariance_error" in found.models["net"].measures
    assert "accuracy" not in found.to_markdown()


# What is timed ---------------------------------------------------------------------------------------------------


class Clocked(Classifier):
    """Its steps tell the clock how long they took, and remember the turns in which they were run."""

    def __init__(self, clock: Clock, name: str, network: Any = mlp) -> None:
        super().__init__(network)
        self.clock = clock
        self.name = name

    def __deepcopy__(self, memo: Any) -> Clocked:
        copy = Clocked(self.clock, self.name)
        copy.load_state_dict(self.state_dict())
        return copy

    def on_fit_start(self) -> None:
        self.clock.turns.append(f"{self.name} trains")

    def on_test_start(self) -> None:
        self.clock.turns.append(f"{self.name} tests")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.clock.pass_by(f"{self.name} trains")
        return super().training_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.clock.pass_by(f"{self.name} tests")
        return super().test_step(batch, batch_idx)


class Clock:
    """Stands still but for what steps say that they took; each turn the machine is twice as slow as before."""

    def __init__(self, seconds: dict[str, float], warm_up: float = 0.0) -> None:
        self.seconds = seconds
        self.warm_up = warm_up
        self.now = 0.0
        self.turns: list[str] = []
        self.steps: list[int] = []

    def pass_by(self, what: str) -> None:
        turn = self.turns.count(what)
        self.steps.append(len(self.turns))
        first = self.steps.count(len(self.turns)) <= _times.WARM_UP
        self.now += self.seconds[what] * 2.0**turn + first * self.warm_up

    def __call__(self) -> float:
        return self.now


def timed(clock: Clock, monkeypatch: pytest.MonkeyPatch, **options: Any) -> li.Comparison:
    monkeypatch.setattr(_times, "perf_counter", clock)
    return compared({"a": Clocked(clock, "a"), "b": Clocked(clock, "b")}, Data(train=8, test=40), **options)


SECONDS = {"a trains": 1.0, "b trains": 3.0, "a tests": 0.5, "b tests": 0.25}


def test_ratios_are_those_of_steps_in_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(SECONDS, warm_up=100.0)
    found = timed(clock, monkeypatch, rounds=3, steps=4)
    # The first turn of testing is the measurement.
    assert found.models["a"].training_step_seconds == (2.0, 4.0, 8.0)
    assert found.models["b"].training_step_seconds == (6.0, 12.0, 24.0)
    assert found.models["b"].inference_seconds == (1.0, 2.0, 4.0)
    assert found.ratios("training_step_seconds") == {"a": 1.0, "b": 3.0}
    assert found.ratios("inference_seconds") == {"a": 1.0, "b": 0.5}
    turns = [f"{name} {does}" for name in "abbaab" for does in ("trains", "tests")]
    assert clock.turns == ["a tests", "b tests", *turns]
    # A fit's epochs hold two batches: it goes on through several of them.
    assert [clock.steps.count(turn) for turn in range(3, 15)] == [_times.WARM_UP + 4] * 12


class Slow(Callback):
    """What a regularizer is to the clock: a step's part, wherever it stands among the callbacks."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __deepcopy__(self, memo: Any) -> Slow:
        return Slow(self.clock)

    def on_before_backward(self, *args: Any) -> None:
        self.clock.now += 2.0


def test_the_callbacks_of_a_model_count_in_its_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(dict.fromkeys(SECONDS, 0.0))
    found = timed(clock, monkeypatch, rounds=2, steps=1, callbacks={"b": [Slow(clock)]})
    assert found.models["a"].training_step_seconds == (0.0, 0.0)
    assert found.models["b"].training_step_seconds == (2.0, 2.0)
    assert found.models["b"].inference_seconds == (0.0, 0.0)


def test_where_there_is_one_batch_its_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(dict.fromkeys(SECONDS, 0.0), warm_up=100.0)
    monkeypatch.setattr(_times, "perf_counter", clock)
    found = compared({"a": Clocked(clock, "a")}, Data(train=4, test=4), rounds=1, steps=1)
    assert found.models["a"].training_step_seconds == (0.0,)
    assert found.models["a"].inference_seconds == (100.0,)


def test_the_callbacks_may_be_all_of_a_trainer(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", callbacks=[li.OrbitAugmentation(li.C4())], default_root_dir=tmp_path, logger=False
    )
    assert len(trainer.callbacks) > 2  # a progress bar, a summary, a checkpoint
    found = compared({"net": seeded()}, callbacks={"net": trainer.callbacks}, rounds=1, steps=1).models["net"]
    assert all(seconds > 0 for seconds in (*found.training_step_seconds, *found.inference_seconds))
    assert list(tmp_path.iterdir()) == []


# No trace --------------------------------------------------------------------------------------------------------


class Stops(Callback):
    """Fails in the midst of training."""

    def on_train_batch_end(self, *args: Any) -> None:
        raise RuntimeError("the power went out")


@pytest.mark.parametrize("fails", [False, True])
def test_models_callbacks_random_streams_and_data_module_are_as_before(fails: bool) -> None:
    module, datamodule = seeded(), Data()
    module.eval()
    regularizer = li.InvarianceRegularizer(li.C4(), 1.0)
    owner = trainer_for()
    datamodule.trainer = owner

    def everything() -> dict[str, Any]:
        return flat({"weights": module.state_dict(), "mode": module.training, "random": torch.get_rng_state()})

    before = {place: leaf.clone() if isinstance(leaf, Tensor) else leaf for place, leaf in everything().items()}
    callbacks: list[Callback] = [regularizer, Stops()] if fails else [regularizer]
    if fails:
        with pytest.raises(RuntimeError, match="the power went out"):
            compared({"net": module}, datamodule, callbacks={"net": callbacks}, rounds=1, steps=2)
    else:
        compared({"net": module}, datamodule, callbacks={"net": callbacks}, rounds=1, steps=2)
    assert_identical(everything(), before)
    assert datamodule.trainer is owner
    assert module._trainer is None
    assert "training_step" not in vars(module)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_module_that_its_trainer_still_holds_can_be_compared() -> None:
    module, datamodule = seeded(), Data()
    trainer = trainer_for(max_epochs=1)
    trainer.fit(module, datamodule=datamodule)
    compared({"net": module}, datamodule, rounds=1, steps=1)
    assert module.trainer is trainer


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_nothing_is_said(
    package: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.import_module(package)  # the last one imported talks
    talking = [logging.getLogger(name) for name in (package, f"{package}.utilities.rank_zero")]
    monkeypatch.setattr(rank_zero, "log", talking[1])
    caplog.set_level(logging.INFO, logger=package)
    levels = [logger.level for logger in talking]
    compared({"net": seeded()}, rounds=1, steps=1)
    assert [logger.level for logger in talking] == levels
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []
    compared({"net": seeded()}, progress=True)
    assert "net: testing" in capsys.readouterr().err


# What it is refused for -------------------------------------------------------------------------------------------


def test_several_test_loaders_or_devices_are_refused_before_any_batch() -> None:
    class Never(Classifier):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            raise AssertionError("a batch was run")

    with pytest.raises(ValueError, match="`datamodule` to give one test data loader but got 2"):
        compared({"net": Never()}, Data(loaders=2))
    with pytest.raises(ValueError, match="to name one device, to time it, but got 2"):
        compared({"net": seeded()}, devices=2)


# What is shown ---------------------------------------------------------------------------------------------------


def estimate(value: float, error: float = 0.5) -> li.Estimate:
    return li.Estimate(torch.tensor(value), torch.tensor(error))


KNOWN = li.Comparison(
    {
        "DA": li.ComparedModel(
            {"accuracy": estimate(0.9), "logit_invariance_error": estimate(8.0)}, 1234, (0.1,), (0.02,)
        ),
        "WT": li.ComparedModel(
            {"accuracy": estimate(0.95), "logit_invariance_error": estimate(0.0)}, 99, (0.4,), (0.01,)
        ),
    }
)


def test_the_data_frame_has_every_number() -> None:
    frame = KNOWN.to_dataframe()
    assert frame.index.name == "model"
    row = json.loads(frame.to_json(orient="index"))["WT"]
    assert row == {
        "accuracy": pytest.approx(0.95),
        "accuracy_standard_error": 0.5,
        "logit_invariance_error": 0.0,
        "logit_invariance_error_standard_error": 0.5,
        "parameters": 99,
        "training_step_seconds": 0.4,
        "training_step_ratio": pytest.approx(4.0),
        "inference_seconds": 0.01,
        "inference_ratio": 0.5,
    }
    assert frame["parameters"].dtype.kind == "i"


def test_without_times_the_table_has_none_and_the_frame_nan() -> None:
    untimed = li.Comparison({"DA": li.ComparedModel({"accuracy": estimate(0.9)}, 12, (), ())})
    assert untimed.to_markdown().splitlines()[0] == "|  | accuracy | parameters |"
    assert math.isnan(untimed.to_dataframe().loc["DA", "training_step_ratio"])
    assert [axes.get_title() for axes in untimed.plot().axes] == ["accuracy", "parameters"]


def test_the_figure_has_a_bar_for_each_model_and_measure() -> None:
    panels = {axes.get_title(): axes for axes in KNOWN.plot().axes}
    assert list(panels) == ["accuracy", "LI", "parameters", "training step / DA's", "inference / DA's"]
    assert [bar.get_width() for bar in panels["parameters"].patches] == [1234, 99]
    assert [bar.get_width() for bar in panels["LI"].patches] == [8.0, 0.0]
    assert (panels["LI"].get_xscale(), panels["accuracy"].get_xscale()) == ("symlog", "linear")
    assert [label.get_text() for label in panels["accuracy"].get_yticklabels()] == ["DA", "WT"]


def test_without_pandas_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("lightning_invariance._requirements.import_module", missing)
    with pytest.raises(ModuleNotFoundError, match="A DataFrame needs pandas: pip install pandas"):
        KNOWN.to_dataframe()
