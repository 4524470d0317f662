"""A file of requests to a file of scores: JSON Lines or CSV in, CSV out.

Scores are written as they come, to a file beside the output whose name tells what is scored by what: the same command goes on
where it stopped. The output gets its name when all requests are scored.
"""

import csv
import io
import json
import logging
import os
from pathlib import Path

from filelock import Timeout
from tqdm import tqdm

from recbole_rella.files import AnyPath, check_file, file_fingerprint, fingerprint, lock, replacing
from recbole_rella.prompt.prompter import PromptBudgetError
from recbole_rella.prompt.template import TemplateError
from recbole_rella.serving.catalogue import RequestError, in_utf8
from recbole_rella.serving.scorer import Scorer

logger = logging.getLogger(__name__)

BAD_LINES = ("skip", "fail")
_BATCH, _ENGINE_BATCH = 64, 1024  # requests at a time: engines have work to divide
_CELL = 2**30  # characters of a CSV cell, which may hold a whole history
_COLUMNS = ["line", "id", "candidate", "score", "rank"]
_OWN_COLUMNS = ("id", "user_id", "history", "candidates", "time")
_LEVELS = 16  # of lists and objects within each other; a request has five


def _json(text, column):
    begin = f"{text[:100]!r}{'...' if len(text) > 100 else ''}"
    try:
        value = json.loads(text)
        too_deep = _is_deep(value)
    except RecursionError:
        too_deep = True
    except ValueError as error:
        raise RequestError(f"{column}: expected JSON, found {begin} ({error}).") from error
    if too_deep:
        raise RequestError(f"{column}: expected at most {_LEVELS} lists and objects within each other, found more in {begin}.")
    return value


def _is_deep(value):
    """Whether there are more levels than any request has: what reads a value or prints it goes down them, and does not get far."""
    level = [value]
    for _ in range(_LEVELS):
        inner = (part for part in level if isinstance(part, (dict, list)))
        level = [part for outer in inner for part in (outer.values() if isinstance(outer, dict) else outer)]
    return any(isinstance(part, (dict, list)) for part in level)


def _from_csv(row):
    """A request of a CSV row: history and candidates are JSON (one candidate may be its bare id), other columns are the profile."""
    if None in row or None in row.values():
        raise RequestError("Expected as many cells as the header has, found more or fewer.")
    request = {key: row[key] for key in ("id", "user_id", "time") if row.get(key)}
    if row.get("history"):
        request["history"] = _json(row["history"], "history")
    candidates = (row.get("candidates") or "").strip()
    request["candidates"] = _json(candidates, "candidates") if candidates.startswith("[") else [candidates]
    profile = {key: value for key, value in row.items() if key not in _OWN_COLUMNS and value}
    return {**request, "profile": profile} if profile else request


def _lines(path):
    """(line number, function that gives the request) for each line of a file."""
    csv.field_size_limit(_CELL)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if path.suffix.lower() == ".csv":
            reader = csv.DictReader(file)
            for row in reader:
                yield reader.line_num, lambda row=row: _from_csv(_checked(row))
        else:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, lambda line=line: _json(_checked(line), "request")


def _checked(given):
    """A line, or a row of CSV, as it is; refused where it is in no UTF-8."""
    cells = [given] if isinstance(given, str) else given.values()
    for text in filter(lambda cell: isinstance(cell, str), cells):  # others are of rows with too many cells or too few
        in_utf8(text)
    return given


def _scored(scorer, batch):
    """(line, request, table or error) for each of a batch; one that cannot be scored does not lose the others."""
    errors = (RequestError, PromptBudgetError, TemplateError)
    try:
        table = scorer.score_many([request for _, request in batch])
        return [(line, request, table[table["request"] == place]) for place, (line, request) in enumerate(batch)]
    except errors as error:
        if len(batch) == 1:
            return [(*batch[0], error)]
    half = len(batch) // 2
    return [result for part in (batch[:half], batch[half:]) for result in _scored(scorer, part)]


class _Unfinished:
    """The scores of requests that were scored before all are.

    Args:
        output (pathlib.Path): what they shall become.
        identity (str): of the requests and of what scores them: what others left behind is not taken.
    """

    def __init__(self, output, identity):
        self._output, self._path = output, output.with_name(f".{output.name}.{identity}.unfinished")
        self._lock = lock(self._path)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise RequestError(
                f"score: expected nobody else to score these requests to {output}, found a command that does; wait for it."
            ) from error
        self.lines = self._mend()
        self._file = open(self._path, "a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        if not self._path.stat().st_size:
            self._writer.writerow(_COLUMNS)

    def _mend(self):
        """The lines that are scored. What was written last may end anywhere, within a letter too: it goes."""
        if not self._path.is_file():
            return set()
        written = self._path.read_bytes()
        written = written[: written.rfind(b"\n") + 1].decode("utf-8")
        rows = list(csv.reader(io.StringIO(written, newline="")))[1:]
        whole = [row for row in rows if row[:1] != rows[-1][:1]]
        with replacing(self._path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([_COLUMNS, *whole])
        return {int(row[0]) for row in whole}

    def write(self, line, request, table):
        """Write the scores of a request."""
        for candidate, score, rank in table[["candidate", "score", "rank"]].itertuples(index=False):
            self._writer.writerow([line, request.get("id", ""), candidate, f"{score:.9g}", rank])

    def flush(self):
        """What was written is there, whatever comes."""
        self._file.flush()

    def close(self):
        """Leave it as it is."""
        self._file.close()
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def finish(self):
        """Give it the name of the output. What other requests left there may be waiting to go on, and stays."""
        self._file.close()
        os.replace(self._path, self._output)


def check_files(requests_file: AnyPath, output_file: AnyPath) -> tuple[Path, Path]:
    """The paths of requests, and of their scores, which take nothing else's place. The command asks before it loads a scorer.

    Args:
        requests_file, output_file (str or pathlib.Path): as for `score_file`.

    Returns:
        tuple of pathlib.Path: both, ~ expanded.

    Raises:
        RequestError: there are no requests. OutputError: there is no place for a file, or it is that of the requests.
    """
    path = Path(requests_file).expanduser()
    if not path.is_file():
        raise RequestError(f"score: expected a file of requests, found none at {requests_file}.")
    return path, check_file(Path(output_file).expanduser(), "output_file", [("score", path)])


def score_file(
    scorer: Scorer, requests_file: AnyPath, output_file: AnyPath, bad_lines: str = "skip", show_progress: bool = True
) -> tuple[int, int]:
    """Score a file of requests.

    Args:
        scorer (Scorer): of a run.
        requests_file (str): .csv, or JSON Lines; a request a line, with the keys of `Scorer.score` and an id of its own.
        output_file (str): CSV with line, id, candidate, score and rank, there when all is scored. Interrupted, it goes on.
        bad_lines (str): skip (told of by number, and left out) or fail (the first one ends the command).
        show_progress (bool): whether to show a progress bar.

    Returns:
        tuple of int: number of requests scored (those of an interrupted call included), number of lines left out.

    Raises:
        RequestError: the file is not there; or a line is bad and `bad_lines` is fail. OutputError: as for `check_files`.
    """
    if bad_lines not in BAD_LINES:
        raise RequestError(f"bad_lines: expected one of {', '.join(BAD_LINES)}, found {bad_lines!r}.")
    path, output = check_files(requests_file, output_file)
    good = bad = 0

    def refuse(line, error):
        nonlocal bad
        if bad_lines == "fail":
            raise RequestError(f"{path}, line {line}: {error}")
        bad += 1
        logger.warning("%s, line %d is left out: %s", path, line, error)

    with open(path, "rb") as file:
        total = sum(1 for _ in file)
    unfinished = _Unfinished(output, fingerprint(scorer.identity, file_fingerprint(path)))
    good = len(unfinished.lines)
    if good:
        logger.info("%d requests were scored before; going on behind them.", good)

    def flush(batch):
        nonlocal good
        for line, request, result in _scored(scorer, batch):
            if isinstance(result, Exception):
                refuse(line, result)
                continue
            good += 1
            unfinished.write(line, request, result)
        unfinished.flush()
        if scorer.engine is not None:
            bar.set_postfix_str(scorer.engine.told())

    try:
        batch, bar = [], tqdm(_lines(path), total=total, desc="Scoring", disable=not show_progress, ncols=110)
        for line, make in bar:
            if line in unfinished.lines:
                continue
            try:
                request = make()
                if not isinstance(request, dict):
                    raise RequestError(f"expected an object with candidates, found {request!r}.")
                batch.append((line, request))
            except RequestError as error:
                refuse(line, error)
            if len(batch) == (_BATCH if scorer.engine is None else _ENGINE_BATCH):
                flush(batch)
                batch = []
        if batch:
            flush(batch)
        unfinished.finish()
    finally:
        unfinished.close()
    return good, bad
