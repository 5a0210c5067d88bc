"""Is a network invariant to rotations, or did it memorise the orbits that it saw?

Trains four networks on scikit-learn's handwritten digits (without the 9, which is a 6 upside down), all on images
rotated at random:

- DA: a plain multilayer perceptron; data augmentation is all it gets.
- IR: the same, with the logit invariance error added to its loss.
- IW: the same network, its weights drawn to invariant ones while it learns; nothing else changes.
- WT: another network, weight-tied in its first layer: invariant by construction.

Then it measures them on upright test images, and again while the images drift towards patches of photographs. The
table and the figures land in a folder. The LightningModule below is an ordinary one: everything about invariance is in
the callbacks.

    python examples/digits.py --out demo_results
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import lightning as L
import torch
from sklearn.datasets import load_digits, load_sample_image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_invariance import (
    C4,
    InvarianceMonitor,
    InvarianceRegularizer,
    InvariantWeights,
    OrbitAugmentation,
    PaperSaliency,
    WeightRamp,
)
from lightning_invariance.baselines import TiedFirstLayerMLP
from lightning_invariance.report import markdown_table, plot_curves, plot_saliency_orbit

CLASSES = 9
SIDE = 20
DRIFTS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
DRIFT_IN_TABLE = 0.2
COLUMNS = {
    "accuracy": "accuracy",
    "worst_case_orbit_accuracy": "worst-case orbit accuracy",
    "logit_invariance_error": "LI",
    "distribution_invariance_error": "DI",
    "saliency_invariance_similarity": "SI",
    "orbit_share": "orbit share",
}


class Classifier(L.LightningModule):
    """What anybody would write: it knows nothing of groups."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        self.accuracy(self(x), y)
        self.log("val/accuracy", self.accuracy, prog_bar=True)

    def test_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch
        self.log("test/accuracy", (self(x).argmax(dim=1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@dataclass
class Digits:
    """Train, validation and test images ``(N, 1, SIDE, SIDE)``, and photographs to drift towards."""

    train: TensorDataset
    val: TensorDataset
    test: TensorDataset
    photographs: Tensor

    def drifted(self, beta: float) -> TensorDataset:
        """The test images, blended with photographs: (1 − β) x + β x'."""
        images, labels = self.test.tensors
        return TensorDataset((1 - beta) * images + beta * self.photographs, labels)


def load_data() -> Digits:
    """1,617 digits from 0 to 8, doubled in size, padded and normalised; split 1,000 / 217 / 400."""
    digits = load_digits()
    labels = torch.from_numpy(digits.target).long()
    images = torch.from_numpy(digits.images).float()[labels < CLASSES][:, None] / 16
    labels = labels[labels < CLASSES]
    images = F.pad(F.interpolate(images, scale_factor=2, mode="bilinear"), [(SIDE - 16) // 2] * 4)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, val, test = order[:1000], order[1000:1217], order[1217:]
    mean, std = images[train].mean(), images[train].std()
    images = (images - mean) / std

    patches = torch.cat([_patches(name) for name in ("china.jpg", "flower.jpg")])
    chosen = torch.randperm(len(patches), generator=torch.Generator().manual_seed(1))[: len(test)]
    photographs = (patches - patches.mean()) / patches.std()
    return Digits(
        *(TensorDataset(images[part], labels[part]) for part in (train, val, test)), photographs=photographs[chosen]
    )


def _patches(name: str) -> Tensor:
    grey = torch.from_numpy(load_sample_image(name).copy()).float().mean(dim=2) / 255
    return grey.unfold(0, SIDE, SIDE).unfold(1, SIDE, SIDE).reshape(-1, 1, SIDE, SIDE)


def perceptron() -> nn.Sequential:
    """The paper's network: five hidden layers of 128."""
    widths = [SIDE * SIDE, 128, 128, 128, 128, 128]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES))


def train(
    network: nn.Module, callbacks: list[L.Callback], data: Digits, epochs: int
) -> tuple[Classifier, L.Trainer, InvarianceMonitor]:
    """Trains on rotated images and measures the invariance as it goes."""
    monitor = InvarianceMonitor(
        C4(), saliency=PaperSaliency(), saliency_samples=256, every_n_epochs=max(1, epochs // 20)
    )
    trainer = L.Trainer(
        max_epochs=epochs,
        callbacks=[OrbitAugmentation(C4()), *callbacks, monitor],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    module = Classifier(network)
    trainer.fit(module, DataLoader(data.train, batch_size=128, shuffle=True), DataLoader(data.val, batch_size=256))
    return module, trainer, monitor


def main() -> None:
    """Trains, measures, prints the table, draws the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_results"), help="folder for the table and the figures")
    parser.add_argument("--epochs", type=int, default=200)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    # The networks are small: a second thread would mostly wait for the first.
    torch.set_num_threads(1)
    data = load_data()
    ramp = WeightRamp(0.01, 100.0, steps=4 * arguments.epochs, shape="exponential")  # half of the training
    models = {
        "DA": (perceptron, []),
        "IR": (perceptron, [InvarianceRegularizer(C4(), ramp)]),
        "IW": (perceptron, [InvariantWeights(C4(), mode="merge")]),
        "WT": (lambda: TiedFirstLayerMLP(C4(), (1, SIDE, SIDE), CLASSES), []),
    }
    networks: dict[str, nn.Module] = {}
    epochs: list[int] = []
    over_epochs: dict[str, dict[str, list[float]]] = {"LI": {}, "SI": {}}
    over_drift: dict[str, dict[str, list[float]]] = {name: {} for name in ("accuracy", "LI", "DI", "SI")}
    rows: dict[str, dict[str, object]] = {}
    for name, (build, callbacks) in models.items():
        print(f"\n{name}", flush=True)
        L.seed_everything(0, verbose=False)
        module, trainer, monitor = train(build(), callbacks, data, arguments.epochs)
        networks[name] = module.network
        epochs = [record.epoch + 1 for record in monitor.history]
        for measure, column in COLUMNS.items():
            if column in over_epochs:
                over_epochs[column][name] = [float(record.measures[measure].value) for record in monitor.history]

        monitor.history.clear()
        loaders = [DataLoader(data.drifted(beta), batch_size=256) for beta in DRIFTS]
        accuracies = trainer.test(module, loaders, verbose=False)
        for beta, accuracy, record in zip(DRIFTS, accuracies, monitor.history, strict=True):
            index = record.dataloader_idx
            measured = {"accuracy": accuracy[f"test/accuracy/dataloader_idx_{index}"], **record.measures}
            for measure, column in COLUMNS.items():
                if column in over_drift:
                    value = measured[measure]
                    over_drift[column].setdefault(name, []).append(float(getattr(value, "value", value)))
            if beta in (0.0, DRIFT_IN_TABLE):
                row = f"{name}, test" if beta == 0 else f"{name}, drift β = {beta}"
                rows[row] = {column: measured[measure] for measure, column in COLUMNS.items()}

    table = markdown_table(dict(sorted(rows.items(), key=lambda item: "drift" in item[0])), corner="model")
    print(f"\n{table}\n")
    (arguments.out / "table.md").write_text(table + "\n", encoding="utf-8")
    plot_curves(over_epochs, epochs, "epoch", log=["LI"]).savefig(arguments.out / "training.png")
    plot_curves(over_drift, DRIFTS, "drift β").savefig(arguments.out / "drift.png")
    maps = plot_saliency_orbit(networks, data.test.tensors[0][0], C4(), saliency=PaperSaliency())
    maps.savefig(arguments.out / "saliency.png")
    print(f"Written to {arguments.out}: table.md, training.png, drift.png, saliency.png")


if __name__ == "__main__":
    main()
