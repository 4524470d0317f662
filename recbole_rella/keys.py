"""The table of our configuration keys, and the check that runs before anything loads (law 8).

Each key stands here once: what it may hold, what it affects, whether it is a path, its reserved words. Its default and comment
stand in properties/model/ReLLa.yaml, or in the file of the one model that has it, which users read; key_docs.py reads them there,
and a test holds the two together.
What else must know of keys (caches, the name of a run, sweeps, absolute paths, --help, docs/keys.md) asks this table. Plain Python:
config.py feeds it RecBole's dictionaries.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recbole_rella import key_rules as rules
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


# Keys that some of our models read and the others do not: ReLLa is told beside Tree.
_RELLA, _SIM, _BESIDE = ("ReLLa",), ("SIM",), ("ReLLa", "Tree")

KEYS = {
    "llm": Key(rules.llm, ("llm",), rules.LLM, is_path=True, or_name=True),
    "llm_revision": Key(rules.optional_text, ("llm",)),
    "llm_dtype": Key(rules.one_of("auto", "float32", "bfloat16", "float16"), ("llm",)),
    "llm_quantization": Key(rules.one_of(None, "8bit", "4bit"), ("llm",)),
    "llm_attn_implementation": Key(rules.optional_text, ("cost",)),
    "llm_trust_remote_code": Key(rules.boolean, ("llm",)),
    "llm_gradient_checkpointing": Key(rules.boolean, ("cost",), of=_RELLA),
    "llm_shard": Key(rules.boolean, ("cost",)),
    "lora_r": Key(rules.integer(1), ("training",), of=_RELLA),
    "lora_alpha": Key(rules.number(0, above=True), ("training",), of=_RELLA),
    "lora_dropout": Key(rules.number(0, 0.99), ("training",), of=_RELLA),
    "lora_target_modules": Key(rules.target_modules, ("training",), of=_RELLA),
    "lora": Key(rules.lora, ("training",), of=_RELLA),
    "crm": Key(rules.crm, ("retrieval", "training"), is_path=True, or_name=True),
    "spa": Key(rules.boolean, ("prompts", "training"), of=_RELLA),
    "spa_tokens": Key(rules.soft_tokens, ("prompts", "training"), of=_RELLA),
    "spa_init": Key(rules.one_of("xavier", "zero"), ("training",), of=_RELLA),
    "cflora": Key(rules.boolean, ("training",), of=_RELLA),
    "cflora_input": Key(rules.one_of("user", "history", "row"), ("training",), of=_RELLA),
    "cflora_init": Key(rules.one_of("identity", "paper"), ("training",), of=_RELLA),
    "adapter_from": Key(rules.adapters, ("training",), rules.ADAPTERS, is_path=True, of=_RELLA),
    "mini_hidden_size": Key(rules.integer(4), ("mini",)),
    "mini_num_layers": Key(rules.integer(1), ("mini",)),
    "mini_num_heads": Key(rules.integer(1), ("mini",)),
    "mini_vocab_size": Key(rules.integer(300), ("mini",)),
    "mini_history_size": Key(rules.integer(1), ("mini",)),
    "mini_epochs": Key(rules.integer(0), ("mini",)),
    "mini_learning_rate": Key(rules.number(0, above=True), ("mini",)),
    "mini_weight_decay": Key(rules.number(0), ("mini",)),
    "mini_dropout": Key(rules.number(0, 0.99), ("mini",)),
    "min_history": Key(rules.integer(0), ("rows",)),
    "targets_per_user": Key(rules.integer(1, optional=True), ("rows",)),
    "history_shuffle_seed": Key(rules.integer(0, optional=True), ("rows",)),
    "train_pool": Key(rules.integer(1, optional=True), ("rows",)),
    "train_shots": Key(rules.integer(1, optional=True), ("training",)),
    "train_shots_for": Key(rules.one_of("ReLLa", "all"), ("run",)),
    "with_bias": Key(rules.boolean, ("run",)),
    "tuned": Key(rules.boolean, ("run",)),
    "eval_rows": Key(rules.evaluated, ("rows",)),
    "expected_counts": Key(rules.counts, ("run",)),
    "train_history": Key(rules.train_history, ("training",), of=_RELLA),
    "eval_history": Key(rules.one_of(*rules.HISTORIES), ("evaluation",), of=_RELLA),
    "history_size": Key(rules.integer(0), ("retrieval", "prompts")),
    "history_recent_size": Key(rules.integer(0), ("prompts",), of=_RELLA),
    "history_order": Key(rules.one_of("time", "recent_last", "similarity", "similarity_reversed"), ("prompts",), of=_RELLA),
    "history_window": Key(rules.one_of("latest", "anchored"), ("prompts",), of=_RELLA),
    "category_field": Key(rules.optional_text, ("training", "evaluation")),
    "history_fields": Key(rules.history_fields, ("training",)),
    "history_buckets": Key(rules.buckets, ("training",)),
    "retrieval_encoder": Key(rules.encoder(rules.ENCODER_OR_MIX), ("retrieval",), rules.ENCODER_OR_MIX, is_path=True, or_name=True),
    "retrieval_encoder_revision": Key(rules.optional_text, ("retrieval",)),
    "retrieval_pooling": Key(rules.one_of("mean", "last"), ("retrieval",)),
    "retrieval_pca_dim": Key(rules.integer(1, optional=True), ("retrieval",)),
    "retrieval_metric": Key(rules.one_of("cosine", "l2", "dot"), ("retrieval",)),
    "retrieval_sentence": Key(rules.jinja, ("retrieval",)),
    "retrieval_mix": Key(rules.number(0, 1), ("retrieval",)),
    "retrieval_mix_encoder": Key(rules.encoder(rules.ENCODER), ("retrieval",), rules.ENCODER, is_path=True, or_name=True),
    "prompt_template": Key(rules.word_or_jinja_file(rules.TEMPLATES), ("prompts", "mini"), rules.TEMPLATES, is_path=True),
    "prompt_chat": Key(rules.word_or_jinja_file(rules.CHATS), ("prompts",), rules.CHATS, is_path=True),
    "prompt_system": Key(rules.jinja, ("prompts", "mini")),
    "prompt_noun": Key(rules.text, ("prompts", "mini")),
    "prompt_profile": Key(rules.jinja, ("prompts", "mini")),
    "prompt_item": Key(rules.jinja, ("prompts", "mini")),
    "prompt_rating": Key(rules.jinja, ("prompts", "mini")),
    "prompt_question": Key(rules.jinja, ("prompts", "mini")),
    "prompt_answers": Key(rules.two_answers, ("prompts", "mini")),
    "prompt_words": Key(rules.words_of_codes, ("prompts", "retrieval", "mini")),
    "max_prompt_tokens": Key(rules.integer(8), ("prompts",), of=_RELLA),
    "train_micro_tokens": Key(rules.integer(1), ("cost",), of=_RELLA),
    "eval_micro_tokens": Key(rules.integer(1), ("cost",)),
    "scoring_engine": Key(rules.scoring_engine, ("cost",), of=_RELLA),
    "vllm_args": Key(rules.arguments, ("cost",), of=_RELLA),
    "cache_dir": Key(rules.optional_text, ("run",), is_path=True),
    "tree_rounds": Key(rules.integer(1), ("training",), of=_BESIDE),
    "tree_learning_rate": Key(rules.number(0, above=True), ("training",), of=_BESIDE),
    "tree_leaves": Key(rules.integer(2), ("training",), of=_BESIDE),
    "beside": Key(rules.rivals, ("run",), of=("ReLLa",)),
    "split_file": Key(rules.optional_text, ("rows", "run"), is_path=True, of_one_run=True),
    "run_folder": Key(rules.optional_text, ("run",), is_path=True, of_one_run=True),
    "warmup_ratio": Key(rules.number(0, 1), ("training",), of=_RELLA),
    "checkpoint_minutes": Key(rules.number(0), ("run",), of=_RELLA),
    "resume_from": Key(rules.run_folder, ("run",), is_path=True, of_one_run=True, of=_RELLA),
    "allow_changed": Key(rules.changes, ("run",)),
    "sim_search": Key(rules.one_of("semantic", "category", "soft", "attention"), ("training",), of=_SIM),
    "sim_size": Key(rules.integer(0), ("training",), of=_SIM),
    "sim_recent_size": Key(rules.integer(0), ("training",), of=_SIM),
    "sim_max_history": Key(rules.integer(1), ("training",), of=_SIM),
    "sim_read_ratings": Key(rules.boolean, ("training",), of=_SIM),
    "sim_time_gaps": Key(rules.boolean, ("training",), of=_SIM),
    "sim_loss_weight": Key(rules.number(0), ("training",), of=_SIM),
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


def history_keys(settings):
    """The keys of ours of which history features are made.

    Args:
        settings (Mapping): history_fields, retrieval_encoder, retrieval_mix_encoder and llm.

    Returns:
        tuple of str: none where there are no features.
    """
    given = settings["history_fields"]
    if not given:
        return ()
    # Values of same_<field>_* are those that prompt_words makes of the file's.
    keys = ["history_fields", "history_buckets", "category_field", "prompt_words", "cache_dir"]
    if rules.MEAN_EMBEDDING in given:
        keys += ["history_size"]
    if any(name.startswith("similar_") for name in rules.history_names(given, None)):
        # An item of an empty sentence is compared by its name.
        keys += [*affecting("retrieval"), "prompt_item", "prompt_noun"]
        if rules.text_encoder(settings) == "llm":
            keys += [*affecting("llm"), *(affecting("mini") if settings["llm"] == "mini" else ())]
    return tuple(dict.fromkeys(keys))


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
    "seed": rules.integer(0),
    "epochs": rules.integer(0),
    "train_batch_size": rules.integer(1),
    "eval_batch_size": rules.integer(1),
    "eval_step": rules.integer(0),
    "stopping_step": rules.integer(0),
    "learner": _learner,
    "learning_rate": rules.number(0),
    "weight_decay": rules.number(0),
    "rm_dup_inter": rules.one_of("first", "last", None),
    "val_interval": rules.intervals,
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
_GROUPS = ("llm_", "lora_", "spa_", "vllm_", "cflora_", "mini_", "retrieval_", "prompt_", "history_", "tree_", "sim_")


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
    problems += _against(RECBOLE_RULES, settings) + _unmeasured(settings)
    # Rows that come in parts are not divided.
    return problems + (_against({"eval_args": rules.eval_args}, settings) if settings.get("benchmark_filename") is None else [])


def _unmeasured(settings):
    """The best epoch is chosen by one of the metrics that are measured: RecBole looks after the first one."""
    metrics, chosen = settings.get("metrics"), settings.get("valid_metric")
    metrics = [metrics] if isinstance(metrics, str) else metrics
    if not isinstance(metrics, (list, tuple)) or not isinstance(chosen, str):
        return [f"valid_metric: expected the name of one of the metrics ({metrics!r}), found {chosen!r}"]
    measured = {str(metric).lower() for metric in metrics}
    if chosen.partition("@")[0].lower() in measured:
        return []
    return [f"valid_metric: expected one of the metrics ({', '.join(map(str, metrics))}), found {chosen}; name it in metrics, too"]


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
    for name, value in (("llm", settings["llm"]), ("retrieval_encoder", rules.text_encoder(settings))):
        revision = settings[f"{name}_revision"]
        if revision and (is_word(name, value) or Path(value).is_dir()):
            problems.append(f"{name}_revision: expected none with {name} {value!r}, which is not from the hub, found {revision!r}")
    if settings["history_shuffle_seed"] is not None and settings.get("TIME_FIELD", "") is None:
        problems.append(
            "TIME_FIELD: expected a name with history_shuffle_seed, as the places of the rows stand in that column, found None; "
            "leave the key out"
        )
    if settings["history_size"] == 0 and rules.MEAN_EMBEDDING in (settings["history_fields"] or []):
        problems.append(
            "history_size: expected an integer of at least 1 with mean_embedding, the mean of so many behaviours, found 0"
        )
    if settings.get("sim_size") == 0 == settings.get("sim_recent_size"):
        problems.append("sim_recent_size: expected an integer of at least 1 with sim_size 0, as there is nothing to read, found 0")
    if settings["mini_hidden_size"] % (2 * settings["mini_num_heads"]):
        problems.append(
            f"mini_hidden_size: expected a multiple of 2 x mini_num_heads ({2 * settings['mini_num_heads']}), "
            f"found {settings['mini_hidden_size']!r}"
        )
    return problems


def check_shown(settings):
    """Check how many behaviours prompts show, where each key by itself can be used; arguments and result as for `check`."""
    if not rules.reads_both(settings) or settings["history_recent_size"] <= settings["history_size"]:
        return []
    return [
        f"history_recent_size: expected at most history_size ({settings['history_size']}) where prompts show both kinds of "
        f"behaviours, found {settings['history_recent_size']!r}"
    ]


def check_rellax(settings):
    """Check what soft tokens and gates are made of, where each key by itself can be used; arguments and result as for `check`."""
    wanted = {word: "spa_tokens" for word in settings["spa_tokens"] if settings["spa"]}
    if settings["cflora"]:
        wanted.setdefault(settings["cflora_input"], "cflora_input")
    problems, of_model = [], {word: key for word, key in wanted.items() if word != "history"}
    if of_model and settings["crm"] is None:
        found = ", ".join(f"{key} has {word}" for word, key in of_model.items())
        problems.append(f"crm: expected the folder of a run of a conventional model, as {found}, found none")
    if "history" in wanted and not [name for name in settings["history_fields"] or [] if name != rules.MEAN_EMBEDDING]:
        problems.append(
            f"history_fields: expected default, or names of numbers, as {wanted['history']} has history, found "
            f"{settings['history_fields']!r}"
        )
    if settings["cflora"] and settings["llm_gradient_checkpointing"]:
        problems.append("llm_gradient_checkpointing: expected False with cflora, found True")
    if settings["cflora"] and settings["lora"].get("use_dora"):
        problems.append("lora: expected no use_dora with cflora, whose gates DoRA's norms do not see, found True")
    if settings["adapter_from"] and not wanted:
        problems.append("adapter_from: expected none without spa and cflora, as its adapters stay as they are, found one")
    return problems


def check_tree(settings):
    """Check that Tree has a number to read, where each key by itself can be used; arguments and result as for `check`."""
    if settings["history_fields"] != [rules.MEAN_EMBEDDING]:
        return []
    return [
        f"history_fields: expected default, or names of numbers, for Tree, found {rules.MEAN_EMBEDDING} alone, which is for models "
        "that embed; name numbers, too, or leave Tree out (a run of ReLLa has it in beside)"
    ]


def check_engine(settings):
    """Check whether another program can score what a run makes; arguments and result as for `check`."""
    of_engine = {name: KEYS[name].rule for name in ("scoring_engine", "vllm_args") if name in settings}
    if (problems := _against(of_engine, settings)) or settings["scoring_engine"] == rules.TRANSFORMERS:
        return problems
    of_rows = [word for word in settings["spa_tokens"] if word in ("user", "history", "row") and settings["spa"]]
    reasons = {
        f"spa_tokens has {', '.join(of_rows)}, for which no exported LLM has a place": of_rows,
        "cflora has gates, which no exported LLM has": settings["cflora"],
        f"llm_quantization is {settings['llm_quantization']}, which is rounded otherwise elsewhere": settings["llm_quantization"],
        "llm_shard divides the LLM, which is written whole": settings["llm_shard"],
    }
    found = settings["scoring_engine"]
    return [f"scoring_engine: expected transformers, as {reason}; found {found!r}" for reason, there in reasons.items() if there]


def check_with_rella(settings):
    """Check RecBole's keys that ReLLa needs; arguments and result as for `check`."""
    problems = _refused(settings, _WITH_RELLA, " with ReLLa")
    transform = settings.get("transform")
    if transform != "user_defined":
        problems.append(f"transform: expected user_defined with ReLLa, which makes its prompts there, found {transform!r}")
    return problems


def _against(rule_of, settings):
    expected = {key: rule(settings.get(key)) for key, rule in rule_of.items()}
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
