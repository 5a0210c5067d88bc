"""What makes a group a small value: its `repr` and its equality follow from how it was made."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Value(ABC):
    """An immutable object that is known by its constructor's arguments."""

    @abstractmethod
    def _arguments(self) -> dict[str, object]:
        """The constructor's arguments, hashable: they make the `repr` and the equality."""

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._arguments().items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._arguments() == other._arguments()

    def __hash__(self) -> int:
        return hash((type(self), *self._arguments().items()))
