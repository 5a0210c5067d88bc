"""Targets that move with their inputs in data augmentation, and networks that are equivariant by pooling."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from equivariance_helpers import (
    IGNORED,
    batches,
    conv_net,
    placed,
    points,
    quarter_turns,
    read_bilinear,
    read_nearest,
    replaced,
    turn,
)
from helpers import made, trainer_for
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import StackDataset, TensorDataset

from lightning_invariance import C4, D4, SO3, LinearAction, OrbitAugmentation, Rotations
from lightning_invariance.baselines import OrbitPooled


class Keeper(LightningModule):
    """Keeps the batches that its steps get."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.kept: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.kept.append(batch)
        return self.weight.square()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def augmented(data: Any, *callbacks: OrbitAugmentation, epochs: int = 1) -> list[Any]:
    module = Keeper()
    trainer_for(callbacks, max_epochs=epochs).fit(module, batches(data, 8))
    return module.kept


def labels(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(1, 5, (count, side, side), generator=generator)
    y[torch.rand(y.shape, generator=generator) < 0.2] = IGNORED
    return y


def test_a_mask_goes_where_its_image_goes():
    """The image shows the mask's own numbers, and is turned by numbers of a stream of its own in every step."""
    y = labels(8, 6)
    data = TensorDataset(y[:, None].float(), y, torch.arange(8))
    found = []
    callback = OrbitAugmentation(D4(), input=0, target=1, target_action="same", seed=0)
    for image, mask, _ in augmented(data, callback, epochs=3):
        assert mask.dtype == torch.int64
        assert torch.equal(image[:, 0], mask.float())
        found.append([next(g for g in range(8) if torch.equal(placed(y[i], g), mask[i])) for i in range(8)])
    assert all(len(set(elements)) > 2 for elements in found)  # each sample its own
    assert found[0] != found[1] != found[2]


@pytest.mark.parametrize("ignore_index", [None, 255, IGNORED])
def test_a_turned_mask_has_the_nearest_labels(ignore_index):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(8, 1, 7, 7, generator=generator), labels(8, 7)
    callback = OrbitAugmentation(Rotations(8), target_action="same", ignore_index=ignore_index, seed=0)
    ((image, mask),) = augmented(TensorDataset(x, y), callback)
    used = set()
    for i in range(8):
        reads = {g: read_bilinear(x[i], turn(-45.0 * g)) for g in range(8)}
        g = min(reads, key=lambda g: float((reads[g] - image[i]).abs().max()))
        torch.testing.assert_close(image[i], reads[g], rtol=0, atol=1e-5)
        expected = read_nearest(y[i], turn(-45.0 * g), fill=0 if ignore_index is None else ignore_index)
        assert torch.equal(mask[i], expected)
        used.add(g)
    assert len(used) > 3
    assert used & {1, 3, 5, 7}


def images_of(keypoints: Tensor, side: int) -> Tensor:
    """A bright pixel at each keypoint: right and down from the centre."""
    images = torch.zeros(len(keypoints), 1, side, side)
    for image, found in zip(images, keypoints, strict=True):
        for right, down in found.tolist():
            image[0, int(down + (side - 1) / 2), int(right + (side - 1) / 2)] = 1
    return images


@pytest.mark.parametrize("several", [False, True])
def test_keypoints_and_a_mask_in_a_dict(several):
    generator = torch.Generator().manual_seed(0)
    keypoints = torch.randint(-3, 4, (8, 2, 2), generator=generator).float()
    x, turns = images_of(keypoints, 7), LinearAction(quarter_turns(), dim=-1)
    if several:
        target: Any = StackDataset(mask=x[:, 0].long(), points=keypoints, name=torch.arange(8))
        moves: Any = {"mask": "same", "points": turns}
    else:
        target, moves = keypoints, turns
    ((image, found),) = augmented(StackDataset(x, target), OrbitAugmentation(C4(), target_action=moves, seed=0))
    moved = found["points"] if several else found
    assert torch.equal(images_of(moved.round(), 7), image)
    assert not torch.equal(image, x)
    if several:
        assert torch.equal(found["mask"], image[:, 0].long())
        assert torch.equal(found["name"], torch.arange(8))


@pytest.mark.parametrize("moves", ["same", SO3(2), {"forces": "same", "energy": None}])
def test_drawn_rotations_move_forces_with_their_points(moves):
    """Forces that are twice the positions stay so; the inner products of the points, and the energies, stay too."""
    x = points(8)
    forces: Any = 2 * x
    target = StackDataset(forces=forces, energy=torch.arange(8.0)) if isinstance(moves, dict) else forces
    first, second = (
        batch
        for batch in augmented(
            StackDataset(x, target), OrbitAugmentation(SO3(2), target_action=moves, seed=0), epochs=2
        )
    )
    for moved, found in (first, second):
        if isinstance(moves, dict):
            assert torch.equal(found["energy"], torch.arange(8.0))
            found = found["forces"]
        torch.testing.assert_close(found, 2 * moved)
        torch.testing.assert_close(moved @ moved.mT, x @ x.mT)
        matrices = torch.linalg.lstsq(x, moved).solution
        torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(8, dtype=torch.float64))
        assert torch.cdist(matrices.flatten(1), matrices.flatten(1)).add(torch.eye(8)).min() > 1e-2  # each its own
    assert not torch.allclose(first[0], second[0])


@pytest.mark.parametrize("moves", [None, "same"])
def test_a_mask_that_is_left_behind_is_warned_of_once(moves):
    data = TensorDataset(torch.randn(16, 1, 6, 6), labels(16, 6))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        augmented(data, OrbitAugmentation(C4(), target_action=moves), epochs=2)
    said = [str(each.message) for each in caught if "OrbitAugmentation" in str(each.message)]
    assert len(said) == (1 if moves is None else 0)
    assert all("target_action='same'" in each for each in said)


# Pooling over the orbit -----------------------------------------------------------------------------------------------


class ImageAndKind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = conv_net()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = self.net(x)
        return {"mask": out, "small": nn.functional.avg_pool2d(out, 2), "kind": out[:, :, 0, 1]}


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize(("action", "elements"), [(C4(), 4), (D4(), 8)], ids=["C4", "D4"])
def test_pooled_networks_are_equivariant(action, elements, pool):
    network = made(ImageAndKind).double()
    pooled = OrbitPooled(network, action, pool, output_action={"mask": "same", "small": "same", "kind": None})
    single = OrbitPooled(network.net, action, pool, output_action="same")
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    base = pooled(x)
    assert torch.equal(base["mask"], single(x))
    every = torch.stack([replaced(network(placed(x, g))["small"], g) for g in range(elements)])
    torch.testing.assert_close(base["small"], every.mean(0) if pool == "mean" else every.amax(0))
    for g in range(elements):
        moved = pooled(placed(x, g))
        torch.testing.assert_close(moved["mask"], placed(base["mask"], g), rtol=0, atol=1e-14)
        torch.testing.assert_close(moved["small"], placed(base["small"], g), rtol=0, atol=1e-14)
        torch.testing.assert_close(moved["kind"], base["kind"], rtol=0, atol=1e-14)
        assert g == 0 or not torch.allclose(network.net(placed(x, g)), placed(network.net(x), g))
