"""One training and everything measured on it, as a JSON file that a later start finds again."""

from __future__ import annotations

import json
import logging
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from examples.paper.data import BATCH, CLASSES, Source, TransformingImages, load, loader, photographs, sizes_for
from examples.paper.models import Classifier, build, is_convolutional
from lightning_invariance import (
    C4,
    Action,
    CyclicTranslations,
    InvarianceMonitor,
    InvarianceRegularizer,
    OrbitAugmentation,
    PaperSaliency,
    SensitivityMonitor,
    search_weight,
)

GROUPS: dict[str, Action] = {"R4": C4(), "T3": CyclicTranslations(3)}
BETAS = [round(0.5 * step / 9, 4) for step in range(10)]
TARGET_SI = 0.95
#: The regularised models and their penalty.
PENALTIES = {"IR": "logit", "IR KL": "distribution", "IR normalised L2": "normalized_logit", "CNN IR": "logit"}
#: Of the convolutional networks, which train for fewer epochs.
CNN_BATCH = 64


@dataclass(frozen=True)
class Grid:
    """The weights that a search may try: the first, the factor from one to the next, and how many at most."""

    start: float
    factor: float
    max_trials: int


#: A training of a convolutional network takes longer: few weights, far apart.
PERCEPTRON_GRID, CNN_GRID = Grid(10.0, 10**0.25, 6), Grid(1.0, 10.0, 3)


@dataclass(frozen=True)
class Settings:
    """What all runs of a results folder have in common."""

    dataset: str
    mnist_folder: Path | None = None
    fashion_folder: Path | None = None
    download: bool = False
    epochs: int = 300
    seeds: int = 4
    cnn_epochs: int = 30
    cnn_seeds: int = 2
    max_trials: int | None = None
    explained_samples: int = 512
    sizes: tuple[int, int, int] | None = None
    table_1_only: bool = False

    @property
    def split(self) -> tuple[int, int, int]:
        """How many images train, test and validate: `sizes`, or what there is of the data set allows."""
        return self.sizes or sizes_for(int((self._source().labels < CLASSES).sum()))

    def data(self, action: Action, batch: int = BATCH) -> TransformingImages:
        """The data set, and the one that it drifts towards: the other of the two, or photographs."""
        source = self._source()
        try:
            drift = self._load({"mnist": "fashion", "fashion": "mnist"}[self.dataset])
        except FileNotFoundError:
            patches = photographs(len(source.images))
            drift = Source(patches, torch.zeros(len(patches)), "patches of scikit-learn's photographs")
        return TransformingImages(source, drift, action, self.split, batch)

    def _source(self) -> Source:
        return self._load(self.dataset)

    def _load(self, dataset: str) -> Source:
        folders = {"mnist": self.mnist_folder, "fashion": self.fashion_folder}
        return load(dataset, folders[dataset], self.download)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        group: a key of `GROUPS`.
        model: the name in the tables; see `build` and `PENALTIES`.
        seed: of weights and batches.
        epochs: of training.
        weight: of the regularizer; 0 for the models that have none.
        train_size: how many of the training images to use; all if None.
        keep: which epoch's weights are measured: those that validate best, or the last.
    """

    group: str
    model: str
    seed: int
    epochs: int
    weight: float = 0.0
    train_size: int | None = None
    keep: Literal["best", "last"] = "best"

    @property
    def name(self) -> str:
        size = "" if self.train_size is None else f"-n{self.train_size}"
        kept = "" if self.keep == "best" else f"-{self.keep}"
        model = self.model.replace(" ", "_")
        return f"{self.group}-{model}-w{self.weight:.4g}-e{self.epochs}{size}{kept}-s{self.seed}"


@dataclass
class Result:
    """What a run gave: every number by name, as (value, standard error over samples).

    Attributes:
        kept_epoch: the epoch whose weights were measured.
    """

    run: Run
    test: dict[str, tuple[float, float]]
    val: dict[str, tuple[float, float]]
    drift: dict[str, list[float]]
    parameters: int
    kept_epoch: int
    seconds: float


def result_of(run: Run, folder: Path) -> Result | None:
    """The result that lies in the folder, if it does."""
    path = folder / "runs" / f"{run.name}.json"
    if not path.exists():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    # As results call it that were written before a run could keep its last epoch.
    stored.setdefault("kept_epoch", stored.pop("best_epoch", None))
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
    action = GROUPS[run.group]
    data = settings.data(action, CNN_BATCH if is_convolutional(run.model) else BATCH)
    if run.train_size is not None:
        data.train_set.tensors = tuple(tensor[: run.train_size] for tensor in data.train_set.tensors)
    module = Classifier(build(run.model, action))
    callbacks: list[L.Callback] = [OrbitAugmentation(action)]
    if run.model in PENALTIES:
        callbacks.append(InvarianceRegularizer(action, run.weight, penalty=PENALTIES[run.model]))
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = ModelCheckpoint(scratch, monitor="val/accuracy", mode="max", save_weights_only=True)
        trainer = _trainer([*callbacks, checkpoint], max_epochs=run.epochs, enable_checkpointing=True)
        trainer.fit(module, data)
        kept_epoch = run.epochs - 1
        if run.keep == "best":
            best = torch.load(checkpoint.best_model_path, weights_only=True)
            module.load_state_dict(best["state_dict"])
            kept_epoch = int(best["epoch"])

    # The paper does not give the baseline of the integrated gradients; black is the image without a digit.
    saliency = PaperSaliency(baseline=data.black)
    samples = settings.explained_samples // (4 if is_convolutional(run.model) else 1)
    monitors = [
        InvarianceMonitor(action, saliency=saliency, saliency_samples=samples, max_batch=1024),
        SensitivityMonitor(samples=samples),
    ]
    measuring = _trainer(monitors)
    measured = {"val": {"accuracy": (measuring.validate(module, data, verbose=False)[0]["val/accuracy"], 0.0)}}
    measured["test"] = {"accuracy": (measuring.test(module, data, verbose=False)[0]["test/accuracy"], 0.0)}
    for record in (record for monitor in monitors for record in monitor.history):
        measured[record.stage] |= {
            name: (float(estimate.value), float(estimate.standard_error)) for name, estimate in record.measures.items()
        }
    result = Result(
        run,
        **measured,
        drift={} if is_convolutional(run.model) else _drift(module, data, action),
        parameters=sum(parameter.numel() for parameter in module.network.parameters()),
        kept_epoch=kept_epoch,
        seconds=time.monotonic() - started,
    )
    _store(result, module.network, folder)
    return result


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
    unfinished = runs / f"{result.run.name}.json.part"
    unfinished.write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
    unfinished.rename(runs / f"{result.run.name}.json")  # an interrupted run leaves no half of a result


def search(run: Run, settings: Settings, folder: Path) -> list[Result]:
    """Raises the run's weight until the maps on validation images are similar enough; every trial is a run."""
    quiet()
    trials: list[Result] = []

    def similarity(weight: float) -> float:
        trials.append(execute(replace(run, weight=weight), settings, folder))
        return trials[-1].val["saliency_invariance_similarity"][0]

    grid = CNN_GRID if is_convolutional(run.model) else PERCEPTRON_GRID
    found = search_weight(
        similarity,
        target=TARGET_SI,
        start=grid.start,
        factor=grid.factor,
        max_trials=settings.max_trials or grid.max_trials,
    )
    trials.sort(key=lambda trial: trial.run.weight != found.weight)  # the one that was found comes first
    return trials


def _trainer(callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    return L.Trainer(
        callbacks=callbacks,
        accelerator="auto",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"enable_checkpointing": False, **options},
    )


def quiet() -> None:
    """One thread a process, and none of Lightning's remarks: the runs go side by side under one progress bar."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message="search_weight: none of")  # the report says so
