"""The results as one folder: JSON with every number, and one HTML file that puts them beside the paper's."""

from __future__ import annotations

import base64
import html
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from math import isnan
from pathlib import Path
from typing import Any

from examples.paper.claims import check_claims
from examples.paper.data import PAPER_SIZES
from examples.paper.differences import explain_differences
from examples.paper.figures import draw_figures
from examples.paper.paper_numbers import COLUMNS, SI, TABLE_1
from examples.paper.plan import CNN_TABLE, Experiments, mean_and_deviation
from examples.paper.plan import TABLE_1 as MODELS
from examples.paper.runs import CNN_BATCH, CNN_GRID, GROUPS, PENALTIES, TARGET_SI, Result, Settings

HEADINGS = {
    "accuracy": "accuracy %",
    "logit_invariance_error": "LI",
    "distribution_invariance_error": "DI",
    "saliency_invariance_similarity": "SI",
    "orbit_share": "orbit share",
    "worst_case_orbit_accuracy": "worst-case orbit accuracy %",
    "jacobian_spectral_norm": "σ_max",
}
PACKAGES = ("torch", "lightning", "torchmetrics", "escnn", "numpy", "scikit-learn")

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .25rem .7rem; text-align: right; }
th:first-child, td:first-child, .text td { text-align: left; } thead { border-bottom: 2px solid #222; }
tr.paper { color: #777; } tbody tr { border-bottom: 1px solid #ddd; } img { max-width: 100%; }
figcaption, .note { color: #555; font-size: .9rem; }
"""


def write_report(experiments: Experiments, settings: Settings, folder: Path, beside: Path | None = None) -> None:
    """Writes `results.json`, the figures, `tables.md` and `report.html`, with the tables of another folder beside."""
    figures = draw_figures(experiments, settings, folder)
    tables = [table_1(experiments, settings)]
    if not settings.table_1_only:
        tables.append(cnn_table(experiments, settings))
    tables.append(search_table(experiments))
    if beside is not None:
        tables += [
            tuple(table) for table in json.loads((beside / "results.json").read_text(encoding="utf-8"))["tables"]
        ]
    claims = check_claims(experiments, settings)
    differences = explain_differences(experiments, settings, folder) if settings.dataset == "mnist" else []
    about = describe(settings)
    everything = {
        "settings": {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()
        },
        "about": about,
        "results": [asdict(result) for result in experiments.results],
        "searches": [[asdict(trial) for trial in trials] for trials in experiments.searched],
        "tables": tables,
        "claims": claims,
        "differences": differences,
    }
    (folder / "results.json").write_text(json.dumps(everything, indent=1), encoding="utf-8")
    sections = [table_text(*table) for table in tables]
    (folder / "tables.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    print("\n" + "\n\n".join(sections) + "\n")
    for claim in claims:
        print(f"{claim['verdict']:>14}: {claim['claim']} ({claim['figures']})")
    (folder / "report.html").write_text(_page(about, tables, claims, differences, figures, folder), encoding="utf-8")


Table = tuple[str, str, list[str], list[list[str]]]


def table_1(experiments: Experiments, settings: Settings) -> Table:
    """Table 1; on MNIST the paper's rows are below ours."""
    rows = []
    train, test, _ = settings.split
    for group in GROUPS:
        for model in MODELS:
            results = experiments.of(group, model, settings.epochs)
            rows.append([group, model, *(_cell(column, _over_seeds(results, column)) for column in HEADINGS)])
            if settings.dataset != "mnist":
                continue
            papers = dict(zip(COLUMNS, TABLE_1[group][model], strict=True))
            rows.append(
                ["", "paper", *(_cell(column, papers[column]) if column in papers else "" for column in HEADINGS)]
            )
    note = (
        f"Mean ± standard deviation over {settings.seeds} seed(s), {settings.epochs} epochs, {train:,} training and "
        f"{test:,} test images."
    )
    if settings.dataset == "mnist":
        note += " The paper's rows are Transforming-MNIST with 10,000 and 50,000."
    title = {"mnist": "Transforming-MNIST", "fashion": "Transforming-FMNIST"}[settings.dataset]
    return f"Table 1, {title}", note, ["group", "model", *HEADINGS.values()], rows


def cnn_table(experiments: Experiments, settings: Settings) -> Table:
    """The rows that the paper does not have."""
    rows = []
    for group, models in CNN_TABLE.items():
        for model in models:
            results = experiments.of(group, model, settings.cnn_epochs)
            cells = [_cell(column, _over_seeds(results, column)) for column in HEADINGS]
            rows.append([group, model, *cells, f"{results[0].parameters:,}", f"{_mean_seconds(results):.0f}"])
    note = (
        f"Mean ± standard deviation over {settings.cnn_seeds} seed(s), {settings.cnn_epochs} epochs in batches of "
        f"{CNN_BATCH}: fewer epochs than in table 1. escnn C8 and SO2 are measured on the rotations by 90°, as the "
        f"others are. {_weights_found(experiments, 'CNN IR')} Seconds are those of training and measuring on one "
        "thread; other work on the machine adds to them."
    )
    return (
        "Convolutional networks and escnn",
        note,
        ["group", "model", *HEADINGS.values(), "parameters", "seconds"],
        rows,
    )


def _weights_found(experiments: Experiments, model: str) -> str:
    """With which ν a model trains, and whether it met the search's target."""
    cells = []
    for trials in experiments.searched:
        first = trials[0]
        if first.run.model == model:
            similarity = first.val[SI][0]
            met = "meets" if similarity >= TARGET_SI else f"is the best of {len(trials)} weights and misses"
            cells.append(
                f"ν = {first.run.weight:g} for {first.run.group}, whose SI of {similarity:.3g} on validation images "
                f"{met} the target of {TARGET_SI}"
            )
    return f"{model} has " + "; ".join(cells) + "."


def search_table(experiments: Experiments) -> Table:
    """Every weight that was tried."""
    rows = []
    for trials in experiments.searched:
        first = trials[0]
        for trial in sorted(trials, key=lambda trial: trial.run.weight):
            chosen = trial is first
            rows.append(
                [
                    trial.run.group,
                    trial.run.model,
                    f"{trial.run.weight:.4g}",
                    _cell(SI, trial.val[SI]),
                    _cell("accuracy", (trial.val["accuracy"][0], float("nan"))),
                    ("chosen" if trial.val[SI][0] >= TARGET_SI else "best, target missed") if chosen else "",
                ]
            )
    note = (
        f"ν rises by a factor of 10^(1/4) (that of CNN IR by {CNN_GRID.factor:g}, from {CNN_GRID.start:g} to at most "
        f"{CNN_GRID.start * CNN_GRID.factor ** (CNN_GRID.max_trials - 1):,.0f}) until SI on validation images is "
        f"{TARGET_SI}, or falls while it stays there, on the first seed; the other seeds keep it. SI ± standard error "
        "over images; both at the epoch of the best "
        f"validation accuracy. Penalties: {', '.join(f'{model}: {name}' for model, name in PENALTIES.items())}."
    )
    return (
        "The search for ν",
        note,
        ["group", "model", "ν", "SI, validation", "accuracy %, validation", ""],
        rows,
    )


def describe(settings: Settings) -> dict[str, str]:
    """Which data, which sizes, which versions."""
    data = settings.data(GROUPS["R4"])
    train, test, val = settings.split
    return {
        "data": data.description,
        "sizes": f"{train:,} training, {test:,} test, {val:,} validation images"
        + ("" if settings.split == PAPER_SIZES else " (the paper: 10,000, 50,000 and 2,000)"),
        "drift": data.drift_description,
        "versions": ", ".join(f"{package} {version(package)}" for package in PACKAGES),
        "python": f"{platform.python_version()} on {platform.machine()}",
    }


def _over_seeds(results: Sequence[Result], column: str) -> tuple[float, float]:
    return mean_and_deviation([result.test[column][0] for result in results])


def _mean_seconds(results: Sequence[Result]) -> float:
    return mean_and_deviation([result.seconds for result in results])[0]


def _cell(column: str, value: tuple[float, float]) -> str:
    mean, deviation = value
    if column.endswith("accuracy"):
        return f"{100 * mean:.1f}" + ("" if isnan(deviation) else f" ± {100 * deviation:.1f}")
    return f"{mean:.3g}" + ("" if isnan(deviation) else f" ± {deviation:.1g}")


def table_text(title: str, note: str, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [f"### {title}", "", "| " + " | ".join(heading) + " |", "|---" * len(heading) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", note])


def _page(
    about: Mapping[str, str],
    tables: Sequence[Table],
    claims: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, str]],
    figures: Mapping[str, str],
    folder: Path,
) -> str:
    parts = ["<h1>Genuine invariance learning without weight-tying: the experiments</h1>"]
    parts.append(
        "<p>Every experiment of Moskalev, Sepliarskaia, Bekkers and Smeulders (2023), run through the callbacks and "
        "metrics of lightning-invariance.</p>"
    )
    parts.append(_html_table(["", ""], [[name, text] for name, text in about.items()], "text"))
    parts.append("<h2>The paper's claims</h2>")
    parts.append(
        _html_table(
            ["claim", "", "figures"],
            [[claim["claim"], claim["verdict"], claim["figures"]] for claim in claims],
            "text",
        )
    )
    for title, note, heading, rows in tables:
        parts += [
            f"<h2>{html.escape(title)}</h2>",
            _html_table(heading, rows),
            f"<p class=note>{html.escape(note)}</p>",
        ]
    if differences:
        parts.append("<h2>Where the numbers differ from the paper's</h2>")
        names = ["difference", "experiment", "conclusion"]
        parts.append(_html_table(names, [[row[name] for name in names] for row in differences], "text"))
    parts.append("<h2>Figures</h2>")
    for name, caption in figures.items():
        image = base64.b64encode((folder / name).read_bytes()).decode()
        parts.append(
            f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{image}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>Genuine invariance: the experiments</title>"
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"
    )


def _html_table(heading: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heading)
    body = "".join(
        f"<tr{' class=paper' if row[1] == 'paper' else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f'<table class="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
