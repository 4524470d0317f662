"""Data sets whose rows keep their names: RecBole's Dataset with a row_id, raw ratings and times, histories, and one split.

RecBole removes, rescales or rounds ratings and times while it prepares the data; they are copied before. Rows are
numbered in the order (time, user, item) after RecBole's filters: the row_id. It is what models that run side by side have
in common, whatever RecBole's own data set of each does to the rows.
"""

from contextlib import contextmanager

import numpy as np
import recbole.data.dataset
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.utils import FeatureSource, FeatureType, InputType, ModelType

from recbole_rella.data.history import NO_SPLIT, TEST, TRAIN, VALID, Histories, Rows
from recbole_rella.data.split import ROW_ID, Split, SplitError, rows_identity


def _sort_rank(tokens):
    """Place of each token among all: by number where all are integers (as the original ids of most data sets are)."""
    try:
        keys = np.array([int(token) for token in tokens[1:]])
    except ValueError:
        keys = np.array(tokens[1:], dtype=str)
    rank = np.zeros(len(tokens), dtype=np.int32)
    rank[1 + np.argsort(keys, kind="stable")] = np.arange(1, len(tokens))
    return rank


class KeepsRows:
    """Mixed into a data set class of RecBole.

    Attributes:
        rows (Rows): the columns of all rows, those that min_history drops included.
        histories (Histories): the earlier rows of each row.

    Raises:
        ValueError: no time field, a missing time or rating, no label, or no row with enough history.
    """

    def _data_processing(self):
        super()._data_processing()
        self._keep_labels()
        if self.config["split_file"] is None:
            self._drop_short_histories()

    def _fill_nan(self):
        # The last moment at which nothing is filled in, and the first at which ids are the final ones.
        self._keep_rows()
        super()._fill_nan()

    def _keep_rows(self):
        inter = self.inter_feat
        if self.time_field not in inter or self.field2type[self.time_field] != FeatureType.FLOAT:
            raise ValueError(
                f"TIME_FIELD: expected a float field {self.time_field!r} in the .inter file, found {self._found('inter')}. "
                "Histories are ordered by time: name the field in TIME_FIELD and load_col."
            )
        time = inter[self.time_field].to_numpy()
        if np.isnan(time).any():
            raise ValueError(
                f"{self.time_field}: expected a time in every row, found {np.isnan(time).sum()} rows without one; "
                "drop them from the .inter file, or filter them with val_interval."
            )
        user, item = (inter[field].to_numpy(dtype=np.int32) for field in (self.uid_field, self.iid_field))
        ranks = [_sort_rank(self.field2id_token[field])[ids] for field, ids in ((self.iid_field, item), (self.uid_field, user))]
        order = np.lexsort((*ranks, time))
        row_id = np.empty(len(order), dtype=np.int64)
        row_id[order] = np.arange(len(order))
        rating, field = None, self.config["RATING_FIELD"]
        if field in inter and self.field2type[field] == FeatureType.FLOAT:
            rating = inter[field].to_numpy(dtype=np.float32)[order]
            if np.isnan(rating).any():
                raise ValueError(
                    f"{field}: expected a rating in every row, found {np.isnan(rating).sum()} rows without one; "
                    "drop them from the .inter file, or leave the field out of load_col."
                )
        split = np.full(len(order), NO_SPLIT, dtype=np.int8)
        self.rows = Rows(user[order], item[order], np.floor(time[order]).astype(np.int64), rating, None, split)
        self.histories = Histories(self.rows, self.user_num)
        inter[ROW_ID] = row_id
        # A token field holds integers, which float32 would round beyond 16 million rows.
        self.set_field_property(ROW_ID, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)

    def _found(self, source):
        feat = getattr(self, f"{source}_feat")
        return "no such file" if feat is None else sorted(f"{field}:{self.field2type[field].value}" for field in feat)

    def _keep_labels(self):
        if self.label_field not in self.inter_feat:
            return
        label = self.inter_feat[self.label_field].to_numpy()
        values = np.unique(label)
        if not np.isin(values, (0, 1)).all():
            raise ValueError(
                f"{self.label_field}: expected labels 0 and 1, found {values[:5].tolist()}; "
                "set threshold ({field: value}) to make labels of a rating, and normalize_all to False."
            )
        self.rows.label = np.empty(len(self.rows), dtype=np.int8)
        self.rows.label[self.inter_feat[ROW_ID].to_numpy()] = label

    def _drop_short_histories(self):
        lengths = self.histories.past_lengths()
        minimum = self.config["min_history"]
        keep = (lengths >= minimum)[self.inter_feat[ROW_ID].to_numpy()]
        if not keep.any():
            raise ValueError(
                f"min_history: expected rows with at least {minimum} earlier behaviours, found none among {len(lengths)} "
                f"rows (the longest history has {lengths.max()}); lower min_history, or give more data."
            )
        if self.benchmark_filename_list is not None:
            parts = np.split(keep, np.cumsum(self.file_size_list)[:-1])
            self.file_size_list = [int(part.sum()) for part in parts]
        self.inter_feat = self.inter_feat[keep].reset_index(drop=True)

    def sort(self, by, ascending=True):
        """RecBole's sort; by time it is by row_id, as RecBole's times are rounded to 32 bits."""
        fields = [by] if isinstance(by, str) else by
        super().sort([ROW_ID if field == self.time_field else field for field in fields], ascending)

    def identity(self):
        """Names the rows: their users and items by the data set's own ids, times and labels.

        Returns:
            str: 16 hexadecimal digits, the same for every class of data set.
        """
        users, items = self.field2id_token[self.uid_field], self.field2id_token[self.iid_field]
        return rows_identity(self.rows, users, items)

    def _split(self):
        """Train, valid and test: those of split_file, or as eval_args says."""
        labeled = "labeled" in self.config["eval_args"]["mode"].values()
        if labeled and self.rows.label is None:
            raise ValueError(
                f"LABEL_FIELD: expected a label in every row, found {self._found('inter')}; set threshold, "
                f"for example {{'rating': 4}}, or give the data set a float field {self.label_field!r} of 0 and 1."
            )
        parts = super().build() if self.config["split_file"] is None else self._split_by_file()
        for part, split in zip(parts, (TRAIN, VALID, TEST)):
            self.rows.split[part.inter_feat[ROW_ID].numpy()] = split
        self._check_train(parts[0])
        self._draw_shots(parts[0])
        return parts

    def _split_by_file(self):
        split = Split.load(self.config["split_file"], self.identity())
        self._change_feat_format()
        place = np.full(len(self.rows), -1, dtype=np.int64)
        place[self.inter_feat[ROW_ID].numpy()] = np.arange(len(self.inter_feat))
        parts = []
        for row_ids in (split.train, split.valid, split.test):
            if (place[row_ids] < 0).any():
                raise SplitError(
                    f"split_file: expected all rows of the split in the data of {self.config['model']}, found "
                    f"{int((place[row_ids] < 0).sum())} rows missing, for example row {row_ids[place[row_ids] < 0][0]}. "
                    "Sequential models have no rows without history: set min_history to at least 1."
                )
            parts.append(self.copy(self.inter_feat[place[row_ids]]))
        return parts

    def _check_train(self, train):
        if len(train) == 0:
            raise ValueError(
                "eval_args: expected training rows, found none after the split; give the training part a larger share."
            )
        if self.rows.label is None:
            return
        counts = np.bincount(self.rows.label[train.inter_feat[ROW_ID].numpy()], minlength=2)
        if not counts.all() and self.config["epochs"] > 0 and self.config["train_neg_sample_args"]["distribution"] == "none":
            raise ValueError(
                f"threshold: expected training rows of both labels, found {counts[1]} positive and {counts[0]} negative; "
                "choose another threshold, or train_neg_sample_args."
            )

    def _draw_shots(self, train):
        """Keep the first train_shots rows of one seeded permutation: fewer shots are part of more."""
        shots = self.config["train_shots"]
        if shots is None:
            return
        if shots > len(train):
            self.logger.warning(f"train_shots is {shots}, and the training split has {len(train)} rows: all are used.")
        permutation = np.random.default_rng(self.config["seed"]).permutation(len(train))
        by_row_id = np.argsort(train.inter_feat[ROW_ID].numpy())
        train.inter_feat = train.inter_feat[by_row_id[permutation[:shots]]]


class RowDataset(KeepsRows, Dataset):
    """RecBole's Dataset with rows; its `build` gives the three parts of the split, shots drawn."""

    def build(self):
        """Train, valid and test, as RecBole's."""
        return self._split()


class _SameRows(KeepsRows):
    """For a built-in model: the rows of split_file, and nothing else that the model could see.

    Sequential models get their histories as RecBole builds them, from all rows of the user, those that min_history drops
    included; but in the order of the row_ids, as RecBole's times are rounded and would show a later row of the same minute.
    """

    def build(self):
        parts = self._split()
        # The row_id stays a column, by which predictions are named, but is no field of which a model makes a feature.
        hidden = [ROW_ID, ROW_ID + (self.config["LIST_SUFFIX"] or "_list")]
        for properties in (self.field2type, self.field2source, self.field2seqlen, self.field2id_token):
            for field in hidden:
                properties.pop(field, None)
        for part in parts:
            part.inter_feat.interaction.pop(hidden[1], None)
        return parts


def learns_from_labels(model_class):
    """Whether a model is context-aware or sequential, and trained on the labels of rows (as FM, DCNV2, DIN, DIEN)."""
    kind, rows = getattr(model_class, "type", None), getattr(model_class, "input_type", None)
    return kind in (ModelType.CONTEXT, ModelType.SEQUENTIAL) and rows == InputType.POINTWISE


@contextmanager
def same_rows(config):
    """Within this context RecBole's ``create_dataset`` makes the data set of a built-in model on the rows of split_file.

    RecBole looks for a class named after the model first; that is where ours is, for as long.

    Args:
        config (recbole.config.Config): of a model that `learns_from_labels`.

    Raises:
        SplitError: the model is of another kind, or would learn from sampled items instead of the rows' labels.
    """
    if not learns_from_labels(config.model_class):
        raise SplitError(
            f"model: expected a context-aware or a sequential model that learns from labels (as FM, DCNV2, DIN, DIEN), found "
            f"{config['model']}, which would not be trained on the labels of these rows."
        )
    if config["train_neg_sample_args"]["distribution"] != "none":
        raise SplitError(
            f"train_neg_sample_args: expected none, so that {config['model']} learns from the rows of split_file and their labels "
            f"(RecBole's default for sequential models is to sample), found {config['train_neg_sample_args']}."
        )
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
