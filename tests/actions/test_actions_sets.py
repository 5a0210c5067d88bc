"""Orders of sets: tokens, padding that stays in its place, and what moves together with a set."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections import Counter

import pytest
import torch
from torch import Tensor

from lightning_invariance.actions import SO3, CyclicTranslations, FunctionAction, HorizontalFlip, SetPermutations

LENGTHS = (4, 7, 0, 1, 5)


def drawn_orders(size: int, samples: int, seed: int) -> list[list[int]]:
    """The orders by hand: element 0 is the identity."""
    generator = torch.Generator().manual_seed(seed)
    return [list(range(size)), *(torch.randperm(size, generator=generator).tolist() for _ in range(samples))]


def padded_tokens(lengths: tuple[int, ...] = LENGTHS, size: int = 7, padding: int = 0) -> Tensor:
    """Distinct tokens, from 1 on, each sample as long as said."""
    tokens = torch.arange(1, len(lengths) * size + 1).reshape(len(lengths), size)
    for sample, length in enumerate(lengths):
        tokens[sample, length:] = padding
    return tokens


def padded_points() -> Tensor:
    points = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    points[padded_tokens() == 0] = 0.0
    points[1, 2, :2] = 0.0  # a point on an axis, no padding
    return points


def by_hand(tokens: list[int], order: list[int], padding: int = 0) -> list[int]:
    """One sample: its valid places, as they lie, take the valid tokens as the order comes upon them."""
    coming = iter([tokens[place] for place in order if tokens[place] != padding])
    return [token if token == padding else next(coming) for token in tokens]


# Tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [-1, -3])
def test_the_set_in_any_dimension(dim: int) -> None:
    x = torch.arange(2 * 4 * 5 * 6).reshape(2, 4, 5, 6)
    action, plain = SetPermutations(3, dim=dim), SetPermutations(3)
    assert action.dims == (dim,)
    for index in (1, torch.tensor([3, 2])):
        assert torch.equal(action.act(x, index), plain.act(x.transpose(dim, -2), index).transpose(dim, -2))
        assert torch.equal(action.invert(action.act(x, index), index), x)


# Padding ---------------------------------------------------------------------------------------------------------


def test_tokens_take_the_drawn_orders_and_padding_stays_wherever_it_lies() -> None:
    anywhere = torch.tensor([[0, 3, 0, 4, 5, 0, 6], [1, 0, 0, 0, 0, 0, 2], [1, 2, 3, 4, 5, 6, 7]])
    tokens = torch.cat([padded_tokens(), anywhere])
    action, orders = SetPermutations(6, seed=3, dim=-1, padding=0), drawn_orders(7, 6, seed=3)
    orbit = [[by_hand(row, order) for row in tokens.tolist()] for order in orders]
    assert action.orbit(tokens).tolist() == orbit
    for element in range(7):
        assert action.act(tokens, element).tolist() == orbit[element]
    index = torch.tensor([2, 6, 1, 0, 4, 3, 5, 6])
    assert action.act(tokens, index).tolist() == [orbit[g][sample] for sample, g in enumerate(index.tolist())]
    # Without any padding the draws are those of plain sets.
    plain = SetPermutations(6, seed=3, dim=-1)
    assert torch.equal(plain.orbit(tokens), torch.stack([tokens[:, order] for order in orders]))
    assert torch.equal(plain.orbit(anywhere[2:]), action.orbit(anywhere[2:]))


@pytest.mark.parametrize("features_first", [False, True])
def test_padded_points_stay_in_place_and_come_back_bit_for_bit(features_first: bool) -> None:
    points = padded_points()
    action = SetPermutations(8, dim=-1 if features_first else -2, padding=0)
    x = points.mT.contiguous() if features_first else points
    padded = padded_tokens() == 0
    for index in (*range(9), torch.tensor([8, 0, 3, 1, 7])):
        moved = action.act(x, index)
        there = moved.mT if features_first else moved
        assert torch.equal((there == 0).all(dim=-1), padded)
        for sample in range(5):
            assert sorted(there[sample].tolist()) == sorted(points[sample].tolist())
        assert torch.equal(action.invert(moved, index), x)
        assert torch.equal(action.act(action.invert(x, index), index), x)
    action.verify(x)


def test_every_order_of_three_tokens_is_as_likely() -> None:
    tokens = torch.tensor([0, 11, 0, 0, 22, 33, 0, 0]).expand(6000, -1)
    moved = SetPermutations(6000, seed=1, dim=-1, padding=0).act(tokens, torch.arange(1, 6001))
    counts = Counter(tuple(row) for row in moved[:, [1, 4, 5]].tolist())
    assert set(counts) == set(itertools.permutations((11, 22, 33)))
    # Chi-square of 5 degrees of freedom: above 20.5 once in a thousand.
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 20.5


VALUES = [0.0, 1.0, 3.0, 255.0, -1.0, 0.5, -float("inf"), 2.0**24, 2.0**24 + 1]
HELD = {torch.float32: VALUES, torch.bfloat16: VALUES, torch.uint8: [0, 1, 3, 255], torch.bool: [0, 1, 1]}


@pytest.mark.parametrize("dtype", [*HELD, torch.int64])
def test_padding_is_that_number_and_no_other(dtype: torch.dtype) -> None:
    row = torch.tensor(HELD.get(dtype, [0, 1, 3, 255, -1, 2**24, 2**24 + 1]), dtype=dtype)
    places = torch.arange(len(row))[None]
    for padding in (0, 3, -1, 255, 1.0, 0.5, -float("inf"), 2.0**24):
        held = SetPermutations(20, dim=-1, padding=padding).attached(row[None])
        stays = (held.orbit(places)[:, 0] == places).all(dim=0)
        expected = torch.tensor([value == padding for value in row.tolist()])
        assert torch.equal(stays, expected) if int((~expected).sum()) > 1 else bool(stays.all())


def test_nan_is_no_padding() -> None:
    x = torch.tensor([[1.0, float("nan"), 0.0, 2.0]])
    moved = SetPermutations(30, dim=-1, padding=0).orbit(x)[:, 0]
    assert bool((moved[:, 2] == 0).all())
    assert len({int(row.isnan().int().argmax()) for row in moved}) == 3


def test_gradients_flow_to_where_values_came_from() -> None:
    points = padded_points().double().requires_grad_()
    action = SetPermutations(3, padding=0)
    held = action.attached(points.clone())  # a gradient by differences changes the points in place
    assert torch.autograd.gradcheck(lambda x: held.act(x, torch.tensor([1, 2, 3, 1, 2])), points)
    weights = torch.randn(5, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for index in (2, torch.tensor([1, 2, 3, 0, 2])):
        (gradient,) = torch.autograd.grad((action.act(points, index) * weights).sum(), points)
        assert torch.equal(gradient, action.attached(points).invert(weights, index))
    with torch.inference_mode():
        held = SetPermutations(3, padding=0).attached(padded_points())
    held.act(points, 1).square().sum().backward()


# What is attached to a set ---------------------------------------------------------------------------------------


def test_maps_of_a_padded_set_are_brought_back() -> None:
    """A map has values at the padding too: the action alone would take none of its places for padding."""
    points = padded_points()
    action = SetPermutations(5, padding=0)
    held = action.attached(points)
    places = torch.arange(5 * 7 * 2).reshape(5, 7, 2)
    for index in (3, torch.tensor([1, 2, 3, 4, 5])):
        assert torch.equal(held.act(points, index), action.act(points, index))
        assert torch.equal(held.invert(held.act(places, index), index), places)
    assert not torch.equal(action.invert(held.act(places, 3), 3), places)
    held.verify(points)
    held.verify(places)
    assert held.attached(points) == held
    assert len(held) == 6
    assert held.labels == action.labels
    assert held.cayley_table is None
    assert held.exact
    assert held.redrawn(4, 2) == SetPermutations(2, seed=4, padding=0).attached(points)


def test_the_held_action_is_a_value() -> None:
    points = padded_points()
    held = SetPermutations(5, padding=0).attached(points)
    held.act(points, 1)
    assert pickle.loads(pickle.dumps(held)) == copy.deepcopy(held) == held
    assert hash(copy.deepcopy(held)) == hash(held)
    assert held != SetPermutations(5, padding=0).attached(points.flip(0))
    assert "held by the padding of 5 samples" in repr(held)
    plain = SetPermutations(5)
    assert plain.attached(points) is plain  # nothing to hold


@pytest.mark.parametrize("padding", [None, 0])
def test_other_inputs_move_with_the_set(padding: int | None) -> None:
    """By the rows of the points: wherever one lies after, its charge and its row of distances lie too."""
    points = padded_points()
    action = SetPermutations(5, padding=padding)
    charges = torch.arange(35).reshape(5, 7)
    with_charges = torch.cat([points, charges[..., None]], dim=-1)
    features = torch.randn(5, 7, 2, 4, generator=torch.Generator().manual_seed(2))
    for index in (2, torch.tensor([1, 2, 3, 4, 5])):
        held = action.attached(points)
        together = held.act(with_charges, index)
        assert torch.equal(action.act(points, index), together[..., :3])
        moved = action.alongside(points, charges).act(charges, index)
        assert torch.equal(moved.float(), together[..., 3])
        assert torch.equal(action.alongside(points, charges).invert(moved, index), charges)
        moved = action.alongside(points, features).act(features, index)
        for sample in range(5):
            for place in range(7):
                came_from = int(together[sample, place, 3]) - 7 * sample
                assert torch.equal(moved[sample, place], features[sample, came_from])
        assert torch.equal(held.alongside(points, charges).act(charges, index).float(), together[..., 3])


def test_other_actions_move_everything_alike() -> None:
    image, depth = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4)
    action = HorizontalFlip()
    assert action.alongside(image, depth) is action
    assert action.attached(image) is action
    product = action * CyclicTranslations(2)
    assert product.alongside(image, depth) is product
    assert product.attached(image) is product


# Products --------------------------------------------------------------------------------------------------------


def test_products_attach_and_move_along_both_factors() -> None:
    points = padded_points()
    sets, turns = SetPermutations(3, padding=0), SO3(2)
    places = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(3))
    for product in (sets * turns, turns * sets):
        held = product.attached(points)
        for element in range(len(product)):
            moved = held.act(points, element)
            torch.testing.assert_close(moved, product.act(points, element))
            assert torch.equal((moved == 0).all(dim=-1), padded_tokens() == 0)
            torch.testing.assert_close(held.invert(held.act(places, element), element), places, rtol=1e-5, atol=1e-5)
        product.verify(points)
        held.verify(points)
        velocities = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(4))
        expected = turns.act(sets.attached(points).act(velocities, 2), 1)
        pair = 2 * 3 + 1 if product.first is sets else 1 * 4 + 2
        torch.testing.assert_close(product.alongside(points, velocities).act(velocities, pair), expected)


def test_a_factor_that_changes_the_padding_is_refused() -> None:
    """Rotated, padding of -1 is padding no more: the other factor, and the network, would take it for points."""
    points = padded_points()
    points[padded_tokens() == 0] = -1.0
    sets = SetPermutations(3, padding=-1)
    for product in (SO3(2) * sets, sets * SO3(2)):
        with pytest.raises(ValueError, match=r"Expected 'rotation1' of SO3.* to leave the padding in `x` that SetPerm"):
            product.verify(points)
    moved = FunctionAction([(lambda x: x.roll(1, 1), lambda x: x.roll(-1, 1))], labels=["rolled"])
    with pytest.raises(ValueError, match=r"Expected 'rolled' of .* to leave the padding"):
        (moved * sets).verify(points)
    (HorizontalFlip() * sets).verify(points)
