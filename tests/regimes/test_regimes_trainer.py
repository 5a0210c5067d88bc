"""Precision, the trainer's loop, compiled modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from helpers import assert_trained_alike, fit, loader, logit_term, made, rotated, trainer_for
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler
from lightning.pytorch.plugins import MixedPrecision
from regimes_helpers import WEIGHT, Classifier, Logit, Saliency, WithTerm, compare, convnet
from torch import Tensor
from torch.nn import functional as F

from lightning_invariance import C4, InvarianceMonitor, InvarianceRegularizer


def regularizer() -> list[Callback]:
    return [InvarianceRegularizer(C4(), WEIGHT)]


class Stacked(WithTerm):
    """All elements in one forward, as the callback runs them: half precision rounds other shapes otherwise."""

    def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
        return WEIGHT * logit_term(fx, self.model(torch.cat(rotated(x))).chunk(3))


# Precision -------------------------------------------------------------------------------------------------------


class Scaler(torch.amp.GradScaler):
    """Scales as on an accelerator, and notes by how much."""

    def __init__(self) -> None:
        super().__init__("cpu", init_scale=2.0**10, growth_interval=4)
        self.scales: list[float] = []

    def step(self, *args: Any, **kwargs: Any) -> Any:
        self.scales.append(self.get_scale())
        return super().step(*args, **kwargs)


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [
        ("32-true", 1e-6),
        ("64-true", 1e-12),
        ("bf16-mixed", 1e-6),
        # The parameters themselves are rounded: a step that differs in the last bit is rounded the same or 2⁻⁹ away.
        ("bf16-true", 1e-6),
    ],
)
def test_precision(precision: str, tolerance: float) -> None:
    compare(Classifier, Stacked, regularizer, tolerance=tolerance, precision=precision)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.05}], ids=str)
def test_scaled_gradients(options: dict[str, Any]) -> None:
    scalers: list[Scaler] = []

    def run(make: Callable[[], LightningModule], callbacks: list[Callback]) -> LightningModule:
        scalers.append(Scaler())
        plugin = MixedPrecision("16-mixed", "cpu", scaler=scalers[-1])
        return fit(make, callbacks, data=loader(24), plugins=[plugin], **options)

    assert_trained_alike(run(Classifier, regularizer()), run(Stacked, []), run(Classifier, []))
    assert scalers[0].scales == scalers[1].scales
    assert scalers[0].scales[0] == 2.0**10
    assert len(set(scalers[0].scales)) > 1  # it grew


def test_scaled_gradients_with_manual_optimisation() -> None:
    class Manual(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    class Oracle(Manual):
        added = Stacked.added  # type: ignore[assignment]

    def run(make: Callable[[], LightningModule], callbacks: list[Callback]) -> LightningModule:
        return fit(make, callbacks, plugins=[MixedPrecision("16-mixed", "cpu", scaler=Scaler())])

    assert_trained_alike(run(Manual, regularizer()), run(Oracle, []), run(Manual, []))


# Loop ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 1},
        {"accumulate_grad_batches": 4, "gradient_clip_val": 0.05, "gradient_clip_algorithm": "norm"},
        {"accumulate_grad_batches": 4, "gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"overfit_batches": 2},
        {"fast_dev_run": True},
        {"fast_dev_run": 2},
        {"limit_train_batches": 2, "num_sanity_val_steps": 2},
        {"max_steps": 3, "max_epochs": -1},
        {"max_time": timedelta(hours=1)},
        {"val_check_interval": 2},
        {"num_sanity_val_steps": -1, "inference_mode": False},
        {"deterministic": True, "detect_anomaly": True},
        {"reload_dataloaders_every_n_epochs": 1},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling")
def test_loop(options: dict[str, Any], optimizer: str) -> None:
    class Plain(Classifier):
        def configure_optimizers(self) -> Any:
            if optimizer == "SGD":
                return super().configure_optimizers()
            return torch.optim.Adam(self.parameters(), lr=0.01, eps=1e-3)

    class Oracle(Logit, Plain):
        pass

    compare(Plain, Oracle, regularizer, data=loader(24, shuffle=True), val=loader(8, seed=2), **options)


def test_a_run_whose_time_is_up_ends_with_its_first_batch() -> None:
    module = compare(Classifier, WithTerm, regularizer, max_time=timedelta(microseconds=1))
    assert module.trainer.global_step == 1
    assert not {"training_step", "manual_backward"} & set(module.__dict__)


class Logging:
    """Logs its losses, for callbacks that go by them."""

    def validation_step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("val/loss", loss)
        return loss


class LoggingClassifier(Logging, Classifier):
    pass


class LoggingWithTerm(Logging, WithTerm):
    pass


@pytest.mark.parametrize(
    ("others", "options"),
    [
        (lambda: [EarlyStopping("val/loss", min_delta=10.0, patience=1)], {}),
        (lambda: [GradientAccumulationScheduler({0: 1, 1: 4, 2: 2})], {}),
    ],
    ids=["early stopping", "accumulation scheduler"],
)
def test_callbacks_that_steer_the_loop(others: Callable[[], list[Callback]], options: dict[str, Any]) -> None:
    val = loader(8, seed=2)
    module = compare(
        LoggingClassifier, LoggingWithTerm, regularizer, others, data=loader(24), val=val, max_epochs=4, **options
    )
    stopped = isinstance(others()[0], EarlyStopping)
    assert module.trainer.current_epoch == (2 if stopped else 4)


@pytest.mark.parametrize("name", ["val/logit_invariance_error", "train/invariance_penalty"])
def test_early_stopping_by_what_the_callbacks_log(name: str) -> None:
    trainers: list[Trainer] = []
    for patience in (1, 100):
        stopping = EarlyStopping(name, mode="max", min_delta=10.0, patience=patience)
        callbacks = [InvarianceRegularizer(C4(), WEIGHT), InvarianceMonitor(C4(), saliency_samples=0), stopping]
        trainers.append(trainer_for(callbacks, max_epochs=4))
        trainers[-1].fit(made(Classifier), loader(), loader(8, seed=2))
    assert [trainer.current_epoch for trainer in trainers] == [2, 4]


# Compiled --------------------------------------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Direct(Classifier):
    """Calls the network, not its own forward."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        self.before = torch.get_rng_state()
        fx = self.model(x)
        return F.cross_entropy(fx, y) + self.added(fx, x)


def whole(module: Classifier, backend: str) -> Any:
    return torch.compile(module, backend=backend)


def network(module: Classifier, backend: str) -> Any:
    module.model = torch.compile(module.model, backend=backend)  # type: ignore[assignment]
    return module


def network_in_place(module: Classifier, backend: str) -> Any:
    module.model.compile(backend=backend)
    return module


def in_place(module: Classifier, backend: str) -> Any:
    module.compile(backend=backend)
    return module


COMPILED = [whole, network, network_in_place, in_place]


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("convolutional", [False, True], ids=["mlp", "batch normalisation"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("compile", COMPILED)
def test_compiled(compile: Callable[[Any, str], Any], backend: str, convolutional: bool) -> None:
    """``eager`` for the capture alone is tested with the monitor elsewhere; here gradients are traced too."""

    def plain() -> Classifier:
        return Classifier(convnet) if convolutional else Classifier()

    def oracle() -> Classifier:
        return WithTerm(convnet) if convolutional else WithTerm()

    module = made(plain)
    trainer_for(regularizer(), accumulate_grad_batches=2).fit(compile(module, backend), loader(16))
    options = {"data": loader(16), "accumulate_grad_batches": 2}
    assert_trained_alike(module, fit(oracle, **options), fit(plain, **options))


class ManualClassifier(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class ManualWithTerm(Logit, ManualClassifier):
    pass


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("compile", [network, network_in_place, in_place])
def test_a_compiled_network_with_manual_optimisation(compile: Callable[[Any, str], Any]) -> None:
    module = made(ManualClassifier)
    trainer_for(regularizer()).fit(compile(module, "aot_eager"), loader())
    assert_trained_alike(module, fit(ManualWithTerm), fit(ManualClassifier))


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_module_with_manual_optimisation_is_refused() -> None:
    module = made(ManualClassifier)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match="compiled as a whole to use automatic optimisation"):
        trainer_for(regularizer()).fit(whole(module, "eager"), loader())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    ("compile", "named"),
    [*((each, None) for each in COMPILED), *((each, "model") for each in (whole, network, network_in_place))],
)
def test_saliency_of_a_compiled_network_is_refused(compile: Callable[[Any, str], Any], named: str | None) -> None:
    module = made(Direct)
    compiled = compile(module, "eager")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match="not compiled for penalty='saliency'"):
        trainer_for([InvarianceRegularizer(C4(), penalty="saliency", network=named)]).fit(compiled, loader())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.usefixtures("_fresh_compiler")
def test_saliency_of_the_plain_network_inside_a_module_compiled_in_place() -> None:
    """The step calls the network itself, which is not compiled: only the module's own forward is."""

    class DirectWithSaliency(Saliency, Direct):
        pass

    module = made(Direct)
    trainer_for([InvarianceRegularizer(C4(), WEIGHT, "saliency", network="model")]).fit(
        in_place(module, "eager"), loader()
    )
    assert_trained_alike(module, fit(DirectWithSaliency), fit(Direct))
