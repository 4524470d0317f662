"""A key over several values: one row a model and value, and how heterogeneous the shown behaviours are."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_rella.experiments import runs
from recbole_rella.experiments.side_by_side import run_side_by_side
from recbole_rella.experiments.sweep import run_sweep
from recbole_rella.keys import ConfigError


@pytest.mark.slow
def test_sweep_of_the_history_size(movies, in_this_process):
    name, tiny = movies
    lines = []
    settings = {**tiny, "category_field": "class"}
    curves, folder = run_sweep(
        "history_size:1,3", ["ReLLa", "FM"], name, None, settings, seeds=[1], output_folder="out", report=lines.append
    )
    # With both, 2 recent behaviours have no room in a history of 1.
    labels = ["ReLLa (retrieved)"] * 2 + ["ReLLa (recent)"] * 2 + ["ReLLa (both)"] + ["FM"] * 2
    assert curves["model"].tolist() == labels and sum("ReLLa (both) is left out at history_size 1" in line for line in lines) == 1
    assert curves["history_size"].tolist() == [1, 3, 1, 3, 3, 1, 3] and (curves["seeds"] == 1).all()
    rella = curves.iloc[:5]
    assert rella["shown behaviours"].tolist() == pytest.approx([1, 3, 1, 3, 3], abs=0.2)
    unique = rella["unique class"].to_numpy()
    assert unique[0] == unique[2] == 1 and unique[1] < min(unique[3], unique[4])  # retrieved behaviours are of the target's genre
    # FM knows no history size: one run for both values, drawn level.
    fm = curves.iloc[5:]
    assert fm["test AUC"].nunique() == 1 and len(list(Path("saved").glob("*/FM-*"))) == 1
    assert sum("running" in line for line in lines) == 2 * 2 + 1 + 1
    assert sorted(p.name for p in folder.iterdir()) == [f"sweep-history_size.{kind}" for kind in ("csv", "html", "md", "png")]
    saved = pd.read_csv(folder / "sweep-history_size.csv")
    np.testing.assert_allclose(saved["test AUC"], curves["test AUC"])
    assert (folder / "sweep-history_size.png").read_bytes()[:4] == b"\x89PNG"


def test_sweep_of_any_key_over_any_model(movies, in_this_process):
    name, tiny = movies
    curves, _ = run_sweep("embedding_size:2,6", ["FM"], name, None, tiny, report=lambda _: None)
    assert curves["test AUC"].notna().all() and len(list(Path("saved").glob("*/FM-*"))) == 2


def test_a_value_that_cannot_be_stops_before_any_run(movies, monkeypatch):
    name, tiny = movies
    monkeypatch.setattr(runs, "_start", lambda *_: pytest.fail("a run was started"))
    with pytest.raises(ConfigError, match="history_size: expected an integer of at least 0, found -1"):
        run_sweep("history_size:3,-1", ["ReLLa"], name, None, tiny)
    with pytest.raises(ConfigError, match="expected no ReLLa.history_size beside history_size, whose values it would replace"):
        run_sweep("history_size:2,3", ["ReLLa"], name, None, {**tiny, "ReLLa.history_size": 7})
    with pytest.raises(ConfigError, match="embeding_size: there is no such key; the nearest valid one is embedding_size"):
        run_sweep("embeding_size:8,16", ["FM"], name, None, tiny)
    with pytest.raises(ConfigError, match="zzzz: expected a key of FM, found one that nothing reads"):
        run_sweep("zzzz:1,2", ["FM"], name, None, tiny)
    Path("small.yaml").write_text("model: FM\nembeding_size: 4\n")
    with pytest.raises(ConfigError, match="embeding_size: there is no such key"):
        run_side_by_side(["small.yaml"], name, None, tiny)


def test_no_behaviours_at_all_are_a_value_of_the_curve(movies, in_this_process):
    """K = 0: what an LLM says without a history, the same for all kinds of one. What both show has no room."""
    name, tiny = movies
    curves, _ = run_sweep("history_size:0", ["ReLLa"], name, None, {**tiny, "epochs": 0}, report=lambda _: None)
    assert curves["model"].tolist() == ["ReLLa (retrieved)", "ReLLa (recent)"] and (curves["shown behaviours"] == 0).all()
    assert curves["test AUC"].nunique() == 1


def test_a_value_is_checked_for_the_entries_that_have_it(movies, in_this_process):
    """Settings that hold for all of them may show both kinds, for which K = 0 has no room; a variant that shows recent ones has."""
    name, tiny = movies
    both = {"train_history": ["recent", "both"], "eval_history": "both", "history_recent_size": 2}
    curves, _ = run_sweep("history_size:0,3", ["recent_only"], name, None, {**tiny, **both, "epochs": 0}, report=lambda _: None)
    assert curves["model"].tolist() == ["recent_only", "recent_only"] and curves["test AUC"].notna().all()
