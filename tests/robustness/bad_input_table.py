"""What every public callable does with what it cannot use: an error that names the argument, or a documented result."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from helpers import fit, mlp
from lightning.pytorch import LightningDataModule
from robustness_helpers import Classifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

import lightning_invariance as li
from lightning_invariance import baselines, functional, report

NAN, INF = float("nan"), float("inf")
ANYTHING = ""  # there may be a warning, which is tested elsewhere
LONG = torch.int64


@dataclass(frozen=True)
class Row:
    """One call, and what comes of it.

    Attributes:
        name: the public name that is called.
        kind: what is wrong with the input.
        call: the call.
        refused: the pattern of the error's text, or None where there is a result.
        error: the error's class.
        holds: whether the result is the documented one.
        warns: the pattern of a warning that comes with the result.
    """

    name: str
    kind: str
    call: Callable[[], Any]
    refused: str | None = None
    error: type[Exception] = ValueError
    holds: Callable[[Any], Any] | None = None
    warns: str | None = None


ROWS: list[Row] = []


def refuse(name: str, kind: str, call: Callable[[], Any], pattern: str, error: type[Exception] = ValueError) -> None:
    ROWS.append(Row(name, kind, call, pattern, error))


def give(name: str, kind: str, call: Callable[[], Any], holds: Callable[[Any], Any], warns: str | None = None) -> None:
    ROWS.append(Row(name, kind, call, holds=holds, warns=warns))


def is_nan(value: Any) -> bool:
    return bool(torch.as_tensor(value).isnan().all())


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    return functools.partial(function, *args, **kwargs)


def network(classes: int = 3, side: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(side * side, classes))


def flat24() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(24, 3))


def single() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 1))


def spoiled(values: Tensor, value: float) -> Tensor:
    values = values.clone()
    values.view(-1)[0] = value
    return values


NET = network()
X = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(3))
WIDE = torch.zeros(2, 1, 4, 6)
INTEGERS = torch.arange(32).reshape(2, 1, 4, 4)
BASE = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 3.0]])
ORBIT = torch.tensor([[[1.0, 0.5, 2.0], [0.5, 1.0, 2.0]], [[3.0, 0.0, 2.0], [0.5, 4.0, 3.0]]])
LABELS = torch.tensor([0, 2])
SQUARE = r"`x` to have square images in its last two dimensions .* but got 4×6: crop them to 4×4 or pad them to 6×6"
WRONG_INVERSE = li.FunctionAction([(lambda x: x.roll(1, -1), lambda x: x.roll(1, -1))], labels=["shifted"])
ALTERNATING = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(2, 1, 4, 4)  # a shift by two is no nearer than one by one
NOT_AN_ACTION = r"`action` to be an Action, such as C4\(\), but got "
TRIVIAL = r"`action` to have an element besides the identity but got Rotations\(order=1"


def perturbed_with(measure: Callable[..., Any], base: Any, orbit: Any, **options: Any) -> Any:
    """A measure that takes perturbed logits too: those are a good deal away, or as they must be."""
    return measure(
        base, orbit, orbit + 1 if isinstance(orbit, Tensor) and orbit.is_floating_point() else ORBIT, **options
    )


# Measures as functions -------------------------------------------------------------------------------------------


def accuracy_of(logits: Any, orbit_logits: Any, **options: Any) -> Tensor:
    target = torch.zeros(logits.shape[:1], dtype=LONG) if isinstance(logits, Tensor) else LABELS
    return functional.orbit_accuracy(logits, orbit_logits, target, **options)


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], str, float]] = {
    # name: the function, what its inputs are called, its value of one sample whose orbit is a point
    "functional.distribution_invariance_error": (functional.distribution_invariance_error, "logits", 0.0),
    "functional.jensen_shannon_invariance_error": (functional.jensen_shannon_invariance_error, "logits", 0.0),
    "functional.logit_invariance_error": (functional.logit_invariance_error, "logits", 0.0),
    "functional.orbit_accuracy": (accuracy_of, "logits", 0.0),
    "functional.orbit_share": (functional.orbit_share, "logits", NAN),
    "functional.prediction_consistency": (functional.prediction_consistency, "logits", 1.0),
    "functional.relative_logit_invariance_error": (functional.relative_logit_invariance_error, "logits", NAN),
    "functional.saliency_invariance_similarity": (functional.saliency_invariance_similarity, "saliency", 1.0),
    "functional.selectivity": (functools.partial(perturbed_with, functional.selectivity), "logits", 0.0),
}


ANY_OUTPUT = ("logit_invariance_error", "LogitInvarianceError", "selectivity", "Selectivity")
ANY_OUTPUT += ("relative_logit_invariance_error", "RelativeLogitInvarianceError", "orbit_share", "OrbitShare")


def inputs_of(measure: Callable[..., Any], name: str, call: str, one: float) -> None:
    """The rows that all measures share, as a function and as a metric."""
    orbit = f"`orbit_{name}`"
    refuse(call, "type", of(measure, [[1.0, 2.0]], ORBIT), f"`{name}` to be a floating-point tensor but got list")
    refuse(call, "type", of(measure, BASE, None), f"{orbit} to be a floating-point tensor but got NoneType")
    refuse(call, "dtype", of(measure, BASE.to(LONG), ORBIT), f"`{name}` to be a floating-point tensor but got .*int64")
    refuse(call, "dtype", of(measure, BASE, ORBIT.cfloat()), f"{orbit} to be a floating-point .* got .*complex64")
    refuse(call, "shape", of(measure, BASE.sum(), ORBIT[:, 0, 0]), rf"`{name}` to have the shape \(B, .* but got \(\)")
    if call.split(".")[-1] in ANY_OUTPUT:  # a number a sample too
        give(call, "shape", of(measure, BASE[0], ORBIT[:, 0]), lambda v: v.shape == ())
    else:
        refuse(call, "shape", of(measure, BASE[0], ORBIT[:, 0]), rf"`{name}` to have the shape \(B, .* but got \(3,\)")
    refuse(call, "shape", of(measure, BASE, ORBIT[:, :1]), rf"{orbit} to have the shape \(G, 2, 3\).*\(2, 1, 3\)")
    refuse(call, "shape", of(measure, BASE, ORBIT[:0]), rf"{orbit} to have the shape \(G, 2, 3\).*\(0, 2, 3\)")
    refuse(call, "shape", of(measure, BASE[:, :0], ORBIT[..., :0]), rf"`{name}` to have .* of at least 2|at least one")
    refuse(call, "device", of(measure, BASE, ORBIT.to("meta")), f"{orbit} to be on cpu, as `{name}`, but got meta")
    give(call, "empty", of(measure, BASE[:0], ORBIT[:, :0]), is_nan, "undefined.*NaN")
    warns = "undefined" if one != one else None
    give(call, "one sample", of(measure, BASE[:1], BASE[:1].repeat(2, 1, 1)), lambda v: _close(v, one), warns)
    give(call, "mixed precision", of(measure, BASE, ORBIT.double()), lambda v: _close(v, measure(BASE, ORBIT)))


def _close(value: Tensor, expected: Any) -> bool:
    expected = torch.as_tensor(expected, dtype=torch.float32)
    return torch.allclose(value.float(), expected, atol=1e-6, equal_nan=True)


for name, (function, argument, one) in FUNCTIONS.items():
    inputs_of(function, argument, name, one)
    meta = (BASE.to("meta"), ORBIT.to("meta"))
    if name != "functional.orbit_accuracy":  # its labels would be elsewhere
        refuse(name, "device", of(function, *meta), f"`{argument}` to hold values but got a tensor on the meta device")
    for kind, value in (("NaN", NAN), ("infinite", INF), ("infinite", -INF)):
        refuse(name, kind, of(function, spoiled(BASE, value), ORBIT), f"`{argument}` to be finite but got 1 NaN or")
        refuse(name, kind, of(function, BASE, spoiled(ORBIT, value)), f"`orbit_{argument}` to be finite but got 1")
    for wrong in ("sum", None, ["mean"]):
        refuse(name, "unknown name", of(function, BASE, ORBIT, reduction=wrong), "`reduction` to be one of .* but got")
for divergence in ("distribution_invariance_error", "jensen_shannon_invariance_error"):
    call = of(getattr(functional, divergence), BASE, ORBIT, activation="relu")
    refuse(f"functional.{divergence}", "unknown name", call, "`activation` to be one of .* but got 'relu'")
call = of(functional.logit_invariance_error, BASE, ORBIT, normalize="norm")
refuse("functional.logit_invariance_error", "unknown name", call, "`normalize` to be one of .* but got 'norm'")

PERTURBED: list[tuple[str, Any, str]] = [
    ("type", None, "`perturbed_logits` to be a floating-point tensor but got NoneType"),
    ("dtype", ORBIT.to(LONG), "`perturbed_logits` to be a floating-point tensor but got torch.int64"),
    ("shape", ORBIT[:1], r"`perturbed_logits` to have the shape \(2, 2, 3\) of `orbit_logits`.* but got \(1, 2, 3\)"),
    ("device", ORBIT.to("meta"), "`perturbed_logits` to .* be on cpu, but got .* on meta"),
]
for kind, wrong, pattern in PERTURBED:
    refuse("functional.selectivity", kind, of(functional.selectivity, BASE, ORBIT, wrong), pattern)
    refuse("Selectivity", kind, lambda wrong=wrong: li.Selectivity().update(BASE, ORBIT, wrong), pattern)
call = of(functional.selectivity, BASE, ORBIT, spoiled(ORBIT, NAN))
refuse("functional.selectivity", "NaN", call, "`perturbed_logits` to be finite but got 1 NaN or infinite")
call = of(functional.selectivity, BASE, ORBIT, BASE.repeat(2, 1, 1))
give("functional.selectivity", "no perturbation", call, is_nan, "selectivity is undefined.*NaN")

TARGETS: list[tuple[str, Any, str]] = [
    ("type", [0, 1], "`target` to hold 2 .*, one a sample, but got list"),
    ("dtype", torch.tensor([0.0, 1.0]), r"`target` to hold 2 .* but got shape \(2,\) of torch.float32"),
    ("dtype", torch.zeros(2).cfloat(), r"`target` to hold 2 .* but got shape \(2,\) of torch.complex64"),
    ("shape", torch.tensor([0]), r"`target` to hold 2 .* but got shape \(1,\)"),
    ("shape", torch.tensor([0, 1, 2]), r"`target` to hold 2 .* but got shape \(3,\)"),
    ("shape", torch.tensor([[0], [1]]), r"`target` to hold 2 .* but got shape \(2, 1\)"),
    ("target out of range", torch.tensor([0, 3]), "`target` to hold classes from 0 to 2 but got values from 0 to 3"),
    ("target out of range", torch.tensor([-1, 2]), "`target` to hold classes from 0 to 2 but got values from -1 to 2"),
    ("device", LABELS.to("meta"), "`target` to (be on cpu, as `logits`, but got meta|hold values but got .* meta)"),
]
for kind, target, pattern in TARGETS:
    refuse("functional.orbit_accuracy", kind, of(functional.orbit_accuracy, BASE, ORBIT, target), pattern)
call = of(functional.orbit_accuracy, BASE, ORBIT, LABELS, worst_case="no")
refuse("functional.orbit_accuracy", "type", call, "`worst_case` to be one of .* but got 'no'")
call = of(functional.orbit_accuracy, BASE, ORBIT, LABELS, worst_case=True, reduction="element")
refuse("functional.orbit_accuracy", "options", call, "`reduction` to be 'mean' or 'none' with worst_case=True")


DENSE = r"`logits` to have the shape \(B, C\), or \(B,\) for one output a sample, but got \(2, 3, 1\)"

# Measures as metrics ---------------------------------------------------------------------------------------------

METRICS: dict[str, tuple[type[Any], str, float]] = {
    "DistributionInvarianceError": (li.DistributionInvarianceError, "logits", 0.0),
    "JensenShannonInvarianceError": (li.JensenShannonInvarianceError, "logits", 0.0),
    "LogitInvarianceError": (li.LogitInvarianceError, "logits", 0.0),
    "OrbitAccuracy": (li.OrbitAccuracy, "logits", 0.0),
    "OrbitShare": (li.OrbitShare, "logits", NAN),
    "PredictionConsistency": (li.PredictionConsistency, "logits", 1.0),
    "RelativeLogitInvarianceError": (li.RelativeLogitInvarianceError, "logits", NAN),
    "SaliencyInvarianceSimilarity": (li.SaliencyInvarianceSimilarity, "saliency", 1.0),
    "Selectivity": (li.Selectivity, "logits", 0.0),
}


def computed(metric: type[Any], base: Any, orbit: Any, **options: Any) -> Tensor:
    return fed(metric(**options), (base, orbit)).compute()


def fed(metric: Any, *batches: tuple[Any, Any]) -> Any:
    for base, orbit in batches:
        labels = (
            (torch.zeros(torch.as_tensor(base).shape[:1], dtype=LONG),) if isinstance(metric, li.OrbitAccuracy) else ()
        )
        if isinstance(metric, li.Selectivity):
            perturbed_with(metric.update, base, orbit)
        else:
            metric.update(base, orbit, *labels)
    return metric


def two_groups(metric: type[Any], first: Tensor, second: Tensor) -> None:
    fed(metric(reduction="element"), (BASE, first), (BASE, second))


def two_groups_forward(metric: type[Any]) -> None:
    made = metric(reduction="element")
    for orbit in (ORBIT, ORBIT[:1]):
        further = {li.OrbitAccuracy: (LABELS,), li.Selectivity: (orbit + 1,)}
        made(BASE, orbit, *further.get(metric, ()))


def another_group_after_reset(metric: type[Any]) -> Tensor:
    made = fed(metric(reduction="element"), (BASE, ORBIT))
    made.reset()
    return fed(made, (BASE, ORBIT[:1])).compute()


for name, (metric, argument, one) in METRICS.items():
    inputs_of(functools.partial(computed, metric), argument, name, one)
    call = of(computed, metric, BASE.to("meta"), ORBIT.to("meta"))
    if metric is not li.OrbitAccuracy:
        refuse(name, "device", call, f"`logits` to be on cpu, as {name}'s states, but got meta")
    for kind, value in (("NaN", NAN), ("infinite", INF)):
        bad = spoiled(BASE, value)
        left = (lambda m: lambda v: _close(v, computed(m, BASE[1:], ORBIT[:, 1:])))(metric)
        if metric in (li.OrbitShare, li.RelativeLogitInvarianceError):
            left = is_nan  # one sample has no variance
            give(name, kind, of(computed, metric, bad, ORBIT), left, "1 of 2 samples held NaN or infinite|undefined")
        else:
            give(name, kind, of(computed, metric, bad, ORBIT), left, "1 of 2 samples held NaN or infinite")
            give(name, kind, of(computed, metric, bad, ORBIT, nan_strategy="ignore"), left)
        call = of(computed, metric, bad, ORBIT, nan_strategy="error")
        refuse(name, kind, call, "1 of 2 samples held NaN or infinite values", RuntimeError)
    refuse(name, "unknown name", of(metric, reduction="sum"), "`reduction` to be one of .* but got 'sum'")
    refuse(name, "unknown name", of(metric, nan_strategy=0.0), "`nan_strategy` to be one of .* but got 0.0")
    refuse(name, "unknown name", of(metric, precision=3), "Unexpected keyword arguments: `precision`")
    call = of(metric(reduction="none").compute_with_error)
    refuse(name, "options", call, "`reduction` to be 'mean' or 'element' for a standard error but got 'none'")
    other = "2 elements besides the identity, as those before, with reduction='element' but got 1"
    refuse(name, "another group", of(two_groups, metric, ORBIT, ORBIT[:1]), other)
    refuse(name, "another group", of(two_groups_forward, metric), other)
    refuse(name, "another group", of(two_groups, metric, ORBIT[:1], ORBIT), "1 elements .* but got 2")
    give(name, "another group", of(another_group_after_reset, metric), lambda v: v.numel() == 1)
for divergence in ("DistributionInvarianceError", "JensenShannonInvarianceError"):
    call = of(getattr(li, divergence), activation="relu")
    refuse(divergence, "unknown name", call, "`activation` to be one of .* but got 'relu'")
call = of(li.LogitInvarianceError, normalize="norm")
refuse("LogitInvarianceError", "unknown name", call, "`normalize` to be one of .* but got 'norm'")
call = of(fed, li.OrbitShare(), (BASE, ORBIT), (BASE[:, :2], ORBIT[..., :2]))
refuse("OrbitShare", "shape", call, "`logits` to have 3 classes, as those before, but got 2")
call = of(fed, li.OrbitShare(), (BASE[:, 0], ORBIT[..., 0]), (BASE, ORBIT))
refuse("OrbitShare", "shape", call, "`logits` to have one output a sample, as those before, but got 3")
refuse("OrbitShare", "shape", of(computed, li.OrbitShare, BASE[..., None], ORBIT[..., None]), DENSE)
call = of(functional.orbit_share, BASE[..., None], ORBIT[..., None])
refuse("functional.orbit_share", "shape", call, DENSE)
call = of(fed, li.RelativeLogitInvarianceError(), (BASE, ORBIT), (BASE[:, 0], ORBIT[..., 0]))
refuse("RelativeLogitInvarianceError", "shape", call, "`logits` to have 3 values a sample, as those before, but got 1")
call = of(li.OrbitAccuracy, worst_case=True, reduction="element")
refuse("OrbitAccuracy", "options", call, "`reduction` to be 'mean' or 'none' with worst_case=True")
refuse("OrbitAccuracy", "type", of(li.OrbitAccuracy, worst_case="no"), "`worst_case` to be one of .* but got 'no'")


def accuracy_with(target: Any) -> Tensor:
    metric = li.OrbitAccuracy()
    metric.update(BASE, ORBIT, target)
    return metric.compute()


for kind, target, pattern in TARGETS:
    if kind == "target out of range":  # one that is no class counts as wrong, without waiting for the device
        give("OrbitAccuracy", kind, of(accuracy_with, target), lambda v: 0.0 <= float(v) < 1.0)
    else:
        refuse("OrbitAccuracy", kind, of(accuracy_with, target), pattern)
refuse("Estimate", "missing", of(li.Estimate), "value", TypeError)
give("Estimate", "type", of(li.Estimate, "a", None), lambda e: (e.value, e.standard_error) == ("a", None))


# Actions ---------------------------------------------------------------------------------------------------------

EYES, PLANES = torch.eye(3).repeat(2, 1, 1), torch.eye(2, 3).repeat(2, 1, 1)
SWAP = torch.tensor([[0, 1, 2, 3], [2, 3, 0, 1]])
NEGATE = (torch.neg, torch.neg)
ACTIONS: dict[str, tuple[Callable[[], li.Action], Tensor]] = {
    # name: how to make one, and what it can act on
    "AffineAction": (of(li.AffineAction, PLANES), X),
    "C4": (li.C4, X),
    "CyclicTranslations": (of(li.CyclicTranslations, 2), X),
    "D4": (li.D4, X),
    "FunctionAction": (of(li.FunctionAction, [NEGATE]), X),
    "HorizontalFlip": (li.HorizontalFlip, X),
    "LinearAction": (of(li.LinearAction, EYES), torch.randn(2, 5, 3)),
    "O3": (of(li.O3, 2), torch.randn(2, 5, 3)),
    "PermutationAction": (of(li.PermutationAction, SWAP), torch.randn(2, 4)),
    "ProductAction": (of(li.ProductAction, li.C4(), li.HorizontalFlip()), X),
    "Rotations": (of(li.Rotations, 4), X),
    "SO2": (of(li.SO2, 2), X),
    "SO3": (of(li.SO3, 2), torch.randn(2, 5, 3)),
    "ScalingRange": (of(li.ScalingRange, 0.5, 2.0, 2), X),
    "Scalings": (of(li.Scalings, [0.5]), X),
    "SetPermutations": (of(li.SetPermutations, 2), X),
    "TimeReversal": (li.TimeReversal, X),
    "VerticalFlip": (li.VerticalFlip, X),
}
INTERPOLATING = ("AffineAction", "Rotations", "SO2", "ScalingRange", "Scalings")
MULTIPLYING = ("LinearAction", "O3", "SO3")


def act(make: Callable[[], li.Action], x: Any, index: Any) -> Tensor:
    return make().act(x, index)


def on(make: Callable[[], li.Action], method: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(make(), method)(*args, **kwargs)


def unharmed(make: Callable[[], li.Action], x: Tensor, value: float) -> bool:
    """A sample that is not finite spoils no other."""
    spoilt = x.clone()
    spoilt[0] = value
    action = make()
    moved, alone = action.act(spoilt, 1), action.act(x, 1)
    return bool(torch.equal(moved[1], alone[1]) and (~moved[0].isfinite()).any())


for name, (make, x) in ACTIONS.items():
    order = len(make())
    refuse(name, "type", of(act, make, [1.0], 1), "`x` to be a tensor for .* but got list")
    refuse(name, "type", of(act, make, x, "rot90"), "`index` to be an integer or a tensor .* but got 'rot90'")
    refuse(name, "type", of(act, make, x, 1.0), "`index` to be an integer or a tensor .* but got 1.0")
    refuse(name, "type", of(on, make, "orbit", x, 3), "`elements` to hold indices of elements but got 3")
    refuse(name, "type", of(on, make, "orbit", x, "12"), "`elements` to hold indices of elements but got '12'")
    refuse(name, "empty", of(on, make, "orbit", x, []), "`elements` to name at least one element but got none")
    refuse(name, "type", of(on, make, "sample", 2.0), "`n` to be an integer of at least 0 but got 2.0")
    refuse(name, "type", of(on, make, "sample", 2, 7), "`generator` to be a torch.Generator or None but got 7")
    refuse(name, "type", of(on, make, "fresh", 2.0), "`n` to be an integer of at least 0 but got 2.0")
    refuse(name, "type", of(on, make, "fresh", 2, 7), "`generator` to be a torch.Generator or None but got 7")
    refuse(name, "negative", of(on, make, "fresh", -1), "`n` to be an integer of at least 0 but got -1")
    refuse(name, "type", of(on, make, "redrawn", "a"), "`seed` to be an integer of at most 64 bits but got 'a'")
    refuse(name, "out of range", of(on, make, "redrawn", 2**64), "`seed` to be an integer of at most 64 bits but got")
    refuse(name, "negative", of(on, make, "redrawn", 0, 0), "`samples` to be an integer of at least 1 but got 0")
    refuse(name, "type", of(on, make, "attached", [1.0]), "`x` to be a tensor for .* but got list")
    refuse(name, "type", of(on, make, "alongside", [1.0], x), "`x` to be a tensor for .* but got list")
    give(name, "empty", of(on, make, "fresh", 0), lambda v: v[1].shape == (0,))
    refuse(name, "negative", of(on, make, "sample", -1), "`n` to be an integer of at least 0 but got -1")
    refuse(name, "negative", of(act, make, x, -1), f"`index` to be between 0 and {order - 1} .* but got -1")
    refuse(name, "elements > |G|", of(act, make, x, order), f"`index` to be between 0 and {order - 1} .* got {order}")
    each = torch.tensor([0, order])
    refuse(name, "elements > |G|", of(act, make, x, each), f"`index` to be between 0 and {order - 1} .* got {order}")
    refuse(
        name, "shape", of(act, make, torch.tensor(1.0), 1), r"`x` to have a batch dimension and .* but got shape \(\)"
    )
    refuse(
        name, "shape", of(act, make, x, torch.zeros(3, dtype=LONG)), r"`index` to hold one element for each of the 2"
    )
    refuse(name, "dtype", of(act, make, x, torch.zeros(2)), "`index` to hold integers but got torch.float32")
    meta = torch.zeros(2, dtype=LONG, device="meta")
    refuse(name, "device", of(act, make, x, meta), "`index` to hold values but got a tensor on the meta device")
    refuse(name, "device", of(act, make, x, meta[0]), "`index` to hold values but got a tensor on the meta device")
    give(name, "device", of(act, make, x.to("meta"), 1), lambda v: v.is_meta)
    give(name, "empty", of(act, make, x[:0], 1), lambda v: len(v) == 0)
    give(name, "empty", of(on, make, "orbit", x[:0]), lambda v: v.shape[1] == 0)
    give(name, "one sample", of(act, make, x[:1], torch.tensor([1])), lambda v: len(v) == 1)
    for kind, value in (("NaN", NAN), ("infinite", INF)):
        give(name, kind, of(unharmed, make, x, value), lambda v: v)
    if name in (*INTERPOLATING, *MULTIPLYING):
        refuse(name, "integer images", of(act, make, x.to(LONG), 1), "`x` to be floating point .* but got torch.int64")
    else:
        give(name, "integer images", of(act, make, x.to(LONG), 1), lambda v: v.dtype == LONG)
    if name in ("C4", "D4", "ProductAction"):
        refuse(name, "non-square", of(act, make, WIDE, 1), SQUARE)
    elif x is X:
        give(name, "non-square", of(act, make, WIDE, 1), lambda v: v.shape == WIDE.shape)
    elif name == "PermutationAction":
        refuse(name, "shape", of(act, make, WIDE, 1), "`x` to end in 4 for .* but got 6")
    else:
        refuse(name, "shape", of(act, make, WIDE, 1), "size of `x` in dimension -1 to be 3 for .* but got 6")

for name, make in {
    "ScalingRange": of(li.ScalingRange, 0.5, 2.0),
    **{name: getattr(li, name) for name in ("SO2", "SO3", "O3", "SetPermutations")},
}.items():
    for kind, count in (("type", "4"), ("type", 2.0), ("type", True), ("negative", -1), ("negative", 0), ("NaN", NAN)):
        refuse(name, kind, of(make, count), "`samples` to be an integer of at least 1 but got")
    for kind, seed in (
        ("type", "a"),
        ("type", None),
        ("type", 1.5),
        ("out of range", 2**64),
        ("out of range", -(2**64)),
    ):
        refuse(name, kind, of(make, 2, seed), "`seed` to be an integer of at most 64 bits but got")
for name in ("Rotations", "CyclicTranslations"):
    for kind, count in (("type", "4"), ("type", 4.0), ("type", None), ("negative", -4), ("negative", 0), ("NaN", NAN)):
        refuse(name, kind, of(getattr(li, name), count), "`order` to be an integer of at least 1 but got")
for name, first in (("CyclicTranslations", 2), ("SO3", 2), ("O3", 2), ("SetPermutations", 2), ("LinearAction", EYES)):
    for kind, dim in (("type", "x"), ("type", None), ("type", -1.0), ("out of range", 0), ("out of range", 1)):
        refuse(name, kind, of(getattr(li, name), first, dim=dim), "`dim` to be negative .* but got")
for name, args in (
    ("AffineAction", (PLANES,)),
    ("Rotations", (4,)),
    ("SO2", (2,)),
    ("Scalings", ([0.5],)),
    ("ScalingRange", (0.5, 2.0, 2)),
):
    make = getattr(li, name)
    call = of(make, *args, interpolation="cubic")
    refuse(name, "unknown name", call, "`interpolation` to be one of .* but got 'cubic'")
    refuse(name, "unknown name", of(make, *args, padding="wrap"), "`padding` to be one of .* but got 'wrap'")
for kind, smallest, largest, pattern in (
    ("type", "0.5", 2.0, "`smallest` to be a finite number above 1e-06 but got '0.5'"),
    ("type", None, 2.0, "`smallest` to be a finite number above 1e-06 but got None"),
    ("negative", -0.5, 2.0, "`smallest` to be a finite number above 1e-06 but got -0.5"),
    ("negative", 0.0, 2.0, "`smallest` to be a finite number above 1e-06 but got 0.0"),
    ("NaN", NAN, 2.0, "`smallest` to be a finite number above 1e-06 but got nan"),
    ("type", 0.5, [2.0], r"`largest` to be a finite number above 0.5 but got \[2.0\]"),
    ("out of range", 2.0, 0.5, "`largest` to be a finite number above 2.0 but got 0.5"),
    ("empty", 2.0, 2.0, "`largest` to be a finite number above 2.0 but got 2.0"),
    ("NaN", 0.5, NAN, "`largest` to be a finite number above 0.5 but got nan"),
    ("infinite", 0.5, INF, "`largest` to be a finite number above 0.5 but got inf"),
):
    refuse("ScalingRange", kind, of(li.ScalingRange, smallest, largest, 2), pattern)
for kind, padding in (("type", "0"), ("type", True), ("type", [0.0]), ("NaN", NAN), ("dtype", 1j)):
    call = of(li.SetPermutations, 2, padding=padding)
    refuse("SetPermutations", kind, call, "`padding` to be a number, not NaN, or None but got")
TOKENS = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])
give(
    "SetPermutations", "infinite", of(act, of(li.SetPermutations, 2, padding=-INF), X, 1), lambda v: v.shape == X.shape
)
refuse("SetPermutations", "shape", of(act, of(li.SetPermutations, 2), TOKENS, 1), r"for tokens \(B, L\) pass dim=-1")
for padding in (None, 0):
    make = of(li.SetPermutations, 2, dim=-1, padding=padding)
    give("SetPermutations", "empty", of(act, make, TOKENS[:, :0], 1), lambda v: v.shape == (2, 0))
    give("SetPermutations", "device", of(act, make, TOKENS.to("meta"), 1), lambda v: v.is_meta)
    give("SetPermutations", "one element", of(act, make, TOKENS[:, :1], 1), lambda v: v.tolist() == [[5], [8]])
    for kind, other in (("shape", TOKENS[:, :3]), ("shape", TOKENS[:1]), ("shape", TOKENS[:, 0])):
        call = of(on, make, "alongside", TOKENS, other)
        refuse(
            "SetPermutations", kind, call, r"`other` to have 2 samples, and 4 places .* of shape \(2, 4\) .* but got"
        )
    refuse("SetPermutations", "type", of(on, make, "alongside", TOKENS, [1]), "`x` to be a tensor .* but got list")
held = li.SetPermutations(2, dim=-1, padding=0).attached(TOKENS)
refuse("SetPermutations", "shape", of(held.invert, TOKENS[:1], 1), "`x` to have 2 samples, and 4 places .* but got")
for kind, factors in (
    ("type", 2.0),
    ("type", None),
    ("type", "ab"),
    ("type", ["2"]),
    ("type", [None]),
    ("empty", []),
    ("negative", [-0.5]),
    ("negative", [2.0, 0.0]),
    ("NaN", [NAN]),
    ("infinite", [INF]),
):
    refuse("Scalings", kind, of(li.Scalings, factors), "`factors` to (be|hold) positive numbers.* but got")
for name, good, shape in (("AffineAction", PLANES, r"2, 3"), ("LinearAction", EYES, r"n, n")):
    make = getattr(li, name)
    of_shape = rf"`matrices` to be a tensor of shape \(\|G\|, {shape}\)"
    refuse(name, "type", of(make, good.tolist()), of_shape)
    refuse(name, "type", of(make, None), of_shape)
    refuse(name, "shape", of(make, good[0]), of_shape)
    refuse(name, "shape", of(make, good[:, :, :2]), of_shape)
    refuse(name, "empty", of(make, good[:0]), of_shape)
    refuse(name, "dtype", of(make, good.cfloat()), "`matrices` to be real but got torch.complex64")
    refuse(name, "device", of(make, good.to("meta")), "`matrices` to hold values but got a tensor on the meta device")
    refuse(name, "no identity", of(make, good.flip(0) * 2), r"`matrices\[0\]` to be the identity")
    for kind, value in (("singular", 0.0), ("NaN", NAN), ("infinite", INF)):
        refuse(name, kind, of(make, torch.stack([good[0], good[0] * value])), "`matrices` to be invertible")
refuse("LinearAction", "empty", of(li.LinearAction, torch.zeros(2, 0, 0)), r"`matrices` to be a tensor of shape")
TABLE = r"`table` to be an integer tensor of shape \(\|G\|, n1, ..., nk\)"
for kind, table in (
    ("type", [[0, 1]]),
    ("type", None),
    ("dtype", torch.tensor([[0.0, 1.0]])),
    ("shape", torch.tensor([0, 1])),
    ("empty", torch.zeros(0, 2, dtype=LONG)),
    ("empty", torch.zeros(2, 0, dtype=LONG)),
):
    refuse("PermutationAction", kind, of(li.PermutationAction, table), TABLE)
call = of(li.PermutationAction, SWAP.to("meta"))
refuse("PermutationAction", "device", call, "`table` to hold values but got a tensor on the meta device")
for kind, table, pattern in (
    ("no permutation", [[0, 1], [0, 0]], "every row of `table` to be a permutation of 0 to 1"),
    ("out of range", [[0, 1], [1, 2]], "every row of `table` to be a permutation of 0 to 1"),
    ("no identity", [[1, 0]], "row 0 of `table` to be the identity"),
):
    refuse("PermutationAction", kind, of(li.PermutationAction, torch.tensor(table)), pattern)
PAIRS = r"`pairs` to hold pairs of functions \(act, invert\)"
for kind, pairs in (
    ("type", None),
    ("type", 3),
    ("type", [torch.neg]),
    ("type", [("neg", torch.neg)]),
    ("empty", []),
    ("shape", NEGATE),
    ("shape", [(torch.neg, torch.neg, torch.neg)]),
):
    refuse("FunctionAction", kind, of(li.FunctionAction, pairs), PAIRS)
for kind, labels, pattern in (
    ("type", 3, "`labels` to hold a name for each pair but got 3"),
    ("type", "a", "`labels` to hold a name for each pair but got 'a'"),
    ("type", [3, 4], r"`labels` to hold distinct names, none 'identity', but got \[3, 4\]"),
    ("shape", ["a"], "`labels` to hold 2 names, one a pair, but got 1"),
    ("repeated", ["a", "a"], r"`labels` to hold distinct names, none 'identity', but got \['a', 'a'\]"),
    ("repeated", ["a", "identity"], "`labels` to hold distinct names, none 'identity'"),
):
    refuse("FunctionAction", kind, of(li.FunctionAction, [NEGATE, NEGATE], labels=labels), pattern)
for kind, function, pattern in (
    ("shape", lambda x: x[..., :2], r"'bad' of FunctionAction\('bad'\) to keep the shape .* but got \(2, 1, 4, 2\)"),
    ("type", lambda x: None, "'bad' of .* to keep the shape .* but got NoneType"),
    ("dtype", Tensor.double, "element 'bad' in .* to keep torch.float32 but got torch.float64"),
):
    bad = li.FunctionAction([(function, function)], labels=["bad"])
    refuse("FunctionAction", kind, of(bad.act, X, 1), pattern)
    refuse("FunctionAction", kind, of(bad.act, X, torch.tensor([0, 1])), pattern.replace(r"\(2, 1, 4, 2\)", r"\(1, 1"))
inverse = "inverse of 'shifted' in .* to undo it, but it does not"
refuse("FunctionAction", "wrong inverse", of(WRONG_INVERSE.verify, ALTERNATING), inverse)
refuse("FunctionAction", "wrong inverse", of(WRONG_INVERSE.verify, INTEGERS), inverse)
refuse("ProductAction", "wrong inverse", of((li.C4() * WRONG_INVERSE).verify, ALTERNATING), inverse)
refuse("FunctionAction", "device", of(WRONG_INVERSE.verify, X.to("meta")), "`x` to hold values but got .* meta device")
give("FunctionAction", "empty", of(WRONG_INVERSE.verify, X[:0]), lambda v: v is None)
for wrong in ("C4", None, 3, li.C4):
    refuse("ProductAction", "type", of(li.ProductAction, wrong, li.C4()), "`first` to be an Action, such as C4")
    refuse("ProductAction", "type", of(li.ProductAction, li.C4(), wrong), "`second` to be an Action, such as C4")
refuse("ProductAction", "type", lambda: li.C4() * 3, "unsupported operand", TypeError)
refuse("Action", "abstract", lambda: li.Action(), "abstract", TypeError)


# Running over an orbit -------------------------------------------------------------------------------------------


def orbit_of(x: Any = X, action: Any = None, network: Any = NET, **options: Any) -> li.OrbitOutputs:
    return li.evaluate_orbit(network, x, li.C4() if action is None else action, **options)


WAYS: dict[str, li.Saliency] = {
    "Gradient": li.Gradient(),
    "InputXGradient": li.InputXGradient(),
    "IntegratedGradients": li.IntegratedGradients(steps=2),
    "PaperSaliency": li.PaperSaliency(steps=2),
}
name = "evaluate_orbit"
refuse(name, "type", of(orbit_of, [1.0]), r"`x` to be a tensor for C4\(\) but got list")
for wrong in ("C4", li.C4, 3):
    refuse(name, "type", of(orbit_of, action=wrong), NOT_AN_ACTION)
refuse(name, "trivial group", of(orbit_of, action=li.Rotations(1)), TRIVIAL)
for wrong in ("net", None):
    refuse(name, "type", of(orbit_of, network=wrong), "`network` to be a module or a function but got")
for kind, elements in (
    ("type", ["a"]),
    ("type", [1.7]),
    ("type", [True]),
    ("type", [None]),
    ("empty", []),
    ("negative", [-1]),
    ("elements > |G|", [1, 4]),
    ("identity", [0, 1]),
):
    call = of(orbit_of, elements=elements)
    refuse(name, kind, call, r"`elements` to name at least one element from 1 to 3 of C4\(\) .* but got")
for elements in (2, "12"):
    call = of(orbit_of, elements=elements)
    refuse(name, "type", call, "`elements` to hold indices of elements but got")
give(name, "type", of(orbit_of, elements=torch.tensor([3, 1])), lambda o: o.orbit_logits.shape == (2, 2, 3))
for kind, value in (("negative", 0), ("negative", -3), ("type", 2.0), ("type", "2")):
    refuse(name, kind, of(orbit_of, max_batch=value), "`max_batch` to be an integer of at least 1 but got")
for kind, logits, pattern in (
    ("type", [1.0, 2.0], "`base_logits` to be a tensor but got list"),
    ("shape", torch.ones(3, 3), r"`base_logits` to have 2 rows, one a sample, but got 3"),
    ("shape", torch.tensor(1.0), r"`base_logits` to have 2 rows, one a sample, but got a scalar"),
    ("shape", torch.ones(2, 4), r"`base_logits` to have the shape \(2, 3\) of the network's outputs but got \(2, 4\)"),
    ("device", torch.ones(2, 3, device="meta"), "`base_logits` to hold values but got a tensor on the meta device"),
):
    refuse(name, kind, of(orbit_of, base_logits=logits), pattern)
call = of(orbit_of, base_logits=torch.ones(2), saliency=li.Gradient())
refuse(name, "shape", call, r"`base_logits` to have the shape \(2, 3\) of the network's outputs but got \(2,\)")
call = of(orbit_of, base_logits=torch.ones(2, 3, 4), saliency=li.Gradient())
refuse(
    name, "shape", call, r"`base_logits` to have the shape \(2, classes\) or \(2,\) for saliency but got \(2, 3, 4\)"
)
for kind, target, pattern in TARGETS:
    refuse(name, kind, of(orbit_of, target=target, saliency=li.Gradient()), pattern)
for dtype in (torch.uint8, torch.int32, torch.bool):
    call = of(orbit_of, target=torch.tensor([0, 1]).to(dtype), saliency=li.Gradient())
    expected = orbit_of(target=torch.tensor([0, 1]), saliency=li.Gradient()).saliency
    give(name, "dtype", call, lambda o, expected=expected: torch.equal(o.saliency, expected))
for wrong in ("gradient", 3, dict):
    refuse(
        name, "unknown name", of(orbit_of, saliency=wrong), "`saliency` to (be a Saliency|have a method `attribute`)"
    )
for kind, maps in (
    ("shape", lambda n, x, t: x[:1]),
    ("shape", lambda n, x, t: x.sum()),
    ("type", lambda n, x, t: None),
):
    refuse(name, kind, of(orbit_of, saliency=maps), "`saliency` to give 2 maps, one a sample, but got")
for kind, wrong in (("shape", lambda x: x.mean()), ("shape", lambda x: x[:1]), ("type", lambda x: (x,))):
    refuse(name, kind, of(orbit_of, network=wrong), "`network` to give a tensor of 8 rows, one a sample, but got")
refuse(name, "non-square", of(orbit_of, WIDE), SQUARE)
give(name, "empty", of(orbit_of, X[:0]), lambda o: o.orbit_logits.shape == (3, 0, 3))
give(name, "one sample", of(orbit_of, X[:1]), lambda o: o.orbit_logits.shape == (3, 1, 3))
give(name, "NaN", of(orbit_of, X * NAN), lambda o: is_nan(o.orbit_logits))
give(name, "infinite", of(orbit_of, X * INF), lambda o: not bool(o.logits.isfinite().any()))
call = of(orbit_of, INTEGERS, network=lambda x: NET(x.float()))
give(name, "integer images", call, lambda o: o.orbit_logits.shape == (3, 2, 3))
for way in WAYS.values():
    call = of(orbit_of, INTEGERS, network=lambda x: NET(x.float()), saliency=way)
    refuse(name, "integer images", call, "`x` to be floating point, to have a gradient, but got torch.int64")
    give(name, "empty", of(orbit_of, X[:0], saliency=way), lambda o: o.orbit_saliency.shape == (3, 0, 1, 4, 4))
refuse("OrbitOutputs", "missing", lambda: li.OrbitOutputs(), "logits", TypeError)
outputs = li.OrbitOutputs(BASE, ORBIT)
refuse("OrbitOutputs", "frozen", lambda: setattr(outputs, "logits", None), "logits", FrozenInstanceError)


# Saliency maps ---------------------------------------------------------------------------------------------------

for name, way in WAYS.items():
    refuse(name, "type", of(way, NET, [1.0]), "`x` to be a tensor but got list")
    refuse(name, "type", of(way, None, X), "`network` to be a module or a function but got None")
    refuse(name, "dtype", of(way, NET, X.cfloat()), "`x` to be floating point, .* but got torch.complex64")
    refuse(name, "integer images", of(way, NET, INTEGERS), "`x` to be floating point, .* but got torch.int64")
    refuse(name, "device", of(way, NET, X.to("meta")), "`x` to hold values but got a tensor on the meta device")
    refuse(name, "shape", of(way, NET, torch.tensor(1.0)), "`x` to (have a batch dimension|be images)")
    for kind, target, pattern in TARGETS:
        refuse(name, kind, of(way, NET, X, target), pattern)
    for kind, value in (("negative", 0), ("negative", -1), ("type", "a"), ("type", 1.5)):
        refuse(name, kind, of(way, NET, X, None, value), "`max_batch` to be an integer of at least 1 but got")
    for kind, wrong in (
        ("shape", lambda x: x.sum()),
        ("shape", lambda x: x),
        ("shape", lambda x: NET(x)[:1]),
        ("type", lambda x: 1),
    ):
        pattern = r"`network` to give logits of shape \(2, classes\) or \(2,\) for saliency but got"
        refuse(name, kind, of(way, wrong, X), pattern)
    for constant in (lambda x: torch.ones(len(x), 3), lambda x: NET(x).detach(), lambda x: NET(X.clone())):
        refuse(
            name, "no gradient", of(way, constant, X), "`network` to give logits that have a gradient with respect to"
        )
    give(name, "empty", of(way, NET, X[:0]), lambda r: r[1].shape == (0, 1, 4, 4))
    give(name, "one sample", of(way, NET, X[:1]), lambda r: r[1].shape == (1, 1, 4, 4))
    give(name, "non-square", of(way, network(side=5), torch.randn(2, 1, 5, 5)[..., :, :]), lambda r: r[1].ndim == 4)
    if name != "Gradient":  # the gradient of a linear network does not depend on its input
        for kind, value in (("NaN", NAN), ("infinite", INF)):
            spoilt = torch.cat([X[:1] * value, X[1:]])
            call = of(way, NET, spoilt)
            give(name, kind, call, lambda r: not r[1][0].isfinite().all() and r[1][1].isfinite().all())
call = of(WAYS["PaperSaliency"], nn.Linear(4, 3), torch.randn(2, 4))
refuse("PaperSaliency", "shape", call, r"`x` to be images \(B, ..., H, W\) for .* but got shape \(2, 4\)")
for name in ("IntegratedGradients", "PaperSaliency"):
    for kind, steps in (("negative", 0), ("negative", -2), ("type", 2.5), ("type", "8"), ("NaN", NAN)):
        refuse(name, kind, of(getattr(li, name), steps=steps), "`steps` to be an integer of at least 1 but got")
    for kind, baseline in (("type", "a"), ("type", None), ("type", torch.zeros(2)), ("NaN", NAN), ("infinite", INF)):
        refuse(name, kind, of(getattr(li, name), baseline=baseline), "`baseline` to be a finite number but got")
for name in ("Gradient", "InputXGradient"):
    for kind, dither in (
        ("negative", -1e-3),
        ("type", "a"),
        ("type", None),
        ("type", True),
        ("type", torch.zeros(2)),
        ("NaN", NAN),
        ("infinite", INF),
    ):
        call = of(getattr(li, name), dither=dither)
        refuse(name, kind, call, "`dither` to be a finite number of at least 0 but got")
for wrong in (INTEGERS, X.cfloat()):
    refuse("Gradient", "dtype", of(li.Gradient(0.1), NET, wrong), "`x` to be floating point, to have a gradient")
give("Gradient", "empty", of(li.Gradient(0.1), NET, X[:0]), lambda r: r[1].shape == (0, 1, 4, 4))
give("Gradient", "one sample", of(li.Gradient(0.1), lambda x: x.square(), torch.ones(3)), lambda r: r[1].shape == (3,))
refuse("Saliency", "abstract", lambda: li.Saliency(), "abstract", TypeError)


# Without a trainer -----------------------------------------------------------------------------------------------


def evaluated(batches: Any = (X,), action: Any = None, network: Any = NET, **options: Any) -> dict[str, li.Estimate]:
    options.setdefault("saliency", li.Gradient())
    action = li.C4() if action is None else action
    return li.evaluate_invariance(network, batches, action, progress=False, **options)


name = "evaluate_invariance"
LOGIT = {"measures": ["logit_invariance_error"]}
for wrong in ("net", None):
    refuse(name, "type", of(evaluated, network=wrong), "`network` to be a module or a function but got")
for wrong in (None, 3, "abc"):
    refuse(name, "type", of(evaluated, wrong), r"`batches` to hold batches of inputs, or pairs \(x, target\) but got")
for batch in (np.ones((2, 1, 4, 4), "f"), (X, X, X), (3, X), "a", None):
    refuse(name, "type", of(evaluated, [batch]), r"`batches` to give tensors x, pairs \(x, target\), or .* but got")
refuse(name, "type", of(evaluated, [{"a": X, "b": X}]), r"several tensors could be meant \(the batch\['a'\] .*`input=`")
refuse(name, "type", of(evaluated, [{"label": LABELS}]), "there is no tensor in lists, tuples .*`input=`")
refuse(name, "type", of(evaluated, [[{"x": X[0]}, {"x": X[1]}]]), "but the batch holds a list of samples")
for option, wrong in (("input", 1.5), ("input", True), ("target", 1.5), ("target", ["y"]), ("logits", "logits")):
    refuse(name, "type", of(evaluated, **{option: wrong}), f"`{option}` to be .* but got")
for wrong in ([], ["x", "x"], ["x", None]):
    refuse(name, "type", of(evaluated, input=wrong), "`input` to name distinct tensors, at least one, but got")
refuse(name, "unknown name", of(evaluated, input="image"), "input='image' to name a tensor in the network's arguments")
refuse(name, "unknown name", of(evaluated, target="cls"), "target='cls' to name 2 integer labels in the batch but got")
refuse(name, "shape", of(evaluated, logits=lambda out: out[:1]), "one row of logits for each of 2 samples but got")
refuse(name, "type", of(evaluated, logits=lambda out: 1), "`logits` to give a tensor but got int")
call = of(evaluated, measures=["saliency_invariance_similarity"], saliency_samples=0)
refuse(name, "options", call, r"`saliency_samples` to be at least 1 for \['saliency_invariance_similarity'\]")
for wrong in ("C4", li.C4, 3):
    refuse(name, "type", of(evaluated, action=wrong), NOT_AN_ACTION)
refuse(name, "trivial group", of(evaluated, action=li.Rotations(1)), TRIVIAL)
for batches in ([], [X[:0]], [(X[:0], LABELS[:0])]):
    refuse(name, "empty", of(evaluated, batches), "`batches` to hold at least one sample but got none")
give(name, "empty", of(evaluated, [X[:0], X], **LOGIT), lambda r: _close(r["logit_invariance_error"].value, _logit(X)))
give(name, "one sample", of(evaluated, [X[:1]], **LOGIT), lambda r: is_nan(r["logit_invariance_error"].standard_error))
for kind, value in (("NaN", NAN), ("infinite", INF)):
    spoilt = torch.cat([X[:1] * value, X[1:]])
    call = of(evaluated, [spoilt], **LOGIT)
    holds = lambda r: _close(r["logit_invariance_error"].value, _logit(X[1:]))  # noqa: E731
    give(name, kind, call, holds, "1 of 2 samples held NaN or infinite")
    call = of(evaluated, [spoilt], measures=["saliency_invariance_similarity"], saliency=li.PaperSaliency(2))
    only = lambda r: r["saliency_invariance_similarity"].value.isfinite()  # noqa: E731
    give(name, kind, call, only, "1 of 2 samples held NaN or infinite")
call = of(evaluated, [INTEGERS], network=lambda x: NET(x.float()))
give(name, "integer images", call, lambda r: "orbit_share" in r and "saliency_invariance_similarity" not in r)
refuse(name, "non-square", of(evaluated, [WIDE]), SQUARE)
for kind, names, pattern in (
    ("type", "orbit_share", "`measures` to name at least one measure in a list but got 'orbit_share'"),
    ("type", 5, "`measures` to name at least one measure in a list but got 5"),
    ("empty", [], r"`measures` to name at least one measure in a list but got \[\]"),
    ("empty", {}, "`measures` to name at least one measure in a list but got {}"),
    ("unknown name", ["accuracy"], r"`measures` to be among .* but got \['accuracy'\]"),
    ("type", [["orbit_share"]], r"`measures` to be among .* but got \[\['orbit_share'\]\]"),
    ("type", [None], r"`measures` to be among .* but got \[None\]"),
    ("type", {"mine": 3}, r"`measures` to hold torchmetrics metrics but \['mine'\] are none"),
    ("unknown name", {"mine": MeanMetric()}, "update of 'mine' to name inputs among .* but got .*'value'"),
):
    refuse(name, kind, of(evaluated, measures=names), pattern)
call = of(lambda: evaluated(measures=(each for each in ["orbit_share"])))
give(name, "type", call, lambda r: list(r) == ["orbit_share"])
refuse(name, "unknown name", of(evaluated, saliency="gradient"), "`saliency` to be a Saliency, .* but got str")
for kind, value in (("negative", -1), ("type", 1.5), ("type", "3")):
    call = of(evaluated, saliency_samples=value)
    refuse(name, kind, call, "`saliency_samples` to be an integer of at least 0 but got")
for kind, value in (("negative", 0), ("type", 1.5)):
    refuse(name, kind, of(evaluated, max_batch=value), "`max_batch` to be an integer of at least 1 but got")
ACCURACY = {"measures": ["orbit_accuracy"]}
for kind, target, _ in TARGETS:
    if kind == "type":
        continue
    call = of(evaluated, [(X, target)], **ACCURACY)
    if kind == "target out of range":
        give(name, kind, call, lambda r: 0.0 <= float(r["orbit_accuracy"].value) <= 1.0)
    elif kind == "device":
        refuse(name, kind, call, "`batches` to hold values but got a tensor on the meta device")
    else:
        refuse(name, kind, call, r"expected labels for \['orbit_accuracy'\] but found none: the batch\[1\] is a tensor")
        give(name, kind, of(evaluated, [(X, target)]), lambda r: "orbit_accuracy" not in r and "orbit_share" in r)
OF_CLASSES = "distribution_invariance_error", "jensen_shannon_invariance_error", "prediction_consistency"
for flat in (False, True):  # a regression
    alone = Call(lambda x, flat=flat: x.flatten(1).sum(1, keepdim=not flat))
    for measure in (*OF_CLASSES, "orbit_accuracy", "worst_case_orbit_accuracy"):
        call = of(evaluated, [(X, LABELS)], network=alone, measures=[measure])
        refuse(name, "shape", call, "measure of classes, and the network gives one output a sample")
    give(
        name,
        "shape",
        of(evaluated, [(X, LABELS)], network=alone),
        lambda r: "orbit_share" in r and "relative_logit_invariance_error" in r and not set(OF_CLASSES) & set(r),
    )
call = of(evaluated, [X], **ACCURACY)
refuse(name, "missing", call, r"expected labels for \['orbit_accuracy'\] but found none: .* Say with `target=`")
META = nn.Linear(4, 3, device="meta")
refuse(name, "device", of(evaluated, network=META), "`network` to hold values but got one on the meta device")
call = of(evaluated, [X.to("meta")], network=lambda x: x)
refuse(name, "device", call, "`batches` to hold values but got a tensor on the meta device")
refuse(name, "wrong inverse", of(evaluated, [ALTERNATING], WRONG_INVERSE), inverse)
refuse(name, "shape", of(evaluated, network=lambda x: x.mean()), "one row of logits for each of 2 samples but got")


def _logit(x: Tensor) -> Tensor:
    outputs = orbit_of(x)
    return functional.logit_invariance_error(outputs.logits.detach(), outputs.orbit_logits.detach())


# Baselines -------------------------------------------------------------------------------------------------------

name = "baselines.OrbitPooled"
for wrong in ("net", None, 3):
    refuse(name, "type", of(baselines.OrbitPooled, wrong, li.C4()), "`network` to be a module but got")
for wrong in ("C4", None, li.C4):
    refuse(name, "type", of(baselines.OrbitPooled, NET, wrong), NOT_AN_ACTION)
for action in (li.SO3(2), li.SetPermutations(2), li.FunctionAction([NEGATE])):
    call = of(baselines.OrbitPooled, NET, action)
    refuse(name, "no group", call, "`action` to list all elements of a group .* but got")
for wrong in ("sum", None, ["mean"]):
    refuse(name, "unknown name", of(baselines.OrbitPooled, NET, li.C4(), wrong), "`pool` to be one of .* but got")


def pooled(x: Any, inner: Any = NET) -> Tensor:
    return baselines.OrbitPooled(inner, li.C4())(x)


refuse(name, "type", of(pooled, [1.0]), r"`x` to be a tensor for C4\(\) but got list")
refuse(name, "non-square", of(pooled, WIDE), SQUARE)
refuse(name, "shape", of(pooled, torch.zeros(4, 4)), r"`x` to have a batch dimension .* but got shape \(4, 4\)")
for kind, inner in (("shape", nn.Flatten(0)), ("shape", Call(lambda x: x.mean())), ("type", Call(lambda x: (x,)))):
    refuse(name, kind, of(pooled, X, inner), "`network` to give a tensor of 8 rows, one a sample, but got")
give(name, "empty", of(pooled, X[:0]), lambda v: v.shape == (0, 3))
give(name, "one sample", of(pooled, X[:1]), lambda v: v.shape == (1, 3))
for kind, value in (("NaN", NAN), ("infinite", INF)):
    spoilt = torch.cat([X[:1] * value, X[1:]])
    give(name, kind, of(pooled, spoilt), lambda v: not v[0].isfinite().any() and v[1].isfinite().all())
give(name, "integer images", of(pooled, INTEGERS, Call(lambda x: x.flatten(1).double())), lambda v: v.shape == (2, 16))


def tied(
    action: Any = None, shape: Any = (1, 4, 4), classes: Any = 3, hidden: Any = (5,), pool: Any = "max"
) -> nn.Module:
    torch.manual_seed(0)
    return baselines.TiedFirstLayerMLP(li.C4() if action is None else action, shape, classes, hidden, pool)


def through(x: Any) -> Tensor:
    return tied()(x)


name = "baselines.TiedFirstLayerMLP"
for wrong in ("C4", li.C4, 3):
    refuse(name, "type", of(tied, wrong), NOT_AN_ACTION)
refuse(name, "no group", of(tied, li.SetPermutations(2), (4, 4)), "`action` to list all elements of a group .* but got")
refuse(name, "inexact", of(tied, li.Rotations(4)), "`action` to be exact, .* but got Rotations")
for wrong in (16, "144", None):
    refuse(name, "type", of(tied, shape=wrong), "`in_shape` to hold the sizes of one sample but got")
for kind, wrong in (("type", (1, 4.0, 4.0)), ("negative", (1, -4, -4)), ("negative", (0, 4, 4)), ("type", ("1", 4, 4))):
    refuse(name, kind, of(tied, shape=wrong), "`in_shape` to be an integer of at least 1 but got")
refuse(name, "shape", of(tied, shape=(16,)), "`x` to have a batch dimension and at least 2 more")
refuse(name, "non-square", of(tied, shape=(1, 4, 6)), SQUARE)
for kind, wrong in (("negative", 0), ("negative", -3), ("type", "3"), ("type", 2.5)):
    refuse(name, kind, of(tied, classes=wrong), "`num_classes` to be an integer of at least 1 but got")
refuse(name, "type", of(tied, hidden=8), "`hidden` to hold widths of layers but got 8")
for wrong in ((), None):
    refuse(name, "empty", of(tied, hidden=wrong), "`hidden` to hold at least the width of the tied layer but got none")
for kind, wrong in (("negative", (4, 0)), ("type", (4.0,)), ("type", ("4",))):
    refuse(name, kind, of(tied, hidden=wrong), "`hidden` to be an integer of at least 1 but got")
refuse(name, "unknown name", of(tied, pool="sum"), "`pool` to be one of .* but got 'sum'")
refuse(name, "type", of(through, [1.0]), r"`x` to be a tensor for C4\(\) but got list")
refuse(name, "non-square", of(through, WIDE), SQUARE)
OF_SHAPE = r"`x` to be floating point of shape \(B, 1, 4, 4\) but got"
for shape in ((2, 1, 6, 6), (2, 2, 4, 4), (2, 16, 1, 1)):
    refuse(name, "shape", of(through, torch.zeros(shape)), OF_SHAPE)
refuse(name, "integer images", of(through, INTEGERS), OF_SHAPE)
give(name, "empty", of(through, X[:0]), lambda v: v.shape == (0, 3))
give(name, "one sample", of(through, X[:1]), lambda v: v.shape == (1, 3))
for kind, value in (("NaN", NAN), ("infinite", INF)):
    spoilt = torch.cat([X[:1] * value, X[1:]])
    give(name, kind, of(through, spoilt), lambda v: not v[0].isfinite().any() and v[1].isfinite().all())


def steerable(group: Any = "C4", channels: Any = 1, classes: Any = 3, size: Any = 4, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return baselines.SteerableClassifier(group, channels, classes, size, **{"width": 2, "depth": 2, **options})


def steered(x: Any) -> Tensor:
    return steerable().eval()(x)


name = "baselines.SteerableClassifier"
for wrong in ("C3", "c4", 4, None, li.C4()):
    refuse(name, "unknown name", of(steerable, wrong), "`group` to be one of .* but got")
for argument, option in (
    ("in_channels", "channels"),
    ("num_classes", "classes"),
    ("image_size", "size"),
    ("width", "width"),
    ("depth", "depth"),
):
    for kind, wrong in (("negative", 0), ("negative", -3), ("type", "3"), ("type", 2.5), ("type", (4, 4))):
        refuse(name, kind, of(steerable, **{option: wrong}), f"`{argument}` to be an integer of at least 1 but got")
name = "baselines.action_of"
for kind, wrong in (("negative", 0), ("type", 2.5), ("type", None)):
    refuse(name, kind, of(baselines.action_of, None, samples=wrong), "`samples` to be an integer of at least 1 but got")
for wrong in (0.5, None, "0"):
    refuse(
        name, "type", of(baselines.action_of, None, seed=wrong), "`seed` to be an integer of at most 64 bits but got"
    )
if find_spec("escnn") is not None:
    for wrong in ("C4", None, li.C4(), 4):
        refuse(name, "type", of(baselines.action_of, wrong), "`space` to be a gspace of the plane, .* but got")
    name = "baselines.SteerableClassifier"
    refuse(name, "type", of(steered, [1.0]), OF_SHAPE)
    for kind, wrong in (("non-square", WIDE), ("shape", X[0]), ("shape", torch.zeros(2, 2, 4, 4))):
        refuse(name, kind, of(steered, wrong), OF_SHAPE)
    refuse(name, "integer images", of(steered, INTEGERS), OF_SHAPE)
    give(name, "empty", of(steered, X[:0]), lambda v: v.shape == (0, 3))
    give(name, "one sample", of(steered, X[:1]), lambda v: v.shape == (1, 3))
    for kind, value in (("NaN", NAN), ("infinite", INF)):
        spoilt = torch.cat([X[:1] * value, X[1:]])
        give(name, kind, of(steered, spoilt), lambda v: not v[0].isfinite().any() and v[1].isfinite().all())


# Reports ---------------------------------------------------------------------------------------------------------

name, table = "report.markdown_table", report.markdown_table
for empty in ({}, None):
    refuse(name, "empty", of(table, empty), "`rows` to hold at least one model but got none")
for rows in ([1], {"a": 3}, {"a": [("LI", 1.0)]}, "rows"):
    refuse(name, "type", of(table, rows), "`rows` to map each model to a mapping of its measures but got")
for cell in ("high", [1.0], torch.ones(2), li.Estimate(torch.ones(3), torch.ones(3)), li.Estimate("a", 0.1), True):
    refuse(name, "type", of(table, {"a": {"LI": cell}}), "`rows` to hold numbers or Estimates of one value .* for 'LI'")
for kind, cell, shown in (
    ("NaN", NAN, "nan"),
    ("infinite", -INF, "-inf"),
    ("missing", None, "–"),
    ("type", np.float32(2), "2"),
):
    give(name, kind, of(table, {"a": {"LI": cell}}), lambda t, shown=shown: t.splitlines()[2] == f"| a | {shown} |")
give(name, "type", of(table, {1: {2: 3}}, corner=4), lambda t: t.splitlines()[::2] == ["| 4 | 2 |", "| 1 | 3 |"])
give(name, "empty", of(table, {"a": {}}), lambda t: t.splitlines()[2] == "| a |")

name = "report.plot_bars"
for empty in ({}, None):
    refuse(name, "empty", of(report.plot_bars, empty), "`panels` to hold at least one measure but got none")
for kind, panels in (("empty", {"LI": {}}), ("type", {"LI": [1.0]}), ("type", [1]), ("type", "LI")):
    refuse(name, kind, of(report.plot_bars, panels), "`panels` to map each measure to a mapping of models' values but")
for wrong in ("high", None, [1.0], torch.ones(2), True):
    refuse(name, "type", of(report.plot_bars, {"LI": {"a": wrong}}), "LI of a to be a number or an Estimate .* but got")
refuse(name, "type", of(report.plot_bars, {"LI": {"a": 1.0}}, log="LI"), "`log` to hold names of measures but got 'LI'")
call = of(report.plot_bars, {"LI": {"a": 1.0}}, log=["DI"])
refuse(name, "unknown name", call, r"`log` to name measures among \['LI'\] but got \['DI'\]")
for kind, value in (("NaN", NAN), ("infinite", INF)):
    call = of(report.plot_bars, {"LI": {"a": value, "b": 2.0}}, log=["LI"])
    give(name, kind, call, lambda f: [bar.get_width() for bar in f.axes[0].patches] == [2.0])

name = "report.plot_curves"


def curves(panels: Any, x: Any = (1, 2), **options: Any) -> Any:
    return report.plot_curves(panels, x, "epoch", **options)


for empty in ({}, None):
    refuse(name, "empty", of(curves, empty), "`panels` to hold at least one measure but got none")
for kind, panels in (("empty", {"LI": {}}), ("type", {"LI": [1.0, 2.0]}), ("type", [1]), ("type", "LI")):
    refuse(name, kind, of(curves, panels), "`panels` to map each measure to a mapping of models' curves but got")
for wrong in (1.0, "ab", [1.0, "b"], [None, 1.0]):
    refuse(name, "type", of(curves, {"LI": {"a": wrong}}), "LI of a to be a sequence of numbers but got")
refuse(name, "shape", of(curves, {"LI": {"a": [1.0]}}), "LI of a to have 2 values but got 1")
refuse(name, "type", of(curves, {"LI": {"a": [1.0]}}, 1), "`x` to hold the abscissa's values but got 1")
refuse(name, "type", of(curves, {"LI": {"a": [1.0, 2.0]}}, log="LI"), "`log` to hold names of measures but got 'LI'")
call = of(curves, {"LI": {"a": [1.0, 2.0]}}, log=["DI"])
refuse(name, "unknown name", call, r"`log` to name measures among \['LI'\] but got \['DI'\]")
for kind, value in (("NaN", NAN), ("infinite", INF)):
    call = of(curves, {"LI": {"a": [value, 2.0]}}, log=["LI"])
    give(name, kind, call, lambda f: f.axes[0].lines[0].get_ydata()[1] == 2.0)


def drawn(networks: Any = None, x: Any = X[0], action: Any = None, **options: Any) -> Any:
    options.setdefault("saliency", li.Gradient())
    networks = {"net": NET} if networks is None else networks
    return report.plot_saliency_orbit(networks, x, li.C4() if action is None else action, **options)


name = "report.plot_saliency_orbit"
for kind, networks in (("empty", {}), ("type", NET), ("type", [NET])):
    refuse(name, kind, of(drawn, networks), "`networks` to map names to networks, at least one, but got")
refuse(name, "type", of(drawn, {"net": "net"}), "`network` to be a module or a function but got 'net'")
refuse(name, "type", of(drawn, x=[1.0]), "`x` to be a tensor but got list")
refuse(name, "shape", of(drawn, x=X), r"`x` to be one image \(C, H, W\) but got shape \(2, 1, 4, 4\)")
refuse(name, "device", of(drawn, x=X[0].to("meta")), "`x` to hold values but got a tensor on the meta device")
refuse(name, "non-square", of(drawn, x=WIDE[0]), SQUARE)
refuse(name, "integer images", of(drawn, {"net": lambda x: NET(x.float())}, INTEGERS[0]), "`x` to be floating point")
for wrong in ("C4", li.C4):
    refuse(name, "type", of(drawn, action=wrong), NOT_AN_ACTION)
refuse(name, "trivial group", of(drawn, action=li.Rotations(1)), TRIVIAL)
for kind, target in (("type", 1.5), ("type", "1"), ("negative", -1)):
    refuse(name, kind, of(drawn, target=target), "`target` to be an integer of at least 0 but got")
refuse(
    name, "target out of range", of(drawn, target=3), "`target` to hold classes from 0 to 2 but got values from 3 to 3"
)
refuse(name, "unknown name", of(drawn, saliency="gradient"), "`saliency` to be a Saliency, .* but got str")


# Sensitivity -----------------------------------------------------------------------------------------------------


def perturbed_of(x: Any = X, action: Any = None, network: Any = NET, **options: Any) -> Tensor:
    return li.evaluate_perturbations(network, x, li.C4() if action is None else action, **options)


def norm_of(x: Any = X, network: Any = NET, **options: Any) -> Tensor:
    return li.jacobian_spectral_norm(network, x, **options)


for name, run in (("evaluate_perturbations", perturbed_of), ("jacobian_spectral_norm", norm_of)):
    refuse(name, "type", of(run, [1.0]), "`x` to be a tensor.* but got list")
    refuse(name, "device", of(run, X.to("meta")), "`x` to hold values but got a tensor on the meta device")
    refuse(name, "integer images", of(run, INTEGERS), "`x` to be floating point, to .*, but got torch.int64")
    for wrong in ("net", None):
        refuse(name, "type", of(run, network=wrong), "`network` to be a module or a function but got")
    for kind, value in (("negative", 0), ("negative", -3), ("type", 2.0), ("type", "2")):
        refuse(name, kind, of(run, max_batch=value), "`max_batch` to be an integer of at least 1 but got")
    for kind, wrong in (("shape", lambda x: x.mean()), ("shape", lambda x: x[:1]), ("type", lambda x: (x,))):
        refuse(name, kind, of(run, network=wrong), "`network` to give .* but got")
name = "evaluate_perturbations"
for wrong in ("C4", li.C4, 3):
    refuse(name, "type", of(perturbed_of, action=wrong), NOT_AN_ACTION)
refuse(name, "trivial group", of(perturbed_of, action=li.Rotations(1)), TRIVIAL)
refuse(name, "non-square", of(perturbed_of, WIDE), SQUARE)
give(name, "empty", of(perturbed_of, X[:0]), lambda v: v.shape == (3, 0, 3))
give(name, "one sample", of(perturbed_of, X[:1]), lambda v: v.shape == (3, 1, 3))
give(name, "NaN", of(perturbed_of, X * NAN), is_nan)
give(name, "infinite", of(perturbed_of, X * INF), is_nan)
for kind, wrong in (("type", 3), ("device", X.to("meta"))):
    refuse(name, kind, of(perturbed_of, directions=wrong), "`directions` to (be a tensor|hold values) but got")
for kind, wrong in (("shape", X), ("dtype", torch.ones(3, *X.shape, dtype=LONG))):
    call = of(perturbed_of, directions=wrong)
    refuse(name, kind, call, r"`directions` to have the shape \(3, 2, 1, 4, 4\), floating point, but got")
call = of(perturbed_of, action=li.FunctionAction([(lambda x: x[..., 1:], lambda x: x)]))
refuse(name, "shape", call, r"Expected 'element1' .* to keep the shape \(2, 1, 4, 4\) but got \(2, 1, 4, 3\)")
name = "jacobian_spectral_norm"
refuse(name, "shape", of(norm_of, torch.ones(3)), r"`x` to have the shape \(B, ...\) .* but got \(3,\)")
refuse(
    name, "detached", of(norm_of, network=lambda x: NET(x.detach())), "`network` to give logits that have a gradient"
)
call = of(norm_of, network=lambda x: NET(x).argmax(1))
refuse(name, "dtype", call, "`network` to give floating-point values for each sample but got")
for kind, value in (("negative", 0), ("type", "1"), ("NaN", NAN)):
    refuse(name, kind, of(norm_of, tolerance=value), "`tolerance` to be .* but got")
for kind, value in (("negative", 0), ("type", 1.5)):
    refuse(name, kind, of(norm_of, max_iterations=value), "`max_iterations` to be an integer of at least 1 but got")
give(name, "empty", of(norm_of, X[:0]), lambda v: v.shape == (0,))
give(name, "one sample", of(norm_of, X[:1]), lambda v: v.shape == (1,))
squared = lambda x: NET(x).square()  # noqa: E731
give(name, "NaN", of(norm_of, X * NAN, squared), is_nan, "undefined for 2 of 2 samples.*NaN")
give(name, "infinite", of(norm_of, X * INF, squared), is_nan, "undefined for 2 of 2 samples.*NaN")
name = "layer_spectral_norms"
for wrong in (None, "net", torch.relu):
    refuse(name, "type", of(li.layer_spectral_norms, wrong), "`module` to be a torch.nn.Module but got")
for kind, value in (("negative", 0), ("type", 1.5)):
    refuse(name, kind, of(li.layer_spectral_norms, NET, size=value), "`size` to be an integer of at least 1 but got")
for kind, layer in (("empty", nn.LazyLinear(3)), ("device", nn.Linear(2, 3, device="meta"))):
    refuse(name, kind, of(li.layer_spectral_norms, layer), "`module` to hold values but got a layer '' without")
give(name, "empty", of(li.layer_spectral_norms, nn.ReLU()), lambda norms: norms == {})
call = lambda: li.layer_spectral_norms(Call(nn.utils.skip_init(nn.Linear, 2, 3)).apply(poisoned))[  # noqa: E731
    "function"
]
give(name, "NaN", call, is_nan, "undefined for 1 of 1 samples")


def poisoned(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.constant_(module.weight, NAN)


# Callbacks -------------------------------------------------------------------------------------------------------

CALLBACKS: dict[str, Callable[..., Any]] = {
    "InvarianceMonitor": li.InvarianceMonitor,
    "InvarianceRegularizer": li.InvarianceRegularizer,
    "OrbitAugmentation": li.OrbitAugmentation,
}
for name, make in CALLBACKS.items():
    for wrong in ("C4", None, li.C4, 3):
        refuse(name, "type", of(make, wrong), NOT_AN_ACTION)
    refuse(name, "trivial group", of(make, li.Rotations(1)), TRIVIAL)
    for wrong in (1.5, True):
        refuse(name, "type", of(make, li.C4(), input=wrong), "`input` to be a position, a key or None but got")
    for wrong in ([], ["x", "x"]):
        refuse(name, "type", of(make, li.C4(), input=wrong), "`input` to name distinct tensors, at least one, but got")
    refuse(name, "type", of(make, li.C4(), input=[1.5]), "`each of input` to be a position, a key or None but got")
    if name != "OrbitAugmentation":
        for wrong in (3, NET, ["model"]):
            call = of(make, li.C4(), network=wrong)
            refuse(name, "type", call, "`network` to be the name of a submodule or None but got")
        for kind, value in (("negative", 0), ("negative", -1), ("type", 1.5)):
            refuse(name, kind, of(make, li.C4(), max_batch=value), "`max_batch` to be an integer of at least 1 but got")
        for wrong in (-1, 1.5, True, "first"):
            call = of(make, li.C4(), call=wrong)
            refuse(name, "type", call, "`call` to be an index of at least 0, 'last', 'all' or None .* but got")
        refuse(name, "type", of(make, li.C4(), logits="logits"), "`logits` to be a function of the network's output")
        for wrong in (1, "", "/a", "a/"):
            refuse(name, "type", of(make, li.C4(), prefix=wrong), "`prefix` to be a name without slashes at its ends")
    if name != "InvarianceMonitor":
        for kind, value in (("type", "a"), ("type", 1.5), ("out of range", 2**64)):
            refuse(name, kind, of(make, li.C4(), seed=value), "`seed` to be an integer of at most 64 bits but got")

name = "InvarianceMonitor"
monitor = of(li.InvarianceMonitor, li.C4())
for kind, wrong in (
    ("unknown name", ["accuracy"]),
    ("empty", []),
    ("type", "orbit_share"),
    ("type", [[]]),
    ("type", {"a": 1}),
):
    refuse(name, kind, of(monitor, wrong), "`measures` to (be among|name at least one|hold torchmetrics)")
refuse(name, "unknown name", of(monitor, saliency="gradient"), "`saliency` to be a Saliency, .* but got str")
for kind, value in (("negative", -1), ("type", 1.5), ("type", "3")):
    refuse(name, kind, of(monitor, saliency_samples=value), "`saliency_samples` to be an integer of at least 0 but got")
for kind, value in (("negative", 0), ("negative", -1), ("type", 1.5)):
    refuse(name, kind, of(monitor, every_n_epochs=value), "`every_n_epochs` to be an integer of at least 1 but got")
refuse(name, "type", of(monitor, target=1.5), "`target` to be a position, a key or None but got 1.5")
call = of(monitor, ["saliency_invariance_similarity"], saliency_samples=0)
refuse(name, "options", call, r"`saliency_samples` to be at least 1 for \['saliency_invariance_similarity'\]")

name = "InvarianceRegularizer"
regularizer = of(li.InvarianceRegularizer, li.C4())
for kind, weight in (
    ("negative", -1),
    ("NaN", NAN),
    ("infinite", INF),
    ("type", "1"),
    ("type", None),
    ("type", True),
    ("type", [1.0]),
):
    refuse(name, kind, of(regularizer, weight), "`weight` to be a finite number of at least 0 but got")
for value in (np.float32(2), np.int64(2), 2):
    give(name, "dtype", of(regularizer, value), lambda r: r.weight == 2)
for kind, penalty in (("unknown name", "l2"), ("type", None), ("type", 3), ("type", [])):
    refuse(name, kind, of(regularizer, 1.0, penalty), "`penalty` to be one of .* but got")
for kind, elements in (("negative", 0), ("negative", -1), ("type", 1.5), ("type", "2"), ("type", True)):
    call = of(regularizer, 1.0, "logit", elements)
    refuse(name, kind, call, "`elements` to be an integer of at least 1 but got")
call = of(regularizer, 1.0, "logit", 4)
refuse(name, "elements > |G|", call, r"`elements` to be at most 3, the elements of C4\(\) without .* but got 4")
call = of(regularizer, 1.0, "jensen_shannon", 2)
refuse(name, "options", call, "`elements` to be None with penalty='jensen_shannon', .* but got 2")
for kind, value in (("negative", -1), ("type", 1.0)):
    refuse(name, kind, of(regularizer, backward_call=value), "`backward_call` to be an integer of at least 0 but got")

name, ramp = "WeightRamp", li.WeightRamp
for kind, value in (("negative", -1), ("NaN", NAN), ("infinite", INF)):
    refuse(name, kind, of(ramp, value, 1, 3), "`start` to be at least 0 and finite but got")
    refuse(name, kind, of(ramp, 0, value, 3), "`end` to be at least 0 and finite but got")
for value in ("1", None, True, 1j):
    refuse(name, "type", of(ramp, value, 1, 3), "`start` to be a number but got")
    refuse(name, "type", of(ramp, 0, value, 3), "`end` to be a number but got")
for kind, value in (("negative", 0), ("negative", -2), ("type", 1.5), ("type", "3")):
    refuse(name, kind, of(ramp, 0, 1, value), "`steps` to be an integer of at least 1 but got")
refuse(name, "unknown name", of(ramp, 0, 1, 3, "cosine"), "`shape` to be one of .* but got 'cosine'")
refuse(name, "zero", of(ramp, 0, 1, 3, "exponential"), "`start` to be above 0 for an exponential ramp .* but got 0")
refuse(name, "zero", of(ramp, 1, 0, 3, "exponential"), "`end` to be above 0 for an exponential ramp .* but got 0")
refuse("MonitorRecord", "missing", lambda: li.MonitorRecord(), "stage", TypeError)
record = li.MonitorRecord("val", 0, 0, {})
refuse("MonitorRecord", "frozen", lambda: setattr(record, "epoch", 1), "epoch", FrozenInstanceError)


# In a step -------------------------------------------------------------------------------------------------------


def trained(callback: Any, x: Tensor = X, y: Tensor = LABELS, network: Callable[[], nn.Module] = mlp) -> Any:
    """One step of training, or of validation where the callback takes part in that."""
    batches = DataLoader(TensorDataset(x, y), batch_size=max(len(x), 1))
    module = fit(
        lambda: Classifier(network), [callback], data=batches, val=batches, max_steps=1, num_sanity_val_steps=0
    )
    return module.losses[0], callback


def reg(*args: Any, **options: Any) -> Any:
    return li.InvarianceRegularizer(li.C4(), *args, **options)


def through_floats() -> nn.Module:
    return nn.Sequential(Call(Tensor.float), mlp())


for name, make in CALLBACKS.items():
    # Made by the call: a callback that was in a trainer is not new.
    refuse(name, "non-square", lambda make=make: trained(make(li.C4()), WIDE, network=flat24), SQUARE)
    call = lambda make=make: trained(make(li.C4(), input="image"))  # noqa: E731
    refuse(name, "unknown name", call, "expected input='image' to name a tensor in")
    call = lambda make=make: trained(make(WRONG_INVERSE), ALTERNATING)  # noqa: E731
    if name == "OrbitAugmentation":  # it goes one way only
        give(name, "wrong inverse", call, lambda r: r[0] > 0)
    else:
        refuse(name, "wrong inverse", call, inverse)
    give(name, "one sample", lambda make=make: trained(make(li.C4()), X[:1], LABELS[:1])[0], lambda v: v > 0, ANYTHING)
    call = lambda make=make: trained(make(li.C4()), INTEGERS, network=through_floats)[0]  # noqa: E731
    give(name, "integer images", call, lambda v: v > 0)
for name in ("InvarianceMonitor", "InvarianceRegularizer"):
    call = lambda make=CALLBACKS[name]: trained(make(li.C4(), network="head"))  # noqa: E731
    refuse(
        name, "unknown name", call, f"{name}: expected `network` to name a submodule of Classifier .* but got 'head'"
    )
name = "InvarianceRegularizer"
call = lambda: trained(reg(penalty="saliency"), INTEGERS, network=through_floats)  # noqa: E731
refuse(name, "integer images", call, "expected the input to be floating point, to have a gradient, not torch.int64")
for kind, weight in (("negative", -1.0), ("NaN", NAN), ("infinite", INF), ("type", "1"), ("type", None)):
    call = lambda weight=weight: trained(reg(lambda step: weight))  # noqa: E731
    refuse(name, kind, call, "expected `weight` to be a finite number of at least 0 but got")
give(name, "dtype", lambda: trained(reg(lambda step: torch.tensor(0.5)))[0], lambda v: v > 0)
for kind, penalty in (("shape", lambda f, fg: f.sum(1)), ("type", lambda f, fg: 1.0), ("type", lambda f, fg: None)):
    call = lambda penalty=penalty: trained(reg(1.0, penalty))  # noqa: E731
    refuse(name, kind, call, "expected `penalty` to give a scalar tensor but got")
for penalty in ("distribution", "jensen_shannon"):
    call = lambda penalty=penalty: trained(reg(1.0, penalty), y=LABELS * 0, network=single)  # noqa: E731
    refuse(name, "shape", call, r"`logits` to have the shape \(B, C\) with C of at least 2 but got \(2, 1\)")
call = lambda: trained(li.InvarianceMonitor(li.C4(), target=3))  # noqa: E731
refuse(
    "InvarianceMonitor",
    "unknown name",
    call,
    "expected target=3 to name 2 integer labels in the batch but got NoneType",
)
name, sensitivity = "SensitivityMonitor", li.SensitivityMonitor
for wrong in ("C4", li.C4, 3):
    refuse(name, "type", of(sensitivity, wrong), NOT_AN_ACTION)
refuse(name, "trivial group", of(sensitivity, li.Rotations(1)), TRIVIAL)
for option in ("samples", "every_n_epochs", "max_batch"):
    for kind, value in (("negative", 0), ("negative", -1), ("type", 1.5)):
        call = of(sensitivity, **{option: value})
        refuse(name, kind, call, f"`{option}` to be an integer of at least 1 but got")
refuse(name, "type", of(sensitivity, layers="all"), "`layers` to be one of .* but got 'all'")
refuse(name, "type", of(sensitivity, network=3), "`network` to be the name of a submodule or None but got")
refuse(name, "type", of(sensitivity, input=1.5), "`input` to be a position, a key or None but got")
call = lambda: trained(li.SensitivityMonitor(li.C4()), WIDE, network=flat24)  # noqa: E731
refuse("SensitivityMonitor", "non-square", call, SQUARE)
call = lambda: trained(li.SensitivityMonitor(input="image"))  # noqa: E731
refuse("SensitivityMonitor", "unknown name", call, "expected input='image' to name a tensor in")
call = lambda: trained(li.SensitivityMonitor(network="head"))  # noqa: E731
refuse("SensitivityMonitor", "unknown name", call, "SensitivityMonitor: expected `network` to name a submodule")
call = lambda: trained(li.SensitivityMonitor(WRONG_INVERSE), ALTERNATING)  # noqa: E731
refuse("SensitivityMonitor", "wrong inverse", call, inverse)
call = lambda: trained(li.SensitivityMonitor(), INTEGERS, network=through_floats)  # noqa: E731
refuse("SensitivityMonitor", "integer images", call, "expected the input to be floating point, to have a gradient, but")
call = lambda: trained(li.SensitivityMonitor(li.C4()), X[:1], LABELS[:1])[0]  # noqa: E731
give("SensitivityMonitor", "one sample", call, lambda v: v > 0, ANYTHING)

name, found = "search_weight", li.search_weight
refuse(name, "type", of(found, 3), "`train` to be a function from a weight to a score but got 3")
refuse(name, "type", of(found, lambda weight: "high"), "`train` to return a number but got 'high'")
for option, values in (("target", (NAN, "1")), ("start", (0, -1.0, INF)), ("factor", (1.0, NAN))):
    for value in values:
        refuse(name, "negative", of(found, lambda weight: 1.0, **{option: value}), f"`{option}` to be a finite number")
refuse(name, "negative", of(found, lambda weight: 1.0, max_trials=0), "`max_trials` to be an integer of at least 1")
give(name, "NaN", of(found, lambda weight: NAN, max_trials=2), lambda s: not s.reached and len(s.trials) == 2)


# Comparisons -----------------------------------------------------------------------------------------------------


class Loaders(LightningDataModule):
    """Images to train and test on."""

    def __init__(self, x: Tensor = X, y: Tensor = LABELS, samples: int = 2) -> None:
        super().__init__()
        self.data = TensorDataset(x[:samples], y[:samples])

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=2)

    def test_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=2)


class Tested(Classifier):
    """With a test step."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


def compared(models: Any = None, data: Any = None, action: Any = None, **options: Any) -> li.Comparison:
    models = {"net": Tested()} if models is None else models
    options = {"saliency": li.Gradient(), "rounds": 0, "progress": False, "accelerator": "cpu", **options}
    return li.compare(models, Loaders() if data is None else data, li.C4() if action is None else action, **options)


name = "compare"
for kind, models in (("empty", {}), ("type", [Tested]), ("type", {"net": NET}), ("type", 3)):
    refuse(name, kind, of(compared, models), "`models` to map names to LightningModules, at least one, but got")
refuse(name, "missing", lambda: compared({"net": Classifier()}), r"'net', a Classifier, lacks \['test_step'\]")
for data in ([X], "data", TensorDataset(X)):
    refuse(
        name, "type", of(compared, data=data), "`datamodule` to be a LightningDataModule but got .*: Lightning.*from_"
    )
for wrong in ("C4", li.C4):
    refuse(name, "type", lambda wrong=wrong: compared(action=wrong), NOT_AN_ACTION)
refuse(name, "trivial group", lambda: compared(action=li.Rotations(1)), TRIVIAL)
for wrong in ([], {"net": 3}, {"net": [3]}, {"net": li.OrbitAugmentation(li.C4())}):
    call = lambda wrong=wrong: compared(callbacks=wrong)  # noqa: E731
    refuse(name, "type", call, "`callbacks` to map names of models to lists of Callbacks but got")
call = lambda: compared(callbacks={"other": []})  # noqa: E731
refuse(name, "unknown name", call, r"`callbacks` to name models among \['net'\] but got \['other'\]")
for kind, value in (("negative", -1), ("type", 1.5), ("type", True)):
    call = lambda value=value: compared(rounds=value)  # noqa: E731
    refuse(name, kind, call, "`rounds` to be an integer of at least 0 but got")
for kind, value in (("negative", 0), ("type", "3")):
    call = lambda value=value: compared(steps=value)  # noqa: E731
    refuse(name, kind, call, "`steps` to be an integer of at least 1 but got")
for option in ("callbacks", "logger", "max_epochs"):
    if option != "callbacks":
        call = lambda option=option: compared(**{option: None})  # noqa: E731
        refuse(name, "options", call, rf"options to leave \['{option}'\] to `compare`")
refuse(name, "options", lambda: compared(speed="high"), "unexpected keyword argument 'speed'", TypeError)
refuse(name, "unknown name", lambda: compared(saliency="gradient"), "`saliency` to be a Saliency, .* but got str")
refuse(name, "unknown name", lambda: compared(network="head"), "expected `network` to name a submodule of Tested")
refuse(name, "unknown name", lambda: compared(input="image"), "expected input='image' to name a tensor in")
refuse(name, "negative", lambda: compared(max_batch=0), "`max_batch` to be an integer of at least 1 but got 0")
refuse(name, "non-square", lambda: compared({"net": Tested(flat24)}, Loaders(WIDE)), SQUARE)
refuse(name, "empty", lambda: compared(limit_test_batches=0), "`datamodule` to give batches to test on but got none")
call = lambda: compared(data=Loaders(samples=1))  # noqa: E731
give(name, "one sample", call, lambda c: "accuracy" in c.to_markdown(), ANYTHING)
call = of(li.Comparison({}).ratios, "seconds")
refuse("Comparison", "unknown name", call, "`times` to be one of .* but got 'seconds'")
give("Comparison", "empty", of(li.Comparison({}).ratios, "inference_seconds"), lambda ratios: ratios == {})
refuse("Comparison", "empty", li.Comparison({}).to_markdown, "`rows` to hold at least one model but got none")
refuse("ComparedModel", "missing", li.ComparedModel, "measures", TypeError)
