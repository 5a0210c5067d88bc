"""Actions as values: equality, names, random draws."""

from __future__ import annotations

import pytest
import torch
from actions_catalogue import FUNCTIONS, PRODUCTS, Case, batch_for, each, halves_swapped, sheared
from torch import Tensor

import lightning_invariance as li

NEGATED = li.FunctionAction([(torch.neg, torch.neg)])
SAME: list[tuple[li.Action, li.Action]] = [
    (li.SO2(4), li.SO2(4, seed=0, interpolation="bilinear", padding="zeros")),
    (li.SO3(4), li.SO3(4, seed=0, dim=-1)),
    (li.SetPermutations(2), li.SetPermutations(2, seed=0)),
    (li.CyclicTranslations(3), li.CyclicTranslations(3, dim=-1)),
    (li.Scalings([2]), li.Scalings((2.0,))),
    (li.C4() * li.D4(), li.ProductAction(li.C4(), li.D4())),
    (li.SetPermutations(2, padding=0), li.SetPermutations(2, padding=0.0)),
    (NEGATED, li.FunctionAction([(torch.neg, torch.neg)])),
]
DIFFERENT: list[tuple[li.Action, object]] = [
    (li.C4(), li.D4()),
    (li.C4(), li.Rotations(4)),
    (li.HorizontalFlip(), li.TimeReversal()),
    (li.HorizontalFlip(), li.VerticalFlip()),
    (li.CyclicTranslations(3), li.CyclicTranslations(3, dim=-2)),
    (li.CyclicTranslations(3), li.CyclicTranslations(4)),
    (li.SetPermutations(3), li.SetPermutations(3, seed=1)),
    (li.SetPermutations(3, dim=-1), li.SetPermutations(3, dim=-1, padding=0)),
    (li.SO2(4), li.SO2(4, seed=1)),
    (li.SO2(4), li.SO2(5)),
    (li.SO3(4), li.O3(4)),
    (li.SO3(4), li.SO3(4, dim=-2)),
    (li.Rotations(4), li.Rotations(4, interpolation="nearest")),
    (li.Rotations(4), li.Rotations(4, padding="border")),
    (li.Scalings([2.0]), li.Scalings([3.0])),
    (li.C4() * li.CyclicTranslations(3), li.CyclicTranslations(3) * li.C4()),
    (li.PermutationAction(torch.arange(6)[None]), li.PermutationAction(torch.arange(6).reshape(1, 2, 3))),
    (li.LinearAction(torch.eye(2)[None]), li.LinearAction(torch.eye(2)[None], dim=-2)),
    (NEGATED, li.FunctionAction([(torch.neg, torch.neg)], exact=True)),
    (NEGATED, li.FunctionAction([(torch.neg, torch.neg)], labels=["negated"])),
    (NEGATED, li.FunctionAction([(torch.abs, torch.abs)])),
    (li.C4(), "C4()"),
    (li.C4(), 4),
]


def test_equality_goes_by_what_an_action_does() -> None:
    for left, right in SAME:
        assert left == right, left
        assert len({left, right}) == 1
    for one, other in DIFFERENT:
        assert one != other, one
        assert len({one, other}) == 2


NAMES: list[tuple[li.Action, str, str]] = [
    (li.C4(), "C4()", "rot90 rot180 rot270"),
    (li.D4(), "D4()", "rot90 rot180 rot270 flip flip_rot90 flip_rot180 flip_rot270"),
    (li.HorizontalFlip(), "HorizontalFlip()", "flip"),
    (li.VerticalFlip(), "VerticalFlip()", "flip"),
    (li.TimeReversal(), "TimeReversal()", "reversed"),
    (li.CyclicTranslations(3, dim=-2), "CyclicTranslations(order=3, dim=-2)", "shift1of3 shift2of3"),
    (li.SetPermutations(2, seed=2), "SetPermutations(samples=2, seed=2)", "order1 order2"),
    (
        li.SetPermutations(1, dim=-1, padding=0),
        "SetPermutations(samples=1, seed=0, dim=-1, padding=0)",
        "order1",
    ),
    (halves_swapped(), "PermutationAction(2 elements on 8)", "element1"),
    (li.PermutationAction(torch.arange(6).reshape(1, 2, 3)), "PermutationAction(1 elements on 2×3)", ""),
    (li.Rotations(3), "Rotations(order=3, interpolation='bilinear', padding='zeros')", "rot120 rot240"),
    (li.Scalings([0.5]), "Scalings(factors=(0.5,), interpolation='bilinear', padding='zeros')", "scale0.5"),
    (sheared(), "AffineAction(2 elements, interpolation='bilinear', padding='zeros')", "element1"),
    (li.LinearAction(torch.eye(2)[None]), "LinearAction(1 elements of 2×2, dim=-1)", ""),
    (li.SO3(2), "SO3(samples=2, seed=0, dim=-1)", "rotation1 rotation2"),
    (li.O3(2, seed=1, dim=-2), "O3(samples=2, seed=1, dim=-2)", "element1 element2"),
    (li.FunctionAction([(torch.neg, torch.neg)], labels=["negated"]), "FunctionAction('negated')", "negated"),
    (li.C4() * li.CyclicTranslations(1), "C4() * CyclicTranslations(order=1, dim=-1)", "rot90 rot180 rot270"),
]


@pytest.mark.parametrize(("action", "text", "labels"), NAMES, ids=[text for _, text, _ in NAMES])
def test_names(action: li.Action, text: str, labels: str) -> None:
    assert repr(action) == text
    assert action.labels == ("identity", *labels.split())


def test_labels_of_products() -> None:
    assert (li.TimeReversal() * li.Scalings([2])).labels == ("identity", "scale2", "reversed", "reversed*scale2")
    many = [li.SO2(256), li.Rotations(1000), li.C4() * li.C4(), li.SetPermutations(12) * li.SetPermutations(2, seed=1)]
    shifts = li.CyclicTranslations(2) * li.CyclicTranslations(2, dim=-2)
    for action in (*many, shifts, li.HorizontalFlip() * li.VerticalFlip() * li.TimeReversal()):
        assert len(set(action.labels)) == len(action)


# Random draws ----------------------------------------------------------------------------------------------------


def drawn(action: li.Action, n: int, seed: int = 0) -> Tensor:
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
    assert torch.equal(drawn(li.D4(), 50), drawn(li.D4(), 50))
    assert not torch.equal(drawn(li.D4(), 50), drawn(li.D4(), 50, seed=1))
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(li.D4().sample(50, generator), li.D4().sample(50, generator))
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        first, second = li.D4().sample(50), li.D4().sample(50)
        torch.manual_seed(7)
        assert torch.equal(li.D4().sample(50), first)
    assert not torch.equal(first, second)
    assert li.D4().sample(3, device="meta").device.type == "meta"
    assert li.D4().sample(3, torch.Generator(), device=torch.device("meta")).device.type == "meta"
