"""Argument checks that several rooms share; every message names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lightning_invariance._containers import describe_value


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raises a `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"Expected `{name}` to be one of {list(choices)} but got {value!r}.")


def check_count(name: str, value: object, minimum: int = 1) -> None:
    """Raises a `ValueError` unless `value` is an integer of at least `minimum`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"Expected `{name}` to be an integer of at least {minimum} but got {value!r}.")


def is_number(value: object) -> bool:
    """Whether `value` is a real number (numpy's are) and no bool."""
    return not isinstance(value, bool) and isinstance(value, Real)


def check_number(name: str, value: Any, above: float | None = None, minimum: float | None = None) -> None:
    """Raises a `ValueError` unless `value` is a finite number, above a bound or of at least a minimum if given."""
    if (
        not is_number(value)
        or not -float("inf") < value < float("inf")
        or (above is not None and value <= above)
        or (minimum is not None and value < minimum)
    ):
        bound = f" above {above}" if above is not None else "" if minimum is None else f" of at least {minimum}"
        raise ValueError(f"Expected `{name}` to be a finite number{bound} but got {value!r}.")


def check_seed(name: str, value: object) -> None:
    """Raises a `ValueError` unless torch takes `value` as a seed."""
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**64:
        raise ValueError(f"Expected `{name}` to be an integer of at most 64 bits but got {value!r}.")


def check_callable(name: str, value: object, example: str) -> None:
    """Raises a `ValueError` unless `value` can be called."""
    if not callable(value):
        raise ValueError(f"Expected `{name}` to be {example} but got {value!r}.")


def check_iterable(name: str, value: object, content: str) -> None:
    """Raises a `ValueError` unless `value` can be run through; a string is taken for a mistake."""
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        raise ValueError(f"Expected `{name}` to hold {content} but got {value!r}.")


def check_tensor(name: str, value: object, purpose: str = "") -> None:
    """Raises a `ValueError` unless `value` is a tensor that holds values."""
    if not isinstance(value, Tensor):
        raise ValueError(f"Expected `{name}` to be a tensor{purpose} but got {describe_value(value)}.")
    check_not_meta(name, value)


def as_tensor(name: str, value: object, dtype: torch.dtype | None = None) -> Tensor:
    """`value` itself, or nested sequences of numbers, as configuration files have them, as a tensor of that dtype.

    Raises:
        ValueError: if it is neither, or the sequences are not of one length.
    """
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        try:
            return torch.tensor(value, dtype=dtype, device="cpu")
        except (ValueError, TypeError, RuntimeError, OverflowError):
            raise ValueError(
                f"Expected `{name}` to be a tensor, or nested sequences of numbers, as many in each, but got {value!r}."
            ) from None
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    return value


def check_floating(name: str, value: Tensor, purpose: str) -> None:
    """Raises a `ValueError` unless `value` is floating point."""
    if not value.is_floating_point():
        raise ValueError(f"Expected `{name}` to be floating point, {purpose}, but got {value.dtype}.")


def check_has_gradient(gradient: Tensor | None) -> Tensor:
    """The gradient of a network's logits; raises a `ValueError` where there is none."""
    if gradient is None:
        raise ValueError(
            "Expected `network` to give logits that have a gradient with respect to `x` but got none: they do not "
            "depend on it, or the network detaches them. Saliency maps are left out with `saliency_samples=0`."
        )
    return gradient


def check_not_meta(name: str, value: Tensor) -> None:
    """Raises a `ValueError` where `value` lies on the meta device, which has shapes but no values."""
    if value.is_meta:
        raise ValueError(f"Expected `{name}` to hold values but got a tensor on the meta device.")


def check_same_device(name: str, value: Tensor, device: torch.device, whose: str) -> None:
    """Raises a `ValueError` unless `value` lies on the device."""
    if value.device != device:
        raise ValueError(f"Expected `{name}` to be on {device}, as {whose}, but got {value.device}.")


def check_target(target: object, samples: int, what: str = "integers") -> None:
    """Raises a `ValueError` unless `target` is a tensor of one integer a sample."""
    if (
        not isinstance(target, Tensor)
        or target.shape != (samples,)
        or target.is_floating_point()
        or target.is_complex()
    ):
        got = describe_value(target)
        raise ValueError(f"Expected `target` to hold {samples} {what}, one a sample, but got {got}.")


def check_classes_named(target: Tensor, classes: int) -> None:
    """Raises a `ValueError` where `target` names a class that is none (this waits for the device)."""
    check_not_meta("target", target)
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise ValueError(
            f"Expected `target` to hold classes from 0 to {classes - 1} "
            f"but got values from {int(target.min())} to {int(target.max())}."
        )


def check_finite(name: str, value: Tensor) -> None:
    """Raises a `ValueError` where `value` holds NaN or infinity (this waits for the device)."""
    check_not_meta(name, value)
    finite = torch.isfinite(value)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise ValueError(f"Expected `{name}` to be finite but got {bad} NaN or infinite of {value.numel()} values.")


def format_sizes(sizes: Sequence[int]) -> str:
    """Sizes as people write them: ``28×30``."""
    return "×".join(str(size) for size in sizes)
