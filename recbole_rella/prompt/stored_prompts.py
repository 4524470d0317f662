"""Prompts that are tokenized once for all epochs, and for all runs that show the same rows in the same words."""

import time
from pathlib import Path

import numpy as np

from recbole_rella.files import cached_arrays, fingerprint

_VERSION = 1  # part of the cache key: raise it when the same input would give other tokens
# Beyond this, prompts are made when they are asked for: kept ones take 4 bytes a token of memory, and as much disk.
_LIMIT = 500_000


class StoredPrompts:
    """Token ids of the prompts of rows about their own items.

    Args:
        row_ids (numpy.ndarray): ascending, int64 [n].
        arrays (dict): ids (int32, all prompts joined), ends (int64 [n]), dropped (int32 [n]).
    """

    def __init__(self, row_ids, arrays):
        self.row_ids, self._ids, self._ends, self._dropped = row_ids, arrays["ids"], arrays["ends"], arrays["dropped"]

    def place(self, row):
        """The place of a row, or None."""
        place = int(np.searchsorted(self.row_ids, row))
        return place if place < len(self.row_ids) and self.row_ids[place] == row else None

    def __getitem__(self, place):
        """Token ids (list of int) and the number of dropped behaviours of the prompt at a place."""
        begin = self._ends[place - 1] if place else 0
        return self._ids[begin : self._ends[place]].tolist(), int(self._dropped[place])


def store_prompts(prompter, row_ids, retrieved, key, folder):
    """Tokenize the prompts of rows, or take them from the cache; `prompter` hands them out from then on.

    Args:
        prompter (Prompter): complete; gets them as `stored[retrieved]`.
        row_ids (numpy.ndarray): int [n].
        retrieved (bool): whether they show retrieved behaviours, or recent ones.
        key (str): fingerprint of the words, the tokenizer, the retrieval and the rows.
        folder (pathlib.Path): the cache.

    Returns:
        float: milliseconds that a prompt took when it was made.
    """
    row_ids = np.unique(row_ids)
    if not 0 < len(row_ids) <= _LIMIT:
        return 0.0

    def make():
        began = time.monotonic()
        ids, dropped = prompter.token_ids(row_ids, prompter.rows.item[row_ids], np.full(len(row_ids), retrieved))
        milliseconds = 1000 * (time.monotonic() - began) / len(row_ids)
        return {
            "ids": np.concatenate([np.asarray(i, dtype=np.int32) for i in ids]),
            "ends": np.cumsum([len(i) for i in ids]),
            "dropped": np.asarray(dropped, dtype=np.int32),
            "milliseconds": np.array(milliseconds),
        }

    name = f"prompts-{fingerprint(_VERSION, key, row_ids, bool(retrieved))}.npz"
    arrays = cached_arrays(Path(folder) / name, make)
    prompter.stored[bool(retrieved)] = StoredPrompts(row_ids, arrays)
    return float(arrays["milliseconds"])
