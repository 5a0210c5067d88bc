"""Actions from functions, and products of actions."""

from __future__ import annotations

import numpy as np
import torch
from actions_catalogue import mixed_colours, negated_or_doubled
from torch import Tensor

import lightning_invariance as li


def up(x: Tensor) -> Tensor:
    return x + 1


def down(x: Tensor) -> Tensor:
    return x - 1


# Functions -------------------------------------------------------------------------------------------------------


def test_the_pairs_come_after_the_identity() -> None:
    action = li.FunctionAction([(up, down), (torch.neg, torch.neg)])
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert action.orbit(x)[..., 0].tolist() == [[1, 2, 3, 4], [2, 3, 4, 5], [-1, -2, -3, -4]]
    assert action.invert(x, 1).flatten().tolist() == [0, 1, 2, 3]
    index = torch.tensor([2, 0, 1, 2])
    assert action.act(x, index).flatten().tolist() == [-1, 2, 4, -4]
    assert action.invert(x, index).flatten().tolist() == [-1, 2, 2, -4]
    assert action.act(x[:, 0], index).tolist() == [-1, 2, 4, -4]  # a scalar a sample
    assert action.labels == ("identity", "element1", "element2")
    assert not action.exact
    assert action.dims is None


def test_functions_get_the_samples_of_their_element_only() -> None:
    seen: list[list[float]] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(sorted(x.flatten().tolist()))
        return x

    action = li.FunctionAction([(watch, watch)])
    action.act(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1, 0, 1]))
    assert seen == [[1.0, 3.0]]


# Products --------------------------------------------------------------------------------------------------------


def test_the_second_acts_first() -> None:
    double = li.FunctionAction([(lambda x: 2 * x, lambda x: x / 2)], labels=["double"])
    plus = li.FunctionAction([(up, down)], labels=["plus"])
    product = double * plus
    x = torch.tensor([[3.0], [5.0]])
    assert len(product) == 4
    assert product.labels == ("identity", "plus", "double", "double*plus")
    assert product.act(x, 1).flatten().tolist() == [4, 6]
    assert product.act(x, 2).flatten().tolist() == [6, 10]
    assert product.act(x, 3).flatten().tolist() == [8, 12]
    assert product.invert(product.act(x, 3), 3).flatten().tolist() == [3, 5]
    assert (plus * double).act(x, 3).flatten().tolist() == [7, 11]


def test_turned_shifts_are_numpys() -> None:
    product = li.C4() * li.CyclicTranslations(3)
    x, index = torch.arange(12 * 36).reshape(12, 6, 6), torch.arange(12).flip(0)
    orbit = [np.rot90(np.roll(x.numpy(), 2 * (g % 3), -1), g // 3, (-2, -1)) for g in range(12)]
    np.testing.assert_array_equal(product.orbit(x).numpy(), np.stack(orbit))
    for element in range(12):
        np.testing.assert_array_equal(product.act(x, element).numpy(), orbit[element])
        assert torch.equal(product.invert(torch.from_numpy(orbit[element].copy()), element), x)
    moved = product.act(x, index)
    np.testing.assert_array_equal(moved.numpy(), np.stack([orbit[g][i] for i, g in enumerate(index.tolist())]))
    assert torch.equal(product.invert(moved, index), x)


def test_products_of_products() -> None:
    flips = li.HorizontalFlip() * li.VerticalFlip()
    left, right = li.C4() * flips, li.C4() * li.HorizontalFlip() * li.VerticalFlip()
    x = torch.arange(32).reshape(2, 4, 4)
    assert len(left) == len(right) == 16
    assert torch.equal(left.orbit(x), right.orbit(x))


def test_what_is_known_of_both_factors() -> None:
    assert (li.C4() * li.CyclicTranslations(3)).exact
    assert (negated_or_doubled() * li.SetPermutations(2)).exact
    for product in (li.C4() * li.Rotations(3), mixed_colours() * li.C4(), negated_or_doubled(exact=False) * li.C4()):
        assert not product.exact
    assert (li.C4() * li.CyclicTranslations(3)).dims == (-2, -1)
    assert (li.SO3(2, dim=-3) * li.HorizontalFlip()).dims == (-3, -1)
    assert (li.C4() * negated_or_doubled()).dims is None
