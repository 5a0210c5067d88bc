"""Measures a network's invariance on a data set, without a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_invariance._arguments import Arguments
from lightning_invariance._call import without_fabric
from lightning_invariance._checks import check_callable, check_choice, check_count, check_iterable
from lightning_invariance._isolation import (
    RandomState,
    evaluation_mode,
    module_of,
    preserved_random_state,
)
from lightning_invariance._locate import (
    InputSpec,
    LogitsOf,
    OutputReader,
    Place,
    check_input_spec,
    check_logits_of,
    check_place,
    locate_target,
    stray_labels,
    what_stays,
)
from lightning_invariance._messages import errors_of, warn
from lightning_invariance._output_action import OutputActions
from lightning_invariance.actions import Action, Flow
from lightning_invariance.actions._flow import as_action
from lightning_invariance.evaluation._batches import LocatedBatches, device_of
from lightning_invariance.evaluation._classes import PerClassOption
from lightning_invariance.evaluation._draws import for_measuring, output_for_measuring
from lightning_invariance.evaluation._evaluator import Dealt, Evaluator, Setting, limits_of
from lightning_invariance.evaluation._keep import KeptSamples, WorstSamples
from lightning_invariance.evaluation._measures import Measures
from lightning_invariance.evaluation._network import NetworkOfInput
from lightning_invariance.metrics._base import Estimate
from lightning_invariance.saliency import (
    SaliencyLike,
)

_NAME = "evaluate_invariance"


class InvarianceResults(dict[str, Estimate]):
    """What `evaluate_invariance` measured: an `Estimate` (value and standard error over samples) by measure.

    Attributes:
        action: the group, with the elements that were measured; its `repr` says how many were drawn and with which
            seed.
        per_class: the same of each class, where that was asked for, `Estimate`s of shape ``(C,)``, or ``(C, |G| - 1)``
            by element; NaN for classes without samples.
        classes: what the classes are called then.
        kept: the samples that were kept, where some were asked for.
        found: what was found in the first batch, in words: ``"input"``, ``"logits"``, ``"labels"``, ``"saliency"``, the
            map that was used where one was, and ``"without"``, the measures that are left out for want of labels,
            classes or maps.
    """

    def __init__(
        self,
        measures: Mapping[str, Estimate],
        action: Action,
        found: Mapping[str, str],
        per_class: Mapping[str, Estimate] | None = None,
        classes: Sequence[str] = (),
        kept: KeptSamples | None = None,
    ) -> None:
        super().__init__(measures)
        self.action = action
        self.found = dict(found)
        self.per_class = dict(per_class or {})
        self.classes = tuple(classes)
        self.kept = kept

    def _repr_html_(self) -> str:
        """A table, as notebooks show it."""
        from lightning_invariance.report._notebook import results_html  # a room further right, which imports this one

        return results_html(self)


def evaluate_invariance(
    network: Callable[..., Any],
    batches: Iterable[Any],
    action: Action | Flow,
    *,
    output_action: OutputActions = None,
    measures: Measures | None = None,
    saliency: SaliencyLike | None = None,
    saliency_samples: int = 64,
    sensitivity_samples: int = 64,
    input: InputSpec = None,
    target: Place | None = None,
    logits: LogitsOf | None = None,
    max_batch: int | None = None,
    per_class: PerClassOption = False,
    keep: Literal["worst"] | None = None,
    n: int = 16,
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
        action: the group; a `Flow` stands for ``flow.sampled()``, and has ``"lie_derivative_error"`` besides, by name.
        output_action: how the output moves when the input does, so that equivariance is measured: None, it stays;
            ``"same"``, as the input does, in the same dimensions; an `Action` of as many elements; or a dict of these
            for a network that returns several tensors, by their names (``{"energy": None, "forces": "same"}``), whose
            results are called ``"forces/relative_equivariance_error"`` and so on.
        measures: names of measures (``"logit_invariance_error"``, ...; `MEASURES` has them all), or torchmetrics
            metrics under names of your own; all that make sense for outputs and labels if None.
        saliency: how to compute saliency maps; ``Gradient(dither=1e-3)`` if None, whatever the action.
        saliency_samples: how many samples, from the first, get saliency maps; they are the costly part.
        sensitivity_samples: how many, from the first, ``"selectivity"``, ``"jacobian_spectral_norm"`` and
            ``"lie_derivative_error"`` are measured on.
        input: where the network's arguments hold the tensor that the group acts on: a position, a keyword or a key, or
            a list of those that one element moves together; by default the only tensor that the group can act on.
        target: where the batch holds the labels, one integer a sample, or one a place ``(B, H, W)``: a position or a
            key. By default the second part of a pair, or an entry called label, labels, target, targets or y. For
            ``"loss_share"`` it may hold the numbers that the outputs are to be; those of several outputs stand there,
            or in a batch that is a mapping, by the outputs' names.
        logits: a function from the network's output to its logits; by default the output itself, or its ``logits``.
        max_batch: the most samples in one forward; as many as the batch has if None.
        per_class: whether each measure is given of each class of the labels too: True, for as many classes as there
            are logits, the number of classes, or their names in order.
        keep: ``"worst"`` for the samples that one element moves the output of farthest, by
            :math:`\tfrac12 \| f(gx) - f(x) \|^2`, with their saliency maps (none with ``saliency_samples=0``); see
            `KeptSamples`.
        n: how many are kept then.
        progress: whether to show a progress bar.

    Returns:
        An `Estimate` (value and standard error over samples) for each measure, in a dict that has besides the `action`,
        what was `found`, the values `per_class` and the samples that were `kept`.

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
    action = as_action(action)
    check_input_spec("input", input)
    check_place("target", target)
    check_logits_of(logits)
    check_choice("keep", keep, (None, "worst"))
    check_count("n", n)
    output = output_for_measuring(output_action, action)
    action = for_measuring(action)
    if keep is not None and output.names is not None:
        raise ValueError(
            f"Expected `keep` to be None with several outputs, {list(output.names)}, whose errors have units of their "
            f"own, but got {keep!r}: name one of them with `logits=`."
        )
    seen: dict[str, Tensor] = {}
    evaluator = Evaluator(
        action,
        measures,
        output=output,
        saliency=saliency,
        limits=limits_of(saliency_samples, sensitivity_samples),
        max_batch=max_batch,
        per_class=per_class,
        on_orbit=None if keep is None else seen.update,
    )
    module = module_of(network)
    device = device_of(module)
    function = without_fabric(network)
    found: dict[str, str] = {}
    worst: WorstSamples | None = None
    if keep is not None:
        maps = evaluator.saliency if saliency_samples else None
        reading = OutputReader(logits, output.names)
        worst = WorstSamples(n, action, maps, function, reading, module, output.stays, max_batch)
    kept: KeptSamples | None = None
    # The random streams here too: a DataLoader draws from torch's when it is run through.
    with evaluation_mode(module), preserved_random_state(device or torch.device("cpu")):
        located = LocatedBatches(_NAME, network, batches, action, device, input=input, target=target)
        for batch, arguments in tqdm(located, desc="Invariance", unit="batch", disable=not progress):
            with errors_of(_NAME):
                arguments.check_max_batch(max_batch)
                x = arguments.x
                tensors = [*arguments.inputs, *(tensor for _, tensor in arguments.others)]
                labels = locate_target(batch, target, len(x), tensors, last=True)
                first_batch = not evaluator.samples
                if first_batch:
                    evaluator.check_inputs(arguments.inputs)
                    arguments.acting(action).verify(x)

                # Random numbers, where the network draws some, are the same for all elements.
                start = RandomState(x.device)

                reader = OutputReader(logits, output.names)

                def at(
                    samples: int,
                    arguments: Arguments = arguments,
                    start: RandomState = start,
                    reader: OutputReader = reader,
                ) -> Setting:
                    first = arguments.first(samples)
                    run = NetworkOfInput(function, first, reader, start=start)
                    return Setting(run, run, first.acting(action))

                positions = range(evaluator.samples, evaluator.samples + len(x))
                outputs = evaluator.update(
                    at,
                    x,
                    packing=reader.packed,
                    labels=labels,
                    dealt=Dealt(positions, len(x), divisible=arguments.is_divisible),
                    module=module,
                )
                if worst is not None:
                    worst.add(seen, arguments, labels, positions.start, start)
                    seen.clear()
                    if first_batch:
                        worst.check_maps()
                if first_batch:
                    said = what_stays(input, action, arguments, outputs if output.stays else None)
                    said += stray_labels(labels, outputs)
                    said += evaluator.doubts(at, x, outputs, reader.packed(), module)
                    for message in said:
                        warn(f"{_NAME}: {message}")
                    found = {
                        "input": arguments.in_words(),
                        "logits": reader.in_words(outputs),
                        "labels": (labels if output.names else labels.for_logits(outputs)).in_words(),
                        "saliency": evaluator.saliency_in_words(),
                        "without": ", ".join(evaluator.left_out(x, labels)),
                    }
        if worst is not None:
            kept = worst.result()
    if not evaluator.samples:
        raise ValueError("Expected `batches` to hold at least one sample but got none.")
    of_classes = evaluator.compute_per_class()
    return InvarianceResults(evaluator.compute(), action, found, of_classes, evaluator.class_names(of_classes), kept)
