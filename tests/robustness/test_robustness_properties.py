"""What must hold for any shapes, precisions and group orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_invariance import (
    C4,
    D4,
    Action,
    CyclicTranslations,
    DistributionInvarianceError,
    HorizontalFlip,
    JensenShannonInvarianceError,
    LinearAction,
    LogitInvarianceError,
    OrbitAccuracy,
    OrbitShare,
    PermutationAction,
    PredictionConsistency,
    RelativeLogitInvarianceError,
    Rotations,
    SaliencyInvarianceSimilarity,
    SetPermutations,
    VerticalFlip,
)
from lightning_invariance.functional import (
    distribution_invariance_error,
    jensen_shannon_invariance_error,
    logit_invariance_error,
    orbit_accuracy,
    orbit_share,
    prediction_consistency,
    relative_logit_invariance_error,
    saliency_invariance_similarity,
)

few = settings(max_examples=25, deadline=None, derandomize=True)

Measure = Callable[..., Tensor]


def normalized(logits: Tensor, orbit_logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    return logit_invariance_error(logits, orbit_logits, normalize="logits", **options)


def without_labels(measure: Measure, **fixed: Any) -> Measure:
    def run(logits: Tensor, orbit_logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        return measure(logits, orbit_logits, **fixed, **options)

    return run


MEASURES: dict[str, tuple[Measure, Callable[..., Any]]] = {
    "distribution": (without_labels(distribution_invariance_error), DistributionInvarianceError),
    "distribution, sigmoid": (
        without_labels(distribution_invariance_error, activation="sigmoid"),
        lambda **options: DistributionInvarianceError(activation="sigmoid", **options),
    ),
    "jensen_shannon": (without_labels(jensen_shannon_invariance_error), JensenShannonInvarianceError),
    "logit": (without_labels(logit_invariance_error), LogitInvarianceError),
    "normalized": (normalized, lambda **options: LogitInvarianceError(normalize="logits", **options)),
    "share": (without_labels(orbit_share), OrbitShare),
    "relative": (without_labels(relative_logit_invariance_error), RelativeLogitInvarianceError),
    "consistency": (without_labels(prediction_consistency), PredictionConsistency),
    "accuracy": (orbit_accuracy, OrbitAccuracy),
    "worst case": (
        lambda *args, **options: orbit_accuracy(*args, worst_case=True, **options),
        lambda **options: OrbitAccuracy(worst_case=True, **options),
    ),
    "saliency": (without_labels(saliency_invariance_similarity), SaliencyInvarianceSimilarity),
}
all_measures = pytest.mark.parametrize("name", MEASURES)


@st.composite
def orbits(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (torch.float64,)) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, C), their orbit (G, B, C) and labels (B,)."""
    samples, classes = draw(st.integers(2, 9)), draw(st.integers(2, 6))
    elements = draw(st.integers(1, 5))
    spread, moved = draw(st.sampled_from([0.1, 1.0, 10.0])), draw(st.sampled_from([0.01, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    base = spread * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    noise = torch.randn(elements, samples, classes, generator=generator, dtype=torch.float64)
    dtype = draw(st.sampled_from(dtypes))
    labels = torch.randint(classes, (samples,), generator=generator)
    return base.to(dtype), (base + moved * spread * noise).to(dtype), labels


def shuffled(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def close(one: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    torch.testing.assert_close(one, other, rtol=rtol, atol=atol, equal_nan=True, check_dtype=False)


# Order does not count --------------------------------------------------------------------------------------------


@all_measures
@few
@given(orbit=orbits(), seed=st.integers(0, 99))
def test_samples_may_come_in_any_order(name: str, orbit: tuple[Tensor, Tensor, Tensor], seed: int) -> None:
    measure = MEASURES[name][0]
    base, moved, labels = orbit
    order = shuffled(len(base), seed)
    close(measure(base[order], moved[:, order], labels[order]), measure(*orbit))
    close(
        measure(base[order], moved[:, order], labels[order], reduction="none"), measure(*orbit, reduction="none")[order]
    )


@all_measures
@few
@given(orbit=orbits(), seed=st.integers(0, 99))
def test_classes_may_be_named_anew(name: str, orbit: tuple[Tensor, Tensor, Tensor], seed: int) -> None:
    measure = MEASURES[name][0]
    base, moved, labels = orbit
    order = shuffled(base.shape[1], seed)
    close(measure(base[:, order], moved[..., order], order.argsort()[labels]), measure(*orbit))


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "worst case"])
@few
@given(orbit=orbits(), seed=st.integers(0, 99))
def test_elements_may_come_in_any_order(name: str, orbit: tuple[Tensor, Tensor, Tensor], seed: int) -> None:
    measure = MEASURES[name][0]
    base, moved, labels = orbit
    order = shuffled(len(moved), seed)
    close(measure(base, moved[order], labels), measure(*orbit))
    by_element = measure(*orbit, reduction="element")
    close(measure(base, moved[order], labels, reduction="element"), by_element[order])


# Means -----------------------------------------------------------------------------------------------------------


@all_measures
@few
@given(orbit=orbits((torch.float64, torch.float32, torch.bfloat16, torch.float16)))
def test_the_mean_is_the_mean_of_the_samples_values(name: str, orbit: tuple[Tensor, Tensor, Tensor]) -> None:
    measure = MEASURES[name][0]
    mean, each = measure(*orbit), measure(*orbit, reduction="none")
    assert each.shape == orbit[2].shape
    assert mean.dtype == each.dtype == torch.promote_types(each.dtype, torch.float32)  # never in half precision
    close(mean, each.mean())


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in ("worst case", "share", "jensen_shannon")])
@few
@given(orbit=orbits())
def test_the_mean_is_the_mean_of_the_elements_values(name: str, orbit: tuple[Tensor, Tensor, Tensor]) -> None:
    measure = MEASURES[name][0]
    each = measure(*orbit, reduction="element")
    assert each.shape == orbit[1].shape[:1]
    close(measure(*orbit), each.mean())


@all_measures
@few
@given(orbit=orbits((torch.float64, torch.float32, torch.bfloat16)), data=st.data())
def test_a_metric_over_any_split_is_the_function_of_all(
    name: str, orbit: tuple[Tensor, Tensor, Tensor], data: st.DataObject
) -> None:
    measure, make = MEASURES[name]
    reductions = ["mean", "none"] if name == "worst case" else ["mean", "element", "none"]
    reduction = data.draw(st.sampled_from(reductions))
    base, moved, labels = orbit
    cuts = sorted(data.draw(st.lists(st.integers(0, len(base)), max_size=3)))
    metric = make(reduction=reduction)
    for first, last in zip([0, *cuts], [*cuts, len(base)], strict=True):
        part = (base[first:last], moved[:, first:last])
        metric.update(*part, labels[first:last]) if isinstance(metric, OrbitAccuracy) else metric.update(*part)
    expected = measure(*orbit, reduction=reduction).float()
    close(metric.compute().reshape(expected.shape), expected, rtol=1e-4, atol=1e-6)


# Ranges ----------------------------------------------------------------------------------------------------------

BOUNDS: dict[str, tuple[float, float]] = {
    "distribution": (0.0, float("inf")),
    "distribution, sigmoid": (0.0, float("inf")),
    "jensen_shannon": (0.0, float("nan")),  # log |G|, below
    "logit": (0.0, float("inf")),
    "normalized": (0.0, float("inf")),
    "share": (0.0, 1.0),
    "relative": (0.0, float("inf")),
    "consistency": (0.0, 1.0),
    "accuracy": (0.0, 1.0),
    "worst case": (0.0, 1.0),
    "saliency": (-1.0, 1.0),
}


@all_measures
@few
@given(orbit=orbits((torch.float64, torch.float32, torch.bfloat16)), scale=st.sampled_from([1.0, 100.0]))
def test_values_lie_in_their_range(name: str, orbit: tuple[Tensor, Tensor, Tensor], scale: float) -> None:
    measure = MEASURES[name][0]
    base, moved, labels = orbit
    low, high = BOUNDS[name]
    if name == "jensen_shannon":
        high = float(torch.tensor(len(moved) + 1.0).log()) + 1e-5
    values = measure(scale * base, scale * moved, labels, reduction="mean" if name == "share" else "none")
    assert bool((values >= low).all())
    assert bool((values <= high).all())


@all_measures
@few
@given(orbit=orbits())
def test_an_orbit_that_is_a_point_has_the_best_value(name: str, orbit: tuple[Tensor, Tensor, Tensor]) -> None:
    measure = MEASURES[name][0]
    base, moved, _ = orbit
    best = {"consistency": 1.0, "accuracy": 1.0, "worst case": 1.0, "saliency": 1.0}.get(name, 0.0)
    value = measure(base, base.expand_as(moved), base.argmax(dim=1))
    close(value, torch.tensor(best), atol=1e-6)


# Scale and shift -------------------------------------------------------------------------------------------------

SCALED: dict[str, Callable[[float], float]] = {
    "logit": lambda scale: scale**2,
    "normalized": lambda scale: 1.0,
    "share": lambda scale: 1.0,
    "relative": lambda scale: 1.0,
    "consistency": lambda scale: 1.0,
    "accuracy": lambda scale: 1.0,
    "worst case": lambda scale: 1.0,
    "saliency": lambda scale: 1.0,
}


@pytest.mark.parametrize("name", SCALED)
@few
@given(orbit=orbits(), power=st.integers(-6, 6))
def test_scaling_law(name: str, orbit: tuple[Tensor, Tensor, Tensor], power: int) -> None:
    measure, scale = MEASURES[name][0], 2.0**power
    base, moved, labels = orbit
    close(measure(scale * base, scale * moved, labels), SCALED[name](scale) * measure(*orbit))


SHIFTED = {"distribution", "jensen_shannon", "logit", "relative", "share", "consistency", "accuracy", "worst case"}


@pytest.mark.parametrize("name", sorted(SHIFTED))
@few
@given(orbit=orbits(), shift=st.floats(-50.0, 50.0))
def test_a_number_added_to_all_logits_changes_nothing(
    name: str, orbit: tuple[Tensor, Tensor, Tensor], shift: float
) -> None:
    measure = MEASURES[name][0]
    base, moved, labels = orbit
    close(measure(base + shift, moved + shift, labels), measure(*orbit), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(SHIFTED - {"logit", "relative"}))
@few
@given(orbit=orbits(), seed=st.integers(0, 99))
def test_softmax_and_argmax_ignore_a_number_of_each_input(
    name: str, orbit: tuple[Tensor, Tensor, Tensor], seed: int
) -> None:
    measure = MEASURES[name][0]
    base, moved, labels = orbit
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(moved.shape[:2], generator=generator, dtype=moved.dtype)[..., None]
    close(measure(base + shift[0], moved + shift, labels), measure(*orbit), rtol=1e-4, atol=1e-6)


@few
@given(orbit=orbits(), data=st.data())
def test_each_map_has_a_scale_of_its_own(orbit: tuple[Tensor, Tensor, Tensor], data: st.DataObject) -> None:
    base, moved, _ = orbit
    powers = st.integers(-100, 100)
    scales = torch.tensor([data.draw(powers) for _ in range(len(base))], dtype=torch.float64).exp2()[:, None]
    scaled = saliency_invariance_similarity(scales * base, moved / scales)
    close(scaled, saliency_invariance_similarity(base, moved))
    close(saliency_invariance_similarity(-base, moved), -saliency_invariance_similarity(base, moved))


# Actions ---------------------------------------------------------------------------------------------------------


@st.composite
def permutation_groups(draw: st.DrawFn) -> PermutationAction:
    """The powers of any one permutation."""
    size = draw(st.integers(1, 6))
    step = shuffled(size, draw(st.integers(0, 999)))
    powers = [torch.arange(size)]
    while not torch.equal(powers[-1][step], powers[0]):
        powers.append(powers[-1][step])
    return PermutationAction(torch.stack(powers))


@few
@given(action=permutation_groups(), batch=st.integers(1, 4), seed=st.integers(0, 99))
def test_powers_of_a_permutation_act_as_a_group(action: PermutationAction, batch: int, seed: int) -> None:
    x = torch.randn(batch, 2, action.index_table(()).shape[1], generator=torch.Generator().manual_seed(seed))
    table = action.cayley_table
    assert table is not None
    assert torch.equal(table, table.T)
    for left in range(len(action)):
        assert torch.equal(action.invert(action.act(x, left), left), x)
        for right in range(len(action)):
            assert torch.equal(action.act(action.act(x, right), left), action.act(x, int(table[left, right])))


@few
@given(order=st.integers(1, 7), size=st.integers(1, 3), seed=st.integers(0, 99))
def test_linear_actions_of_any_cyclic_group_invert(order: int, size: int, seed: int) -> None:
    angles = 2 * torch.pi * torch.arange(order, dtype=torch.float64) / order
    matrices = torch.zeros(order, 2, 2, dtype=torch.float64)
    matrices[:, 0, 0] = matrices[:, 1, 1] = angles.cos()
    matrices[:, 1, 0], matrices[:, 0, 1] = angles.sin(), -angles.sin()
    matrices[0] = torch.eye(2)
    action = LinearAction(matrices)
    x = torch.randn(3, size, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    table = action.cayley_table
    assert table is not None
    assert torch.equal(table, (torch.arange(order)[:, None] + torch.arange(order)) % order)
    index = torch.arange(3) % order
    close(action.invert(action.act(x, index), index), x, atol=1e-12)


EXACT: list[Callable[[int], Action]] = [
    lambda order: C4(),
    lambda order: D4(),
    lambda order: CyclicTranslations(order),
    lambda order: CyclicTranslations(order, dim=-2),
    lambda order: SetPermutations(order),
    lambda order: C4() * CyclicTranslations(order),
    lambda order: HorizontalFlip() * VerticalFlip(),
]
DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


@few
@given(
    make=st.sampled_from(EXACT),
    order=st.integers(1, 4),
    repeats=st.integers(1, 3),
    batch=st.integers(0, 3),
    between=st.lists(st.integers(1, 2), max_size=2),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_exact_actions_only_move_values(
    make: Callable[[int], Action],
    order: int,
    repeats: int,
    batch: int,
    between: list[int],
    dtype: torch.dtype,
    seed: int,
) -> None:
    action, side = make(order), order * repeats
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(100, (batch, *between, side, side), generator=generator).to(dtype)
    index = torch.randint(len(action), (batch,), generator=generator)
    moved = action.act(x, index)
    assert moved.dtype == dtype
    assert moved.shape == x.shape
    assert torch.equal(action.invert(moved, index), x)
    orbit = action.orbit(x)
    for sample, element in enumerate(index.tolist()):
        assert torch.equal(moved[sample], orbit[element, sample])
    values = torch.view_as_real(moved).flatten() if dtype.is_complex else moved.flatten()
    before = torch.view_as_real(x).flatten() if dtype.is_complex else x.flatten()
    assert torch.equal(values.sort().values, before.sort().values)


@few
@given(order=st.integers(1, 8), height=st.integers(1, 6), width=st.integers(1, 6), seed=st.integers(0, 99))
def test_rotations_are_linear_in_the_image(order: int, height: int, width: int, seed: int) -> None:
    action = Rotations(order)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 1, 2, height, width, generator=generator, dtype=torch.float64)
    both = action.orbit(2 * x - 3 * y)
    close(both, 2 * action.orbit(x) - 3 * action.orbit(y), atol=1e-12)
    assert torch.equal(action.orbit(torch.stack([x[0], y[0]]))[:, 1:], action.orbit(y))
