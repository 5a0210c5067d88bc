"""Measures every layer of a network on a data set, and says which one breaks invariance or equivariance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_invariance._arguments import Arguments
from lightning_invariance._call import without_fabric
from lightning_invariance._checks import check_callable, check_choice, check_count, check_iterable, check_number
from lightning_invariance._isolation import module_of, ordinary, undisturbed
from lightning_invariance._layer_shares import Share
from lightning_invariance._locate import InputSpec, Place, check_input_spec, check_place
from lightning_invariance._messages import errors_of
from lightning_invariance._output_action import OutputAction
from lightning_invariance.actions import Action, Flow
from lightning_invariance.actions._flow import as_action
from lightning_invariance.evaluation._batches import LocatedBatches, device_of
from lightning_invariance.evaluation._draws import for_measuring, output_for_measuring
from lightning_invariance.layers import Key, LayerObserver, LayerShares
from lightning_invariance.metrics._base import Estimate

_NAME = "evaluate_layers"

#: Which layers: names, or a function of a name and its module; None for all that call no other module.
Layers = Iterable[str] | Callable[[str, nn.Module], bool] | None

#: Where interpolation accounts for more than this part of the variance, nothing can be told.
_BLIND = 0.5


@dataclass(frozen=True)
class LayerRow:
    """What was measured of a layer's output.

    Attributes:
        name: the layer's name in `named_modules`.
        call: which of its calls in a forward, from 0.
        kind: the layer's class; nothing for a tensor that no layer gave.
        depth: how much of the network is over, from 0 to 1: the share of the calls of modules that call no others.
        shape: of the output for one sample.
        invariance: the orbit share of the activations as they are.
        equivariance: the orbit share of the activations moved back.
        permuted: the orbit share after the best permutation of channels besides.
        error: the smallest of these; NaN where the output cannot be judged.
        inputs: the largest error of what went into the layer; NaN where that cannot be judged.
        floor: up to where an error is none, but rounding or interpolation.
        path: where in an output of several tensors: keys and positions; nothing for a single one.
        note: why something is NaN, or where a tensor that no layer gave was made.
    """

    name: str
    call: int
    kind: str
    depth: float
    shape: tuple[int, ...]
    invariance: Estimate
    equivariance: Estimate
    permuted: Estimate
    error: Estimate
    inputs: float
    floor: float
    path: tuple[Any, ...] = ()
    note: str = ""

    @property
    def is_broken(self) -> bool:
        """Whether the error is above the floor."""
        return float(self.error.value) > self.floor

    @property
    def label(self) -> str:
        """The name, with the call where it is not the first, and the path."""
        return (
            (self.name or "(network)")
            + (f"#{self.call}" if self.call else "")
            + "".join(f"[{step!r}]" for step in self.path)
        )


@dataclass(frozen=True)
class LayerResults:
    """What `evaluate_layers` measured.

    Attributes:
        rows: a row for each call of a layer, in order of execution.
        between: a row for each tensor that no layer gave: what the code between layers made of their outputs. Its name
            is that of the module in whose forward it was made.
        break_row: the first of all rows that is broken; None if none is.
        action: the group, with the elements that were measured.
        samples: how many samples were measured.
    """

    rows: tuple[LayerRow, ...]
    between: tuple[LayerRow, ...]
    break_row: LayerRow | None
    action: Action
    samples: int

    @property
    def breaks_at(self) -> str | None:
        """The name of the layer that breaks equivariance, or of the module whose own code does; None if none does.

        The network itself is ``""``, as in `named_modules`.
        """
        return None if self.break_row is None else self.break_row.name

    def to_markdown(self) -> str:
        """A table with a row for each layer; the one that breaks is marked. See `report.layer_table`."""
        from lightning_invariance.report import layer_table  # a room further right, which imports this one

        return layer_table({"": self})

    def __str__(self) -> str:
        return f"{self.to_markdown()}\n\n{self.in_words()}"

    def in_words(self) -> str:
        """Which layer breaks, in a sentence."""
        row = self.break_row
        if row is None:
            unjudged = sum(isnan(float(each.error.value)) for each in self.rows)
            if unjudged == len(self.rows):
                return f"No layer could be judged: {self.rows[0].note or 'outputs say nothing'}."
            but = f" ({unjudged} of {len(self.rows)} layers could not be judged)" if unjudged else ""
            return f"No layer breaks equivariance to {self.action!r}{but}."
        before = "unknown" if isnan(row.inputs) else f"{row.inputs:.2g}"
        place = row.note.split(";")[0]
        where = f"{row.label} ({row.kind})" if row.kind else f"The code of {row.label}, {place},"
        return (
            f"{where} breaks equivariance to {self.action!r}: an error of {float(row.error.value):.3g}, with "
            f"{before} in its inputs and a floor of {row.floor:.2g}."
            + (
                f" Behind it {last.label} ({last.kind}) is exact again: what it gives may move in a way of its own, as "
                "vectors do; say how with `layer_actions=`."
                if self.action.exact and (last := self.rows[-1]).error.value <= last.floor
                else ""
            )
        )


def evaluate_layers(
    network: Callable[..., Any],
    batches: Iterable[Any],
    action: Action | Flow,
    *,
    layers: Layers = None,
    layer_actions: Mapping[str, OutputAction] | None = None,
    floor: float | None = None,
    max_channels: int = 1024,
    training: bool = False,
    input: InputSpec = None,
    target: Place | None = None,
    max_batch: int | None = None,
    progress: bool = True,
) -> LayerResults:
    r"""Measures every layer of a network over the orbits of a data set, and says which one breaks equivariance.

    For each layer three numbers, each an orbit share

    .. math::
        S = \frac{W}{W + V}, \qquad
        W = \mathbb{E}_x \tfrac{1}{|G|} \sum_g \| a_{gx} - \bar a_x \|^2, \qquad
        V = \mathbb{E}_x \| \bar a_x - \bar a \|^2

    of its activations :math:`a` as they are (invariance); moved back by the same motion at the layer's own resolution
    (equivariance of plain channels); and after the best permutation of channels for each element besides (equivariance
    as group convolutions have it). In [0, 1], 0 is exact. Where a layer cannot be moved, as flat features cannot, the
    second is NaN, and the features are permuted as they are.

    A layer's error is the smallest of the three. It breaks where that is above a floor, and nothing before it is. The
    floor is what rounding leaves of exact layers in the precisions met so far (about 6e-11 in float32), and for an
    action that interpolates twice what moving there and back does to the input and to the activations' mean over the
    orbit.

    The permutations are found by least squares on the first half of the first batch's samples (or as many of these as
    have 1,024 places), and measured on all other samples, in the same pass; where none of them permutes anything, the
    third number is the second. Of more than 16 channels none is looked for where even each channel's nearest one, taken
    by several, leaves a tenth of the variance; `LayerRow.note` says so. A tensor that no layer gave (a sum, or
    ``F.max_pool2d``) is measured where it goes into a layer or comes out of the module that made it: see
    `LayerResults.between`.

    Activations of a batch are held once for each of the three, whatever :math:`|G|` is. The network runs in eval mode
    and without autocast; modes, buffers, torch's random streams and gradients are as before.

    Args:
        network: a module, one of its methods, a function that calls modules, a module set up by Fabric.
        batches: a `torch.utils.data.DataLoader` for instance; see `evaluate_invariance` for how the network is called.
        action: the group.
        layers: which modules: their names, or a function of name and module; by default all calls of modules in which
            no other module is called.
        layer_actions: how the outputs of some layers move, by the layers' names: an `Action` of as many elements,
            ``"same"``, or None for one that stays. For tokens, or images whose channels come last, say.
        floor: up to where an error is none, in place of the one that follows from the precision.
        max_channels: the most channels, or flat features, that are matched; 0 for none. Needs scipy, but where each
            channel's nearest is another one.
        training: whether modes are left as they are, to see what batch normalisation and dropout do in train mode. Half
            of each batch is moved then, and the other half keeps it company: what couples samples breaks.
        input: where the network's arguments hold the tensor that the group acts on, as for `evaluate_invariance`.
        target: where the batch holds the labels, which the network is not called with.
        max_batch: the most samples that are run together; as many as the batch has if None.
        progress: whether to show a progress bar.

    Returns:
        A row for each layer, and the layer that breaks.

    Raises:
        ValueError: if the group cannot act on a batch, or a layer's action on its output; if there is no batch; if
            `layers` names none, or the network calls none of them; if parameters are shared out among processes; if an
            argument is none of what is expected.
        ModuleNotFoundError: if scipy is needed and not installed.

    Example:
        Max-pooling by two does not fit images of odd size:

        >>> import torch
        >>> from torch import nn
        >>> from lightning_invariance import C4, evaluate_layers
        >>> network = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> evaluate_layers(network, torch.randn(20, 3, 9, 9).split(10), C4(), progress=False).breaks_at
        '1'
        >>> print(evaluate_layers(network, torch.randn(20, 3, 8, 8).split(10), C4(), progress=False).breaks_at)
        None
    """
    check_callable("network", network, "a module or a function")
    check_iterable("batches", batches, "batches of inputs, or pairs (x, target)")
    action = as_action(action)
    check_input_spec("input", input)
    check_place("target", target)
    if max_batch is not None:
        check_count("max_batch", max_batch)
    check_choice("training", training, (False, True))
    evaluator = LayerEvaluator(
        network, action, layers=layers, layer_actions=layer_actions, floor=floor, max_channels=max_channels
    )
    device = device_of(module_of(network))
    function = without_fabric(network)
    # The random streams are kept here too: a DataLoader draws from torch's when it is run through.
    with undisturbed(network, device or torch.device("cpu"), evaluating=not training):
        located = LocatedBatches(_NAME, network, batches, evaluator.action, device, input=input, target=target)
        for _, arguments in tqdm(located, desc="Layers", unit="batch", disable=not progress):
            with errors_of(_NAME):
                evaluator.update(function, arguments, max_batch=max_batch, training=training)
    if not evaluator.samples:
        raise ValueError("Expected `batches` to hold at least one sample but got none.")
    return evaluator.results()


class LayerEvaluator:
    """Measures the layers of a network batch by batch.

    Args:
        network: what is called, or its module.
        action: the group; elements that are drawn are exchanged for some that no training draws.
        layers: which modules.
        layer_actions: how the outputs of some of them move.
        floor: up to where an error is none.
        max_channels: the most channels that are matched.

    Raises:
        ValueError: if an argument has a wrong type or value.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        action: Action,
        *,
        layers: Layers,
        layer_actions: Mapping[str, OutputAction] | None,
        floor: float | None,
        max_channels: int,
    ) -> None:
        check_layer_options(layers, layer_actions, floor, max_channels)
        self.action = for_measuring(action)
        self.floor = floor
        modules = _watched(network)
        chosen = None if layers is None else _chosen(layers, modules)
        names = set(modules.values())
        motion = output_for_measuring(dict(layer_actions), action, "layer_actions") if layer_actions else None
        strange = sorted(set(layer_actions or ()) - names)
        if strange:
            raise ValueError(f"Expected `layer_actions` to name modules of the network but got {strange}.")
        self._observer = LayerObserver(modules, chosen, motion, max_channels)

    @property
    def samples(self) -> int:
        """How many samples have been measured."""
        return self._observer.samples

    def update(
        self, function: Callable[..., Any], arguments: Arguments, *, max_batch: int | None, training: bool = False
    ) -> None:
        """Runs the network over the orbit of a batch.

        Args:
            function: the network, called as the arguments say.
            arguments: those of the batch.
            max_batch: the most samples that are run together.
            training: whether half of the samples stay as they are, to keep the others company.
        """
        samples = len(arguments.inputs[0])
        if max_batch is not None and max_batch < samples and not arguments.is_divisible:
            arguments.check_max_batch(max_batch)
        if not self.samples and samples:
            arguments.acting(self.action).verify(arguments.x)
        step = samples if max_batch is None else max_batch
        for start in range(0, samples, max(step, 1)):  # an empty batch has nothing to add
            whole = start == 0 and step >= samples
            part = arguments if whole else arguments.part(slice(start, start + step))
            self._update_part(function, part, training)

    def _update_part(self, function: Callable[..., Any], arguments: Arguments, training: bool) -> None:
        x = ordinary(arguments.x)
        rows = len(x)
        kept = rows // 2 if training else rows
        if training and (not kept or not arguments.is_divisible):
            raise ValueError(
                f"Expected batches of at least two samples, of one row in every tensor, with training=True but got "
                f"{rows} samples in {arguments.in_words()}."
            )
        moved = arguments.part(slice(kept)) if training else arguments
        company = x[kept:]

        def run(each: Tensor) -> Any:
            args, kwargs = arguments.with_input(torch.cat([each, company]) if training else each)
            self._observer.given((args, kwargs))
            return function(*args, **kwargs)

        self._observer.observe(
            run,
            x[:kept],
            moved.acting(self.action),
            first=ordinary(moved.inputs[0]),
            company=rows - kept,
        )

    def results(self) -> LayerResults:
        """The rows, and which of them breaks."""
        tensors = self._observer.results()
        if not any(_is_row(each) for each in tensors):
            raise ValueError(
                "Expected `network` to call the modules that are measured but it called none: name some that are "
                "called with `layers=`."
            )
        rows: list[LayerRow] = []
        between: list[LayerRow] = []
        broken: LayerRow | None = None
        errors: dict[Key, float] = {}
        rounding, null = 0.0, 0.0
        for tensor in tensors:
            rounding = max(rounding, _rounding(tensor))
            if tensor.measured.invariance is not None:
                null = max(null, 2 * (self._observer.null + tensor.measured.null))
            floor = self._floor(tensor, rounding, null)
            blind = not self.action.exact and floor > _BLIND
            row = _row(tensor, floor, blind, errors, self._observer.leaves)
            errors[tensor.key] = float(row.error.value)
            (rows if _is_row(tensor) else between).append(row)
            if broken is None and row.is_broken:
                broken = row
        return LayerResults(tuple(rows), tuple(between), broken, self.action, self.samples)

    def _floor(self, tensor: LayerShares, rounding: float, null: float) -> float:
        if self.floor is not None:
            return self.floor
        # Rounding is relative to the activations, and the share to their variance.
        shares = [share for share in (tensor.measured.invariance, tensor.measured.equivariance) if share is not None]
        ratios = [share.square / share.variance for share in shares if share.variance > 0]
        return max(rounding**2 * max(ratios, default=1.0), null if not self.action.exact else 0.0)


def check_layer_options(
    layers: Layers, layer_actions: Mapping[str, OutputAction] | None, floor: float | None, max_channels: int
) -> None:
    """Raises a `ValueError` where an option is none of what is expected."""
    if layers is not None and not callable(layers):
        check_iterable("layers", layers, "names of modules, or to be a function of a name and its module,")
    if layer_actions is not None and not isinstance(layer_actions, Mapping):
        raise ValueError(f"Expected `layer_actions` to map names of layers to actions but got {layer_actions!r}.")
    if floor is not None:
        check_number("floor", floor, minimum=0)
    check_count("max_channels", max_channels, minimum=0)


def _watched(network: Callable[..., Any]) -> dict[nn.Module, str]:
    """The modules of a network, by their names."""
    module = module_of(network)
    if isinstance(module, nn.ModuleList) and module is not network and len(module) == 1:
        module = module[0]
    while type(module).__name__ in ("_FabricModule", "DistributedDataParallel", "OptimizedModule"):
        inner: Any = module
        module = inner._orig_mod if hasattr(inner, "_orig_mod") else inner.module
    modules = {}
    for name, each in module.named_modules():
        kind = type(each).__name__
        if kind in ("FullyShardedDataParallel",) or kind.startswith("FSDP"):
            raise ValueError(
                f"Expected a network whose parameters are whole in every process but got {kind} at {name!r}: measure a "
                "checkpoint instead."
            )
        # What makes a weight is no layer; it gives no activations.
        if "parametrizations" not in name.split("."):
            modules[each] = name
    if module_of(network) is not network and isinstance(module, nn.ModuleList) and not len(module):
        raise ValueError(f"Expected `network` to be a module, or to call one that can be seen, but got {network!r}.")
    return modules


def _chosen(layers: Any, modules: Mapping[nn.Module, str]) -> frozenset[str]:
    if callable(layers):
        chosen = frozenset(name for module, name in modules.items() if layers(name, module))
        if not chosen:
            raise ValueError("Expected `layers` to choose at least one module but it chose none.")
        return chosen
    names = list(layers)
    strange = [name for name in names if name not in modules.values()]
    if strange or not names:
        some = ", ".join(repr(name) for name in [*modules.values()][1:9])
        raise ValueError(f"Expected `layers` to name modules of the network (such as {some}) but got {names}.")
    return frozenset(names)


def _is_row(tensor: LayerShares) -> bool:
    """Whether a layer gave it."""
    return bool(tensor.kind)


def _rounding(tensor: LayerShares) -> float:
    """How far apart rounding may bring the outputs of exact layers, of their size.

    The shares of twenty exact layers in a row, with normalisation between them, stay below a tenth of what it gives.
    """
    if not tensor.dtype.is_floating_point:
        return 0.0
    # Products of float32 are rounded to 11 bits there unless that is switched off.
    if tensor.dtype == torch.float32 and tensor.device.type == "cuda" and _uses_tf32():
        return 4 * 2.0**-10
    eps = torch.finfo(tensor.dtype).eps
    # Of float64 too, since most weights were rounded to float32 once.
    return 4 * eps if eps > 2.0**-23 else 64 * 2.0**-23


def _uses_tf32() -> bool:
    try:
        return bool(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    except RuntimeError:  # set for each operation apart
        return True


def _row(tensor: LayerShares, floor: float, blind: bool, errors: Mapping[Key, float], leaves: int) -> LayerRow:
    measured = tensor.measured
    invariance, equivariance, permuted = map(_estimate, (measured.invariance, measured.equivariance, measured.permuted))
    finite = [each for each in (invariance, equivariance, permuted) if not isnan(float(each.value))]
    error = min(finite, key=lambda each: float(each.value), default=_estimate(None))
    # It may be equivariant in a way that was not looked at, or could not be.
    lacking = isnan(float(permuted.value)) and (measured.equivariance is None or measured.permuted is not None)
    if blind or (lacking and float(error.value) > floor):
        error = _estimate(None)
    known = [0.0 if source is None else errors.get(source, nan) for source in tensor.sources]
    unjudged = tensor.unknown or any(isnan(each) for each in known)
    notes = [measured.note, "the action interpolates too much to tell" if blind else ""]
    if not _is_row(tensor):
        inside = tensor.key.role == "output"
        before = f"before {tensor.key.name!r}" + (f"#{tensor.key.call}" if tensor.key.call else "")
        notes.insert(0, "what it returns" if inside else before)
    elif unjudged:
        notes.append("its inputs cannot be judged")
    return LayerRow(
        name=tensor.owner,
        call=tensor.key.call if _is_row(tensor) else 0,
        kind=tensor.kind,
        depth=tensor.leaves / max(leaves, 1),
        shape=tensor.shape,
        invariance=invariance,
        equivariance=equivariance,
        permuted=permuted,
        error=error,
        inputs=nan if unjudged else max(known, default=nan),
        floor=floor,
        path=tensor.key.path if _is_row(tensor) else (),
        note="; ".join(note for note in notes if note),
    )


def _estimate(share: Share | None) -> Estimate:
    value, error = (nan, nan) if share is None else (share.value, share.standard_error)
    return Estimate(torch.tensor(value, dtype=torch.float64), torch.tensor(error, dtype=torch.float64))
