"""Argument checks that several rooms share; every message names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raises a `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"Expected `{name}` to be one of {list(choices)} but got {value!r}.")


def check_count(name: str, value: object, minimum: int = 1) -> None:
    """Raises a `ValueError` unless `value` is an integer of at least `minimum`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"Expected `{name}` to be an integer of at least {minimum} but got {value!r}.")


def check_finite(name: str, value: Tensor) -> None:
    """Raises a `ValueError` where `value` holds NaN or infinity (this waits for the device)."""
    finite = torch.isfinite(value)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise ValueError(f"Expected `{name}` to be finite but got {bad} NaN or infinite of {value.numel()} values.")


def format_sizes(sizes: Sequence[int]) -> str:
    """Sizes as people write them: ``28×30``."""
    return "×".join(str(size) for size in sizes)
