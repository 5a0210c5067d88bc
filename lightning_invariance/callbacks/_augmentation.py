"""Data augmentation over the group: the paper's DA."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_invariance._checks import check_seed
from lightning_invariance._containers import place_in_words
from lightning_invariance._locate import InputSpec, check_input_spec, locate_in_batch, what_stays
from lightning_invariance.actions import Action
from lightning_invariance.actions._base import check_action
from lightning_invariance.callbacks._base import (
    Findings,
    InjectingCallback,
    step_generator,
)
from lightning_invariance.callbacks._injection import Injector

_NAME = "OrbitAugmentation"


class OrbitAugmentation(InjectingCallback):
    r"""Moves every sample of a training batch by a random group element: :math:`x \mapsto g x, \; g \sim U(G)`.

    The paper's data augmentation (DA), for a module that knows nothing of it. Elements are drawn from a stream of the
    callback's own, which depends on the seed, the epoch, the batch and the process alone: torch's streams stay as they
    are, and a run resumed in the middle of an epoch goes on as it would have. Validation and test batches are left
    alone. Of a continuous group and of permutations (`SO3`, `SetPermutations`, ...) each sample gets an element of its
    own, drawn anew in every step.

    Args:
        action: the group.
        input: where the input lies in the batch: a position or a key (dots lead further in: ``"0.image"``), or a list
            of those that move together, such as an image and its mask; by default the only tensor that the group can
            act on, the last part of a sequence and what is named like labels in a mapping left aside.
        seed: of the draws; torch's initial seed (what ``seed_everything`` set) if None.

    Raises:
        ValueError: if an argument is none of what is expected; in the first step, if the group cannot act on the
            input, the input cannot be found or several tensors could be meant, or it is not one row a sample.

    Warns:
        UserWarning: in the first step, if another tensor of the input's spatial size, a mask for instance, stays in
            place and `input` is no list.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_invariance import C4, OrbitAugmentation
        >>> trainer = Trainer(callbacks=[OrbitAugmentation(C4())], logger=False, enable_checkpointing=False)
    """

    def __init__(self, action: Action, *, input: InputSpec = None, seed: int | None = None) -> None:
        check_action(action)
        check_input_spec("input", input)
        if seed is not None:
            check_seed("seed", seed)
        super().__init__(_Augmenter(self))
        self.action = action
        self.input = input
        self.seed = seed
        self._stream: Callable[[], torch.Generator] = torch.Generator
        self._findings = Findings(_NAME)
        self._told = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._findings.forget()
        self._told = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._stream = partial(step_generator, "augmentation", trainer, self, self.seed, batch_idx)


class _Augmenter(Injector):
    steps = ("training_step",)

    def __init__(self, callback: OrbitAugmentation) -> None:
        self._callback = callback

    def before_step(self, module: LightningModule, args: tuple[Any, ...]) -> tuple[Any, ...]:
        callback = self._callback
        batch = locate_in_batch(args[0], callback.input, callback.action, _NAME)
        first, *others = batch.inputs
        if not callback._told:
            callback._told = True
            callback._findings.say(input=batch.in_words("the batch"))
            for message in what_stays(_NAME, callback.input, callback.action, batch, None, "the batch"):
                rank_zero_warn(message)
            # Of none of the samples only what has no row a sample is left.
            others_rows = {tuple(each.shape) for _, each in batch.first(0).others if each.ndim and len(each)}
            if others_rows:
                rank_zero_warn(
                    f"{_NAME}: each of the {len(first)} rows of {place_in_words(batch.paths[0], 'the batch')} is taken "
                    "for a sample and moved by an element of its own, but the batch holds tensors of other numbers of "
                    f"rows too, of the shapes {sorted(others_rows)}. Where several rows belong to one sample (atoms of "
                    "a molecule), move them in the data set instead."
                )
        # Made anew: a closure that an optimiser calls several times sees the same batch each time.
        action, drawn = callback.action.fresh(len(first), callback._stream())
        moved = [action.act(first, drawn), *(action.alongside(first, each).act(each, drawn) for each in others)]
        return (batch.exchanged(moved), *args[1:])
