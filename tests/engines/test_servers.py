"""Servers that score: the same scores as here, whatever happens to a server meanwhile; none is trusted that has another LLM.

The servers of these tests speak vLLM's protocol over real sockets, and score by plain transformers; test_vllm.py has vLLM's own.
"""

import asyncio
import json
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from aiohttp import web
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.vllm_server import free_port
from recbole_rella import run_recbole_rella
from recbole_rella.engines import EngineError, servers
from recbole_rella.keys import ConfigError
from recbole_rella.serving.export import Export
from recbole_rella.serving.requests import score_file
from recbole_rella.serving.scorer import Scorer


class Server:
    """A server on a free port, or on a given one, in a thread of its own.

    Args:
        folder: of the LLM.
        port (int): 0 for a free one.
        page (str, optional): that it answers to everything.
        takes_lora (bool): whether adapters may be loaded while it runs.
        whole (bool): whether log-probabilities are over the whole vocabulary, as is vLLM's default.
        key (str, optional): that requests must bring.
        is_odd (bool): whether it is no vLLM, and gives no log-probabilities.
    """

    def __init__(self, folder, port=0, takes_lora=False, whole=False, key=None, is_odd=False, page=None):
        self.llm, self.takes_lora, self.whole = AutoModelForCausalLM.from_pretrained(folder).eval(), takes_lora, whole
        self.key, self.is_odd, self.page = key, is_odd, page
        self.models, self.prompts, self.seen, self.failures = {"served": self.llm}, [], [], []
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1 << 26)
        app.add_routes(
            [
                web.get("/v1/models", self._models),
                web.post("/v1/completions", self._completions),
                web.post("/v1/load_lora_adapter", self._lora),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        self._loop.run_until_complete(self._runner.setup())
        self._loop.run_until_complete(web.SockSite(self._runner, self._socket).start())
        self._loop.run_forever()

    def stop(self):
        """End it: what is under way is cut off."""
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _models(self, _):
        if self.page is not None:
            return web.Response(text=self.page, content_type="text/html")
        return web.json_response({"data": [{"id": name} for name in self.models]})

    async def _lora(self, request):
        if not self.takes_lora:
            return web.json_response({"detail": "Not Found"}, status=404)
        body = await request.json()
        if body["lora_name"] in self.models:
            return web.json_response({"error": f"The lora adapter '{body['lora_name']}' has already been loaded."}, status=400)
        base = AutoModelForCausalLM.from_pretrained(self.llm.name_or_path)
        self.models[body["lora_name"]] = PeftModel.from_pretrained(base, body["lora_path"]).eval()
        return web.Response(text="Success")

    async def _completions(self, request):
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if self.is_odd:
            return web.json_response({"choices": [{"index": 0, "text": "Yes"}]})
        body = await request.json()
        assert body["max_tokens"] == body["temperature"] == body["repetition_penalty"] == 1 and body["logprobs"] == 2
        if self.failures and (status := self.failures.pop(0)) is not None:
            if status == "cut":
                request.transport.close()
            return web.json_response({"error": "no"}, status=500 if status == "cut" else status)
        self.seen.append(len(body["prompt"]))
        await asyncio.sleep(0.01)
        if body["model"] not in self.models:
            return web.json_response({"error": f"The model {body['model']} does not exist."}, status=404)
        yes, no = body["allowed_token_ids"]
        choices = []
        for place, ids in enumerate(body["prompt"]):
            with torch.no_grad():
                logits = self.models[body["model"]](torch.tensor([ids])).logits[0, -1]
            found = {f"token_id:{token}": float(logits[token]) for token in (yes, no)}
            if self.whole:
                found = {f"token_id:{int(logits.argmax())}": 0.0, f"token_id:{yes}": found[f"token_id:{yes}"]}
            choices.append({"index": place, "logprobs": {"top_logprobs": [found]}})
            self.prompts.append(tuple(ids))
        return web.json_response({"choices": choices[::-1]})  # vLLM gives them in the order in which they end


@pytest.fixture
def start():
    """Starts servers, which end with the test."""
    started = []

    def make(*args, **more):
        started.append(Server(*args, **more))
        return started[-1]

    yield make
    for server in started:
        if server._thread.is_alive():
            server.stop()


@pytest.fixture
def quick(monkeypatch):
    """Small requests, and short pauses."""
    for name, value in {"_A_REQUEST": 2, "_FIRST_PAUSE": 0.02, "_LONGEST_PAUSE": 0.1}.items():
        monkeypatch.setattr(servers, name, value)


def tuned(movies, folder, **more):
    """A run over a small LLM of its own, so that exporting and serving it is what a user would do."""
    name, tiny = movies
    settings = {**tiny, "llm": str(folder), "learning_rate": 0.05, "train_shots": 16, "run_folder": "run", "beside": [], **more}
    run_recbole_rella("ReLLa", name, config_dict=settings)
    return pd.read_csv("run/test_predictions.csv", dtype={"user_id": str, "item_id": str})


@pytest.fixture
def run(movies, llms):
    """A finished run at run/, its export at llm/, and its predictions."""
    predictions = tuned(movies, llms("qwen2.5"))
    Export("run").write_model("llm")
    return predictions


def scores(scorer, predictions):
    prompter, rows = scorer.dataset.assembly.prompter, predictions["row_id"].to_numpy()
    return scorer.score_rows(prompter, rows, scorer.dataset.rows.item[rows])


def test_scores_are_those_of_transformers_and_servers_share_the_work(run, start, quick):
    first, second = start("llm"), start("llm")
    scorer = Scorer.load("run", scoring_engine=f"{first.url}, {second.url}/")
    found = scores(scorer, run)
    np.testing.assert_allclose(found, run["score"], atol=1e-5)
    assert found.dtype == np.float32 and np.ptp(found) > 1e-3
    asked = [prompt for server in (first, second) for prompt in server.prompts]
    probe = len(scorer.engine._probe)
    assert len(asked) == len(run) + 2 * probe and min(len(first.prompts), len(second.prompts)) > probe
    assert scorer.engine.told().endswith("prompts/s")


def test_whatever_may_pass_is_asked_again(run, start, quick, caplog):
    """Busy, broken, cut off: every prompt is scored."""
    caplog.set_level(logging.INFO)
    one, other = start("llm"), start("llm")
    one.failures, other.failures = [None, 503, "cut", 429, None, 500], [408, None, "cut"]
    scorer = Scorer.load("run", scoring_engine=f"{one.url},{other.url}")
    np.testing.assert_allclose(scores(scorer, run), run["score"], atol=1e-5)
    assert not one.failures and f"{one.url} does not answer" in caplog.text and f"{one.url} answers" in caplog.text


def test_a_server_that_ends_and_comes_back_loses_nothing(run, start, quick):
    staying, ending = start("llm"), start("llm")
    scorer = Scorer.load("run", scoring_engine=f"{staying.url},{ending.url}")
    staying.failures = [None] + [503] * 40  # it is of little use for a while
    came = []

    def end_and_begin():
        while len(ending.seen) < 3:
            time.sleep(0.005)
        ending.stop()
        time.sleep(0.1)
        came.append(start("llm", port=ending.port))

    thread = threading.Thread(target=end_and_begin)
    thread.start()
    found = scores(scorer, pd.concat([run] * 4))
    thread.join()
    np.testing.assert_allclose(found, np.tile(run["score"], 4), atol=1e-5)
    assert came[0].seen  # which was proved anew, and took its part


def test_a_server_that_comes_late_is_waited_for(run, start, quick):
    port = free_port()
    scorer = Scorer.load("run", scoring_engine=f"http://127.0.0.1:{port}")
    threading.Timer(0.3, start, ["llm", port]).start()
    np.testing.assert_allclose(scores(scorer, run), run["score"], atol=1e-5)


def test_one_that_never_comes_is_given_up(run, quick):
    port = free_port()
    scorer = Scorer.load("run", scoring_engine=f"http://127.0.0.1:{port}")
    scorer.engine._patience = 0.2
    with pytest.raises(EngineError, match=f"expected an answer of http://127.0.0.1:{port} within 0 seconds, found none; .*Connect"):
        scores(scorer, run)


def test_another_llm_is_not_trusted(run, start, quick, llms, tmp_path):
    base, right = start(llms("qwen2.5")), start("llm")
    with pytest.raises(EngineError, match="those of the LLM without the adapters of this run. Serve the folder that --export"):
        scores(Scorer.load("run", scoring_engine=f"{right.url},{base.url}"), run)
    torch.manual_seed(1)
    llm = AutoModelForCausalLM.from_pretrained("llm")
    for parameter in llm.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter) * parameter.std()
    llm.save_pretrained(tmp_path / "other")
    other = start(tmp_path / "other")
    with pytest.raises(
        EngineError, match=r"expected scores of http.* by at most 0.0001, found .* among 8 prompts \(0.* another LLM"
    ):
        scores(Scorer.load("run", scoring_engine=other.url), run)
    AutoModelForCausalLM.from_pretrained("llm").bfloat16().float().save_pretrained(tmp_path / "rounded")
    with pytest.raises(EngineError, match="So little is another dtype, or a quantized LLM; the run has float32"):
        scores(Scorer.load("run", scoring_engine=start(tmp_path / "rounded").url), run)


def test_what_a_server_refuses_is_told(run, start, quick):
    with pytest.raises(EngineError, match="found one of them alone: start the server with --logprobs-mode processed_logprobs"):
        scores(Scorer.load("run", scoring_engine=start("llm", whole=True).url), run)
    server = start("llm")
    with pytest.raises(EngineError, match=r"/v1/completions refuses \(HTTP 404\): .*The model mine does not exist"):
        scores(Scorer.load("run", scoring_engine=f"{server.url}#mine"), run)
    np.testing.assert_allclose(scores(Scorer.load("run", scoring_engine=f"{server.url}#served"), run), run["score"], atol=1e-5)


def test_a_server_may_want_a_key_and_may_be_no_vllm(run, start, quick, monkeypatch):
    guarded = start("llm", key="secret")
    with pytest.raises(EngineError, match=r"refuses \(HTTP 401\): .*Unauthorized"):
        scores(Scorer.load("run", scoring_engine=guarded.url), run)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    np.testing.assert_allclose(scores(Scorer.load("run", scoring_engine=guarded.url), run), run["score"], atol=1e-5)
    with pytest.raises(EngineError, match="to answer as vLLM does, found {'choices': .*'text': 'Yes'"):
        scores(Scorer.load("run", scoring_engine=start("llm", is_odd=True).url), run)


def test_another_site_is_told_of_at_once(run, start, quick):
    with pytest.raises(EngineError, match="to name its models, found <html>Welcome"):
        scores(Scorer.load("run", scoring_engine=start("llm", page="<html>Welcome").url), run)


def test_threads_take_turns_at_an_engine(run, start, quick, llms):
    """What one brings to it stays as it is while another asks."""
    server = start(llms("qwen2.5"), takes_lora=True)
    scorer, expected = Scorer.load("run", scoring_engine=server.url), run["score"]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: scores(scorer, run), range(8)):
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_adapters_go_as_lora_where_a_server_takes_them(run, start, quick, llms, caplog):
    server = start(llms("qwen2.5"), takes_lora=True)
    for _ in range(2):  # the second finds them loaded
        np.testing.assert_allclose(scores(Scorer.load("run", scoring_engine=server.url), run), run["score"], atol=1e-5)
    assert len(server.models) == 2 and "does not answer" not in caplog.text


@pytest.mark.slow
def test_a_server_is_not_given_adapters_that_it_would_scale_otherwise(start, quick, llms, movies):
    """It gives those of DoRA where they are merged into what it serves."""
    name, tiny = movies
    own = {"llm": llms("qwen2.5"), "lora": {"use_dora": True}, "learning_rate": 0.05, "train_shots": 16, "run_folder": "dora"}
    run_recbole_rella("ReLLa", name, config_dict={**tiny, **own})
    expected = pd.read_csv("dora/test_predictions.csv")
    server = start(llms("qwen2.5"), takes_lora=True)
    with pytest.raises(EngineError, match="They are those of the LLM without the adapters of this run. Serve the folder"):
        scores(Scorer.load("dora", scoring_engine=server.url), expected)
    assert len(server.models) == 1
    Export("dora").write_model("merged")
    found = scores(Scorer.load("dora", scoring_engine=start("merged").url), expected)
    np.testing.assert_allclose(found, expected["score"], atol=1e-5)


def test_a_run_that_tunes_is_evaluated_by_a_server(run, start, quick, llms, movies):
    """Each epoch has other adapters."""
    server = start(llms("qwen2.5"), takes_lora=True)
    name, tiny = movies
    given = {**tiny, "llm": llms("qwen2.5"), "learning_rate": 0.05, "train_shots": 16, "beside": [], "epochs": 2}
    expected = run_recbole_rella("ReLLa", name, config_dict={**given, "run_folder": "here"})
    found = run_recbole_rella("ReLLa", name, config_dict={**given, "run_folder": "there", "scoring_engine": server.url})
    here, there = (pd.read_csv(f"{folder}/test_predictions.csv") for folder in ("here", "there"))
    np.testing.assert_allclose(there["score"], here["score"], atol=1e-5)
    assert found["best_valid_score"] == pytest.approx(expected["best_valid_score"], abs=1e-4) and len(server.models) == 3
    # A finished run is loaded without the server that scored it.
    server.stop()
    np.testing.assert_allclose(scores(Scorer.load("there"), there), here["score"], atol=1e-5)


def test_soft_tokens_of_items_are_scored_by_what_was_exported(movies, llms, start, quick):
    name, tiny = movies
    run_recbole_rella("SIM", name, config_dict={**tiny, "run_folder": "crm", "embedding_size": 6, "epochs": 1})
    predictions = tuned(movies, llms("qwen2.5"), crm="crm", spa=True, spa_init="xavier", spa_tokens=["behaviours", "target"])
    Export("run").write_model("llm")
    server = start("llm")
    np.testing.assert_allclose(scores(Scorer.load("run", scoring_engine=server.url), predictions), predictions["score"], atol=1e-5)


def test_what_no_server_can_have_is_refused_before_anything_is_loaded(movies, llms):
    name, tiny = movies
    soft = {"spa": True, "spa_tokens": ["history"], "history_fields": ["default"]}
    with pytest.raises(
        ConfigError, match="scoring_engine: expected transformers, as spa_tokens has history, for which no exported"
    ):
        run_recbole_rella("ReLLa", name, config_dict={**tiny, **soft, "scoring_engine": "http://127.0.0.1:1"})
    for wrong in ("vllm2", "127.0.0.1:8000", "http://", "", "http://a b", 5, "http://x/?y=1"):
        with pytest.raises(
            ConfigError, match=r"scoring_engine: expected transformers, vllm, or URLs of vLLM servers \(http://host"
        ):
            run_recbole_rella("ReLLa", name, config_dict={**tiny, "scoring_engine": wrong})
    with pytest.raises(ConfigError, match=r"vllm_args: expected a dictionary \{name: value\}, found 3"):
        run_recbole_rella("ReLLa", name, config_dict={**tiny, "vllm_args": 3})


def test_a_file_of_requests_goes_on_where_its_server_ended(run, start, quick, monkeypatch, caplog):
    """Every line once, the scores of transformers, and nothing asked twice that was scored."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("recbole_rella.serving.requests._ENGINE_BATCH", 10)
    lines = [{"id": str(place), "user_id": str(place % 12), "candidates": [str(100 + place % 30), "101"]} for place in range(50)]
    Path("requests.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert score_file(Scorer.load("run"), "requests.jsonl", "plain.csv", show_progress=False) == (50, 0)
    server = start("llm")
    scorer = Scorer.load("run", scoring_engine=server.url)
    scorer.engine._patience, ask = 0.1, scorer.engine._ask

    def ask_until_it_ends(ids):
        if len(server.prompts) > 50:
            server.stop()
        return ask(ids)

    monkeypatch.setattr(scorer.engine, "_ask", ask_until_it_ends)
    with pytest.raises(EngineError, match="expected an answer"):
        score_file(scorer, "requests.jsonl", "scores.csv", show_progress=False)
    (unfinished,) = Path().glob(".scores.csv.*.unfinished")
    assert not Path("scores.csv").exists()
    with open(unfinished, "a") as file:
        file.write("31,30,1")  # torn
    before = len(pd.read_csv(unfinished, dtype=str).dropna()["line"].unique())
    again = start("llm")
    assert score_file(Scorer.load("run", scoring_engine=again.url), "requests.jsonl", "scores.csv", show_progress=False) == (50, 0)
    found, expected = (pd.read_csv(name, dtype={"candidate": str}) for name in ("scores.csv", "plain.csv"))
    pd.testing.assert_frame_equal(found.drop(columns="score"), expected.drop(columns="score"))
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-5)
    # What was written last may be half a request, and is scored again.
    assert 20 <= before < 50 and f"{before - 1} requests were scored before" in caplog.text
    assert len(again.prompts) <= 2 * (51 - before) + 4 * 8 and not list(Path().glob(".scores*"))


def test_what_other_requests_left_is_not_taken(run, monkeypatch):
    scorer = Scorer.load("run")
    Path("requests.jsonl").write_text(json.dumps({"user_id": "3", "candidates": ["101"]}))
    Path(".scores.csv.0123456789abcdef.unfinished").write_text("line,id,candidate,score,rank\n1,,101,0.5,1\n2,,x,0.5,1\n")
    assert score_file(scorer, "requests.jsonl", "scores.csv", show_progress=False) == (1, 0)
    assert pd.read_csv("scores.csv")["line"].tolist() == [1]
    assert list(Path().glob(".scores*")) == [Path(".scores.csv.0123456789abcdef.unfinished")]  # which may be waiting to go on
    other = Scorer.load("run")
    for name, parameter in other.parts.llm.named_parameters():
        if ".lora_B" in name:
            parameter.data += 1
    assert other.identity != scorer.identity == Scorer.load("run").identity
