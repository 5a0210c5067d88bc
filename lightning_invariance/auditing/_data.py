"""The batches that are audited: those that were given, or a data module's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from lightning_invariance._checks import check_iterable
from lightning_invariance.auditing._check_setup import check_no_pair

#: What Lightning does to a batch on its way to the device, in order.
_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")

#: Where batches come from, and what is set up for them; the first that the data module has.
_LOADERS = {"test_dataloader": "test", "val_dataloader": "validate"}


@dataclass(frozen=True)
class Data:
    """Batches, and where they come from.

    Attributes:
        batches: the batches, as a loader gives them.
        source: where they come from, in words.
        prepared: what Lightning's hooks make of a batch.
    """

    batches: Iterable[Any]
    source: str
    prepared: Callable[[Any], Any]


@contextmanager
def data_of(given: Any, module: nn.Module, device: torch.device) -> Iterator[Data]:
    """The batches; a data module is set up before and torn down after.

    Args:
        given: batches, or a data module.
        module: whose hooks prepare batches, where the data module has none of its own.
        device: where batches are moved.

    Raises:
        ValueError: if there are no batches in it, or several lists of them.
    """
    if not isinstance(given, LightningDataModule):
        check_iterable("batches", given, "batches of inputs, or pairs (x, target), or to be a LightningDataModule,")
        check_no_pair(given)
        yield Data(given, "the batches that were given", _hooks(None, module, device))
        return
    name = next((each for each in _LOADERS if is_overridden(each, given, LightningDataModule)), None)
    kind = type(given).__name__
    if name is None:
        raise ValueError(f"Expected `batches` to have a test_dataloader or a val_dataloader but {kind} has neither.")
    given.prepare_data()
    given.setup(_LOADERS[name])
    try:
        loader = getattr(given, name)()
        if isinstance(loader, (list, tuple, dict)) and len(loader) == 1:
            (loader,) = loader.values() if isinstance(loader, dict) else loader
        if isinstance(loader, (list, tuple, dict)):
            raise ValueError(
                f"Expected `{name}` of {kind} to give one DataLoader but got {len(loader)} in a "
                f"{type(loader).__name__}: pass the one that is meant as `batches` in Python, or give a data module "
                "that has it alone."
            )
        if not isinstance(loader, Iterable):
            raise ValueError(f"Expected `{name}` of {kind} to give a DataLoader but got {type(loader).__name__}.")
        yield Data(loader, f"{name} of {kind}", _hooks(given, module, device))
    finally:
        given.teardown(_LOADERS[name])


def _hooks(data: LightningDataModule | None, module: nn.Module, device: torch.device) -> Callable[[Any], Any]:
    """What is written of Lightning's hooks, the data module's before the module's own."""
    written: list[tuple[str, Any]] = []
    for name in _HOOKS:
        if data is not None and is_overridden(name, data, LightningDataModule):
            written.append((name, data))
        elif isinstance(module, LightningModule) and is_overridden(name, module, LightningModule):
            written.append((name, module))

    def prepare(batch: Any) -> Any:
        for name, owner in written:
            hook = getattr(owner, name)
            batch = hook(batch, device, 0) if name == "transfer_batch_to_device" else hook(batch, 0)
        return batch

    return prepare
