"""Our configuration keys: what each may hold, and the check that runs before anything loads (law 8).

Plain Python: config.py feeds it RecBole's dictionaries. The defaults and a comment for each key are in
properties/model/ReLLa.yaml; a test holds the two together.
"""

import difflib
import os
from pathlib import Path

import jinja2

from recbole_rella.errors import RellaError


class ConfigError(RellaError):
    """One or more configuration values cannot be used; the message lists all of them."""


# Each rule takes a value and returns None where it is allowed, else what was expected.


def _one_of(*allowed):
    return lambda value: None if value in allowed else "one of " + ", ".join(str(a) for a in allowed)


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
    return None if value is None else _text(value)


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


def _names_a_path(value):
    return os.sep in value and (value.startswith((os.sep, ".", "~")) or value.count(os.sep) > 1)


def _llm(value):
    if not isinstance(value, str) or not value.strip():
        return "mini, a Hugging Face hub name or a folder"
    folder = Path(value).expanduser()
    if value != "mini" and folder.is_dir() and not (folder / "config.json").is_file():
        return "a folder that holds a Hugging Face LLM (there is no config.json in it)"
    if _names_a_path(value) and not folder.is_dir():
        return "mini, a Hugging Face hub name or a folder (this folder does not exist)"
    return None


def _encoder(value):
    expected = "llm, tfidf, or the name or folder of a sentence-transformers model"
    if not isinstance(value, str) or not value.strip():
        return expected
    if value in ("llm", "tfidf"):
        return None
    folder = Path(value).expanduser()
    if folder.is_dir():
        return (
            None
            if (folder / "config.json").is_file() or (folder / "modules.json").is_file()
            else ("a folder that holds a sentence-transformers model (there is no modules.json or config.json in it)")
        )
    if _names_a_path(value):
        return expected + " (this folder does not exist)"
    nearest = difflib.get_close_matches(value, ["llm", "tfidf"], n=1)
    return f"{expected}; did you mean {nearest[0]}?" if nearest else None


SHIPPED_TEMPLATES = ("default",)


def _template(value):
    if value in SHIPPED_TEMPLATES:
        return None
    expected = " or ".join(SHIPPED_TEMPLATES) + ", or the path of a Jinja2 file"
    if not isinstance(value, str) or not Path(value).expanduser().is_file():
        return f"{expected} (no such file)"
    problem = _jinja(Path(value).expanduser().read_text(encoding="utf-8"))
    return problem and f"{expected} that parses: {problem}"


CHAT_MODES, SHIPPED_CHATS = ("auto", "always", "never"), ("vicuna",)


def _chat(value):
    if value in CHAT_MODES + SHIPPED_CHATS:
        return None
    expected = ", ".join(CHAT_MODES + SHIPPED_CHATS) + ", or the path of a Jinja2 file"
    if not isinstance(value, str) or not Path(value).expanduser().is_file():
        return f"{expected} (no such file)"
    return None


def _run_folder(value):
    if value is None or (isinstance(value, str) and (Path(value).expanduser() / "config.yaml").is_file()):
        return None
    return "the folder of an earlier run (there is no config.yaml in it)"


RULES = {
    "llm": _llm,
    "llm_dtype": _one_of("auto", "float32", "bfloat16", "float16"),
    "llm_quantization": _one_of(None, "8bit", "4bit"),
    "llm_attn_implementation": _optional_text,
    "llm_trust_remote_code": _boolean,
    "llm_gradient_checkpointing": _boolean,
    "llm_shard": _boolean,
    "lora_r": _integer(1),
    "lora_alpha": _number(0, above=True),
    "lora_dropout": _number(0, 0.99),
    "lora_target_modules": _texts,
    "mini_hidden_size": _integer(4),
    "mini_num_layers": _integer(1),
    "mini_num_heads": _integer(1),
    "mini_vocab_size": _integer(300),
    "mini_history_size": _integer(1),
    "mini_epochs": _integer(0),
    "mini_learning_rate": _number(0, above=True),
    "mini_weight_decay": _number(0),
    "min_history": _integer(0),
    "targets_per_user": _integer(1, optional=True),
    "history_shuffle_seed": _integer(0, optional=True),
    "train_pool": _integer(1, optional=True),
    "train_shots": _integer(1, optional=True),
    "eval_rows": _integer(1, optional=True),
    "expected_counts": _counts,
    "train_history": _one_of("mixed", "retrieved", "recent"),
    "eval_history": _one_of("retrieved", "recent"),
    "history_size": _integer(1),
    "history_order": _one_of("time", "similarity", "similarity_reversed"),
    "retrieval_encoder": _encoder,
    "retrieval_pooling": _one_of("mean", "last"),
    "retrieval_pca_dim": _integer(1, optional=True),
    "retrieval_metric": _one_of("cosine", "l2", "dot"),
    "retrieval_chunk_size": _integer(1),
    "retrieval_sentence": _jinja,
    "prompt_template": _template,
    "prompt_chat": _chat,
    "prompt_system": _jinja,
    "prompt_noun": _text,
    "prompt_verb": _text,
    "prompt_profile": _jinja,
    "prompt_item": _jinja,
    "prompt_rating": _jinja,
    "prompt_question": _jinja,
    "prompt_answers": _two_answers,
    "prompt_words": _words,
    "max_prompt_tokens": _integer(8),
    "train_micro_tokens": _integer(1),
    "eval_micro_tokens": _integer(1),
    "cache_dir": _optional_text,
    "split_file": _optional_text,
    "run_folder": _optional_text,
    "heterogeneity_field": _optional_text,
    "warmup_ratio": _number(0, 1),
    "checkpoint_minutes": _number(0),
    "resume_from": _run_folder,
}

# The first word of our grouped keys: a name that starts so is taken for one of ours.
_GROUPS = ("llm_", "lora_", "mini_", "retrieval_", "prompt_", "history_")

# RecBole's keys that would be ignored, or would go wrong, with an LLM.
_UNSUPPORTED = {
    "save_dataloaders": "the item vectors and the embedded LLM are cached by themselves",
    "enable_scaler": "set llm_dtype to bfloat16, which needs no loss scaling",
    "enable_amp": "set llm_dtype instead",
}


def _unknown_key(key, recbole_keys):
    group = next((group for group in _GROUPS if key.startswith(group)), None)
    if group is not None:
        names, cutoff = [rule for rule in RULES if rule.startswith(group)], 0.0
    else:
        names, cutoff = [*RULES, *recbole_keys], 0.8
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=cutoff)
    if not nearest:
        return None
    return f"{key}: there is no such key; the nearest valid one is {nearest[0]}"


def check(settings, given, recbole_keys):
    """Check our keys, all at once.

    Args:
        settings (dict): every key after all sources were merged.
        given (iterable of str): the keys that the user gave, in any way.
        recbole_keys (set of str): the keys that RecBole, or the one who calls it, knows.

    Returns:
        list of str: keys that neither we nor RecBole know and that resemble none; the caller may warn of them.

    Raises:
        ConfigError: names every key at fault, what was given, what is allowed, and for unknown keys the nearest one.
    """
    problems, strangers = [], []
    for key in given:
        if key not in RULES and key not in recbole_keys:
            problem = _unknown_key(key, recbole_keys)
            (problems.append(problem) if problem else strangers.append(key))
    for key, rule in RULES.items():
        expected = rule(settings.get(key))
        if expected:
            problems.append(f"{key}: expected {expected}, found {settings.get(key)!r}")
    for key, remedy in _UNSUPPORTED.items():
        if settings.get(key):
            problems.append(f"{key}: expected False with ReLLa, found {settings[key]!r}; {remedy}")
    if not problems and settings["llm_shard"] and settings["llm_quantization"]:
        problems.append(f"llm_shard: expected False with llm_quantization {settings['llm_quantization']!r}, found True")
    if not problems and settings["mini_hidden_size"] % (2 * settings["mini_num_heads"]):
        problems.append(
            f"mini_hidden_size: expected a multiple of 2 x mini_num_heads ({2 * settings['mini_num_heads']}), "
            f"found {settings['mini_hidden_size']!r}"
        )
    if problems:
        raise ConfigError("The configuration cannot be used:\n  " + "\n  ".join(problems))
    return strangers
