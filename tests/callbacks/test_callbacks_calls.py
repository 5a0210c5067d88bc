"""Which of a step's calls and backwards a term belongs to, and what is said where it belongs to none."""

from __future__ import annotations

import copy
import logging
import pickle
import warnings
from typing import Any

import pytest
import torch
from helpers import (
    SIDE,
    Classifier,
    assert_identical,
    assert_trained_alike,
    distance,
    fit,
    loader,
    logit_term,
    rotated,
    trainer_for,
)
from lightning.pytorch import LightningModule
from lightning_utilities.core import rank_zero
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_invariance import C4, InvarianceMonitor, InvarianceRegularizer

WEIGHT = 0.3


class GeneratorFirst(LightningModule):
    """A generator trained through ``d``, then ``d`` itself; each optimiser zeroes its own gradients alone."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.g = nn.Linear(2, SIDE * SIDE)
        self.d = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.Tanh(), nn.Linear(8, 1))

    def added(self, judged: Tensor, x: Tensor) -> Tensor | float:
        return 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0]
        of_g, of_d = self.optimizers()
        of_g.zero_grad()
        made_up = self.g(x[:, 0, :2, 0]).reshape(x.shape)
        self.manual_backward(F.softplus(-self.d(made_up)).mean())
        of_g.step()

        of_d.zero_grad()
        judged = self.d(x)
        self.manual_backward(F.softplus(-judged).mean() + self.added(judged, x))
        of_d.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(network.parameters(), lr=0.1) for network in (self.g, self.d)]


class GeneratorFirstWithTerm(GeneratorFirst):
    def added(self, judged: Tensor, x: Tensor) -> Tensor | float:
        return WEIGHT * logit_term(judged, [self.d(each) for each in rotated(x)])


def test_a_term_in_the_loss_of_another_network_is_refused_in_the_first_step() -> None:
    """Its gradients would be zeroed before the discriminator's step, and push the generator alone."""
    with pytest.raises(
        ValueError, match=r"take a step with the gradients of the term, but they are zeroed .*backward_c"
    ):
        fit(GeneratorFirst, [InvarianceRegularizer(C4(), WEIGHT, network="d")])


def test_the_backward_that_is_named_has_the_term_of_its_own_call() -> None:
    got = fit(GeneratorFirst, [InvarianceRegularizer(C4(), WEIGHT, network="d", backward_call=1)])
    assert_trained_alike(got, fit(GeneratorFirstWithTerm), fit(GeneratorFirst))


def test_gradients_that_a_whole_module_zeroes_are_noticed_too() -> None:
    class ZeroesAll(GeneratorFirst):
        def optimizers(self) -> Any:
            self.zero_grad()  # between the phases, as some do
            return super().optimizers()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = batch[0]
            of_g = self.optimizers()[0]
            made_up = self.g(x[:, 0, :2, 0]).reshape(x.shape)
            self.manual_backward(F.softplus(-self.d(made_up)).mean())
            of_g.step()
            self.optimizers()

    with pytest.raises(ValueError, match="zeroed without one"):
        fit(ZeroesAll, [InvarianceRegularizer(C4(), WEIGHT, network="d")])


def test_losses_of_two_backwards_that_depend_on_the_network_are_asked_about() -> None:
    class StepsAtTheEnd(GeneratorFirst):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = batch[0]
            for half in x.chunk(2):
                self.manual_backward(F.softplus(-self.d(half)).mean() / 2)
            of_d = self.optimizers()[1]
            of_d.step()
            of_d.zero_grad()

    class WithTerms(StepsAtTheEnd):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for half in batch[0].chunk(2):
                judged = self.d(half)
                term = logit_term(judged, [self.d(each) for each in rotated(half)])
                self.manual_backward(F.softplus(-judged).mean() / 2 + WEIGHT * term)
            of_d = self.optimizers()[1]
            of_d.step()
            of_d.zero_grad()

    with pytest.raises(ValueError, match=r"there are several, calls 0 and 1: .*`backward_call=`, or call='all'"):
        fit(StepsAtTheEnd, [InvarianceRegularizer(C4(), WEIGHT, network="d")])
    got = fit(StepsAtTheEnd, [InvarianceRegularizer(C4(), WEIGHT, network="d", call="all")])
    assert_trained_alike(got, fit(WithTerms), fit(StepsAtTheEnd))


def test_gradients_that_another_optimiser_has_taken_a_step_with_may_be_zeroed() -> None:
    """Two optimisers share the encoder: the second zeroes gradients that the first has used."""

    class Shares(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.other = nn.Linear(3, 1)

        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return 0.0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            first, second = self.optimizers()
            first.zero_grad()
            fx = self.model(batch[0])
            self.manual_backward(F.cross_entropy(fx, batch[1]) + self.added(fx, batch[0]))
            first.step()
            second.zero_grad()
            self.manual_backward(self.other(batch[0][:, 0, 0, :3]).square().mean())
            second.step()

        def configure_optimizers(self) -> Any:
            both = [*self.model.parameters(), *self.other.parameters()]
            return [torch.optim.SGD(each, lr=0.1) for each in (self.model.parameters(), both)]

    class WithTerm(Shares):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return WEIGHT * logit_term(fx, [self.model(each) for each in rotated(x)])

    got = fit(Shares, [InvarianceRegularizer(C4(), WEIGHT, network="model")])
    assert_trained_alike(got, fit(WithTerm), fit(Shares))


def test_a_closure_that_zeroes_gradients_inside_its_own_step_is_no_loss() -> None:
    class Closure(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return 0.0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()

            def closure() -> Tensor:
                optimizer.zero_grad()
                fx = self(batch[0])
                loss = F.cross_entropy(fx, batch[1]) + self.added(fx, batch[0])
                self.manual_backward(loss)
                return loss

            optimizer.step(closure=closure)

    class WithTerm(Closure):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return WEIGHT * logit_term(fx, [self.model(each) for each in rotated(x)])

    got = fit(Closure, [InvarianceRegularizer(C4(), WEIGHT)])
    assert_trained_alike(got, fit(WithTerm), fit(Closure))


def test_optimisers_are_as_they_were_after_a_step() -> None:
    seen: list[set[str]] = []

    class Looks(GeneratorFirst):
        def on_train_batch_end(self, *args: Any) -> None:
            for optimizer in (*self.trainer.optimizers, *self.trainer.strategy._lightning_optimizers):
                seen.append({"zero_grad", "step"} & set(vars(optimizer)))
            for optimizer in self.trainer.optimizers:
                assert not optimizer._optimizer_step_pre_hooks
                assert not optimizer._optimizer_step_post_hooks
            seen.append({"zero_grad"} & set(vars(self)) | {"zero_grad"} & set(vars(self.d)))

    fit(Looks, [InvarianceRegularizer(C4(), WEIGHT, network="d", backward_call=1)])
    assert seen
    assert not any(seen)


# Calls without a graph --------------------------------------------------------------------------------------------


class Teacher(Classifier):
    """Pseudo-labels from the network itself, under ``no_grad``, before the call that trains it."""

    def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
        return 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0]
        with torch.no_grad():
            labels = self(x.flip(-1)).argmax(1)
        fx = self(x)
        return F.cross_entropy(fx, labels) + self.added(fx, x)


def test_a_call_without_a_graph_is_never_regularised() -> None:
    class WithTerm(Teacher):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return WEIGHT * logit_term(fx, [self.model(each) for each in rotated(x)])

    got = fit(Teacher, [InvarianceRegularizer(C4(), WEIGHT)])
    assert_trained_alike(got, fit(WithTerm), fit(Teacher))


@pytest.mark.parametrize("how", ["under no_grad", "frozen"])
def test_where_no_call_has_a_graph_one_warning_says_that_nothing_is_regularised(how: str) -> None:
    class Probe(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3)
            self.model.requires_grad_(how != "frozen")

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            with torch.set_grad_enabled(how != "under no_grad"):
                features = self.model(batch[0])
            return F.cross_entropy(self.head(features.detach()), batch[1])

    message = r"1 call\(s\) of the submodule 'model' record no graph"
    with pytest.warns(UserWarning, match=f"nothing is regularised in this step: .*{message}") as warned:
        got = fit(Probe, [InvarianceRegularizer(C4(), WEIGHT, network="model")])
    assert len([each for each in warned if "regularised" in str(each.message)]) == 1
    assert distance(got, fit(Probe)) == 0.0


def test_a_call_that_the_loss_does_not_depend_on_is_not_taken_for_the_one_that_it_does() -> None:
    class LogsAnother(Classifier):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return 0.0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self(torch.zeros_like(batch[0]))  # with a graph, for a figure
            fx = self(batch[0])
            return F.cross_entropy(fx, batch[1]) + self.added(fx, batch[0])

    class WithTerm(LogsAnother):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return WEIGHT * logit_term(fx, [self.model(each) for each in rotated(x)])

    got = fit(LogsAnother, [InvarianceRegularizer(C4(), WEIGHT)])
    assert_trained_alike(got, fit(WithTerm), fit(LogsAnother))


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_a_network_that_a_checkpoint_runs_again_in_the_backward_is_called_once(manual: bool) -> None:
    class Checkpointed(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = not manual

        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return 0.0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            fx = checkpoint(self.model, batch[0], use_reentrant=False)
            loss = F.cross_entropy(fx, batch[1]) + self.added(fx, batch[0])
            if not manual:
                return loss
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            return None

    class WithTerm(Checkpointed):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return WEIGHT * logit_term(fx, [self.model(each) for each in rotated(x)])

    got = fit(Checkpointed, [InvarianceRegularizer(C4(), WEIGHT, network="model")])
    assert_trained_alike(got, fit(WithTerm), fit(Checkpointed))


def test_a_call_with_other_weights_is_refused() -> None:
    class Functional(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            faster = {name: 0.9 * parameter for name, parameter in self.model.named_parameters()}
            return F.cross_entropy(torch.func.functional_call(self.model, faster, (batch[0],)), batch[1])

    with pytest.raises(ValueError, match="called with its own parameters but a call was made with others"):
        fit(Functional, [InvarianceRegularizer(C4(), WEIGHT, network="model")])


def test_a_manual_step_that_calls_a_submodule_is_told_which_argument_decides() -> None:
    class CallsSubmodule(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self.model(batch[0]), batch[1]))
            optimizer.step()

    with pytest.warns(
        UserWarning, match=r"saw no such call: name the submodule .*`network=` \(such as 'model'\)"
    ) as seen:
        fit(CallsSubmodule, [InvarianceRegularizer(C4(), WEIGHT)])
    assert not any("manual_backward" in str(each.message) for each in seen)


# Copies -----------------------------------------------------------------------------------------------------------


class Copies(Classifier):
    """Makes a copy of its network in the first step, and asks it in every step."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.answers: list[Tensor] = []
        self.teacher: list[nn.Module] = []

    def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
        return 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if not self.teacher:
            if self.how == "deepcopy":
                copied: nn.Module = copy.deepcopy(self.model)
            elif self.how == "pickle":
                copied = pickle.loads(pickle.dumps(self.model))
            else:  # a shallow copy with parameters of its own, as meta-learning makes them
                copied = self.model.__new__(type(self.model))
                copied.__dict__ = self.model.__dict__.copy()
                copied._modules = {name: copy.deepcopy(each) for name, each in self.model._modules.items()}
            self.teacher.append(copied)
        fx = self.model(batch[0])
        with torch.no_grad():
            self.answers.append(self.teacher[0](batch[0]))
        return F.cross_entropy(fx, batch[1]) + self.added(fx, batch[0])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        tuned = copy.deepcopy(self.model)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.mul_(0.5)
        self.answers.append(tuned(batch[0]))
        return self.model(batch[0]).sum()


class CopiesWithTerm(Copies):
    def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
        return WEIGHT * logit_term(fx, [self.model(each) for each in rotated(x)])


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "shallow"])
def test_a_copy_that_the_step_makes_of_the_network_is_itself(how: str) -> None:
    watchers = [InvarianceRegularizer(C4(), WEIGHT, network="model"), InvarianceMonitor(C4(), network="model")]
    got = fit(lambda: Copies(how), watchers, val=loader(8))
    control = fit(lambda: CopiesWithTerm(how), val=loader(8))
    assert_trained_alike(got.model, control.model, fit(lambda: Copies(how)).model)  # type: ignore[arg-type]
    for one, other in zip(got.answers, control.answers, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert type(got.model) is nn.Sequential
    teacher, expected = got.teacher[0], control.teacher[0](torch.ones(1, 1, 4, 4))  # type: ignore[index]
    torch.testing.assert_close(teacher(torch.ones(1, 1, 4, 4)), expected)
    if how != "shallow":
        torch.testing.assert_close(pickle.loads(pickle.dumps(teacher))(torch.ones(1, 1, 4, 4)), expected)
        assert b"lightning_invariance" not in pickle.dumps(teacher)


def test_a_copy_made_in_a_manual_step_zeroes_its_own_gradients() -> None:
    class CopiesManually(GeneratorFirst):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            super().training_step(batch, batch_idx)
            copied = copy.deepcopy(self.d)
            self.d(batch[0]).sum().backward()
            copied.zero_grad()
            assert all(parameter.grad is not None for parameter in self.d.parameters())
            self.d.zero_grad()

    fit(CopiesManually, [InvarianceRegularizer(C4(), WEIGHT, network="d", backward_call=1)])


def test_a_network_keeps_its_class_during_a_step() -> None:
    """Users look things up by it, and classes count their subclasses."""
    subclasses: list[type] = []

    class Registered(nn.Sequential):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            subclasses.append(cls)

    class Looks(Classifier):
        def __init__(self) -> None:
            super().__init__(lambda: Registered(nn.Flatten(), nn.Linear(16, 3)))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert type(self.model) is Registered
            assert type(self) is Looks
            return super().training_step(batch, batch_idx)

    fit(Looks, [InvarianceRegularizer(C4(), WEIGHT, network="model"), InvarianceRegularizer(C4(), WEIGHT, prefix="b")])
    assert not subclasses


def test_a_scripted_network_is_watched() -> None:
    class Scripted(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.jit.script(self.model)

        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return 0.0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            fx = self.model(batch[0])
            return F.cross_entropy(fx, batch[1]) + self.added(fx, batch[0])

    class WithTerm(Scripted):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return WEIGHT * logit_term(fx, [self.model(each) for each in rotated(x)])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's, of scripts altogether
        got = fit(Scripted, [InvarianceRegularizer(C4(), WEIGHT, network="model")])
        assert_trained_alike(got, fit(WithTerm), fit(Scripted))


# What was found ---------------------------------------------------------------------------------------------------


def said_by(name: str, caplog: pytest.LogCaptureFixture, run: Any) -> list[str]:
    """What a callback said of what it found."""
    rank_zero.log.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, rank_zero.log.name):
            run()
    finally:
        rank_zero.log.removeHandler(caplog.handler)
    messages = [record.getMessage() for record in caplog.records if record.name == rank_zero.log.name]
    return sorted({message for message in messages if message.startswith(f"{name} found")})


def test_it_is_said_once_what_was_found(caplog: pytest.LogCaptureFixture) -> None:
    callbacks = [InvarianceRegularizer(C4(), WEIGHT, network="model"), InvarianceMonitor(C4())]
    module = Classifier()
    said = said_by("Invariance", caplog, lambda: None)
    (regularised,) = said_by(
        "InvarianceRegularizer", caplog, lambda: trainer_for(callbacks).fit(module, loader(), loader(8))
    )
    (measured,) = said_by("InvarianceMonitor", caplog, lambda: None)
    assert said == []
    assert "network the submodule 'model'" in regularised
    for message in (regularised, measured):
        assert "input a tensor (4, 1, 4, 4) of float32 at argument 0" in message
        assert "logits a tensor (4, 3) of float32" in message
    assert "labels at the batch[1]" in measured
    assert "without" not in measured


def test_a_monitor_that_only_looks_leaves_a_step_of_several_calls_as_it_was() -> None:
    monitors = [InvarianceMonitor(C4(), call="last"), InvarianceMonitor(C4(), call="all", prefix="all")]
    got, plain = fit(Teacher, monitors, val=loader(8)), fit(Teacher, val=loader(8))
    assert_identical(got.state_dict(), plain.state_dict())
