"""Acting inside compiled graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from actions_catalogue import (
    EVERY,
    FUNCTIONS,
    PADDED,
    Case,
    batch_for,
    each,
    indices_for,
)
from torch import Tensor

from lightning_invariance.actions import C4, D4, SO3, Action, CyclicTranslations, Rotations

# One case for each way through the code. (Drawing orders takes a generator, which no graph can hold.)
ONE_GRAPH = {
    name: EVERY[name]
    for name in (
        "C4",
        "D4",
        "HorizontalFlip",
        "CyclicTranslations-dim-2",
        "PermutationAction",
        "PermutationAction-no-group",
        "Rotations",
        "Scalings",
        "AffineAction",
        "LinearAction-dim-3",
        "SO3",
        "C4*CyclicTranslations",
        "D4*LinearAction",
    )
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


def compiled(function: Callable[..., Tensor], fullgraph: bool = True) -> Callable[..., Tensor]:
    wrapped: Any = torch.compile(function, backend="eager", fullgraph=fullgraph)
    return wrapped  # type: ignore[no-any-return]


def compare(case: Case, method: str, fullgraph: bool, used: bool = False) -> None:
    action: Action = case.make()
    x = batch_for(case)
    index = indices_for(action, x)
    eager: Action = case.make()
    if used:
        action.invert(action.act(x, index), index)
        action.invert(action.act(x, 1), 1)
    apply = compiled(lambda x, index: getattr(action, method)(x, index), fullgraph)
    last = len(action) - 1
    torch.testing.assert_close(apply(x, last), getattr(eager, method)(x, last), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(apply(x, index), getattr(eager, method)(x, index), rtol=1e-6, atol=1e-6)


@each(ONE_GRAPH)
@pytest.mark.parametrize("method", ["act", "invert"])
def test_one_graph(case: Case, method: str) -> None:
    compare(case, method, fullgraph=True)


@each({name: EVERY[name] for name in ("C4", "PermutationAction", "C4*CyclicTranslations")})
def test_one_graph_after_use_outside(case: Case) -> None:
    compare(case, "invert", fullgraph=True, used=True)


@each(FUNCTIONS, PADDED, {"SetPermutations": EVERY["SetPermutations"]})
@pytest.mark.parametrize("method", ["act", "invert"])
def test_with_graph_breaks(case: Case, method: str) -> None:
    compare(case, method, fullgraph=False)


VARYING: list[tuple[Action, tuple[int, ...]]] = [
    (C4(), (4, 4)),
    (D4(), (4, 4)),
    (CyclicTranslations(4), (4,)),
    (Rotations(8), (4, 6)),
    (SO3(4), (4, 3)),
    (C4() * CyclicTranslations(2), (4, 4)),
]


@pytest.mark.parametrize(("action", "sizes"), VARYING, ids=[repr(action) for action, _ in VARYING])
def test_elements_that_vary(action: Action, sizes: tuple[int, ...]) -> None:
    """From the second value on, the compiler takes the element for a symbol."""
    x = torch.randn(3, *sizes, generator=torch.Generator().manual_seed(0))
    apply = compiled(lambda x, element: action.act(x, element))
    for element in (1, 2, 3, 0):
        torch.testing.assert_close(apply(x, element), action.act(x, element), rtol=1e-6, atol=1e-6)


def test_batches_that_vary() -> None:
    action = C4()
    apply = compiled(lambda x, index: action.act(x, index))
    for samples, size in ((4, 5), (3, 8), (6, 2)):
        x = torch.randn(samples, size, size, generator=torch.Generator().manual_seed(0))
        index = torch.arange(samples) % 4
        assert torch.equal(apply(x, index), action.act(x, index))


@each({name: EVERY[name] for name in ("D4", "Rotations", "LinearAction", "FunctionAction", "C4*CyclicTranslations")})
def test_the_orbit(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    orbit = compiled(lambda x: action.orbit(x))(x)
    torch.testing.assert_close(orbit, case.make().orbit(x), rtol=1e-6, atol=1e-6)


def test_a_module_that_acts() -> None:
    class Turned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.action = C4()
            self.layer = torch.nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            out: Tensor = self.layer(self.action.act(x, index))
            return out

    module = Turned()
    x, index = torch.randn(4, 1, 6, 6), torch.tensor([0, 3, 1, 2])
    apply: Any = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(apply(x, index), module(x, index))
