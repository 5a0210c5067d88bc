"""One of two processes of a Trainer; run as a script, it trains and measures under one strategy after another.

``python regimes_worker.py FOLDER`` with the environment that Lightning reads (``LOCAL_RANK`` and others). Each
result goes to ``FOLDER/<name>-<rank>.pt`` as soon as it is there.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from helpers import CLASSES, SIDE, Images, loader, made, trainer_for
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from oracles import WEIGHT, Classifier, Lie, Saliency, Stacked, WithTerm, convnet, dropping, logit_term, noisy, rotated
from steps import SHADOWED, Adversaries, AdversariesWithTerm, logged, with_term
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lightning_invariance import (
    C4,
    Gradient,
    InvarianceMonitor,
    InvarianceRegularizer,
    LogitInvarianceError,
    OrbitAugmentation,
    RotationFlow,
    SensitivityMonitor,
)

# Strategies ------------------------------------------------------------------------------------------------------


class ShardedOnCPU(FSDPStrategy):
    """Without an accelerator torch shards only what it is told the device of, and Lightning does not tell."""

    def _setup_model(self, model: nn.Module) -> FullyShardedDataParallel:
        return FullyShardedDataParallel(module=model, device_id=torch.device("cpu"), **self.kwargs)


ddp = DDPStrategy


def ddp_unused() -> Any:
    return DDPStrategy(find_unused_parameters=True)


def ddp_static() -> Any:
    return DDPStrategy(static_graph=True)


fsdp = ShardedOnCPU


def fsdp_wrapped() -> Any:
    return ShardedOnCPU(auto_wrap_policy={nn.Linear})


def fsdp2() -> Any:
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)


# Modules ---------------------------------------------------------------------------------------------------------


class Sharding(Classifier):
    """As a module for FSDP2 has to."""

    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        for layer in self.model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)


class Spare(Classifier):
    """A layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Probed(Classifier):
    """A network that the step calls and whose output it does not use: the term alone trains it."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        px = self.probe(batch[0])
        return F.cross_entropy(self(batch[0]), batch[1]) + self.term_of_probe(px, batch[0])

    def term_of_probe(self, px: Tensor, x: Tensor) -> Tensor | float:
        return 0.0


class ProbedWithTerm(Probed):
    def term_of_probe(self, px: Tensor, x: Tensor) -> Tensor | float:
        return WEIGHT * logit_term(px, [self.probe(each) for each in rotated(x)])


def on_and_off(step: int) -> float:
    return WEIGHT * (step % 2)


class ProbedWithTermOnAndOff(ProbedWithTerm):
    def term_of_probe(self, px: Tensor, x: Tensor) -> Tensor | float:
        return super().term_of_probe(px, x) if self.trainer.global_step % 2 else 0.0


class Normalised(Classifier):
    def __init__(self) -> None:
        super().__init__(convnet)


class NoisyAndSmooth(Classifier):
    """With running statistics and dropout."""

    def __init__(self) -> None:
        super().__init__(lambda: noisy(0.5, nn.Tanh))


class Dropping(Classifier):
    def __init__(self) -> None:
        super().__init__(dropping)


class CompiledInPlace(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.model.compile(backend="eager")


# Trained as by hand ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A module with regularizers, one after another; one with the term by hand; the first without a regularizer."""

    plain: Callable[[], LightningModule]
    oracle: Callable[[], LightningModule]
    strategy: Callable[[], Any] = ddp
    regularizers: tuple[dict[str, Any], ...] = ({},)
    options: dict[str, Any] = field(default_factory=dict)
    strategy_without: Callable[[], Any] | None = None


ACCUMULATED = {"accumulate_grad_batches": 2, "max_epochs": 2}
CLIPPED = {"gradient_clip_val": 0.05}
CLIPPED_BY_VALUE = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
#: Also with extra forwards that are run again in the backward, of so many samples at most.
LIGHT = ({}, {"max_batch": 3})
NAMED = {"network": "d", "backward_call": 0, "call": 0}

CELLS: dict[str, Cell] = {
    "ddp, static graph, clipping": Cell(Classifier, WithTerm, ddp_static, LIGHT, CLIPPED),
    "ddp, unused parameters": Cell(Spare, with_term(Spare), ddp_unused),
    "ddp, parameters of the term alone": Cell(
        Probed, ProbedWithTerm, regularizers=({"network": "probe"},), strategy_without=ddp_unused
    ),
    "ddp, parameters of a term that is switched on and off": Cell(
        Probed, ProbedWithTermOnAndOff, ddp_unused, ({"network": "probe", "weight": on_and_off},)
    ),
    "ddp, accumulation": Cell(NoisyAndSmooth, with_term(NoisyAndSmooth), options=ACCUMULATED),
    "ddp, batch normalisation and dropout, clipping by value": Cell(
        NoisyAndSmooth, with_term(NoisyAndSmooth), ddp, LIGHT, CLIPPED_BY_VALUE
    ),
    "ddp, bf16-true": Cell(Classifier, with_term(Classifier, Stacked), options={"precision": "bf16-true"}),
    # Half precision rounds other shapes otherwise, so that all extra forwards have to be in one.
    "ddp, bf16-mixed": Cell(
        Classifier, with_term(Classifier, Stacked), ddp, ({}, {"max_batch": 100}), {"precision": "bf16-mixed"}
    ),
    "ddp, compiled network": Cell(CompiledInPlace, WithTerm, ddp, LIGHT),
    "ddp, two optimisers": Cell(Adversaries, AdversariesWithTerm, ddp_unused, (NAMED, {**NAMED, "max_batch": 3})),
    "ddp, saliency": Cell(Normalised, with_term(Normalised, Saliency), regularizers=({"penalty": "saliency"},)),
    "ddp, saliency, static graph": Cell(
        Normalised, with_term(Normalised, Saliency), ddp_static, ({"penalty": "saliency"},)
    ),
    "ddp, Lie derivatives": Cell(
        NoisyAndSmooth, with_term(NoisyAndSmooth, Lie), regularizers=({"action": RotationFlow(window=None)},)
    ),
    "fsdp": Cell(Classifier, WithTerm, fsdp, LIGHT),
    "fsdp, wrapped layers, named network, accumulation": Cell(
        Classifier, WithTerm, fsdp_wrapped, ({"network": "model"},), ACCUMULATED
    ),
    "fsdp, wrapped layers, clipping by value": Cell(Classifier, WithTerm, fsdp_wrapped, LIGHT, CLIPPED_BY_VALUE),
    "fsdp, wrapped layers, bf16-mixed": Cell(
        Classifier, with_term(Classifier, Stacked), fsdp_wrapped, options={"precision": "bf16-mixed"}
    ),
    "fsdp, wrapped layers, dropout": Cell(Dropping, with_term(Dropping), fsdp_wrapped, LIGHT),
    "fsdp2, clipping": Cell(Sharding, with_term(Sharding), fsdp2, LIGHT, CLIPPED),
    "fsdp2, bf16-mixed": Cell(Sharding, with_term(Sharding, Stacked), fsdp2, options={"precision": "bf16-mixed"}),
    "fsdp2, bf16-true": Cell(Sharding, with_term(Sharding, Stacked), fsdp2, options={"precision": "bf16-true"}),
    "fsdp2, accumulation": Cell(Sharding, with_term(Sharding), fsdp2, options=ACCUMULATED),
}


#: Strategies redirect ``forward`` themselves.
LEFT_BEHIND = SHADOWED - {"forward"}


class Weights(Callback):
    """What this process holds of the parameters at the end of the training, and how many steps there were."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        self.steps = 0

    def on_train_batch_start(self, *args: Any) -> None:
        self.steps += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, value in pl_module.named_parameters():
            local = value.to_local() if hasattr(value, "to_local") else value
            self.found[name] = local.detach().clone()


def trained(
    make: Callable[[], LightningModule], callbacks: list[Callback], data: Any = None, val: Any = None, **options: Any
) -> dict[str, Tensor]:
    weights = Weights()
    module = made(make)
    settings = {"max_epochs": 1, "devices": 2, "strategy": "ddp", **options}
    trainer_for([*callbacks, weights], **settings).fit(module, data or loader(24), val)
    assert not LEFT_BEHIND & set(module.__dict__)
    return weights.found


def compared(cell: Cell) -> dict[str, Any]:
    regularizers = [InvarianceRegularizer(**{"action": C4(), "weight": WEIGHT, **each}) for each in cell.regularizers]
    without = (cell.strategy_without or cell.strategy)()
    return {
        "regularized": [
            trained(cell.plain, [regularizer], strategy=cell.strategy(), **cell.options) for regularizer in regularizers
        ],
        "by hand": trained(cell.oracle, [], strategy=cell.strategy(), **cell.options),
        "plain": trained(cell.plain, [], strategy=without, **cell.options),
    }


# Measured as by one process --------------------------------------------------------------------------------------


class OnlyOnTheFirst(IterableDataset[Any]):
    """Samples on the first process, none on the second; its length is not known beforehand."""

    def __iter__(self) -> Iterator[Any]:
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        yield from (Images(6, 4) if rank == 0 else [])


def only_on_the_first() -> DataLoader[Any]:
    return DataLoader(OnlyOnTheFirst(), batch_size=4)


def monitor(**options: Any) -> InvarianceMonitor:
    return InvarianceMonitor(C4(), saliency=Gradient(), **options)


@dataclass(frozen=True)
class Measured:
    """A monitor of untrained weights, and how many values it logs."""

    count: int
    monitor: Callable[[], InvarianceMonitor | SensitivityMonitor]
    data: Callable[[], Any] = lambda: loader(21)  # does not divide by two: a sampler repeats one
    method: str = "validate"
    make: Callable[[], LightningModule] = NoisyAndSmooth
    strategy: Callable[[], Any] = ddp

    def run(self, processes: int) -> dict[str, Any]:
        watching = self.monitor()
        several = {"devices": 2, "strategy": self.strategy()} if processes > 1 else {}
        runner = trainer_for([watching], max_epochs=1, **several)
        module = made(self.make if processes > 1 or self.make is not Sharding else Classifier)
        if self.method == "fit":
            module.lr = 0.0  # two processes take other steps than one
            runner.fit(module, loader(8), self.data())
        else:
            getattr(runner, self.method)(module, self.data(), verbose=False)
        return {
            "logged": {name: value for name, value in logged(runner).items() if name.startswith(("val", "test"))},
            "records": [
                {name: (each.value, each.standard_error) for name, each in record.measures.items()}
                for record in watching.history
            ],
        }


MEASURED: dict[str, Measured] = {
    "validated": Measured(10, monitor),
    "tested, with few maps": Measured(10, lambda: monitor(saliency_samples=9), method="test"),
    "several loaders, with maps in the first batch": Measured(
        20, lambda: monitor(saliency_samples=3), lambda: [loader(21), loader(7, seed=3)]
    ),
    "by element": Measured(3, lambda: InvarianceMonitor(C4(), {"li": LogitInvarianceError(reduction="element")})),
    "a process whose only sample is a repeat": Measured(10, monitor, lambda: loader(1)),
    "no batch on the second": Measured(10, monitor, only_on_the_first),
    "no batch of the first loader on the second": Measured(
        20, lambda: monitor(saliency_samples=5), lambda: [only_on_the_first(), loader(8)]
    ),
    "sensitivity": Measured(4, lambda: SensitivityMonitor(C4(), layers=True)),
    "sensitivity of few": Measured(2, lambda: SensitivityMonitor(C4(), samples=9), method="test"),
    "sensitivity of one": Measured(2, lambda: SensitivityMonitor(C4(), samples=1)),
    "sensitivity, no batch of the first loader on the second": Measured(
        4, lambda: SensitivityMonitor(C4()), lambda: [only_on_the_first(), loader(8)]
    ),
    # All processes have to run sharded networks equally often. With 17 samples, one ends with a repeated one.
    **{
        f"{name}, {case}": Measured(
            count,
            lambda options=options: monitor(**options),
            lambda samples=samples: loader(samples, seed=2),
            "fit",
            make,
            strategy,
        )
        for name, make, strategy, case, count, samples, options in [
            ("fsdp", Classifier, fsdp_wrapped, "a batch of repeats alone", 9, 17, {"saliency_samples": 0}),
            ("fsdp", Classifier, fsdp_wrapped, "maps on one process alone", 10, 16, {"saliency_samples": 1}),
            ("fsdp", Classifier, fsdp_wrapped, "maps of a part of a batch", 10, 17, {"saliency_samples": 5}),
            ("fsdp2", Sharding, fsdp2, "a batch of repeats alone, with maps", 10, 17, {}),
            ("fsdp2", Sharding, fsdp2, "maps on one process alone", 10, 16, {"saliency_samples": 1}),
            ("fsdp2", Sharding, fsdp2, "maps up to the repeats", 10, 17, {"saliency_samples": 16, "max_batch": 3}),
        ]
    },
}


def watched() -> dict[str, Any]:
    """Trained with and without monitors, where one loader has no batch on the second process."""
    watching, both = monitor(), []
    for callbacks in ([watching, SensitivityMonitor(C4())], []):
        everyone = [InvarianceRegularizer(C4(), WEIGHT), *callbacks]
        both.append(trained(NoisyAndSmooth, everyone, val=[loader(8, seed=2), only_on_the_first()], max_epochs=2))
    return {"monitored": both[0], "unmonitored": both[1], "epochs": [record.epoch for record in watching.history]}


def drawn() -> dict[str, Any]:
    """What each process draws for one image."""
    image, seen, orbits = Images(1)[0][0], [], []

    class Seeing(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(batch[0].clone())
            return super().training_step(batch, batch_idx)

    def noting(logits: Tensor, orbit_logits: Tensor) -> Tensor:
        orbits.append(orbit_logits.detach())
        return (logits - orbit_logits).square().mean()

    data = loader(24, pack=lambda x, y: (image, 0))
    trained(Seeing, [OrbitAugmentation(C4())], data)
    weights = trained(Classifier, [InvarianceRegularizer(C4(), 1.0, noting, elements_per_step=1)], data)
    return {"images": torch.cat(seen), "orbits": torch.cat(orbits), "weights": weights}


# Refused ---------------------------------------------------------------------------------------------------------


class EmptyOnTheSecond(LightningDataModule):
    """As on the first process alone, of a length that is known: the second process then skips validation."""

    def __init__(self, allowed: bool) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = allowed

    def train_dataloader(self) -> Any:
        return loader(24)

    def val_dataloader(self) -> Any:
        # A sampler of its own, which Lightning leaves as it is.
        return DataLoader(Images(6, 4), 4, sampler=range(6 if self.trainer.global_rank == 0 else 0))

    test_dataloader = val_dataloader


class Allowing(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True


@dataclass(frozen=True)
class Refused:
    """What is refused before the first step on all processes, and what the error says."""

    says: tuple[str, ...]
    callback: Callable[[], Callback]
    make: Callable[[], LightningModule] = Classifier
    strategy: Callable[[], Any] = ddp
    method: str = "fit"
    allowed: bool = False

    def run(self) -> dict[str, Any]:
        steps, error, module = Weights(), None, made(self.make)
        options = {"devices": 2, "strategy": self.strategy(), "use_distributed_sampler": False}
        trainer = trainer_for([steps, self.callback()], **options)
        try:
            getattr(trainer, self.method)(module, datamodule=EmptyOnTheSecond(self.allowed))
        except ValueError as refusal:
            error = str(refusal)
        return {"error": error, "steps": steps.steps}


def by_maps() -> Callback:
    return InvarianceRegularizer(C4(), penalty="saliency")


def by_lie_derivatives() -> Callback:
    return InvarianceRegularizer(RotationFlow())


THIRD = ("expected no sharded parameters for the Lie derivatives of RotationFlow",)
SECOND = ("expected no sharded parameters for penalty='saliency'",)
WHOLE = ("SensitivityMonitor: expected a strategy that keeps the network's parameters whole",)
EMPTY = "_with_multiple_devices` to be False in {} with several processes but got True"
REFUSED: dict[str, Refused] = {
    "saliency, fsdp": Refused(SECOND, by_maps, Classifier, fsdp_wrapped),
    "saliency, fsdp2": Refused(SECOND, by_maps, Sharding, fsdp2),
    "Lie derivatives, fsdp": Refused(THIRD, by_lie_derivatives, Classifier, fsdp_wrapped),
    "sensitivity, fsdp": Refused(WHOLE, SensitivityMonitor, Classifier, fsdp),
    "sensitivity, fsdp2": Refused(WHOLE, SensitivityMonitor, Sharding, fsdp2),
    "parameters that the root alone gathers": Refused(("`auto_wrap_policy`",), monitor, Classifier, fsdp),
    "empty loader, validate": Refused(
        ("InvarianceMonitor: expected", EMPTY.format("EmptyOnTheSecond")), monitor, method="validate", allowed=True
    ),
    "empty loader, fit": Refused(("InvarianceMonitor: expected", EMPTY.format("Allowing")), monitor, Allowing),
    "empty loader, test": Refused(
        ("SensitivityMonitor: expected", EMPTY.format("EmptyOnTheSecond")),
        SensitivityMonitor,
        method="test",
        allowed=True,
    ),
}


class Failing(Classifier):
    """Fails on the second process, in the second batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_rank == 1 and batch_idx == 1:
            raise RuntimeError("told to")
        return super().training_step(batch, batch_idx)


def failed() -> dict[str, Any]:
    module, error = made(Failing), ""
    try:
        callbacks = [InvarianceRegularizer(C4(), WEIGHT), monitor()]
        trainer_for(callbacks, devices=2, strategy=ddp()).fit(module, loader(24), loader(8, seed=2))
    except RuntimeError as failure:
        error = str(failure)
        traceback.print_exc()
    return {"error": error, "left": sorted(LEFT_BEHIND & set(module.__dict__))}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rank = int(os.environ["LOCAL_RANK"])

    def keep(name: str, run: Callable[[], dict[str, Any]]) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = run()
        said = [str(each.message) for each in caught]
        result["of logging"] = [each for each in said if "sync_dist" in each or "log(" in each]
        torch.save(result, folder / f"{name}-{rank}.pt")

    for name, cell in CELLS.items():
        keep(name, lambda cell=cell: compared(cell))
    for name, refused in REFUSED.items():
        keep(name, refused.run)
    for name, measured in MEASURED.items():
        keep(name, lambda measured=measured: measured.run(2))
    keep("watched", watched)
    keep("drawn", drawn)
    keep("failed on the second", failed)  # the last: the processes have lost each other
    sys.stderr.flush()
    os._exit(0)  # a process group without its other half cannot be taken down in order


if __name__ == "__main__":
    main(Path(sys.argv[1]))
