"""Whether vectors keep their direction over the orbit."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_invariance._checks import check_choice
from lightning_invariance.functional._orbit_values import (
    REDUCTIONS,
    OrbitValues,
    Reduction,
    at_least_float32,
    check_orbit,
    check_outputs,
    check_valid,
    check_values_finite,
    mean_over_elements,
    mean_over_places,
    reduce_values,
)

BothZero = Literal["one", "ignore"]
BOTH_ZERO: tuple[BothZero, ...] = ("one", "ignore")


def vector_cosine_values(
    logits: Tensor,
    orbit_logits: Tensor,
    dim: int | None = None,
    valid: Tensor | None = None,
    both_zero: BothZero = "one",
) -> OrbitValues:
    """The mean over a sample's vectors of their cosine, for each pair (x, g)."""
    dim = -1 if dim is None else dim
    base, base_zero = _unit(at_least_float32(logits), dim)
    moved, moved_zero = _unit(at_least_float32(orbit_logits), dim)
    cosines = (base * moved).sum(dim=dim).clamp(-1.0, 1.0)
    # No direction: a vector that stays 0 is as it should be; one that appears or vanishes is as wrong as can be.
    cosines = torch.where(base_zero & moved_zero, 1.0, torch.where(base_zero | moved_zero, -1.0, cosines))
    seen = None if valid is None else valid.expand(orbit_logits.shape).all(dim=dim)
    if both_zero == "ignore":
        somewhere = ~(base_zero & moved_zero)
        seen = somewhere if seen is None else seen & somewhere
    if cosines.ndim == 2:
        cosines = cosines[..., None]
    if seen is not None:
        seen = seen[..., None].flatten(2)
    return mean_over_elements(mean_over_places(cosines.flatten(2), seen), seen)


def check_vectors(logits: Tensor, dim: int | None) -> None:
    """Raises unless `logits` has vectors in dimension `dim`."""
    if dim is None and logits.ndim > 3:
        raise ValueError(
            f"Expected `dim` to say which dimension of `logits` {tuple(logits.shape)} holds the vectors' components "
            "(such as -3 for a field (B, 2, H, W)) but got None."
        )
    dim = -1 if dim is None else dim
    if not 1 <= -dim < logits.ndim:
        raise ValueError(
            f"Expected `logits` to have the shape (B, ...) with vectors in dimension {dim} but got "
            f"{tuple(logits.shape)}."
        )


def check_vector_dim(dim: int | None) -> None:
    """Raises unless `dim` is negative or None."""
    if dim is not None and (not isinstance(dim, int) or isinstance(dim, bool) or dim >= 0):
        raise ValueError(f"Expected `dim` to be negative (counted from the end) or None but got {dim!r}.")


def _unit(vectors: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Unit vectors, and which of them have no direction."""
    # Divided by the largest entry first: the squares of tiny forces underflow.
    largest = vectors.abs().amax(dim=dim, keepdim=True)
    zero = largest == 0
    scaled = vectors / torch.where(zero, 1.0, largest)
    norm = torch.linalg.vector_norm(scaled, dim=dim, keepdim=True)
    return scaled / torch.where(zero, 1.0, norm), zero.squeeze(dim)


def vector_cosine_similarity(
    logits: Tensor,
    orbit_logits: Tensor,
    *,
    dim: int | None = None,
    valid: Tensor | None = None,
    both_zero: BothZero = "one",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cosine of vectors with themselves over the orbit, brought back.

    .. math::
        C(x, g) = \tfrac1N \sum_{n=1}^N \cos\big(f_n(x),\; \rho(g)^{-1} f_n(gx)\big)

    over the N vectors that the network gives a sample: the forces on its atoms, say. In :math:`[-1, 1]`, higher is more
    equivariant. Where both vectors are 0 the cosine counts as 1, where one of them is as -1, as benchmarks of force
    fields have it.

    Args:
        logits: :math:`f(x)`, shape ``(B, ..., d)``.
        orbit_logits: :math:`\rho(g)^{-1} f(gx)` for every element but the identity, shape ``(|G| - 1, B, ..., d)``, as
            `evaluate_orbit` gives it.
        dim: the dimension of the vectors' components, counted from the end; the last one if None, which is refused
            where there are more than two behind the samples.
        valid: which places both poses see, bool, broadcastable to `orbit_logits`; see `OrbitOutputs`.
        both_zero: what becomes of a vector that is 0 in both: ``"one"``, its cosine counts as 1; ``"ignore"``, it is
            left out, as the padding of molecules of different sizes must be, and a sample without others is undefined.
        reduction: ``"mean"`` over samples and elements, ``"element"`` for the mean over samples of each element
            ``(|G| - 1,)``, ``"none"`` for one value a sample ``(B,)``.

    Returns:
        The cosine, in float32 or better.

    Raises:
        ValueError: if shapes do not match, an input is not finite, or an option is unknown.

    Example:
        >>> import torch
        >>> from lightning_invariance.functional import vector_cosine_similarity
        >>> forces = torch.tensor([[[3.0, 0.0], [0.0, 0.0]]])
        >>> vector_cosine_similarity(forces, torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]], [[[3.0, 0.0], [1.0, 0.0]]]]))
        tensor(0.2500)

        The second atom as padding:

        >>> vector_cosine_similarity(forces, torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]), both_zero="ignore")
        tensor(0.)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("both_zero", both_zero, BOTH_ZERO)
    check_vector_dim(dim)
    check_orbit(logits, orbit_logits)
    check_outputs(logits)
    check_vectors(logits, dim)
    check_valid(valid, orbit_logits)
    check_values_finite(logits, orbit_logits)
    values = vector_cosine_values(logits, orbit_logits, dim, valid, both_zero)
    return reduce_values(values, reduction, "The vector cosine similarity")
