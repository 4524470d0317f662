"""vLLM servers by their URLs: OpenAI's completions with token ids in, two log-probabilities out.

Prompts are divided into requests, of which each server has a few at a time; who is free takes the next one. A request that fails
for a reason that may pass (no connection, too busy, a server that ends) goes back, and its server is asked again after a while,
first of all the prompts of the probe: it may have come back as another.
"""

import asyncio
import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urldefrag

import numpy as np

from recbole_rella.engines.engine import Engine, EngineError, two_way
from recbole_rella.llm.backbone import save_adapter

logger = logging.getLogger(__name__)

_A_REQUEST, _AT_A_TIME = 16, 8  # prompts of a request, requests of a server
_CONNECT, _READ = 10, 600  # seconds until a server must have been reached, and have answered
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_PASSES = {408, 409, 425, 429, 500, 502, 503, 504}  # HTTP's codes for what may be otherwise soon


class _Later(Exception):
    """What a server said, or that it said nothing: it may be asked again."""


@dataclass(eq=False)
class _Server:
    """A server: its URL, the model that it shall be asked for, the one that it has, and since when it has not answered."""

    url: str
    wanted: str | None
    model: str | None = None  # proved, or None
    down: float | None = None
    waited: float = 0.0
    proving: asyncio.Lock = field(default_factory=asyncio.Lock)

    def answered(self):
        if self.down is not None:
            self.waited += time.monotonic() - self.down
            self.down = None
            logger.info("%s answers.", self.url)

    def fell(self, error):
        self.model = None
        if self.down is None:
            self.down = time.monotonic()
            logger.warning("%s does not answer (%s); it is asked again.", self.url, error)


class Servers(Engine):
    """Servers that have the LLM, with the adapters merged in (a folder of --export) or by LoRA.

    Adapters that were tuned are offered to each server as LoRA; one that does not take any is asked for the model that it has. The
    probe tells whether that is the right one.

    Args:
        llm, answer_ids: as of `Engine`.
        urls (list of str): of the servers, without /v1; what follows # is the model to ask for, else the first one.
        patience (float): seconds that may pass without any answer before it is given up.

    Raises:
        EngineError: aiohttp is not installed.
    """

    def __init__(self, llm, answer_ids, urls, patience=600.0):
        super().__init__(llm, answer_ids)
        try:
            import aiohttp
        except ImportError as error:
            raise EngineError("scoring_engine: expected aiohttp to be installed, found none: pip install '.[server]'") from error
        self._http, self.name, self._patience = aiohttp, ", ".join(urls), patience
        self._urls = urls
        self._adapters = self._lora = None
        self._scored, self._seconds, self._waited = 0, 0.0, 0.0

    def told(self):
        """Prompts a second, and for how long servers did not answer."""
        if not self._scored:
            return ""
        waited = f", {self._waited:.0f} s without an answer of a server" if self._waited >= 1 else ""
        return f"{self._scored / self._seconds:.1f} prompts/s{waited}"

    def _take(self, rellax, weights):
        self._lora = self._adapters = None
        settings = self.llm.peft_config[self.llm.active_adapter]
        # vLLM's servers refuse DoRA, and scale all adapters alike. A folder with such adapters merged in they serve as any other.
        others = any(getattr(settings, name) for name in ("use_dora", "rank_pattern", "alpha_pattern"))
        if not others and any(parameter.any() for name, parameter in self.llm.named_parameters() if ".lora_B" in name):
            self._adapters = TemporaryDirectory(prefix="recbole_rella-adapter-")
            save_adapter(self.llm, Path(self._adapters.name))
            self._lora = f"recbole_rella-{weights}"

    def _prove(self):
        """Each server is proved when it is first reached, and again when it comes back."""

    def _ask(self, ids):
        began, scores = time.monotonic(), np.full(len(ids), np.nan)
        # A loop of its own, in a thread of its own: a notebook has one that runs already.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, self._score(ids, scores)).result()
        self._scored, self._seconds = self._scored + len(ids), self._seconds + time.monotonic() - began
        return scores.astype(np.float32)

    async def _score(self, ids, scores):
        """Fill in the scores of prompts."""
        queue, left, done = asyncio.PriorityQueue(), len(ids), asyncio.Event()
        for begin in range(0, len(ids), _A_REQUEST):
            queue.put_nowait(begin)
        last = time.monotonic()

        async def work(session, server):
            nonlocal left, last
            pause = _FIRST_PAUSE
            while True:
                begin = await queue.get()
                part = slice(begin, begin + _A_REQUEST)
                try:
                    await self._trust(session, server)
                    scores[part] = await self._completions(session, server.url, server.model, ids[part])
                except _Later as error:
                    queue.put_nowait(begin)
                    server.fell(error)
                    if time.monotonic() - last > self._patience:
                        raise EngineError(
                            f"scoring_engine: expected an answer of {self.name} within {self._patience:.0f} seconds, found none; "
                            f"the last thing that {server.url} gave: {error}"
                        ) from error
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                else:
                    server.answered()
                    pause, last = _FIRST_PAUSE, time.monotonic()
                    left -= len(ids[part])
                    if not left:
                        done.set()

        # Proved in each call: between two of them a server may have come back as another.
        servers = [_Server(urldefrag(url).url.rstrip("/"), urldefrag(url).fragment or None) for url in self._urls]
        timeout = self._http.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_READ)
        key = os.environ.get("VLLM_API_KEY")  # where vLLM's server looks for it, too
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        connector = self._http.TCPConnector(limit=0)
        async with self._http.ClientSession(timeout=timeout, connector=connector, headers=headers) as session:
            tasks = [asyncio.create_task(work(session, server)) for server in servers for _ in range(_AT_A_TIME)]
            finished = asyncio.create_task(done.wait())
            try:
                await asyncio.wait([finished, *tasks], return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()  # raises what ended it
            finally:
                for task in (finished, *tasks):
                    task.cancel()
                await asyncio.gather(finished, *tasks, return_exceptions=True)
        self._waited += sum(server.waited + (time.monotonic() - server.down if server.down else 0.0) for server in servers)

    async def _trust(self, session, server):
        """Find the model of a server and prove it, once for all that wait."""
        async with server.proving:
            if server.model is not None:
                return
            model = server.wanted
            if model is None:
                models = _from_json(await self._call(session, "GET", f"{server.url}/v1/models"))
                try:
                    model = models["data"][0]["id"]
                except (KeyError, IndexError, TypeError) as error:
                    raise EngineError(
                        f"scoring_engine: expected {server.url} to name its models, found {str(models)[:500]}"
                    ) from error
                if self._lora is not None and await self._takes_lora(session, server):
                    model = self._lora
            self._compare(await self._completions(session, server.url, model, self._probe), server.url)
            server.model = model

    async def _takes_lora(self, session, server):
        """Whether a server has taken the adapters; one that has them already says so by an error."""
        body = {"lora_name": self._lora, "lora_path": self._adapters.name}
        try:
            await self._call(session, "POST", f"{server.url}/v1/load_lora_adapter", body)
        except EngineError as error:
            logger.debug("%s takes no adapters: %s", server.url, error)
            return "already been loaded" in str(error)
        return True

    async def _completions(self, session, url, model, ids):
        """P(yes) of the prompts of one request, float64 [n]."""
        yes, no = self.answer_ids
        body = {
            "model": model,
            "prompt": ids,
            "max_tokens": 1,
            # Defaults of sampling may come with an LLM, or with the server: each is named.
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": 2,
            "allowed_token_ids": [yes, no],
            "return_tokens_as_token_ids": True,
        }
        answer = _from_json(await self._call(session, "POST", url + "/v1/completions", body))
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            found = [dict(choice["logprobs"]["top_logprobs"][0]) for choice in choices]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(f"scoring_engine: expected {url} to answer as vLLM does, found {str(answer)[:500]}") from error
        names = f"token_id:{yes}", f"token_id:{no}"
        if not all(name in one for one in found for name in names):
            raise EngineError(
                f"scoring_engine: expected log-probabilities of both answers from {url}, found one of them alone: start the "
                "server with --logprobs-mode processed_logprobs."
            )
        return two_way([one[names[0]] for one in found], [one[names[1]] for one in found])

    async def _call(self, session, method, url, body=None):
        """The text that a server answers.

        Raises:
            _Later: it cannot be reached, or may answer otherwise soon; EngineError: it refuses.
        """
        try:
            async with session.request(method, url, json=body) as answer:
                text = await answer.text()
                if answer.status in _PASSES:
                    raise _Later(f"HTTP {answer.status}: {text[:200]}")
                if answer.status >= 400:
                    raise EngineError(f"scoring_engine: {url} refuses (HTTP {answer.status}): {text[:500]}")
                return text
        except (self._http.ClientError, TimeoutError, asyncio.TimeoutError, ConnectionError) as error:
            raise _Later(f"{type(error).__name__}: {error}") from error


def _from_json(text):
    """What a server answers; the text itself where it is no JSON, in which nobody finds what is expected."""
    try:
        return json.loads(text)
    except ValueError:
        return text
