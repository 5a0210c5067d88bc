"""What the site adds to MkDocs: the pages of the API, links from names to them, and formulas without a script.

A page of the API says which rooms of the package it holds, ``<!-- names: lightning_invariance.actions -->``, and all
public names of these stand there. A public name is one that an ``__init__.py`` gives on. One without a page, or
without a docstring, is a warning, and the site is built with ``--strict``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import griffe
from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from markdown.treeprocessors import Treeprocessor

PACKAGE = "lightning_invariance"
ROOT = Path(__file__).parents[1]
DIRECTIVE = re.compile(r"<!-- names: (?P<rooms>[\w. ]+) -->")
SUMMARIES = "<!-- all names -->"

log = logging.getLogger("mkdocs.hooks.names")


# Public names ------------------------------------------------------------------------------------------------------


def public_names(package: griffe.Module) -> dict[str, dict[str, griffe.Alias]]:
    """The public names by room: those of each subpackage, and those that the package itself takes from a module.

    A name is listed once, in the first room that gives it on, by the shortest path that a user can import it from.
    """
    rooms: dict[str, dict[str, griffe.Alias]] = {}
    seen: set[str] = set()
    public = [module for module in package.modules.values() if not module.name.startswith("_") and module.is_subpackage]
    for module in [package, *public]:
        for name, member in module.members.items():
            if not member.is_alias or name.startswith("_") or member.final_target.is_module:
                continue
            if not member.target_path.startswith(PACKAGE + ".") or member.final_target.path in seen:
                continue
            seen.add(member.final_target.path)
            room = ".".join(member.target_path.split(".")[:2]) if module is package else module.path
            rooms.setdefault(room, {})[name] = member
    return rooms


def summary(member: griffe.Alias) -> str:
    """The first sentence of a docstring, one line."""
    docstring = member.final_target.docstring
    first = "" if docstring is None else " ".join(docstring.value.strip().split("\n\n")[0].split())
    in_math = re.sub(r":math:`[^`]*`", lambda found: found[0].replace("|", r"\vert "), first)
    return in_math.replace("|", "\\|")


ROOMS = public_names(griffe.load(PACKAGE, search_paths=[str(ROOT)], resolve_aliases=True))
MEMBERS = {member.path: member for members in ROOMS.values() for member in members.values()}


def ways_to_say(path: str) -> tuple[str, str, str]:
    """How a page writes a public name in code: alone, with its room, in full."""
    return path.rsplit(".", 1)[-1], path.removeprefix(PACKAGE + "."), path


LINKS = {said: path for path in MEMBERS for said in ways_to_say(path)}


# Pages of the API --------------------------------------------------------------------------------------------------


def on_pre_build(config: Any) -> None:
    """Warns of public names without a page or a docstring."""
    pages = sorted(Path(config.docs_dir, "api").glob("*.md"))
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    listed = [room for text in texts.values() for found in DIRECTIVE.finditer(text) for room in found["rooms"].split()]
    for room in sorted(ROOMS.keys() - set(listed)):
        log.warning("No page of docs/api holds the public names of %s: %s.", room, ", ".join(ROOMS[room]))
    for room in sorted(set(listed) - ROOMS.keys()):
        log.warning("A page of docs/api holds %s, which has no public names of its own.", room)
    for path in sorted(path for path, member in MEMBERS.items() if not summary(member)):
        log.warning("%s is public and has no docstring.", path)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the entries of a page of the API, or the list of all names, where its comment stands."""
    markdown = DIRECTIVE.sub(lambda found: "\n\n".join(entries(found["rooms"].split())), markdown)
    return markdown.replace(SUMMARIES, "\n".join(tables())) if SUMMARIES in markdown else markdown


def entries(rooms: list[str]) -> Iterator[str]:
    """What mkdocstrings makes the documentation of each name of."""
    for room in rooms:
        for name in sorted(ROOMS.get(room, {}), key=str.lower):
            yield f"::: {ROOMS[room][name].path}"


def tables() -> Iterator[str]:
    """All names, with their first sentences."""
    yield "| name | what it is |\n|---|---|"
    for path, member in sorted(MEMBERS.items(), key=lambda each: each[1].name.lower()):
        yield f"| [`{path.removeprefix(PACKAGE + '.')}`][{path}] | {summary(member)} |"


FROM_ELSEWHERE = re.compile(
    r"<(?:script|img|iframe)[^>]+src=.?(?:https?:)?//|<link[^>]+(?:stylesheet|preconnect)[^>]+//"
)


def on_post_page(output: str, page: Any, **_: Any) -> None:
    """Warns of a page that would fetch something: a script, a style, a font, an image."""
    for found in FROM_ELSEWHERE.findall(output):
        log.warning("%s fetches from elsewhere: %s", page.file.src_uri, found)


# Markdown ----------------------------------------------------------------------------------------------------------


def mathml(latex: str, display: str = "inline") -> str:
    """A formula as browsers draw it."""
    html: str = convert(latex.replace(r"\arg\max", r"\operatorname{argmax}"), display=display)
    for command in re.findall(r"\\[A-Za-z]+", html):
        log.warning("%s is not understood in the formula %s", command, latex)
    return html


class _BlocksOfMath(Preprocessor):
    """``.. math::`` of docstrings, and ``$$ ... $$`` of pages, as MathML."""

    block = re.compile(r"^\.\. math::\n+((?:[ ]+\S[^\n]*\n?)+)|^\$\$(.+?)\$\$$", re.MULTILINE | re.DOTALL)

    def run(self, lines: list[str]) -> list[str]:
        def formula(found: re.Match[str]) -> str:
            latex = " ".join((found[1] or found[2]).split())
            html = f'<div class="formula">{mathml(latex, display="block")}</div>'
            return f"\n\n{self.md.htmlStash.store(html)}\n\n"

        return self.block.sub(formula, "\n".join(lines)).split("\n")


class _MathInLine(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # type: ignore[override]
        return self.md.htmlStash.store(mathml(m[1])), m.start(0), m.end(0)


class _NamesAreLinks(Treeprocessor):
    """Makes ``InvarianceMonitor(...)``, in code, a link to its entry in the API."""

    said = re.compile(r"([A-Za-z_][\w.]*)(\(.*\))?", re.DOTALL)

    def run(self, root: Element) -> None:
        self.visit(root)

    def visit(self, parent: Element) -> None:
        for index, child in enumerate(list(parent)):
            if child.tag in {"a", "autoref", "pre", "h1", "h2", "h3", "h4", "h5", "h6"}:
                continue
            found = self.said.fullmatch(child.text or "") if child.tag == "code" else None
            path = LINKS.get(found[1]) if found else None
            if path is None:
                self.visit(child)
                continue
            link = Element("autoref", {"identifier": path, "optional": ""})
            link.tail, child.tail = child.tail, None
            link.append(child)
            parent[index] = link


class _Cells(Treeprocessor):
    """Says which cells of a table are prose: only those may be broken over lines."""

    def run(self, root: Element) -> None:
        for cell in root.iter("td"):
            length = len("".join(cell.itertext()))
            if length > 28:
                cell.set("class", "prose" if length <= 90 else "prose long")


class SiteMarkdown(Extension):
    """Formulas, tables and links, on pages and in docstrings."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(_BlocksOfMath(md), "blocks_of_math", 15)  # behind fences
        md.inlinePatterns.register(_MathInLine(r":math:`([^`]+)`", md), "math_in_line", 195)  # before code
        md.treeprocessors.register(_Cells(md), "cells", 9)
        md.treeprocessors.register(_NamesAreLinks(md), "names_are_links", 8)  # behind inline patterns


def on_config(config: Any) -> None:
    """Adds the Markdown above to that of the site."""
    config.markdown_extensions.append(SiteMarkdown())
