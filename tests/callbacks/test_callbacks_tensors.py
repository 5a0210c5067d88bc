"""Which tensors of a batch or a call the group acts on: the only one that can be meant, or all that are named."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import pytest
import torch
from helpers import fit, loader, made, trainer_for
from lightning.pytorch import LightningModule
from oracles import WEIGHT, Classifier, logit_term, rotated
from steps import regularised, validated, with_term
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


def watched(action: Action, batch: Any, epochs: int = 1, **options: Any) -> Any:
    """The last batch after augmentation."""
    module = Watching()
    data = DataLoader([0], batch_size=None, collate_fn=lambda _: batch)
    trainer_for([OrbitAugmentation(action, **options)], max_epochs=epochs).fit(module, data)
    return module.batches[-1]


# Augmentation ----------------------------------------------------------------------------------------------------


def images(count: int = 64, channels: int = 3, side: int = 8) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))


class Named(NamedTuple):
    image: Tensor
    label: Tensor


FOUR, X, OTHER = torch.arange(4), images(4), images(4).flip(-1)
LIST = r"one row a sample but the batch holds a list of samples.*collate"
AMBIGUOUS = r"several tensors could be meant .*: name it with `input=`"

REFUSED: dict[str, tuple[Any, Any, str]] = {
    "dicts": ([{"image": image, "label": torch.tensor(1)} for image in X], None, LIST),
    "a single dict": ([{"image": X[0], "boxes": torch.zeros(2, 4)}], None, LIST),
    "images and dicts": ((list(X), [{"boxes": torch.zeros(2, 4)} for _ in X]), None, LIST),
    "one image and one dict": ((list(X[:1]), [{"boxes": torch.zeros(2, 4)}]), None, LIST),
    "squares of integers": ((torch.arange(16).reshape(4, 2, 2), torch.randn(4, 1, 2, 2), FOUR), None, AMBIGUOUS),
    "two views": (((X, OTHER), FOUR), None, AMBIGUOUS),
    "two images in a dict": ({"a": X, "b": OTHER, "label": FOUR}, None, AMBIGUOUS),
    "two loaders": ([[X, FOUR], [OTHER, FOUR]], None, AMBIGUOUS),
    "no tensor": ({"label": FOUR}, None, r"there is no tensor in lists, tuples and mappings .*`input=`"),
    "a name in a pair": ((X, FOUR), "image", "input='image' to name a tensor in the batch"),
    "a place that is not there": ((X, FOUR), 2, "input=2 to name a tensor in the batch"),
    "a place in a dict": ({"image": X}, 0, "input=0 to name a tensor in the batch"),
    "another name": ({"image": X}, "img", "input='img' to name a tensor in the batch.*'image'"),
    "no squares": ((X[..., 1:], FOUR), None, "square"),
}


@pytest.mark.parametrize(("batch", "input", "message"), REFUSED.values(), ids=REFUSED)
def test_a_batch_in_which_no_single_tensor_is_meant_is_refused(batch: Any, input: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        watched(C4(), batch, input=input)


def test_a_tensor_of_other_rows_than_the_labels_is_refused() -> None:
    time_first = torch.randn(10, 4, 6)  # (time, batch, features)
    with pytest.raises(ValueError, match=r"the batch\[0\] has 10 rows and the batch\[1\] has 4: name the input"):
        watched(TimeReversal(), (time_first, FOUR))


#: Where the tensor is that moves, and how it may be named; None where it is the only one that can be meant.
FOUND: dict[str, tuple[Any, str, tuple[Any, ...]]] = {
    "a tensor": (X, "", (None,)),
    "a pair": ((X, FOUR), "0", (None, 0)),
    "a namedtuple": (Named(X, FOUR), "0", (None,)),
    "numbers in front": ((FOUR, X, FOUR), "1", (None, 1)),
    "names in front": ((["a", "b", "c", "d"], X), "1", (None, 1)),
    "the second of two": ((OTHER, X), "1", (1, [1], -1)),
    "a dict with numbers": ({"x": X, "size": FOUR}, "x", (None, "x")),
    "a dict of two images": ({"mask": OTHER, "image": X}, "image", ("image", ["image"])),
    "nested": (({"meta": FOUR, "image": X}, FOUR), "0.image", (None, "0.image")),
    "nested lists": (([X, OTHER], FOUR), "0.0", (["0.0"],)),
}


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else None
    if pairs is None:
        return {path[1:]: value}
    return {place: leaf for key, item in pairs for place, leaf in leaves(item, f"{path}.{key}").items()}


@pytest.mark.filterwarnings("ignore:.*stays as it is")
@pytest.mark.parametrize(("batch", "place", "inputs"), FOUND.values(), ids=FOUND)
def test_the_only_tensor_that_can_be_meant_or_the_one_that_is_named_moves(
    batch: Any, place: str, inputs: tuple[Any, ...]
) -> None:
    moved = [watched(C4(), batch, seed=1, input=input) for input in inputs]
    for each in moved:
        assert type(each) is type(batch)
        for where, leaf in leaves(batch).items():
            found = leaves(each)[where]
            if where == place:
                assert not torch.equal(found, leaf)
                assert torch.equal(found.flatten(1).sort().values, leaf.flatten(1).sort().values)
                assert torch.equal(found, leaves(moved[0])[where])
            else:
                assert torch.equal(found, leaf) if isinstance(leaf, Tensor) else found == leaf


def test_a_mask_that_stays_is_warned_of_once() -> None:
    message = r"C4\(\) moves the batch\[0\], but the batch\[1\] .* stays as it is"
    with pytest.warns(UserWarning, match=message) as warned:
        watched(C4(), (X, torch.arange(4 * 64).reshape(4, 8, 8)), epochs=2)
    assert len([each for each in warned if "stays" in str(each.message)]) == 1


@pytest.mark.parametrize("action", [C4(), Rotations(8)])
def test_other_targets_are_not_taken_for_masks(action: Action) -> None:
    for target in (FOUR, torch.randn(4, 8), torch.randn(4, 8, 7), torch.randn(4, 10)):
        watched(action, (X, target))  # a warning would be an error


@pytest.mark.filterwarnings("ignore:.*stays as it is")
def test_a_list_moves_image_and_mask_by_the_same_element() -> None:
    index = torch.arange(64).reshape(1, 8, 8).expand(16, 8, 8).contiguous()
    picture = index[:, None].float()
    moved, mask = watched(C4(), (picture, index), input=[0, 1])
    assert torch.equal(moved[:, 0].long(), mask)
    assert not torch.equal(mask, index)


def test_a_mask_of_whole_numbers_takes_the_nearest_class_under_interpolation() -> None:
    index = torch.zeros(8, 9, 9, dtype=torch.int64)
    index[:, :, :5] = 7
    moved, mask = watched(Rotations(8), (index[:, None].float(), index), input=[0, 1])
    assert mask.dtype == torch.int64
    assert set(mask.unique().tolist()) <= {0, 7}
    assert not torch.equal(mask, index)
    # Where the image is not blended, the mask says the same.
    sharp = (moved[:, 0] == 7) | (moved[:, 0] == 0)
    inside = torch.zeros(9, 9, dtype=torch.bool)
    inside[2:7, 2:7] = True
    assert torch.equal(mask[sharp & inside], moved[:, 0][sharp & inside].long())


def test_a_set_and_what_belongs_to_its_points_are_put_into_one_order() -> None:
    positions = torch.arange(4 * 6, dtype=torch.float32).reshape(4, 6, 1).expand(4, 6, 3).contiguous()
    charges = torch.arange(4 * 6).reshape(4, 6)
    batch = {"positions": positions, "charges": charges, "energy": torch.zeros(4)}
    moved = watched(SetPermutations(2), batch, input=["positions", "charges"])
    assert torch.equal(moved["positions"][..., 0].long(), moved["charges"])
    assert not torch.equal(moved["charges"], charges)
    assert torch.equal(moved["charges"].sort(dim=1).values, charges)
    message = r"moves the batch\['positions'\], but the batch\['charges'\] of the same places"
    with pytest.warns(UserWarning, match=message):
        watched(SetPermutations(2), batch)


def test_signs_of_channels_are_no_places() -> None:
    signs = LinearAction(torch.stack([torch.eye(3), -torch.eye(3)]), dim=-1)
    target = torch.eye(3)[[0, 1, 2, 0]]
    moved, kept = watched(signs, (torch.randn(4, 5, 3), target))
    assert moved.shape == (4, 5, 3)
    assert torch.equal(kept, target)


@pytest.mark.parametrize("batch", [[images(1)[0]], images(1)[0]], ids=["a list of one image", "bare"])
def test_one_image_without_a_batch_is_warned_of(batch: Any) -> None:
    with pytest.warns(UserWarning, match=r"each of the 3 rows of a tensor \(3, 8, 8\) .* as if it were one image"):
        watched(C4(), batch)


def test_rows_that_are_atoms_are_not_taken_for_molecules_without_a_word() -> None:
    flat = {"positions": torch.randn(20, 3), "atoms": torch.tensor([4, 6, 5, 5]), "energy": torch.randn(4)}
    message = r"each of the 20 rows of the batch\['positions'\] .* of the shapes \[\(4,\)\]"
    with pytest.warns(UserWarning, match=message):
        watched(SO3(2), flat, input="positions")
    boxes = [{"boxes": torch.zeros(count, 4)} for count in (1, 3)]  # one mapping a sample: as many rows as objects
    watched(C4(), {"image": images(2), "labels": boxes}, input=["image"])


def test_a_product_of_groups_with_elements_in_common_is_refused() -> None:
    with pytest.raises(ValueError, match=r"every pair but the first of C4\(\) \* C4\(\) to move"):
        (C4() * C4()).verify(X)
    (C4() * CyclicTranslations(2)).verify(X)


# Outputs that move -----------------------------------------------------------------------------------------------


class Dense(Classifier):
    """Exactly equivariant, and anything but invariant."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0] if isinstance(batch, list) else batch).square().mean()

    validation_step = training_step


def points(count: int = 8, size: int = 5) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(2)
    return DataLoader(list(torch.randn(count, size, 3, generator=generator)), batch_size=4)


def test_an_output_of_the_inputs_size_is_warned_of_once() -> None:
    def segmentation() -> Dense:
        return Dense(lambda: nn.Conv2d(1, 2, 1))

    moves = r"output, a tensor \(4, 2, 4, 4\) .* has the places that C4\(\) moves in the input"
    with pytest.warns(UserWarning, match=moves) as warned:
        validated(InvarianceMonitor(C4()), segmentation(), loader(8))
    assert len([each for each in warned if "moves in the input" in str(each.message)]) == 1
    with pytest.warns(UserWarning, match=moves):
        fit(segmentation, [InvarianceRegularizer(C4(), WEIGHT)])
    with pytest.warns(UserWarning, match=r"has the places that SetPermutations\(.*\) moves in the input"):
        validated(InvarianceMonitor(SetPermutations(2)), Dense(lambda: nn.Linear(3, 3)), points())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        validated(InvarianceMonitor(C4()), Classifier(), loader(8))


# Several inputs of a network -------------------------------------------------------------------------------------


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


class Reversal(SetPermutations):
    """A set whose only other order is the reverse, so that what is drawn is known."""

    def __init__(self) -> None:
        super().__init__(samples=1)

    @property
    def drawn(self) -> bool:
        return False

    def orders(self, size: int, device: torch.device | str = "cpu") -> Tensor:
        return torch.stack([torch.arange(size), torch.arange(size - 1, -1, -1)]).to(device)

    def alongside(self, x: Tensor, other: Tensor) -> Action:
        return self if other.ndim == x.ndim else TimeReversal()


def test_a_penalty_moves_all_inputs_that_are_named_together() -> None:
    class WithTerm(Molecule):
        """The reversed order, of positions and charges both."""

        def added(self, fx: Tensor, positions: Tensor, charges: Tensor) -> Tensor | float:
            return WEIGHT * logit_term(fx, [self(positions.flip(1), charges.flip(1))])

    options = {"data": molecules()}
    for input in ([0, 1], ["positions", "charges"]):  # as its forward calls them
        regularised(Molecule, WithTerm, action=Reversal(), input=input, options=options)
    with pytest.raises(ValueError, match=r"input=\['positions', 'mass'\] to name a tensor in .* 'mass' is none"):
        fit(Molecule, [InvarianceRegularizer(Reversal(), WEIGHT, input=["positions", "mass"])], **options)


def test_a_monitor_measures_all_inputs_moved_together() -> None:
    module, data = made(Molecule), molecules()
    monitor = InvarianceMonitor(SetPermutations(3), input=[0, 1], saliency=Gradient())
    validated(monitor, module, data)
    (record,) = monitor.history
    batch = next(iter(DataLoader(data.dataset, batch_size=8)))
    positions, charges = batch["positions"], batch["charges"]
    orders = record.action.orders(5)
    with torch.no_grad():
        fx, *fgx = [module(positions[:, order], charges[:, order]) for order in orders]
    expected = float(logit_term(fx, fgx))
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
    message = r"moves argument 0, but argument 1 of the same places stays as it is"
    with pytest.warns(UserWarning, match=message):
        fit(Molecule, [InvarianceRegularizer(SetPermutations(2), WEIGHT)], data=molecules())
    with pytest.warns(UserWarning, match=message):
        validated(InvarianceMonitor(SetPermutations(2)), Molecule(), molecules())


def test_rotations_move_positions_and_leave_charges_without_a_word() -> None:
    fit(Molecule, [InvarianceRegularizer(SO3(2), WEIGHT)], data=molecules())
    with pytest.raises(ValueError, match=r"to be able to act on all 2 inputs but got input 1 of shape \(4, 5\)"):
        fit(Molecule, [InvarianceRegularizer(SO3(2), WEIGHT, input=[0, 1])], data=molecules())


def test_image_and_depth_turn_together() -> None:
    class Depth(Classifier):
        def forward(self, image: Tensor, depth: Tensor) -> Tensor:
            return self.model(image * depth[:, None])

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            fx = self(batch[0], batch[0][:, 0].abs())
            return F.cross_entropy(fx, batch[1]) + self.added(fx, batch[0])

    class Oracle(Depth):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            turned = zip(rotated(x), rotated(x[:, :1].abs()), strict=True)
            return WEIGHT * logit_term(fx, [self(each, depth[:, 0]) for each, depth in turned])

    regularised(Depth, Oracle, input=[0, 1])


def test_logits_are_taken_out_of_any_output() -> None:
    """An ensemble whose members stand one behind the other, ``(m B, C)``, and a head among several."""

    def mean_of_members(output: Any) -> Tensor:
        return output["members"].reshape(2, -1, 3).mean(0)

    class Ensemble(Classifier):
        def forward(self, x: Tensor) -> Any:
            return {"members": torch.cat([self.model(x), self.model(0.5 * x)]), "features": x}

        def again(self, x: Tensor) -> Tensor:
            return (self.model(x) + self.model(0.5 * x)) / 2

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            fx = mean_of_members(self(batch[0]))
            return F.cross_entropy(fx, batch[1]) + self.added(fx, batch[0])

    regularised(Ensemble, with_term(Ensemble), logits=mean_of_members)
    for logits, message in (
        (
            lambda output: output["members"],
            r"one row of logits for each of 4 samples but got a tensor \(8, 3\).*`logits=`",
        ),
        (lambda output: "none", "`logits` to give a tensor but got"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(Ensemble, [InvarianceRegularizer(C4(), WEIGHT, logits=logits)])
