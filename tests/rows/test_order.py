"""Rows are numbered by what they say, whatever the order of the file; rows that repeat others are counted."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recbole_rella.rows.draw import drawn
from recbole_rella.rows.order import by_time, repeats, shuffled, sort_rank

_rows = st.lists(st.tuples(*[st.integers(0, 2)] * 5), min_size=1, max_size=40)


def columns_of(rows):
    return [np.array(column) for column in zip(*rows)]


@given(_rows, st.randoms())
def test_the_order_depends_on_the_rows_alone(rows, random):
    other = random.sample(rows, len(rows))
    found = []
    for given_rows in (rows, other):
        time, user, item, rating, label = columns_of(given_rows)
        for answers in ((rating, label), (rating,), (label,), ()):
            order = by_time(time, user, item, answers)
            seen = [(time[p], user[p], item[p], *(a[p] for a in answers)) for p in order]
            assert seen == sorted(seen)
            found.append(seen)
            order = shuffled(user, item, answers, 7)
            found.append([(user[p], item[p], *(a[p] for a in answers)) for p in order])
    assert found[: len(found) // 2] == found[len(found) // 2 :]


@given(_rows)
def test_repeats_equal_a_plain_count(rows):
    columns = columns_of(sorted(rows))
    repeated, other = repeats(columns[:3], columns[3:])
    groups = Counter(row[:3] for row in rows)
    assert repeated.sum() == len(rows) - len(groups)
    seen, contradicting = {}, 0
    for row in sorted(rows):
        contradicting += row[:3] in seen and seen[row[:3]] != row[3:]
        seen[row[:3]] = row[3:]
    assert other.sum() == contradicting and not (other & ~repeated).any()


@given(
    st.lists(st.sampled_from(["7", "07", "007", "10", "9", "-3", "+7", " 7"]), min_size=1, max_size=8, unique=True), st.randoms()
)
def test_ids_that_are_one_number_have_one_order(tokens, random):
    """Whatever RecBole calls them inside: 07 and 7 are not the same id."""

    def order(tokens):
        rank = sort_rank(np.array(["[PAD]", *tokens]))
        assert sorted(rank.tolist()) == list(range(len(tokens) + 1)) and rank[0] == 0
        return sorted(tokens, key=dict(zip(tokens, rank[1:])).get)

    assert order(tokens) == order(random.sample(tokens, len(tokens)))
    assert [int(token) for token in order(tokens)] == sorted(map(int, tokens))


def test_ids_that_are_no_numbers_stand_as_text():
    assert sort_rank(np.array(["[PAD]", "b", "10", "9", "a"])).tolist() == [0, 4, 1, 2, 3]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50, unique=True), st.integers(0, 60), st.integers(0, 3), st.randoms())
def test_fewer_drawn_rows_are_part_of_more(row_ids, count, seed, random):
    rows = np.array(row_ids)
    few, all_ = rows[drawn(rows, count, seed)], rows[drawn(rows, len(rows), seed)]
    np.testing.assert_array_equal(few, all_[:count])
    other = np.array(random.sample(row_ids, len(row_ids)))
    np.testing.assert_array_equal(other[drawn(other, count, seed)], few)
