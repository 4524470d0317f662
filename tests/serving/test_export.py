"""What is exported scores as the run did, by transformers alone."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import write_llm
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from recbole_rella import command_line, run_recbole_rella
from recbole_rella.config import properties_folder
from recbole_rella.files import OutputError
from recbole_rella.run_folder import RunError
from recbole_rella.serving.export import Export, ExportError


def tuned(movies, llm, family, **more):
    name, tiny = movies
    settings = {**tiny, "llm": str(llm), "learning_rate": 0.05, "train_shots": 16, **more}
    file = properties_folder() / "llm" / f"{family}.yaml"
    run_recbole_rella("ReLLa", name, config_file_list=[str(file)], config_dict=settings)
    (run,) = Path("saved").glob("ReLLa-*")
    return run


def read(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("family", "add_special_tokens"), [("llama-3", False), ("vicuna-7b-v1.5", True), ("gemma-3", False)])
def test_the_exported_folder_scores_the_exported_prompts_as_the_run_did(family, add_special_tokens, movies, tmp_path, monkeypatch):
    folder = write_llm(tmp_path / "llm", family)
    if family.startswith("vicuna"):  # as its checkpoint says it: how to sample, but not to sample
        (folder / "generation_config.json").write_text('{"bos_token_id": 1, "temperature": 0.9, "top_p": 0.6}')
    run = tuned(movies, folder, family, history_size=10, max_prompt_tokens=230)  # prompts drop behaviours
    monkeypatch.setattr("sys.argv", ["run_recbole_rella.py"])
    command_line.main(["--export=out/llm", "--export_prompts=out/prompts.jsonl"])
    records, expected = read("out/prompts.jsonl"), pd.read_csv(run / "test_predictions.csv", dtype={"user_id": str, "item_id": str})
    for key in ("row_id", "user_id", "item_id", "label", "score"):
        assert [record[key] for record in records] == expected[key].tolist()
    llm, tokenizer = AutoModelForCausalLM.from_pretrained("out/llm").eval(), AutoTokenizer.from_pretrained("out/llm")
    assert llm.dtype == torch.float32 and not hasattr(llm, "peft_config")
    scores = []
    for record in records:
        ids, answers = record["prompt_token_ids"], [record["answers"][name]["token_id"] for name in ("yes", "no")]
        assert record["add_special_tokens"] is add_special_tokens and len(ids) <= 230
        assert tokenizer(record["prompt"], add_special_tokens=add_special_tokens)["input_ids"] == ids
        for name, token in zip(("yes", "no"), answers):
            answered = record["prompt"] + record["answers"][name]["text"]
            assert tokenizer(answered, add_special_tokens=add_special_tokens)["input_ids"] == [*ids, token]
        with torch.no_grad():
            scores.append(torch.softmax(llm(torch.tensor([ids])).logits[0, -1, answers], -1)[0].item())
    assert np.ptp(scores) > 1e-3 and max(record["prompt"].count(" stars") for record in records) < 10
    np.testing.assert_allclose(scores, expected["score"], atol=1e-5)
    # The hub reads the card, and finds the metrics of the run in it.
    card = ModelCard.load("out/llm/README.md")
    exact = json.loads((run / "metrics.json").read_text())["test_exact"]
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found["AUC"] == round(exact["auc"], 6) and found["UAUC"] == round(exact["uauc"], 6)
    assert records[0]["prompt"] in card.text and card.data.base_model is None and str(tmp_path) not in str(card.data)
    # The chat template is the one that was used.
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True)
    assert text[-11:] == records[0]["prompt"][-11:] and ("26 Jul 2024" in text) == (family == "llama-3")
    assert GenerationConfig.from_pretrained("out/llm").do_sample is (True if family.startswith("vicuna") else None)


def test_splits_and_errors(movies, llms, monkeypatch):
    run = tuned(movies, llms("qwen2.5"), "qwen2.5")
    export = Export(run)
    assert export.write_prompts("train.jsonl", "train") == 32
    records = read("train.jsonl")
    assert sorted(record["history"] for record in records) == ["recent"] * 16 + ["retrieved"] * 16
    assert all("score" not in record for record in records) and export.write_prompts("valid.jsonl", "valid") > 5
    with pytest.raises(ExportError, match="export_split: expected one of train, valid, test, found 'dev'"):
        export.write_prompts("x.jsonl", "dev")
    Path("full").mkdir()
    Path("full/precious").write_text("precious")
    with pytest.raises(OutputError, match="Expected the name of a file, found full, which is a folder"):
        export.write_prompts("full")
    command_line.main(["--export=both", "--export_prompts=both/prompts.jsonl", f"--run_folder={run}"])
    assert {"config.json", "prompts.jsonl"} <= {path.name for path in Path("both").iterdir()}
    monkeypatch.setattr("recbole_rella.serving.export.Export", lambda *_: pytest.fail("data was loaded"))
    with pytest.raises(ExportError, match="export: expected a new or an empty folder, found full, which is neither"):
        command_line.main(["--export=full"])
    table = pd.read_csv(run / "test_predictions.csv")
    table.iloc[1:].to_csv(run / "test_predictions.csv", index=False)
    with pytest.raises(ExportError, match="its data set has changed"):
        export.write_prompts("x.jsonl")
    (run / "test_predictions.csv").unlink()
    assert export.write_prompts("x.jsonl") == len(table) and "score" not in read("x.jsonl")[0]
    assert Path("full/precious").is_file()
    with pytest.raises(RunError, match="expected a finished run of ReLLa, found one of ReLLa without adapters"):
        (run / "adapter").rename(run / "moved")
        Export(run)


def test_a_run_without_test_rows_is_exported(movies):
    """Its card has a prompt of the training part, and no metrics."""
    name, tiny = movies
    args = {"split": {"RS": [0.8, 0.2, 0.0]}, "order": "TO", "group_by": None, "mode": "labeled"}
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "eval_args": args, "run_folder": "run"})
    export = Export("run")
    export.write_model("out")
    export.write_prompts("train.jsonl", "train")
    card = ModelCard.load("out/README.md")
    assert read("train.jsonl")[0]["prompt"] in card.text and "## Metrics" not in card.text and card.data.eval_results is None
