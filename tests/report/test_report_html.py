"""A page is well formed, shows what it was given, and takes nothing from elsewhere."""

from __future__ import annotations

import re
import struct
import zlib
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_invariance.report import plot_bars
from lightning_invariance.report.html import Figure, Items, Section, Table, Text, figure_of, page, table_html

VOID = {"meta", "img", "input", "link", "br", "hr"}

TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "h1", "h2", "p", "script"),
    *("fieldset", "legend", "label", "input", "figure", "img", "figcaption", "ul", "li"),
    *("div", "table", "caption", "span", "thead", "tbody", "tr", "th", "td"),
}


class Read(HTMLParser):
    """What a strict reader finds: every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes)
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in tags]


def png(width: int, height: int, per_metre: int | None = None) -> bytes:
    """A grey picture, written by the letter of its format."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))]
    if per_metre:
        parts.append(chunk(b"pHYs", struct.pack(">IIB", per_metre, per_metre, 1)))
    parts.append(chunk(b"IDAT", zlib.compress((b"\x00" + b"\x80" * width) * height)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10"><rect width="20" height="10"/></svg>'
TABLE = Table(["model", "LI"], [["DA", "30.9 ± 10.4"], ["WT", None]], caption="Models", note="SE over samples.")


def test_a_page_is_well_formed_and_can_be_read_out():
    inner = Section("Layers", [TABLE, Figure(png(3, 2), "a grey picture")], [Section("First", [Text("One.\n\nTwo.")])])
    sections = [Section("C4", [TABLE, Figure(SVG, "a black picture", "Black.")], [inner]), Section("D4", [TABLE])]
    for choose in (None, "group"):
        read = Read(
            page("Audit", [Items([("good", "a < b"), ("bad", "c"), ("note", "d")]), TABLE], sections, choose=choose)
        )
        assert [tag for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)] == ["h1", "h2", "h3", "h4", "h2"]
        assert len(read.all("main")) == len(read.all("h1")) == len(read.all("title")) == 1
        identities = [each["id"] for _, each in read.tags if "id" in each]
        assert len(set(identities)) == len(identities)
        named = [
            name for _, each in read.tags for name in (each.get("aria-labelledby"), each.get("href", "")[1:]) if name
        ]
        assert set(named) <= set(identities)
        assert all(each["alt"] for each in read.all("img"))
        assert {each["scope"] for each in read.all("th")} == {"col", "row"}
        assert len(read.all("table")) == len(read.all("caption")) == 4
        assert all(each["name"] == "choice" for each in read.all("input"))
        assert len(read.all("input")) == (0 if choose is None else 3)  # C4, D4, all
        assert not read.all("link", "iframe", "base", "form", "object")
        for _, each in read.tags:
            assert not [name for name in each if name.startswith("on") or name == "style"]
            assert each.get("src", "data:image/").startswith("data:image/")
            assert each.get("href", "#").startswith("#")
        (policy,) = [
            each["content"] for each in read.all("meta") if each.get("http-equiv") == "Content-Security-Policy"
        ]
        assert policy.startswith("default-src 'none'; img-src data:;")
        assert "unsafe" not in policy


def test_nothing_is_hidden_before_the_script_runs():
    read = Read(page("Audit", [], [Section("C4", [TABLE]), Section("D4", [TABLE])], choose="group"))
    assert [tag for tag, each in read.tags if "hidden" in each] == ["fieldset"]


def test_pictures_have_the_size_that_they_state():
    per_metre = round(192 / 0.0254)  # two pixels for one of CSS
    images = [png(300, 100), png(300, 100, per_metre), png(2000, 10)]
    read = Read(page("Sizes", [Figure(each, "a picture") for each in images], []))
    sizes = [(each["width"], each["height"], each.get("class")) for each in read.all("img")]
    assert sizes == [("300", "100", None), ("150", "50", None), ("2000", "10", "wide")]
    figure = plot_bars({"SI": {"DA": 0.3}})
    (image,) = Read(page("Bars", [figure_of(figure, "a bar")], [])).all("img")
    width, height = figure.get_size_inches() * 96
    assert (float(image["width"]), float(image["height"])) == pytest.approx((width, height), abs=1)


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        (30.94, "30.94"),
        ("30.9 ± 10", "30.9"),
        ("1.2e-09", "1.2e-09"),
        ("94.6 %", "94.6"),
        ("94.6 ± 0.4 %", "94.6"),
        ("0.0339 ± 9e-05", "0.0339"),
        ("12,345,678", "12345678.0"),
        ("−0.5", "-0.5"),
        ("+1.3 ± 0.1", "1.3"),
        ("< 0.01", "0.01"),
        ("1.4 (3 of 4 seeds)", "1.4"),
        ("150 ms", "150.0"),
        ("∞", "Infinity"),
        (float("-inf"), "-Infinity"),
        ("–", ""),
        ("", ""),
        (None, ""),
        (float("nan"), ""),
        ("C4", None),
        ("3 of 4", None),
        ("1,2", None),
        ("10⁻²", None),
        ("2024-05-01", None),
    ],
)
def test_cells_are_sorted_by_the_number_that_they_begin_with(cell, number):
    sorted_by = Read(page("Cells", [Table(["a", "b"], [["row", cell]])], [])).all("td")[0].get("data-number")
    assert sorted_by == number


def test_a_column_is_one_of_numbers_if_all_that_it_holds_are():
    table = Table(["name", "number", "text", "none"], [["a", "1 ± 2", "1", None], ["b", "–", "C4", "–"]])
    read = Read(page("Columns", [table], []))
    assert [each.get("class") for each in read.all("th")[:4]] == [None, "number", None, None]
    assert [each.get("class") for each in read.all("td")] == ["number", "whole", None, "number", None, None]


def test_rows_that_belong_together_are_not_sorted():
    for table, sortable in ((TABLE, "sortable"), (Table(["a"], [["1"], ["2"]], sort=False), None)):
        assert Read(page("Table", [table], [])).all("table")[0].get("class") == sortable


def test_columns_without_names_have_no_headings():
    about = Table(["", ""], [["seeds", "4"], ["epochs", "80"]])
    read = Read(page("About", [about], []))
    assert read.all("thead") == []
    assert read.texts["th"] == ["seeds", "epochs"]
    read = Read(page("Corner", [Table(["", "LI"], [["DA", "1"], ["IR", "2"]])], []))
    assert read.texts["th"] == ["LI", "DA", "IR"]
    assert read.texts["td"] == ["", "1", "2"]


def test_a_table_for_notebooks_has_its_style_inside():
    read = Read(table_html(TABLE))
    assert {tag for tag, _ in read.tags} == {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
    assert not [each for _, each in read.tags if "id" in each or "class" in each]
    assert read.texts["td"] == ["30.9 ± 10.4", "–"]
    assert all("color" not in re.sub("rgba.*?;", "", each.get("style", "")) for _, each in read.tags)


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), min_size=1).filter(str.strip) | st.sampled_from(
    [
        "<script>alert(1)</script>",
        "\"'><img src=x onerror=alert(1)>",
        "]]>",
        "<!--",
        "&lt;b&gt;",
        "</title>",
        "</style>",
    ]
)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_what_comes_from_data_is_shown_as_it_is(text):
    table = Table([text, "b"], [[text, text]], caption=text, note=text)
    figure = Figure(SVG, text, caption=text)
    section = Section(text, [table, figure, Text(text), Items([("bad", text)])])
    html = page(text, [], [section, Section("other")], choose=text)
    read = Read(html)
    assert {tag for tag, _ in read.tags} <= TAGS
    assert len(read.all("script")) == len(read.all("style")) == len(read.all("img")) == 1
    assert read.all("img")[0]["alt"] == text
    for tag in ("title", "h1", "figcaption"):
        assert read.texts[tag] == [text]
    assert text in read.texts["h2"]
    assert read.texts["th"] == [text, "b", text]
    assert read.texts["td"] == [text]
    assert read.texts["span"][0] == text  # the caption
    assert " ".join(text.split()) in read.texts["p"]
    assert text[1:] in read.texts["legend"][0]
    assert Read(table_html(table)).texts["td"] == [text]


def test_what_no_file_can_hold_is_replaced():
    html = page("a\x00b\ud800c", [Text("\x1b[31m")], [])
    assert html.encode("utf-8").count("\ufffd".encode()) == 5  # title and heading have two each
