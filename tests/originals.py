"""Small data sets in the original formats of MovieLens-1M, MovieLens-25M and BookCrossing, with what is odd in those.

Every function writes the files into a folder and returns it. Besides the odd lines there are enough plain ones for a run:
`USERS` users with about 30 ratings each.
"""

import numpy as np

USERS = 24
# Title and genres by id, as they stand in movies.dat; the others are "Story 9 (1969)" and so on.
MOVIES = {
    1: ("Toy Story (1995)", "Animation|Children's|Comedy"),
    2: ("Misérables, Les (1995)", "Drama|Musical"),
    3: ("Shanghai Triad (Yao a yao yao dao waipo qiao) (1995)", "Sci-Fi|Drama"),
    4: ("No Year Here", "Film-Noir|Sci-Fi"),
    5: ("Empty Genres (2000)", ""),
    6: ('"Quoted" Title (1999)', "Comedy"),
    7: ('"Open Quote (1998)', "War"),
    8: ("  Spaces  Inside (1997) ", "Children's|War"),
}
MOVIES |= {movie: (f"Story {movie} ({1960 + movie})", ["Drama|War", "Comedy"][movie % 2]) for movie in range(9, 41)}


def _ratings(first, count, spread):
    """(user, item, rating in whole stars, time): user 1 rates the movies 1, 2, 3, ... in this order, the others random ones."""
    random = np.random.default_rng(5)
    rows = []
    for user in range(1, USERS + 1):
        items = (
            np.arange(1, count + 1) if user == 1 else random.permutation(np.arange(1, count + 1))[: random.integers(spread, count)]
        )
        for place, item in enumerate(items.tolist()):
            rows.append((user, item, int(random.integers(1, 6)), first + 1000 * user + 60 * place))
    return rows


def _write(path, lines, encoding, end="\n"):
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode(encoding)) + end.encode() for line in lines))


def write_ml_1m(folder):
    """users.dat, movies.dat, ratings.dat: broken are 3, 5 and 6 lines; two ratings are of movies that are not listed."""
    folder.mkdir(parents=True)
    users = [
        f"{user}::{'FM'[user % 2]}::{[1, 18, 25, 35, 45, 50, 56][user % 7]}::{user % 21}::{48000 + user}"
        for user in range(1, USERS + 1)
    ]
    users[4:4] = ["", "7::F::18", "eight::M::25::3::55117"]
    movies = [f"{movie}::{title}::{genres}" for movie, (title, genres) in MOVIES.items()]
    movies[3:3] = ["41::Too Few", "42::Too::Many::Fields", "", "x::Bad Id (1990)::Drama", "1::Toy Story Again (1996)::Drama"]
    ratings = ["::".join(map(str, row)) for row in _ratings(978300000, 40, 12)]
    ratings[2:2] = [
        "1::2::3",
        "1::2::3::4::5",
        "1::2::good::978300000",
        "1::2::9::978300000",
        "1::two::3::978300000",
        "1::2::3::later",
    ]
    ratings += ["2::999::4::978309999", "3::998::5::978309999"]
    _write(folder / "users.dat", users, "latin-1")
    _write(folder / "movies.dat", movies, "latin-1", "\r\n")
    _write(folder / "ratings.dat", ratings, "latin-1")
    return folder


def write_ml_25m(folder):
    """movies.csv, ratings.csv: broken are 4 lines of the first."""
    folder.mkdir(parents=True)

    def quoted(text):
        return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text

    titles = {
        **MOVIES,
        9: ("Fawlty Towers (1975–1979)", "Comedy"),
        10: ("Still On (2009– )", "(no genres listed)"),
        11: ("Café, Le (1990)", ""),
    }
    titles = {
        movie: (title.replace("Yao a", "a, Yao"), genres.replace("Children's", "Children"))
        for movie, (title, genres) in titles.items()
    }
    movies = [f"{movie},{quoted(title)},{genres}" for movie, (title, genres) in titles.items()]
    movies[5:5] = ['50,"No end (1990),Drama', "51,Two,Commas (1990),Drama", "52", b"53,Caf\xe9 (1990),Drama"]
    ratings = [f"{user},{item},{rating - 0.5},{time}" for user, item, rating, time in _ratings(1147880044, 40, 12)]
    _write(folder / "movies.csv", ["movieId,title,genres", *movies], "utf-8")
    _write(folder / "ratings.csv", ["userId,movieId,rating,timestamp", *ratings], "utf-8", "\r\n")
    return folder


# ISBN -> title, author, year, publisher as they stand in BX-Books.csv, escapes and entities included.
BOOKS = {
    "0195153448": ("Classical Mythology", "Mark P. O. Morford", "2002", "Oxford University Press"),
    "0002005018": ("Clara; or, a Callan", "Richard Bruce Wright", "2001", "HarperFlamingo Canada"),
    "0743403843": ('Decipher \\"Now\\"', "Stel Pavlou", "2002", "Simon &amp; Schuster"),
    "039592720X": ("L\u2019\u00c9t\u00e9 \u201csmart\u201d", "\u00c9mile \u0160imek", "0", "Gallimard"),
    "0061076031": ("Backslash at the End\\", "Ann O'Neil", "1999", "HarperTorch"),
    "0439095026": ("Tell Me &#39;Why&#39;; How", "n/a", "1998", ""),
}
BOOKS |= {f"1{book:08d}X": (f"Book {book}", f"Author {book % 9}", str(1970 + book), f"House {book % 4}") for book in range(7, 41)}
# Location and age by reader, as they stand in BX-Users.csv; the others are "town 9, region, canada" of 29, and so on.
READERS = {
    1: ("stockton, california, usa", '"18"'),
    2: ("n/a, n/a, ", "NULL"),
    3: ("moscow, yukon territory, russia", '"244"'),
    4: ("somewhere", '"30"'),
    5: ('s\u00e3o paulo, \\"sp\\", brazil', '"0"'),
    6: ("london, n/a, united kingdom", "NULL"),
}
READERS |= {reader: (f"town {reader}, region, canada", f'"{20 + reader}"') for reader in range(7, USERS + 1)}


def write_book_crossing(folder):
    """BX-Users.csv, BX-Books.csv, BX-Book-Ratings.csv: broken are 3, 4 and 4 lines; three ratings are of books not listed."""
    folder.mkdir(parents=True)
    users = [f'"{reader}";"{location}";{age}' for reader, (location, age) in READERS.items()]
    users[3:3] = ['"90";"only two"', '"ninety";"a, b, c";NULL', "no quotes at all"]
    users += ['"91";"new york,', 'new york, usa";"41"']  # one record on two lines
    books = [f'"{isbn}";"' + '";"'.join(book) + '";"http://s";"http://m";"http://l"' for isbn, book in BOOKS.items()]
    books[2:2] = [
        '"078946697X";"Author in the title\\";Michael Teitelbaum";"2000";"DK Publishing Inc";"http://s";"http://m";"http://l"',
        '"0000000001";"Bad year";"A";"nineteen";"P";"http://s";"http://m";"http://l"',
        '"0000000002";"Never ends',
        '"0195153448";"Again";"B";"2002";"P";"http://s";"http://m";"http://l"',
    ]
    isbns = list(BOOKS)
    ratings = [(user, isbns[item - 1], 2 * rating - 2 * (rating == 1)) for user, item, rating, _ in _ratings(0, 40, 2)]
    # Readers with exactly 5 and exactly 6 ratings, about the limit of min_history.
    seen = {user: [row for row in ratings if row[0] == user] for user in range(1, USERS + 1)}
    seen[7], seen[8] = seen[1][:5], seen[1][4:10]
    ratings = [(user, isbn, rating) for user in seen for _, isbn, rating in seen[user]]
    lines = [f'"{user}";"{isbn}";"{rating}"' for user, isbn, rating in ratings]
    lines[5:5] = ['"1";"0195153448"', '"1";"0195153448";"ten"', '"1";"0195153448";"11"', '"one";"0195153448";"5"']
    lines += ['"1";"3257224281";"8"', '"2";"0600570967";"6"', '"99";"0195153448";"5"']
    header = "Image-URL-S Image-URL-M Image-URL-L".split()
    header = ["ISBN", "Book-Title", "Book-Author", "Year-Of-Publication", "Publisher", *header]
    _write(folder / "BX-Users.csv", ['"User-ID";"Location";"Age"', *users], "cp1252", "\r\n")
    _write(folder / "BX-Books.csv", ['"' + '";"'.join(header) + '"', *books], "cp1252", "\r\n")
    _write(folder / "BX-Book-Ratings.csv", ['"User-ID";"ISBN";"Book-Rating"', *lines], "cp1252")
    return folder


# Latest Small comes in the same files as 25M.
ORIGINALS = {"ml-1m": write_ml_1m, "ml-25m": write_ml_25m, "ml-latest-small": write_ml_25m, "book-crossing": write_book_crossing}
