"""The README's commands, run as they stand but for overrides that make them small."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)
SCRIPT = ".venv/bin/python run_recbole_rella.py"
COMMANDS = [
    line.split(SCRIPT, 1)[1].strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines() if SCRIPT in line
]
SMALL = [
    "--mini_hidden_size=16", "--mini_num_layers=1", "--mini_num_heads=2", "--mini_epochs=0", "--mini_vocab_size=400",
    "--train_shots=16", "--epochs=1", "--show_progress=False", "--retrieval_pca_dim=16",
    "--eval_args={'split': {'RS': [0.98, 0.01, 0.01]}, 'order': 'TO', 'group_by': None, 'mode': 'labeled'}",
]  # fmt: skip


def run(arguments):
    command = [sys.executable, str(ROOT / "run_recbole_rella.py"), *shlex.split(arguments), *SMALL]
    return subprocess.run([part.replace("properties/", f"{ROOT}/properties/") for part in command], capture_output=True, text=True)


def test_the_first_two_blocks_are_the_two_commands():
    assert [kind for kind, _ in BLOCKS[:2]] == ["bash", "bash"]
    main, tests = (text.strip() for _, text in BLOCKS[:2])
    assert "\n" not in main and "\n" not in tests
    assert main.startswith("python3 -m venv .venv && ") and main.endswith(f"{SCRIPT} --model=ReLLa --dataset=ml-100k")
    assert tests.startswith("python3 -m venv .venv && ") and tests.endswith("-m pytest")


def test_every_command_of_the_script_is_tested_here():
    assert len(COMMANDS) == README.count("run_recbole_rella.py --") and len(COMMANDS) >= 5


@pytest.mark.parametrize("command", [c for c in COMMANDS if "resume_from" not in c])
def test_command(command, llms):
    if "--llm=" in command:  # no hub in a test: a local checkpoint of the same family, through the same code
        command = re.sub(r"--llm=\S+", f"--llm={llms('qwen2')} --max_prompt_tokens=512 --history_size=2", command)
    done = run(command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"test result.*'auc'", done.stderr), done.stderr[-3000:]
    if "--model=ReLLa" in command:
        (folder,) = Path("saved").glob("ReLLa-*")
        assert len(pd.read_csv(folder / "test_predictions.csv")) == 952
        assert yaml.safe_load((folder / "config.yaml").read_text())["dataset"] == "ml-100k"
