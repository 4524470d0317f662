"""From original files to the prompt of a row, to the letter, by the shipped YAML of each data set."""

import numpy as np
import pytest
from helpers import TINY
from originals import BOOKS, ORIGINALS

from recbole_rella.atomic.convert import convert
from recbole_rella.atomic.errors import DatasetError
from recbole_rella.quick_start import load_data, make_config

# What makes a run small, and says nothing about the data.
SMALL = {
    **{
        key: value
        for key, value in TINY.items()
        if not key.startswith(("prompt_", "retrieval_", "history_")) and key != "threshold"
    },
    "retrieval_encoder": "tfidf",
    "mini_epochs": 0,
    "expected_counts": {},
    "train_shots": 20,
}
SMALL = {key: value for key, value in SMALL.items() if key != "min_history"}


def load(name, tmp_path, **more):
    convert(name, ORIGINALS[name](tmp_path / "original"), tmp_path / "data", report=lambda _: None)
    return load_data(make_config("ReLLa", name, config_dict={**SMALL, "data_path": str(tmp_path / "data"), **more}))[0]


def prompt(dataset, user, item):
    """The prompt of a user's row about an item, with recent behaviours."""
    users, items = (dataset.field2id_token[field] for field in (dataset.uid_field, dataset.iid_field))
    (row,) = np.flatnonzero((users[dataset.rows.user] == user) & (items[dataset.rows.item] == item))
    target = dataset.rows.item[[row]]
    (shown,) = dataset.assembly.prompter.shown(np.array([row]), target, np.array([False]))
    return dataset.assembly.prompter.text(row, target[0], shown).split("\n")


def stars(rating):
    return f"{'Yes' if rating >= 4 else 'No'}, {rating:g} star{'s' * (rating != 1)}"


QUESTION = "Does this person like the last movie of the list? Yes means 4 or 5 stars, No means fewer."


def test_ml_1m(tmp_path):
    dataset = load("ml-1m", tmp_path)
    assert prompt(dataset, "1", "9") == [
        "This person is male, 18 to 24 years old, an academic or educator.",
        QUESTION,
        "Toy Story (1995) (animation): Yes, 4 stars",
        "Misérables, Les (1995) (drama): Yes, 5 stars",
        "Shanghai Triad (Yao a yao yao dao waipo qiao) (1995) (sci-fi): No, 1 star",
        "No Year Here (film-noir): Yes, 5 stars",
        "Empty Genres (2000): No, 3 stars",
        '"Quoted" Title (1999) (comedy): No, 3 stars',
        '"Open Quote (1998) (war): Yes, 4 stars',
        "Spaces Inside (1997) (children's): No, 2 stars",
        "Story 9 (1969) (comedy):",
    ]
    # 30 behaviours are shown, the rest in summary.
    lines = prompt(dataset, "1", "40")
    assert lines[2].startswith("Not shown: a few more, ") and lines[3].startswith("Story 10 (1970) (drama): ")
    assert lines[-1] == "Story 40 (2000) (drama):" and len(lines) == 34
    assert (
        prompt(dataset, "6", next(iter(items_of(dataset, "6", 7))))[0]
        == "This person is female, 56 years old or older, a doctor or in health care."
    )
    assert prompt(dataset, "21", next(iter(items_of(dataset, "21", 7))))[0] == (
        "This person is male, under 18 years old, in another or no stated occupation."
    )
    sentence = dataset.assembly.prompter.template.sentence
    item = dataset.field2token_id[dataset.iid_field]
    text = dataset.config["retrieval_sentence"]
    assert sentence(item["1"], text) == "Toy Story (1995) is a movie of the genre animation."
    assert sentence(item["5"], text) == "Empty Genres (2000) is a movie."
    assert sentence(item["4"], text) == "No Year Here is a movie of the genre film-noir."
    # The first genre alone, for other models too.
    assert dataset.field2seqlen["genre"] == 1


def items_of(dataset, user, place):
    """The item of a user's row at a place, oldest first."""
    rows, users = dataset.rows, dataset.field2id_token[dataset.uid_field]
    own = np.flatnonzero(users[rows.user] == user)
    return dataset.field2id_token[dataset.iid_field][rows.item[own[[place]]]].tolist()


@pytest.mark.parametrize("own", ["class:token_seq", "genre:token_seq"])
def test_recboles_own_ml_1m(own, tmp_path):
    """RecBole's download has the same names; a file with another name for genres is told of by that name."""
    convert("ml-1m", ORIGINALS["ml-1m"](tmp_path / "original"), tmp_path / "data", report=lambda _: None)
    path = tmp_path / "data" / "ml-1m" / "ml-1m.item"
    path.write_text(path.read_text().replace("genre:token_seq", own))
    config = make_config("ReLLa", "ml-1m", config_dict={**SMALL, "data_path": str(tmp_path / "data")})
    if own.startswith("genre"):
        assert load_data(config)[0].field2type["genre"].value == "token_seq"
    else:
        with pytest.raises(DatasetError, match="load_col: expected columns of .*ml-1m.item, found genre, which it does not have"):
            load_data(config)


def test_ml_25m(tmp_path):
    dataset = load("ml-25m", tmp_path, train_pool=60, eval_rows=10)
    ratings = (tmp_path / "original" / "ratings.csv").read_text().splitlines()[1:12]
    names = [
        "Toy Story (1995) (animation)",
        "Misérables, Les (1995) (drama)",
        "Shanghai Triad (a, Yao yao yao dao waipo qiao) (1995) (sci-fi)",
        "No Year Here (film-noir)",
        "Empty Genres (2000)",
        '"Quoted" Title (1999) (comedy)',
        '"Open Quote (1998) (war)',
        "Spaces Inside (1997) (children)",
        "Fawlty Towers (1975) (comedy)",
        "Still On (2009)",
        "Café, Le (1990)",
    ]
    behaviours = [f"{name}: {stars(float(line.split(',')[2]))}" for name, line in zip(names, ratings)]
    assert behaviours[0] == "Toy Story (1995) (animation): No, 3.5 stars"
    question = "Does this person like the last movie of the list? Yes means at least 4 of 5 stars, No means fewer."
    assert prompt(dataset, "1", "10") == [question, *behaviours[:9], "Still On (2009):"]
    assert prompt(dataset, "1", "12") == [question, *behaviours, "Story 12 (1972) (drama):"]


def test_ml_latest_small(tmp_path):
    """All genres, in prompts and in the sentences that are encoded."""
    dataset = load("ml-latest-small", tmp_path)
    assert prompt(dataset, "1", "11")[:3] == [
        "Does this person like the last movie of the list? Yes means at least 4 of 5 stars, No means fewer.",
        "Toy Story (1995) (animation/children/comedy): No, 3.5 stars",
        "Misérables, Les (1995) (drama/musical): Yes, 4.5 stars",
    ]
    assert prompt(dataset, "1", "11")[-2:] == ["Still On (2009): No, 0.5 stars", "Café, Le (1990):"]
    sentence, item = dataset.assembly.prompter.template.sentence, dataset.field2token_id[dataset.iid_field]
    text = dataset.config["retrieval_sentence"]
    assert sentence(item["1"], text) == "Toy Story is a animation, children, comedy movie of 1995."
    assert sentence(item["4"], text) == "No Year Here is a film-noir, sci-fi movie."
    assert sentence(item["10"], text) == "Still On is a movie of 2009."


def book_lines(dataset, tmp_path, user):
    """A reader's behaviours in the order of the rows, from the original files, and the target's name."""
    rows, users, items = dataset.rows, *(dataset.field2id_token[field] for field in (dataset.uid_field, dataset.iid_field))
    own = np.flatnonzero(users[rows.user] == user)
    lines = (tmp_path / "original" / "BX-Book-Ratings.csv").read_text().replace('"', "").splitlines()
    given = {tuple(line.split(";")[:2]): line.split(";")[2] for line in lines[1:6] + lines[10:]}
    titles = {isbn: book[0] for isbn, book in BOOKS.items()}
    titles |= {"0743403843": 'Decipher "Now"', "0439095026": "Tell Me 'Why'; How"}
    lines = []
    for isbn in items[rows.item[own]]:
        rating = int(given[user, isbn])
        lines.append(f"{titles[isbn]}: {'Yes' if rating >= 5 else 'No'}, {f'{rating} of 10' if rating else 'not rated'}")
    return lines, items[rows.item[own[-1]]], titles[items[rows.item[own[-1]]]]


def test_book_crossing(tmp_path):
    dataset = load("book-crossing", tmp_path)
    question = (
        "Does this person like the last book of the list? Yes means a rating of at least 5 of 10, No means a lower one or none."
    )
    profiles = {
        "1": ["This person is 18 years old, from USA."],
        "2": [],
        "3": ["This person is from Russia."],
        "4": ["This person is 30 years old."],
        "5": ["This person is from Brazil."],
        "6": ["This person is from United Kingdom."],
        "12": ["This person is 32 years old, from Canada."],
    }
    for user, profile in profiles.items():
        if len(items_of_user(dataset, user)) < 6:
            continue
        lines, isbn, title = book_lines(dataset, tmp_path, user)
        assert prompt(dataset, user, isbn) == [*profile, question, *lines[:-1], f"{title}:"]
    assert sum(len(items_of_user(dataset, user)) >= 6 for user in profiles) >= 5
    sentence, item = dataset.assembly.prompter.template.sentence, dataset.field2token_id[dataset.iid_field]
    text = dataset.config["retrieval_sentence"]
    assert sentence(item["0743403843"], text) == (
        'The book Decipher "Now", ISBN 0743403843, by Stel Pavlou, of 2002, published by Simon & Schuster.'
    )
    assert sentence(item["039592720X"], text) == "The book L’Été “smart”, ISBN 039592720X, by Émile Šimek, published by Gallimard."


def items_of_user(dataset, user):
    return np.flatnonzero(dataset.field2id_token[dataset.uid_field][dataset.rows.user] == user)


def test_recboles_own_book_crossing(tmp_path):
    """RecBole's download has the location in full, years and ages as numbers, and words of authors and publishers."""
    ours = load("book-crossing", tmp_path)
    folder = tmp_path / "data" / "book-crossing"
    users, items = folder / "book-crossing.user", folder / "book-crossing.item"
    places = {"usa": "stockton, california, usa", "russia": "moscow, n/a, russia", "united kingdom": "london, n/a, united kingdom"}
    lines = [line.split("\t") for line in users.read_text().splitlines()[1:]]
    lines = ["\t".join([user, places.get(place, place or "n/a, n/a, n/a"), age]) for user, place, age in lines]
    users.write_text("\n".join(["user_id:token\tlocation:token_seq\tage:float", *lines]) + "\n")
    text = items.read_text().replace("Šimek\t\t", "Šimek\t0\t").replace("publication_year:token", "publication_year:float")
    items.write_text(
        text.replace("book_author:token\t", "book_author:token_seq\t").replace("publisher:token\n", "publisher:token_seq\n")
    )
    theirs, _ = load_data(make_config("ReLLa", "book-crossing", config_dict={**SMALL, "data_path": str(tmp_path / "data")}))
    assert theirs.field2type["age"].value == "float"
    for user in ("1", "2", "3", "4", "6", "12"):
        if len(items_of_user(ours, user)) >= 6:
            _, isbn, _ = book_lines(ours, tmp_path, user)
            assert prompt(theirs, user, isbn) == prompt(ours, user, isbn)
    text = ours.config["retrieval_sentence"]
    for isbn in BOOKS:
        sentences = [d.assembly.prompter.template.sentence(d.field2token_id["item_id"][isbn], text) for d in (ours, theirs)]
        assert sentences[0] == sentences[1]
