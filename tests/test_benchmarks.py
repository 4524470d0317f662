"""What the benchmarks compare computes the same: else a ratio of seconds would say nothing."""

import json
import mmap
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from benchmarks import history_features, memory, tuned
from benchmarks.real_llm import __main__ as real_llm
from benchmarks.speed import (
    engines,
    layers,
    measure,
    page,
    precision,
    reading,
    scoring,
    scoring_report,
    sharing,
    training,
    workload,
)
from recbole_rella.quick_start import make_config
from recbole_rella.retrieval.taste import Taste, taste_arrays
from recbole_rella.rows.features import HistoryFeatures
from recbole_rella.rows.history import Histories
from recbole_rella.rows.item_statistics import ItemStatistics


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    lines = [f"Movie {i} ({1980 + i}): {1 + i % 5} stars\n" for i in range(12)]
    texts = [
        f"Judge what this person likes.\nThis person is {30 + user} years old.\n{''.join(lines[: 3 + row])}"
        f"Will the user like Film {row}, Yes or No?\nAnswer:"
        for user in range(3)
        for row in range(8)
    ]
    made = workload.make_llm("1M", texts * 20, "cpu", torch.float32, tmp_path_factory.mktemp("llm"))
    return workload.make_workload(texts, np.arange(len(texts)) % 2, made)


def test_every_way_to_score_gives_the_same_scores(work):
    expected = scoring.ours(work)
    assert np.ptp(expected) > 1e-4
    for scores in (scoring.cross_encoder(work)(), scoring.plain(work), scoring.paper(work)):
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_start_token_stands_once_where_two_parts_are_joined(work, llms, tmp_path):
    """The CrossEncoder of a real LLM gets pairs, before each part of which its tokenizer puts one."""
    made = workload.real_llm(llms("llama-3"), torch.float32, tmp_path)
    own = workload.make_workload(work.texts[:6], work.labels[:6], made)
    starts = [ids.count(made[1].tokenizer.bos_token_id) for ids in own.ids()]
    assert starts == [1] * 6
    np.testing.assert_allclose(scoring.cross_encoder(own)(), scoring.ours(own), atol=1e-5)


def test_what_stands_beside_an_engine(work):
    """Of each dtype ours is the measure; another engine's scores are compared with ours."""

    class Plain:
        version = "0"

        def scores(self, ids):
            assert ids == work.ids()
            return scoring.plain(work) + 0.25

    found = engines.measure({"float32": work}, {"llama.cpp, as stored": Plain(), "vLLM, float32": Plain()}, 1)
    assert list(found["candidates"]) == ["ours, float32", "vLLM, float32", "CrossEncoder, float32", "llama.cpp, as stored"]
    ours, other, encoder, stored = found["candidates"].values()
    assert stored["times ours"] == pytest.approx(stored["seconds"] / ours["seconds"])
    assert found["rows"] == 24 and ours["times ours"] == 1 and ours["largest difference"] == 0
    assert other["times ours"] == pytest.approx(other["seconds"] / ours["seconds"]) and encoder["largest difference"] < 1e-5
    assert other["largest difference"] == pytest.approx(0.25, abs=1e-5)


@pytest.mark.slow
@torch.inference_mode()
def test_each_way_to_multiply_gives_the_same_products():
    ways = layers.ways(24, 128, 96)
    first = torch.cat(ways["ours"](), dim=1)
    assert first.shape == (24, 192)
    for name, multiply in ways.items():
        torch.testing.assert_close(torch.cat(multiply(), dim=1), first, msg=name)
    found = layers.measure(24, 128, 96, 2)
    assert found["times ours"]["ours"] == 1 and set(found["times ours"]) == set(ways) and found["seconds"] > 0


def test_how_much_prompts_share_in_each_order():
    """Two prompts of one user, of which one behaviour is shown twice."""
    assert scoring.sharing([(1, 2, 3), (1, 2, 4), (5,)], 100) == pytest.approx(7 / 5)
    item, of = np.array([0, 1, 2, 3, 1, 2]), {4: np.array([0, 1, 2, 3]), 5: np.array([0, 1, 2, 3])}
    shows = {4: np.array([1, 3]), 5: np.array([2, 3])}
    prompter = SimpleNamespace(rows=SimpleNamespace(item=item), histories=SimpleNamespace(of=of.get), history_size=2)
    prompts = SimpleNamespace(
        prompter=prompter,
        test_ids=lambda k: np.array([4, 5]),
        shot_ids=lambda k: np.array([4, 5]),
        retrieved=lambda rows: [shows[row] for row in rows],
    )
    # By time 1-3 and 2-3 share nothing; what both show stands first where it is the most readily retrieved, or shown.
    assert sharing.measure(prompts) == {"prompts": 2, "time": 1, "popular": 1, "readily": 4 / 3, "shown": 4 / 3}


@pytest.mark.slow
def test_several_llms_are_measured_against_their_size(work, tmp_path, monkeypatch):
    """One case of each, in the order in which they were named."""
    rows = SimpleNamespace(test_rows=lambda count, retrieved, least=0: (work.texts[:count], work.labels[:count]))

    class Plain:
        version = "0"

        def __init__(self, folder, dtype, answers):
            self._of = replace(work, llm=AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval(), answers=answers)

        def scores(self, ids):
            return scoring.plain(self._of)

    monkeypatch.setattr(engines, "Vllm", Plain)
    monkeypatch.setattr(engines, "Prompts", lambda k, folder: rows)
    monkeypatch.setattr(engines, "SHAPES", {"1M": None, "2M": None})
    monkeypatch.setitem(workload.SHAPES, "2M", (128, 352, 8, 4))
    for module in (engines, measure):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["engines", "--llm=2M,1M", "--dtypes=float32", "--rows=24", "--repeats=1"])
    engines.main()
    record = json.loads((tmp_path / "engines-sizes.json").read_text())
    assert list(record["cases"]) == ["2M, retrieved, K=15", "1M, retrieved, K=15"] and (tmp_path / "engines-sizes.png").is_file()
    assert record["command"] == "python -m benchmarks.speed.engines --llm=2M,1M --dtypes=float32 --rows=24 --repeats=1"
    two, one = record["cases"].values()
    assert two["parameters of layers"] == 2 * one["parameters of layers"] and record["machine"]["versions"]["vllm"] == "0"
    for found in one["candidates"].values():
        assert found["largest difference"] < 1e-5


def test_formats_beside_float32(movies, llms):
    """What is rounded comes out close; bfloat16 with its products in float32 is as close to bfloat16 as this is exact."""
    name, tiny = movies
    rows = precision.prompted_rows(llms("llama"), {**tiny, "cache_dir": None}, name)
    found = dict(precision.measure(*rows, list(precision.FORMATS), 2048))
    assert found["float32"]["largest difference"] == 0 and "p" not in found["float32"]
    for of, bound in {"bfloat16": 0.03, "rounded": 0.03, "int8": 0.2}.items():
        assert 0 < found[of]["largest difference"] < bound and 0 <= found[of]["p"] <= 1
    half = rows[0].backbone.model.bfloat16()
    x, weight = torch.randn(40, half.config.hidden_size).bfloat16(), next(half.model.layers[0].mlp.gate_proj.parameters())
    with precision.Rounded():
        ours = torch.nn.functional.linear(x, weight)
    exact = (x.double() @ weight.double().T).bfloat16()
    assert ours.dtype == torch.bfloat16 and (ours == exact).float().mean() > 0.99


@pytest.mark.slow
def test_every_way_to_tune_gives_the_same_losses(movies, llms):
    """By our own trainer, by Hugging Face's, and by the paper's loop; begun again, ours gives them again."""
    name, tiny = movies
    settings = {**tiny, "llm": llms("llama"), **training.SETTINGS, "train_shots": 12, "train_batch_size": 8}
    run = training.Run(make_config("ReLLa", name, None, settings))
    expected = run.ours()
    assert run.steps == 3 and len(run) == 24 and abs(expected[0] - expected[2]) > 1e-3
    for losses in (run.ours(), training.trainer(run), training.paper(run)):
        np.testing.assert_allclose(losses, expected, atol=2e-5)
    assert not any("lora" in name for name, _ in run.llm.named_parameters())


def test_operations_count_shared_beginnings_once(work):
    needed, attention, tokens, computed, way = scoring.operations(work)
    ids = work.ids()
    distinct = {tuple(i[:n]) for i in ids for n in range(1, len(i) + 1)}
    assert way == "pieces" and tokens == sum(map(len, ids)) and computed == len(distinct)
    pairs = sum(len(beginning) for beginning in distinct)
    assert attention == 4 * 128 * 4 * pairs and needed > attention


def _case(k, rows, kind="retrieved"):
    candidates = {name: {"rows a second": rows / k} for name in ("ours", "plain loop")}
    return {"shape": "1M", "kind": kind, "K": k, "rows": rows, "candidates": candidates}


def test_curves_are_over_one_variable_each(tmp_path):
    cases = [_case(k, 32) for k in (60, 5, 30, 15)] + [_case(15, 8), _case(15, 120), _case(15, 100, "top-N")]
    record = {"cases": dict(enumerate(cases))}
    ((key, sweeps),) = scoring_report.curves(record).items()
    assert key == ("1M", "retrieved")
    assert [(c["K"], c["rows"]) for c in sweeps["K"]] == [(5, 32), (15, 32), (30, 32), (60, 32)]
    assert [(c["K"], c["rows"]) for c in sweeps["rows"]] == [(15, 8), (15, 32), (15, 120)]
    scoring_report.picture(record, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    scoring_report.picture({"cases": {0: _case(5, 8)}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_page_of_speed_says_what_its_records_say(tmp_path, monkeypatch):
    """Nothing on it was written by hand."""
    written = Path(page.FOLDER, "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr(page, "FOLDER", Path(shutil.copytree(page.FOLDER, tmp_path / "speed")))
    page.write_page("python -m benchmarks.speed")
    assert (tmp_path / "speed" / "README.md").read_text(encoding="utf-8") == written
    assert written.count("\n## ") > 8 and "| int8 |" in written


@pytest.mark.slow
def test_reading_is_measured_where_it_is_recboles_own(tmp_path, monkeypatch):
    """`measure` compares what both have read."""
    folder = tmp_path / "small"
    reading.write_data_set(folder, 3000)
    found = reading.measure(folder, 50, compare=True)
    assert found["rows"] == 3000 and found["users"] == 20 and found["RecBole's own reading"]["times ours"] > 0
    steps = ["reading", "RecBole's filters", "internal ids", "rows and histories", "min_history", "printing it", "split"]
    assert list(found["stages"]) == [*steps, "retrieval of 50 rows"]
    assert max(stage["peak_mib"] for stage in found["stages"].values()) == found["peak_mib"] > 100
    assert found["seconds"] >= sum(stage["seconds"] for stage in found["stages"].values())
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    monkeypatch.setattr(measure, "FOLDER", tmp_path)
    measure.write("reading", {"command": "reading", "machine": measure.machine(), "data set": "synthetic", **found})
    page.write_page("command")
    assert (
        "| retrieval of 50 rows |" in (tmp_path / "README.md").read_text()
        and "all values are equal" in (tmp_path / "README.md").read_text()
    )


@pytest.mark.slow
def test_memory_of_a_call_is_what_it_takes():
    """Pages of the system, without an allocator that may have some at hand."""

    def large():
        with mmap.mmap(-1, 100 * 2**20) as pages:
            for place in range(0, len(pages), mmap.PAGESIZE):
                pages[place] = 1

    found = measure.in_turn({"large": large, "small": lambda: 0}, 2)
    if found["large"]["peak_mib"] is None:
        pytest.skip("this system does not tell the peak of resident memory")
    assert abs(found["large"]["peak_mib"] - 100) < 5 and found["small"]["peak_mib"] < 5
    assert len(found["large"]["all"]) == 2


@pytest.mark.parametrize("tied", [False, True])
def test_memory_of_weights_is_that_of_a_built_llm(tied):
    config = memory.LlamaConfig(**{**memory.SMALL.to_dict(), "tie_word_embeddings": tied})
    built = memory.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in built.state_dict().values()}
    empty = memory.empty_llm(config)
    assert memory.weight_bytes(empty, "bfloat16") == sum(storages.values())
    linear = [m.weight for name, m in built.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    rest = sum(storages.values()) - sum(2 * weight.numel() for weight in linear)
    assert memory.weight_bytes(empty, "8bit") == rest + sum(weight.numel() + 4 * len(weight) for weight in linear)
    assert memory.weight_bytes(empty, "4bit") == rest + sum(weight.numel() * (1 / 2 + 4 / 64) + 64 for weight in linear)
    tuned = memory.add_lora(built, 8, 16, 0.0, ["q_proj", "v_proj"])
    counted = sum(4 * p.numel() * p.element_size() for p in tuned.parameters() if p.requires_grad)
    assert memory.adapter_bytes(empty, memory.SMALL_SETTINGS) == counted


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_of_activations_is_what_autograd_keeps(checkpointing):
    measured = memory.measured_activations(memory.SMALL, memory.SMALL_SETTINGS, checkpointing)
    computed = memory.kept_bytes(memory.SMALL, memory.SMALL_SETTINGS, checkpointing)
    assert measured <= computed * 1.001 and computed <= measured * 1.03


def test_what_the_page_says_of_24_gb():
    def fits(name, kind, checkpointing, tokens=8192):
        return memory.needed(name, kind, checkpointing, memory.Settings(micro_tokens=tokens))["all"] <= memory.CARD

    for name in memory.LLMS:
        assert fits(name, "4bit", True) and fits(name, "8bit", True) and fits(name, "bfloat16", True) == ("13B" not in name)
        assert not any(fits(name, kind, False) for kind in memory.WEIGHTS) and fits(name, "4bit", False, 1024)
        assert fits(name, "8bit", False, 1024) == ("13B" not in name)


@pytest.mark.slow
def test_history_features_of_many_rows_are_those_of_each():
    rows, genres = history_features.synthetic(3000)
    features = HistoryFeatures(
        rows=rows,
        histories=Histories(rows, int(rows.user.max()) + 1),
        statistics=ItemStatistics.of(rows),
        names=history_features.NAMES,
        values={"genre": genres},
        taste=Taste(**taste_arrays(rows, (int(rows.user.max()) + 1, int(rows.item.max()) + 1))),
        likes=ItemStatistics.of(rows, rows.label),
    )
    some = np.arange(0, 3000, 37)
    each = np.array([features.of(row, rows.item[[row]])[0] for row in some])
    np.testing.assert_allclose(features.of_rows(some), each, rtol=1e-5, atol=1e-5)
    case = history_features.measured(3000)
    assert case["features"] == len(history_features.NAMES) == 17 and case["values that are there"] > 0.9
    record = {"command": "x", "machine": {"cpu": "y"}, "cases": [case]}
    assert "| 3,000 |" in history_features.page(record)


def test_what_a_search_chose_is_written_with_its_trials(movies, monkeypatch):
    """The settings of an entry that a table takes; and every trial by its validation metrics, none by those of the test part."""
    name, tiny = movies
    Path("fm.hyper").write_text("embedding_size choice [4,8]\nlearning_rate choice [0.01]\n")
    monkeypatch.setattr(tuned, "space_of", lambda entry: Path("fm.hyper"))
    monkeypatch.setattr(tuned, "tuned_file", lambda label, dataset: Path(f"{label}.yaml"))
    tuned.search("FM+history", name, 2, {**tiny, "stopping_step": 4}, Path("searches"))
    chosen, trials = yaml.safe_load(Path("FM+history.yaml").read_text()), pd.read_csv(f"results/tuned/{name}/FM+history.csv")
    assert chosen["embedding_size"] == trials["embedding_size"][0] and chosen["stopping_step"] == 4
    assert not {"data_path", "checkpoint_dir", "show_progress"} & set(chosen)
    assert {"auc", "uauc"} <= set(trials) and trials["auc"].is_monotonic_decreasing
    assert 1 <= len(trials) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sweep"),
    [
        ("zero_shot", "history_size:0,3"),
        ("zero_shot_titles", "history_size:3,4"),
        ("wording", None),
        ("few_shot", "train_shots:8,16"),
        ("numbers", None),
        ("rank", "lora_r:2,4"),
        ("rellax", None),
        ("rellax_stages", None),
    ],
)
def test_tables_of_a_real_llm(name, sweep, movies, in_this_process, monkeypatch):
    """With a small LLM: every entry can be used, and a table goes where the page says."""
    data, tiny = movies
    table = replace(real_llm.TABLES[name], sweep=sweep)
    monkeypatch.setitem(real_llm.TABLES, name, replace(table, entries=tuple(e for e in table.entries if e not in SLOW_RIVALS)))
    monkeypatch.setattr(real_llm, "ENTRIES", real_llm.ENTRIES.resolve())
    (Path("benchmarks") / "real_llm").mkdir(parents=True)
    (Path("benchmarks") / "real_llm" / "entries").symlink_to(real_llm.ENTRIES)
    given = {key: value for key, value in tiny.items() if key not in ("train_history", "epochs", "retrieval_encoder", "beside")}
    folder = real_llm.make_table(name, data, 20, 10, None, given)
    found = pd.read_csv(folder / ("table.csv" if sweep is None else f"sweep-{sweep.partition(':')[0]}.csv"))
    labels = {Path(label).stem for label in real_llm.TABLES[name].entries}
    assert labels <= set(found["model"]) and found["test AUC"].between(0, 1).all()
    assert folder == Path("results") / "real_llm" / data / name


SLOW_RIVALS = ("DeepFM+history", "LightGBM+history", "SIM")


@pytest.mark.parametrize("name", [name for name, table in real_llm.TABLES.items() if {"SIM", "Tree"} & set(table.entries)])
def test_rivals_of_a_real_llm_keep_their_own_steps(name):
    """Small batches and its learning rate are the LLM's, and not those of what it is compared with or stands on."""
    assert not {"train_batch_size", "learning_rate", "epochs"} & set(real_llm.TABLES[name].settings)


def test_entries_of_a_real_llm_say_nothing_that_they_do_not_need():
    """Words alone: none but those named after numbers has soft tokens or numbers, and each is named by some table."""
    named = {label for table in real_llm.TABLES.values() for label in table.entries}
    for path in real_llm.ENTRIES.glob("*.yaml"):
        own = yaml.safe_load(path.read_text(encoding="utf-8"))
        has = path.stem.startswith("numbers")
        assert own["spa"] is has and (own["history_fields"] is not None) is has and path.stem in named
