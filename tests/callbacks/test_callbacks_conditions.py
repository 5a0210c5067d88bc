"""f(x) and f(gx) are of one network under one set of conditions, whatever a step does around its call."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Classifier, assert_identical, assert_trained_alike, fit, loader, logit_term, rotated, trainer_for
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import (
    C4,
    FunctionAction,
    InvarianceMonitor,
    InvarianceRegularizer,
    OrbitAugmentation,
    SensitivityMonitor,
    evaluate_invariance,
)

WEIGHT = 0.3
LI = "logit_invariance_error"

#: A group that does nothing: whatever it seems to change is an error of the measurement.
NOTHING = FunctionAction([(torch.clone, torch.clone), (torch.clone, torch.clone)])


class Step(Classifier):
    """A place for what a step does with its network, and for a term by hand."""

    def run(self, x: Tensor) -> Tensor:
        return self.model(x)

    def again(self, x: Tensor) -> Tensor:
        return self.run(x)

    def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
        return 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        fx = self.run(batch[0])
        return F.cross_entropy(fx, batch[1]) + self.added(fx, batch[0])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.run(batch[0]).sum()


class ByHand:
    def added(self: Any, fx: Tensor, x: Tensor) -> Tensor | float:
        return WEIGHT * logit_term(fx, [self.again(each) for each in rotated(x)])


def held_to_hand(make: type[Step], oracle: type[Step], **options: Any) -> None:
    got = fit(make, [InvarianceRegularizer(C4(), WEIGHT, network="model", **options)])
    assert_trained_alike(got, fit(oracle), fit(make))


def penalty_of_nothing(make: type[Step]) -> float:
    """What the regularizer logs for a group that does nothing."""
    torch.manual_seed(1)
    trainer = trainer_for([InvarianceRegularizer(NOTHING, WEIGHT, network="model")])
    trainer.fit(make(), loader())
    return float(trainer.callback_metrics["train/invariance_penalty"])


def measured(make: type[Step], action: Any = NOTHING, **options: Any) -> float:
    torch.manual_seed(1)
    monitor = InvarianceMonitor(action, measures=[LI], network="model", **options)
    trainer_for([monitor]).validate(make(), loader(8), verbose=False)
    return float(monitor.history[0].measures[LI].value)


# What the step does to the output ----------------------------------------------------------------------------------


class Scales(Step):
    """Divides the logits in place: a temperature."""

    def run(self, x: Tensor) -> Tensor:
        return self.model(x).div_(3.0).sub_(1.0)


def test_an_output_that_the_step_writes_into_is_computed_again() -> None:
    class Oracle(Scales):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return WEIGHT * logit_term(self.model(x), [self.model(each) for each in rotated(x)])

    held_to_hand(Scales, Oracle)
    assert penalty_of_nothing(Scales) < 1e-12
    assert measured(Scales) < 1e-12


# Hooks -------------------------------------------------------------------------------------------------------------


class Hooked(Step):
    """Normalises in a hook before the network, and clips in one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.model.register_forward_pre_hook(lambda module, args: (2 * args[0] + 1,))
        self.model.register_forward_hook(lambda module, args, output: output.clamp(-0.2, 0.2))


class HookedByHand(ByHand, Hooked):
    pass


class CallsForward(Hooked):
    """Passes the hooks by."""

    def run(self, x: Tensor) -> Tensor:
        return self.model.forward(x)


class CallsForwardByHand(ByHand, CallsForward):
    pass


@pytest.mark.parametrize(("make", "oracle"), [(Hooked, HookedByHand), (CallsForward, CallsForwardByHand)])
def test_hooks_run_as_often_as_in_the_step(make: type[Step], oracle: type[Step]) -> None:
    held_to_hand(make, oracle)
    assert penalty_of_nothing(make) < 1e-12
    assert measured(make) < 1e-12


# Modes and precision around the call -------------------------------------------------------------------------------


def dropping() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))


class InEval(Step):
    def __init__(self) -> None:
        super().__init__(dropping)

    def run(self, x: Tensor) -> Tensor:
        self.model.eval()
        fx = self.model(x)
        self.model.train()
        return fx


class InAutocast(Step):
    def run(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(x).float()


class InEvalByHand(ByHand, InEval):
    pass


@pytest.mark.parametrize("make", [InEval, InAutocast])
def test_modes_and_autocast_are_those_of_the_call(make: type[Step]) -> None:
    assert penalty_of_nothing(make) < 1e-12
    assert measured(make) < 1e-12


def test_a_network_in_eval_mode_for_the_call_is_regularised_in_eval_mode() -> None:
    held_to_hand(InEval, InEvalByHand)


# Random numbers ----------------------------------------------------------------------------------------------------


class Sampling(nn.Module):
    """Random in evaluation too, as variational networks are; from torch, Python and numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        fx = self.inner(x)
        return fx + torch.randn_like(fx) + random.random() + float(np.random.rand())


class Samples(Step):
    def __init__(self) -> None:
        super().__init__(Sampling)


def test_all_elements_have_the_random_numbers_of_the_call_whatever_they_are_drawn_from() -> None:
    assert penalty_of_nothing(Samples) < 1e-12
    assert measured(Samples) < 1e-12
    torch.manual_seed(1)
    results = evaluate_invariance(Sampling(), loader(8), NOTHING, measures=[LI], progress=False)
    assert float(results[LI].value) < 1e-12


def test_every_random_stream_is_left_where_the_step_leaves_it() -> None:
    states = []
    for callbacks in (
        [],
        [InvarianceRegularizer(C4(), 0.0, network="model"), InvarianceMonitor(C4(), network="model")],
        [InvarianceRegularizer(C4(), WEIGHT, network="model")],
    ):
        random.seed(3)
        np.random.seed(3)
        fit(Samples, callbacks, val=loader(8))
        states.append((random.getstate(), np.random.get_state()[1:3], torch.get_rng_state()))
    for state in states[1:]:
        assert state[0] == states[0][0]
        np.testing.assert_array_equal(state[1][0], states[0][1][0])
        assert torch.equal(state[2], states[0][2])


# Samples that depend on each other ---------------------------------------------------------------------------------


class OverTheBatch(nn.Module):
    """The spread of the batch is a feature of each of its samples, as discriminators have it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(17, 3)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.inner(torch.cat([flat, flat.std(dim=0).mean().expand(len(x), 1)], dim=1))


class Coupled(Step):
    def __init__(self) -> None:
        super().__init__(OverTheBatch)


class CoupledByHand(ByHand, Coupled):
    pass


def test_elements_are_not_stacked_where_samples_depend_on_each_other() -> None:
    held_to_hand(Coupled, CoupledByHand)
    assert penalty_of_nothing(Coupled) < 1e-12


# Weights that are there for the call alone -------------------------------------------------------------------------


class Averaged(Step):
    """Validates with other weights than it has, exchanged in place."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        own = [parameter.detach().clone() for parameter in self.model.parameters()]
        for parameter in self.model.parameters():
            parameter.data.mul_(2.0)
        self.model(batch[0])
        for parameter, value in zip(self.model.parameters(), own, strict=True):
            parameter.data.copy_(value)


def test_weights_that_are_exchanged_for_the_call_are_warned_of_and_not_mixed() -> None:
    with pytest.warns(UserWarning, match="gives another output for the same input when it is run again") as warned:
        mixed = measured(Averaged, C4())
    assert len([each for each in warned if "run again" in str(each.message)]) == 1
    assert mixed == pytest.approx(measured(Step, C4()), rel=1e-5)  # of the network as it is after the step


def test_weights_that_begin_to_differ_later_on_are_noticed_then() -> None:
    """Averages are those of the first weights in the sanity check."""

    class Later(Averaged):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            if self.trainer.sanity_checking:
                self.model(batch[0])
            else:
                super().validation_step(batch, batch_idx)

    monitor = InvarianceMonitor(C4(), measures=[LI], network="model")
    with pytest.warns(UserWarning, match="What is measured is the network as it is after the step") as warned:
        module = fit(Later, [monitor], val=loader(8))
    assert len([each for each in warned if "run again" in str(each.message)]) == 1
    own = evaluate_invariance(module.model, loader(8), C4(), measures=[LI], progress=False)  # type: ignore[arg-type]
    assert float(monitor.history[-1].measures[LI].value) == pytest.approx(float(own[LI].value), rel=1e-5)


def test_a_state_that_is_no_buffer_is_warned_of() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.inner(x) + self.calls

    class Counting(Step):
        def __init__(self) -> None:
            super().__init__(Counts)

    with pytest.warns(UserWarning, match="depends on a state that is no buffer. What is regularised"):
        fit(Counting, [InvarianceRegularizer(C4(), WEIGHT, network="model")])


@pytest.mark.parametrize("monitor", [InvarianceMonitor, SensitivityMonitor])
def test_monitors_refuse_calls_with_other_weights(monitor: Any) -> None:
    class Functional(Step):
        def run(self, x: Tensor) -> Tensor:
            halved = {name: 0.5 * parameter for name, parameter in self.model.named_parameters()}
            return torch.func.functional_call(self.model, halved, (x,))

    with pytest.raises(ValueError, match="called with its own parameters but a call was made with others"):
        trainer_for([monitor(C4(), network="model")]).validate(Functional(), loader(8), verbose=False)


# Copies, closures, derivatives -------------------------------------------------------------------------------------


def test_a_copy_of_the_module_runs_its_own_steps() -> None:
    copies: list[LightningModule] = []

    class CopiesModule(Callback):
        """As callbacks do that average weights."""

        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            copied = copy.deepcopy(pl_module)
            with torch.no_grad():
                for parameter in copied.parameters():
                    parameter.zero_()
            copies.append(copied)

    callbacks = [InvarianceRegularizer(C4(), WEIGHT), InvarianceMonitor(C4()), OrbitAugmentation(C4())]
    torch.manual_seed(1)
    trainer_for([*callbacks, CopiesModule()]).fit(Classifier(), loader(), loader(8))
    (copied,) = copies
    batch = next(iter(loader(4)))
    of_zeros = float(F.cross_entropy(torch.zeros(4, 3), batch[1]))
    assert float(copied.training_step(batch, 0).detach()) == pytest.approx(of_zeros)
    assert float(copied.validation_step(batch, 0).detach()) == pytest.approx(of_zeros)
    assert copied.training_step.__self__ is copied


def test_a_closure_that_is_called_again_sees_the_same_augmented_batch() -> None:
    class Lbfgs(Step):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen.append(batch[0].clone())
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), max_iter=4)

    module = fit(Lbfgs, [OrbitAugmentation(C4())], data=loader(12, 12), max_epochs=2)
    seen = module.seen
    assert len(seen) > 2
    distinct = {tuple(each.flatten().tolist()) for each in seen}
    assert len(distinct) == 2  # one for each epoch


def test_a_loss_of_derivatives_depends_on_the_call_too() -> None:
    """A gradient penalty: the loss reaches what was made inside the call, and not its output."""

    class Residual(Step):
        def run(self, x: Tensor) -> Tensor:
            leaf = x.clone().requires_grad_()
            inside = self.model(leaf)
            (gradient,) = torch.autograd.grad(inside.sum(), leaf, create_graph=True)
            self.residual = gradient.square().mean()
            return self.model(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) + self.residual

    class OfTheFirst(Residual):
        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return WEIGHT * logit_term(self.model(x), [self.model(each) for each in rotated(x)])

    with pytest.raises(ValueError, match=r"expected one call of the submodule 'model' in a step but there were 2"):
        fit(Residual, [InvarianceRegularizer(C4(), WEIGHT, network="model")])
    held_to_hand(Residual, OfTheFirst, call=0)
    held_to_hand(Residual, OfTheFirst, call="all")  # of one batch both


def test_a_term_that_goes_to_waste_later_on_is_noticed_too() -> None:
    """The critic is trained in the first batch, the generator through it in the second."""

    class Alternating(LightningModule):
        def __init__(self, toggles: bool = False) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.toggles = toggles
            self.g = nn.Linear(2, 16)
            self.d = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = batch[0]
            of_g, of_d = self.optimizers()
            if batch_idx % 2 == 0:
                of_d.zero_grad()
                self.manual_backward(F.softplus(-self.d(x)).mean())
                of_d.step()
                return
            if self.toggles:
                self.toggle_optimizer(of_g)
            of_g.zero_grad()
            self.manual_backward(F.softplus(-self.d(self.g(x[:, 0, :2, 0]).reshape(x.shape))).mean())
            of_g.step()
            if self.toggles:
                self.untoggle_optimizer(of_g)

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(network.parameters(), lr=0.1) for network in (self.g, self.d)]

    with pytest.raises(ValueError, match=r"zeroed without one: .*`self.toggle_optimizer`"):
        fit(Alternating, [InvarianceRegularizer(C4(), WEIGHT, network="d")])
    fit(lambda: Alternating(toggles=True), [InvarianceRegularizer(C4(), WEIGHT, network="d")])


def test_a_training_without_validation_is_told_that_nothing_is_measured() -> None:
    with pytest.warns(UserWarning, match="InvarianceMonitor: nothing is measured in this training"):
        got = fit(Step, [InvarianceMonitor(C4(), network="model")])
    assert_identical(got.state_dict(), fit(Step).state_dict())
    with pytest.warns(UserWarning, match="SensitivityMonitor: nothing is measured in this training"):
        fit(Step, [SensitivityMonitor(network="model")], val=loader(8), limit_val_batches=0)


def test_functions_are_measured_with_their_modules_in_eval_mode() -> None:
    torch.manual_seed(0)
    network = dropping()
    results = evaluate_invariance(lambda x: network(x), loader(8), C4(), measures=[LI], progress=False)
    assert network.training
    expected = evaluate_invariance(network.eval(), loader(8), C4(), measures=[LI], progress=False)
    assert float(results[LI].value) == pytest.approx(float(expected[LI].value), rel=1e-6)


def test_networks_that_differentiate_inside_are_measured() -> None:
    """Forces from energies: a graph is needed where nobody else wants one."""

    class Forces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = x.requires_grad_()
            return torch.autograd.grad(self.inner(x).sum(), x, create_graph=True)[0].flatten(1)[:, :3]

    torch.manual_seed(0)
    network = Forces()
    results = evaluate_invariance(network, [loader(8).dataset.x], C4(), measures=[LI], progress=False)
    x = loader(8).dataset.x
    outputs = [network(torch.rot90(x, k, (-2, -1)).clone()).detach() for k in range(4)]
    expected = torch.stack([(each - outputs[0]).square().sum(1) for each in outputs[1:]]).mean() / 2
    assert float(results[LI].value) == pytest.approx(float(expected), rel=1e-5)
