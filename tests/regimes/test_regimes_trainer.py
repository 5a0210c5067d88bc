"""Precision, the trainer's loop, compiled modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from helpers import fit, loader, made, trainer_for
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.compile import from_compiled
from oracles import (
    WEIGHT,
    Classifier,
    Saliency,
    Stacked,
    assert_trained_alike,
    compare,
    convnet,
    gradient_map,
    measures_by_hand,
    mlp,
)
from steps import SHADOWED, Direct, Manual, ManualClassifier, of_penalty, regularised, with_term

from lightning_invariance import C4, Gradient, InvarianceMonitor, InvarianceRegularizer, OrbitAugmentation

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
    ("precision", "penalty", "tolerance"),
    [
        ("64-true", "logit", 1e-12),
        ("bf16-mixed", "logit", 1e-6),
        ("bf16-mixed", "distribution", 1e-6),
        # The parameters themselves are rounded: a step that differs in the last bit is rounded the same or 2⁻⁹ away.
        ("bf16-true", "logit", 1e-6),
    ],
)
def test_precision(precision: str, penalty: Any, tolerance: float) -> None:
    oracle = with_term(Classifier, of_penalty(penalty, Stacked))
    regularised(Classifier, oracle, options={"precision": precision}, tolerance=tolerance, penalty=penalty)


@pytest.mark.parametrize(
    ("plain", "options"),
    [(Classifier, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}), (ManualClassifier, {})],
    ids=["accumulated and clipped", "manual"],
)
def test_scaled_gradients(plain: type[Classifier], options: dict[str, Any]) -> None:
    scalers: list[Scaler] = []

    def run(make: Callable[[], LightningModule], callbacks: list[Callback]) -> LightningModule:
        scalers.append(Scaler())
        plugin = MixedPrecision("16-mixed", "cpu", scaler=scalers[-1])
        return fit(make, callbacks, data=loader(24), plugins=[plugin], **options)

    oracle = run(with_term(plain, Stacked), [])
    assert_trained_alike(run(plain, [InvarianceRegularizer(C4(), WEIGHT)]), oracle, run(plain, []))
    assert scalers[0].scales == scalers[1].scales
    assert scalers[0].scales[0] == 2.0**10
    assert len(set(scalers[0].scales)) > 1  # it grew


# Loop ------------------------------------------------------------------------------------------------------------


def adam(self: Classifier) -> Any:
    return torch.optim.Adam(self.parameters(), lr=0.01, eps=1e-3)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (None, {"accumulate_grad_batches": 4, "gradient_clip_val": 0.05, "gradient_clip_algorithm": "norm"}),
        (adam, {"accumulate_grad_batches": 4, "gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
        (adam, {"overfit_batches": 2}),
        (None, {"fast_dev_run": 2}),
        (adam, {"max_steps": 7, "max_epochs": -1, "val_check_interval": 2, "limit_train_batches": 4}),
        (
            None,
            {
                "max_time": timedelta(hours=1),
                "num_sanity_val_steps": -1,
                "inference_mode": False,
                "deterministic": True,
                "detect_anomaly": True,
                "reload_dataloaders_every_n_epochs": 1,
            },
        ),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling")
def test_loop(options: dict[str, Any], optimizer: Any) -> None:
    class Plain(Classifier):
        configure_optimizers = optimizer or Classifier.configure_optimizers

    regularised(Plain, options={"data": loader(24, shuffle=True), "val": loader(8, seed=2), **options})


def test_a_run_whose_time_is_up_ends_with_its_first_batch() -> None:
    module = regularised(Classifier, options={"max_time": timedelta(microseconds=1)})
    assert module.trainer.global_step == 1
    assert not SHADOWED & set(module.__dict__)


class Logging(Classifier):
    """Logs its loss, for callbacks that go by it."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.log("val/loss", super().validation_step(batch, batch_idx))


def test_callbacks_that_steer_the_loop() -> None:
    def others() -> list[Callback]:
        stopping = EarlyStopping("val/loss", min_delta=10.0, patience=2)
        return [stopping, GradientAccumulationScheduler({0: 1, 1: 4, 2: 2})]

    options = {"data": loader(24), "val": loader(8, seed=2), "max_epochs": 5}
    regularizer = InvarianceRegularizer(C4(), WEIGHT)
    module = compare(Logging, with_term(Logging), [regularizer], others, **options)
    assert module.trainer.current_epoch == 3


@pytest.mark.parametrize("name", ["val/logit_invariance_error", "train/invariance_penalty"])
def test_early_stopping_by_what_the_callbacks_log(name: str) -> None:
    stopping = EarlyStopping(name, mode="max", min_delta=10.0, patience=1)
    callbacks = [InvarianceRegularizer(C4(), WEIGHT), InvarianceMonitor(C4(), saliency_samples=0), stopping]
    trainer = trainer_for(callbacks, max_epochs=4)
    trainer.fit(made(Classifier), loader(), loader(8, seed=2))
    assert trainer.current_epoch == 2


# Compiled --------------------------------------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class ManualDirect(Manual, Direct):
    pass


def whole(module: Classifier, backend: str) -> Any:
    return from_compiled(torch.compile(module, backend=backend))  # as a Trainer does with it


def network(module: Classifier, backend: str) -> Any:
    module.model = torch.compile(module.model, backend=backend)
    return module


def network_in_place(module: Classifier, backend: str) -> Any:
    module.model.compile(backend=backend)
    return module


def in_place(module: Classifier, backend: str) -> Any:
    module.compile(backend=backend)
    return module


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    ("compile", "plain", "inner", "backend", "accumulated"),
    [
        (whole, Classifier, mlp, "eager", 1),
        (whole, Classifier, convnet, "aot_eager", 2),
        (network, Direct, convnet, "eager", 1),
        (network, Classifier, convnet, "aot_eager", 2),
        (network, ManualDirect, mlp, "aot_eager", 1),
        (network_in_place, Direct, mlp, "eager", 2),
        (network_in_place, ManualClassifier, mlp, "aot_eager", 1),
        (in_place, Classifier, convnet, "eager", 2),
        (in_place, ManualClassifier, mlp, "aot_eager", 1),
    ],
)
def test_compiled(compile: Any, plain: type[Any], inner: Any, backend: str, accumulated: int) -> None:
    """``eager`` for the capture alone, with a monitor; with ``aot_eager`` gradients are traced too."""
    named = "model" if issubclass(plain, Direct) else None
    options = {"data": loader(16), "val": loader(7, seed=2), "accumulate_grad_batches": accumulated}
    module = made(lambda: plain(inner))
    original, before = copy.deepcopy(module.model), set(module.__dict__)
    monitor = InvarianceMonitor(C4(), saliency=Gradient(), network=named)
    callbacks = [InvarianceRegularizer(C4(), WEIGHT, network=named), *([monitor] if backend == "eager" else [])]
    compiled = compile(module, backend)
    steps = {name: module.__dict__.get(name) for name in SHADOWED}
    data, val = options.pop("data"), options.pop("val")
    trainer_for(callbacks, **options).fit(compiled, data, val)

    original.load_state_dict(dict(zip(original.state_dict(), module.state_dict().values(), strict=True)))
    oracle = fit(lambda: with_term(plain)(inner), data=data, **options)
    assert_trained_alike(original, oracle.model, fit(lambda: plain(inner), data=data, **options).model)
    # What compiling put on the instance is still there, and nothing else.
    assert {name: module.__dict__.get(name) for name in SHADOWED} == steps
    assert before <= set(module.__dict__)
    if backend == "eager":
        got = {name: float(each.value) for name, each in monitor.history[-1].measures.items()}
        by_hand = measures_by_hand(original, val.dataset.x, val.dataset.y, gradient_map)
        assert got == pytest.approx(by_hand, rel=2e-5, abs=1e-7)


@pytest.mark.usefixtures("_fresh_compiler")
def test_augmentation_of_a_compiled_module() -> None:
    module = made(Classifier)
    trainer_for([OrbitAugmentation(C4(), seed=3)]).fit(torch.compile(module, backend="eager"), loader())
    assert_trained_alike(module, fit(Classifier, [OrbitAugmentation(C4(), seed=3)]), fit(Classifier))


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    ("plain", "compile", "options", "message"),
    [
        (ManualClassifier, whole, {}, "compiled as a whole to use automatic optimisation"),
        *(
            (Direct, compile, {"penalty": "saliency", "network": named}, "not compiled for penalty='saliency'")
            for compile, named in (
                (whole, None),
                (network, None),
                (network, "model"),
                (network_in_place, "model"),
                (in_place, None),
            )
        ),
    ],
)
def test_what_compiling_makes_impossible_is_refused(
    plain: type[Any], compile: Any, options: dict[str, Any], message: str
) -> None:
    module = made(plain)
    compiled = compile(module, "eager")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        trainer_for([InvarianceRegularizer(C4(), **options)]).fit(compiled, loader())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.usefixtures("_fresh_compiler")
def test_saliency_of_the_plain_network_inside_a_module_compiled_in_place() -> None:
    """The step calls the network itself, which is not compiled: only the module's own forward is."""
    module = made(Direct)
    regularizer = InvarianceRegularizer(C4(), WEIGHT, "saliency", network="model")
    trainer_for([regularizer]).fit(in_place(module, "eager"), loader())
    assert_trained_alike(module, fit(with_term(Direct, Saliency)), fit(Direct))
