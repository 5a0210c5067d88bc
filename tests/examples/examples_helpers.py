"""Runs an example as its user does."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path, *arguments: str) -> str:
    """As a script, with its folder on the path; gives the table that it leaves in `folder`."""
    path = str(EXAMPLES / name)
    monkeypatch.setattr(sys, "argv", [path, *arguments, "--out", str(folder)])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # written by the example; taken out again with the test
    threads = torch.get_num_threads()
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    return (folder / "table.md").read_text(encoding="utf-8")
