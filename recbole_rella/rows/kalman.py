"""A filter that follows what each user answers, behaviour by behaviour: a Kalman filter over vectors of items. Plain numpy.

A user is a state x of 1 + D numbers: by how much it answers above every item's mean, and how much it likes each of D directions in
which items differ. An answer lies (1, v) x above its item's mean, but for noise. Before anything is known x is about 0; each answer
moves it by Bayes' rule; and from one behaviour to the next it drifts, so that late ones count more. (Kalman filters for matrix
factorization: Sun, Parthasarathy and Varshney, IEEE TSP 2014; Gultekin and Paisley, ICDM 2014.)

All is told in deviations of answers. The numbers below were chosen on validation of MovieLens-100K and of MovieLens Latest Small;
half or twice of the drift, and of the squared lengths of item vectors, does as well there.
"""

import numpy as np

# What is followed: answers (ratings, or labels where there are none), or labels.
RATED, LIKED = 0, 1
# Variances: of how users answer everything, of the noise of an answer, and of the drift, as a share of the first variance of x.
# That of what they like is in the lengths of item vectors.
_EVERYTHING, _NOISE, _DRIFT = 0.15, 0.8, 0.03
# Users that are followed at a time, so that their covariances stay in the processor's cache.
_USERS = 256


def followed(vectors, answers, lengths):
    """What users are expected to answer before each of their behaviours, and their states behind the last.

    Args:
        vectors (numpy.ndarray): of the items of all behaviours, user by user, oldest first, float [n, D].
        answers (numpy.ndarray): by how much they lie above their items' means, float [n]; nan where it is not known.
        lengths (numpy.ndarray): number of behaviours of each user, int [users], with the sum n.

    Returns:
        tuple: float64 [n], expected before the answer is known; float64 [users, 1 + D], the states.
    """
    size, starts = vectors.shape[1] + 1, np.cumsum(lengths) - lengths
    expected, states = np.zeros(len(answers)), np.zeros((len(lengths), size))
    first = np.ones(size)
    first[0] = _EVERYTHING
    longest_first = np.argsort(-lengths, kind="stable")
    for begin in range(0, len(lengths), _USERS):
        users = longest_first[begin : begin + _USERS]
        x, covariance = np.zeros((len(users), size)), np.tile(np.diag(first), (len(users), 1, 1))
        # A view of the diagonals, so that drift is added in place.
        diagonals = np.einsum("uii->ui", covariance)
        ends = np.searchsorted(-lengths[users], -np.arange(lengths[users[0]]))  # how many users have a behaviour of this number
        for number, there in enumerate(ends):
            places = starts[users[:there]] + number
            seen = np.concatenate([np.ones((there, 1)), vectors[places]], axis=1)
            gains = np.einsum("uij,uj->ui", covariance[:there], seen)
            guess = np.einsum("ui,ui->u", seen, x[:there])
            expected[places] = guess
            known = ~np.isnan(answers[places])
            scaled = gains * (known / (np.einsum("ui,ui->u", seen, gains) + _NOISE))[:, None]
            x[:there] += scaled * np.where(known, answers[places] - guess, 0.0)[:, None]
            covariance[:there] -= scaled[:, :, None] * gains[:, None, :]
            diagonals[:there] += _DRIFT * first
        states[users] = x
    return expected, states
