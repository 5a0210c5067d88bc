"""Flows of points in space, and of vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_invariance._checks import check_count
from lightning_invariance.actions._base import Action
from lightning_invariance.actions._flow import Flow, check_extent, check_flowing, of_flow
from lightning_invariance.actions._linear import SO3

_AXES = ("x", "y", "z")


class _CoordinateFlow(Flow):
    """Acts on the coordinates in one dimension."""

    def __init__(self, coordinates: int, dim: int) -> None:
        if not isinstance(dim, int) or dim >= 0:
            raise ValueError(f"Expected `dim` to be negative (counted from the end) but got {dim!r}.")
        self.coordinates = coordinates
        self.dim = dim

    @property
    def dims(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    def places(self) -> tuple[int, ...]:
        return ()

    def check(self, x: Tensor) -> None:
        check_flowing(self, x, -self.dim)
        if x.shape[self.dim] != self.coordinates:
            raise ValueError(
                f"Expected the size of `x` in dimension {self.dim} to be {self.coordinates} for {self!r} "
                f"but got {x.shape[self.dim]}."
            )


class PointRotationFlow(_CoordinateFlow):
    r"""Rotations of points in space, or of vectors, about the three axes, by t radians (right hand).

    :math:`X_k r = e_k \times r`. For an energy :math:`E` of points :math:`r_i`, with forces
    :math:`F = -\partial E / \partial r`, the three Lie derivatives are the net torque's components:

    .. math::
        L_k E = -\Big( \sum_i r_i \times F_i \Big)_k

    Args:
        dim: the dimension of the three coordinates, counted from the end.

    Raises:
        ValueError: if `dim` is not negative.

    Example:
        >>> import torch
        >>> from lightning_invariance import PointRotationFlow
        >>> point = torch.tensor([[1.0, 0.0, 0.0]])
        >>> PointRotationFlow().move(point, "rotation_z", torch.pi / 2).round(decimals=4).abs()
        tensor([[0., 1., 0.]])
    """

    extent = math.pi

    def __init__(self, dim: int = -1) -> None:
        super().__init__(3, dim)

    @property
    def generators(self) -> tuple[str, ...]:
        return tuple(f"rotation_{axis}" for axis in _AXES)

    def _sampled(self, n: int, seed: int) -> Action:
        return of_flow(SO3(n, seed, self.dim), self)

    def _move(self, x: Tensor, generator: int, t: Tensor) -> Tensor:
        # Rodrigues' formula, whose terms are 0 for t = 0.
        turned = self._tangent(x, generator)
        return x + t.sin() * turned + (1 - t.cos()) * self._tangent(turned, generator)

    def _tangent(self, x: Tensor, generator: int) -> Tensor:
        first, second = (generator + 1) % 3, (generator + 2) % 3
        parts = [*x.unbind(self.dim)]
        turned = [torch.zeros_like(part) for part in parts]
        turned[first], turned[second] = -parts[second], parts[first]
        return torch.stack(turned, dim=self.dim)

    def _arguments(self) -> dict[str, object]:
        return {"dim": self.dim}


class PointTranslationFlow(_CoordinateFlow):
    r"""Translations of points: t is added to one coordinate of all of them, :math:`X_k r = e_k`.

    Vectors (velocities, forces) do not move with it: leave them where they are.

    Args:
        coordinates: how many coordinates a point has.
        dim: their dimension, counted from the end.
        extent: how far `sampled` draws t to either side.

    Raises:
        ValueError: if `coordinates` is no integer of at least 1, `dim` is not negative, or `extent` no finite number
            above 0.

    Example:
        >>> import torch
        >>> from lightning_invariance import PointTranslationFlow
        >>> PointTranslationFlow().move(torch.zeros(1, 2, 3), "translation_y", 0.5)
        tensor([[[0.0000, 0.5000, 0.0000],
                 [0.0000, 0.5000, 0.0000]]])
    """

    def __init__(self, coordinates: int = 3, *, dim: int = -1, extent: float = 1.0) -> None:
        check_count("coordinates", coordinates)
        super().__init__(coordinates, dim)
        self.extent = check_extent("extent", extent)

    @property
    def generators(self) -> tuple[str, ...]:
        names = _AXES if self.coordinates <= 3 else tuple(map(str, range(self.coordinates)))
        return tuple(f"translation_{name}" for name in names[: self.coordinates])

    def _move(self, x: Tensor, generator: int, t: Tensor) -> Tensor:
        return x + t.to(x.dtype) * self._tangent(x, generator)

    def _tangent(self, x: Tensor, generator: int) -> Tensor:
        tangent = torch.zeros_like(x)
        tangent.select(self.dim, generator).fill_(1)
        return tangent

    def _arguments(self) -> dict[str, object]:
        return {"coordinates": self.coordinates, "dim": self.dim, "extent": self.extent}
