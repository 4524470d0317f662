"""The converters by name of the data set, and the conversion: ``run_recbole_rella.py --dataset=ml-1m --convert=<folder>``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recbole_rella.atomic.book_crossing import book_crossing
from recbole_rella.atomic.movielens import ml_1m, ml_25m
from recbole_rella.atomic.source import ConversionError, Source
from recbole_rella.atomic.writing import write_atomic_files


@dataclass(frozen=True)
class Converter:
    """What makes the tables of a data set: its original files, their encoding, and a function that takes them as Sources."""

    files: tuple
    encoding: str
    tables: Callable


CONVERTERS = {
    "ml-1m": Converter(("users.dat", "movies.dat", "ratings.dat"), "iso-8859-1", ml_1m),
    "ml-25m": Converter(("movies.csv", "ratings.csv"), "utf-8", ml_25m),
    "ml-latest-small": Converter(("movies.csv", "ratings.csv"), "utf-8", ml_25m),
    "book-crossing": Converter(("BX-Users.csv", "BX-Books.csv", "BX-Book-Ratings.csv"), "cp1252", book_crossing),
}


def how_to_convert(name):
    """A sentence for errors about a data set that is not there; '' where none of ours makes it."""
    if name not in CONVERTERS:
        return ""
    return (
        f"Where you have the original files ({', '.join(CONVERTERS[name].files)}), make them with "
        f"run_recbole_rella.py --dataset={name} --convert=<folder of the original files>."
    )


def convert(name, source_folder, data_path="dataset/", show_progress=True, report=print):
    """Convert a data set from its original files, in bounded memory.

    Lines that cannot be used are left out and reported by file, kind and number. Atomic files that are there already are
    replaced once all new ones are complete.

    Args:
        name (str): one of CONVERTERS.
        source_folder (str or pathlib.Path): where the original files lie.
        data_path (str or pathlib.Path): RecBole's; the files are written to its folder `name`.
        show_progress (bool): whether to draw a bar for each file, on a terminal.
        report (callable): takes lines for the user.

    Returns:
        Counts: of what was written.

    Raises:
        ConversionError: there is no such converter, files are missing, or one of them is something else.
        OutputError: there is no place for the new files.
    """
    if name not in CONVERTERS:
        raise ConversionError(f"convert: expected a dataset with a converter, one of {', '.join(CONVERTERS)}; found {name!r}.")
    converter, source_folder = CONVERTERS[name], Path(source_folder).expanduser()
    missing = [file for file in converter.files if not (source_folder / file).is_file()]
    if missing:
        found = sorted(path.name for path in source_folder.iterdir())[:20] if source_folder.is_dir() else "no such folder"
        raise ConversionError(
            f"convert: expected the files {', '.join(converter.files)} of {name} in {source_folder}, found {found}; "
            f"missing are {', '.join(missing)}."
        )
    sources = {file: Source(source_folder / file, converter.encoding, show_progress) for file in converter.files}
    folder = Path(data_path).expanduser() / name
    counts = write_atomic_files(folder, name, converter.tables(sources))
    for source in sources.values():
        for line in source.report():
            report(line)
    known = {"users": counts.listed_users, "items": counts.listed_items}
    listed = [f"{count} {kind} listed" for kind, count in known.items() if count is not None]
    if counts.unlisted_rows:
        listed.append(f"{counts.unlisted_rows} rows of users or items that are not listed")
    report(
        f"{name}: {counts.rows} rows of {counts.users} users and {counts.items} items ({'; '.join(listed)}), written to {folder}"
    )
    return counts
