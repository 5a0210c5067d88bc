"""The regularizer against training steps with the term written into them by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from callbacks_helpers import TERMS, absolute_penalty
from helpers import (
    CLASSES,
    SIDE,
    Classifier,
    assert_trained_alike,
    distance,
    fit,
    loader,
    logit_term,
    mlp,
    noisy,
    rotated,
    trainer_for,
)
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
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

WEIGHT = 0.3


def compare(
    plain: Callable[[], LightningModule],
    oracle: Callable[[], LightningModule],
    callbacks: list[Callback],
    tolerance: float = 1e-6,
    **options: Any,
) -> LightningModule:
    """The plain module with the callbacks must train as the oracle does without."""
    got = fit(plain, callbacks, **options)
    assert_trained_alike(got, fit(oracle, **options), fit(plain, **options), tolerance)
    return got


class WithTerm(Classifier):
    """The term, written into the step."""

    term: Any = staticmethod(logit_term)
    weight = WEIGHT

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        fx = self.model(x)
        stacked = self.model(torch.cat(rotated(x)))
        fgx = [each.float() if each.dtype == torch.bfloat16 else each for each in stacked.chunk(3)]
        return F.cross_entropy(fx, y) + self.weight * self.term(fx.float() if fx.dtype == torch.bfloat16 else fx, fgx)


# Penalties, and how the trainer treats the loss ------------------------------------------------------------------


@pytest.mark.parametrize("penalty", TERMS, ids=lambda each: getattr(each, "__name__", each))
def test_each_penalty_is_its_formula(penalty: Any) -> None:
    class Oracle(WithTerm):
        term = staticmethod(TERMS[penalty])

    compare(Classifier, Oracle, [InvarianceRegularizer(C4(), WEIGHT, penalty)])


@pytest.mark.parametrize("penalty", ["logit", "distribution"])
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"accumulate_grad_batches": 4}, 1e-6),
        ({"gradient_clip_val": 0.05, "gradient_clip_algorithm": "norm"}, 1e-6),
        ({"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, 1e-6),
        ({"precision": "bf16-mixed"}, 1e-6),
        ({"precision": "64-true"}, 1e-12),
    ],
    ids=["accumulation", "clipped norm", "clipped values", "bf16-mixed", "64-true"],
)
def test_the_term_is_treated_as_part_of_the_loss(penalty: Any, options: dict[str, Any], tolerance: float) -> None:
    class Oracle(WithTerm):
        term = staticmethod(TERMS[penalty])

    callbacks: list[Callback] = [InvarianceRegularizer(C4(), WEIGHT, penalty)]
    compare(Classifier, Oracle, callbacks, tolerance, data=loader(24), **options)


@pytest.mark.parametrize("max_batch", [1, 3, 5])
def test_smaller_forwards_change_nothing(max_batch: int) -> None:
    compare(Classifier, WithTerm, [InvarianceRegularizer(C4(), WEIGHT, max_batch=max_batch)])


class Scales(nn.Module):
    """Writes into its input: another run would see another one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2.0)


def power_iteration() -> nn.Module:
    """Its forward writes buffers that the next one reads."""
    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(SIDE * SIDE, CLASSES)))


@pytest.mark.parametrize("max_batch", [3, 100])
@pytest.mark.parametrize(
    "network",
    [noisy, lambda: nn.Sequential(Scales(), mlp()), power_iteration],
    ids=["statistics and dropout", "writes into its input", "power iteration"],
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


def test_two_regularizers_add_two_terms() -> None:
    class Oracle(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            fx = self.model(x)
            turned = TERMS["distribution"](fx, [self.model(each) for each in rotated(x)])
            mirrored = logit_term(fx, [self.model(x.flip(-1))])
            return F.cross_entropy(fx, y) + WEIGHT * turned + 0.2 * mirrored

    first = InvarianceRegularizer(C4(), WEIGHT, "distribution")
    second = InvarianceRegularizer(HorizontalFlip(), 0.2, prefix="flip")
    compare(Classifier, Oracle, [first, second])
    compare(Classifier, Oracle, [second, first])


def test_the_term_is_left_out_of_the_epoch_that_averages_weights() -> None:
    # The last epoch of weight averaging runs the step for the sake of batch statistics alone.
    class Batchnorm(Classifier):
        def __init__(self) -> None:
            super().__init__(lambda: noisy(0.0))

    def averaged(*callbacks: Callback) -> LightningModule:
        averaging = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1)
        return fit(Batchnorm, [averaging, *callbacks], max_epochs=3)

    counts: list[int] = []

    def counting(logits: Tensor, orbit_logits: Tensor) -> Tensor:
        counts.append(len(logits))
        return 0.0 * (logits - orbit_logits).square().mean()

    module = averaged(InvarianceRegularizer(C4(), 1.0, counting))
    assert len(counts) == 3 * 3
    assert distance(module, averaged()) == 0.0


# What the step looks like ----------------------------------------------------------------------------------------


class CallsForward(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.forward(batch[0]), batch[1])


class CallsSubmodule(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.model(batch[0]), batch[1])


class CallsSubmoduleForward(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.model.forward(batch[0]), batch[1])


class CallsWithKeyword(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(x=batch[0]), batch[1])


class GivesDict(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "extra": "kept"}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert outputs["extra"] == "kept"


class NeedsNoBatchIndex(Classifier):
    def training_step(self, batch: Any) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("plain", "network"),
    [
        (Classifier, None),
        (Classifier, "model"),
        (CallsForward, None),
        (CallsSubmodule, "model"),
        (CallsSubmoduleForward, "model"),
        (CallsWithKeyword, None),
        (GivesDict, None),
        (NeedsNoBatchIndex, None),
    ],
)
def test_any_way_to_call_the_network_and_to_give_the_loss(plain: type[Classifier], network: str | None) -> None:
    compare(plain, WithTerm, [InvarianceRegularizer(C4(), WEIGHT, network=network)])


@pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`")
def test_a_batch_that_the_step_skips_stays_skipped() -> None:
    class Plain(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else loss

    class Oracle(WithTerm):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    compare(Plain, Oracle, [InvarianceRegularizer(C4(), WEIGHT)])


def test_manual_optimisation() -> None:
    class Manual(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self(x), y)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = self.loss(*batch)
            self.manual_backward(loss)
            optimizer.step()

    class Oracle(Manual):
        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            fx = self.model(x)
            return F.cross_entropy(fx, y) + WEIGHT * logit_term(fx, [self.model(each) for each in rotated(x)])

    compare(Manual, Oracle, [InvarianceRegularizer(C4(), WEIGHT)])


def test_with_several_manual_backwards_the_first_after_the_network_carries_the_term() -> None:
    class Manual(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def term(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return 0.0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss=sum(p.square().sum() for p in self.parameters()))
            torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1)
            fx = self(x)
            self.manual_backward(F.cross_entropy(fx, y) + self.term(fx, x), retain_graph=True)
            torch.nn.utils.clip_grad_norm_(self.parameters(), 0.2)
            self.manual_backward(fx.square().mean())
            optimizer.step()

    class Oracle(Manual):
        def term(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return WEIGHT * logit_term(fx, [self.model(each) for each in rotated(x)])

    compare(Manual, Oracle, [InvarianceRegularizer(C4(), WEIGHT)])


def test_manual_optimisation_that_hides_its_backward_is_warned_of() -> None:
    class Hidden(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            F.cross_entropy(self(batch[0]), batch[1]).backward()
            optimizer.step()

    with pytest.warns(UserWarning, match="manual_backward") as warned:
        fit(Hidden, [InvarianceRegularizer(C4())])
    assert sum("manual_backward" in str(each.message) for each in warned) == 1


# What the batch looks like ---------------------------------------------------------------------------------------


class TakesDict(Classifier):
    """The network is called with the whole batch."""

    def forward(self, batch: Any) -> Any:
        return {"logits": self.model(batch["image"]) + batch["offset"], "features": None}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch)["logits"], batch["label"])


class TakesMask(Classifier):
    """The network takes another tensor besides the image, which the group does not act on."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.model(x * mask)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (x, mask), y = batch
        return F.cross_entropy(self(x, mask), y)


class TakesMaskAsKeyword(TakesMask):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (x, mask), y = batch
        return F.cross_entropy(self(mask=mask, x=x), y)


def as_dict(x: Tensor, y: Tensor) -> Any:
    return {"image": x, "label": y, "offset": x[0, 0, :CLASSES]}


def with_mask(x: Tensor, y: Tensor) -> Any:
    return (x, (x.flip(-1) > 0).float()), y


def test_a_dict_batch() -> None:
    class Oracle(TakesDict):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            fx = self.model(batch["image"]) + batch["offset"]
            fgx = [self.model(each) + batch["offset"] for each in rotated(batch["image"])]
            return F.cross_entropy(fx, batch["label"]) + WEIGHT * logit_term(fx, fgx)

    compare(TakesDict, Oracle, [InvarianceRegularizer(C4(), WEIGHT, input="image")], data=loader(pack=as_dict))


@pytest.mark.parametrize(("plain", "input"), [(TakesMask, [0]), (TakesMaskAsKeyword, ["x"])])
def test_another_tensor_goes_along_as_it_is(plain: type[TakesMask], input: Any) -> None:
    class Oracle(TakesMask):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            (x, mask), y = batch
            fx = self.model(x * mask)
            fgx = [self.model(each * mask) for each in rotated(x)]
            return F.cross_entropy(fx, y) + WEIGHT * logit_term(fx, fgx)

    compare(plain, Oracle, [InvarianceRegularizer(C4(), WEIGHT, input=input)], data=loader(pack=with_mask))


def test_the_second_argument_can_be_the_input() -> None:
    class Oracle(TakesMask):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            (x, mask), y = batch
            fx = self.model(x * mask)
            fgx = [self.model(x * each) for each in rotated(mask)]
            return F.cross_entropy(fx, y) + WEIGHT * logit_term(fx, fgx)

    compare(TakesMask, Oracle, [InvarianceRegularizer(C4(), WEIGHT, input=[1])], data=loader(pack=with_mask))


# Networks with running statistics and random numbers -------------------------------------------------------------


def test_batch_normalisation_sees_each_element_as_a_batch_and_the_statistics_only_the_step() -> None:
    class Plain(Classifier):
        def __init__(self) -> None:
            super().__init__(lambda: noisy(0.0))

    class Oracle(Plain):
        def without_statistics(self, x: Tensor) -> Tensor:
            for layer in self.model:
                if isinstance(layer, nn.BatchNorm2d):
                    x = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
                else:
                    x = layer(x)
            return x

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            fx = self.model(x)
            term = logit_term(fx, [self.without_statistics(each) for each in rotated(x)])
            return F.cross_entropy(fx, y) + WEIGHT * term

    got = compare(Plain, Oracle, [InvarianceRegularizer(C4(), WEIGHT)])
    assert int(got.model[1].num_batches_tracked) == 2 * 3


@pytest.mark.parametrize("manual", [False, True])
def test_all_elements_see_the_dropout_masks_of_the_step(manual: bool) -> None:
    class Plain(Classifier):
        def __init__(self) -> None:
            super().__init__(lambda: nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES)))
            self.automatic_optimization = not manual

        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self(x), y)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(*batch)
            if not manual:
                return loss
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            return None

    class Oracle(Plain):
        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            before = torch.get_rng_state()
            fx = self.model(x)
            after = torch.get_rng_state()
            fgx = []
            for each in rotated(x):
                torch.set_rng_state(before)
                fgx.append(self.model(each))
            torch.set_rng_state(after)
            return F.cross_entropy(fx, y) + WEIGHT * logit_term(fx, fgx)

    compare(Plain, Oracle, [InvarianceRegularizer(C4(), WEIGHT)], data=loader(shuffle=True))


def test_dropout_masks_are_the_same_in_any_layout_of_the_input() -> None:
    """Masks are drawn in the order of memory, which the moved inputs must share with the batch."""

    class Plain(Classifier):
        def __init__(self) -> None:
            super().__init__(lambda: nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(2 * SIDE * SIDE, CLASSES)))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = torch.cat([batch[0], batch[0].square()], dim=1).contiguous(memory_format=torch.channels_last)
            return self.loss(x, batch[1])

        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self(x), y)

    class Oracle(Plain):
        def loss(self, x: Tensor, y: Tensor) -> Tensor:
            before = torch.get_rng_state()
            fx = self.model(x)
            after = torch.get_rng_state()
            fgx = []
            for each in rotated(x):
                torch.set_rng_state(before)
                fgx.append(self.model(each.contiguous(memory_format=torch.channels_last)))
            torch.set_rng_state(after)
            return F.cross_entropy(fx, y) + WEIGHT * logit_term(fx, fgx)

    compare(Plain, Oracle, [InvarianceRegularizer(C4(), WEIGHT)])


def test_dropout_alone_gives_no_penalty() -> None:
    class Invariant(Classifier):
        def __init__(self) -> None:
            super().__init__(
                lambda: nn.Sequential(
                    nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES)
                )
            )

    torch.manual_seed(1)
    trainer = trainer_for([InvarianceRegularizer(C4(), 1.0)])
    trainer.fit(Invariant(), loader())
    assert float(trainer.callback_metrics["train/invariance_penalty"]) < 1e-10


# Validation that goes through the training step ------------------------------------------------------------------


@pytest.mark.parametrize("monitored", [False, True])
@pytest.mark.parametrize("manual", [False, True])
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


class Schedule(NamedTuple):
    weight: Callable[[int], float]
    closed_form: Callable[[int], float]


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(WeightRamp(0.1, 0.9, steps=4), lambda t: 0.1 + 0.8 * min(t, 4) / 4),
        Schedule(WeightRamp(0.01, 1.0, steps=4, shape="exponential"), lambda t: 10.0 ** (-2 + 2 * min(t, 4) / 4)),
        Schedule(lambda t: 0.5 if t % 2 else 0.0, lambda t: 0.5 * (t % 2)),
    ],
    ids=["linear", "exponential", "on and off"],
)
def test_a_scheduled_weight_is_used_and_logged(schedule: Schedule) -> None:
    class Oracle(WithTerm):
        @property
        def weight(self) -> float:
            return schedule.closed_form(self.trainer.global_step)

    notes = Notes("train/invariance_weight")
    one_batch = {"data": loader(4), "max_epochs": 6}
    compare(Classifier, Oracle, [InvarianceRegularizer(C4(), schedule.weight), notes], **one_batch)
    torch.testing.assert_close(notes.epochs, [[schedule.closed_form(epoch)] for epoch in range(6)])


def test_the_weight_counts_optimiser_steps_not_batches() -> None:
    asked: list[int] = []

    def weight(step: int) -> float:
        asked.append(step)
        return 1.0

    fit(Classifier, [InvarianceRegularizer(C4(), weight)], data=loader(24), accumulate_grad_batches=3, max_epochs=1)
    assert asked == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_out_of_range_is_refused_at_once_or_in_the_step(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        InvarianceRegularizer(C4(), weight)
    with pytest.raises(ValueError, match="weight"):
        fit(Classifier, [InvarianceRegularizer(C4(), lambda step: weight)])


# Logs ------------------------------------------------------------------------------------------------------------


def test_penalty_and_weight_are_logged_as_means_over_samples() -> None:
    data = loader(10)  # batches of 4, 4 and 2
    torch.manual_seed(1)
    module = Classifier(lr=0.0)
    trainer = trainer_for([InvarianceRegularizer(C4(), WEIGHT)])
    trainer.fit(module, data)
    with torch.no_grad():
        x = data.dataset.x
        expected = logit_term(module.model(x), [module.model(each) for each in rotated(x)])
    logged = trainer.callback_metrics
    torch.testing.assert_close(logged["train/invariance_penalty"], expected)
    torch.testing.assert_close(float(logged["train/invariance_weight"]), WEIGHT)


def test_two_regularizers_are_told_apart_by_a_prefix() -> None:
    second = InvarianceRegularizer(HorizontalFlip(), 0.25, prefix="flip")
    trainer = trainer_for([InvarianceRegularizer(C4(), 0.5), second])
    trainer.fit(Classifier(), loader())
    weights = {name: float(value) for name, value in trainer.callback_metrics.items() if "weight" in name}
    assert weights == {"train/invariance_weight": 0.5, "train/flip/invariance_weight": 0.25}
    with pytest.raises(ValueError, match=r"another InvarianceRegularizer logs .*`prefix="):
        trainer_for([InvarianceRegularizer(C4()), InvarianceRegularizer(HorizontalFlip())]).fit(Classifier(), loader())


def test_a_weight_of_zero_logs_the_weight_alone() -> None:
    trainer = trainer_for([InvarianceRegularizer(C4(), 0.0)])
    trainer.fit(Classifier(), loader())
    assert {name: float(value) for name, value in trainer.callback_metrics.items()} == {"train/invariance_weight": 0.0}


@pytest.mark.filterwarnings("ignore:InvarianceMonitor. nothing is measured")
def test_a_trainer_that_forbids_logging() -> None:
    def barebones(make: type[Classifier], callbacks: list[Callback]) -> LightningModule:
        torch.manual_seed(1)
        module = make()
        Trainer(accelerator="cpu", devices=1, barebones=True, max_epochs=2, callbacks=callbacks).fit(module, loader())
        return module

    callbacks: list[Callback] = [InvarianceRegularizer(C4(), WEIGHT), InvarianceMonitor(C4())]
    got = barebones(Classifier, callbacks)
    assert_trained_alike(got, barebones(WithTerm, []), barebones(Classifier, []))


# Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": "C4"}, "action"),
        ({"penalty": "nope"}, "penalty"),
        ({"elements": 4}, "elements"),
        ({"elements": 0}, "elements"),
        ({"elements": 1, "penalty": "jensen_shannon"}, "elements"),
        ({"max_batch": 0}, "max_batch"),
        ({"input": 1.5}, "input"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"`{message}`"):
        InvarianceRegularizer(**{"action": C4(), **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "nope"}, r"`network` to name a submodule of Classifier .*'model'.* but got 'nope'"),
        ({"input": "nope"}, r"input='nope'"),
        ({"input": 3}, r"input=3"),
        (
            {"penalty": lambda logits, orbit_logits: logits},
            r"`penalty` to give a scalar .* got a tensor \(4, 3\)",
        ),
    ],
)
def test_what_cannot_be_found_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Classifier, [InvarianceRegularizer(C4(), **options)])


def test_a_step_that_does_not_call_the_network_is_told_what_to_name() -> None:
    with pytest.raises(ValueError, match=r"call the forward of CallsSubmodule.*network=.*'model'"):
        fit(CallsSubmodule, [InvarianceRegularizer(C4())])


def test_a_group_that_cannot_act_on_the_input_is_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        fit(Classifier, [InvarianceRegularizer(C4())], data=loader(pack=lambda x, y: (x.reshape(1, 2, 8), y)))


def test_a_penalty_of_the_users_own_gets_logits_and_orbit() -> None:
    shapes: list[tuple[int, ...]] = []

    def noting(logits: Tensor, orbit_logits: Tensor) -> Tensor:
        shapes.extend([tuple(logits.shape), tuple(orbit_logits.shape)])
        return absolute_penalty(logits, orbit_logits)

    fit(Classifier, [InvarianceRegularizer(C4(), 1.0, noting)], data=loader(5, 5), max_epochs=1)
    assert shapes == [(5, CLASSES), (3, 5, CLASSES)]


# Networks that make it hard ---------------------------------------------------------------------------------------


class InPlace(nn.Module):
    """Changes its input, as a network with an in-place activation in front does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.sub_(0.5))


class OutOfPlace(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - 0.5)


def test_a_network_that_changes_its_input_is_regularised_on_what_it_was_given() -> None:
    def fresh() -> Any:  # collated anew, so that what one run does to its batches another does not see
        return loader(8, 4)

    got = fit(lambda: Classifier(InPlace), [InvarianceRegularizer(C4(), WEIGHT)], data=fresh(), max_epochs=1)
    expected = fit(lambda: Classifier(OutOfPlace), [InvarianceRegularizer(C4(), WEIGHT)], data=fresh(), max_epochs=1)
    assert distance(got, expected) < 1e-6


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


def test_the_logged_weight_is_a_mean_over_steps() -> None:
    trainer = trainer_for([InvarianceRegularizer(C4(), WeightRamp(0.0, 1.0, steps=2))], max_epochs=1)
    trainer.fit(Classifier(), loader(10, 4))
    assert trainer.callback_metrics["train/invariance_weight"].item() == pytest.approx((0 + 0.5 + 1) / 3)
