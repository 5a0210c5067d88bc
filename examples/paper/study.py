"""Everything that was found of a data set, as one JSON file that tables and figures are made of again in seconds."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from examples.paper.costs import Costs, costs
from examples.paper.data import PAPER_SIZES
from examples.paper.differences import explain_differences
from examples.paper.paper_numbers import DI, LI, SI
from examples.paper.plan import Experiments
from examples.paper.runs import Result, Run, Settings

ACCURACY, WORST, SHARE, SIGMA = "accuracy", "worst_case_orbit_accuracy", "orbit_share", "jacobian_spectral_norm"
#: The measures that are kept, with the headings of tables.
HEADINGS = {
    ACCURACY: "accuracy %",
    WORST: "worst-case orbit accuracy %",
    LI: "LI",
    DI: "DI",
    SI: "SI",
    SHARE: "orbit share",
    SIGMA: "σ_max",
}
PACKAGES = ("torch", "lightning", "torchmetrics", "escnn", "numpy", "scikit-learn")


@dataclass
class Study:
    """The results of a data set.

    Attributes:
        dataset: ``"mnist"`` or ``"fashion"``.
        split: how many images train, test and validate.
        epochs: of the perceptrons and of the convolutional networks.
        explained: how many test images, from the first, have saliency maps and Jacobians, for both likewise.
        about: data and versions, in words.
        experiments: the runs.
        costs: by group and method, over DA's.
        differences: from the paper, each with the experiment that explains it or none.
    """

    dataset: str
    split: tuple[int, int, int]
    epochs: tuple[int, int]
    explained: tuple[int, int]
    about: dict[str, str]
    experiments: Experiments
    costs: Costs
    differences: list[dict[str, str]]

    @property
    def title(self) -> str:
        """The paper's name of the data."""
        return {"mnist": "Transforming-MNIST", "fashion": "Transforming-FMNIST"}[self.dataset]


def study_of(experiments: Experiments, settings: Settings, folder: Path) -> Study:
    """What the runs of a folder gave; costs are timed and differences looked into here."""
    return Study(
        settings.dataset,
        settings.split,
        (settings.epochs, settings.cnn_epochs),
        (settings.explained("DA"), settings.explained("CNN DA")),
        _about(settings),
        experiments,
        costs(settings, folder),
        explain_differences(experiments, settings, folder) if settings.dataset == "mnist" else [],
    )


def _about(settings: Settings) -> dict[str, str]:
    told = settings.told()
    train, test, val = settings.split
    return {
        "data": told["data"],
        "sizes": f"{train:,} training, {test:,} test, {val:,} validation images"
        + (" (the paper's)" if settings.split == PAPER_SIZES else " (the paper: 10,000, 50,000 and 2,000)"),
        "drift": told["drift"],
        "versions": ", ".join(f"{package} {version(package)}" for package in PACKAGES),
        "python": f"{platform.python_version()} on {platform.machine()}",
    }


def write(study: Study, path: Path) -> None:
    """Writes a study as JSON: a line a run, numbers of five digits."""
    experiments = study.experiments
    found = {name: value for name, value in vars(study).items() if name != "experiments"} | {
        "searches": [[trial.run.name for trial in trials] for trials in experiments.searched]
    }
    every = {
        result.run.name: result
        for result in [*experiments.results, *(trial for trials in experiments.searched for trial in trials)]
    }
    head = json.dumps(found, indent=1, ensure_ascii=False)[:-2]
    lines = ",\n".join(f"  {json.dumps(_stored(every[name]), ensure_ascii=False)}" for name in sorted(every))
    path.write_text(f'{head},\n "results": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def read(path: Path) -> Study:
    """Reads what `write` wrote."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    results = [Result(**{**each, "run": Run(**each["run"])}) for each in stored.pop("results")]
    by_name = {result.run.name: result for result in results}
    searched = [[by_name[name] for name in names] for names in stored.pop("searches")]
    for name in ("split", "epochs", "explained"):
        stored[name] = tuple(stored[name])
    return Study(experiments=Experiments(results, searched), **stored)


def _stored(result: Result) -> dict[str, Any]:
    def kept(measured: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
        return {name: [_short(number) for number in values] for name, values in measured.items() if name in names}

    everything = asdict(result)
    run = {
        field.name: everything["run"][field.name]
        for field in fields(Run)
        if field.default is MISSING or everything["run"][field.name] != field.default
    }
    everything |= {"run": run, "seconds": round(result.seconds)}
    return everything | {
        "test": kept(result.test, HEADINGS),
        # What weights and rates are chosen by, and the front is drawn of.
        "val": kept(result.val, {ACCURACY: "", SI: "", LI: ""}),
        "drift": kept(result.drift, result.drift),
    }


def _short(number: float) -> float:
    return float(f"{number:.5g}")
