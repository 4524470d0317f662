"""Columns of one name in two files, or of a name that the rows use: features stay features, rows stay rows."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from recbole.data import create_dataset, data_preparation
from recbole.utils import init_seed
from test_mistakes import FILES, GENERIC

from recbole_rella import run_recbole_rella
from recbole_rella.atomic.errors import DatasetError
from recbole_rella.data.dataset import ReLLaDataset
from recbole_rella.data.row_dataset import RowDataset
from recbole_rella.data.same_rows import same_rows
from recbole_rella.quick_start import load_data, make_config
from recbole_rella.rows.fields import OURS, ROW_ID
from recbole_rella.rows.split import Split

EVALUATION = {
    "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": None, "mode": "labeled"},
    "train_neg_sample_args": None,
    "metrics": ["AUC"],
    "valid_metric": "AUC",
}
EXTRA = {"token": "w{}", "float": "{}.25", "token_seq": "w{} all", "float_seq": "{} 0.5"}


def write(files, name="shop"):
    folder = Path("data") / name
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in files.items():
        (folder / f"{name}.{suffix}").write_text(text)
    return str(folder)


def with_column(suffix, column, files=FILES):
    """The files with one more column, whose values are told from the line."""
    header, *lines = files[suffix].splitlines()
    kind = column.partition(":")[2]
    lines = [f"{line}\t{EXTRA[kind].format(number)}" for number, line in enumerate(lines)]
    return {**files, suffix: "\n".join([f"{header}\t{column}", *lines]) + "\n"}


def config_of(folder, model="ReLLa", **settings):
    own = settings if model == "ReLLa" else {k: v for k, v in settings.items() if not k.startswith(("mini", "retrieval"))}
    return make_config(model, folder, config_dict={**GENERIC, **own})


FEATURES = [
    ("item", "label:token", {}),
    ("item", "label:float", {}),
    ("item", "rating:float", {}),
    ("item", "timestamp:float", {}),
    ("item", "user_id:token", {}),
    ("item", "item_length:float", {}),
    ("item", "item_id_list:token_seq", {}),
    ("item", "neg_item_id:token", {}),
    ("user", "item_id:token", {}),
    ("user", "label:token_seq", {}),
    ("user", "rating:float_seq", {}),
    *(("item", f"{name}:token", {}) for name in OURS),
    *(("user", f"{name}:float", {}) for name in OURS[:2]),
    ("item", "liked:token", {"LABEL_FIELD": "liked"}),
    ("item", "length:float", {"ITEM_LIST_LENGTH_FIELD": "length"}),
    ("item", "rating_seq:token", {"LIST_SUFFIX": "_seq"}),
]


@pytest.mark.parametrize(("suffix", "column", "settings"), FEATURES, ids=lambda value: str(value))
def test_a_feature_with_a_name_of_the_rows_stays_a_feature(suffix, column, settings):
    name, kind = column.split(":")
    plain = ReLLaDataset(config_of(write(FILES, "plain"), **settings))
    dataset = ReLLaDataset(config_of(write(with_column(suffix, column)), **settings))
    assert dataset.identity() == plain.identity() and dataset.rows.label.tolist() == plain.rows.label.tolist()
    words, expected = dataset.words[suffix].table, plain.words[suffix].table
    field = dataset.uid_field if suffix == "user" else dataset.iid_field
    tokens = [line.split("\t")[0] for line in FILES[suffix].splitlines()[1:]]
    found = dict(zip(dataset.field2id_token[field], words[name]))
    assert [found[token] for token in tokens] == [EXTRA[kind].format(number) for number in range(len(tokens))]
    assert list(words) == [*expected, name]
    known = f"{suffix}.{name}"
    assert dataset.name_in_file(suffix, known) == name
    assert dataset.field2type[known].value == kind and known in getattr(dataset, f"{suffix}_feat")
    joined = RowDataset(config_of("data/shop", **settings))
    train, *_ = joined.build()
    batch = train[np.arange(5)]
    assert batch[joined.label_field].tolist() == joined.rows.label[batch[ROW_ID].numpy()].tolist()
    np.testing.assert_array_equal(batch[joined.uid_field], joined.rows.user[batch[ROW_ID].numpy()])
    np.testing.assert_array_equal(batch[joined.iid_field], joined.rows.item[batch[ROW_ID].numpy()])


def test_users_and_items_with_columns_of_one_name():
    files = with_column("item", "age:token", with_column("user", "title:token_seq"))
    dataset = ReLLaDataset(config_of(write(files)))
    users, items = (dataset.words[kind].table for kind in ("user", "item"))
    assert users["age"][1:].tolist() == ["20", "21", "22", "23"] and set(items["age"][1:]) == {f"w{n}" for n in range(10)}
    assert set(users["title"][1:]) == {f"w{n} all" for n in range(4)} and set(items["title"][1:]) == {
        f"Thing {n}" for n in range(10)
    }
    assert {"user.age", "item.age", "user.title", "item.title"} <= set(dataset.field2type)


@pytest.mark.parametrize("key", ["val_interval", "seq_len", "normalize_field", "numerical_features"])
def test_a_setting_that_names_both_is_an_error(key):
    files = with_column("item", "age:float", {**FILES, "user": FILES["user"].replace("age:token", "age:float")})
    value = {"val_interval": {"age": "[21,inf)"}, "seq_len": {"age": 3}}.get(key, ["age"])
    message = f"{key}: expected a column of one file, found 'age', which stands in .user and .item; write user.age or item.age"
    with pytest.raises(DatasetError, match=message):
        ReLLaDataset(config_of(write(files), **{key: value}))
    value = {"val_interval": {"user.age": "[21,inf)"}, "seq_len": {"user.age": 3}}.get(key, ["user.age"])
    dataset = ReLLaDataset(config_of(write(files), **{key: value}))
    assert len(dataset.rows) == (45 if key == "val_interval" else 60)


@pytest.mark.parametrize("name", [*OURS, "item_length"])
def test_a_column_of_the_rows_with_a_name_of_ours(name):
    """It is a feature of the rows, as any other."""
    dataset = RowDataset(config_of(write(with_column("inter", f"{name}:token"))))
    plain = RowDataset(config_of(write(FILES, "plain")))
    assert dataset.identity() == plain.identity() and f"inter.{name}" in dataset.inter_feat
    assert sorted(dataset.inter_feat[ROW_ID]) == list(range(8, 60)) and dataset.field2type[ROW_ID].value == "token"


def test_a_name_that_is_taken_by_the_other_name():
    files = with_column("item", "item.label:token", with_column("item", "label:token"))
    with pytest.raises(DatasetError, match="Expected no column 'item.label'"):
        RowDataset(config_of(write(files)))


def test_load_col_names_columns_as_the_files_do():
    files = with_column("item", "label:token")
    ids = {"inter": ["user_id", "item_id", "rating", "timestamp"], "user": ["user_id"]}
    dataset = ReLLaDataset(config_of(write(files), load_col={**ids, "item": ["item_id", "label"]}))
    assert list(dataset.words["item"].table) == ["item_id", "label"]
    dataset = ReLLaDataset(config_of(write(files), unload_col={"item": ["label"]}))
    assert list(dataset.words["item"].table) == ["item_id", "title", "price"] and "item.label" not in dataset.field2type


def test_what_is_renamed_is_said(caplog):
    caplog.set_level("INFO")
    ReLLaDataset(config_of(write(with_column("item", "label:token"))))
    assert "The column label of .item is item.label in RecBole's settings, as another column has its name." in caplog.text


@pytest.mark.parametrize("model", ["FM", "DCNV2", "DIN"])
def test_built_in_models_keep_both(model):
    files = with_column("inter", "row_id:token", with_column("user", "item_id:token", with_column("item", "label:token")))
    files = with_column("user", "name:token", with_column("item", "name:token", with_column("item", "rating:float", files)))
    base = config_of(write(files))
    init_seed(base["seed"], True)
    rows = RowDataset(base)
    Split.of(rows).save("split.npz")
    config = config_of("data/shop", model, split_file="split.npz", load_col=None, **EVALUATION)
    with same_rows(config):
        dataset = create_dataset(config)
    loaders = data_preparation(config, dataset)
    fields = set(loaders[0]._dataset.fields())
    assert {"item.label", "item.rating", "user.item_id", "user.name", "item.name", "inter.row_id"} <= fields
    assert dataset.identity() == rows.identity()
    for batch in loaders[0]:
        np.testing.assert_array_equal(batch["label"].numpy(), dataset.rows.label[batch[ROW_ID].numpy()])
    network = config.model_class(config, loaders[0]._dataset)
    loss = network.calculate_loss(batch)
    assert np.isfinite(float(loss))


@pytest.mark.parametrize("suffix", ["item", "user"])
@pytest.mark.parametrize("model", ["SIM", "FM"])
def test_a_rating_of_users_or_items_where_rows_have_none(model, suffix):
    """The rating of a film's maker (R, PG) is a feature; the row's own, which no model may see, is of the .inter file."""
    labels = {"inter": FILES["inter"].replace("rating:float", "label:float")}
    labels["inter"] = re.sub(r"\t(\d)\t(1\d{3})", lambda found: f"\t{int(found[1]) % 2}\t{found[2]}", labels["inter"])
    folder = write(with_column(suffix, "rating:token", {**FILES, **labels}))
    more = {"history_fields": ["user_mean"]} if model == "FM" else {}
    config = config_of(folder, model, threshold=None, load_col=None, **EVALUATION, **more)
    dataset, loaders = load_data(config)
    assert f"{suffix}.rating" in loaders[0]._dataset.fields() and dataset.rows.rating is None
    assert np.isfinite(config.model_class(config, loaders[0]._dataset).predict(next(iter(loaders[2]))[0]).detach()).all()


def test_a_whole_run_with_a_record_label(movies):
    """Labels are the threshold's, in training and in evaluation; the record label is a word."""
    name, tiny = movies
    path = Path(tiny["data_path"]) / name / f"{name}.item"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header + "\tlabel:token", *(f"{line}\tEMI {n % 3}" for n, line in enumerate(lines))]) + "\n")
    own = {**tiny, "prompt_item": "{{ item.movie_title }} ({{ item.label }})", "run_folder": "run"}
    run_recbole_rella("ReLLa", name, config_dict=own)
    metrics = json.loads(Path("run/metrics.json").read_text())
    for key in ("auc", "accuracy", "logloss"):
        assert metrics["test"][key] == pytest.approx(metrics["test_exact"][key], abs=1e-4)
