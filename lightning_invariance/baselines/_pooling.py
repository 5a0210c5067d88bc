"""Pooling over the group: what makes the baselines invariant."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lightning_invariance._checks import check_choice
from lightning_invariance.actions import Action

Pool = Literal["mean", "max"]


def check_group(action: Action) -> None:
    """Raises unless the action's elements are a group: pooling over anything else is not invariant."""
    if not isinstance(action, Action):
        raise ValueError(f"Expected `action` to be an Action, such as C4(), but got {action!r}.")
    if action.cayley_table is None:
        raise ValueError(
            f"Expected `action` to list all elements of a group (pooling over part of one is not invariant) but got "
            f"{action!r}, whose products are not among its elements or not known."
        )


def check_pool(pool: object) -> None:
    """Raises unless the pooling is known."""
    check_choice("pool", pool, ("mean", "max"))


def pool_over_group(features: Tensor, pool: Pool) -> Tensor:
    """Pools ``(|G|, B, ...)`` over its first dimension."""
    return features.mean(dim=0) if pool == "mean" else features.amax(dim=0)
