"""Run a plan: every run in a process of its own, those that are done kept, those that fail told of and left behind."""

import json
import logging
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from recbole_rella.experiments.child import ERROR
from recbole_rella.files import write_yaml
from recbole_rella.run_folder import RunError, read_run

logger = logging.getLogger(__name__)

SETTINGS, LOG = "settings.yaml", "log.txt"


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


def _start(run, folder):
    """Start a run; returns its process."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).unlink(missing_ok=True)
    write_yaml(folder / SETTINGS, {**run.settings, "run_folder": str(folder.resolve())})
    command = [sys.executable, "-m", "recbole_rella.experiments.child", str(folder / SETTINGS)]
    with open(folder / LOG, "ab") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)


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
        place, where = Path(folder) / name, f"[{number}/{len(distinct)}] {name}"
        metrics, failure = _finished(place), None
        if metrics is not None:
            report(f"{where}: done before")
        else:
            report(f"{where}: running, log in {place / LOG}")
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
            report(f"{where}: {failure or 'done'}, {time.monotonic() - began:.0f} s")
        outcomes[name] = Outcome(run, place, metrics, failure)
    return [Outcome(run, outcomes[run.name].folder, outcomes[run.name].metrics, outcomes[run.name].failure) for run in runs]
