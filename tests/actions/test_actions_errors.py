"""Every complaint, and that it says what would work."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_invariance.actions import (
    C4,
    D4,
    O3,
    SO2,
    SO3,
    Action,
    AffineAction,
    CyclicTranslations,
    FunctionAction,
    HorizontalFlip,
    LinearAction,
    PermutationAction,
    Rotations,
    ScalingRange,
    Scalings,
    SetPermutations,
    TimeReversal,
    VerticalFlip,
)

# The test's own calls go around the types on purpose.
Make: Any = Callable[..., Action]
identity_map = torch.eye(2, 3)
swap = PermutationAction(torch.tensor([[0, 1, 2, 3], [2, 3, 0, 1]]))
colours = LinearAction(torch.stack([torch.eye(3), torch.eye(3).flip(0)]), dim=-3)
negated = FunctionAction([(torch.neg, torch.neg)])

INPUTS: list[tuple[Action, Any, str]] = [
    (C4(), torch.zeros(2, 3, 28, 30), "C4() but got 28×30: crop them to 28×28 or pad them to 30×30"),
    (D4(), torch.zeros(2, 9, 4), "D4() but got 9×4: crop them to 4×4 or pad them to 9×9"),
    (C4() * HorizontalFlip(), torch.zeros(2, 9, 4), "crop them to 4×4 or pad them to 9×9"),
    (C4(), torch.zeros(4, 4), "a batch dimension and at least 2 more for C4() but got shape (4, 4)"),
    (HorizontalFlip(), torch.zeros(4), "at least 1 more for HorizontalFlip() but got shape (4,)"),
    (VerticalFlip(), torch.zeros(4, 4), "at least 2 more for VerticalFlip() but got shape (4, 4)"),
    (TimeReversal(), torch.tensor(1.0), "at least 1 more for TimeReversal() but got shape ()"),
    (CyclicTranslations(3, dim=-2), torch.zeros(2, 6), "at least 2 more for CyclicTranslations(order=3, dim=-2)"),
    (CyclicTranslations(3), torch.zeros(2, 3, 28, 28), "but got 28: 27 or 30 would work"),
    (CyclicTranslations(3, dim=-2), torch.zeros(2, 28, 9), "in dimension -2 to be a multiple of 3"),
    (CyclicTranslations(30), torch.zeros(2, 28), "but got 28: 30 would work"),
    (CyclicTranslations(3), torch.zeros(2, 0), "but got 0: 3 would work"),
    (SetPermutations(2), torch.zeros(4, 4), "at least 2 more for SetPermutations(samples=2, seed=0)"),
    (
        SetPermutations(2),
        torch.zeros(4, 9, dtype=torch.int64),
        "for SetPermutations(samples=2, seed=0) but got shape (4, 9): for tokens (B, L) pass dim=-1.",
    ),
    (
        SetPermutations(2, dim=-3),
        torch.zeros(4, 9, 3),
        "at least 3 more for SetPermutations(samples=2, seed=0, dim=-3) but got shape (4, 9, 3): pass a `dim` from -2",
    ),
    (
        SetPermutations(2, padding=0),
        torch.zeros(4),
        "at least 2 more for SetPermutations(samples=2, seed=0, padding=0)",
    ),
    (
        ScalingRange(0.5, 2.0, 2),
        torch.zeros(1, 4, 4, dtype=torch.uint8),
        "floating point for ScalingRange(smallest=0.5",
    ),
    (swap, torch.zeros(2, 5), "to end in 4 for PermutationAction(2 elements on 4) but got 5"),
    (PermutationAction(torch.arange(6).reshape(1, 2, 3)), torch.zeros(1, 3, 2), "to end in 2×3 for "),
    (Rotations(8), torch.zeros(4, 4), "at least 2 more for Rotations("),
    (Rotations(8), torch.zeros(1, 4, 4, dtype=torch.uint8), "floating point for Rotations("),
    (SO2(2), torch.zeros(1, 4, 4, dtype=torch.int64), "which interpolates, but got torch.int64"),
    (Scalings([2.0]), torch.zeros(1, 4, 4, dtype=torch.complex64), "which interpolates, but got torch.complex64"),
    (colours, torch.zeros(2, 4, 8, 8), "in dimension -3 to be 3 for LinearAction(2 elements of 3×3, dim=-3) but got 4"),
    (colours, torch.zeros(3, 8, 8), "at least 3 more for LinearAction("),
    (colours, torch.zeros(2, 3, 8, 8, dtype=torch.int32), "floating point for LinearAction(2 elements"),
    (SO3(2), torch.zeros(2, 5, 2), "to be 3 for SO3(samples=2, seed=0, dim=-1) but got 2"),
    (negated, torch.tensor(1.0), "a batch dimension and at least 0 more for FunctionAction('element1')"),
    (C4(), [[1.0]], "to be a tensor for C4() but got list"),
    (Rotations(8), 1.0, "but got float"),
    (colours, None, "but got NoneType"),
    (negated, "image", "to be a tensor for FunctionAction('element1') but got str"),
    (C4() * CyclicTranslations(3), torch.zeros(2, 28, 28), "27 or 30 would work"),
]


@pytest.mark.parametrize(("action", "x", "says"), INPUTS, ids=[says for _, _, says in INPUTS])
def test_batches_it_cannot_act_on(action: Action, x: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        action.check(x)
    with pytest.raises(ValueError, match=re.escape(says)):
        action.act(x, 0)
    with pytest.raises(ValueError, match=re.escape(says)):
        action.invert(x, torch.tensor([0]))
    with pytest.raises(ValueError, match=re.escape(says)):
        action.orbit(x)


INDICES: list[tuple[Any, str]] = [
    (4, "Expected `index` to be between 0 and 3 for C4() but got 4"),
    (-1, "between 0 and 3 for C4() but got -1"),
    (torch.tensor(4), "between 0 and 3 for C4() but got 4"),
    (torch.tensor([0, 4, 1]), "between 0 and 3 for C4() but got 4"),
    (torch.tensor([0, 1, -2]), "between 0 and 3 for C4() but got -2"),
    (torch.tensor([0, 1]), "one element for each of the 3 samples but got shape (2,)"),
    (torch.tensor([0]), "one element for each of the 3 samples but got shape (1,)"),
    (torch.zeros(3, 1, dtype=torch.int64), "for each of the 3 samples but got shape (3, 1)"),
    (torch.zeros(0, dtype=torch.int64), "for each of the 3 samples but got shape (0,)"),
    (torch.zeros(3), "to hold integers but got torch.float32"),
    (torch.zeros(3, dtype=torch.bool), "to hold integers but got torch.bool"),
    (torch.zeros(3, dtype=torch.complex64), "to hold integers but got torch.complex64"),
]


@pytest.mark.parametrize("method", ["act", "invert"])
@pytest.mark.parametrize(("index", "says"), INDICES, ids=[says for _, says in INDICES])
def test_indices_that_name_no_elements(index: Any, says: str, method: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        getattr(C4(), method)(torch.zeros(3, 4, 4), index)


@pytest.mark.parametrize(
    "index", [1.5, torch.tensor(1.5), torch.tensor(1.0), torch.tensor(True), [0, 1, 2], None], ids=repr
)
def test_a_single_index_must_be_an_integer(index: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected `index` to .*integer"):
        C4().act(torch.zeros(3, 4, 4), index)


@pytest.mark.parametrize(
    "action", [D4(), Rotations(8), SO3(7, dim=-2), C4() * HorizontalFlip()], ids=lambda action: type(action).__name__
)
@pytest.mark.parametrize("index", [8, torch.tensor([0, 8])], ids=["one", "each"])
def test_every_kind_of_action_names_its_range(action: Action, index: int | Tensor) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 7 for .* but got 8"):
        action.act(torch.zeros(2, 3, 3), index)


@pytest.mark.parametrize(
    ("elements", "says"),
    [
        ([], "to name at least one element but got none"),
        ([0, 4], "between 0 and 3 for C4() but got 4"),
        ([-1], "between 0 and 3 for C4() but got -1"),
    ],
)
def test_orbit_of_elements_that_are_none(elements: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        C4().orbit(torch.zeros(1, 4, 4), elements=elements)


@pytest.mark.parametrize("n", [-1, 1.0, "3", True, None])
def test_sample_wants_a_count(n: Any) -> None:
    with pytest.raises(ValueError, match="Expected `n` to be an integer of at least 0"):
        C4().sample(n)


twice = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[1.0, 0, 0], [1, 0, 0]]])
ARGUMENTS: list[tuple[Make, tuple[Any, ...], dict[str, Any], str]] = [
    (PermutationAction, ([[0, 1]],), {}, "`table` to be an integer tensor of shape (|G|, n1, ..., nk)"),
    (PermutationAction, (torch.arange(3),), {}, "`table` to be an integer tensor of shape (|G|, n1, ..., nk)"),
    (PermutationAction, (torch.eye(2),), {}, "`table` to be an integer tensor of shape (|G|, n1, ..., nk)"),
    (PermutationAction, (torch.zeros(0, 3, dtype=torch.int64),), {}, "Expected"),
    (
        PermutationAction,
        (torch.tensor([[0, 1, 2], [0, 0, 2]]),),
        {},
        "every row of `table` to be a permutation of 0 to 2",
    ),
    (
        PermutationAction,
        (torch.tensor([[0, 1, 2], [1, 2, 3]]),),
        {},
        "every row of `table` to be a permutation of 0 to 2",
    ),
    (PermutationAction, (torch.tensor([[1, 0], [0, 1]]),), {}, "row 0 of `table` to be the identity"),
    (CyclicTranslations, (0,), {}, "`order` to be an integer of at least 1 but got 0"),
    (CyclicTranslations, (2.0,), {}, "`order` to be an integer of at least 1 but got 2.0"),
    (CyclicTranslations, (3,), {"dim": 1}, "`dim` to be negative (counted from the end) but got 1"),
    (CyclicTranslations, (3,), {"dim": -1.0}, "`dim` to be negative (counted from the end) but got -1.0"),
    (SetPermutations, (0,), {}, "`samples` to be an integer of at least 1 but got 0"),
    (SetPermutations, (2,), {"dim": 0}, "`dim` to be negative (counted from the end) but got 0"),
    (SetPermutations, (2,), {"padding": float("nan")}, "`padding` to be a number, not NaN, or None but got nan"),
    (SetPermutations, (2,), {"padding": True}, "`padding` to be a number, not NaN, or None but got True"),
    (ScalingRange, (0.0, 2.0, 4), {}, "`smallest` to be a finite number above 1e-06 but got 0.0"),
    (ScalingRange, (0.5, 0.5, 4), {}, "`largest` to be a finite number above 0.5 but got 0.5"),
    (ScalingRange, (0.5, float("inf"), 4), {}, "`largest` to be a finite number above 0.5 but got inf"),
    (ScalingRange, (0.5, 2.0, 0), {}, "`samples` to be an integer of at least 1 but got 0"),
    (AffineAction, (torch.eye(3)[None],), {}, "`matrices` to be a tensor of shape (|G|, 2, 3)"),
    (AffineAction, (identity_map,), {}, "`matrices` to be a tensor of shape (|G|, 2, 3)"),
    (AffineAction, ([[[1, 0, 0], [0, 1, 0]]],), {}, "`matrices` to be a tensor of shape (|G|, 2, 3)"),
    (AffineAction, (torch.zeros(0, 2, 3),), {}, "Expected"),
    (AffineAction, (identity_map[None] * 2,), {}, "`matrices[0]` to be the identity"),
    (AffineAction, (twice,), {}, "every matrix in `matrices` to be invertible"),
    (AffineAction, (twice * torch.tensor([1.0, float("nan")])[:, None, None],), {}, "to be invertible"),
    (
        AffineAction,
        (identity_map[None],),
        {"interpolation": "cubic"},
        "['bilinear', 'bicubic', 'nearest'] but got 'cubic'",
    ),
    (AffineAction, (identity_map[None],), {"padding": "zero"}, "['zeros', 'border', 'reflection'] but got 'zero'"),
    (Rotations, (0,), {}, "`order` to be an integer of at least 1 but got 0"),
    (Rotations, (True,), {}, "`order` to be an integer of at least 1 but got True"),
    (Rotations, (4,), {"padding": "circular"}, "['zeros', 'border', 'reflection'] but got 'circular'"),
    (SO2, (0,), {}, "`samples` to be an integer of at least 1 but got 0"),
    (SO2, (2,), {"interpolation": "linear"}, "['bilinear', 'bicubic', 'nearest'] but got 'linear'"),
    (Scalings, ([],), {}, "`factors` to be positive numbers, at least one, but got []"),
    (Scalings, ([2.0, 0.0],), {}, "`factors` to be positive numbers, at least one, but got [2.0, 0.0]"),
    (Scalings, ([-1.0],), {}, "`factors` to be positive numbers"),
    (Scalings, ([float("inf")],), {}, "`factors` to be positive numbers"),
    (Scalings, ([float("nan")],), {}, "`factors` to be positive numbers"),
    (LinearAction, (torch.zeros(2, 2, 3),), {}, "`matrices` to be a tensor of shape (|G|, n, n)"),
    (LinearAction, (torch.eye(2),), {}, "`matrices` to be a tensor of shape (|G|, n, n)"),
    (LinearAction, ([[[1.0]]],), {}, "`matrices` to be a tensor of shape (|G|, n, n)"),
    (LinearAction, (torch.zeros(0, 2, 2),), {}, "Expected"),
    (LinearAction, (torch.eye(2)[None],), {"dim": 0}, "`dim` to be negative (counted from the end) but got 0"),
    (LinearAction, (torch.eye(2)[None],), {"dim": "-1"}, "`dim` to be negative (counted from the end) but got '-1'"),
    (LinearAction, (-torch.eye(2)[None],), {}, "`matrices[0]` to be the identity"),
    (LinearAction, (torch.stack([torch.eye(2), torch.ones(2, 2)]),), {}, "every matrix in `matrices` to be invertible"),
    (SO3, (0,), {}, "`samples` to be an integer of at least 1 but got 0"),
    (SO3, (2,), {"dim": 2}, "`dim` to be negative (counted from the end) but got 2"),
    (O3, (-1,), {}, "`samples` to be an integer of at least 1 but got -1"),
    (O3, (2,), {"dim": 0}, "`dim` to be negative (counted from the end) but got 0"),
    (FunctionAction, ([],), {}, "`pairs` to hold pairs of functions (act, invert), at least one"),
    (FunctionAction, ([(torch.neg,)],), {}, "`pairs` to hold pairs of functions (act, invert)"),
    (FunctionAction, ([(torch.neg, 1)],), {}, "`pairs` to hold pairs of functions (act, invert)"),
    (FunctionAction, ([(None, torch.neg)],), {}, "`pairs` to hold pairs of functions (act, invert)"),
    (FunctionAction, ([torch.neg],), {}, "`pairs` to hold pairs of functions (act, invert)"),
    (FunctionAction, ([(torch.neg, torch.neg)],), {"labels": []}, "`labels` to hold 1 names, one a pair, but got 0"),
    (FunctionAction, ([(torch.neg, torch.neg)],), {"labels": ["a", "b"]}, "hold 1 names, one a pair, but got 2"),
]


@pytest.mark.parametrize(
    ("make", "arguments", "options", "says"),
    ARGUMENTS,
    ids=[f"{make.__name__}-{place}-{says}" for place, (make, _, _, says) in enumerate(ARGUMENTS)],
)
def test_arguments_that_make_no_action(
    make: Make, arguments: tuple[Any, ...], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        make(*arguments, **options)
