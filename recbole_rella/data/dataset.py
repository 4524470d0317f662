"""ReLLaDataset: rows in words, and the samples of ReiT."""

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction, cat_interactions
from recbole.utils import FeatureType

from recbole_rella.data.preparation import prepare
from recbole_rella.data.row_dataset import RowDataset
from recbole_rella.rows.fields import RETRIEVED, ROW_ID
from recbole_rella.rows.numbers import number_words


class ReLLaDataset(RowDataset):
    """The data set of ReLLa: rows with row_id, raw rating and time and a history, and the words of users and items.

    `build` splits as eval_args (or split_file) says, drops no further row, and gives the training split ReiT's samples.

    Attributes:
        rows (Rows), histories (Histories): as KeepsRows has them.
        prompter (Prompter), backbone (Backbone), answer_ids (tuple of int): set by `build`.

    Raises:
        ValueError: as KeepsRows.
    """

    def _fill_nan(self):
        self._user_words = self._words("user", self.user_feat, self.uid_field)
        self._item_words = self._words("item", self.item_feat, self.iid_field)
        super()._fill_nan()

    def _words(self, kind, feat, id_field):
        """Field, by its name in the file -> words for every internal id, as in the file; '' where there is no value."""
        tokens = self.field2id_token[id_field]
        if feat is None:
            return {id_field: tokens}
        words = {}
        for field in feat:
            values, type_ = feat[field].to_numpy(), self.field2type[field]
            missing = pd.isna(feat[field]).to_numpy()
            names = self.field2id_token.get(field)
            separator = self.config["seq_separator"]
            if type_ == FeatureType.TOKEN:
                texts = names[np.where(missing, 0, values).astype(np.int64)]
                missing |= texts == "[PAD]"
            elif type_ == FeatureType.FLOAT:
                texts = [number_words(value) for value in values]
            elif type_ == FeatureType.TOKEN_SEQ:
                texts = [separator.join(names[v]) if np.ndim(v) else "" for v in values]
            else:
                texts = [separator.join(map(number_words, v)) if np.ndim(v) else "" for v in values]
            words[self.name_in_file(kind, field)] = np.where(missing, "", np.array(texts, dtype=object))
        return words

    def words(self):
        """Field -> words for every internal id, of users and of items; before prompt_words."""
        return self._user_words, self._item_words

    def words_of(self, kind, internal_id):
        """Field -> words of one user or item.

        Args:
            kind (str): user or item.
            internal_id (int): RecBole's id.

        Returns:
            dict: str -> str, '' where the atomic file has no value; prompt_words applied.
        """
        table = getattr(self, f"_{kind}_words")
        return self.in_words({field: str(texts[internal_id]) for field, texts in table.items()})

    def in_words(self, values):
        """Field -> words, where prompt_words names words for a code.

        Args:
            values (dict): str -> str, as an atomic file has them.

        Returns:
            dict: str -> str.
        """
        codes = self.config["prompt_words"]
        named = {field: {str(code): words for code, words in codes[field].items()} for field in values if field in codes}
        return {field: str(named.get(field, {}).get(text, text)) for field, text in values.items()}

    def shown_statistics(self, row_ids):
        """What the prompts of rows show on average, by eval_history (ReLLa, WWW 2024, figure 5: heterogeneity).

        Args:
            row_ids (numpy.ndarray): rows of the test split, int [n]; the data set is built.

        Returns:
            dict: history (retrieved or recent), behaviours (mean number of shown ones), and with heterogeneity_field set
            unique_values (mean number of different values of that item field among them).
        """
        kind, field = self.config["eval_history"], self.config["heterogeneity_field"]
        shown = self.prompter.shown(row_ids, self.rows.item[row_ids], np.full(len(row_ids), kind == "retrieved"))
        statistics = {"history": kind, "behaviours": float(np.mean([len(s) for s in shown])) if len(shown) else 0.0}
        if field is not None and len(shown):
            is_sequence = self.field2type[field] == FeatureType.TOKEN_SEQ
            separator = self.config["seq_separator"] if is_sequence else None
            values = [set(v.split(separator) if is_sequence else [v]) - {""} for v in self._item_words[field]]
            statistics["field"] = field
            unique = [len(set().union(*(values[item] for item in self.rows.item[s]))) for s in shown]
            statistics["unique_values"] = float(np.mean(unique))
        return statistics

    def build(self):
        """Split; then ReiT's samples for the training split, and the prompts of all.

        Returns:
            list of ReLLaDataset: train (one row a sample: with train_history mixed each shot stands twice, with recent and
            with retrieved behaviours), valid, test.

        Raises:
            ValueError: an empty training split, or training labels that are all equal.
        """
        field = self.config["heterogeneity_field"]
        if field is not None and field not in self._item_words:
            raise ValueError(
                f"heterogeneity_field: expected a field of the .item file, found {field!r}; loaded are {sorted(self._item_words)}."
            )
        parts = self._split()
        train, *evaluated = parts
        kinds = {"mixed": (False, True), "recent": (False,), "retrieved": (True,)}[self.config["train_history"]]
        train.inter_feat = cat_interactions([self._with_kind(train.inter_feat, kind) for kind in kinds])
        for part in evaluated:
            part.inter_feat = self._with_kind(part.inter_feat, self.config["eval_history"] == "retrieved")
        prepare(self, parts)
        for part in parts:
            part.prompter, part.backbone, part.answer_ids = self.prompter, self.backbone, self.answer_ids
        return parts

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
