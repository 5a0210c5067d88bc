"""Actions on the image plane by interpolation: rotations by any angle, scalings."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from math import log
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_invariance._checks import (
    as_tensor,
    check_choice,
    check_count,
    check_iterable,
    check_number,
    check_seed,
    is_number,
)
from lightning_invariance._isolation import full_precision
from lightning_invariance.actions._base import Action, check_batch, group_table
from lightning_invariance.actions._motion_sizes import MotionSizes

if TYPE_CHECKING:
    from lightning_invariance.actions._flow import Flow

Interpolation = Literal["bilinear", "bicubic", "nearest"]
Padding = Literal["zeros", "border", "reflection"]


class AffineAction(Action):
    r"""Moves the image plane by :math:`p \mapsto A_g p + t_g` and interpolates.

    :math:`p` is measured from the image's centre, to the right and down, in pixels (so a rotation stays one on an
    image that is not square); :math:`t_g` is in units of half the image's width and height. Acts on the last two
    dimensions; any others go along. **Interpolation is not invariance**: act and invert lose detail at angles that the
    pixel grid does not have, so compare with the round trip before blaming the network. Computed in float32 or
    better, whatever the input's precision.

    Args:
        matrices: :math:`(A_g | t_g)`, shape ``(|G|, 2, 3)``, a tensor or nested lists. The first is the identity.
        interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``.
        padding: what lies outside the image: ``"zeros"``, ``"border"`` or ``"reflection"``.

    Raises:
        ValueError: if `matrices` has another shape, is singular, or does not begin with the identity.

    Example:
        >>> import torch
        >>> from lightning_invariance import AffineAction
        >>> half_right = AffineAction(torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[1.0, 0, 1.0], [0, 1, 0]]]))
        >>> half_right.act(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), 1)
        tensor([[[0., 1.],
                 [0., 3.]]])
    """

    def __init__(
        self,
        matrices: Tensor | Sequence[Any],
        *,
        interpolation: Interpolation = "bilinear",
        padding: Padding = "zeros",
    ) -> None:
        matrices = as_tensor("matrices", matrices, torch.float64)
        if matrices.ndim != 3 or not len(matrices) or matrices.shape[1:] != (2, 3):
            raise ValueError("Expected `matrices` to be a tensor of shape (|G|, 2, 3).")
        if matrices.is_complex():
            raise ValueError(f"Expected `matrices` to be real but got {matrices.dtype}.")
        check_choice("interpolation", interpolation, ("bilinear", "bicubic", "nearest"))
        check_choice("padding", padding, ("zeros", "border", "reflection"))
        bottom = torch.tensor([[[0.0, 0.0, 1.0]]], dtype=torch.float64, device="cpu").expand(len(matrices), 1, 3)
        # Kept in double precision: rounded to half precision, a rotation would be one no more.
        with torch.inference_mode(False):  # a tensor made under inference mode could not be saved for a later backward
            self._matrices = torch.cat([matrices.detach().to("cpu", torch.float64), bottom], dim=1)
        if not torch.equal(self._matrices[0], torch.eye(3, dtype=torch.float64, device="cpu")):
            raise ValueError("Expected `matrices[0]` to be the identity.")
        if not bool((torch.linalg.det(self._matrices).abs() > 1e-12).all()):
            raise ValueError("Expected every matrix in `matrices` to be invertible.")
        self.interpolation: Interpolation = interpolation
        self.padding: Padding = padding

    def __len__(self) -> int:
        return len(self._matrices)

    @property
    def dims(self) -> tuple[int, ...]:
        return (-2, -1)

    @property
    def places(self) -> tuple[int, ...]:
        return self.dims

    @cached_property
    def cayley_table(self) -> Tensor | None:
        return group_table(self._matrices, lambda left, right: left @ right, atol=1e-6)

    def check(self, x: Tensor) -> None:
        check_batch(self, x, 2)
        if not x.is_floating_point() and self.interpolation != "nearest":
            raise ValueError(f"Expected `x` to be floating point for {self!r}, which interpolates, but got {x.dtype}.")

    def alongside(self, x: Tensor, other: Tensor) -> Action:
        """Whole numbers, such as the classes of a mask, take the nearest value; see `Action.alongside`."""
        self.check(x)
        return self if other.is_floating_point() else self.for_whole_numbers()

    def for_whole_numbers(self) -> Action:
        """With the nearest value; see `Action.for_whole_numbers`."""
        if self.interpolation == "nearest":
            return self
        nearest = copy(self)
        nearest.interpolation = "nearest"
        return nearest

    def in_view(self, x: Tensor, element: int) -> Tensor | None:
        """The places whose image lies inside the frame as a whole; see `Action.in_view`."""
        height, width = x.shape[-2:]
        if element == 0:
            return None

        def build() -> Tensor:
            ones = torch.ones(1, 1, height, width, dtype=torch.float64, device="cpu")
            sighted = copy(self)
            sighted.interpolation, sighted.padding = "bilinear", "zeros"
            # Where anything from outside is mixed in, the sum of the weights inside is less than 1.
            return (sighted._invert_one(ones, element) > 1 - 1e-6)[0, 0].to(x.device)

        seen = self._keep(("in view", element, height, width, x.device), build)
        return seen.reshape(*(1,) * (x.ndim - 2), height, width)

    def verify(self, x: Tensor) -> None:
        """Raises where the group cannot act on `x`; the inverses follow from the matrices and need no check."""
        self.check(x)

    def _arguments(self) -> dict[str, object]:
        options = {"interpolation": self.interpolation, "padding": self.padding}
        return {"matrices": tuple(self._matrices.flatten().tolist()), **options}

    def __repr__(self) -> str:
        if type(self) is AffineAction:
            return f"AffineAction({len(self)} elements, interpolation={self.interpolation!r}, padding={self.padding!r})"
        return super().__repr__()

    # Images are sampled at the inverse: the value at p comes from where the map's inverse takes p -------------------

    def _act_one(self, x: Tensor, element: int) -> Tensor:
        return self._sample(x, self._thetas(x, inverse=True)[element][None])[0]

    def _invert_one(self, x: Tensor, element: int) -> Tensor:
        return self._sample(x, self._thetas(x, inverse=False)[element][None])[0]

    def _act_each(self, x: Tensor, index: Tensor) -> Tensor:
        return self._sample_each(x, index, self._thetas(x, inverse=True))

    def _invert_each(self, x: Tensor, index: Tensor) -> Tensor:
        return self._sample_each(x, index, self._thetas(x, inverse=False))

    def _orbit(self, x: Tensor, elements: Sequence[int]) -> Tensor:
        moved = [element for element in elements if element != 0]
        if not moved:
            return torch.stack([x] * len(elements))
        samples = iter(self._sample(x, self._thetas(x, inverse=True)[moved]))
        # The identity is x itself, not x interpolated.
        return torch.stack([x if element == 0 else next(samples) for element in elements])

    def _thetas(self, x: Tensor, inverse: bool) -> Tensor:
        """The matrices that `affine_grid` wants: in units of half the width and height."""
        height, width = x.shape[-2:]
        # Whole numbers are exact in double precision.
        dtype = torch.float32 if x.is_floating_point() and x.dtype != torch.float64 else torch.float64

        def build() -> Tensor:
            scale = torch.tensor([width, height, 1.0], dtype=torch.float64, device="cpu")
            matrices = self._matrices.clone()
            matrices[:, :2, :2] *= scale[:2] / scale[:2, None]
            matrices = torch.linalg.inv(matrices) if inverse else matrices
            return matrices[:, :2].to(x.device, dtype)

        return self._keep((inverse, height, width, dtype, x.device), build)

    def _sample(self, x: Tensor, thetas: Tensor) -> Tensor:
        """The whole batch at each of n matrices, shape (n, B, ...): the batch's images are channels of one image."""
        if not x.numel():
            return x.expand(len(thetas), *x.shape)
        planes = x.reshape(1, -1, *x.shape[-2:]).expand(len(thetas), -1, -1, -1)
        return self._interpolate(planes, thetas).reshape(len(thetas), *x.shape)

    def _sample_each(self, x: Tensor, index: Tensor, thetas: Tensor) -> Tensor:
        if not x.numel():
            return x
        moved = self._interpolate(x.reshape(len(x), -1, *x.shape[-2:]), thetas[index]).reshape(x.shape)
        return torch.where((index == 0).reshape(-1, *(1,) * (x.ndim - 1)), x, moved)

    def _interpolate(self, planes: Tensor, thetas: Tensor) -> Tensor:
        # Autocast would build the grid in half precision.
        with full_precision(planes.device):
            grid = F.affine_grid(thetas, list(planes.shape), align_corners=False)
            moved = F.grid_sample(planes.to(thetas.dtype), grid, self.interpolation, self.padding, align_corners=False)
        return moved.to(planes.dtype)


def rotation_matrices(degrees: Tensor) -> Tensor:
    """Counter-clockwise rotations as seen on an image whose rows run down, shape ``(n, 2, 3)``, float64."""
    angles = torch.deg2rad(degrees.double())
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    return torch.stack([torch.stack([cos, sin, zero], dim=1), torch.stack([-sin, cos, zero], dim=1)], dim=1)


class _PlanarRotations(AffineAction):
    def __init__(self, degrees: Tensor, interpolation: Interpolation, padding: Padding) -> None:
        self.degrees: tuple[float, ...] = tuple(degrees.tolist())
        super().__init__(rotation_matrices(degrees), interpolation=interpolation, padding=padding)

    @property
    def labels(self) -> tuple[str, ...]:
        return ("identity", *(f"rot{angle:.7g}" for angle in self.degrees[1:]))

    def motion_sizes(self, x: Tensor) -> MotionSizes:
        """The angles; see `Action.motion_sizes`."""
        return MotionSizes("angle", "degrees", self.degrees)


class Rotations(_PlanarRotations):
    r"""The cyclic group :math:`C_N`: rotations of an image by multiples of ``360° / order``, interpolated.

    Up to rounding, ``Rotations(4)`` is `C4`, which is exact.

    Args:
        order: the number of rotations, the identity included.
        interpolation: as for `AffineAction`.
        padding: as for `AffineAction`.

    Raises:
        ValueError: if `order` is no integer of at least 1.

    Example:
        >>> from lightning_invariance import Rotations
        >>> Rotations(8).labels[:3], Rotations(8).exact
        (('identity', 'rot45', 'rot90'), False)
    """

    def __init__(self, order: int, *, interpolation: Interpolation = "bilinear", padding: Padding = "zeros") -> None:
        check_count("order", order)
        self.order = order
        super().__init__(
            torch.arange(order, dtype=torch.float64, device="cpu") * (360.0 / order), interpolation, padding
        )

    def _arguments(self) -> dict[str, object]:
        return {"order": self.order, "interpolation": self.interpolation, "padding": self.padding}


class SO2(_PlanarRotations):
    r"""The identity and `samples` rotations of an image by angles drawn uniformly from :math:`[0°, 360°)`.

    Args:
        samples: how many angles are drawn besides the identity.
        seed: of the draw: equal seeds give equal angles.
        interpolation: as for `AffineAction`.
        padding: as for `AffineAction`.

    Raises:
        ValueError: if `samples` is no integer of at least 1.

    Example:
        >>> from lightning_invariance import SO2
        >>> len(SO2(samples=16)), SO2(samples=16) == SO2(samples=16, seed=0)
        (17, True)
    """

    def __init__(
        self, samples: int, seed: int = 0, *, interpolation: Interpolation = "bilinear", padding: Padding = "zeros"
    ) -> None:
        check_count("samples", samples)
        check_seed("seed", seed)
        self.samples = samples
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        drawn = 360.0 * torch.rand(samples, generator=generator, dtype=torch.float64, device="cpu")
        super().__init__(torch.cat([drawn.new_zeros(1), drawn]), interpolation, padding)

    @property
    def drawn(self) -> bool:
        return True

    def _own_flow(self) -> Flow:
        from lightning_invariance.actions._flow_images import RotationFlow

        return RotationFlow()

    def _redraw(self, seed: int, samples: int | None) -> Action:
        return SO2(samples or self.samples, seed, interpolation=self.interpolation, padding=self.padding)

    def _arguments(self) -> dict[str, object]:
        options = {"interpolation": self.interpolation, "padding": self.padding}
        return {"samples": self.samples, "seed": self.seed, **options}


def _scaling_matrices(factors: Sequence[float]) -> Tensor:
    """The identity and scalings by `factors`, shape ``(1 + n, 2, 3)``, float64."""
    scales = torch.tensor([1.0, *factors], dtype=torch.float64, device="cpu")
    matrices = scales.new_zeros(len(scales), 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = scales
    return matrices


class Scalings(AffineAction):
    r"""The identity and scalings of an image about its centre.

    Args:
        factors: above 1 enlarges, below 1 shrinks; the identity is added in front.
        interpolation: as for `AffineAction`.
        padding: as for `AffineAction`.

    Raises:
        ValueError: if there are no factors, or one is not positive.

    Example:
        >>> from lightning_invariance import Scalings
        >>> Scalings([0.5, 2.0]).labels
        ('identity', 'scale0.5', 'scale2')
    """

    def __init__(
        self,
        factors: Sequence[float] | Tensor,
        *,
        interpolation: Interpolation = "bilinear",
        padding: Padding = "zeros",
    ) -> None:
        check_iterable("factors", factors, "positive numbers")
        given: Any = factors
        numbers = given.tolist() if isinstance(given, Tensor) else list(given)
        self.factors = tuple(float(factor) if is_number(factor) else float("nan") for factor in numbers)
        if not self.factors or not all(0.0 < factor < float("inf") for factor in self.factors):
            raise ValueError(f"Expected `factors` to be positive numbers, at least one, but got {factors!r}.")
        super().__init__(_scaling_matrices(self.factors), interpolation=interpolation, padding=padding)

    @property
    def labels(self) -> tuple[str, ...]:
        return ("identity", *(f"scale{factor:g}" for factor in self.factors))

    def motion_sizes(self, x: Tensor) -> MotionSizes:
        """The factors; see `Action.motion_sizes`."""
        return MotionSizes("scale", "", (1.0, *self.factors))

    def _arguments(self) -> dict[str, object]:
        return {"factors": self.factors, "interpolation": self.interpolation, "padding": self.padding}


class ScalingRange(AffineAction):
    r"""The identity and `samples` scalings of an image about its centre by factors drawn from a range.

    The logarithms of the factors are uniform, so that enlarging and shrinking by as much are equally likely:

    .. math::
        s = a^{1 - u}\, b^{u}, \qquad u \sim U(0, 1)

    for the range from :math:`a` (`smallest`) to :math:`b` (`largest`).

    Args:
        smallest: the lower end of the range; below 1 it shrinks.
        largest: the upper end of the range; above 1 it enlarges.
        samples: how many factors are drawn besides the identity.
        seed: of the draw: equal seeds give equal factors.
        interpolation: as for `AffineAction`.
        padding: as for `AffineAction`.

    Raises:
        ValueError: if `smallest` is no finite number above 1e-6, `largest` none above `smallest`, or `samples` no
            integer of at least 1.

    Example:
        >>> from lightning_invariance import ScalingRange
        >>> action = ScalingRange(0.5, 2.0, samples=16)
        >>> len(action), all(0.5 <= factor <= 2.0 for factor in action.factors)
        (17, True)
    """

    def __init__(
        self,
        smallest: float,
        largest: float,
        samples: int,
        seed: int = 0,
        *,
        interpolation: Interpolation = "bilinear",
        padding: Padding = "zeros",
    ) -> None:
        # A matrix that shrinks further counts as singular.
        check_number("smallest", smallest, above=1e-6)
        check_number("largest", largest, above=smallest)
        check_count("samples", samples)
        check_seed("seed", seed)
        self.smallest = float(smallest)
        self.largest = float(largest)
        self.samples = samples
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        share = torch.rand(samples, generator=generator, dtype=torch.float64, device="cpu")
        logarithms = (1 - share) * log(self.smallest) + share * log(self.largest)
        # Rounding could carry a factor out of the range.
        factors = logarithms.exp().clamp(self.smallest, self.largest)
        self.factors: tuple[float, ...] = tuple(factors.tolist())
        super().__init__(_scaling_matrices(self.factors), interpolation=interpolation, padding=padding)

    @property
    def labels(self) -> tuple[str, ...]:
        return ("identity", *(f"scale{factor:.7g}" for factor in self.factors))

    def motion_sizes(self, x: Tensor) -> MotionSizes:
        """The factors; see `Action.motion_sizes`."""
        return MotionSizes("scale", "", (1.0, *self.factors))

    @property
    def drawn(self) -> bool:
        return True

    def _own_flow(self) -> Flow:
        from lightning_invariance.actions._flow_images import ScalingFlow

        return ScalingFlow()

    def _redraw(self, seed: int, samples: int | None) -> Action:
        options: dict[str, Any] = {"interpolation": self.interpolation, "padding": self.padding}
        return ScalingRange(self.smallest, self.largest, samples or self.samples, seed, **options)

    def _arguments(self) -> dict[str, object]:
        drawn = {"smallest": self.smallest, "largest": self.largest, "samples": self.samples, "seed": self.seed}
        return {**drawn, "interpolation": self.interpolation, "padding": self.padding}
