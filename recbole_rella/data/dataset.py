"""ReLLaDataset: rows in words, and the samples of ReiT."""

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction, cat_interactions
from recbole.utils import FeatureType

from recbole_rella.data.assembly import assemble
from recbole_rella.data.atomic_files import DatasetError
from recbole_rella.data.row_dataset import RowDataset
from recbole_rella.files import fingerprint
from recbole_rella.prompt.words import Words
from recbole_rella.rows.fields import RETRIEVED, ROW_ID
from recbole_rella.rows.numbers import number_words
from recbole_rella.run_folder import identities_of, read_run


class ReLLaDataset(RowDataset):
    """The data set of ReLLa: rows with row_id, raw rating and time and a history, and the words of users and items.

    `build` splits as eval_args (or split_file) says, drops no further row, and gives the training split ReiT's samples.

    Attributes:
        rows (Rows), histories (Histories): as KeepsRows has them.
        words (dict): user, item -> Words; word_types (dict): user, item -> field -> RecBole's type of it, str.
        assembly (Assembly): what makes prompts and scores of the rows; of the data set and its parts, once `build` has made it.

    Raises:
        RellaError: as KeepsRows.
    """

    assembly = None

    def _fill_nan(self):
        feats = {"user": (self.user_feat, self.uid_field), "item": (self.item_feat, self.iid_field)}
        self.words = {kind: Words(self._words(kind, *feat), self.config["prompt_words"]) for kind, feat in feats.items()}
        self.word_types = {kind: self._word_types(kind, *feat) for kind, feat in feats.items()}
        super()._fill_nan()

    def _word_types(self, kind, feat, id_field):
        fields = [id_field] if feat is None else feat
        return {self.name_in_file(kind, field): self.field2type[field].value for field in fields}

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

    @property
    def user_ids(self):
        """The data set's own id of every internal one, str [users]."""
        return self.field2id_token[self.uid_field]

    @property
    def item_ids(self):
        """The data set's own id of every internal one, str [items]."""
        return self.field2id_token[self.iid_field]

    def rows_identity(self, parts):
        """Names the rows, what they say, and which of them train, validate and test.

        Args:
            parts (list of ReLLaDataset): train, valid and test.

        Returns:
            str: 16 hexadecimal digits.
        """
        ratings = [] if self.rows.rating is None else [self.rows.rating]
        return fingerprint(
            self.identity(), *ratings, self.rows.split, *(np.unique(part.inter_feat[ROW_ID].numpy()) for part in parts)
        )

    def shown_statistics(self, row_ids):
        """What the prompts of rows show on average, by eval_history (ReLLa, WWW 2024, figure 5: heterogeneity).

        Args:
            row_ids (numpy.ndarray): rows of the test split, int [n]; the data set is built.

        Returns:
            dict: history (retrieved or recent), behaviours (mean number of shown ones), and with heterogeneity_field set
            unique_values (mean number of different values of that item field among them).
        """
        kind, field = self.config["eval_history"], self._heterogeneity_field()
        shown = self.assembly.prompter.shown(row_ids, self.rows.item[row_ids], np.full(len(row_ids), kind == "retrieved"))
        statistics = {"history": kind, "behaviours": float(np.mean([len(s) for s in shown])) if len(shown) else 0.0}
        if field is not None and len(shown):
            is_sequence = self.word_types["item"][field] == FeatureType.TOKEN_SEQ.value
            separator = self.config["seq_separator"] if is_sequence else None
            values = [set(v.split(separator) if is_sequence else [v]) - {""} for v in self.words["item"].table[field]]
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
            RellaError: an empty training split, training labels that are all equal, or what `assemble` cannot use; RunChangedError:
            the run to be resumed stood on something else.
        """
        self._heterogeneity_field()
        parts = self._split()
        train, *evaluated = parts
        kinds = {"mixed": (False, True), "recent": (False,), "retrieved": (True,)}[self.config["train_history"]]
        train.inter_feat = cat_interactions([self._with_kind(train.inter_feat, kind) for kind in kinds])
        for part in evaluated:
            part.inter_feat = self._with_kind(part.inter_feat, self.config["eval_history"] == "retrieved")
        assembly = assemble(self, parts)
        if self.config["resume_from"]:  # before any weights are loaded
            read_run(self.config["resume_from"]).check(identities_of(assembly), self.config["allow_changed"])
        for part in (self, *parts):
            part.assembly = assembly
        return parts

    def _heterogeneity_field(self):
        """The item field whose values are counted, or None: that of a shipped data set may not be loaded."""
        field, loaded = self.config["heterogeneity_field"], self.words["item"].table
        if field is None or field in loaded:
            return field
        if "heterogeneity_field" in self.config.external_config_dict:
            raise DatasetError(f"heterogeneity_field: expected a field of the .item file among {sorted(loaded)}, found {field!r}.")
        return None

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
