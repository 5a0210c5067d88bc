"""Runs a network over the orbit of a batch: the only place that does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, overload

import torch
from torch import Tensor

from lightning_invariance._checks import (
    check_callable,
    check_count,
    check_floating,
    check_iterable,
    check_same_device,
    check_target,
    check_tensor,
)
from lightning_invariance._containers import describe_value
from lightning_invariance._locate import OutputReader
from lightning_invariance._output_action import (
    OutputAction,
    OutputActions,
    OutputMotion,
    bring_back,
    split_outputs,
)
from lightning_invariance.actions import Action, FieldAction
from lightning_invariance.actions._flow import as_action
from lightning_invariance.outputs import OrbitOutputs
from lightning_invariance.saliency import (
    Network,
    Saliency,
    SaliencyLike,
    as_saliency,
    checked_logits,
    predicted_class,
    prepared_by,
)

#: From the logits of x to the action that moves them with it, or None where they stay.
OnOutput = Callable[[Tensor], Action | None]


@overload
def evaluate_orbit(
    network: Callable[..., Any],
    x: Tensor,
    action: Action,
    *,
    output_action: Mapping[str, OutputAction],
    base_logits: Mapping[str, Tensor] | None = None,
    saliency: None = None,
    target: None = None,
    elements: Sequence[int] | None = None,
    max_batch: int | None = None,
) -> dict[str, OrbitOutputs]: ...


@overload
def evaluate_orbit(
    network: Network,
    x: Tensor,
    action: Action,
    *,
    output_action: OutputAction = None,
    base_logits: Tensor | None = None,
    saliency: SaliencyLike | None = None,
    target: Tensor | None = None,
    elements: Sequence[int] | None = None,
    max_batch: int | None = None,
) -> OrbitOutputs: ...


def evaluate_orbit(
    network: Callable[..., Any],
    x: Tensor,
    action: Action,
    *,
    output_action: OutputActions = None,
    base_logits: Any = None,
    saliency: SaliencyLike | None = None,
    target: Tensor | None = None,
    elements: Sequence[int] | None = None,
    max_batch: int | None = None,
) -> OrbitOutputs | dict[str, OrbitOutputs]:
    r"""Runs a network over the orbit of a batch.

    The elements are stacked into as few forwards as `max_batch` allows; the result does not depend on it for a network
    that treats samples alone (with batch normalisation in train mode none does). Without saliency, gradients flow as in
    any forward: wrap the call in ``torch.no_grad()`` to measure; with it, all outputs are detached. Modes and random
    streams are the caller's.

    Where the output is to move with the input, `output_action` says how, and each output comes back to the pose of
    :math:`f(x)`:

    .. math::
        f(gx) \;\mapsto\; \rho(g)^{-1} f(gx)

    so that an equivariant network's are all alike, and whatever measures invariance measures equivariance.

    Args:
        network: from a batch ``(B, ...)`` to its logits ``(B, ...)``; or to several outputs, in a mapping or an object,
            where `output_action` names them.
        x: the batch, shape ``(B, ...)``.
        action: the group.
        output_action: :math:`\rho`: None, the output stays; ``"same"``, the input's own action moves it, in the same
            dimensions, also where it is smaller than the input (a feature map); an `Action` of as many elements; or a
            dict of these for a network with several outputs, such as ``{"energy": None, "forces": "same"}``.
        base_logits: :math:`f(x)` where it is known, so that it is not computed again (but by `saliency`, for its map).
        saliency: how to compute saliency maps, if they are wanted: a `Saliency`, a captum attribution (an instance,
            or its class), or a function ``(network, x, target) -> maps``. One that prepares the batch (`Gradient` with
            `dither`) changes no logits: the network runs over the orbit once more for it.
        target: the class whose prediction the maps explain, ``(B,)`` integers, the same over the whole orbit; the class
            predicted on `x` if None.
        elements: which elements to run, by index; all but the identity by default.
        max_batch: the most samples in one forward.

    Returns:
        The outputs over the orbit; a dict of these by name where `output_action` is one.

    Raises:
        ValueError: if the group cannot act on `x`, `output_action` has other elements or cannot act on the output, or
            goes with `saliency` (maps explain a class's logit, which the group would move), `elements` is empty or
            holds the identity, `base_logits` or `target` do not match the batch, or the network gives no tensor of one
            row a sample.

    Example:
        >>> import torch
        >>> from lightning_invariance import C4, evaluate_orbit
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> outputs = evaluate_orbit(network, torch.randn(5, 1, 8, 8), C4())
        >>> outputs.logits.shape, outputs.orbit_logits.shape
        (torch.Size([5, 10]), torch.Size([3, 5, 10]))

        A convolution with a symmetric kernel turns its output with its input:

        >>> blur = torch.nn.AvgPool2d(3, stride=1, padding=1)
        >>> outputs = evaluate_orbit(blur, torch.randn(5, 1, 8, 8), C4(), output_action="same")
        >>> torch.allclose(outputs.orbit_logits, outputs.logits.expand(3, -1, -1, -1, -1), atol=1e-6)
        True
    """
    check_callable("network", network, "a module or a function")
    action = as_action(action)
    action.check(x)
    if elements is not None:
        check_iterable("elements", elements, "indices of elements")
    chosen: list[Any] = list(range(1, len(action)) if elements is None else elements)
    if not chosen or not all(_is_index(element) and 1 <= element < len(action) for element in chosen):
        raise ValueError(
            f"Expected `elements` to name at least one element from 1 to {len(action) - 1} of {action!r} "
            f"(0 is the identity) but got {chosen}."
        )
    chosen = [int(element) for element in chosen]
    if max_batch is not None:
        check_count("max_batch", max_batch)
    motion = OutputMotion(output_action, action)
    if saliency is not None and not motion.stays:
        raise ValueError(
            f"Expected `saliency` to be None with output_action={output_action!r}: maps explain a class's logit, which "
            "the group would move."
        )
    reader = OutputReader(None, motion.names)
    if motion.names is not None:
        network = _Packed(network, reader)
        base_logits = None if base_logits is None else reader.read(base_logits, len(x))
    if base_logits is not None:
        check_tensor("base_logits", base_logits)
        check_same_device("base_logits", base_logits, x.device, "`x`")
    if base_logits is not None and (base_logits.ndim == 0 or len(base_logits) != len(x)):
        got = len(base_logits) if base_logits.ndim else "a scalar"
        raise ValueError(f"Expected `base_logits` to have {len(x)} rows, one a sample, but got {got}.")
    if target is not None:
        check_target(target, len(x))

    outputs = orbit_of(
        network,
        x,
        action,
        chosen,
        on_output=None if motion.stays else lambda logits: motion.on(action, x, logits, reader.packed()),
        base_logits=base_logits,
        saliency=None if saliency is None else as_saliency(saliency),
        target=target,
        max_batch=max_batch,
    )
    if motion.names is None:
        return outputs
    packing = reader.packed()
    assert packing is not None
    return split_outputs(outputs, packing, motion.names)


class _Packed:
    """A network of several outputs as one of a single output, all of them packed."""

    def __init__(self, network: Callable[..., Any], reader: OutputReader) -> None:
        self._network = network
        self._reader = reader

    def __call__(self, x: Tensor) -> Tensor:
        return self._reader.read(self._network(x), len(x))


def orbit_of(
    network: Network,
    x: Tensor,
    action: Action,
    elements: list[int],
    *,
    on_output: OnOutput | None = None,
    base_logits: Tensor | None = None,
    saliency: Saliency | None = None,
    target: Tensor | None = None,
    max_batch: int | None = None,
) -> OrbitOutputs:
    """`evaluate_orbit` for arguments that are known to be right: the loop that all others go through.

    With a `max_batch` of no more than the batch, elements are run one at a time.
    """
    action = action.attached(x)
    if saliency is None:
        outputs = OrbitOutputs(*_logits(network, x, action, elements, base_logits, max_batch))
    else:
        if base_logits is not None and base_logits.ndim > 2:
            raise ValueError(
                f"Expected `base_logits` to have the shape ({len(x)}, classes) or ({len(x)},) for saliency but got "
                f"{tuple(base_logits.shape)}."
            )
        outputs = _logits_and_saliency(network, x, action, elements, base_logits, saliency, target, max_batch)
    if outputs.logits.shape != outputs.orbit_logits.shape[1:]:  # those that were given
        raise ValueError(
            f"Expected `base_logits` to have the shape {tuple(outputs.orbit_logits.shape[1:])} of the network's "
            f"outputs but got {tuple(outputs.logits.shape)}."
        )
    output_action = None if on_output is None else on_output(outputs.logits)
    orbit_logits, valid = bring_back(output_action, outputs.orbit_logits, elements)
    return replace(outputs, orbit_logits=orbit_logits, valid=valid)


#: An output action is doubted where another one leaves less than this part of its squared error. An untrained network
#: whose biases outweigh all else stays where it is by itself, and must not be doubted for it.
_CLEARLY_BETTER = {"other": 0.25, "still": 0.01}


@dataclass(frozen=True)
class Misfits:
    """Squared errors of the outputs over the orbit, added up, by how they are taken to move.

    Attributes:
        said: as `output_action` says.
        other: the other way, by the inverse elements.
        still: not at all.
        turned: of points with something attached, whose values alone move the other way; infinite elsewhere.
        size: the squared outputs themselves.
    """

    said: float
    other: float
    still: float
    turned: float
    size: float

    def better(self) -> tuple[str, float] | None:
        """How they agree clearly better than as was said, in words, and that error; None where they do not."""
        said = self.said
        if not said > 1e-10 * self.size:  # as was said, up to rounding
            return None
        if self.turned < min(_CLEARLY_BETTER["other"] * said, self.other, self.still):
            return "its values move the other way (by the inverse elements) while its places move as said", self.turned
        if self.other < min(_CLEARLY_BETTER["other"] * said, self.still):
            return "it moves the other way (by the inverse elements)", self.other
        return ("it stays as it is", self.still) if self.still < _CLEARLY_BETTER["still"] * said else None


def misfits(network: Network, x: Tensor, logits: Tensor, action: Action, output_action: Action) -> Misfits:
    """How well the outputs over the orbit agree if they move as `output_action` says, the other way, or stay.

    Args:
        network: from inputs to logits.
        x: some samples.
        logits: the network's logits of these.
        action: the group as it acts on `x`.
        output_action: how the logits are said to move.
    """
    action = action.attached(x)
    said = other = still = turned = 0.0
    field = output_action if isinstance(output_action, FieldAction) else None
    for element in range(1, min(len(action), 9)):
        moved = run_network(network, action.act(x, element), len(x))
        seen = output_action.in_view(logits, element)

        def error(back: Tensor, seen: Tensor | None = seen) -> float:
            squares = (back - logits).double().square()
            return float((squares if seen is None else torch.where(seen, squares, 0.0)).sum())

        said += error(output_action.invert(moved, element))
        other += error(output_action.act(moved, element))
        still += error(moved)
        if field is not None:
            turned += error(field.points.invert(field.fibres.act(moved, element), element))
    size = float(logits.double().square().sum())
    return Misfits(said, other, still, inf if field is None else turned, size)


def doubted(network: Network, x: Tensor, logits: Tensor, action: Action, output_action: Action) -> str | None:
    """What to say where the outputs agree better if they move the other way than `output_action` says, or stay."""
    found = misfits(network, x, logits, action, output_action)
    better = found.better()
    if better is None:
        return None
    way, least = better
    return (
        f"the network's outputs over the orbit agree better if the output does not move as `output_action` says, "
        f"{output_action!r}, but {way}: squared errors of {least:.3g} against {found.said:.3g}. Check `output_action=`."
    )


def evaluate_perturbations(
    network: Network,
    x: Tensor,
    action: Action,
    *,
    directions: Tensor | None = None,
    max_batch: int | None = None,
) -> Tensor:
    r"""Runs a network on random perturbations of a batch, as large as the group's.

    .. math::
        f(x + \epsilon_{x, g}), \qquad \epsilon_{x, g} = \frac{\| gx - x \|}{\| d_{x, g} \|} \, d_{x, g},
        \qquad d_{x, g} \sim N(0, 1)

    for every sample and every element but the identity: what `functional.selectivity` holds the orbit's logits
    against. Where :math:`gx = x` the input is left as it is. Gradients flow as in any forward: wrap the call in
    ``torch.no_grad()`` to measure. The network's mode is the caller's, and torch's random streams are not drawn from.

    Args:
        network: from a batch ``(B, ...)`` to its logits ``(B, ...)``.
        x: the batch, shape ``(B, ...)``, floating point.
        action: the group.
        directions: :math:`d_{x, g}`, shape ``(|G| - 1, B, ...)``, of any length but 0. Drawn in the same way on every
            call by default: pass standard normal numbers of your own to have batches independent of each other.
        max_batch: the most samples in one forward.

    Returns:
        The logits, shape ``(|G| - 1, B, ...)``.

    Raises:
        ValueError: if the group cannot act on `x`, `x` is not floating point, `directions` is no
            tensor of one direction for each pair, or the network gives no tensor of one row a sample.

    Example:
        >>> import torch
        >>> from lightning_invariance import C4, evaluate_perturbations
        >>> x = torch.randn(5, 1, 8, 8)
        >>> perturbed = evaluate_perturbations(torch.nn.Flatten(), x, C4())
        >>> perturbed.shape
        torch.Size([3, 5, 64])
        >>> sizes = (C4().act(x, 1) - x).flatten(1).norm(dim=1)
        >>> torch.allclose((perturbed[0] - x.flatten(1)).norm(dim=1), sizes)
        True
    """
    check_callable("network", network, "a module or a function")
    action = as_action(action)
    action.check(x)
    check_tensor("x", x)
    check_floating("x", x, "to be perturbed")
    if max_batch is not None:
        check_count("max_batch", max_batch)
    moved = action.orbit(x, list(range(1, len(action))))
    precision = torch.promote_types(x.dtype, torch.float32)
    if directions is None:
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(moved.shape, dtype=precision, generator=generator).to(x.device)
    check_tensor("directions", directions)
    if directions.shape != moved.shape or not directions.is_floating_point():
        raise ValueError(
            f"Expected `directions` to have the shape {tuple(moved.shape)}, floating point, but got "
            f"{tuple(directions.shape)} of {directions.dtype}."
        )
    check_same_device("directions", directions, x.device, "`x`")
    directions = directions.to(precision)

    def length(vectors: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(vectors.flatten(2), dim=2)
        return lengths.view(*moved.shape[:2], *(1,) * (x.ndim - 1))

    sizes = length(moved.to(precision) - x.to(precision))
    perturbed = (x + sizes / length(directions) * directions).to(x.dtype)
    rows = run_network(network, perturbed.flatten(0, 1), max_batch)
    return rows.view(*moved.shape[:2], *rows.shape[1:])


def _is_index(element: object) -> bool:
    if isinstance(element, Tensor):
        return element.ndim == 0 and not (element.is_floating_point() or element.is_complex() or element.is_meta)
    return hasattr(element, "__index__") and not isinstance(element, bool)


def _logits(
    network: Network, x: Tensor, action: Action, elements: list[int], base_logits: Tensor | None, max_batch: int | None
) -> tuple[Tensor, Tensor]:
    wanted = elements if base_logits is not None else [0, *elements]
    parts = [
        run_network(network, moved, max_batch).unflatten(0, (len(some), len(x)))
        for some, moved in _moved(x, action, wanted, max_batch)
    ]
    rows = torch.cat(parts) if len(parts) > 1 else parts[0]
    return (base_logits, rows) if base_logits is not None else (rows[0], rows[1:])


def _logits_and_saliency(
    network: Network,
    x: Tensor,
    action: Action,
    elements: list[int],
    base_logits: Tensor | None,
    saliency: Saliency,
    target: Tensor | None,
    max_batch: int | None,
) -> OrbitOutputs:
    """One pass gives the logits and the maps, unless those are taken at other inputs."""
    if prepared_by(saliency, x) is not x:
        with torch.no_grad():
            outputs = OrbitOutputs(*_logits(network, x, action, elements, base_logits, max_batch))
        return add_saliency(outputs, network, x, action, elements, saliency, target, max_batch)
    logits, maps, wanted = base_logits, None, [0, *elements]
    if target is None and base_logits is not None:
        target = predicted_class(base_logits)
    if target is None:
        # The class predicted on x is only known once x has been run.
        logits, maps = saliency.attribute(network, x, None, max_batch)
        target, wanted = predicted_class(logits), elements
    orbit_logits, posed = _posed(network, x, action, wanted, saliency, target, max_batch)
    if maps is None:
        first, orbit_logits = orbit_logits[0], orbit_logits[1:]
        logits, maps, posed = first if base_logits is None else base_logits, posed[0], posed[1:]
    assert logits is not None
    return OrbitOutputs(logits, orbit_logits, saliency.finish(maps), saliency.finish(torch.stack(posed)))


def add_saliency(
    outputs: OrbitOutputs,
    network: Network,
    x: Tensor,
    action: Action,
    elements: list[int],
    saliency: Saliency,
    target: Tensor | None,
    max_batch: int | None,
) -> OrbitOutputs:
    """The outputs with saliency maps, which take a pass of their own over the orbit of the prepared batch."""
    action = action.attached(x)
    logits = checked_logits(outputs.logits, x)
    target = predicted_class(logits) if target is None else target
    prepared = prepared_by(saliency, x)
    _, (maps, *posed) = _posed(network, prepared, action, [0, *elements], saliency, target, max_batch)
    return replace(outputs, saliency=saliency.finish(maps), orbit_saliency=saliency.finish(torch.stack(posed)))


def _posed(
    network: Network,
    x: Tensor,
    action: Action,
    elements: list[int],
    saliency: Saliency,
    target: Tensor,
    max_batch: int | None,
) -> tuple[Tensor, list[Tensor]]:
    """Logits of the elements, and their maps in the common pose."""
    rows, posed = [], []
    for some, moved in _moved(x, action, elements, max_batch):
        row, each = saliency.attribute(network, moved, target.repeat(len(some)), max_batch)
        rows.append(row.unflatten(0, (len(some), len(x))))
        places = zip(some, each.unflatten(0, (len(some), len(x))), strict=True)
        posed += [place if element == 0 else action.invert(place, element) for element, place in places]
    return torch.cat(rows), posed


def _moved(x: Tensor, action: Action, elements: list[int], max_batch: int | None) -> Iterator[tuple[list[int], Tensor]]:
    """The batch moved by the elements, ``(n B, ...)``: by all together, or one at a time where no more fit anyway."""
    if max_batch is None or max_batch > len(x):
        yield elements, action.orbit(x, elements).flatten(0, 1)
        return
    for element in elements:
        moved = action.act(x, element)
        # A copy, laid out in memory as x is: a network may write into its input, and x itself is needed again.
        layout = x if moved.shape == x.shape else moved
        yield [element], torch.empty_like(layout, dtype=moved.dtype).copy_(moved)


def run_network(network: Network, x: Tensor, max_batch: int | None) -> Tensor:
    """The network's outputs of a batch, in as many forwards as `max_batch` asks for."""
    chunks = x.split(max_batch) if max_batch is not None and len(x) > max_batch else (x,)
    rows = [network(chunk) for chunk in chunks]
    for chunk, row in zip(chunks, rows, strict=True):
        if not isinstance(row, Tensor) or row.ndim == 0 or len(row) != len(chunk):
            got = describe_value(row)
            raise ValueError(
                f"Expected `network` to give a tensor of {len(chunk)} rows, one a sample, but got {got}: "
                "pass the part of your network that gives the logits."
            )
    return torch.cat(rows) if len(rows) > 1 else rows[0]
