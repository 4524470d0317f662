"""Runs that another run stands on: `crm` and `adapter_from` may say what is to be trained first, in the place of a run folder.

`crm: SIM` stands for a run of SIM, `adapter_from: ReLLa` for one of ReLLa without soft tokens and gates: ReLLaX in its authors'
three stages (arXiv 2501.13344). They are trained on the same rows, the split that side-by-side runs share, and kept: what was run
before with the same settings is taken as it is.
"""

from dataclasses import replace
from pathlib import Path

from recbole_rella import processes
from recbole_rella.data.rellax import no_rows, wanted
from recbole_rella.errors import RellaError
from recbole_rella.experiments.plan import Entry, make_entries, make_run, of_rows
from recbole_rella.experiments.runs import execute
from recbole_rella.files import read_yaml
from recbole_rella.given import PATHS, checked_files
from recbole_rella.key_rules import names_a_run
from recbole_rella.keys import affecting, is_word

# What the run of ReLLa behind adapter_from does without.
_THIRD_STAGE = ("crm", "adapter_from", "spa", "spa_tokens", "spa_init", "cflora", "cflora_input", "cflora_init")


class StageError(RellaError):
    """A run that another one stands on has failed, or stages are asked for where they cannot be made."""


def wants_stages(settings):
    """Whether settings name something that is trained first."""
    crm, adapters = settings.get("crm"), settings.get("adapter_from")
    return (isinstance(crm, str) and not names_a_run(crm)) or is_word("adapter_from", adapters)


def with_stages(experiment, runs, report):
    """Train what runs stand on, where that is not done yet.

    Args:
        experiment (Experiment): of all runs.
        runs (list of Run): some may want stages.
        report (callable): takes lines for the user.

    Returns:
        list of Run: the same, with folders of finished runs in their settings.

    Raises:
        StageError: one of them failed; CrmError: it would lack what the run is to be told.
    """
    first = [_first(experiment, run) if wants_stages(run.settings) else {} for run in runs]
    outcomes = execute([stage for stages in first for stage in stages.values()], experiment.folder, report)
    for outcome in outcomes:
        if outcome.failure:
            raise StageError(
                f"{outcome.run.entry.label}, on which another run stands, failed: {outcome.failure} [{outcome.folder}]"
            )
    folders = {outcome.run.name: str(Path(outcome.folder).resolve()) for outcome in outcomes}
    return [
        replace(run, settings={**run.settings, **{key: folders[stage.name] for key, stage in stages.items()}})
        for run, stages in zip(runs, first)
    ]


def _first(experiment, run):
    """Key -> Run, for each key that says what is trained first."""
    found, settings = {}, run.settings
    if wants_stages({"crm": settings.get("crm")}):
        (entry,) = make_entries([settings["crm"]])
        told = {key: settings.get(key, experiment.base[key]) for key in ("spa", "spa_tokens", "cflora", "cflora_input")}
        if run.entry.is_rella and "row" in wanted(told) and not hasattr(entry.model_class, "row_vectors"):
            raise no_rows(entry.label)
        stage = make_run(experiment, entry, run.seed)
        # A model that searches as ReLLa does (SIM) reads crm, too; it cannot stand on itself.
        found["crm"] = replace(stage, settings={key: value for key, value in stage.settings.items() if key != "crm"})
    if is_word("adapter_from", settings.get("adapter_from")):
        # As ReLLa is tuned by itself, or as a data set's file has it, it may have another embedded LLM than the run: the adapters
        # would not fit.
        stage = make_run(experiment, Entry("ReLLa", "ReLLa", {}), run.seed, tuned_as=run.entry.label)
        kept = {key: value for key, value in stage.settings.items() if key not in _THIRD_STAGE}
        of_llm = affecting("llm", "mini") if is_word("llm", settings.get("llm", "mini")) else affecting("llm")
        kept |= {key: settings[key] for key in of_llm if key in settings}
        # A data set's file may have turned them on.
        off = {key: False for key in ("spa", "cflora") if experiment.base.rella_defaults.get(key)}
        found["adapter_from"] = replace(stage, settings={**kept, **off})
    return found


def run_stages(model=None, dataset=None, config_file_list=None, config_dict=None, report=print):
    """One run with what it stands on, each in a process of its own.

    Args:
        model, dataset, config_file_list, config_dict: as for `run_recbole_rella`. What a file that names stages says of models
            holds for the last of them alone; what it says of the rows, and everything else, for all.
        report (callable): takes lines for the user.

    Returns:
        dict: metrics of the last run (valid, test and others, see run_folder.py).

    Raises:
        StageError: a run failed, or several processes were started.
    """
    from recbole_rella.experiments.side_by_side import make_experiment, run_all  # which asks `with_stages`

    if processes.count() > 1:
        raise StageError("crm, adapter_from: expected run folders with several processes, found names of what is trained first.")
    files = {path: read_yaml(path) for path in checked_files(config_file_list) or []}
    variants = [path for path, values in files.items() if wants_stages(values)]
    if len(variants) > 1:
        raise StageError(f"config_files: expected one file with crm or adapter_from, found {variants}.")
    named = [values["model"] for values in files.values() if values.get("model")]
    model = model or (named[-1] if named else "ReLLa")
    (entry,) = make_entries(variants or [model])
    shared = {}
    if variants:
        of_all = {*of_rows(), *PATHS, "dataset"}
        for path, values in files.items():  # a later file says it otherwise
            shared = {key: value for key, value in shared.items() if key not in values}
            shared |= {key: value for key, value in values.items() if path in variants and key in of_all}
        entry = replace(entry, model=model, own={key: value for key, value in entry.own.items() if key not in of_all})
    others = [path for path in files if path not in variants]
    experiment = make_experiment([entry], dataset, others, {**shared, **(config_dict or {})})
    (outcome,) = run_all(experiment, [make_run(experiment, entry, experiment.base["seed"])], report)
    if outcome.metrics is None:
        raise StageError(f"{entry.label} failed: {outcome.failure} [{outcome.folder}]")
    for name in ("valid", "test"):
        report(f"{name}: " + "    ".join(f"{metric} : {value:.4f}" for metric, value in (outcome.metrics[name] or {}).items()))
    report(f"run folder: {outcome.folder}")
    return outcome.metrics
