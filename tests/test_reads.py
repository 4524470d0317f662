"""What models read: said by the table of a comparison (law 13), and beside a run of ReLLa."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import written_predictions
from sklearn.metrics import roc_auc_score

from recbole_rella import beside, run_recbole_rella
from recbole_rella.experiments.side_by_side import run_side_by_side
from recbole_rella.experiments.sweep import run_sweep
from recbole_rella.keys import ConfigError
from recbole_rella.metrics import row_metrics
from recbole_rella.quick_start import load_data, make_config, objective_function
from recbole_rella.reads import words_read
from recbole_rella.rows.split import Split

SMALL = {"tree_rounds": 12, "tree_leaves": 4}
NUMBERS_IN_A_LINE = "{{ profile }}\n{% for b in behaviours %}{{ b.text }}\n{% endfor %}{{ history.user_mean }} {{ question }}"


@pytest.mark.slow
def test_a_table_says_who_read_what_and_that_it_was_the_same_past(movies, in_this_process):
    name, tiny = movies
    models = ["FM", "FM+history", "Tree", "ReLLa"]
    own = {**tiny, **SMALL, "with_bias": True, "embedding_size": 4, "mini_epochs": 0, "train_shots": 16, "epochs": 0}
    own |= {"FM.epochs": 1, "FM+history.embedding_size": 8}
    lines = []
    table, runs, folder = run_side_by_side(models, name, None, own, output_folder="tables", report=lines.append)
    expected = {
        "FM": "ids, features",
        "FM+history": "ids, features, history features",
        "Tree": "history features",
        "ReLLa": "past ratings, text",
        "Bias": "past ratings",
    }
    assert dict(zip(table["model"], table["reads"])) == dict(zip(runs["model"], runs["reads"])) == expected
    assert table["test AUC"].notna().all() and not set(runs["note"]) - {"", "no training", "epochs capped at 1, the last was best"}
    for file in ("table.csv", "runs.csv"):
        assert dict(zip(*(pd.read_csv(folder / file)[column] for column in ("model", "reads")))) == expected
    page, tex = ((folder / f"table.{kind}").read_text() for kind in ("md", "tex"))
    assert "| reads " in page and all(words in page and words in tex for words in expected.values())

    # The same rows' past for all: those that are told of it, and those that are not.
    (experiment,) = Path("saved").iterdir()
    records = [json.loads(path.read_text()) for path in experiment.glob("*/metrics.json")]
    assert len({record["row_ids"]["past"] for record in records}) == 1 and len(records) == len(expected)
    assert len({record["shots"] for record in records if record["model"] != "ReLLa"}) == 1
    assert not any("beside" in record for record in records)
    widths = {path.parent.name.split("-2020")[0]: json.loads(path.read_text()) for path in experiment.glob("FM*/metrics.json")}
    assert widths["FM-history"]["parameters"]["all"] > 2 * widths["FM"]["parameters"]["all"]

    # Another past is not taken for this one.
    record = experiment / runs.loc[runs["model"] == "Tree", "folder"].item() / "metrics.json"
    changed = json.loads(record.read_text())
    changed["row_ids"]["past"] = "0"
    record.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="Expected the rows of .* in every run, found others in .*Tree"):
        again = {key: value for key, value in own.items() if "." not in key}
        run_side_by_side(["Tree"], name, None, again, report=lines.append)


def on_one_split(model, movies, **more):
    """The configuration of a built-in model on the rows of a split."""
    name, tiny = movies
    dataset, _ = load_data(make_config("Bias", name, config_dict=tiny))
    split = [np.flatnonzero(dataset.rows.split == code) for code in range(3)]
    Split(*split, dataset.identity(), dataset.rows.split).save("split.npz")
    run = {key: tiny[key] for key in ("threshold", "data_path", "gpu_id", "use_gpu")} | {"load_col": None}
    run |= {"split_file": str(Path("split.npz").resolve()), "eval_args": dataset.config["eval_args"], "train_neg_sample_args": None}
    return make_config(model, name, config_dict={**run, **more})


IDS = {"load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]}}


@pytest.mark.parametrize(
    "model, more, expected",
    [
        ("FM", {"history_fields": ["user_mean", "mean_embedding"]}, "ids, features, history features, past items, past ratings"),
        ("FM", {"history_fields": ["mean_embedding"], **IDS}, "ids, past items, past ratings"),
        ("FM", {"history_fields": ["item_mean"], "history_buckets": 0, **IDS}, "ids, history features"),
        ("DCNV2", IDS, "ids"),
        ("DIN", {}, "ids, features, past items"),
        ("DIN", {"load_col": {**IDS["load_col"], "item": ["item_id"], "user": ["user_id"]}}, "ids, past items"),
    ],
)
def test_words_follow_from_the_class_and_its_settings(model, more, expected, movies):
    config = on_one_split(model, movies, **more)
    _, (train, _, _) = load_data(config)
    assert ", ".join(words_read(config, train._dataset)) == expected


def test_a_template_may_tell_numbers(movies):
    name, tiny = movies
    Path("numbers.jinja").write_text(NUMBERS_IN_A_LINE)
    config = make_config("ReLLa", name, config_dict={**tiny, "prompt_template": "numbers.jinja", "mini_epochs": 0})
    _, (train, _, _) = load_data(config)
    assert words_read(config, train._dataset) == ["history features", "past ratings", "text"]


@pytest.mark.parametrize(
    "more, expected",
    [
        ({}, ["ids", "features", "past items", "past ratings"]),
        ({"sim_read_ratings": False}, ["ids", "features", "past items"]),
        ({"history_fields": ["item_mean"]}, ["ids", "features", "history features", "past items", "past ratings"]),
    ],
)
def test_sim_reads_past_ratings_where_it_is_told_to(more, expected, movies):
    name, tiny = movies
    config = make_config("SIM", name, config_dict={**tiny, **more})
    _, (train, _, _) = load_data(config)
    assert words_read(config, train._dataset) == expected


def test_past_ratings_do_not_reach_din(movies):
    """What the table says of it. RecBole gives it the labels of the past, which it has from the ratings."""
    config = on_one_split("DIN", movies, metrics=["AUC"])
    _, (train, _, _) = load_data(config)
    model = config.model_class(config, train._dataset).eval()
    batch = next(iter(train))
    before = model.predict(batch).detach()
    answers = [field for field in batch.interaction if field in ("label_list", "rating_list")]
    assert answers and all(batch[field].unique().numel() > 1 for field in answers)
    for field in answers:
        batch.interaction[field] = 1 - batch[field]
    np.testing.assert_array_equal(model.predict(batch).detach(), before)
    batch.interaction["item_id_list"] = batch["item_id_list"].flip(1)
    assert not np.array_equal(model.predict(batch).detach(), before)


def test_what_stands_beside_a_run_of_rella(movies, caplog):
    name, tiny = movies
    caplog.set_level("INFO")
    alone = run_recbole_rella("ReLLa", name, config_dict={**tiny, "run_folder": "alone"})
    assert "Tree (on" not in caplog.text and "beside" not in json.loads(Path("alone/metrics.json").read_text())
    assert re.search(r"\| ReLLa +\| 0\.\d{4} ", caplog.text) and "--explain=" in caplog.text
    caplog.clear()
    result = run_recbole_rella("ReLLa", name, config_dict={**tiny, **SMALL, "beside": ["Bias", "Tree"]})
    # ReLLa is as it was.
    assert result == alone
    (folder,) = Path("saved").glob("ReLLa-*")
    assert (folder / "test_predictions.csv").read_text() == Path("alone/test_predictions.csv").read_text()
    found = json.loads((folder / "metrics.json").read_text())["beside"]
    assert list(found) == ["Bias", "Tree"] and all(one["train_rows"] == 270 and one["seconds"] < 10 for one in found.values())
    for label, one in zip((r"Bias \(item mean plus running user mean\)", r"Tree \(on history_fields\)"), found.values()):
        assert re.search(rf"^\| {label} +\| {one['auc']:.4f} +\| {one['logloss']:.4f} ", caplog.text, re.M)
    assert caplog.text.index("test result") < caplog.text.index("on the same test rows") < caplog.text.index("next:")
    assert "np.float64" not in caplog.text
    # Each is what a run of it reaches.
    for model in ("Bias", "Tree"):
        other = {**tiny, **SMALL, "run_folder": model, "metric_decimal_place": 9}
        run_recbole_rella(model, name, config_dict=other)
        exact = json.loads(Path(model, "metrics.json").read_text())["test_exact"]
        # A run's scores are float32.
        assert {key: found[model][key] for key in exact} == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(
    ("program", "python", "called"),
    [
        ("run_recbole_rella.py", "/usr/bin/python3", "python run_recbole_rella.py"),
        ("/elsewhere/run_recbole_rella.py", "here/.venv/bin/python", ".venv/bin/python run_recbole_rella.py"),
        ("here/.venv/bin/recbole-rella", "here/.venv/bin/python", ".venv/bin/recbole-rella"),
        ("/usr/bin/recbole-rella", "/usr/bin/python3", "recbole-rella"),
        # A run of a comparison, a user's script and a notebook are no commands that could be given.
        ("/site-packages/recbole_rella/experiments/child.py", "here/.venv/bin/python", ".venv/bin/recbole-rella"),
        ("own_script.py", "/usr/bin/python3", "recbole-rella"),
        ("/usr/lib/ipykernel_launcher.py", "/usr/bin/python3", "recbole-rella"),
    ],
)
def test_a_run_ends_with_commands_that_can_be_given(program, python, called, monkeypatch):
    here = Path.cwd()
    program, python = (path.replace("here", str(here)) if path.startswith("here") else path for path in (program, python))
    monkeypatch.setattr("sys.argv", [program, "--model=ReLLa"])
    monkeypatch.setattr("sys.executable", python)
    one = {"auc": 0.5, "logloss": 0.7, "accuracy": 0.5, "uauc": 0.5, "seconds": 1}
    lines = beside.ending({"ReLLa": one}, Path("saved/run"), 7).split("next:\n")[1].splitlines()
    assert lines[0].startswith(f"{called} --explain=7 --run_folder=saved/run ") and all(line.startswith(called) for line in lines)


def test_nothing_stands_beside_trials_and_sweeps(movies, in_this_process, monkeypatch):
    monkeypatch.setattr(beside, "rivals_beside", lambda *_: pytest.fail("something was fitted beside"))
    name, tiny = movies
    own = {**tiny, "beside": ["Bias"], "with_bias": True, "mini_epochs": 0, "epochs": 0}
    objective_function({**own, "model": "ReLLa", "dataset": name})
    curves, _ = run_sweep("history_size:2", ["ReLLa"], name, None, {**own, "eval_history": "recent"}, report=lambda _: None)
    assert curves["model"].tolist() == ["ReLLa"]


def test_beside_is_checked(movies):
    name, tiny = movies
    with pytest.raises(ConfigError, match=r"beside: expected a list of different names among Bias, Tree, found \['FM'\]"):
        make_config("ReLLa", name, config_dict={**tiny, "beside": ["FM"]})


def test_one_label_alone_teaches_nothing(movies):
    name, tiny = movies
    config = make_config("ReLLa", name, config_dict={**tiny, "beside": ["Bias"], "mini_epochs": 0})
    dataset, (_, valid, test) = load_data(config)
    dataset.rows.label[:] = 1
    parts = [np.unique(loader._dataset.inter_feat["row_id"].numpy()) for loader in (valid, test)]
    assert beside.rivals_beside(config, dataset, *parts) == {}


def test_side_by_side_scores_are_those_written(movies):
    """Of a model that is fitted at once, as of every other."""
    name, tiny = movies
    result = run_recbole_rella("Bias", name, config_dict={**tiny, "metrics": ["AUC", "UAUC"]})
    table = written_predictions(result)
    found = row_metrics(table["label"].to_numpy(), table["score"].to_numpy(), table["user_id"].to_numpy())
    assert result["test_result"]["uauc"] == pytest.approx(found["uauc"], abs=1e-4)
    assert result["test_result"]["auc"] == pytest.approx(roc_auc_score(table["label"], table["score"]), abs=1e-4)
