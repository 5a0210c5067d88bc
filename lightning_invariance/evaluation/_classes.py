"""For which classes values are wanted, besides those of all samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_invariance._locate import Labels

#: Whether values are wanted for each class: False; True, of as many classes as there are logits; their number; or
#: their names, in order.
PerClassOption = bool | int | Sequence[str]


@dataclass(frozen=True)
class Classes:
    """The classes that values are wanted for.

    Attributes:
        option: what was given as `per_class`.
        count: how many there are; None for as many as there are logits.
        names: what they are called; None for their numbers.
    """

    option: PerClassOption
    count: int | None
    names: tuple[str, ...] | None

    @classmethod
    def of(cls, option: PerClassOption) -> Classes | None:
        """None where no class is to have values of its own.

        Raises:
            ValueError: if `option` is none of what it may be.
        """
        if isinstance(option, bool):
            return cls(option, None, None) if option else None
        if isinstance(option, int) and option >= 1:
            return cls(option, option, None)
        if isinstance(option, Sequence) and not isinstance(option, str):
            names = tuple(option)
            if names and all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names):
                return cls(names, len(names), names)
            twice = sorted({name for name in names if isinstance(name, str) and names.count(name) > 1})
            if twice:
                raise ValueError(f"Expected `per_class` to name each class once but got {twice} several times.")
        raise ValueError(
            "Expected `per_class` to be True (as many classes as there are logits), False, the number of classes or "
            f"their names but got {option!r}."
        )

    def labels_of(self, labels: Labels) -> Tensor:
        """One class a sample.

        Raises:
            ValueError: if there are no such labels.
        """
        if labels.tensor is None or labels.tensor.ndim != 1:
            found = f"are {labels.tensor.ndim - 1} dimensions of them" if labels.tensor is not None else "are none"
            raise ValueError(
                f"Expected one label a sample for per_class={self.option!r} but there {found} ({labels.place}): say "
                "with `target=` where they are."
            )
        return labels.tensor

    def number(self, logits: Tensor, scores: bool) -> int:
        """How many there are.

        Args:
            logits: the network's outputs.
            scores: whether these are scores of classes.

        Raises:
            ValueError: if it is not known.
        """
        if self.count is not None:
            return self.count
        if not scores:
            raise ValueError(
                "Expected `per_class` to be the number of classes, or their names, for outputs that are no scores of "
                f"classes, {tuple(logits.shape)}, but got True."
            )
        return logits.shape[1]

    def named(self, count: int) -> tuple[str, ...]:
        """What so many classes are called."""
        return self.names if self.names is not None else tuple(str(number) for number in range(count))
