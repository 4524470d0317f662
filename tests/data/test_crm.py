"""The vectors of a conventional model: those of its best checkpoint, in the ids of another data set, and never of held-out rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.model.general_recommender import BPR, LightGCN
from sklearn.preprocessing import StandardScaler

from recbole_rella import run_recbole_rella
from recbole_rella.data.crm import CrmError, item_vectors, read_crm, standardized, vectors_of
from recbole_rella.data.row_dataset import RowDataset
from recbole_rella.rows.split import Split
from recbole_rella.run_folder import VECTORS


def make_split(name, tiny, path="split.npz", **more):
    """The rows of a data set as a file."""
    config = Config(model="ReLLa", dataset=name, config_dict={**tiny, **more})
    Split.of(RowDataset(config)).save(path)
    return path


def train_crm(model, name, tiny, folder, split="split.npz", **more):
    """A finished run of a conventional model on the rows of a split."""
    shared = {key: tiny[key] for key in ("data_path", "threshold", "show_progress", "gpu_id", "use_gpu")}
    own = {"split_file": str(split), "run_folder": str(folder), "epochs": 1, "embedding_size": 6}
    own |= {"train_neg_sample_args": None, "load_col": None}
    own |= {"metrics": ["AUC"], "valid_metric": "AUC", "eval_args": {"mode": "labeled"}, "learning_rate": 0.01}
    run_recbole_rella(model, name, config_dict={**shared, **own, **more})
    return Path(folder)


def rella_dataset(name, tiny, llm, **more):
    """The data set of ReLLa, split."""
    config = Config(model="ReLLa", dataset=name, config_dict={**tiny, "llm": llm, **more})
    dataset = create_dataset(config)
    dataset.build()
    return dataset


@pytest.mark.parametrize("model", ["FM", "DIN"])
def test_vectors_are_those_of_the_best_checkpoint(model, movies, llms):
    name, tiny = movies
    make_split(name, tiny)
    folder = train_crm(model, name, tiny, "crm")
    dataset = rella_dataset(name, tiny, llms("llama"))
    crm = read_crm(folder, dataset)
    assert crm.model == model and crm.items.shape == (dataset.item_num, 6)
    assert crm.users is None if model == "DIN" else crm.users.shape == (dataset.user_num, 6)  # DIN reads no user
    assert not crm.items[0].any() and (np.abs(crm.items[1:]).sum(axis=1) > 0).all()
    np.testing.assert_array_equal(item_vectors(folder, dataset), crm.items)
    # The checkpoint's own table, where RecBole gives items internal ids of its own.
    state = torch.load(folder / "model.pth", weights_only=False)["state_dict"]
    own = create_dataset(Config(model=model, dataset=name, config_dict={**tiny, "train_neg_sample_args": None, "load_col": None}))
    key = (
        "token_embedding_table.embedding.weight" if model == "FM" else "embedding_layer.token_embedding_table.item.embedding.weight"
    )
    begin = own.num("user_id") if model == "FM" else 0
    for item in range(1, dataset.item_num):
        place = own.token2id("item_id", dataset.item_ids[item])
        np.testing.assert_array_equal(crm.items[item], state[key][begin + place].numpy())


def test_vectors_of_other_rows_or_another_split_are_refused(movies, llms):
    name, tiny = movies
    make_split(name, tiny)
    folder = train_crm("FM", name, tiny, "crm")
    other = rella_dataset(name, tiny, llms("llama"), eval_args={"split": {"RS": [0.6, 0.2, 0.2]}, "order": "TO", "mode": "labeled"})
    with pytest.raises(CrmError, match="may have learned from rows that are held out here"):
        read_crm(folder, other)
    (folder / VECTORS).write_bytes(b"damaged")
    with pytest.raises(CrmError, match="found one of FM"):
        read_crm(folder, other)


def test_what_few_training_rows_know_of_outweighs_nothing():
    vectors = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    vectors[:, 1] = 0.0
    vectors[7, 1], vectors[250, 1] = 1e-3, 40.0  # a hidden unit that one training row reaches, and a held-out one more
    found = standardized(vectors, np.arange(200))
    assert np.abs(found).max() == found[250, 1] == 5.0
    for column in (0, 2):
        expected = StandardScaler().fit(vectors[:200]).transform(vectors)[:, column]
        np.testing.assert_allclose(found[:, column], expected, atol=1e-5)


def test_a_table_that_nothing_trained_is_none(movies):
    """LR has RecBole's embedding table like any context-aware model, and does not use it."""
    name, tiny = movies
    make_split(name, tiny)
    assert not (train_crm("LR", name, tiny, "crm") / VECTORS).exists()


def test_models_of_graphs_give_what_the_graph_makes_of_their_tables(movies):
    name, tiny = movies
    found = {}
    for model in (BPR, LightGCN):
        config = Config(model=model.__name__, dataset=name, config_dict={**tiny, "embedding_size": 6, "load_col": None})
        dataset = create_dataset(config)
        made = model(config, dataset)
        found[model] = vectors_of(made, dataset), made
    vectors, bpr = found[BPR]
    np.testing.assert_array_equal(vectors["item"], bpr.item_embedding.weight.detach().numpy())
    vectors, light = found[LightGCN]
    users, items = (part.detach().numpy() for part in light.forward())
    np.testing.assert_array_equal(vectors["item"], items)
    np.testing.assert_array_equal(vectors["user"], users)
    assert not np.array_equal(items, light.item_embedding.weight.detach().numpy())
