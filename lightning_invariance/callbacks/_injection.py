"""Puts a callback's work into the steps of a module that it did not write, and takes it out again.

Lightning looks a step up on the module when it runs it, inside autocast and inside the wrapper of the strategy. An
instance attribute that shadows the method therefore runs where the user's own code does: gradient accumulation,
clipping, scaling and distributed reduction treat a term that it adds as part of the user's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_invariance._messages import errors_of
from lightning_invariance.callbacks._calls import CallLog, recorded_calls
from lightning_invariance.callbacks._intercept import StandIn


class Injector:
    """What a callback does in a module's steps. A subclass overrides what it needs; by default nothing happens.

    Attributes:
        name: the callback's, which is put before its errors.
        steps: the names of the module's methods that it takes part in.
    """

    name: str
    steps: tuple[str, ...] = ()

    def watched(self, module: LightningModule) -> nn.Module | None:
        """The network whose calls in the step are to be recorded, if any."""
        return None

    def log(self) -> CallLog:
        """An empty log, for the calls of one step."""
        return CallLog()

    def before_step(self, module: LightningModule, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The step's arguments, the batch first."""
        return args

    def after_step(self, module: LightningModule, args: tuple[Any, ...], output: Any, log: CallLog | None) -> Any:
        """The step's output; the log is None where no network was watched."""
        return output

    def before_backward(self, module: LightningModule, loss: Tensor, log: CallLog | None) -> Tensor:
        """The loss of a call of ``manual_backward`` inside the step."""
        return loss

    def leave_step(self, module: LightningModule) -> None:
        """Puts back what `before_step` changed, also after an exception."""


class _Dispatcher:
    """One for each module: shadows its steps and passes them through the injectors, in the order of the callbacks.

    Callbacks are not torn down in the reverse of their order, so two wrappers around each other would leave one of
    them behind. A single wrapper with a list of injectors is taken off when the list is empty.
    """

    def __init__(self) -> None:
        self.injectors: list[Injector] = []
        self.logs: dict[Injector, CallLog] = {}
        self.running = False

    def names(self, module: LightningModule) -> set[str]:
        """The methods that the injectors take part in."""
        names = {step for injector in self.injectors for step in injector.steps}
        if "training_step" in names and not module.automatic_optimization:
            names.add("manual_backward")
        return names

    def wrap(self, module: LightningModule, name: str) -> None:
        """Shadows one of the module's methods."""
        original = getattr(module, name)
        run = self._run_backward if name == "manual_backward" else self._run_step

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return run(module, name, original, args, kwargs)

        if name == "manual_backward":
            wrapper = torch.compiler.disable(wrapper)
        shadowed = module.__dict__.get(name)
        module.__dict__[name] = _Wrapper(module, name, original, shadowed, wrapper, self)

    def _run_step(
        self,
        module: LightningModule,
        name: str,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        # A step that another step calls: `validation_step` often is `training_step` with another name.
        if self.running or not _is_due(module, name):
            return original(*args, **kwargs)
        injectors = [injector for injector in self.injectors if name in injector.steps]
        self.running = True
        try:
            for injector in injectors:
                with errors_of(injector.name):
                    args = injector.before_step(module, args)
            with ExitStack() as stack:
                for injector in injectors:
                    network = injector.watched(module)
                    if network is not None:
                        self.logs[injector] = stack.enter_context(recorded_calls(network, injector.log()))
                output = original(*args, **kwargs)
            for injector in injectors:
                with errors_of(injector.name):
                    output = injector.after_step(module, args, output, self.logs.get(injector))
            return output
        finally:
            self.running = False
            self.logs.clear()
            # Last in, first out: one may have put its own around another's.
            for injector in reversed(injectors):
                injector.leave_step(module)

    def _run_backward(
        self,
        module: LightningModule,
        name: str,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if "loss" in kwargs:
            args, kwargs = (kwargs["loss"], *args), {key: value for key, value in kwargs.items() if key != "loss"}
        loss, *rest = args
        for log in self.logs.values():
            log.paused = True  # what the injectors call is not the step's
        try:
            for injector in self.injectors:
                if "training_step" in injector.steps:
                    with errors_of(injector.name):
                        loss = injector.before_backward(module, loss, self.logs.get(injector))
        finally:
            for log in self.logs.values():
                log.paused = False
        return original(loss, *rest, **kwargs)


class _Wrapper(StandIn):
    """In place of a step. SWA, EMA and users deep-copy modules: a copy has no part in the callbacks."""

    def __init__(
        self,
        module: LightningModule,
        name: str,
        original: Callable[..., Any],
        shadowed: Any,
        run: Callable[..., Any],
        dispatcher: _Dispatcher,
    ) -> None:
        super().__init__(module, name, original, shadowed, run)
        self.dispatcher = dispatcher


_STEPS = ("training_step", "validation_step", "test_step", "manual_backward")


def inject(module: LightningModule, injector: Injector) -> None:
    """Lets an injector take part in the module's steps; a second time changes nothing."""
    dispatcher = _find(module) or _Dispatcher()
    if injector not in dispatcher.injectors:
        dispatcher.injectors.append(injector)
    for name in sorted(dispatcher.names(module)):
        if _wrapper(module, name) is None:
            dispatcher.wrap(module, name)


def eject(module: LightningModule, injector: Injector) -> None:
    """Takes an injector out of the module's steps, and the wrappers that nobody needs any more; safe to call twice."""
    dispatcher = _find(module)
    if dispatcher is None:
        return
    if injector in dispatcher.injectors:
        dispatcher.injectors.remove(injector)
    for name in set(_STEPS) - dispatcher.names(module):
        wrapper = _wrapper(module, name)
        if wrapper is None:
            continue
        if wrapper.shadowed is not None:
            module.__dict__[name] = wrapper.shadowed
        else:
            del module.__dict__[name]


def _is_due(module: LightningModule, step: str) -> bool:
    """Whether the trainer is in the stage that runs this step."""
    trainer = module.trainer
    if step == "training_step":
        return trainer.training
    return trainer.testing if step == "test_step" else trainer.validating or trainer.sanity_checking


def _find(module: LightningModule) -> _Dispatcher | None:
    wrappers = (_wrapper(module, name) for name in _STEPS)
    return next((wrapper.dispatcher for wrapper in wrappers if wrapper is not None), None)


def _wrapper(module: LightningModule, name: str) -> _Wrapper | None:
    found = module.__dict__.get(name)
    return found if isinstance(found, _Wrapper) else None


def is_compiled(module: LightningModule) -> bool:
    """Whether the module's steps run compiled, where its calls cannot be seen."""
    return getattr(module, "_compiler_ctx", None) is not None


def is_compiled_network(network: nn.Module) -> bool:
    """Whether a network itself is compiled: wrapped by ``torch.compile`` or in place by its ``.compile()``."""
    return hasattr(network, "_orig_mod") or network.__dict__.get("_compiled_call_impl") is not None
