"""Tables show the text of the data as it is."""

import re

import numpy as np
import pandas as pd
import pytest

from recbole_rella.experiments.table import _FIGURES, models_table, write_table
from recbole_rella.serving.explanation import Explanation, write_explanation
from recbole_rella.tables import fenced, latex, markdown

TEXTS = [
    "a|b",
    r"a\|b",
    r"a\\|b\ ",
    "two\nlines\r\n",
    "\t",
    r"\input{x}",
    "100% of $5 & #1_{~^}",
    "[x]",
    "* y",
    "<b> ± >",
    "**bold**",
    "`x`",
]


def cells(texts):
    return pd.DataFrame({"a|model_1": texts, "%": ["1"] * len(texts), "note": texts[::-1]})


def read_markdown(page):
    """As GitHub reads a table: a backslash before a mark stands for the mark, and other bars are the ends of cells."""
    for line in page.splitlines():
        parts = re.findall(r"((?:\\[\\|]|[^|])*)\|", line)[1:]
        yield [re.sub(r"\\([\\|])", r"\1", part.strip()) for part in parts]


@pytest.mark.parametrize("text", TEXTS)
def test_markdown(text):
    head, _, first, second = read_markdown(markdown(cells([text, "other"])))
    line = " ".join(text.split())
    assert head == ["a|model_1", "%", "note"] and first == [line, "1", "other"] and second == ["other", "1", line]


UNESCAPED = {
    r"\textbackslash \space ": "\\ ",
    r"\textbackslash ": "\\",
    r"\textasciitilde ": "~",
    r"\textasciicircum ": "^",
    "$<$": "<",
    "$>$": ">",
    r"$\pm$": "±",
    **{f"\\{sign}": sign for sign in "&%$#_{}"},
}


def read_latex(text):
    return re.sub("|".join(map(re.escape, UNESCAPED)), lambda match: UNESCAPED[match[0]], text.removeprefix("{}") + " ").strip()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("bold", [False, True])
def test_latex(text, bold):
    table = cells([text, "other"])
    page = latex(table, pd.DataFrame({**dict.fromkeys(table.columns, False), "a|model_1": [bold, False]}))
    assert page.startswith("\\begin{tabular}{lrl}\n\\toprule\na|model\\_1 & \\% & note \\\\\n\\midrule\n")
    lines = page.splitlines()
    assert not any(line.startswith(("[", "*")) for line in lines) and len(lines) == 8
    first, one, note = re.split(r"(?<!\\)&", lines[4].removesuffix(r"\\"))
    found = re.fullmatch(r"\\textbf\{(.*)\} ?", first)
    assert bool(found) == bold and one.strip() == "1" and note.strip() == "other"
    assert read_latex(found[1] if bold else first) == " ".join(text.split())


@pytest.mark.parametrize("text", ["plain", "```\ncode\n```", "a ```` b", "`"])
def test_fences_hold_the_text(text):
    first, *lines, last = fenced(text).split("\n")
    assert "\n".join(lines) == text and first == last == "`" * len(first) and len(first) >= 3 and first not in text


def test_a_comparison_of_models_with_any_name(tmp_path):
    names = ["**x** | y", r"Ke$ha_Ti$k \ {a}", "[z]\n&"]
    figures = {"valid AUC": 0.7, "test AUC": [0.6, 0.8, 0.7], "LogLoss": 0.5, "accuracy": 0.6, "UAUC": np.nan}
    costs = {"seconds to train": 1.0, "ms a row": 2.0, "shots": 3, "trainable": 4, "best epoch": 5}
    table = pd.DataFrame(
        {"model": names, "reads": "text", **figures, **costs, "test AUC low": 0.5, "test AUC high": 0.9, "note": "a|b"}
    )
    page = write_table(tmp_path, table, table, table, "# Heading")
    head, _, *lines = read_markdown(page.split("\n\n")[1])
    assert [line[0] for line in lines] == [" ".join(name.split()) for name in names] and {line[-1] for line in lines} == {"a|b"}
    assert {len(line) for line in [head, *lines]} == {len(head)}
    rows = (tmp_path / "table.tex").read_text().splitlines()[4:7]
    assert [read_latex(row.split(" & ")[0]) for row in rows] == [" ".join(name.split()) for name in names]
    assert [row.count(r"\textbf{") for row in rows] == [3, 1, 0] and r"\textbf{0.8000}" in rows[1]
    assert (tmp_path / "table.png").stat().st_size > 5000


def test_an_explanation_of_items_with_any_name(tmp_path):
    names = ["Ca$$h Machine", "Ke$ha Ti$k | Tok", "```", "two\nlines 😀"]
    behaviours = [
        {
            "retrieved": True,
            "recent": place > 1,
            "both": place > 2,
            "item": name,
            "rating": rating,
            "label": label,
            "date": "1",
            "similarity": None,
            "moved": moved,
        }
        for place, (name, rating, label, moved) in enumerate(
            zip(names, [1234567.0, 3.5, None, 4.0], [1, 0, None, 1], [0.1, -0.2, None, 0.0])
        )
    ]
    found = Explanation("row-1", "$u$", "$$i", None, "recent", 0.5, 0.5, None, None, 0.4, "```\nprompt", behaviours)
    path = write_explanation(found, tmp_path)
    page = path.read_text(encoding="utf-8")
    rows = list(read_markdown(page.split("\n\n")[3]))[2:]
    assert [row[1] for row in rows] == [" ".join(name.split()) for name in names]
    assert [row[2:4] for row in rows] == [["1234567", "1"], ["3.5", "0"], ["-", "-"], ["4", "1"]]
    assert "\n````\n```\nprompt\n````\n" in page and path.with_suffix(".png").stat().st_size > 5000


def test_a_table_of_runs_whose_rows_have_one_label():
    """There is no AUC then, and the other figures stand."""
    figures = {"test AUC": float("nan"), "LogLoss": 0.5, "accuracy": 1.0, "seed": 1, "reads": "ids", "note": ""}
    runs = pd.DataFrame([{"model": model, **figures} for model in ("FM", "Bias")]).reindex(
        columns=["model", "note", "seed", "reads", "shots", "trainable", "best epoch", *_FIGURES, "users without UAUC", "folder"]
    )
    table, pairs = models_table(runs, {"FM": [np.ones(3)], "Bias": [np.ones(3)]}, np.ones(3))
    assert table["seeds"].tolist() == [1, 1] and table["LogLoss"].tolist() == [0.5, 0.5] and pairs.shape == (2, 2)


def test_what_no_draw_tells_is_a_dash(tmp_path):
    figures = {"valid AUC": np.nan, "test AUC": [0.6, 0.7], "LogLoss": 0.5, "accuracy": 0.6, "UAUC": np.nan}
    costs = {"seconds to train": 1.0, "ms a row": 2.0, "shots": 3, "trainable": 4, "best epoch": 5}
    none = {"test AUC low": np.nan, "test AUC high": np.nan, "p": np.nan}
    table = pd.DataFrame({"model": ["FM", "Bias"], "reads": "ids", **figures, **costs, **none, "note": ""})
    page = write_table(tmp_path, table, table, table, "# Heading")
    head, _, *lines = read_markdown(page.split("\n\n")[1])
    assert [dict(zip(head, line))["p"] for line in lines] == ["-", "-"] and "nan" not in page
