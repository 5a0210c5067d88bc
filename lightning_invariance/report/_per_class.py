"""Results by class, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from lightning_invariance.evaluation._measures import MEASURES
from lightning_invariance.metrics import Estimate
from lightning_invariance.report._figures import plot_bars
from lightning_invariance.report._table import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ByClass(Protocol):
    """What has values by class: the result of `evaluate_invariance`, a `MonitorRecord`."""

    per_class: dict[str, Estimate]
    classes: tuple[str, ...]


def per_class_table(results: ByClass) -> str:
    """A Markdown table with a row for each class, and one of all samples.

    Args:
        results: what `evaluate_invariance` gives, or a `MonitorRecord`, measured with `per_class`. Values by element
            have no column.

    Returns:
        The table.

    Raises:
        ValueError: if there are no values by class, or all of them are by element too.

    Example:
        >>> import torch
        >>> from lightning_invariance import C4, evaluate_invariance
        >>> from lightning_invariance.report import per_class_table
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> batches = [(torch.randn(40, 1, 8, 8), torch.arange(40) % 2)]
        >>> results = evaluate_invariance(network, batches, C4(), per_class=["cat", "dog"], progress=False)
        >>> [line.split("|")[1] for line in per_class_table(results).splitlines()]
        [' class ', '---', ' cat ', ' dog ', ' all ']
    """
    columns = _columns(results)
    rows: dict[str, dict[str, float | Estimate]] = {
        label: {heading: values[label] for heading, values in columns.items()} for label in results.classes
    }
    everything = results if isinstance(results, Mapping) else getattr(results, "measures", {})
    overall = {_heading(name): everything[name] for name in results.per_class if name in everything}
    of_all: dict[str, float | Estimate] = {name: value for name, value in overall.items() if name in columns}
    return markdown_table({**rows, **({"all": of_all} if of_all else {})}, corner="class")


def plot_per_class(results: ByClass) -> Figure:
    """A panel for each measure, with a bar for each class and standard errors.

    Args:
        results: what `evaluate_invariance` gives, or a `MonitorRecord`, measured with `per_class`. Values by element
            have no panel.

    Returns:
        The figure, not shown on any screen.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if there are no values by class.
    """
    columns = _columns(results)
    logarithmic = [
        _heading(name)
        for name in results.per_class
        if _heading(name) in columns and _measure(name) in MEASURES and MEASURES[_measure(name)].logarithmic
    ]
    return plot_bars(columns, log=logarithmic)


def _columns(results: ByClass) -> dict[str, dict[str, float | Estimate]]:
    """Each measure's values by class, under its heading."""
    per_class, classes = getattr(results, "per_class", None), getattr(results, "classes", ())
    single = {name: each for name, each in (per_class or {}).items() if each.value.ndim == 1}
    if per_class and not single:
        raise ValueError(
            f"Expected a measure with one value a class but {', '.join(map(repr, per_class))} have one for each "
            "element: read `results.per_class`, or measure with reduction='mean'."
        )
    if not single or not classes:
        raise ValueError(
            f"Expected `results` to have values by class, measured with `per_class=True`, but got {results!r}."
        )
    return {
        _heading(name): {
            label: Estimate(value, error)
            for label, value, error in zip(classes, each.value, each.standard_error, strict=False)
        }
        for name, each in single.items()
    }


def _measure(name: str) -> str:
    return name.rpartition("/")[2]


def _heading(name: str) -> str:
    """A measure's heading, behind the output's where there are several; a metric's own name."""
    output, _, measure = name.rpartition("/")
    heading = MEASURES[measure].heading if measure in MEASURES else measure
    return f"{output}: {heading}" if output else heading
