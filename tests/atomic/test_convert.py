"""Original files -> atomic files: every field, every kind of broken line, nothing half-written."""

import re

import pandas as pd
import pytest
from originals import BOOKS, MOVIES, ORIGINALS, READERS, USERS

from recbole_rella.atomic.book_crossing import country
from recbole_rella.atomic.convert import convert
from recbole_rella.atomic.source import ConversionError
from recbole_rella.files import OutputError


def converted(name, tmp_path, write=None):
    """The lines that the conversion reports, and the atomic files as RecBole reads them: suffix -> table of texts."""
    lines = []
    (write or ORIGINALS[name])(tmp_path / "original")
    convert(name, tmp_path / "original", tmp_path / "data", report=lines.append)
    return lines, read(tmp_path / "data" / name)


def read(folder):
    return {
        path.suffix[1:]: pd.read_csv(path, delimiter="\t", dtype=str, engine="python", encoding="utf-8", keep_default_na=False)
        for path in folder.iterdir()
    }


def rows(table):
    return [tuple(row) for row in table.itertuples(index=False)]


def plain_movies(movies, odd):
    """Rows of .item as a reader would write them by hand, the odd ones given."""
    return [odd.get(m, (str(m), f"Story {m}", str(1960 + m), movies[m][1].replace("|", " "))) for m in sorted(movies)]


def test_ml_1m(tmp_path):
    lines, files = converted("ml-1m", tmp_path)
    assert list(files["user"]) == ["user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"]
    assert rows(files["user"])[:2] == [("1", "18", "M", "1", "48001"), ("2", "25", "F", "2", "48002")]
    ages = ["1", "18", "25", "35", "45", "50", "56"]
    assert rows(files["user"]) == [(str(u), ages[u % 7], "FM"[u % 2], str(u % 21), str(48000 + u)) for u in range(1, USERS + 1)]
    assert list(files["item"]) == ["item_id:token", "movie_title:token_seq", "release_year:token", "genre:token_seq"]
    odd = {
        1: ("1", "Toy Story", "1995", "Animation Children's Comedy"),
        2: ("2", "Misérables, Les", "1995", "Drama Musical"),
        3: ("3", "Shanghai Triad (Yao a yao yao dao waipo qiao)", "1995", "Sci-Fi Drama"),
        4: ("4", "No Year Here", "", "Film-Noir Sci-Fi"),
        5: ("5", "Empty Genres", "2000", ""),
        6: ("6", '"Quoted" Title', "1999", "Comedy"),
        7: ("7", '"Open Quote', "1998", "War"),
        8: ("8", "Spaces Inside", "1997", "Children's War"),
    }
    assert rows(files["item"]) == plain_movies(MOVIES, odd)
    assert list(files["inter"]) == ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    original = [line.split("::") for line in (tmp_path / "original" / "ratings.dat").read_text().splitlines()]
    assert rows(files["inter"]) == [tuple(row) for row in original[:2] + original[8:]] and len(original) > 400
    assert lines[:-1] == [
        "users.dat: 1 line left out, blank: 5",
        "users.dat: 1 line left out, not 5 fields: 6",
        "users.dat: 1 line left out, a user id that is not a number: 7",
        "movies.dat: 2 lines left out, not 3 fields: 4, 5",
        "movies.dat: 1 line left out, blank: 6",
        "movies.dat: 1 line left out, a movie id that is not a number: 7",
        "movies.dat: 1 line left out, id listed before: 8",
        "ratings.dat: 2 lines left out, not 4 fields: 3, 4",
        "ratings.dat: 2 lines left out, a rating that is not a number from 0.5 to 5: 5, 6",
        "ratings.dat: 1 line left out, a user or movie id that is not a number: 7",
        "ratings.dat: 1 line left out, a time that is not a number of seconds: 8",
    ]
    assert lines[-1] == (
        f"ml-1m: {len(original) - 6} rows of 24 users and 42 items (24 users listed; 40 items listed; 2 rows of users "
        f"or items that are not listed), written to {tmp_path / 'data' / 'ml-1m'}"
    )


@pytest.mark.parametrize("name", ["ml-25m", "ml-latest-small"])
def test_ml_25m(name, tmp_path):
    lines, files = converted(name, tmp_path)
    assert set(files) == {"item", "inter"}
    odd = {
        1: ("1", "Toy Story", "1995", "Animation Children Comedy"),
        2: ("2", "Misérables, Les", "1995", "Drama Musical"),
        3: ("3", "Shanghai Triad (a, Yao yao yao dao waipo qiao)", "1995", "Sci-Fi Drama"),
        4: ("4", "No Year Here", "", "Film-Noir Sci-Fi"),
        5: ("5", "Empty Genres", "2000", ""),
        6: ("6", '"Quoted" Title', "1999", "Comedy"),
        7: ("7", '"Open Quote', "1998", "War"),
        8: ("8", "Spaces Inside", "1997", "Children War"),
        9: ("9", "Fawlty Towers", "1975", "Comedy"),
        10: ("10", "Still On", "2009", ""),
        11: ("11", "Café, Le", "1990", ""),
    }
    assert rows(files["item"]) == plain_movies(MOVIES, odd)
    original = [line.split(",") for line in (tmp_path / "original" / "ratings.csv").read_text().splitlines()]
    assert rows(files["inter"]) == [tuple(row) for row in original[1:]]
    assert lines[:-1] == [
        "movies.csv: 1 line left out, quotes that do not match: 7",
        "movies.csv: 2 lines left out, not 3 fields: 8, 9",
        "movies.csv: 1 line left out, no utf-8 text: 10",
    ]
    assert lines[-1].startswith(f"{name}: {len(original) - 1} rows of 24 users and 40 items (40 items listed), written to ")


def test_book_crossing(tmp_path):
    lines, files = converted("book-crossing", tmp_path)
    assert list(files["user"]) == ["user_id:token", "location:token", "age:token"]
    odd = {1: ("usa", "18"), 2: ("", ""), 3: ("russia", "244"), 4: ("", "30"), 5: ("brazil", "0"), 6: ("united kingdom", "")}
    readers = [(str(r), *odd.get(r, ("canada", str(20 + r)))) for r in READERS] + [("91", "usa", "41")]
    assert rows(files["user"]) == readers
    names = ["item_id:token", "book_title:token_seq", "book_author:token", "publication_year:token", "publisher:token"]
    assert list(files["item"]) == names
    odd = {
        "0743403843": ('Decipher "Now"', "Stel Pavlou", "2002", "Simon & Schuster"),
        "039592720X": ("L’Été “smart”", "Émile Šimek", "", "Gallimard"),
        "0439095026": ("Tell Me 'Why'; How", "n/a", "1998", ""),
    }
    assert rows(files["item"]) == [(isbn, *odd.get(isbn, book)) for isbn, book in BOOKS.items()]
    assert list(files["inter"]) == ["user_id:token", "item_id:token", "rating:float"]
    text = (tmp_path / "original" / "BX-Book-Ratings.csv").read_text().replace('"', "")
    original = [line.split(";") for line in text.splitlines()][1:]
    assert rows(files["inter"]) == [tuple(row) for row in original[:5] + original[9:]]
    assert lines[:-1] == [
        "BX-Users.csv: 1 line left out, not 3 fields: 5",
        "BX-Users.csv: 1 line left out, a user id that is not a number: 6",
        "BX-Users.csv: 1 line left out, a record that does not begin with a quote: 7",
        "BX-Books.csv: 1 line left out, not 8 fields: 4",
        "BX-Books.csv: 1 line left out, a year that is not a number: 5",
        "BX-Books.csv: 1 line left out, a record that does not end: 6",
        "BX-Books.csv: 1 line left out, id listed before: 7",
        "BX-Book-Ratings.csv: 1 line left out, not 3 fields: 7",
        "BX-Book-Ratings.csv: 2 lines left out, a rating that is not a number from 0 to 10: 8, 9",
        "BX-Book-Ratings.csv: 1 line left out, a user id that is not a number, or no ISBN: 10",
    ]
    assert "25 users listed; 40 items listed; 3 rows of users or items that are not listed" in lines[-1]


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("stockton, california, usa", "usa"),
        ("n/a, n/a, ", ""),
        ("lisbon, n/a, n/a", ""),
        ("somewhere", ""),
        ("", ""),
        ("x, y, U.S.A.", "u.s.a"),
        ('a, b, "spain"', "spain"),
        ("rome,, italy ", "italy"),
    ],
)
def test_the_country_of_a_location(location, expected):
    assert country(location) == expected


@pytest.mark.parametrize("name", ORIGINALS)
def test_earlier_files_stay_until_all_new_ones_are_complete(name, tmp_path):
    """The ratings are read last; what is wrong with them is found when users and items have been written."""
    converted(name, tmp_path)
    folder = tmp_path / "data" / name
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    original = tmp_path / "original"
    (ratings,) = [path for path in original.iterdir() if "atings" in path.name]
    (items,) = [path for path in original.iterdir() if path.name.startswith(("movies", "BX-Books"))]
    items.write_bytes(items.read_bytes().replace(b"Story 9", b"Tale 9").replace(b"Book 9", b"Volume 9"))
    ratings.write_bytes(ratings.read_bytes()[:0])
    with pytest.raises(ConversionError):
        convert(name, original, tmp_path / "data", report=print)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_of_the_name_of_a_file_stays(tmp_path):
    """And nothing is read before that is told."""
    folder = ORIGINALS["ml-25m"](tmp_path / "original")
    precious = tmp_path / "data" / "ml-25m" / "ml-25m.inter" / "precious"
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    (folder / "movies.csv").write_text("something else")
    with pytest.raises(OutputError, match="Expected the name of a file, found .*ml-25m.inter, which is a folder"):
        convert("ml-25m", folder, tmp_path / "data")
    assert precious.is_file() and list((tmp_path / "data" / "ml-25m").iterdir()) == [precious.parent]
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OutputError, match="Expected a folder at .*file, found something else"):
        convert("ml-25m", folder, tmp_path / "file")


def test_files_of_something_else_are_refused(tmp_path):
    folder = ORIGINALS["ml-25m"](tmp_path / "original")
    (folder / "ratings.csv").write_text("user;movie;rating;time\n1;2;3;4\n")
    message = "expected the header 'userId,movieId,rating,timestamp' in .*ratings.csv, found 'user;movie;rating;time'"
    with pytest.raises(ConversionError, match=message):
        convert("ml-25m", folder, tmp_path / "data")
    folder = ORIGINALS["ml-1m"](tmp_path / "older")
    (folder / "ratings.dat").write_text("1\t2\t3\t4\n" * 3)
    message = re.escape("expected at least one usable line in ") + ".*\n  ratings.dat: 3 lines left out, not 4 fields: 1, 2, 3"
    with pytest.raises(ConversionError, match=message):
        convert("ml-1m", folder, tmp_path / "data")
    folder = ORIGINALS["book-crossing"](tmp_path / "books")
    (folder / "BX-Users.csv").write_text("User-ID,Location,Age\n")
    with pytest.raises(ConversionError, match=r"expected the columns \['User-ID', 'Location', 'Age'\] in .*, found no header"):
        convert("book-crossing", folder, tmp_path / "data")
    assert not list((tmp_path / "data").glob("*/*"))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(
        ConversionError,
        match="expected a dataset with a converter, one of ml-1m, ml-25m, ml-latest-small, book-crossing; found 'ml-9m'",
    ):
        convert("ml-9m", tmp_path)
    folder = ORIGINALS["ml-1m"](tmp_path / "original")
    (folder / "users.dat").unlink()
    message = r"expected the files users.dat, .* of ml-1m in .*, found \['movies.dat', 'ratings.dat'\]; missing are users.dat"
    with pytest.raises(ConversionError, match=message):
        convert("ml-1m", folder, tmp_path)
    with pytest.raises(ConversionError, match="found no such folder"):
        convert("ml-1m", tmp_path / "nowhere", tmp_path)


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Ten times the rows, of the same users and movies, take no more memory."""
    import tracemalloc

    folder = ORIGINALS["ml-25m"](tmp_path / "original")
    header, *lines = (folder / "ratings.csv").read_bytes().splitlines(keepends=True)

    def peak(times):
        (folder / "ratings.csv").write_bytes(header + b"".join(lines) * times)
        tracemalloc.start()
        counts = convert("ml-25m", folder, tmp_path / "data", report=lambda _: None)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert counts.rows == times * len(lines)
        return found

    peak(1)
    few, many = peak(3), peak(30)
    assert many < 1.2 * few + 50_000, (few, many)
