"""Errors and warnings: who raises them, and where they point."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: Packages whose lines are not the user's.
_NOT_THE_USERS = ("lightning_invariance", "torchmetrics", "torch", "lightning", "pytorch_lightning", "lightning_fabric")


@contextmanager
def errors_of(owner: str) -> Iterator[None]:
    """Puts the owner's name before what was expected, where the package raises a `ValueError` in the block."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        if message.startswith("Expected "):
            error.args = (f"{owner}: e{message[1:]}",)
        raise


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns, pointing at the line of the user's own that led here."""
    packages = (sys.modules[name] for name in _NOT_THE_USERS if name in sys.modules)
    folders = tuple(os.path.dirname(package.__file__) + os.sep for package in packages if package.__file__)
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((*folders, os.path.dirname(os.__file__))):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
