"""Actions that move values about and change none: exact bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from lightning_invariance._checks import as_tensor, format_sizes
from lightning_invariance.actions._base import Action, check_batch, permutation_group_table


class PermutationAction(Action):
    r"""Permutes the entries of the trailing dimensions: :math:`(g x)[p] = x[\pi_g(p)]`.

    The index table *defines* the action. The named groups build theirs from the size of the input and act through
    strided views (rotations, flips, rolls) where those give the same result faster.

    Args:
        table: :math:`\pi_g` for each element, shape ``(|G|, n1, ..., nk)``: flat indices into the ``n1·…·nk``
            entries of the last ``k`` dimensions, a tensor or nested lists. Row 0 is the identity.

    Raises:
        ValueError: if `table` holds no integers, a row is no permutation, or row 0 is not the identity.

    Example:
        Swap the two halves of a vector of four:

        >>> import torch
        >>> from lightning_invariance import PermutationAction
        >>> swap = PermutationAction(torch.tensor([[0, 1, 2, 3], [2, 3, 0, 1]]))
        >>> swap.act(torch.tensor([[10, 20, 30, 40]]), 1)
        tensor([[30, 40, 10, 20]])
        >>> swap
        PermutationAction(2 elements on 4)
    """

    exact = True

    def __init__(self, table: Tensor | Sequence[Any]) -> None:
        table = as_tensor("table", table)
        if table.dtype not in (torch.int64, torch.int32) or table.ndim < 2 or not table.numel():
            raise ValueError("Expected `table` to be an integer tensor of shape (|G|, n1, ..., nk).")
        with torch.inference_mode(False):  # a tensor made under inference mode could not be saved for a later backward
            flat = table.detach().to("cpu", torch.int64, copy=True).flatten(1)
        entries = torch.arange(flat.shape[1], device="cpu")
        if not torch.equal(flat.sort(dim=1).values, entries.expand_as(flat)):
            raise ValueError(f"Expected every row of `table` to be a permutation of 0 to {flat.shape[1] - 1}.")
        if not torch.equal(flat[0], entries):
            raise ValueError("Expected row 0 of `table` to be the identity.")
        self._table = flat
        self._sizes = tuple(table.shape[1:])

    # What a named group writes anew ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._table)

    def index_table(self, sizes: tuple[int, ...]) -> Tensor:
        r"""The permutations :math:`\pi_g` for trailing dimensions of the given sizes, shape ``(|G|, n1·…·nk)``."""
        return self._table

    @property
    def _faithful_sizes(self) -> tuple[int, ...]:
        """Small sizes on which no two elements act alike: enough to know the group by."""
        return self._sizes

    def _check_sizes(self, sizes: tuple[int, ...]) -> None:
        if sizes != self._sizes:
            raise ValueError(
                f"Expected `x` to end in {format_sizes(self._sizes)} for {self!r} but got {format_sizes(sizes)}."
            )

    def _permute(self, x: Tensor, element: int) -> Tensor:
        """The whole batch under one element; views where there are some."""
        flat = x.flatten(-self._trailing)
        return flat.index_select(-1, self._rows(x)[element]).reshape(x.shape)

    def _arguments(self) -> dict[str, object]:
        return {"table": tuple(self._table.flatten().tolist()), "sizes": self._sizes}

    def __repr__(self) -> str:
        if type(self) is not PermutationAction:
            return super().__repr__()
        return f"PermutationAction({len(self)} elements on {format_sizes(self._sizes)})"

    # What they all share --------------------------------------------------------------------------------------------

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(range(-self._trailing, 0))

    @property
    def places(self) -> tuple[int, ...]:
        return self.dims

    @property
    def _trailing(self) -> int:
        return len(self._faithful_sizes)

    @cached_property
    def cayley_table(self) -> Tensor | None:
        # x moved by h and then by g reads x[π_h(π_g(p))], so the product's table is π_h composed with π_g.
        rows = self.index_table(self._faithful_sizes)
        return permutation_group_table(rows)

    @cached_property
    def _inverse(self) -> Tensor | None:
        """The index of each element's inverse, or None where the inverses are not listed."""
        table = self.cayley_table
        return None if table is None else (table == 0).int().argmax(dim=1)

    def check(self, x: Tensor) -> None:
        check_batch(self, x, self._trailing)
        self._check_sizes(tuple(x.shape[-self._trailing :]))

    def _rows(self, x: Tensor) -> Tensor:
        sizes = tuple(x.shape[-self._trailing :])
        return self._keep((sizes, x.device), lambda: self.index_table(sizes).to(x.device))

    def _act_one(self, x: Tensor, element: int) -> Tensor:
        return self._permute(x, element)

    def _invert_one(self, x: Tensor, element: int) -> Tensor:
        # The multiplication table cannot be built inside a compiled graph.
        if not torch.compiler.is_compiling() and self._inverse is not None:
            return self._permute(x, int(self._inverse[element]))
        rows = self._rows(x)[element].argsort()
        return x.flatten(-self._trailing).index_select(-1, rows).reshape(x.shape)

    def _act_each(self, x: Tensor, index: Tensor) -> Tensor:
        if self._one_gather(x):
            return self._gather(x, self._rows(x).index_select(0, index))
        return super()._act_each(x, index)

    def _invert_each(self, x: Tensor, index: Tensor) -> Tensor:
        if self._one_gather(x):
            return self._gather(x, self._rows(x).argsort(dim=1).index_select(0, index))
        return super()._invert_each(x, index)

    def _one_gather(self, x: Tensor) -> bool:
        # Grouping samples by element reads the indices on the host: faster on the CPU, a stall on an accelerator,
        # and a break in a compiled graph.
        return x.device.type != "cpu" or torch.compiler.is_compiling()

    def _gather(self, x: Tensor, rows: Tensor) -> Tensor:
        flat = x.flatten(-self._trailing)
        between = (1,) * (flat.ndim - 2)
        where = rows.reshape(len(x), *between, prod(x.shape[-self._trailing :]))
        return flat.gather(-1, where.expand(flat.shape)).reshape(x.shape)
