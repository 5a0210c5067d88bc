"""The Lie derivative error by its name: on a data set, in a Trainer, and where it makes no sense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Images, fit, made
from lightning.pytorch import LightningDataModule, LightningModule
from oracles import Classifier, assert_identical, convnet, turning
from steps import everything_after, logged, validated
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_invariance as li

NAME = "lie_derivative_error"
FLOW = li.RotationFlow(window=None)


def by_hand(network: nn.Module, x: Tensor, tangents: list[Tensor]) -> Tensor:
    """For each tangent and sample, from the whole Jacobian."""
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x).sum(0), x)  # samples do not mix
    slopes = torch.stack([(jacobian * each).flatten(2).sum(2).T for each in tangents])
    return slopes.square().mean(-1)


def values(measure: Any) -> float:
    return float(measure.value)


@pytest.mark.parametrize("action", [FLOW, FLOW.sampled(2)], ids=["flow", "drawn from it"])
def test_on_a_data_set(action: Any) -> None:
    network = made(convnet).eval()
    x = Images(12).tensors[0]
    found = li.evaluate_invariance(network, x.split(5), action, measures=[NAME], progress=False)
    expected = by_hand(network, x, [turning(x)])
    assert values(found[NAME]) == pytest.approx(float(expected.mean()), rel=1e-4)
    error = float(expected.std() / 12**0.5)
    assert float(found[NAME].standard_error) == pytest.approx(error, rel=1e-4)
    first = li.evaluate_invariance(
        network, x.split(5), action, measures=[NAME], sensitivity_samples=7, max_batch=2, progress=False
    )
    assert values(first[NAME]) == pytest.approx(float(expected[:, :7].mean()), rel=1e-4)
    assert found.action.flow == FLOW


def test_beside_measures_of_the_orbit_and_only_by_name() -> None:
    network, x = made(convnet).eval(), Images(6).tensors[0]
    unasked = li.evaluate_invariance(network, [x], FLOW, saliency_samples=0, progress=False)
    assert NAME not in unasked
    both = li.evaluate_invariance(network, [x], FLOW, measures=[NAME, "orbit_share"], progress=False)
    drawn = li.evaluate_invariance(network, [x], li.SO2(8), measures=["orbit_share"], progress=False)
    assert values(both["orbit_share"]) == values(drawn["orbit_share"])


class Points(LightningModule):
    """Forces of a field that points along an axis, or of one that does not."""

    def __init__(self, moving: bool = True) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 1.0, 1.5 if moving else 1.0]))

    def forward(self, r: Tensor) -> Tensor:
        return self.scale * r

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


def clouds() -> DataLoader[Any]:
    r = torch.randn(8, 5, 3, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(r), batch_size=3)


def test_in_a_trainer_by_generator() -> None:
    """(s_i - s_j)² r² / 15 for the two axes that each generator mixes."""
    by_axis = li.LieDerivativeError(reduction="element")
    monitor = li.InvarianceMonitor(li.PointRotationFlow(), {"by_axis": by_axis}, output_action="same")
    trainer = validated(monitor, Points(), clouds())
    r = torch.cat([batch[0] for batch in clouds()])
    squares = r.square().sum(1).mean(0) / 15
    expected = [0.25 * float(squares[1] + squares[2]), 0.25 * float(squares[0] + squares[2]), 0.0]
    names = [f"val/by_axis/rotation_{axis}" for axis in "xyz"]
    assert [logged(trainer)[name] for name in names] == pytest.approx(expected, rel=1e-5, abs=1e-10)
    for moving, said in ((False, 0.0), (True, sum(expected) / 3)):
        monitor = li.InvarianceMonitor(li.SO3(3), [NAME], output_action="same")
        trainer = validated(monitor, Points(moving), clouds())
        assert logged(trainer)[f"val/{NAME}"] == pytest.approx(said, rel=1e-5, abs=1e-10)


def test_training_is_left_as_it_was() -> None:
    def monitors() -> list[Any]:
        return [li.InvarianceMonitor(li.RotationFlow(), [NAME])]

    assert_identical(everything_after(monitors()), everything_after([]))


def test_without_a_flow() -> None:
    network, x = made(convnet), Images(4).tensors[0]
    needed = r"`action` to be a Flow, or an action that has one .* for \['lie_derivative_error'\] but got C4\(\)"
    with pytest.raises(ValueError, match=needed):
        li.evaluate_invariance(network, [x], li.C4(), measures=[NAME], progress=False)
    with pytest.raises(ValueError, match=needed):
        li.InvarianceMonitor(li.C4(), [NAME])
    data = LightningDataModule.from_datasets(Images(4), Images(4), Images(4))
    with pytest.raises(ValueError, match=needed):
        li.compare({"a": Classifier()}, data, li.C4(), measures=[NAME], rounds=0)
    with pytest.raises(ValueError, match="`output_action` to be None, 'same' or an action that has a flow"):
        li.InvarianceMonitor(li.SO3(2), [NAME], output_action=li.O3(2))
    with pytest.raises(ValueError, match="one input for Lie derivatives but got 2 that move together"):
        li.evaluate_invariance(
            lambda a, b: a.sum((1, 2)) + b.sum((1, 2)),
            [(torch.ones(2, 5, 3), torch.ones(2, 5, 3))],
            li.SO3(2),
            measures=[NAME],
            input=[0, 1],
            progress=False,
        )


def test_flows_where_actions_are_taken() -> None:
    module = fit(Classifier, [li.OrbitAugmentation(li.RotationFlow(), seed=3)])
    same = fit(Classifier, [li.OrbitAugmentation(li.SO2(8), seed=3)])
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), same.parameters(), strict=True))
    x = Images(4).tensors[0]
    flow = li.ShearFlow()
    outputs = [li.evaluate_orbit(made(convnet).eval(), x, each).orbit_logits for each in (flow, flow.sampled())]
    assert torch.equal(*outputs)
    with pytest.raises(ValueError, match=r"`action` to be a finite group but SO2.* lists draws from a larger one"):
        li.InvariantWeights(li.RotationFlow())
