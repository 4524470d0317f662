"""Numbers keep the digits that the file has."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_rella.rows.numbers import number_words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1234567", None),
        ("12345.9", None),
        ("19950125", None),
        ("0.1", None),
        ("-3.25", None),
        ("5.0", "5"),
        ("3.50", "3.5"),
        ("1600000000.125", None),
        ("123456789012345", None),
        ("1e15", "1000000000000000"),
        ("0.00001", None),
        ("0.0000125", None),
        ("-0.00002", None),
        ("1e300", "1e+300"),
        ("0", None),
        ("-0.0", "-0"),
    ],
)
def test_digits_of_a_file(text, expected):
    assert number_words(float(text)) == (expected or text)


@given(st.floats(allow_nan=False))
def test_a_number_is_read_back(value):
    text = number_words(value)
    assert float(text) == value and not text.endswith(".0")
    assert "e" not in text or not 1e-6 <= abs(value) < 1e16


@given(st.integers(-(10**15), 10**15), st.integers(0, 6))
def test_decimals_of_a_file_are_the_words(digits, places):
    """What a file writes with up to 15 digits reads the same in a prompt."""
    sign, text = "-" * (digits < 0), str(abs(digits)).zfill(places + 1)
    text = sign + (f"{text[:-places]}.{text[-places:]}" if places else text)
    text = text.rstrip("0").rstrip(".") if places else text
    if abs(digits) < 10**15 and digits and math.fabs(float(text)) >= 1e-6:
        assert number_words(float(text)) == text
