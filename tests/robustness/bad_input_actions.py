"""Actions."""

from __future__ import annotations

import operator
from functools import partial
from itertools import cycle

from bad_input import *

EYES, PLANES = torch.eye(3).repeat(2, 1, 1), torch.eye(2, 3).repeat(2, 1, 1)
SWAP = torch.tensor([[0, 1, 2, 3], [2, 3, 0, 1]])
POINTS = torch.randn(2, 5, 3)
#: How to make one, and what it can act on.
ACTIONS: dict[str, tuple[Callable[[], li.Action], Tensor]] = {
    "C4": (li.C4, X),  # first: it has all bad values
    "AffineAction": (partial(li.AffineAction, PLANES), X),
    "CyclicTranslations": (partial(li.CyclicTranslations, 2), X),
    "D4": (li.D4, X),
    "FunctionAction": (partial(li.FunctionAction, [NEGATE]), X),
    "HorizontalFlip": (li.HorizontalFlip, X),
    "LinearAction": (partial(li.LinearAction, EYES), POINTS),
    "O3": (partial(li.O3, 2), POINTS),
    "PermutationAction": (partial(li.PermutationAction, SWAP), torch.randn(2, 4)),
    "ProductAction": (partial(li.ProductAction, li.C4(), li.HorizontalFlip()), X),
    "Rotations": (partial(li.Rotations, 4), X),
    "SO2": (partial(li.SO2, 2), X),
    "SO3": (partial(li.SO3, 2), POINTS),
    "ScalingRange": (partial(li.ScalingRange, 0.5, 2.0, 2), X),
    "Scalings": (partial(li.Scalings, [0.5]), X),
    "SetPermutations": (partial(li.SetPermutations, 2), X),
    "TimeReversal": (li.TimeReversal, X),
    "VerticalFlip": (li.VerticalFlip, X),
}
OF_REALS = ("AffineAction", "Rotations", "SO2", "ScalingRange", "Scalings", "LinearAction", "O3", "SO3")
GENERATOR = Check("`{}` to be a torch.Generator or None but got", 7)
#: Indices of x's elements, and the pattern of what is said of a group of so many.
INDICES: list[tuple[Callable[[int], Any], str]] = [
    (lambda order: "rot90", "an integer or a tensor .* but got 'rot90'"),
    (lambda order: 1.0, "an integer or a tensor .* but got 1.0"),
    (lambda order: -1, "between 0 and {last} .* but got -1"),
    (lambda order: order, "between 0 and {last} .* but got {order}"),
    (lambda order: torch.tensor([0, order]), "between 0 and {last} .* but got {order}"),
]
ELEMENTS = [(3, "hold indices of elements but got 3"), ("12", "hold indices of elements but got '12'")]
ELEMENTS += [([], "name at least one element but got none")]
turns = cycle(INDICES), cycle(ELEMENTS)


def spoils_no_other(make: Callable[[], li.Action], x: Tensor, value: float) -> bool:
    spoilt = x.clone()
    spoilt[0] = value
    action = make()
    moved, expected = action.act(spoilt, 1), action.act(x, 1)
    return bool(torch.equal(moved[1], expected[1]) and (~moved[0].isfinite()).any())


for name, (make, x) in ACTIONS.items():
    order = len(make())
    action = make()
    for method, *args in (("act", 1), ("attached",), ("alongside", x)):
        refuse(name, "`x` to be a tensor for .* but got .(float|int)", getattr(action, method), [1.0], *args)
    for bad, pattern in INDICES if name == "C4" else [next(turns[0])]:
        refuse(name, "`index` to be " + pattern.format(last=order - 1, order=order), action.act, x, bad(order))
    for elements, pattern in ELEMENTS if name == "C4" else [next(turns[1])]:
        refuse(name, f"`elements` to {pattern}", action.orbit, x, elements)
    for draw in (action.sample, action.fresh):
        NATURAL.of(name, draw, "n")
        GENERATOR.of(name, draw, "generator", n=2)
    SEED.of(name, action.redrawn, "seed")
    COUNT.of(name, action.redrawn, "samples", seed=0)
    give(name, lambda v: v[1].shape == (0,), action.fresh, 0)
    scalar = r"`x` to have a batch dimension and .* but got shape \(\)"
    refuse(name, scalar, action.act, torch.tensor(1.0), 1)
    three = torch.zeros(3, dtype=LONG)
    refuse(name, "`index` to hold one element for each of the 2", action.act, x, three)
    refuse(name, "`index` to hold integers but got torch.float32", action.act, x, torch.zeros(2))
    refuse(name, f"`index` {ON_META}", action.act, x, three[:2].to("meta"))
    refuse(name, f"`index` {ON_META}", action.act, x, three[0].to("meta"))
    give(name, lambda v: v.is_meta, action.act, x.to("meta"), 1)
    give(name, lambda v: len(v) == 0, action.act, x[:0], 1)
    give(name, lambda v: v.shape[1] == 0, action.orbit, x[:0])
    give(name, lambda v: len(v) == 1, action.act, x[:1], torch.tensor([1]))
    give(name, lambda v: v, spoils_no_other, make, x, NAN)
    give(name, lambda v: v, spoils_no_other, make, x, INF)
    if name in OF_REALS:
        refuse(name, "`x` to be floating point .* but got torch.int64", action.act, x.to(LONG), 1)
    else:
        give(name, lambda v: v.dtype == LONG, action.act, x.to(LONG), 1)
    if name in ("C4", "D4", "ProductAction"):
        refuse(name, SQUARE, action.act, WIDE, 1)
    elif x is X:
        give(name, of_shape(*WIDE.shape), action.act, WIDE, 1)
    elif name == "PermutationAction":
        refuse(name, "`x` to end in 4 for .* but got 6", action.act, WIDE, 1)
    else:
        refuse(name, "size of `x` in dimension -1 to be 3 for .* but got 6", action.act, WIDE, 1)

# What they are made of -------------------------------------------------------------------------------------------

for function, valid in (
    (li.AffineAction, {"matrices": PLANES}),
    (li.Scalings, {"factors": [0.5]}),
    (li.ScalingRange, {"smallest": 0.5, "largest": 2.0, "samples": 2}),
    (li.Rotations, {"order": 4}),
    (li.CyclicTranslations, {"order": 2}),
    (li.LinearAction, {"matrices": EYES}),
    (li.ProductAction, {"first": li.C4(), "second": li.C4()}),
    *((each, {"samples": 2}) for each in (li.SO2, li.SO3, li.O3, li.SetPermutations)),
):
    name = entry(function, but="padding" if function is li.SetPermutations else "", **valid)
    if "samples" in valid:
        refuse(name, "`seed` to be an integer of at most 64 bits but got None", function, **valid, seed=None)
name, limits = (
    "ScalingRange",
    {"smallest": ("1e-06", ["0.5", None, -0.5, 0.0, NAN]), "largest": ("0.5", [[2.0], 0.5, NAN, INF])},
)
for argument, (limit, wrong) in limits.items():
    valid = {key: value for key, value in {"smallest": 0.5, "largest": 2.0}.items() if key != argument}
    pattern = f"`{argument}` to be a finite number above {limit} but got"
    refuse_each(name, pattern, li.ScalingRange, wrong, argument, samples=2, **valid)
factors = [2.0, None, "ab", ["2"], [None], [], [-0.5], [2.0, 0.0], [NAN], [INF]]
refuse_each("Scalings", "`factors` to (be|hold) positive numbers.* but got", li.Scalings, factors)

name = "SetPermutations"
TOKENS = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])
pattern = "`padding` to be a number, not NaN, or None but got"
refuse_each(name, pattern, li.SetPermutations, ["0", True, [0.0], NAN, 1j], "padding", samples=2)
give(name, of_shape(*X.shape), li.SetPermutations(2, padding=-INF).act, X, 1)
refuse(name, r"for tokens \(B, L\) pass dim=-1", li.SetPermutations(2).act, TOKENS, 1)
places = "to have 2 samples, and 4 places .* but got"
for padding in (None, 0):
    action = li.SetPermutations(2, dim=-1, padding=padding)
    give(name, of_shape(2, 0), action.act, TOKENS[:, :0], 1)
    give(name, lambda v: v.is_meta, action.act, TOKENS.to("meta"), 1)
    give(name, lambda v: v.tolist() == [[5], [8]], action.act, TOKENS[:, :1], 1)
    for other in (TOKENS[:, :3], TOKENS[:1], TOKENS[:, 0]):
        refuse(name, f"`other` {places}", action.alongside, TOKENS, other)
    refuse(name, "`x` to be a tensor .* but got .(float|int)", action.alongside, TOKENS, [1])
refuse(name, f"`x` {places}", li.SetPermutations(2, dim=-1, padding=0).attached(TOKENS).invert, TOKENS[:1], 1)

NUMBERS = "`{}` to be a tensor, or nested sequences of numbers, as many in each, but got"
for name, good, shape in (("AffineAction", PLANES, "2, 3"), ("LinearAction", EYES, "n, n")):
    make = getattr(li, name)
    wrong = [[], good.tolist()[0], good[0], good[:, :, :2], good[:0]]
    refuse_each(name, rf"`matrices` to be a tensor of shape \(\|G\|, {shape}\)", make, wrong)
    refuse_each(name, NUMBERS.replace("{}", "matrices"), make, [[[[1.0], [1.0, 2.0]]], [["a"]]])
    refuse_each(name, "`matrices` to be a tensor but got", make, [None, "ab", {1: 2}])
    give(name, partial(operator.eq, make(good)), make, good.tolist())
    refuse(name, "`matrices` to be real but got torch.complex64", make, good.cfloat())
    refuse(name, f"`matrices` {ON_META}", make, good.to("meta"))
    refuse(name, r"`matrices\[0\]` to be the identity", make, good.flip(0) * 2)
    singular = [torch.stack([good[0], good[0] * value]) for value in (0.0, NAN, INF)]
    refuse_each(name, "`matrices` to be invertible", make, singular)
refuse("LinearAction", "`matrices` to be a tensor of shape", li.LinearAction, torch.zeros(2, 0, 0))

name, make = "PermutationAction", li.PermutationAction
no_table = [[[0.0, 1.0]], [0, 1], [], [[True, False]], torch.tensor([[0.0, 1.0]]), torch.tensor([0, 1])]
no_table += [torch.zeros(0, 2, dtype=LONG), torch.zeros(2, 0, dtype=LONG)]
refuse_each(name, r"`table` to be an integer tensor of shape \(\|G\|, n1, ..., nk\)", make, no_table)
refuse_each(name, NUMBERS.replace("{}", "table"), make, [[[0, 1], [0]], [["a"]]])
refuse(name, "`table` to be a tensor but got None", make, None)
give(name, partial(operator.eq, make(SWAP)), make, SWAP.tolist())
refuse(name, f"`table` {ON_META}", make, SWAP.to("meta"))
wrong = [torch.tensor([[0, 1], [0, 0]]), torch.tensor([[0, 1], [1, 2]])]
refuse_each(name, "every row of `table` to be a permutation of 0 to 1", make, wrong)
refuse(name, "row 0 of `table` to be the identity", make, torch.tensor([[1, 0]]))

# Functions and products ------------------------------------------------------------------------------------------

name = "FunctionAction"
pairs: list[Any] = [None, 3, [torch.neg], [("neg", torch.neg)], [], NEGATE, [(torch.neg, torch.neg, torch.neg)]]
refuse_each(name, r"`pairs` to hold pairs of functions \(act, invert\)", li.FunctionAction, pairs)
for labels, pattern in (
    (3, "a name for each pair but got 3"),
    ("a", "a name for each pair but got 'a'"),
    ([3, 4], r"distinct names, none 'identity', but got \[3, 4\]"),
    (["a"], "2 names, one a pair, but got 1"),
    (["a", "a"], r"distinct names, none 'identity', but got \['a', 'a'\]"),
    (["a", "identity"], "distinct names, none 'identity'"),
):
    refuse(name, f"`labels` to hold {pattern}", li.FunctionAction, [NEGATE, NEGATE], labels=labels)
for function, pattern in (
    (lambda x: x[..., :2], r"'bad' of FunctionAction\('bad'\) to keep the shape .* but got a tensor \([12], 1, 4, 2\)"),
    (lambda x: None, "'bad' of .* to keep the shape .* but got NoneType"),
    (Tensor.double, "element 'bad' in .* to keep torch.float32 but got torch.float64"),
):
    bad = li.FunctionAction([(function, function)], labels=["bad"])
    refuse(name, pattern, bad.act, X, 1)
    refuse(name, pattern, bad.act, X, torch.tensor([0, 1]))
refuse(name, INVERSE, WRONG_INVERSE.verify, ALTERNATING)
refuse(name, INVERSE, WRONG_INVERSE.verify, INTEGERS)
refuse(name, f"`x` {ON_META}", WRONG_INVERSE.verify, X.to("meta"))
give(name, lambda v: v is None, WRONG_INVERSE.verify, X[:0])
name = "ProductAction"
refuse(name, INVERSE, (li.C4() * WRONG_INVERSE).verify, ALTERNATING)
refuse(name, "unsupported operand", lambda: li.C4() * 3, error=TypeError)
refuse("Action", "abstract", li.Action, error=TypeError)

name = entry(li.FieldAction, points=li.C4(), fibres=li.C4())
for argument in ("points", "fibres"):
    both = {"points": li.C4(), "fibres": li.C4(), argument: "C4"}
    refuse(name, rf"`{argument}` to be an Action, such as C4\(\), but got 'C4'", li.FieldAction, **both)
refuse(name, r"`fibres` to have as many elements as `points`, C4\(\), which has 4", li.FieldAction, li.C4(), li.D4())
refuse(name, "`fibres` to have the elements of `points`", li.FieldAction, li.C4(), li.CyclicTranslations(4))
refuse(name, "`fibres` to be drawn with the seed of `points`", li.FieldAction, li.SO3(2), li.SO3(2, seed=1))
still = li.FieldAction(li.SO3(1), li.LinearAction(torch.eye(3).repeat(2, 1, 1)))
refuse(name, "`fibres` to draw its elements anew", still.redrawn, 1)
refuse("LinearAction", "`labels` to hold 2 distinct names", li.LinearAction, torch.eye(2).repeat(2, 1, 1), labels=["a"])
refuse("FunctionAction", "`places` to hold negative dimensions", li.FunctionAction, [NEGATE], places=[1])
