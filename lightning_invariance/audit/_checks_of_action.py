"""Checks of the action: does it move all that it should, as the network, the labels and the layers can follow?"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from lightning_invariance._arguments import Arguments
from lightning_invariance._containers import place_in_words
from lightning_invariance._locate import OutputReader, what_stays
from lightning_invariance.audit._findings import Finding, FindingName, Severity
from lightning_invariance.audit._subject import (
    Skip,
    Subject,
    relative_error,
    rounding,
)
from lightning_invariance.evaluation import evaluate_layers
from lightning_invariance.functional._orbit_values import flat_samples
from lightning_invariance.orbit import misfits
from lightning_invariance.symmetry import size_in_the_way
from lightning_invariance.symmetry._group import SpatialGroup

#: One error is clearly smaller than another one if it is less than this part of it.
_CLEARLY = 0.25


def unmoved_inputs(subject: Subject) -> Finding:
    """Parts of the input that do not move, and samples that no element changes."""
    name: FindingName = "unmoved_inputs"
    x, acting = subject.x, subject.acting.attached(subject.x)
    changed = torch.stack(
        [(flat_samples(acting.act(x, each)) != flat_samples(x)).any(dim=1) for each in subject.elements]
    )
    samples, elements = float((~changed.any(dim=0)).double().mean()), float((~changed.any(dim=1)).double().mean())
    measured = {"unmoved_samples": samples, "unmoved_elements": elements}
    if samples == 1:
        said = f"No element of {subject.action!r} changes any of the samples."
        return Finding(name, "problem", said, "Errors are 0 whatever the network does: choose another group.", measured)
    error = relative_error(subject.orbit())
    worst: tuple[float, str] | None = None
    for path, tensor in subject.arguments.others:
        together = _moved_together(subject, path, tensor)
        if together is None:
            continue
        where = place_in_words(path)
        measured[f"relative_error_moving_{where}"] = together
        if error > rounding(subject.run()) and together < _CLEARLY * error and (worst is None or together < worst[0]):
            worst = together, where
    measured["relative_error"] = error
    if worst is not None:
        said = (
            f"{worst[1].capitalize()} stays where it is while the input moves: if both move together the error is "
            f"{worst[0]:.2g}, where it is {error:.2g}."
        )
        return Finding(name, "problem", said, "Name all that move together in a list: `input=[...]`.", measured)
    if len(measured) > 3 and what_stays(None, subject.action, subject.arguments, None):
        said = "A tensor with the places that the group moves stays, and the error is no smaller if it moves too."
        return Finding(name, "note", said, "Name it in `input=[...]` if it belongs to the input.", measured)
    if samples or elements:
        said = f"{100 * samples:.3g} % of the samples, and {100 * elements:.3g} % of the elements, change nothing."
        return Finding(name, "note", said, "Their errors are 0, and make the mean smaller.", measured)
    return Finding(
        name, "fine", "Every element moves the input, and nothing that should move with it stays.", "", measured
    )


def _moved_together(subject: Subject, path: Any, tensor: Tensor) -> float | None:
    """The error where another tensor moves with the input; None where it cannot, or stays by itself."""
    given = subject.arguments
    try:
        move = subject.action.alongside(given.inputs[0], tensor)
        move.check(tensor)
        if all(torch.equal(move.act(tensor, each), tensor) for each in subject.elements[:4]):
            return None
        both = Arguments(given.args, given.kwargs, (*given.paths, path)).joined(subject.action)
        return relative_error(subject.with_arguments(both).orbit())
    except (ValueError, RuntimeError, IndexError):
        return None


def output_action(subject: Subject) -> Finding:
    """Whether the outputs agree better if they move in another way than was said."""
    names = subject.motion.names
    if names is None:
        return _output_action(subject, "")
    found = [_output_action(subject.only(name), f" {name!r}") for name in names]
    order: tuple[Severity, ...] = ("problem", "note", "fine")
    worst = min(found, key=lambda each: order.index(each.severity))
    measured = {
        f"{name}/{key}": value for name, each in zip(names, found, strict=True) for key, value in each.measured.items()
    }
    return Finding(worst.name, worst.severity, worst.said, worst.remedy, measured)


def _output_action(subject: Subject, which: str) -> Finding:
    name: FindingName = "output_action"
    subject = subject.first(8)
    network, _ = subject.network()
    x, logits = subject.x, network(subject.x)
    stays = subject.motion.stays
    if stays:
        scores = logits.ndim <= 2 and subject.labels.of(logits) is not None
        move = None
        if not scores and subject.arguments.joint is None:
            with suppress(ValueError):
                move = subject.action.on_output(x, logits)
        if move is None:
            error = relative_error(subject.orbit())
            said = f"The output{which} is taken to stay, and does not have the places that the group moves."
            return Finding(name, "fine", said, "", {"relative_error": error})
    else:
        move = subject.motion.on(subject.acting, x, logits, None)
        if move is None:
            return Finding(name, "fine", f"The output{which} is taken to stay.", "", {})
    found = misfits(network, x, logits, subject.acting, move)
    ways = {"moving": found.said, "moving_inversely": found.other, "staying": found.still}
    measured = {way: (error / found.size) ** 0.5 if found.size else torch.nan for way, error in ways.items()}
    numbers = ", ".join(f"{value:.2g} {way.replace('_', ' ')}" for way, value in measured.items())
    if stays:
        moving = min(found.said, found.other)
        if moving < _CLEARLY**2 * found.still and found.still > 1e-10 * found.size:
            how = "'same'" if found.said <= found.other else "the action of the inverse elements"
            said = f"The output{which} is taken to stay, but agrees better if it moves too: errors of {numbers}."
            return Finding(name, "problem", said, f"Say so: output_action={how}.", measured)
        return Finding(
            name, "fine", f"The output{which} stays better than it moves: errors of {numbers}.", "", measured
        )
    better = found.better()
    if better is not None:
        said = f"The output{which} does not move as `output_action` says; {better[0]}: errors of {numbers}."
        remedy = (
            "Exchange it: the action of the inverse elements has act and invert exchanged; None says that it stays."
        )
        return Finding(name, "problem", said, remedy, measured)
    return Finding(name, "fine", f"The output{which} moves as it is said to: errors of {numbers}.", "", measured)


def changed_labels(subject: Subject) -> Finding:
    """Labels that the motion changes: some classes are taken for certain others, while the rest are right."""
    logits = subject.run()
    target = subject.labels.of(logits)
    if subject.kind(logits) != "classes" or target is None or target.ndim != 1:
        raise Skip("there is no label for each sample, or the outputs are no scores of classes.")
    predicted = subject.orbit().orbit_logits.argmax(dim=2)
    right = logits.argmax(dim=1) == target
    classes = [each for each in target.unique().tolist() if int((right & (target == each)).sum()) >= 5]
    measured = {
        "accuracy": float(right.double().mean()),
        "orbit_accuracy": float((predicted == target).double().mean()),
    }
    if len(classes) < 2:
        raise Skip("fewer than two classes have five samples that are classified correctly.")
    fallen: dict[str, float] = {}
    for place, element in enumerate(subject.elements):
        wrong, taken, share = {}, {}, {}
        for each in classes:
            own = predicted[place, right & (target == each)]
            others = own[own != each]
            wrong[each] = len(others) / len(own)
            taken[each] = int(others.mode().values) if len(others) else each
            share[each] = float((own == taken[each]).double().mean()) if len(others) else 0.0
        lost = [each for each in classes if wrong[each] >= 0.5]
        rest = [wrong[each] for each in classes if wrong[each] < 0.5]
        few = len(rest) >= len(lost) > 0 and sum(rest) / len(rest) <= _CLEARLY * min(wrong[each] for each in lost)
        # All of them, each for another one: a class is not lost but moved.
        moved = len({taken[each] for each in lost}) == len(classes) and min(share.values()) >= 0.8
        if few or moved:
            for each in lost:
                fallen[f"{subject.action.labels[element]}: {each} → {taken[each]}"] = wrong[each]
    if not fallen:
        said = (
            f"The accuracy is {measured['accuracy']:.3g}, and over the orbit {measured['orbit_accuracy']:.3g}: there "
            "are no few classes that it falls for alone."
        )
        return Finding("changed_labels", "fine", said, "", measured)
    listed = ", ".join(f"{key} ({100 * value:.0f} %)" for key, value in list(fallen.items())[:6])
    return Finding(
        "changed_labels",
        "problem",
        "Of samples that are classified correctly unmoved, some classes are taken for others once they are moved, "
        f"while the rest stay right: {listed}.",
        "Where an element turns a class into another one, as 6 into 9, leave it out of the group, or the class out of "
        "the measurement: an invariant network is wrong there. Where it does not, train those classes in that pose.",
        {**measured, **fallen},
    )


def layers(subject: Subject) -> Finding:
    """The layer where the symmetry ends."""
    if not isinstance(subject.module, nn.Module) or len(list(subject.module.modules())) == 1:
        raise Skip("the network has no layers that can be seen.")
    try:
        found = evaluate_layers(
            subject.function,
            [subject.batch],
            subject.action,
            input=subject.input,
            target=subject.target,
            progress=False,
        )
    except (ValueError, RuntimeError, ModuleNotFoundError) as failure:
        raise Skip.because("the layers cannot be measured", failure) from failure
    row = found.break_row
    if row is None:
        return Finding("layers", "fine", "Every layer that can be judged moves as its input does.", "", {})
    whose = f"{row.name!r}, {row.kind}" if row.name else "the network's own forward"
    said = f"The first layer that does not move as its input does is {whose}."
    remedy = (
        "Ordinary weights do not move as their input does: `InvariantWeights` makes them so. Where they are "
        "symmetric, look at the layer's stride, its padding and the size of its input."
    )
    return Finding("layers", "note", said, remedy, {"orbit_share": float(row.error.value), "floor": row.floor})


def sizes(subject: Subject) -> Finding:
    """The first layer whose stride or windows cannot be symmetric on inputs of this size."""
    if not isinstance(subject.function, nn.Module):
        raise Skip("the network is no module whose layers can be followed.")
    reader = OutputReader(subject.select, subject.motion.names)
    try:
        found = size_in_the_way(subject.function, subject.action, subject.arguments, subject.motion, reader)
    except (ValueError, RuntimeError, NotImplementedError) as failure:
        raise Skip.because("the layers cannot be followed", failure) from failure
    if found is None:
        return Finding("sizes", "fine", "Every stride and window fits inputs of this size.", "", {})
    said, fitting = found
    said = f"No weights make this layer symmetric on inputs of this size: in {said}."
    error = relative_error(subject.orbit())
    measured = {"relative_error": error}
    for text in fitting:
        other = _of_size(subject, [int(size) for size in text.split("×")])
        if other is not None:
            measured[f"relative_error_at_{text}"] = other
    remedy = f"Inputs of {' or '.join(fitting)} would do for all layers." if fitting else "Change that layer."
    best = min((value for key, value in measured.items() if key != "relative_error"), default=error)
    if error > rounding(subject.run()) and best < _CLEARLY * error:
        said += f" Cut or padded to another one they have an error of {best:.2g}, where it is {error:.2g}."
        return Finding("sizes", "problem", said, remedy, measured)
    said += " The network's error does not hang on it, as it is."
    return Finding("sizes", "note", said, remedy, measured)


def _of_size(subject: Subject, sizes: list[int]) -> float | None:
    """The error on inputs that are cut or padded to another size; None where the network does not run on them."""
    if subject.arguments.joint is not None:
        return None
    x = subject.x
    for dim, size in zip(SpatialGroup(subject.action, x).dims, sizes, strict=True):
        kept = x.narrow(dim, 0, min(size, x.shape[dim]))
        lacking = [*kept.shape]
        lacking[dim] = size - kept.shape[dim]
        x = torch.cat([kept, kept.new_zeros(lacking)], dim=dim)
    args, kwargs = subject.arguments.with_input(x)
    try:
        return relative_error(subject.with_arguments(Arguments(args, kwargs, subject.arguments.paths)).orbit())
    except (RuntimeError, ValueError):
        return None
