"""Checks of the action: does it move all that it should, as the network, the labels and the layers can follow?"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_invariance._arguments import Arguments
from lightning_invariance._containers import place_in_words
from lightning_invariance._locate import OutputReader, what_stays
from lightning_invariance.auditing._findings import Finding, FindingName, Severity
from lightning_invariance.auditing._subject import (
    Skip,
    Subject,
    relative_error,
    rounding,
)
from lightning_invariance.evaluation import evaluate_layers
from lightning_invariance.functional._orbit_values import flat_samples
from lightning_invariance.orbit import misfits
from lightning_invariance.symmetry import size_in_the_way
from lightning_invariance.symmetry._factors import Refusal
from lightning_invariance.symmetry._group import SpatialGroup

#: One error is clearly smaller than another one if it is less than this part of it.
_CLEARLY = 0.25

#: A class is looked at if it has so many samples.
_ENOUGH = 10


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
    """Labels that the motion changes: a class is taken for a certain other one, which the inverse takes back for it.

    A network that merely fails on moved samples takes several classes for the same one, or one for several, and the
    other class does not come back.
    """
    logits = subject.run()
    target = subject.labels.of(logits)
    if subject.kind(logits) != "classes" or target is None or target.ndim != 1:
        raise Skip("there is no label for each sample, or the outputs are no scores of classes.")
    right = logits.argmax(dim=1) == target
    accuracy = float(right.double().mean())
    classes = [each for each in target.unique().tolist() if int((right & (target == each)).sum()) >= _ENOUGH]
    if accuracy < 0.5:
        raise Skip(f"the accuracy is {accuracy:.2g}, and nothing can be said of labels where it is below 0.5.")
    if not classes:
        raise Skip(f"no class has {_ENOUGH} samples that are classified correctly: raise `samples`.")
    predicted = subject.orbit().orbit_logits.argmax(dim=2)
    measured = {"accuracy": accuracy, "orbit_accuracy": float((predicted == target).double().mean())}
    told: dict[Severity, list[str]] = {"problem": [], "note": []}
    for element, moved in zip(subject.elements, predicted, strict=True):
        candidates = {}
        for each in classes:
            wrong = moved[right & (target == each) & (moved != each)]
            if not len(wrong):
                continue
            other = int(wrong.mode().values)
            taken = _taken(moved, target, right, each, other)
            if taken.at_least >= 0.5 and taken.of_others <= 0.1 * taken.share:
                candidates[each, other] = taken
        if not candidates:
            continue
        back = subject.run(subject.acting.attached(subject.x).invert(subject.x, element)).argmax(dim=1)
        for (each, other), taken in candidates.items():
            returned = _taken(back, target, right, other, each)
            # Of two classes there are no others to compare with: then most of both have to be exchanged.
            sure = (
                taken.of_others <= 0.05 * taken.share
                and returned.share >= 0.2
                and returned.at_least >= (0.1 if taken.others else 0.5)
                and returned.of_others <= 0.1 * returned.share
            )
            key = f"{subject.action.labels[element]}: {each} → {other}"
            measured[key] = taken.share
            measured[f"{key}, and back"] = returned.share
            and_back = f", and {100 * returned.share:.0f} % back" if not math.isnan(returned.share) else ""
            told["problem" if sure else "note"].append(f"{key} ({100 * taken.share:.0f} %{and_back})")
    numbers = f"The accuracy is {accuracy:.3g}, and over the orbit {measured['orbit_accuracy']:.3g}"
    if told["problem"]:
        said = (
            "Of samples that are classified correctly unmoved, some classes are taken for a certain other one once "
            f"they are moved, and that one for them by the inverse: {', '.join(told['problem'][:6])}."
        )
        remedy = (
            "Where an element turns a class into another one, as 6 into 9, leave it out of the group, or the class out "
            "of the measurement: an invariant network is wrong there. Where it does not, train those classes in that "
            "pose."
        )
        return Finding("changed_labels", "problem", said, remedy, measured)
    if told["note"]:
        said = (
            f"{numbers}. Classes are taken for a certain other one once they are moved: {', '.join(told['note'][:6])}."
        )
        remedy = (
            "It is a hint and no more: the other one does not come back in the same way, or cannot be seen to. Look at "
            "moved samples: is their label still right?"
        )
        return Finding("changed_labels", "note", said, remedy, measured)
    said = f"{numbers}: no class is taken for a certain other one, which would come back."
    return Finding("changed_labels", "fine", said, "", measured)


@dataclass(frozen=True)
class _Taken:
    """How often one class is taken for another one, and how often the rest is.

    Attributes:
        share: of the class's samples; NaN without any.
        at_least: what it is at least, with 97.5 % confidence.
        of_others: the share of all other classes' samples, which are neither of the two.
        others: how many of them there are.
    """

    share: float
    at_least: float
    of_others: float
    others: int


def _taken(predicted: Tensor, target: Tensor, right: Tensor, each: int, other: int) -> _Taken:
    own = predicted[right & (target == each)] == other
    rest = predicted[right & (target != each) & (target != other)] == other
    count, share = len(own), float(own.double().mean())
    of_others = float(rest.double().mean()) if len(rest) else 0.0
    return _Taken(share, _wilson(share, count) if count else torch.nan, of_others, len(rest))


def _wilson(share: float, count: int) -> float:
    """The lower end of the 95 % interval of a share, by Wilson, J. Am. Stat. Assoc. 22, 209 (1927)."""
    z = 1.96
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - half) / (1 + z * z / count)


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
    except Refusal as refusal:
        return _in_the_way(subject, refusal)
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


def _in_the_way(subject: Subject, refusal: Refusal) -> Finding:
    """A layer that no weights make symmetric, whatever the size of the input."""
    said, said_too, remedy = str(refusal).rpartition(": use ")
    if not said_too:
        said, said_too, remedy = str(refusal).rpartition(": make ")
    if not said_too or "register_rule" in remedy:
        raise Skip.because("the layers cannot be followed", refusal) from refusal
    error = relative_error(subject.orbit())
    said = f"No weights make this layer symmetric: in {said}."
    remedy = f"{said_too[2:].capitalize()}{remedy}."
    measured = {"relative_error": error}
    if error > rounding(subject.run()):
        return Finding("sizes", "note", f"{said} The network's error is {error:.2g}.", remedy, measured)
    return Finding("sizes", "note", f"{said} The network's error is {error:.2g}, which is rounding.", remedy, measured)


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
