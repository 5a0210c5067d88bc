"""The regularizer against training steps with the term written into them by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import CLASSES, SIDE, fit, loader, made, trainer_for
from lightning.pytorch import Callback, LightningModule, Trainer
from oracles import (
    TERMS,
    WEIGHT,
    Classifier,
    Logit,
    WithTerm,
    absolute_penalty,
    assert_trained_alike,
    distance,
    logit_term,
    mlp,
    noisy,
    rotated,
)
from steps import Direct, of_penalty, regularised, with_term
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import (
    C4,
    HorizontalFlip,
    InvarianceMonitor,
    InvarianceRegularizer,
    OrbitAugmentation,
    WeightRamp,
)


@pytest.mark.parametrize("penalty", TERMS, ids=lambda each: getattr(each, "__name__", each))
def test_each_penalty_is_its_formula(penalty: Any) -> None:
    regularised(Classifier, with_term(Classifier, of_penalty(penalty)), penalty=penalty)


# What the step looks like ----------------------------------------------------------------------------------------


class CallsForward(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.forward(batch[0]), batch[1])


class CallsSubmoduleForward(Direct):
    def run(self, x: Tensor) -> Tensor:
        return self.model.forward(x)


class CallsWithKeyword(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(x=batch[0]), batch[1])


class NeedsNoBatchIndex(Classifier):
    def training_step(self, batch: Any) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("plain", "network"),
    [
        (Classifier, "model"),
        (CallsForward, None),
        (CallsSubmoduleForward, "model"),
        (CallsWithKeyword, None),
        (NeedsNoBatchIndex, None),
    ],
)
def test_any_way_to_call_the_network(plain: type[Classifier], network: str | None) -> None:
    regularised(plain, WithTerm, network=network)


def test_the_second_argument_can_be_the_input() -> None:
    class TakesMask(Classifier):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.model(x * mask)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            (x, mask), y = batch
            fx = self(x, mask)
            return F.cross_entropy(fx, y) + self.term(fx, x, mask)

        def term(self, fx: Tensor, x: Tensor, mask: Tensor) -> Tensor | float:
            return 0.0

    class Oracle(TakesMask):
        def term(self, fx: Tensor, x: Tensor, mask: Tensor) -> Tensor | float:
            return WEIGHT * logit_term(fx, [self.model(x * each) for each in rotated(mask)])

    data = loader(pack=lambda x, y: ((x, (x.flip(-1) > 0).float()), y))
    regularised(TakesMask, Oracle, input=[1], options={"data": data})


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_dropout_masks_are_the_same_in_any_layout_of_the_input(memory_format: torch.memory_format) -> None:
    """Masks are drawn in the order of memory, which the moved inputs must share with the batch."""

    class Plain(Classifier):
        def __init__(self) -> None:
            super().__init__(lambda: nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(2 * SIDE * SIDE, CLASSES)))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = torch.cat([batch[0], batch[0].square()], dim=1).contiguous(memory_format=memory_format)
            return super().training_step((x, batch[1]), batch_idx)

    class Oracle(Plain):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            moved = [each.contiguous(memory_format=memory_format) for each in rotated(x)]
            return WEIGHT * logit_term(fx, [self.again(each) for each in moved])

    regularised(Plain, Oracle)


# Validation that goes through the training step ------------------------------------------------------------------


@pytest.mark.parametrize(("monitored", "manual"), [(True, False), (False, True)])
def test_a_validation_step_that_calls_the_training_step_gets_neither_term_nor_augmentation(
    monitored: bool, manual: bool
) -> None:
    seen: list[tuple[float, float]] = []

    class Shared(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = not manual

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if manual and self.training:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.training_step(batch, batch_idx)
            seen.append((float(loss), float(F.cross_entropy(self.model(batch[0]), batch[1]))))
            return loss

    callbacks: list[Callback] = [OrbitAugmentation(C4()), InvarianceRegularizer(C4(), 100.0)]
    if monitored:
        callbacks.append(InvarianceMonitor(C4(), saliency_samples=0))
    fit(Shared, callbacks, val=loader(8, seed=3))
    assert len(seen) == 2 + 2 * 2  # the sanity check's, and two epochs'
    assert all(loss == expected for loss, expected in seen)


# Weights ---------------------------------------------------------------------------------------------------------


class Notes(Callback):
    """What is in `callback_metrics` at the end of each epoch."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.epochs: list[list[float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append([float(trainer.callback_metrics[name]) for name in self.names])


@pytest.mark.parametrize(
    ("schedule", "closed_form"),
    [
        (WeightRamp(0.1, 0.9, steps=4), lambda t: 0.1 + 0.8 * min(t, 4) / 4),
        (WeightRamp(0.01, 1.0, steps=4, shape="exponential"), lambda t: 10.0 ** (-2 + 2 * min(t, 4) / 4)),
        (lambda t: 0.5 if t % 2 else 0.0, lambda t: 0.5 * (t % 2)),
    ],
    ids=["linear", "exponential", "on and off"],
)
def test_a_scheduled_weight_is_used_and_logged(schedule: Any, closed_form: Callable[[int], float]) -> None:
    class Oracle(Logit, Classifier):
        @property
        def weight(self) -> float:
            return closed_form(self.trainer.global_step)

    notes = Notes("train/invariance_weight")
    options = {"data": loader(4), "max_epochs": 6}
    got = fit(Classifier, [InvarianceRegularizer(C4(), schedule), notes], **options)
    assert_trained_alike(got, fit(Oracle, **options), fit(Classifier, **options))
    torch.testing.assert_close(notes.epochs, [[closed_form(epoch)] for epoch in range(6)])


def test_the_weight_counts_optimiser_steps_not_batches() -> None:
    asked: list[int] = []

    def weight(step: int) -> float:
        asked.append(step)
        return 1.0

    fit(Classifier, [InvarianceRegularizer(C4(), weight)], data=loader(24), accumulate_grad_batches=3, max_epochs=1)
    assert asked == [0, 0, 0, 1, 1, 1]


# Logs ------------------------------------------------------------------------------------------------------------


def test_penalty_and_weight_are_logged_as_means_over_samples_and_steps() -> None:
    data = loader(10)  # batches of 4, 4 and 2
    module = made(lambda: Classifier(lr=0.0))
    ramp = InvarianceRegularizer(C4(), WeightRamp(0.0, 1.0, steps=2), prefix="ramp")
    trainer = trainer_for([InvarianceRegularizer(C4(), WEIGHT), ramp], max_epochs=1)
    trainer.fit(module, data)
    x = data.dataset.x
    with torch.no_grad():
        expected = logit_term(module.model(x), [module.model(each) for each in rotated(x)])
    logged = trainer.callback_metrics
    torch.testing.assert_close(logged["train/invariance_penalty"], expected)
    torch.testing.assert_close(float(logged["train/invariance_weight"]), WEIGHT)
    torch.testing.assert_close(float(logged["train/ramp/invariance_weight"]), (0 + 0.5 + 1) / 3)


def test_two_regularizers_are_told_apart_by_a_prefix_and_a_weight_of_zero_logs_itself_alone() -> None:
    trainer = trainer_for([InvarianceRegularizer(C4(), 0.5), InvarianceRegularizer(HorizontalFlip(), 0.0, prefix="b")])
    trainer.fit(Classifier(), loader())
    penalty = float(trainer.callback_metrics.pop("train/invariance_penalty"))
    assert penalty > 0
    assert trainer.callback_metrics == {"train/invariance_weight": 0.5, "train/b/invariance_weight": 0.0}
    with pytest.raises(ValueError, match=r"another InvarianceRegularizer logs .*`prefix="):
        fit(Classifier, [InvarianceRegularizer(C4()), InvarianceRegularizer(HorizontalFlip())])


@pytest.mark.filterwarnings("ignore:InvarianceMonitor. nothing is measured")
def test_a_trainer_that_forbids_logging() -> None:
    def barebones(make: type[Classifier], callbacks: list[Callback]) -> LightningModule:
        module = made(make)
        Trainer(accelerator="cpu", devices=1, barebones=True, max_epochs=2, callbacks=callbacks).fit(module, loader())
        return module

    got = barebones(Classifier, [InvarianceRegularizer(C4(), WEIGHT), InvarianceMonitor(C4())])
    assert_trained_alike(got, barebones(WithTerm, []), barebones(Classifier, []))


def test_a_step_that_does_not_call_the_network_is_told_what_to_name() -> None:
    with pytest.raises(ValueError, match=r"call the forward of Direct.*network=.*'model'"):
        fit(Direct, [InvarianceRegularizer(C4())])


def test_a_penalty_of_the_users_own_gets_logits_and_orbit() -> None:
    shapes: list[tuple[int, ...]] = []

    def noting(logits: Tensor, orbit_logits: Tensor) -> Tensor:
        shapes.extend([tuple(logits.shape), tuple(orbit_logits.shape)])
        return absolute_penalty(logits, orbit_logits)

    fit(Classifier, [InvarianceRegularizer(C4(), 1.0, noting)], data=loader(5, 5), max_epochs=1)
    assert shapes == [(5, CLASSES), (3, 5, CLASSES)]


# Networks that make it hard --------------------------------------------------------------------------------------


class InPlace(nn.Module):
    """Changes its input, as a network with an in-place activation in front does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.sub_(0.5))


class OutOfPlace(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - 0.5)


def power_iteration() -> nn.Module:
    """Its forward writes buffers that the next one reads."""
    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(SIDE * SIDE, CLASSES)))


@pytest.mark.parametrize("max_batch", [None, 3])
def test_a_network_that_changes_its_input_is_regularised_on_what_it_was_given(max_batch: int | None) -> None:
    def run(network: Callable[[], nn.Module], **options: Any) -> LightningModule:
        regularizer = InvarianceRegularizer(C4(), WEIGHT, **options)
        return fit(lambda: Classifier(network), [regularizer], data=loader(8), max_epochs=1)

    assert distance(run(InPlace, max_batch=max_batch), run(OutOfPlace)) < 1e-6


@pytest.mark.parametrize("max_batch", [1, 5])
def test_smaller_forwards_change_nothing(max_batch: int) -> None:
    regularised(Classifier, max_batch=max_batch)


@pytest.mark.parametrize(
    ("network", "max_batch"), [(noisy, 3), (noisy, 100), (power_iteration, 3)], ids=["3", "100", "power iteration"]
)
def test_running_again_in_the_backward_changes_nothing(network: Any, max_batch: int) -> None:
    def make() -> Classifier:
        return Classifier(network)

    def after(**options: Any) -> dict[str, Tensor]:
        module = fit(make, [InvarianceRegularizer(C4(), WEIGHT, **options)], data=loader(8))
        return {**module.state_dict(), "random numbers": torch.get_rng_state()}

    once, again, plain = after(), after(max_batch=max_batch), fit(make, data=loader(8)).state_dict()
    for name, value in once.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-6)
    assert torch.equal(again["random numbers"], once["random numbers"])
    assert any((once[name] - value).abs().max() > 1e-3 for name, value in plain.items())


@pytest.mark.parametrize("penalty", ["logit", "normalized_logit", "distribution", "saliency"])
def test_a_head_that_begins_at_zero_trains(penalty: Any) -> None:
    def zero_head() -> nn.Module:
        network = mlp()
        nn.init.zeros_(network[-1].weight)
        nn.init.zeros_(network[-1].bias)
        return network

    module = fit(lambda: Classifier(zero_head), [InvarianceRegularizer(C4(), WEIGHT, penalty)])
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert module.model[-1].weight.abs().max() > 0
