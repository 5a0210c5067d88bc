"""Tests and times models on one data module."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from tqdm.auto import tqdm

from lightning_invariance._checks import check_count
from lightning_invariance._locate import InputSpec, LogitsOf, Place
from lightning_invariance._output_action import OutputActions
from lightning_invariance.actions import Action, Flow
from lightning_invariance.actions._flow import as_action
from lightning_invariance.callbacks import InvarianceMonitor, MonitorRecord
from lightning_invariance.callbacks._calls import CallSpec
from lightning_invariance.comparison._comparison import COLUMNS, ComparedModel, Comparison
from lightning_invariance.comparison._times import MakeTrainer, inference_seconds, training_step_seconds
from lightning_invariance.saliency import SaliencyLike

#: What `compare` sets, so that no run leaves files or talks, and every run ends where it should.
_FIXED: Mapping[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}

#: Lightning talks through its own logger, and through that of the package `pytorch_lightning` once anybody imported it.
_TALKING = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")

#: Callbacks that are no part of training, and that a Trainer puts into the list it is given.
_LEFT_OUT = (Checkpoint, ModelSummary, ProgressBar)

_OWN = (*_FIXED, "callbacks", "max_epochs", "max_steps", "max_time", "min_epochs", "min_steps", "limit_val_batches")


def compare(
    models: Mapping[str, LightningModule],
    datamodule: LightningDataModule,
    action: Action | Flow,
    *,
    callbacks: Mapping[str, Sequence[Callback]] | None = None,
    measures: Sequence[str] | None = None,
    saliency: SaliencyLike | None = None,
    saliency_samples: int = 64,
    sensitivity_samples: int = 64,
    output_action: OutputActions = None,
    network: str | None = None,
    input: InputSpec = None,
    target: Place | None = None,
    logits: LogitsOf | None = None,
    call: CallSpec = None,
    max_batch: int | None = None,
    rounds: int = 7,
    steps: int = 10,
    progress: bool = True,
    **trainer_options: Any,
) -> Comparison:
    r"""How invariant and how accurate trained models are on test data, and what each of them costs.

    Answers whether a regularised network is as good as one that is weight-tied, and at what price. Every model is
    tested with an `InvarianceMonitor`. Then training steps (forward, backward, optimiser, and what `callbacks` add) and
    test steps are timed in rounds that go through all models, forwards and backwards in turn, so that a machine that
    slows down slows all of them; each round gives a ratio to the first model, and the median of those counts. Loading
    data is not timed, nor are the first 3 steps of a round.

    The models and torch's, numpy's and Python's random streams stay as they were: copies are run. The data module's
    hooks are called as often as there are runs.

    Args:
        models: trained LightningModules with a ``test_step`` and, unless `rounds` is 0, a ``training_step``.
        datamodule: gives the training and test batches; `LightningDataModule.from_datasets` makes one of data sets.
        action: the group.
        callbacks: for a model, those that take part in its training, so that their time is counted: its
            `InvarianceRegularizer` or `OrbitAugmentation`, or all of its trainer's: progress bars, checkpoints and
            summaries among them are left out. Copies of them are run.
        measures: names of measures, the columns of the table: ``"selectivity"``, ``"jacobian_spectral_norm"``, ... A
            column is empty where there are no labels or maps for it, and missing where it means nothing. By default
            accuracies, LI, DI, SI and orbit share, of masks their mean IoU, of vectors their cosine.
        saliency: how to compute saliency maps, as for `InvarianceMonitor`; the table names it.
        saliency_samples: how many test samples, from the first, get saliency maps.
        sensitivity_samples: how many, from the first, ``"selectivity"`` and ``"jacobian_spectral_norm"`` are measured
            on.
        output_action: how the output moves when the input does, as for `InvarianceMonitor`.
        network: the name of the submodule whose output are the logits, in all models; their own forward by default.
        input: where the network's arguments hold its input, as for `InvarianceMonitor`.
        target: where the batch holds the labels, as for `InvarianceMonitor`.
        logits: from the network's output to its logits, as for `InvarianceMonitor`.
        call: which of several calls of the network in a test step is measured, as for `InvarianceMonitor`.
        max_batch: the most samples in one extra forward; as many as the batch has if None.
        rounds: how often each model is timed; 0 for no times.
        steps: how many steps a round times.
        progress: whether to show a progress bar.
        trainer_options: for each `Trainer` besides: ``accelerator``, ``precision``, ``limit_test_batches``, ... One
            device is used unless ``devices`` names another.

    Returns:
        The `Comparison`, to be had as a DataFrame, as Markdown and as a figure.

    Raises:
        ValueError: before any run, if an argument has a wrong type or value; in the first run, if there are several
            test data loaders, or the group cannot act on the input.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningDataModule
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_invariance import TimeReversal, compare
        >>> class Classifier(BoringModel):
        ...     def step(self, batch):
        ...         return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        >>> data = TensorDataset(torch.randn(64, 32), torch.randint(2, (64,)))
        >>> datamodule = LightningDataModule.from_datasets(data, test_dataset=data, batch_size=32)
        >>> models = {"one": Classifier(), "another": Classifier()}
        >>> comparison = compare(models, datamodule, TimeReversal(), rounds=0, progress=False, accelerator="cpu")
        >>> comparison.models["another"].parameters
        66
    """
    plans = _checked(models, callbacks)
    if not isinstance(datamodule, LightningDataModule):
        raise ValueError(
            f"Expected `datamodule` to be a LightningDataModule but got {type(datamodule).__name__}: "
            "LightningDataModule.from_datasets makes one of data sets."
        )
    action = as_action(action)
    if isinstance(measures, Mapping):
        raise ValueError(
            f"Expected `measures` to be a list of names of measures, which have headings, but got {measures!r}: "
            "`register_measure` gives a metric of your own a name."
        )
    check_count("rounds", rounds, minimum=0)
    check_count("steps", steps)
    _check_modules(models, rounds)
    taken = [name for name in trainer_options if name in _OWN]
    if taken:
        raise ValueError(f"Expected the trainer's options to leave {taken} to `compare` but got them.")
    monitor = partial(
        _TableMonitor,
        action,
        COLUMNS if measures is None else measures,
        saliency,
        saliency_samples,
        sensitivity_samples=sensitivity_samples,
        output_action=output_action,
        network=network,
        input=input,
        target=target,
        logits=logits,
        call=call,
        max_batch=max_batch,
    )
    monitor()  # wrong options fail here

    def make_trainer(callbacks: list[Callback], **limits: Any) -> Trainer:
        return Trainer(callbacks=callbacks, **{"devices": 1, **_FIXED, **trainer_options, **limits})

    former = datamodule.trainer
    with _quiet(), _isolated_random_streams(), tqdm(total=len(models) * (1 + 2 * rounds), disable=not progress) as bar:
        processes = make_trainer([]).world_size
        if processes != 1:
            raise ValueError(f"Expected the trainer's options to name one device, to time it, but got {processes}.")
        try:
            copies = {name: deepcopy(model) for name, model in models.items()}
            measured = {}
            maps: set[str] = set()
            for name, module in copies.items():
                bar.set_description(f"{name}: testing")
                record = _test(module, monitor(), datamodule, make_trainer)
                measured[name] = record.measures
                maps.update([] if record.saliency is None else [repr(record.saliency)])
                bar.update()
            training: dict[str, list[float]] = {name: [] for name in models}
            inference: dict[str, list[float]] = {name: [] for name in models}
            for number in range(rounds):
                for name in reversed(copies) if number % 2 else copies:
                    bar.set_description(f"{name}: timing")
                    module = copies[name]
                    training[name].append(training_step_seconds(module, plans[name], datamodule, make_trainer, steps))
                    bar.update()
                    inference[name].append(inference_seconds(module, datamodule, make_trainer, steps))
                    bar.update()
        finally:
            datamodule.trainer = former
    return Comparison(
        {
            name: ComparedModel(
                measured[name],
                sum(parameter.numel() for parameter in model.parameters()),
                tuple(training[name]),
                tuple(inference[name]),
            )
            for name, model in models.items()
        },
        ", ".join(sorted(maps)),
    )


class _TableMonitor(InvarianceMonitor):
    """Leaves a column empty where there are no labels or maps for it."""

    _demanding = False


class _OneTestLoader(Callback):
    """Stops before work is lost: a model's row is that of one data loader."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaders = len(trainer.num_test_batches)
        if loaders != 1:
            raise ValueError(f"Expected `datamodule` to give one test data loader but got {loaders}.")


def _test(
    module: LightningModule, monitor: InvarianceMonitor, datamodule: LightningDataModule, make_trainer: MakeTrainer
) -> MonitorRecord:
    make_trainer([_OneTestLoader(), monitor]).test(module, datamodule=datamodule, verbose=False)
    if not monitor.history:
        raise ValueError("Expected `datamodule` to give batches to test on but got none.")
    return monitor.history[-1]


def _checked(
    models: Mapping[str, LightningModule], callbacks: Mapping[str, Sequence[Callback]] | None
) -> dict[str, Sequence[Callback]]:
    """The callbacks of each model."""
    if (
        not isinstance(models, Mapping)
        or not models
        or not all(isinstance(model, LightningModule) for model in models.values())
    ):
        raise ValueError(f"Expected `models` to map names to LightningModules, at least one, but got {models!r}.")
    callbacks = {} if callbacks is None else callbacks
    if not isinstance(callbacks, Mapping) or not all(
        isinstance(each, Sequence) and all(isinstance(callback, Callback) for callback in each)
        for each in callbacks.values()
    ):
        raise ValueError(f"Expected `callbacks` to map names of models to lists of Callbacks but got {callbacks!r}.")
    unknown = [name for name in callbacks if name not in models]
    if unknown:
        raise ValueError(f"Expected `callbacks` to name models among {list(models)} but got {unknown}.")
    return {
        name: [callback for callback in callbacks.get(name, ()) if not isinstance(callback, _LEFT_OUT)]
        for name in models
    }


def _check_modules(models: Mapping[str, LightningModule], rounds: int) -> None:
    needed = ("test_step", "training_step", "configure_optimizers") if rounds else ("test_step",)
    for name, module in models.items():
        missing = [method for method in needed if not is_overridden(method, module, LightningModule)]
        if missing:
            raise ValueError(
                f"Expected each of `models` to have {list(needed)} but {name!r}, a {type(module).__name__}, "
                f"lacks {missing}."
            )


@contextmanager
def _isolated_random_streams() -> Iterator[None]:
    """Lightning's isolation, which an exception would pass by."""
    isolation = isolate_rng()
    isolation.__enter__()
    try:
        yield
    finally:
        isolation.__exit__(None, None, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning says of each run and of how a Trainer could be faster."""
    loggers = [logging.getLogger(name) for name in _TALKING]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
