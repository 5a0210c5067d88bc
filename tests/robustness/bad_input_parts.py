"""Parts of a measurement: of the loss, of classes, of samples."""

from __future__ import annotations

from typing import Any

import torchmetrics
from bad_input import *
from bad_input_evaluation import evaluated

# The loss share --------------------------------------------------------------------------------------------------

share = functional.loss_share
entry(share, logits=BASE, orbit_logits=ORBIT, target=LABELS)


def of_metric(*inputs: Any, **options: Any) -> Tensor:
    valid = {"valid": options.pop("valid")} if "valid" in options else {}
    metric = li.LossShare(**options)
    metric.update(*inputs, **valid)
    return metric.compute()


SHARES = torch.softmax(BASE, dim=1)
entry(li.LossShare)
for name, call in (("functional.loss_share", share), ("LossShare", of_metric)):
    refuse(name, "`loss` to be one of .* but got 'hinge'", call, BASE, ORBIT, LABELS, loss="hinge")
    refuse(name, "`target` to be a tensor but got", call, BASE, ORBIT, [0, 1])
    refuse(name, r"`orbit_logits` to have the shape \(\|G\| - 1, 2, 3\)", call, BASE, ORBIT[:, :1], LABELS)
    refuse(name, "`target` to hold 2 class indices, one a sample", call, BASE, ORBIT, torch.tensor([0, 1, 1]))
    refuse(name, r"`target` to have the shape \(2, 3\) of `logits`", call, BASE, ORBIT, BASE[:, :2])
    refuse(name, "`loss` to be named for a target whose rows add up to 1", call, BASE, ORBIT, SHARES)
    refuse(name, "`loss` to be named for such a target", call, BASE, ORBIT, LABELS > 0)
    refuse(name, "this is a measure of classes", call, BASE[:, 0], ORBIT[..., 0], LABELS)
    refuse(name, "`loss` to give one value for each of 2", call, BASE, ORBIT, VALUES := BASE + 1, loss=torch.sub)
    whole = torch.ones(2, 1, 1, dtype=torch.bool)
    function = lambda outputs, target: (outputs - target).abs().sum(dim=1)  # noqa: E731
    refuse(name, "some places of the outputs are not valid", call, BASE, ORBIT, VALUES, loss=function, valid=whole)
    give(name, lambda value: close(value, 0.0), call, BASE, BASE[None], LABELS)
    give(name, is_nan, call, BASE, BASE[None], BASE, warns="the loss is 0")
    give(name, lambda value: 0 < value < 100, call, BASE, ORBIT, SHARES, loss="cross_entropy")
    # A label that is no class is left out, here with the only sample that moves.
    ignored = BASE, torch.stack([BASE[0] + ORBIT[0, 0], BASE[1]])[None], torch.tensor([-100, 1])
    give(name, lambda value: close(value, 0.0), call, *ignored, warns="undefined for 1 of 2")
refuse("functional.loss_share", "`logits` to be finite", share, spoiled(BASE, NAN), ORBIT, LABELS)
refuse("functional.loss_share", "`target` to be finite", share, BASE, ORBIT, spoiled(VALUES, INF))
give("LossShare", lambda value: value >= 0, of_metric, spoiled(BASE, NAN), ORBIT, LABELS, warns="NaN or infinite")

# Values by class -------------------------------------------------------------------------------------------------


def by_class(*inputs: Any, metric: Any = None, num_classes: int | None = None, **given: Any) -> Tensor:
    measure = li.PerClass(li.LogitInvarianceError() if metric is None else metric, num_classes)
    measure.update(*inputs, **given)
    return measure.compute()


name = entry(li.PerClass, metric=li.LogitInvarianceError())
refuse_each(name, "`metric` to be a torchmetrics metric", li.PerClass, ["mean", li.LogitInvarianceError, None])
refuse(name, "`metric` to be a torchmetrics metric", li.PerClass, li.PerClass(li.OrbitShare()))
refuse(name, "reduction 'mean' or 'element' but got 'none'", li.PerClass, li.OrbitShare(reduction="none"))
refuse_each(name, "`dims` to map names", li.PerClass, [{"x": 2}, ["x"]], "dims", metric=li.LogitInvarianceError())
for target, pattern in TARGETS:
    refuse(name, pattern, by_class, BASE, ORBIT, target=target)
refuse(name, "`target` to hold 2 class indices, one a sample, but got NoneType", by_class, BASE, ORBIT)
refuse(name, "`num_classes` to be given", by_class, BASE[:, 0], ORBIT[..., 0], target=LABELS)
collected = torchmetrics.MetricCollection([torchmetrics.MeanMetric()])
refuse(name, "`metric` to be a torchmetrics metric", li.PerClass, collected)
missing = "NaN where there are no samples: of the classes"
give(
    name, lambda value: is_nan(value[1]) and value[::2].isfinite().all(), by_class, BASE, ORBIT, target=LABELS, warns=""
)
give(name, is_nan, by_class, BASE[:0], ORBIT[:, :0], target=LABELS[:0], warns="")
give(name, of_shape(4), by_class, BASE, ORBIT, target=LABELS, num_classes=4, warns="")

name = "evaluate_invariance"
options = [0, -1, [], "cat", [1, 2], 1.5, None]
refuse_each(name, "`per_class` to be True .*, False, the number", evaluated, options, "per_class")
refuse(name, r"`per_class` to name each class once but got \['a'\]", evaluated, per_class=["a", "a"])
refuse(name, "one label a sample for per_class=True but there are none", evaluated, per_class=True)
energies = {"network": lambda x: x.mean(dim=(1, 2, 3)), "batches": [(X, LABELS)], "per_class": True}
refuse(name, "`per_class` to be the number of classes, or their names", evaluated, **energies)

# Samples that are kept -------------------------------------------------------------------------------------------

refuse(name, r"`keep` to be one of \[None, 'worst'\] but got 'best'", evaluated, keep="best")
COUNT.of(name, evaluated, "n")
heads = {"network": lambda x: {"a": x.mean((1, 2, 3))}, "output_action": {"a": None}}
refuse(name, "`keep` to be None with several outputs", evaluated, keep="worst", **heads)
give(name, lambda found: len(found.kept) == 1, evaluated, [SPOILT[0]], keep="worst", warns="")

# Reports ---------------------------------------------------------------------------------------------------------

ERROR = ["logit_invariance_error"]
plain = evaluated(measures=ERROR)
measured = evaluated([(X, torch.tensor([0, 1]))], measures=ERROR, per_class=["a", "b"], keep="worst")
for function in (report.per_class_table, report.plot_per_class):
    name = entry(function)
    refuse_each(name, "`results` to have values by class", function, [plain, 3, {}])
    give(name, lambda result: "LI" in str(result) or result.axes, function, measured)
name = entry(report.plot_worst, kept=measured.kept)
COUNT.of(name, report.plot_worst, "n", kept=measured.kept)
refuse_each(name, "`kept` to hold samples, as keep='worst' gives them", report.plot_worst, [None, measured])
vectors = li.evaluate_invariance(
    nn.Linear(4, 3), [torch.ones(2, 4)], li.TimeReversal(), measures=ERROR, keep="worst", progress=False
)
refuse(name, r"`kept` to hold images \(C, H, W\) but got shape \(4,\)", report.plot_worst, vectors.kept)
give(name, lambda figure: len(figure.axes) == 6, report.plot_worst, measured.kept, n=1)

# The setup -------------------------------------------------------------------------------------------------------


def checked(batches: Any = (X,), **options: Any) -> li.SetupReport:
    return li.check_setup(**{"network": NET, "batches": batches, "action": li.C4(), **options})


name = entry(li.check_setup, network=NET, batches=[X], action=li.C4())
refuse_each(name, "`target` to be .* but got", checked, [1.5, ["y"]], "target")
refuse(name, TRIVIAL, checked, action=li.Rotations(1))
refuse_each(name, r"`batches` to hold batches of inputs, or pairs \(x, target\) but got", checked, [None, 3, "abc"])
refuse_each(name, "check_setup: expected `batches` to hold at least one sample but got none", checked, [[], [X[:0]]])
refuse(name, SQUARE, checked, [WIDE])
refuse(name, INVERSE, checked, [ALTERNATING], action=WRONG_INVERSE)
refuse(name, "several tensors could be meant", checked, [{"a": X, "b": X}])
refuse(name, "input='image' to name a tensor", checked, input="image")
refuse(name, "one row of logits for each of 2 samples but got", checked, network=lambda x: x.mean())
refuse(name, "`network` to hold values but got one on the meta", checked, network=nn.Linear(4, 3, device="meta"))
give(name, lambda report: report.samples == 1, checked, samples=1)
give(name, lambda report: report["constant_output"].severity == "problem", checked, network=lambda x: 0 * x[:, 0, 0])
