"""Item mean plus running user mean: equal to a plain loop, and blind to what a row may not see (law 1)."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_features import data_sets, plain_answer, plain_training

from recbole_rella.rows.bias import RunningBias
from recbole_rella.rows.history import TRAIN, Histories


def plain_known(rows, item, before, weight):
    """Shrunk mean of an item over training rows before a time (None: all of them); None where there are none."""
    seen = [row for row in plain_training(rows) if before is None or rows.time[row] < before]
    if not seen:
        return None
    mean = np.mean([plain_answer(rows, row) for row in seen])
    answers = [plain_answer(rows, row) for row in seen if rows.item[row] == item]
    return (sum(answers) + weight * mean) / (len(answers) + weight)


def plain_score(rows, histories, row, item_weight, user_weight):
    known = plain_known(rows, rows.item[row], rows.time[row] if rows.split[row] <= TRAIN else None, item_weight)
    if known is None:
        return np.nan
    history = histories.of(row)
    then = [plain_known(rows, rows.item[b], rows.time[b], item_weight) for b in history]
    residuals = [plain_answer(rows, b) - mean for b, mean in zip(history, then) if mean is not None]
    return known + sum(residuals) / (len(history) + user_weight)


@settings(deadline=None, max_examples=40)
@given(data_sets(), st.sampled_from([0.5, 3, 10]), st.sampled_from([0.5, 7]))
def test_scores_equal_a_plain_loop(rows, item_weight, user_weight):
    histories = Histories(rows, 4)
    (found,) = RunningBias(rows, histories).scores(item_weight, [user_weight])
    expected = [plain_score(rows, histories, row, item_weight, user_weight) for row in range(len(rows))]
    # Cumulative sums of answers up to 1e6 keep ten digits.
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-4 if rows.rating is not None else 1e-12)


@settings(deadline=None, max_examples=20)
@given(data_sets(), st.data())
def test_no_row_takes_anything_from_its_own_answer_or_from_later_rows_of_its_split(rows, data):
    row = data.draw(st.integers(0, len(rows) - 1))
    later = (np.arange(len(rows)) >= row) & (rows.split >= rows.split[row])
    changed = replace(
        rows,
        label=np.where(later, 1 - rows.label, rows.label).astype(np.int8),
        rating=None if rows.rating is None else np.where(later, 3.0, rows.rating),
    )
    scores = [next(RunningBias(r, Histories(r, 4)).scores(3, [10]))[row] for r in (rows, changed)]
    np.testing.assert_allclose(*scores, rtol=1e-9, atol=1e-12)  # sums run over all rows: the last bit may move
