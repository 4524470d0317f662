"""History features as columns of rows: what RecBole's models embed are the numbers of rows/features.py, undamaged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import rewrite
from recbole.data import create_dataset

from recbole_rella import run_recbole_rella
from recbole_rella.data.history import HistoryError, history_features
from recbole_rella.data.history_columns import Buckets
from recbole_rella.data.same_rows import NumbersDataset, same_rows
from recbole_rella.experiments.plan import Entry, Run, make_entries, settings_of
from recbole_rella.experiments.side_by_side import make_experiment
from recbole_rella.key_rules import DEFAULT_HISTORY, HISTORY_NUMBERS, history_names
from recbole_rella.keys import KEYS, ConfigError
from recbole_rella.model.context_aware_recommender.tree import Tree
from recbole_rella.quick_start import load_data, make_config
from recbole_rella.rows.features import HistoryFeatures
from recbole_rella.rows.fields import HISTORY_ANSWERS, HISTORY_ITEMS, ROW_ID, history_column

TIME_SPLIT = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": None, "mode": "labeled"}


def build(movies, model="FM", **more):
    """The model of a configuration, its data set, and the three parts."""
    name, tiny = movies
    settings = {"eval_args": TIME_SPLIT, "category_field": "class", "load_col": None, "embedding_size": 4, **more}
    config = make_config(model, name, config_dict={**tiny, **settings})
    dataset, loaders = load_data(config)
    parts = [loader._dataset for loader in loaders]
    return config.model_class(config, parts[0]), dataset, parts


def numbers(dataset, names, part):
    return history_features(dataset, names).of_rows(part.inter_feat[ROW_ID].numpy())


@pytest.mark.parametrize("model", ["FM", "DeepFM", "DCNV2", "AutoInt"])
def test_models_embed_buckets_of_the_numbers(movies, model):
    fm, dataset, parts = build(movies, model, history_fields="default", history_buckets=5)
    names = history_names([DEFAULT_HISTORY], "class")
    assert "user_mean_10" in names and "same_class_residual" in names and "similar_mean" in names
    names = tuple(name for name in names if not name.startswith("similar_"))  # these need a retriever, and have a test of their own
    fitted = [Buckets.fitted(column, 5) for column in numbers(dataset, names, parts[0]).T]
    for part in parts:
        table = numbers(dataset, names, part)
        for name, buckets, column in zip(names, fitted, table.T):
            tokens = part.inter_feat[history_column(name)].numpy()
            assert (tokens == buckets.tokens(column)).all() and tokens.max() < dataset.num(history_column(name)) <= 7
            assert ((tokens == 0) == np.isnan(column)).all()
    wanted = {history_column(name) for name in names}
    assert wanted <= set(fm.token_field_names) and wanted <= set(fm.first_order_linear.token_field_names)
    # Each bucket has its own row of the table: changing one moves the rows of that bucket alone.
    fm.eval()
    column, tokens = history_column("user_mean"), parts[2].inter_feat[history_column("user_mean")]
    place = fm.token_field_names.index(column)
    with torch.no_grad():
        before = fm.predict(dataset.join(parts[2].inter_feat))
        fm.token_embedding_table.embedding.weight[fm.token_field_offsets[place] + tokens[0]] += 1.0
        moved = (fm.predict(dataset.join(parts[2].inter_feat)) - before).abs() > 1e-7
    assert torch.equal(moved, tokens == tokens[0])


def test_floats_are_standardized_by_the_training_rows(movies):
    fm, dataset, parts = build(movies, history_fields=["user_mean", "user_count"], history_buckets=0, normalize_all=True)
    table = numbers(dataset, ("user_mean", "user_count"), parts[0])
    mean, spread = table.mean(axis=0), table.std(axis=0)
    for part in parts:
        expected = (numbers(dataset, ("user_mean", "user_count"), part) - mean) / spread
        for name, column in zip(("user_mean", "user_count"), expected.T):
            found = part.inter_feat[history_column(name)]
            np.testing.assert_allclose(found[:, 0], column, atol=1e-4)
            assert (found[:, 1] == 1).all()
    assert fm.float_field_names == [history_column("user_mean"), history_column("user_count")]
    _, dense = fm.embed_input_fields(dataset.join(parts[2].inter_feat))
    table = fm.float_embedding_table.embedding.weight
    rows = table[torch.tensor([1, 3])]  # of two rows a field, RecBole uses the second
    values = torch.stack([parts[2].inter_feat[name][:, 0] for name in fm.float_field_names], dim=1)
    torch.testing.assert_close(dense, values[..., None] * rows)


def test_mean_embedding_is_the_mean_of_the_latest_behaviours(movies):
    fm, dataset, parts = build(movies, history_fields=["mean_embedding"], history_size=3)
    batch = parts[2].inter_feat[torch.arange(6)]
    pooled, _ = fm.embed_input_fields(dataset.join(batch))
    pooled = dict(zip([*fm.token_seq_field_names, *fm.token_field_names], pooled.unbind(dim=1)))
    tables = dict(zip(fm.token_seq_field_names, fm.token_seq_embedding_table))
    ratings = np.unique(dataset.rows.rating[parts[0].inter_feat[ROW_ID].numpy()])
    for place, row in enumerate(batch[ROW_ID].numpy()):
        past = dataset.histories.of(row)[-3:]
        items = tables[HISTORY_ITEMS].weight[torch.from_numpy(dataset.rows.item[past]).long()].mean(dim=0)
        answers = tables[HISTORY_ANSWERS].weight[1 + np.searchsorted(ratings, dataset.rows.rating[past])].mean(dim=0)
        torch.testing.assert_close(pooled[HISTORY_ITEMS][place], items)
        torch.testing.assert_close(pooled[HISTORY_ANSWERS][place], answers)


def test_the_similar_ones_are_those_of_rella(movies):
    """The twin of SUBR: over the behaviours that ReLLa's prompts retrieve, weighted by how close they are."""
    shared = {"eval_args": TIME_SPLIT, "retrieval_encoder": "llm", "mini_epochs": 0, "history_fields": ["similar_mean"]}
    _, dataset, parts = build(movies, **shared, history_buckets=0)
    name, tiny = movies
    rella, (*_, test) = load_data(make_config("ReLLa", name, config_dict={**tiny, **shared}))
    rows = test._dataset.inter_feat[ROW_ID].numpy()
    retriever = rella.assembly.prompter.retriever
    expected = []
    for row, found in zip(rows, retriever.closest(rows, rella.rows.item[rows])):
        weights = np.maximum(retriever.vectors[rella.rows.item[found]] @ retriever.vectors[rella.rows.item[row]], 0)
        expected.append(np.average(rella.rows.rating[found], weights=weights))
    column = history_column("similar_mean")
    values = np.concatenate([part.inter_feat[column][:, 0].numpy() for part in parts])
    order = np.argsort(expected)
    assert (np.diff(parts[2].inter_feat[column][:, 0].numpy()[order]) >= -1e-4).all() and values.std() > 0.5
    features = history_features(dataset, ("similar_mean",), retriever)
    np.testing.assert_allclose(features.of_rows(rows)[:, 0], expected, rtol=1e-5)


def test_computed_once_for_all_runs(movies, monkeypatch, own_cache):
    asked = []
    of_rows = HistoryFeatures.of_rows
    monkeypatch.setattr(HistoryFeatures, "of_rows", lambda self, rows: asked.append(len(rows)) or of_rows(self, rows))
    build(movies, history_fields="default")
    build(movies, "DeepFM", history_fields="default", history_buckets=0)
    assert len(asked) == 1
    build(movies, history_fields=["user_mean"])
    assert len(asked) == 2


def test_buckets():
    rng = np.random.default_rng(0)
    values = rng.normal(size=1000).astype(np.float32)
    fitted = Buckets.fitted(values, 8)
    counts = np.bincount(fitted.tokens(values), minlength=fitted.count)
    assert counts[0] == 0 and len(counts) == 9 and counts[1:].min() > 100
    few = Buckets.fitted(np.array([1, 5, 5, 5, 5, 3, np.nan]), 8)
    assert few.tokens(np.array([np.nan, 0, 1, 3, 4, 5, 9])).tolist() == [0, 1, 1, 2, 3, 3, 3] and few.count == 4
    assert Buckets.fitted(np.array([np.nan]), 8).tokens(np.array([np.nan, 1.0])).tolist() == [0, 1]


def test_a_single_run_on_our_rows(movies):
    """No split_file: min_history and RecBole's own eval_args; defaults of our keys come from our files, but for the shots."""
    name, tiny = movies
    config = make_config("FM", "ml-100k", config_dict={"history_fields": "default"})
    assert config["category_field"] == "class" and config["history_buckets"] == 32 and config["train_shots"] is None
    assert config["history_fields"] == ["default"] and config["epochs"] == 300 and config["min_history"] == 5
    assert make_config("FM", "ml-100k")["min_history"] is None
    own = {"eval_args": TIME_SPLIT, "history_fields": "default", "load_col": None, "category_field": "class"}
    found = run_recbole_rella("FM", name, config_dict={**tiny, **own, "epochs": 2})
    assert np.isfinite(found["test_result"]["auc"])
    _, dataset, parts = build(movies, history_fields="default")
    past = dataset.histories.past_lengths()
    assert all(past[part.inter_feat[ROW_ID].numpy()].min() >= 2 for part in parts)


def test_what_is_refused(movies, caplog):
    name, tiny = movies
    settings = {**tiny, "eval_args": TIME_SPLIT, "load_col": None}

    def data(model="FM", **more):
        config = make_config(model, name, config_dict={**settings, **more})
        with same_rows(config):
            create_dataset(config).build()

    with pytest.raises(ConfigError, match="history_fields: expected none, or a list of names .* did you mean user_mean?"):
        data(history_fields=["user_maen"])
    with pytest.raises(ConfigError, match="history_feilds: there is no such key; the nearest valid one is history_fields"):
        make_config("FM", name, config_dict={**settings, "history_feilds": "default"})
    with pytest.raises(HistoryError, match="of the .item file among .*'class'.*found 'genre'"):
        data(history_fields=["same_genre_mean"])
    with pytest.raises(HistoryError, match="history_fields: expected no days_since_last of rows without times"):
        data(history_fields=["days_since_last"], history_shuffle_seed=3)
    with pytest.raises(HistoryError, match="found DIN, which reads sequences of items alone"):
        data("DIN", history_fields="default", train_neg_sample_args=None)
    with pytest.raises(HistoryError, match="expected eval_args with the mode labeled"):
        data(history_fields="default", eval_args={**TIME_SPLIT, "mode": "uni10"})


def test_tree_reads_the_numbers_that_are_asked_for_and_the_default_ones_where_none_are(movies):
    """Sequences are no numbers: where they alone are asked for, it would read what nobody named. Before anything is trained."""
    name, tiny = movies
    for given, expected in ((None, {"user_mean", "item_mean"}), (["mean_embedding", "user_last"], {"user_last"})):
        config = make_config("Tree", name, config_dict={**tiny, "history_fields": given})
        names = Tree(config, NumbersDataset(config).build()[0]).names
        assert expected <= set(names) and (given is None or len(names) == 1)
    alone, message = (
        {"history_fields": ["mean_embedding"]},
        "history_fields: expected default, or names of numbers, for Tree, found mean",
    )
    for model, more in (("Tree", {}), ("ReLLa", {"beside": ["Bias", "Tree"]})):
        with pytest.raises(ConfigError, match=message):
            make_config(model, name, config_dict={**tiny, **alone, **more})
    make_config("ReLLa", name, config_dict={**tiny, **alone, "beside": ["Bias"]})
    with pytest.raises(ConfigError, match=message):
        make_experiment(make_entries(["FM", "Tree"]), name, None, {**tiny, **alone})
    own = {key: value for key, value in tiny.items() if key != "beside"}
    make_experiment(make_entries(["ReLLa", "FM"]), name, None, {**own, **alone})


def test_side_by_side_only_the_keys_that_the_features_need(movies):
    """A sweep over a key of ReLLa's gives other models one run, with history features too, unless these read it."""
    name, tiny = movies
    fm, din = make_entries(["FM", "DIN"])
    with_history = Entry("FM+history", "FM", {"history_fields": "user_mean,item_mean"})
    similar = Entry("FM similar", "FM", {"history_fields": "user_mean,similar_mean"})

    def run(entry, **more):
        base = make_config("ReLLa", name, None, {**tiny, **more})
        return Run(entry, 1, None, settings_of(entry, base, 1, "split.npz"))

    assert not set(run(fm).settings) & (set(KEYS) - {"split_file"})
    assert "history_fields" not in run(din, history_fields=["default"]).settings
    assert run(fm, history_fields=["default"]).settings["history_fields"] == ["default"]
    for key, value in {"lora_r": 3, "history_size": 9, "retrieval_pca_dim": 3, "mini_epochs": 3}.items():
        assert run(with_history, **{key: value}).name == run(with_history).name
    assert run(with_history, history_buckets=3).name != run(with_history).name != run(fm).name
    for key, value in {"history_size": 9, "retrieval_pca_dim": 3}.items():
        assert run(similar, **{key: value}).name != run(similar).name
    assert run(similar, mini_epochs=3).name == run(similar).name
    embedded = {"retrieval_encoder": "llm"}
    assert run(similar, **embedded, mini_epochs=3).name != run(similar, **embedded).name
    assert run(similar, **embedded, llm="x/y", mini_epochs=3).name == run(similar, **embedded, llm="x/y").name
    assert all(name in HISTORY_NUMBERS for name in history_names(["default", "similar_mean", "mean_embedding"], None))


@pytest.mark.parametrize("buckets", [4, 0])
def test_law_1_nothing_fitted_sees_held_out_answers(movies, buckets):
    """Other ratings in the test part leave all columns of the training and validation parts as they are."""
    wanted = {"history_fields": ["default", "mean_embedding", "similar_mean"], "history_buckets": buckets}
    _, first, before = build(movies, **wanted)
    times = set(first.rows.time[before[2].inter_feat[ROW_ID].numpy()].tolist())

    def flip(text):
        header, *lines = text.splitlines()
        rows = [line.split("\t") for line in lines]
        rows = [[*cells[:2], str(6 - int(cells[2])), cells[3]] if int(cells[3]) in times else cells for cells in rows]
        return "\n".join([header, *("\t".join(cells) for cells in rows)]) + "\n"

    rewrite(movies[1], movies[0], "inter", flip)
    _, second, after = build(movies, **wanted)
    assert (first.rows.rating != second.rows.rating).sum() > 10
    columns = [column for column in before[0].inter_feat.columns if column.startswith("history.")]
    assert len(columns) == 20 + 2
    for ours, theirs in zip(before[:2], after[:2]):
        for column in columns:
            assert torch.equal(ours.inter_feat[column], theirs.inter_feat[column]), column
    assert any(not torch.equal(before[2].inter_feat[c], after[2].inter_feat[c]) for c in columns)  # the past of test rows


def _default_numbers(movies, order=slice(None), time=str, **more):
    """The default numbers of all rows, with the lines of the file in another order and other words for their times."""
    name, tiny = movies
    path = Path(tiny["data_path"]) / name / f"{name}.inter"
    header, *lines = path.read_text().splitlines()
    lines = [line.split("\t") for line in np.array(lines)[order]]
    path.write_text("\n".join([header, *("\t".join([*line[:3], time(float(line[3]))]) for line in lines)]) + "\n")
    _, dataset, _ = build(movies, history_fields=[DEFAULT_HISTORY], **more)
    default = history_names([DEFAULT_HISTORY], "class", dataset.rows.timed)
    names = tuple(name for name in default if not name.startswith("similar_"))
    return dataset.rows, names, history_features(dataset, names).of_rows(np.arange(len(dataset.rows)))


def test_numbers_do_not_depend_on_the_order_of_the_lines(movies):
    """Whose rows a training row is looked at without follows what users did, not where they stand in the file."""
    _, _, expected = _default_numbers(movies)
    _, _, found = _default_numbers(movies, order=np.random.default_rng(0).permutation(len(expected)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_times_may_have_fractions(movies):
    """Numbers say the same of times whose unit is so large that they differ by fractions alone."""
    rows, names, expected = _default_numbers(movies)
    other, _, found = _default_numbers(movies, time=lambda time: repr(time / 2**30))
    assert rows.time.dtype == np.int64 and other.time.dtype == np.float64 and np.floor(other.time).max() <= 1
    days = names.index("days_since_last")
    expected[:, days] /= 2**30
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    assert not np.isnan(found[:, names.index("item_mean")][len(rows) // 2 :]).any()


def test_rows_without_times_have_all_numbers_but_that_of_days(movies):
    rows, names, found = _default_numbers(movies, history_shuffle_seed=3)
    assert not rows.timed and "days_since_last" not in names and "user_last" in names and not np.isnan(found[-1]).any()
