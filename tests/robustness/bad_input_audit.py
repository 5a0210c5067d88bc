"""Audits: several groups at once, and what they are to hold."""

from __future__ import annotations

from typing import Any

from bad_input import *
from lightning.pytorch import LightningDataModule


def audited(batches: Any = (X,), actions: Any = None, **options: Any) -> li.Audit:
    settings = {"module": NET, "samples": 0, "progress": False, **options}
    return li.audit(batches=batches, actions=li.C4() if actions is None else actions, **settings)


name = entry(li.audit, "samples", module=NET, batches=[X], actions=li.C4(), progress=False)
NATURAL.of(name, audited, "samples")
refuse_each(name, "`module` to be a torch.nn.Module but got", audited, ["net", None, lambda x: x], "module")
pattern = r"`batches` to hold batches of inputs, or pairs \(x, target\), or to be a LightningDataModule, but got"
refuse_each(name, pattern, audited, [None, 3, "abc"])
refuse(name, r"`batches` to hold batches but got a pair of .* \[\(x, target\)\]", audited, (X, LABELS))
refuse(name, "to have a test_dataloader or a val_dataloader but LightningDataModule", audited, LightningDataModule())
refuse(name, "`batches` to hold at least one sample but got none", audited, [])
pattern = "`actions` to map names to Actions or Flows, .* at least one, but got"
refuse_each(name, pattern, audited, [{}, "C4", [li.C4()], li.C4], "actions")
refuse_each(name, "`actions` to have names that are texts but got", audited, [{3: li.C4()}, {" ": li.C4()}], "actions")
refuse(name, r"`action` to be an Action, such as C4\(\), but got", audited, actions={"a": "C4"})
refuse(name, TRIVIAL, audited, actions={"a": li.Rotations(1)})
refuse(name, SQUARE, audited, [WIDE])
refuse(name, INVERSE, audited, [ALTERNATING], actions={"shifts": WRONG_INVERSE})
refuse_each(name, "`measures` to hold names of measures but got", audited, ["orbit_share", 3], "measures")
refuse(name, r"`measures` to be among .* but got \['cosine'\]", audited, measures=["cosine"])
refuse_each(name, "`conditions` to hold comparisons of measures.* but got", audited, ["accuracy > 0", 3], "conditions")
refuse(name, r"in `conditions` to name measures among .* but got \['x'\]", audited, conditions=["x < 1"])
refuse(name, "in `conditions` to name a group among", audited, conditions=["D4: accuracy < 1"])
refuse_each(name, r"`per_class` to be True .* but got", audited, [0, "cat"], "per_class")
refuse(name, r"`per_class` to name each class once but got \['a'\]", audited, per_class=["a", "a"])
blank = "`actions` to have names without blanks at their ends, and single ones between, but got"
refuse_each(name, blank, audited, [{" a": li.C4()}, {"a\nb": li.C4()}], "actions")
refuse(name, "`target` to be .* but got", audited, target=1.5)
give(name, lambda r: r.passed and list(r.groups) == ["C4"], audited)
