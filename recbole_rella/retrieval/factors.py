"""Vectors of items from a matrix of items and users."""

import numpy as np
from scipy.sparse import coo_array
from sklearn.decomposition import TruncatedSVD
from sklearn.preprocessing import normalize


def factors(users, items, entries, shape, size):
    """Vectors of items by a truncated SVD (scikit-learn), as long as it makes them.

    Args:
        users, items (numpy.ndarray): columns and rows of the matrix, int [n].
        entries (numpy.ndarray): what stands there, float [n]; those of one place are added up.
        shape (tuple of int): number of users and of items, padding included.
        size (int): numbers of a vector; fewer where there are not as many users or items.

    Returns:
        numpy.ndarray: float64 [items, size]; zeros for items without an entry.
    """
    size = max(1, min(size, min(shape) - 1))
    if not np.any(entries):  # the SVD of nothing divides by its variance
        return np.zeros((shape[1], size))
    matrix = coo_array((entries, (items, users)), shape=shape[::-1]).tocsr()
    vectors = TruncatedSVD(size, random_state=0).fit_transform(matrix)
    vectors[np.bincount(items, minlength=shape[1]) == 0] = 0.0  # but for rounding they are that
    return vectors


def item_factors(users, items, entries, shape, size):
    """The same as unit vectors, float32 [items, size]; arguments as for `factors`."""
    return normalize(factors(users, items, entries, shape, size)).astype(np.float32)
