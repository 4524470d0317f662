"""The command line: which flags there are, which way they ask for, and the keys beside them. Plain Python.

A flag belongs to the command (``--seeds``, ``--sweep``); every other ``--key=value`` is a key of RecBole's or ours. Names are
exact. A value begins after the first ``=`` or is the next argument, and may hold ``=``. The first argument may be the word of a
way, with its value behind it: ``score requests.jsonl`` is ``--score=requests.jsonl``. Nothing is dropped: what is neither a word, a
flag nor a key is an error.
"""

import argparse
import ast
import os
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from recbole_rella.errors import RellaError
from recbole_rella.key_docs import help_text, key_texts
from recbole_rella.shipped import variant_files

USAGE = """Run ReLLa, or any model of RecBole, on a data set.

    python run_recbole_rella.py --model=ReLLa --dataset=ml-100k [--config_files="a.yaml b.yaml"] [--key=value ...]
    python run_recbole_rella.py --resume_from=saved/<run folder>

The original files of a published data set (ml-1m, ml-25m, ml-latest-small, book-crossing) to RecBole's atomic files in data_path:

    python run_recbole_rella.py --dataset=ml-1m --convert=<folder of the original files> [--data_path=dataset/]

Several models side by side, on the same rows, and a key over several values:

    python run_recbole_rella.py --model=ReLLa,FM,FM+history,DIN,Tree --dataset=ml-100k [--seeds=2020,2021,2022] [--DIN.epochs=4]
    python run_recbole_rella.py --model=ReLLa --dataset=ml-100k --sweep=history_size:5,10,15

Tuning (pip install '.[hyper]'), scoring a file of requests, and what the model saw of a row:

    python run_recbole_rella.py --model=ReLLa --dataset=ml-100k --params_file=properties/hyper/rella.hyper --algo=bayes
    python run_recbole_rella.py --score=requests.jsonl --run_folder=saved/<run folder> --output_file=scores.csv
    python run_recbole_rella.py --explain=<row_id or user,item> --run_folder=saved/<run folder>

What its LLM reads of a history, without any tuning:

    python run_recbole_rella.py --diagnose=history --run_folder=saved/<run folder>

A finished run for other programs, as a plain Hugging Face folder and its test prompts:

    python run_recbole_rella.py --export=<folder> --export_prompts=<file.jsonl> --run_folder=saved/<run folder>

Several processes (or torchrun, or accelerate launch, in the place of python):

    python run_recbole_rella.py --model=ReLLa --dataset=ml-100k --nproc=2

Every other --key=value is a key of RecBole or of ReLLa and overrides the configuration files; --DIN.epochs=4 holds for DIN alone.

Once installed, the same is a command of its own, and what is to be done may stand first as a word, here as there:

    recbole-rella run --dataset=ml-100k                    recbole-rella compare --model=ReLLa,FM+history,Tree
    recbole-rella sweep history_size:5,10,15               recbole-rella tune properties/hyper/rella.hyper --algo=bayes
    recbole-rella score requests.jsonl                     recbole-rella explain <row_id or user,item>
    recbole-rella diagnose history                         recbole-rella export <folder>
    recbole-rella convert <folder> --dataset=ml-1m
"""

# What the command can do: how messages name it, and the keys that mean something there (None stands for all of them).
_FINISHED = ("run_folder", "checkpoint_dir", "allow_changed")
_SCORED = (*_FINISHED, "scoring_engine", "vllm_args")
WAYS = {
    "run": ("one run of one model", None),
    "compare": ("models side by side", None),
    "sweep": ("--sweep", None),
    "tune": ("--params_file", None),
    "convert": ("--convert", ("data_path",)),
    "score": ("--score", _SCORED),
    "explain": ("--explain", _SCORED),
    "diagnose": ("--diagnose", _SCORED),
    "export": ("--export", _FINISHED),
}
_ON_DATA = ("run", "compare", "sweep", "tune")
# The flags that ask for a way, and the way; the first of each takes what stands behind its word.
_ASKING = {
    "convert": "convert",
    "sweep": "sweep",
    "params_file": "tune",
    "score": "score",
    "explain": "explain",
    "diagnose": "diagnose",
    "export": "export",
    "export_prompts": "export",
}


class CommandError(RellaError):
    """The command line asks for what does not go together, or for what is not there."""


# Types of flags, as argparse takes them.


def _whole(low):
    def read(text):
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < low:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {low}, found {text!r}")
        return number

    return read


def _among(*allowed):
    def read(text):
        if text not in allowed:
            raise argparse.ArgumentTypeError(f"expected {' or '.join(allowed)}, found {text!r}")
        return text

    return read


def _integers(text):
    try:
        found = [int(part) for part in text.strip("[]() ").split(",")]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"expected different integers, found {text!r}")
    return found


_path = os.path.expanduser


@lru_cache
def _flags():
    """The parser of the flags, and for each flag the ways that it goes with."""
    parser = argparse.ArgumentParser(
        prog="run_recbole_rella.py",
        usage="run_recbole_rella.py [--flag=value ...] [--key=value ...]",
        description=USAGE,
        epilog=f"keys of ReLLa and their defaults:\n\n{help_text()}\n\nkeys of RecBole: see its documentation.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    ways = {}

    def group(title):
        add_argument = parser.add_argument_group(title).add_argument

        def add(name, goes_with, help, *short, type=str, default=None):
            add_argument(f"--{name}", *short, type=type, default=default, help=help, metavar="...")
            ways[name] = goes_with

        return add

    add = group("what to run")
    add("model", _ON_DATA, "name of the model (ReLLa), or several, or YAML files, separated by commas", "-m")
    add("dataset", (*_ON_DATA, "convert"), "name of the data set (ml-100k), or the folder of its atomic files", "-d")
    add("config_files", (*_ON_DATA, "convert"), "YAML files, separated by spaces")
    add("convert", ("convert",), "folder of the original files of the data set, to be converted", type=_path)
    add = group("several processes, in RecBole's words")
    add("nproc", ("run",), "processes on this machine; one a GPU", type=_whole(1), default=1)
    add("world_size", ("run",), "processes on all machines", type=_whole(-1), default=-1)
    add("group_offset", ("run",), "processes on the machines before this one", type=_whole(0), default=0)
    add("ip", ("run",), "address of the first machine", default="localhost")
    add("port", ("run",), "port of the first machine", type=_whole(0), default=5678)
    add = group("side by side")
    add("seeds", ("compare", "sweep"), "one run of each model for each seed, separated by commas", type=_integers)
    add("sweep", ("sweep",), "key:value,value,... : one run of each model for each value")
    written = ("compare", "sweep", "explain", "diagnose")
    add("output_folder", written, "where tables, pictures and explanations are written", type=_path)
    add = group("tuning")
    add("params_file", ("tune",), "file of the searched keys: key choice [a,b], key uniform low,high, ...", type=_path)
    add("tool", ("tune",), "Hyperopt or Ray", default="Hyperopt")
    add("algo", ("tune",), "exhaustive, random or bayes", default="exhaustive")
    add("max_evals", ("tune",), "number of trials", type=_whole(1), default=20)
    add("early_stop", ("tune",), "Hyperopt ends after so many trials without progress", type=_whole(1), default=10)
    add("concurrency", ("tune",), "trials at a time with Ray", type=_whole(1))
    add("display_file", ("tune",), "HTML chart of the trials", type=_path)
    add("output_file", ("tune", "score"), "results of the trials, or scores", type=_path)
    add = group("with a finished run (--run_folder; the latest one by default)")
    add("score", ("score",), "file of requests, .csv or JSON Lines; scores go to --output_file", type=_path)
    skips = _among("skip", "fail")
    add("bad_lines", ("score",), "skip or fail: what a line does that cannot be scored", type=skips, default="skip")
    add("explain", ("explain",), "row_id, or user,item")
    add("diagnose", ("diagnose",), "history: test rows once more, with other histories", type=_among("history"))
    add("export", ("export",), "new folder for the LLM with its adapters merged in", type=_path)
    add("export_prompts", ("export",), "file for the prompts, as JSON Lines", type=_path)
    splits = _among("train", "valid", "test")
    add("export_split", ("export",), "train, valid or test: whose prompts are written", type=splits, default="test")
    return parser, ways


def flags():
    """The names of all flags, which are no keys of a configuration but for `model` and `dataset`.

    Returns:
        tuple of str: without the dashes.
    """
    return tuple(_flags()[1])


@dataclass(frozen=True)
class Command:
    """What a command line asks for.

    Attributes:
        way (str): one of WAYS.
        flags (argparse.Namespace): all flags, with defaults.
        keys (dict): key -> text, as it was given.
    """

    way: str
    flags: argparse.Namespace
    keys: dict

    @property
    def models(self):
        """The entries of --model."""
        return [name.strip() for name in (self.flags.model or "").split(",") if name.strip()]

    @property
    def files(self):
        """The YAML files of --config_files."""
        return (self.flags.config_files or "").split()


def is_own_program():
    """Whether this process is one of our own commands, and not a script or notebook that uses the package."""
    return bool(sys.argv) and Path(sys.argv[0]).stem in ("run_recbole_rella", "recbole-rella")


def asks_for_help(arguments=None):
    """Whether a list of arguments (that of the command line by default) asks for nothing but help."""
    return bool({"-h", "--help"} & set(sys.argv[1:] if arguments is None else arguments))


def parse(arguments):
    """Read a command line.

    Args:
        arguments (list of str): without the name of the program. With --help it is answered, and the program ends.

    Returns:
        Command: the way, the flags and the keys.

    Raises:
        CommandError: something in it is neither a flag nor a key, is given twice, or does not go with the rest.
    """
    parser, ways = _flags()
    if asks_for_help(arguments):
        parser.print_help()
        raise SystemExit(0)
    word, arguments = _word(arguments)
    given = _once(_pairs(arguments))
    try:
        known = parser.parse_args([f"--{name}={text}" for name, text in given.items() if name in ways])
    except argparse.ArgumentError as error:
        raise CommandError(f"{error.argument_name.split('/')[0].lstrip('-')}: {error.message}.") from error
    keys = {name: text for name, text in given.items() if name not in ways}
    command = Command(_way(known, word), known, keys)
    _check_together(command, [name for name in given if name in ways], ways)
    return command


def _word(arguments):
    """The word of a way that a command line begins with, or None; and the arguments with flags alone."""
    word, rest = (arguments[0], list(arguments[1:])) if arguments and arguments[0] in WAYS else (None, arguments)
    flag = next((flag for flag, way in _ASKING.items() if way == word), None)
    if flag and rest and not rest[0].startswith("-"):
        rest[0] = f"--{flag}={rest[0]}"
    return word, rest


def _pairs(arguments):
    """(name, text) of every argument, in their order."""
    rest, short = list(arguments), {"-m": "--model", "-d": "--dataset"}
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        argument = short.get(name, name)
        if not re.fullmatch(r"--[^\W\d][\w.+-]*", argument):
            shown = f"{name}{equals}{text}"
            words = ", ".join(WAYS)
            raise CommandError(
                f"Expected --key=value, or first one of {words}, found {shown!r}. Put quotes around a value that holds spaces."
            )
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise CommandError(f"{argument[2:]}: expected a value ({argument}=...), found none.")
            text = rest.pop(0)
        yield argument[2:], text


def _once(pairs):
    given = {}
    for name, text in pairs:
        if given.setdefault(name, text) != text:
            raise CommandError(f"{name}: expected one value, found {given[name]!r} and {text!r}.")
    return given


def _way(known, word):
    """What the flags ask for, and the word before them, where there is one."""
    asked = {name: way for name, way in _ASKING.items() if getattr(known, name)}
    if len(set(asked.values())) > 1:
        raise CommandError(f"Expected one of {', '.join(f'--{name}' for name in asked)}, found all of them: start them one by one.")
    several = known.seeds or "," in (known.model or "") or is_variant(known.model) or with_suffix(known.model)[1]
    way = next(iter(asked.values()), "compare" if several else "run")
    if word in (None, way) or (word, way) == ("compare", "run"):
        return word or way
    if way in ("run", "compare") and word not in ("run", "compare"):
        raise CommandError(f"{word}: expected what it takes behind it, as in `{word} ...`, found none; --help says what it is.")
    raise CommandError(f"{word}: expected what goes with it, found arguments for {WAYS[way][0]}; --help says what goes together.")


def is_variant(model):
    """Whether an entry of --model is a YAML file, or the name of a shipped one."""
    return bool(model) and (model in variant_files() or Path(model).suffix in (".yaml", ".yml"))


def with_suffix(model):
    """An entry of --model without what stands behind a plus sign, and that: FM+history is FM and history.

    Args:
        model (str or None): one entry.

    Returns:
        tuple: str, str; the second is empty where there is no plus sign, or where the entry is a file.
    """
    name, _, suffix = (model or "").partition("+")
    return (model or "", "") if is_variant(model) and Path(model).is_file() else (name, suffix)


def _check_together(command, given, ways):
    way, allowed = WAYS[command.way]
    defaults = _flags()[0].get_default
    astray = [name for name in given if command.way not in ways[name] and getattr(command.flags, name) not in ("", defaults(name))]
    if astray:
        raise CommandError(f"{', '.join(astray)}: does not go with {way}; --help says what it is for.")
    others = [key for key in command.keys if allowed is not None and key not in allowed]
    if others:
        why = "the settings of the run hold" if allowed in (_FINISHED, _SCORED) else "nothing else has an effect there"
        raise CommandError(f"{', '.join(others)}: expected {', '.join(allowed)} alone with {way}, where {why}.")


def read_value(key, text):
    """A value as RecBole reads it (a Python literal, true and false, else the text itself), but that nothing is executed.

    Args:
        key (str): ours of the type str keep a text that looks like a number or a list; of ``model.key`` the key counts.
        text (str): as it was given.

    Returns:
        None, bool, int, float, str, list, tuple or dict.
    """
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    if not isinstance(value, (str, bool, int, float, list, tuple, dict)) and value is not None:
        return text
    known = key_texts().get(key.rpartition(".")[2])
    if known and known.kind == "str" and not isinstance(value, str) and value is not None:
        return text
    return value


class _YamlLoader(yaml.SafeLoader):
    """Takes 1e-5 for a number, as RecBole's files do; to YAML 1.1 it is a text."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_values(key, text):
    """The values of a list, which is a Python literal, as in RecBole's spaces, or YAML, in which words need no quotes.

    Args:
        key (str): of each value; a text among them is read by `read_value`.
        text (str): ``[5,10]``, ``['adam','adamw']``, ``[adam, null]``.

    Returns:
        list: empty where the text is no list.
    """
    try:
        values = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        try:
            values = yaml.load(text, _YamlLoader)
        except (yaml.YAMLError, ValueError, RecursionError):  # a ValueError: a day that no calendar has
            return []
    return [read_value(key, value) if isinstance(value, str) else value for value in values] if isinstance(values, list) else []


def keys_among(arguments):
    """The keys in the command line of any program: every ``--key=value``. The rest is the program's own.

    Args:
        arguments (list of str): without the name of the program.

    Returns:
        dict: key -> text.
    """
    pairs = (argument[2:].partition("=") for argument in arguments if argument.startswith("--") and "=" in argument)
    return _once((name, text) for name, _, text in pairs)
