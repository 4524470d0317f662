"""Where soft tokens stand: the words of a prompt stay as they are, and each soft token is right behind what it is about."""

import numpy as np
import pytest
from helpers import TOKENIZERS, bare_template
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_rella.prompt.soft_places import SoftPlaces
from recbole_rella.prompt.template import Behaviour, Others, TemplateError, places_of_marks
from recbole_rella.prompt.tokenization import PromptTokenizer, TokenPlacesError

LINES = "{{ question }}\n{% for b in behaviours %}{{ b.text }}: {{ b.answer }}, {{ b.rating }}\n{% endfor %}{{ target.text }}:"
ONE_LINE = "{{ question }} {% for b in behaviours %}{{ b.text }} ({{ b.rating }}), {% endfor %}and {{ target.text }}? {{ noun }}:"
NAMES = ["", "Toy Story (1995)", 'The "Net" (3 stars)', "Ärger", "\ue003odd\ue0031\ue003", "a b"]


def make_template(layout):
    return bare_template(layout, NAMES.__getitem__, "{{ rating }} stars", "Will they like it?", "movie")


def marked(layout, target, items):
    behaviours = [Behaviour(item, 3.0, item % 2, 7) for item in items]
    template = make_template(layout)
    plain = template.text(0, target, behaviours, Others(0, None))
    text, places = places_of_marks(template.text(0, target, behaviours, Others(0, None), soft=("text", "answer", "rating")))
    assert text == plain
    return text, places


@pytest.mark.parametrize("layout", [LINES, ONE_LINE], ids=["lines", "one line"])
def test_places_are_behind_what_is_told(layout):
    text, places = marked(layout, 1, [2, 3, 2, 4])
    assert sorted(places) == [0, 1, 2, 3, 4]
    for number in range(1, 5):
        before, after = text[: places[number]], text[places[number] :]
        assert before.endswith("3 stars" if layout is LINES else "3 stars)") and after[0] in "\n,"
        assert before.count("stars") == number + (number > 0) + (number > 2)  # one title has the word, too
    assert text[: places[0]].endswith("Toy Story (1995)") and text[places[0] :] in (":", "? movie:")


def test_what_a_template_does_not_print_has_no_place():
    places = SoftPlaces(first=100, of=("behaviours", "target"), items=6, places=np.arange(6))
    for layout, shown, missing in (
        ("{{ target.item.title }}:", [], "the target"),
        ("{{ question }} {{ target.text }}:", [2, 3], "behaviour 1 of 2"),
    ):
        text, marks = marked(layout, 1, shown)
        with pytest.raises(TemplateError, match=f"nothing of {missing}"):
            places.inserted([1, 2, 3], dict.fromkeys(marks, 2), 1, shown)
    assert SoftPlaces(first=100, of=("history", "user")).inserted([1, 2, 3], {0: 2}, 1, [2, 3]) == [1, 2, 3, 100]
    assert places.inserted([1, 2, 3], {0: 2, 1: 1, 2: 1}, 1, [2, 3]) == [1, 102, 103, 2, 101, 3]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_tokens_of_the_text_are_what_they_are_without(kind, data):
    """Each place is between the tokens around it; one that is within a token comes before it."""
    tokenizer = TOKENIZERS[kind]()
    chat = "auto" if tokenizer.chat_template else "never"
    tokenizer = PromptTokenizer(tokenizer, chat, "Answer.", ("Yes", "No"))
    items = data.draw(st.lists(st.integers(1, 5), max_size=4))
    layout = data.draw(st.sampled_from([LINES, ONE_LINE]))
    text, places = marked(layout, data.draw(st.integers(1, 5)), items)
    numbers = sorted(places, key=places.get)
    ids, before = tokenizer.with_places(text, [places[number] for number in numbers])
    assert ids == tokenizer.ids(text) == tokenizer.whole(text)
    assert before == sorted(before) and before[-1] < len(ids)
    framed, shift = tokenizer.framed(text), len(tokenizer.start)
    begin = framed.index(text) if text in framed else None
    offsets = tokenizer.tokenizer(framed, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for number, place in zip(numbers, before):
        if begin is not None:
            assert all(end <= begin + places[number] for _, end in offsets[: place - shift])
            assert offsets[place - shift][1] > begin + places[number]


def test_a_tokenizer_that_tells_no_places_is_refused():
    tokenizer = TOKENIZERS["byte_level"]()
    prompts = PromptTokenizer(tokenizer, "never", "", ("Yes", "No"))
    prompts.tokenizer = type("Slow", (), {"is_fast": False})()
    with pytest.raises(TokenPlacesError, match="found Slow"):
        prompts.with_places("a", [1])
