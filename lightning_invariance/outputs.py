"""What an evaluation gives: a network's outputs over the orbit of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class OrbitOutputs:
    r"""A network's outputs over the orbit of a batch of ``B`` samples. The identity is left out of the orbit's part.

    Attributes:
        logits: :math:`f(x)`, shape ``(B, ...)``.
        orbit_logits: :math:`f(gx)` for every element but the identity, shape ``(|G| - 1, B, ...)``; with an
            `output_action` :math:`\rho`, :math:`\rho(g)^{-1} f(gx)`, brought back to the pose of `logits`.
        saliency: :math:`m(x)`, shape ``(B, ...)``, or None where none was asked for.
        orbit_saliency: :math:`g^{-1} m(gx)`, brought back to the pose of `x`, shape ``(|G| - 1, B, ...)``, or None.
        valid: which places of `orbit_logits` both poses see, bool and broadcastable to it, of as many dimensions; None
            for all. An interpolated motion carries corners out of the frame: what is brought back there means nothing,
            and the measures leave it out.
    """

    logits: Tensor
    orbit_logits: Tensor
    saliency: Tensor | None = None
    orbit_saliency: Tensor | None = None
    valid: Tensor | None = None
