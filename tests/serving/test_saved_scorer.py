"""Scorer.save_pretrained and from_pretrained: scores without the run and its data set, or a refusal."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from recbole_rella import run_recbole_rella
from recbole_rella.rows.history import TRAIN
from recbole_rella.serving.catalogue import RequestError
from recbole_rella.serving.explanation import explain
from recbole_rella.serving.saved_scorer import ScorerError
from recbole_rella.serving.scorer import Scorer

REQUESTS = [
    {"profile": {"age": 33}, "history": [["101", 5, 100], ["104", 2, 50], ["107", 4, 70]], "candidates": ["102", "103"]},
    {
        "profile": {"age": "21"},
        "history": [[{"movie_title": "Horror Story 99", "class": "Horror"}, 1, 5.5], ["110", 3, 5.25]],
        "candidates": [{"movie_title": "Comedy Story 77", "class": "Comedy", "release_year": 1999}, "105"],
    },
]


def saved(movies, **more):
    name, tiny = movies
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "learning_rate": 0.05, "run_folder": "run", **more})
    scorer = Scorer.load("run")
    scorer.save_pretrained("scorer")
    return scorer


@pytest.mark.parametrize(
    "more", [{"eval_history": "both"}, {"eval_history": "recent", "train_history": "recent"}, {"retrieval_encoder": "llm"}], ids=str
)
def test_new_users_are_scored_without_the_data_set(more, movies, monkeypatch, tmp_path):
    expected = saved(movies, **more).score_many(REQUESTS)
    shutil.move("scorer", tmp_path / "moved")
    for gone in ("run", Path(movies[1]["data_path"]), tmp_path / "cache"):
        shutil.rmtree(gone, ignore_errors=True)
    found = Scorer.from_pretrained(tmp_path / "moved", device="cpu").score_many(REQUESTS)
    assert found.drop(columns="score").equals(expected.drop(columns="score"))
    np.testing.assert_array_equal(found["score"], expected["score"])


@pytest.mark.slow
def test_numbers_of_the_history_go_along(movies, tmp_path):
    """The answers of the training rows are saved: a request's items have the means that they had in the run, new ones none."""
    layout = tmp_path / "layout.jinja"
    layout.write_text(
        "{{ profile }}\n{{ history.user_residual }} {{ history.similar_mean }} {{ history.alike_residual }} "
        "{{ history.tracked_residual }} {{ history.tracked_label }} {{ history.same_class_mean }} "
        "{{ target.mean_rating }} {{ target.count }}\n{% for b in behaviours %}{{ b.text }}: {{ b.answer }}, {{ b.rating }}\n"
        "{% endfor %}{{ target.text }}:"
    )
    scorer = saved(movies, prompt_template=str(layout), eval_history="recent", train_history="recent", epochs=0, mini_epochs=0)
    dataset = scorer.dataset
    text = scorer.ask(REQUESTS)
    text = [text.prompter.text(row, target, text.prompter.recent(row)) for row, target in zip(text.rows, text.targets)]
    learned = dataset.rows.rating[(dataset.rows.split == TRAIN) & (dataset.rows.item == list(dataset.item_ids).index("102"))]
    # Rows that min_history drops are learned too.
    assert int(text[0].splitlines()[1].split()[-1]) >= len(learned) > 0 and text[2].splitlines()[1].split()[-1] == "0"
    again = Scorer.from_pretrained("scorer", device="cpu")
    asked = again.ask(REQUESTS)
    found = [asked.prompter.text(row, target, asked.prompter.recent(row)) for row, target in zip(asked.rows, asked.targets)]
    assert found == text
    np.testing.assert_array_equal(again.score_many(REQUESTS)["score"], scorer.score_many(REQUESTS)["score"])
    page = explain(scorer, int(scorer.dataset.pool[40])).prompt
    row = int(scorer.dataset.pool[40])
    prompter = dataset.assembly.prompter
    assert str(prompter.numbers(row, dataset.rows.item[row])["user_residual"]) in page


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_another_llm_is_named_and_proved(family, movies, llms, tmp_path):
    llm = tmp_path / "llm"
    shutil.copytree(llms(family), llm)
    expected = saved(movies, llm=str(llm), retrieval_encoder="llm").score_many(REQUESTS)
    assert not (Path("scorer") / "llm").exists()
    np.testing.assert_array_equal(Scorer.from_pretrained("scorer").score_many(REQUESTS)["score"], expected["score"])
    settings = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-2}))
    with pytest.raises(ScorerError, match="expected the LLM that this scorer was saved with .*, found another one under '.*llm'"):
        Scorer.from_pretrained("scorer")


def test_a_saved_scorer_knows_no_users_and_is_not_saved_twice(movies):
    saved(movies, epochs=0, mini_epochs=0)
    scorer = Scorer.from_pretrained("scorer")
    with pytest.raises(
        RequestError, match="user_id: expected a user of the data set movies, a scorer that was saved knows no users"
    ):
        scorer.score(["101"], user_id="3")
    with pytest.raises(ScorerError, match="expected the scorer of a run .*, found one that was saved: copy its folder"):
        scorer.save_pretrained("again")
    with pytest.raises(ScorerError, match="expected a new or an empty folder, found scorer"):
        Scorer.load("run").save_pretrained("scorer")
    with pytest.raises(ScorerError, match="expected a scorer that save_pretrained wrote, found nowhere, which does not read"):
        Scorer.from_pretrained("nowhere")


def test_one_long_text_takes_its_length_once(movies):
    """And not that of every item: an array of texts is as wide as its longest."""
    name, tiny = movies
    path = Path(tiny["data_path"]) / name / f"{name}.item"
    header, first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, first + " " + 50_000 * "x", *lines]) + "\n")
    titles = {"prompt_item": "{{ item.movie_title }}", "retrieval_sentence": "{{ item.movie_title }}"}
    scorer = saved(movies, epochs=0, mini_epochs=0, **titles)
    table = Scorer.from_pretrained("scorer").parts.catalogue.items.table
    assert header.split("\t")[-1].startswith("class") and max(map(len, table["class"])) > 50_000
    assert {field: list(texts) for field, texts in table.items()} == {
        field: list(texts) for field, texts in scorer.parts.catalogue.items.table.items()
    }
    assert sum(Path("scorer", name).stat().st_size for name in ("texts.json", "catalogue.npz")) < 200_000 < 50_000 * 4 * len(lines)


def test_new_items_are_encoded_by_the_llm_before_tuning(movies):
    """SUBR compares vectors of one space: the adapters that were tuned since are not in those of new items."""
    scorer = saved(movies, retrieval_encoder="llm", learning_rate=0.2)
    space = scorer.parts.item_space
    for place in (1, 5):
        sentence = space.sentences[place]
        encoded = space._encode(np.array([sentence]))[0]
        np.testing.assert_allclose(encoded, space.vectors[place], atol=1e-5)
        # And one that the catalogue has gets its very vector.
        np.testing.assert_array_equal(space.encode([sentence, "Another sentence."])[0], space.vectors[place])
    # The adapters are there, and trained, as before.
    trained = [p for n, p in scorer.parts.llm.named_parameters() if "lora_B" in n]
    assert trained and all(p.abs().max() > 0 and p.requires_grad for p in trained)
