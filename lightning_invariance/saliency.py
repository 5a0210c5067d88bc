"""Saliency maps: which parts of the input a network's prediction rests on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache, partial
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_invariance._checks import (
    check_callable,
    check_classes_named,
    check_count,
    check_floating,
    check_has_gradient,
    check_not_meta,
    check_number,
    check_target,
    check_tensor,
)
from lightning_invariance._containers import describe_value
from lightning_invariance._isolation import full_precision, ordinary

Network = Callable[[Tensor], Tensor]


class Saliency(ABC):
    r"""A way to compute saliency maps.

    Calling it gives the logits too, since most ways run the network on `x` anyway. Signed maps follow captum's
    conventions. No parameter receives a gradient, and the maps carry none.

    A subclass writes `attribute`, `prepare` for what is to be done to a batch before it is moved, and `finish` for what
    is not to be done before the maps are in a common pose: over an orbit,

    .. math::
        m(gx) = \text{finish}(g^{-1} \, \text{attribute}(g \, \text{prepare}(x))).
    """

    def __call__(
        self, network: Network, x: Tensor, target: Tensor | None = None, max_batch: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Computes logits and maps.

        Args:
            network: from a batch to its logits ``(B, C)``, or to one output a sample ``(B,)``, the only class then.
            x: the batch, shape ``(B, ...)``, floating point.
            target: the class that each map explains, shape ``(B,)``; the one predicted on `x` if None.
            max_batch: the most samples in one forward.

        Returns:
            The logits of `x`, as the network gives them, and the maps, of the shape of `x` unless a class says
            otherwise; both detached.

        Raises:
            ValueError: if `x` is not floating point, the network's output has neither the shape ``(B, C)`` nor ``(B,)``
                or does not depend on `x`, `target` does not name one of its classes a sample, or `max_batch` is no
                integer of at least 1.
        """
        _check_arguments(network, x, target, max_batch)
        prepared = prepared_by(self, x)
        if prepared is x:
            logits, maps = self.attribute(network, x, target, max_batch)
        else:
            with torch.no_grad():
                parts = x.split(max_batch or max(len(x), 1))
                logits = torch.cat([checked_logits(network(part), part) for part in parts])
            chosen = predicted_class(logits) if target is None else target
            _, maps = self.attribute(network, prepared, chosen, max_batch)
        return logits, self.finish(maps)

    def prepare(self, x: Tensor) -> Tensor:
        """The first step, on a batch ``(B, ...)`` that no element has moved yet; `x` itself by default.

        Noise belongs here: drawn anew in each pose, it would make an invariant network look as if it were not. Where
        the result is another tensor than `x`, maps take a pass of the network of their own, and logits stay those of
        `x`. It is to have the shape of `x`, and a sample's part is not to depend on the other samples.
        """
        return x

    @abstractmethod
    def attribute(
        self, network: Network, x: Tensor, target: Tensor | None = None, max_batch: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits and maps in the pose of `x`; arguments, results and errors as above."""

    def finish(self, maps: Tensor) -> Tensor:
        """The last step, on maps ``(..., H, W)`` that are in the common pose already; none by default.

        A filter belongs here: one that does not commute with the group (at the border of an image shifted cyclically)
        would make an invariant network look as if it were not.
        """
        return maps


class Attribution(Protocol):
    """What captum's attributions look like."""

    attribute: Callable[..., Any]


SaliencyLike = Saliency | Attribution | Callable[..., Any]


class Gradient(Saliency):
    r"""The gradient of the target's logit with respect to the input: :math:`m(x) = \partial f_t(x) / \partial x`.

    Signed, unlike captum's ``Saliency``, which takes absolute values. For orthogonal actions, and so for permutations,
    an invariant network's gradients move with the input: :math:`m(gx) = g\, m(x)`.

    That needs a gradient. Max-pooling has none where two of its inputs are equal, as on a flat background: it picks one
    by its position, which no group respects, and the maps of an exactly invariant network differ. `dither` breaks such
    ties by noise, added before the group moves the input, the same for every sample:

    .. math::
        m(x) = \left. \partial f_t / \partial x \right|_{x + \delta s(x) \, \epsilon},
        \qquad \epsilon \sim N(0, 1),

    where :math:`s(x)` is the standard deviation of the sample's entries (1 where all are equal) and :math:`\delta` the
    `dither`. It is drawn in the same way on every call, and torch's random streams are not drawn from. Input in half
    precision needs more than 0.001, which is lost in rounding there.

    Args:
        dither: how large the noise is.

    Raises:
        ValueError: if `dither` is no finite number of at least 0.

    Example:
        >>> import torch
        >>> from lightning_invariance import Gradient
        >>> network = torch.nn.Linear(2, 2, bias=False)
        >>> network.weight.data = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
        >>> logits, maps = Gradient()(network, torch.ones(1, 2), torch.tensor([1]))
        >>> maps
        tensor([[ 3., -4.]])
    """

    def __init__(self, dither: float = 0.0) -> None:
        check_number("dither", dither, minimum=0)
        self.dither = float(dither)

    def prepare(self, x: Tensor) -> Tensor:
        """The input with its noise."""
        if not self.dither:
            return x
        check_floating("x", x, "to have a gradient")
        return _dithered(x.detach(), self.dither)

    def attribute(
        self, network: Network, x: Tensor, target: Tensor | None = None, max_batch: int | None = None
    ) -> tuple[Tensor, Tensor]:
        return _chunked(self._one_chunk, network, x, target, max_batch)

    def _one_chunk(self, network: Network, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        return _logits_and_gradient(network, x, target)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({f'dither={self.dither}' if self.dither else ''})"


class InputXGradient(Gradient):
    r"""Input times gradient: :math:`m(x) = x \odot \partial f_t(x) / \partial x`. Signed, as captum's.

    Args:
        dither: how large the noise on the input is, in both factors; see `Gradient`.

    Raises:
        ValueError: if `dither` is no finite number of at least 0.

    Example:
        >>> import torch
        >>> from lightning_invariance import InputXGradient
        >>> network = torch.nn.Linear(2, 2, bias=False)
        >>> network.weight.data = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
        >>> InputXGradient()(network, torch.full((1, 2), 2.0), torch.tensor([1]))[1]
        tensor([[ 6., -8.]])
    """

    def _one_chunk(self, network: Network, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        logits, gradient = _logits_and_gradient(network, x, target)
        return logits, x.detach() * gradient


class IntegratedGradients(Saliency):
    r"""Integrated gradients (Sundararajan et al., 2017), signed, as captum's.

    .. math::
        m(x) = (x - x_0) \odot \int_0^1 \frac{\partial f_t(x_0 + \alpha (x - x_0))}{\partial x} \, d\alpha,

    the integral by Gauss-Legendre quadrature.

    Args:
        steps: the number of points of the quadrature.
        baseline: :math:`x_0`, the same value everywhere. On normalised images 0 is the mean grey, on others black.

    Raises:
        ValueError: if `steps` is no integer of at least 1, or `baseline` no finite number.

    Example:
        The maps sum to the difference between the logits at `x` and at the baseline:

        >>> import torch
        >>> from lightning_invariance import IntegratedGradients
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softplus()).double()
        >>> x, target = torch.randn(2, 4, dtype=torch.float64), torch.tensor([0, 2])
        >>> logits, maps = IntegratedGradients(steps=32)(network, x, target)
        >>> gained = (logits - network(torch.zeros_like(x))).gather(1, target[:, None])[:, 0]
        >>> torch.allclose(maps.sum(dim=1), gained)
        True
    """

    def __init__(self, steps: int = 32, baseline: float = 0.0) -> None:
        check_count("steps", steps)
        check_number("baseline", baseline)
        self.steps = steps
        self.baseline = float(baseline)

    def attribute(
        self, network: Network, x: Tensor, target: Tensor | None = None, max_batch: int | None = None
    ) -> tuple[Tensor, Tensor]:
        _check_arguments(network, x, target, max_batch)
        check_floating("x", x, "to have a gradient")
        x = _detached(x)
        with torch.no_grad():
            logits = torch.cat([checked_logits(network(part), part) for part in x.split(max_batch or max(len(x), 1))])
        target = predicted_class(logits) if target is None else target.long()
        check_classes_named(target, by_class(logits).shape[1])
        nodes, weights = _gauss_legendre(self.steps)
        total = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        # As many points of the path in one forward as the limit allows: without one, a batch at a time, so that the
        # memory needed does not grow with the number of steps.
        together = max(1, (max_batch or len(x)) // max(len(x), 1))
        for first in range(0, self.steps, together):
            alphas = nodes[first : first + together].to(x.device, total.dtype)
            scale = alphas.reshape(-1, *(1,) * x.ndim)
            path = (self.baseline + scale * (x - self.baseline)).to(x.dtype)
            _, gradient = _chunked(
                partial(_logits_and_gradient, named=True),
                network,
                path.flatten(0, 1),
                target.repeat(len(alphas)),
                max_batch,
            )
            shares = weights[first : first + together].to(x.device, total.dtype).reshape(scale.shape)
            total += (shares * gradient.unflatten(0, path.shape[:2])).sum(dim=0)
        return logits, ((x - self.baseline) * total).to(x.dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(steps={self.steps}, baseline={self.baseline})"


class PaperSaliency(IntegratedGradients):
    r"""The maps of "On genuine invariance learning without weight-tying" (Moskalev et al., 2023, section 4.1).

    1. Absolute integrated gradients of the target's logit.
    2. Values under 0.9 of the map's maximum (over the whole sample) are set to 0.
    3. A Gaussian filter of 3×3, σ = 1, zero-padded, on each channel; over an orbit, once the maps are in the common
    pose.

    The paper names neither baseline nor number of steps; a zero baseline and 32 steps are chosen here. Absolute values
    belong to pixels that a group moves about; they mean nothing where it mixes or negates values (rotations of point
    clouds): see `Gradient`.

    Args:
        steps: the number of points of the quadrature.
        baseline: the value that the path starts from.

    Raises:
        ValueError: if `steps` is no integer of at least 1, `baseline` no finite number, or (when called) the input no
            image ``(B, ..., H, W)``.

    Example:
        >>> import torch
        >>> from lightning_invariance import PaperSaliency
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> logits, maps = PaperSaliency()(network, torch.randn(2, 1, 8, 8))
        >>> maps.shape, bool((maps >= 0).all())
        (torch.Size([2, 1, 8, 8]), True)
    """

    def attribute(
        self, network: Network, x: Tensor, target: Tensor | None = None, max_batch: int | None = None
    ) -> tuple[Tensor, Tensor]:
        check_tensor("x", x)
        if x.ndim < 3:
            raise ValueError(f"Expected `x` to be images (B, ..., H, W) for {self!r} but got shape {tuple(x.shape)}.")
        logits, maps = super().attribute(network, x, target, max_batch)
        return logits, _keep_peaks(maps.abs(), fraction=0.9)

    def finish(self, maps: Tensor) -> Tensor:
        """The Gaussian filter."""
        return _smooth(maps)


class _ByClass(nn.Module):
    """A network of a single output ``(B,)`` as one of logits ``(B, 1)``."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return by_class(self.network(x))


class _Attribution(Saliency):
    """A captum attribution, or a plain function ``(network, x, target) -> maps``."""

    def __init__(self, attribution: Any) -> None:
        self._attribution = attribution

    def attribute(
        self, network: Network, x: Tensor, target: Tensor | None = None, max_batch: int | None = None
    ) -> tuple[Tensor, Tensor]:
        return _chunked(self._one_chunk, network, x, target, max_batch)

    def _one_chunk(self, network: Network, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False):
            return self._one_ordinary_chunk(network, _detached(x), None if target is None else _detached(target))

    def _one_ordinary_chunk(self, network: Network, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = checked_logits(network(x), x)
        target = predicted_class(logits) if target is None else target.long()
        check_classes_named(target, by_class(logits).shape[1])
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            single = logits.ndim == 1
            if hasattr(self._attribution, "attribute") and not isinstance(self._attribution, type):
                # It is bound to its own network, and captum has no class to choose from where there is one output.
                maps = self._attribution.attribute(leaf, target=None if single else target)
            else:
                explained = _ByClass(network) if single else network
                if isinstance(self._attribution, type):
                    maps = self._attribution(explained).attribute(leaf, target=target)
                else:
                    maps = self._attribution(explained, leaf, target)
        if not isinstance(maps, Tensor) or maps.ndim == 0 or len(maps) != len(x):
            raise ValueError(
                f"Expected `saliency` to give {len(x)} maps, one a sample, but got {describe_value(maps)}."
            )
        return logits, maps.detach()

    def __repr__(self) -> str:
        attribution = self._attribution
        if isinstance(attribution, type) or not hasattr(attribution, "attribute"):
            return str(getattr(attribution, "__name__", attribution))
        return type(attribution).__name__


def as_saliency(saliency: SaliencyLike) -> Saliency:
    """A `Saliency` from whatever computes maps.

    Args:
        saliency: a `Saliency`; a captum attribution, as an instance (bound to its own network) or as its class; or
            a function ``(network, x, target) -> maps``.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(saliency, type) and issubclass(saliency, Saliency):
        return saliency()
    if isinstance(saliency, Saliency):
        return saliency
    if isinstance(saliency, type) and not hasattr(saliency, "attribute"):
        raise ValueError(f"Expected `saliency` to have a method `attribute` but got the class {saliency.__name__}.")
    if not callable(saliency) and not hasattr(saliency, "attribute"):
        raise ValueError(
            "Expected `saliency` to be a Saliency, a captum attribution or a function (network, x, target) "
            f"but got {describe_value(saliency)}."
        )
    return _Attribution(saliency)


def default_saliency() -> Saliency:
    """Used where none is named, for every action and every floating-point input; `docs/saliency.md` says why."""
    return Gradient(dither=1e-3)


class PreparedOtherwise(Saliency):
    """Another saliency, of batches that are prepared in another way: a subclass writes `prepare`."""

    def __init__(self, saliency: Saliency) -> None:
        self._saliency = saliency

    def attribute(
        self, network: Network, x: Tensor, target: Tensor | None = None, max_batch: int | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._saliency.attribute(network, x, target, max_batch)

    def finish(self, maps: Tensor) -> Tensor:
        return self._saliency.finish(maps)


def prepared_by(saliency: Saliency, x: Tensor) -> Tensor:
    """What the maps are taken at; `x` itself where nothing is done to it."""
    prepared = saliency.prepare(x)
    if not isinstance(prepared, Tensor) or prepared.shape != x.shape or prepared.dtype != x.dtype:
        got = describe_value(prepared)
        raise ValueError(
            f"Expected `prepare` of {saliency!r} to give a tensor {tuple(x.shape)} of {x.dtype}, as `x`, but got {got}."
        )
    return prepared


def predicted_class(logits: Tensor) -> Tensor:
    """The class of the largest logit, shape ``(B,)``."""
    return by_class(logits.detach()).argmax(dim=1)


def by_class(logits: Tensor) -> Tensor:
    """Logits ``(B, C)``; a single output ``(B,)`` is that of the only class."""
    return logits[:, None] if logits.ndim == 1 else logits


def _logits_and_gradient(
    network: Network, x: Tensor, target: Tensor | None, named: bool = False
) -> tuple[Tensor, Tensor]:
    """The logits, and the gradient of each sample's target logit, from one forward and one backward.

    `named` says that the targets are known to be classes: to look is to wait for the device.
    """
    check_floating("x", x, "to have a gradient")
    # `Trainer.validate` runs in inference mode, where no graph is recorded, and its tensors cannot enter one.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        logits = checked_logits(network(leaf), leaf)
        if target is not None and not named:
            check_classes_named(target, by_class(logits).shape[1])
        chosen = predicted_class(logits) if target is None else _detached(target).long()
        explained = by_class(logits).gather(1, chosen[:, None].to(logits.device)).sum()
        try:
            gradient = torch.autograd.grad(explained, leaf, allow_unused=True)[0] if explained.requires_grad else None
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise ValueError(
                "Expected `network` to keep its graph for saliency maps but it lets go of it: it differentiates inside "
                "(without `create_graph=True`). Saliency maps are left out with `saliency_samples=0`."
            ) from error
    return logits.detach(), check_has_gradient(gradient)


def _chunked(
    one_chunk: Callable[[Network, Tensor, Tensor | None], tuple[Tensor, Tensor]],
    network: Network,
    x: Tensor,
    target: Tensor | None,
    max_batch: int | None,
) -> tuple[Tensor, Tensor]:
    _check_arguments(network, x, target, max_batch)
    if max_batch is None or len(x) <= max_batch:
        return one_chunk(network, x, target)
    targets = [None] * len(x) if target is None else target.split(max_batch)
    parts = [one_chunk(network, part, chosen) for part, chosen in zip(x.split(max_batch), targets, strict=False)]
    return torch.cat([logits for logits, _ in parts]), torch.cat([maps for _, maps in parts])


def _detached(x: Tensor) -> Tensor:
    """`x` outside inference mode and outside any graph."""
    with torch.inference_mode(False):
        return ordinary(x.detach())


def _check_arguments(network: Network, x: Tensor, target: Tensor | None, max_batch: int | None) -> None:
    check_callable("network", network, "a module or a function")
    check_tensor("x", x)
    if x.ndim == 0:
        raise ValueError("Expected `x` to have a batch dimension but got a scalar.")
    if max_batch is not None:
        check_count("max_batch", max_batch)
    if target is not None:
        check_target(target, len(x))
        check_not_meta("target", target)


def checked_logits(logits: Tensor, x: Tensor) -> Tensor:
    """The network's output, if it can be explained."""
    if not isinstance(logits, Tensor) or logits.ndim not in (1, 2) or len(logits) != len(x):
        got = describe_value(logits)
        raise ValueError(
            f"Expected `network` to give logits of shape ({len(x)}, classes) or ({len(x)},) for saliency but got {got}."
        )
    return logits


def _dithered(x: Tensor, size: float) -> Tensor:
    """The batch with noise of `size` times each sample's standard deviation, the same pattern for every sample."""
    precision = torch.promote_types(x.dtype, torch.float32)
    pattern = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x.device, precision)
    entries = x.reshape(len(x), prod(x.shape[1:])).to(precision)
    # Equal values are compared as they are: rounding leaves them a standard deviation that is small but not 0.
    flat = (entries == entries[:, :1]).all(dim=1)
    deviation = torch.where(flat, 1.0, entries.std(dim=1, correction=0))
    return (x + size * deviation.reshape(-1, *(1,) * (x.ndim - 1)) * pattern).to(x.dtype)


@lru_cache(maxsize=8)
def _gauss_legendre(points: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], float64, from the eigenvalues of the Jacobi matrix (Golub and Welsch, 1969)."""
    with torch.inference_mode(False):  # they are kept, and outlive the mode that they were first wanted in
        k = torch.arange(1, points, dtype=torch.float64, device="cpu")
        off_diagonal = k / (4 * k**2 - 1).sqrt()
        nodes, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
        return (nodes + 1) / 2, vectors[0] ** 2


def _keep_peaks(maps: Tensor, fraction: float) -> Tensor:
    """Values under a fraction of the sample's maximum, set to 0."""
    peak = maps.flatten(1).amax(dim=1).reshape(-1, *(1,) * (maps.ndim - 1))
    # Written so that NaN stays NaN: a map of zeros would pass for one that is merely undefined.
    return torch.where(maps < fraction * peak, 0.0, maps)


def _smooth(maps: Tensor) -> Tensor:
    """A 3×3 Gaussian filter of σ = 1 on the last two dimensions."""
    side = torch.exp(-torch.tensor([1.0, 0.0, 1.0], device=maps.device, dtype=maps.dtype) / 2)
    kernel = torch.outer(side, side)
    planes = maps.reshape(-1, 1, *maps.shape[-2:])
    with full_precision(maps.device):
        return F.conv2d(planes, (kernel / kernel.sum())[None, None], padding=1).reshape(maps.shape)
