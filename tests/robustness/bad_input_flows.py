"""Flows, Lie derivatives and their error."""

from __future__ import annotations

from functools import partial

from bad_input import *

POINTS = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(4))
FLOWS: dict[str, tuple[Callable[..., li.Flow], Tensor]] = {
    "BrightnessFlow": (li.BrightnessFlow, X),
    "ContrastFlow": (li.ContrastFlow, X),
    "FunctionFlow": (partial(li.FunctionFlow, {"gain": lambda x, t: x * t.exp()}), X),
    "PointRotationFlow": (li.PointRotationFlow, POINTS),
    "PointTranslationFlow": (li.PointTranslationFlow, POINTS),
    "RotationFlow": (li.RotationFlow, X),
    "ScalingFlow": (li.ScalingFlow, X),
    "ShearFlow": (li.ShearFlow, X),
    "TranslationFlow": (li.TranslationFlow, X),
}
ABOVE_0 = Check("`{}` to be a finite number above 0 but got", 0, -1.0, NAN, INF, "1", True, None)
FINITE = Check("`{}` to be a finite number but got", NAN, INF, "1", True)

for name, (make, x) in FLOWS.items():
    entry(getattr(li, name), **({"functions": {"gain": torch.mul}} if name == "FunctionFlow" else {}))
    flow = make()
    for method, *args in (("tangent", 0), ("move", 0, 0.5)):
        use = getattr(flow, method)
        refuse(name, "`x` to be a tensor for .* but got .(float|int)", use, [1.0], *args)
        refuse(name, r"`x` to have a batch dimension and .* but got shape \(\)", use, torch.tensor(1.0), *args)
        refuse(name, "`x` to be floating point for .* but got torch.int64", use, x.long(), *args)
        for generator in ("up", 9, -1, True, None, 0.0):
            refuse(name, "`generator` to be one of .* or an index of one", use, x, generator, *args[1:])
        give(name, lambda v, x=x: v.shape == x[:0].shape, use, x[:0], *args)
        give(name, lambda v: v.dtype == torch.float16, use, x.half(), *args)
    FINITE.of(name, flow.move, "t", x=x, generator=0)
    for bad in (torch.zeros(2), torch.tensor(1)):
        refuse(name, "`t` to be a number or a floating-point scalar but got", flow.move, x, 0, bad)
    COUNT.of(name, flow.sampled, "n")
    SEED.of(name, flow.sampled, "seed")
    give(name, alone, flow.move, torch.cat([x[:1] * NAN, x[1:]]), 0, 0.5)
    if name not in ("RotationFlow", "PointRotationFlow"):
        ABOVE_0.of(name, make, "extent")
for name in ("RotationFlow", "ScalingFlow", "ShearFlow", "TranslationFlow"):
    make = getattr(li, name)
    bad = [0, -0.1, NAN, "0.1", True]
    refuse_each(name, "`window` to be a finite number above 0 but got", make, bad, "window")
    refuse(name, "`window` to be a share of the side, at most 0.5, but got 0.6", make, window=0.6)
for name in ("BrightnessFlow", "ContrastFlow", "RotationFlow", "ScalingFlow", "ShearFlow", "TranslationFlow"):
    few = r"`x` to have a batch dimension and at least 2 more for .* but got shape \(2, 4\)"
    refuse(name, few, FLOWS[name][0]().tangent, torch.ones(2, 4), 0)
ABOVE_0.of("TranslationFlow", li.TranslationFlow, "pixels")
FINITE.of("ContrastFlow", li.ContrastFlow, "centre")
refuse("ScalingFlow", "`extent` to be at most 10", li.ScalingFlow, extent=11)
COUNT.of("PointTranslationFlow", li.PointTranslationFlow, "coordinates")
for name in ("PointRotationFlow", "PointTranslationFlow"):
    wrong = "the size of `x` in dimension -1 to be 3 for .* but got 4"
    refuse(name, wrong, getattr(li, name)().tangent, torch.ones(2, 4), 0)
functions = [{}, None, [torch.neg], {"": torch.neg}, {1: torch.neg}, {"a": 3}, torch.neg]
refuse_each("FunctionFlow", "`functions` to map names to functions", li.FunctionFlow, functions)
refuse("Flow", "abstract", li.Flow, error=TypeError)


# Lie derivatives -------------------------------------------------------------------------------------------------


def of(**options: Any) -> Tensor:
    with torch.no_grad():
        return li.evaluate_lie_derivative(**{"network": NET, "x": X, "flow": li.TranslationFlow(), **options})


name = entry(li.evaluate_lie_derivative, network=NET, x=X, flow=li.TranslationFlow())
FLOW = Check(r"`{}` to be a Flow, such as RotationFlow\(\), but got", li.C4(), None, "rotation", li.RotationFlow)
FLOW.of(name, of, "flow")
refuse(name, "`x` to be a tensor but got .(float|int)", of, x=[1.0])
refuse(name, f"`x` {ON_META}", of, x=X.to("meta"))
refuse(name, "`x` to be floating point, to .*, but got torch.int64", of, x=INTEGERS)
refuse(name, r"`x` to have a batch dimension and at least 2 more .* but got shape \(2, 4\)", of, x=torch.ones(2, 4))
moves = r"`output_flow` to be None .*, 'same' .* or a Flow but got"
refuse_each(name, moves, of, ["turned", 3, li.C4(), {"a": "same"}], "output_flow")
refuse(name, "`output_flow` to have as many generators as TranslationFlow", of, output_flow=li.RotationFlow())
refuse(name, "`output_flow` to be able to move the network's output", of, output_flow="same")
rows = [lambda x: NET(x)[:1], lambda x: NET(x).sum(), lambda x: 1, lambda x: [NET(x)]]
refuse_each(name, "`network` to give a tensor of 2 rows, one a sample, but got", of, rows, "network")
refuse(name, "`network` to give floating-point outputs but got torch.int64", of, network=lambda x: NET(x).argmax(1))
constant = [lambda x: torch.ones(len(x), 3), lambda x: NET(x.detach())]
refuse_each(name, "`network` to give outputs that have a derivative with respect to `x`", of, constant, "network")
give(name, of_shape(2, 0, 3), of, x=X[:0])
give(name, of_shape(2, 1, 3), of, x=X[:1])
give(name, lambda v: alone(v[0]), of, x=SPOILT[0])

SLOPES = torch.tensor([[[1.0, 0.0, 2.0], [0.5, 1.0, 3.0]]])
NORM = Check(r"`{}` to be one of \['squared', 'absolute'\] but got", "euclidean", None, 2)
function, metric = functional.lie_derivative_error, li.LieDerivativeError


def accumulated(logits: Any, lie_derivative: Any, **options: Any) -> Tensor:
    made = metric(**options)
    made.update(logits, lie_derivative)
    return made.compute()


for call, name in (
    (function, entry(function, logits=BASE, lie_derivative=SLOPES)),
    (accumulated, entry(metric)),
):
    floating = "to be a floating-point tensor but got"
    refuse(name, f"`logits` {floating} .*float", call, [[1.0]], SLOPES)
    refuse(name, f"`lie_derivative` {floating} .*int64", call, BASE, SLOPES.long())
    refuse(name, r"`logits` to have the shape \(B, ...\) but got \(\)", call, torch.tensor(1.0), SLOPES)
    for bad in (SLOPES[0], SLOPES[:0], SLOPES[:, :1], SLOPES[..., :2]):
        refuse(
            name, r"`lie_derivative` to have the shape \(K, 2, 3\), one row for each generator, but", call, BASE, bad
        )
    empty = "`logits` to have at least one value a sample"
    refuse(name, empty, call, BASE[:, :0], SLOPES[..., :0])
    NORM.of(name, partial(call, BASE, SLOPES), "norm")
    refuse(name, "to have at least 2 classes|at least 2", call, BASE[:, :1], SLOPES[..., :1], activation="softmax")
    give(name, lambda v: close(v, (5 / 3 + 10.25 / 3) / 2), call, BASE, SLOPES)
    give(name, is_nan, call, BASE[:0], SLOPES[:, :0], warns="undefined")
refuse("functional.lie_derivative_error", "`logits` to be finite but got 1", function, spoiled(BASE, NAN), SLOPES)
refuse("functional.lie_derivative_error", "`lie_derivative` to be finite", function, BASE, spoiled(SLOPES, INF))
strict = partial(accumulated, nan_strategy="error")
refuse("LieDerivativeError", "1 of 2 samples held NaN", strict, BASE, spoiled(SLOPES, NAN), error=RuntimeError)
expected = (0.25 + 1 + 9) / 3
left_out = {"warns": "1 of 2 samples held NaN or infinite values"}
give("LieDerivativeError", lambda v: close(v, expected), accumulated, BASE, spoiled(SLOPES, NAN), **left_out)
