"""Rotations by 90°, flips, shifts and reorderings against numpy, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from actions_catalogue import PERMUTATIONS, Case, batch_for, each, halves_swapped, indices_for, three_cycle_alone
from torch import Tensor

from lightning_invariance.actions import (
    C4,
    D4,
    CyclicTranslations,
    HorizontalFlip,
    PermutationAction,
    SetPermutations,
    TimeReversal,
    VerticalFlip,
)

Array = npt.NDArray[np.generic]
Reference = Callable[[Array, int], Array]


def rotated(x: Array, g: int) -> Array:
    return np.rot90(x, g, (-2, -1))


def flipped_then_rotated(x: Array, g: int) -> Array:
    return np.rot90(np.flip(x, -1) if g >= 4 else x, g % 4, (-2, -1))


def reversed_along(dim: int) -> Reference:
    return lambda x, g: np.flip(x, dim) if g else x


def shifted(order: int, dim: int) -> Reference:
    return lambda x, g: np.roll(x, x.shape[dim] // order * g, dim)


def halves(x: Array, g: int) -> Array:
    return np.concatenate([x[..., 4:], x[..., :4]], -1) if g else x


def cycled(x: Array, g: int) -> Array:
    return (
        np.stack([np.stack([x[..., 0, 1], x[..., 1, 0]], -1), np.stack([x[..., 0, 0], x[..., 1, 1]], -1)], -2)
        if g
        else x
    )


NAMED = [
    pytest.param(C4(), rotated, (3, 2, 6, 6), id="C4-even"),
    pytest.param(C4(), rotated, (3, 5, 5), id="C4-odd"),
    pytest.param(C4(), rotated, (2, 1, 3, 4, 4), id="C4-volume"),
    pytest.param(D4(), flipped_then_rotated, (3, 2, 6, 6), id="D4-even"),
    pytest.param(D4(), flipped_then_rotated, (3, 5, 5), id="D4-odd"),
    pytest.param(HorizontalFlip(), reversed_along(-1), (3, 2, 4, 5), id="HorizontalFlip"),
    pytest.param(HorizontalFlip(), reversed_along(-1), (3, 6), id="HorizontalFlip-series"),
    pytest.param(VerticalFlip(), reversed_along(-2), (3, 2, 4, 5), id="VerticalFlip"),
    pytest.param(VerticalFlip(), reversed_along(-2), (2, 1, 3, 4, 5), id="VerticalFlip-volume"),
    pytest.param(TimeReversal(), reversed_along(-1), (3, 7), id="TimeReversal"),
    pytest.param(TimeReversal(), reversed_along(-1), (3, 2, 7), id="TimeReversal-channels"),
    pytest.param(CyclicTranslations(3), shifted(3, -1), (3, 2, 4, 6), id="shifts"),
    pytest.param(CyclicTranslations(1), shifted(1, -1), (3, 5), id="shifts-trivial"),
    pytest.param(CyclicTranslations(4, dim=-2), shifted(4, -2), (3, 2, 8, 5), id="shifts-rows"),
    pytest.param(CyclicTranslations(2, dim=-3), shifted(2, -3), (2, 1, 4, 3, 5), id="shifts-depth"),
    pytest.param(halves_swapped(), halves, (3, 2, 8), id="own-table"),
    pytest.param(three_cycle_alone(), cycled, (3, 5, 2, 2), id="own-table-plane"),
]
named = pytest.mark.parametrize(("action", "reference", "shape"), NAMED)


def distinct(shape: Sequence[int]) -> Tensor:
    """A batch of which no two entries are equal, so that a wrong place always shows."""
    size = torch.Size(shape).numel()
    return torch.randperm(size, generator=torch.Generator().manual_seed(1)).reshape(tuple(shape))


@named
def test_act_is_numpys(action: PermutationAction, reference: Reference, shape: tuple[int, ...]) -> None:
    x = distinct(shape)
    for element in range(len(action)):
        np.testing.assert_array_equal(action.act(x, element).numpy(), reference(x.numpy(), element))


@named
def test_act_with_one_element_a_sample_is_numpys(
    action: PermutationAction, reference: Reference, shape: tuple[int, ...]
) -> None:
    x = distinct((2 * len(action), *shape[1:]))
    index = torch.arange(len(x)).flip(0) % len(action)
    expected = np.stack([reference(x[i : i + 1].numpy(), int(index[i]))[0] for i in range(len(x))])
    np.testing.assert_array_equal(action.act(x, index).numpy(), expected)


@named
def test_invert_undoes_numpys(action: PermutationAction, reference: Reference, shape: tuple[int, ...]) -> None:
    x = distinct(shape)
    for element in range(len(action)):
        moved = torch.from_numpy(reference(x.numpy(), element).copy())
        assert torch.equal(action.invert(moved, element), x)


@named
def test_orbit_is_numpys(action: PermutationAction, reference: Reference, shape: tuple[int, ...]) -> None:
    x = distinct(shape)
    expected = np.stack([reference(x.numpy(), element) for element in range(len(action))])
    np.testing.assert_array_equal(action.orbit(x).numpy(), expected)


@named
def test_the_index_table_is_numpys(action: PermutationAction, reference: Reference, shape: tuple[int, ...]) -> None:
    x = distinct(shape)
    trailing = len(action._faithful_sizes)
    table = action.index_table(shape[-trailing:])
    for element in range(len(action)):
        gathered = x.flatten(-trailing)[..., table[element]].reshape(shape)
        np.testing.assert_array_equal(gathered.numpy(), reference(x.numpy(), element))


@each(PERMUTATIONS)
def test_gathering_by_the_table_is_acting(case: Case) -> None:
    action = case.make()
    assert isinstance(action, PermutationAction)
    x = batch_for(case)
    index = indices_for(action, x)
    trailing = len(action._faithful_sizes)
    table = action.index_table(tuple(x.shape[-trailing:]))
    for element in range(len(action)):
        assert torch.equal(x.flatten(-trailing)[..., table[element]].reshape(x.shape), action.act(x, element))
    assert torch.equal(action._gather(x, table[index]), action.act(x, index))
    assert torch.equal(action._gather(action.act(x, index), table.argsort(dim=1)[index]), x)


def test_rot90_reads_these_coordinates() -> None:
    x = distinct((1, 4, 4))
    moved = C4().act(x, 1)
    for row in range(4):
        for column in range(4):
            assert moved[0, row, column] == x[0, column, 3 - row]


def test_a_third_of_36_pixels_is_12_to_the_right() -> None:
    x = distinct((2, 1, 3, 36))
    moved = CyclicTranslations(3).act(x, 1)
    assert torch.equal(moved[..., 12:], x[..., :24])
    assert torch.equal(moved[..., :12], x[..., 24:])


@pytest.mark.parametrize("size", [1, 2, 9])
def test_set_permutations_reorder_the_set_alike_everywhere(size: int) -> None:
    action = SetPermutations(samples=5, seed=3)
    places = torch.arange(size).reshape(1, size, 1)
    x = distinct((4, 2, size, 3))
    for element in range(len(action)):
        order = action.act(places, element).flatten().numpy()
        assert sorted(order.tolist()) == list(range(size))
        np.testing.assert_array_equal(action.act(x, element).numpy(), np.take(x.numpy(), order, axis=-2))
        np.testing.assert_array_equal(action.invert(x, element).numpy(), np.take(x.numpy(), np.argsort(order), axis=-2))


def test_set_permutations_depend_on_the_seed() -> None:
    x = torch.arange(30).reshape(1, 30, 1)
    assert torch.equal(SetPermutations(3, seed=1).orbit(x), SetPermutations(3, seed=1).orbit(x))
    assert not torch.equal(SetPermutations(3, seed=1).orbit(x)[1:], SetPermutations(3, seed=2).orbit(x)[1:])


def test_set_permutations_differ_among_themselves() -> None:
    orbit = SetPermutations(6).orbit(torch.arange(30).reshape(1, 30, 1)).flatten(1)
    assert len(orbit.unique(dim=0)) == 7


def test_one_action_takes_batches_of_many_sizes() -> None:
    action = D4()
    for size in (2, 5, 2, 8):
        x = distinct((9, size, size))
        index = torch.arange(9) % 8
        expected = np.stack([flipped_then_rotated(x[i].numpy(), int(index[i])) for i in range(9)])
        np.testing.assert_array_equal(action.act(x, index).numpy(), expected)
        np.testing.assert_array_equal(action._gather(x, action.index_table((size, size))[index]).numpy(), expected)


def test_a_table_may_hold_int32_and_is_copied() -> None:
    table = torch.tensor([[0, 1, 2], [1, 2, 0]], dtype=torch.int32)
    action = PermutationAction(table)
    table.zero_()
    assert action.act(torch.tensor([[5, 6, 7]]), 1).tolist() == [[6, 7, 5]]
    wide = torch.tensor([[0, 1, 2], [1, 2, 0]])
    action = PermutationAction(wide)
    wide.zero_()
    assert action.act(torch.tensor([[5, 6, 7]]), 1).tolist() == [[6, 7, 5]]
