"""What it costs to move a batch about."""

from __future__ import annotations

import torch

from benchmarks.networks import poses
from benchmarks.pairs import Pair, Setting, clocked
from lightning_invariance import C4, OrbitAugmentation


def augmentation(setting: Setting) -> Pair:
    """A random element a sample, through the callback's own part in the step."""
    x = setting.rand(setting.size(512, 8), 3, 32, 32)
    augmenter = OrbitAugmentation(C4())._injector
    module = torch.nn.Module()

    def moved() -> torch.Tensor:
        return augmenter.before_step(module, ([x, None], 0))[0][0]  # type: ignore[arg-type]

    def difference() -> float:
        return float((poses(x) - moved()).flatten(2).norm(dim=2).amin(dim=0).max())

    return Pair(
        f"OrbitAugmentation, C4, on {'×'.join(map(str, x.shape))}",
        "one copy of the batch",
        clocked(moved, setting),
        clocked(x.clone, setting),
        7.0,
        difference,
        0.0,
    )


def orbit(setting: Setting) -> Pair:
    """All four poses."""
    x = setting.rand(setting.size(512, 8), 3, 32, 32)
    action = C4()

    def difference() -> float:
        return float((action.orbit(x) - poses(x)).abs().max())

    return Pair(
        f"C4().orbit on {'×'.join(map(str, x.shape))}",
        "four copies of the batch",
        clocked(lambda: action.orbit(x), setting),
        clocked(lambda: [x.clone() for _ in range(4)], setting),
        3.5,
        difference,
        0.0,
    )
