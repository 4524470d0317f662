"""Numbers that keep the digits which the file has, as words and as columns."""

import numpy as np
import pandas as pd

# More different numbers than a scale of ratings has.
_MANY = 10_000


def number_words(value):
    """The shortest decimal text that reads back as the same number; no exponent from 1e-6 to 1e16, no .0 at the end,
    no sign before 0.

    Args:
        value (float): read from a file as float64; not missing.

    Returns:
        str: 1234567, 0.1, -3.25, 1e+300, inf.
    """
    text = repr(float(value) + 0.0)
    if "e-" in text and abs(value) >= 1e-6:
        text = f"{value:.{len(text.split('e')[0].replace('.', '').lstrip('-')) + int(text.split('e-')[1]) - 1}f}"
    return text.removesuffix(".0")


def as_whole(values):
    """A column as integers, where all of them are.

    Args:
        values (numpy.ndarray): finite, float64 [n], below 2^63.

    Returns:
        numpy.ndarray: int64 [n], or `values`.
    """
    whole = values.astype(np.int64)
    return whole if (whole == values).all() else values


def in_whole(value):
    """A number as int where it is whole: what a text says of it does not depend on the numbers beside it in its column."""
    return int(value) if value == int(value) else value


def as_exact(values):
    """A column in half the memory, where no number loses a digit by it.

    Args:
        values (numpy.ndarray): finite, float64 [n].

    Returns:
        numpy.ndarray: float32 [n] where the shortest decimal of each number is the same in float32, as that of stars is; else, and
        where there are too many different ones to try, `values`.
    """
    different = pd.unique(values)
    with np.errstate(over="ignore"):
        same = len(different) <= _MANY and all(float(str(np.float32(value))) == value for value in different)
    return values.astype(np.float32) if same else values


def as_in_file(value):
    """A number of such a column as the file has it: 4.1, and not 4.099999904632568, which float32 makes of it.

    Args:
        value (numpy.floating): of a column that `as_exact` gave.

    Returns:
        float: float64.
    """
    return float(str(value))
