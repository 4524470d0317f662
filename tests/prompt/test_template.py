"""The words of a prompt: the shipped template, the user's own, and what happens where something is missing."""

import numpy as np
import pytest
from recbole.config import Config
from recbole.data import create_dataset, data_preparation

from recbole_rella.config import template_file
from recbole_rella.prompt.template import Behaviour, Others, PromptTemplate, TemplateError

LAYOUT = template_file("default").read_text(encoding="utf-8")
ITEMS = {1: {"item_id": "7", "title": "Heat"}, 2: {"item_id": "8", "title": "No  Way\nOut"}, 3: {"item_id": "9", "title": ""}}


def template(**more):
    arguments = {
        "layout": LAYOUT,
        "profile": "A {{ user.age }}-year-old.",
        "item": "{{ item.title }}",
        "rating": "{{ '%g' % rating }} stars",
        "question": "Does {{ noun }} fit? {{ yes }} or {{ no }}.",
        "system": "Answer.",
        "noun": "movie",
        "verb": "watched",
        "answers": ("Yes", "No"),
        "user_fields": lambda user: {"user_id": "u", "age": "24"},
        "item_fields": ITEMS.__getitem__,
    }
    return PromptTemplate(**{**arguments, **more})


def others(count=0, ratings=None):
    return Others(count, lambda: (ratings, ratings))


SHOWN = [Behaviour(1, 5.0, 1, 10), Behaviour(2, 2.5, 0, 20)]


def test_the_default_template_to_the_letter():
    assert template().text(1, 3, SHOWN, others(12, np.array([3.0, 4.0]))) == (
        "A 24-year-old.\n"
        "Does movie fit? Yes or No.\n"
        "Not shown: dozens more, 3.5 on average, 3.5 of late.\n"
        "Heat: Yes, 5 stars\n"
        "No Way Out: No, 2.5 stars\n"
        "movie 9:"
    )


@pytest.mark.parametrize(
    ("behaviour", "line"),
    [
        (Behaviour(1, None, 1, 0), "Heat: Yes"),
        (Behaviour(1, 4.0, None, 0), "Heat: 4 stars"),
        (Behaviour(1, None, None, 0), "Heat:"),
    ],
)
def test_without_ratings_or_labels(behaviour, line):
    assert template().text(1, 2, [behaviour], others()).splitlines()[2:] == [line, "No Way Out:"]


def test_a_template_of_ones_own_reaches_every_field():
    """One line, numbered, brackets, no line breaks: a wording as papers have it."""
    layout = (
        "{{ profile }} The user {{ verb }} these {{ noun }}s in the past: ["
        "{% for b in behaviours %}'{{ b.number - 1 }}. {{ b.item.title }} ({{ b.stars | int }} stars)'{{ ', ' if not loop.last }}{% endfor %}"
        "]. Is {{ target.item.title }} (id {{ target.item.item_id }}, user {{ user.age }}) liked? "
        "Only answer {{ yes }} or {{ no }}.{{ others.count }} {{ behaviours[0].time }} {{ system }}"
    )
    assert template(layout=layout).text(1, 1, SHOWN, others(3)) == (
        "A 24-year-old. The user watched these movies in the past: ['0. Heat (5 stars)', '1. No  Way\nOut (2 stars)']. "
        "Is Heat (id 7, user 24) liked? Only answer Yes or No.3 10 Answer."
    )


def test_generic_fields():
    generic = template(item="{{ item | fields }}", profile="{{ user | fields }}")
    assert generic.item(1)["text"] == "title: Heat"
    assert generic.item(3)["text"] == "item id: 9"
    assert generic.profile(1)["profile"] == "age: 24"


def test_missing_fields_are_named():
    with pytest.raises(TemplateError, match=r"needs the field 'year' of the item; found \['item_id', 'title'\]"):
        template(item="{{ item.year }}").item(1)
    with pytest.raises(TemplateError, match="needs the field 'job' of the user"):
        template(profile="{% if user.job %}x{% endif %}").profile(1)
    with pytest.raises(TemplateError, match="asks for what is not there: 'nouns' is undefined"):
        template(question="{{ nouns }}")


def test_documents_mark_answers_and_ratings():
    text, spans = template().document(1, 1, SHOWN, others(), label=0)
    assert text == template().text(1, 1, SHOWN, others()) + " No"
    assert [text[begin:end] for begin, end in spans] == ["Yes", "5 stars", "No", "2.5 stars", "No"]


def test_parts_are_rendered_once():
    calls = []
    counting = template(item_fields=lambda item: calls.append(item) or ITEMS[item])
    for _ in range(5):
        counting.text(1, 1, SHOWN, others())
    assert sorted(calls) == [1, 2]


def test_ml_100k_to_the_letter(llms):
    """The shipped data set YAML on the bundled data, for one row of each part; an LLM with random weights will do."""
    config = Config(
        "ReLLa",
        "ml-100k",
        config_dict={
            "llm": llms("llama"),
            "llm_dtype": "float32",
            "retrieval_encoder": "tfidf",
            "max_prompt_tokens": 512,
            "history_size": 3,
            "train_shots": 8,
            "eval_rows": 20,
        },
    )
    dataset = create_dataset(config)
    data_preparation(config, dataset)
    prompter, rows = dataset.assembly.prompter, dataset.rows
    row = np.flatnonzero((rows.user == dataset.token2id("user_id", "1")) & (rows.item == dataset.token2id("item_id", "74")))
    (recent,) = prompter.shown(row, rows.item[row], np.array([False]))
    assert prompter.text(row[0], rows.item[row[0]], recent) == (
        "This person is 24 years old, a man, a technician.\n"
        "Does this person like the last movie of the list? Yes means 4 or 5 stars, No means fewer.\n"
        "Not shown: hundreds more, 3.6 on average, 4.3 of late.\n"
        "Delicatessen (1991) (comedy/sci-fi): Yes, 5 stars\n"
        "Copycat (1995) (crime/drama/thriller): No, 3 stars\n"
        "When the Cats Away (Chacun cherche son chat) (1996) (comedy/romance): Yes, 4 stars\n"
        "Faster Pussycat! Kill! Kill! (1965) (action/comedy/drama):"
    )
    assert len(rows) == 100_000 and len(np.unique(rows.item)) == 1682
    assert [int((rows.split == s).sum()) for s in (-1, 0, 1, 2)] == [4715, 76229, 9528, 9528]
