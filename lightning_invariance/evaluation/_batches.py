"""The batches of a data set, on the network's device, with what the network is called with on each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_invariance._arguments import Arguments
from lightning_invariance._call import arguments_of
from lightning_invariance._checks import check_not_meta
from lightning_invariance._containers import map_tensors
from lightning_invariance._locate import InputSpec, Place
from lightning_invariance._messages import errors_of
from lightning_invariance.actions import Action


def device_of(module: nn.Module) -> torch.device | None:
    """Where a network's parameters are; None where it has none.

    Raises:
        ValueError: if it is on the meta device.
    """
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
    if device is not None and device.type == "meta":
        raise ValueError("Expected `network` to hold values but got one on the meta device.")
    return device


class LocatedBatches:
    """Each batch, and the network's arguments on it; as many as there are batches.

    Args:
        owner: who asks, for messages.
        network: what is called.
        batches: the data set's.
        action: the group.
        device: where tensors are moved; None leaves them.
        input: where the network's arguments hold the input.
        target: where the batch holds the labels.

    Raises:
        ValueError: while it is run through, if the input of a batch cannot be found.
    """

    def __init__(
        self,
        owner: str,
        network: Callable[..., Any],
        batches: Iterable[Any],
        action: Action,
        device: torch.device | None,
        *,
        input: InputSpec,
        target: Place | None,
    ) -> None:
        self._owner = owner
        self._batches = batches
        self._place = partial(_placed, device=device)
        self._arguments = partial(arguments_of, network, input=input, target=target, action=action)
        self._action = action

    def __len__(self) -> int:
        # tqdm takes an error for "not known".
        if not isinstance(self._batches, Sized):
            raise TypeError("Expected the batches to have a length but got none.")
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Any, Arguments]]:
        for batch in self._batches:
            yield self.located(batch)

    def located(self, batch: Any) -> tuple[Any, Arguments]:
        """A batch on the device, and the network's arguments on it.

        Raises:
            ValueError: if its input cannot be found.
        """
        with errors_of(self._owner):
            batch = map_tensors(self._place, batch)
            return batch, self._arguments(batch).joined(self._action)


def _placed(tensor: Tensor, device: torch.device | None) -> Tensor:
    check_not_meta("batches", tensor)
    return tensor.to(device)
