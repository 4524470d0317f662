"""From atomic files to retrieved behaviours: seconds and memory of each stage, for a data set of the shape of MovieLens-25M.

    python -m benchmarks.speed.reading [--large] [--rows=1000000] [--asked=5000] [--data_set=FOLDER]

The files are synthetic (users as unequal as in life, items as popular) unless a folder holds real ones, and item vectors are
random; --large is 25 million rows and 100,000 test rows asked, which takes about five minutes, 6 GiB and 1 GB of disk. Up to 5
million rows RecBole's own data set reads the same files, too, and must have read the same. Writes results/speed/reading.json
(reading-large.json with --large).
"""

import argparse
import logging
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset

from benchmarks.speed.measure import in_turn, machine, release_memory, resident, write
from benchmarks.speed.retrieval import K, unit_vectors
from recbole_rella.data.dataset import ReLLaDataset
from recbole_rella.quick_start import make_config, no_command_line
from recbole_rella.retrieval.retriever import Retriever

USERS, ITEMS, ROWS = 162_541, 59_047, 25_000_095  # of MovieLens-25M
COMMAND = "python -m benchmarks.speed.reading"
_GENRES = ["Action", "Comedy", "Drama", "Horror", "Musical", "War", "Western"]
_WORDS = [
    "Day",
    "Dream",
    "Fire",
    "Garden",
    "House",
    "King",
    "Night",
    "River",
    "Road",
    "Sea",
    "Song",
    "Stranger",
    "Summer",
    "Winter",
]


class Stages:
    """Seconds of each stage, and the most memory that was resident since the stage before ended.

    Attributes:
        found (dict): name -> {seconds, peak_mib}.
    """

    def __init__(self):
        self.found = {}
        release_memory()

    @contextmanager
    def stage(self, name):
        """Within this context is a stage."""
        began = time.perf_counter()
        yield
        self.found[name] = {"seconds": time.perf_counter() - began, "peak_mib": resident("VmHWM")}
        release_memory()


def write_data_set(folder, n, seed=0):
    """Atomic files of n rows in the order of users, as MovieLens-25M has them, and of the items."""
    random = np.random.default_rng(seed)
    users, items = max(20, round(USERS * n / ROWS)), max(200, round(ITEMS * min(1, n / ROWS) ** 0.3))
    activity, popularity = random.lognormal(0, 1.2, users), 1 / (np.arange(items) + 20)
    user = np.sort(random.choice(users, n, p=activity / activity.sum()))
    item_ids = 1 + random.choice(4 * items, items, replace=False)
    columns = {
        "user_id:token": user + 1,
        "item_id:token": item_ids[random.choice(items, n, p=popularity / popularity.sum())],
        "rating:float": random.integers(1, 11, n) / 2,
        "timestamp:float": random.integers(789_652_009, 1_534_327_703, users)[user] + random.integers(40_000_000, size=n),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{folder.name}.inter", "w", encoding="utf-8") as file:
        for begin in range(0, n, 1 << 20):
            part = pd.DataFrame({field: column[begin : begin + (1 << 20)] for field, column in columns.items()})
            part.to_csv(file, sep="\t", header=not begin, index=False)
    lines = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for item in item_ids:
        title, genres = (" ".join(random.choice(words, 1 + item % 3, replace=False)) for words in (_WORDS, _GENRES))
        lines.append(f"{item}\t{title} {item % 400}\t{1920 + item % 100}\t{genres}")
    (folder / f"{folder.name}.item").write_text("\n".join(lines) + "\n", encoding="utf-8")


def data_set(stages, base=ReLLaDataset):
    """A data set class of RecBole or ours, whose steps are stages."""

    class Timed(base):
        def _load_data(self, *arguments):
            with stages.stage("reading"):
                super()._load_data(*arguments)

        def _data_filtering(self):
            with stages.stage("RecBole's filters"):
                super()._data_filtering()

        def _remap_ID_all(self):
            with stages.stage("internal ids"):
                super()._remap_ID_all()

        def _number_rows(self):
            with stages.stage("rows and histories"):
                super()._number_rows()

        def _drop_short_histories(self):
            with stages.stage("min_history"):
                super()._drop_short_histories()

    return Timed


def path_of(folder, asked, cache):
    """All stages of one data set; the Stages, and what was found on the way."""
    stages, began = Stages(), time.perf_counter()
    config = settings(folder)
    dataset = data_set(stages)(config)
    with stages.stage("printing it"):
        str(dataset)
    with stages.stage("split"):
        _, _, test = dataset._split()
    vectors = unit_vectors(dataset.item_num, np.random.default_rng(0))
    rows = test.inter_feat["row_id"].numpy()
    rows = np.random.default_rng(0).choice(rows, min(asked, len(rows)), replace=False)
    with stages.stage(f"retrieval of {len(rows):,} rows"):
        Retriever(dataset.rows, dataset.histories, vectors, K, "cosine").searched_ahead(rows, cache)
    lengths = dataset.histories.past_lengths()
    return stages, {
        "rows": len(dataset.rows),
        "users": dataset.user_num - 1,
        "items": dataset.item_num - 1,
        "mean history of the rows asked": float(lengths[rows].mean()),
        "seconds": time.perf_counter() - began,
    }


def settings(folder):
    """RecBole's Config for atomic files of this shape."""
    keys = {"data_path": str(folder.parent), "threshold": {"rating": 4}}
    with no_command_line():
        return make_config("ReLLa", folder.name, config_dict=keys)


def recboles_reading(folder):
    """RecBole's own reading of the same files: seconds and MiB of both, and the ratio; they must read the same."""
    config, read = settings(folder), {}

    def reading(base):
        dataset = base.__new__(base)
        dataset.config, dataset.logger, dataset.dataset_name = config, logging.getLogger(), config["dataset"]
        dataset._get_preset()
        dataset._get_field_from_config()
        dataset._load_data(dataset.dataset_name, dataset.dataset_path)
        read[base] = dataset.inter_feat

    found = in_turn({"ours": lambda: reading(ReLLaDataset), "RecBole's": lambda: reading(Dataset)}, 1)
    pd.testing.assert_frame_equal(read[ReLLaDataset], read[Dataset], check_exact=True)
    return {**found, "times ours": found["RecBole's"]["seconds"] / found["ours"]["seconds"]}


def measure(folder, asked, compare):
    """The record of one data set, a dict; with RecBole's own reading where `compare` is True."""
    logging.disable(logging.WARNING)
    comparison = recboles_reading(folder) if compare else None
    with tempfile.TemporaryDirectory() as cache:
        stages, found = path_of(folder, asked, Path(cache))
    logging.disable(logging.NOTSET)
    files = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    peak = max(record["peak_mib"] for record in stages.found.values())
    return {**found, "files, MiB": files, "peak_mib": peak, "stages": stages.found, "RecBole's own reading": comparison}


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="25 million rows")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--asked", type=int, help="rows for which behaviours are retrieved")
    parser.add_argument("--data_set", type=Path, help="folder of atomic files with item_id, user_id, rating, timestamp")
    known = parser.parse_args()
    n, asked = known.rows or (ROWS if known.large else 1_000_000), known.asked or (100_000 if known.large else 5000)
    with tempfile.TemporaryDirectory() as temporary:
        folder = known.data_set or Path(temporary) / "synthetic"
        if known.data_set is None:
            write_data_set(folder, n)
        found = measure(folder.resolve(), asked, n <= 5_000_000 and known.data_set is None)
    for name, stage in found["stages"].items():
        print(f"{name}: {stage['seconds']:.1f} s, {stage['peak_mib']:.0f} MiB resident at most", flush=True)
    print(f"in all {found['seconds']:.1f} s, at most {found['peak_mib']:.0f} MiB resident")
    source = "synthetic" if known.data_set is None else folder.name
    write(
        "reading-large" if known.large else "reading",
        {"command": COMMAND + (" --large" if known.large else ""), "machine": machine(), "data set": source, **found},
    )


if __name__ == "__main__":
    main()
