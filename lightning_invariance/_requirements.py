"""What is optional: the one place that knows which extra brings it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

_EXTRAS = {"matplotlib": "demo"}


def require(name: str, purpose: str) -> ModuleType:
    """Imports an optional dependency.

    Args:
        name: the module, ``"matplotlib.pyplot"`` for instance.
        purpose: what needs it, for the message.

    Raises:
        ModuleNotFoundError: if it is not installed; the message says how to install it.
    """
    package = name.split(".")[0]
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs {package}: pip install 'lightning-invariance[{_EXTRAS[package]}]'."
        ) from error
