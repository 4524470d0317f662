"""The paired bootstrap: its AUC is scikit-learn's, and it tells a difference from chance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from recbole_rella.significance import _WeightedAUC, paired_bootstrap

row = st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.3, 0.3, 0.7, 1.0]), st.integers(0, 3))


@settings(max_examples=200, deadline=None)
@given(st.lists(row, min_size=2, max_size=30))
def test_the_weighted_auc_is_scikit_learns(rows):
    labels, scores, weights = (np.array(column) for column in zip(*rows))
    if not (weights[labels == 1].sum() and weights[labels == 0].sum()):
        return
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    np.testing.assert_allclose(_WeightedAUC(labels, scores)(weights[None]), [expected], atol=1e-12)


def made(n=600, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    good, bad = labels + random.normal(0, 0.8, n), labels + random.normal(0, 2.5, n)
    return labels, good, bad


def test_a_better_model_is_told_from_a_worse_one_and_not_from_itself():
    labels, good, bad = made()
    p, intervals = paired_bootstrap(labels, {"good": [good], "same": [good], "bad": [bad]}, resamples=500)
    assert p[0, 1] == 1 and p[0, 2] < 0.01 and (np.diag(p) == 1).all()
    np.testing.assert_array_equal(p, p.T)
    for (low, high), scores in zip(intervals, (good, good, bad)):
        assert low < roc_auc_score(labels, scores) < high


def test_it_is_paired_and_equals_a_plain_bootstrap():
    labels, good, _ = made(300)
    near = good + np.random.default_rng(5).normal(0, 0.4, len(good))
    p, _ = paired_bootstrap(labels, {"a": [good], "b": [near]}, resamples=800, seed=3)
    random = np.random.default_rng(9)
    differences = []
    for _ in range(800):
        rows = random.integers(0, len(labels), len(labels))
        differences.append(roc_auc_score(labels[rows], good[rows]) - roc_auc_score(labels[rows], near[rows]))
    plain = 2 * min(np.mean(np.array(differences) <= 0), np.mean(np.array(differences) >= 0))
    assert abs(p[0, 1] - plain) < 0.06


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("rows", "positive"), [(40, 1), (200, 6), (2000, 8)])
def test_draws_of_one_label_count_nowhere(rows, positive):
    """Of few rows of a label some draws have none: a plain bootstrap over the others."""
    random = np.random.default_rng(0)
    labels = (np.arange(rows) < positive).astype(int)
    scores = {"a": random.random(rows) + 0.5 * labels, "b": random.random(rows) + 0.3 * labels}
    p, intervals = paired_bootstrap(labels, {name: [one] for name, one in scores.items()})
    drawn = np.random.default_rng(0).integers(0, rows, (2000, rows))
    drawn = drawn[labels[drawn].any(axis=1)]
    assert len(drawn) < 2000
    weights = np.array([np.bincount(one, minlength=rows) for one in drawn])
    areas = np.array([_WeightedAUC(labels, of)(weights) for of in scores.values()])
    np.testing.assert_allclose(areas[0, 0], roc_auc_score(labels[drawn[0]], scores["a"][drawn[0]]))
    np.testing.assert_allclose(intervals, np.quantile(areas, [0.025, 0.975], axis=1).T, atol=1e-12)
    away = areas[0] - areas[1]
    expected = 2 * (1 + min((away <= 0).sum(), (away >= 0).sum())) / (len(drawn) + 1)
    np.testing.assert_allclose(p, [[1, min(1, expected)], [min(1, expected), 1]])


@pytest.mark.filterwarnings("error")
def test_rows_of_one_label_tell_nothing():
    p, intervals = paired_bootstrap(np.ones(20), {"a": [np.arange(20)], "b": [np.ones(20)]})
    assert np.isnan(p).all() and p.shape == (2, 2) and np.isnan(intervals).all() and intervals.shape == (2, 2)


def test_the_number_of_resamples_is_free():
    labels, good, bad = made(100)
    p, _ = paired_bootstrap(labels, {"good": [good], "bad": [bad]}, resamples=301)
    assert p[0, 1] >= 2 / 302


def test_the_auc_of_a_model_is_the_mean_over_its_seeds():
    labels, good, bad = made()
    _, intervals = paired_bootstrap(labels, {"both": [good, bad], "good": [good]}, resamples=300)
    middle = (roc_auc_score(labels, good) + roc_auc_score(labels, bad)) / 2
    assert intervals[0][0] < middle < intervals[0][1] < intervals[1][1]
