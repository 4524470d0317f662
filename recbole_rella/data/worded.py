"""The words of users and items: their fields as the files have them, kept before RecBole makes ids of them."""

import numpy as np
import pandas as pd
from recbole.utils import FeatureType

from recbole_rella.atomic.errors import DatasetError
from recbole_rella.prompt.words import Words
from recbole_rella.rows.item_values import ItemValues
from recbole_rella.rows.numbers import number_words


class KeepsWords:
    """Mixed into a data set class of RecBole, before KeepsRows.

    Attributes:
        words (dict): user, item -> Words; None where `needs_words` says that nobody reads them.
        word_types (dict): user, item -> field -> RecBole's type of it, str.
    """

    words = word_types = None

    @property
    def needs_words(self):
        """Whether anything here reads them."""
        return True

    def _fill_nan(self):
        if self.needs_words:
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

    def category_field(self):
        """The item field of categories, or None: that of a shipped data set may not be loaded.

        Returns:
            str: its name in the file.

        Raises:
            DatasetError: the user named a field that is not there.
        """
        field, loaded = self.config["category_field"], self.words["item"].table
        if field is None or field in loaded:
            return field
        if "category_field" in self.config.external_config_dict:
            raise DatasetError(f"category_field: expected a field of the .item file among {sorted(loaded)}, found {field!r}.")
        return None

    def item_values(self, field):
        """The values of an item field, as prompts show them, each of a sequence by itself.

        Args:
            field (str): its name in the file.

        Returns:
            ItemValues: by internal item id.

        """
        words = self.words["item"]
        is_sequence = self.word_types["item"][field].endswith("_seq")
        texts = [words.shown({field: str(text)})[field] for text in words.table[field]]
        return ItemValues.of(texts, self.config["seq_separator"] if is_sequence else None)
