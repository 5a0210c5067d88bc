"""How far an action's elements move: the abscissa of an error over the size of the motion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MotionSizes:
    """How far each element of an action moves.

    Attributes:
        name: what the size is, ``"angle"`` for instance.
        unit: its unit; nothing for a factor.
        values: one for each element, the identity's first.
    """

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def heading(self) -> str:
        """The name, with its unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name


def angles_of(matrices: Tensor) -> tuple[float, ...] | None:
    """The angle of each rotation of space, in degrees, from 0 to 180; None where one is no rotation.

    Args:
        matrices: shape ``(n, 3, 3)``.
    """
    if matrices.shape[1:] != (3, 3):
        return None
    identity = torch.eye(3, dtype=matrices.dtype)
    if not torch.allclose(matrices @ matrices.mT, identity.expand_as(matrices), atol=1e-6):
        return None
    if not bool((torch.linalg.det(matrices) > 0).all()):
        return None
    # The sine by the antisymmetric part: the cosine alone loses small angles.
    skew = (matrices - matrices.mT) / 2
    sine = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], dim=1).norm(dim=1)
    cosine = (matrices.diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2
    return tuple(torch.rad2deg(torch.atan2(sine, cosine)).tolist())
