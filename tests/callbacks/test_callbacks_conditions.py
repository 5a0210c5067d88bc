"""f(x) and f(gx) are of one network under one set of conditions, whatever a step does around its call."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from helpers import fit, loader, made, trainer_for
from lightning.pytorch import Callback, LightningModule, Trainer
from oracles import WEIGHT, Classifier, assert_identical, dropping, logit_term, rotated
from steps import Direct, regularised, validated
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

LI = "logit_invariance_error"

#: A group that does nothing: whatever it seems to change is an error of the measurement.
NOTHING = FunctionAction([(torch.clone, torch.clone), (torch.clone, torch.clone)])


class Step(Direct):
    """What the step does with its network is done again for the term."""

    def again(self, x: Tensor) -> Tensor:
        return self.run(x)


class Scales(Step):
    """Writes into the logits: a temperature."""

    def run(self, x: Tensor) -> Tensor:
        return self.model(x).div_(3.0).sub_(1.0)


class ScalesByHand(Scales):
    """The term is of what the network gives."""

    def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
        return WEIGHT * logit_term(self.model(x), [self.model(each) for each in rotated(x)])


class Hooked(Step):
    """Normalises in a hook before the network, and clips in one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.model.register_forward_pre_hook(lambda module, args: (2 * args[0] + 1,))
        self.model.register_forward_hook(lambda module, args, output: output.clamp(-0.2, 0.2))


class CallsForward(Hooked):
    """Passes the hooks by."""

    def run(self, x: Tensor) -> Tensor:
        return self.model.forward(x)


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


class OverTheBatch(nn.Module):
    """The spread of the batch is a feature of each of its samples, as discriminators have it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(17, 3)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.inner(torch.cat([flat, flat.std(dim=0).mean().expand(len(x), 1)], dim=1))


class Coupled(Step):
    """Its elements must not be stacked."""

    def __init__(self) -> None:
        super().__init__(OverTheBatch)


@pytest.mark.parametrize("make", [Scales, Hooked, CallsForward, InEval, InAutocast, Samples, Coupled])
def test_a_group_that_does_nothing_has_an_error_of_0(make: type[Step]) -> None:
    trainer = trainer_for([InvarianceRegularizer(NOTHING, WEIGHT, network="model")], max_epochs=1)
    trainer.fit(made(make), loader())
    assert float(trainer.callback_metrics["train/invariance_penalty"]) < 1e-12
    monitor = InvarianceMonitor(NOTHING, measures=[LI], network="model")
    validated(monitor, made(make), loader(8))
    assert float(monitor.history[0].measures[LI].value) < 1e-12


@pytest.mark.parametrize(
    ("make", "oracle"), [(Scales, ScalesByHand), (Hooked, None), (CallsForward, None), (InEval, None), (Coupled, None)]
)
def test_the_term_is_of_the_network_as_the_step_calls_it(make: type[Step], oracle: type[Step] | None) -> None:
    regularised(make, oracle, network="model")


def test_evaluation_has_one_draw_for_all_elements_too() -> None:
    results = evaluate_invariance(made(Sampling), loader(8), NOTHING, measures=[LI], progress=False)
    assert float(results[LI].value) < 1e-12


def test_every_random_stream_is_left_where_the_step_leaves_it() -> None:
    states = []
    for callbacks in (
        [],
        [InvarianceRegularizer(C4(), 0.0, network="model"), InvarianceMonitor(C4(), network="model")],
        [InvarianceRegularizer(C4(), WEIGHT, network="model")],
    ):
        fit(Samples, callbacks, val=loader(8))  # which seeds all three
        states.append([random.getstate(), list(np.random.get_state()[1:3]), torch.get_rng_state()])
    for state in states[1:]:
        assert_identical(state, states[0])


# Weights that are there for the call alone -----------------------------------------------------------------------


class Averaged(Step):
    """Validates with other weights than it has, exchanged in place."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        own = [parameter.detach().clone() for parameter in self.model.parameters()]
        for parameter in self.model.parameters():
            parameter.data.mul_(2.0)
        self.model(batch[0])
        for parameter, value in zip(self.model.parameters(), own, strict=True):
            parameter.data.copy_(value)


class AveragedLater(Averaged):
    """Averages are those of the first weights in the sanity check."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if self.trainer.sanity_checking:
            self.model(batch[0])
        else:
            super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("make", [Averaged, AveragedLater])
def test_weights_that_are_exchanged_for_the_call_are_warned_of_and_not_mixed(make: type[Step]) -> None:
    monitor = InvarianceMonitor(C4(), measures=[LI], network="model")
    with pytest.warns(UserWarning, match="gives another output for the same input when it is run again") as warned:
        module = fit(make, [monitor], val=loader(8))
    (said,) = [str(each.message) for each in warned if "run again" in str(each.message)]
    assert "What is measured is the network as it is after the step" in said
    own = evaluate_invariance(module.model, loader(8), C4(), measures=[LI], progress=False)
    assert float(monitor.history[-1].measures[LI].value) == pytest.approx(float(own[LI].value), rel=1e-5)


def test_a_state_that_is_no_buffer_is_warned_of() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.inner(x) + self.calls

    with pytest.warns(UserWarning, match="depends on a state that is no buffer. What is regularised"):
        fit(lambda: Direct(Counts), [InvarianceRegularizer(C4(), WEIGHT, network="model")])


@pytest.mark.parametrize("monitor", [InvarianceMonitor, SensitivityMonitor])
def test_monitors_refuse_calls_with_other_weights(monitor: Any) -> None:
    class Functional(Direct):
        def run(self, x: Tensor) -> Tensor:
            halved = {name: 0.5 * parameter for name, parameter in self.model.named_parameters()}
            return torch.func.functional_call(self.model, halved, (x,))

    with pytest.raises(ValueError, match="called with its own parameters but a call was made with others"):
        validated(monitor(C4(), network="model"), Functional(), loader(8))


# Copies, closures, derivatives -----------------------------------------------------------------------------------


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

    ours = [InvarianceRegularizer(C4(), WEIGHT), InvarianceMonitor(C4()), OrbitAugmentation(C4())]
    fit(Classifier, [*ours, CopiesModule()], val=loader(8))
    (copied,) = copies
    batch = next(iter(loader(4)))
    of_zeros = float(F.cross_entropy(torch.zeros(4, 3), batch[1]))
    assert float(copied.training_step(batch, 0).detach()) == pytest.approx(of_zeros)
    assert float(copied.validation_step(batch, 0).detach()) == pytest.approx(of_zeros)
    assert copied.training_step.__self__ is copied


def test_a_closure_that_is_called_again_sees_the_same_augmented_batch() -> None:
    seen: list[Tensor] = []

    class Lbfgs(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(batch[0].clone())
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), max_iter=4)

    fit(Lbfgs, [OrbitAugmentation(C4())], data=loader(12, 12), max_epochs=2)
    assert len(seen) > 2
    assert len({tuple(each.flatten().tolist()) for each in seen}) == 2  # one for each epoch


def test_a_loss_of_derivatives_depends_on_the_call_too() -> None:
    """A gradient penalty: the loss reaches what was made inside the call, and not its output."""

    class Residual(Step):
        def run(self, x: Tensor) -> Tensor:
            leaf = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.model(leaf).sum(), leaf, create_graph=True)
            self.residual = gradient.square().mean()
            return self.model(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) + self.residual

    class OfTheFirst(Residual):
        def again(self, x: Tensor) -> Tensor:
            return self.model(x)

        def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
            return WEIGHT * logit_term(fx, [self.again(each) for each in rotated(x)])

    with pytest.raises(ValueError, match=r"expected one call of the submodule 'model' in a step but there were 2"):
        fit(Residual, [InvarianceRegularizer(C4(), WEIGHT, network="model")])
    for call in (0, "all"):  # of one batch both
        regularised(Residual, OfTheFirst, network="model", call=call)


def test_a_training_without_validation_is_told_that_nothing_is_measured() -> None:
    with pytest.warns(UserWarning, match="InvarianceMonitor: nothing is measured in this training"):
        got = fit(Classifier, [InvarianceMonitor(C4())])
    assert_identical(got.state_dict(), fit(Classifier).state_dict())
    with pytest.warns(UserWarning, match="SensitivityMonitor: nothing is measured in this training"):
        fit(Classifier, [SensitivityMonitor()], val=loader(8), limit_val_batches=0)


def test_functions_are_measured_with_their_modules_in_eval_mode() -> None:
    network = made(dropping)
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

    class Enables(Direct):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            with torch.enable_grad():
                self.model(batch[0])

    x, module = loader(8).dataset.x, made(lambda: Enables(Forces))
    results = evaluate_invariance(module.model, [x], C4(), measures=[LI], progress=False)
    fx, *fgx = [module.model(torch.rot90(x, k, (-2, -1)).clone()).detach() for k in range(4)]
    expected = pytest.approx(float(logit_term(fx, fgx)), rel=1e-5)
    assert float(results[LI].value) == expected
    monitor = InvarianceMonitor(C4(), measures=[LI], network="model")
    validated(monitor, module, loader(8), inference_mode=False)
    assert float(monitor.history[0].measures[LI].value) == expected
