"""Tables and figures show what they were given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_invariance import C4, Estimate, Gradient
from lightning_invariance.baselines import OrbitPooled
from lightning_invariance.report import markdown_table, plot_bars, plot_curves, plot_saliency_orbit


def test_table_has_a_row_a_model_and_a_dash_for_what_is_missing():
    unknown = Estimate(torch.tensor(0.25), torch.tensor(torch.nan))
    table = markdown_table({"a|b": {"LI": unknown}, "c": {"DI": 1234.5, "N": 1234567}}, corner="model")
    assert table.splitlines() == [
        "| model | LI | DI | N |",
        "|---|---|---|---|",
        "| a\\|b | 0.250 | – | – |",
        "| c | – | 1,234 | 1,234,567 |",
    ]


def test_curves_are_those_given(tmp_path):
    figure = plot_curves(
        {"LI": {"DA": [3.0, 2.0], "IR": [1.0, 0.1]}, "SI": {"DA": [0.1, 0.2]}}, [1, 2], "epoch", log=["LI"]
    )
    left, right = figure.axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[3.0, 2.0], [1.0, 0.1]]
    assert (left.get_yscale(), right.get_yscale(), right.get_title()) == ("symlog", "linear", "SI")
    figure.savefig(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_saliency_of_an_invariant_network_is_the_same_in_each_pose():
    inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))
    networks = {"tied": OrbitPooled(inner, C4()), "plain": inner}
    inner.train()
    figure = plot_saliency_orbit(networks, torch.randn(1, 8, 8), C4(), saliency=Gradient(), target=1)
    maps = [axes.images[1].get_array() for axes in figure.axes]
    assert len(maps) == 8
    assert max(abs(each - maps[0]).max() for each in maps[1:4]) < 1e-5
    assert max(abs(each - maps[4]).max() for each in maps[5:]) > 1e-3
    assert [axes.get_title() for axes in figure.axes[:4]] == list(C4().labels)
    assert inner.training


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch):
    def missing(name, *args, **kwargs):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("lightning_invariance._requirements.import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-invariance\[demo\]'"):
        plot_curves({"SI": {"DA": [1.0]}}, [1], "epoch")


def test_bars_are_those_given_with_their_errors(tmp_path):
    known = Estimate(torch.tensor(2.0), torch.tensor(0.25))
    unknown = Estimate(torch.tensor(4.0), torch.tensor(torch.nan))
    figure = plot_bars(
        {"LI": {"DA": known, "IR": 0.5}, "SI": {"IR": unknown}, "a": {"DA": 1}, "b": {"DA": 2}}, log=["LI"]
    )
    first, second, *_ = figure.axes
    assert len(figure.axes) == 4
    assert [bar.get_width() for bar in first.patches] == [2.0, 0.5]
    (spans,) = first.collections  # that of DA: IR has no error
    assert spans.get_segments()[0][:, 0].tolist() == [1.75, 2.25]
    assert [(bar.get_width(), round(bar.get_y() + bar.get_height() / 2)) for bar in second.patches] == [(4.0, 1)]
    assert (first.get_xscale(), second.get_xscale()) == ("symlog", "linear")
    figure.savefig(tmp_path / "bars.png")
