"""The filter that follows users: Bayes' rule as ridge regression has it, and blind to what comes later and to other users."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from recbole_rella.rows import kalman
from recbole_rella.rows.kalman import followed


def users_of(random, lengths, size=3, unknown=0.2):
    n = sum(lengths)
    answers = random.normal(size=n)
    answers[random.random(n) < unknown] = np.nan
    return random.normal(size=(n, size)), answers, np.array(lengths)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_without_drift_the_state_is_that_of_ridge_regression(seed, length):
    """The mean of the posterior of a Gaussian prior, from scikit-learn."""
    vectors, answers, lengths = users_of(np.random.default_rng(seed), [length])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kalman, "_DRIFT", 0.0)
        patch.setattr(kalman, "_EVERYTHING", 1.0)
        expected, states = followed(vectors, answers, lengths)
    seen, known = np.concatenate([np.ones((length, 1)), vectors], axis=1), ~np.isnan(answers)
    for before in range(length + 1):
        here = known[:before]
        x = np.zeros(4)
        if here.any():
            x = Ridge(alpha=kalman._NOISE, fit_intercept=False).fit(seen[:before][here], answers[:before][here]).coef_
        if before < length:
            assert expected[before] == pytest.approx(seen[before] @ x, abs=1e-8)
    np.testing.assert_allclose(states[0], x, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 6), min_size=1, max_size=8), st.integers(1, 3))
def test_users_are_followed_each_for_itself(seed, lengths, at_a_time):
    vectors, answers, lengths = users_of(np.random.default_rng(seed), lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kalman, "_USERS", at_a_time)
        expected, states = followed(vectors, answers, lengths)
    ends = np.cumsum(lengths)
    for user, (begin, end) in enumerate(zip(ends - lengths, ends)):
        alone, state = followed(vectors[begin:end], answers[begin:end], lengths[user : user + 1])
        np.testing.assert_allclose(expected[begin:end], alone, atol=1e-10)
        np.testing.assert_allclose(states[user], state[0], atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.data())
def test_what_is_expected_knows_nothing_of_its_own_answer_or_of_a_later_one(seed, length, data):
    vectors, answers, lengths = users_of(np.random.default_rng(seed), [length], unknown=0.0)
    place = data.draw(st.integers(0, length - 1))
    other = answers.copy()
    other[place:] += 10
    before, after = followed(vectors, answers, lengths)[0], followed(vectors, other, lengths)[0]
    np.testing.assert_array_equal(before[: place + 1], after[: place + 1])
    assert (before[place + 1 :] != after[place + 1 :]).all()


def test_late_answers_count_more_than_early_ones():
    same = np.zeros((20, 1))
    up = followed(same, np.repeat([-1.0, 1.0], 10), np.array([20]))[1][0, 0]
    down = followed(same, np.repeat([1.0, -1.0], 10), np.array([20]))[1][0, 0]
    assert up > 0.2 and down == pytest.approx(-up)
