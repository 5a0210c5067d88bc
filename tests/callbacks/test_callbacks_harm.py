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
from steps import SHADOWED, everything_after
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
    "weight 0 and monitor": (lambda: [InvarianceRegularizer(C4(), 0.0), InvarianceMonitor(C4())], {}),
    "scheduled weight 0": (lambda: [InvarianceRegularizer(C4(), lambda step: 0.0, elements=1)], BF16),
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


class Failing(Classifier):
    """Fails where it is told to."""

    def __init__(
        self, where: str | None = None, error: type[BaseException] = RuntimeError, manual: bool = False
    ) -> None:
        super().__init__(lambda: noisy(0.0))
        self.where = where
        self.error = error
        self.automatic_optimization = not manual

    def fail(self, where: str) -> None:
        if where == self.where:
            raise self.error("told to")

    def forward(self, x: Tensor) -> Tensor:
        self.fail("forward")
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            self.fail("before the forward")
        loss = F.cross_entropy(self(batch[0]), batch[1])
        if batch_idx == 1:
            self.fail("after the forward")
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        if not self.trainer.sanity_checking:
            self.fail("validation")
        return loss


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


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_nothing_stays_behind_after_fit_validate_and_test(manual: bool) -> None:
    module, control = Failing(manual=manual), Failing(manual=manual)
    for each, callbacks in ((module, everyone()), (control, [])):
        for method in ("fit", "validate", "test"):
            options, val = ({}, [loader(8, seed=2)]) if method == "fit" else ({"verbose": False}, [])
            getattr(trainer_for(callbacks, max_epochs=1), method)(each, loader(), *val, **options)
    assert_untouched(module, control)


@pytest.mark.filterwarnings("ignore:.*Detected KeyboardInterrupt")
@pytest.mark.parametrize(
    ("where", "error", "manual"),
    [
        ("before the forward", RuntimeError, False),
        ("after the forward", KeyboardInterrupt, True),
        ("forward", RuntimeError, True),
        ("validation", KeyboardInterrupt, False),
    ],
)
def test_nothing_stays_behind_after_an_exception_in_a_step(
    where: str, error: type[BaseException], manual: bool
) -> None:
    raised: Any = (error, SystemExit) if error is KeyboardInterrupt else error
    module, control = made(lambda: Failing(where, error, manual)), Failing(where, error, manual)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    callbacks = everyone()
    run_into_failure(module, callbacks, raised)
    run_into_failure(control, [], raised)
    assert_untouched(module, control)

    # The same callbacks in another trainer train as new ones do.
    module.where = None
    module.train()
    module.load_state_dict(start)
    trainer_for(callbacks, max_epochs=1).fit(module, loader(), loader(8, seed=2))
    fresh = fit(lambda: Failing(manual=manual), everyone(), val=loader(8, seed=2), max_epochs=1)
    assert_identical(module.state_dict(), fresh.state_dict())


@pytest.mark.parametrize(("manual", "network"), [(False, None), (True, "model")], ids=["automatic", "manual"])
def test_nothing_stays_behind_after_an_exception_in_the_penalty(manual: bool, network: str | None) -> None:
    def failing(logits: Tensor, orbit_logits: Tensor) -> Tensor:
        raise RuntimeError("told to")

    module, control = Failing(manual=manual), Failing("after the forward", manual=manual)
    fails = InvarianceRegularizer(C4(), 1.0, failing, network=network, prefix="fails")
    run_into_failure(module, [fails, *everyone()])
    run_into_failure(control, [])
    assert_untouched(module, control)
    assert int(module.model[1].num_batches_tracked) == 1


def test_nothing_stays_behind_after_an_exception_in_the_saliency() -> None:
    def failing(network: Any, x: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("told to")

    module, control = Failing(), Failing("validation")
    for each, callbacks in ((module, [InvarianceMonitor(C4(), saliency=failing)]), (control, [])):
        with pytest.raises(RuntimeError, match="told to"):
            trainer_for(callbacks).validate(each, loader(), verbose=False)
    assert_untouched(module, control)


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


def test_one_callback_can_serve_one_module_after_another() -> None:
    callbacks = everyone()
    first, second = (fit(Classifier, callbacks, val=loader(8), max_epochs=1) for _ in range(2))
    assert_identical(first.state_dict(), second.state_dict())
