"""Soft tokens of a prompt: where it has a vector in the place of a word, and what each of them stands for.

A soft token is a token id beyond the LLM's vocabulary, so that budgets, stored prompts, batches and trees of prompts treat it as
any other token. Two prompts share an id where they share the vector:

first + place          an item, by its place in a table of item vectors: each shown behaviour, and the target
first + items + kind   all that belongs to a row, named after the first kind of it: one soft token, as its vectors go along with the
                       prompt (`SoftPlaces.vectors`); before a forward pass all different ones get ids of their own
                       (llm/soft_tokens.py)

An item's stands behind all that a template says of a behaviour, or behind the name of the target. That of the row ends the prompt:
prompts of one user's rows begin alike, and the answer is read from it, so that all of what belongs to a row has a way to the answer
that leads through no attention. Plain numpy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from recbole_rella.prompt.template import TemplateError

# Kinds that stand for an item, and kinds that belong to a row, in the order of their vectors.
OF_ITEMS, OF_ROWS = ("behaviours", "target"), ("user", "history", "row")


@dataclass(frozen=True, eq=False, kw_only=True)
class SoftPlaces:
    """The soft tokens of prompts.

    Attributes:
        first (int): the first id of a soft token, the size of the LLM's vocabulary.
        of (tuple of str): which prompts have, of OF_ITEMS and OF_ROWS.
        gate (str or None): the kind of OF_ROWS whose vectors go along with prompts for gates (llm/cflora.py), token or not.
        items (int): how many vectors of items there are.
        places (numpy.ndarray): of each item id in the table of item vectors, int64.
        sources (Mapping): kind of OF_ROWS -> what gives the vectors: `of_rows(row_ids) -> float32 [n, D]` about their own items,
            and `of(row, targets) -> float32 [m, D]` about others.
    """

    first: int
    of: tuple
    gate: str | None = None
    items: int = 0
    places: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    sources: Mapping[str, object] = field(default_factory=dict)

    def inserted(self, ids, marks, target, shown):
        """Token ids with the soft tokens among them.

        Args:
            ids (list of int): of the prompt without.
            marks (dict): number of a behaviour, from 1, or 0 for the target -> the token before which its soft tokens stand.
            target (int), shown (list of int): items.

        Returns:
            list of int.

        Raises:
            TemplateError: the template shows no text of a behaviour, or none of the target, so that there is no place.
        """
        wanted = dict(enumerate(([item] for item in shown), start=1)) if "behaviours" in self.of else {}
        soft = {number: [self.first + int(self.places[item]) for item in items] for number, items in wanted.items()}
        soft[0] = [self.first + int(self.places[target])] if "target" in self.of else []
        missing = [number for number, tokens in soft.items() if tokens and number not in marks]
        if missing:
            of = "the target" if missing[0] == 0 else f"behaviour {missing[0]} of {len(shown)}"
            raise TemplateError(
                "spa_tokens: expected a template that prints behaviour.text, .answer or .rating for each behaviour, and "
                f"target.text, behind which soft tokens stand; found one that prints nothing of {of}."
            )
        result, begin = [], 0
        for place, number in sorted((marks[number], number or len(shown) + 1) for number, tokens in soft.items() if tokens):
            result += [*ids[begin:place], *soft[number if number <= len(shown) else 0]]
            begin = place
        return result + ids[begin:] + self.of_row

    @property
    def among_words(self):
        """Whether some stand among the words of a prompt."""
        return bool(set(OF_ITEMS) & set(self.of))

    @property
    def of_row(self):
        """The id of the one that ends a prompt, list of int; empty where nothing belongs to its row."""
        return [self.first + self.items + kind for kind, name in enumerate(OF_ROWS) if name in self.of][:1]

    @property
    def kinds(self):
        """The kinds of OF_ROWS whose vectors go along with prompts, in their order."""
        return tuple(kind for kind in OF_ROWS if kind in (*self.of, self.gate))

    def vectors(self, rows, targets, own):
        """The vectors of what belongs to rows, side by side in the order of `kinds`.

        Args:
            rows, targets (numpy.ndarray): row_ids and item ids, int [n].
            own (numpy.ndarray): bool [n], whether the target is the row's own item.

        Returns:
            numpy.ndarray or None: float32 [n, D], as the sources give them; None where there are none.
        """
        found = [_vectors(self.sources[kind], rows, targets, own) for kind in self.kinds]
        return np.concatenate(found, axis=1) if found else None


def _vectors(source, rows, targets, own):
    of_own = source.of_rows(rows[own])
    found = np.empty((len(rows), of_own.shape[1]), dtype=np.float32)
    found[own] = of_own
    for row in np.unique(rows[~own]):
        places = np.flatnonzero((rows == row) & ~own)
        found[places] = source.of(int(row), targets[places])
    return found


@dataclass(frozen=True, eq=False)
class UserVectors:
    """A source of the vectors of rows' users.

    Attributes:
        table (numpy.ndarray): float32 [users, E].
        user (numpy.ndarray): of each row, int [rows].
    """

    table: np.ndarray
    user: np.ndarray

    def of_rows(self, row_ids):
        """Of rows, float32 [n, E]."""
        return self.table[self.user[row_ids]]

    def of(self, row, targets):
        """Of one row, the same for each target, float32 [m, E]."""
        return np.repeat(self.table[self.user[row]][None], len(targets), axis=0)
