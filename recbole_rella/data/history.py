"""How the history features that a configuration asks for are made of a data set. rows/features.py works them out."""

from recbole_rella.config import cache_folder
from recbole_rella.errors import RellaError
from recbole_rella.files import cached_arrays
from recbole_rella.key_rules import DAYS_SINCE_LAST, same_field
from recbole_rella.retrieval.rated_alike import RatedAlike, alike_arrays
from recbole_rella.retrieval.taste import Taste, taste_arrays
from recbole_rella.rows.features import HistoryFeatures
from recbole_rella.rows.item_statistics import ItemStatistics, answers_of, training_rows


class HistoryError(RellaError):
    """The rows do not have what a history feature is made of."""


def history_features(dataset, names, retriever=None, asked_by="history_fields"):
    """The features of a data set's rows.

    Args:
        dataset (KeepsWords and KeepsRows): split.
        names (tuple of str): which ones.
        retriever (Retriever, optional): for similar_*.
        asked_by (str): the key that names them, for messages.

    Returns:
        HistoryFeatures: of all rows.

    Raises:
        HistoryError: the rows have no answers, or the items not the field of a same_*.
    """
    if answers_of(dataset.rows) is None:
        raise HistoryError(
            f"{asked_by}: expected rows with a rating or a label, found neither in {dataset.dataset_name}; name the columns in "
            "RATING_FIELD or LABEL_FIELD and load_col."
        )
    if DAYS_SINCE_LAST in names and not dataset.rows.timed:
        raise HistoryError(
            f"{asked_by}: expected no {DAYS_SINCE_LAST} of rows without times, which stand in a random order "
            "(history_shuffle_seed), found it; leave it out, or name the times in TIME_FIELD."
        )
    rows, fields = dataset.rows, [field for field in dict.fromkeys(map(same_field, names)) if field]
    loaded = dataset.words["item"].table
    for field in fields:
        if field not in loaded:
            raise HistoryError(
                f"{asked_by}: expected same_<field>_* with a field of the .item file among {sorted(loaded)}, found {field!r}. "
                "Does load_col name it?"
            )
    return HistoryFeatures(
        rows=rows,
        histories=dataset.histories,
        statistics=ItemStatistics.of(rows),
        names=names,
        values={field: dataset.item_values(field) for field in fields},
        similar=None if retriever is None else retriever.weighted,
        alike=_rated_alike(dataset) if "alike_residual" in names else None,
        taste=_taste(dataset) if any(name.startswith("tracked_") for name in names) else None,
        likes=ItemStatistics.of(rows, rows.label) if "tracked_label" in names and rows.label is not None else None,
    )


def _learned(dataset, kind, make, *more):
    """Arrays of the training rows, worked out once for all runs on the same rows."""
    rows, shape = dataset.rows, (dataset.user_num, dataset.item_num)
    parts = rows.user, rows.item, rows.time, answers_of(rows), training_rows(rows), shape, *more
    return cached_arrays(cache_folder(dataset.config), kind, parts, lambda: make(rows, shape))


def _rated_alike(dataset):
    """Which items are rated alike."""
    return RatedAlike(dataset.rows, dataset.histories, **_learned(dataset, "rated-alike", alike_arrays))


def _taste(dataset):
    """What follows users."""
    labels = () if dataset.rows.label is None else (dataset.rows.label,)
    return Taste(**_learned(dataset, "taste", taste_arrays, *labels))


def cached_numbers(features, row_ids, folder, retriever=None):
    """Numbers of rows about their own items, computed once for all runs that ask for them.

    Args:
        features (HistoryFeatures): of the rows.
        row_ids (numpy.ndarray): int [n], ascending.
        folder (pathlib.Path): the cache.
        retriever (Retriever, optional): by which the features search.

    Returns:
        numpy.ndarray: float32 [n, names]; nan where there is no value.
    """
    rows = features.rows
    columns = [column for column in (rows.user, rows.item, rows.time, rows.rating, rows.label, rows.split) if column is not None]
    values = [array for field in features.values.values() for array in (field.start, field.values)]
    vectors = (retriever.vectors, retriever.k, retriever.metric) if features.searches else ()
    parts = (features.names, row_ids, *columns, *values, *vectors)
    return cached_arrays(folder, "history-features", parts, lambda: {"table": features.of_rows(row_ids)})["table"]
