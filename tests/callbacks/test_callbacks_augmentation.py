"""The augmentation: what it does to samples, what it leaves alone, and that a resumed run goes on alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers import (
    Classifier,
    Images,
    assert_identical,
    assert_trained_alike,
    fit,
    loader,
    logit_term,
    rotated,
    trainer_for,
)
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_invariance import C4, D4, HorizontalFlip, InvarianceRegularizer, OrbitAugmentation


class Recording(Classifier):
    """Keeps the images that its steps are given, in any kind of batch."""

    def __init__(self, find: Callable[[Any], Tensor] = lambda batch: batch[0]) -> None:
        super().__init__()
        self.find = find
        self.seen: dict[str, list[Tensor]] = {"train": [], "val": [], "test": []}
        self.batches: list[Any] = []

    def note(self, stage: str, batch: Any) -> Tensor:
        x = self.find(batch)
        self.seen[stage].append(x.clone())
        return self(x).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches.append(batch)
        return self.note("train", batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("test", batch)


def turns(moved: Tensor, images: Tensor) -> list[int]:
    """By how many quarter turns each image was moved; fails where it is no rotation of itself."""
    found = []
    for each, image in zip(moved, images, strict=True):
        (k,) = [k for k in range(4) if torch.equal(each, torch.rot90(image, k, (1, 2)))]
        found.append(k)
    return found


def recorded(callbacks: list[Callback], seed: int = 1, data: Any = None, **options: Any) -> Recording:
    seed_everything(seed, verbose=False)
    module = Recording()
    trainer_for(callbacks, **options).fit(module, loader(40, 8) if data is None else data)
    return module


def test_every_sample_is_a_rotation_of_itself_and_all_rotations_occur_equally_often() -> None:
    epochs, images = 10, loader(40).dataset.x
    module = recorded([OrbitAugmentation(C4())], max_epochs=epochs)
    found = turns(torch.cat(module.seen["train"]), images.repeat(epochs, 1, 1, 1))
    draws = 40 * epochs
    counts = Counter(found)
    assert set(counts) == {0, 1, 2, 3}
    # Five standard deviations of a binomial with p = 1/4.
    assert all(abs(count - draws / 4) < 5 * (draws * 3 / 16) ** 0.5 for count in counts.values())


def test_samples_batches_and_epochs_are_drawn_apart() -> None:
    module = recorded([OrbitAugmentation(C4())], data=loader(32, 8))
    images = loader(32).dataset.x.split(8)
    by_batch = [tuple(turns(moved, images[i % 4])) for i, moved in enumerate(module.seen["train"])]
    assert len(by_batch) == 8
    assert len(set(by_batch)) == 8
    assert all(len(set(each)) > 1 for each in by_batch[:2])


def test_draws_follow_the_seed() -> None:
    def draws(seed: int, own: int | None = None) -> Tensor:
        return torch.cat(recorded([OrbitAugmentation(C4(), seed=own)], seed).seen["train"])

    assert torch.equal(draws(1), draws(1))
    assert not torch.equal(draws(1), draws(2))
    assert torch.equal(draws(1, own=5), draws(2, own=5))


def test_validation_and_test_are_left_alone() -> None:
    module = Recording()
    trainer = trainer_for([OrbitAugmentation(C4())])
    trainer.fit(module, loader(), loader(8, seed=3))
    trainer.test(module, loader(8, seed=4), verbose=False)
    assert torch.equal(torch.cat(module.seen["val"][2:4]), loader(8, seed=3).dataset.x)
    assert torch.equal(torch.cat(module.seen["test"]), loader(8, seed=4).dataset.x)


def test_the_order_of_samples_stays_what_it_was() -> None:
    def order(callbacks: list[Callback]) -> tuple[Tensor, Tensor]:
        module = recorded(callbacks, data=loader(40, 8, shuffle=True, pack=lambda x, y: (x, x.sum())))
        return torch.cat([batch[1] for batch in module.batches]), torch.get_rng_state()

    plain, augmented = order([]), order([OrbitAugmentation(C4())])
    assert torch.equal(plain[0], augmented[0])
    assert torch.equal(plain[1], augmented[1])


def test_the_data_set_is_not_written_to() -> None:
    data = loader(8, 8)
    before = data.dataset.x.clone()
    recorded([OrbitAugmentation(C4())], data=data)
    assert torch.equal(data.dataset.x, before)


# Batches ---------------------------------------------------------------------------------------------------------


class Named(NamedTuple):
    image: Tensor
    label: Tensor


class Packed(NamedTuple):
    pack: Callable[[Tensor, Tensor], Any]
    find: Callable[[Any], Tensor]
    input: int | str | list[int | str] | None
    rest: Callable[[Any], Tensor] | None


BATCHES = {
    "tensor": Packed(lambda x, y: x, lambda batch: batch, None, None),
    "pair": Packed(lambda x, y: (x, y), lambda batch: batch[0], None, lambda batch: batch[1]),
    "second": Packed(lambda x, y: (x.flip(-1), x), lambda batch: batch[1], [1], lambda batch: batch[0]),
    "last": Packed(lambda x, y: (x.flip(-1), x), lambda batch: batch[1], [-1], lambda batch: batch[0]),
    "nested": Packed(lambda x, y: ([x, x.flip(-1)], y), lambda batch: batch[0][0], ["0.0"], lambda batch: batch[0][1]),
    "namedtuple": Packed(Named, lambda batch: batch.image, None, lambda batch: batch.label),
    "dict": Packed(
        lambda x, y: {"image": x, "label": y}, lambda batch: batch["image"], None, lambda batch: batch["label"]
    ),
    "dict of two images": Packed(
        lambda x, y: {"mask": x.flip(-1), "image": x},
        lambda batch: batch["image"],
        ["image"],
        lambda batch: batch["mask"],
    ),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_any_kind_of_batch(kind: str) -> None:
    packed = BATCHES[kind]
    module = Recording(packed.find)
    seed_everything(1, verbose=False)
    trainer_for([OrbitAugmentation(C4(), input=packed.input)], max_epochs=1).fit(
        module, loader(16, 16, pack=packed.pack)
    )
    ((moved,), (batch,)) = module.seen["train"], module.batches
    assert set(turns(moved, loader(16).dataset.x)) == {0, 1, 2, 3}
    untouched = next(iter(loader(16, 16, pack=packed.pack)))
    assert type(batch) is type(untouched)
    if packed.rest is not None:
        assert torch.equal(packed.rest(batch), packed.rest(untouched))


@pytest.mark.parametrize(
    ("pack", "input", "message"),
    [
        (lambda x, y: (x, y), "image", "input='image' to name a tensor in the batch"),
        (lambda x, y: (x, y), 2, "input=2 to name a tensor in the batch"),
        (lambda x, y: {"image": x}, 0, "input=0 to name a tensor in the batch"),
        (lambda x, y: {"image": x}, "img", "input='img' to name a tensor in the batch.*'image'"),
        (lambda x, y: {"a": x, "b": x}, None, "several tensors could be meant .*: name it with `input=`"),
        (
            lambda x, y: {"label": y},
            None,
            r"there is no tensor in lists, tuples and mappings .*`input=`",
        ),
        (lambda x, y: (x.reshape(1, 2, 8), y), None, "square"),
    ],
)
def test_an_input_that_cannot_be_found_or_acted_on(pack: Any, input: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Recording, [OrbitAugmentation(C4(), input=input)], data=loader(4, 4, pack=pack))


@pytest.mark.parametrize("options", [{"action": "C4"}, {"action": C4(), "input": 1.5}, {"action": C4(), "input": True}])
def test_wrong_arguments_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Expected `{list(options)[-1]}`"):
        OrbitAugmentation(**options)


# With others -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["augmentation", "regularizer"])
def test_the_regularizer_sees_what_the_augmentation_made(first: str) -> None:
    """Augmented batches are taken from a recording, and the term is written into the step."""
    recording = recorded([OrbitAugmentation(C4(), seed=3)], data=loader())
    batches = recording.seen["train"]

    class Oracle(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = batches[3 * self.current_epoch + batch_idx]
            fx = self.model(x)
            return F.cross_entropy(fx, batch[1]) + 0.3 * logit_term(fx, [self.model(each) for each in rotated(x)])

    callbacks: list[Callback] = [OrbitAugmentation(C4(), seed=3), InvarianceRegularizer(C4(), 0.3)]
    if first == "regularizer":
        callbacks.reverse()
    assert_trained_alike(fit(Classifier, callbacks), fit(Oracle), fit(Classifier, [callbacks[0]]))


def test_two_augmentations_act_one_after_the_other() -> None:
    module = recorded([OrbitAugmentation(C4()), OrbitAugmentation(HorizontalFlip())], data=loader(64, 64))
    images = loader(64).dataset.x
    places = []
    for moved, image in zip(module.seen["train"][0], images, strict=True):
        orbit = D4().orbit(image[None])[:, 0]
        (place,) = [g for g in range(8) if torch.equal(moved, orbit[g])]
        places.append(place)
    assert set(places) == set(range(8))


# Resuming --------------------------------------------------------------------------------------------------------


class Stateful(DataLoader[Any]):
    """A loader that goes on where its checkpoint was taken."""

    done = 0

    def __iter__(self) -> Any:
        start = self.done
        for place, batch in enumerate(super().__iter__()):
            if place >= start:
                self.done = (place + 1) % len(self)
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("step", [4, 6], ids=["between epochs", "inside an epoch"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: [OrbitAugmentation(C4())],
        lambda: [InvarianceRegularizer(C4(), 0.5, elements_per_step=1)],
        lambda: [OrbitAugmentation(D4()), InvarianceRegularizer(C4(), 0.5, elements_per_step=1)],
    ],
    ids=["augmentation", "regularizer", "both"],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(make: Any, step: int, tmp_path: Path) -> None:
    def train(checkpoint: Path | None = None) -> LightningModule:
        seed_everything(7, verbose=False)
        if checkpoint is not None:
            torch.rand(5)  # the resumed process has another past
        module = Classifier()
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=step, save_top_k=-1)
        trainer = trainer_for([*make(), keep], max_epochs=3, enable_checkpointing=True)
        trainer.fit(module, Stateful(Images(16), batch_size=4), ckpt_path=checkpoint)
        assert trainer.global_step == 12
        return module

    whole = train()
    resumed = train(tmp_path / f"step={step}.ckpt")
    assert_identical(resumed.state_dict(), whole.state_dict())
