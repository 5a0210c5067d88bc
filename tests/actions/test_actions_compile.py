"""Acting inside compiled graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from actions_catalogue import EVERY, FUNCTIONS, Case, batch_for, each, indices_for
from torch import Tensor, nn

from lightning_invariance.actions import C4, SO3, Action, CyclicTranslations, Rotations


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


def compiled(function: Any, fullgraph: bool = True) -> Any:
    return torch.compile(function, backend="eager", fullgraph=fullgraph)


def close(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def both_ways(action: Action, x: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    last = len(action) - 1
    return action.act(x, last), action.invert(x, last), action.act(x, index), action.invert(x, index)


# One case for each way through the code. (Drawing orders takes a generator, which no graph can hold.)
WAYS = ("D4", "PermutationAction", "PermutationAction-no-group", "Rotations", "LinearAction-dim-3")


@each({name: EVERY[name] for name in (*WAYS, "C4*CyclicTranslations")})
def test_one_graph(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    index = indices_for(action, x)
    close(compiled(lambda x, index: both_ways(action, x, index))(x, index), both_ways(case.make(), x, index))


def test_one_graph_after_an_inverse_was_looked_up_outside() -> None:
    case = EVERY["PermutationAction"]
    action, x = case.make(), batch_for(case)
    expected = both_ways(action, x, indices_for(action, x))
    close(compiled(lambda x, index: both_ways(action, x, index))(x, indices_for(action, x)), expected)


@each({name: EVERY[name] for name in ("SetPermutations", "SetPermutations-padding")})
def test_with_graph_breaks(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    index = indices_for(action, x)
    moved = compiled(lambda x, index: action.act(action.invert(x, 1), index), fullgraph=False)(x, index)
    assert torch.equal(moved, case.make().act(case.make().invert(x, 1), index))


def test_functions_with_graph_breaks() -> None:
    (case,) = FUNCTIONS.values()
    action, x = case.make(), batch_for(case)
    index = indices_for(action, x)
    close(compiled(lambda x, index: both_ways(action, x, index), False)(x, index), both_ways(case.make(), x, index))


@pytest.mark.parametrize(
    ("action", "sizes"),
    [(Rotations(8), (4, 6)), (SO3(4), (4, 3)), (C4() * CyclicTranslations(2), (4, 4))],
    ids=["Rotations", "SO3", "product"],
)
def test_elements_that_vary(action: Action, sizes: tuple[int, ...]) -> None:
    """From the second value on, the compiler takes the element for a symbol."""
    x = torch.randn(3, *sizes, generator=torch.Generator().manual_seed(0))
    apply = compiled(lambda x, element: action.act(x, element))
    for element in (1, 2, 3, 0):
        close(apply(x, element), action.act(x, element))


def test_batches_that_vary_in_a_module_that_acts() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.action = C4()
            self.layer = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            out: Tensor = self.layer(self.action.act(x, index))
            return out

    module = Turned()
    apply = compiled(module)
    for samples, size in ((4, 5), (3, 8), (6, 2)):
        x = torch.randn(samples, 1, size, size, generator=torch.Generator().manual_seed(0))
        index = torch.arange(samples) % 4
        close(apply(x, index), module(x, index))


@each({name: EVERY[name] for name in ("Rotations", "LinearAction", "FunctionAction", "C4*CyclicTranslations")})
def test_the_orbit(case: Case) -> None:
    action, x = case.make(), batch_for(case)
    close(compiled(action.orbit)(x), case.make().orbit(x))
