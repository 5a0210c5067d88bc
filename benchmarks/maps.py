"""What saliency maps over an orbit cost."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from benchmarks.networks import CLASSES, convolutional, logits_and_gradient
from benchmarks.pairs import Pair, Setting, clocked, relative_difference
from lightning_invariance import C4, Gradient, IntegratedGradients, evaluate_orbit
from lightning_invariance.functional import saliency_invariance_similarity

STEPS = 32


def integrated_gradients(setting: Setting) -> Pair:
    """The same quadrature, by captum for one element after the other."""
    import captum.attr

    network = convolutional().to(setting.device)
    size = setting.size(16, 2)
    x, y = setting.rand(size, 3, 32, 32), setting.labels(size, CLASSES)
    steps = setting.size(STEPS, 4)
    peer = captum.attr.IntegratedGradients(network)

    def ours() -> torch.Tensor:
        outputs = evaluate_orbit(network, x, C4(), saliency=IntegratedGradients(steps), target=y)
        assert outputs.saliency is not None
        assert outputs.orbit_saliency is not None
        return torch.cat([outputs.saliency[None], outputs.orbit_saliency])

    def theirs() -> torch.Tensor:
        maps = []
        for turns in range(4):
            moved = torch.rot90(x, turns, (-2, -1))
            attributed = peer.attribute(moved, target=y, n_steps=steps, method="gausslegendre")
            maps.append(torch.rot90(attributed, -turns, (-2, -1)))
        return torch.stack(maps)

    return Pair(
        f"integrated gradients over C4, {steps} steps, {size} samples",
        "captum's, one element after the other",
        clocked(ours, setting),
        clocked(theirs, setting),
        1.0,
        lambda: relative_difference(ours(), theirs().to(x.dtype)),
        1e-4,
    )


def equivariance(setting: Setting) -> Pair:
    """The map of x is computed once, not for each element anew.

    The loop is that of code published with papers on the robustness of explanations: for every element, e(x) and e(gx).
    """
    network = convolutional().to(setting.device)
    size = setting.size(64, 4)
    x, y = setting.rand(size, 3, 32, 32), setting.labels(size, CLASSES)

    def ours() -> torch.Tensor:
        outputs = evaluate_orbit(network, x, C4(), saliency=Gradient(), target=y, max_batch=size)
        assert outputs.saliency is not None
        assert outputs.orbit_saliency is not None
        return saliency_invariance_similarity(outputs.saliency, outputs.orbit_saliency, reduction="element")

    def theirs() -> torch.Tensor:
        similarities = []
        for turns in range(4):  # the identity too
            explained = torch.rot90(logits_and_gradient(network, x, y)[1], turns, (-2, -1))
            of_moved = logits_and_gradient(network, torch.rot90(x, turns, (-2, -1)), y)[1]
            similarities.append(F.cosine_similarity(explained.flatten(1), of_moved.flatten(1)).mean())
        return torch.stack(similarities)

    return Pair(
        f"saliency equivariance over C4, gradients, {size} samples",
        "a loop that explains x anew for each element",
        clocked(ours, setting),
        clocked(theirs, setting),
        1 / 1.5,
        lambda: relative_difference(ours(), theirs()[1:]),
        1e-4,
    )
