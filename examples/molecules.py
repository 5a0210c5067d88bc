"""Does a force field know that a molecule may be turned? Energies stay, forces turn with it.

The 148 molecules of the G2/97 set, as `ase` ships them: geometries in a standard orientation and experimental energies
of atomisation, extrapolated to 0 K. A network gets elements and coordinates, and gives the energy and the force on each
atom. The same network in four ways:

- plain: it sees how far apart atoms are and in which direction, and gives forces directly; trained on the molecules as
  they lie in the file.
- DA: the same, each molecule turned at random, its forces with it.
- IR: as DA, with the equivariance error of energies and forces added to the loss.
- distances: it sees how far apart they are alone, and its forces are the slope of its energy. Equivariant to rotations
  and reflections by construction.

What the targets are: the energy is the experimental one, and that of springs for how far the atoms were moved. All
coordinates get a Gaussian displacement of 0.05 Å; each bond is a harmonic spring of 30 eV/Å² (that of a C-C single bond
is about 28) about its length in the file. Forces are those of the springs. This bond model is no quantum chemistry; it
is taken because its forces are known exactly, and turn with the molecule exactly.

    python examples/molecules.py --out molecules_results

How the settings were chosen: on the 20 validation molecules, with one seed; see docs/molecules.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch
from ase.build import molecule
from ase.data import chemical_symbols, covalent_radii, g2
from ase.symbols import string2symbols
from ase.units import kcal, mol
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_invariance import (
    O3,
    SO3,
    Estimate,
    InvarianceRegularizer,
    LinearAction,
    LossShare,
    OrbitAugmentation,
    OrbitOutputs,
    OrbitShare,
    RelativeEquivarianceError,
    VectorCosineSimilarity,
    evaluate_invariance,
    evaluate_orbit,
)
from lightning_invariance.functional import vector_cosine_similarity
from lightning_invariance.report import markdown_table

SPRING = 30.0  # eV/Å²
DISPLACEMENT = 0.05  # Å
ROTATIONS = 16
SIZES = {"train": 88, "validation": 20, "test": 40}
WEIGHT = 0.1  # chosen on validation molecules
MOVES = {"energy": None, "forces": "same"}
NOTES = """\
Means over 40 test molecules ± standard errors over them; energies in meV per atom, forces in eV/Å, over real atoms.
"turned": the mean over 16 rotations that no training saw. |ΔE|, |ΔF|, cosine: between the molecule as it lies and
turned, brought back. O(3): rotations and reflections."""


@dataclass(frozen=True)
class Molecules(Dataset[dict[str, Tensor]]):
    """Molecules, padded: all tensors have one row each.

    Attributes:
        positions: ``(N, atoms, 3)`` in Å; 0 where there is no atom.
        charges: nuclear charges ``(N, atoms)``; 0 where there is no atom.
        energy: of atomisation in eV, with that of the springs taken off, ``(N,)``: larger is more stable.
        forces: ``(N, atoms, 3)`` in eV/Å.
    """

    positions: Tensor
    charges: Tensor
    energy: Tensor
    forces: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int | list[int] | slice) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in vars(self).items()}

    @property
    def is_atom(self) -> Tensor:
        """``(N, atoms)``."""
        return self.charges > 0


def atomisation_energy(name: str) -> float:
    """The experimental energy of atomisation at 0 K without zero-point energy, in eV.

    The enthalpy of formation at 298 K, taken back to 0 K and to atoms. (ase has this function for the first 55.)
    """
    data = g2.data[name]
    total = -data["enthalpy"] + data["ZPE"] + data["thermal correction"]
    for symbol in string2symbols(data["symbols"]):
        total += g2.data[symbol]["enthalpy"] - g2.data[symbol]["thermal correction"]
    return total * kcal / mol


def bonds(positions: Tensor, charges: Tensor) -> tuple[Tensor, Tensor]:
    """Which atoms are bonded, ``(N, atoms, atoms)``, and how far from each other all are."""
    radii = torch.from_numpy(covalent_radii).float()[charges]
    apart = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = (charges > 0)[:, :, None] & (charges > 0)[:, None] & ~torch.eye(charges.shape[1], dtype=torch.bool)
    return pairs & (apart < 1.25 * (radii[:, :, None] + radii[:, None])), apart


def springs(positions: Tensor, bonded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Energies ``(N,)`` and forces ``(N, atoms, 3)`` of a spring along each bond."""
    vectors = positions[:, :, None] - positions[:, None]
    apart = vectors.norm(dim=-1)
    stretch = torch.where(bonded, apart - lengths, 0.0)
    forces = -SPRING * (stretch / apart.clamp_min(1e-9))[..., None] * vectors
    return SPRING / 4 * stretch.square().sum(dim=(1, 2)), forces.sum(dim=2)  # each bond is there twice


def load_molecules(snapshots: int) -> dict[str, Molecules]:
    """Training molecules displaced so many times, those to validate and to test on once each."""
    atoms = [molecule(name) for name in g2.molecule_names]
    most = max(map(len, atoms))
    positions, charges = torch.zeros(len(atoms), most, 3), torch.zeros(len(atoms), most, dtype=torch.long)
    for row, each in enumerate(atoms):
        centred = each.positions - each.positions.mean(axis=0)
        positions[row, : len(each)] = torch.from_numpy(centred).float()
        charges[row, : len(each)] = torch.from_numpy(each.numbers)
    energy = torch.tensor([atomisation_energy(name) for name in g2.molecule_names])

    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(atoms), generator=generator)
    parts: dict[str, Molecules] = {}
    for name, chosen in zip(SIZES, order.split(list(SIZES.values())), strict=True):
        rows = chosen.repeat_interleave(snapshots if name == "train" else 1)
        rest, kinds = positions[rows], charges[rows]
        noise = DISPLACEMENT * torch.randn(rest.shape, generator=generator) * (kinds > 0)[..., None]
        bonded, lengths = bonds(rest, kinds)
        stretched, forces = springs(rest + noise, bonded, lengths)
        parts[name] = Molecules(rest + noise, kinds, energy[rows] - stretched, forces)
    return parts


class MessagePassing(nn.Module):
    """Atoms tell each other what they are, through filters of where they lie.

    Args:
        sees: the ``"distances"`` between atoms alone, spread over Gaussians, or with ``"vectors"`` directions, too.
        atom_energies: what each element adds to the energy by itself, ``(elements,)``, by nuclear charge.
        width: how many numbers it keeps of an atom.
    """

    def __init__(self, sees: str, atom_energies: Tensor, width: int = 48) -> None:
        super().__init__()

        def perceptron(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(before, width), nn.SiLU(), nn.Linear(width, after))

        self.sees = sees
        self.register_buffer("atom_energies", atom_energies)
        self.register_buffer("centres", torch.linspace(0.5, 5.0, 24))
        self.elements = nn.Embedding(len(atom_energies), width)
        seen = len(self.centres) + (3 if sees == "vectors" else 0)
        self.filters = nn.ModuleList(perceptron(seen, width) for _ in range(3))
        self.updates = nn.ModuleList(perceptron(width, width) for _ in range(3))
        self.to_energy = perceptron(width, 1)
        if sees == "vectors":
            self.pair = nn.ModuleList([perceptron(seen, width), nn.Linear(width, width), nn.Linear(width, width)])
            self.to_forces = perceptron(width, 3)

    def forward(self, positions: Tensor, charges: Tensor) -> dict[str, Tensor]:
        """From ``(B, atoms, 3)`` and ``(B, atoms)`` to ``energy`` ``(B,)`` and ``forces`` ``(B, atoms, 3)``."""
        if self.sees == "vectors":
            energy, atoms, seen, (left, right) = self.look(positions, charges)
            of_pair, of_left, of_right = self.pair
            forces = self.to_forces(of_pair(seen) * of_left(atoms)[left] * of_right(atoms)[right])
            return {"energy": energy, "forces": sum_at(left, forces, len(atoms)).view_as(positions)}
        with torch.enable_grad():
            positions = positions if positions.requires_grad else positions.detach().requires_grad_()
            energy, *_ = self.look(positions, charges)
            # The energy of atomisation falls where the potential energy rises: no minus.
            (forces,) = torch.autograd.grad(energy.sum(), positions, create_graph=self.training)
        return {"energy": energy if self.training else energy.detach(), "forces": forces}

    def look(self, positions: Tensor, charges: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Energies ``(B,)``, what it knows of each atom, what it sees of each pair, and which atoms are the pairs."""
        count = charges.shape[1]
        is_atom = charges > 0
        others = ~torch.eye(count, dtype=torch.bool, device=charges.device)
        sample, first, second = (is_atom[:, :, None] & is_atom[:, None] & others).nonzero(as_tuple=True)
        left, right = sample * count + first, sample * count + second
        vectors = positions.flatten(0, 1)[right] - positions.flatten(0, 1)[left]
        lengths = vectors.norm(dim=-1, keepdim=True)
        seen = torch.exp(-((lengths - self.centres) / (self.centres[1] - self.centres[0])).square() / 2)
        if self.sees == "vectors":
            seen = torch.cat([seen, vectors / lengths], dim=1)
        atoms = self.elements(charges.flatten())
        for make_filter, update in zip(self.filters, self.updates, strict=True):
            atoms = atoms + update(sum_at(left, make_filter(seen) * atoms[right], len(atoms)))
        each = self.to_energy(atoms)[:, 0] + self.atom_energies[charges.flatten()]
        return (each.view_as(charges) * is_atom).sum(dim=1), atoms, seen, (left, right)


def sum_at(places: Tensor, values: Tensor, count: int) -> Tensor:
    """Adds up the rows of values that belong to the same place: ``(count, ...)``."""
    return values.new_zeros(count, values.shape[1]).index_add(0, places, values)


class ForceField(L.LightningModule):
    """What anybody would write: it knows nothing of groups."""

    def __init__(self, network: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate

    def forward(self, positions: Tensor, charges: Tensor) -> dict[str, Tensor]:
        return self.network(positions, charges)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        found = self(batch["positions"], batch["charges"])
        is_atom = batch["charges"] > 0
        energy = ((found["energy"] - batch["energy"]) / is_atom.sum(dim=1)).square().mean()
        forces = (found["forces"] - batch["forces"]).square()[is_atom].mean()
        return 4 * energy + forces

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), weight_decay=1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.learning_rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(network: nn.Module, callbacks: list[L.Callback], data: Molecules, epochs: int, rate: float) -> ForceField:
    """Trains on the molecules; the callbacks know of rotations."""
    module = ForceField(network, rate)
    trainer = L.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        gradient_clip_val=5.0,
    )
    trainer.fit(module, DataLoader(data, batch_size=32, shuffle=True))
    return module.eval()


def fit_atom_energies(data: Molecules) -> Tensor:
    """What each element adds to the energy: least squares over the training molecules, by nuclear charge."""
    counts = nn.functional.one_hot(data.charges, 18).sum(dim=1).double()
    counts[:, 0] = 0  # padding
    gram = counts.T @ counts + 1e-3 * torch.eye(18, dtype=torch.float64)  # of an element never met, nothing is known
    return torch.linalg.solve(gram, counts.T @ data.energy.double()).float()


def per_molecule(values: Tensor) -> Estimate:
    """The mean over molecules, and its standard error."""
    values = values.double()
    return Estimate(values.mean(), values.std() / len(values) ** 0.5)


def pose_by_pose(network: nn.Module, data: Molecules, action: LinearAction) -> dict[str, OrbitOutputs]:
    """What the network gives in each pose, brought back. One pose at a time: the charges are those of one."""
    with torch.no_grad():
        return evaluate_orbit(
            lambda positions: network(positions, data.charges),
            data.positions,
            action,
            output_action=MOVES,
            max_batch=len(data),
        )


def over_poses(network: nn.Module, data: Molecules, action: LinearAction) -> dict[str, Tensor]:
    """What benchmarks of force fields report, over the poses but the first: each a number a molecule, ``(N,)``."""
    found = pose_by_pose(network, data, action)
    energy, forces, atoms = found["energy"], found["forces"], data.is_atom.sum(dim=1)

    def of_energy(found: Tensor, expected: Tensor) -> Tensor:
        return 1000 * ((found - expected).abs() / atoms).mean(dim=0)

    def of_forces(found: Tensor, expected: Tensor) -> Tensor:  # padding is 0 in both, and not counted
        return ((found - expected).abs().sum(dim=(-2, -1)) / (3 * atoms)).mean(dim=0)

    return {
        "energy MAE": of_energy(energy.logits[None], data.energy),
        "energy MAE, turned": of_energy(energy.orbit_logits, data.energy),
        "|ΔE|": of_energy(energy.orbit_logits, energy.logits),
        "force MAE": of_forces(forces.logits[None], data.forces),
        "force MAE, turned": of_forces(forces.orbit_logits, data.forces),
        "|ΔF|": of_forces(forces.orbit_logits, forces.logits),
        "cosine": vector_cosine_similarity(
            forces.logits, forces.orbit_logits, valid=data.is_atom[None, ..., None], reduction="none"
        ),
    }


def measure(network: nn.Module, data: Molecules) -> dict[str, Estimate]:
    """A row of the table."""
    turned = over_poses(network, data, SO3(ROTATIONS, seed=1))
    row = {name: per_molecule(values) for name, values in turned.items()}
    row["|ΔE|, O(3)"] = per_molecule(over_poses(network, data, O3(ROTATIONS, seed=1))["|ΔE|"])
    return row


def package_measures(network: nn.Module, data: Molecules) -> dict[str, Estimate]:
    """The package's own measures on the same molecules: they need no code of the field."""
    found = evaluate_invariance(
        network,
        [data[:]],
        SO3(ROTATIONS),
        input="positions",
        output_action=MOVES,
        measures={
            "energy/orbit share": OrbitShare(),
            "forces/relative error": RelativeEquivarianceError(),
            "forces/cosine": VectorCosineSimilarity(both_zero="ignore"),  # atoms that are there alone
            "forces/cosine with padding": VectorCosineSimilarity(),
            "energy/loss share, %": LossShare(),
            "forces/loss share, %": LossShare(),
        },
        progress=False,
    )
    return {name.replace("/", ": "): estimate for name, estimate in found.items()}


def draw(networks: Mapping[str, nn.Module], data: Molecules) -> Figure:
    """Forces on one molecule in many poses, brought back; and how its energy changes as it turns."""
    row = int((data.is_atom.sum(dim=1) - 9).abs().argmin())  # neither bare nor crowded
    one = Molecules(**{name: tensor[row : row + 1] for name, tensor in vars(data).items()})
    figure = Figure(figsize=(9.5, 4.2), layout="constrained", dpi=85)
    grid = figure.add_gridspec(2, 4, width_ratios=[1, 1, 0.7, 0.7])
    energies = figure.add_subplot(grid[:, 2:])
    angles = np.linspace(0, 360, 73)
    for place, (name, network) in enumerate(networks.items()):
        poses, turned = (
            pose_by_pose(network, one, each) for each in (SO3(ROTATIONS, seed=1), about_an_axis(np.radians(angles)))
        )
        axes = figure.add_subplot(grid[divmod(place, 2)], aspect="equal", title=name)
        draw_forces(axes, one, poses["forces"].orbit_logits[:, 0])
        change = 1000 * (turned["energy"].orbit_logits[:, 0] - turned["energy"].logits[0]) / one.is_atom.sum()
        energies.plot(angles, change, ["-", "--", "-.", ":"][place], label=name, linewidth=1.8)
    energies.set(xlabel="turned by (degrees)", ylabel="E − E(0), meV per atom", xticks=range(0, 361, 90))
    energies.legend(fontsize=9)
    return figure


def draw_forces(axes: Axes, one: Molecules, poses: Tensor) -> None:
    """A molecule, the forces on its atoms (black) and those that a network gives in each pose, brought back (red)."""
    atoms = one.is_atom[0]
    _, _, directions = torch.linalg.svd(one.positions[0][atoms], full_matrices=False)
    plane = directions[:2].T  # the two directions in which it is longest
    flat, (bonded, _) = one.positions[0] @ plane, bonds(one.positions, one.charges)
    for first, second in bonded[0].triu().nonzero().tolist():
        axes.plot(*flat[[first, second]].T, color="0.8", linewidth=4, zorder=1)
    # 3 eV/Å are as long as 1 Å.
    arrows = {"angles": "xy", "scale_units": "xy", "scale": 3.0}
    axes.quiver(*flat[atoms].T, *(one.forces[0] @ plane)[atoms].T, width=0.013, color="black", zorder=3, **arrows)
    for forces in poses:
        axes.quiver(*flat[atoms].T, *(forces @ plane)[atoms].T, width=0.006, color="#E34A33", zorder=4, **arrows)
    for (x, y), charge in zip(flat[atoms].tolist(), one.charges[0][atoms].tolist(), strict=True):
        axes.text(x, y, chemical_symbols[charge], ha="center", va="center", fontsize=9, color="#0B4F8A", zorder=2)
    axes.margins(0.35, 0.22)
    axes.set(xticks=[], yticks=[])


def about_an_axis(angles: np.ndarray) -> LinearAction:
    """Rotations about an oblique axis."""
    axis = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) / 14**0.5
    cross = torch.linalg.cross(torch.eye(3, dtype=torch.float64), axis.expand(3, 3))
    matrices = torch.stack([torch.linalg.matrix_exp(float(angle) * cross) for angle in angles])
    return LinearAction(torch.cat([torch.eye(3, dtype=torch.float64)[None], matrices]))


def main() -> None:
    """Trains, then opens the test molecules, measures, prints the tables, draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("molecules_results"), help="folder for tables and figure")
    parser.add_argument("--quick", action="store_true", help="one epoch: does everything run?")
    parser.add_argument("--part", choices=["validation", "test"], default="test", help="what to measure on")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--rate", type=float, default=5e-3, help="the highest learning rate")
    parser.add_argument("--weight", type=float, default=WEIGHT, help="of IR's error")
    parser.add_argument("--models", nargs="+", default=["plain", "DA", "IR", "distances"])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)  # the network is small: a second thread would mostly wait for the first
    data = load_molecules(snapshots=1 if arguments.quick else 6)
    atom_energies = fit_atom_energies(data["train"])
    augmentation = OrbitAugmentation(SO3(1), input="positions", target="forces", target_action="same")
    regularizer = InvarianceRegularizer(SO3(1), arguments.weight, input="positions", output_action=MOVES)
    models: dict[str, tuple[str, list[L.Callback]]] = {
        "plain": ("vectors", []),
        "DA": ("vectors", [augmentation]),
        "IR": ("vectors", [augmentation, regularizer]),
        "distances": ("distances", []),
    }
    networks: dict[str, nn.Module] = {}
    for name in arguments.models:
        sees, callbacks = models[name]
        print(name, flush=True)
        L.seed_everything(0, verbose=False)
        network = MessagePassing(sees, atom_energies)
        epochs = 1 if arguments.quick else arguments.epochs
        networks[name] = train(network, callbacks, data["train"], epochs, arguments.rate).network

    part = data[arguments.part]
    rows = {name: measure(network, part) for name, network in networks.items()}
    composition = (atom_energies[part.charges].sum(dim=1) - part.energy).abs() / part.is_atom.sum(dim=1)
    rows["elements alone"] = {
        "energy MAE": per_molecule(1000 * composition),
        "force MAE": per_molecule(part.forces.abs().sum(dim=(1, 2)) / (3 * part.is_atom.sum(dim=1))),
    }
    table = markdown_table(rows, corner="model")
    own = markdown_table({name: package_measures(each, part) for name, each in networks.items()}, corner="model")
    print(f"\n{table}\n\n{NOTES}\n\n{own}\n")
    (arguments.out / "table.md").write_text(table + "\n", encoding="utf-8")
    (arguments.out / "measures.md").write_text(own + "\n", encoding="utf-8")
    draw(networks, part).savefig(arguments.out / "molecules.png")
    print(f"Written to {arguments.out}: table.md, measures.md, molecules.png")


if __name__ == "__main__":
    main()
