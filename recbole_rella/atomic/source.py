"""An original file, line by line: in bounded memory, with a progress bar, and an account of what could not be used."""

from pathlib import Path

from tqdm import tqdm

from recbole_rella.errors import RellaError

# How many line numbers of each kind of broken line are kept for the report, and bytes between two moves of the bar.
_NAMED_LINES, _STEP = 5, 1 << 20


class ConversionError(RellaError):
    """Original files are not there, or are not what their names say."""


class Source:
    """The lines of one original file.

    Args:
        path (pathlib.Path): the file.
        encoding (str): of its text; it keeps ASCII bytes as they are.
        show_progress (bool): whether to draw a bar, where there is a terminal to draw it on.

    Attributes:
        number (int): of the line that was read last; the first is 1.
        broken (dict): what was wrong -> [how many lines, the numbers of the first ones].
    """

    def __init__(self, path, encoding, show_progress=False):
        self.path, self._encoding, self._show_progress = Path(path), encoding, show_progress
        self.number, self.broken = 0, {}

    def __iter__(self):
        """Yields lines (str) without their ends; those that are blank, or no text of this encoding, are counted as broken."""
        bar = tqdm(
            total=self.path.stat().st_size,
            unit="B",
            unit_scale=True,
            desc=self.path.name,
            disable=None if self._show_progress else True,
        )
        with open(self.path, "rb") as file, bar:
            read = 0
            for self.number, line in enumerate(file, start=1):
                read += len(line)
                if read >= _STEP:
                    bar.update(read)
                    read = 0
                try:
                    text = line.decode(self._encoding).rstrip("\r\n")
                except UnicodeDecodeError:
                    self.skip(f"no {self._encoding} text")
                    continue
                if text:
                    yield text
                else:
                    self.skip("blank")
            bar.update(read)

    def skip(self, reason, number=None):
        """Count a line that is left out: the one that was read last, or that of a number."""
        count = self.broken.setdefault(reason, [0, []])
        count[0] += 1
        if len(count[1]) < _NAMED_LINES:
            count[1].append(self.number if number is None else number)

    def report(self):
        """What was left out.

        Returns:
            list of str: one line for each kind.
        """
        lines = []
        for reason, (count, first) in self.broken.items():
            numbers = ", ".join(map(str, first)) + (", ..." if count > len(first) else "")
            lines.append(f"{self.path.name}: {count} line{'s' * (count > 1)} left out, {reason}: {numbers}")
        return lines
