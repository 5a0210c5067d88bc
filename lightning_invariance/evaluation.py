"""Measures a network's invariance batch by batch; `evaluate_invariance` does it without a Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_invariance._arguments import Arguments
from lightning_invariance._call import arguments_of, without_fabric
from lightning_invariance._checks import check_callable, check_count, check_iterable, check_not_meta
from lightning_invariance._containers import describe_value, map_tensors
from lightning_invariance._isolation import (
    RandomState,
    evaluation_mode,
    module_of,
    ordinary,
    preserved_buffers,
    preserved_random_state,
)
from lightning_invariance._locate import (
    InputSpec,
    Labels,
    LogitsOf,
    Place,
    are_labels,
    check_input_spec,
    check_logits_of,
    check_place,
    check_rows,
    locate_target,
    logits_of,
    stray_labels,
    what_stays,
)
from lightning_invariance._random import seed_of
from lightning_invariance.actions import Action
from lightning_invariance.actions._base import check_action
from lightning_invariance.actions._joint import JointAction
from lightning_invariance.metrics._base import Estimate
from lightning_invariance.metrics._collection import MeasureCollection, Measures
from lightning_invariance.orbit import OrbitOutputs, add_saliency, evaluate_orbit
from lightning_invariance.saliency import (
    Network,
    Saliency,
    SaliencyLike,
    as_saliency,
    by_class,
    default_saliency,
    predicted_class,
    prepared_by,
)

_NAME = "evaluate_invariance"


class InvarianceEvaluator:
    """Runs a network over the orbit of each batch and feeds the measures.

    Args:
        action: the group.
        measures: as for `MeasureCollection`.
        saliency: how saliency maps are computed, for the measures that need them; by `default_saliency` if None.
        saliency_samples: how many samples, from the first, get saliency maps; 0 for none.
        max_batch: the most samples in one forward; as many as the batch has if None: the forwards then need no more
            memory than the user's own, and stay in the caches that theirs fits into.
        owner: who measures, for messages.
        demanding: whether a measure that was asked for, by name or as a metric, and cannot be computed is an error.

    Raises:
        ValueError: if an argument is none of what is expected.
    """

    def __init__(
        self,
        action: Action,
        measures: Measures | None = None,
        saliency: SaliencyLike | None = None,
        saliency_samples: int = 64,
        max_batch: int | None = None,
        *,
        owner: str = _NAME,
        demanding: bool = True,
    ) -> None:
        check_action(action)
        check_count("saliency_samples", saliency_samples, minimum=0)
        if max_batch is not None:
            check_count("max_batch", max_batch)
        self.action = action
        self.measures = MeasureCollection(measures)
        self.saliency = default_saliency() if saliency is None else as_saliency(saliency)
        self.saliency_samples = saliency_samples
        self.max_batch = max_batch
        self.samples = 0
        self._owner = owner
        self._demanding = demanding and not self.measures.restricted
        of_maps = self.measures.needing("saliency")
        if self._demanding and of_maps and not saliency_samples:
            raise ValueError(
                f"Expected `saliency_samples` to be at least 1 for {list(of_maps)}, which need maps, but got 0."
            )
        self._wants_maps = bool(of_maps) and saliency_samples > 0
        self._explainable: bool | None = None  # whether the network gives one logit a class; known after a batch

    def update(
        self,
        at: Callable[[int], tuple[Network, Action]],
        x: Tensor,
        *,
        base_logits: Tensor | None = None,
        labels: Labels,
        positions: range | None = None,
        kept: int | None = None,
        processes: int = 1,
        module: nn.Module | None = None,
        divisible: bool = True,
    ) -> Tensor:
        """Adds a batch. Random streams, buffers and gradients stay as they were; modes are the caller's.

        Args:
            at: gives the network, from inputs to logits, and the group as it acts on them, for the first n samples of
                the batch: a network that takes more than `x` needs the rest of those samples.
            x: the batch, shape ``(B, ...)``.
            base_logits: the network's logits of `x` where they are known.
            labels: the labels, or where they were looked for.
            positions: the samples' positions in the data set; they go on from the last batch by default.
            kept: how many samples, from the first, count; all by default. The network runs on the others for nothing.
            processes: how many processes have to run the network as often as this one, their positions dealt in turn.
            module: the module behind the network, whose buffers are kept from changing.
            divisible: whether the network can be run on part of the samples, those that get maps.

        Returns:
            The network's logits of `x`.

        Raises:
            ValueError: if a measure that was asked for needs labels and there are none.
        """
        self.check_labels(labels)
        target = labels.tensor
        positions = range(self.samples, self.samples + len(x)) if positions is None else positions
        self.samples += len(x)
        kept = len(x) if kept is None else kept
        explained = run = 0
        if self._wants_maps:
            explained = sum(position < self.saliency_samples for position in positions[:kept])
            # The same number on all processes: what the first of them needs.
            run = sum(position - position % processes < self.saliency_samples for position in positions)
            run = len(x) if run and not divisible else run
        # `Trainer.validate` makes inference tensors, which no gradient can pass. Out here copies are ordinary tensors,
        # those of the buffers (a filter cached by `.eval()`, say) included.
        with torch.inference_mode(False), torch.no_grad(), preserved_random_state(x.device):
            x = ordinary(x)
            target = None if target is None else ordinary(target)
            base_logits = None if base_logits is None else ordinary(base_logits)
            with preserved_buffers(module_of(module)):
                return self._measure(at, x, base_logits, target, kept, explained, run)

    def _measure(
        self,
        at: Callable[[int], tuple[Network, Action]],
        x: Tensor,
        base_logits: Tensor | None,
        target: Tensor | None,
        kept: int,
        explained: int,
        run: int,
    ) -> Tensor:
        network, action = at(len(x))
        if base_logits is not None and self._explainable is None:
            self._explainable = _is_explainable(base_logits, x)
        # With maps for all samples one pass is enough, once it is known that there can be maps and what the logits are.
        if run == len(x) and self._explainable and (base_logits is not None or target is None):
            outputs = evaluate_orbit(
                network,
                x,
                action,
                base_logits=base_logits,
                saliency=self._saliency_on(action),
                target=_explained_class(target, base_logits, x),
                max_batch=self._limit(x),
            )
            self._feed(replace(outputs, saliency=None, orbit_saliency=None), target, kept)
            self._feed(outputs, target, explained)
            return outputs.logits
        outputs = evaluate_orbit(network, x, action, base_logits=base_logits, max_batch=self._limit(x))
        self._feed(outputs, target, kept)
        self._explainable = _is_explainable(outputs.logits, x)
        if run and (self._explainable or not self.measures.restricted):
            network, action = at(run)
            labels = None if target is None else target[:run]
            x, first = x[:run], OrbitOutputs(outputs.logits[:run], outputs.orbit_logits[:, :run])
            chosen = _explained_class(labels, first.logits, x)
            elements = list(range(1, len(action)))
            maps = add_saliency(first, network, x, action, elements, self._saliency_on(action), chosen, self._limit(x))
            self._feed(maps, labels, explained)
        return outputs.logits

    def check_labels(self, labels: Labels) -> None:
        """Raises a `ValueError` where a measure that was asked for needs labels and there are none."""
        lacking = self.measures.needing("target") if labels.tensor is None else ()
        if self._demanding and lacking:
            raise ValueError(
                f"{self._owner}: expected labels for {list(lacking)} but found none: {labels.place}. Say with "
                "`target=` where they are: one integer a sample."
            )

    def left_out(self, x: Tensor, logits: Tensor | None, labels: Labels) -> tuple[str, ...]:
        """The measures that are left out where all that outputs and labels allow are wanted."""
        explained = self.saliency_samples > 0 and x.is_floating_point()
        explained = explained and (logits is None or _is_explainable(logits, x))
        return self.measures.left_out(logits, labels.tensor is not None, explained)

    def _saliency_on(self, action: Action) -> Saliency:
        return _OfPacked(self.saliency, action) if isinstance(action, JointAction) else self.saliency

    def _feed(self, outputs: OrbitOutputs, target: Tensor | None, samples: int) -> None:
        """Adds the first samples."""
        if samples == 0:
            return
        first = OrbitOutputs(
            outputs.logits[:samples],
            outputs.orbit_logits[:, :samples],
            None if outputs.saliency is None else outputs.saliency[:samples],
            None if outputs.orbit_saliency is None else outputs.orbit_saliency[:, :samples],
        )
        self.measures.update(first, None if target is None else target[:samples])

    def _limit(self, x: Tensor) -> int:
        return self.max_batch or max(len(x), 1)

    def compute(self, wanted: Tensor | None = None) -> dict[str, Estimate]:
        """The measures with their standard errors; see `MeasureCollection.compute`."""
        return self.measures.compute(wanted)


def _is_explainable(logits: Tensor, x: Tensor) -> bool:
    """Whether each class has a logit (a single output is the only class's), and the input a gradient."""
    return logits.ndim in (1, 2) and x.is_floating_point()


def _explained_class(target: Tensor | None, logits: Tensor | None, x: Tensor) -> Tensor | None:
    """The labels where they name outputs; None, or the class predicted, where they do not."""
    if target is None or not are_labels(target, len(x)):
        return None
    if logits is None or logits.ndim > 2:  # of these there are no maps, which is for the saliency to say
        return target
    # A label that names no output (to be ignored, or 1 beside a single logit) explains nothing.
    named = (target >= 0) & (target < by_class(logits).shape[1])
    return torch.where(named, target, predicted_class(logits))


class _OfPacked(Saliency):
    """Maps of several inputs in one tensor: only those that are floating point are prepared."""

    def __init__(self, saliency: Saliency, action: JointAction) -> None:
        self._saliency = saliency
        self._action = action

    def prepare(self, x: Tensor) -> Tensor:
        parts = self._action.unpack(x)
        prepared = [prepared_by(self._saliency, each) if each.is_floating_point() else each for each in parts]
        if all(after is before for after, before in zip(prepared, parts, strict=True)):
            return x
        return self._action.pack(prepared)

    def attribute(
        self, network: Network, x: Tensor, target: Tensor | None = None, max_batch: int | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._saliency.attribute(network, x, target, max_batch)

    def finish(self, maps: Tensor) -> Tensor:
        return self._saliency.finish(maps)


class NetworkOfInput(nn.Module):
    """A network as a function of the input alone: a module, as some attributions ask for one.

    Args:
        network: what is called.
        arguments: with what, but for the input.
        select: takes the logits out of the network's output.
        owner: who asks, for messages.
        context: entered around each call.
        run: how the network is called; as it is by default.
        start: the random streams that each call begins with; those that there are by default.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        arguments: Arguments,
        select: LogitsOf | None,
        owner: str,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        run: Callable[..., Any] | None = None,
        start: RandomState | None = None,
    ) -> None:
        super().__init__()
        self.training = module_of(network).training
        self.network = network
        self._owner = owner
        self._arguments = arguments
        self._select = select
        self._context = context
        self._run = network if run is None else run
        self._start = start

    def forward(self, x: Tensor) -> Tensor:
        try:
            logits = self._logits(x)
        except RuntimeError as error:
            # Networks that differentiate inside (forces from energies) need a graph where nobody else does.
            if torch.is_grad_enabled() or "does not require grad" not in str(error):
                raise
            with torch.enable_grad():
                logits = self._logits(x).detach()
        check_rows(logits, len(x), self._owner)
        return logits

    def _logits(self, x: Tensor) -> Tensor:
        args, kwargs = self._arguments.with_input(x)
        if self._start is not None:
            self._start.restore()
        with self._context():
            return logits_of(self._run(*args, **kwargs), self._select, self._owner)


def for_measuring(action: Action) -> Action:
    """The group with elements that no training uses: drawn anew, where they are drawn, from a stream of their own."""
    if not action.drawn or action.__dict__.get("_for_measuring"):
        return action
    redrawn = action.redrawn(seed_of("measuring", repr(action)))
    redrawn.__dict__["_for_measuring"] = True  # so that what is in a record is measured again as it is
    return redrawn


class InvarianceResults(dict[str, Estimate]):
    """What `evaluate_invariance` measured: an `Estimate` (value and standard error over samples) by measure.

    Attributes:
        action: the group, with the elements that were measured; its `repr` says how many were drawn and with which
            seed.
        found: what was found in the first batch, in words: ``"input"``, ``"logits"``, ``"labels"``, and ``"without"``,
            the measures that are left out for want of labels, classes or maps.
    """

    def __init__(self, measures: Mapping[str, Estimate], action: Action, found: Mapping[str, str]) -> None:
        super().__init__(measures)
        self.action = action
        self.found = dict(found)


def evaluate_invariance(
    network: Callable[..., Any],
    batches: Iterable[Any],
    action: Action,
    *,
    measures: Measures | None = None,
    saliency: SaliencyLike | None = None,
    saliency_samples: int = 64,
    input: InputSpec = None,
    target: Place | None = None,
    logits: LogitsOf | None = None,
    max_batch: int | None = None,
    progress: bool = True,
) -> InvarianceResults:
    r"""Measures a network's invariance on a data set, without a Trainer.

    The network is put in eval mode for the time; modes, buffers, torch's random streams and gradients are as before.
    It is called as ``network(x)`` on batches that are tensors or pairs ``(x, target)``; on longer sequences with all
    parts but the last; with all parts where it takes as many and needs them; on mappings with the entries that it has
    keywords for (``network(**batch)``, labels left out), or, where it has none, with the whole mapping (if its only
    parameter is called batch, or is annotated as a mapping) or the input alone. Where that is not how your network is
    called, pass a function of those arguments.

    The elements of continuous groups and of permutations (`SO3`, `SetPermutations`, ...) are drawn with a seed that no
    training callback uses; the result's `action` holds them.

    Args:
        network: from inputs to logits ``(B, C)``, or any output for the logit errors alone: a module, one of its
            methods, a function, a module set up by Fabric (which is measured in its precision).
        batches: a `torch.utils.data.DataLoader` for instance. Its batches are moved to the device of the network's
            parameters.
        action: the group.
        measures: names of measures (``"logit_invariance_error"``, ...), or torchmetrics metrics under names of your
            own; all that the outputs and labels allow if None.
        saliency: how to compute saliency maps; ``Gradient(dither=1e-3)`` if None, whatever the action.
        saliency_samples: how many samples, from the first, get saliency maps; they are the costly part.
        input: where the network's arguments hold the tensor that the group acts on: a position, a keyword or a key, or
            a list of those that one element moves together; by default the only tensor that the group can act on.
        target: where the batch holds the labels, one integer a sample: a position or a key. By default the second part
            of a pair, or an entry called label, labels, target, targets or y.
        logits: a function from the network's output to its logits; by default the output itself, or its ``logits``.
        max_batch: the most samples in one forward; as many as the batch has if None.
        progress: whether to show a progress bar.

    Returns:
        An `Estimate` (value and standard error over samples) for each measure, in a dict that has besides the `action`
        and what was `found`.

    Raises:
        ValueError: if the group cannot act on a batch; if there is no batch; if input, labels or logits cannot be found
            or several tensors could be meant; if a measure that was asked for cannot be computed; if an argument is
            none of what is expected.

    Example:
        >>> import torch
        >>> from lightning_invariance import C4, evaluate_invariance
        >>> network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 10))
        >>> batches = torch.randn(40, 3, 8, 8).split(16)
        >>> results = evaluate_invariance(network, batches, C4(), progress=False)
        >>> bool(results["logit_invariance_error"].value < 1e-10)  # a mean over pixels does not know the pose
        True
    """
    check_callable("network", network, "a module or a function")
    check_iterable("batches", batches, "batches of inputs, or pairs (x, target)")
    check_action(action)
    check_input_spec("input", input)
    check_place("target", target)
    check_logits_of(logits)
    action = for_measuring(action)
    evaluator = InvarianceEvaluator(action, measures, saliency, saliency_samples, max_batch)
    module = module_of(network)
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
    if device is not None and device.type == "meta":
        raise ValueError("Expected `network` to hold values but got one on the meta device.")
    function = without_fabric(network)
    found: dict[str, str] = {}
    # The random streams here too: a DataLoader draws from torch's when it is run through.
    with evaluation_mode(module), preserved_random_state(device or torch.device("cpu")):
        for batch in tqdm(batches, desc="Invariance", unit="batch", disable=not progress):
            batch = map_tensors(partial(_placed, device=device), batch)
            arguments = arguments_of(network, batch, input, target, action, _NAME).joined(action)
            arguments.check_max_batch(max_batch, _NAME)
            x = arguments.x
            tensors = [*arguments.inputs, *(tensor for _, tensor in arguments.others)]
            labels = locate_target(batch, target, len(x), _NAME, tensors, last=True)
            first_batch = not evaluator.samples
            if first_batch:
                arguments.acting(action).verify(x)

            # Random numbers, where the network draws some, are the same for all elements.
            start = RandomState(x.device)

            def at(
                samples: int, arguments: Arguments = arguments, start: RandomState = start
            ) -> tuple[Network, Action]:
                first = arguments.first(samples)
                return NetworkOfInput(function, first, logits, _NAME, start=start), first.acting(action)

            outputs = evaluator.update(at, x, labels=labels, module=module, divisible=arguments.is_divisible)
            if first_batch:
                said = what_stays(_NAME, input, action, arguments, outputs)
                for message in said + stray_labels(_NAME, labels, outputs):
                    warnings.warn(message, stacklevel=2)
                found = {
                    "input": arguments.in_words(),
                    "logits": describe_value(outputs),
                    "labels": labels.in_words(),
                    "without": ", ".join(evaluator.left_out(x, outputs, labels)),
                }
    if not evaluator.samples:
        raise ValueError("Expected `batches` to hold at least one sample but got none.")
    return InvarianceResults(evaluator.compute(), action, found)


def _placed(tensor: Tensor, device: torch.device | None) -> Tensor:
    check_not_meta("batches", tensor)
    return tensor.to(device)
