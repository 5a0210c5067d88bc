"""Actions from functions, and products of actions."""

from __future__ import annotations

import operator

import numpy as np
import pytest
import torch
from actions_catalogue import mixed_colours, negated_or_doubled
from torch import Tensor

from lightning_invariance.actions import (
    C4,
    SO3,
    CyclicTranslations,
    FunctionAction,
    HorizontalFlip,
    ProductAction,
    Rotations,
    SetPermutations,
    VerticalFlip,
)


def up(x: Tensor) -> Tensor:
    return x + 1


def down(x: Tensor) -> Tensor:
    return x - 1


# Functions -------------------------------------------------------------------------------------------------------


def test_the_pairs_come_after_the_identity() -> None:
    action = FunctionAction([(up, down), (torch.neg, torch.neg)])
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert len(action) == 3
    assert torch.equal(action.act(x, 0), x)
    assert action.act(x, 1).tolist() == [[2, 3], [4, 5]]
    assert action.invert(x, 1).tolist() == [[0, 1], [2, 3]]
    assert action.act(x, 2).tolist() == [[-1, -2], [-3, -4]]


def test_one_function_a_sample() -> None:
    action = FunctionAction([(up, down), (torch.neg, torch.neg)])
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    index = torch.tensor([2, 0, 1, 2])
    assert action.act(x, index).flatten().tolist() == [-1, 2, 4, -4]
    assert action.invert(x, index).flatten().tolist() == [-1, 2, 2, -4]


def test_functions_get_the_samples_of_their_element_only() -> None:
    seen: list[list[float]] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(sorted(x.flatten().tolist()))
        return x

    action = FunctionAction([(watch, watch)])
    action.act(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1, 0, 1]))
    assert seen == [[1.0, 3.0]]


def test_orbit_of_functions() -> None:
    orbit = FunctionAction([(up, down)]).orbit(torch.tensor([[1.0], [2.0]]))
    assert orbit.tolist() == [[[1.0], [2.0]], [[2.0], [3.0]]]


def test_labels_and_exactness_are_ones_own() -> None:
    plain = FunctionAction([(up, down), (torch.neg, torch.neg)])
    assert plain.labels == ("identity", "element1", "element2")
    assert not plain.exact
    named = negated_or_doubled()
    assert named.labels == ("identity", "negated", "doubled")
    assert named.exact
    assert named.dims is None


def test_functions_on_scalars_a_sample() -> None:
    assert FunctionAction([(up, down)]).act(torch.tensor([1.0, 2.0]), torch.tensor([1, 0])).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("index", [1, torch.tensor([0, 1])], ids=["one", "each"])
@pytest.mark.parametrize("method", ["act", "invert", "orbit"])
def test_functions_must_keep_the_shape(index: int | Tensor, method: str) -> None:
    action = FunctionAction([(lambda x: x[..., :1], lambda x: x[..., :1])], labels=["cropped"])
    arguments = () if method == "orbit" else (index,)
    with pytest.raises(ValueError, match=r"Expected 'cropped' of .* to keep the shape \(\d, 3\) but got \(\d, 1\)"):
        getattr(action, method)(torch.ones(2, 3), *arguments)


def test_functions_must_return_a_tensor() -> None:
    action = FunctionAction([(lambda x: [x], lambda x: x)])  # type: ignore[list-item,return-value]
    with pytest.raises(ValueError, match=r"to keep the shape .* but got list"):
        action.act(torch.ones(2, 3), 1)


# Products --------------------------------------------------------------------------------------------------------


def test_the_second_acts_first() -> None:
    double = FunctionAction([(lambda x: 2 * x, lambda x: x / 2)], labels=["double"])
    plus = FunctionAction([(up, down)], labels=["plus"])
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
    product = C4() * CyclicTranslations(3)
    x = torch.arange(2 * 36).reshape(2, 6, 6)
    for turns in range(4):
        for step in range(3):
            expected = np.rot90(np.roll(x.numpy(), 2 * step, -1), turns, (-2, -1))
            moved = product.act(x, 3 * turns + step)
            np.testing.assert_array_equal(moved.numpy(), expected)
            assert torch.equal(product.invert(moved, 3 * turns + step), x)


def test_one_pair_a_sample() -> None:
    product = C4() * CyclicTranslations(3)
    x = torch.arange(12 * 36).reshape(12, 6, 6)
    index = torch.arange(12).flip(0)
    expected = [
        np.rot90(np.roll(image, 2 * (g % 3), -1), g // 3) for image, g in zip(x.numpy(), index.tolist(), strict=True)
    ]
    moved = product.act(x, index)
    np.testing.assert_array_equal(moved.numpy(), np.stack(expected))
    assert torch.equal(product.invert(moved, index), x)


def test_two_flips_are_half_a_turn() -> None:
    x = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal((HorizontalFlip() * VerticalFlip()).act(x, 3), x.flip(1, 2))


def test_products_of_products() -> None:
    flips = HorizontalFlip() * VerticalFlip()
    left, right = C4() * flips, C4() * HorizontalFlip() * VerticalFlip()
    x = torch.arange(32).reshape(2, 4, 4)
    assert len(left) == len(right) == 16
    assert torch.equal(left.orbit(x), right.orbit(x))


@pytest.mark.parametrize(
    ("product", "exact"),
    [
        (C4() * CyclicTranslations(3), True),
        (C4() * Rotations(3), False),
        (mixed_colours() * C4(), False),
        (negated_or_doubled() * SetPermutations(2), True),
        (negated_or_doubled(exact=False) * C4(), False),
    ],
    ids=repr,
)
def test_exact_where_both_are(product: ProductAction, exact: bool) -> None:
    assert product.exact is exact


def test_dims_of_both() -> None:
    assert (C4() * CyclicTranslations(3)).dims == (-2, -1)
    assert (SO3(2, dim=-3) * HorizontalFlip()).dims == (-3, -1)
    assert (C4() * negated_or_doubled()).dims is None


def test_both_must_be_able_to_act() -> None:
    with pytest.raises(ValueError, match="multiple of 3"):
        (C4() * CyclicTranslations(3)).check(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="square"):
        (C4() * CyclicTranslations(3)).check(torch.zeros(1, 8, 9))


@pytest.mark.parametrize("other", [3, None, "C4()", torch.ones(1)], ids=["int", "None", "str", "tensor"])
def test_only_actions_multiply(other: object) -> None:
    with pytest.raises(TypeError):
        operator.mul(C4(), other)
