"""What the model saw of a row, and what each shown behaviour did to the score."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_rella.files import AnyPath, write_json, write_text
from recbole_rella.pictures import new_figure, save_figure
from recbole_rella.prompt.template import Rating
from recbole_rella.retrieval.subr import similarity
from recbole_rella.rows.fields import KINDS, RECENT
from recbole_rella.rows.numbers import as_in_file
from recbole_rella.serving.catalogue import RequestError
from recbole_rella.serving.scorer import Scorer
from recbole_rella.tables import fenced, markdown


@dataclass(frozen=True)
class Explanation:
    """One row, its prompt and its behaviours.

    Attributes:
        name (str): row-<row_id>, or <user>-<item> for a pair that no row holds.
        user, item (str): the data set's own ids.
        label (int or None): of the row.
        history (str): which behaviours the prompt shows: recent, retrieved or both.
        score (float): P(yes) of the prompt.
        score_with_recent, score_with_retrieved, score_with_both (float or None): P(yes) with each kind; None for the last two
            where nothing is retrieved.
        score_without_history (float): P(yes) of the prompt that shows none.
        prompt (str): the text, as the LLM reads it.
        behaviours (list of dict): those of all kinds, oldest first: retrieved, recent, both (bool, whether a prompt of that kind
            shows it), item (text), rating, label, date, similarity, and moved (float, score minus that of the prompt without it;
            None where not shown).
    """

    name: str
    user: str
    item: str
    label: int | None
    history: str
    score: float
    score_with_recent: float
    score_with_retrieved: float | None
    score_with_both: float | None
    score_without_history: float
    prompt: str
    behaviours: list

    def text(self) -> str:
        """The explanation as a page of Markdown."""
        table = pd.DataFrame(self.behaviours, columns=_COLUMNS)
        shown = table.assign(
            shown=[" and ".join(kind for kind in ("retrieved", "recent") if b[kind]) for b in self.behaviours],
            label=["-" if pd.isna(v) else str(int(v)) for v in table["label"]],
            similarity=["-" if pd.isna(v) else f"{v:.3f}" for v in table["similarity"]],
            moved=["-" if pd.isna(v) else f"{v:+.4f}" for v in table["moved"]],
            rating=["-" if pd.isna(v) else str(Rating(v)) for v in table["rating"]],
        )
        columns = ["shown", "item", "rating", "label", "date", "similarity", "moved"]
        retrieved, both = ("-" if s is None else f"{s:.4f}" for s in (self.score_with_retrieved, self.score_with_both))
        label = "no row" if self.label is None else str(self.label)
        return (
            f"# {self.name}: user {self.user}, item {self.item}\n\n"
            f"P(yes) {self.score:.4f} with {self.history} behaviours, label {label}. With recent ones "
            f"{self.score_with_recent:.4f}, with retrieved ones {retrieved}, with both {both}, with none "
            f"{self.score_without_history:.4f}.\n\n"
            "`moved` is how much a shown behaviour moved the score: P(yes) minus P(yes) of the prompt without it.\n\n"
            f"{markdown(shown[columns])}\n\n{fenced(self.prompt)}\n"
        )


_COLUMNS = ["retrieved", "recent", "both", "item", "rating", "label", "date", "similarity", "moved"]


def find_case(scorer, case):
    """The prompter, row and target of a case.

    Args:
        scorer (Scorer): of a run.
        case (str or int): a row_id, or `user,item` by the data set's own ids; the last row of the pair if there is one, else
            the item is asked for as if it came after all of the user's rows.

    Returns:
        tuple: prompter, row (int), target (int), label (int or None), name (str), user (str), item (str).

    Raises:
        RequestError: there is no such row, user or item.
    """
    dataset = scorer.dataset
    rows, tokens = dataset.rows, dataset.field2id_token
    users, items = tokens[dataset.uid_field], tokens[dataset.iid_field]
    user, comma, item = str(case).strip("()[] ").partition(",")
    user, item = user.strip(), item.strip()
    if comma:
        pair = np.flatnonzero((users[rows.user] == user) & (items[rows.item] == item))
        if not len(pair):
            asked = scorer.ask([{"user_id": user, "candidates": [item]}])
            return asked.prompter, int(asked.rows[0]), int(asked.targets[0]), None, f"{user}-{item}", user, item
        row = int(pair[-1])
    elif user.isdigit() and int(user) < len(rows):
        row = int(user)
    else:
        raise RequestError(f"explain: expected a row_id from 0 to {len(rows) - 1}, or user,item, found {case!r}.")
    label = None if rows.label is None else int(rows.label[row])
    return (
        dataset.assembly.prompter,
        row,
        int(rows.item[row]),
        label,
        f"row-{row}",
        str(users[rows.user[row]]),
        str(items[rows.item[row]]),
    )


def explain(scorer: Scorer, case: str | int) -> Explanation:
    """Explain the score of a row, or of a user and an item.

    Args:
        scorer (Scorer): of a run.
        case (str or int): see `find_case`.

    Returns:
        Explanation: of it.

    Raises:
        RequestError: there is no such row, user or item.
    """
    prompter, row, target, label, name, user, item = find_case(scorer, case)
    kind = scorer.config["eval_history"]
    one = np.array([row]), np.array([target])
    known = [name for name, code in KINDS.items() if code == RECENT or prompter.retriever is not None]
    shown = {name: prompter.shown(*one, np.array([KINDS[name]]))[0] for name in known}
    # Over the token budget the oldest shown behaviours are dropped: they move nothing, and none of them takes another's place.
    _, kept = prompter.fitted(row, target, shown[kind])
    # The prompt itself, those of each kind, of none, and without each of the shown behaviours: one batch.
    variants = [kept, *shown.values(), kept[:0], *(np.delete(kept, place) for place in range(len(kept)))]
    prompts = [prompter.fitted(row, target, variant) for variant in variants]
    vectors = prompter.soft_vectors(np.full(len(prompts), row), np.full(len(prompts), target))
    score, *scores = scorer.score_ids([ids for ids, _ in prompts], vectors).astype(float)
    with_kind, (none, *without) = dict(zip(shown, scores)), scores[len(shown) :]
    moved = {int(b): score - s for b, s in zip(kept, without)}
    return Explanation(
        name=name,
        user=user,
        item=item,
        label=label,
        history=kind,
        score=score,
        score_with_recent=with_kind["recent"],
        score_with_retrieved=with_kind.get("retrieved"),
        score_with_both=with_kind.get("both"),
        score_without_history=none,
        prompt=prompter.tokenizer.framed(prompter.text(row, target, kept)),
        behaviours=_behaviours(scorer, prompter, target, shown, moved),
    )


def _behaviours(scorer, prompter, target, shown, moved):
    rows = prompter.rows
    places = np.unique(np.concatenate(list(shown.values()))).astype(int)
    retriever, metric = prompter.retriever, scorer.config["retrieval_metric"]
    closeness = [None] * len(places)
    if retriever is not None:
        closeness = similarity(retriever.vectors[rows.item[places]], retriever.vectors[target], metric).tolist()
    return [
        {
            **{kind: bool(place in shown.get(kind, ())) for kind in ("retrieved", "recent", "both")},
            "item": prompter.template.item(int(rows.item[place]))["text"],
            "rating": None if rows.rating is None else as_in_file(rows.rating[place]),
            "label": None if rows.label is None else int(rows.label[place]),
            "date": _date(int(rows.time[place])),
            "similarity": close,
            "moved": moved.get(int(place)),
        }
        for place, close in zip(places, closeness)
    ]


def _date(time):
    """A day where the time can be seconds since 1970, else the number."""
    if 10**8 <= time < 10**11:
        return datetime.fromtimestamp(time, tz=timezone.utc).strftime("%Y-%m-%d")
    return str(time)


def _line(behaviour):
    rating = "" if behaviour["rating"] is None else f", {Rating(behaviour['rating'])}"
    return f"{behaviour['item'][:60]}{rating}  {behaviour['date']}"


def write_explanation(explanation: Explanation, folder: AnyPath) -> Path:
    """Write <name>.md, .json and .png.

    Args:
        explanation (Explanation): what to write.
        folder (str or pathlib.Path): where to.

    Returns:
        pathlib.Path: of the Markdown page.
    """
    path = Path(folder) / f"{explanation.name.replace('/', '-')}.md"
    write_text(path, explanation.text() + f"\n![What moved the score]({path.stem}.png)\n")
    write_json(path.with_suffix(".json"), json.loads(json.dumps(asdict(explanation))))
    shown = [behaviour for behaviour in explanation.behaviours if behaviour["moved"] is not None]
    figure = new_figure(8, 1.2 + 0.3 * max(1, len(shown)))
    axes = figure.add_subplot()
    names = [_line(behaviour) for behaviour in shown][::-1]
    moves = [behaviour["moved"] for behaviour in shown][::-1]
    axes.barh(range(len(shown)), moves, color=["tab:green" if move > 0 else "tab:red" for move in moves])
    axes.set_yticks(range(len(shown)), names, fontsize=7)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"P(yes) moved by; {explanation.score:.3f} in all ({explanation.history}), label {explanation.label}")
    axes.set_title(f"user {explanation.user}, item {explanation.item}", fontsize=9)
    save_figure(figure, path.with_suffix(".png"))
    return path
