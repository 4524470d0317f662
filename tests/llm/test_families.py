"""The LLMs of properties/llm in small, each with the configuration that is shipped for it, through all that a run does."""

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers import SHIPPED, write_llm
from peft import PeftModel
from recbole.utils import get_trainer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_rella import load_data_and_model, run_recbole_rella
from recbole_rella.config import chat_template, properties_folder
from recbole_rella.keys import KEYS
from recbole_rella.llm.backbone import Backbone
from recbole_rella.prompt.tokenization import PromptTokenizer
from recbole_rella.rows.fields import ROW_ID

FILES = sorted((properties_folder() / "llm").glob("*.yaml"))


def shipped_file(family):
    return properties_folder() / "llm" / f"{family.split()[0]}.yaml"


def test_every_shipped_file_is_tested_here():
    assert set(FILES) == {shipped_file(family) for family in SHIPPED} and len(FILES) >= 11
    for path in FILES:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert (
            {"llm", "llm_dtype", "lora_target_modules", "prompt_chat", "max_prompt_tokens"}
            <= set(values)
            <= {*KEYS, "learning_rate"}
        )
        assert "/" in values["llm"] and all(KEYS[key].rule(value) is None for key, value in values.items() if key in KEYS)


@pytest.mark.parametrize("family", SHIPPED)
def test_a_family_from_end_to_end(family, movies, llms):
    name, tiny = movies
    parts = {"split": {"RS": [0.9, 0.05, 0.05]}, "order": "TO", "group_by": None, "mode": "labeled"}
    settings = {**tiny, "llm": llms(family), "learning_rate": 0.02, "train_shots": 16, "eval_args": parts}
    run_recbole_rella("ReLLa", name, config_file_list=[str(shipped_file(family))], config_dict=settings)
    (run,) = Path("saved").glob("ReLLa-*")
    expected = pd.read_csv(run / "test_predictions.csv", dtype={"score": np.float32})

    # Load: the same scores.
    config, model, dataset, _, _, test_data = load_data_and_model(run)
    trainer = get_trainer(config["MODEL_TYPE"], "ReLLa")(config, model)
    trainer.evaluate(test_data, load_best_model=False)
    np.testing.assert_array_equal(trainer.predictions["score"], expected["score"])

    # Answer tokens: what follows the prompt of a row, and nothing else.
    prompter, tokenizer = dataset.assembly.prompter, dataset.assembly.prompter.tokenizer
    assert tokenizer.is_chat
    rows = test_data._dataset.inter_feat[ROW_ID].numpy()
    ids, dropped = prompter.token_ids(rows, dataset.rows.item[rows], np.full(len(rows), True))
    (shown,) = prompter.shown(rows[:1], dataset.rows.item[rows[:1]], np.array([True]))
    text = prompter.text(rows[0], dataset.rows.item[rows[0]], np.sort(shown)[dropped[0] :])
    for answer, token in zip(("Yes", "No"), dataset.assembly.answer_ids):
        answered = tokenizer.start + tokenizer._ids(tokenizer.framed(text) + tokenizer.joint(text) + answer)
        assert answered == [*ids[0], token] and tokenizer.tokenizer.decode([token]).strip() == answer

    # Train: all adapters, and those of the shipped modules alone.
    targets = config["lora_target_modules"]
    adapters = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(any(f".{t}.lora_" in key for t in targets) and "vision" not in key for key in adapters)
    assert len(adapters) == 2 * len(targets) * dataset.assembly.backbone.config.get_text_config().num_hidden_layers
    assert all(tensor.abs().max() > 0 for tensor in adapters.values())  # lora_B begins as zeros

    # Law 3: a row's score is that of the plain LLM with the saved adapters on that row alone.
    implementation = {"attn_implementation": config["llm_attn_implementation"]} if config["llm_attn_implementation"] else {}
    base = AutoModelForCausalLM.from_pretrained(llms(family), dtype=torch.float32, **implementation)
    plain = PeftModel.from_pretrained(base, run / "adapter").eval()
    with torch.no_grad():
        logits = torch.stack([plain(input_ids=torch.tensor([i])).logits[0, -1, list(dataset.assembly.answer_ids)] for i in ids])
    assert np.ptp(expected["score"]) > 1e-3
    np.testing.assert_allclose(torch.softmax(logits, -1)[:, 0], expected["score"], atol=1e-5)


def test_vicunas_chat_format(tmp_path):
    """As FastChat's vicuna_v1.1 writes it, in one line and with its start token once, also over several turns."""
    tokenizer = AutoTokenizer.from_pretrained(write_llm(tmp_path, "vicuna-7b-v1.5"))
    assert not tokenizer.chat_template
    chat = PromptTokenizer(tokenizer, "vicuna", "Be short.", ("Yes", "No"), chat_template("vicuna"))
    assert chat.framed("Hello") == "Be short. USER: Hello ASSISTANT:" and chat.joint("Hello") == " "
    assert chat.ids("Hello") == tokenizer("Be short. USER: Hello ASSISTANT:")["input_ids"] and chat.start == [
        tokenizer.bos_token_id
    ]
    turns = [("user", "Hi"), ("assistant", "Yes"), ("user", "And now?")]
    text = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns], tokenize=False, add_generation_prompt=True
    )
    system = yaml.safe_load(shipped_file("vicuna-7b-v1.5").read_text(encoding="utf-8"))["prompt_system"]
    assert text == f"{system} USER: Hi ASSISTANT: Yes</s>USER: And now? ASSISTANT:"


@pytest.mark.parametrize(("family", "date"), [("llama-3", "26 Jul 2024"), ("smollm3", "26 July 2024")])
def test_the_date_in_a_chat_template_stands_still(family, date, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(write_llm(tmp_path, family))
    messages = [{"role": "user", "content": "Hello"}]
    assert f"Today Date: {datetime.now():%d}" in tokenizer.apply_chat_template(messages, tokenize=False)
    for _ in range(2):
        chat = PromptTokenizer(tokenizer, "always", "Be short.", ("Yes", "No"))
        assert f"Today Date: {date}" in chat.framed("Hello")
    assert f"Today Date: {date}" in tokenizer.apply_chat_template(messages, tokenize=False)


def test_positions_of_an_llm_that_sees_pictures(llms):
    assert Backbone(llms("gemma-3 with pictures"), "cpu").max_positions == 512
    settings = json.loads((Path(llms("gemma-3 with pictures")) / "config.json").read_text())
    assert "max_position_embeddings" not in settings
