"""Spectral norms against full Jacobians and full singular value decompositions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import jacobian_spectral_norm

Make = Callable[[int], nn.Module]


def full(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Sample by sample, from the whole Jacobian in the network's precision and an SVD in float64."""
    norms = []
    for sample in x:
        jacobian = torch.autograd.functional.jacobian(lambda s: network(s[None].clone())[0], sample)
        norms.append(torch.linalg.svdvals(jacobian.double().reshape(jacobian.shape[0], -1))[0])
    return torch.stack(norms)


def mlp(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, classes))


def relu(classes: int) -> nn.Module:
    """Written in place from the start on."""
    return nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 48), nn.ReLU(True), nn.Linear(48, classes))


def conv(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.LayerNorm(32),
        nn.Linear(32, classes),
    )


class Attention(nn.Module):
    """`scaled_dot_product_attention` with tokens of 8 pixels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1).unflatten(1, (2, 4, 8))
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        return self.head(self.norm(tokens + F.scaled_dot_product_attention(q, k, v)).flatten(1))


class Encoder(nn.Module):
    """Torch's own transformer, with its fast path."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.flatten(1).unflatten(1, (8, 8))).flatten(1))


class Recurrent(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 12, batch_first=True)
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x[:, 0])[0][:, -1])


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return gradient * ctx.saved_tensors[0].cos()


class _SilentlyOnce(torch.autograd.Function):
    """A backward whose second derivative is quietly half of what it should be."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return 0.5 * (gradient + gradient.detach()) * ctx.saved_tensors[0].cos()


class Custom(nn.Module):
    def __init__(self, function: type[torch.autograd.Function], classes: int) -> None:
        super().__init__()
        self.function = function
        self.network = mlp(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.function.apply(x))


def once(classes: int) -> nn.Module:
    return Custom(_OnceDifferentiable, classes)


def silently_once(classes: int) -> nn.Module:
    return Custom(_SilentlyOnce, classes)


ALL: list[Make] = [mlp, relu, conv, Attention, Encoder, Recurrent, once, silently_once]


def made(make: Make, classes: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    network = make(classes).to(dtype).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_()
    return network


def images(samples: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("classes", [1, 9, 32])
def test_few_outputs_agree_with_a_full_svd(make: Make, dtype: torch.dtype, tolerance: float, classes: int) -> None:
    network, x = made(make, classes, dtype), images(dtype=dtype)
    norms = jacobian_spectral_norm(network, x)
    assert norms.dtype == dtype
    torch.testing.assert_close(norms.double(), full(network, x), rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_many_outputs_agree_with_a_full_svd(make: Make, dtype: torch.dtype, tolerance: float) -> None:
    network, x = made(make, 200, dtype), images(dtype=dtype)
    norms = jacobian_spectral_norm(network, x, tolerance=tolerance)
    torch.testing.assert_close(norms.double(), full(network, x), rtol=tolerance, atol=0.0)
