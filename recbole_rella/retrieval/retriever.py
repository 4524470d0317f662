"""SUBR over all rows of a data set: results that are found once and kept, and those of other candidates when they are asked for."""

import time
from pathlib import Path

import numpy as np

from recbole_rella.files import cached_arrays, fingerprint
from recbole_rella.retrieval.subr import retrieve


class Retriever:
    """SUBR for the rows of one data set, and its results for the rows that were asked for ahead of time.

    Args:
        rows (Rows), histories (Histories): all rows.
        vectors (numpy.ndarray): one an item id, float32 [items, d].
        k (int): behaviours to retrieve.
        metric (str), chunk_size (int): as for `retrieve`.
    """

    def __init__(self, rows, histories, vectors, k, metric, chunk_size):
        self._rows, self._histories, self.vectors = rows, histories, vectors
        self._k, self._metric, self._chunk_size = k, metric, chunk_size
        self._known = np.empty(0, dtype=np.int64)
        self._found = np.empty((0, k), dtype=np.int32)

    def search(self, rows, targets):
        """The k closest behaviours of each row to a target, int32 [n, k], and their similarities; see `retrieve`."""
        columns = self._rows
        return retrieve(
            self.vectors,
            columns.item,
            self._histories,
            columns.split,
            columns.user,
            rows,
            targets,
            self._k,
            self._metric,
            self._chunk_size,
        )

    def prepare(self, rows, folder):
        """Retrieve for rows and their own targets once, before they are asked for one batch at a time.

        Args:
            rows (numpy.ndarray): row_ids, int [n].
            folder (pathlib.Path): the cache, from which the result comes where vectors, rows, split and settings are equal.

        Returns:
            float: milliseconds that a row took when it was searched.
        """
        self._known = np.unique(np.asarray(rows, dtype=np.int64))
        columns = self._rows
        key = fingerprint(
            self.vectors, columns.user, columns.item, columns.split, self._known, self._k, self._metric, self._chunk_size
        )

        def make():
            began = time.monotonic()
            found = self.search(self._known, columns.item[self._known])[0]
            milliseconds = 1000 * (time.monotonic() - began) / max(1, len(self._known))
            return {"found": found, "milliseconds": np.array(milliseconds)}

        arrays = cached_arrays(Path(folder) / f"retrieved-{key}.npz", make)
        self._found = arrays["found"]
        return float(arrays["milliseconds"])

    def closest(self, rows, targets):
        """Row_ids of the retrieved behaviours, int32 [n, k], closest first, -1 where there are fewer."""
        rows, targets = np.asarray(rows), np.asarray(targets)
        place = np.minimum(np.searchsorted(self._known, rows), max(len(self._known) - 1, 0))
        known = np.zeros(len(rows), dtype=bool)
        if len(self._known):
            known = (self._known[place] == rows) & (self._rows.item[rows] == targets)
        found = np.empty((len(rows), self._k), dtype=np.int32)
        found[known] = self._found[place[known]] if len(self._known) else 0
        if not known.all():
            found[~known] = self.search(rows[~known], targets[~known])[0]
        return found
