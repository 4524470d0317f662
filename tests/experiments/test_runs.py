"""Runs of a plan: each is made once, and one that failed starts anew."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

from recbole_rella.experiments import runs

RUN = SimpleNamespace(name="FM-1", settings={"model": "FM"})


class Process:
    """A run that takes a while, and measures something."""

    def __init__(self, folder):
        self.folder, self.stdin = folder, SimpleNamespace(close=lambda: None)

    def wait(self):
        time.sleep(0.3)
        (self.folder / "done.json").write_text("{}")
        return 0

    def kill(self):
        pass


def test_two_commands_with_a_run_in_common_make_it_once(tmp_path, monkeypatch):
    started, told = [], []
    monkeypatch.setattr(runs, "_start", lambda run, folder: started.append(run) or Process(folder))
    monkeypatch.setattr(runs, "_finished", lambda folder: {"auc": 1} if (folder / "done.json").is_file() else None)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: runs.execute([RUN], tmp_path, told.append), range(2)))
    assert started == [RUN] and [outcome.metrics for (outcome,) in both] == [{"auc": 1}] * 2
    assert sorted(line.split(": ")[1].split(",")[0] for line in told) == ["done", "done before", "running", "waiting"]


def test_a_run_that_failed_starts_anew_but_for_what_it_can_go_on_from(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.subprocess, "Popen", lambda *_, **__: None)
    folder = tmp_path / "FM-1"
    (folder / "llm").mkdir(parents=True)
    names = {"config.yaml", "metrics.json", "log.txt", "resume.pt"}
    for name in names:
        (folder / name).write_text(json.dumps(name))
    runs._start(RUN, folder)
    assert {path.name for path in folder.iterdir()} == {*names, "llm", "settings.yaml"}
    (folder / "resume.pt").unlink()
    runs._start(RUN, folder)
    assert {path.name for path in Path(folder).iterdir()} == {"log.txt", "settings.yaml"}
