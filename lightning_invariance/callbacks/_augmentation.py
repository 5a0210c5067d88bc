"""Data augmentation over the group: the paper's DA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_invariance._arguments import Arguments
from lightning_invariance._checks import check_seed
from lightning_invariance._containers import describe_value, place_in_words
from lightning_invariance._locate import (
    InputSpec,
    Place,
    check_input_spec,
    check_place,
    locate_in_batch,
    locate_targets,
    what_stays,
)
from lightning_invariance._output_action import OutputActions, OutputMotion
from lightning_invariance.actions import Action, Flow
from lightning_invariance.actions._flow import as_action
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

    A target that is of the pose moves with the input if `target_action` says how: the mask of a segmentation, the
    forces on atoms, keypoints. Whole numbers, such as the classes of a mask, are moved exactly by groups of the lattice
    and to the nearest place by interpolated ones, and labels to be ignored stay what they are.

    Args:
        action: the group; a `Flow` stands for ``flow.sampled()``.
        input: where the input lies in the batch: a position or a key (dots lead further in: ``"0.image"``), or a list
            of those that move together, such as an image and its mask; by default the only tensor that the group can
            act on, the last part of a sequence and what is named like labels in a mapping left aside.
        target: where the target lies in the batch, as for `input`; by default the last part of a sequence, or the entry
            of a mapping that is named like labels.
        target_action: how the target moves when the input does, as `output_action` of `evaluate_orbit` says it: None,
            it stays; ``"same"``, as the input does, in the same dimensions; an `Action` of as many elements; or a dict
            of these for a target that is a mapping, by its keys.
        ignore_index: what a target of whole numbers gets where an interpolated motion brings in what was outside of the
            image, such as the label that the loss ignores; 0, as the image gets, if None.
        seed: of the draws; torch's initial seed (what ``seed_everything`` set) if None.

    Raises:
        ValueError: if an argument has a wrong type or value; in the first step, if the group cannot act on the
            input or the target, one of these cannot be found or several tensors could be meant, or it is not one row a
            sample.

    Warns:
        UserWarning: in the first step, if another tensor of the input's spatial size, a mask for instance, stays in
            place and neither `input` is a list nor `target_action` moves it.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_invariance import C4, OrbitAugmentation
        >>> trainer = Trainer(callbacks=[OrbitAugmentation(C4())], logger=False, enable_checkpointing=False)

        Images and their masks, in batches ``(image, mask)``:

        >>> augmentation = OrbitAugmentation(C4(), target_action="same")
    """

    _name = _NAME

    def __init__(
        self,
        action: Action | Flow,
        *,
        input: InputSpec = None,
        target: Place | None = None,
        target_action: OutputActions = None,
        ignore_index: int | None = None,
        seed: int | None = None,
    ) -> None:
        action = as_action(action)
        check_input_spec("input", input)
        check_place("target", target)
        if ignore_index is not None and (not isinstance(ignore_index, int) or isinstance(ignore_index, bool)):
            raise ValueError(f"Expected `ignore_index` to be an integer or None but got {ignore_index!r}.")
        if seed is not None:
            check_seed("seed", seed)
        motion = OutputMotion(target_action, action, "target_action")
        motion.redrawn(0, action.redrawn(0))  # what cannot be drawn anew with the group fails here
        if motion.stays and (target is not None or ignore_index is not None):
            raise ValueError(
                "Expected `target_action` to say how the target moves, 'same' for masks, where `target` or "
                "`ignore_index` is given, but got None."
            )
        super().__init__(_Augmenter(self))
        self.action = action
        self.input = input
        self.target = target
        self.target_action = target_action
        self.ignore_index = ignore_index
        self.seed = seed
        self._motion = motion
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
    name = _NAME
    steps = ("training_step",)

    def __init__(self, callback: OrbitAugmentation) -> None:
        self._callback = callback

    def before_step(self, module: LightningModule, args: tuple[Any, ...]) -> tuple[Any, ...]:
        callback = self._callback
        targets = self._targets(args[0])
        known = () if targets is None or callback.target is None else targets.paths
        batch = locate_in_batch(args[0], callback.input, callback.action, known)
        self._check(batch, targets)
        first, *others = batch.inputs
        if not callback._told:
            callback._told = True
            self._tell(batch, targets)
        # Made anew: a closure that an optimiser calls several times sees the same batch each time.
        action, drawn = callback.action.fresh(len(first), callback._stream())
        moved = [action.act(first, drawn), *(action.alongside(first, each).act(each, drawn) for each in others)]
        batch = replace(batch, args=(batch.exchanged(moved), *batch.args[1:]))
        if targets is None:
            return (*batch.args, *args[1:])
        motion = callback._motion.fresh(len(first), callback._stream(), action)
        placed = [
            self._moved(motion, name, action, first, target, drawn)
            for name, target in zip(motion.names or (None,), targets.inputs, strict=True)
        ]
        targets = replace(targets, args=batch.args)
        return (targets.exchanged(placed), *args[1:])

    def _targets(self, batch: Any) -> Arguments | None:
        """The tensors that `target_action` moves; None where the target stays."""
        motion = self._callback._motion
        return None if motion.stays else locate_targets(batch, self._callback.target, motion.names)

    @staticmethod
    def _check(inputs: Arguments, targets: Arguments | None) -> None:
        samples = len(inputs.inputs[0])
        for path, tensor in () if targets is None else zip(targets.paths, targets.inputs, strict=True):
            if path in inputs.paths:
                raise ValueError(
                    "Expected the target to be another tensor than the input but both are "
                    f"{place_in_words(path, 'the batch')}: name the target with `target=`."
                )
            if tensor.ndim == 0 or len(tensor) != samples:
                raise ValueError(
                    f"Expected the target to have one row for each of {samples} samples but "
                    f"{place_in_words(path, 'the batch')} is {describe_value(tensor)}."
                )

    def _moved(
        self, motion: OutputMotion, name: str | None, action: Action, x: Tensor, target: Tensor, drawn: Tensor
    ) -> Tensor:
        move = motion.of_target(name, action, x, target)
        if move is None:
            return target
        moved = move.act(target, drawn)
        ignored = self._callback.ignore_index
        if ignored is None or (target.is_floating_point() and name is not None):
            return moved
        if target.is_floating_point() or target.dtype == torch.bool or not _holds(target.dtype, ignored):
            raise ValueError(
                f"Expected the target to be of whole numbers that can be ignore_index={ignored} but got "
                f"{describe_value(target)}."
            )
        seen = move.act(torch.ones_like(target, dtype=torch.float32), drawn)
        return torch.where(seen > 0.5, moved, ignored)

    def _tell(self, batch: Arguments, targets: Arguments | None) -> None:
        callback = self._callback
        first = batch.inputs[0]
        callback._findings.say(
            input=batch.in_words("the batch"), target="" if targets is None else targets.in_words("the batch")
        )
        known = batch if targets is None else replace(batch, paths=(*batch.paths, *targets.paths))
        for message in what_stays(callback.input, callback.action, known, None, "the batch"):
            callback._warn_of(message)
        # Of none of the samples only what has no row a sample is left.
        others_rows = {tuple(each.shape) for _, each in batch.first(0).others if each.ndim and len(each)}
        if others_rows:
            callback._warn_of(
                f"each of the {len(first)} rows of {place_in_words(batch.paths[0], 'the batch')} is taken "
                "for a sample and moved by an element of its own, but the batch holds tensors of other numbers of "
                f"rows too, of the shapes {sorted(others_rows)}. Where several rows belong to one sample (atoms of "
                "a molecule), move them in the data set instead."
            )


def _holds(dtype: torch.dtype, number: int) -> bool:
    limits = torch.iinfo(dtype)
    return limits.min <= number <= limits.max
