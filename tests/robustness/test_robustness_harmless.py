"""A whole fit, bit for bit as without the callbacks; and a module left as it was found, whatever happened."""

from __future__ import annotations

import gc
import itertools
import random
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Images, loader, seed_all, trainer_for
from lightning.pytorch import Callback, LightningModule
from oracles import Noting, assert_identical, flat, noisy, same
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Metric

from lightning_invariance import (
    C4,
    Gradient,
    InvarianceMonitor,
    InvarianceRegularizer,
    LogitInvarianceError,
    OrbitAugmentation,
)

# Bit for bit -----------------------------------------------------------------------------------------------------


class Jittered(Dataset[Any]):
    """Draws from all three streams in the workers, as augmentations do."""

    def __init__(self, count: int, seed: int) -> None:
        self.images = Images(count, seed)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        x, y = self.images[index]
        return x + 0.1 * torch.randn(x.shape) + 0.1 * float(np.random.rand()) + 0.1 * random.random(), y


class Mixing(Noting):
    """Draws from all three streams in its steps, too."""

    def __init__(self) -> None:
        super().__init__(noisy)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0] + 0.1 * float(np.random.randn()) + 0.1 * random.random() + 0.1 * torch.randn(())
        return super().training_step((x, batch[1]), batch_idx)


def whole_fit(callbacks: list[Callback]) -> dict[str, Any]:
    seed_all()
    module = Mixing()
    module.model[0].bias.requires_grad_(False)
    workers: dict[str, Any] = {"num_workers": 2, "persistent_workers": True}
    train = DataLoader(Jittered(14, 0), batch_size=4, shuffle=True, **workers)
    val = DataLoader(Jittered(6, 1), batch_size=4, **workers)
    trainer = trainer_for(callbacks, max_epochs=3)
    trainer.fit(module, train, val)
    logged = {name: value for name, value in trainer.callback_metrics.items() if "loss" in name}
    assert logged.keys() == {"train_loss", "train_loss_step", "train_loss_epoch", "val_loss"}
    return flat(
        {
            "weights and statistics": module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "requires_grad": [parameter.requires_grad for parameter in module.parameters()],
            "modes": [submodule.training for submodule in module.modules()],
            "losses": module.losses,
            "logged": logged,
            "torch": torch.get_rng_state(),
            "numpy": list(np.random.get_state(legacy=True)),
            "python": random.getstate(),
        }
    )


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    return whole_fit([])


HARMLESS: dict[str, Callable[[], list[Callback]]] = {
    "nothing": list,
    "monitor of gradients": lambda: [InvarianceMonitor(C4(), saliency=Gradient(), max_batch=3)],
    "saliency of weight 0": lambda: [InvarianceRegularizer(C4(), lambda step: 0.0, penalty="saliency")],
    "both": lambda: [
        InvarianceRegularizer(C4(), 0.0, elements_per_step=2, network="model"),
        InvarianceMonitor(C4(), network="model"),
    ],
}


@pytest.mark.filterwarnings("ignore:.*[Ss]aliency invariance similarity is undefined")
@pytest.mark.parametrize("make", HARMLESS.values(), ids=HARMLESS)
def test_a_whole_fit_is_bit_for_bit_as_without(make: Callable[[], list[Callback]], undisturbed: dict[str, Any]) -> None:
    callbacks = make()
    assert_identical(whole_fit(callbacks), undisturbed)
    for callback in callbacks:
        if isinstance(callback, InvarianceMonitor):
            assert [len(record.measures) for record in callback.history] == [10, 10, 10]


def test_a_term_that_counts_is_seen_by_the_comparison(undisturbed: dict[str, Any]) -> None:
    after = whole_fit([InvarianceRegularizer(C4(), 0.1)])
    different = {place.split("/")[1] for place, leaf in after.items() if not same(leaf, undisturbed[place])}
    # Only what the term is there for: streams, modes and what requires gradients stay.
    assert different == {"weights and statistics", "optimizer", "losses", "logged"}


# As it was found -------------------------------------------------------------------------------------------------


def lightnings_own(test: Any) -> Any:
    """Words that are not ours, about what the tests do on purpose."""
    for text in (".*Detected KeyboardInterrupt", "Found 1 module.* in eval mode at the start of training"):
        test = pytest.mark.filterwarnings(f"ignore:{text}")(test)
    return test


_HOOKS = [name for name in vars(nn.Module()) if "hook" in name]


def found(module: nn.Module) -> dict[str, Any]:
    """Attributes, hooks, what requires gradients and the buffers, all through."""
    return {
        name: (
            sorted(submodule.__dict__),
            [len(submodule.__dict__[hooks]) for hooks in _HOOKS if hasattr(submodule.__dict__[hooks], "__len__")],
            [parameter.requires_grad for parameter in submodule.parameters(recurse=False)],
            [tuple(buffer.shape) for buffer in submodule.buffers(recurse=False)],
        )
        for name, submodule in module.named_modules()
    }


def modes(module: nn.Module) -> list[bool]:
    return [submodule.training for submodule in module.modules()]


class Failing(Noting):
    """Fails where it is told to, and notes its outputs."""

    def __init__(self, where: str = "", error: type[BaseException] = RuntimeError) -> None:
        super().__init__(noisy)
        self.model[0].bias.requires_grad_(False)
        self.model[5].register_forward_hook(lambda module, args, output: None)
        self.model[2].eval()
        self.where, self.error = where, error
        self.noted: list[weakref.ref[Tensor]] = []

    def fail(self, where: str) -> None:
        if where == self.where:
            raise self.error("told to")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 1:
            self.fail("training step")
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        logits = self(batch[0])
        self.noted += [weakref.ref(logits), weakref.ref(batch[0])]
        self.fail("validation step")

    def on_before_zero_grad(self, optimizer: Any) -> None:
        if self.losses[1:]:
            self.fail("optimizer")


HOOKS = (
    "on_train_batch_start",
    "on_after_backward",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_fit_end",
    "teardown",
)


class Other(Callback):
    """Another callback, that fails in a hook of its own."""

    def __init__(self, hook: str, error: type[BaseException]) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise error("told to")

        setattr(self, hook, fail)


class FailingMetric(Metric):
    """A user's own measure."""

    full_state_update = False

    def update(self, logits: Tensor, orbit_logits: Tensor) -> None:
        raise RuntimeError("told to")

    def compute(self) -> Tensor:
        return torch.zeros(())


def failing_penalty(logits: Tensor, orbit_logits: Tensor) -> Tensor:
    raise RuntimeError("told to")


def failing_map(network: Any, x: Tensor, target: Tensor) -> Tensor:
    network(x)
    raise RuntimeError("told to")


def ours() -> list[Callback]:
    return [
        OrbitAugmentation(C4()),
        InvarianceRegularizer(C4(), 0.3, elements_per_step=2),
        InvarianceRegularizer(C4(), 0.1, "saliency", network="model", prefix="saliency"),
        InvarianceMonitor(C4(), saliency=Gradient(), saliency_samples=2),
        InvarianceMonitor(C4(), measures={"mine": LogitInvarianceError()}, network="model"),
    ]


def run(module: LightningModule, callbacks: list[Callback], fails: bool) -> None:
    """Fits; the trainer is gone afterwards."""
    trainer = trainer_for(callbacks)
    if fails:
        with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit, ValueError)):
            trainer.fit(module, loader(), loader(8, seed=1))
    else:
        trainer.fit(module, loader(), loader(8, seed=1))


Makes = Callable[[], Any]


def elsewhere() -> dict[str, tuple[Makes, Makes, Makes]]:
    """What fails and with which error: makers of the module, of callbacks before ours, and of callbacks behind ours."""
    cases: dict[str, tuple[Makes, Makes, Makes]] = {"nowhere": (Failing, list, list)}
    errors = itertools.cycle((RuntimeError, KeyboardInterrupt))
    for where in ("training step", "validation step", "optimizer"):
        error = next(errors)
        cases[f"{where}, {error.__name__}"] = (partial(Failing, where, error), list, list)
    for hook in HOOKS:
        before, behind = (partial(lambda hook, error: [Other(hook, error)], hook, next(errors)) for _ in range(2))
        cases[f"{hook} of a callback before"] = (Failing, before, list)
        cases[f"{hook} of a callback behind"] = (Failing, list, behind)
        next(errors)
    return cases


ELSEWHERE = elsewhere()

#: What fails of our own, and where a module's step fails at the same time.
IN_OURS: dict[str, tuple[Callable[[], Callback], str]] = {
    "penalty": (lambda: InvarianceRegularizer(C4(), 1.0, failing_penalty, prefix="fails"), "training step"),
    "weight": (lambda: InvarianceRegularizer(C4(), lambda step: -1.0, prefix="fails"), "training step"),
    "metric": (lambda: InvarianceMonitor(C4(), {"mine": FailingMetric()}, prefix="fails"), "validation step"),
    "map": (lambda: InvarianceMonitor(C4(), saliency=failing_map, prefix="fails"), "validation step"),
}


def assert_left_alone(module: Failing, control: Failing) -> None:
    assert found(module) == found(control)
    for name in ("training_step", "validation_step", "test_step", "manual_backward", "forward"):
        assert getattr(module, name).__func__ is getattr(Failing, name)


def assert_let_go(module: Failing, control: Failing) -> None:
    """The callbacks, which live, hold on to no input and no output; Lightning does to the last batch."""
    gc.collect()
    assert module.noted != []
    kept = [each() is not None for each in module.noted]
    assert kept == [each() is not None for each in control.noted]
    assert not any(kept[::2])  # the outputs


def ended(callbacks: list[Callback]) -> dict[str, Any]:
    """What comes of a run from the start, with callbacks that may have been in another."""
    monitors = [callback for callback in callbacks if isinstance(callback, InvarianceMonitor)]
    lengths = [len(monitor.history) for monitor in monitors]
    seed_all()
    module = Failing()
    run(module, callbacks, fails=False)
    assert [len(monitor.history) for monitor in monitors] == [length + 2 for length in lengths]
    measures = [record.measures for monitor in monitors for record in monitor.history[-2:]]
    return {"weights": module.state_dict(), "losses": module.losses, "measures": measures}


@pytest.fixture(scope="module")
def clean() -> dict[str, Any]:
    return ended(ours())


@lightnings_own
@pytest.mark.parametrize("where", ELSEWHERE)
def test_the_module_is_left_as_it_was_found_and_a_second_trainer_starts_clean(
    where: str, clean: dict[str, Any]
) -> None:
    make, before, behind = ELSEWHERE[where]
    module, control, used = make(), make(), ours()
    run(module, [*before(), *used, *behind()], where != "nowhere")
    run(control, [*before(), *behind()], where != "nowhere")
    assert_left_alone(module, control)
    assert modes(module) == modes(control)
    assert_let_go(module, control)
    if "teardown" in where or " of a " not in where:
        assert_identical(ended(used), clean)


@lightnings_own
@pytest.mark.parametrize(("what", "first"), [("penalty", False), ("weight", True), ("metric", False), ("map", True)])
def test_the_module_is_left_as_it_was_found_where_our_own_code_fails(what: str, first: bool) -> None:
    failing, place = IN_OURS[what]
    module, control = Failing(), Failing(place)
    callbacks = [failing(), *ours()] if first else [*ours(), failing()]
    run(module, callbacks, fails=True)
    run(control, [], fails=True)
    assert_left_alone(module, control)
    assert modes(module) == modes(control)
    assert_let_go(module, control)
    assert len(callbacks) == 6


@lightnings_own
def test_the_same_callbacks_serve_two_trainers_and_every_stage() -> None:
    callbacks, module, control = ours(), Failing(), Failing()
    for each, attached in ((module, callbacks), (control, [])):
        for _ in range(2):
            trainer = trainer_for(attached, max_epochs=1)
            trainer.fit(each, loader(), loader(8, seed=1))
            trainer.validate(each, loader(8, seed=1), verbose=False)
    assert_left_alone(module, control)
    assert modes(module) == modes(control)
