"""Conditions in words of the field, such as ``"orbit_share < 0.01"``: read by a parser of their own, never executed."""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan

from lightning_invariance._checks import check_iterable

#: The longest text that is read: what is nested deeper would end in Python's own limits.
_LONGEST = 500

#: The largest number in a condition; what is beyond is no float.
_LARGEST = 1e300

_ARITHMETIC: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ALLOWED = "measures, numbers, + - * / ( ), comparisons by < <= > >=, `and` and `or`"


@dataclass(frozen=True)
class Condition:
    """What was asked of one group, and what came of it.

    Attributes:
        text: the condition, without its group.
        group: the group that it is asked of.
        values: what the measures in it are; NaN for those that are missing.
        passed: whether it holds. One that rests on NaN does not, nor one that samples with NaN were left out of.
        why: why it could not be decided; nothing where it could.
    """

    text: str
    group: str
    values: Mapping[str, float]
    passed: bool
    why: str = ""

    def __str__(self) -> str:
        found = ", ".join(f"{name.replace('/', '.')} = {value:.4g}" for name, value in self.values.items())
        return f"{self.group}: {self.text} {'holds' if self.passed else 'does not hold'} ({self.why or found})"


@dataclass(frozen=True)
class Asked:
    """A condition that was read.

    Attributes:
        text: as it was given, without its group.
        group: the group that it is asked of; None for each of them.
        names: the measures in it, in order.
    """

    text: str
    group: str | None
    names: tuple[str, ...]

    def of(self, groups: Sequence[str]) -> tuple[str, ...]:
        """The groups that it is asked of."""
        return tuple(groups) if self.group is None else (self.group,)

    def judged(
        self,
        group: str,
        measures: Mapping[str, float],
        missing: str = "",
        not_finite: Mapping[str, str] | None = None,
    ) -> Condition:
        """Whether it holds of what was measured.

        Args:
            group: the group that was measured.
            measures: its measures.
            missing: why nothing can be decided, if so.
            not_finite: the measures that left samples out, and how many, in words.
        """
        dropped = {name: why for name, why in (not_finite or {}).items() if name in self.names}
        values = {name: measures.get(name, nan) for name in self.names}
        undefined = [name for name, value in values.items() if isnan(value)]
        if missing or undefined:
            lacking = [name for name in undefined if name not in measures]
            what = "was not measured" if lacking else "is undefined"
            why = missing or f"{_listed(lacking or undefined)} {what}"
            if dropped and not missing and not lacking:
                why += f": {next(iter(dropped.values()))}"
            return Condition(self.text, group, values, False, why)
        if dropped:
            whys = dict.fromkeys(dropped.values())
            told = [f"{_listed([name for name in dropped if dropped[name] == why])}: {why}" for why in whys]
            return Condition(self.text, group, values, False, "; ".join(told))
        try:
            held = _holds(_parsed(self.text), values)
        except (ZeroDivisionError, OverflowError):
            return Condition(self.text, group, values, False, "it divides by 0, or overflows")
        return Condition(self.text, group, values, held)


def _typed(names: Collection[str]) -> list[str]:
    """Names of measures as they are written in conditions."""
    return [name.replace("/", ".") for name in names]


def _listed(names: Collection[str]) -> str:
    return ", ".join(_typed(names))


def read_conditions(conditions: Sequence[str], groups: Sequence[str], measures: Collection[str]) -> tuple[Asked, ...]:
    """Reads conditions before any work is done.

    Args:
        conditions: each ``"orbit_share < 0.01"``, or of one group ``"C4: orbit_share < 0.01"``.
        groups: the groups' names.
        measures: the names that may stand in a condition.

    Raises:
        ValueError: if one cannot be read, or names a group or a measure that there is not.
    """
    check_iterable("conditions", conditions, "comparisons of measures, such as 'orbit_share < 0.01',")
    return tuple(_read(text, groups, measures) for text in conditions)


def _read(given: object, groups: Sequence[str], measures: Collection[str]) -> Asked:
    if not isinstance(given, str):
        raise ValueError(
            f"Expected each of `conditions` to be a text, such as 'orbit_share < 0.01', but got {given!r}."
        )
    group, text = _group_of(given, groups)
    tree = _parsed(text)
    names = tuple(dict.fromkeys(_names_in(tree)))
    unknown = [name for name in names if name not in measures]
    if unknown:
        raise ValueError(
            f"Expected {given!r} in `conditions` to name measures among {_typed(measures)} but got {_typed(unknown)}."
        )
    if not names:
        raise ValueError(f"Expected {given!r} in `conditions` to name a measure but it names none.")
    return Asked(text, group, names)


def _group_of(given: str, groups: Sequence[str]) -> tuple[str | None, str]:
    """The group in front of a colon, and what is behind it."""
    named = [group for group in groups if given.strip().startswith(f"{group}:")]
    if named:
        group = max(named, key=len)
        return group, given.strip()[len(group) + 1 :].strip()
    if ":" in given:
        raise ValueError(
            f"Expected {given!r} in `conditions` to name a group among {list(groups)} before the colon but got "
            f"{given.split(':')[0].strip()!r}."
        )
    return None, given.strip()


def _parsed(text: str) -> ast.expr:
    """The tree of a condition, of nothing but what is allowed.

    Raises:
        ValueError: if there is anything else in it.
    """
    refusal = f"Expected {text[:80]!r} in `conditions` to be made of {_ALLOWED}, such as 'orbit_share < 0.01', but "
    if len(text) > _LONGEST:
        raise ValueError(f"{refusal}got {len(text)} characters, more than {_LONGEST}.")
    try:
        with warnings.catch_warnings():  # Python's own, about what is odd in the text
            warnings.simplefilter("ignore")
            tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{refusal}it cannot be read.") from None
    wrong = _refused(tree, of_truth=True)
    if wrong is not None:
        raise ValueError(f"{refusal}got {wrong}.")
    return tree


def _refused(node: ast.expr, of_truth: bool) -> str | None:
    """What is not allowed, in words; None if all is.

    Args:
        node: a part of a condition.
        of_truth: whether it stands where something is true or false, and not where a number is wanted.
    """
    parts: list[tuple[ast.expr, bool]]
    if of_truth:
        if isinstance(node, ast.BoolOp):
            parts = [(each, True) for each in node.values]
        elif isinstance(node, ast.Compare) and all(type(each) in _COMPARISONS for each in node.ops):
            parts = [(each, False) for each in (node.left, *node.comparators)]
        else:
            return f"{ast.unparse(node)[:80]!r}, which is no comparison"
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        parts = [(node.left, False), (node.right, False)]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        parts = [(node.operand, False)]
    elif _is_number(node) or _name_of(node) is not None:
        parts = []
    else:
        return f"{ast.unparse(node)[:80]!r}"
    return next((wrong for each, truth in parts if (wrong := _refused(each, truth)) is not None), None)


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float) and abs(node.value) <= _LARGEST  # type: ignore[arg-type]


def _name_of(node: ast.expr) -> str | None:
    """A measure's name; ``forces.orbit_share`` is that of the output ``forces``, which is called with a slash."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}/{node.attr}"
    return None


def _names_in(node: ast.expr) -> Iterator[str]:
    name = _name_of(node)
    if name is not None:
        yield name
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield from _names_in(child)


def _holds(node: ast.expr, values: Mapping[str, float]) -> bool:
    if isinstance(node, ast.BoolOp):
        parts = [_holds(each, values) for each in node.values]
        return all(parts) if isinstance(node.op, ast.And) else any(parts)
    assert isinstance(node, ast.Compare)
    numbers = [_number(each, values) for each in (node.left, *node.comparators)]
    pairs = zip(node.ops, numbers, numbers[1:], strict=False)
    return all(_COMPARISONS[type(each)](left, right) for each, left, right in pairs)


def _number(node: ast.expr, values: Mapping[str, float]) -> float:
    if isinstance(node, ast.BinOp):
        return _ARITHMETIC[type(node.op)](_number(node.left, values), _number(node.right, values))
    if isinstance(node, ast.UnaryOp):
        number = _number(node.operand, values)
        return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]
    name = _name_of(node)
    assert name is not None
    return values[name]
