"""Bad input: a clear error before heavy work. `forbid` proves that nothing heavy had begun."""

import re
from pathlib import Path

import pytest
from helpers import write_atomic_files
from recbole.config import Config
from recbole.data import create_dataset, data_preparation

from recbole_rella.data import embedded_llm, materials
from recbole_rella.keys import ConfigError
from recbole_rella.llm.backbone import Backbone, LLMError, add_lora
from recbole_rella.prompt.template import TemplateError
from recbole_rella.prompt.tokenization import AnswerTokenError


@pytest.fixture
def forbid(monkeypatch):
    """Fails the test if an LLM is pretrained or loaded, or items are encoded."""

    def heavy(*_, **__):
        pytest.fail("heavy work began before the input was checked")

    monkeypatch.setattr(embedded_llm, "mini_llm", heavy)
    monkeypatch.setattr(embedded_llm, "item_space", heavy)
    monkeypatch.setattr(materials, "item_space", heavy)
    monkeypatch.setattr(Backbone, "model", property(heavy))


def build(name, settings, **more):
    config = Config(model="ReLLa", dataset=name, config_dict={**settings, **more})
    return data_preparation(config, create_dataset(config))


def without(settings, *keys):
    return {key: value for key, value in settings.items() if key not in keys}


def rewrite(settings, name, suffix, change):
    path = Path(settings["data_path"]) / name / f"{name}.{suffix}"
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"history_sze": 3}, "history_sze: there is no such key; the nearest valid one is history_size"),
        ({"train_shot": 3}, "train_shot: there is no such key; the nearest valid one is train_shots"),
        ({"history_size": -1}, "history_size: expected an integer of at least 0, found -1"),
        ({"history_size": 2.5}, "history_size: expected an integer of at least 0, found 2.5"),
        ({"history_size": 0, "history_fields": ["mean_embedding"]}, "history_size: expected an integer of at least 1 with mean_"),
        (
            {"retrieval_encoder": "tfid"},
            "expected llm, tfidf, mix, or the name or folder of a sentence-transformers model; did you mean tfidf?",
        ),
        ({"retrieval_encoder": "./nothing/here"}, "(this folder does not exist), found './nothing/here'"),
        ({"llm": "."}, "a folder that holds a Hugging Face LLM (there is no config.json in it)"),
        ({"llm": "/no/such/llm"}, "(this folder does not exist), found '/no/such/llm'"),
        ({"prompt_template": "nothing.jinja"}, "the path of a Jinja2 file (no such file)"),
        (
            {"prompt_chat": "vicuña"},
            "prompt_chat: expected auto, always, never, vicuna, or the path of a Jinja2 file (no such file), found",
        ),
        ({"prompt_item": "{{ item.movie_title "}, "prompt_item: expected Jinja2 text (unexpected end of template"),
        ({"prompt_answers": ["Yes", "Yes"]}, "prompt_answers: expected two different texts"),
        ({"resume_from": "saved/nothing"}, "resume_from: expected the folder of an earlier run"),
        ({"save_dataloaders": True}, "save_dataloaders: expected False, found True; a later run would get it with the settings of"),
        ({"save_dataset": True}, "save_dataset: expected False, found True"),
        ({"dataset_save_path": "saved/old.pth"}, "dataset_save_path: expected none, found 'saved/old.pth'"),
        ({"dataloaders_save_path": "saved/old.pth"}, "dataloaders_save_path: expected none, found 'saved/old.pth'"),
        ({"enable_amp": True}, "enable_amp: expected False with ReLLa, found True; set llm_dtype instead"),
        ({"enable_scaler": True}, "enable_scaler: expected False with ReLLa, found True; set llm_dtype to bfloat16"),
        ({"local_rank": 0}, "local_rank: expected none with ReLLa, found 0; start several processes by torchrun"),
        ({"transform": "mask_itemseq"}, "transform: expected user_defined with ReLLa"),
        ({"learner": "foo"}, "learner: expected one of adam, adamw, sgd, adagrad, rmsprop, sparse_adam, found 'foo'"),
        ({"epochs": "three"}, "epochs: expected an integer of at least 0, found 'three'"),
        ({"seed": "x"}, "seed: expected an integer of at least 0, found 'x'"),
        ({"train_batch_size": 0}, "train_batch_size: expected an integer of at least 1, found 0"),
        ({"learning_rate": "1/2"}, "learning_rate: expected a number of at least 0, found '1/2'"),
        ({"seeds": [1, 2]}, "seeds: expected on the command line alone (--seeds=...), found in the configuration"),
        ({"sweep": "lora_r:1,2"}, "sweep: expected on the command line alone"),
        ({"llm_revision": "main"}, "llm_revision: expected none with llm 'mini', which is not from the hub, found 'main'"),
        ({"retrieval_encoder_revision": "main"}, "retrieval_encoder_revision: expected none with retrieval_encoder 'tfidf'"),
        ({"allow_changed": "rows,lm"}, "allow_changed: expected a list of words among rows, llm, encoder, prompts, crm, version"),
        ({"Rella.lora_r": 4}, "Rella.lora_r: expected the name of the model of this run (ReLLa) before the dot, found Rella"),
        ({"DINN.epochs": 4}, "DINN.epochs: expected the name of the model of this run (ReLLa) before the dot, found DINN"),
        ({"ReLLa.lora_s": 4}, "ReLLa.lora_s: there is no such key; the nearest valid one is lora_r"),
        ({"DIN.epocs": 4}, "DIN.epocs: there is no such key; the nearest valid one is epochs"),
        ({"mini_num_heads": 3}, "mini_hidden_size: expected a multiple of 2 x mini_num_heads (6), found 16"),
        ({"lora": {"use_dorra": True}}, "own); did you mean use_dora?, found"),
        ({"lora": {"r": 4}}, "(r, alpha, dropout and target modules have keys of their own), found"),
        (
            {"lora": {"modules_to_save": ["lm_head"]}},
            "lora: expected a dictionary of arguments of PEFT's LoraConfig, among",
        ),
        ({"lora": {"init_lora_weights": "pissa"}}, "init_lora_weights as one of True, False, gaussian, orthogonal, which leave"),
        ({"lora_target_modules": ["all-linear", "q_proj"]}, "expected a list of module names, or all-linear alone, found"),
        ({"lora_dropout": 1.5}, "lora_dropout: expected a number of at least 0 and at most 0.99, found 1.5"),
    ],
)
def test_configuration(wrong, message, movies):
    name, tiny = movies
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config(model="ReLLa", dataset=name, config_dict={**tiny, **wrong})


def test_unknown_keys_of_others_are_warned_of_and_kept(movies, caplog):
    name, tiny = movies
    config = Config(model="ReLLa", dataset=name, config_dict={**tiny, "another_plugin": 1, "mlp_hidden_size": [8]})
    assert config["another_plugin"] == 1
    assert "nothing will read them: ['another_plugin']" in caplog.text and "mlp_hidden_size" not in caplog.text


def test_unknown_encoder_of_the_hub(movies, forbid):
    name, tiny = movies
    with pytest.raises(ValueError, match="found 'no-such-org/no-such-encoder', which could not be loaded"):
        build(name, tiny, retrieval_encoder="no-such-org/no-such-encoder")


def test_unknown_llm_of_the_hub(movies, forbid):
    name, tiny = movies
    with pytest.raises(LLMError, match="expected a Hugging Face causal LM, found 'no-such-org/no-such-llm'"):
        build(name, tiny, llm="no-such-org/no-such-llm")


def test_folder_that_is_no_llm(movies, tmp_path, forbid):
    name, tiny = movies
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(LLMError, match="expected a Hugging Face causal LM, found .*odd'"):
        build(name, tiny, llm=str(tmp_path / "odd"))


def test_quantization_without_a_gpu(movies, llms, forbid):
    name, tiny = movies
    with pytest.raises(LLMError, match="llm_quantization: expected none without a CUDA device, found '4bit'"):
        build(name, tiny, llm=llms("llama"), llm_quantization="4bit")


def test_missing_lora_modules_list_those_that_exist(llms):
    backbone = Backbone(llms("gpt_neox"), "cpu")
    with pytest.raises(LLMError, match=r"found \['q_proj', 'v_proj'\], .*'query_key_value'"):
        add_lora(backbone.model, 8, 16, 0.0, ["q_proj", "v_proj"])


def test_missing_item_file(movies, forbid):
    name, tiny = movies
    (Path(tiny["data_path"]) / name / f"{name}.item").unlink()
    message = r"needs the field 'movie_title' of the item; found \['item_id'\]. Is there a .item file"
    with pytest.raises(TemplateError, match=message):
        build(name, tiny)


def test_items_without_title(movies, forbid):
    """No item has a title: the field is missing, or empty in every row."""
    name, tiny = movies
    rewrite(tiny, name, "item", lambda text: text.replace("movie_title:token_seq", "another_field:token_seq"))
    with pytest.raises(TemplateError, match="needs the field 'movie_title' of the item; found .*another_field"):
        build(name, tiny)
    rewrite(tiny, name, "item", lambda text: re.sub(r"\t\w+ Story \d+\t", "\t\t", text.replace("another_field", "movie_title")))
    with pytest.raises(TemplateError, match="renders to nothing for every item"):
        build(name, tiny, prompt_item="{{ item.movie_title }}")


def test_rating_absent_while_the_template_needs_it(movies, tmp_path, forbid):
    name, tiny = movies
    rewrite(tiny, name, "inter", lambda text: text.replace("rating:float", "label:float"))
    rewrite(tiny, name, "inter", lambda text: re.sub(r"\t([1-5])\t", lambda m: f"\t{int(int(m[1]) > 3)}\t", text))
    template = tmp_path / "stars.jinja"
    template.write_text("{% for b in behaviours %}{{ b.text }} ({{ b.rating }}) {% endfor %}{{ target.text }}?")
    with pytest.raises(TemplateError, match="a prompt text asks for what is not there: .*has no attribute 'rating'"):
        build(name, without(tiny, "threshold"), prompt_template=str(template))


def test_no_time_field(movies, forbid):
    name, tiny = movies
    with pytest.raises(
        ValueError,
        match=r"TIME_FIELD: expected a float field 'timestamp' in the .inter file, found user_id:token, .* rating:float\.",
    ):
        build(name, tiny, load_col={"inter": ["user_id", "item_id", "rating"]})


def test_missing_times_and_ratings(movies, forbid):
    name, tiny = movies
    rewrite(tiny, name, "inter", lambda text: re.sub(r"\t\d+\n", "\t\n", text, count=3))
    with pytest.raises(ValueError, match="timestamp: expected a time in every row, found 3 rows without one"):
        build(name, tiny)
    rewrite(tiny, name, "inter", lambda text: re.sub(r"\t(\d)\t\n", r"\t\t17\n", text))
    with pytest.raises(ValueError, match="rating: expected a rating in every row, found 3 rows without one"):
        build(name, tiny)


def test_no_label(movies, forbid):
    name, tiny = movies
    with pytest.raises(
        ValueError,
        match="LABEL_FIELD: expected a label in every row, found user_id:token, .* timestamp:float; set threshold",
    ):
        build(name, without(tiny, "threshold"))


def test_labels_that_are_not_binary(movies, forbid):
    name, tiny = movies
    with pytest.raises(ValueError, match="rating: expected labels 0 and 1, found"):
        build(name, without(tiny, "threshold"), LABEL_FIELD="rating")


@pytest.mark.parametrize("answers", [["Yes indeed", "Yes never"], ["Absolutely", "No"]])
def test_answer_words_that_are_not_one_distinct_token(answers, movies, llms, forbid):
    name, tiny = movies
    with pytest.raises(AnswerTokenError, match="expected two words that are one distinct token each") as error:
        build(name, tiny, llm=llms("qwen2"), prompt_answers=answers)
    assert all(repr(answer) in str(error.value) for answer in answers)  # both tokenizations are shown


def test_empty_training_split(movies, forbid):
    name, tiny = movies
    with pytest.raises(ValueError, match="expected training rows, found none after the split"):
        build(name, tiny, eval_args={"split": {"RS": [0, 1, 1]}, "order": "TO", "group_by": None, "mode": "labeled"}, train_shots=5)


def test_all_labels_equal(movies, forbid):
    name, tiny = movies
    with pytest.raises(ValueError, match=r"expected training rows of both labels, found \d+ positive and 0 negative"):
        build(name, tiny, threshold={"rating": 0})


def test_data_set_of_one_row(tmp_path, forbid):
    row = {"user_id": "1", "item_id": "2", "rating": 4, "timestamp": 5}
    name, tiny = write_atomic_files(tmp_path / "one", "one", [row])
    with pytest.raises(ValueError, match=r"min_history: expected rows with at least 2 earlier behaviours, found none among 1 rows"):
        build(name, tiny)


def test_a_row_that_cannot_fit_is_named(movies, llms, forbid):
    name, tiny = movies
    with pytest.raises(
        ValueError, match=r"the prompt of user \d+ about item 1\d\d \(row \d+\) has \d+ tokens without any behaviour; 40 are"
    ):
        build(name, tiny, llm=llms("llama"), max_prompt_tokens=40)


def test_the_llms_positions_bound_the_prompts(movies, llms):
    name, tiny = movies
    (train_data, *_) = build(name, tiny, llm=llms("llama"), max_prompt_tokens=10_000)
    assert train_data._dataset.assembly.prompter.max_tokens == 512
