"""Which items are rated alike: who liked one more than others did liked the other more than others did, too.

Item-based collaborative filtering with the adjusted cosine (Sarwar et al., WWW 2001): what counts is by how much a rating lies
above what the item had got before. Items are compared by a truncated SVD of these residuals, as few pairs share many users.

A training row is looked at through vectors in which no row of its own user stands: else its own answer would tell of itself
(law 1), and what is learned from it would not hold of other rows. So the users are dealt into folds, and there are vectors without
each fold (cross-fitting). Rows that are evaluated, and requests, are looked at through those of all training rows.
"""

from dataclasses import dataclass

import numpy as np

from recbole_rella.retrieval.factors import item_factors
from recbole_rella.retrieval.retriever import Retriever
from recbole_rella.rows.history import NO_SPLIT, TRAIN, Histories, Rows
from recbole_rella.rows.item_statistics import ItemStatistics, answers_of, training_rows

FOLDS = 5
# How many behaviours are looked at; 30, or all, do as well.
NEIGHBOURS = 15
# By how many answers an item's are shrunk, so that those of few answers do not span the space.
_SHRINKAGE = 5.0


def residual_vectors(users, items, residuals, shape, size=32):
    """Vectors of items by a truncated SVD (scikit-learn) of the matrix of what users said of them.

    Args:
        users, items (numpy.ndarray): of rows, int [n].
        residuals (numpy.ndarray): of their answers, float [n]; of one user and item they are added up.
        shape (tuple of int): number of users and of items, padding included.
        size (int): numbers of a vector; fewer where there are not as many users or items.

    Returns:
        numpy.ndarray: float32 [items, size], unit vectors; zeros for items of which nothing is said.
    """
    counts = np.bincount(items, minlength=shape[1])
    return item_factors(users, items, residuals / np.sqrt(counts[items] + _SHRINKAGE), shape, size)


def folds_of(rows, users):
    """The fold of each user: dealt out in the order of their first rows, which no numbering of ids and no order of lines changes.

    Args:
        rows (Rows): all rows.
        users (int): user ids are below it.

    Returns:
        numpy.ndarray: int8 [users]; 0 for those without rows.
    """
    found, first = np.unique(rows.user, return_index=True)
    folds = np.zeros(users, dtype=np.int8)
    folds[found[np.argsort(first)]] = np.arange(len(found)) % FOLDS
    return folds


def without_each_fold(rows, folds):
    """Training rows without those of each fold of users, and all of them.

    Args:
        rows (Rows): all rows, with their split.
        folds (numpy.ndarray): as of `folds_of`.

    Yields:
        numpy.ndarray: row_ids, int [n], ascending; FOLDS + 1 times.
    """
    learned = training_rows(rows)
    for fold in range(FOLDS):
        yield np.flatnonzero(learned & (folds[rows.user] != fold))
    yield np.flatnonzero(learned)


def residuals_among(rows, kept, answers):
    """By how much answers of rows lie above what their items had got before, among these rows alone.

    Args:
        rows (Rows): all rows.
        kept (numpy.ndarray): row_ids, int [n].
        answers (numpy.ndarray): of all rows, [rows].

    Returns:
        numpy.ndarray: float64 [n]; nan where there is none of them before.
    """
    items, times, said = rows.item[kept], rows.time[kept], answers[kept].astype(np.float64)
    return ItemStatistics(items, times, said).residuals(items, times, said)


def alike_arrays(rows, shape):
    """The vectors without each fold of users, and those of all of them, of the training rows; and the folds.

    Args:
        rows (Rows): all rows, with their split.
        shape (tuple of int): number of users and of items, padding included.

    Returns:
        dict: vectors, float32 [FOLDS + 1, items, D], of which the last are those of all users; folds, as of `folds_of`.
    """
    answers, folds = answers_of(rows), folds_of(rows, shape[0])

    def among(kept):
        residuals = residuals_among(rows, kept, answers)
        known = ~np.isnan(residuals)
        return residual_vectors(rows.user[kept][known], rows.item[kept][known], residuals[known], shape)

    return {"vectors": np.stack([among(kept) for kept in without_each_fold(rows, folds)]), "folds": folds}


def seen_through(folds, users, trains):
    """Through which vectors rows are looked at: training rows through those without the fold of their user.

    Args:
        folds (numpy.ndarray or None): as of `folds_of`; None for requests, which know the vectors of all users alone.
        users (numpy.ndarray): of the rows, int [n].
        trains (numpy.ndarray or bool): which rows are training rows, bool [n].

    Returns:
        numpy.ndarray: int [n], places among the vectors.
    """
    return np.zeros(np.shape(users), dtype=np.int8) if folds is None else np.where(trains, folds[users], FOLDS)


@dataclass(frozen=True, eq=False)
class RatedAlike:
    """The behaviours of a row's own past whose items are rated most like an item.

    Attributes:
        rows (Rows), histories (Histories): all rows.
        vectors, folds (numpy.ndarray): as of `alike_arrays`; of requests, which are no training rows, the vectors of all users
            alone, [1, ...], and no folds.
    """

    rows: Rows
    histories: Histories
    vectors: np.ndarray
    folds: np.ndarray | None = None

    @classmethod
    def of_requests(cls, rows, histories, vectors, places):
        """Those of requests, which number items in another way.

        Args:
            rows (Rows), histories (Histories): of the requests.
            vectors (numpy.ndarray): of all users, float32 [items, D].
            places (numpy.ndarray): the item id there of each item here, int [m], -1 for none, which is like no other.
        """
        own = vectors[places]
        own[places < 0] = 0.0
        return cls(rows, histories, own[None])

    def weighted(self, row_ids, targets):
        """These behaviours and how alike they are, as `Retriever.weighted` gives them; 0 for what is not alike.

        Args:
            row_ids, targets (numpy.ndarray): of rows and items, int [n].

        Returns:
            tuple: row_ids, int32 [n, NEIGHBOURS], -1 where there are fewer; cosines, float64 [n, NEIGHBOURS], at least 0.
        """
        row_ids, targets, columns = np.asarray(row_ids), np.asarray(targets), self.rows
        found, weights = np.full((len(row_ids), NEIGHBOURS), -1, dtype=np.int32), np.full((len(row_ids), NEIGHBOURS), np.nan)
        trains = np.isin(columns.split[row_ids], (TRAIN, NO_SPLIT))
        through = seen_through(self.folds, columns.user[row_ids], trains)
        for fold in np.unique(through):
            here = through == fold
            retriever = Retriever(columns, self.histories, self.vectors[fold], NEIGHBOURS, "cosine")
            found[here], weights[here] = retriever.weighted(row_ids[here], targets[here])
        return found, weights
