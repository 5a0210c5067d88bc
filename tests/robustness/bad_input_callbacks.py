"""Callbacks, when they are made and in a step."""

from __future__ import annotations

from functools import partial

import numpy as np
from bad_input import *
from helpers import fit
from oracles import Noting, mlp
from torch.utils.data import DataLoader, TensorDataset

CALLBACKS = ("InvarianceMonitor", "InvarianceRegularizer", "InvariantWeights", "OrbitAugmentation")
C4 = {"action": li.C4()}

for name in CALLBACKS:
    make = getattr(li, name)
    entry(make, **C4)
    refuse(name, r"`action` to be an Action, such as C4\(\), but got None", make, None)
    refuse(name, TRIVIAL, make, li.Rotations(1))
    refuse_each(name, "`input` to name distinct tensors, at least one, but got", make, [[], ["x", "x"]], "input", **C4)
    refuse(name, "`each of input` to be a position, a key or None but got", make, input=[1.5], **C4)

name, make = "InvarianceMonitor", li.InvarianceMonitor
refuse_each(
    name,
    "`log_figures` to be an integer of at least 1 but got",
    make,
    [0, -1, 2.0, "yes", None],
    "log_figures",
    action=li.C4(),
)
wrong = [["exactness"], [], "orbit_share", [[]], {"a": 1}]
refuse_each(name, "`measures` to (be among|name at least one|hold torchmetrics)", make, wrong, "measures", **C4)
PLACE.of(name, make, "target", **C4)
pattern = r"`saliency_samples` to be at least 1 for \['saliency_invariance_similarity'\]"
refuse(name, pattern, make, measures=["saliency_invariance_similarity"], saliency_samples=0, **C4)

name, make = "InvarianceRegularizer", partial(li.InvarianceRegularizer, li.C4())
weights = [-1, NAN, INF, "1", None, True, [1.0]]
refuse_each(name, "`weight` to be a finite number of at least 0 but got", make, weights)
for value in (np.float32(2), np.int64(2), 2):
    give(name, lambda r: r.weight == 2, make, value)
refuse(name, "`penalty` to be one of .* but got None", make, 1.0, None)
refuse(
    name,
    r"`elements_per_step` to be at most 3, the elements of C4\(\) without .* but got 4",
    make,
    1.0,
    elements_per_step=4,
)
pattern = "`elements_per_step` to be None with penalty='jensen_shannon', .* but got 2"
refuse(name, pattern, make, 1.0, "jensen_shannon", 2)

name, make = "InvariantWeights", partial(li.InvariantWeights, li.C4())
refuse_each(name, r"`mode` to be one of \['project', 'merge'\] but got", make, ["Project", None, 1], "mode")
refuse_each(
    name, "`strength` to be a finite number of at least 0.0 but got", make, [-0.1, NAN, INF, "1", True], "strength"
)
refuse(name, "`strength` to be at most 1 but got 1.5", make, strength=1.5)
refuse(name, "`action` to be a finite group but SO3.* lists draws from a larger one", li.InvariantWeights, li.SO3(2))
refuse_each(name, "`tolerance` to be a finite number above 0.0 but got", make, [0, -1, NAN, None, "0"], "tolerance")
refuse(name, "`logits` to be a function of the network's output or None but got 3", make, logits=3)
refuse(name, "`network` to be the name of a submodule or None but got 3", make, network=3)
refuse(name, "`prefix` to be a name without slashes at its ends, or None, but got 'a/'", make, prefix="a/")

others = li.LinearAction(torch.eye(2).repeat(3, 1, 1))
for name, argument in (
    ("InvarianceMonitor", "output_action"),
    ("InvarianceRegularizer", "output_action"),
    ("OrbitAugmentation", "target_action"),
):
    make = getattr(li, name)
    refuse(name, f"`{argument}` to have as many elements as `action`", make, **C4, **{argument: others})
    refuse(name, f"`{argument}` to have the elements of `action`", make, **C4, **{argument: li.CyclicTranslations(4)})
    refuse(name, f"`{argument}` to map names of outputs to actions", make, **C4, **{argument: {}})
    refuse(name, f"`{argument}` to draw its elements anew", make, li.SO3(2), **{argument: others})
refuse(
    "InvarianceRegularizer",
    "`output_action` to be None with penalty='saliency'",
    li.InvarianceRegularizer,
    **C4,
    penalty="saliency",
    output_action="same",
)
refuse("OrbitAugmentation", "`target_action` to say how the target moves", li.OrbitAugmentation, **C4, target=1)
refuse(
    "OrbitAugmentation", "`ignore_index` to be an integer or None but got", li.OrbitAugmentation, **C4, ignore_index=1.5
)

name = "Penalty"
refuse(name, "`function` to be a function of what the penalty reads but got 3", li.Penalty, 3)
refuse(name, "`reads` to be one of .* but got", li.Penalty, torch.dist, ("logits", "maps"))
give(name, lambda penalty: penalty.of(li.OrbitOutputs(BASE, ORBIT[0])) > 0, li.Penalty, torch.dist)

ramp = {"start": 0.5, "end": 1, "steps": 3}
name = entry(li.WeightRamp, **ramp)
for argument in ("start", "end"):
    rest = {key: value for key, value in ramp.items() if key != argument}
    numbers, others = [-1, NAN, INF], ["1", None, True, 1j]
    refuse_each(name, f"`{argument}` to be at least 0 and finite but got", li.WeightRamp, numbers, argument, **rest)
    refuse_each(name, f"`{argument}` to be a number but got", li.WeightRamp, others, argument, **rest)
    pattern = f"`{argument}` to be above 0 for an exponential ramp .* but got 0"
    refuse(name, pattern, li.WeightRamp, **{**ramp, argument: 0}, shape="exponential")

refuse(entry(li.SensitivityMonitor), TRIVIAL, li.SensitivityMonitor, li.Rotations(1))

search = li.search_weight
name = entry(search, train=lambda weight: 1.0)
refuse(name, "`train` to be a function from a weight to a score but got 3", search, 3)
refuse(name, "`train` to return a number but got 'high'", search, lambda weight: "high")
for option, values in (("target", (NAN, "1")), ("start", (0, -1.0, INF)), ("factor", (1.0, NAN))):
    refuse_each(name, f"`{option}` to be a finite number", search, values, option, train=lambda weight: 1.0)
give(name, lambda s: not s.reached and len(s.trials) == 2, search, lambda weight: NAN, max_trials=2)


# In a step -------------------------------------------------------------------------------------------------------


def trained(
    make: Callable[..., Any],
    *args: Any,
    x: Tensor = X,
    y: Tensor = LABELS,
    inside: Callable[[], nn.Module] = mlp,
    **options: Any,
) -> float:
    """One step of training, or of validation where the callback takes part in that; the loss."""
    batches = DataLoader(TensorDataset(x, y), batch_size=len(x))
    once = {"val": batches, "max_steps": 1, "num_sanity_val_steps": 0}
    module: Any = fit(lambda: Noting(inside), [make(*args, **options)], data=batches, **once)
    return module.losses[0]


def through_floats() -> nn.Module:
    return nn.Sequential(Call(Tensor.float), mlp())


def above_0(loss: float) -> bool:
    return loss > 0


FLOATS = "expected the input to be floating point, to have a gradient, "
for name in (*CALLBACKS, "SensitivityMonitor"):
    make = getattr(li, name)
    refuse(name, SQUARE, trained, make, li.C4(), x=WIDE, inside=lambda: network(pixels=24))
    refuse(name, "expected input='image' to name a tensor in", trained, make, li.C4(), input="image")
    if name == "OrbitAugmentation":  # it goes one way only
        give(name, above_0, trained, make, WRONG_INVERSE, x=ALTERNATING)
    else:
        refuse(name, INVERSE, trained, make, WRONG_INVERSE, x=ALTERNATING)
        pattern = f"{name}: expected `network` to name a submodule of Noting .* but got 'head'"
        refuse(name, pattern, trained, make, li.C4(), network="head")
    give(name, above_0, trained, make, li.C4(), x=X[:1], y=LABELS[:1], warns="")
    if name == "SensitivityMonitor":
        refuse(name, f"{FLOATS[:-2]}", trained, make, x=INTEGERS, inside=through_floats)
    else:
        give(name, above_0, trained, make, li.C4(), x=INTEGERS, inside=through_floats)
name, make = "InvarianceRegularizer", partial(li.InvarianceRegularizer, li.C4())
refuse(name, f"{FLOATS}not torch.int64", trained, make, penalty="saliency", x=INTEGERS, inside=through_floats)
for weight in (-1.0, NAN, "1", None):
    pattern = "expected `weight` to be a finite number of at least 0 but got"
    refuse(name, pattern, trained, make, lambda step, weight=weight: weight)
give(name, above_0, trained, make, lambda step: torch.tensor(0.5))
for penalty in (lambda f, fg: f.sum(1), lambda f, fg: 1.0, lambda f, fg: None):
    refuse(name, "expected `penalty` to give a scalar tensor but got", trained, make, 1.0, penalty)
for penalty in ("distribution", "jensen_shannon"):
    pattern = r"`logits` to have the shape \(B, C\), .* with C of at least 2 but got \(2, 1\)"
    single = {"y": LABELS * 0, "inside": lambda: network(1)}
    refuse(name, pattern, trained, make, 1.0, penalty, **single)
pattern = "expected target=3 to name 2 integer labels in the batch but got NoneType"
refuse("InvarianceMonitor", pattern, trained, li.InvarianceMonitor, li.C4(), target=3)
