"""Equivariance of networks on images, against closed forms and loops over pixels."""

from __future__ import annotations

import pytest
import torch
from equivariance_helpers import (
    IGNORED,
    conv_net,
    masks,
    pixel_measures,
    placed,
    quarter_turns,
    replaced,
    symmetric_conv,
    values,
)
from helpers import made
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import (
    C4,
    D4,
    FieldAction,
    LinearAction,
    PermutationAction,
    VectorCosineSimilarity,
    evaluate_invariance,
    evaluate_orbit,
    functional,
)

PIXEL_MEASURES = [
    "logit_invariance_error",
    "normalized_logit_invariance_error",
    "distribution_invariance_error",
    "jensen_shannon_invariance_error",
    "prediction_consistency",
    "orbit_accuracy",
    "worst_case_orbit_accuracy",
    "orbit_mean_iou",
    "relative_equivariance_error",
]


@pytest.mark.parametrize("action", [C4(), D4()], ids=["C4", "D4"])
@pytest.mark.parametrize("smaller", [False, True])
def test_a_convolution_with_symmetric_kernels_has_no_error(action, smaller):
    layers = [symmetric_conv(2, 3), nn.Tanh()]
    layers += [nn.AvgPool2d(2), symmetric_conv(3, 2, padding=0), nn.MaxPool2d(2, stride=1)] if smaller else []
    network = made(lambda: nn.Sequential(*layers).double())
    x = torch.randn(3, 2, 10, 10, dtype=torch.float64)
    results = evaluate_invariance(network, [x], action, output_action="same", progress=False)
    assert network(x).shape[-1] == (2 if smaller else 10)
    assert float(results["relative_equivariance_error"].value) < 1e-14
    assert float(results["logit_invariance_error"].value) < 1e-28


def test_some_elements_in_parts():
    network, x = made(conv_net), torch.randn(3, 1, 5, 5)
    with torch.no_grad():
        outputs = evaluate_orbit(network, x, D4(), output_action="same", elements=[6, 3], max_batch=2)
        expected = torch.stack([replaced(network(placed(x, g)), g) for g in (6, 3)])
    torch.testing.assert_close(outputs.orbit_logits, expected)


@pytest.mark.parametrize(("action", "moving"), [(C4(), 3), (D4(), 6)], ids=["C4", "D4"])
def test_one_weight_that_was_changed(action, moving):
    """0.4 of each pixel and 0.3 of the one below it: of D4, the flip of left and right leaves that as it is."""
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    conv.weight.data = torch.zeros(1, 1, 3, 3)
    conv.weight.data[..., 1, 1], conv.weight.data[..., 2, 1] = 0.4, 0.3
    x = F.one_hot(torch.tensor([27, 0]), 64).float().reshape(2, 1, 8, 8)
    with torch.no_grad():
        outputs = evaluate_orbit(conv, x, action, output_action="same")
    pairs = (outputs.logits, outputs.orbit_logits)
    error = functional.relative_equivariance_error(*pairs, reduction="element")
    by_hand = 0.3 * 2**0.5 / 0.5  # 0.3 stands at another place; the output has the norm 0.5
    expected = [by_hand] * 3 + [0.0] + [by_hand] * 3
    torch.testing.assert_close(error, torch.tensor(expected[: len(action) - 1]))
    li = functional.logit_invariance_error(*pairs)
    torch.testing.assert_close(li, torch.tensor(0.09 * moving / (len(action) - 1)))


def test_a_stride_off_the_centre():
    """Pixels of even rows and columns are kept: turned, others are."""
    conv = nn.Conv2d(1, 1, 1, stride=2, bias=False)
    conv.weight.data.fill_(1.0)
    x = torch.zeros(2, 1, 8, 8)
    x[..., ::2, ::2] = torch.rand(2, 1, 4, 4) + 0.5
    outputs = evaluate_orbit(conv, x, C4(), output_action="same")
    error = functional.relative_equivariance_error(outputs.logits, outputs.orbit_logits, reduction="element")
    torch.testing.assert_close(error, torch.ones(3))


def test_the_measures_of_pixels_are_those_of_loops():
    network = made(conv_net)
    x, target = masks(count=5).tensors
    target = target.clone()
    target[0, :2] = 255
    target[4] = IGNORED  # a sample without a label has no accuracy
    with torch.no_grad():
        logits = network(x)
        orbit = torch.stack([replaced(network(placed(x, g)), g) for g in range(1, 8)])
    expected = pixel_measures(logits[:4], orbit[:, :4], target[:4])
    without = pixel_measures(logits, orbit, torch.zeros_like(target))
    expected |= {name: value for name, value in without.items() if not name.endswith("accuracy")}

    data = [(x[:2], target[:2]), (x[2:], target[2:])]
    with pytest.warns(UserWarning, match="accuracy is undefined for 1 of 5 samples") as caught:
        results = evaluate_invariance(
            network, data, D4(), output_action="same", measures=PIXEL_MEASURES, progress=False
        )
    assert len(caught) == 2
    assert values(results) == pytest.approx(expected, rel=1e-5)
    assert 0.05 < expected["worst_case_orbit_accuracy"] + 0.05 < expected["orbit_accuracy"] < 0.9
    share = functional.orbit_accuracy(logits[:4], orbit[:, :4], target[:4], worst_case=True)
    assert float(share) == pytest.approx(expected["worst_case_orbit_accuracy"])


def test_byte_masks_with_a_channel_are_labels_too():
    network = made(conv_net)
    x, target = masks(count=3).tensors
    target = torch.where(target < 0, 255, target)
    asked = {"measures": ["orbit_accuracy"], "output_action": "same", "progress": False}
    long, byte = (
        evaluate_invariance(network, [(x, each)], C4(), **asked)["orbit_accuracy"].value
        for each in (target, target.byte()[:, None])
    )
    expected = pixel_measures(network(x), torch.stack([replaced(network(placed(x, g)), g) for g in (1, 2, 3)]), target)
    assert float(long) == float(byte) == pytest.approx(expected["orbit_accuracy"])


class Slope(nn.Module):
    """Each pixel's slope to the right and down, on a torus."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.roll(-1, 3) - x.roll(1, 3), x.roll(-1, 2) - x.roll(1, 2)], dim=1)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_field_of_vectors_turns_with_its_image(wrong):
    """With the vectors turned the other way, those of the quarter turns come out as their opposites."""
    matrices = quarter_turns()[[0, 3, 2, 1]] if wrong else quarter_turns()
    moves = FieldAction(C4(), LinearAction(matrices, dim=-3))
    outputs = evaluate_orbit(Slope(), torch.randn(2, 1, 6, 6), C4(), output_action=moves)
    pairs = (outputs.logits, outputs.orbit_logits)
    error = functional.relative_equivariance_error(*pairs, reduction="element")
    cosine = functional.vector_cosine_similarity(*pairs, dim=-3, reduction="element")
    torch.testing.assert_close(error, torch.tensor([2.0, 0, 2] if wrong else [0.0, 0, 0]), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(cosine, torch.tensor([-1.0, 1, -1] if wrong else [1.0, 1, 1]))


def test_a_field_of_vectors_is_measured_unasked():
    moves = FieldAction(C4(), LinearAction(quarter_turns(), dim=-3))
    results = evaluate_invariance(Slope(), [torch.randn(2, 1, 6, 6)], C4(), output_action=moves, progress=False)
    assert float(results["relative_equivariance_error"].value) < 1e-6
    assert "distribution_invariance_error" not in results


class FourTemplates(nn.Module):
    """How well the image fits a template, and its turned copies: classes that the group exchanges."""

    def __init__(self) -> None:
        super().__init__()
        self.template = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        templates = torch.stack([placed(self.template, g) for g in range(4)])
        return torch.einsum("bij,kij->bk", x[:, 0], templates)


def test_classes_that_the_group_exchanges():
    network = made(FourTemplates)
    x = torch.randn(6, 1, 6, 6)
    forth = PermutationAction(torch.tensor([[(k - r) % 4 for k in range(4)] for r in range(4)]))
    with torch.no_grad():
        target = network(x).argmax(1)
    asked = {"measures": ["distribution_invariance_error", "orbit_accuracy"], "progress": False}
    results = evaluate_invariance(network, [(x, target)], C4(), output_action=forth, **asked)
    assert float(results["distribution_invariance_error"].value) < 1e-6
    assert float(results["orbit_accuracy"].value) == 1.0
    stays = evaluate_invariance(network, [(x, target)], C4(), **asked)
    assert float(stays["orbit_accuracy"].value) == 0.0
    back = PermutationAction(torch.tensor([[(k + r) % 4 for k in range(4)] for r in range(4)]))
    with pytest.warns(UserWarning, match="the other way"):
        results = evaluate_invariance(network, [(x, target)], C4(), output_action=back, **asked)
    assert float(results["orbit_accuracy"].value) == pytest.approx(1 / 3)  # half a turn is its own inverse


@pytest.mark.parametrize(
    ("base", "moved", "expected"),
    [
        ([0.0, 0.0], [0.0, 0.0], 1.0),
        ([0.0, 0.0], [1e-30, 0.0], -1.0),
        ([3.0, 0.0], [0.0, 0.0], -1.0),
        ([3.0, 4.0], [4.0, 3.0], 0.96),
        ([1e-30, 0.0], [1e30, 1e30], 0.5**0.5),
    ],
)
def test_the_cosine_of_vectors_without_a_direction(base, moved, expected):
    pair = (torch.tensor([[base, [1.0, 0.0]]]), torch.tensor([[[moved, [2.0, 0.0]]]]))
    assert float(functional.vector_cosine_similarity(*pair)) == pytest.approx((expected + 1) / 2, abs=1e-6)
    assert float(functional.vector_cosine_similarity(pair[0][:, 0], pair[1][:, :, 0])) == pytest.approx(expected)


def test_padding_is_left_out_of_the_cosine_of_vectors():
    generator = torch.Generator().manual_seed(0)
    atoms = [torch.randn(count, 3, generator=generator, dtype=torch.float64) for count in (1, 2, 4)]
    moved = [torch.randn(3, count, 3, generator=generator, dtype=torch.float64) for count in (1, 2, 4)]
    cosines = [F.cosine_similarity(a, m, dim=-1).mean() for a, m in zip(atoms, moved, strict=True)]
    expected = torch.stack(cosines)  # molecule by molecule, where nothing is padded
    base = torch.stack([F.pad(each, (0, 0, 0, 4 - len(each))) for each in atoms])
    orbit = torch.stack([F.pad(each, (0, 0, 0, 4 - each.shape[1])) for each in moved], dim=1)
    found = functional.vector_cosine_similarity(base, orbit, both_zero="ignore", reduction="none")
    torch.testing.assert_close(found, expected)
    metric = VectorCosineSimilarity(both_zero="ignore")
    for part in (slice(0, 1), slice(1, 3)):
        metric.update(base[part], orbit[:, part])
    torch.testing.assert_close(metric.compute().double(), expected.mean())
    assert float(functional.vector_cosine_similarity(base, orbit)) > float(expected.mean()) + 0.1
    orbit[0, 0, 1] = 1.0  # a force where there is no atom is as wrong as can be
    appeared = functional.vector_cosine_similarity(base[:1], orbit[:1, :1], both_zero="ignore")
    assert float(appeared) == pytest.approx(float(F.cosine_similarity(atoms[0], moved[0][0]) - 1) / 2)
    nothing = torch.zeros(1, 2, 3)
    with pytest.warns(UserWarning, match="undefined"):
        assert functional.vector_cosine_similarity(nothing, nothing[None], both_zero="ignore").isnan()


def test_classes_of_neither_mask_take_no_part_in_the_iou() -> None:
    base, moved = torch.tensor([[[0, 0], [1, 1]]]), torch.tensor([[[0, 1], [1, 1]]])
    scores = [F.one_hot(each, 5).movedim(-1, 1).float() for each in (base, moved)]
    assert float(functional.orbit_mean_iou(scores[0], scores[1][None])) == pytest.approx((1 / 2 + 2 / 3) / 2)
