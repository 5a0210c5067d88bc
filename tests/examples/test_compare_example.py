"""The comparison of the examples runs, and tells the tied networks from the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples_helpers import run_example


def test_compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("escnn")
    table = run_example(monkeypatch, "compare.py", tmp_path, "--epochs", "1", "--rounds", "1")
    assert table in capsys.readouterr().out
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    errors = {row[0]: float(row[head.index("LI")].split()[0]) for row in rows}
    assert list(errors) == ["DA", "IR", "pooled", "escnn C4"]
    assert max(errors["pooled"], errors["escnn C4"]) < 1e-6 * min(errors["DA"], errors["IR"])
    ratios = {row[0]: float(row[head.index("training step / DA's")]) for row in rows}
    assert ratios["DA"] == 1
    assert min(ratios.values()) > 0
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
