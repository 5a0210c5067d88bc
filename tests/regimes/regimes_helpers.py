"""Small modules with a place in the step for a term written by hand, and what to compare them with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import CLASSES, SIDE, assert_trained_alike, fit, logit_term, rotated
from helpers import Classifier as Plain
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHT = 0.3


# Modules ---------------------------------------------------------------------------------------------------------


def convnet() -> nn.Module:
    """With running statistics."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * SIDE * SIDE, CLASSES),
    )


def dropping() -> nn.Module:
    """With random numbers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, CLASSES))


class Classifier(Plain):
    """With a place for a term: a subclass that is an oracle adds one to its loss."""

    def added(self, fx: Tensor, x: Tensor) -> Tensor | float:
        return 0.0

    def again(self, x: Tensor) -> Tensor:
        """The network once more, for the term: with the dropout masks of the step, and leaving no trace."""
        after = torch.get_rng_state()
        torch.set_rng_state(self.before)
        fx = untracked(self.model, x)
        torch.set_rng_state(after)
        return fx

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        self.before = torch.get_rng_state()
        fx = self(x)
        return F.cross_entropy(fx, y) + self.added(fx, x)


class Logit:
    """The invariance error of the logits under the four rotations, written into the step of a module."""

    def added(self: Any, fx: Tensor, x: Tensor) -> Tensor | float:
        return WEIGHT * logit_term(fx, [self.again(each) for each in rotated(x)])


class Saliency:
    """The invariance error of the maps, likewise."""

    def added(self: Any, fx: Tensor, x: Tensor) -> Tensor | float:
        return WEIGHT * saliency_term(self.again, fx, x)


class WithTerm(Logit, Classifier):
    pass


class WithSaliency(Saliency, Classifier):
    pass


class Adversaries(LightningModule):
    """Two networks against each other, each with an optimiser and a backward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Linear(2, SIDE * SIDE)
        self.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 4), nn.Tanh(), nn.Linear(4, 1))

    def added(self, call: int, x: Tensor, judged: Tensor, made_up: Tensor) -> Tensor | float:
        """What an oracle adds to the loss of each call."""
        return 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch[0]
        of_generator, of_discriminator = self.optimizers()
        made_up = self.generator(noise(x)).reshape(x.shape)

        of_discriminator.zero_grad()
        judged = self.discriminator(x)
        loss = F.softplus(-judged).mean() + F.softplus(self.discriminator(made_up.detach())).mean()
        self.manual_backward(loss + self.added(0, x, judged, made_up))
        of_discriminator.step()

        self.toggle_optimizer(of_generator)
        of_generator.zero_grad()
        loss = F.softplus(-self.discriminator(made_up)).mean()
        self.manual_backward(loss + self.added(1, x, judged, made_up))
        of_generator.step()
        self.untoggle_optimizer(of_generator)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(network.parameters(), lr=0.1) for network in (self.generator, self.discriminator)]


class AdversariesWithTerm(Adversaries):
    """The discriminator's term in its own call, the first."""

    def added(self, call: int, x: Tensor, judged: Tensor, made_up: Tensor) -> Tensor | float:
        return WEIGHT * logit_term(judged, [self.discriminator(each) for each in rotated(x)]) if call == 0 else 0.0


def noise(x: Tensor) -> Tensor:
    """Two numbers of each image, to make another one from."""
    return x[:, 0, :2, 0]


# The term by hand ------------------------------------------------------------------------------------------------


def untracked(network: Any, x: Tensor) -> Tensor:
    """The network in train mode with the statistics of this batch, which it does not remember."""
    if not isinstance(network, nn.Sequential):
        return network(x)
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d) and layer.training:
            x = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
        else:
            x = layer(x)
    return x


def saliency_term(run: Callable[[Tensor], Tensor], fx: Tensor, x: Tensor) -> Tensor:
    """One minus the cosine between the maps of x and of its rotations, turned back; of the class predicted on x."""
    predicted = fx.detach().argmax(1)

    def gradient_map(image: Tensor) -> Tensor:
        leaf = image.detach().clone().requires_grad_()
        chosen = run(leaf)[torch.arange(len(x)), predicted].sum()
        return torch.autograd.grad(chosen, leaf, create_graph=True)[0]

    base = gradient_map(x)
    gaps = []
    for k in (1, 2, 3):
        turned = torch.rot90(gradient_map(torch.rot90(x, k, (2, 3)).contiguous()), -k, (2, 3))
        gaps.append((1 - F.cosine_similarity(base.flatten(1), turned.flatten(1))).mean())
    return sum(gaps) / 3


# Comparisons -----------------------------------------------------------------------------------------------------


def compare(
    plain: Callable[[], LightningModule],
    oracle: Callable[[], LightningModule],
    callbacks: Callable[[], list[Callback]],
    others: Callable[[], list[Callback]] = list,
    tolerance: float = 1e-6,
    **options: Any,
) -> LightningModule:
    """The plain module with the callbacks must train as the oracle does without; `others` are there every time."""
    got = fit(plain, [*others(), *callbacks()], **options)
    assert_trained_alike(got, fit(oracle, others(), **options), fit(plain, others(), **options), tolerance)
    return got
