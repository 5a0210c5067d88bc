"""Healthy networks whose channels lie otherwise than in the second dimension, and batches that show little."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import made
from torch import Tensor, nn

from lightning_invariance import C4, TimeReversal, evaluate_layers, symmetrize


class Fields(nn.Module):
    """A group convolution over C4 by hand, whose fields have a dimension of their own: (B, fields, 4, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 1, 3, 3))
        self.lift, self.pool, self.head = Lift(), nn.Flatten(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.lift(x, self.kernel)).mean(3).amax(2))


class Lift(nn.Module):
    def forward(self, x: Tensor, kernel: Tensor) -> Tensor:
        turned = [nn.functional.conv2d(x, torch.rot90(kernel, k, (-2, -1)), padding=1) for k in range(4)]
        return torch.stack(turned, dim=2)


class StepsFirst(nn.Module):
    """Layers of signals (B, C, T) and of steps (B, T, C)."""

    def __init__(self, symmetric: bool) -> None:
        super().__init__()
        self.wide, self.inner, self.head = nn.Conv1d(2, 4, 1 if symmetric else 3), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.wide(x).transpose(1, 2)).relu().mean(1))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.norm, self.inner, self.head = (
            nn.Conv2d(1, 8, 1),
            nn.LayerNorm(8),
            nn.Linear(8, 12),
            nn.Linear(12, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.norm(self.wide(x).permute(0, 2, 3, 1))).relu().mean((1, 2)))


@pytest.mark.parametrize(
    ("make", "x", "action", "breaks_at"),
    [
        (Fields, torch.randn(16, 1, 9, 9), C4(), None),
        (lambda: StepsFirst(symmetric=True), torch.randn(16, 2, 10), TimeReversal(), None),
        (lambda: StepsFirst(symmetric=False), torch.randn(16, 2, 10), TimeReversal(), "wide"),
        (ChannelsLast, torch.randn(16, 1, 9, 9), C4(), None),
    ],
    ids=["fields", "steps", "broken before steps", "channels last"],
)
def test_layouts(make: Callable[[], nn.Module], x: Tensor, action: object, breaks_at: str | None) -> None:
    assert evaluate_layers(made(make), [x], action, progress=False).breaks_at == breaks_at


def symmetric() -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    symmetrize(network, C4(), torch.randn(4, 1, 8, 8)).project_(keep_norms=True)
    return network


@pytest.mark.parametrize("size", [1, 2, 3])
def test_small_batches(size: int) -> None:
    assert (
        evaluate_layers(made(symmetric), torch.randn(16, 1, 8, 8).split(size), C4(), progress=False).breaks_at is None
    )


def test_what_no_sample_is_left_to_judge_is_no_break() -> None:
    results = evaluate_layers(made(symmetric), [torch.randn(2, 1, 8, 8)], C4(), progress=False)
    assert results.breaks_at is None
    assert results.rows[1].error.value.isnan()
    assert "no samples are left" in results.rows[1].note
