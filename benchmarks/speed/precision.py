"""What rounding costs: AUC and P(yes) of an LLM in bfloat16 and in int8 beside float32, on the same test rows of MovieLens-100K.

    python -m benchmarks.speed.precision --llm=gemma-3-270m.gguf [--formats=float32,bfloat16,int8] [--rows=2000] [--key=value ...]

Prompts show recent behaviours in words (benchmarks/real_llm/entries/recent.yaml, with other keys as given); nothing is tuned.

- bfloat16: as `llm_dtype: bfloat16` computes it.
- rounded: what bfloat16 gives on CPUs that have it, for those that do not and would take twenty times as long: linear layers and
  attention are computed in float32 from rounded numbers, and rounded. The order of sums is another one; seconds say nothing.
- int8: torch.ao's dynamic quantization of the linear layers: weights to 255 steps, what goes in to 255 steps of each call. A
  score then depends on the rows beside it; prompts share no beginnings, as the trial of that finds other logits.

Each format goes through all rows before the next one, so seconds are no measurement side by side. Writes
results/speed/precision.json.
"""

import argparse
import copy
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss, roc_auc_score
from torch.overrides import TorchFunctionMode

from benchmarks.real_llm.__main__ import ENTRIES
from benchmarks.speed.measure import command, machine, write
from recbole_rella.arguments import keys_among, read_value
from recbole_rella.llm.products import fast_products
from recbole_rella.llm.scoring import p_yes
from recbole_rella.quick_start import load_data, make_config, no_command_line
from recbole_rella.rows.fields import PROMPT_IDS, PROMPT_LENGTH
from recbole_rella.significance import paired_bootstrap

COMMAND = "python -m benchmarks.speed.precision"
_PRODUCTS = (F.linear, F.scaled_dot_product_attention)


class Rounded(TorchFunctionMode):
    """Within it, products of bfloat16 are computed in float32 and rounded to bfloat16 once."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in _PRODUCTS or args[0].dtype != torch.bfloat16:
            return function(*args, **kwargs)
        with fast_products():
            wide = function(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()})
        return wide.bfloat16()


def _wide(value):
    is_half = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
    return value.float() if is_half else value


def in_int8(llm):
    """A copy of an LLM whose decoder's linear layers are quantized; the head stays as it is."""
    llm = copy.deepcopy(llm)
    with warnings.catch_warnings():  # of its successor, which PyTorch does not bring
        warnings.simplefilter("ignore")
        torch.ao.quantization.quantize_dynamic(llm.base_model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
    return llm


# Name of a format -> how an LLM in float32 is taken there, and the context in which it is computed.
FORMATS = {
    "float32": (lambda llm: llm, fast_products),
    "bfloat16": (lambda llm: copy.deepcopy(llm).bfloat16(), fast_products),
    "rounded": (lambda llm: copy.deepcopy(llm).bfloat16(), Rounded),
    "int8": (in_int8, fast_products),
}


def prompted_rows(llm, keys, dataset="ml-100k"):
    """Prompts of test rows, as a run of ReLLa makes them.

    Args:
        llm (str): folder or GGUF file.
        keys (dict): of the run, beside those of the entry.
        dataset (str): as for `run_recbole_rella`.

    Returns:
        tuple: Assembly; list of PromptedRows; labels, int [n].
    """
    settings = {"llm": llm, "llm_dtype": "float32", "epochs": 0, "beside": [], "show_progress": False, **keys}
    with no_command_line():
        config = make_config("ReLLa", dataset, [str(ENTRIES / "recent.yaml")], settings)
        test = load_data(config)[1][2]
    batches = [batch[0] for batch in test]
    labels = np.concatenate([batch[config["LABEL_FIELD"]].numpy() for batch in batches]).astype(int)
    return test._dataset.assembly, batches, labels


def measure(assembly, batches, labels, formats, budget):
    """AUC, LogLoss and seconds of each format, and how far its scores are from those of the first one.

    Args:
        assembly (Assembly), batches (list of PromptedRows), labels (numpy.ndarray): of `prompted_rows`.
        formats (list of str): of FORMATS.
        budget (int): tokens at a time.

    Yields:
        tuple: name; a dict.
    """
    scores = {}
    for name in formats:
        change, context = FORMATS[name]
        llm, began = change(assembly.backbone.model), time.perf_counter()
        with context():
            of = [p_yes(llm, b[PROMPT_IDS], b[PROMPT_LENGTH], assembly.answer_ids, budget, llm.device) for b in batches]
        scores[name] = torch.cat(of).numpy().astype(float)
        away = np.abs(scores[name] - scores[formats[0]])
        found = {
            "auc": roc_auc_score(labels, scores[name]),
            "logloss": log_loss(labels, scores[name]),
            "mean difference": float(away.mean()),
            "largest difference": float(away.max()),
            "seconds": time.perf_counter() - began,
        }
        if name != formats[0]:
            chances, _ = paired_bootstrap(labels, {one: scores[one][None] for one in (formats[0], name)})
            found["p"] = float(chances[0, 1])
        yield name, found


def main():
    """Measure the formats, print each, and write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", required=True, help="a folder or a GGUF file")
    parser.add_argument("--formats", default="float32,bfloat16,int8")
    parser.add_argument("--rows", type=int, default=2000)
    known, rest = parser.parse_known_args()
    keys = {key: read_value(key, text) for key, text in keys_among(rest).items()}
    assembly, batches, labels = prompted_rows(known.llm, {"eval_rows": [2, known.rows], **keys})
    tokens = sum(int(batch[PROMPT_LENGTH].sum()) for batch in batches)
    record = {
        "command": command(COMMAND),
        "llm": Path(known.llm).stem,
        "machine": machine(),
        "rows": len(labels),
        "tokens a row": tokens / len(labels),
        "formats": {},
    }
    for name, found in measure(assembly, batches, labels, known.formats.split(","), 16_384):
        record["formats"][name] = found
        print(name, {key: round(value, 5) for key, value in found.items()}, flush=True)
        write("precision", record)


if __name__ == "__main__":
    main()
