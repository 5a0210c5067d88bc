"""What the runs gave, as one JSON file that the tables are made of again in seconds."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from examples.invariant_weights_study.methods import METHODS
from examples.invariant_weights_study.runs import Result, Run
from examples.invariant_weights_study.settings import (
    AIM,
    BATCH,
    CHOSEN,
    DATA,
    EPOCHS,
    FEWEST_STEPS,
    GROUPS,
    MERGE_EPOCHS,
    NETWORKS,
    RATES,
)
from examples.invariant_weights_study.timing import Times

#: Data set, network and group.
Cell = tuple[str, str, str]


@dataclass
class Results:
    """All results of the study.

    Attributes:
        runs: of the trainings that were measured.
        times: of methods, by network and group.
        search: validation accuracy after the last epoch, by network, method and rate.
    """

    runs: list[Result]
    times: dict[tuple[str, str], Times]
    search: dict[str, dict[str, dict[float, float]]]

    def of(self, cell: Cell, method: str, train_size: int | None = None) -> list[Result]:
        """A result a seed."""
        found = [
            result
            for result in self.runs
            if (result.run.data, result.run.network, result.run.group) == cell
            and (result.run.method, result.run.train_size) == (method, train_size)
        ]
        return sorted(found, key=lambda result: result.run.seed)

    def cost(self, cell: Cell, method: str, kind: str) -> float | None:
        """Over DA's, of a ``"step"`` or of ``"inference"``; None where it was not timed."""
        timed = _TIMED_AS.get(method, method)
        return self.times.get(cell[1:], {}).get(timed, {}).get(kind)

    @property
    def cells(self) -> list[Cell]:
        """Data set, network and group of what there is."""
        there = {(result.run.data, result.run.network, result.run.group) for result in self.runs}
        return [cell for cell in _all_cells() if cell in there]


#: Methods whose steps and inference are those of another.
_TIMED_AS = {name: "project + DA" for name in METHODS if name.startswith("pull")}
_TIMED_AS |= {name: "IR, ν = 1" for name in METHODS if name.startswith("IR")}
_TIMED_AS |= {name: "DA" for name in METHODS if name.startswith("DA")}
_TIMED_AS |= {"merge, late": "merge", "DA, then merge": "merge", "DA, pooled when it predicts": "pooled"}


def _all_cells() -> Iterable[Cell]:
    return ((data, network, group) for data in DATA for network in NETWORKS for group in GROUPS)


def results_of(folder: Path) -> Results:
    """What lies in a folder of runs."""
    stored = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / "runs").glob("*.json"))]
    every = [Result(**{**each, "run": Run(**each["run"])}) for each in stored]
    search: dict[str, dict[str, dict[float, float]]] = {}
    for result in sorted(every, key=lambda result: result.run.rate or 0.0):
        run = result.run
        if run.rate is not None:
            search.setdefault(run.network, {}).setdefault(run.method, {})[run.rate] = result.val[-1]
    times = {}
    for file in sorted((folder / "times").glob("*.json")):
        network, group = file.stem.rsplit("-", 1)
        times[network, group] = json.loads(file.read_text(encoding="utf-8"))
    return Results([result for result in every if result.run.rate is None], times, search)


def write(results: Results, path: Path) -> None:
    """Writes results as JSON: a line a run, numbers of four digits."""
    contents = {
        "settings": {
            "epochs": EPOCHS,
            "epochs of a merge": MERGE_EPOCHS,
            "batch": BATCH,
            "fewest steps": FEWEST_STEPS,
            "rates": RATES,
            "chosen": CHOSEN,
            "aim": asdict(AIM),
            "versions": {package: version(package) for package in ("torch", "lightning", "escnn")},
            "machine": platform.machine(),
        },
        "search": results.search,
        "times": {", ".join(pair): times for pair, times in results.times.items()},
        "runs": [_compact(result) for result in results.runs],
    }
    path.write_text(_as_json(contents) + "\n", encoding="utf-8")


def read(path: Path) -> Results:
    """Reads what `write` wrote."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    run_fields = [field.name for field in fields(Run)]
    runs = [
        Result(
            Run(**{name: each[name] for name in run_fields if name in each}),
            {name: (value, error) for name, (value, error) in each["test"].items()},
            each["val"],
            each["kept"],
            each["parameters"],
            tuple(each["seconds"]),
        )
        for each in stored["runs"]
    ]
    search = {
        network: {
            method: {float(rate): accuracy for rate, accuracy in each.items()} for method, each in methods.items()
        }
        for network, methods in stored["search"].items()
    }
    times = {}
    for pair, each in stored["times"].items():
        network, _, group = pair.partition(", ")
        times[network, group] = each
    return Results(runs, times, search)


def _as_json(contents: Mapping[str, Any]) -> str:
    """A line for each entry of a list, so that the file can be read and compared."""
    parts = []
    for name, value in contents.items():
        if isinstance(value, list):
            text = "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in value) + "\n]"
        else:
            text = json.dumps(value, indent=1, ensure_ascii=False)
        parts.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"


def _compact(result: Result) -> dict[str, Any]:
    run = {name: value for name, value in asdict(result.run).items() if value is not None}
    numbers = {name: [_rounded(value), _rounded(error)] for name, (value, error) in result.test.items()}
    measured = {"test": numbers, "val": [_rounded(value) for value in result.val], "kept": result.kept}
    return {**run, **measured, "parameters": result.parameters, "seconds": [round(each, 1) for each in result.seconds]}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
