"""Which of a step's calls and backwards a term belongs to, and what is said where it belongs to none."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import pytest
import torch
from helpers import fit, loader
from lightning_utilities.core import rank_zero
from oracles import (
    WEIGHT,
    Classifier,
    assert_identical,
    assert_trained_alike,
    compare,
    distance,
    logit_term,
    rotated,
)
from steps import Direct, Manual, TwoNetworks, regularised, with_term
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_invariance import C4, InvarianceMonitor, InvarianceRegularizer


def on(network: str, **options: Any) -> list[Any]:
    return [InvarianceRegularizer(C4(), WEIGHT, network=network, **options)]


# Backwards -------------------------------------------------------------------------------------------------------


class GeneratorFirst(TwoNetworks):
    """A generator trained through ``d``, then ``d`` itself; each optimiser zeroes its own gradients alone."""

    toggles = False

    def added(self, judged: Tensor, x: Tensor) -> Tensor | float:
        return 0.0

    def train_g(self, x: Tensor) -> None:
        of_g = self.optimizers()[0]
        if self.toggles:
            self.toggle_optimizer(of_g)
        of_g.zero_grad()
        self.manual_backward(F.softplus(-self.d(self.images(x))).mean())
        of_g.step()
        if self.toggles:
            self.untoggle_optimizer(of_g)

    def train_d(self, x: Tensor) -> None:
        of_d = self.optimizers()[1]
        of_d.zero_grad()
        judged = self.d(x)
        self.manual_backward(F.softplus(-judged).mean() + self.added(judged, x))
        of_d.step()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.train_g(batch[0])
        self.train_d(batch[0])


class InTurn(GeneratorFirst):
    """The discriminator in the first batch, the generator through it in the second."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        (self.train_g if batch_idx % 2 else self.train_d)(batch[0])


class ZeroesAll(GeneratorFirst):
    """Zeroes the gradients of the whole module between the phases."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.train_g(batch[0])
        self.zero_grad()


class WithTermOfD:
    def added(self: Any, judged: Tensor, x: Tensor) -> Tensor | float:
        return WEIGHT * logit_term(judged, [self.d(each) for each in rotated(x)])


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        (GeneratorFirst, r"take a step with the gradients of the term, but they are zeroed .*backward_c"),
        (ZeroesAll, "zeroed without one"),
        (InTurn, r"zeroed without one: .*`self.toggle_optimizer`"),
    ],
)
def test_a_term_in_the_loss_of_another_network_is_refused(plain: type[GeneratorFirst], message: str) -> None:
    """Its gradients would be zeroed before the discriminator's step, and push the generator alone."""
    with pytest.raises(ValueError, match=message):
        fit(plain, on("d"))


class Toggles(GeneratorFirst):
    toggles = True


class TogglesInTurn(InTurn):
    toggles = True


@pytest.mark.parametrize(
    ("plain", "options"), [(GeneratorFirst, {"backward_call": 1}), (Toggles, {}), (TogglesInTurn, {})]
)
def test_the_backward_of_its_own_network_has_the_term(plain: type[GeneratorFirst], options: Any) -> None:
    """The one that is named, or the only one that is left where calls of a frozen network do not count."""
    compare(plain, with_term(plain, WithTermOfD), on("d", **options))


def test_losses_of_two_backwards_that_depend_on_the_network_are_asked_about() -> None:
    class StepsAtTheEnd(GeneratorFirst):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for half in batch[0].chunk(2):
                judged = self.d(half)
                self.manual_backward(F.softplus(-judged).mean() / 2 + self.added(judged, half))
            of_d = self.optimizers()[1]
            of_d.step()
            of_d.zero_grad()

    with pytest.raises(ValueError, match=r"there are several, calls 0 and 1: .*`backward_call=`, or call='all'"):
        fit(StepsAtTheEnd, on("d"))
    compare(StepsAtTheEnd, with_term(StepsAtTheEnd, WithTermOfD), on("d", call="all"))


class SharesGradients(Direct):
    """Two optimisers share the network: the second zeroes gradients that the first has taken a step with."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first, second = self.optimizers()
        first.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        first.step()
        second.zero_grad()
        self.manual_backward(self.other(batch[0][:, 0, 0, :3]).square().mean())
        second.step()

    def configure_optimizers(self) -> Any:
        both = [*self.model.parameters(), *self.other.parameters()]
        return [torch.optim.SGD(each, lr=0.1) for each in (self.model.parameters(), both)]


class Closure(Direct):
    """Zeroes the gradients inside the step of its optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer, whole = self.optimizers(), super().training_step

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = whole(batch, batch_idx)
            self.manual_backward(loss)
            return loss

        optimizer.step(closure=closure)


class SeveralBackwards(Direct):
    """The first does not depend on the network's call; the last does, with the second one's gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss=sum(p.square().sum() for p in self.parameters()))
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1)
        self.before = torch.get_rng_state()
        fx = self.run(batch[0])
        self.manual_backward(F.cross_entropy(fx, batch[1]) + self.added(fx, batch[0]), retain_graph=True)
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.2)
        self.manual_backward(fx.square().mean())
        optimizer.step()


# Calls -----------------------------------------------------------------------------------------------------------


class Teaches(Direct):
    """Pseudo-labels from the network itself, under ``no_grad``, before the call that trains it."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.no_grad():
            labels = self.run(batch[0].flip(-1)).argmax(1)
        return super().training_step((batch[0], labels), batch_idx)


class RunsAnother(Direct):
    """A call with a graph that the loss does not depend on."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.run(torch.zeros_like(batch[0]))
        return super().training_step(batch, batch_idx)


class Checkpointed(Direct):
    """Its network is run again in the backward."""

    def run(self, x: Tensor) -> Tensor:
        return checkpoint(self.model, x, use_reentrant=False)


class CheckpointedManually(Manual, Checkpointed):
    pass


class Scripted(Direct):
    def __init__(self) -> None:
        super().__init__()
        self.model = torch.jit.script(self.model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    "plain",
    [
        SharesGradients,
        Closure,
        SeveralBackwards,
        Teaches,
        RunsAnother,
        Checkpointed,
        CheckpointedManually,
        Scripted,
    ],
)
def test_the_call_that_the_loss_depends_on_has_the_term(plain: type[Direct]) -> None:
    regularised(plain, network="model")


def test_optimisers_and_classes_are_as_they_were() -> None:
    """Users look things up by the class, and classes count their subclasses."""
    seen: list[set[str]] = []
    subclasses: list[type] = []

    class Registered(nn.Sequential):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            subclasses.append(cls)

    class Looks(GeneratorFirst):
        def __init__(self) -> None:
            super().__init__()
            self.d = Registered(*self.d)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert type(self.d) is Registered
            assert type(self) is Looks
            super().training_step(batch, batch_idx)
            copied = copy.deepcopy(self.d)  # zeroes its own gradients
            self.d(batch[0]).sum().backward()
            copied.zero_grad()
            assert all(parameter.grad is not None for parameter in self.d.parameters())
            self.d.zero_grad()

        def on_train_batch_end(self, *args: Any) -> None:
            for optimizer in (*self.trainer.optimizers, *self.trainer.strategy._lightning_optimizers):
                seen.append({"zero_grad", "step"} & set(vars(optimizer)))
            for optimizer in self.trainer.optimizers:
                assert not optimizer._optimizer_step_pre_hooks
                assert not optimizer._optimizer_step_post_hooks
            seen.append({"zero_grad"} & set(vars(self)) | {"zero_grad"} & set(vars(self.d)))

    fit(Looks, on("d", backward_call=1))
    assert seen
    assert not any(seen)
    assert not subclasses


# Where there is none ---------------------------------------------------------------------------------------------


class Features(Classifier):
    """A head on features of a network that is not trained."""

    frozen = False

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.model.requires_grad_(not self.frozen)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.set_grad_enabled(self.frozen):
            features = self.model(batch[0])
        return F.cross_entropy(self.head(features.detach()), batch[1])


class FrozenFeatures(Features):
    frozen = True


class ManualDirect(Manual, Direct):
    pass


class Hidden(Manual, Classifier):
    """Passes ``manual_backward`` by."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        F.cross_entropy(self(batch[0]), batch[1]).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("plain", "network", "message"),
    [
        (
            Features,
            "model",
            r"nothing is regularised in this step: .*1 call\(s\) of the submodule 'model' record no graph",
        ),
        (FrozenFeatures, "model", r"1 call\(s\) of the submodule 'model' record no graph"),
        (ManualDirect, None, r"saw no such call: name the submodule .*`network=` \(such as 'model'\)"),
        (Hidden, None, "manual_backward"),
    ],
)
def test_one_warning_says_that_nothing_is_regularised(plain: type[Any], network: str | None, message: str) -> None:
    with pytest.warns(UserWarning, match=message) as warned:
        got = fit(plain, [InvarianceRegularizer(C4(), WEIGHT, network=network)])
    assert len([each for each in warned if "InvarianceRegularizer" in str(each.message)]) == 1
    assert plain is Hidden or not any("manual_backward" in str(each.message) for each in warned)
    assert distance(got, fit(plain)) == 0.0


def test_a_call_with_other_weights_is_refused() -> None:
    class Functional(Direct):
        def run(self, x: Tensor) -> Tensor:
            faster = {name: 0.9 * parameter for name, parameter in self.model.named_parameters()}
            return torch.func.functional_call(self.model, faster, (x,))

    with pytest.raises(ValueError, match="called with its own parameters but a call was made with others"):
        fit(Functional, on("model"))


# Copies ----------------------------------------------------------------------------------------------------------


class Copies(Direct):
    """Makes a copy of its network in the first step, and asks it in every step."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.answers: list[Tensor] = []
        self.teacher: list[nn.Module] = []

    def copied(self) -> nn.Module:
        if self.how == "deepcopy":
            return copy.deepcopy(self.model)
        if self.how == "pickle":
            return pickle.loads(pickle.dumps(self.model))
        # A shallow copy with parameters of its own, as meta-learning makes them.
        copied = self.model.__new__(type(self.model))
        copied.__dict__ = self.model.__dict__.copy()
        copied._modules = {name: copy.deepcopy(each) for name, each in self.model._modules.items()}
        return copied

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if not self.teacher:
            self.teacher.append(self.copied())
        loss = super().training_step(batch, batch_idx)
        with torch.no_grad():
            self.answers.append(self.teacher[0](batch[0]))
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        tuned = copy.deepcopy(self.model)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.mul_(0.5)
        self.answers.append(tuned(batch[0]))
        return super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "shallow"])
def test_a_copy_that_the_step_makes_of_the_network_is_itself(how: str) -> None:
    watchers = [*on("model"), InvarianceMonitor(C4(), network="model")]
    got = fit(lambda: Copies(how), watchers, val=loader(8))
    control = fit(lambda: with_term(Copies)(how), val=loader(8))
    assert_trained_alike(got.model, control.model, fit(lambda: Copies(how)).model)
    for one, other in zip(got.answers, control.answers, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert type(got.model) is nn.Sequential
    ones, teacher = torch.ones(1, 1, 4, 4), got.teacher[0]
    expected = control.teacher[0](ones)
    torch.testing.assert_close(teacher(ones), expected)
    if how != "shallow":
        torch.testing.assert_close(pickle.loads(pickle.dumps(teacher))(ones), expected)
        assert b"lightning_invariance" not in pickle.dumps(teacher)


# What was found --------------------------------------------------------------------------------------------------


def test_it_is_said_once_what_was_found(caplog: pytest.LogCaptureFixture) -> None:
    rank_zero.log.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, rank_zero.log.name):
            fit(Classifier, [*on("model"), InvarianceMonitor(C4())], val=loader(8))
    finally:
        rank_zero.log.removeHandler(caplog.handler)
    regularised, measured = (
        {each for each in caplog.messages if each.startswith(f"{name} found")}
        for name in ("InvarianceRegularizer", "InvarianceMonitor")
    )
    assert len(regularised) == len(measured) == 1
    assert "network the submodule 'model'" in next(iter(regularised))
    for message in (*regularised, *measured):
        assert "input a tensor (4, 1, 4, 4) of float32 at argument 0" in message
        assert "logits a tensor (4, 3) of float32" in message
    assert "labels at the batch[1]" in next(iter(measured))
    assert "without" not in next(iter(measured))


def test_a_monitor_that_only_looks_leaves_a_step_of_several_calls_as_it_was() -> None:
    monitors = [
        InvarianceMonitor(C4(), network="model", call="last"),
        InvarianceMonitor(C4(), network="model", call="all", prefix="all"),
    ]
    got, plain = fit(Teaches, monitors, val=loader(8)), fit(Teaches, val=loader(8))
    assert_identical(got.state_dict(), plain.state_dict())
