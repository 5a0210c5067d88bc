"""What notebooks show of results: tables with the results' own numbers, in which data is text."""

from __future__ import annotations

import html
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from lightning_invariance import (
    C4,
    ComparedModel,
    Comparison,
    Estimate,
    LogitInvarianceError,
    OrbitShare,
    evaluate_invariance,
)


def table_of(result: Any) -> list[list[str]]:
    """The texts of the only table, row by row; the markup has to be well-formed."""
    root = ElementTree.fromstring(f"<html>{result._repr_html_()}</html>")
    (table,) = root.iter("table")
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


def note_of(result: Any) -> str:
    root = ElementTree.fromstring(f"<html>{result._repr_html_()}</html>")
    return " ".join("".join(each.itertext()) for each in root.iter("p"))


def test_an_estimate() -> None:
    assert table_of(Estimate(torch.tensor(0.25), torch.tensor(0.125))) == [
        ["value", "standard error"],
        ["0.250", "0.125"],
    ]
    unknown = Estimate(torch.tensor(2.0, requires_grad=True), torch.tensor(float("nan")))
    assert table_of(unknown)[1] == ["2.00", "–"]


def test_an_estimate_of_several_values() -> None:
    several = Estimate(torch.tensor([0.5, 2.0]), torch.tensor([0.1, float("nan")]))
    assert table_of(several) == [["", "value"], ["0", "0.500 ± 0.100"], ["1", "2.00"]]
    each = Estimate(torch.arange(1.0, 7.0).reshape(2, 3), torch.full((2, 3), float("nan")))
    assert table_of(each) == [["", "0", "1", "2"], ["0", "1.00", "2.00", "3.00"], ["1", "4.00", "5.00", "6.00"]]


def test_a_long_estimate_is_cut_and_says_so() -> None:
    long = Estimate(torch.zeros(1000), torch.zeros(1000))
    assert len(table_of(long)) == 21
    assert note_of(long) == "20 of 1000 rows are shown."
    assert len(table_of(Estimate(torch.zeros(0), torch.zeros(0)))) == 1


@pytest.fixture(scope="module")
def results() -> Any:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    measures = {
        "share": OrbitShare(),
        "<i>": OrbitShare(reduction="element"),
        "each": LogitInvarianceError(reduction="none"),
    }
    batches = [(torch.randn(40, 1, 8, 8), torch.arange(40) % 2)]
    classes = ["<script>alert(1)</script>", "b & c"]
    return evaluate_invariance(network, batches, C4(), measures=measures, per_class=classes, progress=False)


def test_results_of_an_evaluation(results: Any) -> None:
    heading, share, *others = table_of(results)
    assert heading == ["measure", "all samples", "<script>alert(1)</script>", "b & c"]
    assert [row[0] for row in (share, *others)] == ["share", "<i>, rot90", "<i>, rot180", "<i>, rot270", "each"]
    of_classes = results.per_class["share"].value.tolist()
    for text, value in zip(share[1:], [float(results["share"].value), *of_classes], strict=True):
        assert float(text.split(" ± ")[0]) == pytest.approx(value, abs=5e-3)
    for place, row in enumerate(others[:3]):
        values = [results["<i>"].value[place], *results.per_class["<i>"].value[:, place]]
        for text, value in zip(row[1:], values, strict=True):
            assert float(text.split(" ± ")[0]) == pytest.approx(float(value), abs=6e-3)
    assert others[3][1:] == ["values of shape (40,)", "", ""]
    assert "labels: at the batch[1]" in note_of(results)


def test_a_comparison_is_its_table() -> None:
    measures = {"logit_invariance_error": Estimate(torch.tensor(8.0), torch.tensor(0.1))}
    models = {
        "a & <b>": ComparedModel(measures, 7161, (0.1, 0.2), (0.1,)),
        "c": ComparedModel({}, 3, (0.3, 0.4), (0.1,)),
    }
    comparison = Comparison(models)
    head, _, *rows = (
        [html.unescape(cell).strip() for cell in line.split(" | ")] for line in comparison.to_markdown().splitlines()
    )
    shown = table_of(comparison)
    assert shown[0][1:] == [*head[1:-1], head[-1].removesuffix(" |")]
    assert [row[0] for row in shown[1:]] == ["a & <b>", "c"]
    for markdown, row in zip(rows, shown[1:], strict=True):
        assert [cell.removesuffix(" |") for cell in markdown[1:]] == row[1:]
