"""The table of keys, and the gate through which every given value goes."""

import ast
import inspect
import json
import os
from pathlib import Path

import numpy as np
import pytest
import recbole
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recbole.config import Config

import recbole_rella
from recbole_rella import arguments, config, key_rules, keys
from recbole_rella.config import chat_template, template_file
from recbole_rella.given import absolute, compared, no_command_line, plain
from recbole_rella.key_docs import MODELS, help_text, key_texts, markdown, recbole_defaults
from recbole_rella.keys import AFFECTS, KEYS, ConfigError, affecting
from recbole_rella.quick_start import make_config, run_recbole_rella
from recbole_rella.run_folder import begin_run
from recbole_rella.shipped import properties_folder, variant_files

ROOT = Path(__file__).parents[1]


# The table.


def test_the_table_and_the_file_of_defaults_name_the_same_keys_in_the_same_order():
    assert list(key_texts()) == list(KEYS)
    files = {model: yaml.safe_load((properties_folder() / "model" / f"{model}.yaml").read_text()) for model in MODELS}
    assert sorted(path.stem for path in (properties_folder() / "model").glob("*.yaml")) == sorted(MODELS)
    of_all = [name for name, key in KEYS.items() if not key.of or "ReLLa" in key.of]
    assert set(files["ReLLa"]) == set(of_all) | set(recbole_defaults())
    for model in MODELS[1:]:  # a key of its own, or another default for one that all have
        own = {name for name, key in KEYS.items() if key.of == (model,)}
        assert own <= set(files[model]) and all(not KEYS[name].of for name in set(files[model]) & set(KEYS) - own)
    defaults = {name: value for values in reversed(files.values()) for name, value in values.items()}
    kinds = {
        "str": str,
        "int": int,
        "float": (int, float),
        "bool": bool,
        "dict": dict,
        "list of str": list,
        "str or list": (str, list),
    }
    for name, text in key_texts().items():
        assert text.default == defaults[name] and text.section and text.comment.rstrip().endswith((".", "..."))
        assert text.default is None or isinstance(text.default, kinds[text.kind]), name


def test_every_key_affects_something_and_every_word_is_used():
    for name, key in KEYS.items():
        assert key.affects and set(key.affects) <= set(AFFECTS), name
        assert not (key.words or key.or_name) or key.is_path, name
        assert key.rule(object()) is not None, name  # what docs/keys.md says that it holds
        for word in key.words:
            assert key.rule(word) is None, word
    assert {word for key in KEYS.values() for word in key.affects} == set(AFFECTS)
    of_rows = ("min_history", "targets_per_user", "history_shuffle_seed", "train_pool", "eval_rows", "split_file")
    assert affecting("rows") == of_rows
    assert set(affecting("mini", "llm")) == set(affecting("mini")) | set(affecting("llm"))
    with pytest.raises(KeyError):
        affecting("prompt")


def test_the_groups_that_unknown_keys_are_taken_for_have_members():
    for group in keys._GROUPS:
        assert [name for name in KEYS if name.startswith(group)]


def test_reserved_words_have_their_files():
    assert all(template_file(word).is_file() for word in KEYS["prompt_template"].words)
    assert [word for word in KEYS["prompt_chat"].words if chat_template(word)] == ["vicuna"]


def test_the_page_of_keys_is_up_to_date():
    """If not: python docs/write_keys.py"""
    assert (ROOT / "docs" / "keys.md").read_text(encoding="utf-8") == markdown()
    assert all(f"| `{name}` |" in markdown() for name in KEYS)
    rows = [line for line in markdown().splitlines() if line.startswith("| `")]
    assert all(line.replace("\\|", "").count("|") in (3, 6) for line in rows)


def test_the_help_lists_every_key_and_its_comment():
    for text in key_texts().values():
        assert f"--{text.name}={text.default}" in help_text() and text.comment in help_text()


def _recbole_keys():
    """Keys that RecBole's files list, or that its Config sets or reads."""
    found = set()
    for path in (Path(recbole.__file__).parent / "properties").glob("**/*.yaml"):
        values = None if path.name.endswith("url.yaml") else yaml.safe_load(path.read_text())
        found |= set(values or ())
    tree = ast.parse(inspect.getsource(Config).replace("class Config(object)", "class Config"))
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return found | {name for name in names if name.isidentifier()}


def _reads(path):
    """The keys that a module reads of a Config: ``config["..."]``, ``self.config["..."]``, ``base["..."]``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            holder = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if holder in ("config", "base", "recbole_config"):
                yield node.slice.value


def test_every_key_that_the_package_reads_exists():
    """A Config gives None for a key that it does not have."""
    known = set(KEYS) | _recbole_keys() | config._UNLISTED
    reads = {(path.name, key) for path in (ROOT / "recbole_rella").rglob("*.py") for key in _reads(path)}
    assert len(reads) > 60
    assert [(name, key) for name, key in sorted(reads) if key not in known] == []


# Values: what is given is plain before it is checked and written.

SCALARS = st.one_of(
    st.integers(-5, 5).map(np.int64),
    st.floats(-5, 5).map(np.float64),
    st.floats(-4, 4, width=32).map(np.float32),
    st.booleans().map(np.bool_),
    st.text("abc", max_size=3).map(np.str_),
    st.just(Path("some/where")),
    st.none(),
    st.integers(),
)
WORDS = st.text("ab", max_size=2).map(np.str_)


def _collections(inner):
    lists = st.lists(inner, max_size=3)
    return lists | lists.map(tuple) | st.dictionaries(WORDS, inner, max_size=2)


VALUES = st.recursive(SCALARS, _collections)


@given(VALUES)
def test_plain_values_can_be_written_and_read(value):
    found = plain(value)
    assert yaml.safe_load(yaml.safe_dump(found)) == found
    assert plain(found) == found

    def same(ours, theirs):
        if isinstance(theirs, (list, tuple)):
            return type(ours) is list and len(ours) == len(theirs) and all(map(same, ours, theirs))
        if isinstance(theirs, dict):
            return set(ours) == set(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
        return ours == (str(theirs) if isinstance(theirs, Path) else theirs)

    assert same(found, value)


def test_kinds_of_text_and_number_are_text_and_numbers():
    class Word(str):
        def __str__(self):
            return "as members of an Enum do"

    class Count(int):
        pass

    assert type(plain(Word("llm"))) is str and plain(Word("llm")) == "llm"
    assert type(plain(Count(3))) is int and plain(np.array([[1, 2]])) == [[1, 2]] and plain(np.array(3.5)) == 3.5


def test_numpy_values_and_paths_configure_a_run(movies, tmp_path):
    name, tiny = movies
    own = {
        **tiny,
        "learning_rate": np.float64(1e-3),
        "weight_decay": np.float32(0.5),
        "history_size": np.int64(5),
        "llm_shard": np.bool_(False),
        "prompt_noun": np.str_("film"),
        "prompt_answers": ("Yes", "No"),
        "cache_dir": tmp_path / "cache",
        "data_path": Path(tiny["data_path"]),
        "prompt_words": {np.str_("age"): {np.int64(20): "twenty"}},
    }
    given = dict(own)
    config = make_config("ReLLa", np.str_(name), None, own)
    assert own == given  # the caller's dictionary is the caller's
    kinds = {
        "learning_rate": float,
        "history_size": int,
        "llm_shard": bool,
        "prompt_noun": str,
        "prompt_answers": list,
        "cache_dir": str,
    }
    assert {key: type(config[key]) for key in kinds} == kinds
    begin_run(tmp_path, config)
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["learning_rate"] == 1e-3 and saved["prompt_words"] == {"age": {20: "twenty"}} and saved["dataset"] == name
    assert config["data_path"] == str(Path(tiny["data_path"]) / name)


def test_gpus_may_be_given_as_numbers(movies):
    name, tiny = movies
    for given_ids in ((0, 1), [0, 1], "0,1"):
        assert make_config("ReLLa", name, None, {**tiny, "use_gpu": False, "gpu_id": given_ids})["gpu_id"] == "0,1"


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("lora_r", "4", 4),
        ("lora_dropout", "1e-2", 0.01),
        ("llm_shard", "true", True),
        ("llm_shard", "False", False),
        ("targets_per_user", "None", None),
        ("split_file", "None", None),
        ("lora_target_modules", "['q_proj', 'v_proj']", ["q_proj", "v_proj"]),
        ("user_inter_num_interval", "[5,inf)", "[5,inf)"),
        ("eval_args", "{'order': 'TO'}", {"order": "TO"}),
        ("gpu_id", "0,1", (0, 1)),
        ("prompt_noun", "2020", "2020"),
        ("prompt_noun", "'film'", "film"),
        ("prompt_noun", "True", "True"),
        ("prompt_noun", "{1, 2}", "{1, 2}"),
        ("prompt_item", "[1, 2]", "[1, 2]"),
        ("ReLLa.prompt_noun", "5", "5"),
        ("prompt_item", "{{ item.a }}", "{{ item.a }}"),
        ("embedding_size", "[" * 10_000, "[" * 10_000),
        ("anything", "{1, 2}", "{1, 2}"),
        ("anything", "", ""),
    ],
)
def test_texts_are_read_as_recbole_reads_them(key, text, value):
    found = arguments.read_value(key, text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["__import__('os').mkdir('made')", "exit()", "os.sep", "1/0", "[].append(1)", "print", "lambda: 0"]
)
def test_no_text_is_executed(text, movies):
    name, tiny = movies
    assert arguments.read_value("another_plugin", text) == text
    assert Config("ReLLa", name, config_dict={**tiny, "another_plugin": text})["another_plugin"] == text
    assert Config("FM", name, config_dict={**tiny, "another_plugin": text})["another_plugin"] == text
    assert not Path("made").exists()


def test_a_list_may_be_words_with_commas(movies):
    name, tiny = movies
    for text in ("rows,llm", "[rows, llm]", "['rows','llm']", ["rows", "llm"], ("rows", "llm")):
        assert make_config("ReLLa", name, None, {**tiny, "allow_changed": text})["allow_changed"] == ["rows", "llm"]
    assert make_config("ReLLa", name, None, tiny)["allow_changed"] == []
    assert make_config("ReLLa", name, None, {**tiny, "lora_target_modules": "q_proj"})["lora_target_modules"] == ["q_proj"]


# Paths and reserved words.


@pytest.fixture
def home(tmp_path, monkeypatch, llms):
    """A home folder with an LLM in it."""
    folder = tmp_path / "home"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "x").symlink_to(llms("llama"))
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_home_is_understood_in_every_path(movies, home):
    name, tiny = movies
    (home / "run").mkdir()
    (home / "run" / "config.yaml").write_text("model: ReLLa\ndataset: movies\n")
    (home / "data").symlink_to(tiny["data_path"])
    (home / "own.jinja").write_text("{{ target.text }}")
    values = {
        "llm": "~/models/x",
        "crm": "~/run",
        "retrieval_encoder": "~/models/x",
        "retrieval_mix_encoder": "~/models/x",
        "prompt_template": "~/own.jinja",
        "prompt_chat": "~/own.jinja",
        "adapter_from": "~/run",
        "cache_dir": "~/cache",
        "split_file": "~/split.npz",
        "run_folder": "~/run",
        "resume_from": "~/run",
        "checkpoint_dir": "~/saved",
    }
    assert set(values) == {*keys.paths(), "checkpoint_dir"}
    config = make_config("ReLLa", name, None, {**tiny, **values, "cflora": True, "data_path": "~/data"})
    for key, value in values.items():
        assert config[key] == str(home) + value[1:], key
    assert config["data_path"] == str(home / "data" / name)
    assert make_config("ReLLa", f"~/data/{name}", None, tiny)["data_path"] == str(Path(tiny["data_path"]) / name)
    (home / "own.yaml").write_text(yaml.safe_dump({**tiny, "history_size": 7, "llm": "~/models/x"}))
    config = make_config("ReLLa", name, ["~/own.yaml"])
    assert config["history_size"] == 7 and config["llm"] == str(home / "models" / "x")
    assert make_config("FM", name, None, {**tiny, "data_path": "~/data"})["data_path"] == str(home / "data" / name)


def test_reserved_words_are_never_paths(movies, llms):
    """A folder of that name in the working folder changes nothing."""
    name, tiny = movies
    numbers = {"spa": True, "spa_tokens": ["history"], "history_fields": ["default"]}  # what adapter_from is for
    for key in keys.paths():
        for word in KEYS[key].words:
            if not Path(word).exists():
                Path(word).symlink_to(llms("llama"))
    Path("run").mkdir()
    Path("run/config.yaml").write_text("model: FM\ndataset: movies\n")
    for key in keys.paths():
        for word in KEYS[key].words:
            assert make_config("ReLLa", name, None, {**tiny, **numbers, "crm": "run", key: word})[key] == word
            assert absolute({key: word}) == {key: word}


def test_paths_become_absolute_and_hub_names_stay(tmp_path, llms):
    Path("gpt2").symlink_to(llms("llama"))
    given_paths = {"llm": "gpt2", "retrieval_encoder": "org/name", "cache_dir": "cache", "data_path": "data"}
    assert absolute({**given_paths, "lora_r": 3, "split_file": None}) == {
        "llm": str((tmp_path / "gpt2").resolve()),
        "retrieval_encoder": "org/name",
        "cache_dir": str(tmp_path / "cache"),  # wherever a run starts, and before the first has made it
        "data_path": str(tmp_path / "data"),
        "lora_r": 3,
        "split_file": None,
    }


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_paths_are_seen_by_the_separators_of_every_system(separator, monkeypatch):
    monkeypatch.setattr(os, "sep", separator)
    for text in ("/no/such", "./llm", "~/llm", "a/b/c", *([".\\llm", "C:\\a\\llm"] if separator == "\\" else ())):
        assert key_rules.names_a_path(text), text
    for text in ("gpt2", "org/name", "org.x/name-1.5"):
        assert not key_rules.names_a_path(text), text


# Names before a dot, files, and RecBole's own errors.


def test_a_file_may_hold_keys_of_several_models(movies):
    name, tiny = movies
    Path("own.yaml").write_text("DIN.epochs: 3\nFM.embedding_size: 6\nReLLa.lora_r: 3\nTALLRec.lora_r: 5\n")
    assert make_config("ReLLa", name, ["own.yaml"], tiny)["lora_r"] == 3
    assert make_config("FM", name, ["own.yaml"], tiny)["embedding_size"] == 6
    with compared(["FM", "mine"]):
        assert make_config("FM", name, None, {**tiny, "mine.epochs": 4, "FM.epochs": 5})["epochs"] == 5
        with pytest.raises(ConfigError, match=r"compared model \(FM, mine\) before the dot, found DIN"):
            make_config("FM", name, None, {**tiny, "DIN.epochs": 4})


@pytest.mark.parametrize("model", ["ReLLa", "FM"])
def test_names_before_a_dot_are_checked_for_every_model(model, movies):
    name, tiny = movies
    with pytest.raises(ConfigError, match=rf"Rela.epochs: expected the name of the model of this run \({model}\) .* found Rela"):
        Config(model, name, config_dict={**tiny, "Rela.epochs": 4})
    with pytest.raises(ConfigError, match="epohcs: there is no such key; the nearest valid one is epochs"):
        Config(model, name, config_dict={**tiny, f"{model}.epohcs": 4})


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "config_files: expected YAML files, found 'own.yaml' .No such file"),
        ("", "own.yaml: expected `key: value` lines, found nothing"),
        ("# only a comment\n", "own.yaml: expected `key: value` lines, found nothing"),
        ("- a\n- b\n", "own.yaml: expected `key: value` lines, found a list"),
        ("a: [1\nb: 2\n", "own.yaml: expected YAML, found .*line 2"),
        ("\xff".encode("latin-1"), "own.yaml: expected text in UTF-8"),
    ],
)
def test_files_that_hold_no_keys(text, message, movies):
    if text is not None:
        Path("own.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        make_config("ReLLa", movies[0], ["own.yaml"], movies[1])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"metrics": ["Foo"], "valid_metric": "Foo"}, "says RecBole: There is no metric named 'Foo'"),
        ({"metrics": ["AUC", "Recall"]}, "says RecBole: Ranking metrics and value metrics can not be used at the same time"),
        ({"topk": "many"}, "says RecBole: The topk"),
        ({"valid_metric": 5}, r"valid_metric: expected the name of one of the metrics \(.*\), found 5"),
        ({"eval_args": "TO"}, "says RecBole: eval_args"),
    ],
)
def test_what_recbole_refuses_is_one_message(wrong, message, movies):
    with pytest.raises(ConfigError, match=message):
        make_config("ReLLa", movies[0], None, {**movies[1], **wrong})


THREE = r"eval_args: expected a split into three parts, train, valid and test, as .*RS.*, found .*"


@pytest.mark.parametrize(
    "wrong, message",
    [
        *(
            ({"eval_args": {"split": split, "mode": "labeled"}}, THREE)
            for split in (
                *({"RS": [0.8, 0.2]}, {"RS": [0.8, 0.1, 0.05, 0.05]}, {"RS": [0, 0, 0]}, {"RS": [0.8, -0.1, 0.3]}),
                *({"RS": ["0.8", "0.1", "0.1"]}, {"RS": 0.8}, {"TS": [0.9, 0.1]}, {"LS": "valid"}, {"XX": 1}, {}, None, "RS"),
                {"RS": [0.8, 0.1, 0.1], "LS": "valid_only"},
            )
        ),
        ({"eval_args": {"order": "time", "mode": "labeled"}}, "eval_args: expected the order TO .* or RO"),
        ({"eval_args": {"group_by": "genre", "mode": "labeled"}}, "eval_args: expected group_by none or user, found"),
        ({"rm_dup_inter": "frist"}, "rm_dup_inter: expected one of first, last, none, found 'frist'"),
        ({"rm_dup_inter": True}, "rm_dup_inter: expected one of first, last, none, found True"),
        ({"val_interval": ["price"]}, r"val_interval: expected a dictionary of columns, .* or none, found \['price'\]"),
        ({"val_interval": "[3,5]"}, "val_interval: expected a dictionary of columns"),
        ({"TIME_FIELD": None, "history_shuffle_seed": 3}, "TIME_FIELD: expected a name with history_shuffle_seed, .* found None"),
    ],
)
def test_what_recbole_would_end_in_a_traceback_is_one_message(wrong, message, movies):
    name, tiny = movies
    for model, more in (("ReLLa", {}), ("FM", {"split_file": "none"})):
        with pytest.raises(ConfigError, match=message):
            make_config(model, name, None, {**tiny, **more, **wrong})


def test_splits_that_recbole_makes(movies):
    name, tiny = movies
    splits = {"RS": [8, 1, 1]}, {"RS": [0.5, 0, 0.5]}, {"LS": "test_only"}, {"LS": "valid_and_test"}, {"TS": [0.8, 0.1, 0.1]}
    for split in splits:
        for group in (None, "None", "user"):
            config = make_config("ReLLa", name, None, {**tiny, "eval_args": {"split": split, "group_by": group, "mode": "labeled"}})
            assert config["eval_args"]["split"] == split
    parts = {"benchmark_filename": ["train", "valid", "test"], "eval_args": {"split": None, "mode": "labeled"}}
    assert make_config("ReLLa", name, None, {**tiny, **parts})["benchmark_filename"] == parts["benchmark_filename"]


def test_the_latest_behaviours_of_both_fit_into_the_history(movies):
    """Where prompts show both; else the key is not read, and is no part of what names the prompts."""
    name, tiny = movies
    sizes = {"history_size": 3, "history_recent_size": 4}
    for both in ({"eval_history": "both"}, {"train_history": ["recent", "both"]}, {"train_history": "both"}):
        with pytest.raises(ConfigError, match=r"history_recent_size: expected at most history_size \(3\) where .*, found 4"):
            make_config("ReLLa", name, None, {**tiny, **sizes, **both})
        make_config("ReLLa", name, None, {**tiny, **both, "history_size": 4, "history_recent_size": 4})
    make_config("ReLLa", name, None, {**tiny, **sizes})
    # The same data set's file for models that show no prompts.
    for model, more in (("SIM", {}), ("Tree", {}), ("FM", {"history_fields": ["default"]})):
        make_config(model, name, None, {**tiny, **more, "history_size": 1, "train_history": "both", "eval_history": "both"})


def test_keys_of_a_mixture(movies):
    name, tiny = movies
    make_config("ReLLa", name, None, {**tiny, "retrieval_encoder": "mix"})
    with pytest.raises(ConfigError, match="retrieval_mix_encoder: expected llm, tfidf, or the name .*; did you mean"):
        make_config("ReLLa", name, None, {**tiny, "retrieval_mix_encoder": "tfid"})
    with pytest.raises(ConfigError, match="retrieval_mix: expected a number of at least 0 and at most 1, found 1.5"):
        make_config("ReLLa", name, None, {**tiny, "retrieval_mix": 1.5})
    # The revision is that of the encoder of its texts.
    mixed = {**tiny, "retrieval_encoder": "mix", "crm": "run", "retrieval_encoder_revision": "main"}
    Path("run").mkdir()
    Path("run/config.yaml").write_text("model: FM\ndataset: movies\n")
    with pytest.raises(ConfigError, match="retrieval_encoder_revision: expected none with retrieval_encoder 'tfidf'"):
        make_config("ReLLa", name, None, mixed)
    make_config("ReLLa", name, None, {**mixed, "retrieval_mix_encoder": "org/name"})


def test_files_are_read_as_recbole_reads_them_and_each_as_fast_as_the_first(movies):
    """Its floats without a point among them; it adds their pattern once more with each Config, ours does not."""
    name, tiny = movies
    loader = make_config("ReLLa", name, config_dict=tiny).yaml_loader
    patterns = len(loader.yaml_implicit_resolvers["1"])
    text = "a: 1e-3\nb: .5\nc: 1_000.5\nd: 1e3\ne: -.inf\nf: 2020-01-01\ng: [1, 2.5, yes, ~, 'é']\nh: {i: 0x1F}\nj: 1:30.5"
    files = [path.read_text(encoding="utf-8") for path in Path(recbole.__file__).parent.glob("properties/**/*.yaml")]
    assert make_config("ReLLa", name, config_dict=tiny).yaml_loader is loader
    assert len(loader.yaml_implicit_resolvers["1"]) == patterns
    for one in (text, *files):
        assert yaml.load(one, Loader=loader) == yaml.load(one, Loader=yaml.FullLoader)
    assert yaml.load(text, Loader=loader)["a"] == 0.001  # which YAML itself takes for a word


def test_a_data_set_that_some_run_saved_is_never_taken(movies):
    """RecBole looks in checkpoint_dir for one, and compares its own keys alone."""
    name, tiny = movies
    for model, more in (("ReLLa", {}), ("FM", {"split_file": "x.npz"})):
        config = make_config(model, name, None, {**tiny, **more})
        for key in ("dataset_save_path", "dataloaders_save_path"):
            assert config[key] and not os.path.exists(config[key])
        with pytest.raises(ConfigError, match="save_dataset: expected False"):
            make_config(model, name, None, {**tiny, **more, "save_dataset": True})
    assert make_config("FM", name, None, {**tiny, "save_dataset": True})["dataset_save_path"] is None


def test_no_configuration_changes_what_a_later_one_accepts(movies):
    """RecBole's lists of keys belong to the process."""
    from recbole.utils import argument_list

    before = list(argument_list.dataset_arguments)
    make_config("ReLLa", movies[0], None, movies[1])
    assert argument_list.dataset_arguments == before


def test_no_command_line_is_read_in_its_context(movies, monkeypatch):
    name, tiny = movies
    monkeypatch.setattr(
        "sys.argv", ["own.py", "positional", "--history_size=3", "-x", "--prompt_rating={% set x = 1 %}{{ x == 1 }}"]
    )
    config = make_config("ReLLa", name, None, tiny)
    assert config["history_size"] == 3 and config["prompt_rating"] == "{% set x = 1 %}{{ x == 1 }}"
    with no_command_line():
        assert make_config("ReLLa", name, None, tiny)["history_size"] == 4
    assert make_config("ReLLa", name, None, tiny)["history_size"] == 3


def test_shipped_files_hold_keys_that_exist(movies):
    name, tiny = movies
    for path in [*variant_files().values(), *properties_folder().glob("dataset/*.yaml"), *properties_folder().glob("llm/*.yaml")]:
        given_keys = yaml.safe_load(path.read_text(encoding="utf-8"))
        unknown = set(given_keys) - set(KEYS) - _recbole_keys()
        assert not unknown, path.name
        with no_command_line():
            make_config("ReLLa", name, [path], {key: value for key, value in tiny.items() if key not in given_keys})
    assert recbole_rella.__all__


@pytest.mark.parametrize("metrics, chosen", [(["AUC", "LogLoss"], "UAUC"), (["AUC"], "MRR@10"), ("LogLoss", "AUC")])
def test_the_best_epoch_is_chosen_by_what_is_measured(metrics, chosen, movies):
    """Told before a whole epoch has been trained."""
    with pytest.raises(ConfigError, match=f"valid_metric: expected one of the metrics .*, found {chosen}; name it in metrics"):
        make_config("ReLLa", movies[0], None, {**movies[1], "metrics": metrics, "valid_metric": chosen})
    assert make_config("ReLLa", movies[0], None, {**movies[1], "metrics": ["logloss"], "valid_metric": "LogLoss"})


def test_keys_of_ours_that_a_model_of_recbole_does_not_read_are_warned_of(movies, caplog):
    own = {"data_path": movies[1]["data_path"], "load_col": {"inter": ["user_id", "item_id"]}}
    make_config("FM", movies[0], None, {**own, "train_shots": 10, "min_history": 50})
    assert "FM does not read these keys of other models, and they change nothing: ['train_shots', 'min_history']" in caplog.text


@pytest.mark.parametrize("model", ["Bias", "Tree"])
def test_what_is_fitted_at_once_learns_from_the_shots_that_it_is_given(model, movies, caplog):
    name, tiny = movies
    run_recbole_rella(model, name, config_dict={**tiny, "train_shots": 40, "run_folder": "few"})
    assert json.loads(Path("few/metrics.json").read_text())["rows"]["train"] == 40
    unread = [record.getMessage() for record in caplog.records if "change nothing" in record.getMessage()]
    assert unread and not any("train_shots" in message for message in unread)  # of the keys of tiny that are ReLLa's
