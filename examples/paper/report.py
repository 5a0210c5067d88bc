"""The results as a page and as Markdown, with the tables beside the paper's.

python -m examples.paper.report                      # docs/paper.md again, from the numbers in the repository
python -m examples.paper.report --take mnist=paper_results fashion=paper_fashion    # and take new ones in
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.pages import filled, markdown
from examples.paper.claims import check_claims
from examples.paper.figures import captions, draw_of_networks, draw_of_study
from examples.paper.plan import Experiments
from examples.paper.runs import Settings
from examples.paper.study import Study, read, study_of, write
from examples.paper.tables import (
    aim_table,
    cnn_table,
    few_images_table,
    front_table,
    rates_table,
    search_table,
    summary_table,
    table_1,
)
from lightning_invariance.report.html import Block, Figure, Section, Table, page

#: The numbers in the repository, and the pages whose tables are made of them.
RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "paper.md"
README = PAGE.parents[1] / "README.md"
TITLE = "Genuine invariance learning without weight-tying: the experiments"


def write_report(experiments: Experiments, settings: Settings, folder: Path) -> None:
    """Writes `results.json`, the figures, `tables.md` and `report.html` into the folder."""
    study = study_of(experiments, settings, folder)
    write(study, folder / "results.json")
    draw_of_networks(experiments, settings, folder)
    draw_of_study(study, folder)
    tables = tables_of({study.dataset: study})
    text = "\n\n".join(markdown(table) for table in tables.values() if table.caption)
    (folder / "tables.md").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(_page(study, tables, folder), encoding="utf-8")
    print(f"\n{text}\n")
    for claim in check_claims(experiments):
        print(f"{claim['verdict']:>14}: {claim['claim']} ({claim['figures']})")


def tables_of(studies: Mapping[str, Study]) -> dict[str, Table]:
    """Every table that there are results for, by a name."""
    tables = {}
    for name, study in studies.items():
        if claims := check_claims(study.experiments):
            tables[f"claims-{name}"] = _rows_of(claims, f"The paper's claims, {study.title}")
        tables[f"table-1-{name}"] = table_1(study)
        tables[f"summary-{name}"] = summary_table(study)
        tables[f"cnn-{name}"] = cnn_table(study)
        tables[f"few-images-{name}"] = few_images_table(study)
        tables[f"front-{name}"] = front_table(study)
        tables[f"search-{name}"] = search_table(study)
        tables[f"rates-{name}"] = rates_table(study)
        if study.differences:
            tables[f"differences-{name}"] = _rows_of(study.differences, "Where the numbers differ from the paper's")
    tables["aim"] = aim_table(list(studies.values()))
    return {name: table for name, table in tables.items() if table.rows}


def _rows_of(dicts: Sequence[Mapping[str, str]], caption: str) -> Table:
    heading = list(dicts[0])
    return Table(heading, [[row[name] for name in heading] for row in dicts], caption)


def _page(study: Study, tables: Mapping[str, Table], folder: Path) -> str:
    about = Table(["", ""], [list(row) for row in study.about.items()], "Data and versions")
    figures = [
        Figure((folder / name).read_bytes(), caption, caption)
        for name, caption in captions(study).items()
        if (folder / name).exists()
    ]
    kinds: dict[str, list[Block]] = {
        "The paper's claims": [],
        "Tables": [],
        "Figures": list(figures),
        "Differences": [],
    }
    for name, table in tables.items():
        if not table.caption:
            continue
        title = {"claims": "The paper's claims", "differences": "Differences"}.get(name.partition("-")[0], "Tables")
        kinds[title].append(table)
    sections = [Section(title, blocks) for title, blocks in kinds.items() if blocks]
    return page(TITLE, [about], sections)


def committed() -> dict[str, Study]:
    """The studies whose numbers are in the repository, by data set."""
    return {path.stem: read(path) for path in (RESULTS / "mnist.json", RESULTS / "fashion.json") if path.exists()}


def main() -> None:
    """Writes the page's tables and figures again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--take", nargs="*", default=[], metavar="NAME=FOLDER", help="results to put into the repository"
    )
    for taken in parser.parse_args().take:
        name, _, folder = taken.partition("=")
        RESULTS.mkdir(exist_ok=True)
        shutil.copy(Path(folder) / "results.json", RESULTS / f"{name}.json")
        if name == "mnist":
            for picture in [*Path(folder).glob("saliency_*.png"), *Path(folder).glob("tsne_*.png")]:
                shutil.copy(picture, PAGE.parent / f"paper_{picture.name}")
    studies = committed()
    for path in (PAGE, README):
        path.write_text(filled(path.read_text(encoding="utf-8"), tables_of(studies)), encoding="utf-8")
    for study in studies.values():
        draw_of_study(study, PAGE.parent, prefix="paper_")


if __name__ == "__main__":
    main()
