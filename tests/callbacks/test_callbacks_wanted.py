"""Measures that were asked for and cannot be computed, and what is left out where none was named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Classifier, loader, trainer_for
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import (
    C4,
    DistributionInvarianceError,
    InvarianceMonitor,
    OrbitAccuracy,
    SensitivityMonitor,
    TimeReversal,
)


class Steps(Classifier):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        x = batch["image"] if isinstance(batch, dict) else batch[0]
        return self(x).sum()


UNLABELLED: dict[str, tuple[Any, str]] = {
    "another name": (lambda x, y: {"image": x, "cls": y}, "the batch has no entry called label, labels, target"),
    "one-hot": (lambda x, y: (x, F.one_hot(y, 3)), r"the batch\[1\] is a tensor \(4, 3\) of int64"),
    "float": (lambda x, y: (x, y.float()), r"the batch\[1\] is a tensor \(4,\) of float32"),
    "a mask": (lambda x, y: {"image": x, "target": x[0].long()}, r"the batch\['target'\] is a tensor \(4, 4, 4\)"),
    "three parts": (lambda x, y: (x, y, y), "the batch is no pair and no mapping"),
}


@pytest.mark.parametrize(("pack", "where"), UNLABELLED.values(), ids=UNLABELLED)
@pytest.mark.parametrize("measures", [["worst_case_orbit_accuracy"], {"mine": OrbitAccuracy()}], ids=["name", "metric"])
def test_accuracies_that_were_asked_for_without_labels_are_an_error(pack: Any, where: str, measures: Any) -> None:
    monitor = InvarianceMonitor(C4(), measures=measures)
    with pytest.raises(ValueError, match=f"expected labels for .* but found none: {where}.*`target=`"):
        trainer_for([monitor]).validate(Steps(), loader(8, pack=pack), verbose=False)


def test_labels_that_are_named_are_found() -> None:
    monitor = InvarianceMonitor(C4(), measures=["worst_case_orbit_accuracy"], target="cls")
    data = loader(8, pack=lambda x, y: {"image": x, "cls": y})
    trainer_for([monitor]).validate(Steps(), data, verbose=False)
    assert set(monitor.history[0].measures) == {"worst_case_orbit_accuracy"}


def test_maps_that_were_asked_for_and_are_computed_for_no_sample_are_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"`saliency_samples` to be at least 1 for \['saliency_invariance_similarity'\]"
    ):
        InvarianceMonitor(C4(), measures=["saliency_invariance_similarity"], saliency_samples=0)


def test_maps_of_dense_outputs_and_of_whole_numbers_are_an_error_if_asked_for() -> None:
    class Dense(Steps):
        def __init__(self) -> None:
            super().__init__(lambda: nn.Conv1d(1, 2, 1))

    monitor = InvarianceMonitor(TimeReversal(), measures=["saliency_invariance_similarity"])
    series = loader(8, pack=lambda x, y: (x.flatten()[None], y))
    trainer = trainer_for([monitor])
    with (
        pytest.warns(UserWarning, match="moves in the input"),
        pytest.raises(ValueError, match=r"logits of shape \(4, classes\) or \(4,\) for saliency"),
    ):
        trainer.validate(Dense(), series, verbose=False)

    class Tokens(Steps):
        def __init__(self) -> None:
            super().__init__(lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(64, 3)))

    monitor = InvarianceMonitor(TimeReversal(), measures=["saliency_invariance_similarity"])
    tokens = loader(8, pack=lambda x, y: (x.flatten().argsort().clamp_max(8), y))
    trainer = trainer_for([monitor])
    with pytest.raises(ValueError, match=r"`x` to be floating point, to have a gradient, but got torch\.int64"):
        trainer.validate(Tokens(), tokens, verbose=False)


CLASS_MEASURES = (
    "distribution_invariance_error",
    "jensen_shannon_invariance_error",
    "prediction_consistency",
    "orbit_accuracy",
)


@pytest.mark.parametrize("measure", CLASS_MEASURES)
def test_measures_of_classes_refuse_a_regression_and_say_why(measure: str) -> None:
    class Regression(Steps):
        def __init__(self) -> None:
            super().__init__(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 1)))

    monitor = InvarianceMonitor(C4(), measures=[measure])
    with pytest.raises(ValueError, match="this is a measure of classes, and the network gives one output a sample"):
        trainer_for([monitor]).validate(Regression(), loader(8), verbose=False)


def test_a_metric_for_other_labels_may_be_there_beside_unlabelled_ones() -> None:
    measures = {"multi": DistributionInvarianceError(activation="sigmoid")}
    monitor = InvarianceMonitor(C4(), measures=measures)
    trainer_for([monitor]).validate(Steps(), loader(8, pack=lambda x, y: (x, F.one_hot(y, 3).float())), verbose=False)
    assert set(monitor.history[0].measures) == {"multi"}


def test_an_argument_of_the_network_is_not_taken_for_its_labels() -> None:
    """The second part of the batch is one integer a sample, and goes into the network."""

    class Conditional(Classifier):
        def forward(self, x: Tensor, kind: Tensor) -> Tensor:
            return self.model(x) + kind[:, None]

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return self(*batch).sum()

    monitor = InvarianceMonitor(C4(), saliency_samples=0)
    trainer_for([monitor]).validate(Conditional(), loader(8), verbose=False)
    assert "orbit_accuracy" not in monitor.history[0].measures
    named = InvarianceMonitor(C4(), saliency_samples=0, target=1)
    trainer_for([named]).validate(Conditional(), loader(8), verbose=False)
    assert "orbit_accuracy" in named.history[0].measures


def test_names_are_compared_between_kinds_of_monitors_too() -> None:
    mine = InvarianceMonitor(C4(), measures={"selectivity": DistributionInvarianceError()})
    with pytest.raises(ValueError, match=r"another InvarianceMonitor logs \['selectivity'\] too"):
        trainer_for([mine, SensitivityMonitor(C4())]).validate(Classifier(), loader(8), verbose=False)
    trainer = trainer_for([mine, SensitivityMonitor(C4(), prefix="rotations")])
    trainer.validate(Classifier(), loader(8), verbose=False)
    assert {"val/selectivity", "val/rotations/selectivity"} <= set(trainer.callback_metrics)


def test_a_label_of_the_wrong_kind_ends_before_the_orbit_is_run() -> None:
    calls: list[int] = []

    class Counting(Steps):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return self.model(x)

    monitor = InvarianceMonitor(C4(), measures=["orbit_accuracy"])
    with pytest.raises(ValueError, match="expected labels"):
        trainer_for([monitor]).validate(Counting(), loader(8, pack=lambda x, y: (x, y.float())), verbose=False)
    assert calls == [4]
    assert torch.is_grad_enabled()
