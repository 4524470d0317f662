"""The error of data that cannot be used, and words for its messages."""

from itertools import islice

from recbole_rella.errors import RellaError

# How many lines, ids or values a message names.
NAMED = 5


class DatasetError(RellaError):
    """The files of a data set are not there, or hold what cannot be used: the message names file, line and column."""


def and_more(values, count):
    """The first of `count` values, as a list in words."""
    texts = [str(value) for value in islice(values, NAMED)]
    return ", ".join(texts) + (", ..." if count > len(texts) else "")


def plural(count, noun):
    """A number and what is counted: "1 row", "2 rows"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
