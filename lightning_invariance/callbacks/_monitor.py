"""Measures invariance in every validation and test epoch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from lightning_invariance._checks import check_count
from lightning_invariance.actions import Action
from lightning_invariance.actions._base import check_action
from lightning_invariance.callbacks._base import (
    InjectingCallback,
    arguments_and_logits,
    check_network_name,
    check_spec,
    is_sharded,
    suffix_among_peers,
)
from lightning_invariance.callbacks._injection import Injector, NetworkCall, is_compiled
from lightning_invariance.callbacks._locate import Arguments, locate_target, logits_of, resolve_network
from lightning_invariance.evaluation import InvarianceEvaluator
from lightning_invariance.metrics._base import Estimate
from lightning_invariance.metrics._collection import Measures
from lightning_invariance.saliency import Network, SaliencyLike

_NAME = "InvarianceMonitor"


@dataclass(frozen=True)
class MonitorRecord:
    """What the monitor measured on one data loader in one epoch.

    Attributes:
        stage: ``"val"`` or ``"test"``.
        epoch: the trainer's epoch at the time.
        dataloader_idx: which of the data loaders.
        measures: an `Estimate` (value and standard error over samples) for each measure.
    """

    stage: str
    epoch: int
    dataloader_idx: int
    measures: dict[str, Estimate]


class InvarianceMonitor(InjectingCallback):
    r"""Measures and logs how invariant a network is, in each validation and test epoch.

    Works in ``Trainer.fit``, ``validate`` and ``test``, with any logger or none, for a module that knows nothing of
    it. Input and logits are taken from the network's own call in the step, so an epoch costs one more forward for each
    element but the identity, and the saliency maps. Logged as ``val/<measure>`` and ``test/<measure>``; with several
    data loaders ``/dataloader_idx_<n>`` follows, and a measure by element has ``/<element>`` behind it; a second
    monitor puts ``/1`` behind its names. Everything that was measured, with standard errors, is in `history`.

    Logits ``(B, C)`` are taken for those of C exclusive classes. For labels that do not exclude each other, pass
    ``{"name": DistributionInvarianceError(activation="sigmoid")}``; for a regression, name the logit errors.

    A monitor leaves training as it was bit for bit. Under distributed sampling, the samples that a
    `DistributedSampler` repeats to even the processes are left out, so the numbers are those of a single process.

    Args:
        action: the group.
        measures: names of measures, or torchmetrics metrics under names of your own, whose ``update`` takes some of
            ``logits``, ``orbit_logits``, ``saliency``, ``orbit_saliency``, ``target``; None for all that outputs and
            labels allow: ``logit_invariance_error``, ``normalized_logit_invariance_error``,
            ``distribution_invariance_error``, ``jensen_shannon_invariance_error``, ``saliency_invariance_similarity``,
            ``orbit_share``, ``prediction_consistency``, ``orbit_accuracy``, ``worst_case_orbit_accuracy``.
        saliency: how to compute saliency maps. If None, `PaperSaliency` for actions that move pixels about, and
            `Gradient` for others, and for inputs that are no images.
        saliency_samples: how many samples of each data loader, from the first, get saliency maps, the costly part; 0
            for none.
        every_n_epochs: measures in every n-th training epoch only (validation outside of ``fit`` and tests always).
        network: the name of the submodule whose output are the logits; the module's own forward by default.
        input: where the network's arguments hold the tensor that the group acts on: a position, a keyword or a key; by
            default the first tensor, or the only floating-point one of a mapping.
        target: where the batch holds the labels, one integer a sample: a position or a key. By default the second part
            of a pair, or an entry called label, labels, target, targets or y. The labels' class is explained by the
            saliency maps; without labels the class predicted on the untransformed input is, and the accuracies are
            left out.
        max_batch: the most samples in one extra forward.

    Attributes:
        history: a `MonitorRecord` for each epoch and data loader, in order.

    Raises:
        ValueError: if an argument is none of what is expected; before training, if parameters are sharded in a way
            that a hook cannot undo, or a process may skip validation because its loader is empty; in the first
            validation step, if the group cannot act on the input, or network, input, labels or logits cannot be found.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_invariance import C4, InvarianceMonitor
        >>> monitor = InvarianceMonitor(C4(), measures=["logit_invariance_error", "orbit_share"])
        >>> trainer = Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False)
    """

    _stages = ("fit", "validate", "test")

    def __init__(
        self,
        action: Action,
        measures: Measures | None = None,
        saliency: SaliencyLike | None = None,
        saliency_samples: int = 256,
        every_n_epochs: int = 1,
        *,
        network: str | None = None,
        input: int | str | None = None,
        target: int | str | None = None,
        max_batch: int | None = None,
    ) -> None:
        check_action(action)
        check_network_name(network)
        check_spec("input", input)
        check_spec("target", target)
        check_count("every_n_epochs", every_n_epochs)
        super().__init__(_CallRecorder(self))
        self.action = action
        self.measures = measures
        self.saliency = saliency
        self.saliency_samples = saliency_samples
        self.every_n_epochs = every_n_epochs
        self.network = network
        self.input = input
        self.target = target
        self.max_batch = max_batch
        self.history: list[MonitorRecord] = []
        self._evaluators: list[InvarianceEvaluator] = []
        self._told_without_labels = False
        self._verified = False
        self._evaluator()  # wrong measures, saliency or sizes fail here

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        resolve_network(pl_module, self.network, _NAME)  # a wrong name fails before any work is done
        if stage in self._stages and trainer.world_size > 1:
            _refuse_processes_that_skip_validation(pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        self._verified = False
        super().setup(trainer, pl_module, stage)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._forget()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._forget()

    def _forget(self) -> None:
        """Lets go of an epoch that is over, or that an exception ended between a step and the batch's end."""
        self._evaluators = []
        self._recorder.armed = False
        self._recorder.take()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._refuse_what_the_root_gathers(trainer, pl_module)

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
        self._measure(trainer, pl_module, batch, trainer.val_dataloaders, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._measure(trainer, pl_module, batch, trainer.test_dataloaders, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "test")

    def _evaluator(self) -> InvarianceEvaluator:
        return InvarianceEvaluator(self.action, self.measures, self.saliency, self.saliency_samples, self.max_batch)

    def _refuse_what_the_root_gathers(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Parameters that FSDP gathers in the forward of the whole module alone are not there in a hook."""
        root = trainer.strategy.model
        if root is None or not _is_fsdp(root):
            return
        inner = (each for each in root.modules() if _is_fsdp(each) and each is not root)
        gathered = {id(parameter) for each in inner for parameter in each.parameters()}
        network = resolve_network(pl_module, self.network, _NAME)
        if any(id(parameter) not in gathered for parameter in network.parameters()):
            raise ValueError(
                f"{_NAME}: expected FSDP to wrap the submodules that hold the network's parameters (see "
                f"`auto_wrap_policy` of {type(trainer.strategy).__name__}) but some belong to the module as a whole."
            )

    def _start(self, trainer: Trainer, pl_module: LightningModule, loaders: int) -> None:
        self._refuse_what_the_root_gathers(trainer, pl_module)
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        due = not training or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        self._evaluators = [self._evaluator() for _ in range(loaders)] if due else []
        for evaluator in self._evaluators:
            # A process whose loader is empty takes part in the reduction too, on its device.
            evaluator.measures.to(pl_module.device)
        self._recorder.armed = due

    def _measure(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, dataloaders: Any, dataloader_idx: int
    ) -> None:
        call = self._recorder.take()
        if not self._evaluators:
            return
        evaluator = self._evaluators[dataloader_idx]
        network = resolve_network(pl_module, self.network, _NAME)
        arguments, base_logits = arguments_and_logits(_NAME, pl_module, self.network, self.input, batch, call)
        if arguments.has_other_tensors and self.max_batch is not None:
            raise ValueError(
                f"{_NAME}: expected `max_batch` to be None for a network that takes several tensors "
                f"but got {self.max_batch}."
            )

        def network_for(samples: int) -> Network:
            with torch.inference_mode(False):
                first = arguments.first(samples)
            # Hooks run outside autocast: the network gets the precision that it has in its own step.
            return _NetworkOfInput(network, first, trainer.precision_plugin.val_step_context)

        x = arguments.x
        target = locate_target(batch, self.target, len(x), _NAME)
        if target is None:
            self._tell_without_labels(evaluator)
        if not self._verified:
            self.action.verify(x)
            self._verified = True
        positions, kept = _positions(dataloaders, dataloader_idx, evaluator.samples, len(x))
        if is_sharded(trainer):
            # Every process runs what the others run, or they wait for each other: repeats are left out afterwards.
            processes = trainer.world_size
        else:
            processes = 1
            evaluator.samples += len(x) - kept
            x, positions = x[:kept], positions[:kept]
            base_logits = None if base_logits is None else base_logits[:kept]
            target = None if target is None else target[:kept]
            if not kept:
                return
        evaluator.update(
            network_for,
            x,
            base_logits=base_logits,
            target=target,
            positions=positions,
            kept=kept,
            processes=processes,
            module=network,
        )

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._recorder.armed = False
        several = len(self._evaluators) > 1
        # The values are the same on all processes already: synchronising them keeps Lightning from warning about it.
        spread = trainer.world_size > 1
        for dataloader_idx, evaluator in enumerate(self._evaluators):
            # Every process must take part in computing a measure that any of them has seen.
            updated = evaluator.measures.updated().to(trainer.strategy.root_device)
            computed = evaluator.compute(trainer.strategy.reduce(updated, reduce_op="sum"))
            measured = {name: Estimate(*(part.cpu() for part in estimate)) for name, estimate in computed.items()}
            if not trainer.sanity_checking:
                self.history.append(MonitorRecord(stage, trainer.current_epoch, dataloader_idx, measured))
            if not trainer.barebones:
                suffix = suffix_among_peers(trainer, self) + (f"/dataloader_idx_{dataloader_idx}" if several else "")
                pl_module.log_dict(self._named(measured, stage, suffix), add_dataloader_idx=False, sync_dist=spread)
        # The sanity check's samples must not leak into the first epoch.
        self._evaluators = []

    def _named(self, measured: dict[str, Estimate], stage: str, suffix: str) -> dict[str, float]:
        named = {}
        for name, estimate in measured.items():
            if estimate.value.ndim == 0:
                named[f"{stage}/{name}{suffix}"] = float(estimate.value)
            elif len(estimate.value) == len(self.action) - 1:
                for label, value in zip(self.action.labels[1:], estimate.value.tolist(), strict=True):
                    named[f"{stage}/{name}{suffix}/{label}"] = value
        return named

    @property
    def _recorder(self) -> _CallRecorder:
        assert isinstance(self._injector, _CallRecorder)
        return self._injector

    def _tell_without_labels(self, evaluator: InvarianceEvaluator) -> None:
        left_out = evaluator.measures.needing("target")
        if not self._told_without_labels and (left_out or self.saliency_samples):
            self._told_without_labels = True
            without = f", and {', '.join(left_out)} are left out" if left_out else ""
            rank_zero_info(
                f"{_NAME}: no labels found in the batch (say where they are with `target=`): saliency maps explain the "
                f"class predicted on the untransformed input{without}."
            )


class _CallRecorder(Injector):
    """Keeps the network's call until the batch's end."""

    steps = ("validation_step", "test_step")

    def __init__(self, callback: InvarianceMonitor) -> None:
        self._callback = callback
        self._call: NetworkCall | None = None
        self.armed = False

    def watched(self, module: LightningModule) -> nn.Module | None:
        if not self.armed or is_compiled(module):
            return None
        return resolve_network(module, self._callback.network, _NAME)

    def after_step(self, module: LightningModule, args: tuple[Any, ...], output: Any, call: NetworkCall | None) -> Any:
        self._call = call if self.armed else None
        return output

    def take(self) -> NetworkCall | None:
        """The call, which is forgotten: it holds a batch of activations."""
        call, self._call = self._call, None
        return call


class _NetworkOfInput(nn.Module):
    """A network as a function of the input alone: a module, as some attributions ask for one."""

    def __init__(
        self, network: nn.Module, arguments: Arguments, context: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        super().__init__()
        self.network = network
        self._arguments = arguments
        self._context = context

    def forward(self, x: Tensor) -> Tensor:
        args, kwargs = self._arguments.with_input(x)
        with self._context():
            return logits_of(self.network(*args, **kwargs), _NAME)


def _refuse_processes_that_skip_validation(*owners: Any) -> None:
    """A process whose loaders are known to be empty runs no hook at all: the others would gather without it.

    Before any loader is made, so that no process is left waiting: which of them are empty, none can tell the others.
    """
    for owner in owners:
        if getattr(owner, "allow_zero_length_dataloader_with_multiple_devices", False):
            raise ValueError(
                f"{_NAME}: expected `allow_zero_length_dataloader_with_multiple_devices` to be False in "
                f"{type(owner).__name__} with several processes but got True: one whose loader is empty skips the "
                "epoch, and the others would wait for it for ever. Give each process a sample, or a loader without a "
                "length (of an IterableDataset), which may be empty."
            )


def _is_fsdp(module: nn.Module) -> bool:
    return type(module).__name__ == "FullyShardedDataParallel"


def _positions(dataloaders: Any, dataloader_idx: int, seen: int, samples: int) -> tuple[range, int]:
    """The positions in the data set of a batch's samples, and how many come before a `DistributedSampler`'s repeats.

    It deals positions out in turn, ``rank + i * world_size``, and past the data set's end begins again from the front.

    Args:
        dataloaders: the trainer's data loaders, in whatever form it keeps them.
        dataloader_idx: which of them.
        seen: how many samples this process has had from it before.
        samples: how many are in this batch.
    """
    sampler = _sampler(dataloaders, dataloader_idx)
    if not isinstance(sampler, DistributedSampler):
        return range(seen, seen + samples), samples
    positions = range(
        sampler.rank + seen * sampler.num_replicas,
        sampler.rank + (seen + samples) * sampler.num_replicas,
        sampler.num_replicas,
    )
    dataset_size = len(sampler.dataset)  # type: ignore[arg-type]
    return positions, sum(position < dataset_size for position in positions)


def _sampler(dataloaders: Any, dataloader_idx: int) -> Any:
    if isinstance(dataloaders, dict):
        dataloaders = list(dataloaders.values())
    loader = dataloaders[dataloader_idx] if isinstance(dataloaders, (list, tuple)) else dataloaders
    batch_sampler = getattr(loader, "batch_sampler", None)
    for candidate in (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)):
        if isinstance(candidate, DistributedSampler):
            return candidate
    return None
