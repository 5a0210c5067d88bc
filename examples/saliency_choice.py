"""Which saliency map tells whether a network is invariant, and what does it cost?

Four kinds of network (a perceptron, a convolutional one with max-pooling, a residual one, a vision transformer) on
scikit-learn's digits, on a flat background, each in three states:

- exact: invariant to C4 in its own weights, and trained.
- augmented: an ordinary network, trained on images turned at random.
- untrained: an ordinary network as it is initialised.

Every map is taken of all of them on images held out. A map that is fit to judge gives a similarity of 1 to the exact
ones. Table and results land in a folder; `docs/saliency.md` says what follows from them.

    python examples/saliency_choice.py --out saliency_results
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization

from lightning_invariance import (
    C4,
    Estimate,
    Gradient,
    IntegratedGradients,
    PaperSaliency,
    Saliency,
    SaliencyInvarianceSimilarity,
    evaluate_invariance,
    evaluate_orbit,
)
from lightning_invariance.baselines import TiedFirstLayerMLP
from lightning_invariance.report import markdown_table

CLASSES = 9  # without the 9, a 6 upside down
SIDE = 24
EXPLAINED = 200  # of the images held out
EXACT, UNTRAINED, SEPARATE = 0.99, 0.1, 3  # what a map has to reach; the last in standard errors
STATES = ("exact", "augmented", "untrained")


def load_data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """1,617 digits, every pixel four, on a flat background; 1,217 to train on and 400 held out."""
    digits = load_digits()
    labels = torch.from_numpy(digits.target).long()
    images = torch.from_numpy(digits.images).float()[labels < CLASSES][:, None] / 16
    labels = labels[labels < CLASSES]
    images = F.pad(F.interpolate(images, scale_factor=2, mode="nearest"), [(SIDE - 16) // 2] * 4)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1217], order[1217:]
    images = (images - images[train].mean()) / images[train].std()
    return (images[train], labels[train]), (images[test], labels[test])


# Networks --------------------------------------------------------------------------------------------------------


class Symmetric(nn.Module):
    """The mean of a weight over the four rotations of its last two dimensions."""

    def forward(self, weight: Tensor) -> Tensor:
        return torch.stack([torch.rot90(weight, turns, (-2, -1)) for turns in range(4)]).mean(dim=0)


def symmetrised(network: nn.Module) -> nn.Module:
    """The network with all kernels symmetric, and embeddings of positions where it has some."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, Positions)):
            register_parametrization(module, "weight", Symmetric())
    return network


def perceptron() -> nn.Module:
    """Three hidden layers of 128."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before in (SIDE * SIDE, 128, 128):
        layers += [nn.Linear(before, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, CLASSES))


def convolutional() -> nn.Module:
    """Max-pooling behind each of two convolutions; the sizes are even, so that pooling does not know the pose."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


class Block(nn.Module):
    """A residual block. Where it halves the size, kernels of 2×2 and a stride of 2 do not know the pose."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        halves = before != after
        first = nn.Conv2d(before, after, 2, 2) if halves else nn.Conv2d(before, after, 3, padding=1)
        self.body = nn.Sequential(
            first, nn.BatchNorm2d(after), nn.ReLU(), nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after)
        )
        self.beside = nn.Conv2d(before, after, 2, 2) if halves else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.beside(x))


def residual() -> nn.Module:
    """Three blocks behind a convolution with max-pooling."""
    stem = (nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
    blocks = (Block(16, 16), Block(16, 32), Block(32, 32))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))


class Positions(nn.Module):
    """Adds an embedding of its place to each patch."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(width, side, side))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class Transformer(nn.Module):
    """Patches of 3×3, two layers, the mean of all patches; no class token."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(1, width, 3, 3), Positions(width, SIDE // 3))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x).flatten(2).transpose(1, 2)).mean(dim=1))


ORDINARY: dict[str, Callable[[], nn.Module]] = {
    "perceptron": perceptron,
    "CNN": convolutional,
    "ResNet": residual,
    "ViT": Transformer,
}


def build(kind: str, state: str) -> nn.Module:
    """A network with fresh weights."""
    if state != "exact":
        return ORDINARY[kind]()
    if kind == "perceptron":
        return TiedFirstLayerMLP(C4(), (1, SIDE, SIDE), CLASSES, hidden=(128,) * 3)
    return symmetrised(ORDINARY[kind]())


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """On images turned at random."""
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(epochs, 1))
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(network(C4().act(images[part], C4().sample(len(part)))), labels[part]).backward()
            optimiser.step()
        schedule.step()


# Maps ------------------------------------------------------------------------------------------------------------


class NoisyGradient(Gradient):
    """A gradient at an input with noise of a tenth of its range, one draw of several."""

    def __init__(self, draw: int) -> None:
        super().__init__()
        self.draw = draw

    def prepare(self, x: Tensor) -> Tensor:
        pattern = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(self.draw))
        return x + 0.1 * (x.amax(dim=(1, 2, 3), keepdim=True) - x.amin(dim=(1, 2, 3), keepdim=True)) * pattern


#: A map is the mean of those of its ways.
MAPS: dict[str, Sequence[Saliency]] = {
    "paper's": [PaperSaliency()],
    "gradient": [Gradient()],
    "gradient, dither 1e-3": [Gradient(dither=1e-3)],
    "SmoothGrad, 8 copies": [NoisyGradient(draw) for draw in range(8)],
    "integrated gradients": [IntegratedGradients()],
}


def similarity(network: nn.Module, images: Tensor, labels: Tensor, ways: Sequence[Saliency]) -> tuple[float, float]:
    """SI and its standard error over the images."""
    metric = SaliencyInvarianceSimilarity()
    for x, y in zip(images.split(100), labels.split(100), strict=True):
        each = [evaluate_orbit(network, x, C4(), saliency=way, target=y, max_batch=len(x)) for way in ways]
        metric.update(sum(one.saliency for one in each), sum(one.orbit_saliency for one in each))
    found = metric.compute_with_error()
    return float(found.value), float(found.standard_error)


def cost(network: nn.Module, images: Tensor, labels: Tensor, ways: Sequence[Saliency], rounds: int) -> float:
    """Time of the maps of all four poses over that of the network on them; the median of rounds."""
    poses = C4().orbit(images)

    def bare() -> None:
        with torch.no_grad():
            for moved in poses:
                network(moved)

    def maps() -> None:
        for way in ways:
            way.prepare(images)
            for moved in poses:
                way.finish(way.attribute(network, moved, labels, len(images))[1])

    def seconds(work: Callable[[], None]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    bare(), maps()
    return median(seconds(maps) / seconds(bare) for _ in range(rounds))


# The choice ------------------------------------------------------------------------------------------------------


def measured(kind: str, state: str, epochs: int, train_set: Sequence[Tensor], test_set: Sequence[Tensor]) -> Any:
    """A network's accuracy, its invariance, and SI by map."""
    torch.manual_seed(0)
    network = build(kind, state)
    if state != "untrained":
        train(network.train(), *train_set, epochs)
    network.eval()
    images, labels = test_set
    with torch.no_grad():
        accuracy = float((network(images).argmax(dim=1) == labels).float().mean())
    network.double()  # where rounding is no excuse
    names = ["logit_invariance_error", "orbit_share"]
    exactness = evaluate_invariance(network, [images.double()], C4(), measures=names, max_batch=100, progress=False)
    error, share = (float(exactness[name].value) for name in names)
    network.float()
    few = [part[:EXPLAINED] for part in test_set]
    if state == "exact" and error > 1e-9:
        raise RuntimeError(f"{kind} was to be exactly invariant but has a logit invariance error of {error}.")
    return network, {
        "accuracy": accuracy,
        "logit_invariance_error": error,
        "orbit_share": share,
        "similarity": {name: similarity(network, *few, ways) for name, ways in MAPS.items()},
    }


def failures(name: str, found: dict[str, dict[str, Any]]) -> list[str]:
    """What the map does not give of what it has to."""
    missed = []
    for kind, states in found.items():
        (exact, _), (augmented, spread), (untrained, other) = (states[each]["similarity"][name] for each in STATES)
        if not exact >= EXACT:
            missed.append(f"{kind}: exact {exact:.3f}")
        if not abs(untrained) <= UNTRAINED:
            missed.append(f"{kind}: untrained {untrained:.3f}")
        if not augmented < EXACT or not augmented - untrained > SEPARATE * (spread**2 + other**2) ** 0.5:
            missed.append(f"{kind}: augmented {augmented:.3f} beside untrained {untrained:.3f}")
    return missed


def main() -> None:
    """Trains, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("saliency_results"), help="folder for the table")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="few images and epochs, to see that everything runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    train_set, test_set = load_data()
    epochs, rounds = arguments.epochs, 5
    if arguments.quick:
        train_set, test_set = ([part[:count] for part in each] for each, count in ((train_set, 64), (test_set, 4)))
        epochs, rounds = 1, 1

    found: dict[str, dict[str, Any]] = {}
    costs: dict[str, dict[str, float]] = {name: {} for name in MAPS}
    rows: dict[str, dict[str, Any]] = {}
    for kind in ORDINARY:
        found[kind] = {}
        for state in STATES:
            network, result = measured(kind, state, epochs, train_set, test_set)
            found[kind][state] = result
            rows[f"{kind}, {state}"] = {
                "accuracy": result["accuracy"],
                "LI": result["logit_invariance_error"],
                "orbit share": result["orbit_share"],
                **{name: Estimate(*map(torch.tensor, pair)) for name, pair in result["similarity"].items()},
            }
            print(f"{kind}, {state}: accuracy {result['accuracy']:.3f}", flush=True)
            if state == "augmented":
                few = [part[:64] for part in test_set]
                for name, ways in MAPS.items():
                    costs[name][kind] = cost(network, *few, ways, rounds)
        rows[f"{kind}, cost"] = {name: costs[name][kind] for name in MAPS}
    missed = {name: failures(name, found) for name in MAPS}
    table = markdown_table(rows, corner="network")
    print(f"\n{table}\n")
    for name, reasons in missed.items():
        print(f"{name}: cost {median(costs[name].values()):.3g}; misses {'; '.join(reasons) or 'nothing'}")
    (arguments.out / "table.md").write_text(table + "\n", encoding="utf-8")
    results = {"networks": found, "costs": costs, "missed": missed}
    (arguments.out / "saliency_choice.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"Written to {arguments.out}: table.md, saliency_choice.json")


if __name__ == "__main__":
    main()
