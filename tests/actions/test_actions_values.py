"""Actions as values: equality, copies, files, names, random draws."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from actions_catalogue import (
    EVERY,
    FUNCTIONS,
    Case,
    batch_for,
    each,
    halves_swapped,
    indices_for,
    sheared,
    signed_permutations,
)
from torch import Tensor, nn

from lightning_invariance import actions
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


def use(action: Action, case: Case) -> None:
    """Whatever fills a cache."""
    x = batch_for(case)
    for batch in (x, x.double()):
        index = indices_for(action, batch)
        action.invert(action.act(batch, 1), 1)
        action.invert(action.act(batch, index), index)
        action.orbit(batch)
    assert len(action.labels) == len(action)
    _ = action.cayley_table, action.dims


# Equality --------------------------------------------------------------------------------------------------------


@each(EVERY, without=["FunctionAction"])
def test_equal_arguments_make_equal_actions(case: Case) -> None:
    first, second = case.make(), case.make()
    assert first == second
    assert hash(first) == hash(second)
    assert {first: "found"}[second] == "found"
    use(first, case)
    assert first == second
    assert hash(first) == hash(second)


def test_functions_are_equal_where_they_are_the_same() -> None:
    assert FunctionAction([(torch.neg, torch.neg)]) == FunctionAction([(torch.neg, torch.neg)])
    assert FunctionAction([(torch.neg, torch.neg)]) != FunctionAction([(torch.neg, torch.neg)], exact=True)
    assert FunctionAction([(torch.neg, torch.neg)]) != FunctionAction([(torch.neg, torch.neg)], labels=["negated"])
    assert FunctionAction([(torch.neg, torch.neg)]) != FunctionAction([(torch.abs, torch.abs)])


def test_no_two_cases_are_equal() -> None:
    actions = [case.make() for case in EVERY.values()]
    assert len(set(actions)) == len(actions)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (SO2(4), SO2(4, seed=0)),
        (SO2(4), SO2(4, interpolation="bilinear", padding="zeros")),
        (SO3(4), SO3(4, seed=0, dim=-1)),
        (SetPermutations(2), SetPermutations(2, seed=0)),
        (CyclicTranslations(3), CyclicTranslations(3, dim=-1)),
        (Scalings([2]), Scalings((2.0,))),
        (C4() * D4(), ProductAction(C4(), D4())),
    ],
    ids=repr,
)
def test_defaults_written_out_are_equal(left: Action, right: Action) -> None:
    assert left == right
    assert hash(left) == hash(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (C4(), D4()),
        (C4(), Rotations(4)),
        (HorizontalFlip(), TimeReversal()),
        (HorizontalFlip(), VerticalFlip()),
        (CyclicTranslations(3), CyclicTranslations(3, dim=-2)),
        (CyclicTranslations(3), CyclicTranslations(4)),
        (SetPermutations(3), SetPermutations(3, seed=1)),
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
    ],
    ids=repr,
)
def test_other_arguments_make_other_actions(left: Action, right: Action) -> None:
    assert left != right
    assert len({left, right}) == 2


def test_an_action_is_equal_to_no_other_thing() -> None:
    assert C4() != "C4()"
    assert C4() != 4
    assert C4() is not None


# Copies and files ------------------------------------------------------------------------------------------------


@each(EVERY)
def test_pickled_and_copied_actions_do_the_same(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    use(action, case)
    for twin in (pickle.loads(pickle.dumps(action)), copy.deepcopy(action), copy.copy(action)):
        assert twin == action
        assert hash(twin) == hash(action)
        assert twin.labels == action.labels
        assert torch.equal(twin.orbit(x), action.orbit(x))
        index = indices_for(action, x)
        assert torch.equal(twin.invert(x, index), action.invert(x, index))


@each(EVERY)
def test_what_was_cached_does_not_travel(case: Case) -> None:
    action = case.make()
    before = pickle.dumps(action)
    use(action, case)
    assert len(pickle.dumps(action)) == len(before)


class Network(nn.Module):
    def __init__(self, action: Action) -> None:
        super().__init__()
        self.action = action
        self.layer = nn.Linear(2, 2)


@each(EVERY)
def test_a_module_that_holds_an_action(case: Case) -> None:
    network = Network(case.make())
    use(network.action, case)
    assert set(network.state_dict()) == {"layer.weight", "layer.bias"}
    assert len(list(network.parameters())) == 2
    assert not list(network.buffers())

    other = Network(case.make())
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.layer.weight, network.layer.weight)

    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    x = batch_for(case)
    for twin in (torch.load(file, weights_only=False), copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert twin.action == network.action
        assert torch.equal(twin.action.act(x, 1), network.action.act(x, 1))
        assert torch.equal(twin.layer.weight, network.layer.weight)


# Names -----------------------------------------------------------------------------------------------------------


@each(EVERY)
def test_labels_name_every_element_once(case: Case) -> None:
    action = case.make()
    assert len(action.labels) == len(action)
    assert len(set(action.labels)) == len(action)
    assert action.labels[0] == "identity"


@pytest.mark.parametrize(
    "action",
    [
        SO2(256),
        Rotations(1000),
        C4() * C4(),
        CyclicTranslations(2) * CyclicTranslations(2, dim=-2),
        HorizontalFlip() * VerticalFlip() * TimeReversal(),
        SetPermutations(12) * SetPermutations(2, seed=1),
    ],
    ids=repr,
)
def test_labels_stay_apart_where_they_are_many(action: Action) -> None:
    assert len(set(action.labels)) == len(action)
    assert action.labels[0] == "identity"


@pytest.mark.parametrize(
    ("action", "labels"),
    [
        (C4(), ("identity", "rot90", "rot180", "rot270")),
        (
            D4(),
            ("identity", "rot90", "rot180", "rot270", "flip", "flip_rot90", "flip_rot180", "flip_rot270"),
        ),
        (HorizontalFlip(), ("identity", "flip")),
        (TimeReversal(), ("identity", "reversed")),
        (CyclicTranslations(3), ("identity", "shift1of3", "shift2of3")),
        (SetPermutations(2), ("identity", "order1", "order2")),
        (halves_swapped(), ("identity", "element1")),
        (Rotations(8), ("identity", *(f"rot{45 * i}" for i in range(1, 8)))),
        (Scalings([0.5, 2]), ("identity", "scale0.5", "scale2")),
        (sheared(), ("identity", "element1")),
        (SO3(2), ("identity", "rotation1", "rotation2")),
        (O3(2), ("identity", "element1", "element2")),
        (LinearAction(torch.eye(2)[None]), ("identity",)),
        (TimeReversal() * Scalings([2]), ("identity", "scale2", "reversed", "reversed*scale2")),
    ],
    ids=repr,
)
def test_labels(action: Action, labels: tuple[str, ...]) -> None:
    assert action.labels == labels


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (C4(), "C4()"),
        (D4(), "D4()"),
        (HorizontalFlip(), "HorizontalFlip()"),
        (VerticalFlip(), "VerticalFlip()"),
        (TimeReversal(), "TimeReversal()"),
        (CyclicTranslations(3, dim=-2), "CyclicTranslations(order=3, dim=-2)"),
        (SetPermutations(5, seed=2), "SetPermutations(samples=5, seed=2)"),
        (halves_swapped(), "PermutationAction(2 elements on 8)"),
        (PermutationAction(torch.arange(6).reshape(1, 2, 3)), "PermutationAction(1 elements on 2×3)"),
        (Rotations(8), "Rotations(order=8, interpolation='bilinear', padding='zeros')"),
        (SO2(3, padding="border"), "SO2(samples=3, seed=0, interpolation='bilinear', padding='border')"),
        (Scalings([0.5, 2]), "Scalings(factors=(0.5, 2.0), interpolation='bilinear', padding='zeros')"),
        (sheared(), "AffineAction(2 elements, interpolation='bilinear', padding='zeros')"),
        (LinearAction(signed_permutations(2)), "LinearAction(8 elements of 2×2, dim=-1)"),
        (SO3(4), "SO3(samples=4, seed=0, dim=-1)"),
        (O3(4, seed=1, dim=-2), "O3(samples=4, seed=1, dim=-2)"),
        (FunctionAction([(torch.neg, torch.neg)], labels=["negated"]), "FunctionAction('negated')"),
        (C4() * CyclicTranslations(3), "C4() * CyclicTranslations(order=3, dim=-1)"),
    ],
    ids=str,
)
def test_repr(action: Action, text: str) -> None:
    assert repr(action) == text


@each(EVERY, without=[name for name in EVERY if any(kind in name for kind in ("Action", "Product"))])
def test_the_repr_of_a_named_action_makes_it_again(case: Case) -> None:
    action = case.make()
    assert eval(repr(action), vars(actions)) == action


# Random draws ----------------------------------------------------------------------------------------------------


def drawn(action: Action, n: int, seed: int = 0) -> Tensor:
    return action.sample(n, torch.Generator().manual_seed(seed))


@each(EVERY)
def test_sample_draws_every_element(case: Case) -> None:
    action = case.make()
    index = drawn(action, 1000)
    assert index.shape == (1000,)
    assert index.dtype == torch.int64
    assert index.device.type == "cpu"
    assert sorted(set(index.tolist())) == list(range(len(action)))


@each(FUNCTIONS, {"C4": EVERY["C4"], "product": EVERY["C4*CyclicTranslations"]})
def test_samples_can_be_acted_with(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    assert action.act(x, drawn(action, len(x))).shape == x.shape
    assert action.act(x[:0], drawn(action, 0)).shape == (0, *x.shape[1:])


def test_sample_draws_by_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = drawn(D4(), 50), drawn(D4(), 50), drawn(D4(), 50, seed=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_sample_without_a_generator_follows_the_default_stream() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        first, second = D4().sample(50), D4().sample(50)
        torch.manual_seed(7)
        again = D4().sample(50)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_sample_goes_on_in_the_stream() -> None:
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(D4().sample(50, generator), D4().sample(50, generator))


def test_sample_can_lie_elsewhere() -> None:
    assert D4().sample(3, device="meta").device.type == "meta"
    assert D4().sample(3, torch.Generator(), device=torch.device("meta")).device.type == "meta"
