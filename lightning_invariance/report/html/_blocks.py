"""What a page is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from lightning_invariance._checks import is_number

if TYPE_CHECKING:
    import matplotlib.figure

Status: TypeAlias = Literal["good", "bad", "note"]
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Table:
    """A table. A click on a heading sorts it; its first column names the rows.

    Attributes:
        heading: a text for each column. If all of them are empty there is no line of headings.
        rows: for each row its cells, one for each column: a text, a number, or None where there is none. A text such as
            "30.9 ± 10.4", "1.2e-09" or "94.6 %" is sorted as the number that it begins with.
        caption: what the table shows.
        note: what a reader has to know, shown below the table.
        sort: whether its rows may be sorted. False where a row belongs to the one above.

    Raises:
        ValueError: if there is no heading, a row has another length, or a cell is none of these.
    """

    heading: Sequence[str]
    rows: Sequence[Sequence[str | float | int | None]]
    caption: str = ""
    note: str = ""
    sort: bool = True

    def __post_init__(self) -> None:
        _check_texts("heading", self.heading)
        if not self.heading:
            raise ValueError("Expected `heading` to name at least one column but got none.")
        _check_sequence("rows", self.rows, "rows")
        for row in self.rows:
            _check_sequence("rows", row, "rows, each a sequence of cells,")
            if len(row) != len(self.heading):
                raise ValueError(f"Expected `rows` to have {len(self.heading)} cells each but got {row!r}.")
            for cell in row:
                if cell is not None and not isinstance(cell, str) and not is_number(cell):
                    raise ValueError(f"Expected `rows` to hold texts, numbers and None but got {cell!r}.")
        _check_text("caption", self.caption)
        _check_text("note", self.note)
        if not isinstance(self.sort, bool):
            raise ValueError(f"Expected `sort` to be True or False but got {self.sort!r}.")


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        image: the content of a PNG or SVG file.
        alt: what the picture shows, for those who do not see it.
        caption: a text below it.

    Raises:
        ValueError: if `image` is no such content, or `alt` is empty.
    """

    image: bytes
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.image, bytes) or not (self.is_png or b"<svg" in self.image[:4096]):
            start = self.image[:20] if isinstance(self.image, bytes) else self.image
            raise ValueError(f"Expected `image` to be the content of a PNG or SVG file but got {start!r}.")
        _check_text("alt", self.alt)
        if not self.alt.strip():
            raise ValueError("Expected `alt` to say what the picture shows but got an empty text.")
        _check_text("caption", self.caption)

    @property
    def is_png(self) -> bool:
        """Whether it is a PNG; otherwise it is an SVG."""
        return self.image.startswith(_PNG)


@dataclass(frozen=True)
class Text:
    """Plain text; a blank line begins a paragraph.

    Attributes:
        text: the text. No markup is read in it.

    Raises:
        ValueError: if it is no text.
    """

    text: str

    def __post_init__(self) -> None:
        _check_text("text", self.text)


@dataclass(frozen=True)
class Items:
    """A list of what is well, what is not, and what is to be known: conditions, findings.

    Attributes:
        items: pairs of a status, "good", "bad" or "note", and a text.

    Raises:
        ValueError: if an item is no such pair.
    """

    items: Sequence[tuple[Status, str]]

    def __post_init__(self) -> None:
        _check_sequence("items", self.items, "pairs of a status and a text")
        for item in self.items:
            if not isinstance(item, tuple) or len(item) != 2 or item[0] not in get_args(Status):
                raise ValueError(
                    f"Expected `items` to hold pairs of a status, one of {list(get_args(Status))}, and a text but got "
                    f"{item!r}."
                )
            _check_text("items", item[1])


Block: TypeAlias = Table | Figure | Text | Items


@dataclass(frozen=True)
class Section:
    """A part of a page under a title of its own.

    Attributes:
        title: its title.
        blocks: what it shows.
        sections: its own parts, below.

    Raises:
        ValueError: if the title is empty, or something else than blocks, or sections, is given.
    """

    title: str
    blocks: Sequence[Block] = ()
    sections: Sequence[Section] = ()

    def __post_init__(self) -> None:
        check_title(self.title)
        check_blocks("blocks", self.blocks)
        check_sections(self.sections)


def figure_of(matplotlib_figure: matplotlib.figure.Figure, alt: str, caption: str = "") -> Figure:
    """A figure of matplotlib as a picture of a page.

    Args:
        matplotlib_figure: the figure, as the functions of `report` give it.
        alt: what the picture shows, for those who do not see it.
        caption: a text below it.

    Returns:
        The picture, a PNG that is sharp on screens of a high resolution and has the figure's own size.

    Raises:
        ValueError: if `matplotlib_figure` is no figure, or `alt` is empty.

    Example:
        >>> from lightning_invariance.report import plot_bars
        >>> from lightning_invariance.report.html import figure_of
        >>> figure = figure_of(plot_bars({"SI": {"DA": 0.3, "IR": 0.9}}), "SI is 0.3 for DA and 0.9 for IR.")
        >>> figure.is_png
        True
    """
    if not callable(getattr(matplotlib_figure, "savefig", None)):
        raise ValueError(f"Expected `matplotlib_figure` to be a figure of matplotlib but got {matplotlib_figure!r}.")
    content = BytesIO()
    # Without the name of the software the same figure gives the same bytes with every version.
    matplotlib_figure.savefig(content, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return Figure(content.getvalue(), alt, caption)


def check_title(title: object) -> None:
    """Raises a `ValueError` unless it is a text that says something."""
    if not isinstance(title, str) or not title.strip():
        raise ValueError(f"Expected `title` to be a text that is not empty but got {title!r}.")


def check_blocks(name: str, blocks: object) -> None:
    """Raises a `ValueError` unless it is a sequence of blocks."""
    _check_sequence(name, blocks, "blocks")
    for block in blocks:  # type: ignore[attr-defined]
        if not isinstance(block, get_args(Block)):
            raise ValueError(f"Expected `{name}` to hold Table, Figure, Text or Items but got {block!r}.")


def check_sections(sections: object) -> None:
    """Raises a `ValueError` unless it is a sequence of sections."""
    _check_sequence("sections", sections, "sections")
    for section in sections:  # type: ignore[attr-defined]
        if not isinstance(section, Section):
            raise ValueError(f"Expected `sections` to hold Section but got {section!r}.")


def check_table(table: object) -> None:
    """Raises a `ValueError` unless it is a table."""
    if not isinstance(table, Table):
        raise ValueError(f"Expected `table` to be a Table but got {table!r}.")


def _check_sequence(name: str, value: object, content: str) -> None:
    # What can be run through only once would be gone after it has been checked.
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise ValueError(f"Expected `{name}` to be a sequence of {content} but got {value!r}.")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"Expected `{name}` to be a text but got {value!r}.")


def _check_texts(name: str, values: object) -> None:
    _check_sequence(name, values, "texts")
    for value in values:  # type: ignore[attr-defined]
        _check_text(name, value)
