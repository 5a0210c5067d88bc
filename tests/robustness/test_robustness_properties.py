"""What must hold of actions for any shapes, precisions and group orders."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_invariance import (
    C4,
    D4,
    Action,
    CyclicTranslations,
    HorizontalFlip,
    LinearAction,
    PermutationAction,
    Rotations,
    SetPermutations,
    VerticalFlip,
)

few = settings(max_examples=20, deadline=None, derandomize=True)


@st.composite
def permutation_groups(draw: st.DrawFn) -> PermutationAction:
    """The powers of any one permutation."""
    size = draw(st.integers(1, 6))
    step = torch.randperm(size, generator=torch.Generator().manual_seed(draw(st.integers(0, 999))))
    powers = [torch.arange(size)]
    while not torch.equal(powers[-1][step], powers[0]):
        powers.append(powers[-1][step])
    return PermutationAction(torch.stack(powers))


@few
@given(action=permutation_groups(), batch=st.integers(1, 4), seed=st.integers(0, 99))
def test_powers_of_a_permutation_act_as_a_group(action: PermutationAction, batch: int, seed: int) -> None:
    x = torch.randn(batch, 2, action.index_table(()).shape[1], generator=torch.Generator().manual_seed(seed))
    table = action.cayley_table
    assert table is not None
    assert torch.equal(table, table.T)
    for left in range(len(action)):
        assert torch.equal(action.invert(action.act(x, left), left), x)
        for right in range(len(action)):
            assert torch.equal(action.act(action.act(x, right), left), action.act(x, int(table[left, right])))


@few
@given(order=st.integers(1, 7), size=st.integers(1, 3), seed=st.integers(0, 99))
def test_linear_actions_of_any_cyclic_group_invert(order: int, size: int, seed: int) -> None:
    angles = 2 * torch.pi * torch.arange(order, dtype=torch.float64) / order
    matrices = torch.zeros(order, 2, 2, dtype=torch.float64)
    matrices[:, 0, 0] = matrices[:, 1, 1] = angles.cos()
    matrices[:, 1, 0], matrices[:, 0, 1] = angles.sin(), -angles.sin()
    matrices[0] = torch.eye(2)
    action = LinearAction(matrices)
    x = torch.randn(3, size, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    table = action.cayley_table
    assert table is not None
    assert torch.equal(table, (torch.arange(order)[:, None] + torch.arange(order)) % order)
    index = torch.arange(3) % order
    torch.testing.assert_close(action.invert(action.act(x, index), index), x, rtol=1e-12, atol=1e-12)


EXACT: list[Callable[[int], Action]] = [
    lambda order: C4(),
    lambda order: D4(),
    lambda order: CyclicTranslations(order),
    lambda order: CyclicTranslations(order, dim=-2),
    lambda order: SetPermutations(order),
    lambda order: C4() * CyclicTranslations(order),
    lambda order: HorizontalFlip() * VerticalFlip(),
]
DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


@few
@given(
    make=st.sampled_from(EXACT),
    order=st.integers(1, 4),
    repeats=st.integers(1, 3),
    batch=st.integers(0, 3),
    between=st.lists(st.integers(1, 2), max_size=2),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_exact_actions_only_move_values(
    make: Callable[[int], Action],
    order: int,
    repeats: int,
    batch: int,
    between: list[int],
    dtype: torch.dtype,
    seed: int,
) -> None:
    action, side = make(order), order * repeats
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(100, (batch, *between, side, side), generator=generator).to(dtype)
    index = torch.randint(len(action), (batch,), generator=generator)
    moved = action.act(x, index)
    assert moved.dtype == dtype
    assert moved.shape == x.shape
    assert torch.equal(action.invert(moved, index), x)
    orbit = action.orbit(x)
    for sample, element in enumerate(index.tolist()):
        assert torch.equal(moved[sample], orbit[element, sample])
    values = torch.view_as_real(moved).flatten() if dtype.is_complex else moved.flatten()
    before = torch.view_as_real(x).flatten() if dtype.is_complex else x.flatten()
    assert torch.equal(values.sort().values, before.sort().values)


@few
@given(order=st.integers(1, 8), height=st.integers(1, 6), width=st.integers(1, 6), seed=st.integers(0, 99))
def test_rotations_are_linear_in_the_image(order: int, height: int, width: int, seed: int) -> None:
    action = Rotations(order)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 1, 2, height, width, generator=generator, dtype=torch.float64)
    both = action.orbit(2 * x - 3 * y)
    torch.testing.assert_close(both, 2 * action.orbit(x) - 3 * action.orbit(y), rtol=1e-9, atol=1e-12)
    assert torch.equal(action.orbit(torch.stack([x[0], y[0]]))[:, 1:], action.orbit(y))
