"""Search the settings of the models of a table on validation, one after the other, as many trials for each.

    python -m benchmarks.tuned --dataset=ml-100k --models=FM+history,SIM,Tree [--trials=20] [--key=value ...]

The space of an entry is properties/hyper/<entry>.hyper, or that of its model. What is chosen goes to properties/tuned/<data set>/,
which `--tuned=True` takes in a table; every trial, with its validation metrics alone, to results/tuned/<data set>/<entry>.csv.
Interrupted, the same command goes on after the trials that are done.
"""

import argparse
from pathlib import Path

import pandas as pd
import yaml
from recbole.utils.argument_list import training_arguments

from recbole_rella.arguments import keys_among, read_value
from recbole_rella.experiments.plan import make_entries
from recbole_rella.experiments.tuning import Trials, read_space, tune
from recbole_rella.files import read_yaml, replacing, write_text
from recbole_rella.given import command_line
from recbole_rella.shipped import properties_folder, tuned_file


def space_of(entry):
    """The file of what is searched for an entry: of its own name, else of its model."""
    names = entry.label.partition("+")[0].lower(), entry.model.lower()
    return next(path for name in names if (path := properties_folder() / "hyper" / f"{name}.hyper").is_file())


def search(label, dataset, trials, given, folder):
    """Tune an entry; write what was chosen, and the trials."""
    (entry,) = make_entries([label])
    space, output = space_of(entry), folder / f"{label}.result"
    output.parent.mkdir(parents=True, exist_ok=True)
    best, score, _ = tune(
        str(space), label, dataset, config_dict=given, algo="bayes", max_evals=trials, early_stop=trials, output_file=str(output)
    )
    found = Trials(output.with_name(f"{label}.trials.jsonl"), read_yaml(output.with_name(f"{label}.fixed.yaml"))).lines()
    table = pd.DataFrame([{**trial["params"], **trial["best_valid_result"]} for trial in found]).sort_values("auc", ascending=False)
    with replacing(Path("results") / "tuned" / dataset / f"{label}.csv") as path:
        table.to_csv(path, index=False)
    kept = {key: value for key, value in given.items() if key in training_arguments and entry.has_epochs}
    chosen = {key: best[key] for key in read_space(space)} | kept
    why = f"# The best of {len(found)} trials of properties/hyper/{space.name} by validation AUC ({score:.4f}), one seed."
    write_text(tuned_file(label, dataset), f"{why}\n{yaml.safe_dump(chosen, sort_keys=False, default_flow_style=False)}")
    print(f"{label} on {dataset}: {score:.6f} of {len(found)} trials: {best}")


def main():
    """Search what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--models", required=True)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("saved/tuned"), help="of unfinished searches")
    flags, rest = parser.parse_known_args()
    with command_line({}):
        given = {key: read_value(key, text) for key, text in keys_among(rest).items()}
        for label in flags.models.split(","):
            search(label, flags.dataset, flags.trials, given, flags.folder / flags.dataset)


if __name__ == "__main__":
    main()
