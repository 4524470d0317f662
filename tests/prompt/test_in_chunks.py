"""Work over rows in chunks: in order, by any number of processes, and with the messages of errors as they are."""

import numpy as np
import pytest
import torch

from recbole_rella.errors import RellaError
from recbole_rella.prompt import in_chunks as module
from recbole_rella.prompt.in_chunks import in_chunks


def _doubled(rows):
    if 13 in rows:
        raise RellaError("row 13: expected another one. Leave it out.")
    return 2 * rows


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order_and_draw_no_number(monkeypatch, workers):
    monkeypatch.setattr(module, "_ROWS", 3)
    rows, before = np.array([5, 3, 8, 1, 9, 2, 7]), torch.get_rng_state()
    found = list(in_chunks(_doubled, rows, "Doubling", workers))
    assert [chunk.tolist() for chunk in found] == [[10, 6, 16], [2, 18, 4], [14]]
    assert torch.equal(torch.get_rng_state(), before)
    assert list(in_chunks(_doubled, rows[:0], "Doubling", workers)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_keeps_its_message(monkeypatch, workers):
    monkeypatch.setattr(module, "_ROWS", 3)
    with pytest.raises(RellaError) as caught:
        list(in_chunks(_doubled, np.arange(20), "Doubling", workers))
    assert str(caught.value) == "row 13: expected another one. Leave it out."
