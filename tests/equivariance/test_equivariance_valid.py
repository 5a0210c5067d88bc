"""Interpolated groups carry corners out of the frame: which places are compared, and that only these are."""

from __future__ import annotations

import pytest
import torch
from equivariance_helpers import (
    batches,
    conv_net,
    in_frame,
    masks,
    monitored,
    pixel_measures,
    pixels,
    read_bilinear,
    turn,
    values,
)
from helpers import made
from test_equivariance_images import PIXEL_MEASURES
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_invariance import (
    SO2,
    AffineAction,
    HorizontalFlip,
    InvarianceMonitor,
    Rotations,
    Scalings,
    evaluate_invariance,
    evaluate_orbit,
    functional,
)
from lightning_invariance.baselines import OrbitPooled
from lightning_invariance.evaluation import MEASURES, Measure, register_measure

EIGHT = [turn(45.0 * g) for g in range(1, 8)]


def expected_motions(action: Rotations | SO2 | Scalings) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    if isinstance(action, Scalings):
        return [((factor, 0.0), (0.0, factor)) for factor in action.factors]
    return [turn(float(label.removeprefix("rot"))) for label in action.labels[1:]]


@pytest.mark.parametrize(
    "action", [Rotations(8), SO2(5, seed=3), Scalings([0.5, 1.5, 2.0])], ids=["Rotations", "SO2", "Scalings"]
)
@pytest.mark.parametrize("size", [(7, 7), (6, 9), (4, 4)])
def test_what_is_brought_back_and_what_is_masked(action, size):
    """The network draws the same slope whatever it sees: brought back, the slope at the place that g leads to.

    Between pixels a slope is interpolated exactly.
    """
    slope = torch.tensor([3 * u + 10 * v + 1 for _, _, u, v in pixels(*size)]).reshape(size)
    x = torch.randn(2, 1, 12, 12) if size == (4, 4) else torch.randn(2, 1, *size)  # also of smaller outputs
    outputs = evaluate_orbit(lambda x: slope.expand(len(x), 2, *size), x, action, output_action="same")
    motions = expected_motions(action)
    by_hand = torch.stack([in_frame(*size, each) for each in motions])
    assert outputs.valid.dtype == torch.bool
    assert torch.equal(outputs.valid.expand(len(motions), 2, 2, *size), by_hand[:, None, None].expand(-1, 2, 2, -1, -1))
    for ((a, b), (c, d)), mask, back in zip(motions, by_hand, outputs.orbit_logits, strict=True):
        led = torch.tensor([3 * (a * u + b * v) + 10 * (c * u + d * v) + 1 for _, _, u, v in pixels(*size)])
        torch.testing.assert_close(back[..., mask], led.reshape(size)[mask].expand(2, 2, -1), rtol=0, atol=1e-4)
    assert not by_hand.all()
    assert by_hand.any()


def by_hand(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f(x), f(gx) brought back for Rotations(8), and the mask (7, H, W)."""
    with torch.no_grad():
        inverse = [turn(-45.0 * g) for g in range(1, 8)]
        moved = [network(read_bilinear(x, back)) for back in inverse]
        orbit = torch.stack([read_bilinear(y, there) for y, there in zip(moved, EIGHT, strict=True)])
        return network(x), orbit, torch.stack([in_frame(*x.shape[-2:], each) for each in EIGHT])


def test_measures_leave_out_what_is_not_valid():
    network = made(conv_net).double()
    x, target = masks(count=3, side=7).tensors
    logits, orbit, mask = by_hand(network, x.double())
    expected = pixel_measures(logits, orbit, target, mask)
    asked = {"output_action": "same", "measures": PIXEL_MEASURES}
    results = evaluate_invariance(network, [(x.double(), target)], Rotations(8), progress=False, **asked)
    assert values(results) == pytest.approx(expected, rel=1e-5)
    record = monitored(made(conv_net), InvarianceMonitor(Rotations(8), **asked), masks(count=3, side=7))
    assert values(record.measures) == pytest.approx(expected, rel=1e-4)
    unmasked = pixel_measures(logits, orbit, target)
    changed = [name for name in PIXEL_MEASURES if expected[name] != pytest.approx(unmasked[name], rel=1e-3)]
    assert len(changed) >= len(PIXEL_MEASURES) - 2  # shares of few pixels may agree by chance


def test_masks_of_any_form_leave_out_what_is_not_valid():
    generator = torch.Generator().manual_seed(0)
    logits, orbit, noise = (
        torch.randn(*front, 2, 3, 5, 4, generator=generator, dtype=torch.float64) for front in ((), (3,), (3,))
    )
    mask = torch.rand(3, 1, 1, 5, 4, generator=generator) < 0.6
    mask[..., 2, 2] = False
    target = torch.randint(3, (2, 5, 4), generator=generator)
    # A place that x alone sees says nothing.
    divergence = functional.jensen_shannon_invariance_error(logits, orbit, valid=mask)
    expected = pixel_measures(logits, orbit, target, mask[:, 0, 0])
    assert float(divergence) == pytest.approx(expected["jensen_shannon_invariance_error"])
    shown = mask[:, 0, 0].nonzero().tolist()
    cosines = {g: [] for g in range(3)}
    for g, i, j in shown:
        for b in range(2):
            one, other = logits[b, :, i, j], orbit[g, b, :, i, j]
            cosines[g].append(float(one @ other / (one.norm() * other.norm())))
    cosine = functional.vector_cosine_similarity(logits, orbit, dim=-3, valid=mask)
    assert float(cosine) == pytest.approx(sum(sum(each) / len(each) for each in cosines.values()) / 3)
    by_group = sum(float((orbit[g, b] - logits[b])[:, i, j].square().sum()) for g, i, j in shown for b in range(2))
    by_noise = sum(float((noise[g, b] - logits[b])[:, i, j].square().sum()) for g, i, j in shown for b in range(2))
    assert float(functional.selectivity(logits, orbit, noise, valid=mask)) == pytest.approx(by_group / by_noise)


class Unmasked(MeanMetric):
    def update(self, logits: Tensor, orbit_logits: Tensor) -> None:
        super().update((orbit_logits - logits).abs())


class Masked(MeanMetric):
    def update(self, logits: Tensor, orbit_logits: Tensor, valid: Tensor | None = None) -> None:
        assert valid is not None
        super().update((orbit_logits - logits).abs()[valid.expand(orbit_logits.shape)])


@pytest.fixture
def _unasked_measures():
    register_measure(Measure("unmasked", Unmasked, "unmasked", unasked=("pixels",)))
    register_measure(Measure("masked", Masked, "masked", unasked=("pixels",)))
    yield
    MEASURES.pop("unmasked")
    MEASURES.pop("masked")


@pytest.mark.usefixtures("_unasked_measures")
def test_a_metric_that_takes_no_mask():
    network, data = made(conv_net), masks(count=3, side=7)
    logits, orbit, mask = by_hand(network, data.tensors[0])
    expected = float((orbit - logits).abs()[mask[:, None, None].expand(orbit.shape)].mean())
    options = {"output_action": "same", "progress": False}
    chosen = evaluate_invariance(network, batches(data), Rotations(8), **options)
    assert "unmasked" not in chosen
    assert float(chosen["masked"].value) == pytest.approx(expected, rel=1e-5)
    for measures in (["unmasked"], {"mine": Unmasked()}):
        with pytest.raises(ValueError, match="to take `valid` in its update"):
            evaluate_invariance(network, batches(data), Rotations(8), measures=measures, **options)
        with pytest.raises(ValueError, match=r"InvarianceMonitor: expected .* to take `valid` in its update"):
            monitored(network, InvarianceMonitor(Rotations(8), measures, output_action="same"), data)
    exact = evaluate_invariance(
        network, batches(data), Rotations(8), measures=["unmasked"], progress=False, logits=_means
    )
    assert len(exact) == 1  # where nothing is brought back there is no mask


def _means(output: Tensor) -> Tensor:
    return output.mean((2, 3))


def test_pooling_takes_the_mean_over_the_poses_that_see_a_place():
    network, x = made(conv_net).double(), masks(count=2, side=7).tensors[0].double()
    logits, orbit, mask = by_hand(network, x)
    for pool in ("mean", "max"):
        pooled = OrbitPooled(network, Rotations(8), pool, output_action="same")(x)
        for row in range(7):
            for column in range(7):
                poses = [logits, *(each for each, seen in zip(orbit, mask, strict=True) if seen[row, column])]
                there = torch.stack(poses)[..., row, column]
                expected = there.mean(0) if pool == "mean" else there.amax(0)
                torch.testing.assert_close(pooled[..., row, column], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("other", ["classes", "number"])
def test_an_output_that_stays_beside_a_mask_has_all_its_measures(other):
    """What is carried out of the frame is the mask's, whatever else the network gives."""
    data = torch.randn(8, 3, 7, 7).split(4)

    def network(x: Tensor) -> dict[str, Tensor]:
        return {"mask": x, "other": x[:, :, 0, 1] if other == "classes" else x[:, 0, 0, 1]}

    asked = {"progress": False}
    beside = evaluate_invariance(network, data, Rotations(8), output_action={"mask": "same", "other": None}, **asked)
    alone = evaluate_invariance(network, data, Rotations(8), output_action={"other": None}, **asked)
    found = {name: value for name, value in values(beside).items() if name.startswith("other/")}
    assert "other/orbit_share" in alone
    assert found == pytest.approx(values(alone))


def test_a_product_loses_what_either_loses() -> None:
    x = torch.randn(1, 1, 6, 6)
    shift = AffineAction(torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[1.0, 0, 1 / 3], [0, 1, 0]]]))  # a pixel to the right
    seen = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    seen[..., -1] = False
    action = shift * HorizontalFlip()
    assert torch.equal(action.in_view(x, 2).expand_as(seen), seen)
    assert torch.equal(action.in_view(x, 3).expand_as(seen), seen.flip(-1))  # flipped first: the left column goes
    assert action.in_view(x, 1) is None  # flipped alone
