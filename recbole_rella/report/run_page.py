"""report.html of one run: how well it scores, for whom, and where it is most wrong."""

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from recbole_rella.metrics import TITLES, areas_of_users
from recbole_rella.report.page import Section, write_page
from recbole_rella.report.sections import curves, sections_by_part
from recbole_rella.rows.fields import KINDS
from recbole_rella.rows.item_statistics import popularity
from recbole_rella.run_folder import REPORT, read_run
from recbole_rella.significance import paired_bootstrap

# Where --diagnose writes, in the folder of the run.
DIAGNOSIS = "diagnosis"
_RESAMPLES = 1000
# Rows with the largest distance between label and score, each with its prompt.
_MOST_WRONG = 10


def write_run_page(folder, dataset):
    """Write report.html into the folder of a finished run.

    Args:
        folder (str or pathlib.Path): of the run, with its metrics and predictions.
        dataset (KeepsRows): of the run, built; that of ReLLa has prompts.

    Returns:
        pathlib.Path or None: of the page; None where the test rows have one label alone, of which there is little to tell.
    """
    run = read_run(folder)
    predicted, metrics = run.predictions(), run.metrics
    rows, row_id = dataset.rows, predicted["row_id"].to_numpy()
    labels, scores = predicted["label"].to_numpy(), {run.model: predicted["score"].to_numpy()}
    if len(np.unique(labels)) < 2:
        return None
    length = dataset.histories.past_lengths()[row_id]
    sections = [
        Section("Metrics", _METRICS, table=_metrics(predicted, metrics)),
        *_diagnosis(run),
        *curves(labels, scores),
        *sections_by_part(labels, scores, length, popularity(rows.item, dataset.pool, row_id)),
        _most_wrong(predicted, dataset),
    ]
    counts = metrics["rows"]
    lead = (
        f"Seed {metrics['seed']}; {metrics['shots']} training, {counts['valid']} validation and {counts['test']} test rows. "
        f"It reads: {', '.join(metrics['reads'])}. {metrics['seconds']['total']:.0f} seconds on {metrics['device']}."
    )
    path = run.folder / REPORT
    write_page(path, f"{run.model} on {metrics['dataset']}", lead, sections)
    return path


_METRICS = (
    "Test rows. Intervals (95%) are bootstraps over rows, that of UAUC over users; they say nothing of other seeds. "
    "What stands beside the model learned from the same rows and was told the same past in numbers."
)


def _interval(values, statistic):
    """The 95% interval of a statistic of values that are drawn together: (low, high)."""
    found = bootstrap(
        values, statistic, paired=True, vectorized=True, n_resamples=_RESAMPLES, method="percentile", batch=50, random_state=0
    )
    return found.confidence_interval.low, found.confidence_interval.high


def _mean(values, axis=-1):
    return np.mean(values, axis=axis)


def _weighted_mean(areas, weights, axis=-1):
    return np.sum(areas * weights, axis=axis) / np.sum(weights, axis=axis)


def _metrics(predicted, metrics):
    """Each metric with its interval, and what stands beside the run."""
    labels, scores = predicted["label"].to_numpy(), predicted["score"].to_numpy(dtype=np.float64)
    areas, of_user, _ = areas_of_users(labels, scores, predicted["user_id"].to_numpy())
    likely = np.clip(np.where(labels > 0.5, scores, 1 - scores), np.finfo(np.float64).eps, 1)
    _, ((low, high),) = paired_bootstrap(labels, {"": scores[None]}, _RESAMPLES)
    intervals = {
        "auc": (low, high),
        "logloss": _interval((-np.log(likely),), _mean),
        "accuracy": _interval((((scores > 0.5) == (labels > 0.5)).astype(float),), _mean),
        "uauc": _interval((areas, of_user), _weighted_mean) if len(areas) > 1 else (float("nan"), float("nan")),
    }
    lines = [
        {"": metrics["model"], **_texts(metrics["test_exact"])},
        {"": "95% interval", **{title: "{:.4f} to {:.4f}".format(*intervals[name]) for name, title in TITLES.items()}},
        *({"": name, **_texts(measured)} for name, measured in metrics.get("beside", {}).items()),
    ]
    return pd.DataFrame(lines).replace("nan to nan", "-")


def _texts(measured):
    """Metrics by their titles; one that could not be computed is null in its file."""
    return {title: "-" if measured[name] is None else f"{measured[name]:.4f}" for name, title in TITLES.items()}


def _diagnosis(run):
    """What --diagnose=history found, where it was asked."""
    path = run.folder / DIAGNOSIS / "history.csv"
    if not path.is_file():
        return []
    table = pd.read_csv(path).map(lambda cell: f"{cell:.4f}" if isinstance(cell, float) else cell).replace("nan", "-")
    text = "The same rows with other histories, nothing tuned. moved: mean change of P(yes). p: that the AUC differs by chance."
    return [Section("What it reads of a history", text, table=table)]


def _most_wrong(predicted, dataset):
    """The rows with the largest distance between label and score, with their prompts where there are any."""
    distance = (predicted["label"] - predicted["score"]).abs()
    worst = predicted.iloc[np.argsort(-distance.to_numpy(), kind="stable")[:_MOST_WRONG]]
    assembly = getattr(dataset, "assembly", None)
    table = worst[["row_id", "user_id", "item_id", "label", "score"]].assign(score=worst["score"].map("{:.4f}".format))
    text = "The largest distances between label and score."
    if assembly is None:
        return Section("Most wrong rows", text, table=table)
    prompter, rows = assembly.prompter, worst["row_id"].to_numpy()
    targets = prompter.rows.item[rows]
    shown = prompter.shown(rows, targets, np.full(len(rows), KINDS[dataset.config["eval_history"]]))
    lines = [
        f"row {case.row_id}: user {case.user_id}, item {case.item_id}, label {case.label}, P(yes) {case.score:.4f}"
        for case in worst.itertuples()
    ]
    prompts = [
        prompter.tokenizer.framed(prompter.text(row, target, prompter.fitted(row, target, of_row)[1]))
        for row, target, of_row in zip(rows, targets, shown)
    ]
    return Section("Most wrong rows", f"{text} Each unfolds to its prompt.", unfolded=list(zip(lines, prompts)))
