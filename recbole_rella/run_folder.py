"""What a run leaves behind: a folder of plain files, from which it can be read, scored again and resumed.

config.yaml       every key after all sources were merged
metrics.json      metrics, seed, versions, device, times, parameter counts, identity of LLM and encoder
test_predictions.csv   row_id, user_id, item_id, timestamp, label, score, with the data set's own ids
adapter/          the best adapter, in PEFT's standard format
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
ADAPTER, RESUME = "adapter", "resume.pt"

_PACKAGES = ("recbole", "torch", "transformers", "peft", "faiss-cpu", "sentence-transformers", "scikit-learn", "numpy")


def _plain(value):
    return value is None or isinstance(value, (str, int, float, bool)) or (
        all(map(_plain, value)) if isinstance(value, (list, tuple)) else
        isinstance(value, dict) and all(_plain(k) and _plain(v) for k, v in value.items())
    )  # fmt: skip


def write_config(folder, config):
    """Write the merged configuration, as it was before RecBole rewrote some values for its own use.

    Args:
        folder (pathlib.Path): the run folder.
        config (recbole.config.Config): RecBole's.
    """
    values = {**config.internal_config_dict, **config.external_config_dict}
    values.update(model=config["model"], dataset=config["dataset"], resume_from=None)
    text = yaml.safe_dump({k: v for k, v in values.items() if _plain(v)}, sort_keys=False, allow_unicode=True)
    with replacing(Path(folder) / CONFIG) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_config(folder):
    """The model name, the data set name and the path of the configuration file of a run.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    path = Path(folder).expanduser() / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"Expected the folder of a run with a {CONFIG}, found {folder}.")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
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


def write_metrics(folder, config, trainer, model, dataset, result, rows, seconds):
    """Write what the run measured, and under which circumstances, as JSON.

    Args:
        folder (pathlib.Path): the run folder.
        result (dict): run_recbole_rella's result.
        rows (dict): number of samples or rows in train, valid and test.
        seconds (dict): seconds of the run's parts.
    """
    device = config["device"]
    write_json(
        Path(folder) / METRICS,
        {
            "model": config["model"],
            "dataset": config["dataset"],
            "seed": config["seed"],
            "best_epoch": trainer.best_epoch,
            "valid": _floats(result["best_valid_result"]),
            "test": _floats(result["test_result"]),
            "rows": rows,
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "parameters": model.parameter_counts(),
            "llm": {"name": config["llm"], "identity": dataset.backbone.identity, "dtype": str(dataset.backbone.dtype)},
            "encoder": dataset.encoder_identity,
            "answer_tokens": list(dataset.answer_ids),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        },
    )  # fmt: skip


def _floats(result):
    return result and {name: float(np.float64(value)) for name, value in result.items()}
