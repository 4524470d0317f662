"""The latest behaviours of many rows at once equal those that a plain loop finds in their histories."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_rella.rows.history import NO_SPLIT, TEST, TRAIN, VALID, Histories, Rows
from recbole_rella.rows.past import MOST_VALUES, SharedPast, UserPast, scale_of, without_gaps


def make_rows(users, items, splits, rating=None):
    count = len(users)
    columns = (np.array(users, dtype=np.int32), np.array(items, dtype=np.int32), np.arange(count))
    return Rows(*columns, rating, None, np.array(splits, dtype=np.int8))


@st.composite
def some_rows(draw):
    count = draw(st.integers(1, 30))
    users = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    items = draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
    splits = draw(st.lists(st.sampled_from((NO_SPLIT, TRAIN, VALID, TEST)), min_size=count, max_size=count))
    return make_rows(users, items, sorted(splits) if draw(st.booleans()) else splits)


def listed(found):
    """Lists of row_ids, of which every one that is missing stands behind those that are there."""
    lists = [row[row >= 0].tolist() for row in found]
    assert all(row[: len(there)].tolist() == there for row, there in zip(found, lists))
    return lists


@settings(deadline=None, max_examples=60)
@given(some_rows(), st.one_of(st.none(), st.integers(0, 6)))
def test_the_latest_of_a_user_are_the_end_of_each_history(rows, size):
    histories, every = Histories(rows, 3), np.arange(len(rows))
    found = UserPast(rows).latest(every, rows.item, size)
    expected = [histories.of(row).tolist() for row in every]
    expected = [past if size is None else past[len(past) - min(size, len(past)) :] for past in expected]
    assert listed(found) == expected
    assert found.shape[1] == max(map(len, expected))  # no wider than it must be


@settings(deadline=None, max_examples=60)
@given(some_rows(), st.integers(1, 4), st.data())
def test_the_latest_that_share_a_value(rows, size, data):
    values = np.zeros((6, 3), dtype=np.int32)
    for item in range(1, 6):
        own = data.draw(st.lists(st.integers(1, 4), max_size=3, unique=True))
        values[item, : len(own)] = own
    histories, every = Histories(rows, 3), np.arange(len(rows))
    targets = np.array(data.draw(st.lists(st.integers(1, 5), min_size=len(rows), max_size=len(rows))))
    found = SharedPast(rows, values).latest(every, targets, size)
    assert found.shape == (len(rows), size)
    for row, target, there in zip(every, targets, listed(found)):
        wanted = set(values[target]) - {0}
        assert there == [past for past in histories.of(row).tolist() if wanted & set(values[rows.item[past]])][-size:]


def test_a_row_of_another_user_or_a_later_split_is_not_seen():
    rows = make_rows([0, 1, 0, 0, 0], [1, 1, 2, 3, 4], [TRAIN, TRAIN, TEST, VALID, TRAIN])
    past = UserPast(rows)
    assert listed(past.latest(np.array([4, 3]), np.array([1, 1]), 9)) == [[0], [0]]
    assert past.latest(np.array([0]), np.array([1]), 9).shape == (1, 0)


def test_gaps_are_closed():
    assert without_gaps(np.array([[-1, 4, -1, 2], [3, -1, -1, -1]])).tolist() == [[4, 2, -1, -1], [3, -1, -1, -1]]


def test_the_scale_holds_no_value_that_only_held_out_rows_have():
    splits = [NO_SPLIT, TRAIN, TRAIN, NO_SPLIT, VALID, TEST]
    rows = make_rows([0] * 6, [1] * 6, splits, np.array([2.0, 1.0, 4.0, 7.0, 3.0, 5.0], dtype=np.float32))
    assert scale_of(rows).tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("count", [5, MOST_VALUES, 500])
def test_a_scale_of_many_values_is_cut_into_quantiles(count):
    ratings = np.random.default_rng(0).permutation(count).astype(np.float32)
    found = scale_of(make_rows([0] * count, [1] * count, [TRAIN] * count, ratings))
    assert len(found) == min(count, MOST_VALUES) and found[0] == 0 and found[-1] == count - 1
    assert np.diff(found).max() <= np.ceil(count / (len(found) - 1))
