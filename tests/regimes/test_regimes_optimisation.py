"""Manual optimisation with several optimisers and calls of the backward, and the choice of the one with the term."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import fit, loader
from oracles import WEIGHT, Classifier, Stacked, assert_trained_alike, distance, logit_term, rotated
from steps import Adversaries, AdversariesWithTerm, regularised, with_term
from torch import Tensor
from torch.nn import functional as F

from lightning_invariance import C4, InvarianceRegularizer, TimeReversal


class GeneratorWithTerm(Adversaries):
    """The generator's term in its own call, the second."""

    def added(self, call: int, x: Tensor, judged: Tensor, made_up: Tensor) -> Tensor | float:
        if call != 1:
            return 0.0
        return WEIGHT * logit_term(made_up.flatten(1), [self.g(x[:, 0, :2, 0].flip(-1))])


class Together(Adversaries):
    """Both networks run before the first call, and their gradients are kept to the end."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0]
        made_up = self.images(x)
        judged = self.d(x)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        fooled = F.softplus(-self.d(made_up)).mean()
        self.manual_backward(fooled + self.added(0, x, judged, made_up), retain_graph=True)
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.05)  # so that it matters which call has the term
        told_apart = F.softplus(-judged).mean() + F.softplus(self.d(made_up.detach())).mean()
        self.manual_backward(told_apart + self.added(1, x, judged, made_up))
        for optimizer in self.optimizers():
            optimizer.step()


class TogetherWithTermInTheFirst(Together):
    """The term of the call that the first loss depends on, that on the images made up."""

    def added(self, call: int, x: Tensor, judged: Tensor, made_up: Tensor) -> Tensor | float:
        if call != 0:
            return 0.0
        return WEIGHT * logit_term(self.d(made_up), [self.d(each) for each in rotated(made_up)])


class TogetherWithTermInTheSecond(Together):
    """The term of the first of the two calls that the second loss depends on."""

    def added(self, call: int, x: Tensor, judged: Tensor, made_up: Tensor) -> Tensor | float:
        return 0.0 if call == 0 else WEIGHT * logit_term(judged, [self.d(each) for each in rotated(x)])


@pytest.mark.parametrize(
    ("plain", "oracle", "regularizer"),
    [
        (Adversaries, AdversariesWithTerm, {"network": "d", "backward_call": 0, "call": 0}),
        (Adversaries, GeneratorWithTerm, {"action": TimeReversal(), "network": "g", "backward_call": 1}),
        (Together, TogetherWithTermInTheFirst, {"network": "d", "backward_call": 0}),
        (Together, TogetherWithTermInTheSecond, {"network": "d", "backward_call": 1, "call": 0}),
    ],
)
def test_two_optimisers(plain: type[Adversaries], oracle: type[Adversaries], regularizer: dict[str, Any]) -> None:
    # The term of made-up images is small.
    regularised(plain, oracle, tolerance=2e-7, **regularizer)


def test_each_network_with_a_regularizer_of_its_own() -> None:
    """Without a word on the backward call: each has the one that its network's call is in."""

    class Both(Adversaries):
        def added(self, call: int, x: Tensor, judged: Tensor, made_up: Tensor) -> Tensor | float:
            one = AdversariesWithTerm.added(self, call, x, judged, made_up)
            return one + GeneratorWithTerm.added(self, call, x, judged, made_up)

    both = [
        InvarianceRegularizer(C4(), WEIGHT, network="d", call=0),
        InvarianceRegularizer(TimeReversal(), WEIGHT, network="g", prefix="generator"),
    ]
    oracle, plain = fit(Both), fit(Adversaries)
    for callbacks in (both, both[::-1]):
        assert_trained_alike(fit(Adversaries, callbacks), oracle, plain)


class Accumulating(Classifier):
    """One optimiser that steps after every second batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx) / 2)
        if batch_idx % 2:
            self.clip_gradients(optimizer, 0.05, "norm")
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_one_optimiser_with_accumulation_and_clipping_of_its_own(precision: Any) -> None:
    oracle = with_term(Accumulating, Stacked)
    oracle.weight = 2 * WEIGHT  # the loss is halved before the callback sees it
    regularised(Accumulating, oracle, options={"data": loader(24), "precision": precision})


def test_a_call_beyond_those_there_are_is_warned_of_once_and_adds_nothing() -> None:
    regularizer = InvarianceRegularizer(C4(), WEIGHT, network="d", backward_call=2)
    message = "nothing is regularised in this step: expected backward_call=2 .* but it made 2"
    with pytest.warns(UserWarning, match=message) as warned:
        got = fit(Adversaries, [regularizer])
    assert sum("manual_backward" in str(each.message) for each in warned) == 1
    assert distance(got, fit(Adversaries)) == 0.0


def test_a_call_is_refused_with_automatic_optimisation() -> None:
    class Untouched(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("training has started")

    with pytest.raises(ValueError, match="`backward_call` to be None with automatic optimisation"):
        fit(Untouched, [InvarianceRegularizer(C4(), backward_call=0)])
