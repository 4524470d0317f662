"""RecBole's reading of atomic files, by pandas' C parser where it gives what the Python one, which RecBole asks for, gives.

The Python parser takes ten times as long and several times the memory: every cell is a string of its own, where the C parser
shares equal ones. Wherever the two may differ, the Python parser reads, so that a file's values, and the errors of one that does
not read, are RecBole's own to the last bit. tests/atomic/test_reading.py compares them on awkward files.
"""

import types
from contextlib import contextmanager

import numpy as np
import pandas as pd
import recbole.data.dataset.dataset as recbole_dataset

# Beyond it the Python parser rounds a column of whole numbers once, and the C parser once a digit.
_EXACT = 2.0**53
# In quotes the Python parser accepts less than the C parser does, whose texts end at a zero byte.
_READ_DIFFERENTLY = (b'"', b"\0")


def _may_differ(path):
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            if any(byte in block for byte in _READ_DIFFERENTLY):
                return True
    return False


def _by_c(path, delimiter, options):
    """What the C parser reads, or None where the Python parser has to."""
    if len(delimiter.encode()) > 1 or _may_differ(path):
        return None
    try:
        # Of rows that are longer than the header the Python parser takes the first cells for an index.
        first = pd.read_csv(path, delimiter=delimiter, engine="python", nrows=1, **options)
        if not isinstance(first.index, pd.RangeIndex):
            return None
        # "high" is how the Python parser reads numbers, too.
        read = pd.read_csv(path, delimiter=delimiter, engine="c", float_precision="high", **options)
    except (ValueError, OSError):  # those of the Python parser are RecBole's, and numbers that only it takes are read
        return None
    if any((np.abs(column.to_numpy()) >= _EXACT).any() for _, column in read.select_dtypes("float64").items()):
        return None
    return read


class _PandasThatReadsFast(types.ModuleType):
    """The pandas module, but for ``read_csv``."""

    def __init__(self):
        super().__init__("pandas")

    def __getattr__(self, name):
        return getattr(pd, name)

    def read_csv(self, path, *, delimiter, engine, **options):
        """As pandas' own, for the arguments that RecBole gives it."""
        read = _by_c(path, delimiter, options)
        return pd.read_csv(path, delimiter=delimiter, engine=engine, **options) if read is None else read


@contextmanager
def fast_reading():
    """Within this context RecBole's data sets read their atomic files by the C parser where nothing changes by it."""
    before = recbole_dataset.pd
    recbole_dataset.pd = _PandasThatReadsFast()
    try:
        yield
    finally:
        recbole_dataset.pd = before
