"""The benchmarks run, and what they time gives the same values; how fast it is, is for a quiet machine to say."""

from __future__ import annotations

import io
import json
import logging
import math
import runpy
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.growth import peak_memory
from benchmarks.pairs import Pair, Setting, clocked, measure
from benchmarks.rows import ROWS

SETTING = Setting(torch.device("cpu"), quick=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The files and the words of `python -m benchmarks --quick`."""
    folder, output, logger = (
        tmp_path_factory.mktemp("benchmarks"),
        io.StringIO(),
        logging.getLogger("lightning.pytorch"),
    )
    level = logger.level
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), redirect_stdout(output):
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", ["benchmarks", "--quick", "--out", str(folder)])
        runpy.run_module("benchmarks", run_name="__main__")
    logger.setLevel(level)
    return folder, output.getvalue()


@pytest.mark.parametrize("name", ROWS)
def test_every_row_runs_and_agrees(name: str, results: tuple[Path, str]) -> None:
    row = json.loads((results[0] / "results.json").read_text(encoding="utf-8"))["rows"][name]
    if "missing" in row:
        pytest.skip(f"needs {row['missing']}")
    assert row["agrees"]
    assert all(seconds > 0 for seconds in (*row["ours"], *row["theirs"]))
    assert row["ratio"] == pytest.approx(row["ours"][0] / row["theirs"][0])
    assert (row["difference"] is None) == (name in ("escnn", "escnn_channels", "pooled"))
    assert f"| {row['name']} | {row['against']} |" in results[1]


def test_growth_is_recorded_and_drawn(results: tuple[Path, str]) -> None:
    folder, _ = results
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))["growth"]
    for curves, points in (("with the group", found["orders"]), ("with the samples", found["sample counts"])):
        for panel in found[curves].values():
            for values in panel.values():
                assert len(values) == len(points)
                assert all(math.isfinite(value) and value > 0 for value in values)
    for sizes in found["with the samples"]["bytes"].values():
        assert len(set(sizes)) == 1  # a metric keeps and sends as much whatever it has seen
    for name in ("growth_with_group.png", "growth_with_samples.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert (folder / "table.md").read_text(encoding="utf-8").count("\n") == len(ROWS) + 2


# The clockwork ---------------------------------------------------------------------------------------------------


def pair(ours: Any, theirs: Any, difference: float = 0.0, at_most: float | None = 2.0) -> Pair:
    return Pair("a", "b", ours, theirs, at_most, lambda: difference)


def test_the_ratio_is_the_median_over_rounds_of_both_in_turn() -> None:
    order: list[str] = []

    def times(who: str, seconds: list[float]) -> Any:
        left = iter([99.0, *seconds])  # the first go is the warm-up

        def timed() -> float:
            order.append(who)
            return next(left)

        return timed

    result = measure(pair(times("a", [1.0, 4.0, 9.0]), times("b", [1.0, 2.0, 1.0])), rounds=3)
    assert result.ratios == [1.0, 2.0, 9.0]
    assert result.ratio == 2.0
    assert result.reached
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"


@pytest.mark.parametrize(("difference", "agrees"), [(0.0, True), (1e-3, False), (math.nan, True), (math.inf, False)])
def test_values_that_differ_are_told(difference: float, agrees: bool) -> None:
    assert measure(pair(lambda: 1.0, lambda: 1.0, difference), rounds=1).agrees is agrees


def test_a_row_that_asks_for_nothing_is_only_reported() -> None:
    assert measure(pair(lambda: 5.0, lambda: 1.0, at_most=None), rounds=1).reached is None
    assert measure(pair(lambda: 5.0, lambda: 1.0), rounds=1).reached is False


def test_a_quick_clock_runs_its_work_once_a_go() -> None:
    runs: list[int] = []
    timed = clocked(lambda: runs.append(1), SETTING)
    timed(), timed()
    assert len(runs) == 2 + 2  # two to see how long it takes


def test_peak_memory_is_that_of_what_is_alive_at_once() -> None:
    def one_after_the_other() -> None:
        for _ in range(4):
            torch.zeros(1 << 18)  # 1 MiB

    def together() -> None:
        kept = [torch.zeros(1 << 18) for _ in range(4)]
        del kept

    assert peak_memory(one_after_the_other, SETTING) == pytest.approx(1.0, rel=0.01)
    assert peak_memory(together, SETTING) == pytest.approx(4.0, rel=0.01)
