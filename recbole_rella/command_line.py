"""The command of run_recbole_rella.py: which of the ways in an argument list asks for."""

import argparse
import sys
import warnings
from pathlib import Path

from recbole_rella import processes
from recbole_rella.errors import RellaError
from recbole_rella.files import read_yaml
from recbole_rella.quick_start import run_recbole_rella
from recbole_rella.run_folder import ADAPTER, CONFIG, METRICS, read_run

USAGE = """Run ReLLa, or any model of RecBole, on a data set.

    python run_recbole_rella.py --model=ReLLa --dataset=ml-100k [--config_files="a.yaml b.yaml"] [--key=value ...]
    python run_recbole_rella.py --resume_from=saved/<run folder>

The original files of a published data set (ml-1m, ml-25m, book-crossing) to RecBole's atomic files in data_path:

    python run_recbole_rella.py --dataset=ml-1m --convert=<folder of the original files> [--data_path=dataset/]

Several models side by side, on the same rows, and a key over several values:

    python run_recbole_rella.py --model=ReLLa,FM,DIN --dataset=ml-100k [--seeds=2020,2021,2022] [--DIN.epochs=4]
    python run_recbole_rella.py --model=ReLLa --dataset=ml-100k --sweep=history_size:5,10,15

Tuning (pip install '.[hyper]'), scoring a file of requests, and what the model saw of a row:

    python run_recbole_rella.py --model=ReLLa --dataset=ml-100k --params_file=properties/hyper/rella.hyper --algo=bayes
    python run_recbole_rella.py --score=requests.jsonl --run_folder=saved/<run folder> --output_file=scores.csv
    python run_recbole_rella.py --explain=<row_id or user,item> --run_folder=saved/<run folder>

A finished run for other programs, as a plain Hugging Face folder and its test prompts:

    python run_recbole_rella.py --export=<folder> --export_prompts=<file.jsonl> --run_folder=saved/<run folder>

Several processes (or torchrun, or accelerate launch, in the place of python):

    python run_recbole_rella.py --model=ReLLa --dataset=ml-100k --nproc=2

Every other --key=value is a key of RecBole or of ReLLa and overrides the configuration files.
"""


def _parser():
    parser = argparse.ArgumentParser(description=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", "-m", help="name of the model (ReLLa), or several, separated by commas")
    parser.add_argument("--dataset", "-d", help="name of the data set (ml-100k), or the folder of its atomic files")
    parser.add_argument("--convert", help="folder of the original files of the data set, to be converted")
    parser.add_argument("--data_path", help="folder of the data sets (RecBole's key)")
    parser.add_argument("--config_files", help="YAML files, separated by spaces")
    parser.add_argument("--resume_from", help="run folder of an interrupted run")
    several = parser.add_argument_group("several processes, in RecBole's words")
    several.add_argument("--nproc", type=int, default=1, help="processes on this machine; one a GPU")
    several.add_argument("--world_size", type=int, default=-1, help="processes on all machines")
    several.add_argument("--group_offset", type=int, default=0, help="processes on the machines before this one")
    several.add_argument("--ip", default="localhost", help="address of the first machine")
    several.add_argument("--port", type=int, default=5678, help="port of the first machine")
    experiments = parser.add_argument_group("side by side")
    experiments.add_argument("--seeds", help="one run of each model for each seed, separated by commas")
    experiments.add_argument("--sweep", help="key:value,value,... : one run of each model for each value")
    experiments.add_argument("--train_shots_for", help="ReLLa (train_shots for ReLLa alone, the default) or all")
    experiments.add_argument("--output_folder", help="where tables and pictures are written")
    tuning = parser.add_argument_group("tuning")
    tuning.add_argument("--params_file", help="file of the searched keys: key choice [a,b], key uniform low,high, ...")
    tuning.add_argument("--tool", default="Hyperopt", help="Hyperopt or Ray")
    tuning.add_argument("--algo", default="exhaustive", help="exhaustive, random or bayes")
    tuning.add_argument("--max_evals", type=int, default=20, help="number of trials")
    tuning.add_argument("--early_stop", type=int, default=10, help="Hyperopt ends after so many trials without progress")
    tuning.add_argument("--concurrency", type=int, help="trials at a time with Ray")
    tuning.add_argument("--display_file", help="HTML chart of the trials")
    tuning.add_argument("--output_file", help="results of the trials, or scores")
    finished = parser.add_argument_group("with a finished run")
    finished.add_argument("--run_folder", help="its folder; the latest one by default")
    finished.add_argument("--score", help="file of requests, .csv or JSON Lines; scores go to --output_file")
    finished.add_argument("--bad_lines", default="skip", help="skip or fail: what a line does that cannot be scored")
    finished.add_argument("--explain", help="row_id, or user,item")
    finished.add_argument("--export", help="new folder for the LLM with its adapters merged in")
    finished.add_argument("--export_prompts", help="file for the prompts, as JSON Lines")
    finished.add_argument("--export_split", default="test", help="train, valid or test: whose prompts are written")
    return parser


class CommandError(RellaError):
    """The command line asks for what does not go together, or for what is not there."""


def _finished_run(folder, checkpoint_dir="saved"):
    """The given run folder, or the latest one of ReLLa."""
    if folder:
        return folder
    found = sorted(Path(checkpoint_dir).glob(f"*/{METRICS}"), key=lambda path: path.stat().st_mtime)
    runs = [path.parent for path in found if (path.parent / ADAPTER).is_dir()]
    if not runs:
        raise CommandError(f"run_folder: expected the folder of a finished run of ReLLa, found none in {checkpoint_dir}/.")
    print(f"run folder: {runs[-1]}")
    return runs[-1]


def _export(known):
    from recbole_rella.serving.export import Export, check_new

    if known.export:
        check_new(known.export)
    export = Export(_finished_run(known.run_folder))
    if known.export_prompts:
        count = export.write_prompts(known.export_prompts, known.export_split)
        print(f"{count} prompts written to {known.export_prompts}")
    if known.export:
        export.write_model(known.export)
        print(f"LLM written to {known.export}")


def _with_finished_run(known):
    from recbole_rella.serving.explanation import explain, write_explanation
    from recbole_rella.serving.requests import score_file
    from recbole_rella.serving.scorer import Scorer

    folder = _finished_run(known.run_folder)
    scorer = Scorer.load(folder)
    if known.explain:
        explanation = explain(scorer, known.explain)
        print(explanation.text())
        print(f"Written to {write_explanation(explanation, known.output_folder or Path(folder) / 'explanations')}")
    else:
        good, bad = score_file(scorer, known.score, known.output_file or "scores.csv", known.bad_lines)
        print(f"{good} requests scored, {bad} lines left out; written to {known.output_file or 'scores.csv'}")


def _convert(known, files):
    from recbole_rella.atomic.convert import convert

    given = {"data_path": "dataset/"}  # RecBole's default
    for path in files:
        given.update(read_yaml(path))
    return convert(known.dataset, known.convert, known.data_path or given["data_path"])


def _tune(known, model, dataset, files):
    from recbole_rella.experiments.tuning import tune

    best, score, path = tune(
        known.params_file,
        model,
        dataset,
        files,
        tool=known.tool,
        algo=known.algo,
        max_evals=known.max_evals,
        early_stop=known.early_stop,
        output_file=known.output_file or "hyper.result",
        display_file=known.display_file,
        concurrency=known.concurrency,
    )
    print(f"best params: {best}\nbest valid score: {score:.6f}\nits configuration, for --config_files: {path}")


def _seeds(text):
    if text is None:
        return None
    try:
        return [int(seed) for seed in text.strip("[]").split(",")]
    except ValueError:
        return [text]  # refused with the others' errors


def main(arguments=None):
    """Parse the arguments that say what to do, and leave the others to RecBole's Config.

    Args:
        arguments (list of str, optional): those of the command line by default, which RecBole's Config reads in any case.

    Returns:
        What the way in that was taken returns.
    """
    known, _ = _parser().parse_known_args(arguments)
    _start_processes(known)
    # RecBole's calls of pandas and torch that will change some day; nothing that a user could do about them.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
    if known.export or known.export_prompts:
        return _export(known)
    if known.explain or known.score:
        return _with_finished_run(known)
    files = known.config_files.split() if known.config_files else []
    if known.convert:
        counts = _convert(known, files)
        if not known.model:
            return counts
    model, dataset = known.model, known.dataset
    if known.resume_from:
        run = read_run(known.resume_from)
        model, dataset, files = model or run.model, dataset or run.dataset, [run.folder / CONFIG, *files]
    elif not files:
        model, dataset = model or "ReLLa", dataset or "ml-100k"
    models = [name.strip() for name in (model or "").split(",") if name.strip()]
    shared = {
        "dataset": dataset,
        "config_file_list": files or None,
        "seeds": _seeds(known.seeds),
        "output_folder": known.output_folder,
    }
    if known.params_file:
        return _tune(known, model, dataset, files or None)
    if known.sweep:
        from recbole_rella.experiments.sweep import run_sweep

        return run_sweep(known.sweep, models or ["ReLLa"], **shared)
    if len(models) > 1 or known.seeds or (models and models[0] in _variants()):
        from recbole_rella.experiments.side_by_side import run_side_by_side

        return run_side_by_side(models or ["ReLLa"], **shared)
    return run_recbole_rella(model=model, dataset=dataset, config_file_list=files or None)


def _start_processes(known):
    """Those that a launcher has started, or that nproc asks for; then this command runs again in each."""
    processes.start()
    if known.nproc > 1 and processes.count() == 1:
        processes.launch(known.nproc, known.world_size, known.group_offset, known.ip, known.port)
    keys = ("explain", "score", "export", "export_prompts", "convert", "params_file", "sweep", "seeds")
    alone = [key for key in keys if getattr(known, key)]
    if processes.count() > 1 and (alone or "," in (known.model or "") or known.model in _variants()):
        raise CommandError(
            f"Expected one run of one model with several processes, found {alone or known.model}: start this command without them."
        )


def _variants():
    from recbole_rella.experiments.plan import variant_names

    return variant_names()


def run():
    """`main`, with errors of configuration and data as one message: they say what to do, and a traceback would hide that.

    Everything else keeps its own.
    """
    try:
        main()
        processes.end()
    except RellaError as error:
        sys.exit(f"{type(error).__name__}: {error}")
