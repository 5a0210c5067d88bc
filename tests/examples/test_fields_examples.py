"""The examples of real fields run in their short form, and what they are built on holds."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ase.data.g2_1 import get_atomization_energy, molecule_names
from ase.units import kcal, mol
from torch import Tensor, nn

from examples.molecules import (
    MessagePassing,
    atomisation_energy,
    bonds,
    load_molecules,
    over_poses,
    springs,
)
from examples.pretrained import MARGIN, SIDE, Window, load_network, rotation, shifts
from examples.wearables import CLASSES, UNITS, about, folds, invariants, load_series, ways_to_wear
from lightning_invariance import SO3, AffineAction

Rows = dict[str, dict[str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], Rows]:
    """Runs an example's short form; gives one of its tables by row and heading."""

    def run(name: str, *options: str) -> Rows:
        monkeypatch.setattr(sys, "argv", [name, "--quick", "--out", str(tmp_path), *options])
        importlib.import_module(f"examples.{name}").main()
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        return rows_of((tmp_path / "table.md").read_text(encoding="utf-8"))

    return run


def rows_of(text: str) -> Rows:
    rows: Rows = {}
    heads: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.replace(r"\|", "").split("|")[1:-1]]
        if not cells:
            heads = []
        elif not heads:
            heads = cells
        elif not cells[1].startswith("---"):
            name = cells[0] if cells[0] not in rows else f"{cells[0]} again {len(rows)}"
            rows[name] = dict(zip(heads[1:], cells[1:], strict=True))
    return rows


def number(cell: str) -> float:
    return float(cell.split()[0])


# Molecules -------------------------------------------------------------------------------------------------------


# After three steps the forces hardly know where the atoms are, and the package rightly says that they stay.
@pytest.mark.filterwarnings("ignore:evaluate_invariance. the network's outputs over the orbit agree better")
def test_molecules(run: Callable[..., Rows], tmp_path: Path) -> None:
    rows = run("molecules", "--models", "DA", "distances")
    assert list(rows) == ["DA", "distances", "elements alone"]
    assert number(rows["distances"]["ΔE"]) < 1e-2 < number(rows["DA"]["ΔE"])
    assert number(rows["distances"]["cosine"]) == pytest.approx(1, abs=1e-5)
    assert number(rows["distances"]["force MAE"]) == pytest.approx(number(rows["distances"]["force MAE, turned"]))
    own = rows_of((tmp_path / "measures.md").read_text(encoding="utf-8"))
    assert number(own["DA"]["forces: cosine"]) < number(own["DA"]["forces: cosine with padding"])


def test_energies_of_atomisation_are_those_that_ase_gives_where_it_does() -> None:
    for name in molecule_names:
        assert atomisation_energy(name) == pytest.approx(get_atomization_energy(name) * kcal / mol)
    # Benzene, of the second part, which ase has no function for: 1,367.6 kcal/mol, Feller and Dixon (2000).
    assert atomisation_energy("C6H6") == pytest.approx(1367.6 * kcal / mol, abs=0.05)


def test_forces_of_springs_are_the_slope_of_their_energy() -> None:
    data = load_molecules(snapshots=1)["validation"]
    positions = data.positions.double()
    bonded, lengths = bonds(data.positions, data.charges)
    still, none = springs(positions, bonded, torch.cdist(positions, positions))
    assert float(still.max()) < 1e-9
    assert float(none.abs().max()) < 1e-5
    moved = (positions + 0.1 * torch.randn_like(positions)).requires_grad_()
    energy, forces = springs(moved, bonded, lengths)
    (slope,) = torch.autograd.grad(energy.sum(), moved)
    torch.testing.assert_close(forces, -slope)
    forces = forces.detach()
    assert float(forces.sum(dim=1).abs().max()) < 1e-9  # no bond pulls a molecule away
    assert not bool(forces[data.charges == 0].any())
    # Methane and ethane, by their formulas: 4 and 7 bonds.
    counts = {tuple(sorted(kinds[kinds > 0].tolist())): int(each.sum()) // 2 for kinds, each in all_bonds()}
    assert counts[(1, 1, 1, 1, 6)] == 4
    assert counts[(1, 1, 1, 1, 1, 1, 6, 6)] == 7


def all_bonds() -> list[tuple[Tensor, Tensor]]:
    parts = load_molecules(snapshots=1).values()
    return [pair for part in parts for pair in zip(part.charges, bonds(part.positions, part.charges)[0], strict=True)]


def test_forces_of_the_network_of_distances_are_its_slope_and_padding_is_nothing() -> None:
    data = load_molecules(snapshots=1)["validation"]
    torch.manual_seed(0)
    network = MessagePassing("distances", torch.randn(18)).double().eval()
    positions, charges = data.positions.double(), data.charges
    found = network(positions, charges)
    step, atom = 1e-5, (slice(None), 0, 1)
    up, down = positions.clone(), positions.clone()
    up[atom] += step
    down[atom] -= step
    slope = (network(up, charges)["energy"] - network(down, charges)["energy"]) / (2 * step)
    torch.testing.assert_close(found["forces"][atom], slope, rtol=1e-5, atol=1e-6)
    padded = network(nn.functional.pad(positions, (0, 0, 0, 3), value=9.0), nn.functional.pad(charges, (0, 3)))
    torch.testing.assert_close(padded["energy"], found["energy"])
    torch.testing.assert_close(padded["forces"][:, :-3], found["forces"])
    assert not bool(padded["forces"][:, -3:].any())


class Constant(nn.Module):
    """One eV an atom, and a force to the right that never turns."""

    def forward(self, positions: Tensor, charges: Tensor) -> dict[str, Tensor]:
        right = torch.tensor([1.0, 0.0, 0.0]) * (charges > 0)[..., None]
        return {"energy": positions[..., 0].sum(dim=1), "forces": right}


def test_what_benchmarks_report_is_taken_over_atoms_that_are_there() -> None:
    data = load_molecules(snapshots=1)["validation"]
    action = SO3(3)
    turned = [action.act(torch.tensor([[[1.0, 0.0, 0.0]]]), element)[0, 0] for element in range(1, 4)]
    found = over_poses(Constant(), data, action)
    cosine = sum(float(each[0]) for each in turned) / 3  # the same force, brought back: R⁻¹ e₁, whose first part is R₁₁
    torch.testing.assert_close(found["cosine"], torch.full((len(data),), cosine))
    row = int(data.is_atom.sum(dim=1).argmin())
    atoms = data.positions[row][data.is_atom[row]]
    moved = [float(action.act(atoms[None], element)[0, :, 0].sum()) for element in range(1, 4)]
    expected = 1000 * sum(abs(each - float(atoms[:, 0].sum())) for each in moved) / 3 / len(atoms)
    assert float(found["|ΔE|"][row]) == pytest.approx(expected, rel=1e-4)


# Wearables -------------------------------------------------------------------------------------------------------


def test_wearables(run: Callable[..., Rows]) -> None:
    rows = run("wearables", "--models", "IR", "invariants")
    assert list(rows) == ["IR", "invariants"]
    assert number(rows["invariants"]["orbit share"]) < 1e-9 < 1e-4 < number(rows["IR"]["orbit share"])
    assert rows["invariants"]["accuracy"] == rows["invariants"]["right in all poses"]


def test_series_are_what_the_file_says() -> None:
    data = load_series("TRAIN")
    assert data.tensors["accelerometer"].shape == data.tensors["gyroscope"].shape == (40, 100, 3)
    assert data.tensors["label"].bincount().tolist() == [10] * len(CLASSES)
    # The file's first line of data: 0.079106 is the first value of the first channel, 1.6382 its fifth.
    first = UNITS[0] * data.tensors["accelerometer"][0, :, 0]
    assert first[[0, 4]].tolist() == pytest.approx([0.079106, 1.6382])
    assert CLASSES[int(data.tensors["label"][0])] == "Standing"
    for train, rest in folds(data, 4):
        assert train.tensors["label"].bincount().max() <= 8
        assert len(train) + len(rest) == 40
        both = torch.cat([train.tensors["gyroscope"], rest.tensors["gyroscope"]])
        assert float(both.sum()) == pytest.approx(float(data.tensors["gyroscope"].sum()), rel=1e-4)


def test_invariants_stay_under_rotations_and_tell_series_apart() -> None:
    both = [load_series("TRAIN").tensors[name].double() for name in ("accelerometer", "gyroscope")]
    still = invariants(*both)
    for element in range(1, 4):
        moved = invariants(*(SO3(3).act(each, element) for each in both))
        torch.testing.assert_close(moved, still)
    alone = invariants(SO3(3).act(both[0], 1), both[1])  # one of the two alone is another movement
    assert float((alone - still).abs().max()) > 0.1
    assert float(still.mean(dim=1).std(dim=0).min()) > 0.01


def test_turning_a_watch() -> None:
    vector = torch.tensor([[[1.0, 2.0, 3.0]]])
    moved = [ways_to_wear().act(vector, element).flatten().tolist() for element in range(4)]
    assert moved == [[1, 2, 3], [1, -2, -3], [-1, 2, -3], [-1, -2, 3]]
    quarter = about(2, torch.tensor([0.0, 90.0])).act(vector, 1)
    torch.testing.assert_close(quarter, torch.tensor([[[-2.0, 1.0, 3.0]]]))


# A pretrained network --------------------------------------------------------------------------------------------


def test_pretrained(run: Callable[..., Rows]) -> None:
    rows = run("pretrained", "--part", "validation")
    assert number(rows["quarter turns"]["relative error"]) > 0.1
    pooled = rows[[name for name in rows if name.startswith("quarter turns again")][-1]]
    assert number(pooled["relative error"]) < 1e-5
    assert rows["quarter turns"]["there and back"] == "–" != rows["turned by ±15°"]["there and back"]
    # Strides of two: the first layer halves the image, the next one stands in the third block.
    one, two = (row for row in rows if "breaks at" in row)
    assert one == "1 pixel, breaks at features.0.0"
    assert two == "2 pixels, breaks at features.2.conv.3"
    assert number(rows[two]["48×48"]) == 0 < number(rows[one]["48×48"])


def test_the_network_is_the_one_in_the_package() -> None:
    network = load_network()
    assert sum(each.numel() for each in network.parameters()) == 2_223_872  # MobileNetV2's 3,504,872 without its head
    with torch.no_grad():
        assert network(torch.zeros(1, 3, SIDE, SIDE)).shape == (1, 1280)


def test_what_moves_into_the_window_is_photograph() -> None:
    side = SIDE + 2 * MARGIN
    patch = torch.arange(float(side * side)).view(1, 1, side, side)
    window = Window(nn.Identity())
    assert torch.equal(window(shifts(8).act(patch, 1)), patch[..., MARGIN:-MARGIN, MARGIN - 8 : -MARGIN - 8])
    assert torch.equal(window(shifts(8).act(patch, 2)), patch[..., MARGIN - 8 : -MARGIN - 8, MARGIN:-MARGIN])
    turned = AffineAction(torch.stack([torch.eye(2, 3), rotation(15), rotation(-15)]))
    for element in (1, 2):  # nothing black comes in
        torch.testing.assert_close(window(turned.act(torch.ones_like(patch), element)), torch.ones(1, 1, SIDE, SIDE))
    # A ramp along a line, turned by 15°, is a ramp along the turned line.
    slopes = [window(turned.act(torch.linspace(-1, 1, side).expand(1, 1, side, side), each)) for each in (1, 2)]
    for slope, sign in zip(slopes, (1, -1), strict=True):
        down = float(slope.diff(dim=-2).mean() / slope.diff(dim=-1).mean())
        assert abs(down) == pytest.approx(math.tan(math.radians(15)), rel=1e-3)
        assert down * sign == pytest.approx(float(slopes[0].diff(dim=-2).mean() / slopes[0].diff(dim=-1).mean()))
