"""The metrics' values and standard errors against formulas on the concatenated data."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from measures import CASES, JACKKNIFED, MEANS, Batch, joined, make_data, split, take
from oracles import assert_values

from lightning_invariance import RelativeLogitInvarianceError
from lightning_invariance.metrics import Estimate

SIZES = [5, 1, 16, 2, 30, 1, 8]
each = pytest.mark.parametrize("name", CASES)
TOLERANCE = {"rtol": 1e-6, "atol": 1e-7}


@pytest.fixture(scope="module")
def data() -> Batch:
    return make_data(sum(SIZES))


@each
def test_uneven_batches_in_any_order_add_up_to_the_whole(name: str, data: Batch) -> None:
    case, batches = CASES[name], list(split(data, SIZES))
    for fed in (batches, batches[::-1]):
        for reduction in case.reductions:
            value = case.feed(case.make(reduction=reduction), fed).compute()
            assert_values(value, case.expected(joined(fed), reduction), **TOLERANCE)
    # A reference that a part meets too could not tell a forgotten batch.
    part = case.expected(take(data, slice(0, 54)), "mean")
    assert abs(float(part) - float(case.expected(data, "mean"))) > 1e-4


@pytest.mark.parametrize("name", ["logit", "jensen_shannon", "share", "selectivity"])
def test_many_samples(name: str) -> None:
    """Sums, sums of squares and ratios: float32 would lose what the single samples add."""
    case, many = CASES[name], make_data(150_000, dtype=torch.float32, seed=7)
    metric = case.feed(case.make(), split(many, [1, 99_999, 3, 20_000, 9_997, 20_000]))
    assert metric.compute().item() == pytest.approx(float(case.expected(many, "mean")), rel=1e-6)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@each
def test_half_precision_input(name: str, half: torch.dtype) -> None:
    case, data = CASES[name], make_data(40, dtype=half)
    for reduction in case.reductions:
        metric = case.feed(case.make(reduction=reduction), split(data, [3, 30, 7]))
        assert_values(metric.compute(), case.expected(data, reduction), rtol=2e-5, atol=1e-6)


# Standard errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEANS)
def test_the_error_is_that_of_the_mean_over_samples(name: str, data: Batch) -> None:
    case, batches = CASES[name], list(split(data, SIZES))
    for reduction in case.reductions[:-1]:
        metric = case.feed(case.make(reduction=reduction), batches[:3])
        metric.compute_with_error()  # and goes on as if it had not been asked
        estimate = case.feed(metric, batches[3:]).compute_with_error()
        assert isinstance(estimate, Estimate)
        assert_values(estimate.value, case.expected(data, reduction), **TOLERANCE)
        assert_values(estimate.standard_error, case.standard_error(data, reduction), rtol=1e-5)
        assert torch.equal(metric.compute(), estimate.value)


@pytest.mark.parametrize("name", JACKKNIFED)
def test_the_error_is_a_jackknife_over_16_folds(name: str) -> None:
    """However the batches came: Lightning's ``self.log`` calls ``forward``, most people ``update``."""
    case, data = CASES[name], make_data(100, seed=15)
    for reduction in case.reductions:
        if reduction == "none":
            continue
        expected = case.jackknife(data, reduction)
        for sizes in ([100], [7, 1, 60, 32]):
            estimate = case.feed(case.make(reduction=reduction), split(data, sizes)).compute_with_error()
            assert_values(estimate.standard_error, expected, rtol=1e-5)
        called = case.make(reduction=reduction)
        for batch in split(data, [20] * 5):
            called(**case.pick(batch))
        assert_values(called.compute_with_error().standard_error, expected, rtol=1e-5)
    called = case.make()
    for batch in split(data, [1] * 100):
        # A loss needs no second sample, as a variance does.
        alone = pytest.warns(UserWarning, match="fewer than two samples") if name != "loss_share" else nullcontext()
        with alone:
            called(**case.pick(batch))
    assert_values(called.compute_with_error().standard_error, case.jackknife(data, "mean"), rtol=1e-5)


@pytest.mark.parametrize("name", [*JACKKNIFED, "selectivity"])
def test_ratios_have_the_error_of_a_bootstrap(name: str) -> None:
    case, data = CASES[name], make_data(800, seed=17)
    for reduction in ("mean", "element"):
        estimate = case.feed(case.make(reduction=reduction), split(data, [100, 700])).compute_with_error()
        ratio = estimate.standard_error.numpy() / case.bootstrap(data, reduction)
        assert (ratio > 1 / 1.7).all()
        assert (ratio < 1.7).all()


def test_pairs_of_one_sample_are_no_independent_draws() -> None:
    """The same element listed many times makes no error smaller."""
    case, data = CASES["logit"], make_data(30, elements=1)
    once = case.feed(case.make(), [data]).compute_with_error()
    data["orbit_logits"] = data["orbit_logits"].expand(9, -1, -1)
    torch.testing.assert_close(case.feed(case.make(), [data]).compute_with_error(), once)


@pytest.mark.parametrize("name", MEANS)
def test_one_sample_has_a_value_and_no_error(name: str) -> None:
    for reduction in CASES[name].reductions[:-1]:
        estimate = CASES[name].feed(CASES[name].make(reduction=reduction), [make_data(1)]).compute_with_error()
        assert estimate.value.isfinite().all()
        assert estimate.standard_error.isnan().all()


@pytest.mark.parametrize("name", ["logit", "distribution"])
def test_large_values_of_little_spread_keep_their_error(name: str) -> None:
    case, data = CASES[name], make_data(50)
    data["logits"] = 1e-3 * data["logits"] + torch.tensor([3e3, 0.0, 0.0], dtype=torch.float64)
    data["orbit_logits"] = 1e-3 * data["orbit_logits"] + torch.tensor([0.0, 3e3, 0.0], dtype=torch.float64)
    estimate = case.feed(case.make(), split(data, [20, 30])).compute_with_error()
    x, gx = data["logits"], data["orbit_logits"]
    values = {
        "logit": 0.5 * (x - gx).square().sum(-1).mean(0),
        "distribution": (gx[..., 1] - gx[..., 0]).mean(0),  # log u_0 = 0 and log q_0 = z_0 - z_1
    }
    assert estimate.value.item() == pytest.approx(values[name].mean().item(), rel=1e-6)
    assert estimate.standard_error.item() == pytest.approx(values[name].std().item() / 50**0.5, rel=1e-3)


# One output, and outputs far from 0 --------------------------------------------------------------------------------


def far(offset: float, spread: float, dtype: torch.dtype) -> Batch:
    """One output a sample, already rounded to what the precision holds at such an offset."""
    data = make_data(90, classes=1, seed=18)
    return {key: (offset + spread * data[key]).to(dtype) for key in ("logits", "orbit_logits")}


@pytest.mark.parametrize("name", ["share", "relative_logit"])
@pytest.mark.parametrize(
    ("offset", "spread", "dtype"),
    [
        (-1e6, 1.0, torch.float32),
        (1e9, 0.1, torch.float64),
        (-76.4, 1e-4, torch.float32),
        (50.0, 1.0, torch.bfloat16),
    ],
)
def test_outputs_far_from_0(name: str, offset: float, spread: float, dtype: torch.dtype) -> None:
    case, data = CASES[name], far(offset, spread, dtype)
    # Less the offset, which floating point takes out exactly: the reference then loses nothing.
    near = {key: x.double() - offset for key, x in data.items()}
    for reduction in case.reductions:
        expected = case.expected(near, reduction)
        np.testing.assert_allclose(case.given(data, reduction=reduction).numpy(), expected, rtol=2e-6)
        for sizes in ([90], [1] * 10 + [30, 1, 49]):
            metric = case.feed(case.make(reduction=reduction), split(data, sizes))
            np.testing.assert_allclose(metric.compute().numpy(), expected, rtol=2e-6)
        if reduction != "none":
            error = metric.compute_with_error().standard_error
            np.testing.assert_allclose(error.numpy(), case.jackknife(near, reduction), rtol=1e-5)


@pytest.mark.parametrize("name", ["share", "relative_logit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_variance_of_the_last_bit_is_none(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    for value in (1.0, 0.1, -900.0):
        exact = torch.full((12, 1), value, dtype=dtype)
        other = torch.nextafter(exact, exact + 1) if dtype.itemsize > 2 else exact * (1 + torch.finfo(dtype).eps)
        last_bit = torch.where(torch.arange(12)[:, None] % 2 == 0, exact, other)
        assert len(set(last_bit.flatten().tolist())) == 2
        moved = last_bit[None] if name == "share" else exact[None] + torch.arange(12).to(dtype)[:, None]
        data = {"logits": last_bit, "orbit_logits": moved}
        metric: Any = case.feed(case.make(), split(data, [5, 7]))
        for compute in (metric.compute, lambda data=data: case.given(data)):
            with pytest.warns(UserWarning, match="is 0 up to rounding"):
                assert compute().isnan()


@pytest.mark.parametrize("name", ["logit", "relative_logit"])
def test_dense_outputs(name: str) -> None:
    generator = torch.Generator().manual_seed(4)
    base = torch.randn(20, 2, 3, 5, generator=generator)
    data = {"logits": base, "orbit_logits": base + torch.randn(3, 20, 2, 3, 5, generator=generator)}
    case = CASES[name]
    metric = case.feed(case.make(), split(data, [7, 13]))
    assert metric.compute().item() == pytest.approx(float(case.expected(data, "mean")), rel=1e-6)


def test_one_output_may_have_a_dimension_of_its_own() -> None:
    data = make_data(30, classes=1)
    flat = {key: tensor[..., 0] for key, tensor in data.items()}
    for reduction in ("mean", "element", "none"):
        for make in (CASES["share"].make, RelativeLogitInvarianceError):
            metrics = [make(reduction=reduction) for _ in range(2)]
            for metric, each_data in zip(metrics, (data, flat), strict=True):
                metric.update(each_data["logits"], each_data["orbit_logits"])
            assert torch.equal(metrics[0].compute(), metrics[1].compute())
