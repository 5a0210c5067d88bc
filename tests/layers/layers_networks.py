"""Networks that are equivariant by construction, and what breaks them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_invariance as li


def symmetric(before: int, after: int, **options: Any) -> nn.Conv2d:
    """A convolution whose kernel looks the same from all sides."""
    conv = nn.Conv2d(before, after, 3, **{"padding": 1, **options})
    with torch.no_grad():
        poses = [torch.rot90(k, turns, (-2, -1)) for k in (conv.weight, conv.weight.flip(-1)) for turns in range(4)]
        conv.weight.copy_(torch.stack(poses).mean(dim=0))
    return conv


class Lifting(nn.Module):
    """From an image to the four poses of each channel: a turn permutes these, and moves them."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, 3, 3) / 3)

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.stack([torch.rot90(self.weight, turns, (-2, -1)) for turns in range(4)], dim=1)
        return F.conv2d(x, turned.flatten(0, 1), padding=1)


class Regular(nn.Module):
    """From poses to poses."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, 4, 3, 3) / 6)

    def forward(self, x: Tensor) -> Tensor:
        turned = [torch.rot90(self.weight, turns, (-2, -1)).roll(turns, dims=2) for turns in range(4)]
        return F.conv2d(x, torch.stack(turned, dim=1).flatten(0, 1).flatten(1, 2), padding=1)


class OverPoses(nn.Module):
    """The mean over the four poses of each channel, and over places."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 4)).mean(dim=(2, 3, 4))


class PlaceBias(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Apply(nn.Module):
    """Layers, and a function of what they give, and more layers."""

    def __init__(self, before: nn.Module, function: Callable[[Tensor], Tensor], after: nn.Module) -> None:
        super().__init__()
        self.before, self.after, self.function = before, after, function

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.before(x)))


class Block(nn.Module):
    def __init__(self, channels: int, body: nn.Module | None = None) -> None:
        super().__init__()
        self.body = symmetric(channels, channels) if body is None else body
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += x  # in place, as torchvision's
        return self.relu(y)


class Twice(nn.Module):
    """The same module, twice."""

    def __init__(self, layer: nn.Module, between: nn.Module) -> None:
        super().__init__()
        self.layer, self.between = layer, between

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.between(self.layer(x)))


class Causal(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


class LastOf(nn.Module):
    """A recurrent network's outputs, and not its states."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(6, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0].mean(dim=1)


class Mix(nn.Module):
    """Vectors that are mixed as they are: it does not matter how they are turned."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ab,nbd->nad", self.weight, x)


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


def images(side: int = 8, count: int = 24, channels: int = 2) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def unequal(norm: Any) -> Any:
    """Other factors for each value that has one."""
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    return norm


S = nn.Sequential
C4 = li.C4()

#: Name: the network, the data, the group, and the layer that breaks.
BROKEN: dict[str, Callable[[], tuple[nn.Module, Tensor, li.Action, str | None]]] = {
    "one layer of a stack": lambda: (
        S(symmetric(2, 8), nn.ReLU(), symmetric(8, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), *head(8)),
        images(),
        C4,
        "4",
    ),
    "pooling an odd size": lambda: (S(symmetric(2, 4), nn.MaxPool2d(2), *head(4)), images(9), C4, "1"),
    "average pooling an odd size": lambda: (S(symmetric(2, 4), nn.AvgPool2d(2), *head(4)), images(9), C4, "1"),
    "a stride on an even size": lambda: (S(nn.ReLU(), symmetric(2, 4, stride=2), *head(4)), images(), C4, "1"),
    "zero padding under shifts": lambda: (
        S(
            nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1),
            *head(4),
        ),
        images(),
        li.CyclicTranslations(8),
        "2",
    ),
    "a kernel that flips are not in": lambda: (
        S(symmetric(2, 4), nn.Conv2d(4, 4, 3, padding=1), *head(4)),
        images(),
        li.HorizontalFlip(),
        "1",
    ),
    "a bias at each place": lambda: (S(symmetric(2, 4), PlaceBias(4, 8, 8), nn.ReLU(), *head(4)), images(), C4, "1"),
    "weights at each place": lambda: (
        S(symmetric(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 6)),
        images(),
        C4,
        "3",
    ),
    "a norm with values of each place": lambda: (
        S(symmetric(2, 4), unequal(nn.LayerNorm((4, 8, 8))), nn.ReLU(), *head(4)),
        images(),
        C4,
        "1",
    ),
    "poses that are mixed up": lambda: (
        S(Lifting(2, 3), nn.ReLU(), Regular(3, 3), nn.ReLU(), symmetric(12, 6), *head(6)),
        images(),
        C4,
        "4",
    ),
    "poses with a norm of their own": lambda: (
        S(Lifting(2, 3), unequal(nn.BatchNorm2d(12)), nn.ReLU(), Regular(3, 3), *head(12)),
        images(),
        C4,
        "1",
    ),
    "the second call": lambda: (S(Twice(nn.MaxPool2d(2), symmetric(2, 2)), *head(2)), images(10), C4, "0.layer"),
    "a branch": lambda: (
        S(Block(2), Block(2, nn.Conv2d(2, 2, 3, padding=1)), *head(2)),
        images(),
        C4,
        "1.body",
    ),
    "code between layers": lambda: (
        S(symmetric(2, 4), Apply(nn.ReLU(), lambda x: F.max_pool2d(x, 2), symmetric(4, 4)), *head(4)),
        images(9),
        C4,
        "1",
    ),
    "code at the end": lambda: (
        Apply(symmetric(2, 4), lambda x: x[..., ::2, ::2], nn.Identity()),
        images(),
        C4,
        "",
    ),
    "a set in order": lambda: (
        S(nn.Linear(3, 6), nn.ReLU(), LastOf()),
        torch.randn(24, 7, 3, generator=torch.Generator().manual_seed(0)),
        li.SetPermutations(samples=5),
        "2.cell",
    ),
    "coordinates cut off": lambda: (
        S(Mix(7, 5), nn.ReLU(), Mix(5, 4)),
        torch.randn(24, 7, 3, generator=torch.Generator().manual_seed(0)),
        li.SO3(samples=5),
        "1",
    ),
    "causality": lambda: (
        S(nn.Conv1d(2, 4, 1), nn.ReLU(), Causal(4, 4, 3), nn.AdaptiveMaxPool1d(1), nn.Flatten()),
        torch.randn(24, 2, 12, generator=torch.Generator().manual_seed(0)),
        li.TimeReversal(),
        "2",
    ),
}
