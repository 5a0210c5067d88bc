"""Numbers as people read them."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_invariance.report import value_with_error, zeros_note


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.0, None, "0"),
        (0.0, 0.0, "0"),
        (0.0, 0.2, "0.00 ± 0.20"),
        (1.0, 0.0, "1.00 ± 0"),
        (9.996, None, "10.0"),  # rounding adds a digit, and no other one
        (9.9996e-5, None, "1.00e-04"),
        (-0.00001, 0.5, "0.000 ± 0.500"),  # and not -0.000
        (-0.5, 0.1, "-0.500 ± 0.100"),
        (7161, None, "7,161"),
        (12345678, None, "12,345,678"),  # a count, in full
        (12345678.0, None, "1.23e+07"),
        (123456.7, 333.0, "123,457 ± 333"),
        (1e7, 3e5, "1.00e+07 ± 3e+05"),
        (12.34, nan, "12.3"),
        (12.34, inf, "12.3 ± ∞"),
        (-inf, None, "-∞"),
        (nan, None, "–"),
    ],
)
def test_it_is_written_so(value, error, text):
    assert value_with_error(value, error) == text


def test_only_what_rounding_explains_is_shown_as_zero():
    assert value_with_error(9e-10, zero_below=1e-9) == "0"
    assert value_with_error(1.1e-9, zero_below=1e-9) == "1.10e-09"
    assert value_with_error(9e-10, 0.02, zero_below=1e-9) == "0.0000 ± 0.0200"  # that error is none of rounding
    assert value_with_error(0.97, 3e-9, zero_below=1e-8) == "0.970 ± 0"
    assert value_with_error(0.0, percent=True) == "0 %"
    assert zeros_note([9e-10, -2e-10, nan, 3.0], zero_below=1e-9) == "0: below 1e-09, rounding"
    assert zeros_note([1e-10], zero_below=1e-9) == "0: below 1e-09, rounding"
    assert zeros_note([3.0, nan], zero_below=1e-9) == zeros_note([], zero_below=1e-9) == ""


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e12, 1e12), st.floats(0, 1e9))
def test_what_is_shown_is_near_what_was_given(value, error):
    shown, _, deviation = value_with_error(value, error).replace(",", "").partition(" ± ")
    # Half of the third digit of the value, or of the third digit of the error, whichever is coarser.
    assert abs(float(shown) - value) <= max(0.0051 * abs(value), 0.0051 * error)
    # The error ends where the value does, with one digit at least.
    assert abs(float(deviation or 0) - error) <= max(0.51 * error, 0.0051 * abs(value)) if error else True
    # Written out from 0.0001 up to a million.
    if 1e-4 <= max(abs(value), error) < 1e6:
        assert "e" not in shown
