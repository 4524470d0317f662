"""Law 11: what serving renders is what training rendered, for every value that a request can carry, in JSON and in CSV."""

import csv
import io
import json

import numpy as np
import pytest
from helpers import write_atomic_files
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from recbole.config import Config
from recbole.data import create_dataset, data_preparation

from recbole_rella.prompt.words import Words
from recbole_rella.rows.fields import KINDS
from recbole_rella.rows.history import TEST
from recbole_rella.serving.catalogue import Catalogue
from recbole_rella.serving.requests import _lines
from recbole_rella.serving.scorer import Parts, Scorer

TEXT = {
    "profile": "{{ user.age }}|{{ user.income }}|{{ user.tags }}|{{ user.marks }}",
    "item": "{{ item.movie_title }}|{{ item.release_year }}|{{ item.price }}|{{ item['class'] }}|{{ item.sizes }}",
}
LAYOUT = (
    "{{ profile }}\n{% for b in behaviours %}{{ b.text }}: {{ b.answer }}, {{ b.rating }}, {{ b.time }}\n{% endfor %}"
    "{{ others.count }} {{ others.mean_rating }}\n{{ question }}\n{{ target.text }}:"
)
NUMBERS = (
    *("history.user_mean", "history.user_mean_10", "history.user_residual", "history.user_residual_30", "history.user_last"),
    *("history.user_spread", "history.user_count", "history.days_since_last", "history.similar_mean", "history.similar_residual"),
    "history.alike_residual",
    "history.tracked_residual",
    "history.tracked_label",
    *("history.same_class_mean", "history.same_class_residual", "history.same_class_count", "history.same_release_year_mean"),
    *("target.mean_rating", "target.count"),
)
TYPES = {
    "user": {"user_id": "token", "age": "token", "income": "float", "tags": "token_seq", "marks": "float_seq"},
    "item": {
        "item_id": "token", "movie_title": "token_seq", "release_year": "token", "price": "float", "class": "token_seq",
        "sizes": "float_seq",
    },
}  # fmt: skip
numbers = st.one_of(
    st.integers(0, 10**9),
    st.floats(0, 1e9, allow_nan=False).map(lambda x: round(x, 3)),
    st.sampled_from([0.1, 1234567, 12345.9, 19950125, 1e-5, 3.0, -0.0]),
)
words = st.sampled_from(["NA", "None", "null"]) | st.text("abcXYZéß日<>|&{}$%_#'*7 ", min_size=1, max_size=8).map(str.strip).filter(
    bool
)
# Names that are numbers have as many digits as they have.
names = words | st.sampled_from([7, 2**53 + 1, 12345678901234567, 10**25, -3])
VALUES = {"token": names, "float": numbers, "token_seq": st.lists(names, max_size=3), "float_seq": st.lists(numbers, max_size=3)}


def cell(value):
    """A value as an atomic file has it."""
    return " ".join(map(cell, value)) if isinstance(value, list) else repr(value) if isinstance(value, float) else str(value)


def write(root, users, items, rows):
    name, tiny = write_atomic_files(root, "words", [{"user_id": "1", "item_id": "1", "rating": 1, "timestamp": 1}])
    folder = root / name
    for suffix, table in (("user", users), ("item", items)):
        lines = ["\t".join(f"{field}:{kind}" for field, kind in TYPES[suffix].items())]
        lines += ["\t".join(cell(row[field]) for field in TYPES[suffix]) for row in table]
        (folder / f"{name}.{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    lines += ["\t".join(map(cell, row)) for row in rows]
    (folder / f"{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name, tiny


def scorer_of(dataset):
    """A scorer whose LLM is never asked."""
    assembly, config = dataset.assembly, dataset.config
    features = assembly.prompter.features
    parts = Parts(
        settings=config, texts=assembly.texts, catalogue=Catalogue.of(dataset), tokenizer=assembly.prompter.tokenizer,
        max_tokens=assembly.prompter.max_tokens, item_space=assembly.item_space, llm=None, answer_ids=assembly.answer_ids,
        device=config["device"], statistics=features and features.statistics, alike=features and features.alike.vectors[-1],
        taste=features and features.taste, likes=features and features.likes,
    )  # fmt: skip
    return Scorer(parts)


def through_json(request):
    return json.loads(json.dumps(request))


def through_csv(request, tmp):
    """As the file of requests is read."""
    columns = {"history": json.dumps(request["history"]), "candidates": json.dumps(request["candidates"])}
    columns |= {"time": cell(request["time"])} if "time" in request else {}
    columns |= {field: cell(value) for field, value in request["profile"].items()}
    file = io.StringIO()
    writer = csv.DictWriter(file, list(columns))
    writer.writeheader()
    writer.writerow(columns)
    path = tmp / "requests.csv"
    path.write_text(file.getvalue(), encoding="utf-8", newline="")
    ((_, make),) = _lines(path)
    return make()


@pytest.mark.parametrize("kind", KINDS)
# Not shrunk: each example builds a data set.
@settings(
    max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
@given(data=st.data())
def test_law_11_a_request_reads_as_the_row_does(kind, data, tmp_path_factory, llms):
    """Numbers of the training rows are those of an evaluated row, which comes after all of them, as a request does."""
    root = tmp_path_factory.mktemp("law11")
    users = [{"user_id": str(u), **{f: data.draw(VALUES[k]) for f, k in TYPES["user"].items() if f != "user_id"}} for u in (1, 2)]
    ids = data.draw(st.lists(st.sampled_from(["3", "20", "100", "x9", "007"]), min_size=3, max_size=5, unique=True))
    items = [{"item_id": i, **{f: data.draw(VALUES[k]) for f, k in TYPES["item"].items() if f != "item_id"}} for i in ids]
    for item in items:
        item["movie_title"] = ["The", *item["movie_title"]]
    times = st.one_of(st.integers(0, 5), st.just(-0.0), st.floats(-3, 5, allow_nan=False).map(lambda x: round(x, 2)))
    pairs = [(user["user_id"], item) for user in users for item in ids]
    scale = data.draw(st.sampled_from([[1, 2.5, 4, 4.1, 5], [1, 16777217, 1234567.89]]))
    rows = [(u, i, data.draw(st.sampled_from(scale)), data.draw(times)) for u, i in pairs]
    rows[0], rows[-1] = (*rows[0][:2], 1, rows[0][3]), (*rows[-1][:2], 5, rows[-1][3])
    name, tiny = write(root, users, items, rows)
    layout = root / "layout.jinja"
    layout.write_text(LAYOUT + " ".join(f"{{{{ {number} }}}}" for number in NUMBERS))
    config = Config(
        model="ReLLa",
        dataset=name,
        config_dict={
            **tiny, "llm": llms("llama"), "min_history": 0, "history_size": 3, "train_history": kind, "eval_history": kind,
            "prompt_template": str(layout), "prompt_profile": TEXT["profile"], "prompt_item": TEXT["item"],
            "prompt_rating": "{{ rating }}", "retrieval_sentence": "{{ item | fields }}", "cache_dir": str(root / "cache"),
            "eval_args": {"split": {"RS": [0.5, 0, 0.5]}, "order": "TO", "group_by": None, "mode": "labeled"},
            "epochs": 0, "max_prompt_tokens": 512,
            "history_order": data.draw(st.sampled_from(["time", "similarity", "recent_last"])),
            "history_window": data.draw(st.sampled_from(["latest", "anchored"])),
        },
    )  # fmt: skip
    dataset = create_dataset(config)
    data_preparation(config, dataset)
    scorer, prompter = scorer_of(dataset), dataset.assembly.prompter
    columns, by_pair = dataset.rows, {row[:2]: row for row in rows}
    for row_id in np.flatnonzero(columns.split == TEST):
        user, item = dataset.user_ids[columns.user[row_id]], dataset.item_ids[columns.item[row_id]]
        shown = prompter.shown(np.array([row_id]), columns.item[[row_id]], np.array([KINDS[kind]]))[0]
        expected = prompter.text(row_id, columns.item[row_id], shown)
        earlier = [by_pair[user, dataset.item_ids[columns.item[past]]] for past in dataset.histories.of(row_id)]
        history = data.draw(st.permutations([(i, rating, time) for _, i, rating, time in earlier]))
        profile = {f: v for f, v in next(u for u in users if u["user_id"] == user).items() if f != "user_id"}
        request = {"profile": profile, "history": history, "candidates": [item], "time": by_pair[user, item][3]}
        for carried in (through_json(request), through_csv(request, root)):
            asked = scorer.ask([carried])
            place, target = asked.rows, asked.targets
            again = asked.prompter.shown(place, target, np.array([KINDS[kind]]))[0]
            assert asked.prompter.text(place[0], target[0], again) == expected


def test_users_of_the_data_set_read_as_their_rows_do(movies, llms):
    """A user's own rows, those of one time included, in the order in which the data set has them."""
    name, tiny = movies
    config = Config(model="ReLLa", dataset=name, config_dict={**tiny, "llm": llms("llama"), "history_size": 40})
    dataset = create_dataset(config)
    data_preparation(config, dataset)
    scorer = Scorer(scorer_of(dataset).parts, config, dataset)
    asked = scorer.ask([{"user_id": "3", "candidates": ["101"]}])
    place = list(dataset.user_ids).index("3")
    past = dataset.histories.row_ids[dataset.histories.start[place] : dataset.histories.start[place + 1]]
    local = asked.prompter.rows
    assert [asked.prompter.item_ids[i] for i in local.item[: len(past)]] == [dataset.item_ids[i] for i in dataset.rows.item[past]]
    np.testing.assert_array_equal(local.rating[: len(past)], dataset.rows.rating[past])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"profile": {"age": True}}, "age: expected text or a number, found True"),
        ({"profile": {"age": {"a": 1}}}, "age: expected text or a number"),
        ({"profile": {"age": ["1", "2"]}}, "age: expected one value, found the list"),
        ({"history": [["101", 5, "yesterday"]]}, "expected a finite number as time, found 'yesterday'"),
        ({"history": [["101", 5, float("inf")]]}, "expected a finite number as time, found inf"),
        ({"history": [["101", True, 5]]}, "expected a finite number as rating, found True"),
        ({"history": [{"item": "101", "rating": 5, "time": 1, "stars": 2}]}, "expected .item, rating, time. or a dict"),
        ({"history": [["101", 5, 9]], "time": 8}, "time: expected one that is not before the last behaviour's .9., found 8"),
        ({"time": "now"}, "time: expected a finite number as time, found 'now'"),
        ({"candidates": [True]}, "item: expected an id of the data set movies, found True"),
    ],
)
def test_values_that_no_row_could_have(request_, message, movies, llms):
    name, tiny = movies
    config = Config(model="ReLLa", dataset=name, config_dict={**tiny, "llm": llms("llama")})
    dataset = create_dataset(config)
    data_preparation(config, dataset)
    with pytest.raises(ValueError, match=message):
        scorer_of(dataset).ask([{"candidates": ["101"], **request_}])


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("token", 12345678901234567, "12345678901234567"),
        ("token", 10**400, "1" + "0" * 400),
        ("token", -3, "-3"),
        ("token", 25.0, "25"),
        ("token_seq", [2**53 + 1, "x", 7], "9007199254740993 x 7"),
        ("token_seq", 2**53 + 1, "9007199254740993"),
        ("float", 2**53 + 1, "9007199254740992"),  # as the column of a file has it
    ],
)
def test_a_name_that_is_a_number_keeps_its_digits(kind, value, text):
    assert catalogue_of({"field": kind}).words("user", {"field": value}) == {"field": text}


def test_a_number_that_no_column_holds():
    with pytest.raises(ValueError, match="income: expected a number, as in the data set, found 1000"):
        catalogue_of({"income": "float"}).words("user", {"income": 10**400})


def catalogue_of(types):
    """One without items, whose users have fields of some types."""
    users = Words({field: np.array([""]) for field in types}, {})
    return Catalogue("own", {}, {"user": types, "item": {}}, np.array(["[PAD]"]), Words({}, {}), users, " ", None, False, None)


def test_no_requests(trained_run):
    assert list(Scorer.load(trained_run).score_many([])) == ["request", "candidate", "score", "rank"]
