"""What a run leaves behind: a folder of plain files that hold the run, from which it is read, scored again and resumed.

config.yaml       every key after all sources were merged, as the user gave it; paths are absolute
identity.json     what the run stands on, each by a name that changes when it does: version (of this package), rows (of the files,
                  and of the split), llm, encoder, prompts
llm/              the embedded LLM, as a Hugging Face folder; another LLM is named in config.yaml and proved by its identity
crm/              what ReLLa reads of the run of a conventional model: its configuration and its vectors
prompt/           template.jinja and chat.jinja as they were, and items.tsv: the sentence by which each item was retrieved
metrics.json      metrics, seed, versions, device, times, parameter counts
report.html       how well it scores, for whom, and where it is most wrong, as a page that stands alone (report/run_page.py)
test_predictions.csv   row_id, user_id, item_id, timestamp, label, score, with the data set's own ids
adapter/          the best adapter of ReLLa, in PEFT's standard format
model.pth         the best checkpoint of a model without adapters, RecBole's own
trees.txt         the trees of LightGBM, in its own format; trees.ubj: those of XGBoost. (Bias and Tree leave nothing: config.yaml
                  fits them again in seconds.)
vectors.npz       what such a model has learned of items and users, by the data set's own ids (data/crm.py)
resume.pt         tensors and numbers from which an interrupted run goes on; no pickled code

`read_run` is the one reader of such a folder.
"""

import json
import os
import pickle
import platform
import shutil
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from recbole_rella.config import chat_template, is_ours, reads, training_keys
from recbole_rella.errors import RellaError
from recbole_rella.files import read_yaml, replacing, write_json, write_text, write_yaml
from recbole_rella.given import absolute
from recbole_rella.keys import KEYS
from recbole_rella.version import VERSION, installed

CONFIG, IDENTITY, METRICS, PREDICTIONS = "config.yaml", "identity.json", "metrics.json", "test_predictions.csv"
ADAPTER, CHECKPOINT, VECTORS, RESUME, LLM, CRM = "adapter", "model.pth", "vectors.npz", "resume.pt", "llm", "crm"
REPORT = "report.html"
_TEMPLATE, _CHAT, _SENTENCES = "prompt/template.jinja", "prompt/chat.jinja", "prompt/items.tsv"

# What is compared before a run is used again, and what each stands for.
IDENTITIES = {
    "version": "the version of recbole_rella",
    "rows": "the rows of the data set and their split",
    "llm": "the LLM",
    "encoder": "the encoder of items",
    "prompts": "the words and the form of the prompts",
    "crm": "the conventional model of soft tokens",
}
_PACKAGES = (
    "recbole",
    "torch",
    "transformers",
    "peft",
    "faiss-cpu",
    "sentence-transformers",
    "scikit-learn",
    "lightgbm",
    "xgboost-cpu",
    "numpy",
)


class RunError(RellaError):
    """A folder holds no run, or one that cannot be used so."""


class RunChangedError(RunError):
    """What a run stands on is not what it was."""


@dataclass(frozen=True)
class Run:
    """A run as its folder holds it.

    Attributes:
        folder (pathlib.Path): absolute.
        given (dict): config.yaml.
        identities (dict): name -> str or None; empty for a built-in model, and before a run has begun.
        metrics (dict or None): of a finished run.
    """

    folder: Path
    given: dict
    identities: dict
    metrics: dict | None

    @property
    def model(self):
        """RecBole's name of the model, or the import path of its class."""
        return self.given["model"]

    @property
    def dataset(self):
        """The name of the data set."""
        return self.given["dataset"]

    @cached_property
    def _kept(self):
        """Key -> path in the folder, of what the folder holds in the place of what the key names."""
        files = {"llm": LLM, "crm": CRM, "prompt_template": _TEMPLATE, "prompt_chat": _CHAT}
        kept = {key: str(self.folder / name) for key, name in files.items() if (self.folder / name).exists()}
        # The adapters of another run, once they are saved here.
        return {**kept, "adapter_from": str(self.folder)} if self.given.get("adapter_from") and self.has_adapter else kept

    def settings(self, given=None):
        """All settings of the run, or others that name what the run names, with what the folder holds in its place.

        Args:
            given (dict, optional): settings; config.yaml by default.

        Returns:
            dict: a copy.
        """
        given = self.given if given is None else given
        kept = {key: path for key, path in self._kept.items() if given.get(key, self.given.get(key)) == self.given.get(key)}
        return {**given, **kept}

    def predictions(self):
        """The scored test rows, or None; the columns are those that `write_predictions` writes."""
        path = self.folder / PREDICTIONS
        # Ids such as NA and null are text, too.
        return pd.read_csv(path, converters={"user_id": str, "item_id": str}) if path.is_file() else None

    @property
    def is_scored(self):
        """Whether its test rows were scored."""
        return self.metrics is not None and (self.folder / PREDICTIONS).is_file()

    @property
    def has_adapter(self):
        """Whether ReLLa was trained or validated here."""
        return (self.folder / ADAPTER).is_dir()

    @property
    def has_checkpoint(self):
        """Whether a model without adapters was trained here."""
        return (self.folder / CHECKPOINT).is_file()

    def weights(self):
        """The weights of the best epoch of a model without adapters, of RecBole or ours; no pickled code is run.

        Returns:
            dict: name -> torch.Tensor on the CPU, for `load_state_dict`.

        Raises:
            RunError: there are none, or the file is damaged.
        """
        path = self.folder / CHECKPOINT
        reader = SimpleNamespace(Unpickler=_Unpickler, load=pickle.load, loads=pickle.loads, __name__="weights")
        try:
            # RecBole pickles its Config beside them, whose classes weights_only refuses.
            return dict(torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)["state_dict"])
        except Exception as error:  # those of files, zip archives and pickles: whatever the damage, the remedy is the same
            raise RunError(
                f"run_folder: expected the checkpoint of a finished run in {path}, found none that reads ({error}). Run it again."
            ) from error

    def check(self, found, allowed=()):
        """Compare what the run stood on with what there is now.

        Args:
            found (dict): name -> identity, as `identities_of` gives them.
            allowed (iterable of str): names that may differ.

        Raises:
            RunChangedError: lists all that differs.
        """
        unknown = sorted(set(allowed) - set(IDENTITIES))
        if unknown:
            raise RunError(f"allow_changed: expected names among {', '.join(IDENTITIES)}, found {', '.join(unknown)}.")
        if not self.identities and self.has_adapter:
            raise RunError(
                f"run_folder: expected {IDENTITY} in {self.folder}, which proves what the run stood on, found none that reads. "
                "Runs of versions before 0.2 have none: run it again."
            )
        different = [name for name in IDENTITIES if name in self.identities and self.identities[name] != found[name]]
        refused = [name for name in different if name not in allowed]
        if refused:
            lines = [f"  {name}: {IDENTITIES[name]}; expected {self.identities[name]}, found {found[name]}" for name in refused]
            raise RunChangedError(
                f"The run in {self.folder} stands on what has changed since:\n"
                + "\n".join(lines)
                + "\nIts scores would be others. "
                f"Bring back what it was, run it again, or go on knowingly with --allow_changed={','.join(refused)}."
            )


def check_resumed(run, config):
    """A run goes on with the settings of training with which it began, but for how long it trains.

    Args:
        run (Run): to be resumed.
        config (recbole.config.Config): with which.

    Raises:
        RunChangedError: lists the keys that differ.
    """
    now = absolute({**config.internal_config_dict, **config.external_config_dict})
    changed = sorted(name for name in training_keys() & set(run.given) & set(now) if now[name] != run.given[name])
    if changed:
        lines = [f"  {name}: expected {run.given[name]!r}, found {now[name]!r}" for name in changed]
        raise RunChangedError(
            f"resume_from: expected the settings with which the run in {run.folder} began to train, found others:\n"
            + "\n".join(lines)
            + "\nLeave them out, or begin a new run."
        )


class _Nothing:
    """Takes the place of every pickled class that is no tensor."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __call__(self, *_, **__):
        return self

    def __setstate__(self, _):
        pass

    def __setitem__(self, *_):
        pass

    def append(self, _):
        """Nothing."""

    extend = add = append


class _Unpickler(pickle.Unpickler):
    """Knows tensors, and nothing else that a pickle could call."""

    _KNOWN = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    }

    def find_class(self, module, name):
        return self._KNOWN.get((module, name), _Nothing)


def read_run(folder):
    """Read a run folder.

    Args:
        folder (str or pathlib.Path): as a run left it, finished or not.

    Returns:
        Run: of it.

    Raises:
        RunError: the folder holds no run.
    """
    folder = Path(folder).expanduser().resolve()
    if not (folder / CONFIG).is_file():
        found = sorted(path.name for path in folder.iterdir())[:20] if folder.is_dir() else "no such folder"
        raise RunError(f"run_folder: expected the folder of a run with a {CONFIG}, found {folder}: {found}.")
    given = read_yaml(folder / CONFIG)
    if not {"model", "dataset"} <= set(given):
        raise RunError(f"run_folder: expected model and dataset in {folder / CONFIG}, found {sorted(given)[:10]}.")
    return Run(folder, given, _read_json(folder / IDENTITY) or {}, _read_json(folder / METRICS))


def _read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a run that ended in the middle has none
        return None


def identities_of(assembly):
    """What a run stands on, to be compared by `Run.check`.

    Args:
        assembly (Assembly or Behaviours): that it is made of.

    Returns:
        dict: name -> str, or None where it cannot be known or there is none.
    """
    return {"version": VERSION, **assembly.identities}


def fits_yaml(value):
    """Whether a value can stand in YAML: text, numbers, truth values, nothing, and lists and dictionaries of these."""
    if isinstance(value, (list, tuple)):
        return all(map(fits_yaml, value))
    if isinstance(value, dict):
        return all(fits_yaml(k) and fits_yaml(v) for k, v in value.items())
    return value is None or isinstance(value, (str, int, float, bool))


def model_name(config):
    """The name by which a model is found again: RecBole's, or the import path of a class that is not RecBole's."""
    found = config.model_class
    known = found.__module__.split(".")[0] in ("recbole", "recbole_rella")
    return config["model"] if known else f"{found.__module__}.{found.__qualname__}"


def check_is_new(config):
    """Refuse a run_folder that holds another run, whose results would stand beside what another one leaves there.

    Args:
        config (recbole.config.Config): of a run that begins, or goes on.

    Raises:
        RunError: there is one; or there can be no folder, which would be found when the LLM is about to be tuned.
    """
    _check_can_be_folder("checkpoint_dir", Path(config["checkpoint_dir"]))  # RecBole makes it, wherever the run is written
    folder = config["run_folder"]
    if not folder or config["resume_from"]:
        return
    _check_can_be_folder("run_folder", Path(folder).expanduser())
    if (Path(folder).expanduser() / CONFIG).is_file():
        raise RunError(
            f"run_folder: expected a folder without a run, found one in {folder}. Name another, remove it, or go on with that run "
            f"(--resume_from={folder})."
        )


def _check_can_be_folder(key, path):
    there = next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise RunError(f"{key}: expected a folder, or the name of a new one, found {there}, which is no folder. Name another.")


def begin_run(folder, config, assembly=None, identities=None):
    """Write what the run is: its configuration, and for a model of ours what it stands on.

    Args:
        folder (pathlib.Path): the run folder.
        config (recbole.config.Config): RecBole's; keys are written as they were before RecBole rewrote some for its own use.
        assembly (Assembly, optional): of ReLLa.
        identities (dict, optional): of another model of ours.
    """
    for name in (METRICS, PREDICTIONS, REPORT):  # of a run that is resumed: they are its results again when it has ended
        (folder / name).unlink(missing_ok=True)
    values = {**config.internal_config_dict, **config.external_config_dict}
    values.update(model=model_name(config), dataset=config["dataset"], resume_from=None, allow_changed=[])
    values = absolute(values)
    if is_ours(config.model_class):
        values = {key: value for key, value in values.items() if key not in KEYS or reads(config.model_class, key)}
    if assembly is not None:
        # On another device `auto` could be another dtype, and the scores others.
        values["llm_dtype"] = str(assembly.backbone.dtype).removeprefix("torch.")
        # A branch of the hub may move.
        values["llm_revision"] = assembly.backbone.commit or values["llm_revision"]
        if assembly.item_space is not None:
            values["retrieval_encoder_revision"] = assembly.item_space.encoder.commit or values["retrieval_encoder_revision"]
        _write_prompts(folder, config, assembly)
        if config["llm"] == "mini":
            with replacing(folder / LLM) as temporary:
                shutil.copytree(assembly.backbone.folder, temporary)
        identities = identities_of(assembly)
    if values.get("crm") is not None:
        _keep_crm(folder / CRM, Path(config["crm"]).expanduser())
    if identities is not None:
        write_json(folder / IDENTITY, identities)
    write_yaml(folder / CONFIG, {key: value for key, value in values.items() if fits_yaml(value)})


def _keep_crm(folder, crm):
    """Copy what is read of the run of a conventional model, so that this run needs no other."""
    if folder.resolve() != crm.resolve() and (crm / VECTORS).is_file():
        with replacing(folder) as temporary:
            temporary.mkdir()
            for name in (CONFIG, VECTORS):
                shutil.copyfile(crm / name, temporary / name)


def _write_prompts(folder, config, assembly):
    write_text(folder / _TEMPLATE, assembly.texts["layout"])
    if (chat := chat_template(config["prompt_chat"])) is not None:
        write_text(folder / _CHAT, chat)
    if assembly.item_space is not None:
        lines = (
            f"{item}\t{sentence}\n" for item, sentence in zip(assembly.prompter.item_ids[1:], assembly.item_space.sentences[1:])
        )
        write_text(folder / _SENTENCES, "".join(lines))


def write_predictions(folder, dataset, predictions):
    """Write the scored rows as CSV.

    Args:
        folder (pathlib.Path): the run folder.
        dataset (RowDataset): knows the rows and their own ids.
        predictions (dict): row_id int [n], score float32 [n].
    """
    rows, row_id = dataset.rows, predictions["row_id"]
    table = pd.DataFrame(
        {
            "row_id": row_id,
            "user_id": dataset.field2id_token[dataset.uid_field][rows.user[row_id]],
            "item_id": dataset.field2id_token[dataset.iid_field][rows.item[row_id]],
            "timestamp": rows.time[row_id],
            "label": rows.label[row_id],
            # Nine digits bring a float32 back to the last bit.
            "score": [f"{score:.9g}" for score in predictions["score"]],
        }
    )
    with replacing(Path(folder) / PREDICTIONS) as temporary:
        table.to_csv(temporary, index=False)


def write_metrics(folder, config, trainer, measured):
    """Write what the run measured, and under which circumstances, as JSON.

    Args:
        folder (pathlib.Path): the run folder.
        config (recbole.config.Config), trainer (KeepsPredictions): of the run.
        measured (dict): its figures; JSON-able.
    """
    device, assembly = config["device"], trainer.assembly
    record = {
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "best_epoch": trainer.best_epoch,
        **measured,
        "parameters": trainer.parameter_counts(),
    }
    if trainer.chosen is not None:
        record["chosen"] = trainer.chosen
    if assembly is not None:
        record["llm"] = {"name": config["llm"], "identity": assembly.identities["llm"], "dtype": str(assembly.backbone.dtype)}
        record["encoder"], record["answer_tokens"] = assembly.identities["encoder"], list(assembly.answer_ids)
    gpu = device.type == "cuda"
    record["device"] = torch.cuda.get_device_name(device) if gpu else f"cpu, {torch.get_num_threads()} threads"
    record["versions"] = {
        "recbole-rella": VERSION,
        "python": platform.python_version(),
        **{name: installed(name) for name in _PACKAGES},
    }
    write_json(Path(folder) / METRICS, record)


def floats(result):
    """RecBole's metrics as plain numbers."""
    return result and {name: float(np.float64(value)) for name, value in result.items()}
