"""What a run of ReLLa says before it begins: which rows it uses, with which LLM, and how long it will take."""

import time

import torch

from recbole_rella.atomic.errors import plural
from recbole_rella.key_rules import MIX, trained_kinds

# How long the estimate may take, unless two prompts take longer, and of how many prompts it is made at most.
_SECONDS, _PROMPTS = 0.5, 256
# A tuning step passes forward, backward through frozen weights, and shares fewer beginnings: it takes about so many times the time.
_TUNING = 3
_MINI = "the embedded LLM, which is pretrained on the training rows first, unless the cache has it"


def rows_ahead(config, pool, rows):
    """Which rows a run uses, and what reads them.

    Args:
        config (recbole.config.Config): of ReLLa.
        pool (int): training rows that may be used.
        rows (list of int): rows of train (shots), valid and test.

    Returns:
        str: two sentences.
    """
    shots, valid, test = rows
    kinds, epochs = trained_kinds(config["train_history"]), config["epochs"]
    samples = f"{shots} of {pool} training rows tune it in {shots * len(kinds)} samples ({' and '.join(kinds)} behaviours)"
    tuning = f"{samples}, {plural(epochs, 'epoch')}" if epochs else "it is not tuned (epochs: 0)"
    encoder = config["retrieval_encoder"]
    encoder = f"{MIX} ({config['retrieval_mix_encoder']} and collaborative vectors)" if encoder == MIX else encoder
    llm = _MINI if config["llm"] == "mini" else config["llm"]
    evaluated = f"{valid} rows validate it and {test} test it, shown {config['eval_history']} behaviours"
    return f"ReLLa with {llm}: {tuning}; {evaluated}. Items are compared by {encoder}."


@torch.no_grad()
def time_ahead(config, model, parts):
    """How long tuning and scoring will take, by the time that a few prompts take.

    Args:
        config (recbole.config.Config): of the run, whose rows are labelled.
        model (ReLLa): before it is tuned; it is put into evaluation mode.
        parts (list of ReLLaDataset): train, valid and test.

    Returns:
        str: one sentence.
    """
    model.eval()
    train, valid, test = (part.inter_feat for part in parts)
    tried = valid if len(valid) else train
    model.predict(tried[:1])  # which finds, once for an LLM, how it takes trees
    count, seconds = 0, 0.0
    while seconds < _SECONDS and count < min(_PROMPTS, len(tried)):
        count = min(max(1, 2 * count), len(tried))
        began = time.monotonic()
        model.predict(tried[:count])
        seconds = time.monotonic() - began
    each, epochs = seconds / count, config["epochs"]
    tuning, validating, testing = _TUNING * each * len(train), each * len(valid), each * len(test)
    total = epochs * tuning + max(1, epochs) * validating + testing
    each_epoch = f"a tuning epoch {_written(tuning)}, a validation" if epochs else "validation"
    told = f"{each_epoch} {_written(validating)}, the test rows {_written(testing)}; {_written(total)} in all."
    return f"Estimated by {plural(count, 'prompt')}: {told}"


def _written(seconds):
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
