"""Results as notebooks show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_invariance.metrics import Estimate
from lightning_invariance.report._numbers import value_with_error
from lightning_invariance.report._table import cells_of
from lightning_invariance.report.html import Table, table_html

if TYPE_CHECKING:
    from lightning_invariance.evaluation._group import InvarianceResults

#: How many rows of an estimate with a value a sample, or an element, are shown.
_ROWS = 20


def estimate_html(estimate: Estimate) -> str:
    """A measure and its standard error; a row for each value where there are several."""
    value, error = (part.detach().cpu() for part in estimate)
    if value.ndim == 0:
        return table_html(Table(["value", "standard error"], [[float(value), float(error)]]))
    shown = value[:_ROWS].reshape(min(len(value), _ROWS), value[0].numel() if len(value) else 1)
    errors = error[:_ROWS].reshape(shown.shape)
    heading = ["", *(["value"] if value.ndim == 1 else map(str, range(shown.shape[1])))]
    rows = [[str(row), *_texts(values, errors[row])] for row, values in enumerate(shown)]
    note = f"{_ROWS} of {len(value)} rows are shown." if len(value) > _ROWS else ""
    return table_html(Table(heading, rows, note=note))


def results_html(results: InvarianceResults) -> str:
    """A row for each measure, or for each element of one that is by element, and a column for each class."""
    elements, classes = results.action.labels[1:], results.classes
    rows = []
    for name, estimate in results.items():
        by_class = results.per_class.get(name)
        if estimate.value.ndim == 0:
            each = [] if by_class is None else _texts(*by_class)
            rows.append([name, *_texts(*estimate), *each, *[""] * (len(classes) - len(each))])
        elif estimate.value.ndim == 1 and len(estimate.value) == len(elements):
            for place, (label, text) in enumerate(zip(elements, _texts(*estimate), strict=True)):
                each = [] if by_class is None else _texts(*(part[:, place] for part in by_class))
                rows.append([f"{name}, {label}", text, *each, *[""] * (len(classes) - len(each))])
        else:
            rows.append([name, f"values of shape {tuple(estimate.value.shape)}", *[""] * len(classes)])
    note = "; ".join(f"{name}: {what}" for name, what in results.found.items() if what)
    heading = ["measure", "all samples" if classes else "value", *classes]
    return table_html(Table(heading, rows, f"Invariance to {results.action!r}", note))


def rows_html(rows: Mapping[str, Mapping[str, float | Estimate]]) -> str:
    """What `markdown_table` makes of the same."""
    heading, cells = cells_of(rows)
    return table_html(Table(["", *heading], [[name, *texts] for name, texts in cells.items()]))


def _texts(values: Tensor, errors: Tensor) -> list[str]:
    pairs = zip(values.flatten().tolist(), errors.flatten().tolist(), strict=True)
    return [value_with_error(value, error) for value, error in pairs]
