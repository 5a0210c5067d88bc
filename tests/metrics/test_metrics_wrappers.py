"""What torchmetrics wraps a metric in: either the wrapper's own value, from the formula, or a refusal."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from measures import CASES, NAMES_AND_REDUCTIONS, Batch, joined, make_data, split
from torchmetrics import Metric, MetricCollection, MetricTracker
from torchmetrics.wrappers import BootStrapper, ClasswiseWrapper, MinMaxMetric, Running

import lightning_invariance as li
from lightning_invariance.metrics import BaseAccuracy

METRICS = [
    each for each in vars(li).values() if inspect.isclass(each) and issubclass(each, Metric) and each is not li.PerClass
]
#: Those whose inputs have the samples in the first dimension, all of them.
SAMPLES_FIRST = (BaseAccuracy, li.JacobianSpectralNorm)


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    return list(split(make_data(60), [25, 15, 20]))


@pytest.mark.parametrize("metric", METRICS)
def test_each_says_what_torchmetrics_asks(metric: type[Metric]) -> None:
    by_class = li.PerClass(metric())
    for each in (metric, by_class):
        assert isinstance(each.higher_is_better, bool)
        assert each.full_state_update is False or each is by_class
        assert not each.is_differentiable
        assert isinstance(each.plot_lower_bound, float)
        assert each.plot_upper_bound is None or each.plot_upper_bound > each.plot_lower_bound
    assert by_class.higher_is_better == metric.higher_is_better


@pytest.mark.parametrize("name", CASES)
def test_tracker(name: str, batches: list[Batch]) -> None:
    case = CASES[name]
    tracker = MetricTracker(case.make())
    for batch in batches:
        tracker.increment()
        case.feed(tracker, [batch])
    expected = np.array([case.expected(batch, "mean") for batch in batches])
    best = expected.argmax() if case.make().higher_is_better else expected.argmin()
    value, step = tracker.best_metric(return_step=True)
    assert step == best
    assert value == pytest.approx(float(expected[best]), rel=1e-5)


def test_tracker_of_a_collection(batches: list[Batch]) -> None:
    names = ["share", "consistency"]
    tracker = MetricTracker(MetricCollection({name: CASES[name].make() for name in names}))
    for batch in batches:
        tracker.increment()
        tracker.update(**batch)
    best = tracker.best_metric()
    expected = {name: [float(CASES[name].expected(batch, "mean")) for batch in batches] for name in names}
    assert best == pytest.approx({"share": min(expected["share"]), "consistency": max(expected["consistency"])})


@pytest.mark.parametrize(("name", "reduction"), NAMES_AND_REDUCTIONS)
def test_running(name: str, reduction: str, batches: list[Batch]) -> None:
    case = CASES[name]
    running = case.feed(Running(case.make(reduction=reduction), window=2), batches)
    expected = case.expected(joined(batches[1:]), reduction)
    found = running.compute().numpy()
    if reduction == "none":  # a window begins anywhere
        found, expected = np.sort(found), np.sort(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_min_max(name: str, batches: list[Batch]) -> None:
    case = CASES[name]
    wrapped, found = MinMaxMetric(case.make()), {}
    for batch in batches:
        case.feed(wrapped, [batch])
        found = wrapped.compute()
    so_far = [float(case.expected(joined(batches[: count + 1]), "mean")) for count in range(len(batches))]
    expected = {"raw": so_far[-1], "min": min(so_far), "max": max(so_far)}
    assert {key: float(value) for key, value in found.items()} == pytest.approx(expected, rel=1e-5)


def test_classwise_names_the_elements(batches: list[Batch]) -> None:
    case = CASES["share"]
    labels = ["rot90", "rot180"]
    wrapped = case.feed(ClasswiseWrapper(case.make(reduction="element"), labels=labels, prefix="share_"), batches)
    expected = dict(zip(["share_rot90", "share_rot180"], case.expected(joined(batches), "element"), strict=True))
    assert {key: float(value) for key, value in wrapped.compute().items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("metric", [each for each in METRICS if each not in SAMPLES_FIRST])
@pytest.mark.parametrize("sampling", ["poisson", "multinomial"])
def test_what_a_bootstrap_would_draw_from_wrongly_is_refused(metric: type[Metric], sampling: str) -> None:
    """It draws from the first dimension, that of the elements: of as many elements as samples, without complaint."""
    for wrong in (metric(), li.PerClass(metric())):
        with pytest.raises(ValueError, match=r"`base_metric` of BootStrapper .* 'orbit_.*|'lie_derivative'"):
            BootStrapper(wrong, sampling_strategy=sampling)
    copy.deepcopy(metric())  # by anybody else it may be copied


@pytest.mark.parametrize("metric", SAMPLES_FIRST)
def test_the_error_of_a_bootstrap_is_the_standard_error(metric: type[Any]) -> None:
    data = make_data(200)
    inputs = {"logits": data["logits"], "target": data["target"], "spectral_norms": data["logits"].norm(dim=1)}
    taken = {name: inputs[name] for name in inspect.signature(metric().update).parameters if name in inputs}
    torch.manual_seed(0)
    wrapped, alone = BootStrapper(metric(), num_bootstraps=200, sampling_strategy="multinomial"), metric()
    wrapped.update(**taken)
    alone.update(**taken)
    assert float(wrapped.compute()["std"]) == pytest.approx(float(alone.compute_with_error().standard_error), rel=0.2)
