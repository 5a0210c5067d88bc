"""Weights that the optimiser keeps invariant: the network stays an ordinary one."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
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
from lightning_invariance.callbacks._base import NetworkCallback, is_sharded, positional_names, without_logging
from lightning_invariance.callbacks._calls import CallLog
from lightning_invariance.callbacks._injection import Injector, is_compiled
from lightning_invariance.callbacks._intercept import intercepted
from lightning_invariance.callbacks._later_calls import LaterCalls, call_from, outline_of
from lightning_invariance.callbacks._schedule import WeightRamp, WeightSchedule
from lightning_invariance.callbacks._statistics import CallOfBatch, estimate_statistics
from lightning_invariance.symmetry._group import refuse_drawn
from lightning_invariance.symmetry._weights import (
    WeightSymmetry,
    calls_of,
    check_strength,
    in_list,
    symmetry_of,
)

_NAME = "InvariantWeights"

#: By which share of the steps a merge is complete.
_MERGED_BY = 0.8

#: How far weights may be from the invariant ones that are called so.
_DRIFT = 1e-3


class InvariantWeights(NetworkCallback):
    r"""Keeps the weights of an ordinary network invariant to a group, so that the network is exactly invariant.

    Hidden channels are given the regular representation, or stay where nothing tells poses apart, as under shifts. Then
    the group acts on every weight such that :math:`f_{gw}(gx) = f_w(x)`, and weights that stay, :math:`w = P w` with
    the mean over the group

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
    double precision, on the step's own batch. A layer that stands in the way is named, with what to change. Branches
    of the network that a later step is the first to go through are found then, inputs of other sizes are verified when
    they come (the first 16 of them), and so is the network as it has become, before each validation and at the end. No
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
        example: what the network is called with, or a list of such calls, as for `symmetrize`, if it is not to be taken
            from the first step.
        tolerance: how far :math:`f(gx)` and :math:`f(x)` may be apart in the first step, relative to the largest
            output.
        prefix: put before the names that are logged, to tell two of these callbacks apart.

    Attributes:
        symmetry: the `WeightSymmetry`, once training has begun; its ``report()`` is a table of the weights.

    Raises:
        ValueError: if an argument has a wrong type or value, or parameters are sharded (FSDP, DeepSpeed); in the first
            step (or the first one that goes through a branch), if a layer stands in the way, or frozen weights are not
            invariant.

    Warns:
        UserWarning: if layers are so narrow that few fields are left, the network is not invariant for inputs of
            another size, something besides its weights makes it so no more (a statistic of your own, say), or training
            ends before a merge is complete.

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
        self._motion = OutputMotion(output_action, action)
        self._forget()

    @property
    def symmetry(self) -> WeightSymmetry | None:
        """The symmetry of the weights, once training has begun."""
        return None if self._later is None else self._later.symmetry

    def _forget(self) -> None:
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
        self._calls: list[CallOfBatch] | None = None  # how a step calls the network; None if that is not known
        self._later: LaterCalls | None = None
        self._agreed = False  # whether all processes have found the same weights in their first step
        self._outlines: list[dict[str, Any]] = []  # of the calls of a training that is resumed
        self._known: set[str] | None = None  # the parameters that it has begun with
        self._norms: list[nn.Module] = []
        self._ramp = 0  # after how many steps a merge by default is complete
        self._began: tuple[int, int] | None = None  # how far the training was when that merge began
        self._broken = False  # whether it has been said that the network is not invariant
        self._findings.forget()

    def __getstate__(self) -> dict[str, Any]:
        # A copy is for another training; the network that this one has been of does not go along.
        run = ("_undo", "_clock", "_projected", "_calls", "_schedule", "_later", "_norms")
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
            "ramp": self._ramp,
            "began": None if self._began is None else list(self._began),
            **self._found(),
        }

    def _found(self) -> dict[str, Any]:
        """Which weights are kept invariant, and by which calls they were found: their sizes, not what was in them."""
        if self._later is None:
            return {"known": None if self._known is None else sorted(self._known), "calls": self._outlines}
        symmetry, late = self._later.symmetry, {id(each) for each in self._later.late}
        known = sorted(name for name, each in symmetry.named_parameters() if id(each) not in late)
        outlines = [outline_of(call) for call in symmetry.calls]
        return {"known": known, "calls": [each for each in outlines if each is not None]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a training was interrupted."""
        self._started = bool(state_dict["started"])
        self._steps = int(state_dict["steps"])
        self._batches = int(state_dict["batches"])
        self._present = float(state_dict["strength"])
        self._ramp = int(state_dict.get("ramp", 0))
        began, known = state_dict.get("began"), state_dict.get("known")
        self._began = None if began is None else (int(began[0]), int(began[1]))
        self._known = None if known is None else set(known)
        self._outlines = list(state_dict.get("calls", []))

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
            self._schedule = self._schedule_for(trainer, pl_module)
            if self.example is not None:
                network = self._network_of(pl_module)
                self._begin(pl_module, calls_of(self.example, self.input, self.action, network))
        for optimizer in trainer.optimizers:
            before = optimizer.register_step_pre_hook(partial(self._before_step, trainer))
            after = optimizer.register_step_post_hook(self._after_step)
            self._undo += [before.remove, after.remove]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        optimizer = getattr(optimizer, "optimizer", optimizer)
        self._project_gradients(trainer, optimizer)  # before Lightning clips them
        self._projected.add(id(optimizer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        if self.symmetry is not None and self._is_invariant:
            self.symmetry.project_statistics_()  # a checkpoint may be written next

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self._active:  # not in the sanity check
            self._project(trainer)
            self._verify(pl_module)

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
        self._project(trainer)
        # Over no more batches than have trained: a fit may have been short.
        with without_logging(pl_module):
            said = estimate_statistics(
                trainer, pl_module, self._network_of(pl_module), self.symmetry, self._calls, self._batches
            )
        if said:
            rank_zero_info(f"{_NAME}: {said}.")
        self._verify(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Weight averaging may have put in other weights meanwhile, of a time before the merge was complete.
        self._project(trainer)

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

    def _begin(self, module: LightningModule, calls: Sequence[Arguments]) -> None:
        """Finds how the group acts, and starts from invariant weights where these are wanted."""
        network = self._network_of(module)
        reader = OutputReader(self.logits, self._motion.names)
        with without_logging(module):
            symmetry = symmetry_of(network, self.action, calls, self._motion, reader, self.tolerance)
            for outline in self._outlines if symmetry.unused else []:  # of a training that is resumed
                with suppress(ValueError, RuntimeError):
                    symmetry = symmetry.extended(call_from(outline, self.action, calls[0].inputs[0].device))
        if symmetry.is_identity and not symmetry.unused:
            raise ValueError(
                f"Expected {self._network_in_words(module)} to have weights that {self.action!r} moves but it does "
                "what is asked whatever they are: leave InvariantWeights out."
            )
        _refuse_frozen(symmetry)
        self._later = LaterCalls(symmetry, calls, partial(self._arguments, network), _refuse_frozen, self._warn_of)
        self._norms = [each for each in network.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
        if not self._started:
            self._started = True
            if self.mode == "project":
                symmetry.project_(keep_norms=True)
                _project_states(symmetry, module.trainer.optimizers)
            elif symmetry.sees_all and not any(map(_has_moved, module.trainer.optimizers)):
                symmetry.match_()
        elif self._known is not None:
            self._later.late += [each for name, each in symmetry.named_parameters() if name not in self._known]
        unused = symmetry.unused
        self._findings.say(
            network=self._network_in_words(module),
            input=calls[0].in_words(),
            fields=symmetry.fields_in_words(),
            weights=f"of which {100 * symmetry.report().free:.0f} % are free",
            unused=", ".join(unused[:8]) + (", ..." if len(unused) > 8 else ""),
            outputs="" if symmetry.sees_all_outputs else "of which others are left as they are",
        )

    def _schedule_for(self, trainer: Trainer, module: LightningModule) -> WeightSchedule | None:
        if callable(self.strength):
            return self.strength
        if self.strength is not None:
            return partial(_constant, float(self.strength))
        if self.mode == "project":
            return None
        whole = trainer.estimated_stepping_batches
        if not 1 <= whole < float("inf"):  # -1 where a loader has no length
            raise ValueError(
                "Expected to know how many steps the training has, to be merged by 80 % of them, but it has no end: "
                "set `max_epochs` or `max_steps`, or give `strength=`, WeightRamp(0.0, 1.0, steps=...) for instance."
            )
        if not module.automatic_optimization:
            self._began = progress_of(trainer) if self._began is None else self._began
            return _RampOverBatches(trainer, self._began)
        if not self._ramp:  # of the steps that are left, where the trainer has taken some without this callback
            self._ramp = max(1, int(_MERGED_BY * (whole - trainer.global_step)))
        return WeightRamp(0.0, 1.0, steps=self._ramp)

    # The calls --------------------------------------------------------------------------------------------------------

    def _arguments(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        arguments = locate_in_call(args, kwargs, self.input, self.action, positional_names(network))
        return arguments.joined(self.action)

    def _start_late(self, trainer: Trainer) -> None:
        """Lets a branch that a step was the first to use begin with invariant weights; not before its backward."""
        if self._later is None:
            return
        late, self._later.late = self._later.late, []
        if late and self.mode == "project":
            self._later.symmetry.project_(keep_norms=True, among=late)
            _project_states(self._later.symmetry, trainer.optimizers)

    def _agree(self, trainer: Trainer) -> None:
        """Raises a `ValueError` where processes have found other weights than others: theirs would grow apart."""
        if self._later is None or trainer.world_size == 1:
            return
        # All processes come to the same answer here, as they have agreed in the step before.
        if self._agreed and not (self._later.has_unused or self._later.has_learned):
            return
        self._agreed, self._later.has_learned = True, False
        names = ",".join(sorted(name for name, _ in self._later.symmetry.named_parameters()))
        own = torch.tensor([zlib.crc32(names.encode())], device=trainer.strategy.root_device)
        largest = trainer.strategy.reduce(torch.cat([own, -own]), reduce_op="max")
        if bool(largest[0] != -largest[1]):
            raise ValueError(
                f"{_NAME}: expected all processes to go through the same parts of the network in the step that is the "
                "first to use them, but some use parameters that others do not: give a list of calls that use all "
                "weights as `example=`."
            )

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

    def _project_gradients(self, trainer: Trainer, optimizer: Optimizer) -> None:
        self._agree(trainer)
        self._start_late(trainer)
        if self._schedule is None and self.symmetry is not None:
            with errors_of(_NAME):
                self.symmetry.project_gradients_(self._owned(optimizer))

    def _before_step(
        self, trainer: Trainer, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._project_once(trainer, optimizer)
            return None

        def run() -> Any:
            output = closure()
            self._project_once(trainer, optimizer)
            return output

        return args[:1], {**kwargs, "closure": run}

    def _project_once(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Projects gradients that came by another way than Lightning's."""
        if id(optimizer) in self._projected:
            self._projected.discard(id(optimizer))
        else:
            self._project_gradients(trainer, optimizer)

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

    def _verify(self, module: LightningModule) -> None:
        """Says so once where the network is not invariant, though its weights are."""
        if self._later is None or not self._is_invariant or self._broken:
            return
        broken = self._later.broken(module)
        if broken is not None:
            self._broken = True
            self._warn_of(
                f"the network is not invariant under {self.action!r} any more, with weights that are: {broken}. "
                "Something besides its parameters and the running statistics of its normalisations has changed in "
                "training (a buffer that the network writes to, say), and is not the same in all poses."
            )

    def _project(self, trainer: Trainer) -> None:
        """Takes off what rounding has done to invariant weights."""
        self._start_late(trainer)
        if self.symmetry is None or not self._is_invariant:
            return
        asymmetry = self.symmetry.asymmetry()
        if self._schedule is None and asymmetry > max(_DRIFT, self._asymmetry):
            self._warn_of(
                f"the optimiser has taken the weights {asymmetry:.1e} of their norm away from invariant ones, more "
                "than rounding does: it does not treat all entries alike, or something else writes to them. They are "
                "projected before each validation and at the end; strength=1.0 does so after each step."
            )
        self._asymmetry = max(self._asymmetry, asymmetry)
        self.symmetry.project_()


class _Keeper(Injector):
    """Looks at the network's calls: at the first one of a training just before it is made, at the others after."""

    name = _NAME
    steps = ("training_step", "validation_step")

    def __init__(self, callback: InvariantWeights) -> None:
        self.callback = callback
        self._stack = ExitStack()
        self._seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._running = False

    def before_step(self, module: LightningModule, args: tuple[Any, ...]) -> tuple[Any, ...]:
        callback = self.callback
        if not callback._active:
            return args
        training = bool(module.trainer.training)
        if is_compiled(module):  # no call can be seen
            if callback.symmetry is None and training:
                located = locate_in_batch(args[0] if args else None, callback.input, callback.action)
                callback._begin(module, [Arguments.positional(located.inputs).joined(callback.action)])
            callback._looked = True
            return args
        if callback.symmetry is None and not training:
            return args
        network = callback._network_of(module)

        def look(original: Callable[..., Any], whole: bool, *given: Any, **named: Any) -> Any:
            # What is run to find the symmetry is seen too, and so is what gradient checkpointing repeats.
            if self._running or torch._C._current_graph_task_id() != -1:
                return original(*given, **named)
            self._running = True
            try:
                if callback.symmetry is None:
                    with errors_of(_NAME):
                        callback._begin(module, [callback._arguments(network, given, named)])
                # A call whose normalisations are in eval mode is none that their statistics are of.
                if training and any(norm.training for norm in callback._norms):
                    self._seen.append((given, named))
                assert callback._later is not None
                start = callback._later.start_of_call(module.device)
                output = original(*given, **named)
                callback._later.see(module, given, named, output, start)
                return output
            finally:
                self._running = False

        self._stack.enter_context(intercepted(network, look))
        return args

    def after_step(self, module: LightningModule, args: tuple[Any, ...], output: Any, log: CallLog | None) -> Any:
        callback = self.callback
        if not callback._active or not module.trainer.training:
            return output
        if callback.symmetry is None:
            if output is None and module.automatic_optimization:  # a batch that is skipped
                return output
            raise ValueError(f"Expected {callback._without_call(module)}")
        if self._seen:
            made = [CallOfBatch.found(args[0] if args else None, *each) for each in self._seen]
            found = [each for each in made if each is not None]
            calls = found if len(found) == len(made) else None
            if not callback._looked:
                callback._calls = calls
            elif not _is_same(calls, callback._calls):  # steps differ
                callback._calls = None
            self._seen = []
            callback._looked = True
        return output

    def leave_step(self, module: LightningModule) -> None:
        self._stack.close()
        self._seen = []


def _is_same(made: Any, before: Any) -> bool:
    try:
        return bool(made == before)
    except Exception:  # arguments of the user's own, which may not like to be compared
        return False


class _RampOverBatches:
    """The ramp of a merge under manual optimisation, where optimisers may step in some batches, or several in one.

    It goes by the batches, or by the optimisers' steps if it is these that end the training.

    Args:
        trainer: whose training it is.
        began: how many batches and steps were over when the ramp began.
    """

    def __init__(self, trainer: Trainer, began: tuple[int, int]) -> None:
        self._trainer = trainer
        self._began = began
        whole = (trainer.num_training_batches * (trainer.max_epochs or -1), trainer.max_steps)
        self._ramps = [
            WeightRamp(0.0, 1.0, steps=max(1, int(_MERGED_BY * (all_of_them - before))))
            if 0 < all_of_them < float("inf")
            else None
            for all_of_them, before in zip(whole, began, strict=True)
        ]

    def __call__(self, step: int) -> float:
        batches, steps = progress_of(self._trainer)
        done = (batches, steps + 1)  # this step is not counted yet, its batch is
        return max(
            ramp(now - before)
            for ramp, now, before in zip(self._ramps, done, self._began, strict=True)
            if ramp is not None
        )


def progress_of(trainer: Trainer) -> tuple[int, int]:
    """How many batches of a training have begun, and how many steps of its optimisers are over."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready, trainer.global_step


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
        raise ValueError(
            f"Expected frozen parameters to be invariant but {in_list(moved)} are not, and are not to be changed: "
            "train them too (mode='merge' keeps what a trained network has learned), or make them invariant before "
            "they are frozen, with `symmetrize(...).project_()`."
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
