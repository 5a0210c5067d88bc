"""The paper's figures from the runs' results and networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import Tensor, nn

from examples.paper.data import CLASSES
from examples.paper.paper_numbers import FIGURE_4_DI, FIGURE_4_RATIO, FIGURE_5
from examples.paper.plan import FIGURE_5 as REGULARISERS
from examples.paper.plan import TABLE_1, Experiments, mean_and_deviation
from examples.paper.runs import BETAS, GROUPS, Settings, network_of
from lightning_invariance import PaperSaliency
from lightning_invariance.report import plot_saliency_orbit

COLOURS = {"WT": "tab:green", "DA": "tab:orange", "IR": "tab:blue"}


def draw_figures(experiments: Experiments, settings: Settings, folder: Path) -> dict[str, str]:
    """Draws all figures into the folder; returns their file names and captions."""
    captions = {}

    def keep(name: str, figure: Figure, caption: str) -> None:
        figure.savefig(folder / name, dpi=90)
        captions[name] = caption

    for group in GROUPS:
        keep(
            f"saliency_{group}.png",
            saliency_over_orbit(experiments, settings, folder, group),
            f"Figures 1 and 3, {group}: saliency maps of one test image over its orbit, brought back to one pose.",
        )
        keep(
            f"tsne_{group}.png",
            embedding(experiments, settings, folder, group),
            f"Figure 2, {group}: t-SNE of the penultimate layer on test images; crosses are the orbit of one of them.",
        )
    keep(
        "drift.png",
        drift(experiments, settings),
        "Figure 4: accuracy relative to β = 0, and DI, while the test images drift towards the other data set. "
        "Solid: here (means over seeds). Dotted: the paper's, read off its figure.",
    )
    if not settings.table_1_only:
        keep(
            "sensitivity.png",
            sensitivity(experiments, settings),
            "Figure 5: largest singular value of the Jacobian (mean over images) and accuracy. Hatched: the paper's.",
        )
    return captions


def _first_networks(experiments: Experiments, settings: Settings, folder: Path, group: str) -> dict[str, nn.Module]:
    return {
        model: network_of(experiments.of(group, model, settings.epochs)[0].run, folder) for model in ("DA", "WT", "IR")
    }


def saliency_over_orbit(experiments: Experiments, settings: Settings, folder: Path, group: str) -> Figure:
    """Figures 1 and 3: one row a model, one column an element."""
    data = settings.data(GROUPS[group])
    images, labels = data.test_set().tensors
    return plot_saliency_orbit(
        _first_networks(experiments, settings, folder, group),
        images[0],
        GROUPS[group],
        saliency=PaperSaliency(baseline=data.black),
        target=int(labels[0]),
    )


def embedding(experiments: Experiments, settings: Settings, folder: Path, group: str) -> Figure:
    """Figure 2: an invariant network has the whole orbit in one place."""
    action = GROUPS[group]
    images, labels = (tensor[:600] for tensor in settings.data(action).test_set().tensors)
    orbit = action.orbit(images[:1])[1:, 0]  # the image itself is the first of the others
    networks = _first_networks(experiments, settings, folder, group)
    figure = Figure(figsize=(4 * len(networks), 3.8), layout="constrained")
    for axes, (model, network) in zip(figure.subplots(1, len(networks)), networks.items(), strict=True):
        features = penultimate(network, torch.cat([images, orbit]))
        points = TSNE(init="pca", perplexity=min(30, len(features) // 4), random_state=0).fit_transform(features)
        cloud, moved = points[: len(images)], points[len(images) :]
        axes.scatter(*cloud.T, c=labels, cmap="tab10", vmin=0, vmax=CLASSES, s=6, linewidths=0)
        trace = np.concatenate([cloud[:1], moved, cloud[:1]])
        axes.plot(*trace.T, color="black", marker="x", markersize=8, linewidth=1)
        axes.set(title=model, xticks=[], yticks=[])
    return figure


def penultimate(network: nn.Module, images: Tensor) -> np.ndarray:
    """What goes into the last linear layer."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            network(images)
    finally:
        handle.remove()
    return seen[0].numpy()


def drift(experiments: Experiments, settings: Settings) -> Figure:
    """Figure 4, beside the paper's curves."""
    figure = Figure(figsize=(4.2 * len(GROUPS), 6), layout="constrained")
    panels = figure.subplots(2, len(GROUPS), sharex=True)
    for column, group in zip(panels.T, GROUPS, strict=True):
        for model in TABLE_1:
            results = experiments.of(group, model, settings.epochs)
            accuracies = np.array([result.drift["accuracy"] for result in results])
            for axes, curves in zip(
                column,
                (accuracies / accuracies[:, :1], np.array([result.drift["DI"] for result in results])),
                strict=True,
            ):
                axes.errorbar(BETAS, curves.mean(axis=0), curves.std(axis=0), color=COLOURS[model], label=model)
        for axes, papers, title in (
            (column[0], FIGURE_4_RATIO, "accuracy relative to β = 0"),
            (column[1], FIGURE_4_DI, "DI"),
        ):
            for model, values in papers[group].items():
                axes.plot(BETAS, values, color=COLOURS[model], linestyle=":")
            axes.set(title=f"{group}: {title}")
            axes.grid(alpha=0.3)
        column[1].set(xlabel="drift β")
    panels[0, 0].legend()
    return figure


def sensitivity(experiments: Experiments, settings: Settings) -> Figure:
    """Figure 5, beside the paper's bars."""
    figure = Figure(figsize=(4.2 * len(GROUPS), 5), layout="constrained")
    panels = figure.subplots(2, len(GROUPS))
    for column, group in zip(panels.T, GROUPS, strict=True):
        ours: Mapping[str, Any] = {model: experiments.of(group, model, settings.epochs) for model in REGULARISERS}
        for position, measure, axes in zip((0, 1), ("jacobian_spectral_norm", "accuracy"), column, strict=True):
            heights = [mean_and_deviation([r.test[measure][0] for r in ours[model]]) for model in REGULARISERS]
            places = np.arange(len(REGULARISERS))
            axes.bar(places - 0.2, [h for h, _ in heights], 0.4, yerr=np.nan_to_num([e for _, e in heights]))
            axes.bar(places + 0.2, [FIGURE_5[group][m][position] for m in REGULARISERS], 0.4, hatch="//", alpha=0.4)
            axes.set_xticks(places, ["DA", "KL", "norm. L2²", "L2²"])
            axes.set(title=f"{group}: " + ("largest singular value" if position == 0 else "accuracy"))
    return figure
