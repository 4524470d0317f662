"""The commands of the README and of docs/, run as they stand but for overrides that make them small; and where their links lead."""

import logging
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from originals import ORIGINALS

from recbole_rella import command_line

ROOT = Path(__file__).parents[2]
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "results/README.md")
}
README = PAGES[ROOT / "README.md"]
BLOCKS = [block for page in PAGES.values() for block in re.findall(r"```(\w*)\n(.*?)```", page, re.S)]
SCRIPT = ".venv/bin/python run_recbole_rella.py"
# Those with a launcher of several processes are run without it: tests/test_processes.py has the launchers.
CALL = re.compile(r"\.venv/bin/(?:python|(?:torchrun|accelerate launch) .*?) ?run_recbole_rella\.py (.*)")
CALLS = [
    CALL.search(line).group(1).strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines() if CALL.search(line)
]
COMMANDS = list(dict.fromkeys(CALLS))
SMALL = [
    "--mini_hidden_size=16",
    "--mini_num_layers=1",
    "--mini_num_heads=2",
    "--mini_epochs=0",
    "--mini_vocab_size=2000",
    "--train_pool=64",
    "--train_shots=16",
    "--eval_rows=32",
    "--epochs=1",
    "--show_progress=False",
    "--retrieval_pca_dim=16",
    "--tree_rounds=5",
    "--eval_args={'split': {'RS': [0.998, 0.001, 0.001]}, 'order': 'TO', 'group_by': None, 'mode': 'labeled'}",
]


# What would take minutes even on little data: fewer models, values and trials, through the same code.
FEWER = {
    "ReLLa,FM,FM+history,DCNV2,DCNV2+history,DIN,LightGBM+history,Tree": "ReLLa,FM+history",
    "2020,2021,2022 --DIN.epochs=4": "2020",
    "ReLLa,TALLRec,zero_shot": "zero_shot",
    "ReLLa,SIM,TWIN,DIN_ratings": "TWIN",
    "ReLLa,SIM,DeepFM,DeepFM+history,LightGBM+history": "ReLLa,FM+history",
    "history_size:5,10,15,20,25,30": "history_size:5",
    "--epochs=0 ": "",
    " --eval_rows=500": "",
    " --train_shots=1024": "",
    " --eval_rows=2000": "",
    "--max_evals=20": "--max_evals=1",
}


@dataclass
class Done:
    """What a command left: its exit code, what it printed, what it logged."""

    returncode: object
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch, capfd, caplog, in_this_process):
    """Runs a command of the script in this process: a new one takes ten seconds to import all.

    tests/test_quick_start.py starts the script itself.
    """
    caplog.set_level(logging.INFO)

    def main(arguments, small=True):
        for text, less in FEWER.items():
            arguments = arguments.replace(text, less)
        arguments = [*shlex.split(arguments), *(SMALL if small else ())]
        monkeypatch.setattr(
            sys, "argv", ["run_recbole_rella.py", *(a.replace("properties/", f"{ROOT}/properties/") for a in arguments)]
        )
        caplog.clear()
        capfd.readouterr()
        code = 0
        try:
            command_line.run()
        except SystemExit as end:
            code = end.code
        return Done(code, capfd.readouterr().out, caplog.text)

    return main


def test_the_first_two_blocks_are_the_two_commands():
    assert [kind for kind, _ in BLOCKS[:2]] == ["bash", "bash"]
    main, tests = (text.strip() for _, text in BLOCKS[:2])
    assert "\n" not in main and "\n" not in tests
    assert main.startswith("python3 -m venv .venv && ") and main.endswith(f"{SCRIPT} --model=ReLLa --dataset=ml-100k")
    assert tests.startswith("python3 -m venv .venv && ") and tests.endswith("-m pytest")


def test_every_command_of_the_script_is_tested_here():
    # Those of a cluster and of other engines are in tests/experiments/test_ray_cluster.py and tests/engines.
    # Results tell what was run for hours, and a line of the README's names a folder that the reader has.
    lines = [line for path, page in PAGES.items() if path.parent.name != "results" for line in page.splitlines()]
    lines = [line for line in lines if ".venv/bin/" in line and "run_recbole_rella.py --" in line and "path/to/folder" not in line]
    lines = [line for line in lines if not line.startswith("RAY_ADDRESS=") and "--scoring_engine=" not in line]
    assert len(CALLS) == len(lines) and len(COMMANDS) >= 30


def test_the_readme_is_short_and_names_every_page():
    assert len(README.splitlines()) <= 130
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in README, page.name


def anchors(page):
    """What headings of a page are called in links to them, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", PAGES[path], flags=re.S)):
        if target.startswith(("http", "mailto")):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), f"{path.name}: {target}"


# Trains a built-in model on all rows, makes many runs or long prompts.
LONG = re.compile("^--model=DCNV2 |,DCNV2,|--sweep|--tuned|--history_size=30|--algo=bayes|ReLLaX|TALLRec,zero_shot")


def slow(command):
    """A parameter: a long command, or one that starts Ray, is for the slow lane."""
    if "--tool=Ray" in command:
        return pytest.param(command, marks=[pytest.mark.slow, pytest.mark.xdist_group("ray")])
    return pytest.param(command, marks=pytest.mark.slow if LONG.search(command) else ())


FINISHED = [c for c in COMMANDS if any(f"--{way}" in c for way in ("explain", "diagnose", "score", "export"))]
SIDE_BY_SIDE = [c for c in COMMANDS if re.search("--model=\\S+,|--sweep", c)]
TUNING = [c for c in COMMANDS if "--params_file" in c]
DATA_SETS = [c for c in COMMANDS if re.search(f"--dataset=({'|'.join(ORIGINALS)})\\b", c)]


@pytest.mark.parametrize("command", map(slow, SIDE_BY_SIDE))
def test_side_by_side_command(command, run):
    done = run(command)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "the same for every model" in done.stdout and done.stdout.count(": done, ") in (1, 2, 3), done.stdout
    (page,) = [p for p in Path("saved").glob("*/*.md")]
    assert re.search(r"^\| (ReLLa|zero_shot|TWIN|TALLRec).* \| .*0\.\d{4}", page.read_text(), re.M)


@pytest.mark.parametrize("command", map(slow, TUNING))
def test_tuning_command(command, run):
    done = run(command)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "best params: {'" in done.stdout and list(Path().glob("hyper.best.yaml"))
    assert Path("hyper.html").is_file() == ("--display_file" in command)


def test_commands_on_a_finished_run(run):
    assert len(FINISHED) == 5
    (request,) = (text for kind, text in BLOCKS if kind == "json")
    Path("requests.jsonl").write_text(request)
    done = run("--model=ReLLa --dataset=ml-100k --config_files=properties/variant/words_alone.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    for command in FINISHED:
        done = run(command, small=False)
        assert done.returncode == 0, done.stderr[-3000:]
        told = {
            "--explain": "P(yes) 0.",
            "--diagnose": "32 test rows",
            "--score": "1 requests scored, 0 lines left out",
            "--export": "32 prompts written to",
        }
        assert next(text for option, text in told.items() if option in command) in done.stdout
    assert pd.read_csv("scores.csv")["candidate"].tolist() == ["181", "Dune"]
    assert Path("exported/llm/model.safetensors").is_file() and Path("exported/llm/tokenizer.json").is_file()


def without_hub(command, llms):
    """No hub in a test: a local checkpoint of the same family, through the same code."""
    shipped = re.search(r"properties/llm/(\S+)\.yaml", command)
    if not shipped and "--llm=" not in command:
        return command
    family = shipped[1] if shipped else "qwen2"
    shown = "" if "--history_size=" in command else "--history_size=2 --history_recent_size=1"
    short = f"--max_prompt_tokens=512 {shown}"
    return re.sub(r"--llm=\S+", "", command) + f" --llm={llms(family)} {short}"


@pytest.mark.parametrize("name", ORIGINALS)
def test_commands_of_a_data_set(name, llms, run):
    """Converted from generated original files, which are small, and run."""
    conversion, command = (c for c in DATA_SETS if f"--dataset={name}" in c)
    ORIGINALS[name](Path(re.search(r"--convert=(\S+)", conversion)[1]))
    done = run(conversion, small=False)
    assert done.returncode == 0 and re.search(rf"^{name}: \d+ rows of 2[45] users and 4[02] items", done.stdout, re.M), done.stdout
    assert Path(f"dataset/{name}/{name}.inter").is_file()
    # Parts of some rows in data of a few.
    args = {
        "split": {"RS": [0.4, 0.3, 0.3]},
        "order": "RO" if name == "book-crossing" else "TO",
        "group_by": None,
        "mode": "labeled",
    }
    done = run(f'{without_hub(command, llms)} --eval_args="{args}" --epochs=1 --train_shots=16 --show_progress=False', small=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"test result.*'auc'", done.stderr), done.stderr[-3000:]
    assert "expected_counts: expected " in done.stderr and "Your own eval_args may be why." in done.stderr


REST = [c for c in COMMANDS if "resume_from" not in c and c not in FINISHED + SIDE_BY_SIDE + TUNING + DATA_SETS]


@pytest.mark.parametrize("command", map(slow, REST))
def test_command(command, llms, run):
    done = run(without_hub(command, llms))
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"test result.*'auc'", done.stderr), done.stderr[-3000:]
    if "--model=ReLLa" in command:
        (folder,) = (path.parent for path in Path("saved").glob("**/ReLLa-*/metrics.json"))
        assert len(pd.read_csv(folder / "test_predictions.csv")) == (32 if "--model=ReLLa" in command else 95)
        assert yaml.safe_load((folder / "config.yaml").read_text())["dataset"] == "ml-100k"
