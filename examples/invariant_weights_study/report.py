"""The study's results as Markdown, and the page that is made of the numbers in the repository.

python -m examples.invariant_weights_study.report                      # docs/invariant_weights.md again, in seconds
python -m examples.invariant_weights_study.report --take results       # and take new numbers in, from a folder
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from examples.invariant_weights_study.results import read, results_of, write
from examples.invariant_weights_study.tables import rates_table, tables_of
from examples.pages import filled, markdown

#: The numbers in the repository, and the page whose tables are made of them.
RESULTS = Path(__file__).parent / "results.json"
PAGE = Path(__file__).parents[2] / "docs" / "invariant_weights.md"


def write_report(folder: Path) -> str:
    """Writes `results.json` and `tables.md` into the folder of the runs; gives the tables."""
    file = folder / "results.json"
    write(results_of(folder), file)
    text = "\n\n".join(markdown(table) for table in tables_of(read(file)).values())
    (folder / "tables.md").write_text(text + "\n", encoding="utf-8")
    return text


def write_search(folder: Path) -> str:
    """The table of the search, which `RATES` of the settings is filled in from."""
    return markdown(rates_table(results_of(folder)))


def main() -> None:
    """Writes the page's tables again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", type=Path, metavar="FOLDER", help="results to put into the repository")
    folder = parser.parse_args().take
    if folder is not None:
        shutil.copy(folder / "results.json", RESULTS)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables_of(read(RESULTS))), encoding="utf-8")


if __name__ == "__main__":
    main()
