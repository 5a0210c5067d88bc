"""Results as a table."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from math import isnan

from lightning_invariance.metrics import Estimate


def markdown_table(rows: Mapping[str, Mapping[str, float | Estimate]], corner: str = "") -> str:
    """A Markdown table of models and their measures.

    Args:
        rows: for each model, its measures: numbers, or an `Estimate`, shown as value ± standard error. A model that
            lacks a measure has a dash.
        corner: the heading of the first column.

    Returns:
        The table.

    Raises:
        ValueError: if there are no rows.

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
    if not rows:
        raise ValueError("Expected `rows` to hold at least one model but got none.")
    columns = list(dict.fromkeys(name for measures in rows.values() for name in measures))
    lines = [_line([corner, *columns]), "|---" * (len(columns) + 1) + "|"]
    for model, measures in rows.items():
        lines.append(_line([model, *(_cell(measures.get(name)) for name in columns)]))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _escaped(text: str) -> str:
    """Shown as it is wherever the table is: no HTML, no Markdown, no line of its own."""
    return re.sub(r"([\\`*|\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _cell(value: float | Estimate | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, Estimate):
        error = float(value.standard_error)
        return f"{float(value.value):.3g}" + ("" if isnan(error) else f" ± {error:.2g}")
    return f"{value:.3g}"
