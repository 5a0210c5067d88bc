"""Networks as people write them: nothing in them knows of groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import CLASSES
from invariant_weights_by_hand import sgd
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        self.beside: nn.Module = nn.Identity()
        if before != after:
            self.beside = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)), inplace=True)
        return F.relu(self.second_norm(self.second(inner)) + self.beside(x))


class Residual(nn.Module):
    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.blocks = nn.Sequential(Block(16, 16), Block(16, 40, stride))
        self.head = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class VisionTransformer(nn.Module):
    """Patches by a convolution, a token for the class, learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.positions = nn.Parameter(torch.randn(1, 17, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1) + self.positions
        return self.head(self.encoder(tokens)[:, 0])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).reshape(len(x), -1, 3, 4, 8).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class PatchTransformer(nn.Module):
    """Patches by a view, an embedding of positions, attention written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(48, 32)
        self.positions = nn.Embedding(16, 32)
        self.attention = Attention()
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), 3, 4, 4, 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(len(x), 16, -1)
        x = self.embed(x) + self.positions(torch.arange(16))
        x = x + self.attention(self.norm(x))
        return self.head((x + self.attention(self.norm(x))).mean(1))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.tokens = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head((x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)).mean(1))


class Shuffled(nn.Module):
    """Grouped and depthwise convolutions, shuffled channels, halves that go different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 64, 1)
        self.grouped = nn.Conv2d(64, 64, 1, groups=4)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.wide(x))
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        left, right = x.chunk(2, 1)
        return self.head(torch.cat([left, F.relu6(self.depthwise(right))], dim=1).mean(3).mean(2))


class Excited(nn.Module):
    """Squeeze and excitation, a gate, instance and group norms, scaled weights."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 64, 3, padding=1)
        self.gates = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 16, 1), nn.ReLU(), nn.Conv2d(16, 32, 1))
        self.norms = nn.Sequential(nn.GroupNorm(2, 32), nn.InstanceNorm2d(32, affine=True), nn.PReLU(32))
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms(F.glu(self.wide(x), 1))
        return self.head(F.normalize((x * self.gates(x).sigmoid()).amax((-2, -1)), dim=1))


class Modern(nn.Module):
    """Wide depthwise kernels, channels last inside, a scale a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, 4)
        self.depthwise = nn.Conv2d(32, 32, 7, padding=3, groups=32)
        self.norm = nn.LayerNorm(32)
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)
        self.scale = nn.Parameter(0.1 * torch.ones(32))
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = self.narrow(F.gelu(self.wide(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        return self.head((x + (self.scale * inner).permute(0, 3, 1, 2)).mean([-2, -1]))


class Dense(nn.Module):
    """Maps joined to all that came before, a crop, one module in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3)
        self.norm = nn.BatchNorm2d(32)
        self.third = nn.Conv2d(32, 16, 3, padding=1)
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        both = torch.cat([x[:, :, 1:-1, 1:-1], self.second(x)], dim=1)
        inner = self.third(F.relu(self.norm(both)))
        again = self.second(F.pad(inner, (1, 1, 1, 1)))
        return self.head(torch.cat([both, again], dim=1).std((2, 3)))


class Segmenting(nn.Module):
    def __init__(self, up: str = "transposed") -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.up: nn.Module = nn.ConvTranspose2d(32, 16, 2, 2)
        if up != "transposed":
            self.up = nn.Sequential(nn.Upsample(scale_factor=2, mode=up), nn.Conv2d(32, 16, 3, padding=1))
        self.last, self.head = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu(self.down(x))
        deep = F.relu(self.deep(F.max_pool2d(wide, 2)))
        return self.head(F.relu(self.last(torch.cat([wide, self.up(deep)], 1))))


class Enlarging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.last(F.relu(self.first(x))), 2)


def perceptron(inputs: int, outputs: int = 4) -> nn.Module:
    layers = [nn.Linear(inputs, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, outputs)]
    return nn.Sequential(nn.Flatten(), *layers)


def sensors() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 16, 5, padding=2),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(32, 4),
    )


def circular() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


IMAGE_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "vision transformer": VisionTransformer,
    "patch transformer": PatchTransformer,
    "mixer": Mixer,
    "shuffled": Shuffled,
    "excited": Excited,
    "modern": Modern,
    "dense": Dense,
    "perceptron": lambda: perceptron(3 * 256),
}

MAP_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "transposed": Segmenting,
    "bilinear": lambda: Segmenting("bilinear"),
    "nearest": lambda: Segmenting("nearest"),
    "pixel shuffle": Enlarging,
}


class Branches(nn.Module):
    """A convolution for each of two domains, between layers that both have."""

    def __init__(self, kernel: Any = 3) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 12, 3), nn.Linear(12, CLASSES)
        self.branches = nn.ModuleList([nn.Conv2d(12, 12, 3), nn.Conv2d(12, 12, kernel)])

    def forward(self, x: Tensor, domain: int) -> Tensor:
        return self.head(self.branches[domain](self.first(x).relu()).relu().mean((2, 3)))


class InDomains(LightningModule):
    """Each batch is of one domain, in turns."""

    def __init__(self, kernel: Any = 3, optimizer: Callable[..., Any] = sgd, first: int = 0) -> None:
        super().__init__()
        self.model = Branches(kernel)
        self.optimizer = optimizer
        self.first = first

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0], (self.first + batch_idx) % 2), batch[1])

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())
