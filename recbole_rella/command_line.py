"""The command of run_recbole_rella.py: what is done on each of the ways that a command line asks for (see arguments.py).

Each way imports what it needs, as the help needs nothing.
"""

import sys
from pathlib import Path

from recbole_rella import arguments
from recbole_rella.arguments import CommandError
from recbole_rella.errors import RellaError


def _read(command, key, default):
    """A key of the command line that the command itself needs."""
    from recbole_rella.keys import refuse

    if key not in command.keys:
        return default
    value = arguments.read_value(key, command.keys[key])
    refuse([] if isinstance(value, str) else [f"{key}: expected text, found {value!r}"])
    return str(Path(value).expanduser())


def _finished_run(command):
    """The given run folder, or the latest one of ReLLa."""
    from recbole_rella.run_folder import ADAPTER, METRICS

    folder, checkpoint_dir = _read(command, "run_folder", None), _read(command, "checkpoint_dir", "saved")
    if folder:
        return folder
    found = sorted(Path(checkpoint_dir).glob(f"*/{METRICS}"), key=lambda path: path.stat().st_mtime)
    runs = [path.parent for path in found if (path.parent / ADAPTER).is_dir()]
    if not runs:
        raise CommandError(f"run_folder: expected the folder of a finished run of ReLLa, found none in {checkpoint_dir}/.")
    print(f"run folder: {runs[-1]}")
    return runs[-1]


def _allowed(command):
    """What may differ between a finished run and what is loaded of it, where that is said."""
    from recbole_rella.given import allowed_changes

    return {"allow_changed": allowed_changes(command.keys["allow_changed"])} if "allow_changed" in command.keys else {}


def _scorer(command, folder):
    """The Scorer of a finished run, by the engine that the command names."""
    from recbole_rella.serving.scorer import Scorer

    engine = {key: arguments.read_value(key, command.keys[key]) for key in ("scoring_engine", "vllm_args") if key in command.keys}
    return Scorer.load(folder, **_allowed(command), **engine)


def _export(command):
    from recbole_rella.files import check_file
    from recbole_rella.serving.export import Export, check_new

    flags = command.flags
    if flags.export:
        check_new(flags.export)
    if flags.export_prompts:
        check_file(flags.export_prompts, "export_prompts", [("export", flags.export)] if flags.export else [])
    export = Export(_finished_run(command), **_allowed(command))
    if flags.export:  # first, as the prompts may go into this folder, which must be new
        export.write_model(flags.export)
        print(f"LLM written to {flags.export}")
    if flags.export_prompts:
        count = export.write_prompts(flags.export_prompts, flags.export_split)
        print(f"{count} prompts written to {flags.export_prompts}")


def _explain(command):
    from recbole_rella.files import check_folder
    from recbole_rella.serving.explanation import explain, write_explanation

    folder = _finished_run(command)
    output = check_folder(command.flags.output_folder or Path(folder) / "explanations", "output_folder")
    explanation = explain(_scorer(command, folder), command.flags.explain)
    print(explanation.text())
    print(f"Written to {write_explanation(explanation, output)}")


def _diagnose(command):
    from recbole_rella.files import check_folder
    from recbole_rella.report.run_page import DIAGNOSIS, write_run_page
    from recbole_rella.serving.diagnosis import diagnose, write_diagnosis

    folder = _finished_run(command)
    output = check_folder(command.flags.output_folder or Path(folder) / DIAGNOSIS, "output_folder")
    scorer = _scorer(command, folder)
    diagnosis = diagnose(scorer, folder)
    print(diagnosis.text())
    print(f"Written to {write_diagnosis(diagnosis, output)}")
    if not command.flags.output_folder:
        print(f"Report: {write_run_page(folder, scorer.dataset)}")


def _score(command):
    from recbole_rella.serving.requests import check_files, score_file

    flags, output = command.flags, command.flags.output_file or "scores.csv"
    check_files(flags.score, output)
    good, bad = score_file(_scorer(command, _finished_run(command)), flags.score, output, flags.bad_lines)
    print(f"{good} requests scored, {bad} lines left out; written to {output}")


def _in_files(command):
    """What each of the configuration files says, list of dict; files that hold no keys are refused."""
    from recbole_rella.files import read_yaml
    from recbole_rella.given import checked_files

    return [read_yaml(path) for path in checked_files(command.files) or []]


def _convert(command):
    from recbole_rella.atomic.convert import convert

    given = {"data_path": "dataset/"}  # RecBole's default
    for values in _in_files(command):
        given.update(values)
    return convert(command.flags.dataset, command.flags.convert, _read(command, "data_path", given["data_path"]))


def _on_data(command):
    """Model, data set and files, as the functions take them; ReLLa on ml-100k where nothing is said."""
    model, dataset = command.flags.model or None, command.flags.dataset or None
    if not command.files and "resume_from" not in command.keys:
        model, dataset = model or "ReLLa", dataset or "ml-100k"
    return {"model": model, "dataset": dataset, "config_file_list": command.files or None}


def _tune(command):
    from recbole_rella.experiments.tuning import tune

    flags = command.flags
    best, score, path = tune(
        flags.params_file,
        **_on_data(command),
        tool=flags.tool,
        algo=flags.algo,
        max_evals=flags.max_evals,
        early_stop=flags.early_stop,
        output_file=flags.output_file or "hyper.result",
        display_file=flags.display_file,
        concurrency=flags.concurrency,
    )
    print(f"best params: {best}\nbest valid score: {score:.6f}\nits configuration, for --config_files: {path}")


def _several(command):
    """What side-by-side runs and sweeps take."""
    flags, given = command.flags, _on_data(command)
    given.pop("model")
    in_files = [values.get("model") for values in _in_files(command)]
    named = next((model for model in reversed(in_files) if model), "ReLLa")
    return {"models": command.models or [named], **given, "seeds": flags.seeds, "output_folder": flags.output_folder}


def _sweep(command):
    from recbole_rella.experiments.sweep import run_sweep

    curves, folder = run_sweep(command.flags.sweep, **_several(command))
    _refuse_failed(curves["failed"], folder)
    return curves, folder


def _compare(command):
    from recbole_rella.experiments.side_by_side import run_side_by_side

    table, runs, folder = run_side_by_side(**_several(command))
    _refuse_failed(runs["test AUC"].isna(), folder)
    return table, runs, folder


def _refuse_failed(failed, folder):
    """End with an error where runs failed, so that a script or a queue knows; their table is written."""
    if count := int(failed.sum()):
        raise CommandError(
            f"Expected every run to end, found {count} that failed: the table in {folder} says why (note), and their logs more. "
            "The same command runs them again, and no others."
        )


def _tuned(command, given):
    """The files of a run, that of the settings that were chosen for its model first, where --tuned=True asks for them."""
    files = given["config_file_list"] or []
    if arguments.read_value("tuned", command.keys.get("tuned", "False")) is not True:
        return files
    from recbole_rella.shipped import tuned_file

    path = tuned_file(given["model"], given["dataset"])
    if not path.is_file():
        raise CommandError(
            f"tuned: expected a model and a data set for which settings were chosen (properties/tuned), found "
            f"--model={given['model']} --dataset={given['dataset']}."
        )
    return [str(path), *files]


def _run(command):
    from recbole_rella.experiments.stages import run_stages, wants_stages
    from recbole_rella.quick_start import run_recbole_rella
    from recbole_rella.run_folder import CONFIG, read_run

    given = _on_data(command)
    named = {key: arguments.read_value(key, command.keys[key]) for key in ("crm", "adapter_from") if key in command.keys}
    if any(map(wants_stages, [named, *_in_files(command)])):
        return run_stages(**given)  # what was chosen for each, where --tuned=True asks for it, is for it alone
    given["config_file_list"] = _tuned(command, given) or None
    folder = _read(command, "resume_from", None)
    if folder:
        run = read_run(folder)
        given = {
            "model": given["model"] or run.model,
            "dataset": given["dataset"] or run.dataset,
            "config_file_list": [run.folder / CONFIG, *command.files],
            "config_dict": {"resume_from": str(folder)},
        }
    return run_recbole_rella(**given)


_WAYS = {
    "run": _run,
    "compare": _compare,
    "sweep": _sweep,
    "tune": _tune,
    "convert": _convert,
    "score": _score,
    "explain": _explain,
    "diagnose": _diagnose,
    "export": _export,
}


def main(given=None):
    """Do what a command line asks for.

    Args:
        given (list of str, optional): the arguments; those of this program by default.

    Returns:
        What the way that was taken returns.

    Raises:
        RellaError: what was given cannot be used.
    """
    command = arguments.parse(sys.argv[1:] if given is None else given)
    from recbole_rella.compat import without_future_warnings
    from recbole_rella.given import command_line

    _start_processes(command)
    without_future_warnings()
    with command_line(command.keys):
        return _WAYS[command.way](command)


def _start_processes(command):
    """Those that a launcher has started, or that nproc asks for; then this command runs again in each."""
    from recbole_rella import processes

    processes.start()
    flags = command.flags
    if flags.nproc > 1 and processes.count() == 1:
        processes.launch(flags.nproc, flags.world_size, flags.group_offset, flags.ip, flags.port)
    if processes.count() > 1 and command.way != "run":
        found = flags.model if command.way == "compare" and flags.model else arguments.WAYS[command.way][0]
        raise CommandError(f"Expected one run of one model with several processes, found {found}: start this command without them.")


def run():
    """`main`, with errors of configuration and data as one message: they say what to do, and a traceback would hide that.

    Everything else keeps its own.
    """
    try:
        main()
        from recbole_rella import processes

        processes.end()
    except RellaError as error:
        sys.exit(f"{type(error).__name__}: {error}")
