"""History features as columns of rows: what a prompt tells of the past, for RecBole's models on the same rows (law 13).

Models that embed their features get each number as a token, by quantiles of the training rows (token 0: no value), or, with
history_buckets 0, as a standardized float; trees get the numbers as they are. `mean_embedding` gives two sequences, the items of
the last history_size behaviours and their answers, of which RecBole's models take the mean of embeddings: what the baselines of
ReLLa (WWW 2024) read.
"""

from dataclasses import dataclass

import numpy as np
import torch
from recbole.utils import FeatureSource, FeatureType, ModelType

from recbole_rella.config import cache_folder
from recbole_rella.data.history import cached_numbers, history_features
from recbole_rella.data.materials import item_space_without_prompts
from recbole_rella.key_rules import MEAN_EMBEDDING, history_names
from recbole_rella.retrieval.retriever import Retriever
from recbole_rella.rows.fields import HISTORY_ANSWERS, HISTORY_ITEMS, ROW_ID, history_column
from recbole_rella.rows.item_statistics import answers_of
from recbole_rella.rows.past import UserPast

# Buckets of the answers in HISTORY_ANSWERS, where history_buckets makes none of the numbers.
_BUCKETS = 32


@dataclass(frozen=True)
class Buckets:
    """Numbers as tokens: 0 for none, then the bucket, from 1.

    Attributes:
        edges (numpy.ndarray): float32, ascending; a number is in the first bucket whose edge is not below it, else in the last.
    """

    edges: np.ndarray

    @classmethod
    def fitted(cls, values, count):
        """Buckets of about as many numbers each; one for each different number, where there are not more of these.

        Args:
            values (numpy.ndarray): of the training rows, float [n], nan for none.
            count (int): buckets at most.
        """
        values = values[~np.isnan(values)].astype(np.float32)
        different = np.unique(values)
        if len(different) <= count:
            return cls(different[:-1])
        return cls(np.unique(np.quantile(values, np.arange(1, count) / count, method="lower")))

    @property
    def count(self):
        """Number of tokens, 0 included."""
        return len(self.edges) + 2

    def tokens(self, values):
        """Tokens of numbers, int64, in their shape."""
        return np.where(np.isnan(values), 0, 1 + np.searchsorted(self.edges, values.astype(np.float32)))


def add_history_columns(dataset, parts):
    """Give the parts of a split the columns that history_fields asks for.

    Args:
        dataset (KeepsWords and KeepsRows): of a model of RecBole; it and its parts share the properties of their fields.
        parts (list): train, valid, test.

    Raises:
        RellaError: the data set, or an encoder, does not have what they are made of.
    """
    given = dataset.config["history_fields"]
    names = history_names(given, dataset.category_field(), dataset.rows.timed)
    row_ids = [part.inter_feat[ROW_ID].numpy() for part in parts]
    if names:
        every = np.unique(np.concatenate(row_ids))
        table = history_table(dataset, names, every)
        _add_numbers(dataset, parts, names, [table[np.searchsorted(every, part)] for part in row_ids])
    if MEAN_EMBEDDING in given:
        _add_sequences(dataset, parts, row_ids)


def history_table(dataset, names, row_ids):
    """Numbers of rows, computed once for all runs that ask for them.

    Args:
        dataset (KeepsWords and KeepsRows): split.
        names (tuple of str): which ones.
        row_ids (numpy.ndarray): int [n], ascending.

    Returns:
        numpy.ndarray: float32 [n, names]; nan where there is no value.

    Raises:
        RellaError: as `add_history_columns`.
    """
    config, features, retriever = dataset.config, history_features(dataset, names), None
    if features.searches:
        vectors, metric = item_space_without_prompts(dataset).vectors, config["retrieval_metric"]
        retriever = Retriever(dataset.rows, dataset.histories, vectors, config["history_size"], metric)
    return cached_numbers(features.searching(retriever), row_ids, cache_folder(config), retriever)


def _add_numbers(dataset, parts, names, tables):
    config, train = dataset.config, tables[0]
    is_tree, buckets = config["MODEL_TYPE"] == ModelType.DECISIONTREE, config["history_buckets"]
    columns = [history_column(name) for name in names]
    for place, column in enumerate(columns):
        numbers = [table[:, place] for table in tables]
        if is_tree:
            _set_float(dataset, column)
            values = [torch.from_numpy(np.ascontiguousarray(part)) for part in numbers]
        elif buckets:
            fitted = Buckets.fitted(train[:, place], buckets)
            _set_tokens(dataset, column, FeatureType.TOKEN, fitted.count)
            values = [torch.from_numpy(fitted.tokens(part)) for part in numbers]
        else:
            _set_float(dataset, column)
            values = [_embedded(part) for part in _standardized(numbers)]
        for part, of_part in zip(parts, values):
            part.inter_feat.interaction[column] = of_part
    if not is_tree and not buckets:
        # RecBole embeds the floats that stand here, and takes the columns of the files among them apart while it reads.
        config["numerical_features"] = [*(config["numerical_features"] or ()), *columns]


def _standardized(numbers):
    """The numbers of each part with mean 0 and deviation 1 over the training rows; 0 where there is none."""
    known = numbers[0][~np.isnan(numbers[0])].astype(np.float64)
    mean, spread = (known.mean(), known.std()) if len(known) else (0.0, 0.0)
    return [np.nan_to_num((part - mean) / (spread or 1.0)).astype(np.float32) for part in numbers]


def _embedded(values):
    """A column as RecBole's FLEmbedding takes it: the number, and the row of its table, [n, 2]."""
    return torch.from_numpy(np.stack([values, np.ones_like(values)], axis=1))


def _add_sequences(dataset, parts, row_ids):
    answers, size = answers_of(dataset.rows), dataset.config["history_size"]
    train = np.unique(row_ids[0])
    fitted = Buckets.fitted(answers[train].astype(np.float64), dataset.config["history_buckets"] or _BUCKETS)
    for column, tokens in ((HISTORY_ITEMS, dataset.item_num), (HISTORY_ANSWERS, fitted.count)):
        _set_tokens(dataset, column, FeatureType.TOKEN_SEQ, tokens, size)
    past, of_rows = (
        UserPast(dataset.rows),
        {HISTORY_ITEMS: dataset.rows.item, HISTORY_ANSWERS: fitted.tokens(answers.astype(np.float64))},
    )
    for part, rows in zip(parts, row_ids):
        recent = past.latest(rows, None, size)
        for column, values in of_rows.items():
            found = np.zeros((len(rows), size), dtype=np.int64)
            found[:, : recent.shape[1]] = np.where(recent >= 0, values[recent], 0)
            part.inter_feat.interaction[column] = torch.from_numpy(found)


def _set_tokens(dataset, column, kind, count, length=1):
    dataset.set_field_property(column, kind, FeatureSource.INTERACTION, length)
    dataset.field2id_token[column] = np.array(["[PAD]", *map(str, range(1, count))])


def _set_float(dataset, column):
    dataset.set_field_property(column, FeatureType.FLOAT, FeatureSource.INTERACTION, 1)
    dataset.field2bucketnum[column] = 2
