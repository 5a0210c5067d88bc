"""The metrics over two processes: what they give must be what one process gives on the union."""

from __future__ import annotations

import contextlib
import itertools
import os
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from measures import CASES, MEANS, NAMES_AND_REDUCTIONS, Batch, make_data, split
from oracles import assert_values
from torch import distributed, multiprocessing

#: The sizes of the batches that each of the two processes sees.
PARTS: dict[str, tuple[list[int], list[int]]] = {
    "uneven": ([5, 1, 9], [4]),
    "last process empty": ([3, 7, 2, 6], []),
    "first process empty": ([], [8, 10]),
}


def data_of(scenario: str) -> tuple[Batch, list[list[Batch]]]:
    sizes = PARTS[scenario]
    data = make_data(sum(map(sum, sizes)), seed=21)
    batches = list(split(data, [*sizes[0], *sizes[1]]))
    return data, [batches[: len(sizes[0])], batches[len(sizes[0]) :]]


def measure(name: str, reduction: str, batches: list[Batch]) -> dict[str, Any]:
    case = CASES[name]
    metric = case.feed(case.make(reduction=reduction), batches)
    results = {"value": metric.compute()}
    if reduction != "none":
        results["error"] = metric.compute_with_error().standard_error
    # Synchronising must not have left the union behind.
    metric._computed = None
    results["again"] = metric.compute()
    return results


def work(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results: dict[tuple[str, str, str], Any] = {}
    for scenario in PARTS:
        _, parts = data_of(scenario)
        for name, reduction in NAMES_AND_REDUCTIONS:
            try:
                results[scenario, name, reduction] = measure(name, reduction, parts[rank])
            except Exception:
                results[scenario, name, reduction] = traceback.format_exc()
    torch.save(results, os.path.join(folder, f"{rank}.pt"))
    # Last, since sums of different precisions would end the process: a process that has seen nothing holds the sums
    # that Lightning's "bf16-true" cast, the other one its own in double precision.
    _, parts = data_of("last process empty")
    cast = {name: case.feed(case.make().to(torch.bfloat16), parts[rank]).compute() for name, case in CASES.items()}
    torch.save(cast, os.path.join(folder, f"cast{rank}.pt"))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes have saved."""
    folder = tmp_path_factory.mktemp("processes")
    with contextlib.suppress(multiprocessing.ProcessExitedException):  # then files are missing
        # One process imports for both.
        multiprocessing.set_forkserver_preload(["torch", "torchmetrics", "lightning.pytorch"])
        multiprocessing.start_processes(work, args=(str(folder),), nprocs=2, start_method="forkserver")
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[tuple[str, str, str], Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("scenario", PARTS)
@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_what_one_gives(name: str, scenario: str, results: Any) -> None:
    case = CASES[name]
    data, parts = data_of(scenario)
    for rank, reduction in itertools.product(range(2), case.reductions):
        got = results[rank][scenario, name, reduction]
        assert isinstance(got, dict), got
        for key in ("value", "again"):
            assert_values(got[key], case.expected(data, reduction), rtol=1e-6, atol=1e-7)
        if reduction == "none":
            continue
        if name in MEANS:
            assert_values(got["error"], case.standard_error(data, reduction), rtol=1e-5)
        elif [] in PARTS[scenario]:
            alone = case.feed(case.make(reduction=reduction), [batch for part in parts for batch in part])
            assert_values(got["error"], alone.compute_with_error().standard_error.numpy(), rtol=1e-5)
        else:
            assert got["error"].isfinite().all()
            assert (got["error"] > 0).all()


@pytest.mark.parametrize("name", CASES)
def test_processes_whose_metrics_were_cast(name: str, folder: Path) -> None:
    data, _ = data_of("last process empty")
    for rank in range(2):
        assert (folder / f"cast{rank}.pt").exists(), "the processes did not come to an end"
        value = torch.load(folder / f"cast{rank}.pt")[name]
        assert value.item() == pytest.approx(float(CASES[name].expected(data, "mean")), rel=1e-6)
