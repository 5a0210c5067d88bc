"""The metrics as torchmetrics: copies, merges, collections, plots, devices, samples left out."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import matplotlib as mpl
import pytest
import torch
from measures import CASES, JACKKNIFED, MEANS, NAMES_AND_REDUCTIONS, Batch, joined, make_data, split, take
from oracles import assert_values
from torch import nn
from torchmetrics import MetricCollection

from lightning_invariance.metrics import (
    DistributionInvarianceError,
    JensenShannonInvarianceError,
    LogitInvarianceError,
    OrbitAccuracy,
    OrbitShare,
    PredictionConsistency,
    RelativeLogitInvarianceError,
    SaliencyInvarianceSimilarity,
    Selectivity,
)

mpl.use("Agg")

each = pytest.mark.parametrize("name", CASES)
every = pytest.mark.parametrize(("name", "reduction"), NAMES_AND_REDUCTIONS)


@pytest.fixture
def data() -> Batch:
    return make_data(24)


@pytest.fixture
def batches(data: Batch) -> list[Batch]:
    return list(split(data, [9, 2, 13]))


def assert_value(name: str, metric: Any, data: Batch, reduction: str = "mean") -> None:
    assert_values(metric.compute(), CASES[name].expected(data, reduction), rtol=1e-6, atol=1e-7)


# Life of a metric ------------------------------------------------------------------------------------------------


@every
def test_copies_go_on_alone_and_a_reset_forgets(name: str, reduction: str, data: Batch, batches: list[Batch]) -> None:
    case = CASES[name]
    metric = case.feed(case.make(reduction=reduction), batches[:1])
    for copied in (copy.deepcopy(metric), metric.clone(), pickle.loads(pickle.dumps(metric))):
        assert_value(name, case.feed(copied, batches[1:]), data, reduction)
    assert_value(name, metric, batches[0], reduction)
    metric.reset()
    assert_value(name, case.feed(metric, batches[1:2]), batches[1], reduction)
    metric.reset()
    other = make_data(6, elements=4, classes=5)  # another number of elements and classes
    assert_value(name, case.feed(metric, [other]), other, reduction)


@every
def test_forward_gives_the_batchs_value_and_accumulates(
    name: str, reduction: str, data: Batch, batches: list[Batch]
) -> None:
    case = CASES[name]
    called, mixed = case.make(reduction=reduction), case.make(reduction=reduction)
    for number, batch in enumerate(batches):
        value = called(**case.pick(batch))
        assert_values(value, case.expected(batch, reduction), rtol=1e-6, atol=1e-7)
        mixed(**case.pick(batch)) if number == 1 else mixed.update(**case.pick(batch))
    assert_value(name, called, data, reduction)
    assert_value(name, mixed, data, reduction)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # which counts only its own updates
@every
def test_a_merge_is_the_union(name: str, reduction: str, data: Batch, batches: list[Batch]) -> None:
    case = CASES[name]

    def fed(some: list[Batch]) -> Any:
        return case.feed(case.make(reduction=reduction), some)

    for there, coming in ((batches[1:], batches[:1]), (batches, []), ([], batches)):
        metric = fed(there)
        metric.merge_state(fed(coming))  # what comes in goes before what is there
        assert_value(name, metric, data, reduction)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@every
def test_an_empty_metric_is_nan(name: str, reduction: str, data: Batch, batches: list[Batch]) -> None:
    case = CASES[name]
    for compute in ("compute", "compute_with_error") if reduction == "mean" else ("compute",):
        with pytest.warns(UserWarning, match="of no samples is undefined: NaN") as caught:
            value = getattr(case.make(reduction=reduction), compute)()
        assert len(caught) - sum("``compute``" in str(each.message) for each in caught) == 1
        parts = [value] if compute == "compute" else value
        assert all(part.isnan().all() for part in parts)
        assert all(part.numel() == (0 if reduction == "none" else 1) for part in parts)
    none = take(data, slice(0, 0))
    metric = case.feed(case.make(reduction=reduction), [none, batches[0], none, *batches[1:]])
    assert_value(name, metric, data, reduction)


# Modes and devices -----------------------------------------------------------------------------------------------


@every
def test_inference_mode_may_come_and_go(name: str, reduction: str, data: Batch, batches: list[Batch]) -> None:
    case = CASES[name]
    metric = case.make(reduction=reduction)
    for _ in range(2):
        with torch.inference_mode():
            case.feed(metric, [{key: tensor.clone() for key, tensor in batches[0].items()}])
        case.feed(metric, batches[1:2])
        with torch.inference_mode():
            case.feed(metric, batches[2:])
            assert_value(name, metric, data, reduction)
            metric.reset()
    metric(**case.pick(batches[0]))
    assert_value(name, metric, batches[0], reduction)
    states = [
        s for state in metric.to("meta").metric_state.values() for s in (state if isinstance(state, list) else [state])
    ]
    assert {state.device.type for state in states} == {"meta"}


@each
def test_sums_stay_in_double_precision_without_a_gradient(name: str, data: Batch, batches: list[Batch]) -> None:
    case = CASES[name]
    metric = case.make()
    holder = nn.Module()
    holder.metric = metric
    for convert in (holder.half, holder.float, holder.bfloat16, holder.double):
        convert()
        assert all(state.dtype == torch.float64 for state in metric.metric_state.values())
    case.feed(holder.half().metric, batches)
    assert_value(name, metric, data)
    # Lightning's "bf16-true" casts the whole module with `to`.
    metric = case.make().to(torch.bfloat16)
    for _ in range(2):
        leaves = [{key: x.requires_grad_() if x.is_floating_point() else x for key, x in b.items()} for b in batches]
        assert_value(name, case.feed(metric, leaves), {key: x.detach() for key, x in data.items()})
        assert not any(state.requires_grad for state in metric.metric_state.values())
        metric.reset()


@each
def test_states_are_named_after_the_measure_and_hold_no_parameters(name: str) -> None:
    metric = CASES[name].make()
    class_name = type(metric).__name__.lower()
    assert metric.metric_state
    assert all(state.replace("_", "").startswith(class_name) for state in metric.metric_state)
    assert len(metric.state_dict()) == 0
    assert not list(metric.parameters())


# Collections -----------------------------------------------------------------------------------------------------


def test_all_metrics_in_one_collection(data: Batch, batches: list[Batch]) -> None:
    """Compute groups are formed by comparing states after a batch: errors of 0 all look alike."""
    still = dict(data)
    still["orbit_logits"] = data["logits"].expand(2, -1, -1)
    still["orbit_saliency"] = data["saliency"].expand(2, -1, -1)
    still["target"] = data["logits"].argmax(dim=1)
    for fed in (batches, [still, data]):
        metrics = {
            f"{name}/{reduction}": CASES[name].make(reduction=reduction) for name, reduction in NAMES_AND_REDUCTIONS
        }
        collection = MetricCollection(metrics)
        for batch in fed:
            collection.update(**batch)
        values, whole = collection.compute(), joined(fed)
        for name, reduction in NAMES_AND_REDUCTIONS:
            expected = CASES[name].expected(whole, reduction)
            assert_values(values[f"{name}/{reduction}"], expected, rtol=1e-5, atol=1e-6)
        for name in MEANS:
            error = collection[f"{name}/mean"].compute_with_error().standard_error
            assert_values(error, CASES[name].standard_error(whole, "mean"), rtol=1e-4)


def test_forward_of_a_collection(batches: list[Batch]) -> None:
    collection = MetricCollection({name: CASES[name].make() for name in CASES})
    for batch in batches:
        values = collection(**batch)
        for name, case in CASES.items():
            assert_values(values[name], case.expected(batch, "mean"), rtol=1e-6, atol=1e-7)


# What torchmetrics asks of a class -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "higher", "bounds"),
    [
        (LogitInvarianceError, False, (0.0, None)),
        (DistributionInvarianceError, False, (0.0, None)),
        (JensenShannonInvarianceError, False, (0.0, None)),
        (OrbitShare, False, (0.0, 1.0)),
        (RelativeLogitInvarianceError, False, (0.0, None)),
        (SaliencyInvarianceSimilarity, True, (-1.0, 1.0)),
        (Selectivity, False, (0.0, None)),
        (PredictionConsistency, True, (0.0, 1.0)),
        (OrbitAccuracy, True, (0.0, 1.0)),
    ],
)
def test_which_way_is_better(metric: Any, higher: bool, bounds: tuple[float, float | None]) -> None:
    assert metric.higher_is_better is higher
    assert (metric.plot_lower_bound, metric.plot_upper_bound) == bounds


def test_plots(batches: list[Batch]) -> None:
    from matplotlib import pyplot as plt

    for case in CASES.values():
        metric = case.make()
        values = [metric(**case.pick(batch)) for batch in batches]
        for figure, axes in (metric.plot(), metric.plot(values)):
            assert isinstance(figure, plt.Figure)
            assert isinstance(axes, plt.Axes)
        assert metric.plot(values[0], ax=axes)[1] is axes
        plt.close("all")


# Samples left out ------------------------------------------------------------------------------------------------


def spoilt(data: Batch, name: str) -> Batch:
    """Sample 3 has NaN in its base, sample 7 infinity in its orbit."""
    base, orbit = CASES[name].inputs[:2]
    bad = {key: tensor.clone() for key, tensor in data.items()}
    bad[base][3, 0] = torch.nan
    bad[orbit][1, 7, 2] = torch.inf
    return bad


def sound(data: Batch) -> Batch:
    return take(data, [i for i in range(24) if i not in (3, 7)])


def assert_left_out(name: str, reduction: str, value: torch.Tensor, data: Batch) -> None:
    if reduction == "none":
        assert value.isnan().nonzero().flatten().tolist() == [3, 7]
        value = value[~value.isnan()]
    assert_values(value, CASES[name].expected(sound(data), reduction), rtol=1e-6, atol=1e-7)


@every
def test_samples_that_are_not_finite_are_left_out_or_an_error(name: str, reduction: str, data: Batch) -> None:
    case, held = CASES[name], "2 of 24 samples held NaN or infinite values"
    parts = list(split(spoilt(data, name), [5, 19]))
    warned, ignored, error = (
        case.feed(case.make(reduction=reduction, nan_strategy=strategy), parts)
        for strategy in ("warn", "ignore", "error")
    )
    with pytest.warns(UserWarning, match=f"{held} and are left out"):
        assert_left_out(name, reduction, warned.compute(), data)
    assert_left_out(name, reduction, ignored.compute(), data)
    with pytest.raises(RuntimeError, match=held):
        error.compute()
    error.reset()
    assert_value(name, case.feed(error, [data]), data, reduction)
    if reduction == "mean" and name not in JACKKNIFED:
        expected = case.standard_error(sound(data), "mean")
        assert_values(ignored.compute_with_error().standard_error, expected, rtol=1e-5)
    if reduction == "mean":
        nothing = {**data, case.inputs[0]: torch.full_like(data[case.inputs[0]], torch.nan)}
        ignored.reset()
        with pytest.warns(UserWarning, match="of no samples is undefined"):
            assert case.feed(ignored, [nothing]).compute().isnan()


@pytest.mark.parametrize("name", ["normalized_logit", "saliency"])
def test_undefined_samples_are_counted_and_left_out(name: str, data: Batch) -> None:
    case = CASES[name]
    bad = {key: tensor.clone() for key, tensor in data.items()}
    bad[case.inputs[0]][3] = 0
    # A map of the orbit leaves its sample out of every element.
    bad["orbit_saliency"][1, 7] = 0
    bad["logits"][7] = 0
    for reduction in case.reductions:
        metric = case.feed(case.make(reduction=reduction), split(bad, [5, 19]))
        with pytest.warns(UserWarning, match="undefined for 2 of 24 samples"):
            assert_left_out(name, reduction, metric.compute(), data)


def test_a_constant_output_has_neither_share_nor_relative_error() -> None:
    for reduction, shape in {"mean": (), "element": (2,), "none": (12,)}.items():
        share, relative = (make(reduction=reduction) for make in (OrbitShare, RelativeLogitInvarianceError))
        for size in (3, 9):
            logits = torch.tensor([[0.1, -3.0, 7.0]]).expand(size, 3)
            share.update(logits, logits.expand(2, size, 3))
            relative.update(logits, logits + torch.rand(2, size, 3))
        for metric, what in ((share, "orbit share"), (relative, "relative logit invariance error")):
            with pytest.warns(UserWarning, match=f"{what} is undefined.*so NaN is returned"):
                value = metric.compute()
            assert value.isnan().all()
            assert value.shape == shape


@pytest.mark.parametrize("make", [OrbitShare, RelativeLogitInvarianceError])
def test_one_finite_sample_has_no_variance(make: Any) -> None:
    metric = make()
    metric.update(torch.tensor([torch.nan, 2.0]), torch.ones(1, 2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert all(part.isnan() for part in metric.compute_with_error())
    texts = " ".join(str(each.message) for each in caught)
    assert "1 of 2 samples held NaN" in texts
    assert "fewer than two samples" in texts


@pytest.mark.parametrize("make", [OrbitShare, RelativeLogitInvarianceError])
@pytest.mark.parametrize("call", ["update", "forward"])
def test_another_number_of_outputs_is_refused(make: Any, call: str, data: Batch) -> None:
    metric = make()
    single = data["logits"][:, 0], data["orbit_logits"][..., 0]
    metric.update(data["logits"], data["orbit_logits"])
    with pytest.raises(ValueError, match=r"`logits` to have 3 .*, as those before, but got 1"):
        getattr(metric, call)(*single)
    metric.reset()
    metric.update(*single)
    metric.update(data["logits"][:, :1], data["orbit_logits"][..., :1])
    with pytest.raises(ValueError, match=r"`logits` to have one output a sample, as those before, but got 3"):
        getattr(metric, call)(data["logits"], data["orbit_logits"])
