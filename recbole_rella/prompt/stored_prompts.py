"""Prompts that are tokenized once for all epochs, and for all runs that show the same rows in the same words."""

import time
from functools import partial

import numpy as np

from recbole_rella.files import cached_arrays
from recbole_rella.prompt.in_chunks import in_chunks

# Beyond this, prompts are made when they are asked for: kept ones take 4 bytes a token of memory, and as much disk.
_LIMIT = 500_000


class StoredPrompts:
    """Token ids of the prompts of rows about their own items.

    Args:
        row_ids (numpy.ndarray): ascending, int64 [n].
        arrays (dict): ids (int32, all prompts joined), ends (int64 [n]), dropped (int32 [n]), milliseconds (float []).

    Attributes:
        milliseconds (float): that a prompt took when it was made.
    """

    def __init__(self, row_ids, arrays):
        self.row_ids, self._ids, self._ends, self._dropped = row_ids, arrays["ids"], arrays["ends"], arrays["dropped"]
        self.milliseconds = float(arrays["milliseconds"])

    def place(self, row):
        """The place of a row, or None."""
        place = int(np.searchsorted(self.row_ids, row))
        return place if place < len(self.row_ids) and self.row_ids[place] == row else None

    def __getitem__(self, place):
        """Token ids (list of int) and the number of dropped behaviours of the prompt at a place."""
        begin = self._ends[place - 1] if place else 0
        return self._ids[begin : self._ends[place]].tolist(), int(self._dropped[place])


def _chunk(prompter, kind, row_ids):
    ids, dropped = prompter.token_ids(row_ids, prompter.rows.item[row_ids], np.full(len(row_ids), kind))
    lengths = np.array([len(i) for i in ids])
    return {"ids": np.concatenate(ids).astype(np.int32), "lengths": lengths, "dropped": np.array(dropped, dtype=np.int32)}


def stored_prompts(prompter, row_ids, kind, identity, folder, workers=0, show_progress=False):
    """The prompts of rows about their own items: tokenized now, or from the cache.

    Args:
        prompter (Prompter): makes them.
        row_ids (numpy.ndarray): int [n].
        kind (int): which behaviours they show, RECENT, RETRIEVED or BOTH of rows/fields.py.
        identity (str or None): names what all prompts depend on; None where that cannot be known: nothing is cached then.
        folder (pathlib.Path): the cache.
        workers (int), show_progress (bool): as for `in_chunks`.

    Returns:
        StoredPrompts or None: None for no rows, or for too many to keep.
    """
    row_ids = np.unique(row_ids)
    if not 0 < len(row_ids) <= _LIMIT:
        return None

    def make():
        began = time.monotonic()
        chunks = list(in_chunks(partial(_chunk, prompter, kind), row_ids, "Making prompts", workers, show_progress))
        ids, lengths, dropped = (np.concatenate([chunk[name] for chunk in chunks]) for name in ("ids", "lengths", "dropped"))
        milliseconds = np.array(1000 * (time.monotonic() - began) / len(row_ids))
        return {"ids": ids, "ends": np.cumsum(lengths), "dropped": dropped, "milliseconds": milliseconds}

    parts = None if identity is None else (identity, row_ids, int(kind))
    return StoredPrompts(row_ids, cached_arrays(folder, "prompts", parts, make))
