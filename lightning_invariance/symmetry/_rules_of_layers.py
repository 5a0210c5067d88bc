"""Rules for layers: products with weights, convolutions, pooling, normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_invariance.symmetry._factors import Channels, Dim, Dims, Places, Refusal, Trivial, resolve, trivial
from lightning_invariance.symmetry._rules import register_rule
from lightning_invariance.symmetry._rules_of_shape import broadcast, only_factor

if TYPE_CHECKING:
    from lightning_invariance.symmetry._trace import Trace

# Products -------------------------------------------------------------------------------------------------------------


def _contract(trace: Trace, left: tuple[Tensor, int], right: tuple[Tensor, int]) -> None:
    """Sums over a dimension of two tensors."""
    one, other = (trace.of(tensor)[place] for tensor, place in (left, right))
    trace.solver.equate(one, other)
    trace.solver.check_closed([one], "it sums over")
    for (tensor, place), (partner, _) in ((left, right), (right, left)):
        if trace.is_fixed(tensor) and not trace.is_fixed(partner):
            trace.note_sum(tensor, place)


def _add(trace: Trace, dims: Dims, bias: Tensor) -> None:
    """A bias moves as what it is added to."""
    known = trace.of(bias)
    for dim, other in zip(dims[len(dims) - len(known) :], known, strict=True):
        if resolve(other):
            trace.solver.equate(dim, other)


@register_rule(
    "aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten.mv", "aten.addmv", "aten.dot", "aten.vdot", "aten.matmul"
)
def _(trace: Trace, output: Tensor, **arguments: Any) -> Dims:
    # In every schema the two factors come one behind the other, and what is added in front of them.
    tensors = [each for each in arguments.values() if isinstance(each, Tensor)]
    left, right = tensors[-2:]
    bias = tensors[0] if len(tensors) == 3 else None
    a, b = trace.of(left), trace.of(right)
    _contract(trace, (left, -1), (right, -2 if len(b) > 1 else -1))
    for one, other in zip(a[:-2], b[:-2], strict=False):
        trace.solver.equate(one, other)
    dims = (*a[:-1], *b[-1:]) if len(b) > 1 else a[:-1]
    if bias is not None:
        _add(trace, dims, bias)
    return dims


@register_rule("aten.linear")
def _(trace: Trace, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Dims:
    given, (out, _) = trace.of(input), trace.of(weight)
    _contract(trace, (input, -1), (weight, 1))
    dims = (*given[:-1], out)
    if bias is not None:
        _add(trace, dims, bias)
    return dims


# Windows --------------------------------------------------------------------------------------------------------------


def for_each(values: Sequence[int], rank: int) -> tuple[int, ...]:
    """A value for each spatial dimension, where the last one given stands for the rest."""
    return (*values, *[values[-1]] * (rank - len(values)))


def slide(
    trace: Trace,
    dims: Sequence[Dim],
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    what: str,
    grid: bool = True,
) -> tuple[list[Dim], list[Dim]]:
    """A window that slides over a grid: the dimensions of what it gives, and of the window itself.

    Args:
        trace: the trace.
        dims: the spatial dimensions.
        sizes: how many places it gives along each.
        kernel: the window's sizes.
        stride: its steps.
        padding: how much is added at both ends.
        dilation: the distance of the places in it.
        what: the layer, for messages.
        grid: whether dimensions of which nothing is known may be those of a grid.

    Raises:
        Refusal: if a moved grid does not give the same, moved.
    """
    out: list[Dim] = []
    window: list[Dim] = []
    options: dict[int, tuple[int, int, int, int]] = {}
    for place, (dim, size, k, s, p, d) in enumerate(
        zip(dims, sizes, kernel, stride, padding, dilation, strict=True), start=-len(dims)
    ):
        if (k, s, p) == (1, 1, 0):
            for each in resolve(dim):
                if isinstance(each, Places):
                    _check_alike(trace, options, each.axis, (1, 1, 0, 1))
            out.append(dim)
            window.append(())
            continue
        if grid:
            take_for_grid(trace, dim, place)
        factor = only_factor(trace, dim, "it slides")
        shifted = isinstance(factor, Places) and factor.shifts and trace.group.shifts(factor.axis)
        if isinstance(factor, Places) and shifted and (k, p, d) == (factor.size, 0, 1) and not any(factor.wrapped):
            # It takes all places at once, as a linear layer does, whose weights move with the places.
            _check_alike(trace, options, factor.axis, (k, s, p, d))
            out.append(())
            window.append((Places(factor.axis, k, True),))
        elif isinstance(factor, Places):
            _check_slide(trace, factor, size, (k, s, p, d), f"{what} with {k} wide windows, stride {s}, padding {p}")
            _check_alike(trace, options, factor.axis, (k, s, p, d if k > 1 else 1))
            out.append(() if size == 1 else (Places(factor.axis, size, factor.shifts),))
            window.append(() if k == 1 else (Places(factor.axis, k, False),))
        else:
            out.append(trivial(size))
            window.append(trivial(k))
    return out, window


def _check_alike(
    trace: Trace, options: dict[int, tuple[int, int, int, int]], axis: int, own: tuple[int, int, int, int]
) -> None:
    """Raises a `Refusal` where a window is another one along an axis that the group exchanges this one with."""
    options.setdefault(axis, own)
    if any(options.get(other, own) != own for other in (axis, *trace.group.partners[axis])):
        raise Refusal("its windows, steps or padding differ along axes that the group exchanges: make them equal")


def may_be_grid(trace: Trace, x: Tensor, rank: int) -> bool:
    """Whether the last dimensions of a tensor, of which nothing is known, can be what a decoder makes of its latents.

    They are not where the grid has more dimensions than the window, or where there is a single channel: convolutions
    over channels (ECA) put these in place of a signal's steps.
    """
    return len(trace.group.dims) <= rank and x.shape[1] > 1


def take_for_grid(trace: Trace, dim: Dim, place: int) -> None:
    """Takes a dimension of which nothing is known for an axis of the grid: what a decoder makes of its latents."""
    factors, group = resolve(dim), trace.group
    if len(factors) != 1 or not isinstance(factors[0], Channels) or place not in group.dims or group.maps is None:
        return
    axis = group.dims.index(place)
    moved = group.flips(axis) or group.shifts(axis) or len(group.partners[axis]) > 1
    if moved and group.fits(axis, factors[0].size):
        trace.solver.equate(dim, (Places(axis, factors[0].size, True),))


def _check_slide(trace: Trace, places: Places, size: int, window: tuple[int, int, int, int], what: str) -> None:
    k, s, p, d = window
    group = trace.group
    reach = d * (k - 1) + 1
    left_over = places.size + 2 * p - reach - s * (size - 1)
    if places.shifts and group.shifts(places.axis):
        whole = places.size - sum(places.wrapped)
        if p and k > 1:
            raise Refusal(
                f"{what}, adds zeros at the border, and shifts move places beyond it: use padding_mode='circular'"
            )
        if size * s != whole or not group.fits(places.axis, size):
            raise Refusal(
                f"{what}, gives {size} places for {whole} that are shifted: the number of places has to be a multiple "
                f"of {s * group.smallest(places.axis)}, and circular padding of {reach - 1} has to be around them "
                "where windows overlap",
                of_size=True,
            )
    if group.flips(places.axis) and left_over:
        around = sum(places.wrapped)
        near = range(places.size - s + 1, places.size + s)
        works = [each - around for each in near if (each + 2 * p - reach) % s == 0]
        raise Refusal(
            f"{what}, does not cover its {places.size - around} places evenly: {abs(left_over)} at one end "
            f"{'are left out' if left_over > 0 else 'are missing'}, which are others when the grid is turned. "
            f"{' or '.join(str(each) for each in works if each > 0)} places would do, or another padding",
            of_size=True,
        )


@register_rule("aten.convolution", "aten._convolution")
def _(
    trace: Trace,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    **_: Any,
) -> Dims:
    batch, depth, *space = trace.of(input)
    first, second, *taps = trace.of(weight)
    rank = len(space)
    grid = may_be_grid(trace, input, rank)
    stride, padding, dilation = (for_each(each, rank) for each in (stride, padding, dilation))
    if transposed:
        out, window = _spread(trace, space, output, weight, stride, padding, dilation, output_padding, grid)
    else:
        what = f"a {'×'.join(str(each) for each in weight.shape[2:])} convolution"
        out, window = slide(trace, space, output.shape[2:], weight.shape[2:], stride, padding, dilation, what, grid)
    for tap, found in zip(taps, window, strict=True):
        trace.solver.equate(tap, found)
    if transposed:
        trace.solver.equate(depth, first)
        given, wide = first, second
        sizes = (groups, weight.shape[0] // groups)
    else:
        given, wide = second, first
        sizes = (groups, weight.shape[0] // groups)
    if trace.is_fixed(weight):
        trace.note_sum(weight, 0 if transposed else 1)
    if groups == 1:
        trace.solver.equate(depth, given)
        trace.solver.check_closed([depth], "it sums over")
        made = wide
    else:
        made = _grouped(trace, depth, given, wide, sizes, input.shape[1], transposed)
    dims = (batch, made, *out)
    if bias is not None:
        trace.solver.equate(made, trace.of(bias)[0])
    return dims


def _grouped(
    trace: Trace, depth: Dim, given: Dim, wide: Dim, sizes: tuple[int, int], channels_in: int, transposed: bool
) -> Dim:
    """Grouped convolutions: groups of channels move as a whole, and each group's channels alike."""
    groups, each = sizes
    which, inner = trace.solver.view((depth,), (groups, channels_in // groups))
    if transposed:
        return (*which, *wide)
    trace.solver.equate(inner, given)
    first_use = all(isinstance(factor, Channels) and factor.found is None for factor in wide)
    also, outer = trace.solver.view((wide,), (groups, each))
    if first_use and each >= len(trace.group):  # there is room for the poses of each group's filters
        for factor in also:
            if isinstance(factor, Channels):
                factor.inherited = True
    trace.solver.equate(which, also)
    return (*which, *outer)


def _spread(
    trace: Trace,
    space: Sequence[Dim],
    output: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    grid: bool,
) -> tuple[list[Dim], list[Dim]]:
    """The spatial dimensions of a transposed convolution, and of its kernel."""
    out: list[Dim] = []
    window: list[Dim] = []
    for axis, dim in enumerate(space):
        size, k = output.shape[2 + axis], weight.shape[2 + axis]
        if grid:
            take_for_grid(trace, dim, axis - len(space))
        factor = only_factor(trace, dim, "it slides")
        if not isinstance(factor, Places):
            if isinstance(factor, Trivial) or k > 1 or size > 1:
                out.append(trivial(size))
                window.append(trivial(k))
            else:
                out.append(())
                window.append(())
            continue
        if any(output_padding) and trace.group.flips(factor.axis):
            raise Refusal(
                f"output_padding={tuple(output_padding)} adds places at one end: use a kernel whose size differs from "
                "the stride by an even number, and a padding of half of that"
            )
        whole = size == factor.size * stride[axis] and dilation[axis] * (k - 1) + 1 <= stride[axis]
        if factor.shifts and trace.group.shifts(factor.axis) and not (whole and not padding[axis]):
            raise Refusal(
                "its windows overlap, and do not go on behind the border, where shifts do: use a kernel as wide as the "
                "stride"
            )
        out.append((Places(factor.axis, size, factor.shifts),))
        window.append(() if k == 1 else (Places(factor.axis, k, False),))
    return out, window


@register_rule(
    "aten.max_pool2d_with_indices",
    "aten.avg_pool1d",
    "aten.avg_pool2d",
    "aten.avg_pool3d",
    "aten.max_pool1d",
    "aten.max_pool2d",
    "aten.max_pool3d_with_indices",
)
def _(
    trace: Trace,
    output: Any,
    self: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    **_: Any,
) -> Any:
    first = output if isinstance(output, Tensor) else output[0]
    dims = trace.of(self)
    rank = len(kernel_size)
    stride = stride or kernel_size
    kernel, stride, padding, dilation = (for_each(each, rank) for each in (kernel_size, stride, padding, dilation))
    what = "pooling" if isinstance(output, Tensor) else "max pooling"
    out, _window = slide(trace, dims[-rank:], first.shape[-rank:], kernel, stride, padding, dilation, what)
    found = (*dims[:-rank], *out)
    return found if isinstance(output, Tensor) else [found, None]


@register_rule(
    "aten._adaptive_avg_pool2d",
    "aten.adaptive_max_pool2d",
    "aten.adaptive_avg_pool1d",
    "aten._adaptive_avg_pool3d",
    "aten.adaptive_max_pool3d",
)
def _(trace: Trace, output: Any, self: Tensor, **_: Any) -> Any:
    first = output if isinstance(output, Tensor) else output[0]
    dims = list(trace.of(self))
    for place in range(2, len(dims)):
        size, new = self.shape[place], first.shape[place]
        if new == 1:
            dims[place] = ()
            continue
        factor = only_factor(trace, dims[place], "it pools")
        if not isinstance(factor, Places) or new == size:
            dims[place] = dims[place] if new == size else trivial(new)
            continue
        shifted = factor.shifts and trace.group.shifts(factor.axis)
        if shifted and (size % new or not trace.group.fits(factor.axis, new)):
            raise Refusal(f"{size} places pooled to {new} are not shifted as a whole")
        dims[place] = (Places(factor.axis, new, factor.shifts),)
    found = tuple(dims)
    return found if isinstance(output, Tensor) else [found, None]


@register_rule("aten.im2col")
def _(
    trace: Trace,
    output: Tensor,
    self: Tensor,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Dims:
    batch, depth, *space = trace.of(self)
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, d, p, s in zip(self.shape[2:], kernel_size, dilation, padding, stride, strict=True)
    ]
    out, window = slide(trace, space, sizes, kernel_size, stride, padding, dilation, "unfolding")
    return (batch, (*depth, *window[0], *window[1]), (*out[0], *out[1]))


# Normalisations -------------------------------------------------------------------------------------------------------


@register_rule(
    "aten.native_batch_norm",
    "aten._native_batch_norm_legit",
    "aten._native_batch_norm_legit_no_training",
    "aten._batch_norm_no_update",
    "aten._batch_norm_with_update",
    "aten.cudnn_batch_norm",
    "aten.miopen_batch_norm",
)
def _(
    trace: Trace,
    output: Sequence[Tensor],
    input: Tensor,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    **_: Any,
) -> Any:
    dims = trace.of(input)
    trace.solver.check_closed([dim for place, dim in enumerate(dims) if place != 1], "it takes statistics over")
    for each in (weight, bias):
        if each is not None:
            trace.solver.equate(dims[1], trace.of(each)[0])
    for each in (running_mean, running_var):
        if each is not None:
            trace.solver.equate(dims[1], trace.of(each)[0])
    return [dims, *[None] * (len(output) - 1)]


@register_rule("aten.native_layer_norm", "aten._fused_rms_norm")
def _(
    trace: Trace,
    output: Sequence[Tensor],
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    **_: Any,
) -> Any:
    dims = trace.of(input)
    over = dims[len(dims) - len(normalized_shape) :]
    trace.solver.check_closed(over, "it takes statistics over")
    for each in (weight, bias):
        if each is not None:
            _add(trace, over, each)
    return [dims, *[None] * (len(output) - 1)]


@register_rule("aten.native_group_norm")
def _(trace: Trace, output: Sequence[Tensor], input: Tensor, weight: Any, bias: Any, group: int, **_: Any) -> Any:
    dims = trace.of(input)
    within = trace.solver.view((dims[1],), (group, input.shape[1] // group))[1]
    trace.solver.check_closed([within, *dims[2:]], "it takes statistics over")
    for each in (weight, bias):
        if each is not None:
            trace.solver.equate(dims[1], trace.of(each)[0])
    return [dims, *[None] * (len(output) - 1)]


@register_rule("aten._weight_norm_interface", "aten._weight_norm")
def _(trace: Trace, output: Any, v: Tensor, g: Tensor, dim: int = 0) -> Any:
    dims = trace.of(v)
    broadcast(trace, [v, g])  # the scales move as the rows do
    return dims if isinstance(output, Tensor) else [dims, *[None] * (len(output) - 1)]
