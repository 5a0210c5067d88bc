"""Is a regularised network as good as a weight-tied one, and what does each cost?

Trains four convolutional networks of about as many parameters on the digits of `digits.py`, on images turned at random:

- DA: a plain one; data augmentation is all it gets.
- IR: the same, with the logit invariance error added to its loss.
- pooled: the same, its logits averaged over the four poses.
- escnn C4: weight-tied in every layer.

Then it compares them. Table and figure land in a folder.

    python examples/compare.py --out compare_results
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import lightning as L
import torch
from digits import CLASSES, SIDE, Classifier, Digits, load_data
from torch import nn
from torch.utils.data import DataLoader

from lightning_invariance import C4, InvarianceRegularizer, OrbitAugmentation, PaperSaliency, WeightRamp, compare
from lightning_invariance.baselines import OrbitPooled, SteerableClassifier


class DigitsDataModule(L.LightningDataModule):
    """Digits to train and to test on."""

    def __init__(self, data: Digits) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.data.train, batch_size=128, shuffle=True, drop_last=True)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.data.test, batch_size=100)


def convolutional() -> nn.Sequential:
    """Three layers with batch normalisation and pooling."""
    layers: list[nn.Module] = []
    for before, after in pairwise([1, 8, 16, 32]):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 32, CLASSES))


def train(network: nn.Module, callbacks: list[L.Callback], data: L.LightningDataModule, epochs: int) -> Classifier:
    """Trains on images turned at random."""
    module = Classifier(network)
    L.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    ).fit(module, datamodule=data)
    return module


def main() -> None:
    """Trains, compares, prints the table, draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("compare_results"), help="folder for the table and the figure")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7, help="how often each model is timed")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)
    data = DigitsDataModule(load_data())
    networks = {
        "DA": convolutional,
        "IR": convolutional,
        "pooled": lambda: OrbitPooled(convolutional(), C4()),
        "escnn C4": lambda: SteerableClassifier("C4", 1, CLASSES, SIDE, width=4),
    }
    ramp = WeightRamp(0.01, 1.0, steps=4 * arguments.epochs, shape="exponential")  # about half of the training
    callbacks: dict[str, list[L.Callback]] = {name: [OrbitAugmentation(C4())] for name in networks}
    callbacks["IR"].append(InvarianceRegularizer(C4(), ramp))
    models = {}
    for name, build in networks.items():
        print(f"\n{name}", flush=True)
        L.seed_everything(0, verbose=False)
        models[name] = train(build(), callbacks[name], data, arguments.epochs)

    comparison = compare(
        models,
        data,
        C4(),
        callbacks=callbacks,
        saliency=PaperSaliency(),
        saliency_samples=256,
        rounds=arguments.rounds,
        accelerator="cpu",
    )
    print(f"\n{comparison.to_markdown()}\n")
    (arguments.out / "table.md").write_text(comparison.to_markdown() + "\n", encoding="utf-8")
    comparison.plot().savefig(arguments.out / "comparison.png")
    print(f"Written to {arguments.out}: table.md, comparison.png")


if __name__ == "__main__":
    main()
