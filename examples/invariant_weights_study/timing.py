"""What training and inference cost over DA's, timed in turns: a machine that slows down slows all methods."""

from __future__ import annotations

import json
from itertools import pairwise
from statistics import median
from time import perf_counter

import lightning as L
import torch
from torch import nn

from examples.invariant_weights_study.data import Images
from examples.invariant_weights_study.methods import METHODS, callbacks_of, network_of
from examples.invariant_weights_study.settings import BATCH, GROUPS, MAIN, Settings
from examples.invariant_weights_study.training import make_trainer
from examples.paper.data import loader
from examples.paper.models import Classifier
from examples.paper.runs import quiet, write_whole

PAIR_METHODS = ("DA", "project", "project + DA", "merge")
MAIN_METHODS = (*PAIR_METHODS, "IR, ν = 1", "pooled", "escnn, as many parameters", "escnn, as many channels")
WARM_UP, STEPS, ROUNDS = 3, 12, 5

Times = dict[str, dict[str, float]]


def times_of(network: str, group: str, settings: Settings) -> Times:
    """For each method the time of a training step and of inference over DA's, and the milliseconds of both."""
    path = settings.folder / "times" / f"{network}-{group}.json"
    if not path.exists():
        quiet()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(_measured(network, group, settings), indent=1))
    times: Times = json.loads(path.read_text(encoding="utf-8"))
    return times


def _measured(network: str, group: str, settings: Settings) -> Times:
    names = MAIN_METHODS if ("MNIST", network, group) == MAIN else PAIR_METHODS
    rounds = 1 if settings.quick else ROUNDS
    data = Images("MNIST", network, GROUPS[group], settings)
    seconds: dict[str, dict[str, list[float]]] = {name: {"step": [], "inference": []} for name in names}
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            trained = network_of(name, network, group)
            seconds[name]["step"].append(_step(name, trained, group, data, BATCH[network]))
            seconds[name]["inference"].append(_inference(trained, data))
    return {
        name: {
            kind: median(own / plain for own, plain in zip(each[kind], seconds["DA"][kind], strict=True))
            for kind in each
        }
        | {f"{kind}, ms": 1000 * median(each[kind]) for kind in each}
        for name, each in seconds.items()
    }


class _StepClock(L.Callback):
    """When each training step begins: from one to the next is all that a step brings with it."""

    def __init__(self) -> None:
        self.began: list[float] = []

    def on_train_batch_start(self, *args: object) -> None:
        self.began.append(perf_counter())


def _step(name: str, network: nn.Module, group: str, data: Images, batch: int) -> float:
    clock = _StepClock()
    callbacks = [clock, *callbacks_of(METHODS[name], GROUPS[group], WARM_UP + STEPS + 1)]
    trainer = make_trainer(callbacks, max_steps=WARM_UP + STEPS + 1, max_epochs=-1, limit_val_batches=0)
    trainer.fit(Classifier(network, 1e-3, annealed=True), loader(data.train, batch, shuffle=True))
    return median(after - before for before, after in pairwise(clock.began[WARM_UP:]))


@torch.no_grad()
def _inference(network: nn.Module, data: Images) -> float:
    network.eval()
    x = data.example.repeat(16, 1, 1, 1)
    seconds = []
    for _ in range(WARM_UP + STEPS):
        began = perf_counter()
        network(x)
        seconds.append(perf_counter() - began)
    return median(seconds[WARM_UP:])
