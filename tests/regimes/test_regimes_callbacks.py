"""Beside Lightning's own callbacks: what averages weights, what tries steps out, what keeps the best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Images, assert_trained_alike, distance, fit, loader, made, trainer_for
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
from regimes_helpers import WEIGHT, Classifier, Logit, compare, convnet
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_invariance import C4, HorizontalFlip, InvarianceMonitor, InvarianceRegularizer, OrbitAugmentation


def regularizer() -> list[Callback]:
    return [InvarianceRegularizer(C4(), WEIGHT)]


class Normalised(Classifier):
    """With running statistics, which averaging has to make anew."""

    def __init__(self) -> None:
        super().__init__(convnet, lr=0.05)


class NormalisedWithTerm(Logit, Normalised):
    """The epoch in which averaging makes statistics anew trains nothing; the term may be there or not."""


# Averages of weights ---------------------------------------------------------------------------------------------


AVERAGING: dict[str, Callable[[], Callback]] = {
    "SWA": lambda: StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=1, annealing_epochs=1),
    "SWA from the middle": lambda: StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=2, annealing_epochs=2),
    "average": lambda: WeightAveraging(),
    "average without buffers": lambda: WeightAveraging(use_buffers=False),
    "EMA": lambda: EMAWeightAveraging(decay=0.5),
    "EMA from the fourth step": lambda: EMAWeightAveraging(decay=0.9, update_starting_at_step=4),
}


@pytest.mark.parametrize("last", [False, True], ids=["averaging first", "regularizer first"])
@pytest.mark.parametrize("name", AVERAGING)
def test_averages_of_weights(name: str, last: bool) -> None:
    """Weights and batch statistics, in any order of the callbacks."""

    def run(make: Callable[[], LightningModule], callbacks: list[Callback]) -> LightningModule:
        both = [AVERAGING[name](), *callbacks]
        return fit(make, both[::-1] if last else both, val=loader(8, seed=2), max_epochs=4)

    got = run(Normalised, regularizer())
    assert_trained_alike(got, run(NormalisedWithTerm, []), run(Normalised, []))
    assert not {"training_step", "validation_step", "manual_backward"} & set(got.__dict__)


@pytest.mark.parametrize("name", AVERAGING)
def test_a_monitor_leaves_averages_alone(name: str) -> None:
    def run(callbacks: list[Callback]) -> LightningModule:
        return fit(Normalised, [AVERAGING[name](), *callbacks], val=loader(8, seed=2), max_epochs=4)

    got, expected = run([InvarianceMonitor(C4(), saliency_samples=2)]), run([])
    for (place, value), other in zip(got.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(value, other), place


@pytest.mark.parametrize("kind", [EMAWeightAveraging, WeightAveraging])
def test_the_monitor_measures_the_averaged_weights(kind: type[WeightAveraging]) -> None:
    """Validation runs with them, and so do the measures."""

    class Exact(Callback):
        def __init__(self) -> None:
            self.errors: list[float] = []

        def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            if trainer.sanity_checking:
                return
            x = Images(8, 2).tensors[0]
            fx = pl_module.model(x)
            gaps = [(fx - pl_module.model(torch.rot90(x, k, (2, 3)))).square().sum(1).mean() / 2 for k in (1, 2, 3)]
            self.errors.append(float(sum(gaps) / 3))

    exact, monitor = Exact(), InvarianceMonitor(C4(), measures=["logit_invariance_error"])
    options = {"val": loader(8, 8, seed=2), "max_epochs": 3}
    fit(Classifier, [kind(), monitor, exact], **options)
    measured = [float(record.measures["logit_invariance_error"].value) for record in monitor.history]
    assert measured == pytest.approx(exact.errors, rel=1e-5)
    unaveraged = InvarianceMonitor(C4(), measures=["logit_invariance_error"])
    fit(Classifier, [unaveraged], **options)
    assert measured[-1] != pytest.approx(float(unaveraged.history[-1].measures["logit_invariance_error"].value))


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

    class WithTerm(Logit, Classifier):
        pass

    got, oracle, plain = run(Classifier, regularizer()), run(WithTerm, []), run(Classifier, [])
    assert_trained_alike(got, oracle, plain)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[1] != pytest.approx(losses[2], abs=1e-3)
    assert got.lr == oracle.lr
    assert not {"training_step", "manual_backward"} & set(got.__dict__)


class Sized(Classifier):
    """Makes its own loader, of a size that can be found."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 2

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(24, self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(8, self.batch_size, seed=2)


class SizedWithTerm(Logit, Sized):
    pass


@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_the_batch_size_is_looked_for_with_the_term(mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights: list[int] = []

    def run(make: Callable[[], Sized], callbacks: list[Callback]) -> Sized:
        module = made(make)
        finder = BatchSizeFinder(mode=mode, init_val=2, max_trials=2, steps_per_trial=2)
        trainer_for([finder, *callbacks], default_root_dir=str(tmp_path)).fit(module)
        return module

    def counting(step: int) -> float:
        weights.append(step)
        return WEIGHT

    got, oracle, plain = run(Sized, [InvarianceRegularizer(C4(), counting)]), run(SizedWithTerm, []), run(Sized, [])
    assert got.batch_size == oracle.batch_size > 2
    assert_trained_alike(got, oracle, plain)
    assert len(weights) > 2 * -(-24 // got.batch_size)  # the trials had the term, and its memory, too


def test_a_tuner_leaves_nothing_on_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = made(Sized)
    trainer = trainer_for(regularizer(), default_root_dir=str(tmp_path))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    Tuner(trainer).scale_batch_size(module, mode="power", init_val=2, max_trials=1, steps_per_trial=1)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not {"training_step", "manual_backward"} & set(module.__dict__)
    assert distance(module, made(Sized)) == 0.0


# Checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("order", [1, -1])
def test_the_best_weights_by_what_the_monitor_measures(mode: Any, order: int, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="val/logit_invariance_error", mode=mode, save_top_k=1)
    monitor = InvarianceMonitor(C4(), measures=["logit_invariance_error"])
    callbacks = [checkpoint, monitor, InvarianceRegularizer(C4(), WEIGHT)][::order]
    fit(Classifier, callbacks, val=loader(8, seed=2), max_epochs=4, enable_checkpointing=True)
    errors = [float(record.measures["logit_invariance_error"].value) for record in monitor.history]
    assert len(set(errors)) == 4
    best = min(errors) if mode == "min" else max(errors)
    assert float(checkpoint.best_model_score) == pytest.approx(best, rel=1e-6)

    # A Trainer and a torch.load that know nothing of the package take the file.
    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    assert saved["epoch"] == errors.index(best)
    module = made(Classifier)
    trainer_for().validate(module, loader(8, seed=2), ckpt_path=checkpoint.best_model_path, verbose=False)
    again = InvarianceMonitor(C4(), measures=["logit_invariance_error"])
    trainer_for([again]).validate(module, loader(8, seed=2), verbose=False)
    assert float(again.history[0].measures["logit_invariance_error"].value) == pytest.approx(best, rel=1e-6)


# Several of the package's own ------------------------------------------------------------------------------------


def test_two_regularizers_with_manual_optimisation_accumulation_and_batch_normalisation() -> None:
    class Manual(Normalised):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            self.manual_backward(super().training_step(batch, batch_idx))
            if batch_idx % 2:
                optimizer.step()
                optimizer.zero_grad()

    class Oracle(Logit, Manual):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            mirrored = 0.5 * (fx - self.again(x.flip(-1))).square().sum(1).mean()
            return super().added(fx, x) + 0.2 * mirrored

    compare(
        Manual,
        Oracle,
        lambda: [
            InvarianceRegularizer(C4(), WEIGHT),
            InvarianceRegularizer(HorizontalFlip(), 0.2, network="model", prefix="flip"),
        ],
        data=loader(16),
    )


def test_everything_at_once_ends_where_a_second_run_ends() -> None:
    """Augmentation, two terms, two monitors, averaging: one seed, one result."""

    def run() -> nn.Module:
        return fit(
            Normalised,
            [
                EMAWeightAveraging(decay=0.5),
                InvarianceMonitor(C4(), saliency_samples=2),
                OrbitAugmentation(C4(), seed=3),
                InvarianceRegularizer(C4(), WEIGHT, elements_per_step=1),
                InvarianceRegularizer(HorizontalFlip(), 0.2, "saliency", prefix="flip"),
                InvarianceMonitor(HorizontalFlip(), saliency_samples=0, prefix="flip"),
            ],
            data=loader(24, shuffle=True),
            val=loader(8, seed=2),
            max_epochs=3,
        )

    assert distance(run(), run()) == 0.0
