"""Modules whose steps go other ways than an ordinary classifier's, and what holds them to a term by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import SIDE, loader, made, trainer_for
from lightning.pytorch import Callback, LightningModule, Trainer
from oracles import TERMS, WEIGHT, Classifier, Logit, Noisy, compare, flat, logit_term, rotated
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import C4, InvarianceRegularizer

#: What a callback may put on a module, and has to take off again.
SHADOWED = {"training_step", "validation_step", "test_step", "manual_backward", "forward"}


# Steps -----------------------------------------------------------------------------------------------------------


class Direct(Classifier):
    """The steps call the network, not the module."""

    def run(self, x: Tensor) -> Any:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.before = torch.get_rng_state()
        fx = self.run(batch[0])
        return F.cross_entropy(fx, batch[1]) + self.added(fx, batch[0])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return F.cross_entropy(self.run(batch[0]), batch[1])


class Manual:
    """One optimiser, which the step runs itself: to be mixed into a classifier."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class ManualClassifier(Manual, Classifier):
    pass


class TwoNetworks(LightningModule):
    """A generator ``g`` and a discriminator ``d``, each with an optimiser of its own that the step runs."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.g = nn.Linear(2, SIDE * SIDE)
        self.d = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.Tanh(), nn.Linear(8, 1))

    def images(self, x: Tensor) -> Tensor:
        """Made from two numbers of each image."""
        return self.g(x[:, 0, :2, 0]).reshape(x.shape)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(network.parameters(), lr=0.1) for network in (self.g, self.d)]


class Adversaries(TwoNetworks):
    """Each backward has a loss of its own."""

    def added(self, call: int, x: Tensor, judged: Tensor, made_up: Tensor) -> Tensor | float:
        """What an oracle adds to the loss of each call."""
        return 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0]
        of_generator, of_discriminator = self.optimizers()
        made_up = self.images(x)

        of_discriminator.zero_grad()
        judged = self.d(x)
        loss = F.softplus(-judged).mean() + F.softplus(self.d(made_up.detach())).mean()
        self.manual_backward(loss + self.added(0, x, judged, made_up))
        of_discriminator.step()

        self.toggle_optimizer(of_generator)
        of_generator.zero_grad()
        loss = F.softplus(-self.d(made_up)).mean()
        self.manual_backward(loss + self.added(1, x, judged, made_up))
        of_generator.step()
        self.untoggle_optimizer(of_generator)


class AdversariesWithTerm(Adversaries):
    """The discriminator's term in its own call, the first."""

    def added(self, call: int, x: Tensor, judged: Tensor, made_up: Tensor) -> Tensor | float:
        return WEIGHT * logit_term(judged, [self.d(each) for each in rotated(x)]) if call == 0 else 0.0


# Terms by hand ---------------------------------------------------------------------------------------------------


def with_term(plain: type[Any], by_hand: type = Logit) -> type[Any]:
    """The same module with the term in its step."""
    return type("WithTerm", (by_hand, plain), {})


def regularised(
    plain: type[Any],
    oracle: Callable[[], LightningModule] | None = None,
    *,
    options: dict[str, Any] | None = None,
    tolerance: float = 1e-6,
    **arguments: Any,
) -> LightningModule:
    """With a regularizer of these arguments the module must train as the oracle, under the options of the fit."""
    regularizer = InvarianceRegularizer(**{"action": C4(), "weight": WEIGHT, **arguments})
    return compare(plain, oracle or with_term(plain), [regularizer], tolerance=tolerance, **(options or {}))


def of_penalty(penalty: Any, by_hand: type = Logit) -> type:
    """The mixin whose term is that of the penalty."""
    return type("OfPenalty", (by_hand,), {"term": staticmethod(TERMS[penalty])})


# What is left ----------------------------------------------------------------------------------------------------


def everything_after(callbacks: list[Callback], **options: Any) -> dict[str, Any]:
    """What a fit with two validation loaders leaves behind."""
    module = made(Noisy)
    trainer = trainer_for(callbacks, **options)
    trainer.fit(module, loader(8, shuffle=True), [loader(7, seed=2), loader(5, seed=3)])
    return flat(
        {
            "weights": module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "gradients": [parameter.grad for parameter in module.parameters()],
            "random numbers": torch.get_rng_state(),
            "modes": [submodule.training for submodule in module.modules()],
            "requires_grad": [parameter.requires_grad for parameter in module.parameters()],
            "left": sorted(SHADOWED & set(vars(module))),
            "hooks": [len(submodule._forward_hooks) for submodule in module.modules()],
        }
    )


def validated(
    callbacks: Callback | list[Callback], module: Any, data: Any, method: str = "validate", **options: Any
) -> Trainer:
    """A validation or a test with the callbacks."""
    trainer = trainer_for(callbacks if isinstance(callbacks, list) else [callbacks], **options)
    getattr(trainer, method)(module, data, verbose=False)
    return trainer


def logged(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
