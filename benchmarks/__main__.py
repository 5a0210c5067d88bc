"""Runs the benchmarks: a table of ratios, a JSON with every time taken, two figures of growth."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning
import torch

from benchmarks import growth
from benchmarks.pairs import Setting
from benchmarks.rows import ROWS, prepare, run
from lightning_invariance.report import plot_curves

#: glibc keeps what is freed: pages that it gives back and faults in again move a ratio by a tenth and more, not twice
#: alike.
ALLOCATOR = {
    "MALLOC_TOP_PAD_": 1 << 28,
    "MALLOC_MMAP_THRESHOLD_": 1 << 25,
    "MALLOC_TRIM_THRESHOLD_": 1 << 32,
}


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks")
    parser.add_argument("--out", type=Path, default=Path("bench_results"), help="folder for the results")
    parser.add_argument(
        "--only", nargs="+", choices=[*ROWS, "growth"], metavar="ROW", help=f"among {[*ROWS, 'growth']}"
    )
    parser.add_argument("--rounds", type=int, default=7, help="how often each pair is timed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="does everything run? Its times mean nothing.")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(torch.device(arguments.device), arguments.quick)
    rounds = 1 if arguments.quick else arguments.rounds
    chosen = arguments.only or [*ROWS, "growth"]
    prepare()

    found: dict[str, Any] = {"machine": machine(setting), "quick": arguments.quick, "rows": {}, "growth": {}}
    lines = ["| what is timed | against | ratio | of rounds | must reach | values |", "|---|---|---|---|---|---|"]
    print(json.dumps(found["machine"]), *lines, sep="\n", flush=True)
    for name in [name for name in ROWS if name in chosen]:
        job = (name, setting, rounds)
        found["rows"][name] = run(*job) if arguments.quick else in_its_own_process(job)
        lines.append(as_line(name, found["rows"][name]))
        print(lines[-1], flush=True)
    if "growth" in chosen:
        found["growth"] = {
            "orders": growth.orders(setting),
            "with the group": growth.with_the_group(setting, 1 if arguments.quick else 3),
            "sample counts": growth.sample_counts(setting),
            "with the samples": growth.with_the_samples(setting),
        }
        draw(found["growth"], arguments.out)
    (arguments.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (arguments.out / "results.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(f"Written to {arguments.out}.")
    if not all(row.get("agrees", True) for row in found["rows"].values()):
        sys.exit("Some values differ by more than they may: see the table.")


def in_its_own_process(job: tuple[str, Setting, int]) -> dict[str, Any]:
    """Runs a row: what the ones before it left in the allocator and the caches is none of its business."""
    for name, value in ALLOCATOR.items():
        os.environ.setdefault(name, str(value))
    with get_context("spawn").Pool(1, initializer=prepare) as pool:
        return pool.apply(run, job)


def draw(curves: dict[str, Any], folder: Path) -> None:
    """The figures of growth."""
    with_group = plot_curves(curves["with the group"], curves["orders"], "|G|")
    for axes in with_group.axes:
        axes.legend()  # a step and a monitored batch have curves of their own
    with_group.savefig(folder / "growth_with_group.png")
    with_samples = plot_curves(curves["with the samples"], curves["sample counts"], "samples")
    for axes in with_samples.axes:
        axes.set_xscale("log")
    with_samples.savefig(folder / "growth_with_samples.png")


def as_line(name: str, row: dict[str, Any]) -> str:
    """A line of the table."""
    if "missing" in row:
        return f"| {name} | not timed | – | – | – | needs {row['missing']} |"
    bound = "reported" if row["at_most"] is None else f"{row['at_most']:.3g}"
    values = "–" if row["difference"] is None else f"{row['difference']:.1g} apart"
    mark = {None: "", True: " ✓", False: " ✗"}[row["reached"]]
    spread = f"{min(row['ratios']):.3g} to {max(row['ratios']):.3g}"
    return f"| {row['name']} | {row['against']} | {row['ratio']:.3g} | {spread} | {bound}{mark} | {values} |"


def machine(setting: Setting) -> dict[str, Any]:
    """What the times were taken on."""
    cpu = Path("/proc/cpuinfo")
    names = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    processor = next(
        (line.split(":")[1].strip() for line in names if line.startswith("model name")), platform.processor()
    )
    return {
        "processor": processor,
        "device": torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else str(setting.device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }


if __name__ == "__main__":
    main()
