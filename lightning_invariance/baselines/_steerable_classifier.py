"""A convolutional network whose filters are tied over a group of the plane: escnn's, in an ordinary module."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from lightning_invariance._checks import check_choice, check_count
from lightning_invariance._containers import describe_value
from lightning_invariance._isolation import full_precision
from lightning_invariance._requirements import require

SteerableGroup = Literal["C4", "D4", "C8", "SO2"]

_KERNEL = 5
_FREQUENCY, _SAMPLES = 3, 16  # of SO(2): features are band-limited, and sampled at 16 angles where they are rectified


class SteerableClassifier(nn.Module):
    r"""A group-equivariant convolutional network that ends in invariant logits.

    .. math::
        h_0 = x, \qquad h_l = \mathrm{pool}\,\sigma(\mathrm{norm}(\kappa_l * h_{l-1})), \qquad
        f(x) = W \operatorname*{mean}_p \max_{g \in G} h_L(p, g) + b

    Every filter is a combination of escnn's basis of the solutions of
    :math:`\kappa(gp) = \rho_\text{out}(g)\, \kappa(p)\, \rho_\text{in}(g)^{-1}` (Weiler and Cesa, "General
    E(2)-equivariant steerable CNNs", 2019), 5×5, and the combination is what is learned. Hidden features are functions
    on the group: values at its elements, or, for SO(2), Fourier coefficients up to frequency 3, which are taken to 16
    angles and back around normalisation and ELU.

    **What is exact.** Rotations by 90°, and flips for ``"D4"``: up to rounding (1e-6 of the logits' standard deviation
    in float32), at every image size, since the pooling windows lie symmetrically (2×2 on an even size, 3×3 on an odd
    one). Other angles of ``"C8"`` and ``"SO2"`` are approximate, because neither images nor filters can be turned by
    them on a pixel grid: on digits of 28×28, trained upright, a turn by 45° moved the logits by 0.46 and 0.30 of their
    norm about the mean, and those of ``"C4"``, which has no such turn, by 0.95.

    Only the basis comes from escnn. It is a buffer, and the filters are computed from it and the weights in every
    forward, in train and eval mode alike. So nothing goes stale, and checkpoints, copies, pickling, `double`, autocast
    and data-parallel training are those of any module.

    Args:
        group: ``"C4"``, ``"D4"``, ``"C8"`` or ``"SO2"``.
        in_channels: of the images: scalars, which the group moves about but does not change.
        num_classes: the number of logits.
        image_size: the height and width of the images; any. Weights do not depend on it: those of one size load into
            a network for another.
        width: the number of feature fields of the first block; each block has twice as many as the one before. A field
            is as many channels as the group has elements, or 7 for ``"SO2"``.
        depth: the number of blocks; images are halved between them.

    Raises:
        ValueError: if `group` is unknown, or another argument no integer of at least 1.
        ModuleNotFoundError: if escnn is not installed; the message says how to install it.

    Example:
        >>> import torch
        >>> from lightning_invariance import C4
        >>> from lightning_invariance.baselines import SteerableClassifier
        >>> network = SteerableClassifier("C4", in_channels=1, num_classes=10, image_size=28, width=4)
        >>> x = torch.randn(2, 1, 28, 28)
        >>> torch.allclose(network(x), network(C4().act(x, 1)), atol=1e-5)
        True
    """

    def __init__(
        self,
        group: SteerableGroup,
        in_channels: int,
        num_classes: int,
        image_size: int,
        width: int = 8,
        depth: int = 3,
    ) -> None:
        super().__init__()
        check_choice("group", group, ("C4", "D4", "C8", "SO2"))
        named = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "image_size": image_size,
            "width": width,
            "depth": depth,
        }
        for name, value in named.items():
            check_count(name, value)
        self.group: SteerableGroup = group
        self.in_channels = in_channels
        self.image_size = image_size
        kind = _field_kind(group)
        layers: list[nn.Module] = []
        basis, fields, size = kind.basis_from_images, in_channels, image_size
        for block in range(depth):
            if block:
                layers.append(_symmetric_pooling(size))
                if kind.to_coefficients is not None:
                    layers.append(_Fourier(kind.to_coefficients, fields))
                basis, size = kind.basis, (size + 1) // 2
            fields_in, fields = fields, width * 2**block
            layers.append(_SteerableConv(basis, fields_in, fields))
            if kind.to_values is not None:
                layers.append(_Fourier(kind.to_values, fields))
            # Statistics are shared over the group: this is escnn's InnerBatchNorm, in torch's own layers.
            layers += [nn.Unflatten(1, (fields, kind.values)), nn.BatchNorm3d(fields), nn.Flatten(1, 2)]
            layers.append(nn.ReLU() if kind.to_values is None else nn.ELU())
        self.features = nn.Sequential(*layers, _InvariantPooling(fields, kind.values))
        self.head = nn.Linear(fields, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape ``(B, num_classes)``, of images ``(B, in_channels, image_size, image_size)``."""
        expected = (self.in_channels, self.image_size, self.image_size)
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1:] != expected or not x.is_floating_point():
            got = describe_value(x)
            raise ValueError(
                f"Expected `x` to be floating point of shape (B, {', '.join(map(str, expected))}) but got {got}."
            )
        logits: Tensor = self.head(self.features(x))
        return logits

    @torch.no_grad()
    def export(self) -> nn.Sequential:
        """The same network in torch's own layers, in eval mode: what it was trained to, its filters written out.

        Returns:
            An `nn.Sequential` of ordinary convolutions, which shares no memory with this network and can be saved and
            loaded where neither escnn nor this package is.

        Example:
            >>> import torch
            >>> from lightning_invariance.baselines import SteerableClassifier
            >>> network = SteerableClassifier("C4", in_channels=1, num_classes=10, image_size=28, width=4).eval()
            >>> x = torch.randn(2, 1, 28, 28)
            >>> torch.allclose(network.export()(x), network(x), atol=1e-5)
            True
        """
        own = (_SteerableConv, _Fourier, _InvariantPooling)
        layers = [layer.export() if isinstance(layer, own) else copy.deepcopy(layer) for layer in self.features]
        return nn.Sequential(*layers, copy.deepcopy(self.head)).eval()

    def extra_repr(self) -> str:
        return f"group={self.group!r}, in_channels={self.in_channels}, image_size={self.image_size}"


class _SteerableConv(nn.Module):
    """A convolution of stride 1 that keeps the size, whose filter is a combination of a basis.

    Args:
        basis: shape ``(K, n_out, n_in, 25)``, for one field in and one out.
        fields_in: how many fields come in.
        fields_out: how many go out.
    """

    basis: Tensor

    def __init__(self, basis: Tensor, fields_in: int, fields_out: int) -> None:
        super().__init__()
        # A part of the state: where a basis is found numerically (D4), another machine may find another one.
        self.register_buffer("basis", basis.clone())
        self.weight = nn.Parameter(torch.empty(fields_out, fields_in, len(basis)))
        # He et al. (2015): the variance of a sum of independent terms, averaged over a field's components.
        gain = fields_in * float(basis.double().square().sum()) / basis.shape[1] if not basis.is_meta else 1.0
        nn.init.normal_(self.weight, std=(2.0 / gain) ** 0.5)

    def filter(self) -> Tensor:
        """The filter of an ordinary convolution, shape ``(fields_out * n_out, fields_in * n_in, 5, 5)``."""
        fields_out, fields_in, _ = self.weight.shape
        _, n_out, n_in, _ = self.basis.shape
        # Autocast would sum in half precision.
        with full_precision(self.weight.device):
            expanded = torch.einsum("koip,abk->aobip", self.basis, self.weight)
        return expanded.reshape(fields_out * n_out, fields_in * n_in, _KERNEL, _KERNEL)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filter(), padding=_KERNEL // 2)

    def export(self) -> nn.Module:
        return _convolution(self.filter(), padding=_KERNEL // 2)

    def extra_repr(self) -> str:
        fields_out, fields_in, elements = self.weight.shape
        return f"{fields_in} to {fields_out} fields, {elements} basis elements"


class _Fourier(nn.Module):
    """Multiplies the components of each field by a matrix ``(n_out, n_in)``."""

    matrix: Tensor

    def __init__(self, matrix: Tensor, fields: int) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix.clone())
        self.fields = fields

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oi,bfixy->bfoxy", self.matrix, x.unflatten(1, (self.fields, -1))).flatten(1, 2)

    def export(self) -> nn.Module:
        return _convolution(self.matrix[:, :, None, None].repeat(self.fields, 1, 1, 1), groups=self.fields)


class _InvariantPooling(nn.Module):
    """The largest value over the group, then the mean over the image: shape ``(B, fields)``."""

    def __init__(self, fields: int, components: int) -> None:
        super().__init__()
        self.fields = fields
        self.components = components

    def forward(self, x: Tensor) -> Tensor:
        # Not a max-pooling layer, whose backward is not deterministic on an accelerator.
        invariants: Tensor = x.unflatten(1, (self.fields, self.components)).amax(dim=2).mean(dim=(-2, -1))
        return invariants

    def export(self) -> nn.Module:
        over_group = [nn.Unflatten(1, (self.fields, self.components)), nn.MaxPool3d((self.components, 1, 1))]
        return nn.Sequential(*over_group, nn.AdaptiveAvgPool3d(1), nn.Flatten())


def _convolution(weight: Tensor, padding: int = 0, groups: int = 1) -> nn.Conv2d:
    fields_out, fields_in, *kernel = weight.shape
    options = {"padding": padding, "groups": groups, "bias": False, "device": weight.device, "dtype": weight.dtype}
    # Initialisation is skipped, which would draw random numbers.
    layer: nn.Conv2d = skip_init(nn.Conv2d, fields_in * groups, fields_out, tuple(kernel), **options)
    layer.weight.copy_(weight)
    return layer


def _symmetric_pooling(size: int) -> nn.Module:
    """Halves the size (rounded up) in windows that a turn by 90° takes to one another."""
    return nn.AvgPool2d(2) if size % 2 == 0 else nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)


@dataclass(frozen=True)
class _FieldKind:
    """The features of one group, and what maps between them.

    Attributes:
        basis_from_images: of filters from a scalar to a field, shape ``(K, n, 1, 25)``.
        basis: of filters between two fields, shape ``(K, n, n, 25)``.
        values: at how many elements of the group a field is rectified.
        to_values: shape ``(values, n)``, or None where a field holds its values.
        to_coefficients: shape ``(n, values)``, or None likewise.
    """

    basis_from_images: Tensor
    basis: Tensor
    values: int
    to_values: Tensor | None = None
    to_coefficients: Tensor | None = None


def _field_kind(group: SteerableGroup) -> _FieldKind:
    purpose = "SteerableClassifier"
    with _quiet_construction():
        enn: Any = require("escnn.nn", purpose)
        gspaces: Any = require("escnn.gspaces", purpose)
        numerical: Any = require("escnn.group._numerical", purpose)
        with _no_randomized_svd(numerical):
            if group == "SO2":
                space = gspaces.rot2dOnR2(-1, maximum_frequency=_FREQUENCY)
                irreps = space.fibergroup.bl_irreps(_FREQUENCY)
                fourier = enn.FourierELU(space, 1, irreps, type="regular", N=_SAMPLES)
                field, values, matrices = fourier.in_type, _SAMPLES, [fourier.A, fourier.Ainv]
            else:
                space = gspaces.flipRot2dOnR2(4) if group == "D4" else gspaces.rot2dOnR2(int(group[1:]))
                field = enn.FieldType(space, [space.regular_repr])
                values, matrices = field.size, []
            image = enn.FieldType(space, [space.trivial_repr])
            bases = [_basis(enn, source, field) for source in (image, field)]
    like = torch.empty(0)  # where and in which precision parameters are made by default
    from_images, between = (basis.to(like) for basis in bases)
    return _FieldKind(from_images, between, values, *(matrix.to(like) for matrix in matrices))


def _basis(enn: Any, source: Any, target: Any) -> Tensor:
    # Built anew: the one that escnn keeps is shared by all its layers, and follows any of them to half precision.
    layer = enn.R2Conv(source, target, _KERNEL, bias=False, recompute=True, initialize=False)
    (block,) = layer.basisexpansion.children()
    basis: Tensor = block.sampled_basis
    return basis.detach()


@contextmanager
def _quiet_construction() -> Iterator[None]:
    """On the CPU, in single precision, and without escnn's warnings about packages that the plane does not need."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with warnings.catch_warnings(), torch.device("cpu"), torch.inference_mode(False):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def _no_randomized_svd(numerical: Any) -> Iterator[None]:
    """Has escnn take scipy's decomposition, since scikit-learn's refuses its matrices from version 1.7 on."""
    original = numerical.randomized_svd
    numerical.randomized_svd = None
    try:
        yield
    finally:
        numerical.randomized_svd = original
