"""Beside a run of ReLLa, on the same rows: models that are told the same past in numbers, and are fitted in seconds.

They show at once what the LLM adds, or does not. They learn from all training rows that the run may use, shots or not, as the
embedded LLM does.
"""

import time

import numpy as np

from recbole_rella.metrics import row_metrics
from recbole_rella.model.context_aware_recommender.bias import Bias
from recbole_rella.model.context_aware_recommender.tree import Tree

_CLASSES = {"Bias": Bias, "Tree": Tree}


def rivals_beside(config, dataset, valid, test):
    """Fit and score the models of `beside`. No random state but their own is touched.

    Args:
        config (recbole.config.Config): of the run.
        dataset (ReLLaDataset): built.
        valid, test (numpy.ndarray): row_ids, int [n].

    Returns:
        dict: name -> dict of auc, logloss, accuracy, uauc (float), users, users_left_out (int), chosen (dict), train_rows (int) and
        seconds (float). Empty where the training rows have one label alone, from which nothing is learned.
    """
    rows, found = dataset.rows, {}
    if len(np.unique(rows.label[dataset.pool])) < 2:
        return found
    for name in config["beside"]:
        began = time.monotonic()
        model = _CLASSES[name](config, dataset)
        model.fit_rows(dataset.pool, valid)
        measured = row_metrics(rows.label[test], model.scores(test), rows.user[test])
        found[name] = {
            **measured,
            "chosen": model.chosen,
            "train_rows": len(dataset.pool),
            "seconds": round(time.monotonic() - began, 2),
        }
    return found


_TOLD = {"Bias": "Bias (item mean plus running user mean)", "Tree": "Tree (on history_fields)"}


def sentence(found):
    """What `rivals_beside` found, in one line.

    Args:
        found (dict): not empty.

    Returns:
        str: ``beside it, on the same rows: Bias (...) auc : 0.7566, ...``.
    """
    parts = [
        f"{_TOLD[name]} {', '.join(f'{metric} : {one[metric]:.4f}' for metric in ('auc', 'logloss', 'accuracy', 'uauc'))} "
        f"({one['seconds']:.1f} s)"
        for name, one in found.items()
    ]
    return f"beside it, on the same rows: {'; '.join(parts)}"
