"""The order in which rows are numbered: by time, or, for data sets without times, a random one. Plain numpy.

Both depend on what the rows say alone: on the data set's own ids, not on RecBole's internal ones, nor on the file's order.
"""

import numpy as np


def sort_rank(tokens):
    """Place of each token among all: by number where all are integers (as the original ids of most data sets are).

    Args:
        tokens (numpy.ndarray): str, by internal id; the first is padding.

    Returns:
        numpy.ndarray: int32, by internal id.
    """
    try:
        keys = np.array([int(token) for token in tokens[1:]])
    except ValueError:
        keys = np.array(tokens[1:], dtype=str)
    rank = np.zeros(len(tokens), dtype=np.int32)
    rank[1 + np.argsort(keys, kind="stable")] = np.arange(1, len(tokens))
    return rank


def by_time(time, user_rank, item_rank):
    """The order (time, user, item).

    Args:
        time, user_rank, item_rank (numpy.ndarray): of each row.

    Returns:
        numpy.ndarray: int64, places of the rows, first row first.
    """
    return np.lexsort((item_rank, user_rank, time))


def shuffled(user_rank, item_rank, rating, seed):
    """A random order: one seeded permutation of the rows sorted by (user, item, rating).

    Args:
        user_rank, item_rank (numpy.ndarray): of each row.
        rating (numpy.ndarray or None): of each row.
        seed (int): equal rows and an equal seed give an equal order.

    Returns:
        numpy.ndarray: int64, places of the rows, first row first.
    """
    keys = (item_rank, user_rank) if rating is None else (rating, item_rank, user_rank)
    return np.lexsort(keys)[np.random.default_rng(seed).permutation(len(user_rank))]
