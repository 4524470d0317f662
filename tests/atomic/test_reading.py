"""Atomic files are read fast, by their separator alone, and as RecBole reads them to the last bit where quotes do not matter."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction

from recbole_rella.atomic import reading
from recbole_rella.atomic.errors import DatasetError
from recbole_rella.atomic.reading import AtomicFile
from recbole_rella.atomic.source import Source
from recbole_rella.atomic.writing import Table, one_line, write_atomic_files
from recbole_rella.data.row_dataset import RowDataset, _Columns
from recbole_rella.quick_start import make_config

HEAD = "u:token\ti:token\tr:float\n"
_random = np.random.default_rng(0)
_decimals = [repr(float(x)) for x in _random.random(2000) * 10.0 ** _random.integers(-12, 12, 2000)]
# Text of the file, and whether the C parser may read it.
FILES = {
    "plain": (HEAD + "7\ta b\t3.5\n8\tc\t4\n", True),
    "empty cells": (HEAD + "1\t\t3\n\t2\t\n3\t3\t4\n", True),
    "missing numbers by name": (HEAD + "1\t1\tnan\n2\t2\tNULL\n3\t3\t-nan\n4\t4\tn/a\n5\t5\t#N/A\n", True),
    "short rows": (HEAD + "1\t2\n3\n4\t5\t6\n", True),
    "blank lines": (HEAD + "\n1\t2\t3\n   \n4\t5\t6\n\t\t\n\t \t\n", True),
    "numbers as ids": (HEAD + "007\t1.0\t3\n 7 \t1e3\t4\n", True),
    "utf-8": (HEAD + "é\t日本\t1\n\u2028\t\x0b\t2\n\x85\t\x1c\t3\n", True),
    "line ends of Windows": (HEAD.replace("\n", "\r\n") + "1\t2\t3\r\n", True),
    "line ends of old Macs": (HEAD.replace("\n", "\r") + "1\t2\t3\r4\t5\t6", True),
    "no line end": (HEAD + "1\t2\t3", True),
    "many digits": (HEAD + "".join(f"1\t2\t{x}\n" for x in [*_decimals, "0.123456789012345678901234567890"]), True),
    "whole numbers": (HEAD + "".join(f"1\t2\t{x}\n" for x in _random.integers(2**53, size=2000)), True),
    "large whole numbers": (HEAD + "".join(f"1\t2\t{x}\n" for x in _random.integers(2**53, 2**63, size=2000)), False),
    "odd numbers": (HEAD + "1\t1\t inf\n2\t2\t1e5\n3\t3\t 1.5 \n4\t4\t+5\n5\t5\t-Infinity\n6\t6\t1.\n7\t7\t.5\n", False),
    "numbers of Python": (HEAD + "1\t1\t1_000\n", False),
    "beyond the range": (HEAD + "1\t1\t1e400\n2\t2\t1e-400\n3\t3\t4.9e-324\n", False),
    "truth values": (HEAD + "1\tTrue\tTrue\n2\tFalse\tFalse\n", True),
    "no numbers": (HEAD + "1\t1\t0x10\n", False),
    "decimal commas": (HEAD + "1\t1\t1,5\n", False),
    "a column that is not asked for": (HEAD[:-1] + "\tx:token\n1\t2\t3\tfoo\n4\t5\t6\n", True),
    "a mark at the beginning": ("\ufeff" + HEAD + "1\t2\t3\n", True),
    "several characters between": (HEAD.replace("\t", "::") + "1::2::3\n4::5::6\n", True),
    "another character between": (HEAD.replace("\t", "|") + "1|2|3\n4|a\tb|6\n", True),
}


def separator_of(text):
    return next((d for d in ("::", "|") if d in re.split("[\r\n]", text)[0]), "\t")


def ours(path, separator="\t", encoding="utf-8", fields=None):
    file = AtomicFile(path, separator, encoding)
    names = [f"{name}:{kind}" for name, kind in file.columns.items()]
    wanted = [name for name in names if fields is None or name in fields]
    return file, file.read(names, wanted, {f: np.float64 if f.endswith(":float") else str for f in wanted})


def write(text, path="x.inter", encoding="utf-8"):
    Path(path).write_bytes(text.encode(encoding))
    return path


def outcome(read, *arguments, **options):
    try:
        return read(*arguments, **options)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("name", FILES)
def test_every_file_without_quotes_is_read_as_recbole_reads_it(name, monkeypatch):
    text, by_c = FILES[name]
    delimiter = separator_of(text)
    fields = [f for f in re.split("[\r\n]", text)[0].lstrip("\ufeff").split(delimiter) if f != "x:token"]
    options = {
        "delimiter": delimiter,
        "usecols": fields,
        "encoding": "utf-8",
        "engine": "python",
        "dtype": {f: np.float64 if f.endswith("float") else str for f in fields},
    }
    # RecBole fails at a mark at the beginning.
    expected = outcome(pd.read_csv, write(text.lstrip("\ufeff"), "plain.inter"), **options)
    engines, read_csv = [], pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda *a, **o: engines.append(o["engine"]) or read_csv(*a, **o))
    found = outcome(ours, write(text), delimiter, fields=fields)
    if isinstance(expected, str):
        assert found == expected
    else:
        file, found = found
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
        for column in expected.select_dtypes("float64"):
            np.testing.assert_array_equal(found[column].to_numpy().view(np.int64), expected[column].to_numpy().view(np.int64))
        assert file.num_rows == len(found)
    assert (engines[-1] == "c") == by_c


_texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\t\0\x1f"), max_size=6) | st.text('"a ', max_size=6)


def plain_rows(text, width, separator="\t"):
    """A reader that knows of separators and line ends alone."""
    lines = [line for line in text.split("\n")[1:] if line.strip(" \t") or separator in line]
    return [line.split(separator) + [""] * (width - len(line.split(separator))) for line in lines]


def missing_as_empty(table):
    return [["" if pd.isna(value) else value for value in row] for row in table.itertuples(index=False)]


@given(st.lists(st.tuples(_texts, _texts, _texts), min_size=1, max_size=8), st.sampled_from(["\t", "::"]))
def test_a_quote_joins_neither_lines_nor_cells(rows, separator):
    """In a file that no CSV writer wrote: a quote in the middle of a cell."""
    rows = [[cell.replace(":", "") for cell in row] for row in [*rows, ("x", 'a"b', "y")]]
    text = separator.join(["a:token", "b:token", "c:token"]) + "\n" + "".join(separator.join(row) + "\n" for row in rows)
    file, found = ours(write(text), separator)
    expected = plain_rows(text, 3, separator)
    assert missing_as_empty(found) == expected and file.num_rows == len(expected) and not file.unquoted


@given(st.lists(st.tuples(_texts, _texts), min_size=1, max_size=8), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_a_csv_writer_wrote_is_read_back(rows, quoting):
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t", lineterminator="\n", quoting=quoting)
    writer.writerow(["a:token", "b:token_seq"])
    writer.writerows([("x", *row) for row in rows])
    text = out.getvalue().replace("a:token", "i:token\ta:token", 1).replace('"i:token\ta', '"i:token"\t"a', 1)
    _, found = ours(write(text))
    assert missing_as_empty(found) == [["x", *row] for row in rows]


@given(st.lists(_texts | st.just('"Heroes"') | st.just('""'), min_size=1, max_size=6))
def test_what_our_converters_write_is_read_back(titles):
    titles = [one_line(title) for title in titles]
    rows = [(str(number), title) for number, title in enumerate(titles)]
    source = Source("nothing", "utf-8")
    tables = {
        "item": Table(source, ("item_id:token", "title:token_seq"), rows),
        "inter": Table(source, ("user_id:token", "item_id:token"), [("1", "1")]),
    }
    write_atomic_files(Path("own"), "own", tables)
    _, found = ours("own/own.item")
    assert missing_as_empty(found) == [[number, title] for number, title in rows]
    # And by RecBole alone, whose parser takes quotes for a CSV writer's, but for words that pandas takes for nothing (null, NA).
    alone = pd.read_csv(
        "own/own.item", delimiter="\t", engine="python", dtype=str, encoding="utf-8", keep_default_na=False, na_values=[""]
    )
    pd.testing.assert_frame_equal(found, alone)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (['"Heroes" of the Hill', "say hi"], None),
        (['12" single', '"open'], None),
        (['"whole"', 'not "whole"'], None),
        (['"'], None),
        (['"a "" b"', "plain", '""'], ['a " b', "plain", ""]),
        (['"a" b"'], None),
    ],
)
def test_quotes_are_judged_by_file(cells, expected):
    file, found = ours(write("i:token\tt:token\n" + "".join(f"{n}\t{cell}\n" for n, cell in enumerate(cells))))
    assert [row[1] for row in missing_as_empty(found)] == (cells if expected is None else expected)
    assert file.unquoted == (expected is not None)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8-sig"])
def test_other_encodings(encoding):
    file, found = ours(
        write("i:token\tt:token\n1\tCafé\n2\t“”\n".replace("“”", "" if encoding == "latin-1" else "“”"), "x", encoding),
        "\t",
        encoding,
    )
    assert found["t:token"][0] == "Café" and file.columns == {"i": "token", "t": "token"} and file.num_rows == 2


def test_blocks_of_any_size_give_the_same(monkeypatch):
    text = "i:token\tt:token\tr:float\r\n" + "".join(f"{n}\té {n}\t{n / 7}\r\n" + "\r\n" * (n % 5 == 0) for n in range(300))
    whole, expected = ours(write(text))
    for size in (1, 7, 64, 1000):
        monkeypatch.setattr(reading, "_BLOCK", size)
        monkeypatch.setattr(AtomicFile._blocks, "__defaults__", (size,))
        file, found = ours("x.inter")
        pd.testing.assert_frame_equal(found, expected)
        np.testing.assert_array_equal(file.line(np.arange(300)), whole.line(np.arange(300)))


@given(
    st.lists(st.sampled_from(["1\t2\t3", "", "  ", "4", "5\t6"]), min_size=1, max_size=30).filter(
        lambda lines: any(x.strip() for x in lines)
    )
)
def test_line_numbers_and_short_lines(lines):
    file, found = ours(write(HEAD + "\n".join(lines) + "\n"))
    kept = [number for number, line in enumerate(lines, start=2) if line.strip()]
    assert file.line(np.arange(len(found))).tolist() == kept
    short = [number for number in kept if lines[number - 2].count("\t") < 2]
    assert file.num_short == len(short) and file.short == short[:5]


def test_one_column_named_in_two_words():
    assert AtomicFile(write("full name:token\nx y\n")).columns == {"full name": "token"}


def test_longer_lines_are_an_error_with_their_numbers():
    lines = ["1\t2\t3", "1\t2\t3\t4", "", "1\t2\t3\t", '1\t"2\t2"\t3']
    message = r"x.inter: expected 3 cells in a line, .* found 3 lines with more \(line 3 has 4, line 5 has 4, line 6 has 4\)"
    with pytest.raises(DatasetError, match=message):
        AtomicFile(write(HEAD + "\n".join(lines)))
    with pytest.raises(DatasetError, match=r"found 30 lines with more \(line 2 has 4, line 3 has 4, .*, \.\.\.\)"):
        AtomicFile(write(HEAD + "1\t2\t3\t4\n" * 30))


@pytest.mark.parametrize("separator", ["\t", "::"])
def test_a_data_set_is_recboles(separator, movies):
    """Sequences, features and ids after remapping; whatever is not read is RecBole's own."""
    name, tiny = movies
    folder = Path(tiny["data_path"]) / name
    items = (folder / f"{name}.item").read_text()
    (folder / f"{name}.item").write_text(items + "999\t\t\tDrama  War\n998\tÉtude, the\t1999\t\n")
    for path in folder.iterdir():
        path.write_text(path.read_text().replace("\t", separator))
    config = make_config("ReLLa", name, config_dict={**tiny, "field_separator": separator, "min_history": 0})
    ours, plain = RowDataset(config), Dataset(config)
    assert ours.field2seqlen == {**plain.field2seqlen, "row_id": 1}
    for field, tokens in plain.field2id_token.items():
        np.testing.assert_array_equal(ours.field2id_token[field], tokens)
    pd.testing.assert_frame_equal(ours.inter_feat.drop(columns="row_id"), plain.inter_feat, check_exact=True, check_dtype=False)
    for kind in ("user_feat", "item_feat"):
        expected = getattr(plain, kind)
        for field in expected:
            for a, b in zip(getattr(ours, kind)[field], expected[field]):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "index",
    [
        range(2, 7),
        range(0, 0),
        slice(1, None, 3),
        4,
        [3, 1, 3],
        np.array([5, 0, 5]),
        np.arange(10)[::-2],
        np.arange(10) % 3 == 0,
        torch.tensor([9, 2]),
        torch.arange(10) > 6,
        np.array([], dtype=np.int64),
    ],
    ids=str,
)
def test_parts_of_columns_are_those_of_an_interaction(index):
    columns = {"a": torch.arange(10), "b": torch.randn(10, 2)}
    expected, found = Interaction(columns)[index], _Columns(columns)[index]
    assert len(found) == len(expected) and found.columns == expected.columns
    for field in columns:
        assert found[field].dtype == expected[field].dtype
        torch.testing.assert_close(found[field], expected[field], rtol=0, atol=0)
    assert type(found) is Interaction and _Columns(columns)["a"] is columns["a"]


@pytest.mark.parametrize("word", ["NA", "None", "null", "n/a", "nan", "NaN", "NULL", "#N/A", "N/A", "<NA>"])
def test_a_word_in_a_column_of_text_is_text(word, tmp_path):
    """RecBole reads such titles and names as missing; in a column of numbers they still are."""
    path = tmp_path / "x.inter"
    path.write_text(f"{HEAD}{word}\t{word} or not\t{word}\n2\t{word}\t3\n3\t\t4\n")
    types = {"u": str, "i": str, "r": np.float64}
    table = AtomicFile(path).read(list(types), list(types), types)
    assert table["u"].tolist() == [word, "2", "3"] and table["i"][:2].tolist() == [f"{word} or not", word]
    assert table["i"].isna().tolist() == [False, False, True] and table["r"].isna().tolist() == [True, False, False]
