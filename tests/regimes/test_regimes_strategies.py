"""Two processes: training against the term by hand, monitors against one process, refusals, processes that disagree."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import regimes_worker
import torch
from helpers import loader, made
from oracles import Classifier
from processes import Launch
from steps import validated
from torch import Tensor

from lightning_invariance import C4, InvarianceMonitor

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed support"),
]

#: No means over samples.
RATIOS = {"relative_logit_invariance_error", "orbit_share"}


@pytest.fixture(scope="module")
def launch() -> Iterator[Launch]:
    """Started once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        yield Launch(regimes_worker.__file__, Path(folder))


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    # A process may hold nothing of a sharded parameter.
    return max(float((one[name] - other[name]).abs().max()) for name in one if other[name].numel())


@pytest.mark.parametrize("name", regimes_worker.CELLS)
def test_trained_as_by_hand(launch: Launch, name: str) -> None:
    first, second = launch.results(name)
    cell = regimes_worker.CELLS[name]
    for result in (first, second):
        assert len(result["regularized"]) == len(cell.regularizers)
        for weights in result["regularized"]:
            assert distance(weights, result["by hand"]) < 1e-6
        assert distance(result["by hand"], result["plain"]) > 1e-3
        assert result["of logging"] == []
    for one, other in zip(first["regularized"], second["regularized"], strict=True):
        if name.startswith("ddp"):
            assert distance(one, other) == 0.0
        else:  # each process holds a part: no more than one process has of them in training alone
            parts = [sum(value.numel() for value in weights.values()) for weights in (one, other)]
            whole = sum(parameter.numel() for parameter in made(cell.plain).parameters())
            assert max(parts) < whole <= sum(parts)


@pytest.mark.parametrize("name", regimes_worker.REFUSED)
def test_refused_before_the_first_step(launch: Launch, name: str) -> None:
    for result in launch.results(name):
        assert all(part in result["error"] for part in regimes_worker.REFUSED[name].says)
        assert result["steps"] == 0


@pytest.mark.filterwarnings("ignore:The (orbit share|relative logit invariance error) is undefined")
@pytest.mark.parametrize("name", regimes_worker.MEASURED)
def test_monitors_measure_what_one_process_does(launch: Launch, name: str) -> None:
    """What a sampler repeats does not count."""
    cell = regimes_worker.MEASURED[name]
    expected = cell.run(1)
    assert len(expected["logged"]) == cell.count
    for result in launch.results(name):
        assert result["logged"] == pytest.approx(expected["logged"], rel=1e-6, abs=1e-6, nan_ok=True)
        for record, by_one in zip(result["records"], expected["records"], strict=True):
            assert record.keys() == by_one.keys()
            for measure in record.keys() - RATIOS:  # a jackknife's error, whose folds are dealt out anew
                torch.testing.assert_close(
                    record[measure], by_one[measure], rtol=1e-5, atol=1e-6, equal_nan=True, check_dtype=False
                )
        assert result["of logging"] == []


def test_monitors_leave_training_bit_identical(launch: Launch) -> None:
    for result in launch.results("watched"):
        assert distance(result["monitored"], result["unmonitored"]) == 0.0
        assert result["epochs"] == [0, 0, 1, 1]  # of two loaders


def test_processes_draw_elements_of_their_own_and_keep_the_same_weights(launch: Launch) -> None:
    first, second = launch.results("drawn")
    assert not torch.equal(first["images"], second["images"])
    assert not torch.allclose(first["orbits"], second["orbits"], atol=1e-3)
    assert distance(first["weights"], second["weights"]) == 0.0


def test_loaders_that_may_be_empty_are_no_matter_to_a_single_process() -> None:
    module = made(Classifier)
    module.allow_zero_length_dataloader_with_multiple_devices = True
    monitor = InvarianceMonitor(C4())
    validated(monitor, module, loader(8))
    assert len(monitor.history) == 1


def test_the_error_of_the_process_that_failed_is_seen(launch: Launch) -> None:
    assert launch.ended, "the processes waited for each other"
    first, second = launch.results("failed on the second")
    assert second["error"] == "told to"
    assert first["error"]  # that the other is gone
    assert first["left"] == second["left"] == []
    assert "RuntimeError: told to" in launch.outputs[1]
