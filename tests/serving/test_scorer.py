"""Scoring outside the training run: what is asked for by words scores as what the data set has."""

import csv
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_rella import run_recbole_rella
from recbole_rella.files import OutputError, file_fingerprint, fingerprint
from recbole_rella.run_folder import RunError
from recbole_rella.serving.requests import _Unfinished, score_file
from recbole_rella.serving.scorer import RequestError, Scorer


def opened(run):
    """The Scorer of a run, and the run's predictions."""
    return Scorer.load(run), pd.read_csv(run / "test_predictions.csv", dtype={"user_id": str, "item_id": str})


@pytest.fixture
def trained(trained_run):
    return opened(trained_run)


@pytest.fixture
def scorer(trained):
    return trained[0]


def past_of(scorer, row):
    """The history of a row as a request gives it, in another order."""
    dataset = scorer.dataset
    rows, items = dataset.rows, dataset.field2id_token[dataset.iid_field]
    past = dataset.histories.of(row)
    return [(items[rows.item[b]], float(rows.rating[b]), int(rows.time[b])) for b in past[::-1]]


@pytest.mark.parametrize("eval_history", ["retrieved", "recent", "both"])
@pytest.mark.parametrize("encoder", ["tfidf", "llm"])
def test_a_request_that_repeats_a_row_scores_as_the_row(eval_history, encoder, movies):
    name, tiny = movies
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "eval_history": eval_history, "retrieval_encoder": encoder})
    (run,) = Path("saved").glob("ReLLa-*")
    scorer, predictions = opened(run)
    chosen = predictions.iloc[::5]
    requests = [
        {"user_id": row.user_id, "history": past_of(scorer, row.row_id), "candidates": [row.item_id]} for row in chosen.itertuples()
    ]
    found = scorer.score_many(requests)
    np.testing.assert_allclose(found["score"], chosen["score"], atol=1e-5)
    assert found["request"].tolist() == list(range(len(chosen))) and (found["rank"] == 1).all()


def test_words_count_not_ids(trained):
    """An unknown user and items that the data set does not have, in the words of those that it has."""
    scorer, predictions = trained
    row = predictions.iloc[-1]
    dataset = scorer.dataset
    words = {token: dataset.words["item"](place) for place, token in enumerate(dataset.field2id_token[dataset.iid_field])}

    def new(token):
        return {field: text for field, text in words[token].items() if field != "item_id"}

    history = past_of(scorer, row.row_id)
    age = dataset.words["user"](list(dataset.field2id_token[dataset.uid_field]).index(row.user_id))["age"]
    others = [token for token in words if token not in ("[PAD]", row.item_id)][:6]
    by_id = scorer.score([row.item_id, *others], user_id=row.user_id, history=history)
    by_words = scorer.score(
        [new(row.item_id), *map(new, others)],
        profile={"age": age},
        history=[(new(item), rating, time) for item, rating, time in history],
    )
    np.testing.assert_allclose(by_words["score"], by_id["score"], atol=1e-5)
    assert by_words["candidate"][0] == words[row.item_id]["movie_title"] and by_id["candidate"][0] == row.item_id
    assert sorted(by_id["rank"]) == list(range(1, 8)) and by_id.loc[by_id["score"].idxmax(), "rank"] == 1


def test_a_known_user_brings_profile_and_rows(scorer):
    dataset = scorer.dataset
    user = list(dataset.field2id_token[dataset.uid_field]).index("3")
    rows = np.flatnonzero(dataset.rows.user == user)
    items = dataset.field2id_token[dataset.iid_field]
    history = [(items[dataset.rows.item[r]], float(dataset.rows.rating[r]), int(dataset.rows.time[r])) for r in rows]
    new = {"movie_title": "Drama Story 99", "class": "Drama", "release_year": 1999}
    pd.testing.assert_frame_equal(scorer.score([new, "105"], user_id="3"), scorer.score([new, "105"], user_id="3", history=history))
    assert scorer.score([new])["score"].between(0, 1).all()  # nobody, without a past


def test_bulk_equals_single(scorer):
    requests = [{"user_id": str(u), "candidates": ["101", "102", "103"]} for u in range(8)]
    bulk = scorer.score_many(requests)
    single = pd.concat([scorer.score(**request).assign(request=place) for place, request in enumerate(requests)])
    np.testing.assert_allclose(bulk["score"], single["score"], atol=1e-5)


BAD_REQUESTS = [
    ({"candidates": []}, "candidates: expected a list of items that is not empty, found"),
    ({"candidates": "101"}, "candidates: expected a list of items"),
    ({"candidates": ["nothing"]}, "item: expected an id of the data set movies, found 'nothing'. Give a dict"),
    ({"candidates": ["101"], "user_id": "nobody"}, "user_id: expected a user of the data set"),
    ({"candidates": [{"title": "x"}]}, r"Expected fields of the item among .*movie_title.*, found \['title'\]"),
    (
        {"candidates": [{"item_id": "101", "movie_title": "Horror Story 99"}]},
        "item: expected movie_title '.*' of the item '101', which the data set has, found 'Horror Story 99'. Give its id alone",
    ),
    ({"candidates": ["101"], "profile": {"size": 3}}, "Expected fields of the user among"),
    ({"candidates": ["101"], "profile": {"age": 1e400}}, "age: expected a finite number, found inf"),
    ({"candidates": ["101"], "profile": {"age": "3\ud83d"}}, r"age: expected text in UTF-8, found '3\\ud83d'"),
    ({"candidates": [{"movie_title": ["Half", "\ud83d"]}]}, r"movie_title: expected text in UTF-8, found '\\ud83d'"),
    ({"candidates": [{"item_id": "\udc00"}]}, r"item_id: expected text in UTF-8, found '\\udc00'"),
    ({"candidates": ["101"], "id": "\ud83d"}, r"id: expected text in UTF-8, found '\\ud83d'"),
    ({"candidates": ["101"], "time": 10**400}, "time: expected a finite number"),
    ({"candidates": ["101"], "profile": "old"}, "profile: expected a dict of user fields"),
    ({"candidates": ["101"], "history": "101"}, "history: expected a list"),
    ({"candidates": ["101"], "history": [("101", 5)]}, r"history: expected \(item, rating, time\)"),
    ({"candidates": ["101"], "history": [("101", "good", 5)]}, "expected a finite number as rating, found 'good'"),
    ({"candidates": ["101"], "history": [{"item": "101", "time": 5}]}, "expected a rating in each behaviour"),
    (
        {"candidates": ["101"], "history": [{"item": "101", "time": 5, "rating": 3, "label": 2}]},
        "expected a label, 0 or 1, in each behaviour",
    ),
    ({"candidates": ["101"], "targets": []}, r"Expected the keys candidates, .* found \['targets'\]"),
]


def test_requests_that_cannot_be_scored(scorer):
    for request, message in BAD_REQUESTS:
        with pytest.raises(RequestError, match=message):
            scorer.score_many([request])


REQUESTS = [
    {"id": "a", "user_id": "3", "candidates": ["101", "105", {"movie_title": "Horror Story 99", "class": "Horror"}]},
    {"id": "b", "profile": {"age": "33"}, "history": [["101", 5, 100], ["104", 2, 50]], "candidates": ["102"]},
    {"id": "c", "user_id": "nobody", "candidates": ["102"]},
    {"id": "d", "user_id": "5", "candidates": ["103"]},
]


def write(kind):
    path = Path(f"requests.{kind}")
    if kind == "jsonl":
        path.write_text("\n".join([*map(json.dumps, REQUESTS), "", "{not json"]) + "\n")
    else:
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "user_id", "age", "history", "candidates"])
            for r in REQUESTS:
                history = json.dumps(r["history"]) if "history" in r else ""
                one = r["candidates"] if len(r["candidates"]) > 1 else r["candidates"][0]
                cells = [r["id"], r.get("user_id", ""), r.get("profile", {}).get("age", ""), history]
                writer.writerow([*cells, json.dumps(one) if isinstance(one, list) else one])
            file.write("e,3\n")
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_file_of_requests(kind, scorer, caplog):
    assert score_file(scorer, write(kind), "out/scores.csv", show_progress=False) == (3, 2)
    table = pd.read_csv("out/scores.csv", dtype={"candidate": str})
    assert list(table) == ["line", "id", "candidate", "score", "rank"]
    assert table["id"].tolist() == ["a", "a", "a", "b", "d"] and sorted(table["rank"][:3]) == [1, 2, 3]
    good = [{k: v for k, v in r.items() if k != "id"} for r in REQUESTS if r["id"] != "c"]
    np.testing.assert_allclose(table["score"], scorer.score_many(good)["score"], atol=1e-5)
    first = 1 if kind == "jsonl" else 2
    assert table["line"].tolist() == [first] * 3 + [first + 1, first + 3]
    assert f"line {first + 2} is left out: user_id: expected a user" in caplog.text and "line 6 is left out" in caplog.text


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_bad_line_may_end_the_command_and_leaves_no_half_file(kind, scorer):
    with pytest.raises(RequestError, match=r"requests\.\w+, line \d: "):
        score_file(scorer, write(kind), "out/scores.csv", bad_lines="fail", show_progress=False)
    assert not Path("out/scores.csv").exists()


def test_files_and_options_that_are_not_there(scorer):
    with pytest.raises(RequestError, match="expected a file of requests, found none at nowhere.jsonl"):
        score_file(scorer, "nowhere.jsonl", "scores.csv")
    with pytest.raises(RequestError, match="bad_lines: expected one of skip, fail, found 'ignore'"):
        score_file(scorer, write("csv"), "scores.csv", bad_lines="ignore")
    with pytest.raises(RunError, match="expected the folder of a run with a config.yaml"):
        Scorer.load("nowhere")


def test_an_item_that_a_dict_describes_as_the_data_set_does_is_the_data_sets(scorer):
    fields = {"item_id": "101", **scorer.parts.catalogue.items(int(np.flatnonzero(scorer.parts.catalogue.item_ids == "101")[0]))}
    cases = ["101", {"item_id": "101"}, fields, {**fields, "movie_title": ""}]
    found = [scorer.score(candidates=[case], user_id="3")["score"].item() for case in cases]
    assert found == [found[0]] * 4


def test_what_was_written_last_may_end_anywhere(tmp_path):
    """However many bytes of it were written, a resumed file has whole requests, each once, and knows which."""
    output, lines = tmp_path / "scores.csv", range(1, 31)

    def write(unfinished):
        for line in set(lines) - unfinished.lines:
            candidates = pd.DataFrame({"candidate": ["1", 'caf\u00e9 "2"\nin two lines', "3"], "score": 0.5, "rank": [1, 2, 3]})
            unfinished.write(line, {"id": f"\u00e9{line}"}, candidates)
        unfinished.close()
        return unfinished._path

    path = write(_Unfinished(output, "all"))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        again = _Unfinished(output, "all")
        assert again.lines == set(range(1, len(again.lines) + 1)) and (length < 200 or again.lines)
        assert write(again).read_bytes() == whole


def test_one_command_at_a_time_scores_the_same_requests_to_the_same_file(scorer, tmp_path):
    path = Path(write("jsonl"))
    output = tmp_path / "out" / "scores.csv"
    mine = _Unfinished(output, fingerprint(scorer.identity, file_fingerprint(path)))
    with pytest.raises(RequestError, match="expected nobody else to score these requests to .*scores.csv"):
        score_file(scorer, path, output, show_progress=False)
    mine.close()
    other = _Unfinished(output, "other")  # which goes on meanwhile
    assert score_file(scorer, path, output, show_progress=False) == (3, 2)
    other.finish()
    other.close()
    assert len(output.read_text().splitlines()) == 1 and sorted(p.name for p in output.parent.iterdir()) == ["scores.csv"]


def test_lines_of_any_length_and_in_other_encodings(scorer, caplog):
    history = [["101", 5, 100 + place] for place in range(9000)]
    with open("requests.csv", "w", newline="") as file:
        csv.writer(file).writerows([["history", "candidates"], [json.dumps(history), "102"], ["", "102"]])
    assert score_file(scorer, "requests.csv", "scores.csv", show_progress=False) == (2, 0)
    lines = [
        json.dumps({"id": "caf\u00e9", "candidates": ["101"]}, ensure_ascii=False).encode(name) for name in ("utf-8", "latin-1")
    ]
    Path("requests.jsonl").write_bytes(b"\n".join(lines))
    assert score_file(scorer, "requests.jsonl", "scores.csv", show_progress=False) == (1, 1)
    assert "line 2 is left out: Expected text in UTF-8, found" in caplog.text


def nested(levels, before="", after=""):
    return before + "[" * levels + "]" * levels + after


ODD = [
    (r'{"candidates": [{"movie_title": "Half an emoji \ud83d"}]}', r"movie_title: expected text in UTF-8, found '\ud83d'"),
    (r'{"candidates": ["101"], "profile": {"age": "\ud83d"}}', r"age: expected text in UTF-8, found '\ud83d'"),
    (r'{"candidates": [{"item_id": "\ud83d"}]}', r"item_id: expected text in UTF-8, found '\ud83d'"),
    (r'{"candidates": ["101"], "id": "\ud83d"}', r"id: expected text in UTF-8, found '\ud83d'"),
    (r'{"candidates": ["101"], "history": [[{"movie_title": "\ud83d"}, 5, 9]]}', "movie_title: expected text in UTF-8"),
    (
        nested(100_000, '{"candidates": ', "}"),
        "request: expected at most 16 lists and objects within each other, found more in '{",
    ),
    (nested(100_000), "request: expected at most 16 lists and objects within each other"),
    *((nested(levels), "request: expected at most 16 lists and objects") for levels in range(900, 1000, 20)),
    (nested(500, '{"candidates": ["101"], "id": ', "}"), "request: expected at most 16 lists and objects"),
    (nested(5, '{"candidates": ["101"], "profile": {"age": ', "}}"), "age: expected one value, found the list [[[[[]]]]]"),
]


def test_no_line_ends_the_others(scorer, caplog):
    """Whatever JSON can hold: lone surrogates, which no text has, and lists in lists, in which Python's own readers get lost."""
    lines = [line for odd, _ in ODD for line in (odd, '{"candidates": ["101"]}')]
    Path("requests.jsonl").write_text("\n".join(lines))
    assert score_file(scorer, "requests.jsonl", "scores.csv", show_progress=False) == (len(ODD), len(ODD))
    told = [record.getMessage() for record in caplog.records if "is left out" in record.getMessage()]
    for number, (_, message) in enumerate(ODD):
        assert [line for line in told if f", line {2 * number + 1} is left out: {message}" in line and len(line) < 400]
    assert pd.read_csv("scores.csv")["line"].tolist() == [2 * number + 2 for number in range(len(ODD))]
    with open("requests.csv", "w", newline="") as file:
        cells = [["", '["101"]'], [nested(100_000), '["101"]'], ["", nested(950)], ["", r'[{"movie_title": "\ud83d"}]']]
        csv.writer(file).writerows([["history", "candidates"], *cells])
    assert score_file(scorer, "requests.csv", "scores.csv", show_progress=False) == (1, 3)
    assert "line 3 is left out: history: expected at most 16" in caplog.text
    Path("requests.jsonl").write_text(lines[0])
    with pytest.raises(RequestError, match=r"requests\.jsonl, line 1: movie_title: expected text in UTF-8"):
        score_file(scorer, "requests.jsonl", "scores.csv", bad_lines="fail", show_progress=False)


def test_scores_take_the_place_of_no_requests(scorer, monkeypatch):
    path = write("jsonl")
    before = Path(path).read_text()
    Path("link").symlink_to(path)
    Path("full").mkdir()
    monkeypatch.setattr(Scorer, "score_many", lambda *_: pytest.fail("it was scored"))
    for output in (path, "link", f"full/../{path}"):
        with pytest.raises(OutputError, match="output_file: expected another place than that of score"):
            score_file(scorer, path, output)
    with pytest.raises(OutputError, match="output_file: expected the name of a file, found full, which is a folder"):
        score_file(scorer, path, "full")
    assert Path(path).read_text() == before


def test_threads_share_one_scorer(scorer):
    """Requests of several threads get the scores that they get alone."""
    requests = [{"user_id": str(user), "candidates": [str(100 + item) for item in range(user, user + 6)]} for user in range(8)]
    expected = [scorer.score_many([request])["score"].to_numpy() for request in requests]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda request: scorer.score_many([request])["score"].to_numpy(), requests * 3))
    for number, scores in enumerate(found):
        np.testing.assert_allclose(scores, expected[number % len(requests)], atol=1e-6)


def test_loading_leaves_a_host_program_alone(trained_run, tmp_path, monkeypatch):
    """No handler of the logging is added or taken away, and nothing is written into the working folder."""
    run = trained_run.resolve()
    (tmp_path / "host").mkdir()
    monkeypatch.chdir(tmp_path / "host")
    before, level = list(logging.getLogger().handlers), logging.getLogger().level
    Scorer.load(run)
    assert logging.getLogger().handlers == before and logging.getLogger().level == level
    assert list((tmp_path / "host").iterdir()) == []
