"""Lists of metrics' states that processes can exchange, where some of them have seen nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

#: What an entry may be of; processes tell each other the place in this list.
_DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.complex64, torch.complex128,
]  # fmt: skip

#: The most dimensions of an entry.
_DIMS = 8


@contextmanager
def lists_alike(metrics: Sequence[Metric], over_processes: bool) -> Iterator[None]:
    """Gives empty lists of states the dtype and dimensions that other processes have there, for the time.

    torchmetrics takes an empty list for one of numbers in single precision, and waits for ever, or fails, where others
    have integers or rows of several numbers. All processes come here, with the same metrics, and raise together.

    Raises:
        ValueError: if the entries of several processes do not fit together.
    """
    distributes = over_processes and distributed.is_available() and distributed.is_initialized()
    states = _list_states(metrics)
    if not distributes or not states:
        yield
        return
    rows = [_described(metric, name) for metric, name in states]
    gathered = torch.stack(gather_all_tensors(torch.stack(rows).to(metrics[0].device)))
    filled = []
    for place, (metric, name) in enumerate(states):
        seen = gathered[:, place].cpu()
        _check(metric, name, seen)
        there = seen[seen[:, 0] > 0]
        if len(there) and not getattr(metric, name):
            kind, dims, *shape = there[0, 1:].tolist()
            empty = torch.zeros(0, *shape[: dims - 1], dtype=_DTYPES[kind], device=metric.device)
            setattr(metric, name, [empty])
            filled.append((metric, name))
    try:
        yield
    finally:
        for metric, name in filled:
            setattr(metric, name, [])


def _list_states(metrics: Sequence[Metric]) -> list[tuple[Metric, str]]:
    """The states that are lists, of metrics and of those inside them, in an order that all processes have."""
    every = [each for metric in metrics for each in metric.modules() if isinstance(each, Metric)]
    return [(metric, name) for metric in every for name, default in metric._defaults.items() if default == []]


def _described(metric: Metric, name: str) -> Tensor:
    """How many entries there are, their dtype, how many dimensions they have, and their sizes but for the first."""
    entries = getattr(metric, name)
    row = torch.zeros(3 + _DIMS, dtype=torch.int64)
    if len(entries):
        if metric._reductions[name] is dim_zero_cat:
            entries = [dim_zero_cat(entries)]  # numbers become rows, as torchmetrics does where there are several
            setattr(metric, name, entries)
        first = entries[0]
        known = first.dtype in _DTYPES and first.ndim <= _DIMS
        row[:3] = torch.tensor([len(entries), _DTYPES.index(first.dtype) if known else -1, first.ndim])
        row[3 : 2 + first.ndim] = torch.tensor(first.shape[1:])
    return row


def _check(metric: Metric, name: str, seen: Tensor) -> None:
    there = seen[seen[:, 0] > 0]
    joined = metric._reductions[name] is dim_zero_cat
    same = len(there[:, 1:].unique(dim=0)) <= 1 and (there[:, 1] >= 0).all()
    if joined and not same:
        raise ValueError(
            f"Expected the state {name!r} of {type(metric).__name__} to be of one dtype and of rows of one size on all "
            f"processes but got (entries, dtype, dimensions, sizes) {seen.tolist()}."
        )
    if not joined and len(seen[:, 0].unique()) > 1:
        raise ValueError(
            f"Expected the state {name!r} of {type(metric).__name__}, a list that is not put in a row, to have as many "
            f"entries on all processes but got {seen[:, 0].tolist()}: measure by class on one process, or give the "
            "state dist_reduce_fx='cat'."
        )
