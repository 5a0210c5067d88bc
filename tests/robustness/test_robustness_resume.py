"""Stopped and resumed from a checkpoint, in the middle of an epoch as well, bit for bit as without the stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Batches, loader, seed_all, trainer_for
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from oracles import Noting, assert_identical, same
from torch import Tensor

from lightning_invariance import C4, Gradient, InvarianceMonitor, InvarianceRegularizer, OrbitAugmentation, WeightRamp

BATCHES, EPOCHS = 6, 3

# Lightning's own word on the ModelCheckpoint, which the trainer that resumes does not have.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")


class Noted(Noting):
    """Notes its inputs: what the augmentation made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch[0].clone())
        return super().training_step(batch, batch_idx)


class Schedule:
    """A schedule that notes the weight of every step."""

    def __init__(self, weight: WeightRamp) -> None:
        self.weight = weight
        self.noted: list[float] = []

    def __call__(self, step: int) -> float:
        self.noted.append(self.weight(step))
        return self.noted[-1]


def ramp() -> Schedule:
    return Schedule(WeightRamp(0.01, 1.0, steps=12, shape="exponential"))


def ours(weight: Any = None, seed: int | None = 0, penalty: Any = "logit") -> list[Callback]:
    return [
        OrbitAugmentation(C4(), seed=seed),
        InvarianceRegularizer(C4(), weight or ramp(), penalty, elements_per_step=1, seed=seed),
        InvarianceMonitor(C4(), saliency=Gradient()),
    ]


def train(
    callbacks: list[Callback], folder: Path | None = None, ckpt: Path | None = None, **options: Any
) -> tuple[Noted, Trainer]:
    seed_all()
    module = Noted()
    if ckpt is not None:
        torch.nn.init.zeros_(module.model[1].weight)  # what is not from the checkpoint must not count
    saving = [] if folder is None else [ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)]
    settings: dict[str, Any] = {"max_epochs": EPOCHS, "enable_checkpointing": folder is not None, **options}
    trainer = trainer_for([*callbacks, *saving], **settings)
    trainer.fit(module, Batches(BATCHES), loader(8, seed=1), ckpt_path=ckpt)
    return module, trainer


def ended(module: Noted, trainer: Trainer) -> dict[str, Any]:
    return {
        "weights": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
    }


def checkpoint(folder: Path, step: int) -> Path:
    return folder / f"step={step}.ckpt"


@pytest.mark.parametrize(
    ("seed", "penalty", "options"),
    [
        (None, "logit", {}),
        (7, "saliency", {}),
        (None, "distribution", {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
    ],
    ids=["torch's seed", "a seed of its own, saliency", "accumulation and clipping"],
)
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(
    seed: int | None, penalty: str, options: dict[str, Any], tmp_path: Path
) -> None:
    weight = ramp()
    callbacks = ours(weight, seed, penalty)
    whole = train(callbacks, tmp_path, **options)
    each = options.get("accumulate_grad_batches", 1)
    steps = BATCHES // each
    assert len(set(weight.noted)) == min(steps * EPOCHS, 13)
    for step in (1, steps, steps + 2):
        weight_again = ramp()
        again = ours(weight_again, seed, penalty)
        resumed = train(again, None, checkpoint(tmp_path, step), **options)
        assert_identical(ended(*resumed), ended(*whole))
        left = (EPOCHS * steps - step) * each
        assert len(resumed[0].seen) == left
        assert_identical(resumed[0].seen, whole[0].seen[-left:])
        assert_identical(resumed[0].losses, whole[0].losses[-left:])
        assert weight_again.noted == weight.noted[-left:]
        records, expected = again[2].history, callbacks[2].history  # type: ignore[attr-defined]
        assert EPOCHS - step // steps <= len(records) <= EPOCHS
        for record, other in zip(reversed(records), reversed(expected), strict=False):
            assert record.epoch == other.epoch
            assert_identical(record.measures, other.measures)


def test_the_elements_differ_from_step_to_step_and_with_the_seed() -> None:
    """Else resuming would be no test of the streams."""
    plain, augmented, other = train([])[0], train(ours(seed=0))[0], train(ours(seed=1))[0]
    moved = [not same(one, two) for one, two in zip(plain.seen, augmented.seen, strict=True)]
    assert sum(moved) > len(moved) / 2
    assert not same(torch.stack(augmented.seen), torch.stack(other.seen))
    one, two = (
        train([InvarianceRegularizer(C4(), 1.0, elements_per_step=1, seed=seed)], max_epochs=1)[0] for seed in (0, 1)
    )
    assert one.losses != two.losses


def test_checkpoints_hold_weights_and_numbers_alone_and_nothing_of_ours(tmp_path: Path) -> None:
    train(ours(), tmp_path / "ours", max_epochs=2)
    train([], tmp_path / "none", max_epochs=2)
    for step in (4, BATCHES, BATCHES + 1):
        with_ours = torch.load(checkpoint(tmp_path / "ours", step), weights_only=True)
        without = torch.load(checkpoint(tmp_path / "none", step), weights_only=True)
        assert with_ours.keys() == without.keys()
        assert with_ours["state_dict"].keys() == without["state_dict"].keys()
        assert with_ours["callbacks"].keys() == without["callbacks"].keys()
        assert "nvariance" not in repr(with_ours)


@pytest.mark.filterwarnings("ignore:.*[Ss]aliency invariance similarity is undefined")
@pytest.mark.parametrize(
    ("before", "after", "step"),
    [
        (ours, list, 4),
        (list, ours, BATCHES),
        (ours, lambda: [InvarianceMonitor(C4()), OrbitAugmentation(C4())], 4),
    ],
    ids=["ours, then none", "none, then ours", "ours, then others of ours"],
)
def test_a_checkpoint_can_be_resumed_with_other_callbacks(
    before: Callable[[], list[Callback]], after: Callable[[], list[Callback]], step: int, tmp_path: Path
) -> None:
    train(before(), tmp_path, max_epochs=2)
    path = checkpoint(tmp_path, step)

    class AtStart(Callback):
        """Notes what the run begins from."""

        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}

    start = AtStart()
    module, trainer = train([*after(), start], None, path, max_epochs=2)
    assert_identical(start.weights, dict(torch.load(path, weights_only=True)["state_dict"]))
    assert trainer.global_step == 2 * BATCHES
    assert len(module.losses) == 2 * BATCHES - step
