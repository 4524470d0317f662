"""Several models on the same rows: one split, every model trained and scored on it, one table."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.utils import init_seed

from recbole_rella.config import scores_rows
from recbole_rella.data.row_dataset import RowDataset
from recbole_rella.experiments.plan import (
    check_settings,
    make_base,
    make_entries,
    make_run,
    shared_settings,
    stamps,
    tuned_settings,
    with_bias,
)
from recbole_rella.experiments.runs import execute
from recbole_rella.experiments.stages import with_stages
from recbole_rella.experiments.table import first_scores, models_table, runs_table, scores_of, write_table
from recbole_rella.files import AnyPath, check_folder, fingerprint
from recbole_rella.keys import ConfigError, affecting
from recbole_rella.report.comparison_page import sections_of_models
from recbole_rella.rows.item_statistics import popularity
from recbole_rella.rows.split import Split, SplitError
from recbole_rella.run_folder import read_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """What all runs of an experiment have in common: ReLLa's configuration, the folder, the split and what is known of its rows."""

    entries: tuple  # of Entry
    base: object
    folder: Path
    split_file: Path
    split: Split
    labels: np.ndarray  # of the test rows, int8 [n]
    lengths: np.ndarray  # earlier rows of their users, int32 [n]
    popularity: np.ndarray  # training rows of their items, int64 [n]


def _whole_numbers(value, key):
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values or not all(type(v) is int for v in values) or len(set(values)) < len(values):
        raise ConfigError(f"{key}: expected different integers, found {value!r}.")
    return values


def make_experiment(entries, dataset=None, config_file_list=None, config_dict=None, bias=False):
    """Check the configuration, and make the split, or take the one that the same data and settings made before.

    Args:
        entries (list of Entry): the models, whose settings are checked.
        dataset, config_file_list, config_dict: as for `run_recbole_rella`; the command line counts too.
        bias (bool): whether `Bias` is one of them, unless with_bias says otherwise.

    Returns:
        Experiment: the base of every run.

    Raises:
        ConfigError: keys of ours, before anything is read.
    """
    more = with_bias(entries) if bias else entries
    base = make_base(more, dataset, config_file_list, config_dict)
    entries = more if base["with_bias"] else entries
    if not scores_rows(base):
        raise ConfigError(
            f"eval_args: expected the mode labeled, in which every model scores the same rows, found {base['eval_args']}."
        )
    if base["train_neg_sample_args"]["distribution"] != "none":
        raise ConfigError(
            "train_neg_sample_args: expected none, as every model learns from the labels of the same rows, found "
            f"{base['train_neg_sample_args']}."
        )
    check_settings(entries, base)
    data = fingerprint(shared_settings(base), [base[key] for key in affecting("rows")], base["seed"], stamps(base["data_path"]))
    folder = Path(base["checkpoint_dir"]) / f"side-by-side-{base['dataset']}-{data[:8]}"
    split_file = folder / "split.npz"
    shots, base["train_shots"], base["split_file"] = base["train_shots"], None, None
    init_seed(base["seed"], base["reproducibility"])
    rows = RowDataset(base)
    try:
        split = Split.load(split_file, rows.identity())
    except SplitError:
        split = Split.of(rows)
        split.save(split_file)
    base["train_shots"] = shots
    test = split.test
    return Experiment(
        tuple(entries),
        base,
        folder,
        split_file,
        split,
        labels=rows.rows.label[test],
        lengths=rows.histories.past_lengths()[test],
        popularity=popularity(rows.rows.item, split.train, test),
    )


def _check_same_rows(outcomes, split):
    """Every run trained, validated and tested on the rows of the split, in its order."""
    whole = {name: fingerprint(np.unique(getattr(split, name))) for name in ("train", "valid", "test")}
    whole["past"] = fingerprint(split.codes)  # of which histories, and what they say in numbers, follow
    drawn = {}
    for outcome in outcomes:
        found, shots = outcome.metrics["row_ids"], outcome.metrics["shots"]
        expected = whole
        if shots < len(split.train):
            # Shots: the same ones for all models that train on so many with that seed.
            expected = {**whole, "train": drawn.setdefault((shots, outcome.run.seed), found["train"])}
        tested = read_run(outcome.folder).predictions()["row_id"]
        if found != expected or not np.array_equal(tested, split.test):
            raise SplitError(
                f"Expected the rows of {split.identity} in every run, found others in {outcome.folder}. Delete that folder."
            )


def seeds_of(experiment, seeds):
    """The given seeds, or those of the configuration.

    Raises:
        ConfigError: they are no different integers.
    """
    if seeds is None:
        seeds = experiment.base["seed"]
    return _whole_numbers(seeds, "seeds")


def run_all(experiment, runs, report):
    """Execute runs and check that they are comparable.

    Args:
        experiment (Experiment): of all runs.
        runs (list of Run): in the order of the table.
        report (callable): takes lines for the user.

    Returns:
        list of Outcome: in the same order; a run whose scores are no probabilities counts as failed.
    """
    split = experiment.split
    report(
        f"{experiment.base['dataset']}: {len(split.train)} training, {len(split.valid)} validation and {len(split.test)} test "
        f"rows, the same for every model ({experiment.split_file})"
    )
    outcomes = []
    for outcome in execute(with_stages(experiment, runs, report), experiment.folder, report):
        if outcome.metrics is not None and "test_exact" not in outcome.metrics:
            failure = "its scores are no probabilities: expected values in [0, 1]"
            outcome = type(outcome)(outcome.run, outcome.folder, None, failure)
        outcomes.append(outcome)
    _check_same_rows([outcome for outcome in outcomes if outcome.metrics is not None], split)
    return outcomes


def heading(experiment, seeds, title):
    """What stands above every table: the data, the rows, and how to read it."""
    split, labels = experiment.split, [entry.label for entry in experiment.entries]
    chosen = [label for label in labels if experiment.base["tuned"] and tuned_settings(label, experiment.base["dataset"])]
    others = ", ".join(label for label in labels if label not in chosen)
    return (
        f"# {title}\n\n"
        f"{len(split.train)} training, {len(split.valid)} validation and {len(split.test)} test rows, the same for every model; "
        f"seeds {', '.join(map(str, seeds))}. "
        "Figures are means over seeds (± standard deviation); the best of a column is bold. UAUC is the AUC of single users, "
        "weighted by their rows; users with one label are left out. p: two-sided, that the distance in test AUC to the best "
        "model is chance (paired bootstrap over test rows, not corrected for the number of models). Seconds are those of the "
        "training epochs; ms a row is the test evaluation, prompts included. Reads: what a model is told of a row. "
        "Past ratings, and history features, which are numbers made of them, are those of the same earlier rows for all."
        + (f" Tuned on validation (properties/tuned): {', '.join(chosen)}." if chosen else "")
        + (f" As shipped: {others}." if chosen and others else "")
    )


def run_side_by_side(
    models: Sequence[str],
    dataset: str | None = None,
    config_file_list: Sequence[AnyPath] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    output_folder: AnyPath | None = None,
    report: Callable[[str], Any] = print,
) -> tuple[pd.DataFrame, pd.DataFrame, Path]:
    """Train and score several models on the same rows, and compare them.

    What was run before with the same settings is kept, so that an interrupted comparison goes on, and a failed run is tried
    again.

    Args:
        models (list of str): names of RecBole's context-aware, sequential or tree models and of ours, import paths, variants,
            each perhaps with +history (see `plan`). `Bias` is added, unless with_bias is False.
        dataset, config_file_list, config_dict: as for `run_recbole_rella`; a key `DIN.epochs` holds for DIN alone.
        seeds (list of int, optional): one run of each model for each; the configuration's seed by default.
        output_folder (str or pathlib.Path, optional): where the table is written; with the runs by default.
        report (callable): takes lines for the user.

    Returns:
        tuple: pandas.DataFrame of the models, pandas.DataFrame of the runs, pathlib.Path of the folder with the table.

    Raises:
        ConfigError, ModelError, OutputError: before anything is read.
    """
    if output_folder:
        output_folder = check_folder(Path(output_folder).expanduser(), "output_folder")
    experiment = make_experiment(make_entries(models), dataset, config_file_list, config_dict, bias=True)
    seeds = seeds_of(experiment, seeds)
    runs = [make_run(experiment, entry, seed) for entry in experiment.entries for seed in seeds]
    outcomes = run_all(experiment, runs, report)
    of_runs = runs_table(outcomes, [run.entry.label for run in runs])
    scores = scores_of(of_runs, outcomes)
    table, pairs = models_table(of_runs, scores, experiment.labels)
    folder = Path(output_folder or experiment.folder)
    title = f"{', '.join(entry.label for entry in experiment.entries)} on {experiment.base['dataset']}"
    above = heading(experiment, seeds, title)
    sections = sections_of_models(experiment.labels, first_scores(scores, table), experiment.lengths, experiment.popularity)
    report("\n" + write_table(folder, of_runs, table, pairs, above, sections))
    report(f"Written to {folder}")
    return table, of_runs, folder
