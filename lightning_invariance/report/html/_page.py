"""A page as one HTML file."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256

from lightning_invariance.report.html._blocks import (
    Block,
    Figure,
    Items,
    Section,
    Table,
    Text,
    check_blocks,
    check_sections,
    check_title,
)
from lightning_invariance.report.html._escape import escaped
from lightning_invariance.report.html._picture import size_of_png
from lightning_invariance.report.html._script import SCRIPT
from lightning_invariance.report.html._style import STYLE
from lightning_invariance.report.html._table import table_on_page

_MARKS = {"good": ("✓", "Good: "), "bad": ("✗", "Problem: "), "note": ("•", "Note: ")}
_DEEPEST = 6  # HTML has headings of six levels.
_WIDE = 640  # A picture of more pixels than this cannot be read when it is shrunk to a phone: it scrolls.


def page(title: str, summary: Sequence[Block], sections: Sequence[Section], *, choose: str | None = None) -> str:
    """A page as one HTML file, which needs nothing from elsewhere.

    It can be read on a phone, in the dark, on paper, by keyboard and by a screen reader. A click on a heading sorts a
    table. Everything from data is escaped.

    Args:
        title: the page's title.
        summary: what stands first.
        sections: the parts of the page.
        choose: what the sections are, "group" for instance, if a reader looks at one of them at a time and chooses
            which. All of them are shown on paper, and where scripts do not run. None shows one below the other.

    Returns:
        The content of the file, to be written as UTF-8.

    Raises:
        ValueError: if an argument is none of these, sections are more than five deep, or there is none to choose from.

    Example:
        >>> from lightning_invariance.report.html import Items, Section, Table, page
        >>> table = Table(["measure", "value"], [["orbit share", 0.0123], ["LI", "30.9 ± 10.4"]], caption="Measures")
        >>> passed = Items([("good", "orbit_share < 0.05")])
        >>> html = page("Audit", [passed], [Section("C4", [table]), Section("D4", [table])], choose="group")
        >>> html.startswith("<!DOCTYPE html>"), html.count("<h1>"), html.count("<h2")
        (True, 1, 2)
    """
    check_title(title)
    check_blocks("summary", summary)
    check_sections(sections)
    if choose is not None and (not isinstance(choose, str) or not choose.strip()):
        raise ValueError(f"Expected `choose` to be a text that is not empty, or None, but got {choose!r}.")
    if choose is not None and not sections:
        raise ValueError("Expected `sections` to hold at least one section to choose but got none.")
    identities = [f"part-{number}" for number in range(1, len(sections) + 1)]
    body = [f"<header><h1>{escaped(title)}</h1></header>\n<main>\n"]
    if summary:
        body.append(f'<section class="summary" aria-label="Summary">\n{_blocks(summary, "summary")}</section>\n')
    if len(sections) > 1:
        way = _contents(sections, identities) if choose is None else _chooser(choose, sections, identities)
        body.append(way)
    for section, identity in zip(sections, identities, strict=True):
        body.append(_section(section, identity, 2, ' class="part"' if choose is None else ' class="part choice"'))
    body.append("</main>\n")
    # What runs and what styles the page is named by its hash: anything else that found its way in would be refused.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(STYLE)}'; script-src '{_hash(SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{''.join(body)}<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _hash(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()


def _contents(sections: Sequence[Section], identities: Sequence[str]) -> str:
    links = (
        f'<li><a href="#{identity}">{escaped(section.title)}</a></li>'
        for section, identity in zip(sections, identities, strict=True)
    )
    return f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>\n'


def _chooser(choose: str, sections: Sequence[Section], identities: Sequence[str]) -> str:
    """Hidden until the script runs, without which it would do nothing."""
    choices = [
        *((identity, section.title) for identity, section in zip(identities, sections, strict=True)),
        ("", "all"),
    ]
    buttons = (
        f'<label><input type="radio" name="choice" value="{value}" autocomplete="off"> {escaped(text)}</label>\n'
        for value, text in choices
    )
    legend = escaped(choose[0].upper() + choose[1:])
    return f'<fieldset class="chooser" hidden><legend>{legend}</legend>\n{"".join(buttons)}</fieldset>\n'


def _section(section: Section, identity: str, level: int, kind: str = "") -> str:
    if level > _DEEPEST:
        raise ValueError(f"Expected `sections` to be at most {_DEEPEST - 1} deep but {section.title!r} is deeper.")
    inner = "".join(
        _section(each, f"{identity}-{number}", level + 1) for number, each in enumerate(section.sections, start=1)
    )
    return (
        f'<section{kind} id="{identity}" aria-labelledby="{identity}-title">\n'
        f'<h{level} id="{identity}-title">{escaped(section.title)}</h{level}>\n'
        f"{_blocks(section.blocks, identity)}{inner}</section>\n"
    )


def _blocks(blocks: Sequence[Block], identity: str) -> str:
    return "".join(_block(block, f"{identity}-block-{number}") + "\n" for number, block in enumerate(blocks, start=1))


def _block(block: Block, identity: str) -> str:
    if isinstance(block, Table):
        return table_on_page(block, identity)
    if isinstance(block, Figure):
        return _figure(block)
    if isinstance(block, Text):
        paragraphs = re.split(r"\n\s*\n", block.text.strip())
        return "".join(f"<p>{escaped(' '.join(each.split()))}</p>" for each in paragraphs if each)
    return _items(block)


def _figure(figure: Figure) -> str:
    kind, size, wide = "svg+xml", "", ""
    if figure.is_png:
        width, height = size_of_png(figure.image)
        kind, size = "png", f' width="{width}" height="{height}"'
        wide = ' class="wide"' if width > _WIDE else ""
    source = f"data:image/{kind};base64,{b64encode(figure.image).decode()}"
    image = f'<img src="{source}" alt="{escaped(figure.alt)}"{size}{wide}>'
    caption = f"<figcaption>{escaped(figure.caption)}</figcaption>" if figure.caption.strip() else ""
    if wide:
        label = escaped(figure.caption or "Picture")
        image = f'<div class="scroll" role="group" tabindex="0" aria-label="{label}">{image}</div>'
    return f"<figure>{image}{caption}</figure>"


def _items(items: Items) -> str:
    lines = []
    for status, text in items.items:
        mark, spoken = _MARKS[status]
        lines.append(
            f'<li class="{status}"><span class="mark" aria-hidden="true">{mark}</span>'
            f'<span><span class="spoken">{spoken}</span>{escaped(text)}</span></li>\n'
        )
    return f'<ul class="items">\n{"".join(lines)}</ul>' if lines else ""
