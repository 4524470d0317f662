"""ReLLaX in one command: a conventional model, ReLLa, and ReLLaX over both; what is done is kept."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recbole_rella import command_line, run_recbole_rella
from recbole_rella.data.crm import CrmError
from recbole_rella.experiments.side_by_side import run_side_by_side
from recbole_rella.experiments.stages import StageError, run_stages
from recbole_rella.files import write_yaml
from recbole_rella.keys import ConfigError
from recbole_rella.run_folder import RunError, read_run


def settings(tiny, llm):
    return {**tiny, "llm": llm, "checkpoint_dir": "runs", "train_shots": 40, "learning_rate": 0.02, "embedding_size": 6}


@pytest.mark.slow
def test_three_stages_in_one_command(movies, llms, in_this_process, monkeypatch):
    name, tiny = movies
    write_yaml("own.yaml", {**settings(tiny, llms("qwen2")), "SIM.epochs": 1, "SIM.embedding_size": 4})
    command = ["--config_files=own.yaml properties/variant/ReLLaX.yaml", f"--dataset={name}"]
    Path("properties").symlink_to(Path(__file__).parents[2] / "properties")
    monkeypatch.setattr("sys.argv", ["run_recbole_rella.py", *command])
    metrics = command_line.main(command)
    folders = {path.parent.name.split("-")[0]: path.parent for path in Path("runs").glob("*/*/metrics.json")}
    assert sorted(folders) == ["ReLLa", "ReLLaX", "SIM"] and 0 <= metrics["test"]["auc"] <= 1
    second, third = read_run(folders["ReLLa"]), read_run(folders["ReLLaX"])
    assert Path(third.given["crm"]) == folders["SIM"].resolve() and Path(third.given["adapter_from"]) == folders["ReLLa"].resolve()
    # What the file of the variant says holds for the last stage alone.
    assert (second.given["learning_rate"], third.given["learning_rate"]) == (0.02, 0.0003)
    assert not second.given["spa"] and third.given["spa"]
    ours, theirs = (load_file(run.folder / "adapter/adapter_model.safetensors") for run in (third, second))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    # Again, and side by side: what was done is kept.
    lines = []
    again = run_stages(None, name, ["own.yaml", "properties/variant/ReLLaX.yaml"], report=lines.append)
    assert again == metrics and sum("done before" in line for line in lines) == 3
    table, *_ = run_side_by_side(["SIM", "ReLLa", "ReLLaX"], name, ["own.yaml"], report=lines.append)
    assert table["test AUC"].notna().all() and sum(": running" in line for line in lines) == 0


@pytest.mark.slow
def test_a_stage_has_no_settings_that_were_chosen_for_rella_alone(movies, llms, in_this_process, monkeypatch, tmp_path):
    """Another LLM, and its adapters would not fit. SIM's chosen settings are its own."""
    name, tiny = movies
    write_yaml(tmp_path / "ReLLa.yaml", {"llm": llms("llama"), "mini_dropout": 0.5})
    write_yaml(tmp_path / "SIM.yaml", {"embedding_size": 3})
    monkeypatch.setattr("recbole_rella.experiments.plan.tuned_file", lambda label, _: tmp_path / f"{label}.yaml")
    own = {**tiny, "checkpoint_dir": "runs", "tuned": True, "SIM.epochs": 1}
    table, *_ = run_side_by_side(["ReLLaX"], name, None, own)
    assert table["test AUC"].notna().all(), table.to_dict()
    found = {path.parent.name.split("-")[0]: read_run(path.parent).given for path in Path("runs").glob("*/*/metrics.json")}
    assert found["ReLLa"]["llm"] == found["ReLLaX"]["llm"] == "mini" and found["ReLLa"]["mini_dropout"] != 0.5
    assert found["SIM"]["embedding_size"] == 3
    # One that the variant itself asks for, they share.
    assert found["ReLLa"]["mini_num_layers"] == found["ReLLaX"]["mini_num_layers"] == 2 != tiny["mini_num_layers"]


def test_a_stage_that_fails_is_told(movies, llms, in_this_process):
    name, tiny = movies
    own = {**settings(tiny, llms("qwen2")), "spa": True, "crm": "LR"}
    with pytest.raises(StageError, match=r"ReLLa failed: CrmError: crm: expected .* found one of LR"):
        run_stages("ReLLa", name, None, own)
    metrics = json.loads(next(Path("runs").glob("*/LR-*/metrics.json")).read_text())
    assert metrics["rows"]["train"] == 270  # the whole training split, whatever train_shots says


def test_what_is_trained_first_does_not_search_by_itself(movies, llms, in_this_process):
    """SIM searches by the same encoder as ReLLa, which is made of SIM; and shows no prompts, whose sizes may be any."""
    name, tiny = movies
    own = {**settings(tiny, llms("qwen2")), "spa": True, "spa_tokens": ["row"], "crm": "SIM", "SIM.epochs": 1}
    mix = {"retrieval_encoder": "mix", "retrieval_mix_encoder": "tfidf", "SIM.sim_search": "semantic"}
    metrics = run_stages("ReLLa", name, None, {**own, **mix, "history_size": 1, "history_recent_size": 1, "eval_history": "both"})
    folders = {path.parent.name.split("-")[0]: read_run(path.parent).given for path in Path("runs").glob("*/*/metrics.json")}
    assert folders["SIM"].get("crm") is None and Path(folders["ReLLa"]["crm"]).name.startswith("SIM-")
    assert 0 <= metrics["test"]["auc"] <= 1


def test_what_has_no_representations_of_rows_is_refused_before_it_is_trained(movies, llms, in_this_process):
    name, tiny = movies
    own = {**settings(tiny, llms("qwen2")), "spa": True, "spa_tokens": ["row"], "crm": "FM"}
    with pytest.raises(CrmError, match=r"representations of rows \(row_vectors\).* found FM, which has none"):
        run_stages("ReLLa", name, None, own)
    assert not list(Path("runs").glob("*/FM-*"))


@pytest.mark.parametrize("with_others", [False, True])
def test_one_file_may_say_all(with_others, movies, monkeypatch):
    """Which model, which rows, and what is trained first: what it says of rows is for all, of the model for that alone."""
    from recbole_rella.experiments import side_by_side

    name, tiny = movies
    found = {}

    def run_all(experiment, runs, report):
        found.update(base=experiment.base, run=runs[0])
        raise StageError("seen")

    monkeypatch.setattr(side_by_side, "run_all", run_all)
    of_rows = {"seed": 7, "min_history": 6, "checkpoint_dir": "runs"}
    write_yaml("own.yaml", {**tiny, **of_rows, "model": "SIM", "crm": "FM", "epochs": 9})
    write_yaml("more.yaml", {"seed": 8})
    with pytest.raises(StageError, match="seen"):
        run_stages(None, name, ["own.yaml", *(["more.yaml"] if with_others else [])], {"min_history": 5})
    assert (
        found["run"].entry.model == "SIM"
        and found["run"].settings["epochs"] == 9
        and "epochs" not in found["base"].given_config_dict
    )
    assert found["run"].seed == found["base"]["seed"] == (8 if with_others else 7) and found["base"]["min_history"] == 5
    with pytest.raises(StageError, match="seen"):
        run_stages("ReLLa", name, ["own.yaml"])
    assert found["run"].entry.model == "ReLLa" and found["base"]["min_history"] == 6
    write_yaml("own.yaml", {**tiny, "crm": "FM", "run_folder": "mine"})
    with pytest.raises(ConfigError, match="run_folder: expected none where several runs are made"):
        run_stages("ReLLa", name, ["own.yaml"])


def test_names_are_refused_where_nothing_is_trained_first(movies, llms):
    name, tiny = movies
    with pytest.raises(CrmError, match="found 'FM'. A model of that name is trained first"):
        run_recbole_rella("ReLLa", name, config_dict={**tiny, "llm": llms("qwen2"), "spa": True, "crm": "FM"})
    given = {**tiny, "llm": llms("qwen2"), "spa": True, "spa_tokens": ["history"], "history_fields": ["default"]}
    with pytest.raises(RunError, match="adapter_from: expected the folder of a finished run, found ReLLa"):
        run_recbole_rella("ReLLa", name, config_dict={**given, "adapter_from": "ReLLa"})
