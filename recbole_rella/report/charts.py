"""Charts of scored rows: ROC, calibration, and AUC in parts of them. Each takes models by name, so that one serves all pages."""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score, roc_curve

from recbole_rella.pictures import new_figure
from recbole_rella.significance import paired_bootstrap

# Rows of each label in a part, below which an AUC says little.
_FEWEST = 20
# Of the bootstrap behind an interval.
_RESAMPLES = 500


def _square(xlabel, ylabel):
    """A figure of two shares from 0 to 1, with the line on which they are equal, and its axes."""
    figure = new_figure(5.5, 5)
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.plot([0, 1], [0, 1], color="tab:gray", linewidth=0.8)
    return figure, axes


def _legend(axes):
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(fontsize=8)


def roc(labels, scores):
    """The ROC curve.

    Args:
        labels (numpy.ndarray): 0 or 1, of both, [n].
        scores (dict): model -> float [n].

    Returns:
        matplotlib.figure.Figure: a line a model.
    """
    figure, axes = _square("rows of label 0 above the threshold", "rows of label 1 above the threshold")
    for name, one in scores.items():
        wrong, right, _ = roc_curve(labels, one)
        places = np.unique(np.linspace(0, len(wrong) - 1, 400).astype(int))  # a page is no place for every row
        axes.plot(wrong[places], right[places], label=name)
    _legend(axes)
    return figure


def calibration(labels, scores, bins=10):
    """How often rows of a score have label 1, in parts of as many rows each.

    Args:
        labels (numpy.ndarray), scores (dict): as for `roc`.
        bins (int): number of parts.

    Returns:
        matplotlib.figure.Figure: a line a model.
    """
    figure, axes = _square("mean score", "share of rows with label 1")
    for name, one in scores.items():
        parts = [part for part in np.array_split(np.argsort(one, kind="stable"), bins) if len(part)]
        axes.plot([one[part].mean() for part in parts], [labels[part].mean() for part in parts], marker="o", label=name)
    _legend(axes)
    return figure


def parts_of(values, parts=5):
    """Parts of rows by a number, of about as many rows each.

    Args:
        values (numpy.ndarray): int [n].
        parts (int): at most so many.

    Returns:
        dict: range (str, such as 5 to 12) -> places, int [rows of the part].
    """
    ends = np.unique(np.quantile(values, np.arange(1, parts + 1) / parts, method="higher"))
    of = np.searchsorted(ends, values)
    found = [np.flatnonzero(of == part) for part in range(len(ends))]
    return {f"{values[rows].min()} to {values[rows].max()}": rows for rows in found}


def by_part(labels, scores, values):
    """AUC with its 95% interval (bootstrap over rows), in parts of the rows.

    Args:
        labels (numpy.ndarray), scores (dict): as for `roc`.
        values (numpy.ndarray): int [n], what parts are made by.

    Returns:
        tuple: matplotlib.figure.Figure; pandas.DataFrame of text: part, rows, then the AUC of each model. Parts with too few rows
        of a label have none.
    """
    places, lines, drawn = parts_of(values), [], {name: [] for name in scores}
    for place, (part, rows) in enumerate(places.items()):
        line = {"part": part, "rows": len(rows)}
        if np.bincount(labels[rows], minlength=2).min() >= _FEWEST:
            names = list(scores)
            _, intervals = paired_bootstrap(labels[rows], {name: scores[name][rows][None] for name in names}, _RESAMPLES)
            for name, (low, high) in zip(names, intervals):
                area = roc_auc_score(labels[rows], scores[name][rows])
                drawn[name].append((place, area, low, high))
                line[name] = f"{area:.4f} ({low:.4f} to {high:.4f})"
        lines.append(line)
    figure = new_figure(7, 3.6)
    axes = figure.add_subplot(ylabel="AUC")
    for shift, (name, points) in zip(np.linspace(-0.15, 0.15, len(drawn)) if len(drawn) > 1 else [0], drawn.items()):
        if points:
            place, area, low, high = np.array(points).T
            reach = np.maximum([area - low, high - area], 0)
            axes.errorbar(place + shift, area, yerr=reach, fmt="o", capsize=3, label=name)
    axes.set_xticks(range(len(places)), list(places))
    axes.grid(axis="y", alpha=0.3)
    _legend(axes)
    return figure, pd.DataFrame(lines, columns=["part", "rows", *scores]).fillna("-")
