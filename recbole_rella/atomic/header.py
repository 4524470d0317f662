"""The header of an atomic file, and the mistakes that are made there."""

import difflib
import re
from collections import Counter

from recbole_rella.atomic.errors import DatasetError

TYPES = ("token", "token_seq", "float", "float_seq")
# What people write for a type, and what it may be here.
_MEANT = {
    **dict.fromkeys(("int", "integer", "number", "double", "numeric", "float32", "float64", "int64"), "float, or token for an id"),
    **dict.fromkeys(("str", "string", "text", "category", "id", "bool"), "token, or token_seq for a text of several words"),
}
_NAMES = {"\t": "tab", ",": "comma", ";": "semicolon", " ": "space", "|": "bar (|)"}


def in_words(separator):
    """What a separator is called."""
    return _NAMES.get(separator, repr(separator))


def columns_of(file, text, cells, separator):
    """The columns that a header names.

    Args:
        file (AtomicFile): which the messages name.
        text (str): the first line.
        cells (list of str): its cells, without quotes.
        separator (str): between them.

    Returns:
        dict: name -> type, one of TYPES.

    Raises:
        DatasetError: a name or a type is missing, unknown, or there twice; the cells are separated by something else.
    """
    expected = f"{file}: expected a header of name:type between {in_words(separator)}s"
    if len(cells) == 1:
        others = [other for other in ("\t", ",", ";", "|", "::", " ") if other != separator and other in text]
        if others and not re.fullmatch(rf"[^:]+:({'|'.join(TYPES)})", text):
            other = max(others, key=text.count)
            raise DatasetError(
                f"{expected}, found {_short(text)}, whose cells seem to be separated by a {in_words(other)}. Save it with "
                f"{in_words(separator)}s, or set field_separator to {other!r}."
            )
    empty = [number for number, cell in enumerate(cells, start=1) if not cell or cell.startswith(":")]
    if empty:
        raise DatasetError(f"{expected}, found no name for column {empty[0]} in {_short(text)}; is there one separator too many?")
    if not any(":" in cell for cell in cells):
        raise DatasetError(
            f"{expected}, found {_short(text)}, without types. The first line names each column and its type "
            f"({', '.join(TYPES)}), for example user_id:token, rating:float."
        )
    for cell in cells:
        name, _, kind = cell.rpartition(":")
        if ":" in name:
            raise DatasetError(f"{expected}, found the column {cell!r}; a name must not hold a colon.")
        if kind not in TYPES or not name:
            nearest = difflib.get_close_matches(kind.lower(), TYPES, n=1)
            meant = _MEANT.get(kind.lower()) or (nearest[0] if nearest else "")
            found = f"the column {cell!r} without a type" if not name else f"the type {kind!r} of the column {name!r}"
            raise DatasetError(
                f"{expected}, found {found}. Types are {', '.join(TYPES)}" + (f"; did you mean {meant}?" if meant else ".")
            )
    twice = [name for name, count in Counter(cell.split(":")[0] for cell in cells).items() if count > 1]
    if twice:
        raise DatasetError(f"{expected}, each once, found {', '.join(twice)} more than once; rename or remove one of them.")
    return dict(cell.split(":") for cell in cells)


def _short(text):
    return repr(text if len(text) <= 80 else text[:77] + "...")
