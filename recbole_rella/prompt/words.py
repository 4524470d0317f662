"""Fields of users and items in words: as the files have them, with words in the place of codes where prompt_words has some."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Words:
    """The fields of all users, or of all items.

    Attributes:
        table (Mapping): field -> words of every internal id, str [n]; '' where the file has no value.
        codes (Mapping): field -> code -> words (prompt_words).
    """

    table: Mapping[str, np.ndarray]
    codes: Mapping[str, Mapping]

    def __call__(self, internal_id):
        """Field -> words of one of them, as a prompt shows them, dict of str."""
        return self.shown({field: str(texts[internal_id]) for field, texts in self.table.items()})

    def shown(self, values):
        """Field -> words, where prompt_words names words for a code.

        Args:
            values (dict): str -> str, as a file has them.

        Returns:
            dict: str -> str.
        """
        return {field: str(self._named.get(field, {}).get(text, text)) for field, text in values.items()}

    @cached_property
    def _named(self):
        """The codes as text, as those of a file are; YAML may have numbers."""
        return {field: {str(code): words for code, words in codes.items()} for field, codes in self.codes.items()}

    def content(self):
        """All of it as plain values, for a fingerprint."""
        return {field: list(map(str, texts)) for field, texts in self.table.items()}, self._named
