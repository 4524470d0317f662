"""The ways in: RecBole's look-ups, the Python function, the script, RecBole's own quick_start, the tuner's objective."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers import write_atomic_files, written_predictions
from recbole.config import Config
from recbole.data import create_dataset
from recbole.utils import get_model, get_trainer

from recbole_rella import load_data_and_model, objective_function, run_recbole_rella
from recbole_rella.data.dataset import ReLLaDataset
from recbole_rella.model.context_aware_recommender.rella import ReLLa
from recbole_rella.quick_start import load_data, make_config
from recbole_rella.rows.fields import KIND
from recbole_rella.run_folder import RunError
from recbole_rella.trainer import ReLLaTrainer

ROOT = Path(__file__).parents[1]


def script(*arguments):
    return subprocess.run([sys.executable, str(ROOT / "run_recbole_rella.py"), *arguments], capture_output=True, text=True)


def test_recbole_finds_rella_by_name(movies):
    name, tiny = movies
    assert get_model("ReLLa") is ReLLa
    config = Config(model="ReLLa", dataset=name, config_dict=tiny)
    assert get_trainer(config["MODEL_TYPE"], "ReLLa") is ReLLaTrainer
    assert type(create_dataset(config)) is ReLLaDataset
    assert config["lora_r"] == 8 and config["history_size"] == 4 and config["metrics"] == ["AUC", "LogLoss", "Accuracy", "UAUC"]
    assert Config(model=ReLLa, dataset="ml-100k")["prompt_noun"] == "movie"
    assert Config(model="ReLLa", dataset="ml-100k")["eval_args"]["order"] == "TO"


def test_other_models_keep_recboles_defaults():
    config = Config(model="DCNV2", dataset="ml-100k")
    assert config["lora_r"] is None and config["eval_args"]["order"] == "RO" and config["transform"] is None
    # And any key, as RecBole has it.
    assert Config(model="DCNV2", dataset="ml-100k", config_dict={"history_sise": 1})["history_sise"] == 1


def test_priority_is_recboles(movies, monkeypatch, tmp_path):
    name, tiny = movies
    (tmp_path / "own.yaml").write_text("history_size: 6\nlora_r: 3\nlora_alpha: 5\n")
    monkeypatch.setattr(sys, "argv", ["run", "--lora_alpha=7", "--prompt_noun=film"])
    settings = {key: value for key, value in tiny.items() if key not in ("history_size", "prompt_noun")}
    config = Config("ReLLa", name, config_file_list=["own.yaml"], config_dict={**settings, "lora_r": 4})
    assert [config[k] for k in ("history_size", "lora_r", "lora_alpha", "prompt_noun")] == [6, 4, 7, "film"]


def test_a_users_own_transform_still_works(monkeypatch):
    import recbole.data.transform as transform

    class Own:
        def __init__(self, config):
            pass

    from recbole_rella.register import _transform_by_model

    monkeypatch.setattr(transform, "UserDefinedTransform", _transform_by_model(Own))
    config = Config(model="FM", dataset="ml-100k", config_dict={"transform": "user_defined"})
    assert type(transform.construct_transform(config)) is Own


def test_the_run_folder(movies):
    name, tiny = movies
    result = run_recbole_rella("ReLLa", name, config_dict=tiny)
    assert set(result) == {"best_valid_score", "valid_score_bigger", "best_valid_result", "test_result"}
    (run,) = Path("saved").glob("ReLLa-*")
    files = "adapter config.yaml identity.json llm metrics.json prompt resume.pt test_predictions.csv"
    assert sorted(p.name for p in run.iterdir()) == files.split()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test"] == result["test_result"] and metrics["seed"] == 2020
    assert metrics["parameters"]["trainable"] < metrics["parameters"]["all"]
    assert metrics["llm"]["identity"].endswith(", torch.float32, not quantized") and metrics["encoder"].startswith("tfidf, ")
    assert {"torch", "transformers", "peft", "recbole", "python"} <= set(metrics["versions"])
    predictions = pd.read_csv(run / "test_predictions.csv")
    assert list(predictions) == ["row_id", "user_id", "item_id", "timestamp", "label", "score"]
    assert len(predictions) == metrics["rows"]["test"]
    assert yaml.safe_load((run / "config.yaml").read_text())["history_size"] == 4


def test_loading_ignores_the_callers_command_line(trained_run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["notebook", "--history_size=1", "--model=FM"])
    config, model, dataset, train_data, valid_data, test_data = load_data_and_model(str(trained_run))
    assert config["history_size"] == 4 and not model.training and isinstance(dataset, ReLLaDataset)
    with pytest.raises(RunError, match="expected the folder of a run with a config.yaml"):
        load_data_and_model("saved")


def test_not_saved_leaves_nothing(movies):
    name, tiny = movies
    result = run_recbole_rella("ReLLa", name, config_dict=tiny, saved=False)
    assert not list(Path("saved").glob("ReLLa-*"))
    assert result["test_result"] == run_recbole_rella("ReLLa", name, config_dict=tiny)["test_result"]


def test_the_objective_function_of_the_tuner(movies):
    name, tiny = movies
    result = objective_function({**tiny, "model": "ReLLa", "dataset": name, "lora_r": 2}, saved=False)
    assert result["model"] == "ReLLa" and result["valid_score_bigger"]
    assert result["best_valid_score"] == result["best_valid_result"]["auc"]


@pytest.mark.slow
def test_the_script_runs_rella_and_resumes(movies):
    name, tiny = movies
    Path("own.yaml").write_text(yaml.safe_dump(tiny))
    done = script("--model=ReLLa", f"--dataset={name}", "--config_files=own.yaml", "--history_size=3")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "test result" in done.stderr and "'auc'" in done.stderr
    (run,) = Path("saved").glob("ReLLa-*")
    assert yaml.safe_load((run / "config.yaml").read_text())["history_size"] == 3
    # The configuration fills pages: the log file has it. The screen ends with a table, and what to do next.
    (log,) = Path("log").rglob("*.log")
    assert "retrieval_metric" in log.read_text() and "retrieval_metric" not in done.stderr + done.stdout
    command = (
        f"python run_recbole_rella.py --explain={pd.read_csv(run / 'test_predictions.csv')['row_id'].min()} --run_folder={run}"
    )
    assert "np.float64" not in done.stderr and "| ReLLa " in done.stderr and command in done.stderr
    before = (run / "test_predictions.csv").read_text()
    done = script(f"--resume_from={run}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (run / "test_predictions.csv").read_text() == before


@pytest.mark.slow
def test_the_script_runs_a_built_in_model(movies):
    name, tiny = movies
    fast = {"data_path": tiny["data_path"], "threshold": {"rating": 4}, "epochs": 2, "load_col": None}
    Path("own.yaml").write_text(yaml.safe_dump(fast))
    done = script("--model=DCNV2", f"--dataset={name}", "--config_files=own.yaml", "--show_progress=False")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "test result" in done.stderr and "'auc'" in done.stderr


@pytest.mark.slow
def test_the_script_prints_configuration_errors_without_a_traceback(movies):
    done = script("--model=ReLLa", "--dataset=ml-100k", "--history_sise=3")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "history_sise: there is no such key; the nearest valid one is history_size" in done.stderr


# Of one run of ReLLa: ReLLaX is three, which tests/experiments/test_stages.py makes.
VARIANTS = [
    path
    for path in sorted((ROOT / "properties" / "variant").glob("*.yaml"))
    if not {"model", "adapter_from"} & set(yaml.safe_load(path.read_text()))
]


@pytest.mark.parametrize("row", VARIANTS, ids=lambda p: p.stem)
def test_every_variant_is_configuration_alone(row, movies):
    """What a variant says of shots, samples, prompts and tuning is what its run does."""
    name, tiny = movies
    own = yaml.safe_load(row.read_text())
    settings = {**tiny, **own, "mini_epochs": 0}
    if "train_shots" in own:
        settings["train_shots"] = own["train_shots"] // 128
    written_predictions(run_recbole_rella("ReLLa", name, config_dict=settings))
    (path,) = Path("saved").glob("ReLLa-*/metrics.json")
    metrics = json.loads(path.read_text())
    assert metrics["shots"] == settings.get("train_shots", 270) and metrics["shown"]["history"] == own["eval_history"]
    assert (metrics["best_epoch"] is None) == (own.get("epochs") == 0)
    _, (train_data, *_) = load_data(make_config("ReLLa", name, config_dict=settings))
    kinds = train_data._dataset.inter_feat[KIND].numpy()
    of_a_shot = {"recent": [0], "retrieved": [1], "both": [2], "mixed": [0, 1]}
    named = own["train_history"]
    of_a_shot = [of_a_shot[kind][0] for kind in named] if isinstance(named, list) else of_a_shot[named]
    assert sorted(kinds) == sorted(of_a_shot * metrics["shots"])


def test_generic_template_without_a_data_set_yaml(tmp_path):
    rows = [{"user_id": str(p % 3), "item_id": str(p % 7), "rating": 1 + p % 5, "timestamp": p} for p in range(80)]
    name, tiny = write_atomic_files(tmp_path / "data", "plain", rows)
    own = {key: value for key, value in tiny.items() if not key.startswith("prompt_") and key != "retrieval_sentence"}
    assert len(written_predictions(run_recbole_rella("ReLLa", name, config_dict=own))) == 7


RUN_RECBOLE = """
import json, sys
import recbole_rella
from recbole_rella.compat import ray_environment
ray_environment()
from recbole.quick_start import run_recbole
for model, settings in json.loads(sys.argv[2]).items():
    result = run_recbole(model, sys.argv[1], config_dict=settings)
    print("found:" + json.dumps({name: float(value) for name, value in result["test_result"].items()}))
"""


@pytest.mark.slow
def test_recboles_own_run_is_ours(movies):
    """It needs ray, and counts operations: of a built-in model, not of an LLM."""
    pytest.importorskip("ray")
    name, tiny = movies
    ids = {"load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]}, "epochs": 1, "metrics": ["AUC", "LogLoss"]}
    settings = {"ReLLa": tiny, "FM": {key: tiny[key] for key in ("data_path", "threshold", "eval_args") if key in tiny} | ids}
    command = [sys.executable, "-c", RUN_RECBOLE, name, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line.removeprefix("found:")) for line in done.stdout.splitlines() if line.startswith("found:")]
    for (model, own), theirs in zip(settings.items(), found, strict=True):
        ours = run_recbole_rella(model, name, config_dict=own)["test_result"]
        assert theirs == {metric: float(value) for metric, value in ours.items()}
    flops = re.findall(r"FLOPs.*?: ([\d.]+|nan)", done.stderr)
    assert flops[0] == "nan" and float(flops[1]) > 0
