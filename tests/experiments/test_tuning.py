"""Tuning: every tool and algorithm, the best configuration, failing trials, and what trials share."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from recbole_rella import compat, objective_function, run_recbole_rella
from recbole_rella.arguments import read_value
from recbole_rella.config import properties_folder
from recbole_rella.experiments import tuning
from recbole_rella.experiments.side_by_side import run_side_by_side
from recbole_rella.experiments.tuning import Trials, TuningError, read_space, tune
from recbole_rella.keys import ConfigError
from recbole_rella.run_folder import read_run

CHOICES = "lora_r choice [2,4]\nhistory_size choice [2,3]\n"


@pytest.fixture(autouse=True)
def _no_log_of_many_trials(monkeypatch):
    monkeypatch.setenv("HYPEROPT_FMIN_SEED", "3")


@pytest.fixture(scope="module")
def ray_cluster():
    environment = compat.ray_environment()
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, runtime_env=environment)
    yield
    ray.shutdown()


def search(movies, space=CHOICES, **more):
    name, tiny = movies
    Path("space.hyper").write_text(space)
    return tune("space.hyper", "ReLLa", name, None, tiny, output_file="out/hyper.result", **more)


def check_best(best, score, path):
    """The best configuration reproduces the best score."""
    assert path == Path("out/hyper.best.yaml").resolve() and path.is_file()
    settings = yaml.safe_load(path.read_text())
    assert {key: settings[key] for key in best} == best
    again = run_recbole_rella(config_file_list=[str(path)])
    assert float(again["best_valid_score"]) == score


@pytest.mark.parametrize(
    "algo, trials", [*(pytest.param(*each, marks=pytest.mark.slow) for each in (("exhaustive", 4), ("random", 3))), ("bayes", 3)]
)
def test_hyperopt(algo, trials, movies):
    best, score, path = search(movies, algo=algo, max_evals=3, display_file="charts/chart.html")
    results = Path("out/hyper.result").read_text()
    assert set(best) == {"lora_r", "history_size"} and 1 <= results.count("Test result:") <= trials
    assert results.count("Test result:") == 4 or algo != "exhaustive"
    assert f"{score:g}" in results and "<html>" in Path("charts/chart.html").read_text()
    check_best(best, score, path)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("algo", ["exhaustive", "random", "bayes"])
def test_ray(algo, movies, ray_cluster):
    chart = "chart.html" if algo == "exhaustive" else None
    best, score, path = search(movies, tool="Ray", algo=algo, max_evals=2, concurrency=2 if chart else 1, display_file=chart)
    assert Path("chart.html").is_file() == bool(chart)
    assert set(best) == {"lora_r", "history_size"} and "Test result:" in Path("out/hyper.result").read_text()
    check_best(best, score, path)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("tool", ["Hyperopt", "Ray"])
def test_a_trial_that_fails_does_not_end_the_search(tool, movies, ray_cluster, caplog):
    caplog.set_level(logging.ERROR)
    best, _, _ = search(movies, "max_prompt_tokens choice [8,512]\n", tool=tool)
    assert best == {"max_prompt_tokens": 512}
    assert "max_prompt_tokens:8 failed" in caplog.text and "PromptBudgetError" in caplog.text


def test_no_trial_came_to_its_end(movies):
    with pytest.raises(TuningError, match="No trial came to its end"):
        search(movies, "max_prompt_tokens choice [8,9]\n")


def test_trials_share_the_caches(movies, own_cache, monkeypatch):
    """lora_r changes nothing before the adapters: one pretraining with an encoding of its own, one encoding, retrieval, prompts."""
    import recbole_rella.files as files
    from recbole_rella.llm import mini

    made = []
    save = np.savez
    monkeypatch.setattr(
        files.np, "savez", lambda file, **arrays: made.append(Path(file.name).name.split("-")[0]) or save(file, **arrays)
    )
    pretrain = mini._train
    monkeypatch.setattr(mini, "_train", lambda *a: made.append("mini") or pretrain(*a))
    search(movies, "lora_r choice [2,3,4]\n")
    made.remove("split.npz")  # the rows
    assert sorted(made) == ["item", "item", "mini", "prompts", "prompts", "retrieved"]
    made.clear()
    search(movies, "history_size choice [2,4]\n")  # 4 was there before
    assert sorted(made) == ["prompts", "prompts", "retrieved"]


def test_a_list_that_a_space_holds_as_text_is_one_in_the_configuration(movies):
    name, tiny = movies
    Path("space.hyper").write_text("mlp_hidden_size choice ['[4,4]','[6,6]']\n")
    best, score, path = tune("space.hyper", "DeepFM", name, None, tiny, output_file="out/hyper.result")
    assert best["mlp_hidden_size"] in ([4, 4], [6, 6])
    check_best(best, score, path)


@pytest.mark.slow
def test_a_rival_is_tuned_on_the_rows_of_the_table(movies):
    name, tiny = movies
    Path("space.hyper").write_text("embedding_size choice [4,8]\n")
    best, score, path = tune("space.hyper", "FM+history", name, None, tiny, output_file="out/hyper.result")
    settings = yaml.safe_load(path.read_text())
    assert settings["history_fields"] == ["default"] and settings["embedding_size"] == best["embedding_size"]
    split = np.load(settings["split_file"])
    _, runs, _ = run_side_by_side(["ReLLa"], name, None, {**tiny, "with_bias": False})
    of_table = read_run(Path(runs["folder"][0]) if Path(runs["folder"][0]).is_dir() else next(Path("saved").glob("side*/ReLLa*")))
    run_recbole_rella(config_file_list=[str(path)], config_dict={"run_folder": "again"})
    again = read_run("again").metrics
    assert again["row_ids"]["test"] == of_table.metrics["row_ids"]["test"] and again["valid"]["auc"] == pytest.approx(score)
    assert len(split["test"]) == len(read_run("again").predictions())


def test_a_search_goes_on_after_the_trials_that_are_done(movies, monkeypatch):
    objective, tried = tuning.objective_function, []
    monkeypatch.setattr(tuning, "objective_function", lambda params, files: tried.append(params) or objective(params, files))
    first = search(movies)
    assert len(tried) == 4
    results, trials = Path("out/hyper.result").read_text(), Path("out/hyper.trials.jsonl")
    assert search(movies) == first and len(tried) == 4 and Path("out/hyper.result").read_text() == results
    trials.write_text(trials.read_text()[:-40])  # ended in the middle of a line
    assert search(movies) == first and len(tried) == 5 and Path("out/hyper.result").read_text() == results
    assert search(movies) == first and len(tried) == 5  # what was tried again is kept, whatever stood before it
    name, tiny = movies
    search((name, {**tiny, "lora_alpha": 3}), "lora_r choice [2]\n")  # of other fixed settings, none is taken
    assert len(tried) == 6


@pytest.mark.slow
def test_two_processes_make_a_cached_file_once(tmp_path):
    code = (
        "import sys, time, numpy as np\nfrom recbole_rella.files import cached_arrays\n"
        "def make():\n    open('made', 'a').write('x'); time.sleep(1); return {'a': np.arange(3)}\n"
        "print(cached_arrays('cache', 'thing', ('key',), make)['a'].tolist())"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["[0, 1, 2]"] * 2
    assert Path("made").read_text() == "x"


def test_the_shipped_spaces_are_read_as_recbole_reads_them(monkeypatch):
    from recbole.trainer import HyperTuning

    monkeypatch.setattr("hyperopt.hp.choice", lambda key, values: values)
    spaces = {path.stem: read_space(path) for path in (properties_folder() / "hyper").glob("*.hyper")}
    for name, space in spaces.items():
        path = properties_folder() / "hyper" / f"{name}.hyper"
        of_recbole = HyperTuning(objective_function, params_file=str(path), algo="bayes").space
        for values in of_recbole.values():  # a text is read by RecBole's Config, when the trial begins
            values[:] = [read_value("", value) if isinstance(value, str) else value for value in values]
        assert space == {key: ("choice", values) for key, values in of_recbole.items()}
    assert spaces["sim"]["embedding_size"] == ("choice", [32, 64, 128])
    assert spaces["rella"]["train_history"] == ("choice", [["recent", "both"], "mixed", "both", "recent"])


@pytest.mark.parametrize(
    "line, values",
    [
        ("embedding_size\tchoice\t[3,5]", [3, 5]),
        ("  embedding_size  choice  [3, 5]  ", [3, 5]),
        ("learner choice [adam, adamw]", ["adam", "adamw"]),
        ("retrieval_pca_dim choice [null, 64]", [None, 64]),
        ("retrieval_pca_dim choice [None, 64]", [None, 64]),
        ("spa choice [true, False]", [True, False]),
        ("prompt_noun choice ['short film','film']", ["short film", "film"]),
        ("prompt_noun choice [short film, film]", ["short film", "film"]),
        ("learning_rate choice [1e-4, .5e-3]", [0.0001, 0.0005]),
        ("lgb_params choice [{boosting: gbdt, learning_rate: 1e-3}]", [{"boosting": "gbdt", "learning_rate": 0.001}]),
        ("mlp_hidden_size choice ['[4,4]',(6,6)]", [[4, 4], [6, 6]]),
        ("history_fields choice [[default], [past, mean_rating]]", [["default"], ["past", "mean_rating"]]),
        ("learning_rate loguniform -8, -5", [-8.0, -5.0]),
        ("dropout_prob quniform 0,1 , 1e-1", [0.0, 1.0, 0.1]),
    ],
)
def test_a_line_keeps_what_stands_behind_its_second_word(line, values):
    Path("space.hyper").write_text(f"{line}\n")
    ((key, (kind, found)),) = read_space("space.hyper").items()
    assert [key, kind] == line.split()[:2] and found == values


def test_paths_of_a_space_are_found_from_any_folder(tmp_path):
    """Ray runs each trial in another one; words and names are no paths."""
    Path("own.jinja").write_text("{{ target.text }}:")
    Path("space.hyper").write_text("prompt_template choice [default, own.jinja]\nllm choice [mini, Qwen/Qwen2.5-0.5B]\n")
    assert read_space("space.hyper") == {
        "prompt_template": ("choice", ["default", str(tmp_path / "own.jinja")]),
        "llm": ("choice", ["mini", "Qwen/Qwen2.5-0.5B"]),
    }


@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("tool", ["Hyperopt", pytest.param("Ray", marks=pytest.mark.slow)])
def test_both_tools_try_what_was_read(tool, movies, request):
    if tool == "Ray":
        request.getfixturevalue("ray_cluster")
    name, tiny = movies
    Path("space.hyper").write_text("embedding_size\tchoice\t[3,5]\nlearner  choice  [adam, adamw]\n")
    given = {**tiny, "embedding_size": 7}
    best, score, path = tune("space.hyper", "FM", name, None, given, tool=tool, output_file="out/hyper.result")
    results = Path("out/hyper.result").read_text()
    assert results.count("Test result:") == 4
    assert all(f"embedding_size:{size}, learner:{learner}\n" in results for size in (3, 5) for learner in ("adam", "adamw"))
    check_best(best, score, path)


@pytest.fixture
def tried(monkeypatch):
    """The settings of the trials that were run, of which none takes any time."""
    found = []

    def objective(params, files):
        found.append(params)
        metrics = {"best_valid_result": {"auc": 0.5}, "test_result": {"auc": 0.5}}
        return {"model": "ReLLa", "best_valid_score": 0.5, "valid_score_bigger": True, **metrics}

    monkeypatch.setattr(tuning, "objective_function", objective)
    return found


@pytest.mark.parametrize(
    "space, values",
    [
        ("train_history choice [['recent','both'],'mixed']\n", [["recent", "both"], "mixed"]),
        ("lora choice [{}, {use_rslora: true}]\n", [{}, {"use_rslora": True}]),
        ("retrieval_pca_dim choice [null, 4]\n", [None, 4]),
        ("prompt_noun choice ['short film', film, movie]\n", ["short film", "film", "movie"]),
    ],
)
def test_an_exhaustive_search_tries_each_value_as_it_is(space, values, movies, tried):
    search(movies, f"{space}lora_r choice [2,4]\n")
    (key,) = tried[0].keys() - {"lora_r"}
    assert len(tried) == 2 * len(values) and all({key: value, "lora_r": rank} in tried for value in values for rank in (2, 4))


def test_a_trial_is_run_again_where_a_file_that_it_names_holds_something_else(movies, monkeypatch):
    objective, ran = tuning.objective_function, []
    monkeypatch.setattr(tuning, "objective_function", lambda params, files: ran.append(params) or objective(params, files))
    for name in ("a", "b"):
        Path(f"{name}.jinja").write_text("{{ question }}\n{{ target.text }}:")
    for _ in range(2):
        search(movies, "prompt_template choice [a.jinja, b.jinja]\n")
        assert len(ran) == 2
    Path("a.jinja").write_text(
        "{{ question }}\n{% for b in behaviours %}{{ b.text }}: {{ b.answer }}\n{% endfor %}{{ target.text }}:"
    )
    best, score, path = search(movies, "prompt_template choice [a.jinja, b.jinja]\n")
    assert len(ran) == 3 and Path(ran[-1]["prompt_template"]).name == "a.jinja"
    check_best(best, score, path)


@pytest.mark.parametrize("key", ["llm", "retrieval_encoder", "crm", "adapter_from"])
def test_a_trial_is_another_one_where_a_folder_that_it_names_has_changed(key, tried):
    folder = Path("folder").resolve()
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    trials = Trials(Path("trials.jsonl"), {"model": "ReLLa", "dataset": "movies", "split_file": "split.npz"})
    for _ in range(2):
        trials.objective({key: str(folder)}, [])
        assert len(tried) == len(trials.lines()) == 1
    (folder / "config.json").write_text('{"a": 1}')
    assert trials.lines() == []
    trials.objective({key: str(folder)}, [])
    assert len(tried) == 2 and len(trials.lines()) == 1


@pytest.mark.parametrize(
    "space, more, error, message",
    [
        ("lora_r pick [2]\n", {}, TuningError, "space.hyper, line 1: expected `key choice"),
        ("lora_r choice 2\n", {}, TuningError, "line 1: expected"),
        ("\n", {}, TuningError, "expected at least one searched key"),
        ("lora_r uniform 2,4,5\n", {}, TuningError, "line 1: expected"),
        ("lora_dropout uniform a,b\n", {}, TuningError, "line 1: expected"),
        ("lora_dropout uniform 0.2,0.1\n", {}, TuningError, "line 1: expected"),
        ("lora_dropout quniform 0,0.2,0\n", {}, TuningError, "line 1: expected"),
        ("train_shots loguniform 100,1000\n", {}, TuningError, "line 1: expected .*exponents of e"),
        ("lora_r choice [2,4\n\nlora_r choice 2020-13-45]", {}, TuningError, "line 1: expected .*\n.*line 3: expected"),
        ("lora_alpha choice [2]\nlora_r choice [{2,4}]\n", {}, TuningError, "line 2: expected"),
        ("lora_r choice [2]\nlora_r choice [4]\n", {}, TuningError, "line 2: expected each key once, found lora_r again"),
        ("learner choice [adam, adamx]\n", {}, ConfigError, "learner: expected one of adam"),
        ("crm choice [null, SIM]\n", {}, TuningError, r"line 1: expected folders of finished runs or null, found \['SIM'\]"),
        *(
            (
                f"{key} choice [2,8]\n",
                {},
                TuningError,
                f"line 1: expected a key of the models .* found {key}, which decides on the rows",
            )
            for key in ("min_history", "train_pool", "eval_args", "load_col", "seed", "LABEL_FIELD")
        ),
        ("min_history choice [2]\ntrain_pool choice [20]\n", {}, TuningError, "found min_history.*\n.*line 2: .*found train_pool"),
        *(
            (f"{key} choice [a]\n", {}, TuningError, f"found {key}, which changes no figure of a run")
            for key in ("run_folder", "checkpoint_dir", "show_progress", "tuned", "model")
        ),
        ("ReLLa.lora_r choice [2,4]\n", {}, TuningError, "found ReLLa.lora_r; leave .* the name out of the key"),
        ("lora_s choice [2]\n", {}, ConfigError, "lora_s: there is no such key; the nearest valid one is lora_r"),
        ("lora_r choice [2,0]\n", {}, ConfigError, "lora_r: expected an integer of at least 1, found 0"),
        ("lora_dropout uniform 0.0,3.0\n", {"algo": "random"}, ConfigError, "lora_dropout: expected a number"),
        ("lora_dropout uniform 0.0,0.2\n", {}, TuningError, "expected choices alone for exhaustive"),
        (CHOICES, {"algo": "best", "tool": "Optuna"}, ConfigError, "tool: .*\n.*algo: expected one of exhaustive, random, bayes"),
        (CHOICES, {"max_evals": 0}, ConfigError, "max_evals: expected an integer of at least 1, found 0"),
    ],
)
def test_a_search_that_cannot_start(space, more, error, message, movies, monkeypatch):
    monkeypatch.setattr("recbole_rella.quick_start._run", lambda *_: pytest.fail("a trial was started"))
    monkeypatch.setattr(tuning, "with_stages", lambda *_: pytest.fail("what is trained first was started"))
    with pytest.raises(error, match=message):
        search(movies, space, **more)


def test_the_encoding_of_a_space():
    Path("space.hyper").write_text("prompt_noun choice [café]\n", encoding="utf-8-sig")
    assert read_space("space.hyper") == {"prompt_noun": ("choice", ["café"])}
    Path("space.hyper").write_bytes("prompt_noun choice [café]\n".encode("latin-1"))
    with pytest.raises(TuningError, match="space.hyper: expected text in UTF-8"):
        read_space("space.hyper")


def test_no_file_of_keys(movies):
    with pytest.raises(TuningError, match="expected a file with the searched keys, found none at nowhere.hyper"):
        tune("nowhere.hyper", "ReLLa", movies[0], None, movies[1])


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_script_in_the_way_of_recboles_run_hyper(movies, ray_cluster):
    """HyperTuning with files alone, and Ray's own tune.run over the function that reports test metrics."""
    from ray import tune as ray_tune
    from recbole.trainer import HyperTuning

    name, tiny = movies
    Path("space.hyper").write_text("lora_r choice [2,4]\n")
    own = {
        **tiny,
        "model": "ReLLa",
        "dataset": name,
        "checkpoint_dir": str(Path("saved").resolve()),
    }
    Path("own.yaml").write_text(yaml.safe_dump(own))
    trials = HyperTuning(objective_function, algo="exhaustive", params_file="space.hyper", fixed_config_file_list=["own.yaml"])
    trials.run()
    trials.export_result(output_file="hyper.result")
    assert len(trials.params2result) == 2 and trials.best_params["lora_r"] in (2, 4)
    result = ray_tune.run(
        ray_tune.with_parameters(objective_function, config_file_list=[str(Path("own.yaml").resolve())]),
        config={"lora_r": ray_tune.choice([2, 4])},
        num_samples=1,
        storage_path=str(Path("ray").resolve()),
        verbose=0,
    )
    found = {r["test_result"]["auc"] for r in trials.params2result.values()}
    assert result.trials[0].metric_analysis["auc"]["max"] in found


RUN_HYPER = """
import argparse
from ray import tune
from recbole.quick_start import objective_function
from recbole.trainer import HyperTuning
parser = argparse.ArgumentParser()
for name in ("config_files", "params_file", "output_file"):
    parser.add_argument("--" + name)
arguments, _ = parser.parse_known_args()
files = arguments.config_files.split(" ")
tuning = HyperTuning(objective_function, algo="exhaustive", params_file=arguments.params_file, fixed_config_file_list=files)
tuning.run()
tuning.export_result(output_file=arguments.output_file)
print("best params:", tuning.best_params, objective_function.__module__)
"""


@pytest.mark.slow
def test_a_script_that_imports_recboles_objective_function_runs_unchanged(movies):
    """RecBole's run_hyper.py is in its repository, not in its wheel; this script takes the same things from RecBole."""
    name, tiny = movies
    Path("run_hyper.py").write_text(RUN_HYPER)
    Path("space.hyper").write_text("lora_r choice [2,4]\n")
    Path("own.yaml").write_text(yaml.safe_dump({**tiny, "model": "ReLLa", "dataset": name}))
    command = [
        sys.executable,
        "-m",
        "recbole_rella",
        "run_hyper.py",
        "--params_file=space.hyper",
        "--config_files=own.yaml",
        "--output_file=out.result",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "best params: {'lora_r': " in done.stdout and "recbole_rella.quick_start" in done.stdout
    assert Path("out.result").read_text().count("Test result:") == 2


def test_sim_is_tuned_as_rella_is(movies):
    name, tiny = movies
    Path("space.hyper").write_text("embedding_size choice [4,8]\n")
    best, score, path = tune("space.hyper", "SIM", name, None, tiny, output_file="out/hyper.result")
    assert set(best) == {"embedding_size"} and 0 < score <= 1
    assert yaml.safe_load(path.read_text()).items() >= {"model": "SIM", **best}.items()
