"""ReLLaDataset: RecBole's Dataset that keeps what a text model needs, and that splits without leaks."""

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction, cat_interactions
from recbole.utils import FeatureSource, FeatureType

from recbole_rella.data.history import NO_SPLIT, TEST, TRAIN, VALID, Histories, Rows
from recbole_rella.data.preparation import prepare
from recbole_rella.data.transform import RETRIEVED, ROW_ID


def _sort_rank(tokens):
    """Place of each token among all: by number where all are integers (as the original ids of most data sets are)."""
    try:
        keys = np.array([int(token) for token in tokens[1:]])
    except ValueError:
        keys = np.array(tokens[1:], dtype=str)
    rank = np.zeros(len(tokens), dtype=np.int32)
    rank[1 + np.argsort(keys, kind="stable")] = np.arange(1, len(tokens))
    return rank


class ReLLaDataset(Dataset):
    """The data set of ReLLa: every row keeps its raw rating and time, a row_id and a history.

    RecBole removes, rescales or rounds ratings and times while it prepares the data; they are copied before. Rows are
    numbered in the order (time, user, item) after RecBole's filters: the row_id. `build` splits as eval_args says, drops
    no further row, and gives the training split ReiT's samples.

    Attributes:
        rows (Rows): the columns of all rows, those that min_history drops included.
        histories (Histories): the earlier rows of each row.
        prompter (Prompter), backbone (Backbone), answer_ids (tuple of int): set by `build`.

    Raises:
        ValueError: no time field, a missing time or rating, no label, or no row with enough history.
    """

    def _data_processing(self):
        super()._data_processing()
        self._keep_labels()
        self._drop_short_histories()

    def _fill_nan(self):
        # The last moment at which nothing is filled in, and the first at which ids are the final ones.
        self._keep_rows()
        self._user_words = self._words(self.user_feat, self.uid_field)
        self._item_words = self._words(self.item_feat, self.iid_field)
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

    def _words(self, feat, id_field):
        """Field -> words for every internal id, as in the atomic file; '' where there is no value."""
        tokens = self.field2id_token[id_field]
        if feat is None:
            return {id_field: tokens}
        words = {}
        for field in feat:
            values, kind = feat[field].to_numpy(), self.field2type[field]
            missing = pd.isna(feat[field]).to_numpy()
            names = self.field2id_token.get(field)
            separator = self.config["seq_separator"]
            if kind == FeatureType.TOKEN:
                texts = names[np.where(missing, 0, values).astype(np.int64)]
                missing |= texts == "[PAD]"
            elif kind == FeatureType.FLOAT:
                texts = ["%g" % value for value in values]
            elif kind == FeatureType.TOKEN_SEQ:
                texts = [separator.join(names[v]) if np.ndim(v) else "" for v in values]
            else:
                texts = [separator.join("%g" % x for x in v) if np.ndim(v) else "" for v in values]
            words[field] = np.where(missing, "", np.array(texts, dtype=object))
        return words

    def words_of(self, kind, internal_id):
        """Field -> words of one user or item.

        Args:
            kind (str): user or item.
            internal_id (int): RecBole's id.

        Returns:
            dict: str -> str, '' where the atomic file has no value; prompt_words applied.
        """
        table, codes = getattr(self, f"_{kind}_words"), self.config["prompt_words"]
        values = {}
        for field, texts in table.items():
            text = str(texts[internal_id])
            named = {str(code): words for code, words in codes[field].items()} if field in codes else {}
            values[field] = str(named.get(text, text))
        return values

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
        super().sort(ROW_ID if by == self.time_field else by, ascending)

    def build(self):
        """Split as eval_args says; then ReiT's samples for the training split, and the prompts of all.

        Returns:
            list of ReLLaDataset: train (one row a sample: with train_history mixed each shot stands twice, with recent and
            with retrieved behaviours), valid, test.

        Raises:
            ValueError: an empty training split, or training labels that are all equal.
        """
        labeled = "labeled" in self.config["eval_args"]["mode"].values()
        if labeled and self.rows.label is None:
            raise ValueError(
                f"LABEL_FIELD: expected a label in every row, found {self._found('inter')}; set threshold, "
                f"for example {{'rating': 4}}, or give the data set a float field {self.label_field!r} of 0 and 1."
            )
        parts = super().build()
        for part, split in zip(parts, (TRAIN, VALID, TEST)):
            self.rows.split[part.inter_feat[ROW_ID].numpy()] = split
        train, *evaluated = parts
        self._check_train(train)
        self._draw_shots(train)
        kinds = {"mixed": (False, True), "recent": (False,), "retrieved": (True,)}[self.config["train_history"]]
        train.inter_feat = cat_interactions([self._with_kind(train.inter_feat, kind) for kind in kinds])
        for part in evaluated:
            part.inter_feat = self._with_kind(part.inter_feat, self.config["eval_history"] == "retrieved")
        prepare(self, parts)
        for part in parts:
            part.prompter, part.backbone, part.answer_ids = self.prompter, self.backbone, self.answer_ids
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

    @staticmethod
    def _with_kind(inter_feat, retrieved):
        columns = dict(inter_feat.interaction)
        columns[RETRIEVED] = torch.full((len(inter_feat),), int(retrieved))
        return Interaction(columns)

    def join(self, df):
        """RecBole's join. Users without a row (full-sort evaluation ranks all items for a user) get the one from which
        they are seen: their first in this split, so that its history ends before the split's behaviours."""
        if ROW_ID not in df and self.uid_field in df and isinstance(self.inter_feat, Interaction):
            users, rows = (self.inter_feat[field].numpy() for field in (self.uid_field, ROW_ID))
            first = np.full(self.user_num, -1, dtype=np.int64)
            order = np.argsort(-rows)
            first[users[order]] = rows[order]
            df[ROW_ID] = torch.from_numpy(first[df[self.uid_field].numpy()])
            df = self._with_kind(df, self.config["eval_history"] == "retrieved")
        return super().join(df)
