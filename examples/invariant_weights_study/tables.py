"""The study's tables from the files of its runs: Markdown, and one JSON with all that they were made of.

python -m examples.invariant_weights_study.tables --out results --json docs/invariant_weights.json
"""

from __future__ import annotations

import argparse
import json
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from math import isnan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from examples.invariant_weights_study.methods import METHODS
from examples.invariant_weights_study.runs import Result, Run
from examples.invariant_weights_study.settings import (
    BATCH,
    CHOSEN,
    DATA,
    EPOCHS,
    FEWEST_STEPS,
    GROUPS,
    MAIN,
    MERGE_EPOCHS,
    NETWORKS,
    RATES,
    SAMPLE_SIZES,
    Aim,
)

COLUMNS = {
    "accuracy": "accuracy %",
    "worst_case_orbit_accuracy": "worst-case orbit accuracy %",
    "logit_invariance_error": "LI",
    "saliency_invariance_similarity": "SI",
    "dithered_saliency_invariance_similarity": "SI, dithered",
    "orbit_share": "orbit share",
    "jacobian_spectral_norm": "σ_max",
}
ACCURACY, LI, SI, SIGMA = (list(COLUMNS)[index] for index in (0, 2, 3, 6))
NOTES = """\
Means ± standard deviations over seeds. Accuracies, LI and orbit share: all test images in all poses. SI and σ_max: the
first of them; SI by the paper's map, and by the same with ties broken by noise. Costs over DA's: of a training step and
of inference, timed in turns; *epochs*: with those of the network that a method starts from."""

Cell = tuple[str, str, str]
Table = tuple[str, list[str], list[list[str]]]


class Results:
    """All runs of a folder.

    Args:
        folder: of the results.

    Attributes:
        times: costs over DA's by network and group.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted((folder / "runs").glob("*.json"))
        stored = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        self.all = [Result(**{**one, "run": Run(**one["run"])}) for one in stored]
        self.times = {
            tuple(file.stem.rsplit("-", 1)): json.loads(file.read_text(encoding="utf-8"))
            for file in sorted((folder / "times").glob("*.json"))
        }
        self._by_method: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
        for result in self.all:
            run = result.run
            if run.rate is None:
                self._by_method[run.data, run.network, run.group, run.method, run.train_size].append(result)

    def of(self, cell: Cell, method: str, train_size: int | None = None) -> list[Result]:
        """A result a seed."""
        found = self._by_method.get((*cell, method, train_size), [])
        return sorted(found, key=lambda result: result.run.seed)

    def values(self, cell: Cell, method: str, measure: str, train_size: int | None = None) -> dict[int, float]:
        """A number a seed."""
        return {result.run.seed: result.test[measure][0] for result in self.of(cell, method, train_size)}

    def cost(self, cell: Cell, method: str, kind: str) -> float | None:
        """Over DA's, of training steps or inference; None where it was not timed."""
        timed = _TIMED_AS.get(method, method)
        found: dict[str, float] = self.times.get(cell[1:], {}).get(timed, {})
        return found.get(kind)

    @property
    def cells(self) -> list[Cell]:
        """Data set, network and group of what there is."""
        there = {key[:3] for key in self._by_method}
        return [cell for cell in _all_cells() if cell in there]


#: Methods whose steps and inference are those of another; networks of DA that are not trained any more cost nothing.
_TIMED_AS = {name: "project + DA" for name in METHODS if name.startswith("pull")}
_TIMED_AS |= {name: "IR, ν = 1" for name in METHODS if name.startswith("IR")}
_TIMED_AS |= {name: "DA" for name in METHODS if name.startswith("DA")}
_TIMED_AS |= {"merge, late": "merge", "DA, then merge": "merge", "DA, pooled when it predicts": "pooled"}


def _all_cells() -> Iterable[Cell]:
    return ((data, network, group) for data in DATA for network in NETWORKS for group in GROUPS)


def all_methods(results: Results) -> Table:
    """Every method where all are compared."""
    rows = []
    for method, each in METHODS.items():
        found = results.of(MAIN, method)
        if not found:
            continue
        epochs = len(found[0].val) + (len(results.of(MAIN, each.start)[0].val) if each.start else 0)
        costs = [_ratio(results.cost(MAIN, method, kind)) for kind in ("step", "inference")]
        if each.length == "none":
            costs[0] = "–"
        rows.append([method, *_measures(results, MAIN, method), *costs, str(epochs), f"{found[0].parameters:,}"])
    title = f"All methods: {MAIN[1]}, {MAIN[2]}, {MAIN[0]}"
    heading = ["method", *COLUMNS.values(), "step / DA's", "inference / DA's", "epochs", "parameters"]
    return title, heading, rows


def all_cells(results: Results) -> Table:
    """What every network, group and data set has."""
    rows = [
        [_name(cell), method, *_measures(results, cell, method)]
        for cell in results.cells
        for method in ("DA", "DA, projected", *CHOSEN[cell[1]])
        if results.of(cell, method)
    ]
    return "All networks, groups and data sets", ["", "method", *COLUMNS.values()], rows


def verdicts(results: Results) -> list[dict[str, Any]]:
    """For each cell and way of training: what the aim asks for, and what of it is missed."""
    aim, found = Aim(), []
    for cell in results.cells:
        for method in CHOSEN[cell[1]]:
            seeds = [result.run.seed for result in results.of(cell, method)]
            plain = {measure: results.values(cell, "DA", measure) for measure in (ACCURACY, SIGMA)}
            seeds = [seed for seed in seeds if seed in plain[ACCURACY]]
            if not seeds:
                continue
            own = {measure: results.values(cell, method, measure) for measure in (ACCURACY, SI, LI, SIGMA)}
            gains = [100 * (own[ACCURACY][seed] - plain[ACCURACY][seed]) for seed in seeds]
            reached = {
                "accuracy": (mean(gains), mean(gains) >= aim.accuracy),
            }
            similarity, error = (mean(own[measure][seed] for seed in seeds) for measure in (SI, LI))
            reached["SI"] = (similarity, similarity >= aim.similarity)
            reached["LI"] = (error, error <= aim.error)
            sigma = mean(own[SIGMA][seed] for seed in seeds) / mean(plain[SIGMA][seed] for seed in seeds)
            reached["σ_max"] = (sigma, sigma >= aim.sensitivity)
            for kind in ("step", "inference"):
                cost = results.cost(cell, method, kind)
                if cost is not None:
                    reached[kind] = (cost, cost <= aim.cost)
            found.append(
                {
                    "cell": cell,
                    "method": method,
                    "seeds": len(seeds),
                    "values": {name: value for name, (value, _) in reached.items()},
                    "standard error of accuracy": stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None,
                    "missed": [name for name, (_, holds) in reached.items() if not holds],
                }
            )
    return found


def aims(results: Results) -> Table:
    """The verdicts as a table."""
    rows = []
    for each in verdicts(results):
        values = each["values"]
        error = each["standard error of accuracy"]
        gain = f"{values['accuracy']:+.1f}" + ("" if error is None else f" ± {error:.1f}")
        numbers = [f"{values[name]:.3g}" for name in ("SI", "LI", "σ_max")]
        costs = [_ratio(values.get(kind)) for kind in ("step", "inference")]
        missed = ", ".join(each["missed"]) or "nothing"
        rows.append([_name(each["cell"]), each["method"], gain, *numbers, *costs, missed])
    heading = [
        "",
        "method",
        "accuracy − DA's, points ± SE",
        "SI",
        "LI",
        "σ_max / DA's",
        "step / DA's",
        "inference / DA's",
    ]
    return f"The aim: {_aim_in_words()}", [*heading, "missed"], rows


def few_images(results: Results) -> Table:
    """Accuracy by how many images there are to learn from."""
    sizes = [*SAMPLE_SIZES, None]
    there = {result.run.method for result in results.all if result.run.train_size}
    rows = [
        [method, *(_percent(list(results.values(MAIN, method, ACCURACY, size).values())) for size in sizes)]
        for method in METHODS
        if method in there
    ]
    heading = ["accuracy %", *(f"{size:,} images" for size in SAMPLE_SIZES), "all"]
    return f"Few images: {MAIN[1]}, {MAIN[2]}, {MAIN[0]}", heading, rows


def searched(results: Results) -> dict[str, dict[str, dict[float, float]]]:
    """Validation accuracy after the last epoch, by network, method and rate."""
    found: dict[str, dict[str, dict[float, float]]] = {}
    for result in sorted(results.all, key=lambda result: result.run.rate or 0.0):
        run = result.run
        if run.rate is not None:
            found.setdefault(run.network, {}).setdefault(run.method, {})[run.rate] = result.val[-1]
    return found


def search_table(results: Results) -> Table:
    """The search for rates."""
    found = searched(results)
    rates = sorted({rate for methods in found.values() for each in methods.values() for rate in each})
    rows = [
        [network, method, *(f"{100 * each[rate]:.1f}" if rate in each else "–" for rate in rates), f"{_best(each):g}"]
        for network, methods in found.items()
        for method, each in methods.items()
    ]
    heading = ["network", "method", *(f"rate {rate:g}" for rate in rates), "best"]
    return "Rates: accuracy % on validation images (MNIST, C4, one seed)", heading, rows


def write_search(folder: Path) -> str:
    """The table of the search, which `RATES` is filled in from."""
    return as_markdown(search_table(Results(folder)))


def write_tables(folder: Path, file: Path | None = None) -> str:
    """Writes tables.md and the JSON; gives the tables."""
    results = Results(folder)
    tables = [make(results) for make in (all_methods, aims, all_cells, few_images, search_table)]
    text = "\n\n".join([NOTES, *(as_markdown(table) for table in tables if table[2])])
    (folder / "tables.md").write_text(text + "\n", encoding="utf-8")
    contents = {
        "settings": {
            "epochs": EPOCHS,
            "epochs of a merge": MERGE_EPOCHS,
            "batch": BATCH,
            "fewest steps": FEWEST_STEPS,
            "rates": RATES,
            "chosen": CHOSEN,
            "aim": asdict(Aim()),
            "versions": {package: version(package) for package in ("torch", "lightning", "escnn")},
            "machine": platform.machine(),
        },
        "search": searched(results),
        "times": {", ".join(pair): times for pair, times in results.times.items()},
        "verdicts": verdicts(results),
        "runs": [_compact(result) for result in results.all if result.run.rate is None],
    }
    file = file or folder / "invariant_weights.json"
    file.write_text(as_json(contents) + "\n", encoding="utf-8")
    return text


def as_json(contents: Mapping[str, Any]) -> str:
    """A line for each entry of a list, so that the file can be read and compared."""
    parts = []
    for name, value in contents.items():
        if isinstance(value, list):
            text = "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in value) + "\n]"
        else:
            text = json.dumps(value, indent=1, ensure_ascii=False)
        parts.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"


def as_markdown(table: Table) -> str:
    """A title and a table."""
    title, heading, rows = table
    lines = [f"### {title}", "", "| " + " | ".join(heading) + " |", "|---" * len(heading) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _compact(result: Result) -> dict[str, Any]:
    run = {name: value for name, value in asdict(result.run).items() if value is not None}
    numbers = {name: [_rounded(value), _rounded(error)] for name, (value, error) in result.test.items()}
    measured = {"test": numbers, "val": [_rounded(value) for value in result.val], "kept": result.kept}
    return {**run, **measured, "parameters": result.parameters, "seconds": [round(each, 1) for each in result.seconds]}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _measures(results: Results, cell: Cell, method: str) -> list[str]:
    cells = []
    for measure in COLUMNS:
        values = list(results.values(cell, method, measure).values())
        cells.append(_percent(values) if measure.endswith("accuracy") else _spread(values))
    return cells


def _percent(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{100 * mean(values):.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    defined = [value for value in values if not isnan(value)]  # a constant network has no maps
    if not defined:
        return "undefined"
    spread = f" ± {stdev(defined):.1g}" if len(defined) > 1 else ""
    return f"{mean(defined):.3g}{spread}" + (f" ({len(defined)} of {len(values)} seeds)" if defined != values else "")


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _name(cell: Cell) -> str:
    data, network, group = cell
    return f"{network}, {group}, {data}"


def _best(by_rate: Mapping[float, float]) -> float:
    return max(by_rate, key=lambda rate: (by_rate[rate], -rate))


def _aim_in_words() -> str:
    aim = Aim()
    return (
        f"accuracy at least DA's − {-aim.accuracy:g}, SI ≥ {aim.similarity:g}, LI ≤ {aim.error:g}, "
        f"σ_max ≥ {aim.sensitivity:g} × DA's, costs ≤ {aim.cost:g}"
    )


def main() -> None:
    """Builds the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("invariant_weights_results"), help="folder of the results")
    parser.add_argument("--json", type=Path, help="where the JSON goes; into the folder without it")
    arguments = parser.parse_args()
    print(write_tables(arguments.out, arguments.json))


if __name__ == "__main__":
    main()
