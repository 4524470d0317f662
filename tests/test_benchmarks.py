"""What the benchmarks compare computes the same: else a ratio of seconds would say nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.speed import measure, scoring, training, workload  # noqa: E402


@pytest.fixture(scope="module")
def work():
    lines = [f"Movie {i} ({1980 + i}): {1 + i % 5} stars\n" for i in range(12)]
    texts = [
        f"Judge what this person likes.\nThis person is {30 + user} years old.\n{''.join(lines[: 3 + row])}Will the user like Film {row}, Yes or No?\nAnswer:"
        for user in range(3)
        for row in range(8)
    ]
    made = workload.make_llm("1M", texts * 20, "cpu", torch.float32)
    return workload.make_workload(texts, np.arange(len(texts)) % 2, made)


def test_every_way_to_score_gives_the_same_scores(work):
    expected = scoring.ours(work)
    assert np.ptp(expected) > 1e-4
    for scores in (scoring.cross_encoder(work)(), scoring.plain(work), scoring.paper(work)):
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_every_way_to_tune_gives_the_same_losses(work):
    samples = training.Samples(work)
    expected = training.ours(work.llm, samples, 3, 8)
    assert abs(expected[0] - expected[2]) > 1e-3
    for losses in (training.trainer(work.llm, samples, 3, 8), training.paper(work.llm, samples, 3, 8)):
        np.testing.assert_allclose(losses, expected, atol=2e-4)


def test_operations_count_shared_beginnings_once(work):
    needed, attention, tokens, computed, way = scoring.operations(work)
    ids = work.ids()
    distinct = {tuple(i[:n]) for i in ids for n in range(1, len(i) + 1)}
    assert way == "pieces" and tokens == sum(map(len, ids)) and computed == len(distinct)
    pairs = sum(len(beginning) for beginning in distinct)
    assert attention == 4 * 128 * 4 * pairs and needed > attention


def test_memory_of_a_call_is_what_it_takes():
    found = measure.in_turn({"large": lambda: np.ones(25_000_000).sum(), "small": lambda: 0}, 2)
    if found["large"]["peak_mib"] is None:
        pytest.skip("this system does not tell the peak of resident memory")
    assert 150 < found["large"]["peak_mib"] < 300 and found["small"]["peak_mib"] < 50
    assert len(found["large"]["all"]) == 2
