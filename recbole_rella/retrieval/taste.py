"""The taste of users: in which directions items differ by what users say of them, and where each user stands there.

The directions are a truncated SVD of what users answered above the items' means and above their own. As in rated_alike.py, a
training row is looked at through vectors in which no row of its own user stands (cross-fitting). rows/kalman.py follows the users.
"""

from dataclasses import dataclass

import numpy as np

from recbole_rella.retrieval.factors import factors
from recbole_rella.retrieval.rated_alike import folds_of, residuals_among, seen_through, without_each_fold
from recbole_rella.rows.item_statistics import answers_of
from recbole_rella.rows.kalman import LIKED, RATED, followed

# As many directions; by how many answers an item's vector and a user's mean are shrunk; the length of an item's vector, as the root
# of the mean of squares over training rows: how much more an item's own directions say than noise. Chosen with those of kalman.py.
_SIZE, _SHRINKAGE, _OF_USERS, _LENGTH = 8, 60.0, 3.0, 0.2


def _vectors(users, items, residuals, shape):
    of_users = np.bincount(users, residuals, shape[0]) / (np.bincount(users, minlength=shape[0]) + _OF_USERS)
    counts = np.bincount(items, minlength=shape[1])
    vectors = factors(users, items, (residuals - of_users[users]) / np.sqrt(counts[items] + _SHRINKAGE), shape, _SIZE)
    squares = (vectors[items] ** 2).sum(axis=1)
    length = np.sqrt(squares.mean()) if len(squares) else 0.0
    found = np.zeros((shape[1], _SIZE), dtype=np.float32)
    found[:, : vectors.shape[1]] = vectors * (_LENGTH / length if length > 0 else 0.0)
    return found


def taste_arrays(rows, shape):
    """Vectors of items, and deviations of answers, without each fold of users and with all of them, of the training rows.

    Args:
        rows (Rows): all rows, with their split.
        shape (tuple of int): number of users and of items, padding included.

    Returns:
        dict: vectors, float32 [FOLDS + 1, items, D]; deviations, float64 [FOLDS + 1, 2], of ratings and of labels around the means
            of their items, 1 where they do not differ, of which the last are those of all users; folds, as of `folds_of`.
    """
    made, folds = {"vectors": [], "deviations": []}, folds_of(rows, shape[0])
    for kept in without_each_fold(rows, folds):
        deviations = []
        for kind, answers in ((RATED, answers_of(rows)), (LIKED, rows.label)):
            residuals = np.zeros(len(kept)) if answers is None else residuals_among(rows, kept, answers)
            known = ~np.isnan(residuals)
            deviations.append((residuals[known].std() if known.any() else 0.0) or 1.0)
            if kind == RATED:
                made["vectors"].append(_vectors(rows.user[kept][known], rows.item[kept][known], residuals[known], shape))
        made["deviations"].append(deviations)
    return {name: np.stack(arrays) for name, arrays in made.items()} | {"folds": folds}


@dataclass(frozen=True, eq=False)
class Taste:
    """What follows users.

    Attributes:
        vectors, deviations, folds (numpy.ndarray): as of `taste_arrays`; of requests, which are no training rows, those of all
            users alone, [1, ...], and no folds.
    """

    vectors: np.ndarray
    deviations: np.ndarray
    folds: np.ndarray | None = None

    def of_requests(self, places):
        """That of requests, which number items in another way.

        Args:
            places (numpy.ndarray): the item id here of each of theirs, int [m], -1 for none, which differs from no other.
        """
        own = self.vectors[-1][places]
        own[places < 0] = 0.0
        return Taste(own[None], self.deviations[-1:])

    def expected(self, kind, users, items, answers, trains):
        """By how much more users are expected to answer than the items' means, before each behaviour.

        Args:
            kind (int): RATED or LIKED.
            users, items (numpy.ndarray): of behaviours, int [n], user by user, oldest first.
            answers (numpy.ndarray): what they lie above their items' means, float [n], nan where it is not known.
            trains (bool): whether this is asked of training rows.

        Returns:
            numpy.ndarray: float64 [n].
        """
        through = seen_through(self.folds, users, trains)
        deviations = self.deviations[through, kind]
        lengths = np.diff(np.append(np.flatnonzero(np.append(True, users[1:] != users[:-1])), len(users)))
        expected, _ = followed(self.vectors[through, items].astype(np.float64), answers / deviations, lengths)
        return expected * deviations

    def expected_of(self, kind, user, items, answers, targets, trains):
        """The same of one user behind all behaviours, about several items.

        Args:
            kind, items, answers, trains: as for `expected`; there may be no behaviour.
            user (int): user id.
            targets (numpy.ndarray): item ids, int [m].

        Returns:
            numpy.ndarray: float64 [m].
        """
        through = int(seen_through(self.folds, user, trains))
        vectors, deviation = self.vectors[through].astype(np.float64), self.deviations[through, kind]
        _, states = followed(vectors[items], answers / deviation, np.array([len(items)]))
        return (states[0, 0] + vectors[targets] @ states[0, 1:]) * deviation
