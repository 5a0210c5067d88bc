"""Conditions are read by a parser that knows comparisons of measures, and nothing else."""

from __future__ import annotations

from math import inf, nan

import pytest

from lightning_invariance.auditing._conditions import read_conditions

MEASURES = ["orbit_share", "accuracy", "worst_case_orbit_accuracy", "forces/orbit_share"]
VALUES = {"orbit_share": 0.005, "accuracy": 0.9, "worst_case_orbit_accuracy": 0.8, "forces/orbit_share": 0.5}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("orbit_share < 0.01", True),
        ("orbit_share < 0.005", False),
        ("orbit_share <= 0.005", True),
        ("worst_case_orbit_accuracy > 0.9 * accuracy", False),  # .8 and .81
        ("worst_case_orbit_accuracy > 0.88 * accuracy", True),
        ("0.1 < accuracy < 0.5", False),
        ("(accuracy - worst_case_orbit_accuracy) / accuracy < 0.12", True),
        ("-accuracy > -1 and orbit_share > 1", False),
        ("orbit_share > 1 or accuracy >= 9e-1", True),
        ("1 - 2 - accuracy < -1.8", True),  # from the left
        ("forces.orbit_share < 1", True),
        ("accuracy / 0 > 1", False),
        ("1e300 * 1e300 * accuracy > 1", True),
    ],
)
def test_a_condition_holds_as_arithmetic_says(text: str, expected: bool) -> None:
    (asked,) = read_conditions([text], ["C4"], MEASURES)
    assert asked.judged("C4", VALUES).passed is expected


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "accuracy.__class__ < 1",
        "().__class__ < accuracy",
        "accuracy ** 9999999 > 1",
        "accuracy < 10" + "0" * 400,
        "accuracy < 1e999",
        "accuracy < True",
        "accuracy < 'a'",
        "accuracy == 1",
        "accuracy is 1",
        "accuracy",
        "not accuracy < 1",
        "1 < 2",
        "(accuracy < 1) < 2",
        "accuracy < (lambda: 1)()",
        "accuracy < (x := 1)",
        "[x for x in y] < accuracy",
        "accuracy < accuracy[0]",
        "f'{accuracy}' < accuracy",
        "open('x') < accuracy",
        "acuracy < 1",
        "accuracy < 1; accuracy",
        "accuracy <",
        "",
        "\0",
        "(" * 300 + "accuracy" + ")" * 300 + " < 1",
        "accuracy < 1 " + "and accuracy < 1 " * 100,
        "C8: accuracy < 1",
    ],
)
def test_anything_else_is_refused_before_it_is_judged(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expected .* in `conditions` to "):
        read_conditions([text], ["C4"], MEASURES)


def test_an_unknown_name_is_told_the_names_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"'orbit_share', 'accuracy'.* but got \['orbit_shar'\]"):
        read_conditions(["orbit_shar < 1"], ["C4"], MEASURES)


@pytest.mark.parametrize("wrong", ["orbit_share < 1", None, [3], [["accuracy < 1"]]])
def test_what_is_no_list_of_texts_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"`conditions` to (hold|be)"):
        read_conditions(wrong, ["C4"], MEASURES)  # type: ignore[arg-type]


def test_a_group_stands_before_a_colon_whatever_it_is_called() -> None:
    groups = ["C4", "C4: padded", "shifts of 2"]
    texts = ["accuracy < 1", "C4: accuracy < 1", "C4: padded: accuracy < 1", "shifts of 2:accuracy < 1"]
    found = read_conditions(texts, groups, MEASURES)
    assert [each.of(groups) for each in found] == [tuple(groups), ("C4",), ("C4: padded",), ("shifts of 2",)]
    assert {each.text for each in found} == {"accuracy < 1"}


def test_what_is_not_known_does_not_pass_and_says_why() -> None:
    (asked,) = read_conditions(["orbit_share < 1 or accuracy > 0"], ["C4"], MEASURES)
    undefined = asked.judged("C4", {"orbit_share": nan, "accuracy": 1.0})
    missing = asked.judged("C4", {"accuracy": 1.0})
    stopped = asked.judged("C4", VALUES, "The audit was stopped.")
    assert [each.passed for each in (undefined, missing, stopped)] == [False, False, False]
    assert undefined.why == "orbit_share is undefined"
    assert missing.why == "orbit_share was not measured"
    assert "stopped" in str(stopped)
    (asked,) = read_conditions(["accuracy < 1"], ["C4"], MEASURES)
    assert not asked.judged("C4", {"accuracy": inf}).passed
