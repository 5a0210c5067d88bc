"""What `act`, `invert` and `orbit` promise for every action alike."""

from __future__ import annotations

import pytest
import torch
from actions_catalogue import (
    AFFINE,
    EVERY,
    FUNCTIONS,
    LINEAR,
    PADDED,
    PERMUTATIONS,
    PRODUCTS,
    Case,
    batch_for,
    each,
    indices_for,
)
from torch import Tensor

from lightning_invariance.actions import C4, Action, HorizontalFlip, SetPermutations

INEXACT_PRODUCTS = ("D4*LinearAction", "Rotations*HorizontalFlip", "SO3*SetPermutations")


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@each(EVERY)
def test_index_0_is_the_identity(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    none = torch.zeros(len(x), dtype=torch.int64)
    for got in (action.act(x, 0), action.invert(x, 0), action.act(x, none), action.invert(x, none), action.orbit(x)[0]):
        assert torch.equal(got, x)


@each(EVERY)
def test_every_other_element_moves_something(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    assert [g for g in range(len(action)) if torch.equal(action.act(x, g), x)] == [0]


@each(EVERY)
def test_orbit_holds_act_of_every_element(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    orbit = action.orbit(x)
    assert orbit.shape == (len(action), *x.shape)
    for element in range(len(action)):
        close(orbit[element], action.act(x, element))


@each(EVERY)
def test_orbit_of_chosen_elements(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    chosen = [len(action) - 1, 0, 1, 0]
    orbit = action.orbit(x, elements=chosen)
    assert orbit.shape == (4, *x.shape)
    for place, element in enumerate(chosen):
        close(orbit[place], action.act(x, element))
    assert torch.equal(orbit[1], x)
    assert torch.equal(orbit[3], x)
    assert torch.equal(action.orbit(x, elements=[0])[0], x)
    close(action.orbit(x, elements=(1,))[0], action.act(x, 1))


@each(EVERY)
@pytest.mark.parametrize("method", ["act", "invert"])
def test_one_element_a_sample_is_each_sample_alone(case: Case, method: str) -> None:
    action, x = case.make(), batch_for(case)
    apply = getattr(action, method)
    for shift in range(len(action)):
        index = (indices_for(action, x) + shift) % len(action)
        got = apply(x, index)
        assert got.shape == x.shape
        for sample in range(len(x)):
            close(got[sample], apply(x[sample : sample + 1], int(index[sample]))[0])


@each(EVERY)
def test_the_identity_among_other_elements_is_bit_exact(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    assert torch.equal(action.act(x, torch.tensor([1, 0, 1]))[1], x[1])
    assert torch.equal(action.invert(x, torch.tensor([1, 0, 1]))[1], x[1])


@each(PERMUTATIONS, PADDED, FUNCTIONS, PRODUCTS, without=INEXACT_PRODUCTS)
def test_round_trips_of_exact_actions_are_bit_exact(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    assert action.exact
    for element in range(len(action)):
        assert torch.equal(action.invert(action.act(x, element), element), x)
        assert torch.equal(action.act(action.invert(x, element), element), x)
    for shift in range(len(action)):
        index = (indices_for(action, x) + shift) % len(action)
        assert torch.equal(action.invert(action.act(x, index), index), x)


@each(LINEAR)
def test_round_trips_of_linear_actions_are_exact_up_to_rounding(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    assert not action.exact
    for element in range(len(action)):
        close(action.invert(action.act(x, element), element), x)
        index = torch.full((len(x),), element)
        close(action.invert(action.act(x, index), index), x)


@each(AFFINE)
def test_interpolating_actions_do_not_claim_to_be_exact(case: Case) -> None:
    assert not case.make().exact


@each(EVERY)
def test_the_input_is_left_alone(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    before = x.clone()
    action.act(x, 1)
    action.act(x, indices_for(action, x))
    action.invert(x, indices_for(action, x))
    action.orbit(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("index", [torch.tensor(1), torch.tensor(1, dtype=torch.int32)])
def test_a_scalar_tensor_is_one_element_for_all(index: Tensor) -> None:
    x = torch.arange(8.0).reshape(2, 2, 2)
    assert torch.equal(C4().act(x, index), C4().act(x, 1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_indices_of_any_integer_type(dtype: torch.dtype) -> None:
    x = torch.arange(12.0).reshape(3, 2, 2)
    index = torch.tensor([0, 3, 1])
    assert torch.equal(C4().act(x, index.to(dtype)), C4().act(x, index))


@pytest.mark.parametrize(
    ("action", "dims"),
    [(C4(), (-2, -1)), (HorizontalFlip(), (-1,)), (SetPermutations(2), (-2,))],
)
def test_dims_name_what_is_acted_on(action: Action, dims: tuple[int, ...]) -> None:
    assert action.dims == dims


@each(EVERY, without=["FunctionAction"])
def test_the_other_dimensions_go_along(case: Case) -> None:
    """Every slice of the dimensions not acted on is moved as it would be alone."""
    action, x = case.make(), batch_for(case)
    assert action.dims is not None
    reach = -min(action.dims)
    wide = torch.stack([x, 2 * x], dim=1)
    assert x.ndim >= reach + 1
    close(action.act(wide, 1), torch.stack([action.act(x, 1), action.act(2 * x, 1)], dim=1))
