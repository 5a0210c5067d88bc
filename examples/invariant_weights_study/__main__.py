"""What invariant weights are worth, measured: three networks, three groups, two data sets, four seeds.

    python -m examples.invariant_weights_study --out results --mnist-folder mnist --fashion-folder fashion
    python -m examples.invariant_weights_study --out quick --mnist-folder mnist --quick    # does everything run?
    python -m examples.invariant_weights_study --out results --mnist-folder mnist --search # rates, on validation images
    python -m examples.invariant_weights_study.report      # docs/invariant_weights.md again, from the numbers here

Both folders hold IDX files. Every run is a file in the results' folder, so that a study that was interrupted goes on
where it stopped, and has tables of what is there. `settings.py` holds what was chosen, and on which images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from tqdm.auto import tqdm

from examples.invariant_weights_study import plan
from examples.invariant_weights_study.report import write_report, write_search
from examples.invariant_weights_study.runs import execute_all
from examples.invariant_weights_study.settings import Settings
from examples.invariant_weights_study.timing import times_of


def main() -> None:
    """Runs what is missing and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("invariant_weights_results"), help="folder for the results")
    parser.add_argument("--mnist-folder", type=Path, required=True, help="IDX files of MNIST")
    parser.add_argument("--fashion-folder", type=Path, help="IDX files of Fashion-MNIST; left out without it")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a thread each")
    parser.add_argument("--search", action="store_true", help="search for learning rates and stop")
    parser.add_argument("--quick", action="store_true", help="few images, one epoch, one seed")
    arguments = parser.parse_args()
    settings = Settings(arguments.out, arguments.mnist_folder, arguments.fashion_folder)
    if arguments.quick:
        settings = replace(settings, sizes=(128, 32, 32), seeds=1, explained=2, quick=True)
    if arguments.search:
        run_all(plan.search(), settings, arguments.workers)
        print(write_search(settings.folder))
        return
    # Alone: what runs beside them would be timed too.
    pairs = dict.fromkeys((network, group) for _, network, group in plan.cells(settings))
    for network, group in tqdm(pairs, desc="Times", unit="pair"):
        times_of(network, group, settings)
    run_all(plan.jobs(settings), settings, arguments.workers)
    print(write_report(settings.folder))


def run_all(jobs: Sequence[plan.Job], settings: Settings, workers: int) -> None:
    """All runs of all jobs, some side by side; in the order of the plan."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(execute_all, job, settings) for job in jobs]
        for done in tqdm(as_completed(waiting), total=len(waiting), desc="Runs", unit="job"):
            done.result()


if __name__ == "__main__":
    main()
