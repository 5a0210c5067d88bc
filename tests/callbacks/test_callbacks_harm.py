"""Do no harm: training bit for bit as without, and a module that is left as it was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from callbacks_helpers import Noisy, everything_after
from helpers import Classifier, assert_identical, fit, loader, mlp, noisy, trainer_for
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import C4, InvarianceMonitor, InvarianceRegularizer, OrbitAugmentation

# Bit for bit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"inference_mode": False}], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda: [InvarianceMonitor(C4())],
        lambda: [
            InvarianceMonitor(C4(), saliency_samples=0),
            InvarianceMonitor(C4(), network="model", max_batch=5, prefix="b"),
        ],
        lambda: [InvarianceRegularizer(C4(), 0.0)],
        lambda: [InvarianceRegularizer(C4(), lambda step: 0.0, elements_per_step=1)],
        lambda: [InvarianceRegularizer(C4(), 0.0), InvarianceMonitor(C4())],
    ],
    ids=["monitor", "two monitors", "weight 0", "scheduled weight 0", "both"],
)
@pytest.mark.filterwarnings("ignore:.*[Ss]aliency invariance similarity is undefined")
def test_training_is_bit_identical(make: Callable[[], list[Callback]], options: dict[str, Any]) -> None:
    assert_identical(everything_after(make(), **options), everything_after([], **options))


def test_the_extra_forwards_of_the_regularizer_leave_statistics_and_streams_alone() -> None:
    """With a penalty that gives no gradient, only traces of the forwards could make a difference."""

    def nothing(logits: Tensor, orbit_logits: Tensor) -> Tensor:
        return 0.0 * (logits - orbit_logits).square().mean()

    regularizer = InvarianceRegularizer(C4(), 1.0, nothing)
    assert_identical(everything_after([regularizer]), everything_after([]))


@pytest.mark.filterwarnings("ignore:Your .*'s sampler has shuffling enabled")
@pytest.mark.parametrize("method", ["validate", "test"])
def test_a_monitor_outside_of_training_changes_nothing(method: str) -> None:
    states = []
    for callbacks in ([], [InvarianceMonitor(C4())]):
        torch.manual_seed(1)
        module = Noisy()
        module.model[3].eval()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        modes = [submodule.training for submodule in module.modules()]
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


def run_into_failure(module: LightningModule, callbacks: list[Callback], error: type[BaseException]) -> Trainer:
    trainer = trainer_for(callbacks)
    with pytest.raises(error):
        trainer.fit(module, loader(), loader(8, seed=2))
    return trainer


def assert_untouched(module: LightningModule, control: LightningModule) -> None:
    assert shape_of(module) == shape_of(control)
    for name in ("training_step", "validation_step", "test_step", "manual_backward", "forward"):
        assert name not in module.__dict__
        assert getattr(module, name).__func__ is getattr(type(module), name)
    assert "forward" not in module.model.__dict__


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_nothing_stays_behind_after_fit_validate_and_test(manual: bool) -> None:
    module, control = Failing(manual=manual), Failing(manual=manual)
    for each, callbacks in ((module, everyone()), (control, [])):
        for method in ("fit", "validate", "test"):
            options = {} if method == "fit" else {"verbose": False}
            val = [loader(8, seed=2)] if method == "fit" else []
            getattr(trainer_for(callbacks), method)(each, loader(), *val, **options)
        trainer_for(callbacks).fit(each, loader(), loader(8, seed=2))
    assert_untouched(module, control)


@pytest.mark.filterwarnings("ignore:.*Detected KeyboardInterrupt")
@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["before the forward", "after the forward", "forward", "validation"])
def test_nothing_stays_behind_after_an_exception_in_a_step(
    where: str, error: type[BaseException], manual: bool
) -> None:
    raised: Any = (error, SystemExit) if error is KeyboardInterrupt else error
    torch.manual_seed(1)
    module = Failing(where, error, manual)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    control = Failing(where, error, manual)
    callbacks = everyone()
    run_into_failure(module, callbacks, raised)
    run_into_failure(control, [], raised)
    assert_untouched(module, control)

    # The same callbacks in another trainer train as new ones do.
    module.where = None
    module.train()
    module.load_state_dict(start)
    trainer_for(callbacks).fit(module, loader(), loader(8, seed=2))
    fresh = fit(lambda: Failing(manual=manual), everyone(), val=loader(8, seed=2))
    assert_identical(module.state_dict(), fresh.state_dict())


@pytest.mark.parametrize("network", [None, "model"])
@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_nothing_stays_behind_after_an_exception_in_the_penalty(manual: bool, network: str | None) -> None:
    def failing(logits: Tensor, orbit_logits: Tensor) -> Tensor:
        raise RuntimeError("told to")

    module, control = Failing(manual=manual), Failing("after the forward", manual=manual)
    fails = InvarianceRegularizer(C4(), 1.0, failing, network=network, prefix="fails")
    run_into_failure(module, [fails, *everyone()], RuntimeError)
    run_into_failure(control, [], RuntimeError)
    assert_untouched(module, control)
    assert int(module.model[1].num_batches_tracked) == 1


def test_nothing_stays_behind_after_an_exception_in_the_saliency() -> None:
    def failing(network: Any, x: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("told to")

    module, control = Failing(), Failing("validation")
    modes = [submodule.training for submodule in module.modules()]
    with pytest.raises(RuntimeError, match="told to"):
        trainer_for([InvarianceMonitor(C4(), saliency=failing)]).validate(module, loader(), verbose=False)
    with pytest.raises(RuntimeError, match="told to"):
        trainer_for().validate(control, loader(), verbose=False)
    assert_untouched(module, control)
    assert modes == [True] * len(modes)


def test_nothing_stays_behind_after_an_exception_in_the_setup_of_another_callback() -> None:
    class Late(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            raise RuntimeError("told to")

    module, control = Failing(), Failing()
    run_into_failure(module, [*everyone(), Late()], RuntimeError)
    run_into_failure(control, [Late()], RuntimeError)
    assert_untouched(module, control)


def test_a_step_that_was_put_on_the_instance_is_put_back() -> None:
    module = Classifier()
    calls: list[int] = []

    def step(batch: Any, batch_idx: int) -> Tensor:
        calls.append(batch_idx)
        return F.cross_entropy(module(batch[0]), batch[1])

    module.training_step = step  # type: ignore[method-assign]
    trainer_for(everyone()[:3]).fit(module, loader(), loader(8))
    assert module.__dict__["training_step"] is step
    assert calls == 2 * [0, 1, 2]


def test_a_forward_that_was_put_on_the_instance_is_put_back() -> None:
    module = Classifier()

    def forward(x: Tensor) -> Tensor:
        return module.model(x)

    module.forward = forward  # type: ignore[method-assign]
    trainer_for(everyone()[:3]).fit(module, loader(), loader(8))
    assert module.__dict__["forward"] is forward


def test_one_callback_can_serve_one_module_after_another() -> None:
    callbacks = everyone()
    first = fit(lambda: Classifier(mlp), callbacks, val=loader(8))
    second = fit(lambda: Classifier(mlp), callbacks, val=loader(8))
    assert_identical(first.state_dict(), second.state_dict())
    assert callbacks[1]._trainer is None  # type: ignore[attr-defined]
