"""The behaviours of a batch as numbers, for models that embed them: items, answers and time gaps, in RecBole's transform hook.

Two branches, as in SIM (CIKM 2020): the latest behaviours, and a longer or a searched part of the past. Columns of a batch are as
wide as its longest history and no wider; nothing of the size rows x L is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_rella.config import scores_rows
from recbole_rella.rows.fields import BEHAVIOUR_COLUMNS, BEHAVIOURS_FOR, ROW_ID
from recbole_rella.rows.history import Rows
from recbole_rella.rows.item_statistics import answers_of
from recbole_rella.rows.past import scale_of, without_gaps

# Time gaps of 2^k - 1 to 2^(k+1) - 2 seconds share an embedding, k below 64.
GAPS = 65


@dataclass(frozen=True, eq=False)
class Scale:
    """What rows were answered with, as codes: ratings, or labels where there are no ratings.

    Attributes:
        values (numpy.ndarray): the known answers, float64 [m], ascending; m is 0 where rows have neither ratings nor labels.
        codes (numpy.ndarray): of every row, 1 + the place of its answer's nearest known value, 0 where there is none; int16 [rows].
    """

    values: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, rows):
        """Those of all rows, with their split: values that only held-out rows have are not known."""
        answers = answers_of(rows)
        if answers is None:
            return cls(np.empty(0), np.zeros(len(rows), dtype=np.int16))
        values = np.array([0.0, 1.0]) if rows.rating is None else scale_of(rows)
        return cls(values, (np.searchsorted((values[1:] + values[:-1]) / 2, answers) + 1).astype(np.int16))


@dataclass(frozen=True, eq=False)
class Behaviours:
    """Finds the behaviours of rows, and gives them as columns.

    Attributes:
        rows (Rows): all rows.
        scale (Scale): the answers of all rows.
        branches (tuple of callable): each takes row_ids and target items, int [n], and returns the row_ids of behaviours,
            int [n, L], -1 where there is none: the recent branch, then the other one.
        identities (dict): rows and encoder -> what names them (see run_folder.py).
    """

    rows: Rows
    scale: Scale
    branches: tuple[Callable, ...]
    identities: dict

    def columns(self, row_ids, targets):
        """The columns of a batch.

        Args:
            row_ids, targets (numpy.ndarray): row_ids and item ids, int [n].

        Returns:
            dict: for each branch items (0 where there is no behaviour), answers (codes) and gaps (1 + log2 of the seconds to the
            row, plus one, rounded down), int64 torch tensors [n, L]; and the targets, by the names of rows/fields.py.
        """
        columns = {BEHAVIOURS_FOR: torch.from_numpy(targets.astype(np.int64))}
        for names, branch in zip(BEHAVIOUR_COLUMNS, self.branches):
            found = without_gaps(np.asarray(branch(row_ids, targets), dtype=np.int64))
            there = found >= 0
            seconds = self.rows.time[row_ids][:, None] - self.rows.time[found] if self.rows.timed else np.zeros(found.shape)
            gaps = 1 + np.log2(np.maximum(seconds, 0) + 1.0).astype(np.int64)
            values = (self.rows.item[found], self.scale.codes[found], np.minimum(gaps, GAPS - 1))
            columns |= {name: torch.from_numpy(np.where(there, value, 0).astype(np.int64)) for name, value in zip(names, values)}
        return columns


def with_behaviours(behaviours, interaction, item_field):
    """The interaction with the behaviours of its rows for its items; as it is, where it has them already.

    Args:
        behaviours (Behaviours): finds them.
        interaction (Interaction): n rows with row_id and the target item.
        item_field (str): name of the target item's column.

    Returns:
        Interaction: with the columns of `Behaviours.columns`, on the interaction's device.
    """
    targets = interaction[item_field]
    if BEHAVIOURS_FOR in interaction and torch.equal(interaction[BEHAVIOURS_FOR], targets):
        return interaction
    columns = behaviours.columns(interaction[ROW_ID].cpu().numpy(), targets.cpu().numpy())
    return Interaction({**interaction.interaction, **{name: column.to(targets.device) for name, column in columns.items()}})


class BehaviourTransform:
    """Interaction -> Interaction with behaviours; RecBole calls it as (dataset, interaction) in every collate.

    Where RecBole evaluates sampled or all items, it puts batches together after this hook, of users with histories of different
    lengths: the behaviours are then left to the model, which finds those that are missing.
    """

    def __init__(self, config):
        self._scores_rows = scores_rows(config)
        self._item = config["ITEM_ID_FIELD"]

    def __call__(self, dataset, interaction):
        return with_behaviours(dataset.behaviours, interaction, self._item) if self._scores_rows else interaction
