"""The study's tables, made of its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from examples.aim import gain_in_points
from examples.invariant_weights_study.methods import METHODS
from examples.invariant_weights_study.results import Cell, Results
from examples.invariant_weights_study.runs import Result
from examples.invariant_weights_study.settings import AIM, CHOSEN, MAIN, SAMPLE_SIZES
from examples.pages import exactness, shown
from examples.paper.paper_numbers import LI, SI
from examples.paper.plan import mean_and_deviation
from examples.paper.study import ACCURACY, SHARE, SIGMA, WORST
from lightning_invariance.report.html import Table

HEADINGS = {
    ACCURACY: "accuracy %",
    WORST: "worst-case orbit accuracy %",
    LI: "LI",
    SI: "SI",
    "dithered_saliency_invariance_similarity": "SI, dithered",
    SHARE: "orbit share",
    SIGMA: "σ_max",
}
COSTS = {"step": "step / DA's", "inference": "inference / DA's"}


def tables_of(results: Results) -> dict[str, Table]:
    """Every table that there are results for, by a name."""
    tables = {
        "methods": methods_table(results),
        "aim": aim_table(results),
        "cells": cells_table(results),
        "few-images": few_images_table(results),
        "rates": rates_table(results),
    }
    return {name: table for name, table in tables.items() if table.rows}


def methods_table(results: Results) -> Table:
    """Every method where all are compared."""
    rows = []
    for method, each in METHODS.items():
        found = results.of(MAIN, method)
        if not found:
            continue
        epochs = len(found[0].val) + (len(results.of(MAIN, each.start)[0].val) if each.start else 0)
        step, inference = _costs(results, MAIN, method)
        costs = ["–" if each.length == "none" else step, inference]
        rows.append([method, *_measures(found), *costs, str(epochs), f"{found[0].parameters:,}"])
    note = (
        "Mean ± standard deviation over seeds. Accuracies, LI and orbit share: all test images in all poses. SI and "
        "σ_max: the first of them; SI by the paper's map, and by the same with ties broken by noise. Costs over DA's: "
        "of a training step and of inference, timed in turns; *epochs*: with those of the network that a method starts "
        f"from. {_exactness(results, [MAIN])}"
    )
    heading = ["method", *HEADINGS.values(), *COSTS.values(), "epochs", "parameters"]
    return Table(heading, rows, f"All methods: {_title(MAIN)}", note)


def aim_table(results: Results) -> Table:
    """Where the aim is met and where not, seed by seed against DA's."""
    rows = []
    for cell in results.cells:
        plain = {result.run.seed: result for result in results.of(cell, "DA")}
        for method in CHOSEN[cell[1]]:
            ours = [result for result in results.of(cell, method) if result.run.seed in plain]
            if not ours:
                continue
            das = [plain[result.run.seed] for result in ours]
            pairs = zip(_values(ours, ACCURACY), _values(das, ACCURACY), strict=True)
            gains = [100 * (own - other) for own, other in pairs]
            similarity, error, sigma = (mean(_values(ours, measure)) for measure in (SI, LI, SIGMA))
            ratio = sigma / mean(_values(das, SIGMA))
            step, inference = (results.cost(cell, method, kind) for kind in COSTS)
            rows.append(
                [
                    _title(cell),
                    method,
                    gain_in_points(gains),
                    shown(SI, similarity),
                    shown(LI, error),
                    shown(SIGMA, ratio),
                    *_costs(results, cell, method),
                    AIM.missed(mean(gains), similarity, error, ratio, step, inference),
                ]
            )
    heading = ["", "method", "accuracy − DA's, points", "SI", "LI", "σ_max / DA's", *COSTS.values(), "missed"]
    note = f"{AIM} {_exactness(results, results.cells)}"
    return Table(heading, rows, "The aim: invariant, as accurate, as sensitive, as cheap", note)


def cells_table(results: Results) -> Table:
    """What every network, group and data set has."""
    rows = [
        [_title(cell), method, *_measures(found)]
        for cell in results.cells
        for method in ("DA", "DA, projected", *CHOSEN[cell[1]])
        if (found := results.of(cell, method))
    ]
    note = f"Mean ± standard deviation over seeds. {_exactness(results, results.cells)}"
    caption = "DA and invariant weights: all networks, groups and data sets"
    return Table(["", "method", *HEADINGS.values()], rows, caption, note)


def few_images_table(results: Results) -> Table:
    """Accuracy by how many images there are to learn from."""
    there = {result.run.method for result in results.runs if result.run.train_size}
    rows = [
        [method, *(_cell(results.of(MAIN, method, size), ACCURACY) for size in (*SAMPLE_SIZES, None))]
        for method in METHODS
        if method in there
    ]
    heading = ["method", *(f"{size:,} images" for size in SAMPLE_SIZES), "all"]
    note = "Accuracy %, of all test images in all poses: mean ± standard deviation over seeds."
    return Table(heading, rows, f"Few images: {_title(MAIN)}", note)


def rates_table(results: Results) -> Table:
    """The search that `RATES` is filled in from."""
    rates = sorted({rate for methods in results.search.values() for each in methods.values() for rate in each})
    rows = [
        [
            network,
            method,
            *(shown(ACCURACY, each[rate]) if rate in each else "–" for rate in rates),
            f"{_best(each):g}",
        ]
        for network, methods in results.search.items()
        for method, each in methods.items()
    ]
    heading = ["network", "method", *(f"rate {rate:g}" for rate in rates), "best"]
    return Table(heading, rows, "Rates", "Accuracy % on validation images after the last epoch (MNIST, C4, one seed).")


def _measures(found: Sequence[Result]) -> list[str]:
    return [_cell(found, measure) for measure in HEADINGS]


def _cell(found: Sequence[Result], measure: str) -> str:
    return shown(measure, *mean_and_deviation(_values(found, measure)))


def _values(found: Sequence[Result], measure: str) -> list[float]:
    return [result.test[measure][0] for result in found]


def _costs(results: Results, cell: Cell, method: str) -> list[str]:
    costs = (results.cost(cell, method, kind) for kind in COSTS)
    return ["–" if cost is None else f"{cost:.2f}" for cost in costs]


def _exactness(results: Results, cells: Sequence[Cell]) -> str:
    """What an exact 0 stands for in a table of these cells."""
    return exactness(
        number
        for cell in cells
        for method in METHODS
        for measure in (LI, SHARE)
        for number in mean_and_deviation(_values(results.of(cell, method), measure))
    )


def _title(cell: Cell) -> str:
    data, network, group = cell
    return f"{network}, {group}, {data}"


def _best(by_rate: Mapping[float, float]) -> float:
    return max(by_rate, key=lambda rate: (by_rate[rate], -rate))
