"""Checks of errors: can they be told from rounding, interpolation, modes and chance?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_invariance._isolation import preserved_buffers
from lightning_invariance.auditing._findings import Finding, Severity
from lightning_invariance.auditing._subject import (
    ROUNDINGS,
    Skip,
    Subject,
    quiet,
    relative_error,
    relative_gap,
    rounding,
    spread_over,
    training_mode,
)
from lightning_invariance.functional import (
    distribution_invariance_error,
    logit_invariance_error,
    orbit_share,
    relative_logit_invariance_error,
)
from lightning_invariance.outputs import OrbitOutputs

#: Less than this part of an error is left in float64 where it is rounding.
_LITTLE = 0.1


def noise_floor(subject: Subject) -> Finding:
    """What the measures give for an exactly invariant network, of the same action and data."""
    group = subject.action.cayley_table is not None
    elements = spread_over(len(subject.action), 8)
    # The reference is the network over the orbit of the orbit.
    most = 8192 // (len(subject.action) * (len(elements) + 1)) if group else 32
    subject = subject.first(max(1, min(32, most)))
    outputs = subject.orbit(elements)
    error = relative_error(outputs)
    there_and_back = _there_and_back(subject, outputs.logits, elements)
    measured = {"relative_error": error, "there_and_back": there_and_back}
    floor, what = there_and_back, "A network's output for inputs that are moved there and back changes by"
    if group:
        reference = subject.reference(elements)
        floor, what = (
            relative_error(reference),
            "The network averaged over the orbit, an invariant one, has an error of",
        )
        for name, value in _errors(outputs, subject).items():
            measured[name] = value
        for name, value in _errors(reference, subject).items():
            measured[f"{name}_floor"] = value
    if not error >= 0 or not floor >= 0:
        raise Skip("the outputs are 0.")
    measured |= {"relative_error_floor": floor, "multiple": error / floor if floor else torch.inf}
    said = f"{what} {floor:.1e} of the outputs' size; the network's own error is {error:.1e}"
    if floor <= rounding(outputs.logits):
        if error <= 10 * floor:
            return Finding("noise_floor", "fine", f"{said}: it is as symmetric as can be measured.", "", measured)
        times = f", {measured['multiple']:.3g} times that" if floor else ""
        exact = _error_in_float64(subject, elements)
        if exact is not None and exact < _LITTLE * error:
            measured["relative_error_float64"] = exact
            said = f"{said}{times}, but {exact:.1e} in float64: it is rounding all the same."
            if error <= rounding(outputs.logits):
                return Finding("noise_floor", "fine", said, "", measured)
            return Finding("noise_floor", "note", said, "See `precision`.", measured)
        return Finding("noise_floor", "fine", f"{said}{times}, far above rounding.", "", measured)
    remedy = (
        "Interpolation does that: use elements that move places exactly (C4, D4, flips, shifts), smoother or larger "
        "inputs, or read errors as multiples of this floor."
    )
    severity: Severity = "note" if error > 2 * floor else "problem"
    rest = f", {error / floor:.3g} times that."
    return Finding("noise_floor", severity, f"{said}{rest}", remedy, measured)


def _error_in_float64(subject: Subject, elements: list[int]) -> float | None:
    """The error of a copy in float64; None where the network runs in it already, or there is no such copy."""
    if subject.run().dtype == torch.float64:
        return None
    try:
        doubled = subject.doubled()
        with preserved_buffers(doubled.module):
            return relative_error(doubled.orbit(elements))
    except (Skip, RuntimeError, TypeError, ValueError):
        return None


def _there_and_back(subject: Subject, logits: Tensor, elements: list[int]) -> float:
    x, acting = subject.x, subject.acting.attached(subject.x)
    gaps = [relative_gap(logits, subject.run(acting.invert(acting.act(x, each), each))) for each in elements]
    return sum(gaps) / len(gaps)


def _errors(outputs: OrbitOutputs, subject: Subject) -> dict[str, float]:
    """Errors by the names of the measures."""
    base, orbit = outputs.logits, outputs.orbit_logits
    with quiet():
        values = {"logit_invariance_error": logit_invariance_error(base, orbit, valid=outputs.valid)}
        if outputs.valid is None:
            values["relative_logit_invariance_error"] = relative_logit_invariance_error(base, orbit)
        if subject.kind(base) == "classes":
            values["distribution_invariance_error"] = distribution_invariance_error(base, orbit)
            values["orbit_share"] = orbit_share(base, orbit)
    return {name: float(value) for name, value in values.items() if not value.isnan()}


def precision(subject: Subject) -> Finding:
    """The error in the network's precision and in float64."""
    subject = subject.first(32)
    outputs = subject.orbit()
    if outputs.logits.dtype == torch.float64:
        raise Skip("the network runs in float64.")
    error = relative_error(outputs)
    doubled = subject.doubled()
    try:
        with preserved_buffers(doubled.module):
            exact_outputs = doubled.orbit()
    except (RuntimeError, TypeError, ValueError) as failure:
        raise Skip.because("the network does not run in float64", failure) from failure
    exact = relative_error(exact_outputs)
    name = str(outputs.logits.dtype).removeprefix("torch.")
    measured = {"relative_error": error, "relative_error_float64": exact}
    measured["gap"] = relative_gap(exact_outputs.logits, outputs.logits)
    said = f"The error is {error:.1e} of the outputs' size in {name} and {exact:.1e} in float64"
    if not error >= 0 or not exact >= 0:
        raise Skip("the outputs are 0.")
    small = ROUNDINGS * torch.finfo(torch.float32).eps
    if exact <= 0.5 * error <= 0.5 * small or max(exact, error) <= 1e-12:
        return Finding("precision", "fine", f"{said}: what is left in {name} is rounding.", "", measured)
    if error <= 2 * exact and exact <= 2 * error:
        return Finding("precision", "fine", f"{said}: it is the network's, not rounding's.", "", measured)
    remedy = "Measure in float64 (`network.double()`), or take differences of that size for nothing."
    severity: Severity = "problem" if exact < _LITTLE * error and error > rounding(outputs.logits) else "note"
    return Finding("precision", severity, f"{said}: what is measured in {name} is its rounding.", remedy, measured)


def modes(subject: Subject) -> Finding:
    """The error in train mode and in eval mode."""
    if len(list(subject.module.modules())) == 1 and isinstance(subject.module, nn.ModuleList):
        raise Skip("no module can be seen behind the network.")
    subject = subject.first(32)
    outputs = subject.orbit()
    try:
        with training_mode(subject.module), preserved_buffers(subject.module):
            trained = subject.orbit()
    except (RuntimeError, ValueError) as failure:
        raise Skip.because("the network does not run in train mode", failure) from failure
    error, other = relative_error(outputs), relative_error(trained)
    gap = relative_gap(outputs.logits, trained.logits)
    measured = {"relative_error": error, "relative_error_train": other, "gap": gap}
    if not gap > rounding(outputs.logits):
        return Finding("modes", "fine", "The network gives the same in train mode as in eval mode.", "", measured)
    said = (
        f"In train mode the outputs differ by {gap:.2g} of their size, and the error is {other:.2g} where it is "
        f"{error:.2g} in eval mode"
    )
    if other <= 2 * error and error <= 2 * other:
        return Finding("modes", "fine", f"{said}: much the same.", "", measured)
    remedy = (
        "Say which one is reported: monitors and `evaluate_invariance` measure in eval mode, while a regularizer's "
        "term is that of train mode."
    )
    return Finding("modes", "note", f"{said}.", remedy, measured)


def repeats(subject: Subject) -> Finding:
    """A second run of the same batch."""
    network, _ = subject.network()
    network = network.started_nowhere()
    first, second = network(subject.x), network(subject.x)
    gap = relative_gap(first, second)
    measured = {"gap": gap, "relative_error": relative_error(subject.orbit())}
    if gap == 0:
        return Finding("repeats", "fine", "A second run of the same batch gives the same outputs.", "", measured)
    said = f"A second run of the same batch, in eval mode, gives outputs that differ by {gap:.1e} of their size."
    if gap <= rounding(first):
        return Finding("repeats", "note", said, "Sums in another order do that; errors below it are nothing.", measured)
    remedy = (
        "It draws random numbers, or keeps a state that is no buffer: draw them in train mode alone (`self.training`). "
        "`evaluate_invariance` gives all poses the same random numbers, so that its errors are those of one draw."
    )
    return Finding("repeats", "problem", said, remedy, measured)


def samples(subject: Subject) -> Finding:
    """The outputs of half of the samples, alone and together with the others."""
    count = len(subject.x)
    if count < 2 or not subject.arguments.is_divisible:
        raise Skip("there is one sample, or the batch cannot be divided.")
    whole, part = subject.run(), (count + 1) // 2
    try:
        alone = subject.first(part).run()
    except (RuntimeError, ValueError) as failure:
        raise Skip.because("the network does not run on half of the batch", failure) from failure
    if whole.shape[:1] != (count,) or alone.shape != (part, *whole.shape[1:]):
        raise Skip("the outputs are not one for each sample.")
    gap = relative_gap(whole[:part], alone)
    said = f"The outputs of half of the samples differ by {gap:.1e} of their size without the other half"
    if not gap > rounding(whole):
        return Finding("samples", "fine", f"{said}: samples do not hang on each other.", "", {"gap": gap})
    if relative_gap(whole, subject.run()) > 0.1 * gap:
        raise Skip("a second run of the same batch gives other outputs.")
    remedy = (
        "In eval mode a sample's output should be its own: look for batch normalization without running statistics "
        "(`track_running_stats=False`), a forward that calls `train()`, or means over the batch. Errors hang on how "
        "samples are dealt into batches otherwise."
    )
    return Finding("samples", "problem", f"{said}: it hangs on which samples share a batch.", remedy, {"gap": gap})
