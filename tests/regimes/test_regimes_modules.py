"""Kinds of modules, batches and loaders, and the other namespace of Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import CLASSES, Images, fit, loader, made
from lightning.pytorch import Callback
from oracles import (
    TERMS,
    WEIGHT,
    Classifier,
    assert_identical,
    assert_trained_alike,
    convnet,
    dropping,
    logit_term,
    mlp,
    rotated,
    saliency_term,
)
from steps import SHADOWED, Direct, ManualClassifier, regularised, validated, with_term
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lightning_invariance import C4, InvarianceMonitor, InvarianceRegularizer, OrbitAugmentation

# Networks in every kind of training ------------------------------------------------------------------------------


class Unused(Direct):
    """The step calls the network; ``forward`` is something else altogether."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the step does without")


class GivesDict(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "extra": "kept"}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert outputs["extra"] == "kept"


class Skips(Classifier):
    """Now and then there is no loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 3 == 1 else loss


def noisy() -> nn.Module:
    """Running statistics and random numbers."""
    return nn.Sequential(*convnet()[:3], nn.Dropout(0.3), *convnet()[3:])


@pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`")
@pytest.mark.parametrize(
    ("kind", "network", "accumulated"),
    [
        (ManualClassifier, noisy, 1),
        (Unused, convnet, 4),
        (GivesDict, dropping, 4),
        (Skips, noisy, 4),
        (Skips, mlp, 1),
    ],
)
def test_modules(kind: type[Classifier], network: Callable[[], nn.Module], accumulated: int) -> None:
    class Plain(kind):
        def __init__(self) -> None:
            super().__init__(network)

    options = {"data": loader(24, shuffle=True), "val": loader(8, seed=2), "accumulate_grad_batches": accumulated}
    module = regularised(Plain, network="model" if kind is Unused else None, options=options)
    steps = [int(layer.num_batches_tracked) for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(count == 6 * module.trainer.current_epoch for count in steps)


# Batches ---------------------------------------------------------------------------------------------------------


class TakesTwo(Classifier):
    """Two inputs, each with a network of its own; the batch holds both, a number, and the labels."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(2, CLASSES)

    def forward(self, image: Tensor, context: Tensor) -> Tensor:
        return self.model(image) * self.other(context)

    def unpack(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        return batch["image"], batch["context"], batch["label"]

    def call(self, image: Tensor, context: Tensor) -> Tensor:
        return self(image, context)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, context, y = self.unpack(batch)
        fx = self.call(image, context)
        return F.cross_entropy(fx, y) + self.term(fx, image, context)

    def term(self, fx: Tensor, image: Tensor, context: Tensor) -> Tensor | float:
        return 0.0


class TakesTuple(TakesTwo):
    def unpack(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        return batch[:3]


class TakesNested(TakesTwo):
    def unpack(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        (image, context), target = batch
        return image, context, target["label"]


class TakesKeywords(TakesTwo):
    def call(self, image: Tensor, context: Tensor) -> Tensor:
        return self(context=context, image=image)


class TakesWhole(TakesTwo):
    """The network is called with the whole batch, and its output has logits in it."""

    def forward(self, batch: Any) -> Any:
        return {"logits": self.model(batch["image"]) * self.other(batch["context"]), "features": None}

    def call(self, image: Tensor, context: Tensor) -> Tensor:
        return self({"image": image, "context": context})["logits"]


def as_dict(x: Tensor, y: Tensor) -> Any:
    return {"name": "an image", "context": x[0, 0, :2], "label": y, "image": x}


def as_tuple(x: Tensor, y: Tensor) -> Any:
    return x, x[0, 0, :2], y, "an image"


def nested(x: Tensor, y: Tensor) -> Any:
    return (x, x[0, 0, :2]), {"label": y}


@pytest.mark.parametrize(
    ("kind", "pack", "input", "penalty"),
    [
        (TakesTwo, as_dict, None, "saliency"),
        (TakesTwo, as_dict, 0, "logit"),
        (TakesKeywords, as_dict, "image", "saliency"),
        (TakesKeywords, as_dict, ["image"], "logit"),
        (TakesTuple, as_tuple, None, "distribution"),
        (TakesNested, nested, None, "logit"),
        (TakesWhole, as_dict, "image", "distribution"),
    ],
)
def test_batches(kind: type[TakesTwo], pack: Callable[..., Any], input: Any, penalty: Any) -> None:
    class Oracle(kind):
        def term(self, fx: Tensor, image: Tensor, context: Tensor) -> Tensor | float:
            def run(moved: Tensor) -> Tensor:
                return self.model(moved) * self.other(context)

            if penalty == "saliency":
                return WEIGHT * saliency_term(run, fx, image)
            return WEIGHT * TERMS[penalty](fx, [run(each) for each in rotated(image)])

    regularised(kind, Oracle, penalty=penalty, input=input, options={"data": loader(24, pack=pack)})


# Loaders ---------------------------------------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    """Its length is not known beforehand, and its last batch is smaller."""

    def __iter__(self) -> Iterator[Any]:
        yield from Images(22)


@pytest.mark.parametrize(
    ("data", "options"),
    [(DataLoader(Stream(), batch_size=4), {"accumulate_grad_batches": 4}), (loader(5, 1), {})],
    ids=["a stream", "batches of one sample"],
)
def test_loaders(data: Any, options: dict[str, Any]) -> None:
    regularised(Classifier, options={"data": data, **options})


class TwoLoaders(Classifier):
    """A dict of batches, of which the step uses two."""

    weights = (0.0, 0.0)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch["labelled"]
        other = batch["other"][0]
        fx, f_other = self(x), self(other)
        loss = F.cross_entropy(fx, y) + 0.1 * f_other.square().mean()
        for weight, output, images in zip(self.weights, (fx, f_other), (x, other), strict=True):
            loss = loss + WEIGHT * weight * logit_term(output, [self.model(each) for each in rotated(images)])
        return loss


def test_several_calls_in_a_step() -> None:
    """Of the four samples of the one and the two of the other."""
    data = {"labelled": loader(12), "other": loader(8, 2, seed=5)}

    def run(call: Any) -> Any:
        return fit(TwoLoaders, [InvarianceRegularizer(C4(), WEIGHT, call=call)], data=data)

    plain = fit(TwoLoaders, data=data)
    for calls, weights in (([0], (1.0, 0.0)), ([1, "last"], (0.0, 1.0)), (["all"], (4 / 6, 2 / 6))):
        oracle = fit(type("Oracle", (TwoLoaders,), {"weights": weights}), data=data)
        for call in calls:
            assert_trained_alike(run(call), oracle, plain)
    both = r"2 \(call 0 with a tensor \(4, 1, 4, 4\); call 1 with a tensor \(2, 1, 4, 4\)\): say with `call="
    for call, message in ((None, both), (2, "expected call=2 to name one of the calls")):
        with pytest.raises(ValueError, match=message):
            run(call)


def test_several_validation_loaders_beside_a_training() -> None:
    """The term is the training's alone, and each loader is measured apart from the others."""
    val = [loader(8, seed=2), DataLoader(Stream(), batch_size=4)]
    monitor = InvarianceMonitor(C4(), saliency_samples=0)
    module = fit(Classifier, [InvarianceRegularizer(C4(), WEIGHT), monitor], val=val)
    assert_trained_alike(module, fit(with_term(Classifier)), fit(Classifier))
    again = InvarianceMonitor(C4(), saliency_samples=0)
    validated(again, module, val)
    for record, last, images in zip(again.history, monitor.history[-2:], (Images(8, 2), Images(22)), strict=True):
        x = images.tensors[0]
        with torch.no_grad():
            expected = logit_term(module.model(x), [module.model(each) for each in rotated(x)])
        for measured in (record, last):
            torch.testing.assert_close(float(measured.measures["logit_invariance_error"].value), float(expected))


# The other namespace ---------------------------------------------------------------------------------------------


@pytest.fixture
def pl() -> Any:
    return pytest.importorskip("pytorch_lightning")


def train(pl: Any, callbacks: list[Any], manual: bool = False, term: str | None = None, **options: Any) -> Any:
    class Foreign(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = mlp()
            self.automatic_optimization = not manual
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            self.seen.append(x)
            fx = self(x)
            loss = F.cross_entropy(fx, y)
            if term == "saliency":
                loss = loss + WEIGHT * saliency_term(self.model, fx, x)
            elif term == "logit":
                loss = loss + WEIGHT * logit_term(fx, [self.model(each) for each in rotated(x)])
            if not manual:
                return loss
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            return None

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    module = made(Foreign)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 2}
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, enable_model_summary=False, callbacks=callbacks, **quiet, **options
    )
    trainer.fit(module, loader(24), loader(8, seed=2))
    return module


@pytest.mark.parametrize(
    ("penalty", "manual", "options"),
    [("logit", False, {"accumulate_grad_batches": 4, "gradient_clip_val": 0.5}), ("saliency", True, {})],
)
def test_the_other_namespace(pl: Any, penalty: Any, manual: bool, options: dict[str, Any]) -> None:
    got = train(pl, [InvarianceRegularizer(C4(), WEIGHT, penalty)], manual, **options)
    assert_trained_alike(got, train(pl, [], manual, penalty, **options), train(pl, [], manual, **options))


def test_all_three_in_the_other_namespace(pl: Any) -> None:
    """The same draws, steps and numbers as in the one that the package was written for."""

    class Seeing(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen.append(batch[0])
            return super().training_step(batch, batch_idx)

    def everyone() -> tuple[list[Callback], InvarianceMonitor]:
        monitor = InvarianceMonitor(C4())
        return [OrbitAugmentation(C4(), seed=3), InvarianceRegularizer(C4(), WEIGHT), monitor], monitor

    callbacks, monitor = everyone()
    foreign = train(pl, callbacks)
    callbacks, expected = everyone()
    module = fit(Seeing, callbacks, data=loader(24), val=loader(8, seed=2))
    assert_identical(foreign.seen, module.seen)
    assert not torch.equal(torch.cat(foreign.seen[:6]), Images(24).tensors[0])
    assert_identical(foreign.model.state_dict(), module.model.state_dict())
    assert [record.measures for record in monitor.history] == [record.measures for record in expected.history]
    assert not SHADOWED & set(foreign.__dict__)


def test_refusals_in_the_other_namespace(pl: Any) -> None:
    with pytest.raises(ValueError, match="`backward_call` to be None with automatic optimisation"):
        train(pl, [InvarianceRegularizer(C4(), backward_call=0)])
    with pytest.raises(ValueError, match="`network` to name a submodule"):
        train(pl, [InvarianceRegularizer(C4(), network="nope")])
