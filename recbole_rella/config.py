"""Our part of RecBole's Config: defaults from properties/, and the check of our keys before anything loads."""

import logging
import os
from functools import lru_cache
from pathlib import Path

import recbole.config.configurator as configurator
import yaml

from recbole_rella.keys import CHAT_MODES, SHIPPED_CHATS, SHIPPED_TEMPLATES, ConfigError, check

logger = logging.getLogger(__name__)

# Keys of ours that say how rows are numbered and which of them are used.
ROWS_CHOSEN_BY = ("min_history", "targets_per_user", "history_shuffle_seed", "train_pool", "eval_rows")

# Keys of RecBole's scripts and of its multi-process start, which its property files do not list.
SCRIPT_KEYS = {
    "model",
    "dataset",
    "config_files",
    "config_file_list",
    "params_file",
    "output_file",
    "display_file",
    "max_evals",
    "algo",
    "tool",
    "nproc",
    "world_size",
    "ip",
    "port",
    "offset",
    "group_offset",
    "local_rank",
    "valid_metric_bigger",
    "seeds",
    "sweep",
    "train_shots_for",
    "output_folder",
    "explain",
    "score",
    "bad_lines",
    "concurrency",
    "early_stop",
    "convert",
    "export",
    "export_prompts",
    "export_split",
    "single_spec",
    "device",
    "neg_sampling",
    "training_neg_sample_num",
    "discretization",
    "encoding",
    "entity_kg_num_interval",
    "relation_kg_num_interval",
}


def properties_folder():
    """The folder of our YAML files and templates.

    It lies beside the package in a checkout or an editable install, and inside it once installed from a wheel.
    """
    inside = Path(__file__).parent / "properties"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "properties"


def template_file(name):
    """The path of a prompt template, shipped with the package or the user's own."""
    return properties_folder() / "prompt" / f"{name}.jinja" if name in SHIPPED_TEMPLATES else Path(name).expanduser()


def chat_template(prompt_chat):
    """The text of the chat template that prompt_chat names, shipped with the package or the user's own; None for the modes."""
    if prompt_chat in CHAT_MODES:
        return None
    is_shipped = prompt_chat in SHIPPED_CHATS
    path = properties_folder() / "chat" / f"{prompt_chat}.jinja" if is_shipped else Path(prompt_chat).expanduser()
    return path.read_text(encoding="utf-8")


@lru_cache
def _property_file_keys():
    """Keys of all of RecBole's property files: other models' hyper-parameters too, so that one configuration file may
    serve several models."""
    keys = set()
    for path in (Path(configurator.__file__).parents[1] / "properties").glob("**/*.yaml"):
        if not path.name.endswith("url.yaml"):
            keys.update(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    return keys


def _for_this_model(settings, model):
    """The given settings, where a key `DIN.epochs` stands for epochs of the model DIN and of no other."""
    own = {key.split(".", 1)[1]: value for key, value in settings.items() if key.startswith(f"{model}.")}
    return {**{key: value for key, value in settings.items() if "." not in key}, **own}


def _folder_of_atomic_files(dataset):
    """The folder that a data set is given as, or None where it is given by name.

    Raises:
        ConfigError: it is a path, and there are no atomic files.
    """
    if not isinstance(dataset, str) or not (os.sep in dataset or dataset.startswith("~")):
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


def install():
    """Make RecBole's Config carry our defaults for a model whose class names a property file of ours.

    The defaults go where RecBole puts those of a built-in model: under configuration files, dictionaries and the
    command line. For every other model nothing changes, but that keys of the form model.key are understood, and a data
    set may be given as the path of its folder.
    """
    load_builtin = configurator.Config._load_internal_config_dict
    if getattr(load_builtin, "serves_rella", False):
        return

    def load(self, model, model_class, dataset):
        folder = _folder_of_atomic_files(dataset)
        if folder is not None:
            self.dataset = dataset = folder.name
            self.external_config_dict["data_path"] = str(folder.parent)
        self.given_config_dict = self.external_config_dict
        self.external_config_dict = _for_this_model(self.given_config_dict, model)
        load_builtin(self, model, model_class, dataset)
        if not hasattr(model_class, "properties_file"):
            return
        self.rella_defaults = {}
        known = SCRIPT_KEYS | _property_file_keys() | set(self.internal_config_dict).union(*self.parameters.values())
        for path in (f"model/{model_class.properties_file}", f"dataset/{Path(str(dataset)).name}.yaml"):
            if (properties_folder() / path).is_file():
                self.rella_defaults.update(self._update_internal_config_dict(properties_folder() / path) or {})
        settings = {**self.internal_config_dict, **self.external_config_dict}
        strangers = check(settings, self.external_config_dict, known)
        if strangers:
            logger.warning("Neither RecBole nor ReLLa knows these keys, and nothing will read them: %s", strangers)
        # RecBole compares these when it reloads a data set that it saved.
        self.parameters["Dataset"] += [key for key in ROWS_CHOSEN_BY if key not in self.parameters["Dataset"]]

    load.serves_rella = True
    configurator.Config._load_internal_config_dict = load
