"""What a training step costs."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial

import torch
from lightning.pytorch import Callback, LightningModule
from torch.nn import functional as F

from benchmarks.networks import CLASSES, Batches, Classifier, convolutional, poses, residual18, trainer_on
from benchmarks.pairs import Pair, Setting, Timed
from lightning_invariance import C4, InvarianceRegularizer, InvariantWeights, RotationFlow
from lightning_invariance.baselines import OrbitPooled, SteerableClassifier
from lightning_invariance.comparison._times import training_step_seconds

WEIGHT = 0.1
LIE_WEIGHT = 0.1
SHAPE = (3, 32, 32)


def all_elements(setting: Setting) -> Pair:
    """The three further poses of each sample cannot be had for less than as many plain samples."""
    size = setting.size(64, 4)
    return Pair(
        f"regularised training step, C4, {size} samples",
        f"plain step on {4 * size} samples",
        step(setting, Classifier(convolutional()), size, [InvarianceRegularizer(C4(), WEIGHT)]),
        step(setting, Classifier(convolutional()), 4 * size),
        1.05,
        partial(difference_from_hand, setting, size, None),
    )


def one_element(setting: Setting) -> Pair:
    """The same with one element drawn for the batch."""
    size = setting.size(64, 4)
    return Pair(
        f"the same, elements_per_step=1, {size} samples",
        f"plain step on {2 * size} samples",
        step(setting, Classifier(convolutional()), size, [InvarianceRegularizer(C4(), WEIGHT, elements_per_step=1)]),
        step(setting, Classifier(convolutional()), 2 * size),
        1.08,
        partial(difference_from_hand, setting, size, 1),
    )


def lie_derivative(setting: Setting) -> Pair:
    """A whole continuous group for one forward with derivatives, and its backward."""
    size = setting.size(64, 4)
    return Pair(
        f"step regularised by the Lie derivative of rotations, {size} samples",
        "plain step",
        step(setting, Classifier(convolutional()), size, [InvarianceRegularizer(RotationFlow(), LIE_WEIGHT)]),
        step(setting, Classifier(convolutional()), size),
        3.5,
        partial(difference_of_lie_derivative, setting, size),
    )


def against_steerable(setting: Setting) -> Pair:
    """A regularised network against one that is invariant by construction, with about as many parameters."""
    size = setting.size(64, 4)
    plain, steerable = convolutional(1, (8, 16, 32)), SteerableClassifier("C4", 1, CLASSES, 28, width=4)
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (plain, steerable)]
    shape = (1, 28, 28)
    return Pair(
        f"step of a regularised convolutional network, {counts[0]:,} parameters, C4",
        f"step of escnn's C4 network, {counts[1]:,} parameters",
        step(setting, Classifier(plain), size, [InvarianceRegularizer(C4(), WEIGHT)], shape),
        step(setting, Classifier(steerable), size, (), shape),
        None,
        lambda: float("nan"),
    )


def invariant_weights(setting: Setting) -> Pair:
    """Gradients projected before each step, of a network of 11 million parameters."""
    size = setting.size(64, 4)
    shape, width = (3, 65, 65) if not setting.quick else (3, 33, 33), setting.size(64, 8)
    return Pair(
        f"step of a ResNet-18 with InvariantWeights, C4, {size} samples of {shape[1]}×{shape[2]}",
        "plain step",
        step(setting, Classifier(residual18(width=width)), size, [InvariantWeights(C4())], shape, steps=5),
        step(setting, Classifier(residual18(width=width)), size, (), shape, steps=5),
        1.1,
        partial(difference_of_poses, setting, width, shape),
    )


def pooled(setting: Setting) -> Pair:
    """What an exactly invariant network costs that runs on all poses."""
    size = setting.size(64, 4)
    return Pair(
        f"step of OrbitPooled around a convolutional network, C4, {size} samples",
        "plain step",
        step(setting, Classifier(OrbitPooled(convolutional(), C4())), size),
        step(setting, Classifier(convolutional()), size),
        None,
        lambda: float("nan"),
    )


def steerable_channels(setting: Setting) -> Pair:
    """What one costs that is invariant by its layers, with as many channels."""
    size, shape = setting.size(64, 4), (1, 28, 28)
    steerable = SteerableClassifier("C4", 1, CLASSES, 28, width=4)
    return Pair(
        f"step of escnn's C4 network, as many channels, {size} samples",
        "step of a plain convolutional network",
        step(setting, Classifier(steerable), size, (), shape),
        step(setting, Classifier(convolutional(1, (16, 32, 64))), size, (), shape),
        None,
        lambda: float("nan"),
    )


def step(
    setting: Setting,
    module: LightningModule,
    size: int,
    callbacks: Sequence[Callback] = (),
    shape: tuple[int, ...] = SHAPE,
    steps: int = 15,
) -> Timed:
    """A step inside `Trainer.fit`: forward, backward, optimiser."""
    return partial(
        training_step_seconds,
        module,
        callbacks,
        Batches(setting, size, shape),
        partial(trainer_on, setting),
        setting.size(steps, 1),
    )


def difference_from_hand(setting: Setting, size: int, elements: int | None) -> float:
    """How far the weights after one step are from those of a step written by hand, over how far they moved."""
    start = Classifier(convolutional()).to(setting.device)
    trained = deepcopy(start)
    data = Batches(setting, size, SHAPE, batches=1)
    regularizer = InvarianceRegularizer(C4(), WEIGHT, elements_per_step=elements)
    trainer_on(setting, [regularizer], max_steps=1, limit_val_batches=0).fit(trained, datamodule=data)
    trained = trained.to(setting.device)
    (batch,) = data.train_dataloader()
    x, y = (part.to(setting.device) for part in batch)
    differences = []
    for chosen in [[1, 2, 3]] if elements is None else [[1], [2], [3]]:  # which one was drawn, the callback knows
        by_hand = deepcopy(start)
        optimizer = by_hand.configure_optimizers()
        logits = by_hand(x)
        squares = [(logits - by_hand(torch.rot90(x, turns, (-2, -1)))).square().sum(dim=1) / 2 for turns in chosen]
        (F.cross_entropy(logits, y) + WEIGHT * torch.stack(squares).mean()).backward()
        optimizer.step()
        before, ours, hand = (
            torch.nn.utils.parameters_to_vector(each.parameters()).detach() for each in (start, trained, by_hand)
        )
        differences.append(float((ours - hand).norm() / (hand - before).norm()))
    return min(differences)


def difference_of_lie_derivative(setting: Setting, size: int) -> float:
    """The same for a term by double backward, written by hand."""
    start = Classifier(convolutional()).to(setting.device)
    trained, by_hand = deepcopy(start), deepcopy(start)
    data = Batches(setting, size, SHAPE, batches=1)
    regularizer = InvarianceRegularizer(RotationFlow(), LIE_WEIGHT)
    trainer_on(setting, [regularizer], max_steps=1, limit_val_batches=0).fit(trained, datamodule=data)
    trained = trained.to(setting.device)
    (batch,) = data.train_dataloader()
    x, y = (part.to(setting.device) for part in batch)
    optimizer = by_hand.configure_optimizers()
    leaf = x.clone().requires_grad_()
    logits = by_hand(leaf)
    u = torch.ones_like(logits).requires_grad_()
    (gradient,) = torch.autograd.grad(logits, leaf, u, create_graph=True)
    (slopes,) = torch.autograd.grad(gradient, u, RotationFlow().tangent(x, 0), create_graph=True)
    (F.cross_entropy(logits, y) + LIE_WEIGHT * slopes.square().sum(dim=1).mean()).backward()
    optimizer.step()
    before, ours, hand = (
        torch.nn.utils.parameters_to_vector(each.parameters()).detach() for each in (start, trained, by_hand)
    )
    return float((ours - hand).norm() / (hand - before).norm())


def difference_of_poses(setting: Setting, width: int, shape: tuple[int, ...]) -> float:
    """How far the outputs of turned images are from each other after two steps, over their size."""
    module = Classifier(residual18(width=width)).to(setting.device)
    data = Batches(setting, 4, shape, batches=2)
    trainer_on(setting, [InvariantWeights(C4())], max_epochs=1, limit_val_batches=0).fit(module, datamodule=data)
    module = module.to(setting.device).eval().double()
    with torch.no_grad():
        x, *moved = (module(pose) for pose in poses(setting.rand(4, *shape).double()))
    return max(float((each - x).abs().max() / x.abs().max()) for each in moved)
