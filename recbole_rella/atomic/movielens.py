"""MovieLens 1M, 25M and Latest Small, from the files that GroupLens distributes.

ml-1m            users.dat, movies.dat, ratings.dat: ``::`` between fields, no header, ISO-8859-1
ml-25m           movies.csv, ratings.csv: commas, a header, titles with a comma in quotes, UTF-8; no users
ml-latest-small  the same

The fields are named as in RecBole's own downloads. A title stays as it is, article last ("Matrix, The"), as RecBole has it;
the year at its end goes to release_year. Genres are words, so that "Sci-Fi" or "Children's" is one token.
"""

import csv
import re
from functools import lru_cache

from recbole_rella.atomic.source import ConversionError
from recbole_rella.atomic.writing import Table, one_line

_INTER = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
_ITEM = ("item_id:token", "movie_title:token_seq", "release_year:token", "genre:token_seq")
_USER = ("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token")

# "(1995)" at the end of a title, or the years of a series, "(2006-2010)" or "(2009– )", of which the first is taken.
_YEAR = re.compile(r"\s*\((\d{4})(?:\s*[-–]\s*(?:\d{4})?)?\s*\)\s*$")
_NO_GENRE = "(no genres listed)"


@lru_cache(maxsize=4096)
def _is_rating(text):
    try:
        return 0.5 <= float(text) <= 5
    except ValueError:
        return False


def _ratings(source, lines, separator):
    """Rows of .inter; the loop that 25 million lines go through."""
    for line in lines:
        row = line.split(separator)
        if len(row) != 4:
            source.skip("not 4 fields")
        elif not (row[0].isdecimal() and row[1].isdecimal()):
            source.skip("a user or movie id that is not a number")
        elif not _is_rating(row[2]):
            source.skip("a rating that is not a number from 0.5 to 5")
        elif not row[3].isdecimal():
            source.skip("a time that is not a number of seconds")
        else:
            yield row


def _movie(source, row):
    """A row of .item, or None for a broken line."""
    if len(row) != 3:
        return source.skip("not 3 fields")
    movie, title, genres = map(one_line, row)
    if not movie.isdecimal():
        return source.skip("a movie id that is not a number")
    year = _YEAR.search(title)
    if year:
        title = title[: year.start()]
    genres = "" if genres == _NO_GENRE else " ".join(genre.replace(" ", "-") for genre in genres.split("|") if genre)
    return movie, title, year[1] if year else "", genres


def _users_1m(source):
    for line in source:
        row = [one_line(field) for field in line.split("::")]
        if len(row) != 5:
            source.skip("not 5 fields")
        elif not row[0].isdecimal():
            source.skip("a user id that is not a number")
        else:
            user, gender, age, occupation, zip_code = row
            yield user, age, gender, occupation, zip_code


def _movies_1m(source):
    for line in source:
        row = _movie(source, line.split("::"))
        if row:
            yield row


def _after_header(source, names):
    """The lines after the header, which must be the one that is known."""
    lines = iter(source)
    header = next(lines, "").lstrip("\ufeff")
    if header.split(",") != names:
        raise ConversionError(f"convert: expected the header {','.join(names)!r} in {source.path}, found {header!r}.")
    return lines


def _movies_25m(source):
    for line in _after_header(source, ["movieId", "title", "genres"]):
        try:
            fields = next(csv.reader([line], strict=True))
        except csv.Error:
            source.skip("quotes that do not match")
            continue
        row = _movie(source, fields)
        if row:
            yield row


def _ratings_25m(source):
    yield from _ratings(source, _after_header(source, ["userId", "movieId", "rating", "timestamp"]), ",")


def ml_1m(sources):
    """The tables of MovieLens-1M; age and occupation are the codes of its README.

    Args:
        sources (dict): file name -> Source.

    Returns:
        dict: suffix of the atomic file -> Table.
    """
    users, movies, ratings = (sources[f"{name}.dat"] for name in ("users", "movies", "ratings"))
    return {
        "user": Table(users, _USER, _users_1m(users)),
        "item": Table(movies, _ITEM, _movies_1m(movies)),
        "inter": Table(ratings, _INTER, _ratings(ratings, ratings, "::")),
    }


def ml_25m(sources):
    """The tables of MovieLens-25M, and of others in its files, as `ml_1m`; nothing is known of their users."""
    movies, ratings = sources["movies.csv"], sources["ratings.csv"]
    return {"item": Table(movies, _ITEM, _movies_25m(movies)), "inter": Table(ratings, _INTER, _ratings_25m(ratings))}
