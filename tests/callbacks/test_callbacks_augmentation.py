"""The augmentation: what it does to samples, what it leaves alone, and that a resumed run goes on alike."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from helpers import fit, loader, seed_all, trainer_for
from lightning.pytorch import Callback
from oracles import WEIGHT, Classifier, assert_identical, assert_trained_alike, logit_term, rotated
from torch import Tensor
from torch.nn import functional as F

from lightning_invariance import C4, D4, HorizontalFlip, InvarianceRegularizer, OrbitAugmentation


class Recording(Classifier):
    """Keeps the batches that its steps are given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "test": []}

    def note(self, stage: str, batch: Any) -> Tensor:
        self.seen[stage].append([each.clone() for each in batch])
        return self(batch[0]).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.note("train", batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("test", batch)

    def images(self, stage: str = "train") -> Tensor:
        return torch.cat([batch[0] for batch in self.seen[stage]])


def turns(moved: Tensor, images: Tensor) -> list[int]:
    """By how many quarter turns each image was moved; fails where it is no rotation of itself."""
    found = []
    for each, image in zip(moved, images, strict=True):
        (k,) = [k for k in range(4) if torch.equal(each, torch.rot90(image, k, (1, 2)))]
        found.append(k)
    return found


def recorded(callbacks: list[Callback], seed: int = 1, data: Any = None, **options: Any) -> Recording:
    seed_all(seed)
    module = Recording()
    trainer_for(callbacks, **options).fit(module, loader(40, 8) if data is None else data)
    return module


def test_every_sample_of_every_batch_and_epoch_is_turned_apart_and_all_turns_are_as_frequent() -> None:
    epochs, images = 10, loader(40).dataset.x
    found = turns(recorded([OrbitAugmentation(C4())], max_epochs=epochs).images(), images.repeat(epochs, 1, 1, 1))
    counts = Counter(found)
    assert set(counts) == {0, 1, 2, 3}
    # Five standard deviations of a binomial with p = 1/4.
    assert all(abs(count - len(found) / 4) < 5 * (len(found) * 3 / 16) ** 0.5 for count in counts.values())
    by_batch = [tuple(found[start : start + 8]) for start in range(0, len(found), 8)]
    assert len(set(by_batch)) == len(by_batch) == 5 * epochs
    assert all(len(set(each)) > 1 for each in by_batch[:5])


def test_draws_follow_the_seed() -> None:
    def draws(seed: int, own: int | None = None) -> Tensor:
        return recorded([OrbitAugmentation(C4(), seed=own)], seed, max_epochs=1).images()

    assert torch.equal(draws(1), draws(1))
    assert not torch.equal(draws(1), draws(2))
    assert torch.equal(draws(1, own=5), draws(2, own=5))


def test_validation_and_test_are_left_alone() -> None:
    module = Recording()
    trainer = trainer_for([OrbitAugmentation(C4())])
    trainer.fit(module, loader(), loader(8, seed=3))
    trainer.test(module, loader(8, seed=4), verbose=False)
    assert torch.equal(module.images("val")[8:16], loader(8, seed=3).dataset.x)  # behind the sanity check
    assert torch.equal(module.images("test"), loader(8, seed=4).dataset.x)


def test_the_data_and_the_order_of_samples_stay_what_they_were() -> None:
    states = []
    for callbacks in ([], [OrbitAugmentation(C4())]):
        data = loader(40, 8, shuffle=True)
        module = recorded(callbacks, data=data)
        states.append([data.dataset.x, torch.cat([batch[1] for batch in module.seen["train"]]), torch.get_rng_state()])
    assert_identical(*states)


# With others -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, -1])
def test_the_regularizer_sees_what_the_augmentation_made(order: int) -> None:
    """Augmented batches are taken from a recording, and the term is written into the step."""
    batches = recorded([OrbitAugmentation(C4(), seed=3)], data=loader()).seen["train"]

    class Oracle(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = batches[3 * self.current_epoch + batch_idx][0]
            fx = self.model(x)
            return F.cross_entropy(fx, batch[1]) + WEIGHT * logit_term(fx, [self.model(each) for each in rotated(x)])

    augmentation = OrbitAugmentation(C4(), seed=3)
    both = [augmentation, InvarianceRegularizer(C4(), WEIGHT)][::order]
    assert_trained_alike(fit(Classifier, both), fit(Oracle), fit(Classifier, [augmentation]))


def test_two_augmentations_act_one_after_the_other() -> None:
    both: list[Callback] = [OrbitAugmentation(C4()), OrbitAugmentation(HorizontalFlip())]
    moved, images = recorded(both, data=loader(64, 64), max_epochs=1).images(), loader(64).dataset.x
    places = (D4().orbit(images) == moved).flatten(2).all(2)  # (elements, samples)
    assert places.any(0).all()
    assert places.any(1).all()
