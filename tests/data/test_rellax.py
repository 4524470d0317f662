"""Soft tokens in a run: counted in prompts, trained, saved, loaded, served; what they need is asked for by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import Vectors, write_crm
from peft import PeftModel
from recbole.config import Config
from recbole.data import create_dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_rella import load_data_and_model, run_recbole_rella
from recbole_rella.data.crm import CrmError, write_vectors
from recbole_rella.experiments.stages import run_stages
from recbole_rella.keys import ConfigError
from recbole_rella.llm.backbone import LLMError
from recbole_rella.model.context_aware_recommender.rella import ReLLa
from recbole_rella.prompt.template import TemplateError
from recbole_rella.rows.fields import KIND
from recbole_rella.run_folder import RunChangedError, RunError
from recbole_rella.serving.catalogue import RequestError
from recbole_rella.serving.explanation import explain
from recbole_rella.serving.export import Export, ExportError
from recbole_rella.serving.saved_scorer import ScorerError
from recbole_rella.serving.scorer import Scorer
from recbole_rella.trainer import ReLLaTrainer

HISTORY = {"spa": True, "spa_tokens": ["history"], "history_fields": ["default"], "category_field": "class"}
ALL = {**HISTORY, "spa_tokens": ["behaviours", "target", "user", "history"], "crm": "crm"}


@pytest.fixture
def crm(movies):
    """The run folder of a conventional model on the rows of the small data set."""
    return write_crm(*movies)


def build(name, tiny, **more):
    dataset = create_dataset(Config(model="ReLLa", dataset=name, config_dict={**tiny, **more}))
    return dataset, dataset.build()


@pytest.mark.parametrize("cuts", [False, True])
def test_soft_tokens_are_those_of_the_shown_behaviours_and_of_the_target(cuts, movies, crm, llms):
    name, tiny = movies
    llm = llms("qwen2")
    dataset, parts = build(name, tiny, llm=llm, history_size=8, **ALL)
    rows, targets, kinds = (parts[0].inter_feat[field].numpy()[:40] for field in ("row_id", "item_id", KIND))
    max_tokens = dataset.assembly.prompter.max_tokens
    if cuts:  # the longest prompts drop behaviours, however many tokens a word takes
        max_tokens = max(map(len, dataset.assembly.prompter.token_ids(rows, targets, kinds)[0])) - 1
        dataset, _ = build(name, tiny, llm=llm, history_size=8, max_prompt_tokens=max_tokens, **ALL)
    plain = build(name, tiny, llm=llm, history_size=8)[0].assembly.prompter
    prompter, first, cut = dataset.assembly.prompter, dataset.assembly.backbone.vocabulary, 0
    for row, target, shown in zip(rows, targets, prompter.shown(rows, targets, kinds)):
        ids, kept = prompter.fitted(int(row), int(target), shown)
        soft = [token - first for token in ids if token >= first]
        items = dataset.item_num
        assert soft == [*dataset.rows.item[kept], target, items] and len(ids) <= max_tokens
        words = plain.tokenizer.ids(plain.text(int(row), int(target), kept))
        assert [token for token in ids if token < first] == words
        cut += len(shown) - len(kept)
    assert (cut > 0) == cuts


def scores_of(folder):
    config, model, dataset, _, _, test = load_data_and_model(folder)
    scores = {}
    for interaction, *_ in test:
        scores.update(zip(interaction["row_id"].tolist(), model.predict(interaction.to(config["device"])).tolist()))
    return scores, model


def test_a_run_with_soft_tokens(movies, crm, llms):
    """Trained, saved in PEFT's format and beside it, loaded, served: one score of each row."""
    name, tiny = movies
    settings = {
        **tiny,
        "llm": llms("qwen2"),
        "run_folder": "run",
        "learning_rate": 0.05,
        "train_shots": 60,
        "spa_init": "xavier",
        **ALL,
    }
    run_recbole_rella("ReLLa", name, config_dict=settings)
    told = pd.read_csv("run/test_predictions.csv").set_index("row_id")["score"]
    found, model = scores_of("run")
    np.testing.assert_array_equal([found[row] for row in told.index], told.to_numpy(np.float32))
    # What is saved: adapters that PEFT loads, and projectors that were trained.
    assert PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llms("qwen2")), "run/adapter")
    saved = load_file("run/adapter/soft_tokens.safetensors")
    assert {name.split(".")[1] for name in saved if name.startswith("projectors")} == {"item", "user", "history"}
    assert all(saved[f"projectors.{kind}.2.bias"].abs().sum() > 0 for kind in ("item", "user", "history"))
    # Another vector of an item or a user, or another history, gives another score.
    before = model.predict(batch := next(iter(load_data_and_model("run")[5]))[0])
    for parameter in (
        model.rellax.soft.projectors["item"],
        model.rellax.soft.projectors["user"],
        model.rellax.soft.projectors["history"],
    ):
        kept = parameter[0].weight.clone()
        parameter[0].weight.data.zero_()
        assert (model.predict(batch) - before).abs().max() > 1e-6
        parameter[0].weight.data.copy_(kept)
    # Candidates of users, told twice: by the run, and by what it saved for new users.
    scorer = Scorer.load("run")
    rows = scorer.dataset.rows
    last = {int(rows.user[row]): row for row in range(len(rows))}
    row = max(set(last.values()) & set(told.index.tolist()))
    user, item = scorer.dataset.user_ids[rows.user[row]], scorer.dataset.item_ids[rows.item[row]]
    assert explain(scorer, row).score == pytest.approx(told[row], abs=1e-5)
    scorer.save_pretrained("scorer")
    history = [["101", 5, 100], ["104", 2, 50], [{"movie_title": "Horror Story 99", "class": "Horror"}, 1, 5.5]]
    request = {"profile": {"age": 33}, "history": history, "candidates": ["102", {"movie_title": "Comedy 5", "class": "Comedy"}]}
    expected = scorer.score_many([request])["score"]
    assert scorer.score([item], user_id=user)["score"].between(0, 1).all()
    shutil.rmtree("crm")
    np.testing.assert_array_equal(Scorer.from_pretrained("scorer", device="cpu").score_many([request])["score"], expected)
    path = Path("scorer/scorer.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": "0.9.0"}))
    with pytest.raises(ScorerError, match="one soft token for all that belongs to a row, .* as version 0.9.0 had it. Tune"):
        Scorer.from_pretrained("scorer", device="cpu")


def test_history_numbers_alone_need_no_model(movies):
    name, tiny = movies
    result = run_recbole_rella("ReLLa", name, config_dict={**tiny, "run_folder": "run", "train_shots": 30, **HISTORY})
    assert 0 <= result["test_result"]["auc"] <= 1 and json.loads(Path("run/identity.json").read_text())["crm"] is None
    told = pd.read_csv("run/test_predictions.csv").set_index("row_id")["score"]
    found, _ = scores_of("run")
    np.testing.assert_array_equal([found[row] for row in told.index], told.to_numpy(np.float32))


@pytest.mark.slow
def test_gates_over_the_adapters_of_an_earlier_run(movies, crm, llms):
    """The third stage of ReLLaX. Before any step it scores as the run whose adapters it takes; tuning leaves these as they are."""
    name, tiny = movies
    tiny = {**tiny, "llm": llms("qwen2"), "learning_rate": 0.05, "train_shots": 40}
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "run_folder": "second"})
    before = pd.read_csv("second/test_predictions.csv").set_index("row_id")["score"]
    third = {**tiny, "adapter_from": "second", "cflora": True, "crm": "crm"}
    run_recbole_rella("ReLLa", name, config_dict={**third, "epochs": 0, "run_folder": "none"})
    np.testing.assert_allclose(pd.read_csv("none/test_predictions.csv").set_index("row_id")["score"], before, atol=1e-6)
    run_recbole_rella("ReLLa", name, config_dict={**third, "spa": True, "run_folder": "third"})
    told = pd.read_csv("third/test_predictions.csv").set_index("row_id")["score"]
    assert (told - before).abs().max() > 1e-4
    ours, theirs = (load_file(f"{run}/adapter/adapter_model.safetensors") for run in ("third", "second"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llms("qwen2")), "third/adapter")
    # The run holds its adapters.
    shutil.rmtree("second")
    found, model = scores_of("third")
    np.testing.assert_array_equal([found[row] for row in told.index], told.to_numpy(np.float32))
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"rellax"} and not model.rellax.soft.table.requires_grad
    request = {"profile": {"age": 33}, "history": [["101", 5, 100], ["104", 2, 50]], "candidates": ["102", "103"]}
    scorer = Scorer.load("third")
    scorer.save_pretrained("scorer")
    expected = scorer.score_many([request])["score"]
    np.testing.assert_array_equal(Scorer.from_pretrained("scorer", device="cpu").score_many([request])["score"], expected)
    known = scorer.score(["102", "103"], user_id="3")["score"]
    assert ((known > 0) & (known < 1)).all()


def test_adapters_that_do_not_fit_are_refused(movies, crm, llms):
    name, tiny = movies
    tiny = {**tiny, "llm": llms("qwen2"), "epochs": 0}
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "run_folder": "untuned"})
    third = {**tiny, "adapter_from": "untuned", "cflora": True, "crm": "crm"}
    with pytest.raises(LLMError, match="found some whose B is 0"):
        run_recbole_rella("ReLLa", name, config_dict=third)
    with pytest.raises(RunError, match="lora_alpha 16, found 4"):
        run_recbole_rella("ReLLa", name, config_dict={**third, "lora_alpha": 4})
    with pytest.raises(RunChangedError, match="llm: the LLM"):
        run_recbole_rella("ReLLa", name, config_dict={**third, "llm": llms("llama")})
    with pytest.raises(ConfigError, match="adapter_from: expected none without spa and cflora"):
        run_recbole_rella("ReLLa", name, config_dict={**tiny, "adapter_from": "untuned"})


def test_another_conventional_model_is_told(movies, crm, llms):
    name, tiny = movies
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "llm": llms("llama"), "run_folder": "run", "epochs": 0, **ALL})
    write_vectors(Path("run/crm"), Vectors(crm, seed=1), crm)  # its own copy
    with pytest.raises(RunChangedError, match="crm: the conventional model of soft tokens"):
        load_data_and_model("run")
    load_data_and_model("run", allow_changed=["crm"])


def test_what_soft_tokens_need_is_asked_for(movies, crm, llms, monkeypatch):
    name, tiny = movies
    tiny = {**tiny, "llm": llms("llama")}
    with pytest.raises(ConfigError, match=r"crm: expected the folder of a run .* as spa_tokens has behaviours"):
        build(name, tiny, spa=True)
    with pytest.raises(ConfigError, match="history_fields: expected default, or names of numbers"):
        build(name, tiny, spa=True, spa_tokens=["history"], history_fields=["mean_embedding"])
    with pytest.raises(ConfigError, match="spa_tokens: expected a list of words among behaviours, target, user, history, row"):
        build(name, tiny, spa=True, spa_tokens=["items"])
    Path("mine.jinja").write_text("{{ question }}\n{{ target.text }}:")
    with pytest.raises(TemplateError, match="nothing of behaviour 1 of"):
        build(name, tiny, prompt_template="mine.jinja", **{**ALL, "spa_tokens": ["behaviours"]})
    Path("mine.jinja").write_text("{% for b in behaviours %}{{ '%-40s' % b.text }} {{ b.answer }}\n{% endfor %}{{ target.text }}:")
    with (
        monkeypatch.context() as patch,
        pytest.raises(TemplateError, match="the same where behaviour.text, .answer, .rating are mark"),
    ):
        patch.setattr("recbole_rella.data.assembly.llm_path", None)  # before an LLM is looked for
        build(name, tiny, prompt_template="mine.jinja", **ALL)
    only_items = Vectors(crm)
    del Vectors.user_vectors
    try:
        write_vectors(Path("crm"), only_items, crm)
    finally:
        Vectors.user_vectors = lambda self: self._users
    with pytest.raises(CrmError, match="vectors of users, as spa_tokens or cflora_input has user; FM has none"):
        build(name, tiny, **ALL)


@pytest.mark.parametrize("family", ["qwen2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama-3", "gemma-3"))])
def test_soft_tokens_of_items_are_exported_as_tokens(family, movies, crm, llms):
    """By transformers alone, with its head tied to its embedding or not, with an embedding that scales: the scores of the run."""
    name, tiny = movies
    settings = {**tiny, "llm": llms(family), "train_shots": 20, "learning_rate": 0.05, "run_folder": "run"}
    run_recbole_rella("ReLLa", name, config_dict={**settings, "spa": True, "crm": "crm", "spa_init": "xavier"})
    export = Export("run")
    export.write_prompts("prompts.jsonl")
    export.write_model("llm")
    llm, tokenizer = AutoModelForCausalLM.from_pretrained("llm").eval(), AutoTokenizer.from_pretrained("llm")
    soft, found, expected = export.dataset.assembly.prompter.soft, [], []
    assert len(tokenizer) == llm.config.get_text_config().vocab_size == soft.first + export.dataset.item_num
    for line in Path("prompts.jsonl").read_text().splitlines():
        record = json.loads(line)
        ids, answers = record["prompt_token_ids"], [record["answers"][answer]["token_id"] for answer in ("yes", "no")]
        assert tokenizer.convert_ids_to_tokens(max(ids)).startswith("<|item ")
        assert tokenizer(record["prompt"], add_special_tokens=record["add_special_tokens"])["input_ids"] == [
            token for token in ids if token < soft.first
        ]
        with torch.no_grad():
            found.append(torch.softmax(llm(torch.tensor([ids])).logits[0, -1, answers], -1)[0].item())
        expected.append(record["score"])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_belongs_to_rows_is_not_exported(movies, llms):
    name, tiny = movies
    run_recbole_rella("ReLLa", name, config_dict={**tiny, "llm": llms("qwen2"), "epochs": 0, "run_folder": "run", **HISTORY})
    for write in (lambda export: export.write_model("llm"), lambda export: export.write_prompts("prompts.jsonl")):
        with pytest.raises(ExportError, match=r"export: expected soft tokens of items alone .*, found \('history',\)"):
            write(Export("run"))
    assert not Path("llm").exists()


def test_passes_that_reach_nothing_trained(movies, llms, monkeypatch):
    """Prompts without behaviours, where projectors of behaviours alone are trained."""
    name, tiny = movies
    settings = {**tiny, "llm": llms("qwen2"), "min_history": 0, "train_shots": 60, "learning_rate": 0.05}
    write_crm(name, settings)
    run_recbole_rella("ReLLa", name, config_dict={**settings, "run_folder": "tuned"})
    reached, losses = [], ReLLa.losses

    def keeping(self, *given, **more):
        for loss in losses(self, *given, **more):
            gradients = torch.autograd.grad(loss, list(self.rellax.soft.projectors.parameters()), retain_graph=True)
            reached.append(any(gradient.any() for gradient in gradients))
            yield loss

    monkeypatch.setattr(ReLLa, "losses", keeping)
    own = {"spa": True, "spa_tokens": ["behaviours"], "crm": "crm", "adapter_from": "tuned", "run_folder": "run"}
    run_recbole_rella("ReLLa", name, config_dict={**settings, **own, "train_micro_tokens": 100})
    assert set(reached) == {True, False}
    assert all(tensor.isfinite().all() for tensor in load_file("run/adapter/soft_tokens.safetensors").values())


@pytest.mark.slow
def test_a_resumed_run_with_soft_tokens_and_gates(movies, llms, monkeypatch):
    name, tiny = movies
    own = {**HISTORY, "cflora": True, "cflora_input": "history", "learning_rate": 0.05, "train_shots": 60, "checkpoint_minutes": 0}
    settings = {**tiny, **own, "llm": llms("qwen2")}
    run_recbole_rella("ReLLa", name, config_dict={**settings, "run_folder": "whole"})
    after_step, steps = ReLLaTrainer._after_step, []

    def stopping(trainer):
        after_step(trainer)
        steps.append(1)
        if len(steps) == 4:
            raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(ReLLaTrainer, "_after_step", stopping)
        run_recbole_rella("ReLLa", name, config_dict={**settings, "run_folder": "other"})
    run_recbole_rella("ReLLa", name, config_dict={**settings, "resume_from": "other"})
    assert Path("whole/test_predictions.csv").read_text() == Path("other/test_predictions.csv").read_text()
    for file in ("soft_tokens", "gates"):
        ours, theirs = (load_file(f"{run}/adapter/{file}.safetensors") for run in ("whole", "other"))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


PLUGIN = """
import torch
from recbole.model.context_aware_recommender.fm import FM
class WithRows(FM):
    def row_vectors(self, interaction):
        return self.concat_embed_input_fields(interaction).sum(dim=1)
"""


def test_gates_made_of_the_representation_of_each_row(movies, llms, tmp_path, monkeypatch, in_this_process):
    """What a conventional model says of the rows that are tuned on and evaluated; it says nothing of candidates and requests."""
    name, tiny = movies
    (tmp_path / "own_rows.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    own = {**tiny, "llm": llms("qwen2"), "train_shots": 40, "checkpoint_dir": "runs", "embedding_size": 6, "learning_rate": 0.05}
    row = {"spa": True, "spa_tokens": ["row"], "cflora": True, "cflora_input": "row", "cflora_init": "paper"}
    run_stages("ReLLa", name, None, {**own, **row, "crm": "own_rows.WithRows"})
    (folder,) = Path("runs").glob("*/ReLLa-*")
    told = pd.read_csv(folder / "test_predictions.csv").set_index("row_id")["score"]
    found, model = scores_of(folder)
    np.testing.assert_array_equal([found[row] for row in told.index], told.to_numpy(np.float32))
    source = model.prompter.soft.sources["row"]
    vectors, rows = source.of_rows(np.array(told.index)), source.crm.rows
    assert vectors.shape == (len(told), 6) and len(rows) == 336 and np.abs(rows.mean(axis=0)).max() < 1
    scorer = Scorer.load(folder)
    with pytest.raises(RequestError, match="numbers of histories, found row"):
        scorer.score(["101"], user_id="3")
    with pytest.raises(CrmError, match="found candidates, of which own_rows.WithRows has left no representations"):
        scorer.score_rows(model.prompter, np.array([told.index[0]]), np.array([scorer.dataset.rows.item[told.index[0]] % 30 + 1]))
    with pytest.raises(CrmError, match="to have a representation of every row, found none of 1, for example row 0"):
        source.of_rows(np.array([0, told.index[0]]))
