"""With manual optimisation: do the gradients of a term reach a step of the optimiser that owns the parameters?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer


class OwnerWatch:
    """Raises where the gradients of a term are zeroed before their optimiser has taken a step with them.

    Those of a discriminator's penalty in the generator's loss are: they push the generator alone. Optimisers are
    watched until each that owns parameters of the network has taken a step with the term.

    Args:
        owner: the callback, for messages.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self.forget()

    def forget(self) -> None:
        """Before another run."""
        self._done = False
        self._owners: list[Optimizer] = []
        self._waiting: set[int] = set()  # the optimisers that have yet to take a step with the term
        self._stepping: set[int] = set()
        self._undo: list[Callable[[], Any]] = []

    def enter(self, trainer: Trainer, module: LightningModule, network: nn.Module) -> None:
        """Watches the optimisers during a step."""
        if self._done:
            return
        owned = {id(parameter) for parameter in network.parameters()}
        self._owners = [each for each in trainer.optimizers if owned & _parameters_of(each)]
        wrappers = {id(each._optimizer): each for each in getattr(trainer.strategy, "_lightning_optimizers", ())}
        for optimizer in self._owners:
            self._shadow(optimizer, "zero_grad", functools.partial(self._zeroing, [optimizer]))
            # Hooks, as a scheduler looks whether `step` is the function that it has put there. A step that a gradient
            # scaler skips passes by the hooks, but not by Lightning's wrapper.
            before = optimizer.register_step_pre_hook(lambda each, args, kwargs: self._stepping.add(id(each)))
            after = optimizer.register_step_post_hook(lambda each, args, kwargs: self._stepped(each))
            self._undo += [before.remove, after.remove]
            wrapper = wrappers.get(id(optimizer))
            if wrapper is not None:
                self._shadow(wrapper, "zero_grad", functools.partial(self._zeroing, [optimizer]))
                self._shadow(wrapper, "step", functools.partial(self._step, optimizer))
        for each in {id(each): each for each in (module, network)}.values():
            self._shadow(each, "zero_grad", functools.partial(self._zeroing, self._owners))

    def leave(self) -> None:
        """Takes everything off again."""
        while self._undo:
            self._undo.pop()()

    def added(self) -> None:
        """A term has been added to the loss of the backward that runs next."""
        if not self._done:
            self._waiting = {id(each) for each in self._owners} - self._stepping
            self._done = not self._waiting

    @contextmanager
    def _zeroing(self, optimizers: list[Optimizer]) -> Iterator[None]:
        lost = [each for each in optimizers if id(each) in self._waiting - self._stepping]
        # A gradient scaler skips the step where gradients are not finite.
        if any(_are_finite(each) for each in lost):
            raise ValueError(
                f"{self._owner}: expected the optimiser that owns the network's parameters to take a step with the "
                "gradients of the term, but they are zeroed without one: the term went into the loss of a backward "
                "that trains something else through the network. Say with `backward_call=` which call of "
                "`manual_backward` in a step, counted from 0, trains the network."
            )
        yield

    @contextmanager
    def _step(self, optimizer: Optimizer) -> Iterator[None]:
        self._stepping.add(id(optimizer))
        try:
            yield
        finally:
            self._stepped(optimizer)

    def _stepped(self, optimizer: Optimizer) -> None:
        self._stepping.discard(id(optimizer))
        if id(optimizer) in self._waiting:
            self._waiting.discard(id(optimizer))
            self._done = not self._waiting

    def _shadow(self, target: Any, name: str, around: Callable[[], Any]) -> None:
        attributes: dict[str, Any] = target.__dict__
        shadowed = attributes.get(name)
        original = getattr(target, name)

        def shadow(*args: Any, **kwargs: Any) -> Any:
            with around():
                return original(*args, **kwargs)

        attributes[name] = shadow
        self._undo.append(
            functools.partial(attributes.pop, name)
            if shadowed is None
            else functools.partial(attributes.__setitem__, name, shadowed)
        )


def _parameters_of(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _are_finite(optimizer: Optimizer) -> bool:
    gradients = (parameter.grad for group in optimizer.param_groups for parameter in group["params"])
    return all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)
