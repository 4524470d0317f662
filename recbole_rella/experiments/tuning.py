"""Hyper-parameter tuning with RecBole's HyperTuning (hyperopt) or with Ray Tune, over the same space files.

What is tuned is an entry of a side-by-side table, on the rows that the table has: a model, a variant, either with +history. Trials
share the caches: item vectors, the embedded LLM, retrieved behaviours and token ids are made by the first trial that needs them,
and read by all others whose settings leave them as they are.
"""

import contextlib
import importlib.util
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_rella.arguments import read_values
from recbole_rella.config import refuse_unknown
from recbole_rella.errors import RellaError
from recbole_rella.experiments.plan import identity, make_base, make_entries, make_run, not_varied, settings_of
from recbole_rella.experiments.ray_trials import plain_metrics, ray_search
from recbole_rella.experiments.side_by_side import make_experiment
from recbole_rella.experiments.stages import wants_stages, with_stages
from recbole_rella.files import AnyPath, check_file, fingerprint, lock, write_text, write_yaml
from recbole_rella.given import absolute, no_command_line, plain
from recbole_rella.keys import ConfigError
from recbole_rella.quick_start import make_config, objective_function
from recbole_rella.run_folder import fits_yaml, model_name

logger = logging.getLogger(__name__)

ALGORITHMS, TOOLS = ("exhaustive", "random", "bayes"), ("Hyperopt", "Ray")
# Kinds of ranges, and the numbers that each has.
_RANGES = {"uniform": 2, "quniform": 3, "loguniform": 2}
_FORMS = "`key choice [a,b]`, `key uniform low,high`, `key quniform low,high,step` or `key loguniform low,high` (exponents of e)"


class TuningError(RellaError):
    """A search cannot start, or found nothing."""


def read_space(params_file):
    """The searched keys, in the format of RecBole's HyperTuning: `key choice [a,b]`, `key uniform low,high`, ...

    RecBole's own reader is not asked: it splits at single blanks, leaves lines out without a word, and executes values.

    Args:
        params_file (str or pathlib.Path): one key a line; loguniform is of the exponents of e, as in hyperopt.

    Returns:
        dict: key -> (kind, values); kind choice, uniform, quniform or loguniform; paths absolute, as Ray runs each trial in another
        folder.

    Raises:
        TuningError: the file is not there, or lines are of another form, or of keys that cannot be searched; all are named.
    """
    path = Path(params_file).expanduser()
    if not path.is_file():
        raise TuningError(f"params_file: expected a file with the searched keys, found none at {params_file}.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise TuningError(f"{path}: expected text in UTF-8, found a byte that is not ({error}).") from error
    space, problems = {}, []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        key, kind, text = [*line.split(maxsplit=2), "", ""][:3]
        values = _values(key, kind, text)
        if not values:
            problem = f"expected {_FORMS}, found {line!r}"
        elif key in space:
            problem = f"expected each key once, found {key} again"
        else:
            problem = not_varied(key) or _trained_first(key, values)
        if problem:
            problems.append(f"{path}, line {number}: {problem}.")
        space[key] = (kind, values)
    if problems:
        raise TuningError("\n".join(problems))
    if not space:
        raise TuningError(f"params_file: expected at least one searched key in {path}, found none.")
    return space


def _values(key, kind, text):
    """What a line gives for a key: the values of a choice, or the ends of a range, and its step; none where it does not read."""
    if kind == "choice":
        values = plain(read_values(key, text))
        return [absolute({key: value})[key] for value in values] if fits_yaml(values) else []
    values = read_values(key, f"[{text}]")
    limit = 700 if kind == "loguniform" else math.inf  # e to the power of more is no number any more
    if len(values) != _RANGES.get(kind) or not all(type(value) in (int, float) and abs(value) < limit for value in values):
        return []
    low, high, *step = map(float, values)
    return [low, high, *step] if low <= high and all(value > 0 for value in step) else []


def _trained_first(key, values):
    """The problem of names of models that would have to be trained before the trials that use them, or None."""
    names = [value for value in values if wants_stages({key: value})]
    return names and f"expected folders of finished runs or null, found {names}: run them, and give the folders"


def _ends(kind, values):
    """Values of a searched key that a configuration must accept."""
    if kind == "choice":
        return values
    return [math.exp(value) for value in values] if kind == "loguniform" else values[:2]


def _hyperopt_space(space):
    from hyperopt import hp
    from hyperopt.pyll import Literal

    # To hyperopt a list is an expression of its parts, of which an exhaustive search counts no values; a literal stays what it is.
    return {
        key: hp.choice(key, list(map(Literal, values))) if kind == "choice" else getattr(hp, kind)(key, *values)
        for key, (kind, values) in space.items()
    }


def _search_class():
    from recbole.trainer import HyperTuning

    class Search(HyperTuning):
        """RecBole's, in which a trial that fails is told of and left behind."""

        def trial(self, params):
            try:
                return super().trial(params)
            except Exception as error:
                self.params_list.pop()
                logger.error("The trial %s failed: %s: %s", self.params2str(params), type(error).__name__, error)
                return {"status": "fail", "loss": float("inf")}

    return Search


class Trials:
    """The finished trials of searches in a file, a line of JSON each, so that a search that was interrupted goes on.

    Args:
        path (pathlib.Path): JSON Lines; need not be there.
        settings (dict): the fixed ones. Trials of others, of files that hold something else now, or of another version of this
            package, are not taken.
    """

    def __init__(self, path, settings):
        self._path, self._settings = path, settings

    def _of(self, params):
        """Names what a trial gives, str: a searched key, too, may name a file."""
        return fingerprint(identity({**self._settings, **params}), self._settings["split_file"])

    def lines(self):
        """The trials of these settings, list of dict: params, model, best_valid_result, test_result and others."""
        return [trial for trial in self._all() if trial["of"] == self._of(trial["params"])]

    def _all(self):
        """The trials of all settings that are in the file; a line that does not read is of none."""
        found = []
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []:
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def objective(self, params, files):
        """`objective_function`, for params that no trial had."""
        of, written = self._of(params), json.loads(json.dumps(params))
        known = [trial for trial in self._all() if (trial["of"], trial["params"]) == (of, written)]
        if known:
            return known[-1]
        result = objective_function(params, files)
        result = {**result, **plain_metrics(result), "best_valid_score": float(result["best_valid_score"])}
        with lock(self._path):
            trials = [*self._all(), {"of": of, "params": params, **result}]
            write_text(self._path, "".join(f"{json.dumps(trial)}\n" for trial in trials))
        return result


def tune(
    params_file: AnyPath,
    model: str | None = "ReLLa",
    dataset: str | None = None,
    config_file_list: Sequence[AnyPath] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    tool: str = "Hyperopt",
    algo: str = "exhaustive",
    max_evals: int = 100,
    early_stop: int = 10,
    output_file: AnyPath = "hyper.result",
    display_file: AnyPath | None = None,
    concurrency: int | None = None,
) -> tuple[dict[str, Any], float, Path]:
    """Search the settings with the best validation score.

    Args:
        params_file (str): the searched keys, see `read_space`.
        model (str): an entry of a side-by-side table, see `plan`.
        dataset, config_file_list, config_dict: the fixed settings, as for `run_recbole_rella`.
        tool (str): Hyperopt (RecBole's HyperTuning, one trial after the other) or Ray (as many at a time as `concurrency`;
            trials that fall behind are stopped early by ASHA).
        algo (str): exhaustive (all combinations, of choices alone), random or bayes (TPE).
        max_evals (int): number of trials; of no effect for exhaustive.
        early_stop (int): Hyperopt ends after so many trials without progress.
        output_file (str): gets the settings and results of all trials, in RecBole's format. Beside it, `<name>.best.yaml` gets the
            fixed settings with the best ones, for `--config_files`, and `<name>.trials.jsonl` each of Hyperopt's trials when it
            ends: the same search goes on after these.
        display_file (str, optional): an HTML chart of the trials.
        concurrency (int, optional): trials at a time with Ray; one a GPU by default, or one a machine without GPUs.

    Returns:
        tuple: best settings of the searched keys (dict), best validation score (float), pathlib.Path of the YAML.

    Raises:
        ConfigError, TuningError, OutputError: before any trial; or no trial came to its end.
    """
    space = read_space(params_file)
    problems = [
        f"{key}: expected one of {', '.join(allowed)}, found {value!r}"
        for key, value, allowed in (("tool", tool, TOOLS), ("algo", algo, ALGORITHMS))
        if value not in allowed
    ]
    numbers = {"max_evals": max_evals, "early_stop": early_stop, "concurrency": 1 if concurrency is None else concurrency}
    problems += [
        f"{key}: expected an integer of at least 1, found {value!r}"
        for key, value in numbers.items()
        if type(value) is not int or value < 1
    ]
    if problems:
        raise ConfigError("The configuration cannot be used:\n  " + "\n  ".join(problems))
    if algo == "exhaustive" and any(kind != "choice" for kind, _ in space.values()):
        raise TuningError("algo: expected choices alone for exhaustive, found ranges; use random or bayes, or list the values.")
    if importlib.util.find_spec("hyperopt") is None:
        raise TuningError("Expected hyperopt to be installed, found none: pip install '.[hyper]'")
    read = [("params_file", params_file), ("model", model), *(("config_files", file) for file in config_file_list or [])]
    (output, fixed, path, tried), display = _places(output_file, display_file, read)
    model = model or model_name(make_config(None, dataset, config_file_list, config_dict))
    entries = make_entries([model])
    _check_ends(space, entries[0], make_base(entries, dataset, config_file_list, config_dict))
    settings = {key: value for key, value in _of_table(entries, dataset, config_file_list, config_dict).items() if key not in space}
    write_yaml(fixed, settings)
    if display:  # what draws it makes no folder
        display.parent.mkdir(parents=True, exist_ok=True)
    trials = Trials(tried, settings)

    search = _search_class()(
        trials.objective,
        space=_hyperopt_space(space),
        fixed_config_file_list=[str(fixed)],
        algo=algo,
        max_evals=max_evals,
        early_stop=early_stop,
        display_file=display and str(display),
    )
    with no_command_line():  # RecBole's Config reads it, and the fixed settings hold all of it
        base = make_config(config_dict=settings)
        if tool == "Ray":
            ray_search(search, space, str(fixed), base, algo, max_evals, concurrency)
            if search.display_file and search.score_list:
                search.plot_hyper()
        else:
            # hyperopt draws from here; the same command gives the same trials.
            os.environ.setdefault("HYPEROPT_FMIN_SEED", str(base["seed"]))
            from hyperopt.exceptions import AllTrialsFailed

            with contextlib.suppress(AllTrialsFailed):  # told of below
                search.run()
    if search.best_params is None:
        raise TuningError("No trial came to its end; the log says why each failed.")
    search.export_result(output_file=str(output))
    best = plain(search.best_params)
    write_yaml(path, {**settings, **best})
    return best, float(search.best_score), path


def _places(output_file, display_file, read):
    """Where a search writes, none of which is a file that it reads.

    Args:
        output_file, display_file: as for `tune`.
        read (list of tuple): (name, path or None) of files, and of what may be none.

    Returns:
        tuple: tuple of pathlib.Path, of the results, the fixed settings, the best ones and the trials; that of the chart, or None.
    """
    read = [(name, path) for name, given in read if given and (path := Path(given).expanduser()).is_file()]
    output = Path(output_file).expanduser().resolve()
    places = (output, *(output.with_name(f"{output.stem}.{end}") for end in ("fixed.yaml", "best.yaml", "trials.jsonl")))
    for place in places:
        check_file(place, "output_file", read)
    if not display_file:
        return places, None
    display = Path(display_file).expanduser().resolve()
    check_file(display, "display_file", [*read, *(("output_file", place) for place in places)])
    return places, display


def _check_ends(space, entry, base):
    """A value that a searched key cannot have is told of now, not in the middle of the search."""
    settings = settings_of(entry, base, base["seed"], "none")
    with no_command_line():
        for key, (kind, values) in space.items():
            for value in _ends(kind, values):
                refuse_unknown([key], make_config(config_dict={**settings, key: value}))


def _of_table(entries, dataset, config_file_list, config_dict):
    """All settings of an entry in a table; folders absolute, as Ray runs each trial in another."""
    experiment = make_experiment(entries, dataset, config_file_list, config_dict)
    (entry,), base = entries, experiment.base
    (run,) = with_stages(experiment, [make_run(experiment, entry, base["seed"])], print)
    folders = {"checkpoint_dir": str(Path(base["checkpoint_dir"]).resolve())}
    if base["dataset"] != "ml-100k":  # which RecBole brings itself
        folders["data_path"] = str(Path(base["data_path"]).parent.resolve())
    return {**{key: value for key, value in run.settings.items() if fits_yaml(value)}, **folders}
