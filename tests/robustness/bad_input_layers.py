"""Layers: `evaluate_layers`, its monitor, its table and figure."""

from __future__ import annotations

from typing import Any

from bad_input import *


def layers_of(batches: Any = (X,), **options: Any) -> Any:
    return li.evaluate_layers(**{"network": NET, "batches": batches, "action": li.C4(), "progress": False, **options})


name = entry(li.evaluate_layers, "layers", network=NET, batches=[X], action=li.C4(), progress=False)
monitor = entry(li.LayerMonitor, "layers", action=li.C4())
refuse(name, TRIVIAL, layers_of, action=li.Rotations(1))
refuse(monitor, TRIVIAL, li.LayerMonitor, li.Rotations(1))
pattern = r"`batches` to hold batches of inputs, or pairs \(x, target\) but got"
refuse_each(name, pattern, layers_of, [None, 3, "abc"])
empty = [[], [X[:0]], [(X[:0], LABELS[:0])]]
refuse_each(name, "`batches` to hold at least one sample but got none", layers_of, empty)
refuse(name, SQUARE, layers_of, [WIDE])
refuse(name, INVERSE, layers_of, [ALTERNATING], action=WRONG_INVERSE)
refuse(name, f"`batches` {ON_META}", layers_of, [X.to("meta")])
refuse(name, "`network` to hold values but got one on the meta", layers_of, network=nn.Linear(4, 3, device="meta"))
refuse(name, "`network` to be a module, or to call one that can be seen, but got", layers_of, network=torch.relu)
refuse(name, "`target` to be .* but got", layers_of, target=1.5)
refuse(name, "input='image' to name a tensor in the network's arguments", layers_of, input="image")
refuse_each(name, "`training` to be one of .* but got", layers_of, [None, "train", 2], "training")
refuse(name, "batches of at least two samples.* with training=True but got 1", layers_of, [X[:1]], training=True)
for each, function in ((name, layers_of), (monitor, lambda **options: li.LayerMonitor(li.C4(), **options))):
    refuse_each(each, "`layers` to hold names of modules, or .* but got", function, [3, "1"], "layers")
    refuse_each(each, "`layer_actions` to map names of layers to actions but got", function, [3, "1"], "layer_actions")
    pattern = "`layer_actions` to be None .* 'same' .*, an Action, or a dict .* but got"
    refuse(each, pattern, function, layer_actions={"1": "turned"})
    pattern = "`layer_actions` to have as many elements as `action`"
    refuse(each, pattern, function, layer_actions={"1": li.D4()})
    refuse_each(each, "`floor` to be a finite number of at least 0 but got", function, [-1, "a", NAN], "floor")
    NATURAL.of(each, function, "max_channels")
refuse(name, r"`layers` to name modules of the network \(such as '0', '1'\) but got \['2'\]", layers_of, layers=["2"])
refuse(name, r"`layers` to name modules of the network .* but got \[\]", layers_of, layers=[])
refuse(name, "`layers` to choose at least one module but it chose none", layers_of, layers=lambda name, module: False)
refuse(name, r"`layer_actions` to name modules of the network but got \['2'\]", layers_of, layer_actions={"2": None})
pattern = r"`layer_actions` to be able to act on the network's output '1', a tensor \(2, 3\) .*but C4\(\) is not"
refuse(name, pattern, layers_of, layer_actions={"1": li.C4()})
for spoilt in SPOILT:
    give(name, lambda r: is_nan(r.rows[-1].error.value) and "not finite" in r.rows[-1].note, layers_of, [spoilt])
give(name, lambda r: is_nan(r.rows[0].error.value) and "a single sample" in r.rows[0].note, layers_of, [X[:1]])
holds = lambda r: r.samples == 2 and len(r.rows) == 2  # noqa: E731
give(name, holds, layers_of, [X[:0], X])
give(name, holds, layers_of, [INTEGERS], network=lambda x, net=NET: net(x.float()))
give(name, lambda r: r.breaks_at is None, layers_of, floor=1.0)

for name, function in (("report.layer_table", report.layer_table), ("report.plot_layers", report.plot_layers)):
    entry(function)
    pattern = "`results` to map models to LayerResults, at least one, but got"
    refuse_each(name, pattern, function, [{}, None, [3]])
    refuse(name, r"`results` to hold LayerResults but \['DA'\] have others", function, {"DA": 3})
