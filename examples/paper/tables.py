"""The report's tables, made of a study."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from statistics import mean

from examples.aim import Aim, gain_in_points
from examples.pages import exactness, shown
from examples.paper.methods import METHODS
from examples.paper.paper_numbers import COLUMNS, LI, SI, TABLE_1
from examples.paper.plan import (
    CNN_TABLE,
    CNN_WEIGHT,
    FEW_IMAGES,
    FRONT,
    OTHER_GROUPS,
    TRAIN_SIZES,
    mean_and_deviation,
)
from examples.paper.runs import CNN_BATCH, CNN_TESTED, FEWEST_STEPS, GROUPS, TARGET_SI, Result
from examples.paper.study import ACCURACY, HEADINGS, SHARE, SIGMA, WORST, Study
from lightning_invariance.report.html import Table

COSTS = {"step": "step / DA's", "inference": "inference / DA's"}
ROWS_OF_TABLE_1 = ("WT", "DA", "IR", "IW", "DA annealed", "IW constant rate")


def table_1(study: Study) -> Table:
    """Table 1; on MNIST the paper's rows are below ours. Invariant weights are under them."""
    rows = []
    for group in GROUPS:
        for model in ROWS_OF_TABLE_1:
            results = study.experiments.of(group, model)
            if not results:
                continue
            rows.append([group, model, *_measures(results), *_costs(study, group, model), str(len(results))])
            if study.dataset == "mnist" and model in TABLE_1[group]:
                papers = dict(zip(COLUMNS, TABLE_1[group][model], strict=True))
                cells = [_printed(column, *papers[column]) if column in papers else "" for column in HEADINGS]
                rows.append(["", "paper", *cells, "", "", "4"])
    train, test, _ = study.split
    note = (
        f"Mean ± standard deviation over seeds; {study.epochs[0]} epochs, {train:,} training and {test:,} test images, "
        "each in a pose that was drawn for it; weights of the epoch that validates best, of IW among those in which "
        f"they are invariant. SI (the paper's map) and σ_max: the first {study.explained[0]} test images. "
        f"{_exactness(study)}Costs of a step and of inference are over DA's, timed in turns."
    )
    heading = ["group", "model", *HEADINGS.values(), *COSTS.values(), "seeds"]
    return Table(heading, rows, f"Table 1, {study.title}", note)


def summary_table(study: Study) -> Table:
    """Three lines of table 1."""
    found = {model: study.experiments.of("R4", model) for model in ROWS_OF_TABLE_1[:4]}
    models = [model for model, results in found.items() if results]
    papers = TABLE_1["R4"]
    rows = [
        ["accuracy %", *(shown(ACCURACY, *_over_seeds(found[model], ACCURACY)) for model in models)],
        ["the paper's", *(_printed(ACCURACY, *papers[model][0]) if model in papers else "–" for model in models)],
        ["SI", *(shown(SI, *_over_seeds(found[model], SI)) for model in models)],
    ]
    return Table(["rotated MNIST", *models], rows)


def cnn_table(study: Study) -> Table:
    """The rows that the paper does not have."""
    rows = []
    for group, models in CNN_TABLE.items():
        for model in (*models, *(OTHER_GROUPS if group == "R4" else ())):
            results = study.experiments.of(group, model)
            if results:
                cells = [*_measures(results), *_costs(study, group, model)]
                rows.append([group, model, *cells, f"{results[0].parameters:,}", str(len(results))])
    tested = min(CNN_TESTED, study.split[1])
    note = (
        f"{study.epochs[1]} epochs in batches of {CNN_BATCH}, a one-cycle rate found on validation images, last epoch; "
        f"the first {tested:,} test images, of SI and σ_max the first {study.explained[1]}. CNN IR has ν = "
        f"{CNN_WEIGHT:g}. CNN pooled is the mean over the orbit; escnn's groups are measured on rotations by 90°. SI "
        f"is below 1 for an exactly invariant network where max-pooling has ties. {_exactness(study)}"
    )
    heading = ["group", "model", *HEADINGS.values(), *COSTS.values(), "parameters", "seeds"]
    return Table(heading, rows, f"Convolutional networks, {study.title}", note)


def aim_table(studies: Sequence[Study]) -> Table:
    """Where the aim is met and where not, seed by seed against DA's."""
    aim = Aim()
    rows = []
    for study in studies:
        for group in GROUPS:
            for model, plain in (("IW", "DA"), ("IW", "DA annealed"), ("CNN IW", "CNN DA")):
                ours, das = study.experiments.of(group, model), study.experiments.of(group, plain)
                if not ours or not das:
                    continue
                gains = _gains(ours, das)
                similarity, error, sigma = (_mean(ours, measure) for measure in (SI, LI, SIGMA))
                ratio = sigma / _mean(das, SIGMA)
                rows.append(
                    [
                        f"{study.title.removeprefix('Transforming-')}, {group}: {model} against {plain}",
                        gain_in_points(gains),
                        f"{similarity:.3f}",
                        shown(LI, error),
                        f"{ratio:.2f}",
                        *_costs(study, group, model),
                        aim.missed(mean(gains), similarity, error, ratio),
                    ]
                )
    heading = ["", "accuracy − DA's, points", "SI", "LI", "σ_max / DA's", *COSTS.values(), "missed"]
    return Table(heading, rows, "The aim: invariant, as accurate, as sensitive", str(aim))


def few_images_table(study: Study) -> Table:
    """Accuracy by the number of training images."""
    sizes = [size for size in TRAIN_SIZES if size < study.split[0]]
    rows = []
    for model in FEW_IMAGES:
        each = [study.experiments.of("R4", model, train_size=size) for size in sizes]
        each.append(study.experiments.of("R4", model))
        if any(each):
            rows.append([model, *(shown(ACCURACY, *_over_seeds(results, ACCURACY)) for results in each)])
    note = (
        f"Accuracy % on the first {min(CNN_TESTED, study.split[1]):,} test images, R4: mean ± standard deviation over "
        f"seeds. With few images there are more epochs: at least {FEWEST_STEPS} steps."
    )
    heading = ["model", *(f"{size:,} images" for size in (*sizes, study.split[0]))]
    return Table(heading, rows, f"Few images, {study.title}", note)


def front_table(study: Study) -> Table:
    """What the regularizer's options reach with the convolutional network."""
    rows = []
    for group in GROUPS:
        tried = [("CNN DA", 0.0), *((model, weight) for model, weights in FRONT.items() for weight in weights)]
        tried.append(("CNN IW", 0.0))
        found = {key: results for key in tried if (results := study.experiments.of(group, key[0], key[1]))}
        best = _front(
            {
                key: (_val(results, SI), _val(results, ACCURACY))
                for key, results in found.items()
                if METHODS[key[0]].invariant is None
            }
        )
        for (model, weight), results in found.items():
            kept = (ACCURACY, WORST, LI, SI, SHARE, SIGMA)
            rows.append(
                [
                    group,
                    model.removeprefix("CNN "),
                    f"{weight:g}" if weight else "–",
                    *(shown(column, *_over_seeds(results, column)) for column in kept),
                    "yes" if (model, weight) in best else "",
                    str(len(results)),
                ]
            )
    kept_headings = [HEADINGS[column] for column in (ACCURACY, WORST, LI, SI, SHARE, SIGMA)]
    note = (
        "The front is chosen on validation images: the settings of DA and the regularizer that no other of these "
        f"beats in both accuracy and SI. The numbers are of test images. {_exactness(study)}"
    )
    heading = ["group", "method", "ν or strength", *kept_headings, "on its front", "seeds"]
    return Table(heading, rows, f"The regularizer's options, a convolutional network, {study.title}", note)


def rates_table(study: Study) -> Table:
    """The learning rates that were tried for the methods whose rate is annealed."""
    found = {
        (result.run.model, result.run.rate): result.val[ACCURACY][0]
        for result in study.experiments.results
        if result.run.rate is not None
    }
    rates = sorted({rate for _, rate in found})
    rows = []
    for model in dict.fromkeys(model for model, _ in found):
        tried = {rate: found[model, rate] for rate in rates if (model, rate) in found}
        best = max(tried, key=lambda rate: tried[rate])
        cells = (shown(ACCURACY, tried[rate]) if rate in tried else "–" for rate in rates)
        rows.append([model, *cells, f"{best:g}"])
    heading = ["model", *(f"rate {rate:g}" for rate in rates), "best"]
    return Table(heading, rows, f"Learning rates, {study.title}", "Accuracy % on validation images, R4, one seed.")


def search_table(study: Study) -> Table:
    """Every weight that was tried for the paper's network."""
    rows = []
    for trials in study.experiments.searched:
        first = trials[0]
        for trial in sorted(trials, key=lambda trial: trial.run.weight):
            verdict = "chosen" if trial.val[SI][0] >= TARGET_SI else "best, target missed"
            rows.append(
                [
                    trial.run.group,
                    trial.run.model,
                    f"{trial.run.weight:.4g}",
                    shown(SI, *trial.val[SI]),
                    shown(ACCURACY, trial.val[ACCURACY][0]),
                    verdict if trial is first else "",
                ]
            )
    note = (
        f"ν rises, by a factor of 10^(1/4) where the target is near, until SI on validation images is {TARGET_SI}, or "
        "falls while it stays there, on the first seed; the other seeds keep it. SI ± standard error over images; "
        "both at the epoch of the best validation accuracy."
    )
    heading = ["group", "model", "ν", "SI, validation", "accuracy %, validation", ""]
    return Table(heading, rows, f"The search for ν, {study.title}", note)


def _front(points: dict[tuple[str, float], tuple[float, float]]) -> set[tuple[str, float]]:
    """Those that no other beats in both."""
    return {
        key
        for key, (x, y) in points.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    }


def _printed(column: str, value: float, deviation: float) -> str:
    """A number of the paper's with the digits that it has there."""
    if column == ACCURACY:
        return f"{100 * value:.1f} ± {100 * deviation:.1f}"
    return f"{value:g}" + ("" if isnan(deviation) else f" ± {deviation:g}")


def _measures(results: Sequence[Result]) -> list[str]:
    return [shown(column, *_over_seeds(results, column)) for column in HEADINGS]


def _costs(study: Study, group: str, model: str) -> list[str]:
    found = study.costs.get(group, {}).get(model)
    return [f"{found[kind]:.2f}" if found else "" for kind in COSTS]


def _over_seeds(results: Sequence[Result], column: str) -> tuple[float, float]:
    return mean_and_deviation([result.test[column][0] for result in results])


def _mean(results: Sequence[Result], column: str) -> float:
    return _over_seeds(results, column)[0]


def _val(results: Sequence[Result], column: str) -> float:
    return mean(result.val[column][0] for result in results)


def _gains(ours: Sequence[Result], das: Sequence[Result]) -> list[float]:
    """Points of accuracy over DA's, seed by seed."""
    plain = {result.run.seed: result.test[ACCURACY][0] for result in das}
    return [100 * (result.test[ACCURACY][0] - plain[result.run.seed]) for result in ours if result.run.seed in plain]


def _exactness(study: Study) -> str:
    """What an exact 0 stands for, with a space behind it; empty where there is none."""
    note = exactness(
        mean(result.test[measure][0] for result in results)
        for group in GROUPS
        for model in METHODS
        if (results := [each for each in study.experiments.of(group, model) if each.test])
        for measure in (LI, SHARE)
    )
    return f"{note} " if note else ""
