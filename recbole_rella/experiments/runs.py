"""Run a plan: every run in a process of its own, those that are done kept, those that fail told of and left behind."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import Timeout

from recbole_rella.experiments.child import ERROR
from recbole_rella.files import lock, write_yaml
from recbole_rella.run_folder import RESUME, RunError, read_run

logger = logging.getLogger(__name__)

SETTINGS, LOG, _RUNNING = "settings.yaml", "log.txt", "running"


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its folder, its metrics, or why there are none."""

    run: object
    folder: Path
    metrics: dict | None
    failure: str | None


def _finished(folder):
    """The metrics of a run that is complete, or None."""
    try:
        run = read_run(folder)
    except RunError:
        return None
    return run.metrics if run.is_scored else None


def _why(code, folder):
    """One line on why a run failed."""
    if code < 0:
        return f"killed by signal {-code} ({signal.Signals(-code).name})" + ("; most likely out of memory" if code == -9 else "")
    try:
        return " ".join(json.loads((folder / ERROR).read_text(encoding="utf-8"))["error"].split())
    except (OSError, ValueError, KeyError):
        return f"ended with {code}; see {folder / LOG}"


def _clear(folder):
    """Remove what a run that failed has left, but for its log: it starts anew."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (LOG, f"{_RUNNING}.lock"):
            path.unlink()


def _start(run, folder):
    """Start a run; returns its process."""
    if not (folder / RESUME).is_file():
        _clear(folder)
    (folder / ERROR).unlink(missing_ok=True)
    write_yaml(folder / SETTINGS, {**run.settings, "run_folder": str(folder.resolve())})
    command = [sys.executable, "-m", "recbole_rella.experiments.child", str(folder / SETTINGS)]
    with open(folder / LOG, "ab") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)


@contextmanager
def _alone_in(folder, tell):
    """Commands that have a run in common make it once: the second waits, and finds it done."""
    own = lock(folder / _RUNNING)
    try:
        own.acquire(timeout=0)
    except Timeout:
        tell("waiting, as another command runs it")
        own.acquire()
    try:
        yield
    finally:
        own.release()


def _tell(report, where, text):
    report(f"{where}: {text}")


def _outcome(run, place, tell):
    """What a run measured, or why it failed; it is run unless it is done.

    Returns:
        tuple: dict or None; str or None.
    """
    metrics, failure = _finished(place), None
    if metrics is not None:
        tell("done before")
        return metrics, None
    tell(f"running, log in {place / LOG}")
    began = time.monotonic()
    process = _start(run, place)
    try:
        code = process.wait()
    finally:
        process.kill()
        process.stdin.close()
    metrics = _finished(place)
    if code or metrics is None:
        metrics, failure = None, _why(code, place)
    tell(f"{failure or 'done'}, {time.monotonic() - began:.0f} s")
    return metrics, failure


def execute(runs, folder, report=print):
    """Run what is missing, one after the other.

    Args:
        runs (list of Run): some may be the same run (see Run.name), which is then run once.
        folder (pathlib.Path): gets a folder for each run.
        report (callable): takes a line on what happens.

    Returns:
        list of Outcome: one for each of `runs`, in their order.
    """
    outcomes = {}
    distinct = {run.name: run for run in runs}
    for number, (name, run) in enumerate(distinct.items(), start=1):
        place, tell = Path(folder) / name, partial(_tell, report, f"[{number}/{len(distinct)}] {name}")
        with _alone_in(place, tell):
            outcomes[name] = Outcome(run, place, *_outcome(run, place, tell))
    return [Outcome(run, outcomes[run.name].folder, outcomes[run.name].metrics, outcomes[run.name].failure) for run in runs]
