"""Measures a network's invariance batch by batch; `evaluate_invariance` does it without a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_invariance._checks import check_callable, check_count, check_iterable, check_not_meta
from lightning_invariance._isolation import (
    evaluation_mode,
    module_of,
    ordinary,
    preserved_buffers,
    preserved_random_state,
)
from lightning_invariance.actions import Action
from lightning_invariance.actions._base import check_action
from lightning_invariance.metrics._base import Estimate
from lightning_invariance.metrics._collection import MeasureCollection, Measures
from lightning_invariance.orbit import OrbitOutputs, add_saliency, evaluate_orbit
from lightning_invariance.saliency import (
    Network,
    SaliencyLike,
    as_saliency,
    by_class,
    default_saliency,
    predicted_class,
)


class InvarianceEvaluator:
    """Runs a network over the orbit of each batch and feeds the measures.

    Args:
        action: the group.
        measures: as for `MeasureCollection`.
        saliency: how saliency maps are computed, for the measures that need them; by `default_saliency` if None.
        saliency_samples: how many samples, from the first, get saliency maps; 0 for none.
        max_batch: the most samples in one forward; as many as the batch has if None: the forwards then need no more
            memory than the user's own, and stay in the caches that theirs fits into.

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
        self._wants_maps = bool(self.measures.needing("saliency")) and saliency_samples > 0
        self._explainable: bool | None = None  # whether the network gives one logit a class; known after a batch

    def update(
        self,
        network_for: Callable[[int], Network],
        x: Tensor,
        *,
        base_logits: Tensor | None = None,
        target: Tensor | None = None,
        positions: range | None = None,
        kept: int | None = None,
        processes: int = 1,
        module: nn.Module | None = None,
    ) -> None:
        """Adds a batch. Random streams, buffers and gradients stay as they were; modes are the caller's.

        Args:
            network_for: gives the network, from inputs to logits, for the first n samples of the batch: one that takes
                more than `x` needs the rest of those samples.
            x: the batch, shape ``(B, ...)``.
            base_logits: the network's logits of `x` where they are known.
            target: the labels, shape ``(B,)``, where there are some.
            positions: the samples' positions in the data set; they go on from the last batch by default.
            kept: how many samples, from the first, count; all by default. The network runs on the others for nothing.
            processes: how many processes have to run the network as often as this one, their positions dealt in turn.
            module: the module behind the network, whose buffers are kept from changing.
        """
        positions = range(self.samples, self.samples + len(x)) if positions is None else positions
        self.samples += len(x)
        if target is not None and self.measures.restricted and not _are_labels(target, x):
            target = None
        kept = len(x) if kept is None else kept
        explained = run = 0
        if self._wants_maps:
            explained = sum(position < self.saliency_samples for position in positions[:kept])
            # The same number on all processes: what the first of them needs.
            run = sum(position - position % processes < self.saliency_samples for position in positions)
        # `Trainer.validate` makes inference tensors, which no gradient can pass. Out here copies are ordinary tensors,
        # those of the buffers (a filter cached by `.eval()`, say) included.
        with torch.inference_mode(False), torch.no_grad(), preserved_random_state(x.device):
            x = ordinary(x)
            target = None if target is None else ordinary(target)
            base_logits = None if base_logits is None else ordinary(base_logits)
            with preserved_buffers(module_of(module)):
                self._measure(network_for, x, base_logits, target, kept, explained, run)

    def _measure(
        self,
        network_for: Callable[[int], Network],
        x: Tensor,
        base_logits: Tensor | None,
        target: Tensor | None,
        kept: int,
        explained: int,
        run: int,
    ) -> None:
        network = network_for(len(x))
        if base_logits is not None and self._explainable is None:
            self._explainable = _is_explainable(base_logits, x)
        # With maps for all samples one pass is enough, once it is known that there can be maps and what the logits are.
        if run == len(x) and self._explainable and (base_logits is not None or target is None):
            outputs = evaluate_orbit(
                network,
                x,
                self.action,
                base_logits=base_logits,
                saliency=self.saliency,
                target=_explained_class(target, base_logits, x),
                max_batch=self._limit(x),
            )
            self._feed(replace(outputs, saliency=None, orbit_saliency=None), target, kept)
            self._feed(outputs, target, explained)
            return
        outputs = evaluate_orbit(network, x, self.action, base_logits=base_logits, max_batch=self._limit(x))
        self._feed(outputs, target, kept)
        self._explainable = _is_explainable(outputs.logits, x)
        if run and (self._explainable or not self.measures.restricted):
            labels = _first(target, run, len(x))
            x, first = x[:run], OrbitOutputs(outputs.logits[:run], outputs.orbit_logits[:, :run])
            chosen = _explained_class(labels, first.logits, x)
            elements = list(range(1, len(self.action)))
            limit = self._limit(x)
            maps = add_saliency(first, network_for(run), x, self.action, elements, self.saliency, chosen, limit)
            self._feed(maps, labels, explained)

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
        self.measures.update(first, _first(target, samples, len(outputs.logits)))

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
    if target is None or not _are_labels(target, x):
        return None
    if logits is None:
        return target
    # A label that names no output (to be ignored, or 1 beside a single logit) explains nothing.
    named = (target >= 0) & (target < by_class(logits).shape[1])
    return torch.where(named, target, predicted_class(logits))


def _first(target: Tensor | None, samples: int, of: int) -> Tensor | None:
    """The labels of the first samples; what is not one a sample is left for the measures to refuse, not cut to fit."""
    return target[:samples] if target is not None and target.shape[:1] == (of,) else target


def _are_labels(target: Tensor, x: Tensor) -> bool:
    """One class a sample, not the numbers of a regression or of labels that do not exclude each other."""
    return target.shape == x.shape[:1] and not target.is_floating_point() and not target.is_complex()


def evaluate_invariance(
    network: nn.Module | Callable[[Tensor], Tensor],
    batches: Iterable[Any],
    action: Action,
    *,
    measures: Measures | None = None,
    saliency: SaliencyLike | None = None,
    saliency_samples: int = 64,
    max_batch: int | None = None,
    progress: bool = True,
) -> dict[str, Estimate]:
    r"""Measures a network's invariance on a data set, without a Trainer.

    The network is put in eval mode for the time; modes, buffers, torch's random streams and gradients are as before.

    Args:
        network: from a batch of inputs to logits ``(B, C)``; one output a sample ``(B,)`` for logit errors and maps, or
            any other for the logit errors alone.
        batches: batches of inputs ``x`` or of pairs ``(x, target)``, a `torch.utils.data.DataLoader` for instance.
            They are moved to the device of the network's parameters.
        action: the group.
        measures: names of measures (``"logit_invariance_error"``, ...), or torchmetrics metrics under names of your
            own; all that the outputs and labels allow if None.
        saliency: how to compute saliency maps; ``Gradient(dither=1e-3)`` if None, whatever the action.
        saliency_samples: how many samples, from the first, get saliency maps; they are the costly part.
        max_batch: the most samples in one forward; as many as the batch has if None.
        progress: whether to show a progress bar.

    Returns:
        An `Estimate` (value and standard error over samples) for each measure.

    Raises:
        ValueError: if the group cannot act on a batch, there is no batch, or an argument is none of what is expected.

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
    evaluator = InvarianceEvaluator(action, measures, saliency, saliency_samples, max_batch)
    module = module_of(network)
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
    if device is not None and device.type == "meta":
        raise ValueError("Expected `network` to hold values but got one on the meta device.")
    # The random streams here too: a DataLoader draws from torch's when it is run through.
    with evaluation_mode(module), preserved_random_state(device or torch.device("cpu")):
        for batch in tqdm(batches, desc="Invariance", unit="batch", disable=not progress):
            x, target = _input_and_target(batch, device)
            if not evaluator.samples:
                action.verify(x)
            evaluator.update(lambda samples: network, x, target=target, module=module)
    if not evaluator.samples:
        raise ValueError("Expected `batches` to hold at least one sample but got none.")
    results = evaluator.compute()
    unseen = [name for name in evaluator.measures.names if name not in results]
    if unseen and not evaluator.measures.restricted:
        raise ValueError(
            f"Expected `batches` to have what {unseen} need (labels, or samples with maps) but it has not."
        )
    return results


def _input_and_target(batch: Any, device: torch.device | None) -> tuple[Tensor, Tensor | None]:
    x, target = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)
    if isinstance(x, (tuple, list)) and len(x) == 1:
        (x,) = x
    if not isinstance(x, Tensor) or not (target is None or isinstance(target, Tensor)):
        raise ValueError(
            f"Expected `batches` to give tensors x or pairs (x, target) of tensors but got {type(batch).__name__}."
        )
    check_not_meta("batches", x)
    return x.to(device), None if target is None else target.to(device)
