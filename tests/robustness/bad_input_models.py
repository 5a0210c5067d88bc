"""Baselines and reports."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from bad_input import *

# Baselines -------------------------------------------------------------------------------------------------------


def pooled(network: Any = NET, **options: Any) -> nn.Module:
    return baselines.OrbitPooled(network, **{"action": li.C4(), **options})


def tied(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    defaults = {"action": li.C4(), "in_shape": (1, 4, 4), "num_classes": 3, "hidden": (5,)}
    return baselines.TiedFirstLayerMLP(**{**defaults, **options})


def steerable(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"group": "C4", "in_channels": 1, "num_classes": 3, "image_size": 4, "width": 2, "depth": 2}
    return baselines.SteerableClassifier(**{**sizes, **options}).eval()


name = entry(baselines.OrbitPooled, network=NET, action=li.C4())
NO_GROUPS = (li.SO3(2), li.SetPermutations(2), li.FunctionAction([NEGATE]))
for action in NO_GROUPS:
    refuse(name, "`action` to list all elements of a group .* but got", pooled, action=action)
refuse(name, r"`x` to be a tensor for C4\(\) but got .(float|int)", pooled(), [1.0])
refuse(name, SQUARE, pooled(), WIDE)
refuse(name, r"`x` to have a batch dimension .* but got shape \(4, 4\)", pooled(), torch.zeros(4, 4))
for inner in (nn.Flatten(0), Call(lambda x: x.mean()), Call(lambda x: (x,))):
    refuse(name, "`network` to give a tensor of 8 rows, one a sample, but got", pooled(inner), X)
give(name, of_shape(2, 16), pooled(Call(lambda x: x.flatten(1).double())), INTEGERS)

# Invariant weights -----------------------------------------------------------------------------------------------

name = entry(li.symmetrize, network=NET, action=li.C4(), example=X)
refuse(name, r"`action` to be an Action, such as C4\(\), but got None", li.symmetrize, NET, None, X)
refuse(name, TRIVIAL, li.symmetrize, NET, li.Rotations(1), X)
refuse(name, SQUARE, li.symmetrize, network(pixels=24), li.C4(), WIDE)
refuse(name, "to find the input in the network's arguments, which holds .*float", li.symmetrize, NET, li.C4(), [[1.0]])
refuse(name, "`output_action` to be None .* but got 3", li.symmetrize, NET, li.C4(), X, output_action=3)
refuse_each(
    name,
    "`tolerance` to be a finite number above 0.0",
    li.symmetrize,
    [0, NAN, "1"],
    "tolerance",
    network=NET,
    action=li.C4(),
    example=X,
)
name = "WeightSymmetry"
symmetry = li.symmetrize(nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 3)), li.C4(), X)
refuse_each(name, "`strength` to be a finite number of at least 0.0 but got", symmetry.merge_, [-1, NAN, "1"])
refuse(name, "`strength` to be at most 1 but got 2", symmetry.merge_, 2)
refuse(name, SQUARE, symmetry.check, WIDE)
give(name, lambda row: row is None, symmetry.check, torch.zeros(2, 1, 4, 4))

name = entry(baselines.TiedFirstLayerMLP, action=li.C4(), in_shape=(1, 4, 4), num_classes=3)
refuse(name, "`action` to list all elements of a group .* but got", tied, action=NO_GROUPS[1], in_shape=(4, 4))
refuse(name, "`action` to be exact, .* but got Rotations", tied, action=li.Rotations(4))
refuse_each(name, "`in_shape` to hold the sizes of one sample but got", tied, [16, "144", None], "in_shape")
sizes = [(1, 4.0, 4.0), (1, -4, -4), (0, 4, 4), ("1", 4, 4)]
refuse_each(name, "`in_shape` to be an integer of at least 1 but got", tied, sizes, "in_shape")
refuse(name, "`x` to have a batch dimension and at least 2 more", tied, in_shape=(16,))
refuse(name, SQUARE, tied, in_shape=(1, 4, 6))
refuse(name, "`hidden` to hold widths of layers but got 8", tied, hidden=8)
pattern = "`hidden` to hold at least the width of the tied layer but got none"
refuse_each(name, pattern, tied, [(), None], "hidden")
refuse_each(name, "`hidden` to be an integer of at least 1 but got", tied, [(4, 0), (4.0,), ("4",)], "hidden")
OF_SHAPE = r"`x` to be floating point of shape \(B, 1, 4, 4\) but got"
refuse(name, r"`x` to be a tensor for C4\(\) but got .(float|int)", tied(), [1.0])
refuse(name, SQUARE, tied(), WIDE)
wrong_sizes = [torch.zeros(shape) for shape in ((2, 1, 6, 6), (2, 2, 4, 4), (2, 16, 1, 1))]
refuse_each(name, OF_SHAPE, tied(), [*wrong_sizes, INTEGERS])

sizes = {"in_channels": 1, "num_classes": 3, "image_size": 4}
name = entry(baselines.SteerableClassifier, group="C4", **sizes)
refuse_each(name, "`group` to be one of .* but got", steerable, ["C3", "c4", 4, None, li.C4()], "group")
found = baselines.action_of
name = entry(found, space=None)
refuse(name, "`samples` to be an integer of at least 1 but got None", found, None, samples=None)
refuse(name, "`seed` to be an integer of at most 64 bits but got None", found, None, seed=None)
models = {"OrbitPooled": pooled, "TiedFirstLayerMLP": tied}
if find_spec("escnn") is not None:
    spaces = ["C4", None, li.C4(), 4]
    refuse_each(name, "`space` to be a gspace of the plane, .* but got", found, spaces)
    wrong = [[1.0], WIDE, X[0], torch.zeros(2, 2, 4, 4), INTEGERS]
    refuse_each("baselines.SteerableClassifier", OF_SHAPE, steerable(), wrong)
    models["SteerableClassifier"] = steerable
for model, make in models.items():
    for x in (X[:0], X[:1]):
        give(f"baselines.{model}", of_shape(len(x), 3), make(), x)
    for spoilt in SPOILT:
        give(f"baselines.{model}", alone, make(), spoilt)


# Reports ---------------------------------------------------------------------------------------------------------


def of_one(cell: Any) -> str:
    return report.markdown_table({"a": {"LI": cell}})


name, table = "report.markdown_table", report.markdown_table
refuse_each(name, "`rows` to hold at least one model but got none", table, [{}, None])
rows = [[1], {"a": 3}, {"a": [("LI", 1.0)]}, "rows"]
refuse_each(name, "`rows` to map each model to a mapping of its measures but got", table, rows)
cells = ["high", [1.0], torch.ones(2), li.Estimate(torch.ones(3), torch.ones(3)), li.Estimate("a", 0.1), True]
refuse_each(name, "`rows` to hold numbers or Estimates of one value .* for 'LI'", of_one, cells)
for cell, shown in ((NAN, "–"), (-INF, "-∞"), (None, "–"), (np.float32(2), "2.00")):
    give(name, lambda text, shown=shown: text.splitlines()[2] == f"| a | {shown} |", of_one, cell)
give(name, lambda text: text.splitlines()[::2] == ["| 4 | 2 |", "| 1 | 3 |"], table, {1: {2: 3}}, corner=4)
give(name, lambda text: text.splitlines()[2] == "| a |", table, {"a": {}})


def bars(panels: Any, **options: Any) -> Any:
    return report.plot_bars(panels, **options)


def curves(panels: Any, x: Any = (1, 2), **options: Any) -> Any:
    return report.plot_curves(panels, x, "epoch", **options)


for name, draw, good, models_of, bad, one in (
    ("report.plot_bars", bars, 1.0, "values", ["high", None, [1.0], torch.ones(2), True], "a number or an Estimate .*"),
    ("report.plot_curves", curves, [1.0, 2.0], "curves", [1.0, "ab", [1.0, "b"], [None, 1.0]], "a sequence of numbers"),
):
    refuse_each(name, "`panels` to hold at least one measure but got none", draw, [{}, None])
    panels = [{"LI": {}}, {"LI": [good]}, [1], "LI"]
    refuse_each(name, f"`panels` to map each measure to a mapping of models' {models_of} but got", draw, panels)
    refuse_each(name, f"LI of a to be {one} but got", draw, [{"LI": {"a": wrong}} for wrong in bad])
    refuse(name, "`log` to hold names of measures but got 'LI'", draw, {"LI": {"a": good}}, log="LI")
    refuse(name, r"`log` to name measures among \['LI'\] but got \['DI'\]", draw, {"LI": {"a": good}}, log=["DI"])
    for value in (NAN, INF):
        if draw is bars:
            panels, holds = {"a": value, "b": 2.0}, lambda f: [bar.get_width() for bar in f.axes[0].patches] == [2.0]
        else:
            panels, holds = {"a": [value, 2.0]}, lambda f: f.axes[0].lines[0].get_ydata()[1] == 2.0
        give(name, holds, draw, {"LI": panels}, log=["LI"])
refuse(name, "LI of a to have 2 values but got 1", curves, {"LI": {"a": [1.0]}})
refuse(name, "`x` to hold the abscissa's values but got 1", curves, {"LI": {"a": [1.0]}}, 1)


def drawn(networks: Any = None, x: Any = X[0], **options: Any) -> Any:
    settings = {"action": li.C4(), "saliency": li.Gradient(), **options}
    return report.plot_saliency_orbit({"net": NET} if networks is None else networks, x, **settings)


name = entry(report.plot_saliency_orbit, networks={"net": NET}, x=X[0], action=li.C4())
NATURAL.of(name, drawn, "target")
refuse(name, TRIVIAL, drawn, action=li.Rotations(1))
refuse_each(name, "`networks` to map names to networks, at least one, but got", drawn, [{}, NET, [NET]])
refuse(name, "`network` to be a module or a function but got 'net'", drawn, {"net": "net"})
refuse(name, "`x` to be a tensor but got .(float|int)", drawn, x=[1.0])
refuse(name, r"`x` to be one image \(C, H, W\) but got shape \(2, 1, 4, 4\)", drawn, x=X)
refuse(name, f"`x` {ON_META}", drawn, x=X[0].to("meta"))
refuse(name, SQUARE, drawn, x=WIDE[0])


def through_floats(x: Tensor) -> Tensor:
    return NET(x.float())


refuse(name, "`x` to be floating point", drawn, {"net": through_floats}, INTEGERS[0])
refuse(name, "`target` to hold classes from 0 to 2 but got values from 3 to 3", drawn, target=3)
