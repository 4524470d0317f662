"""Histories of many rows: seconds, bytes a row, peak memory. Synthetic rows, Zipf-like users, all in numpy.

    python benchmarks/histories.py [--rows=5000000] [--users=160000] [--items=60000]
"""

import argparse
import json
import resource
import time

import numpy as np

from recbole_rella.data.history import TRAIN, Histories, Rows


def main():
    """Build the histories, read some, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--users", type=int, default=160_000)
    parser.add_argument("--items", type=int, default=60_000)
    known = parser.parse_args()
    random = np.random.default_rng(0)
    user = np.minimum(random.pareto(1.2, known.rows) * 1000, known.users - 1).astype(np.int32)
    item = random.integers(known.items, size=known.rows, dtype=np.int32)
    time_ = np.sort(random.integers(10**9, size=known.rows))
    rating = random.integers(1, 6, size=known.rows).astype(np.float32)
    rows = Rows(user, item, time_, rating, (rating > 3).astype(np.int8), np.full(known.rows, TRAIN, np.int8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    histories = Histories(rows, known.users)
    lengths = histories.past_lengths()
    built = time.perf_counter() - begin
    chosen = random.integers(known.rows, size=100_000)
    begin = time.perf_counter()
    shown = sum(len(histories.of(row)[-15:]) for row in chosen)
    state = sum(column.nbytes for column in vars(rows).values()) + histories.rows.nbytes + histories.start.nbytes
    print(
        json.dumps(
            {
                "rows": known.rows,
                "longest history": int(lengths.max()),
                "seconds to build": round(built, 2),
                "microseconds to read one": round((time.perf_counter() - begin) * 10, 1),
                "shown": shown,
                "bytes a row": round(state / known.rows, 1),
                "peak MiB before": before // 1024,
                "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
