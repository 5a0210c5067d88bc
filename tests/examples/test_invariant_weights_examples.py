"""The example and the study of invariant weights run from end to end, and say of tied networks what is true."""

from __future__ import annotations

import gzip
import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.invariant_weights_study import plan, runs, settings, tables
from examples.invariant_weights_study.methods import METHODS
from examples.paper.data import load

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_ends_with_exactly_invariant_networks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    arguments = ["invariant_weights.py", "--out", str(tmp_path), "--epochs", "1", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(EXAMPLES / "invariant_weights.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    found = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
    assert list(found) == ["DA", "invariant weights", "merged"]
    errors = {name: float(row["LI"].split()[0]) for name, row in found.items()}
    assert max(errors["invariant weights"], errors["merged"]) < 1e-6 * errors["DA"]
    for name in ("invariant weights", "merged"):
        assert found[name]["accuracy"].split()[0] == found[name]["worst-case orbit accuracy"].split()[0]
    # 16, 32 and 64 channels are 4, 8 and 16 fields; of a kernel between fields a quarter is free.
    assert re.search(r"4\.weight +32×16×3×3 +8 regular, 4 regular, 3 places, 3 places +25\.0 %", said)
    assert (tmp_path / "saliency.png").read_bytes().startswith(b"\x89PNG")


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.mark.filterwarnings("ignore:Few fields")
def test_the_study_trains_measures_resumes_and_judges(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for part in ("train", "t10k"):
        images, labels = generator.integers(0, 256, (120, 28, 28)), generator.integers(0, 10, 120)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    load.cache_clear()
    chosen = settings.Settings(tmp_path, tmp_path, None, (96, 32, 32), seeds=1, explained=2, quick=True)
    job = tuple(run for run in plan.jobs(chosen)[0] if run.method in ("DA", "DA, projected"))
    tied = [replace(job[0], method=method) for method in settings.CHOSEN["CNN"]]
    for run in (*job, *tied):
        runs.execute(run, chosen)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").glob("*.json")}
    assert len(files) == 4
    runs.execute(tied[0], chosen)  # is there already
    assert {file: file.stat().st_mtime_ns for file in files} == files
    for run in (job[1], *tied):
        found = runs.result_of(run, tmp_path)
        assert found is not None
        assert found.test["logit_invariance_error"][0] < 1e-6
        assert found.test["worst_case_orbit_accuracy"][0] == pytest.approx(found.test["accuracy"][0])
    assert runs.result_of(job[0], tmp_path).test["logit_invariance_error"][0] > 1e-4
    markdown = tables.write_tables(tmp_path, tmp_path / "study.json")
    assert "| project + DA |" in markdown
    judged = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert judged
    load.cache_clear()


def test_every_planned_run_has_a_method_and_a_rate() -> None:
    planned = [run for job in plan.jobs(settings.Settings(Path(), Path(), Path())) for run in job]
    assert len(planned) == len(set(planned))
    for run in planned:
        method = METHODS[run.method]
        assert method.length == "none" or (method.rate or run.method) in settings.RATES[run.network]
        assert method.start is None or replace(run, method=method.start) in planned
