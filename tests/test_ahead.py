"""What a run says before it begins."""

import re
from pathlib import Path

import pytest
from helpers import written_predictions

from recbole_rella import quick_start, run_recbole_rella
from recbole_rella.ahead import _written


def test_a_run_says_its_rows_and_its_time_first(movies, own_cache, caplog):
    name, tiny = movies
    caplog.set_level("INFO")
    result = run_recbole_rella("ReLLa", name, config_dict={**tiny, "train_shots": 24, "epochs": 2, "train_history": "mixed"})
    said = [record.getMessage() for record in caplog.records]
    first = next(place for place, text in enumerate(said) if text.startswith("ReLLa with"))
    assert first < next(place for place, text in enumerate(said) if text.startswith("Encoding"))
    found = re.search(
        r"ReLLa with the embedded LLM, .*: 24 of (\d+) training rows tune it in 48 samples \(recent and retrieved behaviours\), 2 "
        r"epochs; (\d+) rows validate it and (\d+) test it, shown (\w+) behaviours. Items are compared by tfidf.",
        said[first],
    )
    assert (
        int(found[3]) == len(written_predictions(result))
        and int(found[1]) > 24
        and found[4] == tiny.get("eval_history", "retrieved")
    )
    estimate = next(text for text in said if text.startswith("Estimated by"))
    assert re.fullmatch(
        r"Estimated by \d+ prompts: a tuning epoch \d+ s, a validation \d+ s, the test rows \d+ s; \d+ s in all.", estimate
    )


def test_what_is_not_tuned(movies, llms, caplog):
    name, tiny = movies
    caplog.set_level("INFO")
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "llm": llms("llama"), "epochs": 0, "eval_rows": [4, 6]})
    assert f"ReLLa with {llms('llama')}: it is not tuned (epochs: 0); 4 rows validate it and 6 test it" in caplog.text
    assert re.search(r"Estimated by \d prompts: validation \d s, the test rows \d s; \d s in all.", caplog.text)


@pytest.mark.slow
def test_the_estimate_changes_no_score(movies, monkeypatch):
    name, tiny = movies
    settings = {**tiny, "train_shots": 40, "learning_rate": 0.01}
    run_recbole_rella("ReLLa", name, config_dict={**settings, "run_folder": "with"})
    monkeypatch.setattr(quick_start, "time_ahead", lambda *_: "")
    run_recbole_rella("ReLLa", name, config_dict={**settings, "run_folder": "without"})
    found = [Path(folder, "test_predictions.csv").read_bytes() for folder in ("with", "without")]
    assert found[0] == found[1]


def test_times_in_words():
    assert [_written(seconds) for seconds in (0.2, 119, 121, 7199, 7201)] == ["0 s", "119 s", "2 min", "120 min", "2 h"]
