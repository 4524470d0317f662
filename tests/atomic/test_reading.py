"""Atomic files are read fast, and as RecBole reads them to the last bit, the files on which parsers disagree included."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction

from recbole_rella.atomic import reading
from recbole_rella.data.row_dataset import RowDataset, _Columns
from recbole_rella.quick_start import make_config

HEAD = "u:token\ti:token\tr:float\n"
_random = np.random.default_rng(0)
_decimals = [repr(float(x)) for x in _random.random(2000) * 10.0 ** _random.integers(-12, 12, 2000)]
# Text of the file, and whether the C parser may read it.
FILES = {
    "plain": (HEAD + "7\ta b\t3.5\n8\tc\t4\n", True),
    "empty cells": (HEAD + "1\t\t3\n\t2\t\n3\t3\t4\n", True),
    "missing values by name": (HEAD + "NA\tnull\tnan\nNone\tN/A\tNULL\nn/a\t#N/A\t-nan\n", True),
    "short rows": (HEAD + "1\t2\n3\n4\t5\t6\n", True),
    "longer rows": (HEAD + "1\t2\t3\n4\t5\t6\t7\n", True),
    "rows longer than the header": (HEAD + "1\t2\t3\t4\n5\t6\t7\t8\n", False),
    "separator at the end": (HEAD + "1\t2\t3\t\n4\t5\t6\t\n", False),
    "blank lines": (HEAD + "\n1\t2\t3\n   \n4\t5\t6\n\t\t\n\t \t\n", True),
    "numbers as ids": (HEAD + "007\t1.0\t3\n 7 \t1e3\t4\n", True),
    "utf-8": (HEAD + "é\t日本\t1\n\u2028\t\x0b\t2\n\x85\t\x1c\t3\n", True),
    "line ends of Windows": (HEAD.replace("\n", "\r\n") + "1\t2\t3\r\n", True),
    "no line end": (HEAD + "1\t2\t3", True),
    "no rows": (HEAD, True),
    "quotes": (HEAD + '1\t"a b"\t3\n1\t"a ""b"" c"\t3\n2\tsay "hi"\t4\n3\t""\t"1"\n3\t"tab\tin"\t1\n4\t"line\nbreak"\t1\n', False),
    "quotes that end in the middle": (HEAD + '2\t"x" y\t4\n', False),
    "quotes that do not end": (HEAD + '1\t"abc\t3\n2\tc\t4\n', False),
    "zero bytes": (HEAD + "a\0b\tx\t1\n", False),
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
    "a mark at the beginning": ("\ufeff" + HEAD + "1\t2\t3\n", False),
    "several characters between": (HEAD.replace("\t", "::") + "1::2::3\n4::5::6\n", False),
    "another character between": (HEAD.replace("\t", "|") + "1|2|3\n4|a\tb|6\n", True),
}


def outcome(read, *arguments, **options):
    try:
        return read(*arguments, **options)
    except Exception as error:  # whatever it is, it must be the same
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_read_as_recbole_reads_it(name, monkeypatch):
    text, by_c = FILES[name]
    Path("x.inter").write_text(text, encoding="utf-8", newline="")
    delimiter = next((d for d in ("::", "|") if d in text.split("\n")[0]), "\t")
    fields = [f for f in text.split("\n")[0].strip("\r").split(delimiter) if f != "x:token"]
    options = {
        "delimiter": delimiter,
        "usecols": fields,
        "encoding": "utf-8",
        "engine": "python",
        "dtype": {f: np.float64 if f.endswith("float") else str for f in fields},
    }
    expected = outcome(pd.read_csv, "x.inter", **options)
    engines, read_csv = [], pd.read_csv
    monkeypatch.setattr(
        pd, "read_csv", lambda *a, **o: engines.append(o["engine"] if "nrows" not in o else None) or read_csv(*a, **o)
    )
    found = outcome(reading._PandasThatReadsFast().read_csv, "x.inter", **options)
    if isinstance(expected, str):
        assert found == expected
    else:
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
        for column in expected.select_dtypes("float64"):
            np.testing.assert_array_equal(found[column].to_numpy().view(np.int64), expected[column].to_numpy().view(np.int64))
    assert ([e for e in engines if e][-1] == "c") == by_c


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
    pd.testing.assert_frame_equal(ours.inter_feat.drop(columns="row_id"), plain.inter_feat, check_exact=True)
    for kind in ("user_feat", "item_feat"):
        expected = getattr(plain, kind)
        for field in expected:
            for a, b in zip(getattr(ours, kind)[field], expected[field]):
                np.testing.assert_array_equal(a, b)


def test_only_our_data_sets_read_otherwise():
    import recbole.data.dataset.dataset as recbole_dataset

    with pytest.raises(KeyError), reading.fast_reading():
        assert recbole_dataset.pd is not pd and recbole_dataset.pd.DataFrame is pd.DataFrame
        raise KeyError
    assert recbole_dataset.pd is pd


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
