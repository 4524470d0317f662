"""One key over several values, on the same rows: the curves of AUC against the history size, and how heterogeneous the shown
behaviours are (ReLLa, WWW 2024, figures 2 and 5), for any key and any models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_rella.arguments import read_values
from recbole_rella.experiments.plan import (
    check_settings,
    make_base,
    make_entries,
    make_run,
    not_varied,
    settings_of,
    with_each_history,
)
from recbole_rella.experiments.side_by_side import heading, make_experiment, run_all, seeds_of
from recbole_rella.experiments.table import runs_table
from recbole_rella.files import AnyPath, check_folder, replacing, write_text
from recbole_rella.key_rules import reads_both
from recbole_rella.keys import ConfigError
from recbole_rella.pictures import new_figure, save_figure
from recbole_rella.report.comparison_page import write_page_below
from recbole_rella.report.page import Section
from recbole_rella.tables import markdown


def parse_sweep(text):
    """`history_size:5,10,15` -> the key and its values, read as YAML and RecBole read them.

    Raises:
        ConfigError: the text is of another form, or the key decides on the rows, which must stay the same, or changes no figure.
    """
    key, _, values = str(text).partition(":")
    key = key.strip()
    values = read_values(key, f"[{values}]")
    if not key or not values:
        raise ConfigError(f"sweep: expected key:value,value,... (history_size:5,10,15), found {text!r}.")
    if problem := not_varied(key):
        raise ConfigError(f"sweep: {problem}.")
    return key, values


def _has_room(settings, base):
    """Whether the behaviours that `both` shows have room for the recent ones among them."""
    keys = ("history_size", "history_recent_size", "eval_history", "train_history")
    found = {key: settings.get(key, base[key]) for key in keys}
    return not reads_both(found) or found["history_recent_size"] <= found["history_size"]


def _curves(key, runs, outcomes):
    """One row a model and value: means over seeds."""
    table = runs_table(outcomes, [run.entry.label for run in runs])
    numbers = all(type(run.value) in (int, float) for run in runs)
    table[key] = [run.value if numbers else str(run.value) for run in runs]
    shown = [(outcome.metrics or {}).get("shown", {}) for outcome in outcomes]
    table["shown behaviours"] = [s.get("behaviours") for s in shown]
    fields = {s["field"] for s in shown if "field" in s}
    heterogeneity = f"unique {'/'.join(sorted(fields))}" if fields else None
    if heterogeneity:
        table[heterogeneity] = [s.get("unique_values") for s in shown]
    columns = ["valid AUC", "test AUC", "LogLoss", "UAUC", "shown behaviours", *([heterogeneity] if heterogeneity else [])]
    groups = table.groupby(["model", key], sort=False)
    curves = groups[columns].mean()
    curves["test AUC std"] = groups["test AUC"].std(ddof=1)
    curves["seeds"] = groups["test AUC"].count()
    curves["failed"] = groups["test AUC"].apply(lambda figures: figures.isna().sum())
    curves["note"] = groups["note"].agg(lambda notes: "; ".join(dict.fromkeys(note for note in notes if note)))
    return curves.reset_index(), heterogeneity


def _picture(curves, key, heterogeneity):
    panels = ["test AUC", *([heterogeneity] if heterogeneity else [])]
    figure = new_figure(5.2 * len(panels), 3.8)
    for axes, column in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for model, curve in curves.groupby("model", sort=False):
            curve = curve.dropna(subset=[column])
            if len(curve):
                spread = curve["test AUC std"].fillna(0) if column == "test AUC" else None
                axes.errorbar(curve[key], curve[column], yerr=spread, marker="o", capsize=3, label=model)
        axes.set_xticks(curves[key].unique())
        axes.set_xlabel(key)
        axes.set_ylabel(column)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:  # none where every run failed
            axes.legend(fontsize=8)
    return figure


def run_sweep(
    sweep: str,
    models: Sequence[str],
    dataset: str | None = None,
    config_file_list: Sequence[AnyPath] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    output_folder: AnyPath | None = None,
    report: Callable[[str], Any] = print,
) -> tuple[pd.DataFrame, Path]:
    """Run models over the values of a key, on the same rows.

    ReLLa is run with retrieved behaviours, with recent ones and with both, unless the settings choose; with both, a history_size
    below history_recent_size is left out. Models to which the key means nothing are run once and drawn as a level line. Runs
    that were done before are kept.

    Args:
        sweep (str): `key:value,value,...`.
        models, dataset, config_file_list, config_dict, seeds, output_folder, report: as for `run_side_by_side`.

    Returns:
        tuple: pandas.DataFrame with one row a model and value (means over seeds, and how many of them failed), pathlib.Path of the
        folder, in which sweep-<key>.csv, .md, .png and .html are written.

    Raises:
        ConfigError, ModelError, OutputError: before anything is run.
    """
    if output_folder:
        output_folder = check_folder(Path(output_folder).expanduser(), "output_folder")
    key, values = parse_sweep(sweep)
    entries = make_entries(models)
    base = make_base(entries, dataset, config_file_list, config_dict)
    fixed = [given for given in base.given_config_dict if given.rpartition(".")[2] == key and "." in given]
    if fixed:
        raise ConfigError(f"sweep: expected no {', '.join(fixed)} beside {key}, whose values it would replace; leave it out.")
    of_each_history = with_each_history(entries, base, key)
    for value in values:  # one that the key cannot have is told of now
        of_value = [replace(entry, swept={key: value}) for entry in of_each_history]
        check_settings([entry for entry in of_value if _has_room(settings_of(entry, base, base["seed"], "none"), base)], base)
    experiment = make_experiment(entries, dataset, config_file_list, config_dict)
    seeds = seeds_of(experiment, seeds)
    runs = []
    for entry in of_each_history:
        for value in values:
            of_value = [make_run(experiment, replace(entry, swept={key: value}), seed, value) for seed in seeds]
            if _has_room(of_value[0].settings, experiment.base):
                runs += of_value
            else:
                report(f"{entry.label} is left out at {key} {value}: history_recent_size is above history_size.")
    outcomes = run_all(experiment, runs, report)
    curves, heterogeneity = _curves(key, runs, outcomes)
    folder = Path(output_folder or experiment.folder)
    title = f"{key} = {', '.join(map(str, values))} on {experiment.base['dataset']}"
    shown = curves.drop(columns="failed")  # which the notes say
    cells = shown.map(lambda cell: "-" if pd.isna(cell) else f"{cell:.4f}" if isinstance(cell, float) else str(cell))
    above = heading(experiment, seeds, title)
    page = f"{above}\n\n{markdown(cells)}\n"
    with replacing(folder / f"sweep-{key}.csv") as temporary:
        curves.to_csv(temporary, index=False)
    write_text(folder / f"sweep-{key}.md", f"{page}\n![{title}](sweep-{key}.png)\n")
    figure = _picture(curves, key, heterogeneity)
    save_figure(figure, folder / f"sweep-{key}.png")
    write_page_below(above, folder / f"sweep-{key}.html", [Section("Curves", figure=figure, table=cells)])
    report(f"\n{page}")
    report(f"Written to {folder}")
    return curves, folder
