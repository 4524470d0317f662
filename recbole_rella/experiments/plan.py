"""What to run: models, seeds and swept values -> one settings file a run.

An entry of `--model` is the name of a model of RecBole or of ours (Bias, Tree), the import path of one from elsewhere, or a
variant: a YAML file, or the name of a shipped one in properties/variant (a variant of ReLLa unless it says `model:`). Any of them
followed by `+history` is told numbers of each row's history besides (history_fields: default).

Settings come from, the later winning: what all models share (the data, the split, the metrics), what was chosen for an entry and
data set in properties/tuned (`tuned: True`), files, dictionary and command line, the variant, and keys of the form entry.key. What
belongs to ReLLa alone is not passed to other models, so that a sweep over such a key gives them the same settings, and one run.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from recbole.utils import ModelType

from recbole_rella.arguments import flags, is_variant, with_suffix
from recbole_rella.config import RUN_ALONE, data_keys, default_files, is_ours, is_rella, read_keys, reads, refuse_unknown
from recbole_rella.data.same_rows import learns_from_labels, reads_history_fields
from recbole_rella.files import fingerprint, read_yaml
from recbole_rella.given import PATHS, absolute, checked_files, compared, no_command_line, usable
from recbole_rella.key_rules import MIXED
from recbole_rella.keys import KEYS, affecting, history_keys, is_word, paths, refuse
from recbole_rella.llm.gguf_file import is_gguf
from recbole_rella.model.fitted_at_once import FittedAtOnce
from recbole_rella.quick_start import ModelError, find_model, make_config
from recbole_rella.run_folder import ADAPTER, CONFIG, IDENTITY, LLM, VECTORS, fits_yaml
from recbole_rella.shipped import shipped_templates, tuned_file, variant_files
from recbole_rella.version import VERSION


@dataclass(frozen=True)
class Entry:
    """One of the compared models: the name it goes by, RecBole's name or an import path, its own settings, and in a sweep the
    swept key with its value, which comes after all of them and counts where the key means something to the model."""

    label: str
    model: str
    own: dict
    swept: dict = field(default_factory=dict)

    @property
    def name(self):
        """The label without what a sweep adds to it."""
        return self.label.split(" (")[0]

    @property
    def model_class(self):
        """The class of the model.

        Raises:
            ModelError: there is none of that name.
        """
        return find_model(self.model)

    @property
    def is_ours(self):
        """Whether keys of ours mean anything to it."""
        return is_ours(self.model_class)

    @property
    def is_rella(self):
        """Whether it shows behaviours in prompts."""
        return is_rella(self.model_class)

    @property
    def reads_history_fields(self):
        """Whether it takes history_fields for more than prompts: RecBole's models of columns do, and Tree."""
        return self.reads("history_fields") if self.is_ours else reads_history_fields(self.model_class)

    def reads(self, key):
        """Whether a key of ours means anything to it."""
        return reads(self.model_class, key)

    @property
    def has_epochs(self):
        """Whether it is trained in epochs: what is fitted at once, and trees, take one whatever is given."""
        return not issubclass(self.model_class, FittedAtOnce) and self.model_class.type != ModelType.DECISIONTREE


@dataclass(frozen=True)
class Run:
    """One training run: which entry, seed and swept value it stands for, and all its settings."""

    entry: Entry
    seed: int
    value: object
    settings: dict

    @property
    def name(self):
        """The run folder's name: the same for the same settings under the same version, whatever command asks for them."""
        label = re.sub(r"\W+", "-", self.entry.label).strip("-")
        return f"{label}-{self.seed}-{identity(self.settings)[:8]}"


def identity(settings):
    """Names the figures that settings give under this version, str: what changes none of them makes no other."""
    without = {*affecting("run"), *RUN_ALONE}
    settings = {key: value for key, value in settings.items() if key not in without}
    return fingerprint(VERSION, settings, _contents(settings), _shipped(settings))


def _shipped(settings):
    """What the shipped files say under these settings, list of str: defaults and, for prompts, templates, which anyone may edit."""
    model_class = find_model(settings["model"])
    files = default_files(settings["dataset"], model_class) + (shipped_templates() if is_rella(model_class) else [])
    return [path.read_text(encoding="utf-8") for path in files]


def _contents(settings):
    """What files that settings name hold: a template's text; names, sizes and times of an LLM's files."""
    found = {}
    for key in set(paths()) & set(settings):
        path = Path(str(settings[key]))
        if is_word(key, settings[key]):
            continue
        if path.is_file():
            found[key] = _stamp(path, path.name) if is_gguf(path) else path.read_text(encoding="utf-8")
        elif path.is_dir():
            found[key] = stamps(path)
    return found


def stamps(folder):
    """Names, sizes and times of the files in a folder (none, if it is not there): a cheap identity of large files.

    Of a run's folder they are those that other runs read: its report and diagnosis may be written again.
    """
    folder = Path(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if (folder / CONFIG).is_file():
        files = [path for path in files if path.relative_to(folder).parts[0] in (CONFIG, IDENTITY, ADAPTER, VECTORS, LLM)]
    return [_stamp(path, str(path.relative_to(folder))) for path in files]


def _stamp(path, name):
    return name, path.stat().st_size, path.stat().st_mtime_ns


# What may follow the name of a model, and the settings that it stands for.
SUFFIXES = {"history": {"history_fields": ["default"]}}


def make_run(experiment, entry, seed, value=None, tuned_as=None):
    """A run of an entry on the rows of an experiment.

    Args:
        experiment (Experiment): has ReLLa's configuration and the split.
        entry (Entry), seed (int): of the run.
        value (optional): what a sweep set.
        tuned_as (str, optional): as for `settings_of`.

    Returns:
        Run: with all its settings.
    """
    return Run(entry, seed, value, settings_of(entry, experiment.base, seed, experiment.split_file.resolve(), tuned_as))


def tuned_settings(label, dataset):
    """What was chosen on validation for an entry on a data set (properties/tuned), dict; empty where nothing was."""
    path = tuned_file(label, dataset)
    return read_yaml(path) if path.is_file() else {}


def _chosen(entry, base, tuned_as=None):
    """What was chosen for an entry, or for the label that it is tuned as, where `tuned` asks for it, dict."""
    return tuned_settings(tuned_as or entry.name, base["dataset"]) if base["tuned"] else {}


def with_bias(entries):
    """The entries, and `Bias` behind them where it is not among them."""
    named = any(entry.model == "Bias" for entry in entries)
    return [*entries, *([] if named else make_entries(["Bias"]))]


def make_entries(names):
    """Entries by name, import path or file.

    Raises:
        ModelError: names one that is none of these, that stands twice, or that has something else than history behind a plus sign.
    """
    entries = []
    for given in names:
        name, suffix = with_suffix(given)
        if suffix and suffix not in SUFFIXES:
            raise ModelError(f"model: expected +{' or +'.join(SUFFIXES)} behind the name of a model, found +{suffix} in {given!r}.")
        if is_variant(name):
            path = variant_files().get(name, Path(name).expanduser())
            if not path.is_file():
                raise ModelError(f"model: expected a model or a YAML file, found {name!r}, which does not exist.")
            checked_files([path])
            own = read_yaml(path)
            entries.append(Entry(path.stem, own.pop("model", "ReLLa"), own))
        else:
            entries.append(Entry(name.rpartition(".")[2], name, {}))
        if suffix:
            plain = entries.pop()
            entries.append(Entry(f"{plain.label}+{suffix}", plain.model, {**plain.own, **SUFFIXES[suffix]}))
    for entry in entries:
        if "history_fields" in entry.own and not (entry.is_rella or entry.reads_history_fields):
            raise ModelError(
                f"model: expected a model that reads columns of rows with +history, found {entry.label}: {entry.model} "
                "would be told nothing more."
            )
        if not learns_from_labels(entry.model_class):
            raise ModelError(
                "model: expected context-aware or sequential models or trees that learn from the labels of rows (as FM, DIN, "
                f"LightGBM), found {entry.label}."
            )
    labels = [entry.label for entry in entries]
    if len(set(labels)) < len(labels):
        raise ModelError(f"model: expected different models, found {labels}.")
    return entries


def with_each_history(entries, base, swept):
    """For a sweep: ReLLa with retrieved behaviours (and ReiT), with recent ones and with both, unless settings choose already.

    Args:
        entries (list of Entry): the models.
        base (recbole.config.Config): with all that the user gave for them.
        swept (str): the key.

    Returns:
        list of Entry: more than before, or as many.
    """
    expanded, given = [], {**base.given_config_dict, swept: None}
    for entry in entries:
        own = {**_chosen(entry, base), **given, **entry.own, **_named(entry, given)}
        if entry.is_rella and not {"train_history", "eval_history"} & set(own):
            # Said, not left to defaults: the file of a data set may have others.
            for kind, trained in (("retrieved", MIXED), ("recent", "recent"), ("both", "both")):
                chosen = {**entry.own, "train_history": trained, "eval_history": kind}
                expanded.append(Entry(f"{entry.label} ({kind})", entry.model, chosen))
        else:
            expanded.append(entry)
    return expanded


def shared_settings(base):
    """Settings of data and evaluation that every model must have in common.

    Args:
        base (recbole.config.Config): of ReLLa on the data set.
    """
    given = {**base.rella_defaults, **base.external_config_dict}
    shared = {key: base[key] for key in given if key in data_keys() and fits_yaml(base[key])}
    # Every data set numbers its rows by itself.
    numbered = {key: base[key] for key in ("history_shuffle_seed",) if base[key] is not None}
    # By RecBole's default a sequential model learns from sampled items instead of the rows that were not liked.
    return {**shared, **numbered, "train_neg_sample_args": None}


def check_settings(entries, base):
    """Every setting of every model can be used.

    Raises:
        ConfigError: before anything is run.
    """
    with no_command_line():
        for entry in entries:
            config = make_config(entry.model, base["dataset"], config_dict=settings_of(entry, base, base["seed"], "none"))
            refuse_unknown({**entry.own, **entry.swept}, config)


# What a model makes of the columns and the batches that it gets, and which of its epochs counts.
_OF_A_MODEL = {
    *("eval_batch_size", "valid_metric", "valid_metric_bigger", "preload_weight"),
    *("numerical_features", "discretization", "normalize_field", "normalize_all"),
    *("MAX_ITEM_LIST_LENGTH", "ITEM_LIST_LENGTH_FIELD", "LIST_SUFFIX", "POSITION_FIELD"),
}


def of_rows():
    """The keys that decide on the rows, which are the same for every model, set of str."""
    return {*data_keys(), *affecting("rows"), "seed"}


def _refuse_of_rows(entries, given):
    """Refuse keys of the rows that are said of one model among several: they would change nothing, or change the rows of all.

    Raises:
        ConfigError: names them.
    """
    shared = of_rows() - _OF_A_MODEL
    said = [(f"{entry.label}: {key}", key) for entry in entries for key in entry.own]
    said += [(key, key.rpartition(".")[2]) for key in given if "." in key]
    refuse(
        f"{where}: expected {key} to be given for all models (--{key}=..., or in a file of --config_files), as it decides on the "
        "rows, which are the same for each; found it for one"
        for where, key in said
        if key in shared
    )


def refuse_of_one_run(given):
    """Refuse keys that name what belongs to one run, where a command makes several.

    Args:
        given (iterable of str): the keys that the user gave.

    Raises:
        ConfigError: names them.
    """
    refuse(
        f"{key}: expected none where several runs are made, each with a folder of its own, found one"
        for key in given
        if key in KEYS and KEYS[key].of_one_run
    )


def not_varied(key):
    """Why a key is none that a sweep or a search can set for each run, whose rows are the same.

    Args:
        key (str): its name.

    Returns:
        str: a problem, or None.
    """
    expected = "expected a key of the models or their training"
    if "." in key:
        remedy = "leave the other models out of --model, and the name out of the key"
        return f"{expected}, which holds for all that know it, found {key}; {remedy}"
    if key in of_rows():
        return f"{expected}, found {key}, which decides on the rows"
    if key in {*affecting("run"), *RUN_ALONE, *PATHS, *flags()}:
        return f"{expected}, found {key}, which changes no figure of a run"
    return None


def make_base(entries, dataset, config_file_list, config_dict):
    """ReLLa's configuration on the data set, with all that the user gave for the models.

    Args:
        entries (list of Entry): the models, whose names may stand before a dot.
        dataset, config_file_list, config_dict: as for `run_recbole_rella`; the command line counts too.

    Returns:
        recbole.config.Config: checked for ReLLa.

    Raises:
        ConfigError: before anything is read.
    """
    # What is trained before them has keys of its own, too.
    first = [name for entry in entries if entry.own.get("crm") for name in _names(Entry("", entry.own["crm"], {}))]
    with compared([*first, *(name for entry in entries for name in _names(entry))]):
        base = make_config("ReLLa", dataset, config_file_list, config_dict)
    given = base.given_config_dict
    refuse_of_one_run(key for key, value in given.items() if value is not None)
    refuse_of_one_run(key for entry in entries for key in entry.own)
    _refuse_of_rows(entries, given)
    return base


def _names(entry):
    """What may stand before the dot for an entry: the model's name first, as a variant's own name says more."""
    return list(dict.fromkeys([entry.model.rpartition(".")[2], entry.name, entry.label]))


def _named(entry, given):
    """What keys with a name before the dot say of an entry, dict."""
    named = {}
    for name in _names(entry):
        named.update({key.removeprefix(f"{name}."): value for key, value in given.items() if key.startswith(f"{name}.")})
    return named


def settings_of(entry, base, seed, split_file, tuned_as=None):
    """All settings of one run of an entry.

    Args:
        entry (Entry): the model.
        base (recbole.config.Config): of ReLLa on the data set, with all that the user gave.
        seed (int): of everything but the split.
        split_file (pathlib.Path): the rows.
        tuned_as (str, optional): the label whose chosen settings it has where `tuned` asks for them; its own by default.

    Returns:
        dict: plain values, to be written as YAML.
    """
    given = base.given_config_dict
    named = _named(entry, given)
    common = {key: value for key, value in given.items() if "." not in key and key not in flags()} | entry.swept
    for key in ("train_shots_for", "with_bias", "tuned"):  # what they say is done here
        common.pop(key, None)
    chosen = _chosen(entry, base, tuned_as)
    read = {key for key in KEYS if entry.reads(key)}
    if entry.reads_history_fields:
        asked = {key: base[key] for key in ("retrieval_encoder", "retrieval_mix_encoder", "llm")} | {"history_fields": None}
        asked |= common | entry.own | named | entry.swept
        asked["history_fields"] = usable("history_fields", asked["history_fields"])
        read |= read_keys(entry.model_class, asked) if entry.is_ours else set(history_keys(asked))
    common = {key: value for key, value in common.items() if key not in KEYS or key in read}
    if entry.is_rella:
        common["beside"] = []
    else:
        common.pop("train_shots", None)
        if base["train_shots_for"] == "all":
            common["train_shots"] = entry.swept.get("train_shots", base["train_shots"])
    if not entry.is_ours:
        common = {**shared_settings(base), **common}
    settings = {"metric_decimal_place": 6, "show_progress": False, **chosen, **common, **entry.own, **named}
    settings |= {key: common[key] for key in entry.swept if key in common}
    if not entry.has_epochs:
        settings.pop("epochs", None)
    return {**absolute(settings), "model": entry.model, "dataset": base["dataset"], "seed": seed, "split_file": str(split_file)}
