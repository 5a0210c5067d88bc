"""Evaluation without a trainer, and comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
from bad_input import *
from lightning.pytorch import LightningDataModule, LightningModule
from oracles import Classifier
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric


def evaluated(batches: Any = (X,), **options: Any) -> dict[str, li.Estimate]:
    settings = {"network": NET, "action": li.C4(), "saliency": li.Gradient(), "progress": False, **options}
    return li.evaluate_invariance(batches=batches, **settings)


def error_of(x: Tensor) -> Tensor:
    outputs = li.evaluate_orbit(NET, x, li.C4())
    return functional.logit_invariance_error(outputs.logits.detach(), outputs.orbit_logits.detach())


name = entry(li.evaluate_invariance, network=NET, batches=[X], action=li.C4(), progress=False)
refuse_each(name, "`target` to be .* but got", evaluated, [1.5, ["y"]], "target")
refuse(name, TRIVIAL, evaluated, action=li.Rotations(1))
pattern = r"`batches` to hold batches of inputs, or pairs \(x, target\) but got"
refuse_each(name, pattern, evaluated, [None, 3, "abc"])
wrong = [[batch] for batch in (np.ones((2, 1, 4, 4), "f"), (X, X, X), (3, X), "a", None)]
refuse_each(name, r"`batches` to give tensors x, pairs \(x, target\), or .* but got", evaluated, wrong)
refuse(name, r"several tensors could be meant \(the batch\['a'\] .*`input=`", evaluated, [{"a": X, "b": X}])
refuse(name, "there is no tensor in lists, tuples .*`input=`", evaluated, [{"label": LABELS}])
refuse(name, "but the batch holds a list of samples", evaluated, [[{"x": X[0]}, {"x": X[1]}]])
wrong = [[], ["x", "x"], ["x", None]]
refuse_each(name, "`input` to name distinct tensors, at least one, but got", evaluated, wrong, "input")
refuse(name, "input='image' to name a tensor in the network's arguments", evaluated, input="image")
refuse(name, "target='cls' to name 2 integer labels in the batch but got", evaluated, target="cls")
refuse(name, "one row of logits for each of 2 samples but got", evaluated, logits=lambda out: out[:1])
refuse(name, "one row of logits for each of 2 samples but got", evaluated, network=lambda x: x.mean())
refuse(name, "`logits` to give a tensor but got int", evaluated, logits=lambda out: 1)
of_maps = ["saliency_invariance_similarity"]
pattern = r"`saliency_samples` to be at least 1 for \['saliency_invariance_similarity'\]"
refuse(name, pattern, evaluated, measures=of_maps, saliency_samples=0)
empty = [[], [X[:0]], [(X[:0], LABELS[:0])]]
refuse_each(name, "`batches` to hold at least one sample but got none", evaluated, empty)
refuse(name, SQUARE, evaluated, [WIDE])
refuse(name, INVERSE, evaluated, [ALTERNATING], action=WRONG_INVERSE)
refuse(name, "`network` to hold values but got one on the meta", evaluated, network=nn.Linear(4, 3, device="meta"))
refuse(name, f"`batches` {ON_META}", evaluated, [X.to("meta")], network=lambda x: x)
error = "logit_invariance_error"
give(name, lambda r: close(r[error].value, error_of(X)), evaluated, [X[:0], X], measures=[error])
give(name, lambda r: is_nan(r[error].standard_error), evaluated, [X[:1]], measures=[error])
for spoilt in SPOILT:
    left_out = {"warns": "1 of 2 samples held NaN or infinite"}
    give(name, lambda r: close(r[error].value, error_of(X[1:])), evaluated, [spoilt], measures=[error], **left_out)
    left_out |= {"measures": of_maps, "saliency": li.PaperSaliency(2)}
    give(name, lambda r: r[of_maps[0]].value.isfinite(), evaluated, [spoilt], **left_out)
holds = lambda r: "orbit_share" in r and of_maps[0] not in r  # noqa: E731
give(name, holds, evaluated, [INTEGERS], network=lambda x: NET(x.float()))
for measures, pattern in (
    ("orbit_share", "name at least one measure in a list but got 'orbit_share'"),
    (5, "name at least one measure in a list but got 5"),
    ([], r"name at least one measure in a list but got \[\]"),
    ({}, "name at least one measure in a list but got {}"),
    (["exactness"], r"be among .* but got \['exactness'\]"),
    ([["orbit_share"]], r"be among .* but got \[\['orbit_share'\]\]"),
    ([None], r"be among .* but got \[None\]"),
    ({"mine": 3}, r"hold torchmetrics metrics but \['mine'\] are none"),
):
    refuse(name, f"`measures` to {pattern}", evaluated, measures=measures)
mine = {"mine": MeanMetric()}
refuse(name, "update of 'mine' to name inputs among .* but got .*'value'", evaluated, measures=mine)
give(name, lambda r: list(r) == ["orbit_share"], lambda: evaluated(measures=(each for each in ["orbit_share"])))
labelled = ["orbit_accuracy"]
for target, _ in TARGETS[1:]:
    pattern = r"expected labels for \['orbit_accuracy'\] but found none: the batch\[1\] is a tensor"
    refuse(name, pattern, evaluated, [(X, target)], measures=labelled)
    give(name, lambda r: "orbit_accuracy" not in r and "orbit_share" in r, evaluated, [(X, target)])
for target, _ in NO_CLASSES:
    holds = lambda r: 0.0 <= float(r["orbit_accuracy"].value) <= 1.0  # noqa: E731
    give(name, holds, evaluated, [(X, target)], measures=labelled)
refuse(name, f"`batches` {ON_META}", evaluated, [(X, LABELS.to("meta"))], measures=labelled)
pattern = r"expected labels for \['orbit_accuracy'\] but found none: .* Say with `target=`"
refuse(name, pattern, evaluated, [X], measures=labelled)
OF_CLASSES = {"distribution_invariance_error", "jensen_shannon_invariance_error", "prediction_consistency"}
for flat in (False, True):  # a regression
    single = {"network": Call(lambda x, flat=flat: x.flatten(1).sum(1, keepdim=not flat)), "batches": [(X, LABELS)]}
    for measure in (*sorted(OF_CLASSES), "orbit_accuracy", "worst_case_orbit_accuracy"):
        pattern = "measure of classes, and the network gives one output a sample"
        refuse(name, pattern, evaluated, measures=[measure], **single)
    holds = lambda r: {"orbit_share", "relative_logit_invariance_error"} <= r.keys() - OF_CLASSES == r.keys()  # noqa: E731
    give(name, holds, evaluated, **single)


# Comparisons -----------------------------------------------------------------------------------------------------


class Loaders(LightningDataModule):
    """Images to train and test on."""

    def __init__(self, x: Tensor = X, samples: int = 2) -> None:
        super().__init__()
        self.data = TensorDataset(x[:samples], LABELS[:samples])

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=2)

    test_dataloader = train_dataloader


class Untested(LightningModule):
    pass


def compared(models: Any = None, **options: Any) -> li.Comparison:
    settings = {"datamodule": Loaders(), "action": li.C4(), "saliency": li.Gradient(), "rounds": 0}
    settings |= {"progress": False, "accelerator": "cpu", **options}
    return li.compare({"net": Classifier()} if models is None else models, **settings)


net = {"net": Classifier()}
name = entry(li.compare, models=net, datamodule=Loaders(), action=li.C4(), rounds=0, progress=False, accelerator="cpu")
models = [{}, [Classifier], {"net": NET}, 3]
refuse_each(name, "`models` to map names to LightningModules, at least one, but got", compared, models)
pattern = "`datamodule` to be a LightningDataModule but got .*: Lightning.*from_"
refuse_each(name, pattern, compared, [[X], "data", TensorDataset(X)], "datamodule")
refuse(name, r"'net', a Untested, lacks \['test_step'\]", compared, {"net": Untested()})
refuse(name, TRIVIAL, compared, action=li.Rotations(1))
wrong = [[], {"net": 3}, {"net": [3]}, {"net": li.OrbitAugmentation(li.C4())}]
refuse_each(name, "`callbacks` to map names of models to lists of Callbacks but got", compared, wrong, "callbacks")
pattern = r"`callbacks` to name models among \['net'\] but got \['other'\]"
refuse(name, pattern, compared, callbacks={"other": []})
for option in ("logger", "max_epochs"):
    refuse(name, rf"options to leave \['{option}'\] to `compare`", compared, **{option: None})
refuse(name, "unexpected keyword argument 'speed'", compared, speed="high", error=TypeError)
refuse(name, "expected `network` to name a submodule of Classifier", compared, network="head")
refuse(name, "expected input='image' to name a tensor in", compared, input="image")
refuse(name, SQUARE, compared, {"net": Classifier(lambda: network(pixels=24))}, datamodule=Loaders(WIDE))
refuse(name, "`datamodule` to give batches to test on but got none", compared, limit_test_batches=0)
give(name, lambda c: "accuracy" in c.to_markdown(), compared, datamodule=Loaders(samples=1), warns="")
empty = li.Comparison({})
refuse("Comparison", "`times` to be one of .* but got 'seconds'", empty.ratios, "seconds")
refuse("Comparison", "`rows` to hold at least one model but got none", empty.to_markdown)
give("Comparison", lambda ratios: ratios == {}, empty.ratios, "inference_seconds")
