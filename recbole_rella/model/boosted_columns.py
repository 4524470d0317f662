"""The columns that RecBole's LightGBM and XGBoost read of our rows: those of which other models make features, and no other."""

import numpy as np
from recbole.utils import FeatureType

# Sequences with more different values than this are no columns of a table.
MOST_VALUES = 100


class BoostedColumns:
    """Which columns of a data set trees read, and how.

    Ids and token fields are integers, which may be taken for categories; float fields are numbers: where there is no value, nan in
    history features, and in the others the mean, which RecBole fills in; a token sequence of few values is a column of 0 and 1 for
    each of them. The label is left out, and so is the time, by which later rows differ from all that were learned from, unless
    `numerical_features` names it.

    Args:
        dataset (recbole.data.dataset.Dataset): a part of a built data set on our rows.

    Attributes:
        names (list of str): of the columns: a field, or field=value.
        tokens (list of int): places of the columns of ids and token fields.
        left_out (list of str): fields that other models read and trees do not.
    """

    def __init__(self, dataset):
        time = dataset.time_field if dataset.time_field not in (dataset.config["numerical_features"] or ()) else None
        self._fields, self.names, self.tokens, self.left_out = [], [], [], []
        for field, kind in dataset.field2type.items():
            if field in (dataset.label_field, time):
                continue
            if kind == FeatureType.TOKEN_SEQ and dataset.num(field) <= MOST_VALUES:
                self.names += [f"{field}={value}" for value in dataset.field2id_token[field][1:]]
            elif kind in (FeatureType.TOKEN, FeatureType.FLOAT):
                self.tokens += [len(self.names)] if kind == FeatureType.TOKEN else []
                self.names.append(field)
            else:
                self.left_out.append(field)
                continue
            self._fields.append((field, kind))

    def of(self, dataset):
        """The columns of all rows of a part.

        Args:
            dataset (recbole.data.dataset.Dataset): as the one of which the columns were chosen.

        Returns:
            numpy.ndarray: float32 [rows, columns].
        """
        rows, columns = dataset[:], []
        for field, kind in self._fields:
            values = rows[field].numpy()
            if kind == FeatureType.TOKEN_SEQ:
                has = np.zeros((len(values), dataset.num(field)), dtype=np.float32)
                np.put_along_axis(has, values, 1.0, axis=1)
                columns.append(has[:, 1:])  # the first is padding
            else:
                # RecBole makes a pair of a number that numerical_features names: with 1 behind it or, of a bucket, before it.
                number = values.prod(axis=1) if values.ndim == 2 else values
                columns.append(number.astype(np.float32)[:, None])
        return np.hstack(columns)
