"""The measures' values: against formulas in double precision, and closed forms by hand."""

from __future__ import annotations

from functools import partial
from math import log, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measures import CASES, Batch, make_data, split, take
from oracles import assert_values
from torch import Tensor

from lightning_invariance.functional import (
    distribution_invariance_error,
    jensen_shannon_invariance_error,
    logit_invariance_error,
    orbit_accuracy,
    orbit_share,
    prediction_consistency,
    relative_logit_invariance_error,
    saliency_invariance_similarity,
    selectivity,
)

each = pytest.mark.parametrize("name", CASES)


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_value_is_that_of_the_formula(name: str, dtype: torch.dtype) -> None:
    """Half precision is computed in float32."""
    case, data = CASES[name], make_data(7, elements=3, classes=5, dtype=dtype)
    kept = torch.float64 if dtype == torch.float64 and case.keeps_double else torch.float32
    tolerance = {"rtol": 1e-11, "atol": 1e-13} if kept == torch.float64 else {"rtol": 2e-5, "atol": 1e-6}
    copies = {key: tensor.clone() for key, tensor in data.items()}
    for reduction in case.reductions:
        assert_values(case.given(data, reduction=reduction), case.expected(data, reduction), kept, **tolerance)
    assert all(torch.equal(copies[key], tensor) for key, tensor in data.items())


@pytest.mark.parametrize("name", ["logit", "normalized_logit", "relative_logit", "saliency"])
@pytest.mark.parametrize("shape", [(1,), (2, 3, 4)])
def test_outputs_of_any_shape(name: str, shape: tuple[int, ...]) -> None:
    case, generator = CASES[name], torch.Generator().manual_seed(3)
    base = torch.randn(7, *shape, generator=generator, dtype=torch.float64)
    moved = torch.randn(3, 7, *shape, generator=generator, dtype=torch.float64)
    data = dict(zip(case.inputs, (base, moved), strict=True))
    for reduction in case.reductions:
        expected = case.expected(data, reduction)
        assert_values(case.given(data, reduction=reduction), expected, torch.float64, rtol=1e-11)
        if shape == (1,) and name != "saliency":
            flat = {key: tensor[..., 0] for key, tensor in data.items()}
            assert_values(case.given(flat, reduction=reduction), expected, torch.float64, rtol=1e-11)


@each
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    samples=st.integers(2, 9),
    sizes=st.fixed_dictionaries({"elements": st.integers(1, 5), "classes": st.integers(2, 6)}),
    spread=st.sampled_from([1e-3, 1.0, 10.0]),
    moved=st.sampled_from([0.0, 1e-7, 0.01, 1.0]),
    shift=st.sampled_from([0.0, 50.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**32 - 1),
    cut=st.floats(0.0, 1.0),
)
def test_any_orbit(
    name: str,
    samples: int,
    sizes: dict[str, int],
    spread: float,
    moved: float,
    shift: float,
    dtype: torch.dtype,
    seed: int,
    cut: float,
) -> None:
    """Of any size, the function in its bounds and by the formula, and the metric over any two parts alike."""
    case, data = CASES[name], make_data(samples, seed=seed, spread=spread, moved=moved, **sizes)
    if dtype == torch.float64:
        data = {key: x + shift if key.endswith("logits") else x for key, x in data.items()}
    data = {key: x.to(dtype) if x.is_floating_point() else x for key, x in data.items()}
    low, high = case.bounds
    if name == "jensen_shannon":
        high = log(sizes["elements"] + 1) * (1 + 1e-5)
    first = round(cut * samples)
    for reduction in case.reductions:
        value = case.given(data, reduction=reduction)
        metric = case.feed(case.make(reduction=reduction), split(data, [first, samples - first])).compute()
        torch.testing.assert_close(metric, value.float().reshape(metric.shape), rtol=1e-4, atol=1e-6)
        if "share" not in name or reduction == "mean":
            assert ((low <= value) & (value <= high)).all()
        if dtype == torch.float64:
            np.testing.assert_allclose(value.numpy(), case.expected(data, reduction), rtol=1e-5, atol=1e-7)


# By hand ---------------------------------------------------------------------------------------------------------


def test_the_untransformed_input_is_the_first_argument_of_the_divergence() -> None:
    logits, moved = torch.tensor([[log(9.0), 0.0]]).double(), torch.tensor([[[0.0, 0.0]]]).double()
    forward = 0.9 * log(0.9 / 0.5) + 0.1 * log(0.1 / 0.5)
    reverse = 0.5 * log(0.5 / 0.9) + 0.5 * log(0.5 / 0.1)
    assert distribution_invariance_error(logits, moved).item() == pytest.approx(forward, rel=1e-6)
    assert distribution_invariance_error(moved[0], logits[None]).item() == pytest.approx(reverse, rel=1e-6)


def test_jensen_shannon_of_predictions_that_never_agree_is_the_log_of_the_groups_order() -> None:
    for elements in (1, 7):
        orbit = 1e4 * torch.eye(elements + 1)[:, None]
        value = jensen_shannon_invariance_error(orbit[0], orbit[1:])
        assert value.item() == pytest.approx(log(elements + 1), rel=1e-6)


def test_logit_invariance_keeps_the_half_and_the_normalised_error_does_not() -> None:
    logits, orbit_logits = torch.tensor([[3.0, 4.0]]), torch.tensor([[[3.0, 1.0]]])
    assert logit_invariance_error(logits, orbit_logits).item() == pytest.approx(4.5)
    assert logit_invariance_error(logits, orbit_logits, normalize="logits").item() == pytest.approx(9 / 25)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-42, 1e30])
def test_saliency_similarity_does_not_depend_on_the_size_of_the_gradients(scale: float) -> None:
    maps = torch.tensor([[1.0, 0.0]]) * scale
    orbit = torch.tensor([[[1.0, 1.0]], [[3.0, 0.0]], [[-0.2, 0.0]]]) * scale
    values = saliency_invariance_similarity(maps, orbit, reduction="element")
    np.testing.assert_allclose(values.numpy(), [sqrt(0.5), 1.0, -1.0], rtol=1e-3)
    assert values.abs().max() <= 1


def test_orbit_share_by_hand() -> None:
    sides = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    # Depends on the orbit alone, on the pose alone (as far as it may), and half and half.
    assert orbit_share(sides, sides[None]).item() == 0
    small = 1e-4 * sides
    assert orbit_share(sides[:1] + small, -sides[None, :1] + small[None]).item() == pytest.approx(1, abs=1e-6)
    four = torch.tensor([[2.0, -2.0], [0.0, 0.0]])
    assert orbit_share(four, torch.tensor([[[0.0, 0.0], [-2.0, 2.0]]])).item() == pytest.approx(0.5)
    # Of one output: the pose alone, as far as it may: means 1e-3 and -1e-3, within 1.
    apart = 1e-3 * sides[0]
    assert orbit_share(1 + apart, (apart - 1)[None]).item() == pytest.approx(1 / (1 + 1e-6), rel=1e-6)


def test_the_relative_error_is_1_where_poses_differ_as_samples_do() -> None:
    """Each sample against each other one, itself too: half their mean squared distance is the variance."""
    base = torch.randn(40, 3, generator=torch.Generator().manual_seed(10))
    others = torch.stack([base.roll(k, dims=0) for k in range(40)])
    assert relative_logit_invariance_error(base, others).item() == pytest.approx(1, rel=1e-6)


def test_the_relative_error_is_free_of_scale_and_shift() -> None:
    base, orbit = torch.tensor([1.0, 2.0, 4.0]).double(), torch.tensor([[2.0, 2.0, 4.0]]).double()
    expected = (0.5 / 3) / (14 / 9)  # the variance of 1, 2 and 4 is 21/3 - (7/3)²
    for scale, shift in ((1.0, 0.0), (1e-6, 5.0), (-3.0, 1e7)):
        value = relative_logit_invariance_error(scale * base + shift, scale * orbit + shift)
        assert value.item() == pytest.approx(expected, rel=1e-6)


def test_only_the_worst_case_takes_the_identity_in() -> None:
    wrong, right, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[[0.0, 1.0]]]), torch.tensor([1])
    assert orbit_accuracy(wrong, right, target).item() == 1
    assert orbit_accuracy(wrong, right, target, worst_case=True).item() == 0
    for integer in (torch.int32, torch.uint8):
        assert orbit_accuracy(wrong, right, target.to(integer)).item() == 1


# At the edges ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [distribution_invariance_error, jensen_shannon_invariance_error])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_saturated_logits_give_finite_values(dtype: torch.dtype, measure: Any) -> None:
    base = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1e4, 1e4]], dtype=dtype)
    orbit = torch.stack([base.roll(1, dims=1), base.roll(2, dims=1), base])
    for activation in ("softmax", "sigmoid"):
        for reduction in ("mean", "element", "none"):
            values = measure(base, orbit, activation=activation, reduction=reduction)
            assert values.isfinite().all()
            assert (values >= 0).all()


def test_divergences_far_and_near() -> None:
    assert distribution_invariance_error(torch.tensor([[1e4, 0.0]]), torch.tensor([[[0.0, 1e4]]])).item() == 1e4
    # u/q is 1 but for a 1/32 in one logit: half of p (1 - p) / 32², p the first class's probability.
    p = torch.tensor([4.0, 2.0, -1.0]).softmax(0)[0].item()
    for half in (torch.float16, torch.bfloat16):
        base, orbit = torch.tensor([[4.0, 2.0, -1.0]]).to(half), torch.tensor([[[4.03125, 2.0, -1.0]]]).to(half)
        value = distribution_invariance_error(base, orbit).item()
        assert value == pytest.approx(p * (1 - p) / 2 / 32**2, rel=0.03)


@each
def test_equal_outputs_are_invariant(name: str) -> None:
    """Exactly, but where a root or a mean of probabilities rounds."""
    data = make_data(6, moved=0.0, dtype=torch.float32)
    data["target"] = data["logits"].argmax(dim=1)
    best = {"saliency": 1.0, "consistency": 1.0, "accuracy": 1.0, "worst_accuracy": 1.0}.get(name, 0.0)
    values = CASES[name].given(data, reduction="none")
    torch.testing.assert_close(
        values, torch.full_like(values, best), rtol=0.0, atol=1e-6 if name == "saliency" or "jensen" in name else 1e-30
    )


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.keeps_double and name != "saliency"])
def test_errors_have_finite_gradients(name: str) -> None:
    base, orbit = (make_data(4)[key].requires_grad_() for key in ("logits", "orbit_logits"))
    labels = {"target": make_data(4)["target"]} if "target" in CASES[name].inputs else {}
    assert torch.autograd.gradcheck(partial(CASES[name].function, **labels), (base, orbit), atol=1e-6)


# Where nothing is defined ----------------------------------------------------------------------------------------


def shape_of(reduction: str, data: Batch) -> tuple[int, ...]:
    return {"mean": (), "element": data["orbit_logits"].shape[:1], "none": data["logits"].shape[:1]}[reduction]


def test_a_constant_output_has_neither_share_nor_relative_error() -> None:
    for value in (0.0, 0.1, 1e4):
        logits = (torch.tensor([0.3, -1.7, 0.9]) + value).expand(5, 3)
        data = {"logits": logits, "orbit_logits": logits.expand(3, 5, 3)}
        for reduction in ("mean", "element", "none"):
            with pytest.warns(UserWarning, match="orbit share is undefined"):
                share = orbit_share(**data, reduction=reduction)  # type: ignore[arg-type]
            assert share.isnan().all()
            assert share.shape == shape_of(reduction, data)
        with pytest.warns(UserWarning, match="relative logit invariance error is undefined"):
            assert relative_logit_invariance_error(logits, torch.randn(3, 5, 3)).isnan()


@pytest.mark.parametrize("name", ["share", "relative_logit", "single_share"])
def test_fewer_than_two_samples_have_no_variance(name: str) -> None:
    for samples in (0, 1):
        data = make_data(samples)
        for reduction in ("mean", "element", "none"):
            with pytest.warns(UserWarning, match="fewer than two samples"):
                value = CASES[name].given(data, reduction=reduction)
            assert value.isnan().all()
            assert value.shape == shape_of(reduction, data)


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"share", "single_share", "relative_logit", "selectivity"}))
def test_no_samples_give_nan(name: str) -> None:
    for reduction in CASES[name].reductions[:-1]:
        with pytest.warns(UserWarning, match="no samples"):
            value = CASES[name].given(make_data(0), reduction=reduction)
        assert value.shape == shape_of(reduction, make_data(0))
        assert value.isnan().all()


@pytest.mark.parametrize("name", ["saliency", "normalized_logit"])
def test_a_sample_of_norm_0_is_left_out(name: str) -> None:
    case, data = CASES[name], make_data(6)
    base, orbit = (data[key] for key in case.inputs)
    base[0] = 0
    if name == "saliency":  # of the orbit too
        orbit[1, 1] = 0
    left = int(name == "saliency") + 1
    for reduction in case.reductions:
        with pytest.warns(UserWarning, match=f"undefined for {left} of 6 samples"):
            value = case.given(data, reduction=reduction)
        if reduction == "none":
            assert value[:left].isnan().all()
            value = value[left:]
        assert_values(value, case.expected(take(data, slice(left, None)), reduction), torch.float64, rtol=1e-11)
        nothing = {key: torch.zeros_like(tensor) for key, tensor in case.pick(data).items()}
        with pytest.warns(UserWarning, match="undefined for 6 of 6 samples"):
            assert case.given(nothing, reduction=reduction).isnan().all()


# The identity ----------------------------------------------------------------------------------------------------


def test_the_identity_is_never_counted() -> None:
    """An orbit whose moved members are all alike has the value of one of them, whatever the group's order."""
    base, moved, perturbed = torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([[0.0, 2.0, 0.5]]), torch.zeros(1, 3)
    for elements in (1, 7):
        orbit: Tensor = moved.expand(elements, 1, 3)
        cosine = 0.25 / sqrt(1.25 * 4.25)
        assert saliency_invariance_similarity(base, orbit).item() == pytest.approx(cosine, rel=1e-6)
        assert logit_invariance_error(base, orbit).item() == pytest.approx(2.5)
        assert selectivity(base, orbit, perturbed.expand(elements, 1, 3)).item() == pytest.approx(5 / 1.25)
        assert prediction_consistency(base, orbit).item() == 0
        assert orbit_accuracy(base, orbit, torch.tensor([0])).item() == 0
