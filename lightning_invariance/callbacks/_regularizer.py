"""The invariance error, added to the loss: the paper's IR."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_invariance._checks import check_choice, check_count, check_seed, is_number
from lightning_invariance.actions import Action
from lightning_invariance.actions._base import check_action
from lightning_invariance.callbacks._base import (
    InjectingCallback,
    arguments_and_logits,
    check_network_name,
    check_spec,
    is_sharded,
    step_generator,
    suffix_among_peers,
)
from lightning_invariance.callbacks._injection import (
    Injector,
    NetworkCall,
    is_compiled,
    is_compiled_network,
)
from lightning_invariance.callbacks._locate import resolve_network
from lightning_invariance.callbacks._orbit_of_call import OrbitOfCall
from lightning_invariance.callbacks._penalties import PENALTIES, Penalty, PenaltyName
from lightning_invariance.callbacks._schedule import WeightSchedule

_NAME = "InvarianceRegularizer"


class InvarianceRegularizer(InjectingCallback):
    r"""Adds the invariance error to the training loss of a module that knows nothing of it.

    .. math::
        \min_\theta \; L(D) + \nu \, I_f(D, G)

    Equation 4 of "On genuine invariance learning without weight-tying" (Moskalev et al., 2023), with :math:`I_f` the
    mean over the batch and over the elements but the identity. Gradients flow through :math:`f(x)` and :math:`f(gx)`
    both (the paper leaves it open). :math:`f(x)` is taken from the step's own call of the network, so a step costs one
    more forward and backward for each element.

    The term is part of the user's loss: gradient accumulation, clipping, mixed precision and distributed training
    treat it as they treat the rest. With manual optimisation it is added to the loss of the first ``manual_backward``
    that follows the network's call. The extra forwards leave no trace: running statistics and random streams stay as
    the step alone would leave them, and dropout masks are the same for all elements. A weight of 0 skips the term.

    Logs the epoch's means as ``train/invariance_penalty`` (over samples) and ``train/invariance_weight`` (over steps);
    a second regularizer puts ``/1`` behind them.

    Args:
        action: the group.
        weight: :math:`\nu`, a number of at least 0, or a schedule: a function from the number of optimiser steps taken
            so far to the weight, such as `WeightRamp`.
        penalty: :math:`I_f`: ``"logit"`` (equation 2), ``"normalized_logit"`` (section 4.4), ``"distribution"``
            (equation 1), ``"jensen_shannon"``, ``"saliency"`` (one minus equation 3, with gradients of the logit of the
            class predicted on x as maps: second derivatives, and f(x) is run again), or a function from ``logits``
            ``(B, ...)`` and ``orbit_logits`` ``(G, B, ...)`` to a scalar.
        elements: how many elements, drawn anew for each batch without repetition from all but the identity, to use in a
            step; all of them if None. The mean over the drawn ones is an unbiased estimate of the mean over all, except
            for ``"jensen_shannon"``, which therefore takes all.
        network: the name of the submodule whose output are the logits; the module's own forward by default.
        input: where the network's arguments hold the tensor that the group acts on: a position, a keyword or a key; by
            default the first tensor, or the only floating-point one of a mapping.
        backward_call: with manual optimisation, which call of ``manual_backward`` in a step carries the term, counted
            from 0; the first one after the network's call if None.
        max_batch: the most samples in one extra forward (an element's whole batch where samples depend on each other or
            on random numbers). What such a forward keeps for the backward is then not kept but computed again, so that
            memory does not grow with the group, but for the moved inputs, and a step takes one more forward for each
            element. Not for ``"saliency"``.
        seed: of the draws of elements; torch's initial seed (what ``seed_everything`` set) if None.

    Raises:
        ValueError: if an argument is none of what is expected; in the first step, if the group cannot act on the
            input, or network, input or logits cannot be found.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_invariance import C4, InvarianceRegularizer, WeightRamp
        >>> regularizer = InvarianceRegularizer(C4(), weight=WeightRamp(0.0, 1.0, steps=1000))
        >>> trainer = Trainer(callbacks=[regularizer], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        action: Action,
        weight: float | WeightSchedule = 1.0,
        penalty: PenaltyName | Penalty = "logit",
        elements: int | None = None,
        network: str | None = None,
        *,
        input: int | str | None = None,
        backward_call: int | None = None,
        max_batch: int | None = None,
        seed: int | None = None,
    ) -> None:
        check_action(action)
        check_network_name(network)
        check_spec("input", input)
        if not callable(weight):
            _check_weight(weight)
        if not callable(penalty):
            check_choice("penalty", penalty, tuple(PENALTIES))
        if elements is not None:
            check_count("elements", elements)
            if elements >= len(action):
                raise ValueError(
                    f"Expected `elements` to be at most {len(action) - 1}, the elements of {action!r} without the "
                    f"identity, but got {elements}."
                )
            if penalty == "jensen_shannon":
                raise ValueError(
                    "Expected `elements` to be None with penalty='jensen_shannon', which part of an orbit does not "
                    f"estimate, but got {elements}."
                )
        if backward_call is not None:
            check_count("backward_call", backward_call, minimum=0)
        if max_batch is not None:
            check_count("max_batch", max_batch)
        if seed is not None:
            check_seed("seed", seed)
        super().__init__(_PenaltyAdder(self))
        self.action = action
        self.weight = weight
        self.penalty = penalty
        self.elements = elements
        self.network = network
        self.input = input
        self.backward_call = backward_call
        self.max_batch = max_batch
        self.seed = seed
        self._trainer: Trainer | None = None
        self._batch_idx = 0
        self._logged: dict[str, Tensor | float] = {}
        self._samples = 1
        self._warned = False
        self._verified = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        network = resolve_network(pl_module, self.network, _NAME)  # a wrong name fails before any work is done
        if stage == "fit":
            self._refuse_what_cannot_work(trainer, pl_module, network)
        self._trainer = trainer
        self._verified = False
        super().setup(trainer, pl_module, stage)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._trainer = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._trainer = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch_idx = batch_idx
        self._logged = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._logged and not trainer.barebones:
            several, suffix = trainer.world_size > 1, suffix_among_peers(trainer, self)
            for name, value in self._logged.items():
                # The weight is a mean over steps; the penalty one over samples.
                size = self._samples if name == "train/invariance_penalty" else 1
                pl_module.log(
                    f"{name}{suffix}", value, on_step=False, on_epoch=True, batch_size=size, sync_dist=several
                )

    def _refuse_what_cannot_work(self, trainer: Trainer, module: LightningModule, network: nn.Module) -> None:
        if is_compiled(module) and not module.automatic_optimization:
            raise ValueError(
                f"{_NAME}: expected a module compiled as a whole to use automatic optimisation: calls of "
                "`manual_backward` in a compiled step cannot carry the term. Compile the network alone."
            )
        if self.backward_call is not None and module.automatic_optimization:
            raise ValueError(
                f"{_NAME}: expected `backward_call` to be None with automatic optimisation, which has one backward, "
                f"but got {self.backward_call}."
            )
        if self.penalty != "saliency":
            return
        if is_compiled(module) or any(map(is_compiled_network, network.modules())):
            raise ValueError(
                f"{_NAME}: expected a network that is not compiled for penalty='saliency': compiled graphs have no "
                "second derivatives."
            )
        if is_sharded(trainer):
            raise ValueError(
                f"{_NAME}: expected no sharded parameters for penalty='saliency' but got "
                f"{type(trainer.strategy).__name__}, under which second derivatives are wrong or fail. Use DDP."
            )

    # The term ---------------------------------------------------------------------------------------------------------

    def _present_weight(self) -> float:
        if not callable(self.weight):
            return float(self.weight)
        assert self._trainer is not None
        weight: Any = self.weight(self._trainer.global_step)
        return _check_weight(weight.item() if isinstance(weight, Tensor) and weight.numel() == 1 else weight)

    def _warn_no_backward(self) -> None:
        if not self._warned:
            self._warned = True
            rank_zero_warn(
                f"{_NAME}: with manual optimisation the term is added in `self.manual_backward(loss)`, but the "
                "training step did not call it "
                + ("after the network's forward" if self.backward_call is None else f"{self.backward_call + 1} times")
                + ": nothing was added."
            )

    def _drawn_elements(self) -> list[int]:
        others = len(self.action) - 1
        if self.elements is None:
            return list(range(1, others + 1))
        assert self._trainer is not None
        generator = step_generator("elements", self._trainer, self, self.seed, self._batch_idx)
        return [1 + int(index) for index in torch.randperm(others, generator=generator)[: self.elements]]

    def _term(self, module: LightningModule, args: tuple[Any, ...], call: NetworkCall | None) -> Tensor | None:
        """The weighted penalty, or None where there is none to add."""
        assert self._trainer is not None
        if self._trainer.fit_loop._skip_backward:  # weight averaging runs a last epoch that trains nothing
            return None
        weight = self._present_weight()
        self._logged = {"train/invariance_weight": weight}
        if weight == 0:
            return None
        logits, orbit_logits = self._outputs(module, args, call)
        penalty_of = self.penalty if callable(self.penalty) else PENALTIES[self.penalty]
        penalty = penalty_of(logits, orbit_logits)
        if not isinstance(penalty, Tensor) or penalty.ndim != 0:
            got = f"shape {tuple(penalty.shape)}" if isinstance(penalty, Tensor) else type(penalty).__name__
            raise ValueError(f"{_NAME}: expected `penalty` to give a scalar tensor but got {got}.")
        self._logged["train/invariance_penalty"] = penalty.detach()
        self._samples = len(logits)
        return weight * penalty

    def _outputs(
        self, module: LightningModule, args: tuple[Any, ...], call: NetworkCall | None
    ) -> tuple[Tensor, Tensor]:
        """f(x) ``(B, ...)`` and f(gx) ``(G, B, ...)``, or their saliency maps."""
        batch = args[0] if args else None
        arguments, base_logits = arguments_and_logits(_NAME, module, self.network, self.input, batch, call)
        if not self._verified:
            self.action.verify(arguments.x)
            self._verified = True
        network = resolve_network(module, self.network, _NAME)
        orbit = OrbitOfCall(network, arguments, call, self.action, _NAME, self.max_batch)
        run = orbit.gradient_maps if self.penalty == "saliency" else orbit.logits
        return run(self._drawn_elements(), base_logits)


class _PenaltyAdder(Injector):
    steps = ("training_step",)

    def __init__(self, callback: InvarianceRegularizer) -> None:
        self._callback = callback
        self._added = False
        self._backward_calls = 0

    def watched(self, module: LightningModule) -> nn.Module | None:
        if is_compiled(module):
            return None
        return resolve_network(module, self._callback.network, _NAME)

    def before_step(self, module: LightningModule, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self._added = False
        self._backward_calls = 0
        return args

    def before_backward(self, module: LightningModule, loss: Tensor, call: NetworkCall | None) -> Tensor:
        place, self._backward_calls = self._backward_calls, self._backward_calls + 1
        chosen = self._callback.backward_call
        if self._added or (call is None if chosen is None else place != chosen):
            return loss
        self._added = True
        term = self._callback._term(module, (), call)
        return loss if term is None else loss + term

    def after_step(self, module: LightningModule, args: tuple[Any, ...], output: Any, call: NetworkCall | None) -> Any:
        if not module.automatic_optimization:
            if not self._added:
                self._callback._warn_no_backward()
            return output
        if output is None:  # the step asks for the batch to be skipped
            return None
        term = self._callback._term(module, args, call)
        if term is None:
            return output
        if isinstance(output, Tensor):
            return output + term
        changed = dict(output)
        changed["loss"] = output["loss"] + term
        return changed


def _check_weight(weight: Any) -> float:
    if not is_number(weight) or not 0 <= weight < float("inf"):
        raise ValueError(f"{_NAME}: expected `weight` to be a finite number of at least 0 but got {weight!r}.")
    return float(weight)
