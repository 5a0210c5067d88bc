"""Manual optimisation with several optimisers and calls of the backward, and the choice of the one with the term."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import distance, fit, loader, logit_term, rotated
from regimes_helpers import WEIGHT, Adversaries, AdversariesWithTerm, Classifier, Logit, compare, noise
from torch import Tensor
from torch.nn import functional as F

from lightning_invariance import C4, InvarianceRegularizer, TimeReversal


class GeneratorWithTerm(Adversaries):
    """The generator's term in its own call, the second."""

    def added(self, call: int, x: Tensor, judged: Tensor, made_up: Tensor) -> Tensor | float:
        if call != 1:
            return 0.0
        return WEIGHT * logit_term(made_up.flatten(1), [self.generator(noise(x).flip(-1))])


class Together(Adversaries):
    """Both networks run before the first call, and their gradients are kept to the end."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0]
        made_up = self.generator(noise(x)).reshape(x.shape)
        judged = self.discriminator(x)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        fooled = F.softplus(-self.discriminator(made_up)).mean()
        self.manual_backward(fooled + self.added(0, x, judged, made_up), retain_graph=True)
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.05)  # so that it matters which call has the term
        told_apart = F.softplus(-judged).mean() + F.softplus(self.discriminator(made_up.detach())).mean()
        self.manual_backward(told_apart + self.added(1, x, judged, made_up))
        for optimizer in self.optimizers():
            optimizer.step()


class TogetherWithTermInTheFirst(Together):
    """The term of the call that the first loss depends on, that on the images made up."""

    def added(self, call: int, x: Tensor, judged: Tensor, made_up: Tensor) -> Tensor | float:
        if call != 0:
            return 0.0
        return WEIGHT * logit_term(self.discriminator(made_up), [self.discriminator(each) for each in rotated(made_up)])


class TogetherWithTermInTheSecond(Together):
    """The term of the first of the two calls that the second loss depends on."""

    def added(self, call: int, x: Tensor, judged: Tensor, made_up: Tensor) -> Tensor | float:
        return 0.0 if call == 0 else WEIGHT * logit_term(judged, [self.discriminator(each) for each in rotated(x)])


@pytest.mark.parametrize(
    ("plain", "oracle", "regularizer"),
    [
        (Adversaries, AdversariesWithTerm, {"network": "discriminator", "call": 0}),
        (Adversaries, AdversariesWithTerm, {"network": "discriminator", "backward_call": 0, "call": 0}),
        (Adversaries, GeneratorWithTerm, {"action": TimeReversal(), "network": "generator"}),
        (Adversaries, GeneratorWithTerm, {"action": TimeReversal(), "network": "generator", "backward_call": 1}),
        (Together, TogetherWithTermInTheFirst, {"network": "discriminator", "backward_call": 0}),
        (Together, TogetherWithTermInTheSecond, {"network": "discriminator", "backward_call": 1, "call": 0}),
    ],
)
def test_two_optimisers(plain: type[Adversaries], oracle: type[Adversaries], regularizer: dict[str, Any]) -> None:
    # The term of made-up images is small.
    options = {"action": C4(), "weight": WEIGHT, **regularizer}
    compare(plain, oracle, lambda: [InvarianceRegularizer(**options)], tolerance=2e-7)


def test_each_network_with_a_regularizer_of_its_own() -> None:
    class Both(Adversaries):
        def added(self, call: int, x: Tensor, judged: Tensor, made_up: Tensor) -> Tensor | float:
            one = AdversariesWithTerm.added(self, call, x, judged, made_up)  # type: ignore[arg-type]
            return one + GeneratorWithTerm.added(self, call, x, judged, made_up)  # type: ignore[arg-type]

    of_discriminator = InvarianceRegularizer(C4(), WEIGHT, network="discriminator", call=0)
    of_generator = InvarianceRegularizer(TimeReversal(), WEIGHT, network="generator", prefix="generator")
    compare(Adversaries, Both, lambda: [of_discriminator, of_generator])
    compare(Adversaries, Both, lambda: [of_generator, of_discriminator])


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


class AccumulatingWithTerm(Logit, Accumulating):
    def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
        return 2 * super().added(fx, x)  # the loss is halved before the callback sees it


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_one_optimiser_with_accumulation_and_clipping_of_its_own(precision: Any) -> None:
    class Oracle(AccumulatingWithTerm):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return 2 * WEIGHT * logit_term(fx, self.model(torch.cat(rotated(x))).chunk(3))

    compare(
        Accumulating,
        Oracle,
        lambda: [InvarianceRegularizer(C4(), WEIGHT)],
        data=loader(24),
        precision=precision,
    )


def test_a_call_beyond_those_there_are_is_warned_of_once_and_adds_nothing() -> None:
    regularizer = InvarianceRegularizer(C4(), WEIGHT, network="discriminator", backward_call=2)
    with pytest.warns(
        UserWarning, match="nothing is regularised in this step: expected backward_call=2 .* but it made 2"
    ) as warned:
        got = fit(Adversaries, [regularizer])
    assert sum("manual_backward" in str(each.message) for each in warned) == 1
    assert distance(got, fit(Adversaries)) == 0.0


def test_a_call_is_refused_with_automatic_optimisation() -> None:
    class Untouched(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("training has started")

    with pytest.raises(ValueError, match="`backward_call` to be None with automatic optimisation"):
        fit(Untouched, [InvarianceRegularizer(C4(), backward_call=0)])


@pytest.mark.parametrize("backward_call", [-1, 0.5, True])
def test_a_call_that_is_no_count_is_refused(backward_call: Any) -> None:
    with pytest.raises(ValueError, match="backward_call"):
        InvarianceRegularizer(C4(), backward_call=backward_call)
