"""Which tensors of a batch or a call the group acts on: the only one that can be meant, or all that are named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Classifier, assert_trained_alike, fit, loader, logit_term, rotated, trainer_for
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_invariance import (
    C4,
    SO3,
    Action,
    CyclicTranslations,
    Gradient,
    InvarianceMonitor,
    InvarianceRegularizer,
    LinearAction,
    OrbitAugmentation,
    Rotations,
    SetPermutations,
    TimeReversal,
)

WEIGHT = 0.3


class Watching(LightningModule):
    """Keeps its training batches, as they reach the step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.batches: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches.append(batch)
        return self.weight.square()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def watched(callback: OrbitAugmentation, batch: Any) -> Any:
    """The batch after augmentation."""
    module = Watching()
    data = DataLoader([0], batch_size=None, collate_fn=lambda _: batch)
    trainer_for([callback], max_epochs=1).fit(module, data)
    return module.batches[0]


# Augmentation -----------------------------------------------------------------------------------------------------


def images(count: int = 64, channels: int = 3, side: int = 8) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))


LISTS_OF_SAMPLES: dict[str, Callable[[], Any]] = {
    "dicts": lambda: [{"image": image, "label": torch.tensor(1)} for image in images()],
    "a single dict": lambda: [{"image": images(1)[0], "boxes": torch.zeros(2, 4)}],
    "images and dicts": lambda: (list(images()), [{"boxes": torch.zeros(2, 4)} for _ in range(64)]),
    "one image and one dict": lambda: (list(images(1)), [{"boxes": torch.zeros(2, 4)}]),
}


@pytest.mark.parametrize("batch", LISTS_OF_SAMPLES.values(), ids=LISTS_OF_SAMPLES)
def test_a_list_of_samples_is_refused(batch: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"one row a sample but the batch holds a list of samples.*collate"):
        watched(OrbitAugmentation(C4()), batch())


def test_a_tensor_of_other_rows_than_the_labels_is_refused() -> None:
    time_first = torch.randn(10, 4, 6)  # (time, batch, features)
    with pytest.raises(ValueError, match=r"the batch\[0\] has 10 rows and the batch\[1\] has 4: name the input"):
        watched(OrbitAugmentation(TimeReversal()), (time_first, torch.arange(4)))


AMBIGUOUS: dict[str, Callable[[], Any]] = {
    "integers of the same square size": lambda: (
        torch.arange(16).reshape(4, 2, 2),
        torch.randn(4, 1, 2, 2),
        torch.ones(4),
    ),
    "two views": lambda: ((images(4), images(4)), torch.arange(4)),
    "two images in a dict": lambda: {"a": images(4), "b": images(4), "label": torch.arange(4)},
    "two loaders": lambda: [[images(4), torch.arange(4)], [images(4), torch.arange(4)]],
}


@pytest.mark.parametrize("batch", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_two_tensors_that_could_be_meant_are_asked_about(batch: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"several tensors could be meant .* name it with `input=`"):
        watched(OrbitAugmentation(C4()), batch())


UNAMBIGUOUS: dict[str, tuple[Callable[[], Any], str]] = {
    "numbers in front": (lambda: (torch.arange(4), images(4), torch.arange(4)), "1"),
    "numbers in front, no label": (lambda: (torch.arange(4), images(4)), "1"),
    "names in front": (lambda: (["a", "b", "c", "d"], images(4)), "1"),
    "a pair": (lambda: (images(4), torch.arange(4)), "0"),
    "a dict with a mask of integers": (lambda: {"x": images(4), "size": torch.arange(4)}, "x"),
    "nested": (lambda: ({"meta": torch.arange(4), "image": images(4)}, torch.arange(4)), "0.image"),
}


@pytest.mark.parametrize(("batch", "place"), UNAMBIGUOUS.values(), ids=UNAMBIGUOUS)
def test_the_only_tensor_that_can_be_meant_is_found_and_can_be_named(batch: Callable[[], Any], place: str) -> None:
    def at(value: Any) -> Any:
        for step in place.split("."):
            value = value[int(step) if step.isdigit() else step]
        return value

    found = at(watched(OrbitAugmentation(C4(), seed=1), batch()))
    named = at(watched(OrbitAugmentation(C4(), seed=1, input=int(place) if place.isdigit() else place), batch()))
    assert torch.equal(found, named)
    assert not torch.equal(found, at(batch()))
    assert torch.equal(found.flatten(1).sort().values, at(batch()).flatten(1).sort().values)


def test_a_mask_that_stays_is_warned_of_once() -> None:
    class Segments(Watching):
        pass

    def batch() -> Any:
        return images(4), torch.arange(4 * 64).reshape(4, 8, 8)

    module = Segments()
    data = DataLoader(list(zip(*batch(), strict=True)), batch_size=2)
    with pytest.warns(
        UserWarning, match=r"C4\(\) moves the batch\[0\], but the batch\[1\] .* stays as it is"
    ) as warned:
        trainer_for([OrbitAugmentation(C4())], max_epochs=2).fit(module, data)
    assert len([each for each in warned if "stays" in str(each.message)]) == 1


@pytest.mark.parametrize("action", [C4(), Rotations(8)])
def test_other_targets_are_not_taken_for_masks(action: Action) -> None:
    for target in (torch.arange(4), torch.randn(4, 8), torch.randn(4, 8, 7), torch.randn(4, 10)):
        watched(OrbitAugmentation(action), (images(4), target))  # a warning would be an error


def test_a_list_moves_image_and_mask_by_the_same_element() -> None:
    index = torch.arange(64).reshape(1, 8, 8).expand(16, 8, 8).contiguous()
    picture = index[:, None].float()
    moved, mask = watched(OrbitAugmentation(C4(), input=[0, 1]), (picture, index))
    assert torch.equal(moved[:, 0].long(), mask)
    assert not torch.equal(mask, index)
    only, stays = watched(OrbitAugmentation(C4(), input=[0]), (picture, index))
    assert not torch.equal(only, picture)
    assert torch.equal(stays, index)


def test_a_set_and_what_belongs_to_its_points_are_put_into_one_order() -> None:
    positions = torch.arange(4 * 6, dtype=torch.float32).reshape(4, 6, 1).expand(4, 6, 3).contiguous()
    charges = torch.arange(4 * 6).reshape(4, 6)
    batch = {"positions": positions, "charges": charges, "energy": torch.zeros(4)}
    moved = watched(OrbitAugmentation(SetPermutations(2), input=["positions", "charges"]), batch)
    assert torch.equal(moved["positions"][..., 0].long(), moved["charges"])
    assert not torch.equal(moved["charges"], charges)
    assert torch.equal(moved["charges"].sort(dim=1).values, charges)
    with pytest.warns(
        UserWarning, match=r"moves the batch\['positions'\], but the batch\['charges'\] of the same places"
    ):
        watched(OrbitAugmentation(SetPermutations(2)), batch)


# Outputs that move ------------------------------------------------------------------------------------------------


class Segmentation(Classifier):
    """A 1×1 convolution: exactly equivariant, and anything but invariant."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.Conv2d(1, 2, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0]).square().mean()


MOVES = r"output, a tensor \(4, 2, 4, 4\) .* has the places that C4\(\) moves in the input"


def test_an_output_of_the_inputs_size_is_warned_of_by_the_monitor() -> None:
    with pytest.warns(UserWarning, match=MOVES) as warned:
        trainer_for([InvarianceMonitor(C4())]).validate(Segmentation(), loader(8), verbose=False)
    assert len([each for each in warned if "moves in the input" in str(each.message)]) == 1


def test_and_by_the_regularizer() -> None:
    with pytest.warns(UserWarning, match=MOVES):
        fit(Segmentation, [InvarianceRegularizer(C4(), WEIGHT)])


class Pointwise(Segmentation):
    """Forces on points."""

    def __init__(self) -> None:
        Classifier.__init__(self, lambda: nn.Linear(3, 3))


def points(count: int = 8, size: int = 5) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(2)
    return DataLoader(list(torch.randn(count, size, 3, generator=generator)), batch_size=4)


def test_outputs_a_point_move_with_a_set_and_not_with_the_coordinates_alone() -> None:
    class Points(Pointwise):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch).square().mean()

    with pytest.warns(UserWarning, match=r"has the places that SetPermutations\(.*\) moves in the input"):
        trainer_for([InvarianceMonitor(SetPermutations(2))]).validate(Points(), points(), verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer_for([InvarianceMonitor(C4())]).validate(Classifier(), loader(8), verbose=False)


# Several inputs of a network --------------------------------------------------------------------------------------


class Molecule(LightningModule):
    """Energies from positions and charges: of pairs, so that it matters whose charge is whose."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, positions: Tensor, charges: Tensor) -> Tensor:
        order = torch.linspace(0.5, 1.5, charges.shape[1]).unsqueeze(-1)  # so it knows the order a little
        each = torch.cat([positions, charges.unsqueeze(-1).to(positions.dtype)], dim=-1)
        return self.outer((order * self.inner(each).tanh()).sum(dim=1))

    def added(self, fx: Tensor, positions: Tensor, charges: Tensor) -> Tensor | float:
        return 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        positions, charges = batch["positions"], batch["charges"]
        fx = self(positions, charges)
        return fx.square().mean() + self.added(fx, positions, charges)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch["positions"], batch["charges"]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def molecules(count: int = 8, size: int = 5) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    positions = torch.randn(count, size, 3, generator=generator)
    charges = torch.randint(1, 9, (count, size), generator=generator)
    return DataLoader([{"positions": p, "charges": c} for p, c in zip(positions, charges, strict=True)], batch_size=4)


def test_a_penalty_moves_all_inputs_that_are_named_together() -> None:
    class WithTerm(Molecule):
        """The reversed order, of positions and charges both."""

        def added(self, fx: Tensor, positions: Tensor, charges: Tensor) -> Tensor | float:
            return WEIGHT * logit_term(fx, [self(positions.flip(1), charges.flip(1))])

    class FlipSet(SetPermutations):
        """A set whose only other order is the reverse, so that what is drawn is known."""

        def __init__(self) -> None:
            super().__init__(samples=1)

        @property
        def drawn(self) -> bool:
            return False

        def orders(self, size: int, device: torch.device | str = "cpu") -> Tensor:
            return torch.stack([torch.arange(size), torch.arange(size - 1, -1, -1)]).to(device)

        def alongside(self, x: Tensor, other: Tensor) -> Action:
            return self if other.ndim == x.ndim else _Reversed()

    class _Reversed(TimeReversal):
        pass

    both = ["positions", "charges"]  # as its forward calls them
    oracle, plain = fit(WithTerm, data=molecules()), fit(Molecule, data=molecules())
    for input in ([0, 1], both):
        got = fit(Molecule, [InvarianceRegularizer(FlipSet(), WEIGHT, input=input)], data=molecules())
        assert_trained_alike(got, oracle, plain)
    with pytest.raises(ValueError, match=r"input=\['positions', 'mass'\] to name a tensor in .* 'mass' is none"):
        fit(Molecule, [InvarianceRegularizer(FlipSet(), WEIGHT, input=["positions", "mass"])], data=molecules())


def test_a_monitor_measures_all_inputs_moved_together() -> None:
    torch.manual_seed(0)
    module, data = Molecule(), molecules()
    monitor = InvarianceMonitor(SetPermutations(3), input=[0, 1], saliency=Gradient())
    trainer_for([monitor]).validate(module, data, verbose=False)
    (record,) = monitor.history
    action = record.action
    assert isinstance(action, SetPermutations)
    batch = next(iter(DataLoader(data.dataset, batch_size=8)))
    positions, charges = batch["positions"], batch["charges"]
    orders = action.orders(5)
    with torch.no_grad():
        fx = module(positions, charges)
        moved = torch.stack([module(positions[:, order], charges[:, order]) for order in orders[1:]])
    expected = float((moved - fx).square().sum(-1).mean() / 2)
    assert float(record.measures["logit_invariance_error"].value) == pytest.approx(expected, rel=1e-5)
    # The maps are of both inputs; whole numbers have no gradient.
    labels = fx.argmax(1)

    def gradient(order: Tensor) -> Tensor:
        leaf = positions[:, order].clone().requires_grad_()
        chosen = module(leaf, charges[:, order]).gather(1, labels[:, None]).sum()
        return torch.autograd.grad(chosen, leaf)[0][:, order.argsort()].flatten(1)

    maps = [gradient(order) for order in orders]
    cosines = torch.stack([F.cosine_similarity(maps[0], each) for each in maps[1:]])
    similarity = float(record.measures["saliency_invariance_similarity"].value)
    assert similarity == pytest.approx(float(cosines.mean()), rel=1e-4)


def test_a_tensor_of_the_same_set_that_stays_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"moves argument 0, but argument 1 of the same places stays as it is"):
        fit(Molecule, [InvarianceRegularizer(SetPermutations(2), WEIGHT)], data=molecules())
    with pytest.warns(UserWarning, match=r"moves argument 0, but argument 1 of the same places stays as it is"):
        trainer_for([InvarianceMonitor(SetPermutations(2))]).validate(Molecule(), molecules(), verbose=False)


def test_rotations_move_positions_and_leave_charges_without_a_word() -> None:
    fit(Molecule, [InvarianceRegularizer(SO3(2), WEIGHT)], data=molecules())
    with pytest.raises(ValueError, match=r"to be able to act on all 2 inputs but got input 1 of shape \(4, 5\)"):
        fit(Molecule, [InvarianceRegularizer(SO3(2), WEIGHT, input=[0, 1])], data=molecules())


def test_image_and_depth_turn_together() -> None:
    class Depth(Classifier):
        def forward(self, image: Tensor, depth: Tensor) -> Tensor:
            return self.model(image * depth[:, None])

        def added(self, fx: Tensor, image: Tensor, depth: Tensor) -> Tensor | float:
            return 0.0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            image = batch[0]
            depth = image[:, 0].abs()
            fx = self(image, depth)
            return F.cross_entropy(fx, batch[1]) + self.added(fx, image, depth)

    class WithTerm(Depth):
        def added(self, fx: Tensor, image: Tensor, depth: Tensor) -> Tensor | float:
            turned = zip(rotated(image), rotated(depth[:, None]), strict=True)
            return WEIGHT * logit_term(fx, [self(each, deep[:, 0]) for each, deep in turned])

    got = fit(Depth, [InvarianceRegularizer(C4(), WEIGHT, input=[0, 1])])
    assert_trained_alike(got, fit(WithTerm), fit(Depth))


def test_logits_are_taken_out_of_any_output() -> None:
    """An ensemble whose members stand one behind the other, ``(m B, C)``, and a head among several."""

    class Ensemble(Classifier):
        def forward(self, x: Tensor) -> Any:
            return {"members": torch.cat([self.model(x), self.model(0.5 * x)]), "features": x}

        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return 0.0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            members = self(batch[0])["members"]
            fx = members.reshape(2, -1, 3).mean(0)
            return F.cross_entropy(fx, batch[1]) + self.added(fx, batch[0])

    class WithTerm(Ensemble):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            turned = [(self.model(each) + self.model(0.5 * each)) / 2 for each in rotated(x)]
            return WEIGHT * logit_term(fx, turned)

    def mean_of_members(output: Any) -> Tensor:
        return output["members"].reshape(2, -1, 3).mean(0)

    got = fit(Ensemble, [InvarianceRegularizer(C4(), WEIGHT, logits=mean_of_members)])
    assert_trained_alike(got, fit(WithTerm), fit(Ensemble))
    with pytest.raises(
        ValueError, match=r"one row of logits for each of 4 samples but got a tensor \(8, 3\).*`logits=`"
    ):
        fit(Ensemble, [InvarianceRegularizer(C4(), WEIGHT, logits=lambda output: output["members"])])
    with pytest.raises(ValueError, match="`logits` to give a tensor but got"):
        fit(Ensemble, [InvarianceRegularizer(C4(), WEIGHT, logits=lambda output: "none")])


def test_signs_of_channels_are_no_places() -> None:
    signs = LinearAction(torch.stack([torch.eye(3), -torch.eye(3)]), dim=-1)
    moved, target = watched(OrbitAugmentation(signs), (torch.randn(4, 5, 3), torch.eye(3)[[0, 1, 2, 0]]))
    assert moved.shape == (4, 5, 3)
    assert torch.equal(target, torch.eye(3)[[0, 1, 2, 0]])


# What looks wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [[images(1, side=8)[0]], images(1, side=8)[0]], ids=["a list of one image", "bare"])
def test_one_image_without_a_batch_is_warned_of(batch: Any) -> None:
    with pytest.warns(UserWarning, match=r"each of the 3 rows of a tensor \(3, 8, 8\) .* as if it were one image"):
        watched(OrbitAugmentation(C4()), batch)


def test_a_mask_of_whole_numbers_takes_the_nearest_class_under_interpolation() -> None:
    index = torch.zeros(8, 9, 9, dtype=torch.int64)
    index[:, :, :5] = 7
    moved, mask = watched(OrbitAugmentation(Rotations(8), input=[0, 1]), (index[:, None].float(), index))
    assert mask.dtype == torch.int64
    assert set(mask.unique().tolist()) <= {0, 7}
    assert not torch.equal(mask, index)
    # Where the image is not blended, the mask says the same.
    sharp = (moved[:, 0] == 7) | (moved[:, 0] == 0)
    inside = torch.zeros(9, 9, dtype=torch.bool)
    inside[2:7, 2:7] = True
    assert torch.equal(mask[sharp & inside], moved[:, 0][sharp & inside].long())


def test_labels_that_name_no_class_are_warned_of() -> None:
    class CountsFromOne(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0]), batch[1] - 1)

    data = loader(12, 12, pack=lambda x, y: (x, y + 1))  # the first batch is looked at
    with pytest.warns(UserWarning, match=r"labels at the batch\[1\] go from 1 to 3, .* the classes 0 to 2"):
        trainer_for([InvarianceMonitor(C4())]).validate(CountsFromOne(), data, verbose=False)


def test_a_product_of_groups_with_elements_in_common_is_refused() -> None:
    with pytest.raises(ValueError, match=r"every pair but the first of C4\(\) \* C4\(\) to move"):
        (C4() * C4()).verify(images(4))
    (C4() * CyclicTranslations(2)).verify(images(4))


def test_rows_that_are_atoms_are_not_taken_for_molecules_without_a_word() -> None:
    flat = {"positions": torch.randn(20, 3), "atoms": torch.tensor([4, 6, 5, 5]), "energy": torch.randn(4)}
    with pytest.warns(
        UserWarning, match=r"each of the 20 rows of the batch\['positions'\] .* of the shapes \[\(4,\)\]"
    ):
        watched(OrbitAugmentation(SO3(2), input="positions"), flat)
    boxes = [{"boxes": torch.zeros(count, 4)} for count in (1, 3)]  # one mapping a sample: as many rows as objects
    watched(OrbitAugmentation(C4(), input=["image"]), {"image": images(2), "labels": boxes})
