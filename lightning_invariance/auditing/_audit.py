"""Audits a network: several groups in one pass over the data, and one page of what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from tqdm.auto import tqdm

from lightning_invariance._checks import check_count, check_iterable
from lightning_invariance._isolation import evaluation_mode, preserved_random_state
from lightning_invariance._locate import InputSpec, LogitsOf, Place
from lightning_invariance._messages import warn
from lightning_invariance._output_action import OutputActions
from lightning_invariance.actions import Action, Flow
from lightning_invariance.actions._flow import as_action
from lightning_invariance.auditing._conditions import Asked, Condition, read_conditions
from lightning_invariance.auditing._data import Data, data_of
from lightning_invariance.auditing._group_audit import BY_ELEMENT, GroupAudit, GroupWork
from lightning_invariance.auditing._interruption import Interruption
from lightning_invariance.auditing._result import Audit
from lightning_invariance.evaluation import MEASURES
from lightning_invariance.evaluation._batches import device_of
from lightning_invariance.evaluation._classes import PerClassOption
from lightning_invariance.saliency import SaliencyLike

#: How many of the worst samples are kept.
_WORST = 4


def audit(
    module: nn.Module,
    batches: Iterable[Any] | LightningDataModule,
    actions: Mapping[str, Action | Flow] | Action | Flow,
    *,
    conditions: Sequence[str] = (),
    measures: Sequence[str] = (),
    samples: int = 64,
    output_action: OutputActions = None,
    saliency: SaliencyLike | None = None,
    input: InputSpec = None,
    target: Place | None = None,
    logits: LogitsOf | None = None,
    per_class: PerClassOption | None = None,
    max_batch: int | None = None,
    progress: bool = True,
) -> Audit:
    """Audits what a network is invariant to, and where it breaks: several groups in one pass over the data.

    For each group: the measures with standard errors, and of each class; the errors over the size of the motion; the
    samples that move the output farthest, with their saliency maps over the orbit; whether the numbers can be trusted
    (`check_setup`) and which layer breaks (`evaluate_layers`). What cannot be computed is left out, and the result
    says why. Samples with NaN in some pose are in no measure of the group; no condition on such a measure holds.

    The network is run in eval mode and is left as it was, random streams too. Ctrl-C stops after the batch, or the
    part, that is being measured, and what was done until then is returned: `Audit.complete` is False then, and no
    condition passes that rests on fewer samples than there are. A second Ctrl-C stops at once.

    Args:
        module: the network; see `evaluate_invariance` for how it is called.
        batches: a `torch.utils.data.DataLoader` for instance, which is run through once; or a LightningDataModule,
            whose `test_dataloader` is taken, or `val_dataloader` where there is none.
        actions: the groups by name, or a single one.
        conditions: what is to hold, such as ``"orbit_share < 0.01"`` or ``"worst_case_orbit_accuracy > 0.9 *
            accuracy"``: measures, numbers, ``+ - * /``, parentheses, ``< <= > >=``, ``and``, ``or``. Of each group, or
            of one that is named in front, ``"C4: orbit_share < 0.01"``. Names of outputs stand before a dot
            (``"forces.relative_equivariance_error < 0.1"``).
        measures: names of measures besides those that make sense for outputs and labels anyway; those that conditions
            name are measured too.
        samples: how many samples, from the first, are looked at closer: their saliency maps, the layers, the setup; 0
            for none of these. ``"saliency_invariance_similarity"``, ``"selectivity"``, ``"jacobian_spectral_norm"`` and
            ``"lie_derivative_error"`` are measured on these samples alone; the page and `GroupAudit.counts` say how
            many that were.
        output_action: how the output moves when the input does, for all groups, as for `evaluate_invariance`.
        saliency: how to compute saliency maps; ``Gradient(dither=1e-3)`` if None.
        input: where the network's arguments hold the tensor that the group acts on.
        target: where the batch holds the labels.
        logits: a function from the network's output to its logits.
        per_class: whether each measure is given of each class too, as for `evaluate_invariance`; None for wherever
            there are classes.
        max_batch: the most samples in one forward; as many as the batch has if None.
        progress: whether to show progress bars.

    Returns:
        An `Audit`: a page (`Audit.save`), JSON, a DataFrame, and whether all conditions hold.

    Raises:
        ValueError: if a condition cannot be read or names what there is not; if a group cannot act on a batch; if there
            is no batch; if input or logits cannot be found or several tensors could be meant; if an argument is none of
            what is expected.
        KeyboardInterrupt: if it is stopped before anything was measured.

    Example:
        >>> import torch
        >>> from lightning_invariance import C4, CyclicTranslations, audit
        >>> network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 3))
        >>> batches = [(torch.randn(16, 1, 8, 8), torch.arange(16) % 3)]
        >>> groups = {"turns": C4(), "shifts": CyclicTranslations(4)}
        >>> result = audit(network, batches, groups, conditions=["orbit_share < 0.01"], progress=False)
        >>> result.passed
        True
        >>> print(result.conditions[0])
        turns: orbit_share < 0.01 holds (orbit_share = ...)
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"Expected `module` to be a torch.nn.Module but got {module!r}.")
    groups = _groups_of(actions)
    check_count("samples", samples, minimum=0)
    check_iterable("measures", measures, "names of measures")
    unknown = [name for name in measures if name not in MEASURES]
    if unknown:
        raise ValueError(f"Expected `measures` to be among {list(MEASURES)} but got {unknown}.")
    outputs = list(output_action) if isinstance(output_action, Mapping) else None
    names = list(MEASURES) if outputs is None else [f"{output}/{name}" for output in outputs for name in MEASURES]
    asked = read_conditions(conditions, list(groups), names)
    more = dict.fromkeys(["accuracy", *measures, *(_measure(name) for each in asked for name in each.names)])
    options: dict[str, Any] = {
        "output_action": output_action,
        "saliency": saliency,
        "saliency_samples": samples,
        "sensitivity_samples": samples,
        "input": input,
        "target": target,
        "logits": logits,
        "max_batch": max_batch,
        "per_class": True if per_class is None else per_class,
        "keep": None if outputs is not None else "worst",
        "n": _WORST,
        "more": tuple(MEASURES[name] for name in more),
        "besides": BY_ELEMENT,
    }
    own_device = device_of(module)
    device = own_device or torch.device("cpu")
    works = [
        GroupWork(name, module, action, own_device, options, samples, per_class is None, saliency is None)
        for name, action in groups.items()
    ]
    with data_of(batches, module, device) as data, Interruption() as interruption:
        # The random streams here too: a DataLoader draws from torch's when it is run through.
        with evaluation_mode(module), preserved_random_state(device):
            first, complete = _measure_all(works, data, samples, interruption, progress)
        stopped = "" if complete else "The audit was stopped before all batches were measured."
        if samples and complete:
            for work, part in tqdm(
                [(work, part) for work in works for part in ("setup", "layers")],
                desc="Setup and layers",
                unit="part",
                disable=not progress,
            ):
                if interruption.asked:
                    stopped = "The audit was stopped before this was looked at."
                    break
                work.look_closer(part, first)
    if not works[0].samples_measured:
        if interruption.asked:
            raise KeyboardInterrupt
        raise ValueError("audit: expected `batches` to hold at least one sample but got none.")
    found = {work.name: work.result(stopped) for work in works}
    if stopped:
        warn(f"audit: {stopped[0].lower()}{stopped[1:]} What was done until then is in the result.")
    return Audit(
        network=type(module).__name__,
        parameters=sum(each.numel() for each in module.parameters() if not nn.parameter.is_lazy(each)),
        data=data.source,
        samples=works[0].samples_measured,
        looked_at=min(samples, works[0].samples_measured),
        groups=found,
        conditions=tuple(_judged(asked, found, "" if complete else stopped)),
        stopped=stopped,
    )


def _groups_of(actions: Any) -> dict[str, Action]:
    if isinstance(actions, (Action, Flow)):
        return {type(actions).__name__: as_action(actions)}
    if not isinstance(actions, Mapping) or not actions:
        raise ValueError(
            f"Expected `actions` to map names to Actions or Flows, such as {{'turns': C4()}}, at least one, but got "
            f"{actions!r}."
        )
    wrong = [name for name in actions if not isinstance(name, str) or not name.strip()]
    if wrong:
        raise ValueError(f"Expected `actions` to have names that are texts but got {wrong}.")
    blank = [name for name in actions if name != " ".join(name.split())]
    if blank:
        raise ValueError(
            f"Expected `actions` to have names without blanks at their ends, and single ones between, but got {blank}."
        )
    return {name: as_action(action) for name, action in actions.items()}


def _measure(name: str) -> str:
    return name.rpartition("/")[2]


def _measure_all(
    works: Sequence[GroupWork], data: Data, samples: int, interruption: Interruption, progress: bool
) -> tuple[list[Any], bool]:
    """Measures all groups, batch by batch; gives the first batches, and whether it came to the end."""
    first: list[Any] = []
    held = 0
    for batch in tqdm(
        _until(interruption, data.batches),
        desc="Audit",
        unit="batch",
        total=_length(data.batches),
        disable=not progress,
    ):
        batch = data.prepared(batch)
        if not works[0].samples_measured:
            for work in works:  # before any of them has worked
                work.check(batch)
        count = 0
        for work in tqdm(works, desc="Groups", unit="group", leave=False, disable=not progress or len(works) < 2):
            count = work.update(batch)
        if count and held < samples:
            first.append(batch)
            held += count
    return first, not interruption.asked


def _until(interruption: Interruption, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, until somebody wants to stop."""
    iterator = iter(batches)
    while not interruption.asked:
        try:
            yield next(iterator)
        except StopIteration:
            return
        except Exception:
            # Ctrl-C reaches the processes that load data too, and ends them.
            if not interruption.asked:
                raise


def _length(batches: Iterable[Any]) -> int | None:
    count: Callable[[Any], int] = len
    try:
        return count(batches)
    except TypeError:
        return None


def _judged(asked: Sequence[Asked], found: Mapping[str, GroupAudit], stopped: str) -> Iterator[Condition]:
    for each in asked:
        for group in each.of(list(found)):
            yield each.judged(group, found[group].values, stopped, found[group].not_finite)
