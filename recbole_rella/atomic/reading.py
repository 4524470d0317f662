"""Reading atomic files. Plain pandas and numpy: data/atomic_files.py hands RecBole what is read here.

Cells are separated by the field separator and by nothing else; lines by line ends. A quote never joins lines or cells. Whether
quotes belong to the texts is a question of the whole file: where every cell that holds a quote is what a CSV writer (pandas,
RecBole's conversion tools, our own converters) makes of a text, in quotes and with those inside doubled, those cells are
unquoted; in any other file a quote is a character like any other.

Numbers are, to the last bit, those of pandas' Python parser, which RecBole asks for. It takes ten times as long as the C parser
and several times the memory, so it reads only what the two may read differently. tests/atomic/test_reading.py compares them.
"""

import codecs
import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_rella.atomic.errors import NAMED, DatasetError, and_more, plural
from recbole_rella.atomic.header import columns_of, in_words

_BLOCK = 1 << 20
# What pandas, with which RecBole reads, takes for a missing number.
_NO_NUMBER = "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
# Beyond it the Python parser rounds a column of whole numbers once, and the C parser once a digit.
_EXACT = 2.0**53
# Stands for a separator of several bytes while a file is read.
_STAND_IN = b"\x1f"


class AtomicFile:
    """One atomic file. Its lines are looked over at once, without parsing them; `read` parses them.

    Args:
        path (str or pathlib.Path): the file.
        separator (str): between cells, one or more characters.
        encoding (str): of its text.

    Attributes:
        columns (dict): name -> type, token, token_seq, float or float_seq, in the order of the file.
        num_rows (int): lines after the header that are not blank.
        short (list): line numbers of the first lines with fewer cells than the header; num_short (int) says how many there are.
        unquoted (bool): whether cells in quotes are read without them, as those of a CSV writer.

    Raises:
        DatasetError: it is no atomic file, or a line of it has more cells than the header.
    """

    def __init__(self, path, separator="\t", encoding="utf-8"):
        self.path, self.separator = Path(path), separator
        try:
            self._encoding = codecs.lookup(encoding).name
        except (LookupError, TypeError):
            raise DatasetError(f"encoding: expected the name of an encoding, as utf-8 or latin-1, found {encoding!r}.") from None
        if not isinstance(separator, str) or not separator or {"\r", "\n", '"'} & set(separator):
            raise DatasetError(f"field_separator: expected what stands between two cells, as '\\t', found {separator!r}.")
        self._cell_end = separator.encode() if len(separator.encode()) == 1 else _STAND_IN
        end = re.escape(self._cell_end)
        self._quoted = re.compile(rb'(?:^|(?<=%b))"((?:[^"\r\n%b]|"")*)"(?=%b|\r?$)' % (end, end, end), re.MULTILINE)
        self._old_line_ends = self._marked = False
        self.unquoted = True
        self.columns = self._header()
        self._look_over()

    def __str__(self):
        return str(self.path)

    def read(self, names, wanted, types):
        """The rows.

        Args:
            names (list of str): what the columns are called in the result, in the order of the file.
            wanted (list of str): which of these are read.
            types (dict): name -> numpy.float64 or str, for those.

        Returns:
            pandas.DataFrame: a row for each line; a missing cell is NaN, and so is a word for no number (NA, null, ...) in
            a column of numbers. In a column of text it is text: there are films and people of these names.

        Raises:
            DatasetError: text that is not of the encoding.
        """
        options = {
            "delimiter": self._cell_end.decode(),
            "names": names,
            "header": 0,
            "usecols": wanted,
            "dtype": types,
            "quoting": csv.QUOTE_NONE,
            "index_col": False,
            "encoding": "utf-8",
            "keep_default_na": False,
            "na_values": {name: _NO_NUMBER if types[name] is np.float64 else [""] for name in wanted},
        }
        try:
            try:
                # "high" is how the Python parser reads numbers, too.
                table = pd.read_csv(self._source(), engine="c", float_precision="high", **options)
                numbers = table.select_dtypes("float64")
                if not any((np.abs(numbers[name].to_numpy()) >= _EXACT).any() for name in numbers):
                    return table
            except UnicodeDecodeError:
                raise
            except ValueError:  # numbers that the Python parser alone takes
                pass
            return pd.read_csv(self._source(), engine="python", **options)
        except UnicodeDecodeError:
            raise self._not_text() from None

    def line(self, rows):
        """The line numbers of rows, as an editor counts them.

        Args:
            rows (numpy.ndarray): int [n], places in what `read` gives.

        Returns:
            numpy.ndarray: int64 [n].
        """
        rows = np.asarray(rows, dtype=np.int64)
        before = self._blank - 2 - np.arange(len(self._blank))  # rows before each blank line
        return rows + 2 + np.searchsorted(before, rows, side="right")

    def check_numbers(self, columns, seq_separator):
        """Find the first cells that are no number.

        Args:
            columns (list of str): names of float and float_seq columns.
            seq_separator (str): between the numbers of a float_seq.

        Raises:
            DatasetError: there are some; the message names line, column and value of the first.
        """
        for name in columns:
            cells = self.read(list(self.columns), [name], {name: str})[name]
            inner = seq_separator if self.columns[name] == "float_seq" else None
            values = cells.dropna()
            rows = [row for row, text in values.items() if not _are_numbers(text, inner)]
            if len(rows):
                lines = self.line(rows[:NAMED]).tolist()
                where = and_more([f"line {line}: {values[row]!r}" for line, row in zip(lines, rows)], len(rows))
                raise DatasetError(
                    f"{self}: expected numbers in the column {name}:{self.columns[name]}, found {plural(len(rows), 'cell')} with "
                    f"something else ({where}). {_remedy(str(values[rows[0]]), name)}"
                )

    def _blocks(self, size=_BLOCK):
        """Yields whole lines as UTF-8 bytes, line ends \\n or \\r\\n, each separator one byte; no byte order mark."""
        utf_8 = self._encoding in ("utf-8", "utf-8-sig", "ascii")
        with open(self.path, **({"mode": "rb"} if utf_8 else {"encoding": self._encoding, "newline": ""})) as file:
            rest, first = b"", True
            while block := file.read(size):
                block = block if utf_8 else block.encode()
                if first:
                    self._marked = block.startswith(codecs.BOM_UTF8)
                    block, first = block.removeprefix(codecs.BOM_UTF8), False
                    self._old_line_ends = b"\n" not in block and b"\r" in block.rstrip(b"\r")
                lines = rest + block
                if self._old_line_ends:
                    lines = lines.replace(b"\r", b"\n")
                cut = lines.rfind(b"\n") + 1
                rest = lines[cut:]
                if cut:
                    yield self._one_byte(lines[:cut])
            if rest:
                yield self._one_byte(rest) + b"\n"

    def _one_byte(self, lines):
        separator = self.separator.encode()
        if len(separator) == 1:
            return lines
        if _STAND_IN in lines:
            raise DatasetError(f"{self}: expected text, found the control character \\x1f; remove it.")
        return lines.replace(separator, _STAND_IN)

    def _clean(self):
        for block in self._blocks():
            yield self._quoted.sub(lambda found: found[1].replace(b'""', b'"'), block) if self.unquoted else block

    def _source(self):
        """What pandas reads: the file itself, where it can."""
        as_it_is = self._encoding == "utf-8" and len(self.separator.encode()) == 1
        if as_it_is and not (self.unquoted or self._marked or self._old_line_ends):
            return self.path
        return io.BufferedReader(_Stream(self._clean()))

    def _header(self):
        """The columns, name -> type, from the first line."""
        try:
            with open(self.path, "rb") as file:
                begin = file.read(4)
            if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not self._encoding.startswith(("utf-16", "utf-32")):
                raise DatasetError(
                    f"{self}: expected {self._encoding} text, found UTF-16; save it as UTF-8, or set encoding to utf-16."
                )
            block = next(self._blocks(1 << 16), b"")
            first = block.split(b"\n", 1)[0].rstrip(b"\r").decode()
        except UnicodeError:
            raise self._not_text() from None
        except OSError as error:
            raise DatasetError(f"{self}: expected a file that can be read, found {error}.") from error
        if not block:
            raise DatasetError(f"{self}: expected a header, as user_id:token, found an empty file.")
        if not first.strip():
            raise DatasetError(f"{self}: expected a header, as user_id:token, in the first line, found a blank line.")
        if "\0" in first:
            raise self._zero_bytes()
        end = self._cell_end.decode()
        cells = [cell.strip() for cell in self._quoted.sub(lambda found: found[1], first.encode()).decode().split(end)]
        return columns_of(self, first.replace(end, self.separator), cells, self.separator)

    def _look_over(self):
        """Count the cells of every line, and judge the quotes."""
        width, line = len(self.columns), 1
        longer, short, blank = [], [], []
        num_longer = self.num_short = cells_in_all = 0
        quotes = False
        try:
            for block in self._blocks():
                if b"\0" in block:
                    raise self._zero_bytes()
                if block.count(b"\r") > block.count(b"\r\n"):
                    raise self._carriage_return(block, line)
                if b'"' in block:
                    quotes = True
                    self.unquoted = self.unquoted and b'"' not in self._quoted.sub(b"", block)
                values = np.frombuffer(block, dtype=np.uint8)
                marks = values[(values == self._cell_end[0]) | (values == 10)]
                cells = np.diff(np.flatnonzero(marks == 10), prepend=-1)
                odd = np.flatnonzero(cells != width) if width > 1 else np.arange(len(cells))
                if len(odd):
                    ones = odd[cells[odd] == 1]
                    if len(ones):
                        texts = block.split(b"\n")
                        empty = np.array([not texts[place].strip(b" \t\r") for place in ones])
                        blank.append(ones[empty] + line)
                        odd = np.setdiff1d(odd, ones[empty])
                    few, many = odd[cells[odd] < width], odd[cells[odd] > width]
                    self.num_short += len(few)
                    num_longer += len(many)
                    short += (few[: NAMED - len(short)] + line).tolist() if len(short) < NAMED else []
                    if len(longer) < NAMED:
                        longer += [f"line {place + line} has {cells[place]}" for place in many[: NAMED - len(longer)]]
                line += len(cells)
                cells_in_all += len(cells)
        except UnicodeError:
            raise self._not_text() from None
        self.unquoted = self.unquoted and quotes
        self.short = short
        self._blank = np.concatenate(blank) if blank else np.empty(0, dtype=np.int64)
        self.num_rows = cells_in_all - len(self._blank) - 1
        if num_longer:
            raise DatasetError(
                f"{self}: expected {plural(width, 'cell')} in a line, as the header has, found {plural(num_longer, 'line')} with "
                f"more ({and_more(longer, num_longer)}). A {in_words(self.separator)} in a "
                f"text begins another cell, in quotes or not: remove it there."
            )
        if self.num_rows == 0:
            raise DatasetError(f"{self}: expected lines after the header, found none; remove the file if there is nothing to tell.")

    def _lines(self):
        with open(self.path, "rb") as file:
            yield from enumerate(file, start=1)

    def _zero_bytes(self):
        line = next((number for number, text in self._lines() if b"\0" in text), 1)
        return DatasetError(
            f"{self}: expected text, found a zero byte in line {line}; is the file damaged, or saved as UTF-16? Save it as UTF-8."
        )

    def _carriage_return(self, block, line):
        place = next(p for p, text in enumerate(block.split(b"\n")) if b"\r" in text.removesuffix(b"\r"))
        return DatasetError(
            f"{self}: expected lines that end in a line feed, found a carriage return inside line {line + place}; remove it."
        )

    def _not_text(self):
        """The error for bytes that are no text of the encoding."""
        count, first = 0, []
        for number, text in self._lines():
            try:
                text.decode(self._encoding)
            except UnicodeError:
                count += 1
                if len(first) < NAMED:
                    first.append(str(number))
        where = f"{plural(count, 'line')} with other bytes (line {and_more(first, count)})" if count else "other bytes"
        return DatasetError(
            f"{self}: expected {self._encoding} text, found {where}. Save the file as UTF-8, or set encoding to what it is, for "
            "example latin-1 or cp1252."
        )


class _Stream(io.RawIOBase):
    """The bytes of blocks, one after the other, as a file."""

    def __init__(self, blocks):
        self._blocks, self._left = blocks, memoryview(b"")

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self._left:
            self._left = memoryview(next(self._blocks, b""))
        part = self._left[: len(buffer)]
        self._left = self._left[len(part) :]
        buffer[: len(part)] = part
        return len(part)


def _are_numbers(text, separator):
    return all(_is_number(part) for part in (text.split(separator) if separator else [text]) if part)


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return text.strip().lower() in ("true", "false")  # which pandas reads as 1 and 0
    return True


def _remedy(value, name):
    if re.search(r"\d[-/.]\d+[-/.]\d", value):
        return "Write times as numbers, for example as seconds since 1970."
    if re.fullmatch(r"\s*[+-]?\d+,\d+\s*", value):
        return "Write a decimal point, not a comma."
    return f"Correct them, or declare the column {name}:token if it holds names."
