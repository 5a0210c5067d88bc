"""A page in a browser: it is opened in frames of a phone's and of a screen's width, and used.

The page is left as it is. It stands in frames of another page, whose script uses it and writes down what it sees.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lightning_invariance.report import plot_bars
from lightning_invariance.report.html import Items, Section, Table, Text, figure_of, page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium")

EVIL = "<script>window.evil = true</script>"
LONG = "a_name_that_breaks_nowhere_" * 4
ROWS = [
    ["b 10", "30.9 ± 10", "94.6 %", "3 of 10"],
    ["b 9", "1.2e-09", "–", ""],
    [EVIL, "12,345 ± 9", "8 %", "10 of 10"],
    ["a", "–", "100.0 %", "4 of 10"],
]

SCRIPT = """
const wait = (frame, address) => new Promise((done) => { frame.onload = () => done(); frame.src = address; });
const texts = (elements) => Array.from(elements, (each) => each.textContent);
const isShown = (element) => element.getClientRects().length > 0;

function luminance(colour) {
  const [r, g, b] = colour.match(/[0-9.]+/g).map(Number)
    .map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// The contrast of a text with what is behind it, as WCAG has it.
function contrast(element, view) {
  let behind = element;
  while (view.getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  const [a, b] = [
    luminance(view.getComputedStyle(element).color),
    luminance(view.getComputedStyle(behind).backgroundColor),
  ];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}

function look(frame) {
  const view = frame.contentWindow, page = frame.contentDocument, root = page.documentElement;
  const seen = {};
  const headings = () => Array.from(page.querySelectorAll("thead th"));
  const rows = () => Array.from(page.querySelectorAll("tbody tr"));
  const table = page.querySelector("table");
  const buttons = Array.from(table.querySelectorAll("thead button"));
  seen.pictures = Array.from(page.images, (image) => image.naturalWidth);
  seen.evil = "evil" in view;
  seen.names = texts(table.querySelectorAll("tbody th"));
  seen.dark = luminance(view.getComputedStyle(page.body).backgroundColor) < 0.1;
  seen.contrast = Math.min(
    ...Array.from(page.querySelectorAll("h1, p, th, td, li, label, legend, caption, figcaption, button, a, .mark"),
      (each) => contrast(each, view)));

  seen.sorted = buttons.map((button, column) => [1, 2, 3].map(() => {
    button.click();
    const directions = Array.from(table.querySelectorAll("thead th"), (each) => each.getAttribute("aria-sort"));
    return [directions, Array.from(table.tBodies[0].rows, (row) => row.cells[0].textContent)];
  }));
  seen.focus = buttons.concat(Array.from(page.querySelectorAll("input"))).map((each) => {
    each.focus();
    return page.activeElement === each;
  });
  seen.lines = Array.from(page.querySelectorAll("td.number")).filter(isShown).map((cell) => {
    const range = page.createRange();
    range.selectNodeContents(cell);
    return range.getClientRects().length;
  });
  seen.chosen = Array.from(page.querySelectorAll("input"), (input) => {
    input.click();
    const parts = Array.from(page.querySelectorAll(".part"), isShown);
    return [input.checked, parts, root.scrollWidth <= root.clientWidth];
  });
  seen.scrolls = Array.from(page.querySelectorAll(".scroll"), (each) => each.scrollWidth > each.clientWidth);

  // On paper: what the style sheet says of print, said of this screen.
  page.querySelector("input").click();
  seen.screen = [isShown(page.querySelector(".chooser")), ...Array.from(page.querySelectorAll(".part"), isShown)];
  const paper = new view.CSSStyleSheet();
  for (const rule of page.styleSheets[0].cssRules)
    if (rule.media && rule.media.mediaText === "print")
      for (const each of rule.cssRules) paper.insertRule(each.cssText, paper.cssRules.length);
  page.adoptedStyleSheets = [paper];
  seen.print = [isShown(page.querySelector(".chooser")), ...Array.from(page.querySelectorAll(".part"), isShown)];
  return seen;
}

async function run() {
  const seen = {};
  for (const frame of document.querySelectorAll("iframe")) {
    await wait(frame, "page.html");
    seen[frame.width] = look(frame);
    await wait(frame, "about:blank");
    await wait(frame, "page.html#part-2-1");
    seen[frame.width].named = Array.from(frame.contentDocument.querySelectorAll(".part"), isShown);
  }
  console.error("the end");
  document.querySelector("pre").textContent = JSON.stringify(seen);
}
run();
"""


def write_page(folder: Path) -> None:
    table = Table(["name", "LI", "accuracy", "passed"], ROWS, caption=f"Measures of all models, {LONG}", note="± SE.")
    wide = Table(["layer", *(f"measure {n}" for n in range(12))], [[LONG, *range(12)]] * 2, caption="Wide")
    bars = plot_bars({name: {"DA": 0.3, "IR": 0.9} for name in ("accuracy", "LI", "SI")})
    findings = Items([("good", f"orbit_share < 0.1 {LONG}"), ("bad", "accuracy > 0.9"), ("note", EVIL)])
    text = page(
        f"Audit {LONG}",
        [Text(f"What is it invariant to?\n\n{LONG}"), findings, table],
        [
            Section(f"C4 {LONG}", [wide, figure_of(bars, "bars", f"Bars {LONG}")], [Section("Layers", [wide])]),
            Section("D4", [figure_of(bars, "bars")], [Section(LONG, [table])]),
        ],
        choose="group",
    )
    (folder / "page.html").write_text(text, encoding="utf-8")
    frames = "".join(f'<iframe width="{width}" height="800"></iframe>' for width in (360, 1280))
    (folder / "frames.html").write_text(
        f"<!DOCTYPE html>{frames}<pre></pre><script>{SCRIPT}</script>", encoding="utf-8"
    )


@pytest.fixture(scope="module", params=["light", "dark"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script saw, by the width of the frame."""
    folder = tmp_path_factory.mktemp("page")
    write_page(folder)
    done = subprocess.run(
        [
            str(BROWSER),
            "--headless",
            "--no-sandbox",  # which root cannot have
            "--disable-gpu",
            "--disable-dev-shm-usage",  # which is small in a container
            "--no-first-run",
            "--allow-file-access-from-files",
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={'0' if request.param == 'dark' else '1'}",
            "--virtual-time-budget=10000",
            "--enable-logging=stderr",
            "--dump-dom",
            (folder / "frames.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    told = re.findall(r'CONSOLE.*?\] "(.*)", source', done.stderr)
    assert told == ["the end"], told  # one that is meant, which proves that others would be seen
    (found,) = re.findall(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    result: dict[str, Any] = json.loads(html.unescape(found))
    for each in result.values():
        assert each["dark"] == (request.param == "dark")
    return result


@pytest.mark.parametrize("width", ["360", "1280"])
def test_a_page_can_be_read_and_used(seen: dict[str, Any], width: str) -> None:
    found = seen[width]
    assert len(found["pictures"]) == 2
    assert min(found["pictures"]) > 100
    assert (found["evil"], found["names"][2]) == (False, EVIL)
    assert found["contrast"] >= 4.5
    assert set(found["lines"]) == {1}
    assert all(found["focus"])
    assert len(found["focus"]) == 4 + 3
    # One part at a time, then all of them; the page itself never scrolls sideways, and wide tables do.
    shown = [[True, False], [False, True], [True, True]]
    assert found["chosen"] == [[True, parts, True] for parts in shown]
    assert found["scrolls"][1]
    assert found["screen"] == [True, True, False]
    assert found["print"] == [False, True, True]
    assert found["named"] == [False, True]


def test_tables_are_sorted_both_ways_and_back(seen: dict[str, Any]) -> None:
    first = [row[0] for row in ROWS]
    up = {
        0: [EVIL, "a", "b 9", "b 10"],
        1: ["b 9", "b 10", EVIL, "a"],  # a dash is last
        2: [EVIL, "b 10", "a", "b 9"],
        3: ["b 10", "a", EVIL, "b 9"],
    }
    down = {
        0: ["b 10", "b 9", "a", EVIL],
        1: [EVIL, "b 10", "b 9", "a"],  # also here
        2: ["a", "b 10", EVIL, "b 9"],
        3: [EVIL, "a", "b 10", "b 9"],
    }
    for each in seen.values():
        for column, clicks in enumerate(each["sorted"]):
            assert [names for _, names in clicks] == [up[column], down[column], first]
            for (directions, _), direction in zip(clicks, ("ascending", "descending", "none"), strict=True):
                assert directions == [direction if other == column else "none" for other in range(4)]
