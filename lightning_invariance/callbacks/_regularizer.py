"""The invariance error, added to the loss: the paper's IR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_invariance._arguments import Arguments
from lightning_invariance._checks import check_count, check_seed, is_number
from lightning_invariance._containers import describe_value
from lightning_invariance._locate import (
    InputSpec,
    LogitsOf,
    OutputReader,
    what_stays,
)
from lightning_invariance._messages import errors_of
from lightning_invariance._output_action import OutputActions, OutputMotion, split_outputs
from lightning_invariance.actions import Action, Flow
from lightning_invariance.actions._flow import as_action
from lightning_invariance.callbacks._base import NetworkCallback, is_sharded, step_generator
from lightning_invariance.callbacks._calls import (
    CallLog,
    CallSpec,
    NetworkCall,
    TrainingLog,
    chosen_calls,
    reached,
)
from lightning_invariance.callbacks._injection import Injector, is_compiled, is_compiled_network
from lightning_invariance.callbacks._orbit_of_call import OrbitOfCall
from lightning_invariance.callbacks._owners import OwnerWatch
from lightning_invariance.callbacks._penalties import Penalty, PenaltyName, as_penalty, lie_penalty
from lightning_invariance.callbacks._schedule import WeightSchedule
from lightning_invariance.lie import DirectionalDerivative, OutputFlow, as_output_flow

_NAME = "InvarianceRegularizer"


class InvarianceRegularizer(NetworkCallback):
    r"""Adds the invariance error to the training loss of a module that knows nothing of it.

    .. math::
        \min_\theta \; L(D) + \nu \, I_f(D, G)

    Equation 4 of "On genuine invariance learning without weight-tying" (Moskalev et al., 2023), with :math:`I_f` the
    mean over the batch and over the elements but the identity. Gradients flow through :math:`f(x)` and :math:`f(gx)`
    both (the paper leaves it open). :math:`f(x)` is taken from the step's own call of the network, so a step costs one
    more forward and backward for each element.

    The term is part of the user's loss: gradient accumulation, clipping, mixed precision and distributed training
    treat it as they treat the rest. It belongs to the call of the network that the loss depends on (or, where it
    depends on none, to the only one that there is); calls that record no graph of the network's parameters, such as a
    teacher's under ``torch.no_grad()``, do not count. With manual optimisation it goes into the loss of the
    ``manual_backward`` that depends on that call. The extra forwards leave no trace: running statistics and random
    streams stay as the step alone would leave them, and dropout masks are the same for all elements. A weight of 0
    skips the term. The elements of continuous groups and of permutations (`SO3`, `SetPermutations`, ...) are drawn anew
    in every step.

    Of a continuous group that is given as a `Flow` nothing is drawn. The term is the Lie derivative's squared norm,

    .. math::
        I_f = \mathbb{E}_x \sum_k \| L_k f(x) \|^2

    added up over the K generators and over all that the network gives a sample (K times the number of outputs times
    `LieDerivativeError`). A step costs one forward with derivatives and its backward more for each generator, instead
    of one for each of many elements. Of the energy of a set of points under `PointRotationFlow` it is the squared norm
    of the net torque, :math:`\mathbb{E} \| \sum_i r_i \times F_i \|^2`; Orb's "equigrad" is its root times
    :math:`\sqrt{2}`, by sample, where there is no cell.

    Logs the epoch's means as ``train/invariance_penalty`` (over samples) and ``train/invariance_weight`` (over steps),
    and says once, in the first step, which network, call, input and logits it found.

    Args:
        action: the group; or a `Flow`, for Lie derivatives (``flow.sampled()`` for differences).
        weight: :math:`\nu`, a number of at least 0, or a schedule: a function from the number of optimiser steps taken
            so far to the weight, such as `WeightRamp`. The penalty ``"logit"`` adds up over all that the network gives
            a sample, so that for a mask of many places a weight far below 1 is enough; ``"distribution"`` and
            ``"jensen_shannon"`` are means over places.
        penalty: :math:`I_f`: ``"logit"`` (equation 2), ``"normalized_logit"`` (section 4.4), ``"distribution"``
            (equation 1), ``"jensen_shannon"``, ``"saliency"`` (one minus equation 3, with gradients of the logit of the
            class predicted on x as maps: second derivatives, and f(x) is run again), a `Penalty`, or a function from
            ``logits`` ``(B, ...)`` and ``orbit_logits`` ``(|G| - 1, B, ...)`` to a scalar. With a `Flow` ``"logit"``,
            which then is that of the Lie derivative.
        elements_per_step: how many elements, drawn anew for each batch without repetition from all but the identity, to
            use in a step; all of them if None. The mean over the drawn ones is an unbiased estimate of the mean over
            all, except for ``"jensen_shannon"``, which therefore takes all. Of a `Flow`, how many generators; the sum
            over those that are drawn is raised to what it is for all.
        output_action: how the output moves when the input does, so that the network is made equivariant: None, it
            stays; ``"same"``, as the input does, in the same dimensions; an `Action` of as many elements; or a dict of
            these for a network that returns several tensors, by their names, whose penalties are added up. With a
            `Flow`: None, ``"same"``, or a `Flow` of as many generators.
        network: the name of the submodule whose output are the logits; the module's own forward by default.
        input: where the network's arguments hold the tensor that the group acts on: a position, a keyword or a key
            (dots lead further in: ``"0.image"``), or a list of those that one element moves together; by default the
            only tensor that the group can act on.
        logits: a function from the network's output to its logits; by default the output itself, or its ``logits``.
        call: which of several calls of the network in a step (before one backward) is regularised: an index,
            ``"last"``, or ``"all"`` for the mean over the samples of all of them; the only one if None.
        backward_call: with manual optimisation, which call of ``manual_backward`` in a step carries the term, counted
            from 0; the one whose loss depends on a call of the network if None.
        max_batch: the most samples in one extra forward (an element's whole batch where samples depend on each other or
            on random numbers). What such a forward keeps for the backward is then not kept but computed again, so that
            memory does not grow with the group, but for the moved inputs, and a step takes one more forward for each
            element. Not for ``"saliency"`` and Lie derivatives.
        seed: of the draws of elements; torch's initial seed (what ``seed_everything`` set) if None.
        prefix: put before the names that are logged, ``train/<prefix>/invariance_penalty``, to tell two regularizers
            apart.

    Raises:
        ValueError: if an argument has a wrong type or value, or another regularizer logs by the same names; in the
            first step, if the group cannot act on the input, network, input or logits cannot be found, several calls or
            backward calls could be meant, or the term's gradients are zeroed before a step.

    Warns:
        UserWarning: in the first step, if nothing is regularised (the network's calls record no graph, say), or the
            logits have the input's spatial size and move with it.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_invariance import C4, InvarianceRegularizer, WeightRamp
        >>> regularizer = InvarianceRegularizer(C4(), weight=WeightRamp(0.0, 1.0, steps=1000))
        >>> trainer = Trainer(callbacks=[regularizer], logger=False, enable_checkpointing=False)
    """

    _name = _NAME

    def __init__(
        self,
        action: Action | Flow,
        weight: float | WeightSchedule = 1.0,
        penalty: PenaltyName | Penalty | Callable[..., Tensor] = "logit",
        elements_per_step: int | None = None,
        network: str | None = None,
        *,
        output_action: OutputActions | OutputFlow = None,
        input: InputSpec = None,
        logits: LogitsOf | None = None,
        call: CallSpec = None,
        backward_call: int | None = None,
        max_batch: int | None = None,
        seed: int | None = None,
        prefix: str | None = None,
    ) -> None:
        flow = action if isinstance(action, Flow) else None
        self._output_flow: OutputFlow = None
        action = as_action(action)
        if not callable(weight):
            _check_weight(weight)
        chosen = as_penalty(penalty)
        moves: OutputActions = output_action  # type: ignore[assignment]
        if flow is not None:
            self._output_flow = as_output_flow(output_action, flow, "output_action")
            moves = None if output_action is None else "same"
            _check_lie(flow, penalty, elements_per_step, max_batch)
        elif elements_per_step is not None:
            check_count("elements_per_step", elements_per_step)
            if elements_per_step >= len(action):
                raise ValueError(
                    f"Expected `elements_per_step` to be at most {len(action) - 1}, the elements of {action!r} without "
                    f"the identity, but got {elements_per_step}."
                )
            if chosen.needs_whole_orbit:
                raise ValueError(
                    f"Expected `elements_per_step` to be None with penalty={penalty!r}, which part of an orbit does "
                    f"not estimate, but got {elements_per_step}."
                )
        output = OutputMotion(moves, action)
        output.redrawn(0, action.redrawn(0))  # what cannot be drawn anew with the group fails here
        if chosen.is_of_saliency and not output.stays:
            raise ValueError(
                f"Expected `output_action` to be None with penalty={penalty!r}, whose maps explain a class's logit, "
                f"but got {output_action!r}."
            )
        if backward_call is not None:
            check_count("backward_call", backward_call, minimum=0)
        if max_batch is not None:
            check_count("max_batch", max_batch)
        if seed is not None:
            check_seed("seed", seed)
        super().__init__(_PenaltyAdder(self), network=network, input=input, logits=logits, call=call, prefix=prefix)
        self.action = action
        self.flow = flow
        self.weight = weight
        self.penalty = penalty
        self.elements_per_step = elements_per_step
        self.output_action = output_action
        self.backward_call = backward_call
        self.max_batch = max_batch
        self.seed = seed
        self._trainer: Trainer | None = None
        self._penalty_value = chosen
        self._present_action = action
        self._output = self._present_output = output
        self._batch_idx = 0
        self._weight: float | None = None  # of the present step, where there is one
        self._penalties: list[tuple[Tensor, int]] = []  # of the present step, with how many samples each is a mean over
        self._warned = False
        self._verified = False
        self._coupled = False  # whether the network's samples depend on each other
        # Of the present run, where samples depend on each other and where they do not: modes may change in it.
        self._derivatives: dict[bool, DirectionalDerivative] = {}

    def logged_names(self) -> tuple[str, ...]:
        """The names that it logs by, without stage and prefix."""
        return ("invariance_penalty", "invariance_weight")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with errors_of(_NAME):
            network = self._network_of(pl_module)  # a wrong name fails before any work is done
            if stage == "fit":
                self._refuse_what_cannot_work(trainer, pl_module, network)
        self._trainer = trainer
        self._verified = False
        self._coupled = False
        self._derivatives = {}
        self._warned = False
        self._findings.forget()
        self._adder.forget()
        super().setup(trainer, pl_module, stage)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._trainer = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._trainer = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch_idx = batch_idx
        self._weight = None
        self._penalties = []
        if self.action.drawn and self.flow is None:
            generator = step_generator("draws", trainer, self, self.seed, batch_idx)
            seed = int(torch.randint(2**62, (), generator=generator))
            self._present_action = self.action.redrawn(seed)
            self._present_output = self._output.redrawn(seed, self._present_action)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._weight is None or trainer.barebones:
            return
        # The weight is a mean over steps; the penalty one over samples.
        logged: list[tuple[str, Tensor | float, int]] = [("invariance_weight", self._weight, 1)]
        if self._penalties:
            logged.append(("invariance_penalty", *_mean(self._penalties)))
        for name, value, size in logged:
            name = f"train/{self.prefix}/{name}" if self.prefix else f"train/{name}"
            several = trainer.world_size > 1
            pl_module.log(name, value, on_step=False, on_epoch=True, batch_size=size, sync_dist=several)

    def _refuse_what_cannot_work(self, trainer: Trainer, module: LightningModule, network: nn.Module) -> None:
        if is_compiled(module) and not module.automatic_optimization:
            raise ValueError(
                "Expected a module compiled as a whole to use automatic optimisation: calls of "
                "`manual_backward` in a compiled step cannot carry the term. Compile the network alone."
            )
        if self.backward_call is not None and module.automatic_optimization:
            raise ValueError(
                f"Expected `backward_call` to be None with automatic optimisation, which has one backward, "
                f"but got {self.backward_call}."
            )
        if not self._penalty_value.is_of_saliency and self.flow is None:
            return
        which, lack = "penalty='saliency'", "second derivatives"
        if self.flow is not None:
            which, lack = f"the Lie derivatives of {self.flow!r}", "derivatives of derivatives"
        if is_compiled(module) or any(map(is_compiled_network, network.modules())):
            raise ValueError(f"Expected a network that is not compiled for {which}: compiled graphs have no {lack}.")
        if is_sharded(trainer):
            raise ValueError(
                f"Expected no sharded parameters for {which} but got "
                f"{type(trainer.strategy).__name__}, under which {lack} are wrong or fail. Use DDP."
            )

    # The term ---------------------------------------------------------------------------------------------------------

    def _present_weight(self) -> float:
        if not callable(self.weight):
            return float(self.weight)
        assert self._trainer is not None
        weight: Any = self.weight(self._trainer.global_step)
        return _check_weight(weight.item() if isinstance(weight, Tensor) and weight.numel() == 1 else weight)

    def _warn_of_nothing(self, why: str) -> None:
        # Steps that train other networks alone may alternate with those that have a term.
        if not self._warned and not self._verified:
            self._warned = True
            self._warn_of(f"nothing is regularised in this step: {why}")

    def _drawn_elements(self) -> list[int]:
        others = len(self.action) - 1 if self.flow is None else len(self.flow)
        if self.elements_per_step is None:
            return list(range(1, others + 1))
        assert self._trainer is not None
        generator = step_generator("elements", self._trainer, self, self.seed, self._batch_idx)
        return [1 + int(index) for index in torch.randperm(others, generator=generator)[: self.elements_per_step]]

    def _term(self, module: LightningModule, args: tuple[Any, ...], calls: list[NetworkCall | None]) -> Tensor | None:
        """The weighted penalty, the mean over the samples of all calls, or None where there is none to add."""
        assert self._trainer is not None
        if self._trainer.fit_loop._skip_backward:  # weight averaging runs a last epoch that trains nothing
            return None
        weight = self._weight = self._present_weight()
        if weight == 0:
            return None
        elements = self._drawn_elements()
        penalties = [self._penalty(module, args, call, elements) for call in calls]
        self._penalties += [(penalty.detach(), samples) for penalty, samples in penalties]
        return weight * _mean(penalties)[0]

    def _penalty(
        self, module: LightningModule, args: tuple[Any, ...], call: NetworkCall | None, elements: list[int]
    ) -> tuple[Tensor, int]:
        """The penalty of a call, and how many samples it is a mean over."""
        batch = args[0] if args else None
        action = self._present_action
        reader = OutputReader(self.logits, self._output.names)
        arguments, base_logits = self._arguments_and_logits(module, action, batch, call, reader)
        self._check_weights(module, call)
        orbit = OrbitOfCall(
            self._network_of(module),
            arguments,
            call,
            arguments.acting(action),
            self._present_output,
            reader,
            self.max_batch,
            self._coupled,
        )
        if not self._verified:
            orbit.action.verify(arguments.x)
            self._verified = True
            self._say_what_was_found(module, arguments, call, base_logits, reader)
            if base_logits is not None:
                self._coupled = self._is_coupled(module, orbit, base_logits, elements[0])
                orbit = replace(orbit, coupled=self._coupled)
                self._doubt(orbit, base_logits)
        if self.flow is not None:
            if len(arguments.inputs) > 1:
                raise ValueError(
                    f"Expected one input for the Lie derivatives of {self.flow!r} but got {len(arguments.inputs)} that "
                    "move together: name one with `input=`, or regularise with `flow.sampled()`."
                )
            generators = [element - 1 for element in elements]
            alone = orbit.has_independent_samples
            derivative = self._derivatives.setdefault(alone, DirectionalDerivative(alone=alone))
            slopes = orbit.lie_derivatives(self.flow, self._output_flow, generators, derivative)
            return lie_penalty(slopes, len(self.flow)), len(arguments.x)
        of_saliency = self._penalty_value.is_of_saliency
        outputs = (orbit.gradient_maps if of_saliency else orbit.outputs)(elements, base_logits)
        parts = [outputs]
        packing = reader.packed()
        if packing is not None and self._output.names is not None:
            parts = [*split_outputs(outputs, packing, self._output.names).values()]
        penalties = [self._penalty_value.of(part) for part in parts]
        for each in penalties:
            if not isinstance(each, Tensor) or each.ndim != 0:
                raise ValueError(f"Expected `penalty` to give a scalar tensor but got {describe_value(each)}.")
        return (penalties[0] if len(penalties) == 1 else torch.stack(penalties).sum()), len(outputs.logits)

    def _doubt(self, orbit: OrbitOfCall, logits: Tensor) -> None:
        """Warns where the outputs agree better if they move otherwise than was said."""
        of_its_own = isinstance(self.output_action, Flow)  # which elements of the input's do not tell
        if self._output.stays or of_its_own or (self._trainer is not None and is_sharded(self._trainer)):
            return
        said = orbit.doubts(logits)
        if said is not None:
            self._warn_of(said)

    def _say_what_was_found(
        self,
        module: LightningModule,
        arguments: Arguments,
        call: NetworkCall | None,
        logits: Tensor | None,
        reader: OutputReader,
    ) -> None:
        self._findings.say(
            network=self._network_in_words(module),
            call="" if call is None else call.in_words(),
            input=arguments.in_words(),
            logits="that are computed again" if logits is None else reader.in_words(logits),
            output_action="" if self._output.stays else repr(self.output_action),
        )
        staying = logits if self._output.stays else None
        for message in what_stays(self.input, self._present_action, arguments, staying):
            self._warn_of(message)

    def _is_coupled(self, module: LightningModule, orbit: OrbitOfCall, logits: Tensor, element: int) -> bool:
        """Whether elements must not be stacked; warns where f(x), run again, is not what the step's call gave."""
        if self._trainer is not None and is_sharded(self._trainer):
            return False  # all processes would have to find the same
        differs = orbit.differs(logits, element)
        if differs == "alone":
            self._warn_of(
                f"{self._network_in_words(module)} gives another output for the same input when it is "
                "run again after its call in the step: its weights were exchanged for the call, say, or it depends on "
                "a state that is no buffer. What is regularised has this difference in it."
            )
        return differs == "together"

    @property
    def _adder(self) -> _PenaltyAdder:
        assert isinstance(self._injector, _PenaltyAdder)
        return self._injector


class _PenaltyAdder(Injector):
    name = _NAME
    steps = ("training_step",)

    def __init__(self, callback: InvarianceRegularizer) -> None:
        self._callback = callback
        self.watch = OwnerWatch(_NAME)
        self._begin()
        self._first = True  # whether no step has ended yet

    def forget(self) -> None:
        """Before another run."""
        self.watch.forget()
        self._first = True

    def _begin(self) -> None:
        self._backward_calls = 0
        self._carrier: int | None = None  # the backward call that carries the term
        self._done: set[int] = set()  # the calls that have been regularised

    def watched(self, module: LightningModule) -> nn.Module | None:
        if is_compiled(module):
            return None
        return self._callback._network_of(module)

    def log(self) -> CallLog:
        return TrainingLog()

    def before_step(self, module: LightningModule, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self._begin()
        if not module.automatic_optimization:
            network = self._callback._network_of(module)
            self.watch.enter(module.trainer, module, network)
        return args

    def leave_step(self, module: LightningModule) -> None:
        self.watch.leave()

    def before_backward(self, module: LightningModule, loss: Tensor, log: CallLog | None) -> Tensor:
        callback = self._callback
        place, self._backward_calls = self._backward_calls, self._backward_calls + 1
        assert log is not None
        if callback.backward_call not in (None, place) or not isinstance(loss, Tensor):
            return loss
        meant = [index for index in reached(loss, log) if index not in self._done]
        if not meant:
            return loss
        name = callback._network_in_words(module)
        if self._carrier is not None and callback.call != "all":
            raise ValueError(
                f"Expected one call of `manual_backward` in a step whose loss depends on a call of {name} but "
                f"there are several, calls {self._carrier} and {place}: say which carries the term with "
                "`backward_call=`, or call='all' if each of them does."
            )
        hint = "" if callback.backward_call is not None else ", or another backward with `backward_call=`"
        calls = chosen_calls(log, meant, callback.call, name, hint)
        self._carrier = place
        self._done.update(meant)
        term = callback._term(module, (), [*calls])
        if term is None:
            return loss
        self.watch.added()
        return loss + term

    def after_step(self, module: LightningModule, args: tuple[Any, ...], output: Any, log: CallLog | None) -> Any:
        callback = self._callback
        if not module.automatic_optimization:
            if self._carrier is None and log is not None:
                callback._warn_of_nothing(self._why_nothing(module, log))
            return output
        if output is None:  # the step asks for the batch to be skipped
            if self._first:
                callback._warn_of_nothing(
                    "the first training step returned None, so there was no loss to add the term to."
                )
            self._first = False
            return None
        self._first = False
        loss = output if isinstance(output, Tensor) else output["loss"]
        calls: list[NetworkCall | None] = [None]
        if log is not None:
            if not log.inputs and not log.others:
                raise ValueError(f"Expected {callback._without_call(module)}")
            if not log.inputs:
                callback._warn_of_nothing(self._why_nothing(module, log))
                return output
            # Of a network whose output the loss leaves aside, the term is all that trains it.
            meant = reached(loss, log) or list(log.kept)
            name = callback._network_in_words(module)
            calls = [*chosen_calls(log, meant, callback.call, name)]
        term = callback._term(module, args, calls)
        if term is None:
            return output
        if isinstance(output, Tensor):
            return output + term
        changed = dict(output)
        changed["loss"] = loss + term
        return changed

    def _why_nothing(self, module: LightningModule, log: CallLog) -> str:
        callback = self._callback
        name = callback._network_in_words(module)
        if not log.inputs and log.others:
            return (
                f"the step's {log.others} call(s) of {name} record no graph that leads to its parameters (they run "
                "under torch.no_grad() or inside a reentrant checkpoint, or all of its parameters are frozen)."
            )
        if not log.inputs:
            return f"expected {callback._without_call(module)}"
        if not module.automatic_optimization and not self._backward_calls:
            return (
                "with manual optimisation the term is added in `self.manual_backward(loss)`, but the training step did "
                "not call it."
            )
        if callback.backward_call is not None and callback.backward_call >= self._backward_calls:
            return (
                f"expected backward_call={callback.backward_call} to name a call of `manual_backward` in the step, "
                f"counted from 0, but it made {self._backward_calls}."
            )
        which = "" if callback.backward_call is None else f" of backward call {callback.backward_call}"
        frozen = (
            f" in a call that trains it ({log.others} calls record no graph of its parameters)" if log.others else ""
        )
        return f"the loss{which} does not depend on what {name} returned{frozen}."


def _mean(penalties: list[tuple[Tensor, int]]) -> tuple[Tensor, int]:
    """The mean of means, each over so many samples, and how many those are together."""
    if len(penalties) == 1:
        return penalties[0]
    samples = sum(size for _, size in penalties)
    return torch.stack([penalty * (size / samples) for penalty, size in penalties]).sum(), samples


def _check_lie(flow: Flow, penalty: object, elements_per_step: int | None, max_batch: int | None) -> None:
    """Raises a `ValueError` where an option makes no sense for Lie derivatives."""
    if penalty != "logit":
        raise ValueError(
            f"Expected `penalty` to be 'logit' with {flow!r}, whose term is its Lie derivative, but got {penalty!r}: "
            "pass `flow.sampled()` for penalties of differences."
        )
    if max_batch is not None:
        raise ValueError(
            f"Expected `max_batch` to be None with {flow!r}: its derivatives cannot be computed again in the backward, "
            f"but got {max_batch}."
        )
    if elements_per_step is not None:
        check_count("elements_per_step", elements_per_step)
        if elements_per_step > len(flow):
            raise ValueError(
                f"Expected `elements_per_step` to be at most {len(flow)}, the generators of {flow!r}, but got "
                f"{elements_per_step}."
            )


def _check_weight(weight: Any) -> float:
    if not is_number(weight) or not 0 <= weight < float("inf"):
        raise ValueError(f"Expected `weight` to be a finite number of at least 0 but got {weight!r}.")
    return float(weight)
