"""The paper's experiments run from end to end, resume, and say of a tied network what is true."""

from __future__ import annotations

import gzip
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples.paper import __main__ as paper
from examples.paper.blends import blends
from examples.paper.data import Source, TransformingImages, load, sizes_for
from examples.paper.runs import Run, result_of
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


def test_results_written_before_a_run_could_keep_its_last_epoch_are_read(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    run = {"group": "R4", "model": "DA", "seed": 0, "epochs": 300, "weight": 0.0, "train_size": None}
    stored = {"run": run, "test": {}, "val": {}, "drift": {}, "parameters": 1, "best_epoch": 145, "seconds": 1.0}
    (tmp_path / "runs" / "R4-DA-w0-e300-s0.json").write_text(json.dumps(stored), encoding="utf-8")
    result = result_of(Run("R4", "DA", 0, 300), tmp_path)
    assert result is not None
    assert result.kept_epoch == 145
    assert result_of(Run("R4", "DA", 0, 300, keep="last"), tmp_path) is None


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
    arguments = ["--quick", "--out", str(tmp_path)]
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
    # As its user starts it, with processes of its own: one run is missing, the others are found. (On other images,
    # which are read faster.)
    write_mnist(tmp_path, 300)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    missing = tmp_path / "runs" / "T3-WT-w0-e4-s0.json"
    missing.unlink()
    command = [sys.executable, "-m", "examples.paper", *arguments, "--jobs", "1", "--mnist-folder", str(tmp_path)]
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
    assert len(results["claims"]) == 5
    last = [result for result in results["results"] if result["run"]["keep"] == "last"]
    assert [result["kept_epoch"] + 1 for result in last] == [result["run"]["epochs"] for result in last]
    assert {(result["run"]["group"], result["run"]["model"]) for result in last} == {("R4", "DA"), ("T3", "DA")}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 6
