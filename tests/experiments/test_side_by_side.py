"""Several models on the same rows; the interrupted command runs real processes through the script."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import TINY
from originals import ORIGINALS
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from recbole_rella import run_recbole_rella
from recbole_rella.atomic.convert import convert
from recbole_rella.experiments.side_by_side import make_experiment, run_side_by_side
from recbole_rella.keys import ConfigError
from recbole_rella.rows.split import Split

ROOT = Path(__file__).parents[2]

PLUGIN = """
import torch
from recbole.model.context_aware_recommender.fm import FM
class OwnFM(FM):
    pass
class Broken(FM):
    def calculate_loss(self, interaction):
        raise RuntimeError("CUDA out of memory, or so")
class Logits(FM):
    def predict(self, interaction):
        return self.forward(interaction) * 9 - 20
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "own_plugin.py").write_text(PLUGIN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.slow
def test_a_data_set_without_times_and_with_drawn_rows(tmp_path, in_this_process):
    """Every model numbers the rows by the seed; the pool and the evaluated rows are drawn once, with the split."""
    convert("book-crossing", ORIGINALS["book-crossing"](tmp_path / "original"), tmp_path / "data", report=lambda _: None)
    keep = ("mini_", "train_batch", "show_", "gpu", "use_gpu", "epochs")
    own = {key: value for key, value in TINY.items() if key.startswith(keep)}
    own |= {
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": "runs",
        "retrieval_encoder": "tfidf",
        "history_size": 4,
        "mini_epochs": 0,
    }
    own |= {"targets_per_user": 6, "train_pool": 40, "eval_rows": 20, "train_shots": 12, "expected_counts": {}}
    own["eval_args"] = {"split": {"RS": [0.5, 0.25, 0.25]}, "order": "RO", "group_by": None, "mode": "labeled"}
    lines = []
    _, _, folder = run_side_by_side(
        ["ReLLa", "FM", "DIN"], str(tmp_path / "data" / "book-crossing"), None, own, report=lines.append
    )
    assert "40 training, 20 validation and 20 test rows, the same for every model" in lines[0]
    assert sum(": done, " in line for line in lines) == 4, lines  # Bias beside them
    pool = Split.load(folder / "split.npz").train
    own["train_shots_for"] = "all"
    run_side_by_side(["ReLLa", "FM"], "book-crossing", None, own, report=lines.append)
    shots = {json.loads(path.read_text())["row_ids"]["train"] for path in folder.glob("*/metrics.json")}
    # FM, DIN and Bias on the pool; ReLLa, and FM and Bias again, on the same 12 of it.
    assert len(shots) == 2 and len(pool) == 40


def test_side_by_side(movies, plugin, in_this_process):
    name, tiny = movies
    lines = []
    models = ["ReLLa", "DIN", "own_plugin.OwnFM", "own_plugin.Broken", "own_plugin.Logits"]
    own = {**tiny, "DIN.epochs": 2, "checkpoint_dir": "runs", "embedding_size": 8}
    table, runs, folder = run_side_by_side(models, name, None, own, output_folder="tables", report=lines.append)
    assert "270 training, 33 validation and 33 test rows, the same for every model" in lines[0]
    (experiment,) = Path("runs").iterdir()
    split = Split.load(experiment / "split.npz")

    notes = dict(zip(runs["model"], runs["note"]))
    assert notes["Broken"] == "RuntimeError: CUDA out of memory, or so"
    assert notes["Logits"].startswith("its scores are no probabilities")
    assert notes["DIN"].startswith("epochs capped at 2")
    for _, row in runs.iterrows():
        if row["model"] in ("Broken", "Logits"):
            assert np.isnan(row["test AUC"])
            continue
        predictions = pd.read_csv(experiment / row["folder"] / "test_predictions.csv")
        assert predictions["row_id"].tolist() == split.test.tolist()
        assert row["test AUC"] == pytest.approx(roc_auc_score(predictions["label"], predictions["score"]), abs=1e-6)
        assert row["LogLoss"] == pytest.approx(log_loss(predictions["label"], predictions["score"]), abs=1e-6)
        assert row["accuracy"] == accuracy_score(predictions["label"], predictions["score"] > 0.5)
        metrics = json.loads((experiment / row["folder"] / "metrics.json").read_text())
        assert metrics["rows"]["valid"] == 33 and metrics["row_ids"]["test"] and row["shots"] == 270
        assert row["trainable"] > 0 and row["ms a row"] > 0 and row["seconds to train"] > 0

    assert folder == Path("tables")
    assert sorted(p.name for p in folder.iterdir()) == [
        "p_values.csv",
        "report.html",
        "runs.csv",
        "table.csv",
        "table.md",
        "table.png",
        "table.tex",
    ]
    assert (folder / "table.png").read_bytes()[:4] == b"\x89PNG"
    page = (folder / "table.md").read_text()
    best = table.loc[table["test AUC"].idxmax()]
    assert f"**{best['test AUC']:.4f}**" in page and "CUDA out of memory, or so" in page
    tex = (folder / "table.tex").read_text()
    assert rf"\textbf{{{best['test AUC']:.4f}}}" in tex and tex.count(r"\\") == len(models) + 1
    saved = pd.read_csv(folder / "table.csv")
    np.testing.assert_allclose(saved["test AUC"], table["test AUC"])
    assert saved.loc[saved["model"] == best["model"], "p"].item() == 1

    # Again: only what failed is run again, and the table is the same.
    lines.clear()
    again, _, _ = run_side_by_side(models, name, None, own, output_folder="tables", report=lines.append)
    assert sum("done before" in line for line in lines) == 4 and sum("running" in line for line in lines) == 1
    pd.testing.assert_frame_equal(again, table)

    # A run of other rows is not taken for one of these.
    record = experiment / runs.loc[runs["model"] == "DIN", "folder"].item() / "metrics.json"
    changed = json.loads(record.read_text())
    changed["row_ids"]["train"] = "0"
    record.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="Expected the rows of .* in every run, found others in .*DIN"):
        run_side_by_side(["DIN"], name, None, own, report=lines.append)


def start(name, checkpoint_dir):
    command = [
        sys.executable,
        str(ROOT / "run_recbole_rella.py"),
        "--model=FM",
        f"--dataset={name}",
        "--config_files=own.yaml",
        "--seeds=1,2",
        f"--checkpoint_dir={checkpoint_dir}",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_and_ends_with_the_same_table(movies):
    name, tiny = movies
    Path("own.yaml").write_text(yaml.safe_dump(tiny))
    process = start(name, "broken")
    while len(list(Path("broken").glob("*/*/metrics.json"))) < 1 and process.poll() is None:
        time.sleep(0.1)
    while not list(Path("broken").glob("*/FM-2-*")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(Path("broken").glob("*/*/metrics.json")))
    assert done == 1 and not list(Path("broken").glob("*/table.csv"))
    # The run that was under way ends with its parent, as soon as it is through its imports.
    waited_until = time.monotonic() + 60
    while subprocess.run(["pgrep", "-f", "experiments.child broken/"], capture_output=True).returncode == 0:
        assert time.monotonic() < waited_until, "a run outlived the command that started it"
        time.sleep(0.5)

    process = start(name, "broken")
    text, _ = process.communicate()
    assert process.returncode == 0 and text.count("done before") >= done
    (experiment,) = Path("broken").iterdir()
    again = pd.read_csv(experiment / "runs.csv")
    # The same runs, uninterrupted and in this process.
    for seed, area, folder in zip((1, 2), again["test AUC"], again["folder"]):
        settings = yaml.safe_load((experiment / folder / "settings.yaml").read_text())
        whole = run_recbole_rella(config_dict={**settings, "run_folder": f"whole-{seed}"})
        assert settings["seed"] == seed and float(whole["test_result"]["auc"]) == pytest.approx(area, abs=1e-6)
    assert pd.read_csv(experiment / "table.csv")["seeds"].tolist() == [2]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("train_shots_for", "both", "train_shots_for: expected one of ReLLa, all, found 'both'"),
        ("history_sise", 3, "history_sise: there is no such key; the nearest valid one is history_size"),
        ("TALLRec.lora_s", 3, "lora_s: there is no such key; the nearest valid one is lora_r"),
        (
            "DINN.epochs",
            3,
            "DINN.epochs: expected the name of a compared model \\(Bias, FM, ReLLa, TALLRec\\) before the dot, found DINN",
        ),
        ("eval_args", {"mode": "uni10"}, "eval_args: expected the mode labeled"),
        ("train_neg_sample_args", {"distribution": "uniform", "sample_num": 1}, "train_neg_sample_args: expected none"),
    ],
)
def test_bad_settings_stop_before_anything_is_read(key, value, message, movies, monkeypatch):
    name, tiny = movies
    monkeypatch.setattr("recbole_rella.experiments.side_by_side.RowDataset", lambda *_: pytest.fail("data was read"))
    more = {"metrics": ["MRR"], "valid_metric": "MRR@10"} if key == "eval_args" else {}
    with pytest.raises(ConfigError, match=message):
        run_side_by_side(["FM", "ReLLa", "TALLRec"], name, None, {**tiny, **more, key: value})


def test_bad_seeds(movies):
    name, tiny = movies
    for seeds in ([1, 1], ["x"], []):
        with pytest.raises(ConfigError, match="seeds: expected different integers"):
            run_side_by_side(["FM"], name, None, tiny, seeds=seeds)


def test_the_split_is_made_once_for_all_seeds_and_again_for_other_data(movies):
    name, tiny = movies
    args = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": None, "mode": "labeled"}
    first = make_experiment([], name, None, {**tiny, "eval_args": args})
    again = make_experiment([], name, None, {**tiny, "eval_args": args})
    assert first.split_file == again.split_file and first.split.test.tolist() == again.split.test.tolist()
    other = make_experiment([], name, None, {**tiny, "eval_args": args, "seed": 5})
    assert other.split_file != first.split_file and other.split.test.tolist() != first.split.test.tolist()
    data = Path(tiny["data_path"]) / name / f"{name}.inter"
    data.write_text("\n".join(data.read_text().splitlines()[:-1]) + "\n")
    assert make_experiment([], name, None, {**tiny, "eval_args": args}).split_file != first.split_file
