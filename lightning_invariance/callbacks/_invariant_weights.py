"""Weights that the optimiser keeps invariant: the network stays an ordinary one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_invariance._arguments import Arguments
from lightning_invariance._checks import check_choice, check_number
from lightning_invariance._locate import (
    InputSpec,
    LogitsOf,
    OutputReader,
    check_logits_of,
    locate_in_batch,
    locate_in_call,
)
from lightning_invariance._messages import errors_of
from lightning_invariance._output_action import OutputActions, OutputMotion
from lightning_invariance.actions import Action, Flow
from lightning_invariance.actions._flow import as_action
from lightning_invariance.callbacks._base import NetworkCallback, is_sharded, positional_names
from lightning_invariance.callbacks._calls import CallLog
from lightning_invariance.callbacks._injection import Injector, is_compiled
from lightning_invariance.callbacks._intercept import intercepted
from lightning_invariance.callbacks._schedule import WeightRamp, WeightSchedule
from lightning_invariance.callbacks._statistics import CallOfBatch, estimate_statistics
from lightning_invariance.symmetry._group import refuse_drawn
from lightning_invariance.symmetry._weights import WeightSymmetry, call_of, check_strength, symmetry_of

_NAME = "InvariantWeights"

#: By which share of the steps a merge is complete.
_MERGED_BY = 0.8

#: How far weights may be from the invariant ones that are called so.
_DRIFT = 1e-3


class InvariantWeights(NetworkCallback):
    r"""Keeps the weights of an ordinary network invariant to a group, so that the network is exactly invariant.

    Hidden channels are given the regular representation; then the group acts on every weight such that
    :math:`f_{gw}(gx) = f_w(x)`, and weights that stay, :math:`w = P w` with the mean over the group

    .. math::
        P w = \frac{1}{|G|} \sum_{g \in G} g w,

    make the network invariant (`WeightSymmetry` has the details, and docs/invariant_weights.md the mathematics). The
    module keeps its class, its ``state_dict`` and its one forward a step; nothing is added at inference. It *is* weight
    tying, done by the optimiser and not by the layers: of each weight, one entry of each orbit is free.

    - ``mode="project"``: weights start from :math:`P w`, scaled to the norm that they had, and each gradient becomes
      :math:`P \nabla L` before clipping and the optimiser's step: the gradient of the mean of the loss over the orbit,
      from one forward. Every network on the way is invariant. A `strength` makes it a soft constraint instead: the
      start is invariant, gradients are not projected, and each step is followed by a pull
      :math:`w \leftarrow w - a\,(w - P w)`.
    - ``mode="merge"``: weights and gradients are ordinary ones, and each step is followed by that pull, whose a rises
      linearly from 0 to 1 by 80 % of the steps (or as `strength` says). The network is invariant from then on. Hidden
      channels are first put in the order in which they fit best (`WeightSymmetry.match_`), which leaves the function of
      a trained network as it is.

    The first step finds how the group acts, and verifies that the network is invariant with invariant weights: in
    double precision, on the step's own batch. A layer that stands in the way is named, with what to change. No
    augmentation is needed; beside `OrbitAugmentation` batch normalisation sees all poses. At the end of a training that
    ends invariant, the running statistics of batch normalisation are estimated anew by a pass over the training data,
    as those on the way were of other weights; it says so. Use a learning rate that is annealed.

    Logs each epoch's ``train/weight_asymmetry``, :math:`\|w - P w\| / \|w\|` (in an invariant training what rounding
    has done to it, before it is projected off), and ``train/symmetry_strength``.

    Args:
        action: a finite group that moves places exactly: `C4`, `D4`, flips, `CyclicTranslations`, `TimeReversal`, a
            `PermutationAction`, products of these.
        network: the name of the submodule whose weights are meant; the module itself, by its forward, by default.
        mode: ``"project"`` or ``"merge"``.
        strength: a, from 0 to 1: a number, or a schedule, a function from the number of optimiser steps taken (this one
            included) to it, such as ``WeightRamp(0.0, 1.0, steps=1000)``. By default 1 and projected gradients with
            ``mode="project"``, the linear ramp with ``mode="merge"``.
        input: where the network's arguments hold the tensor that the group acts on, or a list of those that move
            together; by default the only one that it can act on.
        output_action: how the output moves with the input, so that the network becomes equivariant: None, it stays;
            ``"same"``, as the input does; an `Action`; or a dict of these for a network with several outputs.
        logits: a function from the network's output to what is to be invariant; by default the output itself, or its
            ``logits``.
        example: what the network is called with, as for `symmetrize`, if it is not to be taken from the first step.
        tolerance: how far :math:`f(gx)` and :math:`f(x)` may be apart in the first step, relative to the largest
            output.
        prefix: put before the names that are logged, to tell two of these callbacks apart.

    Attributes:
        symmetry: the `WeightSymmetry`, once training has begun; its ``report()`` is a table of the weights.

    Raises:
        ValueError: if an argument has a wrong type or value, or parameters are sharded (FSDP, DeepSpeed); in the first
            step, if a layer stands in the way, or frozen weights are not invariant.

    Warns:
        UserWarning: if layers are so narrow that few fields are left, or training ends before a merge is complete.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_invariance import C4, InvariantWeights
        >>> trainer = Trainer(callbacks=[InvariantWeights(C4())], logger=False, enable_checkpointing=False)
    """

    _name = _NAME

    def __init__(
        self,
        action: Action | Flow,
        *,
        network: str | None = None,
        mode: Literal["project", "merge"] = "project",
        strength: float | WeightSchedule | None = None,
        input: InputSpec = None,
        output_action: OutputActions = None,
        logits: LogitsOf | None = None,
        example: Any = None,
        tolerance: float = 1e-6,
        prefix: str | None = None,
    ) -> None:
        action = as_action(action)
        refuse_drawn(action)
        check_choice("mode", mode, ("project", "merge"))
        if strength is not None and not callable(strength):
            check_strength(strength)
        check_logits_of(logits)
        check_number("tolerance", tolerance, above=0.0)
        super().__init__(_Keeper(self), network=network, input=input, logits=logits, call=None, prefix=prefix)
        self.action = action
        self.mode = mode
        self.strength = strength
        self.output_action = output_action
        self.example = example
        self.tolerance = tolerance
        self.symmetry: WeightSymmetry | None = None
        self._motion = OutputMotion(output_action, action)
        self._forget()

    def _forget(self) -> None:
        self.symmetry = None
        self._active = False
        self._looked = False  # whether it is known how a step calls the network
        self._started = False  # whether the first step of the whole training, a resumed one included, has been taken
        self._steps = 0
        self._batches = 0  # of this fit
        self._present = 0.0  # the strength after the last step
        self._asymmetry = 0.0  # the largest of the epoch, before it was projected off
        self._schedule: WeightSchedule | None = None
        self._clock: Optimizer | None = None  # whose steps are counted, of several that own weights
        self._projected: set[int] = set()  # the optimisers whose gradients are projected already
        self._undo: list[Callable[[], Any]] = []
        self._call: CallOfBatch | None = None
        self._findings.forget()

    def __getstate__(self) -> dict[str, Any]:
        # A copy is for another training; the network that this one has been of does not go along.
        run = ("symmetry", "_undo", "_clock", "_projected", "_call", "_schedule")
        return {name: value for name, value in self.__dict__.items() if name not in run}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def logged_names(self) -> tuple[str, ...]:
        """The names that it logs by, without stage and prefix."""
        return ("weight_asymmetry", "symmetry_strength")

    @property
    def state_key(self) -> str:
        """What its state in a checkpoint is called."""
        return self._generate_state_key(network=self.network, prefix=self.prefix)

    def state_dict(self) -> dict[str, Any]:
        """How far the training has come."""
        return {
            "started": self._started,
            "steps": self._steps,
            "batches": self._batches,
            "strength": self._present,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a training was interrupted."""
        self._started = bool(state_dict["started"])
        self._steps = int(state_dict["steps"])
        self._batches = int(state_dict["batches"])
        self._present = float(state_dict["strength"])

    # The trainer's hooks ----------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._forget()
            with errors_of(_NAME):
                self._network_of(pl_module)  # a wrong name fails before any work is done
                _refuse_shards(trainer)
                self._refuse_two(trainer)
        super().setup(trainer, pl_module, stage)

    def _refuse_two(self, trainer: Trainer) -> None:
        own = self.network or ""
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if other is self or not isinstance(other, InvariantWeights):
                continue
            name = other.network or ""
            if not own or not name or f"{own}.".startswith(f"{name}.") or f"{name}.".startswith(f"{own}."):
                raise ValueError(
                    f"Expected one {_NAME} for a network but there are two, for {self.action!r} and {other.action!r}: "
                    "use a group that has both, such as D4() or a product (`*`)."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not before: the learning-rate finder and the batch-size scaler try steps and put the weights back.
        self._active = True
        with errors_of(_NAME):
            self._schedule = self._schedule_for(trainer)
            if self.example is not None:
                network = self._network_of(pl_module)
                self._begin(pl_module, call_of(self.example, self.input, self.action, network))
        for optimizer in trainer.optimizers:
            before = optimizer.register_step_pre_hook(self._before_step)
            after = optimizer.register_step_post_hook(self._after_step)
            self._undo += [before.remove, after.remove]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        optimizer = getattr(optimizer, "optimizer", optimizer)
        self._project_gradients(optimizer)  # before Lightning clips them
        self._projected.add(id(optimizer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        if self.symmetry is not None and self._is_invariant:
            self.symmetry.project_statistics_()  # a checkpoint may be written next

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._project()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.symmetry is None or trainer.barebones:
            return
        asymmetry = max(self._asymmetry, self.symmetry.asymmetry())
        self._asymmetry = 0.0
        for name, value in (("weight_asymmetry", asymmetry), ("symmetry_strength", self._present)):
            name = f"train/{self.prefix}/{name}" if self.prefix else f"train/{name}"
            pl_module.log(name, value, sync_dist=trainer.world_size > 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.symmetry is None:
            return
        if not self._is_invariant:
            if self.mode == "merge" and (self.strength is None or callable(self.strength)):
                self._warn_of(
                    f"training ended when the strength of the merge was {self._present:.2g}, and the weights are "
                    f"{self.symmetry.asymmetry():.1e} of their norm away from invariant ones: they are left so. Give "
                    "the schedule with `strength=`, WeightRamp(0.0, 1.0, steps=...) for instance."
                )
            return
        self._project()
        # Over no more batches than have trained: a fit may have been short.
        said = estimate_statistics(
            trainer, pl_module, self._network_of(pl_module), self.symmetry, self._call, self._batches
        )
        if said:
            rank_zero_info(f"{_NAME}: {said}.")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Weight averaging may have put in other weights meanwhile, of a time before the merge was complete.
        self._project()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()
        super().teardown(trainer, pl_module, stage)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()
        super().on_exception(trainer, pl_module, exception)

    def _release(self) -> None:
        self._active = False
        while self._undo:
            self._undo.pop()()

    # The beginning ----------------------------------------------------------------------------------------------------

    def _begin(self, module: LightningModule, arguments: Arguments) -> None:
        """Finds how the group acts, and starts from invariant weights where these are wanted."""
        network = self._network_of(module)
        reader = OutputReader(self.logits, self._motion.names)
        symmetry = symmetry_of(network, self.action, arguments, self._motion, reader, self.tolerance)
        if symmetry.is_identity:
            raise ValueError(f"Expected {self._network_in_words(module)} to have weights that {self.action!r} moves.")
        _refuse_frozen(symmetry)
        if not self._started:
            self._started = True
            if self.mode == "project":
                symmetry.project_(keep_norms=True)
                _project_states(symmetry, module.trainer.optimizers)
            elif symmetry.sees_all and not any(map(_has_moved, module.trainer.optimizers)):
                symmetry.match_()
        self.symmetry = symmetry
        self._findings.say(
            network=self._network_in_words(module),
            input=arguments.in_words(),
            fields=symmetry.fields_in_words(),
            weights=f"of which {100 * symmetry.report().free:.0f} % are free",
            unused=", ".join(symmetry.unused[:8]) + (", ..." if len(symmetry.unused) > 8 else ""),
        )

    def _schedule_for(self, trainer: Trainer) -> WeightSchedule | None:
        if callable(self.strength):
            return self.strength
        if self.strength is not None:
            return partial(_constant, float(self.strength))
        if self.mode == "project":
            return None
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                "Expected to know how many steps the training has, to be merged by 80 % of them, but it has no end: "
                "set `max_epochs` or `max_steps`, or give `strength=`, WeightRamp(0.0, 1.0, steps=...) for instance."
            )
        return WeightRamp(0.0, 1.0, steps=max(1, int(_MERGED_BY * steps)))

    # The steps --------------------------------------------------------------------------------------------------------

    @property
    def _is_invariant(self) -> bool:
        """Whether the weights are invariant at present, but for rounding."""
        return self._schedule is None or self._present == 1.0

    def _owned(self, optimizer: Optimizer) -> list[nn.Parameter]:
        if self.symmetry is None:
            return []
        members = {id(each) for group in optimizer.param_groups for each in group["params"]}
        return [each for each in self.symmetry.parameters() if id(each) in members]

    def _project_gradients(self, optimizer: Optimizer) -> None:
        if self._schedule is None and self.symmetry is not None:
            with errors_of(_NAME):
                self.symmetry.project_gradients_(self._owned(optimizer))

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._project_once(optimizer)
            return None

        def run() -> Any:
            output = closure()
            self._project_once(optimizer)
            return output

        return args[:1], {**kwargs, "closure": run}

    def _project_once(self, optimizer: Optimizer) -> None:
        """Projects gradients that came by another way than Lightning's."""
        if id(optimizer) in self._projected:
            self._projected.discard(id(optimizer))
        else:
            self._project_gradients(optimizer)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        owned = self._owned(optimizer)
        if not owned or self.symmetry is None:
            return
        self._clock = self._clock or optimizer
        self._steps += self._clock is optimizer
        if self._schedule is None:
            self._present = 1.0
            return
        strength: Any = self._schedule(self._steps)
        with errors_of(_NAME):
            self._present = float(strength)
            self.symmetry.merge_(self._present, owned)

    def _project(self) -> None:
        """Takes off what rounding has done to invariant weights."""
        if self.symmetry is None or not self._is_invariant:
            return
        asymmetry = self.symmetry.asymmetry()
        if self._schedule is None and asymmetry > max(_DRIFT, self._asymmetry):
            self._warn_of(
                f"the optimiser has taken the weights {asymmetry:.1e} of their norm away from invariant ones, more "
                "than rounding does: it does not treat all entries alike. They are projected before each validation "
                "and at the end; strength=1.0 does so after each step."
            )
        self._asymmetry = max(self._asymmetry, asymmetry)
        self.symmetry.project_()


class _Keeper(Injector):
    """Looks at the network's first call of a training, just before it is made."""

    name = _NAME
    steps = ("training_step",)

    def __init__(self, callback: InvariantWeights) -> None:
        self.callback = callback
        self._stack = ExitStack()
        self._seen: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def before_step(self, module: LightningModule, args: tuple[Any, ...]) -> tuple[Any, ...]:
        callback = self.callback
        if not callback._active or callback._looked:
            return args
        if is_compiled(module):  # no call can be seen
            located = locate_in_batch(args[0] if args else None, callback.input, callback.action)
            if callback.symmetry is None:
                callback._begin(module, Arguments.positional(located.inputs).joined(callback.action))
            callback._looked = True
            return args
        network = callback._network_of(module)

        def look(original: Callable[..., Any], whole: bool, *given: Any, **named: Any) -> Any:
            if self._seen is None:
                self._seen = (given, named)  # what is run to find the symmetry is seen too
                if callback.symmetry is None:
                    with errors_of(_NAME):
                        callback._begin(module, self._arguments(network, given, named))
            return original(*given, **named)

        self._stack.enter_context(intercepted(network, look))
        return args

    def after_step(self, module: LightningModule, args: tuple[Any, ...], output: Any, log: CallLog | None) -> Any:
        callback = self.callback
        if callback._active and callback.symmetry is None:
            if output is None and module.automatic_optimization:  # a batch that is skipped
                return output
            raise ValueError(f"Expected {callback._without_call(module)}")
        if self._seen is not None:
            callback._call = CallOfBatch.found(args[0] if args else None, *self._seen)
            self._seen = None
            callback._looked = True
        return output

    def leave_step(self, module: LightningModule) -> None:
        self._stack.close()
        self._seen = None

    def _arguments(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        action = self.callback.action
        arguments = locate_in_call(args, kwargs, self.callback.input, action, positional_names(network))
        return arguments.joined(action)


def _constant(value: float, step: int) -> float:
    return value


def _refuse_shards(trainer: Trainer) -> None:
    names = {each.__name__ for each in type(trainer.strategy).__mro__}
    if is_sharded(trainer) or any("DeepSpeed" in name for name in names):
        raise ValueError(
            f"Expected parameters that each process has as a whole but got {type(trainer.strategy).__name__}: the "
            "entries that a group exchanges lie in the shards of several processes. Use DDP."
        )


def _refuse_frozen(symmetry: WeightSymmetry) -> None:
    frozen = [name for name, parameter in symmetry.named_parameters() if not parameter.requires_grad]
    moved = [name for name in frozen if symmetry.asymmetry_of(name) > _DRIFT]
    if moved:
        listed = ", ".join(repr(name) for name in moved[:4]) + (", ..." if len(moved) > 4 else "")
        raise ValueError(
            f"Expected frozen parameters to be invariant but {listed} are not, and are not to be changed: train them "
            "too (mode='merge' keeps what a trained network has learned), or make them invariant before they are "
            "frozen, with `symmetrize(...).project_()`."
        )


def _project_states(symmetry: WeightSymmetry, optimizers: list[Optimizer]) -> None:
    """Makes the optimisers' states invariant: those of a training that was not."""
    for name, parameter in symmetry.named_parameters():
        for optimizer in optimizers:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
                    with torch.no_grad():
                        value.copy_(symmetry.mean_of(name, value))


def _has_moved(optimizer: Optimizer) -> bool:
    """Whether it has taken a step: LBFGS has counters before its first closure has run."""
    return any(isinstance(value, Tensor) for state in optimizer.state.values() for value in state.values())
