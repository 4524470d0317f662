"""What a data set says of its items, and of what users have done: all that a request of a new user needs of it.

What a request gives goes through the same steps as the files did, so that it reads in a prompt as a row does (law 11).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recbole_rella.errors import RellaError
from recbole_rella.prompt.words import Words
from recbole_rella.rows.numbers import number_words
from recbole_rella.rows.order import sort_rank


class RequestError(RellaError):
    """A request cannot be scored; the message says why."""


def in_utf8(text, where=""):
    """A text as it is; refused where UTF-8 does not have it: bytes of another encoding, or half a character, as JSON can carry it.

    Args:
        text (str): of a request.
        where (str): the field or key that holds it, for the message.

    Raises:
        RequestError: no tokenizer reads it, and no file takes it.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"{f'{where}: expected' if where else 'Expected'} text in UTF-8, found {ascii(text[:100])}.") from error
    return text


@dataclass(frozen=True)
class Item:
    """An item of a request: its name in the result, (field, words) of all of its fields, and RecBole's id if it has one."""

    name: str
    words: tuple
    known: int | None


@dataclass(frozen=True)
class Did:
    """A behaviour of a request; rating and label are 0 where the data set has none."""

    item: Item
    rating: float
    label: int
    time: float


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items in words, the fields of users, and what a behaviour holds.

    Attributes:
        dataset (str): its name.
        id_fields (Mapping): user, item -> the name of the id's field.
        types (Mapping): user, item -> field -> RecBole's type (token, token_seq, float, float_seq).
        item_ids (numpy.ndarray): the data set's own id of every internal one, str [items]; the first is padding.
        items, users (Words): of all items; of users at least the fields.
        separator (str): between the words of a sequence.
        rating_type (str or None): in which numpy dtype the rows keep their ratings; None where they have none.
        has_label (bool): whether the rows have labels.
        threshold (float or None): from which rating on a behaviour is liked, where the labels were made so.
    """

    dataset: str
    id_fields: Mapping[str, str]
    types: Mapping[str, Mapping[str, str]]
    item_ids: np.ndarray
    items: Words
    users: Words
    separator: str
    rating_type: str | None
    has_label: bool
    threshold: float | None

    @classmethod
    def of(cls, dataset):
        """That of a built data set.

        Args:
            dataset (ReLLaDataset): of a run.
        """
        config = dataset.config
        return cls(
            dataset=config["dataset"],
            id_fields={"user": dataset.uid_field, "item": dataset.iid_field},
            types=dataset.word_types,
            item_ids=np.asarray(dataset.item_ids),
            items=dataset.words["item"],
            users=dataset.words["user"],
            separator=config["seq_separator"],
            rating_type=None if dataset.rows.rating is None else dataset.rows.rating.dtype.name,
            has_label=dataset.rows.label is not None,
            threshold=(config["threshold"] or {}).get(config["RATING_FIELD"]),
        )

    @cached_property
    def _places(self):
        return {str(item): place for place, item in enumerate(self.item_ids) if place}

    @cached_property
    def _ranks(self):
        return sort_rank(self.item_ids)

    def _table(self, kind):
        return self.items if kind == "item" else self.users

    def words(self, kind, given):
        """All fields of a user or item, of which a request gives some, as a prompt shows them.

        Args:
            kind (str): user or item.
            given (dict): field -> text, number, list of these, or None.

        Returns:
            dict: str -> str.

        Raises:
            RequestError: there is no such field, or its value is of another kind.
        """
        types = self.types[kind]
        unknown = sorted(set(given) - set(types))
        if unknown:
            raise RequestError(f"Expected fields of the {kind} among {sorted(types)}, found {unknown}.")
        texts = {field: self._text(field, types[field], value) for field, value in given.items()}
        return self._table(kind).shown({field: texts.get(field, "") for field in types})

    def _text(self, field, kind, value):
        """The words of a value, as those of an atomic file would be."""
        if value is None:
            return ""
        is_list = isinstance(value, (list, tuple))
        parts = value if is_list else value.split(self.separator) if isinstance(value, str) and kind.endswith("_seq") else [value]
        if not kind.endswith("_seq") and is_list:
            raise RequestError(f"{field}: expected one value, found the list {value!r}.")
        words = (self._part(field, kind, part) for part in parts)
        return self.separator.join(word for word in words if word) if kind.endswith("_seq") else next(iter(words))

    def _part(self, field, kind, value):
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise RequestError(f"{field}: expected text or a number, found {value!r}.")
        if isinstance(value, str) and (kind.startswith("token") or not value.strip()):
            return in_utf8(value.strip(), field)
        if isinstance(value, int) and kind.startswith("token"):
            return str(value)  # with all digits, which a float may not have
        try:
            number = float(value)
        except (ValueError, OverflowError) as error:
            raise RequestError(f"{field}: expected a number, as in the data set, found {value!r}.") from error
        if not np.isfinite(number):
            raise RequestError(f"{field}: expected a finite number, found {value!r}.")
        return number_words(number)

    def item(self, given):
        """An item of a request.

        Args:
            given: an id of the data set, or a dict of the fields of an item that it does not have (or has so).

        Raises:
            RequestError: there is no such item or field, or the data set has that item with other fields.
        """
        if isinstance(given, dict):
            words = self.words("item", given)
            own = given.get(self.id_fields["item"])
            if str(own) in self._places:
                return self._known_as(self._places[str(own)], {field: words[field] for field in given})
            return Item(str(own) if own else next((str(v) for v in given.values() if v), ""), tuple(words.items()), None)
        place = None if isinstance(given, (bool, list)) else self._places.get(str(given))
        if place is None:
            raise RequestError(
                f"item: expected an id of the data set {self.dataset}, found {given!r}. Give a dict of its fields for an item that "
                "the data set does not have."
            )
        return self.known_item(place)

    def _known_as(self, place, words):
        """An item of the data set that a request describes."""
        own = self.items(place)
        field = next((field for field, text in words.items() if text and text != own[field]), None)
        if field is not None:
            raise RequestError(
                f"item: expected {field} {own[field]!r} of the item {str(self.item_ids[place])!r}, which the data set has, found "
                f"{words[field]!r}. Give its id alone, or another id for another item."
            )
        return self.known_item(place)

    def known_item(self, place):
        """An item of the data set, by RecBole's id."""
        return Item(str(self.item_ids[place]), tuple(self.items(place).items()), place)

    def behaviour(self, given):
        """A behaviour of a request.

        Args:
            given: (item, rating, time), or a dict with item, time, and rating and label where the data set has them.

        Raises:
            RequestError: something in it is missing or unknown.
        """
        if isinstance(given, (list, tuple)) and len(given) == 3:
            given = dict(zip(("item", "rating", "time"), given))
        if not isinstance(given, dict) or not {"item", "time"} <= set(given) <= {"item", "rating", "time", "label"}:
            raise RequestError(
                f"history: expected (item, rating, time) or a dict with item, time, rating and label, found {given!r}."
            )
        time, rating = (self._number(given, key) for key in ("time", "rating"))
        if time is None:
            raise RequestError(f"history: expected a time in each behaviour, found {given!r}.")
        if self.rating_type is not None and rating is None:
            raise RequestError(f"history: expected a rating in each behaviour, as in the data set, found {given!r}.")
        return Did(self.item(given["item"]), rating or 0.0, self._label(given, rating), time)

    def separator_of(self, field):
        """What stands between the values of an item field; None where it holds one."""
        return self.separator if self.types["item"][field].endswith("_seq") else None

    def asked_at(self, time, history):
        """When a request is made.

        Args:
            time: of the request: a number, or None.
            history (list of Did): oldest first.

        Returns:
            float: nan for None.

        Raises:
            RequestError: it is no number, or lies before the last behaviour.
        """
        time = self._number({"time": time}, "time", "time")
        if time is not None and history and time < history[-1].time:
            raise RequestError(
                f"time: expected one that is not before the last behaviour's ({number_words(history[-1].time)}), found {time!r}."
            )
        return np.nan if time is None else time

    @staticmethod
    def _number(given, key, where="history"):
        value = given.get(key)
        if value is None or value == "":
            return None
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = np.nan
        if isinstance(value, bool) or not np.isfinite(number):
            raise RequestError(f"{where}: expected a finite number as {key}, found {value!r} in {given!r}.")
        return number

    def _label(self, given, rating):
        if not self.has_label:
            return 0
        label = self._number(given, "label")
        if label is None and self.threshold is not None and rating is not None:
            label = rating >= self.threshold
        if label not in (0, 1):
            raise RequestError(f"history: expected a label, 0 or 1, in each behaviour, found {given!r}.")
        return int(label)

    def in_order(self, history):
        """Behaviours as rows of the data set are ordered: by time, those of one time by item; new items last, as they were given.

        Args:
            history (list of Did): in any order.

        Returns:
            list of Did: oldest first.
        """
        last = len(self.item_ids)
        return sorted(history, key=lambda did: (did.time, last if did.item.known is None else int(self._ranks[did.item.known])))
