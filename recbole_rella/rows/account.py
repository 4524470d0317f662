"""What became of the lines of a data set's files, said once (law 12: no row is lost without a word)."""


class Account:
    """Collects what is to be said about the rows, while they are read, filtered and numbered.

    Attributes:
        kept (int): rows that are left.
    """

    def __init__(self):
        self.read, self.kept, self._files = 0, 0, []
        self._lost, self._odd, self._notes = [], [], []

    def rows_of(self, file, count):
        """Count the rows of an .inter file."""
        self._files.append(file)
        self.read += count

    def lost(self, count, reason, asked_for=False):
        """Rows went.

        Args:
            count (int): how many; 0 says nothing.
            reason (str): why, and which ones.
            asked_for (bool): whether a setting of the user's says so.
        """
        if count:
            self._lost.append((count, reason, asked_for))

    def odd(self, sentence):
        """Something that the user should look at."""
        self._odd.append(sentence)

    def note(self, sentence):
        """Something that is as it should be, and worth a sentence."""
        self._notes.append(sentence)

    @property
    def is_odd(self):
        """Whether it is a warning: rows were lost that no setting of the user's removes, or something looks wrong."""
        return bool(self._odd) or any(not asked_for for *_, asked_for in self._lost)

    def rows(self):
        """How many rows there were and are, and where the others went.

        Returns:
            str: a sentence.
        """
        text = f"{self.read} rows in {', '.join(self._files)}, {self.kept} kept"
        return text + (": " + "; ".join(f"{count} {reason}" for count, reason, _ in self._lost) if self._lost else "") + "."

    def __str__(self):
        return " ".join([self.rows(), *self._odd, *self._notes])
