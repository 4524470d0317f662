"""What a run leaves behind: a folder of plain files, from which it can be read, scored again and resumed.

config.yaml       every key after all sources were merged
metrics.json      metrics, seed, versions, device, times, parameter counts, identity of LLM and encoder
test_predictions.csv   row_id, user_id, item_id, timestamp, label, score, with the data set's own ids
adapter/          the best adapter of ReLLa, in PEFT's standard format
model.pth         the best checkpoint of a built-in model, RecBole's own
resume.pt         tensors and numbers from which an interrupted run goes on; no pickled code
"""

import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

from recbole_rella.files import replacing, write_json

CONFIG, METRICS, PREDICTIONS = "config.yaml", "metrics.json", "test_predictions.csv"
ADAPTER, CHECKPOINT, RESUME = "adapter", "model.pth", "resume.pt"

_PACKAGES = ("recbole", "torch", "transformers", "peft", "faiss-cpu", "sentence-transformers", "scikit-learn", "numpy")


def plain(value):
    """Whether a value can stand in YAML: text, numbers, truth values, nothing, and lists and dictionaries of these."""
    return (
        value is None
        or isinstance(value, (str, int, float, bool))
        or (
            all(map(plain, value))
            if isinstance(value, (list, tuple))
            else isinstance(value, dict) and all(plain(k) and plain(v) for k, v in value.items())
        )
    )


def model_name(config):
    """The name by which a model is found again: RecBole's, or the import path of a class that is not RecBole's."""
    found = config.model_class
    known = found.__module__.split(".")[0] in ("recbole", "recbole_rella")
    return config["model"] if known else f"{found.__module__}.{found.__qualname__}"


def write_config(folder, config):
    """Write the merged configuration, as it was before RecBole rewrote some values for its own use.

    Args:
        folder (pathlib.Path): the run folder.
        config (recbole.config.Config): RecBole's.
    """
    values = {**config.internal_config_dict, **config.external_config_dict}
    values.update(model=model_name(config), dataset=config["dataset"], resume_from=None)
    text = yaml.safe_dump({k: v for k, v in values.items() if plain(v)}, sort_keys=False, allow_unicode=True)
    with replacing(Path(folder) / CONFIG) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_yaml(path):
    """The values of a YAML file."""
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def read_config(folder):
    """The model name, the data set name and the path of the configuration file of a run.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    path = Path(folder).expanduser() / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"Expected the folder of a run with a {CONFIG}, found {folder}.")
    values = read_yaml(path)
    return values["model"], values["dataset"], str(path)


def write_predictions(folder, dataset, predictions):
    """Write the scored rows as CSV.

    Args:
        folder (pathlib.Path): the run folder.
        dataset (ReLLaDataset): knows the rows and their own ids.
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


def write_metrics(folder, config, trainer, model, dataset, measured):
    """Write what the run measured, and under which circumstances, as JSON.

    Args:
        folder (pathlib.Path): the run folder.
        config (recbole.config.Config), trainer (KeepsPredictions), model, dataset: of the run.
        measured (dict): its figures; JSON-able.
    """
    device = config["device"]
    counts = [p.numel() for p in model.parameters()], [p.numel() for p in model.parameters() if p.requires_grad]
    record = {
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "best_epoch": trainer.best_epoch,
        **measured,
        "parameters": {"trainable": sum(counts[1]), "all": sum(counts[0])},
    }
    if hasattr(dataset, "backbone"):
        backbone = dataset.backbone
        record["llm"] = {"name": config["llm"], "identity": backbone.identity, "dtype": str(backbone.dtype)}
        record["encoder"], record["answer_tokens"] = dataset.encoder_identity, list(dataset.answer_ids)
    gpu = device.type == "cuda"
    record["device"] = torch.cuda.get_device_name(device) if gpu else f"cpu, {torch.get_num_threads()} threads"
    record["versions"] = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    write_json(Path(folder) / METRICS, record)


def floats(result):
    """RecBole's metrics as plain numbers."""
    return result and {name: float(np.float64(value)) for name, value in result.items()}
