"""Item vectors from who did what: items are close that have rows of the same users. No rating enters, no other model is needed."""

import numpy as np

from recbole_rella.retrieval.factors import item_factors


def cooccurrence_vectors(users, items, shape, size=32):
    """Vectors of items by a truncated SVD (scikit-learn) of the matrix of items and users.

    An entry is 1 where there is a row, divided by the square roots of how many items its user has and how many users its item: the
    normalized adjacency of LightGCN (SIGIR 2020), in which those who have rows of everything say little.

    Args:
        users, items (numpy.ndarray): of the training rows, int [n].
        shape (tuple of int): number of users and of items, padding included.
        size (int): numbers of a vector; fewer where there are not as many users or items.

    Returns:
        numpy.ndarray: float32 [items, size], unit vectors; zeros for items without a row.
    """
    pairs = np.unique(items.astype(np.int64) * shape[0] + users)
    item, user = pairs // shape[0], pairs % shape[0]
    of_item, of_user = np.bincount(item, minlength=shape[1]), np.bincount(user, minlength=shape[0])
    weights = 1 / np.sqrt(of_item[item] * of_user[user].astype(np.float64))
    return item_factors(user, item, weights, shape, size)
