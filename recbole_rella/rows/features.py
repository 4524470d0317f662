"""What a row's history says in numbers: what a prompt tells, for models that read numbers. Plain numpy.

A number of a row is made of the row's own history (see history.py) and of training rows, and of nothing else (law 1). A training
row takes from the other training rows those of a strictly earlier time alone, as it would stand among them itself otherwise (how
items differ and which are rated alike, it takes from those of other users); a row that is evaluated takes all of them. Answers are
ratings, or labels where the data set has no ratings.

| name | of a row |
|---|---|
| user_mean, user_mean_10, user_mean_30 | mean answer of all, of the last 10, of the last 30 behaviours |
| user_residual, user_residual_10, user_residual_30 | the same of the answers less the mean that the item had before each |
| user_last, user_spread, user_count | last answer; standard deviation of all; number of behaviours |
| days_since_last | days (of 86,400 units of time) from the last behaviour to the row |
| item_mean, item_count | shrunk mean and number of the training rows' answers to the target |
| similar_mean, similar_residual | mean over the K behaviours closest to the target, weighted by closeness: SUBR in one number |
| alike_residual | the same over the behaviours whose items are rated most like the target (retrieval/rated_alike.py), shrunk to 0 |
| tracked_residual, tracked_label | answer and label that are expected, above the item's means: a Kalman filter over the past |
| same_F_mean, same_F_residual, same_F_count | over behaviours that share values of item field F with the target, by how many |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from recbole_rella.key_rules import same_field
from recbole_rella.rows.history import NO_SPLIT, TRAIN, Histories, Rows
from recbole_rella.rows.item_statistics import ItemStatistics, answers_of
from recbole_rella.rows.item_values import ItemValues
from recbole_rella.rows.kalman import LIKED, RATED

_DAY = 86_400
# Rows of users, and rows whose retrieved behaviours are looked at, that are worked on at a time.
_ROWS, _SEARCHED = 2**20, 2**16
# As how much likeness a 0 counts among what is said of items rated alike: little of it tells little.
_ALIKE = 1.0
_TRACKED = {"tracked_residual": RATED, "tracked_label": LIKED}


@dataclass(frozen=True, eq=False, kw_only=True)
class HistoryFeatures:
    """Numbers of rows.

    Attributes:
        rows (Rows), histories (Histories): all rows.
        statistics (ItemStatistics): of the training rows, in the item ids of `rows`.
        names (tuple of str): which numbers, in this order.
        values (Mapping): field -> ItemValues, for each F of a same_F_*.
        similar (callable or None): for similar_*: takes row_ids and item ids, int [n] each, and returns the row_ids of the
            behaviours that are closest to them, int [n, K], -1 where there are fewer, and their weights, float [n, K], at least 0.
        alike (RatedAlike or None): for alike_residual: its `weighted` gives the same, of behaviours whose items are rated alike.
        taste (Taste or None), likes (ItemStatistics or None): for tracked_*: what follows users (retrieval/taste.py), and the
            labels of the training rows, where there are any.
        now (numpy.ndarray or None): where the rows are requests, which come after all training rows: the time of each, float
            [rows], nan where it is not known. None: they are rows of the data set.
    """

    rows: Rows
    histories: Histories
    statistics: ItemStatistics
    names: tuple
    values: Mapping[str, ItemValues] = field(default_factory=dict)
    similar: Callable | None = None
    alike: object | None = None
    taste: object | None = None
    likes: ItemStatistics | None = None
    now: np.ndarray | None = None

    @property
    def searches(self):
        """Whether a number is made of what is retrieved."""
        return self._wants("similar_")

    def searching(self, retriever):
        """The same features, of what a retriever finds.

        Args:
            retriever (Retriever or None): of the rows; None where nothing is retrieved.

        Returns:
            HistoryFeatures: of the same rows and statistics.
        """
        return self if retriever is None else replace(self, similar=retriever.weighted)

    def _reads_all(self, split):
        """Whether rows of a split take the item statistics of all training rows."""
        return self.now is not None or split not in (NO_SPLIT, TRAIN)

    def _fields(self):
        return dict.fromkeys(same_field(name) for name in self.names if same_field(name))

    def _answers(self, rows):
        """Answers of rows, and what they lie above their items by, float64 [n]; nan for what is not known."""
        answers = self._said(rows)
        return answers, self.statistics.residuals(self.rows.item[rows], self.rows.time[rows], answers)

    def _said(self, rows):
        answers = answers_of(self.rows)
        return np.full(len(rows), np.nan) if answers is None else answers[rows].astype(np.float64)

    def _label_residuals(self, rows):
        """By how much the labels of rows lie above their items', float64 [n]; nan for what is not known."""
        if self.likes is None:
            return np.full(len(rows), np.nan)
        return self.likes.residuals(self.rows.item[rows], self.rows.time[rows], self.rows.label[rows].astype(np.float64))

    # Many rows at once.

    def of_rows(self, row_ids):
        """Numbers of rows about their own items.

        Args:
            row_ids (numpy.ndarray): int [n].

        Returns:
            numpy.ndarray: float32 [n, names]; nan where there is no value.
        """
        row_ids = np.asarray(row_ids, dtype=np.int64)
        if len(row_ids) > 1 and (np.diff(row_ids) <= 0).any():
            row_ids, places = np.unique(row_ids, return_inverse=True)
            return self.of_rows(row_ids)[places]
        table = np.full((len(row_ids), len(self.names)), np.nan, dtype=np.float32)
        splits = self.rows.split[row_ids]
        # Rows of one split see prefixes of the same sequence of their user: it is summed up once for all of them.
        for split in np.unique(splits):
            of_split = row_ids[splits == split]
            for users in self._some_users(np.unique(self.rows.user[of_split])):
                past = _Past(self, users, split, of_split)
                places = np.searchsorted(row_ids, past.row_ids)
                for name, column in self._columns(past):
                    table[places, self.names.index(name)] = column
        for begin in range(0, len(row_ids) if self.searches or self._wants("alike_") else 0, _SEARCHED):
            part = slice(begin, begin + _SEARCHED)
            for name, column in self._searched(row_ids[part], self.rows.item[row_ids[part]]).items():
                table[part, self.names.index(name)] = column
        return table

    def _wants(self, prefix):
        return any(name.startswith(prefix) for name in self.names)

    def _some_users(self, users):
        """The users in groups whose rows are not too many to be held at a time."""
        lengths = self.histories.start[users + 1] - self.histories.start[users]
        group = np.cumsum(lengths) // _ROWS
        return np.split(users, np.flatnonzero(np.diff(group)) + 1)

    def _columns(self, past):
        """Name and numbers, for each name that is made of sums over the past."""
        for name in self.names:
            if not name.startswith(("similar_", "alike_", "tracked_", "same_")):
                yield name, past.number(name)
            elif name in _TRACKED:
                yield name, past.tracked(_TRACKED[name])
        for item_field in self._fields():
            found = past.same(self.values[item_field])
            for name in self.names:
                if same_field(name) == item_field:
                    yield name, found[name.rpartition("_")[2]]

    def _searched(self, row_ids, targets):
        """Name -> numbers of rows about targets, float64 [n], of those that are made of what is searched."""
        made = {}
        if self.searches:
            answers, residuals, weights = self._said_of(*self.similar(row_ids, targets))
            made |= {"similar_mean": _weighted(answers, weights), "similar_residual": _weighted(residuals, weights)}
        if self._wants("alike_"):
            _, residuals, weights = self._said_of(*self.alike.weighted(row_ids, targets))
            made["alike_residual"] = _weighted(residuals, weights, towards_zero=_ALIKE)
        return {name: made[name] for name in self.names if name in made}

    def _said_of(self, found, weights):
        """Answers of behaviours that were found and their residuals, float64 [n, K], nan where there is none; and the weights."""
        there = found >= 0
        answers, residuals = np.full(found.shape, np.nan), np.full(found.shape, np.nan)
        answers[there], residuals[there] = self._answers(found[there])
        return answers, residuals, weights

    # One row, as it is said in words above; `of_rows` equals it.

    def of(self, row, targets):
        """Numbers of one row about several items: the row's own, or candidates in its place.

        Args:
            row (int): row_id.
            targets (numpy.ndarray): item ids, int [m].

        Returns:
            numpy.ndarray: float32 [m, names]; nan where there is no value.
        """
        row, targets, columns = int(row), np.asarray(targets, dtype=np.int64), self.rows
        history = self.histories.of(row)
        answers, residuals = self._answers(history)
        until = None if self._reads_all(columns.split[row]) else np.full(len(targets), columns.time[row])
        now = columns.time[row] if self.now is None else self.now[row]
        known = {
            "user_last": answers[-1] if len(history) else np.nan,
            "user_spread": answers.std() if len(history) else np.nan,
            "user_count": len(history),
            "days_since_last": (now - columns.time[history[-1]]) / _DAY if len(history) else np.nan,
        }
        for last, suffix in ((None, ""), (10, "_10"), (30, "_30")):
            window = slice(None) if last is None else slice(-last, None)
            known[f"user_mean{suffix}"], known[f"user_residual{suffix}"] = _mean(answers[window]), _mean(residuals[window])
        if self._wants("item_"):
            known |= {"item_mean": self.statistics.mean(targets, until), "item_count": self.statistics.count(targets, until)}
        known |= self._searched(np.full(len(targets), row), targets)
        for name in filter(_TRACKED.__contains__, self.names):
            said = residuals if _TRACKED[name] == RATED else self._label_residuals(history)
            of_row = columns.user[row], columns.item[history], said, targets, not self._reads_all(columns.split[row])
            known[name] = self.taste.expected_of(_TRACKED[name], *of_row)
        for item_field in self._fields():
            values = self.values[item_field]
            places, value = values.pairs(columns.item[history])
            shares = [np.isin(value, values.of_item(target)) for target in targets]
            shared = np.array([np.bincount(places, weights=of_target, minlength=len(history)) for of_target in shares])
            shared = shared.reshape(len(targets), len(history))
            known |= {
                f"same_{item_field}_mean": _weighted(np.broadcast_to(answers, shared.shape), shared),
                f"same_{item_field}_residual": _weighted(np.broadcast_to(residuals, shared.shape), shared),
                f"same_{item_field}_count": shared.sum(axis=1),
            }
        return np.stack([np.broadcast_to(known[name], len(targets)) for name in self.names], axis=1).astype(np.float32)


def _mean(values):
    """Mean of the values that are there, or nan."""
    values = values[~np.isnan(values)]
    return values.mean() if len(values) else np.nan


def _quotient(sums, counts):
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def _weighted(values, weights, towards_zero=0.0):
    """Weighted means of rows of numbers, over those that are there, and perhaps over a 0 of some weight, float64 [n].

    nan where there are no weights above 0; with that 0, where no number is there.
    """
    weights = np.where(np.isnan(values), 0.0, weights)
    sums = (np.where(weights > 0, values, 0.0) * weights).sum(axis=1)
    found = _quotient(sums, weights.sum(axis=1) + towards_zero)
    return np.where(np.isnan(values).all(axis=1), np.nan, found)


class _Sums:
    """Sums over the first so many of a sequence of numbers, and how many of them are there (not nan)."""

    def __init__(self, values):
        there = ~np.isnan(values)
        self.sums, self.counts = np.zeros(len(values) + 1), np.zeros(len(values) + 1, dtype=np.int64)
        np.cumsum(np.where(there, values, 0.0), out=self.sums[1:])
        np.cumsum(there, out=self.counts[1:])

    def between(self, first, last):
        return self.sums[last] - self.sums[first], self.counts[last] - self.counts[first]


class _Past:
    """The rows of some users that rows of one split see, user by user, oldest first; and those rows of the split.

    The history of a row is what stands before it in this sequence, from its user's first one on.

    Args:
        features (HistoryFeatures): of all rows.
        users (numpy.ndarray): int, ascending.
        split (int): of the rows that are asked for.
        asked (numpy.ndarray): row_ids of that split, ascending; those of these users are taken.
    """

    def __init__(self, features, users, split, asked):
        self.features, columns, histories = features, features.rows, features.histories
        begin, length = histories.start[users], histories.start[users + 1] - histories.start[users]
        places = np.repeat(begin - (np.cumsum(length) - length), length) + np.arange(length.sum())
        self.seen = histories.row_ids[places]
        self.seen = self.seen[columns.split[self.seen] <= split]
        user, numbers = columns.user[self.seen], np.arange(len(self.seen))
        starts = np.append(True, user[1:] != user[:-1])
        self.first = np.maximum.accumulate(np.where(starts, numbers, 0))  # of the user, for each row that is seen
        self.user = np.cumsum(starts) - 1
        place = np.minimum(np.searchsorted(asked, self.seen), len(asked) - 1)
        self.here = np.flatnonzero(asked[place] == self.seen)
        self.row_ids, self.begin = self.seen[self.here], self.first[self.here]
        self.answers = features._said(self.seen)
        means, counts = features.statistics.mean_and_count(columns.item[self.seen], columns.time[self.seen])
        self.residuals = self.answers - means
        self.trains = not features._reads_all(split)
        if not self.trains:
            self.of_items = features.statistics.mean_and_count(columns.item[self.row_ids])
        else:
            self.of_items = means[self.here], counts[self.here]
        self._sums = {"mean": _Sums(self.answers), "residual": _Sums(self.residuals)}

    def number(self, name):
        """One number of the rows that are asked for, float [n]."""
        kind, _, rest = name.partition("_")
        columns, lengths = self.features.rows, self.here - self.begin
        if name == "user_count":
            return lengths
        if name in ("item_mean", "item_count"):
            return self.of_items[name == "item_count"]
        if name == "user_spread":
            return self._spread()
        if name in ("user_last", "days_since_last"):
            latest = np.maximum(self.here - 1, 0)  # another user's, where there is none; not taken below
            now = columns.time[self.row_ids] if self.features.now is None else self.features.now[self.row_ids]
            values = self.answers[latest] if name == "user_last" else (now - columns.time[self.seen[latest]]) / _DAY
            return np.where(lengths > 0, values, np.nan)
        of, _, last = rest.partition("_")
        begin = np.maximum(self.begin, self.here - int(last)) if last else self.begin
        return _quotient(*self._sums[of].between(begin, self.here))

    def _spread(self):
        # Around the user's first answer: squares of large numbers would swallow small differences.
        around = self.answers - self.answers[self.first]
        (sums, counts), (squares, _) = (_Sums(values).between(self.begin, self.here) for values in (around, around**2))
        return np.sqrt(np.maximum(_quotient(squares, counts) - _quotient(sums, counts) ** 2, 0.0))

    def tracked(self, kind):
        """What the filter expects of the rows that are asked for, float64 [n]."""
        columns, taste = self.features.rows, self.features.taste
        said = self.residuals if kind == RATED else self.features._label_residuals(self.seen)
        return taste.expected(kind, columns.user[self.seen], columns.item[self.seen], said, self.trains)[self.here]

    def same(self, values):
        """Sums over the behaviours that share values of a field with the row's item: mean, residual, count -> float [n].

        Each behaviour stands once for each of its values, grouped by user and value; what a row shares is what stands before it
        in the groups of its own values, so that a behaviour of two shared values counts twice.
        """
        rows, value = values.pairs(self.features.rows.item[self.seen])
        group = self.user[rows] * values.count + value
        order = np.argsort(group, kind="stable")
        rows, group, numbers = rows[order], group[order], np.arange(len(order))
        first = np.maximum.accumulate(np.where(np.append(True, group[1:] != group[:-1])[: len(group)], numbers, 0))

        def total(of_pairs):
            return np.bincount(rows, weights=of_pairs, minlength=len(self.seen))[self.here]

        found = {"count": total(numbers - first)}
        for kind, of_behaviours in (("mean", self.answers), ("residual", self.residuals)):
            sums, counts = _Sums(of_behaviours[rows]).between(first, numbers)
            found[kind] = _quotient(total(sums), total(counts))
        return found
