"""Law 10: a run that is loaded anywhere scores as it did, or refuses and says what differs."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import rewrite

from recbole_rella import load_data_and_model, run_recbole_rella
from recbole_rella.files import OutputError, read_yaml
from recbole_rella.run_folder import RunChangedError, RunError, read_run
from recbole_rella.serving.export import Export
from recbole_rella.serving.scorer import Scorer
from recbole_rella.trainer import ReLLaTrainer


def finished(movies, **more):
    """A run of ReLLa, and the settings that it was given."""
    name, tiny = movies
    settings = {**tiny, "learning_rate": 0.05, **more}
    run_recbole_rella("ReLLa", name, config_dict=settings)
    (folder,) = Path("saved").glob("ReLLa-*")
    return folder, settings


def scores_again(folder):
    """P(yes) of the test rows, by what is loaded from the folder."""
    config, model, dataset, _, _, test = load_data_and_model(folder)
    scores = {}
    for interaction, *_ in test:
        scores.update(zip(interaction["row_id"].tolist(), model.predict(interaction.to(config["device"])).tolist()))
    return scores


def test_a_run_scores_elsewhere_without_cache_template_or_working_folder(movies, tmp_path, monkeypatch):
    layout = tmp_path / "mine.jinja"
    layout.write_text(
        "{% for b in behaviours %}{{ b.text }}: {{ b.answer }}, {{ b.rating }}\n{% endfor %}{{ question }}\n{{ target.text }}:"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    folder, settings = finished(movies, prompt_template="mine.jinja")
    told = read_run(folder).predictions()
    shutil.rmtree("own")
    layout.write_text("{{ target.text }}:")
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(folder, moved)
    shutil.rmtree("saved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    again = scores_again(moved)
    np.testing.assert_array_equal([again[row] for row in told["row_id"]], told["score"].to_numpy(np.float32))
    assert not list((tmp_path / "empty").glob("**/mini-*")), "the embedded LLM was pretrained again"
    # Nothing is logged or written beside the run by loading it.
    assert sorted(path.name for path in Path().iterdir()) == ["run"]


def append_rows(name, settings):
    rewrite(settings, name, "inter", lambda text: text + "0\t100\t5\t1900000000\n0\t101\t1\t1900000001\n")


def other_ratings(name, settings):
    """Labels stay as they are; the prompts tell other stars."""
    rewrite(settings, name, "inter", lambda text: re.sub(r"\t5\t", "\t4\t", text, count=3))


def other_titles(name, settings):
    rewrite(settings, name, "item", lambda text: text.replace("Comedy Story 0", "Comedy Tale 0"))


CHANGES = {"rows": append_rows, "rows by their ratings": other_ratings, "prompts": other_titles}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_data_is_refused_by_everything_that_reads_a_run(what, movies):
    folder, settings = finished(movies)
    CHANGES[what](movies[0], settings)
    names = what.split()[0]
    for use in (
        load_data_and_model,
        Scorer.load,
        Export,
        lambda run: run_recbole_rella("ReLLa", movies[0], config_dict={**settings, "resume_from": str(run)}),
    ):
        with pytest.raises(RunChangedError, match=rf"(?s){names}: .*; expected \w+.*, found \w+.*--allow_changed={names}"):
            use(folder)
    assert Scorer.load(folder, allow_changed=names).score(["101"], user_id="3")["score"].between(0, 1).all()


def test_another_llm_version_or_encoder_is_refused(movies, llms, tmp_path):
    llm = tmp_path / "llm"
    shutil.copytree(llms("llama"), llm)
    folder, _ = finished(movies, llm=str(llm), retrieval_encoder="llm")
    config = json.loads((llm / "generation_config.json").read_text())
    (llm / "generation_config.json").write_text(json.dumps({**config, "temperature": 0.5, "do_sample": True}))
    with pytest.raises(
        RunChangedError, match=r"(?s)llm: the LLM; expected .*encoder: the encoder of items; .*--allow_changed=llm,encoder"
    ):
        load_data_and_model(folder)
    load_data_and_model(folder, allow_changed="llm,encoder")
    (llm / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n")
    identity = json.loads((folder / "identity.json").read_text())
    (folder / "identity.json").write_text(json.dumps({**identity, "version": "0.0.1"}))
    with pytest.raises(RunChangedError, match=r"version: the version of recbole_rella; expected 0.0.1, found "):
        load_data_and_model(folder, allow_changed="llm,encoder")
    with pytest.raises(RunError, match="allow_changed: expected names among version, rows, llm, encoder, prompts, crm, found lmm"):
        load_data_and_model(folder, allow_changed=["lmm"])


def test_what_is_no_run_of_rella(movies, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="expected the folder of a run with a config.yaml, found .*empty"):
        load_data_and_model("empty")
    name, tiny = movies
    columns = {"inter": ["user_id", "item_id", "rating", "timestamp"]}
    settings = {**{key: tiny[key] for key in ("data_path", "threshold")}, "load_col": columns, "epochs": 1}
    run_recbole_rella("FM", name, config_dict={**settings, "split_file": split_of(movies)})
    (folder,) = Path("saved").glob("FM-*")
    with pytest.raises(RunError, match="expected a finished run of ReLLa, found one of FM without adapters.*reads its model.pth"):
        load_data_and_model(folder)


def split_of(movies):
    from recbole_rella.data.row_dataset import RowDataset
    from recbole_rella.quick_start import make_config
    from recbole_rella.rows.split import Split

    name, tiny = movies
    Split.of(RowDataset(make_config("ReLLa", name, config_dict=tiny))).save("split.npz")
    return "split.npz"


def test_the_folder_holds_the_run(movies):
    folder, settings = finished(movies)
    run = read_run(folder)
    assert set(run.identities) == {"version", "rows", "llm", "encoder", "prompts", "crm"}
    assert [name for name, value in run.identities.items() if not value] == ["crm"]
    given = read_yaml(folder / "config.yaml")
    assert Path(given["data_path"]).is_absolute() and given["llm"] == "mini" and given["llm_dtype"] == "float32"
    assert Path(run.settings()["llm"]) == folder.resolve() / "llm" and (folder / "llm" / "model.safetensors").is_file()
    assert "{{ question }}" in (folder / "prompt" / "template.jinja").read_text()
    sentences = dict(line.split("\t") for line in (folder / "prompt" / "items.tsv").read_text().splitlines())
    assert sentences["101"] == "Drama Story 1 is a Drama movie."
    assert run.metrics["versions"]["recbole-rella"]


def test_an_interrupted_run_goes_on_with_its_own_llm(movies, monkeypatch):
    """Also where the cache is gone, from which another embedded LLM would be made on another machine."""
    name, tiny = movies
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "cache_dir": "own", "run_folder": "run", "epochs": 1})
    before = read_run("run").identities["llm"]
    shutil.rmtree("own")
    monkeypatch.setattr("recbole_rella.data.embedded_llm.mini_llm", lambda *_: pytest.fail("pretrained again"))
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "cache_dir": "own", "resume_from": "run", "epochs": 2})
    run = read_run("run")
    assert run.identities["llm"] == before and run.metrics["best_epoch"] in (0, 1)


def test_a_folder_holds_one_run(movies, monkeypatch):
    """What another one left in it would count as its results."""
    name, tiny = movies
    settings = {**tiny, "learning_rate": 0.05}
    run_recbole_rella("ReLLa", name, config_dict={**settings, "run_folder": "run"})
    message = r"run_folder: expected a folder without a run, found one in .*run. .*--resume_from=.*run"
    with monkeypatch.context() as patch, pytest.raises(RunError, match=message):
        patch.setattr("recbole_rella.quick_start.load_data", lambda *_: pytest.fail("data was read"))
        run_recbole_rella("ReLLa", name, config_dict={**settings, "history_size": 2, "run_folder": "run"})
    with pytest.raises(
        RunChangedError, match=r"(?s)began to train, found others:\n  learning_rate: expected 0.05, found 0.1\nLeave"
    ):
        run_recbole_rella("ReLLa", name, config_dict={**tiny, "learning_rate": 0.1, "epochs": 3, "resume_from": "run"})
    assert read_run("run").is_scored
    monkeypatch.setattr(ReLLaTrainer, "evaluate", lambda *_, **__: pytest.fail("interrupted"))
    with pytest.raises(pytest.fail.Exception):
        run_recbole_rella("ReLLa", name, config_dict={**settings, "epochs": 3, "resume_from": "run"})
    assert read_run("run").metrics is None and read_run("run").predictions() is None and read_run("run").has_adapter


@pytest.mark.parametrize("name", ["llm", "adapter", "report.html"])
def test_a_folder_that_holds_what_a_run_writes_is_somebody_elses(name, movies, monkeypatch):
    """--run_folder=. where an LLM lies in llm/: the run's own would take its place."""
    precious = Path("mine") / name / "precious" if "." not in name else Path("mine") / name
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    monkeypatch.setattr("recbole_rella.quick_start.load_data", lambda *_: pytest.fail("data was read"))
    with pytest.raises(RunError, match=rf"run_folder: expected a folder without what a run writes, found {name} in mine\. Name"):
        run_recbole_rella("ReLLa", movies[0], config_dict={**movies[1], "run_folder": "mine"})
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("model", ["ReLLa", "Bias"])
@pytest.mark.parametrize("key, place", [("run_folder", "file"), ("run_folder", "link/run"), ("checkpoint_dir", "file/saved")])
def test_a_folder_that_cannot_be_is_refused_before_anything_is_made(key, place, model, movies, monkeypatch):
    name, tiny = movies
    Path("file").write_text("a file")
    Path("link").symlink_to("nothing")
    monkeypatch.setattr("recbole_rella.quick_start.load_data", lambda *_: pytest.fail("data was read"))
    with pytest.raises(OutputError, match=rf"{key}: expected a folder at .*{place.split('/')[0]}, found something else"):
        run_recbole_rella(model, name, config_dict={**tiny, key: place})
    assert Path("file").read_text() == "a file"


def test_predictions_of_no_other_rows_than_the_test_rows(movies):
    """Without a test part the rows of validation are no test predictions."""
    name, tiny = movies
    args = {"split": {"RS": [0.8, 0.2, 0.0]}, "order": "TO", "group_by": None, "mode": "labeled"}
    result = run_recbole_rella("ReLLa", name, config_dict={**tiny, "eval_args": args, "run_folder": "run"})
    assert result["test_result"] is None and result["best_valid_result"]["auc"] > 0
    assert read_run("run").predictions() is None and "test_exact" not in read_run("run").metrics


def test_numpy_arrays_of_a_cache_that_cannot_be_named_are_made_each_time(tmp_path):
    from recbole_rella.files import cached_arrays

    made = []
    for _ in range(2):
        cached_arrays(tmp_path, "thing", None, lambda: made.append(1) or {"a": np.arange(2)})
    assert len(made) == 2 and not list(tmp_path.iterdir())


def test_one_row_and_one_label(movies, caplog):
    """Parts that a metric cannot be computed on lose no run: it is said before training, and the last epoch is kept."""
    name, tiny = movies
    result = run_recbole_rella("ReLLa", name, config_dict={**tiny, "eval_rows": 1, "epochs": 2, "run_folder": "one"})
    assert "AUC cannot be computed on the 1 validation rows: all of them have the label" in caplog.text
    assert np.isnan(result["test_result"]["auc"]) and np.isfinite(result["test_result"]["logloss"])
    run = read_run("one")
    assert run.metrics["best_epoch"] == 1 and len(run.predictions()) == 1 and np.isnan(result["best_valid_score"])
    assert json.loads((Path("one") / "metrics.json").read_text(), parse_constant=pytest.fail)["test"]["auc"] is None
    label = run.predictions()["label"].iloc[0]
    score = run.predictions()["score"].iloc[0]
    assert result["test_result"]["logloss"] == pytest.approx(-np.log(score if label else 1 - score), abs=1e-3)


def test_a_table_reads_what_a_run_predicted(movies):
    folder, _ = finished(movies)
    table = read_run(folder).predictions()
    assert isinstance(table, pd.DataFrame) and table["user_id"].map(type).eq(str).all()
    for text in ("NA", "null", "007"):  # which pandas would take for something else
        table.assign(user_id=text).to_csv(folder / "test_predictions.csv", index=False)
        assert (read_run(folder).predictions()["user_id"] == text).all()


def test_a_run_may_be_resumed_by_a_file(movies, monkeypatch):
    """resume_from in a YAML file stands for the LLM and the texts of the run, as on the command line."""
    name, tiny = movies
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "run_folder": "run"})
    before = read_run("run").identities
    Path("more.yaml").write_text("resume_from: run\nepochs: 2\n")
    monkeypatch.setattr("recbole_rella.data.embedded_llm.mini_llm", lambda *_: pytest.fail("pretrained again"))
    run_recbole_rella("ReLLa", name, config_file_list=["more.yaml"], config_dict=tiny)
    assert read_run("run").identities == before and len(read_run("run").predictions())


def test_a_run_that_proves_nothing_is_refused(movies):
    folder, _ = finished(movies)
    (folder / "identity.json").write_text("{half")
    with pytest.raises(RunError, match="expected identity.json in .*, which proves what the run stood on, found none that reads"):
        load_data_and_model(folder)


def test_what_was_scored_is_checked_to_be_the_test_rows(movies, monkeypatch):
    name, tiny = movies
    evaluate = ReLLaTrainer.evaluate

    def rows_lost(self, *given, **more):
        result = evaluate(self, *given, **more)
        self.predictions = {column: values[1:] for column, values in self.predictions.items()}
        return result

    monkeypatch.setattr(ReLLaTrainer, "evaluate", rows_lost)
    with pytest.raises(RuntimeError, match=r"The \d+ scored rows are not the \d+ test rows"):
        run_recbole_rella("ReLLa", name, config_dict={**tiny, "run_folder": "run"})
    assert not (Path("run") / "test_predictions.csv").exists()
