"""Results as figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_invariance._checks import check_count, check_iterable, check_tensor, is_number
from lightning_invariance._isolation import evaluation_mode, module_of
from lightning_invariance._requirements import require
from lightning_invariance.actions import Action
from lightning_invariance.actions._flow import as_action
from lightning_invariance.metrics import Estimate
from lightning_invariance.orbit import evaluate_orbit
from lightning_invariance.report._table import is_single
from lightning_invariance.saliency import SaliencyLike, default_saliency

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_curves(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    x: Sequence[float],
    xlabel: str,
    *,
    log: Sequence[str] = (),
) -> Figure:
    """Curves of several measures for several models: over the epochs, or over a drift.

    Args:
        panels: for each measure, each model's values, one for each entry of `x`.
        x: the common abscissa.
        xlabel: what it is.
        log: the measures whose axis is logarithmic (and linear from the smallest positive value down to 0).

    Returns:
        The figure, a panel for each measure, not shown on any screen.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if there is no panel, one has no curve, a curve has another length than `x` or holds no numbers, or
            `log` names no panel.

    Example:
        >>> from lightning_invariance.report import plot_curves
        >>> figure = plot_curves({"SI": {"DA": [0.2, 0.3], "IR": [0.5, 0.9]}}, x=[1, 2], xlabel="epoch")
        >>> len(figure.axes)
        1
    """
    _check_panels(panels, log, "a mapping of models' curves")
    check_iterable("x", x, "the abscissa's values")
    for measure, curves in panels.items():
        for model, values in curves.items():
            if not isinstance(values, Sequence) or not all(is_number(value) for value in values):
                raise ValueError(f"Expected {measure} of {model} to be a sequence of numbers but got {values!r}.")
            if len(values) != len(x):
                raise ValueError(f"Expected {measure} of {model} to have {len(x)} values but got {len(values)}.")
    figure = new_figure(4.2 * len(panels), 3.2)
    for axes, (measure, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for model, values in curves.items():
            axes.plot(x, values, label=plain(model), marker="o", markersize=3)
        axes.set(xlabel=plain(xlabel), title=plain(measure))
        if measure in log:
            _logarithmic(axes.set_yscale, axes.yaxis, [value for values in curves.values() for value in values])
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure


def plot_bars(panels: Mapping[str, Mapping[str, float | Estimate]], *, log: Sequence[str] = ()) -> Figure:
    """Bars of several measures for several models, up to three panels in a row.

    Args:
        panels: for each measure, each model's value: a number, or an `Estimate`, drawn with its standard error. A model
            that lacks a measure, or whose value is not finite, has no bar.
        log: the measures whose axis is logarithmic (and linear from the smallest positive value down to 0).

    Returns:
        The figure, a panel for each measure, not shown on any screen.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if there is no panel, one has no model, a value is no number, or `log` names no panel.

    Example:
        >>> from lightning_invariance.report import plot_bars
        >>> figure = plot_bars({"SI": {"DA": 0.3, "IR": 0.9}, "parameters": {"DA": 7161, "IR": 7161}})
        >>> [len(axes.patches) for axes in figure.axes]
        [2, 2]
    """
    _check_panels(panels, log, "a mapping of models' values")
    models = list(dict.fromkeys(model for values in panels.values() for model in values))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(3.6 * columns, rows * (1.2 + 0.3 * len(models)))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (measure, values) in zip(grid, panels.items(), strict=False):
        for place, model in enumerate(models):
            value, error = _value_and_error(measure, model, values.get(model, nan))
            if isfinite(value):
                axes.barh(place, value, xerr=error if isfinite(error) else None, color=f"C{place % 10}")
        axes.set_yticks(range(len(models)), [plain(model) for model in models])
        axes.invert_yaxis()  # the first model on top
        axes.set_title(plain(measure))
        if measure in log:
            _logarithmic(axes.set_xscale, axes.xaxis, [bar.get_width() for bar in axes.patches])
        axes.grid(alpha=0.3, axis="x")
    for unused in grid[len(panels) :]:
        unused.remove()
    return figure


def plot_saliency_orbit(
    networks: Mapping[str, nn.Module | Callable[[Tensor], Tensor]],
    x: Tensor,
    action: Action,
    *,
    saliency: SaliencyLike | None = None,
    target: int | None = None,
) -> Figure:
    r"""Saliency maps of one image over its orbit, brought back to a common pose (the paper's figures 1 and 3).

    A network that is genuinely invariant looks at the same places in each pose: all maps of its row are the same.

    Args:
        networks: the models, a row for each.
        x: one image, shape ``(C, H, W)``.
        action: the group, a column for each element.
        saliency: how to compute the maps, `PaperSaliency` for the paper's; ``Gradient(dither=1e-3)`` if None.
        target: the class explained; the one predicted on `x` if None.

    Returns:
        The figure, not shown on any screen.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if there is no network, `x` is no single image, the group cannot act on it, or `target` is no class.

    Example:
        >>> import torch
        >>> from lightning_invariance import C4
        >>> from lightning_invariance.report import plot_saliency_orbit
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> len(plot_saliency_orbit({"untrained": network}, torch.randn(1, 8, 8), C4()).axes)
        4
    """
    if not isinstance(networks, Mapping) or not networks:
        raise ValueError(f"Expected `networks` to map names to networks, at least one, but got {networks!r}.")
    check_tensor("x", x)
    action = as_action(action)
    if target is not None:
        check_count("target", target, minimum=0)
    if x.ndim != 3:
        raise ValueError(f"Expected `x` to be one image (C, H, W) but got shape {tuple(x.shape)}.")
    label = None if target is None else torch.tensor([target], device=x.device)
    maps = {}
    for name, network in networks.items():
        with evaluation_mode(module_of(network)):
            outputs = evaluate_orbit(network, x[None], action, saliency=saliency or default_saliency(), target=label)
        assert outputs.saliency is not None
        assert outputs.orbit_saliency is not None
        maps[name] = torch.cat([outputs.saliency[None], outputs.orbit_saliency])[:, 0]
    return draw_saliency_orbit(maps, x, action.labels)


def draw_saliency_orbit(maps: Mapping[str, Tensor], x: Tensor, labels: Sequence[str]) -> Figure:
    """Maps ``(n, C, H, W)``, a row for each name, laid over the image ``(C, H, W)`` that they are of."""
    figure = new_figure(1.6 * len(labels), 1.8 * len(maps))
    grid = figure.subplots(len(maps), len(labels), squeeze=False)
    image = x.detach().float().mean(dim=0).cpu()
    for axes, element in zip(grid[0], labels, strict=True):
        axes.set_title(plain(element))
    for row, (name, each) in zip(grid, maps.items(), strict=True):
        for axes, of_pose in zip(row, each.abs().sum(dim=1).cpu(), strict=True):
            show_image(axes, image, of_pose)
        row[0].set_ylabel(plain(name))
    return figure


def show_image(axes: Any, image: Tensor, saliency: Tensor | None = None) -> None:
    """An image ``(H, W)`` without ticks, with a map of what is looked at laid over it."""
    axes.imshow(image.numpy(), cmap="gray")  # of a tensor numpy 2 warns
    if saliency is not None:
        axes.imshow(saliency.numpy(), cmap="inferno", alpha=0.6)
    axes.set(xticks=[], yticks=[])


def _check_panels(panels: Mapping[str, Mapping[str, Any]], log: Sequence[str], content: str) -> None:
    if not panels:
        raise ValueError("Expected `panels` to hold at least one measure but got none.")
    check_iterable("log", log, "names of measures")
    if not isinstance(panels, Mapping) or not all(isinstance(models, Mapping) and models for models in panels.values()):
        raise ValueError(f"Expected `panels` to map each measure to {content} but got {panels!r}.")
    unknown = [measure for measure in log if measure not in panels]
    if unknown:
        raise ValueError(f"Expected `log` to name measures among {list(panels)} but got {unknown}.")


def _value_and_error(measure: str, model: str, value: Any) -> tuple[float, float]:
    if not is_single(value):
        raise ValueError(f"Expected {measure} of {model} to be a number or an Estimate of one value but got {value!r}.")
    found, error = value if isinstance(value, Estimate) else (value, nan)
    return float(found), float(error)


def _logarithmic(set_scale: Callable[..., None], axis: Any, values: Sequence[float]) -> None:
    """Linear below the smallest positive value, so that an exact 0 has a place."""
    positive = [value for value in values if value > 0]
    if positive:
        set_scale("symlog", linthresh=min(positive))
        axis.get_major_locator().set_params(numticks=6)  # a label for each decade would not fit


def plain(text: object) -> str:
    """Text that matplotlib takes neither for a formula nor, by a leading underscore, for one to be left out."""
    escaped = str(text).replace("$", "\\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def new_figure(width: float, height: float) -> Figure:
    # Not pyplot: it keeps every figure alive and may want a screen.
    figure: Figure = require("matplotlib.figure", "Drawing figures").Figure(
        figsize=(width, height), layout="constrained", dpi=120
    )
    return figure
