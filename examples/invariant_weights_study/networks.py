"""Ordinary networks: nothing in them knows of groups.

Two things were chosen with the group in mind, as they have to be. Sizes are halved by windows of 2×2 on even sizes,
which lie symmetrically; with cyclic translations images are padded cyclically. And a network that is to learn
translations reads the classes off the places of its last map: a mean over it would be invariant before training.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.paper.data import CLASSES
from examples.paper.models import perceptron
from lightning_invariance.baselines import SteerableClassifier

Padding = Literal["zeros", "circular"]

WIDTHS = (16, 32, 64)
#: Feature fields of escnn's first block; as many channels are a quarter of the CNN's, as the group has four elements.
STEERABLE_WIDTHS = {"escnn, as many parameters": 8, "escnn, as many channels": WIDTHS[0] // 4}


def convolutional(padding: Padding) -> nn.Sequential:
    """Three convolutions with max-pooling, and a linear layer on the 4×4 places that are left."""
    layers: list[nn.Module] = []
    for before, after in pairwise([1, *WIDTHS]):
        layers.append(nn.Conv2d(before, after, 3, padding=1, padding_mode=padding))
        layers += [nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * WIDTHS[-1], CLASSES))


class Block(nn.Module):
    """A residual block, which halves the size where it changes the width."""

    def __init__(self, before: int, after: int, padding: Padding) -> None:
        super().__init__()

        def convolution(width: int) -> nn.Conv2d:
            return nn.Conv2d(width, after, 3, padding=1, padding_mode=padding, bias=False)

        halves = before != after
        first = nn.Conv2d(before, after, 2, stride=2, bias=False) if halves else convolution(before)
        self.body = nn.Sequential(first, nn.BatchNorm2d(after), nn.ReLU(), convolution(after), nn.BatchNorm2d(after))
        self.beside = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(before, after, 1)) if halves else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.beside(x))


class Residual(nn.Module):
    """A small ResNet for colour images; its head sees the mean over places, or each of the last 4×4."""

    def __init__(self, padding: Padding) -> None:
        super().__init__()
        stem = nn.Conv2d(3, WIDTHS[0], 3, padding=1, padding_mode=padding, bias=False)
        blocks = [Block(before, after, padding) for before, after in pairwise([WIDTHS[0], *WIDTHS])]
        self.features = nn.Sequential(stem, nn.BatchNorm2d(WIDTHS[0]), nn.ReLU(), nn.MaxPool2d(2), *blocks)
        self.averages = padding == "zeros"
        self.head = nn.Linear(WIDTHS[-1] if self.averages else 16 * WIDTHS[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.features(x)
        logits: Tensor = self.head(maps.mean(dim=(2, 3)) if self.averages else maps.flatten(1))
        return logits


def build(network: str, group: str) -> nn.Module:
    """A network with fresh weights."""
    if network == "perceptron":
        return perceptron()
    padding: Padding = "circular" if group == "T4" else "zeros"
    made = convolutional(padding) if network == "CNN" else Residual(padding)
    # Max-pooling takes a tenth of the time then.
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def steerable(method: str) -> nn.Module:
    """Escnn's network in the CNN's place."""
    return SteerableClassifier("C4", 1, CLASSES, 32, width=STEERABLE_WIDTHS[method])
