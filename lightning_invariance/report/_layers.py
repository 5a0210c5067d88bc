"""What was measured of networks' layers: a table, and a figure over depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isnan
from typing import TYPE_CHECKING

from lightning_invariance.evaluation import LayerResults, LayerRow
from lightning_invariance.metrics import Estimate
from lightning_invariance.report._figures import _logarithmic, new_figure, plain
from lightning_invariance.report._table import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_layers(results: Mapping[str, LayerResults]) -> Figure:
    """Each layer's error over the depth of the network, for several models in one picture.

    A model's curve is solid; a dotted line of its colour is the floor, up to where an error is none; a cross marks the
    layer that breaks. Where a layer cannot be judged the curve has a gap.

    Args:
        results: for each model what `evaluate_layers` gave.

    Returns:
        The figure, not shown on any screen. Its abscissa is the per cent of depth, so that models of other numbers of
        layers can be compared.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if there is no model, or one has no `LayerResults`.

    Example:
        >>> import torch
        >>> from lightning_invariance import C4, evaluate_layers
        >>> from lightning_invariance.report import plot_layers
        >>> x = torch.randn(8, 1, 9, 9)
        >>> networks = {"ReLU": torch.nn.ReLU(), "pooling": torch.nn.MaxPool2d(2)}
        >>> results = {name: evaluate_layers(each, [x], C4(), progress=False) for name, each in networks.items()}
        >>> [text.get_text() for text in plot_layers(results).axes[0].get_legend().get_texts()]
        ['ReLU', 'pooling']
    """
    _check_results(results)
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    values = []
    for number, (name, each) in enumerate(results.items()):
        colour = f"C{number % 10}"
        depths = [100 * row.depth for row in each.rows]
        errors = [float(row.error.value) for row in each.rows]
        floors = [row.floor for row in each.rows]
        axes.plot(depths, errors, label=plain(name), color=colour, marker="o", markersize=3)
        axes.plot(depths, floors, color=colour, linestyle=":", linewidth=0.8)
        broken = each.break_row
        if broken is not None:
            place = 100 * broken.depth, float(broken.error.value)
            axes.plot(*place, color=colour, marker="x", markersize=10, linestyle="")
        values += [value for value in (*errors, *floors) if not isnan(value)]
    axes.set(xlabel="depth, %", ylabel="orbit share", xlim=(0, 105))
    _logarithmic(axes.set_yscale, axes.yaxis, values)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def layer_table(results: Mapping[str, LayerResults]) -> str:
    """A Markdown table of every layer of several models; the layers that break are marked.

    Args:
        results: for each model what `evaluate_layers` gave.

    Returns:
        The table, a row for each layer: its depth in per cent, the three orbit shares with their standard errors, and
        the floor.

    Raises:
        ValueError: if there is no model, or one has no `LayerResults`.

    Example:
        >>> import torch
        >>> from lightning_invariance import C4, evaluate_layers
        >>> from lightning_invariance.report import layer_table
        >>> results = evaluate_layers(torch.nn.ReLU(), [torch.randn(8, 1, 9, 9)], C4(), progress=False)
        >>> print(layer_table({"ReLU": results}))
        | layer | depth % | floor | invariance | equivariance |
        |---|---|---|---|---|
        | ReLU: (network) (ReLU) | 100 | ... | ... | 0 |
    """
    _check_results(results)
    several = len(results) > 1 or "" not in results
    table: dict[str, dict[str, float | Estimate]] = {}
    for model, each in results.items():
        for row in _shown(each):
            mark = " ← breaks" if row is each.break_row else ""
            name = f"{row.label} ({row.kind or row.note.split(';')[0]}){mark}"
            shares = {"invariance": row.invariance, "equivariance": row.equivariance, "permuted": row.permuted}
            # What there is none of is left out, which is shown as a dash.
            known = {key: share for key, share in shares.items() if not share.value.isnan()}
            table[f"{model}: {name}" if several else name] = {"depth %": 100 * row.depth, "floor": row.floor, **known}
    return markdown_table(table, corner="layer")


def _shown(results: LayerResults) -> Iterator[LayerRow]:
    """The layers, and what breaks between them."""
    broken = results.break_row
    between = broken is not None and not any(row is broken for row in results.rows)
    for row in results.rows:
        if between and broken is not None and row.depth > broken.depth:
            yield broken
            between = False
        yield row
    if between and broken is not None:
        yield broken


def _check_results(results: Mapping[str, LayerResults]) -> None:
    if not isinstance(results, Mapping) or not results:
        raise ValueError(f"Expected `results` to map models to LayerResults, at least one, but got {results!r}.")
    wrong = [name for name, each in results.items() if not isinstance(each, LayerResults)]
    if wrong:
        raise ValueError(f"Expected `results` to hold LayerResults but {wrong} have others.")
