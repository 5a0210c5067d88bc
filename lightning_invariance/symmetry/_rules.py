"""The rules by which a trace works out how outputs move: one for each operation, found by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    pass

#: From the trace, the output and the operation's arguments by name to the dimensions of the output.
RuleFunction = Callable[..., Any]


@dataclass(frozen=True)
class Rule:
    """How outputs of an operation move.

    Attributes:
        function: see `register_rule`.
        takes_parts: whether it may take one axis of a grid without the other: views and sums do.
    """

    function: RuleFunction
    takes_parts: bool = False


_RULES: dict[str, Rule] = {}


def register_rule(*operations: str, takes_parts: bool = False) -> Callable[[RuleFunction], RuleFunction]:
    """Adds a rule for operations of torch, or of your own, that have none.

    A rule says how an operation's output moves when its inputs do. It is a function of the trace, the output, and the
    operation's arguments by their names in its schema, and returns the dimensions of the output, a tuple of one entry a
    dimension (a list of such tuples for several outputs; None for one that nothing can be said of). It finds those of
    an input by ``trace.of(tensor)`` and makes two alike by ``trace.solver.equate(dim, other)``.

    Args:
        operations: their names, such as ``"aten.relu"``; with an overload, ``"aten.sum.dim_IntList"``, for that alone.
        takes_parts: whether it may take one axis of a grid without the other, as views do.

    Returns:
        A decorator.

    Example:
        The output of ``aten.erfinv`` moves as its input does:

        >>> from lightning_invariance.symmetry import register_rule
        >>> @register_rule("aten.erfinv")
        ... def _(trace, output, self):
        ...     return trace.of(self)
    """

    def register(function: RuleFunction) -> RuleFunction:
        for operation in operations:
            _RULES[operation] = Rule(function, takes_parts)
        return function

    return register


def rule_for(name: str, function: Any) -> Rule | None:
    """The rule of an operation, by its name with or without the overload; pointwise ones have one in common."""
    whole = name.rsplit(".", 1)[0]
    for key in (name, whole, whole.removesuffix("_")):
        if key in _RULES:
            return _RULES[key]
    if function is not None and torch.Tag.pointwise in function.tags:
        return _RULES["pointwise"]
    return None


def in_words() -> str:
    """What there are rules for."""
    names = sorted({name.removeprefix("aten.").split(".")[0] for name in _RULES} - {"pointwise"})
    return "pointwise operations and " + ", ".join(names)
