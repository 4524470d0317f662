"""SUBR over all rows of a data set: what was found ahead of time, and a search for other candidates when they are asked for."""

import time
from dataclasses import dataclass, replace

import numpy as np

from recbole_rella.files import cached_arrays
from recbole_rella.retrieval.subr import retrieve, similarity
from recbole_rella.rows.history import Histories, Rows

# Pairs of vectors that are compared at a time.
_PAIRS = 2**14


@dataclass(frozen=True, eq=False)
class Retrieved:
    """Behaviours that were found ahead of time, for rows and their own targets.

    Attributes:
        row_ids (numpy.ndarray): ascending, int64 [n].
        behaviours (numpy.ndarray): row_ids, int32 [n, k], closest first, -1 where there are fewer.
        milliseconds (float): that a row took when it was searched.
    """

    row_ids: np.ndarray
    behaviours: np.ndarray
    milliseconds: float


@dataclass(frozen=True, eq=False)
class Retriever:
    """The k behaviours of a row's own past that are closest to an item.

    Attributes:
        rows (Rows), histories (Histories): all rows.
        vectors (numpy.ndarray): one an item id, float32 [items, d]; unit vectors where `metric` is cosine.
        k (int): behaviours to retrieve.
        metric (str): as for `retrieve`.
        ahead (Retrieved or None): what was found ahead of time.
    """

    rows: Rows
    histories: Histories
    vectors: np.ndarray
    k: int
    metric: str
    ahead: Retrieved | None = None

    def search(self, rows, targets, show_progress=False):
        """The k closest behaviours of each row to a target, int32 [n, k], and their similarities; see `retrieve`."""
        columns = self.rows
        own = self.vectors, columns.item, self.histories, columns.split, columns.user
        return retrieve(*own, rows, targets, self.k, self.metric, show_progress=show_progress)

    def searched_ahead(self, row_ids, folder, show_progress=False):
        """This retriever with the results for rows and their own targets, searched once for all epochs and runs.

        Args:
            row_ids (numpy.ndarray): int [n].
            folder (pathlib.Path): the cache, from which the result comes where vectors, rows, split and settings are equal.
            show_progress (bool): as for `retrieve`.

        Returns:
            Retriever: another one.
        """
        row_ids, columns = np.unique(np.asarray(row_ids, dtype=np.int64)), self.rows

        def make():
            began = time.monotonic()
            found = self.search(row_ids, columns.item[row_ids], show_progress)[0]
            milliseconds = 1000 * (time.monotonic() - began) / max(1, len(row_ids))
            return {"found": found, "milliseconds": np.array(milliseconds)}

        parts = (self.vectors, columns.user, columns.item, columns.split, row_ids, self.k, self.metric)
        arrays = cached_arrays(folder, "retrieved", parts, make)
        return replace(self, ahead=Retrieved(row_ids, arrays["found"], float(arrays["milliseconds"])))

    def weighted(self, rows, targets):
        """The retrieved behaviours with weights: how close they are to their targets, 0 for what is not close at all.

        Args:
            rows, targets (numpy.ndarray): row_ids and item ids, int [n].

        Returns:
            tuple: row_ids, int32 [n, k], as of `closest`; weights, float64 [n, k]: the similarity of cosine and dot, or 0 where it
            is below; 1 / (1 + squared distance) of l2; nan where there is no behaviour.
        """
        found, targets = self.closest(rows, targets), np.asarray(targets)
        place, column = np.nonzero(found >= 0)
        weights = np.full(found.shape, np.nan)
        for begin in range(0, len(place), _PAIRS):
            pairs = place[begin : begin + _PAIRS], column[begin : begin + _PAIRS]
            items = self.rows.item[found[pairs]]
            close = similarity(self.vectors[items], self.vectors[targets[pairs[0]]], self.metric)
            weights[pairs] = 1 / (1 - close) if self.metric == "l2" else np.maximum(close, 0.0)
        return found, weights

    def closest(self, rows, targets):
        """Row_ids of the retrieved behaviours, int32 [n, k], closest first, -1 where there are fewer."""
        rows, targets = np.asarray(rows), np.asarray(targets)
        found, known = np.empty((len(rows), self.k), dtype=np.int32), np.zeros(len(rows), dtype=bool)
        if self.ahead is not None and len(self.ahead.row_ids):
            place = np.minimum(np.searchsorted(self.ahead.row_ids, rows), len(self.ahead.row_ids) - 1)
            known = (self.ahead.row_ids[place] == rows) & (self.rows.item[rows] == targets)
            found[known] = self.ahead.behaviours[place[known]]
        if not known.all():
            found[~known] = self.search(rows[~known], targets[~known])[0]
        return found
