"""Measures, as functions and as metrics."""

from __future__ import annotations

from functools import partial

from bad_input import *

#: The function, the metric, what their inputs are called, and the value of one sample whose orbit is a point.
MEASURES: list[tuple[Callable[..., Tensor], type[Any], str, float]] = [
    (functional.distribution_invariance_error, li.DistributionInvarianceError, "logits", 0.0),
    (functional.jensen_shannon_invariance_error, li.JensenShannonInvarianceError, "logits", 0.0),
    (functional.logit_invariance_error, li.LogitInvarianceError, "logits", 0.0),
    (functional.orbit_accuracy, li.OrbitAccuracy, "logits", 0.0),
    (functional.orbit_share, li.OrbitShare, "logits", NAN),
    (functional.prediction_consistency, li.PredictionConsistency, "logits", 1.0),
    (functional.relative_equivariance_error, li.RelativeEquivarianceError, "logits", 0.0),
    (functional.relative_logit_invariance_error, li.RelativeLogitInvarianceError, "logits", NAN),
    (functional.saliency_invariance_similarity, li.SaliencyInvarianceSimilarity, "saliency", 1.0),
    (functional.selectivity, li.Selectivity, "logits", 0.0),
    (functional.vector_cosine_similarity, li.VectorCosineSimilarity, "logits", 1.0),
]
DIVERGENCES = [function for function, *_ in MEASURES[:2]]
OF_CLASSES = [*DIVERGENCES, functional.orbit_accuracy, functional.prediction_consistency]
#: ½ (0 + 4) / 4 pairs; 2 / 1 in one of 4 pairs; over a variance of 1/4;
#: means 5/3 and 2, within (8/9 + 0) / 2 = 4/9, between 1/36.
OF_ONE_OUTPUT = {functional.logit_invariance_error: 0.5, functional.relative_logit_invariance_error: 2.0}
OF_ONE_OUTPUT |= {functional.orbit_share: 16 / 17, functional.relative_equivariance_error: 0.5}
ONE_OUTPUT = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0], [3.0, 2.0]])


def further(measure: Any, base: Any, orbit: Any) -> dict[str, Tensor]:
    """Labels, or perturbed logits that are a good deal away, for the measures that take them."""
    if measure in (functional.orbit_accuracy, li.OrbitAccuracy):
        return {"target": torch.zeros(base.shape[:1], dtype=LONG) if isinstance(base, Tensor) else LABELS}
    if measure in (functional.selectivity, li.Selectivity):
        real = isinstance(orbit, Tensor) and orbit.is_floating_point()
        return {"perturbed_logits": orbit + 1 if real else ORBIT}
    return {}


def of_function(function: Callable[..., Tensor], base: Any, orbit: Any, **options: Any) -> Tensor:
    return function(base, orbit, **further(function, base, orbit), **options)


def of_metric(make: type[Any], *batches: Any, call: str = "update", reset: bool = False, **options: Any) -> Tensor:
    valid = {"valid": options.pop("valid")} if "valid" in options else {}
    metric = make(**options)
    for base, orbit in zip(batches[::2], batches[1::2], strict=True):
        if reset:
            metric.reset()
        getattr(metric, call)(base, orbit, **further(make, base, orbit), **valid)
    return metric.compute()


def inputs_of(name: str, measure: Callable[..., Tensor], function: Any, argument: str, one: float) -> None:
    """The rows that all measures share."""
    orbit = f"`orbit_{argument}`"
    floating = "to be a floating-point tensor but got"
    refuse(name, f"`{argument}` {floating} ..float", measure, [[1.0, 2.0]], ORBIT)
    refuse(name, f"`{argument}` {floating} a tensor .* of int64", measure, BASE.to(LONG), ORBIT)
    refuse(name, f"{orbit} {floating} NoneType", measure, BASE, None)
    refuse(name, f"{orbit} {floating} a tensor .* of complex64", measure, BASE, ORBIT.cfloat())
    refuse(name, rf"`{argument}` to have the shape \(B, .* but got \(\)", measure, BASE.sum(), ORBIT[:, 0, 0])
    refuse(name, f"`{argument}` to have .* of at least 2|at least one", measure, BASE[:, :0], ORBIT[..., :0])
    refuse(name, f"{orbit} to be on cpu, as `{argument}`, but got meta", measure, BASE, ORBIT.to("meta"))
    for shape in ((2, 3), (0, 2, 3), (2, 1, 3), (2, 2, 4), (2, 2, 1, 3)):
        got = ", ".join(map(str, shape))
        refuse(name, rf"{orbit} to have the shape \(\|G\| - 1, 2, 3\).*got \({got}\)", measure, BASE, torch.ones(shape))
    if function in OF_ONE_OUTPUT:
        give(name, lambda value: close(value, OF_ONE_OUTPUT[function]), measure, *ONE_OUTPUT)
    elif function is not functional.selectivity:
        refuse(name, rf"`{argument}` to have the shape \(B, (C|\.\.\.)\)", measure, *ONE_OUTPUT)
    if function in OF_CLASSES:
        reason = "of at least 2 but got {}: this is a measure of classes, and the network gives one output a sample"
        refuse(name, reason.format(r"\(2, 1\)"), measure, BASE[:, :1], ORBIT[..., :1])
        refuse(name, reason.format(r"\(2,\)"), measure, BASE[:, 0], ORBIT[..., 0])
    if function in (*OF_CLASSES, functional.orbit_share):
        refuse(name, r"`logits` to have the shape \(B, C\)", measure, BASE[..., None], ORBIT[..., None])
    if function is not functional.saliency_invariance_similarity and "valid" in inspect.signature(function).parameters:
        whole = {"valid": torch.ones(1, 1, 1, dtype=torch.bool)}
        for wrong in (torch.ones(2, 2, 3), torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 3, 3, dtype=torch.bool)):
            refuse(name, "`valid` to be (a bool|broadcastable)", measure, BASE, ORBIT, valid=wrong)
        give(name, lambda value: close(value, measure(BASE, ORBIT)), measure, BASE, ORBIT, **whole)
    give(name, is_nan, measure, BASE[:0], ORBIT[:, :0], warns="undefined.*NaN")
    warns = "undefined" if one != one else None
    give(name, lambda value: close(value, one), measure, BASE[:1], BASE[:1].repeat(2, 1, 1), warns=warns)
    give(name, lambda value: close(value, measure(BASE, ORBIT)), measure, BASE, ORBIT.double())  # mixed precision


for function, metric, argument, one in MEASURES:
    valid = {argument: BASE, f"orbit_{argument}": ORBIT, **further(function, BASE, ORBIT)}
    name, measure = entry(function, but="dim", **valid), partial(of_function, function)
    inputs_of(name, measure, function, argument, one)
    if function is not functional.orbit_accuracy:  # its labels would be elsewhere
        refuse(name, f"`{argument}` {ON_META}", measure, BASE.to("meta"), ORBIT.to("meta"))
    for value in (NAN, -INF):
        finite = "to be finite but got 1 NaN or infinite of"
        refuse(name, f"`{argument}` {finite} 6", measure, spoiled(BASE, value), ORBIT)
        refuse(name, f"`orbit_{argument}` {finite} 12", measure, BASE, spoiled(ORBIT, value))

    name, measure = entry(metric, but="dim"), partial(of_metric, metric)
    inputs_of(name, measure, function, argument, one)
    if metric is not li.OrbitAccuracy:
        refuse(name, f"`logits` to be on cpu, as {name}'s states", measure, BASE.to("meta"), ORBIT.to("meta"))
    refuse(name, "Unexpected keyword arguments: `precision`", metric, precision=3)
    error = "`reduction` to be 'mean' or 'element' for a standard error but got 'none'"
    refuse(name, error, metric(reduction="none").compute_with_error)
    other, groups = "elements besides the identity, as those before", (BASE, ORBIT, BASE, ORBIT[:1])
    pattern = f"2 {other}, with reduction='element' but got 1"
    refuse(name, pattern, measure, *groups, reduction="element")
    refuse(name, pattern, measure, *groups, reduction="element", call="forward")
    refuse(name, f"1 {other}.* but got 2", measure, *groups[2:], *groups[:2], reduction="element")
    give(name, lambda value: value.numel() == 1, measure, *groups, reduction="element", reset=True)

# One logit -------------------------------------------------------------------------------------------------------

for function in DIVERGENCES:
    name, single, column = f"functional.{function.__name__}", (BASE[:, 0], ORBIT[..., 0]), (BASE[:, :1], ORBIT[..., :1])
    refuse(name, "positional", function, BASE, ORBIT, "sigmoid", error=TypeError)
    refuse(name, "a single logit is a probability under activation='sigmoid'", function, *column)
    refuse(name, r"give a single logit the shape \(B, 1\)", function, *single, activation="sigmoid")
    refuse(name, "with C of at least 1", function, BASE[:, :0], ORBIT[..., :0], activation="sigmoid")
    give(name, lambda value: value > 0, function, *column, activation="sigmoid")

# Perturbed logits ------------------------------------------------------------------------------------------------

for wrong, pattern in (
    (None, "to be a floating-point tensor but got NoneType"),
    (ORBIT.to(LONG), "to be a floating-point tensor but got a tensor .* of int64"),
    (ORBIT[:1], r"to have the shape \(2, 2, 3\) of `orbit_logits`.* but got \(1, 2, 3\)"),
    (ORBIT.to("meta"), "to .* be on cpu, but got .* on meta"),
):
    for name, call in (("functional.selectivity", functional.selectivity), ("Selectivity", li.Selectivity().update)):
        refuse(name, f"`perturbed_logits` {pattern}", call, BASE, ORBIT, wrong)
name, call = "functional.selectivity", functional.selectivity
refuse(name, "`perturbed_logits` to be finite but got 1 NaN or infinite", call, BASE, ORBIT, spoiled(ORBIT, NAN))
give(name, is_nan, call, BASE, ORBIT, BASE.repeat(2, 1, 1), warns="selectivity is undefined.*NaN")

# Labels ----------------------------------------------------------------------------------------------------------


def accuracy_with(target: Any) -> Tensor:
    metric = li.OrbitAccuracy()
    metric.update(BASE, ORBIT, target)
    return metric.compute()


name, accuracy = "functional.orbit_accuracy", functional.orbit_accuracy
DEVICE = (LABELS.to("meta"), "`target` to (be on cpu, as `logits`, but got meta|hold values but got .* meta)")
for target, pattern in (*TARGETS, DEVICE):
    refuse(name, pattern, accuracy, BASE, ORBIT, target)
    refuse("OrbitAccuracy", pattern, accuracy_with, target)
for target, pattern in NO_CLASSES:
    for worst in (False, True):
        refuse(name, pattern, accuracy, BASE, ORBIT, target, worst_case=worst)
    # A metric counts it as wrong, without waiting for the device.
    give("OrbitAccuracy", lambda value: value == 1 / 4, accuracy_with, target)
worst = {"worst_case": True, "reduction": "element"}
reason = "`reduction` to be 'mean' or 'none' with worst_case=True"
refuse(name, reason, accuracy, BASE, ORBIT, LABELS, **worst)
refuse("OrbitAccuracy", reason, li.OrbitAccuracy, **worst)

# Masks, vectors and norms ----------------------------------------------------------------------------------------

MASKS, MOVED = BASE[..., None, None].expand(2, 3, 4, 4), ORBIT[..., None, None].expand(2, 2, 3, 4, 4)
name, masks = entry(functional.orbit_mean_iou, logits=MASKS, orbit_logits=MOVED), functional.orbit_mean_iou
refuse(name, r"`logits` to have the shape \(B, C, H, W\), .* but got \(2, 3\)", masks, BASE, ORBIT)
refuse(name, r"with C of at least 2 but got \(2, 1, 4, 4\)", masks, MASKS[:, :1], MOVED[:, :, :1])
give(name, lambda value: value == 1, masks, MASKS, MASKS[None])
name = entry(li.OrbitMeanIoU)
refuse(name, r"`logits` to have the shape \(B, C, H, W\), .* but got \(2, 3\)", li.OrbitMeanIoU().update, BASE, ORBIT)
for name, call in (
    ("functional.vector_cosine_similarity", functional.vector_cosine_similarity),
    ("VectorCosineSimilarity", li.VectorCosineSimilarity().update),
):
    refuse(name, "`dim` to say which dimension of `logits`", call, MASKS, MOVED)
name = "functional.vector_cosine_similarity"
refuse(name, "`both_zero` to be", functional.vector_cosine_similarity, BASE, ORBIT, both_zero="skip")
refuse("VectorCosineSimilarity", "`both_zero` to be", li.VectorCosineSimilarity, both_zero="skip")
refuse(name, "vectors in dimension -2 but got", functional.vector_cosine_similarity, BASE, ORBIT, dim=-2)
identity = {"include_identity": True, "reduction": "element"}
for name, call in (
    ("functional.saliency_invariance_similarity", partial(functional.saliency_invariance_similarity, BASE, ORBIT)),
    ("SaliencyInvarianceSimilarity", li.SaliencyInvarianceSimilarity),
):
    refuse(name, "`reduction` to be 'mean' or 'none' with include_identity=True", call, **identity)
name = entry(li.JacobianSpectralNorm)
for norms in (torch.ones(2, 2), torch.ones(2, dtype=LONG)):
    refuse(name, r"`spectral_norms` to have the shape \(B,\), floating point", li.JacobianSpectralNorm().update, norms)
