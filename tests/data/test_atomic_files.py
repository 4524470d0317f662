"""Where atomic files are looked for: by name, by path, under another name, and what is said where there are none."""

import re
import urllib.error
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import TINY, write_atomic_files, written_predictions
from recbole.data import create_dataset
from recbole.utils import url

from recbole_rella import command_line, processes, run_recbole_rella
from recbole_rella.data.atomic_files import DatasetError
from recbole_rella.data.row_dataset import RowDataset
from recbole_rella.keys import ConfigError
from recbole_rella.quick_start import load_data, make_config

GENERIC = {key: value for key, value in TINY.items() if not key.startswith("prompt_") and key != "retrieval_sentence"}


def plain_rows():
    return [{"user_id": str(p % 3), "item_id": str(p % 7), "rating": 1 + p % 5, "timestamp": p} for p in range(80)]


def test_a_folder_without_users_items_and_yaml(tmp_path):
    """By its path, from the command line too; items are named by their ids."""
    write_atomic_files(tmp_path / "some where", "plain", plain_rows())
    path = str(tmp_path / "some where" / "plain")
    result = run_recbole_rella("ReLLa", path, config_dict=GENERIC)
    written_predictions(result)
    config = make_config("ReLLa", path, config_dict=GENERIC)
    assert config["dataset"] == "plain" and config["data_path"] == path
    dataset, _ = load_data(config)
    (shown,) = dataset.assembly.prompter.shown(np.array([20]), dataset.rows.item[[20]], np.array([False]))
    text = dataset.assembly.prompter.text(20, dataset.rows.item[20], shown)
    item, user = (dataset.field2id_token[f][ids[20]] for f, ids in (("item_id", dataset.rows.item), ("user_id", dataset.rows.user)))
    lines = text.split("\n")
    assert lines[:2] == [f"user id: {user}", "Will the user like the last item? Answer Yes or No."]
    assert lines[-1] == f"item id: {item}:" and re.fullmatch(r"item id: \d: (Yes|No), \d stars", lines[-2])


def test_the_folder_on_the_command_line(tmp_path, monkeypatch):
    write_atomic_files(tmp_path / "data", "plain", plain_rows())
    arguments = [
        "--model=FM",
        "--dataset=data/plain",
        "--load_col=None",
        "--threshold={'rating': 4}",
        "--epochs=1",
        "--show_progress=False",
        "--metrics=['AUC']",
        "--valid_metric=AUC",
    ]
    result = command_line.main(arguments)
    own = {**GENERIC, "data_path": "data", "load_col": None, "metrics": ["AUC"], "valid_metric": "AUC"}
    assert result == run_recbole_rella("FM", "plain", config_dict={**own, "train_batch_size": 2048})
    # Side by side, whose runs are given the name and where it lies.
    config = make_config("ReLLa", "./data/plain", config_dict=GENERIC)
    assert config.given_config_dict["data_path"] == str(tmp_path / "data")


def test_files_named_otherwise_than_their_folder(tmp_path):
    write_atomic_files(tmp_path / "data", "plain", plain_rows())
    (tmp_path / "data" / "plain").rename(tmp_path / "data" / "mine")
    dataset = RowDataset(make_config("ReLLa", "data/mine", config_dict=GENERIC))
    assert len(dataset.rows) == 80 and dataset.dataset_name == "mine"
    dataset = RowDataset(make_config("ReLLa", "mine", config_dict={**GENERIC, "data_path": "data"}))
    assert len(dataset.rows) == 80


def test_paths_without_atomic_files(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"dataset: expected the name of a data set in data_path, or a folder of RecBole's atomic files \(<name>.inter.*"
        "found './no/where': no such folder",
    ):
        make_config("ReLLa", "./no/where", config_dict=GENERIC)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "ratings.csv").write_text("")
    with pytest.raises(ConfigError, match=r"found './odd': \['ratings.csv'\]"):
        make_config("ReLLa", "./odd", config_dict=GENERIC)
    write_atomic_files(tmp_path / "data", "ml-100k", plain_rows())
    with pytest.raises(ConfigError, match="RecBole takes this name for the data that it bundles: rename it"):
        make_config("ReLLa", "data/ml-100k", config_dict=GENERIC)


def test_a_folder_with_several_data_sets(tmp_path):
    write_atomic_files(tmp_path / "data", "plain", plain_rows())
    folder = tmp_path / "data" / "plain"
    (folder / "plain.inter").rename(folder / "one.inter")
    (folder / "two.inter").write_text((folder / "one.inter").read_text())
    with pytest.raises(DatasetError, match=r"expected RecBole's atomic files \(plain.inter, .*found \['one.inter', 'two.inter'\]"):
        RowDataset(make_config("ReLLa", "plain", config_dict={**GENERIC, "data_path": "data"}))


@pytest.mark.parametrize("name", ["ml-1m", "book-crossing", "ml-25m", "ml-latest-small"])
def test_a_data_set_that_is_not_there_tells_how_to_convert(name, monkeypatch):
    def no_network(*_):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(url.ur, "urlopen", no_network)
    message = rf"expected RecBole's atomic files \({name}.inter, .*RecBole's download failed .*--dataset={name} --convert=<folder"
    for _ in range(2):  # nothing is left behind that would be taken for the data set
        with pytest.raises(DatasetError, match=message):
            create_dataset(make_config("ReLLa", name))
    assert not list(Path().glob("dataset/*"))


def test_recboles_download_is_used_where_it_works(monkeypatch, tmp_path):
    from recbole.data.dataset import Dataset

    def download(self):
        write_atomic_files(tmp_path / "dataset", "ml-1m", plain_rows())
        raise ValueError("Default process group has not been initialized")  # as RecBole's does, in a single process

    monkeypatch.setattr(Dataset, "_download", download)
    settings = {**GENERIC, "category_field": None, "expected_counts": {}}
    assert len(RowDataset(make_config("ReLLa", "ml-1m", config_dict=settings)).rows) == 80


def test_several_processes_do_not_download(monkeypatch):
    config = make_config("ReLLa", "ml-1m")
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(DatasetError, match="found no such folder, which several processes do not download: start one alone"):
        create_dataset(config)


def test_an_unknown_name(tmp_path):
    with pytest.raises(DatasetError, match="found no such folder, and RecBole's download failed .ValueError: Neither .*"):
        create_dataset(make_config("ReLLa", "nothing-of-that-name", config_dict=GENERIC))


def test_half_a_download_is_removed(monkeypatch, tmp_path):
    """A full disk while files are unpacked: the next run must not take what is there for the data set."""
    from recbole.data.dataset import Dataset

    def download(self):
        write_atomic_files(tmp_path / "dataset", "ml-1m", plain_rows())
        raise OSError("No space left on device")

    monkeypatch.setattr(Dataset, "_download", download)
    with pytest.raises(DatasetError, match="RecBole's download failed .OSError: No space left on device"):
        RowDataset(make_config("ReLLa", "ml-1m"))
    assert not (tmp_path / "dataset" / "ml-1m").exists()


def test_recbole_reads_its_own_data_sets_as_before(tmp_path):
    """What our data sets are given is given for as long as they load, and to them alone."""
    import recbole.data.dataset.dataset as recbole_dataset

    write_atomic_files(tmp_path / "data", "plain", plain_rows())
    config = make_config("ReLLa", "data/plain", config_dict=GENERIC)
    RowDataset(config)
    assert recbole_dataset.pd is pd and "open" not in vars(recbole_dataset)
    (tmp_path / "data" / "plain" / "plain.inter").write_text("user_id:token\titem_id:token\trating:float_seq\nu\ti\tx\n")
    with pytest.raises(DatasetError):
        RowDataset(config)
    assert recbole_dataset.pd is pd and "open" not in vars(recbole_dataset)
