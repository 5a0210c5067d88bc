"""Every snippet of the README and of the site runs, in the order in which its page has it.

A page is one session: its blocks of Python share their names. Blocks with ``>>>`` are doctests, the others are
executed. What a reader need not see stands in a comment, ``<!-- setup``, up to ``-->``. A comment right above a block
says where it does not run:

- ``<!-- needs: transformers -->``: where that package is not installed;
- ``<!-- not run: needs GPUs -->``: nowhere.

A block with a title, ``title="config.yaml"``, is a file that the blocks behind it find.

Numbers with a decimal point may differ by a quarter: another processor rounds otherwise, and trains another network.
"""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_invariance.evaluation import MEASURES
from lightning_invariance.evaluation._sources import SOURCES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAY_BE_MISSING = {"escnn", "timm", "transformers", "jsonargparse"}
NOT_RUN = {"needs GPUs", "reads the command line"}

PART = re.compile(
    r"(?:<!-- (?P<mark>needs|not run): (?P<why>[^>]*?) -->\n)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?[^\n]*\n'
    r"(?P<code>.*?)^```$"
    r"|^<!-- setup\n(?P<setup>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d*(?:e[+-]?\d+)?|(?<![\w.])-?\d+e[+-]?\d+")


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    code: str
    needs: str | None = None
    not_run: str | None = None
    title: str | None = None


def blocks_of(text: str) -> Iterator[Block]:
    for found in PART.finditer(text):
        inside = "setup" if found["setup"] is not None else "code"
        yield Block(
            line=text.count("\n", 0, found.start(inside)),
            language="python" if inside == "setup" else found["language"],
            code=found[inside],
            needs=found["why"] if found["mark"] == "needs" else None,
            not_run=found["why"] if found["mark"] == "not run" else None,
            title=found["title"],
        )


class NearlyEqual(doctest.OutputChecker):
    """As doctest's, but for numbers with a decimal point, which may differ by a quarter."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        if super().check_output(want, got, optionflags):
            return True
        wanted, given = (NUMBER.findall(each) for each in (want, got))
        if len(wanted) != len(given) or not all(
            float(a) == pytest.approx(float(b), rel=0.25) for a, b in zip(wanted, given, strict=True)
        ):
            return False
        return super().check_output(NUMBER.sub("0.0", want), NUMBER.sub("0.0", got), optionflags)


def run(block: Block, names: dict[str, Any], page: Path) -> None:
    if ">>>" not in block.code:
        exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(block.code, names, page.name, str(page), block.line)
    test.globs = names  # what a block defines, the next one knows
    said: list[str] = []
    runner = doctest.DocTestRunner(NearlyEqual(), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    if runner.run(test, out=said.append, clear_globs=False).failed:
        pytest.fail("".join(said), pytrace=False)


@pytest.fixture
def _registries_as_they_were() -> Iterator[None]:
    """What a page registers is gone afterwards."""
    before = [(registry, dict(registry)) for registry in (MEASURES, SOURCES)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`")  # a Trainer with its default logger
@pytest.mark.usefixtures("_registries_as_they_were")
@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(page)])  # which LightningCLI reads
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of how Lightning calls it
    names: dict[str, Any] = {"__name__": "__main__"}
    torch.manual_seed(0)
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if block.title is not None:
            (tmp_path / block.title).write_text(block.code, encoding="utf-8")
        if block.language != "python":
            assert ">>>" not in block.code, f"line {block.line}: a session that is not marked as Python"
            continue
        if block.not_run is not None:
            assert block.not_run in NOT_RUN, f"line {block.line}: {block.not_run!r} is no reason that is known"
        elif block.needs is not None:
            assert block.needs in MAY_BE_MISSING, f"line {block.line}: {block.needs!r} may not be missing"
            if find_spec(block.needs) is not None:
                run(block, names, page)
        else:
            run(block, names, page)


def test_commands_name_what_is_there() -> None:
    """``make``, ``python examples/...`` and ``pip install '.[extra]'`` of all pages."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(re.findall(r"^(\w+) = \[", project.split("[project.optional-dependencies]")[1], re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        commands = [line for block in blocks_of(text) if not block.language for line in block.code.splitlines()]
        for line in [*commands, *re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)]:
            assert set(re.findall(r"^make ([\w-]+)", line)) <= targets, line
            for path in re.findall(r"python (examples/[\w/]+\.py)", line):
                assert (ROOT / path).is_file(), line
            for module in re.findall(r"python -m ((?:examples|benchmarks)[\w.]*)", line):
                path = ROOT / module.replace(".", "/")
                assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), line
            for names in re.findall(r"(?:lightning-invariance|-e '?\.|install '?\.)\[([\w,]+)\]", line):
                assert set(names.split(",")) <= extras, line


def test_links_of_the_readme_lead_somewhere() -> None:
    """MkDocs looks at those of the pages; these two are read on the repository's page."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
        assert links
        assert [link for link in links if "://" not in link and not (ROOT / link).is_file()] == []


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8")) <= 6_000


# The test itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("got", ["0.93 of 3", "0.80 of 3"])
def test_numbers_may_differ_by_a_quarter(got: str) -> None:
    assert NearlyEqual().check_output("0.91 of 3\n", got + "\n", 0)


@pytest.mark.parametrize("got", ["0.6 of 3", "0.91 of 4", "0.91 in 3", "0.91 of 3, 0.1", "True"])
def test_and_by_no_more(got: str) -> None:
    assert not NearlyEqual().check_output("0.91 of 3\n", got + "\n", 0)


def test_a_wrong_session_fails(tmp_path: Path) -> None:
    (block,) = blocks_of("```python\n>>> 1 + 1\n3\n```\n")
    with pytest.raises(pytest.fail.Exception, match="Expected"):
        run(block, {}, tmp_path / "page.md")
