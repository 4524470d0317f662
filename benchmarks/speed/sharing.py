"""How much of their behaviours the retrieved prompts of a user share as a beginning, in one order of them or another.

    python -m benchmarks.speed.sharing [--k=15,60]

What prompts share as a beginning is computed once. Test rows of MovieLens-100K, an evaluation batch, tfidf; rows whose history has
K behaviours at least. Sharing is the behaviours of all prompts over those that are computed. It is counted, without any LLM.

- time: oldest first, as prompts have it by default.
- popular: those whose items have most rows first.
- readily: those that are most readily retrieved first: of training shots with their items in the history the most show them.
- shown: by how often each is shown in the very prompts that are counted. No run can have this order, as a row's score would depend
  on the rows beside it: it stands for what there is to gain.

Writes results/speed/sharing.json.
"""

import argparse
import tempfile

import numpy as np

from benchmarks.speed.measure import command, machine, write
from benchmarks.speed.scoring import sharing
from benchmarks.speed.workload import Prompts

COMMAND = "python -m benchmarks.speed.sharing"


def measure(prompts):
    """The number of prompts, and their sharing by the name of an order.

    Args:
        prompts (Prompts): of one K.

    Returns:
        dict
    """
    item, shown = prompts.prompter.rows.item, prompts.retrieved(prompts.test_ids(prompts.prompter.history_size))
    shots = prompts.shot_ids(prompts.prompter.history_size)
    # A shot that shows none and one that shows one, of items that no shot has: they are no more readily shown than others.
    had, taken = np.full(item.max() + 1, 2.0), np.full(item.max() + 1, 1.0)
    for row, some in zip(shots, prompts.retrieved(shots)):
        np.add.at(had, item[prompts.prompter.histories.of(row)], 1)
        np.add.at(taken, item[some], 1)
    first = {
        "time": np.zeros(len(item)),
        "popular": np.bincount(item)[item],
        "readily": (taken / had)[item],
        "shown": np.bincount(np.concatenate(shown), minlength=len(item)),
    }
    by_order = {name: [sorted(some, key=lambda row: (-value[row], row)) for some in shown] for name, value in first.items()}
    whole = sum(map(len, shown))  # one tree: row ids, which no two users have in common, stand for tokens
    return {"prompts": len(shown), **{name: sharing(rows, whole) for name, rows in by_order.items()}}


def main():
    """Count for each K, print, and write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", default="15,60")
    record = {"machine": machine(), "command": command(COMMAND), "K": {}}
    for k in map(int, parser.parse_args().k.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            record["K"][k] = found = measure(Prompts(k, folder))
        print(f"K={k}", {name: round(value, 3) for name, value in found.items()}, flush=True)
        write("sharing", record)


if __name__ == "__main__":
    main()
