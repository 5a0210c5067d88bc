"""Rotations by 90°, flips, shifts and reorderings against numpy, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from actions_catalogue import halves_swapped, three_cycle_alone
from torch import Tensor

import lightning_invariance as li

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
    pytest.param(li.C4(), rotated, (3, 2, 6, 6), id="C4-even"),
    pytest.param(li.C4(), rotated, (2, 1, 3, 4, 4), id="C4-volume"),
    pytest.param(li.D4(), flipped_then_rotated, (3, 2, 6, 6), id="D4-even"),
    pytest.param(li.D4(), flipped_then_rotated, (3, 5, 5), id="D4-odd"),
    pytest.param(li.HorizontalFlip(), reversed_along(-1), (3, 2, 4, 5), id="HorizontalFlip"),
    pytest.param(li.VerticalFlip(), reversed_along(-2), (2, 1, 3, 4, 5), id="VerticalFlip-volume"),
    pytest.param(li.TimeReversal(), reversed_along(-1), (3, 7), id="TimeReversal"),
    pytest.param(li.CyclicTranslations(3), shifted(3, -1), (3, 2, 4, 6), id="shifts"),
    pytest.param(li.CyclicTranslations(1), shifted(1, -1), (3, 5), id="shifts-trivial"),
    pytest.param(li.CyclicTranslations(4, dim=-2), shifted(4, -2), (3, 2, 8, 5), id="shifts-rows"),
    pytest.param(li.CyclicTranslations(2, dim=-3), shifted(2, -3), (2, 1, 4, 3, 5), id="shifts-depth"),
    pytest.param(halves_swapped(), halves, (3, 2, 8), id="own-table"),
    pytest.param(three_cycle_alone(), cycled, (3, 5, 2, 2), id="own-table-plane"),
]
named = pytest.mark.parametrize(("action", "reference", "shape"), NAMED)


def distinct(shape: Sequence[int]) -> Tensor:
    """A batch of which no two entries are equal, so that a wrong place always shows."""
    size = torch.Size(shape).numel()
    return torch.randperm(size, generator=torch.Generator().manual_seed(1)).reshape(tuple(shape))


@named
def test_act_invert_and_orbit_are_numpys(
    action: li.PermutationAction, reference: Reference, shape: tuple[int, ...]
) -> None:
    x = distinct(shape)
    expected = torch.stack([torch.from_numpy(reference(x.numpy(), g).copy()) for g in range(len(action))])
    assert torch.equal(action.orbit(x), expected)
    for element, moved in enumerate(expected):
        assert torch.equal(action.act(x, element), moved)
        assert torch.equal(action.invert(moved, element), x)
    several = distinct((2 * len(action), *shape[1:]))
    index = torch.arange(len(several)).flip(0) % len(action)
    each_moved = np.concatenate([reference(several[i : i + 1].numpy(), int(g)) for i, g in enumerate(index)])
    np.testing.assert_array_equal(action.act(several, index).numpy(), each_moved)
    assert torch.equal(action.invert(torch.from_numpy(each_moved), index), several)
    # As an accelerator and compiled graphs do it: by one gather.
    trailing = -min(action.dims)
    table = action.index_table(several.shape[-trailing:])
    np.testing.assert_array_equal(action._gather(several, table[index]).numpy(), each_moved)
    assert torch.equal(action._gather(torch.from_numpy(each_moved), table.argsort(dim=1)[index]), several)


def test_a_turn_reads_these_coordinates_and_a_third_of_36_is_12_to_the_right() -> None:
    x = distinct((1, 4, 4))
    moved = li.C4().act(x, 1)
    for row, column in np.ndindex(4, 4):
        assert moved[0, row, column] == x[0, column, 3 - row]
    wide = distinct((2, 1, 3, 36))
    assert torch.equal(li.CyclicTranslations(3).act(wide, 1), torch.cat([wide[..., 24:], wide[..., :24]], dim=-1))


@pytest.mark.parametrize("size", [1, 2, 9])
def test_set_permutations_reorder_the_set_alike_everywhere(size: int) -> None:
    action = li.SetPermutations(samples=5, seed=3)
    places = torch.arange(size).reshape(1, size, 1)
    x = distinct((4, 2, size, 3))
    for element in range(len(action)):
        order = action.act(places, element).flatten().numpy()
        assert sorted(order.tolist()) == list(range(size))
        np.testing.assert_array_equal(action.act(x, element).numpy(), np.take(x.numpy(), order, axis=-2))
        np.testing.assert_array_equal(action.invert(x, element).numpy(), np.take(x.numpy(), np.argsort(order), axis=-2))


def test_one_action_takes_batches_of_many_sizes() -> None:
    action = li.D4()
    for size in (2, 5, 2, 8):
        x = distinct((9, size, size))
        index = torch.arange(9) % 8
        expected = np.stack([flipped_then_rotated(x[i].numpy(), int(index[i])) for i in range(9)])
        np.testing.assert_array_equal(action.act(x, index).numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_table_may_hold_any_integers_and_is_copied(dtype: torch.dtype) -> None:
    table = torch.tensor([[0, 1, 2], [1, 2, 0]], dtype=dtype)
    action = li.PermutationAction(table)
    table.zero_()
    assert action.act(torch.tensor([[5, 6, 7]]), 1).tolist() == [[6, 7, 5]]
