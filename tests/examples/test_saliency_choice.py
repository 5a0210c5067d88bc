"""The study of maps runs, its invariant networks are invariant, and its table holds what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from examples_helpers import run_example


def test_saliency_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = run_example(monkeypatch, "saliency_choice.py", tmp_path, "--quick")
    assert table in capsys.readouterr().out
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
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    shown = {row[0]: row[head.index("gradient")] for row in rows}
    value, error = results["networks"]["ViT"]["untrained"]["similarity"]["gradient"]
    assert shown["ViT, untrained"] == f"{value:.3g} ± {error:.2g}"
