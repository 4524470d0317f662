"""One split for several models: which rows train, which validate, which test, by row_id. Plain numpy."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_rella.errors import RellaError
from recbole_rella.files import fingerprint, replacing
from recbole_rella.rows.fields import ROW_ID


class SplitError(RellaError):
    """A split does not fit the data, or the model that should use it."""


def rows_identity(rows, user_tokens, item_tokens):
    """Names rows by what they say, in the order of their row_ids.

    Args:
        rows (Rows): all rows.
        user_tokens, item_tokens (numpy.ndarray): the data set's own id for every internal one, str.

    Returns:
        str: 16 hexadecimal digits; internal ids, which depend on the columns that are loaded, do not enter.
    """
    users, items = (pd.util.hash_array(np.asarray(tokens, dtype=object)) for tokens in (user_tokens, item_tokens))
    columns = [users[rows.user], items[rows.item], rows.time, *([] if rows.label is None else [rows.label])]
    return fingerprint(*columns)


@dataclass(frozen=True)
class Split:
    """Row_ids of the three parts, int64, in the order in which they are evaluated; the identity of all rows; and the split
    code of each, int8 [rows], that of rows which train_pool and eval_rows leave out included: histories depend on it."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    identity: str
    codes: np.ndarray

    @classmethod
    def of(cls, dataset):
        """The split that a data set's own eval_args make, with train_pool, eval_rows and train_shots drawn where they are set.

        Args:
            dataset (RowDataset): not built yet.
        """
        parts = [part.inter_feat[ROW_ID].numpy() for part in dataset.build()]
        return cls(*parts, dataset.identity(), dataset.rows.split)

    def save(self, path):
        """Write the split as a numpy archive, whole or not at all."""
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, train=self.train, valid=self.valid, test=self.test, rows=np.array(self.identity), codes=self.codes)

    @classmethod
    def load(cls, path, rows=None):
        """Read a split.

        Args:
            path (str or pathlib.Path): as `save` left it.
            rows (str, optional): identity of the rows it must belong to.

        Raises:
            SplitError: the file does not read, or belongs to other rows.
        """
        try:
            with np.load(Path(path).expanduser(), allow_pickle=False) as archive:
                split = cls(archive["train"], archive["valid"], archive["test"], str(archive["rows"]), archive["codes"])
        except Exception as error:  # zipfile, zlib, OS, key and value errors: whatever the damage, the remedy is the same
            raise SplitError(f"split_file: expected a split at {path}, found none that reads ({error}). Make it again.") from error
        if rows is not None and split.identity != rows:
            raise SplitError(
                f"split_file: expected a split of these rows ({rows}), found one of others ({split.identity}) in {path}. The data "
                "set, its filters, its threshold or its ids have changed: make the split again."
            )
        return split
