"""The nine laws of the house, one test or more each. They hold together; breaking one in the code breaks its test."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import FAMILIES, write_atomic_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_trainer, init_seed
from sklearn.metrics import log_loss, roc_auc_score
from transformers import AutoModelForCausalLM

from recbole_rella import load_data_and_model, run_recbole_rella
from recbole_rella.keys import ConfigError
from recbole_rella.llm.scoring import p_yes, pad
from recbole_rella.retrieval.subr import retrieve, similarity
from recbole_rella.rows.fields import KIND, KINDS, ROW_ID
from recbole_rella.rows.history import NO_SPLIT, TEST, TRAIN, VALID, Histories, Rows
from recbole_rella.trainer import ReLLaTrainer


def build(name, settings, **more):
    config = Config(model="ReLLa", dataset=name, config_dict={**settings, **more})
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    return config, dataset, data_preparation(config, dataset)


ORDERS = [
    {"order": "TO", "group_by": None},
    {"order": "RO", "group_by": None},
    {"order": "TO", "group_by": "user"},
    {"order": "RO", "group_by": "user"},
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda o: f"{o['order']}-{o['group_by']}")
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_law_1_no_leak(order, data, tmp_path_factory, llms):
    """Neither a row's own rating nor a row of a later split, a later time or another user is in its prompt."""
    n = data.draw(st.integers(30, 60))
    rows = [
        {
            "user_id": str(data.draw(st.integers(1, 3))),
            "item_id": str(data.draw(st.integers(1, 8))),
            "rating": data.draw(st.integers(1, 5)),
            "timestamp": data.draw(st.integers(0, 20)),
        }
        for _ in range(n)
    ]
    rows[0]["rating"], rows[1]["rating"] = 1, 5
    items = [{"item_id": str(i), "movie_title": f"Movie{i}"} for i in range(1, 9)]
    root = tmp_path_factory.mktemp("law1")
    name, tiny = write_atomic_files(root, "leak", rows, None, items)
    eval_args = {"split": {"RS": [0.6, 0.2, 0.2]}, "mode": "labeled", **order}
    # The rating of a row is told by its row_id, so that a prompt says which rows it shows.
    try:
        _, dataset, loaders = build(
            name,
            tiny,
            eval_args=eval_args,
            min_history=1,
            prompt_profile="Somebody.",
            cache_dir=str(root / "cache"),
            prompt_item="{{ item.movie_title }}",
            retrieval_sentence="{{ item.movie_title }}",
            llm=llms("llama"),
            train_history=["recent", "both"],
            eval_history=data.draw(st.sampled_from(list(KINDS))),
        )
    except ValueError as error:
        assert "training rows of both labels" in str(error)
        return
    columns = dataset.rows
    seen = 0
    for split, loader in zip((TRAIN, VALID, TEST), loaders):
        inter = loader._dataset.inter_feat
        row_ids, kinds = inter[ROW_ID].numpy(), inter[KIND].numpy()
        assert (columns.split[row_ids] == split).all()
        for row, shown in zip(row_ids, dataset.assembly.prompter.shown(row_ids, columns.item[row_ids], kinds)):
            assert row not in shown
            assert (columns.user[shown] == columns.user[row]).all()
            assert (shown < row).all() and (columns.time[shown] <= columns.time[row]).all()
            assert (columns.split[shown] <= split).all()
            before = dataset.assembly.prompter.text(row, columns.item[row], shown)
            own, columns.rating[row] = columns.rating[row], 99
            columns.label[row] ^= 1
            assert dataset.assembly.prompter.text(row, columns.item[row], shown) == before
            columns.label[row] ^= 1
            columns.rating[row] = own
            seen += 1
    assert seen >= len(np.unique(columns.split >= 0))


def test_law_1_nothing_fitted_sees_held_out_labels(movies):
    """Other ratings in validation and test leave the embedded LLM, the item vectors and the training samples alike."""
    name, tiny = movies
    _, first, _ = build(name, tiny, cache_dir="a")
    path = Path(tiny["data_path"]) / name / f"{name}.inter"
    table = pd.read_csv(path, sep="\t")
    times = table["timestamp:float"].rank(method="first")
    held_out = times > first.rows.time.size * 0.8 + 10
    table.loc[held_out, "rating:float"] = 6 - table.loc[held_out, "rating:float"]
    table.to_csv(path, sep="\t", index=False)
    _, second, _ = build(name, tiny, cache_dir="b")
    assert not np.array_equal(first.rows.label, second.rows.label)
    ours, theirs = first.assembly.backbone.model.state_dict(), second.assembly.backbone.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    # And the key of the cache does not depend on them either.
    _, third, _ = build(name, tiny, cache_dir="a")
    assert third.assembly.backbone.path == first.assembly.backbone.path


def test_law_1_best_epoch_by_validation(movies, monkeypatch):
    """Validation says that the first of three epochs was the best: its adapter is what is tested, and nothing else is."""
    name, tiny = movies
    valid, parts = iter([0.9, 0.5, 0.4]), []

    def validate(trainer, data, show_progress=False):
        parts.append(data)
        score = next(valid)
        return score, {"auc": score}

    monkeypatch.setattr(ReLLaTrainer, "_valid_epoch", validate)
    result = run_recbole_rella("ReLLa", name, config_dict={**tiny, "epochs": 3, "learning_rate": 0.1, "stopping_step": 5})
    (run,) = Path("saved").glob("ReLLa-*")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["best_epoch"] == 0 and result["best_valid_score"] == metrics["valid"]["auc"] == 0.9
    validated = np.unique(np.concatenate([part._dataset.inter_feat[ROW_ID].numpy() for part in parts]))
    predictions = pd.read_csv(run / "test_predictions.csv")
    assert len(parts) == 3 and not set(validated) & set(predictions["row_id"])
    config, model, _, _, _, test_data = load_data_and_model(run)
    trainer = get_trainer(config["MODEL_TYPE"], "ReLLa")(config, model)
    trainer.evaluate(test_data, load_best_model=False)
    np.testing.assert_array_equal(trainer.predictions["score"], predictions["score"].to_numpy(np.float32))


def test_law_2_same_rows_for_every_setting(movies, llms):
    """Splits do not depend on the model's keys, and shots nest: settings side by side are scored on the same rows."""
    name, tiny = movies
    seen = []
    for more in (
        {"train_shots": 20},
        {"train_shots": 40, "train_history": "recent"},
        {"eval_history": "recent", "history_size": 2},
    ):
        _, dataset, loaders = build(name, tiny, llm=llms("llama"), **more)
        seen.append([loader._dataset.inter_feat[ROW_ID].tolist() for loader in loaders])
    (few, valid, test), (more_shots, *rest), (_, *others) = seen
    assert [valid, test] == rest == others and len(test) > 10
    assert set(few) < set(more_shots) and len(few) == 2 * 20 and len(more_shots) == 40


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [1, 97, 100_000])
def test_law_3_score_is_that_of_the_row_alone(family, budget, llms):
    """P(yes) equals the two-way softmax of the plain LLM's last logits, whatever the batches are."""
    plain = AutoModelForCausalLM.from_pretrained(llms(family), dtype=torch.float32).eval()
    random = np.random.default_rng(3)
    prompts = [random.integers(5, plain.config.vocab_size, size=n).tolist() for n in (1, 2, 7, 7, 31, 64, 33, 5, 120)]
    yes, no = 11, 42
    with torch.no_grad():
        expected = [torch.softmax(plain(torch.tensor([p])).logits[0, -1, [yes, no]], -1)[0].item() for p in prompts]
    lengths = torch.tensor([len(p) for p in prompts])
    scores = p_yes(plain, pad(prompts), lengths, (yes, no), budget, torch.device("cpu"))
    assert scores.dtype == torch.float32
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("train", "kind"), [("mixed", "retrieved"), pytest.param(["recent", "both"], "both", marks=pytest.mark.slow)]
)
def test_law_3_through_predict(train, kind, movies, llms):
    """The same through transform, loader and predict, with trained adapters and workers."""
    name, tiny = movies
    own = {"llm": llms("qwen2"), "learning_rate": 0.05, "worker": 2, "train_history": train, "eval_history": kind}
    run_recbole_rella("ReLLa", name, config_dict={**tiny, **own})
    (run,) = Path("saved").glob("ReLLa-*")
    table = pd.read_csv(run / "test_predictions.csv")
    base = AutoModelForCausalLM.from_pretrained(llms("qwen2"), dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, run / "adapter").eval()
    _, _, dataset, _, _, test_data = load_data_and_model(run)
    yes, no = dataset.assembly.answer_ids
    rows = table["row_id"].to_numpy()
    texts = [
        dataset.assembly.prompter.text(r, dataset.rows.item[r], s)
        for r, s in zip(rows, dataset.assembly.prompter.shown(rows, dataset.rows.item[rows], np.full(len(rows), KINDS[kind])))
    ]
    with torch.no_grad():
        for text, score in zip(texts, table["score"]):
            ids = torch.tensor([dataset.assembly.prompter.tokenizer.whole(text)])
            expected = torch.softmax(plain(ids).logits[0, -1, [yes, no]], -1)[0].item()
            assert score == pytest.approx(expected, abs=1e-5)
    assert table["score"].nunique() > 10


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_law_4_subr_equals_brute_force(data):
    """Every K, every metric, empty and short histories, repeated items and equal vectors, any chunk size."""
    n, n_users, n_items = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    column = lambda low, high: np.array(data.draw(st.lists(st.integers(low, high), min_size=n, max_size=n)))  # noqa: E731
    rows = Rows(
        column(0, n_users - 1).astype(np.int32),
        column(0, n_items - 1).astype(np.int32),
        np.arange(n),
        None,
        None,
        column(NO_SPLIT, TEST).astype(np.int8),
    )
    # Few values, so that different items tie as well.
    vectors = np.array(data.draw(st.lists(st.integers(-2, 2), min_size=n_items * 3, max_size=n_items * 3)), np.float32).reshape(
        -1, 3
    )
    k, metric, chunk = (
        data.draw(st.integers(1, 12)),
        data.draw(st.sampled_from(["dot", "l2", "cosine"])),
        data.draw(st.integers(1, 50)),
    )
    targets = column(0, n_items - 1)
    found, similarities = retrieve(
        vectors, rows.item, Histories(rows, n_users), rows.split, rows.user, np.arange(n), targets, k, metric, chunk
    )
    for row in range(n):
        past = [r for r in range(row) if rows.user[r] == rows.user[row] and rows.split[r] <= rows.split[row]]
        closeness = similarity(vectors[rows.item[past]], vectors[targets[row]], metric) if past else []
        best = sorted(zip(closeness, past), reverse=True)[:k]  # ties: the larger row_id is the more recent
        assert found[row].tolist() == [r for _, r in best] + [-1] * (k - len(best))
        np.testing.assert_allclose(similarities[row, : len(best)], [s for s, _ in best], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("retrieved", "time"),
        ("retrieved", "similarity"),
        ("retrieved", "similarity_reversed"),
        ("both", "time"),
        ("both", "recent_last"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_law_5_oldest_behaviours_go_first(kind, order, family, movies, llms):
    name, tiny = movies
    _, dataset, _ = build(name, tiny, llm=llms(family), history_size=8, history_order=order, eval_history="recent")
    prompter = dataset.assembly.prompter
    row = len(dataset.rows) - 1
    target, kinds = dataset.rows.item[[row]], np.array([KINDS[kind]])
    (shown,) = prompter.shown(np.array([row]), target, kinds)
    full = prompter.tokenizer.ids(prompter.text(row, target[0], shown))
    smallest = len(prompter.tokenizer.ids(prompter.text(row, target[0], shown[:0])))
    dropped_before = 0
    for budget in range(len(full), smallest + 3, -3):
        prompter = replace(prompter, max_tokens=budget, stored={})
        ((ids,), (dropped,)) = prompter.token_ids(np.array([row]), target, kinds)
        kept = [s for s in shown if s in np.sort(shown)[dropped:]]
        text = prompter.text(row, target[0], np.array(kept, dtype=np.int32))
        assert ids == prompter.tokenizer.whole(text) and len(ids) <= budget
        assert prompter.template.question in text and text.endswith(f"{prompter.template.item(int(target[0]))['text']}:")
        if dropped:  # not one more than needed
            more = [s for s in shown if s in np.sort(shown)[dropped - 1 :]]
            assert len(prompter.tokenizer.whole(prompter.text(row, target[0], np.array(more, dtype=np.int32)))) > budget
        assert dropped >= dropped_before
        dropped_before = dropped
    assert dropped_before > 3


def test_law_6_only_adapters_are_saved_and_load_alike(movies, llms):
    name, tiny = movies
    result = run_recbole_rella("ReLLa", name, config_dict={**tiny, "llm": llms("llama"), "learning_rate": 0.05})
    (run,) = Path("saved").glob("ReLLa-*")
    adapter = run / "adapter"
    assert sorted(p.name for p in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    # Without this package: plain PEFT over the plain LLM.
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llms("llama")), adapter)
    saved = {n for n, _ in plain.named_parameters() if "lora_" in n}
    assert saved and all(torch.isfinite(p).all() for p in plain.parameters())
    assert (adapter / "adapter_model.safetensors").stat().st_size < 4 * sum(
        p.numel() for n, p in plain.named_parameters() if "lora_" in n
    ) + 4096
    config, model, dataset, _, _, test_data = load_data_and_model(run)
    trainer = get_trainer(config["MODEL_TYPE"], "ReLLa")(config, model)
    assert trainer.evaluate(test_data, load_best_model=False) == result["test_result"]
    expected = pd.read_csv(run / "test_predictions.csv", dtype={"score": np.float32})["score"].to_numpy()
    np.testing.assert_array_equal(trainer.predictions["score"], expected)


def test_law_7_printed_metrics_are_scikit_learns(movies):
    name, tiny = movies
    result = run_recbole_rella("ReLLa", name, config_dict={**tiny, "metric_decimal_place": 10})
    (run,) = Path("saved").glob("ReLLa-*")
    table = pd.read_csv(run / "test_predictions.csv")
    assert result["test_result"]["auc"] == pytest.approx(roc_auc_score(table["label"], table["score"]), abs=1e-9)
    assert result["test_result"]["logloss"] == pytest.approx(log_loss(table["label"], table["score"]), abs=1e-6)
    # The rows are those of the file, with its own ids and labels.
    inter = pd.read_csv(Path(tiny["data_path"]) / name / f"{name}.inter", sep="\t")
    merged = table.merge(inter, left_on=["user_id", "item_id"], right_on=["user_id:token", "item_id:token"])
    assert len(merged) == len(table) and (merged["label"] == (merged["rating:float"] >= 4)).all()
    assert (merged["timestamp"] == merged["timestamp:float"]).all()


def test_law_8_all_errors_of_the_configuration_at_once(movies):
    name, tiny = movies
    wrong = {
        **tiny,
        "history_sise": 5,
        "history_size": -1,
        "lora_rank": 4,
        "train_history": ["recent", "nearest"],
        "eval_history": "nearest",
        "prompt_answers": [True, False],
    }
    with pytest.raises(ConfigError) as error:
        Config(model="ReLLa", dataset="does-not-even-exist", config_dict=wrong)
    message = str(error.value)
    assert "history_sise: there is no such key; the nearest valid one is history_size" in message
    assert "history_size: expected an integer of at least 0, found -1" in message
    assert "lora_rank: there is no such key; the nearest valid one is lora_r" in message
    assert "eval_history: expected one of recent, retrieved, both, found 'nearest'" in message
    assert "train_history: expected mixed, one of recent, retrieved, both, or a list of different ones of these, found [" in message
    assert "prompt_answers: expected two texts (quote them" in message


def test_law_9_same_seed_same_scores(movies):
    name, tiny = movies
    scores = []
    # The second run finds the embedded LLM in the cache, the third makes it again: neither may change anything.
    for seed, cache in ((1, "a"), (1, "a"), (1, "b"), (2, "a")):
        run_recbole_rella("ReLLa", name, config_dict={**tiny, "seed": seed, "cache_dir": cache})
    for run in sorted(Path("saved").glob("ReLLa-*"), key=lambda p: (p / "metrics.json").stat().st_mtime_ns):
        scores.append(pd.read_csv(run / "test_predictions.csv", dtype=str))
    assert scores[0].equals(scores[1]) and scores[0].equals(scores[2]) and not scores[0]["score"].equals(scores[3]["score"])
