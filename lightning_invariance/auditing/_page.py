"""An audit as a page: the verdict, a table of the groups, and each group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import isnan
from typing import TYPE_CHECKING, Literal

import torch

from lightning_invariance.auditing._findings import Severity
from lightning_invariance.auditing._group_audit import GroupAudit
from lightning_invariance.evaluation import MEASURES, KeptSamples, LayerResults, LayerRow
from lightning_invariance.metrics import Estimate
from lightning_invariance.metrics._base import SampleCounts
from lightning_invariance.report import plot_layers, plot_per_class, plot_worst, value_with_error
from lightning_invariance.report._motion import plot_over_motion
from lightning_invariance.report.html import Block, Items, Section, Table, Text, figure_of, page

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

    from lightning_invariance.auditing._result import Audit

#: What the measures tell, in the fewest words; those that are not here have their heading alone.
_TELLS = {
    "accuracy": "of the samples as they are",
    "orbit_accuracy": "of the moved samples",
    "worst_case_orbit_accuracy": "right in every pose",
    "prediction_consistency": "the predicted class stays; 1 is invariant",
    "logit_invariance_error": "½ ‖f(gx) − f(x)‖², in squared units of the output",
    "normalized_logit_invariance_error": "‖f(gx) − f(x)‖² / ‖f(x)‖²",
    "relative_logit_invariance_error": "relative to the outputs' variance between samples",
    "relative_equivariance_error": "relative to the outputs' size",
    "distribution_invariance_error": "how far the predicted probabilities move",
    "jensen_shannon_invariance_error": "the same, over the whole orbit",
    "orbit_share": "the share of the outputs' variance that the motion makes; 0 is invariant",
    "saliency_invariance_similarity": "how alike the saliency maps are; 1 is the same",
    "orbit_mean_iou": "of the masks in all poses",
    "vector_cosine_similarity": "how alike the directions are; 1 is the same",
    "lie_derivative_error": "how fast the output changes as the motion begins",
    "selectivity": "the answer to the group, over that to any other change of the input",
}

#: Those of the table of groups, in order, as far as they were measured.
_OVERVIEW = (
    "accuracy",
    "worst_case_orbit_accuracy",
    "prediction_consistency",
    "orbit_share",
    "relative_equivariance_error",
    "orbit_mean_iou",
    "vector_cosine_similarity",
    "normalized_logit_invariance_error",
)

#: How many columns of measures the table of groups has, and how many measures have a picture by class.
_COLUMNS, _PANELS = 4, 3

#: How many classes, elements and saliency maps are shown.
_MOST_CLASSES, _MOST_MOTIONS, _MOST_MAPS = 20, 24, 8

_STATUS: Mapping[Severity, Literal["good", "bad", "note"]] = {"problem": "bad", "note": "note", "fine": "good"}


@dataclass
class _ByClass:
    per_class: dict[str, Estimate]
    classes: tuple[str, ...]


def page_of(audit: Audit) -> str:
    """The page."""
    from lightning_invariance.auditing._result import verdict_of

    summary: list[Block] = [Text(verdict_of(audit))]
    if audit.conditions:
        summary.append(Items([("good" if each.passed else "bad", str(each)) for each in audit.conditions]))
    parameters = f"{audit.parameters:,} parameter{'' if audit.parameters == 1 else 's'}"
    first = f"The first {audit.looked_at:,} were looked at closer: saliency maps, layers, setup."
    closer = f" {first}" if audit.looked_at else ""
    summary.append(Text(f"{audit.network}, {parameters}, on {audit.samples:,} samples from {audit.data}.{closer}"))
    summary.append(Text(f"weights: {audit.weights}"))
    summary.append(overview_of(audit))
    sections = [_group(group) for group in audit.groups.values()]
    return page(f"Audit of {audit.network}", summary, sections, choose="group" if len(sections) > 1 else None)


def overview_of(audit: Audit) -> Table:
    """A row for each group."""
    names = list(dict.fromkeys(name for group in audit.groups.values() for name in group.measures))
    shown = sorted((name for name in names if _measure(name) in _OVERVIEW), key=_rank)[:_COLUMNS] or names[:_COLUMNS]
    heading = ["group", "motions", *map(_heading, shown), "trust", "breaks at"]
    rows = [
        [
            group.name,
            len(group.action) - 1,
            *(_shown(group.measures.get(name)) for name in shown),
            _trust(group),
            _breaks_at(group.layers),
        ]
        for group in audit.groups.values()
    ]
    return Table(
        heading,
        rows,
        caption="Groups",
        note="Values ± standard errors over samples. Motions are the elements but the identity, which never counts.",
    )


def _group(group: GroupAudit) -> Section:
    parts = (
        ("How invariant it is", _measures),
        ("Can the numbers be trusted?", _setup),
        ("Which motions change it", _motions),
        ("Where it breaks", _layers),
        ("Which classes", _classes),
        ("The worst samples", _worst),
    )
    return Section(
        group.name,
        [Text(_in_words(group))],
        [Section(title, blocks) for title, make in parts if (blocks := list(make(group)))],
    )


def _picture(draw: Callable[[], MatplotlibFigure], alt: str, caption: str = "") -> Block:
    """A picture, or why there is none."""
    try:
        return figure_of(draw(), alt, caption)
    except ModuleNotFoundError as error:
        return Text(f"There is no picture. {error}")


def _in_words(group: GroupAudit) -> str:
    labels = group.action.labels[1:]
    few = ", ".join(labels[:8]) + (", …" if len(labels) > 8 else "")
    said = [f"{group.action!r}: {len(labels)} motion{'s' if len(labels) > 1 else ''} ({few})."]
    found = {name: group.found[name] for name in ("input", "logits", "labels", "saliency") if group.found.get(name)}
    if found:
        said.append("Found: " + "; ".join(f"{name}: {each}" for name, each in found.items()) + ".")
    return "\n\n".join(said)


# Parts ----------------------------------------------------------------------------------------------------------------


def _measures(group: GroupAudit) -> Iterator[Block]:
    floors = _floors(group)
    lost = group.not_finite
    if lost:
        said = [
            f"{why[:1].upper()}{why[1:]}: {', '.join(_heading(name) for name, each in lost.items() if each == why)}."
            for why in dict.fromkeys(lost.values())
        ]
        yield Items([("bad", each) for each in said])
    without = any(each.not_finite or each.undefined for each in group.counts.values())
    rows: list[list[str | float | int | None]] = [
        [
            _heading(name),
            _shown(estimate),
            *([value_with_error(floors[name]) if name in floors else None] if floors else []),
            *_counted(group.counts.get(name), without),
            _TELLS.get(_measure(name), ""),
            name.replace("/", "."),
        ]
        for name, estimate in group.measures.items()
        if estimate.value.numel() == 1
    ]
    heading = ["measure", "value", *(["noise floor"] if floors else []), "samples", *(["left out"] if without else [])]
    note = "The noise floor is what an exactly invariant network gets on these data. " if floors else ""
    note += "Samples are those that a measure rests on."
    if without:
        note += " Left out are those that are NaN or infinite in some pose, and those that it is undefined of."
    yield Table([*heading, "tells", "in conditions"], rows, caption="Measures", note=note)
    yield from _why(group, "measures", "maps")


def _setup(group: GroupAudit) -> Iterator[Block]:
    if group.setup is None:
        yield from _why(group, "setup")
        return
    order: tuple[Severity, ...] = ("problem", "note", "fine")
    findings = [each for severity in order for each in group.setup.findings if each.severity == severity]
    # What is as it should be is named in one line, but for the floor that all numbers are read against.
    told = [each for each in findings if each.severity != "fine" or each.name == "noise_floor"]
    items: list[tuple[Literal["good", "bad", "note"], str]] = [
        (_STATUS[each.severity], f"{_words(each.name)}: {each.said} {each.remedy}".strip()) for each in told
    ]
    fine = [_words(each.name).lower() for each in findings if each not in told]
    if fine:
        items.append(("good", f"As it should be: {', '.join(fine)}."))
    yield Items(items)
    if group.setup.skipped:
        skipped = " ".join(f"{_words(name)}: {why}" for name, why in group.setup.skipped.items())
        yield Text(f"Not looked at. {skipped}")


def _motions(group: GroupAudit) -> Iterator[Block]:
    if not group.by_element:
        return
    motion, count = group.motion, len(group.action) - 1
    estimates = {_heading(name): estimate for name, estimate in group.by_element.items()}
    places, note = torch.arange(count), ""
    if count > _MOST_MOTIONS:
        farthest = next(iter(estimates.values())).value.nan_to_num(-1.0).argsort(descending=True)
        places = farthest[:_MOST_MOTIONS].cpu().sort().values
        note = f"The {_MOST_MOTIONS} motions that change the output most, of {count}; all are in the JSON."
    fewer = {name: _rows(estimate, places) for name, estimate in estimates.items()}
    labels = tuple(group.action.labels[place + 1] for place in places.tolist())
    curve = motion is not None and count >= 3
    over = f"over the {motion.name}" if curve and motion is not None else "by motion"
    band = (
        "The band is one standard error; the dotted line is where nothing moves." if curve else "With standard errors."
    )
    ranges = "; ".join(
        f"{name} from {value_with_error(float(each.value.min()))} to {value_with_error(float(each.value.max()))}"
        for name, each in estimates.items()
    )
    # A curve has room for all of them, bars have not.
    shown, names = (estimates, group.action.labels) if curve else (fewer, ("identity", *labels))
    yield _picture(
        partial(plot_over_motion, shown, motion, names),
        f"Measures {over}: {ranges}.",
        f"The output's relative change, and for classes how many predictions stay and are right, {over}. {band}",
    )
    rows: list[list[str | float | int | None]] = []
    for row, (label, place) in enumerate(zip(labels, places.tolist(), strict=True)):
        size = [] if motion is None else [f"{motion.values[place + 1]:.4g}"]
        rows.append([label, *size, *(_shown(_rows(each, row)) for each in fewer.values())])
    sizes = [] if motion is None else [motion.heading]
    yield Table(["motion", *sizes, *fewer], rows, caption="By motion", note=note)


def _layers(group: GroupAudit) -> Iterator[Block]:
    layers = group.layers
    if layers is None:
        yield from _why(group, "layers")
        return
    yield Text(layers.in_words())
    shown = [*layers.rows]
    broken = layers.break_row
    if broken is not None and all(row is not broken for row in shown):
        shown = sorted([*shown, broken], key=lambda row: row.depth)
    rows: list[list[str | float | int | None]] = [
        [
            row.label,
            _kind(row) + (" ← breaks" if row is broken else ""),
            _number(row.error),
            _number(row.floor),
            row.note,
        ]
        for row in shown
    ]
    yield _picture(
        partial(plot_layers, {group.name: layers}),
        f"The error of each layer over the depth of the network. {layers.in_words()}",
        "The orbit share of each layer's output over depth; dotted, what is rounding or interpolation.",
    )
    yield Table(
        ["layer", "kind", "error", "floor", "note"],
        rows,
        caption=f"Layers on {layers.samples:,} samples",
        note="The error is the smallest orbit share: of the output as it is, moved back, or with channels matched too.",
        sort=False,
    )


def _classes(group: GroupAudit) -> Iterator[Block]:
    single = {name: each for name, each in group.per_class.items() if each.value.ndim == 1}
    names = sorted((name for name in single if _measure(name) in _OVERVIEW), key=_rank) or list(single)
    if not names:
        yield from _why(group, "classes")
        return
    places = torch.arange(len(group.classes))
    note = ""
    if len(places) > _MOST_CLASSES:
        worst = _how_bad(names, single)
        places = worst.argsort(descending=True)[:_MOST_CLASSES].sort().values
        note = f"The {_MOST_CLASSES} classes that fare worst, of {len(group.classes)}; all are in the JSON."
    classes = tuple(group.classes[place] for place in places.tolist())
    chosen = {name: _rows(single[name], places) for name in names[: _COLUMNS + 1]}
    few = {name: each for name, each in chosen.items() if name in names[:_PANELS]}
    yield _picture(
        partial(plot_per_class, _ByClass(few, classes)),
        f"{', '.join(map(_heading, few))} of each class; the numbers are in the table below.",
    )
    rows: list[list[str | float | int | None]] = [
        [label, *(_shown(_rows(each, row)) for each in chosen.values())] for row, label in enumerate(classes)
    ]
    yield Table(["class", *map(_heading, chosen)], rows, caption="By class", note=note)


def _how_bad(names: list[str], single: Mapping[str, Estimate]) -> torch.Tensor:
    """Larger is worse, by the measure that says most of invariance."""
    for name in ("prediction_consistency", "worst_case_orbit_accuracy", "orbit_share"):
        if name in names:
            value = single[name].value.double()
            return (value if name == "orbit_share" else -value).nan_to_num(-torch.inf)
    return single[names[0]].value.double().nan_to_num(-torch.inf)


def _worst(group: GroupAudit) -> Iterator[Block]:
    kept = group.worst
    if kept is None or not len(kept):
        yield from _why(group, "worst")
        return
    fewer, left_out = _with_few_maps(kept)
    images = isinstance(kept.inputs, torch.Tensor) and kept.inputs.ndim == 4
    if images:
        yield _picture(
            partial(plot_worst, fewer, n=len(fewer)),
            f"The {len(kept)} samples whose output moves farthest, each beside itself moved"
            + (", and its saliency maps over the orbit." if kept.saliency is not None else "."),
            "From the left: the sample's number, label and error; the sample, and the same moved, with the class that "
            "is predicted; where the network looks in each pose, brought back. An invariant network looks at the same "
            f"places in all poses.{left_out}",
        )
    else:
        yield Text("These samples are no images of one size, which could be shown side by side.")
    yield Table(
        ["sample", "label", "motion", "error"],
        [
            [
                str(int(kept.index[row])),
                None if kept.target is None or kept.target.ndim != 1 else _class_name(group, int(kept.target[row])),
                kept.labels[row],
                value_with_error(float(kept.errors[row])),
            ]
            for row in range(len(kept))
        ],
        caption="The samples whose output one motion moves farthest",
        note="The error is ½ ‖f(gx) − f(x)‖² of that motion. Samples are counted from 0, in the order of the data.",
    )
    if images and kept.saliency is None:
        yield from _why(group, "maps")


def _with_few_maps(kept: KeptSamples) -> tuple[KeptSamples, str]:
    """With the saliency maps of so many elements that a page can show them."""
    count = len(kept.elements)
    if not isinstance(kept.orbit_saliency, torch.Tensor) or count <= _MOST_MAPS:
        return kept, ""
    chosen = torch.linspace(0, count - 2, _MOST_MAPS - 1).round().long()
    elements = (kept.elements[0], *(kept.elements[place + 1] for place in chosen.tolist()))
    fewer = replace(kept, orbit_saliency=kept.orbit_saliency[chosen], elements=elements)
    return fewer, f" {len(chosen)} of {count - 1} motions have a map here."


# Words and numbers ----------------------------------------------------------------------------------------------------


def _why(group: GroupAudit, *parts: str) -> Iterator[Block]:
    """Why parts are missing."""
    said = list(dict.fromkeys(group.left_out[part] for part in parts if part in group.left_out))
    if said:
        yield Text("Left out. " + " ".join(said))


def _floors(group: GroupAudit) -> dict[str, float]:
    if group.setup is None or "noise_floor" not in group.setup:
        return {}
    measured = group.setup["noise_floor"].measured
    return {name: measured[f"{name}_floor"] for name in group.measures if f"{name}_floor" in measured}


def _shown(estimate: Estimate | None) -> str | None:
    if estimate is None or estimate.value.numel() != 1 or isnan(float(estimate.value)):
        return None
    return value_with_error(float(estimate.value), float(estimate.standard_error))


def _counted(counts: SampleCounts | None, with_left_out: bool) -> list[int | None]:
    """How many samples, and how many are left out."""
    if counts is None:
        return [None, None] if with_left_out else [None]
    return [counts.measured, counts.not_finite + counts.undefined] if with_left_out else [counts.measured]


def _rows(estimate: Estimate, places: int | torch.Tensor) -> Estimate:
    """Those of some classes, or elements."""
    return Estimate(estimate.value[places], estimate.standard_error[places])


def _number(value: Estimate | float) -> str | None:
    number = float(value.value if isinstance(value, Estimate) else value)
    return None if isnan(number) else value_with_error(number)


def _trust(group: GroupAudit) -> str | None:
    setup = group.setup
    if group.not_finite:
        return "not all samples are finite"
    if setup is None:
        return None
    count = len(setup.problems)
    if count:
        return f"{count} problem{'s' if count > 1 else ''}"
    notes = sum(each.severity == "note" for each in setup.findings)
    return f"{notes} note{'s' if notes > 1 else ''}" if notes else "fine"


def _breaks_at(layers: LayerResults | None) -> str | None:
    if layers is None:
        return None
    row = layers.break_row
    if row is not None:
        return f"{row.label} ({_kind(row)})"
    judged = any(not isnan(float(each.error.value)) for each in layers.rows)
    return "nowhere" if judged else "not known"


def _kind(row: LayerRow) -> str:
    return row.kind or row.note.split(";")[0] or "code"


def _class_name(group: GroupAudit, label: int) -> str:
    return group.classes[label] if 0 <= label < len(group.classes) else str(label)


def _measure(name: str) -> str:
    return name.rpartition("/")[2]


def _rank(name: str) -> int:
    return _OVERVIEW.index(_measure(name))


def _heading(name: str) -> str:
    """A measure's heading, behind the output's where there are several."""
    output, _, measure = name.rpartition("/")
    heading = MEASURES[measure].heading if measure in MEASURES else measure
    return f"{output}: {heading}" if output else heading


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()
