"""Items that are rated alike: what their vectors say, and that no training row tells of itself through them (law 1)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_rella.retrieval.rated_alike import FOLDS, NEIGHBOURS, RatedAlike, alike_arrays, folds_of, residual_vectors
from recbole_rella.rows.history import NO_SPLIT, TEST, TRAIN, VALID, Histories, Rows

USERS, ITEMS = 13, 9


def two_camps(seed=0, per_user=12):
    """Rows of users who like the even items or the odd ones: by time, all of training but the last of each user."""
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(1, USERS), per_user)
    item = random.integers(1, ITEMS, len(user))
    order = random.permutation(len(user))
    user, item = user[order], item[order]
    rating = np.where((item + user) % 2 == 0, 4.5, 1.5) + random.choice([-0.5, 0.5], len(user))
    split = np.full(len(user), TRAIN, dtype=np.int8)
    split[-20:-10], split[-10:] = VALID, TEST
    split[::17] = NO_SPLIT
    return Rows(user.astype(np.int32), item.astype(np.int32), np.arange(len(user)), rating, (rating >= 4).astype(np.int8), split)


def made(rows):
    histories = Histories(rows, USERS)
    return RatedAlike(rows, histories, **alike_arrays(rows, (USERS, ITEMS)))


def test_items_that_the_same_users_like_are_close_and_those_of_the_other_camp_are_not():
    vectors = alike_arrays(two_camps(per_user=60), (USERS, ITEMS))["vectors"]
    assert vectors.shape[:2] == (FOLDS + 1, ITEMS) and vectors.dtype == np.float32
    for fold in vectors:
        close, even = fold[1:] @ fold[1:].T, np.arange(1, ITEMS) % 2 == 0
        assert close[np.ix_(even, even)].mean() > 0.7 and close[np.ix_(even, ~even)].mean() < -0.3
        assert not fold[0].any()  # padding


def test_vectors_are_those_of_the_whole_matrix_where_nothing_is_cut_off():
    """With as many numbers as there are, the inner products are those of the scaled residuals."""
    random = np.random.default_rng(1)
    users, items, residuals = random.integers(0, 6, 25), random.integers(0, 7, 25), random.normal(size=25)
    matrix = np.zeros((7, 6))
    np.add.at(matrix, (items, users), residuals / np.sqrt(np.bincount(items, minlength=7)[items] + 5))
    lengths = np.linalg.norm(matrix, axis=1)
    whole = (matrix @ matrix.T) / np.where(lengths * lengths[:, None] > 0, lengths * lengths[:, None], 1)
    vectors = residual_vectors(users, items, residuals, (6, 7), size=5)
    u, s, _ = np.linalg.svd(matrix)
    cut = u[:, :5] * s[:5]
    expected = (cut @ cut.T) / np.outer(*[np.maximum(np.linalg.norm(cut, axis=1), 1e-12)] * 2)
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-4)
    assert np.abs(vectors @ vectors.T - whole).max() < 0.6


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_a_users_own_answers_reach_none_of_the_vectors_that_its_training_rows_are_looked_at_through(seed, data):
    rows = two_camps(seed)
    user = data.draw(st.integers(1, USERS - 1))
    other = rows.rating.copy()
    own = rows.user == user
    other[own] = data.draw(st.sampled_from([0.5, 5.0, 3.0]))
    changed = Rows(rows.user, rows.item, rows.time, other, rows.label, rows.split)
    before, after = (alike_arrays(some, (USERS, ITEMS))["vectors"] for some in (rows, changed))
    fold = folds_of(rows, USERS)[user]
    np.testing.assert_array_equal(before[fold], after[fold])


def test_users_are_dealt_out_evenly_and_by_what_they_did_whatever_their_numbers():
    rows = two_camps()
    folds = folds_of(rows, USERS)
    there = np.unique(rows.user)
    assert np.ptp(np.bincount(folds[there], minlength=FOLDS)) <= 1 and folds.dtype == np.int8
    numbers = np.random.default_rng(0).permutation(USERS - 1) + 1
    numbers = np.append(0, numbers)
    other = Rows(numbers[rows.user], rows.item, rows.time, rows.rating, rows.label, rows.split)
    np.testing.assert_array_equal(folds_of(other, USERS)[numbers[there]], folds[there])


def test_no_answer_of_an_evaluated_row_reaches_any_vector():
    rows = two_camps()
    other = np.where(np.isin(rows.split, (VALID, TEST)), 0.5, rows.rating)
    changed = Rows(rows.user, rows.item, rows.time, other, rows.label, rows.split)
    np.testing.assert_array_equal(*(alike_arrays(some, (USERS, ITEMS))["vectors"] for some in (rows, changed)))
    assert not np.array_equal(other, rows.rating)


def test_the_behaviours_are_the_closest_ones_of_the_past_through_the_rows_own_vectors():
    rows = two_camps(per_user=30)
    alike, folds = made(rows), folds_of(rows, USERS)
    row_ids = np.flatnonzero(np.isin(rows.split, (TRAIN, VALID, TEST)))[-60:]
    found, weights = alike.weighted(row_ids, rows.item[row_ids])
    assert found.shape == weights.shape == (60, NEIGHBOURS)
    for row, shown, close in zip(row_ids, found, weights):
        vectors = alike.vectors[folds[rows.user[row]] if rows.split[row] == TRAIN else FOLDS].astype(np.float64)
        past = alike.histories.of(row)
        cosines = vectors[rows.item[past]] @ vectors[rows.item[row]]
        best = np.sort(cosines)[::-1][:NEIGHBOURS]
        assert (shown >= 0).sum() == len(best) and set(shown[shown >= 0]) <= set(past)
        np.testing.assert_allclose(close[: len(best)], np.maximum(best, 0), atol=1e-5)


def test_requests_see_the_vectors_of_all_users_and_new_items_are_like_no_other():
    rows = two_camps()
    alike = made(rows)
    asked = Rows(
        np.zeros(4, np.int32),
        np.arange(4, dtype=np.int32),
        np.arange(4),
        np.array([5.0, 1.0, 4.0, 0.0]),
        None,
        np.full(4, TEST, np.int8),
    )
    places = np.array([3, -1, 5, 3])
    own = RatedAlike.of_requests(asked, Histories(asked, 1), alike.vectors[-1], places)
    found, weights = own.weighted(np.array([3]), np.array([3]))
    of = dict(zip(found[0][:3].tolist(), weights[0][:3]))
    expected = {0: 1.0, 1: 0.0, 2: max(0.0, float(alike.vectors[-1][3] @ alike.vectors[-1][5]))}
    assert of == pytest.approx(expected, abs=1e-5)
    assert not alike.vectors[-1].flags.writeable or np.array_equal(alike.vectors[-1], made(rows).vectors[-1])


def test_rows_of_which_nothing_is_said_have_vectors_of_zeros():
    rows = two_camps()
    same = Rows(rows.user, rows.item, rows.time, np.full(len(rows), 3.0), rows.label, rows.split)
    assert not alike_arrays(same, (USERS, ITEMS))["vectors"].any()
