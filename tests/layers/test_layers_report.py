"""The figure and the table of layers."""

from __future__ import annotations

import pytest
import torch
from layers_networks import C4, S, head, images, symmetric
from torch import nn

from lightning_invariance import evaluate_layers
from lightning_invariance.report import layer_table, plot_layers


@pytest.fixture
def results():
    torch.manual_seed(0)
    exact = S(symmetric(2, 4), nn.ReLU(), *head(4))
    broken = S(symmetric(2, 4), nn.MaxPool2d(2), nn.Flatten())
    return {
        "exact": evaluate_layers(exact, [images()], C4, progress=False),
        "_broken_": evaluate_layers(broken, [images(9)], C4, progress=False),
    }


def test_a_curve_for_each_model_over_per_cent_of_depth(results):
    (axes,) = plot_layers(results).axes
    solid = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [len(line.get_xdata()) for line in solid] == [5, 3]
    assert list(solid[0].get_xdata()) == pytest.approx([20, 40, 60, 80, 100])
    assert list(solid[1].get_ydata()) == [row.error.value for row in results["_broken_"].rows]
    (cross,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert list(cross.get_xdata()) == pytest.approx([200 / 3])
    assert axes.get_xlabel() == "depth, %"
    assert axes.get_yscale() == "symlog"
    assert [text.get_text().strip() for text in axes.get_legend().get_texts()] == ["exact", "_broken_"]


def test_a_row_for_each_layer(results):
    lines = layer_table(results).splitlines()
    assert lines[0] == "| layer | depth % | floor | invariance | equivariance | permuted |"
    assert len(lines) == 2 + 5 + 3
    assert [line for line in lines if "← breaks" in line] == [lines[8]]
    assert lines[8].startswith("| _broken_: 1 (MaxPool2d) ← breaks | 66.7 |")
    cells = [cell.strip() for cell in lines[6].split("|")]
    assert cells[1] == "exact: 4 (Linear)"
    assert cells[5] == "–"  # flat features cannot be moved
    assert str(results["exact"]).endswith("No layer breaks equivariance to C4().")
    assert results["exact"].to_markdown() == layer_table({"": results["exact"]})
