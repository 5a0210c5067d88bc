"""Small data, modules and trainers, and the penalties and measures written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

CLASSES = 3
SIDE = 4


# Data and trainers -----------------------------------------------------------------------------------------------


class Images(Dataset[Any]):
    """Random images with random labels, packed into samples as a test wants them."""

    def __init__(self, count: int, pack: Callable[[Tensor, Tensor], Any] | None = None, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 1, SIDE, SIDE, generator=generator)
        self.y = torch.randint(CLASSES, (count,), generator=generator)
        self.pack = pack or (lambda x, y: (x, y))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.pack(self.x[index], self.y[index])


def loader(
    count: int = 12,
    batch_size: int = 4,
    *,
    pack: Callable[[Tensor, Tensor], Any] | None = None,
    seed: int = 0,
    shuffle: bool = False,
) -> DataLoader[Any]:
    return DataLoader(Images(count, pack, seed), batch_size=batch_size, shuffle=shuffle)


def trainer_for(callbacks: Sequence[Callback] = (), **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 2,
        **options,
    }
    return Trainer(callbacks=list(callbacks), **settings)


def fit(
    make: Callable[[], LightningModule],
    callbacks: Sequence[Callback] = (),
    *,
    data: Iterable[Any] | None = None,
    val: Any = None,
    **options: Any,
) -> LightningModule:
    """Trains a module made after a fixed seed, so that two calls begin alike."""
    torch.manual_seed(1)
    module = make()
    trainer_for(callbacks, **options).fit(module, loader() if data is None else data, val)
    return module


# Modules ---------------------------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def convnet(p: float = 0.5) -> nn.Module:
    """With running statistics and random numbers."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(p),
        nn.Flatten(),
        nn.Linear(4 * SIDE * SIDE, CLASSES),
    )


class MaxOverPixels(nn.Module):
    """Exactly invariant to everything that only moves pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.amax(dim=(-2, -1)))


class Classifier(LightningModule):
    """An ordinary module that knows nothing of the package."""

    def __init__(self, network: Callable[[], nn.Module] = mlp, lr: float = 0.1) -> None:
        super().__init__()
        self.model = network()
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


# The penalties by hand -------------------------------------------------------------------------------------------


def rotated(x: Tensor) -> list[Tensor]:
    # Contiguous: a dropout mask is drawn in the order of memory.
    return [torch.rot90(x, k, (2, 3)).contiguous() for k in (1, 2, 3)]


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(1)


def logit_term(fx: Tensor, fgx: list[Tensor]) -> Tensor:
    return sum(0.5 * ((fx - each) ** 2).sum(1).mean() for each in fgx) / len(fgx)


def normalized_logit_term(fx: Tensor, fgx: list[Tensor]) -> Tensor:
    return sum((((fx - each) ** 2).sum(1) / (fx**2).sum(1)).mean() for each in fgx) / len(fgx)


def distribution_term(fx: Tensor, fgx: list[Tensor]) -> Tensor:
    p = fx.softmax(1)
    return sum((p * (p.log() - each.softmax(1).log())).sum(1).mean() for each in fgx) / len(fgx)


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

    every = []
    for i, image in enumerate(x):
        with torch.no_grad():
            z = [network(torch.rot90(image, k, (1, 2))[None])[0].double().numpy() for k in range(4)]
        every.append([logits - logits.mean() for logits in z])
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
    return means


# Comparisons -----------------------------------------------------------------------------------------------------


def distance(one: nn.Module, other: nn.Module) -> float:
    """The largest difference between two modules' parameters."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)


def assert_trained_alike(got: nn.Module, oracle: nn.Module, unlike: nn.Module, tolerance: float = 1e-6) -> None:
    """The two took the same steps, which are not those of the third, and kept the same statistics."""
    assert distance(got, oracle) < tolerance
    assert distance(oracle, unlike) > 1000 * tolerance
    for (name, buffer), (_, expected) in zip(got.named_buffers(), oracle.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, atol=tolerance, rtol=0.0, msg=name)


def flat_state(value: Any, path: str = "") -> dict[str, Any]:
    """Nested containers with every leaf under its path."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    else:
        return {path: value}
    return {place: leaf for key, item in pairs for place, leaf in flat_state(item, f"{path}/{key}").items()}


def assert_identical(one: Any, other: Any) -> None:
    """Bit for bit."""
    left, right = flat_state(one), flat_state(other)
    assert left.keys() == right.keys()
    for place, leaf in left.items():
        same = torch.equal(leaf, right[place]) if isinstance(leaf, Tensor) else leaf == right[place]
        assert same, place
