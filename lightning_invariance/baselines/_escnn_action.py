"""The group that an escnn network was built with, as an action to measure it by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi
from typing import Any

import torch
from torch import Tensor

from lightning_invariance._checks import check_count, check_seed
from lightning_invariance._requirements import require
from lightning_invariance.actions import (
    C4,
    D4,
    SO2,
    Action,
    AffineAction,
    FieldAction,
    HorizontalFlip,
    LinearAction,
    PermutationAction,
    Rotations,
    VerticalFlip,
)


def action_of(space: Any, *, samples: int = 16, seed: int = 0) -> Action:
    r"""The action of an escnn gspace on images, or of a field type on feature fields.

    .. math::
        (g f)(p) = \rho(g)\, f(g^{-1} p)

    (Weiler and Cesa, 2019.) Element ``i`` is the ``i``-th of escnn's own ``space.fibergroup.elements`` and moves a
    batch as ``GeometricTensor.transform`` does. The action is this package's own where there is one: `C4`, `D4`,
    `HorizontalFlip`, `VerticalFlip`, `Rotations`, `SO2`. It is exact on the plane wherever the group is one of
    rotations by 90° and flips that a square has; other rotations and flips interpolate.

    Args:
        space: a gspace of the plane (``escnn.gspaces.rot2dOnR2(4)``), for images whose channels are scalars; or a
            ``FieldType`` on one, the type of a network's input. Where its representations are not trivial, channels
            are multiplied by :math:`\rho(g)`, up to rounding.
        samples: of SO(2) and O(2), how many elements are drawn besides the identity; of O(2), every other one is a
            reflection.
        seed: of the draw.

    Returns:
        An action on batches ``(B, ..., H, W)``, or ``(B, space.size, H, W)`` where :math:`\rho` is not trivial.

    Raises:
        ValueError: if `space` is neither, is not one of the plane, or has no element besides the identity; if `samples`
            is no integer of at least 1.
        ModuleNotFoundError: if escnn is not installed; the message says how to install it.

    Example:
        >>> from escnn import gspaces
        >>> from lightning_invariance.baselines import action_of
        >>> action_of(gspaces.rot2dOnR2(4)), action_of(gspaces.rot2dOnR2(8))
        (C4(), Rotations(order=8, interpolation='bilinear', padding='zeros'))
    """
    check_count("samples", samples)
    check_seed("seed", seed)
    field_types: Any = require("escnn.nn", "action_of").FieldType
    gspaces: Any = require("escnn.gspaces", "action_of")
    gspace = space.gspace if isinstance(space, field_types) else space
    if not isinstance(gspace, gspaces.GSpace2D):
        raise ValueError(
            f"Expected `space` to be a gspace of the plane, such as escnn.gspaces.rot2dOnR2(4), or a field type on one "
            f"but got {space!r}."
        )
    if gspace.fibergroup.order() < 1:
        return _drawn_action(space, gspace, samples, seed)
    elements = list(gspace.fibergroup.elements)
    if len(elements) < 2:
        raise ValueError(f"Expected `space` to have a symmetry besides the identity but got {space!r}.")
    plane = _plane_action(gspace, elements)
    if space is gspace:
        return plane
    fibres = torch.stack([space.fiber_representation(element) for element in elements])
    fibres[0] = torch.eye(space.size)  # to the last bit
    if torch.allclose(fibres, fibres[:1]):
        return plane
    return FieldAction(plane, LinearAction(fibres, dim=-3))


def _drawn_action(space: Any, gspace: Any, samples: int, seed: int) -> Action:
    plane = _O2(_plane_maps(gspace), samples, seed) if gspace.flips_order else SO2(samples, seed)
    if space is gspace:
        return plane
    frequency = max(gspace.fibergroup.irrep(*irrep).attributes["frequency"] for irrep in space.representation.irreps)
    fibres = _Representation.of(gspace, space.fiber_representation, frequency)
    return plane if fibres.is_trivial else _DrawnFieldAction(plane, fibres)


def _plane_maps(gspace: Any) -> _Representation:
    return _Representation.of(gspace, lambda element: _on_rows(gspace, element), frequency=1)


def _on_rows(gspace: Any, element: Any) -> Tensor:
    """What an element does to the plane, with rows that run down: escnn's y axis points up."""
    upright = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    return upright * torch.from_numpy(gspace.basespace_action(element))


def _plane_action(gspace: Any, elements: list[Any]) -> Action:
    matrices = torch.stack([_on_rows(gspace, element) for element in elements])
    chosen = _square_symmetries(matrices)
    if chosen is not None:
        named = {(0, 1, 2, 3): C4(), tuple(range(8)): D4(), (0, 4): HorizontalFlip(), (0, 6): VerticalFlip()}
        return named.get(chosen) or _SquareSymmetries(chosen)
    if not gspace.flips_order:
        return Rotations(len(elements))
    matrices[0] = torch.eye(2)  # to the last bit
    return AffineAction(torch.nn.functional.pad(matrices, (0, 1)))


def _square_symmetries(matrices: Tensor) -> tuple[int, ...] | None:
    """Which elements of `D4` the matrices are, or None where one is none of them."""
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)  # counter-clockwise where rows run down
    flip = torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    turns = [torch.linalg.matrix_power(turn, k) for k in range(4)]
    square = torch.stack([*turns, *(turned @ flip for turned in turns)])
    distance = torch.cdist(matrices.flatten(1), square.flatten(1), p=torch.inf).min(dim=1)
    return tuple(distance.indices.tolist()) if bool((distance.values < 1e-6).all()) else None


class _SquareSymmetries(PermutationAction):
    """Some elements of `D4`, by their indices in it."""

    def __init__(self, elements: tuple[int, ...]) -> None:
        self.elements = elements

    def __len__(self) -> int:
        return len(self.elements)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(D4().labels[element] for element in self.elements)

    def index_table(self, sizes: tuple[int, ...]) -> Tensor:
        return D4().index_table(sizes)[list(self.elements)]

    @property
    def _faithful_sizes(self) -> tuple[int, ...]:
        return (2, 2)

    def _check_sizes(self, sizes: tuple[int, ...]) -> None:
        if any(element % 2 for element in self.elements):  # some exchange height and width
            D4().check(torch.empty(1, *sizes, device="meta"))

    def _permute(self, x: Tensor, element: int) -> Tensor:
        flips, turns = divmod(self.elements[element], 4)
        return torch.rot90(x.flip(-1) if flips else x, turns, (-2, -1))

    def _arguments(self) -> dict[str, object]:
        return {"elements": self.elements}


class _Representation:
    """A representation of SO(2) or O(2), known everywhere from its values at a few angles.

    It is a trigonometric polynomial of the angle, of a degree K that the irreducible parts say, so its values at 2K + 1
    angles hold it; and unlike escnn's own they can be pickled.

    Args:
        values: at equally spaced angles from 0, of the rotations and, for O(2), the reflections; shape
            ``(1 or 2, 2K + 1, n, n)``.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def of(cls, gspace: Any, representation: Callable[[Any], Tensor], frequency: int) -> _Representation:
        angles = [2 * pi * step / (2 * frequency + 1) for step in range(2 * frequency + 1)]
        kinds = [[(flip, angle) for angle in angles] for flip in (0, 1)] if gspace.flips_order else [angles]
        element = gspace.fibergroup.element
        return cls(torch.stack([torch.stack([representation(element(at)).double() for at in kind]) for kind in kinds]))

    @property
    def is_trivial(self) -> bool:
        return torch.allclose(self.values, torch.eye(self.values.shape[-1], dtype=torch.float64))

    def at(self, degrees: Sequence[float]) -> Tensor:
        """The matrices at these angles, shape ``(len(degrees), n, n)``; of O(2), every other one is a reflection's."""
        kinds, count = self.values.shape[:2]
        steps = 2 * pi * torch.arange(count, dtype=torch.float64) / count
        between = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))[:, None] - steps
        waves = torch.arange(1, count // 2 + 1, dtype=torch.float64)
        weights = (1 + 2 * (waves[:, None, None] * between).cos().sum(dim=0)) / count
        matrices = torch.einsum("em,emij->eij", weights, self.values[torch.arange(len(degrees)) % kinds])
        matrices[0] = torch.eye(matrices.shape[-1])  # to the last bit
        return matrices

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Representation) and torch.equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash(tuple(self.values.flatten().tolist()))


def _fresh_of_o2(action: Action, n: int, generator: torch.Generator | None) -> tuple[Action, Tensor]:
    """Of O(2) every other element is a reflection: whether a sample's is one has to be drawn as well."""
    check_count("n", n, minimum=0)
    drawn, index = Action.fresh(action, 2 * n, generator)
    return drawn, index[::2] + torch.randint(2, (n,), generator=generator, device=index.device)


class _O2(AffineAction):
    """The identity and `samples` drawn elements of O(2) on the plane, every other one a reflection."""

    def __init__(self, maps: _Representation, samples: int, seed: int) -> None:
        self.maps = maps
        self.samples = samples
        self.seed = seed
        self.degrees = SO2(samples, seed).degrees
        super().__init__(torch.nn.functional.pad(maps.at(self.degrees), (0, 1)))

    @property
    def drawn(self) -> bool:
        return True

    def _redraw(self, seed: int, samples: int | None) -> Action:
        return _O2(self.maps, samples or self.samples, seed)

    def fresh(self, n: int, generator: torch.Generator | None = None) -> tuple[Action, Tensor]:
        return _fresh_of_o2(self, n, generator)

    def _arguments(self) -> dict[str, object]:
        return {"maps": self.maps, "samples": self.samples, "seed": self.seed}

    def __repr__(self) -> str:
        return f"O(2) on the plane, samples={self.samples}, seed={self.seed}"


class _DrawnFieldAction(FieldAction):
    """Drawn elements of SO(2) or O(2) on a feature field, whose points and channels move by the same draw."""

    def __init__(self, plane: SO2 | _O2, representation: _Representation) -> None:
        super().__init__(plane, LinearAction(representation.at(plane.degrees), dim=-3))
        self.representation = representation

    def _redraw(self, seed: int, samples: int | None) -> Action:
        plane = self.points.redrawn(seed, samples)
        assert isinstance(plane, (SO2, _O2))
        return _DrawnFieldAction(plane, self.representation)

    def fresh(self, n: int, generator: torch.Generator | None = None) -> tuple[Action, Tensor]:
        """Fresh draws of the plane's; the channels follow."""
        return _fresh_of_o2(self, n, generator) if isinstance(self.points, _O2) else Action.fresh(self, n, generator)
