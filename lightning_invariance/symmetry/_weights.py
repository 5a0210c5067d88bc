"""An ordinary network's weights, kept on the subspace that a group fixes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from lightning_invariance._arguments import Arguments
from lightning_invariance._checks import check_number, format_sizes
from lightning_invariance._containers import describe_value
from lightning_invariance._isolation import RandomState, undisturbed
from lightning_invariance._locate import (
    InputSpec,
    LogitsOf,
    OutputReader,
    check_input_spec,
    check_logits_of,
    locate_in_call,
)
from lightning_invariance._messages import warn
from lightning_invariance._output_action import OutputActions, OutputMotion
from lightning_invariance.actions import Action
from lightning_invariance.actions._flow import as_action
from lightning_invariance.symmetry import _rules_of_layers, _rules_of_shape  # noqa: F401  (they register themselves)
from lightning_invariance.symmetry._factors import (
    Channels,
    Dim,
    Dims,
    Joined,
    Listed,
    Places,
    Refusal,
    Solver,
    Trivial,
    resolve,
    size_of,
    trivial,
)
from lightning_invariance.symmetry._group import SpatialGroup
from lightning_invariance.symmetry._poses import find_kernels
from lightning_invariance.symmetry._projection import Projection, joined
from lightning_invariance.symmetry._spectral import renew, spectral_norms
from lightning_invariance.symmetry._trace import Trace, Watch, Weight, listen_to

#: How many places larger and smaller inputs are tried where a layer does not fit.
_SIZES_TRIED = 16

#: What rounding does to outputs, relative to the largest.
_ROUNDING = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}

#: How many samples the network is run on to be understood and checked.
_SAMPLES = 4

#: From which asymmetry on spectral normalisations are brought up to projected weights.
_A_JUMP = 1e-3

#: How many calls are kept besides the first one, to check the network by.
_CALLS = 8


class NotFiniteError(ValueError):
    """Outputs that are not finite show nothing."""


@dataclass(frozen=True)
class WeightRow:
    """One weight in a report.

    Attributes:
        weight: its name in ``state_dict``.
        shape: its shape.
        representation: of each of its dimensions, in words.
        free: the share of its entries that can be chosen.
    """

    weight: str
    shape: tuple[int, ...]
    representation: tuple[str, ...]
    free: float


@dataclass(frozen=True)
class WeightReport:
    """What a network's weights have become; as a string, a table.

    Attributes:
        rows: one for each weight.
        few: hidden layers with few fields, in words.
    """

    rows: tuple[WeightRow, ...]
    few: tuple[str, ...] = ()

    @property
    def free(self) -> float:
        """The share of all entries that can be chosen."""
        sizes = [torch.Size(row.shape).numel() for row in self.rows]
        return sum(row.free * size for row, size in zip(self.rows, sizes, strict=True)) / max(sum(sizes), 1)

    def __str__(self) -> str:
        head = ("weight", "shape", "representation", "free")
        lines = [
            (row.weight, "×".join(map(str, row.shape)), ", ".join(row.representation), f"{100 * row.free:.1f} %")
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in [head, *lines]) for column in range(4)]
        table = [head, tuple("-" * width for width in widths), *lines]
        text = "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
        )
        return "\n".join([text, f"free in all: {100 * self.free:.1f} %", *self.few])


@dataclass(frozen=True)
class Break:
    """Where a network stops to be invariant.

    Attributes:
        element: the label of the element that shows it most.
        deviation: of the output, relative to its size.
        place: the submodule and the operation after which tensors do not move as they should; None if none does so
            before the output.
    """

    element: str
    deviation: float
    place: str | None

    def __str__(self) -> str:
        where = "in no operation that can be seen" if self.place is None else f"first after {self.place}"
        return f"{self.element!r} changes the output by {self.deviation:.1e} of its size, {where}"


class WeightSymmetry:
    r"""The weights of a network that are fixed by a group, and the projection on them; made by `symmetrize`.

    Each weight moves under the group, :math:`w \mapsto g w`, such that the network with moved weights does to moved
    inputs what it does to inputs, :math:`f_{gw}(gx) = f_w(x)`. A network whose weights stay, :math:`g w = w` for all g,
    is therefore invariant, and the mean over the group

    .. math::
        P w = \frac{1}{|G|} \sum_{g \in G} g w

    is the projection on such weights (the Reynolds operator). For invariant weights :math:`P \nabla L` is the gradient
    of the mean of the loss over the orbit: one forward sees all poses.

    Attributes:
        network: the network.
        action: the group.
    """

    def __init__(
        self,
        network: nn.Module,
        action: Action,
        trace: Trace,
        calls: Sequence[Arguments],
        motion: OutputMotion,
        reader: OutputReader,
        tolerance: float,
    ) -> None:
        self.network = network
        self.action = action
        self.tolerance = tolerance
        self._solver = trace.solver
        self._known = [weight for weight in trace.weights.values() if weight.used_by]
        self._sees_all_outputs = trace.sees_all
        self._unused = [weight.name for weight in trace.weights.values() if not (weight.used_by or weight.is_statistic)]
        self._calls = tuple(calls)
        self._motion = motion
        self._reader = reader
        self._statistics: Projection | None = None
        kept: dict[Any, Projection] = {}
        self._projections: dict[str, Projection] = {}
        for weight in self._known:
            key = (tuple(weight.tensor.shape), _key(weight.dims))
            if key not in kept:
                kept[key] = self._projection_of(weight)
            self._projections[weight.name] = kept[key]

    def _projection_of(self, weight: Weight) -> Projection:
        elements = 1 if self._solver.trivial_throughout(weight.dims) else len(self._solver.group)
        return Projection([_table_of(self._solver, weight.dims, element, weight.name) for element in range(elements)])

    # What users call ------------------------------------------------------------------------------------------------

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that are seen to it."""
        return (weight.tensor for weight in self._weights if isinstance(weight.tensor, nn.Parameter))

    @torch.no_grad()
    def project_(self, *, keep_norms: bool = False, among: Iterable[nn.Parameter] | None = None) -> None:
        r"""Makes the weights invariant, :math:`w \leftarrow P w`, with the statistics of normalisations.

        Args:
            keep_norms: whether each parameter is scaled to the norm that it had: a mean over the group of random
                numbers is smaller than they are, so that a network is to be started so.
            among: the parameters that are meant; all if None.

        Warns:
            UserWarning: if the mean of a parameter, whose norm is to be kept, is 0.
        """
        gone = []
        norms = list(spectral_norms(self.network))
        jumps = bool(norms) and self.asymmetry() > _A_JUMP
        for weight in self._among(among):
            projection = self._of(weight)
            if projection.is_identity:
                continue
            before = weight.tensor.detach().norm() if keep_norms and not weight.is_statistic else None
            projection.mean_(weight.tensor.detach())
            if before is not None:
                after = weight.tensor.detach().norm()
                if after < 1e-6 * before:
                    gone.append(weight.name)
                elif after < before:
                    weight.tensor.detach().mul_(before / after)
        if gone:
            warn(f"Nothing of {in_list(gone)} is left, as its mean over {self.action!r} is 0: start it otherwise.")
        if jumps:
            renew(norms)

    @torch.no_grad()
    def project_gradients_(self, among: Iterable[nn.Parameter] | None = None) -> None:
        r"""Replaces the gradients that there are by :math:`P \nabla L`.

        Args:
            among: the parameters whose gradients are meant; all if None.

        Raises:
            ValueError: if one is sparse.
        """
        for weight in self._among(among):
            gradient = weight.tensor.grad
            if gradient is None or self._of(weight).is_identity:
                continue
            if gradient.layout != torch.strided:
                raise ValueError(
                    f"Expected the gradient of {weight.name!r} to be dense but got a sparse one: use `sparse=False`."
                )
            self._of(weight).mean_(gradient)

    @torch.no_grad()
    def merge_(self, strength: float, among: Iterable[nn.Parameter] | None = None) -> None:
        r"""Draws the weights towards the invariant ones, :math:`w \leftarrow w - a\,(w - P w)`, statistics included.

        Args:
            strength: a, from 0 (nothing) to 1 (`project_`).
            among: the parameters that are meant; all if None.

        Raises:
            ValueError: if it is out of its range.
        """
        check_strength(strength)
        for weight in self._among(among):
            self._of(weight).mean_(weight.tensor.detach(), strength)

    @torch.no_grad()
    def match_(self) -> None:
        r"""Puts hidden channels in an order in which the weights are nearer to invariant ones; the function stays the
        same.

        Layer by layer, those channels become a regular field whose filters are nearly one filter, moved:
        :math:`w_r \approx g_r w_e`. Before a merge of a network that is trained already: two channels that have learned
        the same thing in two poses are then drawn together, and not two by chance. Optimiser states are not put in
        order: call it before training.

        Warns:
            UserWarning: if the network would do something else, as a mask, or the vectors of spectral normalisation,
                tell its channels apart: all stay where they are.
        """
        kept = [weight.tensor.detach().clone() for weight in self._weights]
        present = next((each for each in self.parameters()), torch.empty(0))
        calls = [
            _in_precision(call, present.dtype).mapped(lambda each: each.to(present.device)) for call in self._calls
        ]
        before = [self._run(call, call.x, {}) for call in calls]
        self._match()
        for call, own in zip(calls, before, strict=True):
            apart = float((self._run(call, call.x, {}) - own).double().abs().max())
            if apart > max(1e-9, _ROUNDING.get(own.dtype, 0.0)) * float(own.double().abs().max()):
                for weight, tensor in zip(self._weights, kept, strict=True):
                    weight.tensor.detach().copy_(tensor)
                warn(
                    f"The channels of {type(self.network).__name__} cannot be paired, as something besides parameters "
                    "(a mask, the vectors of spectral normalisation) tells them apart: they stay in their order."
                )
                return

    def _match(self) -> None:
        for channels, filters in self._hidden():
            order = self._matched(filters, channels)
            holding = [weight for weight in self._weights if _holds(weight.dims, channels)]
            before = sum(map(self._apart, holding))
            self._rearrange(holding, channels, order)
            if sum(map(self._apart, holding)) > before:  # what was nearer for the filters was not so for the rest
                self._rearrange(holding, channels, order.argsort())

    def _rearrange(self, weights: Iterable[Weight], channels: Channels, order: Tensor) -> None:
        for weight in weights:
            index = self._solver.rearrangement(weight.dims, channels, order).to(weight.tensor.device)
            weight.tensor.detach().copy_(weight.tensor.flatten()[index].view(weight.tensor.shape))

    def _apart(self, weight: Weight) -> float:
        """The squared distance of a parameter from the invariant ones."""
        if weight.is_statistic:
            return 0.0
        given = weight.tensor.detach()
        return float((given - self._of(weight).mean(given)).double().square().sum())

    def _hidden(self) -> Iterator[tuple[Channels, Weight]]:
        """Hidden channels in the order of the network, each with the weight whose rows make them.

        Of several (weight normalisation has a norm for each row besides) it is the largest.
        """
        makers: dict[int, tuple[Channels, Weight]] = {}
        for weight in self._weights:
            rows = resolve(weight.dims[0]) if weight.tensor.ndim > 1 else ()
            if len(rows) != 1 or not isinstance(rows[0], Channels) or self._solver.stays(rows[0]):
                continue
            if _holds(weight.dims[1:], rows[0]):
                continue
            known = makers.setdefault(id(rows[0]), (rows[0], weight))
            norms = known[1].tensor.numel() == known[1].tensor.shape[0]
            if norms and weight.tensor.numel() > known[1].tensor.numel():
                makers[id(rows[0])] = (rows[0], weight)
        yield from makers.values()

    def _matched(self, filters: Weight, channels: Channels) -> Tensor:
        """The order of the rows of a weight: fields of the strongest row left and those nearest to it, moved."""
        rows = filters.tensor.detach().flatten(1).double().cpu()
        kinds = self._solver.kinds_of(channels)
        moves = [self._solver.table(filters.dims[1:], element) for element in kinds.representatives]
        left = rows.norm(dim=1).argsort(descending=True).tolist()
        order: list[int] = []
        for _ in range(kinds.of(channels.size).count(kinds.order)):
            seed = left.pop(0)
            order.append(seed)
            for move in moves[1:]:
                distances = (rows[left] - rows[seed][move]).norm(dim=1)
                order.append(left.pop(int(distances.argmin())))
        return torch.tensor(order + sorted(left))

    @torch.no_grad()
    def project_statistics_(self) -> None:
        """Makes the running statistics of normalisations invariant, all at once."""
        weights = [weight for weight in self._weights if weight.is_statistic]
        tensors = [weight.tensor for weight in weights]
        if not tensors:
            return
        if self._statistics is None:
            self._statistics = joined([self._of(weight) for weight in weights])
        mean = self._statistics.mean(torch.cat([each.flatten() for each in tensors]))
        parts = mean.split([each.numel() for each in tensors])
        torch._foreach_copy_(tensors, [part.view(each.shape) for part, each in zip(parts, tensors, strict=True)])

    @torch.no_grad()
    def asymmetry(self) -> float:
        r"""How far the parameters are from the invariant ones: :math:`\|w - P w\| / \|w\|`, from 0 to 1."""
        weights = [weight for weight in self._weights if not weight.is_statistic]
        apart = sum(map(self._apart, weights))
        whole = sum(float(weight.tensor.detach().double().square().sum()) for weight in weights)
        return (apart / whole) ** 0.5 if whole else 0.0

    def report(self) -> WeightReport:
        """What each weight has become: its representation, and the share of it that is free."""
        self._solver.names_dimensions = False
        rows = [
            WeightRow(
                weight.name,
                tuple(weight.tensor.shape),
                tuple(self._solver.in_words(dim) for dim in weight.dims),
                self._of(weight).free,
            )
            for weight in self._weights
            if not weight.is_statistic
        ]
        self._solver.names_dimensions = True
        return WeightReport(tuple(rows), tuple(self._few()))

    def check(self, x: Any = None) -> Break | None:
        r"""Whether the network, as it is, is invariant on a batch; where not, the first place that breaks.

        Args:
            x: what the network is called with, as an example of `symmetrize`; those examples if None.

        Returns:
            None if :math:`f(gx)` is :math:`f(x)` to `tolerance`, relative to its size, for every element.
        """
        calls = self._calls
        if x is not None:
            calls = (call_of(x, self._input_spec, self.action, self.network).first(_SAMPLES),)
        broken = (self._check(call, {}, call) for call in calls)
        return next((each for each in broken if each is not None), None)

    # What the callback needs ----------------------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that are seen to, by name."""
        return ((each.name, each.tensor) for each in self._weights if isinstance(each.tensor, nn.Parameter))

    def mean_of(self, name: str, value: Tensor) -> Tensor:
        """The mean over the group of something of a weight's shape."""
        return self._of(next(each for each in self._weights if each.name == name)).mean(value)

    def asymmetry_of(self, name: str) -> float:
        """`asymmetry` of one weight."""
        given = next(each.tensor for each in self._weights if each.name == name).detach()
        whole = float(given.double().norm())
        return float((given - self.mean_of(name, given)).double().norm()) / whole if whole else 0.0

    def fields_in_words(self) -> str:
        """How hidden channels are shared out."""
        found = {
            (each.size, self._solver.in_words((each,)))
            for weight in self._weights
            for dim in weight.dims
            for each in resolve(dim)
            if isinstance(each, Channels)
        }
        return ", ".join(f"{size} channels are {words}" for size, words in sorted(found))

    _input_spec: InputSpec = None

    @property
    def is_identity(self) -> bool:
        """Whether there is no weight that the group moves."""
        return all(self._of(weight).is_identity for weight in self._weights)

    @property
    def sees_all_outputs(self) -> bool:
        """Whether the network has no outputs but those that are made invariant."""
        return self._sees_all_outputs

    @property
    def sees_all(self) -> bool:
        """Whether every parameter and every output of the network had a part in what was found."""
        return self._sees_all_outputs and not self._unused

    @property
    def calls(self) -> tuple[Arguments, ...]:
        """What the network is checked on."""
        return self._calls

    @property
    def unused(self) -> list[str]:
        """Parameters that the run did not use, and that nothing is known of."""
        return self._unused

    def _among(self, among: Iterable[nn.Parameter] | None) -> list[Weight]:
        if among is None:
            return self._weights
        members = {id(parameter) for parameter in among}
        return [weight for weight in self._weights if weight.is_statistic or id(weight.tensor) in members]

    @property
    def _weights(self) -> list[Weight]:
        """The weights as they are: casts, copies and weight averaging put other tensors in their place."""
        for weight in self._known:
            weight.tensor = _present(self.network, weight)
        return self._known

    def _of(self, weight: Weight) -> Projection:
        return self._projections[weight.name]

    def _few(self) -> list[str]:
        """Hidden channels that have few fields, and outputs that have fewer to be made of than there are of them."""
        said: dict[int, str] = {}
        for weight in self._weights:
            factors = [resolve(dim) for dim in weight.dims]
            for dim in factors:
                channels = tuple(each for each in dim if isinstance(each, (Channels, Trivial)))
                moved = [each for each in channels if isinstance(each, Channels) and not self._solver.stays(each)]
                order = max((self._solver.kinds_of(each).order for each in moved), default=0)
                size = size_of(channels)
                if moved and size < 2 * order:
                    said.setdefault(
                        id(moved[0]),
                        f"{size} channels of {weight.name!r} are {self._solver.in_words(channels)}, as many features "
                        f"as {-(-size // order)} channels have in {order} poses",
                    )
            if weight.tensor.ndim >= 2 and not weight.is_statistic and self._is_alike_in_all_poses(factors):
                said.setdefault(
                    id(weight),
                    f"{weight.name!r} has no fields but trivial ones: it is the same in all poses, and what it makes "
                    "is one feature where it could be several",
                )
            columns = [each for each in factors[1] if isinstance(each, Channels)] if len(factors) >= 2 else []
            if columns and len(columns) == len(factors[1]) and not any(factors[2:]):
                outputs = [each.size for each in factors[0] if isinstance(each, Trivial)]
                width = weight.tensor.shape[1]
                order = max(self._solver.kinds_of(each).order for each in columns)
                if outputs and order > 1 and 1 < width // order < outputs[0]:
                    said.setdefault(
                        id(weight),
                        f"{outputs[0]} outputs of {weight.name!r} are made of {width // order} fields: its input "
                        f"would have to be {order * outputs[0]} wide for as many",
                    )
        return list(said.values())

    def _is_alike_in_all_poses(self, factors: Sequence[Dim]) -> bool:
        """Whether a weight has places that are moved, as a kernel has, and no channels that are moved with them."""
        flat = [factor for dim in factors for factor in dim]
        return any(isinstance(each, (Places, Listed)) for each in flat) and all(
            isinstance(each, (Places, Listed, Trivial)) for each in flat
        )

    def invariant_weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Copies of all parameters and buffers in another precision, made invariant; floating-point ones alone."""
        named = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        copies: dict[str, Tensor] = {}
        for name, tensor in named.items():
            copies[name] = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()
            if name in self._projections:
                copies[name] = copies[name].clone()
                self._projections[name].mean_(copies[name])
        return copies

    def extended(self, call: Arguments, start: RandomState | None = None) -> WeightSymmetry:
        """The symmetry of the same network when it is called in this way too.

        What has been found stays: the calls before are not made again, as the network may take other ways by now.

        Args:
            call: what it is called with.
            start: the random streams that the call began with.

        Raises:
            ValueError: if a layer stands in the way.
        """
        call = first_of(call)
        dims = copy.deepcopy([weight.dims for weight in self._known], {id(self._solver.group): self._solver.group})
        known = {weight.name: replace(weight, dims=own) for weight, own in zip(self._known, dims, strict=True)}
        calls = [self._calls[0], *self._calls[1:][-_CALLS:], call]
        with _refused(self.network, self.action, call, self._motion, self._reader):
            trace = trace_of(self.network, self._solver, [call], self._motion, self._reader, known, start)
            trace.sees_all = trace.sees_all and self._sees_all_outputs
            _check_constants(trace)
            other = WeightSymmetry(self.network, self.action, trace, calls, self._motion, self._reader, self.tolerance)
        other._input_spec = self._input_spec
        _refuse_break(other, other.verify(call))
        return other

    def moves_as(self, other: WeightSymmetry) -> bool:
        """Whether each weight that both know moves alike in both."""
        own = {weight.name: _key(weight.dims) for weight in self._known}
        theirs = {weight.name: _key(weight.dims) for weight in other._known}
        return all(key == theirs[name] for name, key in own.items() if name in theirs)

    def verify(self, call: Arguments | None = None) -> Break | None:
        """`check` of the network as it will be: with invariant weights, in double precision where it can run so.

        Args:
            call: what it is called with; the examples if None.
        """
        broken = (self._verify(each) for each in (self._calls if call is None else (first_of(call),)))
        return next((each for each in broken if each is not None), None)

    def _verify(self, call: Arguments) -> Break | None:
        try:
            return self._check(_in_precision(call, torch.float64), self.invariant_weights(torch.float64), call)
        except (RuntimeError, TypeError):  # a network, or a device, that is bound to one precision
            dtype = next((each.dtype for each in self.parameters()), torch.float32)
            return self._check(call, self.invariant_weights(dtype), call)

    @torch.no_grad()
    def _check(self, arguments: Arguments, weights: Mapping[str, Tensor], given: Arguments) -> Break | None:
        """Whether f(gx) = f(x) with these weights; `given` is the call in the network's own precision."""
        acting = arguments.acting(self.action)
        x = arguments.x
        acting.check(x)
        base = self._run(arguments, x, weights)
        if not base.isfinite().all():
            raise NotFiniteError(
                "Expected finite outputs, to see whether they are invariant, but got NaN or infinite ones for "
                f"{arguments.in_words()}."
            )
        move = self._motion.on(
            self.action, x if arguments.joint is None else arguments.inputs[0], base, self._reader.packed()
        )
        size = float(base.double().abs().max()) or 1.0
        tolerance = max(self.tolerance, _ROUNDING.get(base.dtype, 0.0))
        worst, deviation = 0, 0.0
        for element in range(1, len(self.action)):
            moved = self._run(arguments, acting.act(x, element), weights)
            back = moved if move is None else move.invert(moved, element)
            apart = float((back - base).double().abs().max()) / size
            if not apart <= deviation:
                worst, deviation = element, apart
        if deviation <= tolerance:
            return None
        place = self._first_break(arguments, acting, worst, weights, tolerance, given)
        return Break(self.action.labels[worst], deviation, place)

    def _run(
        self, arguments: Arguments, x: Tensor, weights: Mapping[str, Tensor], watch: Watch | None = None
    ) -> Tensor:
        args, kwargs = arguments.with_input(x)
        with undisturbed(self.network, x.device), nullcontext() if watch is None else watch.running():
            if weights:
                output = torch.func.functional_call(self.network, dict(weights), args, kwargs)
            else:
                output = self.network(*args, **kwargs)
            return self._reader.read(output, len(arguments.inputs[0]))

    def _first_break(
        self,
        arguments: Arguments,
        acting: Any,
        element: int,
        weights: Mapping[str, Tensor],
        tolerance: float,
        given: Arguments,
    ) -> str | None:
        """The first operation whose output does not move as it should."""
        try:
            trace = trace_of(self.network, self._solver, [given], self._motion, self._reader)
        except Refusal as refusal:
            return str(refusal)
        kept: list[tuple[str, list[Tensor]]] = []

        def keep(name: str, function: Any, bound: Any, tensors: Any, output: Any) -> None:
            leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            kept.append((name, [leaf.detach().clone() for leaf in leaves]))

        runs = []
        for x in (arguments.x, acting.act(arguments.x, element)):
            kept = []
            self._run(arguments, x, weights, Watch(keep))
            runs.append(kept)
        if [name for name, _ in runs[0]] != [name for name, _ in runs[1]]:
            return "an operation that only some inputs go through"
        for step, (_, before), (_, after) in zip(trace.steps, *runs, strict=False):
            for a, b, dims in zip(before, after, step.dims, strict=False):
                if dims is None or not (a.is_floating_point() or a.is_complex()) or self._solver.unpaired(dims):
                    continue
                moved = a.flatten()[self._solver.table(dims, element).to(a.device)].view(a.shape)
                size = float(a.abs().max()) or 1.0
                if not float((moved - b).abs().max()) / size <= tolerance:
                    return f"{step.place} ({step.operation})"
        return None


def _present(network: nn.Module, weight: Weight) -> Tensor:
    """The tensor that has a weight's name by now.

    Raises:
        ValueError: if there is none of its shape.
    """
    path, _, name = weight.name.rpartition(".")
    try:
        module = network.get_submodule(path)
        found = (module._buffers if weight.is_statistic else module._parameters).get(name)
    except AttributeError:
        found = None
    if found is None or found.shape != weight.tensor.shape:
        got = "there is none" if found is None else f"got {tuple(found.shape)}"
        raise ValueError(
            f"Expected {type(network).__name__} to have a weight {weight.name!r} of shape {tuple(weight.tensor.shape)} "
            f"still but {got}: make the symmetry anew when layers have been exchanged, pruned or wrapped."
        )
    return found


def check_strength(strength: object) -> None:
    """Raises a `ValueError` unless `strength` is a number from 0 to 1."""
    check_number("strength", strength, minimum=0.0)
    if strength > 1:  # type: ignore[operator]
        raise ValueError(f"Expected `strength` to be at most 1 but got {strength!r}.")


def _holds(dims: Dims, channels: Channels) -> bool:
    factors = [factor for dim in dims for factor in resolve(dim)]
    return any(
        factor is channels or (isinstance(factor, Joined) and _holds(factor.parts, channels)) for factor in factors
    )


def _key(dims: Dims) -> Any:
    """Tensors of one key move alike."""

    def of(factor: Any) -> Any:
        if isinstance(factor, Channels):
            return ("channels", factor.size, factor.still, factor.kernel)
        if isinstance(factor, Joined):
            return ("joined", *(_key((part,)) for part in factor.parts))
        return factor

    return tuple(tuple(of(factor) for factor in resolve(dim)) for dim in dims)


def _in_precision(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    return arguments.mapped(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


# Making one -----------------------------------------------------------------------------------------------------------


def symmetrize(
    network: nn.Module,
    action: Action,
    example: Any,
    *,
    input: InputSpec = None,
    output_action: OutputActions = None,
    logits: LogitsOf | None = None,
    tolerance: float = 1e-6,
) -> WeightSymmetry:
    r"""Finds out how a group acts on the weights of an ordinary network, so that they can be kept invariant.

    The network is run once on the example, and each tensor's representation is worked out, operation by operation: the
    input's channels and the logits are trivial, hidden channels are regular fields (channel = field · :math:`|G|` + r;
    those left over are quotient fields, down to trivial ones), and a weight moves by its dimensions: for a convolution,

    .. math::
        (gK)[o, r; i, s] = \mathrm{rot}_g\, K[o, g^{-1} r; i, g^{-1} s].

    Channels that nothing tells apart over poses need none: under shifts, which move no kernel, they are trivial, and
    what is tied is layers that read off places.

    The network is not changed, until `WeightSymmetry.project_` is called. What is found is verified on the example:
    with invariant weights, :math:`f(gx) = f(x)` in double precision.

    Args:
        network: any module; it is run in eval mode, and left as it was.
        action: a finite group that moves places exactly: `C4`, `D4`, flips, `CyclicTranslations`, `TimeReversal`, a
            `PermutationAction`, products of these.
        example: what the network is called with: a batch, or a tuple of its positional arguments, or a dict of its
            keywords; or a list of these, where one call does not use all weights (networks with branches). Sizes
            matter: a layer may fit the group on 32×32 and not on 36×36.
        input: where these hold the tensor that the group acts on; a list of several that move together; by default the
            only one that it can act on.
        output_action: how the output moves with the input, as in `evaluate_orbit`: None, it stays; ``"same"``, an
            `Action`, or a dict of these.
        logits: a function from the network's output to what is to be invariant; by default the output itself, or its
            ``logits``.
        tolerance: how far :math:`f(gx)` and :math:`f(x)` may be apart, relative to the largest output; in single and
            half precision what rounding does is allowed too.

    Returns:
        The weights' symmetry.

    Raises:
        ValueError: if the group is not finite or does not move places exactly, or a layer stands in the way: the
            message names it, and says what to change.

    Warns:
        UserWarning: if the example does not use all weights, or layers are so narrow that few fields are left.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_invariance import C4, symmetrize
        >>> _ = torch.manual_seed(0)
        >>> network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10))
        >>> x = torch.randn(5, 1, 8, 8)
        >>> symmetry = symmetrize(network, C4(), x)
        >>> symmetry.project_(keep_norms=True)
        >>> torch.allclose(network(x), network(C4().act(x, 1)), atol=1e-5)
        True
        >>> print(symmetry.report())
        weight    shape    representation                               free
        --------  -------  -------------------------------------------  -------
        0.weight  8×1×3×3  2 regular, 1, 3 places, 3 places             25.0 %
        0.bias    8        2 regular                                    25.0 %
        4.weight  10×72    10 trivial, 2 regular × 3 places × 3 places  25.0 %
        4.bias    10       10 trivial                                   100.0 %
        free in all: 25.9 %
    """
    action = as_action(action)
    check_input_spec("input", input)
    check_logits_of(logits)
    check_number("tolerance", tolerance, above=0.0)
    if not isinstance(network, nn.Module):
        raise ValueError(f"Expected `network` to be a module but got {describe_value(network)}.")
    calls = calls_of(example, input, action, network)
    motion = OutputMotion(output_action, action)
    symmetry = symmetry_of(network, action, calls, motion, OutputReader(logits, motion.names), tolerance)
    symmetry._input_spec = input
    if symmetry.unused:
        warn(
            f"The example does not use {in_list(symmetry.unused)}: they are left as they are. Give a list of examples "
            "that use all of them where the network has branches."
        )
    return symmetry


def calls_of(example: Any, input: InputSpec, action: Action, network: nn.Module) -> list[Arguments]:
    """The calls that an example, or a list of examples, stands for."""
    examples = example if isinstance(example, list) else [example]
    if not examples:
        raise ValueError("Expected `example` to be what the network is called with, or a list of such, but got [].")
    return [call_of(each, input, action, network) for each in examples]


def call_of(example: Any, input: InputSpec, action: Action, network: nn.Module) -> Arguments:
    """The call that an example stands for."""
    args: tuple[Any, ...] = (example,)
    kwargs: dict[str, Any] = {}
    if isinstance(example, tuple):
        args = example
    elif isinstance(example, dict):
        args, kwargs = (), example
    return locate_in_call(args, kwargs, input, action).joined(action)


def first_of(call: Arguments) -> Arguments:
    """A call on copies of a few of its samples, or of all where none can be left out."""
    first = call.first(_SAMPLES) if call.is_divisible else call
    with torch.inference_mode(False):
        return first.mapped(torch.clone)


def symmetry_of(
    network: nn.Module,
    action: Action,
    calls: Sequence[Arguments],
    motion: OutputMotion,
    reader: OutputReader,
    tolerance: float,
) -> WeightSymmetry:
    """The symmetry of a network that is called so, verified.

    Raises:
        ValueError: if a layer stands in the way.
    """
    network = getattr(network, "_orig_mod", network)
    _check_network(network)
    calls = [first_of(call) for call in calls]
    for call in calls:
        if not len(call.inputs[0]):
            raise ValueError("Expected at least one sample, to see how the network treats it, but got an empty batch.")
        call.acting(action).verify(call.x)
    with _refused(network, action, calls[-1], motion, reader):
        trace = trace_of(network, Solver(SpatialGroup(action, calls[0].inputs[0])), calls, motion, reader)
        _check_constants(trace)
        symmetry = WeightSymmetry(network, action, trace, calls, motion, reader, tolerance)
    _refuse_break(symmetry, symmetry.verify())
    few = symmetry.report().few
    if few:
        warn(f"Few fields under {action!r}: {'; '.join(few)}.")
    return symmetry


@contextmanager
def _refused(
    network: nn.Module, action: Action, call: Arguments, motion: OutputMotion, reader: OutputReader
) -> Iterator[None]:
    """Says what stands in the way, and which sizes would do, where the block finds that something does."""
    try:
        yield
    except Refusal as refusal:
        sizes = _sizes_that_do(network, action, call, motion, reader) if refusal.of_size else []
        hint = f" Inputs of {' or '.join(sizes)} would do for the whole network." if sizes else ""
        raise ValueError(
            f"Expected {type(network).__name__} to allow invariant weights under {action!r}, but in {refusal}.{hint}"
        ) from None


def _refuse_break(symmetry: WeightSymmetry, broken: Break | None) -> None:
    if broken is not None:
        raise ValueError(
            f"Expected {type(symmetry.network).__name__} to be invariant under {symmetry.action!r} with invariant "
            f"weights, but {broken}."
        )


def _check_network(network: nn.Module) -> None:
    """Raises a `ValueError` where nothing can be seen of what a network does, or of its weights."""
    scripted = [name for name, module in network.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        whose = f"its submodule {scripted[0]!r}" if scripted[0] else "itself"
        raise ValueError(
            f"Expected a network of Python code but {whose} is a ScriptModule, whose operations cannot be followed: "
            "make the weights of the network that it was made of invariant."
        )
    lazy = [name for name, parameter in network.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ValueError(f"Expected parameters that have a size but {lazy[0]!r} has none yet: run the network once.")


def in_list(names: Sequence[str]) -> str:
    """The first few of some names."""
    return ", ".join(repr(name) for name in names[:4]) + (", ..." if len(names) > 4 else "")


def size_in_the_way(
    network: nn.Module, action: Action, arguments: Arguments, motion: OutputMotion, reader: OutputReader
) -> tuple[str, list[str]] | None:
    """The first layer that no weights make symmetric on inputs of this size, and sizes near it on which all can be.

    None where there is no such layer; another one that stands in the way of a group may come before it.

    Raises:
        ValueError: if the group is not finite or does not move places exactly, or a layer is not known.
    """
    call = first_of(arguments)
    try:
        trace_of(network, Solver(SpatialGroup(action, call.inputs[0])), [call], motion, reader)
    except Refusal as refusal:
        if not refusal.of_size:
            raise
        return str(refusal), _sizes_that_do(network, action, call, motion, reader)
    return None


def _sizes_that_do(
    network: nn.Module, action: Action, arguments: Arguments, motion: OutputMotion, reader: OutputReader
) -> list[str]:
    """Sizes of the input near its own with which no layer stands in the way: the next below and above."""
    found: list[str] = []
    if arguments.joint is not None:
        return found
    if arguments.is_divisible:
        arguments = arguments.first(1)
    x = arguments.x
    dims = SpatialGroup(action, x).dims
    for direction in (-1, 1):
        for change in range(1, _SIZES_TRIED + 1):
            sizes = list(x.shape)
            for dim in dims:
                sizes[dim] += direction * change
            if min(sizes[1:]) < 1:
                break
            args, kwargs = arguments.with_input(x.new_zeros(sizes))
            other = Arguments(args, kwargs, arguments.paths)
            try:
                trace_of(network, Solver(SpatialGroup(action, other.x)), [other], motion, reader)
            except (ValueError, RuntimeError):
                continue
            found.append(format_sizes([sizes[dim] for dim in dims]))
            break
    return found


def trace_of(
    network: nn.Module,
    solver: Solver,
    calls: Sequence[Arguments],
    motion: OutputMotion,
    reader: OutputReader,
    known: Mapping[str, Weight] | None = None,
    start: RandomState | None = None,
) -> Trace:
    """Runs the network on each call, works out how each tensor moves, and makes the outputs move as they should.

    Args:
        network: the network.
        solver: works out how tensors move.
        calls: what it is called with.
        motion: how its outputs are to move.
        reader: takes these out of its output.
        known: weights that runs before have shown.
        start: the random streams that it begins with; those that there are if None.

    Raises:
        Refusal: if they cannot.
    """
    with undisturbed(network, calls[0].inputs[0].device):
        trace = Trace(network, solver, known)
        for call in calls:
            if start is not None:
                start.restore()
            _follow(trace, network, call, reader)
            solve_output(trace, motion, solver.group.action, call.inputs[0])
    find_kernels([weight.dims for weight in trace.weights.values()], solver.group)
    buffers = dict(network.named_buffers())
    for weight in trace.weights.values():
        if weight.is_statistic:  # what was seen is a copy
            weight.tensor = buffers[weight.name]
    return trace


def _follow(trace: Trace, network: nn.Module, call: Arguments, reader: OutputReader) -> None:
    for place, tensor in enumerate(call.inputs):
        trace.know(tensor, _input_dims(trace.solver, call, tensor, first=place == 0))
    for _, tensor in call.others:
        trace.know(tensor, tuple(trivial(size) for size in tensor.shape))
    with trace.place.followed(), Watch(listen_to(trace)).running():
        output = network(*call.args, **call.kwargs)
        trace.outputs = reader.tensors(output, len(call.inputs[0]))
    leaves = [leaf for leaf in tree_leaves(output) if not isinstance(leaf, (int, float, str, type(None)))]
    sees_all = {id(leaf) for leaf in leaves} == {id(each) for each in trace.outputs.values()}
    trace.sees_all = trace.sees_all and sees_all


def _input_dims(solver: Solver, arguments: Arguments, tensor: Tensor, first: bool) -> Dims:
    group = solver.group
    moved = group.action if first else group.action.alongside(arguments.inputs[0], tensor)
    other = SpatialGroup(moved, tensor)
    if not other.same_motion(group):
        raise Refusal(f"the inputs, {describe_value(tensor)} is moved in another way than the first one is")
    return places_of(group if first else other, tensor)


def places_of(group: SpatialGroup, tensor: Tensor) -> Dims:
    """The dimensions of a tensor whose places a group moves; the others stay."""
    dims: list[Dim] = [trivial(size) for size in tensor.shape]
    for axis, dim in enumerate(group.dims):
        size = tensor.shape[dim]
        if group.maps is None:
            dims[dim] = (Listed(axis, size, group),)
        elif group.flips(axis) or group.shifts(axis) or len(group.partners[axis]) > 1:
            dims[dim] = (Places(axis, size, True),) if size > 1 else ()
    return tuple(dims)


def solve_output(trace: Trace, motion: OutputMotion, action: Action, x: Tensor) -> None:
    """Makes the output move as it should.

    Raises:
        Refusal: if it cannot.
        ValueError: if the output action cannot act on it.
    """
    for name, output in trace.outputs.items():
        move = motion.of_output(name, action, x, output)
        wanted = _wanted_output(trace, move, output)
        whose = "its output" if name is None else f"its output {name!r}"
        try:
            for dim, other in zip(trace.of(output), wanted, strict=True):
                trace.solver.equate(dim, other)
        except Refusal as refusal:
            hint = " average it over its places, or, if it moves with the input, say so with output_action='same'"
            raise Refusal(
                f"{whose}: {refusal};{hint if move is None else ' another `output_action` may be meant'}"
            ) from None


def _wanted_output(trace: Trace, move: Action | None, output: Tensor) -> Dims:
    if move is None:
        return tuple(trivial(size) for size in output.shape)
    group = SpatialGroup(move, output)
    own = trace.group
    if group.dims == own.dims and group.maps is not None and group.maps == own.maps:
        return places_of(own, output)
    dims: list[Dim] = [trivial(size) for size in output.shape]
    for axis, dim in enumerate(group.dims):
        dims[dim] = (Listed(axis, output.shape[dim], group),)
    return tuple(dims)


def _check_constants(trace: Trace) -> None:
    """Raises a `Refusal` where a constant is not the same in places or channels that the group exchanges."""
    for constant in trace.constants.values():
        if trace.solver.trivial_throughout(constant.dims):
            continue
        flat = constant.tensor.flatten()
        for element in range(1, len(trace.group)):
            moved = flat[_table_of(trace.solver, constant.dims, element, constant.name).to(flat.device)]
            if not torch.allclose(moved.double(), flat.double(), rtol=1e-5, atol=1e-6):
                sizes = tuple(constant.tensor.shape)
                raise Refusal(
                    f"{constant.where}: {constant.name}, of shape {sizes}, differs where {trace.group.action!r} "
                    f"exchanges its entries ({', '.join(trace.solver.in_words(dim) for dim in constant.dims)}): leave "
                    "it out, or make it a parameter, which is made invariant"
                )


def _table_of(solver: Solver, dims: Dims, element: int, name: str) -> Tensor:
    lacking = solver.unpaired(dims)
    if lacking is not None:
        raise Refusal(
            f"{name!r}: it has {solver.in_words((lacking,))} without the axis that the group exchanges it with"
        )
    return solver.table(dims, element)
