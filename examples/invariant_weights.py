"""Can an ordinary network be exactly invariant, trained in the ordinary way?

Trains one convolutional network on the digits of `digits.py` in three ways:

- DA: on images turned at random.
- invariant weights: on upright images, with one callback. Its weights start on the subspace that the group fixes, and
  stay there.
- merged: DA's network, trained a little further while its weights are drawn towards that subspace, until they are on
  it.

All three are the same class, with the same parameters and one forward. Table, report and figure land in a folder. The
LightningModule is that of `digits.py`, an ordinary one.

    python examples/invariant_weights.py --out invariant_weights_results
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import lightning as L
import torch
from compare import DigitsDataModule
from digits import CLASSES, Classifier, load_data
from torch import nn

from lightning_invariance import C4, InvariantWeights, OrbitAugmentation, compare, symmetrize
from lightning_invariance.report import plot_saliency_orbit


def convolutional() -> nn.Sequential:
    """Three layers; the sizes that are pooled, 20 and 10, are even: windows of 2×2 do not know the pose then."""
    layers: list[nn.Module] = []
    for before, after in pairwise([1, 16, 32]):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def train(module: Classifier, callbacks: list[L.Callback], data: DigitsDataModule, epochs: int) -> Classifier:
    """The module, trained."""
    trainer = L.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    return module


def main() -> None:
    """Trains, compares, prints the table and what became of the weights, draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("invariant_weights_results"), help="folder for the results")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7, help="how often each model is timed")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)
    digits = load_data()
    data, group = DigitsDataModule(digits), C4()
    callbacks: dict[str, list[L.Callback]] = {
        "DA": [OrbitAugmentation(group)],
        "invariant weights": [InvariantWeights(group)],
        "merged": [OrbitAugmentation(group), InvariantWeights(group, mode="merge")],
    }
    models: dict[str, Classifier] = {}
    for name, each in callbacks.items():
        print(f"\n{name}", flush=True)
        L.seed_everything(0, verbose=False)
        module = deepcopy(models["DA"]) if name == "merged" else Classifier(convolutional())
        models[name] = train(
            module, each, data, max(arguments.epochs // 3, 1) if name == "merged" else arguments.epochs
        )

    comparison = compare(models, data, group, callbacks=callbacks, rounds=arguments.rounds, accelerator="cpu")
    table = comparison.to_markdown()
    print(f"\n{table}\n")
    image = digits.test.tensors[0][0]
    report = symmetrize(models["invariant weights"].network, group, image[None]).report()
    print(f"{report}\n")
    (arguments.out / "table.md").write_text(table + "\n", encoding="utf-8")
    (arguments.out / "report.txt").write_text(f"{report}\n", encoding="utf-8")
    networks = {name: module.network for name, module in models.items()}
    plot_saliency_orbit(networks, image, group).savefig(arguments.out / "saliency.png")
    print(f"Written to {arguments.out}: table.md, report.txt, saliency.png")


if __name__ == "__main__":
    main()
