"""Our part of RecBole's Config: defaults from properties/, and the check of all keys before anything loads.

given.py reads what a run is given.
"""

import logging
import os
import sys
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePath

import numpy as np
import recbole.config.configurator as configurator
import yaml
from recbole.utils import ModelType
from recbole.utils.argument_list import dataset_arguments, evaluation_arguments, training_arguments

from recbole_rella import arguments, keys
from recbole_rella.errors import RellaError
from recbole_rella.files import read_yaml
from recbole_rella.given import compared_names, of_command_line, usable
from recbole_rella.key_rules import DEFAULT_HISTORY, names_a_run
from recbole_rella.keys import KEYS, ConfigError, affecting, is_word
from recbole_rella.shipped import properties_folder, variant_files

logger = logging.getLogger(__name__)

# Keys that RecBole reads and its property files do not list.
_UNLISTED = {
    "config_file_list",
    "device",
    "discretization",
    "encoding",
    "entity_kg_num_interval",
    "local_rank",
    "neg_sampling",
    "offset",
    "relation_kg_num_interval",
    "single_spec",
    "training_neg_sample_num",
}
# Flags of ours that are RecBole's words too, and stand in its dictionaries.
_RECBOLE_FLAGS = {"model", "dataset", "config_files", "nproc", "world_size", "ip", "port"}
# RecBole's files of defaults that are named in another case than their models, so that it does not find them: file -> model.
_TREES = {"lightgbm": "LightGBM", "xgboost": "XGBoost"}
_DEFAULTS = "ReLLa.yaml"
# RecBole's keys that change no score of a run.
RUN_ALONE = ("checkpoint_dir", "show_progress", "state", "worker", "log_wandb", "wandb_project")
# RecBole reads a data set that an earlier run saved, where it finds one, with that run's settings. Nothing can be here.
_NOWHERE = os.path.join(os.devnull, "nothing")


def is_ours(model_class):
    """Whether a model is ours: its class names files of defaults in properties/model, and our keys mean something to it."""
    return hasattr(model_class, "properties_files")


def is_rella(model_class):
    """Whether a model is ReLLa, or derived from it: it has prompts, an LLM and adapters."""
    return "ReLLa" in _names(model_class)


def reads(model_class, key):
    """Whether one of our keys means anything to a model."""
    own = getattr(model_class, "own_keys", None)
    if own is not None:
        return key in own or key in affecting("rows")
    return is_ours(model_class) and (not KEYS[key].of or bool(_names(model_class) & set(KEYS[key].of)))


def read_keys(model_class, settings):
    """Our keys that mean something to a model of ours under some settings: what its history features are made of, too.

    Args:
        model_class (type): of the model.
        settings (Mapping): as for `history_keys`.

    Returns:
        set of str: the keys.
    """
    found = {key for key in KEYS if reads(model_class, key)}
    if "history_fields" in found:
        found |= set(keys.history_keys({**settings, "history_fields": settings["history_fields"] or [DEFAULT_HISTORY]}))
    return found


def _names(model_class):
    return {cls.__name__ for cls in getattr(model_class, "__mro__", ())}


def is_on_our_rows(settings):
    """Whether a model of RecBole runs on our rows: side by side with others, or with the history features of its rows.

    Args:
        settings (Mapping): a Config, or its dictionary.
    """
    return settings["split_file"] is not None or bool(settings["history_fields"])


def template_file(name):
    """The path of a prompt template, shipped with the package or the user's own."""
    return properties_folder() / "prompt" / f"{name}.jinja" if is_word("prompt_template", name) else Path(name).expanduser()


def cache_folder(config):
    """Where item vectors and embedded LLMs are kept: cache_dir, or recbole_rella in the user's cache folder."""
    if config["cache_dir"]:
        return Path(config["cache_dir"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recbole_rella"


def scores_rows(config, *parts):
    """Whether parts (valid, test; by default both) are scored about their rows' own items, and no others: the mode labeled."""
    modes = config["eval_args"]["mode"]
    return all(modes[part] == "labeled" for part in parts or ("valid", "test"))


def chat_template(prompt_chat):
    """The text of the chat template that prompt_chat names, shipped with the package or the user's own; None for the modes."""
    path = Path(prompt_chat).expanduser()
    if is_word("prompt_chat", prompt_chat):
        path = properties_folder() / "chat" / f"{prompt_chat}.jinja"
        if not path.is_file():
            return None
    return path.read_text(encoding="utf-8")


@lru_cache
def _property_files():
    """RecBole's property files: path -> keys."""
    paths = (Path(configurator.__file__).parents[1] / "properties").glob("**/*.yaml")
    return {
        path: tuple(yaml.safe_load(path.read_text(encoding="utf-8")) or {}) for path in paths if not path.name.endswith("url.yaml")
    }


def _recbole_keys():
    """Keys of all of RecBole's property files: other models' hyper-parameters too, so that one configuration file may serve
    several models."""
    return _UNLISTED.union(*_property_files().values())


def model_names():
    """The names of RecBole's models, and of ours."""
    ours = {path.stem for path in (properties_folder() / "model").glob("*.yaml")}
    return {_TREES.get(path.stem, path.stem) for path in _property_files() if path.parent.name == "model"} | ours


@lru_cache
def data_keys():
    """RecBole's keys of the data and of its evaluation, which decide on the rows, whatever else this process did to its lists."""
    of_data = [names for path, names in _property_files().items() if path.parent.name == "dataset"]
    return frozenset({*dataset_arguments, *evaluation_arguments}.union(*of_data)) - set(KEYS)


def training_keys():
    """The keys that say how a model is trained, RecBole's and ours, but for those that say for how long, set of str."""
    return {*training_arguments, *affecting("training")} - {"epochs", "stopping_step"}


def _for_this_model(settings, model):
    """The given settings, where a key `DIN.epochs` stands for epochs of the model DIN and of no other."""
    own = {key.split(".", 1)[1]: value for key, value in settings.items() if key.startswith(f"{model}.")}
    return {**{key: value for key, value in settings.items() if "." not in key}, **own}


def _folder_of_atomic_files(dataset):
    """The folder that a data set is given as, or None where it is given by name.

    Raises:
        ConfigError: it is a path, and there are no atomic files.
    """
    if not isinstance(dataset, str) or not ({os.sep, "/"} & set(dataset) or dataset.startswith("~")):
        return None
    folder = Path(dataset).expanduser().resolve()
    expected = (
        "dataset: expected the name of a data set in data_path, or a folder of RecBole's atomic files (<name>.inter, and where "
        "there are any <name>.user and <name>.item)"
    )
    if not list(folder.glob("*.inter")):
        found = sorted(path.name for path in folder.iterdir())[:20] if folder.is_dir() else "no such folder"
        raise ConfigError(f"{expected}; found {dataset!r}: {found}.")
    if folder.name == "ml-100k":
        raise ConfigError(f"{expected}; found {dataset!r}, but RecBole takes this name for the data that it bundles: rename it.")
    return folder


# Checks.


def _misnamed(config, model):
    """Problems with keys of the form name.key: nothing would read them."""
    names, given = compared_names(), config.given_config_dict
    # What is trained before the compared models may have keys of its own, too: under its own name, also where it is imported.
    first = [value for key, value in given.items() if names and key.rpartition(".")[2] == "crm" and isinstance(value, str)]
    here = {*(names or [model]), *(name.rpartition(".")[2] for name in first if not names_a_run(name))}
    here |= {arguments.with_suffix(name)[0] for name in here}
    # A file, or another program's command line, may serve several models one after the other; that of our command is for this run.
    elsewhere = set() if names else model_names() | set(variant_files())
    of_this_run = of_command_line() or {}
    problems = []
    for key in given:
        name, dot, _ = key.rpartition(".")
        if dot and name not in here and (name not in elsewhere or key in of_this_run):
            what = "a compared model" if names else "the model of this run"
            problems.append(f"{key}: expected the name of {what} ({', '.join(sorted(here))}) before the dot, found {name}")
    return problems


def _misplaced(config):
    """Problems with flags of the command that stand in a file or dictionary, where nothing reads them."""
    given = {**config.file_config_dict, **config.variable_config_dict}
    flags = set(arguments.flags()) - _RECBOLE_FLAGS
    return [f"{key}: expected on the command line alone (--{key}=...), found in the configuration" for key in given if key in flags]


def _histories_of_parts(settings, model, model_class):
    """Problems with the histories of a model of RecBole: of rows that come in parts it makes none, and takes what the files say."""
    given = settings.get("benchmark_filename")
    if given is None or model_class.type != ModelType.SEQUENTIAL:
        return []
    return [
        f"benchmark_filename: expected none with {model}, whose histories RecBole makes of one file alone, found {given!r}; put "
        "all rows into one .inter file, and set eval_args"
    ]


def _has_tree(settings, model_class):
    """Whether Tree is the model, or is told beside it: of several models each run has its own settings, which leave beside out."""
    told = reads(model_class, "beside") and not compared_names() and "Tree" in settings["beside"]
    return told or "Tree" in _names(model_class)


def _check(config, model, model_class):
    """Refuse what cannot be used, all at once, and warn of keys that nothing will read."""
    settings = {**config.internal_config_dict, **config.external_config_dict}
    problems, given = _misnamed(config, model) + _misplaced(config), config.given_config_dict
    known = _known(config)
    # RecBole takes any key for any model; a name before a dot is our form, and history_fields is for any model too.
    ours = is_ours(model_class)
    named = given if ours else [key for key in given if "." in key or keys.nearest_key(key, ()) == "history_fields"]
    misspelt, others = keys.unknown(named, known)
    problems += misspelt
    if ours:
        problems += keys.check(settings) + keys.check_with_rella(settings)
    elif config.on_our_rows:
        problems += keys.check(settings) + _histories_of_parts(settings, model, model_class)
    if not problems and ours and reads(model_class, "spa"):
        problems += keys.check_shown(settings) + keys.check_rellax(settings) + keys.check_engine(settings)
    if not problems and _has_tree(settings, model_class):
        problems += keys.check_tree(settings)
    keys.refuse(problems)
    blind = not ours and not config.on_our_rows
    read = set() if blind else read_keys(model_class, settings) if ours else set(KEYS)
    unread = [key for key in config.external_config_dict if key in KEYS and key not in read]
    if unread and not compared_names():
        logger.warning("%s does not read these keys of other models, and they change nothing: %s", model, unread)
    if others:
        logger.warning("Neither RecBole nor ReLLa knows these keys, and nothing will read them: %s", others)


def _known(config):
    """The keys that RecBole, the command or the model's own files know, set of str."""
    return _recbole_keys().union(arguments.flags(), config.internal_config_dict, *config.parameters.values())


def refuse_unknown(names, config):
    """Refuse keys that a sweep, a search or a variant sets and no model of RecBole or of ours reads: nothing would differ.

    Args:
        names (iterable of str): the keys.
        config (recbole.config.Config): of the model that shall read them; one from elsewhere may have keys of its own.

    Raises:
        ConfigError: names them.
    """
    misspelt, others = keys.unknown(names, _known(config))
    if config.model_class.__module__.split(".")[0] in ("recbole", "recbole_rella"):
        misspelt += [f"{key}: expected a key of {config['model']}, found one that nothing reads" for key in others]
    keys.refuse(misspelt)


def default_files(dataset, model_class):
    """The shipped files of defaults that a model has on a data set, the later winning.

    What a data set's file says of training is for ReLLa, of which it is the rest that all models share: the files of another model
    of ours come after it. A model of RecBole on our rows has what `_our_defaults` takes of them.

    Args:
        dataset (str): name or folder.
        model_class (type): of the model.

    Returns:
        list of pathlib.Path
    """
    first, *own = getattr(model_class, "properties_files", [_DEFAULTS])
    named = (f"model/{first}", f"dataset/{Path(str(dataset)).name}.yaml", *(f"model/{name}" for name in own))
    return [path for path in (properties_folder() / name for name in named) if path.is_file()]


def _our_defaults(dataset, model_class):
    """Defaults for a model of RecBole on our rows: those of ReLLa for our keys, but for the shots, which are ReLLa's alone, and for
    rows without a line of their user or item, which RecBole leaves out; and the columns, labels and split of a shipped data set,
    whose learning rate is ReLLa's too. Models of users and items alone, whose scores are no probabilities, are measured by the
    order in which they put these rows."""
    of_rella, *of_dataset = map(read_yaml, default_files(dataset, model_class))
    found = {key: value for key, value in of_rella.items() if key in KEYS or key == "filter_inter_by_user_or_item"}
    for given in of_dataset:
        found |= {key: value for key, value in given.items() if key in KEYS or key in data_keys()}
    if model_class.type == ModelType.GENERAL:
        found |= {"metrics": ["AUC", "UAUC"], "valid_metric": "AUC", "eval_args": {"mode": "labeled", **found.get("eval_args", {})}}
    # Counts are published for the columns and filters of ReLLa's data sets; history fields are what ReLLa is told there, and other
    # models where they are asked for.
    return found | {"train_shots": None, "expected_counts": {}, "history_fields": None}


@contextmanager
def errors_of_recbole():
    """What RecBole's Config raises about what it was given, as one message."""
    try:
        yield
    except RellaError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, NotImplementedError, RuntimeError, AssertionError) as error:
        message = " ".join(str(error.args[0] if error.args else error).split())
        raise ConfigError(f"The configuration cannot be used, says RecBole: {message}") from error


class YamlLoader(getattr(yaml, "CFullLoader", yaml.FullLoader)):
    """RecBole's, made once: it adds its pattern to PyYAML's own loader again for each Config, and each reads more slowly than the
    last. By libyaml, where PyYAML has it, which takes a tenth of the time. RecBole pickles it with its checkpoints, by name."""


def install():
    """Make RecBole's Config read values safely, and carry our defaults for a model whose class names a property file of ours.

    The defaults go where RecBole puts those of a built-in model: under configuration files, dictionaries and the command line.
    For every other model what changes is that values are read without executing them and may hold ``=``, that keys of the form
    model.key are understood, and that a data set may be given as the path of its folder.
    """
    config_class = configurator.Config
    build_loader, merge, load_builtin, finish = (
        config_class._build_yaml_loader,
        config_class._merge_external_config_dict,
        config_class._load_internal_config_dict,
        config_class._get_final_config_dict,
    )
    if getattr(load_builtin, "serves_rella", False):
        return

    def read(self, given):
        return {key: arguments.read_value(key, value) if isinstance(value, str) else value for key, value in given.items()}

    def load_command_line(self):
        given = of_command_line()
        if given is None:
            # As RecBole has it: a notebook's command line is not the user's.
            given = {} if "ipykernel_launcher" in sys.argv[0] else arguments.keys_among(sys.argv[1:])
        return self._convert_config_dict(given)

    def merge_usable(self):
        merge(self)
        self.external_config_dict = {str(key): usable(str(key), value) for key, value in self.external_config_dict.items()}

    def load(self, model, model_class, dataset):
        dataset = self.dataset = str(dataset) if isinstance(dataset, (PurePath, np.str_)) else dataset
        folder = _folder_of_atomic_files(dataset)
        if folder is not None:
            self.dataset = dataset = folder.name
            self.external_config_dict["data_path"] = str(folder.parent)
        self.given_config_dict = self.external_config_dict
        self.external_config_dict = _for_this_model(self.given_config_dict, model)
        load_builtin(self, model, model_class, dataset)
        for stem, name in _TREES.items():
            if name == model:
                self._update_internal_config_dict(next(path for path in _property_files() if path.stem == stem))
        if is_ours(model_class):
            self.rella_defaults = {}
            for path in default_files(dataset, model_class):
                self.rella_defaults.update(self._update_internal_config_dict(path) or {})
        given = {key: self.external_config_dict.get(key) for key in ("split_file", "history_fields")}
        self.on_our_rows = not is_ours(model_class) and is_on_our_rows(given)
        if self.on_our_rows:
            self.internal_config_dict.update(_our_defaults(dataset, model_class))
        _check(self, model, model_class)

    def finish_without_saved(self):
        settings = finish(self)
        if is_ours(self.model_class) or self.on_our_rows:
            settings.update(dataset_save_path=_NOWHERE, dataloaders_save_path=_NOWHERE)
        return settings

    load.serves_rella = True
    config_class._convert_config_dict = read
    YamlLoader.yaml_implicit_resolvers = build_loader(None).yaml_implicit_resolvers
    config_class._build_yaml_loader = lambda self: YamlLoader
    config_class._load_cmd_line = load_command_line
    config_class._merge_external_config_dict = merge_usable
    config_class._load_internal_config_dict = load
    config_class._get_final_config_dict = finish_without_saved
