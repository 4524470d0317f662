"""RecBole's atomic files, written row by row, and put in their place once all of a data set are complete."""

import csv
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from recbole_rella.atomic.source import ConversionError, Source
from recbole_rella.files import replacing


@dataclass(frozen=True)
class Table:
    """What goes into one atomic file.

    Attributes:
        source (Source): where the rows come from.
        fields (tuple of str): "name:type", in RecBole's types; the first is the id (of .inter the first two: user, item).
        rows (iterable of tuple of str): values in the order of the fields, '' for a missing one.
    """

    source: Source
    fields: tuple
    rows: Iterable


@dataclass(frozen=True)
class Counts:
    """What was written: rows of .inter, the different users and items in them, the rows of .user and .item (None where there
    is no such file), and the rows of .inter whose user or item is not listed there."""

    rows: int
    users: int
    items: int
    listed_users: int | None
    listed_items: int | None
    unlisted_rows: int


def _first_of_each(table, listed):
    """The rows of a .user or .item file; of several with one id the first."""
    for row in table.rows:
        if row[0] in listed:
            table.source.skip("id listed before")
        else:
            listed.add(row[0])
            yield row


class _Interactions:
    """Passes the rows of .inter on, and counts."""

    def __init__(self, listed):
        self.rows = self.unlisted_rows = 0
        self.users, self.items = set(), set()
        self._listed_users, self._listed_items = listed.get("user"), listed.get("item")

    def counted(self, rows):
        users, items = self.users, self.items
        listed_users, listed_items = self._listed_users, self._listed_items
        count = unlisted = 0
        for row in rows:
            user, item = row[0], row[1]
            count += 1
            users.add(user)
            items.add(item)
            if (listed_items is not None and item not in listed_items) or (listed_users is not None and user not in listed_users):
                unlisted += 1
            yield row
        self.rows, self.unlisted_rows = count, unlisted


def write_atomic_files(folder, name, tables):
    """Write the atomic files of a data set; those that are there are replaced once all new ones are complete.

    Fields that hold a quote are quoted as a CSV writer does it, for which every reader takes them: ours, which judges a file by
    all its quotes, and RecBole's own. Written as it is, a title that stands in quotes throughout would be read without them.

    Args:
        folder (pathlib.Path): of the data set; made if it is not there.
        name (str): of the data set.
        tables (dict): suffix (user, item, inter) -> Table; inter is written last.

    Returns:
        Counts: of what was written.

    Raises:
        ConversionError: no row of a file could be used; nothing is replaced. OutputError: there is no place for a file.
    """
    listed = {suffix: set() for suffix in tables if suffix != "inter"}
    interactions = _Interactions(listed)
    with ExitStack() as stack:
        suffixes = sorted(tables, key="inter".__eq__)
        # All of them first: what has no place is told of before anything is read.
        places = [stack.enter_context(replacing(folder / f"{name}.{suffix}")) for suffix in suffixes]
        for suffix, temporary in zip(suffixes, places):
            table = tables[suffix]
            rows = interactions.counted(table.rows) if suffix == "inter" else _first_of_each(table, listed[suffix])
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, delimiter="\t", lineterminator="\n")
                writer.writerow(table.fields)
                writer.writerows(rows)
            if not (interactions.rows if suffix == "inter" else listed[suffix]):
                raise ConversionError(
                    f"convert: expected at least one usable line in {table.source.path}, found none:\n  "
                    + "\n  ".join(table.source.report() or ["the file is empty"])
                )
    return Counts(
        interactions.rows,
        len(interactions.users),
        len(interactions.items),
        len(listed["user"]) if "user" in listed else None,
        len(listed["item"]) if "item" in listed else None,
        interactions.unlisted_rows,
    )


def one_line(text):
    """Text without tabs, line ends and double spaces, as a field of an atomic file must be."""
    return " ".join(text.split())
