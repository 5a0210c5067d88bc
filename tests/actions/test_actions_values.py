"""Actions as values: equality, names, random draws."""

from __future__ import annotations

import pytest
import torch
from actions_catalogue import FUNCTIONS, PRODUCTS, Case, batch_for, each, halves_swapped, sheared
from torch import Tensor

from lightning_invariance.actions import (
    C4,
    D4,
    O3,
    SO2,
    SO3,
    Action,
    CyclicTranslations,
    FunctionAction,
    HorizontalFlip,
    LinearAction,
    PermutationAction,
    ProductAction,
    Rotations,
    Scalings,
    SetPermutations,
    TimeReversal,
    VerticalFlip,
)

NEGATED = FunctionAction([(torch.neg, torch.neg)])
SAME: list[tuple[Action, Action]] = [
    (SO2(4), SO2(4, seed=0, interpolation="bilinear", padding="zeros")),
    (SO3(4), SO3(4, seed=0, dim=-1)),
    (SetPermutations(2), SetPermutations(2, seed=0)),
    (CyclicTranslations(3), CyclicTranslations(3, dim=-1)),
    (Scalings([2]), Scalings((2.0,))),
    (C4() * D4(), ProductAction(C4(), D4())),
    (SetPermutations(2, padding=0), SetPermutations(2, padding=0.0)),
    (NEGATED, FunctionAction([(torch.neg, torch.neg)])),
]
DIFFERENT: list[tuple[Action, object]] = [
    (C4(), D4()),
    (C4(), Rotations(4)),
    (HorizontalFlip(), TimeReversal()),
    (HorizontalFlip(), VerticalFlip()),
    (CyclicTranslations(3), CyclicTranslations(3, dim=-2)),
    (CyclicTranslations(3), CyclicTranslations(4)),
    (SetPermutations(3), SetPermutations(3, seed=1)),
    (SetPermutations(3, dim=-1), SetPermutations(3, dim=-1, padding=0)),
    (SO2(4), SO2(4, seed=1)),
    (SO2(4), SO2(5)),
    (SO3(4), O3(4)),
    (SO3(4), SO3(4, dim=-2)),
    (Rotations(4), Rotations(4, interpolation="nearest")),
    (Rotations(4), Rotations(4, padding="border")),
    (Scalings([2.0]), Scalings([3.0])),
    (C4() * CyclicTranslations(3), CyclicTranslations(3) * C4()),
    (PermutationAction(torch.arange(6)[None]), PermutationAction(torch.arange(6).reshape(1, 2, 3))),
    (LinearAction(torch.eye(2)[None]), LinearAction(torch.eye(2)[None], dim=-2)),
    (NEGATED, FunctionAction([(torch.neg, torch.neg)], exact=True)),
    (NEGATED, FunctionAction([(torch.neg, torch.neg)], labels=["negated"])),
    (NEGATED, FunctionAction([(torch.abs, torch.abs)])),
    (C4(), "C4()"),
    (C4(), 4),
]


def test_equality_goes_by_what_an_action_does() -> None:
    for left, right in SAME:
        assert left == right, left
        assert len({left, right}) == 1
    for one, other in DIFFERENT:
        assert one != other, one
        assert len({one, other}) == 2


NAMES: list[tuple[Action, str, str]] = [
    (C4(), "C4()", "rot90 rot180 rot270"),
    (D4(), "D4()", "rot90 rot180 rot270 flip flip_rot90 flip_rot180 flip_rot270"),
    (HorizontalFlip(), "HorizontalFlip()", "flip"),
    (VerticalFlip(), "VerticalFlip()", "flip"),
    (TimeReversal(), "TimeReversal()", "reversed"),
    (CyclicTranslations(3, dim=-2), "CyclicTranslations(order=3, dim=-2)", "shift1of3 shift2of3"),
    (SetPermutations(2, seed=2), "SetPermutations(samples=2, seed=2)", "order1 order2"),
    (
        SetPermutations(1, dim=-1, padding=0),
        "SetPermutations(samples=1, seed=0, dim=-1, padding=0)",
        "order1",
    ),
    (halves_swapped(), "PermutationAction(2 elements on 8)", "element1"),
    (PermutationAction(torch.arange(6).reshape(1, 2, 3)), "PermutationAction(1 elements on 2×3)", ""),
    (Rotations(8), "Rotations(order=8, interpolation='bilinear', padding='zeros')", "rot45 rot90 rot135 rot180 rot225 "
     "rot270 rot315"),
    (Scalings([0.5, 2]), "Scalings(factors=(0.5, 2.0), interpolation='bilinear', padding='zeros')", "scale0.5 scale2"),
    (sheared(), "AffineAction(2 elements, interpolation='bilinear', padding='zeros')", "element1"),
    (LinearAction(torch.eye(2)[None]), "LinearAction(1 elements of 2×2, dim=-1)", ""),
    (SO3(2), "SO3(samples=2, seed=0, dim=-1)", "rotation1 rotation2"),
    (O3(2, seed=1, dim=-2), "O3(samples=2, seed=1, dim=-2)", "element1 element2"),
    (FunctionAction([(torch.neg, torch.neg)], labels=["negated"]), "FunctionAction('negated')", "negated"),
    (C4() * CyclicTranslations(1), "C4() * CyclicTranslations(order=1, dim=-1)", "rot90 rot180 rot270"),
]  # fmt: skip


@pytest.mark.parametrize(("action", "text", "labels"), NAMES, ids=[text for _, text, _ in NAMES])
def test_names(action: Action, text: str, labels: str) -> None:
    assert repr(action) == text
    assert action.labels == ("identity", *labels.split())


def test_labels_of_products() -> None:
    assert (TimeReversal() * Scalings([2])).labels == ("identity", "scale2", "reversed", "reversed*scale2")
    many = [SO2(256), Rotations(1000), C4() * C4(), SetPermutations(12) * SetPermutations(2, seed=1)]
    shifts = CyclicTranslations(2) * CyclicTranslations(2, dim=-2)
    for action in (*many, shifts, HorizontalFlip() * VerticalFlip() * TimeReversal()):
        assert len(set(action.labels)) == len(action)


# Random draws ----------------------------------------------------------------------------------------------------


def drawn(action: Action, n: int, seed: int = 0) -> Tensor:
    return action.sample(n, torch.Generator().manual_seed(seed))


@each(FUNCTIONS, PRODUCTS)
def test_sample_draws_every_element(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    index = drawn(action, 1000)
    assert (index.shape, index.dtype, index.device.type) == ((1000,), torch.int64, "cpu")
    assert sorted(set(index.tolist())) == list(range(len(action)))
    assert action.act(x, drawn(action, len(x))).shape == x.shape
    assert action.act(x[:0], drawn(action, 0)).shape == (0, *x.shape[1:])


def test_sample_draws_from_the_generator_or_from_the_default_stream() -> None:
    before = torch.get_rng_state()
    assert torch.equal(drawn(D4(), 50), drawn(D4(), 50))
    assert not torch.equal(drawn(D4(), 50), drawn(D4(), 50, seed=1))
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(D4().sample(50, generator), D4().sample(50, generator))
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        first, second = D4().sample(50), D4().sample(50)
        torch.manual_seed(7)
        assert torch.equal(D4().sample(50), first)
    assert not torch.equal(first, second)
    assert D4().sample(3, device="meta").device.type == "meta"
    assert D4().sample(3, torch.Generator(), device=torch.device("meta")).device.type == "meta"
