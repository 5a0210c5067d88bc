"""The demo runs, says the same twice, and what it says of a tied network is true."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples_helpers import run_example


def run(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    return run_example(monkeypatch, "digits.py", folder, "--epochs", "1")


def test_digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = run(monkeypatch, tmp_path / "first")
    rows = {cells[1]: cells[2:] for cells in ([c.strip() for c in line.split("|")] for line in table.splitlines()[2:])}
    assert list(rows) == [f"{model}, {data}" for data in ("test", "drift β = 0.2") for model in ("DA", "IR", "WT")]
    for data in ("test", "drift β = 0.2"):
        assert float(rows[f"WT, {data}"][2].split()[0]) < 1e-8
        assert float(rows[f"DA, {data}"][2].split()[0]) > 1e-4
    assert table in capsys.readouterr().out
    for name in ("training.png", "drift.png", "saliency.png"):
        assert (tmp_path / "first" / name).read_bytes().startswith(b"\x89PNG")
    assert run(monkeypatch, tmp_path / "second") == table
