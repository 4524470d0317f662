"""The data set of a built-in model on our rows: those of split_file side by side with others, or those that its own split makes."""

from contextlib import contextmanager

import numpy as np
import recbole.data.dataset
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import InputType, ModelType

from recbole_rella.config import scores_rows
from recbole_rella.data.history import HistoryError
from recbole_rella.data.history_columns import add_history_columns
from recbole_rella.data.row_dataset import KeepsRows, RowDataset, hide_answers
from recbole_rella.data.worded import KeepsWords
from recbole_rella.key_rules import MEAN_EMBEDDING
from recbole_rella.rows.fields import ROW_ID
from recbole_rella.rows.history import NO_SPLIT, TEST, TRAIN, VALID
from recbole_rella.rows.split import SplitError


class _SameRows(KeepsWords, KeepsRows):
    """For a built-in model: our rows, what history_fields says of them, and nothing else that the model could see.

    Sequential models get their histories as RecBole builds them, from all rows of the user, those that min_history drops
    included; but in the order of the row_ids, as RecBole's times are rounded and would show a later row of the same minute, and
    without rows of a later split, as RecBole builds them before it splits.

    Models that learn from pairs take every training row for a liked one: they get those that were liked.
    """

    @property
    def needs_words(self):
        """For history features alone."""
        return bool(self.config["history_fields"])

    def data_augmentation(self):
        """RecBole's, of sequential models, which lists the rows of a user before each row: here those that it may show (law 1).

        Where none is hidden, as in the order of time, it is RecBole's alone.
        """
        rows, lengths = self.rows, self.histories.shown_lengths()
        if not (lengths < self.histories.past_lengths())[rows.split != NO_SPLIT].any():
            return super().data_augmentation()
        every, parts = self.inter_feat, []
        split = rows.split[every[ROW_ID].numpy()]
        for code in (TRAIN, VALID, TEST):
            self.inter_feat = every[np.flatnonzero(split <= code)]
            super().data_augmentation()
            own = rows.split[self.inter_feat[ROW_ID].numpy()] == code
            parts.append(self.inter_feat[np.flatnonzero(own)])
        self.inter_feat = Interaction({field: torch.cat([part[field] for part in parts]) for field in parts[0].interaction})

    def build(self):
        parts = self._split()
        if self.config["MODEL_TYPE"] == ModelType.DECISIONTREE and len(parts[1]) == 0:
            raise SplitError(
                f"eval_args: expected validation rows with {self.config['model']}, which chooses its rounds on them, found none; "
                "give the validation part a larger share, or take Tree, which does without."
            )
        if learns_from_pairs(self.config.model_class):
            train = parts[0].inter_feat
            parts[0].inter_feat = train[np.flatnonzero(self.rows.label[train[ROW_ID].numpy()])]
        hide_answers(self, parts)
        if self.config["history_fields"]:
            add_history_columns(self, parts)
        return parts


class NumbersDataset(KeepsWords, RowDataset):
    """The data set of our models that take what they read by row_id (Bias, Tree): rows, and the words of items."""

    def build(self):
        if not scores_rows(self.config):
            raise SplitError(
                f"eval_args: expected the mode labeled with {self.config['model']}, which scores rows about their own items, found "
                f"{self.config['eval_args']['mode']}, in which other items stand in their place."
            )
        return super().build()


_KINDS = (ModelType.CONTEXT, ModelType.SEQUENTIAL, ModelType.DECISIONTREE)


def reads_history_fields(model_class):
    """Whether a model of RecBole reads columns of rows: context-aware ones and trees do, sequential ones read items of a past."""
    return getattr(model_class, "type", None) in (ModelType.CONTEXT, ModelType.DECISIONTREE)


def learns_from_labels(model_class):
    """Whether a model is context-aware, sequential or of trees, and trained on the labels of rows (as FM, DIN, LightGBM)."""
    kind, rows = getattr(model_class, "type", None), getattr(model_class, "input_type", None)
    return kind in _KINDS and rows == InputType.POINTWISE


def learns_from_pairs(model_class):
    """Whether a model knows users and items alone, and learns to put liked items before sampled ones (as BPR, LightGCN)."""
    return getattr(model_class, "type", None) == ModelType.GENERAL and model_class.input_type == InputType.PAIRWISE


def check_history(config):
    """Refuse history_fields where they mean nothing.

    Args:
        config (recbole.config.Config): with history_fields.

    Raises:
        HistoryError: the model reads no columns of rows, or scores sampled items, of which the columns of a row say nothing.
    """
    if not reads_history_fields(config.model_class):
        raise HistoryError(
            f"history_fields: expected a context-aware model or a tree, which read columns of rows, found {config['model']}, which "
            "reads sequences of items alone."
        )
    if MEAN_EMBEDDING in config["history_fields"] and config["MODEL_TYPE"] == ModelType.DECISIONTREE:
        raise HistoryError(
            f"history_fields: expected numbers for {config['model']}, found {MEAN_EMBEDDING}, which is for models that embed."
        )
    if not scores_rows(config):
        raise HistoryError(
            "history_fields: expected eval_args with the mode labeled, as the columns of a row tell of its own item, found "
            f"{config['eval_args']['mode']}, in which other items stand in its place."
        )


@contextmanager
def same_rows(config):
    """Within this context RecBole's ``create_dataset`` makes the data set of a built-in model on our rows.

    RecBole looks for a class named after the model first; that is where ours is, for as long.

    Args:
        config (recbole.config.Config): of a model that `learns_from_labels`, or `learns_from_pairs`: such a one gives vectors of
            items (data/crm.py), and scores that are no probabilities.

    Raises:
        SplitError: the model is of another kind, or would learn from sampled items instead of the rows' labels.
        HistoryError: history_fields mean nothing to it, or it scores sampled items, of which the columns of a row say nothing.
    """
    pairs = learns_from_pairs(config.model_class)
    if not pairs and not learns_from_labels(config.model_class):
        raise SplitError(
            "model: expected a context-aware or sequential model or one of trees that learns from labels (as FM, DIN, LightGBM), "
            f"or one that learns from liked rows and sampled items (as BPR, LightGCN), found {config['model']}, which would not be "
            "trained on these rows and their labels."
        )
    samples = config["train_neg_sample_args"]["distribution"] != "none"
    if pairs and not samples:
        raise SplitError(
            f"train_neg_sample_args: expected a distribution (uniform) with {config['model']}, which learns from sampled items, "
            "found none."
        )
    if samples and not pairs:
        raise SplitError(
            f"train_neg_sample_args: expected none, so that {config['model']} learns from the rows and their labels (RecBole's "
            f"default for sequential models is to sample), found {config['train_neg_sample_args']}."
        )
    if config["history_fields"]:
        check_history(config)
    module, name = recbole.data.dataset, f"{config['model']}Dataset"
    earlier = getattr(module, name, None)
    base = earlier or (SequentialDataset if config["MODEL_TYPE"] == ModelType.SEQUENTIAL else Dataset)
    ours = type(f"SameRows{name}", (_SameRows, base), {"__module__": __name__})
    # Some models hold their data set, and RecBole pickles them: the class must be found by its name.
    globals()[ours.__name__] = ours
    setattr(module, name, ours)
    try:
        yield
    finally:
        setattr(module, name, earlier) if earlier else delattr(module, name)
