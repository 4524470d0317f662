"""The words of a prompt: the shipped template, the user's own, and what happens where something is missing."""

import pickle
import re

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from recbole.config import Config
from recbole.data import create_dataset, data_preparation

from recbole_rella.config import properties_folder, template_file
from recbole_rella.prompt.template import (
    FOR_DOCUMENTS,
    FOR_PLACES,
    Behaviour,
    Others,
    PromptTemplate,
    TemplateError,
    as_numbers,
    places_of_marks,
)
from recbole_rella.rows.numbers import as_in_file

LAYOUT = template_file("default").read_text(encoding="utf-8")
ITEMS = {1: {"item_id": "7", "title": "Heat"}, 2: {"item_id": "8", "title": "No  Way\nOut"}, 3: {"item_id": "9", "title": ""}}


def template(**more):
    arguments = {
        "layout": LAYOUT,
        "profile": "A {{ user.age }}-year-old.",
        "item": "{{ item.title }}",
        "rating": "{{ rating }} stars",
        "question": "Does {{ noun }} fit? {{ yes }} or {{ no }}.",
        "system": "Answer.",
        "noun": "movie",
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
        "{{ profile }} The user watched these {{ noun }}s in the past: ["
        "{% for b in behaviours %}'{{ b.number - 1 }}. {{ b.item.title }} ({{ b.stars | int }} stars)'"
        "{{ ', ' if not loop.last }}{% endfor %}"
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
    # Ids of something else are fields as any other.
    own = template(item="{{ item | fields }}", item_fields=lambda item: {"item_id": "7", "brand_id": "3", "price": ""})
    assert own.item(1)["text"] == "brand id: 3"


@pytest.mark.parametrize(
    "text", ["{{ item.title }} of {{ item.year }}", "{{ item.title }}", "{{ item.title[0] }} of {{ item.year }}"]
)
def test_an_item_without_fields_is_shown_by_its_id(text):
    """Whatever words stand around them."""
    fields = {1: {"item_id": "7", "title": "Heat", "year": "1995"}, 2: {"item_id": "9", "title": "", "year": ""}}
    made = template(item=text, item_fields=fields.__getitem__)
    assert made.has_name(1) and made.item(1)["text"][0] == "H"
    if "[" not in text:  # which has nothing to say of such an item
        assert not made.has_name(2) and made.item(2)["text"] == "movie 9"


def test_missing_fields_are_named():
    with pytest.raises(TemplateError, match=r"needs the field 'year' of the item; found \['item_id', 'title'\]"):
        template(item="{{ item.year }}").item(1)
    with pytest.raises(TemplateError, match="needs the field 'job' of the user"):
        template(profile="{% if user.job %}x{% endif %}").profile(1)
    with pytest.raises(TemplateError, match="asks for what is not there: 'nouns' is undefined"):
        template(question="{{ nouns }}")


def test_documents_mark_answers_and_ratings():
    text, spans, first = template().document(1, 1, SHOWN, others(), label=0)
    assert text == template().text(1, 1, SHOWN, others()) + " No"
    assert [text[begin:end] for begin, end in spans] == ["Yes", "5 stars", "No", "2.5 stars", "No"]
    assert first == {1: 0, 2: 2, 0: 4}


def each(*parts, where=""):
    """A layout that says this of each behaviour, or of some."""
    return f"{{% for b in behaviours {where} %}}{' '.join(parts)}\n{{% endfor %}}{{{{ target.text }}}}:"


COMPARING = {
    "answers": "Liked:\n{% for b in behaviours if b.answer == yes %}\n{{ b.text }} ({{ b.answer }})\n{% endfor %}\nDisliked:\n"
    "{% for b in behaviours if b.answer != yes %}\n{{ b.text }} ({{ b.answer }})\n{% endfor %}\n{{ target.text }}:",
    "groups": "{% for answer, of in behaviours | groupby('answer') %}"
    "{{ answer }}: {{ of | map(attribute='text') | join(', ') }}\n{% endfor %}{{ target.text }}:",
    "tests": each("{{ b.text }} {{ b.rating }}", where="| selectattr('answer', 'in', [yes])"),
    "other letters": each("{{ b.answer | upper }}", where="if b.answer | lower == 'yes' or b.answer.upper() == 'NO'"),
    "keys": each("{{ b.text }}: {{ {'Yes': 'liked', 'No': 'disliked'}[b.answer] }} {{ b.answer }}"),
    "the target": each("{{ b.text }}{{ ' (the same)' if b.text == target.text }}: {{ b.answer }}"),
    "words": each("{{ b.text }}{{ '!' if 'Way' in b.text }} {{ b.text | length }} {{ b.answer | lower | length }}"),
    "pieces": each("{{ b.text[:4] }} {{ b.answer[0] }} {{ b.rating.split(' ')[0] | int + 1 }} {{ b.rating | first }}"),
    "capitals": each("{{ b.answer | capitalize }} {{ b.text | title }}"),
    "cut": each("{{ b.text | truncate(8, True, '', 0) }}|{{ b.text | truncate(6, False, '~', 0) }}")
    + " {{ target.text | truncate(3, True, '', 0) }}:",
    "joined": each("{{ b.text ~ ': ' ~ b.answer }}, {{ 'it got ' + b.rating + '.' }}", "{{ [b.text, b.rating] | join(', ') }}"),
    "joined by Python": each(
        "{{ '%s=%s' % (b.text, b.answer) }} {{ '{}-{:>12}'.format(b.text, b.answer) }}", "{{ '-'.join([b.text, b.answer]) }}"
    ),
    "printed in a list": each("{{ [b.text, b.answer] }} {{ b.answer | tojson }}"),
    "empty": each("{{ b.text }}{% if b.rating %} {{ b.rating }}{% else %} unrated{% endif %}"),
}


@pytest.mark.parametrize("layout", COMPARING.values(), ids=COMPARING)
def test_what_is_marked_says_what_it_says(layout):
    """A template may compare, look up, cut and join what is told: documents and prompts with soft tokens read as any prompt."""
    rating = "{{ '' if rating < 3 else rating ~ ' stars' }}" if "unrated" in layout else "{{ rating }} stars"
    made = template(layout=layout, rating=rating)
    plain = made.text(1, 1, SHOWN, others())
    assert made.document(1, 1, SHOWN, others(), label=1)[0] == plain + " Yes"
    assert places_of_marks(made.text(1, 1, SHOWN, others(), **FOR_PLACES))[0] == plain
    for marks in (FOR_DOCUMENTS, FOR_PLACES):
        made.check_marks({"user": 1, "target": 1, "behaviours": SHOWN, "others": others()}, **marks)


@pytest.mark.parametrize(
    ("layout", "spans"),
    [
        (COMPARING["answers"], ["Yes", "No", "No"]),
        (COMPARING["other letters"], ["YES", "NO", "No"]),
        (COMPARING["groups"], ["No", "Yes", "No"]),
        (each("{{ b.answer ~ '/' + b.rating }} {{ b.answer | capitalize }}"), None),
        (each("{{ ', '.join([b.answer, b.rating]) }} {{ [b.answer] | join('') }}"), None),
        (each("{{ '{:>4}'.format(b.answer) }} {{ b.rating.split()[0] }}"), [" Yes", "5", "  No", "2.5", "No"]),
    ],
)
def test_what_is_compared_and_cut_is_learned_all_the_same(layout, spans):
    text, found, _ = template(layout=layout).document(1, 1, SHOWN, others(), label=0)
    assert [text[begin:end] for begin, end in found] == (spans or ["Yes", "5 stars", "Yes", "No", "2.5 stars", "No", "No"])


@pytest.mark.parametrize(
    "layout",
    [
        each("{% set line = b.text ~ b.answer %}{{ line | length }}"),
        each("{% set answer %}{{ b.answer }}{% endset %}{{ 'liked' if answer == yes }}"),
        each("{{ '%-20s' % b.answer }}|"),
    ],
)
def test_what_says_something_else_with_marks_is_refused(layout):
    """Joined to other text, marks are characters among others: who counts and compares them then is told."""
    made, parts = template(layout=layout), {"user": 1, "target": 1, "behaviours": SHOWN, "others": others()}
    for marks in (FOR_DOCUMENTS, FOR_PLACES):
        with pytest.raises(TemplateError, match="prompt_template: expected a text that says the same .* found .* in the place of"):
            made.check_marks(parts, **marks)


def test_no_text_of_the_data_is_a_format():
    """Marked or not: what a field holds reaches nothing of Python."""
    made = template(layout="{{ behaviours[0].text.format(question) }}", item_fields=lambda _: {"title": "{0.__class__.__mro__}"})
    for marks in ({}, FOR_DOCUMENTS, FOR_PLACES):
        with pytest.raises(TemplateError, match="reaches into Python"):
            made.text(1, 1, SHOWN, others(), **marks)
    reaching = template(layout="{{ behaviours[0].answer.upper.__globals__ }}")
    with pytest.raises(TemplateError, match="reaches into Python"):
        reaching.text(1, 1, SHOWN, others(), **FOR_DOCUMENTS)


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
            "history_recent_size": 1,
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


# Attributes of an object, of a dictionary and of ours, keywords of Python, and names that are none of Python's.
NAMES = (
    "kind _kind items copy keys values get pop update clear setdefault fromkeys class in not if None True _private "
    "__class__ __init__ __missing__ __dict__ self 1990 käse text"
).split() + ["a field"]


@pytest.mark.parametrize("name", NAMES)
def test_a_field_is_found_by_any_name(name):
    made = template(
        item=f"{{{{ item['{name}'] }}}}",
        profile=f"{{{{ user | fields }}}} {{{{ [user] | map(attribute='{name}') | first }}}}",
        layout=f"{{{{ target.item['{name}'] }}}}/{{{{ behaviours[0].item['{name}'] }}}}/{{{{ user['{name}'] }}}}/{{{{ profile }}}}",
        item_fields=lambda item: {"item_id": "7", name: f"word {item}"},
        user_fields=lambda user: {"user_id": "u", name: "word"},
    )
    shown = f"{name.replace('_', ' ')}: word word"
    assert made.text(1, 2, SHOWN[:1], others()) == f"word 2/word 1/word/{re.sub(' +', ' ', shown).strip()}"
    if name.isidentifier() and name not in ("None", "True", "not", "in", "if"):
        assert template(item=f"{{{{ item.{name} }}}}", item_fields=lambda _: {name: "word"}).item(1)["text"] == "word"
        assert (
            template(item=f"{{{{ '{{0.{name}}}'.format(item) }}}}", item_fields=lambda _: {name: "word"}).item(1)["text"] == "word"
        )


@pytest.mark.parametrize("name", ["items", "copy", "keys", "kind", "_kind", "__class__", "pop"])
def test_a_field_that_is_not_there_is_no_attribute_of_python(name):
    with pytest.raises(TemplateError, match=rf"prompt_item: .* needs the field '{name}' of the item; found \['item_id', 'title'\]"):
        template(item=f"{{{{ item.{name} }}}}").item(1)
    with pytest.raises(TemplateError, match="prompt_template: .* is not there"):
        template(layout=f"{{{{ target.{name} }}}}").text(1, 1, [], others())


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ rating.__init__.__globals__ }}",
        "{{ question.__class__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ ''|attr('__class__') }}",
        "{{ others._make.__globals__ }}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
        "{% set x = [] %}{{ x.append(1) }}",
    ],
)
def test_a_text_runs_no_code(text):
    for made in (
        lambda: template(layout=text).text(1, 1, SHOWN, others()),
        lambda: template(rating=text).text(1, 1, SHOWN, others()),
    ):
        with pytest.raises(TemplateError, match="^prompt_(template|rating): "):
            made()
    with pytest.raises(TemplateError, match=r"prompt_question: .* reaches into Python \(access to attribute '__class__' of 'str'"):
        template(question="{{ ''.__class__.__mro__ }}")


@pytest.mark.parametrize(
    "text", ["{{ others }}", "{{ profile.upper }}", "{{ range }}", "{{ behaviours | map(attribute='text') }}", "{{ [others] }}"]
)
def test_no_object_of_python_is_printed(text):
    with pytest.raises(TemplateError, match="prompt_template: a prompt text prints a .*, expected text or a number"):
        template(layout=text).text(1, 1, SHOWN, others())


def test_what_can_be_printed():
    text = "{{ behaviours | map(attribute='text') | list }} {{ none }} {{ 1.5 }} {{ profile.upper() }} {{ others.count }}"
    assert template(layout=text).text(1, 1, SHOWN, others()) == "['Heat', 'No Way Out'] None 1.5 A 24-YEAR-OLD. 0"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ item.title + 1 }}", "prompt_item: a prompt text cannot be rendered: TypeError"),
        ("{{ 1 / 0 }}", "prompt_item: a prompt text cannot be rendered: ZeroDivisionError"),
        ("{{ item.title | nonsense }}", "prompt_item: expected Jinja2 text, found an error in line 1: No filter named 'nonsense'"),
        ("a\n{% if %}", "prompt_item: expected Jinja2 text, found an error in line 2"),
        ("{% include 'x' %}", "prompt_item: "),
    ],
)
def test_a_text_that_cannot_be_rendered(text, said):
    with pytest.raises(TemplateError, match=said):
        template(item=text).item(1)


def test_words_of_the_data_are_no_jinja():
    words = "{{ 7 * 7 }} {% if x %} {# no #} \ue000sign\ue001"
    made = template(layout="{{ target.text }}|{{ target.item.title }}", item_fields=lambda _: {"title": words})
    assert made.text(1, 1, [], others()) == "{{ 7 * 7 }} {% if x %} {# no #} sign|{{ 7 * 7 }} {% if x %} {# no #} sign"


@example(-0.0)
@given(
    st.one_of(
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        st.integers(-(2**24), 2**24).map(float),
        st.decimals(-9999, 9999, places=2).map(lambda value: float(np.float32(float(value)))),
    )
)
def test_ratings_are_written_as_the_file_has_them(rating):
    text = template(rating="{{ rating }}|{{ '%s' % rating }}|{{ rating ~ '' }}").text(
        1, 1, [Behaviour(1, rating, None, 0)], others()
    )
    (written,) = set(text.splitlines()[2].removeprefix("Heat: ").split("|"))
    assert np.float32(written) == np.float32(rating) and "e" not in written and not written.endswith(".")
    if rating == int(rating):
        assert written == f"{int(rating)}" or abs(rating) >= 2**24


@pytest.mark.parametrize(
    ("rating", "written"),
    [(4.0, "4"), (3.3, "3.3"), (as_in_file(np.float32(3.3)), "3.3"), (1234567.0, "1234567"), (16777217.0, "16777217")],
)
def test_stars_and_ratings_are_the_numbers_of_the_file(rating, written):
    made = template(layout="{{ behaviours[0].stars }} {{ behaviours[0].rating }} {{ behaviours[0].stars * 2 > 1 }}")
    assert made.text(1, 1, [Behaviour(1, rating, 1, 0)], others()) == f"{written} {written} stars True"


def test_the_shipped_texts_write_ratings_in_full():
    for path in (properties_folder()).rglob("*.yaml"):
        text = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("prompt_rating")
        if text is not None:
            for rating, digits in ((4.0, "4"), (1.0, "1"), (3.5, "3.5"), (1234567.0, "1234567")):
                assert (
                    template(rating=text)
                    .text(1, 1, [Behaviour(1, rating, None, 0)], others())
                    .splitlines()[2]
                    .startswith(f"Heat: {digits} ")
                )


class Catalogue:
    def words(self, item):
        return ITEMS[item]


def test_a_template_can_be_pickled():
    """As workers that do not fork get it."""
    made = template(user_fields={1: {"user_id": "u", "age": "24"}}.__getitem__, item_fields=Catalogue().words)
    expected = made.text(1, 2, SHOWN, others(12, np.array([3.0, 4.0])))
    again = pickle.loads(pickle.dumps(made))
    assert again.text(1, 2, SHOWN, others(12, np.array([3.0, 4.0]))) == expected
    assert again.item.cache_info().currsize == made.item.cache_info().currsize == 2 and again.item is not made.item
    assert len(pickle.dumps(made)) < 2000 + len(LAYOUT)  # what was rendered stays behind


def test_numbers_of_the_history():
    """They are read off the layout before any is worked out, and printed with their digits; counts are integers."""
    layout = (
        "{{ history.user_mean_10 }} {{ history['user_count'] + 1 }} {{ '%.1f' % target.mean_rating }} {{ target.count }}"
        "/{{ target.text }}"
        "{% if history.same_genre_mean is none %} none{% endif %}"
    )
    made = template(layout=layout)
    assert made.numbers == ("user_mean_10", "user_count", "same_genre_mean", "item_mean", "item_count")
    numbers = as_numbers(made.numbers, np.array([4.1, 3, np.nan, 3.96, 0], dtype=np.float32))
    assert made.text(1, 1, SHOWN, others(), numbers) == "4.1 4 4.0 0/Heat none"
    assert template().numbers == () and template(layout="{% set history = others %}{{ history.count }}").numbers == ()


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("{{ history.user_maen }}", "expected history.<name> with a name among user_mean, .* found 'user_maen'"),
        ("{{ history }}", "found history used as a whole"),
        ("{% set name = 'user_mean' %}{{ history[name] }}", "found history used as a whole"),
        ("{% set h = history %}{{ h.user_mean }}", "found history used as a whole"),
    ],
)
def test_numbers_that_cannot_be_told_before(layout, message):
    with pytest.raises(TemplateError, match=message):
        assert template(layout=layout).numbers is None
