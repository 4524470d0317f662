"""Does an LLM read the history that it is shown, and what of it? The test rows of a finished run once more, with other histories.

Nothing is tuned. The behaviours that a prompt shows are left out, replaced by those of another user's prompt, put into another
order, or get each other's ratings; all else stays as it is. An LLM that reads the ratings of what it is shown scores the rows worse
without them, and one that reads the order feels it when that changes. Soft tokens and gates that are made of the row itself (of the
numbers of its history, say) stay in all of that, and are replaced by those of another user's row in one line more.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_rella.errors import RellaError
from recbole_rella.files import AnyPath, replacing, write_text
from recbole_rella.metrics import row_metrics
from recbole_rella.pictures import new_figure, save_figure
from recbole_rella.run_folder import read_run
from recbole_rella.serving.scorer import Scorer
from recbole_rella.significance import paired_bootstrap
from recbole_rella.tables import markdown

# Rows that are looked at, drawn once with a fixed seed: the standard error of an AUC is about .01 then.
ROWS = 2000
SHUFFLES = 5
SHOWN = "as the run shows it"


class DiagnosisError(RellaError):
    """A run has nothing that a diagnosis could look at."""


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """How the test rows are scored with other histories.

    Attributes:
        run (str): name of its folder.
        rows (int): how many rows.
        table (pandas.DataFrame): history (str), AUC, LogLoss, UAUC (float, means over shuffles), p (float, that its AUC differs
            from the first by chance: paired bootstrap), moved (float, mean |P(yes) - P(yes) as the run shows it|); the first row
            is the run's own.
        scores (dict): history -> float32 [draws, rows].
    """

    run: str
    rows: int
    table: pd.DataFrame
    scores: dict

    def text(self) -> str:
        """The diagnosis as a page of Markdown."""
        shown = self.table.assign(
            **{name: self.table[name].map("{:.4f}".format) for name in ("AUC", "LogLoss", "UAUC", "moved")},
            p=["-", *self.table["p"][1:].map(lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}")],
        ).replace("nan", "-")
        return (
            f"# What {self.run} reads of a history\n\n{self.rows} test rows, the same for all; nothing is tuned. "
            "moved: mean change of P(yes). p: that the AUC differs from the first by chance (paired bootstrap). "
            f"Shuffled: mean of {SHUFFLES} orders.\n\n{markdown(shown)}\n"
        )


def diagnose(scorer: Scorer, run_folder: AnyPath) -> Diagnosis:
    """Score test rows of a finished run with other histories.

    Args:
        scorer (Scorer): of the run.
        run_folder (str or pathlib.Path): of it; its predictions name the rows.

    Returns:
        Diagnosis: of ROWS of them, or of all where there are fewer.

    Raises:
        DiagnosisError: it has none; no label of both kinds is among them, or only one user.
    """
    prompter, run = scorer.dataset.assembly.prompter, read_run(run_folder)
    predicted = run.predictions()
    if predicted is None:
        raise DiagnosisError(
            f"diagnose: expected a run that predicted its test rows, found none of their predictions in {run.folder}."
        )
    random = np.random.default_rng(0)
    if len(predicted) > ROWS:
        predicted = predicted.iloc[np.sort(random.choice(len(predicted), ROWS, replace=False))]
    rows, labels = predicted["row_id"].to_numpy(), predicted["label"].to_numpy()
    targets, users = prompter.rows.item[rows], prompter.rows.user[rows]
    if len(np.unique(labels)) < 2 or len(np.unique(users)) < 2:
        raise DiagnosisError(
            "diagnose: expected test rows of both labels and of several users, found "
            f"{len(rows)} rows of {len(np.unique(users))} users."
        )
    shown = prompter.shown(rows, targets, np.full(len(rows), scorer.kind))
    others = _of_other_users(users, random)
    vectors = prompter.soft_vectors(rows, targets)

    def score(histories, numbers=vectors):
        ids = [prompter.fitted(int(row), int(target), history)[0] for row, target, history in zip(rows, targets, histories)]
        return scorer.score_ids(ids, numbers)

    scores = {
        SHOWN: [score(shown)],
        "in the order of time": [score([np.sort(history) for history in shown])],
        "latest first": [score([np.sort(history)[::-1] for history in shown])],
        "shuffled": [score([random.permutation(history) for history in shown]) for _ in range(SHUFFLES)],
        "ratings exchanged among them": [_with_exchanged(prompter, rows, targets, shown, random, scorer, vectors)],
        "of another user": [score([shown[place] for place in others])],
        "none": [score([history[:0] for history in shown])],
    }
    if vectors is not None:
        scores["soft tokens and gates of another user"] = [score(shown, numbers=vectors[others])]
    return Diagnosis(run.folder.name, len(rows), _table(scores, labels, users), {name: np.array(s) for name, s in scores.items()})


def _of_other_users(users, random):
    """For each row the place of one of another user, int [n]."""
    places = random.permutation(len(users))
    for place in np.flatnonzero(users[places] == users):
        places[place] = random.choice(np.flatnonzero(users != users[place]))
    return places


def _with_exchanged(prompter, rows, targets, shown, random, scorer, vectors):
    """Scores of prompts whose behaviours tell each other's ratings and labels."""
    columns = {name: column.copy() for name in ("rating", "label") if (column := getattr(prompter.rows, name)) is not None}
    changed = replace(prompter, rows=replace(prompter.rows, **columns), stored={})
    ids = []
    for row, target, history in zip(rows, targets, shown):
        exchanged = random.permutation(history)
        for name, column in columns.items():
            column[history] = getattr(prompter.rows, name)[exchanged]
        ids.append(changed.fitted(int(row), int(target), history)[0])
        for name, column in columns.items():
            column[history] = getattr(prompter.rows, name)[history]
    return scorer.score_ids(ids, vectors)


def _table(scores, labels, users):
    p_values, _ = paired_bootstrap(labels, {name: np.array(of_one) for name, of_one in scores.items()})
    (own,) = scores[SHOWN]
    lines = []
    for (name, of_one), p in zip(scores.items(), p_values[0]):
        metrics = pd.DataFrame([row_metrics(labels, one, users) for one in of_one]).mean()
        moved = np.mean([np.abs(one - own).mean() for one in of_one])
        lines.append([name, metrics["auc"], metrics["logloss"], metrics["uauc"], p, moved])
    return pd.DataFrame(lines, columns=["history", "AUC", "LogLoss", "UAUC", "p", "moved"])


def write_diagnosis(diagnosis: Diagnosis, folder: AnyPath) -> Path:
    """Write history.md, history.csv and history.png.

    Args:
        diagnosis (Diagnosis): what to write.
        folder (str or pathlib.Path): where to.

    Returns:
        pathlib.Path: of the Markdown page.
    """
    path, table = Path(folder) / "history.md", diagnosis.table
    write_text(path, diagnosis.text() + "\n![AUC and change of P(yes)](history.png)\n")
    with replacing(path.with_suffix(".csv")) as temporary:
        table.to_csv(temporary, index=False)
    figure = new_figure(9, 1.2 + 0.4 * len(table))
    for axes, column in zip(figure.subplots(1, 2, sharey=True), ("AUC", "moved")):
        axes.barh(range(len(table)), table[column][::-1], color="tab:blue")
        axes.set_yticks(range(len(table)), table["history"][::-1], fontsize=8)
        axes.set_xlabel({"AUC": "test AUC", "moved": "mean change of P(yes)"}[column])
        axes.grid(axis="x", alpha=0.3)
        if column == "AUC":
            axes.axvline(table["AUC"][0], color="black", linewidth=0.8)
            axes.set_xlim(left=min(0.5, table["AUC"].min() - 0.02))
    save_figure(figure, path.with_suffix(".png"))
    return path
