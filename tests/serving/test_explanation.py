"""What the model saw of a row: the prompt, the behaviours, and how much each moved the score."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from recbole_rella import run_recbole_rella
from recbole_rella.rows.fields import BOTH
from recbole_rella.serving.explanation import explain, write_explanation
from recbole_rella.serving.scorer import RequestError, Scorer


@pytest.fixture
def run(trained_run):
    return Scorer.load(trained_run), pd.read_csv(trained_run / "test_predictions.csv", dtype=str)


def test_a_row(run):
    scorer, predictions = run
    row = predictions.iloc[7]
    found = explain(scorer, row["row_id"])
    assert found.score == pytest.approx(float(row["score"]), abs=1e-5) == found.score_with_retrieved
    assert (found.label, found.user, found.item) == (int(row["label"]), row["user_id"], row["item_id"])
    assert found.history == "retrieved" and found.prompt.endswith(":")
    prompter, place = scorer.dataset.assembly.prompter, int(row["row_id"])
    target = prompter.rows.item[place]
    one = np.array([place]), np.array([target])
    shown = prompter.shown(*one, np.array([True]))[0]
    recent = prompter.shown(*one, np.array([False]))[0]
    assert prompter.text(place, target, shown) == found.prompt
    assert sum(b["retrieved"] for b in found.behaviours) == sum(b["recent"] for b in found.behaviours) == 4
    assert len(found.behaviours) == len(set(shown) | set(recent))
    both = prompter.shown(*one, np.array([BOTH]))[0]
    assert [b["both"] for b in found.behaviours] == np.isin(np.unique([*shown, *recent]), both).tolist()
    with_both = scorer.score_ids([prompter.tokenizer.ids(prompter.text(place, target, both))])[0]
    assert found.score_with_both == pytest.approx(with_both, abs=1e-5) != found.score
    # Leave one out, by prompts made by hand.
    moved = [b["moved"] for b in found.behaviours if b["moved"] is not None]
    for behaviour, move in zip(np.sort(shown), moved):
        rest = [b for b in shown if b != behaviour]
        without = scorer.score_ids([prompter.tokenizer.ids(prompter.text(place, target, np.array(rest)))])[0]
        assert move == pytest.approx(found.score - without, abs=1e-5)
    vectors = scorer.dataset.assembly.item_space.vectors
    items = prompter.rows.item[np.unique(np.concatenate([shown, recent]))]
    np.testing.assert_allclose(
        [b["similarity"] for b in found.behaviours], cosine_similarity(vectors[items], vectors[[target]])[:, 0], atol=1e-6
    )
    assert all(b["date"].startswith("2001-09-09") for b in found.behaviours) and all(
        1 <= b["rating"] <= 5 for b in found.behaviours
    )
    none = scorer.score_ids([prompter.tokenizer.ids(prompter.text(place, target, np.array([], dtype=int)))])[0]
    assert found.score_without_history == pytest.approx(none, abs=1e-5)


def test_a_pair_with_and_without_a_row(run):
    scorer, predictions = run
    row = predictions.iloc[3]
    assert explain(scorer, f"{row['user_id']},{row['item_id']}") == explain(scorer, row["row_id"])
    rows, dataset = scorer.dataset.rows, scorer.dataset
    # Forget the item of a row, so that the pair has none.
    user, item = rows.user[-1], rows.item[-1]
    tokens = dataset.field2id_token
    rows.item[-1] = rows.item[0] if rows.item[0] != item else rows.item[1]
    names = tokens[dataset.uid_field][user], tokens[dataset.iid_field][item]
    found = explain(scorer, f"{names[0]}, {names[1]}")
    assert found.label is None and found.name == f"{names[0]}-{names[1]}"
    assert found.score == pytest.approx(scorer.score([names[1]], user_id=names[0])["score"][0], abs=1e-5)


def test_the_page_and_the_picture(run):
    scorer, predictions = run
    found = explain(scorer, predictions["row_id"].iloc[0])
    path = write_explanation(found, "out")
    text = path.read_text()
    assert found.prompt in text and f"P(yes) {found.score:.4f}" in text and text.count("retrieved") >= 4
    assert json.loads(path.with_suffix(".json").read_text())["behaviours"] == found.behaviours
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_behaviours_over_the_budget_moved_nothing(movies):
    name, tiny = movies
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "max_prompt_tokens": 24, "mini_epochs": 0, "epochs": 0})
    (folder,) = Path("saved").glob("ReLLa-*")
    scorer = Scorer.load(folder)
    row = int(pd.read_csv(folder / "test_predictions.csv")["row_id"].iloc[0])
    _, dropped = scorer.dataset.assembly.prompter.token_ids([row], scorer.dataset.rows.item[[row]], [True])
    found = explain(scorer, row)
    assert dropped[0] > 0 and sum(b["moved"] is not None for b in found.behaviours) == 4 - dropped[0]


def test_over_the_budget_no_other_behaviour_takes_the_place_of_the_one_that_is_missing(movies):
    name, tiny = movies
    more = {"max_prompt_tokens": 40, "mini_epochs": 5, "epochs": 0, "history_size": 6}
    run_recbole_rella("ReLLa", name, config_dict={**tiny, **more})
    (folder,) = Path("saved").glob("ReLLa-*")
    scorer = Scorer.load(folder)
    prompter, rows = scorer.dataset.assembly.prompter, scorer.dataset.rows
    row = int(pd.read_csv(folder / "test_predictions.csv")["row_id"].iloc[0])
    found, target = explain(scorer, row), int(rows.item[row])
    shown = prompter.shown(np.array([row]), np.array([target]), np.array([scorer.kind]))[0]
    ids, kept = prompter.fitted(row, target, shown)
    assert 1 < len(kept) < len(shown)
    without = [prompter.tokenizer.ids(prompter.text(row, target, np.delete(kept, place))) for place in range(len(kept))]
    score, *scores = scorer.score_ids([ids, *without])
    moved = [b["moved"] for b in found.behaviours if b["moved"] is not None]
    order = np.argsort(kept)  # as the behaviours of an explanation stand
    np.testing.assert_allclose(moved, (score - np.array(scores))[order], atol=1e-6)


def test_what_is_not_there(run):
    for case in ("99999", "-1", "x", "nobody,101", "3,nothing"):
        with pytest.raises(RequestError, match="expected (a row_id from 0 to 359|a user of the data set|an id of the data set)"):
            explain(run[0], case)
