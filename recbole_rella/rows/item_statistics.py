"""How items were answered by the training rows, up to any time: means and counts that no row takes from its own future.

An item of few answers says little of itself, so its mean is shrunk towards that of all items: as if `weight` more answers had
been the mean of the training rows so far. Plain numpy: the rows are sorted by item and time once, and a mean is the difference of
two cumulative sums.
"""

import numpy as np

from recbole_rella.rows.history import NO_SPLIT, TRAIN

# By how many answers an item's mean is shrunk: the few that it takes to tell an item from the average one.
SHRINKAGE = 5.0


def training_rows(rows):
    """Which rows may be learned from: those of the training part, and those in no part that stand before its last one.

    Args:
        rows (Rows): with their split.

    Returns:
        numpy.ndarray: bool [rows].
    """
    trains = np.flatnonzero(rows.split == TRAIN)
    learned = np.isin(rows.split, (TRAIN, NO_SPLIT))
    learned[trains[-1] + 1 if len(trains) else 0 :] = False
    return learned


def answers_of(rows):
    """What the user of each row said: the rating, or the label where the data set has no ratings.

    Args:
        rows (Rows): all rows.

    Returns:
        numpy.ndarray: float [rows], in the dtype of the rows; None where they have neither.
    """
    return rows.rating if rows.rating is not None else rows.label


def popularity(items, learned, asked):
    """How many training rows the item of a row has.

    Args:
        items (numpy.ndarray): item of every row, int [rows].
        learned, asked (numpy.ndarray): training rows, and those that are asked for, int.

    Returns:
        numpy.ndarray: int64, of the shape of `asked`.
    """
    return np.bincount(items[learned], minlength=items.max() + 1)[items[asked]]


class ItemStatistics:
    """Answers of the training rows, by item and time.

    Wherever a time is asked for, training rows of a strictly earlier time count; all of them where it is None.

    Args:
        items (numpy.ndarray): item ids of the training rows, int [n].
        times (numpy.ndarray): their times, int [n].
        answers (numpy.ndarray): their ratings, or labels, [n].
        places (numpy.ndarray, optional): for whoever numbers items in another way: the item id here of each of theirs, int [items],
            -1 where the training rows cannot have it.

    Attributes:
        items, times, answers (numpy.ndarray): as given, sorted by item, then time: all that it takes to make it again.
    """

    def __init__(self, items, times, answers, places=None):
        order = np.lexsort((times, items))
        self.items, self.times, self.answers = items[order], times[order], answers[order]
        self._places = places
        self._moments, ranks = np.unique(self.times, return_inverse=True)
        # Key of a row: its item, then how many moments lie before it. One sorted array answers every (item, time).
        self._step = len(self._moments) + 1
        self._keys = self.items.astype(np.int64) * self._step + ranks
        self._sums = _cumulative(self.answers)
        # Where each item's rows start; the last item has none.
        self._starts = np.searchsorted(self.items, np.arange(self.items.max(initial=-1) + 3))
        # By moment, over all items: how many rows lie before it, and what they sum up to.
        self._counts_before = _cumulative(np.bincount(ranks, minlength=self._step - 1))
        self._sums_before = _cumulative(np.bincount(ranks, weights=self.answers, minlength=self._step - 1))

    @classmethod
    def of(cls, rows, answers=None):
        """Those of a data set.

        Args:
            rows (Rows): with their split.
            answers (numpy.ndarray, optional): of all rows, [rows], in the place of `answers_of`.
        """
        learned, answers = training_rows(rows), answers_of(rows) if answers is None else answers
        return cls(rows.item[learned], rows.time[learned], answers[learned])

    def seen_by(self, places):
        """The same statistics for whoever numbers items in another way; see `places`."""
        other = object.__new__(type(self))
        other.__dict__ = {**self.__dict__, "_places": np.asarray(places)}
        return other

    def _ranks(self, times):
        return self._step - 1 if times is None else np.searchsorted(self._moments, times)

    def totals(self, items, times=None):
        """How often items were answered, and what the answers sum up to.

        Args:
            items (numpy.ndarray): int [m].
            times (numpy.ndarray, optional): int [m].

        Returns:
            tuple: int64 [m]; float64 [m].
        """
        return self._totals(items, self._ranks(times))

    def _totals(self, items, ranks):
        items = np.asarray(items, dtype=np.int64)
        items = items if self._places is None else self._places[items].astype(np.int64)
        # An item that no training row has ends where it starts, as does -1, which stands for none.
        items = np.where((items < 0) | (items >= len(self._starts) - 1), len(self._starts) - 2, items)
        first = self._starts[items]
        last = self._starts[items + 1] if np.isscalar(ranks) else np.searchsorted(self._keys, items * self._step + ranks)
        return last - first, self._sums[last] - self._sums[first]

    def running_mean(self, times=None):
        """Mean of all training rows so far.

        Args:
            times (numpy.ndarray, optional): int [m].

        Returns:
            numpy.ndarray: float64 [m], or [] without times; nan where there are no rows so far.
        """
        return self._running_mean(self._ranks(times))

    def _running_mean(self, ranks):
        counts = self._counts_before[ranks]
        return np.divide(self._sums_before[ranks], counts, out=np.full(np.shape(counts), np.nan), where=counts > 0)

    def count(self, items, times=None):
        """How often items were answered; arguments as for `totals`, returns int64 [m]."""
        return self.totals(items, times)[0]

    def mean(self, items, times=None, weight=SHRINKAGE):
        """Shrunk means of items.

        Args:
            items, times: as for `totals`.
            weight (float): as how many answers the mean of all items counts, at least 0.

        Returns:
            numpy.ndarray: float64 [m]; nan where there are no training rows so far.
        """
        return self.mean_and_count(items, times, weight)[0]

    def mean_and_count(self, items, times=None, weight=SHRINKAGE):
        """What `mean` and `count` return, float64 [m] and int64 [m], looked up once."""
        ranks = self._ranks(times)
        counts, sums = self._totals(items, ranks)
        prior = np.broadcast_to(self._running_mean(ranks), counts.shape)
        means = np.divide(sums + weight * prior, counts + weight, out=prior.copy(), where=counts + weight > 0)
        return means, counts

    def residuals(self, items, times, answers, weight=SHRINKAGE):
        """By how much behaviours lie above what their items had got before.

        Args:
            items, times (numpy.ndarray): of the behaviours, int [m].
            answers (numpy.ndarray): their ratings, or labels, [m].
            weight (float): as for `mean`.

        Returns:
            numpy.ndarray: float64 [m]; nan where there are no training rows before.
        """
        return answers - self.mean(items, times, weight)


def _cumulative(values):
    sums = np.zeros(len(values) + 1, dtype=np.int64 if values.dtype.kind in "iub" and values.dtype.itemsize > 1 else np.float64)
    np.cumsum(values, out=sums[1:])
    return sums
