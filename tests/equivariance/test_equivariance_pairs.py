"""Actions that do not belong together: errors where they show, warnings where only the network's outputs tell."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from equivariance_helpers import batches, masks, monitored, symmetric_conv, trained
from helpers import made
from torch import Tensor, nn

from lightning_invariance import (
    C4,
    D4,
    SO2,
    SO3,
    FieldAction,
    InvarianceMonitor,
    InvarianceRegularizer,
    LinearAction,
    OrbitAugmentation,
    Rotations,
    evaluate_invariance,
    evaluate_orbit,
)
from lightning_invariance.baselines import OrbitPooled


def signs(count: int, **options: Any) -> LinearAction:
    return LinearAction(torch.stack([torch.eye(3), *[-torch.eye(3)] * (count - 1)]), **options)


def _pooled(action: Any, output_action: Any) -> Any:
    return OrbitPooled(nn.Identity(), action, output_action=output_action)


WRONG = [
    (C4(), D4(), "as many elements as `action`, C4\\(\\), which has 4, but got D4\\(\\) with 8"),
    (C4(), {"a": None, "b": signs(5)}, "as many elements"),
    (C4(), Rotations(4), None),  # the same names
    (C4(), signs(4), None),  # no names of their own
    (C4(), signs(4, labels=["identity", "rot90", "rot180", "flip"]), "element 3 is 'flip'"),
    (C4(), signs(4, labels=["identity", "rot270", "rot180", "rot90"]), "element 1 is 'rot270'"),
    (SO3(3), SO3(3, seed=1), "drawn with the seed of `action`, 0"),
    (SO3(3), SO3(4), "as many elements"),
    (C4(), "Same", "'same' \\(it moves as the input does\\)"),
    (C4(), {}, "to map names of outputs to actions"),
    (C4(), {"a": "none"}, "but got 'none'"),
]


@pytest.mark.parametrize(("action", "other", "message"), WRONG)
def test_elements_have_to_be_the_same(action, other, message):
    makers: dict[str, Callable[..., Any]] = {
        "InvarianceMonitor": InvarianceMonitor,
        "InvarianceRegularizer": InvarianceRegularizer,
        "evaluate_orbit": lambda action, output_action: evaluate_orbit(
            lambda x: {"a": x, "b": x} if isinstance(other, dict) else x,
            torch.randn(2, 3, 3, 3),
            action,
            output_action=output_action,
        ),
        "OrbitAugmentation": lambda action, output_action: OrbitAugmentation(action, target_action=output_action),
    }
    if not action.drawn:
        makers["OrbitPooled"] = _pooled
    for make in makers.values():
        if message is None:
            make(action, output_action=other)
        else:
            with pytest.raises(ValueError, match=message):
                make(action, output_action=other)
    if isinstance(message, str) and type(other) is not str and not isinstance(other, dict):
        with pytest.raises(ValueError, match=message.replace("`action`", "`points`")):
            FieldAction(action, other)


@pytest.mark.parametrize(
    ("action", "fixed"),
    [(SO3(3), signs(4)), (SO3(3), {"a": None, "b": signs(4)}), (SO2(3), FieldAction(signs(4), signs(4)))],
)
@pytest.mark.parametrize(
    "make",
    [
        InvarianceMonitor,
        InvarianceRegularizer,
        lambda action, output_action: OrbitAugmentation(action, target_action=output_action),
    ],
    ids=["monitor", "regularizer", "augmentation"],
)
def test_what_is_drawn_anew_is_drawn_together(make, action, fixed):
    """At once: the elements would not belong together in the first step."""
    with pytest.raises(ValueError, match="to draw its elements anew"):
        make(action, output_action=fixed)


@pytest.mark.parametrize("moves", ["same", signs(4), {"fine": None, "wrong": "same"}])
def test_an_output_that_the_action_cannot_move_is_named(moves):
    def network(x: Tensor) -> Any:
        out = x[:, 0, :2, :5].flatten(1)[:, None, :2]
        return {"fine": x, "wrong": out} if isinstance(moves, dict) else out

    x = torch.randn(2, 1, 6, 6)
    name = " 'wrong'" if isinstance(moves, dict) else ""
    message = f"`output_action` to be able to act on the network's output{name}, a tensor (2, 1, 2)"
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate_orbit(network, x, C4(), output_action=moves)
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate_invariance(network, [x], C4(), output_action=moves, progress=False)


def test_an_output_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"tensors called \['energy', 'force'\].* but \['force'\] are none"):
        evaluate_orbit(
            lambda x: {"energy": x, "forces": x},
            torch.randn(2, 1, 4, 4),
            C4(),
            output_action={"energy": None, "force": "same"},
        )


# What only the outputs tell -------------------------------------------------------------------------------------------


class Transposed(nn.Module):
    """Rows become columns: the output turns, but the other way."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mT


class Staying(nn.Module):
    """Scores that depend on how bright the image is, in the same pattern for all."""

    def __init__(self) -> None:
        super().__init__()
        self.pattern = nn.Parameter(torch.randn(3, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x.square().mean((2, 3))[..., None, None] * self.pattern


def right_net() -> nn.Module:
    return nn.Sequential(symmetric_conv(1, 4), nn.Tanh(), symmetric_conv(4, 3))


NETWORKS = {
    "the other way": lambda: nn.Sequential(right_net(), Transposed()),
    "it stays as it is": Staying,
    "right": right_net,
}

WAYS: dict[str, Callable[[nn.Module, Any, Any], Any]] = {
    "evaluate_invariance": lambda network, data, moves: evaluate_invariance(
        network, batches(data), C4(), output_action=moves, progress=False
    ),
    "InvarianceMonitor": lambda network, data, moves: monitored(
        network, InvarianceMonitor(C4(), output_action=moves), data
    ),
    "InvarianceRegularizer": lambda network, data, moves: trained(
        lambda: network, [InvarianceRegularizer(C4(), 0.1, output_action=moves)], data
    ),
}


def told(way: str, network: nn.Module, moves: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        WAYS[way](network, masks(), moves)
    return [str(each.message) for each in caught if str(each.message).startswith(way)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_that_move_otherwise_are_found_in_the_first_batch(way, network):
    said = told(way, made(NETWORKS[network]), "same")
    if network == "right":
        assert said == []
        return
    (message,) = said
    assert network in message
    assert "Check `output_action=`" in message


@pytest.mark.parametrize("way", WAYS)
def test_a_mask_that_is_not_said_to_move_is_found(way):
    (message,) = told(way, made(right_net), None)
    assert "output_action='same'" in message
