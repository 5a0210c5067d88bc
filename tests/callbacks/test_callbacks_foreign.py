"""Modules that were not written for the package: Lightning's own, compiled, weight-tied, of the other namespace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from callbacks_helpers import gradient_map, measures_by_hand
from helpers import CLASSES, Classifier, assert_trained_alike, fit, loader, logit_term, mlp, rotated, trainer_for
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.demos.boring_classes import BoringModel, ManualOptimBoringModel
from lightning.pytorch.utilities.compile import from_compiled
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_invariance import (
    C4,
    Gradient,
    InvarianceMonitor,
    InvarianceRegularizer,
    OrbitAugmentation,
    TimeReversal,
)

# Lightning's own -------------------------------------------------------------------------------------------------


def vectors() -> DataLoader[Any]:
    return DataLoader(torch.randn(12, 32, generator=torch.Generator().manual_seed(0)), batch_size=4)  # type: ignore[arg-type]


class BoringOracle(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        fx = self.layer(batch)
        return {"loss": self.loss(fx) + 0.3 * 0.5 * (fx - self.layer(batch.flip(-1))).square().sum(1).mean()}


class ManualBoringOracle(ManualOptimBoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        fx = self.layer(batch)
        loss = self.loss(fx) + 0.3 * 0.5 * (fx - self.layer(batch.flip(-1))).square().sum(1).mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


@pytest.mark.parametrize(
    ("plain", "oracle"), [(BoringModel, BoringOracle), (ManualOptimBoringModel, ManualBoringOracle)]
)
def test_modules_of_lightnings_own(plain: type[LightningModule], oracle: type[LightningModule]) -> None:
    monitor = InvarianceMonitor(TimeReversal(), saliency=Gradient())
    callbacks: list[Callback] = [InvarianceRegularizer(TimeReversal(), 0.3), monitor]
    data = {"data": vectors(), "val": vectors()}
    module = fit(plain, callbacks, **data)
    assert_trained_alike(module, fit(oracle, **data), fit(plain, **data))
    x = vectors().dataset
    with torch.no_grad():
        gap = module.layer(x) - module.layer(x.flip(-1))  # type: ignore[operator, attr-defined]
    measured = monitor.history[-1].measures
    torch.testing.assert_close(measured["logit_invariance_error"].value, 0.5 * gap.square().sum(1).mean())
    assert "saliency_invariance_similarity" in measured
    assert "orbit_accuracy" not in measured


# The other namespace ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*pkg_resources", "ignore:.*pynvml")
def test_the_other_namespace_of_lightning() -> None:
    pl = pytest.importorskip("pytorch_lightning")

    class Base(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Plain(Base):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0]), batch[1])

    class Oracle(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            fx = self.model(batch[0])
            term = logit_term(fx, [self.model(each) for each in rotated(batch[0])])
            return F.cross_entropy(fx, batch[1]) + 0.3 * term

    def train(make: type[Base], callbacks: list[Any]) -> tuple[Any, dict[str, float]]:
        torch.manual_seed(1)
        module = make()
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=2,
            callbacks=callbacks,
        )
        trainer.fit(module, loader(), loader(7, seed=2))
        return module, {name: float(value) for name, value in trainer.callback_metrics.items()}

    val = loader(7, seed=2).dataset
    module, logged = train(Plain, [InvarianceRegularizer(C4(), 0.3), InvarianceMonitor(C4(), saliency=Gradient())])
    assert_trained_alike(module, train(Oracle, [])[0], train(Plain, [])[0])
    expected = {
        f"val/{name}": each for name, each in measures_by_hand(module.model, val.x, val.y, gradient_map).items()
    }
    trained = {name: logged.pop(name) for name in ("train/invariance_penalty", "train/invariance_weight")}
    assert logged == pytest.approx(expected, rel=2e-5, abs=1e-7)
    assert trained["train/invariance_weight"] == pytest.approx(0.3)
    assert not {"training_step", "validation_step", "forward"} & set(module.__dict__)


# Compiled --------------------------------------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Oracle(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        fx = self.model(batch[0])
        term = logit_term(fx, [self.model(each) for each in rotated(batch[0])])
        return F.cross_entropy(fx, batch[1]) + 0.3 * term


class CallsSubmodule(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return F.cross_entropy(self.model(batch[0]), batch[1])


def compiled_whole(module: Classifier) -> Any:
    return from_compiled(torch.compile(module, backend="eager"))  # as a Trainer does with it


def compiled_in_place(module: Classifier) -> Any:
    module.model.compile(backend="eager")
    return module


def compiled_and_assigned(module: Classifier) -> Any:
    module.model = torch.compile(module.model, backend="eager")
    return module


def module_compiled_in_place(module: Classifier) -> Any:
    module.compile(backend="eager")
    return module


COMPILED = [
    pytest.param(Classifier, compiled_whole, None, id="whole"),
    pytest.param(CallsSubmodule, compiled_in_place, "model", id="submodule in place"),
    pytest.param(CallsSubmodule, compiled_and_assigned, "model", id="submodule assigned"),
    pytest.param(Classifier, compiled_in_place, None, id="submodule in place, called through forward"),
    pytest.param(Classifier, compiled_and_assigned, None, id="submodule assigned, called through forward"),
    pytest.param(Classifier, module_compiled_in_place, None, id="module in place"),
]


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(("plain", "compile", "network"), COMPILED)
def test_compiled(plain: type[Classifier], compile: Callable[[Any], Any], network: str | None) -> None:
    torch.manual_seed(1)
    module = plain()
    original = copy.deepcopy(module.model)
    monitor = InvarianceMonitor(C4(), saliency=Gradient(), network=network)
    trainer = trainer_for([InvarianceRegularizer(C4(), 0.3, network=network), monitor])
    before = set(module.__dict__)
    compiled = compile(module)
    steps = {name: module.__dict__.get(name) for name in ("training_step", "validation_step", "forward")}
    trainer.fit(compiled, loader(), loader(7, seed=2))

    original.load_state_dict(dict(zip(original.state_dict(), module.state_dict().values(), strict=True)))
    expected = fit(Oracle)
    assert_trained_alike(original, expected.model, fit(Classifier).model)  # type: ignore[attr-defined]
    val = loader(7, seed=2).dataset
    by_hand = measures_by_hand(original, val.x, val.y, gradient_map)
    got = {name: float(estimate.value) for name, estimate in monitor.history[-1].measures.items()}
    assert got == pytest.approx(by_hand, rel=2e-5, abs=1e-7)
    # What compiling put on the instance is still there, and nothing else.
    for name, step in steps.items():
        assert module.__dict__.get(name) is step
    assert before <= set(module.__dict__)


@pytest.mark.usefixtures("_fresh_compiler")
def test_augmentation_of_a_compiled_module() -> None:
    torch.manual_seed(1)
    module = Classifier()
    compiled: Any = torch.compile(module, backend="eager")
    trainer_for([OrbitAugmentation(C4(), seed=3)]).fit(compiled, loader())
    augmentation = OrbitAugmentation(C4(), seed=3)
    assert_trained_alike(module, fit(Classifier, [augmentation]), fit(Classifier))


# Weight-tied -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_an_equivariant_network_is_measured_as_invariant_and_trains_afterwards() -> None:
    pytest.importorskip("escnn")
    from escnn import gspaces
    from escnn import nn as enn

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            space = gspaces.rot2dOnR2(N=4)
            self.input_type = enn.FieldType(space, [space.trivial_repr])
            hidden = enn.FieldType(space, 3 * [space.regular_repr])
            self.conv = enn.R2Conv(self.input_type, hidden, kernel_size=3, padding=1)
            self.nonlinearity = enn.ReLU(hidden)
            self.pool = enn.GroupPooling(hidden)
            self.head = nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            fields = self.pool(self.nonlinearity(self.conv(enn.GeometricTensor(x, self.input_type))))
            return self.head(fields.tensor.sum(dim=(2, 3)))

    torch.manual_seed(1)
    module = Classifier(Tied, lr=0.01)
    data = loader(9)
    monitor = InvarianceMonitor(C4(), saliency=Gradient())
    trainer_for([monitor]).validate(module, data, verbose=False)
    measured = {name: float(estimate.value) for name, estimate in monitor.history[0].measures.items()}
    assert measured["normalized_logit_invariance_error"] < 1e-9
    assert measured["saliency_invariance_similarity"] == pytest.approx(1.0, abs=1e-5)
    assert measured["prediction_consistency"] == 1.0

    before = module.model.conv.weights.detach().clone()
    trainer = trainer_for([monitor, InvarianceRegularizer(C4(), 1.0)])
    trainer.fit(module, data, loader(6, seed=2))
    assert not torch.equal(module.model.conv.weights, before)
    assert float(trainer.callback_metrics["train/invariance_penalty"]) < 1e-8
    assert float(monitor.history[-1].measures["normalized_logit_invariance_error"].value) < 1e-9


def test_an_ordinary_network_is_not_measured_as_invariant() -> None:
    torch.manual_seed(1)
    monitor = InvarianceMonitor(C4(), saliency=Gradient())
    trainer_for([monitor]).validate(Classifier(), loader(9), verbose=False)
    measured = {name: float(estimate.value) for name, estimate in monitor.history[0].measures.items()}
    assert measured["normalized_logit_invariance_error"] > 0.01
    assert measured["saliency_invariance_similarity"] < 0.9
