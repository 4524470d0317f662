"""SUBR, semantic user behaviour retrieval: the K behaviours of a row's own past that are closest to its target.

ReLLa (WWW 2024), section 3.2. FAISS searches exhaustively; nothing of the size items x items is ever made.
"""

import faiss
import numpy as np


def similarity(vectors, query, metric):
    """Similarity of one vector to several, in float64, the same to the last bit for equal vectors.

    Args:
        vectors (numpy.ndarray): float32 [n, d].
        query (numpy.ndarray): float32 [d].
        metric (str): cosine and dot (the vectors of cosine are unit vectors already), or l2 (minus the squared distance).

    Returns:
        numpy.ndarray: float64 [n], larger is closer.
    """
    vectors, query = vectors.astype(np.float64), query.astype(np.float64)
    return -((vectors - query) ** 2).sum(axis=1) if metric == "l2" else (vectors * query).sum(axis=1)


def _closest_first(behaviours, similarities, k):
    """The k closest, ties to the more recent (the larger row_id)."""
    order = np.lexsort((-behaviours, -similarities))[:k]
    return behaviours[order], similarities[order]


class _Block:
    """FAISS index over some consecutive behaviours of a user, searched over a prefix of them."""

    def __init__(self, behaviours, vectors, metric):
        self.behaviours, self.vectors, self.metric = behaviours, np.ascontiguousarray(vectors), metric
        self.index = (faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP)(vectors.shape[1])
        self.index.add(self.vectors)
        self.largest = float(np.sqrt((self.vectors**2).sum(axis=1).max()))

    def search(self, query, length, k):
        """The k closest of the first `length` behaviours, exact, with every tie at the k-th place decided by recency.

        FAISS leaves open which of several equal neighbours it returns, and rounds in float32. So more than k are
        fetched, until the last one is behind the k-th by more than the rounding can be.
        """
        norm = float(np.sqrt((query**2).sum()))
        rounding = 1e-5 * ((norm + self.largest) ** 2 if self.metric == "l2" else norm * self.largest)
        fetch = k + 8
        while True:
            fetch = min(fetch, length)
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorRange(0, length))
            found, places = self.index.search(query[None], fetch, params=parameters)
            places = places[0]
            exact = similarity(self.vectors[places], query, self.metric)
            behaviours, similarities = _closest_first(self.behaviours[places], exact, k)
            last = -found[0, -1] if self.metric == "l2" else found[0, -1]
            if fetch == length or last < similarities[-1] - rounding:
                return behaviours, similarities
            fetch *= 2


def retrieve(vectors, items, histories, splits, users, rows, targets, k, metric="cosine", chunk_size=65536):
    """The k behaviours closest to a target, for many rows.

    Args:
        vectors (numpy.ndarray): one vector an item id, float32 [items, d]; unit vectors where `metric` is cosine.
        items, users, splits (numpy.ndarray): item id, user id and split of every row of the data set, [all rows].
        histories (Histories): which earlier rows a row may show.
        rows (numpy.ndarray): row_ids whose histories are searched, int [n].
        targets (numpy.ndarray): the item id to compare with, int [n]; the row's own item, or another candidate.
        k (int): how many behaviours.
        metric (str): cosine, l2 or dot.
        chunk_size (int): behaviours of one user that are indexed at a time; memory is chunk_size x d floats.

    Returns:
        tuple: row_ids of the behaviours, int32 [n, k], closest first, ties to the more recent, -1 where the history is
        shorter; their similarities, float32 [n, k], nan there.
    """
    rows, targets = np.asarray(rows, dtype=np.int64), np.asarray(targets, dtype=np.int64)
    found = np.full((len(rows), k), -1, dtype=np.int32)
    similarities = np.full((len(rows), k), np.nan, dtype=np.float32)
    # Rows of one user and split see prefixes of the same sequence: one index serves them all.
    order = np.lexsort((splits[rows], users[rows]))
    changes = np.flatnonzero(np.diff(users[rows[order]]) | np.diff(splits[rows[order]])) + 1
    for group in np.split(order, changes) if len(order) else ():
        visible = histories.of_user(users[rows[group[0]]], splits[rows[group[0]]])
        lengths = np.searchsorted(visible, rows[group])
        best = [[] for _ in group]
        for begin in range(0, int(lengths.max()), chunk_size):
            behaviours = visible[begin : min(begin + chunk_size, int(lengths.max()))]
            block = _Block(behaviours, vectors[items[behaviours]], metric)
            for place, length, candidates in zip(group, lengths - begin, best):
                if length > 0:
                    length = min(int(length), len(behaviours))
                    candidates.append(block.search(vectors[targets[place]], length, min(k, length)))
        for place, candidates in zip(group, best):
            if candidates:
                rows_found, closeness = (np.concatenate(parts) for parts in zip(*candidates))
                rows_found, closeness = _closest_first(rows_found, closeness, k)
                found[place, : len(rows_found)] = rows_found
                similarities[place, : len(rows_found)] = closeness
    return found, similarities
