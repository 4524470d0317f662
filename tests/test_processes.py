"""Several processes of one run: the rows, losses and scores of one process, whatever launcher starts them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers import write_crm
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from recbole_rella import command_line, processes, run_recbole_rella
from recbole_rella.trainer import ReLLaTrainer

# What a launcher starts: the command, with the loss of each step written down, and on demand a process that dies.
SCRIPT = """
import json, os, time, torch
torch.set_num_threads(1)
from recbole_rella import command_line, processes
from recbole_rella.trainer import ReLLaTrainer

losses, accumulate = [], ReLLaTrainer._accumulate
def keeping(self, interaction):
    if os.environ.get("DIES_AT") == str(len(losses)) and processes.rank() == 1:
        open("died", "w").write(str(time.time()))
        raise RuntimeError("a process that dies")
    losses.append(float(accumulate(self, interaction)))
    return torch.tensor(losses[-1], requires_grad=True)
ReLLaTrainer._accumulate = keeping
count = int(os.environ.get("WORLD_SIZE", 1))
command_line.run()
rank = int(os.environ.get("RANK", 0))
open(f"losses-{count}-{rank}.json", "w").write(json.dumps(losses))
"""


def start(launcher, settings, *arguments, **environment):
    """Run the script by a launcher in the working folder; returns the finished process."""
    Path("script.py").write_text(SCRIPT)
    Path("settings.yaml").write_text(yaml.safe_dump(settings))
    command = [*launcher, "script.py", "--config_files=settings.yaml", *arguments]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **environment}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=240)


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ACCELERATE = [
    "-m",
    "accelerate.commands.launch",
    "--use_fsdp",
    "--num_processes=2",
    "--num_machines=1",
    "--mixed_precision=no",
    "--dynamo_backend=no",
    "--main_process_port=0",
]


@pytest.fixture
def more():
    """Settings beyond those that all tests have."""
    return {}


@pytest.fixture
def settings(movies, llms, more):
    """A run of an ordinary LLM with at least ten steps, whose dropout is off: it differs between processes."""
    name, tiny = movies
    own = {"model": "ReLLa", "dataset": name, "llm": llms("llama"), "lora_dropout": 0.0, "learning_rate": 0.01, "epochs": 2}
    return {**tiny, **own, "train_batch_size": 40, "train_shots": 200, "eval_micro_tokens": 700, "metric_decimal_place": 12, **more}


@pytest.fixture
def one(settings, monkeypatch):
    """The same run in this process: its folder, the loss of each step."""
    losses, accumulate = [], ReLLaTrainer._accumulate

    def keeping(self, interaction):
        losses.append(accumulate(self, interaction).item())
        return torch.tensor(losses[-1], requires_grad=True)

    monkeypatch.setattr(ReLLaTrainer, "_accumulate", keeping)
    run_recbole_rella(config_dict={**settings, "run_folder": "one"})
    return Path("one"), losses


def equal_runs(one, other, losses, tolerance=1e-5):
    """The run of several processes trained and scored as that of one."""
    for rank in (0, 1):
        np.testing.assert_allclose(json.loads(Path(f"losses-2-{rank}.json").read_text()), losses, atol=tolerance)
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (one, other))
    assert first["row_ids"] == second["row_ids"] and first["best_epoch"] == second["best_epoch"]
    assert first["test_exact"]["auc"] == second["test_exact"]["auc"] and first["test"]["auc"] == second["test"]["auc"]
    ours, theirs = (pd.read_csv(folder / "test_predictions.csv") for folder in (one, other))
    assert ours["row_id"].tolist() == theirs["row_id"].tolist()
    np.testing.assert_allclose(ours["score"], theirs["score"], atol=tolerance)
    ours, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, other))
    assert max(float(tensor.abs().max()) for tensor in ours.values()) > 1e-3
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-4, rtol=1e-3)


NUMBERS = ["user_residual_10", "item_mean", "alike_residual", "tracked_residual", "same_class_mean"]
ROW_NUMBERS = {"spa": True, "spa_tokens": ["history"], "cflora": True, "cflora_input": "history", "history_fields": NUMBERS}


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, ROW_NUMBERS], ids=["adapters", "soft tokens and gates"])
def test_two_processes_train_and_score_as_one(more, settings, one):
    one, losses = one
    done = start(TORCHRUN, {**settings, "run_folder": "two"})
    assert done.returncode == 0, done.stderr[-9000:]
    assert len(losses) >= 10
    equal_runs(one, Path("two"), losses)
    # The first process alone writes.
    assert done.stderr.count("test result") == 1
    assert len(list(Path("log").rglob("*.log"))) == 2 and len(list(Path("log_tensorboard").iterdir())) == 2  # one a run
    # The same adapters give the same scores to the last digit, whoever computes them.
    before = Path("one/test_predictions.csv").read_text()
    done = start(TORCHRUN, {**settings, "resume_from": "one"})
    assert done.returncode == 0, done.stderr[-9000:]
    assert json.loads(Path("losses-2-0.json").read_text()) == []
    assert Path("one/test_predictions.csv").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, ROW_NUMBERS], ids=["adapters", "soft tokens and gates"])
def test_an_llm_divided_among_processes_gives_the_same(settings, one):
    """By accelerate launch, which says with --use_fsdp that it shall be divided."""
    one, losses = one
    done = start(ACCELERATE, {**settings, "run_folder": "two"})
    assert done.returncode == 0, done.stderr[-9000:]
    assert "divided among 2 processes" in done.stderr
    equal_runs(one, Path("two"), losses)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["whole", "divided"])
def test_passes_that_reach_nothing_trained_keep_processes_in_step(launcher, movies, settings):
    """Some prompts have no behaviours, and projectors of behaviours alone are trained."""
    settings = {**settings, "min_history": 0, "train_shots": 60}
    write_crm(movies[0], settings)
    run_recbole_rella(config_dict={**settings, "epochs": 1, "run_folder": "tuned"})
    own = {"spa": True, "spa_tokens": ["behaviours"], "crm": "crm", "adapter_from": "tuned", "train_micro_tokens": 100}
    run_recbole_rella(config_dict={**settings, **own, "run_folder": "one"})
    done = start(launcher, {**settings, **own, "run_folder": "two"})
    assert done.returncode == 0, done.stderr[-9000:]
    ours, theirs = (load_file(f"{run}/adapter/soft_tokens.safetensors") for run in ("one", "two"))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-4, rtol=1e-3)
    ours, theirs = (pd.read_csv(f"{run}/test_predictions.csv") for run in ("one", "two"))
    np.testing.assert_allclose(ours["score"], theirs["score"], atol=1e-5)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_which_then_goes_on(settings, one):
    settings = {**settings, "checkpoint_minutes": 0}
    done = start([], {**settings, "run_folder": "broken"}, "--nproc=2", DIES_AT="7")
    assert done.returncode != 0 and "a process that dies" in done.stderr
    assert time.time() - float(Path("died").read_text()) < 60
    state = torch.load("broken/resume.pt", weights_only=True)
    assert state["done"] >= 1 and not Path("broken/metrics.json").exists()
    done = start(TORCHRUN, {**settings, "resume_from": "broken"})
    assert done.returncode == 0, done.stderr[-9000:]
    folder, losses = one
    rest = len(json.loads(Path("losses-2-1.json").read_text()))
    assert 0 < rest < len(losses)
    equal_runs(folder, Path("broken"), losses[-rest:])


@given(st.lists(st.integers(1, 9999), max_size=40), st.integers(1, 7), st.booleans())
def test_every_pass_is_made_once_and_nobody_waits_long(sizes, count, in_step):
    shares = []
    for rank in range(count):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processes, "count", lambda: count)
            patch.setattr(processes, "rank", lambda rank=rank: rank)
            shares.append(processes.share(sizes, in_step))
    assert sorted(place for mine in shares for place, counts in mine if counts) == list(range(len(sizes)))
    if in_step:
        assert len({len(mine) for mine in shares}) == 1
    loads = [sum(sizes[place] for place, counts in mine if counts) for mine in shares]
    if sizes:  # nobody has more than its even part and one pass (Graham, 1969)
        assert max(loads) <= sum(sizes) / count + max(sizes)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model=ReLLa,FM"], "Expected one run of one model with several processes, found ReLLa,FM"),
        (["--model=TALLRec"], "found TALLRec"),
        (["--sweep=history_size:5"], "found --sweep"),
        (["--model=FM", "--dataset=ml-100k"], "model: expected ReLLa with several processes, found FM"),
    ],
)
def test_what_several_processes_do_not_do(arguments, message, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(ValueError, match=message):
        command_line.main(arguments)


def test_launchers_that_cannot_be_served(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    processes.start()  # of a cluster, not of a launcher
    assert processes.count() == 1
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(processes.ProcessError, match="expected at most one process a GPU, 1 here, found process 2"):
        processes.start()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(processes.ProcessError, match="expected FSDP .* found DeepSpeed"):
        processes.start()


def test_recboles_words_for_several_machines(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    monkeypatch.setattr(sys, "argv", ["run.py", "--model=ReLLa"])
    processes.launch(4, world_size=8, offset=4, ip="10.0.0.1", port=29400)
    assert started[0][1:] == [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=4",
        "--nnodes=2",
        "--node_rank=1",
        "--master_addr=10.0.0.1",
        "--master_port=29400",
        "--",
        "run.py",
        "--model=ReLLa",
    ]
    with pytest.raises(processes.ProcessError, match=r"expected multiples of nproc \(4\), found 6 and 0"):
        processes.launch(4, world_size=6)
