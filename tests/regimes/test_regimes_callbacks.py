"""Beside Lightning's own callbacks: what averages weights, what tries steps out, what keeps the best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Images, fit, loader, made, trainer_for
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from oracles import (
    WEIGHT,
    Classifier,
    Logit,
    assert_identical,
    assert_trained_alike,
    compare,
    convnet,
    distance,
    logit_term,
    rotated,
)
from steps import SHADOWED, with_term
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_invariance import C4, HorizontalFlip, InvarianceMonitor, InvarianceRegularizer, OrbitAugmentation

LI = "logit_invariance_error"


def regularizer() -> list[Callback]:
    return [InvarianceRegularizer(C4(), WEIGHT)]


class Normalised(Classifier):
    """With running statistics, which averaging has to make anew."""

    def __init__(self) -> None:
        super().__init__(convnet, lr=0.05)


# Averages of weights ---------------------------------------------------------------------------------------------


AVERAGING: dict[str, tuple[Callable[[], Callback], bool]] = {
    "SWA, then regularizer": (
        lambda: StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=1, annealing_epochs=1),
        False,
    ),
    "regularizer, then SWA": (
        lambda: StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=2, annealing_epochs=2),
        True,
    ),
    "regularizer, then average": (lambda: WeightAveraging(), True),
    "average without buffers, then regularizer": (lambda: WeightAveraging(use_buffers=False), False),
    "EMA from the fourth step, then regularizer": (
        lambda: EMAWeightAveraging(decay=0.9, update_starting_at_step=4),
        False,
    ),
}


@pytest.mark.parametrize(("averaging", "last"), AVERAGING.values(), ids=AVERAGING)
def test_averages_of_weights(averaging: Callable[[], Callback], last: bool) -> None:
    """Weights and batch statistics as with the term by hand; beside a monitor alone, bit for bit as without."""

    def run(make: Callable[[], LightningModule], callbacks: list[Callback]) -> LightningModule:
        everyone = [averaging(), *callbacks]
        return fit(make, everyone[::-1] if last else everyone, val=loader(8, seed=2), max_epochs=4)

    got, plain = run(Normalised, regularizer()), run(Normalised, [])
    assert_trained_alike(got, run(with_term(Normalised), []), plain)
    assert not SHADOWED & set(got.__dict__)
    monitored = run(Normalised, [InvarianceMonitor(C4(), saliency_samples=2)])
    assert_identical(monitored.state_dict(), plain.state_dict())


def test_the_term_is_left_out_of_the_epoch_that_makes_statistics_anew() -> None:
    counts: list[int] = []

    def counting(logits: Tensor, orbit_logits: Tensor) -> Tensor:
        counts.append(len(logits))
        return 0.0 * (logits - orbit_logits).square().mean()

    averaging = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1)
    fit(Normalised, [averaging, InvarianceRegularizer(C4(), 1.0, counting)], max_epochs=3)
    assert len(counts) == 3 * 3


def test_the_monitor_measures_the_averaged_weights() -> None:
    """Validation runs with them, and so do the measures."""

    class Exact(Callback):
        def __init__(self) -> None:
            self.errors: list[float] = []

        def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            if not trainer.sanity_checking:
                x = Images(8, 2).tensors[0]
                self.errors.append(
                    float(logit_term(pl_module.model(x), [pl_module.model(each) for each in rotated(x)]))
                )

    exact, monitor, unaveraged = Exact(), InvarianceMonitor(C4(), [LI]), InvarianceMonitor(C4(), [LI])
    options = {"val": loader(8, 8, seed=2), "max_epochs": 3}
    fit(Classifier, [EMAWeightAveraging(), monitor, exact], **options)
    measured = [float(record.measures[LI].value) for record in monitor.history]
    assert measured == pytest.approx(exact.errors, rel=1e-5)
    fit(Classifier, [unaveraged], **options)
    assert measured[-1] != pytest.approx(float(unaveraged.history[-1].measures[LI].value))


# Steps that are tried out ----------------------------------------------------------------------------------------


class Finding(LearningRateFinder):
    """Keeps the losses that it saw."""

    def __init__(self) -> None:
        super().__init__(min_lr=1e-3, max_lr=1.0, num_training_steps=8, early_stop_threshold=None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        assert self.optimal_lr is not None
        self.losses = list(self.optimal_lr.results["loss"])


@pytest.mark.filterwarnings("ignore:Failed to compute suggestion", "ignore:.*LR finder")
def test_the_learning_rate_is_looked_for_on_the_loss_with_the_term(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the finder writes there
    losses = []

    def run(make: Callable[[], LightningModule], callbacks: list[Callback]) -> LightningModule:
        finding = Finding()
        module = fit(make, [finding, *callbacks], data=loader(24), default_root_dir=str(tmp_path))
        losses.append(finding.losses)
        return module

    got, oracle, plain = run(Classifier, regularizer()), run(with_term(Classifier), []), run(Classifier, [])
    assert_trained_alike(got, oracle, plain)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[1] != pytest.approx(losses[2], abs=1e-3)
    assert got.lr == oracle.lr
    assert not SHADOWED & set(got.__dict__)


class Sized(Classifier):
    """Makes its own loader, of a size that can be found."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 2

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(24, self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(8, self.batch_size, seed=2)


def test_the_batch_size_is_looked_for_with_the_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights: list[int] = []

    def run(make: Callable[[], Sized], callbacks: list[Callback]) -> Sized:
        module = made(make)
        finder = BatchSizeFinder(init_val=2, max_trials=2, steps_per_trial=2)
        trainer_for([finder, *callbacks], default_root_dir=str(tmp_path)).fit(module)
        return module

    def counting(step: int) -> float:
        weights.append(step)
        return WEIGHT

    got, oracle = run(Sized, [InvarianceRegularizer(C4(), counting)]), run(with_term(Sized), [])
    assert got.batch_size == oracle.batch_size > 2
    assert_trained_alike(got, oracle, run(Sized, []))
    assert len(weights) > 2 * -(-24 // got.batch_size)  # the trials had the term, and its memory, too


def test_a_tuner_leaves_nothing_on_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = made(Sized)
    trainer = trainer_for(regularizer(), default_root_dir=str(tmp_path))
    Tuner(trainer).scale_batch_size(module, mode="power", init_val=2, max_trials=1, steps_per_trial=1)
    assert not SHADOWED & set(module.__dict__)
    assert distance(module, made(Sized)) == 0.0


# Checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize(("mode", "order"), [("min", 1), ("max", -1)])
def test_the_best_weights_by_what_the_monitor_measures(mode: Any, order: int, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor=f"val/{LI}", mode=mode, save_top_k=1)
    monitor = InvarianceMonitor(C4(), measures=[LI])
    callbacks = [checkpoint, monitor, *regularizer()][::order]
    fit(Classifier, callbacks, val=loader(8, seed=2), max_epochs=4, enable_checkpointing=True)
    errors = [float(record.measures[LI].value) for record in monitor.history]
    assert len(set(errors)) == 4
    best = min(errors) if mode == "min" else max(errors)
    assert float(checkpoint.best_model_score) == pytest.approx(best, rel=1e-6)

    # A Trainer and a torch.load that know nothing of the package take the file.
    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    assert saved["epoch"] == errors.index(best)
    module = made(Classifier)
    trainer_for().validate(module, loader(8, seed=2), ckpt_path=checkpoint.best_model_path, verbose=False)
    again = InvarianceMonitor(C4(), measures=[LI])
    trainer_for([again]).validate(module, loader(8, seed=2), verbose=False)
    assert float(again.history[0].measures[LI].value) == pytest.approx(best, rel=1e-6)


# Several of the package's own ------------------------------------------------------------------------------------


def test_two_regularizers_with_manual_optimisation_accumulation_and_batch_normalisation() -> None:
    class Accumulating(Normalised):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            self.manual_backward(super().training_step(batch, batch_idx))
            if batch_idx % 2:
                optimizer.step()
                optimizer.zero_grad()

    class Oracle(Logit, Accumulating):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            mirrored = 0.5 * (fx - self.again(x.flip(-1))).square().sum(1).mean()
            return super().added(fx, x) + 0.2 * mirrored

    flip = InvarianceRegularizer(HorizontalFlip(), 0.2, network="model", prefix="flip")
    compare(Accumulating, Oracle, [*regularizer(), flip], data=loader(16))


def test_everything_at_once_ends_where_a_second_run_ends() -> None:
    """Augmentation, two terms, two monitors, averaging: one seed, one result."""

    def run() -> LightningModule:
        everyone = [
            EMAWeightAveraging(decay=0.5),
            InvarianceMonitor(C4(), saliency_samples=2),
            OrbitAugmentation(C4(), seed=3),
            InvarianceRegularizer(C4(), WEIGHT, elements_per_step=1),
            InvarianceRegularizer(HorizontalFlip(), 0.2, "saliency", prefix="flip"),
            InvarianceMonitor(HorizontalFlip(), saliency_samples=0, prefix="flip"),
        ]
        return fit(Normalised, everyone, data=loader(shuffle=True), val=loader(4, seed=2))

    assert distance(run(), run()) == 0.0
