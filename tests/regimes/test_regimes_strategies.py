"""Two processes: data parallel and sharded training against the term by hand, refusals, processes that disagree."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import regimes_worker
import torch
from helpers import Classifier, loader, made, trainer_for
from lightning.pytorch import Callback
from processes import Launch
from torch import Tensor

from lightning_invariance import C4, InvarianceMonitor

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed support"),
]


@pytest.fixture(scope="module")
def launch() -> Iterator[Launch]:
    """Started once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        yield Launch(regimes_worker.__file__, Path(folder))


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    # A process may hold nothing of a sharded parameter.
    return max(float((one[name] - other[name]).abs().max()) for name in one if other[name].numel())


@pytest.mark.parametrize("name", regimes_worker.CELLS)
def test_trained_as_by_hand(launch: Launch, name: str) -> None:
    for result in launch.results(name):
        assert _distance(result["regularized"], result["by hand"]) < 1e-6
        assert _distance(result["by hand"], result["plain"]) > 1e-3


@pytest.mark.parametrize("name", [name for name in regimes_worker.CELLS if name.startswith("ddp")])
def test_both_processes_have_the_same_weights(launch: Launch, name: str) -> None:
    first, second = launch.results(name)
    assert _distance(first["regularized"], second["regularized"]) == 0.0


@pytest.mark.parametrize("name", [name for name in regimes_worker.CELLS if "fsdp" in name])
def test_parameters_were_sharded(launch: Launch, name: str) -> None:
    """Each process holds a part: of all parameters together no more than one process has of them in training alone."""
    parts = [sum(value.numel() for value in result["regularized"].values()) for result in launch.results(name)]
    whole = sum(value.numel() for value in launch.results("ddp")[0]["regularized"].values())
    assert max(parts) < whole <= sum(parts)


@pytest.mark.parametrize("sharding", regimes_worker.SHARDED)
def test_second_derivatives_of_sharded_parameters_are_refused(launch: Launch, sharding: str) -> None:
    for result in launch.results(f"saliency, {sharding}"):
        assert "expected no sharded parameters for penalty='saliency'" in result["error"]
        assert result["steps"] == 0


@pytest.mark.parametrize("sharding", regimes_worker.SHARDED)
def test_the_sensitivity_monitor_refuses_sharded_parameters(launch: Launch, sharding: str) -> None:
    for result in launch.results(f"sensitivity, {sharding}"):
        assert "SensitivityMonitor: expected a strategy that keeps the network's parameters whole" in result["error"]
        assert result["steps"] == 0


@pytest.mark.parametrize("name", regimes_worker.MONITORED)
def test_the_monitor_measures_what_one_process_does(launch: Launch, name: str) -> None:
    expected = regimes_worker.of_one_process(name)
    without_maps = regimes_worker.MONITORED[name].options.get("saliency_samples") == 0
    assert len(expected) == (9 if without_maps else 10)
    for result in launch.results(name):
        assert result["measures"] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", regimes_worker.MONITOR_REFUSED)
def test_the_monitor_refuses_parameters_that_the_root_alone_gathers(launch: Launch, name: str) -> None:
    for result in launch.results(name):
        assert "`auto_wrap_policy`" in result["error"]
        assert result["steps"] == 0


def test_a_process_without_validation_batches_takes_part(launch: Launch) -> None:
    first, second = launch.results("no validation batches on the second")
    for result in (first, second):
        assert _distance(result["monitored"], result["unmonitored"]) == 0.0
        assert result["epochs"] == [0, 1]
    assert first["error"] == second["error"] > 0


def test_lightning_skips_the_validation_of_a_process_whose_loader_is_known_to_be_empty(launch: Launch) -> None:
    """What the refusal below is there for: no hook of the second process could take part in anything."""
    first, second = launch.results("empty loader on the second, Lightning alone")
    assert first["count"] == 3  # the sanity check's and two epochs'
    assert second["count"] == 0


@pytest.mark.parametrize(("monitor", "owner", "method"), regimes_worker.MAY_SKIP)
def test_loaders_that_may_be_empty_are_refused_on_all_processes(
    launch: Launch, monitor: type[Callback], owner: str, method: str
) -> None:
    name = "EmptyOnTheSecond" if owner == "data module" else "Classifier"
    for result in launch.results(f"empty loader on the second, {monitor.__name__}, {owner}, {method}"):
        assert result["error"].startswith(f"{monitor.__name__}: expected")
        assert f"_with_multiple_devices` to be False in {name} with several processes but got True" in result["error"]
        assert result["steps"] == 0


def test_loaders_that_may_be_empty_are_no_matter_to_a_single_process() -> None:
    module = made(Classifier)
    module.allow_zero_length_dataloader_with_multiple_devices = True
    monitor = InvarianceMonitor(C4())
    trainer_for([monitor]).validate(module, loader(8), verbose=False)
    assert len(monitor.history) == 1


def test_the_error_of_the_process_that_failed_is_seen(launch: Launch) -> None:
    assert launch.ended, "the processes waited for each other"
    first, second = launch.results("failed on the second")
    assert second["error"] == "told to"
    assert first["error"]  # that the other is gone
    assert first["left"] == second["left"] == []
    assert "RuntimeError: told to" in launch.outputs[1]
