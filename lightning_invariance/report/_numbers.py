"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable
from math import floor, isinf, isnan, log10

from lightning_invariance._checks import check_iterable, check_number, is_number

#: From where to where numbers are written out.
_SMALLEST, _LARGEST = 1e-4, 1e6


def value_with_error(
    value: float, error: float | None = None, *, zero_below: float = 0.0, percent: bool = False
) -> str:
    """A number and its error, as people read them.

    The value has three significant digits, up to two more where the error needs them, and fewer where the error has
    three already. The error ends at the same place. Numbers from 0.0001 up to a million are written out.

    Args:
        value: the number. NaN is shown as a dash.
        error: its standard error or deviation; None or NaN shows none.
        zero_below: a value and an error of at most this size are shown as 0: how far rounding goes, for an error of
            invariance. `zeros_note` says below which bound they all are.
        percent: whether a share is shown in per cent, with at least one decimal.

    Returns:
        The text.

    Raises:
        ValueError: if `value` or `error` is no number, `error` is negative, or `zero_below` is no number of at least 0.

    Example:
        >>> from lightning_invariance.report import value_with_error
        >>> value_with_error(30.94, 10.41), value_with_error(0.9517, 0.0113), value_with_error(861.2, 33.4)
        ('30.9 ± 10.4', '0.952 ± 0.011', '861 ± 33')
        >>> value_with_error(0.000316, 0.000038), value_with_error(1.23e-5, 3e-6), value_with_error(0.97312, 0.0004)
        ('0.000316 ± 0.000038', '1.23e-05 ± 3.0e-06', '0.9731 ± 0.0004')
        >>> value_with_error(1.0, 3.8e-9), value_with_error(1234.5), value_with_error(float("nan"), 0.1)
        ('1.00 ± 4e-09', '1,234', '–')
        >>> value_with_error(8.58e-11, 4.6e-12), value_with_error(8.58e-11, 4.6e-12, zero_below=1e-9)
        ('8.58e-11 ± 4.6e-12', '0')
        >>> value_with_error(0.9461, 0.0043, percent=True), value_with_error(1.0, percent=True)
        ('94.6 ± 0.4 %', '100.0 %')
    """
    _check_value("value", value)
    if error is not None:
        _check_value("error", error)
        if error < 0:
            raise ValueError(f"Expected `error` to be at least 0 but got {error!r}.")
    check_number("zero_below", zero_below, minimum=0)
    if isnan(value):
        return "–"
    known = error is not None and not isnan(error)
    if abs(value) <= zero_below and (error is None or not known or error <= zero_below):
        return "0 %" if percent else "0"
    if percent:
        deviation = 100 * error if error is not None and known else None
        return f"{_text(100 * value, deviation, 100 * zero_below, least=1)} %"
    if isinstance(value, int) and not known:
        return f"{value:,}"
    return _text(value, error if known else None, zero_below)


def zeros_note(values: Iterable[float], *, zero_below: float) -> str:
    """What a caption says of the values that `value_with_error` shows as 0: below which power of ten they all are.

    Args:
        values: all values that are shown, and their errors. NaN is left out.
        zero_below: what was given to `value_with_error`.

    Returns:
        The text; empty if no value is shown as 0, or all that are so are exactly 0.

    Raises:
        ValueError: if `values` holds something else than numbers, or `zero_below` is no number of at least 0.

    Example:
        >>> from lightning_invariance.report import zeros_note
        >>> zeros_note([31.2, 8.58e-11, 2.2e-12], zero_below=1e-9), zeros_note([31.2, 0.0], zero_below=1e-9)
        ('0: below 1e-10, rounding', '')
    """
    check_iterable("values", values, "numbers")
    check_number("zero_below", zero_below, minimum=0)
    largest = 0.0
    for value in values:
        _check_value("values", value)
        if abs(value) <= zero_below:
            largest = max(largest, abs(value))
    return f"0: below 1e{floor(log10(largest)) + 1:+03d}, rounding" if largest else ""


def _check_value(name: str, value: object) -> None:
    if not is_number(value):
        raise ValueError(f"Expected `{name}` to hold a number but got {value!r}.")


def _text(value: float, error: float | None, zero_below: float, least: int | None = None) -> str:
    """Value and error up to the same decimal, which is at least `least`."""
    place = _place(value, 3) if least is None else max(_place(value, 3), least)
    if error is None:
        return _rounded(value, place, abs(value))
    if isinf(value) or isinf(error) or error <= zero_below:
        return f"{_rounded(value, place, abs(value))} ± {_text(error, None, 0.0) if error > zero_below else '0'}"
    if value == 0:
        place = _place(error, 2)
    elif _place(error, 1) > place + 2:  # the value would need more digits than anybody reads
        return f"{_rounded(value, place, abs(value))} ± {_rounded(error, _place(error, 1), error)}"
    place = min(max(place, _place(error, 1)), _place(error, 3))
    size = max(abs(value), error)
    return f"{_rounded(value, place, size)} ± {_rounded(error, place, size)}"


def _place(value: float, digits: int) -> int:
    """The decimal at which so many significant digits end; negative to the left of the point."""
    return 0 if isinf(value) else digits - 1 - _exponent(f"{value:.{digits - 1}e}")


def _rounded(value: float, place: int, size: float) -> str:
    """The value up to a decimal, written out if numbers of this size are."""
    if isinf(value):
        return "∞" if value > 0 else "-∞"
    value = round(value, max(place, 0)) + 0.0  # no -0
    if _SMALLEST <= size < _LARGEST:
        return f"{value:,.{max(place, 0)}f}"
    return f"{value:.{max(place + _exponent(f'{value:e}'), 0)}e}" if value else "0"


def _exponent(text: str) -> int:
    return int(text.partition("e")[2])
