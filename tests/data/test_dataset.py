"""ReLLaDataset: raw columns, order, min_history, shots, odd data sets, ranking evaluation."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import write_atomic_files, written_predictions
from recbole.config import Config
from recbole.data import create_dataset, data_preparation

from recbole_rella import run_recbole_rella
from recbole_rella.rows.fields import KIND, PROMPT_IDS, PROMPT_LENGTH, ROW_ID
from recbole_rella.rows.history import NO_SPLIT


def build(name, settings, **more):
    config = Config(model="ReLLa", dataset=name, config_dict={**settings, **more})
    dataset = create_dataset(config)
    return dataset, data_preparation(config, dataset)


def table(tiny, name):
    frame = pd.read_csv(Path(tiny["data_path"]) / name / f"{name}.inter", sep="\t", dtype={0: str, 1: str})
    frame.columns = [c.split(":")[0] for c in frame.columns]
    return frame


@pytest.mark.parametrize("more", [{}, {"normalize_all": True}, {"min_history": 7}])
def test_raw_ratings_and_times_in_order(more, movies, llms):
    """Also where RecBole thresholds and rescales them; times beyond float32 stay to the second."""
    name, tiny = movies
    dataset, loaders = build(name, tiny, llm=llms("llama"), **more)
    expected = table(tiny, name)
    expected[["u", "i"]] = expected[["user_id", "item_id"]].astype(int)
    expected = expected.sort_values(["timestamp", "u", "i"], ignore_index=True)
    rows = dataset.rows
    assert (dataset.id2token("user_id", rows.user) == expected["user_id"]).all()
    assert (dataset.id2token("item_id", rows.item) == expected["item_id"]).all()
    np.testing.assert_array_equal(rows.rating, expected["rating"])
    np.testing.assert_array_equal(rows.time, expected["timestamp"])
    np.testing.assert_array_equal(rows.label, expected["rating"] >= 4)
    assert rows.time.dtype == np.int64 and len(np.unique(rows.time.astype(np.float32))) < len(np.unique(rows.time))
    short = expected.groupby("user_id").cumcount() < more.get("min_history", 2)
    np.testing.assert_array_equal(rows.split == NO_SPLIT, short)
    parts = [loader._dataset.inter_feat[ROW_ID].unique() for loader in loaders]
    assert torch.equal(torch.cat(parts).sort().values, torch.from_numpy(np.flatnonzero(~short)))
    assert parts[0].max() < parts[1].min() and parts[1].max() < parts[2].min()  # global time order
    assert [len(parts[1]), len(parts[2])] == [int((~short).sum() * 0.1)] * 2


def test_ids_that_are_no_numbers_sort_as_text(tmp_path, llms):
    rows = [{"user_id": u, "item_id": i, "rating": 1 + (u < "c") * 4, "timestamp": 5} for u in "cab" for i in ("z", "x", "y")]
    name, tiny = write_atomic_files(tmp_path, "words", rows)
    dataset, _ = build(
        name,
        tiny,
        llm=llms("llama"),
        prompt_profile="",
        prompt_item="{{ item.item_id }}",
        retrieval_sentence="{{ item.item_id }}",
        eval_args={"split": {"RS": [8, 1, 1]}, "order": "RO", "group_by": None, "mode": "labeled"},
        min_history=0,
        seed=3,
    )
    assert dataset.id2token("user_id", dataset.rows.user).tolist() == list("aaabbbccc")
    assert dataset.id2token("item_id", dataset.rows.item).tolist() == list("xyz") * 3


def test_shots_are_the_first_of_one_permutation(movies, llms):
    name, tiny = movies
    drawn = {}
    for shots in (None, 5, 50, 10_000):
        _, loaders = build(name, tiny, llm=llms("llama"), train_shots=shots, train_history="recent")
        drawn[shots] = loaders[0]._dataset.inter_feat[ROW_ID].tolist()
    assert drawn[5] == drawn[50][:5] == drawn[10_000][:5] and len(drawn[50]) == 50
    assert sorted(drawn[10_000]) == sorted(drawn[None])
    _, loaders = build(name, tiny, llm=llms("llama"), train_shots=5, train_history="recent", seed=1)
    assert loaders[0]._dataset.inter_feat[ROW_ID].tolist() != drawn[5]


def test_mixed_samples_are_both_kinds_of_every_shot(movies, llms):
    name, tiny = movies
    dataset, (train_data, valid_data, _) = build(name, tiny, llm=llms("llama"), train_shots=40)
    kinds = {}
    for batch in train_data:
        assert len(batch[PROMPT_LENGTH]) <= 16 and batch[PROMPT_IDS].shape[1] == batch[PROMPT_LENGTH].max()
        for row, kind, ids, n in zip(batch[ROW_ID], batch[KIND], batch[PROMPT_IDS], batch[PROMPT_LENGTH]):
            kinds.setdefault(int(row), {})[int(kind)] = ids[:n].tolist()
    assert len(kinds) == 40 and all(set(k) == {0, 1} for k in kinds.values())
    assert any(k[0] != k[1] for k in kinds.values())
    assert set(valid_data._dataset.inter_feat[KIND].tolist()) == {1}
    first = [batch[ROW_ID].tolist() for batch in train_data]
    assert first != [batch[ROW_ID].tolist() for batch in train_data]  # shuffled anew each epoch


@pytest.mark.parametrize(
    "named, codes", [("both", [2]), (["both", "recent"], [0, 2]), (["recent", "retrieved", "both"], [0, 1, 2])]
)
def test_any_mixture_of_kinds(named, codes, movies, llms):
    name, tiny = movies
    more = {"llm": llms("llama"), "train_shots": 20, "train_history": named, "eval_history": "both"}
    dataset, (train_data, valid_data, _) = build(name, tiny, **more)
    inter = train_data._dataset.inter_feat
    of_shot = {}
    for row, kind in zip(inter[ROW_ID].tolist(), inter[KIND].tolist()):
        of_shot.setdefault(row, []).append(kind)
    assert len(of_shot) == 20 and all(sorted(kinds) == codes for kinds in of_shot.values())
    assert set(valid_data._dataset.inter_feat[KIND].tolist()) == {2}
    rows = valid_data._dataset.inter_feat[ROW_ID].numpy()
    assert dataset.shown_statistics(rows)["history"] == "both"

    # How many of them are recent names the prompts of a run that shows both, and of no other.
    def prompts(**own):
        return build(name, tiny, **more, **own)[0].assembly.identities["prompts"]

    assert prompts(history_recent_size=1) != dataset.assembly.identities["prompts"]
    more |= {"train_history": "recent", "eval_history": "recent"}
    assert prompts(history_recent_size=1) == prompts(history_recent_size=3)
    assert prompts(history_window="anchored") != prompts()


def test_workers_give_the_same_batches(movies, llms):
    name, tiny = movies
    batches = []
    for worker in (0, 2):
        _, (_, valid_data, _) = build(name, tiny, llm=llms("llama"), worker=worker, eval_batch_size=7)
        batches.append([batch[0][PROMPT_IDS].tolist() for batch in valid_data])
    assert batches[0] == batches[1] and len(batches[0]) > 3


def odd(tmp_path, case):
    random = np.random.default_rng(0)
    users = 1 if case == "one user" else 4
    items = [{"item_id": str(i), "movie_title": "" if case == "missing titles" and i % 3 else f"Film {i}"} for i in range(12)]
    rows = []
    for place in range(120):
        row = {
            "user_id": str(random.integers(users)),
            "item_id": str(random.integers(2 if case == "repeated items" else 12)),
            "timestamp": 1000 + place // 3,
        }
        liked = int(random.random() < 0.5)
        row |= {"label": liked} if case == "no rating" else {"rating": 1 + 4 * liked}
        rows.append(row)
    features = case != "no features"
    return write_atomic_files(
        tmp_path,
        "odd",
        rows,
        [{"user_id": str(u), "age": "3"} for u in range(users)] if features else None,
        items if features else None,
    )


@pytest.mark.parametrize("case", ["no rating", "no features", "missing titles", "repeated items", "one user"])
def test_odd_data_sets_run_from_end_to_end(case, tmp_path):
    name, tiny = odd(tmp_path / "data", case)
    own = {key: value for key, value in tiny.items() if key not in ("prompt_profile", "prompt_item", "retrieval_sentence")}
    if case == "no rating":
        own.pop("threshold")
    if case == "missing titles":
        own["prompt_item"] = "{{ item.movie_title }}"
    result = run_recbole_rella("ReLLa", name, config_dict=own)
    assert written_predictions(result)["score"].between(0, 1).all()
    dataset, (train_data, *_) = build(name, own)
    row = np.array([len(dataset.rows) - 1])
    (shown,) = dataset.assembly.prompter.shown(row, dataset.rows.item[row], np.array([True]))
    text = dataset.assembly.prompter.text(row[0], dataset.rows.item[row[0]], shown)
    lines = text.splitlines()
    assert ("star" in text) == (case != "no rating")
    assert {"no features": "item id: ", "missing titles": "movie "}.get(case, "Film ") in text
    assert lines[-1].endswith(":") and len([line for line in lines if ": Yes" in line or ": No" in line]) == 4


def test_ranking_metrics_over_sampled_and_full_candidates(movies):
    """Candidates that RecBole draws get prompts of their own, over the history of the row they stand in for."""
    name, tiny = movies
    rank = {
        **tiny,
        "metrics": ["Recall", "NDCG"],
        "topk": [5],
        "valid_metric": "NDCG@5",
        "min_history": 5,
        "prompt_question": "Will they like it?",
    }
    for mode in ("uni9", "full"):
        rank["eval_args"] = {"split": {"RS": [8, 1, 1]}, "order": "TO", "group_by": "user", "mode": mode}
        result = run_recbole_rella("ReLLa", name, config_dict=rank)
        assert set(result["test_result"]) == {"recall@5", "ndcg@5"} and 0 < result["test_result"]["recall@5"] <= 1


def test_training_with_sampled_negatives(movies, llms):
    """No labels at all: RecBole draws negatives in training too, and ranks candidates."""
    name, tiny = movies
    settings = {key: value for key, value in tiny.items() if key != "threshold"}
    settings |= {
        "llm": llms("llama"),
        "metrics": ["NDCG"],
        "topk": [5],
        "valid_metric": "NDCG@5",
        "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
        "eval_args": {"split": {"RS": [8, 1, 1]}, "order": "TO", "group_by": "user", "mode": "uni9"},
    }
    settings["min_history"] = 15
    dataset, (train_data, *_) = build(name, settings)
    batch = next(iter(train_data))
    assert set(batch["label"].tolist()) == {0, 1} and len(set(zip(batch[ROW_ID].tolist(), batch["item_id"].tolist()))) > 8
    assert run_recbole_rella("ReLLa", name, config_dict=settings)["test_result"]["ndcg@5"] > 0


def test_candidates_are_scored_with_their_own_prompts(movies, llms):
    from recbole.data.interaction import Interaction
    from recbole.utils import get_model

    name, tiny = movies
    config = Config(model="ReLLa", dataset=name, config_dict={**tiny, "llm": llms("llama")})
    dataset, (train_data, valid_data, _) = build(name, tiny, llm=llms("llama"))
    model = get_model("ReLLa")(config, train_data._dataset).eval()
    batch, *_ = next(iter(valid_data))
    own = model.predict(Interaction(dict(batch.interaction)))
    # Another item, and prompts that are those of the row's own item: as after RecBole's negative sampling.
    other = Interaction(dict(batch.interaction))
    other["item_id"] = torch.roll(batch["item_id"], 1)
    stale = model.predict(other)
    fresh = model.predict(
        Interaction({key: batch[key] if key != "item_id" else other["item_id"] for key in ("item_id", ROW_ID, KIND)})
    )
    torch.testing.assert_close(stale, fresh)
    assert not torch.allclose(stale, own)


@pytest.mark.parametrize("metric", [["AUC", "LogLoss", "MAE", "RMSE"]])
def test_all_value_metrics(metric, movies):
    name, tiny = movies
    result = run_recbole_rella("ReLLa", name, config_dict={**tiny, "metrics": metric, "metric_decimal_place": 9})
    assert set(result["test_result"]) == {"auc", "logloss", "mae", "rmse"}
    written_predictions(result, decimals=6)


def test_benchmark_files_keep_their_parts(movies, llms):
    """RecBole's pre-split files: the parts are those of the files, the order is still (time, user, item)."""
    name, tiny = movies
    folder = Path(tiny["data_path"]) / name
    header, *lines = (folder / f"{name}.inter").read_text().splitlines()
    lines.sort(key=lambda line: float(line.split("\t")[-1]))
    for part, chosen in {"train": lines[:250], "valid": lines[250:300], "test": lines[300:]}.items():
        (folder / f"{name}.{part}.inter").write_text("\n".join([header, *chosen]) + "\n")
    dataset, loaders = build(name, tiny, llm=llms("llama"), benchmark_filename=["train", "valid", "test"])
    parts = [set(loader._dataset.inter_feat[ROW_ID].tolist()) for loader in loaders]
    dropped = {int(r) for r in np.flatnonzero(dataset.rows.split == NO_SPLIT)}
    assert parts[1] == set(range(250, 300)) - dropped and parts[2] == set(range(300, 360)) - dropped
    assert parts[0] == set(range(250)) - dropped and dropped


def test_loaders_go_to_workers_that_are_spawned(movies, llms):
    """As on macOS and Windows, where a worker gets a pickled loader: the prompts are the same, the weights stay behind."""
    name, tiny = movies
    dataset, loaders = build(name, tiny, llm=llms("qwen2"))
    assert dataset.assembly.backbone.model is not None  # loaded, as it is when training begins
    for loader in loaders:
        sent = pickle.dumps((loader.collate_fn, list(range(len(loader.dataset)))))
        assert b"safetensors" not in sent and len(sent) < 5_000_000
        collate, places = pickle.loads(sent)
        assert "model" not in vars(collate.__self__._dataset.assembly.backbone)
        ours, theirs = loader.collate_fn(places[:7]), collate(places[:7])
        ours, theirs = (part[0] if isinstance(part, tuple) else part for part in (ours, theirs))
        assert torch.equal(ours[PROMPT_IDS], theirs[PROMPT_IDS]) and ours[PROMPT_LENGTH].min() > 10


def test_prompts_stay_where_they_are_made():
    """An Interaction of RecBole goes to the device whole; token ids are asked for on the CPU, pass by pass."""
    from recbole_rella.data.transform import PromptedRows

    rows = PromptedRows({PROMPT_IDS: torch.zeros(2, 3, dtype=torch.int64), "item_id": torch.tensor([1, 2])})
    moved = rows.to("meta")
    assert moved["item_id"].device.type == "meta" and moved[PROMPT_IDS].device.type == "cpu" and isinstance(moved, PromptedRows)
    assert rows.to("meta", "item_id")["item_id"].device.type == "meta"
