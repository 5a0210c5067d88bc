"""Figure 4 under other ways of blending, on networks that are trained already: the paper does not say how it blends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from examples.paper.data import TransformingImages
from examples.paper.runs import BETAS
from lightning_invariance import evaluate_invariance

#: How many test images are blended.
IMAGES = 1000
#: Of the drift images: a number that is free, to see whether any reaches the paper's curves.
CONTRASTS = (2, 4, 5, 6, 8)


def blends(data: TransformingImages) -> dict[str, Callable[[float], Tensor]]:
    """Ways to make the test images of a drift β, by name; the first is the one of figure 4 here."""
    digits, elements = data.upright.tensors[0][:IMAGES], data.elements[:IMAGES]
    own = data.drift_images[:IMAGES]
    as_digits = data.normalised(data.drift_pixels()[:IMAGES])
    act = data.action.act

    def towards(drift: Tensor) -> Callable[[float], Tensor]:
        return lambda beta: act((1 - beta) * digits + beta * drift, elements)

    def again(beta: float) -> Tensor:
        blended = (1 - beta) * digits + beta * as_digits
        return act((blended - blended.mean()) / blended.std(), elements)

    return {
        "digits and drift images each normalised on their own, as in the figure": towards(own),
        "both normalised as the digits": towards(as_digits),
        "so, and the blend normalised again": again,
        "drift images that the group does not move": lambda beta: (1 - beta) * act(digits, elements) + beta * own,
        "drift images normalised on their own and then as the digits": towards(data.normalised(own)),
        **{f"as in the figure, contrast of the drift images × {c}": towards(c * own) for c in CONTRASTS},
    }


@torch.no_grad()
def accuracy_ratios(network: nn.Module, blend: Callable[[float], Tensor], data: TransformingImages) -> list[float]:
    """The accuracy at each β over that at β = 0."""
    labels = data.upright.tensors[1][:IMAGES]
    accuracies = [float((network(blend(beta)).argmax(dim=1) == labels).float().mean()) for beta in BETAS]
    return [accuracy / accuracies[0] for accuracy in accuracies]


def distribution_error(network: nn.Module, images: Tensor, data: TransformingImages) -> float:
    """DI on blended images."""
    measure = "distribution_invariance_error"
    batch = (images, data.upright.tensors[1][:IMAGES])
    return float(evaluate_invariance(network, [batch], data.action, measures=[measure], progress=False)[measure].value)
