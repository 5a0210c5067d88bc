"""Pages of results: cells that people can read, tables as Markdown, and the marks in a page that tables go between."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from lightning_invariance.report import value_with_error, zeros_note
from lightning_invariance.report.html import Table

#: Below this, an error or a share is what rounding leaves, and is shown as 0.
EXACT = 1e-7
_IN_PERCENT = ("accuracy", "worst_case_orbit_accuracy")
_ZERO_IF_INVARIANT = ("logit_invariance_error", "distribution_invariance_error", "orbit_share")


def shown(measure: str, value: float, deviation: float | None = None) -> str:
    """A measure as tables show it; accuracies are in per cent, which their heading says."""
    if measure in _IN_PERCENT:
        return value_with_error(value, deviation, percent=True).removesuffix(" %")
    return value_with_error(value, deviation, zero_below=EXACT if measure in _ZERO_IF_INVARIANT else 0.0)


def exactness(values: Iterable[float]) -> str:
    """What a 0 stands for in a table of these errors and shares, as a sentence; empty if it has none."""
    note = zeros_note(values, zero_below=EXACT)
    return f"{note[0].upper()}{note[1:]}." if note else ""


def markdown(table: Table) -> str:
    """A table as Markdown: its caption in bold, its note below."""
    lines = ["| " + " | ".join(table.heading) + " |", "|---" * len(table.heading) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in table.rows]
    parts = [f"**{table.caption}**" if table.caption else "", "\n".join(lines), table.note.strip()]
    return "\n\n".join(part for part in parts if part)


def filled(text: str, tables: Mapping[str, Table]) -> str:
    """A page whose tables, each between two marks that name it, are replaced by those given.

    Raises:
        KeyError: if the page has a mark for a table that is not there.
    """
    return _MARKED.sub(lambda found: f"{found[1]}\n{markdown(tables[found[2]])}\n{found[3]}", text)


_MARKED = re.compile(r"(<!-- table: ([\w-]+) -->)\n.*?(<!-- end of table -->)", re.DOTALL)
