"""The example and the study of invariant weights run from end to end, and say of tied networks what is true."""

from __future__ import annotations

import gzip
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.invariant_weights_study import plan, runs, settings
from examples.invariant_weights_study.methods import METHODS
from examples.invariant_weights_study.report import PAGE, RESULTS, write_report
from examples.invariant_weights_study.results import Results, read
from examples.invariant_weights_study.tables import aim_table, methods_table, tables_of
from examples.pages import filled
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
    assert "| project + DA |" in write_report(tmp_path)
    found = runs.result_of(tied[0], tmp_path)
    (read_again,) = read(tmp_path / "results.json").of(settings.MAIN, tied[0].method)
    assert (read_again.run, read_again.kept, read_again.parameters) == (found.run, found.kept, found.parameters)
    assert read_again.test.keys() == found.test.keys()
    for measure, numbers in found.test.items():
        assert read_again.test[measure] == pytest.approx(numbers, rel=1e-3, nan_ok=True)
    load.cache_clear()


def made(method: str, seed: int, accuracy: float, sigma: float, error: float = 3e-11) -> runs.Result:
    """A result of which the study's tables read accuracy, LI and σ_max."""
    test = {
        "accuracy": (accuracy, 0.01),
        "worst_case_orbit_accuracy": (accuracy, 0.01),
        "logit_invariance_error": (error, 0.01),
        "saliency_invariance_similarity": (0.96, 0.01),
        "dithered_saliency_invariance_similarity": (1.0, 0.0),
        "orbit_share": (error / 1000, 0.01),
        "jacobian_spectral_norm": (sigma, 0.1),
    }
    return runs.Result(runs.Run(*settings.MAIN, method, seed), test, [0.5, accuracy], 2, 32745, (1.0, 2.0))


def test_the_aim_asks_for_costs_too_and_compares_the_same_seeds() -> None:
    found = [made("DA", seed, accuracy, sigma=4.0, error=10.0) for seed, accuracy in enumerate((0.90, 0.92, 0.94, 0.1))]
    found += [made("merge", seed, accuracy, sigma=2.0) for seed, accuracy in enumerate((0.91, 0.92, 0.95))]
    times = {("CNN", "C4"): {"merge": {"step": 1.2, "inference": 1.1}}}
    (row,) = aim_table(Results(found, times, {})).rows
    # 1, 0 and 1 points over DA's: mean 0.667, standard error 0.577 / √3. The fourth seed of DA has no partner.
    assert row == ["CNN, C4, MNIST", "merge", "+0.7 ± 0.3", "0.960", "0", "0.500", "1.20", "1.10", "σ_max, step"]


def test_an_exact_network_has_zeros_and_the_note_says_how_small_they_are() -> None:
    found = [made("DA", seed, accuracy, 4.0, error) for seed, accuracy, error in ((0, 0.90, 10.0), (1, 0.92, 12.0))]
    found += [made("merge", seed, 0.95, 4.0) for seed in range(2)]
    table = methods_table(Results(found, {}, {}))
    (plain, exact) = (dict(zip(table.heading, row, strict=True)) for row in table.rows)
    # Standard deviations of two numbers: their distance over √2.
    assert (plain["LI"], plain["accuracy %"]) == ("11.0 ± 1.4", "91.0 ± 1.4")
    assert (exact["LI"], exact["orbit share"]) == ("0", "0")
    assert table.note.endswith("0: below 1e-10, rounding.")


def test_the_page_is_made_of_the_numbers_in_the_repository() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("<!-- table: ") == 4
    assert filled(text, tables_of(read(RESULTS))) == text


def test_every_planned_run_has_a_method_and_a_rate() -> None:
    planned = [run for job in plan.jobs(settings.Settings(Path(), Path(), Path())) for run in job]
    assert len(planned) == len(set(planned))
    for run in planned:
        method = METHODS[run.method]
        assert method.length == "none" or (method.rate or run.method) in settings.RATES[run.network]
        assert method.start is None or replace(run, method=method.start) in planned
