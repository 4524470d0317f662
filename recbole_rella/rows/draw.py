"""Rows drawn with a seed. Plain numpy."""

import numpy as np


def drawn(row_ids, count, seed):
    """The first of one seeded permutation of rows: fewer are part of more, and the order in which they are given does not matter.

    Args:
        row_ids (numpy.ndarray): int [n], all different.
        count (int): how many; all, where there are no more.
        seed (int): of the permutation.

    Returns:
        numpy.ndarray: int64, places in `row_ids`, in the order in which they are drawn.
    """
    permutation = np.random.default_rng(seed).permutation(len(row_ids))
    return np.argsort(row_ids)[permutation[:count]]
