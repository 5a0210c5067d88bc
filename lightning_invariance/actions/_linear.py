"""Actions by matrices on one dimension: rotations of point clouds, changes of colour or sign."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_invariance._checks import as_tensor, check_count, check_seed
from lightning_invariance._isolation import full_precision
from lightning_invariance.actions._base import Action, check_batch, check_labels, group_table
from lightning_invariance.actions._motion_sizes import MotionSizes, angles_of

if TYPE_CHECKING:
    from lightning_invariance.actions._flow import Flow


class LinearAction(Action):
    r"""Multiplies one dimension by a matrix: :math:`(g x)_i = \sum_j (A_g)_{ij} x_j`. Exact up to rounding.

    Computed in float32 or better, whatever the input's precision.

    Args:
        matrices: :math:`A_g`, shape ``(|G|, n, n)``, a tensor or nested lists. The first is the identity.
        dim: the dimension of size ``n``, counted from the end (negative).
        labels: a name for each element, the identity's first: those of the action that moves the input, say.

    Raises:
        ValueError: if `matrices` has another shape, is singular, or does not begin with the identity; if `dim` is not
            negative; if `labels` are not as many distinct names.

    Example:
        Exchange the first and the last of three colours:

        >>> import torch
        >>> from lightning_invariance import LinearAction
        >>> rgb_to_bgr = LinearAction(torch.stack([torch.eye(3), torch.eye(3).flip(0)]), dim=-3)
        >>> image = torch.randn(2, 3, 8, 8)
        >>> torch.equal(rgb_to_bgr.act(image, 1), image.flip(1))
        True
        >>> rgb_to_bgr
        LinearAction(2 elements of 3×3, dim=-3)
    """

    def __init__(self, matrices: Tensor | Sequence[Any], dim: int = -1, *, labels: Sequence[str] | None = None) -> None:
        matrices = as_tensor("matrices", matrices, torch.float64)
        if matrices.ndim != 3 or not len(matrices) or matrices.shape[1] != matrices.shape[2] or not matrices.shape[1]:
            raise ValueError("Expected `matrices` to be a tensor of shape (|G|, n, n).")
        if matrices.is_complex():
            raise ValueError(f"Expected `matrices` to be real but got {matrices.dtype}.")
        if not isinstance(dim, int) or dim >= 0:
            raise ValueError(f"Expected `dim` to be negative (counted from the end) but got {dim!r}.")
        # Kept in double precision: rounded to half precision, a rotation would be one no more.
        with torch.inference_mode(False):  # a tensor made under inference mode could not be saved for a later backward
            self._matrices = matrices.detach().to("cpu", torch.float64, copy=True)
        self._size = int(matrices.shape[1])
        if not torch.equal(self._matrices[0], torch.eye(self._size, dtype=torch.float64, device="cpu")):
            raise ValueError("Expected `matrices[0]` to be the identity.")
        if not bool((torch.linalg.det(self._matrices).abs() > 1e-12).all()):
            raise ValueError("Expected every matrix in `matrices` to be invertible.")
        with torch.inference_mode(False):
            self._inverses = torch.linalg.inv(self._matrices)
        self.dim = dim
        self._labels = None if labels is None else check_labels(labels, len(self._matrices))

    def __len__(self) -> int:
        return len(self._matrices)

    @property
    def labels(self) -> tuple[str, ...]:
        return super().labels if self._labels is None else self._labels

    @property
    def dims(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    def places(self) -> tuple[int, ...]:
        return ()

    def motion_sizes(self, x: Tensor) -> MotionSizes | None:
        """The angles of rotations of space; see `Action.motion_sizes`."""
        angles = angles_of(self._matrices)
        return None if angles is None else MotionSizes("angle", "degrees", angles)

    @cached_property
    def cayley_table(self) -> Tensor | None:
        return group_table(self._matrices, lambda left, right: left @ right, atol=1e-6)

    def check(self, x: Tensor) -> None:
        check_batch(self, x, -self.dim)
        if not x.is_floating_point():
            raise ValueError(f"Expected `x` to be floating point for {self!r} but got {x.dtype}.")
        if x.shape[self.dim] != self._size:
            raise ValueError(
                f"Expected the size of `x` in dimension {self.dim} to be {self._size} for {self!r} "
                f"but got {x.shape[self.dim]}."
            )

    def verify(self, x: Tensor) -> None:
        """Raises where the group cannot act on `x`; the inverses follow from the matrices and need no check."""
        self.check(x)

    def _arguments(self) -> dict[str, object]:
        return {"matrices": tuple(self._matrices.flatten().tolist()), "dim": self.dim, "labels": self._labels}

    def __repr__(self) -> str:
        if type(self) is LinearAction:
            return f"LinearAction({len(self)} elements of {self._size}×{self._size}, dim={self.dim})"
        return super().__repr__()

    def _act_one(self, x: Tensor, element: int) -> Tensor:
        return self._multiply(x, self._placed_matrices(x, inverse=False)[element])

    def _invert_one(self, x: Tensor, element: int) -> Tensor:
        return self._multiply(x, self._placed_matrices(x, inverse=True)[element])

    def _act_each(self, x: Tensor, index: Tensor) -> Tensor:
        return self._multiply_each(x, index, self._placed_matrices(x, inverse=False))

    def _invert_each(self, x: Tensor, index: Tensor) -> Tensor:
        return self._multiply_each(x, index, self._placed_matrices(x, inverse=True))

    def _orbit(self, x: Tensor, elements: Sequence[int]) -> Tensor:
        out = self._multiply(x, self._placed_matrices(x, inverse=False)[list(elements)])
        # The identity is x itself, not x multiplied by the identity.
        kept = [place for place, element in enumerate(elements) if element == 0]
        return out if not kept else out.index_put((torch.tensor(kept, device=x.device),), x)

    def _placed_matrices(self, x: Tensor, inverse: bool) -> Tensor:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        matrices = self._inverses if inverse else self._matrices
        return self._keep((inverse, dtype, x.device), lambda: matrices.to(x.device, dtype))

    def _multiply(self, x: Tensor, matrices: Tensor) -> Tensor:
        """By one matrix (n, n), or by each of k matrices (k, n, n), which puts k in front."""
        # Autocast would multiply in half precision.
        with full_precision(x.device):
            moved = torch.einsum("...ij,bj->...bi", matrices, self._vectors(x, matrices.dtype))
        out = moved.reshape(*matrices.shape[:-2], *x.movedim(self.dim, -1).shape).movedim(-1, self.dim)
        return out.to(x.dtype)

    def _multiply_each(self, x: Tensor, index: Tensor, matrices: Tensor) -> Tensor:
        vectors = self._vectors(x, matrices.dtype).reshape(len(x), x.numel() // max(1, len(x) * self._size), self._size)
        with full_precision(x.device):
            moved = torch.einsum("bij,bkj->bki", matrices[index], vectors)
        out = moved.reshape(x.movedim(self.dim, -1).shape).movedim(-1, self.dim).to(x.dtype)
        return torch.where((index == 0).reshape(-1, *(1,) * (x.ndim - 1)), x, out)

    def _vectors(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.movedim(self.dim, -1).reshape(-1, self._size).to(dtype)


def _haar_orthogonal(samples: int, seed: int) -> Tensor:
    """Orthogonal 3×3 matrices, uniform (Haar), float64."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(samples, 3, 3, generator=generator, dtype=torch.float64, device="cpu"))
    # Without the signs of R's diagonal the distribution is not uniform (Mezzadri, 2007).
    orthogonal: Tensor = q * torch.diagonal(r, dim1=1, dim2=2).sign()[:, None, :]
    return orthogonal


class _SpatialSamples(LinearAction):
    _name = "element"

    def __init__(self, samples: int, seed: int = 0, dim: int = -1) -> None:
        check_count("samples", samples)
        check_seed("seed", seed)
        self.samples = samples
        self.seed = seed
        identity = torch.eye(3, dtype=torch.float64, device="cpu")[None]
        super().__init__(torch.cat([identity, self._draw()]), dim)

    def _draw(self) -> Tensor:
        return _haar_orthogonal(self.samples, self.seed)

    @property
    def drawn(self) -> bool:
        return True

    def _redraw(self, seed: int, samples: int | None) -> Action:
        return type(self)(samples or self.samples, seed, self.dim)

    @property
    def labels(self) -> tuple[str, ...]:
        return ("identity", *(f"{self._name}{index}" for index in range(1, len(self))))

    def _arguments(self) -> dict[str, object]:
        return {"samples": self.samples, "seed": self.seed, "dim": self.dim}


class O3(_SpatialSamples):
    """The identity and `samples` rotations and reflections of space, drawn uniformly.

    Acts on point clouds ``(B, ..., points, 3)``.

    Args:
        samples: how many are drawn besides the identity.
        seed: of the draw: equal seeds give equal elements.
        dim: the dimension of the three coordinates, counted from the end.

    Raises:
        ValueError: if `samples` is no integer of at least 1, or `dim` is not negative.

    Example:
        >>> import torch
        >>> from lightning_invariance import O3
        >>> points = torch.randn(2, 100, 3)
        >>> moved = O3(samples=4).act(points, 3)
        >>> torch.allclose(moved.norm(dim=-1), points.norm(dim=-1), atol=1e-5)
        True
    """


class SO3(_SpatialSamples):
    """The identity and `samples` rotations of space, drawn uniformly.

    Acts on point clouds ``(B, ..., points, 3)``.

    Args:
        samples: how many rotations are drawn besides the identity.
        seed: of the draw: equal seeds give equal rotations.
        dim: the dimension of the three coordinates, counted from the end.

    Raises:
        ValueError: if `samples` is no integer of at least 1, or `dim` is not negative.

    Example:
        >>> import torch
        >>> from lightning_invariance import SO3
        >>> points = torch.randn(2, 100, 3)
        >>> action = SO3(samples=4)
        >>> torch.allclose(action.invert(action.act(points, 2), 2), points, atol=1e-5)
        True
    """

    _name = "rotation"

    def _draw(self) -> Tensor:
        drawn = super()._draw()
        proper: Tensor = drawn * torch.linalg.det(drawn)[:, None, None]
        return proper

    def _own_flow(self) -> Flow:
        from lightning_invariance.actions._flow_points import PointRotationFlow

        return PointRotationFlow(self.dim)
