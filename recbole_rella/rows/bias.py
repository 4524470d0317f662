"""Mean answer to the item plus running mean of the user: what every model that is told ratings has to beat. Plain numpy.

Both are means of residuals, each shrunk by a weight that counts as so many further rows without one (Koren, "Factor in the
neighbors", TKDD 2010, section 2.1, with running means):

    known     = shrunk mean of the training rows' answers to the row's item
    user(row) = sum over the row's history of (answer - known then) / (length of the history + user weight)
    score     = known + user(row)

What is known of an item then, and of which rows, is said in item_statistics.py; a history is that of `Histories.of`.
"""

import numpy as np

from recbole_rella.rows.history import TRAIN
from recbole_rella.rows.item_statistics import ItemStatistics, answers_of


class RunningBias:
    """Scores of all rows for any two weights.

    Args:
        rows (Rows): all rows, with their split.
        histories (Histories): of them.
    """

    def __init__(self, rows, histories):
        self._rows, self._histories = rows, histories
        self._statistics = ItemStatistics.of(rows)

    def scores(self, item_weight, user_weights):
        """The scores of all rows.

        Args:
            item_weight (float): at least 0.
            user_weights (sequence of float): each above 0.

        Yields:
            numpy.ndarray: float64 [rows], one for each user weight; nan where no training row was before.
        """
        rows, statistics = self._rows, self._statistics
        known = statistics.mean(rows.item, rows.time, item_weight)
        total, count = self._sums(np.nan_to_num(answers_of(rows) - known))
        later = rows.split > TRAIN  # take all training rows
        known[later] = statistics.mean(rows.item[later], None, item_weight)
        for weight in user_weights:
            yield known + total / (count + weight)

    def _sums(self, residuals):
        """Sum of the residuals of each row's history, and its length, float64 [rows].

        The rows of a user that one of a split sees are a sequence, and its history is what stands before it there.
        """
        start, grouped = self._histories.start, self._histories.row_ids
        split, first = self._rows.split[grouped], np.repeat(start[:-1], np.diff(start))
        sums = np.empty((2, len(grouped)))
        for code in np.unique(split):
            seen, own = split <= code, split == code
            for found, column in zip(sums, (np.where(seen, residuals[grouped], 0.0), seen)):
                before = np.concatenate([[0.0], np.cumsum(column, dtype=np.float64)])
                found[grouped[own]] = (before[:-1] - before[first])[own]
        return sums
