"""Rows retrieved a second and memory: ours, the paper's way, a FAISS search per row; and 25 million rows.

    python -m benchmarks.speed.retrieval [--large] [--repeats=3]

Synthetic rows and random unit vectors of 512 numbers: the cost depends on neither. Everybody finds the behaviours of the same
rows, and what is found must be equally close to the targets. Writes results/speed/retrieval.json, .png and .md
(retrieval-large.* with --large, which takes about ten minutes on 2 cores).
"""

import argparse

import faiss
import numpy as np

from benchmarks.speed.measure import in_turn, machine, write
from benchmarks.speed.retrieval_report import write_report
from recbole_rella.retrieval.subr import retrieve, similarity
from recbole_rella.rows.history import TRAIN, Histories, Rows

DIMENSION, K = 512, 30  # of the paper
COMMAND = "python -m benchmarks.speed.retrieval"
# Length of the histories, items, rows asked, rows asked of one user.
SMALL = {
    "history": [
        (100, 4000, 3000, 30),
        (300, 4000, 3000, 30),
        (1000, 4000, 1500, 30),
        (10_000, 20_000, 300, 30),
        (100_000, 100_000, 60, 30),
    ],
    "catalogue": [(300, 1000, 3000, 30), (300, 4000, 3000, 30), (300, 20_000, 3000, 30)],
    "rows of a user": [(300, 4000, 1000, 1), (300, 4000, 3000, 30), (300, 4000, 9000, 300)],
}
LARGE = {
    "history": [
        (100, 4000, 12_000, 30),
        (300, 4000, 12_000, 30),
        (1000, 4000, 6000, 30),
        (10_000, 20_000, 900, 30),
        (100_000, 100_000, 120, 30),
    ],
    "catalogue": [(300, 1000, 12_000, 30), (300, 4000, 12_000, 30), (300, 20_000, 12_000, 30), (300, 100_000, 12_000, 30)],
    "rows of a user": [(300, 4000, 3000, 1), (300, 4000, 12_000, 30), (300, 4000, 30_000, 300)],
}


def unit_vectors(n, random):
    """Random unit vectors, float32 [n, DIMENSION]."""
    vectors = random.standard_normal((n, DIMENSION), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


class Case:
    """Users with histories of one length, of whom the last rows are asked.

    Args:
        length (int): of the history of a user's first row that is asked.
        items (int): in the catalogue; a user meets none twice where there are enough.
        asked (int): rows, of all users.
        each (int): rows of one user.
    """

    def __init__(self, length, items, asked, each):
        random = np.random.default_rng(0)
        users, total = asked // each, length + each
        if total <= items:
            item = np.stack([random.permutation(items)[:total] for _ in range(users)], axis=1)
        else:
            item = random.integers(items, size=(total, users))
        n = users * total
        self.rows = Rows(
            np.tile(np.arange(users, dtype=np.int32), total),
            item.astype(np.int32).ravel(),
            np.arange(n),
            None,
            None,
            np.full(n, TRAIN, np.int8),
        )
        self.histories, self.distinct = Histories(self.rows, users), total <= items
        self.asked = np.arange(n - users * each, n)
        self.targets = self.rows.item[self.asked]
        self.vectors = unit_vectors(items, random)
        self.order = None

    def ours(self):
        """Row_ids, int32 [asked, K]."""
        rows = self.rows
        return retrieve(self.vectors, rows.item, self.histories, rows.split, rows.user, self.asked, self.targets, K)[0]

    def faiss_per_row(self):
        """An index of each row's history, searched once."""
        found = []
        for row, target in zip(self.asked, self.targets):
            past = self.histories.of(row)
            index = faiss.IndexFlatIP(DIMENSION)
            index.add(self.vectors[self.rows.item[past]])
            found.append(past[index.search(self.vectors[target][None], K)[1][0]])
        return np.array(found)

    def sort(self):
        """The paper's first step, once a data set: every item's order of all items."""
        self.order = None  # of the repeat before
        self.order = np.argsort(-(self.vectors @ self.vectors.T), axis=1)

    def prepare_walk(self):
        """The paper's histories: a list of item ids for every row."""
        self.pasts = [self.histories.of(row) for row in self.asked]
        self.past_items = [self.rows.item[past].tolist() for past in self.pasts]

    def walk(self):
        """The paper's second step, for every row: down the target's order, until K items of the history have come."""
        found = []
        for target, past, items in zip(self.targets, self.pasts, self.past_items):
            places, chosen = {item: place for place, item in enumerate(items)}, []
            for item in self.order[target]:
                if item in places:
                    chosen.append(past[places[item]])
                    if len(chosen) == K:
                        break
            found.append(chosen)
        return np.array(found)

    def bare_products(self):
        """The matrix products of a search and nothing else, each over all of a user's rows."""
        each = len(self.asked) // len(self.histories.start[1:])
        for user, targets in enumerate(self.targets.reshape(each, -1).T):
            past = self.histories.of_user(user, TRAIN)
            self.vectors[targets] @ self.vectors[self.rows.item[past]].T

    def closeness(self, found):
        """Similarities of found behaviours to the targets, descending, float64 [asked, K]."""
        values = [similarity(self.vectors[self.rows.item[f]], self.vectors[t], "cosine") for f, t in zip(found, self.targets)]
        return -np.sort(-np.array(values), axis=1)


def measure(length, items, asked, each, repeats, largest_matrix):
    """One case, a dict for the record; the paper's way where its matrix has at most so many items."""
    case = Case(length, items, asked, each)
    candidates = {"ours": case.ours, "FAISS per row": case.faiss_per_row}
    # Its dictionaries lose repeated items, so that it finds others where there are any.
    with_paper = items <= largest_matrix and case.distinct
    if with_paper:
        sorting = in_turn({"sort": case.sort}, 1 if items > 10_000 else repeats)["sort"]
        case.prepare_walk()
        candidates["paper's walk"] = case.walk
    found = {name: case.closeness(call()) for name, call in candidates.items()}  # warms all of them up, too
    for name, values in found.items():
        if not np.allclose(values, found["ours"], rtol=0, atol=1e-6):
            raise AssertionError(f"{name}: expected behaviours as close as ours, found others; one of the two is wrong.")
    candidates["bare products"] = case.bare_products
    measured = in_turn(candidates, repeats)
    if with_paper:
        walk = measured["paper's walk"]
        measured["paper's way"] = {
            "seconds": sorting["seconds"] + walk["seconds"],
            "of which sorting once": sorting["seconds"],
            "peak_mib": None if None in (walk["peak_mib"], sorting["peak_mib"]) else sorting["peak_mib"] + walk["peak_mib"],
        }
    for record in measured.values():
        record["rows a second"] = asked / record["seconds"]
        record["times ours"] = record["seconds"] / measured["ours"]["seconds"]
    names = {"history": length, "items": items, "rows": asked, "rows of a user": each}
    return {**names, "vectors, MiB": case.vectors.nbytes / 2**20, "candidates": measured}


def many_rows(n, asked, users=162_541, items=59_047):
    """Histories of n rows of users as unequal as in life, and retrieval for some rows drawn from all; a dict."""
    random = np.random.default_rng(0)
    user = np.minimum(random.pareto(1.2, n) * 1000, users - 1).astype(np.int32)
    rating = random.integers(1, 6, size=n).astype(np.float32)
    rows = Rows(
        user,
        random.integers(items, size=n, dtype=np.int32),
        np.sort(random.integers(10**9, size=n)),
        rating,
        (rating > 3).astype(np.int8),
        np.full(n, TRAIN, np.int8),
    )
    vectors = unit_vectors(items, random)
    made = {}
    build = in_turn({"build": lambda: made.update(histories=Histories(rows, users))}, 1)["build"]
    histories = made["histories"]
    chosen = np.sort(random.choice(n, asked, replace=False))
    lengths = histories.past_lengths()
    read = in_turn({"read": lambda: [histories.of(row)[-K:] for row in chosen]}, 1)["read"]
    search = in_turn(
        {"search": lambda: retrieve(vectors, rows.item, histories, rows.split, user, chosen, rows.item[chosen], K)}, 1
    )["search"]
    state = sum(column.nbytes for column in rows.columns) + histories.row_ids.nbytes + histories.start.nbytes
    return {
        "rows": n,
        "bytes a row": state / n,
        "MiB of rows, histories and vectors": (state + vectors.nbytes) / 2**20,
        "longest history": int(lengths.max()),
        "mean history of the rows asked": float(lengths[chosen].mean()),
        "seconds to build the histories": build["seconds"],
        "microseconds to read one": 1e6 * read["seconds"] / asked,
        "rows asked": asked,
        "seconds to retrieve": search["seconds"],
        "MiB to retrieve": search["peak_mib"],
    }


def main():
    """Measure, print each case, and write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="more rows, larger catalogues, 25 million rows")
    parser.add_argument("--repeats", type=int, default=3)
    known = parser.parse_args()
    record = {"command": COMMAND + (" --large" if known.large else ""), "machine": machine(), "K": K, "dimension": DIMENSION}
    done = {}
    for sweep, cases in (LARGE if known.large else SMALL).items():
        record[sweep] = []
        for case in cases:
            if case not in done:
                done[case] = measure(*case, known.repeats, 20_000 if known.large else 4000)
                found = {name: f"{c['rows a second']:.0f} rows/s" for name, c in done[case]["candidates"].items()}
                print(case, found, flush=True)
            record[sweep].append(done[case])
    record["many rows"] = many_rows(25_000_000, 100_000) if known.large else many_rows(5_000_000, 5000)
    print(record["many rows"], flush=True)
    name = "retrieval-large" if known.large else "retrieval"
    write(name, record)
    write_report(name, record)


if __name__ == "__main__":
    main()
