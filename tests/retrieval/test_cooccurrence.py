"""Item vectors from who did what, against a plain decomposition."""

import numpy as np
import pytest

from recbole_rella.retrieval.cooccurrence import cooccurrence_vectors


@pytest.fixture
def rows():
    random = np.random.default_rng(0)
    users, items = random.integers(1, 30, 400), random.integers(1, 20, 400)
    return users, items


def test_equals_a_plain_decomposition(rows):
    users, items = rows
    keep = items != 7
    users, items = users[keep], items[keep]
    vectors = cooccurrence_vectors(users, items, (30, 20), size=5)
    matrix = np.zeros((20, 30))
    matrix[items, users] = 1
    scale = np.sqrt(np.outer(matrix.sum(1), matrix.sum(0)))
    left, singular, _ = np.linalg.svd(np.divide(matrix, scale, where=scale > 0, out=np.zeros_like(matrix)))
    plain = (left[:, :5] * singular[:5])[np.unique(items)]
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    found = vectors[np.unique(items)]
    assert found.dtype == np.float32 and found.shape == plain.shape
    np.testing.assert_allclose(found @ found.T, plain @ plain.T, atol=1e-4)
    assert not vectors[[0, 7]].any()


def test_a_row_that_is_repeated_says_nothing_more(rows):
    users, items = rows
    twice = cooccurrence_vectors(np.tile(users, 2), np.tile(items, 2), (30, 20), size=4)
    assert np.array_equal(twice, cooccurrence_vectors(users, items, (30, 20), size=4))


def test_few_items_have_short_vectors():
    assert cooccurrence_vectors(np.array([1, 1, 2]), np.array([1, 2, 2]), (3, 3)).shape == (3, 2)
