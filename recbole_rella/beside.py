"""Beside a run of ReLLa, on the same rows: models that are told the same past in numbers, and are fitted in seconds.

They show at once what the LLM adds, or does not. They learn from all training rows that the run may learn from, shots or not, as
the embedded LLM does; means of items are made of all training rows, as histories are.
"""

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_rella.arguments import is_own_program
from recbole_rella.metrics import TITLES, row_metrics
from recbole_rella.model.context_aware_recommender.bias import Bias
from recbole_rella.model.context_aware_recommender.tree import Tree
from recbole_rella.tables import markdown

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


def ending(found, folder, row_id):
    """What a run of ReLLa ends with: how well it and what stands beside it rank the same rows, and what to do next.

    Args:
        found (dict): model -> metrics of the test rows and seconds, that of the run first.
        folder (pathlib.Path): of the run.
        row_id (int): of a test row.

    Returns:
        str: some lines.
    """
    table = pd.DataFrame(
        [
            {"on the same test rows": _TOLD.get(name, name)}
            | {title: f"{one[metric]:.4f}" for metric, title in TITLES.items()}
            | {"seconds": f"{one['seconds']:.1f}"}
            for name, one in found.items()
        ]
    )
    next_steps = {
        f"--explain={row_id}": "what it saw of a row, and what moved the score",
        "--diagnose=history": "what it reads of a history",
        "--score=requests.jsonl": "scores of other users and items",
    }
    program = _program()
    lines = [f"{program} {option} --run_folder={folder}   # {text}" for option, text in next_steps.items()]
    return "\n".join(["", markdown(table), "", "next:", *lines])


def _program():
    """How our commands are called from this folder: as this one was, or, from a script or a notebook, as they are installed."""
    python, here = Path(sys.executable), Path.cwd()
    program = Path(sys.argv[0]) if is_own_program() else python.with_name("recbole-rella")
    python, command = (
        path.relative_to(here) if path.is_relative_to(here) else other
        for path, other in ((python, "python"), (program, program.name))
    )
    return f"{python} {program.name}" if program.suffix == ".py" else str(command)
