"""Rules for operations that move, take apart and put together what they are given, and for sums over dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_invariance.symmetry._factors import (
    Channels,
    Dim,
    Dims,
    Joined,
    Listed,
    Places,
    Refusal,
    Trivial,
    channels,
    resolve,
    size_of,
    trivial,
)
from lightning_invariance.symmetry._rules import register_rule

if TYPE_CHECKING:
    from lightning_invariance.symmetry._trace import Trace

# Entry by entry -------------------------------------------------------------------------------------------------------


def broadcast(trace: Trace, tensors: Sequence[Tensor]) -> Dims:
    """The dimensions of what several tensors give entry by entry."""
    rank = max(tensor.ndim for tensor in tensors)
    found: list[Dim] = [()] * rank
    for tensor in tensors:
        for place, dim in enumerate(trace.of(tensor), start=rank - tensor.ndim):
            if tensor.shape[place - rank] == 1:
                continue
            if size_of(found[place]) == 1:
                found[place] = dim
            else:
                trace.solver.equate(found[place], dim)
    return tuple(found)


@register_rule(
    "pointwise",
    "aten.copy",
    "aten.masked_fill",
    "aten.native_dropout",
    "aten.bernoulli",
    "aten.where",
    "aten._to_copy",
    "aten.clone",
    "aten.lerp",
    "aten.prelu",
    "aten._prelu_kernel",
    "aten.rrelu_with_noise",
    "aten.log_sigmoid_forward",
    "aten.hardswish",
    "aten.hardsigmoid",
    "aten.hardtanh",
    "aten.softplus",
    "aten.threshold",
)
def _(trace: Trace, output: Any, **arguments: Any) -> Any:
    tensors = [each for each in arguments.values() if isinstance(each, Tensor)]
    tensors += [
        each
        for value in arguments.values()
        if isinstance(value, (list, tuple))
        for each in value
        if isinstance(each, Tensor)
    ]
    dims = broadcast(trace, tensors)
    return dims if isinstance(output, Tensor) else [dims] * len(output)


@register_rule("aten.detach", "aten.alias", "aten.lift_fresh", "aten.lift_fresh_copy", "aten.view_of", takes_parts=True)
def _(trace: Trace, output: Any, self: Tensor, **_: Any) -> Any:
    _keep_part(trace, self, output)
    return trace.of(self)


@register_rule(
    "aten.zeros_like",
    "aten.ones_like",
    "aten.full_like",
    "aten.empty_like",
    "aten.rand_like",
    "aten.randn_like",
    "aten.new_zeros",
    "aten.new_ones",
    "aten.new_full",
    "aten.new_empty",
    "aten.fill",
    "aten.zero",
)
def _(trace: Trace, output: Any, self: Tensor, **arguments: Any) -> Any:
    if output.shape == self.shape:
        return trace.of(self)
    return tuple(channels(size, still=True) for size in output.shape)


@register_rule("aten._local_scalar_dense")
def _(trace: Trace, output: Any, self: Tensor) -> Any:
    return None


# Views ----------------------------------------------------------------------------------------------------------------


def _keep_part(trace: Trace, given: Tensor, output: Tensor) -> None:
    """A view of what is yet to be summed is yet to be summed, too."""
    kind = trace.partial.get(id(given))
    if kind is not None:
        trace.partial[id(output)] = kind


@register_rule(
    "aten.view", "aten._unsafe_view", "aten._reshape_alias", "aten._reshape_copy", "aten.reshape", takes_parts=True
)
def _(trace: Trace, output: Tensor, self: Tensor, **_: Any) -> Dims:
    _keep_part(trace, self, output)
    return trace.solver.view(trace.of(self), output.shape)


@register_rule("aten.t", "aten.transpose", "aten.permute", "aten.numpy_T", takes_parts=True)
def _(trace: Trace, output: Tensor, self: Tensor, dims: Any = None, dim0: Any = None, dim1: Any = None) -> Dims:
    _keep_part(trace, self, output)
    given = list(trace.of(self))
    if dims is not None:
        return tuple(given[dim] for dim in dims)
    if dim0 is None:
        return tuple(reversed(given))
    given[dim0], given[dim1] = given[dim1], given[dim0]
    return tuple(given)


@register_rule("aten.as_strided")
def _(trace: Trace, output: Tensor, self: Tensor, size: Sequence[int], **_: Any) -> Dims:
    # Pooling to one place puts the strides of maps whose channels lie last in order.
    if tuple(size) == tuple(self.shape) and self.numel() == size[0] * size[1] and output.stride()[:2] == (size[1], 1):
        return trace.of(self)
    raise Refusal("it looks at memory in an order of its own")


@register_rule("aten.unsqueeze", takes_parts=True)
def _(trace: Trace, output: Tensor, self: Tensor, dim: int) -> Dims:
    _keep_part(trace, self, output)
    given = list(trace.of(self))
    given.insert(dim % output.ndim, ())
    return tuple(given)


@register_rule("aten.squeeze", takes_parts=True)
def _(trace: Trace, output: Tensor, self: Tensor, dim: Any = None) -> Dims:
    _keep_part(trace, self, output)
    given = [each for each in trace.of(self) if size_of(each) != 1]
    return trace.solver.view(tuple(given), output.shape)


@register_rule("aten.native_channel_shuffle", "aten.channel_shuffle")
def _(trace: Trace, output: Tensor, self: Tensor, groups: int) -> Dims:
    batch, depth, *space = trace.of(self)
    group, inner = trace.solver.view((depth,), (groups, self.shape[1] // groups))
    return (batch, (*inner, *group), *space)


@register_rule("aten.expand", "aten.expand_as", takes_parts=True)
def _(trace: Trace, output: Tensor, self: Tensor, **_: Any) -> Dims:
    _keep_part(trace, self, output)
    given = trace.of(self)
    added = output.ndim - len(given)
    sizes = output.shape[added:]
    # What is the same in all places moves as anything does.
    kept = [dim if size_of(dim) == size else channels(size, still=True) for dim, size in zip(given, sizes, strict=True)]
    return (*(channels(size, still=True) for size in output.shape[:added]), *kept)


@register_rule("aten.repeat")
def _(trace: Trace, output: Tensor, self: Tensor, repeats: Sequence[int]) -> Dims:
    given = ((),) * (len(repeats) - self.ndim) + trace.of(self)
    pairs = zip(repeats, given, strict=True)
    return tuple((*(trivial(times) if size_of(dim) > 1 else channels(times, still=True)), *dim) for times, dim in pairs)


# Pieces ---------------------------------------------------------------------------------------------------------------


@register_rule("aten.select", takes_parts=True)
def _(trace: Trace, output: Tensor, self: Tensor, dim: int, index: int) -> Dims:
    dims = list(trace.of(self))
    dim %= len(dims)
    index %= self.shape[dim]
    trace.solver.cut(dims[dim], [index, 1, self.shape[dim] - index - 1])
    del dims[dim]
    return tuple(dims)


@register_rule("aten.slice", takes_parts=True)
def _(trace: Trace, output: Tensor, self: Tensor, dim: int, start: Any, end: Any, step: int = 1) -> Dims:
    dims = list(trace.of(self))
    dim %= len(dims)
    size = self.shape[dim]
    start = min(max((start or 0) + (size if (start or 0) < 0 else 0), 0), size)
    kept = output.shape[dim]
    if kept == size:
        _keep_part(trace, self, output)
        return tuple(dims)
    if step != 1:
        trace.solver.settle(dims[dim])
        dims[dim] = trivial(kept)
        return tuple(dims)
    dims[dim] = _cropped(trace, dims[dim], start, kept, size - start - kept)
    return tuple(dims)


def _cropped(trace: Trace, dim: Dim, before: int, kept: int, behind: int) -> Dim:
    factors = resolve(dim)
    only = factors[0] if len(factors) == 1 else None
    if isinstance(only, Places):
        return resize(trace, only, kept, (-before, -behind), "it is cropped")
    return trace.solver.cut(dim, [before, kept, behind])[1]


@register_rule(
    "aten.split",
    "aten.split_with_sizes",
    "aten.unsafe_split",
    "aten.unsafe_split_with_sizes",
    "aten.chunk",
    takes_parts=True,
)
def _(trace: Trace, output: Sequence[Tensor], self: Tensor, dim: int = 0, **_: Any) -> list[Dims]:
    dims = list(trace.of(self))
    dim %= len(dims)
    pieces = trace.solver.cut(dims[dim], [each.shape[dim] for each in output])
    return [(*dims[:dim], piece, *dims[dim + 1 :]) for piece in pieces]


@register_rule("aten.unbind", takes_parts=True)
def _(trace: Trace, output: Sequence[Tensor], self: Tensor, dim: int = 0) -> list[Dims]:
    dims = list(trace.of(self))
    dim %= len(dims)
    trace.solver.cut(dims[dim], [1] * len(output))
    return [(*dims[:dim], *dims[dim + 1 :])] * len(output)


@register_rule("aten.cat")
def _(trace: Trace, output: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Dims:
    parts = [trace.of(each) for each in tensors if each.shape != (0,)]
    dim %= output.ndim
    dims = list(parts[0])
    for other in parts[1:]:
        for place, (a, b) in enumerate(zip(dims, other, strict=True)):
            if place != dim:
                trace.solver.equate(a, b)
    if len(parts) > 1:
        for part in parts:
            trace.solver.check_closed([part[dim]], "it joins")
    dims[dim] = (Joined(tuple(part[dim] for part in parts)),)
    return tuple(dims)


@register_rule("aten.glu")
def _(trace: Trace, output: Tensor, self: Tensor, dim: int = -1) -> Dims:
    dims = list(trace.of(self))
    dim %= len(dims)
    values, gates = trace.solver.cut(dims[dim], [output.shape[dim]] * 2)
    trace.solver.equate(values, gates)
    dims[dim] = values
    return tuple(dims)


@register_rule("aten.stack")
def _(trace: Trace, output: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Dims:
    dims = list(broadcast(trace, tensors))
    dims.insert(dim % output.ndim, trivial(len(tensors)))
    return tuple(dims)


@register_rule("aten.embedding")
def _(trace: Trace, output: Tensor, weight: Tensor, indices: Tensor, **_: Any) -> Dims:
    rows, width = trace.of(weight)
    if trace.is_constant(indices):
        return (*_rows_of(trace, rows, indices), width)
    trace.solver.settle(rows)
    return (*trace.of(indices), width)


@register_rule("aten.index", "aten.index_select")
def _(trace: Trace, output: Tensor, self: Tensor, indices: Any = None, dim: int = 0, index: Any = None) -> Dims:
    dims = list(trace.of(self))
    given = [None] * dim + [index] if indices is None else list(indices)
    given += [None] * (len(dims) - len(given))
    used = [place for place, each in enumerate(given) if each is not None]
    first = given[used[0]]
    if len(used) == 1 and trace.is_constant(first) and first.dtype != torch.bool:
        found = _rows_of(trace, dims[used[0]], first)
        return (*dims[: used[0]], *found, *dims[used[0] + 1 :])
    raise Refusal("it takes entries by an index that is not known beforehand, or by several")


def _rows_of(trace: Trace, rows: Dim, indices: Tensor) -> Dims:
    """What a table gives for constant indices: some of its rows, one behind the other."""
    flat = indices.reshape(-1, indices.shape[-1]) if indices.ndim else indices.reshape(1, 1)
    first = flat[0].tolist()
    size = size_of(rows)
    if not bool((flat == flat[0]).all()) or first != list(range(first[0], first[0] + len(first))):
        factors = resolve(rows)
        if all(isinstance(factor, Trivial) for factor in factors):
            return tuple(trivial(each) for each in indices.shape)
        raise Refusal(
            "it takes entries by an index, as tables of relative positions do, of which is not known how they move; a "
            "shuffle of channels is known where it is written as view, transpose, flatten"
        )
    taken = trace.solver.cut(rows, [first[0], len(first), size - first[0] - len(first)])[1]
    return (*(trivial(each) for each in indices.shape[:-1]), *((taken,) if indices.ndim else ()))


# What moves places ----------------------------------------------------------------------------------------------------


@register_rule("aten.flip", "aten.roll")
def _(trace: Trace, output: Tensor, self: Tensor, dims: Sequence[int], shifts: Any = None) -> Dims:
    given = list(trace.of(self))
    axes = {each.axis for dim in dims for each in resolve(given[dim]) if isinstance(each, Places)}
    for dim in dims:
        for factor in resolve(given[dim]):
            if isinstance(factor, Places):
                group = trace.group
                partners = group.partners[factor.axis]
                # Of axes that are exchanged, flipping all is a half turn, which commutes with turns and flips.
                apart = axes.issuperset(partners) if shifts is None else len(partners) == 1
                allowed = not group.shifts(factor.axis) if shifts is None else not group.flips(factor.axis)
                if apart and allowed:
                    continue
                raise Refusal("it turns or shifts places, which does not commute with the group")
            trace.solver.settle((factor,))
    return tuple(given)


@register_rule("aten.sort", "aten.topk", "aten.cumsum", "aten.cumprod", "aten.argmax", "aten.argmin", "aten.argsort")
def _(trace: Trace, output: Any, self: Tensor, dim: Any = -1, keepdim: bool = False, **_: Any) -> Any:
    dims = list(trace.of(self))
    if dim is None:
        raise Refusal("the position that it gives moves in a way of its own")
    dim %= len(dims)
    trace.solver.settle(dims[dim])
    first = output if isinstance(output, Tensor) else output[0]
    if first.ndim < len(dims):
        del dims[dim]
    else:
        dims[dim] = trivial(first.shape[dim])
    found = tuple(dims)
    return found if isinstance(output, Tensor) else [found] * len(output)


# Sums -----------------------------------------------------------------------------------------------------------------

#: Operations of which the one over two axes is the one over the first and then the second.
_SUMS = {"sum": "sum", "mean": "sum", "nansum": "sum", "amax": "amax", "max": "amax", "amin": "amin", "min": "amin"}


def reduced(trace: Trace, given: Tensor, dim: Any, keepdim: bool, kind: str, output: Tensor) -> Dims:
    """The dimensions that are left after one over some of them."""
    dims = trace.of(given)
    every = range(len(dims))
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        taken = set(every)
    else:
        taken = {each % max(len(dims), 1) for each in (dim if isinstance(dim, (list, tuple)) else [dim])}
    lacking = trace.solver.unpaired([dims[each] for each in every if each in taken])
    before = trace.partial.get(id(given))
    if lacking is not None or id(given) in trace.unpaired:
        if kind not in _SUMS or (id(given) in trace.unpaired and before != _SUMS[kind]):
            words = trace.solver.in_words(() if lacking is None else (lacking,))
            raise Refusal(f"it is taken over {words} without the axis that the group exchanges it with")
        trace.partial[id(output)] = _SUMS[kind]
    if keepdim:
        return tuple(() if place in taken else each for place, each in enumerate(dims))
    return tuple(each for place, each in enumerate(dims) if place not in taken)


def _register_reduction(name: str) -> None:
    kind = name.removeprefix("aten.").split(".")[0]

    def rule(trace: Trace, output: Any, self: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Any:
        first = output if isinstance(output, Tensor) else output[0]
        if kind in ("max", "min") and not isinstance(output, Tensor) and dim is not None:
            return [reduced(trace, self, dim, keepdim, kind, first), None]
        found = reduced(trace, self, dim, keepdim, kind, first)
        return found if isinstance(output, Tensor) else [found] * len(output)

    register_rule(name, takes_parts=True)(rule)


for _name in (
    "aten.sum",
    "aten.mean",
    "aten.nansum",
    "aten.amax",
    "aten.amin",
    "aten.max.dim",
    "aten.min.dim",
    "aten.max.default",
    "aten.min.default",
    "aten.var",
    "aten.std",
    "aten.var_mean",
    "aten.std_mean",
    "aten.logsumexp",
    "aten.linalg_vector_norm",
    "aten.norm",
    "aten.prod",
    "aten.any",
    "aten.all",
    "aten.median.default",
    "aten.count_nonzero",
):
    _register_reduction(_name)


@register_rule("aten._softmax", "aten._log_softmax", "aten._safe_softmax", "aten.softmax", "aten.log_softmax")
def _(trace: Trace, output: Tensor, self: Tensor, dim: int, **_: Any) -> Dims:
    dims = trace.of(self)
    trace.solver.check_closed([dims[dim]], "it is taken over")
    return dims


# Grids of another size ------------------------------------------------------------------------------------------------


def resize(trace: Trace, places: Places, size: int, margins: tuple[int, int], what: str) -> Dim:
    """An axis with something added to its ends, or taken off.

    Raises:
        Refusal: if a flip or a shift would not find it where it was.
    """
    if margins[0] != margins[1] and trace.group.flips(places.axis):
        raise Refusal(
            f"{what} by {abs(margins[0])} places in front and {abs(margins[1])} behind, and a flip exchanges the two: "
            "make them equal"
        )
    if places.shifts and trace.group.shifts(places.axis):
        raise Refusal(f"{what}, and shifts move places beyond its ends: use circular padding (padding_mode='circular')")
    return () if size == 1 else (Places(places.axis, size, places.shifts),)


@register_rule(
    "aten.constant_pad_nd",
    "aten.reflection_pad1d",
    "aten.reflection_pad2d",
    "aten.replication_pad1d",
    "aten.replication_pad2d",
    takes_parts=True,
)
def _(trace: Trace, output: Tensor, **arguments: Any) -> Dims:
    given = arguments.get("self", arguments.get("input"))
    pad = arguments.get("pad", arguments.get("padding"))
    assert isinstance(given, Tensor)
    assert pad is not None
    dims = list(trace.of(given))
    for number, margins in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        place = len(dims) - 1 - number
        if margins == (0, 0):
            continue
        factors = resolve(dims[place])
        if len(factors) == 1 and isinstance(factors[0], Places):
            dims[place] = resize(trace, factors[0], output.shape[place], margins, "it is padded")
        else:
            trace.solver.check_closed([dims[place]], "it pads")
            ends = [trivial(each) if each else (Trivial(0),) for each in margins]
            dims[place] = (Joined((ends[0], dims[place], ends[1])),)
    return tuple(dims)


@register_rule("circular_pad", takes_parts=True)
def _(trace: Trace, output: Tensor, input: Tensor, pad: Sequence[int], **_: Any) -> Dims:
    dims = list(trace.of(input))
    for number, margins in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        place = len(dims) - 1 - number
        factors = resolve(dims[place])
        only = factors[0] if len(factors) == 1 else None
        if margins == (0, 0) or not factors:
            dims[place] = dims[place] if margins == (0, 0) else trivial(output.shape[place])
        elif isinstance(only, Places) and only.shifts and trace.group.shifts(only.axis):
            dims[place] = (Places(only.axis, output.shape[place], True, (margins[0], margins[1])),)
        elif isinstance(only, Places):
            dims[place] = resize(trace, only, output.shape[place], margins, "it is padded")
        else:
            trace.solver.settle(dims[place])
            dims[place] = trivial(output.shape[place])
    return tuple(dims)


@register_rule(
    "aten.upsample_nearest1d",
    "aten.upsample_nearest2d",
    "aten._upsample_nearest_exact1d",
    "aten._upsample_nearest_exact2d",
)
def _(trace: Trace, output: Tensor, **arguments: Any) -> Dims:
    return _resampled(trace, _input_of(arguments), output, smooth=False)


@register_rule(
    "aten.upsample_linear1d",
    "aten.upsample_bilinear2d",
    "aten.upsample_bicubic2d",
    "aten._upsample_bilinear2d_aa",
    "aten._upsample_bicubic2d_aa",
)
def _(trace: Trace, output: Tensor, **arguments: Any) -> Dims:
    return _resampled(trace, _input_of(arguments), output, smooth=True)


def _input_of(arguments: dict[str, Any]) -> Tensor:
    given = arguments.get("self", arguments.get("input"))
    assert isinstance(given, Tensor)
    return given


def _resampled(trace: Trace, given: Tensor, output: Tensor, smooth: bool) -> Dims:
    dims = list(trace.of(given))
    for place in range(2, len(dims)):
        size, new = given.shape[place], output.shape[place]
        factor = only_factor(trace, dims[place], "it resamples")
        if isinstance(factor, Places) and size != new:
            if not smooth and new % size:
                raise Refusal(
                    f"the nearest of {size} places for {new} is not the nearest for a flipped grid: use a whole factor "
                    "or bilinear interpolation"
                )
            if smooth and trace.group.shifts(factor.axis) and factor.shifts:
                raise Refusal("interpolation does not go on behind the border, where shifts do: use mode='nearest'")
            dims[place] = (Places(factor.axis, new, factor.shifts),)
        elif size != new:
            dims[place] = trivial(new) if size > 1 else channels(new, still=True)
    return tuple(dims)


def only_factor(trace: Trace, dim: Dim, what: str) -> Trivial | Places | None:
    """A spatial dimension's factor; None where it is of size 1. Channels that stand in its place become trivial.

    Raises:
        Refusal: if it has several, or is not spatial.
    """
    if all(isinstance(factor, Channels) for factor in resolve(dim)):
        trace.solver.settle(dim)
    factors = resolve(dim)
    if not factors:
        return None
    if len(factors) == 1 and isinstance(factors[0], (Trivial, Places)):
        return factors[0]
    if len(factors) == 1 and isinstance(factors[0], Listed):
        raise Refusal(
            f"{what} places that the group permutes at will: only layers that take all of them at once can be"
        )
    raise Refusal(f"{what} along {trace.solver.in_words(dim)}")


@register_rule("aten.pixel_shuffle", "aten.pixel_unshuffle")
def _(trace: Trace, output: Tensor, self: Tensor, upscale_factor: int = 1, downscale_factor: int = 1) -> Dims:
    dims = trace.of(self)
    *batch, depth, height, width = self.shape
    if upscale_factor > 1:
        r = upscale_factor
        parts = trace.solver.view(dims, (*batch, depth // r**2, r, r, height, width))
        head, (c, a, b, h, w) = parts[: len(batch)], parts[len(batch) :]
        for inside, outside in ((a, h), (b, w)):
            _equate_inside(trace, inside, outside, r)
        return (*head, c, (*h, *a), (*w, *b))
    r = downscale_factor
    parts = trace.solver.view(dims, (*batch, depth, height // r, r, width // r, r))
    head, (c, h, a, w, b) = parts[: len(batch)], parts[len(batch) :]
    return (*head, (*c, *a, *b), h, w)


def _equate_inside(trace: Trace, inside: Dim, outside: Dim, size: int) -> None:
    factor = only_factor(trace, outside, "it shuffles pixels")
    wanted = (Places(factor.axis, size, False),) if isinstance(factor, Places) else trivial(size)
    trace.solver.equate(inside, wanted)


@register_rule("aten.unfold")
def _(trace: Trace, output: Tensor, self: Tensor, dimension: int, size: int, step: int) -> Dims:
    dims = list(trace.of(self))
    dimension %= len(dims)
    if size != step or self.shape[dimension] % size:
        trace.solver.settle(dims[dimension])
        dims[dimension] = trivial(output.shape[dimension])
        return (*dims, trivial(size))
    sizes = [*self.shape[:dimension], self.shape[dimension] // size, size, *self.shape[dimension + 1 :]]
    parts = list(trace.solver.view(tuple(dims), sizes))
    inside = parts.pop(dimension + 1)
    return (*parts, inside)
