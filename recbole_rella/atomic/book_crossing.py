r"""BookCrossing, from the three files of its CSV dump: BX-Users.csv, BX-Books.csv, BX-Book-Ratings.csv.

They are no CSV that a reader of it takes: fields are in quotes, between semicolons, but quotes inside are written as ``\"``
and the backslash itself is not escaped, so that a title that ends in one looks as if it went on. What separates two fields
without doubt is ``";"``. The text is cp1252 with HTML entities; a few records go over two lines.

The fields are named as in RecBole's own download, where author and publisher are split into words and age and year are
numbers; here each is one token, as the paper counts its features. A location, "city, region, country", becomes the country.
There are no times. A rating of 0 says that the reader did something else than rate.
"""

import html
import re
from functools import lru_cache

from recbole_rella.atomic.source import ConversionError
from recbole_rella.atomic.writing import Table, one_line

_INTER = ("user_id:token", "item_id:token", "rating:float")
_USER = ("user_id:token", "location:token", "age:token")
_ITEM = ("item_id:token", "book_title:token_seq", "book_author:token", "publication_year:token", "publisher:token")

_BETWEEN_FIELDS = re.compile(r'(?:(?<=")|(?<=;NULL));(?="|NULL(?:;|$))')
_QUOTE = re.compile(r'\\"|""')
_UNKNOWN = {"", "n/a", "null", "na", "none", "unknown"}


def _closed(text):
    return text.endswith('"') or text.endswith(";NULL")


def _fields(text):
    return ["" if field == "NULL" else _unescaped(field[1:-1]) for field in _BETWEEN_FIELDS.split(text)]


def _unescaped(field):
    return one_line(html.unescape(_QUOTE.sub('"', field)))


def _records(source):
    """Lists of fields (str); a record that does not end in a quote or NULL goes on in the next line, unless that begins one."""
    pending, begun = "", 0
    for line in source:
        line = line.strip()
        if pending and line.startswith('"'):
            source.skip("a record that does not end", begun)
            pending = ""
        if not pending:
            begun = source.number
            if not line.startswith('"'):
                source.skip("a record that does not begin with a quote")
                continue
        text = f"{pending} {line}" if pending else line
        pending = "" if _closed(text) else text
        if not pending:
            yield _fields(text)
    if pending:
        source.skip("a record that does not end", begun)


def _after_header(source, names):
    """The records after the header, cut to the columns with these names; a record with another number of fields is broken."""
    records = _records(source)
    header = next(records, [])
    if header[: len(names)] != names:
        raise ConversionError(f"convert: expected the columns {names} in {source.path}, found {header or 'no header'}.")
    for record in records:
        if len(record) == len(header):
            yield record[: len(names)]
        else:
            source.skip(f"not {len(header)} fields")


def country(location):
    """The country of a location as the readers typed it; '' where it names none.

    Args:
        location (str): "city, region, country", any part of which may be empty or n/a.

    Returns:
        str: the last part.
    """
    _, comma, last = location.rpartition(",")
    last = last.strip(" .\"'").lower()
    return last if comma and last not in _UNKNOWN else ""


def _users(source):
    for user, location, age in _after_header(source, ["User-ID", "Location", "Age"]):
        if not user.isdecimal():
            source.skip("a user id that is not a number")
        elif age and not age.isdecimal():
            source.skip("an age that is not a number")
        else:
            yield user, country(location), age


def _books(source):
    names = ["ISBN", "Book-Title", "Book-Author", "Year-Of-Publication", "Publisher"]
    for isbn, title, author, year, publisher in _after_header(source, names):
        if not isbn:
            source.skip("no ISBN")
        elif not year.isdecimal():
            source.skip("a year that is not a number")
        else:
            # 0 stands for an unknown year.
            yield isbn, title, author, year if int(year) else "", publisher


@lru_cache(maxsize=4096)
def _is_rating(text):
    return text.isdecimal() and int(text) <= 10


def _ratings(source):
    for user, isbn, rating in _after_header(source, ["User-ID", "ISBN", "Book-Rating"]):
        if not user.isdecimal() or not isbn:
            source.skip("a user id that is not a number, or no ISBN")
        elif not _is_rating(rating):
            source.skip("a rating that is not a number from 0 to 10")
        else:
            yield user, isbn, rating


def book_crossing(sources):
    """The tables of BookCrossing.

    Args:
        sources (dict): file name -> Source.

    Returns:
        dict: suffix of the atomic file -> Table.
    """
    users, books, ratings = (sources[f"BX-{name}.csv"] for name in ("Users", "Books", "Book-Ratings"))
    return {
        "user": Table(users, _USER, _users(users)),
        "item": Table(books, _ITEM, _books(books)),
        "inter": Table(ratings, _INTER, _ratings(ratings)),
    }
