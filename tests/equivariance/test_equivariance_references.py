"""Equivariance errors against the checks of two other packages: same network, same input, same motions.

Neither package measures as the other does, so what they compute is computed here from `evaluate_orbit`'s outputs.
Each is imported by the tests that need it: the rest runs where it is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from lightning_invariance import SO3, LinearAction, evaluate_orbit

TRIALS = 6
TOLERANCE = 1e-6


@contextmanager
def doubles_by_default() -> Iterator[None]:
    """E3nn makes its weights, and rounds its result, in torch's default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def _default_precision_is_left_alone() -> Iterator[None]:
    yield
    assert torch.get_default_dtype() == torch.float32


# e3nn: the largest |f(Rx) - R f(x)| of any trial and any entry.


@pytest.fixture
def equivariance_error() -> Callable[..., dict[tuple[int, bool], Tensor]]:
    """Imported in here: `e3nn.util.test` holds an autouse fixture, which pytest would find in this module."""
    error: Callable[..., dict[tuple[int, bool], Tensor]] = pytest.importorskip("e3nn.util.test").equivariance_error
    return error


def force_field(mix: float) -> nn.Module:
    """Positions (B, N, 3) to forces (B, N, 3) and energy (B, 1); `mix` adds a vector's component to a scalar."""
    from e3nn import nn as enn
    from e3nn import o3

    class ForceField(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.harmonics = o3.Irreps("0e + 1o + 2e")
            self.gate = enn.Gate("4x0e", [torch.tanh], "4x0e", [torch.sigmoid], "4x1o")
            self.message = o3.FullyConnectedTensorProduct("3x0e", self.harmonics, self.gate.irreps_in)
            self.out = o3.Linear(self.gate.irreps_out, "1x1o + 1x0e")
            self.mix = nn.Parameter(torch.tensor(mix))

        def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
            edges = positions[..., :, None, :] - positions[..., None, :, :]
            lengths = (edges.square().sum(-1, keepdim=True) + 1e-3).sqrt()
            harmonics = o3.spherical_harmonics(self.harmonics, edges / lengths, normalize=False)
            radial = torch.cat([torch.exp(-((lengths - centre) ** 2)) for centre in (0.5, 1.0, 2.0)], dim=-1)
            hidden = self.gate(self.message(radial, harmonics).sum(dim=-2))
            hidden = torch.cat([hidden[..., :1] + self.mix * hidden[..., -1:], hidden[..., 1:]], dim=-1)
            out = self.out(hidden)
            # A scalar for each point scales its force, so that what is mixed in spoils both outputs.
            return out[..., :3] * (1 + out[..., 3:] ** 2), out[..., 3:].sum(dim=-2)

    torch.manual_seed(0)
    with doubles_by_default():
        return ForceField()


def positions() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 5, 3, dtype=torch.float64, generator=generator)


def from_the_orbit(network: nn.Module, action: LinearAction, matrices: Tensor, forces: str | None = "same") -> Tensor:
    """The error of forces and energy, ``(trials, 2)``, by matrices that are not asked of the action."""
    with torch.no_grad():
        outputs = evaluate_orbit(
            lambda x: dict(zip(("forces", "energy"), network(x), strict=True)),
            positions(),
            action,
            output_action={"forces": forces, "energy": None},
        )
    of_forces = outputs["forces"].orbit_logits - outputs["forces"].logits  # R^-1 f(Rx) - f(x)
    of_energy = outputs["energy"].orbit_logits - outputs["energy"].logits
    of_forces = torch.einsum("tij,tbnj->tbni", matrices, of_forces)
    return torch.stack([part.abs().flatten(1).amax(1) for part in (of_forces, of_energy)], dim=1)


@pytest.mark.parametrize("mix", [0.0, 0.7], ids=["equivariant", "broken"])
def test_rotations_and_reflections_that_e3nn_draws(equivariance_error, monkeypatch, mix):
    from e3nn import o3

    network, draw, drawn = force_field(mix), o3.rand_matrix, []

    def recorded(*shape: int, **options) -> Tensor:
        drawn.append(draw(*shape, **options))
        return drawn[-1].clone()  # it is multiplied by -1 in place

    monkeypatch.setattr(o3, "rand_matrix", recorded)
    torch.manual_seed(2)
    with doubles_by_default():
        theirs = equivariance_error(
            network, [positions()], ["cartesian_points"], ["1o", "0e"], ntrials=TRIALS, do_translation=False
        )
    matrices = torch.stack(drawn)
    matrices[1::2] *= -1  # in every trial a rotation, then one with a reflection
    ours = from_the_orbit(network, LinearAction(torch.cat([torch.eye(3)[None], matrices])), matrices)
    for parity in (0, 1):
        torch.testing.assert_close(ours[parity::2].amax(0), theirs[parity, False], rtol=0, atol=TOLERANCE)
    assert_equivariant_or_broken(ours, mix)


@pytest.mark.parametrize("mix", [0.0, 0.7], ids=["equivariant", "broken"])
def test_rotations_of_so3_given_to_e3nn(equivariance_error, monkeypatch, mix):
    from e3nn import o3

    network, action = force_field(mix), SO3(samples=TRIALS, seed=3)
    basis = torch.eye(3, dtype=torch.float64)[None]
    matrices = torch.cat([action.act(basis, element) for element in range(1, len(action))]).mT  # rows are moved
    queue = iter(matrices)
    monkeypatch.setattr(o3, "rand_matrix", lambda **_: next(queue).clone())
    with doubles_by_default():
        theirs = equivariance_error(
            network,
            [positions()],
            ["cartesian_points"],
            ["1o", "0e"],
            ntrials=TRIALS,
            do_parity=False,
            do_translation=False,
        )
    assert next(queue, None) is None
    ours = from_the_orbit(network, action, matrices)
    torch.testing.assert_close(ours.amax(0), theirs[0, False], rtol=0, atol=TOLERANCE)
    assert_equivariant_or_broken(ours, mix)
    assert from_the_orbit(network, action, matrices, forces=None)[:, 0].amin() > 0.1  # it matters how forces move


def assert_equivariant_or_broken(errors: Tensor, mix: float) -> None:
    """Or the agreement would be one of zeros."""
    assert (errors > 1e-3).all() if mix else (errors < 1e-9).all()


# escnn: for every element, the mean |rho(g) f(x) - f(gx)| over a disc of 33 by 33 averages.


def photograph():
    """In floats of 0 to 255: escnn divides by 255, and of bytes `resize` has already done so: a grey image is left."""
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg").astype("float64")


@pytest.mark.parametrize("broken", [False, True], ids=["tied", "broken"])
@pytest.mark.parametrize("fields", ["scalars", "regular"])
@pytest.mark.parametrize("group", ["C4", "D4"])
def test_a_convolution_of_escnn_on_a_photograph(monkeypatch, group, fields, broken):
    pytest.importorskip("escnn.nn", exc_type=ImportError)
    pytest.importorskip("skimage.transform")
    pytest.importorskip("sklearn.datasets")
    pytest.importorskip("scipy.datasets")
    from escnn import gspaces
    from escnn import nn as enn

    from lightning_invariance.baselines import action_of

    monkeypatch.setattr("scipy.datasets.face", photograph)  # it would be downloaded
    gspace = gspaces.rot2dOnR2(4) if group == "C4" else gspaces.flipRot2dOnR2(4)
    vector = gspace.irrep(1) if group == "C4" else gspace.irrep(1, 1)
    kinds = 3 * [gspace.trivial_repr] if fields == "scalars" else [gspace.regular_repr]
    torch.manual_seed(0)
    conv = enn.R2Conv(
        enn.FieldType(gspace, kinds), enn.FieldType(gspace, [gspace.regular_repr, vector]), kernel_size=3, bias=True
    ).eval()
    if broken:  # the plain filter that is used for evaluation: its weights are tied no more
        conv.filter.add_(0.1 * torch.randn(conv.filter.shape))
    seen: list[Tensor] = []
    hook = conv.register_forward_pre_hook(lambda _, args: seen.append(args[0].tensor))
    theirs = torch.tensor([error for _, error in conv.check_equivariance(assertion=not broken, verbose=False)])
    hook.remove()

    moved, x = seen  # what escnn gave to the layer: all elements' inputs, then the photograph's
    action, output_action = action_of(conv.in_type), action_of(conv.out_type)
    torch.testing.assert_close(action.orbit(x, range(len(action))).flatten(0, 1), moved, rtol=0, atol=TOLERANCE)
    assert x.std() > 0.1

    def from_the_orbit(output_action) -> Tensor:
        with torch.no_grad():
            outputs = evaluate_orbit(lambda x: conv(conv.in_type(x)).tensor, x, action, output_action=output_action)
        assert outputs.valid is None
        difference = nn.functional.avg_pool2d((outputs.orbit_logits - outputs.logits).flatten(0, 1), 5)
        row, column = torch.meshgrid(*2 * [torch.arange(33) - 16], indexing="ij")
        # The disc is symmetric, and channels are exchanged and change signs: the pose makes no difference to the mean.
        return difference[..., row**2 + column**2 < (33 / 4) ** 2].abs().mean(dim=(1, 2))

    ours = from_the_orbit(output_action)
    torch.testing.assert_close(ours, theirs[1:].to(ours.dtype), rtol=0, atol=TOLERANCE)  # the first is the identity's
    assert (ours > 1e-2).all() if broken else (ours < 1e-5).all()
    assert (from_the_orbit(None) > 1e-2).all()  # it matters how the output moves
