"""Each example runs as its user runs it, on little data, and what it says of tied networks is true."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import lightning_invariance
from lightning_invariance import IntegratedGradients, PaperSaliency
from lightning_invariance.report import value_with_error

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs an example as a script, with its folder on the path; gives its table by row and heading."""

    def run(name: str, folder: Path, *arguments: str) -> dict[str, dict[str, str]]:
        path = str(EXAMPLES / name)
        monkeypatch.setattr(sys, "argv", [path, *arguments, "--out", str(folder)])
        monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # written by the example; taken out again with the test
        for kind in (IntegratedGradients, PaperSaliency):  # a few points of the path will do
            monkeypatch.setattr(lightning_invariance, kind.__name__, partial(kind, steps=2))
        threads = torch.get_num_threads()
        try:
            runpy.run_path(path, run_name="__main__")
        finally:
            torch.set_num_threads(threads)
        table = (folder / "table.md").read_text(encoding="utf-8")
        assert table in capsys.readouterr().out
        head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
        return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}

    monkeypatch.syspath_prepend(str(EXAMPLES))
    return run


def test_digits_says_the_same_twice(run, tmp_path: Path) -> None:
    rows = run("digits.py", tmp_path / "first", "--epochs", "1")
    assert list(rows) == [
        f"{model}, {data}" for data in ("test", "drift β = 0.2") for model in ("DA", "IR", "IW", "WT")
    ]
    for data in ("test", "drift β = 0.2"):
        assert float(rows[f"WT, {data}"]["LI"].split()[0]) < 1e-8
        assert float(rows[f"DA, {data}"]["LI"].split()[0]) > 1e-4
    for name in ("training.png", "drift.png", "saliency.png"):
        assert (tmp_path / "first" / name).read_bytes().startswith(b"\x89PNG")
    assert run("digits.py", tmp_path / "second", "--epochs", "1") == rows


def test_compare_tells_the_tied_networks_from_the_others(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("escnn")
    digits = importlib.import_module("digits")
    data = digits.load_data()
    for part, count in (("train", 256), ("test", 20)):
        setattr(data, part, TensorDataset(*getattr(data, part)[:count]))
    monkeypatch.setattr(digits, "load_data", lambda: data)
    rows = run("compare.py", tmp_path, "--epochs", "1", "--rounds", "1")
    errors = {name: float(row["LI"].split()[0]) for name, row in rows.items()}
    assert list(errors) == ["DA", "IR", "pooled", "escnn C4"]
    assert max(errors["pooled"], errors["escnn C4"]) < 1e-6 * min(errors["DA"], errors["IR"])
    ratios = {name: float(row["training step / DA's"]) for name, row in rows.items()}
    assert ratios["DA"] == 1
    assert min(ratios.values()) > 0
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_study_of_maps_shows_what_it_measured(run, tmp_path: Path) -> None:
    rows = run("saliency_choice.py", tmp_path, "--quick")
    results = json.loads((tmp_path / "saliency_choice.json").read_text(encoding="utf-8"))
    assert list(results["networks"]) == ["perceptron", "CNN", "ResNet", "ViT"]
    dithered = "gradient, dither 1e-3"
    for kind, states in results["networks"].items():
        assert list(states) == ["exact", "augmented", "untrained"]
        assert states["exact"]["logit_invariance_error"] < 1e-20
        assert min(states[each]["logit_invariance_error"] for each in ("augmented", "untrained")) > 1e-6
        assert states["exact"]["similarity"][dithered][0] == pytest.approx(1, abs=1e-4)
        assert all(cost[kind] > 0 for cost in results["costs"].values())
    for kind in ("CNN", "ResNet"):  # with max-pooling, on a flat background
        assert results["networks"][kind]["exact"]["similarity"]["gradient"][0] < 0.9
    assert not [missed for missed in results["missed"][dithered] if "exact" in missed]
    value, error = results["networks"]["ViT"]["untrained"]["similarity"]["gradient"]
    assert rows["ViT, untrained"]["gradient"] == value_with_error(value, error)
