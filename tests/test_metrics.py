"""Metrics equal scikit-learn's, user by user; RecBole computes ours for any model that is evaluated row by row."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from recbole_rella import run_recbole_rella
from recbole_rella.metrics import row_metrics, user_auc

row = st.tuples(st.integers(0, 4), st.integers(0, 1), st.sampled_from([0.1, 0.2, 0.2, 0.5, 0.9]))


def reference(labels, scores, users):
    """UAUC by scikit-learn, one user at a time."""
    areas, rows, left_out = [], [], 0
    for user in set(users):
        of = [place for place, u in enumerate(users) if u == user]
        if len({labels[p] for p in of}) == 2:
            areas.append(roc_auc_score([labels[p] for p in of], [scores[p] for p in of]))
            rows.append(len(of))
        else:
            left_out += 1
    return (np.average(areas, weights=rows) if areas else None), len(areas), left_out


@settings(max_examples=200, deadline=None)
@given(st.lists(row, min_size=1, max_size=40))
def test_uauc_is_the_mean_of_scikit_learns_weighted_by_rows(rows):
    users, labels, scores = (list(column) for column in zip(*rows))
    found = user_auc(np.array(labels), np.array(scores), np.array(users))
    expected, counted, left_out = reference(labels, scores, users)
    assert (found["users"], found["users_left_out"]) == (counted, left_out)
    assert np.isnan(found["uauc"]) if expected is None else found["uauc"] == pytest.approx(expected, abs=1e-12)


def test_users_may_be_names_and_none_at_all():
    found = user_auc(np.array([1, 0, 1]), np.array([0.9, 0.1, 0.5]), np.array(["a", "a", "b"]))
    assert found == {"uauc": 1.0, "users": 1, "users_left_out": 1}
    assert user_auc(np.array([]), np.array([]), np.array([]))["users"] == 0


@pytest.mark.parametrize("model", ["ReLLa", "FM"])
def test_recbole_prints_what_the_saved_predictions_give(model, movies):
    """Law 7, for all four metrics, for ReLLa and for a built-in model on the rows of a split."""
    name, tiny = movies
    own = {**tiny, "metrics": ["AUC", "LogLoss", "Accuracy", "UAUC"], "metric_decimal_place": 8}
    if model == "FM":
        from recbole_rella.experiments.plan import make_entries, settings_of
        from recbole_rella.experiments.side_by_side import make_experiment

        experiment = make_experiment([], name, None, own)
        own = settings_of(*make_entries(["FM"]), experiment.base, 1, experiment.split_file)
        own.pop("model"), own.pop("dataset")
    result = run_recbole_rella(model, name, config_dict=own)
    (folder,) = Path("saved").glob(f"{model}-*")
    table = pd.read_csv(folder / "test_predictions.csv")
    found = {
        "auc": roc_auc_score(table["label"], table["score"]),
        "logloss": log_loss(table["label"], table["score"]),
        "accuracy": accuracy_score(table["label"], table["score"] > 0.5),
        "uauc": reference(table["label"].tolist(), table["score"].tolist(), table["user_id"].tolist())[0],
    }
    assert {metric: float(value) for metric, value in result["test_result"].items()} == pytest.approx(found, abs=1e-6)
    exact = json.loads((folder / "metrics.json").read_text())["test_exact"]
    assert {metric: exact[metric] for metric in found} == pytest.approx(found, abs=1e-6)
    assert row_metrics(table["label"], table["score"], table["user_id"])["users_left_out"] == exact["users_left_out"]


def test_uauc_may_choose_the_best_epoch(movies):
    name, tiny = movies
    result = run_recbole_rella("ReLLa", name, config_dict={**tiny, "epochs": 2, "valid_metric": "UAUC"})
    assert result["best_valid_score"] == result["best_valid_result"]["uauc"]
