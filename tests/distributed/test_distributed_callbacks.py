"""Callbacks in a Trainer of two processes: the monitor's numbers and the regularizer's weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed_worker
import pytest
import torch
from processes import Launch

_ALL = 10
RATIOS = {"relative_logit_invariance_error", "orbit_share"}

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed support"),
    pytest.mark.filterwarnings(
        "ignore:The '.*dataloader' does not have many workers",
        "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
        "ignore:The number of training batches .* is smaller than the logging interval",
    ),
]


@pytest.fixture(scope="module")
def launch() -> Iterator[Launch]:
    """Started once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        yield Launch(distributed_worker.__file__, Path(folder))


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
        ("sensitivity", 4),
        ("sensitivity of few", 2),
        ("sensitivity of one", 2),
        ("sensitivity, empty on the second", 4),
    ],
)
def test_two_processes_log_what_one_logs(launch: Launch, name: str, count: int) -> None:
    """21 samples do not divide by two: a sampler repeats one, which must not count."""
    expected = _SCENARIOS[name]()
    assert len(expected["logged"]) == count
    for result in launch.results(name):
        assert result["logged"] == pytest.approx(expected["logged"], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("scenario", ["validated", "sensitivity"])
def test_standard_errors_are_those_of_one_process(launch: Launch, scenario: str) -> None:
    expected = _SCENARIOS[scenario]()["records"]
    for result in launch.results(scenario):
        for record, by_one in zip(result["records"], expected, strict=True):
            assert record.keys() == by_one.keys()
            for name in record.keys() - RATIOS:  # a jackknife's, whose folds are dealt out anew
                assert record[name] == pytest.approx(by_one[name], rel=1e-5, abs=1e-6, nan_ok=True), name


@pytest.mark.filterwarnings("ignore:The (orbit share|relative logit invariance error) is undefined")
def test_a_process_whose_only_sample_is_a_repeat_takes_part(launch: Launch) -> None:
    expected = _SCENARIOS["one sample"]()["logged"]
    assert expected["val/logit_invariance_error"] > 0
    for result in launch.results("one sample"):
        assert result["logged"] == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", ["empty on the second", "alone and empty on the second"])
def test_a_process_without_any_batch_takes_part(launch: Launch, name: str) -> None:
    expected = _SCENARIOS[name]()["logged"]
    results = launch.results(name)
    assert len(expected) == (_ALL if name.startswith("alone") else 2 * _ALL)
    for result in results:
        assert result["logged"] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def _distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    weights, others = one["weights"], other["weights"]
    assert weights.keys() == others.keys()
    return max(float((weights[name].double() - others[name].double()).abs().max()) for name in weights)


def test_regularized_weights_are_those_of_a_step_written_by_hand(launch: Launch) -> None:
    by_hand, plain = launch.results("by hand"), launch.results("plain")
    results = launch.results("regularized")
    for result, expected, other in zip(results, by_hand, plain, strict=True):
        assert _distance(result, expected) < 1e-6
        assert _distance(expected, other) > 1e-3
        assert result["left"] == []
        assert result["logged"]["train/invariance_weight"] == pytest.approx(distributed_worker.WEIGHT)
    assert results[0]["logged"] == results[1]["logged"]


def test_processes_that_draw_elements_of_their_own_keep_the_same_weights(launch: Launch) -> None:
    first, second = launch.results("drawn")
    parameters = [name for name in first["weights"] if "running" not in name and "tracked" not in name]
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in parameters)
    assert _distance(first, launch.results("plain")[0]) > 1e-3


@pytest.mark.parametrize(("name", "count"), [("monitored", _ALL), ("sensitivity of a training", 2)])
def test_a_monitor_leaves_training_bit_identical(launch: Launch, name: str, count: int) -> None:
    for result, expected in zip(launch.results(name), launch.results("unmonitored"), strict=True):
        assert _distance(result, expected) == 0.0
        assert len(result["logged"]) == count
        assert result["left"] == []


def test_no_warnings_of_the_callbacks_logging(launch: Launch) -> None:
    for name in ("validated", "regularized", "monitored", "sensitivity"):
        for result in launch.results(name):
            assert [each for each in result["warnings"] if "sync_dist" in each or "log(" in each] == []
