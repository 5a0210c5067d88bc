"""The paper's figures, and accuracy against SI for every method, from results and trained networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.manifold import TSNE
from torch import Tensor, nn

from examples.paper.data import CLASSES
from examples.paper.methods import METHODS
from examples.paper.paper_numbers import FIGURE_4_DI, FIGURE_4_RATIO, FIGURE_5
from examples.paper.plan import FIGURE_5 as REGULARISERS
from examples.paper.plan import FRONT, Experiments, mean_and_deviation
from examples.paper.runs import BETAS, GROUPS, Result, Settings, network_of
from examples.paper.study import ACCURACY, SI, Study
from lightning_invariance import PaperSaliency
from lightning_invariance.report import plot_saliency_orbit

COLOURS = {"WT": "tab:green", "DA": "tab:orange", "IR": "tab:blue", "IW": "tab:red"}


def draw_of_networks(experiments: Experiments, settings: Settings, folder: Path) -> None:
    """Draws the figures that need the trained networks of the folder into it: figures 1 to 3."""
    for group in GROUPS:
        if not _first_networks(experiments, folder, group):
            continue
        saliency_over_orbit(experiments, settings, folder, group).savefig(folder / f"saliency_{group}.png", dpi=90)
        embedding(experiments, settings, folder, group).savefig(folder / f"tsne_{group}.png", dpi=90)


def draw_of_study(study: Study, folder: Path, prefix: str = "") -> None:
    """Draws the figures that numbers are enough for: figures 4 and 5, and accuracy against SI."""
    if study.dataset == "mnist" and any(study.experiments.of(group, model) for group in GROUPS for model in COLOURS):
        drift(study.experiments).savefig(folder / f"{prefix}drift.png", dpi=90)
    if all(study.experiments.of(group, model) for group in GROUPS for model in REGULARISERS):
        sensitivity(study.experiments).savefig(folder / f"{prefix}sensitivity.png", dpi=90)
    accuracy_against_similarity(study).savefig(folder / f"{prefix}accuracy_and_si_{study.dataset}.png", dpi=90)


def captions(study: Study) -> dict[str, str]:
    """What a report says of each figure, by its file name, in their order; some may not have been drawn."""
    found = {
        f"accuracy_and_si_{study.dataset}.png": (
            f"Accuracy against SI on {study.title}, for every way to a network. Areas are the cost of inference. "
            "Circles: the paper's perceptron; squares: a convolutional network. Lines follow a strength."
        )
    }
    for group in GROUPS:
        found[f"saliency_{group}.png"] = (
            f"Figures 1 and 3, {group}: saliency maps of one test image over its orbit, brought back to one pose."
        )
        found[f"tsne_{group}.png"] = (
            f"Figure 2, {group}: t-SNE of the penultimate layer on test images; crosses are the orbit of one of them."
        )
    found["drift.png"] = (
        "Figure 4: accuracy relative to β = 0, and DI, while the test images drift towards the other data set. "
        "Solid: here (means over seeds). Dotted: the paper's, read off its figure."
    )
    found["sensitivity.png"] = (
        "Figure 5: largest singular value of the Jacobian (mean over images) and accuracy. Hatched: the paper's."
    )
    return found


def _first_networks(experiments: Experiments, folder: Path, group: str) -> dict[str, nn.Module]:
    return {
        model: network_of(results[0].run, folder)
        for model in ("DA", "WT", "IR", "IW")
        if (results := experiments.of(group, model))
    }


def saliency_over_orbit(experiments: Experiments, settings: Settings, folder: Path, group: str) -> Figure:
    """Figures 1 and 3: one row a model, one column an element."""
    data = settings.data(GROUPS[group])
    images, labels = data.test_set().tensors
    return plot_saliency_orbit(
        _first_networks(experiments, folder, group),
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
    networks = _first_networks(experiments, folder, group)
    figure = Figure(figsize=(4 * len(networks), 3.8), layout="constrained")
    for axes, (model, network) in zip(
        figure.subplots(1, len(networks), squeeze=False)[0], networks.items(), strict=True
    ):
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


def drift(experiments: Experiments) -> Figure:
    """Figure 4, beside the paper's curves."""
    figure = Figure(figsize=(4.2 * len(GROUPS), 6), layout="constrained")
    panels = figure.subplots(2, len(GROUPS), sharex=True)
    for column, group in zip(panels.T, GROUPS, strict=True):
        for model in COLOURS:
            results = experiments.of(group, model)
            if not results:
                continue
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


def sensitivity(experiments: Experiments) -> Figure:
    """Figure 5, beside the paper's bars."""
    figure = Figure(figsize=(4.2 * len(GROUPS), 5), layout="constrained")
    panels = figure.subplots(2, len(GROUPS))
    for column, group in zip(panels.T, GROUPS, strict=True):
        ours: Mapping[str, Any] = {model: experiments.of(group, model) for model in REGULARISERS}
        for position, measure, axes in zip((0, 1), ("jacobian_spectral_norm", "accuracy"), column, strict=True):
            heights = [mean_and_deviation([r.test[measure][0] for r in ours[model]]) for model in REGULARISERS]
            places = np.arange(len(REGULARISERS))
            axes.bar(places - 0.2, [h for h, _ in heights], 0.4, yerr=np.nan_to_num([e for _, e in heights]))
            axes.bar(places + 0.2, [FIGURE_5[group][m][position] for m in REGULARISERS], 0.4, hatch="//", alpha=0.4)
            axes.set_xticks(places, ["DA", "KL", "norm. L2²", "L2²"])
            axes.set(title=f"{group}: " + ("largest singular value" if position == 0 else "accuracy"))
    return figure


@dataclass(frozen=True)
class Way:
    """Points of the figure of accuracy against SI that have a colour, and an entry in its legend, in common.

    Attributes:
        colour: of matplotlib.
        models: methods with a weight each; several weights of a method are joined by a line.
    """

    colour: str
    models: tuple[tuple[str, float | None], ...]


WAYS = {
    "DA": Way("tab:orange", (("DA", None), ("CNN DA", None))),
    "IR along ν": Way("tab:blue", tuple(("CNN IR", weight) for weight in FRONT["CNN IR"])),
    "saliency penalty along ν": Way(
        "tab:cyan", tuple(("CNN IR saliency", weight) for weight in FRONT["CNN IR saliency"])
    ),
    "pooled over the orbit": Way("tab:purple", (("CNN pooled", None),)),
    "tied by layers (WT, escnn)": Way("tab:green", (("WT", None), ("escnn C4", None))),
    "invariant weights along their strength": Way(
        "tab:red", (*(("CNN IW pull", weight) for weight in FRONT["CNN IW pull"]), ("CNN IW", None), ("IW", None))
    ),
}


#: On the axis of accuracies.
ACCURACY_TICKS = (98, 97, 96, 95, 90, 85, 80, 70, 50, 30)


def accuracy_against_similarity(study: Study) -> Figure:
    """One panel a group, one colour a way, one area the cost of inference over DA's."""
    figure = Figure(figsize=(5.2 * len(GROUPS), 5.2), layout="constrained")
    panels = figure.subplots(1, len(GROUPS), sharey=True)
    for axes, group in zip(panels, GROUPS, strict=True):
        for label, way in WAYS.items():
            lines: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
            for model, weight in way.models:
                point = _point(study.experiments.of(group, model, weight))
                if point is not None:
                    cost = study.costs.get(group, {}).get(model, {}).get("inference", 1.0)
                    lines[METHODS[model].is_convolutional].append((*point, cost))
            if label == "IR along ν":
                # The search's trials are of one seed.
                lines[False] = [
                    (*point, 1.0) for trial in study.experiments.trials(group, "IR") if (point := _point([trial]))
                ]
            for convolutional, points in lines.items():
                if not points:
                    continue
                x, y, cost = (np.array(values) for values in zip(*points, strict=True))
                marker = "s" if convolutional else "o"
                y = 100 - y
                axes.scatter(x, y, 60 * cost, color=way.colour, marker=marker, alpha=0.55, linewidths=0)
                axes.plot(x, y, color=way.colour, linewidth=1, alpha=0.7, marker=marker, markersize=2)
        axes.set(title=group, xlabel="SI", xlim=(0, 1.05), yscale="log")
        axes.grid(alpha=0.3)
    # Of errors, as one network may be wrong in two of a hundred images and another in seventy; the best are on top.
    panels[0].set(ylabel="accuracy %", yticks=[100 - tick for tick in ACCURACY_TICKS])
    panels[0].set_yticklabels([str(tick) for tick in ACCURACY_TICKS])
    panels[0].minorticks_off()
    panels[0].invert_yaxis()
    handles = [Line2D([], [], color=way.colour, marker="o", linewidth=1, label=label) for label, way in WAYS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _point(results: Sequence[Result]) -> tuple[float, float] | None:
    """SI and accuracy in per cent, means over seeds."""
    if not results:
        return None
    similarity, accuracy = (np.mean([each.test[measure][0] for each in results]) for measure in (SI, ACCURACY))
    return float(similarity), 100 * float(accuracy)
