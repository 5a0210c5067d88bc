"""Errors over the size of the motion, as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_invariance.actions._motion_sizes import MotionSizes
from lightning_invariance.metrics import Estimate
from lightning_invariance.report._figures import new_figure, plain, plot_bars

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_over_motion(
    panels: Mapping[str, Estimate], motion: MotionSizes | None, labels: Sequence[str], colours: str = "C0"
) -> Figure:
    """A panel for each measure: a curve over the size of the motion with its standard error as a band.

    Args:
        panels: for each measure its values by element, ``(|G| - 1,)``, the identity left out.
        motion: how far each element moves, the identity included; where it is None, or there are fewer than three
            elements besides, each element has a bar instead.
        labels: what the elements are called, the identity's first.
        colours: that of the curve.
    """
    if motion is None or len(motion.values) < 4:
        bars = {
            name: {
                label: Estimate(value, error)
                for label, value, error in zip(labels[1:], each.value, each.standard_error, strict=True)
            }
            for name, each in panels.items()
        }
        return plot_bars(bars)
    order = sorted(range(len(motion.values) - 1), key=lambda element: motion.values[element + 1])
    sizes = [motion.values[element + 1] for element in order]
    figure = new_figure(3.6 * len(panels), 2.8)
    for axes, (name, each) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        values, errors = (part.double().cpu()[order] for part in each)
        axes.plot(sizes, values, color=colours, marker="o", markersize=3)
        axes.fill_between(sizes, values - errors, values + errors, color=colours, alpha=0.25, linewidth=0)
        axes.axvline(motion.values[0], color="grey", linestyle=":", linewidth=0.8)  # where nothing moves
        axes.set(xlabel=plain(motion.heading), title=plain(name))
        axes.grid(alpha=0.3)
    return figure
