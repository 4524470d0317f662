"""SIMDataset: rows, and how the behaviours of each are found."""

from functools import partial

import numpy as np
from recbole.utils import FeatureType

from recbole_rella.config import cache_folder
from recbole_rella.data.atomic_files import DatasetError
from recbole_rella.data.behaviours import Behaviours, Scale
from recbole_rella.data.history_columns import add_history_columns
from recbole_rella.data.materials import item_space_without_prompts, space_identity
from recbole_rella.data.row_dataset import RowDataset, hide_answers
from recbole_rella.data.same_rows import check_history
from recbole_rella.data.worded import KeepsWords
from recbole_rella.files import fingerprint
from recbole_rella.retrieval.retriever import Retriever
from recbole_rella.rows.fields import ROW_ID
from recbole_rella.rows.past import SharedPast, UserPast


class SIMDataset(KeepsWords, RowDataset):
    """The data set of SIM.

    `build` splits as ReLLa's does, by the same keys, so that both have the same rows and histories.

    Attributes:
        rows (Rows), histories (Histories): as KeepsRows has them.
        behaviours (Behaviours): finds those of rows; of the data set and its parts, once `build` has made it.
    """

    behaviours = None

    def build(self):
        """Split; then what finds behaviours.

        Returns:
            list of SIMDataset: train, valid and test.

        Raises:
            RellaError: as `KeepsRows`; sim_search category without categories; an encoder that cannot be used.
        """
        config = self.config
        self.category_column()
        if config["history_fields"]:
            check_history(config)
        parts = self._split()
        hide_answers(self, parts)
        if config["history_fields"]:
            add_history_columns(self, parts)
        past = UserPast(self.rows)
        searched, encoder = self._search(parts, past)
        behaviours = Behaviours(
            self.rows,
            Scale.of(self.rows),
            (partial(past.latest, size=config["sim_recent_size"]), searched),
            {"rows": self._identity(parts), "encoder": encoder},
        )
        for part in (self, *parts):
            part.behaviours = behaviours
        return parts

    def _identity(self, parts):
        """Names the rows and their split, and what embeddings stand for: RecBole's ids of every value of a field, and the fields of
        users and items."""
        tokens = {field: [str(name) for name in names] for field, names in self.field2id_token.items()}
        return fingerprint(self.rows_identity(parts), tokens, *(self.words[kind].content() for kind in ("user", "item")))

    def _search(self, parts, past):
        """The searched branch, and the identity of the encoder that it stands on, or None."""
        config = self.config
        size, search = config["sim_size"], config["sim_search"]
        if size == 0:
            return partial(past.latest, size=0), None
        if search == "category":
            return partial(SharedPast(self.rows, self.categories().numpy().astype(np.int32)).latest, size=size), None
        if search == "semantic":
            space = item_space_without_prompts(self)
            retriever = Retriever(self.rows, self.histories, space.vectors, size, config["retrieval_metric"])
            row_ids = np.concatenate([part.inter_feat[ROW_ID].numpy() for part in parts])
            # The sentences that it encodes are made of the fields that `_identity` names, and of texts of the configuration.
            found = retriever.searched_ahead(row_ids, cache_folder(config), config["show_progress"])
            return found.closest, space_identity(config, space)
        return partial(past.latest, size=config["sim_max_history"]), None

    def category_column(self):
        """The item field of categories, by its name in RecBole, or None where there is none.

        Raises:
            DatasetError: the field that was asked for, or that sim_search needs, is not loaded, or holds no words.
        """
        field, searches = (
            self.config["category_field"],
            self.config["sim_search"] == "category" and self.config["sim_size"] > 0,
        )
        kinds = (FeatureType.TOKEN, FeatureType.TOKEN_SEQ)
        columns = [] if self.item_feat is None else self.item_feat.columns
        words = {self.name_in_file("item", name): name for name in columns if self.field2type[name] in kinds}
        words.pop(self.iid_field, None)
        if field in words:
            return words[field]
        if searches or "category_field" in self.config.external_config_dict and field is not None:
            purpose = " for sim_search category" if searches else ""
            raise DatasetError(
                f"category_field: expected a field of words of the .item file{purpose}, among {sorted(words)}, found {field!r}."
            )
        return None

    def categories(self):
        """The categories of each item, int64 torch tensor [items, V], 0 where there are fewer."""
        categories = self.item_feat[self.category_column()]
        return categories.long() if categories.dim() == 2 else categories.long().unsqueeze(1)

    def join(self, df):
        """RecBole's join; users without a row get the one from which they are seen."""
        return super().join(self.with_first_rows(df))
