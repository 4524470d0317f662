"""SUBR, semantic user behaviour retrieval: the K behaviours of a row's own past that are closest to its target.

ReLLa (WWW 2024), section 3.2. FAISS searches exhaustively; nothing of the size items x items is ever made.

FAISS compares in float32 and leaves open which of several equal neighbours it returns. So more than K are fetched, those
whose order rounding could have changed are compared again in float64, and a row is searched again, for more, unless
everything that was not fetched is behind its K-th by more than the rounding can be.
"""

import faiss
import numpy as np

from recbole_rella.progress import bar

# Fetched beyond K at first; and the most by which the histories differ that are searched in one call (see `_nearest`).
_MARGIN, _SPREAD = 8, 64
# Candidates, and numbers of their vectors, that are held at a time.
_CANDIDATES, _NUMBERS = 2**18, 2**17


def similarity(vectors, query, metric):
    """Similarity of vectors to one query, or each to its own, in float64, the same to the last bit for equal vectors.

    Args:
        vectors (numpy.ndarray): float32 [n, d].
        query (numpy.ndarray): float32 [d] or [n, d].
        metric (str): cosine and dot (the vectors of cosine are unit vectors already), or l2 (minus the squared distance).

    Returns:
        numpy.ndarray: float64 [n], larger is closer.
    """
    vectors, query = vectors.astype(np.float64), query.astype(np.float64)
    return -((vectors - query) ** 2).sum(axis=1) if metric == "l2" else (vectors * query).sum(axis=1)


def _norms(vectors):
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))


class _Search:
    """The search of one call of `retrieve`, whose arguments it has."""

    def __init__(self, vectors, items, k, metric, chunk_size):
        self.vectors, self.items, self.k, self.metric, self.chunk_size = vectors, items, k, metric, chunk_size
        self._buffer = np.empty((0, vectors.shape[1]), dtype=np.float32)

    def _chunk(self, behaviours):
        """Vectors of behaviours, float32 [n, d], valid until the next call: many large arrays leave the memory in pieces."""
        if len(behaviours) > len(self._buffer):
            self._buffer = np.empty((min(2 * len(behaviours), self.chunk_size), self.vectors.shape[1]), dtype=np.float32)
        return np.take(self.vectors, self.items[behaviours], axis=0, out=self._buffer[: len(behaviours)], mode="clip")

    def _nearest(self, vectors, lengths, queries, count):
        """The `count` nearest, by FAISS, of the first so many vectors, for several queries.

        A call of FAISS for many queries is a matrix product, for one it is not. So queries whose lengths are close share a
        call over the longest of them, which fetches as many more as the one with the shortest may not see.

        Args:
            vectors (numpy.ndarray): float32 [m, d].
            lengths (numpy.ndarray): how many of the vectors each query sees, int [n], ascending, at least 1.
            queries (numpy.ndarray): float32 [n, d].

        Yields:
            tuple: first and last query (int); places of vectors, int64 [last - first, *]; similarities, float32, -inf where
            the query does not see the vector; the largest that any other vector may have, float32 [last - first].
        """
        first, kind = 0, faiss.METRIC_L2 if self.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        while first < len(lengths):
            last = int(np.searchsorted(lengths, lengths[first] + _SPREAD, side="right"))
            longest = int(lengths[last - 1])
            fetch = min(count + longest - int(lengths[first]), longest)
            closeness, places = faiss.knn(queries[first:last], vectors[:longest], fetch, metric=kind)
            if self.metric == "l2":
                closeness = -closeness
            others = closeness[:, -1].copy() if fetch < longest else np.full(last - first, -np.inf, np.float32)
            closeness[places >= lengths[first:last, None]] = -np.inf
            yield first, last, places, closeness, others
            first = last

    def candidates(self, visible, lengths, queries, count):
        """The `count` behaviours of one user that are closest by FAISS's rounded numbers, for several rows of the user.

        Args:
            visible (numpy.ndarray): row_ids that the rows may show, int32, ascending.
            lengths (numpy.ndarray): how many of them each row sees, int [n], ascending, at least 1.
            queries (numpy.ndarray): float32 [n, d].

        Returns:
            tuple: row_ids, int32 [n, count]; similarities, float32 [n, count], descending, -inf where there is none; the
            largest that any other behaviour may have, float32 [n]; by how much all these may be wrong, float [n].
        """
        names = np.full((len(lengths), count), -1, dtype=np.int32)
        closeness = np.full((len(lengths), count), -np.inf, dtype=np.float32)
        others = np.full(len(lengths), -np.inf, dtype=np.float32)
        norms, largest = _norms(queries), 0.0
        for begin in range(0, int(lengths[-1]), self.chunk_size):
            behaviours = visible[begin : min(begin + self.chunk_size, int(lengths[-1]))]
            chunk = self._chunk(behaviours)
            largest = max(largest, float(_norms(chunk).max()))
            start = int(np.searchsorted(lengths, begin, side="right"))
            seen = np.minimum(lengths[start:] - begin, len(behaviours))
            for first, last, places, similar, left in self._nearest(chunk, seen, queries[start:], count):
                rows = slice(start + first, start + last)
                new, similar = np.hstack([names[rows], behaviours[places]]), np.hstack([closeness[rows], similar])
                order = np.argsort(-similar, axis=1)
                similar = np.take_along_axis(similar, order, axis=1)
                names[rows], closeness[rows] = np.take_along_axis(new, order[:, :count], axis=1), similar[:, :count]
                others[rows] = np.maximum(others[rows], np.maximum(left, similar[:, count]))
        # d products and d sums, each rounded to 24 bits; FAISS makes l2 of three such sums.
        scale = (norms + largest) ** 2 if self.metric == "l2" else norms * largest
        return names, closeness, others, (queries.shape[1] + 4) * 2.0**-24 * scale

    def closest(self, queries, names, closeness, others, rounding):
        """The k closest of each row's candidates, ties to the more recent (the larger row_id); arguments as returned above.

        Returns:
            tuple: row_ids, int32 [n, k]; similarities, float64 [n, k], -inf where there is none; whether it is sure that no
            other behaviour belongs there, bool [n].
        """
        behind = closeness[:, self.k - 1] - 2 * rounding
        if self.metric == "l2":  # FAISS has the difference of large numbers, which is no distance to report
            unsure = np.isfinite(closeness)
        else:
            unsure = np.zeros(closeness.shape, dtype=bool)
            with np.errstate(invalid="ignore"):  # two that are not there: -inf less -inf
                unsure[:, 1:] = closeness[:, :-1] - closeness[:, 1:] <= 2 * rounding[:, None]
            unsure[:, :-1] |= unsure[:, 1:]
        rows, places = np.nonzero(unsure & (closeness >= behind[:, None]))
        exact, step = closeness.astype(np.float64), max(1, _NUMBERS // queries.shape[1])
        for begin in range(0, len(rows), step):
            row, place = rows[begin : begin + step], places[begin : begin + step]
            exact[row, place] = similarity(self.vectors[self.items[names[row, place]]], queries[row], self.metric)
        order = np.lexsort((-names, -exact), axis=1)[:, : self.k]
        best = (np.take_along_axis(array, order, axis=1) for array in (names, exact))
        return *best, (others < behind) | (others == -np.inf)


def retrieve(vectors, items, histories, splits, users, rows, targets, k, metric="cosine", chunk_size=4096, show_progress=False):
    """The k behaviours closest to a target, for many rows.

    Args:
        vectors (numpy.ndarray): one vector an item id, float32 [items, d]; unit vectors where `metric` is cosine.
        items, users, splits (numpy.ndarray): item id, user id and split of every row of the data set, [all rows].
        histories (Histories): which earlier rows a row may show.
        rows (numpy.ndarray): row_ids whose histories are searched, int [n].
        targets (numpy.ndarray): the item id to compare with, int [n]; the row's own item, or another candidate.
        k (int): how many behaviours; 0 for none.
        metric (str): cosine, l2 or dot.
        chunk_size (int): behaviours of one user that are searched at a time; memory is chunk_size x d floats.
        show_progress (bool): whether to show a bar where it takes longer than a few seconds.

    Returns:
        tuple: row_ids of the behaviours, int32 [n, k], closest first, ties to the more recent, -1 where the history is
        shorter; their similarities to float32's precision, float32 [n, k], nan there.
    """
    rows, targets = np.asarray(rows, dtype=np.int64), np.asarray(targets, dtype=np.int64)
    found = np.full((len(rows), k), -1, dtype=np.int32)
    similarities = np.full((len(rows), k), np.nan, dtype=np.float32)
    if k == 0:
        return found, similarities
    search = _Search(vectors, items, k, metric, chunk_size)

    def candidates(part, count):
        """Of the rows of each user and split, which see prefixes of the same sequence; of those that see anything."""
        changes = np.flatnonzero(np.diff(users[rows[part]]) | np.diff(splits[rows[part]])) + 1
        for group in np.split(part, changes):
            visible = histories.of_user(users[rows[group[0]]], splits[rows[group[0]]])
            lengths = np.searchsorted(visible, rows[group])
            group, lengths = group[lengths > 0], lengths[lengths > 0]
            if len(group):
                yield group, *search.candidates(visible, lengths, vectors[targets[group]], count)

    pending, count = np.lexsort((rows, splits[rows], users[rows])), k + _MARGIN  # shortest history first
    with bar(len(rows), "Searching histories", show_progress) as done:
        while len(pending):
            step, again = max(1, _CANDIDATES // count), []
            for begin in range(0, len(pending), step):
                groups = list(candidates(pending[begin : begin + step], count))
                if groups:
                    part, *of_part = (np.concatenate(arrays) for arrays in zip(*groups))
                    names, closeness, sure = search.closest(vectors[targets[part]], *of_part)
                    there = np.isfinite(closeness)
                    found[part], similarities[part] = np.where(there, names, -1), np.where(there, closeness, np.nan)
                    again.append(part[~sure])
                    done.update(int(sure.sum()))
            pending, count = np.concatenate(again) if again else (), 4 * count
    return found, similarities
