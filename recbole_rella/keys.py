"""The table of our configuration keys, and the check that runs before anything loads (law 8).

Each key stands here once: what it may hold, what it affects, whether it is a path, its reserved words. Its default and comment
stand in properties/model/ReLLa.yaml, or in the file of the one model that has it, which users read; key_docs.py reads them there,
and a test holds the two together.
What else must know of keys (caches, the name of a run, sweeps, absolute paths, --help, docs/keys.md) asks this table. Plain Python:
config.py feeds it RecBole's dictionaries.
"""

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2

from recbole_rella.errors import RellaError


class ConfigError(RellaError):
    """One or more configuration values cannot be used; the message lists all of them."""


# What a key can affect.
AFFECTS = {
    "rows": "which rows there are, and which of them are used",
    "mini": "the embedded LLM",
    "llm": "which LLM it is, and how its weights are held",
    "retrieval": "the item vectors, and the rows that are retrieved",
    "prompts": "the text and the token ids of a prompt",
    "training": "what a model learns from, and how",
    "evaluation": "how rows are scored, and what is measured",
    "cost": "memory and speed; scores change by rounding alone",
    "run": "where a run goes, what it goes on with, how it is reported: no score",
}


@dataclass(frozen=True)
class Key:
    """What is known of a key, but for its default and comment.

    Attributes:
        rule (callable): takes a value; returns None where it is allowed, else what was expected.
        affects (tuple of str): words of AFFECTS.
        words (tuple of str): reserved values, which are never taken for a path or a name on a hub.
        is_path (bool): whether other values are paths, in which ~ is the user's home.
        or_name (bool): whether a value that is no path on this machine is a name, on the Hugging Face hub or of a model.
        of_one_run (bool): whether it names what belongs to one run, so that it means nothing where several are made.
        of (tuple of str): the models of ours that read it, with those derived from them; empty where all do.
    """

    rule: Callable
    affects: tuple
    words: tuple = ()
    is_path: bool = False
    or_name: bool = False
    of_one_run: bool = False
    of: tuple = ()


# Rules. Each takes a value and returns None where it is allowed, else what was expected.


def _one_of(*allowed):
    names = ", ".join("none" if a is None else str(a) for a in allowed)
    return lambda value: None if any(value is a or (type(value) is type(a) and value == a) for a in allowed) else f"one of {names}"


def _integer(low, optional=False):
    def rule(value):
        if (optional and value is None) or (type(value) is int and value >= low):
            return None
        return f"an integer of at least {low}" + (", or none" if optional else "")

    return rule


def _number(low, high=float("inf"), above=False):
    def rule(value):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and (low < value if above else low <= value) and value <= high:
            return None
        return f"a number {'above' if above else 'of at least'} {low}" + (f" and at most {high}" if high < float("inf") else "")

    return rule


def _boolean(value):
    return None if isinstance(value, bool) else "True or False"


def _text(value):
    return None if isinstance(value, str) and value.strip() else "text"


def _optional_text(value):
    return None if value is None or _text(value) is None else "text, or none"


def _jinja(value):
    if not isinstance(value, str):
        return "Jinja2 text"
    try:
        jinja2.Environment().parse(value)
    except jinja2.TemplateSyntaxError as error:
        return f"Jinja2 text ({error.message}, line {error.lineno})"
    return None


def _texts(value):
    fits = isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)
    return None if fits else "a list of texts that is not empty"


def _two_answers(value):
    if isinstance(value, list) and any(isinstance(v, bool) for v in value):
        return "two texts (quote them: a bare Yes or No is a boolean in YAML)"
    fits = isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) and v.strip() == v != "" for v in value)
    return None if fits and value[0] != value[1] else "two different texts, the positive answer first"


def _words(value):
    fits = isinstance(value, dict) and all(isinstance(codes, dict) for codes in value.values())
    return None if fits else "a dictionary {field: {code: words}}"


# What expected_counts may name: different users and items in the rows; rows after RecBole's filters; the rows of the splits
# (min_history, targets_per_user), before any are drawn; the parts as they are used (train before train_shots); rows of the
# .user and .item files.
COUNTS = ("users", "items", "rows", "split_rows", "train", "valid", "test", "listed_users", "listed_items")


def _counts(value):
    fits = isinstance(value, dict) and set(value) <= set(COUNTS) and all(type(count) is int for count in value.values())
    return None if fits else f"a dictionary {{name: integer}} with names among {', '.join(COUNTS)}"


# Numbers that a row's history is told in (rows/features.py), beside same_<item field>_mean, _residual and _count; `default` stands
# for all of them, and mean_embedding for two sequences, which RecBole's models pool by their mean.
HISTORY_NUMBERS = (
    *(f"user_{of}{last}" for of in ("mean", "residual") for last in ("", "_10", "_30")),
    *("user_last", "user_spread", "user_count", "days_since_last", "item_mean", "item_count"),
    *("similar_mean", "similar_residual"),
)
DEFAULT_HISTORY, MEAN_EMBEDDING = "default", "mean_embedding"


def same_field(name):
    """The item field of same_<field>_mean, same_<field>_residual or same_<field>_count; None for other names."""
    found = re.fullmatch(r"same_(.+)_(?:mean|residual|count)", name)
    return found and found[1]


def _history_fields(value):
    if value is None:
        return None
    words = (DEFAULT_HISTORY, MEAN_EMBEDDING, *HISTORY_NUMBERS)
    expected = f"none, or a list of names among {', '.join(words)}, same_<item field>_mean, _residual and _count"
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        return expected
    wrong = [name for name in value if name not in words and not same_field(name)]
    if wrong:
        nearest = difflib.get_close_matches(wrong[0], words, n=1)
        return expected + (f"; did you mean {nearest[0]}?" if nearest else "")
    return None if len(set(value)) == len(value) else f"{expected}, each once"


def _buckets(value):
    return None if type(value) is int and (value == 0 or value > 1) else "an integer of at least 2, or 0"


# What a soft token can stand for, in the order of prompt/soft_places.py.
SOFT_TOKENS = ("behaviours", "target", "user", "history", "row")


def _soft_tokens(value):
    fits = isinstance(value, list) and value and set(map(str, value)) <= set(SOFT_TOKENS) and len(set(value)) == len(value)
    return None if fits else f"a list of words among {', '.join(SOFT_TOKENS)}, each once"


# What identifies a finished run, by which a loaded run is compared with the one that was trained.
IDENTITIES = ("rows", "llm", "encoder", "prompts", "crm", "version")


def _changes(value):
    fits = isinstance(value, list) and all(isinstance(v, str) and v in IDENTITIES for v in value)
    return None if fits else f"a list of words among {', '.join(IDENTITIES)}"


# Models that are fitted in seconds, and can be told of beside a run of ReLLa.
RIVALS = ("Bias", "Tree")


def _rivals(value):
    fits = isinstance(value, list) and all(isinstance(v, str) and v in RIVALS for v in value) and len(set(value)) == len(value)
    return None if fits else f"a list of different names among {', '.join(RIVALS)}"


# An encoder that mixes has its texts encoded by one of the others.
_LLM, _ENCODER, _MIX = ("mini",), ("llm", "tfidf"), "mix"
_TEMPLATES, _CHATS = ("default",), ("auto", "always", "never", "vicuna")


def names_a_path(value):
    """Whether a text can only be a path: ``/x``, ``./x``, ``~/x``, ``a/b/c``; names on the hub have one slash at most."""
    text = value.replace(os.sep, "/")
    return "/" in text and (text.startswith(("/", ".", "~")) or text.count("/") > 1)


def _llm(value):
    if not isinstance(value, str) or not value.strip():
        return "mini, a Hugging Face hub name or a folder"
    folder = Path(value).expanduser()
    if value not in _LLM and folder.is_dir() and not (folder / "config.json").is_file():
        return "a folder that holds a Hugging Face LLM (there is no config.json in it)"
    if names_a_path(value) and not folder.is_dir():
        return "mini, a Hugging Face hub name or a folder (this folder does not exist)"
    return None


def _encoder(words):
    expected = f"{', '.join(words)}, or the name or folder of a sentence-transformers model"

    def rule(value):
        if not isinstance(value, str) or not value.strip():
            return expected
        if value in words:
            return None
        folder = Path(value).expanduser()
        if folder.is_dir():
            if (folder / "config.json").is_file() or (folder / "modules.json").is_file():
                return None
            return "a folder that holds a sentence-transformers model (there is no modules.json or config.json in it)"
        if names_a_path(value):
            return expected + " (this folder does not exist)"
        nearest = difflib.get_close_matches(value, words, n=1)
        return f"{expected}; did you mean {nearest[0]}?" if nearest else None

    return rule


def text_encoder(settings):
    """The encoder of item sentences in a configuration: retrieval_encoder, or that of a mixture's texts."""
    return settings["retrieval_mix_encoder" if settings["retrieval_encoder"] == _MIX else "retrieval_encoder"]


def _word_or_jinja_file(words):
    expected = f"{', '.join(words)}, or the path of a Jinja2 file"

    def rule(value):
        if not isinstance(value, str) or value in words:
            return None if value in words else expected
        path = Path(value).expanduser()
        if not path.is_file():
            return f"{expected} (no such file)"
        try:
            problem = _jinja(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            problem = "text in UTF-8"
        return problem and f"{expected} that parses: {problem}"

    return rule


def _run_folder(value):
    expected = "the folder of an earlier run, or none"
    if value is None or (isinstance(value, str) and (Path(value).expanduser() / "config.yaml").is_file()):
        return None
    return f"{expected} (there is no config.yaml in it)" if isinstance(value, str) else expected


# Which behaviours a prompt can show (rows/fields.py has their codes), and the word for ReiT's mixture.
HISTORIES, _MIXED = ("recent", "retrieved", "both"), "mixed"


def trained_kinds(value):
    """The kinds of behaviours of which train_history gives every shot a sample, tuple of str."""
    return ("recent", "retrieved") if value == _MIXED else (value,) if isinstance(value, str) else tuple(value)


def reads_both(settings):
    """Whether train_history or eval_history of a configuration show `both`."""
    return "both" in (*trained_kinds(settings["train_history"]), settings["eval_history"])


def _train_history(value):
    if isinstance(value, str):
        fits = value in (_MIXED, *HISTORIES)
    else:
        fits = isinstance(value, list) and bool(value) and all(isinstance(v, str) and v in HISTORIES for v in value)
        fits = fits and len(set(value)) == len(value)
    return None if fits else f"{_MIXED}, one of {', '.join(HISTORIES)}, or a list of different ones of these"


def names_a_run(value):
    """Whether a text is the folder of a run, or can only be a path."""
    return names_a_path(value) or (Path(value).expanduser() / "config.yaml").is_file()


def _crm(value):
    if value is None or (isinstance(value, str) and re.fullmatch(r"[\w.+]+", value)):
        return None
    return (problem := _run_folder(value)) and f"the name of a model, or {problem}"


_ADAPTERS = ("ReLLa",)


def _adapters(value):
    return None if value in _ADAPTERS else (problem := _run_folder(value)) and f"ReLLa, or {problem}"


# Keys that some of our models read and the others do not: ReLLa is told beside Tree.
_RELLA, _SIM, _BESIDE = ("ReLLa",), ("SIM",), ("ReLLa", "Tree")

KEYS = {
    "llm": Key(_llm, ("llm",), _LLM, is_path=True, or_name=True),
    "llm_revision": Key(_optional_text, ("llm",)),
    "llm_dtype": Key(_one_of("auto", "float32", "bfloat16", "float16"), ("llm",)),
    "llm_quantization": Key(_one_of(None, "8bit", "4bit"), ("llm",)),
    "llm_attn_implementation": Key(_optional_text, ("cost",)),
    "llm_trust_remote_code": Key(_boolean, ("llm",)),
    "llm_gradient_checkpointing": Key(_boolean, ("cost",), of=_RELLA),
    "llm_shard": Key(_boolean, ("cost",)),
    "lora_r": Key(_integer(1), ("training",), of=_RELLA),
    "lora_alpha": Key(_number(0, above=True), ("training",), of=_RELLA),
    "lora_dropout": Key(_number(0, 0.99), ("training",), of=_RELLA),
    "lora_target_modules": Key(_texts, ("training",), of=_RELLA),
    "crm": Key(_crm, ("retrieval", "training"), is_path=True, or_name=True),
    "spa": Key(_boolean, ("prompts", "training"), of=_RELLA),
    "spa_tokens": Key(_soft_tokens, ("prompts", "training"), of=_RELLA),
    "spa_init": Key(_one_of("xavier", "zero"), ("training",), of=_RELLA),
    "cflora": Key(_boolean, ("training",), of=_RELLA),
    "cflora_input": Key(_one_of("user", "history", "row"), ("training",), of=_RELLA),
    "cflora_init": Key(_one_of("identity", "paper"), ("training",), of=_RELLA),
    "adapter_from": Key(_adapters, ("training",), _ADAPTERS, is_path=True, of=_RELLA),
    "mini_hidden_size": Key(_integer(4), ("mini",)),
    "mini_num_layers": Key(_integer(1), ("mini",)),
    "mini_num_heads": Key(_integer(1), ("mini",)),
    "mini_vocab_size": Key(_integer(300), ("mini",)),
    "mini_history_size": Key(_integer(1), ("mini",)),
    "mini_epochs": Key(_integer(0), ("mini",)),
    "mini_learning_rate": Key(_number(0, above=True), ("mini",)),
    "mini_weight_decay": Key(_number(0), ("mini",)),
    "mini_dropout": Key(_number(0, 0.99), ("mini",)),
    "min_history": Key(_integer(0), ("rows",)),
    "targets_per_user": Key(_integer(1, optional=True), ("rows",)),
    "history_shuffle_seed": Key(_integer(0, optional=True), ("rows",)),
    "train_pool": Key(_integer(1, optional=True), ("rows",)),
    "train_shots": Key(_integer(1, optional=True), ("training",)),
    "train_shots_for": Key(_one_of("ReLLa", "all"), ("run",)),
    "with_bias": Key(_boolean, ("run",)),
    "eval_rows": Key(_integer(1, optional=True), ("rows",)),
    "expected_counts": Key(_counts, ("run",)),
    "train_history": Key(_train_history, ("training",), of=_RELLA),
    "eval_history": Key(_one_of(*HISTORIES), ("evaluation",), of=_RELLA),
    "history_size": Key(_integer(1), ("retrieval", "prompts")),
    "history_recent_size": Key(_integer(0), ("prompts",), of=_RELLA),
    "history_order": Key(_one_of("time", "recent_last", "similarity", "similarity_reversed"), ("prompts",), of=_RELLA),
    "category_field": Key(_optional_text, ("training", "evaluation")),
    "history_fields": Key(_history_fields, ("training",)),
    "history_buckets": Key(_buckets, ("training",)),
    "retrieval_encoder": Key(_encoder((*_ENCODER, _MIX)), ("retrieval",), (*_ENCODER, _MIX), is_path=True, or_name=True),
    "retrieval_encoder_revision": Key(_optional_text, ("retrieval",)),
    "retrieval_pooling": Key(_one_of("mean", "last"), ("retrieval",)),
    "retrieval_pca_dim": Key(_integer(1, optional=True), ("retrieval",)),
    "retrieval_metric": Key(_one_of("cosine", "l2", "dot"), ("retrieval",)),
    "retrieval_sentence": Key(_jinja, ("retrieval",)),
    "retrieval_mix": Key(_number(0, 1), ("retrieval",)),
    "retrieval_mix_encoder": Key(_encoder(_ENCODER), ("retrieval",), _ENCODER, is_path=True, or_name=True),
    "prompt_template": Key(_word_or_jinja_file(_TEMPLATES), ("prompts", "mini"), _TEMPLATES, is_path=True),
    "prompt_chat": Key(_word_or_jinja_file(_CHATS), ("prompts",), _CHATS, is_path=True),
    "prompt_system": Key(_jinja, ("prompts", "mini")),
    "prompt_noun": Key(_text, ("prompts", "mini")),
    "prompt_profile": Key(_jinja, ("prompts", "mini")),
    "prompt_item": Key(_jinja, ("prompts", "mini")),
    "prompt_rating": Key(_jinja, ("prompts", "mini")),
    "prompt_question": Key(_jinja, ("prompts", "mini")),
    "prompt_answers": Key(_two_answers, ("prompts", "mini")),
    "prompt_words": Key(_words, ("prompts", "retrieval", "mini")),
    "max_prompt_tokens": Key(_integer(8), ("prompts",), of=_RELLA),
    "train_micro_tokens": Key(_integer(1), ("cost",), of=_RELLA),
    "eval_micro_tokens": Key(_integer(1), ("cost",)),
    "cache_dir": Key(_optional_text, ("run",), is_path=True),
    "tree_rounds": Key(_integer(1), ("training",), of=_BESIDE),
    "tree_learning_rate": Key(_number(0, above=True), ("training",), of=_BESIDE),
    "tree_leaves": Key(_integer(2), ("training",), of=_BESIDE),
    "beside": Key(_rivals, ("run",), of=("ReLLa",)),
    "split_file": Key(_optional_text, ("rows", "run"), is_path=True, of_one_run=True),
    "run_folder": Key(_optional_text, ("run",), is_path=True, of_one_run=True),
    "warmup_ratio": Key(_number(0, 1), ("training",), of=_RELLA),
    "checkpoint_minutes": Key(_number(0), ("run",), of=_RELLA),
    "resume_from": Key(_run_folder, ("run",), is_path=True, of_one_run=True, of=_RELLA),
    "allow_changed": Key(_changes, ("run",)),
    "sim_search": Key(_one_of("semantic", "category", "soft", "attention"), ("training",), of=_SIM),
    "sim_size": Key(_integer(0), ("training",), of=_SIM),
    "sim_recent_size": Key(_integer(0), ("training",), of=_SIM),
    "sim_max_history": Key(_integer(1), ("training",), of=_SIM),
    "sim_read_ratings": Key(_boolean, ("training",), of=_SIM),
    "sim_time_gaps": Key(_boolean, ("training",), of=_SIM),
    "sim_loss_weight": Key(_number(0), ("training",), of=_SIM),
}


def affecting(*what):
    """The keys that affect any of these.

    Args:
        what (str): words of AFFECTS.

    Returns:
        tuple of str: names, in the order of the table.
    """
    for word in what:
        AFFECTS[word]  # a misspelt word would silently leave out keys
    return tuple(name for name, key in KEYS.items() if set(what) & set(key.affects))


def paths():
    """The keys that hold paths, but for RecBole's."""
    return tuple(name for name, key in KEYS.items() if key.is_path)


def is_word(name, value):
    """Whether a value is one of the reserved words of its key."""
    return name in KEYS and isinstance(value, str) and value in KEYS[name].words


# RecBole's keys where a wrong value would go unnoticed, or be found late.
_LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")


def _learner(value):
    # Any other text is Adam to RecBole, with a warning.
    return None if isinstance(value, str) and value.lower() in _LEARNERS else "one of " + ", ".join(_LEARNERS)


RECBOLE_RULES = {
    "seed": _integer(0),
    "epochs": _integer(0),
    "train_batch_size": _integer(1),
    "eval_batch_size": _integer(1),
    "eval_step": _integer(0),
    "stopping_step": _integer(0),
    "learner": _learner,
    "learning_rate": _number(0),
    "weight_decay": _number(0),
}
# What RecBole saves and reads again would come back with the settings of the run that saved it: it compares its own keys alone.
_SAVED = "a later run would get it with the settings of the run that saved it, and what takes long is cached by itself (cache_dir)"
SAVED_BY_RECBOLE = {
    "save_dataset": _SAVED,
    "dataset_save_path": _SAVED,
    "save_dataloaders": _SAVED,
    "dataloaders_save_path": _SAVED,
}
_WITH_RELLA = {
    "enable_scaler": "set llm_dtype to bfloat16, which needs no loss scaling",
    "enable_amp": "set llm_dtype instead",
    "local_rank": "start several processes by torchrun, accelerate launch, or --nproc of run_recbole_rella.py",
}

# The first word of our grouped keys: a name that starts so is taken for one of ours.
_GROUPS = ("llm_", "lora_", "spa_", "cflora_", "mini_", "retrieval_", "prompt_", "history_", "tree_", "sim_")


def nearest_key(key, recbole_keys):
    """What to say of a key that nobody knows: the valid one that it resembles, or None.

    Args:
        key (str): its name, without the name of a model before it.
        recbole_keys (iterable of str): the keys that RecBole, or the one who calls it, knows.
    """
    group = next((group for group in _GROUPS if key.startswith(group)), None)
    if group is not None:
        names, cutoff = [name for name in KEYS if name.startswith(group)], 0.0
    else:
        names, cutoff = [*KEYS, *sorted(recbole_keys)], 0.8
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=cutoff)
    return nearest[0] if nearest else None


def unknown(given, recbole_keys):
    """The keys that neither we nor RecBole know.

    Args:
        given (iterable of str): the keys that the user gave; one of the form ``model.key`` is looked up as ``key``.
        recbole_keys (set of str): the keys that RecBole, or the one who calls it, knows.

    Returns:
        tuple: list of problems (those that resemble a valid key); list of the others, of which the caller may warn.
    """
    problems, others = [], []
    for key in given:
        name = key.rpartition(".")[2]
        if name in KEYS or name in recbole_keys:
            continue
        nearest = nearest_key(name, recbole_keys)
        if nearest:
            problems.append(f"{key}: there is no such key; the nearest valid one is {nearest}")
        else:
            others.append(key)
    return problems, others


def check_recbole(settings):
    """Check RecBole's keys that any run on our rows needs.

    Args:
        settings (dict): every key after all sources were merged.

    Returns:
        list of str: problems.
    """
    problems = _refused(settings, SAVED_BY_RECBOLE, "")
    return problems + _against(RECBOLE_RULES, settings)


def check(settings):
    """Check our keys, and RecBole's that any run on our rows needs.

    Args:
        settings (dict): every key after all sources were merged.

    Returns:
        list of str: problems, each with the key, what was expected and what was found.
    """
    # All that the model's own files name; a key of another model's file may be missing.
    problems = _against({name: key.rule for name, key in KEYS.items() if name in settings}, settings) + check_recbole(settings)
    if problems:
        return problems
    if settings["llm_shard"] and settings["llm_quantization"]:
        problems.append(f"llm_shard: expected False with llm_quantization {settings['llm_quantization']!r}, found True")
    for name, value in (("llm", settings["llm"]), ("retrieval_encoder", text_encoder(settings))):
        revision = settings[f"{name}_revision"]
        if revision and (is_word(name, value) or Path(value).is_dir()):
            problems.append(f"{name}_revision: expected none with {name} {value!r}, which is not from the hub, found {revision!r}")
    if reads_both(settings) and settings["history_recent_size"] > settings["history_size"]:
        problems.append(
            f"history_recent_size: expected at most history_size ({settings['history_size']}) where prompts show both kinds of "
            f"behaviours, found {settings['history_recent_size']!r}"
        )
    if settings.get("sim_size") == 0 == settings.get("sim_recent_size"):
        problems.append("sim_recent_size: expected an integer of at least 1 with sim_size 0, as there is nothing to read, found 0")
    if settings["mini_hidden_size"] % (2 * settings["mini_num_heads"]):
        problems.append(
            f"mini_hidden_size: expected a multiple of 2 x mini_num_heads ({2 * settings['mini_num_heads']}), "
            f"found {settings['mini_hidden_size']!r}"
        )
    return problems


def check_rellax(settings):
    """Check what soft tokens and gates are made of, where each key by itself can be used; arguments and result as for `check`."""
    wanted = {word: "spa_tokens" for word in settings["spa_tokens"] if settings["spa"]}
    if settings["cflora"]:
        wanted.setdefault(settings["cflora_input"], "cflora_input")
    problems, of_model = [], {word: key for word, key in wanted.items() if word != "history"}
    if of_model and settings["crm"] is None:
        found = ", ".join(f"{key} has {word}" for word, key in of_model.items())
        problems.append(f"crm: expected the folder of a run of a conventional model, as {found}, found none")
    if "history" in wanted and not [name for name in settings["history_fields"] or [] if name != MEAN_EMBEDDING]:
        problems.append(
            f"history_fields: expected default, or names of numbers, as {wanted['history']} has history, found "
            f"{settings['history_fields']!r}"
        )
    if settings["cflora"] and settings["llm_gradient_checkpointing"]:
        problems.append("llm_gradient_checkpointing: expected False with cflora, found True")
    if settings["adapter_from"] and not wanted:
        problems.append("adapter_from: expected none without spa and cflora, as its adapters stay as they are, found one")
    return problems


def check_with_rella(settings):
    """Check RecBole's keys that ReLLa needs; arguments and result as for `check`."""
    problems = _refused(settings, _WITH_RELLA, " with ReLLa")
    transform = settings.get("transform")
    if transform != "user_defined":
        problems.append(f"transform: expected user_defined with ReLLa, which makes its prompts there, found {transform!r}")
    return problems


def _against(rules, settings):
    expected = {key: rule(settings.get(key)) for key, rule in rules.items()}
    return [f"{key}: expected {text}, found {settings.get(key)!r}" for key, text in expected.items() if text]


def _refused(settings, remedies, where):
    found = {key: settings.get(key) for key in remedies}
    return [
        f"{key}: expected {'False' if isinstance(value, bool) else 'none'}{where}, found {value!r}; {remedies[key]}"
        for key, value in found.items()
        if value is not None and value is not False
    ]


def refuse(problems):
    """Raise all problems as one error.

    Args:
        problems (iterable of str): one line each; nothing happens where there are none.

    Raises:
        ConfigError: names every key at fault, what was expected, what was found.
    """
    problems = list(problems)
    if problems:
        raise ConfigError("The configuration cannot be used:\n  " + "\n  ".join(problems))
