"""Pages of results, and numbers as people read them."""

from __future__ import annotations

from typing import Any

from bad_input import *

from lightning_invariance.report import html

PNG = b"\x89PNG\r\n\x1a\n"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'/>"


def cells_of(cell: Any) -> Any:
    return html.Table(["a"], [[cell]])


name = "report.html.Table"
refuse_each(name, "`heading` to be a sequence of texts but got", html.Table, ["ab", 3, None, {"a"}], rows=[])
refuse(name, "`heading` to be a text but got 3", html.Table, ["a", 3], [])
refuse(name, "`heading` to name at least one column but got none", html.Table, [], [])
for rows in ("ab", 3, None, iter([["b"]])):
    refuse(name, "`rows` to be a sequence of rows but got", html.Table, ["a"], rows)
refuse_each(name, "`rows` to be a sequence of rows, each .* but got", html.Table, [["b"], [3]], "rows", heading=["a"])
refuse(name, r"`rows` to have 2 cells each but got \['c'\]", html.Table, ["a", "b"], [["c"]])
refuse_each(name, "`rows` to hold texts, numbers and None but got", cells_of, [True, [1], b"a", torch.ones(1), 1j])
for argument in ("caption", "note"):
    pattern = f"`{argument}` to be a text but got"
    refuse_each(name, pattern, html.Table, [None, 3, b"a"], argument, heading=["a"], rows=[])
refuse_each(name, "`sort` to be True or False but got", html.Table, [None, "yes"], "sort", heading=["a"], rows=[])

name = "report.html.Figure"
images = [b"", b"GIF89a", "<svg/>", None, 3]
refuse_each(name, "`image` to be the content of a PNG or SVG file but got", html.Figure, images, alt="a")
refuse_each(name, "`alt` to be a text but got", html.Figure, [None, 3], "alt", image=SVG)
refuse_each(name, "`alt` to say what the picture shows but got an empty text", html.Figure, ["", " "], "alt", image=SVG)
refuse(name, "`caption` to be a text but got None", html.Figure, SVG, "a", None)

refuse_each("report.html.Text", "`text` to be a text but got", html.Text, [None, 3, ["a"], b"a"])

name = "report.html.Items"
refuse_each(name, "`items` to be a sequence of pairs of a status and a text but got", html.Items, [None, 3, "good"])
pattern = "`items` to hold pairs of a status, one of .*, and a text but got"
refuse_each(name, pattern, html.Items, [["good"], [("fine", "a")], [("good",)], [["good", "a"]], [(["good"], "a")]])
refuse(name, "`items` to be a text but got 3", html.Items, [("good", 3)])

for name, function, options in (
    ("report.html.Section", html.Section, {}),
    ("report.html.page", html.page, {"summary": [], "sections": []}),
):
    titles = [None, 3, "", " ", b"a"]
    refuse_each(name, "`title` to be a text that is not empty but got", function, titles, "title", **options)
    blocks, options = ("summary" if options else "blocks"), {"title": "a", **options}
    options.pop(blocks, None)
    refuse_each(name, f"`{blocks}` to be a sequence of blocks but got", function, [3, None, "ab"], blocks, **options)
    wrong = [["ab"], [html.Section("a")], [SVG]]
    refuse_each(name, f"`{blocks}` to hold Table, Figure, Text or Items but got", function, wrong, blocks, **options)
    options = {**options, blocks: []}
    options.pop("sections", None)
    refuse_each(name, "`sections` to be a sequence of sections but", function, [3, None, "a"], "sections", **options)
    refuse(name, "`sections` to hold Section but got", function, sections=[html.Text("a")], **options)
pattern = "`choose` to be a text that is not empty, or None, but got"
refuse_each(name, pattern, html.page, [3, "", " ", True], "choose", title="a", summary=[], sections=[])
refuse(name, "`sections` to hold at least one section to choose but got none", html.page, "a", [], [], choose="group")
deep = html.Section("6")
for level in range(5, 0, -1):
    deep = html.Section(str(level), sections=[deep])
refuse(name, "`sections` to be at most 5 deep but '6' is deeper", html.page, "a", [], [deep])
give(name, lambda text: "<h6" in text, html.page, "a", [], deep.sections)
refuse(
    name,
    "`image` to be the content of a PNG file but its head is not whole",
    html.page,
    "a",
    [html.Figure(PNG, "a")],
    [],
)
give(name, lambda text: "<table" in text, html.page, "a", [html.Table(["a"], [])], [])

refuse_each("report.html.table_html", "`table` to be a Table but got", html.table_html, [None, 3, "a", [["a"]]])

name = "report.html.figure_of"
refuse_each(name, "`matplotlib_figure` to be a figure of matplotlib but got", html.figure_of, [None, 3, SVG], alt="a")
refuse(name, "`alt` to say what .* but got", html.figure_of, report.plot_bars({"SI": {"DA": 0.3}}), "")

# Numbers ---------------------------------------------------------------------------------------------------------

name = entry(report.value_with_error, value=1.0)
refuse_each(name, "`value` to hold a number but got", report.value_with_error, ["1", None, True, 1j, torch.ones(1)])
for error, pattern in (("1", "hold a number"), (True, "hold a number"), (-1.0, "be at least 0")):
    refuse(name, f"`error` to {pattern} but got", report.value_with_error, 1.0, error)
give(name, lambda text: text == "–", report.value_with_error, NAN, 1.0)
name = entry(report.zeros_note, values=[1.0], zero_below=0.0)
refuse_each(name, "`values` to hold numbers but got", report.zeros_note, [None, 3, "a"], zero_below=0.0)
refuse(name, "`values` to hold a number but got 'a'", report.zeros_note, ["a"], zero_below=0.0)
for name, function, value in (
    ("report.value_with_error", report.value_with_error, 1.0),
    ("report.zeros_note", report.zeros_note, [1.0]),
):
    pattern = "`zero_below` to be a finite number of at least 0 but got"
    for bound in (-1e-9, NAN, "a", None):
        refuse(name, pattern, function, value, zero_below=bound)
