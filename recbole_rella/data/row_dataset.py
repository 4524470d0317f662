"""Data sets whose rows keep their names: RecBole's Dataset with a row_id, raw ratings and times, histories, and one split.

RecBole removes, rescales or rounds ratings and times while it prepares the data; they are copied before. Rows are
numbered in the order (time, user, item, rating, label) after RecBole's filters, or in a random one where history_shuffle_seed
is given: the row_id. It is what models that run side by side have in common, whatever RecBole's own data set of each does to
the rows.
"""

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

from recbole_rella.atomic.errors import DatasetError, plural
from recbole_rella.config import scores_rows
from recbole_rella.data.answers import Answers
from recbole_rella.data.atomic_files import ReadsAtomicFiles
from recbole_rella.data.filters import CountsFilteredRows
from recbole_rella.files import fingerprint
from recbole_rella.keys import affecting
from recbole_rella.rows.counts import differing, sentence
from recbole_rella.rows.draw import drawn
from recbole_rella.rows.fields import ROW_ID
from recbole_rella.rows.history import NO_SPLIT, TEST, TRAIN, VALID, Histories, Rows
from recbole_rella.rows.numbers import as_whole
from recbole_rella.rows.order import by_time, repeats, shuffled, sort_rank
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


class KeepsRows(CountsFilteredRows, ReadsAtomicFiles):
    """Mixed into a data set class of RecBole.

    Attributes:
        rows (Rows): the columns of all rows, those that min_history drops included.
        histories (Histories): the earlier rows of each row.
        pool (numpy.ndarray): row_ids of the training rows that may be used (train_pool), of which shots are drawn; int64,
            ascending; set by `_split`.

    Raises:
        DatasetError: no time field, a missing or infinite time, rating or label, or no row with enough history.
    """

    def _change_feat_format(self):
        super()._change_feat_format()
        self.inter_feat = _Columns(self.inter_feat.interaction)

    def _data_processing(self):
        self._say_unused_filters()
        super()._data_processing()
        if self.rows.label is not None:
            # As the file has them: RecBole's normalize_all makes 1 of a column that is 0 throughout.
            self.inter_feat[self.label_field] = self.rows.label[self.inter_feat[ROW_ID].to_numpy()].astype(np.float64)
        self._kept_places = None
        self.account.kept = len(self.rows)
        if self.config["split_file"] is None:
            self._drop_short_histories()
        message = f"{self.dataset_name}: {self.account}"
        self.logger.warning(message) if self.account.is_odd else self.logger.info(message)

    def _fill_nan(self):
        # The last moment before RecBole fills missing values in, and the first at which ids are the final ones.
        self._number_rows()
        super()._fill_nan()

    def _number_rows(self):
        """Give each row its row_id, and keep user, item, time, rating and label as the file has them."""
        inter, seed = self.inter_feat, self.config["history_shuffle_seed"]
        user, item = (inter[field].to_numpy(dtype=np.int32) for field in (self.uid_field, self.iid_field))
        ranks = [sort_rank(self.field2id_token[field])[ids] for field, ids in ((self.uid_field, user), (self.iid_field, item))]
        answers = Answers(self)
        rating, label = answers.ratings(), answers.labels()
        known = [column for column in (rating, label) if column is not None]
        if seed is None:
            time = answers.times()
            order = by_time(time, *ranks, known)
            self._say_repeats([column[order] for column in (user, item, time)], [column[order] for column in known])
        else:
            order = shuffled(*ranks, known, seed)
        row_id = np.empty(len(order), dtype=np.int64)
        row_id[order] = np.arange(len(order))
        if seed is not None:
            # Places stand for times, here and where RecBole's sequential data sets want a time.
            time = row_id.astype(np.float64)
            inter[self.time_field] = time
            self.set_field_property(self.time_field, FeatureType.FLOAT, FeatureSource.INTERACTION, 1)
        split = np.full(len(order), NO_SPLIT, dtype=np.int8)
        rating, label = (None if column is None else column[order] for column in (rating, label))
        self.rows = Rows(user[order], item[order], as_whole(time[order]), rating, label, split, timed=seed is None)
        self.histories = Histories(self.rows, self.user_num)
        inter[ROW_ID] = row_id
        # A token field holds integers, which float32 would round beyond 16 million rows.
        self.set_field_property(ROW_ID, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)

    def _say_repeats(self, columns, answers):
        repeated, other = (int(mask.sum()) for mask in repeats(columns, answers))
        if repeated:
            self.account.odd(
                f"The user, item and time of an earlier row, whose answer their prompt may show, in {plural(repeated, 'row')}"
                f"{f', of which {other} contradict it' if other else ''} (rm_dup_inter: first keeps one of each)."
            )

    def _drop_short_histories(self):
        """Leave the rows of the splits: those with min_history earlier ones, and of each user the last targets_per_user."""
        lengths = self.histories.past_lengths()
        minimum, targets = self.config["min_history"], self.config["targets_per_user"]
        keep = lengths >= minimum
        if targets is not None:
            keep &= np.diff(self.histories.start)[self.rows.user] - lengths <= targets
        keep = keep[self.inter_feat[ROW_ID].to_numpy()]
        if not keep.any():
            raise DatasetError(
                f"min_history: expected rows with at least {minimum} earlier behaviours, found none among {len(lengths)} "
                f"rows (the longest history has {lengths.max()}); lower min_history, or give more data. {self.account.rows()}"
            )
        keys = ", ".join(f"{k}: {self.config[k]}" for k in ("min_history", "targets_per_user") if self.config[k] is not None)
        self.account.note(f"{int(keep.sum())} of the kept rows are divided into splits; the others are history alone ({keys}).")
        if self.benchmark_filename_list is not None:
            parts = np.split(keep, np.cumsum(self.file_size_list)[:-1])
            self.file_size_list = [int(part.sum()) for part in parts]
        self.inter_feat = self.inter_feat[keep].reset_index(drop=True)

    def sort(self, by, ascending=True):
        """RecBole's sort; by time it is by row_id, as RecBole's times are rounded to 32 bits."""
        fields = [by] if isinstance(by, str) else by
        super().sort([ROW_ID if field == self.time_field else field for field in fields], ascending)

    def shuffle(self):
        """RecBole's shuffle, of the rows in the order of their row_ids: it must not depend on that of the file."""
        super().sort(ROW_ID)
        super().shuffle()

    def identity(self):
        """Names the rows: their users and items by the data set's own ids, times and labels.

        Returns:
            str: 16 hexadecimal digits, the same for every class of data set.
        """
        users, items = self.field2id_token[self.uid_field], self.field2id_token[self.iid_field]
        return rows_identity(self.rows, users, items)

    def rows_identity(self, parts):
        """Names the rows, what they say, and which of them train, validate and test.

        Args:
            parts (list of KeepsRows): train, valid and test.

        Returns:
            str: 16 hexadecimal digits.
        """
        ratings = [] if self.rows.rating is None else [self.rows.rating]
        return fingerprint(
            self.identity(), *ratings, self.rows.split, *(np.unique(part.inter_feat[ROW_ID].numpy()) for part in parts)
        )

    def with_first_rows(self, df):
        """An Interaction whose users have rows, or get the one from which they are seen (full-sort evaluation ranks all items for
        a user): their first in this split, so that its history ends before the split's behaviours."""
        if ROW_ID in df or self.uid_field not in df or not isinstance(self.inter_feat, Interaction):
            return df
        users, rows = (self.inter_feat[field].numpy() for field in (self.uid_field, ROW_ID))
        first = np.full(self.user_num, -1, dtype=np.int64)
        order = np.argsort(-rows)
        first[users[order]] = rows[order]
        return Interaction({**df.interaction, ROW_ID: torch.from_numpy(first[df[self.uid_field].numpy()])})

    def _split(self):
        """Train, valid and test: those of split_file, or as eval_args says."""
        if self.rows.label is None and any(scores_rows(self.config, part) for part in ("valid", "test")):
            raise DatasetError(
                f"LABEL_FIELD: expected a label in every row, found {self.columns_of('inter')[0]}; set threshold, "
                f"for example {{'rating': 4}}, or give the data set a float field {self.label_field!r} of 0 and 1."
            )
        if self.config["split_file"] is None:
            parts = super().build()
            for part, split in zip(parts, (TRAIN, VALID, TEST)):
                self.rows.split[part.inter_feat[ROW_ID].numpy()] = split
            split_rows = sum(map(len, parts))
            self._draw(parts[0], "train_pool", self.config["train_pool"])
            asked = self.config["eval_rows"]
            for part, count in zip(parts[1:], asked if isinstance(asked, (list, tuple)) else [asked, asked]):
                self._draw(part, "eval_rows", count)
            self._compare_counts(parts, split_rows)
        else:
            parts = self._split_by_file()
        self._check_train(parts[0])
        pool = np.sort(parts[0].inter_feat[ROW_ID].numpy())
        for part in (self, *parts):
            part.pool = pool
        self._draw(parts[0], "train_shots", self.config["train_shots"])
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
            raise SplitError(
                "eval_args: expected training rows, found none after the split; give the training part a larger share."
            )
        if self.rows.label is None:
            return
        counts = np.bincount(self.rows.label[train.inter_feat[ROW_ID].numpy()], minlength=2)
        if not counts.all() and self.config["epochs"] > 0 and self.config["train_neg_sample_args"]["distribution"] == "none":
            raise SplitError(
                f"threshold: expected training rows of both labels, found {counts[1]} positive and {counts[0]} negative; "
                "choose another threshold, or train_neg_sample_args."
            )

    def _draw(self, part, key, count):
        """Keep as many rows of a part as a key says; all for None."""
        if count is None:
            return
        if count > len(part):
            self.logger.warning(f"{key} is {count}, and there are {len(part)} rows: all are used.")
        places = drawn(part.inter_feat[ROW_ID].numpy(), count, self.config["seed"])
        # Evaluated rows stay in the order of the split.
        part.inter_feat = part.inter_feat[np.sort(places) if key == "eval_rows" else places]

    def _compare_counts(self, parts, split_rows):
        """Say whether this is the data set that was published, where expected_counts says what that holds."""
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


def hide_answers(dataset, parts):
    """Make no feature of row_ids, nor of the row's own rating, which is the answer where labels are not made of it.

    The columns stay: predictions are named by row_ids. Ratings of the past may be seen.

    Args:
        dataset (KeepsRows): whole.
        parts (list of KeepsRows): its split.
    """
    row_ids = ROW_ID + (dataset.config["LIST_SUFFIX"] or "_list")
    for properties in (dataset.field2type, dataset.field2source, dataset.field2seqlen, dataset.field2id_token):
        for field in (ROW_ID, row_ids, dataset.config["RATING_FIELD"]):
            properties.pop(field, None)
    for part in parts:
        part.inter_feat.interaction.pop(row_ids, None)


class RowDataset(KeepsRows, Dataset):
    """RecBole's Dataset with rows; its `build` gives the three parts of the split, shots drawn."""

    def build(self):
        """Train, valid and test, as RecBole's."""
        return self._split()
