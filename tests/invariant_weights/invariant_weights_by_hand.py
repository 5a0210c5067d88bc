"""What `InvariantWeights` is held against: networks, how C4 moves their weights, and trainings, all written by hand.

Nothing of the package is used here, and no Trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from helpers import CLASSES, fit, loader, made
from lightning.pytorch import LightningModule
from oracles import Classifier
from torch import Tensor, nn
from torch.nn import functional as F

#: Of the images.
SIDE = 6

#: How a quarter turn moves each weight: the sizes that it is viewed in, and what becomes of each of these dimensions:
#: "." stays, "r" is shifted cyclically in each field of four channels, "xx" are places of a grid that is turned.
Layout = dict[str, tuple[tuple[int, ...], str]]


# Networks --------------------------------------------------------------------------------------------------------


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 2),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, CLASSES),
    )


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, CLASSES)
    )


class Tied(nn.Module):
    """Two layers share a weight, and each has a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(SIDE * SIDE, 16), nn.Linear(16, CLASSES)
        self.one, self.other = nn.Linear(16, 16), nn.Linear(16, 16)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.other(torch.tanh(self.one(torch.tanh(self.first(x.flatten(1))))))))


class Both(nn.Module):
    """Two networks, whose logits are added."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = mlp(), mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.other(x)


def maps() -> nn.Module:
    """A class for each place."""
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, CLASSES, 3, padding=1))


FIELD = ((8,), "r")
OF_MLP: Layout = {
    "1.weight": ((16, SIDE, SIDE), "rxx"),
    "1.bias": ((16,), "r"),
    "3.weight": ((16, 16), "rr"),
    "3.bias": ((16,), "r"),
    "5.weight": ((CLASSES, 16), ".r"),
}
LAYOUTS: dict[Callable[[], nn.Module], Layout] = {
    cnn: {
        "0.weight": ((8, 1, 3, 3), "r.xx"),
        "0.bias": FIELD,
        **{f"1.{name}": FIELD for name in ("weight", "bias", "running_mean", "running_var")},
        "4.weight": ((8, 8, 2, 2), "rrxx"),
        "4.bias": FIELD,
        "6.weight": ((CLASSES, 8, 2, 2), ".rxx"),
    },
    mlp: OF_MLP,
    Tied: {
        "first.weight": ((16, SIDE, SIDE), "rxx"),
        "first.bias": ((16,), "r"),
        "one.weight": ((16, 16), "rr"),
        "one.bias": ((16,), "r"),
        "other.bias": ((16,), "r"),
        "head.weight": ((CLASSES, 16), ".r"),
    },
    Both: {f"{network}.{name}": row for network in ("one", "other") for name, row in OF_MLP.items()},
    maps: {
        "0.weight": ((16, 1, 3, 3), "r.xx"),
        "0.bias": ((16,), "r"),
        "2.weight": ((CLASSES, 16, 3, 3), ".rxx"),
    },
}


# The group -------------------------------------------------------------------------------------------------------


def moved(tensor: Tensor, row: tuple[tuple[int, ...], str], turns: int) -> Tensor:
    r"""What quarter turns make of a weight: (gK)[o, r; i, s] = rot_g K[o, r - g; i, s - g], channel = 4 · field + r."""
    sizes, kinds = row
    view = tensor.reshape(sizes)
    for dim, kind in enumerate(kinds):
        if kind == "r":
            view = view.unflatten(dim, (-1, 4)).roll(turns, dim + 1).flatten(dim, dim + 1)
    if "xx" in kinds:
        view = torch.rot90(view, turns, (-2, -1))
    return view.reshape(tensor.shape)


def mean(tensor: Tensor, row: tuple[tuple[int, ...], str]) -> Tensor:
    """P w, the mean over the four turns."""
    wide = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    total = torch.zeros_like(wide)
    for turns in range(4):
        total = total + moved(wide, row, turns)
    return (total / 4).to(tensor.dtype)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics by name, themselves."""
    named = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: value for name, value in named.items() if value.is_floating_point()}


def asymmetry(network: nn.Module, layout: Layout) -> float:
    """‖w - P w‖ / ‖w‖, of the parameters."""
    apart, whole = 0.0, 0.0
    for name, parameter in network.named_parameters():
        value = parameter.detach().double()
        whole += float(value.square().sum())
        if name in layout:
            apart += float((value - mean(value, layout[name])).square().sum())
    return (apart / whole) ** 0.5


def variation(network: nn.Module, back: Callable[[Tensor, int], Tensor] = lambda fx, turns: fx) -> float:
    """How far f(gx) is from f(x) at most, relative to the largest output, in double precision."""
    network = made(lambda: copied(network)).double().eval()
    x = torch.randn(5, 1, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        fx = network(x)
        apart = [back(network(torch.rot90(x, turns, (-2, -1))), turns) - fx for turns in (1, 2, 3)]
    return float(torch.stack(apart).abs().max() / fx.abs().max())


def copied(network: nn.Module) -> nn.Module:
    """Of modules that knew nothing of what is in their dictionaries."""
    import copy

    return copy.deepcopy(network)
