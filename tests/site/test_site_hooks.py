"""The API has every public name, names become links, formulas MathML, and what is missing fails the build."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import lightning_invariance

DOCS = Path(__file__).parents[2] / "docs"
markdown = pytest.importorskip("markdown")
pytest.importorskip("griffe")
pytest.importorskip("latex2mathml")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("hooks")
    finally:
        sys.path.remove(str(DOCS))


def given_on(module: ModuleType) -> set[str]:
    """The classes and functions of the package that a module has under public names."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith("lightning_invariance")
    }


def test_all_that_can_be_imported_has_an_entry(hooks: ModuleType) -> None:
    rooms = [room for room in pkgutil.iter_modules(lightning_invariance.__path__) if room.ispkg]
    names = given_on(lightning_invariance)
    for room in rooms:
        names |= given_on(importlib.import_module(f"lightning_invariance.{room.name}"))
    assert {path.rsplit(".", 1)[1] for path in hooks.MEMBERS} >= names
    assert len(names) > 100


def test_what_has_no_page_or_no_docstring_is_a_warning(
    hooks: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = SimpleNamespace(docs_dir=str(DOCS))
    with caplog.at_level(logging.WARNING):
        hooks.on_pre_build(config)
    assert caplog.messages == []
    silent = SimpleNamespace(path="lightning_invariance.new.f", final_target=SimpleNamespace(docstring=None))
    monkeypatch.setitem(hooks.ROOMS, "lightning_invariance.new", {"f": silent})
    monkeypatch.setitem(hooks.MEMBERS, silent.path, silent)
    with caplog.at_level(logging.WARNING):
        hooks.on_pre_build(config)
    assert caplog.messages == [
        "No page of docs/api holds the public names of lightning_invariance.new: f.",
        "lightning_invariance.new.f is public and has no docstring.",
    ]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("`C4()` here", '<autoref identifier="lightning_invariance.C4" optional=""><code>C4()</code></autoref>'),
        ("`report.plot_worst`", '<autoref identifier="lightning_invariance.report.plot_worst" optional="">'),
        ("`c4`", "<p><code>c4</code></p>"),
        ("## `C4`", "<h2><code>C4</code></h2>"),
        ("[`C4`](x.md)", '<a href="x.md"><code>C4</code></a>'),
        ("shape :math:`x_1`", "<msub><mi>x</mi><mn>1</mn></msub>"),
        (".. math::\n    x_1\n\nnot in it", "<p>not in it</p>"),
        ("a | b\n--- | ---\n1.5 ± 0.2 | " + 5 * "words ", '<td class="prose">words'),
        ("a | b\n--- | ---\n1.5 ± 0.2 | words", "<td>1.5 ± 0.2</td>"),
    ],
)
def test_markdown(hooks: ModuleType, written: str, shown: str) -> None:
    assert shown in markdown.markdown(written, extensions=["tables", hooks.SiteMarkdown()])


def test_a_formula_that_is_not_understood_is_a_warning(hooks: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    hooks.mathml(r"\unheard x")
    assert caplog.messages == [r"\unheard is not understood in the formula \unheard x"]


@pytest.mark.parametrize(
    ("html", "count"),
    [
        ('<script src="https://example.org/x.js">', 1),
        ('<link rel="stylesheet" href="https://example.org/x.css">', 1),
        ("<img src=//example.org/x.png>", 1),
        ('<script src="assets/x.js"><a href="https://example.org">', 0),
    ],
)
def test_what_is_fetched_from_elsewhere_is_a_warning(
    hooks: ModuleType, html: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    hooks.on_post_page(html, page=SimpleNamespace(file=SimpleNamespace(src_uri="x.md")))
    assert len(caplog.messages) == count
