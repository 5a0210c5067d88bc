"""Results as a table."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

from torch import Tensor

from lightning_invariance._checks import is_number
from lightning_invariance.metrics import Estimate
from lightning_invariance.report._numbers import value_with_error


def markdown_table(rows: Mapping[str, Mapping[str, float | Estimate]], corner: str = "") -> str:
    """A Markdown table of models and their measures. Names are shown as they are: Markdown and HTML are escaped.

    Args:
        rows: for each model, its measures: numbers, integers in full, or an `Estimate`, shown as value ± standard
            error by `value_with_error`. A model that lacks a measure, or has NaN, has a dash.
        corner: the heading of the first column.

    Returns:
        The table.

    Raises:
        ValueError: if there are no rows, or one holds no measures, or a measure is no number.

    Example:
        >>> import torch
        >>> from lightning_invariance import Estimate
        >>> from lightning_invariance.report import markdown_table
        >>> li = Estimate(torch.tensor(32.5), torch.tensor(1.2))
        >>> print(markdown_table({"DA": {"accuracy": 0.868, "LI": li}, "WT": {"accuracy": 0.922, "LI": 0.0}}))
        |  | accuracy | LI |
        |---|---|---|
        | DA | 0.868 | 32.5 ± 1.2 |
        | WT | 0.922 | 0 |
    """
    columns, cells = cells_of(rows)
    lines = [_line([_escaped(corner), *map(_escaped, columns)]), "|---" * (len(columns) + 1) + "|"]
    lines += [_line([_escaped(model), *texts]) for model, texts in cells.items()]
    return "\n".join(lines)


def cells_of(rows: Mapping[str, Mapping[str, float | Estimate]]) -> tuple[list[str], dict[str, list[str]]]:
    """The columns' headings, and each row's texts; see `markdown_table`."""
    if not rows:
        raise ValueError("Expected `rows` to hold at least one model but got none.")
    if not isinstance(rows, Mapping) or not all(isinstance(measures, Mapping) for measures in rows.values()):
        raise ValueError(f"Expected `rows` to map each model to a mapping of its measures but got {rows!r}.")
    columns = list(dict.fromkeys(name for measures in rows.values() for name in measures))
    return columns, {model: [_cell(name, measures.get(name)) for name in columns] for model, measures in rows.items()}


def is_single(value: object) -> bool:
    """Whether it is a number, or an `Estimate` of one."""
    parts = value if isinstance(value, Estimate) else (value,)
    return all(is_number(part) or (isinstance(part, Tensor) and part.numel() == 1) for part in parts)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: object) -> str:
    """Shown as it is wherever the table is: no HTML, no Markdown, no line of its own."""
    return re.sub(r"([\\`*|\[\]])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def _cell(name: object, value: object) -> str:
    if value is None:
        return "–"
    if not is_single(value):
        raise ValueError(f"Expected `rows` to hold numbers or Estimates of one value but got {value!r} for {name!r}.")
    if isinstance(value, Estimate):
        return value_with_error(float(value.value), float(value.standard_error))
    return value_with_error(value if isinstance(value, int) else float(value))  # type: ignore[arg-type]
