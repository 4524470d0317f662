"""report.html of a run, and what its charts are made of, against plain references."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import auc, roc_auc_score

from recbole_rella import run_recbole_rella
from recbole_rella.report.charts import by_part, calibration, parts_of, roc


@pytest.fixture
def scored():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 400)
    return labels, {"one": random.random(400), "two": labels * 0.3 + random.random(400)}, random.integers(0, 50, 400)


def test_a_run_leaves_a_page(movies):
    name, tiny = movies
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "run_folder": "run"})
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "<title>ReLLa on movies</title>" in page and page.count("<svg") == 4 and page.count("<details>") == 10
    exact = pd.read_json("run/metrics.json", typ="series")["test_exact"]
    assert f"<td>{exact['auc']:.4f}</td>" in page and f"<td>{exact['uauc']:.4f}</td>" in page
    predicted = pd.read_csv("run/test_predictions.csv")
    worst = predicted.loc[(predicted["label"] - predicted["score"]).abs().idxmax()]
    (first,) = re.findall(r"<summary>row (\d+): user", page)[:1]
    assert int(first) == worst["row_id"]
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)


def test_a_page_of_a_model_without_prompts(movies):
    name, tiny = movies
    run_recbole_rella("Tree", name, config_dict={**tiny, "run_folder": "run"})
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "<title>Tree on movies</title>" in page and page.count("<svg") == 4 and "<details>" not in page


def test_parts_hold_every_row_once(scored):
    *_, values = scored
    found = parts_of(values)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(found.values()))), np.arange(len(values)))
    for part, rows in found.items():
        low, high = map(int, part.split(" to "))
        assert values[rows].min() == low and values[rows].max() == high
    assert list(parts_of(np.zeros(7, dtype=int))) == ["0 to 0"]


def test_the_auc_of_a_part_is_that_of_its_rows(scored):
    labels, scores, values = scored
    _, table = by_part(labels, scores, values)
    for (part, rows), line in zip(parts_of(values).items(), table.to_dict("records")):
        assert line["part"] == part and line["rows"] == len(rows)
        for name, one in scores.items():
            area, low, high = map(float, re.findall(r"[\d.]+", line[name]))
            assert area == round(roc_auc_score(labels[rows], one[rows]), 4) and low <= area <= high


def test_a_part_of_few_rows_or_one_label_has_no_auc():
    labels, values = np.array([0] * 19 + [1] * 71), np.array([1] * 50 + [2] * 40)
    _, table = by_part(labels, {"one": np.linspace(0, 1, 90)}, values)
    assert table["part"].tolist() == ["1 to 1", "2 to 2"] and table["one"].tolist() == ["-", "-"]


def test_curves_are_those_of_the_rows(scored):
    labels, scores, _ = scored
    lines = {line.get_label(): line.get_xydata() for line in roc(labels, scores).axes[0].lines}
    for name, one in scores.items():
        assert auc(*lines[name].T) == pytest.approx(roc_auc_score(labels, one), abs=5e-3)
    (line,) = [line for line in calibration(labels, scores).axes[0].lines if line.get_label() == "two"]
    order = np.argsort(scores["two"])
    np.testing.assert_allclose(line.get_xydata()[0], [scores["two"][order[:40]].mean(), labels[order[:40]].mean()])
