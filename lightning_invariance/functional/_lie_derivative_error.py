"""How fast the output changes as the input begins to move along a continuous group."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lightning_invariance._checks import check_choice, check_finite, check_same_device
from lightning_invariance._containers import describe_value
from lightning_invariance.functional._orbit_values import (
    ACTIVATIONS,
    REDUCTIONS,
    Activation,
    OrbitValues,
    Reduction,
    at_least_float32,
    check_activation,
    check_outputs,
    flat_samples,
    mean_over_elements,
    reduce_values,
)

Norm = Literal["squared", "absolute"]

NORMS: tuple[Norm, ...] = ("squared", "absolute")


def lie_derivative_values(
    logits: Tensor, lie_derivative: Tensor, activation: Activation | None, norm: Norm
) -> OrbitValues:
    """The mean over outputs of squares or absolute values, for each pair of a sample and a generator."""
    z, slopes = at_least_float32(logits), at_least_float32(lie_derivative)
    if activation == "softmax":
        p = z.softmax(dim=1)
        slopes = p * (slopes - (p * slopes).sum(dim=2, keepdim=True))
    elif activation == "sigmoid":
        slopes = z.sigmoid() * (-z).sigmoid() * slopes
    slopes = flat_samples(slopes, before=2)
    return mean_over_elements((slopes.square() if norm == "squared" else slopes.abs()).mean(dim=-1))


def check_lie_derivative(logits: Tensor, lie_derivative: Tensor) -> None:
    """Raises unless `logits` is ``(B, ...)`` and `lie_derivative` ``(K, B, ...)``, both floating point."""
    for argument, value in (("logits", logits), ("lie_derivative", lie_derivative)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"Expected `{argument}` to be a floating-point tensor but got {describe_value(value)}.")
    if logits.ndim < 1:
        raise ValueError(f"Expected `logits` to have the shape (B, ...) but got {tuple(logits.shape)}.")
    if lie_derivative.ndim != logits.ndim + 1 or lie_derivative.shape[1:] != logits.shape or not len(lie_derivative):
        expected = ", ".join(["K", *(str(size) for size in logits.shape)])
        raise ValueError(
            f"Expected `lie_derivative` to have the shape ({expected}), one row for each generator, but got "
            f"{tuple(lie_derivative.shape)}."
        )
    check_same_device("lie_derivative", lie_derivative, logits.device, "`logits`")
    check_outputs(logits)


def lie_derivative_error(
    logits: Tensor,
    lie_derivative: Tensor,
    *,
    activation: Activation | None = None,
    norm: Norm = "squared",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Local equivariance error: how fast the output changes along the generators of a continuous group.

    .. math::
        LEE(x, k) = \frac{\| L_k f(x) \|^2}{D}

    for an output of :math:`D` values: the definition of "The Lie Derivative for Measuring Learned Equivariance" (Gruver
    et al., 2022), in squared units of the output a unit of t. In :math:`[0, \infty)`; 0 for all samples if and only if
    the network is equivariant.

    The numbers that are published with it come from code (lie-deriv) that computes something else: the mean over
    classes of how fast the probabilities change,

    .. math::
        \frac{1}{C} \sum_c \Big| \frac{d}{dt} \operatorname{softmax}(f(\rho(t) x))_c \Big|

    which ``activation="softmax", norm="absolute"`` gives, with translations by half the side (``TranslationFlow(pixels=
    (side - 1) / 2)``) and rotations in radians; its own derivatives are those of bilinear sampling.

    Args:
        logits: :math:`f(x)`, shape ``(B, ...)``; they are read for the activation's derivative.
        lie_derivative: :math:`L_k f(x)`, shape ``(K, B, ...)``, as `evaluate_lie_derivative` gives it.
        activation: None, for the output itself; ``"softmax"`` or ``"sigmoid"`` for the probabilities of classes, in
            dimension 1 of `logits`: the chain rule is applied to the derivative.
        norm: ``"squared"``, the mean of squares over the D values, or ``"absolute"``, that of absolute values.
        reduction: ``"mean"`` over samples and generators, ``"element"`` for the mean over samples of each generator
            ``(K,)``, ``"none"`` for one value a sample ``(B,)``.

    Returns:
        The error, in float32 or better.

    Raises:
        ValueError: if shapes do not match, an input is not finite, or an option is unknown.

    Example:
        >>> import torch
        >>> from lightning_invariance.functional import lie_derivative_error
        >>> logits = torch.zeros(1, 2)
        >>> lie_derivative = torch.tensor([[[3.0, 1.0]], [[2.0, 2.0]]])
        >>> lie_derivative_error(logits, lie_derivative, reduction="element")
        tensor([5., 4.])

        Both logits rise together along the second generator, which leaves the probabilities as they are:

        >>> lie_derivative_error(logits, lie_derivative, activation="softmax", norm="absolute", reduction="element")
        tensor([0.5000, 0.0000])
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_lie_options(activation, norm)
    check_lie_derivative(logits, lie_derivative)
    if activation is not None:
        check_activation(logits, activation)
    check_finite("logits", logits)
    check_finite("lie_derivative", lie_derivative)
    values = lie_derivative_values(logits, lie_derivative, activation, norm)
    return reduce_values(values, reduction, "The Lie derivative error")


def check_lie_options(activation: object, norm: object) -> None:
    """Raises a `ValueError` unless both are known."""
    check_choice("activation", activation, (None, *ACTIVATIONS))
    check_choice("norm", norm, NORMS)
