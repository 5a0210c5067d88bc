"""The metrics' values and standard errors against formulas on the concatenated data."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from invariance_references import (
    BY_ELEMENT,
    CASES,
    JACKKNIFED,
    MEANS,
    NAMES_AND_REDUCTIONS,
    Batch,
    make_data,
    split,
    take,
)

from lightning_invariance.functional import orbit_share, relative_logit_invariance_error
from lightning_invariance.metrics import Estimate, OrbitShare, RelativeLogitInvarianceError

SIZES = [5, 1, 16, 2, 30, 1, 8]
every = pytest.mark.parametrize(("name", "reduction"), NAMES_AND_REDUCTIONS)
POOLED = [(name, reduction) for name, reduction in NAMES_AND_REDUCTIONS if reduction != "none"]
pooled = pytest.mark.parametrize(("name", "reduction"), POOLED)
#: Jackknifed errors are held against the bootstrap.
pooled_means = pytest.mark.parametrize(("name", "reduction"), [pair for pair in POOLED if pair[0] in MEANS])


@pytest.fixture(scope="module")
def data() -> Batch:
    return make_data(sum(SIZES))


@pytest.fixture(scope="module")
def million() -> Batch:
    return make_data(1_000_000, dtype=torch.float32, seed=7)


@every
def test_uneven_batches_add_up_to_the_whole(name: str, reduction: str, data: Batch) -> None:
    case = CASES[name]
    metric = case.feed(case.make(reduction=reduction), split(data, SIZES))
    expected = case.expected(data, reduction)
    actual = metric.compute()
    assert actual.dtype == torch.float32
    assert actual.shape == np.shape(expected)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-6, atol=1e-7)


@every
def test_the_order_of_batches_does_not_matter(name: str, reduction: str, data: Batch) -> None:
    case = CASES[name]
    batches = list(split(data, SIZES))[::-1]
    metric = case.feed(case.make(reduction=reduction), batches)
    shuffled = {key: torch.cat([b[key] for b in batches], dim=int(key.startswith(BY_ELEMENT))) for key in data}
    np.testing.assert_allclose(metric.compute().numpy(), case.expected(shuffled, reduction), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_a_million_samples(name: str, million: Batch) -> None:
    case = CASES[name]
    sizes = [1, 399_999, 3, 250_000, 50_000, 199_997, 100_000]
    assert sum(sizes) == 1_000_000
    metric = case.feed(case.make(), split(million, sizes))
    assert metric.compute().item() == pytest.approx(float(case.expected(million, "mean")), rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_many_small_batches(name: str) -> None:
    case, data = CASES[name], make_data(60, seed=3)
    metric = case.feed(case.make(), split(data, [1] * 60))
    assert metric.compute().item() == pytest.approx(float(case.expected(data, "mean")), rel=1e-6)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@every
def test_half_precision_input(name: str, reduction: str, half: torch.dtype) -> None:
    case, data = CASES[name], make_data(40, dtype=half)
    metric = case.feed(case.make(reduction=reduction), split(data, [3, 30, 7]))
    np.testing.assert_allclose(metric.compute().numpy(), case.expected(data, reduction), rtol=2e-5, atol=1e-6)


# Standard errors -------------------------------------------------------------------------------------------------


@pooled_means
def test_the_error_is_that_of_the_mean_over_samples(name: str, reduction: str, data: Batch) -> None:
    case = CASES[name]
    estimate = case.feed(case.make(reduction=reduction), split(data, SIZES)).compute_with_error()
    assert isinstance(estimate, Estimate)
    np.testing.assert_allclose(estimate.value.numpy(), case.expected(data, reduction), rtol=1e-6)
    expected = case.standard_error(data, reduction)
    assert estimate.standard_error.shape == np.shape(expected)
    np.testing.assert_allclose(estimate.standard_error.numpy(), expected, rtol=1e-5)


def test_pairs_of_one_sample_are_no_independent_draws() -> None:
    """The same element listed many times makes no error smaller."""
    case, data = CASES["logit"], make_data(30, elements=1)
    once = case.feed(case.make(), [data]).compute_with_error()
    data["orbit_logits"] = data["orbit_logits"].expand(9, -1, -1)
    often = case.feed(case.make(), [data]).compute_with_error()
    torch.testing.assert_close(often, once)


@pooled_means
def test_one_sample_has_no_error(name: str, reduction: str) -> None:
    case = CASES[name]
    estimate = case.feed(case.make(reduction=reduction), [make_data(1)]).compute_with_error()
    assert estimate.value.isfinite().all()
    assert estimate.standard_error.isnan().all()


@pytest.mark.parametrize("name", CASES)
def test_single_values_have_no_error(name: str, data: Batch) -> None:
    case = CASES[name]
    metric = case.feed(case.make(reduction="none"), [data])
    with pytest.raises(ValueError, match="`reduction` to be 'mean' or 'element' for a standard error but got 'none'"):
        metric.compute_with_error()


@pooled
def test_the_error_leaves_the_metric_as_it_was(name: str, reduction: str, data: Batch) -> None:
    case = CASES[name]
    metric = case.feed(case.make(reduction=reduction), split(data, SIZES[:3]))
    before = copy.deepcopy(metric.metric_state)
    metric.compute_with_error()
    torch.testing.assert_close(metric.metric_state, before, rtol=0, atol=0)
    rest = list(split(data, SIZES))[3:]
    np.testing.assert_allclose(
        case.feed(metric, rest).compute().numpy(), case.expected(data, reduction), rtol=1e-6, atol=1e-7
    )


def share_of(within: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The share of bootstrap draws: within (draws, B) or (draws, B, G), means (draws, B, C)."""
    between = (means**2).sum(axis=-1).mean(axis=1) - (means.mean(axis=1) ** 2).sum(axis=-1)
    return np.asarray(within.mean(axis=1) / (within.mean(axis=1) + between))


def test_the_share_has_the_error_of_a_bootstrap() -> None:
    data = make_data(2000, seed=11)
    estimate = CASES["share"].feed(OrbitShare(), split(data, [333] * 6 + [2])).compute_with_error()
    z = torch.cat([data["logits"][None], data["orbit_logits"]]).numpy()
    z = z - z.mean(axis=-1, keepdims=True)
    means = z.mean(axis=0)
    within = ((z - means) ** 2).sum(axis=-1).mean(axis=0)
    draws = np.random.default_rng(0).integers(2000, size=(300, 2000))
    bootstrap = share_of(within[draws], means[draws]).std(ddof=1)
    assert estimate.value.item() == pytest.approx(float(share_of(within[None], means[None])[0]), rel=1e-6)
    assert bootstrap / 1.5 < estimate.standard_error.item() < bootstrap * 1.5


@pytest.mark.parametrize("reduction", ["mean", "element"])
def test_the_selectivity_has_the_error_of_a_bootstrap(reduction: str) -> None:
    case, data = CASES["selectivity"], make_data(500, seed=16)
    estimate = case.feed(case.make(reduction=reduction), split(data, [100, 400])).compute_with_error()
    draws = np.random.default_rng(2).integers(500, size=(300, 500))
    bootstrap = np.std([case.expected(take(data, draw), reduction) for draw in draws], axis=0, ddof=1)
    np.testing.assert_allclose(estimate.standard_error.numpy(), bootstrap, rtol=0.3)


@pytest.mark.parametrize("reduction", ["mean", "element"])
@pytest.mark.parametrize("name", JACKKNIFED)
def test_the_error_is_a_jackknife_over_16_folds(name: str, reduction: str) -> None:
    case, data = CASES[name], make_data(100, seed=15)
    without = [case.expected(take(data, [i for i in range(100) if i % 16 != k]), reduction) for k in range(16)]
    expected = np.sqrt(15 / 16 * ((np.array(without) - np.mean(without, axis=0)) ** 2).sum(axis=0))
    estimate = case.feed(case.make(reduction=reduction), split(data, [30, 70])).compute_with_error()
    np.testing.assert_allclose(estimate.standard_error.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["single_share", "relative_logit"])
@pytest.mark.parametrize("reduction", ["mean", "element"])
def test_ratios_have_the_error_of_a_bootstrap(name: str, reduction: str) -> None:
    case, data = CASES[name], make_data(800, seed=17)
    estimate = case.feed(case.make(reduction=reduction), split(data, [100, 700])).compute_with_error()
    draws = np.random.default_rng(3).integers(800, size=(300, 800))
    bootstrap = np.std([case.expected(take(data, draw), reduction) for draw in draws], axis=0, ddof=1)
    assert (estimate.standard_error.numpy() > bootstrap / 1.7).all()
    assert (estimate.standard_error.numpy() < bootstrap * 1.7).all()


def test_the_share_of_each_element_has_an_error_of_its_own() -> None:
    data = make_data(2000, seed=12)
    data["orbit_logits"][1] = data["logits"] + 0.1 * (data["orbit_logits"][1] - data["logits"])
    estimate = CASES["share"].feed(OrbitShare(reduction="element"), split(data, [700, 1300])).compute_with_error()
    z = torch.cat([data["logits"][None], data["orbit_logits"]]).numpy()
    z = z - z.mean(axis=-1, keepdims=True)
    means, total = z.mean(axis=0), []
    deviations = ((z - means) ** 2).sum(axis=-1)
    draws = np.random.default_rng(1).integers(2000, size=(300, 2000))
    for draw in draws:
        chosen = means[draw]
        between = (chosen**2).sum(axis=-1).mean() - (chosen.mean(axis=0) ** 2).sum()
        total.append(deviations[1:, draw].mean(axis=1) / (deviations[:, draw].mean() + between))
    bootstrap = np.array(total).std(axis=0, ddof=1)
    assert (estimate.standard_error.numpy() > bootstrap / 1.6).all()
    assert (estimate.standard_error.numpy() < bootstrap * 1.6).all()


@pytest.mark.parametrize("name", JACKKNIFED)
@pytest.mark.parametrize("size", [1, 8, 20])
def test_a_jackknife_does_not_depend_on_how_the_batches_came(name: str, size: int) -> None:
    """Lightning's ``self.log`` calls ``forward``, most people ``update``."""
    case, data = CASES[name], make_data(320, seed=13)
    fed = case.feed(case.make(), split(data, [size] * (320 // size))).compute_with_error()
    called = case.make()
    for batch in split(data, [size] * (320 // size)):
        if size == 1:
            with pytest.warns(UserWarning, match="fewer than two samples"):
                called(**case.pick(batch))
        else:
            called(**case.pick(batch))
    torch.testing.assert_close(called.compute_with_error(), fed)


@pytest.mark.parametrize("name", JACKKNIFED)
def test_a_jackknife_does_not_depend_on_the_size_of_batches(name: str) -> None:
    case, data = CASES[name], make_data(320, seed=14)
    whole = case.feed(case.make(), [data]).compute_with_error()
    parts = case.feed(case.make(), split(data, [7, 1, 60, 100, 152])).compute_with_error()
    torch.testing.assert_close(parts, whole)


# One output, and outputs far from 0 --------------------------------------------------------------------------------

FUNCTIONS: dict[str, Any] = {"single_share": orbit_share, "relative_logit": relative_logit_invariance_error}
METRICS: dict[str, Any] = {"single_share": OrbitShare, "relative_logit": RelativeLogitInvarianceError}
ratios = pytest.mark.parametrize("name", FUNCTIONS)


def far(offset: float, spread: float, dtype: torch.dtype) -> Batch:
    """One output a sample, already rounded to what the precision holds at such an offset."""
    data = make_data(90, classes=1, seed=18)
    return {key: (offset + spread * data[key]).to(dtype) for key in ("logits", "orbit_logits")}


@ratios
@pytest.mark.parametrize("reduction", ["mean", "element", "none"])
@pytest.mark.parametrize(
    ("offset", "spread", "dtype"),
    [
        (1e6, 1.0, torch.float32),
        (-1e6, 1.0, torch.float32),
        (1e6, 1e-3, torch.float64),
        (1e9, 0.1, torch.float64),
        (-76.4, 1e-4, torch.float32),
        (50.0, 1.0, torch.bfloat16),
    ],
)
def test_outputs_far_from_0(name: str, reduction: Any, offset: float, spread: float, dtype: torch.dtype) -> None:
    data = far(offset, spread, dtype)
    # Less the offset, which floating point takes out exactly: the reference then loses nothing.
    near = {key: x.double() - offset for key, x in data.items()}
    expected = CASES[name].expected(near, reduction)
    whole = FUNCTIONS[name](data["logits"], data["orbit_logits"], reduction=reduction)
    np.testing.assert_allclose(whole.numpy(), expected, rtol=2e-6)
    for sizes in ([90], [1] * 90, [17, 1, 40, 32]):
        metric = METRICS[name](reduction=reduction)
        for batch in split(data, sizes):
            metric.update(**batch)
        np.testing.assert_allclose(metric.compute().numpy(), expected, rtol=2e-6)
    if reduction != "none":
        without = [
            CASES[name].expected(take(near, [i for i in range(90) if i % 16 != k]), reduction) for k in range(16)
        ]
        error = np.sqrt(15 / 16 * ((np.array(without) - np.mean(without, axis=0)) ** 2).sum(axis=0))
        np.testing.assert_allclose(metric.compute_with_error().standard_error.numpy(), error, rtol=1e-5)


@ratios
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [1.0, 0.1, -900.0])
def test_a_variance_of_the_last_bit_is_none(name: str, value: float, dtype: torch.dtype) -> None:
    exact = torch.full((12,), value, dtype=dtype)
    other = torch.nextafter(exact, exact + 1) if dtype.itemsize > 2 else exact * (1 + torch.finfo(dtype).eps)
    last_bit = torch.where(torch.arange(12) % 2 == 0, exact, other)
    assert len(set(last_bit.tolist())) == 2
    moved = last_bit[None] if name == "single_share" else exact[None] + torch.arange(12).to(dtype)
    metric = METRICS[name]()
    for part, part_moved in zip(last_bit.split(5), moved.split(5, 1), strict=True):
        metric.update(part, part_moved)
    with pytest.warns(UserWarning, match="is 0 up to rounding"):
        assert metric.compute().isnan()
    with pytest.warns(UserWarning, match="is 0 up to rounding"):
        assert FUNCTIONS[name](last_bit, moved).isnan()


@pytest.mark.parametrize("reduction", ["mean", "element", "none"])
def test_one_output_may_have_a_dimension_of_its_own(reduction: Any) -> None:
    base, orbit = make_data(30, classes=1)["logits"], make_data(30, classes=1)["orbit_logits"]
    for make in METRICS.values():
        flat, column = make(reduction=reduction), make(reduction=reduction)
        flat.update(base[:, 0], orbit[..., 0])
        column.update(base, orbit)
        assert torch.equal(flat.compute(), column.compute())


def test_dense_outputs_have_a_relative_error() -> None:
    generator = torch.Generator().manual_seed(4)
    base = torch.randn(20, 2, 3, 5, generator=generator)
    orbit = base + torch.randn(3, 20, 2, 3, 5, generator=generator)
    z, gz = base.double().numpy(), orbit.double().numpy()
    expected = 0.5 * ((z - gz) ** 2).reshape(3, 20, -1).sum(-1).mean() / z.var(axis=0).sum()
    metric = RelativeLogitInvarianceError()
    metric.update(base[:7], orbit[:, :7])
    metric.update(base[7:], orbit[:, 7:])
    assert metric.compute().item() == pytest.approx(expected, rel=1e-6)
    assert relative_logit_invariance_error(base, orbit).item() == pytest.approx(expected, rel=1e-6)


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
    expected = values[name].std() / 50**0.5
    assert estimate.value.item() == pytest.approx(values[name].mean().item(), rel=1e-6)
    assert estimate.standard_error.item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_a_part_of_the_data_has_its_own_value(name: str, data: Batch) -> None:
    """A reference that the whole data meets too could not tell a forgotten batch."""
    case = CASES[name]
    part = take(data, slice(0, 40))
    assert abs(float(case.expected(part, "mean")) - float(case.expected(data, "mean"))) > 1e-4


def test_estimates_unpack(data: Batch) -> None:
    metric: Any = CASES["logit"].feed(CASES["logit"].make(), [data])
    value, error = metric.compute_with_error()
    assert value == metric.compute()
    assert error > 0
