"""What people get wrong first in their files: one message with file, line, column and remedy, or it works and says so."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY

from recbole_rella.atomic.errors import DatasetError
from recbole_rella.data.row_dataset import RowDataset
from recbole_rella.quick_start import load_data, make_config

GENERIC = {key: value for key, value in TINY.items() if not key.startswith("prompt_") and key != "retrieval_sentence"}
USERS = "user_id:token\tage:token\n" + "".join(f"u{u}\t{20 + u}\n" for u in range(4))
ITEMS = "item_id:token\ttitle:token_seq\tprice:float\n" + "".join(f"{i}\tThing {i}\t{i}.5\n" for i in range(10))
INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(
    f"u{n % 4}\t{n * 3 % 10}\t{1 + n % 5}\t{1000 + n}\n" for n in range(60)
)
FILES = {"inter": INTER, "user": USERS, "item": ITEMS}


def load(files=FILES, name="shop", **settings):
    folder = Path("data") / name
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in files.items():
        (folder / f"{name}.{suffix}").write_bytes(text if isinstance(text, bytes) else text.encode())
    return RowDataset(make_config("ReLLa", str(folder), config_dict={**GENERIC, **settings}))


def inter(old, new, count=1):
    return {**FILES, "inter": INTER.replace(old, new, count)}


def item(old, new, count=1):
    return {**FILES, "item": ITEMS.replace(old, new, count)}


BENCHMARK = {"train.inter": INTER, "valid.inter": INTER, "test.inter": INTER}
HEAD = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ROWS = INTER.removeprefix(HEAD)
MISTAKES = {
    # The file as a whole
    "a CSV": (
        inter("\t", ",", -1),
        {},
        r"shop.inter: expected a header of name:type between tabs, .* separated by a comma.*field_separator to ','",
    ),
    "semicolons": (item("\t", ";", -1), {}, r"shop.item: .* separated by a semicolon"),
    "two colons": (inter("\t", "::", -1), {}, r"shop.inter: .* separated by a '::'"),
    "spaces": (inter("\t", " ", -1), {}, r"shop.inter: .* separated by a space"),
    "tabs, where commas are set": (FILES, {"field_separator": ","}, r"between commas, found .* separated by a tab"),
    "an empty file": ({**FILES, "inter": ""}, {}, r"shop.inter: expected a header, as user_id:token, found an empty file"),
    "an empty .item": ({**FILES, "item": ""}, {}, r"shop.item: expected a header, as user_id:token, found an empty file"),
    "a header alone": ({**FILES, "inter": HEAD}, {}, r"shop.inter: expected lines after the header, found none"),
    "a header alone in .user": ({**FILES, "user": USERS.split("\n")[0]}, {}, r"shop.user: expected lines after the header"),
    "a blank first line": ({**FILES, "inter": "\n" + INTER}, {}, r"shop.inter: .* in the first line, found a blank line"),
    "UTF-16": ({**FILES, "item": ITEMS.encode("utf-16")}, {}, r"shop.item: expected utf-8 text, found UTF-16; save it as UTF-8"),
    "latin-1": (
        {**FILES, "item": ITEMS.replace("Thing 3", "Café").encode("latin-1")},
        {},
        r"shop.item: expected utf-8 text, found 1 line with other bytes \(line 5\).*latin-1",
    ),
    "latin-1 in the header": (
        {**FILES, "item": ITEMS.replace("title", "tïtle").encode("latin-1")},
        {},
        r"shop.item: expected utf-8 text, found 1 line .*line 1",
    ),
    "an unknown encoding": (FILES, {"encoding": "utf8-latin"}, "encoding: expected the name of an encoding, .* found 'utf8-latin'"),
    "a zero byte": (item("Thing 4", "Thing\0 4"), {}, r"shop.item: expected text, found a zero byte in line 6"),
    "a carriage return in a text": (item("Thing 4", "Thing\r4"), {}, r"shop.item: .* found a carriage return inside line 6"),
    # The header
    "no types": (
        inter(":token", "", -1) | {"inter": re.sub(":(token|float)", "", INTER)},
        {},
        r"shop.inter: .* found 'user_id\\titem_id\\trating\\ttimestamp', without types",
    ),
    "no header": ({**FILES, "inter": ROWS}, {}, r"shop.inter: .* found 'u0\\t0\\t1\\t1000', without types.*names each column"),
    "one type missing": (inter("rating:float", "rating"), {}, "found the column 'rating' without a type"),
    "an unknown type": (
        inter("rating:float", "rating:int"),
        {},
        "found the type 'int' of the column 'rating'.*did you mean float, or token for an id",
    ),
    "a type with a typo": (inter("rating:float", "rating:flaot"), {}, "found the type 'flaot'.*did you mean float?"),
    "a string type": (
        item("title:token_seq", "title:string"),
        {},
        "found the type 'string' of the column 'title'.*did you mean token, or token_seq",
    ),
    "a column named twice": (inter("rating:float", "user_id:token"), {}, "each once, found user_id more than once"),
    "a separator at the end of the header": (inter("timestamp:float", "timestamp:float\t"), {}, "found no name for column 5"),
    "a colon in a name": (
        inter("rating:float", "my:rating:float"),
        {},
        "found the column 'my:rating:float'; a name must not hold a colon",
    ),
    # Columns
    "one column": (
        {**FILES, "inter": "user_id:token\nu1\nu2\n"},
        {},
        "ITEM_ID_FIELD: expected a column item_id:token in .*shop.inter, found user_id:token",
    ),
    "no user ids": (
        inter("user_id:token", "userid:token"),
        {},
        "USER_ID_FIELD: expected a column user_id:token in .*shop.inter, found userid:token, item_id",
    ),
    "no item ids in .item": (
        item("item_id", "id"),
        {},
        "ITEM_ID_FIELD: expected a column item_id:token in .*shop.item, found id:token",
    ),
    "other names in the settings": (FILES, {"USER_ID_FIELD": "uid"}, "USER_ID_FIELD: expected a column uid:token in .*shop.inter"),
    "ids that are floats": (
        inter("item_id:token", "item_id:float"),
        {},
        "ITEM_ID_FIELD: .* found item_id:float. Ids are names, numbers too",
    ),
    "load_col of a column that is not there": (
        FILES,
        {"load_col": {"inter": ["user_id", "item_id", "time"]}},
        "load_col: expected columns of .*shop.inter, found time, which it does not have",
    ),
    "load_col without ids": (
        FILES,
        {"load_col": {"inter": ["item_id", "rating"]}},
        "load_col: expected 'user_id', the ids, among the columns",
    ),
    "load_col without the .inter file": (
        FILES,
        {"load_col": {"item": ["item_id"]}},
        "load_col: expected columns of the .inter file",
    ),
    "load_col as a list": (
        FILES,
        {"load_col": ["user_id", "item_id"]},
        r"load_col: expected a dictionary of columns by file, .* found \['user_id', 'item_id'\]",
    ),
    "load_col as text": (FILES, {"load_col": {"inter": "user_id"}}, "load_col: expected a dictionary of columns by file"),
    "load_col and unload_col": (
        FILES,
        {"load_col": {"inter": ["user_id"]}, "unload_col": {"inter": ["rating"]}},
        "load_col, unload_col: expected one of them for a file, found both for .inter",
    ),
    "unload_col of the ids": (
        FILES,
        {"unload_col": {"user": ["user_id"]}},
        "load_col: expected 'user_id', the ids, among the columns of .*shop.user",
    ),
    # Lines
    "a tab in a title": (
        item("Thing 4", "Thing\t4"),
        {},
        r"shop.item: expected 3 cells in a line, .* found 1 line with more \(line 6 has 4\)",
    ),
    "a tab in a title in quotes": (item("Thing 4", '"Thing\t4"'), {}, r"found 1 line with more \(line 6 has 4\)"),
    "a separator at the end of each line": (
        {**FILES, "item": ITEMS.replace(".5\n", ".5\t\n")},
        {},
        r"found 10 lines with more \(line 2 has 4",
    ),
    # Numbers
    "dates": (
        inter("\t1003\n", "\t2021-01-01 10:00\n"),
        {},
        r"shop.inter: expected numbers in the column timestamp:float, found 1 cell with something else "
        r"\(line 5: '2021-01-01 10:00'\). Write times as numbers",
    ),
    "words": (inter("\t3\t1002", "\tgood\t1002"), {}, r"column rating:float, found 1 cell .*\(line 4: 'good'\)"),
    "decimal commas": (inter("\t3\t1002", "\t3,5\t1002"), {}, r"\(line 4: '3,5'\). Write a decimal point"),
    "words in a float_seq": (
        item("price:float", "price:float_seq") | {"item": ITEMS.replace("price:float", "price:float_seq").replace("4.5", "4.5 x")},
        {},
        r"shop.item: expected numbers in the column price:float_seq, found 1 cell .*line 6: '4.5 x'",
    ),
    "a missing time": (
        inter("\t1003\n", "\t\n"),
        {},
        r"timestamp: expected a time in every row, found 1 row without one \(line 5\)",
    ),
    "an infinite time": (
        inter("\t1003\n", "\tinf\n"),
        {},
        r"timestamp: expected a time .* found 1 row with an infinite one \(line 5\)",
    ),
    "times in another unit": (inter("\t1003\n", "\t1e19\n"), {}, "timestamp: expected times below 2.63, found 1e.19"),
    "a missing rating": (
        inter("\t3\t1002", "\t\t1002"),
        {},
        r"rating: expected a rating in every row, found 1 row without one \(line 4\)",
    ),
    "an infinite rating": (
        inter("\t3\t1002", "\t-inf\t1002"),
        {"threshold": None},
        r"rating: expected a rating .* found 1 row with an infinite one \(line 4\)",
    ),
    "a rating beyond float64": (
        inter("\t3\t1002", "\t1e400\t1002"),
        {},
        "rating: expected a rating .* found 1 row with an infinite one",
    ),
    # Ids
    "float ids beside whole ones": (
        {**FILES, "inter": re.sub(r"\t(\d)\t", r"\t\1.0\t", INTER, count=9)},
        {},
        r"item_id: expected ids written alike .* found \d ids .* \('0.0' and '0', '3.0' and '3'",
    ),
    "float ids in .item": (
        {**FILES, "item": re.sub(r"\n(\d)\t", r"\n\1.0\t", ITEMS)},
        {},
        r"found 10 ids of the .inter file .* \('0' and '0.0'",
    ),
    "ids with zeros before": ({**FILES, "item": re.sub(r"\n(\d)\t", r"\n00\1\t", ITEMS)}, {}, r"found 10 ids .* \('0' and '000'"),
    "float ids, unlisted rows left out": (
        {**FILES, "inter": re.sub(r"\t(\d)\t", r"\t\1.0\t", INTER)},
        {"filter_inter_by_user_or_item": True},
        "item_id: expected ids written alike",
    ),
    "spaces around ids": (
        inter("u0\t", "u0 \t", 3),
        {},
        r"user_id: expected ids without white space around them, found 1 id with some \('u0 '\)",
    ),
    # Files that are not there
    "two parts": (
        {**FILES, **BENCHMARK},
        {"benchmark_filename": ["train", "test"]},
        r"benchmark_filename: expected the names of three parts, .* found \['train', 'test'\]",
    ),
    "a part that is not there": (
        {**FILES, **BENCHMARK},
        {"benchmark_filename": ["train", "dev", "test"]},
        r"benchmark_filename: expected the files shop.dev.inter in .*, found \['shop.inter'",
    ),
    "parts with other columns": (
        {**FILES, **BENCHMARK, "test.inter": INTER.replace("rating", "stars")},
        {"benchmark_filename": ["train", "valid", "test"]},
        "benchmark_filename: expected the same columns in all parts, .*stars",
    ),
    "no .inter": ({"item": ITEMS, "user": USERS}, {}, "expected.*shop.inter|<name>.inter"),
    "an additional file that is not there": (
        FILES,
        {"additional_feat_suffix": ["emb"]},
        "additional_feat_suffix: expected the files shop.emb",
    ),
    # Filters
    "a threshold that names no column, and duplicates": (
        FILES,
        {"threshold": 4, "rm_dup_inter": "first"},
        "threshold: expected one column and the lowest value that is liked, .* found 4",
    ),
    "an interval that is none": (
        FILES,
        {"val_interval": {"rating": "3 to 5"}},
        "val_interval.*: expected intervals as .* found '3 to 5'",
    ),
    "an interval the wrong way round": (FILES, {"user_inter_num_interval": "[9,3]"}, r"expected intervals as .* found \[9, 3\]"),
    "one of two intervals": (FILES, {"val_interval": {"rating": "[1,2];3"}}, r"expected intervals as .* found '\[1,2\];3'"),
    "a filter of a column that is not there": (
        FILES,
        {"val_interval": {"stars": "[3,5]"}},
        "val_interval: expected loaded columns, found 'stars'; loaded are user_id",
    ),
    "a filter of tokens that is one text": (
        FILES,
        {"val_interval": {"age": "20"}},
        r"val_interval: expected for age:token a list of the texts that are kept, as \['a', '7'\], found '20'",
    ),
    "a filter of tokens by numbers": (
        FILES,
        {"val_interval": {"age": [20, "21"]}},
        r"val_interval: expected for age:token a list of the texts .* found \[20, '21'\]",
    ),
    "a filter of sequences": (
        FILES,
        {"val_interval": {"title": ["Thing"]}},
        "val_interval: expected columns of one value a line, found title:token_seq; filter the lines",
    ),
    "no separator in sequences": (
        FILES,
        {"seq_separator": ""},
        "seq_separator: expected what stands between .* found ''",
    ),
    "sequences without a separator": (FILES, {"seq_separator": None}, "seq_separator: expected what stands .* found None"),
    "filters that leave nothing": (
        FILES,
        {"user_inter_num_interval": "[99,inf)"},
        "Expected rows after RecBole's filters, found none. 60 rows in shop.inter, 0 kept: 60 removed by user_inter_num_interval",
    ),
    "filters that leave no item": (
        FILES,
        {"val_interval": {"price": "[99,inf)"}},
        "Expected rows after RecBole's filters, found none. .* 60 removed by val_interval",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message(mistake):
    files, settings, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message) as error:
        load(files, **settings)
    assert type(error.value).__name__ in ("DatasetError", "ConfigError") and "\n" not in str(error.value)


WORKS = {
    "a byte order mark": ({suffix: "\ufeff" + text for suffix, text in FILES.items()}, {}),
    "line ends of Windows": ({suffix: text.replace("\n", "\r\n") for suffix, text in FILES.items()}, {}),
    "line ends of old Macs": ({suffix: text.replace("\n", "\r") for suffix, text in FILES.items()}, {}),
    "no line end": ({suffix: text.rstrip("\n") for suffix, text in FILES.items()}, {}),
    "blank lines": ({suffix: text.replace("\n", "\n\n") for suffix, text in FILES.items()}, {}),
    "spaces in the header": (inter("\titem_id:token", "\t item_id:token "), {}),
    "all in quotes": ({suffix: re.sub(r"[^\t\n]+", r'"\g<0>"', text) for suffix, text in FILES.items()}, {}),
    "another separator": ({suffix: text.replace("\t", "||") for suffix, text in FILES.items()}, {"field_separator": "||"}),
    "a separator that means something in a pattern": (
        {s: t.replace("\t", "|") for s, t in FILES.items()},
        {"field_separator": "|"},
    ),
    "UTF-16 that is said": ({suffix: text.encode("utf-16") for suffix, text in FILES.items()}, {"encoding": "utf-16"}),
}


@pytest.mark.parametrize("kind", WORKS)
def test_what_means_the_same_reads_the_same(kind):
    files, settings = WORKS[kind]
    plain, found = load(), load(files, name="other", **settings)
    assert found.identity() == plain.identity() and found.listed == plain.listed
    for feat in ("user_feat", "item_feat"):
        for field in getattr(plain, feat):
            for a, b in zip(getattr(found, feat)[field], getattr(plain, feat)[field]):
                np.testing.assert_array_equal(a, b)


def said(caplog):
    (message,) = [record for record in caplog.records if " rows in " in record.getMessage()]
    return message.levelname, message.getMessage()


def test_nothing_odd_is_no_warning(caplog):
    caplog.set_level(logging.INFO)
    load()
    expected = "shop: 60 rows in shop.inter, 60 kept. 52 of the kept rows are divided into splits; the others are history alone"
    assert said(caplog) == ("INFO", f"{expected} (min_history: 2).")


UNLISTED = {**FILES, "inter": INTER + "u9\t77\t4\t2000\nu1\t77\t4\t2001\n"}
ODD = {
    "rows without ids": (
        inter("u2\t6\t3", "\t6\t3") | {"inter": INTER.replace("u2\t6\t3\t", "\t6\t3\t", 1).replace("u0\t2\t5\t", "u0\t\t5\t", 1)},
        {},
        58,
        r"60 rows in shop.inter, 58 kept: 2 without user_id or item_id \(line 4, 6\)\.",
    ),
    "lines of .item without an id": (
        item("4\tThing", "\tThing"),
        {},
        60,
        r"Left out of shop.item: 1 line without item_id .*line 6\)",
    ),
    "repeated items": (
        item("8\tThing 8", "4\tOther"),
        {},
        60,
        r"The item_id of an earlier line, which stays, in 1 line of shop.item \(4 in line 10\)",
    ),
    "short lines": (
        item("\t4.5", "") | {"item": ITEMS.replace("\t4.5", "")},
        {},
        60,
        r"Fewer cells than the header in 1 line of shop.item \(line 6\)",
    ),
    "users and items without features": (
        UNLISTED,
        {},
        62,
        r"62 kept\. No line in the .user file for 1 of 5 users in the rows \(u9\): their rows are kept, .* 1 of 11 items .*\(77\)",
    ),
    "repeated rows": (
        inter("\t1001\n", "\t1001\nu1\t3\t2\t1001\nu1\t3\t5\t1001\n"),
        {},
        62,
        "The user, item and time of an earlier row, .* in 2 rows, of which 1 contradict it",
    ),
    "equal times": ({**FILES, "inter": re.sub(r"\t1\d{3}\n", "\t1000\n", INTER)}, {}, 60, "All rows have the same timestamp"),
    "ratings that are tokens": (
        inter("rating:float\t", "label:float\trating:token\t")
        | {
            "inter": HEAD.replace("rating:float", "label:float\trating:token")
            + re.sub(r"\t(\d)\t(1\d+)\n", r"\t1\tgood \1\t\2\n", ROWS)
        },
        {"threshold": None},
        60,
        "rating is no float column",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_odd_is_said_once(kind, caplog):
    files, settings, kept, message = ODD[kind]
    dataset = load(files, **settings)
    level, text = said(caplog)
    assert level == "WARNING" and re.search(message, text), text
    assert len(dataset.rows) == kept


ASKED = {
    "rm_dup_inter": (
        inter("\t1001\n", "\t1001\nu1\t3\t5\t1005\n"),
        {"rm_dup_inter": "first"},
        None,
        r"removed by rm_dup_inter: first \(line ",
    ),
    "val_interval": (
        FILES,
        {"val_interval": {"rating": "[2,inf)"}},
        48,
        r"12 removed by val_interval \(line 2, 7, 12, 17, 22, \.\.\.\)",
    ),
    "val_interval of items": (FILES, {"val_interval": {"price": "[2,inf)"}}, 48, r"12 removed by val_interval \(line "),
    "val_interval of users": (FILES, {"val_interval": {"age": ["20", "21", "22"]}}, 45, r"15 removed by val_interval \(line 5, 9"),
    "user_inter_num_interval": (
        UNLISTED,
        {"user_inter_num_interval": "[3,inf)"},
        61,
        r"1 removed by user_inter_num_interval \(line 62\)",
    ),
    "filter_inter_by_user_or_item": (
        UNLISTED,
        {"filter_inter_by_user_or_item": True},
        60,
        r"2 removed by filter_inter_by_user_or_item, as their user or item has no line of its own \(line 62, 63\)",
    ),
}


@pytest.mark.parametrize("key", ASKED)
def test_filters_say_what_they_removed(key, caplog):
    caplog.set_level(logging.INFO)
    files, settings, kept, message = ASKED[key]
    dataset = load(files, **settings)
    _, text = said(caplog)
    assert re.search(message, text), text
    assert kept is None or len(dataset.rows) == kept
    read, left = map(int, re.search(r"(\d+) rows in shop.inter, (\d+) kept", text).groups())
    assert left == len(dataset.rows) and read - left == sum(int(n) for n in re.findall(r"(\d+) removed by", text))


@pytest.mark.parametrize("model", ["ReLLa", "FM", "Tree"])
def test_no_model_leaves_out_rows_that_nobody_asked_to(model, caplog):
    """RecBole's default leaves those out whose user or item has no line: here a fifth of all, in its own models once."""
    load({**UNLISTED, "item": "".join(ITEMS.splitlines(keepends=True)[:9])})
    caplog.clear()
    config = make_config(model, "data/shop", config_dict={**GENERIC, "history_fields": ["user_mean"], "load_col": None})
    dataset, _ = load_data(config)
    assert len(dataset.rows) == 62
    level, text = said(caplog)
    assert level == "WARNING" and "62 rows in shop.inter, 62 kept. No line in the .user file" in text
    assert "their rows are kept" in text and "filter_inter_by_user_or_item: True leaves them out" in text


def test_lines_are_named_after_filters_and_in_parts():
    """An error about a row that is left names its line, whatever was removed before it."""
    files = {**FILES, "inter": INTER.replace("u0\t0\t1\t1000\n", "u0\t0\t1\t1000\n\n").replace("\t1013\n", "\t\n")}
    with pytest.raises(DatasetError, match=r"found 1 row without one \(line 16\)"):
        load(files, val_interval={"rating": "[2,inf)"})
    parts = {**BENCHMARK, "valid.inter": INTER.replace("u0\t0\t1\t1000\n", "\t0\t1\t1000\n").replace("\t1013\n", "\t\n")}
    with pytest.raises(DatasetError, match=r"found 1 row without one \(line 15 of shop.valid.inter\)"):
        load({**FILES, **parts}, name="shop", benchmark_filename=["train", "valid", "test"])


LABELS = {
    "text": ("label:token", "liked", {}, "label: expected a float column of labels 0 and 1, found label:token; write label:float"),
    "missing": ("label:float", "", {}, r"label: expected a label in every row, found 1 row without one \(line 5\)"),
    "infinite": ("label:float", "inf", {}, "label: expected a label in every row, found 1 row with an infinite one"),
    "another number": (
        "label:float",
        "2",
        {},
        r"label: expected labels 0 and 1, found \[0.0, 1.0, 2.0\] \(1 row, line 5\); set threshold",
    ),
    "words": ("label:float", "yes", {}, r"shop.inter: expected numbers in the column label:float, .*line 5: 'yes'"),
    "beside a threshold": (
        "label:float",
        "1",
        {"threshold": {"rating": 4}},
        "threshold: expected no column 'label' in the .inter file, as labels are made of rating, found both",
    ),
    "a threshold on a token": (
        "watched:token",
        "1",
        {"threshold": {"watched": 1}},
        "threshold: expected a float column of the .inter file, found 'watched' and .*watched:token",
    ),
    "a threshold on what is not there": (
        "label:float",
        "1",
        {"threshold": {"stars": 1}},
        "threshold: expected a float column of the .inter file, found 'stars' and user_id:token",
    ),
    "a threshold on what is not loaded": (
        "watched:float",
        "1",
        {"threshold": {"watched": 1}, "unload_col": {"inter": ["watched"]}},
        "found 'watched' and .*; add it to load_col",
    ),
    "a threshold on a feature": (
        "watched:float",
        "1",
        {"threshold": {"price": 1}},
        "threshold: expected a float column of the .inter file, found 'price'",
    ),
    "two thresholds": (
        "watched:float",
        "1",
        {"threshold": {"rating": 4, "watched": 1}},
        "threshold: expected one column and the lowest value that is liked",
    ),
    "a threshold that is text": (
        "watched:float",
        "1",
        {"threshold": {"watched": "1"}},
        "threshold: expected one column .* found {'watched': '1'}",
    ),
    "a threshold without a column": ("watched:float", "1", {"threshold": 4}, "threshold: expected one column .* found 4"),
    "an infinite threshold": (
        "watched:float",
        "1",
        {"threshold": {"watched": float("nan")}},
        "threshold: expected one column .* found {'watched': nan}",
    ),
    "a value missing": (
        "watched:float",
        "",
        {"threshold": {"watched": 1}},
        r"watched: expected a value in every row, found 1 row without one \(line 5\)",
    ),
    "an infinite value": (
        "watched:float",
        "inf",
        {"threshold": {"watched": 1}},
        "watched: expected a value in every row, found 1 row with an infinite one",
    ),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_are_none(kind):
    column, value, settings, message = LABELS[kind]
    lines = [f"{line}\t{n % 2}" for n, line in enumerate(ROWS.splitlines())]
    lines[3] = lines[3].rpartition("\t")[0] + f"\t{value}"
    files = {**FILES, "inter": HEAD.rstrip("\n") + f"\t{column}\n" + "\n".join(lines) + "\n"}
    with pytest.raises(DatasetError, match=message):
        load(files, **{"threshold": None, **settings}).build()


def test_labels_stay_as_they_are_where_recbole_rescales():
    """normalize_all makes 1 of a column that is 0 throughout."""
    files = {**FILES, "inter": INTER.replace("rating", "label").replace("\n", "\r\n")}
    files["inter"] = re.sub(r"\t\d\t(1\d{3})", r"\t0\t\1", files["inter"])
    dataset = load(files, threshold=None, normalize_all=True)
    assert not dataset.rows.label.any() and not dataset.inter_feat["label"].any()


def test_the_only_inter_file_is_read_with_a_word(caplog):
    load(name="shop")
    Path("data/shop").rename("data/mine")
    RowDataset(make_config("ReLLa", "data/mine", config_dict=GENERIC))
    assert "there is no mine.inter in data/mine; shop.inter is read, the only one there." in caplog.text.replace(
        str(Path.cwd()) + "/", ""
    )


def test_filters_of_files_in_parts_are_said_to_do_nothing(caplog):
    parts = {"benchmark_filename": ["train", "valid", "test"], "val_interval": {"rating": "[4,5]"}}
    assert len(load({**FILES, **BENCHMARK}, **parts).rows) == 180
    assert "With benchmark_filename rows are not filtered: val_interval have no effect." in said(caplog)[1]


@pytest.mark.parametrize("data_path", ["./data", "data/", "./data//", "../{here}/data"])
def test_data_paths_of_any_spelling(data_path):
    load()
    config = make_config("ReLLa", "shop", config_dict={**GENERIC, "data_path": data_path.format(here=Path.cwd().name)})
    assert len(RowDataset(config).rows) == 60
