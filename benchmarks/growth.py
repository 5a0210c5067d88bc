"""How cost grows: with the group's order, and with the number of samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measures import OF_LOGITS
from benchmarks.networks import CLASSES, Batches, Classifier, convolutional, trainer_on
from benchmarks.pairs import Setting, clocked
from lightning_invariance import CyclicTranslations, Gradient, InvarianceRegularizer, OrbitOutputs, evaluate_invariance
from lightning_invariance.comparison._times import training_step_seconds
from lightning_invariance.evaluation._measures import MEASURES

Curves = dict[str, dict[str, list[float]]]

SHAPE = (1, 16, 64)
BATCH = 8
MAX_BATCH = 32
_STEPS: dict[str, dict[str, Any]] = {
    "all elements": {},
    f"max_batch={MAX_BATCH}": {"max_batch": MAX_BATCH},
    "elements_per_step=1": {"elements_per_step": 1},
}


def orders(setting: Setting) -> list[int]:
    """|G|, the identity included."""
    return [2, 4] if setting.quick else [2, 4, 8, 16, 32, 64]


def with_the_group(setting: Setting, rounds: int) -> Curves:
    """Time and peak memory of a regularised step and of a monitored batch, for translations by ever finer steps."""
    curves: Curves = {
        "seconds a step": {},
        "MiB a step": {},
        "seconds a monitored batch": {},
        "MiB a monitored batch": {},
    }

    def add(panel: str, curve: str, value: float) -> None:
        curves[panel].setdefault(curve, []).append(value)

    for order in orders(setting):
        for name, options in _STEPS.items():
            regularizer = InvarianceRegularizer(CyclicTranslations(order), 0.1, **options)
            step = partial(
                training_step_seconds,
                Classifier(convolutional(1)),
                [regularizer],
                Batches(setting, BATCH, SHAPE),
                partial(trainer_on, setting),
                setting.size(5, 1),
            )
            add("MiB a step", name, peak_memory(step, setting))
            add("seconds a step", name, median(step() for _ in range(rounds)))
        for name, max_batch in (("as many as the batch", None), (f"max_batch={MAX_BATCH}", MAX_BATCH)):
            network = convolutional(1).to(setting.device)
            batch = [(setting.rand(BATCH, *SHAPE), setting.labels(BATCH, CLASSES))]
            work = partial(
                evaluate_invariance,
                network,
                batch,
                CyclicTranslations(order),
                saliency=Gradient(),
                max_batch=max_batch,
                progress=False,
            )
            add("MiB a monitored batch", name, peak_memory(work, setting))
            timed = clocked(work, setting, at_least=0.1)
            add("seconds a monitored batch", name, median(timed() for _ in range(rounds)))
    return curves


def sample_counts(setting: Setting) -> list[int]:
    """How many samples a metric has seen."""
    return [100, 200] if setting.quick else [100, 1_000, 10_000, 100_000]


def with_the_samples(setting: Setting) -> Curves:
    """Bytes that a metric keeps and sends, and the time of a synchronisation with the states of two processes."""
    curves: Curves = {"bytes": {}, "seconds a synchronisation": {}}
    for count in sample_counts(setting):
        logits = setting.rand(4, count, CLASSES)
        outputs = OrbitOutputs(logits[0], logits[1:])
        target = setting.labels(count, CLASSES)
        for name in OF_LOGITS:
            metric = MEASURES[name].make().to(setting.device)
            labels = {"target": target} if "accuracy" in name else {}
            metric.update(logits=outputs.logits, orbit_logits=outputs.orbit_logits, **labels)
            sent = sum(_bytes(getattr(metric, state)) for state in metric._defaults)
            curves["bytes"].setdefault(name, []).append(float(sent))

            def synchronise(metric: Any = metric) -> None:
                metric.sync(dist_sync_fn=_two_processes, distributed_available=lambda: True)
                metric.unsync()

            timed = clocked(synchronise, setting, at_least=0.02)
            curves["seconds a synchronisation"].setdefault(name, []).append(median(timed() for _ in range(5)))
    return curves


def _two_processes(state: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
    """What gathering from another process that holds the same gives."""
    return [state, state.clone()]


def _bytes(state: torch.Tensor | Sequence[torch.Tensor]) -> int:
    tensors = [state] if isinstance(state, torch.Tensor) else state
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_memory(work: Callable[[], Any], setting: Setting) -> float:
    """The most memory in MiB that tensors made by `work` take up at a time."""
    work()  # what is made once is not counted
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setting.device)
        before = torch.cuda.memory_allocated(setting.device)
        work()
        return float(torch.cuda.max_memory_allocated(setting.device) - before) / 2**20
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it prints that it starts, and that it stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20
