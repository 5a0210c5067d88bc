"""One training and everything measured on it, as a JSON file that a later start finds again."""

from __future__ import annotations

import gc
import json
import logging
import math
import time
import warnings
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch

from examples.paper.data import BATCH, CLASSES, Source, TransformingImages, load, loader, photographs, sizes_for
from examples.paper.methods import MERGED_BY, METHODS, build, callbacks_of
from examples.paper.models import Classifier
from lightning_invariance import (
    C4,
    Action,
    CyclicTranslations,
    InvarianceMonitor,
    PaperSaliency,
    SensitivityMonitor,
    search_weight,
)

GROUPS: dict[str, Action] = {"R4": C4(), "T3": CyclicTranslations(3)}
BETAS = [round(0.5 * step / 9, 4) for step in range(10)]
TARGET_SI = 0.95
CNN_BATCH = 64
#: How many of the test images, from the first, convolutional networks are tested on: in all poses it takes as long as
#: their training.
CNN_TESTED = 10_000
#: The largest rate of the convolutional networks' one-cycle schedule: of `RATES_TRIED` the best on validation images
#: (R4, MNIST, seed 0), by ``--search-rates``. Every other method has that of DA.
CNN_RATES = {"CNN DA": 3e-2, "CNN IW": 1e-1, "CNN IW project": 3e-2, "CNN pooled": 3e-2}
STEERABLE_RATE = 1e-1
#: Of annealed perceptrons: the best of `PERCEPTRON_RATES_TRIED` for invariant weights, in the same search.
ANNEALED_RATE = 3e-3
RATES_TRIED = (3e-3, 1e-2, 3e-2, 1e-1)
PERCEPTRON_RATES_TRIED = (1e-3, 3e-3, 1e-2)
#: Where few images train a convolutional network, there are so many epochs that it takes at least so many steps.
FEWEST_STEPS = 800


@dataclass(frozen=True)
class Grid:
    """The weights that a search may try: the first, the factor from one to the next, and how many at most."""

    start: float
    factor: float
    max_trials: int


GRID = Grid(10.0, 10**0.25, 6)
#: Where a coarser look had shown that 10 is too small; by data set, group and model. No weight of the normalised
#: penalty that was tried brings SI to the target: on 3,000 images it was .73 and .65 at best.
GRIDS = {
    ("fashion", "T3", "IR"): Grid(100.0, 10**0.25, 3),
    ("mnist", "R4", "IR KL"): Grid(10**2.25, 10**0.5, 1),
    ("mnist", "T3", "IR KL"): Grid(10**2.25, 10**0.5, 1),
    ("mnist", "R4", "IR normalised L2"): Grid(100.0, 10.0, 1),
    ("mnist", "T3", "IR normalised L2"): Grid(10.0, 10.0, 1),
}


@dataclass(frozen=True)
class Settings:
    """What all runs of a results folder have in common."""

    dataset: str
    mnist_folder: Path | None = None
    fashion_folder: Path | None = None
    download: bool = False
    epochs: int = 300
    seeds: int = 4
    cnn_epochs: int = 8
    max_trials: int | None = None
    explained_samples: int = 512
    sizes: tuple[int, int, int] | None = None
    quick: bool = False

    @property
    def split(self) -> tuple[int, int, int]:
        """How many images train, test and validate: `sizes`, or what there is of the data set allows."""
        return self.sizes or sizes_for(int((self._source().labels < CLASSES).sum()))

    def explained(self, model: str) -> int:
        """How many images, from the first, get saliency maps and Jacobians."""
        return math.ceil(self.explained_samples / (4 if METHODS[model].is_convolutional else 1))

    def data(self, action: Action, convolutional: bool = False) -> TransformingImages:
        """The data set, and the one that it drifts towards: the other of the two, or photographs."""
        batch, tested = (CNN_BATCH, CNN_TESTED) if convolutional else (BATCH, None)
        return TransformingImages(self._source(), self._drift_source(), action, self.split, batch, tested)

    def told(self) -> dict[str, Any]:
        """What the numbers depend on beside the run: data, sizes and epochs."""
        return {
            "data": self._source().description,
            "drift": self._drift_source().description,
            "training, test and validation images": list(self.split),
            "epochs of perceptrons": self.epochs,
            "epochs of convolutional networks": self.cnn_epochs,
            "images with saliency maps": self.explained_samples,
        }

    def _source(self) -> Source:
        return self._load(self.dataset)

    def _drift_source(self) -> Source:
        try:
            return self._load({"mnist": "fashion", "fashion": "mnist"}[self.dataset])
        except FileNotFoundError:
            patches = photographs(len(self._source().images))
            return Source(patches, torch.zeros(len(patches)), "patches of scikit-learn's photographs")

    def _load(self, dataset: str) -> Source:
        folders = {"mnist": self.mnist_folder, "fashion": self.fashion_folder}
        return load(dataset, folders[dataset], self.download)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        group: a key of `GROUPS`.
        model: a key of `METHODS`.
        seed: of weights and batches.
        epochs: of training, with all images.
        weight: of the regularizer, or the strength of a pull; 0 for the models that have none.
        train_size: how many of the training images to use; all if None.
        keep: which epoch's weights are measured: those that validate best, or the last.
        rate: the learning rate, where it is searched for; that of the model if None.
    """

    group: str
    model: str
    seed: int
    epochs: int
    weight: float = 0.0
    train_size: int | None = None
    keep: Literal["best", "last"] = "best"
    rate: float | None = None

    @property
    def name(self) -> str:
        size = "" if self.train_size is None else f"-n{self.train_size}"
        kept = "" if self.keep == "best" else f"-{self.keep}"
        rate = "" if self.rate is None else f"-lr{self.rate:g}"
        model = self.model.replace(" ", "_")
        return f"{self.group}-{model}-w{self.weight:.4g}-e{self.epochs}{size}{kept}{rate}-s{self.seed}"


Measured = dict[str, tuple[float, float]]


@dataclass
class Result:
    """What a run gave: every number by name, as (value, standard error over samples).

    Attributes:
        test: on test images, each moved by an element drawn for it: empty where a rate is searched for, and the
            accuracy alone where few images train.
        val: on validation images.
        drift: accuracy and DI at each of `BETAS`, of perceptrons on MNIST.
        kept_epoch: the epoch whose weights were measured.
    """

    run: Run
    test: Measured
    val: Measured
    drift: dict[str, list[float]]
    parameters: int
    kept_epoch: int
    seconds: float


def check_folder(settings: Settings, folder: Path) -> None:
    """Notes in a results folder what its runs have in common: two experiments never become one.

    Raises:
        ValueError: if the folder holds runs of other settings.
    """
    path, told = folder / "settings.json", settings.told()
    if not path.exists():
        if any((folder / "runs").glob("*.json")):
            raise ValueError(f"Expected {path} to say what the runs beside it are of, but there is none.")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(told, indent=1))
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored != told:
        others = "; ".join(
            f"{name}: {stored.get(name)}, now {told[name]}" for name in told if stored.get(name) != told[name]
        )
        raise ValueError(f"Expected {folder} to hold runs of the same settings, but got {others}. Name another --out.")


def result_of(run: Run, folder: Path) -> Result | None:
    """The result that lies in the folder, if it does."""
    path = folder / "runs" / f"{run.name}.json"
    return read_result(path) if path.exists() else None


def read_result(path: Path) -> Result:
    """The result that a run wrote."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Result(**{**stored, "run": Run(**stored["run"])})


def network_of(run: Run, folder: Path) -> torch.nn.Module:
    """The trained network of a run that is done."""
    network = build(run.model, GROUPS[run.group])
    network.load_state_dict(torch.load(folder / "runs" / f"{run.name}.pt", weights_only=True))
    return network.eval()


def execute(run: Run, settings: Settings, folder: Path) -> Result:
    """Trains and measures, unless it has been done; the result lands in the folder."""
    done = result_of(run, folder)
    if done is not None:
        return done
    started = time.monotonic()
    quiet()
    L.seed_everything(run.seed, verbose=False)
    action, method = GROUPS[run.group], METHODS[run.model]
    data = settings.data(action, method.is_convolutional)
    if run.train_size is not None:
        data.train_set.tensors = tuple(tensor[: run.train_size] for tensor in data.train_set.tensors)
    network = build(run.model, action)
    if method.is_convolutional or method.annealed:
        module = Classifier(network, run.rate or _rate(run.model), annealed=True, noise=method.noise)
    else:
        module = Classifier(network)
    kept_epoch = train(module, run, data)
    measuring = _measuring_trainer(run, settings, data)
    val = {"accuracy": (measuring.validate(module, data, verbose=False)[0]["val/accuracy"], 0.0)}
    test: Measured = {}
    if run.rate is None:
        test = {"accuracy": (measuring.test(module, data, verbose=False)[0]["test/accuracy"], 0.0)}
    for record in (record for monitor in measuring.callbacks for record in getattr(monitor, "history", ())):
        {"val": val, "test": test}[record.stage].update(
            {
                name: (float(estimate.value), float(estimate.standard_error))
                for name, estimate in record.measures.items()
            }
        )
    result = Result(
        run,
        test,
        val,
        # Figure 4 is of MNIST that drifts towards Fashion-MNIST, and of the paper's perceptrons.
        drift={} if method.is_convolutional or settings.dataset != "mnist" else _drift(module, data, action),
        parameters=sum(parameter.numel() for parameter in module.network.parameters()),
        kept_epoch=kept_epoch,
        seconds=time.monotonic() - started,
    )
    _store(result, module.network, folder)
    gc.collect()  # Trainer, module and data hold each other: a gigabyte a run, which small objects are no sign of
    return result


def train(module: Classifier, run: Run, data: TransformingImages) -> int:
    """Trains as the run says, leaves the weights that are kept in the module, and says of which epoch they are."""
    method, epochs = METHODS[run.model], run.epochs
    if method.is_convolutional:
        batches = math.ceil(len(data.train_set) / CNN_BATCH)
        if run.train_size is not None and epochs > 1:
            epochs = max(epochs, math.ceil(FEWEST_STEPS / batches))
        # The rate ends near 0, and the last epoch is the one to take.
        steps = epochs * batches
        trainer = _trainer(
            callbacks_of(run.model, GROUPS[run.group], run.weight, steps),
            max_epochs=epochs,
            check_val_every_n_epoch=epochs,
        )
        trainer.fit(module, data)
        return epochs - 1
    steps = epochs * math.ceil(len(data.train_set) / BATCH)
    callbacks = callbacks_of(run.model, GROUPS[run.group], run.weight, steps)
    if run.keep == "last":
        _trainer(callbacks, max_epochs=epochs).fit(module, data)
        return epochs - 1
    # The weights of a merge are invariant from a certain step on.
    best = BestEpoch(first=max(0, math.ceil(MERGED_BY * epochs) - 1) if method.invariant else 0)
    _trainer([*callbacks, best], max_epochs=epochs).fit(module, data)
    module.load_state_dict(best.weights)
    return best.epoch


class BestEpoch(L.Callback):
    """Keeps the weights that validate best.

    Args:
        first: the first epoch that counts.

    Attributes:
        weights: the module's `state_dict` after that epoch.
        epoch: which one it is.
    """

    def __init__(self, first: int) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.epoch = -1
        self._first = first
        self._accuracy = -1.0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        accuracy = float(trainer.callback_metrics["val/accuracy"])
        if trainer.current_epoch >= self._first and accuracy > self._accuracy:
            self._accuracy, self.epoch = accuracy, trainer.current_epoch
            self.weights = deepcopy(pl_module.state_dict())


def _rate(model: str) -> float:
    method = METHODS[model]
    if not method.is_convolutional:
        return ANNEALED_RATE
    if method.network.startswith("escnn"):
        return STEERABLE_RATE
    return CNN_RATES.get(model, CNN_RATES["CNN DA"])


def _measuring_trainer(run: Run, settings: Settings, data: TransformingImages) -> L.Trainer:
    if run.rate is not None or run.train_size is not None:
        return _trainer([])
    samples = settings.explained(run.model)
    # The paper does not give the baseline of the integrated gradients; black is the image without a digit.
    saliency = PaperSaliency(baseline=data.black)
    action = GROUPS[run.group]
    # Larger batches of a convolutional network do not stay in the caches.
    max_batch = CNN_BATCH if METHODS[run.model].is_convolutional else 1024
    monitors: list[L.Callback] = [
        InvarianceMonitor(action, saliency=saliency, saliency_samples=samples, max_batch=max_batch),
        SensitivityMonitor(samples=samples),
    ]
    return _trainer(monitors)


def _drift(module: Classifier, data: TransformingImages, action: Action) -> dict[str, list[float]]:
    """Accuracy and DI on test images that drift towards the other data set."""
    monitor = InvarianceMonitor(action, measures=["distribution_invariance_error"])
    tester = _trainer([monitor])
    # One after the other: all of them at once would be several gigabytes.
    accuracies = [tester.test(module, loader(data.test_set(beta)), verbose=False)[0]["test/accuracy"] for beta in BETAS]
    return {
        "accuracy": accuracies,
        "DI": [float(record.measures["distribution_invariance_error"].value) for record in monitor.history],
    }


def _store(result: Result, network: torch.nn.Module, folder: Path) -> None:
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), runs / f"{result.run.name}.pt")
    write_whole(runs / f"{result.run.name}.json", json.dumps(asdict(result), indent=1))


def write_whole(path: Path, text: str) -> None:
    """Writes a file that an interruption leaves no half of."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)


def search(run: Run, settings: Settings, folder: Path) -> Run:
    """The run with the weight from which on the maps on validation images are similar enough; every trial is a run."""
    quiet()

    def similarity(weight: float) -> float:
        trial = execute(replace(run, weight=weight), settings, folder)
        return trial.val["saliency_invariance_similarity"][0]

    grid = GRIDS.get((settings.dataset, run.group, run.model), GRID)
    found = search_weight(
        similarity,
        target=TARGET_SI,
        start=grid.start,
        factor=grid.factor,
        max_trials=settings.max_trials or grid.max_trials,
    )
    return replace(run, weight=found.weight)


def _trainer(callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    return L.Trainer(
        callbacks=callbacks,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def quiet() -> None:
    """One thread a process, and none of Lightning's remarks: the runs go side by side under one progress bar."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message="search_weight: none of")  # the report says so
