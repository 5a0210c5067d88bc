"""Forces, energies and stresses of points in space; drawn groups in the callbacks."""

from __future__ import annotations

import pytest
import torch
from equivariance_helpers import Module, PairPotential, batches, monitored, points, rotations, trained, values
from helpers import trainer_for
from oracles import distance
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_invariance import (
    O3,
    SO3,
    FieldAction,
    InvarianceMonitor,
    InvarianceRegularizer,
    LinearAction,
    SetPermutations,
    evaluate_invariance,
    evaluate_orbit,
    functional,
)
from lightning_invariance.baselines import OrbitPooled


@pytest.mark.parametrize("group", [SO3, O3])
def test_a_pair_potential_is_equivariant(group):
    stress = FieldAction(group(5, dim=-2), group(5, dim=-1))
    moves = {"energy": None, "forces": "same", "stress": stress}
    results = values(evaluate_invariance(PairPotential(), [points()], group(5), output_action=moves, progress=False))
    assert {name.split("/")[0] for name in results} == {"energy", "forces", "stress"}
    assert results["forces/vector_cosine_similarity"] == pytest.approx(1.0)
    assert results["energy/logit_invariance_error"] < 1e-20
    assert results["forces/relative_equivariance_error"] < 1e-12
    assert results["stress/relative_equivariance_error"] < 1e-12
    assert "energy/vector_cosine_similarity" not in results


def test_a_stress_needs_the_rotation_on_both_sides():
    """The reference multiplies by matrices that are not asked of the action."""
    matrices = rotations(3)
    network, x = PairPotential(), points()
    field = FieldAction(LinearAction(matrices, dim=-2), LinearAction(matrices, dim=-1))
    with torch.no_grad():
        outputs = evaluate_orbit(network, x, LinearAction(matrices), output_action={"stress": field})["stress"]
        one = evaluate_orbit(network, x, LinearAction(matrices), output_action={"stress": "same"})["stress"]
        stress = network(x)["stress"]
    torch.testing.assert_close(outputs.orbit_logits, stress.expand(3, -1, -1, -1))
    torch.testing.assert_close(one.orbit_logits, torch.einsum("gij,bjk->gbik", matrices[1:], stress))
    each = torch.tensor([2, 0, 1, 3])
    expected = torch.stack([matrices[g] @ s @ matrices[g].T for g, s in zip(each, stress, strict=True)])
    torch.testing.assert_close(field.act(stress, each), expected)
    torch.testing.assert_close(field.invert(expected, each), stress)


def test_a_constant_field_of_forces():
    matrices, x = rotations(4), points()
    with torch.no_grad():
        outputs = evaluate_orbit(
            PairPotential(0.5), x, LinearAction(matrices), output_action={"energy": None, "forces": "same"}
        )
        forces = PairPotential(0.5)(x)["forces"]
    field = torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64)
    gaps = torch.stack([5**0.5 * (matrix.T @ field - field).norm() for matrix in matrices[1:]])
    expected = gaps[:, None] / forces.flatten(1).norm(dim=1)
    error = functional.relative_equivariance_error(
        outputs["forces"].logits, outputs["forces"].orbit_logits, reduction="element"
    )
    torch.testing.assert_close(error, expected.mean(1))


MOVES = [
    {"energy": None, "forces": "same"},
    {"energy": None, "forces": SO3(3), "stress": FieldAction(SO3(3, dim=-2), SO3(3, dim=-1))},
]


@pytest.mark.parametrize("moves", MOVES, ids=["same", "actions"])
def test_callbacks_draw_the_same_elements_for_input_and_output(moves):
    def loss(output: dict[str, Tensor], y: Tensor) -> Tensor:
        return (output["energy"] - y).square().mean()

    data = TensorDataset(points(8), torch.randn(8, dtype=torch.float64))
    regularizer = InvarianceRegularizer(SO3(3), 1.0, output_action=moves, elements_per_step=2)
    monitor = InvarianceMonitor(SO3(3), output_action=moves)
    module = Module(PairPotential(), loss)
    trainer = trainer_for([regularizer, monitor], max_epochs=2, precision="64-true")
    trainer.fit(module, batches(data), batches(data))
    assert float(trainer.callback_metrics["train/invariance_penalty"]) < 1e-20
    for record in monitor.history:
        errors = {name: value for name, value in values(record.measures).items() if name.endswith("equivariance_error")}
        assert len(errors) == len(moves) - 1
        assert max(errors.values()) < 1e-12
        assert values(record.measures)["energy/logit_invariance_error"] < 1e-20
    assert monitor.history[0].action == monitor.history[1].action != SO3(3)


def test_an_action_that_is_drawn_with_the_input_is_as_good_as_same():
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))

    data = TensorDataset(points(8).float(), points(8).float())
    loss = nn.functional.mse_loss

    def regularized(moves: object, seed: int = 0) -> Module:
        callback = InvarianceRegularizer(SO3(3), 1.0, output_action=moves, seed=seed, elements_per_step=2)
        return trained(network, [callback], data, loss=loss)

    same, action, other = regularized("same"), regularized(SO3(3)), regularized("same", seed=1)
    assert distance(same, action) == 0.0
    assert distance(same, other) > 1e-3
    by_name = InvarianceMonitor(SO3(3), output_action="same", measures=["relative_equivariance_error"])
    by_action = InvarianceMonitor(SO3(3), output_action=SO3(3), measures=["relative_equivariance_error"])
    records = [monitored(same.network, monitor, data, loss) for monitor in (by_name, by_action)]
    assert values(records[0].measures) == values(records[1].measures)
    assert float(records[0].measures["relative_equivariance_error"].value) > 0.1


@pytest.mark.parametrize("padding", [None, 0])
def test_sets_whose_outputs_are_sets(padding):
    """In the same order, whatever stands before and behind them; filled places give a bias, and stay."""
    x, network = points().float(), nn.Linear(3, 4)
    x[:, 3:] = 0

    def given(x: Tensor) -> dict[str, Tensor]:
        each = network(x) + x.square().mean((1, 2), keepdim=True)
        return {"each": each, "first": each[..., 0], "wide": each[:, :, None].expand(-1, -1, 2, -1), "sum": each.sum(1)}

    moves = {"each": "same", "first": "same", "wide": "same", "sum": None}
    with torch.no_grad():
        found = evaluate_orbit(given, x, SetPermutations(samples=4, padding=padding), output_action=moves)
        broken = evaluate_orbit(
            lambda x: x.cumsum(1), x, SetPermutations(samples=4, padding=padding), output_action="same"
        )
    for outputs in found.values():
        torch.testing.assert_close(outputs.orbit_logits, outputs.logits.expand_as(outputs.orbit_logits))
    assert (broken.orbit_logits - broken.logits).abs().max() > 0.1


def test_pooling_forces_over_rotations_and_reflections_of_axes():
    """The largest of turned components is no vector: only the mean can be taken."""
    signs = [(a, b, c) for a in (1.0, -1.0) for b in (1.0, -1.0) for c in (1.0, -1.0)]
    group = LinearAction(torch.stack([torch.diag(torch.tensor(each)) for each in signs]))
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    pooled, x = OrbitPooled(network, group, output_action="same"), points()
    for each in signs:
        moved = x * torch.tensor(each)
        torch.testing.assert_close(pooled(moved), pooled(x) * torch.tensor(each), rtol=0, atol=1e-14)
    field = FieldAction(group, LinearAction(torch.stack([torch.eye(3)] * 8), dim=-2))
    for moves in ("same", group, field, {"energy": None, "forces": "same"}):
        with pytest.raises(ValueError, match="`pool` to be 'mean' with output_action"):
            OrbitPooled(network, group, "max", output_action=moves)


def test_fresh_elements_are_the_same_for_points_and_what_is_attached_to_them() -> None:
    action = FieldAction(SO3(2, dim=-2), SO3(2, dim=-1))
    drawn, index = action.fresh(4, torch.Generator().manual_seed(5))
    stress = torch.randn(4, 3, 3, dtype=torch.float64)
    rotations = drawn.fibres.act(torch.eye(3, dtype=torch.float64).repeat(4, 1, 1), index).mT
    assert not torch.allclose(rotations[0], rotations[1])
    assert torch.allclose(drawn.act(stress, index), rotations @ stress @ rotations.mT)
