"""The samples that a network is least invariant on, as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from lightning_invariance._checks import check_count
from lightning_invariance.evaluation import KeptSamples
from lightning_invariance.report._figures import new_figure, plain, show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_worst(kept: KeptSamples, *, n: int = 8) -> Figure:
    r"""The samples whose outputs move farthest: a row for each, with what the network looks at over the orbit.

    The first two columns are the sample and the same moved by its worst element, with that element's name and, for
    scores of classes, what is predicted in both. Those behind are the saliency maps over the orbit, brought back to the
    pose of the sample: those of a network that is genuinely invariant are all the same.

    Args:
        kept: ``evaluate_invariance(..., keep="worst").kept``, images ``(C, H, W)``.
        n: the most rows.

    Returns:
        The figure, not shown on any screen.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if `kept` holds no samples, or others than images.

    Example:
        >>> import torch
        >>> from lightning_invariance import C4, evaluate_invariance
        >>> from lightning_invariance.report import plot_worst
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> results = evaluate_invariance(network, [torch.randn(9, 1, 8, 8)], C4(), keep="worst", n=2, progress=False)
        >>> len(plot_worst(results.kept).axes)  # two rows of the sample, the same moved, and four maps
        12
    """
    check_count("n", n)
    if not isinstance(kept, KeptSamples) or not len(kept):
        raise ValueError(f"Expected `kept` to hold samples, as keep='worst' gives them, but got {kept!r}.")
    rows = min(n, len(kept))
    images = [_image(kept.inputs[row]) for row in range(rows)], [_image(kept.moved[row]) for row in range(rows)]
    maps: list[list[Tensor]] = [[] for _ in range(rows)]
    if isinstance(kept.saliency, Tensor) and isinstance(kept.orbit_saliency, Tensor):
        maps = [[kept.saliency[row], *kept.orbit_saliency[:, row]] for row in range(rows)]
    elif kept.saliency is not None and kept.orbit_saliency is not None:
        maps = [[kept.saliency[row], *kept.orbit_saliency[row]] for row in range(rows)]
    columns = 2 + len(maps[0])
    figure = new_figure(1.6 * columns, 1.9 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    scores = kept.logits.ndim == 2 and kept.logits.shape[1] > 1
    for row, axes in enumerate(grid):
        titles = "x", kept.labels[row]
        for place, (image, logits) in enumerate(zip(images, (kept.logits, kept.moved_logits), strict=True)):
            show_image(axes[place], image[row])
            predicted = f": {int(logits[row].argmax())}" if scores else ""
            axes[place].set_title(plain(f"{titles[place]}{predicted}"), fontsize=8)
        target = "" if kept.target is None else f", label {int(kept.target[row])}" if kept.target.ndim == 1 else ""
        axes[0].set_ylabel(f"{int(kept.index[row])}{target}\n{float(kept.errors[row]):.3g}", fontsize=8)
        for place, saliency in enumerate(maps[row]):
            show_image(axes[2 + place], images[0][row], saliency.abs().sum(dim=0).cpu())
            if row == 0:
                axes[2 + place].set_title(plain(kept.elements[place]), fontsize=8)
    return figure


def _image(x: object) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim != 3:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else "several tensors"
        raise ValueError(f"Expected `kept` to hold images (C, H, W) but got {got}.")
    return x.detach().float().mean(dim=0).cpu()
