"""Data sets whose rows keep their names: RecBole's Dataset with a row_id, raw ratings and times, histories, and one split.

RecBole removes, rescales or rounds ratings and times while it prepares the data; they are copied before. Rows are
numbered in the order (time, user, item) after RecBole's filters, or in a random one where history_shuffle_seed is given:
the row_id. It is what models that run side by side have in common, whatever RecBole's own data set of each does to the rows.
"""

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

from recbole_rella.data.atomic_files import ReadsAtomicFiles
from recbole_rella.keys import affecting
from recbole_rella.rows.counts import differing, sentence
from recbole_rella.rows.fields import ROW_ID
from recbole_rella.rows.history import NO_SPLIT, TEST, TRAIN, VALID, Histories, Rows
from recbole_rella.rows.order import by_time, shuffled, sort_rank
from recbole_rella.rows.split import Split, SplitError, rows_identity

# RecBole's and our settings that say which rows there are and which of them are used.
_ROWS_CHOSEN_BY = (
    "rm_dup_inter",
    "val_interval",
    "filter_inter_by_user_or_item",
    "user_inter_num_interval",
    "item_inter_num_interval",
    "benchmark_filename",
    "load_col",
    "unload_col",
    "eval_args",
    *affecting("rows"),
)


class _Columns(Interaction):
    """An Interaction whose parts are taken without a list of Python integers; a part by a range shares its memory."""

    def __getitem__(self, index):
        if isinstance(index, range):
            index = slice(index.start, index.stop, index.step)
        if isinstance(index, np.ndarray):
            index = torch.from_numpy(np.ascontiguousarray(index))
        if isinstance(index, slice | torch.Tensor):
            return Interaction({field: column[index] for field, column in self.interaction.items()})
        return super().__getitem__(index)


class KeepsRows(ReadsAtomicFiles):
    """Mixed into a data set class of RecBole.

    Attributes:
        rows (Rows): the columns of all rows, those that min_history drops included.
        histories (Histories): the earlier rows of each row.
        pool (numpy.ndarray): row_ids of the training rows that may be used (train_pool), of which shots are drawn; int64,
            ascending; set by `_split`.

    Raises:
        ValueError: no time field, a missing time or rating, no label, or no row with enough history.
    """

    def _change_feat_format(self):
        super()._change_feat_format()
        self.inter_feat = _Columns(self.inter_feat.interaction)

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
        inter, seed = self.inter_feat, self.config["history_shuffle_seed"]
        user, item = (inter[field].to_numpy(dtype=np.int32) for field in (self.uid_field, self.iid_field))
        ranks = [sort_rank(self.field2id_token[field])[ids] for field, ids in ((self.uid_field, user), (self.iid_field, item))]
        rating = self._ratings()
        if seed is None:
            time = self._times()
            order = by_time(time, *ranks)
        else:
            order = shuffled(*ranks, rating, seed)
        row_id = np.empty(len(order), dtype=np.int64)
        row_id[order] = np.arange(len(order))
        if seed is not None:
            # Places stand for times, here and where RecBole's sequential data sets want a time.
            time = row_id.astype(np.float64)
            inter[self.time_field] = time
            self.set_field_property(self.time_field, FeatureType.FLOAT, FeatureSource.INTERACTION, 1)
        split = np.full(len(order), NO_SPLIT, dtype=np.int8)
        rating = None if rating is None else rating[order]
        self.rows = Rows(user[order], item[order], np.floor(time[order]).astype(np.int64), rating, None, split)
        self.histories = Histories(self.rows, self.user_num)
        inter[ROW_ID] = row_id
        # A token field holds integers, which float32 would round beyond 16 million rows.
        self.set_field_property(ROW_ID, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)

    def _times(self):
        """The times in the file, float64 [rows]."""
        inter = self.inter_feat
        if self.time_field not in inter or self.field2type[self.time_field] != FeatureType.FLOAT:
            raise ValueError(
                f"TIME_FIELD: expected a float field {self.time_field!r} in the .inter file, found {self._found('inter')}. "
                "Histories are ordered by time: name the field in TIME_FIELD and load_col. For a data set without times "
                "give history_shuffle_seed, and they stand in a random order."
            )
        time = inter[self.time_field].to_numpy()
        if np.isnan(time).any():
            raise ValueError(
                f"{self.time_field}: expected a time in every row, found {np.isnan(time).sum()} rows without one; "
                "drop them from the .inter file, or filter them with val_interval."
            )
        return time

    def _ratings(self):
        """The ratings in the file, float32 [rows], or None."""
        field = self.config["RATING_FIELD"]
        if field not in self.inter_feat or self.field2type[field] != FeatureType.FLOAT:
            return None
        rating = self.inter_feat[field].to_numpy(dtype=np.float32)
        if np.isnan(rating).any():
            raise ValueError(
                f"{field}: expected a rating in every row, found {np.isnan(rating).sum()} rows without one; "
                "drop them from the .inter file, or leave the field out of load_col."
            )
        return rating

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
        """Leave the rows of the splits: those with min_history earlier ones, and of each user the last targets_per_user."""
        lengths = self.histories.past_lengths()
        minimum, targets = self.config["min_history"], self.config["targets_per_user"]
        keep = lengths >= minimum
        if targets is not None:
            keep &= np.diff(self.histories.start)[self.rows.user] - lengths <= targets
        keep = keep[self.inter_feat[ROW_ID].to_numpy()]
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
        if self.config["split_file"] is None:
            parts = super().build()
            for part, split in zip(parts, (TRAIN, VALID, TEST)):
                self.rows.split[part.inter_feat[ROW_ID].numpy()] = split
            split_rows = sum(map(len, parts))
            self._draw(parts[0], "train_pool")
            for part in parts[1:]:
                self._draw(part, "eval_rows")
            self._compare_counts(parts, split_rows)
        else:
            parts = self._split_by_file()
        self._check_train(parts[0])
        self.pool = np.sort(parts[0].inter_feat[ROW_ID].numpy())
        self._draw(parts[0], "train_shots")
        return parts

    def _split_by_file(self):
        split = Split.load(self.config["split_file"], self.identity())
        self.rows.split[:] = split.codes
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

    def _draw(self, part, key):
        """Keep the first rows of one seeded permutation of a part, as many as a key says: fewer are part of more."""
        count = self.config[key]
        if count is None:
            return
        if count > len(part):
            self.logger.warning(f"{key} is {count}, and there are {len(part)} rows: all are used.")
        permutation = np.random.default_rng(self.config["seed"]).permutation(len(part))
        places = np.argsort(part.inter_feat[ROW_ID].numpy())[permutation[:count]]
        # Evaluated rows stay in the order of the split.
        part.inter_feat = part.inter_feat[np.sort(places) if key == "eval_rows" else places]

    def _compare_counts(self, parts, split_rows):
        """Tell whether this is the data set that was published, where expected_counts says what that holds."""
        expected, rows = self.config["expected_counts"], self.rows
        if not expected:
            return
        found = {
            "users": np.count_nonzero(np.bincount(rows.user)),
            "items": np.count_nonzero(np.bincount(rows.item)),
            "rows": len(rows),
            "split_rows": split_rows,
            **dict(zip(("train", "valid", "test"), map(len, parts))),
            **{f"listed_{name}": count for name, count in self.listed.items()},
        }
        differences = differing(expected, found)
        if differences:
            given = self.config.external_config_dict
            own = [] if "expected_counts" in given else [key for key in _ROWS_CHOSEN_BY if key in given]
            self.logger.warning(sentence(differences, own))
        else:
            self.logger.info(f"expected_counts: found as published: {expected}")


class RowDataset(KeepsRows, Dataset):
    """RecBole's Dataset with rows; its `build` gives the three parts of the split, shots drawn."""

    def build(self):
        """Train, valid and test, as RecBole's."""
        return self._split()
