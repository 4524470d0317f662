"""Which behaviours a prompt shows: the latest, the closest, or both."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import bare_template
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_rella import key_rules, keys
from recbole_rella.prompt.prompter import _ORDERS, RowTexts
from recbole_rella.retrieval.retriever import Retriever
from recbole_rella.retrieval.subr import similarity
from recbole_rella.rows.fields import BOTH, KINDS, RECENT, RETRIEVED
from recbole_rella.rows.history import NO_SPLIT, TEST, Histories, Rows

ORDERS = list(_ORDERS)


def texts_of(users, items, splits, vectors, k, recent_size, order, template=None):
    rows = Rows(
        np.array(users, np.int32),
        np.array(items, np.int32),
        np.arange(len(users)),
        np.arange(len(users), dtype=np.float32),
        np.arange(len(users), dtype=np.int8) % 2,
        np.array(splits, np.int8),
    )
    histories = Histories(rows, 3)
    return RowTexts(
        rows=rows,
        histories=histories,
        user_ids=[],
        item_ids=[],
        template=template,
        history_size=k,
        history_order=order,
        retriever=Retriever(rows, histories, np.array(vectors, np.float32), k, "dot"),
        recent_size=recent_size,
    )


@st.composite
def cases(draw):
    n, k = draw(st.integers(1, 30)), draw(st.integers(0, 8))
    column = lambda low, high: draw(st.lists(st.integers(low, high), min_size=n, max_size=n))  # noqa: E731
    # Few different vectors, so that behaviours tie.
    vectors = draw(st.lists(st.lists(st.integers(-2, 2), min_size=2, max_size=2), min_size=6, max_size=6))
    columns = column(0, 2), column(0, 5), column(NO_SPLIT, TEST), vectors
    return texts_of(*columns, k, draw(st.integers(0, k)), draw(st.sampled_from(ORDERS))), column(0, 5)


def shown(texts, targets, kind):
    rows = np.arange(len(targets))
    return [found.tolist() for found in texts.shown(rows, np.array(targets), np.full(len(rows), kind))]


@settings(max_examples=80, deadline=None)
@given(case=cases())
def test_both_are_the_latest_and_the_closest_of_the_others(case):
    """By a search of the others alone, in plain Python: no row twice, K where there are as many, each order as it says."""
    texts, targets = case
    k, size, columns, vectors = texts.history_size, texts.recent_size, texts.rows, texts.retriever.vectors
    for row, found in enumerate(shown(texts, targets, BOTH)):
        past = [r for r in range(row) if columns.user[r] == columns.user[row] and columns.split[r] <= columns.split[row]]
        latest, others = past[max(0, len(past) - size) :], past[: max(0, len(past) - size)]
        closeness = similarity(vectors[columns.item[others]], vectors[targets[row]], "dot") if others else []
        closest = [r for _, r in sorted(zip(closeness, others), reverse=True)][: k - len(latest)]
        expected = {
            "time": sorted(closest + latest),
            "recent_last": sorted(closest) + latest,
            "similarity": closest + latest,
            "similarity_reversed": closest[::-1] + latest,
        }
        assert found == expected[texts.history_order]
        assert len(set(found)) == len(found) == min(k, len(past)) and set(latest) <= set(found)


@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_both_without_recent_ones_is_retrieved_and_with_these_alone_recent(case):
    texts, targets = case
    assert shown(replace(texts, recent_size=0), targets, BOTH) == shown(texts, targets, RETRIEVED)
    assert shown(replace(texts, recent_size=texts.history_size), targets, BOTH) == shown(texts, targets, RECENT)


@settings(max_examples=20, deadline=None)
@given(case=cases(), data=st.data())
def test_kinds_may_stand_in_one_batch(case, data):
    texts, targets = case
    kinds = data.draw(st.lists(st.sampled_from(list(KINDS.values())), min_size=len(targets), max_size=len(targets)))
    found = texts.shown(np.arange(len(targets)), np.array(targets), np.array(kinds))
    alone = {kind: shown(texts, targets, kind) for kind in KINDS.values()}
    assert [f.tolist() for f in found] == [alone[kind][row] for row, kind in enumerate(kinds)]


@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_anchored_windows_begin_at_multiples_of_k(case):
    """By plain Python: K to 2K - 1 behaviours, the K latest among them; rows of one block begin with the same ones."""
    texts, targets = case
    k, columns, beginnings = texts.history_size, texts.rows, {}
    latest, anchored = (shown(replace(texts, history_window=window), targets, RECENT) for window in ("latest", "anchored"))
    for row, (few, found) in enumerate(zip(latest, anchored)):
        past = [r for r in range(row) if columns.user[r] == columns.user[row] and columns.split[r] <= columns.split[row]]
        before = len(past) - len(found)
        assert found == past[before:] and few == found[len(found) - len(few) :] and before % max(1, k) == 0
        assert min(k, len(past)) <= len(found) < max(1, 2 * k)
        seen = beginnings.setdefault((columns.user[row], columns.split[row], before), found)
        assert found[: len(seen)] == seen
    assert texts.history_window == "latest"


def test_others_are_what_both_leave_out():
    layout = "{{ others.count }}, {{ others.mean_rating }}, {{ behaviours | length }}"
    template = bare_template(layout, "Film {}".format)
    items = [0, 1, 0, 2, 2, 2, 2, 0]
    texts = texts_of([0] * 8, items, [0] * 8, [[1, 0], [0, 1], [-1, 0]], k=3, recent_size=1, order="time", template=template)
    (found,) = texts.shown(np.array([7]), np.array([0]), np.array([BOTH]))
    assert found.tolist() == [0, 2, 6]
    # Ratings are row numbers: 1, 3, 4 and 5 are left.
    assert texts.text(7, 0, found) == "4, 3.25, 3"


def test_kinds_go_by_the_names_of_the_configuration():
    assert tuple(KINDS) == key_rules.HISTORIES and list(KINDS.values()) == [0, 1, 2]
    assert all(keys.KEYS["history_order"].rule(order) is None for order in ORDERS)
    assert key_rules.trained_kinds("mixed") == ("recent", "retrieved") and key_rules.trained_kinds("both") == ("both",)
    assert key_rules.trained_kinds(["both", "recent"]) == ("both", "recent")


@pytest.mark.parametrize("value", ["nearest", [], ["mixed"], ["recent", "recent"], [["recent"]], None, True, {"recent": 1}])
def test_a_mixture_of_what_there_is_not(value):
    assert keys.KEYS["train_history"].rule(value) == ("mixed, one of recent, retrieved, both, or a list of different ones of these")
