"""Numbers keep the digits that the file has."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from recbole_rella.prompt.template import Rating
from recbole_rella.rows.numbers import as_exact, as_in_file, number_words


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.decimals(-100, 100, places=2).map(float), min_size=1))
def test_no_rating_loses_a_digit(values):
    kept = as_exact(np.array(values))
    assert [as_in_file(value) for value in kept] == values and [float(str(Rating(value))) for value in values] == values


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([1, 2.5, 4.1, 0.1], "float32"), ([1, 16777217], "float64"), ([1234567.89], "float64"), ([1e300], "float64")],
)
def test_half_the_memory_where_nothing_is_lost(values, dtype):
    assert as_exact(np.array(values, dtype=np.float64)).dtype == dtype


@example(-0.0)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_words_of_a_number_read_back(value):
    words = number_words(value)
    assert float(words) == value and not words.endswith(".0") and words != "-0"
