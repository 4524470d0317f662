"""History features of many rows: seconds and memory.

    python -m benchmarks.history_features [--rows=1000000,25000000] [--output_folder=results]

Synthetic rows in the shape of MovieLens-25M: as many users and items, histories more unequal, one to three of 20 genres an item,
split 8:1:1 by time, liked from 4 on. All features that need no behaviours to be searched for, of every row, on one thread.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.speed.measure import in_turn, machine
from recbole_rella.files import write_json, write_text
from recbole_rella.key_rules import DEFAULT_HISTORY, history_names
from recbole_rella.retrieval.taste import Taste, taste_arrays
from recbole_rella.rows.features import HistoryFeatures
from recbole_rella.rows.history import TEST, TRAIN, VALID, Histories, Rows
from recbole_rella.rows.item_statistics import ItemStatistics
from recbole_rella.rows.item_values import ItemValues

COMMAND = "python -m benchmarks.history_features"
USERS, ITEMS, GENRES = 162_541, 59_047, 20
# What is retrieved has a benchmark of its own (benchmarks/speed/retrieval.py).
NAMES = tuple(name for name in history_names([DEFAULT_HISTORY], "genre") if not name.startswith(("similar_", "alike_")))


def synthetic(n, seed=0):
    """Rows of users and items as unequal as in life.

    Args:
        n (int): how many.
        seed (int): of all that is drawn.

    Returns:
        tuple: Rows; ItemValues of the genres.
    """
    random = np.random.default_rng(seed)
    users, items = max(1, USERS * n // 25_000_000), max(1, ITEMS * n // 25_000_000)
    user = np.minimum(random.pareto(1.2, n) * users / 160, users - 1).astype(np.int32)
    item = np.minimum(random.pareto(1.2, n) * items / 60, items - 1).astype(np.int32)
    time = np.sort(random.integers(8 * 10**8, 16 * 10**8, size=n))
    rating = (random.integers(1, 11, size=n) / 2).astype(np.float32)
    train, valid = 8 * n // 10, n // 10
    split = np.repeat(np.array([TRAIN, VALID, TEST], np.int8), [train, valid, n - train - valid])
    genres = [" ".join(map(str, random.choice(GENRES, 1 + place % 3, replace=False))) for place in range(items)]
    return Rows(user, item, time, rating, (rating >= 4).astype(np.int8), split), ItemValues.of(genres, " ")


def measured(n):
    """Seconds and peak memory of n rows, a dict."""
    rows, genres = synthetic(n)
    histories, made, found = Histories(rows, int(rows.user.max()) + 1), {}, {}

    def statistics():
        made["statistics"] = ItemStatistics.of(rows)
        made["likes"] = ItemStatistics.of(rows, rows.label)

    def vectors():
        made["taste"] = Taste(**taste_arrays(rows, (int(rows.user.max()) + 1, int(rows.item.max()) + 1)))

    def of_rows():
        features = HistoryFeatures(rows=rows, histories=histories, names=NAMES, values={"genre": genres}, **made)
        found["table"] = features.of_rows(np.arange(n))

    costs = {}
    for stage in (statistics, vectors, of_rows):  # one after the other: the features stand on the others
        began = time.process_time()
        costs[stage.__name__] = in_turn({"stage": stage}, 1)["stage"]
        costs[stage.__name__]["processor"] = time.process_time() - began
    table = found["table"]
    return {
        "rows": n,
        "users": int((np.diff(histories.start) > 0).sum()),
        "longest history": int(np.diff(histories.start).max()),
        "features": len(NAMES),
        "seconds of item statistics": costs["statistics"]["seconds"],
        "seconds of item vectors": costs["vectors"]["seconds"],
        "seconds of features": costs["of_rows"]["seconds"],
        "processor seconds of item statistics": costs["statistics"]["processor"],
        "processor seconds of item vectors": costs["vectors"]["processor"],
        "processor seconds of features": costs["of_rows"]["processor"],
        "MiB of rows and histories": sum(column.nbytes for column in (*rows.columns, histories.row_ids)) / 2**20,
        "MiB of item statistics": costs["statistics"]["peak_mib"],
        "MiB of item vectors": costs["vectors"]["peak_mib"],
        "MiB of features": costs["of_rows"]["peak_mib"],
        "MiB of the table": table.nbytes / 2**20,
        "values that are there": float(np.mean([np.isfinite(column).mean() for column in table.T])),
    }


def page(record):
    """The figures as Markdown."""
    lines = [
        "# History features of many rows",
        "",
        f"`{record['command']}`, on {record['machine']['cpu']}, one thread: {len(NAMES)} numbers of every row",
        f"({', '.join(NAMES)}).",
        "Synthetic rows in the shape of MovieLens-25M. Seconds are those of the processor, in brackets by the clock (other work",
        "may run beside it). MiB are what a stage takes at its peak beyond what was there, the table of results included in that",
        "of the features.",
        "",
        "| rows | longest history | statistics | vectors | features | rows a second | rows, histories | statistics | vectors "
        "| features | table |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in record["cases"]:
        stages = ("item statistics", "item vectors", "features")
        seconds = [(case[f"processor seconds of {stage}"], case[f"seconds of {stage}"]) for stage in stages]
        memory = ("rows and histories", "item statistics", "item vectors", "features", "the table")
        lines.append(
            f"| {case['rows']:,} | {case['longest history']:,} | "
            + " | ".join(f"{processor:.1f} s ({clock:.1f} s)" for processor, clock in seconds)
            + f" | {case['rows'] / sum(processor for processor, _ in seconds):,.0f} | "
            + " | ".join(f"{case[f'MiB of {name}']:,.0f} MiB" for name in memory)
            + " |"
        )
    return "\n".join(lines) + "\n"


def main():
    """Measure, print each case, and write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000000,25000000", help="row counts, separated by commas")
    parser.add_argument("--output_folder", default="results")
    known = parser.parse_args()
    record = {"command": f"{COMMAND} --rows={known.rows}", "machine": machine(), "names": NAMES, "cases": []}
    for n in map(int, known.rows.split(",")):
        record["cases"].append(measured(n))
        print(record["cases"][-1], flush=True)
    folder = Path(known.output_folder)
    write_json(folder / "history_features.json", record)
    write_text(folder / "history_features.md", page(record))


if __name__ == "__main__":
    main()
