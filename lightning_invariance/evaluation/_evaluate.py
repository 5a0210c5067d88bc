"""Measures a network's invariance on a data set, without a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from tqdm.auto import tqdm

from lightning_invariance._checks import check_callable, check_iterable
from lightning_invariance._isolation import evaluation_mode, module_of, preserved_random_state
from lightning_invariance._locate import InputSpec, LogitsOf, Place
from lightning_invariance._output_action import OutputActions
from lightning_invariance.actions import Action, Flow
from lightning_invariance.evaluation._batches import LocatedBatches, device_of
from lightning_invariance.evaluation._classes import PerClassOption
from lightning_invariance.evaluation._group import GroupEvaluation, InvarianceResults
from lightning_invariance.evaluation._measures import Measures
from lightning_invariance.saliency import SaliencyLike

_NAME = "evaluate_invariance"


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
    evaluation = GroupEvaluation(
        _NAME,
        network,
        action,
        output_action=output_action,
        measures=measures,
        saliency=saliency,
        saliency_samples=saliency_samples,
        sensitivity_samples=sensitivity_samples,
        input=input,
        target=target,
        logits=logits,
        max_batch=max_batch,
        per_class=per_class,
        keep=keep,
        n=n,
    )
    module = module_of(network)
    device = device_of(module)
    # The random streams here too: a DataLoader draws from torch's when it is run through.
    with evaluation_mode(module), preserved_random_state(device or torch.device("cpu")):
        located = LocatedBatches(_NAME, network, batches, evaluation.action, device, input=input, target=target)
        for batch, arguments in tqdm(located, desc="Invariance", unit="batch", disable=not progress):
            evaluation.update(batch, arguments)
        return evaluation.results()
