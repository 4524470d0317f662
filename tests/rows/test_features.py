"""History features: equal to a plain loop on random data sets, and blind to what a row may not see (law 1)."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_rella.key_rules import HISTORY_NUMBERS
from recbole_rella.retrieval.rated_alike import FOLDS
from recbole_rella.retrieval.taste import Taste
from recbole_rella.rows import features
from recbole_rella.rows.features import HistoryFeatures
from recbole_rella.rows.history import NO_SPLIT, TEST, TRAIN, VALID, Histories, Rows
from recbole_rella.rows.item_statistics import SHRINKAGE, ItemStatistics, training_rows
from recbole_rella.rows.item_values import ItemValues

ITEMS = 5
# Values of items: repeated ones, none, one, several.
GENRES = ["", "drama", "war drama", "war war comedy", "comedy drama war"]
NAMES = (*HISTORY_NUMBERS, "same_genre_mean", "same_genre_residual", "same_genre_count", "same_title_mean")
TITLES = ["", "a", "b", "b", "c"]
CLOSENESS = np.array([[0.0, 0.3, 0.1, 0.9, 0.5]] * ITEMS) + np.arange(ITEMS)[:, None] / 10
# Of items, through each fold of users and through all; deviations of ratings and of labels.
TASTE = Taste(
    np.random.default_rng(0).normal(0, 0.3, (FOLDS + 1, ITEMS, 2)).astype(np.float32),
    np.array([[1.0, 0.5], [1.2, 0.4], [0.9, 0.45], [1.1, 0.5], [1.3, 0.55], [1.05, 0.48]]),
    np.arange(100) % FOLDS,
)


class Closest:
    """A retriever's results: the k latest behaviours, weighted by a table, some of them by 0."""

    def __init__(self, rows, histories, table, k=3):
        self.rows, self.histories, self.table, self.k = rows, histories, table, k

    def weighted(self, row_ids, targets):
        rows, histories, k = self.rows, self.histories, self.k
        found, weights = np.full((len(row_ids), k), -1), np.full((len(row_ids), k), np.nan)
        for place, (row, target) in enumerate(zip(row_ids, targets)):
            shown = histories.of(row)[-k:]
            found[place, : len(shown)] = shown
            weights[place, : len(shown)] = np.maximum(self.table[target, rows.item[shown]] - 0.35, 0)
        return found, weights


def make(rows, names=NAMES, **more):
    histories = Histories(rows, 4)
    values = {"genre": ItemValues.of(GENRES, " "), "title": ItemValues.of(TITLES)}
    return HistoryFeatures(
        rows=rows,
        histories=histories,
        statistics=ItemStatistics.of(rows),
        names=names,
        values=values,
        similar=Closest(rows, histories, CLOSENESS).weighted,
        alike=Closest(rows, histories, CLOSENESS.T, 4),
        taste=TASTE,
        likes=ItemStatistics.of(rows, rows.label),
        **more,
    )


@st.composite
def data_sets(draw, min_size=1):
    """Rows in the order of their times, many of them equal; any split; ratings or labels."""
    n = draw(st.integers(min_size, 40))
    column = lambda values: np.array(draw(st.lists(values, min_size=n, max_size=n)))  # noqa: E731
    time = np.sort(column(st.integers(0, 8))) * 40_000
    split = column(st.integers(NO_SPLIT, TEST)).astype(np.int8)
    if draw(st.booleans()):  # in the order of time, as most splits are
        split = np.sort(split)
    split[draw(st.integers(0, n - 1))] = TRAIN
    rated = draw(st.booleans())
    rating = column(st.sampled_from([0.5, 1.0, 2.5, 4.1, 5.0, 1e6])).astype(draw(st.sampled_from([np.float32, np.float64])))
    user, item = column(st.integers(0, 3)).astype(np.int32), column(st.integers(0, ITEMS - 1)).astype(np.int32)
    label = column(st.integers(0, 1)).astype(np.int8)
    return Rows(user, item, time, rating if rated else None, label, split)


# The plain loop: every number as its name says it, one row after the other.


def plain_answer(rows, row):
    return float(rows.label[row] if rows.rating is None else rows.rating[row])


def plain_tracked(rows, row, target, residuals, kind):
    """The filter of rows/kalman.py, behaviour by behaviour, for what is known."""
    trains = rows.split[row] in (TRAIN, NO_SPLIT)
    through = rows.user[row] % FOLDS if trains else FOLDS
    seen, deviation = lambda item: np.append(1.0, TASTE.vectors[through, item]), TASTE.deviations[through, kind]
    x, first = np.zeros(3), np.diag([0.15, 1.0, 1.0])
    covariance = first.copy()
    for item, residual in residuals:
        if not np.isnan(residual):
            gain = covariance @ seen(item) / (seen(item) @ covariance @ seen(item) + 0.8)
            x = x + gain * (residual / deviation - seen(item) @ x)
            covariance = covariance - np.outer(gain, covariance @ seen(item))
        covariance = covariance + 0.03 * first
    return seen(target) @ x * deviation


def plain_training(rows):
    last = max(row for row in range(len(rows)) if rows.split[row] == TRAIN)
    return [row for row in range(len(rows)) if rows.split[row] == TRAIN or (rows.split[row] == NO_SPLIT and row < last)]


def plain_item(rows, item, before):
    """Shrunk mean and count of an item, of training rows before a time (or of all)."""
    known = [row for row in plain_training(rows) if before is None or rows.time[row] < before]
    of_item = [plain_answer(rows, row) for row in known if rows.item[row] == item]
    if not known:
        return np.nan, 0
    everything = sum(plain_answer(rows, row) for row in known) / len(known)
    return (sum(of_item) + SHRINKAGE * everything) / (len(of_item) + SHRINKAGE), len(of_item)


def plain_mean(values, weights=None):
    weights = [1.0] * len(values) if weights is None else weights
    pairs = [(value, weight) for value, weight in zip(values, weights) if not np.isnan(value) and weight > 0]
    return sum(v * w for v, w in pairs) / sum(w for _, w in pairs) if pairs else np.nan


def plain(rows, row, target):
    """Name -> number."""
    past = [r for r in range(row) if rows.user[r] == rows.user[row] and rows.split[r] <= rows.split[row]]
    answers = [plain_answer(rows, r) for r in past]
    residuals = [plain_answer(rows, r) - plain_item(rows, rows.item[r], rows.time[r])[0] for r in past]
    before = rows.time[row] if rows.split[row] in (TRAIN, NO_SPLIT) else None
    found = {"user_count": len(past), "user_last": answers[-1] if past else np.nan}
    for name, values in (("mean", answers), ("residual", residuals)):
        for last in (10, 30):
            found[f"user_{name}_{last}"] = plain_mean(values[-last:])
        found[f"user_{name}"] = plain_mean(values)
    mean = plain_mean(answers)
    found["user_spread"] = plain_mean([(a - mean) ** 2 for a in answers]) ** 0.5
    found["days_since_last"] = (rows.time[row] - rows.time[past[-1]]) / 86400 if past else np.nan
    found["item_mean"], found["item_count"] = plain_item(rows, target, before)
    weights = [max(CLOSENESS[target, rows.item[r]] - 0.35, 0) for r in past[-3:]]
    found["similar_mean"] = plain_mean(answers[-3:], weights)
    found["similar_residual"] = plain_mean(residuals[-3:], weights)
    alike = [max(CLOSENESS[rows.item[r], target] - 0.35, 0) for r in past[-4:]]
    known = [(value, weight) for value, weight in zip(residuals[-4:], alike) if not np.isnan(value)]
    weight = 1 + sum(weight for _, weight in known)
    found["alike_residual"] = sum(v * w for v, w in known) / weight if known else np.nan
    liked = replace(rows, rating=None)
    own_past = [(rows.item[r], residual) for r, residual in zip(past, residuals)]
    found["tracked_residual"] = plain_tracked(rows, row, target, own_past, 0)
    own_past = [(rows.item[r], plain_answer(liked, r) - plain_item(liked, rows.item[r], rows.time[r])[0]) for r in past]
    found["tracked_label"] = plain_tracked(rows, row, target, own_past, 1)
    shared = [len(set(GENRES[target].split()) & set(GENRES[rows.item[r]].split())) for r in past]
    found["same_genre_mean"], found["same_genre_residual"] = plain_mean(answers, shared), plain_mean(residuals, shared)
    found["same_genre_count"] = sum(shared)
    same = [float(TITLES[target] == TITLES[rows.item[r]] != "") for r in past]
    found["same_title_mean"] = plain_mean(answers, same)
    return found


@settings(max_examples=40, deadline=None)
@given(data_sets(), st.data())
def test_features_equal_a_plain_loop(rows, data):
    made = make(rows)
    row_ids = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6)), dtype=int)
    table = made.of_rows(row_ids)
    assert table.dtype == np.float32 and table.shape == (len(row_ids), len(NAMES))
    for row, numbers in zip(row_ids, table):
        targets = np.array([rows.item[row], (rows.item[row] + 1) % ITEMS])
        one = made.of(row, targets)
        expected = np.array([[plain(rows, row, target)[name] for name in NAMES] for target in targets])
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-4 if rows.rating is None else 0.5)
        np.testing.assert_allclose(numbers, one[0], rtol=1e-5, atol=1e-4 if rows.rating is None else 0.5)


@settings(max_examples=15, deadline=None)
@given(data_sets(), st.integers(1, 3))
def test_the_rows_that_are_worked_on_at_a_time_change_nothing(rows, at_a_time):
    everything = np.arange(len(rows))
    whole = make(rows).of_rows(everything)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_ROWS", at_a_time)
        patch.setattr(features, "_SEARCHED", at_a_time)
        parts = make(rows).of_rows(everything)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(make(rows).of_rows(everything[::-1]), whole[::-1])


def hidden_from(rows, row):
    """Rows of which no feature of this row may tell: itself, those of a later split, those that are evaluated (of others, or
    not before it), and for a training row those that do not come before it."""
    own_past = (rows.user == rows.user[row]) & (np.arange(len(rows)) < row) & (rows.split <= rows.split[row])
    learned = training_rows(rows)
    if rows.split[row] in (TRAIN, NO_SPLIT):
        learned &= rows.time < rows.time[row]
    return np.flatnonzero(~(own_past | learned))


@settings(max_examples=40, deadline=None)
@given(data_sets(min_size=5), st.data())
def test_law_1_no_feature_tells_what_it_may_not_see(rows, data):
    row = data.draw(st.integers(0, len(rows) - 1))
    hidden = hidden_from(rows, row)
    assert row in hidden
    if rows.split[row] >= TRAIN:
        assert np.isin(np.flatnonzero(rows.split > rows.split[row]), hidden).all()
    before = make(rows).of_rows(np.array([row]))
    label, rating = rows.label.copy(), None if rows.rating is None else rows.rating.copy()
    label[hidden] = 1 - label[hidden]
    if rating is not None:
        rating[hidden] += 10_000
    other = replace(rows, label=label, rating=rating)
    # What is not seen moves the sums of all by a rounding at most.
    close = {"rtol": 1e-5, "atol": 1e-4 if rating is None else 0.5}
    np.testing.assert_allclose(make(other).of_rows(np.array([row])), before, **close)
    np.testing.assert_allclose(make(other).of(row, [rows.item[row]]), make(rows).of(row, [rows.item[row]]), **close)


def test_a_later_answer_and_an_own_one_are_seen_where_they_may_be():
    """The counterpart of the law: what may be seen moves the numbers, so the test above could fail."""
    n = 6
    rows = Rows(
        np.zeros(n, np.int32), np.ones(n, np.int32), np.arange(n) * 86400, np.array([1, 2, 3, 4, 5, 1.0]), None,
        np.array([TRAIN, TRAIN, TRAIN, VALID, TEST, TEST], np.int8),
    )  # fmt: skip
    names = ("user_mean", "user_last", "item_mean", "item_count", "days_since_last", "user_count")
    table = make(rows, names).of_rows(np.arange(n))
    assert np.isnan(table[0, :3]).all() and table[0, 3] == 0
    assert table[2].tolist() == pytest.approx([1.5, 2.0, 1.5, 2, 1, 2])
    assert table[4].tolist() == pytest.approx([2.5, 4.0, 2.0, 3, 1, 4])  # past: three training rows and the validation row
    assert make(rows, names, now=rows.time.astype(float)).of_rows(np.array([2]))[0, 3] == 3  # a request sees all of them


@settings(max_examples=15, deadline=None)
@given(data_sets(), st.data())
def test_statistics_for_other_item_numbers(rows, data):
    """Serving numbers the items of a request by itself; one that the data set does not have has no statistics."""
    statistics = ItemStatistics.of(rows)
    places = np.array(data.draw(st.lists(st.integers(-1, ITEMS - 1), min_size=1, max_size=6)))
    seen = statistics.seen_by(places)
    items, times = np.arange(len(places)), np.full(len(places), data.draw(st.integers(0, 9)) * 40_000)
    for when in (None, times):
        known = np.maximum(places, 0)
        prior = np.broadcast_to(statistics.running_mean(when), len(places))
        np.testing.assert_array_equal(seen.count(items, when), np.where(places < 0, 0, statistics.count(known, when)))
        np.testing.assert_allclose(seen.mean(items, when), np.where(places < 0, prior, statistics.mean(known, when)))
    again = ItemStatistics(statistics.items, statistics.times, statistics.answers)
    np.testing.assert_array_equal(again.mean(np.arange(ITEMS)), statistics.mean(np.arange(ITEMS)))


def test_item_means_without_shrinkage_are_means():
    rows = Rows(*(np.array(c) for c in ([0, 0, 1], [1, 1, 2], [3, 4, 5], [2.0, 4.0, 5.0])), None, np.zeros(3, np.int8))
    statistics = ItemStatistics.of(rows)
    assert statistics.mean(np.array([1, 2]), weight=0).tolist() == [3, 5]
    assert statistics.mean(np.array([0]), weight=0).tolist() == pytest.approx([11 / 3])
    assert statistics.residuals(np.array([1]), np.array([4]), np.array([4.0])).tolist() == [2.0]
