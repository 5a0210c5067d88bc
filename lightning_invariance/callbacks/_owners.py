"""With manual optimisation: do the gradients of a term reach a step of the optimiser that owns the parameters?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_invariance.callbacks._intercept import StandIn


class OwnerWatch:
    """Raises where the gradients of a term are zeroed before an optimiser has taken a step with them.

    Those of a discriminator's penalty in the generator's loss are: they push the generator alone. Once the gradients of
    a term have been used, they are missed only where another optimiser has taken a step in between.

    Args:
        owner: the callback, for messages.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self.forget()

    def forget(self) -> None:
        """Before another run."""
        self._arrived = False  # whether a step has been taken with a term at all
        self._other = False  # whether an optimiser of other parameters has taken one since a term was added
        self._parameters: list[nn.Parameter] = []
        self._waiting: dict[int, _Gradient] = {}  # the parameters that have yet to take a step with the term
        self._stepping: set[int] = set()  # the parameters whose optimiser is taking a step at present
        self._undo: list[Callable[[], Any]] = []

    def enter(self, trainer: Trainer, module: LightningModule, network: nn.Module) -> None:
        """Watches the optimisers during a step."""
        self._parameters = list(network.parameters())
        owned = {id(parameter) for parameter in self._parameters}
        wrappers = {id(each._optimizer): each for each in getattr(trainer.strategy, "_lightning_optimizers", ())}
        for optimizer in trainer.optimizers:
            members = owned & {id(each) for group in optimizer.param_groups for each in group["params"]}
            if not members:
                self._undo.append(optimizer.register_step_pre_hook(self._before_other).remove)
                continue
            self._shadow(optimizer, "zero_grad", functools.partial(self._zeroing, members))
            # Hooks, as a scheduler looks whether `step` is the function that it has put there. A step that a gradient
            # scaler skips passes by the hooks, but not by Lightning's wrapper.
            before = optimizer.register_step_pre_hook(functools.partial(self._before_step, members))
            after = optimizer.register_step_post_hook(functools.partial(self._after_step, members))
            self._undo += [before.remove, after.remove]
            wrapper = wrappers.get(id(optimizer))
            if wrapper is not None:
                self._shadow(wrapper, "zero_grad", functools.partial(self._zeroing, members))
                self._shadow(wrapper, "step", functools.partial(self._step, members))
        for each in {id(each): each for each in (module, network)}.values():
            self._shadow(each, "zero_grad", functools.partial(self._zeroing, owned))

    def leave(self) -> None:
        """Takes everything off again."""
        while self._undo:
            self._undo.pop()()

    def added(self) -> None:
        """A term has been added to the loss of the backward that runs next."""
        self._other = False
        # Inside a step (a closure) the gradients are of use whatever happens afterwards.
        waiting = [each for each in self._parameters if id(each) not in self._stepping]
        self._waiting = {id(each): _Gradient.of(each) for each in waiting}

    @contextmanager
    def _zeroing(self, members: set[int]) -> Iterator[None]:
        lost = [self._waiting[each] for each in members & set(self._waiting) - self._stepping]
        if self._arrived and not self._other:
            lost = []  # a step that the user leaves out: the loss was too large, say
        # A gradient scaler skips the step where gradients are not finite.
        if any(each.has_arrived() for each in lost) and all(each.is_finite() for each in lost):
            raise ValueError(
                f"{self._owner}: expected the optimiser that owns the network's parameters to take a step with the "
                "gradients of the term, but they are zeroed without one: the term went into the loss of a backward "
                "that trains something else through the network. Say with `backward_call=` which call of "
                "`manual_backward` in a step, counted from 0, trains the network; or freeze the network while another "
                "is trained through it (`self.toggle_optimizer`), since calls of a frozen network do not count."
            )
        yield

    @contextmanager
    def _step(self, members: set[int]) -> Iterator[None]:
        self._before_step(members)
        try:
            yield
        finally:
            self._after_step(members)

    def _before_step(self, members: set[int], *_: Any) -> None:
        self._stepping |= members

    def _after_step(self, members: set[int], *_: Any) -> None:
        self._stepping -= members
        stepped = members & set(self._waiting)
        for each in stepped:
            del self._waiting[each]
        self._arrived = self._arrived or bool(stepped)

    def _before_other(self, *_: Any) -> None:
        """Another optimiser takes a step."""
        self._other = True

    def _shadow(self, target: Any, name: str, around: Callable[[], Any]) -> None:
        attributes: dict[str, Any] = target.__dict__
        shadowed = attributes.get(name)
        original = getattr(target, name)

        def shadow(*args: Any, **kwargs: Any) -> Any:
            with around():
                return original(*args, **kwargs)

        attributes[name] = StandIn(target, name, original, shadowed, shadow)
        self._undo.append(
            functools.partial(attributes.pop, name)
            if shadowed is None
            else functools.partial(attributes.__setitem__, name, shadowed)
        )


class _Gradient(NamedTuple):
    """A parameter, and the gradient that it had before a backward."""

    parameter: nn.Parameter
    before: Tensor | None
    version: int

    @classmethod
    def of(cls, parameter: nn.Parameter) -> _Gradient:
        gradient = parameter.grad
        return cls(parameter, gradient, 0 if gradient is None else gradient._version)

    def has_arrived(self) -> bool:
        """Whether the backward has added to it."""
        now = self.parameter.grad
        return now is not None and (now is not self.before or now._version != self.version)

    def is_finite(self) -> bool:
        """Whether the parameter's gradient, where it has one, is finite."""
        return self.parameter.grad is None or bool(self.parameter.grad.isfinite().all())
