"""The error of data that cannot be used."""

from recbole_rella.errors import RellaError


class DatasetError(RellaError):
    """The files of a data set are not there, or hold what cannot be used: the message names file, line and column."""
