"""Check a side-by-side table against the saved predictions of its runs, with scikit-learn.

    python benchmarks/check_side_by_side.py <experiment folder under saved/> <folder with runs.csv and table.csv>

AUC, LogLoss and accuracy of every run are computed again and must agree to 1e-6; so must the means of the table; and every
run must have scored the same rows, in the same order, with the same labels.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score


def main():
    """Compare, and print the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("tables", type=Path)
    known = parser.parse_args()
    runs = pd.read_csv(known.tables / "runs.csv").dropna(subset=["test AUC"])
    table = pd.read_csv(known.tables / "table.csv").set_index("model")
    first, largest, areas = None, 0.0, {}
    for _, run in runs.iterrows():
        predictions = pd.read_csv(known.experiment / run["folder"] / "test_predictions.csv", float_precision="round_trip")
        rows = predictions[["row_id", "label"]]
        first = rows if first is None else first
        if not rows.equals(first):
            raise SystemExit(f"{run['folder']} has scored other rows than {runs['folder'].iloc[0]}")
        labels, scores = predictions["label"], predictions["score"]
        found = [roc_auc_score(labels, scores), log_loss(labels, scores), accuracy_score(labels, scores > 0.5)]
        largest = max(largest, *np.abs(np.array(found) - run[["test AUC", "LogLoss", "accuracy"]].to_numpy(dtype=float)))
        areas.setdefault(run["model"], []).append(found[0])
    means = max(abs(np.mean(values) - table.loc[model, "test AUC"]) for model, values in areas.items())
    print(f"{len(runs)} runs, {len(first)} rows each, equal in rows and labels; largest difference {max(largest, means):.1e}")
    if max(largest, means) > 1e-6:
        raise SystemExit("expected differences below 1e-6")


if __name__ == "__main__":
    main()
