"""What the values of our keys may be, and what those that are words mean. Plain Python.

A rule takes a value and returns None where it is allowed, else what was expected. keys.py has the table of keys, a rule for each.
"""

import difflib
import importlib.util
import os
import re
from pathlib import Path

import jinja2


def one_of(*allowed):
    """A rule: one of these values, of the same type."""
    names = ", ".join("none" if a is None else str(a) for a in allowed)
    return lambda value: None if any(value is a or (type(value) is type(a) and value == a) for a in allowed) else f"one of {names}"


def integer(low, optional=False):
    """A rule: an integer of at least `low`, or perhaps None."""

    def rule(value):
        if (optional and value is None) or (type(value) is int and value >= low):
            return None
        return f"an integer of at least {low}" + (", or none" if optional else "")

    return rule


def evaluated(value):
    """Rows of validation and of test: one number for both, or one each."""
    each = value if isinstance(value, (list, tuple)) and len(value) == 2 else [value]
    fits = all(integer(1, optional=True)(count) is None for count in each)
    return None if fits else "an integer of at least 1, or none, for validation and test, or a list of one for each"


def eval_args(value):
    """How RecBole divides rows: into train, valid and test. What it does not take for a dictionary, it says itself."""
    if not isinstance(value, dict):
        return None
    split = value.get("split", {"LS": "valid_and_test"})
    ((kind, parts),) = split.items() if isinstance(split, dict) and len(split) == 1 else [(None, None)]
    if kind in ("RS", "TS"):
        fits = isinstance(parts, list) and len(parts) == 3 and all(number(0)(part) is None for part in parts)
        fits = fits and 0 < sum(parts) < float("inf")
    else:
        fits = kind == "LS" and parts in ("valid_and_test", "valid_only", "test_only")
    if not fits:
        return "a split into three parts, train, valid and test, as {'RS': [0.8, 0.1, 0.1]} or {'LS': 'valid_and_test'}"
    if value.get("order", "RO") not in ("RO", "TO"):
        return "the order TO (by time) or RO (at random)"
    return None if str(value.get("group_by")).lower() in ("none", "user") else "group_by none or user"


def intervals(value):
    """Of columns, which values are kept; filters.py looks at them, as it depends on the column what they may be."""
    expected = "a dictionary of columns, as {'price': '[3,inf)', 'device': ['phone', 'tablet']}, or none"
    return None if value is None or isinstance(value, dict) else expected


def number(low, high=float("inf"), above=False):
    """A rule: a number from `low` to `high`, or above `low`."""

    def rule(value):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and (low < value if above else low <= value) and value <= high:
            return None
        return f"a number {'above' if above else 'of at least'} {low}" + (f" and at most {high}" if high < float("inf") else "")

    return rule


def boolean(value):
    """True or False."""
    return None if isinstance(value, bool) else "True or False"


def text(value):
    """A text that is not empty."""
    return None if isinstance(value, str) and value.strip() else "text"


def optional_text(value):
    """A text that is not empty, or None."""
    return None if value is None or text(value) is None else "text, or none"


def jinja(value):
    """A text that Jinja2 parses."""
    if not isinstance(value, str):
        return "Jinja2 text"
    try:
        jinja2.Environment().parse(value)
    except jinja2.TemplateSyntaxError as error:
        return f"Jinja2 text ({error.message}, line {error.lineno})"
    return None


def texts(value):
    """A list of texts, none of them empty."""
    fits = isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)
    return None if fits else "a list of texts that is not empty"


# In the place of module names: all linear layers of an LLM but its head.
ALL_LINEAR = "all-linear"
# Arguments of peft.LoraConfig that leave weights and prompts as they are, and tune adapters of linear layers alone. What is not
# here has a key of its own (r, lora_alpha), trains or changes other weights (bias, modules_to_save, an init such as PiSSA's), or
# asks for more than a batch (alora_invocation_tokens, eva_config).
LORA = (
    *("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "exclude_modules"),
    "init_lora_weights",
)


def target_modules(value):
    """Ends of module names, or all-linear alone."""
    if isinstance(value, list) and ALL_LINEAR in value and len(value) > 1:
        return f"a list of module names, or {ALL_LINEAR} alone"
    return (problem := texts(value)) and f"{problem}, or {ALL_LINEAR}"


def lora(value):
    """Arguments of peft.LoraConfig, by name."""
    expected = f"a dictionary of arguments of PEFT's LoraConfig, among {', '.join(LORA)}"
    if not isinstance(value, dict):
        return expected
    for name in value:
        if name not in LORA:
            nearest = difflib.get_close_matches(str(name), LORA, n=1)
            return f"{expected} (r, alpha, dropout and target modules have keys of their own)" + (
                f"; did you mean {nearest[0]}?" if nearest else ""
            )
    init, inits = value.get("init_lora_weights", True), (True, False, "gaussian", "orthogonal")
    if not any(init is one or (isinstance(init, str) and init == one) for one in inits):
        return f"{expected}; init_lora_weights as one of {', '.join(map(str, inits))}, which leave the LLM's weights as they are"
    return None


def two_answers(value):
    """The positive and the negative answer of a prompt, two texts."""
    if isinstance(value, list) and any(isinstance(v, bool) for v in value):
        return "two texts (quote them: a bare Yes or No is a boolean in YAML)"
    fits = isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) and v.strip() == v != "" for v in value)
    return None if fits and value[0] != value[1] else "two different texts, the positive answer first"


def words_of_codes(value):
    """Words for the codes of fields, dict of dict."""
    fits = isinstance(value, dict) and all(isinstance(codes, dict) for codes in value.values())
    return None if fits else "a dictionary {field: {code: words}}"


# What expected_counts may name: different users and items in the rows; rows after RecBole's filters; the rows of the splits
# (min_history, targets_per_user), before any are drawn; the parts as they are used (train before train_shots); rows of the
# .user and .item files.
COUNTS = ("users", "items", "rows", "split_rows", "train", "valid", "test", "listed_users", "listed_items")


def counts(value):
    """Published counts of a data set, by the names of COUNTS."""
    fits = isinstance(value, dict) and set(value) <= set(COUNTS) and all(type(count) is int for count in value.values())
    return None if fits else f"a dictionary {{name: integer}} with names among {', '.join(COUNTS)}"


# Numbers that a row's history is told in (rows/features.py), beside same_<item field>_mean, _residual and _count; `default` stands
# for all of them, and mean_embedding for two sequences, which RecBole's models pool by their mean.
HISTORY_NUMBERS = (
    *(f"user_{of}{last}" for of in ("mean", "residual") for last in ("", "_10", "_30")),
    *("user_last", "user_spread", "user_count", "days_since_last", "item_mean", "item_count"),
    *("similar_mean", "similar_residual", "alike_residual", "tracked_residual", "tracked_label"),
)
DEFAULT_HISTORY, MEAN_EMBEDDING = "default", "mean_embedding"
# The number that is made of times themselves, not of their order.
DAYS_SINCE_LAST = "days_since_last"


def history_names(given, category, timed=True):
    """The numbers that a setting asks for.

    Args:
        given (list of str or None): history_fields.
        category (str or None): the item field of categories.
        timed (bool): whether the rows have times.

    Returns:
        tuple of str: in the order given, each once; `default` stands for all that there are.
    """
    default = [name for name in HISTORY_NUMBERS if timed or name != DAYS_SINCE_LAST]
    default += [f"same_{category}_{of}" for of in ("mean", "residual", "count")] if category else []
    names = [name for word in given or () for name in (default if word == DEFAULT_HISTORY else [word])]
    return tuple(name for name in dict.fromkeys(names) if name != MEAN_EMBEDDING)


def same_field(name):
    """The item field of same_<field>_mean, same_<field>_residual or same_<field>_count; None for other names."""
    found = re.fullmatch(r"same_(.+)_(?:mean|residual|count)", name)
    return found and found[1]


def history_fields(value):
    """Names of history features, a list without repetitions, or None."""
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


def buckets(value):
    """How many buckets numbers are put into; 0 for none."""
    return None if type(value) is int and (value == 0 or value > 1) else "an integer of at least 2, or 0"


# What a soft token can stand for, in the order of prompt/soft_places.py.
SOFT_TOKENS = ("behaviours", "target", "user", "history", "row")


def soft_tokens(value):
    """What soft tokens stand for, a list of words of SOFT_TOKENS."""
    fits = isinstance(value, list) and value and set(map(str, value)) <= set(SOFT_TOKENS) and len(set(value)) == len(value)
    return None if fits else f"a list of words among {', '.join(SOFT_TOKENS)}, each once"


# Who computes P(yes), where it is no server.
TRANSFORMERS, VLLM = "transformers", "vllm"


def server_urls(value):
    """The URLs of a scoring_engine that are servers, list of str: separated by commas."""
    return [url.strip() for url in value.split(",") if url.strip()]


def scoring_engine(value):
    """transformers, vllm (where it is installed), or the URLs of servers."""
    expected = f"{TRANSFORMERS}, {VLLM}, or URLs of vLLM servers (http://host:8000), separated by commas"
    if not isinstance(value, str) or not value.strip():
        return expected
    if value in (TRANSFORMERS, VLLM):
        is_here = value == TRANSFORMERS or importlib.util.find_spec(VLLM) is not None
        return None if is_here else f"{expected}; vllm is not installed: pip install '.[vllm]'"
    wrong = [url for url in server_urls(value) if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?(#\S+)?", url)]
    return f"{expected} ({wrong[0]!r} is none of these)" if wrong or not server_urls(value) else None


def arguments(value):
    """Arguments of a function, by name."""
    return None if isinstance(value, dict) and all(isinstance(name, str) for name in value) else "a dictionary {name: value}"


# What identifies a finished run, by which a loaded run is compared with the one that was trained.
IDENTITIES = ("rows", "llm", "encoder", "prompts", "crm", "version")


def changes(value):
    """What of a finished run may have changed, a list of words of IDENTITIES."""
    fits = isinstance(value, list) and all(isinstance(v, str) and v in IDENTITIES for v in value)
    return None if fits else f"a list of words among {', '.join(IDENTITIES)}"


# Models that are fitted in seconds, and can be told of beside a run of ReLLa.
RIVALS = ("Bias", "Tree")


def rivals(value):
    """What is fitted beside a run of ReLLa, a list of names of RIVALS."""
    fits = isinstance(value, list) and all(isinstance(v, str) and v in RIVALS for v in value) and len(set(value)) == len(value)
    return None if fits else f"a list of different names among {', '.join(RIVALS)}"


# An encoder that mixes has its texts encoded by one of the others.
LLM, ENCODER, MIX = ("mini",), ("llm", "tfidf"), "mix"
ENCODER_OR_MIX = (*ENCODER, MIX)
TEMPLATES, CHATS = ("default",), ("auto", "always", "never", "vicuna")


def names_a_path(value):
    """Whether a text can only be a path: ``/x``, ``./x``, ``~/x``, ``a/b/c``; names on the hub have one slash at most."""
    text = value.replace(os.sep, "/")
    return "/" in text and (text.startswith(("/", ".", "~")) or text.count("/") > 1)


def llm(value):
    """An LLM: mini, a name on the hub, a folder or a GGUF file; those on disk exist."""
    if not isinstance(value, str) or not value.strip():
        return "mini, a Hugging Face hub name, a folder or a GGUF file"
    folder = Path(value).expanduser()
    if value not in LLM and folder.is_dir() and not (folder / "config.json").is_file():
        return "a folder that holds a Hugging Face LLM (there is no config.json in it)"
    if value.lower().endswith(".gguf"):
        return None if folder.is_file() else "mini, a Hugging Face hub name, a folder or a GGUF file (this file does not exist)"
    if names_a_path(value) and not folder.is_dir():
        return "mini, a Hugging Face hub name, a folder or a GGUF file (this folder does not exist)"
    return None


def encoder(words):
    """A rule: one of these encoders, or a name or folder of sentence-transformers."""
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
    return settings["retrieval_mix_encoder" if settings["retrieval_encoder"] == MIX else "retrieval_encoder"]


def word_or_jinja_file(words):
    """A rule: one of these words, or the path of a file that Jinja2 parses."""
    expected = f"{', '.join(words)}, or the path of a Jinja2 file"

    def rule(value):
        if not isinstance(value, str) or value in words:
            return None if value in words else expected
        path = Path(value).expanduser()
        if not path.is_file():
            return f"{expected} (no such file)"
        try:
            problem = jinja(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            problem = "text in UTF-8"
        return problem and f"{expected} that parses: {problem}"

    return rule


def run_folder(value):
    """The folder of an earlier run, or None."""
    expected = "the folder of an earlier run, or none"
    if value is None or (isinstance(value, str) and (Path(value).expanduser() / "config.yaml").is_file()):
        return None
    return f"{expected} (there is no config.yaml in it)" if isinstance(value, str) else expected


# Which behaviours a prompt can show (rows/fields.py has their codes), and the word for ReiT's mixture.
HISTORIES, MIXED = ("recent", "retrieved", "both"), "mixed"


def trained_kinds(value):
    """The kinds of behaviours of which train_history gives every shot a sample, tuple of str."""
    return ("recent", "retrieved") if value == MIXED else (value,) if isinstance(value, str) else tuple(value)


def reads_both(settings):
    """Whether train_history or eval_history of a configuration show `both`."""
    return "both" in (*trained_kinds(settings["train_history"]), settings["eval_history"])


def train_history(value):
    """The kinds of behaviours of which every shot gives a sample: a word, or a list."""
    if isinstance(value, str):
        fits = value in (MIXED, *HISTORIES)
    else:
        fits = isinstance(value, list) and bool(value) and all(isinstance(v, str) and v in HISTORIES for v in value)
        fits = fits and len(set(value)) == len(value)
    return None if fits else f"{MIXED}, one of {', '.join(HISTORIES)}, or a list of different ones of these"


def names_a_run(value):
    """Whether a text is the folder of a run, or can only be a path."""
    return names_a_path(value) or (Path(value).expanduser() / "config.yaml").is_file()


def crm(value):
    """A conventional model: its name, the folder of a run, or None."""
    if value is None or (isinstance(value, str) and re.fullmatch(r"[\w.+]+", value)):
        return None
    return (problem := run_folder(value)) and f"the name of a model, or {problem}"


ADAPTERS = ("ReLLa",)


def adapters(value):
    """Adapters to start from: ReLLa, the folder of a run, or None."""
    return None if value in ADAPTERS else (problem := run_folder(value)) and f"ReLLa, or {problem}"
