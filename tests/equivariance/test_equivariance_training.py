"""The regularizer of an output that moves, against training loops with the term written into them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equivariance_helpers import (
    IGNORED,
    assert_same_steps,
    conv_net,
    in_frame,
    masks,
    placed,
    read_bilinear,
    replaced,
    trained,
    trained_by_hand,
    turn,
)
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import C4, D4, InvarianceRegularizer, Penalty, Rotations

#: The logit error adds up over all pixels: with more, the steps grow until rounding does too.
WEIGHTS = {"logit": 0.02, "masked": 0.02, "distribution": 0.5, "callable": 0.5, "plain": 0.5}


def logit(fx: Tensor, back: Tensor) -> Tensor:
    return 0.5 * (fx - back).square().sum((1, 2, 3)).mean()


def distribution(fx: Tensor, back: Tensor) -> Tensor:
    p = fx.softmax(1)
    return (p * (p.log() - back.softmax(1).log())).sum(1).mean()


def absolute(fx: Tensor, back: Tensor) -> Tensor:
    return (fx - back).abs().mean()


def callable_absolute(logits: Tensor, orbit_logits: Tensor) -> Tensor:
    return (orbit_logits - logits).abs().mean()


PENALTIES = {"logit": ("logit", logit), "distribution": ("distribution", distribution)} | {
    "callable": (callable_absolute, absolute)
}


def normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1))


def again(net: nn.Module, x: Tensor) -> Tensor:
    """The network once more, with the batch's statistics, which leave no trace in the running ones."""
    for layer in net:
        if isinstance(layer, nn.BatchNorm2d):
            x = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True)
        else:
            x = layer(x)
    return x


@pytest.mark.parametrize(
    ("penalty", "network", "max_batch", "elements"),
    [
        ("logit", conv_net, None, 4),
        ("distribution", conv_net, None, 8),
        ("callable", conv_net, None, 4),
        ("logit", conv_net, 3, 8),
        ("distribution", normalised, None, 4),
        ("logit", normalised, 4, 4),
    ],
)
def test_a_segmentation_is_trained_as_by_hand(penalty, network, max_batch, elements):
    (given, by_hand), weight = PENALTIES[penalty], WEIGHTS[penalty]
    action = C4() if elements == 4 else D4()
    data = masks()

    def term(net: nn.Module, fx: Tensor, x: Tensor) -> Tensor:
        gaps = [by_hand(fx, replaced(again(net, placed(x, g)), g)) for g in range(1, elements)]
        return sum(gaps) / len(gaps)

    def regularized(output_action: Any) -> nn.Module:
        options = {"penalty": given, "output_action": output_action, "max_batch": max_batch}
        return trained(network, [InvarianceRegularizer(action, weight, **options)], data).network

    with pytest.warns(UserWarning, match="output_action='same'"):
        staying = regularized(None)
    assert_same_steps(regularized("same"), trained_by_hand(network, data, term, weight), network, staying)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh())
        self.mask = nn.Conv2d(4, 3, 3, padding=1)
        self.kind = nn.Conv2d(4, 2, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x)
        return {"unused": hidden, "kind": self.kind(hidden).flatten(1), "mask": self.mask(hidden)}


def two_losses(output: dict[str, Tensor], y: Tensor) -> Tensor:
    return F.cross_entropy(output["mask"], y) + output["kind"].square().mean()


@pytest.mark.parametrize("max_batch", [None, 3])
def test_penalties_of_several_outputs_are_added_up(max_batch):
    data = masks()

    def term(net: nn.Module, fx: dict[str, Tensor], x: Tensor) -> Tensor:
        total = 0.0
        for g in (1, 2, 3):
            moved = net(placed(x, g))
            total = total + logit(fx["mask"], replaced(moved["mask"], g))
            total = total + 0.5 * (fx["kind"] - moved["kind"]).square().sum(1).mean()
        return total / 3

    moves = {"mask": "same", "kind": None}
    weight = WEIGHTS["logit"]
    callback = InvarianceRegularizer(C4(), weight, output_action=moves, max_batch=max_batch)
    got = trained(TwoHeads, [callback], data, loss=two_losses).network
    plain = trained(TwoHeads, [], data, loss=two_losses).network
    assert_same_steps(got, trained_by_hand(TwoHeads, data, term, weight, two_losses), TwoHeads, plain)


INVERSE = [turn(-45.0 * g) for g in range(1, 8)]
THERE = [turn(45.0 * g) for g in range(1, 8)]
MASKS = torch.stack([in_frame(7, 7, each) for each in THERE])


def masked_absolute(logits: Tensor, orbit_logits: Tensor, valid: Tensor) -> Tensor:
    assert torch.equal(valid.expand(orbit_logits.shape)[:, 0, 0], MASKS)
    return ((orbit_logits - logits).abs() * valid).sum() / len(orbit_logits)


def _of_valid(penalty: str, fx: Tensor, back: Tensor, seen: Tensor) -> Tensor:
    """The logit error adds up over the valid places; of divergences it is the mean over these."""
    if penalty == "logit":
        return logit(fx, torch.where(seen, back, fx))
    if penalty == "plain":
        return absolute(fx, torch.where(seen, back, fx))
    if penalty == "masked":
        return ((fx - back).abs() * seen).sum()
    p = fx.softmax(1)
    places = (p * (p.log() - back.softmax(1).log())).sum(1)
    return (places * seen).sum((1, 2)).div(seen.sum()).mean()


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("logit", "logit"),
        ("distribution", "distribution"),
        ("plain", callable_absolute),
        ("masked", Penalty(masked_absolute)),
    ],
)
def test_what_leaves_the_frame_is_not_penalised(name, given):
    data = masks(side=7)
    weight = WEIGHTS[name]

    def term(net: nn.Module, fx: Tensor, x: Tensor) -> Tensor:
        gaps = []
        for inverse, there, seen in zip(INVERSE, THERE, MASKS, strict=True):
            back = read_bilinear(net(read_bilinear(x, inverse)), there)
            gaps.append(_of_valid(name, fx, back, seen))
        return sum(gaps) / 7

    callback = InvarianceRegularizer(Rotations(8), weight, given, output_action="same")
    got = trained(conv_net, [callback], data).network
    plain = trained(conv_net, [], data).network
    assert_same_steps(got, trained_by_hand(conv_net, data, term, weight), conv_net, plain)
    assert IGNORED in data.tensors[1]


@pytest.mark.parametrize("penalty", ["logit", "normalized_logit", "distribution", "jensen_shannon"])
def test_a_map_that_leaves_the_frame_as_a_whole_has_no_penalty(penalty):
    """Of two by two pixels, an eighth of a turn leaves none in the frame; a loss of NaN would end the training."""

    def network() -> nn.Module:
        return nn.Sequential(conv_net(), nn.AvgPool2d(3))

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return output.square().mean()

    assert not in_frame(2, 2, turn(45.0)).any()
    weight = WEIGHTS.get(penalty, 0.1)
    callback = InvarianceRegularizer(Rotations(8), weight, penalty, output_action="same")
    module = trained(network, [callback], masks(), loss=loss)
    assert module.trainer.callback_metrics["train/invariance_penalty"].isfinite()
    assert all(bool(each.isfinite().all()) for each in module.parameters())
