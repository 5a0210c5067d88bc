"""What must hold of the measures whatever the data: precision, saturation, and how a number may lie."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy
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
)

REDUCTIONS = ["mean", "element", "none"]
HALVES = [torch.float16, torch.bfloat16]

Measure = Callable[..., Tensor]
OF_LOGITS: dict[str, Measure] = {
    "DI softmax": distribution_invariance_error,
    "DI sigmoid": lambda *args, **kw: distribution_invariance_error(*args, activation="sigmoid", **kw),
    "LI": logit_invariance_error,
    "LI normalised": lambda *args, **kw: logit_invariance_error(*args, normalize="logits", **kw),
    "JS softmax": jensen_shannon_invariance_error,
    "JS sigmoid": lambda *args, **kw: jensen_shannon_invariance_error(*args, activation="sigmoid", **kw),
    "share": orbit_share,
    "LI relative": relative_logit_invariance_error,
    "consistency": prediction_consistency,
    "SI": saliency_invariance_similarity,
    "accuracy": lambda base, orbit, **kw: orbit_accuracy(base, orbit, base.argmax(dim=1), **kw),
}
ERRORS = ["DI softmax", "DI sigmoid", "LI", "LI normalised", "JS softmax", "JS sigmoid", "LI relative"]


def random_orbit(samples: int = 6, elements: int = 3, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = 2 * torch.randn(samples, classes, generator=generator)
    return base, base + torch.randn(elements, samples, classes, generator=generator)


# Precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", OF_LOGITS)
def test_half_precision_input_is_computed_in_float32(name: str, half: torch.dtype) -> None:
    base, orbit = (x.to(half) for x in random_orbit())
    actual = OF_LOGITS[name](base, orbit, reduction="none")
    assert actual.dtype == torch.float32
    exact = OF_LOGITS[name](base.double(), orbit.double(), reduction="none")
    torch.testing.assert_close(actual.double(), exact.double(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("half", HALVES)
def test_nearly_equal_half_precision_logits_have_their_own_divergence(half: torch.dtype) -> None:
    base = torch.tensor([[4.0, 2.0, -1.0]]).to(half)
    orbit = torch.tensor([[[4.03125, 2.0, -1.0]]]).to(half)
    assert not torch.equal(base, orbit[0])
    expected = entropy(softmax(base[0].double().numpy()), softmax(orbit[0, 0].double().numpy()))
    assert distribution_invariance_error(base, orbit).item() == pytest.approx(expected, rel=0.02)
    assert distribution_invariance_error(base, orbit).item() > 0


@pytest.mark.parametrize("name", ["DI softmax", "LI", "JS softmax", "SI"])
def test_double_precision_is_kept(name: str) -> None:
    base, orbit = (x.double() for x in random_orbit())
    assert OF_LOGITS[name](base, orbit).dtype == torch.float64


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("measure", [distribution_invariance_error, jensen_shannon_invariance_error])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_saturated_logits_give_finite_values(
    dtype: torch.dtype, measure: Measure, activation: str, reduction: str
) -> None:
    base = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1e4, 1e4]], dtype=dtype)
    orbit = torch.stack([base.roll(1, dims=1), base.roll(2, dims=1), base])
    values = measure(base, orbit, activation=activation, reduction=reduction)
    assert values.isfinite().all()
    assert (values >= 0).all()


def test_the_divergence_of_saturated_logits_is_their_difference() -> None:
    value = distribution_invariance_error(torch.tensor([[1e4, 0.0]]), torch.tensor([[[0.0, 1e4]]]))
    assert value.item() == pytest.approx(1e4)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-4, 1.0, 1e3]), noise=st.sampled_from([0.0, 1e-7, 1e-3]))
def test_errors_are_never_negative(seed: int, scale: float, noise: float) -> None:
    base, orbit = random_orbit(samples=20, seed=seed)
    base, orbit = scale * base, scale * (base + noise * orbit)
    for name in ERRORS:
        for reduction in REDUCTIONS:
            assert (OF_LOGITS[name](base, orbit, reduction=reduction) >= 0).all(), name


# Invariance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equal_outputs_are_invariant(reduction: str) -> None:
    base, _ = random_orbit()
    orbit = base.expand(3, *base.shape)
    for name in ERRORS:
        torch.testing.assert_close(
            OF_LOGITS[name](base, orbit, reduction=reduction).max(), torch.tensor(0.0), atol=1e-6, rtol=0
        )
    assert orbit_share(base, orbit, reduction=reduction).abs().max() < 1e-12
    assert (prediction_consistency(base, orbit, reduction=reduction) == 1).all()
    similarity = saliency_invariance_similarity(base, orbit, reduction=reduction)
    torch.testing.assert_close(similarity, torch.ones_like(similarity))


def test_a_logit_error_of_0_implies_a_distribution_error_of_0() -> None:
    base, _ = random_orbit()
    orbit = base.expand(3, *base.shape)
    assert logit_invariance_error(base, orbit).item() == 0
    assert distribution_invariance_error(base, orbit).item() == 0


def test_a_distribution_error_of_0_does_not_imply_a_logit_error_of_0() -> None:
    base = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    orbit = base[None] + 4.0
    assert distribution_invariance_error(base, orbit).item() == pytest.approx(0, abs=1e-14)
    assert logit_invariance_error(base, orbit).item() == pytest.approx(0.5 * 3 * 16)


# How a number lies -----------------------------------------------------------------------------------------------


def test_shrinking_the_logits_fakes_every_error_but_the_share() -> None:
    base, orbit = (x.double() for x in random_orbit(samples=50))
    small = (1e-3 * base, 1e-3 * orbit)
    for name in ("DI softmax", "LI", "JS softmax"):
        assert OF_LOGITS[name](*small) < 1e-4 * OF_LOGITS[name](base, orbit)
    torch.testing.assert_close(orbit_share(*small), orbit_share(base, orbit), rtol=1e-6, atol=0)


def test_shifting_the_logits_fakes_the_relative_error_but_not_the_share() -> None:
    base, orbit = (x.double() for x in random_orbit(samples=50))
    shifted = (base + 100, orbit + 100)
    relative = logit_invariance_error(*shifted, normalize="logits")
    assert relative < 1e-2 * logit_invariance_error(base, orbit, normalize="logits")
    torch.testing.assert_close(orbit_share(*shifted), orbit_share(base, orbit), rtol=1e-6, atol=0)
    # A number of its own for each member of the orbit says nothing about the classes either.
    own = torch.arange(3, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(orbit_share(base, orbit + own), orbit_share(base, orbit), rtol=1e-6, atol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_the_share_is_free_of_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    base, orbit = (x.double() for x in random_orbit(seed=seed))
    share = orbit_share(base, orbit)
    assert 0 <= share <= 1
    torch.testing.assert_close(orbit_share(scale * base + shift, scale * orbit + shift), share, rtol=1e-5, atol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_a_constant_output_has_no_share(value: float, reduction: str) -> None:
    constant = torch.tensor([0.3, -1.7, 0.9]) + value
    with pytest.warns(UserWarning, match="orbit share is undefined"):
        share = orbit_share(constant.expand(5, 3), constant.expand(3, 5, 3), reduction=reduction)
    assert share.isnan().all()
    assert share.shape == {"mean": (), "element": (3,), "none": (5,)}[reduction]


@pytest.mark.parametrize("measure", [orbit_share, relative_logit_invariance_error])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("samples", [0, 1])
@pytest.mark.parametrize("outputs", [1, 4])
def test_fewer_than_two_samples_have_no_variance(measure: Measure, outputs: int, samples: int, reduction: str) -> None:
    base, orbit = random_orbit(samples=samples, classes=outputs)
    with pytest.warns(UserWarning, match="fewer than two samples"):
        value = measure(base, orbit, reduction=reduction)
    assert value.isnan().all()
    assert value.shape == {"mean": (), "element": (3,), "none": (samples,)}[reduction]


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_a_constant_output_has_no_relative_error(value: float) -> None:
    base, orbit = random_orbit()
    with pytest.warns(UserWarning, match="relative logit invariance error is undefined"):
        assert relative_logit_invariance_error(torch.full_like(base, value), orbit).isnan()


# Undefined samples -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_map_of_zeros_is_left_out(reduction: str) -> None:
    maps, orbit = random_orbit()
    expected = saliency_invariance_similarity(maps[2:], orbit[:, 2:], reduction=reduction)
    maps[0] = 0  # the map of x itself, and one map of the orbit
    orbit[1, 1] = 0
    with pytest.warns(UserWarning, match="undefined for 2 of 6 samples"):
        actual = saliency_invariance_similarity(maps, orbit, reduction=reduction)
    if reduction == "none":
        assert actual[:2].isnan().all()
        actual = actual[2:]
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_maps_that_are_all_zeros_give_nan(reduction: str) -> None:
    with pytest.warns(UserWarning, match="undefined for 2 of 2 samples"):
        assert saliency_invariance_similarity(torch.zeros(2, 4), torch.ones(3, 2, 4), reduction=reduction).isnan().all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_logits_of_norm_0_have_no_relative_error(reduction: str) -> None:
    base, orbit = random_orbit()
    expected = logit_invariance_error(base[1:], orbit[:, 1:], normalize="logits", reduction=reduction)
    base[0] = 0
    with pytest.warns(UserWarning, match="undefined for 1 of 6 samples"):
        actual = logit_invariance_error(base, orbit, normalize="logits", reduction=reduction)
    if reduction == "none":
        assert actual[0].isnan()
        actual = actual[1:]
    torch.testing.assert_close(actual, expected)


def test_zero_logits_that_stay_zero_have_no_relative_error_either() -> None:
    with pytest.warns(UserWarning, match="undefined for 1 of 1 samples"):
        assert logit_invariance_error(torch.zeros(1, 2), torch.zeros(1, 1, 2), normalize="logits").isnan()


@pytest.mark.parametrize(("reduction", "shape"), [("mean", ()), ("element", (3,))])
@pytest.mark.parametrize("name", [name for name in OF_LOGITS if name not in ("share", "LI relative")])
def test_no_samples_give_nan(name: str, reduction: str, shape: tuple[int, ...]) -> None:
    with pytest.warns(UserWarning, match="no samples"):
        value = OF_LOGITS[name](torch.zeros(0, 4), torch.zeros(3, 0, 4), reduction=reduction)
    assert value.shape == shape
    assert value.isnan().all()


# Gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ERRORS)
def test_errors_have_finite_gradients(name: str) -> None:
    base, orbit = (x.double().requires_grad_() for x in random_orbit())

    def measure(base: Tensor, orbit: Tensor) -> Tensor:
        return OF_LOGITS[name](base, orbit)

    assert torch.autograd.gradcheck(measure, (base, orbit), atol=1e-6)


def test_inputs_are_left_as_they_were() -> None:
    base, orbit = random_orbit()
    copies: list[Any] = [base.clone(), orbit.clone()]
    for measure in OF_LOGITS.values():
        measure(base, orbit)
    assert torch.equal(base, copies[0])
    assert torch.equal(orbit, copies[1])


def test_the_share_of_independent_members_is_their_part_of_the_variance() -> None:
    """z_gx = a_x + b_gx with variances 3 and 1: W = (1 - 1/|G|), V = 3 + 1/|G|, so S = 0.75 / 4."""
    generator = torch.Generator().manual_seed(6)
    orbit = 3**0.5 * torch.randn(40_000, 1, generator=generator) + torch.randn(4, 40_000, 1, generator=generator)
    logits = torch.cat([orbit, -orbit], dim=-1)
    assert orbit_share(logits[0], logits[1:]).item() == pytest.approx(0.75 / 4, rel=0.02)


def test_a_uniform_prediction_against_a_certain_one_is_log_of_the_classes_away() -> None:
    uniform, certain = torch.zeros(1, 8), 1e3 * torch.eye(8)[:1]
    assert distribution_invariance_error(certain, uniform[None]).item() == pytest.approx(log(8), rel=1e-6)
