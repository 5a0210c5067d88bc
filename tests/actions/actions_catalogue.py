"""Every action of the room, each with the shape of a small batch that it acts on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations, product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import lightning_invariance as li


class Case(NamedTuple):
    make: Callable[[], li.Action]
    shape: tuple[int, ...]
    exact: bool = True


def signed_permutations(size: int) -> Tensor:
    """The symmetries of a cube, the identity first: shape ``(2**size * size!, size, size)``."""
    return torch.stack(
        [
            torch.diag(torch.tensor(signs)) @ torch.eye(size)[list(order)]
            for order, signs in product(permutations(range(size)), product((1.0, -1.0), repeat=size))
        ]
    )


def halves_swapped() -> li.PermutationAction:
    return li.PermutationAction(torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 0, 1, 2, 3]]))


def three_cycle_alone() -> li.PermutationAction:
    """The identity and one permutation that is not its own inverse: not a group."""
    return li.PermutationAction(torch.tensor([[[0, 1], [2, 3]], [[1, 2], [0, 3]]]))


def sheared() -> li.AffineAction:
    return li.AffineAction(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[1.0, 0.3, 0.25], [-0.2, 0.9, -0.1]]]))


def mixed_colours() -> li.LinearAction:
    """Invertible, but not orthogonal."""
    mixing = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, -0.5], [0.25, 0.0, 1.0]])
    return li.LinearAction(torch.stack([torch.eye(3), mixing, mixing @ mixing]), dim=-3)


def negated_or_doubled(exact: bool = True) -> li.FunctionAction:
    return li.FunctionAction([(torch.neg, torch.neg), (_double, _halve)], labels=["negated", "doubled"], exact=exact)


def _double(x: Tensor) -> Tensor:
    return 2 * x


def _halve(x: Tensor) -> Tensor:
    return x / 2


IMAGES = (3, 2, 6, 6)
PERMUTATIONS: dict[str, Case] = {
    "C4": Case(li.C4, IMAGES),
    "D4": Case(li.D4, IMAGES),
    "HorizontalFlip": Case(li.HorizontalFlip, (3, 2, 4, 5)),
    "CyclicTranslations-dim-2": Case(lambda: li.CyclicTranslations(4, dim=-2), (3, 2, 8, 5)),
    "SetPermutations": Case(lambda: li.SetPermutations(4), (3, 7, 2)),
    "SetPermutations-dim-3": Case(lambda: li.SetPermutations(4, dim=-3), (3, 2, 7, 2, 2)),
    "PermutationAction": Case(halves_swapped, (3, 2, 8)),
    "PermutationAction-no-group": Case(three_cycle_alone, (3, 5, 2, 2)),
}
AFFINE: dict[str, Case] = {
    "Rotations": Case(lambda: li.Rotations(8), (3, 2, 6, 5), exact=False),
    "Rotations-bicubic": Case(
        lambda: li.Rotations(5, interpolation="bicubic", padding="reflection"), IMAGES, exact=False
    ),
    "SO2": Case(lambda: li.SO2(4, padding="border"), IMAGES, exact=False),
    "ScalingRange": Case(lambda: li.ScalingRange(0.5, 1.5, 3), IMAGES, exact=False),
    "AffineAction": Case(sheared, (3, 2, 5, 6), exact=False),
}
LINEAR: dict[str, Case] = {
    "LinearAction": Case(lambda: li.LinearAction(signed_permutations(2)), (3, 4, 2), exact=False),
    "LinearAction-dim-3": Case(mixed_colours, (3, 3, 4, 5), exact=False),
    "SO3": Case(lambda: li.SO3(4), (3, 5, 3), exact=False),
    "O3": Case(lambda: li.O3(4, dim=-2), (3, 3, 5), exact=False),
}
# None of their batches has padding: they act as they would without.
PADDED: dict[str, Case] = {
    "SetPermutations-padding": Case(lambda: li.SetPermutations(4, padding=-7.0), (3, 7, 2)),
    "SetPermutations-padding-dim-1": Case(lambda: li.SetPermutations(4, dim=-1, padding=-7), (3, 4, 7)),
}
FUNCTIONS: dict[str, Case] = {"FunctionAction": Case(negated_or_doubled, (3, 4))}
PRODUCTS: dict[str, Case] = {
    "C4*CyclicTranslations": Case(lambda: li.C4() * li.CyclicTranslations(3), IMAGES),
    "D4*LinearAction": Case(lambda: li.D4() * mixed_colours(), (3, 3, 4, 4), exact=False),
    "Rotations*HorizontalFlip": Case(lambda: li.Rotations(3) * li.HorizontalFlip(), IMAGES, exact=False),
    "SO3*SetPermutations": Case(lambda: li.SO3(2) * li.SetPermutations(2), (3, 5, 3), exact=False),
}
QUARTER_TURNS = torch.stack([torch.linalg.matrix_power(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), k) for k in range(4)])
FIELDS: dict[str, Case] = {
    "FieldAction": Case(lambda: li.FieldAction(li.C4(), li.LinearAction(QUARTER_TURNS, dim=-3)), IMAGES, exact=False),
    "FieldAction-drawn": Case(lambda: li.FieldAction(li.SO3(3, dim=-2), li.SO3(3)), (3, 3, 3), exact=False),
}
FLOWS: dict[str, Case] = {
    "TranslationFlow": Case(lambda: li.TranslationFlow(window=None).sampled(3), (3, 2, 7, 6), exact=False),
    "ShearFlow": Case(lambda: li.ShearFlow(window=0.25).sampled(3), (3, 2, 6, 9), exact=False),
    "BrightnessFlow": Case(lambda: li.BrightnessFlow().sampled(3), IMAGES, exact=False),
    "ContrastFlow": Case(lambda: li.ContrastFlow(centre=0.5).sampled(3), IMAGES, exact=False),
    "PointTranslationFlow": Case(lambda: li.PointTranslationFlow(2, dim=-2).sampled(3), (3, 2, 5), exact=False),
}
EVERY: dict[str, Case] = {**PERMUTATIONS, **AFFINE, **LINEAR, **PADDED, **FUNCTIONS, **PRODUCTS, **FIELDS, **FLOWS}


def each(*tables: dict[str, Case], without: Sequence[str] = ()) -> pytest.MarkDecorator:
    """Parametrizes a test with ``case`` over whole tables."""
    params: list[Any] = [
        pytest.param(case, id=name) for table in tables for name, case in table.items() if name not in without
    ]
    return pytest.mark.parametrize("case", params)


def batch_for(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """A random batch; distinct integers for the integer types."""
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(case.shape, generator=generator, dtype=torch.float64).to(dtype)
    size = torch.Size(case.shape).numel()
    return torch.randperm(size, generator=generator).reshape(case.shape).to(dtype)


def indices_for(action: li.Action, x: Tensor) -> Tensor:
    """One element a sample: the identity, the last element, and others."""
    index = torch.arange(len(x)) * 2 + len(action) - 1
    index[: min(1, len(x))] = 0
    return index % len(action)
