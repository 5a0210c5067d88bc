"""Arguments that the measures refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
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

LABELS = torch.tensor([0, 2])


def accuracy(logits: Any, orbit_logits: Any, **options: Any) -> Tensor:
    return orbit_accuracy(logits, orbit_logits, LABELS, **options)


ALL: list[tuple[Callable[..., Tensor], str]] = [
    (distribution_invariance_error, "logits"),
    (jensen_shannon_invariance_error, "logits"),
    (logit_invariance_error, "logits"),
    (orbit_share, "logits"),
    (relative_logit_invariance_error, "logits"),
    (prediction_consistency, "logits"),
    (accuracy, "logits"),
    (saliency_invariance_similarity, "saliency"),
]
every = pytest.mark.parametrize(("measure", "name"), ALL)
of_classes = pytest.mark.parametrize(
    "measure",
    [distribution_invariance_error, jensen_shannon_invariance_error, prediction_consistency, accuracy],
)
BASE, ORBIT = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 3.0]]), torch.ones(2, 2, 3)


@every
@pytest.mark.parametrize("wrong", [[[1.0, 0.0]], torch.ones(2, 3, dtype=torch.int64), None])
def test_the_base_must_be_floating_point(measure: Any, name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` to be a floating-point tensor"):
        measure(wrong, ORBIT)


@every
@pytest.mark.parametrize("wrong", [[[1.0, 0.0]], torch.ones(2, 2, 3, dtype=torch.bool), None])
def test_the_orbit_must_be_floating_point(measure: Any, name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"`orbit_{name}` to be a floating-point tensor"):
        measure(BASE, wrong)


@every
def test_the_base_must_have_a_batch(measure: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` to have the shape \(B, \.\.\.\)"):
        measure(torch.ones(()), torch.ones(2))


@every
def test_one_number_a_sample_is_refused_but_by_measures_of_a_regression(measure: Any, name: str) -> None:
    base, orbit = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    # ½ (0 + 4) / 4 pairs; over a variance of 1/4; means 5/3 and 2, within (8/9 + 0) / 2 = 4/9, between 1/36
    values = {logit_invariance_error: 0.5, relative_logit_invariance_error: 2.0, orbit_share: 16 / 17}
    if measure in values:
        assert measure(base, orbit).item() == pytest.approx(values[measure], rel=1e-6)
    else:
        with pytest.raises(ValueError, match=rf"`{name}` to have the shape \(B, (C|\.\.\.)\)"):
            measure(base, orbit)


@every
@pytest.mark.parametrize("shape", [(2, 3), (0, 2, 3), (2, 1, 3), (2, 3, 3), (2, 2, 4), (2, 2, 1, 3)])
def test_the_orbit_must_match_the_base(measure: Any, name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"`orbit_{name}` to have the shape \(G, 2, 3\).*got \({shape[0]}"):
        measure(BASE, torch.ones(shape))


@every
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(measure: Any, name: str, value: float) -> None:
    base, orbit = BASE.clone(), ORBIT.clone()
    base[1, 2] = value
    with pytest.raises(ValueError, match=f"`{name}` to be finite but got 1 NaN or infinite of 6 values"):
        measure(base, ORBIT)
    orbit[0, 1] = value
    with pytest.raises(ValueError, match=f"`orbit_{name}` to be finite but got 3 NaN or infinite of 12 values"):
        measure(BASE, orbit)


@every
@pytest.mark.parametrize("wrong", ["sum", None, "Mean"])
def test_an_unknown_reduction_is_refused(measure: Any, name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"`reduction` to be one of \['mean', 'element', 'none'\]"):
        measure(BASE, ORBIT, reduction=wrong)


@of_classes
def test_one_class_is_no_distribution(measure: Any) -> None:
    reason = r"C of at least 2 but got \({}\): this is a measure of classes, and the network gives one output a sample"
    with pytest.raises(ValueError, match=reason.format("2, 1")):
        measure(BASE[:, :1], ORBIT[..., :1])
    with pytest.raises(ValueError, match=reason.format("2,")):
        measure(BASE[:, 0], ORBIT[..., 0])


@pytest.mark.parametrize(
    "measure",
    [distribution_invariance_error, jensen_shannon_invariance_error, orbit_share, prediction_consistency, accuracy],
)
def test_dense_outputs_have_no_classes(measure: Any) -> None:
    with pytest.raises(ValueError, match=r"`logits` to have the shape \(B, C\)"):
        measure(BASE[..., None], ORBIT[..., None])


@pytest.mark.parametrize("measure", [distribution_invariance_error, jensen_shannon_invariance_error])
def test_options_of_the_divergences(measure: Any) -> None:
    with pytest.raises(ValueError, match=r"`activation` to be one of \['softmax', 'sigmoid'\] but got 'relu'"):
        measure(BASE, ORBIT, activation="relu")
    with pytest.raises(ValueError, match="a single logit is a probability under activation='sigmoid'"):
        measure(BASE[:, :1], ORBIT[..., :1])
    assert measure(BASE[:, :1], ORBIT[..., :1], activation="sigmoid") > 0
    with pytest.raises(ValueError, match=r"give a single logit the shape \(B, 1\)"):
        measure(BASE[:, 0], ORBIT[..., 0], activation="sigmoid")
    with pytest.raises(ValueError, match="with C of at least 1"):
        measure(BASE[:, :0], ORBIT[..., :0], activation="sigmoid")


@pytest.mark.parametrize("wrong", ["saliency", True, "Logits"])
def test_an_unknown_normalisation_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"`normalize` to be one of \[None, 'logits'\]"):
        logit_invariance_error(BASE, ORBIT, normalize=wrong)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([0, 1], "`target` to hold 2 class indices, one a sample, but got list"),
        (torch.tensor([0.0, 1.0]), "but got shape .2,. of torch.float32"),
        (torch.tensor([0]), r"but got shape \(1,\)"),
        (torch.tensor([[0], [1]]), r"but got shape \(2, 1\)"),
        (torch.tensor([0, 3]), "classes from 0 to 2 but got values from 0 to 3"),
        (torch.tensor([-1, 1]), "classes from 0 to 2 but got values from -1 to 1"),
    ],
)
@pytest.mark.parametrize("worst_case", [False, True])
def test_a_target_that_is_no_class_is_refused(target: Any, message: str, worst_case: bool) -> None:
    with pytest.raises(ValueError, match=message):
        orbit_accuracy(BASE, ORBIT, target, worst_case=worst_case)


def test_the_worst_case_has_no_value_for_each_element() -> None:
    with pytest.raises(ValueError, match="`reduction` to be 'mean' or 'none' with worst_case=True"):
        orbit_accuracy(BASE, ORBIT, LABELS, worst_case=True, reduction="element")


def test_options_are_given_by_name() -> None:
    with pytest.raises(TypeError):
        distribution_invariance_error(BASE, ORBIT, "sigmoid")  # type: ignore[misc]
