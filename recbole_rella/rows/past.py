"""The latest behaviours of many rows at once: of a row's user, or those that share a group with a target. Plain numpy.

`Histories` gives the history of one row. Models that read histories as numbers want those of a batch, as one array, without a loop
over rows and without an array of the size rows x L: behaviours are sorted by (group, row_id) once, and the latest of a row are the
slice that ends before it.
"""

import numpy as np

from recbole_rella.rows.item_statistics import training_rows

# Of a scale of ratings; one with more is cut into quantiles.
MOST_VALUES = 32


class Past:
    """Behaviours by group, in the order of their row_ids.

    A row sees the behaviours of one group with smaller row_ids, none of a later split than its own (law 1).

    Args:
        rows (Rows): all rows, with their split.
        row_ids (numpy.ndarray): a behaviour each, int [m]; one that is of several groups stands several times.
        groups (numpy.ndarray): the group of each, int [m], of at least 0: the user, or a number of user and category.
    """

    def __init__(self, rows, row_ids, groups):
        self._rows, self._count = rows, max(1, len(rows))
        self._sorted = np.sort(groups.astype(np.int64) * self._count + row_ids)
        self._seen = {}

    def _visible(self, split):
        """What a row of a split may see, sorted: where no behaviour of a later split stands before its rows, all of it."""
        if split not in self._seen:
            rows, later = self._rows.split, self._rows.split > split
            own = np.flatnonzero(rows == split)
            hides = len(own) and later[: own[-1]].any()
            self._seen[split] = self._sorted[~later[self._sorted % self._count]] if hides else self._sorted
        return self._seen[split]

    def latest(self, row_ids, groups, size):
        """The latest behaviours of a group before each row.

        Args:
            row_ids (numpy.ndarray): int [n].
            groups (numpy.ndarray): the group of each, int [n]; -1 is empty.
            size (int or None): at most so many; None: all.

        Returns:
            numpy.ndarray: row_ids, int64 [n, L], oldest first, -1 where there are fewer: L is the size, or less where no row has
            so many.
        """
        row_ids, groups = np.asarray(row_ids, dtype=np.int64), np.asarray(groups, dtype=np.int64)
        first, last = np.zeros((2, len(row_ids)), dtype=np.int64)
        splits = self._rows.split[row_ids]
        for split in np.unique(splits):
            of, seen = splits == split, self._visible(split)
            first[of] = np.searchsorted(seen, groups[of] * self._count)
            last[of] = np.searchsorted(seen, groups[of] * self._count + row_ids[of])
        last[groups < 0] = first[groups < 0]
        if size is not None:
            first = np.maximum(first, last - size)
        longest = int((last - first).max(initial=0))
        places = first[:, None] + np.arange(longest)
        found = np.full(places.shape, -1, dtype=np.int64)
        inside = places < last[:, None]
        for split in np.unique(splits):
            here = inside & (splits == split)[:, None]
            found[here] = self._visible(split)[places[here]] % self._count
        return found


class UserPast:
    """The behaviours of a user.

    Args:
        rows (Rows): all rows, with their split.
    """

    def __init__(self, rows):
        self._users, self._past = rows.user, Past(rows, np.arange(len(rows)), rows.user)

    def latest(self, row_ids, targets, size):
        """The latest behaviours, whatever the target: as `SharedPast.latest`, but no wider than the longest history."""
        return self._past.latest(row_ids, self._users[row_ids], size)


class SharedPast:
    """The behaviours of a user whose item shares a value with a target.

    Args:
        rows (Rows): all rows, with their split.
        values (numpy.ndarray): the values of each item, int [items, V], at least 1, 0 where there are fewer.
    """

    def __init__(self, rows, values):
        self._rows, self._values, self._number = rows, values, int(values.max(initial=0)) + 1
        of_rows = values[rows.item]
        row_ids, places = np.nonzero(of_rows)
        groups = rows.user[row_ids].astype(np.int64) * self._number + of_rows[row_ids, places]
        self._past = Past(rows, row_ids, groups)

    def latest(self, row_ids, targets, size):
        """The latest behaviours that share at least one value with a target.

        Args:
            row_ids, targets (numpy.ndarray): row_ids and item ids, int [n].
            size (int): at most so many.

        Returns:
            numpy.ndarray: row_ids, int64 [n, size], oldest first, each once, -1 where there are fewer. Nothing else fills them up.
        """
        row_ids, values = np.asarray(row_ids, dtype=np.int64), self._values[targets]
        users = self._rows.user[row_ids].astype(np.int64)
        found = [np.full((len(row_ids), size), -1, dtype=np.int64)]
        for value in values.T:  # the latest of all are among the latest of each value
            found.append(self._past.latest(row_ids, np.where(value > 0, users * self._number + value, -1), size))
        found = np.sort(np.concatenate(found, axis=1), axis=1)
        found[:, 1:][found[:, 1:] == found[:, :-1]] = -1
        return without_gaps(np.sort(found, axis=1)[:, -size:])


def without_gaps(row_ids):
    """Row_ids of behaviours, -1 where there is none, with those that are there moved to the front; int [n, L]."""
    return np.take_along_axis(row_ids, np.argsort(row_ids < 0, axis=1, kind="stable"), axis=1)


def scale_of(rows):
    """The values of ratings that models know: those of training rows, and of rows of no split before the last of these.

    Args:
        rows (Rows): all rows, with their split; at least one has a rating.

    Returns:
        numpy.ndarray: float64 [at most MOST_VALUES], ascending; of ratings with more values, their quantiles.
    """
    values, counts = np.unique(rows.rating[training_rows(rows)].astype(np.float64), return_counts=True)
    if len(values) > MOST_VALUES:
        shares = np.linspace(0, 1, MOST_VALUES)
        values = np.unique(values[np.searchsorted(np.cumsum(counts) / counts.sum(), shares - 1e-9)])
    return values
