"""Every row's history, without copying any: rows are grouped by user once, and a history is a slice of that.

Rows are numbered in the order (time, user, item, rating, label), so a smaller number is an earlier row. The histories of n rows
are a CSR array with one entry a row, not one an earlier row: `row_ids[start[user] : start[user + 1]]` are the rows of a user,
oldest first, and the history of a row is the part of it before the row. Plain numpy: 26 bytes a row in all.
"""

from dataclasses import dataclass

import numpy as np

# Split codes, in the order in which they may see each other. A row that min_history dropped belongs to no split, and as
# nobody is scored on it, every later row of its user may show it.
NO_SPLIT, TRAIN, VALID, TEST = -1, 0, 1, 2


@dataclass
class Rows:
    """The columns of all rows, in the order in which they are numbered; the row_id is the index.

    Attributes:
        user, item (numpy.ndarray): RecBole's internal ids, int32 [rows].
        time (numpy.ndarray): as in the atomic file, int64 [rows], or float64 where one is not whole.
        rating (numpy.ndarray or None): as in the atomic file, before any rescaling, float32 or float64 [rows].
        label (numpy.ndarray or None): 1 liked, 0 not, int8 [rows].
        split (numpy.ndarray): NO_SPLIT, TRAIN, VALID or TEST, int8 [rows].
        timed (bool): False where the data has no times, and `time` says the order alone (history_shuffle_seed).
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    rating: np.ndarray | None
    label: np.ndarray | None
    split: np.ndarray
    timed: bool = True

    def __len__(self):
        return len(self.user)

    @property
    def columns(self):
        """Those that are there, list of numpy.ndarray [rows]."""
        return [value for value in vars(self).values() if isinstance(value, np.ndarray)]


class Histories:
    """The earlier rows of the same user, for every row.

    Args:
        rows (Rows): all rows; their `split` may be filled in later.
        num_users (int): user ids are below it.
    """

    def __init__(self, rows, num_users):
        self._columns = rows
        self.start = np.zeros(num_users + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows.user, minlength=num_users), out=self.start[1:])
        self.row_ids = np.argsort(rows.user, kind="stable").astype(np.int32)

    def past_lengths(self):
        """How many earlier rows each row's user has, in any split.

        Returns:
            numpy.ndarray: int32 [rows].
        """
        lengths = np.empty(len(self.row_ids), dtype=np.int32)
        lengths[self.row_ids] = np.arange(len(self.row_ids)) - np.repeat(self.start[:-1], np.diff(self.start))
        return lengths

    def shown_lengths(self):
        """How many rows each row's history holds: those of `past_lengths`, without the ones of a later split than its own.

        Returns:
            numpy.ndarray: int64 [rows].
        """
        split, user = self._columns.split[self.row_ids], self._columns.user[self.row_ids]
        lengths = np.empty(len(self.row_ids), dtype=np.int64)
        for code in np.unique(split):
            before = np.concatenate([[0], np.cumsum(split <= code)])
            own = np.flatnonzero(split == code)
            lengths[self.row_ids[own]] = before[own] - before[self.start[user[own]]]
        return lengths

    def of_user(self, user, split):
        """All rows of a user that a row of `split` may show, oldest first.

        Returns:
            numpy.ndarray: row_ids, int32, ascending.
        """
        rows = self.row_ids[self.start[user] : self.start[user + 1]]
        return rows[self._columns.split[rows] <= split]

    def of(self, row):
        """The history of a row: earlier rows of its user, none of a later split than its own (law 1).

        Returns:
            numpy.ndarray: row_ids, int32, ascending: oldest first.
        """
        user = self._columns.user[row]
        rows = self.row_ids[self.start[user] : self.start[user + 1]]
        rows = rows[: np.searchsorted(rows, row)]
        return rows[self._columns.split[rows] <= self._columns.split[row]]
