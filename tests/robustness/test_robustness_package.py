"""Nothing is executed that was read, what is shown is escaped, and what is optional may be missing."""

from __future__ import annotations

import ast
import html
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lightning_invariance
from lightning_invariance.report import markdown_table, plot_curves

PACKAGE = Path(lightning_invariance.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
PROJECT = Path(__file__).parents[2] / "pyproject.toml"


# Nothing that is read is executed --------------------------------------------------------------------------------

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "subprocess", "yaml", "runpy"}
BUILTINS = {"eval", "exec", "compile", "__import__", "breakpoint"}
CALLS = {("torch", "load"), ("torch.serialization", "load"), ("torch.jit", "load"), ("torch.hub", "load")}
CALLS |= {("os", "system"), ("os", "popen"), ("numpy", "load"), ("np", "load")}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def dangers(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [module] if module.split(".")[0] in MODULES else []
            found += [f"{module}.{alias.name}" for alias in node.names if (module, alias.name) in CALLS]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += [node.func.id] if node.func.id in BUILTINS else []
        elif isinstance(node, ast.Attribute) and (dotted(node.value), node.attr) in CALLS:
            found.append(dotted(node))
    return found


def test_the_search_finds_what_it_looks_for() -> None:
    for source in (
        "import pickle",
        "from pickle import loads",
        "import torch\nx = torch.load(path, weights_only=False)",
        "from torch import load",
        "def f():\n    return eval(text)",
        "exec(text)",
        "import os\nos.system(text)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
    ):
        assert dangers(source) != [], source


def test_nothing_unpickles_or_executes() -> None:
    found = {str(path): dangers(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {path: calls for path, calls in found.items() if calls} == {}


# What is shown is escaped ----------------------------------------------------------------------------------------


def cells(line: str) -> list[str]:
    """The cells of a row as a Markdown reader splits it: at pipes that no backslash escapes."""
    parts, current, escaped = [], "", False
    for character in line:
        if character == "|" and not escaped:
            parts.append(current)
            current = ""
        else:
            current += character
        escaped = character == "\\" and not escaped
    return [part.strip() for part in parts[1:]]


def rendered(cell: str) -> str:
    """The text that a Markdown reader shows for escapes and entities."""
    return html.unescape(re.sub(r"\\([\\`*|\[\]])", r"\1", cell))


NAMES = [
    "a|b",
    "a\\|b",
    "ends in \\",
    "\\\\|",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt; & co",
    "![x](https://example.org/x.png)",
    "[x](javascript:alert(1))",
    "`code` *bold* **bolder**",
    "orbit_share",
    "ν = 10⁻²",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_table_are_shown_as_they_are(name: str) -> None:
    lines = markdown_table({name: {name: 1.0}}, corner=name).splitlines()
    assert [len(cells(line)) for line in lines] == [2, 2, 2]
    for cell in (*cells(lines[0]), cells(lines[2])[0]):  # the corner, the measure and the model
        assert rendered(cell) == name
        assert re.search(r"(?<!\\)[<>`*\[\]]", cell) is None
        assert "<" not in cell


def test_a_name_with_a_line_break_stays_in_its_row() -> None:
    for line_break in ("\n", "\r", "\r\n", "\u2028", "\x85", "\v"):
        table = markdown_table({f"a{line_break}| b | c |": {f"L{line_break}I": 1.0}}, corner=f"x{line_break}y")
        assert len(table.splitlines()) == 3
        assert cells(table.splitlines()[0]) == ["x y", "L I"]
        assert cells(table.splitlines()[2])[1:] == ["1.00"]


@pytest.mark.parametrize("name", ["$\\frac{$", "$\\nosuchcommand$", "a $ b $ c"])
def test_names_in_a_figure_are_no_formulae(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = plot_curves({name: {name: [1.0, 2.0]}}, [1, 2], name)
    figure.savefig(tmp_path / "curves.png")
    texts = [figure.axes[0].get_title(), figure.axes[0].get_legend().get_texts()[0].get_text()]
    assert [text.replace("\\$", "$") for text in texts] == [name, name]


def test_every_curve_is_in_the_legend() -> None:
    pytest.importorskip("matplotlib")
    figure = plot_curves({"LI": {"_hidden": [1.0, 2.0], "shown": [2.0, 3.0]}}, [1, 2], "epoch")
    names = [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["_hidden", "shown"]


# Dependencies ----------------------------------------------------------------------------------------------------


def core_dependencies() -> list[str]:
    text = PROJECT.read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = (\[.*?\])", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    requirements: list[str] = ast.literal_eval(listed[1])
    return requirements


def test_the_core_dependencies_are_those_that_are_imported() -> None:
    imported = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    # matplotlib and pandas are optional, and tqdm is what Lightning's own progress bars are made with.
    third_party = imported - set(sys.stdlib_module_names) - {"lightning_invariance", "matplotlib", "pandas", "tqdm"}
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in core_dependencies()}  # type: ignore[index]
    assert third_party == names


def test_core_dependencies_have_both_bounds() -> None:
    for requirement in core_dependencies():
        assert re.search(r">=\s*\d", requirement)
        assert re.search(r"<\s*\d", requirement)


# Without what is optional ----------------------------------------------------------------------------------------

SCRIPT = """
import importlib.machinery
import pkgutil
import sys
import warnings

warnings.simplefilter("ignore")


BLOCKED = {"escnn", "captum", "sklearn", "lie_learn"}


class Lacking(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else super().find_spec(name, path, target)


place = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[place] = Lacking
import torch

import lightning_invariance as li
from lightning_invariance import baselines, functional, report

x = torch.randn(6, 1, 4, 4)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
metric = li.LogitInvarianceError()
outputs = li.evaluate_orbit(network, x, li.C4())
metric.update(outputs.logits.detach(), outputs.orbit_logits.detach())
results = li.evaluate_invariance(network, [x], li.C4(), progress=False)
assert torch.allclose(metric.compute(), results["logit_invariance_error"].value)
assert "saliency_invariance_similarity" in results
print(report.markdown_table({"network": results}))
for module in pkgutil.walk_packages(li.__path__, "lightning_invariance."):
    importlib.import_module(module.name)
assert not BLOCKED & {name.split(".")[0] for name in sys.modules}
# lie_learn is imported by escnn, which does not come alone: escnn without it is no escnn.
for missing in (BLOCKED, {"lie_learn"}):
    BLOCKED = missing
    for needs_escnn in (lambda: baselines.SteerableClassifier("C4", 1, 10, 28), lambda: baselines.action_of("C4")):
        try:
            needs_escnn()
        except ModuleNotFoundError as error:
            print(error)
"""


def test_it_works_without_the_optional_packages() -> None:
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "| network |" in done.stdout
    for name in ("SteerableClassifier", "action_of"):
        assert done.stdout.count(f"{name} needs escnn: pip install 'numpy<2'") == 2
    assert done.stdout.count("pip install --no-deps 'escnn>=1.0.11,<2' lie_learn==0.0.2") == 4
