"""The metrics as torchmetrics: copies, merges, collections, plots, devices, samples left out."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from invariance_references import BY_ELEMENT, CASES, MEANS, NAMES_AND_REDUCTIONS, Batch, make_data, split, take
from torch import Tensor, nn
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

every = pytest.mark.parametrize(("name", "reduction"), NAMES_AND_REDUCTIONS)
each = pytest.mark.parametrize("name", CASES)


@pytest.fixture
def data() -> Batch:
    return make_data(24)


@pytest.fixture
def batches(data: Batch) -> list[Batch]:
    return list(split(data, [9, 2, 13]))


def assert_value(name: str, metric: Any, data: Batch, reduction: str = "mean") -> None:
    expected = CASES[name].expected(data, reduction)
    np.testing.assert_allclose(metric.compute().numpy(), expected, rtol=1e-6, atol=1e-7)


# Life of a metric ------------------------------------------------------------------------------------------------


@every
def test_a_copy_goes_on_alone(name: str, reduction: str, data: Batch, batches: list[Batch]) -> None:
    case = CASES[name]
    metric = case.feed(case.make(reduction=reduction), batches[:1])
    copies = [copy.deepcopy(metric), metric.clone(), pickle.loads(pickle.dumps(metric))]
    for each_copy in copies:
        assert_value(name, case.feed(each_copy, batches[1:]), data, reduction)
    assert_value(name, metric, batches[0], reduction)


@every
def test_a_reset_forgets(name: str, reduction: str, batches: list[Batch]) -> None:
    case = CASES[name]
    metric = case.feed(case.make(reduction=reduction), batches)
    metric.compute()
    metric.reset()
    assert_value(name, case.feed(metric, batches[:1]), batches[0], reduction)


def test_a_reset_takes_another_number_of_elements_and_classes() -> None:
    for name, case in CASES.items():
        metric = case.make(reduction="element" if case.by_element else "mean")
        case.feed(metric, [make_data(5)])
        metric.reset()
        other = make_data(6, elements=4, classes=5)
        assert_value(name, case.feed(metric, [other]), other, metric.reduction)


@every
def test_forward_gives_the_batchs_value_and_accumulates(
    name: str, reduction: str, data: Batch, batches: list[Batch]
) -> None:
    case = CASES[name]
    metric = case.make(reduction=reduction)
    for batch in batches:
        value = metric(**case.pick(batch))
        np.testing.assert_allclose(value.numpy(), case.expected(batch, reduction), rtol=1e-6, atol=1e-7)
    assert_value(name, metric, data, reduction)


@every
def test_updates_and_forwards_may_alternate(name: str, reduction: str, data: Batch, batches: list[Batch]) -> None:
    case = CASES[name]
    metric = case.make(reduction=reduction)
    case.feed(metric, batches[:1])
    metric(**case.pick(batches[1]))
    case.feed(metric, batches[2:])
    assert_value(name, metric, data, reduction)


@every
def test_a_merge_is_the_union(name: str, reduction: str, data: Batch, batches: list[Batch]) -> None:
    case = CASES[name]
    later = case.feed(case.make(reduction=reduction), batches[1:])
    # What comes in goes before what is there.
    later.merge_state(case.feed(case.make(reduction=reduction), batches[:1]))
    assert_value(name, later, data, reduction)


@every
def test_a_merge_with_an_empty_one_changes_nothing(
    name: str, reduction: str, data: Batch, batches: list[Batch]
) -> None:
    case = CASES[name]
    full = case.feed(case.make(reduction=reduction), batches)
    full.merge_state(case.make(reduction=reduction))
    assert_value(name, full, data, reduction)


@every
def test_an_empty_one_takes_what_it_is_merged_with(
    name: str, reduction: str, data: Batch, batches: list[Batch]
) -> None:
    case = CASES[name]
    empty = case.make(reduction=reduction)
    empty.merge_state(case.feed(case.make(reduction=reduction), batches))
    with warnings.catch_warnings():
        # torchmetrics counts only the updates of the metric itself.
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric", category=UserWarning)
        assert_value(name, empty, data, reduction)


@every
def test_an_empty_metric_is_nan(name: str, reduction: str) -> None:
    metric = CASES[name].make(reduction=reduction)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric", category=UserWarning)  # its own
        with pytest.warns(UserWarning, match="of no samples is undefined: NaN") as caught:
            value = metric.compute()
    assert len([warning for warning in caught if "of no samples" in str(warning.message)]) == 1
    assert value.isnan().all()
    assert value.numel() == (0 if reduction == "none" else 1)


@each
def test_an_empty_metric_has_no_error(name: str) -> None:
    with pytest.warns(UserWarning, match="no samples"):
        estimate = CASES[name].make().compute_with_error()
    assert estimate.value.isnan()
    assert estimate.standard_error.isnan()


@every
def test_a_batch_of_no_samples_adds_nothing(name: str, reduction: str, data: Batch, batches: list[Batch]) -> None:
    case = CASES[name]
    none = take(data, slice(0, 0))
    metric = case.feed(case.make(reduction=reduction), [none, batches[0], none, *batches[1:]])
    assert_value(name, metric, data, reduction)


# Modes and devices -----------------------------------------------------------------------------------------------


@every
def test_updates_in_and_out_of_inference_mode(name: str, reduction: str, data: Batch, batches: list[Batch]) -> None:
    case = CASES[name]
    metric = case.make(reduction=reduction)
    with torch.inference_mode():
        case.feed(metric, [{key: tensor.clone() for key, tensor in batches[0].items()}])
    case.feed(metric, batches[1:2])
    with torch.inference_mode():
        case.feed(metric, batches[2:])
    assert_value(name, metric, data, reduction)


@every
def test_a_reset_in_inference_mode_leaves_a_metric_that_works_outside(
    name: str, reduction: str, data: Batch, batches: list[Batch]
) -> None:
    case = CASES[name]
    metric = case.make(reduction=reduction)
    with torch.inference_mode():
        case.feed(metric, batches)
        metric.reset()
    case.feed(metric, batches)
    assert_value(name, metric, data, reduction)
    metric.reset()
    metric(**case.pick(batches[0]))
    assert_value(name, metric, batches[0], reduction)


@each
def test_no_gradient_is_kept(name: str, data: Batch) -> None:
    case = CASES[name]
    leaves = {key: x.requires_grad_() if x.is_floating_point() else x for key, x in case.pick(data).items()}
    metric = case.make()
    metric.update(**leaves)
    assert not any(state.requires_grad for state in metric.metric_state.values())


@each
def test_sums_stay_in_double_precision(name: str, data: Batch, batches: list[Batch]) -> None:
    case = CASES[name]
    metric = case.make()
    holder = nn.Module()
    holder.metric = metric
    for convert in (holder.half, holder.float, holder.bfloat16, holder.double):
        convert()
        assert all(state.dtype == torch.float64 for state in metric.metric_state.values())
    case.feed(holder.half().metric, batches)
    assert_value(name, metric, data)


@each
def test_sums_survive_a_module_that_is_cast_before_use(name: str, data: Batch, batches: list[Batch]) -> None:
    """Lightning's "bf16-true" casts the whole module with ``to``."""
    case = CASES[name]
    metric = case.make().to(torch.bfloat16)
    assert_value(name, case.feed(metric, batches), data)
    metric.reset()
    assert_value(name, case.feed(metric, batches), data)


@every
def test_states_move(name: str, reduction: str, batches: list[Batch]) -> None:
    case = CASES[name]
    metric = case.feed(case.make(reduction=reduction), batches).to("meta")
    states = [s for state in metric.metric_state.values() for s in (state if isinstance(state, list) else [state])]
    assert len(states) >= 1
    assert {state.device.type for state in states} == {"meta"}


@each
def test_states_are_named_after_the_measure_and_hold_no_parameters(name: str) -> None:
    metric = CASES[name].make()
    class_name = type(metric).__name__.lower()
    assert metric.metric_state
    assert all(state.replace("_", "").startswith(class_name) for state in metric.metric_state)
    assert len(metric.state_dict()) == 0
    assert not list(metric.parameters())


# Collections -----------------------------------------------------------------------------------------------------


def everything() -> MetricCollection:
    metrics = {f"{name}/{reduction}": CASES[name].make(reduction=reduction) for name, reduction in NAMES_AND_REDUCTIONS}
    return MetricCollection(metrics)


def test_all_metrics_in_one_collection(data: Batch, batches: list[Batch]) -> None:
    collection = everything()
    for batch in batches:
        collection.update(**batch)
    values = collection.compute()
    for name, reduction in NAMES_AND_REDUCTIONS:
        expected = CASES[name].expected(data, reduction)
        np.testing.assert_allclose(
            values[f"{name}/{reduction}"].numpy(), expected, rtol=1e-6, atol=1e-7, err_msg=f"{name} {reduction}"
        )


def test_metrics_that_agree_on_the_first_batch_stay_apart(data: Batch) -> None:
    """Compute groups are formed by comparing states after a batch: errors of 0 all look alike."""
    still = dict(data)
    still["orbit_logits"] = data["logits"].expand(2, -1, -1)
    still["orbit_saliency"] = data["saliency"].expand(2, -1, -1)
    still["target"] = data["logits"].argmax(dim=1)
    collection = everything()
    collection.update(**still)
    collection.update(**data)
    values = collection.compute()
    both = {key: torch.cat([still[key], data[key]], dim=int(key.startswith(BY_ELEMENT))) for key in data}
    for name, reduction in NAMES_AND_REDUCTIONS:
        expected = CASES[name].expected(both, reduction)
        np.testing.assert_allclose(
            values[f"{name}/{reduction}"].numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=f"{name} {reduction}"
        )


def test_errors_of_a_collection(data: Batch, batches: list[Batch]) -> None:
    collection = MetricCollection([LogitInvarianceError(), DistributionInvarianceError(), PredictionConsistency()])
    for batch in batches:
        collection.update(**batch)
    collection.compute()
    error = collection["DistributionInvarianceError"].compute_with_error().standard_error
    assert error.item() == pytest.approx(float(CASES["distribution"].standard_error(data, "mean")), rel=1e-5)


def test_forward_of_a_collection(batches: list[Batch]) -> None:
    collection = MetricCollection({name: CASES[name].make() for name in CASES})
    for batch in batches:
        values = collection(**batch)
        for name, case in CASES.items():
            np.testing.assert_allclose(values[name].numpy(), case.expected(batch, "mean"), rtol=1e-6, atol=1e-7)


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


@each
def test_plots(name: str, batches: list[Batch]) -> None:
    from matplotlib import pyplot as plt

    case = CASES[name]
    metric = case.make()
    values = [metric(**case.pick(batch)) for batch in batches]
    for drawn in (metric.plot(), metric.plot(values)):
        figure, axes = drawn
        assert isinstance(figure, plt.Figure)
        assert isinstance(axes, plt.Axes)
        plt.close(figure)
    _, given = plt.subplots()
    assert metric.plot(values[0], ax=given)[1] is given
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


@every
@pytest.mark.parametrize("strategy", ["warn", "ignore"])
def test_samples_that_are_not_finite_are_left_out(name: str, reduction: str, strategy: Any, data: Batch) -> None:
    case = CASES[name]
    metric = case.make(reduction=reduction, nan_strategy=strategy)
    case.feed(metric, split(spoilt(data, name), [5, 19]))
    if strategy == "warn":
        with pytest.warns(UserWarning, match="2 of 24 samples held NaN or infinite values and are left out"):
            actual = metric.compute()
    else:
        actual = metric.compute()
    if reduction == "none":
        assert actual.isnan().nonzero().flatten().tolist() == [3, 7]
        actual = actual[~actual.isnan()]
    np.testing.assert_allclose(actual.numpy(), case.expected(sound(data), reduction), rtol=1e-6, atol=1e-7)


@every
def test_samples_that_are_not_finite_may_be_an_error(name: str, reduction: str, data: Batch) -> None:
    case = CASES[name]
    metric = case.make(reduction=reduction, nan_strategy="error")
    case.feed(metric, split(spoilt(data, name), [5, 19]))
    with pytest.raises(RuntimeError, match="2 of 24 samples held NaN or infinite values"):
        metric.compute()
    assert_value(name, case.feed(case.make(reduction=reduction, nan_strategy="error"), [data]), data, reduction)


@pytest.mark.parametrize("name", MEANS)
def test_samples_that_are_left_out_have_no_part_in_the_error(name: str, data: Batch) -> None:
    case = CASES[name]
    metric = case.feed(case.make(nan_strategy="ignore"), [spoilt(data, name)])
    expected = float(case.standard_error(sound(data), "mean"))
    assert metric.compute_with_error().standard_error.item() == pytest.approx(expected, rel=1e-5)


@each
def test_nothing_but_nan(name: str, data: Batch) -> None:
    case = CASES[name]
    base = case.inputs[0]
    bad = dict(data)
    bad[base] = torch.full_like(data[base], torch.nan)
    metric = case.feed(case.make(nan_strategy="ignore"), [bad])
    with pytest.warns(UserWarning, match="of no samples is undefined"):
        assert metric.compute().isnan()


@pytest.mark.parametrize("reduction", ["mean", "element", "none"])
@pytest.mark.parametrize("name", ["normalized_logit", "saliency"])
def test_undefined_samples_are_counted_and_left_out(name: str, reduction: str, data: Batch) -> None:
    case = CASES[name]
    bad = {key: tensor.clone() for key, tensor in data.items()}
    for index in (3, 7):
        bad[case.inputs[0]][index] = 0
    metric = case.feed(case.make(reduction=reduction), split(bad, [5, 19]))
    with pytest.warns(UserWarning, match="undefined for 2 of 24 samples"):
        actual = metric.compute()
    if reduction == "none":
        assert actual.isnan().nonzero().flatten().tolist() == [3, 7]
        actual = actual[~actual.isnan()]
    np.testing.assert_allclose(actual.numpy(), case.expected(sound(data), reduction), rtol=1e-6)


def test_a_map_of_the_orbit_that_is_zero_leaves_the_sample_out_of_every_element(data: Batch) -> None:
    case = CASES["saliency"]
    bad = {key: tensor.clone() for key, tensor in data.items()}
    bad["orbit_saliency"][0, 3] = 0
    bad["orbit_saliency"][1, 7] = 0
    metric = case.feed(case.make(reduction="element"), [bad])
    with pytest.warns(UserWarning, match="undefined for 2 of 24 samples"):
        actual = metric.compute()
    np.testing.assert_allclose(actual.numpy(), case.expected(sound(data), "element"), rtol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "element", "none"])
def test_a_constant_output_has_no_share(reduction: Any) -> None:
    metric = OrbitShare(reduction=reduction)
    for size in (3, 9):
        metric.update(
            torch.tensor([[0.1, -3.0, 7.0]]).expand(size, 3), torch.tensor([0.1, -3.0, 7.0]).expand(2, size, 3)
        )
    with pytest.warns(UserWarning, match="orbit share is undefined"):
        value = metric.compute()
    assert value.isnan().all()
    assert value.shape == {"mean": (), "element": (2,), "none": (12,)}[reduction]


@pytest.mark.parametrize("reduction", ["mean", "element", "none"])
@pytest.mark.parametrize("value", [0.1, 0.0, 1e6])
def test_a_constant_output_has_no_relative_error(reduction: Any, value: float) -> None:
    metric = RelativeLogitInvarianceError(reduction=reduction)
    for size in (3, 9):
        metric.update(torch.full((size,), value), torch.full((2, size), value) + torch.rand(2, size))
    with pytest.warns(UserWarning, match="relative logit invariance error is undefined.*so NaN is returned"):
        result = metric.compute()
    assert result.isnan().all()
    assert result.shape == {"mean": (), "element": (2,), "none": (12,)}[reduction]


@pytest.mark.parametrize("make", [OrbitShare, RelativeLogitInvarianceError])
def test_one_finite_sample_has_no_variance(make: Any) -> None:
    metric = make()
    metric.update(torch.tensor([torch.nan, 2.0]), torch.ones(1, 2))
    with (
        pytest.warns(UserWarning, match="1 of 2 samples held NaN"),
        pytest.warns(UserWarning, match="fewer than two samples"),
    ):
        value, error = metric.compute_with_error()
    assert value.isnan()
    assert error.isnan()


@pytest.mark.parametrize("make", [OrbitShare, RelativeLogitInvarianceError])
@pytest.mark.parametrize("call", ["update", "forward"])
def test_another_number_of_outputs_is_refused(make: Any, call: str, data: Batch) -> None:
    metric = make()
    metric.update(data["logits"], data["orbit_logits"])
    with pytest.raises(ValueError, match=r"`logits` to have 3 .*, as those before, but got 1"):
        getattr(metric, call)(data["logits"][:, 0], data["orbit_logits"][..., 0])
    metric.reset()
    metric.update(data["logits"][:, 0], data["orbit_logits"][..., 0])
    metric.update(data["logits"][:, :1], data["orbit_logits"][..., :1])
    with pytest.raises(ValueError, match=r"`logits` to have one output a sample, as those before, but got 3"):
        getattr(metric, call)(data["logits"], data["orbit_logits"])


def test_a_label_that_is_no_class_counts_as_wrong() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    for metric in (OrbitAccuracy(), OrbitAccuracy(worst_case=True)):
        metric.update(logits, logits[None], torch.tensor([0, 255]))
        assert metric.compute().item() == 0.5


def test_dense_outputs_have_a_logit_error(data: Batch) -> None:
    base = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    metric = LogitInvarianceError()
    metric.update(base, base[None] + 0.5)
    assert metric.compute().item() == pytest.approx(0.5 * 18 * 0.25)


# Errors ----------------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "sum"}, r"`reduction` to be one of \['mean', 'element', 'none'\] but got 'sum'"),
        ({"nan_strategy": "drop"}, r"`nan_strategy` to be one of \['error', 'warn', 'ignore'\] but got 'drop'"),
        ({"sync": True}, "Unexpected keyword arguments: `sync`"),
    ],
)
def test_unknown_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CASES[name].make(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DistributionInvarianceError(activation="relu"), "`activation` to be one of"),  # type: ignore[arg-type]
        (lambda: JensenShannonInvarianceError(activation="relu"), "`activation` to be one of"),  # type: ignore[arg-type]
        (lambda: LogitInvarianceError(normalize="max"), "`normalize` to be one of"),  # type: ignore[arg-type]
        (lambda: OrbitAccuracy(worst_case=True, reduction="element"), "`reduction` to be 'mean' or 'none' with worst"),
    ],
)
def test_options_of_one_class(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@each
def test_shapes_are_checked_in_update(name: str, data: Batch) -> None:
    case = CASES[name]
    base, orbit = case.inputs[:2]
    wrong: list[tuple[Batch, str]] = [
        ({**data, orbit: data[orbit][:, :-1]}, f"`{orbit}` to have the shape"),
        ({**data, orbit: data[orbit][:0]}, f"`{orbit}` to have the shape"),
        ({**data, base: data[base].long()}, f"`{base}` to be a floating-point tensor"),
        ({**data, base: data[base][0, 0], orbit: data[orbit][:, 0, 0]}, f"`{base}` to have the shape"),
    ]
    for batch, message in wrong:
        with pytest.raises(ValueError, match=message):
            case.make().update(**case.pick(batch))


@pytest.mark.parametrize("name", ["distribution", "jensen_shannon", "consistency", "accuracy", "worst_accuracy"])
def test_a_single_logit_is_refused(name: str, data: Batch) -> None:
    case = CASES[name]
    for index in (slice(0, 1), 0):  # (B, 1) and (B,)
        one: dict[str, Tensor] = {key: tensor[..., index] for key, tensor in data.items()}
        one["target"] = data["target"]
        with pytest.raises(ValueError, match="a measure of classes, and the network gives one output a sample"):
            case.make().update(**case.pick(one))


def test_targets_are_checked_in_update(data: Batch) -> None:
    with pytest.raises(ValueError, match="`target` to hold 24 class indices"):
        OrbitAccuracy().update(data["logits"], data["orbit_logits"], data["target"][:5])
    with pytest.raises(ValueError, match="`target` to hold 24 class indices"):
        OrbitAccuracy().update(data["logits"], data["orbit_logits"], data["target"].float())
