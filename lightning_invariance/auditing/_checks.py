"""The checks: each a function from a `Subject` to a `Finding`, decided by a measurement."""

from __future__ import annotations

from collections.abc import Callable

from lightning_invariance.auditing._checks_of_action import changed_labels, layers, output_action, sizes, unmoved_inputs
from lightning_invariance.auditing._checks_of_errors import modes, noise_floor, precision, repeats, samples
from lightning_invariance.auditing._checks_of_outputs import (
    collapsed_logits,
    common_part,
    constant_output,
    finite_outputs,
    saturated_softmax,
    single_output,
    ties,
)
from lightning_invariance.auditing._findings import Finding, FindingName
from lightning_invariance.auditing._subject import Subject

Check = Callable[[Subject], Finding]

#: All checks by name, in the order in which they are made. A new one is a function and a line.
CHECKS: dict[FindingName, Check] = {
    "finite_outputs": finite_outputs,
    "noise_floor": noise_floor,
    "precision": precision,
    "modes": modes,
    "repeats": repeats,
    "samples": samples,
    "unmoved_inputs": unmoved_inputs,
    "output_action": output_action,
    "changed_labels": changed_labels,
    "sizes": sizes,
    "layers": layers,
    "ties": ties,
    "constant_output": constant_output,
    "collapsed_logits": collapsed_logits,
    "saturated_softmax": saturated_softmax,
    "common_part": common_part,
    "single_output": single_output,
}
