"""Every complaint, and that it says what would work."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lightning_invariance as li

# The test's own calls go around the types on purpose.
eye, zeros = torch.eye, torch.zeros
int32, int64, complex64 = torch.int32, torch.int64, torch.complex64
Table, Functions = li.PermutationAction, li.FunctionAction
plane = Table(torch.arange(6).reshape(1, 2, 3))
colours = li.LinearAction(torch.stack([eye(3), eye(3).flip(0)]), dim=-3)
negated = Functions([(torch.neg, torch.neg)])
SETS = "SetPermutations(samples=2, seed=0"

INPUTS: list[tuple[li.Action, Any, str]] = [
    (li.C4(), zeros(2, 3, 28, 30), "C4() but got 28×30: crop them to 28×28 or pad them to 30×30"),
    (li.D4(), zeros(4, 4), "a batch dimension and at least 2 more for D4() but got shape (4, 4)"),
    (li.HorizontalFlip(), zeros(4), "at least 1 more for HorizontalFlip() but got shape (4,)"),
    (li.VerticalFlip(), zeros(4, 4), "at least 2 more for VerticalFlip() but got shape (4, 4)"),
    (li.TimeReversal(), torch.tensor(1.0), "at least 1 more for TimeReversal() but got shape ()"),
    (li.CyclicTranslations(3, dim=-2), zeros(2, 6), "at least 2 more for CyclicTranslations(order=3, dim=-2)"),
    (li.C4() * li.CyclicTranslations(3), zeros(2, 28, 28), "but got 28: 27 or 30 would work"),
    (li.CyclicTranslations(3, dim=-2), zeros(2, 28, 9), "in dimension -2 to be a multiple of 3"),
    (li.CyclicTranslations(30), zeros(2, 28), "but got 28: 30 would work"),
    (li.CyclicTranslations(3), zeros(2, 0), "but got 0: 3 would work"),
    (
        li.SetPermutations(2),
        zeros(4, 9, dtype=int64),
        f"for {SETS}) but got shape (4, 9): for tokens (B, L) pass dim=",
    ),
    (
        li.SetPermutations(2, dim=-3),
        zeros(4, 9, 3),
        f"more for {SETS}, dim=-3) but got shape (4, 9, 3): pass a `dim` ",
    ),
    (li.SetPermutations(2, padding=0), zeros(4), f"at least 2 more for {SETS}, padding=0)"),
    (plane, zeros(1, 3, 2), "to end in 2×3 for "),
    (li.Rotations(8), zeros(4, 4), "at least 2 more for Rotations("),
    (li.SO2(2), zeros(1, 4, 4, dtype=int64), "which interpolates, but got torch.int64"),
    (li.Scalings([2.0]), zeros(1, 4, 4, dtype=complex64), "which interpolates, but got torch.complex64"),
    (colours, zeros(2, 4, 8, 8), "in dimension -3 to be 3 for LinearAction(2 elements of 3×3, dim=-3) but got 4"),
    (colours, zeros(3, 8, 8), "at least 3 more for LinearAction("),
    (colours, zeros(2, 3, 8, 8, dtype=int32), "floating point for LinearAction(2 elements"),
    (negated, torch.tensor(1.0), "a batch dimension and at least 0 more for FunctionAction('element1')"),
]


@pytest.mark.parametrize(("action", "x", "says"), INPUTS, ids=[says for _, _, says in INPUTS])
def test_batches_it_cannot_act_on(action: li.Action, x: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        action.check(x)
    with pytest.raises(ValueError, match=re.escape(says)):
        action.act(x, 0)
    with pytest.raises(ValueError, match=re.escape(says)):
        action.invert(x, torch.tensor([0]))
    with pytest.raises(ValueError, match=re.escape(says)):
        action.orbit(x)


INDICES: list[tuple[Any, str]] = [
    (torch.tensor(4), "between 0 and 3 for C4() but got 4"),
    (torch.tensor([0, 1, -2]), "between 0 and 3 for C4() but got -2"),
    (zeros(3, 1, dtype=int64), "for each of the 3 samples but got shape (3, 1)"),
    (zeros(3, dtype=torch.bool), "to hold integers but got torch.bool"),
    (zeros(3, dtype=complex64), "to hold integers but got torch.complex64"),
    *((index, "to be an integer or a tensor of one integer a sample") for index in (1.5, [0, 1, 2], None)),
]


def test_indices_that_name_no_elements() -> None:
    for apply in (li.C4().act, li.C4().invert):
        for index, says in INDICES:
            with pytest.raises(ValueError, match=re.escape(says)):
                apply(zeros(3, 4, 4), index)
    with pytest.raises(ValueError, match=r"between 0 and 3 for .* but got 4"):
        li.C4().orbit(zeros(1, 4, 4), elements=[0, 4])
    with pytest.raises(ValueError, match="Expected `n` to be an integer of at least 0"):
        li.C4().sample(-1)


@pytest.mark.parametrize(
    "action", [li.D4(), li.Rotations(8), li.SO3(7, dim=-2), li.C4() * li.HorizontalFlip()], ids=repr
)
def test_every_kind_of_action_names_its_range(action: li.Action) -> None:
    for index in (8, torch.tensor([0, 8])):
        with pytest.raises(ValueError, match=r"between 0 and 7 for .* but got 8"):
            action.act(zeros(2, 3, 3), index)


one = eye(2, 3)[None]
NEGATIVE, DRAWN = (
    "`dim` to be negative (counted from the end) but got",
    "`samples` to be an integer of at least 1 but got 0",
)
WAYS, OUTSIDE = "['bilinear', 'bicubic', 'nearest'] but got", "['zeros', 'border', 'reflection'] but got"
# What else cannot make one is in `tests/robustness`.
ARGUMENTS: list[tuple[Callable[[], Any], str]] = [
    (lambda: Table(torch.tensor([[1, 0], [0, 1]])), "row 0 of `table` to be the identity"),
    (lambda: li.CyclicTranslations(2.0), "`order` to be an integer of at least 1 but got 2.0"),
    (lambda: li.CyclicTranslations(3, dim=1), f"{NEGATIVE} 1"),
    (lambda: li.CyclicTranslations(3, dim=-1.0), f"{NEGATIVE} -1.0"),
    (lambda: li.SetPermutations(2, dim=0), f"{NEGATIVE} 0"),
    (lambda: li.LinearAction(eye(2)[None], dim="-1"), f"{NEGATIVE} '-1'"),
    (lambda: li.SO3(2, dim=2), f"{NEGATIVE} 2"),
    (lambda: li.O3(0), DRAWN),
    (lambda: li.SO2(0), DRAWN),
    (lambda: li.AffineAction(one * 2), "`matrices[0]` to be the identity"),
    (lambda: li.AffineAction(one, interpolation="cubic"), f"{WAYS} 'cubic'"),
    (lambda: li.AffineAction(one, padding="zero"), f"{OUTSIDE} 'zero'"),
    (lambda: li.Rotations(4, padding="circular"), f"{OUTSIDE} 'circular'"),
    (lambda: li.SO2(2, interpolation="linear"), f"{WAYS} 'linear'"),
]


def test_arguments_that_make_no_action() -> None:
    for make, says in ARGUMENTS:
        with pytest.raises(ValueError, match=re.escape(says)):
            make()
