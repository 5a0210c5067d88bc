"""Running over an orbit, saliency maps and sensitivity."""

from __future__ import annotations

from bad_input import *

WAYS: dict[str, li.Saliency] = {
    "Gradient": li.Gradient(),
    "InputXGradient": li.InputXGradient(),
    "IntegratedGradients": li.IntegratedGradients(steps=2),
    "PaperSaliency": li.PaperSaliency(steps=2),
}


def orbit_of(x: Any = X, **options: Any) -> li.OrbitOutputs:
    return li.evaluate_orbit(**{"network": NET, "x": x, "action": li.C4(), **options})


def through_floats(x: Tensor) -> Tensor:
    return NET(x.float())


name = entry(li.evaluate_orbit, but="elements", network=NET, x=X, action=li.C4())
refuse(name, r"`x` to be a tensor for C4\(\) but got .(float|int)", orbit_of, [1.0])
refuse(name, TRIVIAL, orbit_of, action=li.Rotations(1))
pattern = r"`elements` to name at least one element from 1 to 3 of C4\(\) .* but got"
refuse_each(name, pattern, orbit_of, [["a"], [1.7], [True], [None], [], [-1], [1, 4], [0, 1]], "elements")
refuse_each(name, "`elements` to hold indices of elements but got", orbit_of, [2, "12"], "elements")
give(name, lambda o: o.orbit_logits.shape == (2, 2, 3), orbit_of, elements=torch.tensor([3, 1]))
for logits, pattern in (
    ([1.0, 2.0], "be a tensor but got .(float|int)"),
    (torch.ones(3, 3), "have 2 rows, one a sample, but got 3"),
    (torch.tensor(1.0), "have 2 rows, one a sample, but got a scalar"),
    (torch.ones(2, 4), r"have the shape \(2, 3\) of the network's outputs but got \(2, 4\)"),
    (torch.ones(2, 3, device="meta"), "hold values but got a tensor on the meta device"),
):
    refuse(name, f"`base_logits` to {pattern}", orbit_of, base_logits=logits)
for logits, pattern in (
    (torch.ones(2), r"\(2, 3\) of the network's outputs but got \(2,\)"),
    (torch.ones(2, 3, 4), r"\(2, classes\) or \(2,\) for saliency but got \(2, 3, 4\)"),
):
    pattern = f"`base_logits` to have the shape {pattern}"
    refuse(name, pattern, orbit_of, base_logits=logits, saliency=li.Gradient())
for target, pattern in some_targets():
    refuse(name, pattern, orbit_of, target=target, saliency=li.Gradient())
expected = orbit_of(target=torch.tensor([0, 1]), saliency=li.Gradient()).saliency
for dtype in (torch.uint8, torch.int32, torch.bool):
    target = torch.tensor([0, 1]).to(dtype)
    give(name, lambda o: torch.equal(o.saliency, expected), orbit_of, target=target, saliency=li.Gradient())
refuse(name, "`saliency` to have a method `attribute`", orbit_of, saliency=dict)
maps = [lambda n, x, t: x[:1], lambda n, x, t: x.sum(), lambda n, x, t: None]
refuse_each(name, "`saliency` to give 2 maps, one a sample, but got", orbit_of, maps, "saliency")
NO_ROWS = [lambda x: x.mean(), lambda x: x[:1], lambda x: (x,)]
refuse_each(name, "`network` to give a tensor of 8 rows, one a sample, but got", orbit_of, NO_ROWS, "network")
refuse(name, SQUARE, orbit_of, WIDE)
for x in (X[:0], X[:1]):
    give(name, lambda o, x=x: o.orbit_logits.shape == (3, len(x), 3), orbit_of, x)
give(name, lambda o: is_nan(o.orbit_logits), orbit_of, X * NAN)
give(name, lambda o: not bool(o.logits.isfinite().any()), orbit_of, X * INF)
give(name, lambda o: o.orbit_logits.shape == (3, 2, 3), orbit_of, INTEGERS, network=through_floats)
for way in WAYS.values():
    pattern = "`x` to be floating point, to have a gradient, but got torch.int64"
    refuse(name, pattern, orbit_of, INTEGERS, network=through_floats, saliency=way)
    give(name, lambda o: o.orbit_saliency.shape == (3, 0, 1, 4, 4), orbit_of, X[:0], saliency=way)


# Saliency maps ---------------------------------------------------------------------------------------------------

for name, way in WAYS.items():
    floating = "`x` to be floating point, .* but got torch."
    refuse(name, "`x` to be a tensor but got .(float|int)", way, NET, [1.0])
    entry(getattr(li, name))
    NETWORK.of(name, way, "network", x=X)
    COUNT.of(name, way, "max_batch", network=NET, x=X)
    refuse(name, f"{floating}complex64", way, NET, X.cfloat())
    refuse(name, f"{floating}int64", way, NET, INTEGERS)
    refuse(name, f"`x` {ON_META}", way, NET, X.to("meta"))
    refuse(name, "`x` to (have a batch dimension|be images)", way, NET, torch.tensor(1.0))
    for target, pattern in some_targets():
        refuse(name, pattern, way, NET, X, target)
    pattern = r"`network` to give logits of shape \(2, classes\) or \(2,\) for saliency but got"
    wrong = [lambda x: x.sum(), lambda x: x, lambda x: NET(x)[:1], lambda x: 1]
    refuse_each(name, pattern, way, wrong, "network", x=X)
    constant = [lambda x: torch.ones(len(x), 3), lambda x: NET(x).detach(), lambda x: NET(X.clone())]
    pattern = "`network` to give logits that have a gradient with respect to"
    refuse_each(name, pattern, way, constant, "network", x=X)
    for x in (X[:0], X[:1]):
        give(name, lambda r, x=x: r[1].shape == x.shape, way, NET, x)
    give(name, lambda r: r[1].shape == WIDE.shape, way, network(pixels=24), torch.randn(WIDE.shape))
    if name != "Gradient":  # the gradient of a linear network does not depend on its input
        for spoilt in SPOILT:
            give(name, lambda r: alone(r[1]), way, NET, spoilt)
images = r"`x` to be images \(B, ..., H, W\) for .* but got shape \(2, 4\)"
refuse("PaperSaliency", images, WAYS["PaperSaliency"], nn.Linear(4, 3), torch.randn(2, 4))
for wrong in (INTEGERS, X.cfloat()):
    refuse("Gradient", "`x` to be floating point, to have a gradient", li.Gradient(0.1), NET, wrong)
give("Gradient", lambda r: r[1].shape == (0, 1, 4, 4), li.Gradient(0.1), NET, X[:0])
give("Gradient", lambda r: r[1].shape == (3,), li.Gradient(0.1), lambda x: x.square(), torch.ones(3))
refuse("Saliency", "abstract", li.Saliency, error=TypeError)


# Sensitivity -----------------------------------------------------------------------------------------------------


def perturbed_of(x: Any = X, **options: Any) -> Tensor:
    return li.evaluate_perturbations(**{"network": NET, "x": x, "action": li.C4(), **options})


def norm_of(x: Any = X, **options: Any) -> Tensor:
    return li.jacobian_spectral_norm(**{"network": NET, "x": x, **options})


for name, run in (("evaluate_perturbations", perturbed_of), ("jacobian_spectral_norm", norm_of)):
    refuse(name, "`x` to be a tensor.* but got .(float|int)", run, [1.0])
    refuse(name, f"`x` {ON_META}", run, X.to("meta"))
    refuse(name, "`x` to be floating point, to .*, but got torch.int64", run, INTEGERS)
    refuse_each(name, "`network` to give .* but got", run, NO_ROWS, "network")
name = entry(li.evaluate_perturbations, network=NET, x=X, action=li.C4())
refuse(name, TRIVIAL, perturbed_of, action=li.Rotations(1))
refuse(name, SQUARE, perturbed_of, WIDE)
give(name, of_shape(3, 0, 3), perturbed_of, X[:0])
give(name, of_shape(3, 1, 3), perturbed_of, X[:1])
give(name, is_nan, perturbed_of, X * NAN)
give(name, is_nan, perturbed_of, X * INF)
pattern = "`directions` to (be a tensor|hold values) but got"
refuse_each(name, pattern, perturbed_of, [3, X.to("meta")], "directions")
pattern = r"`directions` to have the shape \(3, 2, 1, 4, 4\), floating point, but got"
refuse_each(name, pattern, perturbed_of, [X, torch.ones(3, *X.shape, dtype=LONG)], "directions")
smaller = li.FunctionAction([(lambda x: x[..., 1:], lambda x: x)])
pattern = r"Expected 'element1' .* to keep the shape \(2, 1, 4, 4\) but got a tensor \(2, 1, 4, 3\)"
refuse(name, pattern, perturbed_of, action=smaller)
name = entry(li.jacobian_spectral_norm, network=NET, x=X)
refuse(name, r"`x` to have the shape \(B, ...\) .* but got \(3,\)", norm_of, torch.ones(3))
refuse(name, "`network` to give logits that have a gradient", norm_of, network=lambda x: NET(x.detach()))
floats = "`network` to give floating-point values for each sample but got"
refuse(name, floats, norm_of, network=lambda x: NET(x).argmax(1))
refuse_each(name, "`tolerance` to be .* but got", norm_of, [0, "1", NAN], "tolerance")
give(name, of_shape(0), norm_of, X[:0])
give(name, of_shape(1), norm_of, X[:1])
for value in (NAN, INF):
    squared = {"network": lambda x: NET(x).square(), "warns": "undefined for 2 of 2 samples.*NaN"}
    give(name, is_nan, norm_of, X * value, **squared)
norms = li.layer_spectral_norms
name = entry(norms, module=NET)
refuse_each(name, "`module` to be a torch.nn.Module but got", norms, [None, "net", torch.relu])
layers = [nn.LazyLinear(3), nn.Linear(2, 3, device="meta")]
refuse_each(name, "`module` to hold values but got a layer '' without", norms, layers)
give(name, lambda found: found == {}, norms, nn.ReLU())
poisoned = nn.Linear(2, 3)
nn.init.constant_(poisoned.weight, NAN)
give(name, lambda found: is_nan(found["function"]), norms, Call(poisoned), warns="undefined for 1 of 1 samples")
