"""Which dimensions a user's own functions move values along."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_invariance import C4, SO3, FunctionAction


def _blurred(x: Tensor) -> Tensor:
    return F.avg_pool1d(x.flatten(1)[:, None], 3, 1, 1)[:, 0].reshape(x.shape)


@pytest.mark.parametrize(
    ("function", "places"),
    [
        (lambda x: torch.rot90(x, 1, (-2, -1)), (-2, -1)),
        (lambda x: x.roll(1, -1), (-1,)),
        (lambda x: x.flip(1), (-3,)),
        (torch.neg, None),
        (_blurred, None),
        (lambda x: x, ()),
    ],
    ids=["turned", "shifted", "channels exchanged", "negated", "blurred", "left"],
)
def test_functions_say_which_places_they_move(function: Callable[[Tensor], Tensor], places: tuple[int, ...]) -> None:
    action = FunctionAction([(function, function)])
    assert action.places is None
    assert action.places_in(torch.randn(2, 3, 4, 4)) == places


def test_places_that_are_given_are_believed() -> None:
    action = FunctionAction([(torch.neg, torch.neg)], places=[-1, -2])
    assert action.places_in(torch.randn(2, 3, 4, 4)) == (-2, -1)
    assert (C4() * SO3(2)).places_in(torch.randn(2, 3, 3)) == (-2, -1)
