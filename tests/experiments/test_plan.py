"""Which settings each run gets, and when two runs are one."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from recbole.utils.argument_list import training_arguments

from recbole_rella.data.row_dataset import RowDataset
from recbole_rella.experiments.plan import Run, make_base, make_entries, settings_of, with_each_history
from recbole_rella.experiments.side_by_side import make_experiment
from recbole_rella.experiments.sweep import parse_sweep
from recbole_rella.files import write_yaml
from recbole_rella.keys import KEYS, ConfigError, affecting
from recbole_rella.quick_start import ModelError, load_data, make_config
from recbole_rella.rows.fields import ROW_ID
from recbole_rella.rows.split import Split
from recbole_rella.shipped import properties_folder, variant_files


def settings(movies, model, **more):
    name, tiny = movies
    base = make_config("ReLLa", name, config_dict={**tiny, **more})
    return {entry.label: settings_of(entry, base, 3, "split.npz") for entry in make_entries(model.split(","))}


def test_data_and_evaluation_are_shared_and_the_rest_is_not(movies):
    found = settings(movies, "ReLLa,FM,DIN", train_shots=30, lora_r=4, learning_rate=0.01)
    for label in ("FM", "DIN"):
        own = found[label]
        assert own["threshold"] == {"rating": 4} and own["eval_args"]["order"] == "TO" and own["learning_rate"] == 0.01
        assert own["metrics"] == ["AUC", "LogLoss", "Accuracy", "UAUC"] and own["valid_metric"] == "AUC"
        assert own["train_neg_sample_args"] is None  # RecBole's default for DIN is to sample, and not to learn from the labels
        assert not {"lora_r", "train_shots", "history_size", "mini_epochs", "llm", "transform"} & set(own)
    assert found["ReLLa"]["lora_r"] == 4 and found["ReLLa"]["train_shots"] == 30
    assert all(own["seed"] == 3 and own["split_file"] == "split.npz" for own in found.values())


@pytest.mark.parametrize("model", ["FM", "DIN"])
def test_what_a_model_learns_from_is_each_training_row_once_with_its_label(model, movies):
    name, tiny = movies
    base = make_config("ReLLa", name, config_dict=tiny)
    rows = RowDataset(base)
    split = Split.of(rows)
    split.save("split.npz")
    (entry,) = make_entries([model])
    own = settings_of(entry, base, 3, "split.npz")
    config = make_config(own.pop("model"), own.pop("dataset"), config_dict=own)
    _, (train, _, _) = load_data(config)
    batches = list(train)
    row_id = torch.cat([batch[ROW_ID] for batch in batches]).numpy()
    label = torch.cat([batch[config["LABEL_FIELD"]] for batch in batches]).numpy()
    np.testing.assert_array_equal(np.sort(row_id), np.sort(split.train))
    np.testing.assert_array_equal(label, rows.rows.label[row_id])


def test_what_rellas_own_files_set_is_not_forced_on_others(movies):
    found = settings(movies, "ReLLa,DCNV2")
    tiny = movies[1]
    assert tiny["epochs"] == 1 and found["DCNV2"]["epochs"] == 1  # the user said so
    assert "warmup_ratio" not in found["DCNV2"] and "clip_grad_norm" not in found["DCNV2"]


@pytest.mark.parametrize("dataset", sorted(path.stem for path in (properties_folder() / "dataset").glob("*.yaml")))
@pytest.mark.parametrize("model", ["FM", "DIN"])
def test_what_the_file_of_a_data_set_sets_of_training_is_for_rella(model, dataset):
    own = make_config(model, dataset)  # as RecBole has it
    for asked in ({"split_file": "split.npz"}, {"history_fields": ["default"]}):
        if model == "DIN" and "split_file" not in asked:
            continue  # it reads no columns
        config = make_config(model, dataset, config_dict=asked)
        shipped = yaml.safe_load((properties_folder() / "dataset" / f"{dataset}.yaml").read_text())
        assert config["load_col"].items() >= shipped["load_col"].items()  # the rest of the file holds
        trained = {key for key in training_arguments if key != "train_neg_sample_args"}
        assert {key: config[key] for key in trained} == {key: own[key] for key in trained}


def test_shots_for_all(movies):
    assert settings(movies, "FM", train_shots=30, train_shots_for="all")["FM"]["train_shots"] == 30
    assert "train_shots" not in settings(movies, "FM", train_shots=30, train_shots_for="ReLLa")["FM"]


def test_a_swept_value_reaches_the_models_that_read_it(movies):
    """Rivals too: shots where they are for all, numbers of the history where they are told them; and it comes last of all."""
    name, tiny = movies

    def swept(model, key, value, **more):
        base = make_config("ReLLa", name, config_dict={**tiny, **more})
        (entry,) = make_entries([model])
        return settings_of(replace(entry, swept={key: value}), base, 3, "split.npz")

    for model in ("ReLLa", "FM", "FM+history", "SIM", "LightGBM+history", "Tree"):
        assert swept(model, "train_shots", 30, train_shots=50, train_shots_for="all")["train_shots"] == 30
    for model in ("FM", "SIM", "Tree"):
        assert "train_shots" not in swept(model, "train_shots", 30)
    assert swept("FM+history", "history_buckets", 4, history_buckets=8)["history_buckets"] == 4
    assert "history_buckets" not in swept("FM", "history_buckets", 4)
    assert swept("TALLRec", "train_history", "retrieved")["train_history"] == "retrieved"  # which the variant sets
    assert "epochs" not in swept("LightGBM+history", "epochs", 4) and swept("FM", "epochs", 4)["epochs"] == 4
    assert "lora_r" not in swept("FM", "lora_r", 4) and swept("FM", "embedding_size", 4)["embedding_size"] == 4


def test_a_key_of_one_model_is_for_it_alone(movies, monkeypatch):
    more = {"FM.epochs": 7, "TALLRec.lora_r": 2, "ReLLa.lora_r": 5}
    found = settings(movies, "FM,DIN,ReLLa,TALLRec", **more)
    assert [found[label]["epochs"] for label in ("FM", "DIN", "ReLLa")] == [7, 1, 1]
    assert found["TALLRec"]["lora_r"] == 2 and found["ReLLa"]["lora_r"] == 5
    assert not any("." in key for own in found.values() for key in own)
    name, tiny = movies
    monkeypatch.setattr("sys.argv", ["run", "--FM.embedding_size=6", "--ReLLa.lora_r=3"])
    assert make_config("FM", name, config_dict=tiny)["embedding_size"] == 6
    assert make_config("ReLLa", name, config_dict=tiny)["lora_r"] == 3


def test_every_shipped_variant_is_an_entry():
    names = variant_files()
    assert {"TALLRec", "zero_shot", "mixed", "retrieved_only"} <= set(names)
    for entry, path in zip(make_entries(sorted(names)), (names[n] for n in sorted(names))):
        model = "SIM" if path.stem in ("TWIN", "DIN_ratings") else "ReLLa"
        assert {"model": model, **entry.own} == {"model": model, **yaml.safe_load(path.read_text())}
        assert entry.model == model and entry.is_ours and entry.is_rella == (model == "ReLLa")
        assert properties_folder() in path.parents


def test_a_variant_of_ones_own_and_of_another_model(tmp_path):
    (tmp_path / "small_fm.yaml").write_text("model: FM\nembedding_size: 4\n")
    (entry,) = make_entries([str(tmp_path / "small_fm.yaml")])
    assert (entry.label, entry.model, entry.own) == ("small_fm", "FM", {"embedding_size": 4}) and not entry.is_rella


@pytest.mark.parametrize(
    "names, message",
    [
        (
            ["Rella"],
            "expected a model of RecBole, ReLLa or the import path of a class .*TALLRec.* found 'Rella'; did you mean ReLLa",
        ),
        (["no.such.Model"], "import path of a class .* found 'no.such.Model'"),
        (["TALLRek"], "found 'TALLRek'; did you mean TALLRec"),
        (["nowhere.yaml"], "expected a model or a YAML file, found 'nowhere.yaml', which does not exist"),
        (["FM", "SASRec"], "that learn from the labels of rows .* found SASRec"),
        (["FM", "FM"], "expected different models, found"),
    ],
)
def test_models_that_cannot_be_compared(names, message):
    with pytest.raises(ModelError, match=message):
        make_entries(names)


def test_equal_settings_are_one_run_and_other_contents_another(movies, tmp_path):
    name, tiny = movies
    (tmp_path / "own.jinja").write_text("{{ target.text }}:")
    base = make_config("ReLLa", name, config_dict={**tiny, "prompt_template": str(tmp_path / "own.jinja")})
    fm, rella = make_entries(["FM", "ReLLa"])

    def run(entry, value, folder="split.npz"):
        own = entry if not entry.is_rella else type(entry)(entry.label, entry.model, {"history_size": value})
        return Run(own, 1, value, settings_of(own, base, 1, folder)).name

    assert run(fm, 3) == run(fm, 4) and run(rella, 3) != run(rella, 4)
    assert run(rella, 3) == run(rella, 3, folder="elsewhere/split.npz")
    before = run(rella, 3)
    (tmp_path / "own.jinja").write_text("{{ question }} {{ target.text }}:")
    assert run(rella, 3) != before


def test_a_sweep_shows_each_history_unless_one_is_chosen(movies, tmp_path, monkeypatch):
    name, tiny = movies
    entries = make_entries(["ReLLa", "TALLRec", "FM"])
    monkeypatch.setattr("recbole_rella.experiments.plan.tuned_file", lambda label, dataset: tmp_path / f"{label}.yaml")
    free = {key: value for key, value in tiny.items() if key not in ("train_history", "eval_history")}

    def expanded(**more):
        return with_each_history(entries, make_base(entries, name, None, {**free, **more}), "lora_r")

    found = expanded()
    assert [entry.label for entry in found] == ["ReLLa (retrieved)", "ReLLa (recent)", "ReLLa (both)", "TALLRec", "FM"]
    # Whatever the file of the data set says.
    kinds = [("mixed", "retrieved"), ("recent", "recent"), ("both", "both")]
    assert [(entry.own["train_history"], entry.own["eval_history"]) for entry in found[:3]] == kinds
    assert expanded(eval_history="recent") == entries
    assert expanded(**{"ReLLa.eval_history": "recent"}) == entries
    assert len(expanded(**{"FM.eval_history": "recent"})) == 5
    # What a search chose is for each of them, and a history that it chose is one.
    (tmp_path / "ReLLa.yaml").write_text("lora_r: 11\n")
    base = make_base(entries, name, None, {**free, "tuned": True})
    own = [settings_of(entry, base, 3, "split.npz").get("lora_r") for entry in with_each_history(entries, base, "history_size")]
    assert own == [11, 11, 11, None, None]
    (tmp_path / "ReLLa.yaml").write_text("train_history: recent\n")
    assert expanded(tuned=True) == entries


def test_a_run_that_another_stands_on_is_what_is_read_of_it(movies, tmp_path):
    """Its report may be written again (--diagnose); other adapters are another run."""
    name, tiny = movies
    base = make_config("ReLLa", name, config_dict=tiny)
    (entry,) = make_entries(["ReLLa"])

    def run():
        return Run(entry, 1, None, {**settings_of(entry, base, 1, "split.npz"), "adapter_from": str(tmp_path / "first")}).name

    for path in ("config.yaml", "adapter/adapter_model.safetensors", "report.html", "explanations/7.md"):
        (tmp_path / "first" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "first" / path).write_text("1")
    before = run()
    for path in ("report.html", "explanations/7.md"):
        (tmp_path / "first" / path).write_text("changed")
    assert run() == before
    (tmp_path / "first/adapter/adapter_model.safetensors").write_text("changed")
    assert run() != before


@pytest.mark.parametrize("key", ["seed", "min_history", "train_pool", "eval_args", "load_col", "threshold"])
def test_what_decides_on_the_rows_is_said_for_all(key, movies, tmp_path):
    """Of one model it changed nothing, or under the name of ReLLa the rows of all."""
    name, tiny = movies
    value = {"eval_args": {"order": "RO", "mode": "labeled"}, "load_col": {"inter": ["user_id"]}, "threshold": {"rating": 2}}.get(
        key, 7
    )
    for label in ("FM", "ReLLa"):
        with pytest.raises(ConfigError, match=rf"{label}\.{key}: expected {key} to be given for all models"):
            make_base(make_entries(["FM", "ReLLa"]), name, None, {**tiny, f"{label}.{key}": value})
    write_yaml(tmp_path / "own.yaml", {key: value, "lora_r": 2})
    with pytest.raises(ConfigError, match=f"own: {key}: expected {key} to be given for all models"):
        make_base(make_entries([str(tmp_path / "own.yaml")]), name, None, tiny)
    for more in ({"FM.eval_batch_size": 7}, {"FM.normalize_all": True}):
        assert make_base(make_entries(["FM"]), name, None, {**tiny, **more})


def test_what_is_trained_first_has_keys_of_its_own_wherever_it_comes_from(movies):
    """By its name before the dot, also where it is imported by its path."""
    name, tiny = movies
    given = {**tiny, "crm": "recbole.model.context_aware_recommender.fm.FM"}
    base = make_base(make_entries(["ReLLa"]), name, None, {**given, "FM.epochs": 3})
    (first,) = make_entries([base["crm"]])
    assert settings_of(first, base, 3, "split.npz")["epochs"] == 3
    with pytest.raises(ConfigError, match=r"FM.epochs: expected the name of a compared model \(FM, ReLLa\) before the dot"):
        make_base(make_entries(["ReLLa"]), name, None, {**given, f"{base['crm']}.epochs": 3})


def test_sweeps_are_read_as_yaml():
    assert parse_sweep("history_size:5,10") == ("history_size", [5, 10])
    assert parse_sweep("learning_rate: 0.01, 0.1") == ("learning_rate", [0.01, 0.1])
    assert parse_sweep("lora_target_modules:[q_proj],[q_proj, v_proj]")[1] == [["q_proj"], ["q_proj", "v_proj"]]
    for text in ("history_size", "history_size:", ":5", ""):
        with pytest.raises(ConfigError, match="expected key:value,value"):
            parse_sweep(text)
    assert parse_sweep("learning_rate:1e-3,1e-2")[1] == [0.001, 0.01]
    assert parse_sweep("learner:adam,adamw")[1] == ["adam", "adamw"]
    assert parse_sweep("lgb_params:{boosting: gbdt, learning_rate: 1e-3}")[1] == [{"boosting": "gbdt", "learning_rate": 0.001}]


@pytest.mark.parametrize("made_before", [False, True])
def test_a_sweep_leaves_the_rows_as_they_are(made_before, movies):
    """Whatever configurations this process made before."""
    if made_before:
        make_config("ReLLa", movies[0], None, movies[1])
    for key in (*affecting("rows"), "eval_args", "threshold", "load_col", "user_inter_num_interval", "seed", "LABEL_FIELD"):
        with pytest.raises(ConfigError, match=f"found {key}, which decides on the rows"):
            parse_sweep(f"{key}:1,2")
    for key in (
        "run_folder",
        "resume_from",
        "cache_dir",
        "checkpoint_dir",
        "data_path",
        "show_progress",
        "seeds",
        "train_shots_for",
    ):
        with pytest.raises(ConfigError, match=f"found {key}, which changes no figure of a run"):
            parse_sweep(f"{key}:1,2")
    with pytest.raises(ConfigError, match="found DIN.epochs; leave the other models out"):
        parse_sweep("DIN.epochs:1,2")
    others = set(KEYS) - set(affecting("rows", "run"))
    assert {"train_shots", "history_size", "llm", "eval_micro_tokens", "prompt_chat", "category_field"} <= others
    assert all(parse_sweep(f"{key}:1,2")[0] == key for key in others)


def test_keys_of_one_run_have_no_place_among_several(movies):
    name, tiny = movies
    entries = make_entries(["ReLLa", "FM"])
    for key in ("run_folder", "split_file"):
        with pytest.raises(ConfigError, match=f"{key}: expected none where several runs are made"):
            make_base(entries, name, None, {**tiny, key: "x"})
    assert make_base(entries, name, None, {**tiny, "run_folder": None})["run_folder"] is None


def test_what_changes_no_figure_makes_no_other_run(movies, monkeypatch):
    name, tiny = movies
    (rella,) = make_entries(["ReLLa"])

    def run(**more):
        base = make_config("ReLLa", name, None, {**tiny, **more})
        return Run(rella, 1, None, settings_of(rella, base, 1, "split.npz")).name

    first = run()
    same = {"cache_dir": "elsewhere", "checkpoint_dir": "elsewhere", "checkpoint_minutes": 1, "show_progress": True, "worker": 1}
    same |= {"state": "DEBUG", "expected_counts": {"users": 3}, "allow_changed": ["rows"], "train_shots_for": "all"}
    for key, value in same.items():
        assert run(**{key: value}) == first, key
    others = {"lora_r": 3, "eval_micro_tokens": 900, "prompt_noun": "film", "category_field": "class", "learning_rate": 0.5}
    for key, value in others.items():
        assert run(**{key: value}) != first, key
    monkeypatch.setattr("recbole_rella.experiments.plan.VERSION", "another")
    assert run() != first


def test_a_run_is_another_where_its_chat_template_is(movies):
    name, tiny = movies
    (rella,) = make_entries(["ReLLa"])
    chat = Path("chat.jinja")

    def run(text):
        chat.write_text(text)
        base = make_config("ReLLa", name, None, {**tiny, "prompt_chat": str(chat)})
        return Run(rella, 1, None, settings_of(rella, base, 1, "split.npz")).name

    assert run("{{ messages }}") == run("{{ messages }}") != run("{{ messages[0] }}")


def test_a_run_is_another_where_a_shipped_file_was_edited(movies, tmp_path, monkeypatch):
    """Defaults of the model and of the data set, and a template: what ran before with other ones is not what runs now."""
    name, tiny = movies
    own = Path(shutil.copytree(properties_folder(), tmp_path / "properties"))
    for module in ("config", "shipped"):
        monkeypatch.setattr(f"recbole_rella.{module}.properties_folder", lambda: own)

    def names():
        base = make_config("ReLLa", name, None, tiny)
        return [
            Run(entry, 1, None, settings_of(entry, base, 1, "split.npz")).name for entry in make_entries(["ReLLa", "SIM", "FM"])
        ]

    found = [names()]
    for edited in ("prompt/default.jinja", "model/SIM.yaml", f"dataset/{name}.yaml", "model/ReLLa.yaml"):
        with (own / edited).open("a", encoding="utf-8") as file:
            file.write("\nweight_decay: 0.5\n")
        found.append(names())
    changed = [[one != other for one, other in zip(*pair)] for pair in itertools.pairwise(found)]
    assert changed == [[True, False, False], [False, True, False], [True, True, True], [True, True, True]]


def test_variants_name_only_keys_that_exist(movies):
    name, tiny = movies
    for path in variant_files().values():
        make_config("ReLLa", name, [str(path)], tiny)
    assert Path(variant_files()["TALLRec"]).read_text().count("recent") >= 2


def test_history_behind_a_plus_sign_is_a_setting_of_that_entry_alone(movies, tmp_path, monkeypatch):
    (tmp_path / "small_fm.yaml").write_text("model: FM\nembedding_size: 4\n")
    (tmp_path / "a+b.yaml").write_text("model: DCNV2\n")
    (tmp_path / "history_plugin.py").write_text(
        "from recbole.model.context_aware_recommender.fm import FM\nclass OwnFM(FM): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = [
        "FM",
        "FM+history",
        "small_fm.yaml+history",
        "history_plugin.OwnFM+history",
        "TALLRec+history",
        "a+b.yaml",
        "Tree+history",
    ]
    entries = make_entries(names)
    labels = ["FM", "FM+history", "small_fm+history", "OwnFM+history", "TALLRec+history", "a+b", "Tree+history"]
    assert [entry.label for entry in entries] == labels
    default = {"history_fields": ["default"]}
    assert [entry.own for entry in entries][:4] == [{}, default, {"embedding_size": 4, **default}, default]
    assert entries[4].own["history_fields"] == ["default"] and entries[4].own["train_history"] == "recent"
    assert entries[5].own == {} and entries[3].model == "history_plugin.OwnFM"
    found = settings(movies, "FM,FM+history,LightGBM+history,ReLLa", history_buckets=8, **{"FM.epochs": 2})
    assert "history_fields" not in found["FM"] and "history_buckets" not in found["FM"]
    assert found["FM+history"]["history_fields"] == ["default"] and found["FM+history"]["history_buckets"] == 8
    assert found["FM"]["epochs"] == found["FM+history"]["epochs"] == 2  # the model's name stands for both
    assert "history_fields" not in found["ReLLa"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("FM+histori", r"expected \+history behind the name of a model, found \+histori in 'FM\+histori'"),
        ("DIN+history", r"expected a model that reads columns of rows with \+history, found DIN\+history"),
        ("Bias+history", r"expected a model that reads columns of rows with \+history, found Bias\+history"),
        ("Foo+history", "found 'Foo'"),
    ],
)
def test_what_cannot_follow_a_plus_sign(name, message):
    with pytest.raises(ModelError, match=message):
        make_entries([name])


def test_models_that_are_fitted_at_once_get_what_they_read_and_all_training_rows(movies):
    given = {"epochs": 0, "train_shots": 30, "tree_rounds": 7, "lora_r": 3, "llm": "mini", "Tree.tree_leaves": 5}
    found = settings(movies, "Bias,Tree,LightGBM,FM", **given)
    for label in ("Bias", "Tree", "LightGBM"):
        assert not {"epochs", "train_shots", "lora_r", "llm"} & set(found[label])
    assert "epochs" in found["FM"] and "tree_rounds" not in found["Bias"]
    assert found["Tree"]["tree_rounds"] == 7 and found["Tree"]["tree_leaves"] == 5
    for label in ("Bias", "Tree"):
        config = make_config(config_dict={**found[label], "split_file": None})
        assert config["train_shots"] is None and config["tree_learning_rate"] == 0.05


def test_what_was_chosen_for_an_entry_gives_way_to_what_is_given(movies, tmp_path, monkeypatch):
    monkeypatch.setattr("recbole_rella.experiments.plan.tuned_file", lambda label, dataset: tmp_path / f"{label}.yaml")
    (tmp_path / "FM.yaml").write_text("embedding_size: 7\nweight_decay: 0.5\n")
    (tmp_path / "FM+history.yaml").write_text("embedding_size: 9\nlearning_rate: 0.25\n")
    (tmp_path / "ReLLa.yaml").write_text("lora_r: 11\n")
    name, tiny = movies
    entries = make_entries(["FM", "FM+history", "DeepFM", "ReLLa", "as_shipped"])

    def of_table(tuned):
        given = {**tiny, "tuned": tuned, "learning_rate": 0.01, "FM+history.weight_decay": 0.125}
        base = make_base(entries, name, None, given)
        return {entry.label: settings_of(entry, base, 3, "split.npz") for entry in entries}

    found = of_table(True)
    assert (found["FM"]["embedding_size"], found["FM"]["weight_decay"], found["FM"]["learning_rate"]) == (7, 0.5, 0.01)
    own = found["FM+history"]
    assert (own["embedding_size"], own["weight_decay"], own["learning_rate"]) == (9, 0.125, 0.01)
    assert "embedding_size" not in found["DeepFM"] and not any("tuned" in own for own in found.values())
    assert found["ReLLa"]["lora_r"] == 11 and found["as_shipped"] == of_table(False)["ReLLa"]
    assert not any("embedding_size" in own for own in of_table(False).values())


TUNED = sorted((properties_folder() / "tuned").glob("*/*.yaml"))


@pytest.mark.parametrize("path", TUNED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_is_shipped_as_tuned_is_for_an_entry_that_reads_it(path):
    (entry,) = make_entries([path.stem])
    base = make_base([entry], path.parent.name, None, {"tuned": True})
    own, chosen = settings_of(entry, base, 3, "split.npz"), yaml.safe_load(path.read_text())
    config = make_config(config_dict=own)
    assert chosen and {key: config[key] for key in chosen} == chosen
    assert all(entry.reads(key) for key in chosen if key in KEYS)


def test_bias_is_added_unless_it_is_named_or_left_out(movies):
    name, tiny = movies
    own = {**tiny, "with_bias": True}
    labels = lambda names, more: [  # noqa: E731
        entry.label for entry in make_experiment(make_entries(names), name, None, {**own, **more}, bias=True).entries
    ]
    assert labels(["FM"], {}) == ["FM", "Bias"] and labels(["FM"], {"with_bias": False}) == ["FM"]
    assert labels(["Bias", "FM"], {"Bias.state": "ERROR"}) == ["Bias", "FM"]
    assert [entry.label for entry in make_experiment(make_entries(["FM"]), name, None, own).entries] == ["FM"]
