"""Data augmentation over the group: the paper's DA."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_invariance._checks import check_seed
from lightning_invariance.actions import Action
from lightning_invariance.actions._base import check_action
from lightning_invariance.callbacks._base import InjectingCallback, check_spec, step_generator
from lightning_invariance.callbacks._injection import Injector
from lightning_invariance.callbacks._locate import locate_input


class OrbitAugmentation(InjectingCallback):
    r"""Moves every sample of a training batch by a random group element: :math:`x \mapsto g x, \; g \sim U(G)`.

    The paper's data augmentation (DA), for a module that knows nothing of it. Elements are drawn from a stream of the
    callback's own, which depends on the seed, the epoch, the batch and the process alone: torch's streams stay as they
    are, and a run resumed in the middle of an epoch goes on as it would have. Validation and test batches are left
    alone.

    Args:
        action: the group.
        input: where the input lies in the batch: a position or a key; by default the first tensor of a sequence, or the
            only floating-point one of a mapping.
        seed: of the draws; torch's initial seed (what ``seed_everything`` set) if None.

    Raises:
        ValueError: if an argument is none of what is expected; in the first step, if the group cannot act on the
            input, or the input cannot be found.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_invariance import C4, OrbitAugmentation
        >>> trainer = Trainer(callbacks=[OrbitAugmentation(C4())], logger=False, enable_checkpointing=False)
    """

    def __init__(self, action: Action, *, input: int | str | None = None, seed: int | None = None) -> None:
        check_action(action)
        check_spec("input", input)
        if seed is not None:
            check_seed("seed", seed)
        super().__init__(_Augmenter(self))
        self.action = action
        self.input = input
        self.seed = seed
        self._generator = torch.Generator()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._generator = step_generator("augmentation", trainer, self, self.seed, batch_idx)


class _Augmenter(Injector):
    steps = ("training_step",)

    def __init__(self, callback: OrbitAugmentation) -> None:
        self._callback = callback

    def before_step(self, module: LightningModule, args: tuple[Any, ...]) -> tuple[Any, ...]:
        callback = self._callback
        batch = locate_input(args[:1], {}, callback.input, "OrbitAugmentation", "the batch")
        x = batch.x
        drawn = callback.action.sample(len(x), callback._generator)
        (moved,), _ = batch.with_input(callback.action.act(x, drawn))
        return (moved, *args[1:])
