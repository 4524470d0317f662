"""The command line: every argument is a flag or a key by its exact name, or an error."""

import re
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recbole.utils.argument_list import dataset_arguments, evaluation_arguments, general_arguments, training_arguments

from recbole_rella import command_line
from recbole_rella.arguments import WAYS, CommandError, flags, keys_among, parse
from recbole_rella.config import _recbole_keys
from recbole_rella.errors import RellaError
from recbole_rella.key_docs import key_texts
from recbole_rella.keys import KEYS, ConfigError

ROOT = Path(__file__).parents[1]
RECBOLE = sorted({*dataset_arguments, *evaluation_arguments, *general_arguments, *training_arguments, *_recbole_keys()})


def prefixes(name):
    return [name[:length] for length in range(1, len(name))]


# Names are exact.


@pytest.mark.parametrize("key", [*KEYS, *(key for key in RECBOLE if key not in flags())])
def test_a_key_is_a_key_whatever_flag_begins_with_it(key):
    """--seed is a prefix of --seeds, --train_shots was one of --train_shots_for, --data_path begins as --data..."""
    command = parse([f"--{key}=7"])
    assert command.keys == {key: "7"} and command.flags == parse([]).flags


@pytest.mark.parametrize("flag", flags())
def test_the_beginning_of_a_flag_is_no_flag(flag):
    for name in prefixes(flag):
        if name not in flags():
            assert parse([f"--{name}=7"]).keys == {name: "7"}
    assert flag not in KEYS


def test_seed_and_seeds():
    assert parse(["--seed=7"]).keys == {"seed": "7"} and parse(["--seed=7"]).way == "run"
    assert parse(["--seeds=7,8"]).flags.seeds == [7, 8] and parse(["--seeds=[7]"]).way == "compare"
    assert parse(["--seed=7", "--nproc=2"]).flags.nproc == 2  # of several processes too


TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=30)
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,12}(\.[a-z_]{1,5})?", fullmatch=True).filter(lambda name: name not in flags())


@given(st.dictionaries(NAMES, TEXTS, max_size=4))
def test_values_are_handed_on_as_they_are(values):
    given_arguments = [f"--{name}={text}" for name, text in values.items()]
    assert parse(given_arguments).keys == values
    assert keys_among(given_arguments) == values


@given(st.dictionaries(NAMES, TEXTS.filter(lambda text: not text.startswith("--")), max_size=4))
def test_a_value_may_be_the_next_argument(values):
    words = [word for name, text in values.items() for word in (f"--{name}", text)]
    if not {"-h", "--help"} & set(words):
        assert parse(words).keys == values


def test_flags_in_both_forms_and_short():
    for words in (["--model=FM", "--dataset=x"], ["--model", "FM", "--dataset", "x"], ["-m", "FM", "-d", "x"], ["-m=FM", "-d=x"]):
        known = parse(words).flags
        assert (known.model, known.dataset) == ("FM", "x")


@pytest.mark.parametrize(
    "words, message",
    [
        (["word"], "Expected --key=value, or first one of run, compare, .*, export, found 'word'"),
        (["--model=FM", "run"], "found 'run'"),
        (["run", "x"], "found 'x'"),
        (["score"], "score: expected what it takes behind it, as in `score ...`, found none"),
        (["explain", "--model=FM,DIN"], "explain: expected what it takes behind it"),
        (["score", "x", "y"], "found 'y'"),
        (["score", "x", "--explain=3"], "Expected one of --score, --explain"),
        (["run", "--score=x"], "run: expected what goes with it, found arguments for --score"),
        (["run", "--model=FM,DIN"], "run: expected what goes with it, found arguments for models side by side"),
        (["compare", "--sweep=lora_r:1"], "compare: expected what goes with it, found arguments for --sweep"),
        (["score", "x", "--score=y"], "score: expected one value, found 'x' and 'y'"),
        (["--model=FM", "--prompt_noun=a", "b"], "Expected --key=value, or first one of .*, found 'b'. Put quotes around"),
        (["-x"], "Expected --key=value, or first one of .*, found '-x'"),
        (["-x=3"], "found '-x=3'"),
        (["lora_r=4"], "found 'lora_r=4'"),
        (["--"], "found '--'"),
        (["--=3"], "found '--=3'"),
        (["--7=3"], "found '--7=3'"),
        (["--lora_r"], "lora_r: expected a value \\(--lora_r=...\\), found none"),
        (["--llm_shard", "--lora_r=3"], "llm_shard: expected a value"),
        (["--lora_r=3", "--lora_r=4"], "lora_r: expected one value, found '3' and '4'"),
        (["--config_files=a.yaml", "--config_files=b.yaml"], "config_files: expected one value, found 'a.yaml' and 'b.yaml'"),
        (["-m", "FM", "--model=DIN"], "model: expected one value, found 'FM' and 'DIN'"),
        (["--nproc=two"], "nproc: expected an integer of at least 1, found 'two'"),
        (["--nproc=0"], "nproc: expected an integer of at least 1, found '0'"),
        (["--seeds=1,x"], "seeds: expected different integers, found '1,x'"),
        (["--seeds=1,1"], "seeds: expected different integers"),
        (["--params_file=x", "--max_evals=0"], "max_evals: expected an integer of at least 1, found '0'"),
        (["--score=x", "--bad_lines=keep"], "bad_lines: expected skip or fail, found 'keep'"),
        (["--export_prompts=x", "--export_split=all"], "export_split: expected train or valid or test, found 'all'"),
        (["--score=x", "--explain=1"], "Expected one of --score, --explain, found all of them"),
        (["--sweep=lora_r:1,2", "--params_file=x"], "Expected one of --sweep, --params_file"),
        (["--convert=x", "--model=ReLLa"], "model: does not go with --convert"),
        (["--explain=3", "--model=ReLLa", "--config_files=x.yaml"], "model, config_files: does not go with --explain"),
        (["--bad_lines=fail"], "bad_lines: does not go with one run of one model"),
        (["--output_folder=x"], "output_folder: does not go with one run of one model"),
        (["--model=ReLLa,FM", "--nproc=2"], "nproc: does not go with models side by side"),
        (["--model=ReLLa", "--algo=bayes"], "algo: does not go with one run"),
        (["--params_file=x", "--seeds=1,2"], "seeds: does not go with --params_file"),
        (
            ["--score=x", "--history_size=3"],
            "history_size: expected run_folder, checkpoint_dir, allow_changed, scoring_engine, vllm_args alone with",
        ),
        (["--convert=x", "--dataset=ml-1m", "--lora_r=3"], "lora_r: expected data_path alone with --convert"),
    ],
)
def test_what_is_neither_flag_nor_key_or_does_not_go_together(words, message):
    with pytest.raises(CommandError, match=message):
        command_line.main(words)


def test_equal_arguments_are_one():
    assert parse(["--lora_r=3", "--lora_r=3"]).keys == {"lora_r": "3"}


@pytest.mark.parametrize(
    "words, way",
    [
        ([], "run"),
        (["--model=FM"], "run"),
        (["--model=own_plugin.OwnFM"], "run"),
        (["--resume_from=x"], "run"),
        (["--model=FM,DIN"], "compare"),
        (["--model=TALLRec"], "compare"),
        (["--model=own.yaml"], "compare"),
        (["--model=~/a/own.yml"], "compare"),
        (["--model=FM", "--seeds=1"], "compare"),
        (["--sweep=lora_r:1,2"], "sweep"),
        (["--params_file=x"], "tune"),
        (["--score=x", "--run_folder=r"], "score"),
        (["--explain=3", "--output_folder=o"], "explain"),
        (["--export=x", "--export_prompts=y"], "export"),
        (["--export_prompts=y"], "export"),
        (["--convert=x", "--dataset=ml-1m", "--data_path=d"], "convert"),
        (["run", "--model=FM"], "run"),
        (["compare", "--model=FM"], "compare"),
        (["compare", "--model=FM,DIN", "--seeds=1"], "compare"),
    ],
)
def test_the_way_that_a_command_line_asks_for(words, way):
    assert parse(words).way == way and way in WAYS and way in command_line._WAYS


@pytest.mark.parametrize(
    "words, flags",
    [
        (["convert", "~/x", "--dataset=ml-1m"], ["--convert=~/x", "--dataset=ml-1m"]),
        (["sweep", "lora_r:1,2", "--seeds=3"], ["--sweep=lora_r:1,2", "--seeds=3"]),
        (["tune", "space.hyper", "--algo=bayes"], ["--params_file=space.hyper", "--algo=bayes"]),
        (["score", "a=b.csv", "--run_folder", "r"], ["--score=a=b.csv", "--run_folder=r"]),
        (["explain", "1,2"], ["--explain=1,2"]),
        (["diagnose", "history"], ["--diagnose=history"]),
        (["export", "folder", "--export_prompts=p"], ["--export=folder", "--export_prompts=p"]),
        (["export", "--export_prompts=p"], ["--export_prompts=p"]),
        (["score", "--score=x"], ["--score=x"]),
    ],
)
def test_a_word_says_what_a_flag_says(words, flags):
    assert parse(words) == parse(flags) and parse(words).way == words[0]


def test_every_way_can_be_done():
    assert set(WAYS) == set(command_line._WAYS)


def test_home_is_understood_in_every_flag_that_is_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    for flag, more in {
        "convert": [],
        "params_file": [],
        "score": [],
        "export": [],
        "export_prompts": [],
        "display_file": ["--params_file=x"],
        "output_file": ["--score=x"],
        "output_folder": ["--model=FM,DIN"],
    }.items():
        assert getattr(parse([f"--{flag}=~/x", *more]).flags, flag) == "/home/someone/x"


# Help.


def script(*words, **options):
    return subprocess.run([sys.executable, str(ROOT / "run_recbole_rella.py"), *words], capture_output=True, text=True, **options)


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--model=ReLLa", "--help"]])
def test_the_help_says_all_and_comes_at_once(words):
    began = time.monotonic()
    done = script(*words)
    assert time.monotonic() - began < 5  # and ten times as much with RecBole's imports, where they are not in memory
    assert done.returncode == 0 and not done.stderr
    # Python 3.13 writes `--model, -m ...` where others write `--model ..., -m ...`.
    assert all(re.search(rf"  --{flag}(, -\w)? \.\.\.", done.stdout) for flag in flags())
    for text in key_texts().values():
        assert f"  --{text.name}={text.default}\n" in done.stdout and text.comment in done.stdout


@pytest.mark.slow
def test_the_installed_command():
    """In any folder, as a wheel has it; an error is one message there, too."""
    (entry,) = entry_points(group="console_scripts", name="recbole-rella")
    assert entry.load() is command_line.run
    command = Path(sys.executable).with_name("recbole-rella")
    done = subprocess.run([command, "explain", "--lora_r=3"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("CommandError: explain: expected what it takes")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("program", ["run_recbole_rella.py", ".venv/bin/recbole-rella"])
def test_the_help_imports_nothing_of_recbole(program):
    code = (
        f"import sys; sys.argv = [{program!r}, '--help']\n"
        "from recbole_rella.command_line import run\n"
        "try: run()\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'recbole', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.slow
def test_anothers_help_leaves_the_package_as_it_is():
    code = (
        "import sys; sys.argv = ['own.py', '--help']; import recbole_rella; from recbole.utils import get_model; get_model('ReLLa')"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


# From the command line to the run.


@pytest.fixture
def own(movies):
    """A file that makes a run take seconds, and the data set's name."""
    name, tiny = movies
    Path("own.yaml").write_text(yaml.safe_dump(tiny))
    return name


@pytest.fixture
def mine():
    """A file, a link to it, and a folder with something in it, which are there afterwards."""
    Path("mine").write_text("precious")
    Path("link").symlink_to("mine")
    Path("full").mkdir()
    Path("full/precious").write_text("precious")
    yield
    assert Path("mine").read_text() == "precious" and Path("link").is_symlink() and Path("full/precious").is_file()


def saved(folder):
    return yaml.safe_load((Path(folder) / "config.yaml").read_text())


def test_a_run_gets_its_keys_whatever_they_hold(own, monkeypatch, caplog):
    monkeypatch.setattr("sys.argv", ["run_recbole_rella.py", "--lora_r=2"])  # what is given counts, not this
    text = "{% set x = 1 %}{{ '%g' % rating }}{{ ' = ' if x == 1 }}stars"
    result = command_line.main(
        [
            "--model=ReLLa",
            f"--dataset={own}",
            "--config_files=own.yaml",
            "--seed=7",
            f"--prompt_rating={text}",
            "--prompt_noun",
            "2020",
            "--ReLLa.lora_r=3",
            "--lora_target_modules=q_proj",
            "--run_folder=run",
        ]
    )
    config = saved("run")
    assert config["seed"] == 7 and config["prompt_rating"] == text and config["prompt_noun"] == "2020"
    assert config["lora_r"] == 3 and config["lora_target_modules"] == ["q_proj"] and result["test_result"]["auc"] > 0
    assert not {"config_files", "nproc"} & set(config)
    assert "will not be used" not in caplog.text


def test_the_command_line_wins_over_files(own):
    Path("more.yaml").write_text("history_size: 3\nlora_r: 2\n")
    command = ["--model=ReLLa", f"--dataset={own}", "--config_files=own.yaml more.yaml", "--lora_r=5", "--run_folder=run"]
    command_line.main(command)
    assert saved("run")["history_size"] == 3 and saved("run")["lora_r"] == 5


def refused(words, message, own):
    """A command on a data set ends with one message; ReLLa and the file of small settings where the words name none."""
    files = [] if any("config_files" in word for word in words) else ["--config_files=own.yaml"]
    model = [] if any("--model" in word for word in words) else ["--model=ReLLa"]
    with pytest.raises(RellaError, match=message):
        command_line.main([*model, f"--dataset={own}", *files, *words])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--Rella.lora_r=4"], r"Rella.lora_r: expected the name of the model of this run \(ReLLa\) before the dot, found Rella"),
        (["--DIN.epochs=4"], r"DIN.epochs: expected the name of the model of this run \(ReLLa\) before the dot, found DIN"),
        (["--ReLLa.lora_s=4"], "ReLLa.lora_s: there is no such key; the nearest valid one is lora_r"),
        (["--lora-r=4"], "lora-r: there is no such key; the nearest valid one is lora_r"),
        (["--lerning_rate=4"], "lerning_rate: there is no such key; the nearest valid one is learning_rate"),
        (["--lora_r="], "lora_r: expected an integer of at least 1, found ''"),
        (["--learner=foo"], "learner: expected one of adam, adamw, .* found 'foo'"),
        (["--save_dataset=True"], "save_dataset: expected False, found True"),
        (["--model=Rella"], "found 'Rella'; did you mean ReLLa"),
        (["--config_files=nowhere.yaml"], "config_files: expected YAML files, found 'nowhere.yaml'"),
        (["--model=nowhere.yaml"], "model: expected a model or a YAML file, found 'nowhere.yaml', which does not exist"),
        (["--model=ReLLa,FM", "--run_folder=x"], "run_folder: expected none where several runs are made"),
        (["--model=ReLLa,FM", "--split_file=x"], "split_file: expected none where several runs are made"),
        (["--model=ReLLa,FM", "--resume_from=saved"], "resume_from: expected the folder of an earlier run"),
        (["--sweep=history_size:2,3", "--run_folder=x"], "run_folder: expected none where several runs are made"),
        (["--sweep=eval_rows:2,3"], "found eval_rows, which decides on the rows"),
        (["--model=ReLLa,FM", "--Rella.lora_r=4"], r"compared model \(Bias, FM, ReLLa\) before the dot, found Rella"),
        (["--model=ReLLa,FM", "--FM.embeding_size=4"], "FM.embeding_size: there is no such key; the nearest .* embedding_size"),
        (["--model=ReLLa,FM", "--FM.learner=foo"], "learner: expected one of adam"),
        (["--model=ReLLa,FM", "--FM.save_dataset=True"], "save_dataset: expected False"),
    ],
)
def test_what_cannot_be_run_is_one_message(words, message, own, monkeypatch):
    import recbole_rella.quick_start as quick_start
    from recbole_rella.experiments import side_by_side

    monkeypatch.setattr(quick_start, "_run", lambda *_, **__: pytest.fail("a run was started"))
    monkeypatch.setattr(side_by_side, "RowDataset", lambda *_: pytest.fail("data was read"))
    refused(words, message, own)


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--export_prompts=full"],
            "export_prompts: expected the name of a file, found full, which is a folder: name a file in it",
        ),
        (["--export_prompts=mine/x"], "export_prompts: expected a folder at mine, found something else"),
        (["--export=new", "--export_prompts=./new"], r"export_prompts: expected another place than that of export \(new\), found"),
        (["--export=mine/new"], "export: expected a folder at mine, found something else"),
        (["--score=mine", "--output_file=mine"], r"output_file: expected another place than that of score \(mine\), found mine"),
        (["--score=mine", "--output_file=full/../mine"], "output_file: expected another place than that of score"),
        (["--score=link", "--output_file=mine"], "output_file: expected another place than that of score"),
        (["--score=mine", "--output_file=link"], "output_file: expected another place than that of score"),
        (["--score=mine", "--output_file=full"], "output_file: expected the name of a file, found full, which is a folder"),
        (["--score=mine", "--output_file=mine/scores.csv"], "output_file: expected a folder at mine, found something else"),
        (["--score=nowhere"], "score: expected a file of requests, found none at nowhere"),
        (["--explain=3", "--output_folder=mine"], "output_folder: expected a folder at mine, found something else"),
        (["--diagnose=history", "--output_folder=mine/x"], "output_folder: expected a folder at mine, found something else"),
    ],
)
def test_what_a_finished_run_cannot_write_is_told_before_it_is_loaded(words, message, mine, monkeypatch):
    from recbole_rella.serving import export, scorer

    monkeypatch.setattr(export, "load_run_data", lambda *_: pytest.fail("a run was loaded"))
    monkeypatch.setattr(scorer, "load_rella", lambda *_: pytest.fail("a run was loaded"))
    with pytest.raises(RellaError, match=message):
        command_line.main([*words, "--run_folder=run"])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--run_folder=mine"], "run_folder: expected a folder at mine, found something else"),
        (["--checkpoint_dir=mine"], "checkpoint_dir: expected a folder at mine, found something else"),
        (["--cache_dir=mine/x"], "cache_dir: expected a folder at mine, found something else"),
        (["--model=ReLLa,FM", "--output_folder=mine"], "output_folder: expected a folder at mine, found something else"),
        (["--sweep=lora_r:1,2", "--output_folder=mine"], "output_folder: expected a folder at mine, found something else"),
        (
            ["--params_file=a.hyper", "--output_file=full"],
            "output_file: expected the name of a file, found .*full, which is a folder",
        ),
        (["--params_file=a.hyper", "--output_file=a.hyper"], "output_file: expected another place than that of params_file"),
        (["--params_file=a.hyper", "--display_file=a.hyper"], "display_file: expected another place than that of params_file"),
        (["--params_file=a.hyper", "--display_file=full"], "display_file: expected the name of a file, found .*full"),
        (["--params_file=a.hyper", "--display_file=hyper.result"], "display_file: expected another place than that of output_file"),
        (
            ["--params_file=a.hyper", "--display_file=hyper.best.yaml"],
            "display_file: expected another place than that of output_file",
        ),
        (
            ["--params_file=a.hyper", "--config_files=own.yaml a.best.yaml", "--output_file=a.result"],
            r"output_file: expected another place than that of config_files \(a.best.yaml\), found .*a.best.yaml, which would",
        ),
        (
            ["--params_file=a.hyper", "--model=a.best.yaml", "--output_file=a.result"],
            "output_file: expected another place than that of model",
        ),
    ],
)
def test_what_cannot_be_written_is_told_before_data_is_read(words, message, own, mine, monkeypatch):
    import recbole_rella.quick_start as quick_start
    from recbole_rella.experiments import side_by_side

    Path("a.hyper").write_text("lora_r choice [1,2]\n")
    Path("a.best.yaml").write_text("lora_r: 1\n")
    monkeypatch.setattr(quick_start, "load_data", lambda *_, **__: pytest.fail("data was read"))
    monkeypatch.setattr(side_by_side, "RowDataset", lambda *_: pytest.fail("data was read"))
    refused(words, message, own)
    assert Path("a.hyper").read_text() == "lora_r choice [1,2]\n" and Path("a.best.yaml").read_text() == "lora_r: 1\n"


@pytest.mark.slow
def test_the_script_says_it_without_a_traceback(own):
    done = script("--model=ReLLa", f"--dataset={own}", "--config_files=own.yaml", "--Rella.lora_r=4")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "found Rella" in done.stderr


def test_a_file_alone_is_an_entry(own, in_this_process):
    Path("small.yaml").write_text("model: FM\nembedding_size: 4\n")
    table, _, folder = command_line.main(["--model=small.yaml", f"--dataset={own}", "--config_files=own.yaml", "--small.epochs=2"])
    (run,) = folder.glob("small-*")
    assert table["model"].tolist() == ["small"] and saved(run)["embedding_size"] == 4 and saved(run)["epochs"] == 2


def test_the_model_of_a_file_is_compared(own, monkeypatch):
    from recbole_rella.experiments import side_by_side, sweep

    Path("sim.yaml").write_text("model: SIM\n")
    done = pd.DataFrame({"test AUC": [0.5], "failed": [0]})
    monkeypatch.setattr(side_by_side, "run_side_by_side", lambda **given: (given["models"], done, "folder"))
    monkeypatch.setattr(sweep, "run_sweep", lambda _, **given: (done.assign(models=given["models"]), "folder"))

    def compared(*words):
        found = command_line.main([f"--dataset={own}", *words])[0]
        return found if isinstance(found, list) else list(found["models"])

    for words in (["--seeds=1,2"], ["--sweep=sim_size:1,2"]):
        assert compared("--config_files=sim.yaml", *words) == ["SIM"]
        assert compared("--model=FM", "--config_files=sim.yaml", *words) == ["FM"]
        assert compared("--config_files=own.yaml", *words) == ["ReLLa"]


@pytest.mark.parametrize("words", [["--model=FM,Bias"], ["--model=FM", "--sweep=dropout_prob:0.1"]])
def test_a_command_whose_runs_failed_ends_with_an_error(words, own, in_this_process):
    """A script or a queue would take it for done; the table is written all the same."""
    folder = ["--output_folder=results", "--FM.embedding_size=-1"]
    with pytest.raises(CommandError, match="Expected every run to end, found 1 that failed: the table in results says why"):
        command_line.main([*words, f"--dataset={own}", "--config_files=own.yaml", *folder])
    assert any("note" in path.read_text() for path in Path("results").glob("*.csv"))


def test_files_of_a_run_are_checked_and_found_in_the_home_folder(own, tmp_path, monkeypatch):
    """Before they are asked whether they name what is trained first."""
    from recbole_rella.experiments import stages

    for text, message in (("- 1", "found a list"), ("a: b: c", "expected YAML"), ("\xe9", "expected text in UTF-8")):
        Path("bad.yaml").write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match=message):
            command_line.main(["--model=ReLLa", f"--dataset={own}", "--config_files=bad.yaml"])
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "staged.yaml").write_text("crm: FM\n")
    monkeypatch.setattr(stages, "run_stages", lambda **given: given["config_file_list"])
    assert command_line.main(["--model=ReLLa", f"--dataset={own}", "--config_files=~/staged.yaml"]) == ["~/staged.yaml"]


def test_what_was_chosen_for_one_stage_is_not_for_another(monkeypatch):
    """--tuned=True: each model has its own."""
    from recbole_rella.experiments import stages

    monkeypatch.setattr(stages, "run_stages", lambda **given: given["config_file_list"])
    words = ["--model=ReLLa", "--dataset=ml-100k", "--tuned=True", "--crm=SIM", "--spa=True"]
    assert command_line.main(words) is None


@pytest.mark.slow
def test_reserved_words_side_by_side_where_folders_have_their_names(own, in_this_process, llms):
    """--llm=mini with a folder mini/, and so for the encoder, the template and the chat format."""
    for word in ("mini", "llm", "tfidf", "default", "auto"):
        Path(word).symlink_to(llms("llama"))
    command = ["--model=TALLRec,mixed", f"--dataset={own}", "--config_files=own.yaml", "--llm=mini", "--retrieval_encoder=llm"]
    *_, folder = command_line.main([*command, "--prompt_template=default", "--prompt_chat=auto"])
    runs = [saved(run) for run in folder.glob("*-2020-*")]
    assert len(runs) == 2
    for config in runs:
        found = {key: config[key] for key in ("llm", "retrieval_encoder", "prompt_template", "prompt_chat")}
        assert found == {"llm": "mini", "retrieval_encoder": "llm", "prompt_template": "default", "prompt_chat": "auto"}


def test_the_fixed_settings_of_a_search_keep_reserved_words(own, llms, home_folder):
    from recbole_rella.experiments.plan import make_entries
    from recbole_rella.experiments.tuning import _of_table

    Path("mini").symlink_to(llms("llama"))
    given = {"llm": "mini", "retrieval_encoder": "tfidf", "cache_dir": "~/c"}
    fixed = _of_table(make_entries(["ReLLa"]), own, ["own.yaml"], given)
    assert fixed["llm"] == "mini" and fixed["retrieval_encoder"] == "tfidf" and fixed["cache_dir"] == str(home_folder / "c")


@pytest.fixture
def home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_search_reads_a_space_in_the_home_folder(own, home_folder):
    home_folder.mkdir()
    (home_folder / "space.hyper").write_text("lora_r choice [2]\n")
    command_line.main(
        [
            "--model=ReLLa",
            f"--dataset={own}",
            "--config_files=own.yaml",
            "--params_file=~/space.hyper",
            "--output_file=~/out.result",
        ]
    )
    assert yaml.safe_load((home_folder / "out.best.yaml").read_text())["lora_r"] == 2


def test_resuming_takes_keys_of_the_command_line(own):
    command_line.main(["--model=ReLLa", f"--dataset={own}", "--config_files=own.yaml", "--run_folder=run"])
    before = (Path("run") / "test_predictions.csv").read_text()
    command_line.main(["--resume_from=run"])
    assert (Path("run") / "test_predictions.csv").read_text() == before
    with pytest.raises(RellaError, match="history_size: expected an integer of at least 0, found -1"):
        command_line.main(["--resume_from=run", "--history_size=-1"])


def test_allowed_changes_are_words():
    from recbole_rella.given import allowed_changes

    assert allowed_changes("rows,version") == ["rows", "version"]
    with pytest.raises(RellaError, match="allow_changed: expected a list of words among rows, llm, encoder, prompts, crm, version"):
        allowed_changes("row")


def test_one_model_takes_what_was_chosen_for_it(own, tmp_path, monkeypatch):
    """Below the user's own files, as those of a table do."""
    path = tmp_path / "Chosen.yaml"
    path.write_text("lora_r: 3\nhistory_size: 2\n")
    monkeypatch.setattr("recbole_rella.shipped.tuned_file", lambda *_: path)
    command_line.main(
        ["--model=ReLLa", f"--dataset={own}", "--config_files=own.yaml", "--tuned=True", "--epochs=0", "--run_folder=run"]
    )
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["lora_r"] == 3 and config["history_size"] == 4
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match=r"found --model=FM --dataset=nothing\."):
        command_line.main(["--model=FM", "--dataset=nothing", "--tuned=True"])
