"""Does a classifier know how the watch was worn?

BasicMotions, as `aeon` ships it: students wore a smart watch while they were standing, walking, running or playing
badminton; 40 series to train on, 40 to test on, ten seconds each. The watch measures two vectors in its own frame, by
an accelerometer and a gyroscope. Worn in another way, both are turned by the same rotation, and the activity is the
same. One small convolutional network in three ways, and another:

- plain: trained on the series as they are.
- DA: both vectors turned at random, together.
- IR: as DA, with the invariance error added to the loss.
- invariants: the same network on numbers that no rotation changes: lengths of both vectors and of their changes, and
  the angles between all of these.

    python examples/wearables.py --out wearables_results

How the settings were chosen: by cross-validation on the training series; see docs/wearables.md.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_invariance import (
    SO3,
    Action,
    Estimate,
    InvarianceRegularizer,
    LinearAction,
    OrbitAccuracy,
    OrbitAugmentation,
    evaluate_invariance,
)
from lightning_invariance.report import markdown_table

CLASSES = ("Standing", "Walking", "Running", "Badminton")
VECTORS = ["accelerometer", "gyroscope"]
UNITS = (8.0, 3.0)  # about the size of each. One for all three axes: one for each would tell the axes apart.
ROTATIONS = 16
WEIGHT = 1.0  # chosen by cross-validation
COLUMNS = {
    "accuracy": "accuracy",
    "orbit_accuracy": "accuracy, turned",
    "worst_case_orbit_accuracy": "right in all poses",
    "prediction_consistency": "same class",
    "logit_invariance_error": "LI",
    "orbit_share": "orbit share",
}
Batch = dict[str, Tensor]
NOTES = """\
Means over seeds; ± are standard errors over the 40 test series (the mean of those of single seeds), of which one is
2.5 %. "Turned" and all behind it: 16 rotations that no training saw. "other ways to wear it": turned by 180° about each
axis, right in all four."""


class Series(Dataset[Batch]):
    """Recordings of a watch.

    Args:
        accelerometer: ``(N, steps, 3)``, in units of 8.
        gyroscope: the same, in units of 3.
        label: the activity, ``(N,)``.
    """

    def __init__(self, accelerometer: Tensor, gyroscope: Tensor, label: Tensor) -> None:
        self.tensors = {"accelerometer": accelerometer, "gyroscope": gyroscope, "label": label}

    def __len__(self) -> int:
        return len(self.tensors["label"])

    def __getitem__(self, index: int | list[int] | slice) -> Batch:
        return {name: tensor[index] for name, tensor in self.tensors.items()}


def load_series(part: str) -> Series:
    """Reads ``"TRAIN"`` or ``"TEST"`` from the text in aeon, which need not be importable for that."""
    package = importlib.util.find_spec("aeon")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("BasicMotions is in aeon: pip install --no-deps aeon")
    folder = Path(package.origin).parent / "datasets" / "data" / "BasicMotions"
    _, lines = (folder / f"BasicMotions_{part}.ts").read_text(encoding="utf-8").split("@data\n")
    rows = [line.split(":") for line in lines.splitlines()]
    channels = torch.tensor([[[float(value) for value in each.split(",")] for each in row[:-1]] for row in rows])
    both = channels.unflatten(1, (2, 3)).movedim(2, -1)  # (N, 2, steps, 3)
    labels = torch.tensor([CLASSES.index(row[-1]) for row in rows])
    return Series(both[:, 0] / UNITS[0], both[:, 1] / UNITS[1], labels)


class Convolutions(nn.Module):
    """Reads both vectors along time.

    Args:
        invariant: whether it sees only what no rotation changes.
    """

    def __init__(self, invariant: bool = False, width: int = 24) -> None:
        super().__init__()
        self.invariant = invariant

        def block(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv1d(before, after, 5, stride=2, padding=2), nn.ReLU())

        self.features = nn.Sequential(block(10 if invariant else 6, width), block(width, width), block(width, width))
        self.classify = nn.Sequential(nn.Dropout(0.2), nn.Linear(width, len(CLASSES)))

    def forward(self, accelerometer: Tensor, gyroscope: Tensor) -> Tensor:
        """From two tensors ``(B, steps, 3)`` to logits ``(B, 4)``."""
        vectors = (accelerometer, gyroscope)
        seen = invariants(*vectors) if self.invariant else torch.cat(vectors, dim=2)
        return self.classify(self.features(seen.mT).mean(dim=2))


def invariants(accelerometer: Tensor, gyroscope: Tensor) -> Tensor:
    """Lengths and angles of both vectors and their changes from step to step: ``(B, steps - 1, 10)``."""
    changes = [each.diff(dim=1) for each in (accelerometer, gyroscope)]
    vectors = torch.stack([accelerometer[:, 1:], gyroscope[:, 1:], *changes], dim=2)
    lengths = vectors.norm(dim=-1)
    directions = vectors / (lengths[..., None] + 0.1)  # of what hardly moves there is no direction
    first, second = torch.triu_indices(4, 4, offset=1)
    cosines = (directions @ directions.mT)[..., first, second]
    return torch.cat([lengths, cosines], dim=-1)


class Classifier(L.LightningModule):
    """What anybody would write: it knows nothing of groups."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, accelerometer: Tensor, gyroscope: Tensor) -> Tensor:
        return self.network(accelerometer, gyroscope)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch["accelerometer"], batch["gyroscope"]), batch["label"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=1e-2)


def train(name: str, data: Series, seed: int, epochs: int, weight: float) -> nn.Module:
    """Trains one of the models; gives its network, in eval mode."""
    callbacks: list[L.Callback] = []
    if name in ("DA", "IR"):
        callbacks.append(OrbitAugmentation(SO3(1), input=VECTORS))
    if name == "IR":
        callbacks.append(InvarianceRegularizer(SO3(2), weight, input=VECTORS))
    L.seed_everything(seed, verbose=False)
    module = Classifier(Convolutions(invariant=name == "invariants"))
    trainer = L.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=20, shuffle=True))
    return module.network.eval()


def measure(network: nn.Module, data: Series, action: Action, measures: list[str]) -> dict[str, Estimate]:
    """Both vectors are turned by the same element."""
    return evaluate_invariance(network, [data[:]], action, input=VECTORS, measures=measures, progress=False)


def ways_to_wear() -> LinearAction:
    """As it is, and turned by 180° about each axis: on the other wrist, the other way round, and both."""
    signs = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    return LinearAction(torch.diag_embed(signs), labels=["as it is", "x", "y", "z"])


def about(axis: int, degrees: Tensor) -> LinearAction:
    """Rotations about an axis of the watch, the first by 0°."""
    one, two = (each for each in range(3) if each != axis)
    matrices = torch.eye(3, dtype=torch.float64).repeat(len(degrees), 1, 1)
    angles = degrees.double().deg2rad()
    matrices[:, one, one] = matrices[:, two, two] = angles.cos()
    matrices[:, two, one], matrices[:, one, two] = angles.sin(), -angles.sin()
    matrices[degrees == 0] = torch.eye(3, dtype=torch.float64)
    return LinearAction(matrices)


def row_of(networks: list[nn.Module], data: Series) -> dict[str, Estimate]:
    """A row of the table: the means over the seeds of what was measured of each."""
    found = [measure(network, data, SO3(ROTATIONS), list(COLUMNS)) for network in networks]
    worn = [measure(network, data, ways_to_wear(), ["worst_case_orbit_accuracy"]) for network in networks]
    row = {column: mean([each[name] for each in found]) for name, column in COLUMNS.items()}
    row["other ways to wear it"] = mean([each["worst_case_orbit_accuracy"] for each in worn])
    return row


def mean(estimates: list[Estimate]) -> Estimate:
    """Over seeds. They share their test series, so that the error over these does not fall with more seeds."""
    return Estimate(
        torch.stack([each.value for each in estimates]).mean(),
        torch.stack([each.standard_error for each in estimates]).mean(),
    )


def by_class(networks: list[nn.Module], data: Series) -> dict[str, Estimate]:
    """Accuracy over the rotations, of each activity."""
    found = [
        evaluate_invariance(
            network,
            [data[:]],
            SO3(ROTATIONS),
            input=VECTORS,
            measures=["orbit_accuracy"],
            per_class=CLASSES,
            progress=False,
        ).per_class["orbit_accuracy"]
        for network in networks
    ]
    return {
        name: mean([Estimate(each.value[place], each.standard_error[place]) for each in found])
        for place, name in enumerate(CLASSES)
    }


def draw(networks: Mapping[str, list[nn.Module]], data: Series, degrees: Tensor) -> Figure:
    """One recording in two poses, and accuracy against the angle by which the watch is turned about an axis."""
    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=80)
    grid = figure.add_gridspec(2, 2, width_ratios=[1, 1.5])
    place = int((data.tensors["label"] == CLASSES.index("Running")).nonzero()[0])
    recording = UNITS[0] * data.tensors["accelerometer"][place : place + 1, :50]
    for row, title in enumerate(["running, as recorded", "the same, the watch turned by 90° about z"]):
        axes = figure.add_subplot(grid[row, 0])
        moved = about(2, torch.tensor([0.0, 90.0])).act(recording, row)[0]
        for values, name, colour in zip(moved.T, "xyz", ("#0072B2", "#E69F00", "#009E73"), strict=True):
            axes.plot(torch.arange(len(values)) / 10, values, label=name, color=colour, linewidth=1)
        axes.set_title(title, fontsize=10)
        axes.set(ylabel="acceleration", xlim=(0, 5))
    figure.axes[0].set_xticklabels([])
    figure.axes[1].set_xlabel("seconds")
    figure.axes[1].legend(ncols=3, fontsize=8, loc="lower right")
    axes = figure.add_subplot(grid[:, 1])
    styles = {"plain": "-", "DA": "--", "IR": "-.", "invariants": ":"}  # some lie on one another
    for name, each in networks.items():
        # By element, which are the angles; the first, 0°, is the identity, which is never compared with itself.
        by_angle = OrbitAccuracy(reduction="element")
        curves = torch.stack([by_element(network, data, about(2, degrees), by_angle) for network in each])
        axes.plot(degrees[1:], 100 * curves.mean(dim=0), styles[name], label=name, linewidth=2.2)
    axes.set(xlabel="watch turned about z (degrees)", ylabel="accuracy, %", xticks=range(0, 361, 60), ylim=(0, 104))
    axes.axhline(25, color="0.7", linewidth=0.8)
    axes.text(4, 20, "guessing", color="0.4", fontsize=9)
    axes.legend(fontsize=9, loc="lower right")
    return figure


def by_element(network: nn.Module, data: Series, action: Action, metric: OrbitAccuracy) -> Tensor:
    """What a metric gives for each element but the identity."""
    found = evaluate_invariance(
        network, [data[:]], action, input=VECTORS, measures={"by element": metric}, progress=False
    )
    return found["by element"].value


def folds(data: Series, count: int) -> list[tuple[Series, Series]]:
    """Pairs of a part to train on and one to validate on, with as many series of each activity."""
    order = data.tensors["label"].argsort(stable=True)
    part = torch.arange(len(data)) % count
    picked = [(order[part != each], order[part == each]) for each in range(count)]
    return [(Series(*data[train].values()), Series(*data[rest].values())) for train, rest in picked]


def main() -> None:
    """Trains, then opens the test series, measures, prints the tables, draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("wearables_results"), help="folder for tables and figure")
    parser.add_argument("--quick", action="store_true", help="two epochs and one seed: does everything run?")
    parser.add_argument("--validate", action="store_true", help="cross-validate on the training series instead")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--weight", type=float, default=WEIGHT, help="of IR's error")
    parser.add_argument("--models", nargs="+", default=["plain", "DA", "IR", "invariants"])
    arguments = parser.parse_args()
    epochs, seeds = (2, 1) if arguments.quick else (arguments.epochs, arguments.seeds)
    torch.set_num_threads(1)  # the network is small: a second thread would mostly wait for the first

    data = load_series("TRAIN")
    if arguments.validate:
        parts = folds(data, 4)
        for name in arguments.models:
            rows = [row_of([train(name, part, 0, epochs, arguments.weight)], rest) for part, rest in parts]
            means = {column: float(torch.stack([row[column].value for row in rows]).mean()) for column in rows[0]}
            print(markdown_table({f"{name}, {epochs} epochs, weight {arguments.weight}": means}), flush=True)
        return

    arguments.out.mkdir(parents=True, exist_ok=True)
    networks: dict[str, list[nn.Module]] = {}
    for name in arguments.models:
        print(name, flush=True)
        networks[name] = [train(name, data, seed, epochs, arguments.weight) for seed in range(seeds)]
    test = load_series("TEST")
    table = markdown_table({name: row_of(each, test) for name, each in networks.items()}, corner="model")
    classes = markdown_table({name: by_class(each, test) for name, each in networks.items()}, corner="model")
    print(f"\n{table}\n\n{NOTES}\n\nAccuracy over the 16 rotations, by activity:\n\n{classes}\n")
    (arguments.out / "table.md").write_text(table + "\n", encoding="utf-8")
    (arguments.out / "classes.md").write_text(classes + "\n", encoding="utf-8")
    degrees = torch.linspace(0, 360, 9 if arguments.quick else 37)
    draw(networks, test, degrees).savefig(arguments.out / "wearables.png")
    print(f"Written to {arguments.out}: table.md, classes.md, wearables.png")


if __name__ == "__main__":
    main()
