"""Drawn elements: drawn again by another seed, and afresh for each sample."""

from __future__ import annotations

import math

import pytest
import torch
from actions_catalogue import EVERY, Case, batch_for, each
from torch import Tensor

import lightning_invariance as li

DRAWN: list[tuple[li.Action, li.Action]] = [
    # an action, and the same with 9 elements of seed 7
    (li.SO2(3, seed=1, padding="border"), li.SO2(9, seed=7, padding="border")),
    (li.SO3(3, dim=-2), li.SO3(9, seed=7, dim=-2)),
    (li.O3(3, seed=5), li.O3(9, seed=7)),
    (li.ScalingRange(0.5, 2, 3, interpolation="bicubic"), li.ScalingRange(0.5, 2, 9, 7, interpolation="bicubic")),
    (li.SetPermutations(3, dim=-1, padding=0), li.SetPermutations(9, seed=7, dim=-1, padding=0)),
]
NOT_DRAWN: list[li.Action] = [li.C4(), li.HorizontalFlip(), li.C4() * li.CyclicTranslations(3)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("action", "other"), DRAWN, ids=repr)
def test_drawn_again_with_another_seed(action: li.Action, other: li.Action) -> None:
    assert action.drawn
    assert action.redrawn(7, samples=9) == other
    assert len(action.redrawn(7)) == len(action) == 4
    assert action.redrawn(7) == action.redrawn(7) != action.redrawn(8)
    assert action.redrawn(7).redrawn(7, 9) == other


@pytest.mark.parametrize("action", NOT_DRAWN, ids=repr)
def test_a_group_that_is_listed_stays_as_it_is(action: li.Action) -> None:
    assert not action.drawn
    assert action.redrawn(7, samples=9) is action
    same, index = action.fresh(50, seeded())
    assert same is action
    assert torch.equal(index, action.sample(50, seeded()))


def test_factors_draw_from_seeds_of_their_own() -> None:
    product = li.SO3(3, seed=1) * li.SO3(3, seed=1)
    redrawn = product.redrawn(7, samples=5)
    assert isinstance(redrawn, li.ProductAction)
    assert product.drawn
    assert len(redrawn) == 36
    assert len(product.redrawn(7)) == 16
    first, second = redrawn.first, redrawn.second
    assert isinstance(first, li.SO3)
    assert isinstance(second, li.SO3)
    assert first.seed != second.seed
    assert 0 <= first.seed < 2**63
    assert redrawn == product.redrawn(7, samples=5) != product.redrawn(8, samples=5)
    mixed = (li.C4() * li.SO2(3)).redrawn(7)
    assert isinstance(mixed, li.ProductAction)
    assert mixed.first == li.C4()
    assert mixed.second != li.SO2(3)
    for seed in (0, -(2**63), 2**64 - 1):
        assert len(product.redrawn(seed)) == 16


@each({name: EVERY[name] for name in ("D4", "FunctionAction", "SO3*SetPermutations", "Rotations*HorizontalFlip")})
def test_fresh_elements_act(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    fresh, index = action.fresh(len(x), seeded())
    assert (index.dtype, index.shape) == (torch.int64, (len(x),))
    assert fresh.act(x, index).shape == x.shape
    again, same = action.fresh(len(x), seeded())
    assert again == fresh
    assert torch.equal(same, index)
    none, empty = action.fresh(0, seeded())
    assert len(none) == len(action)
    assert empty.shape == (0,)
    assert fresh.fresh(2, seeded(1))[1].shape == (2,)


@pytest.mark.parametrize("action", [action for action, _ in DRAWN], ids=repr)
def test_fresh_draws_are_new_ones_each_time(action: li.Action) -> None:
    generator = seeded()
    (first, index), (second, _) = action.fresh(5, generator), action.fresh(5, generator)
    assert index.tolist() == [1, 2, 3, 4, 5]
    assert len(first) == len(second) == 6
    assert first != second
    assert action.fresh(5)[0] != action.fresh(5)[0]


def test_a_product_pairs_fresh_elements() -> None:
    product = li.C4() * li.SetPermutations(3, dim=-1)
    x = torch.arange(6 * 16).reshape(6, 4, 4)
    fresh, index = product.fresh(6, seeded())
    generator = seeded()
    turns = li.C4().sample(6, generator)
    orders, places = li.SetPermutations(3, dim=-1).fresh(6, generator)
    assert torch.equal(fresh.act(x, index), li.C4().act(orders.act(x, places), turns))


def matrices_of(action: li.Action, index: Tensor) -> Tensor:
    basis = torch.eye(3, dtype=torch.float64).expand(len(index), 3, 3)
    return action.act(basis, index).mT


@pytest.mark.parametrize("kind", [li.SO3, li.O3])
def test_fresh_rotations_are_uniform_and_independent(kind: type[li.SO3 | li.O3]) -> None:
    # The trace of a Haar-random matrix of SO(3) or O(3) has mean 0 and variance 1, and so has that of the quotient of
    # two independent ones; a mean of n of them is 4 / sqrt(n) away once in 16 thousand.
    matrices = matrices_of(*kind(2).fresh(4000, seeded()))
    traces = matrices.diagonal(dim1=1, dim2=2).sum(dim=1)
    quotients = (matrices[1:] * matrices[:-1]).sum(dim=(1, 2))
    for values in (traces, quotients):
        assert abs(float(values.mean())) < 4 / math.sqrt(4000)
        assert abs(float(values.square().mean()) - 1) < 4 * 1.5 / math.sqrt(4000)
    assert len(matrices.flatten(1).unique(dim=0)) == 4000
    proper = float((torch.linalg.det(matrices) > 0).double().mean())
    assert proper == 1 if kind is li.SO3 else abs(proper - 0.5) < 2 / math.sqrt(4000)


def test_fresh_angles_are_uniform_and_independent() -> None:
    action, index = li.SO2(2).fresh(4000, seeded())
    assert isinstance(action, li.SO2)
    angles = torch.tensor(action.degrees, dtype=torch.float64)[index].deg2rad()
    for turns in (angles, 2 * angles, angles[1:] - angles[:-1]):
        assert abs(float(turns.cos().mean())) < 4 * math.sqrt(0.5 / 4000)
        assert abs(float(turns.sin().mean())) < 4 * math.sqrt(0.5 / 4000)


def test_the_logarithms_of_scalings_are_uniform() -> None:
    action, index = li.ScalingRange(0.25, 2.0, 5).fresh(4000, seeded())
    assert isinstance(action, li.ScalingRange)
    logarithms = torch.tensor((1.0, *action.factors), dtype=torch.float64)[index].log2()  # from -2 to 1
    assert {*li.ScalingRange(0.25, 2.0, 5, seed=1).factors}.isdisjoint(li.ScalingRange(0.25, 2.0, 5, seed=2).factors)
    assert -2 <= float(logarithms.min()) < -1.98
    assert 0.98 < float(logarithms.max()) <= 1
    deviation = 3 / math.sqrt(12)
    assert abs(float(logarithms.mean()) + 0.5) < 4 * deviation / math.sqrt(4000)
    assert float(logarithms.std()) == pytest.approx(deviation, rel=0.05)


def test_fresh_orders_put_every_element_everywhere() -> None:
    action, index = li.SetPermutations(2, dim=-1).fresh(5000, seeded())
    moved = action.act(torch.arange(5).expand(5000, 5), index)
    counts = torch.stack([(moved == value).sum(dim=0) for value in range(5)])
    # A count of 5000 draws with probability 1/5.
    assert float((counts - 1000).abs().max()) < 4.5 * math.sqrt(5000 * 0.2 * 0.8)
    both = (moved[1:, 0] == moved[:-1, 0]).double().mean()
    assert abs(float(both) - 0.2) < 4 * math.sqrt(0.16 / 5000)


def test_the_elements_of_a_seed_are_those_of_the_first_release() -> None:
    """Drawn by hand from the generator, so that an experiment can be repeated."""
    assert li.SO2(3, seed=4).degrees[1:] == tuple(
        (360 * torch.rand(3, generator=seeded(4), dtype=torch.float64)).tolist()
    )
    q, r = torch.linalg.qr(torch.randn(2, 3, 3, generator=seeded(4), dtype=torch.float64))
    orthogonal = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
    index = torch.tensor([1, 2])
    torch.testing.assert_close(matrices_of(li.O3(2, seed=4), index), orthogonal)
    proper = orthogonal * torch.linalg.det(orthogonal)[:, None, None]
    torch.testing.assert_close(matrices_of(li.SO3(2, seed=4), index), proper)


def test_a_drawn_action_of_ones_own_has_to_say_how() -> None:
    class Own(li.SO3):
        def _redraw(self, seed: int, samples: int | None) -> li.Action:
            return li.Action._redraw(self, seed, samples)

    with pytest.raises(TypeError, match="Own is drawn and has to write `_redraw`"):
        Own(2).redrawn(1)
