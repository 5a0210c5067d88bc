"""One training and everything measured on it, as a JSON file that a later start finds again."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from examples.invariant_weights_study.data import Images
from examples.invariant_weights_study.methods import METHODS, Method, callbacks_of, network_of
from examples.invariant_weights_study.settings import (
    BATCH,
    CHOSEN,
    EPOCHS,
    FEWEST_STEPS,
    GROUPS,
    MERGE_EPOCHS,
    RATES,
    Settings,
)
from examples.invariant_weights_study.timing import times_of
from examples.invariant_weights_study.training import Keeper, make_trainer
from examples.paper.data import loader
from examples.paper.models import Classifier
from examples.paper.runs import quiet, write_whole
from lightning_invariance import Action, Gradient, PaperSaliency, evaluate_invariance, symmetrize
from lightning_invariance.baselines import OrbitPooled

Measured = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        data: of `DATA`.
        network: of `NETWORKS`.
        group: of `GROUPS`.
        method: of `METHODS`.
        seed: of weights, batches and elements.
        train_size: how many of the training images are used; all if None.
        rate: the largest learning rate, where it is searched for; that of `RATES` if None.
    """

    data: str
    network: str
    group: str
    method: str
    seed: int
    train_size: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        method = re.sub(r"[^\w.+-]+", "_", self.method.replace("ν", "nu"))
        size = "" if self.train_size is None else f"-n{self.train_size}"
        rate = "" if self.rate is None else f"-lr{self.rate:g}"
        return f"{self.data}-{self.network}-{self.group}-{method}{size}{rate}-s{self.seed}"


@dataclass
class Result:
    """What a run gave.

    Attributes:
        test: every number by name, as (value, standard error over images); empty where the rate is searched for.
        val: accuracy on validation images after each epoch.
        kept: the epoch whose weights were measured, counted from 1; None where nothing was trained.
        seconds: of training, its start and end included, and of all of the run.
    """

    run: Run
    test: Measured
    val: list[float]
    kept: int | None
    parameters: int
    seconds: tuple[float, float]


def result_of(run: Run, folder: Path) -> Result | None:
    """The result that lies in the folder, if it does."""
    path = folder / "runs" / f"{run.name}.json"
    if not path.exists():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Result(**{**stored, "run": Run(**stored["run"])})


def execute_all(job: Sequence[Run], settings: Settings) -> None:
    """One run after the other, in one process."""
    for run in job:
        execute(run, settings)


def execute(run: Run, settings: Settings) -> Result:
    """Trains and measures, unless it has been done; the result lands in the folder."""
    done = result_of(run, settings.folder)
    if done is not None:
        return done
    began = time.monotonic()
    quiet()
    method, action = METHODS[run.method], GROUPS[run.group]
    data = Images(run.data, run.network, action, settings, run.train_size)
    L.seed_everything(run.seed, verbose=False)
    network = network_of(run.method, run.network, run.group)
    if method.start is not None:
        execute(replace(run, method=method.start), settings)
        weights = torch.load(weights_of(replace(run, method=method.start), settings), weights_only=True)
        plain = network.network if isinstance(network, OrbitPooled) else network
        plain.load_state_dict(weights["best" if method.best else "last"])
    if method.projected != "no":
        project(network, method, action, data)
    keeper = Keeper()
    training = 0.0
    if method.length != "none":
        rate = run.rate or RATES[run.network][method.rate or run.method]
        batches = loader(data.train, BATCH[run.network], shuffle=True)
        epochs = epochs_of(run, settings)
        callbacks = [*callbacks_of(method, action, epochs * len(batches)), keeper]
        start = time.monotonic()
        module = Classifier(network, rate, annealed=True)
        make_trainer(callbacks, max_epochs=epochs).fit(module, batches, loader(data.val))
        training = time.monotonic() - start
    network.eval()
    kept = len(keeper.accuracies) or None
    if method.best:
        kept = torch.load(weights_of(replace(run, method="DA"), settings), weights_only=True)["best_epoch"]
    result = Result(
        run,
        {} if run.rate else measure(network, data, action, settings.explained if run.train_size is None else 0),
        keeper.accuracies,
        kept,
        sum(parameter.numel() for parameter in network.parameters()),
        (training, time.monotonic() - began),
    )
    _store(result, network, keeper, settings)
    return result


def project(network: nn.Module, method: Method, action: Action, data: Images) -> None:
    """Makes the weights of a trained network invariant, all at once."""
    symmetry = symmetrize(network, action, data.example)
    if method.projected == "matched":
        symmetry.match_()
    symmetry.project_()
    # So that it is not stale statistics that spoil the result; those of upright images are not invariant.
    update_bn(loader(data.train), network)
    symmetry.project_()


def epochs_of(run: Run, settings: Settings) -> int:
    """How many epochs a run trains."""
    length = METHODS[run.method].length
    epochs = MERGE_EPOCHS[run.network] if length == "merge" else EPOCHS[run.network]
    if length == "DA and merge":
        epochs += MERGE_EPOCHS[run.network]
    if length == "time of project":
        epochs = math.ceil(epochs * times_of(run.network, run.group, settings)[CHOSEN[run.network][0]]["step"])
    if run.train_size is not None:
        epochs = max(epochs, math.ceil(FEWEST_STEPS / math.ceil(run.train_size / BATCH[run.network])))
    return settings.epochs(epochs)


class DitheredPaperSaliency(PaperSaliency):
    """The paper's maps of images whose ties are broken by a little noise, as the package's default maps are."""

    def prepare(self, x: Tensor) -> Tensor:
        return Gradient(dither=1e-3).prepare(x)


def measure(network: nn.Module, data: Images, action: Action, explained: int) -> Measured:
    """All test images in all poses; maps and Jacobians of the first `explained`."""

    def evaluate(images: tuple[Tensor, Tensor], names: list[str], **options: Any) -> Measured:
        batches = zip(*(part.split(100) for part in images), strict=True)
        found = evaluate_invariance(network, batches, action, measures=names, progress=False, **options)
        return {name: (float(found[name].value), float(found[name].standard_error)) for name in names}

    names = ["accuracy", "orbit_accuracy", "worst_case_orbit_accuracy", "logit_invariance_error", "orbit_share"]
    found = evaluate(data.test(), names)
    # `orbit_accuracy` leaves the upright pose out.
    upright, turned = found.pop("accuracy")[0], found.pop("orbit_accuracy")
    found["accuracy"] = (turned[0] + (upright - turned[0]) / len(action), turned[1])
    if explained:
        few = data.test(explained)
        similarity, norm = "saliency_invariance_similarity", "jacobian_spectral_norm"
        # Half of the default's points: the maps of the images take as long as their training otherwise.
        ways = {kind: kind(steps=16, baseline=data.black) for kind in (PaperSaliency, DitheredPaperSaliency)}
        found |= evaluate(few, [similarity, norm], saliency=ways[PaperSaliency])
        dithered = evaluate(few, [similarity], saliency=ways[DitheredPaperSaliency])
        found["dithered_saliency_invariance_similarity"] = dithered[similarity]
    return found


def weights_of(run: Run, settings: Settings) -> Path:
    """The file of a trained network's weights."""
    return settings.folder / "weights" / f"{run.name}.pt"


def _store(result: Result, network: nn.Module, keeper: Keeper, settings: Settings) -> None:
    runs = settings.folder / "runs"
    for folder in (runs, settings.folder / "weights"):
        folder.mkdir(parents=True, exist_ok=True)
    if result.run.method == "DA" and not result.run.rate and result.run.train_size is None:
        best_epoch = 1 + max(range(len(result.val)), key=lambda epoch: (result.val[epoch], epoch))
        kept = {"last": network.state_dict(), "best": keeper.best, "best_epoch": best_epoch}
        torch.save(kept, weights_of(result.run, settings))
    write_whole(runs / f"{result.run.name}.json", json.dumps(asdict(result), indent=1))
