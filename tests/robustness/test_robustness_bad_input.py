"""Every public callable, given what it cannot use, names the argument and what was expected, or does as documented."""

from __future__ import annotations

import inspect
import re
import warnings
from collections import defaultdict
from types import ModuleType

import pytest
from bad_input_table import FUNCTIONS, METRICS, ROWS, WAYS, Row

import lightning_invariance
from lightning_invariance import baselines, functional, report


def ids(rows: list[Row]) -> list[str]:
    seen: dict[str, int] = defaultdict(int)
    names = []
    for row in rows:
        name = f"{row.name}-{row.kind}"
        seen[name] += 1
        names.append(f"{name}-{seen[name]}")
    return names


REFUSED = [row for row in ROWS if row.refused is not None]
GIVEN = [row for row in ROWS if row.refused is None]


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("row", REFUSED, ids=ids(REFUSED))
def test_it_is_refused_with_an_error_that_names_the_argument(row: Row) -> None:
    assert row.refused is not None
    with pytest.raises(row.error, match=row.refused) as caught:
        row.call()
    # A subclass would be torch's or Python's own complaint.
    assert type(caught.value) is row.error
    if row.error is ValueError:
        assert re.search("[Ee]xpected", str(caught.value))


@pytest.mark.parametrize("row", GIVEN, ids=ids(GIVEN))
def test_it_gives_the_documented_result(row: Row) -> None:
    assert row.holds is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        result = row.call()
    texts = [str(each.message) for each in caught if re.search("undefined|NaN or infinite", str(each.message))]
    if row.warns is None:
        assert texts == []
    elif row.warns:
        assert any(re.search(row.warns, text) for text in texts), texts
    assert row.holds(result)


def public_callables() -> set[str]:
    names = set()
    for prefix, namespace in (
        ("", lightning_invariance),
        ("functional.", functional),
        ("baselines.", baselines),
        ("report.", report),
    ):
        for name, value in vars(namespace).items():
            if not name.startswith("_") and not isinstance(value, ModuleType) and callable(value):
                assert inspect.isclass(value) or inspect.isfunction(value)
                names.add(prefix + name)
    return names


def test_every_public_callable_is_in_the_table() -> None:
    assert {row.name for row in ROWS} == public_callables()


KINDS: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "functions": (tuple(FUNCTIONS), {"type", "shape", "dtype", "device", "empty", "one sample", "NaN", "infinite"}),
    "metrics": (tuple(METRICS), {"type", "shape", "dtype", "device", "empty", "one sample", "NaN", "infinite"}),
    "maps": (tuple(WAYS), {"type", "dtype", "device", "empty", "integer images", "negative", "target out of range"}),
    "running": (
        ("evaluate_orbit", "evaluate_invariance"),
        {"type", "shape", "device", "empty", "one sample", "NaN", "infinite", "integer images", "non-square"}
        | {"negative", "unknown name", "target out of range"},
    ),
    "callbacks": (
        ("InvarianceMonitor", "InvarianceRegularizer", "OrbitAugmentation"),
        {"type", "non-square", "one sample", "integer images", "wrong inverse", "unknown name", "trivial group"},
    ),
    "sensitivity": (
        ("jacobian_spectral_norm", "evaluate_perturbations"),
        {"type", "shape", "dtype", "device", "empty", "one sample", "NaN", "infinite", "integer images", "negative"},
    ),
    "elements": (("InvarianceRegularizer", "evaluate_orbit", "C4", "SO3"), {"elements > |G|"}),
}


@pytest.mark.parametrize(("names", "kinds"), KINDS.values(), ids=KINDS)
def test_every_kind_of_bad_input_is_tried(names: tuple[str, ...], kinds: set[str]) -> None:
    for name in names:
        assert kinds <= {row.kind for row in ROWS if row.name == name}, name
