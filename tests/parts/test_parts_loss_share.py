"""The loss share: against loops over poses in numpy, and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import trainer_for
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance import C4, SO3, InvarianceMonitor, LossShare, Rotations, evaluate_invariance
from lightning_invariance.baselines import OrbitPooled
from lightning_invariance.functional import loss_share

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


LOGITS, MOVED = normal(40, 5), normal(3, 40, 5)
CLASSES, VALUES = torch.randint(5, (40,), generator=GENERATOR), normal(40, 5)


def one_loss(outputs: np.ndarray, target: Any, loss: str) -> float:
    if loss == "cross_entropy":
        return float(np.log(np.exp(outputs).sum()) - outputs[target])
    gaps = outputs - target
    return float((gaps**2).mean() if loss == "mse" else np.abs(gaps).mean())


def by_hand(loss: str, rows: range = range(40)) -> np.ndarray:
    """Each sample's mean loss over its four poses, and the loss of their mean."""
    target = CLASSES if loss == "cross_entropy" else VALUES
    pairs = []
    for row in rows:
        poses = [LOGITS[row].numpy(), *(MOVED[g, row].numpy() for g in range(3))]
        truth = target[row].numpy()
        mean = np.mean([one_loss(pose, truth, loss) for pose in poses])
        pairs.append((mean, mean - one_loss(np.mean(poses, axis=0), truth, loss)))
    return np.array(pairs)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "mae"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_share_is_that_of_a_loop_over_poses(loss: Any, dtype: torch.dtype) -> None:
    target = CLASSES if loss == "cross_entropy" else VALUES.to(dtype)
    given = LOGITS.to(dtype), MOVED.to(dtype), target
    pairs = by_hand(loss)
    expected = 100 * pairs[:, 1].sum() / pairs[:, 0].sum()
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    assert loss_share(*given, loss=loss).item() == pytest.approx(expected, rel=tolerance)
    each = loss_share(*given, loss=loss, reduction="none").numpy()
    np.testing.assert_allclose(each, 100 * pairs[:, 1] / pairs[:, 0].mean(), rtol=max(tolerance, 1e-9), atol=1e-4)
    if loss != "mae":
        assert torch.equal(loss_share(*given), loss_share(*given, loss=loss))
    metric = LossShare(loss=loss)
    for rows in torch.arange(40).split([7, 1, 20, 12]):
        metric.update(given[0][rows], given[1][:, rows], target[rows])
    value, error = metric.compute_with_error()
    assert value.item() == pytest.approx(expected, rel=1e-5)
    without = []
    for fold in range(16):
        rest = by_hand(loss, [row for row in range(40) if row % 16 != fold])  # type: ignore[arg-type]
        without.append(100 * rest[:, 1].sum() / rest[:, 0].sum())
    assert error.item() == pytest.approx(np.sqrt(15 / 16 * ((without - np.mean(without)) ** 2).sum()), rel=1e-4)


def test_a_squared_error_splits_into_the_variance_over_the_orbit_and_the_rest() -> None:
    orbit = torch.cat([LOGITS[None], MOVED])
    variance = orbit.var(dim=0, correction=0).mean()
    total = (orbit - VALUES).square().mean()
    assert loss_share(LOGITS, MOVED, VALUES).item() == pytest.approx(100 * float(variance / total), rel=1e-12)


def test_an_invariant_network_has_none_and_one_that_is_right_on_average_has_all() -> None:
    assert loss_share(LOGITS, LOGITS.expand(3, -1, -1), VALUES) == 0
    assert loss_share(LOGITS, LOGITS.expand(3, -1, -1), CLASSES) == 0
    mirrored = 2 * VALUES - LOGITS
    assert loss_share(LOGITS, mirrored[None], VALUES).item() == pytest.approx(100)
    # A pooled network too, which rounds differently in each pose.
    inner = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    batches = [(torch.randn(6, 1, 4, 4), torch.arange(6) % 5)]
    shares = [
        float(evaluate_invariance(each, batches, C4(), measures=["loss_share"], progress=False)["loss_share"].value)
        for each in (OrbitPooled(inner, C4()), inner)
    ]
    assert shares[0] < 1e-4 < 0.1 < shares[1]


def test_a_function_as_a_loss() -> None:
    def smooth(outputs: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(outputs, target, label_smoothing=0.1, reduction="none")

    orbit = torch.cat([LOGITS[None], MOVED])
    poses = torch.stack([smooth(pose, CLASSES) for pose in orbit]).mean()
    expected = 100 * (poses - smooth(orbit.mean(dim=0), CLASSES).mean()) / poses
    assert loss_share(LOGITS, MOVED, CLASSES, loss=smooth).item() == pytest.approx(float(expected))


def test_places_are_averaged_over_the_poses_that_see_them() -> None:
    """Scores of pixels, of which interpolated rotations lose the corners; a class 255 is ignored."""
    logits, moved = normal(3, 4, 5, 5), normal(2, 3, 4, 5, 5)
    target = torch.randint(4, (3, 5, 5), generator=GENERATOR)
    target[0, 0], target[2, 1, 1] = 255, 255
    valid = torch.rand(2, 1, 1, 5, 5, generator=GENERATOR) > 0.4
    totals, excesses = [], []
    for row in range(3):
        pairs = []
        for i, j in np.ndindex(5, 5):
            if target[row, i, j] == 255:
                continue
            poses = [logits[row, :, i, j].numpy()]
            poses += [moved[g, row, :, i, j].numpy() for g in range(2) if valid[g, 0, 0, i, j]]
            truth = int(target[row, i, j])
            mean = np.mean([one_loss(pose, truth, "cross_entropy") for pose in poses])
            pairs.append((mean, mean - one_loss(np.mean(poses, axis=0), truth, "cross_entropy")))
        totals.append(np.mean(pairs, axis=0)[0])
        excesses.append(np.mean(pairs, axis=0)[1])
    got = loss_share(logits, moved, target, valid=valid)
    assert got.item() == pytest.approx(100 * sum(excesses) / sum(totals), rel=1e-10)
    network = nn.Conv2d(1, 4, 3, padding=1)
    batches = [(torch.randn(2, 1, 7, 7), torch.randint(4, (2, 7, 7)))]
    options = {"output_action": "same", "measures": ["loss_share"], "progress": False}
    assert 0 < evaluate_invariance(network, batches, Rotations(8), **options)["loss_share"].value < 100  # type: ignore[arg-type]


class ForceField(nn.Module):
    """Energies that no rotation changes; forces that are off by a constant vector, whatever the pose."""

    def forward(self, positions: Tensor) -> dict[str, Tensor]:
        squares = positions.square()
        return {"energy": squares.sum(dim=(1, 2)), "forces": -2 * positions + torch.tensor([0.0, 0.0, 0.3])}


@pytest.mark.parametrize("way", ["mapping", "pair", "entry", "one"])
def test_energies_and_forces(way: str) -> None:
    """What a batch holds by the names of the outputs is what they are to be."""
    positions = torch.randn(12, 5, 3, generator=GENERATOR)
    energy, forces = positions.square().sum(dim=(1, 2)) + 1.0, -2 * positions + 0.1
    targets, group = {"energy": energy, "forces": forces}, SO3(6)
    batch: Any = {"positions": positions, **targets}
    options: dict[str, Any] = {"measures": ["loss_share"], "progress": False}
    network: Any = ForceField()
    if way == "pair":
        batch = (positions, targets)
    if way == "entry":
        batch, options["target"] = {"positions": positions, "truth": targets}, "truth"
    if way == "one":
        options |= {"target": "forces", "logits": lambda output: output["forces"], "output_action": "same"}
    else:
        options["output_action"] = {"energy": None, "forces": "same"}
    found = evaluate_invariance(network, [batch], group, **options)
    # What is brought back of the constant vector is it, turned: its mean over the orbit is what is left of it.
    rotations = [found.action.invert(torch.tensor([[[0.0, 0.0, 0.3]]]), g) for g in range(len(found.action))]
    turned = torch.cat(rotations)[:, 0].double() - 0.1
    expected = 100 * (1 - turned.mean(dim=0).square().sum() / turned.square().sum(dim=1).mean())
    key = "loss_share" if way == "one" else "forces/loss_share"
    assert found[key].value.item() == pytest.approx(float(expected), rel=1e-4)
    if way != "one":
        assert found["energy/loss_share"].value.item() == pytest.approx(0, abs=1e-4)


def test_labels_are_still_asked_for_where_numbers_will_not_do() -> None:
    batches = [(torch.randn(4, 1, 4, 4), torch.randn(4, 3))]
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(ValueError, match=r"Expected labels for \['orbit_accuracy'\]|expected labels for"):
        evaluate_invariance(network, batches, C4(), measures=["loss_share", "orbit_accuracy"], progress=False)
    with pytest.raises(ValueError, match=r"expected labels for \['loss_share'\] but found none"):
        evaluate_invariance(network, [batches[0][0]], C4(), measures=["loss_share"], progress=False)
    assert evaluate_invariance(network, batches, C4(), measures=["loss_share"], progress=False)["loss_share"].value > 0


def test_it_is_logged() -> None:
    from oracles import Classifier

    monitor = InvarianceMonitor(C4(), ["loss_share"])
    trainer = trainer_for([monitor])
    data = torch.utils.data.TensorDataset(torch.randn(10, 1, 4, 4), torch.randint(3, (10,)))
    trainer.validate(Classifier(), torch.utils.data.DataLoader(data, batch_size=4), verbose=False)
    assert 0 < trainer.callback_metrics["val/loss_share"] < 100
