"""The embedded LLM: an ordinary checkpoint that answers after pretraining, cached by what it was made of."""

import numpy as np
import pytest
import torch
from helpers import rewrite, write_atomic_files
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from recbole_rella import run_recbole_rella
from recbole_rella.llm import mini
from recbole_rella.llm.soft_tokens import SoftTokenError
from recbole_rella.prompt.template import TemplateError
from recbole_rella.rows.history import TEST


def build(name, settings, **more):
    dataset = create_dataset(config := Config(model="ReLLa", dataset=name, config_dict={**settings, **more}))
    data_preparation(config, dataset)
    return dataset


def scores(dataset, split=TEST):
    rows = np.flatnonzero(dataset.rows.split == split)
    ids, _ = dataset.assembly.prompter.token_ids(rows, dataset.rows.item[rows], np.ones(len(rows), bool))
    with torch.no_grad():
        logits = [dataset.assembly.backbone.model(torch.tensor([i])).logits[0, -1] for i in ids]
    yes, no = dataset.assembly.answer_ids
    return rows, np.array([(x[yes] - x[no]).item() for x in logits]), logits


def films(folder, seed, title="Film {}"):
    """A data set in which every second film is liked by nine of ten."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(30):
        for place, item in enumerate(random.permutation(40)[:20]):
            liked = (random.random() < 0.9) == (item % 2 == 0)
            rows.append({"user_id": str(user), "item_id": str(item), "rating": 5 if liked else 1, "timestamp": place * 100 + user})
    items = [{"item_id": str(i), "movie_title": title.format(i), "release_year": "1990", "class": "Drama"} for i in range(40)]
    users = [{"user_id": str(u), "age": str(20 + u)} for u in range(30)]
    return write_atomic_files(folder / "data", "films", rows, users, items)


@pytest.mark.parametrize("seed", [2020, pytest.param(1, marks=pytest.mark.slow)])
def test_it_answers_the_prompts_question_straight_from_pretraining(seed, tmp_path):
    """The plain checkpoint ranks held-out rows by what films are called, and says nothing but an answer."""
    name, tiny = films(tmp_path, seed)
    dataset = build(name, tiny, seed=seed, mini_hidden_size=32, mini_epochs=60, mini_history_size=8)
    held_out, margin, logits = scores(dataset)
    assert len(held_out) > 40 and roc_auc_score(dataset.rows.label[held_out], margin) > 0.8
    yes, no = dataset.assembly.answer_ids
    assert np.mean([torch.softmax(x, -1)[[yes, no]].sum().item() for x in logits]) > 0.9


@pytest.mark.slow
def test_it_learns_from_numbers_what_no_word_says(tmp_path):
    """All films have one name; the mean of a film's ratings tells them apart. The projector comes with the LLM."""
    name, tiny = films(tmp_path, 1, title="Film")
    more = {"mini_hidden_size": 32, "mini_epochs": 20, "mini_learning_rate": 0.01, "mini_history_size": 8, "epochs": 0}
    blind = run_recbole_rella("ReLLa", name, config_dict={**tiny, **more})["test_result"]
    soft = {"spa": True, "spa_tokens": ["history"], "history_fields": ["item_mean"]}
    told = run_recbole_rella("ReLLa", name, config_dict={**tiny, **more, **soft})["test_result"]
    assert blind["auc"] < 0.65 and told["auc"] > 0.8


@pytest.mark.parametrize("encoder", [{"retrieval_encoder": "llm"}, {"retrieval_encoder": "mix", "retrieval_mix_encoder": "llm"}])
@pytest.mark.parametrize("fields", [["similar_mean"], ["user_mean"]])
def test_where_it_learns_from_numbers_it_encodes_no_items(encoder, fields, movies):
    """Numbers would be made of its own vectors; and SIM, Tree and FM+history, without prompts, would search by another LLM."""
    name, tiny = movies
    soft = {"spa": True, "spa_tokens": ["history"], "history_fields": fields}
    with pytest.raises(SoftTokenError, match="retrieval_encoder: expected tfidf, mix or .* found llm"):
        build(name, {**tiny, **soft, **encoder})


def test_where_nothing_is_retrieved_the_encoder_does_not_matter(movies):
    name, tiny = movies
    soft = {"spa": True, "spa_tokens": ["history"], "history_fields": ["user_mean"], "retrieval_encoder": "llm"}
    assert build(name, {**tiny, **soft, "train_history": "recent", "eval_history": "recent"}).assembly.item_space is None


def test_it_is_an_ordinary_checkpoint_folder(movies):
    name, tiny = movies
    dataset = build(name, tiny)
    model = AutoModelForCausalLM.from_pretrained(dataset.assembly.backbone.path)
    tokenizer = AutoTokenizer.from_pretrained(dataset.assembly.backbone.path)
    assert type(model) is LlamaForCausalLM and model.config.vocab_size == len(tokenizer)
    text = "Comedy Story 0 (1990): Yes, 5 stars\n日本 é"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_frequent_phrases_become_one_token(movies):
    name, tiny = movies
    tokenizer = build(name, tiny).assembly.backbone.tokenizer
    tokens = tokenizer.tokenize("Comedy Story 0 (1990): Yes, 5 stars\n")
    assert [t.replace("Ġ", " ") for t in tokens] == ["Comedy Story 0", " (1990)", ":", " Yes", ",", " 5 stars", "Ċ"]


@pytest.mark.slow
def test_the_cache_is_used_and_depends_on_what_it_should(movies, own_cache, monkeypatch):
    name, tiny = movies
    first = build(name, tiny).assembly.backbone.path
    trained = []
    train = mini._train
    monkeypatch.setattr(mini, "_train", lambda *args: trained.append(1) or train(*args))
    # Settings that do not reach the pretraining.
    retrieval = ({"retrieval_sentence": "{{ item['class'] }}"}, {"retrieval_pca_dim": 2}, {"retrieval_metric": "l2"})
    unread = ({"prompt_system": "Judge."}, {"history_size": 2}, {"train_shots": 10}, {"lora_r": 2}, {"eval_history": "recent"})
    for more in ({}, *retrieval, *unread):
        assert build(name, tiny, **more).assembly.backbone.path == first
    assert not trained
    different = [
        {"seed": 5},
        {"mini_epochs": 2},
        {"mini_history_size": 3},
        {"prompt_question": "Well?"},
        {"threshold": {"rating": 3}},
        {"eval_args": {"split": {"RS": [7, 1, 2]}, "order": "TO", "group_by": None, "mode": "labeled"}},
        {"min_history": 9},
        {"prompt_item": "{{ item.movie_title }}"},
    ]
    paths = {build(name, tiny, **more).assembly.backbone.path for more in different}
    assert len(trained) == len(paths) == len(different) and first not in paths
    # A field that no part of the template names, and the layout may all the same.
    rewrite(tiny, name, "item", lambda text: text.replace("\t1990\t", "\t1890\t"))
    assert build(name, tiny, prompt_item="{{ item.movie_title }}").assembly.backbone.path not in {first, *paths}


@pytest.mark.parametrize("victim", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_checkpoint_is_made_again(victim, movies, own_cache, caplog):
    name, tiny = movies
    dataset = build(name, tiny)
    _, before, _ = scores(dataset)
    path = dataset.assembly.backbone.path
    with open(f"{path}/{victim}", "r+b") as file:
        file.truncate(20)
    dataset = build(name, tiny)
    assert dataset.assembly.backbone.path == path and "is damaged" in caplog.text
    np.testing.assert_array_equal(scores(dataset)[1], before)


def test_the_run_says_that_it_has_read_the_training_split(movies, caplog):
    name, tiny = movies
    build(name, tiny, train_shots=10)
    assert "mini has read the ratings of the training split" in caplog.text


@pytest.mark.parametrize(
    "layout",
    [
        "{{ profile }} {% for b in behaviours %}{{ b.text }} ({{ b.rating }}), {% endfor %}so {{ target.text }}? Answer:",
        pytest.param(
            "{% for b in behaviours %}{{ b.text }} - {{ b.answer }} - {{ b.rating }}\n{% endfor %}{{ target.text }} -",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "{% for b in behaviours %}<{{ b.answer }}>{{ b.text }}; {% endfor %}{{ question }} {{ target.text }}\nSay:",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_other_wordings(layout, movies, tmp_path):
    """Ratings alone, dashes, answers first: the marked spans are what is learned, wherever they stand."""
    name, tiny = movies
    (tmp_path / "own.jinja").write_text(layout)
    dataset = build(
        name, tiny, prompt_template=str(tmp_path / "own.jinja"), mini_epochs=60, mini_learning_rate=0.01, mini_history_size=12
    )
    _, margin, logits = scores(dataset)
    yes, no = dataset.assembly.answer_ids
    assert np.mean([torch.softmax(x, -1)[[yes, no]].sum().item() for x in logits]) > 0.6
    assert np.std(margin) > 0


LIKED_FIRST = """{% for b in behaviours if b.answer == yes %}{{ b.text }} ({{ b.answer }}), {% endfor %}
and not {% for b in behaviours if b.answer == no %}{{ b.text }} ({{ b.answer }}), {% endfor %}
{{ target.text }}:"""


def test_a_template_that_compares_answers_is_learned_as_it_prompts(movies, tmp_path, monkeypatch):
    """Each shown behaviour is in its document, once."""
    name, tiny = movies
    (tmp_path / "own.jinja").write_text(LIKED_FIRST)
    read = []
    make = mini.mini_llm
    monkeypatch.setattr(
        "recbole_rella.data.embedded_llm.mini_llm",
        lambda texts, documents, *more: read.extend(documents(0)) or make(texts, documents, *more),
    )
    dataset = build(name, tiny, prompt_template=str(tmp_path / "own.jinja"), mini_epochs=0)
    assert any(") (Yes), " in document.text for document in read) and any(") (No), " in document.text for document in read)
    rows, prompter = dataset.rows, dataset.assembly.prompter
    for document in read:
        shown = np.sort(list(document.first.values())[:-1]).astype(int)
        row = list(document.first.values())[-1]
        assert document.text == prompter.text(row, rows.item[row], shown) + (" Yes" if rows.label[row] else " No")
        assert len(document.spans) == len(shown) + 1 == document.text.count("(Yes)") + document.text.count("(No)") + 1


def test_a_template_that_says_something_else_in_documents_is_refused_before_pretraining(movies, tmp_path, monkeypatch):
    name, tiny = movies
    (tmp_path / "own.jinja").write_text(
        "{% for b in behaviours %}{{ '%-9s' % b.answer }}{{ b.text }}\n{% endfor %}{{ target.text }}:"
    )
    monkeypatch.setattr(mini, "_make", None)
    with pytest.raises(
        TemplateError, match="prompt_template: expected a text that says the same where behaviour.answer, .rating are"
    ):
        build(name, tiny, prompt_template=str(tmp_path / "own.jinja"))


@pytest.mark.parametrize("steps", [1, 9, 10, 11, 20])
def test_pretraining_takes_any_number_of_steps(steps, movies):
    """Ten steps leave a tenth of them, in which the learning rate rises, no length."""
    name, tiny = movies
    dataset = build(name, tiny, mini_history_size=1000, mini_epochs=steps)  # one document an epoch, and one step
    assert all(weights.isfinite().all() for weights in dataset.assembly.backbone.model.parameters())


def test_pretraining_leaves_the_random_state_alone(movies, own_cache):
    name, tiny = movies
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        build(name, tiny)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
