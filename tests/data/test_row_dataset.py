"""Law 2: models that run side by side see the same rows, sequential ones with the histories that the rows have."""

import numpy as np
import pytest
from recbole.data import data_preparation
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.utils import init_seed

from recbole_rella.data.row_dataset import RowDataset
from recbole_rella.data.same_rows import learns_from_labels, same_rows
from recbole_rella.experiments.plan import make_entries
from recbole_rella.experiments.side_by_side import make_experiment
from recbole_rella.keys import ConfigError
from recbole_rella.quick_start import make_config
from recbole_rella.rows.fields import ROW_ID
from recbole_rella.rows.history import NO_SPLIT, TRAIN
from recbole_rella.rows.split import Split, SplitError


def shared(tiny, **more):
    keys = ("threshold", "data_path", "use_gpu", "gpu_id", "show_progress", "min_history")
    evaluation = {
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": None, "mode": "labeled"},
        "metrics": ["AUC"],
        "valid_metric": "AUC",
        "train_neg_sample_args": None,
        "load_col": None,
    }
    return {**{key: tiny[key] for key in keys}, **evaluation, **more}


def make_split(name, tiny, path="split.npz", **more):
    config = make_config("ReLLa", name, config_dict={**tiny, **more})
    init_seed(config["seed"], True)
    dataset = RowDataset(config)
    split = Split.of(dataset)
    split.save(path)
    return split, dataset


def load(model, name, tiny, **more):
    from recbole.data import create_dataset

    config = make_config(model, name, config_dict=shared(tiny, split_file="split.npz", **more))
    with same_rows(config):
        dataset = create_dataset(config)
    return config, dataset, data_preparation(config, dataset)


@pytest.mark.parametrize("model, kind", [("FM", Dataset), ("DIN", SequentialDataset), ("DIEN", SequentialDataset)])
@pytest.mark.parametrize("order", ["TO", "RO"])
def test_every_model_has_the_rows_of_the_split_in_its_order(model, kind, order, movies):
    name, tiny = movies
    args = {"split": {"RS": [0.7, 0.1, 0.2]}, "order": order, "group_by": None, "mode": "labeled"}
    split, rows = make_split(name, tiny, eval_args=args)
    _, dataset, loaders = load(model, name, tiny)
    assert isinstance(dataset, kind) and dataset.identity() == rows.identity() == split.identity
    for loader, row_ids in zip(loaders, (split.train, split.valid, split.test)):
        np.testing.assert_array_equal(loader._dataset.inter_feat[ROW_ID].numpy(), row_ids)
        inter = loader._dataset.inter_feat
        tokens = dataset.field2id_token[dataset.iid_field][inter[dataset.iid_field].numpy()]
        expected = rows.field2id_token[rows.iid_field][rows.rows.item[row_ids]]
        np.testing.assert_array_equal(tokens, expected)
        np.testing.assert_array_equal(inter[dataset.label_field].numpy(), rows.rows.label[row_ids])


RANDOM = {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": None, "mode": "labeled"}}


@pytest.mark.parametrize("model", ["DIN", "DIEN"])
@pytest.mark.parametrize("longest", [3, 50])
@pytest.mark.parametrize("order", [{}, RANDOM], ids=["TO", "RO"])
def test_sequential_models_get_the_past_that_a_prompt_may_show(model, longest, order, movies):
    """Laws 1 and 13: the latest rows before the row in the order of the row_ids, those that min_history dropped included, and none
    of a later split; so it is with every column of the past."""
    name, tiny = movies
    own = {**tiny, "min_history": 4, **order}
    split, whole = make_split(name, own)
    later = [row for row in split.train if len(whole.histories.of(row)) < whole.histories.past_lengths()[row]]
    assert bool(later) == bool(order)
    _, dataset, loaders = load(model, name, own, MAX_ITEM_LIST_LENGTH=longest)
    rows, histories = dataset.rows, dataset.histories
    columns = {"item_id_list": rows.item, "label_list": rows.label}
    for loader, row_ids in zip(loaders, (split.train, split.valid, split.test)):
        inter = loader._dataset.inter_feat
        np.testing.assert_array_equal(inter[ROW_ID].numpy(), row_ids)
        past = [histories.of(row)[-longest:] for row in row_ids]
        assert inter["item_length"].tolist() == list(map(len, past))
        for column, values in columns.items():
            for found, seen in zip(inter[column].numpy(), past):
                assert found[: len(seen)].tolist() == values[seen].tolist() and not found[len(seen) :].any()


def test_a_sequential_model_has_no_histories_of_files_in_parts(movies):
    """RecBole makes none there, and takes those that the files bring along, which may show anything."""
    name, tiny = movies
    parts = {"benchmark_filename": ["train", "valid", "test"]}
    with pytest.raises(ConfigError, match=r"benchmark_filename: expected none with DIN, .* found \['train', 'valid', 'test'\]"):
        load("DIN", name, tiny, **parts)
    with pytest.raises(ConfigError, match="benchmark_filename: expected none with DIN"):
        make_experiment(make_entries(["ReLLa", "DIN"]), name, None, {**tiny, **parts})


def test_histories_follow_the_row_ids_where_recboles_times_are_rounded(movies):
    """Behaviours 37 seconds apart share a float32 time; a history must not show the later one."""
    name, tiny = movies
    _, dataset = make_split(name, tiny)
    times = dataset.rows.time.astype(np.float32)
    assert len(np.unique(times)) < len(np.unique(dataset.rows.time))
    _, din, loaders = load("DIN", name, tiny)
    inter = loaders[2]._dataset.inter_feat
    rows = din.rows
    for row, items, length in zip(inter[ROW_ID].numpy(), inter["item_id_list"].numpy(), inter["item_length"].numpy()):
        assert rows.item[row] not in items[:length]  # each user has each item once in this data


@pytest.mark.parametrize("model", ["FM", "DCNV2", "DIN"])
def test_no_model_makes_a_feature_of_the_row_id(model, movies):
    name, tiny = movies
    make_split(name, tiny)
    config, dataset, loaders = load(model, name, tiny)
    assert not [field for field in loaders[0]._dataset.fields() if field.startswith(ROW_ID)]
    model = config.model_class(config, loaders[0]._dataset)
    names = [*getattr(model, "token_field_names", []), *getattr(model, "field_names", [])]
    assert ROW_ID not in names and str(dataset)


def test_recboles_own_classes_are_left_as_they_were(movies):
    import recbole.data.dataset as module

    name, tiny = movies
    make_split(name, tiny)
    before = set(vars(module)), module.DIENDataset
    load("DIEN", name, tiny)
    load("FM", name, tiny)
    assert (set(vars(module)), module.DIENDataset) == before


def test_models_that_do_not_learn_from_labels_are_refused(movies):
    name, tiny = movies
    make_split(name, tiny)
    for model in ("NeuMF", "SASRec"):
        with pytest.raises(SplitError, match=f"expected a context-aware .* that learns from labels .* found {model}, which would"):
            load(model, name, tiny, metrics=["AUC"])
    with pytest.raises(SplitError, match="train_neg_sample_args: expected a distribution .uniform. with BPR, .* found none"):
        load("BPR", name, tiny, metrics=["AUC"])
    from recbole.utils import get_model

    assert [learns_from_labels(get_model(m)) for m in ("FM", "DIN", "SASRec", "BPR", "ReLLa")] == [True, True, False, False, True]


def test_a_model_that_samples_what_was_not_liked_is_refused(movies):
    name, tiny = movies
    make_split(name, tiny)
    sampled = {"distribution": "uniform", "sample_num": 1}
    with pytest.raises(SplitError, match="train_neg_sample_args: expected none, so that DIN learns from the rows and their labels"):
        load("DIN", name, tiny, train_neg_sample_args=sampled)


def test_a_sequential_model_has_no_rows_without_history(movies):
    name, tiny = movies
    make_split(name, {**tiny, "min_history": 0})
    load("FM", name, {**tiny, "min_history": 0})
    with pytest.raises(SplitError, match="12 rows missing, for example row .* set min_history to at least 1"):
        load("DIN", name, {**tiny, "min_history": 0})


def test_a_split_belongs_to_its_rows(movies):
    name, tiny = movies
    make_split(name, tiny)
    with pytest.raises(SplitError, match="expected a split of these rows .* found one of others"):
        load("FM", name, {**tiny, "threshold": {"rating": 3}})


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b""])
def test_a_damaged_split_is_told_of(damage, movies, tmp_path):
    from pathlib import Path

    name, tiny = movies
    make_split(name, tiny)
    Path("split.npz").write_bytes(damage(Path("split.npz").read_bytes()))
    with pytest.raises(SplitError, match="expected a split at .* found none that reads"):
        load("FM", name, tiny)


def test_rella_on_a_split_equals_rella_on_its_own(movies):
    from recbole_rella import run_recbole_rella

    name, tiny = movies
    make_split(name, tiny)
    alone = run_recbole_rella("ReLLa", name, config_dict={**tiny, "train_shots": 50})
    by_file = run_recbole_rella("ReLLa", name, config_dict={**tiny, "train_shots": 50, "split_file": "split.npz"})
    assert alone["test_result"] == by_file["test_result"] and alone["best_valid_result"] == by_file["best_valid_result"]


def test_shots_for_a_built_in_model_are_rellas(movies):
    from recbole.data import create_dataset

    name, tiny = movies
    make_split(name, tiny)
    _, _, loaders = load("FM", name, tiny, train_shots=40)
    config = make_config("ReLLa", name, config_dict={**tiny, "train_shots": 40, "train_history": "recent"})
    rella = data_preparation(config, create_dataset(config))
    np.testing.assert_array_equal(loaders[0]._dataset.inter_feat[ROW_ID].numpy(), rella[0]._dataset.inter_feat[ROW_ID].numpy())


def test_a_pool_holds_the_shots_of_every_size(movies):
    name, tiny = movies

    def train(**more):
        _, dataset = make_split(name, tiny, **more)
        return dataset, set(Split.load("split.npz").train.tolist())

    whole = train()[1]
    few, many = train(train_pool=60, train_shots=10)[1], train(train_pool=60, train_shots=25)[1]
    dataset, pool = train(train_pool=60)
    assert few < many < pool < whole and [len(s) for s in (few, many, pool)] == [10, 25, 60]
    assert train(train_pool=90)[1] > pool
    # The rows that are left out keep their part, as histories of others may show them.
    assert set(np.flatnonzero(dataset.rows.split == 0).tolist()) == whole
    assert set(dataset.pool.tolist()) == pool
    assert set(train(train_pool=60, train_shots=10)[0].pool.tolist()) == pool


def test_evaluated_rows_are_drawn_with_the_seed(movies):
    name, tiny = movies
    whole, few = make_split(name, tiny)[0], make_split(name, tiny, eval_rows=9)[0]
    again, other = make_split(name, tiny, eval_rows=9)[0], make_split(name, tiny, eval_rows=9, seed=7)[0]
    for part in ("valid", "test"):
        drawn = getattr(few, part)
        assert len(drawn) == 9 and set(drawn) < set(getattr(whole, part))
        np.testing.assert_array_equal(drawn, getattr(again, part))
        assert set(drawn) != set(getattr(other, part))
    np.testing.assert_array_equal(few.train, whole.train)


def test_validation_may_have_other_numbers_of_rows_than_the_test(movies):
    """The rows of the larger number hold those of the smaller one."""
    name, tiny = movies
    nine, mixed, one = (make_split(name, tiny, eval_rows=rows)[0] for rows in (9, [3, 9], [None, 3]))
    assert len(mixed.valid) == 3 and set(mixed.valid) < set(nine.valid)
    np.testing.assert_array_equal(mixed.test, nine.test)
    assert len(one.valid) == len(make_split(name, tiny)[0].valid) and len(one.test) == 3 and set(one.test) < set(nine.test)


def test_more_rows_than_there_are_is_told_of(movies, caplog):
    name, tiny = movies
    split, _ = make_split(name, tiny, eval_rows=1000)
    assert f"eval_rows is 1000, and there are {len(split.test)} rows: all are used." in caplog.text


@pytest.mark.parametrize("targets", [1, 3, 100])
def test_targets_per_user(targets, movies):
    """The last rows of each user are in the split, and show all earlier ones; min_history counts those too."""
    name, tiny = movies
    split, dataset = make_split(name, {**tiny, "min_history": 27}, targets_per_user=targets)
    rows, used = dataset.rows, np.sort(np.concatenate([split.train, split.valid, split.test]))
    own = [np.flatnonzero(rows.user == user) for user in range(1, dataset.user_num)]
    np.testing.assert_array_equal(used, np.sort(np.concatenate([o[27:][-targets:] for o in own])))
    for row in split.test:
        earlier = np.flatnonzero(rows.user[:row] == rows.user[row])
        assert set(dataset.histories.of(row)) == set(earlier[rows.split[earlier] <= rows.split[row]]) and len(earlier) >= 27


def test_without_times_rows_stand_in_a_random_order(movies):
    name, tiny = movies
    rewrite_inter(tiny, name, lambda columns: columns[:3])
    with pytest.raises(
        ValueError, match="TIME_FIELD: expected a float field 'timestamp'.* For a data set without times give history_shuffle_seed"
    ):
        make_split(name, tiny)
    _, dataset = make_split(name, tiny, history_shuffle_seed=3)
    np.testing.assert_array_equal(dataset.rows.time, np.arange(len(dataset.rows)))
    places = {user: np.flatnonzero(dataset.rows.user == user) for user in range(1, dataset.user_num)}
    orders = [dataset.rows.item[rows].tolist() for rows in places.values()]
    assert all(order != sorted(order) for order in orders) and len({tuple(order) for order in orders}) == len(orders)
    # Users stand among each other, so that a split of the rows in order is not one of users.
    assert all(rows.max() - rows.min() > len(dataset.rows) / 2 for rows in places.values())


def rewrite_inter(tiny, name, change):
    from pathlib import Path

    path = Path(tiny["data_path"]) / name / f"{name}.inter"
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    path.write_text("".join("\t".join(change(columns)) + "\n" for columns in lines))


@pytest.mark.parametrize("model", ["FM", "DIN"])
def test_other_models_number_rows_without_times_alike(model, movies):
    name, tiny = movies
    rewrite_inter(tiny, name, lambda columns: columns[:3])
    split, rows = make_split(name, tiny, history_shuffle_seed=3, targets_per_user=9, train_pool=40, eval_rows=5, **RANDOM)
    _, dataset, loaders = load(model, name, tiny, history_shuffle_seed=3)
    assert dataset.identity() == rows.identity()
    np.testing.assert_array_equal(dataset.rows.split, rows.rows.split)
    for loader, row_ids in zip(loaders, (split.train, split.valid, split.test)):
        inter = loader._dataset.inter_feat
        np.testing.assert_array_equal(inter[ROW_ID].numpy(), row_ids)
        np.testing.assert_array_equal(inter[dataset.iid_field].numpy(), dataset.rows.item[row_ids])
        if model == "DIN":
            for row, items, length in zip(row_ids, inter["item_id_list"].numpy(), inter["item_length"].numpy()):
                assert items[:length].tolist() == dataset.rows.item[dataset.histories.of(row)].tolist()
    assert [len(part) for part in (split.train, split.valid, split.test)] == [40, 5, 5]


def test_rella_on_a_split_with_drawn_rows_equals_rella_on_its_own(movies):
    """Rows that are not drawn keep their part in the file too: else a training row would show an undrawn test row."""
    from recbole_rella import run_recbole_rella

    name, tiny = movies
    drawn = {"train_pool": 90, "eval_rows": 20, "history_shuffle_seed": 5, **RANDOM}
    make_split(name, {**tiny, **drawn})
    settings = {**tiny, **drawn, "train_shots": 40}
    alone = run_recbole_rella("ReLLa", name, config_dict=settings)
    by_file = run_recbole_rella("ReLLa", name, config_dict={**settings, "split_file": "split.npz"})
    assert alone["test_result"] == by_file["test_result"] and alone["best_valid_result"] == by_file["best_valid_result"]


def test_documents_of_the_embedded_llm_are_of_the_pool(movies, monkeypatch):
    """Each document asks about a row of the pool, and tells earlier training rows of its user."""
    from recbole.data import create_dataset

    from recbole_rella.data import embedded_llm
    from recbole_rella.prompt.prompter import RowTexts

    name, tiny = movies
    written = []
    document = RowTexts.document
    monkeypatch.setattr(RowTexts, "document", lambda self, row, shown: written.append((row, shown)) or document(self, row, shown))
    monkeypatch.setattr(embedded_llm, "cache_key", lambda *_: "always made anew")
    config = make_config("ReLLa", name, config_dict={**tiny, "train_shots": 10, "train_pool": 50, "cache_dir": "pool"})
    dataset = create_dataset(config)
    data_preparation(config, dataset)
    assert len(dataset.pool) == 50 and {row for row, _ in written} <= set(dataset.pool.tolist())
    rows, shown = dataset.rows, np.unique(np.concatenate([shown for _, shown in written]))
    assert np.isin(rows.split[shown], (TRAIN, NO_SPLIT)).all() and not np.isin(shown, dataset.pool).all()


ORDERS = {
    "by time": {},
    "at random": {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": None, "mode": "labeled"}},
    "without times": {"history_shuffle_seed": 3},
    "one of each": {"rm_dup_inter": "first"},
    "the last of each": {"rm_dup_inter": "last"},
}


@pytest.mark.parametrize("kind", ORDERS)
def test_rows_and_split_do_not_depend_on_the_order_of_the_lines(kind, movies):
    """With rows that stand twice, and rows that contradict each other at one time."""
    from pathlib import Path

    name, tiny = movies
    path = Path(tiny["data_path"]) / name / f"{name}.inter"
    header, *lines = path.read_text().splitlines()
    twice = [line.split("\t") for line in lines[::5]]
    lines += lines[::7] + ["\t".join([user, item, str(6 - int(rating)), time]) for user, item, rating, time in twice]
    found = []
    for seed in range(3):
        path.write_text("\n".join([header, *np.random.default_rng(seed).permutation(lines)]) + "\n")
        split, dataset = make_split(name, tiny, train_shots=20, **ORDERS[kind])
        rows = dataset.rows
        tokens = [dataset.field2id_token[f][ids] for f, ids in (("user_id", rows.user), ("item_id", rows.item))]
        found.append(
            [*tokens, rows.time, rows.rating, rows.label, rows.split, split.train, split.valid, split.test, split.identity]
        )
    for other in found[1:]:
        for a, b in zip(found[0], other):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("model", ["FM", "DCNV2", "DIN", "DIEN"])
def test_no_model_sees_the_rating_of_the_row_itself(model, movies):
    """Where the data set has labels of its own, RecBole leaves the rating among the features: it is the answer."""
    name, tiny = movies
    rewrite_inter(
        tiny, name, lambda columns: [*columns, "label:float" if columns[2] == "rating:float" else str(int(columns[2] > "3"))]
    )
    own = {**tiny, "threshold": None}
    make_split(name, own)
    config, dataset, loaders = load(model, name, own)
    train = loaders[0]._dataset
    assert "rating" in train.inter_feat and "rating" not in train.fields()
    network = config.model_class(config, train)
    batch = next(iter(loaders[0]))
    network.eval()
    scores = network.predict(batch)
    batch.interaction["rating"] = 6 - batch["rating"]
    np.testing.assert_array_equal(network.predict(batch).detach().numpy(), scores.detach().numpy())
    assert np.isfinite(float(network.calculate_loss(batch)))
