"""Do no harm: training bit for bit as without, and a module that is left as it was found."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from helpers import fit, loader, made, trainer_for
from lightning.pytorch import Callback, LightningModule
from oracles import Classifier, Noisy, assert_identical, noisy
from steps import SHADOWED, Manual, everything_after
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import C4, InvarianceMonitor, InvarianceRegularizer, OrbitAugmentation, SensitivityMonitor

# Bit for bit -----------------------------------------------------------------------------------------------------


def nothing(logits: Tensor, orbit_logits: Tensor) -> Tensor:
    """A penalty without a gradient: only traces of the forwards could make a difference."""
    return 0.0 * (logits - orbit_logits).square().mean()


@cache
def without(**options: Any) -> dict[str, Any]:
    return everything_after([], **options)


BF16, RECORDED = {"precision": "bf16-mixed"}, {"inference_mode": False}
IN_THE_MIDDLE = {"accumulate_grad_batches": 2, "val_check_interval": 1}
HARMLESS: dict[str, tuple[Callable[[], list[Callback]], dict[str, Any]]] = {
    "monitor, bf16-mixed": (lambda: [InvarianceMonitor(C4())], BF16),
    "two monitors": (
        lambda: [
            InvarianceMonitor(C4(), saliency_samples=0),
            InvarianceMonitor(C4(), network="model", max_batch=5, prefix="b"),
        ],
        RECORDED,
    ),
    "scheduled weight 0": (lambda: [InvarianceRegularizer(C4(), lambda step: 0.0, elements_per_step=1)], BF16),
    "a penalty without a gradient": (lambda: [InvarianceRegularizer(C4(), 1.0, nothing)], {}),
    "sensitivity, bf16-mixed": (lambda: [SensitivityMonitor(C4(), layers=True)], BF16),
    "sensitivity beside a monitor": (
        lambda: [SensitivityMonitor(network="model", max_batch=3), InvarianceMonitor(C4(), saliency_samples=0)],
        RECORDED,
    ),
    "a gradient that is accumulated over a validation": (
        lambda: [SensitivityMonitor(C4()), InvarianceMonitor(C4())],
        IN_THE_MIDDLE,
    ),
}


@pytest.mark.parametrize(("make", "options"), HARMLESS.values(), ids=HARMLESS)
@pytest.mark.filterwarnings("ignore:.*[Ss]aliency invariance similarity is undefined")
def test_training_is_bit_identical(make: Callable[[], list[Callback]], options: dict[str, Any]) -> None:
    assert_identical(everything_after(make(), **options), without(**options))


@pytest.mark.filterwarnings("ignore:Your .*'s sampler has shuffling enabled")
def test_monitors_outside_of_training_change_nothing() -> None:
    states = []
    for callbacks in ([], [InvarianceMonitor(C4()), SensitivityMonitor(C4())]):
        module = made(Noisy)
        module.model[3].eval()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        modes = [submodule.training for submodule in module.modules()]
        for method in ("validate", "test"):
            getattr(trainer_for(callbacks), method)(module, loader(shuffle=True), verbose=False)
        assert_identical(module.state_dict(), before)
        assert [submodule.training for submodule in module.modules()] == modes
        assert all(parameter.grad is None for parameter in module.parameters())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


# Nothing stays behind --------------------------------------------------------------------------------------------


class Failing(Manual, Classifier):
    """Fails where it is told to."""

    def __init__(self, where: str | None = None, error: type[BaseException] = RuntimeError) -> None:
        super().__init__(lambda: noisy(0.0))
        self.where, self.error = where, error

    def fail(self, where: str) -> None:
        if where == self.where:
            raise self.error("told to")

    def forward(self, x: Tensor) -> Tensor:
        self.fail("forward")
        return self.model(x)

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.fail("backward")
        super().manual_backward(loss, *args, **kwargs)


def everyone() -> list[Callback]:
    return [
        OrbitAugmentation(C4()),
        InvarianceRegularizer(C4(), 0.3),
        InvarianceMonitor(C4(), saliency_samples=2),
        InvarianceRegularizer(C4(), 0.2, "distribution", network="model", prefix="b"),
        InvarianceMonitor(C4(), measures=["logit_invariance_error"], network="model", prefix="b"),
    ]


def shape_of(module: nn.Module) -> dict[str, Any]:
    """What a module has in its dictionary, and the modes, all through."""
    return {
        name: (sorted(submodule.__dict__), submodule.training, len(submodule._forward_hooks))
        for name, submodule in module.named_modules()
    }


def run_into_failure(module: LightningModule, callbacks: list[Callback], error: Any = RuntimeError) -> None:
    with pytest.raises(error):
        trainer_for(callbacks).fit(module, loader(), loader(8, seed=2))


def assert_untouched(module: LightningModule, control: LightningModule) -> None:
    assert shape_of(module) == shape_of(control)
    for name in SHADOWED:
        assert name not in module.__dict__
        assert getattr(module, name).__func__ is getattr(type(module), name)
    assert "forward" not in module.model.__dict__


def test_nothing_stays_behind_after_fit_validate_and_test() -> None:
    module, control = Failing(), Failing()
    for each, callbacks in ((module, everyone()), (control, [])):
        for method in ("fit", "validate", "test"):
            options, val = ({}, [loader(8, seed=2)]) if method == "fit" else ({"verbose": False}, [])
            getattr(trainer_for(callbacks, max_epochs=1), method)(each, loader(), *val, **options)
    assert_untouched(module, control)


@pytest.mark.filterwarnings("ignore:.*Detected KeyboardInterrupt")
@pytest.mark.parametrize(("where", "error"), [("backward", KeyboardInterrupt), ("forward", RuntimeError)])
def test_nothing_stays_behind_after_an_exception_in_a_manual_step(where: str, error: type[BaseException]) -> None:
    module, control = made(lambda: Failing(where, error)), Failing(where, error)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    callbacks = everyone()
    for each, ours in ((module, callbacks), (control, [])):
        run_into_failure(each, ours, (error, SystemExit))
    assert_untouched(module, control)

    # The same callbacks in another trainer train as new ones do.
    module.where = None
    module.train()
    module.load_state_dict(start)
    trainer_for(callbacks, max_epochs=1).fit(module, loader(), loader(8, seed=2))
    fresh = fit(Failing, everyone(), val=loader(8, seed=2), max_epochs=1)
    assert_identical(module.state_dict(), fresh.state_dict())


def test_nothing_stays_behind_after_an_exception_in_the_penalty_of_a_manual_step() -> None:
    def failing(logits: Tensor, orbit_logits: Tensor) -> Tensor:
        raise RuntimeError("told to")

    module, control = Failing(), Failing("backward")
    fails = InvarianceRegularizer(C4(), 1.0, failing, network="model", prefix="fails")
    run_into_failure(module, [fails, *everyone()])
    run_into_failure(control, [])
    assert_untouched(module, control)
    assert int(module.model[1].num_batches_tracked) == 1


def test_nothing_stays_behind_after_an_exception_in_the_setup_of_another_callback() -> None:
    class Late(Callback):
        def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
            raise RuntimeError("told to")

    module, control = Failing(), Failing()
    run_into_failure(module, [*everyone(), Late()])
    run_into_failure(control, [Late()])
    assert_untouched(module, control)


def test_what_was_put_on_the_instance_is_put_back() -> None:
    module = Classifier()
    calls: list[int] = []

    def step(batch: Any, batch_idx: int) -> Tensor:
        calls.append(batch_idx)
        return F.cross_entropy(module(batch[0]), batch[1])

    def forward(x: Tensor) -> Tensor:
        return module.model(x)

    module.training_step, module.forward = step, forward
    trainer_for(everyone()[:3]).fit(module, loader(), loader(8))
    assert module.__dict__["training_step"] is step
    assert module.__dict__["forward"] is forward
    assert calls == 2 * [0, 1, 2]
