"""`retrieval_encoder: mix`, from a conventional model's run to the run that reads it, and to what is made of that run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY
from originals import ORIGINALS
from recbole.config import Config
from recbole.data import create_dataset
from test_crm import make_split, train_crm

from recbole_rella import load_data_and_model, run_recbole_rella
from recbole_rella.atomic.convert import convert
from recbole_rella.data.crm import CrmError, item_vectors
from recbole_rella.data.same_rows import same_rows
from recbole_rella.retrieval.cooccurrence import cooccurrence_vectors
from recbole_rella.rows.fields import ROW_ID
from recbole_rella.run_folder import VECTORS, RunChangedError
from recbole_rella.serving.scorer import Scorer


@pytest.fixture
def mixed(movies):
    """The data set, and settings that retrieve by text and by a conventional model that was trained on its training rows."""
    name, tiny = movies
    crm = train_crm("FM", name, tiny, "crm", make_split(name, tiny))
    return name, {**tiny, "retrieval_encoder": "mix", "crm": str(crm)}


def built(name, settings):
    dataset = create_dataset(Config("ReLLa", name, config_dict=settings))
    dataset.build()
    return dataset


def found_by(dataset):
    """The retrieved behaviours of all rows."""
    rows = np.arange(len(dataset.rows))
    return dataset.assembly.prompter.retriever.closest(rows, dataset.rows.item).tolist()


def test_its_ends_are_the_neighbours_of_texts_and_of_the_model(mixed, llms):
    name, settings = mixed
    settings = {**settings, "llm": llms("llama")}
    of_text = built(name, {**settings, "retrieval_encoder": "tfidf"})
    vectors, rows = of_text.assembly.item_space.vectors, of_text.rows
    for row, pair in enumerate(zip(found_by(built(name, {**settings, "retrieval_mix": 0})), found_by(of_text))):
        # Sentences of one form tie but for rounding: as close, if not the same.
        ours, plain = (vectors[rows.item[[b for b in found if b >= 0]]] @ vectors[rows.item[row]] for found in pair)
        np.testing.assert_allclose(ours, plain, atol=1e-6)
    learned = built(name, {**settings, "retrieval_mix": 1})
    vectors = item_vectors(settings["crm"], learned)
    np.testing.assert_array_equal(learned.assembly.item_space.arrays["collaborative"], vectors)  # all items have training rows
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
    rows, histories = learned.rows, learned.histories
    for row, found in enumerate(found_by(learned)):
        closeness = [(unit[rows.item[b]].astype(float) @ unit[rows.item[row]].astype(float), b) for b in histories.of(row)]
        expected = [b for _, b in sorted(closeness, reverse=True)[: len(found)]]
        assert [b for b in found if b >= 0] == expected
    assert found_by(learned) != found_by(of_text) != found_by(built(name, settings)) != found_by(learned)


def test_without_a_model_items_are_close_that_have_training_rows_of_the_same_users(movies, llms):
    name, tiny = movies
    dataset = built(name, {**tiny, "retrieval_encoder": "mix", "llm": llms("llama")})
    rows, pool, space = dataset.rows, dataset.pool, dataset.assembly.item_space
    expected = cooccurrence_vectors(rows.user[pool], rows.item[pool], (dataset.user_num, dataset.item_num))
    np.testing.assert_array_equal(space.arrays["collaborative"], expected)
    assert dataset.assembly.identities["encoder"].startswith("mix of tfidf and vectors ")


def test_an_item_without_training_rows_has_no_collaborative_vector(mixed, llms):
    """The model's is what it was at first: noise."""
    name, settings = mixed
    path = Path(settings["data_path"]) / name / f"{name}.inter"
    lines = [line for line in path.read_text().splitlines() if "\t103\t" not in line]
    path.write_text("\n".join([*lines, "3\t103\t5\t1900000000"]) + "\n")
    crm = train_crm("FM", name, settings, "again", make_split(name, settings, "again.npz"))
    dataset = built(name, {**settings, "crm": str(crm), "llm": llms("llama")})
    place = list(dataset.item_ids).index("103")
    collaborative = dataset.assembly.item_space.arrays["collaborative"]
    assert item_vectors(crm, dataset)[place].any() and not collaborative[place].any()
    assert collaborative[np.unique(dataset.rows.item[dataset.pool])].any(axis=1).all()


def test_a_run_stands_on_both_parts(mixed):
    name, settings = mixed
    run_recbole_rella("ReLLa", name, config_dict={**settings, "run_folder": "run"})
    encoder = json.loads(Path("run/identity.json").read_text())["encoder"]
    assert encoder.startswith("mix of tfidf and vectors ") and encoder.endswith(", 0.5, 512, cosine")
    load_data_and_model("run")
    requests = [
        {"history": [["101", 5, 1], ["105", 2, 3], ["111", 4, 4]], "candidates": ["104", {"movie_title": "Drama Story 99"}]},
    ]
    expected = Scorer.load("run").score_many(requests)
    Scorer.load("run").save_pretrained("scorer")
    # The model, trained again on the same rows to other vectors: the run has its own copy of what it read, wherever it is moved.
    train_crm("FM", name, settings, "again", seed=7)
    shutil.rmtree("crm")
    shutil.move("run", "moved")
    np.testing.assert_array_equal(Scorer.load("moved").score_many(requests)["score"], expected["score"])
    shutil.copy(Path("again") / VECTORS, Path("moved/crm") / VECTORS)
    with pytest.raises(RunChangedError, match=r"(?s)encoder: the encoder of items; expected mix of .*found mix of "):
        load_data_and_model("moved")
    # A saved scorer needs neither.
    shutil.rmtree("moved")
    shutil.rmtree(settings["data_path"])
    found = Scorer.from_pretrained("scorer", device="cpu").score_many(requests)
    np.testing.assert_array_equal(found["score"], expected["score"])


def test_a_model_of_other_rows_is_refused_before_any_pretraining(mixed, own_cache):
    name, settings = mixed
    with pytest.raises(CrmError, match="expected a model that was trained on the training rows of this run"):
        built(name, {**settings, "min_history": 3})
    (Path(settings["crm"]) / VECTORS).unlink()
    with pytest.raises(CrmError, match="expected the folder of a finished run of a conventional model with vectors of items"):
        built(name, settings)
    assert not list(Path("cache").rglob("*mini*"))
    # Where nothing is retrieved, nothing of it is read.
    built(name, {**settings, "train_history": "recent", "eval_history": "recent"})


@pytest.mark.parametrize("model", ["BPR", "LightGCN"])
def test_a_model_of_users_and_items_learns_from_liked_training_rows_alone(model, movies, llms):
    """What it has learned does not change with rows that were not liked, nor with those that are held out."""
    name, tiny = movies
    own = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}, "learning_rate": 0.05}
    crm = train_crm(model, name, tiny, "crm", make_split(name, tiny), **own)
    settings = {**tiny, "retrieval_encoder": "mix", "crm": str(crm), "llm": llms("llama")}
    dataset = built(name, settings)
    vectors = item_vectors(crm, dataset)
    assert vectors.shape == (dataset.item_num, 6) and vectors[1:].any(axis=1).all()
    assert dataset.assembly.identities["encoder"].startswith("mix of tfidf and vectors ")

    config = Config(model, name, config_dict={**tiny, **own, "split_file": "split.npz", "load_col": None, "metrics": ["AUC"],
                    "valid_metric": "AUC", "eval_args": {"mode": "labeled"}})  # fmt: skip
    with same_rows(config):
        theirs = create_dataset(config)
        train, valid, test = theirs.build()
    rows = train.inter_feat[ROW_ID].numpy()
    liked = dataset.pool[dataset.rows.label[dataset.pool] == 1]
    assert sorted(rows) == sorted(liked) and len(liked) < len(dataset.pool)
    edges = train.inter_matrix(form="coo")
    assert edges.nnz == len(liked)
    assert len(valid.inter_feat) + len(test.inter_feat) == (dataset.rows.split > 0).sum()


def test_on_a_shipped_data_set_the_rows_are_all_that_is_asked_for(tmp_path):
    """Columns, labels and metrics come from its YAML, as ReLLa has them."""
    name = "ml-latest-small"
    convert(name, ORIGINALS[name](tmp_path / "original"), tmp_path / "data", report=lambda _: None)
    data = {"data_path": str(tmp_path / "data"), "show_progress": False, "gpu_id": "", "use_gpu": False}
    own = {key: TINY[key] for key in ("mini_hidden_size", "mini_num_layers", "mini_num_heads", "mini_vocab_size")}
    ours = {**data, **own, "mini_epochs": 0, "epochs": 0, "train_shots": 20, "retrieval_encoder": "mix", "expected_counts": {}}
    split = make_split(name, {**data, "expected_counts": {}})
    for model in ("BPR", "FM"):
        run_recbole_rella(model, name, config_dict={**data, "split_file": split, "epochs": 1, "run_folder": model})
        dataset = built(name, {**ours, "crm": model})
        assert dataset.assembly.identities["encoder"].startswith("mix of tfidf and vectors ")
