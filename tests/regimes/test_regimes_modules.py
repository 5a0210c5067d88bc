"""Kinds of modules, batches and loaders, and the other namespace of Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import (
    CLASSES,
    Images,
    assert_trained_alike,
    distribution_term,
    fit,
    loader,
    logit_term,
    made,
    mlp,
    rotated,
    trainer_for,
)
from lightning.pytorch import Callback
from regimes_helpers import WEIGHT, Classifier, Logit, compare, convnet, dropping, saliency_term
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lightning_invariance import C4, InvarianceMonitor, InvarianceRegularizer, OrbitAugmentation

# Networks in every kind of training ------------------------------------------------------------------------------


class Manual(Classifier):
    def __init__(self, network: Callable[[], nn.Module]) -> None:
        super().__init__(network)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Unused(Classifier):
    """The step calls the network; ``forward`` is something else altogether."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the step does without")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        self.before = torch.get_rng_state()
        fx = self.model(x)
        return F.cross_entropy(fx, y) + self.added(fx, x)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return F.cross_entropy(self.model(batch[0]), batch[1])


class GivesDict(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx)}


class Skips(Classifier):
    """Now and then there is no loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 3 == 1 else loss


def noisy() -> nn.Module:
    """Running statistics and random numbers."""
    return nn.Sequential(*convnet()[:3], nn.Dropout(0.3), *convnet()[3:])


@pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`")
@pytest.mark.parametrize("accumulated", [1, 4])
@pytest.mark.parametrize("network", [mlp, convnet, dropping, noisy])
@pytest.mark.parametrize("kind", [Manual, Unused, GivesDict, Skips])
def test_modules(kind: type[Classifier], network: Callable[[], nn.Module], accumulated: int) -> None:
    if kind is Manual:
        options: dict[str, Any] = {"max_epochs": 1 if accumulated == 1 else 2}  # the module's own affair
    else:
        options = {"accumulate_grad_batches": accumulated}

    class Plain(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(network)

    class Oracle(Logit, Plain):
        pass

    named = "model" if kind is Unused else None
    module = compare(
        Plain,
        Oracle,
        lambda: [InvarianceRegularizer(C4(), WEIGHT, network=named)],
        data=loader(24, shuffle=True),
        val=loader(8, seed=2),
        **options,
    )
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

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, context, y = self.unpack(batch)
        fx = self(image, context)
        return F.cross_entropy(fx, y) + self.term(fx, image, context)

    def term(self, fx: Tensor, image: Tensor, context: Tensor) -> Tensor | float:
        return 0.0


class TakesTuple(TakesTwo):
    def unpack(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        image, context, y, _ = batch
        return image, context, y


class TakesNested(TakesTwo):
    def unpack(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        (image, context), target = batch
        return image, context, target["label"]


class TakesKeywords(TakesTwo):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image, context, y = self.unpack(batch)
        fx = self(context=context, image=image)
        return F.cross_entropy(fx, y) + self.term(fx, image, context)


def as_dict(x: Tensor, y: Tensor) -> Any:
    return {"name": "an image", "context": x[0, 0, :2], "label": y, "image": x}


def as_tuple(x: Tensor, y: Tensor) -> Any:
    return x, x[0, 0, :2], y, "an image"


def nested(x: Tensor, y: Tensor) -> Any:
    return (x, x[0, 0, :2]), {"label": y}


@pytest.mark.parametrize("penalty", ["logit", "distribution", "saliency"])
@pytest.mark.parametrize(
    ("kind", "pack", "input"),
    [
        (TakesTwo, as_dict, None),
        (TakesTwo, as_dict, 0),
        (TakesKeywords, as_dict, "image"),
        (TakesTuple, as_tuple, None),
        (TakesNested, nested, None),
    ],
)
def test_batches(kind: type[TakesTwo], pack: Callable[[Tensor, Tensor], Any], input: Any, penalty: Any) -> None:
    class Oracle(kind):  # type: ignore[misc, valid-type]
        def term(self, fx: Tensor, image: Tensor, context: Tensor) -> Tensor | float:
            def run(moved: Tensor) -> Tensor:
                return self.model(moved) * self.other(context)

            if penalty == "saliency":
                return WEIGHT * saliency_term(run, fx, image)
            by_hand = logit_term if penalty == "logit" else distribution_term
            return WEIGHT * by_hand(fx, [run(each) for each in rotated(image)])

    compare(
        kind,
        Oracle,
        lambda: [InvarianceRegularizer(C4(), WEIGHT, penalty, input=input)],
        data=loader(24, pack=pack),
    )


# Loaders ---------------------------------------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    """Its length is not known beforehand, and its last batch is smaller."""

    def __iter__(self) -> Iterator[Any]:
        yield from Images(22)


class WithTerm(Logit, Classifier):
    pass


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 4}, {"limit_train_batches": 3}, {"max_steps": 7, "max_epochs": -1}],
    ids=str,
)
def test_a_stream(options: dict[str, Any]) -> None:
    data = DataLoader(Stream(), batch_size=4)
    compare(Classifier, WithTerm, lambda: [InvarianceRegularizer(C4(), WEIGHT)], data=data, **options)


def test_batches_of_one_sample() -> None:
    compare(Classifier, WithTerm, lambda: [InvarianceRegularizer(C4(), WEIGHT)], data=loader(5, 1))


class TwoLoaders(Classifier):
    """A dict of batches, of which the step uses two."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch["labelled"]
        other = batch["other"][0]
        fx, f_other = self(x), self(other)
        return F.cross_entropy(fx, y) + 0.1 * f_other.square().mean() + self.term(x, fx, other, f_other)

    def term(self, x: Tensor, fx: Tensor, other: Tensor, f_other: Tensor) -> Tensor | float:
        return 0.0


class TermOfTheFirst(TwoLoaders):
    def term(self, x: Tensor, fx: Tensor, other: Tensor, f_other: Tensor) -> Tensor | float:
        return WEIGHT * logit_term(fx, [self.model(each) for each in rotated(x)])


class TermOfTheLast(TwoLoaders):
    def term(self, x: Tensor, fx: Tensor, other: Tensor, f_other: Tensor) -> Tensor | float:
        return WEIGHT * logit_term(f_other, [self.model(each) for each in rotated(other)])


class TermOfAll(TwoLoaders):
    """The mean over the four samples of the one and the two of the other."""

    def term(self, x: Tensor, fx: Tensor, other: Tensor, f_other: Tensor) -> Tensor | float:
        first = TermOfTheFirst.term(self, x, fx, other, f_other)  # type: ignore[arg-type]
        last = TermOfTheLast.term(self, x, fx, other, f_other)  # type: ignore[arg-type]
        return (4 * first + 2 * last) / 6


@pytest.mark.parametrize(
    ("call", "oracle"),
    [(0, TermOfTheFirst), (1, TermOfTheLast), ("last", TermOfTheLast), ("all", TermOfAll), (None, None), (2, None)],
)
def test_several_calls_in_a_step(call: Any, oracle: type[TwoLoaders] | None) -> None:
    data = {"labelled": loader(12), "other": loader(8, 2, seed=5)}
    regularizer = InvarianceRegularizer(C4(), WEIGHT, call=call)
    if oracle is not None:
        compare(TwoLoaders, oracle, lambda: [regularizer], data=data)
        return
    made = r"2 \(call 0 with a tensor \(4, 1, 4, 4\); call 1 with a tensor \(2, 1, 4, 4\)\): say with `call="
    with pytest.raises(ValueError, match=made if call is None else "expected call=2 to name one of the calls"):
        fit(TwoLoaders, [regularizer], data=data)


@pytest.mark.parametrize("streams", [False, True])
def test_several_validation_loaders_beside_a_training(streams: bool) -> None:
    """The term is the training's alone, and each loader is measured apart from the others."""
    second = DataLoader(Stream(), batch_size=4) if streams else loader(22)
    val = [loader(8, seed=2), second]

    def both() -> list[Callback]:
        return [InvarianceRegularizer(C4(), WEIGHT), InvarianceMonitor(C4(), saliency_samples=0)]

    module = compare(Classifier, WithTerm, both, val=val)
    monitor = InvarianceMonitor(C4(), saliency_samples=0)
    trainer_for([monitor]).validate(module, val, verbose=False)
    with torch.no_grad():
        for record, data in zip(monitor.history, (Images(8, 2), Images(22)), strict=True):
            x = data.tensors[0]
            expected = logit_term(module.model(x), [module.model(each) for each in rotated(x)])
            torch.testing.assert_close(float(record.measures["logit_invariance_error"].value), float(expected))


# The other namespace ---------------------------------------------------------------------------------------------


@pytest.fixture
def pl() -> Any:
    return pytest.importorskip("pytorch_lightning")


def _module(pl: Any, manual: bool, term: str | None) -> Any:
    class Foreign(pl.LightningModule):  # type: ignore[misc, name-defined]
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

    return made(Foreign)


def _train(pl: Any, callbacks: list[Any], manual: bool = False, term: str | None = None, **options: Any) -> Any:
    module = _module(pl, manual, term)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=2,
        callbacks=callbacks,
        **options,
    )
    trainer.fit(module, loader(24), loader(8, seed=2))
    return module


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("penalty", ["logit", "saliency"])
def test_the_other_namespace(pl: Any, penalty: Any, manual: bool) -> None:
    options = {} if manual else {"accumulate_grad_batches": 4, "gradient_clip_val": 0.5}
    got = _train(pl, [InvarianceRegularizer(C4(), WEIGHT, penalty)], manual, **options)
    assert_trained_alike(got, _train(pl, [], manual, penalty, **options), _train(pl, [], manual, **options))


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
    foreign = _train(pl, callbacks)
    callbacks, expected = everyone()
    module = fit(Seeing, callbacks, data=loader(24), val=loader(8, seed=2))
    assert all(torch.equal(one, other) for one, other in zip(foreign.seen, module.seen, strict=True))
    assert not torch.equal(torch.cat(foreign.seen[:6]), Images(24).tensors[0])
    for (name, value), other in zip(
        foreign.model.state_dict().items(), module.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
    assert [record.measures for record in monitor.history] == [record.measures for record in expected.history]
    assert not {"training_step", "validation_step", "test_step"} & set(foreign.__dict__)


def test_refusals_in_the_other_namespace(pl: Any) -> None:
    with pytest.raises(ValueError, match="`backward_call` to be None with automatic optimisation"):
        _train(pl, [InvarianceRegularizer(C4(), backward_call=0)])
    with pytest.raises(ValueError, match="`network` to name a submodule"):
        _train(pl, [InvarianceRegularizer(C4(), network="nope")])
