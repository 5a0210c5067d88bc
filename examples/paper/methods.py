"""The ways to a network that are compared, by the names that the tables give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import lightning as L
from torch import nn

from examples.paper.data import CLASSES, SIDE
from examples.paper.models import IN_SHAPE, convolutional, perceptron
from lightning_invariance import Action, InvarianceRegularizer, InvariantWeights, OrbitAugmentation, WeightRamp
from lightning_invariance.baselines import OrbitPooled, SteerableClassifier, TiedFirstLayerMLP

#: Feature fields of escnn's first block: 16 channels for C4 and D4, and for C8 and SO2 about as many parameters as C4.
STEERABLE_WIDTHS = {"C4": 4, "D4": 2, "C8": 3, "SO2": 3}


@dataclass(frozen=True)
class Method:
    """How a network is trained. Each of them sees every training image in a random pose.

    Attributes:
        network: the paper's perceptron; the same, tied in its first layer; a convolutional one; that one pooled over
            the orbit; or escnn's, tied over the named group layer by layer.
        penalties: of `InvarianceRegularizer`, which have the run's weight each.
        one_element: whether the penalty takes one element a step, and not all.
        ramp: whether the weight rises from a hundredth of it over the first half of the steps.
        noise: the deviation of Gaussian noise on the inputs, which have a deviation of 1.
        invariant: the mode of `InvariantWeights`; ``"pull"`` is a soft projection with the run's weight as strength.
        annealed: whether a perceptron's rate rises and falls (one-cycle), as that of convolutional networks does; the
            paper's is constant.
    """

    network: Literal["perceptron", "tied", "CNN", "pooled", "escnn C4", "escnn D4", "escnn C8", "escnn SO2"]
    penalties: tuple[Literal["logit", "distribution", "normalized_logit", "saliency"], ...] = ()
    one_element: bool = False
    ramp: bool = False
    noise: float = 0.0
    invariant: Literal["project", "merge", "late merge", "pull"] | None = None
    annealed: bool = False

    @property
    def is_convolutional(self) -> bool:
        """Whether it is trained as the convolutional networks are: fewer epochs, an annealed rate."""
        return self.network not in ("perceptron", "tied")


METHODS: dict[str, Method] = {
    "WT": Method("tied"),
    "DA": Method("perceptron"),
    "IR": Method("perceptron", penalties=("logit",)),
    "IR KL": Method("perceptron", penalties=("distribution",)),
    "IR normalised L2": Method("perceptron", penalties=("normalized_logit",)),
    "IW": Method("perceptron", invariant="late merge", annealed=True),
    "DA annealed": Method("perceptron", annealed=True),
    "IW constant rate": Method("perceptron", invariant="merge"),
    "CNN DA": Method("CNN"),
    "CNN IR": Method("CNN", penalties=("logit",)),
    "CNN IR ramp": Method("CNN", penalties=("logit",), ramp=True),
    "CNN IR one element": Method("CNN", penalties=("logit",), one_element=True),
    "CNN IR noise": Method("CNN", penalties=("logit",), noise=0.3),
    "CNN IR KL": Method("CNN", penalties=("distribution",)),
    "CNN IR normalised L2": Method("CNN", penalties=("normalized_logit",)),
    "CNN IR saliency": Method("CNN", penalties=("saliency",)),
    "CNN IR logit and saliency": Method("CNN", penalties=("logit", "saliency"), ramp=True),
    "CNN IW": Method("CNN", invariant="merge"),
    "CNN IW project": Method("CNN", invariant="project"),
    "CNN IW pull": Method("CNN", invariant="pull"),
    "CNN pooled": Method("pooled"),
    **{f"escnn {group}": Method(f"escnn {group}") for group in STEERABLE_WIDTHS},  # type: ignore[arg-type]
}

#: The regularised perceptrons, whose weight is searched for.
REGULARISED = ("IR", "IR KL", "IR normalised L2")


def build(name: str, action: Action) -> nn.Module:
    """The network of a method, with fresh weights."""
    network = METHODS[name].network
    if network == "perceptron":
        return perceptron()
    if network == "tied":
        return TiedFirstLayerMLP(action, IN_SHAPE, CLASSES)
    if network == "CNN":
        return convolutional(action)
    if network == "pooled":
        return OrbitPooled(convolutional(action), action)
    group = network.removeprefix("escnn ")
    return SteerableClassifier(group, 1, CLASSES, SIDE, width=STEERABLE_WIDTHS[group])


def callbacks_of(name: str, action: Action, weight: float, steps: int) -> list[L.Callback]:
    """What a Trainer needs for a method, in a training of so many steps."""
    method = METHODS[name]
    callbacks: list[L.Callback] = [OrbitAugmentation(action)]
    for number, penalty in enumerate(method.penalties):
        schedule = WeightRamp(weight / 100, weight, max(1, steps // 2), shape="exponential") if method.ramp else weight
        elements = 1 if method.one_element else None
        prefix = penalty if number else None  # two of them log by names of their own
        callbacks.append(InvarianceRegularizer(action, schedule, penalty, elements, prefix=prefix))
    if method.invariant == "project":
        callbacks.append(InvariantWeights(action))
    elif method.invariant == "pull":
        callbacks.append(InvariantWeights(action, strength=weight))
    elif method.invariant is not None:
        strength = LateRamp(MERGED_BY * steps) if method.invariant == "late merge" else None
        callbacks.append(InvariantWeights(action, mode="merge", strength=strength))
    return callbacks


#: By which share of the steps a merge is complete: the package's own default.
MERGED_BY = 0.8


@dataclass(frozen=True)
class LateRamp:
    """From 0 to 1 by the fourth power: at half of the steps a sixteenth is reached."""

    steps: float

    def __call__(self, step: int) -> float:
        return min(1.0, (step / self.steps) ** 4)
