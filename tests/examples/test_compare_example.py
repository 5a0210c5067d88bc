"""The comparison of the examples runs, and tells the tied networks from the others."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "compare.py"


def test_compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("escnn")
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # written by the example; taken out again with the test
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--epochs", "1", "--rounds", "1", "--out", str(tmp_path)])
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    errors = {row[0]: float(row[head.index("LI")].split()[0]) for row in rows}
    assert list(errors) == ["DA", "IR", "pooled", "escnn C4"]
    assert max(errors["pooled"], errors["escnn C4"]) < 1e-6 * min(errors["DA"], errors["IR"])
    ratios = {row[0]: float(row[head.index("training step / DA's")]) for row in rows}
    assert ratios["DA"] == 1
    assert min(ratios.values()) > 0
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
