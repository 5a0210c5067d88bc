"""A table as HTML, on a page and in a notebook."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isinf, isnan

from lightning_invariance.report._numbers import value_with_error
from lightning_invariance.report.html._blocks import Table, check_table
from lightning_invariance.report.html._escape import escaped

_LONG = 20  # characters; a text of more gets a column that is wide enough to read it
_MISSING = ("", "–", "—", "-")
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
#: A number, perhaps behind a comparison, perhaps with an error and a short unit.
_NUMBER = re.compile(
    rf"[<>≤≥≈~]?\s*(?P<number>[+\-−]?(?:∞|(?:{_DIGITS})(?:[eE][+\-−]?\d+)?))"
    rf"(?:\s*±\s*(?:∞|(?:{_DIGITS})(?:[eE][+\-−]?\d+)?))?\s*(?:[%‰°×]|[A-Za-zµ]{{1,3}})?(?:\s*\([^()]*\))?"
)

#: For notebooks, which have no style sheet of ours: their own colours, in the light and in the dark.
_NOTEBOOK_STYLES = {
    "scroll": "max-width:100%;overflow-x:auto",
    "table": "border-collapse:collapse;margin:0.5em 0",
    "caption": "text-align:left;padding:0.3em 0;font-weight:bold",
    "text": "text-align:left;padding:0.25em 0.8em;border-bottom:1px solid rgba(128,128,128,0.4)",
    "number": "text-align:right;padding:0.25em 0.8em;border-bottom:1px solid rgba(128,128,128,0.4);white-space:nowrap",
    "long": "text-align:left;padding:0.25em 0.8em;border-bottom:1px solid rgba(128,128,128,0.4);min-width:14em",
    "note": "margin:0.3em 0;font-size:90%;opacity:0.8",
}


def table_html(table: Table) -> str:
    """A table as a piece of HTML with its style inside, for notebooks.

    Args:
        table: the table.

    Returns:
        The HTML: no script, no style sheet, nothing from elsewhere. Everything from data is escaped.

    Raises:
        ValueError: if `table` is no `Table`.

    Example:
        >>> from lightning_invariance.report.html import Table, table_html
        >>> html = table_html(Table(["model", "LI"], [["<DA>", 30.94], ["WT", None]]))
        >>> "&lt;DA&gt;" in html, "30.9" in html, "<script" in html
        (True, True, False)
    """
    check_table(table)
    styles = {name: f' style="{style}"' for name, style in _NOTEBOOK_STYLES.items()}
    styles |= {"long number": styles["number"], "number among texts": styles["text"]}
    return f"<div{styles['scroll']}>{_table(table, styles, '')}</div>{_note(table, styles['note'])}"


def table_on_page(table: Table, identity: str) -> str:
    """A table in a container that scrolls, whose parts the page's style sheet and script know by their classes."""
    sortable = table.sort and len(table.rows) > 1 and _has_heading(table)
    styles = {
        "table": ' class="sortable"' if sortable else "",
        "caption": f' id="{identity}"',
        "text": "",
        "long": ' class="long"',
        "number": ' class="number"',
        "long number": ' class="number long"',
        "number among texts": ' class="whole"',
    }
    # A container that scrolls can be reached by the keyboard, and says what it is.
    name = escaped(" ".join(["Table", *filter(None, table.heading[:3])]))
    label = f'aria-labelledby="{identity}"' if table.caption.strip() else f'aria-label="{name}"'
    inner = _table(table, styles, "span")
    return f'<div class="scroll" role="group" tabindex="0" {label}>{inner}</div>' + _note(table, ' class="note"')


def number_in(cell: str | float | int | None) -> float | None:
    """The number by which a cell is sorted: NaN where there is nothing, None where it is a text."""
    if cell is None:
        return float("nan")
    if not isinstance(cell, str):
        return float(cell)
    if cell.strip() in _MISSING:
        return float("nan")
    found = _NUMBER.fullmatch(cell.strip())
    if found is None:
        return None
    return float(found["number"].replace(",", "").replace("−", "-").replace("∞", "inf"))


def _table(table: Table, styles: dict[str, str], in_caption: str) -> str:
    numbers = [[number_in(cell) for cell in row] for row in table.rows]
    numeric = [_is_numeric([row[column] for row in numbers]) for column in range(len(table.heading))]
    parts = [f"<table{styles['table']}>"]
    if table.caption.strip():
        caption = escaped(table.caption)
        # On a page the text stays in view while the table scrolls below it, which takes an element of its own.
        inner = f"<{in_caption}>{caption}</{in_caption}>" if in_caption else caption
        parts.append(f"<caption{styles['caption']}>{inner}</caption>")
    if _has_heading(table):
        parts.append(f"<thead><tr>{_heading(table.heading, numeric, styles)}</tr></thead>\n")
    parts.append("<tbody>")
    for row, values in zip(table.rows, numbers, strict=True):
        parts.append("<tr>")
        for column, (cell, number) in enumerate(zip(row, values, strict=True)):
            text = _text(cell)
            names_row = column == 0 and len(row) > 1 and bool(text.strip())
            tag = "th" if names_row else "td"
            scope = ' scope="row"' if names_row else ""
            if numeric[column]:
                style = styles["number"]
            elif number is None or isnan(number):
                style = styles["long" if len(text) > _LONG else "text"]
            else:
                style = styles["number among texts"]
            parts.append(f"<{tag}{scope}{style}{_sorted_by(number)}>{escaped(text)}</{tag}>")
        parts.append("</tr>\n")
    parts.append("</tbody></table>")
    return "".join(parts)


def _has_heading(table: Table) -> bool:
    return any(text.strip() for text in table.heading)


def _heading(heading: Sequence[str], numeric: Sequence[bool], styles: dict[str, str]) -> str:
    cells = []
    for text, is_number in zip(heading, numeric, strict=True):
        style = styles["number" if is_number else "text"]
        if len(text) > _LONG:
            style = styles["long number" if is_number else "long"]
        # An empty heading would be read out as one.
        cells.append(f'<th scope="col"{style}>{escaped(text)}</th>' if text.strip() else f"<td{style}></td>")
    return "".join(cells)


def _is_numeric(values: Sequence[float | None]) -> bool:
    known = [value for value in values if value is None or not isnan(value)]
    return bool(known) and None not in known


def _text(cell: str | float | int | None) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else value_with_error(float(cell))


def _sorted_by(number: float | None) -> str:
    """The number as the script reads it; empty where there is nothing, which is sorted last."""
    if number is None:
        return ""
    if isinf(number):
        return f' data-number="{"-" if number < 0 else ""}Infinity"'
    return f' data-number="{"" if isnan(number) else repr(number)}"'


def _note(table: Table, style: str) -> str:
    return f"<p{style}>{escaped(table.note)}</p>" if table.note.strip() else ""
