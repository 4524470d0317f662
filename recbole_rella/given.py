"""What a run is given, by a command line, a dictionary or files: one gate, whatever it came by.

Texts are read without executing them, NumPy's scalars, tuples and paths become plain values, ~ becomes the home folder.
"""

import os
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePath

import numpy as np
import yaml

from recbole_rella import arguments, keys
from recbole_rella.key_docs import key_texts
from recbole_rella.keys import KEYS, is_word

# RecBole's keys that hold paths.
PATHS = ("data_path", "checkpoint_dir")

_command_line = ContextVar("command_line", default=None)
_compared = ContextVar("compared", default=())


def of_command_line():
    """The keys of `command_line`, dict; None outside of it."""
    return _command_line.get()


def compared_names():
    """The names of `compared`, tuple of str; none outside of it."""
    return _compared.get()


@contextmanager
def command_line(given):
    """Within this context Config takes these for the keys of the command line, in the place of sys.argv.

    Args:
        given (dict): key -> text or value.
    """
    token = _command_line.set(given)
    try:
        yield
    finally:
        _command_line.reset(token)


def no_command_line():
    """Within this context Config reads no command line: what is loaded is as it was, whatever the caller's arguments."""
    return command_line({})


@contextmanager
def compared(names):
    """Within this context keys of the form ``name.key`` may name these, as several models are configured, not that of one run."""
    token = _compared.set(tuple(names))
    try:
        yield
    finally:
        _compared.reset(token)


def plain(value):
    """A value of Python's own types: NumPy's scalars and arrays, tuples, paths and kinds of text and numbers are converted."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, bool):
        return value
    kind = next((kind for kind in (int, float, str) if isinstance(value, kind)), None)
    # A kind's own method: a kind of text may say something else of itself (as members of an Enum do).
    return value if kind in (None, type(value)) else str.__str__(value) if kind is str else kind(value)


def usable(name, value):
    """What a key is used as: a plain value, lists of words in the place of a text with commas, paths without ~."""
    key, value = name.rpartition(".")[2], plain(value)
    if key == "gpu_id" and isinstance(value, list):
        return ",".join(map(str, value))
    if key in KEYS and key_texts()[key].kind == "list of str" and isinstance(value, str):
        return [word.strip(" '\"") for word in value.strip("[] ").split(",") if word.strip()]
    if (key in PATHS or key in keys.paths()) and isinstance(value, str) and value.startswith("~") and not is_word(key, value):
        return os.path.expanduser(value)
    return value


def allowed_changes(text):
    """The words of allow_changed as it was given on a command line.

    Returns:
        list of str: words of `key_rules.IDENTITIES`.

    Raises:
        ConfigError: others.
    """
    found = usable("allow_changed", arguments.read_value("allow_changed", text))
    expected = KEYS["allow_changed"].rule(found)
    keys.refuse([f"allow_changed: expected {expected}, found {text!r}"] if expected else [])
    return found


def absolute(settings):
    """Settings whose files and folders are found from any working folder; reserved words and names on the hub stay.

    Args:
        settings (dict): as a Config holds them.

    Returns:
        dict: the same keys.
    """

    def resolved(key, value):
        if not isinstance(value, str) or not value or is_word(key, value) or not (key in PATHS or key in keys.paths()):
            return value
        if key in KEYS and KEYS[key].or_name and not Path(value).exists():
            return value
        return str(Path(value).expanduser().resolve())

    return {key: resolved(key, value) for key, value in settings.items()}


def checked_files(config_file_list):
    """The configuration files, each of which holds keys.

    Args:
        config_file_list (list of str or pathlib.Path, optional): YAML files.

    Returns:
        list of str: their paths, or None where none are given.

    Raises:
        ConfigError: one is not there, is no YAML, or holds something else than keys; all are named.
    """
    problems, found = [], []
    for path in config_file_list or []:
        path = Path(path).expanduser()
        found.append(str(path))
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
            if not isinstance(values, dict):
                what = "nothing" if values is None else f"a {type(values).__name__}"
                problems.append(f"{path}: expected `key: value` lines, found {what}")
        except OSError as error:
            problems.append(f"config_files: expected YAML files, found {str(path)!r} ({error.strerror})")
        except UnicodeDecodeError as error:
            problems.append(f"{path}: expected text in UTF-8, found a byte that is not ({error})")
        except yaml.YAMLError as error:
            problems.append(f"{path}: expected YAML, found {' '.join(str(error).split())}")
    keys.refuse(problems)
    return found or None
