"""Every public callable, given what it cannot use, names the argument and what was expected, or does as documented."""

from __future__ import annotations

import inspect
import re
import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
from bad_input import ROWS, Row

import lightning_invariance as li
from lightning_invariance import baselines, functional, report
from lightning_invariance.report import html

for room in ("measures", "actions", "orbit", "evaluation", "callbacks", "models", "parts", "flows", "layers", "html"):
    import_module(f"bad_input_{room}")


def complaint(row: Row) -> str:
    """What is wrong with what came of a call that is to be refused."""
    try:
        result = row.call()
    except Exception as error:
        # A subclass would be torch's or Python's own complaint.
        expected = row.error is not ValueError or re.search("[Ee]xpected", str(error))
        if type(error) is row.error and expected and re.search(str(row.refused), str(error)):
            return ""
        return f"{error!r}"
    return f"no error but {result!r}"


def difference(row: Row) -> str:
    """What is wrong with a result."""
    assert row.holds is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        result = row.call()
    texts = [str(each.message) for each in caught if re.search("undefined|NaN or infinite", str(each.message))]
    warned = texts == [] if row.warns is None else not row.warns or any(re.search(row.warns, text) for text in texts)
    return "" if warned and row.holds(result) else f"{result!r} with {texts}"


NAMES = sorted({row.name for row in ROWS})


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("name", NAMES)
def test_it_refuses_with_an_error_that_names_the_argument_or_gives_the_documented_result(name: str) -> None:
    wrong = []
    for row in ROWS:
        if row.name == name:
            told = difference(row) if row.refused is None else complaint(row)
            wrong += [f"{row.refused or 'a result'}: {told}, given {row.given[:300]}"] if told else []
    assert wrong == []


def public_callables() -> set[str]:
    names = set()
    for prefix, namespace in (
        ("", li),
        ("functional.", functional),
        ("baselines.", baselines),
        ("report.", report),
        ("report.html.", html),
    ):
        for name, value in vars(namespace).items():
            if not name.startswith("_") and not isinstance(value, ModuleType) and callable(value):
                assert inspect.isclass(value) or inspect.isfunction(value)
                names.add(prefix + name)
    return names


RECORDS = (li.ComparedModel, li.Estimate, li.Finding, li.MonitorRecord, li.OrbitOutputs, li.SetupReport)


def test_every_public_callable_is_in_the_table() -> None:
    assert {*NAMES, *(record.__name__ for record in RECORDS)} == public_callables()


@pytest.mark.parametrize("record", RECORDS)
def test_records_hold_what_they_are_given_for_good(record: Any) -> None:
    first, *_ = inspect.signature(record).parameters
    with pytest.raises(TypeError, match=first):
        record()
    required = [each for each in inspect.signature(record).parameters.values() if each.default is each.empty]
    made = record(*range(len(required)))
    assert getattr(made, first) == 0
    with pytest.raises(AttributeError):
        setattr(made, first, 1)
