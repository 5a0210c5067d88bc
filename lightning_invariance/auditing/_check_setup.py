"""Whether the numbers of a network, an action and its data can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_invariance._arguments import Arguments
from lightning_invariance._call import arguments_of, without_fabric
from lightning_invariance._checks import check_callable, check_count, check_iterable
from lightning_invariance._containers import describe_value
from lightning_invariance._isolation import RandomState, module_of, preserved_random_state, undisturbed
from lightning_invariance._locate import (
    InputSpec,
    LogitsOf,
    Place,
    check_input_spec,
    check_logits_of,
    check_place,
    locate_target,
)
from lightning_invariance._messages import errors_of
from lightning_invariance._output_action import OutputActions
from lightning_invariance.actions import Action, Flow
from lightning_invariance.actions._flow import as_action
from lightning_invariance.auditing._checks import CHECKS
from lightning_invariance.auditing._findings import Finding, FindingName, SetupReport
from lightning_invariance.auditing._subject import Skip, Subject
from lightning_invariance.evaluation._batches import LocatedBatches, device_of
from lightning_invariance.evaluation._draws import for_measuring, output_for_measuring
from lightning_invariance.saliency import SaliencyLike, as_saliency, default_saliency


def check_setup(
    network: Callable[..., Any],
    batches: Iterable[Any],
    action: Action | Flow,
    *,
    output_action: OutputActions = None,
    saliency: SaliencyLike | None = None,
    input: InputSpec = None,
    target: Place | None = None,
    logits: LogitsOf | None = None,
    samples: int = 256,
) -> SetupReport:
    r"""Whether what will be measured can be trusted: what may be wrong, in words, with a remedy for each.

    Every finding is decided by a measurement on a few samples, whose numbers it holds. What is looked at:

    - ``noise_floor``: the error of an exactly invariant network (this one averaged over the orbit) on the same data,
      that of interpolation and rounding, and how many times larger the network's own is.
    - ``precision``: the error in float64, by a copy of the network. ``modes``: in train mode. ``repeats``: whether a
      second run of the same batch gives the same. ``samples``: whether a sample's output hangs on others in its batch.
    - ``unmoved_inputs``: another input that has to move too. ``output_action``: outputs that agree better if they move
      otherwise than was said. ``changed_labels``: classes that an element turns into others, such as 6 and 9,
      where it is right unmoved, for one other class, which the inverse takes back; what is less sure is a note.
    - ``sizes``: a stride or a pool that no weights make symmetric on inputs of this size (finite groups that move
      places exactly), and whether the error falls on a size where all can be; another layer that none make so.
      ``layers``: the first layer that does not move as its input does.
    - ``ties``: saliency maps that hang on which of several equal values max-pooling picks.
    - ``common_part``: outputs ``(B, C)`` that no labels say to be logits of classes, and how much of their change the
      measures of logits do not see. ``single_output``: one number a sample with labels of two classes.
    - ``finite_outputs``, ``constant_output``, ``collapsed_logits``, ``saturated_softmax``: outputs that fake small
      errors or blow up.

    The network is run in eval mode and is left as it was, random streams too.

    Args:
        network: as for `evaluate_invariance`.
        batches: as for `evaluate_invariance`; the first ones are used.
        action: the group, or a flow; of one with many elements some are used, spread over it.
        output_action: how the output moves when the input does, as for `evaluate_invariance`.
        saliency: how saliency maps are going to be computed; ``Gradient(dither=1e-3)`` if None.
        input: where the network's arguments hold the tensor that the group acts on.
        target: where the batch holds the labels.
        logits: a function from the network's output to its logits.
        samples: how many samples, from the first, are used.

    Returns:
        A `SetupReport`; ``print`` shows it.

    Raises:
        ValueError: if the group cannot act on a batch; if there is no sample; if `batches` is a pair of inputs and
            labels itself; if input or logits cannot be found or
            several tensors could be meant; if an argument is none of what is expected.

    Example:
        >>> import torch
        >>> from lightning_invariance import C4, check_setup
        >>> _ = torch.manual_seed(0)
        >>> network = torch.nn.Sequential(
        ...     torch.nn.MaxPool2d(2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 3)
        ... )
        >>> report = check_setup(network, [torch.randn(16, 1, 9, 9)], C4())
        >>> report.ok
        False
        >>> print(report["sizes"].remedy)  # a row is left out at one end: on 9×9 it looks as if it were not invariant
        Inputs of 8×8 or 10×10 would do for all layers.
    """
    check_callable("network", network, "a module or a function")
    check_iterable("batches", batches, "batches of inputs, or pairs (x, target)")
    check_no_pair(batches)
    action = as_action(action)
    check_input_spec("input", input)
    check_place("target", target)
    check_logits_of(logits)
    check_count("samples", samples)
    maps = default_saliency() if saliency is None else as_saliency(saliency)
    motion = output_for_measuring(output_action, action)
    action = for_measuring(action)
    module = module_of(network)
    device = device_of(module) or torch.device("cpu")
    with errors_of("check_setup"), preserved_random_state(device):
        batch, arguments = _first_samples(network, batches, action, input, target, samples, device)
        arguments = arguments.joined(action)
        tensors = [*arguments.inputs, *(tensor for _, tensor in arguments.others)]
        labels = locate_target(batch, target, len(arguments.x), tensors, last=True)
        if arguments.is_divisible:
            labels, arguments = labels.first(samples), arguments.first(samples)
        arguments.acting(action).verify(arguments.x)
        with undisturbed(module, device), torch.no_grad():
            subject = Subject(
                function=without_fabric(network),
                module=module,
                arguments=arguments,
                action=action,
                motion=motion,
                select=logits,
                batch=batch,
                input=input,
                target=target,
                labels=labels,
                saliency=maps,
                start=RandomState(device),
            )
            subject.run()  # what is wrong with the call is an error of its own
            findings: list[Finding] = []
            skipped: dict[FindingName, str] = {}
            for name, check in CHECKS.items():
                if findings and findings[0].severity == "problem" and findings[0].name == "finite_outputs":
                    skipped[name] = "outputs are not finite."
                    continue
                try:
                    findings.append(check(subject))
                except Skip as reason:
                    skipped[name] = str(reason)
    return SetupReport(tuple(findings), action, len(arguments.x), skipped)


def check_no_pair(batches: Iterable[Any]) -> None:
    """Raises a `ValueError` for inputs and their labels that are in no list."""
    if not isinstance(batches, (tuple, list)) or len(batches) != 2:
        return
    x, y = batches
    if isinstance(x, Tensor) and isinstance(y, Tensor) and y.ndim == 1 < x.ndim and not y.is_floating_point():
        raise ValueError(
            f"Expected `batches` to hold batches but got a pair of {describe_value(x)} and {describe_value(y)}: put it "
            "into a list, [(x, target)]."
        )


def _first_samples(
    network: Callable[..., Any],
    batches: Iterable[Any],
    action: Action,
    input: InputSpec,
    target: Place | None,
    samples: int,
    device: torch.device,
) -> tuple[Any, Arguments]:
    """The first batches as one, as far as they fit together, and the call that it is for."""
    taken: list[Any] = []
    counts: list[int] = []
    divisible = True
    for batch, arguments in LocatedBatches("check_setup", network, batches, action, device, input=input, target=target):
        taken.append(batch)
        counts.append(len(arguments.inputs[0]))
        divisible = divisible and arguments.is_divisible
        if sum(counts) >= samples or not divisible:
            break
    if not sum(counts):
        raise ValueError("Expected `batches` to hold at least one sample but got none.")
    whole = next(place for place, count in enumerate(counts) if count)
    batch = taken[whole]
    if divisible:
        try:
            batch = _joined(taken, counts)
        except ValueError:  # series of several lengths, say
            batch = taken[whole]
    return batch, arguments_of(network, batch, input, target, action)


def _joined(values: list[Any], counts: list[int]) -> Any:
    """Batches as one: tensors of one row a sample in a row, the others as they are.

    Raises:
        ValueError: if they do not fit together.
    """
    first = values[0]
    if isinstance(first, Tensor):
        rows = all(each.ndim and len(each) == count for each, count in zip(values, counts, strict=True))
        if rows and len({each.shape[1:] for each in values}) == 1:
            return torch.cat(values)
        if not rows and all(each.shape == first.shape and torch.equal(each, first) for each in values):
            return first
        raise ValueError("tensors of several shapes")
    if isinstance(first, Mapping):
        return {key: _joined([each[key] for each in values], counts) for key in first}
    if isinstance(first, (list, tuple)):
        parts = [_joined([each[place] for each in values], counts) for place in range(len(first))]
        return parts if isinstance(first, list) else tuple(parts)
    if any(each is not first for each in values):
        raise ValueError("values that differ")
    return first
