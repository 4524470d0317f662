"""What an LLM reads of a history: the scores of the run itself, and what changes with the history and what does not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_rella import command_line, run_recbole_rella
from recbole_rella.run_folder import RunError
from recbole_rella.serving import diagnosis
from recbole_rella.serving.diagnosis import SHOWN, DiagnosisError, diagnose
from recbole_rella.serving.scorer import Scorer

NAMES = [SHOWN, "in the order of time", "latest first", "shuffled", "ratings exchanged among them", "of another user", "none"]


@pytest.fixture
def made(movies):
    """A run whose embedded LLM has learned something, and its scorer."""
    name, tiny = movies
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "mini_epochs": 20, "run_folder": "run", "history_size": 6})
    return Scorer.load("run")


def test_the_first_row_is_the_run_and_the_others_are_other_prompts(made):
    found = diagnose(made, "run")
    predicted = pd.read_csv("run/test_predictions.csv")
    assert found.table["history"].tolist() == NAMES and found.rows == len(predicted)
    np.testing.assert_allclose(found.scores[SHOWN][0], predicted["score"], atol=1e-5)
    np.testing.assert_allclose(found.scores["in the order of time"], found.scores[SHOWN], atol=1e-6)  # the run's own order
    assert found.table["moved"][0] == 0 and (found.table["moved"][2:] > 0).all() and found.scores["shuffled"].shape[0] == 5
    prompter = made.dataset.assembly.prompter
    rows = predicted["row_id"].to_numpy()
    none = [prompter.tokenizer.ids(prompter.text(row, prompter.rows.item[row], np.empty(0, int))) for row in rows]
    np.testing.assert_allclose(found.scores["none"][0], made.score_ids(none), atol=1e-6)


def test_a_run_without_predictions_or_an_end_is_refused(made):
    Path("run/test_predictions.csv").unlink()
    with pytest.raises(DiagnosisError, match="expected a run that predicted its test rows, found none .* in .*run"):
        diagnose(made, "run")
    Path("run/metrics.json").unlink()
    with pytest.raises(RunError, match="found one that was interrupted in .*run: finish it with --resume_from"):
        Scorer.load("run")


def test_exchanged_ratings_are_the_same_ones_and_the_rows_stay_as_they_are(made, monkeypatch):
    prompter = made.dataset.assembly.prompter
    before, texts = prompter.rows.rating.copy(), []
    tokenizer = type(prompter.tokenizer)
    ids = tokenizer.ids
    monkeypatch.setattr(tokenizer, "ids", lambda self, text: texts.append(text) or ids(self, text))
    rows = pd.read_csv("run/test_predictions.csv")["row_id"].to_numpy()
    targets = prompter.rows.item[rows]
    shown = prompter.shown(rows, targets, np.full(len(rows), made.kind))
    diagnosis._with_exchanged(prompter, rows, targets, shown, np.random.default_rng(3), made, None)
    exchanged = texts.copy()
    plain = [prompter.text(int(row), int(target), history) for row, target, history in zip(rows, targets, shown)]
    assert [sorted(text.replace("\n", " ").split()) for text in exchanged] == [sorted(t.replace("\n", " ").split()) for t in plain]
    assert sum(one != other for one, other in zip(exchanged, plain)) > len(plain) / 2
    np.testing.assert_array_equal(prompter.rows.rating, before)


def test_an_llm_that_reads_no_word_of_the_history_is_told(made, monkeypatch):
    """One that answers by the last token alone: nothing moves, whatever is shown."""

    def last_alone(llm, ids, lengths, *_):
        return torch.tensor([(row[length - 3] % 7) / 9 for row, length in zip(ids, lengths)])

    monkeypatch.setattr("recbole_rella.serving.scorer.p_yes", last_alone)
    found = diagnose(made, "run")
    assert (found.table["moved"] == 0).all() and (found.table["p"] == 1).all()


def test_numbers_of_another_user_are_looked_at_where_prompts_have_numbers(movies):
    name, tiny = movies
    soft = {"spa": True, "spa_tokens": ["history"], "history_fields": ["user_mean", "item_mean"], "mini_epochs": 10}
    run_recbole_rella("ReLLa", name, config_dict={**tiny, **soft, "run_folder": "run"})
    found = diagnose(Scorer.load("run"), "run")
    assert (
        found.table["history"].tolist() == [*NAMES, "soft tokens and gates of another user"] and found.table["moved"].iloc[-1] > 0
    )


def test_others_are_never_of_the_same_user():
    users = np.array([1, 1, 1, 1, 1, 1, 2, 3])
    for seed in range(20):
        places = diagnosis._of_other_users(users, np.random.default_rng(seed))
        assert (users[places] != users).all()


def test_the_command_writes_a_page_a_table_and_a_picture(made, monkeypatch, capsys):
    monkeypatch.setattr(diagnosis, "ROWS", 20)
    command_line.main(["--diagnose=history", "--run_folder=run", "--output_folder=out"])
    assert "20 test rows" in capsys.readouterr().out
    page, table = Path("out/history.md").read_text(), pd.read_csv("out/history.csv")
    assert all(name in page for name in NAMES) and table["history"].tolist() == NAMES
    assert Path("out/history.png").stat().st_size > 10_000


def test_rows_of_which_nothing_can_be_said(made, monkeypatch):
    path = Path("run/test_predictions.csv")
    table = pd.read_csv(path, dtype=str)
    table[table["label"].astype(float) == 1].to_csv(path, index=False)
    with pytest.raises(DiagnosisError, match="expected test rows of both labels"):
        diagnose(made, "run")


def test_what_cannot_be_computed_is_a_dash():
    """No AUC in any draw, no user of both labels."""
    nan = float("nan")
    lines = [["none", 0.5, 0.7, nan, nan, 0.1], ["shuffled", 0.5, 0.7, nan, nan, 0.1]]
    table = pd.DataFrame(lines, columns=["history", "AUC", "LogLoss", "UAUC", "p", "moved"])
    text = diagnosis.Diagnosis("run", 2, table, {}).text()
    assert "nan" not in text and text.count(" - ") >= 4
    diagnosis.write_diagnosis(diagnosis.Diagnosis("run", 2, table, {}), "here")
