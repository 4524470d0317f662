"""The table of a side-by-side run: CSV, Markdown, LaTeX and a chart."""

import numpy as np
import pandas as pd

from recbole_rella.files import replacing
from recbole_rella.pictures import new_figure, save_figure
from recbole_rella.report.comparison_page import write_page_below
from recbole_rella.report.page import Section
from recbole_rella.run_folder import REPORT, read_run
from recbole_rella.significance import paired_bootstrap
from recbole_rella.tables import latex, markdown

# Column -> whether larger is better, for those where a best one is marked.
_BEST = {"valid AUC": True, "test AUC": True, "LogLoss": False, "accuracy": True, "UAUC": True}
_FIGURES = [*_BEST, "seconds to train", "ms a row"]
# Tables show four decimals of these, and one or three of the costs; the CSV file has all.
_DECIMALS = {**dict.fromkeys(_BEST, 4), "seconds to train": 1, "ms a row": 3, "best epoch": 1}


def _figures(metrics):
    """The columns of one run; a metric that could not be computed (null in its file) is nan."""
    exact = {name: float("nan") if value is None else value for name, value in metrics["test_exact"].items()}
    valid, epoch = (metrics["valid"] or {}).get("auc"), metrics["best_epoch"]
    return {
        "seed": metrics["seed"],
        "reads": ", ".join(metrics["reads"]),
        "shots": metrics["shots"],
        "trainable": metrics["parameters"]["trainable"],
        "best epoch": None if epoch is None else epoch + 1,
        "valid AUC": float("nan") if valid is None else valid,
        "test AUC": exact["auc"],
        "LogLoss": exact["logloss"],
        "accuracy": exact["accuracy"],
        "UAUC": exact["uauc"],
        "users without UAUC": exact["users_left_out"],
        "seconds to train": metrics["seconds"]["training"],
        "ms a row": metrics["milliseconds_a_row"],
    }


def runs_table(outcomes, labels):
    """One row a run.

    Args:
        outcomes (list of Outcome): runs, done or failed.
        labels (list of str): what each is called.

    Returns:
        pandas.DataFrame: model, note, what it reads, the figures (nan where a run failed), folder.
    """
    rows = []
    for outcome, label in zip(outcomes, labels):
        figures = {"seed": outcome.run.seed} if outcome.metrics is None else _figures(outcome.metrics)
        rows.append({"model": label, "note": outcome.failure or _cap(outcome), **figures, "folder": outcome.folder.name})
    columns = ["model", "note", "seed", "reads", "shots", "trainable", "best epoch", *_FIGURES, "users without UAUC", "folder"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _cap(outcome):
    """What a reader must know of a run that was cut short: epochs given, and the last of them the best."""
    epochs, best = outcome.run.settings.get("epochs"), outcome.metrics["best_epoch"]
    if epochs == 0:
        return "no training"
    return "" if epochs is None else f"epochs capped at {epochs}{', the last was best' if best == epochs - 1 else ''}"


def scores_of(runs, outcomes):
    """The scores of the test rows, dict: model -> list of float [n], one a run that was done.

    Args:
        runs (pandas.DataFrame): of `runs_table`.
        outcomes (list of Outcome): the same runs.
    """
    found = {}
    for outcome, label in zip(outcomes, runs["model"]):
        if outcome.metrics is not None:
            found.setdefault(label, []).append(read_run(outcome.folder).predictions()["score"].to_numpy())
    return found


def models_table(runs, scores, labels_of_rows):
    """One row a model: means and standard deviations over seeds, and how likely its distance to the best is chance.

    Args:
        runs (pandas.DataFrame): of `runs_table`.
        scores (dict): of `scores_of`.
        labels_of_rows (numpy.ndarray): label of each test row, 0 or 1.

    Returns:
        tuple: pandas.DataFrame (model, seeds, reads, means under the columns' names, standard deviations under `<column> std`,
        low and high end of the AUC's 95% interval, p, note); pandas.DataFrame of the p-values of all pairs.
    """
    rows = []
    for label, group in runs.groupby("model", sort=False):
        done = group.dropna(subset=["LogLoss"])  # one label has no AUC
        row = {"model": label, "seeds": len(done), "reads": "; ".join(dict.fromkeys(done["reads"]))}
        for column in ("shots", "trainable", "best epoch", *_FIGURES, "users without UAUC"):
            row[column] = done[column].mean()
            if column in _FIGURES:
                row[f"{column} std"] = done[column].std(ddof=1) if len(done) > 1 else float("nan")
        notes = dict.fromkeys(note for note in group["note"] if note)
        row["note"] = "; ".join(note for note in notes if not any(note != other and note in other for other in notes))
        rows.append(row)
    table = pd.DataFrame(rows).set_index("model")
    pairs = pd.DataFrame(np.ones((len(scores), len(scores))), index=list(scores), columns=list(scores))
    if table["test AUC"].notna().any():
        values, intervals = paired_bootstrap(labels_of_rows, {label: np.array(s) for label, s in scores.items()})
        pairs[:] = values
        table.loc[list(scores), "test AUC low"], table.loc[list(scores), "test AUC high"] = intervals.T
        best = table["test AUC"].idxmax()
        table.loc[list(scores), "p"] = pairs[best]
    return table.reset_index(), pairs


def first_scores(scores, table):
    """The scores of the first seed of each model, dict: model -> float [n], best model first.

    Args:
        scores (dict), table (pandas.DataFrame): of `scores_of` and `models_table`.
    """
    ranked = table.sort_values("test AUC", ascending=False, kind="stable")["model"]
    return {label: scores[label][0] for label in ranked if label in scores}


def _cell(row, column):
    value, deviation = row[column], row.get(f"{column} std", float("nan"))
    if pd.isna(value):
        return "-"
    digits = _DECIMALS.get(column, 0)
    spread = f" ± {deviation:.{digits}f}" if not pd.isna(deviation) else ""
    return f"{value:.{digits}f}{spread}"


def _readable(table):
    """The table as text cells, the best of each column within asterisks.

    Returns:
        pandas.DataFrame: of str.
    """
    columns = ["shots", "trainable", "best epoch", *_FIGURES]
    cells = pd.DataFrame({column: [_cell(row, column) for _, row in table.iterrows()] for column in columns})
    for column, larger in _BEST.items():
        if table[column].notna().any():
            best = table[column].idxmax() if larger else table[column].idxmin()
            cells.loc[best, column] = f"**{cells.loc[best, column]}**"
    best = table["test AUC"].idxmax() if table["test AUC"].notna().any() else None
    chance = [
        "-" if pd.isna(p) else "best" if place == best else "< 0.001" if p < 0.001 else f"{p:.3f}"
        for place, p in enumerate(table.get("p", [float("nan")] * len(table)))
    ]
    cells.insert(0, "model", table["model"])
    cells.insert(1, "reads", table["reads"].replace("", "-"))
    return cells.assign(p=chance, note=table["note"])


def _unmarked(cells):
    """The readable table without its asterisks, and which of its cells are bold in their place."""
    bold, text = pd.DataFrame(False, index=cells.index, columns=cells.columns), cells.copy()
    for column in _BEST:
        bold[column], text[column] = cells[column].str.startswith("**"), cells[column].str.strip("*")
    return text, bold


def _chart(table):
    """Test AUC of each model with its 95% interval.

    Args:
        table (pandas.DataFrame): of `models_table`.

    Returns:
        matplotlib.figure.Figure or None: None where no model has an AUC.
    """
    if not table["test AUC"].notna().any():
        return None
    shown = table.dropna(subset=["test AUC"]).iloc[::-1]
    figure = new_figure(7, 0.9 + 0.42 * len(shown))
    axes = figure.add_subplot()
    reach = [shown["test AUC"] - shown["test AUC low"], shown["test AUC high"] - shown["test AUC"]]
    places = np.arange(len(shown))
    axes.errorbar(shown["test AUC"], places, xerr=np.maximum(np.array(reach, dtype=float), 0), fmt="o", capsize=3)
    axes.set_yticks(places, shown["model"])
    for area, place in zip(shown["test AUC"], places):
        axes.annotate(f"{area:.4f}", (area, place), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=8)
    axes.set_xlabel("test AUC, 95% interval (bootstrap over test rows)")
    axes.set_ylim(-0.6, len(shown) - 0.3)  # the number stands above its point
    axes.grid(axis="x", alpha=0.3)
    return figure


def write_table(folder, runs, table, pairs, heading, sections=()):
    """Write runs.csv, table.csv, table.md, table.tex, table.png, p_values.csv and report.html.

    Args:
        folder (pathlib.Path): where to.
        runs, table, pairs (pandas.DataFrame): of `runs_table` and `models_table`.
        heading (str): text above the Markdown table.
        sections (iterable of Section): what the page has below the table.

    Returns:
        str: the Markdown page.
    """
    cells = _readable(table)
    text, bold = _unmarked(cells)
    page = f"{heading}\n\n{markdown(cells)}\n"
    writers = {
        "runs.csv": lambda path: runs.to_csv(path, index=False),
        "table.csv": lambda path: table.to_csv(path, index=False),
        "p_values.csv": lambda path: pairs.to_csv(path, index_label="model"),
        "table.md": lambda path: path.write_text(page + "\n![Test AUC](table.png)\n", encoding="utf-8"),
        "table.tex": lambda path: path.write_text(latex(text, bold), encoding="utf-8"),
    }
    for name, write in writers.items():
        with replacing(folder / name) as temporary:
            write(temporary)
    if (figure := _chart(table)) is not None:
        save_figure(figure, folder / "table.png")
    write_page_below(heading, folder / REPORT, [Section("Models", figure=figure, table=text, bold=bold), *sections])
    return page
