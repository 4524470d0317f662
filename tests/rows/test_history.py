"""Histories as slices equal those that a loop builds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recbole_rella.data.row_dataset import RowDataset
from recbole_rella.quick_start import make_config
from recbole_rella.rows.history import NO_SPLIT, TEST, Histories, Rows


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(NO_SPLIT, TEST)), min_size=1, max_size=60))
def test_histories_equal_a_plain_loop(drawn):
    user, split = (np.array(column) for column in zip(*drawn))
    n = len(user)
    rows = Rows(user.astype(np.int32), np.zeros(n, np.int32), np.arange(n), None, None, split.astype(np.int8))
    histories = Histories(rows, 6)
    for row in range(n):
        earlier = [r for r in range(row) if user[r] == user[row]]
        assert histories.past_lengths()[row] == len(earlier)
        assert histories.of(row).tolist() == [r for r in earlier if split[r] <= split[row]]
        assert histories.shown_lengths()[row] == len(histories.of(row))
    for u in range(6):
        for s in range(NO_SPLIT, TEST + 1):
            assert histories.of_user(u, s).tolist() == [r for r in range(n) if user[r] == u and split[r] <= s]


def test_the_state_of_a_data_set_is_26_bytes_a_row(movies):
    name, tiny = movies
    dataset = RowDataset(make_config("ReLLa", name, config_dict=tiny))
    columns = [*dataset.rows.columns, dataset.histories.row_ids]
    assert all(len(column) == 360 for column in columns) and sum(column.nbytes for column in columns) == 26 * 360
