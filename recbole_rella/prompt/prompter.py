"""From a row to the token ids of its prompt: choose the shown behaviours, render, tokenize, keep within the budget.

RowTexts gives texts; Prompter, which needs an LLM's tokenizer too, gives token ids.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from recbole_rella.errors import RellaError
from recbole_rella.prompt.stored_prompts import StoredPrompts
from recbole_rella.prompt.template import Behaviour, Others, PromptTemplate
from recbole_rella.prompt.tokenization import PromptTokenizer
from recbole_rella.rows.history import Histories, Rows
from recbole_rella.rows.numbers import as_in_file

_ORDERS = {"time": np.sort, "similarity": np.array, "similarity_reversed": np.flip}


class PromptBudgetError(RellaError):
    """A prompt does not fit into max_prompt_tokens even without any behaviour."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RowTexts:
    """Rows in words: which behaviours a prompt shows, and its text.

    Attributes:
        rows (Rows), histories (Histories): all rows.
        user_ids, item_ids (sequence of str): the data set's own id of every internal one, for messages.
        template (PromptTemplate): renders.
        history_size (int): K, the number of behaviours shown.
        history_order (str): time, similarity (closest first) or similarity_reversed.
        retriever (Retriever or None): finds the closest behaviours; None where only recent ones are asked for.
    """

    rows: Rows
    histories: Histories
    user_ids: list
    item_ids: list
    template: PromptTemplate
    history_size: int
    history_order: str
    retriever: object = None

    def _behaviour(self, row):
        rows = self.rows
        return Behaviour(
            int(rows.item[row]),
            None if rows.rating is None else as_in_file(rows.rating[row]),
            None if rows.label is None else int(rows.label[row]),
            int(rows.time[row]),
        )

    def _others(self, history, shown):
        def columns():
            rest = history[~np.isin(history, shown)]
            return [column if column is None else column[rest] for column in (self.rows.label, self.rows.rating)]

        return Others(len(history) - len(shown), columns)

    def _parts(self, row, target, shown):
        behaviours = [self._behaviour(behaviour) for behaviour in shown]
        return int(self.rows.user[row]), int(target), behaviours, self._others(self.histories.of(row), shown)

    def shown(self, rows, targets, retrieved):
        """Which behaviours each prompt shows, in the order in which it shows them.

        Args:
            rows, targets (numpy.ndarray): row_ids and item ids, int [n].
            retrieved (numpy.ndarray): bool [n]; else the most recent ones.

        Returns:
            list of numpy.ndarray: row_ids, at most K each.
        """
        chosen = [None] * len(rows)
        places = np.flatnonzero(retrieved)
        if len(places):
            for place, found in zip(places, self.retriever.closest(rows[places], targets[places])):
                chosen[place] = _ORDERS[self.history_order](found[found >= 0])
        for place in np.flatnonzero(~retrieved):
            chosen[place] = self.recent(rows[place])
        return chosen

    def recent(self, row):
        """The row_ids of the K most recent behaviours of a row, oldest first, int32."""
        return self.histories.of(row)[-self.history_size :]

    def text(self, row, target, shown):
        """The text of one prompt; `shown` as from `shown`."""
        return self.template.text(*self._parts(row, target, shown))

    def document(self, row, shown):
        """The prompt of one row with its answer, and the spans of its answers and ratings: see `PromptTemplate`."""
        return self.template.document(*self._parts(row, self.rows.item[row], shown), int(self.rows.label[row]))


@dataclass(frozen=True, eq=False, kw_only=True)
class Prompter(RowTexts):
    """Prompts of rows, as an LLM reads them.

    Attributes:
        tokenizer (PromptTokenizer): of the LLM.
        max_tokens (int): that a prompt may have.
        stored (Mapping): whether retrieved -> StoredPrompts, which are not made again.
    """

    tokenizer: PromptTokenizer
    max_tokens: int
    stored: Mapping[bool, StoredPrompts] = field(default_factory=dict)

    def fitted(self, row, target, shown):
        """Token ids of one prompt within the budget, and which behaviours it shows: the oldest go first (law 5).

        Args:
            row, target (int): row_id and item id.
            shown (numpy.ndarray): row_ids, in the order in which they are shown.

        Returns:
            tuple: list of int; those of `shown` that are left, in their order.

        Raises:
            PromptBudgetError: the prompt does not fit even without any behaviour.
        """
        ids = self.tokenizer.ids(self.text(row, target, shown))
        if len(ids) <= self.max_tokens:
            return ids, shown
        oldest_first = np.sort(shown)
        # The largest number of behaviours that fits; a bisection, as each try renders and tokenizes a prompt.
        fits, too_many, best = -1, len(shown), None
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            kept = shown[np.isin(shown, oldest_first[len(shown) - middle :])]
            ids = self.tokenizer.ids(self.text(row, target, kept))
            if len(ids) <= self.max_tokens:
                fits, best = middle, (ids, kept)
            else:
                too_many = middle
        if best is None:
            raise PromptBudgetError(
                f"max_prompt_tokens: the prompt of user {self.user_ids[self.rows.user[row]]} about item {self.item_ids[target]} "
                f"(row {row}) has {len(ids)} tokens without any behaviour; {self.max_tokens} are allowed. Raise max_prompt_tokens "
                "(the LLM's positions permitting), or shorten the profile, the question or the item's name."
            )
        return best

    def token_ids(self, rows, targets, retrieved):
        """Token ids of prompts.

        Args:
            rows, targets (numpy.ndarray): row_ids and item ids, int [n].
            retrieved (numpy.ndarray): bool [n].

        Returns:
            tuple: list of n lists of int; how many shown behaviours each prompt had to drop, list of int.

        Raises:
            PromptBudgetError: names a row that does not fit even without history.
        """
        rows, targets, retrieved = (np.asarray(column) for column in (rows, targets, retrieved))
        prompts = [self._stored(row, target, kind) for row, target, kind in zip(rows, targets, retrieved)]
        new = np.flatnonzero([prompt is None for prompt in prompts])
        shown = self.shown(rows[new], targets[new], retrieved[new])
        for place, row, target, behaviours in zip(new, rows[new], targets[new], shown):
            ids, kept = self.fitted(int(row), int(target), behaviours)
            prompts[place] = ids, len(behaviours) - len(kept)
        return [ids for ids, _ in prompts], [dropped for _, dropped in prompts]

    def _stored(self, row, target, retrieved):
        stored = self.stored.get(bool(retrieved))
        place = stored.place(row) if stored is not None and self.rows.item[row] == target else None
        return None if place is None else stored[place]

    def check_budget(self, rows):
        """Raise PromptBudgetError now for a row that cannot fit even without history, rather than in the middle of a run.

        A text has at most one token a byte, so most rows need no tokenizing.
        """
        none = np.empty(0, dtype=np.int32)
        for row in np.unique(rows):
            target = self.rows.item[row]
            user, _, _, others = self._parts(row, target, none)
            text = self.template.text(user, int(target), [], others)
            if len(self.tokenizer.framed(text).encode()) + 8 > self.max_tokens:
                self.fitted(int(row), int(target), none)
