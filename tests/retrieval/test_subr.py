"""SUBR at size: long pasts and large catalogues, in memory that a setting bounds."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_rella.retrieval import subr
from recbole_rella.retrieval.retriever import Retriever
from recbole_rella.retrieval.subr import retrieve, similarity
from recbole_rella.rows.history import TRAIN, Histories, Rows


def one_user(n, n_items, dimension, seed=0):
    random = np.random.default_rng(seed)
    rows = Rows(
        np.zeros(n, np.int32),
        random.integers(n_items, size=n).astype(np.int32),
        np.arange(n),
        None,
        None,
        np.full(n, TRAIN, np.int8),
    )
    vectors = random.normal(size=(n_items, dimension)).astype(np.float32)
    return rows, Histories(rows, 1), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("chunk", [1000, 65536])
def test_a_past_of_100000_behaviours_and_as_many_items(chunk):
    rows, histories, vectors = one_user(100_001, 100_000, 32)
    asked = np.array([100_000, 50_000, 7, 0])
    tracemalloc.start()
    found, similarities = retrieve(
        vectors, rows.item, histories, rows.split, rows.user, asked, rows.item[asked], 15, "cosine", chunk
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for row, behaviours in zip(asked, found):
        closeness = similarity(vectors[rows.item[:row]], vectors[rows.item[row]], "cosine")
        expected = np.lexsort((-np.arange(row), -closeness))[:15]
        assert behaviours[behaviours >= 0].tolist() == expected.tolist()
    assert (found[-1] == -1).all() and np.isnan(similarities[-1]).all()
    # A chunk of vectors (numpy's copy; FAISS keeps one of its own) and a few columns of the past, no items x items.
    assert peak < 4 * chunk * 32 * 4 + 20 * 100_000


def test_a_thousand_repeats_of_one_item():
    """All of them tie: the most recent ones are shown, however FAISS orders equals."""
    rows, histories, vectors = one_user(1200, 3, 8)
    rows.item[:] = 1
    found, _ = retrieve(vectors, rows.item, histories, rows.split, rows.user, np.array([1199]), np.array([1]), 15, "cosine", 500)
    assert found[0].tolist() == list(range(1198, 1183, -1))


def test_rows_that_were_searched_ahead_are_not_searched_again(monkeypatch, tmp_path):
    rows, histories, vectors = one_user(60, 9, 4)
    retriever = Retriever(rows, histories, vectors, 5, "cosine")
    everything = np.arange(60)
    expected = retriever.closest(everything, rows.item)
    retriever = retriever.searched_ahead(np.array([50, 10, 30]), tmp_path)
    searched = []
    search = Retriever.search
    monkeypatch.setattr(Retriever, "search", lambda self, r, t, *how: searched.extend(r) or search(self, r, t, *how))
    np.testing.assert_array_equal(retriever.closest(everything, rows.item), expected)
    assert sorted(set(everything) - set(searched)) == [10, 30, 50]
    # Another target of such a row is another question.
    searched.clear()
    other = (rows.item[[30]] + 1) % 9
    assert not np.array_equal(retriever.closest(np.array([30]), other), expected[[30]]) and searched == [30]


def test_nothing_asked():
    rows, histories, vectors = one_user(5, 3, 4)
    found, similarities = retrieve(vectors, rows.item, histories, rows.split, rows.user, [], [], 3)
    assert found.shape == similarities.shape == (0, 3)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_near_ties_in_small_steps_equal_brute_force(data):
    """Vectors that differ by less than float32's products can tell; calls, chunks and repeated searches of every size."""
    n, n_items, dimension = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 30)), data.draw(st.sampled_from([1, 5, 64]))
    rows, histories, vectors = one_user(n, n_items, dimension, data.draw(st.integers(0, 9)))
    vectors[: n_items // 2] = vectors[-1] * (
        1 + data.draw(st.sampled_from([0, 1e-7, 1e-5, 1e-2])) * np.arange(n_items // 2)[:, None]
    )
    k, metric, chunk = (
        data.draw(st.integers(0, 40)),
        data.draw(st.sampled_from(["cosine", "dot", "l2"])),
        data.draw(st.integers(1, 200)),
    )
    asked = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    targets = np.array(data.draw(st.lists(st.integers(0, n_items - 1), min_size=len(asked), max_size=len(asked))))
    sizes = {name: data.draw(st.integers(1, 300)) for name in ("_MARGIN", "_SPREAD", "_CANDIDATES", "_NUMBERS")}
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(subr, name, size)
        found, similarities = retrieve(vectors, rows.item, histories, rows.split, rows.user, asked, targets, k, metric, chunk)
    for row, target, behaviours, similar in zip(asked, targets, found, similarities):
        closeness = similarity(vectors[rows.item[:row]], vectors[target], metric)
        expected = np.lexsort((-np.arange(row), -closeness))[:k]
        assert behaviours.tolist() == expected.tolist() + [-1] * (k - len(expected))
        np.testing.assert_allclose(similar[: len(expected)], closeness[expected], rtol=0, atol=1e-6)
