"""Modules and what a fit leaves of them, and the penalties and measures written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from helpers import CLASSES, Classifier, distribution_term, flat, loader, logit_term, noisy, trainer_for
from lightning.pytorch import Callback
from torch import Tensor, nn

# Modules ---------------------------------------------------------------------------------------------------------


class MaxOverPixels(nn.Module):
    """Exactly invariant to everything that only moves pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.amax(dim=(-2, -1)))


class Noisy(Classifier):
    """Running statistics, dropout, an optimiser with much state."""

    def __init__(self) -> None:
        super().__init__(noisy)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def everything_after(callbacks: list[Callback], **options: Any) -> dict[str, Any]:
    """What a fit with two validation loaders leaves behind."""
    torch.manual_seed(1)
    module = Noisy()
    trainer = trainer_for(callbacks, **options)
    trainer.fit(module, loader(shuffle=True), [loader(7, seed=2), loader(5, seed=3)])
    return flat(
        {
            "weights": module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "gradients": [parameter.grad for parameter in module.parameters()],
            "random numbers": torch.get_rng_state(),
            "modes": [submodule.training for submodule in module.modules()],
            "requires_grad": [parameter.requires_grad for parameter in module.parameters()],
            "left": sorted(name for name in ("validation_step", "test_step", "training_step") if name in vars(module)),
            "hooks": [len(submodule._forward_hooks) for submodule in module.modules()],
        }
    )


# The penalties by hand -------------------------------------------------------------------------------------------


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(1)


def normalized_logit_term(fx: Tensor, fgx: list[Tensor]) -> Tensor:
    return sum((((fx - each) ** 2).sum(1) / (fx**2).sum(1)).mean() for each in fgx) / len(fgx)


def jensen_shannon_term(fx: Tensor, fgx: list[Tensor]) -> Tensor:
    members = [each.softmax(1) for each in (fx, *fgx)]
    mixture = sum(members) / len(members)
    return (entropy(mixture) - sum(entropy(p) for p in members) / len(members)).mean()


def absolute_penalty(logits: Tensor, orbit_logits: Tensor) -> Tensor:
    """A penalty of the user's own."""
    return (logits - orbit_logits).abs().sum(-1).mean()


def absolute_term(fx: Tensor, fgx: list[Tensor]) -> Tensor:
    return sum((fx - each).abs().sum(1).mean() for each in fgx) / len(fgx)


TERMS: dict[Any, Callable[[Tensor, list[Tensor]], Tensor]] = {
    "logit": logit_term,
    "normalized_logit": normalized_logit_term,
    "distribution": distribution_term,
    "jensen_shannon": jensen_shannon_term,
    absolute_penalty: absolute_term,
}


# The measures by hand --------------------------------------------------------------------------------------------


def gradient_map(network: nn.Module, image: Tensor, label: int) -> np.ndarray:
    """The gradient of one logit with respect to one image."""
    leaf = image[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf)[0, label], leaf)
    return gradient[0].double().numpy()


def paper_map(network: nn.Module, image: Tensor, label: int) -> np.ndarray:
    """|integrated gradients| over a zero baseline, the peaks kept, smoothed by a 3×3 Gaussian filter."""
    nodes, weights = np.polynomial.legendre.leggauss(32)
    integral = np.zeros(tuple(image.shape))
    for node, weight in zip(nodes, weights, strict=True):
        integral += weight / 2 * gradient_map(network, image * float((node + 1) / 2), label)
    maps = np.abs(image.double().numpy() * integral)
    maps = np.where(maps >= 0.9 * maps.max(), maps, 0.0)
    kernel = np.array([[np.exp(-(i * i + j * j) / 2) for j in (-1, 0, 1)] for i in (-1, 0, 1)])
    kernel /= kernel.sum()
    smooth = np.zeros_like(maps)
    channels, height, width = maps.shape
    for c in range(channels):
        for row in range(height):
            for column in range(width):
                for i in (-1, 0, 1):
                    for j in (-1, 0, 1):
                        if 0 <= row + i < height and 0 <= column + j < width:
                            smooth[c, row, column] += kernel[i + 1, j + 1] * maps[c, row + i, column + j]
    return smooth


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def measures_by_hand(
    network: nn.Module,
    x: Tensor,
    y: Tensor | None,
    saliency: Callable[[nn.Module, Tensor, int], np.ndarray] | None = None,
    saliency_samples: int | None = None,
) -> dict[str, float]:
    """Every measure of a classifier under C4, sample by sample and element by element."""
    network.eval()
    values: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        values.setdefault(name, []).append(float(value))

    every: list[Any] = []
    plain: list[Any] = []
    for i, image in enumerate(x):
        with torch.no_grad():
            z = [network(torch.rot90(image, k, (1, 2))[None])[0].double().numpy() for k in range(4)]
        every.append([logits - logits.mean() for logits in z])
        plain.append(z[0])
        p = [softmax(logits) for logits in z]
        mixture = sum(p) / 4
        note("jensen_shannon_invariance_error", np.mean([(q * np.log(q / mixture)).sum() for q in p]))
        for k in (1, 2, 3):
            distance = ((z[0] - z[k]) ** 2).sum()
            note("logit_invariance_error", distance / 2)
            note("normalized_logit_invariance_error", distance / (z[0] ** 2).sum())
            note("distribution_invariance_error", (p[0] * np.log(p[0] / p[k])).sum())
            note("prediction_consistency", z[0].argmax() == z[k].argmax())
            if y is not None:
                note("orbit_accuracy", z[k].argmax() == int(y[i]))
        if y is not None:
            note("worst_case_orbit_accuracy", all(logits.argmax() == int(y[i]) for logits in z))
        if saliency is not None and (saliency_samples is None or i < saliency_samples):
            label = int(z[0].argmax()) if y is None else int(y[i])
            base = saliency(network, image, label)
            for k in (1, 2, 3):
                turned = saliency(network, torch.rot90(image, k, (1, 2)), label)
                back = np.rot90(turned, -k, (1, 2))
                norms = np.linalg.norm(base) * np.linalg.norm(back)
                note("saliency_invariance_similarity", (base * back).sum() / norms)
    means = {name: float(np.mean(each)) for name, each in values.items()}
    orbits = np.array(every)  # (samples, elements, classes)
    centres = orbits.mean(axis=1)
    within = ((orbits - centres[:, None]) ** 2).sum(axis=2).mean()
    between = ((centres - centres.mean(axis=0)) ** 2).sum(axis=1).mean()
    means["orbit_share"] = float(within / (within + between))
    variance = float(np.var(plain, axis=0).sum())
    means["relative_logit_invariance_error"] = means["logit_invariance_error"] / variance if variance else np.nan
    return means
