"""What looks as if it moved, and what cannot: warned of, or refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from equivariance_helpers import PairPotential, conv_net, points
from helpers import trainer_for
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from lightning_invariance import (
    C4,
    SO3,
    CyclicTranslations,
    FieldAction,
    FunctionAction,
    HorizontalFlip,
    InvarianceMonitor,
    LinearAction,
    OrbitAugmentation,
    PermutationAction,
    Rotations,
    SetPermutations,
    TimeReversal,
    VerticalFlip,
    evaluate_invariance,
)
from lightning_invariance.evaluation import MEASURES, Measure, Source, _sources, register_measure, register_source

X = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
MASK = (X[:, 0] > 0).long()


class Seeing(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def augmented(action: Any, x: Tensor, y: Tensor, **options: Any) -> None:
    callback = OrbitAugmentation(action, **options)
    trainer_for([callback], max_epochs=1).fit(Seeing(), DataLoader(TensorDataset(x, y), batch_size=len(x)))


@pytest.mark.parametrize(
    ("action", "x", "y"),
    [
        (HorizontalFlip(), X, MASK),
        (VerticalFlip(), X, MASK.to(torch.uint8)),
        (CyclicTranslations(4), X[..., :8], MASK[..., :8]),
        (FunctionAction([(lambda x: x.flip(-1), lambda x: x.flip(-1))]), X, MASK),
        (C4(), X, MASK[:, ::2, ::2]),
        (HorizontalFlip(), X, X[:, :2, ::2, ::2]),
        (TimeReversal(), X[:, :, 0], MASK[:, 0]),
    ],
    ids=["flip", "upside down", "shift", "function", "smaller", "heat map", "labels of each step"],
)
def test_a_target_with_the_places_of_the_input_that_stays_is_warned_of(action: Any, x: Tensor, y: Tensor) -> None:
    with pytest.warns(UserWarning, match="target_action='same'"):
        augmented(action, x, y)


@pytest.mark.parametrize("y", [torch.arange(8), torch.rand(8, 10), torch.rand(8, 17, 2), torch.rand(8, 5)])
def test_other_targets_stay_without_a_word(y: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "The number of training batches|The 'train_dataloader'|`isinstance")
        augmented(HorizontalFlip(), X, y)


@pytest.mark.parametrize(
    "y",
    [torch.rand(8, 17, 2), torch.rand(8, 9, 4), torch.rand(8, 10), torch.rand(8, 16, 16, 3)],
    ids=["keypoints", "boxes", "classes", "channels last"],
)
def test_what_is_no_image_is_not_moved_as_one(y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"OrbitAugmentation: expected `target_action` .* LinearAction for vectors"):
        augmented(HorizontalFlip(), X, y, target_action="same")


@pytest.mark.parametrize(
    ("network", "action", "x"),
    [
        (lambda z: z.mean(1), HorizontalFlip(), X),
        (nn.AvgPool2d(2), C4(), X),
        (nn.AvgPool2d(3, 2, 1), C4(), X[..., :9, :9]),
    ],
    ids=["depth", "half", "odd"],
)
def test_outputs_with_the_places_of_the_input_are_warned_of(network: Any, action: Any, x: Tensor) -> None:
    with pytest.warns(UserWarning, match="output_action='same'"):
        evaluate_invariance(network, [x], action, progress=False)
    evaluate_invariance(network, [x], action, output_action="same", progress=False)


def halves(x: Tensor) -> Tensor:
    return torch.stack([x[..., :8].mean((1, 2, 3)), x[..., 8:].mean((1, 2, 3))], 1)


def test_outputs_that_move_have_no_maps() -> None:
    swapped = PermutationAction(torch.tensor([[0, 1], [1, 0]]))
    results = evaluate_invariance(halves, [X], HorizontalFlip(), output_action=swapped, progress=False)
    assert "saliency_invariance_similarity" not in results
    assert float(results["distribution_invariance_error"].value) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match=r"`output_action` to be None for .*maps explain a class's logit"):
        InvarianceMonitor(HorizontalFlip(), ["saliency_invariance_similarity"], output_action=swapped)
    steps = evaluate_invariance(
        lambda x: x.sum(1), [X[:, :, 0]], TimeReversal(), output_action="same", progress=False
    )  # no classes, as many as there are steps
    assert not {"distribution_invariance_error", "saliency_invariance_similarity"} & set(steps)


def test_labels_that_fit_no_output_are_an_error_for_measures_by_name() -> None:
    for target, options in ((MASK[:, ::2, ::2], {}), (torch.arange(8), {"target": 1})):
        with pytest.raises(ValueError, match=r"evaluate_invariance: expected labels for \['orbit_accuracy'\]"):
            evaluate_invariance(
                nn.Conv2d(3, 4, 1),
                [(X, target)],
                C4(),
                output_action="same",
                measures=["orbit_accuracy"],
                progress=False,
                **options,
            )


class Norms(Source):
    name = "norms_of_logits"
    gives = {"norms_of_logits": 0}  # noqa: RUF012
    wrong = ""

    def run(self, samples: Any) -> dict[str, Tensor]:
        norms = samples.network(samples.x).flatten(1).norm(dim=1)
        return {"others" if self.wrong == "key" else self.name: norms[:3] if self.wrong == "rows" else norms}


class MeanNorm(MeanMetric):
    def update(self, norms_of_logits: Tensor) -> None:
        super().update(norms_of_logits)


@pytest.fixture
def norms() -> Any:
    source = Norms()
    register_source(source)
    register_measure(Measure("mean_norm", MeanNorm, heading="norm"))
    yield source
    _sources.SOURCES.pop(source.name)
    MEASURES.pop("mean_norm")


def test_a_source_from_outside_gives_what_it_said_and_of_one_output(norms: Norms) -> None:
    options: dict[str, Any] = {"measures": ["mean_norm"], "progress": False}
    network = conv_net()
    x = torch.randn(4, 1, 6, 6, dtype=next(network.parameters()).dtype)
    value = float(evaluate_invariance(network, [x], C4(), output_action="same", **options)["mean_norm"].value)
    with torch.no_grad():
        assert value == pytest.approx(float(network(x).flatten(1).norm(dim=1).mean()), rel=1e-6)
    for norms.wrong, says in (("key", "to give"), ("rows", "to have 4 samples")):
        with pytest.raises(ValueError, match=f"of the source|source 'norms_of_logits' {says}"):
            evaluate_invariance(network, [x], C4(), output_action="same", **options)
    with pytest.raises(ValueError, match="`output_action` to be no dict for"):
        evaluate_invariance(PairPotential(), [points()], SO3(2), output_action={"forces": "same"}, **options)


def test_vectors_of_a_field_that_turn_the_other_way_are_found() -> None:
    turns = torch.stack([torch.linalg.matrix_power(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), k) for k in range(4)])

    def flow(x: Tensor) -> Tensor:
        p = nn.functional.pad(x.sum(1, keepdim=True), (1, 1, 1, 1))
        return torch.cat([p[..., 1:-1, 2:] - p[..., 1:-1, :-2], p[..., 2:, 1:-1] - p[..., :-2, 1:-1]], 1)

    field, other = (FieldAction(C4(), LinearAction(each, dim=-3)) for each in (turns, turns.mT))
    results = evaluate_invariance(flow, [X], C4(), output_action=field, progress=False)
    assert float(results["relative_equivariance_error"].value) < 1e-6
    with pytest.warns(UserWarning, match="its values move the other way"):
        evaluate_invariance(flow, [X], C4(), output_action=other, progress=False)


def test_padding_is_taken_from_the_input() -> None:
    tokens = torch.tensor([[7, 8, 9, 0, 0], [3, 4, 5, 6, 0]])
    labels = torch.tensor([[1, 0, 2, -100, -100], [0, 0, 1, 2, -100]])
    action = SetPermutations(8, dim=-1, padding=0)
    with pytest.raises(ValueError, match="'same' takes them from the input"):
        augmented(action, tokens, labels, target_action=action)
    augmented(action, tokens, labels, target_action="same")


@pytest.mark.parametrize(
    ("mask", "ignored"), [(MASK.to(torch.uint8), -100), (MASK.bool(), 255), (MASK[:, None].float(), 255)]
)
def test_labels_that_cannot_be_ignored_are_refused(mask: Tensor, ignored: int) -> None:
    with pytest.raises(ValueError, match=f"whole numbers that can be ignore_index={ignored}"):
        augmented(Rotations(8), X, mask, target_action="same", ignore_index=ignored)


@pytest.mark.parametrize(
    ("network", "x", "action"),
    [
        (nn.Conv2d(3, 2, 5), X[:, :, :, :12], HorizontalFlip()),
        (lambda x: x.mean(2, keepdim=True), X, HorizontalFlip()),
        (lambda x: x.mean(2), X, HorizontalFlip()),
        (lambda x: nn.functional.avg_pool1d(x, 3, 2, 1)[:, 0], X[:, :, 0, :15], TimeReversal()),
        (lambda x: x[:, 0, 1:-1], X[:, :, 0], TimeReversal()),
    ],
    ids=["cropped", "profile", "profile without height", "strided", "shortened"],
)
def test_what_is_a_part_of_the_input_moves_as_it_does(network: Any, x: Tensor, action: Any) -> None:
    results = evaluate_invariance(network, [x], action, output_action="same", progress=False)
    if not isinstance(network, nn.Module):
        assert float(results["logit_invariance_error"].value) < 1e-10


def test_masks_of_padding_and_small_matrices_are_left_without_a_word() -> None:
    tokens = torch.tensor([[7, 8, 9, 0, 0], [3, 4, 5, 6, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "The number of training batches|The 'train_dataloader'|`isinstance")
        augmented(SetPermutations(8, dim=-1, padding=0), tokens, (tokens > 0).long(), input="0")
        augmented(C4(), X, torch.rand(8, 4, 4))
    with pytest.warns(UserWarning, match="target_action='same'"):
        augmented(HorizontalFlip(), X, torch.rand(8, 3, 32, 32))
