"""What is optional: the one place that knows how to install it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

_INSTALLATION = {
    "matplotlib": "pip install 'lightning-invariance[demo]'",
    "scipy": "pip install 'lightning-invariance[layers]'",
    "jsonargparse": "pip install 'lightning-invariance[cli]'",
    "pandas": "pip install pandas",
    # What escnn's own metadata asks for needs a Fortran compiler, and none of that is used in the plane.
    "escnn": "pip install 'numpy<2' scipy joblib requests && pip install --no-deps 'escnn>=1.0.11,<2' lie_learn==0.0.2",
}


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
        raise ModuleNotFoundError(f"{purpose} needs {package}: {_INSTALLATION[package]}") from error
