"""The order in which rows are numbered: by time, or, for data sets without times, a random one. Plain numpy.

Both depend on what the rows say alone: on the data set's own ids, not on RecBole's internal ones, nor on the file's order. Rows
that are equal in all that is compared here are the same to whoever sees them.
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
        # Ids as 7 and 07 are the same number, and not the same id.
        keys = sorted(range(1, len(tokens)), key=lambda place: (int(tokens[place]), tokens[place]))
    except ValueError:
        keys = sorted(range(1, len(tokens)), key=lambda place: tokens[place])
    rank = np.zeros(len(tokens), dtype=np.int32)
    rank[keys] = np.arange(1, len(tokens))
    return rank


def by_time(time, user_rank, item_rank, answers=()):
    """The order (time, user, item, answers).

    Args:
        time, user_rank, item_rank (numpy.ndarray): of each row.
        answers (sequence of numpy.ndarray): rating and label of each row, where there are any: rows of the same time, user and
            item may contradict each other.

    Returns:
        numpy.ndarray: int64, places of the rows, first row first.
    """
    columns = [time, user_rank, item_rank]
    order = np.lexsort(columns[::-1])
    # Few rows, if any, are of the same time, user and item: they alone are compared further.
    repeated, _ = repeats([column[order] for column in columns], ())
    tied = np.flatnonzero(repeated | np.append(repeated[1:], False))
    if len(tied) and len(answers):
        places = order[tied]
        order[tied] = places[np.lexsort([column[places] for column in (*reversed(answers), *reversed(columns))])]
    return order


def shuffled(user_rank, item_rank, answers, seed):
    """A random order: one seeded permutation of the rows sorted by (user, item, answers).

    Args:
        user_rank, item_rank (numpy.ndarray): of each row.
        answers (sequence of numpy.ndarray): as for `by_time`.
        seed (int): equal rows and an equal seed give an equal order.

    Returns:
        numpy.ndarray: int64, places of the rows, first row first.
    """
    order = np.lexsort((*reversed(answers), item_rank, user_rank))
    return order[np.random.default_rng(seed).permutation(len(user_rank))]


def repeats(columns, answers):
    """Rows that say the same as the row before them: rows of one user, item and time stand side by side.

    Args:
        columns (sequence of numpy.ndarray): user, item and time of each row, in the order of the rows.
        answers (sequence of numpy.ndarray): rating and label.

    Returns:
        tuple: numpy.ndarray of bool [rows], whether a row repeats the one before; the same, whether its answer is another.
    """
    repeated = np.zeros(len(columns[0]), dtype=bool)
    repeated[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    other = np.zeros_like(repeated)
    for column in answers:
        other[1:] |= column[1:] != column[:-1]
    return repeated, repeated & other
