"""Callbacks in a Trainer of two processes: the monitor's numbers and the regularizer's weights."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed_worker
import pytest
import torch

import lightning_invariance

_ALL = 9
_MINUTES = 3

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed support"),
    pytest.mark.filterwarnings(
        "ignore:The '.*dataloader' does not have many workers",
        "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
        "ignore:The number of training batches .* is smaller than the logging interval",
    ),
]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where two processes, started once for all tests, wrote their results."""
    package = Path(lightning_invariance.__file__).parents[1]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "NODE_RANK": "0",
        "WORLD_SIZE": "2",
    }
    with tempfile.TemporaryDirectory() as place:
        outputs = [Path(place, f"output-{rank}.txt") for rank in range(2)]
        processes = []
        for rank, output in enumerate(outputs):
            with output.open("w") as file:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, distributed_worker.__file__, place],
                        env={**shared, "LOCAL_RANK": str(rank)},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )
        try:
            # A failure of one leaves the other waiting: results that are there are tested all the same.
            for process in processes:
                process.wait(timeout=60 * _MINUTES)
        except subprocess.TimeoutExpired:
            pass
        finally:
            for process in processes:
                process.kill()
                process.wait()
        for rank, output in enumerate(outputs):
            print(f"--- process {rank} ---\n{output.read_text()[-4000:]}")
        yield Path(place)


def _load(folder: Path, name: str) -> list[dict[str, Any]]:
    """What each process wrote."""
    results = []
    for rank in range(2):
        file = folder / f"{name}-{rank}.pt"
        assert file.exists(), f"process {rank} did not get through {name!r}"
        results.append(torch.load(file, weights_only=True))
    return results


_SCENARIOS = dict(distributed_worker.scenarios(processes=1))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("validated", _ALL),
        ("few maps", _ALL),
        ("few maps in the first batch", _ALL),
        ("no maps", _ALL - 1),
        ("tested", _ALL),
        ("several loaders", 2 * _ALL),
        ("by element", 3),
    ],
)
def test_two_processes_log_what_one_logs(folder: Path, name: str, count: int) -> None:
    """21 samples do not divide by two: a sampler repeats one, which must not count."""
    expected = _SCENARIOS[name]()
    assert len(expected["logged"]) == count
    for result in _load(folder, name):
        assert result["logged"] == pytest.approx(expected["logged"], rel=1e-6, abs=1e-6)


def test_standard_errors_are_those_of_one_process(folder: Path) -> None:
    expected = _SCENARIOS["validated"]()["records"]
    for result in _load(folder, "validated"):
        for record, by_one in zip(result["records"], expected, strict=True):
            assert record.keys() == by_one.keys()
            for name in record.keys() - {"orbit_share"}:  # a jackknife's, whose folds are dealt out anew
                assert record[name] == pytest.approx(by_one[name], rel=1e-5, abs=1e-6), name


@pytest.mark.filterwarnings("ignore:The orbit share is undefined")
def test_a_process_whose_only_sample_is_a_repeat_takes_part(folder: Path) -> None:
    expected = _SCENARIOS["one sample"]()["logged"]
    assert expected["val/logit_invariance_error"] > 0
    for result in _load(folder, "one sample"):
        assert result["logged"] == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", ["empty on the second", "alone and empty on the second"])
def test_a_process_without_any_batch_takes_part(folder: Path, name: str) -> None:
    expected = _SCENARIOS[name]()["logged"]
    results = _load(folder, name)
    assert len(expected) == (_ALL if name.startswith("alone") else 2 * _ALL)
    for result in results:
        assert result["logged"] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def _distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    weights, others = one["weights"], other["weights"]
    assert weights.keys() == others.keys()
    return max(float((weights[name].double() - others[name].double()).abs().max()) for name in weights)


def test_regularized_weights_are_those_of_a_step_written_by_hand(folder: Path) -> None:
    by_hand, plain = _load(folder, "by hand"), _load(folder, "plain")
    results = _load(folder, "regularized")
    for result, expected, other in zip(results, by_hand, plain, strict=True):
        assert _distance(result, expected) < 1e-6
        assert _distance(expected, other) > 1e-3
        assert result["left"] == []
        assert result["logged"]["train/invariance_weight"] == pytest.approx(distributed_worker.WEIGHT)
    assert results[0]["logged"] == results[1]["logged"]


def test_processes_that_draw_elements_of_their_own_keep_the_same_weights(folder: Path) -> None:
    first, second = _load(folder, "drawn")
    parameters = [name for name in first["weights"] if "running" not in name and "tracked" not in name]
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in parameters)
    assert _distance(first, _load(folder, "plain")[0]) > 1e-3


def test_a_monitor_leaves_training_bit_identical(folder: Path) -> None:
    for result, expected in zip(_load(folder, "monitored"), _load(folder, "unmonitored"), strict=True):
        assert _distance(result, expected) == 0.0
        assert len(result["logged"]) == _ALL
        assert result["left"] == []


def test_no_warnings_of_the_callbacks_logging(folder: Path) -> None:
    for name in ("validated", "regularized", "monitored"):
        for result in _load(folder, name):
            assert [each for each in result["warnings"] if "sync_dist" in each or "log(" in each] == []
