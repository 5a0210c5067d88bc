"""What the monitors share: a part in validation and test epochs that leaves them as they were."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DistributedSampler

from lightning_invariance._checks import check_count
from lightning_invariance._locate import InputSpec, LogitsOf
from lightning_invariance._messages import errors_of
from lightning_invariance._output_action import OutputActions
from lightning_invariance.actions import Action
from lightning_invariance.callbacks._base import NetworkCallback
from lightning_invariance.callbacks._calls import (
    CallLog,
    CallSpec,
    EvaluationLog,
    NetworkCall,
    chosen_calls,
)
from lightning_invariance.callbacks._injection import Injector, is_compiled
from lightning_invariance.callbacks._progress import show_seconds
from lightning_invariance.evaluation._draws import for_measuring
from lightning_invariance.metrics._base import Estimate
from lightning_invariance.saliency import Saliency


@dataclass(frozen=True)
class MonitorRecord:
    """What the monitor measured on one data loader in one epoch.

    Attributes:
        stage: ``"val"`` or ``"test"``.
        epoch: the trainer's epoch at the time.
        dataloader_idx: which of the data loaders.
        measures: an `Estimate` (value and standard error over samples) for each measure.
        action: the group with the very elements that were measured: its `repr` says how many were drawn and with which
            seed. None where no group acts.
        prefix: what was put before the names that were logged, if anything.
        output_action: how the output was taken to move when the input does.
        saliency: the saliency map that was used, where one was.
        per_class: the measures of each class, where those were asked for: `Estimate`s of shape ``(C,)``, or
            ``(C, |G| - 1)`` by element.
        classes: what the classes are called then.
    """

    stage: str
    epoch: int
    dataloader_idx: int
    measures: dict[str, Estimate]
    action: Action | None = None
    prefix: str | None = None
    output_action: OutputActions = None
    saliency: Saliency | None = None
    per_class: dict[str, Estimate] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


class EpochMonitor(NetworkCallback):
    """A callback that sees the network's calls in validation and test epochs, and logs at an epoch's end.

    Args:
        action: the group, if one acts. Its drawn elements are exchanged for others, which no training uses.
        every_n_epochs: measures in every n-th training epoch only (validation outside of ``fit`` and tests always).
        network: the name of the submodule whose output are the logits; the module's own forward by default.
        input: where the network's arguments hold its input.
        logits: from the network's output to its logits.
        call: which of several calls in a step is measured.
        prefix: put before the names that are logged.

    Raises:
        ValueError: if an argument has a wrong type or value.
    """

    _stages = ("fit", "validate", "test")

    def __init__(
        self,
        action: Action | None,
        every_n_epochs: int,
        *,
        network: str | None,
        input: InputSpec,
        logits: LogitsOf | None,
        call: CallSpec,
        prefix: str | None,
    ) -> None:
        check_count("every_n_epochs", every_n_epochs)
        super().__init__(_CallRecorder(self), network=network, input=input, logits=logits, call=call, prefix=prefix)
        self.action = None if action is None else for_measuring(action)
        self.every_n_epochs = every_n_epochs
        self.history: list[MonitorRecord] = []
        self._seconds = 0.0  # that this epoch's measuring has taken

    @abstractmethod
    def _begin(self, trainer: Trainer, pl_module: LightningModule, loaders: int) -> None:
        """Gets ready for an epoch over so many data loaders; 0 where it is not to be measured."""

    @abstractmethod
    def _sums(self, dataloader_idx: int) -> LoaderSums | None:
        """What has been measured on a data loader in this epoch; None where the epoch is not to be measured."""

    @abstractmethod
    def _measure(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, call: NetworkCall | None, loader: LoaderPlace
    ) -> None:
        """Measures a call of the network in a step that has run; None for one that cannot be seen."""

    @abstractmethod
    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Logs and records an epoch."""

    @abstractmethod
    def _forget(self) -> None:
        """Lets go of an epoch that is over, or that an exception ended."""

    def _check_strategy(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises where the strategy does not let a hook run the network."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with errors_of(self._name):
            self._network_of(pl_module)  # a wrong name fails before any work is done
            if stage in self._stages and trainer.world_size > 1:
                _refuse_processes_that_skip_validation(pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        self._findings.forget()
        super().setup(trainer, pl_module, stage)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._let_go()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._let_go()

    def _let_go(self) -> None:
        """Also of a call, where an exception came between a step and its batch's end."""
        self._forget()
        self._recorder.armed = False
        self._recorder.take()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with errors_of(self._name):
            self._check_strategy(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.enable_validation or (trainer.val_dataloaders is None and not _gives_validation(trainer)):
            self._warn_of(
                "nothing is measured in this training, which runs no validation: give it validation "
                "batches, and the module a `validation_step`."
            )

    # An epoch ---------------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaders = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._start(trainer, pl_module, len(loaders))

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module, len(trainer.num_test_batches))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._measure_batch(trainer, pl_module, batch, LoaderPlace(trainer.val_dataloaders, dataloader_idx))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._measure_batch(trainer, pl_module, batch, LoaderPlace(trainer.test_dataloaders, dataloader_idx))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer, pl_module, "test")

    def _start(self, trainer: Trainer, pl_module: LightningModule, loaders: int) -> None:
        with errors_of(self._name):
            self._check_strategy(trainer, pl_module)
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        due = not training or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        self._begin(trainer, pl_module, loaders if due else 0)
        self._recorder.armed = due
        self._seconds = 0.0

    def _close(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._recorder.armed = False
        self._finish(trainer, pl_module, stage)
        self._forget()  # the sanity check's samples must not leak into the first epoch

    def _publish(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        stage: str,
        dataloader_idx: int,
        loaders: int,
        computed: Mapping[str, Estimate],
        output_action: OutputActions = None,
        saliency: Saliency | None = None,
        per_class: Mapping[str, Estimate] | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        """Records and logs what was computed, alike on all processes."""
        measured = {name: Estimate(*(part.cpu() for part in estimate)) for name, estimate in computed.items()}
        by_class = {name: Estimate(*(part.cpu() for part in each)) for name, each in (per_class or {}).items()}
        if not trainer.sanity_checking:
            self.history.append(
                MonitorRecord(
                    stage,
                    trainer.current_epoch,
                    dataloader_idx,
                    measured,
                    self.action,
                    self.prefix,
                    output_action,
                    saliency,
                    by_class,
                    classes,
                )
            )
        if not trainer.barebones:
            start, end = self._log_names(stage, dataloader_idx, loaders)
            # The values are the same on all processes already: synchronising keeps Lightning from warning about it.
            named = self._named(measured, start, end)
            for number, label in enumerate(classes):
                of_one = {name: Estimate(*(part[number] for part in each)) for name, each in by_class.items()}
                named |= self._named(of_one, start, f"{end}/{label}")
            pl_module.log_dict(named, add_dataloader_idx=False, sync_dist=trainer.world_size > 1)

    def _log_names(self, stage: str, dataloader_idx: int, loaders: int) -> tuple[str, str]:
        """What is put before and behind the names of what is logged."""
        start = f"{stage}/{self.prefix}/" if self.prefix else f"{stage}/"
        return start, f"/dataloader_idx_{dataloader_idx}" if loaders > 1 else ""

    def _named(self, measured: dict[str, Estimate], start: str, end: str) -> dict[str, float]:
        """The scalars under the names that they are logged by."""
        return {
            f"{start}{name}{end}": float(estimate.value)
            for name, estimate in measured.items()
            if estimate.value.ndim == 0
        }

    def _measure_batch(self, trainer: Trainer, pl_module: LightningModule, batch: Any, loader: LoaderPlace) -> None:
        start = perf_counter()
        self._measure_calls(trainer, pl_module, batch, loader)
        self._seconds += perf_counter() - start
        seconds: dict[str, float] = {}
        for each in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(each, EpochMonitor):
                seconds[each._name] = seconds.get(each._name, 0.0) + each._seconds
        show_seconds(trainer, seconds)

    def _measure_calls(self, trainer: Trainer, pl_module: LightningModule, batch: Any, loader: LoaderPlace) -> None:
        with errors_of(self._name):
            calls = self._calls(pl_module)
            sums = self._sums(loader.index)
            if sums is None:
                return
            seen, sizes = sums.samples, set()
            for call in calls:
                sums.samples = seen  # each call is of the same samples
                self._measure(trainer, pl_module, batch, call, loader)
                sizes.add(sums.samples - seen)
            if len(sizes) > 1:
                raise ValueError(
                    f"Expected the calls of {self._network_in_words(pl_module)} in a step to be of as many samples "
                    f"each but got {sorted(sizes)}: choose one of them with `call=`."
                )

    def _calls(self, module: LightningModule) -> list[NetworkCall | None]:
        """The calls that are to be measured, of the step that has run; None for one that cannot be seen.

        They are forgotten here: each holds a batch of activations.
        """
        log = self._recorder.take()
        if log is None:
            return [None]
        if not log.inputs:
            raise ValueError(f"Expected {self._without_call(module)}")
        name = self._network_in_words(module)
        return [*chosen_calls(log, range(len(log.inputs)), self.call, name)]

    @property
    def _recorder(self) -> _CallRecorder:
        assert isinstance(self._injector, _CallRecorder)
        return self._injector


class LoaderSums(Protocol):
    """What has been measured on a data loader."""

    samples: int
    """How many samples of it this process has had."""


@dataclass(frozen=True)
class LoaderPlace:
    """A data loader.

    Attributes:
        dataloaders: the trainer's, in whatever form it keeps them.
        index: which of them.
    """

    dataloaders: Any
    index: int


class _CallRecorder(Injector):
    """Keeps the network's calls until the batch's end."""

    steps = ("validation_step", "test_step")

    def __init__(self, callback: EpochMonitor) -> None:
        self._callback = callback
        self.name = callback._name
        self._log: CallLog | None = None
        self.armed = False

    def watched(self, module: LightningModule) -> nn.Module | None:
        if not self.armed or is_compiled(module):
            return None
        return self._callback._network_of(module)

    def log(self) -> CallLog:
        return EvaluationLog(self._callback.call)

    def after_step(self, module: LightningModule, args: tuple[Any, ...], output: Any, log: CallLog | None) -> Any:
        self._log = log if self.armed else None
        return output

    def take(self) -> CallLog | None:
        """The calls, which are forgotten: they hold batches of activations."""
        log, self._log = self._log, None
        return log


def _gives_validation(trainer: Trainer) -> bool:
    """Whether batches to validate on can still come: loaders may be made as late as they are needed."""
    return bool(trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined())


def _refuse_processes_that_skip_validation(*owners: Any) -> None:
    """A process whose loaders are known to be empty runs no hook at all: the others would gather without it.

    Before any loader is made, so that no process is left waiting: which of them are empty, none can tell the others.
    """
    for owner in owners:
        if getattr(owner, "allow_zero_length_dataloader_with_multiple_devices", False):
            raise ValueError(
                f"Expected `allow_zero_length_dataloader_with_multiple_devices` to be False in "
                f"{type(owner).__name__} with several processes but got True: one whose loader is empty skips the "
                "epoch, and the others would wait for it for ever. Give each process a sample, or a loader without a "
                "length (of an IterableDataset), which may be empty."
            )


def positions_of(loader: LoaderPlace, seen: int, samples: int) -> tuple[range, int]:
    """The positions in the data set of a batch's samples, and how many come before a `DistributedSampler`'s repeats.

    It deals positions out in turn, ``rank + i * world_size``, and past the data set's end begins again from the front.

    Args:
        loader: the data loader.
        seen: how many samples this process has had from it before.
        samples: how many are in this batch.
    """
    sampler = _sampler(loader)
    if not isinstance(sampler, DistributedSampler):
        return range(seen, seen + samples), samples
    positions = range(
        sampler.rank + seen * sampler.num_replicas,
        sampler.rank + (seen + samples) * sampler.num_replicas,
        sampler.num_replicas,
    )
    dataset_size = len(sampler.dataset)  # type: ignore[arg-type]
    return positions, sum(position < dataset_size for position in positions)


def _sampler(place: LoaderPlace) -> Any:
    loader = place.dataloaders
    if isinstance(loader, dict):
        loader = list(loader.values())
    if isinstance(loader, (list, tuple)):
        loader = loader[place.index]
    batch_sampler = getattr(loader, "batch_sampler", None)
    for candidate in (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)):
        if isinstance(candidate, DistributedSampler):
            return candidate
    return None
