"""Ratings, labels and times as the .inter file has them, and the errors where one of them is no number."""

import numpy as np
from recbole.utils import FeatureType

from recbole_rella.atomic.errors import DatasetError, plural
from recbole_rella.rows.numbers import as_exact


class Answers:
    """Reads the columns of a data set before RecBole fills in missing values: by a mean, of which it would make labels.

    Args:
        dataset (KeepsRows): filtered, its ids final.
    """

    def __init__(self, dataset):
        self._dataset, self._inter, self._config = dataset, dataset.inter_feat, dataset.config

    def _is_number(self, field):
        return self._dataset.field2type[field] == FeatureType.FLOAT

    def _column(self, field, what, remedy):
        """A column of finite numbers, float64 [rows]."""
        values = self._inter[field].to_numpy(dtype=np.float64)
        for wrong, problem in ((np.isnan(values), "without one"), (~np.isfinite(values), "with an infinite one")):
            if wrong.any():
                raise DatasetError(
                    f"{field}: expected a {what} in every row, found {plural(int(wrong.sum()), 'row')} {problem} "
                    f"({self._dataset.lines_of(self._dataset.rows_in_file(wrong))}); {remedy}."
                )
        return values

    def times(self):
        """The times in the file.

        Returns:
            numpy.ndarray: float64 [rows].

        Raises:
            DatasetError: there are none, or one is missing or infinite.
        """
        field = self._dataset.time_field
        if field not in self._inter or not self._is_number(field):
            raise DatasetError(
                f"TIME_FIELD: expected a float field {field!r} in the .inter file, found {self._dataset.columns_of('inter')[0]}. "
                "Histories are ordered by time: name the field in TIME_FIELD and load_col. For a data set without times "
                "give history_shuffle_seed, and they stand in a random order."
            )
        time = self._column(field, "time", "drop them from the .inter file, or filter them with val_interval")
        if len(time) and np.abs(time).max() >= 2.0**63:
            raise DatasetError(f"{field}: expected times below 2^63, found {np.abs(time).max():g}; use seconds.")
        if len(time) > 1 and time.min() == time.max():
            self._dataset.account.odd(
                f"All rows have the same {field}: in the order of time they stand by user and item id, and so does the split. For "
                "a data set without times give history_shuffle_seed."
            )
        return time

    def ratings(self):
        """The ratings in the file.

        Returns:
            numpy.ndarray: float32 [rows], or float64 where that would lose digits; None where the data set has none.

        Raises:
            DatasetError: one is missing or infinite.
        """
        field = self._config["RATING_FIELD"]
        if field not in self._inter:
            return None
        if not self._is_number(field):
            self._dataset.account.odd(f"{field} is no float column of the .inter file: its values are not read as ratings.")
            return None
        return as_exact(self._column(field, "rating", "drop them from the .inter file, or leave the field out of load_col"))

    def labels(self):
        """Whether a row is liked: by threshold, or as the label column says.

        Returns:
            numpy.ndarray: int8 [rows], 0 or 1; None where the data set has neither.

        Raises:
            DatasetError: the column is no column of numbers, one is missing, or labels are something else than 0 and 1.
        """
        threshold, label = self._config["threshold"], self._dataset.label_field
        if threshold is not None:
            return self._by_threshold(threshold, label)
        if label not in self._inter:
            return None
        if not self._is_number(label):
            kind = self._dataset.field2type[label].value
            raise DatasetError(
                f"{label}: expected a float column of labels 0 and 1, found {label}:{kind}; write {label}:float in the header of "
                "the .inter file, and the labels as 0 and 1."
            )
        values = self._column(label, "label", "drop them from the .inter file")
        wrong = ~np.isin(values, (0, 1))
        if wrong.any():
            raise DatasetError(
                f"{label}: expected labels 0 and 1, found {np.unique(values)[:5].tolist()} ({plural(int(wrong.sum()), 'row')}, "
                f"{self._dataset.lines_of(self._dataset.rows_in_file(wrong))}); set threshold ({{field: value}}) to make labels of "
                "a rating."
            )
        return values.astype(np.int8)

    def _by_threshold(self, threshold, label):
        columns, in_file = self._dataset.columns_of("inter")
        fits = isinstance(threshold, dict) and len(threshold) == 1
        value = next(iter(threshold.values())) if fits else None
        if not fits or isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
            raise DatasetError(
                f"threshold: expected one column and the lowest value that is liked, as {{'rating': 4}}, found {threshold!r}; the "
                f".inter file has {columns}."
            )
        (field,) = threshold
        if field not in self._inter or not self._is_number(field):
            remedy = "add it to load_col" if field in in_file and field not in self._inter else "name one of its float columns"
            raise DatasetError(f"threshold: expected a float column of the .inter file, found {field!r} and {columns}; {remedy}.")
        if label in self._inter and label != field:
            raise DatasetError(
                f"threshold: expected no column {label!r} in the .inter file, as labels are made of {field}, found both. Set "
                f"threshold to None (~) to use the column, or leave it out with unload_col: {{inter: [{label}]}}."
            )
        what = "rating" if field == self._config["RATING_FIELD"] else "value"
        liked = self._column(field, what, "drop them from the .inter file, or filter them with val_interval") >= value
        return liked.astype(np.int8)
