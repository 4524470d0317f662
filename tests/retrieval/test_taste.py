"""The taste of users: which directions it lies in, and that no training row tells of itself through them (law 1)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_rella.retrieval.rated_alike import FOLDS
from recbole_rella.retrieval.taste import Taste, taste_arrays
from recbole_rella.rows.history import TEST, VALID, Rows
from recbole_rella.rows.kalman import LIKED, RATED
from tests.retrieval.test_rated_alike import ITEMS, USERS, two_camps

SHAPE = (USERS, ITEMS)


def test_users_who_like_one_camp_are_expected_to_like_its_other_items():
    taste = Taste(**taste_arrays(two_camps(per_user=60), SHAPE))
    assert taste.vectors.shape[:2] == (FOLDS + 1, ITEMS) and taste.vectors.dtype == np.float32
    assert taste.deviations.shape == (FOLDS + 1, 2) and not taste.vectors[:, 0].any()
    seen, said = np.array([2, 3, 4, 5, 2, 3, 4, 5]), np.array([1.0, -1.0] * 4)
    for kind in (RATED, LIKED):
        even, odd = taste.expected_of(kind, 0, seen, said, np.array([6, 7]), trains=False)
        assert even > 0.2 > -0.2 > odd
        nobody = taste.expected_of(kind, 0, seen[:0], said[:0], np.array([6, 7]), trains=False)
        assert not nobody.any()


def changed(rows, where, rating, label):
    other, liked = rows.rating.copy(), rows.label.copy()
    other[where], liked[where] = rating, label
    return Rows(rows.user, rows.item, rows.time, other, liked, rows.split)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_a_users_own_answers_reach_nothing_that_its_training_rows_are_looked_at_through(seed, data):
    rows = two_camps(seed)
    user = data.draw(st.integers(1, USERS - 1))
    other = changed(rows, rows.user == user, data.draw(st.sampled_from([0.5, 5.0, 3.0])), data.draw(st.integers(0, 1)))
    before, after = taste_arrays(rows, SHAPE), taste_arrays(other, SHAPE)
    fold = before["folds"][user]
    for name in ("vectors", "deviations"):
        np.testing.assert_array_equal(before[name][fold], after[name][fold])


def test_no_answer_of_an_evaluated_row_reaches_anything():
    rows = two_camps()
    other = changed(rows, np.isin(rows.split, (VALID, TEST)), 0.5, 0)
    before, after = taste_arrays(rows, SHAPE), taste_arrays(other, SHAPE)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_requests_see_what_all_users_say_and_new_items_differ_from_no_other():
    taste = Taste(**taste_arrays(two_camps(), SHAPE))
    asked, seen = taste.of_requests(np.array([-1, 4, 6])), np.array([1.0, -0.5])
    of = lambda taste, items, targets: taste.expected_of(RATED, 3, np.array(items), seen, np.array(targets), trains=False)  # noqa: E731
    np.testing.assert_allclose(of(asked, [1, 2], [1, 2]), of(taste, [4, 6], [4, 6]))
    everything = of(asked, [1, 2], [0])
    assert everything != pytest.approx(of(asked, [1, 2], [1])) and np.isfinite(everything).all()


def test_rows_of_which_nothing_is_said_have_vectors_of_zeros():
    rows = two_camps()
    same = taste_arrays(changed(rows, slice(None), 3.0, 1), SHAPE)
    assert not same["vectors"].any() and (same["deviations"] == 1).all()
