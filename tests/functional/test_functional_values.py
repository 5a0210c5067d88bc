"""The measures' values against scipy and formulas written out sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
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
SAMPLES, ELEMENTS, CLASSES = 7, 3, 5


@pytest.fixture
def logits(dtype: torch.dtype) -> Tensor:
    return 2 * torch.randn(SAMPLES, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.fixture
def orbit_logits(logits: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    moved = torch.randn(ELEMENTS, SAMPLES, CLASSES, generator=generator, dtype=torch.float64)
    return logits + moved.to(logits.dtype)


def pairwise(measure: Callable[[Any, Any], float], base: Tensor, orbit: Tensor) -> np.ndarray:
    """A measure of every pair (x, g) in double precision, shape (G, B)."""
    x, gx = base.double().numpy(), orbit.double().numpy()
    return np.array([[measure(x[i], gx[g, i]) for i in range(len(x))] for g in range(len(gx))])


def reduced(pairs: np.ndarray, reduction: str) -> Any:
    return {"mean": pairs.mean(), "element": pairs.mean(axis=1), "none": pairs.mean(axis=0)}[reduction]


def assert_close(actual: Tensor, expected: Any, dtype: torch.dtype, tolerance: dict[str, Any]) -> None:
    assert actual.dtype == dtype
    assert actual.shape == np.shape(expected)
    np.testing.assert_allclose(actual.numpy(), expected, **tolerance)


def kl_softmax(x: Any, gx: Any) -> float:
    return float(entropy(softmax(x), softmax(gx)))


def kl_sigmoid(x: Any, gx: Any) -> float:
    return float(sum(entropy([expit(a), expit(-a)], [expit(b), expit(-b)]) for a, b in zip(x, gx, strict=True)))


def cosine(x: Any, gx: Any) -> float:
    return float((x * gx).sum() / sqrt((x**2).sum() * (gx**2).sum()))


# Distributions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("activation", "divergence"), [("softmax", kl_softmax), ("sigmoid", kl_sigmoid)])
def test_distribution_invariance_is_the_divergence_from_the_untransformed_prediction(
    activation: Any, divergence: Any, reduction: Any, logits: Tensor, orbit_logits: Tensor, dtype: Any, tolerance: Any
) -> None:
    expected = reduced(pairwise(divergence, logits, orbit_logits), reduction)
    actual = distribution_invariance_error(logits, orbit_logits, activation=activation, reduction=reduction)
    assert_close(actual, expected, dtype, tolerance)


def test_the_untransformed_input_is_the_first_argument_of_the_divergence() -> None:
    logits, moved = torch.tensor([[log(9.0), 0.0]]).double(), torch.tensor([[[0.0, 0.0]]]).double()
    forward = 0.9 * log(0.9 / 0.5) + 0.1 * log(0.1 / 0.5)
    reverse = 0.5 * log(0.5 / 0.9) + 0.5 * log(0.5 / 0.1)
    assert distribution_invariance_error(logits, moved).item() == pytest.approx(forward, rel=1e-6)
    assert distribution_invariance_error(moved[0], logits[None]).item() == pytest.approx(reverse, rel=1e-6)
    assert abs(forward - reverse) > 0.1


def orbit_entropies(logits: Tensor, orbit_logits: Tensor, activation: str) -> tuple[np.ndarray, np.ndarray]:
    """Jensen-Shannon of each sample (B,), and each element's divergence from the orbit's mean (G, B)."""
    z = np.concatenate([logits.double().numpy()[None], orbit_logits.double().numpy()])
    divergences, parts = np.zeros(z.shape[1]), np.zeros(z[1:].shape[:2])
    for i in range(z.shape[1]):
        if activation == "softmax":
            outcomes = [softmax(z[:, i], axis=1)]
        else:
            outcomes = [np.stack([expit(z[:, i, c]), expit(-z[:, i, c])], axis=1) for c in range(z.shape[2])]
        for p in outcomes:
            divergences[i] += entropy(p.mean(axis=0)) - np.mean([entropy(row) for row in p])
            parts[:, i] += [entropy(row, p.mean(axis=0)) for row in p[1:]]
    return divergences, parts


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_jensen_shannon_is_the_entropy_of_the_mean_less_the_mean_entropy(
    activation: Any, reduction: Any, logits: Tensor, orbit_logits: Tensor, dtype: Any, tolerance: Any
) -> None:
    divergences, parts = orbit_entropies(logits, orbit_logits, activation)
    expected = {"mean": divergences.mean(), "element": parts.mean(axis=1), "none": divergences}[reduction]
    actual = jensen_shannon_invariance_error(logits, orbit_logits, activation=activation, reduction=reduction)
    assert_close(actual, expected, dtype, tolerance)


@pytest.mark.parametrize("elements", [1, 3, 7])
def test_jensen_shannon_of_predictions_that_never_agree_is_the_log_of_the_groups_order(
    elements: int, dtype: torch.dtype
) -> None:
    orbit = 1e4 * torch.eye(elements + 1, dtype=dtype)[:, None]
    actual = jensen_shannon_invariance_error(orbit[0], orbit[1:])
    assert actual.item() == pytest.approx(log(elements + 1), rel=1e-6)


def test_jensen_shannon_lies_between_0_and_the_log_of_the_groups_order(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    for scale in (1e-6, 1.0, 30.0, 1e4):
        orbit = scale * torch.randn(4, 200, 3, generator=generator, dtype=dtype)
        values = jensen_shannon_invariance_error(orbit[0], orbit[1:], reduction="none")
        assert (values >= 0).all()
        assert (values <= log(4) * (1 + 1e-6)).all()


# Logits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(CLASSES,), (1,), (2, 3, 4), (2, 1)])
def test_logit_invariance_is_half_the_squared_distance(
    shape: tuple[int, ...], reduction: Any, dtype: torch.dtype, tolerance: Any
) -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(SAMPLES, *shape, generator=generator, dtype=dtype)
    orbit = torch.randn(ELEMENTS, SAMPLES, *shape, generator=generator, dtype=dtype)
    half = reduced(pairwise(lambda x, gx: 0.5 * np.linalg.norm((x - gx).ravel()) ** 2, base, orbit), reduction)
    assert_close(logit_invariance_error(base, orbit, reduction=reduction), half, dtype, tolerance)
    relative = reduced(
        pairwise(lambda x, gx: np.linalg.norm((x - gx).ravel()) ** 2 / np.linalg.norm(x.ravel()) ** 2, base, orbit),
        reduction,
    )
    actual = logit_invariance_error(base, orbit, normalize="logits", reduction=reduction)
    assert_close(actual, relative, dtype, tolerance)


def test_logit_invariance_keeps_the_half_and_the_normalised_error_does_not() -> None:
    logits, orbit_logits = torch.tensor([[3.0, 4.0]]), torch.tensor([[[3.0, 1.0]]])
    assert logit_invariance_error(logits, orbit_logits).item() == pytest.approx(4.5)
    assert logit_invariance_error(logits, orbit_logits, normalize="logits").item() == pytest.approx(9 / 25)


# Saliency --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(6,), (1, 4, 4), (3, 2, 2, 2)])
def test_saliency_similarity_is_the_cosine(
    shape: tuple[int, ...], reduction: Any, dtype: torch.dtype, tolerance: Any
) -> None:
    generator = torch.Generator().manual_seed(4)
    maps = torch.randn(SAMPLES, *shape, generator=generator, dtype=dtype)
    orbit = maps + torch.randn(ELEMENTS, SAMPLES, *shape, generator=generator, dtype=dtype)
    expected = reduced(pairwise(cosine, maps, orbit), reduction)
    assert_close(saliency_invariance_similarity(maps, orbit, reduction=reduction), expected, dtype, tolerance)


def test_saliency_similarity_takes_the_extremes(dtype: torch.dtype) -> None:
    maps = torch.rand(4, 5, generator=torch.Generator().manual_seed(5), dtype=dtype) + 0.1
    values = saliency_invariance_similarity(maps, torch.stack([3 * maps, -0.2 * maps]), reduction="element")
    torch.testing.assert_close(values, torch.tensor([1.0, -1.0], dtype=dtype))
    assert values.abs().max() <= 1


@pytest.mark.parametrize("scale", [1e-30, 1e-42, 1e30])
def test_saliency_similarity_does_not_depend_on_the_size_of_the_gradients(scale: float) -> None:
    maps = torch.tensor([[1.0, 0.0]]) * scale
    orbit = torch.tensor([[[1.0, 1.0]]]) * scale
    assert saliency_invariance_similarity(maps, orbit).item() == pytest.approx(sqrt(0.5), rel=1e-3)


# Orbit share -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_orbit_share_is_the_within_part_of_the_total_variance(
    reduction: Any, logits: Tensor, orbit_logits: Tensor
) -> None:
    z = np.concatenate([logits.double().numpy()[None], orbit_logits.double().numpy()])
    z = z - z.mean(axis=2, keepdims=True)
    total = z.reshape(-1, CLASSES).var(axis=0).sum()
    deviations = np.array(
        [[np.sum((z[g, i] - z[:, i].mean(axis=0)) ** 2) for i in range(SAMPLES)] for g in range(ELEMENTS + 1)]
    )
    expected = {
        "mean": deviations.mean() / total,
        "element": deviations[1:].mean(axis=1) / total,
        "none": deviations.mean(axis=0) / total,
    }[reduction]
    assert_close(orbit_share(logits, orbit_logits, reduction=reduction), expected, torch.float32, {"rtol": 2e-6})


def test_orbit_share_closed_forms(dtype: torch.dtype) -> None:
    sides = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=dtype)
    # Depends on the orbit alone, on the pose alone (as far as it may), and half and half.
    assert orbit_share(sides, sides[None]).item() == 0
    small = 1e-4 * sides
    assert orbit_share(sides[:1] + small, -sides[None, :1] + small[None]).item() == pytest.approx(1, abs=1e-6)
    four = torch.tensor([[2.0, -2.0], [0.0, 0.0]], dtype=dtype)
    assert orbit_share(four, torch.tensor([[[0.0, 0.0], [-2.0, 2.0]]], dtype=dtype)).item() == pytest.approx(0.5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_orbit_share_of_one_output_takes_no_mean_out(
    shape: tuple[int, ...], reduction: Any, logits: Tensor, orbit_logits: Tensor
) -> None:
    base, orbit = logits[:, 0].reshape(-1, *shape), orbit_logits[..., 0].reshape(ELEMENTS, -1, *shape)
    z = np.concatenate([logits.double().numpy()[None, :, 0], orbit_logits.double().numpy()[..., 0]])
    deviations = (z - z.mean(axis=0)) ** 2
    expected = {
        "mean": deviations.mean() / z.var(),
        "element": deviations[1:].mean(axis=1) / z.var(),
        "none": deviations.mean(axis=0) / z.var(),
    }[reduction]
    assert_close(orbit_share(base, orbit, reduction=reduction), expected, torch.float32, {"rtol": 2e-6})


def test_orbit_share_of_one_output_closed_forms(dtype: torch.dtype) -> None:
    sides = torch.tensor([1.0, -1.0], dtype=dtype)
    assert orbit_share(sides, sides[None]).item() == 0  # the orbit alone
    # The pose alone, as far as it may: means 1e-3 and -1e-3, within 1.
    apart = 1e-3 * sides
    assert orbit_share(1 + apart, (apart - 1)[None]).item() == pytest.approx(1 / (1 + 1e-6), rel=1e-6)
    # Two logits z and -z hold what z alone does.
    z, gz = torch.tensor([3.0, 1.0, 0.0], dtype=dtype), torch.tensor([[1.0, -1.0, 4.0]], dtype=dtype)
    both = orbit_share(torch.stack([z, -z], dim=-1), torch.stack([gz, -gz], dim=-1))
    assert orbit_share(z, gz).item() == pytest.approx(both.item(), rel=1e-6)


# Relative to the variance between samples ------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (1,), (CLASSES,), (2, 3, 4)])
def test_the_relative_error_is_over_the_variance_between_samples(
    shape: tuple[int, ...], reduction: Any, dtype: torch.dtype, tolerance: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(9)
    base = torch.randn(SAMPLES, *shape, generator=generator, dtype=dtype)
    orbit = base + torch.randn(ELEMENTS, SAMPLES, *shape, generator=generator, dtype=dtype)
    half = reduced(pairwise(lambda x, gx: 0.5 * float(((x - gx) ** 2).sum()), base, orbit), reduction)
    expected = half / base.double().numpy().var(axis=0).sum()
    actual = relative_logit_invariance_error(base, orbit, reduction=reduction)
    assert_close(actual, expected, dtype, tolerance)


def test_the_relative_error_is_1_where_poses_differ_as_samples_do(dtype: torch.dtype) -> None:
    """Each sample against each other one, itself too: half their mean squared distance is the variance."""
    base = torch.randn(40, 3, generator=torch.Generator().manual_seed(10), dtype=dtype)
    others = torch.stack([base.roll(k, dims=0) for k in range(40)])
    assert relative_logit_invariance_error(base, others).item() == pytest.approx(1, rel=1e-6)


def test_the_relative_error_is_free_of_scale_and_shift() -> None:
    base, orbit = torch.tensor([1.0, 2.0, 4.0]).double(), torch.tensor([[2.0, 2.0, 4.0]]).double()
    expected = (0.5 / 3) / (14 / 9)  # the variance of 1, 2 and 4 is 21/3 - (7/3)²
    for scale, shift in ((1.0, 0.0), (1e-6, 5.0), (-3.0, 1e7)):
        value = relative_logit_invariance_error(scale * base + shift, scale * orbit + shift)
        assert value.item() == pytest.approx(expected, rel=1e-6)


# Predictions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_prediction_consistency_counts_equal_predictions(reduction: Any, logits: Tensor, orbit_logits: Tensor) -> None:
    pairs = pairwise(lambda x, gx: float(np.argmax(x) == np.argmax(gx)), logits, orbit_logits)
    assert 0 < pairs.mean() < 1
    actual = prediction_consistency(logits, orbit_logits, reduction=reduction)
    assert_close(actual, reduced(pairs, reduction), torch.float32, {"rtol": 1e-6})


@pytest.fixture
def target(logits: Tensor) -> Tensor:
    labels = logits.argmax(dim=1)
    labels[::3] = (labels[::3] + 1) % CLASSES
    return labels


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_orbit_accuracy_counts_right_predictions(
    reduction: Any, logits: Tensor, orbit_logits: Tensor, target: Tensor
) -> None:
    right = orbit_logits.numpy().argmax(axis=2) == target.numpy()
    assert 0 < right.mean() < 1
    actual = orbit_accuracy(logits, orbit_logits, target, reduction=reduction)
    assert_close(actual, reduced(right.astype(float), reduction), torch.float32, {"rtol": 1e-6})


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_worst_case_accuracy_counts_orbits_that_are_right_as_a_whole(
    reduction: Any, logits: Tensor, orbit_logits: Tensor, target: Tensor
) -> None:
    everything = torch.cat([logits[None], orbit_logits]).numpy().argmax(axis=2)
    right = np.array([float(all(everything[:, i] == int(target[i]))) for i in range(SAMPLES)])
    assert 0 < right.mean() < 1
    actual = orbit_accuracy(logits, orbit_logits, target, worst_case=True, reduction=reduction)
    assert_close(actual, right if reduction == "none" else right.mean(), torch.float32, {"rtol": 1e-6})


def test_only_the_worst_case_takes_the_identity_in() -> None:
    wrong, right, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[[0.0, 1.0]]]), torch.tensor([1])
    assert orbit_accuracy(wrong, right, target).item() == 1
    assert orbit_accuracy(wrong, right, target, worst_case=True).item() == 0


@pytest.mark.parametrize("integer", [torch.int32, torch.int64, torch.uint8])
def test_orbit_accuracy_takes_labels_of_any_integer_type(integer: torch.dtype) -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert orbit_accuracy(logits, logits[None], torch.tensor([0, 0], dtype=integer)).item() == 0.5


# The identity ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1, 3, 7])
def test_the_identity_is_never_counted(elements: int, dtype: torch.dtype) -> None:
    """An orbit whose moved members are all alike has the value of one of them, whatever the group's order."""
    base = torch.tensor([[1.0, 0.0, 0.5]], dtype=dtype)
    moved = torch.tensor([[0.0, 2.0, 0.5]], dtype=dtype)
    orbit = moved.expand(elements, 1, 3)
    x, gx = base[0].double().numpy(), moved[0].double().numpy()
    torch.testing.assert_close(saliency_invariance_similarity(base, orbit).item(), cosine(x, gx), atol=1e-6, rtol=0)
    torch.testing.assert_close(logit_invariance_error(base, orbit).item(), 2.5, atol=1e-6, rtol=0)
    torch.testing.assert_close(distribution_invariance_error(base, orbit).item(), kl_softmax(x, gx), atol=1e-6, rtol=0)
    assert prediction_consistency(base, orbit).item() == 0
    assert orbit_accuracy(base, orbit, torch.tensor([0])).item() == 0
