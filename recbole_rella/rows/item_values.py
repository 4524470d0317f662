"""The values of one field of items (the genres of films, the author of a book), as numbers to count with. Plain numpy."""

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True, eq=False)
class ItemValues:
    """The different values of each item, of one field, in CSR form.

    Attributes:
        start (numpy.ndarray): int64 [items + 1]; those of item i stand from start[i] to start[i + 1].
        values (numpy.ndarray): int32, ascending within an item.
        count (int): values are below it.
    """

    start: np.ndarray
    values: np.ndarray
    count: int

    @classmethod
    def of(cls, texts, separator=None):
        """Those of a column of words.

        Args:
            texts (sequence of str): one an item id; '' where it has no value.
            separator (str, optional): between the values of a sequence; a text is one value without it.

        Returns:
            ItemValues: values of equal words are equal.
        """
        lists = [text.split(separator) if separator else [text] for text in map(str, texts)]
        items = np.repeat(np.arange(len(lists)), [len(values) for values in lists])
        words = np.array([word for values in lists for word in values], dtype=object)
        there = words != ""
        codes, different = pd.factorize(words[there])
        pairs = np.unique(items[there] * max(1, len(different)) + codes)
        items, values = np.divmod(pairs, max(1, len(different)))
        start = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum(np.bincount(items, minlength=len(lists)), out=start[1:])
        return cls(start, values.astype(np.int32), len(different))

    def of_item(self, item):
        """The values of one item, int32."""
        return self.values[self.start[item] : self.start[item + 1]]

    def pairs(self, items):
        """Every value of every item.

        Args:
            items (numpy.ndarray): int [n], an item may stand more than once.

        Returns:
            tuple: place in `items`, ascending, int64 [pairs]; value, int32 [pairs].
        """
        lengths = self.start[items + 1] - self.start[items]
        places = np.repeat(np.arange(len(items)), lengths)
        # Number of each pair within its item, added to where the item's values start.
        within = np.arange(len(places)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return places, self.values[self.start[items][places] + within]
